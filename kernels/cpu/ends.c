/* ends.c: into the network (pixels) and out of it (predictions, seeds, maps). All on plain values.
 *
 * A pixel is transformed in double and rounded once; 8-bit pixels through a table of their 256 values, per channel.
 * Maps are normalised by their own smallest and largest value, which are kept, so the raw map is x (high - low) + low.
 */
#include <string.h>

#include "cpu.h"
#include "shared.h"

/* ---- Pixels ----------------------------------------------------------------------------------------------------- */

void k_input(Lane *lane, float *out, const void *pixels, const PixelTransform *transform, int count, int B) {
    (void)lane;
    const PixelTransform *t = transform;
    const int64_t plane = (int64_t)t->height * t->width, sample = plane * t->channels;
    const int64_t step = t->channels_last ? t->channels : 1;
    for (int c = 0; c < t->channels; c++) {
        float table[256];
        for (int value = 0; t->dtype == DT_U8 && value < 256; value++)
            table[value] = transformed(value, t, c);
        for (int b = 0; b < count; b++) {
            float *to = out + b * sample + c * plane;
            const int64_t from = b * sample + (t->channels_last ? c : c * plane);
            if (t->dtype == DT_U8)
                for (int64_t p = 0; p < plane; p++)
                    to[p] = table[((const uint8_t *)pixels)[from + p * step]];
            else
                for (int64_t p = 0; p < plane; p++)
                    to[p] = transformed(pixel_at(pixels, t->dtype, from + p * step), t, c);
        }
    }
    memset(out + count * sample, 0, (size_t)((B - count) * sample) * sizeof *out);
}

/* ---- Predictions ------------------------------------------------------------------------------------------------ */

void k_predict(Lane *lane, int32_t *prediction, const float *logits, int B, int K) {
    (void)lane;
    for (int b = 0; b < B; b++) {
        const float *row = logits + (int64_t)b * K;
        int best = K == 1 ? row[0] > 0 : 0;
        for (int k = 1; k < K; k++)
            best = row[k] > row[best] ? k : best;
        prediction[b] = best;
    }
}

void k_seed(Lane *lane, float *seed, const int32_t *prediction, int B, int K) {
    (void)lane;
    memset(seed, 0, (size_t)B * (size_t)K * sizeof *seed);
    for (int b = 0; b < B; b++)
        seed[(int64_t)b * K + (K == 1 ? 0 : prediction[b])] = 1;
}

/* ---- Maps ------------------------------------------------------------------------------------------------------- */

static inline __attribute__((always_inline)) void normalise(float *map, float *low, float *high, int64_t pixels) {
    float least = map[0], most = map[0];
#pragma omp simd reduction(min : least) reduction(max : most)
    for (int64_t p = 0; p < pixels; p++) {
        least = map[p] < least ? map[p] : least;
        most = map[p] > most ? map[p] : most;
    }
    *low = least;
    *high = most;
    const float range = most - least;
#pragma omp simd
    for (int64_t p = 0; p < pixels; p++)
        map[p] = range > 0 ? (map[p] - least) / range : 0;
}

CPU_CLONES void k_saliency(Lane *lane, float *map, float *low, float *high, const float *gradient, int B, int C, int H,
                           int W) {
    (void)lane;
    const int64_t pixels = (int64_t)H * W;
    for (int b = 0; b < B; b++, map += pixels) {
        memset(map, 0, (size_t)pixels * sizeof *map);
        for (int c = 0; c < C; c++, gradient += pixels)
#pragma omp simd
            for (int64_t p = 0; p < pixels; p++) {
                float magnitude = __builtin_fabsf(gradient[p]);
                map[p] = magnitude > map[p] ? magnitude : map[p];
            }
        normalise(map, low + b, high + b, pixels);
    }
}

/* Rows first, as k_global_average_forward. */
static float plane_mean(const float *plane, int H, int W) {
    float total = 0;
    for (int y = 0; y < H; y++) {
        float row = 0;
        for (int x = 0; x < W; x++)
            row += *plane++;
        total += row;
    }
    return total / ((float)H * (float)W);
}

CPU_CLONES void k_gradcam(Lane *lane, float *map, float *low, float *high, const float *value, const float *gradient,
                          int B, int C, int H, int W) {
    (void)lane;
    const int64_t pixels = (int64_t)H * W;
    for (int b = 0; b < B; b++, map += pixels) {
        memset(map, 0, (size_t)pixels * sizeof *map);
        for (int c = 0; c < C; c++, gradient += pixels, value += pixels) {
            const float weight = plane_mean(gradient, H, W);
#pragma omp simd
            for (int64_t p = 0; p < pixels; p++)
                map[p] = map[p] + weight * value[p];
        }
        for (int64_t p = 0; p < pixels; p++)
            map[p] = map[p] > 0 ? map[p] : 0;
        normalise(map, low + b, high + b, pixels);
    }
}
