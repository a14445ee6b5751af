/* pca_parts.h: between pca.c, pca_few.c and pca_wide.c. */
#ifndef CNNSCOPE_PCA_PARTS_H
#define CNNSCOPE_PCA_PARTS_H

#include "stages.h"

/* The matrix to analyse, and how its columns are brought to [-1, 1]. Host copies; device ones for the kernels. */
typedef struct {
    const Matrix *x;
    int bits;                   /* of each part of a number in products: k_covariance */
    const double *scale, *most; /* (D): powers of two; largest |x - center| */
    double *device_center, *device_scale;
    void *scratch;           /* k_covariance_scratch() */
    double samples_less_one; /* N - 1, at least 1 */
} PcaInput;

/* Collective. The first K eigenvalues and eigenvectors (K, D) of the covariance, without forming it. */
void pca_wide(double *values, double *axes, const PcaInput *input, int K);

/* Collective. The same into variance and axes of a result that has its center, by the products of the samples: N x N. */
void pca_few(Pca *result, const PcaInput *input, int K);

/* Collective. sum (count) <- this rank's device numbers of k_covariance or k_back_project, over all ranks, as real
 * numbers in units of 2^(-2 bits). */
void pca_sum(double *sum, int64_t *device_high, int64_t *device_low, size_t count, int bits);

/* Variances and residuals below this share of the largest variance are rounding of the products: fixed-point numbers of
 * `width` columns. */
double pca_noise(int width);

/* Of D numbers, in one order. */
double pca_dot(const double *a, const double *b, int D);

#endif
