/* onnx_fold.c: operations all of whose inputs are known at load, done there and then. Shapes are the reason: exporters
 * write "reshape to (batch, channels times height times width)" as a chain of small computations. Whole numbers are
 * int64, others float; ONNX_BATCH among the whole ones is the size of the batch, which may be moved, not computed with. */
#include <math.h>
#include <string.h>

#include "onnx_parts.h"

static OnnxConstant *known(Onnx *onnx, const Onnx__NodeProto *node, int input) {
    OnnxConstant *constant = onnx_known(onnx, node, input);
    if (!constant)
        onnx_refuse(onnx, node, "has no input %d, expected one: the file is damaged", input);
    if (constant->whole)
        onnx_ints(onnx, constant);
    else
        onnx_floats(onnx, constant);
    return constant;
}

static OnnxConstant *like(Onnx *onnx, const OnnxConstant *type, int rank, const int64_t *dim) {
    return onnx_constant_new(onnx, type->whole, rank, dim);
}

static void copy(OnnxConstant *to, int64_t i, const OnnxConstant *from, int64_t j) {
    if (to->whole)
        to->ints[i] = from->ints[j];
    else
        to->floats[i] = from->floats[j];
}

/* ---- Makers ----------------------------------------------------------------------------------------------------- */

static void fold_constant(Onnx *onnx, const Onnx__NodeProto *node) {
    const Onnx__AttributeProto *a;
    OnnxConstant *made;
    if ((a = onnx_attribute(node, "value")) && a->t) {
        onnx_define(onnx, node, onnx_tensor(onnx, a->t));
        return;
    }
    const bool one = (a = onnx_attribute(node, "value_int")) || (a = onnx_attribute(node, "value_float"));
    if (!one && !(a = onnx_attribute(node, "value_ints")) && !(a = onnx_attribute(node, "value_floats")))
        onnx_refuse(onnx, node, "holds no tensor and no numbers, expected either: cnnscope knows no text");
    const bool whole = !strncmp(a->name, "value_int", 9);
    const int64_t count = one ? 1 : (int64_t)(whole ? a->n_ints : a->n_floats);
    made = onnx_constant_new(onnx, whole, one ? 0 : 1, &count);
    for (int64_t i = 0; i < count; i++)
        if (whole)
            made->ints[i] = one ? a->i : a->ints[i];
        else
            made->floats[i] = one ? a->f : a->floats[i];
    onnx_define(onnx, node, made);
}

static void fold_constant_of_shape(Onnx *onnx, const Onnx__NodeProto *node) {
    int rank;
    const int64_t *dim = onnx_known_ints(onnx, node, 0, &rank);
    const Onnx__AttributeProto *a = onnx_attribute(node, "value");
    OnnxConstant *value = a && a->t ? onnx_tensor(onnx, a->t) : NULL;
    if (value && value->size != 1)
        onnx_refuse(onnx, node, "has %lld values, expected one", (long long)value->size);
    for (int d = 0; d < rank; d++)
        if (dim[d] == ONNX_BATCH)
            onnx_refuse(onnx, node, "makes a constant of the batch's size, expected one that no batch changes");
    OnnxConstant *made = onnx_constant_new(onnx, value && value->whole, rank, dim);
    for (int64_t i = 0; value && i < made->size; i++)
        if (made->whole)
            made->ints[i] = onnx_ints(onnx, value)[0];
        else
            made->floats[i] = onnx_floats(onnx, value)[0];
    onnx_define(onnx, node, made);
}

static void fold_range(Onnx *onnx, const Onnx__NodeProto *node) {
    OnnxConstant *start = known(onnx, node, 0), *limit = known(onnx, node, 1), *step = known(onnx, node, 2);
    const int64_t one = 1;
    if (start->whole && limit->whole && step->whole && start->size == 1 && limit->size == 1 && step->size == 1 &&
        start->ints[0] == 0 && limit->ints[0] == ONNX_BATCH && step->ints[0] == 1) { /* the images' numbers */
        OnnxConstant *images = onnx_constant_new(onnx, true, 1, &one);
        images->per_sample = 1;
        onnx_define(onnx, node, images);
        return;
    }
    if (!start->whole || !limit->whole || !step->whole || start->size != 1 || limit->size != 1 || step->size != 1 ||
        step->ints[0] == 0 || start->ints[0] == ONNX_BATCH || limit->ints[0] == ONNX_BATCH)
        onnx_refuse(onnx, node, "counts with something else than one whole number each, expected those");
    const double length = ceil(((double)limit->ints[0] - (double)start->ints[0]) / (double)step->ints[0]);
    const int64_t count = length < 0 ? 0 : length > 1e9 ? 1000000000 : (int64_t)length;
    OnnxConstant *made = onnx_constant_new(onnx, true, 1, &count);
    for (int64_t i = 0; i < count; i++)
        made->ints[i] = start->ints[0] + i * step->ints[0];
    onnx_define(onnx, node, made);
}

/* ---- Shape and place --------------------------------------------------------------------------------------------- */

/* The same numbers in another shape. */
static void reshaped(Onnx *onnx, const Onnx__NodeProto *node, const OnnxConstant *from, int rank, const int64_t *dim) {
    OnnxConstant *made = ARENA_ARRAY(onnx->arena, OnnxConstant, 1, onnx->path);
    *made = *from;
    made->rank = rank;
    int64_t size = 1;
    for (int d = 0; d < rank; d++) {
        made->dim[d] = dim[d];
        if (dim[d] < 0 || __builtin_mul_overflow(size, dim[d], &size))
            onnx_refuse(onnx, node, "gives a constant an impossible shape: the file is damaged");
    }
    if (size != from->size)
        onnx_refuse(onnx, node, "gives %lld numbers a shape of %lld: the file is damaged", (long long)from->size,
                    (long long)size);
    onnx_define(onnx, node, made);
}

static void fold_shape(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxConstant *x = known(onnx, node, 0);
    onnx_define_shape(onnx, node, x->rank, x->dim);
}

static void fold_identity(Onnx *onnx, const Onnx__NodeProto *node) {
    onnx_define(onnx, node, known(onnx, node, 0));
}

static void fold_reshape(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxConstant *x = known(onnx, node, 0);
    int count, infer = NONE;
    const int64_t *target = onnx_known_ints(onnx, node, 1, &count);
    int64_t dim[ONNX_RANK], rest = 1;
    if (count > ONNX_RANK)
        onnx_refuse(onnx, node, "makes %d dimensions, expected %d at most", count, ONNX_RANK);
    for (int d = 0; d < count; d++) {
        dim[d] = target[d] == 0 && d < x->rank && !onnx_int(onnx, node, "allowzero", 0) ? x->dim[d] : target[d];
        if (dim[d] == -1 && infer == NONE)
            infer = d;
        else if (dim[d] < 0 || __builtin_mul_overflow(rest, dim[d], &rest))
            onnx_refuse(onnx, node, "gives a constant an impossible shape: the file is damaged");
    }
    if (infer != NONE)
        dim[infer] = rest ? x->size / rest : 0;
    reshaped(onnx, node, x, count, dim);
}

static void fold_unsqueeze(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxConstant *x = known(onnx, node, 0);
    int count;
    const int64_t *axes = onnx_list_or_input(onnx, node, "axes", 1, &count);
    bool added[ONNX_RANK] = {0};
    int64_t dim[ONNX_RANK];
    const int rank = x->rank + count;
    if (rank > ONNX_RANK)
        onnx_refuse(onnx, node, "makes %d dimensions, expected %d at most", rank, ONNX_RANK);
    for (int i = 0; i < count; i++)
        added[onnx_axis(onnx, node, axes[i], rank)] = true;
    if (x->per_sample && added[0])
        onnx_refuse(onnx, node, "moves the batch from the first place, expected it there");
    int from = 0;
    for (int d = 0; d < rank; d++)
        dim[d] = added[d] || from == x->rank ? 1 : x->dim[from++];
    reshaped(onnx, node, x, rank, dim);
}

static void fold_squeeze(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxConstant *x = known(onnx, node, 0);
    int count, rank = 0;
    const int64_t *axes = onnx_list_or_input(onnx, node, "axes", 1, &count);
    bool gone[ONNX_RANK] = {0};
    int64_t dim[ONNX_RANK];
    for (int i = 0; i < count; i++)
        gone[onnx_axis(onnx, node, axes[i], x->rank)] = true;
    for (int d = 0; d < x->rank; d++)
        if (axes ? !gone[d] : x->dim[d] != 1)
            dim[rank++] = x->dim[d];
    reshaped(onnx, node, x, rank, dim);
}

/* Numbers along `axis` lie `inner` apart; there are `outer` such runs of axes before. */
static void strides(const OnnxConstant *x, int axis, int64_t *outer, int64_t *inner) {
    *outer = *inner = 1;
    for (int d = 0; d < x->rank; d++)
        *(d < axis ? outer : inner) *= d == axis ? 1 : x->dim[d];
}

static void fold_gather(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxConstant *x = known(onnx, node, 0), *index = known(onnx, node, 1);
    if (x->per_sample || index->per_sample)
        onnx_refuse(onnx, node, "picks from numbers of the file by the batch, expected values computed from the image");
    if (!index->whole || x->rank < 1 || x->rank - 1 + index->rank > ONNX_RANK)
        onnx_refuse(onnx, node, "picks by something else than whole numbers, expected those");
    const int axis = onnx_axis(onnx, node, onnx_int(onnx, node, "axis", 0), x->rank);
    int64_t dim[2 * ONNX_RANK], outer, inner;
    int rank = 0;
    for (int d = 0; d < axis; d++)
        dim[rank++] = x->dim[d];
    for (int d = 0; d < index->rank; d++)
        dim[rank++] = index->dim[d];
    for (int d = axis + 1; d < x->rank; d++)
        dim[rank++] = x->dim[d];
    strides(x, axis, &outer, &inner);
    OnnxConstant *made = like(onnx, x, rank, dim);
    for (int64_t j = 0; j < index->size; j++) {
        const int64_t at = index->ints[j] < 0 ? index->ints[j] + x->dim[axis] : index->ints[j];
        if (at < 0 || at >= x->dim[axis])
            onnx_refuse(onnx, node, "picks number %lld of %lld: the file is damaged", (long long)index->ints[j],
                        (long long)x->dim[axis]);
        for (int64_t o = 0; o < outer; o++)
            for (int64_t i = 0; i < inner; i++)
                copy(made, (o * index->size + j) * inner + i, x, (o * x->dim[axis] + at) * inner + i);
    }
    onnx_define(onnx, node, made);
}

static void fold_concat(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxConstant *first = known(onnx, node, 0);
    const int axis = onnx_axis(onnx, node, onnx_int(onnx, node, "axis", 0), first->rank);
    int64_t dim[ONNX_RANK], outer, inner, total = 0, done = 0;
    for (size_t i = 0; i < node->n_input; i++) {
        const OnnxConstant *x = known(onnx, node, (int)i);
        bool fits = x->rank == first->rank && x->whole == first->whole;
        for (int d = 0; d < x->rank && fits; d++)
            fits = d == axis || x->dim[d] == first->dim[d];
        if (!fits || __builtin_add_overflow(total, x->dim[axis], &total))
            onnx_refuse(onnx, node, "joins constants of unlike shapes or types: the file is damaged");
    }
    memcpy(dim, first->dim, sizeof dim);
    dim[axis] = total;
    strides(first, axis, &outer, &inner);
    OnnxConstant *made = like(onnx, first, first->rank, dim);
    for (size_t n = 0; n < node->n_input; n++) {
        const OnnxConstant *x = known(onnx, node, (int)n);
        const int64_t run = x->dim[axis] * inner;
        for (int64_t o = 0; o < outer; o++)
            for (int64_t i = 0; i < run; i++)
                copy(made, (o * total + done) * inner + i, x, o * run + i);
        done += x->dim[axis];
    }
    onnx_define(onnx, node, made);
}

static void fold_slice(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxConstant *x = known(onnx, node, 0);
    int counts[4];
    const int64_t *start = onnx_list_or_input(onnx, node, "starts", 1, &counts[0]);
    const int64_t *end = onnx_list_or_input(onnx, node, "ends", 2, &counts[1]);
    const int64_t *axes = onnx_list_or_input(onnx, node, "axes", 3, &counts[2]);
    const int64_t *step = onnx_has(node, 4) ? onnx_known_ints(onnx, node, 4, &counts[3]) : NULL;
    if (counts[0] != 1 || counts[1] != 1 || (axes && counts[2] != 1) || (step && counts[3] != 1) || x->rank < 1)
        onnx_refuse(onnx, node, "cuts a constant along %d axes, expected one", counts[0]);
    const int axis = onnx_axis(onnx, node, axes ? axes[0] : 0, x->rank);
    int64_t first, count, dim[ONNX_RANK], outer, inner;
    const int64_t by = step ? step[0] : 1;
    if (by == 0 || by == ONNX_BATCH)
        onnx_refuse(onnx, node, "has a step of 0, expected another: the file is damaged");
    onnx_slice_range(&first, &count, x->dim[axis], start[0], end[0], by);
    memcpy(dim, x->dim, sizeof dim);
    dim[axis] = count;
    strides(x, axis, &outer, &inner);
    OnnxConstant *made = like(onnx, x, x->rank, dim);
    for (int64_t o = 0; o < outer; o++)
        for (int64_t j = 0; j < count; j++)
            for (int64_t i = 0; i < inner; i++)
                copy(made, (o * count + j) * inner + i, x, (o * x->dim[axis] + first + j * by) * inner + i);
    onnx_define(onnx, node, made);
}

static void fold_transpose(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxConstant *x = known(onnx, node, 0);
    int count;
    const int64_t *perm = onnx_list(node, "perm", &count);
    int from[ONNX_RANK];
    int64_t dim[ONNX_RANK], step[ONNX_RANK], at[ONNX_RANK] = {0};
    bool seen[ONNX_RANK] = {0};
    if (perm && count != x->rank)
        onnx_refuse(onnx, node, "orders %d dimensions, expected %d: the file is damaged", count, x->rank);
    for (int d = 0; d < x->rank; d++) {
        from[d] = perm ? onnx_axis(onnx, node, perm[d], x->rank) : x->rank - 1 - d;
        if (seen[from[d]])
            onnx_refuse(onnx, node, "takes a dimension twice: the file is damaged");
        seen[from[d]] = true;
        dim[d] = x->dim[from[d]];
        step[d] = 1;
        for (int e = from[d] + 1; e < x->rank; e++)
            step[d] *= x->dim[e];
    }
    OnnxConstant *made = like(onnx, x, x->rank, dim);
    made->name = x->name; /* still that layer's weight */
    for (int64_t i = 0; i < made->size; i++) {
        int64_t j = 0;
        for (int d = 0; d < x->rank; d++)
            j += at[d] * step[d];
        copy(made, i, x, j);
        for (int d = x->rank - 1; d >= 0 && ++at[d] == dim[d]; d--)
            at[d] = 0;
    }
    onnx_define(onnx, node, made);
}

static void fold_cast(Onnx *onnx, const Onnx__NodeProto *node) {
    OnnxConstant *x = known(onnx, node, 0);
    const int64_t to = onnx_int(onnx, node, "to", 0);
    const bool whole = to != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT && to != ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE &&
                       to != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 && to != ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16;
    if (whole == x->whole) {
        onnx_define(onnx, node, x);
        return;
    }
    OnnxConstant *made = onnx_constant_new(onnx, whole, x->rank, x->dim);
    for (int64_t i = 0; i < x->size; i++) {
        if (!whole && x->ints[i] == ONNX_BATCH)
            onnx_refuse(onnx, node, "computes with the size of the batch, expected each image to be taken by itself");
        if (!whole)
            made->floats[i] = (float)x->ints[i];
        else
            made->ints[i] = fabsf(x->floats[i]) < 1e18f ? (int64_t)x->floats[i] : INT64_MAX;
    }
    onnx_define(onnx, node, made);
}

/* ---- Arithmetic -------------------------------------------------------------------------------------------------- */

static int64_t whole_of(const Onnx *onnx, const Onnx__NodeProto *node, int64_t a, int64_t b) {
    const char op = node->op_type[0] == 'D' ? '/' : node->op_type[0] == 'M' ? '*' : node->op_type[0] == 'S' ? '-' : '+';
    const bool keeps = (op == '*' || op == '/') ? b == 1 : b == 0;
    if (a == ONNX_BATCH && keeps)
        return a;
    if (b == ONNX_BATCH && (op == '*' ? a == 1 : op == '+' && a == 0))
        return b;
    if (a == ONNX_BATCH || b == ONNX_BATCH)
        onnx_refuse(onnx, node, "computes with the size of the batch, expected each image to be taken by itself");
    int64_t result = 0;
    bool wrong = op == '/'   ? b == 0
                 : op == '*' ? __builtin_mul_overflow(a, b, &result)
                 : op == '-' ? __builtin_sub_overflow(a, b, &result)
                             : __builtin_add_overflow(a, b, &result);
    if (wrong || result == ONNX_BATCH)
        onnx_refuse(onnx, node, "divides by 0 or leaves 64 bits: the file is damaged");
    return op == '/' ? a / b : result;
}

static float float_of(const Onnx__NodeProto *node, float a, float b) {
    switch (node->op_type[0]) {
    case 'D': return a / b;
    case 'M': return a * b;
    case 'S': return a - b;
    case 'P': return powf(a, b);
    default: return a + b;
    }
}

/* per_sample of a sum or product. */
static int64_t grown(const Onnx *onnx, const Onnx__NodeProto *node, const OnnxConstant *const *x, int rank,
                     const int64_t *dim) {
    const int64_t a = x[0]->per_sample, b = x[1]->per_sample;
    if (a == 0 && b == 0)
        return 0;
    const bool sum = node->op_type[0] == 'A', whole = x[0]->whole;
    const OnnxConstant *by = x[a ? 0 : 1], *other = x[a ? 1 : 0];
    int64_t result = 0;
    if (!whole || (a && b) || by->rank != rank || dim[0] != 1 || (!sum && other->size != 1) ||
        (!sum && __builtin_mul_overflow(by->per_sample, other->ints[0], &result)))
        onnx_refuse(onnx, node, "computes with the numbers of the images, expected each image to be taken by itself");
    return sum ? by->per_sample : result;
}

static void fold_binary(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxConstant *x[2] = {known(onnx, node, 0), known(onnx, node, 1)};
    const int rank = x[0]->rank > x[1]->rank ? x[0]->rank : x[1]->rank;
    int64_t dim[ONNX_RANK], step[2][ONNX_RANK], at[ONNX_RANK] = {0};
    if (x[0]->whole != x[1]->whole || (x[0]->whole && node->op_type[0] == 'P'))
        onnx_refuse(onnx, node, "mixes whole and other numbers, expected two of a kind: the file is damaged");
    for (int d = rank - 1; d >= 0; d--)
        dim[d] = 1;
    for (int k = 0; k < 2; k++) {
        int64_t run = 1;
        for (int d = rank - 1; d >= 0; d--) {
            const int own = d - (rank - x[k]->rank);
            const int64_t size = own < 0 ? 1 : x[k]->dim[own];
            step[k][d] = size == 1 ? 0 : run;
            run *= size;
            if (size != 1 && dim[d] != 1 && dim[d] != size)
                onnx_refuse(onnx, node, "joins constants of shapes that do not fit: the file is damaged");
            dim[d] = size == 1 ? dim[d] : size;
        }
    }
    OnnxConstant *made = like(onnx, x[0], rank, dim);
    made->per_sample = grown(onnx, node, x, rank, dim);
    for (int64_t i = 0; i < made->size; i++) {
        int64_t j[2] = {0};
        for (int k = 0; k < 2; k++)
            for (int d = 0; d < rank; d++)
                j[k] += at[d] * step[k][d];
        if (made->whole)
            made->ints[i] = whole_of(onnx, node, x[0]->ints[j[0]], x[1]->ints[j[1]]);
        else
            made->floats[i] = float_of(node, x[0]->floats[j[0]], x[1]->floats[j[1]]);
        for (int d = rank - 1; d >= 0 && ++at[d] == dim[d]; d--)
            at[d] = 0;
    }
    onnx_define(onnx, node, made);
}

static void fold_unary(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxConstant *x = known(onnx, node, 0);
    const char *op = node->op_type;
    if (x->whole && strcmp(op, "Neg") != 0)
        onnx_refuse(onnx, node, "works on whole numbers, expected floating-point ones");
    OnnxConstant *made = like(onnx, x, x->rank, x->dim);
    for (int64_t i = 0; i < x->size; i++) {
        if (x->whole)
            made->ints[i] = x->ints[i] == ONNX_BATCH ? ONNX_BATCH : -x->ints[i];
        else
            made->floats[i] = !strcmp(op, "Neg")     ? -x->floats[i]
                              : !strcmp(op, "Floor") ? floorf(x->floats[i])
                              : !strcmp(op, "Ceil")  ? ceilf(x->floats[i])
                              : !strcmp(op, "Sqrt")  ? sqrtf(x->floats[i])
                                                     : 1 / x->floats[i];
    }
    onnx_define(onnx, node, made);
}

const OnnxOp *onnx_fold_find(const Onnx__NodeProto *node) {
    static const OnnxOp table[] = {{"Constant", fold_constant},   {"ConstantOfShape", fold_constant_of_shape},
                                   {"Range", fold_range},         {"Shape", fold_shape},
                                   {"Identity", fold_identity},   {"Reshape", fold_reshape},
                                   {"Unsqueeze", fold_unsqueeze}, {"Squeeze", fold_squeeze},
                                   {"Gather", fold_gather},       {"Concat", fold_concat},
                                   {"Slice", fold_slice},         {"Transpose", fold_transpose},
                                   {"Cast", fold_cast},           {"Add", fold_binary},
                                   {"Sub", fold_binary},          {"Mul", fold_binary},
                                   {"Div", fold_binary},          {"Pow", fold_binary},
                                   {"Neg", fold_unary},           {"Floor", fold_unary},
                                   {"Ceil", fold_unary},          {"Sqrt", fold_unary},
                                   {"Reciprocal", fold_unary}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, node->op_type))
            return &table[i];
    return NULL;
}
