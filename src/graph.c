/* graph.c: building a network, and the table of what each operation is: its shape rule, its kernel, its two passes.
 *
 * An operation is one entry of `ops`; nothing else in the program knows how a convolution is run or what shape it
 * gives. Adding one is: an OpKind, an entry, its kernels and their references. Shapes come from files, so every sum
 * and product is checked here, once, and a sample's value has less than 2^31 elements everywhere else. */
#include "graph.h"

#include <string.h>

#include "error.h"
#include "plan.h"

enum { SIDE_MAX = 1 << 20 }; /* of an image, a kernel, a stride: products of two fit int64, sums fit int */

Graph *graph_new(Arena *arena, int capacity) {
    Graph *graph = ARENA_ARRAY(arena, Graph, 1, "graph");
    graph->nodes = ARENA_ARRAY(arena, Node, capacity, "graph");
    graph->capacity = capacity;
    return graph;
}

int64_t shape_size(Shape shape) {
    return (int64_t)shape.channels * shape.height * shape.width;
}

bool shape_is_spatial(Shape shape) {
    return (int64_t)shape.height * shape.width > 1;
}

static void check_size(const Node *node) {
    const Shape s = node->shape;
    bool sides = s.channels >= 1 && s.height >= 1 && s.width >= 1 && s.height <= SIDE_MAX && s.width <= SIDE_MAX;
    if (!sides || (int64_t)s.height * s.width > INT32_MAX / s.channels)
        die("layer %s: an output of %d x %d x %d (channels, height, width) was found, expected at least 1 and less "
            "than "
            "2^31 values in all: check the sizes in the model and of the images",
            node->name, s.channels, s.height, s.width);
}

int graph_add(Graph *graph, Node node) {
    if (graph->count == graph->capacity)
        die("layer %s: more than %d layers were found: split the model", node.name, graph->capacity);
    bool first = graph->count == 0;
    if (first != (node.op == OP_INPUT) || (!first && (node.input < 0 || node.input >= graph->count)))
        die("layer %s: it reads layer %d, expected one before it (of %d)", node.name, node.input, graph->count);
    if (!first)
        graph_op(node.op)->shape(&node, graph->nodes[node.input].shape);
    check_size(&node);
    graph->nodes[graph->count] = node;
    graph->logits = graph->count;
    return graph->count++;
}

int graph_find(const Graph *graph, const char *name) {
    for (int i = 0; i < graph->count; i++)
        if (strcmp(graph->nodes[i].name, name) == 0)
            return i;
    return -1;
}

const char *graph_op_name(OpKind op) {
    return graph_op(op)->name;
}

/* ---- Input ------------------------------------------------------------------------------------------------------ */

static void input_shape(Node *node, Shape in) {
    (void)node, (void)in; /* given */
}

static void input_prepare(Step *step) {
    step->layout = LAYOUT_PLAIN;
}

static void input_release(Step *step) {
    (void)step;
}

static void input_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    (void)step, (void)lane, (void)a; /* filled by the caller */
}

static void input_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    (void)step, (void)lane, (void)a; /* the end */
}

/* ---- Windows: convolution and max pooling ----------------------------------------------------------------------- */

static bool within(int value, int least, int most) {
    return value >= least && value <= most;
}

static void window_shape(Node *node, Shape in, int out_channels) {
    ConvShape *w = &node->window;
    bool sides = within(w->kernel_height, 1, SIDE_MAX) && within(w->kernel_width, 1, SIDE_MAX) &&
                 within(w->stride_height, 1, SIDE_MAX) && within(w->stride_width, 1, SIDE_MAX) &&
                 within(w->pad_top, 0, SIDE_MAX) && within(w->pad_bottom, 0, SIDE_MAX) &&
                 within(w->pad_left, 0, SIDE_MAX) && within(w->pad_right, 0, SIDE_MAX);
    if (!sides)
        die("layer %s: a kernel of %d x %d with strides %d x %d and padding %d, %d, %d, %d was found, expected kernel "
            "and "
            "strides of 1 to 2^20, padding of 0 to 2^20",
            node->name, w->kernel_height, w->kernel_width, w->stride_height, w->stride_width, w->pad_top, w->pad_left,
            w->pad_bottom, w->pad_right);
    int height = in.height + w->pad_top + w->pad_bottom, width = in.width + w->pad_left + w->pad_right;
    if (w->kernel_height > height || w->kernel_width > width)
        die("layer %s: images are %d x %d there, padding included, expected at least the kernel's %d x %d: use larger "
            "images",
            node->name, height, width, w->kernel_height, w->kernel_width);
    w->in_channels = in.channels;
    w->in_height = in.height;
    w->in_width = in.width;
    w->out_channels = out_channels;
    w->out_height = (height - w->kernel_height) / w->stride_height + 1;
    w->out_width = (width - w->kernel_width) / w->stride_width + 1;
    node->shape = (Shape){out_channels, w->out_height, w->out_width};
}

static void conv_shape(Node *node, Shape in) {
    window_shape(node, in, node->window.out_channels);
    const ConvShape *w = &node->window;
    int64_t weights = (int64_t)w->kernel_height * w->kernel_width;
    if (__builtin_mul_overflow(weights, in.channels, &weights) ||
        __builtin_mul_overflow(weights, w->out_channels, &weights) || weights > INT32_MAX)
        die("layer %s: %d x %d x %d x %d weights were found, expected less than 2^31", node->name, w->out_channels,
            in.channels, w->kernel_height, w->kernel_width);
}

static void conv_prepare(Step *step) {
    const Node *n = step->node;
    KConv *conv =
        k_conv_new(&step->layout, step->in_layout, &n->window, step->batch, n->weight, n->bias, step->backward);
    step->kernel = conv;
    step->scratch_bytes = k_conv_scratch(conv);
}

static void conv_release(Step *step) {
    k_conv_free(step->kernel);
}

static void conv_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    k_conv_forward(lane, step->kernel, a->out, a->in, a->scratch);
}

static void conv_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    k_conv_backward(lane, step->kernel, a->din, a->dout, a->scratch);
}

static void max_pool_shape(Node *node, Shape in) {
    window_shape(node, in, in.channels);
    const ConvShape *w = &node->window;
    if (w->pad_top >= w->kernel_height || w->pad_bottom >= w->kernel_height || w->pad_left >= w->kernel_width ||
        w->pad_right >= w->kernel_width)
        die("layer %s: padding as large as the kernel was found, expected less than %d x %d", node->name,
            w->kernel_height, w->kernel_width);
}

static void max_pool_prepare(Step *step) {
    step->layout = step->in_layout;
    step->kernel = k_max_pool_new(step->layout, &step->node->window, step->batch);
    step->saved_bytes = step->backward ? k_max_pool_saved(step->kernel) : 0;
}

static void max_pool_release(Step *step) {
    k_max_pool_free(step->kernel);
}

static void max_pool_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    k_max_pool_forward(lane, step->kernel, a->out, a->saved, a->in);
}

static void max_pool_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    k_max_pool_backward(lane, step->kernel, a->din, a->dout, a->saved);
}

/* ---- Batch norm, relu, and both at once ------------------------------------------------------------------------- */

static void same_shape(Node *node, Shape in) {
    node->shape = in;
}

static void affine_prepare(Step *step) {
    const Shape s = step->node->shape;
    const Node *norm = step->node->op == OP_BATCH_NORM ? step->node : step->fused;
    step->layout = step->in_layout;
    step->kernel = k_affine_new(step->layout, step->batch, s.channels, s.height, s.width, norm ? norm->weight : NULL,
                                norm ? norm->bias : NULL, step->node->op == OP_RELU);
}

static void affine_release(Step *step) {
    k_affine_free(step->kernel);
}

static void affine_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    k_affine_forward(lane, step->kernel, a->out, a->in);
}

static void affine_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    k_affine_backward(lane, step->kernel, a->din, a->dout, a->out);
}

/* ---- Global average pooling ------------------------------------------------------------------------------------- */

static void global_average_shape(Node *node, Shape in) {
    node->shape = (Shape){in.channels, 1, 1};
}

static void global_average_prepare(Step *step) {
    step->layout = LAYOUT_PLAIN;
}

static void global_average_release(Step *step) {
    (void)step;
}

static void global_average_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    const Shape s = step->input->shape;
    k_global_average_forward(lane, a->out, a->in, step->in_layout, step->batch, s.channels, s.height, s.width);
}

static void global_average_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    const Shape s = step->input->shape;
    k_global_average_backward(lane, a->din, step->in_layout, a->dout, step->batch, s.channels, s.height, s.width);
}

/* ---- Fully connected: reads a value flattened in C order -------------------------------------------------------- */

static void linear_shape(Node *node, Shape in) {
    (void)in;
    node->shape = (Shape){node->outputs, 1, 1};
}

static void linear_prepare(Step *step) {
    const Node *n = step->node;
    step->layout = LAYOUT_PLAIN;
    step->kernel =
        k_linear_new(step->batch, (int)shape_size(step->input->shape), n->outputs, n->weight, n->bias, step->backward);
    step->scratch_bytes = k_linear_scratch(step->kernel);
}

static void linear_release(Step *step) {
    k_linear_free(step->kernel);
}

static void linear_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    k_linear_forward(lane, step->kernel, a->out, a->in, a->scratch);
}

static void linear_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    k_linear_backward(lane, step->kernel, a->din, a->dout, a->scratch);
}

/* ---- The table -------------------------------------------------------------------------------------------------- */

static const Op ops[OP_COUNT] = {
    [OP_INPUT] = {"Input", input_shape, false, false, false, input_prepare, input_release, input_forward,
                  input_backward},
    [OP_CONV] = {"Conv", conv_shape, false, false, false, conv_prepare, conv_release, conv_forward, conv_backward},
    [OP_BATCH_NORM] = {"BatchNormalization", same_shape, false, true, false, affine_prepare, affine_release,
                       affine_forward, affine_backward},
    [OP_RELU] = {"Relu", same_shape, false, true, true, affine_prepare, affine_release, affine_forward,
                 affine_backward},
    [OP_MAX_POOL] = {"MaxPool", max_pool_shape, false, false, false, max_pool_prepare, max_pool_release,
                     max_pool_forward, max_pool_backward},
    [OP_GLOBAL_AVERAGE_POOL] = {"GlobalAveragePool", global_average_shape, false, false, false, global_average_prepare,
                                global_average_release, global_average_forward, global_average_backward},
    [OP_LINEAR] = {"Gemm", linear_shape, true, false, false, linear_prepare, linear_release, linear_forward,
                   linear_backward},
};

const Op *graph_op(OpKind kind) {
    return &ops[kind];
}
