/* onnx_ways.c: see onnx_ways.h. A batch is put in front by rewriting axes, lists of sizes and permutations as of one
 * dimension more. */
#include "onnx_ways.h"

#include <string.h>
#include <sys/stat.h>

#include "dataset.h"

bool one_of(const char *op, const char *const *list) {
    while (*list && strcmp(*list, op) != 0)
        list++;
    return *list != NULL;
}

Onnx__TensorProto *read_tensor(const Case *c, const char *what, int i) {
    const char *path = arena_printf(c->arena, "%s/test_data_set_0/%s_%d.pb", c->folder, what, i);
    size_t size;
    struct stat info;
    if (stat(path, &info) || !S_ISREG(info.st_mode))
        return NULL;
    const void *bytes = dataset_file_bytes(c->arena, path, &size);
    return onnx__tensor_proto__unpack(NULL, size, bytes);
}

/* ---- Changing a model -------------------------------------------------------------------------------------------- */

static void *appended(Arena *arena, const void *array, size_t *count, void *item) {
    void **longer = ARENA_ARRAY(arena, void *, (int64_t)*count + 1, "list");
    if (array)
        memcpy(longer, array, *count * sizeof *longer);
    longer[(*count)++] = item;
    return longer;
}

static char *text(Arena *arena, const char *string) {
    char *copy = ARENA_ARRAY(arena, char, (int64_t)strlen(string) + 1, "text");
    return strcpy(copy, string);
}

static const char *new_tensor(Arena *arena, Onnx__GraphProto *graph, const char *name, Onnx__TensorProto *tensor) {
    tensor->name = text(arena, name);
    graph->initializer = appended(arena, graph->initializer, &graph->n_initializer, tensor);
    return tensor->name;
}

static const char *new_list(Arena *arena, Onnx__GraphProto *graph, const char *name, int count, const int64_t *list) {
    Onnx__TensorProto *t = ARENA_ARRAY(arena, Onnx__TensorProto, 1, "tensor");
    onnx__tensor_proto__init(t);
    t->has_data_type = true;
    t->data_type = INT64;
    t->n_dims = 1;
    t->dims = ARENA_ARRAY(arena, int64_t, 1, "dims");
    t->dims[0] = count;
    t->n_int64_data = (size_t)count;
    t->int64_data = ARENA_ARRAY(arena, int64_t, count + 1, "list");
    memcpy(t->int64_data, list, (size_t)count * sizeof *list);
    return new_tensor(arena, graph, name, t);
}

static Onnx__AttributeProto *set_attribute(Arena *arena, Onnx__NodeProto *node, const char *name) {
    Onnx__AttributeProto *a = (Onnx__AttributeProto *)onnx_attribute(node, name);
    if (a)
        return a;
    a = ARENA_ARRAY(arena, Onnx__AttributeProto, 1, "attribute");
    onnx__attribute_proto__init(a);
    a->name = text(arena, name);
    node->attribute = appended(arena, node->attribute, &node->n_attribute, a);
    return a;
}

static void set_int(Arena *arena, Onnx__NodeProto *node, const char *name, int64_t value) {
    Onnx__AttributeProto *a = set_attribute(arena, node, name);
    a->has_i = true;
    a->i = value;
}

static void set_list(Arena *arena, Onnx__NodeProto *node, const char *name, int count, const int64_t *list) {
    Onnx__AttributeProto *a = set_attribute(arena, node, name);
    a->n_ints = (size_t)count;
    a->ints = ARENA_ARRAY(arena, int64_t, count + 1, "list");
    memcpy(a->ints, list, (size_t)count * sizeof *list);
}

static void set_input(Arena *arena, Onnx__NodeProto *node, int input, const char *name) {
    while (node->n_input <= (size_t)input)
        node->input = appended(arena, node->input, &node->n_input, text(arena, ""));
    node->input[input] = text(arena, name);
}

static Onnx__NodeProto *new_node(Arena *arena, const char *op, const char *input, const char *output) {
    Onnx__NodeProto *node = ARENA_ARRAY(arena, Onnx__NodeProto, 1, "node");
    onnx__node_proto__init(node);
    node->op_type = text(arena, op);
    set_input(arena, node, 0, input);
    node->output = appended(arena, node->output, &node->n_output, text(arena, output));
    return node;
}

/* What opset 6 and before said otherwise. Broadcasting of an operand along the last axes is what 7 does by itself. */
const char *old_form(const Onnx__NodeProto *node) {
    if (onnx_attribute(node, "broadcast") && onnx_attribute(node, "axis"))
        return "opset 6: broadcast from an axis";
    if (!strcmp(node->op_type, "BatchNormalization") && !onnx_attribute(node, "is_test"))
        return "opset 6: BatchNormalization in training";
    if (onnx_attribute(node, "paddings") || onnx_attribute(node, "consumed_inputs"))
        return "opset 1: the form of its attributes";
    return NULL;
}

/* Opset 6 has one slope for each channel (dimension 1), 7 broadcasts from the last dimension. */
static void raise_slopes(const Case *c, Onnx__GraphProto *graph) {
    for (size_t i = 0; i < graph->n_initializer && !strcmp(graph->node[0]->op_type, "PRelu"); i++) {
        Onnx__TensorProto *slope = graph->initializer[i];
        if (strcmp(slope->name, graph->node[0]->input[1]) != 0 || slope->n_dims != 1 || slope->dims[0] == 1)
            continue;
        int64_t *dims = ARENA_ARRAY(c->arena, int64_t, c->value[0]->rank, "dims");
        dims[0] = slope->dims[0];
        slope->n_dims = (size_t)c->value[0]->rank - 1;
        for (size_t d = 1; d < slope->n_dims; d++)
            dims[d] = 1;
        slope->dims = dims;
    }
}

static void raise_opset(const Case *c, Onnx__ModelProto *model) {
    for (size_t i = 0; i < model->n_opset_import; i++)
        if (model->opset_import[i]->version < FILE_OPSET)
            model->opset_import[i]->version = FILE_OPSET;
        else
            return;
    for (size_t i = 0; i < model->graph->n_node; i++) {
        Onnx__NodeProto *node = model->graph->node[i];
        size_t kept = 0;
        for (size_t k = 0; k < node->n_attribute; k++)
            if (strcmp(node->attribute[k]->name, "is_test") != 0 && strcmp(node->attribute[k]->name, "broadcast") != 0)
                node->attribute[kept++] = node->attribute[k];
        node->n_attribute = kept;
    }
    raise_slopes(c, model->graph);
}

/* ---- A batch put in front ---------------------------------------------------------------------------------------- */

static bool elementwise_node(const Onnx__NodeProto *node) {
    static const char *const ops[] = {
        "Add",      "Sub",        "Mul",       "Div",         "Pow",         "PRelu",
        "Sum",      "Relu",       "Sigmoid",   "Tanh",        "Erf",         "Softplus",
        "Sqrt",     "Exp",        "Log",       "Neg",         "Abs",         "Elu",
        "Selu",     "Reciprocal", "HardSwish", "LeakyRelu",   "Gelu",        "Clip",
        "Constant", "Less",       "Equal",     "HardSigmoid", "Greater",     "GreaterOrEqual",
        "Identity", "Dropout",    "Cast",      "Where",       "LessOrEqual", NULL};
    return one_of(node->op_type, ops);
}

static bool number_by_number(const Onnx__GraphProto *graph) {
    for (size_t i = 0; i < graph->n_node; i++)
        if (!elementwise_node(graph->node[i]))
            return false;
    return true;
}

/* A list of whole numbers of a case's input that stands at a node's place; NULL when there is none. */
static const int64_t *list_at(const Case *c, const Onnx__NodeProto *node, int place, int *count) {
    for (int i = 0; onnx_has(node, place) && i < c->count; i++)
        if (!strcmp(c->input[i], node->input[place]) && c->value[i] && c->value[i]->whole && c->value[i]->rank == 1) {
            *count = (int)c->value[i]->size;
            return c->value[i]->ints;
        }
    return NULL;
}

/* A list given as attribute or input, replaced. add: to each; front: is put before entry `at`, and again before entry
 * `again` (-1: not). */
typedef struct {
    int64_t add, front;
    int at, again;
} Change;

static bool change_list(const Case *c, Onnx__GraphProto *graph, Onnx__NodeProto *node, const char *name, int place,
                        Change change) {
    int count = 0, made = 0;
    int64_t list[64];
    const int64_t *old = place >= 0 ? list_at(c, node, place, &count) : NULL;
    const bool input = old != NULL;
    old = old ? old : onnx_list(node, name, &count);
    if (!old || count > 30)
        return false;
    for (int i = 0; i < count; i++) {
        if (i == change.at || i == change.again)
            list[made++] = change.front;
        list[made++] = old[i] < 0 && change.add ? old[i] : old[i] + change.add; /* negative axes count from the end */
    }
    if (input)
        set_input(c->arena, node, place, new_list(c->arena, graph, arena_printf(c->arena, "new_%s", name), made, list));
    else
        set_list(c->arena, node, name, made, list);
    return true;
}

static bool batched_slice(const Case *c, Onnx__GraphProto *graph, Onnx__NodeProto *node) {
    int64_t axes[8];
    int count = 0;
    if (change_list(c, graph, node, "axes", 3, (Change){1, 0, -1, -1}))
        return true;
    if (!list_at(c, node, 1, &count) && !onnx_list(node, "starts", &count))
        return false;
    for (int i = 0; i < count && i < 8; i++)
        axes[i] = i + 1;
    if (c->opset < 10)
        set_list(c->arena, node, "axes", count, axes);
    else
        set_input(c->arena, node, 3, new_list(c->arena, graph, "new_axes", count, axes));
    return true;
}

static bool batched_transpose(const Case *c, Onnx__NodeProto *node, int rank) {
    int count;
    const int64_t *perm = onnx_list(node, "perm", &count);
    int64_t made[16] = {0};
    for (int d = 0; d < rank; d++)
        made[d + 1] = perm ? perm[d] + 1 : rank - d;
    set_list(c->arena, node, "perm", rank + 1, made);
    return true;
}

static bool batched_mean(const Case *c, Onnx__GraphProto *graph, Onnx__NodeProto *node, int rank) {
    int64_t axes[16];
    if (change_list(c, graph, node, "axes", 1, (Change){1, 0, -1, -1}))
        return true;
    for (int d = 0; d < rank; d++)
        axes[d] = d + 1;
    if (c->opset < 18)
        set_list(c->arena, node, "axes", rank, axes);
    else
        set_input(c->arena, node, 1, new_list(c->arena, graph, "new_axes", rank, axes));
    return true;
}

static bool batched_scales(const Case *c, Onnx__GraphProto *graph, Onnx__NodeProto *node, int place) {
    for (int i = 0; onnx_has(node, place) && i < c->count; i++)
        if (!strcmp(c->input[i], node->input[place]) && c->value[i]->size > 0 && !c->value[i]->whole) {
            Onnx__TensorProto *t = read_tensor(c, "input", i);
            const int64_t count = c->value[i]->size;
            t->raw_data.len = 0;
            t->has_raw_data = false;
            t->dims[0] = count + 1;
            t->n_float_data = (size_t)count + 1;
            t->float_data = ARENA_ARRAY(c->arena, float, count + 1, "scales");
            t->float_data[0] = 1;
            memcpy(t->float_data + 1, c->value[i]->floats, (size_t)count * sizeof(float));
            set_input(c->arena, node, place, new_tensor(c->arena, graph, "new_scales", t));
        }
    return true;
}

/* The same operation on values of one dimension more, the batch in front; rank: of input 0 before. False: there is no
 * such operation. */
static bool batched(const Case *c, Onnx__GraphProto *graph, Onnx__NodeProto *node, int rank) {
    static const char *const by_axis[] = {"Softmax", "LogSoftmax",         "Concat", "Split",
                                          "Gather",  "LayerNormalization", NULL};
    const char *op = node->op_type;
    if (one_of(op, by_axis)) {
        const bool last = (op[0] != 'C' && op[0] != 'S' && op[0] != 'G' && c->opset >= 13) ||
                          !strcmp(op, "LayerNormalization") || (!strcmp(op, "Softmax") && c->opset >= 13);
        const bool softmax = strstr(op, "oftmax") != NULL;
        const Onnx__AttributeProto *axis = onnx_attribute(node, "axis");
        const int64_t at = axis ? axis->i : last ? -1 : softmax ? 1 : 0;
        set_int(c->arena, node, "axis", at < 0 ? at : at + 1);
        return true;
    }
    if (!strcmp(op, "MatMul"))
        return rank >= 2;
    if (!strcmp(op, "Unsqueeze"))
        return change_list(c, graph, node, "axes", 1, (Change){1, 0, -1, -1});
    if (!strcmp(op, "Squeeze"))
        return change_list(c, graph, node, "axes", 1, (Change){1, 0, -1, -1}) || node->n_input == 1;
    if (!strcmp(op, "ReduceMean"))
        return batched_mean(c, graph, node, rank);
    if (!strcmp(op, "Slice"))
        return batched_slice(c, graph, node);
    if (!strcmp(op, "Transpose"))
        return batched_transpose(c, node, rank);
    if (!strcmp(op, "Reshape")) {
        const Onnx__AttributeProto *zero = onnx_attribute(node, "allowzero");
        return change_list(c, graph, node, "shape", 1, (Change){0, zero && zero->i ? 1 : 0, 0, -1});
    }
    if (!strcmp(op, "Pad"))
        return !onnx_has(node, 3) ? change_list(c, graph, node, "pads", 1, (Change){0, 0, 0, rank})
                                  : change_list(c, graph, node, "axes", 3, (Change){1, 0, -1, -1});
    if (!strcmp(op, "Resize")) {
        if (onnx_attribute(node, "axes"))
            return change_list(c, graph, node, "axes", -1, (Change){1, 0, -1, -1});
        return onnx_has(node, 3) ? change_list(c, graph, node, "sizes", 3, (Change){0, 1, 0, -1})
                                 : batched_scales(c, graph, node, c->opset < 11 ? 1 : 2);
    }
    return false;
}

/* Of a node among others, whose rank is not known here. */
static bool batched_alone(const Case *c, Onnx__NodeProto *node) {
    return elementwise_node(node) ||
           (!strcmp(node->op_type, "ReduceMean") && change_list(c, NULL, node, "axes", -1, (Change){1, 0, -1, -1}));
}

/* ---- The ways ---------------------------------------------------------------------------------------------------- */

static Onnx__ModelProto *copy_model(const Case *c) {
    Onnx__ModelProto *model = onnx__model_proto__unpack(NULL, c->size, c->bytes);
    raise_opset(c, model);
    return model;
}

/* Inputs in `mask` stay (without declared shapes), the others get their numbers. */
static void give_numbers(const Case *c, Onnx__GraphProto *graph, unsigned mask) {
    for (int i = 0; i < c->count; i++)
        if (!(mask >> i & 1) && c->tensor[i])
            new_tensor(c->arena, graph, c->input[i], c->tensor[i]);
}

static Onnx__ValueInfoProto *new_input(const Case *c, const char *name) {
    Onnx__ValueInfoProto *info = ARENA_ARRAY(c->arena, Onnx__ValueInfoProto, 1, "input");
    onnx__value_info_proto__init(info);
    info->name = text(c->arena, name);
    return info;
}

bool as_batch(const Case *c, Way *way) {
    const OnnxConstant *image = c->count ? c->value[0] : NULL;
    if (!image || image->rank < 1 || image->rank > SHAPE_RANK + 1 || image->size == 0)
        return false;
    way->model = copy_model(c);
    give_numbers(c, way->model->graph, 1);
    way->image.rank = image->rank - 1;
    for (int d = 1; d < image->rank; d++)
        way->image.dim[d - 1] = (int)image->dim[d];
    way->batch = (int)image->dim[0];
    way->pixels = image->floats;
    return true;
}

bool is_flow(const Case *c, int i) {
    const int type = c->tensor[i] ? c->tensor[i]->data_type : 0;
    return c->value[i] && c->value[i]->size > 0 &&
           (type == FLOAT || type == BOOL || i == 0 || number_by_number(c->graph));
}

bool as_image(const Case *c, Way *way, unsigned mask) {
    Onnx__ModelProto *model = way->model = copy_model(c);
    Onnx__GraphProto *graph = model->graph;
    const bool elementwise = number_by_number(graph);
    int64_t total = 0, at = 0;
    int most = 0;
    for (int i = 0; i < c->count; i++) {
        total += mask >> i & 1 ? c->value[i]->size : 0;
        most = c->value[i] && c->value[i]->rank > most ? c->value[i]->rank : most;
    }
    const bool product = graph->n_node == 1 && !strcmp(graph->node[0]->op_type, "MatMul");
    if (most > SHAPE_RANK || !(elementwise || product || mask & 1))
        return false;
    for (size_t i = 0; i < graph->n_node && !elementwise; i++)
        if (graph->n_node == 1 ? !batched(c, graph, graph->node[i], c->value[0]->rank)
                               : !batched_alone(c, graph->node[i]))
            return false;
    Onnx__NodeProto **old = graph->node;
    const size_t n_old = graph->n_node;
    graph->node = NULL;
    graph->n_node = graph->n_input = 0;
    give_numbers(c, graph, mask);
    graph->input = appended(c->arena, NULL, &graph->n_input, new_input(c, "the image"));
    float *pixels = ARENA_ARRAY(c->arena, float, total, "image");
    for (int i = 0; i < c->count; i++) {
        if (!(mask >> i & 1))
            continue;
        const OnnxConstant *value = c->value[i];
        const int pad = elementwise ? most - value->rank : 0;
        const int64_t end = at + value->size, one = 1;
        int64_t shape[SHAPE_RANK + 1] = {0};
        for (int d = 0; d < value->rank + pad; d++)
            shape[d + 1] = d < pad ? 1 : value->dim[d - pad];
        const char *part = arena_printf(c->arena, "part %d", i);
        Onnx__NodeProto *slice = new_node(c->arena, "Slice", "the image", part);
        const char *const names[] = {"starts", "ends", "axes"};
        const int64_t *const lists[] = {&at, &end, &one};
        for (int k = 0; k < 3; k++)
            if (c->opset < 10)
                set_list(c->arena, slice, names[k], 1, lists[k]);
            else
                set_input(c->arena, slice, k + 1,
                          new_list(c->arena, graph, arena_printf(c->arena, "%s %s", part, names[k]), 1, lists[k]));
        Onnx__NodeProto *reshape = new_node(c->arena, "Reshape", part, c->input[i]);
        set_input(c->arena, reshape, 1,
                  new_list(c->arena, graph, arena_printf(c->arena, "%s shape", part), value->rank + pad + 1, shape));
        graph->node = appended(c->arena, graph->node, &graph->n_node, slice);
        graph->node = appended(c->arena, graph->node, &graph->n_node, reshape);
        memcpy(pixels + at, value->floats, (size_t)value->size * sizeof *pixels);
        at = end;
    }
    for (size_t i = 0; i < n_old; i++)
        graph->node = appended(c->arena, graph->node, &graph->n_node, old[i]);
    way->image = shape_vector((int)total);
    way->batch = 1;
    way->pixels = pixels;
    return true;
}

bool as_numbers(const Case *c, Way *way, int output_at) {
    const OnnxConstant *expected = c->expected[output_at];
    if (expected->rank > SHAPE_RANK)
        return false;
    way->model = copy_model(c);
    Onnx__GraphProto *graph = way->model->graph;
    const char *output = graph->output[output_at]->name;
    graph->n_input = 0;
    give_numbers(c, graph, 0);
    graph->input = appended(c->arena, NULL, &graph->n_input, new_input(c, "the image"));
    Onnx__NodeProto *cast = new_node(c->arena, "Cast", output, "as floats");
    set_int(c->arena, cast, "to", FLOAT);
    Onnx__NodeProto *sum = new_node(c->arena, "Add", "the image", "the sum");
    set_input(c->arena, sum, 1, "as floats");
    graph->node = appended(c->arena, graph->node, &graph->n_node, cast);
    graph->node = appended(c->arena, graph->node, &graph->n_node, sum);
    graph->output[output_at]->name = sum->output[0];
    way->image.rank = expected->rank;
    for (int d = 0; d < way->image.rank; d++)
        way->image.dim[d] = (int)expected->dim[d];
    way->batch = 1;
    way->pixels = ARENA_ARRAY(c->arena, float, expected->size, "zeros");
    return true;
}
