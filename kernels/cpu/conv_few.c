/* conv_few.c: a convolution's gradient with respect to an image of up to 3 channels.
 *
 * oneDNN pads the channels to a whole vector (with one channel 15/16 of its work is thrown away); here vectors lie along
 * the channels of the other side, and are summed at the end:
 * din[c][y][x] = sum over k, i, j of weight[k][c][i][j] dout[k][(y + pad_top - i) / stride][(x + pad_left - j) / stride],
 * where these divide and lie inside.
 * Several pixels that have the same taps are worked on together: their sums do not wait for each other, a weight is
 * loaded once for all, and the sums over vectors' lanes share their shuffles. A pixel's own sums are in one order. */
#include <string.h>

#include "cpu.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

struct Few {
    int blocks;          /* of out_channels */
    int64_t weight_step; /* floats of a block */
    float *weight;       /* (blocks, kernel_height, kernel_width, in_channels, width) */
};

/* The kernel's rows (or columns) i = from, from + stride ... below `to` that reach position `at` of the image. */
typedef struct {
    int from, to;
} Taps;

INLINE Taps taps_at(int at, int out_size, int stride, int kernel) {
    const int first = at - (out_size - 1) * stride;
    return (Taps){first > 0 ? first : at % stride, at < kernel ? at + 1 : kernel};
}

#define FEW_WIDTH 16
#define FEW_PIXELS 8
#define FEW_LANES 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define FEW(name) few16_##name
#include "conv_few.inc"
#undef FEW_WIDTH
#undef FEW_PIXELS
#undef FEW_LANES
#undef FEW

#define FEW_WIDTH 8
#define FEW_PIXELS 4
#define FEW_LANES 0, 1, 2, 3, 4, 5, 6, 7
#define FEW(name) few8_##name
#include "conv_few.inc"

Few *cpu_few_new(const ConvShape *s, const float *weight) {
    const int width = cpu_width(LAYOUT_BLOCKED);
    const int64_t taps = (int64_t)s->kernel_height * s->kernel_width;
    Few *few = dev_alloc(sizeof *few);
    few->blocks = cpu_rounded(s->out_channels, width) / width;
    few->weight_step = taps * s->in_channels * width;
    float *to = few->weight = dev_alloc((size_t)(few->blocks * few->weight_step) * sizeof(float));
    for (int block = 0; block < few->blocks * width; block += width)
        for (int64_t tap = 0; tap < taps; tap++)
            for (int c = 0; c < s->in_channels; c++)
                for (int k = block; k < block + width; k++)
                    *to++ = k < s->out_channels ? weight[((int64_t)k * s->in_channels + c) * taps + tap] : 0;
    return few;
}

void cpu_few_free(Few *few) {
    if (few)
        dev_free(few->weight);
    dev_free(few);
}

void cpu_few_backward(const Few *few, float *din, const float *dout, const ConvShape *s, int batch) {
    const int width = cpu_width(LAYOUT_BLOCKED);
    const int64_t in_step = (int64_t)s->in_channels * s->in_height * s->in_width;
    const int64_t out_step = (int64_t)few->blocks * s->out_height * s->out_width * width;
    for (int b = 0; b < batch; b++, din += in_step, dout += out_step)
        if (width == 16)
            few16_sample(din, dout, few, s);
        else
            few8_sample(din, dout, few, s);
}
