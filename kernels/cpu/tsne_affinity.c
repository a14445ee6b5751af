/* tsne_affinity.c: the affinities P of t-SNE, from all pairs of points.
 *
 * Search: each thread takes a group of 16-row blocks, computes their distances to all points into its scratch, and works
 * on them there. Count and fill: each thread takes a pair of tiles, and computes a pair of points once for both.
 * Distances are computed three times rather than kept: N^2 floats are 400 MB at 10,000 points already. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "kernels.h"
#include "tsne_inner.h"

enum {
    NARROW = 64,      /* up to this many dimensions all points stay in the cache, and a group is one block */
    WIDE_GROUP = 4,   /* else a group of four reads the points once for all */
};

/* Of a pair of tiles: as TsneCellSums, for its rows and for its columns. */
typedef struct {
    double kept[2][TSNE_TILE], dropped[2][TSNE_TILE], p_log_p;
} TileSums;

/* What cells are made from: all points, all rows' numbers. */
typedef struct {
    const float *x;
    const TsneRows *rows;
    const TsneShape *shape;
    float least;
} Cells;

static TsneTileSize find_cells(TsneCell *cell, float *value, TileSums *sums, const Cells *all, int64_t number,
                               float *columns);
static int blocks_in_tile(int64_t tile, int64_t blocks);
static void make_windows(float *windows, const float *from, int vectors);
static void set_apart(float *d, int64_t row, int64_t column, int64_t points);
static void add_cell(TileSums *sums, const TsneCellSums *cell, int row, int column);
static size_t column_floats(int width);
static size_t thread_bytes(int width);
static float *thread_columns(void *scratch, int width);
static int group_blocks(int width);
static int64_t column_count(int64_t points);
static void group_distances(float *d, const float *x, const TsneShape *shape, int64_t first, int blocks);
static void search_block(float *mine, const float *d, int64_t block, int64_t points, double log_perplexity,
                         float share);

void k_tsne_pack(float *packed, const float *x, int64_t rows, int width, float scale) {
    const int64_t blocks = (rows + TSNE_BLOCK - 1) / TSNE_BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++)
        for (int l = 0; l < TSNE_BLOCK; l++) {
            int64_t place = b * TSNE_BLOCK + l;
            const float *from = place < rows ? x + place * width : NULL;
            for (int i = 0; i < width; i++)
                packed[(b * width + i) * TSNE_BLOCK + l] = from ? from[i] * scale : 0;
        }
}

size_t k_tsne_affinity_scratch(int64_t points, int width) {
    size_t search = (size_t)group_blocks(width) * (size_t)column_count(points) * TSNE_BLOCK * sizeof(float);
    return (size_t)omp_get_max_threads() * (search > thread_bytes(width) ? search : thread_bytes(width));
}

void k_tsne_search(float *rows, const float *x, const TsneShape *shape, const TsneKernels *kernels, void *scratch) {
    const int group = group_blocks(shape->width);
    const int64_t stride = column_count(shape->points) * TSNE_BLOCK;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t b = 0; b < shape->count; b += group) {
        float *d = (float *)scratch + omp_get_thread_num() * group * stride;
        int blocks = shape->count - b < group ? (int)(shape->count - b) : group;
        group_distances(d, x, shape, shape->first + b, blocks);
        for (int i = 0; i < blocks; i++)
            for (int k = 0; k < kernels->count; k++)
                search_block(rows + ((b + i) * kernels->count + k) * TSNE_ROW_NUMBERS * TSNE_BLOCK, d + i * stride,
                             shape->first + b + i, shape->points, tsne_log(kernels->perplexity[k]), kernels->share[k]);
    }
}

void k_tsne_count(TsneTileSize *sizes, const float *x, const TsneRows *rows, const TsneShape *shape, int64_t from,
                  int64_t step, int64_t tiles, float least, void *scratch) {
    const Cells all = {.x = x, .rows = rows, .shape = shape, .least = least};
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t t = 0; t < tiles; t++)
        sizes[t] = find_cells(NULL, NULL, NULL, &all, from + t * step, thread_columns(scratch, shape->width));
}

void k_tsne_fill(const TsneAffinities *affinities, TsneAffinitySums sums, int64_t from, int64_t to, const float *x,
                 const TsneRows *rows, const TsneShape *shape, float least, void *scratch) {
    const Cells all = {.x = x, .rows = rows, .shape = shape, .least = least};
    const double kept_unit = k_tsne_kept_unit(shape->points);
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t t = from; t < to; t++) {
        TileSums *tile_sums = (TileSums *)(thread_columns(scratch, shape->width) + column_floats(shape->width));
        memset(tile_sums, 0, sizeof *tile_sums);
        find_cells(affinities->cell + affinities->cell_start[t], affinities->value + affinities->value_start[t],
                   tile_sums, &all, affinities->tile[t], thread_columns(scratch, shape->width));
        int64_t tile[2];
        tsne_tile(&tile[0], &tile[1], shape->points, affinities->tile[t]);
#pragma omp critical(tsne_affinity_sums)
        {
            for (int side = 0; side < 2; side++)
                for (int64_t i = 0; i < TSNE_TILE && tile[side] * TSNE_TILE + i < shape->points; i++) {
                    int64_t row = tile[side] * TSNE_TILE + i;
                    sums.kept[row] += (int64_t)(tile_sums->kept[side][i] / kept_unit);
                    sums.dropped[row] += (int64_t)(tile_sums->dropped[side][i] / TSNE_DROPPED_UNIT);
                }
            *sums.p_log_p += (int64_t)(tile_sums->p_log_p / TSNE_LOG_UNIT);
        }
    }
}

/* The cells of a pair of tiles that keep any pair, and their sums: cell, value and sums may be NULL. columns: of
 * column_floats, for one block of columns as windows: its points (D, TSNE_WINDOW), its numbers, distances. */
static TsneTileSize find_cells(TsneCell *cell, float *value, TileSums *sums, const Cells *all, int64_t number,
                               float *columns) {
    const TsneInner *inner = tsne_inner();
    const int D = all->shape->width;
    const int64_t blocks = (all->shape->points + TSNE_BLOCK - 1) / TSNE_BLOCK;
    const float p_scale = (float)(0.5 / (double)all->shape->points);
    const TsneRows *rows = all->rows;
    const int64_t row_floats = (int64_t)rows->all * TSNE_ROW_NUMBERS * TSNE_BLOCK;
    float *numbers = columns + (int64_t)D * TSNE_WINDOW,
          *d = numbers + TSNE_KERNELS_MAX * TSNE_ROW_NUMBERS * TSNE_WINDOW;
    int64_t row_tile, column_tile;
    tsne_tile(&row_tile, &column_tile, all->shape->points, number);
    TsneTileSize size = {0, 0};
    const int row_blocks = blocks_in_tile(row_tile, blocks), column_blocks = blocks_in_tile(column_tile, blocks);
    for (int k = 0; k < (row_blocks + TSNE_GROUP - 1) / TSNE_GROUP * column_blocks; k++) { /* by groups of rows */
        const int first = k / column_blocks * TSNE_GROUP, c = k % column_blocks;
        const int64_t column = column_tile * TSNE_TILE_BLOCKS + c;
        make_windows(columns, all->x + column * D * TSNE_BLOCK, D);
        make_windows(numbers, rows->numbers + column * row_floats, rows->count * TSNE_ROW_NUMBERS);
        for (int r = first; r < first + TSNE_GROUP && row_tile * TSNE_TILE_BLOCKS + r <= column; r++) {
            const int64_t row = row_tile * TSNE_TILE_BLOCKS + r;
            TsneCell found = {.row = (uint8_t)r, .column = (uint8_t)c};
            TsneCellSums cell_sums;
            inner->cell_distances(d, all->x + row * D * TSNE_BLOCK, columns, D);
            if (row == column || column == blocks - 1)
                set_apart(d, row, column, all->shape->points);
            int pairs = inner->select(found.mask, value ? value + size.values : NULL, sums ? &cell_sums : NULL, d,
                                      rows->numbers + row * row_floats, numbers, rows->count, all->least, p_scale);
            if (sums)
                add_cell(sums, &cell_sums, r, c);
            if (pairs && cell)
                cell[size.cells] = found;
            size.cells += pairs > 0;
            size.values += pairs;
        }
    }
    return size;
}

static int blocks_in_tile(int64_t tile, int64_t blocks) {
    const int64_t left = blocks - tile * TSNE_TILE_BLOCKS;
    return left < TSNE_TILE_BLOCKS ? (int)left : TSNE_TILE_BLOCKS;
}

static void make_windows(float *windows, const float *from, int vectors) {
    for (int v = 0; v < vectors; v++)
        for (int twice = 0; twice < 2; twice++)
            memcpy(windows + v * TSNE_WINDOW + twice * TSNE_BLOCK, from + v * TSNE_BLOCK, TSNE_BLOCK * sizeof(float));
}

/* What is no pair of points gets TSNE_FAR: padding, and in a cell on the diagonal, where each pair appears twice, its
 * second appearance and a point with itself. */
static void set_apart(float *d, int64_t row, int64_t column, int64_t points) {
    for (int s = 0; s < TSNE_BLOCK; s++)
        for (int l = 0; l < TSNE_BLOCK; l++) {
            bool there = row * TSNE_BLOCK + l < points && column * TSNE_BLOCK + (l + s) % TSNE_BLOCK < points;
            bool once = row != column || (s > 0 && (s < TSNE_BLOCK / 2 || (s == TSNE_BLOCK / 2 && l < s)));
            if (!there || !once)
                d[s * TSNE_BLOCK + l] = TSNE_FAR;
        }
}

static void add_cell(TileSums *sums, const TsneCellSums *cell, int row, int column) {
    const int place[2] = {row * TSNE_BLOCK, column * TSNE_BLOCK};
    for (int side = 0; side < 2; side++)
        for (int l = 0; l < TSNE_BLOCK; l++) {
            sums->kept[side][place[side] + l] += cell->kept[side][l];
            sums->dropped[side][place[side] + l] += cell->dropped[side][l];
        }
    sums->p_log_p += cell->p_log_p;
}

static size_t column_floats(int width) {
    return (size_t)(width + TSNE_KERNELS_MAX * TSNE_ROW_NUMBERS) * TSNE_WINDOW + TSNE_BLOCK * TSNE_BLOCK;
}

static size_t thread_bytes(int width) {
    return (column_floats(width) * sizeof(float) + sizeof(TileSums) + 63) / 64 * 64;
}

static float *thread_columns(void *scratch, int width) {
    return (float *)((char *)scratch + (size_t)omp_get_thread_num() * thread_bytes(width));
}

static int group_blocks(int width) {
    return width > NARROW ? WIDE_GROUP : 1;
}

/* Distances are computed for whole blocks of columns; those past the last point are not read. */
static int64_t column_count(int64_t points) {
    return (points + TSNE_BLOCK - 1) / TSNE_BLOCK * TSNE_BLOCK;
}

/* d (blocks, columns, 16); TSNE_FAR from a point to itself, and in padded rows. */
static void group_distances(float *d, const float *x, const TsneShape *shape, int64_t first, int blocks) {
    const TsneInner *inner = tsne_inner();
    const int64_t columns = column_count(shape->points), stride = columns * TSNE_BLOCK;
    const int64_t block_floats = (int64_t)shape->width * TSNE_BLOCK;
    int64_t present = columns / TSNE_BLOCK - first; /* blocks past the points have no coordinates to read */
    present = present < 0 ? 0 : present < blocks ? present : blocks;
    for (int64_t j = 0; present && j < columns / TSNE_BLOCK; j++)
        inner->distances(d + j * TSNE_BLOCK * TSNE_BLOCK, stride, (int)present, x + first * block_floats,
                         x + j * block_floats, shape->width);
    for (int b = 0; b < blocks; b++)
        for (int l = 0; l < TSNE_BLOCK; l++) {
            int64_t row = (first + b) * TSNE_BLOCK + l;
            if (row < shape->points)
                d[b * stride + row * TSNE_BLOCK + l] = TSNE_FAR;
            else
                for (int64_t j = 0; j < columns; j++)
                    d[b * stride + j * TSNE_BLOCK + l] = TSNE_FAR;
        }
}

/* Newton's method on ln(beta) for 16 rows at once, each with a bisection to fall back on: all rows go through every
 * pass, and those that are done keep their beta. */
static void search_block(float *mine, const float *d, int64_t block, int64_t points, double log_perplexity,
                         float share) {
    const TsneInner *inner = tsne_inner();
    float *beta = mine + TSNE_ROW_BETA * TSNE_BLOCK, *low = mine + TSNE_ROW_LOW * TSNE_BLOCK;
    float *scale = mine + TSNE_ROW_SCALE * TSNE_BLOCK;
    TsneSearch search[TSNE_BLOCK];
    double total[TSNE_BLOCK], sums[3 * TSNE_BLOCK];
    inner->row_range(low, total, d, points);
    for (int l = 0; l < TSNE_BLOCK; l++) {
        bool real = block * TSNE_BLOCK + l < points;
        double mean = total[l] / (double)(points - 1) - low[l];
        search[l] = tsne_search_begin(mean, real);
        beta[l] = real ? (float)search[l].beta : 0;
        low[l] = real ? low[l] : 0;
        scale[l] = 0;
    }
    bool all_done = false;
    for (int pass = 0; pass < TSNE_PASSES_MAX && !all_done; pass++) {
        inner->moments(sums, d, points, beta, low);
        all_done = true;
        for (int l = 0; l < TSNE_BLOCK; l++) {
            if (search[l].done)
                continue;
            double sum = sums[l], mean = sums[TSNE_BLOCK + l] / sum;
            scale[l] = (float)(1 / sum) * share;
            tsne_search_step(&search[l], tsne_log(sum) + mean, log_perplexity,
                        sums[2 * TSNE_BLOCK + l] / sum - mean * mean);
            if (pass + 1 < TSNE_PASSES_MAX && !search[l].done)
                beta[l] = (float)search[l].beta;
            all_done = all_done && search[l].done;
        }
    }
}
