/* tsne.c: the forces of t-SNE, and its step.
 *
 * The threads of a rank take its pairs of tiles one after the other; both sides of each pair of points come from one
 * computation. A tile's forces are float32 sums of at most 512 terms in the first cache, and are then rounded to
 * fixed-point numbers and added, under the tile's lock, to the sums of all points.
 *
 * Repulsion takes every pair of tiles. Price: with two 512-bit units, 10,000 points take 4.5 ms on 2 cores at 3.1 GHz,
 * 22 Gpair/s (each of the two directions counted).
 *
 * Attraction takes the cells of P that hold anything, a third of them for the demo's logits, 39 % full. Price: the
 * arithmetic of their diagonals, one for 16 pairs whether they are kept or not; and the reading of P, 27 MiB there. Packed
 * values are asked for well ahead: waiting for them took half of the time. About 2.5 ms there. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "kernels.h"
#include "tsne_inner.h"

/* What a thread needs for a pair of tiles. */
typedef struct {
    float columns[2 * 3 * TSNE_STRIDE], column_force[3 * TSNE_STRIDE];
    float row_force[3 * TSNE_TILE], row_w[TSNE_TILE];
} Work;

typedef struct {
    Work *work; /* (threads) */
    omp_lock_t *lock;
} Scratch;

static Scratch scratch_begin(void *scratch, const TsneShape *shape);
static void scratch_end(Scratch scratch, const TsneShape *shape);
static int64_t *block_sums(int64_t *sums, const TsneShape *shape, int64_t block, bool attraction);
static void add_to_all(int64_t *sums, const TsneShape *shape, int total, int64_t value);
static double repel_pair(int64_t *sums, Work *work, omp_lock_t *lock, const float *y, const TsneShape *shape,
                         int64_t row_tile, int64_t column_tile);
static double repel_between(Work *work, const float *rows, const TsneShape *shape, int m);
static double repel_within(Work *work, const float *rows, const TsneShape *shape, int m);
static int points_in_tile(const TsneShape *shape, int64_t tile);
static void fill_columns(Work *work, const float *y, const TsneShape *shape, int64_t tile, int m);
static void fill_windows(float *columns, const float *y, const TsneShape *shape, int64_t tile);
static int cell_values(const TsneCell *cell);

size_t k_tsne_scratch(const TsneShape *shape) {
    return (size_t)omp_get_max_threads() * sizeof(Work) + (size_t)tsne_tile_count(shape->points) * sizeof(omp_lock_t);
}

void k_tsne_repulsion(int64_t *sums, const float *y, const TsneShape *shape, void *memory) {
    const int64_t tiles = k_tsne_tiles(shape->points);
    const double scale = 1 / k_tsne_w_unit(shape->points);
    memset(sums, 0, (size_t)(shape->parts * k_tsne_sums(shape)) * sizeof *sums);
    Scratch scratch = scratch_begin(memory, shape);
    int64_t total = 0;
#pragma omp parallel for schedule(dynamic, 1) reduction(+ : total)
    for (int64_t number = shape->part; number < tiles; number += shape->parts) {
        int64_t row, column;
        tsne_tile(&row, &column, shape->points, number);
        total += (int64_t)(scale *
                           repel_pair(sums, scratch.work + omp_get_thread_num(), scratch.lock, y, shape, row, column));
    }
    add_to_all(sums, shape, TSNE_TOTAL_W, total);
    scratch_end(scratch, shape);
}

void k_tsne_attraction(int64_t *sums, const TsneAffinities *affinities, bool cross, const float *y,
                       const TsneShape *shape, void *memory) {
    const TsneInner *inner = tsne_inner();
    const int A = shape->axes, floats = A * TSNE_BLOCK;
    Scratch scratch = scratch_begin(memory, shape);
    int64_t total = 0;
#pragma omp parallel for schedule(dynamic, 1) reduction(+ : total)
    for (int64_t t = 0; t < affinities->tiles; t++) {
        const int64_t cells = affinities->cell_start[t + 1] - affinities->cell_start[t];
        if (cells == 0)
            continue;
        Work *work = scratch.work + omp_get_thread_num();
        int64_t tile[2];
        tsne_tile(&tile[0], &tile[1], shape->points, affinities->tile[t]);
        fill_windows(work->columns, y, shape, tile[1]);
        float *force[2] = {work->row_force, work->column_force};
        for (int side = 0; side < 2; side++)
            memset(force[side], 0, (size_t)(A * TSNE_TILE) * sizeof(float));
        double logs = inner->map[A - 2].attract(force[0], force[1], affinities->cell + affinities->cell_start[t], cells,
                                                affinities->value + affinities->value_start[t],
                                                y + tile[0] * TSNE_TILE_BLOCKS * floats, work->columns, cross);
        total += (int64_t)(logs / TSNE_LOG_UNIT);
        for (int side = 0; side < 2; side++) {
            const int blocks = (points_in_tile(shape, tile[side]) + TSNE_BLOCK - 1) / TSNE_BLOCK;
            omp_set_lock(&scratch.lock[tile[side]]);
            for (int b = 0; b < blocks; b++)
                inner->add_fixed(block_sums(sums, shape, tile[side] * TSNE_TILE_BLOCKS + b, true),
                                 force[side] + b * floats, floats, 1 / TSNE_PULL_UNIT);
            omp_unset_lock(&scratch.lock[tile[side]]);
        }
    }
    add_to_all(sums, shape, TSNE_TOTAL_CROSS, total);
    scratch_end(scratch, shape);
}

void k_tsne_update(float *y_mine, float *update, float *gains, double *norm, const int64_t *sums,
                   const TsneShape *shape, const TsneStep *step) {
    const int floats = shape->axes * TSNE_BLOCK;
    const double w_sum = 2 * (double)sums[k_tsne_sums(shape) - TSNE_TOTALS + TSNE_TOTAL_W];
    const double over_z = k_tsne_force_unit(shape->points) / (w_sum * k_tsne_w_unit(shape->points));
    const double pull_scale = step->exaggeration * TSNE_PULL_UNIT;
    const double factor = shape->axes == 2 ? 4 : 3; /* 2 (dof + 1) / dof, dof = axes - 1 */
    const float momentum = (float)step->momentum, rate = (float)step->learning_rate;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < shape->count; b++) {
        const int64_t *repulsion = sums + 2 * b * floats, *attraction = repulsion + floats;
        double squares = 0;
        for (int k = 0; k < floats; k++) {
            const int64_t i = b * floats + k;
            double pull = pull_scale * (double)attraction[k] - (double)repulsion[k] * over_z;
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

void k_tsne_point_logs(int64_t *sums, const TsneAffinities *affinities, const float *y, const TsneShape *shape) {
    const int floats = shape->axes * TSNE_BLOCK;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t t = 0; t < affinities->tiles; t++) {
        float windows[TSNE_TILE_BLOCKS * 3 * TSNE_WINDOW], cell_sums[2 * TSNE_BLOCK];
        double tile_sums[2][TSNE_TILE] = {{0}};
        const float *value = affinities->value + affinities->value_start[t];
        int64_t tile[2];
        tsne_tile(&tile[0], &tile[1], shape->points, affinities->tile[t]);
        fill_windows(windows, y, shape, tile[1]);
        for (int64_t c = affinities->cell_start[t]; c < affinities->cell_start[t + 1]; c++) {
            const TsneCell *cell = affinities->cell + c;
            const int place[2] = {cell->row, cell->column};
            tsne_inner()->map[shape->axes - 2].point_logs(cell_sums, cell, value,
                                                          y + (tile[0] * TSNE_TILE_BLOCKS + cell->row) * floats,
                                                          windows + 2 * cell->column * floats);
            for (int side = 0; side < 2; side++)
                for (int l = 0; l < TSNE_BLOCK; l++)
                    tile_sums[side][place[side] * TSNE_BLOCK + l] += (double)cell_sums[side * TSNE_BLOCK + l];
            value += cell_values(cell);
        }
#pragma omp critical(tsne_point_logs)
        for (int side = 0; side < 2; side++)
            for (int i = 0; i < points_in_tile(shape, tile[side]); i++)
                sums[tile[side] * TSNE_TILE + i] += (int64_t)(tile_sums[side][i] / TSNE_LOG_UNIT);
    }
}

static Scratch scratch_begin(void *memory, const TsneShape *shape) {
    Scratch scratch = {memory, (omp_lock_t *)((Work *)memory + omp_get_max_threads())};
    for (int64_t t = 0; t < tsne_tile_count(shape->points); t++)
        omp_init_lock(&scratch.lock[t]);
    return scratch;
}

static void scratch_end(Scratch scratch, const TsneShape *shape) {
    for (int64_t t = 0; t < tsne_tile_count(shape->points); t++)
        omp_destroy_lock(&scratch.lock[t]);
}

static int64_t *block_sums(int64_t *sums, const TsneShape *shape, int64_t block, bool attraction) {
    const int64_t floats = shape->axes * TSNE_BLOCK;
    return sums + block / shape->count * k_tsne_sums(shape) + (block % shape->count * 2 + attraction) * floats;
}

static void add_to_all(int64_t *sums, const TsneShape *shape, int total, int64_t value) {
    for (int part = 0; part < shape->parts; part++)
        sums[(part + 1) * k_tsne_sums(shape) - TSNE_TOTALS + total] += value;
}

/* Returns the sum of w over the unordered pairs. */
static double repel_pair(int64_t *sums, Work *work, omp_lock_t *lock, const float *y, const TsneShape *shape,
                         int64_t row_tile, int64_t column_tile) {
    const TsneInner *inner = tsne_inner();
    const int A = shape->axes, floats = A * TSNE_BLOCK, m = points_in_tile(shape, column_tile);
    const int blocks = (points_in_tile(shape, row_tile) + TSNE_BLOCK - 1) / TSNE_BLOCK;
    const int64_t row_block = row_tile * TSNE_TILE_BLOCKS, column_block = column_tile * TSNE_TILE_BLOCKS;
    const double scale = 1 / k_tsne_force_unit(shape->points);
    const bool within = row_tile == column_tile;
    fill_columns(work, y, shape, column_tile, m);
    double w = (within ? repel_within : repel_between)(work, y + row_block * floats, shape, m);
    omp_set_lock(&lock[row_tile]);
    for (int b = 0; b < blocks; b++)
        inner->add_fixed(block_sums(sums, shape, row_block + b, false), work->row_force + b * floats, floats, scale);
    omp_unset_lock(&lock[row_tile]);
    if (within)
        return w;
    omp_set_lock(&lock[column_tile]);
    for (int k = 0; k < m; k += TSNE_BLOCK)
        for (int a = 0; a < A; a++)
            inner->add_fixed(block_sums(sums, shape, column_block + k / TSNE_BLOCK, false) + a * TSNE_BLOCK,
                             work->column_force + a * TSNE_STRIDE + k, m - k < TSNE_BLOCK ? m - k : TSNE_BLOCK, scale);
    omp_unset_lock(&lock[column_tile]);
    return w;
}

/* A whole tile of rows against m columns. */
static double repel_between(Work *work, const float *rows, const TsneShape *shape, int m) {
    memset(work->column_force, 0, sizeof work->column_force);
    tsne_inner()->map[shape->axes - 2].repel_both(work->row_force, work->row_w, work->column_force, rows, work->columns,
                                                  m);
    for (int a = 0; a < shape->axes; a++)
        for (int k = m; k < m + TSNE_BLOCK - 1; k++)
            work->column_force[a * TSNE_STRIDE + k % m] += work->column_force[a * TSNE_STRIDE + k];
    double w = 0;
    for (int i = 0; i < TSNE_TILE; i++)
        w += (double)work->row_w[i];
    return w;
}

/* A tile of m points against itself: every ordered pair, but not of a point with itself, which meet at the step that
 * lines up the block's rows with its columns. */
static double repel_within(Work *work, const float *rows, const TsneShape *shape, int m) {
    const int A = shape->axes, floats = A * TSNE_BLOCK;
    double w = 0;
    for (int first = 0; first < m; first += TSNE_BLOCK) {
        const int b = first / TSNE_BLOCK, lanes = m - first < TSNE_BLOCK ? m - first : TSNE_BLOCK;
        float *force = work->row_force + b * floats, *row_w = work->row_w + first;
        tsne_inner()->map[A - 2].repel_rows(force, row_w, rows + b * floats, work->columns, m, first);
        for (int l = 0; l < lanes; l++)
            w += (double)row_w[l];
        for (int a = 0; a < A; a++) /* rows of padding feel nothing */
            for (int l = lanes; l < TSNE_BLOCK; l++)
                force[a * TSNE_BLOCK + l] = 0;
    }
    return w / 2;
}

static int points_in_tile(const TsneShape *shape, int64_t tile) {
    const int64_t left = shape->points - tile * TSNE_TILE;
    return left < TSNE_TILE ? (int)left : TSNE_TILE;
}

/* columns (A, TSNE_STRIDE) */
static void fill_columns(Work *work, const float *y, const TsneShape *shape, int64_t tile, int m) {
    const int floats = shape->axes * TSNE_BLOCK;
    const float *from = y + tile * TSNE_TILE_BLOCKS * floats;
    for (int a = 0; a < shape->axes; a++) {
        float *to = work->columns + a * TSNE_STRIDE;
        for (int k = 0; k < m; k++)
            to[k] = from[k / TSNE_BLOCK * floats + a * TSNE_BLOCK + k % TSNE_BLOCK];
        for (int k = m; k < m + TSNE_BLOCK - 1; k++)
            to[k] = to[k % m];
    }
}

/* columns (TSNE_TILE_BLOCKS, A, TSNE_WINDOW) */
static void fill_windows(float *columns, const float *y, const TsneShape *shape, int64_t tile) {
    const int vectors = (points_in_tile(shape, tile) + TSNE_BLOCK - 1) / TSNE_BLOCK * shape->axes;
    const float *from = y + tile * TSNE_TILE_BLOCKS * shape->axes * TSNE_BLOCK;
    for (int v = 0; v < vectors; v++)
        for (int twice = 0; twice < 2; twice++)
            memcpy(columns + v * TSNE_WINDOW + twice * TSNE_BLOCK, from + v * TSNE_BLOCK, TSNE_BLOCK * sizeof(float));
}

static int cell_values(const TsneCell *cell) {
    int values = 0;
    for (int s = 0; s < TSNE_BLOCK; s++)
        values += __builtin_popcount(cell->mask[s]);
    return values;
}
