/* norms.cu: products of two values, softmax, norms over one sample, local response.
 *
 * Products: the tiles of product.h. Softmax: a warp for each line; norms: a block for each run of values. Statistics and
 * the sums of a gradient are in double, each thread's share and then the shares in a fixed order; local response: a
 * thread for each number, which computes anew what its neighbours need (about size^2 / 2 multiply-adds and, backward,
 * size powers) rather than keep it.
 * Bound by memory (8 to 12 bytes a number, norms read twice) on devices with fast doubles; softmax costs two
 * exponentials in double a number. An estimate: it has run on the host executor only, never on a GPU. */
#include <stdlib.h>

#include "product.h"
#include "shared.h"
#include "work.h"

void k_matmul(Lane *lane, float *c, const float *a, const float *b, const KProduct *product) {
    Product p = {};
    p.M = product->M;
    p.N = product->N;
    p.K = product->K;
    p.a_m = product->a_turned ? 1 : p.K;
    p.a_k = product->a_turned ? p.M : 1;
    p.b_k = product->b_turned ? 1 : p.N;
    p.b_n = product->b_turned ? p.K : 1;
    for (int d = 0; d < product->n; d++) {
        const ProductAxis axis = {product->size[d], product->c_step[d], product->a_step[d], product->b_step[d]};
        if (axis.size == 1)
            continue;
        if (axis.c_step == 0)
            p.summed[p.summed_count++] = axis;
        else
            p.kept[p.kept_count++] = axis;
    }
    gpu_product(lane, c, a, b, NULL, &p, 1);
}

/* ---- Softmax ---------------------------------------------------------------------------------------------------- */

static __global__ void softmax(float *out, const float *in, bool logarithm, int64_t lines, int64_t n, int64_t inner) {
    const int64_t line = work_line();
    if (line >= lines) /* the whole warp */
        return;
    const int64_t at = line / inner * n * inner + line % inner;
    float most = in[at];
    for (int64_t i = work_lane(); i < n; i += 32)
        most = in[at + i * inner] > most ? in[at + i * inner] : most;
    for (int apart = 16; apart > 0; apart /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, most, apart);
        most = other > most ? other : most;
    }
    double sum = 0;
    for (int64_t i = work_lane(); i < n; i += 32)
        sum += exp((double)(in[at + i * inner] - most));
    sum = warp_sum(sum);
    const double log_sum = log(sum);
    for (int64_t i = work_lane(); i < n; i += 32) {
        const double x = (double)(in[at + i * inner] - most);
        out[at + i * inner] = (float)(logarithm ? x - log_sum : exp(x) / sum);
    }
}

static __global__ void softmax_back(float *din, const float *dout, const float *out, bool logarithm, int64_t lines,
                                    int64_t n, int64_t inner) {
    const int64_t line = work_line();
    if (line >= lines)
        return;
    const int64_t at = line / inner * n * inner + line % inner;
    double sum = 0;
    for (int64_t i = at + work_lane() * inner; i < at + n * inner; i += 32 * inner)
        sum += logarithm ? (double)dout[i] : (double)dout[i] * (double)out[i];
    sum = warp_sum(sum);
    for (int64_t i = at + work_lane() * inner; i < at + n * inner; i += 32 * inner) {
        const double g = (double)dout[i], y = (double)out[i];
        din[i] = (float)(logarithm ? g - exp(y) * sum : y * (g - sum));
    }
}

void k_softmax_forward(Lane *lane, float *out, const float *in, bool logarithm, int64_t outer, int64_t n,
                       int64_t inner) {
    gpu_launch(softmax, gpu_blocks(outer * inner, WORK_WARPS), WORK_THREADS, 0, lane->stream, out, in, logarithm,
               outer * inner, n, inner);
}

void k_softmax_backward(Lane *lane, float *din, const float *dout, const float *out, bool logarithm, int64_t outer,
                        int64_t n, int64_t inner) {
    gpu_launch(softmax_back, gpu_blocks(outer * inner, WORK_WARPS), WORK_THREADS, 0, lane->stream, din, dout, out,
               logarithm, outer * inner, n, inner);
}

/* ---- Norms ------------------------------------------------------------------------------------------------------ */

struct KNorm {
    NormShape shape;
    int batch;
    float *weight, *bias; /* (channels), or NULL */
};

KNorm *k_norm_new(const NormShape *shape, int batch, const float *weight, const float *bias) {
    if (shape->groups * shape->n > INT32_MAX)
        kernel_fail("norm: a sample of %lld values is too large, at most 2^31 - 1 are supported",
                 (long long)(shape->groups * shape->n));
    KNorm *norm = work_new<KNorm>();
    norm->shape = *shape;
    norm->batch = batch;
    norm->weight = work_constant(weight, (size_t)shape->channels);
    norm->bias = work_constant(bias, (size_t)shape->channels);
    return norm;
}

void k_norm_free(KNorm *norm) {
    if (!norm)
        return;
    dev_free(norm->weight);
    dev_free(norm->bias);
    free(norm);
}

namespace {

struct Moments {
    double mean, scale; /* 1 / sqrt(variance + epsilon) */
};

} // namespace

static __device__ Moments moments_of(const float *x, int n, double epsilon, double *parts) {
    double sum = 0, squares = 0;
    for (int i = (int)threadIdx.x; i < n; i += WORK_THREADS)
        sum += (double)x[i];
    const double mean = block_sum(sum, parts) / (double)n;
    for (int i = (int)threadIdx.x; i < n; i += WORK_THREADS)
        squares += ((double)x[i] - mean) * ((double)x[i] - mean);
    return {mean, 1 / sqrt(block_sum(squares, parts) / (double)n + epsilon)};
}

/* Of the value at `at` of a sample. */
static __device__ __forceinline__ uint32_t channel_of(uint32_t at, const NormShape &s) {
    return at / (uint32_t)s.pixels % (uint32_t)s.channels;
}

static __global__ void norm_forward(float *out, const float *in, const float *weight, const float *bias, NormShape s) {
    __shared__ double parts[WORK_WARPS];
    const int64_t run = blockIdx.x;
    const uint32_t first = (uint32_t)(run % s.groups * s.n);
    in += run * s.n;
    out += run * s.n;
    const Moments m = moments_of(in, (int)s.n, (double)s.epsilon, parts);
    for (uint32_t i = threadIdx.x; i < (uint32_t)s.n; i += WORK_THREADS) {
        const uint32_t c = channel_of(first + i, s);
        const double scale = weight ? m.scale * (double)weight[c] : m.scale;
        out[i] = (float)(((double)in[i] - m.mean) * scale + (bias ? (double)bias[c] : 0));
    }
}

/* With h = (x - mean) scale and g = dout weight: dx = scale (g - mean(g) - h mean(g h)). */
static __global__ void norm_backward(float *din, const float *dout, const float *in, const float *weight, NormShape s) {
    __shared__ double parts[WORK_WARPS];
    const int64_t run = blockIdx.x;
    const uint32_t first = (uint32_t)(run % s.groups * s.n);
    in += run * s.n;
    dout += run * s.n;
    din += run * s.n;
    const Moments m = moments_of(in, (int)s.n, (double)s.epsilon, parts);
    double sum = 0, product_sum = 0;
    for (uint32_t i = threadIdx.x; i < (uint32_t)s.n; i += WORK_THREADS) {
        const double g = (double)dout[i] * (weight ? (double)weight[channel_of(first + i, s)] : 1);
        sum += g;
        product_sum += g * ((double)in[i] - m.mean) * m.scale;
    }
    sum = block_sum(sum, parts) / (double)s.n;
    product_sum = block_sum(product_sum, parts) / (double)s.n;
    for (uint32_t i = threadIdx.x; i < (uint32_t)s.n; i += WORK_THREADS) {
        const double g = (double)dout[i] * (weight ? (double)weight[channel_of(first + i, s)] : 1);
        const double h = ((double)in[i] - m.mean) * m.scale;
        din[i] = (float)(m.scale * (g - sum - h * product_sum));
    }
}

void k_norm_forward(Lane *lane, const KNorm *norm, float *out, const float *in) {
    gpu_launch(norm_forward, gpu_blocks(norm->batch * norm->shape.groups, 1), WORK_THREADS, 0, lane->stream, out, in,
               norm->weight, norm->bias, norm->shape);
}

void k_norm_backward(Lane *lane, const KNorm *norm, float *din, const float *dout, const float *in) {
    gpu_launch(norm_backward, gpu_blocks(norm->batch * norm->shape.groups, 1), WORK_THREADS, 0, lane->stream, din, dout,
               in, norm->weight, norm->shape);
}

/* ---- Local response --------------------------------------------------------------------------------------------- */

static __global__ void lrn_forward(float *out, const float *in, LrnShape lrn, int B, int C, uint32_t pixels) {
    const uint32_t i = work_index(), c = i / pixels, p = i % pixels;
    if (c >= (uint32_t)C)
        return;
    const int64_t sample = (int64_t)C * pixels;
    for (int64_t b = blockIdx.y; b < B; b += gridDim.y) {
        const float s = response(&lrn, in + b * sample + p, (int)c, C, pixels);
        out[b * sample + i] = in[b * sample + i] * powf(s, -lrn.beta);
    }
}

static __global__ void lrn_backward(float *din, const float *dout, const float *in, LrnShape lrn, int B, int C,
                                    uint32_t pixels) {
    const uint32_t i = work_index(), c = i / pixels, p = i % pixels;
    if (c >= (uint32_t)C)
        return;
    const int64_t sample = (int64_t)C * pixels;
    const Channels k = reached_by(&lrn, (int)c, C);
    for (int64_t b = blockIdx.y; b < B; b += gridDim.y) {
        const float *x = in + b * sample + p, *g = dout + b * sample + p;
        float sum = 0, factor = 0; /* s^-beta of c itself */
        for (int j = k.from; j < k.to; j++) {
            const float s = response(&lrn, x, j, C, pixels), power = powf(s, -lrn.beta);
            sum += g[(int64_t)j * pixels] * x[(int64_t)j * pixels] * power / s;
            factor = j == (int)c ? power : factor;
        }
        din[b * sample + i] =
            g[(int64_t)c * pixels] * factor - 2 * lrn.alpha * lrn.beta / (float)lrn.size * x[(int64_t)c * pixels] * sum;
    }
}

void k_lrn_forward(Lane *lane, float *out, const float *in, const LrnShape *lrn, int B, int C, int64_t pixels) {
    gpu_launch(lrn_forward, work_grid(C * pixels, B), WORK_THREADS, 0, lane->stream, out, in, *lrn, B, C, pixels);
}

void k_lrn_backward(Lane *lane, float *din, const float *dout, const float *in, const LrnShape *lrn, int B, int C,
                    int64_t pixels, void *scratch) {
    (void)scratch; /* nothing is kept */
    gpu_launch(lrn_backward, work_grid(C * pixels, B), WORK_THREADS, 0, lane->stream, din, dout, in, *lrn, B, C,
               pixels);
}
