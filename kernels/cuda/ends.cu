/* ends.cu: into the network (pixels) and out of it (predictions).
 *
 * A pixel is transformed in double and rounded once; a thread for each. Predictions: a warp for each sample. Bound by
 * memory: a pixel's own bytes over the bus, then 4 written.
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
