/* graph_layers.c: the layers of convolutional networks: convolution, pooling, batch norm with relu, fully connected.
 * These keep the blocked layout. */
#include <limits.h>

#include "error.h"
#include "plan.h"

enum { SIDE_MAX = 1 << 20 }; /* of an image, a kernel, a stride: products of two fit int64, sums fit int */

/* ---- Input ------------------------------------------------------------------------------------------------------ */

static void input_shape(Node *node, const Shape *in) {
    (void)node, (void)in; /* given */
}

static void input_prepare(Step *step) {
    step->layout = LAYOUT_PLAIN;
}

static void input_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    (void)step, (void)lane, (void)a; /* filled by the caller */
}

static void input_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    (void)step, (void)lane, (void)a; /* the end */
}

/* ---- Windows: convolution and pooling --------------------------------------------------------------------------- */

static bool within(int value, int least, int most) {
    return value >= least && value <= most;
}

static void check_image(const Node *node, Shape in) {
    char text[64];
    if (in.rank != 3 || in.dim[1] > SIDE_MAX || in.dim[2] > SIDE_MAX)
        die("layer %s: it reads a value of shape %s, expected (channels, height, width) with sides up to 2^20",
            node->name, shape_text(text, in));
}

/* Positions of a window of `extent` along `size` (both with padding and dilation). Rounded up where ceil_mode says so,
 * but no window begins in the padding behind the image (as in PyTorch). */
static int positions(int size, int pad_before, int pad_after, int extent, int stride, bool ceil_mode) {
    const int room = size + pad_before + pad_after - extent;
    int count = (ceil_mode ? room + stride - 1 : room) / stride + 1;
    if (ceil_mode && (int64_t)(count - 1) * stride >= (int64_t)size + pad_before)
        count--;
    return count;
}

static void window_shape(Node *node, Shape in, int out_channels) {
    ConvShape *w = &node->window;
    w->dilation_height = w->dilation_height ? w->dilation_height : 1;
    w->dilation_width = w->dilation_width ? w->dilation_width : 1;
    w->groups = w->groups ? w->groups : 1;
    bool sides = within(w->kernel_height, 1, SIDE_MAX) && within(w->kernel_width, 1, SIDE_MAX) &&
                 within(w->stride_height, 1, SIDE_MAX) && within(w->stride_width, 1, SIDE_MAX) &&
                 within(w->dilation_height, 1, SIDE_MAX) && within(w->dilation_width, 1, SIDE_MAX) &&
                 within(w->pad_top, 0, SIDE_MAX) && within(w->pad_bottom, 0, SIDE_MAX) &&
                 within(w->pad_left, 0, SIDE_MAX) && within(w->pad_right, 0, SIDE_MAX);
    if (!sides)
        die("layer %s: a kernel of %d x %d with strides %d x %d, dilation %d x %d and padding %d, %d, %d, %d was "
            "found, expected kernel, strides and dilation of 1 to 2^20, padding of 0 to 2^20",
            node->name, w->kernel_height, w->kernel_width, w->stride_height, w->stride_width, w->dilation_height,
            w->dilation_width, w->pad_top, w->pad_left, w->pad_bottom, w->pad_right);
    check_image(node, in);
    const int64_t tall = (int64_t)(w->kernel_height - 1) * w->dilation_height + 1;
    const int64_t wide = (int64_t)(w->kernel_width - 1) * w->dilation_width + 1;
    int height = in.dim[1] + w->pad_top + w->pad_bottom, width = in.dim[2] + w->pad_left + w->pad_right;
    if (tall > height || wide > width)
        die("layer %s: images are %d x %d there, padding included, expected at least the kernel's %lld x %lld: use "
            "larger images",
            node->name, height, width, (long long)tall, (long long)wide);
    w->in_channels = in.dim[0];
    w->in_height = in.dim[1];
    w->in_width = in.dim[2];
    w->out_channels = out_channels;
    w->out_height = positions(in.dim[1], w->pad_top, w->pad_bottom, (int)tall, w->stride_height, node->ceil_mode);
    w->out_width = positions(in.dim[2], w->pad_left, w->pad_right, (int)wide, w->stride_width, node->ceil_mode);
    node->shape = shape_chw(out_channels, w->out_height, w->out_width);
}

static void conv_shape(Node *node, const Shape *in) {
    const Shape weight = node->weight.shape;
    ConvShape *w = &node->window;
    char text[64];
    if (weight.rank != 4)
        die("layer %s: a weight of shape %s was found, expected (out channels, in channels / groups, height, width)",
            node->name, shape_text(text, weight));
    w->kernel_height = weight.dim[2];
    w->kernel_width = weight.dim[3];
    node->ceil_mode = false;
    window_shape(node, in[0], weight.dim[0]);
    if (w->groups < 1 || w->in_channels % w->groups || w->out_channels % w->groups)
        die("layer %s: %d groups were found, expected a divisor of the %d channels before and the %d behind",
            node->name, w->groups, w->in_channels, w->out_channels);
    if (weight.dim[1] != w->in_channels / w->groups)
        die("layer %s: a weight of shape %s was found, expected %d channels in each of %d groups: the value it reads "
            "has %d",
            node->name, shape_text(text, weight), w->in_channels / w->groups, w->groups, w->in_channels);
    int64_t weights = (int64_t)w->kernel_height * w->kernel_width;
    if (__builtin_mul_overflow(weights, weight.dim[1], &weights) ||
        __builtin_mul_overflow(weights, w->out_channels, &weights) || weights > INT32_MAX)
        die("layer %s: %d x %d x %d x %d weights were found, expected less than 2^31", node->name, w->out_channels,
            weight.dim[1], w->kernel_height, w->kernel_width);
    if (node->bias.values)
        graph_check_constant(node, &node->bias, shape_vector(w->out_channels), "a bias");
}

static void conv_prepare(Step *step) {
    const Node *n = step->node;
    KConv *conv = k_conv_new(&step->layout, step->laid[0], &n->window, step->batch, n->weight.values, n->bias.values,
                             step->backward);
    step->kernel = conv;
    step->scratch_bytes = k_conv_scratch(conv);
}

static void conv_release(Step *step) {
    k_conv_free(step->kernel);
}

static void conv_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    k_conv_forward(lane, step->kernel, a->out, a->in[0], a->scratch);
}

static void conv_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    k_conv_backward(lane, step->kernel, a->din[0], a->dout, a->scratch);
}

static void pool_shape(Node *node, const Shape *in) {
    check_image(node, in[0]);
    window_shape(node, in[0], in[0].dim[0]);
    const ConvShape *w = &node->window;
    const int64_t tall = (int64_t)(w->kernel_height - 1) * w->dilation_height + 1;
    const int64_t wide = (int64_t)(w->kernel_width - 1) * w->dilation_width + 1;
    if (w->pad_top >= tall || w->pad_bottom >= tall || w->pad_left >= wide || w->pad_right >= wide)
        die("layer %s: padding as large as the kernel was found, expected less than %lld x %lld", node->name,
            (long long)tall, (long long)wide);
}

static void max_pool_prepare(Step *step) {
    step->layout = step->laid[0];
    const Node *norm = step->fused;
    step->kernel = k_max_pool_new(step->layout, &step->node->window, step->batch, step->relu,
                                  norm ? norm->weight.values : NULL, norm ? norm->bias.values : NULL);
    step->saved_bytes = step->backward ? k_max_pool_saved(step->kernel) : 0;
}

static void max_pool_release(Step *step) {
    k_max_pool_free(step->kernel);
}

static void max_pool_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    k_max_pool_forward(lane, step->kernel, a->out, a->saved, a->in[0]);
}

static void max_pool_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    k_max_pool_backward(lane, step->kernel, a->din[0], a->dout, a->saved, a->guided);
}

static void average_pool_prepare(Step *step) {
    step->layout = step->laid[0];
}

static void average_pool_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    const Node *n = step->node;
    k_average_pool_forward(lane, a->out, a->in[0], step->layout, &n->window, n->count_include_pad, step->batch);
}

static void average_pool_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    const Node *n = step->node;
    k_average_pool_backward(lane, a->din[0], a->dout, step->layout, &n->window, n->count_include_pad, step->batch);
}

/* ---- Batch norm, relu, and both at once ------------------------------------------------------------------------- */

static void batch_norm_shape(Node *node, const Shape *in) {
    graph_same_shape(node, in);
    graph_check_constant(node, &node->weight, shape_vector(graph_sides(in[0]).C), "a scale");
    graph_check_constant(node, &node->bias, shape_vector(graph_sides(in[0]).C), "a shift");
}

static void affine_prepare(Step *step) {
    const Sides s = graph_sides(step->node->shape);
    const Node *norm = step->node->op == OP_BATCH_NORM ? step->node : step->fused;
    step->layout = step->laid[0];
    step->kernel = k_affine_new(step->layout, step->batch, s.C, s.H, s.W, norm ? norm->weight.values : NULL,
                                norm ? norm->bias.values : NULL, step->node->op == OP_RELU);
}

static void affine_release(Step *step) {
    k_affine_free(step->kernel);
}

static void affine_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    k_affine_forward(lane, step->kernel, a->out, a->in[0]);
}

static void affine_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    k_affine_backward(lane, step->kernel, a->din[0], a->dout, step->node->op == OP_RELU ? a->out : NULL,
                      a->guided);
}

/* ---- Global pooling --------------------------------------------------------------------------------------------- */

static void global_shape(Node *node, const Shape *in) {
    char text[64];
    if (in[0].rank < 2)
        die("layer %s: it reads a value of shape %s, expected (channels, height, width)", node->name,
            shape_text(text, in[0]));
    node->shape = in[0];
    for (int d = 1; d < in[0].rank; d++)
        node->shape.dim[d] = 1;
}

static void global_average_prepare(Step *step) {
    step->layout = LAYOUT_PLAIN;
}

static void global_average_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    const Sides s = graph_sides(step->in[0]);
    k_global_average_forward(lane, a->out, a->in[0], step->laid[0], step->batch, s.C, s.H, s.W);
}

static void global_average_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    const Sides s = graph_sides(step->in[0]);
    k_global_average_backward(lane, a->din[0], step->laid[0], a->dout, step->batch, s.C, s.H, s.W);
}

static void global_max_prepare(Step *step) {
    step->reads_plain = true;
    step->layout = LAYOUT_PLAIN;
}

static void global_max_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    const Sides s = graph_sides(step->in[0]);
    k_global_max_forward(lane, a->out, a->in[0], step->batch, s.C, (int64_t)s.H * s.W);
}

static void global_max_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    const Sides s = graph_sides(step->in[0]);
    k_global_max_backward(lane, a->din[0], a->dout, a->in[0], step->batch, s.C, (int64_t)s.H * s.W);
}

/* ---- Fully connected -------------------------------------------------------------------------------------------- */

/* Rows of a sample, inputs and outputs of each. */
typedef struct {
    int64_t rows;
    int inputs, outputs;
} LinearSizes;

static LinearSizes linear_sizes(const Node *node, Shape in) {
    const Shape w = node->weight.shape;
    const bool turned = node->gemm.weight_in_out, one = node->gemm.flatten || in.rank == 0;
    return (LinearSizes){one ? 1 : graph_span(in, 0, in.rank - 1), w.dim[turned ? 0 : 1], w.dim[turned ? 1 : 0]};
}

static void linear_shape(Node *node, const Shape *in) {
    char text[64], other[64];
    if (node->weight.shape.rank != 2)
        die("layer %s: a weight of shape %s was found, expected a matrix", node->name,
            shape_text(text, node->weight.shape));
    const LinearSizes s = linear_sizes(node, in[0]);
    const bool vector = node->gemm.flatten || in[0].rank == 0;
    const int64_t inputs = vector ? shape_size(in[0]) : in[0].dim[in[0].rank - 1];
    if (inputs != s.inputs || (int64_t)s.inputs * s.outputs > INT32_MAX)
        die("layer %s: a weight of %d x %d (inputs, outputs) was found for values of shape %s, expected %lld inputs "
            "and less than 2^31 weights",
            node->name, s.inputs, s.outputs, shape_text(other, in[0]), (long long)inputs);
    if (node->bias.values)
        graph_check_constant(node, &node->bias, shape_vector(s.outputs), "a bias");
    node->shape = vector ? shape_vector(s.outputs) : in[0];
    node->shape.dim[node->shape.rank - 1] = s.outputs;
}

/* alpha, beta and the order of the weight are dealt with here, so that the kernel is a product and nothing else. */
static void linear_prepare(Step *step) {
    const Node *n = step->node;
    const LinearSizes s = linear_sizes(n, step->in[0]);
    const int64_t weights = (int64_t)s.inputs * s.outputs;
    step->reads_plain = true;
    step->layout = LAYOUT_PLAIN;
    if (s.rows * step->batch > INT32_MAX)
        die("layer %s: %lld rows of a batch were found, expected less than 2^31: use a smaller --batch", n->name,
            (long long)s.rows * step->batch);
    Arena *arena = arena_new();
    float *weight = ARENA_ARRAY(arena, float, weights, n->name), *bias = NULL;
    for (int64_t k = 0; k < s.outputs; k++)
        for (int64_t i = 0; i < s.inputs; i++)
            weight[k * s.inputs + i] =
                n->gemm.alpha * n->weight.values[n->gemm.weight_in_out ? i * s.outputs + k : k * s.inputs + i];
    if (n->bias.values) {
        bias = ARENA_ARRAY(arena, float, s.outputs, n->name);
        for (int k = 0; k < s.outputs; k++)
            bias[k] = n->gemm.beta * n->bias.values[k];
    }
    step->kernel = k_linear_new((int)s.rows * step->batch, s.inputs, s.outputs, weight, bias, step->backward);
    step->scratch_bytes = k_linear_scratch(step->kernel);
    arena_free(arena);
}

static void linear_release(Step *step) {
    k_linear_free(step->kernel);
}

static void linear_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    k_linear_forward(lane, step->kernel, a->out, a->in[0], a->scratch);
}

static void linear_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    k_linear_backward(lane, step->kernel, a->din[0], a->dout, a->scratch);
}

/* ---- The table -------------------------------------------------------------------------------------------------- */

const Op graph_layers[OP_COUNT] = {
    [OP_INPUT] = {.name = "Input",
                  .shape = input_shape,
                  .prepare = input_prepare,
                  .forward = input_forward,
                  .backward = input_backward},
    [OP_CONV] = {"Conv", 1, 1, conv_shape, false, false, false, conv_prepare, conv_release, conv_forward,
                 conv_backward},
    [OP_BATCH_NORM] = {"BatchNormalization", 1, 1, batch_norm_shape, true, false, false, affine_prepare, affine_release,
                       affine_forward, affine_backward},
    [OP_RELU] = {"Relu", 1, 1, graph_same_shape, true, true, false, affine_prepare, affine_release, affine_forward,
                 affine_backward},
    [OP_MAX_POOL] = {"MaxPool", 1, 1, pool_shape, false, false, false, max_pool_prepare, max_pool_release,
                     max_pool_forward, max_pool_backward},
    [OP_AVERAGE_POOL] = {"AveragePool", 1, 1, pool_shape, false, false, false, average_pool_prepare, NULL,
                         average_pool_forward, average_pool_backward},
    [OP_GLOBAL_AVERAGE_POOL] = {"GlobalAveragePool", 1, 1, global_shape, false, false, false, global_average_prepare,
                                NULL, global_average_forward, global_average_backward},
    [OP_GLOBAL_MAX_POOL] = {"GlobalMaxPool", 1, 1, global_shape, false, false, true, global_max_prepare, NULL,
                            global_max_forward, global_max_backward},
    [OP_LINEAR] = {"Gemm", 1, 1, linear_shape, false, false, false, linear_prepare, linear_release, linear_forward,
                   linear_backward},
};
