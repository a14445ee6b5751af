/* onnx_ops_nn.c: what has windows, weights or statistics: convolutions, pools, products, normalisations, means. */
#include <math.h>
#include <string.h>

#include "onnx_parts.h"

/* Numbers of the file as a constant of the graph; dies unless they have `rank` dimensions. */
static Constant weights(Onnx *onnx, const Onnx__NodeProto *node, int input, int rank, const char *what) {
    OnnxConstant *constant = onnx_known(onnx, node, input);
    if (!constant)
        return (Constant){0};
    Constant made = {.shape.rank = rank};
    bool fits = constant->rank == rank && constant->size > 0;
    for (int d = 0; d < rank && fits; d++) {
        fits = constant->dim[d] <= INT_MAX;
        made.shape.dim[d] = (int)constant->dim[d];
    }
    if (!fits)
        onnx_refuse(onnx, node, "its %s has shape %s, expected %d dimensions (cnnscope knows images, so 2-D windows)",
                    what, onnx_shape_text((char[64]){0}, constant), rank);
    made.values = onnx_floats(onnx, constant);
    return made;
}

static Constant weights_needed(Onnx *onnx, const Onnx__NodeProto *node, int input, int rank, const char *what) {
    if (!onnx_has(node, input))
        onnx_refuse(onnx, node, "has no %s, expected one: the file is damaged", what);
    return weights(onnx, node, input, rank, what);
}

/* ---- Windows ----------------------------------------------------------------------------------------------------- */

static void pair(Onnx *onnx, const Onnx__NodeProto *node, const char *name, int *vertical, int *horizontal) {
    int count;
    const int64_t *list = onnx_list(node, name, &count);
    *vertical = *horizontal = 1;
    if (!list)
        return;
    if (count != 2 || list[0] < 1 || list[1] < 1 || list[0] > 1 << 20 || list[1] > 1 << 20)
        onnx_refuse(onnx, node, "its %s are %d numbers, expected 2 of 1 to %d (cnnscope knows images, so 2-D windows)",
                    name, count, 1 << 20);
    *vertical = (int)list[0];
    *horizontal = (int)list[1];
}

static void same_pads(int *before, int *after, int size, int kernel, int stride, int dilation, bool upper) {
    const int64_t out = ((int64_t)size + stride - 1) / stride;
    int64_t pad = (out - 1) * stride + ((int64_t)kernel - 1) * dilation + 1 - size;
    pad = pad < 0 ? 0 : pad;
    *before = (int)(upper ? pad / 2 : pad - pad / 2);
    *after = (int)(pad - *before);
}

/* Strides, pads and dilation; the kernel's size is known by now. */
static void read_window(Onnx *onnx, const Onnx__NodeProto *node, ConvShape *w) {
    const Shape in = onnx_flow_shape(onnx, node, 0);
    if (in.rank != 3)
        onnx_refuse(onnx, node, "reads values of shape %s, expected (C, H, W): cnnscope knows images, so 2-D windows",
                    shape_text((char[64]){0}, in));
    pair(onnx, node, "strides", &w->stride_height, &w->stride_width);
    pair(onnx, node, "dilations", &w->dilation_height, &w->dilation_width);
    const char *automatic = onnx_text(onnx, node, "auto_pad", "NOTSET");
    const bool upper = !strcmp(automatic, "SAME_UPPER");
    int count;
    const int64_t *pads = onnx_list(node, "pads", &count);
    if (upper || !strcmp(automatic, "SAME_LOWER")) {
        same_pads(&w->pad_top, &w->pad_bottom, in.dim[1], w->kernel_height, w->stride_height, w->dilation_height,
                  upper);
        same_pads(&w->pad_left, &w->pad_right, in.dim[2], w->kernel_width, w->stride_width, w->dilation_width, upper);
    } else if (!strcmp(automatic, "NOTSET") && pads) {
        if (count != 4)
            onnx_refuse(onnx, node, "has %d pads, expected 4", count);
        for (int i = 0; i < 4; i++)
            if (pads[i] < 0 || pads[i] > 1 << 20)
                onnx_refuse(onnx, node, "pads by %lld, expected 0 to %d", (long long)pads[i], 1 << 20);
        w->pad_top = (int)pads[0];
        w->pad_left = (int)pads[1];
        w->pad_bottom = (int)pads[2];
        w->pad_right = (int)pads[3];
    } else if (strcmp(automatic, "NOTSET") != 0 && strcmp(automatic, "VALID") != 0) {
        onnx_refuse(onnx, node, "pads by the rule %s, expected NOTSET, SAME_UPPER, SAME_LOWER or VALID", automatic);
    }
}

static void build_conv(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const int64_t groups = onnx_int(onnx, node, "group", 1);
    Node made = {
        .op = OP_CONV, .weight = weights_needed(onnx, node, 1, 4, "weight"), .bias = weights(onnx, node, 2, 1, "bias")};
    const Shape w = made.weight.shape, in = onnx->graph->nodes[input].shape;
    if (groups < 1 || groups > w.dim[0] || w.dim[0] % groups || (in.rank == 3 && groups * w.dim[1] != in.dim[0]))
        onnx_refuse(onnx, node,
                    "its weight %s of %lld groups does not fit values of shape %s: the images are not of the "
                    "channels it was trained on, or the file is damaged",
                    onnx_shape_text((char[64]){0}, onnx_known(onnx, node, 1)), (long long)groups,
                    shape_text((char[64]){0}, in));
    if (made.bias.values && made.bias.shape.dim[0] != w.dim[0])
        onnx_refuse(onnx, node, "has %d biases, expected %d: the file is damaged", made.bias.shape.dim[0], w.dim[0]);
    made.window.kernel_height = w.dim[2];
    made.window.kernel_width = w.dim[3];
    read_window(onnx, node, &made.window);
    made.window.groups = (int)groups;
    made.name = onnx_layer_name(onnx, node, onnx_known(onnx, node, 1), "");
    onnx_emit(onnx, node, 0, made, 1, &input);
}

static void build_pool(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    Node made = {.op = !strcmp(node->op_type, "MaxPool") ? OP_MAX_POOL : OP_AVERAGE_POOL};
    int count;
    if (!onnx_list(node, "kernel_shape", &count))
        onnx_refuse(onnx, node, "has no kernel_shape, expected one: the file is damaged");
    pair(onnx, node, "kernel_shape", &made.window.kernel_height, &made.window.kernel_width);
    read_window(onnx, node, &made.window);
    made.ceil_mode = onnx_int(onnx, node, "ceil_mode", 0) != 0;
    made.count_include_pad = onnx_int(onnx, node, "count_include_pad", 0) != 0;
    const int second = node->n_output > 1 ? onnx_value_find(onnx, node->output[1]) : NONE;
    if (second != NONE && onnx->values[second].uses)
        onnx_refuse(onnx, node,
                    "is asked where its maxima are, expected only their values: cnnscope has no such "
                    "operation");
    made.name = onnx_layer_name(onnx, node, NULL, "");
    onnx_emit(onnx, node, 0, made, 1, &input);
}

static void build_global_pool(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const OpKind op = !strcmp(node->op_type, "GlobalMaxPool") ? OP_GLOBAL_MAX_POOL : OP_GLOBAL_AVERAGE_POOL;
    onnx_emit(onnx, node, 0, (Node){.op = op, .name = onnx_layer_name(onnx, node, NULL, "")}, 1, &input);
}

static void build_reduce_mean(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape shape = onnx->graph->nodes[input].shape;
    int count;
    const int64_t *axes = onnx_list_or_input(onnx, node, "axes", 1, &count);
    if (count == 0 && onnx_int(onnx, node, "noop_with_empty_axes", 0)) {
        onnx_alias(onnx, node, 0, input);
        return;
    }
    if (count == 0)
        onnx_refuse(onnx, node,
                    "averages over all axes, the batch among them, expected each image to be taken by "
                    "itself");
    Node made = {.op = OP_REDUCE_MEAN};
    for (int i = 0; i < count; i++)
        made.reduce.axes[onnx_sample_axis(onnx, node, axes[i], shape.rank)] = true;
    made.reduce.keep = onnx_int(onnx, node, "keepdims", 1) != 0;
    made.name = onnx_layer_name(onnx, node, NULL, "");
    onnx_emit(onnx, node, 0, made, 1, &input);
}

/* ---- Products ---------------------------------------------------------------------------------------------------- */

/* `constant` as one bias for each of `outputs` units; NULL unless it has that many numbers in its last dimension, or
 * one number. */
static const float *unit_bias(Onnx *onnx, OnnxConstant *constant, int outputs) {
    const bool one = constant->size == 1;
    if (constant->per_sample)
        return NULL;
    if (!one && (constant->size != outputs || constant->rank < 1 || constant->dim[constant->rank - 1] != outputs))
        return NULL;
    const float *given = onnx_floats(onnx, constant);
    if (!one || outputs == 1)
        return given;
    float *values = ARENA_ARRAY(onnx->arena, float, outputs, onnx->path);
    for (int i = 0; i < outputs; i++)
        values[i] = given[0];
    return values;
}

static void build_gemm(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape in = onnx->graph->nodes[input].shape;
    Node made = {.op = OP_LINEAR, .weight = weights_needed(onnx, node, 1, 2, "weight")};
    made.gemm.weight_in_out = onnx_int(onnx, node, "transB", 0) == 0;
    made.gemm.alpha = onnx_float(onnx, node, "alpha", 1);
    made.gemm.beta = onnx_float(onnx, node, "beta", 1);
    if (onnx_int(onnx, node, "transA", 0))
        onnx_refuse(onnx, node, "transposes its input, and with it the batch, expected transA = 0");
    const int *w = made.weight.shape.dim, flip = made.gemm.weight_in_out;
    if (in.rank != 1 || in.dim[0] != w[!flip])
        onnx_refuse(onnx, node,
                    "reads values of shape %s, expected (%d): the images are not of the size it was trained "
                    "on, or the file is damaged",
                    shape_text((char[64]){0}, in), w[!flip]);
    const OnnxValue *added = onnx_has(node, 2) ? onnx_input(onnx, node, 2) : NULL;
    OnnxConstant *bias = added ? added->constant : NULL;
    if (bias) {
        made.bias = (Constant){shape_vector(w[flip]), unit_bias(onnx, bias, w[flip])};
        if (!made.bias.values)
            onnx_refuse(onnx, node, "adds a constant of shape %s, expected %d numbers: one for each unit",
                        onnx_shape_text((char[64]){0}, bias), w[flip]);
    }
    made.name = onnx_layer_name(onnx, node, onnx_known(onnx, node, 1), "");
    int sum[2] = {onnx_emit(onnx, node, 0, made, 1, &input), NONE};
    if (!added || bias)
        return;
    sum[1] = added->node;
    if (made.gemm.beta != 1) {
        float *beta = ARENA_ARRAY(onnx->arena, float, 1, onnx->path);
        *beta = made.gemm.beta;
        const Node scaled = {.op = OP_MUL, .name = onnx_layer_name(onnx, node, NULL, "beta"), .operand.values = beta};
        sum[1] = onnx_emit(onnx, node, NONE, scaled, 1, &sum[1]);
    }
    onnx_emit(onnx, node, 0, (Node){.op = OP_ADD, .name = onnx_layer_name(onnx, node, NULL, "sum")}, 2, sum);
}

/* The Add of a constant that is all that reads this MatMul, as exporters write a fully connected layer; or NONE. */
static int bias_after(Onnx *onnx, const Onnx__NodeProto *node, int outputs, const float **values) {
    const int product = onnx_value_find(onnx, node->output[0]);
    if (product == onnx->output || onnx->values[product].uses != 1)
        return NONE;
    for (size_t i = (size_t)onnx->values[product].maker + 1; i < onnx->file->n_node; i++) {
        const Onnx__NodeProto *next = onnx->file->node[i];
        for (int k = 0; k < 2; k++) {
            if (onnx->done[i] || next->n_input != 2 || strcmp(next->input[k], node->output[0]) != 0)
                continue;
            const int other = onnx_value_find(onnx, next->input[1 - k]);
            OnnxConstant *bias = other == NONE ? NULL : onnx->values[other].constant;
            if (strcmp(next->op_type, "Add") != 0 || !bias || bias->rank > 1 ||
                !(*values = unit_bias(onnx, bias, outputs)))
                return NONE;
            return (int)i;
        }
    }
    return NONE;
}

/* Of two values, or with a constant that is no fully connected layer. */
static void build_product(Onnx *onnx, const Onnx__NodeProto *node, const OnnxValue *left, const OnnxValue *right) {
    Node made = {.op = OP_MATMUL, .operand_first = left->constant != NULL};
    OnnxConstant *constant = left->constant ? left->constant : right->constant;
    const int inputs[2] = {left->constant ? right->node : left->node, right->node};
    const Shape in = onnx->graph->nodes[inputs[0]].shape,
                other = onnx->graph->nodes[constant ? inputs[0] : inputs[1]].shape;
    if (constant) {
        int skip = 0; /* the batch's 1 */
        while (constant->rank - skip > in.rank && constant->dim[skip] == 1)
            skip++;
        made.operand = weights(onnx, node, left->constant ? 0 : 1, constant->rank, "constant");
        made.operand.shape.rank -= skip;
        memmove(made.operand.shape.dim, made.operand.shape.dim + skip,
                sizeof made.operand.shape.dim - (size_t)skip * sizeof(int));
    }
    if (in.rank < 2 || other.rank != in.rank ||
        (constant && (made.operand.shape.rank < 2 || made.operand.shape.rank > in.rank)))
        onnx_refuse(
            onnx, node, "multiplies %s by %s, expected matrices of as many dimensions for each image",
            constant && left->constant ? onnx_shape_text((char[64]){0}, constant) : shape_text((char[64]){0}, in),
            constant && !left->constant ? onnx_shape_text((char[64]){0}, constant) : shape_text((char[64]){0}, other));
    made.name = onnx_layer_name(onnx, node, constant, "");
    onnx_emit(onnx, node, 0, made, constant ? 1 : 2, inputs);
}

static void build_matmul(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxValue *left = onnx_input(onnx, node, 0), *right = onnx_input(onnx, node, 1);
    if (left->constant || !right->constant || right->constant->rank != 2) {
        build_product(onnx, node, left, right);
        return;
    }
    const int input = left->node;
    const Shape in = onnx->graph->nodes[input].shape;
    if (in.rank < 1)
        onnx_refuse(onnx, node, "multiplies single numbers, expected matrices");
    Node made = {.op = OP_LINEAR, .weight = weights_needed(onnx, node, 1, 2, "weight")};
    made.gemm.alpha = made.gemm.beta = 1;
    made.gemm.weight_in_out = true;
    const int outputs = made.weight.shape.dim[1];
    if (in.dim[in.rank - 1] != made.weight.shape.dim[0])
        onnx_refuse(onnx, node,
                    "multiplies %s by %s: the images are not of the size it was trained on, or the file is "
                    "damaged",
                    shape_text((char[64]){0}, in), onnx_shape_text((char[64]){0}, right->constant));
    const float *bias;
    const int add = bias_after(onnx, node, outputs, &bias);
    if (add != NONE)
        made.bias = (Constant){shape_vector(outputs), bias};
    made.name = onnx_layer_name(onnx, node, onnx_known(onnx, node, 1), "");
    const int at = onnx_emit(onnx, node, 0, made, 1, &input);
    if (add != NONE) {
        onnx_alias(onnx, onnx->file->node[add], 0, at);
        onnx->done[add] = true;
    }
}

/* ---- Normalisations ---------------------------------------------------------------------------------------------- */

static void check_channels(Onnx *onnx, const Onnx__NodeProto *node, const Constant *constant, int channels) {
    if (constant->values && constant->shape.dim[0] != channels)
        onnx_refuse(onnx, node,
                    "has %d numbers for %d channels, expected as many: the images are not of the channels it "
                    "was trained on, or the file is damaged",
                    constant->shape.dim[0], channels);
}

/* y = x * factor + shift, computed in double and rounded once, as for a .pth. */
static void build_batch_norm(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape in = onnx->graph->nodes[input].shape;
    const double epsilon = onnx_float(onnx, node, "epsilon", 1e-5f);
    Constant parts[4];
    for (int i = 0; i < 4; i++) {
        parts[i] = weights_needed(onnx, node, i + 1, 1, "scale, bias, mean or variance");
        check_channels(onnx, node, &parts[i], in.rank ? in.dim[0] : 0);
    }
    if (onnx_int(onnx, node, "training_mode", 0))
        onnx_refuse(onnx, node, "was exported for training, expected evaluation: call model.eval() before the export");
    if (onnx_int(onnx, node, "spatial", 1) == 0)
        onnx_refuse(onnx, node, "has statistics for each pixel (spatial = 0), expected them for each channel");
    const int channels = in.dim[0];
    float *scale = ARENA_ARRAY(onnx->arena, float, channels, onnx->path);
    float *shift = ARENA_ARRAY(onnx->arena, float, channels, onnx->path);
    for (int c = 0; c < channels; c++) {
        if (!(parts[3].values[c] >= 0))
            onnx_refuse(onnx, node, "has the variance %g, expected 0 or more: the file is damaged",
                        (double)parts[3].values[c]);
        const double factor = parts[0].values[c] / sqrt(parts[3].values[c] + epsilon);
        scale[c] = (float)factor;
        shift[c] = (float)(parts[1].values[c] - parts[2].values[c] * factor);
        if (!isfinite(scale[c]) || !isfinite(shift[c]))
            onnx_refuse(onnx, node, "has a scale or shift beyond float32 in channel %d: the file is damaged", c);
    }
    Node made = {.op = OP_BATCH_NORM,
                 .name = onnx_layer_name(onnx, node, onnx_known(onnx, node, 1), ""),
                 .weight = {shape_vector(channels), scale},
                 .bias = {shape_vector(channels), shift}};
    onnx_emit(onnx, node, 0, made, 1, &input);
}

static void build_instance_norm(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape in = onnx->graph->nodes[input].shape;
    Node made = {.op = OP_INSTANCE_NORM,
                 .weight = weights_needed(onnx, node, 1, 1, "scale"),
                 .bias = weights_needed(onnx, node, 2, 1, "bias")};
    check_channels(onnx, node, &made.weight, in.rank ? in.dim[0] : 0);
    check_channels(onnx, node, &made.bias, in.rank ? in.dim[0] : 0);
    made.norm.epsilon = onnx_float(onnx, node, "epsilon", 1e-5f);
    made.name = onnx_layer_name(onnx, node, onnx_known(onnx, node, 1), "");
    onnx_emit(onnx, node, 0, made, 1, &input);
}

static void build_layer_norm(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape in = onnx->graph->nodes[input].shape;
    Node made = {.op = OP_LAYER_NORM};
    made.norm.axis = onnx_sample_axis(onnx, node, onnx_int(onnx, node, "axis", -1), in.rank);
    made.norm.epsilon = onnx_float(onnx, node, "epsilon", 1e-5f);
    const int rank = in.rank - made.norm.axis;
    made.weight = weights_needed(onnx, node, 1, rank, "scale");
    made.bias = weights(onnx, node, 2, rank, "bias");
    for (int d = 0; d < rank; d++)
        if (made.weight.shape.dim[d] != in.dim[made.norm.axis + d] ||
            (made.bias.values && made.bias.shape.dim[d] != in.dim[made.norm.axis + d]))
            onnx_refuse(onnx, node, "its scale has shape %s, which does not fit values of shape %s",
                        shape_text((char[64]){0}, made.weight.shape), shape_text((char[64]){0}, in));
    made.name = onnx_layer_name(onnx, node, onnx_known(onnx, node, 1), "");
    onnx_emit(onnx, node, 0, made, 1, &input);
}

/* Up to opset 20 scale and bias are one number a group, from 21 on one a channel. */
static Constant by_channel(Onnx *onnx, Constant constant, int channels, int groups) {
    if (constant.shape.dim[0] != groups || groups == channels)
        return constant;
    float *values = ARENA_ARRAY(onnx->arena, float, channels, onnx->path);
    for (int c = 0; c < channels; c++)
        values[c] = constant.values[c / (channels / groups)];
    return (Constant){shape_vector(channels), values};
}

static void build_group_norm(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape in = onnx->graph->nodes[input].shape;
    const int64_t groups = onnx_int(onnx, node, "num_groups", 0);
    const int channels = in.rank ? in.dim[0] : 0;
    if (groups < 1 || groups > channels || channels % groups)
        onnx_refuse(onnx, node, "makes %lld groups of %d channels, expected equal ones", (long long)groups, channels);
    Node made = {.op = OP_GROUP_NORM};
    made.weight = by_channel(onnx, weights_needed(onnx, node, 1, 1, "scale"), channels, (int)groups);
    made.bias = by_channel(onnx, weights_needed(onnx, node, 2, 1, "bias"), channels, (int)groups);
    check_channels(onnx, node, &made.weight, channels);
    check_channels(onnx, node, &made.bias, channels);
    made.norm.groups = (int)groups;
    made.norm.epsilon = onnx_float(onnx, node, "epsilon", 1e-5f);
    made.name = onnx_layer_name(onnx, node, onnx_known(onnx, node, 1), "");
    onnx_emit(onnx, node, 0, made, 1, &input);
}

static void build_lrn(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const int64_t size = onnx_int(onnx, node, "size", 0);
    if (size < 1 || size > 1 << 20)
        onnx_refuse(onnx, node, "sums over %lld channels, expected 1 to %d", (long long)size, 1 << 20);
    Node made = {.op = OP_LRN, .name = onnx_layer_name(onnx, node, NULL, "")};
    made.lrn.size = (int)size;
    made.lrn.alpha = onnx_float(onnx, node, "alpha", 0.0001f);
    made.lrn.beta = onnx_float(onnx, node, "beta", 0.75f);
    made.lrn.bias = onnx_float(onnx, node, "bias", 1);
    onnx_emit(onnx, node, 0, made, 1, &input);
}

const OnnxOp *onnx_op_nn(const char *name) {
    static const OnnxOp table[] = {{"Conv", build_conv},
                                   {"MaxPool", build_pool},
                                   {"AveragePool", build_pool},
                                   {"GlobalAveragePool", build_global_pool},
                                   {"GlobalMaxPool", build_global_pool},
                                   {"ReduceMean", build_reduce_mean},
                                   {"Gemm", build_gemm},
                                   {"MatMul", build_matmul},
                                   {"BatchNormalization", build_batch_norm},
                                   {"InstanceNormalization", build_instance_norm},
                                   {"LayerNormalization", build_layer_norm},
                                   {"GroupNormalization", build_group_norm},
                                   {"LRN", build_lrn}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, name))
            return &table[i];
    return NULL;
}
