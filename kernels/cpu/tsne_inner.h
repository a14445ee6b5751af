/* tsne_inner.h: the innermost loops of t-SNE, chosen once for the machine's vectors. See tsne_inner.c.
 *
 * Legend: N points, D dimensions, A axes of the map, 16 rows of a block as lanes. */
#ifndef CNNSCOPE_TSNE_INNER_H
#define CNNSCOPE_TSNE_INNER_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels.h"

/* Rows and columns of a tile of the repulsion, and the stride of its column arrays, whose first 15 entries are repeated
 * past the end so that a window of 16 may wrap around. */
enum { TSNE_TILE = 512, TSNE_STRIDE = TSNE_TILE + 16 };

/* Distances no point has: of a point to itself, and of padding. */
#define TSNE_FAR 1e30f

typedef struct {
    double kept[16], dropped[16], p_log_p[16]; /* sums of c(j|i) + c(i|j), and of p ln p over the kept */
    int64_t entries;                           /* kept */
} TsneRowSums;

typedef struct {
    /* fi (TSNE_TILE / 16, A, 16), zi (TSNE_TILE / 16, 16): sums of w^2 (yi - yj) and of w over the tile's m columns;
     * fj (A, TSNE_STRIDE): the same forces from the columns' side, added. All TSNE_TILE rows; yj (A, TSNE_STRIDE). */
    void (*repel_both)(float *fi, float *zi, float *fj, const float *yi, const float *yj, int m);
    /* One block of rows, its side only, without the step s = self (-1: none). fi (A, 16), zi (16). */
    void (*repel_rows)(float *fi, float *zi, const float *yi, const float *yj, int m, int self);
    /* f (A, 16) = sum of p w (yi - yj) over a block's columns; cross (16), if not NULL, = - sum of p ln w. */
    void (*attract)(double *f, double *cross, const float *value, const uint32_t *column, int64_t columns,
                    const float *yi, const float *y);
} TsneMapLoops;

typedef struct {
    TsneMapLoops map[2]; /* of 2 and of 3 axes */
    /* Squared distances of `blocks` blocks of rows xi (blocks, D, 16) from the 16 points xj (D, 16):
     * d + b * stride (16 points, 16 rows). */
    void (*distances)(float *d, int64_t stride, int blocks, const float *xi, const float *xj, int D);
    /* Least and sum of d (n, 16) in each row, entries of TSNE_FAR aside. */
    void (*row_range)(float *low, double *sum, const float *d, int64_t n);
    /* sums (3, 16): of e, t e, t^2 e with t = beta (d - low), e = exp(-t). */
    void (*moments)(double *sums, const float *d, int64_t n, const float *beta, const float *low);
    /* Columns of a block of rows where any row keeps its pair: c(j|i) or c(i|j) is at least `least`. Their number; with
     * value and column not NULL also p = (c(j|i) + c(i|j)) * p_scale (columns, 16), zero where not kept, and sums. */
    int64_t (*select)(float *value, uint32_t *column, TsneRowSums *sums, const float *d, int64_t n, const float *mine,
                      const float *rows, float least, float p_scale);
} TsneInner;

const TsneInner *tsne_inner(void);

#endif
