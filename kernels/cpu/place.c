/* place.c: new points in a map of fixed ones. See kernels.h.
 *
 * Each thread takes 16 new points, the lanes: their distances to all fixed points become their distributions in its
 * scratch, and all that follows passes over these: PLACE_STARTS looks, then PLACE_DESCENTS descents of about 10 passes, in
 * which lanes that are done wait for the others. */
#include <omp.h>
#include <string.h>

#include "shared_place.h"
#include "tsne_inner.h"

/* Sixteen new points and the fixed ones. */
typedef struct {
    const PlaceShape *shape;
    const float *map;
    float *e; /* (points, 16): p * mass */
    double mass[TSNE_BLOCK], entropy[TSNE_BLOCK];
    int32_t start[PLACE_STARTS * TSNE_BLOCK]; /* fixed points, nearest first, then by energy */
    int starts, rows;
} Places;

static void find_distances(Places *p, const float *x, const float *points);
static void find_nearest(Places *p);
static void find_distributions(Places *p, double perplexity);
static void sort_starts(Places *p);
static void descend(float *y, double *kl, const Places *p, int start);
static void look(double *sums, const Places *p, const float *y);

static int64_t columns_of(int64_t points) {
    return (points + TSNE_BLOCK - 1) / TSNE_BLOCK * TSNE_BLOCK;
}

size_t k_place_scratch(const PlaceShape *shape) {
    return (size_t)omp_get_max_threads() * (size_t)columns_of(shape->points) * TSNE_BLOCK * sizeof(float);
}

void k_place(float *y, double *kl, const float *x, const float *points, const float *map, const PlaceShape *shape,
             double perplexity, void *scratch) {
    const int A = shape->axes;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t b = 0; b < (shape->rows + TSNE_BLOCK - 1) / TSNE_BLOCK; b++) {
        const int64_t left = shape->rows - b * TSNE_BLOCK;
        Places p = {.shape = shape,
                    .map = map,
                    .e = (float *)scratch + omp_get_thread_num() * columns_of(shape->points) * TSNE_BLOCK,
                    .starts = shape->points < PLACE_STARTS ? (int)shape->points : PLACE_STARTS,
                    .rows = left < TSNE_BLOCK ? (int)left : TSNE_BLOCK};
        find_distances(&p, x + b * shape->width * TSNE_BLOCK, points);
        find_nearest(&p);
        find_distributions(&p, perplexity);
        sort_starts(&p);
        for (int d = 0; d < PLACE_DESCENTS && d < p.starts; d++)
            descend(y + b * A * TSNE_BLOCK, kl + b * TSNE_BLOCK, &p, d);
    }
}

/* e <- squared distances. */
static void find_distances(Places *p, const float *x, const float *points) {
    const int64_t block_floats = (int64_t)p->shape->width * TSNE_BLOCK;
    for (int64_t c = 0; c < columns_of(p->shape->points) / TSNE_BLOCK; c++)
        tsne_inner()->distances(p->e + c * TSNE_BLOCK * TSNE_BLOCK, TSNE_BLOCK * TSNE_BLOCK, 1, x,
                                points + c * block_floats, p->shape->width);
}

static void find_nearest(Places *p) {
    float distance[PLACE_STARTS * TSNE_BLOCK];
    for (int i = 0; i < p->starts * TSNE_BLOCK; i++) {
        p->start[i] = INT32_MAX;
        distance[i] = NEIGHBOR_NONE;
    }
    for (int64_t c = 0; c < p->shape->points; c += TSNE_TILE) {
        const int64_t left = p->shape->points - c;
        tsne_inner()->keep_nearest(p->start, distance, p->starts, p->e + c * TSNE_BLOCK,
                                   left < TSNE_TILE ? (int)left : TSNE_TILE, (int32_t)c);
    }
}

/* The entropy of each row to that of the perplexity, as for the rows of a t-SNE; then e from the distances. */
static void find_distributions(Places *p, double perplexity) {
    const TsneInner *inner = tsne_inner();
    const int64_t N = p->shape->points;
    const double wanted = tsne_log(perplexity);
    float low[TSNE_BLOCK], beta[TSNE_BLOCK];
    TsneSearch search[TSNE_BLOCK];
    double total[TSNE_BLOCK], sums[3 * TSNE_BLOCK];
    inner->row_range(low, total, p->e, N);
    for (int l = 0; l < TSNE_BLOCK; l++) {
        search[l] = tsne_search_begin(total[l] / (double)N - low[l], l < p->rows);
        beta[l] = (float)search[l].beta;
    }
    bool all_done = false;
    for (int pass = 0; pass < TSNE_PASSES_MAX && !all_done; pass++) {
        inner->moments(sums, p->e, N, beta, low);
        all_done = true;
        for (int l = 0; l < TSNE_BLOCK; l++) {
            if (search[l].done)
                continue;
            const double sum = sums[l], mean = sums[TSNE_BLOCK + l] / sum;
            p->mass[l] = sum;
            p->entropy[l] = tsne_log(sum) + mean;
            tsne_search_step(&search[l], p->entropy[l], wanted, sums[2 * TSNE_BLOCK + l] / sum - mean * mean);
            if (pass + 1 < TSNE_PASSES_MAX && !search[l].done)
                beta[l] = (float)search[l].beta;
            all_done = all_done && search[l].done;
        }
    }
    inner->exponentials(p->e, N, beta, low);
}

static float place_of(const Places *p, int32_t point, int axis) {
    return p->map[(point / TSNE_BLOCK * p->shape->axes + axis) * TSNE_BLOCK + point % TSNE_BLOCK];
}

/* Lowest energy first; ties as they were, the nearest first. */
static void sort_starts(Places *p) {
    const int A = p->shape->axes;
    float y[3 * TSNE_BLOCK];
    double sums[PLACE_SUMS_MOST * TSNE_BLOCK], energy[PLACE_STARTS * TSNE_BLOCK], own[PLACE_SUMS_MOST];
    for (int k = 0; k < p->starts; k++) {
        for (int l = 0; l < TSNE_BLOCK; l++)
            for (int a = 0; a < A; a++)
                y[a * TSNE_BLOCK + l] = place_of(p, p->start[k * TSNE_BLOCK + l], a);
        look(sums, p, y);
        for (int l = 0; l < p->rows; l++) {
            for (int i = 0; i < place_sums(A); i++)
                own[i] = sums[i * TSNE_BLOCK + l];
            const double found = place_model(own, p->mass[l], A).energy;
            const int32_t point = p->start[k * TSNE_BLOCK + l];
            int at = k;
            for (; at > 0 && found < energy[(at - 1) * TSNE_BLOCK + l]; at--) {
                energy[at * TSNE_BLOCK + l] = energy[(at - 1) * TSNE_BLOCK + l];
                p->start[at * TSNE_BLOCK + l] = p->start[(at - 1) * TSNE_BLOCK + l];
            }
            energy[at * TSNE_BLOCK + l] = found;
            p->start[at * TSNE_BLOCK + l] = point;
        }
    }
}

/* y (A, 16), kl (16) <- where the descents from that start end, if that is the first or lower than what is there. */
static void descend(float *y, double *kl, const Places *p, int start) {
    const int A = p->shape->axes;
    PlaceSearch search[TSNE_BLOCK];
    float next[3 * TSNE_BLOCK] = {0}, first[3];
    double sums[PLACE_SUMS_MOST * TSNE_BLOCK], own[PLACE_SUMS_MOST];
    for (int l = 0; l < p->rows; l++) {
        for (int a = 0; a < A; a++)
            first[a] = place_of(p, p->start[start * TSNE_BLOCK + l], a);
        search[l] = place_begin(first, A);
    }
    for (bool all_done = false; !all_done;) {
        all_done = true;
        for (int l = 0; l < p->rows; l++)
            for (int a = 0; a < A; a++)
                next[a * TSNE_BLOCK + l] = search[l].next[a];
        look(sums, p, next);
        for (int l = 0; l < p->rows; l++) {
            if (search[l].done)
                continue;
            for (int i = 0; i < place_sums(A); i++)
                own[i] = sums[i * TSNE_BLOCK + l];
            place_step(&search[l], own, p->mass[l], A);
            all_done = all_done && search[l].done;
        }
    }
    for (int l = 0; l < p->rows; l++) {
        const double found = search[l].model.energy - p->entropy[l];
        if (start > 0 && found >= kl[l])
            continue;
        kl[l] = found;
        for (int a = 0; a < A; a++)
            y[a * TSNE_BLOCK + l] = search[l].y[a];
    }
}

static void look(double *sums, const Places *p, const float *y) {
    tsne_inner()->place[p->shape->axes - 2](sums, p->e, p->shape->points, p->map, y);
}
