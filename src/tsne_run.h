/* tsne_run.h: the t-SNE of a matrix, between tsne.c (descent) and tsne_affinities.c (points and P). */
#ifndef CNNSCOPE_TSNE_RUN_H
#define CNNSCOPE_TSNE_RUN_H

#include "stages.h"

typedef enum { TSNE_REPULSION, TSNE_ATTRACTION, TSNE_UPDATE, TSNE_COMMUNICATION, TSNE_PARTS } TsnePart;

enum { TSNE_CHECK_EVERY = 50 }; /* iterations between looks at the error: scikit-learn's */

/* Where the descent is: with map, update and gains, all that the next iteration depends on. */
typedef struct {
    int64_t iteration; /* the next one */
    TsneStep step;
    double best; /* divergence, in this phase */
    int64_t best_iteration, patience;
    int64_t phase_end; /* the iteration that ends the exaggeration; -1: it has ended */
    int64_t stopped;   /* the rule for stopping has spoken */
} TsneDescent;

typedef struct {
    const Matrix *x;
    const TsneOptions *options;
    const TsneMap *map; /* the one that is being made */
    const char *name;
    int64_t points, all_blocks; /* all_blocks: of all ranks, padding included */
    TsneShape shape;
    int64_t *order; /* host: sample at each place of the order of t-SNE */
    float scale;    /* of the points, a power of two: distances are of x times scale */
    float *packed;  /* device: points (blocks, D, 16) */
    float *rows;    /* device: numbers of each row, of all perplexities (all_blocks, .., TSNE_ROW_NUMBERS, 16) */
    float *sigma[PERPLEXITIES_MAX];        /* host (points), sample order: of each perplexity's first kernel */
    TsneTileSize *sizes[PERPLEXITIES_MAX]; /* host (tiles): of each P that is wanted, else NULL */
    double least[PERPLEXITIES_MAX];        /* times N: the least conditional probability that is kept in it */
    double free_bytes;                     /* when it began, on the rank that had least */

    bool stage_begun; /* that of the first P */

    /* Of the P at hand. */
    TsneAffinities affinities;
    double *p_row;         /* host (points), in their order: sums of the rows of P, as kept */
    double p_sum, p_log_p; /* of the whole P, as kept */
    TsneResult p_facts;    /* its affinity_ numbers, affinities and bytes */

    /* Of the map at hand. */
    float *y;              /* device (all_blocks, A, 16) */
    float *update, *gains; /* device, of the rank (count, A, 16) */
    int64_t *sums;         /* device (ranks, k_tsne_sums): forces of this rank's pairs on all points */
    int64_t *sums_mine;    /* device (k_tsne_sums): of all pairs on this rank's points, and the totals */
    double *norm;          /* device (count): of each block */
    void *scratch;
    DevRepeat *forces;          /* find_forces without the divergence, of the descent */
    double seconds[TSNE_PARTS]; /* of this rank, since the descent began */
    TsneDescent descent;
    Arena *arena; /* of what is here on the host */
} TsneRun;

/* What a rank of so many owns of a t-SNE. */
TsneShape tsne_shape(int64_t points, int width, int axes, int rank, int ranks);

/* Bytes of a rank, with a share of P of that size. Three times may be the one that takes most: while the points are
 * gathered, while P is made, and the descent. Order and gathering are host memory, the rest is the device's. */
typedef struct {
    double order, gathering, making, affinities, descent;
    double most; /* at one time */
} TsneBytes;
TsneBytes tsne_needs(const TsneShape *shape, const TsneOptions *options, TsneTileSize share);

double tsne_p_bytes(TsneTileSize share);

/* Bytes this rank's t-SNE takes at most at one time, with a share of P of that size: on the host and the device. */
double tsne_bytes(const TsneRun *run, TsneTileSize share);

int tsne_kernels(const TsneOptions *options); /* perplexities of all maps */

/* Collective. Dies unless the largest share, and all else, fits into what the rank with least memory had when t-SNE
 * began (run->free_bytes), naming what would. total: of all ranks. */
void tsne_refuse_too_large(const TsneRun *run, const TsneTileSize *total, const TsneTileSize *most);

/* Collective. Sets order and packed: all points on every rank, in that order. */
void tsne_gather_points(TsneRun *run);

/* Collective. Begins the stage of affinities. The rows of all perplexities, from one computation of distances; their
 * sigma; and the sizes of those P that are wanted, as they are tried first. Dies when one of them does not fit in memory. */
void tsne_find_rows(TsneRun *run, const bool *wanted);

/* Collective. Ends the stage. The rank's part of one P and what belongs to it: no row drops more than 2^-23 of its weight.
 * Dies where that takes a larger P than the one that was counted, and it does not fit in memory. last: no other P will be
 * made, packed and rows are freed. */
void tsne_find_affinities(TsneRun *run, int perplexity, bool last);
void tsne_free_affinities(TsneRun *run);

/* Collective, of tsne_state.c: what a checkpoint knows of run->map.
 *
 * tsne_load_result: the whole result, where that t-SNE had ended; map in the arena. tsne_load: the state that was saved,
 * into descent, y, update, gains and the history, where there is one for these points and axes; false: all is as it was.
 * P is not kept: it takes gigabytes, and no longer than a few iterations. */
bool tsne_load_result(TsneResult *result, Arena *arena, const TsneRun *run);
bool tsne_load(TsneRun *run, TsneResult *result);
void tsne_save(const TsneRun *run, const TsneResult *result);
void tsne_save_result(const TsneRun *run, const TsneResult *result);

/* Collective. Dies unless the value, the same on all ranks, is a finite number. */
void tsne_check_finite(const TsneRun *run, double value, const char *otherwise);

#endif
