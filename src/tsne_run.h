/* tsne_run.h: one t-SNE, between tsne.c (descent) and tsne_affinities.c (points and P). */
#ifndef CNNSCOPE_TSNE_RUN_H
#define CNNSCOPE_TSNE_RUN_H

#include "stages.h"

typedef struct {
    const Matrix *x;
    const TsneOptions *options;
    const char *name;
    int64_t points, all_blocks; /* all_blocks: of all ranks, padding included */
    TsneShape shape;
    int64_t *order; /* host: sample at each place of the kd-order */
    float *packed;  /* device: points (blocks, D, 16) */
    float *rows;    /* device: TSNE_ROW_NUMBERS of each row (all_blocks, .., 16) */
    TsneAffinities affinities;
    double p_sum, p_log_p; /* of the whole P, as kept */
    float *y;              /* device (all_blocks, A, 16) */
    float *update, *gains; /* device, of the rank (count, A, 16) */
    double *attraction;
    int64_t *repulsion, *z; /* z: (all_blocks) */
    double *partial;        /* device (count): sums of a block, on their way to sum_over_blocks */
    void *scratch;
    Arena *arena; /* of what is here on the host */
} TsneRun;

/* Collective. Sets order and packed: all points on every rank, in kd-order. */
void tsne_gather_points(TsneRun *run);

/* Collective. Sets the rank's affinities, p_sum and p_log_p, and the affinity_ numbers of the result; frees packed.
 * Dies when P does not fit in memory. */
void tsne_find_affinities(TsneRun *run, TsneResult *result);

/* Collective. Dies unless the value, the same on all ranks, is a finite number. */
void tsne_check_finite(const TsneRun *run, double value, const char *otherwise);

#endif
