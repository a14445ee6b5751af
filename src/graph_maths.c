/* graph_maths.c: elementwise operations of one value and of two, products of two values, means.
 * Elementwise operations keep the blocked layout where all they read has it. */
#include <string.h>

#include "error.h"
#include "plan.h"

/* ---- Of one value ----------------------------------------------------------------------------------------------- */

static KUnary function_of(const Node *n) {
    static const KFunction functions[OP_COUNT] = {
        [OP_CLIP] = K_CLIP,
        [OP_LEAKY_RELU] = K_LEAKY_RELU,
        [OP_ELU] = K_ELU,
        [OP_SELU] = K_SELU,
        [OP_SIGMOID] = K_SIGMOID,
        [OP_HARD_SIGMOID] = K_HARD_SIGMOID,
        [OP_TANH] = K_TANH,
        [OP_HARD_SWISH] = K_HARD_SWISH,
        [OP_SOFTPLUS] = K_SOFTPLUS,
        [OP_GELU] = K_GELU,
        [OP_ERF] = K_ERF,
        [OP_SQRT] = K_SQRT,
        [OP_EXP] = K_EXP,
        [OP_LOG] = K_LOG,
        [OP_NEG] = K_NEG,
        [OP_ABS] = K_ABS,
        [OP_RECIPROCAL] = K_RECIPROCAL,
        [OP_POW] = K_POW,
    };
    const KFunction f = n->op == OP_GELU && n->scalar.tanh_form ? K_GELU_TANH : functions[n->op];
    return (KUnary){f, n->scalar.alpha, n->scalar.beta, n->scalar.low, n->scalar.high};
}

static void unary_prepare(Step *step) {
    step->layout = step->laid[0];
}

static void unary_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    const Sides s = graph_sides(step->node->shape);
    const KUnary unary = function_of(step->node);
    k_unary_forward(lane, a->out, a->in[0], step->layout, &unary, step->batch, s.C, s.H, s.W);
}

static void unary_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    const Sides s = graph_sides(step->node->shape);
    const KUnary unary = function_of(step->node);
    k_unary_backward(lane, a->din[0], a->dout, a->in[0], step->layout, &unary, step->batch, s.C, s.H, s.W);
}

/* ---- Of two, or of one and a constant --------------------------------------------------------------------------- */

/* Shapes of the two operands; of a constant, its own. */
static void operands(Shape two[2], const Node *node, const Shape *in) {
    const int constant = node->operand_first ? 0 : 1;
    if (node->n_inputs == 2) {
        two[0] = in[0];
        two[1] = in[1];
    } else {
        two[constant] = node->operand.shape;
        two[1 - constant] = in[0];
    }
}

static void binary_shape(Node *node, const Shape *in) {
    Shape two[2];
    char left[64], right[64];
    if (node->n_inputs == 1 && (!node->operand.values || node->operand.shape.rank > SHAPE_RANK))
        die("layer %s: it reads one value, expected two or a constant of at most %d dimensions", node->name,
            SHAPE_RANK);
    operands(two, node, in);
    Shape out = {.rank = two[0].rank > two[1].rank ? two[0].rank : two[1].rank};
    for (int d = 1; d <= out.rank; d++) {
        const int a = d <= two[0].rank ? two[0].dim[two[0].rank - d] : 1;
        const int b = d <= two[1].rank ? two[1].dim[two[1].rank - d] : 1;
        if (a != b && a != 1 && b != 1)
            die("layer %s: values of shapes %s and %s were found, expected ones that can be broadcast to each other",
                node->name, shape_text(left, two[0]), shape_text(right, two[1]));
        out.dim[out.rank - d] = a > b ? a : b;
    }
    node->shape = out;
}

static void right_aligned(int to[KDIMS], Shape shape) {
    for (int d = 0; d < KDIMS; d++)
        to[d] = d < KDIMS - shape.rank ? 1 : shape.dim[d - (KDIMS - shape.rank)];
}

/* Blocked values can be worked on as they are where each operand has the result's channels (a constant may have 1), and
 * all its pixels or one. */
static bool keeps_blocks(const Step *step, int dims[2][KDIMS], const int out[KDIMS]) {
    if (!graph_all_blocked(step) || step->node->shape.rank != 3)
        return false;
    for (int side = 0; side < 2; side++) {
        const int *d = dims[side];
        const bool constant = step->n == 1 && (side == 0) == step->node->operand_first;
        const bool channels = d[2] == out[2] || (constant && d[2] == 1);
        const bool pixels = (d[3] == out[3] && d[4] == out[4]) || (d[3] == 1 && d[4] == 1);
        if (d[0] != 1 || d[1] != 1 || !channels || !pixels)
            return false;
    }
    return true;
}

static void binary_prepare(Step *step) {
    static const KBinaryKind kinds[OP_COUNT] = {[OP_ADD] = K_ADD,
                                                [OP_SUB] = K_SUB,
                                                [OP_MUL] = K_MUL,
                                                [OP_DIV] = K_DIV,
                                                [OP_PRELU] = K_PRELU,
                                                [OP_LESS] = K_LESS,
                                                [OP_EQUAL] = K_EQUAL,
                                                [OP_WHERE] = K_WHERE,
                                                [OP_LESS_EQUAL] = K_LESS_EQUAL,
                                                [OP_WHERE_NOT] = K_WHERE_NOT};
    const Node *n = step->node;
    Shape two[2];
    int dims[2][KDIMS], out[KDIMS];
    operands(two, n, step->in);
    for (int side = 0; side < 2; side++)
        right_aligned(dims[side], two[side]);
    right_aligned(out, n->shape);
    step->layout = keeps_blocks(step, dims, out) ? LAYOUT_BLOCKED : LAYOUT_PLAIN;
    step->reads_plain = step->layout == LAYOUT_PLAIN;
    const int constant = step->n == 2 ? -1 : n->operand_first ? 0 : 1;
    step->kernel = k_binary_new(kinds[n->op], step->layout, step->batch, out, dims[0], dims[1],
                                constant == 0 ? n->operand.values : NULL, constant == 1 ? n->operand.values : NULL);
    step->scratch_bytes = step->backward ? k_binary_scratch(step->kernel) : 0;
}

static void binary_release(Step *step) {
    k_binary_free(step->kernel);
}

static void binary_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    const bool first = step->n == 1 && step->node->operand_first;
    k_binary_forward(lane, step->kernel, a->out, a->in[0], a->in[first || step->n == 1 ? 0 : 1]);
}

/* The constant's place is never read, so the value may stand in both. */
static void binary_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    const bool one = step->n == 1, first = one && step->node->operand_first;
    float *da = first ? NULL : a->din[0], *db = first ? a->din[0] : one ? NULL : a->din[1];
    k_binary_backward(lane, step->kernel, da, db, a->dout, a->in[0], a->in[one ? 0 : 1], a->scratch);
}

/* ---- Product of two values, or of one and a constant -------------------------------------------------------------- */

static void matmul_shape(Node *node, const Shape *in) {
    Shape two[2];
    char left[64], right[64];
    if (node->n_inputs == 1 && !node->operand.values)
        die("layer %s: it reads one value, expected two or a constant", node->name);
    operands(two, node, in);
    const Shape a = two[0], b = two[1];
    Shape out = {.rank = a.rank > b.rank ? a.rank : b.rank};
    bool fits = a.rank >= 2 && b.rank >= 2 && out.rank <= SHAPE_RANK && a.dim[a.rank - 1] == b.dim[b.rank - 2];
    for (int d = 3; fits && d <= out.rank; d++) {
        const int x = d <= a.rank ? a.dim[a.rank - d] : 1, y = d <= b.rank ? b.dim[b.rank - d] : 1;
        fits = x == y || x == 1 || y == 1;
        out.dim[out.rank - d] = x > y ? x : y;
    }
    if (!fits)
        die("layer %s: a product of values of shapes %s and %s was found, expected (..., M, K) and (..., K, N)",
            node->name, shape_text(left, a), shape_text(right, b));
    out.dim[out.rank - 2] = a.dim[a.rank - 2];
    out.dim[out.rank - 1] = b.dim[b.rank - 1];
    node->shape = out;
}

/* Steps of a (..., rows, columns), or of a constant of that shape, along the outer axes of a result of that rank. */
static void outer_steps(int64_t step[KDIMS + 1], Shape s, int rank, bool constant) {
    int64_t run = (int64_t)s.dim[s.rank - 2] * s.dim[s.rank - 1];
    for (int d = 3; d <= rank; d++) {
        const int size = d <= s.rank ? s.dim[s.rank - d] : 1;
        step[rank - d + 1] = size > 1 ? run : 0;
        run *= size;
    }
    step[0] = constant ? 0 : run;
}

static KProduct product_of(const Step *step) {
    const Node *n = step->node;
    Shape two[2];
    operands(two, n, step->in);
    const Shape a = two[0], b = two[1], c = n->shape;
    KProduct p = {.M = a.dim[a.rank - 2], .N = b.dim[b.rank - 1], .K = a.dim[a.rank - 1], .n = c.rank - 1};
    p.size[0] = step->batch;
    for (int d = 0; d < c.rank - 2; d++)
        p.size[d + 1] = c.dim[d];
    outer_steps(p.a_step, a, c.rank, step->n == 1 && n->operand_first);
    outer_steps(p.b_step, b, c.rank, step->n == 1 && !n->operand_first);
    outer_steps(p.c_step, c, c.rank, false);
    return p;
}

static void plain_prepare(Step *step) {
    step->reads_plain = true;
    step->layout = LAYOUT_PLAIN;
}

static void matmul_prepare(Step *step) {
    plain_prepare(step);
    if (step->n == 2)
        return;
    const Constant *constant = &step->node->operand;
    const size_t bytes = (size_t)shape_size(constant->shape) * sizeof(float);
    step->kernel = dev_alloc(bytes);
    dev_upload(step->kernel, constant->values, bytes);
}

static void matmul_release(Step *step) {
    dev_free(step->kernel);
}

/* What stands on that side: a value, or the constant. */
static const float *factor(const Step *step, const float *const *in, int side) {
    const bool constant = step->n == 1 && step->node->operand_first == (side == 0);
    return constant ? step->kernel : in[step->n == 1 ? 0 : side];
}

static void matmul_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    const KProduct p = product_of(step);
    k_matmul(lane, a->out, factor(step, a->in, 0), factor(step, a->in, 1), &p);
}

static void matmul_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    const KProduct p = product_of(step);
    const bool one = step->n == 1, first = one && step->node->operand_first;
    float *const left = first ? NULL : a->din[0], *const right = !one ? a->din[1] : first ? a->din[0] : NULL;
    KProduct back = p;
    if (left) { /* dout (M, N) b' (N, K) */
        back.N = p.K, back.K = p.N, back.b_turned = true;
        memcpy(back.c_step, p.a_step, sizeof p.a_step);
        memcpy(back.a_step, p.c_step, sizeof p.c_step);
        k_matmul(lane, left, a->dout, factor(step, a->in, 1), &back);
    }
    back = p;
    if (right) { /* a' (K, M) dout (M, N) */
        back.M = p.K, back.K = p.M, back.a_turned = true;
        memcpy(back.c_step, p.b_step, sizeof p.b_step);
        memcpy(back.b_step, p.c_step, sizeof p.c_step);
        k_matmul(lane, right, factor(step, a->in, 0), a->dout, &back);
    }
}

/* ---- Mean over axes --------------------------------------------------------------------------------------------- */

static void mean_shape(Node *node, const Shape *in) {
    Shape out = {.rank = 0};
    for (int d = 0; d < in[0].rank; d++)
        if (!node->reduce.axes[d] || node->reduce.keep)
            out.dim[out.rank++] = node->reduce.axes[d] ? 1 : in[0].dim[d];
    for (int d = in[0].rank; d < SHAPE_RANK; d++)
        if (node->reduce.axes[d])
            graph_check_axis(node, d, in[0].rank);
    node->shape = out;
}

/* From steps: of the value read; to steps: of the mean, 0 along what is averaged. */
static KMove mean_box(const Step *step) {
    const Shape s = step->in[0];
    KMove box = {.n = s.rank + 1};
    int64_t from = 1, to = 1;
    for (int d = s.rank - 1; d >= 0; d--) {
        const bool averaged = step->node->reduce.axes[d];
        box.size[d + 1] = s.dim[d];
        box.from_step[d + 1] = from;
        box.to_step[d + 1] = averaged ? 0 : to;
        from *= s.dim[d];
        to *= averaged ? 1 : s.dim[d];
    }
    box.size[0] = step->batch;
    box.from_step[0] = from;
    box.to_step[0] = to;
    return box;
}

static void mean_prepare(Step *step) {
    plain_prepare(step);
    step->scratch_bytes = (size_t)step->batch * (size_t)shape_size(step->node->shape) * sizeof(double);
}

static void mean_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    const KMove box = mean_box(step);
    const int64_t values = shape_size(step->node->shape);
    k_mean_forward(lane, a->out, a->in[0], &box, step->batch * values, shape_size(step->in[0]) / values, a->scratch);
}

static void mean_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    const KMove box = mean_box(step);
    k_mean_backward(lane, a->din[0], a->dout, &box, shape_size(step->in[0]) / shape_size(step->node->shape));
}

/* ---- The table -------------------------------------------------------------------------------------------------- */

#define UNARY(name)                                                                                                    \
    { name, 1, 1, graph_same_shape, true, false, true, unary_prepare, NULL, unary_forward, unary_backward }
#define BINARY(name, keeps)                                                                                            \
    { name, 1, 2, binary_shape, true, false, keeps, binary_prepare, binary_release, binary_forward, binary_backward }

const Op graph_maths[OP_COUNT] = {
    [OP_CLIP] = UNARY("Clip"),
    [OP_LEAKY_RELU] = UNARY("LeakyRelu"),
    [OP_ELU] = UNARY("Elu"),
    [OP_SELU] = UNARY("Selu"),
    [OP_SIGMOID] = UNARY("Sigmoid"),
    [OP_HARD_SIGMOID] = UNARY("HardSigmoid"),
    [OP_HARD_SWISH] = UNARY("HardSwish"),
    [OP_TANH] = UNARY("Tanh"),
    [OP_SOFTPLUS] = UNARY("Softplus"),
    [OP_GELU] = UNARY("Gelu"),
    [OP_ERF] = UNARY("Erf"),
    [OP_SQRT] = UNARY("Sqrt"),
    [OP_EXP] = UNARY("Exp"),
    [OP_LOG] = UNARY("Log"),
    [OP_NEG] = UNARY("Neg"),
    [OP_ABS] = UNARY("Abs"),
    [OP_RECIPROCAL] = UNARY("Reciprocal"),
    [OP_POW] = UNARY("Pow"),
    [OP_ADD] = BINARY("Add", false),
    [OP_SUB] = BINARY("Sub", false),
    [OP_MUL] = BINARY("Mul", true),
    [OP_DIV] = BINARY("Div", true),
    [OP_PRELU] = BINARY("PRelu", true),
    [OP_LESS] = BINARY("Less", true),
    [OP_LESS_EQUAL] = BINARY("LessOrEqual", true),
    [OP_EQUAL] = BINARY("Equal", true),
    [OP_WHERE] = BINARY("Where", true),
    [OP_WHERE_NOT] = BINARY("WhereNot", true),
    [OP_MATMUL] = {"MatMul", 1, 2, matmul_shape, false, false, true, matmul_prepare, matmul_release, matmul_forward,
                   matmul_backward},
    [OP_REDUCE_MEAN] = {"ReduceMean", 1, 1, mean_shape, false, false, false, mean_prepare, NULL, mean_forward,
                        mean_backward},
};
