/* pool.c: max, average and global pooling, on plain and blocked values alike (a plain value has blocks of one
 * channel, so only blocked ones run at the width of a vector).
 *
 * Max pooling is ours and not oneDNN's because of ties: among equal values the first in row-major order of the window
 * gets the gradient, as in PyTorch. What is kept for backward is that position, two bytes an output. Padding takes no
 * part: windows are cut at the border. NaN wins, as in PyTorch.
 *
 * With the batch norm and the relu before it in the same pass, a value is read once, and nothing of its size is written
 * or kept: the largest of some numbers is the same before and after a relu, and where it is not above 0 no gradient
 * passes, whichever of them had it: its position is MAX_POOL_NOWHERE. */
#include <string.h>

#include "cpu.h"
#include "shared.h"

struct KMaxPool {
    ConvShape shape;
    Layout layout;
    int batch;
    bool relu;
    float *scale, *shift; /* (channels, rounded up to blocks), or NULL both */
};

KMaxPool *k_max_pool_new(Layout layout, const ConvShape *shape, int batch, bool relu, const float *scale,
                         const float *shift) {
    if ((int64_t)shape->kernel_height * shape->kernel_width > UINT16_MAX)
        kernel_fail("max pooling: a window of %d x %d is larger than the 65535 values supported", shape->kernel_height,
                 shape->kernel_width);
    KMaxPool *pool = dev_alloc(sizeof *pool);
    *pool = (KMaxPool){.shape = *shape, .layout = layout, .batch = batch, .relu = relu};
    if (scale) {
        pool->scale = cpu_channels(scale, shape->in_channels, cpu_width(layout));
        pool->shift = cpu_channels(shift, shape->in_channels, cpu_width(layout));
    }
    return pool;
}

void k_max_pool_free(KMaxPool *pool) {
    if (!pool)
        return;
    dev_free(pool->scale);
    dev_free(pool->shift);
    dev_free(pool);
}

size_t k_max_pool_saved(const KMaxPool *pool) {
    const ConvShape *s = &pool->shape;
    return k_value_bytes(pool->layout, pool->batch, s->out_channels, s->out_height, s->out_width) / sizeof(float) *
           sizeof(uint16_t);
}

/* Windows of 2 x 2 that neither meet nor are cut: the most frequent, and loops of constant length. */
static bool is_quartering(const ConvShape *s) {
    return s->kernel_height == 2 && s->kernel_width == 2 && s->stride_height == 2 && s->stride_width == 2 &&
           s->pad_top == 0 && s->pad_left == 0 && apart(s->dilation_height) == 1 && apart(s->dilation_width) == 1 &&
           2 * s->out_height <= s->in_height && 2 * s->out_width <= s->in_width;
}

static inline __attribute__((always_inline)) Window quarter_at(int y, int x) {
    return (Window){2 * y, 2 * x, 2 * y + 2, 2 * x + 2};
}

/* What is done to the values of one block of channels before they are pooled. */
typedef struct {
    const float *scale, *shift; /* (width), or NULL both */
    bool relu;
} Before;

static Before before_block(const KMaxPool *pool, int channel) {
    const bool scales = pool->scale;
    return (Before){scales ? pool->scale + channel : NULL, scales ? pool->shift + channel : NULL, pool->relu};
}

static inline __attribute__((always_inline)) float scaled(float value, const Before *before, int c) {
    return before->scale ? value * before->scale[c] + before->shift[c] : value;
}

/* best, position (width): of what they are and the value at position `here` of the window. keep: position is wanted. */
static inline __attribute__((always_inline)) void take_larger(float *best, int32_t *position, const float *value,
                                                              const Before *before, int here, bool keep, int width) {
#pragma omp simd
    for (int c = 0; c < width; c++) {
        const float y = scaled(value[c], before, c);
        const bool better = y > best[c] || y != y;
        best[c] = better ? y : best[c];
        if (keep)
            position[c] = better ? here : position[c];
    }
}

/* One block of channels: out (out_height, out_width, width), in (in_height, in_width, width). keep: the positions, in
 * saved; without them half the time. */
static inline __attribute__((always_inline)) void pool_block(float *restrict out, uint16_t *restrict saved,
                                                             const float *restrict in, const ConvShape *s,
                                                             const Before *before, bool quartering, bool keep,
                                                             int width) {
    const int64_t row = (int64_t)s->in_width * width;
    for (int y = 0; y < s->out_height; y++)
        for (int x = 0; x < s->out_width; x++, out += width) {
            const Window w = quartering ? quarter_at(y, x) : window_at(s, y, x);
            float best[CPU_WIDTH_MAX];
            int32_t position[CPU_WIDTH_MAX] = {0};
            const float *first = in + w.top * row + (int64_t)w.left * width;
#pragma omp simd
            for (int c = 0; c < width; c++)
                best[c] = scaled(first[c], before, c);
            if (quartering) {
                take_larger(best, position, first + width, before, 1, keep, width);
                take_larger(best, position, first + row, before, 2, keep, width);
                take_larger(best, position, first + row + width, before, 3, keep, width);
            } else {
                for (int i = w.top, here = 0; i < w.bottom; i += apart(s->dilation_height))
                    for (int j = w.left; j < w.right; j += apart(s->dilation_width), here++)
                        take_larger(best, position, in + i * row + (int64_t)j * width, before, here, keep, width);
            }
#pragma omp simd
            for (int c = 0; c < width; c++)
                out[c] = before->relu && best[c] <= 0 ? 0 : best[c];
            if (keep) {
                for (int c = 0; c < width; c++)
                    saved[c] = (uint16_t)(before->relu && !(best[c] > 0) ? MAX_POOL_NOWHERE : position[c]);
                saved += width;
            }
        }
}

/* The gradient of one number at its batch norm's output, given that behind the relu. */
static inline __attribute__((always_inline)) float scaled_back(float gradient, const Before *before, bool guided,
                                                               int c) {
    const float g = guided && gradient < 0 ? 0 : gradient;
    return before->scale ? g * before->scale[c] : g;
}

/* As pool_block. A window's gradient goes to its position; where windows meet, gradients are added before they go on.
 * covered: quartering leaves no cell out, and each is written once and for all. */
static inline __attribute__((always_inline)) void unpool_block(float *restrict din, const float *restrict dout,
                                                               const uint16_t *restrict saved, const ConvShape *s,
                                                               const Before *before, bool guided, bool quartering,
                                                               bool covered, int width) {
    const int64_t pixels = (int64_t)s->in_height * s->in_width;
    if (!covered)
        memset(din, 0, (size_t)pixels * (size_t)width * sizeof *din);
    const int down = quartering ? 1 : apart(s->dilation_height), across = quartering ? 1 : apart(s->dilation_width);
    for (int y = 0; y < s->out_height; y++)
        for (int x = 0; x < s->out_width; x++, dout += width, saved += width) {
            const Window w = quartering ? quarter_at(y, x) : window_at(s, y, x);
            for (int i = w.top, here = 0; i < w.bottom; i += down)
                for (int j = w.left; j < w.right; j += across, here++) {
                    float *to = din + ((int64_t)i * s->in_width + j) * width;
#pragma omp simd
                    for (int c = 0; c < width; c++) {
                        const float share = saved[c] == here ? dout[c] : 0;
                        to[c] = covered ? scaled_back(share, before, guided, c) : quartering ? share : to[c] + share;
                    }
                }
        }
    for (int64_t p = 0; !covered && before->relu && p < pixels; p++)
#pragma omp simd
        for (int c = 0; c < width; c++)
            din[p * width + c] = scaled_back(din[p * width + c], before, guided, c);
}

/* The constants given in these make the loops' bounds and branches constants. */
static inline __attribute__((always_inline)) void pool_scaled(float *out, uint16_t *saved, const float *in,
                                                              const ConvShape *s, const Before *before,
                                                              bool quartering, int width) {
    const Before not_scaled = {NULL, NULL, before->relu};
    if (saved && before->scale)
        pool_block(out, saved, in, s, before, quartering, true, width);
    else if (saved)
        pool_block(out, saved, in, s, &not_scaled, quartering, true, width);
    else if (before->scale)
        pool_block(out, NULL, in, s, before, quartering, false, width);
    else
        pool_block(out, NULL, in, s, &not_scaled, quartering, false, width);
}

static inline __attribute__((always_inline)) void pool_any(float *out, uint16_t *saved, const float *in,
                                                           const ConvShape *s, const Before *before, bool quartering,
                                                           int width) {
    if (quartering)
        pool_scaled(out, saved, in, s, before, true, width);
    else
        pool_scaled(out, saved, in, s, before, false, width);
}

static inline __attribute__((always_inline)) void unpool_scaled(float *din, const float *dout, const uint16_t *saved,
                                                                const ConvShape *s, const Before *before, bool guided,
                                                                bool quartering, bool covered, int width) {
    const Before nothing = {NULL, NULL, false}, relu = {NULL, NULL, true};
    if (!before->relu)
        unpool_block(din, dout, saved, s, &nothing, false, quartering, covered, width);
    else if (before->scale)
        unpool_block(din, dout, saved, s, before, guided, quartering, covered, width);
    else
        unpool_block(din, dout, saved, s, &relu, guided, quartering, covered, width);
}

static inline __attribute__((always_inline)) void unpool_any(float *din, const float *dout, const uint16_t *saved,
                                                             const ConvShape *s, const Before *before, bool guided,
                                                             bool quartering, int width) {
    if (quartering && s->in_height == 2 * s->out_height && s->in_width == 2 * s->out_width)
        unpool_scaled(din, dout, saved, s, before, guided, true, true, width);
    else if (quartering)
        unpool_scaled(din, dout, saved, s, before, guided, true, false, width);
    else
        unpool_scaled(din, dout, saved, s, before, guided, false, false, width);
}

CPU_CLONES void k_max_pool_forward(Lane *lane, const KMaxPool *pool, float *out, void *saved, const float *in) {
    (void)lane;
    const ConvShape *s = &pool->shape;
    const int width = cpu_width(pool->layout), blocks = cpu_rounded(s->in_channels, width) / width;
    const int64_t in_step = (int64_t)s->in_height * s->in_width * width;
    const int64_t out_step = (int64_t)s->out_height * s->out_width * width;
    const bool quartering = is_quartering(s);
    uint16_t *positions = saved;
    for (int b = 0; b < pool->batch; b++)
        for (int block = 0; block < blocks; block++, out += out_step, in += in_step) {
            const Before before = before_block(pool, block * width);
            switch (width) {
            case 16: pool_any(out, positions, in, s, &before, quartering, 16); break;
            case 8: pool_any(out, positions, in, s, &before, quartering, 8); break;
            default: pool_any(out, positions, in, s, &before, quartering, 1);
            }
            positions = positions ? positions + out_step : NULL;
        }
}

CPU_CLONES void k_max_pool_backward(Lane *lane, const KMaxPool *pool, float *din, const float *dout,
                                    const void *saved, bool guided) {
    (void)lane;
    const ConvShape *s = &pool->shape;
    const int width = cpu_width(pool->layout), blocks = cpu_rounded(s->in_channels, width) / width;
    const int64_t in_step = (int64_t)s->in_height * s->in_width * width;
    const int64_t out_step = (int64_t)s->out_height * s->out_width * width;
    const bool quartering = is_quartering(s);
    const uint16_t *positions = saved;
    for (int b = 0; b < pool->batch; b++)
        for (int block = 0; block < blocks; block++, din += in_step, dout += out_step, positions += out_step) {
            const Before before = before_block(pool, block * width);
            switch (width) {
            case 16: unpool_any(din, dout, positions, s, &before, guided, quartering, 16); break;
            case 8: unpool_any(din, dout, positions, s, &before, guided, quartering, 8); break;
            default: unpool_any(din, dout, positions, s, &before, guided, quartering, 1);
            }
        }
}

/* Sums each row of pixels, then the rows: the error grows with H + W and not with H * W. */
CPU_CLONES void k_global_average_forward(Lane *lane, float *out, const float *in, Layout in_layout, int B, int C, int H,
                                         int W) {
    (void)lane;
    const int width = cpu_width(in_layout);
    for (int b = 0; b < B; b++)
        for (int block = 0; block < C; block += width) {
            float total[CPU_WIDTH_MAX] = {0};
            for (int y = 0; y < H; y++) {
                float row[CPU_WIDTH_MAX] = {0};
                for (int x = 0; x < W; x++, in += width)
#pragma omp simd
                    for (int c = 0; c < width; c++)
                        row[c] += in[c];
                for (int c = 0; c < width; c++)
                    total[c] += row[c];
            }
            for (int c = 0; c < width && block + c < C; c++)
                out[(int64_t)b * C + block + c] = total[c] / ((float)H * (float)W);
        }
}

void k_global_average_backward(Lane *lane, float *din, Layout in_layout, const float *dout, int B, int C, int H,
                               int W) {
    (void)lane;
    const int width = cpu_width(in_layout);
    for (int b = 0; b < B; b++)
        for (int block = 0; block < C; block += width) {
            float share[CPU_WIDTH_MAX] = {0};
            for (int c = 0; c < width && block + c < C; c++)
                share[c] = dout[(int64_t)b * C + block + c] / ((float)H * (float)W);
            for (int64_t p = 0; p < (int64_t)H * W; p++, din += width)
                memcpy(din, share, (size_t)width * sizeof *din);
        }
}

/* ---- Average and global maximum ---------------------------------------------------------------------------------- */

static inline __attribute__((always_inline)) void average_block(float *out, const float *in, const ConvShape *s,
                                                                bool count_padding, int width) {
    for (int y = 0; y < s->out_height; y++)
        for (int x = 0; x < s->out_width; x++, out += width) {
            const Window w = window_at(s, y, x);
            const float cells = cells_of(s, w, y, x, count_padding);
            float total[CPU_WIDTH_MAX] = {0};
            for (int i = w.top; i < w.bottom; i += apart(s->dilation_height)) {
                float row[CPU_WIDTH_MAX] = {0};
                for (int j = w.left; j < w.right; j += apart(s->dilation_width)) {
                    const float *value = in + ((int64_t)i * s->in_width + j) * width;
#pragma omp simd
                    for (int c = 0; c < width; c++)
                        row[c] += value[c];
                }
                for (int c = 0; c < width; c++)
                    total[c] += row[c];
            }
            for (int c = 0; c < width; c++)
                out[c] = total[c] / cells;
        }
}

static inline __attribute__((always_inline)) void spread_block(float *din, const float *dout, const ConvShape *s,
                                                               bool count_padding, int width) {
    memset(din, 0, (size_t)s->in_height * (size_t)s->in_width * (size_t)width * sizeof *din);
    for (int y = 0; y < s->out_height; y++)
        for (int x = 0; x < s->out_width; x++, dout += width) {
            const Window w = window_at(s, y, x);
            const float cells = cells_of(s, w, y, x, count_padding);
            float share[CPU_WIDTH_MAX];
            for (int c = 0; c < width; c++)
                share[c] = dout[c] / cells;
            for (int i = w.top; i < w.bottom; i += apart(s->dilation_height))
                for (int j = w.left; j < w.right; j += apart(s->dilation_width)) {
                    float *to = din + ((int64_t)i * s->in_width + j) * width;
#pragma omp simd
                    for (int c = 0; c < width; c++)
                        to[c] += share[c];
                }
        }
}

CPU_CLONES void k_average_pool_forward(Lane *lane, float *out, const float *in, Layout layout, const ConvShape *s,
                                       bool count_padding, int B) {
    (void)lane;
    const int width = cpu_width(layout);
    const int64_t blocks = (int64_t)B * (cpu_rounded(s->in_channels, width) / width);
    const int64_t in_step = (int64_t)s->in_height * s->in_width * width;
    const int64_t out_step = (int64_t)s->out_height * s->out_width * width;
    for (int64_t block = 0; block < blocks; block++, out += out_step, in += in_step)
        switch (width) {
        case 16: average_block(out, in, s, count_padding, 16); break;
        case 8: average_block(out, in, s, count_padding, 8); break;
        default: average_block(out, in, s, count_padding, 1);
        }
}

CPU_CLONES void k_average_pool_backward(Lane *lane, float *din, const float *dout, Layout layout, const ConvShape *s,
                                        bool count_padding, int B) {
    (void)lane;
    const int width = cpu_width(layout);
    const int64_t blocks = (int64_t)B * (cpu_rounded(s->in_channels, width) / width);
    const int64_t in_step = (int64_t)s->in_height * s->in_width * width;
    const int64_t out_step = (int64_t)s->out_height * s->out_width * width;
    for (int64_t block = 0; block < blocks; block++, dout += out_step, din += in_step)
        switch (width) {
        case 16: spread_block(din, dout, s, count_padding, 16); break;
        case 8: spread_block(din, dout, s, count_padding, 8); break;
        default: spread_block(din, dout, s, count_padding, 1);
        }
}

static int64_t first_largest(const float *plane, int64_t pixels) {
    int64_t best = 0;
    for (int64_t p = 1; p < pixels; p++)
        if (plane[p] > plane[best] || (plane[p] != plane[p] && plane[best] == plane[best]))
            best = p;
    return best;
}

void k_global_max_forward(Lane *lane, float *out, const float *in, int B, int C, int64_t pixels) {
    (void)lane;
    for (int64_t i = 0; i < (int64_t)B * C; i++)
        out[i] = in[i * pixels + first_largest(in + i * pixels, pixels)];
}

void k_global_max_backward(Lane *lane, float *din, const float *dout, const float *in, int B, int C, int64_t pixels) {
    (void)lane;
    memset(din, 0, (size_t)B * (size_t)C * (size_t)pixels * sizeof *din);
    for (int64_t i = 0; i < (int64_t)B * C; i++)
        din[i * pixels + first_largest(in + i * pixels, pixels)] = dout[i];
}
