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
    k_seed(lane, device_seed, device_prediction, B, K);
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
        k_gradcam(lane, device_map, device_low, device_high, device_value, device_gradient, B, C, H, W);
    else
        k_saliency(lane, device_map, device_low, device_high, device_gradient, B, C, H, W);
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
        cmocka_unit_test(test_bytes_as_pytorch), cmocka_unit_test(test_channels_and_normalisation),
        cmocka_unit_test(test_every_type),       cmocka_unit_test(test_predict_and_seed),
        cmocka_unit_test(test_saliency),         cmocka_unit_test(test_gradcam),
        cmocka_unit_test(test_layouts),          cmocka_unit_test(test_memory),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    lane_free(lane);
    return failed;
}
