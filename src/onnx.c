/* onnx.c: from the file's graph to ours: which nodes the output needs, whether we have them all, and the order of
 * building. See onnx.h.
 *
 * ONNX lists nodes in the order of computation, so one sweep back finds what the output needs and one sweep forward
 * builds it; a node that reads what none before it makes is refused, and with it every circle. */
#include "onnx.h"

#include <stdio.h>
#include <string.h>

#include "onnx_parts.h"

enum { MOST_NODES = 20000 };

static void check_file(Onnx *onnx);
static int add_values(Onnx *onnx);
static void choose_output(Onnx *onnx);
static void mark_needed(Onnx *onnx);
static void refuse_unsupported(const Onnx *onnx);
static void add_input(Onnx *onnx, int input);
static void build_nodes(Onnx *onnx);
static void finish(Onnx *onnx);

OnnxNetwork onnx_read(Arena *arena, const void *bytes, size_t size, const char *path, const OnnxWish *wish) {
    Onnx onnx = {.arena = arena, .path = path, .wish = wish, .batch = ONNX_BATCH, .output = NONE};
    onnx.model = onnx_file_open(bytes, size, path);
    onnx.file = onnx.model->graph;
    onnx.budget = size + ((uint64_t)8 << 20);
    onnx.fill_budget = (uint64_t)1 << 30;
    onnx.opset = onnx_file_opset(onnx.model, path);
    check_file(&onnx);
    int input = add_values(&onnx);
    choose_output(&onnx);
    mark_needed(&onnx);
    refuse_unsupported(&onnx);
    add_input(&onnx, input);
    build_nodes(&onnx);
    finish(&onnx);
    onnx_file_close(onnx.model);
    return (OnnxNetwork){onnx.graph, onnx.output_name};
}

/* ---- What is in the file ----------------------------------------------------------------------------------------- */

static void check_file(Onnx *onnx) {
    const Onnx__GraphProto *file = onnx->file;
    if (file->n_node > MOST_NODES)
        die("%s: has %zu nodes, expected %d at most", onnx->path, file->n_node, MOST_NODES);
    if (file->n_sparse_initializer)
        die("%s: has %zu sparse weights, expected dense ones", onnx->path, file->n_sparse_initializer);
    for (size_t i = 0; i < file->n_node; i++)
        if (!file->node[i]->op_type || !file->node[i]->op_type[0])
            die("%s: node %zu has no operation, expected one: the file is damaged", onnx->path, i);
    for (size_t i = 0; i < file->n_input + file->n_output; i++)
        if (!(i < file->n_input ? file->input[i] : file->output[i - file->n_input])->name)
            die("%s: an input or output has no name, expected one: the file is damaged", onnx->path);
}

/* Values of initialisers, inputs and nodes; gives the index (in the file) of the one input that is no initialiser. */
static int add_values(Onnx *onnx) {
    const Onnx__GraphProto *file = onnx->file;
    int input = NONE, inputs = 0;
    onnx_values_init(onnx);
    for (size_t i = 0; i < file->n_initializer; i++) {
        if (!file->initializer[i]->name)
            die("%s: a tensor has no name, expected one: the file is damaged", onnx->path);
        int value = onnx_value_add(onnx, file->initializer[i]->name);
        onnx->values[value].constant = onnx_tensor(onnx, file->initializer[i]);
    }
    for (size_t i = 0; i < file->n_input; i++)
        if (onnx_value_find(onnx, file->input[i]->name) == NONE) {
            onnx_value_add(onnx, file->input[i]->name);
            input = input == NONE ? (int)i : input;
            inputs++;
        }
    if (inputs != 1)
        die("%s: has %d inputs (%.100s, ...), expected one, the images", onnx->path, inputs,
            input == NONE ? "" : file->input[input]->name);
    for (size_t i = 0; i < file->n_node; i++)
        for (size_t k = 0; k < file->node[i]->n_output; k++)
            if (file->node[i]->output[k][0])
                onnx->values[onnx_value_add(onnx, file->node[i]->output[k])].maker = (int)i;
    return input;
}

/* ---- The output -------------------------------------------------------------------------------------------------- */

static const Onnx__NodeProto *maker_of(const Onnx *onnx, int value) {
    return value == NONE || onnx->values[value].maker == NONE ? NULL : onnx->file->node[onnx->values[value].maker];
}

static int named_output(Onnx *onnx, const char *name) {
    int value = onnx_value_find(onnx, name);
    for (size_t i = 0; i < onnx->file->n_node && value == NONE; i++) {
        const Onnx__NodeProto *node = onnx->file->node[i];
        if (node->name && !strcmp(node->name, name) && node->n_output)
            value = onnx_value_find(onnx, node->output[0]);
    }
    if (!maker_of(onnx, value)) {
        char names[512] = "";
        const int count = (int)onnx->file->n_node, first = count > 8 ? count - 8 : 0;
        for (int i = first, used = 0; i < count && used < (int)sizeof names; i++)
            used += snprintf(names + used, sizeof names - (size_t)used, "%s%.60s", i > first ? ", " : "",
                             onnx->file->node[i]->name ? onnx->file->node[i]->name : "");
        die_usage("--logits-node %s: no such node or value in %s; its last nodes are %s", name, onnx->path, names);
    }
    return value;
}

/* Softmax keeps the order of the categories and squeezes their gradients: what it reads is looked at. So it is with a
 * sigmoid, whose single output would never be below 0; that is seen once its shape is known, in finish. */
static void choose_output(Onnx *onnx) {
    const Onnx__GraphProto *file = onnx->file;
    if (onnx->wish->logits_node) {
        onnx->output = named_output(onnx, onnx->wish->logits_node);
        return;
    }
    if (file->n_output != 1 && !onnx->wish->as_is) {
        char names[512] = "";
        for (size_t i = 0, used = 0; i < file->n_output && used < sizeof names; i++)
            used +=
                (size_t)snprintf(names + used, sizeof names - used, "%s%.60s", i ? ", " : "", file->output[i]->name);
        die("%s: has %zu outputs (%s), expected one, or the one to look at by --logits-node", onnx->path,
            file->n_output, names);
    }
    onnx->output = file->n_output ? onnx_value_find(onnx, file->output[0]->name) : NONE;
    const Onnx__NodeProto *last;
    while (!onnx->wish->as_is && (last = maker_of(onnx, onnx->output)) && last->n_input >= 1 &&
           (!strcmp(last->op_type, "Softmax") || !strcmp(last->op_type, "LogSoftmax") ||
            !strcmp(last->op_type, "Identity")))
        onnx->output = onnx->values[onnx->output].maker > 0 ? onnx_value_find(onnx, last->input[0]) : NONE;
    if (!maker_of(onnx, onnx->output))
        die("%s: no node makes its output %.100s, expected one: the file is damaged", onnx->path,
            file->n_output ? file->output[0]->name : "");
}

/* ---- What the output needs --------------------------------------------------------------------------------------- */

static void mark_needed(Onnx *onnx) {
    const Onnx__GraphProto *file = onnx->file;
    onnx->done = ARENA_ARRAY(onnx->arena, bool, file->n_node, onnx->path);
    onnx->values[onnx->output].uses++;
    for (size_t i = file->n_node; i-- > 0;) {
        const Onnx__NodeProto *node = file->node[i];
        bool needed = false;
        for (size_t k = 0; k < node->n_output; k++) {
            int value = onnx_value_find(onnx, node->output[k]);
            needed = needed || (value != NONE && onnx->values[value].uses);
        }
        onnx->done[i] = !needed;
        for (size_t k = 0; k < node->n_input && needed; k++) {
            int value = onnx_value_find(onnx, node->input[k]);
            if (value != NONE)
                onnx->values[value].uses++;
        }
    }
}

static bool is_standard(const Onnx__NodeProto *node) {
    return !node->domain || !node->domain[0] || !strcmp(node->domain, "ai.onnx");
}

const OnnxOp *onnx_op_find(const Onnx__NodeProto *node) {
    const OnnxOp *op = onnx_op_nn(node->op_type);
    op = op ? op : onnx_op_math(node->op_type);
    return op ? op : onnx_op_shape(node->op_type);
}

static void full_name(char name[128], const Onnx__NodeProto *node) {
    snprintf(name, 128, "%.40s%s%.60s", is_standard(node) ? "" : node->domain, is_standard(node) ? "" : ".",
             node->op_type);
}

static void refuse_unsupported(const Onnx *onnx) {
    const Onnx__GraphProto *file = onnx->file;
    char list[1024] = "", name[128], other[128];
    size_t used = 0;
    for (size_t i = 0; i < file->n_node; i++) {
        const Onnx__NodeProto *node = file->node[i];
        if (onnx->done[i] || (is_standard(node) && (onnx_op_find(node) || onnx_fold_find(node))))
            continue;
        int count = 0;
        bool first = true;
        full_name(name, node);
        for (size_t j = 0; j < file->n_node && first; j++) {
            full_name(other, file->node[j]);
            const bool same = !onnx->done[j] && !strcmp(name, other);
            first = !(same && j < i);
            count += same;
        }
        if (first && used < sizeof list)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s (%d)", used ? ", " : "", name, count);
    }
    if (used)
        die("%s: has operations that cnnscope has not: %s; expected those of image classifiers (README.md lists them): "
            "choose a layer before them with --logits-node, or compute features elsewhere and use cnnscope embed",
            onnx->path, list);
}

/* ---- Building ---------------------------------------------------------------------------------------------------- */

static const Onnx__TensorShapeProto *declared(const Onnx__ValueInfoProto *info) {
    const Onnx__TypeProto *type = info->type;
    bool tensor = type && type->value_case == ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE;
    return tensor && type->tensor_type ? type->tensor_type->shape : NULL;
}

/* A fixed size in the file, or -1. */
static int64_t fixed_size(const Onnx__TensorShapeProto *shape, size_t d) {
    return shape->dim[d]->value_case == ONNX__TENSOR_SHAPE_PROTO__DIMENSION__VALUE_DIM_VALUE &&
                   shape->dim[d]->dim_value > 0
               ? shape->dim[d]->dim_value
               : -1;
}

static void shape_declared(char text[128], const Onnx__TensorShapeProto *shape) {
    int used = snprintf(text, 128, "(N");
    for (size_t d = 1; d < shape->n_dim && used < 100; d++)
        used += fixed_size(shape, d) > 0
                    ? snprintf(text + used, (size_t)(128 - used), ", %lld", (long long)fixed_size(shape, d))
                    : snprintf(text + used, (size_t)(128 - used), ", any");
    snprintf(text + used, (size_t)(128 - used), ")");
}

static void add_input(Onnx *onnx, int input) {
    const Onnx__GraphProto *file = onnx->file;
    const Onnx__TensorShapeProto *shape = declared(file->input[input]);
    const Shape image = onnx->wish->input;
    char expected[128], found[64];
    int64_t capacity = 16;
    for (size_t i = 0; i < file->n_node; i++)
        capacity += 2 + (int64_t)file->node[i]->n_output + (int64_t)file->node[i]->n_input;
    if (capacity > 1 << 20)
        die("%s: joins %lld values, expected a network: the file is damaged", onnx->path, (long long)capacity);
    onnx->graph = graph_new(onnx->arena, (int)capacity);
    onnx->taken = ARENA_ARRAY(onnx->arena, const char *, capacity, onnx->path);
    int node = graph_add(onnx->graph, (Node){.op = OP_INPUT, .name = "input", .shape = image});
    if (shape) {
        shape_declared(expected, shape);
        onnx->batch = shape->n_dim && fixed_size(shape, 0) > 0 ? fixed_size(shape, 0) : ONNX_BATCH;
        /* An MLP may read images as vectors, and networks of gray images may have no axis for the channel. */
        Shape read = {.rank = (int)shape->n_dim - 1};
        bool fits = shape->n_dim >= 1 && shape->n_dim <= SHAPE_RANK + 1;
        if (fits && read.rank == 1 && image.rank == 3)
            read = shape_vector((int)shape_size(image));
        else if (fits && read.rank == 2 && image.rank == 3 && image.dim[0] == 1)
            read.dim[0] = image.dim[1], read.dim[1] = image.dim[2];
        else
            fits = fits && read.rank == image.rank, read = image;
        for (int d = 0; fits && d < read.rank; d++)
            fits = fixed_size(shape, (size_t)d + 1) < 0 || fixed_size(shape, (size_t)d + 1) == read.dim[d];
        if (!fits)
            die("%s: reads images of shape %s, found %s: give images of that size (scripts/pack.py resizes), or say "
                "how "
                "they lie with --layout",
                onnx->path, expected, shape_text(found, image));
        if (!shape_equal(read, image))
            node = graph_add(
                onnx->graph,
                (Node){.op = OP_RESHAPE, .name = "input_vector", .target = read, .n_inputs = 1, .inputs = &node});
    }
    onnx->values[onnx_value_find(onnx, file->input[input]->name)].node = node;
}

static bool all_known(const Onnx *onnx, const Onnx__NodeProto *node) {
    for (size_t k = 0; k < node->n_input; k++)
        if (onnx_has(node, (int)k) && !onnx_input(onnx, node, (int)k)->constant)
            return false;
    return true;
}

static void build_nodes(Onnx *onnx) {
    for (size_t i = 0; i < onnx->file->n_node; i++) {
        if (onnx->done[i])
            continue;
        const Onnx__NodeProto *node = onnx->file->node[i];
        const OnnxOp *fold = all_known(onnx, node) ? onnx_fold_find(node) : NULL;
        const OnnxOp *op = fold ? fold : onnx_op_find(node);
        if (!op)
            onnx_refuse(onnx, node, "works on values computed from the image, expected numbers known from the file");
        op->build(onnx, node);
    }
}

/* The output as a vector called "logits". */
static void finish(Onnx *onnx) {
    Graph *graph = onnx->graph;
    const Onnx__NodeProto *last = maker_of(onnx, onnx->output);
    int node = onnx->values[onnx->output].node;
    if (node == 0 && onnx->wish->as_is)
        node = graph_add(
            graph,
            (Node){.op = OP_RESHAPE, .name = "copy", .n_inputs = 1, .inputs = &node, .target = graph->nodes[0].shape});
    if (node <= 0)
        onnx_refuse(onnx, last, "is the network's output, and does not depend on the image");
    while (!onnx->wish->as_is && !onnx->wish->logits_node && graph->nodes[node].op == OP_SIGMOID &&
           shape_size(graph->nodes[node].shape) == 1)
        node = graph->nodes[node].inputs[0];
    const Shape shape = graph->nodes[node].shape;
    int wide = 0;
    for (int d = 0; d < shape.rank; d++)
        wide += shape.dim[d] > 1;
    if (wide > 1 && !onnx->wish->as_is)
        onnx_refuse(onnx, last,
                    "is the network's output, of shape %s for each image: one vector of categories is "
                    "expected (cnnscope is for classifiers; choose another node with --logits-node)",
                    shape_text((char[64]){0}, shape));
    if (shape.rank != 1 && !onnx->wish->as_is) {
        onnx->output_name = graph->nodes[node].name;
        node = graph_add(graph, (Node){.op = OP_RESHAPE,
                                       .name = "logits",
                                       .n_inputs = 1,
                                       .inputs = &node,
                                       .target = shape_vector((int)shape_size(shape))});
    } else {
        onnx->output_name = graph->nodes[node].name;
        graph->nodes[node].name = "logits";
    }
    /* A sigmoid left behind ends the list and leads nowhere. */
    while (graph->count > node + 1)
        graph->count--;
    graph->logits = node;
}
