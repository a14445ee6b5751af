/* tsne.c: the forces of t-SNE, and its step.
 *
 * Repulsion. Rows and columns are cut into tiles of 512 points. A rank works on each tile of pairs that holds rows of
 * its own, on either side: pairs within its rows are computed once for both points, the others by both owners, with
 * the same instructions. What a tile gives is rounded to a fixed-point number before it is added: such sums are exact,
 * so threads and ranks may take the tiles in any order, and no float32 sum has more than 512 terms. Price: with two
 * 512-bit units, 10,000 points take 4.9 ms on 2 cores at 3.1 GHz; on many ranks 1.7 times that, divided by their
 * number.
 *
 * Attraction. One thread per block of rows; a column of P is one load of 16 values and one broadcast point, near in
 * memory to the one before, since the order of points keeps neighbours together. Price: the reading of P, 100 MB and
 * 5.4 ms there. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "kernels.h"
#include "tsne_inner.h"

enum { TILE_BLOCKS = TSNE_TILE / TSNE_BLOCK };

/* What a thread needs for a tile. */
typedef struct {
    float columns[3 * TSNE_STRIDE], column_force[3 * TSNE_STRIDE];
    float row_force[3 * TSNE_TILE], row_z[TSNE_TILE];
} Work;

/* A thread's sums: force (count, A, 16), then z (count). */
typedef struct {
    int64_t *force, *z;
} Sums;

static int64_t tile_count(int64_t points);
static bool tile_is_mine(const TsneShape *shape, int64_t tile);
static Sums thread_sums(void *scratch, const TsneShape *shape, int thread);
static void repel_tile(Sums sums, Work *work, const float *y, const TsneShape *shape, int64_t row_tile,
                       int64_t column_tile);
static void add_rows(Sums sums, const Work *work, const TsneShape *shape, int64_t block, int in_tile,
                     int pairs_counted);
static void add_columns(Sums sums, Work *work, const TsneShape *shape, int64_t tile, int m);

size_t k_tsne_repulsion_scratch(const TsneShape *shape) {
    size_t threads = (size_t)omp_get_max_threads();
    return threads * (sizeof(Work) + (size_t)shape->count * ((size_t)shape->axes * TSNE_BLOCK + 1) * sizeof(int64_t));
}

/* A pair's force is below 0.37, its w at most 1; a block of 16 rows sees each pair at most twice. The sums keep clear
 * of 2^62. */
double k_tsne_force_unit(int64_t points) {
    return ldexp(1, (int)ceil(log2((double)points + 1)) - 62);
}

double k_tsne_z_unit(int64_t points) {
    return ldexp(1, (int)ceil(log2((double)points + 1)) + 5 - 62);
}

void k_tsne_repulsion(int64_t *force, int64_t *z, const float *y, const TsneShape *shape, void *scratch) {
    const int64_t tiles = tile_count(shape->points), floats = shape->axes * TSNE_BLOCK;
    const int64_t from = shape->first / TILE_BLOCKS;
    int64_t to = (shape->first + shape->count + TILE_BLOCKS - 1) / TILE_BLOCKS;
    to = to < tiles ? to : tiles;
    const int threads = omp_get_max_threads();
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
        Sums sums = thread_sums(scratch, shape, thread);
        Work *work = (Work *)scratch + thread;
        memset(sums.force, 0, (size_t)(shape->count * (floats + 1)) * sizeof(int64_t));
#pragma omp for collapse(2) schedule(dynamic, 1)
        for (int64_t own = from; own < to; own++)
            for (int64_t other = 0; other < tiles; other++)
                if (other >= own || !tile_is_mine(shape, other))
                    repel_tile(sums, work, y, shape, own < other ? own : other, own < other ? other : own);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < shape->count; b++) {
            for (int64_t i = b * floats; i < (b + 1) * floats; i++) {
                force[i] = 0;
                for (int t = 0; t < team; t++)
                    force[i] += thread_sums(scratch, shape, t).force[i];
            }
            z[b] = 0;
            for (int t = 0; t < team; t++)
                z[b] += thread_sums(scratch, shape, t).z[b];
        }
    }
}

void k_tsne_attraction(double *force, double *cross, const TsneAffinities *affinities, const float *y,
                       const TsneShape *shape) {
    const TsneInner *inner = tsne_inner();
    const int floats = shape->axes * TSNE_BLOCK;
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t b = 0; b < shape->count; b++) {
        int64_t start = affinities->start[b];
        double logs[TSNE_BLOCK];
        inner->map[shape->axes - 2].attract(force + b * floats, cross ? logs : NULL,
                                            affinities->value + start * TSNE_BLOCK, affinities->column + start,
                                            affinities->start[b + 1] - start, y + (shape->first + b) * floats, y);
        if (cross) {
            cross[b] = 0;
            for (int l = 0; l < TSNE_BLOCK; l++)
                cross[b] += logs[l];
        }
    }
}

void k_tsne_update(float *y_mine, float *update, float *gains, double *norm, const double *attraction,
                   const int64_t *repulsion, const int64_t *z, int64_t z_blocks, const TsneShape *shape,
                   const TsneStep *step) {
    double z_sum = 0;
    for (int64_t b = 0; b < z_blocks; b++)
        z_sum += (double)z[b];
    const double over_z = k_tsne_force_unit(shape->points) / (z_sum * k_tsne_z_unit(shape->points));
    const double factor = shape->axes == 2 ? 4 : 3; /* 2 (dof + 1) / dof, dof = axes - 1 */
    const float momentum = (float)step->momentum, rate = (float)step->learning_rate;
    const int64_t floats = shape->axes * TSNE_BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < shape->count; b++) {
        double squares = 0;
        for (int64_t i = b * floats; i < (b + 1) * floats; i++) {
            double pull = step->exaggeration * attraction[i] - (double)repulsion[i] * over_z;
            float gradient = (float)(factor * pull);
            gains[i] = update[i] * gradient < 0 ? gains[i] + 0.2f : gains[i] * 0.8f;
            gains[i] = gains[i] < 0.01f ? 0.01f : gains[i];
            gradient *= gains[i];
            update[i] = momentum * update[i] - rate * gradient;
            y_mine[i] += update[i];
            squares += (double)gradient * gradient;
        }
        if (norm)
            norm[b] = squares;
    }
}

static int64_t tile_count(int64_t points) {
    return (points + TSNE_TILE - 1) / TSNE_TILE;
}

static bool tile_is_mine(const TsneShape *shape, int64_t tile) {
    return tile * TILE_BLOCKS < shape->first + shape->count && (tile + 1) * TILE_BLOCKS > shape->first;
}

static Sums thread_sums(void *scratch, const TsneShape *shape, int thread) {
    int64_t forces = shape->count * shape->axes * TSNE_BLOCK;
    int64_t *sums = (int64_t *)((Work *)scratch + omp_get_max_threads()) + thread * (forces + shape->count);
    return (Sums){sums, sums + forces};
}

/* row_tile <= column_tile, at least one of them of this rank. */
static void repel_tile(Sums sums, Work *work, const float *y, const TsneShape *shape, int64_t row_tile,
                       int64_t column_tile) {
    const TsneMapLoops *loops = &tsne_inner()->map[shape->axes - 2];
    const int A = shape->axes, floats = A * TSNE_BLOCK;
    const int64_t left = shape->points - column_tile * TSNE_TILE;
    const int m = left < TSNE_TILE ? (int)left : TSNE_TILE;
    for (int k = 0; k < m + TSNE_BLOCK - 1; k++)
        for (int a = 0; a < A; a++) {
            int64_t point = column_tile * TSNE_TILE + k % m;
            work->columns[a * TSNE_STRIDE + k] = y[point / TSNE_BLOCK * floats + a * TSNE_BLOCK + point % TSNE_BLOCK];
        }
    const int64_t block = row_tile * TILE_BLOCKS;
    const float *rows = y + block * floats;
    if (row_tile != column_tile && tile_is_mine(shape, column_tile)) {
        memset(work->column_force, 0, sizeof work->column_force);
        loops->repel_both(work->row_force, work->row_z, work->column_force, rows, work->columns, m);
        for (int b = 0; b < TILE_BLOCKS; b++)
            add_rows(sums, work, shape, block, b, 2);
        add_columns(sums, work, shape, column_tile, m);
        return;
    }
    for (int b = 0; b < TILE_BLOCKS; b++) {
        bool mine = block + b >= shape->first && block + b < shape->first + shape->count;
        if (!mine || (block + b) * TSNE_BLOCK >= shape->points)
            continue;
        bool diagonal = row_tile == column_tile; /* then a point meets itself at the step that lines both up */
        loops->repel_rows(work->row_force + b * floats, work->row_z + b * TSNE_BLOCK, rows + b * floats, work->columns,
                          m, diagonal ? b * TSNE_BLOCK : -1);
        add_rows(sums, work, shape, block, b, diagonal ? 1 : 2);
    }
}

/* Off the diagonal each pair stands for two: (i, j) and (j, i). */
static void add_rows(Sums sums, const Work *work, const TsneShape *shape, int64_t block, int in_tile,
                     int pairs_counted) {
    const int A = shape->axes;
    const int64_t own = block + in_tile - shape->first, left = shape->points - (block + in_tile) * TSNE_BLOCK;
    if (own < 0 || own >= shape->count || left <= 0)
        return;
    const int lanes = left < TSNE_BLOCK ? (int)left : TSNE_BLOCK;
    const double force_scale = 1 / k_tsne_force_unit(shape->points), z_scale = 1 / k_tsne_z_unit(shape->points);
    for (int a = 0; a < A; a++)
        for (int l = 0; l < lanes; l++)
            sums.force[(own * A + a) * TSNE_BLOCK + l] +=
                (int64_t)((double)work->row_force[(in_tile * A + a) * TSNE_BLOCK + l] * force_scale);
    double z = 0;
    for (int l = 0; l < lanes; l++)
        z += (double)work->row_z[in_tile * TSNE_BLOCK + l];
    sums.z[own] += (int64_t)(z * z_scale) * pairs_counted;
}

static void add_columns(Sums sums, Work *work, const TsneShape *shape, int64_t tile, int m) {
    const int A = shape->axes;
    const double scale = 1 / k_tsne_force_unit(shape->points);
    for (int a = 0; a < A; a++) {
        float *force = work->column_force + a * TSNE_STRIDE;
        for (int k = m; k < m + TSNE_BLOCK - 1; k++)
            force[k % m] += force[k];
        for (int k = 0; k < m; k++) {
            int64_t own = tile * TILE_BLOCKS + k / TSNE_BLOCK - shape->first;
            if (own >= 0 && own < shape->count)
                sums.force[(own * A + a) * TSNE_BLOCK + k % TSNE_BLOCK] += (int64_t)((double)force[k] * scale);
        }
    }
}
