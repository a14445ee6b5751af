/* shared.h: what the kernels of the CPU and those of CUDA compute by the same lines, so that they cannot drift apart.
 *
 * Small functions of numbers; no memory, no loops over a value. Their bits are those of the machine's own mathematical
 * functions: the two builds agree to rounding. */
#ifndef CNNSCOPE_SHARED_H
#define CNNSCOPE_SHARED_H

#include <math.h>
#include <string.h>

#ifdef __cplusplus /* a .cu file: nvcc and the host executor put CUDA's words in front of it */
extern "C" {
#include "kernels.h"
}
#define ON_BOTH static __host__ __device__ inline
#else
#include "kernels.h"
#define ON_BOTH static inline __attribute__((always_inline))
#endif

/* ---- Windows ------------------------------------------------------------------------------------------------------ */

typedef struct {
    int top, left, bottom, right; /* rows top..bottom-1, columns left..right-1 of the input, in steps of the dilation */
} Window;

ON_BOTH int apart(int dilation) {
    return dilation > 1 ? dilation : 1;
}

/* The first of from, from + step ... that is not negative. */
ON_BOTH int inside(int from, int step) {
    return from >= 0 ? from : from + (-from + step - 1) / step * step;
}

ON_BOTH Window window_at(const ConvShape *s, int y, int x) {
    Window w = {y * s->stride_height - s->pad_top, x * s->stride_width - s->pad_left, 0, 0};
    const int down = apart(s->dilation_height), across = apart(s->dilation_width);
    w.bottom = w.top + (s->kernel_height - 1) * down + 1;
    w.right = w.left + (s->kernel_width - 1) * across + 1;
    w.bottom = w.bottom < s->in_height ? w.bottom : s->in_height;
    w.right = w.right < s->in_width ? w.right : s->in_width;
    w.top = inside(w.top, down);
    w.left = inside(w.left, across);
    return w;
}

/* What max pooling keeps as the position of a largest number that a relu stopped: of no number in any window. */
enum { MAX_POOL_NOWHERE = UINT16_MAX };

/* Cells a window's sum is divided by. */
ON_BOTH float cells_of(const ConvShape *s, Window w, int y, int x, bool count_padding) {
    const int down = apart(s->dilation_height), across = apart(s->dilation_width);
    int top = w.top, left = w.left, bottom = w.bottom, right = w.right;
    if (count_padding) {
        top = y * s->stride_height - s->pad_top;
        left = x * s->stride_width - s->pad_left;
        bottom = top + (s->kernel_height - 1) * down + 1;
        right = left + (s->kernel_width - 1) * across + 1;
        bottom = bottom < s->in_height + s->pad_bottom ? bottom : s->in_height + s->pad_bottom;
        right = right < s->in_width + s->pad_right ? right : s->in_width + s->pad_right;
    }
    return (float)((bottom - top + down - 1) / down) * (float)((right - left + across - 1) / across);
}

/* ---- Local response ----------------------------------------------------------------------------------------------- */

typedef struct {
    int from, to;
} Channels;

/* Those around c: (size - 1) / 2 below, the rest above. */
ON_BOTH Channels around(const LrnShape *lrn, int c, int C) {
    const int below = (lrn->size - 1) / 2, from = c - below, to = c + lrn->size - below;
    const Channels k = {from > 0 ? from : 0, to < C ? to : C};
    return k;
}

/* Those that c is around of. */
ON_BOTH Channels reached_by(const LrnShape *lrn, int c, int C) {
    const int below = (lrn->size - 1) / 2, from = c - (lrn->size - 1 - below), to = c + below + 1;
    const Channels k = {from > 0 ? from : 0, to < C ? to : C};
    return k;
}

ON_BOTH float response(const LrnShape *lrn, const float *in, int c, int C, int64_t pixels) {
    const Channels k = around(lrn, c, C);
    float squares = 0;
    for (int i = k.from; i < k.to; i++)
        squares += in[i * pixels] * in[i * pixels];
    return lrn->bias + lrn->alpha / (float)lrn->size * squares;
}

/* ---- Pixels ------------------------------------------------------------------------------------------------------- */

/* IEEE half precision, exactly. */
ON_BOTH double from_half(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double magnitude = exponent == 0    ? ldexp((double)fraction, -24)
                       : exponent == 31 ? (fraction ? (double)NAN : (double)INFINITY)
                                        : ldexp((double)(1024 + fraction), exponent - 25);
    return bits >> 15 ? -magnitude : magnitude;
}

ON_BOTH double from_bfloat(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

ON_BOTH double pixel_at(const void *pixels, DType dtype, int64_t i) {
    switch (dtype) {
    case DT_U8:
    case DT_BOOL: return ((const uint8_t *)pixels)[i];
    case DT_I8: return ((const int8_t *)pixels)[i];
    case DT_U16: return ((const uint16_t *)pixels)[i];
    case DT_I16: return ((const int16_t *)pixels)[i];
    case DT_U32: return ((const uint32_t *)pixels)[i];
    case DT_I32: return ((const int32_t *)pixels)[i];
    case DT_U64: return (double)((const uint64_t *)pixels)[i];
    case DT_I64: return (double)((const int64_t *)pixels)[i];
    case DT_F16: return from_half(((const uint16_t *)pixels)[i]);
    case DT_BF16: return from_bfloat(((const uint16_t *)pixels)[i]);
    case DT_F32: return ((const float *)pixels)[i];
    case DT_F64: return ((const double *)pixels)[i];
    }
    return 0;
}

ON_BOTH float transformed(double pixel, const PixelTransform *t, int channel) {
    const int c = channel < 15 ? channel : 15;
    return (float)((pixel * t->scale - t->mean[c]) / t->std[c]);
}

/* ---- Boxes -------------------------------------------------------------------------------------------------------- */

/* Without axes of size 1, and with axes joined where both sides allow it. */
ON_BOTH KMove joined(const KMove *move) {
    KMove m;
    m.n = 0;
    for (int d = 0; d < move->n; d++) {
        if (move->size[d] == 1)
            continue;
        const int last = m.n - 1;
        const bool joins = last >= 0 && m.to_step[last] == move->size[d] * move->to_step[d] &&
                           m.from_step[last] == move->size[d] * move->from_step[d];
        const int at = joins ? last : m.n++;
        m.size[at] = (joins ? m.size[at] : 1) * move->size[d];
        m.to_step[at] = move->to_step[d];
        m.from_step[at] = move->from_step[d];
    }
    if (m.n == 0) {
        m.n = 1;
        m.size[0] = m.to_step[0] = m.from_step[0] = 1;
    }
    return m;
}

#endif
