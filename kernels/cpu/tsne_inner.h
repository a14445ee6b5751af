/* tsne_inner.h: the innermost loops of t-SNE and of neighbours, chosen once for the machine's vectors. See tsne_inner.c.
 *
 * Legend: N points, D dimensions, A axes of the map, 16 rows of a block as lanes. A window array repeats its 16 columns,
 * so that 16 floats from place s on are the columns (l + s) modulo 16 that diagonal s pairs with lanes l. */
#ifndef CNNSCOPE_TSNE_INNER_H
#define CNNSCOPE_TSNE_INNER_H

#include <omp.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels.h"
#include "shared_place.h"

/* Four blocks of rows are a group, whose cells in a column's block stand together; a cell has 256 pairs. */
enum { TSNE_WINDOW = 2 * TSNE_BLOCK, TSNE_GROUP = 4, TSNE_CELL = TSNE_BLOCK * TSNE_BLOCK };

/* Of a group's cells in a column, and a line more: else the same diagonals of all columns would share a set of the cache. */
enum { TSNE_COLUMN_CELLS = TSNE_GROUP * TSNE_CELL + TSNE_BLOCK };

/* Of a cell, for its rows and for its columns: sums of c(j|i) + c(i|j). p_log_p: of p ln p over the kept pairs. */
typedef struct {
    double kept[2][TSNE_BLOCK], dropped[2][TSNE_BLOCK], p_log_p;
} TsneCellSums;

/* The values of P that are still to be asked for, before the loops come to them: memory works while the repulsion
 * computes. */
typedef struct {
    const float *next, *end;
} TsneAhead;

typedef void (*TsneRepel)(float *fi, float *zi, float *fj, float *w, const float *yi, const float *yj,
                          const uint8_t *columns, int count, const float *const *mask, TsneAhead *ahead);

typedef struct {
    /* A group of rows against some blocks of a tile's columns, numbered in columns (count). fi (TSNE_GROUP, A, 16), zi (16) += sums of
     * w^2 (yi - yj) and of w; fj (TSNE_TILE_BLOCKS, A, TSNE_WINDOW) += the same forces from the columns' side, of a
     * column in two places. w, if not NULL (TSNE_TILE_BLOCKS, TSNE_COLUMN_CELLS): of their (TSNE_GROUP, 16 diagonals, 16). yi like fi, yj like fj. mask, if
     * not NULL: for each block of rows 1 or 0 (16 diagonals, 16), which w is multiplied by. The second is for processors
     * of cpu_divides. */
    TsneRepel repel[2];
    /* fi (TSNE_GROUP, A, 16), fj (TSNE_TILE_BLOCKS, A, 16) += p w (yi - yj) and its opposite, over cells of the group; value
     * moves on behind their p. w, yi, yj as above. Returns, if asked for, - sum of p ln w, else 0. */
    double (*attract[2])(float *fi, float *fj, const TsneCell *cell, int64_t cells, const float **value, const float *w,
                         const float *yi, const float *yj, bool cross, TsneAhead *ahead);
    /* sums (2, 16): of p ln(p / w) over one cell, of its rows and of its columns; yi (A, 16), yj (A, TSNE_WINDOW): of its
     * blocks. */
    void (*point_logs)(float *sums, const TsneCell *cell, const float *value, const float *yi, const float *yj);
} TsneMapLoops;

typedef struct {
    TsneMapLoops map[2]; /* of 2 and of 3 axes */
    /* sum (blocks, 2, floats), the first of each two, += term (blocks, floats) * scale, rounded towards zero; floats is a
     * multiple of 16. */
    void (*add_fixed)(int64_t *sum, const float *term, int blocks, int floats, double scale);
    /* Squared distances of `blocks` blocks of rows xi (blocks, D, 16) from the 16 points xj (D, 16):
     * d + b * stride (16 points, 16 rows). */
    void (*distances)(float *d, int64_t stride, int blocks, const float *xi, const float *xj, int D);
    /* Least and sum of d (n, 16) in each row, entries of TSNE_FAR aside. */
    void (*row_range)(float *low, double *sum, const float *d, int64_t n);
    /* sums (3, 16): of e, t e, t^2 e with t = beta (d - low), e = exp(-t). */
    void (*moments)(double *sums, const float *d, int64_t n, const float *beta, const float *low);
    /* d (16 diagonals, 16): squared distances of the rows xi (D, 16) from the columns xj (D, TSNE_WINDOW). */
    void (*cell_distances)(float *d, const float *xi, const float *xj, int D);
    /* mask (16) of each diagonal: the pairs with c(j|i) or c(i|j) at least `least`; their number. With value and sums not
     * NULL also their p = (c(j|i) + c(i|j)) * p_scale, diagonal by diagonal, and the sums. Rows' numbers: of the block's
     * rows (kernels, TSNE_ROW_NUMBERS, 16), of its columns (.., TSNE_WINDOW). */
    int (*select)(uint16_t *mask, float *value, TsneCellSums *sums, const float *d, const float *rows,
                  const float *columns, int kernels, float least, float p_scale);
    /* Of neighbours. distance (16): of 16 points x[l] (D) from columns[l] (D), times scale, the bits of `distances`. */
    void (*measure)(float *distance, const float *const *x, const float *const *columns, int D, float scale);
    /* index, distance (K, 16), nearest first: of those and of n points numbered from `first`, at distances d (n, 16). */
    void (*keep_nearest)(int32_t *index, float *distance, int K, const float *d, int n, int32_t first);
    /* nearer (A, 16) += how many of those n points are nearer than point `asked` (A, 16) at asked_distance (A, 16). */
    void (*count_nearer)(int32_t *nearer, const int32_t *asked, const float *asked_distance, int A, const float *d,
                         int n, int32_t first);
    /* Of placing. d (n, 16) becomes exp(-beta (d - low)). */
    void (*exponentials)(float *d, int64_t n, const float *beta, const float *low);
    /* In maps of 2 and of 3 axes: sums (place_sums, 16) of shared_place.h at y (A, 16), over n fixed points with the
     * weights e (n, 16). map (.., A, 16). */
    void (*place[2])(double *sums, const float *e, int64_t n, const float *map, const float *y);
} TsneInner;

const TsneInner *tsne_inner(void);

#endif
