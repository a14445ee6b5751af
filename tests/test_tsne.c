/* test_tsne.c: the functions t-SNE is made of: its arithmetic against double precision over all floats of a period, the
 * order of its points, and the step of its descent. The rest is in test_tsne.py. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels.h"
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
    tsne_order(order, x, N, D);
    tsne_order(again, x, N, D);
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
    tsne_order(order, line, N, 1);
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
    tsne_order(order, x, N, 1);
    for (int i = 0; i < N; i++)
        assert_int_equal(order[i], i);
}

/* One point, hand-made forces: gains, momentum, and their lower bound, as in scikit-learn's _gradient_descent. */
static void test_update(void **state) {
    (void)state;
    TsneShape shape = {.points = 2, .count = 1, .width = 1, .axes = 2};
    float y[32] = {1}, update[32] = {0.5f, -0.5f, 0.5f}, gains[32] = {1, 1, 0.0121f};
    double attraction[32] = {0.25, 0.25, 0.25}, norm;
    int64_t repulsion[32] = {0}, z = llround(2 / k_tsne_z_unit(2));
    for (int i = 3; i < 32; i++)
        gains[i] = 1;
    repulsion[0] = llround(0.1 / k_tsne_force_unit(2));
    k_tsne_update(y, update, gains, &norm, attraction, repulsion, &z, 1, &shape, &(TsneStep){2, 0.5, 10});
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

/* Rows give the same bits wherever they lie, and whatever their company. */
static void test_project_rows_alone(void **state) {
    (void)state;
    enum { ROWS = 11, D = 1037, K = 7 };
    static float x[ROWS * D];
    static double center[D], axes[K * D], together[ROWS * K], alone[K];
    for (int i = 0; i < ROWS * D; i++)
        x[i] = (float)sin(i * 0.7);
    for (int i = 0; i < D; i++)
        center[i] = cos(i);
    for (int i = 0; i < K * D; i++)
        axes[i] = sin(i * 1.3);
    k_project(together, x, ROWS, D, center, axes, K);
    for (int r = 0; r < ROWS; r++) {
        k_project(alone, x + r * D, 1, D, center, axes, K);
        assert_memory_equal(alone, together + r * K, sizeof alone);
        double sum = 0;
        for (int d = 0; d < D; d++)
            sum += (x[r * D + d] - center[d]) * axes[2 * D + d];
        assert_true(fabs(sum - alone[2]) < 1e-10);
    }
}

/* Whole numbers: exact, so equal to plain sums, and to the sum over two halves of the rows. */
static void test_covariance_is_exact(void **state) {
    (void)state;
    enum { ROWS = 700, D = 300, BITS = 10, HALF = 333 };
    static float x[ROWS * D];
    static double center[D], scale[D];
    static int64_t high[3][D * D], low[3][D * D];
    for (int i = 0; i < ROWS * D; i++)
        x[i] = (float)((i * 2654435761u >> 13) % 1025) / 1024;
    for (int i = 0; i < D; i++)
        scale[i] = 1;
    void *scratch = dev_alloc(k_covariance_scratch());
    k_covariance(high[0], low[0], x, ROWS, D, center, scale, BITS, scratch);
    k_covariance(high[1], low[1], x, HALF, D, center, scale, BITS, scratch);
    k_covariance(high[2], low[2], x + HALF * D, ROWS - HALF, D, center, scale, BITS, scratch);
    dev_free(scratch);
    for (int i = 0; i < D * D; i++) {
        assert_int_equal(high[0][i], high[1][i] + high[2][i]);
        assert_int_equal(low[0][i], 0);
    }
    for (int i = 0; i < D; i += 37)
        for (int j = 0; j < D; j += 41) {
            int64_t sum = 0;
            for (int r = 0; r < ROWS; r++)
                sum += (int64_t)(x[r * D + i] * 1024) * (int64_t)(x[r * D + j] * 1024);
            assert_int_equal(high[0][i * D + j], sum);
        }
}

int main(void) {
    dev_start(0, 2);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reciprocal),
        cmocka_unit_test(test_reciprocal_root),
        cmocka_unit_test(test_exp_minus),
        cmocka_unit_test(test_log),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_order_of_equal_points),
        cmocka_unit_test(test_update),
        cmocka_unit_test(test_project_rows_alone),
        cmocka_unit_test(test_covariance_is_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
