/* pool.cu: max, average and global pooling; max pooling with the batch norm and the relu before it, in one pass.
 *
 * A thread for each number that is written: also backward, where an input sums what the windows it lies in send it, in
 * the order of the windows, so that nothing is added by two threads. Ties, padding and NaN as in PyTorch, see
 * kernels/cpu/pool.c. What max pooling keeps is the position in the (cut) window, two bytes an output. Global pooling: a
 * warp for each plane.
 * Bound by memory: 4 bytes for each number read and written (windows overlap in the cache) and 2 for a position; a
 * window's value is about 6 instructions, backward about 12. An estimate: it has run on the host executor only, never on
 * a GPU. */
#include <stdlib.h>

#include "shared.h"
#include "work.h"

namespace {

/* What is done to the values before they are pooled. */
struct Before {
    float *scale, *shift; /* (channels), or NULL both */
    bool relu;
};

struct Place {
    int channel, y, x;
};

} // namespace

struct KMaxPool {
    ConvShape shape;
    Before before;
    int batch;
};

static __device__ __forceinline__ Place place_of(uint32_t i, int height, int width) {
    const int pixels = height * width, p = (int)(i % (uint32_t)pixels);
    return {(int)(i / (uint32_t)pixels), p / width, p % width};
}

KMaxPool *k_max_pool_new(Layout layout, const ConvShape *shape, int batch, bool relu, const float *scale,
                         const float *shift) {
    (void)layout;
    if ((int64_t)shape->kernel_height * shape->kernel_width > UINT16_MAX)
        kernel_fail("max pooling: a window of %d x %d is larger than the 65535 values supported", shape->kernel_height,
                 shape->kernel_width);
    KMaxPool *pool = work_new<KMaxPool>();
    pool->shape = *shape;
    pool->batch = batch;
    const size_t channels = (size_t)shape->in_channels;
    pool->before = {work_constant(scale, channels), work_constant(scale ? shift : NULL, channels), relu};
    return pool;
}

void k_max_pool_free(KMaxPool *pool) {
    if (!pool)
        return;
    dev_free(pool->before.scale);
    dev_free(pool->before.shift);
    free(pool);
}

static int64_t in_sample(const ConvShape *s) {
    return (int64_t)s->in_channels * s->in_height * s->in_width;
}

static int64_t out_sample(const ConvShape *s) {
    return (int64_t)s->out_channels * s->out_height * s->out_width;
}

size_t k_max_pool_saved(const KMaxPool *pool) {
    return (size_t)(pool->batch * out_sample(&pool->shape)) * sizeof(uint16_t);
}

/* Two roundings, as in affine.cu. */
static __device__ __forceinline__ float scaled(float value, bool scales, float by, float more) {
    return scales ? __fadd_rn(__fmul_rn(value, by), more) : value;
}

/* The relu comes last: the largest number is the same before and after it, and where it is not above 0 no gradient
 * passes, whichever position had it: MAX_POOL_NOWHERE is kept. */
static __global__ void max_forward(float *out, uint16_t *saved, const float *in, ConvShape s, Before before,
                                   uint32_t sample, int64_t batch) {
    const uint32_t i = work_index();
    if (i >= sample)
        return;
    const Place at = place_of(i, s.out_height, s.out_width);
    const Window w = window_at(&s, at.y, at.x);
    const int64_t in_plane = (int64_t)s.in_height * s.in_width;
    const bool scales = before.scale;
    const float by = scales ? before.scale[at.channel] : 1, more = scales ? before.shift[at.channel] : 0;
    for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
        const float *plane = in + (b * s.in_channels + at.channel) * in_plane;
        float best = scaled(plane[(int64_t)w.top * s.in_width + w.left], scales, by, more);
        int position = 0, here = 0;
        for (int y = w.top; y < w.bottom; y += apart(s.dilation_height))
            for (int x = w.left; x < w.right; x += apart(s.dilation_width), here++) {
                const float value = scaled(plane[(int64_t)y * s.in_width + x], scales, by, more);
                const bool better = value > best || value != value;
                best = better ? value : best;
                position = better ? here : position;
            }
        out[b * sample + i] = before.relu && best <= 0 ? 0 : best;
        if (saved)
            saved[b * sample + i] = (uint16_t)(before.relu && !(best > 0) ? MAX_POOL_NOWHERE : position);
    }
}

namespace {

/* The windows of one axis that position `at` may lie in: from, from + 1 ... to - 1. */
struct Reach {
    int from, to;
};

} // namespace

static __device__ __forceinline__ Reach reach(int at, int pad, int span, int stride, int out_size) {
    const int first = at + pad - (span - 1), last = (at + pad) / stride;
    return {first > 0 ? (first + stride - 1) / stride : 0, last < out_size ? last + 1 : out_size};
}

static __global__ void max_backward(float *din, const float *dout, const uint16_t *saved, ConvShape s, Before before,
                                    bool guided, uint32_t sample, int64_t batch) {
    const uint32_t i = work_index();
    if (i >= sample)
        return;
    const int down = apart(s.dilation_height), across = apart(s.dilation_width);
    const Place at = place_of(i, s.in_height, s.in_width);
    const Reach rows = reach(at.y, s.pad_top, (s.kernel_height - 1) * down + 1, s.stride_height, s.out_height);
    const Reach columns = reach(at.x, s.pad_left, (s.kernel_width - 1) * across + 1, s.stride_width, s.out_width);
    for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
        const int64_t plane = (b * s.out_channels + at.channel) * s.out_height * s.out_width;
        float sum = 0;
        for (int y = rows.from; y < rows.to; y++)
            for (int x = columns.from; x < columns.to; x++) {
                const Window w = window_at(&s, y, x);
                const int below = at.y - w.top, right = at.x - w.left;
                const bool in_window = below >= 0 && right >= 0 && at.y < w.bottom && at.x < w.right &&
                                       below % down == 0 && right % across == 0;
                const int width = (w.right - w.left + across - 1) / across;
                const int64_t from = plane + (int64_t)y * s.out_width + x;
                if (in_window && saved[from] == below / down * width + right / across)
                    sum += dout[from];
            }
        sum = guided && before.relu && sum < 0 ? 0 : sum;
        din[b * sample + i] = before.scale ? sum * before.scale[at.channel] : sum;
    }
}

void k_max_pool_forward(Lane *lane, const KMaxPool *pool, float *out, void *saved, const float *in) {
    const int64_t sample = out_sample(&pool->shape);
    gpu_launch(max_forward, work_grid(sample, pool->batch), WORK_THREADS, 0, lane->stream, out,
               static_cast<uint16_t *>(saved), in, pool->shape, pool->before, sample, pool->batch);
}

void k_max_pool_backward(Lane *lane, const KMaxPool *pool, float *din, const float *dout, const void *saved,
                         bool guided) {
    const int64_t sample = in_sample(&pool->shape);
    gpu_launch(max_backward, work_grid(sample, pool->batch), WORK_THREADS, 0, lane->stream, din, dout,
               static_cast<const uint16_t *>(saved), pool->shape, pool->before, guided, sample, pool->batch);
}

static __global__ void plane_averages(float *out, const float *in, int64_t planes, int pixels) {
    const int64_t plane = work_line();
    if (plane >= planes) /* the whole warp */
        return;
    float sum = 0;
    for (int p = work_lane(); p < pixels; p += 32)
        sum += in[plane * pixels + p];
    sum = warp_sum(sum);
    if (work_lane() == 0)
        out[plane] = sum / (float)pixels;
}

static __global__ void spread_average(float *din, const float *dout, uint32_t pixels, int64_t planes) {
    const uint32_t p = work_index();
    for (int64_t plane = blockIdx.y; p < pixels && plane < planes; plane += gridDim.y)
        din[plane * pixels + p] = dout[plane] / (float)pixels;
}

void k_global_average_forward(Lane *lane, float *out, const float *in, Layout in_layout, int B, int C, int H, int W) {
    (void)in_layout;
    const int64_t planes = (int64_t)B * C;
    gpu_launch(plane_averages, gpu_blocks(planes, WORK_WARPS), WORK_THREADS, 0, lane->stream, out, in, planes, H * W);
}

void k_global_average_backward(Lane *lane, float *din, Layout in_layout, const float *dout, int B, int C, int H,
                               int W) {
    (void)in_layout;
    const int64_t planes = (int64_t)B * C;
    gpu_launch(spread_average, work_grid((int64_t)H * W, planes), WORK_THREADS, 0, lane->stream, din, dout, H * W,
               planes);
}

/* ---- Average and global maximum ---------------------------------------------------------------------------------- */

/* Sums each row of the window, then the rows. */
static __global__ void average_forward(float *out, const float *in, ConvShape s, bool count_padding, uint32_t sample,
                                       int64_t batch) {
    const uint32_t i = work_index();
    if (i >= sample)
        return;
    const Place at = place_of(i, s.out_height, s.out_width);
    const Window w = window_at(&s, at.y, at.x);
    const float cells = cells_of(&s, w, at.y, at.x, count_padding);
    const int64_t in_plane = (int64_t)s.in_height * s.in_width;
    for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
        const float *plane = in + (b * s.in_channels + at.channel) * in_plane;
        float total = 0;
        for (int y = w.top; y < w.bottom; y += apart(s.dilation_height)) {
            float row = 0;
            for (int x = w.left; x < w.right; x += apart(s.dilation_width))
                row += plane[(int64_t)y * s.in_width + x];
            total += row;
        }
        out[b * sample + i] = total / cells;
    }
}

static __global__ void average_backward(float *din, const float *dout, ConvShape s, bool count_padding, uint32_t sample,
                                        int64_t batch) {
    const uint32_t i = work_index();
    if (i >= sample)
        return;
    const int down = apart(s.dilation_height), across = apart(s.dilation_width);
    const Place at = place_of(i, s.in_height, s.in_width);
    const Reach rows = reach(at.y, s.pad_top, (s.kernel_height - 1) * down + 1, s.stride_height, s.out_height);
    const Reach columns = reach(at.x, s.pad_left, (s.kernel_width - 1) * across + 1, s.stride_width, s.out_width);
    for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
        const float *plane = dout + (b * s.out_channels + at.channel) * s.out_height * s.out_width;
        float sum = 0;
        for (int y = rows.from; y < rows.to; y++)
            for (int x = columns.from; x < columns.to; x++) {
                const Window w = window_at(&s, y, x);
                const int below = at.y - w.top, right = at.x - w.left;
                if (below >= 0 && right >= 0 && at.y < w.bottom && at.x < w.right && below % down == 0 &&
                    right % across == 0)
                    sum += plane[(int64_t)y * s.out_width + x] / cells_of(&s, w, y, x, count_padding);
            }
        din[b * sample + i] = sum;
    }
}

void k_average_pool_forward(Lane *lane, float *out, const float *in, Layout layout, const ConvShape *s,
                            bool count_padding, int B) {
    (void)layout;
    const int64_t sample = out_sample(s);
    gpu_launch(average_forward, work_grid(sample, B), WORK_THREADS, 0, lane->stream, out, in, *s, count_padding, sample,
               B);
}

void k_average_pool_backward(Lane *lane, float *din, const float *dout, Layout layout, const ConvShape *s,
                             bool count_padding, int B) {
    (void)layout;
    const int64_t sample = in_sample(s);
    gpu_launch(average_backward, work_grid(sample, B), WORK_THREADS, 0, lane->stream, din, dout, *s, count_padding,
               sample, B);
}

/* Whether (x, i) comes before (y, j): the larger, a NaN before all, among equals the first. */
static __device__ __forceinline__ bool goes_first(float x, int64_t i, float y, int64_t j) {
    if (x != x || y != y)
        return x != x && (y == y || i < j);
    return x > y || (x == y && i < j);
}

/* The same of all lanes. */
static __device__ __forceinline__ int64_t first_largest(const float *plane, int64_t pixels) {
    int64_t best = work_lane() < pixels ? work_lane() : 0;
    for (int64_t p = best + 32; p < pixels; p += 32)
        best = goes_first(plane[p], p, plane[best], best) ? p : best;
    for (int apart = 16; apart > 0; apart /= 2) {
        const int64_t other = __shfl_xor_sync(0xffffffffu, best, apart);
        best = goes_first(plane[other], other, plane[best], best) ? other : best;
    }
    return best;
}

static __global__ void plane_maxima(float *out, const float *in, int64_t planes, int64_t pixels) {
    const int64_t plane = work_line();
    if (plane >= planes)
        return;
    const int64_t best = first_largest(in + plane * pixels, pixels);
    if (work_lane() == 0)
        out[plane] = in[plane * pixels + best];
}

static __global__ void plane_maxima_back(float *din, const float *dout, const float *in, int64_t planes,
                                         int64_t pixels) {
    const int64_t plane = work_line();
    if (plane >= planes)
        return;
    const int64_t best = first_largest(in + plane * pixels, pixels);
    for (int64_t p = work_lane(); p < pixels; p += 32)
        din[plane * pixels + p] = p == best ? dout[plane] : 0;
}

void k_global_max_forward(Lane *lane, float *out, const float *in, int B, int C, int64_t pixels) {
    const int64_t planes = (int64_t)B * C;
    gpu_launch(plane_maxima, gpu_blocks(planes, WORK_WARPS), WORK_THREADS, 0, lane->stream, out, in, planes, pixels);
}

void k_global_max_backward(Lane *lane, float *din, const float *dout, const float *in, int B, int C, int64_t pixels) {
    const int64_t planes = (int64_t)B * C;
    gpu_launch(plane_maxima_back, gpu_blocks(planes, WORK_WARPS), WORK_THREADS, 0, lane->stream, din, dout, in, planes,
               pixels);
}
