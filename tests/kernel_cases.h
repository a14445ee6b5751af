/* kernel_cases.h: the operations of the network and their shapes, with data: test_kernels.c tests them against ref.c,
 * bench_kernels.c times them. */
#ifndef CNNSCOPE_KERNEL_CASES_H
#define CNNSCOPE_KERNEL_CASES_H

#include <stdio.h>
#include <stdlib.h>

#include "graph.h"
#include "ref.h"

enum { BATCH = 33 };

typedef struct {
    OpKind op;
    bool relu;   /* a batch norm with the relu behind it; a max pooling with both before it */
    ConvShape w; /* in_*, and for windows kernel, stride, pad, out_channels; OP_LINEAR: out_channels; the rest is set */
    double tolerance; /* of the largest value */
} Case;

#define WINDOW(ic, oc, h, w, kh, kw, sh, sw, t, l, b, r)                                                               \
    { ic, oc, h, w, 0, 0, kh, kw, sh, sw, t, l, b, r, 1, 1, 1 }
#define CONV(...)                                                                                                      \
    { OP_CONV, false, WINDOW(__VA_ARGS__), 2e-6 }
#define POOL(c, ...)                                                                                                   \
    { OP_MAX_POOL, false, WINDOW(c, c, __VA_ARGS__), 1e-6 }
#define POOL_OF_RELU(c, ...)                                                                                           \
    { OP_MAX_POOL, true, WINDOW(c, c, __VA_ARGS__), 1e-6 }
#define SHAPED(op, relu, c, h, w, tolerance)                                                                           \
    { op, relu, WINDOW(c, c, h, w, 1, 1, 1, 1, 0, 0, 0, 0), tolerance }

static const Case cases[] = {
    CONV(1, 16, 28, 28, 3, 3, 1, 1, 1, 1, 1, 1),
    CONV(16, 32, 14, 14, 3, 3, 1, 1, 1, 1, 1, 1),
    CONV(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0),
    CONV(1, 5, 7, 13, 5, 5, 1, 1, 2, 2, 2, 2),
    CONV(3, 8, 7, 13, 3, 3, 1, 1, 1, 1, 1, 1),
    CONV(3, 8, 20, 33, 3, 3, 1, 1, 1, 1, 1, 1),
    CONV(2, 17, 9, 9, 3, 5, 1, 1, 1, 2, 1, 2),
    CONV(3, 16, 15, 17, 7, 7, 2, 2, 3, 3, 3, 3),
    CONV(3, 33, 12, 67, 7, 7, 2, 2, 3, 3, 3, 3),
    CONV(3, 20, 8, 11, 2, 4, 3, 2, 1, 3, 0, 2),
    CONV(3, 7, 5, 5, 1, 1, 1, 1, 0, 0, 0, 0),
    CONV(1, 9, 6, 6, 2, 2, 1, 1, 3, 2, 4, 3),
    CONV(4, 6, 5, 8, 3, 3, 1, 1, 1, 1, 1, 1),
    CONV(5, 33, 6, 4, 3, 3, 2, 2, 1, 1, 1, 1),
    CONV(7, 13, 11, 6, 5, 3, 1, 1, 2, 1, 2, 1),
    CONV(64, 256, 4, 5, 1, 1, 1, 1, 0, 0, 0, 0),
    CONV(256, 64, 4, 5, 1, 1, 1, 1, 0, 0, 0, 0),
    CONV(48, 40, 7, 7, 1, 1, 2, 2, 0, 0, 0, 0),
    CONV(33, 17, 7, 13, 3, 3, 2, 1, 1, 1, 1, 1),
    CONV(130, 10, 3, 3, 3, 3, 1, 1, 0, 0, 0, 0),
    CONV(19, 1, 4, 3, 1, 3, 1, 1, 0, 1, 0, 1),
    SHAPED(OP_BATCH_NORM, false, 16, 28, 28, 1e-6),
    SHAPED(OP_BATCH_NORM, false, 1, 1, 1, 1e-6),
    SHAPED(OP_BATCH_NORM, false, 33, 3, 5, 1e-6),
    SHAPED(OP_BATCH_NORM, true, 16, 28, 28, 1e-6),
    SHAPED(OP_BATCH_NORM, true, 7, 3, 5, 1e-6),
    SHAPED(OP_RELU, false, 17, 5, 3, 0),
    SHAPED(OP_RELU, false, 8, 1, 1, 0),
    POOL(16, 28, 28, 2, 2, 2, 2, 0, 0, 0, 0),
    POOL(32, 14, 14, 2, 2, 2, 2, 0, 0, 0, 0),
    POOL(7, 7, 13, 2, 2, 2, 2, 0, 0, 0, 0),
    POOL(5, 9, 8, 3, 3, 2, 2, 1, 1, 1, 1),
    POOL(17, 6, 7, 3, 2, 1, 1, 2, 1, 0, 1),
    POOL(1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0),
    POOL(3, 20, 21, 20, 21, 1, 1, 0, 0, 0, 0),
    POOL_OF_RELU(16, 28, 28, 2, 2, 2, 2, 0, 0, 0, 0),
    POOL_OF_RELU(32, 14, 14, 2, 2, 2, 2, 0, 0, 0, 0),
    POOL_OF_RELU(7, 7, 13, 2, 2, 2, 2, 0, 0, 0, 0),
    POOL_OF_RELU(5, 9, 8, 3, 3, 2, 2, 1, 1, 1, 1),
    POOL_OF_RELU(17, 6, 7, 3, 2, 1, 1, 2, 1, 0, 1),
    SHAPED(OP_GLOBAL_AVERAGE_POOL, false, 32, 7, 7, 1e-6),
    SHAPED(OP_GLOBAL_AVERAGE_POOL, false, 13, 1, 1, 1e-6),
    SHAPED(OP_GLOBAL_AVERAGE_POOL, false, 17, 31, 5, 1e-6),
    {OP_LINEAR, false, WINDOW(32, 10, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0), 1e-6},
    {OP_LINEAR, false, WINDOW(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0), 1e-6},
    {OP_LINEAR, false, WINDOW(300, 33, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0), 2e-6},
    {OP_LINEAR, false, WINDOW(1000, 257, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0), 2e-6},
};
enum { CASES = sizeof cases / sizeof *cases };

/* ---- One case, with data ---------------------------------------------------------------------------------------- */

typedef struct {
    Node node;
    Shape in, out;
    int64_t in_size, out_size; /* of a sample */
    float *weight, *bias;
    float *x, *dy; /* (BATCH, in), (BATCH, out) */
    bool relu;
    double tolerance;
    char name[128];
} Bench;

static uint64_t random_state = 1; /* of ref_uniform */

static double uniform(void) {
    return ref_uniform(&random_state);
}

static void *need(size_t bytes) {
    void *memory = calloc(1, bytes ? bytes : 1);
    if (!memory)
        abort();
    return memory;
}

/* whole: small whole numbers, so that sums are exact and windows are full of ties. */
static float *numbers(int64_t count, bool whole) {
    float *values = need((size_t)count * sizeof *values);
    for (int64_t i = 0; i < count; i++)
        values[i] = whole ? (float)(int)(uniform() * 3) : (float)uniform();
    return values;
}

static Bench bench_new(const Case *c, bool whole) {
    Bench b = {.relu = c->relu, .tolerance = whole ? 0 : c->tolerance};
    ConvShape w = c->w;
    bool window = c->op == OP_CONV || c->op == OP_MAX_POOL;
    w.out_height =
        window ? (w.in_height + w.pad_top + w.pad_bottom - w.kernel_height) / w.stride_height + 1 : w.in_height;
    w.out_width = window ? (w.in_width + w.pad_left + w.pad_right - w.kernel_width) / w.stride_width + 1 : w.in_width;
    bool vector = c->op == OP_GLOBAL_AVERAGE_POOL || c->op == OP_LINEAR;
    b.in = shape_chw(w.in_channels, w.in_height, w.in_width);
    b.out = shape_chw(w.out_channels, vector ? 1 : w.out_height, vector ? 1 : w.out_width);
    b.in_size = shape_size(b.in);
    b.out_size = shape_size(b.out);
    int64_t weights = c->op == OP_LINEAR ? b.in_size * b.out_size
                                         : (int64_t)w.in_channels * w.out_channels * w.kernel_height * w.kernel_width;
    b.weight = numbers(weights, whole);
    b.bias = numbers(w.out_channels, whole);
    b.x = numbers(BATCH * b.in_size, whole);
    b.dy = numbers(BATCH * b.out_size, whole);
    b.node = (Node){.op = c->op, .shape = b.out, .weight = {{0}, b.weight}, .bias = {{0}, b.bias}};
    if (c->op == OP_LINEAR) {
        b.node.shape = shape_vector(w.out_channels);
        b.node.weight.shape = (Shape){2, {w.out_channels, w.in_channels}};
        b.node.gemm.alpha = b.node.gemm.beta = 1;
    } else {
        b.node.window = w;
    }
    snprintf(b.name, sizeof b.name,
             "op %d relu %d, %d x %d x %d to %d, kernel %d x %d, stride %d x %d, pad %d %d %d %d", (int)c->op, c->relu,
             w.in_channels, w.in_height, w.in_width, w.out_channels, w.kernel_height, w.kernel_width, w.stride_height,
             w.stride_width, w.pad_top, w.pad_left, w.pad_bottom, w.pad_right);
    return b;
}

static void bench_free(Bench *b) {
    free(b->weight);
    free(b->bias);
    free(b->x);
    free(b->dy);
}

/* ---- The kernel under test -------------------------------------------------------------------------------------- */

typedef struct {
    const Bench *bench;
    int batch;
    Layout in, out;
    void *kernel;
    size_t scratch, saved;
} Fast;

static Fast fast_new(const Bench *b, Layout layout, int batch) {
    Fast f = {.bench = b, .batch = batch, .in = layout, .out = layout};
    const Node *n = &b->node;
    const Shape s = b->in;
    switch (n->op) {
    case OP_CONV:
        f.kernel = k_conv_new(&f.out, layout, &n->window, batch, b->weight, b->bias, true);
        f.scratch = k_conv_scratch(f.kernel);
        break;
    case OP_BATCH_NORM:
        f.kernel = k_affine_new(layout, batch, shape_channels(s), shape_height(s), shape_width(s), b->weight, b->bias,
                                b->relu);
        break;
    case OP_RELU:
        f.kernel = k_affine_new(layout, batch, shape_channels(s), shape_height(s), shape_width(s), NULL, NULL, true);
        break;
    case OP_MAX_POOL:
        f.kernel = k_max_pool_new(layout, &n->window, batch, b->relu, b->relu ? b->weight : NULL,
                                  b->relu ? b->bias : NULL);
        f.saved = k_max_pool_saved(f.kernel);
        break;
    case OP_LINEAR:
        f.in = f.out = LAYOUT_PLAIN;
        f.kernel = k_linear_new(batch, (int)b->in_size, (int)b->out_size, b->weight, b->bias, true);
        f.scratch = k_linear_scratch(f.kernel);
        break;
    default: f.out = LAYOUT_PLAIN;
    }
    return f;
}

static void fast_free(Fast *f) {
    switch (f->bench->node.op) {
    case OP_CONV: k_conv_free(f->kernel); break;
    case OP_BATCH_NORM:
    case OP_RELU: k_affine_free(f->kernel); break;
    case OP_MAX_POOL: k_max_pool_free(f->kernel); break;
    case OP_LINEAR: k_linear_free(f->kernel); break;
    default: break;
    }
}

static size_t round64(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static size_t value_bytes(Shape s, Layout layout, int batch) {
    return round64(k_value_bytes(layout, batch, shape_channels(s), shape_height(s), shape_width(s)));
}

/* Where the values of one lane lie. */
typedef struct {
    float *x, *dx, *y, *dy;
    char *saved, *scratch;
} Laid;

static size_t laid_bytes(const Fast *f) {
    return 2 * value_bytes(f->bench->in, f->in, f->batch) + 2 * value_bytes(f->bench->out, f->out, f->batch) +
           round64(f->saved) + f->scratch;
}

/* x and dy: plain. */
static Laid lay(Lane *lane, const Fast *f, const float *x, const float *dy) {
    const Shape in = f->bench->in, out = f->bench->out;
    const size_t in_bytes = value_bytes(in, f->in, f->batch), out_bytes = value_bytes(out, f->out, f->batch);
    char *memory = lane_memory(lane);
    Laid l = {.x = (float *)memory, .dx = (float *)(memory + in_bytes), .y = (float *)(memory + 2 * in_bytes)};
    l.dy = (float *)(memory + 2 * in_bytes + out_bytes);
    l.saved = memory + 2 * in_bytes + 2 * out_bytes;
    l.scratch = l.saved + round64(f->saved);
    k_from_plain(lane, l.x, f->in, x, f->batch, shape_channels(in), shape_height(in), shape_width(in));
    k_from_plain(lane, l.dy, f->out, dy, f->batch, shape_channels(out), shape_height(out), shape_width(out));
    return l;
}

static void fast_forward(Lane *lane, const Fast *f, const Laid *l) {
    const Shape in = f->bench->in;
    switch (f->bench->node.op) {
    case OP_CONV: k_conv_forward(lane, f->kernel, l->y, l->x, l->scratch); break;
    case OP_BATCH_NORM:
    case OP_RELU: k_affine_forward(lane, f->kernel, l->y, l->x); break;
    case OP_MAX_POOL: k_max_pool_forward(lane, f->kernel, l->y, l->saved, l->x); break;
    case OP_LINEAR: k_linear_forward(lane, f->kernel, l->y, l->x, l->scratch); break;
    default:
        k_global_average_forward(lane, l->y, l->x, f->in, f->batch, shape_channels(in), shape_height(in),
                                 shape_width(in));
    }
}

/* After fast_forward. */
static void fast_backward(Lane *lane, const Fast *f, const Laid *l) {
    const Shape in = f->bench->in;
    const bool relu = f->bench->relu || f->bench->node.op == OP_RELU;
    switch (f->bench->node.op) {
    case OP_CONV: k_conv_backward(lane, f->kernel, l->dx, l->dy, l->scratch); break;
    case OP_BATCH_NORM:
    case OP_RELU: k_affine_backward(lane, f->kernel, l->dx, l->dy, relu ? l->y : NULL, false); break;
    case OP_MAX_POOL: k_max_pool_backward(lane, f->kernel, l->dx, l->dy, l->saved, false); break;
    case OP_LINEAR: k_linear_backward(lane, f->kernel, l->dx, l->dy, l->scratch); break;
    default:
        k_global_average_backward(lane, l->dx, f->in, l->dy, f->batch, shape_channels(in), shape_height(in),
                                  shape_width(in));
    }
}

#endif
