/* graph.c: building a network: shapes, and adding nodes. What each operation is stands in graph_layers.c (windows,
 * batch norm, fully connected), graph_maths.c (elementwise, products, reductions), graph_norms.c (layer norm and its
 * kin, softmax) and graph_moves.c (values moved, not changed): one entry of a table each, and nothing else in the
 * program knows how a convolution is run or what shape it gives. Adding one is: an OpKind, an entry, its kernels and
 * their references. Shapes come from files, so every sum and product is checked there, once, and a sample's value has
 * less than 2^31 elements everywhere else. */
#include "graph.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "plan.h"

/* ---- Shapes ----------------------------------------------------------------------------------------------------- */

Shape shape_chw(int channels, int height, int width) {
    return (Shape){3, {channels, height, width}};
}

Shape shape_vector(int units) {
    return (Shape){1, {units}};
}

int64_t graph_span(Shape shape, int from, int to) {
    int64_t size = 1;
    for (int d = from; d < to; d++)
        size *= shape.dim[d];
    return size;
}

int64_t shape_size(Shape shape) {
    return graph_span(shape, 0, shape.rank);
}

bool shape_equal(Shape a, Shape b) {
    return a.rank == b.rank && memcmp(a.dim, b.dim, (size_t)a.rank * sizeof *a.dim) == 0;
}

bool shape_is_spatial(Shape shape) {
    return shape.rank == 3 && (int64_t)shape.dim[1] * shape.dim[2] > 1;
}

int shape_channels(Shape shape) {
    return shape.rank == 3 ? shape.dim[0] : (int)shape_size(shape);
}

int shape_height(Shape shape) {
    return shape.rank == 3 ? shape.dim[1] : 1;
}

int shape_width(Shape shape) {
    return shape.rank == 3 ? shape.dim[2] : 1;
}

const char *shape_text(char text[64], Shape shape) {
    int used = snprintf(text, 64, "(");
    for (int d = 0; d < shape.rank && d < SHAPE_RANK; d++)
        used += snprintf(text + used, (size_t)(64 - used), "%s%d", d ? ", " : "", shape.dim[d]);
    snprintf(text + used, (size_t)(64 - used), ")");
    return text;
}

Sides graph_sides(Shape shape) {
    return (Sides){shape.rank > 0 ? shape.dim[0] : 1, shape.rank == 3 ? shape.dim[1] : 1,
                   shape.rank == 3 ? shape.dim[2] : (int)graph_span(shape, 1, shape.rank)};
}

/* ---- Checks ----------------------------------------------------------------------------------------------------- */

static void check_size(const Node *node) {
    const Shape s = node->shape;
    if (s.rank < 0 || s.rank > SHAPE_RANK)
        die("layer %s: an output of %d dimensions was found, expected at most %d besides the batch", node->name, s.rank,
            SHAPE_RANK);
    int64_t size = 1;
    bool fits = true;
    for (int d = 0; d < s.rank && fits; d++) {
        fits = s.dim[d] >= 1 && size <= INT32_MAX / s.dim[d];
        size *= s.dim[d];
    }
    char text[64];
    if (!fits)
        die("layer %s: an output of %s was found, expected at least 1 on each axis and less than 2^31 values in all: "
            "check the sizes in the model and of the images",
            node->name, shape_text(text, s));
}

void graph_check_constant(const Node *node, const Constant *constant, Shape expected, const char *what) {
    char found[64], wanted[64];
    if (!shape_equal(constant->shape, expected))
        die("layer %s: %s of shape %s was found, expected %s", node->name, what, shape_text(found, constant->shape),
            shape_text(wanted, expected));
}

void graph_check_axis(const Node *node, int axis, int rank) {
    if (axis < 0 || axis >= rank)
        die("layer %s: axis %d was found, expected 0 to %d (the batch not counted)", node->name, axis, rank - 1);
}

void graph_same_shape(Node *node, const Shape *in) {
    node->shape = in[0];
}

bool graph_all_blocked(const Step *step) {
    for (int k = 0; k < step->n; k++)
        if (step->laid[k] != LAYOUT_BLOCKED)
            return false;
    return true;
}

/* ---- Building --------------------------------------------------------------------------------------------------- */

Graph *graph_new(Arena *arena, int capacity) {
    Graph *graph = ARENA_ARRAY(arena, Graph, 1, "graph");
    graph->nodes = ARENA_ARRAY(arena, Node, capacity, "graph");
    graph->capacity = capacity;
    graph->arena = arena;
    return graph;
}

int graph_add(Graph *graph, Node node) {
    if (graph->count == graph->capacity)
        die("layer %s: more than %d layers were found: split the model", node.name, graph->capacity);
    const bool first = graph->count == 0;
    const Op *op = graph_op(node.op);
    if (first != (node.op == OP_INPUT) || node.n_inputs < op->least || node.n_inputs > op->most)
        die("layer %s: %s reads %d values, expected %d or more, and one Input in front of all others", node.name,
            op->name, node.n_inputs, op->least);
    if (graph_find(graph, node.name) >= 0)
        die("layer %s: there are two of this name: rename one", node.name);
    int *inputs = ARENA_ARRAY(graph->arena, int, node.n_inputs, "graph");
    Shape *in = ARENA_ARRAY(graph->arena, Shape, node.n_inputs, "graph");
    for (int k = 0; k < node.n_inputs; k++) {
        inputs[k] = node.inputs[k];
        if (inputs[k] < 0 || inputs[k] >= graph->count)
            die("layer %s: it reads layer %d, expected one before it (of %d)", node.name, inputs[k], graph->count);
        in[k] = graph->nodes[inputs[k]].shape;
    }
    node.inputs = inputs;
    op->shape(&node, in);
    check_size(&node);
    graph->nodes[graph->count] = node;
    graph->logits = graph->count;
    return graph->count++;
}

int graph_find(const Graph *graph, const char *name) {
    for (int i = 0; i < graph->count; i++)
        if (strcmp(graph->nodes[i].name, name) == 0)
            return i;
    return -1;
}

static int origin(const Graph *graph, int node) {
    while (graph->nodes[node].op == OP_RESHAPE)
        node = graph->nodes[node].inputs[0];
    return node;
}

bool graph_is_distinct(const Graph *graph, int node) {
    const int first = origin(graph, node);
    return first == origin(graph, graph->logits) ? node == graph->logits : node == first && first > 0;
}

/* ---- The table -------------------------------------------------------------------------------------------------- */

const Op *graph_op(OpKind kind) {
    const Op *families[] = {graph_layers, graph_maths, graph_norms, graph_moves};
    for (int i = 0; i < 4; i++)
        if (families[i][kind].name)
            return &families[i][kind];
    die("operation %d is in no table", (int)kind);
}

const char *graph_op_name(OpKind op) {
    return graph_op(op)->name;
}
