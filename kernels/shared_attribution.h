/* shared_attribution.h: noise from a counter, and what else the attribution kernels of both builds compute by the same
 * lines. */
#ifndef CNNSCOPE_SHARED_ATTRIBUTION_H
#define CNNSCOPE_SHARED_ATTRIBUTION_H

#include "functions.h"

/* ---- Noise -------------------------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t first, second;
} NoiseKey;

ON_BOTH NoiseKey noise_key(uint64_t seed, int64_t sample, int draw) { /* splitmix64 of the key, Steele et al. 2014 */
    uint64_t z = seed * 0xd1342543de82ef95u + (uint64_t)sample * 0x9e3779b97f4a7c15u +
                 (uint64_t)draw * 0xbf58476d1ce4e5b9u + 0x94d049bb133111ebu;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z = z ^ z >> 31;
    const NoiseKey key = {(uint32_t)(z >> 32), (uint32_t)z};
    return key;
}

ON_BOTH uint32_t mixed_bits(uint32_t x) { /* lowbias32, Wellons 2018 */
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* ln x for 2^-126 <= x <= 1: x = 2^n m, m in [sqrt(1/2), sqrt 2), by the series in s = (m - 1) / (m + 1). */
ON_BOTH float natural_log(float x) {
    const uint32_t bits = float_as_bits(x) - 0x3f3504f3u; /* sqrt(1/2) */
    const float n = (float)((int32_t)bits >> 23), m = bits_as_float((bits & 0x007fffffu) + 0x3f3504f3u);
    const float s = (m - 1.0f) / (m + 1.0f), q = s * s;
    float p = fmadd(0.171478495f, q, 0.22301501f); /* as soft_plus */
    p = fmadd(p, q, 0.28568396f);
    p = fmadd(p, q, 0.400000542f);
    p = fmadd(p, q, 0.666666687f);
    return fmadd(n, 0.693147182f, fmadd(s * q, p, 2.0f * s));
}

/* The standard normal deviate at which the distribution is (1 + x) / 2, |x| < 1: sqrt 2 erfinv x, Giles 2010. */
ON_BOTH float normal_at(float x) {
    const float w = -natural_log((1.0f - x) * (1.0f + x)), near = w - 2.5f, far = sqrtf(w > 0.0f ? w : 0.0f) - 3.0f;
    float p = fmadd(2.81022636e-08f, near, 3.43273939e-07f);
    p = fmadd(p, near, -3.5233877e-06f);
    p = fmadd(p, near, -4.39150654e-06f);
    p = fmadd(p, near, 0.00021858087f);
    p = fmadd(p, near, -0.00125372503f);
    p = fmadd(p, near, -0.00417768164f);
    p = fmadd(p, near, 0.246640727f);
    p = fmadd(p, near, 1.50140941f);
    float r = fmadd(-0.000200214257f, far, 0.000100950558f);
    r = fmadd(r, far, 0.00134934322f);
    r = fmadd(r, far, -0.00367342844f);
    r = fmadd(r, far, 0.00573950773f);
    r = fmadd(r, far, -0.0076224613f);
    r = fmadd(r, far, 0.00943887047f);
    r = fmadd(r, far, 1.00167406f);
    r = fmadd(r, far, 2.83297682f);
    return 1.41421356f * (w < 5.0f ? p : r) * x;
}

/* Normal deviate number i of a key: the centre of one of 2^24 equal parts of the distribution. */
ON_BOTH float noise_at(NoiseKey key, uint32_t i) {
    const uint32_t part = mixed_bits(mixed_bits(i + key.first) ^ key.second) >> 8;
    return normal_at((float)((int32_t)(2 * part + 1) - (1 << 24)) * 0x1p-24f);
}

/* ---- Outputs and windows ------------------------------------------------------------------------------------------ */

ON_BOTH int target_of(int which, int prediction, const float *logits, const int32_t *label, int K) {
    if (K == 1 || which == TARGET_PREDICTED || (which == TARGET_LABEL && (!label || *label < 0)))
        return prediction;
    if (which != TARGET_RUNNER_UP)
        return which == TARGET_LABEL ? *label : which;
    int second = prediction == 0;
    for (int k = second + 1; k < K; k++)
        second = k != prediction && logits[k] > logits[second] ? k : second;
    return second;
}

ON_BOTH float seed_of(int k, int target, const int32_t *against, int K) {
    return K == 1 ? 1.0f : (float)((k == target) - (against && k == *against));
}

ON_BOTH double score_of(const float *logits, int target, const int32_t *against, int K) {
    return K == 1 ? (double)logits[0] : (double)logits[target] - (against ? (double)logits[*against] : 0);
}

/* How many windows, at 0, stride, 2 stride ... up to the first that reaches the end, hold cell i of n. */
ON_BOTH int windows_over(int i, int window, int stride, int n) {
    const int last = n > window ? (n - window + stride - 1) / stride : 0;
    const int from = i >= window ? (i - window) / stride + 1 : 0, to = i / stride;
    return (to < last ? to : last) - from + 1;
}

/* Keys in rising order are values in falling order, equals (0 and -0 among them) by index. */
ON_BOTH uint64_t falling_key(float value, uint32_t index) {
    const uint32_t bits = float_as_bits(value + 0.0f);
    const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)~rising << 32 | index;
}

/* Of sums of products of differences from the means; 0 where one of both does not vary. */
ON_BOTH float correlation(double both, double first, double second) {
    return first > 0 && second > 0 ? (float)(both / sqrt(first * second)) : 0;
}

/* A channel's weight in Grad-CAM++ is the sum of these over its pixels. */
ON_BOTH float cam_plus_share(float gradient, float sum_of_values) {
    const float square = gradient * gradient;
    return gradient > 0 ? gradient * (square / (2 * square + sum_of_values * (square * gradient) + 1e-6f)) : 0;
}

#endif
