/* pca.c: principal components of a matrix whose rows lie on the ranks. See stages.h.
 *
 * Rows stay where they are: means, then the covariance, are sums over rows, made of integers (kernels.h) so that any
 * number of ranks and threads gives the same bits. One rank solves the eigenproblem and tells the others. Up to 1024
 * columns the covariance is formed (N D^2 multiplications, three times over; D^2 numbers sent); wider layers go to
 * pca_few.c when they have up to 1024 rows, which is where its work grows past that of pca_wide.c. */
#include <math.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "pca_parts.h"
#include "watchdog.h"

enum { FORMED_WIDTH_MOST = 1024, FEW_MOST = 1024, BITS_MOST = 22, PIECE_BYTES = 64 << 20 };

static void check_finite(const Matrix *x, double *most);
static void find_center(double *center, const Matrix *x, Arena *scratch, const double *most);
static void find_deviations(double *most, const Matrix *x, const double *device_center);
static double total_variance(const PcaInput *input, Arena *scratch);
static void solve_formed(double *values, double *axes, const PcaInput *input, int K, const char *name);
static void scale_columns(double *scale, const double *most, int width);
static int sum_bits(int64_t total);
static void finish_axes(Pca *result, int width, double total);
static void find_axes(Pca *result, const Matrix *x);
static bool restore_axes(const RecordPart *parts, int count, Checkpoint *checkpoint, const char *key);

void pca(Pca *result, Arena *arena, const Matrix *x, int components, Checkpoint *checkpoint, const char *key) {
    const size_t D = (size_t)x->width, K = (size_t)components;
    *result = (Pca){.components = components};
    result->center = ARENA_ARRAY(arena, double, D, "PCA center");
    result->axes = ARENA_ARRAY(arena, double, K *D, "PCA axes");
    result->variance = ARENA_ARRAY(arena, double, K, "PCA variance");
    result->variance_ratio = ARENA_ARRAY(arena, double, K, "PCA variance");
    const RecordPart kept[] = {{result->center, D * sizeof(double)},
                               {result->axes, K * D * sizeof(double)},
                               {result->variance, K * sizeof(double)},
                               {result->variance_ratio, K * sizeof(double)}};
    const int parts = sizeof kept / sizeof *kept;
    if (!restore_axes(kept, parts, checkpoint, key)) {
        find_axes(result, x);
        checkpoint_save(checkpoint, key, kept, parts);
    }
    pca_project(result, x);
}

static bool restore_axes(const RecordPart *parts, int count, Checkpoint *checkpoint, const char *key) {
    Arena *scratch = arena_new();
    size_t bytes, expected = 0;
    const char *found = checkpoint_load(checkpoint, scratch, key, &bytes);
    for (int i = 0; i < count; i++)
        expected += parts[i].size;
    const bool fits = found && bytes == expected;
    for (int i = 0; i < count && fits; i++) {
        memcpy((void *)parts[i].bytes, found, parts[i].size);
        found += parts[i].size;
    }
    arena_free(scratch);
    return fits;
}

static void find_axes(Pca *result, const Matrix *x) {
    const int D = x->width, K = result->components;
    const int64_t rank = x->shard.total > 1 ? x->shard.total - 1 : 1, most_components = rank < D ? rank : D;
    const int solved = K < most_components ? K : (int)most_components;
    const size_t column_bytes = (size_t)D * sizeof(double);
    Arena *scratch = arena_new();
    double *most = ARENA_ARRAY(scratch, double, D, "column sizes"), *scale = ARENA_ARRAY(scratch, double, D, "scales");
    double *largest = ARENA_ARRAY(scratch, double, D, "column sizes");
    check_finite(x, largest);
    find_center(result->center, x, scratch, largest);
    PcaInput input = {.x = x, .scale = scale, .most = most};
    input.device_center = dev_alloc(column_bytes);
    dev_upload(input.device_center, result->center, column_bytes);
    find_deviations(most, x, input.device_center);
    scale_columns(scale, most, D);
    input.device_scale = dev_alloc(column_bytes);
    dev_upload(input.device_scale, scale, column_bytes);
    input.scratch = dev_alloc(k_covariance_scratch());
    input.bits = sum_bits(x->shard.total) / 2 < BITS_MOST ? sum_bits(x->shard.total) / 2 : BITS_MOST;
    input.samples_less_one = x->shard.total > 1 ? (double)x->shard.total - 1 : 1;

    double total = total_variance(&input, scratch);
    if (D > FORMED_WIDTH_MOST && x->shard.total <= FEW_MOST)
        pca_few(result, &input, solved);
    else if (D <= FORMED_WIDTH_MOST || D <= 4 * (solved + 8))
        solve_formed(result->variance, result->axes, &input, solved, x->name);
    else
        pca_wide(result->variance, result->axes, &input, solved);
    dev_free(input.scratch);
    dev_free(input.device_scale);
    dev_free(input.device_center);
    finish_axes(result, D, total);
    arena_free(scratch);
}

double pca_bytes(int64_t rows, int64_t total, int width, int components) {
    const double n = (double)rows, D = width, K = components, block = K + 8, number = sizeof(double);
    const double tile = 4 << 20; /* numbers, of pca_few.c */
    double solving, K_at_once = fmin(K, floor(PIECE_BYTES / (D * number)) + 1);
    if (width > FORMED_WIDTH_MOST && total <= FEW_MOST)
        solving = 5 * (double)total * (double)total * number + tile * (4 * sizeof(float) + 2 * number);
    else if (width <= FORMED_WIDTH_MOST || width <= 4 * (components + 8))
        solving = 5 * D * D * number; /* the covariance, and its sums on the device and here */
    else
        solving = (15 + 7) * block * D * number + n * block * number; /* pca_wide.c: the solver's; a product's */
    const double scores = K_at_once * D * number + 2 * n * K_at_once * number + 2 * n * K * sizeof(float);
    const double scratch = (double)k_covariance_scratch() * fmin(D / 256, 1); /* narrow layers touch part of it only */
    return scratch + K * D * number + fmax(solving, scores);
}

double pca_noise(int width) {
    return 4 * width * 0x1p-52;
}

double pca_dot(const double *a, const double *b, int D) {
    enum { SUMS = 8 };
    double sum[SUMS] = {0}, rest = 0;
    int whole = D / SUMS * SUMS;
    for (int c = 0; c < whole; c += SUMS)
        for (int l = 0; l < SUMS; l++)
            sum[l] += a[c + l] * b[c + l];
    for (int c = whole; c < D; c++)
        rest += a[c] * b[c];
    return (sum[0] + sum[4]) + (sum[1] + sum[5]) + ((sum[2] + sum[6]) + (sum[3] + sum[7])) + rest;
}

void pca_sum(double *sum, int64_t *device_high, int64_t *device_low, size_t count, int bits) {
    Arena *scratch = arena_new();
    int64_t *high = ARENA_ARRAY(scratch, int64_t, count, "sums"), *low = ARENA_ARRAY(scratch, int64_t, count, "sums");
    dev_download(high, device_high, count * sizeof *high);
    dev_download(low, device_low, count * sizeof *low);
    comm_sum_int64(high, count);
    comm_sum_int64(low, count);
    const double low_unit = ldexp(1, -bits);
    for (size_t i = 0; i < count; i++)
        sum[i] = (double)high[i] + (double)low[i] * low_unit;
    arena_free(scratch);
}

/* most (D): largest |x| of each column, over all ranks. */
static void check_finite(const Matrix *x, double *most) {
    find_deviations(most, x, NULL);
    bool finite = true;
    for (int c = 0; c < x->width; c++)
        finite = finite && isfinite(most[c]);
    if (!error_caught() && !finite)
        die("PCA of %s: values that are not finite numbers; look at the weights and the input", x->name);
    comm_all_ok();
}

static void find_deviations(double *most, const Matrix *x, const double *device_center) {
    const size_t bytes = (size_t)x->width * sizeof(double);
    double *on_device = dev_alloc(bytes);
    k_column_most(on_device, x->rows, x->shard.count, x->width, device_center);
    dev_download(most, on_device, bytes);
    dev_free(on_device);
    for (int c = 0; c < x->width; c++)
        most[c] = isnan(most[c]) ? INFINITY : most[c]; /* a maximum over ranks would lose it */
    comm_max(most, x->width);
}

/* Exact before the division: so a constant column deviates by nothing. */
static void find_center(double *center, const Matrix *x, Arena *scratch, const double *most) {
    const int D = x->width, bits = sum_bits(x->shard.total);
    double *scale = ARENA_ARRAY(scratch, double, D, "scales"), *on_device = dev_alloc((size_t)D * sizeof(double));
    int64_t *sums = ARENA_ARRAY(scratch, int64_t, D, "sums"), *device_sums = dev_alloc((size_t)D * sizeof(int64_t));
    scale_columns(scale, most, D);
    dev_upload(on_device, scale, (size_t)D * sizeof(double));
    k_column_sums(device_sums, x->rows, x->shard.count, D, NULL, on_device, 1, bits);
    dev_download(sums, device_sums, (size_t)D * sizeof(int64_t));
    dev_free(device_sums);
    dev_free(on_device);
    comm_sum_int64(sums, (size_t)D);
    for (int c = 0; c < D; c++)
        center[c] = scale[c] > 0 ? ldexp((double)sums[c], -bits) / scale[c] / (double)x->shard.total : 0;
}

static double total_variance(const PcaInput *input, Arena *scratch) {
    const int D = input->x->width, bits = sum_bits(input->x->shard.total);
    int64_t *sums = ARENA_ARRAY(scratch, int64_t, D, "sums"), *device_sums = dev_alloc((size_t)D * sizeof(int64_t));
    k_column_sums(device_sums, input->x->rows, input->x->shard.count, D, input->device_center, input->device_scale, 2,
                  bits);
    dev_download(sums, device_sums, (size_t)D * sizeof(int64_t));
    dev_free(device_sums);
    comm_sum_int64(sums, (size_t)D);
    double total = 0;
    for (int c = 0; c < D; c++)
        if (input->scale[c] > 0)
            total += ldexp((double)sums[c], -bits) / input->scale[c] / input->scale[c];
    return total / input->samples_less_one;
}

static void solve_formed(double *values, double *axes, const PcaInput *input, int K, const char *name) {
    const int D = input->x->width;
    const size_t count = (size_t)D * (size_t)D;
    int64_t *high = dev_alloc(count * sizeof *high), *low = dev_alloc(count * sizeof *low);
    k_covariance(high, low, input->x->rows, input->x->shard.count, D, input->device_center, input->device_scale,
                 input->bits, input->scratch);
    Arena *scratch = arena_new();
    double *covariance = ARENA_ARRAY(scratch, double, count, "covariance");
    pca_sum(covariance, high, low, count, input->bits);
    dev_free(high);
    dev_free(low);
    const double unit = ldexp(1, -2 * input->bits) / input->samples_less_one;
    for (int i = 0; i < D; i++)
        for (int j = 0; j < D; j++) {
            double both = input->scale[i] * input->scale[j];
            covariance[(size_t)i * (size_t)D + (size_t)j] *= both > 0 ? unit / both : 0;
        }
    watchdog_allow(1e-9 * (double)D * (double)D * (double)D); /* one thread of rank 0, and all wait */
    if (!error_caught() && comm_rank() == 0 && K > 0 && !k_eigen(values, axes, covariance, D, K))
        die("PCA of %s: LAPACK's dsyevr failed on the covariance of %d columns", name, D);
    comm_all_ok();
    comm_broadcast(values, (size_t)K * sizeof *values);
    comm_broadcast(axes, (size_t)K * (size_t)D * sizeof *axes);
    arena_free(scratch);
}

/* 2^-e with most <= 2^e; 0 where there is nothing to scale. */
static void scale_columns(double *scale, const double *most, int width) {
    for (int c = 0; c < width; c++) {
        int exponent;
        frexp(most[c], &exponent);
        scale[c] = most[c] > 0 ? ldexp(1, -exponent) : 0;
    }
}

/* `total` terms of this many bits each do not overflow an int64. */
static int sum_bits(int64_t total) {
    int bits = 62;
    while (total > 1) {
        total = (total + 1) / 2;
        bits--;
    }
    return bits < 52 ? bits : 52;
}

/* What rounding made of a variance of nothing becomes zero, with its axis; else the sign rule of scikit-learn. */
static void finish_axes(Pca *result, int width, double total) {
    const double nothing = 2 * pca_noise(width) * (result->components > 0 ? result->variance[0] : 0);
    for (int k = 0; k < result->components; k++) {
        double *axis = result->axes + (size_t)k * (size_t)width;
        if (!(result->variance[k] > nothing)) {
            result->variance[k] = 0;
            memset(axis, 0, (size_t)width * sizeof *axis);
            continue;
        }
        int largest = 0;
        for (int c = 1; c < width; c++)
            largest = fabs(axis[c]) > fabs(axis[largest]) ? c : largest;
        for (int c = 0; axis[largest] < 0 && c < width; c++)
            if (c != largest)
                axis[c] = -axis[c];
        axis[largest] = fabs(axis[largest]);
        result->variance_ratio[k] = result->variance[k] / total;
    }
}

/* Some axes at a time: a wide layer's are as large as its features. */
void pca_project(Pca *result, const Matrix *x) {
    const int K = result->components;
    const size_t D = (size_t)x->width, n = (size_t)x->shard.count;
    size_t fit = PIECE_BYTES / (D * sizeof(double)) + 1, most = fit < (size_t)K ? fit : (size_t)K;
    Arena *scratch = arena_new();
    double *axes = dev_alloc(most * D * sizeof *axes), *t = dev_alloc(n * most * sizeof *t);
    double *piece = ARENA_ARRAY(scratch, double, n *most, "scores"), *center = dev_alloc(D * sizeof *center);
    float *scores = ARENA_ARRAY(scratch, float, n *(size_t)K, "scores");
    dev_upload(center, result->center, D * sizeof *center);
    for (size_t from = 0; from < (size_t)K; from += most) {
        const size_t count = (size_t)K - from < most ? (size_t)K - from : most;
        dev_upload(axes, result->axes + from * D, count * D * sizeof *axes);
        k_project(t, x->rows, (int64_t)n, x->width, center, axes, (int)count);
        dev_download(piece, t, n * count * sizeof *t);
        for (size_t i = 0; i < n; i++)
            for (size_t k = 0; k < count; k++)
                scores[i * (size_t)K + from + k] = (float)piece[i * count + k];
    }
    result->scores = (Matrix){.name = x->name, .shard = x->shard, .width = K};
    result->scores.rows = dev_alloc(n * (size_t)K * sizeof(float));
    dev_upload(result->scores.rows, scores, n * (size_t)K * sizeof(float));
    dev_free(center);
    dev_free(t);
    dev_free(axes);
    arena_free(scratch);
}
