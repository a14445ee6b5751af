/* graph_norms.c: softmax, the norms over one sample (layer, instance, group), and local response. Plain values. */
#include "error.h"
#include "plan.h"

static void plain_prepare(Step *step) {
    step->reads_plain = true;
    step->layout = LAYOUT_PLAIN;
}

/* ---- Softmax ---------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t outer, n, inner;
} Line;

static Line line_of(const Step *step) {
    const Shape s = step->node->shape;
    const int axis = step->node->along.axis, end = step->node->along.to_last ? s.rank : axis + 1;
    return (Line){step->batch * graph_span(s, 0, axis), graph_span(s, axis, end), graph_span(s, end, s.rank)};
}

static void softmax_shape(Node *node, const Shape *in) {
    graph_check_axis(node, node->along.axis, in[0].rank);
    node->shape = in[0];
}

static void softmax_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    const Line l = line_of(step);
    k_softmax_forward(lane, a->out, a->in[0], step->node->op == OP_LOG_SOFTMAX, l.outer, l.n, l.inner);
}

static void softmax_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    const Line l = line_of(step);
    k_softmax_backward(lane, a->din[0], a->dout, a->out, step->node->op == OP_LOG_SOFTMAX, l.outer, l.n, l.inner);
}

/* ---- Norms ------------------------------------------------------------------------------------------------------ */

static NormShape norm_of(const Node *node, Shape s) {
    const int64_t size = shape_size(s);
    if (node->op == OP_LAYER_NORM) {
        const int64_t n = graph_span(s, node->norm.axis, s.rank);
        return (NormShape){size / n, n, 1, n, node->norm.epsilon};
    }
    const int64_t groups = node->op == OP_INSTANCE_NORM ? s.dim[0] : node->norm.groups;
    return (NormShape){groups, size / groups, graph_span(s, 1, s.rank), s.dim[0], node->norm.epsilon};
}

static void norm_shape(Node *node, const Shape *in) {
    graph_check_axis(node, node->op == OP_LAYER_NORM ? node->norm.axis : 0, in[0].rank);
    if (node->op == OP_GROUP_NORM && (node->norm.groups < 1 || in[0].dim[0] % node->norm.groups))
        die("layer %s: %d groups were found, expected a divisor of its %d channels", node->name, node->norm.groups,
            in[0].dim[0]);
    const NormShape s = norm_of(node, in[0]);
    const Constant *constants[] = {&node->weight, &node->bias};
    char text[64];
    for (int i = 0; i < 2; i++)
        if (constants[i]->values && shape_size(constants[i]->shape) != s.channels)
            die("layer %s: a %s of shape %s was found, expected %lld values", node->name, i ? "bias" : "weight",
                shape_text(text, constants[i]->shape), (long long)s.channels);
    node->shape = in[0];
}

static void norm_prepare(Step *step) {
    const NormShape s = norm_of(step->node, step->in[0]);
    plain_prepare(step);
    step->kernel = k_norm_new(&s, step->batch, step->node->weight.values, step->node->bias.values);
}

static void norm_release(Step *step) {
    k_norm_free(step->kernel);
}

static void norm_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    k_norm_forward(lane, step->kernel, a->out, a->in[0]);
}

static void norm_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    k_norm_backward(lane, step->kernel, a->din[0], a->dout, a->in[0]);
}

/* ---- Local response --------------------------------------------------------------------------------------------- */

static LrnShape lrn_of(const Node *node) {
    return (LrnShape){node->lrn.size, node->lrn.alpha, node->lrn.beta, node->lrn.bias};
}

static void lrn_shape(Node *node, const Shape *in) {
    graph_check_axis(node, 0, in[0].rank);
    if (node->lrn.size < 1 || node->lrn.size > 1 << 20)
        die("layer %s: a size of %d channels was found, expected 1 to 2^20", node->name, node->lrn.size);
    node->shape = in[0];
}

static void lrn_prepare(Step *step) {
    plain_prepare(step);
    step->scratch_bytes = step->backward ? 2 * (size_t)shape_size(step->in[0]) * sizeof(float) : 0;
}

static void lrn_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    const Sides s = graph_sides(step->in[0]);
    const LrnShape lrn = lrn_of(step->node);
    k_lrn_forward(lane, a->out, a->in[0], &lrn, step->batch, s.C, (int64_t)s.H * s.W);
}

static void lrn_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    const Sides s = graph_sides(step->in[0]);
    const LrnShape lrn = lrn_of(step->node);
    k_lrn_backward(lane, a->din[0], a->dout, a->in[0], &lrn, step->batch, s.C, (int64_t)s.H * s.W, a->scratch);
}

/* ---- The table -------------------------------------------------------------------------------------------------- */

#define SOFTMAX(name)                                                                                                  \
    { name, 1, 1, softmax_shape, false, true, false, plain_prepare, NULL, softmax_forward, softmax_backward }
#define NORM(name)                                                                                                     \
    { name, 1, 1, norm_shape, false, false, true, norm_prepare, norm_release, norm_forward, norm_backward }

const Op graph_norms[OP_COUNT] = {
    [OP_SOFTMAX] = SOFTMAX("Softmax"),
    [OP_LOG_SOFTMAX] = SOFTMAX("LogSoftmax"),
    [OP_LAYER_NORM] = NORM("LayerNormalization"),
    [OP_INSTANCE_NORM] = NORM("InstanceNormalization"),
    [OP_GROUP_NORM] = NORM("GroupNormalization"),
    [OP_LRN] = {"LRN", 1, 1, lrn_shape, false, false, true, lrn_prepare, NULL, lrn_forward, lrn_backward},
};
