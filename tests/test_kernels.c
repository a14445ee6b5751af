/* test_kernels.c: one table of operations and shapes, and what must hold for every line of it, in both layouts:
 * the kernel agrees with ref.c in both directions; linear operations satisfy <Ax, y> = <x, A'y>; ref.c's gradients are
 * those of its forward pass (signed finite differences); a sample's bits depend neither on the batch size, nor on its
 * place in the batch, nor on the thread or on what other threads do.
 *
 *     test_kernels [LEVEL]     the level of instructions, as dev_isa gives it; default: the machine's, and down to AVX2 (2),
 *                              each in a process of its own */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device.h"
#include "kernel_cases.h"
#include "ref.h"

enum { THREADS = 3 };

/* y (batch, out) and dx (batch, in) from x and dy, all plain; every byte of the lane starts as NaN. */
static void fast_run(const Fast *f, float *y, float *dx, const float *x, const float *dy) {
    const Bench *b = f->bench;
    const Shape in = b->in, out = b->out;
    const size_t ins = (size_t)(f->batch * b->in_size) * sizeof(float);
    const size_t outs = (size_t)(f->batch * b->out_size) * sizeof(float);
    Lane *lane = lane_new(laid_bytes(f));
    device_spoil(lane_memory(lane), laid_bytes(f));
    float *given_x = device_new(x, ins), *given_dy = device_new(dy, outs);
    float *made_y = dev_alloc(outs), *made_dx = dev_alloc(ins);
    const Laid l = lay(lane, f, given_x, given_dy);
    fast_forward(lane, f, &l);
    fast_backward(lane, f, &l);
    k_to_plain(lane, made_y, l.y, f->out, f->batch, shape_channels(out), shape_height(out), shape_width(out));
    k_to_plain(lane, made_dx, l.dx, f->in, f->batch, shape_channels(in), shape_height(in), shape_width(in));
    device_take(lane, y, made_y, outs);
    device_take(lane, dx, made_dx, ins);
    dev_free(given_x);
    dev_free(given_dy);
    lane_free(lane);
}

/* ---- Comparisons ------------------------------------------------------------------------------------------------ */

static double *widened(const float *values, int64_t count) {
    double *wide = need((size_t)count * sizeof *wide);
    for (int64_t i = 0; i < count; i++)
        wide[i] = values[i];
    return wide;
}

static double dot(const double *a, const double *b, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

/* What a case's max pooling reads: x, or the relu of its batch norm. */
static double *ref_before(const Bench *b, const double *x, int batch) {
    double *before = need((size_t)(batch * b->in_size) * sizeof *before);
    ref_affine(before, x, b->relu ? b->weight : NULL, b->bias, b->relu, batch, shape_channels(b->in),
               shape_height(b->in) * shape_width(b->in));
    return before;
}

static void ref_forward(const Bench *b, double *y, const double *x, int batch) {
    if (b->node.op == OP_MAX_POOL) {
        double *before = ref_before(b, x, batch);
        ref_max_pool(y, before, &b->node.window, batch);
        free(before);
        return;
    }
    ref_node(y, &x, &b->node, &b->in, batch);
    for (int64_t i = 0; b->relu && i < batch * b->out_size; i++)
        y[i] = y[i] < 0 ? 0 : y[i];
}

static void ref_backward(const Bench *b, double *dx, const double *dy, const double *y, const double *x, int batch) {
    if (b->node.op == OP_MAX_POOL) {
        double *before = ref_before(b, x, batch), *d = need((size_t)(batch * b->in_size) * sizeof *d);
        ref_max_pool_backward(d, dy, before, &b->node.window, batch);
        ref_affine_backward(dx, d, before, b->relu ? b->weight : NULL, b->relu, batch, shape_channels(b->in),
                            shape_height(b->in) * shape_width(b->in));
        free(before), free(d);
        return;
    }
    double *passed = need((size_t)(batch * b->out_size) * sizeof *passed);
    for (int64_t i = 0; i < batch * b->out_size; i++)
        passed[i] = b->relu && y[i] <= 0 ? 0 : dy[i];
    ref_node_backward(dx, passed, y, x, &b->node, b->in, batch);
    free(passed);
}

static void check_close(const Bench *b, const char *what, const float *fast, const double *exact, int64_t count) {
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < count; i++) {
        double error = fabs(fast[i] - exact[i]);
        largest = fmax(largest, fabs(exact[i]));
        worst = error > worst || isnan(error) ? error : worst;
    }
    if (!(worst <= b->tolerance * largest))
        fail_msg("%s: %s: error %g of %g, allowed %g", b->name, what, worst, largest, b->tolerance * largest);
}

static void check_same(const Bench *b, const char *what, const float *a, const float *expected, int64_t count) {
    if (memcmp(a, expected, (size_t)count * sizeof *a) != 0)
        fail_msg("%s: %s: other bits", b->name, what);
}

/* ---- Tests ------------------------------------------------------------------------------------------------------ */

static void against_reference(bool whole) {
    enum { SAMPLES = 5 };
    for (int i = 0; i < CASES; i++)
        for (int layout = LAYOUT_PLAIN; layout <= LAYOUT_BLOCKED; layout++) {
            Bench b = bench_new(&cases[i], whole);
            const int64_t ins = SAMPLES * b.in_size, outs = SAMPLES * b.out_size;
            double *x = widened(b.x, ins), *dy = widened(b.dy, outs);
            double *y = need((size_t)outs * sizeof *y), *dx = need((size_t)ins * sizeof *dx);
            float *fast_y = need((size_t)outs * sizeof *fast_y), *fast_dx = need((size_t)ins * sizeof *fast_dx);
            Fast f = fast_new(&b, (Layout)layout, SAMPLES);
            fast_run(&f, fast_y, fast_dx, b.x, b.dy);
            ref_forward(&b, y, x, SAMPLES);
            ref_backward(&b, dx, dy, y, x, SAMPLES);
            if (!whole || b.node.op != OP_GLOBAL_AVERAGE_POOL) { /* a mean of whole numbers is none */
                check_close(&b, "forward", fast_y, y, outs);
                check_close(&b, "backward", fast_dx, dx, ins);
            }
            fast_free(&f);
            free(x), free(dy), free(y), free(dx), free(fast_y), free(fast_dx);
            bench_free(&b);
        }
}

static void test_reference(void **state) {
    (void)state;
    against_reference(false);
}

static void test_reference_exact(void **state) {
    (void)state;
    against_reference(true);
}

static bool is_linear(const Bench *b) {
    return b->node.op != OP_RELU && b->node.op != OP_MAX_POOL && !b->relu;
}

/* <A x, y> = <x, A' y>, both by the fast kernels; A x is the output less that of zeros. */
static void test_adjoint(void **state) {
    (void)state;
    for (int i = 0; i < CASES; i++)
        for (int layout = LAYOUT_PLAIN; layout <= LAYOUT_BLOCKED; layout++) {
            Bench b = bench_new(&cases[i], false);
            float *y = need((size_t)b.out_size * sizeof *y), *y0 = need((size_t)b.out_size * sizeof *y);
            float *dx = need((size_t)b.in_size * sizeof *dx), *zeros = need((size_t)b.in_size * sizeof *zeros);
            Fast f = fast_new(&b, (Layout)layout, 1);
            fast_run(&f, y0, dx, zeros, b.dy);
            fast_run(&f, y, dx, b.x, b.dy);
            double left = 0, right = 0, size = 0;
            for (int64_t k = 0; k < b.out_size; k++) {
                left += ((double)y[k] - y0[k]) * b.dy[k];
                size += fabs((double)y[k] * b.dy[k]);
            }
            for (int64_t k = 0; k < b.in_size; k++)
                right += (double)b.x[k] * dx[k];
            if (is_linear(&b) && !(fabs(left - right) <= 1e-5 * (size + fabs(right))))
                fail_msg("%s: <Ax, y> = %g, <x, A'y> = %g", b.name, left, right);
            fast_free(&f);
            free(y), free(y0), free(dx), free(zeros);
            bench_free(&b);
        }
}

/* In ref.c: the slope of <f(x), y> along a random direction d is <d, f'(x) y>, sign included. */
static void test_finite_differences(void **state) {
    (void)state;
    const double step = 1e-7;
    for (int i = 0; i < CASES; i++) {
        Bench b = bench_new(&cases[i], false);
        const int64_t ins = b.in_size, outs = b.out_size;
        double *x = widened(b.x, ins), *direction = widened(b.x + ins, ins), *dy = widened(b.dy, outs);
        double *y = need((size_t)outs * sizeof *y), *dx = need((size_t)ins * sizeof *dx);
        ref_forward(&b, y, x, 1);
        ref_backward(&b, dx, dy, y, x, 1);
        double slope[2];
        for (int side = 0; side < 2; side++) {
            double *moved = widened(b.x, ins);
            for (int64_t k = 0; k < ins; k++)
                moved[k] += (side ? step : -step) * direction[k];
            ref_forward(&b, y, moved, 1);
            slope[side] = dot(y, dy, outs);
            free(moved);
        }
        double measured = (slope[1] - slope[0]) / (2 * step), given = dot(direction, dx, ins);
        if (!(fabs(measured - given) <= 1e-5 * (1 + fabs(given))))
            fail_msg("%s: slope %.9g, gradient gives %.9g", b.name, measured, given);
        free(x), free(direction), free(dy), free(y), free(dx);
        bench_free(&b);
    }
}

static void test_batch_and_place(void **state) {
    (void)state;
    static const int batches[] = {1, 5, 8, 16, BATCH};
    for (int i = 0; i < CASES; i++)
        for (int layout = LAYOUT_PLAIN; layout <= LAYOUT_BLOCKED; layout++) {
            Bench b = bench_new(&cases[i], false);
            float *y = need((size_t)(BATCH * b.out_size) * sizeof *y),
                  *dx = need((size_t)(BATCH * b.in_size) * sizeof *dx);
            float *y1 = need((size_t)(BATCH * b.out_size) * sizeof *y),
                  *dx1 = need((size_t)(BATCH * b.in_size) * sizeof *dx);
            Fast one = fast_new(&b, (Layout)layout, 1);
            for (int s = 0; s < BATCH; s++)
                fast_run(&one, y1 + s * b.out_size, dx1 + s * b.in_size, b.x + s * b.in_size, b.dy + s * b.out_size);
            for (int k = 0; k < 5; k++) {
                Fast f = fast_new(&b, (Layout)layout, batches[k]);
                for (int from = 0; from + batches[k] <= BATCH; from += 7) {
                    fast_run(&f, y, dx, b.x + from * b.in_size, b.dy + from * b.out_size);
                    check_same(&b, "forward in a batch", y, y1 + from * b.out_size, batches[k] * b.out_size);
                    check_same(&b, "backward in a batch", dx, dx1 + from * b.in_size, batches[k] * b.in_size);
                }
                fast_free(&f);
            }
            fast_free(&one);
            free(y), free(dx), free(y1), free(dx1);
            bench_free(&b);
        }
}

/* One prepared kernel, run from the main thread, from inside parallel regions of 1 to THREADS threads at once, and
 * prepared while OpenMP had one thread and several. */
static void test_threads(void **state) {
    (void)state;
    enum { SAMPLES = 6 };
    for (int i = 0; i < CASES; i++)
        for (int layout = LAYOUT_PLAIN; layout <= LAYOUT_BLOCKED; layout++) {
            Bench b = bench_new(&cases[i], false);
            const int64_t ins = SAMPLES * b.in_size, outs = SAMPLES * b.out_size;
            float *y = need((size_t)(outs * (THREADS + 1)) * sizeof *y),
                  *dx = need((size_t)(ins * (THREADS + 1)) * sizeof *dx);
            dev_start(0, 1);
            Fast f = fast_new(&b, (Layout)layout, SAMPLES);
            fast_run(&f, y, dx, b.x, b.dy);
            fast_free(&f);
            dev_start(0, THREADS);
            f = fast_new(&b, (Layout)layout, SAMPLES);
            for (int threads = 1; threads <= THREADS; threads++) {
#pragma omp parallel for num_threads(threads)
                for (int t = 1; t <= THREADS; t++)
                    fast_run(&f, y + t * outs, dx + t * ins, b.x, b.dy);
                for (int t = 1; t <= THREADS; t++) {
                    check_same(&b, "forward on a thread", y + t * outs, y, outs);
                    check_same(&b, "backward on a thread", dx + t * ins, dx, ins);
                }
            }
            fast_run(&f, y + outs, dx + ins, b.x, b.dy);
            check_same(&b, "forward on the main thread", y + outs, y, outs);
            check_same(&b, "backward on the main thread", dx + ins, dx, ins);
            assert_int_equal(omp_get_max_threads(), THREADS);
            fast_free(&f);
            free(y), free(dx);
            bench_free(&b);
        }
}

/* The fused pair gives the bits of the batch norm and the relu run one after the other, in place too. */
static void test_fused_pair(void **state) {
    (void)state;
    enum { B = 3, C = 19, H = 5, W = 7, SIZE = B * C * H * W };
    float *x = numbers(SIZE, false), *dy = numbers(SIZE, false), *scale = numbers(C, false), *shift = numbers(C, false);
    for (int l = LAYOUT_PLAIN; l <= LAYOUT_BLOCKED; l++) {
        const Layout layout = (Layout)l;
        KAffine *norm = k_affine_new(layout, B, C, H, W, scale, shift, false);
        KAffine *relu = k_affine_new(layout, B, C, H, W, NULL, NULL, true);
        KAffine *both = k_affine_new(layout, B, C, H, W, scale, shift, true);
        const size_t bytes = k_value_bytes(layout, B, C, H, W);
        Lane *lane = lane_new(6 * bytes);
        float *v[6];
        for (int k = 0; k < 6; k++)
            v[k] = (float *)((char *)lane_memory(lane) + (size_t)k * bytes);
        float *given_x = device_new(x, SIZE * sizeof *x), *given_dy = device_new(dy, SIZE * sizeof *dy);
        k_from_plain(lane, v[0], layout, given_x, B, C, H, W);
        k_from_plain(lane, v[3], layout, given_dy, B, C, H, W);
        k_affine_forward(lane, norm, v[1], v[0]);
        k_affine_forward(lane, relu, v[2], v[1]);
        k_affine_backward(lane, relu, v[4], v[3], v[2], false);
        k_affine_backward(lane, norm, v[5], v[4], NULL, false);
        k_affine_forward(lane, both, v[0], v[0]);
        k_affine_backward(lane, both, v[3], v[3], v[0], false);
        lane_sync(lane);
        char *host = need(6 * bytes);
        dev_download(host, lane_memory(lane), 6 * bytes);
        assert_memory_equal(host, host + 2 * bytes, bytes);
        assert_memory_equal(host + 3 * bytes, host + 5 * bytes, bytes);
        free(host);
        dev_free(given_x), dev_free(given_dy);
        lane_free(lane);
        k_affine_free(norm), k_affine_free(relu), k_affine_free(both);
    }
    free(x), free(dy), free(scale), free(shift);
}

/* Max pooling with the relu, or the batch norm and the relu, before it gives the bits of one after the other: where
 * windows meet, are cut and leave cells out; where numbers are equal, none is above 0, and some are NaN; with guided
 * gradients; and without positions. */
static void test_fused_pool(void **state) {
    (void)state;
    enum { B = 5, C = 19 };
    static const ConvShape shapes[] = {
        {C, C, 6, 8, 3, 4, 2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1},  {C, C, 5, 7, 2, 3, 2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1},
        {C, C, 7, 6, 5, 4, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1, 1},  {C, C, 7, 9, 4, 5, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1},
        {C, C, 9, 8, 5, 4, 2, 2, 1, 1, 0, 0, 0, 0, 4, 4, 1},
    };
    for (int variant = 0; variant < (int)(sizeof shapes / sizeof *shapes) * 16; variant++) {
        const ConvShape s = shapes[variant / 16];
        const Layout layout = variant & 1 ? LAYOUT_BLOCKED : LAYOUT_PLAIN;
        const bool scales = variant & 2, guided = variant & 4, whole = variant & 8;
        const int ins = B * C * s.in_height * s.in_width, outs = B * C * s.out_height * s.out_width;
        float *x = numbers(ins, whole), *dy = numbers(outs, whole);
        float *scale = numbers(C, whole), *shift = numbers(C, whole);
        for (int i = 0; i < ins; i++)
            x[i] = uniform() > 0.98 ? NAN : x[i];
        KAffine *before = k_affine_new(layout, B, C, s.in_height, s.in_width, scales ? scale : NULL, shift, true);
        KMaxPool *alone = k_max_pool_new(layout, &s, B, false, NULL, NULL);
        KMaxPool *fused = k_max_pool_new(layout, &s, B, true, scales ? scale : NULL, shift);
        const size_t in_bytes = k_value_bytes(layout, B, C, s.in_height, s.in_width);
        const size_t out_bytes = k_value_bytes(layout, B, C, s.out_height, s.out_width);
        const size_t saved_bytes = round64(k_max_pool_saved(alone));
        Lane *lane = lane_new(5 * in_bytes + 4 * out_bytes + saved_bytes);
        char *memory = lane_memory(lane);
        float *in[5], *out[4];
        for (int k = 0; k < 5; k++)
            in[k] = (float *)(memory + (size_t)k * in_bytes);
        for (int k = 0; k < 4; k++)
            out[k] = (float *)(memory + 5 * in_bytes + (size_t)k * out_bytes);
        void *saved = memory + 5 * in_bytes + 4 * out_bytes;
        float *given_x = device_new(x, (size_t)ins * sizeof *x), *given_dy = device_new(dy, (size_t)outs * sizeof *dy);
        k_from_plain(lane, in[0], layout, given_x, B, C, s.in_height, s.in_width);
        k_from_plain(lane, out[0], layout, given_dy, B, C, s.out_height, s.out_width);
        k_affine_forward(lane, before, in[1], in[0]);
        k_max_pool_forward(lane, alone, out[1], saved, in[1]);
        k_max_pool_backward(lane, alone, in[2], out[0], saved, guided);
        k_affine_backward(lane, before, in[3], in[2], in[1], guided);
        lane_sync(lane);
        device_spoil(saved, saved_bytes);
        k_max_pool_forward(lane, fused, out[2], saved, in[0]);
        k_max_pool_backward(lane, fused, in[4], out[0], saved, guided);
        k_max_pool_forward(lane, fused, out[3], NULL, in[0]);
        float *got[5];
        for (int k = 0; k < 5; k++) {
            const bool back = k < 2;
            const size_t bytes = (size_t)(back ? ins : outs) * sizeof(float);
            float *plain = device_new(NULL, bytes);
            k_to_plain(lane, plain, back ? in[3 + k] : out[k - 1], layout, B, C, back ? s.in_height : s.out_height,
                       back ? s.in_width : s.out_width);
            got[k] = need(bytes);
            device_take(lane, got[k], plain, bytes);
        }
        if (memcmp(got[0], got[1], (size_t)ins * sizeof(float)) != 0)
            fail_msg("variant %d: the gradient has other bits", variant);
        for (int k = 3; k < 5; k++)
            if (memcmp(got[2], got[k], (size_t)outs * sizeof(float)) != 0)
                fail_msg("variant %d: the value has other bits", variant);
        for (int k = 0; k < 5; k++)
            free(got[k]);
        dev_free(given_x), dev_free(given_dy);
        lane_free(lane);
        k_affine_free(before), k_max_pool_free(alone), k_max_pool_free(fused);
        free(x), free(dy), free(scale), free(shift);
    }
}

/* Windows of equal values: the first in row-major order gets the gradient; padding never wins over negative values. */
static void test_max_pool_ties(void **state) {
    (void)state;
    ConvShape s = {1, 1, 2, 4, 1, 2, 2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1};
    const float x[] = {5, 5, 1, 2, 5, 5, 3, 3}, dy[] = {10, 20}, dx_expected[] = {10, 0, 0, 0, 0, 0, 20, 0};
    KMaxPool *pool = k_max_pool_new(LAYOUT_PLAIN, &s, 1, false, NULL, NULL);
    Lane *lane = lane_new(64);
    float y[2], dx[8];
    float *device_x = device_new(x, sizeof x), *device_dy = device_new(dy, sizeof dy);
    float *device_y = device_new(NULL, k_value_bytes(LAYOUT_PLAIN, 1, 1, 1, 2));
    float *device_dx = device_new(NULL, k_value_bytes(LAYOUT_PLAIN, 1, 1, 2, 4));
    void *saved = device_new(NULL, k_max_pool_saved(pool));
    k_max_pool_forward(lane, pool, device_y, saved, device_x);
    k_max_pool_backward(lane, pool, device_dx, device_dy, saved, false);
    device_take(lane, dx, device_dx, sizeof dx);
    assert_memory_equal(dx, dx_expected, sizeof dx_expected);
    k_max_pool_free(pool);
    s = (ConvShape){1, 1, 1, 1, 1, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const float negative = -7;
    dev_upload(device_x, &negative, sizeof negative);
    pool = k_max_pool_new(LAYOUT_PLAIN, &s, 1, false, NULL, NULL);
    k_max_pool_forward(lane, pool, device_y, NULL, device_x);
    device_take(lane, y, device_y, sizeof *y);
    assert_true(y[0] == -7);
    k_max_pool_free(pool);
    dev_free(device_x), dev_free(device_dy), dev_free(saved);
    lane_free(lane);
}

/* Equal largest values of a plane, in all positions to each other: the first gets the gradient; a NaN wins. */
static void test_global_max_ties(void **state) {
    (void)state;
    enum { PLANES = 5, PIXELS = 70 };
    static const int largest[PLANES][2] = {{0, 69}, {3, 35}, {33, 34}, {64, 68}, {40, 41}};
    float x[PLANES * PIXELS], dy[PLANES], y[PLANES], dx[PLANES * PIXELS];
    for (int i = 0; i < PLANES * PIXELS; i++)
        x[i] = (float)(-1 - i % 7);
    for (int i = 0; i < PLANES; i++) {
        x[i * PIXELS + largest[i][0]] = x[i * PIXELS + largest[i][1]] = 4;
        dy[i] = (float)(i + 1);
    }
    x[4 * PIXELS + 50] = NAN;
    Lane *lane = lane_new(64);
    float *on_x = device_new(x, sizeof x), *on_dy = device_new(dy, sizeof dy);
    float *on_y = device_new(NULL, sizeof y), *on_dx = device_new(NULL, sizeof dx);
    k_global_max_forward(lane, on_y, on_x, 1, PLANES, PIXELS);
    k_global_max_backward(lane, on_dx, on_dy, on_x, 1, PLANES, PIXELS);
    device_take(lane, y, on_y, sizeof y);
    device_take(lane, dx, on_dx, sizeof dx);
    for (int i = 0; i < PLANES; i++) {
        assert_true(i == 4 ? isnan(y[i]) : y[i] == 4);
        for (int p = 0; p < PIXELS; p++)
            assert_true(dx[i * PIXELS + p] == (p == (i == 4 ? 50 : largest[i][0]) ? dy[i] : 0));
    }
    dev_free(on_x), dev_free(on_dy);
    lane_free(lane);
}

static int run_at(int level) {
    dev_start(0, 2);
    dev_limit_isa(level);
    assert_int_equal(dev_isa(), level);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),       cmocka_unit_test(test_reference_exact),
        cmocka_unit_test(test_adjoint),         cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_batch_and_place), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_fused_pair),      cmocka_unit_test(test_max_pool_ties),
        cmocka_unit_test(test_global_max_ties), cmocka_unit_test(test_fused_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int count, char **arguments) {
    if (count > 1)
        return run_at(atoi(arguments[1]));
    int failed = 0;
    int level = dev_isa();
    do {
        pid_t child = fork();
        if (child == 0)
            exit(run_at(level)); /* not _exit, which would forget what coverage counted */
        int status = 1;
        waitpid(child, &status, 0);
        failed += status != 0;
    } while (--level >= 2);
    return failed;
}
