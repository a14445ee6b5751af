/* test_onnx_suite.c: the ONNX project's own cases as oracle (Debian: libonnx-testdata), all whose operations we have.
 *
 * A case is a network, most often of one node, with inputs and expected outputs. It is run in every way that makes a
 * network of it:
 *   - its first input is the images, dimension 0 the batch, and the other inputs are numbers of the file;
 *   - one input, or all of them together, belong to one image, the rest to the file: a batch of one is put in front, and
 *     axes, lists of sizes and permutations are rewritten as of one dimension more (batched, below);
 *   - all inputs belong to the file, and the output is computed when it is loaded.
 * A case passes when at least one way is accepted and each that is gives the expected numbers. Where none is, the case
 * itself must show why (inapplicable, below), whatever the message said; else it has failed. Of operations that can give
 * more than their value (masks, places of maxima, means) the first output is compared, and such cases are counted.
 * Files of opset 1 to 6 are raised to 7 where no node has a form that 7 dropped. Prints the counts, and is skipped where
 * the suite is not installed. CNNSCOPE_ONNX_SUITE names another folder than the usual one.
 *
 *     test_onnx_suite [CASE]     with CASE, a part of a name: says what came of each such case */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "dataset.h"
#include "onnx_parts.h"

enum {
    REASONS = 200,
    MOST = 16,
    FILE_OPSET = 7,
    FLOAT = ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT,
    DOUBLE = ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE,
    HALF = ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16,
    BOOL = ONNX__TENSOR_PROTO__DATA_TYPE__BOOL,
    INT32 = ONNX__TENSOR_PROTO__DATA_TYPE__INT32,
    INT64 = ONNX__TENSOR_PROTO__DATA_TYPE__INT64
};
static const char *suite_folder = "/usr/share/libonnx-testdata/data";
static const char *chosen;

static struct {
    int passed, failed, other, first_only, at_load, ways, reasons;
    char reason[REASONS][160];
    int count[REASONS];
} tally;

typedef struct {
    Arena *arena;
    const char *name, *folder;
    const void *bytes; /* of the model */
    size_t size;
    int opset, count;
    Onnx__GraphProto *graph;         /* as it is in the file */
    Onnx__TensorProto *tensor[MOST]; /* of each input that is no initialiser */
    OnnxConstant *value[MOST];       /* NULL where the type is none of ours */
    const char *input[MOST];         /* its name */
    int outputs;                     /* those to compare: without masks, places of maxima and means */
    Onnx__TensorProto *result[MOST]; /* what they are to be */
    OnnxConstant *expected[MOST];    /* or NULL */
} Case;

/* One way of running a case: a model changed in place, and its image. */
typedef struct {
    Onnx__ModelProto *model;
    Shape image;
    int batch;
    const float *pixels;
} Way;

static void not_applicable(const Case *c, const char *reason) {
    int i = 0;
    while (i < tally.reasons && strcmp(tally.reason[i], reason) != 0)
        i++;
    assert_true(i < REASONS);
    if (i == tally.reasons)
        snprintf(tally.reason[tally.reasons++], sizeof tally.reason[i], "%s", reason);
    tally.count[i]++;
    tally.other++;
    if (chosen)
        print_message("%s: not applicable: %s\n", c->name, reason);
}

static bool exists(const char *path) {
    struct stat info;
    return !stat(path, &info) && S_ISREG(info.st_mode);
}

/* ---- Reading a case ---------------------------------------------------------------------------------------------- */

static Onnx__TensorProto *read_tensor(const Case *c, const char *what, int i) {
    const char *path = arena_printf(c->arena, "%s/test_data_set_0/%s_%d.pb", c->folder, what, i);
    size_t size;
    if (!exists(path))
        return NULL;
    const void *bytes = dataset_file_bytes(c->arena, path, &size);
    return onnx__tensor_proto__unpack(NULL, size, bytes);
}

/* A tensor outside of any file; NULL when it is of a type, or a shape, that no constant of ours has. */
static OnnxConstant *tensor_values(Arena *arena, Onnx__TensorProto *proto) {
    static const OnnxWish wish = {.as_is = true};
    static OnnxConstant *constant;
    const char *message;
    int status;
    constant = NULL;
    if (!proto)
        return NULL;
    if (!error_caught()) {
        Onnx *onnx = ARENA_ARRAY(arena, Onnx, 1, "tensor");
        *onnx = (Onnx){.arena = arena, .path = "test data", .wish = &wish, .budget = 1 << 30};
        constant = onnx_tensor(onnx, proto);
        onnx_floats(onnx, constant);
    }
    return error_pending(&message, &status) ? NULL : constant;
}

static bool is_initializer(const Onnx__GraphProto *graph, const char *name) {
    for (size_t i = 0; i < graph->n_initializer; i++)
        if (!strcmp(graph->initializer[i]->name, name))
            return true;
    return false;
}

static bool one_of(const char *op, const char *const *list) {
    while (*list && strcmp(*list, op) != 0)
        list++;
    return *list != NULL;
}

static void read_case(Case *c) {
    Onnx__ModelProto *model = onnx__model_proto__unpack(NULL, c->size, c->bytes);
    assert_non_null(model);
    c->graph = model->graph;
    for (size_t i = 0; i < model->n_opset_import; i++)
        if (!model->opset_import[i]->domain || !model->opset_import[i]->domain[0])
            c->opset = (int)model->opset_import[i]->version;
    for (size_t i = 0; i < c->graph->n_input; i++)
        if (!is_initializer(c->graph, c->graph->input[i]->name)) {
            assert_true(c->count < MOST);
            c->input[c->count] = c->graph->input[i]->name;
            c->tensor[c->count] = read_tensor(c, "input", c->count);
            c->value[c->count] = tensor_values(c->arena, read_tensor(c, "input", c->count));
            c->count++;
        }
    static const char *const with_more[] = {"Dropout", "MaxPool", "LayerNormalization", "BatchNormalization", NULL};
    assert_true(c->graph->n_output <= MOST);
    c->outputs = one_of(c->graph->node[c->graph->n_node - 1]->op_type, with_more) ? 1 : (int)c->graph->n_output;
    for (int i = 0; i < c->outputs; i++) {
        c->result[i] = read_tensor(c, "output", i);
        c->expected[i] = tensor_values(c->arena, read_tensor(c, "output", i));
    }
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
static const char *old_form(const Onnx__NodeProto *node) {
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

/* Input 0 is the images, as the file has it. */
static bool as_batch(const Case *c, Way *way) {
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

/* Whether the input can be part of an image; lists of sizes and the like can not. */
static bool is_flow(const Case *c, int i) {
    const int type = c->tensor[i] ? c->tensor[i]->data_type : 0;
    return c->value[i] && c->value[i]->size > 0 &&
           (type == FLOAT || type == BOOL || i == 0 || number_by_number(c->graph));
}

/* Inputs in `mask` are parts of one image: cut from a vector, and given their shapes. */
static bool as_image(const Case *c, Way *way, unsigned mask) {
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

/* All is known at load; the image is zeros, to which the output is added. */
static bool as_numbers(const Case *c, Way *way, int output_at) {
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

/* ---- Why not ----------------------------------------------------------------------------------------------------- */

static const char *type_name(int type) {
    static const char *const names[] = {"undefined", "float32", "uint8",     "int8",       "uint16",  "int16",
                                        "int32",     "int64",   "string",    "bool",       "float16", "float64",
                                        "uint32",    "uint64",  "complex64", "complex128", "bfloat16"};
    return type >= 0 && type < (int)(sizeof names / sizeof *names) ? names[type] : "another type";
}

static int64_t int_of(const Onnx__NodeProto *node, const char *name, int64_t otherwise) {
    const Onnx__AttributeProto *a = onnx_attribute(node, name);
    return a ? a->i : otherwise;
}

/* What a node asks for that README's list of operations leaves out; NULL: nothing. */
static const char *node_inapplicable(const Case *c, const Onnx__NodeProto *node) {
    static const char *const windows[] = {"Conv", "MaxPool", "AveragePool", NULL};
    const char *op = node->op_type;
    const OnnxConstant *first = c->count ? c->value[0] : NULL;
    if (one_of(op, windows) && first && first->rank != 4)
        return "windows of one or three dimensions";
    if (int_of(node, "training_mode", 0))
        return "training";
    if (!strcmp(op, "Dropout") && c->count > 2 && c->value[2] && c->value[2]->floats[0] != 0)
        return "training";
    if (!strcmp(op, "Resize") && onnx_text_is(node, "mode", "cubic", false))
        return "Resize by cubics";
    if (!strcmp(op, "Resize") && onnx_text_is(node, "coordinate_transformation_mode", "tf_crop_and_resize", false))
        return "Resize of a part (tf_crop_and_resize)";
    if (!strcmp(op, "Flatten") && int_of(node, "axis", 1) != 1)
        return "Flatten that joins the batch to another dimension, or leaves several";
    if (!strcmp(op, "Gemm") && int_of(node, "transA", 0))
        return "Gemm of a transposed batch";
    if (!strcmp(op, "Gemm") && c->count > 2 && c->value[2] && c->value[2]->rank == 2 && c->value[2]->dim[0] > 1)
        return "Gemm with another bias for each image";
    if (!strcmp(op, "Range") && c->value[0] && !c->value[0]->whole)
        return "Range of numbers that are not whole";
    if (!strcmp(op, "Pow") && c->count > 1 && (!c->value[1] || c->value[1]->size != 1))
        return "Pow by more than one number";
    return NULL;
}

/* What no way is tried of: other operations, and numbers that are not computed with as their type says. */
static const char *foreign(const Case *c) {
    static char made[160];
    const Onnx__GraphProto *graph = c->graph;
    for (size_t i = 0; i < graph->n_node; i++)
        if ((graph->node[i]->domain && graph->node[i]->domain[0]) ||
            (!onnx_op_find(graph->node[i]) && !onnx_fold_find(graph->node[i]))) {
            snprintf(made, sizeof made, "operation %.60s", graph->node[i]->op_type);
            return made;
        }
    for (size_t i = 0; i < graph->n_input + graph->n_output; i++) {
        const Onnx__TypeProto *type = (i < graph->n_input ? graph->input[i] : graph->output[i - graph->n_input])->type;
        if (type && type->value_case != ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE)
            return "a sequence, not a tensor";
    }
    for (int i = 0; i < c->count + c->outputs; i++) {
        const bool input = i < c->count;
        const Onnx__TensorProto *tensor = input ? c->tensor[i] : c->result[i - c->count];
        const int type = tensor ? tensor->data_type : 0;
        if (type != FLOAT && type != BOOL && type != INT32 && type != INT64 && type != DOUBLE &&
            !(input && type == HALF)) {
            snprintf(made, sizeof made, "numbers of type %s", type_name(type));
            return made;
        }
    }
    /* The case divides by 2.4 - 1; the operation's text, onnxruntime 1.32 and PyTorch by 2 - 1, and so do we. */
    const OnnxConstant *x = c->value[0], *scales = c->count ? c->value[c->count - 1] : NULL;
    const Onnx__NodeProto *node = graph->node[0];
    if (!strcmp(node->op_type, "Resize") &&
        onnx_text_is(node, "coordinate_transformation_mode", "align_corners", false) &&
        onnx_text_is(node, "mode", "linear", false) && x && scales && !scales->whole && scales->size == x->rank)
        for (int d = 0; d < x->rank; d++)
            if (x->dim[d] * (double)scales->floats[d] != floor(x->dim[d] * (double)scales->floats[d]))
                return "Resize by align_corners to 2.4 numbers (contradicts the operation's text)";
    return NULL;
}

static const char *inapplicable(const Case *c) {
    const char *reason;
    for (int i = 0; i <= c->outputs; i++) {
        const OnnxConstant *value = i < c->outputs ? c->expected[i] : c->count ? c->value[0] : NULL;
        if (value && value->size == 0)
            return "values without numbers";
    }
    for (size_t i = 0; i < c->graph->n_node; i++)
        if ((c->opset < FILE_OPSET && (reason = old_form(c->graph->node[i]))) ||
            (reason = node_inapplicable(c, c->graph->node[i])))
            return reason;
    return NULL;
}

/* ---- Running ----------------------------------------------------------------------------------------------------- */

/* What the network makes of the image, in the graph's own lane; NULL with the reason when it is refused. */
static float *run_way(const Case *c, const Way *way, int output_at, Shape *shape, const char **message) {
    static float *values;
    static Shape made;
    int status;
    values = NULL;
    if (!error_caught()) {
        const size_t size = onnx__model_proto__get_packed_size(way->model);
        void *bytes = ARENA_ARRAY(c->arena, char, (int64_t)size, "model");
        onnx__model_proto__pack(way->model, bytes);
        const char *output = way->model->graph->output[output_at]->name;
        const OnnxWish wish = {.input = way->image, .logits_node = output, .as_is = true};
        const Graph *g = onnx_read(c->arena, bytes, size, c->name, &wish).graph;
        bool *want = ARENA_ARRAY(c->arena, bool, g->count, "wants"), *none = ARENA_ARRAY(c->arena, bool, g->count, "");
        want[g->logits] = true;
        made = g->nodes[g->logits].shape;
        Plan *plan = graph_plan(c->arena, g, way->batch, want, none);
        Lane *lane = lane_new(graph_lane_bytes(plan));
        dev_upload(graph_input(plan, lane), way->pixels, (size_t)(shape_size(way->image) * way->batch) * sizeof(float));
        graph_forward(plan, lane);
        lane_sync(lane);
        const int64_t total = shape_size(made) * way->batch;
        values = ARENA_ARRAY(c->arena, float, total, "output");
        dev_download(values, graph_value(plan, lane, g->logits), (size_t)total * sizeof(float));
        lane_free(lane);
        graph_plan_free(plan);
    }
    *shape = made;
    return error_pending(message, &status) ? NULL : values;
}

/* Sizes are compared from the last, with ones in front. */
static bool same_shape(const OnnxConstant *expected, int batch, Shape found) {
    for (int d = 1; d <= expected->rank || d <= found.rank + 1; d++) {
        const int64_t a = d <= expected->rank ? expected->dim[expected->rank - d] : 1;
        const int64_t b = d <= found.rank ? found.dim[found.rank - d] : d == found.rank + 1 ? batch : 1;
        if (a != b)
            return false;
    }
    return true;
}

static const char *difference(const float *found, const OnnxConstant *expected) {
    static char words[160];
    for (int64_t i = 0; i < expected->size; i++) {
        const double a = found[i], b = expected->floats[i];
        if (!(fabs(a - b) <= 2e-6 + 1e-4 * fabs(b)) && !(isnan(a) && isnan(b)) && a != b) {
            snprintf(words, sizeof words, "number %lld is %g, expected %g", (long long)i, a, b);
            return words;
        }
    }
    return NULL;
}

/* Way number `which`: 0 the batch, 1 numbers, 2 all inputs in the image, 3 and on one of them; false: not of this case. */
static bool make_way(const Case *c, int which, int output_at, Way *way) {
    unsigned flows = 0;
    for (int i = 0; i < c->count; i++)
        flows |= is_flow(c, i) ? 1u << i : 0;
    if (which == 0)
        return as_batch(c, way);
    if (which == 1)
        return as_numbers(c, way, output_at);
    const unsigned mask = which == 2 ? flows : flows & 1u << (which - 3);
    return mask && (which == 2 || mask != flows) && as_image(c, way, mask);
}

/* One output in one way: accepted or not; *failure: how it differs. */
static bool try_way(const Case *c, int which, int output_at, const char **refusal, const char **failure) {
    Way way = {0};
    Shape shape;
    const char *message = "";
    const OnnxConstant *expected = c->expected[output_at];
    if (!expected || expected->size == 0 || !make_way(c, which, output_at, &way))
        return false;
    const float *found = run_way(c, &way, output_at, &shape, &message);
    if (!found) {
        *refusal = arena_printf(c->arena, "%s", message);
        if (chosen)
            print_message("%s: way %d: %s\n", c->name, which, message);
        return false;
    }
    const char *why = same_shape(expected, way.batch, shape) ? difference(found, expected) : "another shape";
    if (why)
        *failure = arena_printf(c->arena, "output %d, way %d: %s", output_at, which, why);
    return true;
}

static void run_case(Case *c) {
    int ways = 0, at_load = 0;
    const char *refusal = "no way to run it", *failure = NULL;
    read_case(c);
    const char *reason = foreign(c);
    if (reason) {
        not_applicable(c, reason);
        return;
    }
    reason = inapplicable(c);
    for (int which = 0; which < 3 + c->count && !failure; which++) {
        int accepted = 0;
        for (int i = 0; i < c->outputs && !failure; i++)
            accepted += try_way(c, which, i, &refusal, &failure);
        ways += accepted == c->outputs;
        at_load += accepted == c->outputs && which == 1;
    }
    if (!failure && ways == 0 && reason) {
        not_applicable(c, reason);
    } else if (failure || ways == 0) {
        tally.failed++;
        print_message("%s: failed: %s\n", c->name, failure ? failure : refusal);
    } else {
        tally.passed++;
        tally.ways += ways;
        tally.at_load += ways == at_load;
        tally.first_only += c->outputs < (int)c->graph->n_output;
        if (chosen)
            print_message("%s: passed in %d ways\n", c->name, ways);
    }
}

static void run_folder(const char *group) {
    char folder[512];
    struct dirent **entries;
    snprintf(folder, sizeof folder, "%s/%s", suite_folder, group);
    const int count = scandir(folder, &entries, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        Arena *arena = arena_new();
        const char *path = arena_printf(arena, "%s/%s", folder, entries[i]->d_name);
        const char *file = arena_printf(arena, "%s/model.onnx", path);
        const bool wanted = !chosen || strstr(entries[i]->d_name, chosen);
        Case c = {.arena = arena, .name = arena_printf(arena, "%s/%s", group, entries[i]->d_name), .folder = path};
        if (wanted && exists(file)) {
            c.bytes = dataset_file_bytes(arena, file, &c.size);
            run_case(&c);
        }
        free(entries[i]);
        arena_free(arena);
    }
    if (count >= 0)
        free(entries);
}

static void the_suite(void **state) {
    (void)state;
    struct stat info;
    if (stat(suite_folder, &info)) {
        print_message("%s is not there (Debian: libonnx-testdata): nothing compared\n", suite_folder);
        skip();
    }
    static const char *const groups[] = {"node", "pytorch-converted", "pytorch-operator", "simple"};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        run_folder(groups[i]);
    for (int i = 0; i < tally.reasons; i++)
        print_message("  not applicable, %s: %d\n", tally.reason[i], tally.count[i]);
    print_message(
        "ONNX suite: %d passed (in %d ways; %d only as numbers known at load; %d by their first output), %d failed, "
        "%d not applicable\n",
        tally.passed, tally.ways, tally.at_load, tally.first_only, tally.failed, tally.other);
    assert_int_equal(tally.failed, 0);
    assert_true(chosen || tally.passed >= 1);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_suite)};
    chosen = argc > 1 ? argv[1] : NULL;
    suite_folder = getenv("CNNSCOPE_ONNX_SUITE") ? getenv("CNNSCOPE_ONNX_SUITE") : suite_folder;
    dev_start(0, 2);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
