/* onnx_node.c: what an operation's builder asks of its node - attributes, inputs, axes - and how it answers. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "onnx_parts.h"

void onnx_refuse(const Onnx *onnx, const Onnx__NodeProto *node, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    die("%s: %s: %s", onnx->path, onnx_node_text(onnx, node), text);
}

/* ---- Attributes ------------------------------------------------------------------------------------------------- */

const Onnx__AttributeProto *onnx_attribute(const Onnx__NodeProto *node, const char *name) {
    for (size_t i = 0; i < node->n_attribute; i++)
        if (node->attribute[i]->name && !strcmp(node->attribute[i]->name, name))
            return node->attribute[i];
    return NULL;
}

int64_t onnx_int(const Onnx *onnx, const Onnx__NodeProto *node, const char *name, int64_t otherwise) {
    const Onnx__AttributeProto *attribute = onnx_attribute(node, name);
    if (!attribute)
        return otherwise;
    if (attribute->has_f || attribute->n_ints || attribute->n_floats || attribute->has_s)
        onnx_refuse(onnx, node, "its %s is not one whole number, expected one: the file is damaged", name);
    return attribute->i; /* an absent field is 0 */
}

float onnx_float(const Onnx *onnx, const Onnx__NodeProto *node, const char *name, float otherwise) {
    const Onnx__AttributeProto *attribute = onnx_attribute(node, name);
    if (!attribute)
        return otherwise;
    if (attribute->has_i || attribute->n_ints || attribute->n_floats || attribute->has_s)
        onnx_refuse(onnx, node, "its %s is not one number, expected one: the file is damaged", name);
    return attribute->f;
}

const char *onnx_text(const Onnx *onnx, const Onnx__NodeProto *node, const char *name, const char *otherwise) {
    const Onnx__AttributeProto *attribute = onnx_attribute(node, name);
    if (!attribute)
        return otherwise;
    return arena_printf(onnx->arena, "%.*s", attribute->s.len < 64 ? (int)attribute->s.len : 64,
                        attribute->s.data ? (const char *)attribute->s.data : "");
}

bool onnx_text_is(const Onnx__NodeProto *node, const char *name, const char *text, bool otherwise) {
    const Onnx__AttributeProto *attribute = onnx_attribute(node, name);
    if (!attribute)
        return otherwise;
    return attribute->s.len == strlen(text) && !memcmp(attribute->s.data, text, attribute->s.len);
}

const int64_t *onnx_list(const Onnx__NodeProto *node, const char *name, int *count) {
    const Onnx__AttributeProto *attribute = onnx_attribute(node, name);
    *count = attribute && attribute->n_ints <= INT_MAX ? (int)attribute->n_ints : 0;
    return *count ? attribute->ints : NULL;
}

/* ---- Inputs ----------------------------------------------------------------------------------------------------- */

bool onnx_has(const Onnx__NodeProto *node, int input) {
    return (size_t)input < node->n_input && node->input[input][0] != '\0';
}

OnnxValue *onnx_input(const Onnx *onnx, const Onnx__NodeProto *node, int input) {
    if (!onnx_has(node, input))
        onnx_refuse(onnx, node, "has %zu inputs, expected one at place %d: the file is damaged", node->n_input, input);
    int value = onnx_value_find(onnx, node->input[input]);
    if (value != NONE && onnx->values[value].flat && strcmp(node->op_type, "Gather") != 0)
        onnx_refuse(onnx, node, "reads %.200s, which joins the batch to other dimensions, expected it to stay first",
                    node->input[input]);
    if (value == NONE ||
        (!onnx->values[value].constant && !onnx->values[value].flat && onnx->values[value].node == NONE))
        onnx_refuse(onnx, node,
                    "reads %.200s, which no node before it makes: nodes that read each other in a circle, "
                    "or a damaged file",
                    node->input[input]);
    return &onnx->values[value];
}

int onnx_flow(const Onnx *onnx, const Onnx__NodeProto *node, int input) {
    const OnnxValue *value = onnx_input(onnx, node, input);
    if (value->constant)
        onnx_refuse(onnx, node, "its input %.200s is the same for all images, expected a value computed from the image",
                    value->name);
    return value->node;
}

Shape onnx_flow_shape(const Onnx *onnx, const Onnx__NodeProto *node, int input) {
    return onnx->graph->nodes[onnx_flow(onnx, node, input)].shape;
}

OnnxConstant *onnx_known(const Onnx *onnx, const Onnx__NodeProto *node, int input) {
    if (!onnx_has(node, input))
        return NULL;
    const OnnxValue *value = onnx_input(onnx, node, input);
    if (!value->constant)
        onnx_refuse(onnx, node,
                    "its input %.200s is computed from the image, expected numbers known from the file: "
                    "cnnscope has no such operation",
                    value->name);
    onnx_same_for_all(onnx, node, value->constant);
    return value->constant;
}

void onnx_same_for_all(const Onnx *onnx, const Onnx__NodeProto *node, const OnnxConstant *constant) {
    static const char *const ready[] = {"Add", "Mul", "Unsqueeze", "Gather"};
    bool is_ready = !constant->per_sample;
    for (size_t i = 0; i < sizeof ready / sizeof *ready; i++)
        is_ready = is_ready || !strcmp(ready[i], node->op_type);
    if (!is_ready)
        onnx_refuse(onnx, node, "reads places that it counts by the batch, expected each image to be taken by itself");
}

const int64_t *onnx_known_ints(Onnx *onnx, const Onnx__NodeProto *node, int input, int *count) {
    OnnxConstant *constant = onnx_known(onnx, node, input);
    *count = 0;
    if (!constant)
        return NULL;
    if (constant->rank > 1 || constant->size > 1 << 20)
        onnx_refuse(onnx, node, "its input %s has shape %s, expected a list of numbers", node->input[input],
                    onnx_shape_text((char[64]){0}, constant));
    *count = (int)constant->size;
    return onnx_ints(onnx, constant);
}

float onnx_known_float(Onnx *onnx, const Onnx__NodeProto *node, int input, float otherwise) {
    OnnxConstant *constant = onnx_known(onnx, node, input);
    if (!constant || constant->size == 0)
        return otherwise;
    if (constant->size != 1)
        onnx_refuse(onnx, node, "its input %s has shape %s, expected one number", node->input[input],
                    onnx_shape_text((char[64]){0}, constant));
    return onnx_floats(onnx, constant)[0];
}

const int64_t *onnx_list_or_input(Onnx *onnx, const Onnx__NodeProto *node, const char *name, int input, int *count) {
    return onnx_has(node, input) ? onnx_known_ints(onnx, node, input, count) : onnx_list(node, name, count);
}

int onnx_axis(const Onnx *onnx, const Onnx__NodeProto *node, int64_t axis, int rank) {
    if (axis < -(int64_t)rank || axis >= rank)
        onnx_refuse(onnx, node, "works along axis %lld of a value of %d dimensions, expected %d to %d", (long long)axis,
                    rank, -rank, rank - 1);
    return (int)(axis < 0 ? axis + rank : axis);
}

int onnx_sample_axis(const Onnx *onnx, const Onnx__NodeProto *node, int64_t axis, int rank) {
    int at = onnx_axis(onnx, node, axis, rank + 1);
    if (at == 0)
        onnx_refuse(onnx, node,
                    "works along the batch (axis 0), expected each image to be taken by itself: cnnscope "
                    "computes images independently");
    return at - 1;
}

/* ---- Outputs ---------------------------------------------------------------------------------------------------- */

static OnnxValue *output_value(const Onnx *onnx, const Onnx__NodeProto *node, int output) {
    int value = (size_t)output < node->n_output ? onnx_value_find(onnx, node->output[output]) : NONE;
    return value == NONE ? NULL : &onnx->values[value];
}

void onnx_alias(Onnx *onnx, const Onnx__NodeProto *node, int output, int graph_node) {
    OnnxValue *value = output_value(onnx, node, output);
    if (value)
        value->node = graph_node;
}

void onnx_define(Onnx *onnx, const Onnx__NodeProto *node, OnnxConstant *constant) {
    OnnxValue *value = output_value(onnx, node, 0);
    if (value)
        value->constant = constant;
}

int onnx_emit(Onnx *onnx, const Onnx__NodeProto *node, int output, Node made, int count, const int *inputs) {
    if (onnx->graph->count == onnx->graph->capacity)
        onnx_refuse(onnx, node, "makes the network larger than %d nodes", onnx->graph->capacity);
    made.n_inputs = count;
    made.inputs = inputs;
    int at = graph_add(onnx->graph, made);
    if (shape_size(onnx->graph->nodes[at].shape) > 1 << 28)
        onnx_refuse(onnx, node, "gives %lld numbers for each image, expected %d at most: the file is damaged",
                    (long long)shape_size(onnx->graph->nodes[at].shape), 1 << 28);
    if (output != NONE)
        onnx_alias(onnx, node, output, at);
    return at;
}

int onnx_reshape(Onnx *onnx, const Onnx__NodeProto *node, int output, int input, Shape target) {
    if (!shape_equal(onnx->graph->nodes[input].shape, target))
        return onnx_emit(onnx, node, output,
                         (Node){.op = OP_RESHAPE, .name = onnx_layer_name(onnx, node, NULL, ""), .target = target}, 1,
                         &input);
    if (output != NONE)
        onnx_alias(onnx, node, output, input);
    return input;
}
