/* graph_moves.c: operations that move values: concat, reshape, transpose, slice, pad, resize.
 * Concat keeps the blocked layout where each value's channels fill whole blocks; the others work on plain values. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "plan.h"

static void plain_prepare(Step *step) {
    step->reads_plain = true;
    step->layout = LAYOUT_PLAIN;
}

/* A plain value as a box: the batch, then its axes; its steps. */
static KMove box_of(const Step *step, Shape s, int64_t *steps) {
    KMove box = {.n = s.rank + 1};
    int64_t step_now = 1;
    for (int d = s.rank - 1; d >= -1; d--) {
        box.size[d + 1] = d < 0 ? step->batch : s.dim[d];
        steps[d + 1] = step_now;
        step_now *= d < 0 ? 1 : s.dim[d];
    }
    return box;
}

/* The same move the other way. */
static KMove turned(KMove move) {
    KMove back = move;
    memcpy(back.to_step, move.from_step, sizeof back.to_step);
    memcpy(back.from_step, move.to_step, sizeof back.from_step);
    return back;
}

/* ---- Concat ----------------------------------------------------------------------------------------------------- */

static void concat_shape(Node *node, const Shape *in) {
    const int axis = node->along.axis;
    char one[64], other[64];
    graph_check_axis(node, axis, in[0].rank);
    node->shape = in[0];
    int64_t total = 0;
    for (int k = 0; k < node->n_inputs; k++) {
        Shape rest = in[k];
        total += in[k].rank == in[0].rank ? in[k].dim[axis] : 0;
        rest.dim[axis] = in[0].dim[axis];
        if (!shape_equal(rest, in[0]) || total > INT_MAX)
            die("layer %s: values of shapes %s and %s were found, expected ones that differ on axis %d only",
                node->name, shape_text(one, in[0]), shape_text(other, in[k]), axis);
    }
    node->shape.dim[axis] = (int)total;
}

static void concat_prepare(Step *step) {
    bool blocked = graph_all_blocked(step) && step->node->along.axis == 0;
    for (int k = 0; k < step->n; k++)
        blocked &= k_whole_blocks(step->in[k].dim[0]);
    step->layout = blocked ? LAYOUT_BLOCKED : LAYOUT_PLAIN;
    step->reads_plain = !blocked;
}

/* Input k: runs of `part` floats, `whole` floats apart in the result, from `at` on; gives where the next one begins. */
static int64_t concat_part(KMove *move, const Step *step, int k, int64_t at) {
    const Shape s = step->in[k], all = step->node->shape;
    const int axis = step->node->along.axis;
    int64_t outer = graph_span(s, 0, axis), part = graph_span(s, axis, s.rank), whole = graph_span(all, axis, all.rank);
    if (step->layout == LAYOUT_BLOCKED) {
        part = k_sample_step(LAYOUT_BLOCKED, s.dim[0], s.dim[1], s.dim[2]);
        whole = k_sample_step(LAYOUT_BLOCKED, all.dim[0], all.dim[1], all.dim[2]);
    }
    *move = (KMove){2, {step->batch * outer, part}, {whole, 1}, {part, 1}};
    return at + part;
}

static void concat_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    KMove move;
    for (int64_t k = 0, at = 0, next; k < step->n; k++, at = next) {
        next = concat_part(&move, step, (int)k, at);
        k_move(lane, a->out + at, a->in[k], &move);
    }
}

static void concat_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    KMove move;
    for (int64_t k = 0, at = 0, next; k < step->n; k++, at = next) {
        next = concat_part(&move, step, (int)k, at);
        const KMove back = turned(move);
        if (a->din[k])
            k_move(lane, a->din[k], a->dout + at, &back);
    }
}

/* ---- Reshape ---------------------------------------------------------------------------------------------------- */

static void reshape_shape(Node *node, const Shape *in) {
    char one[64], other[64];
    node->shape = node->target;
    bool fits = node->shape.rank >= 0 && node->shape.rank <= SHAPE_RANK;
    int64_t size = 1;
    for (int d = 0; fits && d < node->shape.rank; d++)
        fits = node->shape.dim[d] >= 1 && !__builtin_mul_overflow(size, (int64_t)node->shape.dim[d], &size);
    if (!fits || size != shape_size(in[0]))
        die("layer %s: a value of shape %s is given the shape %s, expected one of as many values", node->name,
            shape_text(one, in[0]), fits ? shape_text(other, node->shape) : "of too many dimensions or an empty one");
}

static void copy(const Step *step, Lane *lane, float *to, const float *from) {
    const KMove move = {1, {step->batch * shape_size(step->in[0])}, {1}, {1}};
    if (to != from)
        k_move(lane, to, from, &move);
}

static void reshape_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    copy(step, lane, a->out, a->in[0]);
}

static void reshape_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    copy(step, lane, a->din[0], a->dout);
}

/* ---- Transpose -------------------------------------------------------------------------------------------------- */

static void transpose_shape(Node *node, const Shape *in) {
    bool seen[SHAPE_RANK] = {0};
    node->shape.rank = in[0].rank;
    for (int d = 0; d < in[0].rank; d++) {
        const int from = node->perm[d];
        graph_check_axis(node, from, in[0].rank);
        if (seen[from])
            die("layer %s: axis %d is there twice, expected each axis once", node->name, from);
        seen[from] = true;
        node->shape.dim[d] = in[0].dim[from];
    }
}

static KMove transpose_move(const Step *step) {
    int64_t from[KDIMS + 1], to[KDIMS + 1];
    KMove move = box_of(step, step->node->shape, to);
    box_of(step, step->in[0], from);
    memcpy(move.to_step, to, sizeof to);
    move.from_step[0] = from[0];
    for (int d = 0; d < step->in[0].rank; d++)
        move.from_step[d + 1] = from[step->node->perm[d] + 1];
    return move;
}

static void transpose_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    const KMove move = transpose_move(step);
    k_move(lane, a->out, a->in[0], &move);
}

static void transpose_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    const KMove back = turned(transpose_move(step));
    k_move(lane, a->din[0], a->dout, &back);
}

/* ---- Slice ------------------------------------------------------------------------------------------------------ */

static void slice_shape(Node *node, const Shape *in) {
    node->shape.rank = in[0].rank;
    for (int d = 0; d < in[0].rank; d++) {
        const int count = node->slice.count[d], size = in[0].dim[d];
        const int64_t first = node->slice.start[d], last = first + (int64_t)(count - 1) * node->slice.step[d];
        if (count < 1 || first < 0 || first >= size || last < 0 || last >= size)
            die("layer %s: %d values from %lld by steps of %d were found on axis %d, expected them within %d",
                node->name, count, (long long)first, node->slice.step[d], d, size);
        node->shape.dim[d] = count;
    }
}

/* *at: the first value, in what it reads. */
static KMove slice_move(const Step *step, int64_t *at) {
    const Node *n = step->node;
    int64_t from[KDIMS + 1], to[KDIMS + 1];
    KMove move = box_of(step, n->shape, to);
    box_of(step, step->in[0], from);
    memcpy(move.to_step, to, sizeof to);
    move.from_step[0] = from[0];
    *at = 0;
    for (int d = 0; d < n->shape.rank; d++) {
        move.from_step[d + 1] = from[d + 1] * n->slice.step[d];
        *at += from[d + 1] * n->slice.start[d];
    }
    return move;
}

static void slice_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    int64_t at;
    const KMove move = slice_move(step, &at);
    k_move(lane, a->out, a->in[0] + at, &move);
}

static void slice_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    int64_t at;
    const KMove back = turned(slice_move(step, &at));
    k_fill(lane, a->din[0], 0, step->batch * shape_size(step->in[0]));
    k_move(lane, a->din[0] + at, a->dout, &back);
}

/* ---- Axes made anew: pad (reflect, edge) and resize; pad with a constant is a move ------------------------------- */

/* The axes that change, one after the other; between them, values lie in one half of scratch or the other. */
typedef struct {
    int count, axis[SHAPE_RANK];
    KAxis *table[SHAPE_RANK];
    size_t half; /* floats */
} Axes;

static Axes *axes_new(void) {
    Axes *axes = calloc(1, sizeof *axes);
    if (!axes)
        die("memory: not enough for a layer's tables");
    return axes;
}

static void axes_add(Axes *axes, int axis, int in, int out, const int *index, const float *weight) {
    axes->axis[axes->count] = axis;
    axes->table[axes->count++] = k_axis_new(in, out, index, weight);
}

/* Shape after the first `done` axes have changed. */
static Shape shape_after(const Step *step, const Axes *axes, int done) {
    Shape s = step->in[0];
    for (int i = 0; i < done; i++)
        s.dim[axes->axis[i]] = step->node->shape.dim[axes->axis[i]];
    return s;
}

static void axes_scratch(Step *step, Axes *axes) {
    for (int i = 1; i < axes->count; i++) {
        const size_t size = (size_t)(step->batch * shape_size(shape_after(step, axes, i)));
        axes->half = size > axes->half ? size : axes->half;
    }
    step->scratch_bytes = 2 * axes->half * sizeof(float);
}

static void axes_release(Step *step) {
    Axes *axes = step->kernel;
    for (int i = 0; axes && i < axes->count; i++)
        k_axis_free(axes->table[i]);
    free(axes);
}

static void axes_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    const Axes *axes = step->kernel;
    if (axes->count == 0)
        copy(step, lane, a->out, a->in[0]);
    const float *from = a->in[0];
    for (int i = 0; i < axes->count; i++) {
        const Shape s = shape_after(step, axes, i);
        float *to = i == axes->count - 1 ? a->out : (float *)a->scratch + (size_t)(i % 2) * axes->half;
        k_axis_forward(lane, axes->table[i], to, from, step->batch * graph_span(s, 0, axes->axis[i]),
                       graph_span(s, axes->axis[i] + 1, s.rank));
        from = to;
    }
}

static void axes_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    const Axes *axes = step->kernel;
    if (axes->count == 0)
        copy(step, lane, a->din[0], a->dout);
    const float *from = a->dout;
    for (int i = axes->count - 1; i >= 0; i--) {
        const Shape s = shape_after(step, axes, i);
        float *to = i == 0 ? a->din[0] : (float *)a->scratch + (size_t)(i % 2) * axes->half;
        k_axis_backward(lane, axes->table[i], to, from, step->batch * graph_span(s, 0, axes->axis[i]),
                        graph_span(s, axes->axis[i] + 1, s.rank));
        from = to;
    }
}

/* ---- Pad -------------------------------------------------------------------------------------------------------- */

static void pad_shape(Node *node, const Shape *in) {
    node->shape = in[0];
    for (int d = 0; d < in[0].rank; d++) {
        const int before = node->pad.before[d], after = node->pad.after[d], size = in[0].dim[d];
        const int most = node->pad.mode == PAD_REFLECT ? size - 1 : 1 << 20;
        if (before < 0 || after < 0 || before > most || after > most || size > 1 << 30)
            die("layer %s: padding of %d and %d on axis %d of %d was found, expected 0 to %d", node->name, before,
                after, d, size, most);
        node->shape.dim[d] = size + before + after;
    }
}

static void pad_prepare(Step *step) {
    const Node *n = step->node;
    plain_prepare(step);
    Axes *axes = step->kernel = axes_new();
    Arena *arena = arena_new();
    for (int d = 0; n->pad.mode != PAD_CONSTANT && d < step->in[0].rank; d++) {
        const int in = step->in[0].dim[d], out = n->shape.dim[d];
        if (in == out)
            continue;
        int *index = ARENA_ARRAY(arena, int, 2 * (int64_t)out, n->name);
        float *weight = ARENA_ARRAY(arena, float, 2 * (int64_t)out, n->name);
        for (int i = 0; i < out; i++) {
            int at = i - n->pad.before[d];
            if (n->pad.mode == PAD_REFLECT)
                at = at < 0 ? -at : at >= in ? 2 * (in - 1) - at : at;
            index[2 * i] = at < 0 ? 0 : at >= in ? in - 1 : at;
            index[2 * i + 1] = -1;
            weight[2 * i] = 1;
        }
        axes_add(axes, d, in, out, index, weight);
    }
    axes_scratch(step, axes);
    arena_free(arena);
}

static KMove pad_move(const Step *step, int64_t *at) {
    int64_t from[KDIMS + 1], to[KDIMS + 1];
    KMove move = box_of(step, step->in[0], from);
    box_of(step, step->node->shape, to);
    memcpy(move.from_step, from, sizeof from);
    memcpy(move.to_step, to, sizeof to);
    *at = 0;
    for (int d = 0; d < step->in[0].rank; d++)
        *at += to[d + 1] * step->node->pad.before[d];
    return move;
}

static void pad_forward(const Step *step, Lane *lane, const ForwardArgs *a) {
    if (step->node->pad.mode != PAD_CONSTANT) {
        axes_forward(step, lane, a);
        return;
    }
    int64_t at;
    const KMove move = pad_move(step, &at);
    k_fill(lane, a->out, step->node->pad.value, step->batch * shape_size(step->node->shape));
    k_move(lane, a->out + at, a->in[0], &move);
}

static void pad_backward(const Step *step, Lane *lane, const BackwardArgs *a) {
    if (step->node->pad.mode != PAD_CONSTANT) {
        axes_backward(step, lane, a);
        return;
    }
    int64_t at;
    const KMove back = turned(pad_move(step, &at));
    k_move(lane, a->din[0], a->dout + at, &back);
}

/* ---- Resize ----------------------------------------------------------------------------------------------------- */

static void resize_shape(Node *node, const Shape *in) {
    node->shape = in[0];
    for (int d = 0; d < in[0].rank; d++) {
        const double scale = node->resize.scale[d];
        if (!(scale >= 0 && scale < 1 << 20) || node->resize.size[d] < 1)
            die("layer %s: axis %d is resized to %d by %g, expected a size of 1 or more", node->name, d,
                node->resize.size[d], scale);
        node->shape.dim[d] = node->resize.size[d];
    }
}

/* Where result i lies on the axis as it was. */
static double coordinate(const Node *n, int i, int in, int out, double scale) {
    switch (n->resize.coordinates) {
    case RESIZE_HALF_PIXEL: return (i + 0.5) / scale - 0.5;
    case RESIZE_PYTORCH_HALF_PIXEL: return out > 1 ? (i + 0.5) / scale - 0.5 : 0;
    case RESIZE_ALIGN_CORNERS: return out > 1 ? (double)i * (in - 1) / (out - 1) : 0;
    case RESIZE_ASYMMETRIC: return i / scale;
    case RESIZE_TF_HALF_PIXEL: return (i + 0.5) / scale;
    }
    return 0;
}

static double nearest(ResizeNearest how, double x) {
    switch (how) {
    case NEAREST_ROUND_PREFER_FLOOR: return ceil(x - 0.5);
    case NEAREST_ROUND_PREFER_CEIL: return floor(x + 0.5);
    case NEAREST_FLOOR: return floor(x);
    case NEAREST_CEIL: return ceil(x);
    }
    return x;
}

static int clamped(double x, int size) {
    return x < 0 ? 0 : x > size - 1 ? size - 1 : (int)x;
}

static void resize_axis(Axes *axes, Arena *arena, const Node *n, int d, int in, int out) {
    const double scale = n->resize.scale[d] > 0 ? n->resize.scale[d] : (double)out / in;
    int *index = ARENA_ARRAY(arena, int, 2 * (int64_t)out, n->name);
    float *weight = ARENA_ARRAY(arena, float, 2 * (int64_t)out, n->name);
    for (int i = 0; i < out; i++) {
        const double x = coordinate(n, i, in, out, scale), low = floor(x);
        if (n->resize.mode == RESIZE_NEAREST) {
            index[2 * i] = clamped(nearest(n->resize.nearest, x), in);
            index[2 * i + 1] = -1;
            weight[2 * i] = 1;
        } else {
            index[2 * i] = clamped(low, in);
            index[2 * i + 1] = clamped(low + 1, in);
            weight[2 * i] = (float)(1 - (x - low));
            weight[2 * i + 1] = (float)(x - low);
        }
    }
    axes_add(axes, d, in, out, index, weight);
}

static void resize_prepare(Step *step) {
    plain_prepare(step);
    Axes *axes = step->kernel = axes_new();
    Arena *arena = arena_new();
    for (int d = 0; d < step->in[0].rank; d++)
        if (step->in[0].dim[d] != step->node->shape.dim[d])
            resize_axis(axes, arena, step->node, d, step->in[0].dim[d], step->node->shape.dim[d]);
    axes_scratch(step, axes);
    arena_free(arena);
}

/* ---- The table -------------------------------------------------------------------------------------------------- */

const Op graph_moves[OP_COUNT] = {
    [OP_CONCAT] = {"Concat", 1, INT_MAX, concat_shape, false, false, false, concat_prepare, NULL, concat_forward,
                   concat_backward},
    [OP_RESHAPE] = {"Reshape", 1, 1, reshape_shape, true, false, false, plain_prepare, NULL, reshape_forward,
                    reshape_backward},
    [OP_TRANSPOSE] = {"Transpose", 1, 1, transpose_shape, false, false, false, plain_prepare, NULL, transpose_forward,
                      transpose_backward},
    [OP_SLICE] = {"Slice", 1, 1, slice_shape, false, false, false, plain_prepare, NULL, slice_forward, slice_backward},
    [OP_PAD] = {"Pad", 1, 1, pad_shape, false, false, false, pad_prepare, axes_release, pad_forward, pad_backward},
    [OP_RESIZE] = {"Resize", 1, 1, resize_shape, false, false, false, resize_prepare, axes_release, axes_forward,
                   axes_backward},
};
