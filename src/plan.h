/* plan.h: what graph*.c (the operations) and plan*.c (memory and passes) share; nobody else includes it. */
#ifndef CNNSCOPE_PLAN_H
#define CNNSCOPE_PLAN_H

#include "graph.h"

/* One node at work. A relu's step also does the batch norm before it, and a max pooling's the relu before it with its
 * batch norm, and reads what the first of them reads. All pointers are into the lane's memory. */
typedef struct {
    const Node *node;
    const Node *fused;  /* the batch norm done by this relu or max pooling, or NULL */
    bool relu;          /* a max pooling that does the relu before it */
    int n;              /* values read */
    const Shape *in;    /* (n) their shapes, and layouts */
    const Layout *laid; /* (n) */
    const bool *flows;  /* (n) whether a gradient goes there */
    int batch;
    bool backward; /* whether a gradient passes through */

    /* Set by prepare. */
    bool reads_plain; /* reads and differentiates NCHW only */
    Layout layout;    /* of the output */
    void *kernel;     /* KConv, KAffine ... or NULL */
    size_t scratch_bytes, saved_bytes;
} Step;

typedef struct {
    float *out;
    const float *const *in; /* (n) in their layouts, or all plain */
    void *saved, *scratch;
} ForwardArgs;

typedef struct {
    float *const *din; /* (n) in the layouts of in; NULL where none is wanted. All of it is written. */
    const float *dout;
    const float *out;       /* only where the operation keeps them, see Op */
    const float *const *in; /* (n) */
    const void *saved;
    void *scratch;
    bool guided; /* relus pass no gradient below 0 */
} BackwardArgs;

typedef struct {
    const char *name;                           /* as in ONNX */
    int least, most;                            /* values read; INT_MAX: any number */
    void (*shape)(Node *node, const Shape *in); /* checks the node and sets its shape; dies when it does not fit */
    bool in_place;                              /* out may be one of in (of its size), and din[0] may be dout */
    bool keeps_output, keeps_inputs;            /* backward reads them */
    void (*prepare)(Step *step);
    void (*release)(Step *step); /* NULL: nothing to free */
    void (*forward)(const Step *step, Lane *lane, const ForwardArgs *args);
    void (*backward)(const Step *step, Lane *lane, const BackwardArgs *args);
} Op;

/* Tables by family, indexed by OpKind; name NULL where the operation is of another. */
extern const Op graph_layers[OP_COUNT], graph_maths[OP_COUNT], graph_moves[OP_COUNT], graph_norms[OP_COUNT];
const Op *graph_op(OpKind kind);

/* Any shape as (C, H, W) in C order: C = axis 0, H = axis 1 where there are three, W the rest. */
typedef struct {
    int C, H, W;
} Sides;
Sides graph_sides(Shape shape);

bool graph_all_blocked(const Step *step); /* every value read is in LAYOUT_BLOCKED */
void graph_same_shape(Node *node, const Shape *in);
void graph_check_constant(const Node *node, const Constant *constant, Shape expected, const char *what);
void graph_check_axis(const Node *node, int axis, int rank); /* 0 to rank - 1 */
int64_t graph_span(Shape shape, int from, int to);           /* product of dim[from .. to - 1] */

#endif
