/* ends.cu: into the network (pixels) and out of it (predictions, seeds, maps).
 *
 * A pixel is transformed in double and rounded once; a thread for each. Predictions: a warp for each sample; maps: a
 * block for each sample, which needs some hundred samples in a batch to fill a large device. Bound by memory: a pixel's
 * own bytes over the bus, then 4 written; maps read 4 bytes a channel and pixel.
 * An estimate: it has run on the host executor only, never on a GPU. */
#include "shared.h"
#include "work.h"

/* ---- Pixels ----------------------------------------------------------------------------------------------------- */

static size_t pixel_bytes(DType dtype) {
    switch (dtype) {
    case DT_U8:
    case DT_I8:
    case DT_BOOL: return 1;
    case DT_U16:
    case DT_I16:
    case DT_F16:
    case DT_BF16: return 2;
    case DT_U32:
    case DT_I32:
    case DT_F32: return 4;
    case DT_U64:
    case DT_I64:
    case DT_F64: return 8;
    }
    kernel_fail("pixels: unknown type %d", (int)dtype);
}

static __global__ void transform_pixels(float *out, const void *pixels, PixelTransform t, uint32_t sample, int count,
                                        int B) {
    const uint32_t i = work_index();
    if (i >= sample)
        return;
    const uint32_t plane = (uint32_t)t.height * (uint32_t)t.width, c = i / plane, p = i % plane;
    const uint32_t from = t.channels_last ? p * (uint32_t)t.channels + c : i;
    for (int64_t b = blockIdx.y; b < B; b += gridDim.y)
        out[b * sample + i] = b < count ? transformed(pixel_at(pixels, t.dtype, b * sample + from), &t, (int)c) : 0;
}

void k_input(Lane *lane, float *out, const void *pixels, const PixelTransform *transform, int count, int B) {
    const int64_t sample = (int64_t)transform->channels * transform->height * transform->width;
    const size_t bytes = (size_t)(count * sample) * pixel_bytes(transform->dtype);
    void *staged = gpu_staging(lane, bytes);
    gpu_enter();
    if (bytes > 0)
        GPU_OK(cudaMemcpyAsync(staged, pixels, bytes, cudaMemcpyHostToDevice, lane->stream));
    gpu_launch(transform_pixels, work_grid(sample, B), WORK_THREADS, 0, lane->stream, out, staged, *transform, sample,
               count, B);
}

/* ---- Predictions ------------------------------------------------------------------------------------------------ */

/* The first largest; a NaN is never larger, and nothing is larger than a NaN that comes first. */
static __global__ void predict(int32_t *prediction, const float *logits, int B, int K) {
    const int64_t b = work_line();
    if (b >= B) /* the whole warp */
        return;
    const float *row = logits + b * K;
    int best = work_lane() < K ? work_lane() : 0;
    for (int k = best + 32; k < K; k += 32)
        best = row[k] > row[best] || (row[best] != row[best] && best > 0) ? k : best;
    for (int apart = 16; apart > 0; apart /= 2) {
        const int other = __shfl_xor_sync(0xffffffffu, best, apart), first = best < other ? best : other;
        const int second = best < other ? other : best;
        best = row[second] > row[first] || (row[first] != row[first] && first > 0) ? second : first;
    }
    if (work_lane() == 0)
        prediction[b] = K == 1 ? row[0] > 0 : best;
}

void k_predict(Lane *lane, int32_t *prediction, const float *logits, int B, int K) {
    gpu_launch(predict, gpu_blocks(B, WORK_WARPS), WORK_THREADS, 0, lane->stream, prediction, logits, B, K);
}

static __global__ void set_seeds(float *seed, const int32_t *prediction, int B, uint32_t K) {
    const uint32_t k = work_index();
    for (int64_t b = blockIdx.y; k < K && b < B; b += gridDim.y)
        seed[b * K + k] = K == 1 || (uint32_t)prediction[b] == k ? 1 : 0;
}

void k_seed(Lane *lane, float *seed, const int32_t *prediction, int B, int K) {
    gpu_launch(set_seeds, work_grid(K, B), WORK_THREADS, 0, lane->stream, seed, prediction, B, K);
}

/* ---- Maps ------------------------------------------------------------------------------------------------------- */

/* One map by one block, whose threads each wrote the pixels they read here; none is NaN. */
static __device__ void normalise(float *map, float *low, float *high, int64_t pixels) {
    __shared__ float parts[2][WORK_WARPS];
    float least = INFINITY, most = -INFINITY;
    for (int64_t p = threadIdx.x; p < pixels; p += WORK_THREADS) {
        least = fminf(least, map[p]);
        most = fmaxf(most, map[p]);
    }
    for (int apart = 16; apart > 0; apart /= 2) {
        least = fminf(least, __shfl_xor_sync(0xffffffffu, least, apart));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, apart));
    }
    if (work_lane() == 0) {
        parts[0][threadIdx.x / 32] = least;
        parts[1][threadIdx.x / 32] = most;
    }
    __syncthreads();
    for (int w = 0; w < WORK_WARPS; w++) {
        least = fminf(least, parts[0][w]);
        most = fmaxf(most, parts[1][w]);
    }
    if (threadIdx.x == 0) {
        *low = least;
        *high = most;
    }
    const float range = most - least;
    for (int64_t p = threadIdx.x; p < pixels; p += WORK_THREADS)
        map[p] = range > 0 ? (map[p] - least) / range : 0;
}

static __global__ void make_saliency(float *map, float *low, float *high, const float *gradient, int C,
                                     int64_t pixels) {
    const int64_t b = blockIdx.x;
    map += b * pixels;
    gradient += b * C * pixels;
    for (int64_t p = threadIdx.x; p < pixels; p += WORK_THREADS) {
        float largest = 0;
        for (int c = 0; c < C; c++) {
            const float magnitude = fabsf(gradient[c * pixels + p]);
            largest = magnitude > largest ? magnitude : largest;
        }
        map[p] = largest;
    }
    normalise(map, low + b, high + b, pixels);
}

void k_saliency(Lane *lane, float *map, float *low, float *high, const float *gradient, int B, int C, int H, int W) {
    gpu_launch(make_saliency, (unsigned)B, WORK_THREADS, 0, lane->stream, map, low, high, gradient, C, (int64_t)H * W);
}

constexpr int WEIGHTS = 1024; /* channels whose weights are in shared memory at a time */

static __global__ void make_gradcam(float *map, float *low, float *high, const float *value, const float *gradient,
                                    int C, int64_t pixels) {
    __shared__ float weights[WEIGHTS];
    const int64_t b = blockIdx.x;
    map += b * pixels;
    value += b * C * pixels;
    gradient += b * C * pixels;
    for (int from = 0; from < C; from += WEIGHTS) {
        const int to = from + WEIGHTS < C ? from + WEIGHTS : C;
        for (int c = from + (int)threadIdx.x / 32; c < to; c += WORK_WARPS) {
            float sum = 0;
            for (int64_t p = work_lane(); p < pixels; p += 32)
                sum += gradient[c * pixels + p];
            sum = warp_sum(sum);
            if (work_lane() == 0)
                weights[c - from] = sum / (float)pixels;
        }
        __syncthreads();
        for (int64_t p = threadIdx.x; p < pixels; p += WORK_THREADS) {
            float sum = from > 0 ? map[p] : 0;
            for (int c = from; c < to; c++)
                sum = fmaf(weights[c - from], value[c * pixels + p], sum);
            map[p] = to == C && !(sum > 0) ? 0 : sum;
        }
        __syncthreads();
    }
    normalise(map, low + b, high + b, pixels);
}

void k_gradcam(Lane *lane, float *map, float *low, float *high, const float *value, const float *gradient, int B, int C,
               int H, int W) {
    gpu_launch(make_gradcam, (unsigned)B, WORK_THREADS, 0, lane->stream, map, low, high, value, gradient, C,
               (int64_t)H * W);
}
