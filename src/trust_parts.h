/* trust_parts.h: the measures of one layer and its maps, between trust.c and its parts. */
#ifndef CNNSCOPE_TRUST_PARTS_H
#define CNNSCOPE_TRUST_PARTS_H

#include "stages.h"

enum { TRUST_MAPS_MAX = 2 };

/* Points whose distances, and places among the neighbours, are asked for: device, (blocks, count, 16). */
typedef struct {
    int count;
    int32_t *point;  /* numbers, -1: none */
    float *distance; /* squared, scaled */
    int32_t *nearer; /* NULL: only the distance is wanted */
} TrustAsked;

/* The layer, or a map of it: what is known of each of this rank's points. Host, in sample order. */
typedef struct {
    const char *prefix; /* of its variables: LAYER or LAYER_MAP */
    const char *what;   /* for long_name: "logits", "the t-SNE map of logits" */
    const Matrix *x;
    float scale;              /* a power of two: distances are of x times scale */
    float *packed;            /* device: this rank's points */
    int32_t *near;            /* device (blocks, K, 16) */
    float *near_distance;     /* device, likewise, squared and scaled */
    int32_t *neighbor;        /* (rows, K) nearest first */
    float *neighbor_distance; /* (rows, K), in the units of x */
    int32_t *nearer;          /* (rows, A) of those asked for: the nearest of each map, or of the layer */
    float *pairs;             /* (pairs of the job) squared, scaled; on the first rank */
} TrustSpace;

/* Of one map; overall numbers are those of all mapped samples. */
typedef struct {
    float *trustworthiness, *continuity, *recall; /* (rows); NULL of the layer itself */
    float *label_agreement;                       /* (rows); NULL without labels */
    double trustworthiness_mean, continuity_mean, recall_mean;
    double label_agreement_mean, knn_accuracy, knc, cpd, stress; /* NAN: not defined */
} TrustNumbers;

typedef struct {
    Job *job;
    Arena *arena;
    Shard shard; /* of the mapped samples */
    const int64_t *keep;
    int64_t *firsts, *counts; /* (ranks) */
    int neighbors, recalled;  /* K; of them for the recall */
    int pairs_per_row;
    bool all_pairs;
    int64_t pairs;   /* in all */
    int32_t *labels; /* (total) of all mapped samples, -1 = none; NULL: nobody has one */
    int64_t categories;
    int class_neighbors;                  /* of the classes' means; 0: too few classes */
    TrustSpace space[1 + TRUST_MAPS_MAX]; /* the layer, then maps */
    TrustNumbers numbers[1 + TRUST_MAPS_MAX];
    int spaces;
} Trust;

/* ---- trust_pass.c: all pairs of points -------------------------------------------------------------------------- */

/* Collective. Sets neighbor, neighbor_distance, nearer and pairs of all spaces. */
void trust_find(Trust *trust);

/* Collective. (rows, K), in the arena: each of this rank's points' nearest, nearest first. */
int32_t *trust_nearest(const Trust *trust, Arena *arena, const Matrix *x);

/* Collective, of trust.c. Sets what the shard and the options say. False: there are no neighbours, or none are asked for. */
bool trust_begin(Trust *trust);

/* ---- trust_overall.c: numbers of a map from those of pairs and of classes ---------------------------------------- */

/* Collective. Sets cpd and stress of the maps. */
void trust_pairs(Trust *trust);
/* Collective. Sets knc of the maps. */
void trust_classes(Trust *trust);

/* ---- trust_state.c: in the checkpoint, under the stage's name ----------------------------------------------------- */

/* Collective. What trust_write and trust_suspects need; false where not all of it is there. */
bool trust_restore(Trust *trust, const char *stage);
void trust_keep(const Trust *trust, const char *stage); /* Collective. */

/* ---- trust_output.c ---------------------------------------------------------------------------------------------- */

/* Collective. */
void trust_write(const Trust *trust);

/* Collective. A number of each sample, values of this rank's mapped ones; and one of all, none where it is NAN. PREFIX
 * SUFFIX and .._overall; format: long_name, %s is the space; attribute: one that the numbers depend on. Gives the variable. */
int trust_write_samples(const Trust *trust, const TrustSpace *space, const char *suffix, const char *format,
                        const float *values, const char *attribute, int64_t number);
void trust_write_overall(const Trust *trust, const TrustSpace *space, const char *suffix, const char *format,
                         double value, const char *attribute, int64_t number);

/* Rows of the file (count, each) <- rows of the mapped samples, of numbers of so many bytes; `none` where a sample is not
 * mapped. */
void *trust_rows(const Trust *trust, Arena *arena, const void *values, size_t bytes, int each, const void *none);

/* Collective. The likely label errors of the layer (trust_suspects.c). */
void trust_suspects(const Trust *trust);

#endif
