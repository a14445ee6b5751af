/* affine.c: batch norm in eval mode, relu, and both at once.
 *
 * One pass over the value, at the speed of the cache it lies in. The multiply and the add are rounded one by one (the
 * compiler is told not to contract them), so the fused pair gives the bits of the two run one after the other, and
 * every level of vectors the same. Channels that only round up a block have scale and shift 0 and stay zero. */
#include "cpu.h"

struct KAffine {
    int width, blocks; /* channels side by side; blocks of them in a sample */
    int64_t samples, pixels;
    bool relu;
    float *scale, *shift; /* (blocks * width), or NULL both */
};

float *cpu_channels(const float *values, int C, int width) {
    const int channels = cpu_rounded(C, width);
    float *rounded = dev_alloc((size_t)channels * sizeof *rounded);
    for (int c = 0; c < channels; c++)
        rounded[c] = c < C ? values[c] : 0;
    return rounded;
}

KAffine *k_affine_new(Layout layout, int batch, int C, int H, int W, const float *scale, const float *shift,
                      bool relu) {
    KAffine *affine = dev_alloc(sizeof *affine);
    const int width = cpu_width(layout), blocks = cpu_rounded(C, width) / width;
    *affine = (KAffine){.width = width, .blocks = blocks, .samples = batch, .pixels = (int64_t)H * W, .relu = relu};
    if (scale) {
        affine->scale = cpu_channels(scale, C, width);
        affine->shift = cpu_channels(shift, C, width);
    }
    return affine;
}

void k_affine_free(KAffine *affine) {
    if (!affine)
        return;
    dev_free(affine->scale);
    dev_free(affine->shift);
    dev_free(affine);
}

/* `count` vectors of `width` floats; NaN stays NaN, as in PyTorch's relu. */
static inline __attribute__((always_inline)) void apply(float *out, const float *in, const float *scale,
                                                        const float *shift, bool relu, int64_t count, int width) {
    for (int64_t p = 0; p < count; p++)
#pragma omp simd
        for (int c = 0; c < width; c++) {
            float y = in[p * width + c];
            if (scale)
                y = y * scale[c] + shift[c];
            out[p * width + c] = relu && y <= 0 ? 0 : y;
        }
}

static inline __attribute__((always_inline)) void apply_gradient(float *din, const float *dout, const float *out,
                                                                 const float *scale, bool guided, int64_t count,
                                                                 int width) {
    for (int64_t p = 0; p < count; p++)
#pragma omp simd
        for (int c = 0; c < width; c++) {
            float g = dout[p * width + c];
            if (out)
                g = out[p * width + c] > 0 && !(guided && g < 0) ? g : 0;
            din[p * width + c] = scale ? g * scale[c] : g;
        }
}

/* The constants given here make the loops' bounds and branches constants. */
static inline __attribute__((always_inline)) void apply_any(float *out, const float *in, const float *scale,
                                                            const float *shift, bool relu, int64_t count, int width) {
    if (!scale)
        apply(out, in, NULL, NULL, true, count, width);
    else if (relu)
        apply(out, in, scale, shift, true, count, width);
    else
        apply(out, in, scale, shift, false, count, width);
}

static inline __attribute__((always_inline)) void gradient_any(float *din, const float *dout, const float *out,
                                                               const float *scale, bool guided, int64_t count, int width) {
    if (guided)
        apply_gradient(din, dout, out, scale, true, count, width);
    else if (!scale)
        apply_gradient(din, dout, out, NULL, false, count, width);
    else if (out)
        apply_gradient(din, dout, out, scale, false, count, width);
    else
        apply_gradient(din, dout, NULL, scale, false, count, width);
}

CPU_CLONES void k_affine_forward(Lane *lane, const KAffine *affine, float *out, const float *in) {
    (void)lane;
    const int width = affine->width;
    const int64_t step = affine->pixels * width;
    for (int64_t b = 0; b < affine->samples; b++)
        for (int block = 0; block < affine->blocks; block++, out += step, in += step) {
            const float *scale = affine->scale ? affine->scale + (int64_t)block * width : NULL;
            const float *shift = affine->scale ? affine->shift + (int64_t)block * width : NULL;
            switch (width) {
            case 16: apply_any(out, in, scale, shift, affine->relu, affine->pixels, 16); break;
            case 8: apply_any(out, in, scale, shift, affine->relu, affine->pixels, 8); break;
            default: apply_any(out, in, scale, shift, affine->relu, affine->pixels, 1);
            }
        }
}

CPU_CLONES void k_affine_backward(Lane *lane, const KAffine *affine, float *din, const float *dout, const float *out,
                                  bool guided) {
    (void)lane;
    const int width = affine->width;
    const int64_t step = affine->pixels * width;
    for (int64_t b = 0; b < affine->samples; b++)
        for (int block = 0; block < affine->blocks; block++, din += step, dout += step) {
            const float *scale = affine->scale ? affine->scale + (int64_t)block * width : NULL;
            const float *value = affine->relu ? out + (b * affine->blocks + block) * step : NULL;
            switch (width) {
            case 16: gradient_any(din, dout, value, scale, guided, affine->pixels, 16); break;
            case 8: gradient_any(din, dout, value, scale, guided, affine->pixels, 8); break;
            default: gradient_any(din, dout, value, scale, guided, affine->pixels, 1);
            }
        }
}
