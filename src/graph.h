/* graph.h: a network as nodes in topological order, its memory plan, and its passes over a batch.
 *
 * A node's value is its output for a batch; forward is a loop up the nodes, backward a loop down, with respect to the
 * input only. A model front end adds nodes; graph_plan prepares kernels for one batch size and decides where values
 * live. One plan serves all lanes. The op table (graph.c, its entries in graph_*.c by family) has one entry per
 * operation: shape rule, prepare, forward, backward; plan.c has the memory plan, plan_run.c the passes.
 *
 * The batch is no dimension here: shapes and axes are those of one sample, so axis 0 is ONNX's axis 1. A node has one
 * value: a Split is one OP_SLICE per output, Flatten, Squeeze and Unsqueeze are OP_RESHAPE, Dropout and Identity are
 * left out, all by the front end. */
#ifndef CNNSCOPE_GRAPH_H
#define CNNSCOPE_GRAPH_H

#include "arena.h"
#include "kernels.h"

enum { SHAPE_RANK = 5 };

typedef struct {
    int rank;            /* 0 to SHAPE_RANK; 0 is one number a sample */
    int dim[SHAPE_RANK]; /* C order; an image's value is (C, H, W), a vector (K); beyond rank: 0 */
} Shape;

Shape shape_chw(int channels, int height, int width);
Shape shape_vector(int units);
int64_t shape_size(Shape shape);
bool shape_equal(Shape a, Shape b);
bool shape_is_spatial(Shape shape); /* (C, H, W) with H * W > 1 */
/* For callers that draw maps: of (C, H, W); any other shape is a vector of shape_size units, (K, 1, 1). */
int shape_channels(Shape shape);
int shape_height(Shape shape);
int shape_width(Shape shape);
const char *shape_text(char text[64], Shape shape); /* "(16, 28, 28)" */

typedef enum {
    OP_INPUT,
    /* weight (out_channels, in_channels / groups, kernel_height, kernel_width), bias (out_channels) or none; window:
     * strides, pads, dilation, groups given, the rest set. (C, H, W) only, as the pools. */
    OP_CONV,
    OP_BATCH_NORM, /* y = x * weight + bias along axis 0 (C); the front end folds mean, variance and epsilon in */
    OP_RELU,
    OP_MAX_POOL,            /* window: kernel, strides, pads, dilation given; ceil_mode */
    OP_AVERAGE_POOL,        /* likewise; count_include_pad */
    OP_GLOBAL_AVERAGE_POOL, /* (C, ...) -> (C, 1, ...) */
    OP_GLOBAL_MAX_POOL,
    /* Gemm, and MatMul with a constant on the right: y = alpha x W + beta bias along the last axis, (..., inputs) ->
     * (..., outputs); gemm. weight (outputs, inputs), or (inputs, outputs) if weight_in_out; bias (outputs) or none. */
    OP_LINEAR,
    /* (..., M, K) (..., K, N), leading dimensions broadcast: of two values, or of one and a constant (operand;
     * operand_first) without batch. */
    OP_MATMUL,
    /* Of two values, or of one and a constant (operand; operand_first: constant - x): broadcast as numpy does, so a
     * constant's shape is that of a sample too, with the batch's 1 taken off in front. */
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_PRELU, /* operand: the slope, broadcast */
    OP_LESS,  /* 1 where it holds, else 0; no gradient */
    OP_LESS_EQUAL,
    OP_EQUAL,
    OP_WHERE,      /* x ? y : 0, whatever y is where x is 0 */
    OP_WHERE_NOT,  /* x ? 0 : y */
    OP_CLIP,       /* scalar.low, scalar.high (may be infinite) */
    OP_LEAKY_RELU, /* scalar.alpha */
    OP_ELU,        /* scalar.alpha */
    OP_SELU,       /* scalar.alpha, scalar.beta (ONNX: gamma) */
    OP_SIGMOID,
    OP_HARD_SIGMOID, /* clip(alpha x + beta, 0, 1) */
    OP_HARD_SWISH,   /* x clip(x / 6 + 1/2, 0, 1) */
    OP_TANH,
    OP_SOFTPLUS,
    OP_GELU, /* scalar.tanh_form */
    OP_ERF,
    OP_SQRT,
    OP_EXP,
    OP_LOG,
    OP_NEG,
    OP_ABS,
    OP_RECIPROCAL,
    OP_POW,         /* x^alpha */
    OP_SOFTMAX,     /* along.axis; to_last: over all axes from there on, as ONNX before opset 13 */
    OP_LOG_SOFTMAX, /* likewise */
    OP_CONCAT,      /* of 1 or more values, along.axis */
    OP_RESHAPE,     /* target: of equal size */
    OP_TRANSPOSE,   /* perm: out.dim[i] = in.dim[perm[i]] */
    OP_SLICE,       /* slice: out[i] = in[start + i * step], count of them, on each axis */
    OP_PAD,         /* pad */
    OP_RESIZE,      /* resize; axes whose size does not change are left alone */
    OP_REDUCE_MEAN, /* reduce */
    /* (x - mean) / sqrt(var + epsilon) * weight + bias, statistics of one sample; norm. */
    OP_LAYER_NORM,    /* over the axes from norm.axis on; weight and bias (or none) have those axes' size */
    OP_INSTANCE_NORM, /* over all axes but 0; weight and bias (C) or none */
    OP_GROUP_NORM,    /* over norm.groups groups of axis 0 with all other axes; weight and bias (C) or none */
    OP_LRN,           /* lrn; across axis 0 */
    OP_COUNT
} OpKind;

typedef struct {
    Shape shape;
    const float *values; /* host, kept by the caller; NULL: none */
} Constant;

typedef enum { PAD_CONSTANT, PAD_REFLECT, PAD_EDGE } PadMode;
typedef enum { RESIZE_NEAREST, RESIZE_LINEAR } ResizeMode;
/* ONNX's coordinate_transformation_mode and nearest_mode. */
typedef enum {
    RESIZE_HALF_PIXEL,
    RESIZE_PYTORCH_HALF_PIXEL,
    RESIZE_ALIGN_CORNERS,
    RESIZE_ASYMMETRIC,
    RESIZE_TF_HALF_PIXEL /* tf_half_pixel_for_nn */
} ResizeCoordinates;
typedef enum { NEAREST_ROUND_PREFER_FLOOR, NEAREST_ROUND_PREFER_CEIL, NEAREST_FLOOR, NEAREST_CEIL } ResizeNearest;

typedef struct {
    OpKind op;
    const char *name;  /* unique; module path, as conv1 or layer1.0.conv2; "input" for node 0 */
    int n_inputs;      /* 0 for OP_INPUT */
    const int *inputs; /* (n_inputs) indices of the nodes it reads, less than its own; copied by graph_add */
    Shape shape;       /* of its output; set by graph_add, except for OP_INPUT, where it is given */
    Constant weight, bias, operand;
    bool operand_first;
    union { /* by operation, as said there */
        struct {
            ConvShape window; /* dilation and groups: 0 means 1 */
            bool ceil_mode, count_include_pad;
        };
        struct {
            float alpha, beta;  /* both to be given */
            bool weight_in_out; /* the weight is (inputs, outputs) */
            bool flatten;       /* reads all of a sample as one vector, in C order; gives (outputs) */
        } gemm;
        struct {
            float alpha, beta, low, high;
            bool tanh_form;
        } scalar;
        struct {
            int axis;
            bool to_last;
        } along;
        Shape target;
        int perm[SHAPE_RANK];
        struct {
            int start[SHAPE_RANK], step[SHAPE_RANK], count[SHAPE_RANK]; /* of every axis; step may be negative */
        } slice;
        struct {
            PadMode mode;
            int before[SHAPE_RANK], after[SHAPE_RANK]; /* of every axis, 0 or more */
            float value;
        } pad;
        struct {
            ResizeMode mode;
            ResizeCoordinates coordinates;
            ResizeNearest nearest;
            int size[SHAPE_RANK];     /* of the result, every axis */
            double scale[SHAPE_RANK]; /* of every axis, as given in the file; 0: size / size before */
        } resize;
        struct {
            bool axes[SHAPE_RANK]; /* those averaged */
            bool keep;             /* they stay, with size 1 */
        } reduce;
        struct {
            int axis, groups;
            float epsilon;
        } norm;
        struct {
            int size; /* channels */
            float alpha, beta, bias;
        } lrn;
    };
} Node;

typedef struct {
    Node *nodes;
    int count, capacity;
    int logits; /* the node whose value is the network's output; graph_add makes it the last one added */
    Arena *arena;
} Graph;

Graph *graph_new(Arena *arena, int capacity);

/* Appends a node (copied, with its inputs; name and constants must outlive the graph), checks it against its inputs'
 * shapes, and gives its index. Dies when shapes do not fit, naming the node. */
int graph_add(Graph *graph, Node node);

int graph_find(const Graph *graph, const char *name); /* index, or -1 */

/* Whether a node is a layer of its own: the one node, the logits if they are one, of those that hold the same numbers in
 * the same order (a Flatten and what it reads). The input's numbers are none. */
bool graph_is_distinct(const Graph *graph, int node);
const char *graph_op_name(OpKind op); /* "Conv", "BatchNormalization", ... as in ONNX */

/* One batch size, and what will be asked of a batch: values and gradients of nodes (bool per node). A gradient is
 * that of one logit per sample (the seed) with respect to the node's value. The backward pass runs only through nodes
 * that lead to one wanted. A node read by several adds their gradients one by one, from the last reader to the first.
 * Asking for more never changes another result. */
typedef struct Plan Plan;
Plan *graph_plan(Arena *arena, const Graph *graph, int batch, const bool *want_value, const bool *want_gradient);
void graph_plan_free(Plan *plan);          /* the prepared kernels; the rest lies in the arena */
size_t graph_lane_bytes(const Plan *plan); /* device memory a lane needs for lane_new */

/* Device, in the lane's memory, plain (B, C, H, W); the caller fills it before graph_forward, and results of the batch
 * before stay valid while it does. */
float *graph_input(const Plan *plan, Lane *lane);
void graph_forward(const Plan *plan, Lane *lane);
/* The same for a batch of which graph_value will not be asked for some wanted nodes: unread (nodes). Bringing a value
 * into C order costs a pass over it. */
void graph_forward_without(const Plan *plan, Lane *lane, const bool *unread);
/* seed: device, plain (B, K), NULL when nothing needs a gradient. Valid after graph_forward of the same batch. */
void graph_backward(const Plan *plan, Lane *lane, const float *seed);
/* The same, but no relu passes a gradient below 0 (guided backpropagation, Springenberg et al. 2015). */
void graph_backward_guided(const Plan *plan, Lane *lane, const float *seed);

/* Device pointers to plain (B, ...), C order, valid until the lane's next graph_forward; only of what was wanted.
 * Values may be asked for after graph_forward, gradients after graph_backward. */
const float *graph_value(const Plan *plan, Lane *lane, int node);
const float *graph_gradient(const Plan *plan, Lane *lane, int node);

#endif
