/* plan_parts.h: the memory plan itself, between plan.c, which makes it, and plan_run.c, which follows it. */
#ifndef CNNSCOPE_PLAN_PARTS_H
#define CNNSCOPE_PLAN_PARTS_H

#include "plan.h"

enum { NONE = -1 };

typedef struct {
    size_t bytes, offset;
    int from, to;
} Slot;

/* A value read by a step. */
typedef struct {
    int node;
    bool flows;  /* a gradient goes there */
    bool direct; /* ... written where it belongs: the first there, in the same layout */
    bool first;  /* ... before any other */
    int part;    /* slot of what is not direct */
} Edge;

typedef struct {
    Step step;
    int n;
    Edge *edges;                  /* (n) past what this step does of those before */
    Shape *in;                    /* (n), as step wants them */
    Layout *laid;                 /* (n) */
    bool *flows_to;               /* (n) */
    bool runs;                    /* in forward */
    bool graded;                  /* has a gradient */
    bool flows;                   /* backward runs from this node to some it reads */
    int value, plain, saved;      /* slots: value in its own layout; its NCHW copy (same slot if it is NCHW) */
    int gradient, plain_gradient; /* slots; only the ones needed */
    bool value_wanted, gradient_wanted;
    bool plain_read; /* by a node */
} Place;

struct Plan {
    const Graph *graph;
    int batch;
    Place *places; /* of each node */
    Slot *slots;
    int slot_count;
    int scratch; /* slot */
    int lowest;  /* node at which backward stops, or NONE */
    size_t lane_bytes;
};

/* The layout in which a step reads the value of an edge, and the slot where it lies so. */
Layout plan_read_layout(const Plan *plan, const Place *p, int k);
int plan_read_slot(const Plan *plan, const Place *p, int k);

#endif
