/* attribution.cu: what is looked at, inputs of passes beside the images themselves, and maps of what the passes give.
 *
 * A thread for each number of an input; a block for each sample where a sum or a bound over it is needed, which takes
 * some hundred samples in a batch to fill a large device. Bound by memory: maps read 4 bytes a channel and pixel.
 * An estimate: it has run on the host executor only, never on a GPU. */
#include "shared_attribution.h"
#include "work.h"

/* ---- Targets ---------------------------------------------------------------------------------------------------- */

static __global__ void choose_target(int32_t *target, int which, const int32_t *prediction, const float *logits,
                                     const int32_t *labels, int B, int K) {
    const int64_t b = work_index();
    if (b < B)
        target[b] = target_of(which, prediction[b], logits + b * K, labels ? labels + b : NULL, K);
}

void k_target(Lane *lane, int32_t *target, int which, const int32_t *prediction, const float *logits,
              const int32_t *labels, int B, int K) {
    gpu_launch(choose_target, gpu_blocks(B, WORK_THREADS), WORK_THREADS, 0, lane->stream, target, which, prediction,
               logits, labels, B, K);
}

static __global__ void set_seeds(float *seed, const int32_t *target, const int32_t *against, int B, uint32_t K) {
    const uint32_t k = work_index();
    for (int64_t b = blockIdx.y; k < K && b < B; b += gridDim.y)
        seed[b * K + k] = seed_of((int)k, target[b], against ? against + b : NULL, (int)K);
}

void k_seed(Lane *lane, float *seed, const int32_t *target, const int32_t *against, int B, int K) {
    gpu_launch(set_seeds, work_grid(K, B), WORK_THREADS, 0, lane->stream, seed, target, against, B, K);
}

static __global__ void take_score(float *score, const float *logits, const float *from, const int32_t *target,
                                  const int32_t *against, int B, int K) {
    const int64_t b = work_index();
    if (b >= B)
        return;
    const int32_t *other = against ? against + b : NULL;
    score[b] =
        (float)(score_of(logits + b * K, target[b], other, K) - (from ? score_of(from, target[b], other, K) : 0));
}

void k_score(Lane *lane, float *score, const float *logits, const float *from, const int32_t *target,
             const int32_t *against, int B, int K) {
    gpu_launch(take_score, gpu_blocks(B, WORK_THREADS), WORK_THREADS, 0, lane->stream, score, logits, from, target,
               against, B, K);
}

/* ---- Inputs of passes ------------------------------------------------------------------------------------------- */

static __global__ void lay_between(float *out, const float *x, const float *baseline, float share, int B,
                                   uint32_t size) {
    const uint32_t i = work_index();
    for (int64_t b = blockIdx.y; i < size && b < B; b += gridDim.y)
        out[b * size + i] = baseline[i] + share * (x[b * size + i] - baseline[i]);
}

void k_between(Lane *lane, float *out, const float *x, const float *baseline, float share, int B, int64_t size) {
    gpu_launch(lay_between, work_grid(size, B), WORK_THREADS, 0, lane->stream, out, x, baseline, share, B, size);
}

/* Of the values that the block's threads have seen; every thread gets both. */
static __device__ void block_bounds(float *least, float *most) {
    __shared__ float parts[2][WORK_WARPS];
    for (int apart = 16; apart > 0; apart /= 2) {
        *least = fminf(*least, __shfl_xor_sync(0xffffffffu, *least, apart));
        *most = fmaxf(*most, __shfl_xor_sync(0xffffffffu, *most, apart));
    }
    if (work_lane() == 0) {
        parts[0][threadIdx.x / 32] = *least;
        parts[1][threadIdx.x / 32] = *most;
    }
    __syncthreads();
    for (int w = 0; w < WORK_WARPS; w++) {
        *least = fminf(*least, parts[0][w]);
        *most = fmaxf(*most, parts[1][w]);
    }
}

static __device__ void bounds_of(float *least, float *most, const float *x, int64_t size) {
    *least = INFINITY;
    *most = -INFINITY;
    for (int64_t i = threadIdx.x; i < size; i += WORK_THREADS) {
        *least = fminf(*least, x[i]);
        *most = fmaxf(*most, x[i]);
    }
    block_bounds(least, most);
}

static __global__ void add_noise(float *out, const float *x, const int64_t *number, uint64_t seed, int draw,
                                 float share, int64_t size) {
    const int64_t b = blockIdx.x;
    const NoiseKey key = noise_key(seed, number[b], draw);
    float least, most;
    bounds_of(&least, &most, x + b * size, size);
    const float deviation = share * (most - least);
    for (int64_t i = threadIdx.x; i < size; i += WORK_THREADS)
        out[b * size + i] = x[b * size + i] + deviation * noise_at(key, (uint32_t)i);
}

void k_noisy(Lane *lane, float *out, const float *x, const int64_t *number, uint64_t seed, int draw, float share, int B,
             int64_t size) {
    gpu_launch(add_noise, (unsigned)B, WORK_THREADS, 0, lane->stream, out, x, number, seed, draw, share, size);
}

static __global__ void put_box(float *out, const float *x, const float *baseline, KBox box, int B, uint32_t plane,
                               uint32_t width, uint32_t size) {
    const uint32_t i = work_index();
    if (i >= size)
        return;
    const int row = (int)(i % plane / width), column = (int)(i % width);
    const bool in = row >= box.top && row < box.bottom && column >= box.left && column < box.right;
    for (int64_t b = blockIdx.y; b < B; b += gridDim.y)
        out[b * size + i] = in ? baseline[i] : x[b * size + i];
}

void k_occlude(Lane *lane, float *out, const float *x, const float *baseline, const KBox *box, int B, int C, int H,
               int W) {
    const int64_t plane = (int64_t)H * W;
    gpu_launch(put_box, work_grid(C * plane, B), WORK_THREADS, 0, lane->stream, out, x, baseline, *box, B, plane, W,
               C * plane);
}

/* ---- Sums over passes ------------------------------------------------------------------------------------------- */

static __global__ void add_scaled(float *sum, const float *part, float weight, bool first, int64_t count) {
    const int64_t i = (int64_t)blockIdx.x * WORK_THREADS + threadIdx.x;
    if (i < count)
        sum[i] = first ? weight * part[i] : sum[i] + weight * part[i];
}

void k_add_scaled(Lane *lane, float *sum, const float *part, float weight, bool first, int64_t count) {
    gpu_launch(add_scaled, gpu_blocks(count, WORK_THREADS), WORK_THREADS, 0, lane->stream, sum, part, weight, first,
               count);
}

static __global__ void multiply(float *out, const float *a, const float *b, int64_t count) {
    const int64_t i = (int64_t)blockIdx.x * WORK_THREADS + threadIdx.x;
    if (i < count)
        out[i] = a[i] * b[i];
}

void k_product(Lane *lane, float *out, const float *a, const float *b, int64_t count) {
    gpu_launch(multiply, gpu_blocks(count, WORK_THREADS), WORK_THREADS, 0, lane->stream, out, a, b, count);
}

static __global__ void integrate(float *map, float *delta, int32_t *steps, const float *mean, const float *x,
                                 const float *baseline, const float *score, float tolerance, int n, bool first,
                                 int64_t size) {
    __shared__ double parts[WORK_WARPS];
    const int64_t b = blockIdx.x;
    const bool leave = !first && absolute(delta[b]) <= tolerance; /* the whole block */
    double sum = 0;
    for (int64_t i = threadIdx.x; !leave && i < size; i += WORK_THREADS) {
        map[b * size + i] = (x[b * size + i] - baseline[i]) * mean[b * size + i];
        sum += (double)map[b * size + i];
    }
    sum = block_sum(sum, parts);
    if (!leave && threadIdx.x == 0) {
        delta[b] = (float)(sum - (double)score[b]);
        steps[b] = n;
    }
}

void k_integrated(Lane *lane, float *map, float *delta, int32_t *steps, const float *mean, const float *x,
                  const float *baseline, const float *score, float tolerance, int n, bool first, int B, int64_t size) {
    gpu_launch(integrate, (unsigned)B, WORK_THREADS, 0, lane->stream, map, delta, steps, mean, x, baseline, score,
               tolerance, n, first, size);
}

static __global__ void add_occlusion(float *sum, const float *score, const float *occluded, KBox box, bool first, int B,
                                     uint32_t width, uint32_t size) {
    const uint32_t i = work_index();
    if (i >= size)
        return;
    const int row = (int)(i / width), column = (int)(i % width);
    const bool in = row >= box.top && row < box.bottom && column >= box.left && column < box.right;
    for (int64_t b = blockIdx.y; b < B; b += gridDim.y) {
        const float before = first ? 0 : sum[b * size + i];
        sum[b * size + i] = in ? before + (score[b] - occluded[b]) : before;
    }
}

void k_occlusion_add(Lane *lane, float *sum, const float *score, const float *occluded, const KBox *box, bool first,
                     int B, int H, int W) {
    const int64_t plane = (int64_t)H * W;
    gpu_launch(add_occlusion, work_grid(plane, B), WORK_THREADS, 0, lane->stream, sum, score, occluded, *box, first, B,
               W, plane);
}

static __global__ void average_windows(float *sum, int window, int stride, int B, int H, int W) {
    const uint32_t i = work_index(), size = (uint32_t)H * (uint32_t)W;
    if (i >= size)
        return;
    const int row = (int)(i / (uint32_t)W), column = (int)(i % (uint32_t)W);
    const int windows = windows_over(row, window, stride, H) * windows_over(column, window, stride, W);
    for (int64_t b = blockIdx.y; b < B; b += gridDim.y)
        sum[b * size + i] = windows > 0 ? sum[b * size + i] / (float)windows : 0;
}

void k_occlusion_mean(Lane *lane, float *sum, int window, int stride, int B, int H, int W) {
    gpu_launch(average_windows, work_grid((int64_t)H * W, B), WORK_THREADS, 0, lane->stream, sum, window, stride, B, H,
               W);
}

/* ---- Maps ------------------------------------------------------------------------------------------------------- */

static __global__ void make_saliency(float *map, const float *gradient, int C, int64_t pixels) {
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
}

void k_saliency(Lane *lane, float *map, const float *gradient, int B, int C, int H, int W) {
    gpu_launch(make_saliency, (unsigned)B, WORK_THREADS, 0, lane->stream, map, gradient, C, (int64_t)H * W);
}

constexpr int WEIGHTS = 1024; /* channels whose weights are in shared memory at a time */

/* A warp's; every lane gets it. */
static __device__ float channel_weight(CamKind kind, const float *value, const float *gradient, int64_t pixels) {
    float values = 0, sum = 0;
    for (int64_t p = work_lane(); kind == CAM_GRAD_PLUS && p < pixels; p += 32)
        values += value[p];
    values = warp_sum(values);
    for (int64_t p = work_lane(); p < pixels; p += 32)
        sum += kind == CAM_GRAD_PLUS ? cam_plus_share(gradient[p], values) : gradient[p];
    sum = warp_sum(sum);
    return kind == CAM_GRAD_PLUS ? sum : sum / (float)pixels;
}

static __global__ void make_cam(float *map, CamKind kind, const float *value, const float *gradient, int C,
                                int64_t pixels) {
    __shared__ float weights[WEIGHTS];
    const int64_t b = blockIdx.x;
    const bool by_channel = kind == CAM_GRAD || kind == CAM_GRAD_PLUS;
    map += b * pixels;
    value += b * C * pixels;
    gradient += b * C * pixels;
    for (int from = 0; from < C; from += WEIGHTS) {
        const int to = from + WEIGHTS < C ? from + WEIGHTS : C;
        for (int c = from + (int)threadIdx.x / 32; by_channel && c < to; c += WORK_WARPS) {
            const float weight = channel_weight(kind, value + c * pixels, gradient + c * pixels, pixels);
            if (work_lane() == 0)
                weights[c - from] = weight;
        }
        __syncthreads();
        for (int64_t p = threadIdx.x; p < pixels; p += WORK_THREADS) {
            float sum = from > 0 ? map[p] : 0;
            for (int c = from; c < to; c++) {
                const float g = by_channel ? weights[c - from] : gradient[c * pixels + p];
                sum = fmaf(kind == CAM_LAYER && g < 0 ? 0 : g, value[c * pixels + p], sum);
            }
            map[p] = to == C && !(sum > 0) ? 0 : sum;
        }
        __syncthreads();
    }
}

void k_cam(Lane *lane, float *map, CamKind kind, const float *value, const float *gradient, int B, int C, int H,
           int W) {
    gpu_launch(make_cam, (unsigned)B, WORK_THREADS, 0, lane->stream, map, kind, value, gradient, C, (int64_t)H * W);
}

static __global__ void normalise(float *map, float *low, float *high, int64_t pixels) {
    map += blockIdx.x * pixels;
    float least, most;
    bounds_of(&least, &most, map, pixels);
    if (threadIdx.x == 0) {
        low[blockIdx.x] = least;
        high[blockIdx.x] = most;
    }
    const float range = most - least;
    for (int64_t p = threadIdx.x; p < pixels; p += WORK_THREADS)
        map[p] = range > 0 ? (map[p] - least) / range : 0;
}

void k_normalise(Lane *lane, float *map, float *low, float *high, int B, int64_t pixels) {
    gpu_launch(normalise, (unsigned)B, WORK_THREADS, 0, lane->stream, map, low, high, pixels);
}
