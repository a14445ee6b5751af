/* onnx_ops_shape.c: operations that move numbers about: reshapes, joins, cuts, borders, enlargement. */
#include <math.h>
#include <string.h>

#include "onnx_parts.h"

/* ---- Shapes known at load ---------------------------------------------------------------------------------------- */

void onnx_define_shape(Onnx *onnx, const Onnx__NodeProto *node, int rank, const int64_t *dim) {
    int64_t from = onnx_int(onnx, node, "start", 0), to = onnx_int(onnx, node, "end", rank);
    from = from < 0 ? from + rank : from;
    to = to < 0 ? to + rank : to > rank ? rank : to;
    from = from < 0 ? 0 : from;
    const int64_t count = to > from ? to - from : 0;
    OnnxConstant *made = onnx_constant_new(onnx, true, 1, &count);
    for (int64_t i = 0; i < count; i++)
        made->ints[i] = dim[from + i];
    onnx_define(onnx, node, made);
}

static void build_shape(Onnx *onnx, const Onnx__NodeProto *node) {
    const Shape shape = onnx_flow_shape(onnx, node, 0);
    int64_t dim[SHAPE_RANK + 1] = {ONNX_BATCH};
    for (int d = 0; d < shape.rank; d++)
        dim[d + 1] = shape.dim[d];
    onnx_define_shape(onnx, node, shape.rank + 1, dim);
}

/* ---- The same numbers in another shape --------------------------------------------------------------------------- */

static void reshape_to(Onnx *onnx, const Onnx__NodeProto *node, int input, int rank, const int64_t *dim) {
    Shape target = {.rank = rank};
    if (rank > SHAPE_RANK)
        onnx_refuse(onnx, node, "makes %d dimensions, expected %d at most, the batch among them", rank + 1,
                    SHAPE_RANK + 1);
    for (int d = 0; d < rank; d++) {
        if (dim[d] < 1 || dim[d] > INT_MAX)
            onnx_refuse(onnx, node, "makes a dimension of size %lld, expected 1 or more", (long long)dim[d]);
        target.dim[d] = (int)dim[d];
    }
    if (shape_size(target) != shape_size(onnx->graph->nodes[input].shape))
        onnx_refuse(onnx, node,
                    "makes %lld numbers a sample out of %lld: it mixes the batch with other dimensions, or "
                    "the images are not of the size it was exported for",
                    (long long)shape_size(target), (long long)shape_size(onnx->graph->nodes[input].shape));
    onnx_reshape(onnx, node, 0, input, target);
}

static void build_reshape(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape shape = onnx->graph->nodes[input].shape;
    int count, infer = NONE;
    const int64_t *target = onnx_known_ints(onnx, node, 1, &count);
    const bool zero_copies = !onnx_int(onnx, node, "allowzero", 0);
    int64_t dim[SHAPE_RANK + 1], rest = 1;
    if (!target || count < 1 || count > SHAPE_RANK + 1)
        onnx_refuse(onnx, node, "makes %d dimensions, expected 1 to %d, the batch first", count, SHAPE_RANK + 1);
    for (int d = 1; d < count; d++) {
        dim[d] = target[d] == 0 && zero_copies && d <= shape.rank ? shape.dim[d - 1] : target[d];
        if (dim[d] == -1 && infer == NONE)
            infer = d;
        else if (dim[d] == ONNX_BATCH)
            onnx_refuse(onnx, node, "moves the batch behind other dimensions, expected it first");
        else if (dim[d] < 1 || __builtin_mul_overflow(rest, dim[d], &rest))
            onnx_refuse(onnx, node, "makes a dimension of size %lld, expected 1 or more", (long long)dim[d]);
    }
    if (infer != NONE)
        dim[infer] = shape_size(shape) / rest;
    if (count == 1 && target[0] == -1 && shape_size(shape) > 1 && input > 0) { /* for build_restored */
        const int value = onnx_value_find(onnx, node->output[0]);
        onnx->values[value].flat = input;
        return;
    }
    const int64_t first = target[0];
    const bool keeps = first == ONNX_BATCH || (first == 0 && zero_copies) || (first == -1 && infer == NONE) ||
                       (first > 0 && (first == onnx->batch || (first == 1 && onnx->batch == ONNX_BATCH)));
    if (!keeps)
        onnx_refuse(onnx, node,
                    "makes the batch part of another dimension (its first one becomes %lld), expected 0, -1 "
                    "or the batch there",
                    (long long)first);
    reshape_to(onnx, node, input, count - 1, dim + 1);
}

static void build_flatten(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape shape = onnx->graph->nodes[input].shape;
    int64_t axis = onnx_int(onnx, node, "axis", 1), size = shape_size(shape);
    axis = axis < 0 ? axis + shape.rank + 1 : axis;
    for (int d = 0; d + 1 < axis && d < shape.rank; d++)
        if (shape.dim[d] != 1)
            axis = 0;
    if (axis < 1)
        onnx_refuse(onnx, node, "makes the batch part of another dimension, expected axis 1");
    reshape_to(onnx, node, input, 1, &size);
}

static void build_squeeze(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape shape = onnx->graph->nodes[input].shape;
    int count, rank = 0;
    const int64_t *axes = onnx_list_or_input(onnx, node, "axes", 1, &count);
    bool gone[SHAPE_RANK] = {0};
    int64_t dim[SHAPE_RANK];
    for (int i = 0; i < count; i++) {
        const int axis = onnx_sample_axis(onnx, node, axes[i], shape.rank);
        gone[axis] = true;
        if (shape.dim[axis] != 1)
            onnx_refuse(onnx, node, "takes off axis %lld of size %d, expected size 1", (long long)axes[i],
                        shape.dim[axis]);
    }
    for (int d = 0; d < shape.rank; d++)
        if (axes ? !gone[d] : shape.dim[d] != 1)
            dim[rank++] = shape.dim[d];
    reshape_to(onnx, node, input, rank, dim);
}

static void build_unsqueeze(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape shape = onnx->graph->nodes[input].shape;
    int count, from = 0;
    const int64_t *axes = onnx_list_or_input(onnx, node, "axes", 1, &count);
    const int rank = shape.rank + count;
    bool added[SHAPE_RANK] = {0};
    int64_t dim[SHAPE_RANK];
    if (rank > SHAPE_RANK)
        onnx_refuse(onnx, node, "makes %d dimensions, expected %d at most, the batch among them", rank + 1,
                    SHAPE_RANK + 1);
    for (int i = 0; i < count; i++)
        added[onnx_sample_axis(onnx, node, axes[i], rank)] = true;
    for (int d = 0; d < rank; d++)
        dim[d] = added[d] || from == shape.rank ? 1 : shape.dim[from++];
    reshape_to(onnx, node, input, rank, dim);
}

static void build_transpose(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape shape = onnx->graph->nodes[input].shape;
    int count;
    const int64_t *perm = onnx_list(node, "perm", &count);
    Node made = {.op = OP_TRANSPOSE};
    bool seen[SHAPE_RANK] = {0}, moves = false;
    if (!perm || count != shape.rank + 1 || perm[0] != 0)
        onnx_refuse(onnx, node, "moves the batch from the first place, expected it there, and %d dimensions",
                    shape.rank + 1);
    for (int d = 0; d < shape.rank; d++) {
        made.perm[d] = onnx_sample_axis(onnx, node, perm[d + 1], shape.rank);
        if (seen[made.perm[d]])
            onnx_refuse(onnx, node, "takes a dimension twice: the file is damaged");
        seen[made.perm[d]] = true;
        moves = moves || made.perm[d] != d;
    }
    if (!moves) {
        onnx_alias(onnx, node, 0, input);
        return;
    }
    made.name = onnx_layer_name(onnx, node, NULL, "");
    onnx_emit(onnx, node, 0, made, 1, &input);
}

/* ---- Joining and cutting ----------------------------------------------------------------------------------------- */

static void build_concat(Onnx *onnx, const Onnx__NodeProto *node) {
    const int count = (int)node->n_input;
    int *inputs = ARENA_ARRAY(onnx->arena, int, count + 1, onnx->path);
    for (int i = 0; i < count; i++)
        inputs[i] = onnx_flow(onnx, node, i);
    if (count == 0)
        onnx_refuse(onnx, node, "joins nothing, expected inputs: the file is damaged");
    Node made = {.op = OP_CONCAT, .name = onnx_layer_name(onnx, node, NULL, "")};
    made.along.axis =
        onnx_sample_axis(onnx, node, onnx_int(onnx, node, "axis", 1), onnx_flow_shape(onnx, node, 0).rank);
    onnx_emit(onnx, node, 0, made, count, inputs);
}

static Node whole_slice(Shape shape) {
    Node made = {.op = OP_SLICE};
    for (int d = 0; d < shape.rank; d++) {
        made.slice.step[d] = 1;
        made.slice.count[d] = shape.dim[d];
    }
    return made;
}

static void build_split(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0), outputs = (int)node->n_output;
    const Shape shape = onnx->graph->nodes[input].shape;
    const int axis = onnx_sample_axis(onnx, node, onnx_int(onnx, node, "axis", 0), shape.rank);
    int count;
    const int64_t *sizes = onnx_list_or_input(onnx, node, "split", 1, &count), size = shape.dim[axis];
    const int64_t even = outputs ? (size + outputs - 1) / outputs : 0;
    int64_t start = 0;
    for (int i = 0; i < outputs; i++) {
        const int64_t rest = size - start, length = sizes ? (i < count ? sizes[i] : -1) : even < rest ? even : rest;
        if (length < 1 || length > rest)
            onnx_refuse(onnx, node, "splits axis of %lld into %d parts that do not fit it", (long long)size, outputs);
        const int value = onnx_value_find(onnx, node->output[i]);
        if (value != NONE && onnx->values[value].uses) {
            Node made = whole_slice(shape);
            made.name = onnx_layer_name(onnx, node, NULL, arena_printf(onnx->arena, "%d", i));
            made.slice.start[axis] = (int)start;
            made.slice.count[axis] = (int)length;
            onnx_emit(onnx, node, i, made, 1, &input);
        }
        start += length;
    }
    if (start != size)
        onnx_refuse(onnx, node, "splits %lld of the %lld numbers of its axis, expected all", (long long)start,
                    (long long)size);
}

void onnx_slice_range(int64_t *first, int64_t *count, int64_t size, int64_t start, int64_t end, int64_t step) {
    start = start < 0 ? (start < -size ? -1 : start + size) : start;
    end = end < 0 ? (end < -size ? -1 : end + size) : end;
    const int64_t least = step > 0 ? 0 : -1, most = step > 0 ? size : size - 1;
    start = start < 0 ? 0 : start > most ? most : start;
    end = end < least ? least : end > most ? most : end;
    if (step > 0)
        *count = end > start ? (end - start - 1) / step + 1 : 0;
    else
        *count = start > end ? (start - end - 1) / (step == INT64_MIN ? INT64_MAX : -step) + 1 : 0;
    *first = start;
}

static void build_slice(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape shape = onnx->graph->nodes[input].shape;
    int counts[4], steps = 0;
    const int64_t *start = onnx_list_or_input(onnx, node, "starts", 1, &counts[0]);
    const int64_t *end = onnx_list_or_input(onnx, node, "ends", 2, &counts[1]);
    const int64_t *axes = onnx_list_or_input(onnx, node, "axes", 3, &counts[2]);
    const int64_t *step = onnx_has(node, 4) ? onnx_known_ints(onnx, node, 4, &steps) : NULL;
    if (counts[0] != counts[1] || (axes && counts[2] != counts[0]) || (step && steps != counts[0]))
        onnx_refuse(onnx, node, "has lists of unlike lengths, expected one entry for each axis: the file is damaged");
    Node made = whole_slice(shape);
    for (int i = 0; i < counts[0]; i++) {
        const int axis = onnx_axis(onnx, node, axes ? axes[i] : i, shape.rank + 1) - 1;
        const int64_t by = step ? step[i] : 1;
        int64_t first, count;
        if (axis < 0) {
            if (start[i] != 0 || by != 1 || (end[i] < 1 << 30 && end[i] != onnx->batch && end[i] != ONNX_BATCH))
                onnx_refuse(onnx, node, "cuts the batch, expected each image to be taken by itself");
            continue;
        }
        if (by == 0 || by > INT_MAX || by < -INT_MAX || start[i] == ONNX_BATCH || end[i] == ONNX_BATCH)
            onnx_refuse(onnx, node, "has a step of %lld, or an end that is the batch, expected other numbers",
                        (long long)by);
        onnx_slice_range(&first, &count, shape.dim[axis], start[i], end[i], by);
        if (count < 1)
            onnx_refuse(onnx, node, "leaves nothing of axis %d", axis + 1);
        made.slice.start[axis] = (int)first;
        made.slice.step[axis] = (int)by;
        made.slice.count[axis] = (int)count;
    }
    made.name = onnx_layer_name(onnx, node, NULL, "");
    onnx_emit(onnx, node, 0, made, 1, &input);
}

/* PyTorch's newer exporter writes the mean over the pixels of a permuted value so: all images' values as one vector, of
 * which the places 0, 1, ... of image i plus i times the size of an image are taken. That is a reshape. */
static void build_restored(Onnx *onnx, const Onnx__NodeProto *node, int input) {
    const int64_t size = shape_size(onnx->graph->nodes[input].shape);
    OnnxConstant *index = onnx_known(onnx, node, 1);
    const int64_t *places = index ? onnx_ints(onnx, index) : NULL;
    const bool counted = index && index->per_sample == size && index->size == size;
    const bool listed = index && onnx->batch != ONNX_BATCH && index->size == size * onnx->batch;
    bool fits = places && index->rank >= 1 && (counted || listed) && onnx_int(onnx, node, "axis", 0) == 0;
    fits = fits && index->dim[0] == (counted ? 1 : onnx->batch);
    for (int64_t i = 0; fits && i < index->size; i++)
        fits = places[i] == i;
    if (!fits)
        onnx_refuse(onnx, node, "picks places across the batch, expected each image to be taken by itself");
    reshape_to(onnx, node, input, index->rank - 1, index->dim + 1);
}

/* One index along one axis of a value: a slice, without its axis. */
static void build_gather(Onnx *onnx, const Onnx__NodeProto *node) {
    const OnnxValue *from = onnx_input(onnx, node, 0);
    if (from->flat) {
        build_restored(onnx, node, from->flat);
        return;
    }
    const int input = onnx_flow(onnx, node, 0);
    const Shape shape = onnx->graph->nodes[input].shape;
    OnnxConstant *index = onnx_known(onnx, node, 1);
    const int axis = onnx_sample_axis(onnx, node, onnx_int(onnx, node, "axis", 0), shape.rank);
    if (!index || index->size != 1 || index->per_sample)
        onnx_refuse(onnx, node, "picks %lld places, expected one: cnnscope has no such operation",
                    index ? (long long)index->size : 0);
    int64_t at = onnx_ints(onnx, index)[0], dim[SHAPE_RANK + ONNX_RANK];
    at = at < 0 && at != ONNX_BATCH ? at + shape.dim[axis] : at;
    if (at < 0 || at >= shape.dim[axis])
        onnx_refuse(onnx, node, "picks place %lld of %d: the file is damaged", (long long)at, shape.dim[axis]);
    Node made = whole_slice(shape);
    made.name = onnx_layer_name(onnx, node, NULL, "part");
    made.slice.start[axis] = (int)at;
    made.slice.count[axis] = 1;
    const int part = onnx_emit(onnx, node, NONE, made, 1, &input);
    int rank = 0;
    for (int d = 0; d < shape.rank; d++)
        if (d != axis)
            dim[rank++] = shape.dim[d];
        else
            for (int i = 0; i < index->rank; i++)
                dim[rank++] = 1;
    reshape_to(onnx, node, part, rank, dim);
}

/* ---- Borders and size -------------------------------------------------------------------------------------------- */

static void build_pad(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape shape = onnx->graph->nodes[input].shape;
    int count, axis_count = shape.rank + 1;
    const int64_t *pads = onnx_list_or_input(onnx, node, "pads", 1, &count);
    const int64_t *axes = onnx_has(node, 3) ? onnx_known_ints(onnx, node, 3, &axis_count) : NULL;
    const char *mode = onnx_text(onnx, node, "mode", "constant");
    Node made = {.op = OP_PAD};
    made.pad.mode = !strcmp(mode, "reflect") ? PAD_REFLECT : !strcmp(mode, "edge") ? PAD_EDGE : PAD_CONSTANT;
    if (made.pad.mode == PAD_CONSTANT && strcmp(mode, "constant") != 0)
        onnx_refuse(onnx, node, "pads by the mode %s, expected constant, reflect or edge", mode);
    made.pad.value = onnx_known_float(onnx, node, 2, onnx_float(onnx, node, "value", 0));
    if (!pads || count != 2 * axis_count)
        onnx_refuse(onnx, node, "has %d pads, expected %d: the file is damaged", count, 2 * axis_count);
    for (int i = 0; i < axis_count; i++) {
        const int axis = onnx_axis(onnx, node, axes ? axes[i] : i, shape.rank + 1) - 1;
        const int64_t before = pads[i], after = pads[i + axis_count];
        if (axis < 0 && (before || after))
            onnx_refuse(onnx, node, "pads the batch, expected each image to be taken by itself");
        if (before < 0 || after < 0 || before > 1 << 20 || after > 1 << 20)
            onnx_refuse(onnx, node, "pads by %lld and %lld, expected 0 to %d", (long long)before, (long long)after,
                        1 << 20);
        if (axis >= 0) {
            made.pad.before[axis] = (int)before;
            made.pad.after[axis] = (int)after;
        }
    }
    made.name = onnx_layer_name(onnx, node, NULL, "");
    onnx_emit(onnx, node, 0, made, 1, &input);
}

static void resize_modes(Onnx *onnx, const Onnx__NodeProto *node, Node *made) {
    const char *mode = onnx_text(onnx, node, "mode", "nearest");
    const char *place =
        onnx_text(onnx, node, "coordinate_transformation_mode", onnx->opset < 11 ? "asymmetric" : "half_pixel");
    const char *nearest = onnx_text(onnx, node, "nearest_mode", onnx->opset < 11 ? "floor" : "round_prefer_floor");
    static const char *const places[] = {"half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric",
                                         "tf_half_pixel_for_nn"};
    static const char *const nearests[] = {"round_prefer_floor", "round_prefer_ceil", "floor", "ceil"};
    int p = 0, n = 0;
    while (p < 5 && strcmp(place, places[p]) != 0)
        p++;
    while (n < 4 && strcmp(nearest, nearests[n]) != 0)
        n++;
    if (strcmp(mode, "nearest") != 0 && strcmp(mode, "linear") != 0 && strcmp(mode, "bilinear") != 0)
        onnx_refuse(onnx, node, "enlarges by the mode %s, expected nearest or linear", mode);
    if (p == 5 || n == 4 || onnx_int(onnx, node, "antialias", 0) || onnx_int(onnx, node, "exclude_outside", 0) ||
        !onnx_text_is(node, "keep_aspect_ratio_policy", "stretch", true))
        onnx_refuse(onnx, node,
                    "enlarges by %s, %s, or another choice that cnnscope has not, expected half_pixel, "
                    "pytorch_half_pixel, align_corners or asymmetric, without antialias",
                    place, nearest);
    made->resize.mode = mode[0] == 'n' ? RESIZE_NEAREST : RESIZE_LINEAR;
    made->resize.coordinates = (ResizeCoordinates[]){RESIZE_HALF_PIXEL, RESIZE_PYTORCH_HALF_PIXEL, RESIZE_ALIGN_CORNERS,
                                                     RESIZE_ASYMMETRIC, RESIZE_TF_HALF_PIXEL}[p];
    made->resize.nearest =
        (ResizeNearest[]){NEAREST_ROUND_PREFER_FLOOR, NEAREST_ROUND_PREFER_CEIL, NEAREST_FLOOR, NEAREST_CEIL}[n];
}

/* Resize, and its older form Upsample. */
static void build_resize(Onnx *onnx, const Onnx__NodeProto *node) {
    const int input = onnx_flow(onnx, node, 0);
    const Shape shape = onnx->graph->nodes[input].shape;
    const bool early = onnx->opset < 11;
    const int scales_at = early ? 1 : 2;
    Node made = {.op = OP_RESIZE};
    resize_modes(onnx, node, &made);
    int axis_count, size_count = 0;
    const int64_t *axes = onnx_list(node, "axes", &axis_count);
    const Onnx__AttributeProto *attribute = onnx_attribute(node, "scales"); /* Upsample-7 */
    OnnxConstant *scales = onnx_known(onnx, node, scales_at);
    const float *scale = scales && scales->size ? onnx_floats(onnx, scales) : attribute ? attribute->floats : NULL;
    const int64_t scale_count = scales && scales->size ? scales->size : attribute ? (int64_t)attribute->n_floats : 0;
    const int64_t *size = !early && !scale ? onnx_known_ints(onnx, node, 3, &size_count) : NULL;
    axis_count = axes ? axis_count : shape.rank + 1;
    if ((!scale && !size) || (scale ? scale_count : size_count) != axis_count)
        onnx_refuse(onnx, node, "has %lld scales or sizes, expected %d", (long long)(scale ? scale_count : size_count),
                    axis_count);
    for (int d = 0; d < shape.rank; d++) {
        made.resize.size[d] = shape.dim[d];
        made.resize.scale[d] = 1;
    }
    for (int i = 0; i < axis_count; i++) {
        const int axis = onnx_axis(onnx, node, axes ? axes[i] : i, shape.rank + 1) - 1;
        if (axis < 0) {
            if (scale ? scale[i] != 1 : size[i] != ONNX_BATCH && size[i] != onnx->batch && size[i] != 1)
                onnx_refuse(onnx, node, "changes the size of the batch, expected it to stay");
            continue;
        }
        const double wanted = scale ? floor((double)shape.dim[axis] * (double)scale[i]) : (double)size[i];
        if (!(wanted >= 1 && wanted <= 1 << 20))
            onnx_refuse(onnx, node, "makes axis %d %g long, expected 1 to %d", axis + 1, wanted, 1 << 20);
        made.resize.size[axis] = (int)wanted;
        made.resize.scale[axis] = scale ? (double)scale[i] : 0;
    }
    made.name = onnx_layer_name(onnx, node, NULL, "");
    onnx_emit(onnx, node, 0, made, 1, &input);
}

const OnnxOp *onnx_op_shape(const char *name) {
    static const OnnxOp table[] = {{"Shape", build_shape},
                                   {"Reshape", build_reshape},
                                   {"Flatten", build_flatten},
                                   {"Squeeze", build_squeeze},
                                   {"Unsqueeze", build_unsqueeze},
                                   {"Transpose", build_transpose},
                                   {"Concat", build_concat},
                                   {"Split", build_split},
                                   {"Slice", build_slice},
                                   {"Gather", build_gather},
                                   {"Pad", build_pad},
                                   {"Resize", build_resize},
                                   {"Upsample", build_resize}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, name))
            return &table[i];
    return NULL;
}
