/* onnx_ops_math.c: operations number by number: activations, and arithmetic with broadcasting. */
#include <math.h>
#include <string.h>

#include "onnx_parts.h"

static void emit_scalar(Onnx *onnx, const Onnx__NodeProto *node, Node made) {
    const int input = onnx_flow(onnx, node, 0);
    made.name = onnx_layer_name(onnx, node, NULL, "");
    onnx_emit(onnx, node, 0, made, 1, &input);
}

/* ---- Activations ------------------------------------------------------------------------------------------------- */

static void build_plain(Onnx *onnx, const Onnx__NodeProto *node) {
    static const struct {
        const char *name;
        OpKind op;
    } table[] = {{"Relu", OP_RELU},
                 {"Sigmoid", OP_SIGMOID},
                 {"Tanh", OP_TANH},
                 {"Softplus", OP_SOFTPLUS},
                 {"Erf", OP_ERF},
                 {"Sqrt", OP_SQRT},
                 {"Exp", OP_EXP},
                 {"Log", OP_LOG},
                 {"Neg", OP_NEG},
                 {"Abs", OP_ABS},
                 {"Reciprocal", OP_RECIPROCAL},
                 {"HardSwish", OP_HARD_SWISH}};
    size_t i = 0;
    while (strcmp(table[i].name, node->op_type) != 0)
        i++;
    emit_scalar(onnx, node, (Node){.op = table[i].op});
}

static void build_leaky_relu(Onnx *onnx, const Onnx__NodeProto *node) {
    emit_scalar(onnx, node, (Node){.op = OP_LEAKY_RELU, .scalar.alpha = onnx_float(onnx, node, "alpha", 0.01f)});
}

static void build_elu(Onnx *onnx, const Onnx__NodeProto *node) {
    emit_scalar(onnx, node, (Node){.op = OP_ELU, .scalar.alpha = onnx_float(onnx, node, "alpha", 1)});
}

static void build_selu(Onnx *onnx, const Onnx__NodeProto *node) {
    emit_scalar(onnx, node,
                (Node){.op = OP_SELU,
                       .scalar.alpha = onnx_float(onnx, node, "alpha", 1.67326319217681884765625f),
                       .scalar.beta = onnx_float(onnx, node, "gamma", 1.05070102214813232421875f)});
}

static void build_hard_sigmoid(Onnx *onnx, const Onnx__NodeProto *node) {
    emit_scalar(onnx, node,
                (Node){.op = OP_HARD_SIGMOID,
                       .scalar.alpha = onnx_float(onnx, node, "alpha", 0.2f),
                       .scalar.beta = onnx_float(onnx, node, "beta", 0.5f)});
}

static void build_gelu(Onnx *onnx, const Onnx__NodeProto *node) {
    emit_scalar(onnx, node,
                (Node){.op = OP_GELU, .scalar.tanh_form = onnx_text_is(node, "approximate", "tanh", false)});
}

static void build_clip(Onnx *onnx, const Onnx__NodeProto *node) {
    Node made = {.op = OP_CLIP};
    made.scalar.low = onnx_known_float(onnx, node, 1, onnx_float(onnx, node, "min", -INFINITY));
    made.scalar.high = onnx_known_float(onnx, node, 2, onnx_float(onnx, node, "max", INFINITY));
    emit_scalar(onnx, node, made);
}

static void build_softmax(Onnx *onnx, const Onnx__NodeProto *node) {
    const Shape shape = onnx_flow_shape(onnx, node, 0);
    Node made = {.op = !strcmp(node->op_type, "Softmax") ? OP_SOFTMAX : OP_LOG_SOFTMAX};
    made.along.to_last = onnx->opset < 13;
    made.along.axis = onnx_sample_axis(onnx, node, onnx_int(onnx, node, "axis", onnx->opset < 13 ? 1 : -1), shape.rank);
    emit_scalar(onnx, node, made);
}

/* ---- Arithmetic -------------------------------------------------------------------------------------------------- */

/* A constant's shape as that of one sample: aligned at the end with a value of `rank` dimensions and the batch. */
static Constant sample_constant(Onnx *onnx, const Onnx__NodeProto *node, OnnxConstant *constant, int rank) {
    int skip = 0;
    if (constant->per_sample)
        onnx_refuse(onnx, node, "computes with the numbers of the images, expected each image to be taken by itself");
    while (constant->rank - skip > rank && constant->dim[skip] == 1)
        skip++;
    if (constant->rank - skip > rank)
        onnx_refuse(onnx, node,
                    "joins a constant of shape %s with a value of %d dimensions for each image: it would "
                    "differ from image to image",
                    onnx_shape_text((char[64]){0}, constant), rank);
    Constant made = {.shape.rank = constant->rank - skip, .values = onnx_floats(onnx, constant)};
    for (int d = 0; d < made.shape.rank; d++) {
        if (constant->dim[d + skip] < 1 || constant->dim[d + skip] > INT_MAX)
            onnx_refuse(onnx, node, "joins a constant of shape %s, expected one with numbers in it",
                        onnx_shape_text((char[64]){0}, constant));
        made.shape.dim[d] = (int)constant->dim[d + skip];
    }
    return made;
}

static void check_ranks(Onnx *onnx, const Onnx__NodeProto *node, int a, int b) {
    const int rank_a = onnx->graph->nodes[a].shape.rank, rank_b = onnx->graph->nodes[b].shape.rank;
    if (rank_a != rank_b)
        onnx_refuse(onnx, node,
                    "joins values of %d and %d dimensions: the batch of one would meet another dimension of "
                    "the other",
                    rank_a + 1, rank_b + 1);
}

/* a op b, of which at most one is a constant. */
static int join(Onnx *onnx, const Onnx__NodeProto *node, int output, OpKind op, const OnnxValue *a, const OnnxValue *b,
                const char *part) {
    Node made = {.op = op, .operand_first = a->constant != NULL};
    OnnxConstant *constant = a->constant ? a->constant : b->constant;
    const int inputs[2] = {a->constant ? b->node : a->node, b->node};
    if (constant)
        made.operand = sample_constant(onnx, node, constant, onnx->graph->nodes[inputs[0]].shape.rank);
    else
        check_ranks(onnx, node, inputs[0], inputs[1]);
    made.name = onnx_layer_name(onnx, node, part[0] ? NULL : constant, part);
    return onnx_emit(onnx, node, output, made, constant ? 1 : 2, inputs);
}

static void build_binary(Onnx *onnx, const Onnx__NodeProto *node) {
    const char *op = node->op_type;
    join(onnx, node, 0,
         !strcmp(op, "Add")   ? OP_ADD
         : !strcmp(op, "Sub") ? OP_SUB
         : !strcmp(op, "Mul") ? OP_MUL
                              : OP_DIV,
         onnx_input(onnx, node, 0), onnx_input(onnx, node, 1), "");
}

/* a > b is b < a. */
static void build_compare(Onnx *onnx, const Onnx__NodeProto *node) {
    const bool greater = node->op_type[0] == 'G', or_equal = strlen(node->op_type) > strlen("Greater");
    const OnnxValue *a = onnx_input(onnx, node, 0), *b = onnx_input(onnx, node, 1);
    const OpKind op = !strcmp(node->op_type, "Equal") ? OP_EQUAL : or_equal ? OP_LESS_EQUAL : OP_LESS;
    join(onnx, node, 0, op, greater ? b : a, greater ? a : b, "");
}

/* The sum of what is chosen and zeros, and of zeros and the rest: exact, also beside infinities that are not chosen. */
static void build_where(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxValue *condition = onnx_input(onnx, node, 0);
    int part[2];
    for (int i = 0; i < 2; i++) {
        const OnnxValue *value = onnx_input(onnx, node, i + 1);
        if (condition->constant && value->constant)
            onnx_refuse(onnx, node,
                        "takes a constant where another constant says so, expected one of the two to be "
                        "computed from the image");
        part[i] = join(onnx, node, NONE, i == 0 ? OP_WHERE : OP_WHERE_NOT, condition, value, i == 0 ? "yes" : "no");
    }
    check_ranks(onnx, node, part[0], part[1]);
    onnx_emit(onnx, node, 0, (Node){.op = OP_ADD, .name = onnx_layer_name(onnx, node, NULL, "")}, 2, part);
}

/* Sum of any number of values, two at a time from the left. */
static void build_sum(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxValue *sum = onnx_input(onnx, node, 0);
    OnnxValue part;
    for (size_t i = 1; i < node->n_input; i++) {
        const OnnxValue *next = onnx_input(onnx, node, (int)i);
        if (sum->constant && next->constant)
            onnx_refuse(onnx, node, "adds two constants, expected one at most");
        part = (OnnxValue){.node = join(onnx, node, NONE, OP_ADD, sum, next, i + 1 == node->n_input ? "" : "part")};
        sum = &part;
    }
    onnx_alias(onnx, node, 0, sum->constant ? onnx_flow(onnx, node, 0) : sum->node);
}

static void build_prelu(Onnx *onnx, const Onnx__NodeProto *node) {
    onnx_flow(onnx, node, 0);
    join(onnx, node, 0, OP_PRELU, onnx_input(onnx, node, 0), onnx_input(onnx, node, 1), "");
}

static void build_pow(Onnx *onnx, const Onnx__NodeProto *node) {
    if (!onnx_known(onnx, node, 1))
        onnx_refuse(onnx, node, "has no exponent, expected one: the file is damaged");
    emit_scalar(onnx, node, (Node){.op = OP_POW, .scalar.alpha = onnx_known_float(onnx, node, 1, 1)});
}

/* ---- Nothing to compute ------------------------------------------------------------------------------------------ */

static void build_identity(Onnx *onnx, const Onnx__NodeProto *node) {
    onnx_alias(onnx, node, 0, onnx_flow(onnx, node, 0));
}

static void build_dropout(Onnx *onnx, const Onnx__NodeProto *node) {
    OnnxConstant *training = onnx_known(onnx, node, 2);
    if (training && training->size && onnx_ints(onnx, training)[0])
        onnx_refuse(onnx, node, "was exported for training, expected evaluation: call model.eval() before the export");
    build_identity(onnx, node);
}

/* From one floating type to another: all are computed in float32 here. */
static void build_cast(Onnx *onnx, const Onnx__NodeProto *node) {
    const int64_t to = onnx_int(onnx, node, "to", 0);
    if (to != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT && to != ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE &&
        to != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 && to != ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16)
        onnx_refuse(onnx, node, "makes values of ONNX type %lld, expected floating-point ones", (long long)to);
    build_identity(onnx, node);
}

const OnnxOp *onnx_op_math(const char *name) {
    static const OnnxOp table[] = {{"Relu", build_plain},
                                   {"Sigmoid", build_plain},
                                   {"Tanh", build_plain},
                                   {"Softplus", build_plain},
                                   {"Erf", build_plain},
                                   {"Sqrt", build_plain},
                                   {"Exp", build_plain},
                                   {"Log", build_plain},
                                   {"Neg", build_plain},
                                   {"Abs", build_plain},
                                   {"Reciprocal", build_plain},
                                   {"HardSwish", build_plain},
                                   {"LeakyRelu", build_leaky_relu},
                                   {"Elu", build_elu},
                                   {"Selu", build_selu},
                                   {"HardSigmoid", build_hard_sigmoid},
                                   {"Gelu", build_gelu},
                                   {"Clip", build_clip},
                                   {"Softmax", build_softmax},
                                   {"LogSoftmax", build_softmax},
                                   {"Add", build_binary},
                                   {"Sub", build_binary},
                                   {"Mul", build_binary},
                                   {"Div", build_binary},
                                   {"Less", build_compare},
                                   {"LessOrEqual", build_compare},
                                   {"Greater", build_compare},
                                   {"GreaterOrEqual", build_compare},
                                   {"Equal", build_compare},
                                   {"Where", build_where},
                                   {"Sum", build_sum},
                                   {"PRelu", build_prelu},
                                   {"Pow", build_pow},
                                   {"Identity", build_identity},
                                   {"Dropout", build_dropout},
                                   {"Cast", build_cast}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, name))
            return &table[i];
    return NULL;
}
