/* tsne_affinities.c: the points of a t-SNE on every rank, and the rank's rows of P.
 *
 * P is of all pairs. Three passes over the distances, none of which exchanges P: each row's own distribution, by the
 * owner of the row; after a gather of three numbers a row, how many pairs each pair of tiles keeps; their values. Between
 * the last two it is known what P takes: tiles are dealt so that ranks have equal shares, and too much is refused before
 * anything is allocated. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "progress.h"
#include "shared_tsne.h"
#include "tsne_order.h"
#include "tsne_run.h"

/* A pair is kept where c(j|i) or c(i|j) is at least this over N: what a row drops is below 2^-23 of its weight. */
static const double AFFINITY_LEAST = 0x1p-24;

static float find_scale(const TsneRun *run, const float *all);
static void find_rows(TsneRun *run);
static void count_pairs(const TsneRun *run, TsneTileSize *sizes, void *scratch);
static TsneTileSize deal_tiles(TsneRun *run, Arena *arena, const TsneTileSize *sizes);
static void fill_affinities(TsneRun *run, TsneResult *result, void *scratch);
static float least_affinity(const TsneRun *run);
static TsneShape piece_of(const TsneRun *run, int64_t from);
static int64_t tiles_in_piece(const TsneRun *run);
static void show_affinities(const TsneRun *run, int pass, double share);

void tsne_gather_points(TsneRun *run) {
    const Matrix *x = run->x;
    const size_t row_bytes = (size_t)x->width * sizeof(float);
    const int64_t blocks = (run->points + TSNE_BLOCK - 1) / TSNE_BLOCK;
    Arena *whole = arena_new();
    float *all = ARENA_ARRAY(whole, float, run->points * x->width, "all points");
    Arena *part = arena_new();
    float *mine = ARENA_ARRAY(part, float, x->shard.count * x->width, "points");
    dev_download(mine, x->rows, (size_t)x->shard.count * row_bytes);
    shard_gather(all, mine, row_bytes, x->shard);
    arena_free(part);
    const float scale = find_scale(run, all);
    run->order = ARENA_ARRAY(run->arena, int64_t, run->points, "order of points");
    tsne_order(run->order, all, run->points, x->width, scale);

    const int64_t piece = 16 * TSNE_BLOCK; /* rows at a time */
    run->packed = dev_alloc((size_t)blocks * TSNE_BLOCK * row_bytes);
    float *staged = ARENA_ARRAY(whole, float, piece * x->width, "points in order");
    float *on_device = dev_alloc((size_t)piece * row_bytes);
    for (int64_t from = 0; from < run->points; from += piece) {
        int64_t count = run->points - from < piece ? run->points - from : piece;
        for (int64_t i = 0; i < count; i++)
            memcpy(staged + i * x->width, all + run->order[from + i] * x->width, row_bytes);
        dev_upload(on_device, staged, (size_t)count * row_bytes);
        k_tsne_pack(run->packed + from * x->width, on_device, count, x->width, scale);
    }
    dev_free(on_device);
    arena_free(whole);
}

void tsne_find_affinities(TsneRun *run, TsneResult *result) {
    find_rows(run);
    void *scratch = dev_alloc(k_tsne_affinity_scratch(run->points, run->shape.width));
    const int64_t all_tiles = k_tsne_tiles(run->points);
    Arena *arena = arena_new();
    TsneTileSize *sizes = ARENA_ARRAY(arena, TsneTileSize, all_tiles, "tiles of P");
    count_pairs(run, sizes, scratch);
    TsneTileSize most = deal_tiles(run, arena, sizes);
    for (int64_t t = 0; t < all_tiles; t++) {
        result->affinities.cells += sizes[t].cells;
        result->affinities.values += sizes[t].values;
    }
    result->affinity_nonzeros = 2 * result->affinities.values;
    arena_free(arena);
    fill_affinities(run, result, scratch);
    dev_free(scratch);
    dev_free(run->packed);
    dev_free(run->rows);
    run->packed = run->rows = NULL;
    char note[160];
    const double bytes = (double)most.cells * sizeof(TsneCell) + (double)most.values * sizeof(float);
    snprintf(note, sizeof note, "%.0f neighbours a point, %.1f MiB a rank",
             (double)result->affinity_nonzeros / (double)run->points, bytes / 0x1p20);
    result->bytes = tsne_bytes(run, most);
    progress_end(note);
}

void tsne_check_finite(const TsneRun *run, double value, const char *otherwise) {
    if (!error_caught() && !isfinite(value))
        die("t-SNE of %s: %s", run->name, otherwise);
    comm_all_ok();
}

/* The power of two that brings the largest value to [1, 2): squares neither overflow nor vanish, and no bit changes. */
static float find_scale(const TsneRun *run, const float *all) {
    float most = 0;
    for (int64_t i = 0; i < run->points * run->x->width; i++)
        most = fabsf(all[i]) > most || isnan(all[i]) ? fabsf(all[i]) : most; /* a NaN stays */
    tsne_check_finite(run, most, "values that are not finite numbers; look at the weights and the input");
    return most > 0 ? ldexpf(1, -ilogbf(most) > 126 ? 126 : -ilogbf(most)) : 1;
}

/* beta, low and scale of each row: computed by its owner, then everyone's. */
static void find_rows(TsneRun *run) {
    const size_t block_bytes = TSNE_ROW_NUMBERS * TSNE_BLOCK * sizeof(float);
    char stage[160];
    snprintf(stage, sizeof stage, "affinities %s", run->name);
    progress_begin(stage, "rows", run->points);
    run->rows = dev_alloc((size_t)run->all_blocks * block_bytes);
    void *scratch = dev_alloc(k_tsne_affinity_scratch(run->points, run->shape.width));
    for (int64_t from = 0; from < run->shape.count;) {
        TsneShape piece = piece_of(run, from);
        k_tsne_search(run->rows + piece.first * TSNE_ROW_NUMBERS * TSNE_BLOCK, run->packed, &piece,
                      run->options->perplexity, scratch);
        from += piece.count;
        show_affinities(run, 0, (double)from / (double)run->shape.count);
    }
    dev_free(scratch);
    float *mine = run->rows + run->shape.first * TSNE_ROW_NUMBERS * TSNE_BLOCK;
    comm_all_gather_device(run->rows, mine, (size_t)run->shape.count * block_bytes);
}

/* sizes (all pairs of tiles), on every rank. */
static void count_pairs(const TsneRun *run, TsneTileSize *sizes, void *scratch) {
    const int64_t all_tiles = k_tsne_tiles(run->points), ranks = run->shape.parts, piece = tiles_in_piece(run);
    Arena *arena = arena_new();
    TsneTileSize *mine = ARENA_ARRAY(arena, TsneTileSize, piece, "tiles of P");
    TsneTileSize *on_device = dev_alloc((size_t)piece * sizeof *on_device);
    for (int64_t from = run->shape.part; from < all_tiles; from += piece * ranks) {
        int64_t left = (all_tiles - from + ranks - 1) / ranks, count = left < piece ? left : piece;
        k_tsne_count(on_device, run->packed, run->rows, &run->shape, from, ranks, count, least_affinity(run), scratch);
        dev_download(mine, on_device, (size_t)count * sizeof *mine);
        for (int64_t t = 0; t < count; t++)
            sizes[from + t * ranks] = mine[t];
        show_affinities(run, 1, (double)from / (double)all_tiles);
    }
    dev_free(on_device);
    arena_free(arena);
    comm_sum_int64(&sizes[0].cells, (size_t)all_tiles * (sizeof *sizes / sizeof(int64_t)));
}

/* Deals the pairs of tiles to the ranks, in the order of their numbers, each to the rank that has least to do so far: the
 * repulsion of all cells, and about as much again for the attraction of those of P, of which tiles near the diagonal have
 * many times as many as others. Allocates this rank's P; gives the size of the largest share. */
static TsneTileSize deal_tiles(TsneRun *run, Arena *arena, const TsneTileSize *sizes) {
    const int64_t all_tiles = k_tsne_tiles(run->points), ranks = run->shape.parts;
    TsneTileSize *dealt = ARENA_ARRAY(arena, TsneTileSize, ranks, "tiles of P"), most = {0, 0}, total = {0, 0};
    int64_t *tile = ARENA_ARRAY(arena, int64_t, all_tiles, "tiles of P"), tiles = 0;
    int64_t *cell_start = ARENA_ARRAY(arena, int64_t, all_tiles + 1, "tiles of P");
    int64_t *value_start = ARENA_ARRAY(arena, int64_t, all_tiles + 1, "tiles of P");
    int64_t *work = ARENA_ARRAY(arena, int64_t, ranks, "tiles of P");
    for (int64_t t = 0; t < all_tiles; t++) {
        int64_t to = 0, row, column;
        for (int64_t r = 1; r < ranks; r++)
            to = work[r] < work[to] ? r : to;
        tsne_tile(&row, &column, run->points, t);
        work[to] += sizes[t].cells + TSNE_TILE_BLOCKS * TSNE_TILE_BLOCKS / (row == column ? 2 : 1);
        dealt[to].cells += sizes[t].cells;
        dealt[to].values += sizes[t].values;
        if (to != run->shape.part)
            continue;
        tile[tiles] = t;
        cell_start[tiles + 1] = cell_start[tiles] + sizes[t].cells;
        value_start[tiles + 1] = value_start[tiles] + sizes[t].values;
        tiles++;
    }
    for (int64_t r = 0; r < ranks; r++) {
        total = (TsneTileSize){total.cells + dealt[r].cells, total.values + dealt[r].values};
        most.cells = dealt[r].cells > most.cells ? dealt[r].cells : most.cells;
        most.values = dealt[r].values > most.values ? dealt[r].values : most.values;
    }
    tsne_refuse_too_large(run, &total, &most);
    TsneAffinities *a = &run->affinities;
    const size_t start_bytes = (size_t)(tiles + 1) * sizeof(int64_t);
    *a = (TsneAffinities){tiles,
                          dev_alloc((size_t)tiles * sizeof(int64_t)),
                          dev_alloc(start_bytes),
                          dev_alloc(start_bytes),
                          dev_alloc((size_t)cell_start[tiles] * sizeof(TsneCell)),
                          dev_alloc((size_t)(value_start[tiles] + TSNE_BLOCK) * sizeof(float))};
    dev_upload(a->tile, tile, (size_t)tiles * sizeof(int64_t));
    dev_upload(a->cell_start, cell_start, start_bytes);
    dev_upload(a->value_start, value_start, start_bytes);
    const float zeros[TSNE_BLOCK] = {0};
    dev_upload(a->value + value_start[tiles], zeros, sizeof zeros);
    return most;
}

/* Sets the rank's P, and of the whole of it the sums. */
static void fill_affinities(TsneRun *run, TsneResult *result, void *scratch) {
    const size_t count = (size_t)(2 * run->points + 1);
    Arena *arena = arena_new();
    int64_t *host = ARENA_ARRAY(arena, int64_t, count, "sums of P");
    int64_t *sums = dev_alloc(count * sizeof *sums);
    dev_upload(sums, host, count * sizeof *sums);
    const TsneAffinitySums on_device = {sums, sums + run->points, sums + 2 * run->points};
    const int64_t tiles = run->affinities.tiles, piece = tiles_in_piece(run);
    for (int64_t from = 0; from < tiles; from += piece) {
        k_tsne_fill(&run->affinities, on_device, from, tiles - from < piece ? tiles : from + piece, run->packed,
                    run->rows, &run->shape, least_affinity(run), scratch);
        show_affinities(run, 2, (double)from / (double)tiles);
    }
    dev_download(host, sums, count * sizeof *sums);
    dev_free(sums);
    comm_sum_int64(host, count);
    for (int64_t i = 0; i < run->points; i++) {
        double kept = (double)host[i] * k_tsne_kept_unit(run->points);
        double dropped = (double)host[run->points + i] * TSNE_DROPPED_UNIT;
        run->p_sum += kept / (2 * (double)run->points);
        if (kept + dropped > 0)
            result->affinity_dropped_mass = fmax(result->affinity_dropped_mass, dropped / (kept + dropped));
    }
    run->p_log_p = 2 * (double)host[2 * run->points] * TSNE_LOG_UNIT;
    result->affinity_sum = run->p_sum;
    arena_free(arena);
}

static float least_affinity(const TsneRun *run) {
    return (float)(AFFINITY_LEAST / (double)run->points);
}

/* About a second of work, so that progress is seen; a multiple of what the kernels take at a time. */
static TsneShape piece_of(const TsneRun *run, int64_t from) {
    const double pairs_of_block = (double)run->points * TSNE_BLOCK;
    int64_t blocks = (int64_t)(1e10 / (pairs_of_block * (run->shape.width + 150))) / 64 * 64 + 64;
    TsneShape piece = run->shape;
    piece.first += from;
    piece.count = run->shape.count - from < blocks ? run->shape.count - from : blocks;
    return piece;
}

static int64_t tiles_in_piece(const TsneRun *run) {
    return (int64_t)(1e10 / ((double)TSNE_TILE * TSNE_TILE * (run->shape.width + 150))) / 64 * 64 + 64;
}

static void show_affinities(const TsneRun *run, int pass, double share) {
    enum { PASSES = 3 };
    progress_at((int64_t)((pass + share) / PASSES * (double)run->points), "");
}
