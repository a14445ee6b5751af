/* test_tsne.c: the functions t-SNE is made of: its arithmetic against double precision over all floats of a period, the
 * order of its points, its affinities, its forces at every level of instructions, and the step of its descent. The rest is
 * in test_tsne.py. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device.h"
#include "ref.h"
#include "tsne_order.h"

#define ISA(name) v4_##name
#define SIMD_BYTES 16
#include "../kernels/cpu/simd.h"

/* Largest error in units of the last place of the float nearest to the truth, and mean relative error. */
typedef struct {
    double ulp, mean;
    int64_t count;
} Errors;

static void add_error(Errors *errors, float got, double truth) {
    double unit = ldexp(1, ilogb(truth) - 23);
    errors->ulp = fmax(errors->ulp, fabs((double)got - truth) / unit);
    errors->mean += (double)got / truth - 1;
    errors->count++;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void test_reciprocal(void **state) {
    (void)state;
    Errors errors = {0};
    for (uint32_t i = 0; i < 1u << 23; i++)
        add_error(&errors, ISA(reciprocal)(ISA(all)(float_of(0x3f800000 + i)))[0],
                  1 / (double)float_of(0x3f800000 + i));
    assert_true(errors.ulp < 0.525);
    assert_true(fabs(errors.mean / (double)errors.count) < 1e-9);
    for (int e = 0; e < 100; e++) /* the other periods are the same but for the exponent */
        assert_true(ISA(reciprocal)(ISA(all)(ldexpf(1.7f, e)))[0] == ldexpf(ISA(reciprocal)(ISA(all)(1.7f))[0], -e));
}

static void test_reciprocal_root(void **state) {
    (void)state;
    Errors errors = {0};
    for (uint32_t i = 0; i < 2u << 23; i += 3)
        add_error(&errors, ISA(reciprocal_root)(ISA(all)(float_of(0x3f800000 + i)))[0],
                  1 / sqrt((double)float_of(0x3f800000 + i)));
    assert_true(errors.ulp < 1.01);
    assert_true(fabs(errors.mean / (double)errors.count) < 4e-9);
}

static void test_exp_minus(void **state) {
    (void)state;
    Errors errors = {0};
    for (double t = 0; t < 80; t += 1e-4)
        add_error(&errors, ISA(exp_minus)(ISA(all)((float)t))[0], exp(-(double)(float)t));
    assert_true(errors.ulp < 0.9);
    assert_true(fabs(errors.mean / (double)errors.count) < 1e-8);
    assert_true(ISA(exp_minus)(ISA(all)(0))[0] == 1);
    assert_true(ISA(exp_minus)(ISA(all)(INFINITY))[0] == ISA(exp_minus)(ISA(all)(80))[0]);
    assert_true(ISA(exp_minus)(ISA(all)(80))[0] > FLT_MIN);
}

static void test_log(void **state) {
    (void)state;
    double worst = 0;
    for (double x = 1e-30; x < 1e30; x *= 1.00003) {
        double truth = log((double)(float)x), got = (double)ISA(log)(ISA(all)((float)x))[0];
        worst = fmax(worst, fabs(got - truth) / fmax(fabs(truth), 1e-3));
    }
    assert_true(worst < 2.5e-7);
    assert_true(ISA(log)(ISA(all)(1))[0] == 0);
    assert_true(isfinite(ISA(log)(ISA(all)(0))[0]));
}

/* Points on a 40 x 3 grid with many ties, in two orders of the file. */
static void test_order(void **state) {
    (void)state;
    enum { N = 1000, D = 3 };
    static float x[N * D];
    static int64_t order[N], again[N];
    static int seen[N];
    for (int i = 0; i < N; i++)
        for (int d = 0; d < D; d++)
            x[i * D + d] = (float)((i * 7919 + d * 104729) % 97 % (d + 5));
    tsne_order(order, x, N, D, 1);
    tsne_order(again, x, N, D, 1);
    assert_memory_equal(order, again, sizeof order);
    for (int i = 0; i < N; i++)
        seen[order[i]]++;
    for (int i = 0; i < N; i++)
        assert_int_equal(seen[i], 1);
    for (int b = 0; b + 16 <= N; b += 16)
        for (int i = b + 1; i < b + 16; i++)
            assert_true(order[i - 1] < order[i]);
    /* one dimension: blocks are runs of the sorted values, ties by number */
    static float line[N];
    for (int i = 0; i < N; i++)
        line[i] = (float)((i * 7919) % 13);
    tsne_order(order, line, N, 1, 1);
    for (int i = 16; i < N; i += 16)
        for (int before = i - 16; before < i; before++)
            for (int after = i; after < i + 16 && after < N; after++) {
                float p = line[order[before]], q = line[order[after]];
                assert_true(p < q || (p == q && order[before] < order[after]));
            }
}

static void test_order_of_equal_points(void **state) {
    (void)state;
    enum { N = 333 };
    static float x[N];
    static int64_t order[N];
    tsne_order(order, x, N, 1, 1);
    for (int i = 0; i < N; i++)
        assert_int_equal(order[i], i);
}

/* The bytes of device memory that a function without a lane has made; frees it. */
static void take(void *host, void *device, size_t bytes) {
    dev_download(host, device, bytes);
    dev_free(device);
}

/* One point, hand-made forces: gains, momentum, and their lower bound, as in scikit-learn's _gradient_descent. */
static void test_update(void **state) {
    (void)state;
    TsneShape shape = {.points = 2, .count = 1, .width = 1, .axes = 2, .parts = 1};
    float y[32] = {1}, update[32] = {0.5f, -0.5f, 0.5f}, gains[32] = {1, 1, 0.0121f};
    double norm;
    int64_t sums[64 + TSNE_TOTALS] = {0}, quarter = llround(0.25 / TSNE_PULL_UNIT);
    for (int i = 3; i < 32; i++)
        gains[i] = 1;
    sums[0] = llround(0.1 / k_tsne_force_unit(2));
    sums[32] = sums[33] = sums[34] = quarter;
    sums[64 + TSNE_TOTAL_W] = llround(1 / k_tsne_w_unit(2)); /* of one unordered pair: 2 in all */
    float *device_y = device_new(y, sizeof y), *device_update = device_new(update, sizeof update);
    float *device_gains = device_new(gains, sizeof gains);
    double *device_norm = device_new(NULL, sizeof norm);
    int64_t *device_sums = device_new(sums, sizeof sums);
    k_tsne_update(device_y, device_update, device_gains, device_norm, device_sums, &shape, &(TsneStep){2, 0.5, 10});
    take(y, device_y, sizeof y);
    take(update, device_update, sizeof update);
    take(gains, device_gains, sizeof gains);
    take(&norm, device_norm, sizeof norm);
    dev_free(device_sums);
    double gradient = 4 * (2 * 0.25 - 0.1 / 2); /* repulsion over the sum of w */
    assert_true(fabs(gains[0] - 0.8) < 1e-7);   /* update and gradient of one sign */
    assert_true(fabs(update[0] - (0.5 * 0.5 - 10 * 0.8 * gradient)) < 1e-5);
    assert_true(fabs(y[0] - (1 + 0.5 * 0.5 - 10 * 0.8 * gradient)) < 1e-5);
    assert_true(fabs(gains[1] - 1.2) < 1e-7);
    assert_true(fabs(update[1] - (0.5 * -0.5 - 10 * 1.2 * 2)) < 1e-5);
    assert_true(gains[2] == 0.01f);
    assert_true(fabs(norm - (pow(0.8 * gradient, 2) + pow(1.2 * 2, 2) + pow(0.01 * 2, 2))) < 1e-5);
    assert_true(gains[3] == 0.8f && update[3] == 0 && y[3] == 0);
}

/* ---- Forces ----------------------------------------------------------------------------------------------------- */

static float noise(uint32_t i) { /* in [-1, 1) */
    i = (i ^ (i >> 15)) * 0x2c1b3c6du;
    i = (i ^ (i >> 12)) * 0x297a2d39u;
    return (float)(i >> 8) / 0x1p23f - 1;
}

typedef struct {
    int64_t tiles;
    TsneAffinities host, affinities; /* affinities: the same on the device */
    double *dense;                   /* (N, N) */
} P;

static void *zeros(size_t count, size_t bytes) {
    void *memory = calloc(count, bytes);
    assert_non_null(memory);
    return memory;
}

/* Fills P; every row's kept and dropped add up to c(j|i) + c(i|j) over all j, and over all rows to 2 N. */
static void check_sums(const P *p, const float *packed, const TsneRows *rows, const TsneShape *shape, float least,
                       void *scratch) {
    const int64_t N = shape->points;
    const size_t bytes = (size_t)(2 * N + 1) * sizeof(int64_t);
    int64_t *sums = zeros(bytes, 1), *device_sums = device_new(sums, bytes);
    const int64_t half = p->tiles / 2; /* in two pieces */
    const TsneAffinitySums on_device = {device_sums, device_sums + N, device_sums + 2 * N};
    k_tsne_fill(&p->affinities, on_device, 0, half, packed, rows, shape, least, scratch);
    k_tsne_fill(&p->affinities, on_device, half, p->tiles, packed, rows, shape, least, scratch);
    take(sums, device_sums, bytes);
    double total = 0;
    for (int64_t i = 0; i < N; i++) {
        double row = (double)sums[i] * k_tsne_kept_unit(N) + (double)sums[N + i] * TSNE_DROPPED_UNIT;
        assert_true(row > 1 - 1e-5);
        assert_true((double)sums[N + i] * TSNE_DROPPED_UNIT < 2 * (double)least * (double)N);
        total += row;
    }
    assert_true(fabs(total / (2 * (double)N) - 1) < 1e-6);
    free(sums);
}

/* Every p from distances and exponentials in double precision, and bisection of ln(beta), to 3e-5 and what is dropped. */
static void check_p(const double *dense, const float *x, int N, int D, double perplexity, double least) {
    double *c = zeros((size_t)N * (size_t)N, sizeof *c), *d = zeros((size_t)N, sizeof *d);
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < N; j++)
            for (int k = d[j] = 0; k < D; k++)
                d[j] += pow((double)x[i * D + k] - (double)x[j * D + k], 2);
        double low = -50, high = 50;
        for (int pass = 0; pass < 60; pass++) {
            double beta = exp((low + high) / 2), sum = 0, mean = 0;
            for (int j = 0; j < N; j++) {
                c[i * N + j] = i == j ? 0 : exp(-beta * d[j]);
                sum += c[i * N + j];
                mean += i == j ? 0 : beta * d[j] * c[i * N + j];
            }
            for (int j = 0; j < N; j++)
                c[i * N + j] /= sum;
            if (sum > 0 && log(sum) + mean / sum > log(perplexity))
                low = (low + high) / 2;
            else
                high = (low + high) / 2;
        }
    }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            const double p = (c[i * N + j] + c[j * N + i]) / (2.0 * N);
            assert_true(fabs(dense[i * N + j] - p) <= 3e-5 * p + least / N);
        }
    free(c);
    free(d);
}

/* Of points in clusters, so that some cells are full and some are missing. */
static P make_p(int N) {
    enum { D = 3 };
    const int64_t blocks = (N + 15) / 16, tiles = k_tsne_tiles(N);
    const TsneShape shape = {N, 0, blocks, D, 2, 0, 1};
    const size_t packed_bytes = (size_t)blocks * 16 * D * 4, rows_bytes = (size_t)blocks * 16 * TSNE_ROW_NUMBERS * 4;
    float *x = zeros((size_t)N * D, 4);
    for (int i = 0; i < N * D; i++)
        x[i] = noise((uint32_t)i) + (float)(i / D * 5 / N * 4);
    const float least = (float)(0x1p-24 / N);
    float *device_x = device_new(x, (size_t)N * D * 4), *packed = device_new(NULL, packed_bytes);
    float *rows = device_new(NULL, rows_bytes);
    const TsneRows view = {rows, 1, 1};
    TsneTileSize *sizes = zeros((size_t)tiles, sizeof *sizes), *device_sizes = dev_alloc((size_t)tiles * sizeof *sizes);
    dev_upload(device_sizes, sizes, (size_t)tiles * sizeof *sizes);
    void *scratch = dev_alloc(k_tsne_affinity_scratch(N, D));
    P p = {.tiles = tiles, .dense = zeros((size_t)N * (size_t)N, 8)};
    k_tsne_pack(packed, device_x, N, D, 1);
    if (N > 1) {
        k_tsne_search(rows, packed, &shape, &(TsneKernels){1, {N > 12 ? 5 : 1}, {1}}, scratch);
        k_tsne_count(device_sizes, packed, &view, &shape, 0, 1, tiles, least, scratch);
    }
    take(sizes, device_sizes, (size_t)tiles * sizeof *sizes);
    TsneAffinities *a = &p.host;
    *a = (TsneAffinities){
        tiles, zeros((size_t)tiles, 8), zeros((size_t)tiles + 1, 8), zeros((size_t)tiles + 1, 8), NULL, NULL};
    for (int64_t t = 0; t < tiles; t++) {
        a->tile[t] = t;
        a->cell_start[t + 1] = a->cell_start[t] + sizes[t].cells;
        a->value_start[t + 1] = a->value_start[t] + sizes[t].values;
    }
    const size_t cell_bytes = (size_t)a->cell_start[tiles] * sizeof *a->cell, start_bytes = (size_t)(tiles + 1) * 8;
    const size_t value_bytes = ((size_t)a->value_start[tiles] + TSNE_BLOCK) * 4;
    a->cell = zeros(cell_bytes + 1, 1);
    a->value = zeros(value_bytes, 1);
    p.affinities = (TsneAffinities){tiles,
                                    device_new(a->tile, (size_t)tiles * 8),
                                    device_new(a->cell_start, start_bytes),
                                    device_new(a->value_start, start_bytes),
                                    device_new(a->cell, cell_bytes),
                                    device_new(a->value, value_bytes)};
    if (N > 1)
        check_sums(&p, packed, &view, &shape, least, scratch);
    dev_download(a->cell, p.affinities.cell, cell_bytes);
    dev_download(a->value, p.affinities.value, value_bytes);
    const float *value = a->value;
    for (int64_t t = 0, column = 0, row = 0; t < tiles; t++, row++, column++) {
        if (column * TSNE_TILE >= N) { /* the next line of tiles beside the diagonal */
            column = column - row + 1;
            row = 0;
        }
        for (int64_t c = a->cell_start[t]; c < a->cell_start[t + 1]; c++)
            for (int k = 0; k < 256; k++)
                if (a->cell[c].mask[k / 16] >> k % 16 & 1) {
                    int64_t i = row * TSNE_TILE + a->cell[c].row * 16 + k % 16;
                    int64_t j = column * TSNE_TILE + a->cell[c].column * 16 + (k % 16 + k / 16) % 16;
                    assert_true(i < N && j < N && i != j && p.dense[i * N + j] == 0 && *value > 0);
                    p.dense[i * N + j] = p.dense[j * N + i] = (double)*value++;
                }
    }
    assert_ptr_equal(value, a->value + a->value_start[tiles]);
    if (N > 12 && N <= 513)
        check_p(p.dense, x, N, D, 5, (double)least);
    void *temporary[] = {scratch, device_x, packed, rows};
    for (size_t i = 0; i < sizeof temporary / sizeof *temporary; i++)
        dev_free(temporary[i]);
    free(x);
    free(sizes);
    return p;
}

static void free_p(P *p) {
    const TsneAffinities *both[] = {&p->host, &p->affinities};
    for (int i = 0; i < 2; i++) {
        void *all[] = {both[i]->tile, both[i]->cell_start, both[i]->value_start, both[i]->cell, both[i]->value};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++)
            (i == 0 ? free : dev_free)(all[k]);
    }
    free(p->dense);
}

/* Of one rank, or what `parts` ranks give in all, in the same order. The caller frees it. */
static int64_t *forces_of(const P *p, const float *y, int N, int A, int parts) {
    const int64_t blocks = (N + 15) / 16, floats = 2 * A * 16;
    TsneShape shape = {N, 0, (blocks + parts - 1) / parts, 3, A, 0, parts};
    const int64_t each = k_tsne_sums(&shape);
    int64_t *total = zeros((size_t)(blocks * floats + TSNE_TOTALS), 8), *sums = zeros((size_t)(parts * each), 8);
    float *device_y = device_new(y, (size_t)(blocks * 16 * A) * 4);
    for (shape.part = 0; shape.part < parts; shape.part++) {
        int64_t *device_sums = device_new(NULL, (size_t)(parts * each) * 8);
        void *scratch = dev_alloc(k_tsne_scratch(&shape));
        TsneAffinities mine = p->affinities;
        mine.tiles = p->tiles / parts + (shape.part < p->tiles % parts);
        const int64_t first =
            p->tiles / parts * shape.part + (shape.part < p->tiles % parts ? shape.part : p->tiles % parts);
        mine.tile += first;
        mine.cell_start += first;
        mine.value_start += first;
        shape.first = shape.count * shape.part;
        const double share = k_tsne_forces(device_sums, &mine, true, device_y, &shape, scratch);
        assert_true(share >= 0 && share < 1);
        take(sums, device_sums, (size_t)(parts * each) * 8);
        for (int64_t b = 0; b < shape.count * parts; b++)
            for (int64_t i = 0; i < floats; i++) {
                int64_t value = sums[b / shape.count * each + b % shape.count * floats + i];
                if (b < blocks)
                    total[b * floats + i] += value;
                else
                    assert_int_equal(value, 0);
            }
        for (int k = 0; k < TSNE_TOTALS; k++)
            for (int r = 0; r < parts; r++) {
                assert_int_equal(sums[(r + 1) * each - TSNE_TOTALS + k], sums[each - TSNE_TOTALS + k]);
                total[blocks * floats + k] += r ? 0 : sums[each - TSNE_TOTALS + k];
            }
        dev_free(scratch);
    }
    dev_free(device_y);
    free(sums);
    return total;
}

/* Of each point (N), in TSNE_LOG_UNIT, by the rank's pairs in two pieces. The caller frees it. */
static int64_t *point_logs_of(const P *p, const float *y, int N, int A) {
    const int64_t blocks = (N + 15) / 16;
    const TsneShape shape = {N, 0, blocks, 3, A, 0, 1};
    int64_t *sums = zeros((size_t)N, 8), *device_sums = device_new(sums, (size_t)N * 8);
    float *device_y = device_new(y, (size_t)(blocks * 16 * A) * 4);
    for (int piece = 0; piece < 2; piece++) {
        TsneAffinities part = p->affinities;
        const int64_t first = piece ? p->tiles / 2 : 0;
        part.tiles = piece ? p->tiles - first : p->tiles / 2;
        part.tile += first;
        part.cell_start += first;
        part.value_start += first;
        k_tsne_point_logs(device_sums, &part, device_y, &shape);
    }
    take(sums, device_sums, (size_t)N * 8);
    dev_free(device_y);
    return sums;
}

/* sum of p ln(p / w) of each point, to 3e-7 of the sum of |p ln p| + |p ln w|. */
static void check_point_logs(const int64_t *sums, const double *dense, const float *y, int N, int A) {
    for (int i = 0; i < N; i++) {
        double truth = 0, size = 0;
        for (int j = 0; j < N; j++) {
            const double p = dense[(int64_t)i * N + j];
            double square = 0;
            for (int a = 0; a < A; a++)
                square += pow((double)y[i * A + a] - (double)y[j * A + a], 2);
            const double minus_log_w = A == 2 ? log1p(square) : 1.5 * log1p(square / 2);
            truth += p > 0 ? p * (log(p) + minus_log_w) : 0;
            size += p > 0 ? p * (fabs(log(p)) + minus_log_w) : 0;
        }
        assert_true(fabs((double)sums[i] * TSNE_LOG_UNIT - truth) <= 3e-7 * size);
    }
}

/* Within 2e-6 of the largest force, on average 2e-7. */
static void check_forces(const int64_t *sums, const double *truth, int N, int A, bool attraction, double unit) {
    double most = 0, worst = 0, total = 0;
    for (int i = 0; i < N * A; i++) {
        int point = i / A, a = i % A;
        double got = unit * (double)sums[((point / 16 * 2 + attraction) * A + a) * 16 + point % 16];
        most = fmax(most, fabs(truth[i]));
        worst = fmax(worst, fabs(got - truth[i]));
        total += fabs(got - truth[i]);
    }

    assert_true(worst <= 2e-6 * most);
    assert_true(total / (N * A) <= 2e-7 * most);
}

static uint64_t hash; /* of all forces of this process */

static void test_forces(void **state) {
    (void)state;
    static const int sizes[] = {1, 2, 15, 16, 17, 100, 511, 512, 513, 1100};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const int N = sizes[s];
        const int64_t blocks = (N + 15) / 16;
        P p = make_p(N);
        for (int A = 2; A <= 3; A++) {
            float *y = zeros((size_t)(blocks * 16 * A), 4), *plain = zeros((size_t)(N * A), 4);
            double *repulsion = zeros((size_t)(N * A), 8), *attraction = zeros((size_t)(N * A), 8), totals[2];
            for (int i = 0; i < N * A; i++) {
                plain[i] = 10 * noise((uint32_t)i + 77777);
                y[i / A / 16 * A * 16 + i % A * 16 + i / A % 16] = plain[i];
            }
            int64_t *sums = forces_of(&p, y, N, A, 1);
            ref_tsne_forces(repulsion, attraction, totals, plain, p.dense, N, A);
            check_forces(sums, repulsion, N, A, false, k_tsne_force_unit(N));
            check_forces(sums, attraction, N, A, true, TSNE_PULL_UNIT);
            const int64_t *got = sums + blocks * 2 * A * 16, numbers = blocks * 2 * A * 16 + TSNE_TOTALS;
            double w = 2 * (double)got[TSNE_TOTAL_W] * k_tsne_w_unit(N);
            double cross = 2 * (double)got[TSNE_TOTAL_CROSS] * TSNE_LOG_UNIT;
            assert_true(fabs(w - totals[0]) <=
                        (A == 2 ? 1e-7 : 2e-7) * totals[0]); /* 3-D: a root's error, three times */
            assert_true(fabs(cross - totals[1]) <= 2e-7 * totals[1]);
            int64_t *logs = point_logs_of(&p, y, N, A);
            check_point_logs(logs, p.dense, plain, N, A);
            for (int64_t i = 0; i < numbers; i++)
                hash = (hash ^ (uint64_t)sums[i]) * 0x100000001b3u;
            for (int i = 0; i < N; i++)
                hash = (hash ^ (uint64_t)logs[i]) * 0x100000001b3u;
            free(logs);
            const int parts[] = {2, 3, 7}; /* 7: more than there are tiles, and than blocks */
            for (int r = 0; r < 3; r++) {
                dev_start(0, 1 + r % 2);
                int64_t *again = forces_of(&p, y, N, A, parts[r]);
                assert_memory_equal(sums, again, (size_t)numbers * 8);
                free(again);
            }
            void *all[] = {y, plain, repulsion, attraction, sums};
            for (size_t i = 0; i < sizeof all / sizeof *all; i++)
                free(all[i]);
        }
        free_p(&p);
    }
}

/* Of so many points that a GPU deals them out another way; without P. */
static void test_forces_of_many(void **state) {
    (void)state;
    enum { N = 4111, A = 2, BLOCKS = (N + 15) / 16, LOOKED_AT = 97 };
    const int64_t tiles = k_tsne_tiles(N);
    int64_t *tile = zeros((size_t)tiles, 8), *starts = zeros((size_t)tiles + 1, 8);
    for (int64_t t = 0; t < tiles; t++)
        tile[t] = t;
    P none = {.tiles = tiles};
    none.affinities = (TsneAffinities){.tiles = tiles,
                                       .tile = device_new(tile, (size_t)tiles * 8),
                                       .cell_start = device_new(starts, (size_t)(tiles + 1) * 8),
                                       .value_start = device_new(starts, (size_t)(tiles + 1) * 8)};
    float *y = zeros((size_t)BLOCKS * 16 * A, 4);
    for (int i = 0; i < N * A; i++)
        y[i / A / 16 * A * 16 + i % A * 16 + i / A % 16] = 10 * noise((uint32_t)i + 777);
    int64_t *sums = forces_of(&none, y, N, A, 1), *again = forces_of(&none, y, N, A, 3);
    assert_memory_equal(sums, again, ((size_t)BLOCKS * 2 * A * 16 + TSNE_TOTALS) * 8);
    double most = 0, worst = 0;
    for (int i = 0; i < N; i += LOOKED_AT) {
        const float *own = y + i / 16 * A * 16 + i % 16;
        double force[A] = {0};
        for (int j = 0; j < N; j++) {
            const float *other = y + j / 16 * A * 16 + j % 16;
            const double d[A] = {(double)own[0] - other[0], (double)own[16] - other[16]};
            const double w = 1 / (1 + d[0] * d[0] + d[1] * d[1]);
            for (int a = 0; a < A; a++)
                force[a] += w * w * d[a];
        }
        for (int a = 0; a < A; a++) {
            const double got = k_tsne_force_unit(N) * (double)sums[(i / 16 * 2 * A + a) * 16 + i % 16];
            most = fmax(most, fabs(force[a]));
            worst = fmax(worst, fabs(got - force[a]));
        }
    }
    assert_true(worst <= 2e-6 * most);
    void *on_device[] = {none.affinities.tile, none.affinities.cell_start, none.affinities.value_start};
    for (size_t i = 0; i < sizeof on_device / sizeof *on_device; i++)
        dev_free(on_device[i]);
    void *all[] = {y, sums, again, tile, starts};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static const char *program;

/* AVX-512, AVX2 and no vectors, where the processor has them; a process can be brought to one level only. */
static void test_forces_at_every_level(void **state) {
    (void)state;
    char first[64] = "";
    static const int levels[] = {3, 2, 0};
    for (int i = 0; i < 3; i++) {
        char command[4096], line[256], found[64] = "";
        snprintf(command, sizeof command, "%s %d 2>&1", program, levels[i]);
        FILE *child = popen(command, "r");
        assert_non_null(child);
        while (fgets(line, sizeof line, child))
            if (sscanf(line, "forces %63s", found) != 1)
                printf("level %d: %s", levels[i], line);
        assert_int_equal(pclose(child), 0);
        assert_true(found[0]);
        if (i == 0)
            snprintf(first, sizeof first, "%s", found);
        assert_string_equal(first, found);
    }
}

/* test_tsne [LEVEL]: with a level of instructions only test_forces, and what it found. */
int main(int argc, char **argv) {
    program = argv[0];
    dev_start(0, 2);
    if (argc > 1) {
        const struct CMUnitTest forces[] = {cmocka_unit_test(test_forces)};
        dev_limit_isa(atoi(argv[1]));
        int failed = cmocka_run_group_tests(forces, NULL, NULL);
        printf("forces %016llx\n", (unsigned long long)hash);
        return failed;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reciprocal),     cmocka_unit_test(test_reciprocal_root),
        cmocka_unit_test(test_exp_minus),      cmocka_unit_test(test_log),
        cmocka_unit_test(test_order),          cmocka_unit_test(test_order_of_equal_points),
        cmocka_unit_test(test_update),         cmocka_unit_test(test_forces_at_every_level),
        cmocka_unit_test(test_forces_of_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
