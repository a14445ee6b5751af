/* graph.h: a network as nodes in topological order, its memory plan, and its passes over a batch.
 *
 * A node's value is its output for a batch; forward is a loop up the nodes, backward a loop down, with respect to the
 * input only. A model front end (model.c) adds nodes; graph_plan prepares kernels for one batch size and decides
 * where values live. One plan serves all lanes. The op table in graph.c has one entry per operation: shape rule,
 * prepare, forward, backward, side by side; plan.c has the memory plan and the passes. */
#ifndef CNNSCOPE_GRAPH_H
#define CNNSCOPE_GRAPH_H

#include "arena.h"
#include "kernels.h"

typedef struct {
    int channels, height, width; /* of one sample; a vector of K units is (K, 1, 1) */
} Shape;

typedef enum {
    OP_INPUT,
    OP_CONV,
    OP_BATCH_NORM,
    OP_RELU,
    OP_MAX_POOL,
    OP_GLOBAL_AVERAGE_POOL,
    OP_LINEAR,
    OP_COUNT
} OpKind;

typedef struct {
    OpKind op;
    const char *name; /* module path, as conv1 or layer1.0.conv2; "input" for node 0 */
    int input;        /* index of the node it reads, less than its own; -1 for OP_INPUT */
    Shape shape;      /* of its output; set by graph_add, except for OP_INPUT, where it is given */
    ConvShape window; /* OP_CONV, OP_MAX_POOL: kernel, stride, pad given (and out_channels for OP_CONV), the rest set */
    int outputs;      /* OP_LINEAR: given */
    const float *weight; /* host, kept by the caller. OP_CONV (out, in, kh, kw), OP_LINEAR (outputs, inputs),
                            OP_BATCH_NORM: scale (C) */
    const float *bias;   /* OP_CONV (out) or NULL, OP_LINEAR (outputs) or NULL, OP_BATCH_NORM: shift (C) */
} Node;

typedef struct {
    Node *nodes;
    int count, capacity;
    int logits; /* the node whose value is the network's output; graph_add makes it the last one added */
} Graph;

Graph *graph_new(Arena *arena, int capacity);

/* Appends a node (copied; its name too must outlive the graph), checks it against its input's shape, and gives its
 * index. Dies when shapes do not fit, naming the node. */
int graph_add(Graph *graph, Node node);

int graph_find(const Graph *graph, const char *name); /* index, or -1 */
const char *graph_op_name(OpKind op);                 /* "Conv", "BatchNormalization", ... as in ONNX */
int64_t shape_size(Shape shape);                      /* C * H * W */
bool shape_is_spatial(Shape shape);                   /* H * W > 1 */

/* One batch size, and what will be asked of a batch: values and gradients of nodes (bool per node). A gradient is
 * that of one logit per sample (the seed) with respect to the node's value. The backward pass stops at the lowest node
 * wanted. Asking for more never changes another result. */
typedef struct Plan Plan;
Plan *graph_plan(Arena *arena, const Graph *graph, int batch, const bool *want_value, const bool *want_gradient);
void graph_plan_free(Plan *plan);          /* the prepared kernels; the rest lies in the arena */
size_t graph_lane_bytes(const Plan *plan); /* device memory a lane needs for lane_new */

/* Device, in the lane's memory, plain (B, C, H, W); the caller fills it before graph_forward, and results of the batch
 * before stay valid while it does. */
float *graph_input(const Plan *plan, Lane *lane);
void graph_forward(const Plan *plan, Lane *lane);
/* seed: device, plain (B, K), NULL when nothing needs a gradient. Valid after graph_forward of the same batch. */
void graph_backward(const Plan *plan, Lane *lane, const float *seed);

/* Device pointers to plain (B, C, H, W), valid until the lane's next graph_forward; only of what was wanted. Values may
 * be asked for after graph_forward, gradients after graph_backward. */
const float *graph_value(const Plan *plan, Lane *lane, int node);
const float *graph_gradient(const Plan *plan, Lane *lane, int node);

#endif
