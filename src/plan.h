/* plan.h: what graph.c (the operations) and plan.c (memory and passes) share; nobody else includes it. */
#ifndef CNNSCOPE_PLAN_H
#define CNNSCOPE_PLAN_H

#include "graph.h"

/* One node at work. In a fused pair (batch norm, then relu) the relu's step does both, and reads what the batch norm
 * reads. All pointers are into the lane's memory. */
typedef struct {
    const Node *node;
    const Node *fused; /* the batch norm done by this relu, or NULL */
    const Node *input; /* the node read */
    Layout layout;     /* of the output */
    Layout in_layout;  /* of the input as this step reads it: PLAIN where the operation needs it so */
    int batch;
    bool backward; /* whether a gradient passes through */
    void *kernel;  /* KConv, KAffine ... or NULL */
    size_t scratch_bytes, saved_bytes;
} Step;

typedef struct {
    float *out;
    const float *in;
    void *saved, *scratch;
} ForwardArgs;

typedef struct {
    float *din;
    const float *dout;
    const float *out; /* only where the operation keeps it, see Op */
    const void *saved;
    void *scratch;
} BackwardArgs;

typedef struct {
    const char *name;                    /* as in ONNX */
    void (*shape)(Node *node, Shape in); /* checks the node and sets its shape; dies when it does not fit */
    bool plain_input;                    /* reads and differentiates NCHW only */
    bool in_place;                       /* out may be in, and din may be dout */
    bool keeps_output;                   /* backward reads out */
    void (*prepare)(Step *step);         /* makes step->kernel, sets layout, scratch_bytes, saved_bytes */
    void (*release)(Step *step);
    void (*forward)(const Step *step, Lane *lane, const ForwardArgs *args);
    void (*backward)(const Step *step, Lane *lane, const BackwardArgs *args);
} Op;

const Op *graph_op(OpKind kind);

#endif
