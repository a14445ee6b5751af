/* attribution.h: which pixels or cells an output of the network rests on. Private to forward.c, pass.c, attribution*.c.
 *
 * A method is how inputs of passes are made, what is seeded at the output, and how gradients and values become a map:
 * the gradient at the image itself serves saliency, input x gradient and all class activation maps of all layers in one
 * backward pass; the others ask for passes of their own, over the same samples of the same batch. Memory is a few images
 * a lane. No result depends on what else is asked for, nor on the batch. */
#ifndef CNNSCOPE_ATTRIBUTION_H
#define CNNSCOPE_ATTRIBUTION_H

#include "graph.h"
#include "job.h"

typedef enum {
    METHOD_SALIENCY,
    METHOD_SALIENCY_SIGNED,
    METHOD_SALIENCY_SQUARED,
    METHOD_INPUT_X_GRADIENT,
    METHOD_GRADCAM,
    METHOD_GRADCAM_PLUS,
    METHOD_HIRESCAM,
    METHOD_LAYERCAM,
    METHOD_GUIDED_BACKPROP, /* from here on with passes of their own */
    METHOD_SMOOTHGRAD,
    METHOD_INTEGRATED_GRADIENTS,
    METHOD_OCCLUSION
} MethodKind;

typedef enum { EVIDENCE_DELETION, EVIDENCE_INSERTION, EVIDENCE_SPARSENESS, EVIDENCE_KINDS } EvidenceKind;

enum { METHOD_MAPS = 3, METHOD_PARTS = METHOD_MAPS + EVIDENCE_KINDS };

typedef struct {
    MethodKind kind;
    int node;           /* whose value or gradient is looked at; the input but for class activation maps */
    Shape layer;        /* of that node */
    int map[3];         /* C, H, W of the map; C = 1: (sample, y, x) */
    char variable[128]; /* in the results file */
    int maps, parts;    /* variables it has: map and bounds, and with the evidence that is asked for, in its order */
    size_t bytes[METHOD_PARTS]; /* of a sample in each */
    KAxis *rows, *columns;      /* that make a class activation map as large as the image; NULL: not needed */
} Method;

typedef struct {
    Job *job;
    Method *methods;
    int count;
    int target, against;                      /* as k_target takes them; against = target: none */
    bool tells_target;                        /* into the file: it is not just the prediction */
    int window, stride;                       /* of occlusion */
    bool evidence[EVIDENCE_KINDS], agreement; /* asked for */
    bool *unread; /* (nodes) whose values passes of their own do not look at: all but the logits */

    /* Of a pass, on the device. */
    int B, outputs;
    int64_t size, pixels;   /* of a sample's input; of a channel */
    int32_t *labels;        /* of this rank's samples; NULL: not looked at */
    int64_t *numbers;       /* their file positions; NULL likewise */
    float *baseline;        /* (size); NULL likewise */
    float *baseline_logits; /* (outputs); NULL likewise */
} Attribution;

/* --attribution, or its default, and what belongs to it. Exits 2 on what is wrong there. */
Attribution *attribution_new(Arena *arena, Job *job);

/* Declares the variables of a method over the dimension `samples`, and gives their numbers: map, low, high; of
 * integrated gradients map, delta, steps; of others the map alone; then its evidence. Collective. */
void attribution_declare(int variables[METHOD_PARTS], const Attribution *a, const Method *method, const char *samples,
                         int64_t length);
/* The variable of the target, or of what it is compared with; -1: not declared. */
int attribution_declare_target(const Attribution *a, bool against, const char *samples, int64_t length);

/* That of the agreement of methods, whose rows are (methods, methods) floats; -1: not declared. */
int attribution_declare_agreement(const Attribution *a, const char *samples, int64_t length);

void attribution_wants(const Method *method, bool *want_value, bool *want_gradient);

/* Before the batches of a pass of `count` samples a rank, with any of its lanes; file positions of these samples and
 * their labels (NULL: none), host. Collective. */
void attribution_start(Attribution *a, const Plan *plan, Lane *lane, const int64_t *numbers, const int32_t *labels,
                       int64_t count, int B);
void attribution_stop(Attribution *a);

/* What a lane has for it. */
typedef struct {
    int32_t *target, *against, *steps;
    float *seed, *map, *small, *low, *high, *x, *sum, *score, *occluded;
    float *planes, *tied; /* (methods, B, pixels): maps as large as the image, for the evidence; their tied ranks */
    float *magnitude, *area, *agreement;
    int32_t *rank;
    void *scratch;
    float *delta; /* host */
} AttributionLane;
size_t attribution_lane_bytes(const Attribution *a, int B);
AttributionLane attribution_lane_new(const Attribution *a);
void attribution_lane_free(AttributionLane *w);

/* Where a batch's rows go, host. */
typedef struct {
    char *target, *against, *agreement; /* NULL: nowhere */
    char *rows[LIST_MAX][METHOD_PARTS];
} AttributionRows;

/* All methods of a batch that has gone forward: the rank's samples from `at` on, `count` of them. What the lane's last
 * forward pass was is unknown afterwards. */
void attribution_batch(const Attribution *a, AttributionLane *w, const AttributionRows *to, const Plan *plan,
                       Lane *lane, const int32_t *prediction, int64_t at, int count);

/* ---- attribution_evidence.c ------------------------------------------------------------------------------------- */

bool attribution_has_evidence(const Attribution *a);
size_t attribution_evidence_bytes(const Attribution *a, int B); /* of a lane, the planes among them */
void attribution_evidence_new(AttributionLane *w, const Attribution *a);
void attribution_evidence_free(AttributionLane *w);

/* Of all methods of a batch, whose maps lie in w->planes, and x and the target in w. */
void attribution_evidence(const Attribution *a, AttributionLane *w, const AttributionRows *to, const Plan *plan,
                          Lane *lane, int count);

/* ---- attribution_baseline.c ------------------------------------------------------------------------------------- */

/* What --baseline says as x of the network, device (size). Collective. */
float *attribution_baseline(const Job *job, Lane *lane, int64_t size);

/* Points in [0, 1] and weights (n) of the integral of --ig-rule, in double. */
void attribution_rule(double *points, double *weights, const char *rule, int n);

#endif
