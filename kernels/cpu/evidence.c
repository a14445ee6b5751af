/* evidence.c: how far attribution maps can be believed: order of pixels, images taken apart by it, and correlations.
 *
 * Pixels are sorted by a radix sort of 4 passes over 8 bits, some 20 operations a pixel. Sums are in double and have one
 * order: the same bits for any batch. */
#include <math.h>
#include <string.h>

#include "cpu.h"
#include "shared_attribution.h"

/* ---- Order ------------------------------------------------------------------------------------------------------ */

size_t k_rank_scratch(int B, int64_t pixels) {
    (void)B; /* one sample after the other */
    return 2 * (size_t)pixels * sizeof(uint64_t);
}

/* By their high halves, 8 bits at a time from `shift`; those of equal bits keep their order. */
static void sort_by(uint64_t *to, const uint64_t *from, int shift, int64_t count) {
    int64_t start[257] = {0};
    for (int64_t i = 0; i < count; i++)
        start[(from[i] >> shift & 255) + 1]++;
    for (int d = 0; d < 256; d++)
        start[d + 1] += start[d];
    for (int64_t i = 0; i < count; i++)
        to[start[from[i] >> shift & 255]++] = from[i];
}

void k_rank(Lane *lane, int32_t *rank, float *tied, const float *map, int B, int64_t pixels, void *scratch) {
    (void)lane;
    uint64_t *key = scratch, *other = key + pixels;
    for (int b = 0; b < B; b++, rank += pixels, map += pixels) {
        for (int64_t p = 0; p < pixels; p++)
            key[p] = falling_key(map[p], (uint32_t)p);
        for (int shift = 32; shift < 64; shift += 16) {
            sort_by(other, key, shift, pixels);
            sort_by(key, other, shift + 8, pixels);
        }
        for (int64_t from = 0, to; from < pixels; from = to) {
            for (to = from; to < pixels && key[to] >> 32 == key[from] >> 32; to++)
                rank[(uint32_t)key[to]] = (int32_t)to;
            for (int64_t i = from; tied && i < to; i++)
                tied[b * pixels + (uint32_t)key[i]] = (float)(from + to - 1) / 2;
        }
    }
}

/* ---- Images taken apart ----------------------------------------------------------------------------------------- */

void k_reveal(Lane *lane, float *out, const float *x, const float *baseline, const int32_t *rank, int64_t cut,
              bool insertion, int B, int C, int64_t pixels) {
    (void)lane;
    for (int b = 0; b < B; b++, rank += pixels)
        for (int c = 0; c < C; c++, out += pixels, x += pixels)
#pragma omp simd
            for (int64_t p = 0; p < pixels; p++)
                out[p] = (rank[p] < cut) == insertion ? x[p] : baseline[c * pixels + p];
}

void k_add_probability(Lane *lane, float *area, const float *logits, const int32_t *target, float weight, bool first,
                       int B, int K) {
    (void)lane;
    for (int b = 0; b < B; b++) {
        const float *row = logits + (int64_t)b * K;
        double sum = K == 1 ? 1 + exp(-(double)row[0]) : 0;
        for (int k = 0; k < K && K > 1; k++)
            sum += exp((double)row[k] - (double)row[target[b]]);
        area[b] = (first ? 0 : area[b]) + weight * (float)(1 / sum);
    }
}

/* ---- Measures of maps ------------------------------------------------------------------------------------------- */

void k_channel_sum(Lane *lane, float *sum, const float *map, int B, int C, int64_t pixels) {
    (void)lane;
    for (int b = 0; b < B; b++, sum += pixels)
        for (int c = 0; c < C; c++, map += pixels)
#pragma omp simd
            for (int64_t p = 0; p < pixels; p++)
                sum[p] = c == 0 ? map[p] : sum[p] + map[p];
}

void k_gini(Lane *lane, float *gini, const float *map, const int32_t *rank, int B, int64_t pixels) {
    (void)lane;
    for (int b = 0; b < B; b++, map += pixels, rank += pixels) {
        double sum = 0, weighted = 0;
        for (int64_t p = 0; p < pixels; p++) {
            sum += (double)map[p];
            weighted += (double)(pixels - 1 - 2 * (int64_t)rank[p]) * (double)map[p];
        }
        gini[b] = sum > 0 ? (float)(weighted / ((double)pixels * sum)) : 0;
    }
}

void k_rank_correlation(Lane *lane, float *result, int64_t step, const float *a, const float *b, int B,
                        int64_t pixels) {
    (void)lane;
    const double mean = (double)(pixels - 1) / 2;
    for (int i = 0; i < B; i++, a += pixels, b += pixels) {
        double both = 0, first = 0, second = 0;
        for (int64_t p = 0; p < pixels; p++) {
            const double x = (double)a[p] - mean, y = (double)b[p] - mean;
            both += x * y;
            first += x * x;
            second += y * y;
        }
        result[i * step] = correlation(both, first, second);
    }
}
