/* attribution.c: what is looked at, inputs of passes beside the images themselves, and maps of what the passes give.
 *
 * Each is one pass over a batch's values, that lie in the core's cache. Sums over a sample have one order: the same bits
 * at every level of vectors and for any batch. Noise costs most: about 40 operations a number. */
#include <string.h>

#include "cpu.h"
#include "shared_attribution.h"

/* ---- Targets ---------------------------------------------------------------------------------------------------- */

void k_target(Lane *lane, int32_t *target, int which, const int32_t *prediction, const float *logits,
              const int32_t *labels, int B, int K) {
    (void)lane;
    for (int b = 0; b < B; b++)
        target[b] = target_of(which, prediction[b], logits + (int64_t)b * K, labels ? labels + b : NULL, K);
}

void k_seed(Lane *lane, float *seed, const int32_t *target, const int32_t *against, int B, int K) {
    (void)lane;
    for (int b = 0; b < B; b++)
        for (int k = 0; k < K; k++)
            seed[(int64_t)b * K + k] = seed_of(k, target[b], against ? against + b : NULL, K);
}

void k_score(Lane *lane, float *score, const float *logits, const float *from, const int32_t *target,
             const int32_t *against, int B, int K) {
    (void)lane;
    for (int b = 0; b < B; b++) {
        const int32_t *other = against ? against + b : NULL;
        score[b] = (float)(score_of(logits + (int64_t)b * K, target[b], other, K) -
                           (from ? score_of(from, target[b], other, K) : 0));
    }
}

/* ---- Inputs of passes ------------------------------------------------------------------------------------------- */

CPU_CLONES void k_between(Lane *lane, float *out, const float *x, const float *baseline, float share, int B,
                          int64_t size) {
    (void)lane;
    for (int b = 0; b < B; b++, out += size, x += size)
#pragma omp simd
        for (int64_t i = 0; i < size; i++)
            out[i] = baseline[i] + share * (x[i] - baseline[i]);
}

static inline __attribute__((always_inline)) float range_of(const float *x, int64_t size) {
    float least = x[0], most = x[0];
#pragma omp simd reduction(min : least) reduction(max : most)
    for (int64_t i = 0; i < size; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
    }
    return most - least;
}

CPU_CLONES void k_noisy(Lane *lane, float *out, const float *x, const int64_t *number, uint64_t seed, int draw,
                        float share, int B, int64_t size) {
    (void)lane;
    for (int b = 0; b < B; b++, out += size, x += size) {
        const NoiseKey key = noise_key(seed, number[b], draw);
        const float deviation = share * range_of(x, size);
#pragma omp simd
        for (uint32_t i = 0; i < (uint32_t)size; i++)
            out[i] = x[i] + deviation * noise_at(key, i);
    }
}

void k_occlude(Lane *lane, float *out, const float *x, const float *baseline, const KBox *box, int B, int C, int H,
               int W) {
    (void)lane;
    memcpy(out, x, (size_t)B * (size_t)C * (size_t)H * (size_t)W * sizeof *out);
    const size_t width = (size_t)(box->right - box->left) * sizeof *out;
    for (int b = 0; b < B; b++)
        for (int c = 0; c < C; c++)
            for (int y = box->top; y < box->bottom; y++) {
                const int64_t at = ((int64_t)c * H + y) * W + box->left;
                memcpy(out + (int64_t)b * C * H * W + at, baseline + at, width);
            }
}

/* ---- Sums over passes ------------------------------------------------------------------------------------------- */

CPU_CLONES void k_add_scaled(Lane *lane, float *sum, const float *part, float weight, bool first, int64_t count) {
    (void)lane;
    if (first)
#pragma omp simd
        for (int64_t i = 0; i < count; i++)
            sum[i] = weight * part[i];
    else
#pragma omp simd
        for (int64_t i = 0; i < count; i++)
            sum[i] += weight * part[i];
}

CPU_CLONES void k_product(Lane *lane, float *out, const float *a, const float *b, int64_t count) {
    (void)lane;
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        out[i] = a[i] * b[i];
}

void k_integrated(Lane *lane, float *map, float *delta, int32_t *steps, const float *mean, const float *x,
                  const float *baseline, const float *score, float tolerance, int n, bool first, int B, int64_t size) {
    (void)lane;
    for (int b = 0; b < B; b++, map += size, mean += size, x += size) {
        if (!first && absolute(delta[b]) <= tolerance)
            continue;
        double sum = 0;
        for (int64_t i = 0; i < size; i++) {
            map[i] = (x[i] - baseline[i]) * mean[i];
            sum += (double)map[i];
        }
        delta[b] = (float)(sum - (double)score[b]);
        steps[b] = n;
    }
}

void k_occlusion_add(Lane *lane, float *sum, const float *score, const float *occluded, const KBox *box, bool first,
                     int B, int H, int W) {
    (void)lane;
    if (first)
        memset(sum, 0, (size_t)B * (size_t)H * (size_t)W * sizeof *sum);
    for (int b = 0; b < B; b++)
        for (int y = box->top; y < box->bottom; y++)
            for (int x = box->left; x < box->right; x++)
                sum[((int64_t)b * H + y) * W + x] += score[b] - occluded[b];
}

void k_occlusion_mean(Lane *lane, float *sum, int window, int stride, int B, int H, int W) {
    (void)lane;
    for (int b = 0; b < B; b++)
        for (int y = 0; y < H; y++)
            for (int x = 0; x < W; x++, sum++) {
                const int windows = windows_over(y, window, stride, H) * windows_over(x, window, stride, W);
                *sum = windows > 0 ? *sum / (float)windows : 0;
            }
}

/* ---- Maps ------------------------------------------------------------------------------------------------------- */

CPU_CLONES void k_saliency(Lane *lane, float *map, const float *gradient, int B, int C, int H, int W) {
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
    }
}

/* Rows first, as k_global_average_forward. */
static float plane_sum(const float *plane, int H, int W) {
    float total = 0;
    for (int y = 0; y < H; y++) {
        float row = 0;
        for (int x = 0; x < W; x++)
            row += *plane++;
        total += row;
    }
    return total;
}

static float channel_weight(CamKind kind, const float *value, const float *gradient, int H, int W) {
    if (kind == CAM_GRAD)
        return plane_sum(gradient, H, W) / ((float)H * (float)W);
    const float values = plane_sum(value, H, W);
    float weight = 0;
    for (int64_t p = 0; p < (int64_t)H * W; p++)
        weight += cam_plus_share(gradient[p], values);
    return weight;
}

CPU_CLONES void k_cam(Lane *lane, float *map, CamKind kind, const float *value, const float *gradient, int B, int C,
                      int H, int W) {
    (void)lane;
    const int64_t pixels = (int64_t)H * W;
    for (int b = 0; b < B; b++, map += pixels) {
        memset(map, 0, (size_t)pixels * sizeof *map);
        for (int c = 0; c < C; c++, gradient += pixels, value += pixels) {
            const bool by_channel = kind == CAM_GRAD || kind == CAM_GRAD_PLUS, positive = kind == CAM_LAYER;
            const float weight = by_channel ? channel_weight(kind, value, gradient, H, W) : 0;
            if (by_channel)
#pragma omp simd
                for (int64_t p = 0; p < pixels; p++)
                    map[p] = map[p] + weight * value[p];
            else
#pragma omp simd
                for (int64_t p = 0; p < pixels; p++)
                    map[p] = map[p] + (positive && gradient[p] < 0 ? 0 : gradient[p]) * value[p];
        }
        for (int64_t p = 0; p < pixels; p++)
            map[p] = map[p] > 0 ? map[p] : 0;
    }
}

CPU_CLONES void k_normalise(Lane *lane, float *map, float *low, float *high, int B, int64_t pixels) {
    (void)lane;
    for (int b = 0; b < B; b++, map += pixels) {
        float least = map[0], most = map[0];
#pragma omp simd reduction(min : least) reduction(max : most)
        for (int64_t p = 0; p < pixels; p++) {
            least = map[p] < least ? map[p] : least;
            most = map[p] > most ? map[p] : most;
        }
        low[b] = least;
        high[b] = most;
        const float range = most - least;
#pragma omp simd
        for (int64_t p = 0; p < pixels; p++)
            map[p] = range > 0 ? (map[p] - least) / range : 0;
    }
}
