/* op_cases.h: every operation of the graph, as a network of one: test_ops.c tests them against ref.c, bench_ops.c times
 * them. */
#ifndef CNNSCOPE_OP_CASES_H
#define CNNSCOPE_OP_CASES_H

#include <math.h>
#include <stdlib.h>

#include "graph.h"
#include "ref.h"

enum { NODES_MAX = 160, POOL = 8192 };

static Arena *arena;
static uint64_t random_state = 1; /* of ref_uniform */
static float pool[POOL];          /* random constants */

static float uniform(void) {
    return (float)ref_uniform(&random_state);
}

static float *numbers(int64_t count) {
    float *values = ARENA_ARRAY(arena, float, count, "numbers");
    for (int64_t i = 0; i < count; i++)
        values[i] = uniform();
    return values;
}

/* First of all. */
static void op_cases_begin(void) {
    arena = arena_new();
    for (int i = 0; i < POOL; i++)
        pool[i] = uniform();
}

/* ---- Networks of one operation ---------------------------------------------------------------------------------- */

typedef enum { ALONE, WITH_SAME, WITH_POOLED, WITH_TURNED, WITH_ITSELF } Second;

typedef struct {
    Node node;     /* constants without values get random ones */
    Shape shape;   /* of what it reads; rank 3 also blocked */
    Second second; /* another value to read */
    bool swapped;  /* ... first */
    bool positive; /* only of positive values */
} Case;

#define CHW(c, h, w)                                                                                                   \
    {                                                                                                                  \
        3, {                                                                                                           \
            c, h, w                                                                                                    \
        }                                                                                                              \
    }
#define UNARY(kind, ...)                                                                                               \
    { .node = {.op = kind, .scalar = {__VA_ARGS__}}, .shape = CHW(19, 3, 4) }
#define PLUS(kind)                                                                                                     \
    { .node = {.op = kind, .scalar = {.alpha = -1.3f}}, .shape = CHW(18, 3, 2), .positive = true }
#define PAIR(kind, other, ...)                                                                                         \
    { .node = {.op = kind}, .shape = __VA_ARGS__, .second = other }
#define FIXED(kind, constant, first, ...)                                                                              \
    { .node = {.op = kind, .operand.shape = constant, .operand_first = first}, .shape = __VA_ARGS__ }
#define SHAPED(...) __VA_ARGS__

static const Case cases[] = {
    {.node = {.op = OP_CONV, .weight.shape = {4, {6, 2, 3, 3}}, .window = {.groups = 2}}, .shape = CHW(4, 6, 5)},
    {.node = {.op = OP_CONV, .weight.shape = {4, {32, 4, 3, 3}}, .window = {.groups = 8}}, .shape = CHW(32, 4, 5)},
    {.node = {.op = OP_CONV, .weight.shape = {4, {48, 16, 3, 1}}, .window = {.groups = 2}}, .shape = CHW(32, 4, 3)},
    {.node = {.op = OP_CONV, .weight.shape = {4, {20, 1, 3, 3}}, .window = {.groups = 20, .pad_top = 1, .pad_left = 2}},
     .shape = CHW(20, 5, 4)},
    {.node = {.op = OP_CONV, .weight.shape = {4, {3, 1, 3, 2}}, .window = {.groups = 3, .stride_height = 2}},
     .shape = CHW(3, 7, 4)},
    {.node = {.op = OP_CONV, .weight.shape = {4, {10, 1, 3, 3}}, .window = {.groups = 5, .pad_bottom = 1}},
     .shape = CHW(5, 5, 4)},
    {.node = {.op = OP_CONV,
              .weight.shape = {4, {7, 3, 3, 2}},
              .window = {.dilation_height = 2, .dilation_width = 3, .pad_top = 2, .pad_right = 1}},
     .shape = CHW(3, 7, 8)},
    {.node = {.op = OP_CONV,
              .weight.shape = {4, {20, 17, 3, 3}},
              .window = {.dilation_height = 2, .dilation_width = 2, .pad_left = 3, .pad_bottom = 1}},
     .shape = CHW(17, 5, 4)},
    {.node = {.op = OP_MAX_POOL, .window = {.kernel_height = 3, .kernel_width = 2, .dilation_height = 2, .pad_top = 1}},
     .shape = CHW(17, 7, 6)},
    {.node = {.op = OP_MAX_POOL,
              .window = {.kernel_height = 3, .kernel_width = 3, .stride_height = 2, .stride_width = 2},
              .ceil_mode = true},
     .shape = CHW(5, 6, 8)},
    {.node = {.op = OP_AVERAGE_POOL,
              .window = {.kernel_height = 3, .kernel_width = 3, .stride_height = 2, .pad_top = 1, .pad_right = 2},
              .ceil_mode = true},
     .shape = CHW(18, 6, 5)},
    {.node = {.op = OP_AVERAGE_POOL,
              .window = {.kernel_height = 3, .kernel_width = 2, .stride_height = 2, .stride_width = 3, .pad_left = 1},
              .ceil_mode = true,
              .count_include_pad = true},
     .shape = CHW(6, 6, 7)},
    {.node = {.op = OP_AVERAGE_POOL,
              .window = {.kernel_height = 2,
                         .kernel_width = 2,
                         .dilation_width = 2,
                         .pad_left = 1,
                         .pad_top = 1,
                         .pad_right = 2,
                         .pad_bottom = 1},
              .count_include_pad = true},
     .shape = CHW(3, 5, 6)},
    {.node = {.op = OP_GLOBAL_AVERAGE_POOL}, .shape = CHW(19, 4, 3)},
    {.node = {.op = OP_GLOBAL_MAX_POOL}, .shape = CHW(19, 4, 3)},
    {.node = {.op = OP_BATCH_NORM, .weight.shape = {1, {7}}, .bias.shape = {1, {7}}}, .shape = {1, {7}}},
    {.node = {.op = OP_BATCH_NORM, .weight.shape = {1, {7}}, .bias.shape = {1, {7}}}, .shape = {2, {7, 5}}},
    {.node = {.op = OP_BATCH_NORM, .weight.shape = {1, {17}}, .bias.shape = {1, {17}}}, .shape = CHW(17, 2, 3)},
    {.node = {.op = OP_LINEAR, .weight.shape = {2, {9, 5}}, .gemm = {.alpha = 0.5f, .beta = 2}}, .shape = {1, {5}}},
    {.node = {.op = OP_LINEAR, .weight.shape = {2, {4, 6}}, .gemm = {.alpha = 1, .beta = 1, .weight_in_out = true}},
     .shape = CHW(3, 2, 4)},
    {.node = {.op = OP_LINEAR, .weight.shape = {2, {6, 24}}, .gemm = {.alpha = 1, .beta = 1, .flatten = true}},
     .shape = CHW(3, 2, 4)},
    UNARY(OP_CLIP, .low = -0.4f, .high = 0.3f),
    UNARY(OP_CLIP, .low = -INFINITY, .high = 0.3f),
    UNARY(OP_LEAKY_RELU, .alpha = 0.1f),
    UNARY(OP_ELU, .alpha = 1.5f),
    UNARY(OP_SELU, .alpha = 1.6732632f, .beta = 1.050701f),
    UNARY(OP_SIGMOID, 0),
    UNARY(OP_HARD_SIGMOID, .alpha = 0.9f, .beta = 0.4f),
    UNARY(OP_HARD_SWISH, 0),
    UNARY(OP_TANH, 0),
    UNARY(OP_SOFTPLUS, 0),
    UNARY(OP_GELU, 0),
    UNARY(OP_GELU, .tanh_form = true),
    UNARY(OP_ERF, 0),
    UNARY(OP_EXP, 0),
    UNARY(OP_NEG, 0),
    UNARY(OP_ABS, 0),
    PLUS(OP_SQRT),
    PLUS(OP_LOG),
    PLUS(OP_RECIPROCAL),
    PLUS(OP_POW),
    PAIR(OP_ADD, WITH_SAME, CHW(18, 3, 4)),
    PAIR(OP_ADD, WITH_ITSELF, CHW(18, 3, 4)),
    PAIR(OP_SUB, WITH_SAME, CHW(3, 3, 4)),
    PAIR(OP_SUB, WITH_POOLED, CHW(20, 3, 4)),
    PAIR(OP_MUL, WITH_POOLED, CHW(20, 3, 4)),
    PAIR(OP_MUL, WITH_POOLED, CHW(3, 9, 8)),
    {.node = {.op = OP_MUL}, .shape = CHW(20, 3, 4), .second = WITH_POOLED, .swapped = true},
    PAIR(OP_MUL, WITH_SAME, CHW(16, 2, 3)),
    PAIR(OP_MUL, WITH_ITSELF, CHW(7, 2, 3)),
    {.node = {.op = OP_DIV}, .shape = CHW(5, 2, 3), .second = WITH_POOLED, .positive = true},
    {.node = {.op = OP_DIV}, .shape = CHW(17, 2, 3), .second = WITH_SAME, .swapped = true, .positive = true},
    FIXED(OP_ADD, SHAPED({3, {18, 1, 1}}), false, CHW(18, 3, 2)),
    FIXED(OP_SUB, SHAPED({0, {0}}), true, CHW(18, 3, 2)),
    FIXED(OP_MUL, SHAPED({3, {18, 3, 2}}), false, CHW(18, 3, 2)),
    FIXED(OP_MUL, SHAPED({1, {2}}), false, CHW(18, 3, 2)),
    FIXED(OP_MUL, SHAPED({3, {1, 3, 2}}), true, CHW(18, 3, 2)),
    FIXED(OP_ADD, SHAPED({2, {5, 4}}), false, SHAPED({1, {4}})),
    FIXED(OP_ADD, SHAPED({4, {2, 3, 1, 4}}), true, CHW(3, 2, 1)),
    {.node = {.op = OP_DIV, .operand.shape = {3, {1, 1, 1}}, .operand_first = true},
     .shape = CHW(17, 2, 3),
     .positive = true},
    FIXED(OP_PRELU, SHAPED({3, {19, 1, 1}}), false, CHW(19, 3, 2)),
    PAIR(OP_PRELU, WITH_SAME, CHW(4, 3, 2)),
    PAIR(OP_LESS, WITH_SAME, CHW(18, 3, 4)),
    FIXED(OP_LESS_EQUAL, SHAPED({3, {1, 1, 1}}), false, CHW(18, 3, 2)),
    PAIR(OP_EQUAL, WITH_ITSELF, CHW(18, 3, 4)),
    FIXED(OP_EQUAL, SHAPED({2, {3, 2}}), true, CHW(5, 3, 2)),
    FIXED(OP_WHERE, SHAPED({3, {18, 1, 1}}), true, CHW(18, 3, 2)),
    FIXED(OP_WHERE_NOT, SHAPED({0, {0}}), false, CHW(18, 3, 2)),
    PAIR(OP_WHERE, WITH_SAME, CHW(18, 3, 2)),
    PAIR(OP_WHERE_NOT, WITH_POOLED, CHW(5, 3, 2)),
    PAIR(OP_MATMUL, WITH_TURNED, CHW(2, 3, 4)),
    {.node = {.op = OP_MATMUL}, .shape = CHW(17, 3, 4), .second = WITH_TURNED, .swapped = true},
    FIXED(OP_MATMUL, SHAPED({2, {5, 3}}), true, CHW(18, 3, 4)),
    FIXED(OP_MATMUL, SHAPED({3, {18, 4, 2}}), false, CHW(18, 3, 4)),
    FIXED(OP_MATMUL, SHAPED({3, {7, 4, 2}}), false, CHW(1, 3, 4)),
    FIXED(OP_MATMUL, SHAPED({4, {2, 1, 5, 1}}), true, SHAPED({4, {1, 3, 1, 4}})),
    PAIR(OP_MATMUL, WITH_TURNED, SHAPED({2, {5, 6}})),
    PAIR(OP_CONCAT, WITH_SAME, CHW(16, 3, 2)),
    PAIR(OP_CONCAT, WITH_SAME, CHW(5, 3, 2)),
    {.node = {.op = OP_CONCAT, .along.axis = 2}, .shape = CHW(16, 3, 2), .second = WITH_SAME},
    PAIR(OP_CONCAT, WITH_SAME, SHAPED({1, {5}})),
    {.node = {.op = OP_RESHAPE, .target = {4, {2, 9, 3, 2}}}, .shape = CHW(18, 3, 2)},
    {.node = {.op = OP_TRANSPOSE, .perm = {1, 2, 0}}, .shape = CHW(5, 3, 4)},
    {.node = {.op = OP_TRANSPOSE, .perm = {1, 0, 3, 2}}, .shape = {4, {2, 3, 4, 2}}},
    {.node = {.op = OP_SLICE, .slice = {{3, 0, 1}, {2, 1, 1}, {7, 3, 1}}}, .shape = CHW(18, 3, 2)},
    {.node = {.op = OP_SLICE, .slice = {{4, 2, 0}, {-1, -2, 1}, {5, 2, 2}}}, .shape = CHW(5, 3, 2)},
    {.node = {.op = OP_PAD, .pad = {PAD_CONSTANT, {0, 1, 2}, {1, 0, 3}, 0.7f}}, .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_PAD, .pad = {PAD_REFLECT, {0, 1, 2}, {0, 3, 1}, 0}}, .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_PAD, .pad = {PAD_EDGE, {0, 1, 2}, {1, 0, 3}, 0}}, .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_PAD, .pad = {PAD_EDGE, {0}, {0}, 0}}, .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_RESIZE, .resize = {RESIZE_NEAREST, RESIZE_ASYMMETRIC, NEAREST_FLOOR, {3, 8, 5}, {0}}},
     .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_RESIZE, .resize = {RESIZE_NEAREST, RESIZE_HALF_PIXEL, 0, {3, 3, 7}, {1, 0.8, 0}}},
     .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_RESIZE, .resize = {RESIZE_NEAREST, RESIZE_TF_HALF_PIXEL, NEAREST_FLOOR, {3, 7, 2}, {0}}},
     .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_RESIZE, .resize = {RESIZE_LINEAR, RESIZE_ALIGN_CORNERS, 0, {3, 2, 4}, {1, 0.6, 0}}},
     .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_RESIZE, .resize = {RESIZE_NEAREST, RESIZE_ALIGN_CORNERS, 1, {3, 7, 2}, {0}}},
     .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_RESIZE, .resize = {RESIZE_LINEAR, RESIZE_HALF_PIXEL, 0, {3, 9, 2}, {0}}}, .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_RESIZE, .resize = {RESIZE_LINEAR, RESIZE_ALIGN_CORNERS, 0, {3, 9, 1}, {0}}},
     .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_RESIZE, .resize = {RESIZE_LINEAR, RESIZE_PYTORCH_HALF_PIXEL, 0, {3, 1, 5}, {0}}},
     .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_RESIZE, .resize = {RESIZE_LINEAR, RESIZE_ASYMMETRIC, 0, {3, 6, 5}, {1, 1.6, 0}}},
     .shape = CHW(3, 4, 3)},
    {.node = {.op = OP_REDUCE_MEAN, .reduce = {{false, true, true}, false}}, .shape = CHW(18, 3, 2)},
    {.node = {.op = OP_REDUCE_MEAN, .reduce = {{true, false, true}, true}}, .shape = CHW(5, 3, 2)},
    {.node = {.op = OP_REDUCE_MEAN, .reduce = {{true}, false}}, .shape = {1, {5}}},
    {.node = {.op = OP_SOFTMAX}, .shape = {1, {9}}},
    {.node = {.op = OP_SOFTMAX, .along.axis = 1}, .shape = CHW(3, 4, 2)},
    {.node = {.op = OP_LOG_SOFTMAX, .along = {1, true}}, .shape = CHW(3, 4, 2)},
    {.node = {.op = OP_LAYER_NORM, .weight.shape = {1, {6}}, .bias.shape = {1, {6}}, .norm = {2, 0, 1e-5f}},
     .shape = CHW(3, 2, 6)},
    {.node = {.op = OP_LAYER_NORM, .norm = {1, 0, 1e-5f}}, .shape = CHW(3, 2, 6)},
    {.node = {.op = OP_INSTANCE_NORM, .weight.shape = {1, {5}}, .bias.shape = {1, {5}}, .norm = {0, 0, 1e-5f}},
     .shape = CHW(5, 3, 4)},
    {.node = {.op = OP_GROUP_NORM, .weight.shape = {1, {6}}, .bias.shape = {1, {6}}, .norm = {0, 3, 1e-5f}},
     .shape = CHW(6, 3, 2)},
    {.node = {.op = OP_LRN, .lrn = {3, 0.8f, 0.75f, 1}}, .shape = CHW(7, 2, 3)},
    {.node = {.op = OP_LRN, .lrn = {4, 0.8f, 0.6f, 2}}, .shape = CHW(3, 2, 3)},
};
enum { CASES = sizeof cases / sizeof *cases };

static int put(Graph *g, Node node, int first, int second) {
    const int inputs[2] = {first, second};
    node.name = arena_printf(arena, "node%d", g->count);
    node.n_inputs = first < 0 ? 0 : second < 0 ? 1 : 2;
    node.inputs = inputs;
    return graph_add(g, node);
}

static int constant(Graph *g, OpKind op, float value, int from) {
    float *one = ARENA_ARRAY(arena, float, 1, "constant");
    *one = value;
    return put(g, (Node){.op = op, .operand = {{0}, one}}, from, -1);
}

static int norm(Graph *g, int from) {
    const Shape C = shape_vector(g->nodes[from].shape.dim[0]);
    return put(g, (Node){.op = OP_BATCH_NORM, .weight = {C, pool + 77}, .bias = {C, pool + 99}}, from, -1);
}

static int conv(Graph *g, int from, int out, int kernel, int stride) {
    const Shape in = g->nodes[from].shape;
    const int pad = kernel / 2;
    Node n = {.op = OP_CONV, .window = {.stride_height = stride, .stride_width = stride}};
    n.window.pad_top = n.window.pad_left = n.window.pad_bottom = n.window.pad_right = pad;
    n.weight.shape = (Shape){4, {out, in.dim[0], kernel, kernel}};
    float *weight = numbers(shape_size(n.weight.shape));
    for (int64_t i = 0; i < shape_size(n.weight.shape); i++) /* sums of about 1 */
        weight[i] *= sqrtf(3 / (float)(in.dim[0] * kernel * kernel));
    n.weight.values = weight;
    return put(g, n, from, -1);
}

/* *from: the value the operation under test reads. */
static Graph *one_operation(const Case *c, bool blocked, int *from) {
    Graph *g = graph_new(arena, 12);
    int x = put(g, (Node){.op = OP_INPUT, .shape = c->shape}, -1, -1);
    x = blocked ? conv(g, x, c->shape.dim[0], 1, 1) : x;
    if (c->positive)
        x = constant(g, OP_ADD, 0.5f, put(g, (Node){.op = OP_ABS}, x, -1));
    *from = x;
    Node n = c->node;
    Constant *constants[] = {&n.weight, &n.bias, &n.operand};
    for (int i = 0; i < 3; i++)
        constants[i]->values = i < 2 && constants[i]->shape.rank == 0 ? NULL : pool + 100 * i;
    if (n.op == OP_CONV || n.op == OP_MAX_POOL || n.op == OP_AVERAGE_POOL) {
        n.window.stride_height = n.window.stride_height ? n.window.stride_height : 1;
        n.window.stride_width = n.window.stride_width ? n.window.stride_width : 1;
    }
    const bool two = c->shape.rank == 2;
    int other = -1;
    if (c->second == WITH_SAME)
        other = norm(g, x);
    if (c->second == WITH_SAME && c->positive) /* not a ratio that is constant */
        other = put(g, (Node){.op = OP_EXP}, other, -1);
    if (c->second == WITH_POOLED)
        other = put(g, (Node){.op = OP_GLOBAL_AVERAGE_POOL}, x, -1);
    if (c->second == WITH_POOLED && blocked)
        other = conv(g, other, c->shape.dim[0], 1, 1);
    if (c->second == WITH_POOLED && blocked && c->positive)
        other = put(g, (Node){.op = OP_EXP}, other, -1);
    if (c->second == WITH_TURNED)
        other = put(g, (Node){.op = OP_TRANSPOSE, .perm = {two ? 1 : 0, two ? 0 : 2, 1}}, x, -1);
    if (c->second == WITH_ITSELF)
        other = x;
    if (c->swapped)
        put(g, n, other, x);
    else
        put(g, n, x, other);
    return g;
}

static int64_t size_of(const Graph *g, int node) {
    return shape_size(g->nodes[node].shape);
}

#endif
