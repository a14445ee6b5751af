/* pca_few.c: the first principal components of a wide matrix of few samples, as a layer's maps of some dozen images.
 *
 * With Xc = U S V^T the products of the samples with each other are Xc Xc^T = U S^2 U^T: N x N numbers, N^2 D
 * multiplications. They need all rows on every rank, which come a tile of columns at a time; each product is summed in
 * one order, whatever rank makes it. The axes V^T = S^-1 U^T Xc are exact sums over the rows (k_back_project), as
 * others' are. Squaring costs the components below 1e-5 of the largest variance some of their right angles: these are
 * given back, and their variances are made anew. Memory beside the axes: a few tiles and N x N numbers. */
#include <math.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "pca_parts.h"

enum { TILE_NUMBERS = 4 << 20, TILE_STEP = 512 }; /* a tile of all samples; columns are multiples of what is summed */
static const double ANGLES_FROM = 1e-5;

/* Rows of the ranks, with place for as many as the fullest one has. */
typedef struct {
    const Matrix *x;
    int samples, most;       /* of the job; of a rank */
    int64_t *counts;         /* (ranks) */
    int columns;             /* of a whole tile */
    float *mine, *on_device; /* (most, columns), packed: host and device */
} Rows;

static Rows rows_new(Arena *arena, const Matrix *x);
static void take_columns(const Rows *rows, int from, int count);
static void sample_products(double *gram, const Rows *rows, const Pca *center, const PcaInput *input);
static void all_rows(void *to, const void *padded, size_t row_bytes, const Rows *rows);
static void find_axes(double *axes, const double *values, const double *vectors, const Rows *rows,
                      const PcaInput *input, int K);
static void right_angles(double *axes, double *values, int D, int K);

void pca_few(Pca *result, const PcaInput *input, int K) {
    const int D = input->x->width, N = (int)input->x->shard.total;
    Arena *arena = arena_new();
    double *gram = ARENA_ARRAY(arena, double, (uint64_t)N *(uint64_t)N, "products of samples");
    double *vectors = ARENA_ARRAY(arena, double, (uint64_t)K *(uint64_t)N, "products of samples");
    Rows rows = rows_new(arena, input->x);
    sample_products(gram, &rows, result, input);
    if (!error_caught() && comm_rank() == 0 && !k_eigen(result->variance, vectors, gram, N, K))
        die("PCA of %s: LAPACK's dsyevr failed on the products of %d samples", input->x->name, N);
    comm_all_ok();
    comm_broadcast(result->variance, (size_t)K * sizeof(double));
    comm_broadcast(vectors, (size_t)K * (size_t)N * sizeof *vectors);
    find_axes(result->axes, result->variance, vectors, &rows, input, K);
    right_angles(result->axes, result->variance, D, K);
    for (int k = 0; k < K; k++)
        result->variance[k] /= input->samples_less_one;
    dev_free(rows.on_device);
    arena_free(arena);
}

static Rows rows_new(Arena *arena, const Matrix *x) {
    Rows rows = {.x = x, .samples = (int)x->shard.total};
    int64_t most = x->shard.count;
    rows.counts = ARENA_ARRAY(arena, int64_t, comm_size(), "rows");
    comm_all_gather(rows.counts, &x->shard.count, sizeof(int64_t));
    comm_max_int64(&most, 1);
    rows.most = (int)most;
    rows.columns = TILE_NUMBERS / rows.samples / TILE_STEP * TILE_STEP;
    rows.columns = rows.columns < x->width ? rows.columns : x->width;
    rows.mine = ARENA_ARRAY(arena, float, (uint64_t)rows.most *(uint64_t)rows.columns, "a tile of rows");
    rows.on_device = dev_alloc((size_t)rows.most * (size_t)rows.columns * sizeof(float));
    return rows;
}

static void take_columns(const Rows *rows, int from, int count) {
    const Matrix *x = rows->x;
    for (int64_t i = 0; i < x->shard.count; i++)
        dev_download(rows->mine + i * count, x->rows + i * x->width + from, (size_t)count * sizeof(float));
    dev_upload(rows->on_device, rows->mine, (size_t)x->shard.count * (size_t)count * sizeof(float));
}

/* gram (N, N) = (x - center) (x - center)^T, on every rank. Its triangles are equal: factors change places only. */
static void sample_products(double *gram, const Rows *rows, const Pca *center, const PcaInput *input) {
    const size_t N = (size_t)rows->samples, most = (size_t)rows->most, tile = (size_t)rows->columns;
    const int n = (int)rows->x->shard.count, D = rows->x->width, ranks = comm_size();
    Arena *arena = arena_new();
    float *padded = ARENA_ARRAY(arena, float, (uint64_t)ranks *most *tile, "a tile of rows");
    float *all = ARENA_ARRAY(arena, float, N *tile, "a tile of rows");
    double *centred = ARENA_ARRAY(arena, double, N *tile, "a tile of rows");
    double *piece = ARENA_ARRAY(arena, double, most *N, "products of samples");
    double *mine = ARENA_ARRAY(arena, double, most *N, "products of samples");
    double *padded_products = ARENA_ARRAY(arena, double, (uint64_t)ranks *most *N, "products of samples");
    double *axes = dev_alloc(N * tile * sizeof *axes), *t = dev_alloc(most * N * sizeof *t);
    memset(mine, 0, most * N * sizeof *mine);
    for (int from = 0; from < D; from += rows->columns) {
        const int count = D - from < rows->columns ? D - from : rows->columns;
        take_columns(rows, from, count);
        comm_all_gather(padded, rows->mine, most * (size_t)count * sizeof *padded);
        all_rows(all, padded, (size_t)count * sizeof *all, rows);
        for (size_t i = 0; i < N; i++)
            for (int c = 0; c < count; c++)
                centred[i * (size_t)count + (size_t)c] =
                    (double)all[i * (size_t)count + (size_t)c] - center->center[from + c];
        dev_upload(axes, centred, N * (size_t)count * sizeof *axes);
        k_project(t, rows->on_device, n, count, input->device_center + from, axes, (int)N);
        dev_download(piece, t, (size_t)n * N * sizeof *t);
        for (size_t i = 0; i < (size_t)n * N; i++)
            mine[i] += piece[i];
    }
    comm_all_gather(padded_products, mine, most * N * sizeof *mine);
    all_rows(gram, padded_products, N * sizeof *gram, rows);
    dev_free(t);
    dev_free(axes);
    arena_free(arena);
}

/* to (N rows) <- padded (ranks, most rows). */
static void all_rows(void *to, const void *padded, size_t row_bytes, const Rows *rows) {
    char *at = to;
    for (int r = 0; r < comm_size(); r++) {
        const size_t bytes = (size_t)rows->counts[r] * row_bytes;
        memcpy(at, (const char *)padded + (size_t)r * (size_t)rows->most * row_bytes, bytes);
        at += bytes;
    }
}

/* axes (K, D) = vectors (K, N) (x - center) / sqrt(values), on every rank; zeros where a value is not positive. */
static void find_axes(double *axes, const double *values, const double *vectors, const Rows *rows,
                      const PcaInput *input, int K) {
    const Matrix *x = rows->x;
    const size_t n = (size_t)x->shard.count, N = (size_t)rows->samples, numbers = (size_t)rows->columns * (size_t)K;
    const double t_scale = 0.5, unit = ldexp(1, -2 * input->bits) / t_scale; /* rounding may lift a 1 above it */
    Arena *arena = arena_new();
    double *sums = ARENA_ARRAY(arena, double, numbers, "sums"), *scale = ARENA_ARRAY(arena, double, K, "scales");
    double *t = ARENA_ARRAY(arena, double, n *(size_t)K, "vectors");
    double *device_t = dev_alloc(n * (size_t)K * sizeof *t), *device_scale = dev_alloc((size_t)K * sizeof *scale);
    int64_t *high = dev_alloc(numbers * sizeof *high), *low = dev_alloc(numbers * sizeof *low);
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < K; k++)
            t[i * (size_t)K + (size_t)k] = vectors[(size_t)k * N + (size_t)x->shard.first + i];
    for (int k = 0; k < K; k++)
        scale[k] = t_scale;
    dev_upload(device_t, t, n * (size_t)K * sizeof *t);
    dev_upload(device_scale, scale, (size_t)K * sizeof *scale);
    for (int from = 0; from < x->width; from += rows->columns) {
        const int count = x->width - from < rows->columns ? x->width - from : rows->columns;
        take_columns(rows, from, count);
        k_back_project(high, low, rows->on_device, (int64_t)n, count, input->device_center + from,
                       input->device_scale + from, device_t, K, device_scale, input->bits, input->scratch);
        pca_sum(sums, high, low, (size_t)count * (size_t)K, input->bits);
        for (int k = 0; k < K; k++) {
            const double length = values[k] > 0 ? unit / sqrt(values[k]) : 0;
            double *axis = axes + (size_t)k * (size_t)x->width + from;
            for (int c = 0; c < count; c++)
                axis[c] = input->scale[from + c] > 0
                              ? sums[(size_t)c * (size_t)K + (size_t)k] * length / input->scale[from + c]
                              : 0;
        }
    }
    void *on_device[] = {device_t, device_scale, high, low};
    for (size_t i = 0; i < sizeof on_device / sizeof on_device[0]; i++)
        dev_free(on_device[i]);
    arena_free(arena);
}

/* Small components against all before them, twice (Gram-Schmidt), and all of unit length. What is then left of a small
 * one tells its variance better than its eigenvalue, which is right to rounding of the largest only. */
static void right_angles(double *axes, double *values, int D, int K) {
    for (int k = 0; k < K; k++) {
        double *axis = axes + (size_t)k * (size_t)D;
        const bool small = values[k] < ANGLES_FROM * values[0];
        for (int i = 0; i < (small ? 2 * k : 0); i++) {
            const double *other = axes + (size_t)(i % k) * (size_t)D, share = pca_dot(axis, other, D);
            for (int c = 0; c < D; c++)
                axis[c] -= share * other[c];
        }
        const double length = sqrt(pca_dot(axis, axis, D));
        for (int c = 0; length > 0 && c < D; c++)
            axis[c] /= length;
        if (small)
            values[k] *= length * length;
    }
}
