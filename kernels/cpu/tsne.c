/* tsne.c: the forces of t-SNE, and its step.
 *
 * The threads of a rank take its pairs of tiles one after the other; both sides of each pair of points come from one
 * computation. A tile's forces are float32 sums of at most 512 terms in the first cache, and are then rounded to
 * fixed-point numbers and added, under the tile's lock, to the sums of all points.
 *
 * Repulsion takes every pair of tiles, a group of four blocks of rows at a time against all columns, and leaves the w of
 * those columns of which P has anything in the second cache. Attraction follows on the group's cells of P, in the order of
 * t-SNE 30 % of all for the demo's logits, 39 % full. Price: the arithmetic of their diagonals, one for 16 pairs whether they
 * are kept or not; and the reading of P, 23 MiB there, 176 MiB for pixels, where it is nearly dense. So values are asked
 * for ahead, half of them while the repulsion computes, which needs no memory: a tenth of an iteration on pixels.
 * The demo, 10,000 points, on 2 cores of Zen 4 at 3.6 GHz: 4.2 and 1.25 ms an iteration, 6.2 ms of repulsion without
 * divisions; of Zen 5 at 4.2 GHz 2.2 and 0.8 ms; on 2 others with two 512-bit units at 4 GHz 4.3 ms of repulsion. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "cpu.h"
#include "tsne_inner.h"

/* Which pairs of a cell count, as TsneMapLoops wants it: all; none; in a block with itself each pair once, where P has it;
 * those with the points of the last block of columns, which may have fewer than 16; both. */
enum { MASK_ALL, MASK_NONE, MASK_ONCE, MASK_LAST, MASK_ONCE_LAST, MASKS };

/* Columns of a group: those with pairs that do not count; those whose w the attraction wants; the others. */
enum { MASKED, KEPT, PLAIN, COLUMNS, COLUMNS_LEAST = 4 };

enum { TIMED_EVERY = 8 }; /* pairs of tiles: looking at the clock for every group would take a percent */

/* What a thread needs for a pair of tiles. Forces: repulsion, attraction. */
typedef struct {
    _Alignas(64) float w[TSNE_TILE_BLOCKS * TSNE_COLUMN_CELLS];
    float columns[3 * TSNE_TILE_BLOCKS * TSNE_WINDOW], column_push[3 * TSNE_TILE_BLOCKS * TSNE_WINDOW];
    float last_rows[3 * TSNE_GROUP * TSNE_BLOCK]; /* of a group that has fewer blocks */
    float column_pull[3 * TSNE_TILE], row_push[3 * TSNE_TILE], row_pull[3 * TSNE_TILE], group_w[TSNE_TILE / TSNE_GROUP];
    bool timed;
    double seconds, pull_seconds; /* of the pairs of tiles that are timed */
} Work;

typedef struct {
    Work *work;               /* (threads) */
    float (*mask)[TSNE_CELL]; /* (MASKS) */
    omp_lock_t *lock;         /* (tiles) */
} Scratch;

/* A pair of tiles: how many blocks they have, the rows' place in y, and P's cells in them. */
typedef struct {
    int64_t tile[2];
    int blocks[2];
    bool within;
    const TsneCell *cell;
    int64_t cells;
    const float *value;
    TsneAhead ahead;
} Pair;

static Scratch scratch_begin(void *memory, const TsneShape *shape);
static void scratch_end(Scratch scratch, const TsneShape *shape);
static void fill_mask(float *mask, bool once, int columns);
static Pair pair_of(const TsneAffinities *affinities, int64_t place, const TsneShape *shape);
static double find_forces(Work *work, float (*mask)[TSNE_CELL], Pair *pair, bool cross, const float *y,
                          const TsneShape *shape);
static void repel_group(Work *work, float (*mask)[TSNE_CELL], int group, Pair *pair, const bool *kept,
                        const float *rows, const TsneShape *shape);
static void add_forces(int64_t *sums, Work *work, omp_lock_t *lock, const Pair *pair, const TsneShape *shape);
static void add_to_all(int64_t *sums, const TsneShape *shape, int total, int64_t value);
static void fill_windows(float *windows, const float *from, int vectors);
static int points_in_tile(const TsneShape *shape, int64_t tile);
static int cell_values(const TsneCell *cell);

size_t k_tsne_scratch(const TsneShape *shape) {
    return (size_t)omp_get_max_threads() * sizeof(Work) + MASKS * TSNE_CELL * sizeof(float) +
           (size_t)tsne_tile_count(shape->points) * sizeof(omp_lock_t);
}

double k_tsne_forces(int64_t *sums, const TsneAffinities *affinities, bool cross, const float *y,
                     const TsneShape *shape, void *memory) {
    const double w_scale = 1 / k_tsne_w_unit(shape->points);
    const int64_t all_sums = shape->parts * k_tsne_sums(shape);
    Scratch scratch = scratch_begin(memory, shape);
    int64_t total_w = 0, total_cross = 0;
#pragma omp parallel reduction(+ : total_w, total_cross)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < all_sums; i++)
            sums[i] = 0;
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < affinities->tiles; t++) {
            Work *work = scratch.work + omp_get_thread_num();
            work->timed = t % TIMED_EVERY == 0;
            const double since = work->timed ? omp_get_wtime() : 0;
            Pair pair = pair_of(affinities, t, shape);
            total_cross += (int64_t)(find_forces(work, scratch.mask, &pair, cross, y, shape) / TSNE_LOG_UNIT);
            double w = 0;
            for (int i = 0; i < TSNE_TILE / TSNE_GROUP; i++)
                w += (double)work->group_w[i];
            total_w += (int64_t)(w_scale * w);
            add_forces(sums, work, scratch.lock, &pair, shape);
            work->seconds += work->timed ? omp_get_wtime() - since : 0;
        }
    }
    add_to_all(sums, shape, TSNE_TOTAL_W, total_w);
    add_to_all(sums, shape, TSNE_TOTAL_CROSS, total_cross);
    double seconds = 0, pull_seconds = 0;
    for (int i = 0; i < omp_get_max_threads(); i++) {
        seconds += scratch.work[i].seconds;
        pull_seconds += scratch.work[i].pull_seconds;
    }
    scratch_end(scratch, shape);
    return seconds > 0 ? pull_seconds / seconds : 0;
}

/* What a step is made of, for all blocks: the gradient is factor * (pull_scale * attraction - over_z * repulsion). */
typedef struct {
    double factor, pull_scale, over_z;
    float momentum, rate;
} Descent;

/* One block; squares (floats) of gain * gradient. */
CPU_CLONES static void update_block(float *y, float *update, float *gains, double *squares, const int64_t *repulsion,
                                    const int64_t *attraction, const Descent *d, int floats) {
#pragma omp simd
    for (int i = 0; i < floats; i++) {
        const double pull = d->pull_scale * (double)attraction[i] - (double)repulsion[i] * d->over_z;
        float gradient = (float)(d->factor * pull);
        float gain = update[i] * gradient < 0 ? gains[i] + 0.2f : gains[i] * 0.8f;
        gain = gain < 0.01f ? 0.01f : gain;
        gradient *= gain;
        gains[i] = gain;
        update[i] = d->momentum * update[i] - d->rate * gradient;
        y[i] += update[i];
        squares[i] = (double)gradient * gradient;
    }
}

void k_tsne_update(float *y_mine, float *update, float *gains, double *norm, const int64_t *sums,
                   const TsneShape *shape, const TsneStep *step) {
    const int floats = shape->axes * TSNE_BLOCK;
    const double w_sum = 2 * (double)sums[k_tsne_sums(shape) - TSNE_TOTALS + TSNE_TOTAL_W];
    const Descent descent = {.factor = shape->axes == 2 ? 4 : 3, /* 2 (dof + 1) / dof, dof = axes - 1 */
                             .pull_scale = step->exaggeration * TSNE_PULL_UNIT,
                             .over_z = k_tsne_force_unit(shape->points) / (w_sum * k_tsne_w_unit(shape->points)),
                             .momentum = (float)step->momentum,
                             .rate = (float)step->learning_rate};
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < shape->count; b++) {
        const int64_t *repulsion = sums + 2 * b * floats, at = b * floats;
        double squares[3 * TSNE_BLOCK];
        update_block(y_mine + at, update + at, gains + at, squares, repulsion, repulsion + floats, &descent, floats);
        if (norm)
            norm[b] = 0;
        for (int i = 0; norm && i < floats; i++)
            norm[b] += squares[i];
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
        const int blocks = (points_in_tile(shape, tile[1]) + TSNE_BLOCK - 1) / TSNE_BLOCK;
        fill_windows(windows, y + tile[1] * TSNE_TILE_BLOCKS * floats, blocks * shape->axes);
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
    const int threads = omp_get_max_threads(), last = (int)((shape->points - 1) % TSNE_BLOCK + 1);
    Scratch scratch = {.work = memory};
    scratch.mask = (float(*)[TSNE_CELL])(scratch.work + threads);
    scratch.lock = (omp_lock_t *)(scratch.mask + MASKS);
    for (int i = 0; i < threads; i++)
        scratch.work[i].seconds = scratch.work[i].pull_seconds = 0;
    fill_mask(scratch.mask[MASK_ALL], false, TSNE_BLOCK);
    fill_mask(scratch.mask[MASK_NONE], false, 0);
    fill_mask(scratch.mask[MASK_ONCE], true, TSNE_BLOCK);
    fill_mask(scratch.mask[MASK_LAST], false, last);
    fill_mask(scratch.mask[MASK_ONCE_LAST], true, last);
    for (int64_t t = 0; t < tsne_tile_count(shape->points); t++)
        omp_init_lock(&scratch.lock[t]);
    return scratch;
}

static void scratch_end(Scratch scratch, const TsneShape *shape) {
    for (int64_t t = 0; t < tsne_tile_count(shape->points); t++)
        omp_destroy_lock(&scratch.lock[t]);
}

/* columns: how many of the cell's are points; of its rows, too, where they are the same block. */
static void fill_mask(float *mask, bool once, int columns) {
    for (int s = 0; s < TSNE_BLOCK; s++)
        for (int l = 0; l < TSNE_BLOCK; l++) {
            const int column = (l + s) % TSNE_BLOCK;
            const bool first = s > 0 && (s < TSNE_BLOCK / 2 || (s == TSNE_BLOCK / 2 && l < s));
            mask[s * TSNE_BLOCK + l] = column < columns && (!once || (first && l < columns));
        }
}

static Pair pair_of(const TsneAffinities *affinities, int64_t place, const TsneShape *shape) {
    const int64_t blocks = (shape->points + TSNE_BLOCK - 1) / TSNE_BLOCK;
    Pair pair = {.cell = affinities->cell + affinities->cell_start[place],
                 .cells = affinities->cell_start[place + 1] - affinities->cell_start[place],
                 .value = affinities->value + affinities->value_start[place],
                 .ahead = {affinities->value + affinities->value_start[place],
                           affinities->value + affinities->value_start[place + 1]}};
    tsne_tile(&pair.tile[0], &pair.tile[1], shape->points, affinities->tile[place]);
    for (int side = 0; side < 2; side++) {
        const int64_t left = blocks - pair.tile[side] * TSNE_TILE_BLOCKS;
        pair.blocks[side] = left < TSNE_TILE_BLOCKS ? (int)left : TSNE_TILE_BLOCKS;
    }
    pair.within = pair.tile[0] == pair.tile[1];
    return pair;
}

/* All forces between the tiles, and w, into work; returns - sum of p ln w, if asked for. */
static double find_forces(Work *work, float (*mask)[TSNE_CELL], Pair *pair, bool cross, const float *y,
                          const TsneShape *shape) {
    const int A = shape->axes, floats = A * TSNE_BLOCK;
    const float *rows = y + pair->tile[0] * TSNE_TILE_BLOCKS * floats;
    fill_windows(work->columns, y + pair->tile[1] * TSNE_TILE_BLOCKS * floats, pair->blocks[1] * A);
    memset(work->column_push, 0, (size_t)(pair->blocks[1] * A * TSNE_WINDOW) * sizeof(float));
    memset(work->row_push, 0, (size_t)(A * TSNE_TILE) * sizeof(float));
    memset(work->group_w, 0, sizeof work->group_w);
    if (pair->cells > 0) {
        memset(work->column_pull, 0, (size_t)(A * TSNE_TILE) * sizeof(float));
        memset(work->row_pull, 0, (size_t)(A * TSNE_TILE) * sizeof(float));
    }
    double logs = 0;
    const TsneCell *cell = pair->cell, *end = pair->cell + pair->cells;
    for (int group = 0; group * TSNE_GROUP < pair->blocks[0]; group++) {
        bool kept[TSNE_TILE_BLOCKS] = {false}; /* columns of which P has anything: the attraction wants their w */
        int64_t cells = 0;
        for (; cell + cells < end && cell[cells].row / TSNE_GROUP == group; cells++)
            kept[cell[cells].column] = true;
        const float *own = rows + group * TSNE_GROUP * floats;
        const int left = pair->blocks[0] - group * TSNE_GROUP;
        if (left < TSNE_GROUP) {
            memset(work->last_rows, 0, sizeof work->last_rows);
            own = memcpy(work->last_rows, own, (size_t)(left * floats) * sizeof(float));
        }
        repel_group(work, mask, group, pair, kept, own, shape);
        if (cells == 0)
            continue;
        const double since = work->timed ? omp_get_wtime() : 0;
        logs += tsne_inner()->map[A - 2].attract[cpu_divides()](work->row_pull + group * TSNE_GROUP * floats,
                                                                work->column_pull, cell, cells, &pair->value, work->w,
                                                                own, work->columns, cross, &pair->ahead);
        work->pull_seconds += work->timed ? omp_get_wtime() - since : 0;
        cell += cells;
    }
    return logs;
}

/* A group of rows against all columns that come after them. */
static void repel_group(Work *work, float (*mask)[TSNE_CELL], int group, Pair *pair, const bool *kept,
                        const float *rows, const TsneShape *shape) {
    const int floats = shape->axes * TSNE_BLOCK, row = group * TSNE_GROUP, last = pair->blocks[1] - 1;
    const int whole =
        shape->points % TSNE_BLOCK && pair->tile[1] == tsne_tile_count(shape->points) - 1 ? last : last + 1;
    const int beside = pair->within ? row : 0; /* the first of the group's own columns, and the first after them */
    const int after = pair->within ? row + TSNE_GROUP : 0;
    float *push = work->row_push + row * floats, *w = work->group_w + group * TSNE_BLOCK;
    const TsneRepel repel = tsne_inner()->map[shape->axes - 2].repel[cpu_divides()];
    const float *own[TSNE_TILE_BLOCKS * TSNE_GROUP]; /* masks of the blocks of rows, of each column with any */
    uint8_t columns[COLUMNS][TSNE_TILE_BLOCKS];
    int count[COLUMNS] = {0};
    for (int c = beside; c <= last; c++) {
        const int kind = c < after || c >= whole ? MASKED : kept[c] ? KEPT : PLAIN;
        for (int b = 0; kind == MASKED && b < TSNE_GROUP; b++) {
            const bool once = pair->within && row + b == c;
            own[count[MASKED] * TSNE_GROUP + b] = pair->within && row + b > c ? mask[MASK_NONE]
                                                  : c >= whole                ? mask[once ? MASK_ONCE_LAST : MASK_LAST]
                                                                              : mask[once ? MASK_ONCE : MASK_ALL];
        }
        columns[kind][count[kind]++] = (uint8_t)c;
    }
    if (count[PLAIN] < COLUMNS_LEAST) { /* too few to be worth their own steps */
        memcpy(columns[KEPT] + count[KEPT], columns[PLAIN], (size_t)count[PLAIN]);
        count[KEPT] += count[PLAIN];
        count[PLAIN] = 0;
    }
    for (int k = 0; k < COLUMNS; k++)
        if (count[k] > 0)
            repel(push, w, work->column_push, k == PLAIN ? NULL : work->w, rows, work->columns, columns[k], count[k],
                  k == MASKED ? own : NULL, &pair->ahead);
}

static void add_forces(int64_t *sums, Work *work, omp_lock_t *lock, const Pair *pair, const TsneShape *shape) {
    const int A = shape->axes, floats = A * TSNE_BLOCK;
    const double push_scale = 1 / k_tsne_force_unit(shape->points), pull_scale = 1 / TSNE_PULL_UNIT;
    for (int v = 0; v < pair->blocks[1] * A; v++) /* the two places of each column, in the first ones' room */
        for (int l = 0; l < TSNE_BLOCK; l++)
            work->column_push[v * TSNE_BLOCK + l] =
                work->column_push[v * TSNE_WINDOW + l] + work->column_push[v * TSNE_WINDOW + TSNE_BLOCK + l];
    const float *push[2] = {work->row_push, work->column_push}, *pull[2] = {work->row_pull, work->column_pull};
    for (int side = 0; side < 2; side++) {
        const int64_t first = pair->tile[side] * TSNE_TILE_BLOCKS;
        int64_t part = first / shape->count, place = first % shape->count;
        omp_set_lock(&lock[pair->tile[side]]);
        for (int b = 0, run; b < pair->blocks[side]; b += run, place = 0, part++) { /* of blocks in one part */
            const int64_t left = shape->count - place;
            run = left < pair->blocks[side] - b ? (int)left : pair->blocks[side] - b;
            int64_t *block = sums + part * k_tsne_sums(shape) + 2 * place * floats; /* repulsion, then attraction */
            tsne_inner()->add_fixed(block, push[side] + b * floats, run, floats, push_scale);
            if (pair->cells > 0)
                tsne_inner()->add_fixed(block + floats, pull[side] + b * floats, run, floats, pull_scale);
        }
        omp_unset_lock(&lock[pair->tile[side]]);
    }
}

static void add_to_all(int64_t *sums, const TsneShape *shape, int total, int64_t value) {
    for (int part = 0; part < shape->parts; part++)
        sums[(part + 1) * k_tsne_sums(shape) - TSNE_TOTALS + total] += value;
}

/* windows (vectors, TSNE_WINDOW) <- from (vectors, 16), twice each. */
static void fill_windows(float *windows, const float *from, int vectors) {
    for (int v = 0; v < vectors; v++)
        for (int twice = 0; twice < 2; twice++)
            memcpy(windows + v * TSNE_WINDOW + twice * TSNE_BLOCK, from + v * TSNE_BLOCK, TSNE_BLOCK * sizeof(float));
}

static int points_in_tile(const TsneShape *shape, int64_t tile) {
    const int64_t left = shape->points - tile * TSNE_TILE;
    return left < TSNE_TILE ? (int)left : TSNE_TILE;
}

static int cell_values(const TsneCell *cell) {
    int values = 0;
    for (int s = 0; s < TSNE_BLOCK; s++)
        values += __builtin_popcount(cell->mask[s]);
    return values;
}
