/* evidence.cu: how far attribution maps can be believed: order of pixels, images taken apart by it, and correlations.
 *
 * A block for each sample, a thread for each pixel of an image; pixels are sorted in global memory by a bitonic network,
 * log2(pixels)^2 / 2 steps over 8 bytes a pixel.
 * An estimate: it has run on the host executor only, never on a GPU. */
#include "shared_attribution.h"
#include "work.h"

/* ---- Order ------------------------------------------------------------------------------------------------------ */

static int64_t power_above(int64_t count) {
    int64_t power = 1;
    while (power < count)
        power *= 2;
    return power;
}

size_t k_rank_scratch(int B, int64_t pixels) {
    return (size_t)B * (size_t)power_above(pixels) * sizeof(uint64_t);
}

/* The first place in the sorted keys whose high half is not below `high`. */
static __device__ int64_t place_of(const uint64_t *keys, uint64_t high, int64_t count) {
    int64_t from = 0, to = count;
    while (from < to) {
        const int64_t middle = (from + to) / 2;
        if (keys[middle] >> 32 < high)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

static __global__ void rank_pixels(int32_t *rank, float *tied, const float *map, uint64_t *keys, int64_t pixels,
                                   int64_t size) {
    const int64_t b = blockIdx.x;
    keys += b * size;
    for (int64_t p = threadIdx.x; p < size; p += WORK_THREADS)
        keys[p] = p < pixels ? falling_key(map[b * pixels + p], (uint32_t)p) : UINT64_MAX;
    __syncthreads();
    for (int64_t run = 2; run <= size; run *= 2)
        for (int64_t apart = run / 2; apart > 0; apart /= 2) {
            for (int64_t p = threadIdx.x; p < size; p += WORK_THREADS) {
                const int64_t q = p ^ apart;
                const uint64_t one = keys[p];
                if (q > p && ((p & run) == 0) == (one > keys[q])) {
                    keys[p] = keys[q];
                    keys[q] = one;
                }
            }
            __syncthreads();
        }
    for (int64_t p = threadIdx.x; p < pixels; p += WORK_THREADS) {
        const uint64_t high = keys[p] >> 32;
        const int64_t at = b * pixels + (uint32_t)keys[p];
        rank[at] = (int32_t)p;
        if (tied)
            tied[at] = (float)(place_of(keys, high, pixels) + place_of(keys, high + 1, pixels) - 1) / 2;
    }
}

void k_rank(Lane *lane, int32_t *rank, float *tied, const float *map, int B, int64_t pixels, void *scratch) {
    gpu_launch(rank_pixels, (unsigned)B, WORK_THREADS, 0, lane->stream, rank, tied, map,
               static_cast<uint64_t *>(scratch), pixels, power_above(pixels));
}

/* ---- Images taken apart ----------------------------------------------------------------------------------------- */

static __global__ void reveal(float *out, const float *x, const float *baseline, const int32_t *rank, int64_t cut,
                              bool insertion, int B, uint32_t pixels, uint32_t size) {
    const uint32_t i = work_index();
    for (int64_t b = blockIdx.y; i < size && b < B; b += gridDim.y)
        out[b * size + i] = (rank[b * pixels + i % pixels] < cut) == insertion ? x[b * size + i] : baseline[i];
}

void k_reveal(Lane *lane, float *out, const float *x, const float *baseline, const int32_t *rank, int64_t cut,
              bool insertion, int B, int C, int64_t pixels) {
    gpu_launch(reveal, work_grid(C * pixels, B), WORK_THREADS, 0, lane->stream, out, x, baseline, rank, cut, insertion,
               B, pixels, C * pixels);
}

static __global__ void add_probability(float *area, const float *logits, const int32_t *target, float weight,
                                       bool first, int K) {
    __shared__ double parts[WORK_WARPS];
    const int64_t b = blockIdx.x;
    const float *row = logits + b * K;
    double sum = 0;
    for (int k = threadIdx.x; k < K && K > 1; k += WORK_THREADS)
        sum += exp((double)row[k] - (double)row[target[b]]);
    sum = block_sum(sum, parts);
    if (K == 1)
        sum = 1 + exp(-(double)row[0]);
    if (threadIdx.x == 0)
        area[b] = (first ? 0 : area[b]) + weight * (float)(1 / sum);
}

void k_add_probability(Lane *lane, float *area, const float *logits, const int32_t *target, float weight, bool first,
                       int B, int K) {
    gpu_launch(add_probability, (unsigned)B, WORK_THREADS, 0, lane->stream, area, logits, target, weight, first, K);
}

/* ---- Measures of maps ------------------------------------------------------------------------------------------- */

static __global__ void sum_channels(float *sum, const float *map, int B, int C, uint32_t pixels) {
    const uint32_t i = work_index();
    for (int64_t b = blockIdx.y; i < pixels && b < B; b += gridDim.y) {
        float total = map[b * C * pixels + i];
        for (int c = 1; c < C; c++)
            total += map[(b * C + c) * pixels + i];
        sum[b * pixels + i] = total;
    }
}

void k_channel_sum(Lane *lane, float *sum, const float *map, int B, int C, int64_t pixels) {
    gpu_launch(sum_channels, work_grid(pixels, B), WORK_THREADS, 0, lane->stream, sum, map, B, C, pixels);
}

static __global__ void take_gini(float *gini, const float *map, const int32_t *rank, int64_t pixels) {
    __shared__ double parts[WORK_WARPS];
    const int64_t b = blockIdx.x;
    double sum = 0, weighted = 0;
    for (int64_t p = threadIdx.x; p < pixels; p += WORK_THREADS) {
        const double value = map[b * pixels + p];
        sum += value;
        weighted += (double)(pixels - 1 - 2 * (int64_t)rank[b * pixels + p]) * value;
    }
    sum = block_sum(sum, parts);
    weighted = block_sum(weighted, parts);
    if (threadIdx.x == 0)
        gini[b] = sum > 0 ? (float)(weighted / ((double)pixels * sum)) : 0;
}

void k_gini(Lane *lane, float *gini, const float *map, const int32_t *rank, int B, int64_t pixels) {
    gpu_launch(take_gini, (unsigned)B, WORK_THREADS, 0, lane->stream, gini, map, rank, pixels);
}

static __global__ void correlate(float *result, int64_t step, const float *a, const float *b, int64_t pixels) {
    __shared__ double parts[WORK_WARPS];
    const int64_t i = blockIdx.x;
    const double mean = (double)(pixels - 1) / 2;
    double both = 0, first = 0, second = 0;
    for (int64_t p = threadIdx.x; p < pixels; p += WORK_THREADS) {
        const double x = (double)a[i * pixels + p] - mean, y = (double)b[i * pixels + p] - mean;
        both += x * y;
        first += x * x;
        second += y * y;
    }
    both = block_sum(both, parts);
    first = block_sum(first, parts);
    second = block_sum(second, parts);
    if (threadIdx.x == 0)
        result[i * step] = correlation(both, first, second);
}

void k_rank_correlation(Lane *lane, float *result, int64_t step, const float *a, const float *b, int B,
                        int64_t pixels) {
    gpu_launch(correlate, (unsigned)B, WORK_THREADS, 0, lane->stream, result, step, a, b, pixels);
}
