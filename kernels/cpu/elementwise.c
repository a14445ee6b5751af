/* elementwise.c: functions of one value, and of two that are broadcast.
 *
 * Functions of one value are those of functions.h, 16 values at a time where the machine has such vectors; logarithm and
 * power are libm's, one by one. Two operands are walked by steps: an operand that is broadcast has step 0 on that axis,
 * and axes that lie behind one another in all three arrays are walked as one, so that the usual cases (equal shapes; one
 * number a channel) have long inner loops.
 * A broadcast operand's gradient is summed in double, in the order of the walk, sample by sample. */
#include <string.h>

#include "cpu.h"
#include "functions.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Channels that only round up a block are zeros again. */
static void zero_padding(float *value, Layout layout, int B, int C, int64_t pixels) {
    const int width = cpu_width(layout), from = C % width;
    if (from == 0)
        return;
    const int64_t sample = (int64_t)cpu_rounded(C, width) * pixels, last = (int64_t)(C / width) * pixels * width;
    for (int b = 0; b < B; b++)
        for (int64_t p = 0; p < pixels; p++)
            for (int c = from; c < width; c++)
                value[b * sample + last + p * width + c] = 0;
}

/* ---- One operand ------------------------------------------------------------------------------------------------ */

#define EACH_FUNCTION(DO)                                                                                              \
    DO(K_CLIP)                                                                                                         \
    DO(K_LEAKY_RELU)                                                                                                   \
    DO(K_ELU)                                                                                                          \
    DO(K_SELU)                                                                                                         \
    DO(K_SIGMOID)                                                                                                      \
    DO(K_HARD_SIGMOID)                                                                                                 \
    DO(K_HARD_SWISH)                                                                                                   \
    DO(K_TANH)                                                                                                         \
    DO(K_SOFTPLUS)                                                                                                     \
    DO(K_GELU)                                                                                                         \
    DO(K_GELU_TANH)                                                                                                    \
    DO(K_ERF)                                                                                                          \
    DO(K_SQRT)                                                                                                         \
    DO(K_EXP)                                                                                                          \
    DO(K_LOG)                                                                                                          \
    DO(K_NEG)                                                                                                          \
    DO(K_ABS)                                                                                                          \
    DO(K_RECIPROCAL)                                                                                                   \
    DO(K_POW)

/* Each value by itself, so that working in place does not keep the loops from becoming vectors. */
CPU_CLONES static void each_value(float *out, const float *in, KUnary u, int64_t count) {
#define FORWARD(f)                                                                                                     \
    case f: _Pragma("GCC ivdep") for (int64_t i = 0; i < count; i++) out[i] = value_of(f, &u, in[i]); break;
    switch (u.function) { EACH_FUNCTION(FORWARD) }
}

CPU_CLONES static void each_slope(float *din, const float *dout, const float *in, KUnary u, int64_t count) {
#define BACKWARD(f)                                                                                                    \
    case f: _Pragma("GCC ivdep") for (int64_t i = 0; i < count; i++) din[i] = dout[i] * slope_of(f, &u, in[i]); break;
    switch (u.function) { EACH_FUNCTION(BACKWARD) }
}

void k_unary_forward(Lane *lane, float *out, const float *in, Layout layout, const KUnary *unary, int B, int C, int H,
                     int W) {
    (void)lane;
    each_value(out, in, *unary, B * cpu_sample_size(layout, C, H, W));
    zero_padding(out, layout, B, C, (int64_t)H * W);
}

void k_unary_backward(Lane *lane, float *din, const float *dout, const float *in, Layout layout, const KUnary *unary,
                      int B, int C, int H, int W) {
    (void)lane;
    each_slope(din, dout, in, *unary, B * cpu_sample_size(layout, C, H, W));
    zero_padding(din, layout, B, C, (int64_t)H * W);
}

/* ---- Two operands ----------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t size, a, b; /* of an axis; steps of a and b, 0 where broadcast */
} Axis;

struct KBinary {
    KBinaryKind kind;
    Layout layout;
    int batch, channels;
    int64_t pixels; /* of blocked values */
    Axis axes[KDIMS];
    int n;              /* axes; the last is the inner one */
    int64_t out_size;   /* floats of a sample */
    int64_t size[2];    /* of a, b; 0 step between samples for a constant */
    bool spread[2];     /* broadcast */
    float *constant[2]; /* or NULL */
};

/* Sizes in memory: blocked (C, H, W) is (blocks, H, W, width). */
static void laid_out(int64_t sizes[KDIMS], const int shape[KDIMS], Layout layout, int channels) {
    for (int d = 0; d < KDIMS; d++)
        sizes[d] = shape[d];
    if (layout == LAYOUT_PLAIN)
        return;
    const int width = cpu_width(layout);
    sizes[0] = 1;
    sizes[1] = cpu_rounded(channels, width) / width;
    sizes[2] = shape[KDIMS - 2];
    sizes[3] = shape[KDIMS - 1];
    sizes[4] = width;
}

static float *constant_in_layout(const float *values, const int shape[KDIMS], Layout layout, int channels,
                                 int64_t size) {
    float *constant = dev_alloc((size_t)size * sizeof(float));
    const int width = cpu_width(layout), C = shape[KDIMS - 3];
    const int64_t pixels = (int64_t)shape[KDIMS - 2] * shape[KDIMS - 1];
    if (layout == LAYOUT_PLAIN) {
        memcpy(constant, values, (size_t)size * sizeof(float));
        return constant;
    }
    for (int64_t i = 0; i < size; i++) {
        const int64_t c = i / (pixels * width) * width + i % width, p = i / width % pixels;
        constant[i] = c < channels ? values[(C == 1 ? 0 : c) * pixels + p] : 0;
    }
    return constant;
}

/* Axes of size 1 are left out; one that lies behind the next in all three arrays is joined to it. */
static void join_axes(KBinary *binary, const int64_t out[KDIMS], const int64_t sizes[2][KDIMS]) {
    int64_t step[2] = {1, 1};
    Axis axes[KDIMS];
    int n = 0;
    for (int d = KDIMS - 1; d >= 0; d--) { /* innermost first */
        const Axis axis = {out[d], sizes[0][d] > 1 ? step[0] : 0, sizes[1][d] > 1 ? step[1] : 0};
        step[0] *= sizes[0][d];
        step[1] *= sizes[1][d];
        if (axis.size == 1)
            continue;
        Axis *last = n > 0 ? &axes[n - 1] : NULL;
        if (last && axis.a == last->size * last->a && axis.b == last->size * last->b)
            last->size *= axis.size;
        else
            axes[n++] = axis;
    }
    if (n == 0)
        axes[n++] = (Axis){1, 1, 1};
    binary->n = n;
    for (int d = 0; d < n; d++)
        binary->axes[d] = axes[n - 1 - d];
}

KBinary *k_binary_new(KBinaryKind kind, Layout layout, int batch, const int out[KDIMS], const int a[KDIMS],
                      const int b[KDIMS], const float *a_constant, const float *b_constant) {
    KBinary *binary = dev_alloc(sizeof *binary);
    const int channels = out[KDIMS - 3];
    *binary = (KBinary){.kind = kind,
                        .layout = layout,
                        .batch = batch,
                        .channels = channels,
                        .pixels = (int64_t)out[KDIMS - 2] * out[KDIMS - 1],
                        .out_size = 1,
                        .size = {1, 1}};
    const int *const shapes[2] = {a, b};
    const float *const given[2] = {a_constant, b_constant};
    int64_t out_sizes[KDIMS], sizes[2][KDIMS];
    laid_out(out_sizes, out, layout, channels);
    for (int side = 0; side < 2; side++)
        laid_out(sizes[side], shapes[side], layout, channels);
    for (int d = 0; d < KDIMS; d++) {
        binary->out_size *= out_sizes[d];
        for (int side = 0; side < 2; side++)
            binary->size[side] *= sizes[side][d];
    }
    join_axes(binary, out_sizes, (const int64_t(*)[KDIMS])sizes);
    for (int side = 0; side < 2; side++) {
        binary->spread[side] = binary->size[side] != binary->out_size;
        if (given[side])
            binary->constant[side] =
                constant_in_layout(given[side], shapes[side], layout, channels, binary->size[side]);
    }
    return binary;
}

void k_binary_free(KBinary *binary) {
    if (!binary)
        return;
    dev_free(binary->constant[0]);
    dev_free(binary->constant[1]);
    dev_free(binary);
}

size_t k_binary_scratch(const KBinary *binary) {
    int64_t most = 0;
    for (int side = 0; side < 2; side++)
        if (binary->spread[side] && binary->size[side] > most)
            most = binary->size[side];
    return (size_t)most * sizeof(double);
}

/* One run of the inner axis. */
ALWAYS_INLINE void run_forward(KBinaryKind kind, float *out, const float *a, const float *b, int64_t n, int64_t sa,
                               int64_t sb) {
    if (sa == 1 && sb == 1)
        for (int64_t i = 0; i < n; i++)
            out[i] = result(kind, a[i], b[i]);
    else if (sa == 1 && sb == 0)
        for (int64_t i = 0; i < n; i++)
            out[i] = result(kind, a[i], *b);
    else
        for (int64_t i = 0; i < n; i++)
            out[i] = result(kind, a[i * sa], b[i * sb]);
}

/* to: the whole gradient, written (steps as out), or sum: what is added to (steps as the operand, step s). */
ALWAYS_INLINE void run_backward(KBinaryKind kind, int side, float *to, double *sum, int64_t s, const float *dout,
                                const float *a, const float *b, int64_t n, int64_t sa, int64_t sb) {
    if (to)
        for (int64_t i = 0; i < n; i++)
            to[i] = share(kind, side, dout[i], a[i * sa], b[i * sb]);
    else
        for (int64_t i = 0; i < n; i++)
            sum[i * s] += (double)share(kind, side, dout[i], a[i * sa], b[i * sb]);
}

/* The next run: index counts the outer axes; false after the last. */
static bool next_run(const KBinary *binary, int64_t index[KDIMS], int64_t *at_a, int64_t *at_b) {
    for (int d = binary->n - 2; d >= 0; d--) {
        const Axis *axis = &binary->axes[d];
        *at_a += axis->a;
        *at_b += axis->b;
        if (++index[d] < axis->size)
            return true;
        *at_a -= axis->a * axis->size;
        *at_b -= axis->b * axis->size;
        index[d] = 0;
    }
    return false;
}

CPU_CLONES static void sample_forward(const KBinary *binary, float *out, const float *a, const float *b) {
    const Axis inner = binary->axes[binary->n - 1];
    int64_t index[KDIMS] = {0}, at_a = 0, at_b = 0;
    do {
#define RUN(k)                                                                                                         \
    case k: run_forward(k, out, a + at_a, b + at_b, inner.size, inner.a, inner.b); break;
        switch (binary->kind) {
            RUN(K_ADD)
            RUN(K_SUB)
            RUN(K_MUL)
            RUN(K_DIV)
            RUN(K_PRELU)
            RUN(K_LESS)
            RUN(K_LESS_EQUAL)
            RUN(K_EQUAL)
            RUN(K_WHERE)
            RUN(K_WHERE_NOT)
        }
        out += inner.size;
    } while (next_run(binary, index, &at_a, &at_b));
}

CPU_CLONES static void sample_backward(const KBinary *binary, int side, float *to, double *sum, const float *dout,
                                       const float *a, const float *b) {
    const Axis inner = binary->axes[binary->n - 1];
    int64_t index[KDIMS] = {0}, at_a = 0, at_b = 0;
    do {
        double *here = sum ? sum + (side == 0 ? at_a : at_b) : NULL;
        const int64_t s = side == 0 ? inner.a : inner.b;
#define BACK(k)                                                                                                        \
    case k: run_backward(k, side, to, here, s, dout, a + at_a, b + at_b, inner.size, inner.a, inner.b); break;
        switch (binary->kind) {
            BACK(K_ADD)
            BACK(K_SUB)
            BACK(K_MUL)
            BACK(K_DIV)
            BACK(K_PRELU)
            BACK(K_LESS)
            BACK(K_LESS_EQUAL)
            BACK(K_EQUAL)
            BACK(K_WHERE)
            BACK(K_WHERE_NOT)
        }
        dout += inner.size;
        to = to ? to + inner.size : NULL;
    } while (next_run(binary, index, &at_a, &at_b));
}

static const float *operand(const KBinary *binary, int side, const float *values, int64_t sample) {
    return binary->constant[side] ? binary->constant[side] : values + sample * binary->size[side];
}

void k_binary_forward(Lane *lane, const KBinary *binary, float *out, const float *a, const float *b) {
    (void)lane;
    for (int64_t s = 0; s < binary->batch; s++)
        sample_forward(binary, out + s * binary->out_size, operand(binary, 0, a, s), operand(binary, 1, b, s));
    if (binary->kind == K_DIV || binary->kind == K_LESS_EQUAL || binary->kind == K_EQUAL) /* 0 and 0 give another */
        zero_padding(out, binary->layout, binary->batch, binary->channels, binary->pixels);
}

void k_binary_backward(Lane *lane, const KBinary *binary, float *da, float *db, const float *dout, const float *a,
                       const float *b, void *scratch) {
    (void)lane;
    float *const gradients[2] = {da, db};
    for (int side = 0; side < 2; side++) {
        if (!gradients[side])
            continue;
        double *sum = binary->spread[side] ? scratch : NULL;
        const int64_t size = binary->size[side];
        for (int64_t s = 0; s < binary->batch; s++) {
            float *to = gradients[side] + s * size;
            if (sum)
                memset(sum, 0, (size_t)size * sizeof *sum);
            sample_backward(binary, side, sum ? NULL : to, sum, dout + s * binary->out_size, operand(binary, 0, a, s),
                            operand(binary, 1, b, s));
            for (int64_t i = 0; sum && i < size; i++)
                to[i] = (float)sum[i];
        }
        if (binary->kind == K_DIV)
            zero_padding(gradients[side], binary->layout, binary->batch, binary->channels,
                         sum ? size / cpu_rounded(binary->channels, cpu_width(binary->layout)) : binary->pixels);
    }
}
