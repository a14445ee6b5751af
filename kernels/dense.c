/* dense.c: the dense linear algebra that one rank does in host memory, in both builds: OpenBLAS and its LAPACK.
 *
 * On one thread: OpenBLAS gives other bits on another number of threads. */
#include <cblas.h>
#include <lapacke.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

/* This library asks OpenMP, whatever openblas_set_num_threads was told. Returns what to give back to
 * omp_set_num_threads. */
static int one_thread(void) {
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    return threads;
}

bool k_eigen(double *values, double *vectors, double *matrix, int n, int k) {
    double *ascending = malloc((size_t)n * sizeof *ascending),
           *columns = malloc((size_t)n * (size_t)k * sizeof *columns);
    lapack_int *support = malloc(2 * (size_t)k * sizeof *support), found = 0;
    const int threads = one_thread();
    bool ok = ascending && columns && support &&
              LAPACKE_dsyevr(LAPACK_COL_MAJOR, 'V', k < n ? 'I' : 'A', 'U', n, matrix, n, 0, 0, n - k + 1, n, 0, &found,
                             ascending, columns, n, support) == 0 &&
              found == k;
    omp_set_num_threads(threads);
    for (int i = 0; ok && i < k; i++) {
        values[i] = ascending[k - 1 - i];
        memcpy(vectors + (size_t)i * (size_t)n, columns + (size_t)(k - 1 - i) * (size_t)n, (size_t)n * sizeof *columns);
    }
    free(ascending);
    free(columns);
    free(support);
    return ok;
}

bool k_rotation(double *rotation, const double *cross, int n) {
    enum { MOST = 3 };
    double matrix[MOST * MOST], values[MOST], u[MOST * MOST], vt[MOST * MOST], spare[MOST];
    if (n > MOST)
        return false;
    memcpy(matrix, cross, (size_t)(n * n) * sizeof *matrix);
    const int threads = one_thread();
    const bool ok = LAPACKE_dgesvd(LAPACK_ROW_MAJOR, 'A', 'A', n, n, matrix, n, values, u, n, vt, n, spare) == 0;
    omp_set_num_threads(threads);
    for (int i = 0; ok && i < n; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int k = 0; k < n; k++)
                sum += u[i * n + k] * vt[k * n + j];
            rotation[i * n + j] = sum;
        }
    return ok;
}

void k_dense_product(double *c, const double *a, const double *b, bool transposed, int m, int n, int k, double alpha,
                     double beta) {
    const int threads = one_thread();
    cblas_dgemm(CblasRowMajor, CblasNoTrans, transposed ? CblasTrans : CblasNoTrans, m, n, k, alpha, a, k, b,
                transposed ? k : n, beta, c, n);
    omp_set_num_threads(threads);
}
