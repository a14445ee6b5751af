/* neighbors.c: nearest points, and how many are nearer than given ones. See kernels.h.
 *
 * Each thread takes a group of 16-row blocks through the whole piece of columns, 16 at a time: their distances, then who
 * of them belongs to the nearest, and a comparison with each point asked for. Price of 16 pairs: 2 D + 2 A + 3 vector
 * operations, and one insertion for each of the about K ln(N / K) columns of a row that were among its nearest once. */
#include <string.h>

#include "tsne_inner.h"

enum {
    NARROW = 64,    /* up to this many dimensions all points stay in the cache, and a group is one block */
    WIDE_GROUP = 4, /* else a group of four reads the points once for all */
};

static int64_t blocks_of(int64_t points);
static void measure_block(float *distance, const int32_t *asked, int A, int64_t block, const float *x,
                          const float *columns, const NeighborShape *shape, float scale);
static void set_self(float *d, const NeighborShape *shape, int64_t block, int64_t column);

void k_neighbors_measure(float *distance, const int32_t *asked, int A, const float *x, const float *columns,
                         const NeighborShape *shape, float scale) {
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t b = 0; b < blocks_of(shape->rows); b++)
        measure_block(distance + b * A * TSNE_BLOCK, asked + b * A * TSNE_BLOCK, A, b, x, columns, shape, scale);
}

void k_neighbors_find(int32_t *index, float *distance, int K, int32_t *nearer, const int32_t *asked,
                      const float *asked_distance, int A, const float *x, const float *columns,
                      const NeighborShape *shape) {
    const TsneInner *inner = tsne_inner();
    const int64_t blocks = blocks_of(shape->rows), block_floats = (int64_t)shape->width * TSNE_BLOCK;
    const int group = shape->width > NARROW ? WIDE_GROUP : 1;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t b = 0; b < blocks; b += group) {
        const int present = blocks - b < group ? (int)(blocks - b) : group;
        for (int64_t c = 0; c < shape->columns; c += TSNE_BLOCK) {
            const int n = shape->columns - c < TSNE_BLOCK ? (int)(shape->columns - c) : TSNE_BLOCK;
            const int32_t first = (int32_t)(shape->column_first + c);
            float d[WIDE_GROUP * TSNE_BLOCK * TSNE_BLOCK];
            inner->distances(d, TSNE_BLOCK * TSNE_BLOCK, present, x + b * block_floats,
                             columns + c / TSNE_BLOCK * block_floats, shape->width);
            for (int i = 0; i < present; i++) {
                float *own = d + i * TSNE_BLOCK * TSNE_BLOCK;
                set_self(own, shape, b + i, first);
                if (K > 0)
                    inner->keep_nearest(index + (b + i) * K * TSNE_BLOCK, distance + (b + i) * K * TSNE_BLOCK, K, own,
                                        n, first);
                inner->count_nearer(nearer + (b + i) * A * TSNE_BLOCK, asked + (b + i) * A * TSNE_BLOCK,
                                    asked_distance + (b + i) * A * TSNE_BLOCK, A, own, n, first);
            }
        }
    }
}

static int64_t blocks_of(int64_t points) {
    return (points + TSNE_BLOCK - 1) / TSNE_BLOCK;
}

/* distance, asked (A, 16) of the block. Lanes without a point to measure do what the first row does with itself. */
static void measure_block(float *distance, const int32_t *asked, int A, int64_t block, const float *x,
                          const float *columns, const NeighborShape *shape, float scale) {
    const int64_t D = shape->width, row = block * TSNE_BLOCK;
    for (int a = 0; a < A; a++) {
        const float *own[TSNE_BLOCK], *other[TSNE_BLOCK];
        float found[TSNE_BLOCK];
        bool there[TSNE_BLOCK], any = false;
        for (int l = 0; l < TSNE_BLOCK; l++) {
            const int64_t j = asked[a * TSNE_BLOCK + l] - shape->column_first;
            there[l] = row + l < shape->rows && asked[a * TSNE_BLOCK + l] >= 0 && j >= 0 && j < shape->columns;
            own[l] = x + (there[l] ? row + l : row) * D;
            other[l] = there[l] ? columns + j * D : own[l];
            any |= there[l];
        }
        if (!any)
            continue;
        tsne_inner()->measure(found, own, other, shape->width, scale);
        for (int l = 0; l < TSNE_BLOCK; l++)
            if (there[l])
                distance[a * TSNE_BLOCK + l] = found[l];
    }
}

/* A point is no neighbour of its own. */
static void set_self(float *d, const NeighborShape *shape, int64_t block, int64_t column) {
    const int64_t apart = shape->row_first + block * TSNE_BLOCK - column;
    if (apart <= -TSNE_BLOCK || apart >= TSNE_BLOCK)
        return;
    for (int l = 0; l < TSNE_BLOCK; l++)
        if (apart + l >= 0 && apart + l < TSNE_BLOCK)
            d[(apart + l) * TSNE_BLOCK + l] = TSNE_FAR;
}
