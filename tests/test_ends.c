/* test_ends.c: what goes into the network and what comes out (ends), layouts, and device memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

static Lane *lane;

static PixelTransform plain_pixels(DType dtype, int channels, int height, int width) {
    PixelTransform t = {.dtype = dtype, .channels = channels, .height = height, .width = width, .scale = 1};
    for (int c = 0; c < 16; c++)
        t.std[c] = 1;
    return t;
}

/* ---- The kernels, on arrays of the host ------------------------------------------------------------------------- */

static void input(float *out, const void *pixels, const PixelTransform *t, int count, int B) {
    const size_t bytes = (size_t)(B * t->channels * t->height * t->width) * sizeof *out;
    float *device_out = device_new(NULL, bytes);
    k_input(lane, device_out, pixels, t, count, B);
    device_take(lane, out, device_out, bytes);
}

static void predict_and_seed(int32_t *prediction, float *seed, const float *logits, int B, int K) {
    const size_t bytes = (size_t)(B * K) * sizeof(float), ints = (size_t)B * sizeof *prediction;
    float *device_logits = device_new(logits, bytes), *device_seed = device_new(NULL, bytes);
    int32_t *device_prediction = device_new(NULL, ints);
    k_predict(lane, device_prediction, device_logits, B, K);
    k_seed(lane, device_seed, device_prediction, NULL, B, K);
    device_take(lane, prediction, device_prediction, ints);
    device_take(lane, seed, device_seed, bytes);
    dev_free(device_logits);
}

/* value NULL: saliency, else Grad-CAM. */
static void attribution(float *map, float *low, float *high, const float *value, const float *gradient, int B, int C,
                        int H, int W) {
    const size_t plane = (size_t)(B * H * W) * sizeof(float), samples = (size_t)B * sizeof(float);
    float *device_gradient = device_new(gradient, plane * (size_t)C);
    float *device_value = value ? device_new(value, plane * (size_t)C) : NULL;
    float *device_map = device_new(NULL, plane);
    float *device_low = device_new(NULL, samples), *device_high = device_new(NULL, samples);
    if (value)
        k_cam(lane, device_map, CAM_GRAD, device_value, device_gradient, B, C, H, W);
    else
        k_saliency(lane, device_map, device_gradient, B, C, H, W);
    k_normalise(lane, device_map, device_low, device_high, B, (int64_t)H * W);
    device_take(lane, map, device_map, plane);
    device_take(lane, low, device_low, samples);
    device_take(lane, high, device_high, samples);
    dev_free(device_gradient);
    dev_free(device_value);
}

/* ToTensor: float32(pixel) / float32(255), for every byte; the rest of the batch becomes zeros. */
static void test_bytes_as_pytorch(void **state) {
    (void)state;
    uint8_t pixels[256];
    float out[3 * 256];
    for (int i = 0; i < 256; i++)
        pixels[i] = (uint8_t)i;
    memset(out, 0xff, sizeof out);
    PixelTransform t = plain_pixels(DT_U8, 1, 16, 16);
    t.scale = 1.0 / 255;
    input(out, pixels, &t, 1, 3);
    for (int i = 0; i < 256; i++)
        assert_true(out[i] == (float)i / 255.0f);
    for (int i = 256; i < 3 * 256; i++)
        assert_true(out[i] == 0);
}

static void test_channels_and_normalisation(void **state) {
    (void)state;
    enum { C = 3, H = 2, W = 2, B = 2 };
    uint8_t first[B * C * H * W], last[B * C * H * W];
    float from_first[B * C * H * W], from_last[B * C * H * W];
    for (int b = 0; b < B; b++)
        for (int c = 0; c < C; c++)
            for (int p = 0; p < H * W; p++)
                last[(b * H * W + p) * C + c] = first[(b * C + c) * H * W + p] = (uint8_t)(b * 100 + c * 30 + p * 7);
    PixelTransform t = plain_pixels(DT_U8, C, H, W);
    t.scale = 1.0 / 255;
    for (int c = 0; c < C; c++) {
        t.mean[c] = 0.4 + 0.05 * c;
        t.std[c] = 0.2 + 0.01 * c;
    }
    input(from_first, first, &t, B, B);
    t.channels_last = true;
    input(from_last, last, &t, B, B);
    assert_memory_equal(from_first, from_last, sizeof from_first);
    for (int i = 0; i < B * C * H * W; i++) {
        const int c = i / (H * W) % C;
        assert_true(from_first[i] == (float)((first[i] * (1.0 / 255) - t.mean[c]) / t.std[c]));
    }
}

static void check_type(DType dtype, const void *pixels, const float expected[4]) {
    PixelTransform t = plain_pixels(dtype, 1, 2, 2);
    t.scale = 2;
    t.mean[0] = 1;
    float out[4];
    input(out, pixels, &t, 1, 1);
    for (int i = 0; i < 4; i++)
        if (!(out[i] == 2 * expected[i] - 1))
            fail_msg("type %d, pixel %d: %g, expected %g", (int)dtype, i, out[i], 2 * expected[i] - 1);
}

static void test_every_type(void **state) {
    (void)state;
    check_type(DT_U8, (uint8_t[]){0, 1, 200, 255}, (float[]){0, 1, 200, 255});
    check_type(DT_BOOL, (uint8_t[]){0, 1, 1, 0}, (float[]){0, 1, 1, 0});
    check_type(DT_I8, (int8_t[]){0, -1, 127, -128}, (float[]){0, -1, 127, -128});
    check_type(DT_U16, (uint16_t[]){0, 1, 4095, 65535}, (float[]){0, 1, 4095, 65535});
    check_type(DT_I16, (int16_t[]){0, -1, 32767, -32768}, (float[]){0, -1, 32767, -32768});
    check_type(DT_U32, (uint32_t[]){0, 1, 1u << 31, 70000}, (float[]){0, 1, 0x1p31f, 70000});
    check_type(DT_I32, (int32_t[]){0, -1, INT32_MIN, 70000}, (float[]){0, -1, -0x1p31f, 70000});
    check_type(DT_U64, (uint64_t[]){0, 1, 1ull << 63, 5}, (float[]){0, 1, 0x1p63f, 5});
    check_type(DT_I64, (int64_t[]){0, -1, INT64_MIN, 5}, (float[]){0, -1, -0x1p63f, 5});
    check_type(DT_F32, (float[]){0, -1.5f, 0.25f, 3e10f}, (float[]){0, -1.5f, 0.25f, 3e10f});
    check_type(DT_F64, (double[]){0, -1.5, 0.25, 3}, (float[]){0, -1.5f, 0.25f, 3});
    check_type(DT_F16, (uint16_t[]){0x3c00, 0xc500, 0x0001, 0x7bff}, (float[]){1, -5, 0x1p-24f, 65504});
    check_type(DT_BF16, (uint16_t[]){0x3f80, 0xc0a0, 0x4049, 0}, (float[]){1, -5, 3.140625f, 0});
}

static void test_predict_and_seed(void **state) {
    (void)state;
    const float logits[] = {1, 3, 3, -1, /**/ -5, -6, -5, -7, /**/ 0, 0, 0, 1};
    int32_t prediction[3];
    float seed[12];
    predict_and_seed(prediction, seed, logits, 3, 4);
    assert_int_equal(prediction[0], 1);
    assert_int_equal(prediction[1], 0);
    assert_int_equal(prediction[2], 3);
    const float expected[] = {0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1};
    assert_memory_equal(seed, expected, sizeof expected);
    const float single[] = {0, 0.5f, -2};
    predict_and_seed(prediction, seed, single, 3, 1);
    assert_int_equal(prediction[0], 0);
    assert_int_equal(prediction[1], 1);
    assert_int_equal(prediction[2], 0);
    for (int b = 0; b < 3; b++)
        assert_true(seed[b] == 1);

    enum { K = 300 }; /* two equal largest; a NaN before them; a NaN in front: nothing is larger than it */
    static float many[3 * K], seeds[3 * K];
    for (int i = 0; i < 3 * K; i++)
        many[i] = -1 - (float)(i * 7 % 41);
    many[131] = many[263] = many[K + 77] = many[K + 290] = many[2 * K + 5] = 2;
    many[K + 31] = many[K + 45] = many[2 * K] = NAN;
    predict_and_seed(prediction, seeds, many, 3, K);
    assert_int_equal(prediction[0], 131);
    assert_int_equal(prediction[1], 77);
    assert_int_equal(prediction[2], 0);
    for (int i = 0; i < 3 * K; i++)
        assert_true(seeds[i] == (i % K == prediction[i / K] ? 1 : 0));
}

static void test_saliency(void **state) {
    (void)state;
    enum { B = 3, C = 2, H = 1, W = 4 };
    const float gradient[B * C * H * W] = {1,  -4, 2, 0,  0, 3, -5, 1,  /* |.| maximum 1 4 5 1 */
                                           -2, 2,  2, -2, 1, 2, 0,  -1, /* constant 2 */
                                           0,  0,  0, 0,  0, 0, 0,  0}; /* constant 0 */
    const float expected[B * H * W] = {0, 0.75f, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    float map[B * H * W], low[B], high[B];
    attribution(map, low, high, NULL, gradient, B, C, H, W);
    assert_memory_equal(map, expected, sizeof expected);
    assert_true(low[0] == 1 && high[0] == 5 && low[1] == 2 && high[1] == 2 && low[2] == 0 && high[2] == 0);
}

static void test_gradcam(void **state) {
    (void)state;
    enum { B = 2, C = 2, H = 2, W = 2 };
    const float gradient[B * C * H * W] = {1, 3, 0, 0, /**/ -1, -1, -1, -1, /**/ -4, 0, 0, 0, /**/ 0, 0, 0, 0};
    const float value[B * C * H * W] = {1, 2, 3, 8, /**/ 2, 0, 0, 1, /**/ 1, 2, 3, 4, /**/ 9, 9, 9, 9};
    /* means 1, -1: values -1 2 3 7, relu 0 2 3 7; means -1, 0: all negative, so zeros */
    const float expected[B * H * W] = {0, 2 / 7.0f, 3 / 7.0f, 1, 0, 0, 0, 0};
    float map[B * H * W], low[B], high[B];
    attribution(map, low, high, value, gradient, B, C, H, W);
    assert_memory_equal(map, expected, sizeof expected);
    assert_true(low[0] == 0 && high[0] == 7 && low[1] == 0 && high[1] == 0);
}

/* The other class activation maps, by their definitions in double. */
static void test_cams(void **state) {
    (void)state;
    enum { B = 2, C = 3, H = 3, W = 13, PIXELS = H * W, SIZE = B * C * PIXELS };
    float gradient[SIZE], value[SIZE], map[B * PIXELS];
    for (int i = 0; i < SIZE; i++) {
        gradient[i] = (float)((i * 37 + i / 5 * 11) % 23 - 11) / 7;
        value[i] = (float)((i * 29 + i / 3 * 5) % 19 - 5) / 3;
    }
    for (int kind = CAM_GRAD; kind <= CAM_LAYER; kind++) {
        float *device_gradient = device_new(gradient, sizeof gradient), *device_value = device_new(value, sizeof value);
        float *device_map = device_new(NULL, sizeof map);
        k_cam(lane, device_map, (CamKind)kind, device_value, device_gradient, B, C, H, W);
        device_take(lane, map, device_map, sizeof map);
        dev_free(device_gradient);
        dev_free(device_value);
        int positive = 0;
        for (int b = 0; b < B; b++) {
            double weight[C] = {0};
            for (int c = 0; c < C; c++) {
                const float *g = gradient + (b * C + c) * PIXELS, *a = value + (b * C + c) * PIXELS;
                double values = 0;
                for (int p = 0; p < PIXELS; p++)
                    values += a[p];
                for (int p = 0; p < PIXELS; p++)
                    weight[c] += kind == CAM_GRAD ? (double)g[p] / PIXELS
                                 : g[p] > 0       ? pow(g[p], 3) / (2 * pow(g[p], 2) + values * pow(g[p], 3) + 1e-6)
                                                  : 0;
            }
            for (int p = 0; p < PIXELS; p++) {
                double sum = 0;
                for (int c = 0; c < C; c++) {
                    const int i = (b * C + c) * PIXELS + p;
                    const double g = kind == CAM_HIRES   ? (double)gradient[i]
                                     : kind == CAM_LAYER ? fmax((double)gradient[i], 0)
                                                         : weight[c];
                    sum += g * value[i];
                }
                sum = fmax(sum, 0);
                positive += sum > 0;
                assert_true(fabs(map[b * PIXELS + p] - sum) < 1e-5 * fmax(1, sum));
            }
        }
        assert_true(positive > 5 && positive < B * PIXELS);
    }
}

static void test_targets(void **state) {
    (void)state;
    enum { B = 4, K = 5 };
    const float logits[B * K] = {0, 3, 1, 3, 2, /**/ 9, 8, 7, 8, 0, /**/ -1, -2, -3, -4, -5, /**/ 1, 1, 1, 1, 2};
    const int32_t prediction[B] = {1, 0, 0, 4}, labels[B] = {4, -1, 2, 4};
    const struct {
        int which;
        int32_t expected[B];
    } cases[] = {{TARGET_PREDICTED, {1, 0, 0, 4}},
                 {TARGET_RUNNER_UP, {3, 1, 1, 0}},
                 {TARGET_LABEL, {4, 0, 2, 4}},
                 {3, {3, 3, 3, 3}}};
    float *device_logits = device_new(logits, sizeof logits);
    int32_t *device_prediction = device_new(prediction, sizeof prediction),
            *device_labels = device_new(labels, sizeof labels);
    int32_t *target = device_new(NULL, sizeof prediction), *against = device_new(prediction, sizeof prediction), got[B];
    for (int i = 0; i < 4; i++) {
        k_target(lane, target, cases[i].which, device_prediction, device_logits, device_labels, B, K);
        lane_sync(lane);
        dev_download(got, target, sizeof got);
        assert_memory_equal(got, cases[i].expected, sizeof got);
    }
    float *seed = device_new(NULL, sizeof logits), *score = device_new(NULL, B * sizeof(float)), host[B * K], scores[B];
    k_target(lane, target, TARGET_LABEL, device_prediction, device_logits, device_labels, B, K);
    k_seed(lane, seed, target, against, B, K);
    k_score(lane, score, device_logits, device_logits + K, target, against, B, K);
    device_take(lane, host, seed, sizeof host);
    device_take(lane, scores, score, sizeof scores);
    for (int b = 0; b < B; b++) {
        const int32_t t = cases[2].expected[b];
        for (int k = 0; k < K; k++)
            assert_true(host[b * K + k] == (float)((k == t) - (k == prediction[b])));
        assert_true(scores[b] ==
                    logits[b * K + t] - logits[b * K + prediction[b]] - logits[K + t] + logits[K + prediction[b]]);
    }
    dev_free(device_logits);
    dev_free(device_prediction);
    dev_free(device_labels);
    dev_free(target);
    dev_free(against);
}

/* Each sample's noise is normal, in units of its range, and its own; a draw is another. */
static void test_noise(void **state) {
    (void)state;
    enum { B = 3, SIZE = 70001 };
    static float x[B * SIZE], out[2][B * SIZE];
    const int64_t numbers[B] = {0, 1, 0};
    for (int i = 0; i < B * SIZE; i++)
        x[i] = (float)(i % SIZE % 5) * (i < SIZE ? 1 : 2);
    float *device_x = device_new(x, sizeof x);
    int64_t *device_numbers = device_new(numbers, sizeof numbers);
    for (int draw = 0; draw < 2; draw++) {
        float *device_out = device_new(NULL, sizeof x);
        k_noisy(lane, device_out, device_x, device_numbers, 7, draw, 0.5f, B, SIZE);
        device_take(lane, out[draw], device_out, sizeof x);
    }
    dev_free(device_x);
    dev_free(device_numbers);
    double same = 0;
    for (int b = 0; b < B; b++) {
        double moment[5] = {0}, neighbours = 0;
        int beyond = 0;
        for (int i = 0; i < SIZE; i++) {
            const double deviation = b == 0 ? 2 : 4, z = (out[0][b * SIZE + i] - x[b * SIZE + i]) / deviation;
            const double other = (out[1][b * SIZE + i] - x[b * SIZE + i]) / deviation;
            for (int k = 1; k < 5; k++)
                moment[k] += pow(z, k) / SIZE;
            same += z * other / SIZE / B;
            if (i > 0)
                neighbours += z * (out[0][b * SIZE + i - 1] - x[b * SIZE + i - 1]) / deviation / SIZE;
            beyond += fabs(z) > 1.959964;
        }
        assert_true(fabs(moment[1]) < 0.015 && fabs(moment[2] - 1) < 0.025 && fabs(moment[3]) < 0.05);
        assert_true(fabs(moment[4] - 3) < 0.15 && fabs(neighbours) < 0.015 && abs(beyond - SIZE / 20) < 250);
    }
    assert_true(fabs(same) < 0.01);
    for (int i = 0; i < SIZE; i++) /* the third has the first's number and twice its range */
        assert_true(fabsf(out[0][2 * SIZE + i] - 2 * out[0][i]) < 1e-5f * (1 + fabsf(out[0][i])));
    assert_true(fabsf(out[0][SIZE] - out[0][2 * SIZE]) > 1e-3f);
}

/* More channels than a device keeps the means of at a time, and more pixels than it has threads for one map; whole
 * numbers, so sums are exact, and ranges of powers of two. */
static void test_large_maps(void **state) {
    (void)state;
    enum { B = 3, C = 2051, H = 20, W = 17, PIXELS = H * W };
    static float gradient[B * C * PIXELS], value[B * C * PIXELS], map[B * PIXELS];
    float low[B], high[B];
    for (int b = 0; b < B; b++)
        for (int c = 0; c < C; c++)
            for (int p = 0; p < PIXELS; p++) {
                gradient[(b * C + c) * PIXELS + p] = c == 0 || c == 1100 || c == 2050 ? (float)(b + 1) : 0;
                value[(b * C + c) * PIXELS + p] = p == 331 ? 40 : p == 300 ? 8 : (float)(16 + (p + c / 1000) % 2);
            }
    attribution(map, low, high, value, gradient, B, C, H, W);
    for (int b = 0; b < B; b++) {
        assert_true(low[b] == (float)(24 * (b + 1)) && high[b] == (float)(120 * (b + 1)));
        for (int p = 0; p < PIXELS; p++) {
            const float raw = p == 331 ? 120 : p == 300 ? 24 : (float)(48 + 2 * (p % 2) + (p + 1) % 2);
            assert_true(fabsf(map[b * PIXELS + p] - (raw - 24) / 96) < 1e-6f);
        }
    }
    for (int i = 0; i < B * C * PIXELS; i++)
        gradient[i] = i % PIXELS == 339 ? (i / PIXELS % C == 1500 ? -9.0f : 3.0f) : i % PIXELS == 258 ? 1.0f : -5.0f;
    attribution(map, low, high, NULL, gradient, B, C, H, W);
    for (int b = 0; b < B; b++) {
        assert_true(low[b] == 1 && high[b] == 9);
        assert_true(map[b * PIXELS + 339] == 1 && map[b * PIXELS + 258] == 0 && map[b * PIXELS + 5] == 0.5f);
    }
}

/* Plain to blocked and back is the identity; the channels that round up a block are zeros. */
static void test_layouts(void **state) {
    (void)state;
    enum { B = 3, H = 2, W = 3, C_MAX = 33 };
    float plain[B * C_MAX * H * W], back[B * C_MAX * H * W];
    for (int C = 1; C <= C_MAX; C++) {
        const int count = B * C * H * W;
        for (int i = 0; i < count; i++)
            plain[i] = (float)(i + 1);
        const size_t bytes = k_value_bytes(LAYOUT_BLOCKED, B, C, H, W);
        float *blocked = malloc(bytes), *device_blocked = device_new(NULL, bytes);
        float *device_plain = device_new(plain, (size_t)count * sizeof *plain);
        float *device_back = device_new(NULL, (size_t)count * sizeof *plain);
        assert_non_null(blocked);
        k_from_plain(lane, device_blocked, LAYOUT_BLOCKED, device_plain, B, C, H, W);
        k_to_plain(lane, device_back, device_blocked, LAYOUT_BLOCKED, B, C, H, W);
        device_take(lane, back, device_back, (size_t)count * sizeof *plain);
        device_take(lane, blocked, device_blocked, bytes);
        dev_free(device_plain);
        assert_memory_equal(plain, back, (size_t)count * sizeof *plain);
        const size_t sample = k_value_bytes(LAYOUT_BLOCKED, 4, C, H, W) / 4 / sizeof(float);
        double sum = 0;
        for (size_t i = 0; i < B * sample; i++)
            sum += blocked[i];
        assert_true(sum == count * (count + 1.0) / 2);
        free(blocked);
    }
}

static jmp_buf jump;
static char failure[512];

static void caught(const char *message) {
    snprintf(failure, sizeof failure, "%s", message);
    longjmp(jump, 1);
}

static void test_memory(void **state) {
    (void)state;
    const size_t available = dev_available();
    assert_true(available > 1 << 20);
    const bool cpu = dev_isa() > 0;
    size_t twice = available * 2;
    if (cpu) {
        FILE *file = fopen("/proc/meminfo", "r");
        unsigned long long total = 0;
        assert_non_null(file);
        assert_int_equal(fscanf(file, "MemTotal: %llu", &total), 1);
        fclose(file);
        assert_true(available <= total * 1024);
        twice = (size_t)total * 1024 * 2;
    }
    for (size_t bytes = 0; bytes < 20u << 20; bytes = bytes * 3 + 1) {
        char *memory = dev_alloc(bytes);
        assert_int_equal((uintptr_t)memory % 64, 0);
        device_spoil(memory, bytes);
        dev_free(memory);
    }
    dev_free(NULL);
    dev_on_failure(caught);
    if (setjmp(jump) == 0) {
        dev_alloc(twice);
        fail_msg("twice the machine's memory was given out");
    }
    assert_non_null(strstr(failure, "GiB needed"));
    assert_null(strchr(failure, '\n'));
    if (cpu && setjmp(jump) == 0) {
        dev_limit_isa(0);
        fail_msg("the level of instructions was changed after kernels were made");
    }
    assert_true(!cpu || strstr(failure, "dev_limit_isa"));
    dev_on_failure(NULL);
}

int main(void) {
    dev_start(0, 1);
    dev_limit_isa(dev_isa());
    lane = lane_new(64);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_as_pytorch),
        cmocka_unit_test(test_channels_and_normalisation),
        cmocka_unit_test(test_every_type),
        cmocka_unit_test(test_predict_and_seed),
        cmocka_unit_test(test_saliency),
        cmocka_unit_test(test_gradcam),
        cmocka_unit_test(test_large_maps),
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_cams),
        cmocka_unit_test(test_targets),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_memory),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    lane_free(lane);
    return failed;
}
