/* linalg.c: the dense linear algebra of PCA.
 *
 * Sums over the samples must not depend on how these are dealt to ranks and threads, and BLAS gives other bits for
 * other shapes, threads and processors. So numbers are cut into two parts of `bits` <= 22 bits, whole numbers in
 * doubles: over a tile of 256 rows all their products and sums are whole numbers below 2^53, exact in any order, and
 * tiles are added as int64. Price: three products of matrices for one (high high, high low, low high); the part left
 * out weighs 2^-46 of the largest. 10,000 rows of 784 columns take 0.5 s on 2 cores. */
#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <string.h>

#include "cpu.h"

enum {
    TILE_ROWS = 256,
    TILE_COLUMNS = 256, /* of a block of the result: it is one thread's own */
    CHUNK = 512,        /* dimensions of k_project that stay in the cache */
    GROUP = 4,          /* rows, and axes, that k_project works on together */
    SUMS = 8,           /* partial sums of a dot product, in the order of the dimensions modulo 8 */
};

/* Columns to multiply: of (x - center) * scale, or of t * scale. */
typedef struct {
    const float *x;
    const double *t;
    int stride, first, count;
    const double *center, *scale;
} Columns;

/* A thread's tile: both operands in two parts, and what their product gives. */
typedef struct {
    double high[2][TILE_ROWS * TILE_COLUMNS], low[2][TILE_ROWS * TILE_COLUMNS];
    double product[TILE_COLUMNS * TILE_COLUMNS];
} Tile;

static void exact_block(int64_t *high, int64_t *low, int stride, Columns a, Columns b, int64_t rows, int bits,
                        Tile *tile);
static void cut_tile(double *high, double *low, Columns columns, int64_t from, int rows, int bits);
static void add_product(int64_t *sum, int stride, Tile *tile, int m, int n);
static void project_group(double *t, const float *x, int rows, int width, const double *center, const double *axes,
                          int K);

void k_column_most(double *most, const float *x, int64_t rows, int width, const double *center) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int from = 0; from < width; from += TILE_COLUMNS) {
        int to = width - from < TILE_COLUMNS ? width : from + TILE_COLUMNS;
        for (int c = from; c < to; c++)
            most[c] = 0;
        for (int64_t r = 0; r < rows; r++)
            for (int c = from; c < to; c++) {
                double size = fabs((double)x[r * width + c] - (center ? center[c] : 0));
                most[c] = size > most[c] || isnan(size) ? size : most[c]; /* a NaN stays */
            }
    }
}

void k_column_sums(int64_t *sums, const float *x, int64_t rows, int width, const double *center, const double *scale,
                   int power, int bits) {
    const double units = ldexp(1, bits);
#pragma omp parallel for schedule(dynamic, 1)
    for (int from = 0; from < width; from += TILE_COLUMNS) {
        int to = width - from < TILE_COLUMNS ? width : from + TILE_COLUMNS;
        for (int c = from; c < to; c++)
            sums[c] = 0;
        for (int64_t r = 0; r < rows; r++)
            for (int c = from; c < to; c++) {
                double v = ((double)x[r * width + c] - (center ? center[c] : 0)) * scale[c];
                sums[c] += llrint((power == 2 ? v * v : v) * units);
            }
    }
}

size_t k_covariance_scratch(void) {
    return (size_t)omp_get_max_threads() * sizeof(Tile);
}

void k_covariance(int64_t *high, int64_t *low, const float *x, int64_t rows, int width, const double *center,
                  const double *scale, int bits, void *scratch) {
    const int blocks = (width + TILE_COLUMNS - 1) / TILE_COLUMNS;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
    for (int i = 0; i < blocks; i++)
        for (int j = 0; j < blocks; j++) {
            if (j < i)
                continue;
            Columns a = {x, NULL, width, i * TILE_COLUMNS, TILE_COLUMNS, center, scale}, b = a;
            b.first = j * TILE_COLUMNS;
            a.count = width - a.first < TILE_COLUMNS ? width - a.first : TILE_COLUMNS;
            b.count = width - b.first < TILE_COLUMNS ? width - b.first : TILE_COLUMNS;
            int64_t at = (int64_t)a.first * width + b.first;
            exact_block(high + at, low + at, width, a, b, rows, bits, (Tile *)scratch + omp_get_thread_num());
        }
#pragma omp parallel for schedule(static)
    for (int r = 1; r < width; r++)
        for (int c = 0; c < r; c++) {
            high[(int64_t)r * width + c] = high[(int64_t)c * width + r];
            low[(int64_t)r * width + c] = low[(int64_t)c * width + r];
        }
}

void k_back_project(int64_t *high, int64_t *low, const float *x, int64_t rows, int width, const double *center,
                    const double *scale, const double *t, int columns, const double *t_scale, int bits, void *scratch) {
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
    for (int i = 0; i < width; i += TILE_COLUMNS)
        for (int j = 0; j < columns; j += TILE_COLUMNS) {
            Columns a = {x, NULL, width, i, width - i < TILE_COLUMNS ? width - i : TILE_COLUMNS, center, scale};
            Columns b = {NULL, t, columns, j, columns - j < TILE_COLUMNS ? columns - j : TILE_COLUMNS, NULL, t_scale};
            int64_t at = (int64_t)i * columns + j;
            exact_block(high + at, low + at, columns, a, b, rows, bits, (Tile *)scratch + omp_get_thread_num());
        }
}

void k_project(double *t, const float *x, int64_t rows, int width, const double *center, const double *axes, int K) {
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t r = 0; r < rows; r += GROUP)
        project_group(t + r * K, x + r * width, rows - r < GROUP ? (int)(rows - r) : GROUP, width, center, axes, K);
}


/* high, low (a.count, b.count) with `stride` <- sums over all rows of a^T b. */
static void exact_block(int64_t *high, int64_t *low, int stride, Columns a, Columns b, int64_t rows, int bits,
                        Tile *tile) {
    const int m = a.count, n = b.count;
    for (int i = 0; i < m; i++) {
        memset(high + (int64_t)i * stride, 0, (size_t)n * sizeof *high);
        memset(low + (int64_t)i * stride, 0, (size_t)n * sizeof *low);
    }
    for (int64_t from = 0; from < rows; from += TILE_ROWS) {
        int count = rows - from < TILE_ROWS ? (int)(rows - from) : TILE_ROWS;
        cut_tile(tile->high[0], tile->low[0], a, from, count, bits);
        cut_tile(tile->high[1], tile->low[1], b, from, count, bits);
        cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, count, 1, tile->high[0], m, tile->high[1], n, 0,
                    tile->product, n);
        add_product(high, stride, tile, m, n);
        cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, count, 1, tile->high[0], m, tile->low[1], n, 0,
                    tile->product, n);
        cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, count, 1, tile->low[0], m, tile->high[1], n, 1,
                    tile->product, n);
        add_product(low, stride, tile, m, n);
    }
}

/* v = (high + low 2^-bits) 2^-bits, |high| <= 2^bits and |low| <= 2^(bits - 1) whole numbers. */
CPU_CLONES static void cut_tile(double *high, double *low, Columns columns, int64_t from, int rows, int bits) {
    const double units = ldexp(1, bits), round = 0x1.8p52; /* adding and subtracting it rounds to a whole number */
    for (int r = 0; r < rows; r++) {
        const int64_t at = (from + r) * columns.stride + columns.first;
        const double *scale = columns.scale + columns.first;
        double *h = high + r * columns.count, *l = low + r * columns.count;
        for (int c = 0; c < columns.count; c++) {
            double v = columns.x ? (double)columns.x[at + c] - columns.center[columns.first + c] : columns.t[at + c];
            v *= scale[c] * units;
            h[c] = v + round - round;
            l[c] = (v - h[c]) * units + round - round;
        }
    }
}

static void add_product(int64_t *sum, int stride, Tile *tile, int m, int n) {
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            sum[(int64_t)i * stride + j] += (int64_t)tile->product[i * n + j];
}

/* Up to GROUP rows; each (row, axis) has its own sums, so the grouping changes nothing. */
CPU_CLONES static void project_group(double *t, const float *x, int rows, int width, const double *center,
                                     const double *axes, int K) {
    double centred[GROUP][CHUNK];
    for (int i = 0; i < rows * K; i++)
        t[i] = 0;
    for (int from = 0; from < width; from += CHUNK) {
        const int count = width - from < CHUNK ? width - from : CHUNK, whole = count / SUMS * SUMS;
        for (int r = 0; r < rows; r++)
            for (int d = 0; d < count; d++)
                centred[r][d] = (double)x[(int64_t)r * width + from + d] - center[from + d];
        for (int k = 0; k < K; k++) {
            const double *axis = axes + (int64_t)k * width + from;
            for (int r = 0; r < rows; r++) {
                double sum[SUMS] = {0}, rest = 0;
                for (int d = 0; d < whole; d += SUMS)
                    for (int l = 0; l < SUMS; l++)
                        sum[l] += centred[r][d + l] * axis[d + l];
                for (int d = whole; d < count; d++)
                    rest += centred[r][d] * axis[d];
                t[r * K + k] += (sum[0] + sum[4]) + (sum[1] + sum[5]) + ((sum[2] + sum[6]) + (sum[3] + sum[7])) + rest;
            }
        }
    }
}
