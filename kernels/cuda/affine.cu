/* affine.cu: batch norm in eval mode, relu, and both at once.
 *
 * A thread for each number. The multiply and the add are rounded one by one (intrinsics that the compiler never fuses),
 * so the fused pair gives the bits of the two run one after the other. Bound by memory: 8 bytes a number forward, 12
 * backward; about 20 instructions. An estimate: it has run on the host executor only, never on a GPU. */
#include <stdlib.h>

#include "work.h"

struct KAffine {
    int64_t samples;
    int channels;
    uint32_t pixels;
    bool relu;
    float *scale, *shift; /* (channels), or NULL both */
};

KAffine *k_affine_new(Layout layout, int batch, int C, int H, int W, const float *scale, const float *shift,
                      bool relu) {
    (void)layout;
    KAffine *affine = work_new<KAffine>();
    affine->samples = batch;
    affine->channels = C;
    affine->pixels = (uint32_t)H * (uint32_t)W;
    affine->relu = relu;
    affine->scale = work_constant(scale, (size_t)C);
    affine->shift = work_constant(scale ? shift : NULL, (size_t)C);
    return affine;
}

void k_affine_free(KAffine *affine) {
    if (!affine)
        return;
    dev_free(affine->scale);
    dev_free(affine->shift);
    free(affine);
}

/* NaN stays NaN, as in PyTorch's relu. */
static __global__ void apply(float *out, const float *in, const float *scale, const float *shift, bool relu,
                             uint32_t sample, uint32_t pixels, int64_t samples) {
    const uint32_t i = work_index();
    if (i >= sample)
        return;
    const float by = scale ? scale[i / pixels] : 1, more = scale ? shift[i / pixels] : 0;
    for (int64_t b = blockIdx.y; b < samples; b += gridDim.y) {
        float y = in[b * sample + i];
        if (scale)
            y = __fadd_rn(__fmul_rn(y, by), more);
        out[b * sample + i] = relu && y <= 0 ? 0 : y;
    }
}

static __global__ void apply_gradient(float *din, const float *dout, const float *out, const float *scale,
                                      bool guided, uint32_t sample, uint32_t pixels, int64_t samples) {
    const uint32_t i = work_index();
    if (i >= sample)
        return;
    const float by = scale ? scale[i / pixels] : 1;
    for (int64_t b = blockIdx.y; b < samples; b += gridDim.y) {
        float g = dout[b * sample + i];
        if (out)
            g = out[b * sample + i] > 0 && !(guided && g < 0) ? g : 0;
        din[b * sample + i] = scale ? g * by : g;
    }
}

void k_affine_forward(Lane *lane, const KAffine *affine, float *out, const float *in) {
    const int64_t sample = (int64_t)affine->channels * affine->pixels;
    gpu_launch(apply, work_grid(sample, affine->samples), WORK_THREADS, 0, lane->stream, out, in, affine->scale,
               affine->shift, affine->relu || !affine->scale, sample, affine->pixels, affine->samples);
}

void k_affine_backward(Lane *lane, const KAffine *affine, float *din, const float *dout, const float *out,
                       bool guided) {
    const int64_t sample = (int64_t)affine->channels * affine->pixels;
    gpu_launch(apply_gradient, work_grid(sample, affine->samples), WORK_THREADS, 0, lane->stream, din, dout,
               affine->relu || !affine->scale ? out : NULL, affine->scale, guided, sample, affine->pixels,
               affine->samples);
}
