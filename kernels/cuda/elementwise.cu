/* elementwise.cu: functions of one value, and of two that are broadcast.
 *
 * A thread for each number; the function is chosen by a branch that all threads take alike. Two operands are walked by
 * steps, with joined axes, as in kernels/cpu/elementwise.c. A broadcast operand's gradient is summed in double by a warp
 * for each of its numbers.
 * Bound by memory (8 to 12 bytes a number) but for the dearest functions: erf and powers are 30 to 60 instructions, and
 * an axis that is walked about 25. An estimate: it has run on the host executor only, never on a GPU. */
#include <stdlib.h>

#include "functions.h"
#include "work.h"

/* ---- One operand ------------------------------------------------------------------------------------------------ */

static __global__ void unary_forward(float *out, const float *in, KUnary unary, int64_t count) {
    const int64_t i = (int64_t)blockIdx.x * WORK_THREADS + threadIdx.x;
    if (i < count)
        out[i] = value_of(unary.function, &unary, in[i]);
}

static __global__ void unary_backward(float *din, const float *dout, const float *in, KUnary unary, int64_t count) {
    const int64_t i = (int64_t)blockIdx.x * WORK_THREADS + threadIdx.x;
    if (i < count)
        din[i] = dout[i] * slope_of(unary.function, &unary, in[i]);
}

void k_unary_forward(Lane *lane, float *out, const float *in, Layout layout, const KUnary *unary, int B, int C, int H,
                     int W) {
    const int64_t count = B * k_sample_step(layout, C, H, W);
    gpu_launch(unary_forward, gpu_blocks(count, WORK_THREADS), WORK_THREADS, 0, lane->stream, out, in, *unary, count);
}

void k_unary_backward(Lane *lane, float *din, const float *dout, const float *in, Layout layout, const KUnary *unary,
                      int B, int C, int H, int W) {
    const int64_t count = B * k_sample_step(layout, C, H, W);
    gpu_launch(unary_backward, gpu_blocks(count, WORK_THREADS), WORK_THREADS, 0, lane->stream, din, dout, in, *unary,
               count);
}

/* ---- Two operands ----------------------------------------------------------------------------------------------- */

namespace {

/* Axes of a sample, the last fastest. Steps of the operands are 0 where they are broadcast. */
struct Walk {
    int n;
    uint32_t size[KDIMS], out[KDIMS], a[KDIMS], b[KDIMS];
};

struct Offsets {
    uint32_t out, a, b;
};

} // namespace

struct KBinary {
    KBinaryKind kind;
    int batch;
    Walk all;
    Walk kept[2], summed[2]; /* of a, b, where broadcast: axes it has, axes it has not */
    int64_t out_size;        /* floats of a sample */
    int64_t size[2];         /* of a, b */
    float *constant[2];      /* or NULL */
};

static __device__ __forceinline__ Offsets offsets_at(const Walk &walk, uint32_t index) {
    Offsets at = {0, 0, 0};
#pragma unroll
    for (int d = KDIMS - 1; d >= 0; d--) {
        if (d >= walk.n)
            continue;
        const uint32_t i = d > 0 ? index % walk.size[d] : index;
        index /= walk.size[d];
        at.out += i * walk.out[d];
        at.a += i * walk.a[d];
        at.b += i * walk.b[d];
    }
    return at;
}

/* Axes of size 1 are left out; one that lies behind the next in all three arrays is joined to it. */
static Walk joined_axes(const int out[KDIMS], const int a[KDIMS], const int b[KDIMS]) {
    Walk turned = {}; /* innermost first */
    uint32_t steps[3] = {1, 1, 1};
    for (int d = KDIMS - 1; d >= 0; d--) {
        const uint32_t size = (uint32_t)out[d], step_a = a[d] > 1 ? steps[1] : 0, step_b = b[d] > 1 ? steps[2] : 0;
        const int last = turned.n - 1;
        if (size > 1 && last >= 0 && step_a == turned.size[last] * turned.a[last] &&
            step_b == turned.size[last] * turned.b[last]) {
            turned.size[last] *= size;
        } else if (size > 1) {
            const int at = turned.n++;
            turned.size[at] = size;
            turned.out[at] = steps[0];
            turned.a[at] = step_a;
            turned.b[at] = step_b;
        }
        steps[0] *= size;
        steps[1] *= (uint32_t)a[d];
        steps[2] *= (uint32_t)b[d];
    }
    Walk walk = turned;
    for (int d = 0; d < turned.n; d++) {
        const int from = turned.n - 1 - d;
        walk.size[d] = turned.size[from];
        walk.out[d] = turned.out[from];
        walk.a[d] = turned.a[from];
        walk.b[d] = turned.b[from];
    }
    return walk;
}

/* The axes that an operand has (step not 0), or has not. */
static Walk some_axes(const Walk &all, int side, bool kept) {
    Walk some = {};
    for (int d = 0; d < all.n; d++)
        if (((side == 0 ? all.a : all.b)[d] != 0) == kept) {
            const int at = some.n++;
            some.size[at] = all.size[d];
            some.out[at] = all.out[d];
            some.a[at] = all.a[d];
            some.b[at] = all.b[d];
        }
    return some;
}

KBinary *k_binary_new(KBinaryKind kind, Layout layout, int batch, const int out[KDIMS], const int a[KDIMS],
                      const int b[KDIMS], const float *a_constant, const float *b_constant) {
    (void)layout;
    KBinary *binary = work_new<KBinary>();
    const int *const shapes[2] = {a, b};
    const float *const given[2] = {a_constant, b_constant};
    binary->kind = kind;
    binary->batch = batch;
    binary->out_size = binary->size[0] = binary->size[1] = 1;
    for (int d = 0; d < KDIMS; d++) {
        binary->out_size *= out[d];
        for (int side = 0; side < 2; side++)
            binary->size[side] *= shapes[side][d];
    }
    binary->all = joined_axes(out, a, b);
    for (int side = 0; side < 2; side++) {
        binary->kept[side] = some_axes(binary->all, side, true);
        binary->summed[side] = some_axes(binary->all, side, false);
        binary->constant[side] = work_constant(given[side], (size_t)binary->size[side]);
    }
    return binary;
}

void k_binary_free(KBinary *binary) {
    if (!binary)
        return;
    dev_free(binary->constant[0]);
    dev_free(binary->constant[1]);
    free(binary);
}

size_t k_binary_scratch(const KBinary *binary) {
    (void)binary; /* the sums stay in registers */
    return 0;
}

/* a_sample, b_sample: floats from one sample to the next, 0 of a constant. */
static __global__ void binary_forward(float *out, const float *a, const float *b, KBinaryKind kind, Walk all,
                                      uint32_t sample, int64_t a_sample, int64_t b_sample, int64_t batch) {
    const uint32_t i = work_index();
    if (i >= sample)
        return;
    const Offsets at = offsets_at(all, i);
    for (int64_t s = blockIdx.y; s < batch; s += gridDim.y)
        out[s * sample + i] = result(kind, a[s * a_sample + at.a], b[s * b_sample + at.b]);
}

/* Of an operand that has the result's shape. */
static __global__ void binary_backward(float *gradient, const float *dout, const float *a, const float *b,
                                       KBinaryKind kind, int side, Walk all, uint32_t sample, int64_t a_sample,
                                       int64_t b_sample, int64_t batch) {
    const uint32_t i = work_index();
    if (i >= sample)
        return;
    const Offsets at = offsets_at(all, i);
    for (int64_t s = blockIdx.y; s < batch; s += gridDim.y)
        gradient[s * sample + i] =
            share(kind, side, dout[s * sample + i], a[s * a_sample + at.a], b[s * b_sample + at.b]);
}

/* Of a broadcast operand of `size` numbers: a warp for each, lanes take every 32nd of its `cells` places. */
static __global__ void binary_sums(float *gradient, const float *dout, const float *a, const float *b, KBinaryKind kind,
                                   int side, Walk kept, Walk summed, uint32_t size, uint32_t cells, uint32_t sample,
                                   int64_t a_sample, int64_t b_sample, int64_t batch) {
    const int64_t line = work_line();
    if (line >= size * batch) /* the whole warp */
        return;
    const int64_t s = line / size;
    const Offsets from = offsets_at(kept, (uint32_t)(line % size));
    dout += s * sample + from.out;
    a += s * a_sample + from.a;
    b += s * b_sample + from.b;
    double sum = 0;
    for (uint32_t i = (uint32_t)work_lane(); i < cells; i += 32) {
        const Offsets at = offsets_at(summed, i);
        sum += (double)share(kind, side, dout[at.out], a[at.a], b[at.b]);
    }
    sum = warp_sum(sum);
    if (work_lane() == 0)
        gradient[line] = (float)sum;
}

void k_binary_forward(Lane *lane, const KBinary *binary, float *out, const float *a, const float *b) {
    const float *const *constant = binary->constant;
    gpu_launch(binary_forward, work_grid(binary->out_size, binary->batch), WORK_THREADS, 0, lane->stream, out,
               constant[0] ? constant[0] : a, constant[1] ? constant[1] : b, binary->kind, binary->all,
               binary->out_size, constant[0] ? 0 : binary->size[0], constant[1] ? 0 : binary->size[1], binary->batch);
}

void k_binary_backward(Lane *lane, const KBinary *binary, float *da, float *db, const float *dout, const float *a,
                       const float *b, void *scratch) {
    (void)scratch;
    float *const gradients[2] = {da, db};
    const float *const *constant = binary->constant;
    const float *const from_a = constant[0] ? constant[0] : a, *const from_b = constant[1] ? constant[1] : b;
    const int64_t a_sample = constant[0] ? 0 : binary->size[0], b_sample = constant[1] ? 0 : binary->size[1];
    for (int side = 0; side < 2; side++) {
        const int64_t size = binary->size[side];
        if (!gradients[side])
            continue;
        if (size == binary->out_size)
            gpu_launch(binary_backward, work_grid(size, binary->batch), WORK_THREADS, 0, lane->stream, gradients[side],
                       dout, from_a, from_b, binary->kind, side, binary->all, size, a_sample, b_sample, binary->batch);
        else
            gpu_launch(binary_sums, gpu_blocks(size * binary->batch, WORK_WARPS), WORK_THREADS, 0, lane->stream,
                       gradients[side], dout, from_a, from_b, binary->kind, side, binary->kept[side],
                       binary->summed[side], size, binary->out_size / size, binary->out_size, a_sample, b_sample,
                       binary->batch);
    }
}
