/* tsne_affinities.c: the points of a t-SNE on every rank, and the rank's rows of P.
 *
 * P is of all pairs. Three passes over the distances, none of which exchanges P: each row's own distributions of all
 * perplexities, by the owner of the row; after a gather of three numbers a row and perplexity, how many pairs each pair of
 * tiles keeps, for each P; its values, when its maps are to be made. Between the last two it is known what P takes: tiles
 * are dealt so that ranks have equal shares, and too much is refused before anything is allocated. Where a row turns out to
 * drop too much, the last two passes are made again. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "progress.h"
#include "shared_tsne.h"
#include "tsne_order.h"
#include "tsne_run.h"

/* The bounds of a search (kernels/shared_tsne.h), as float32 has them. */
static const double BETA_LOWEST = 1.00001e-20, BETA_HIGHEST = 0.99999e30;

/* What a row may drop of its weight. A pair is kept where c(j|i) or c(i|j) is at least some least value over N. With the
 * small one no row of any data drops more than that. The other is tried first, and every row is looked at; where one drops
 * too much, a smaller one is tried, by how much that was. Measured in units of what may be dropped: logits of MNIST 0.5 (and
 * a sixth less of P), pixels and 50 principal components of them 1.1 to 1.4, noise of 2 to 3,000 dimensions 0.06 to 1.3. */
static const double DROPPED_MOST = 0x1p-23, LEAST_SURE = 0x1p-24, LEAST_TRIED = 0x1p-19;

static float find_scale(const TsneRun *run, const float *all);
static void search_rows(TsneRun *run);
static void find_sigma(TsneRun *run, int kernels);
static TsneRows rows_of(const TsneRun *run, int perplexity);
static void count_pairs(const TsneRun *run, int perplexity, void *scratch);
static int64_t deal_tiles(const TsneRun *run, int perplexity, int64_t *tile, TsneTileSize *total, TsneTileSize *most);
static TsneTileSize make_affinities(TsneRun *run, int perplexity);
static void allocate_affinities(TsneRun *run, const TsneTileSize *sizes, const int64_t *tile, int64_t tiles);
static void fill_affinities(TsneRun *run, int perplexity);
static float least_affinity(const TsneRun *run, int perplexity);
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
    run->scale = find_scale(run, all);
    run->order = ARENA_ARRAY(run->arena, int64_t, run->points, "order of points");
    tsne_order(run->order, all, run->points, x->width, run->scale);

    const int64_t piece = 16 * TSNE_BLOCK; /* rows at a time */
    run->packed = dev_alloc((size_t)blocks * TSNE_BLOCK * row_bytes);
    float *staged = ARENA_ARRAY(whole, float, piece * x->width, "points in order");
    float *on_device = dev_alloc((size_t)piece * row_bytes);
    for (int64_t from = 0; from < run->points; from += piece) {
        int64_t count = run->points - from < piece ? run->points - from : piece;
        for (int64_t i = 0; i < count; i++)
            memcpy(staged + i * x->width, all + run->order[from + i] * x->width, row_bytes);
        dev_upload(on_device, staged, (size_t)count * row_bytes);
        k_tsne_pack(run->packed + from * x->width, on_device, count, x->width, run->scale);
    }
    dev_free(on_device);
    arena_free(whole);
}

void tsne_find_rows(TsneRun *run, const bool *wanted) {
    const int64_t all_tiles = k_tsne_tiles(run->points);
    const size_t rows_bytes = (size_t)run->points * sizeof(double);
    char stage[160];
    snprintf(stage, sizeof stage, "affinities %s", run->name);
    progress_begin(stage, "rows", run->points);
    search_rows(run);
    run->p_row = arena_alloc(run->arena, rows_bytes, 1, "sums of P");
    void *scratch = dev_alloc(k_tsne_affinity_scratch(run->points, run->shape.width));
    for (int p = 0; p < run->options->perplexity_count; p++) {
        if (!wanted[p])
            continue;
        TsneTileSize total, most;
        run->sizes[p] = ARENA_ARRAY(run->arena, TsneTileSize, all_tiles, "tiles of P");
        run->least[p] = LEAST_TRIED;
        count_pairs(run, p, scratch);
        deal_tiles(run, p, NULL, &total, &most);
        tsne_refuse_too_large(run, &total, &most);
    }
    dev_free(scratch);
    run->stage_begun = true;
}

void tsne_find_affinities(TsneRun *run, int perplexity, bool last) {
    if (!run->stage_begun) { /* not the first P */
        char stage[160];
        snprintf(stage, sizeof stage, "affinities%s", run->map->key + strlen("tsne"));
        progress_begin(stage, "rows", run->points);
    }
    run->stage_begun = false;
    TsneTileSize most = make_affinities(run, perplexity);
    while (run->p_facts.affinity_dropped_mass > DROPPED_MOST && run->least[perplexity] > LEAST_SURE) {
        const int times = ilogb(run->p_facts.affinity_dropped_mass / DROPPED_MOST);
        run->least[perplexity] = fmax(ldexp(run->least[perplexity], -2 - times), LEAST_SURE);
        tsne_free_affinities(run);
        void *scratch = dev_alloc(k_tsne_affinity_scratch(run->points, run->shape.width));
        count_pairs(run, perplexity, scratch);
        dev_free(scratch);
        most = make_affinities(run, perplexity);
    }
    if (last) {
        dev_free(run->packed);
        dev_free(run->rows);
        run->packed = run->rows = NULL;
    }
    char note[160];
    snprintf(note, sizeof note, "%.0f neighbours a point, %.1f MiB a rank",
             (double)run->p_facts.affinity_nonzeros / (double)run->points, tsne_p_bytes(most) / 0x1p20);
    progress_end(note);
}

void tsne_free_affinities(TsneRun *run) {
    TsneAffinities *a = &run->affinities;
    void *on_device[] = {a->tile, a->cell_start, a->value_start, a->cell, a->value};
    for (size_t i = 0; i < sizeof on_device / sizeof on_device[0]; i++)
        dev_free(on_device[i]);
    *a = (TsneAffinities){0};
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

/* The numbers of each row, of all perplexities: computed by its owner, then everyone's. */
static void search_rows(TsneRun *run) {
    const TsneOptions *o = run->options;
    TsneKernels kernels = {0};
    for (int p = 0; p < o->perplexity_count; p++)
        for (int k = 0; k < o->perplexity[p].count; k++) {
            kernels.perplexity[kernels.count] = o->perplexity[p].value[k];
            kernels.share[kernels.count++] = 1 / (float)o->perplexity[p].count;
        }
    const int64_t block_floats = (int64_t)kernels.count * TSNE_ROW_NUMBERS * TSNE_BLOCK;
    run->rows = dev_alloc((size_t)(run->all_blocks * block_floats) * sizeof(float));
    void *scratch = dev_alloc(k_tsne_affinity_scratch(run->points, run->shape.width));
    for (int64_t from = 0; from < run->shape.count;) {
        TsneShape piece = piece_of(run, from);
        k_tsne_search(run->rows + piece.first * block_floats, run->packed, &piece, &kernels, scratch);
        from += piece.count;
        show_affinities(run, 0, (double)from / (double)run->shape.count);
    }
    dev_free(scratch);
    comm_all_gather_device(run->rows, run->rows + run->shape.first * block_floats,
                           (size_t)(run->shape.count * block_floats) * sizeof(float));
    find_sigma(run, kernels.count);
}

/* sigma = 1 / sqrt(2 beta), of x as it was before it was scaled. Where no beta gives the perplexity the search ends at a
 * bound: more ties at the least distance than that, or fewer points. */
static void find_sigma(TsneRun *run, int kernels) {
    const int64_t block = (int64_t)kernels * TSNE_ROW_NUMBERS * TSNE_BLOCK;
    const int64_t floats = (run->points + TSNE_BLOCK - 1) / TSNE_BLOCK * block;
    Arena *arena = arena_new();
    float *rows = ARENA_ARRAY(arena, float, floats, "rows");
    dev_download(rows, run->rows, (size_t)floats * sizeof *rows);
    for (int p = 0, kernel = 0; p < run->options->perplexity_count; kernel += run->options->perplexity[p++].count) {
        run->sigma[p] = ARENA_ARRAY(run->arena, float, run->points, "sigma");
        for (int64_t i = 0; i < run->points; i++) {
            const int64_t place = (kernel * TSNE_ROW_NUMBERS + TSNE_ROW_BETA) * TSNE_BLOCK + i % TSNE_BLOCK;
            const double beta = (double)rows[i / TSNE_BLOCK * block + place];
            double sigma = 1 / sqrt(2 * beta) / (double)run->scale;
            sigma = beta >= BETA_HIGHEST ? 0 : beta <= BETA_LOWEST ? INFINITY : sigma;
            run->sigma[p][run->order[i]] = (float)sigma;
        }
    }
    arena_free(arena);
}

/* What one P is made of. */
static TsneRows rows_of(const TsneRun *run, int perplexity) {
    const Perplexity *of = run->options->perplexity;
    int first = 0;
    for (int p = 0; p < perplexity; p++)
        first += of[p].count;
    return (TsneRows){run->rows + first * TSNE_ROW_NUMBERS * TSNE_BLOCK, tsne_kernels(run->options),
                      of[perplexity].count};
}

/* Sets sizes (all pairs of tiles) of a P, on every rank. */
static void count_pairs(const TsneRun *run, int perplexity, void *scratch) {
    const int64_t all_tiles = k_tsne_tiles(run->points), ranks = run->shape.parts, piece = tiles_in_piece(run);
    const TsneRows rows = rows_of(run, perplexity);
    TsneTileSize *sizes = run->sizes[perplexity];
    memset(sizes, 0, (size_t)all_tiles * sizeof *sizes);
    Arena *arena = arena_new();
    TsneTileSize *mine = ARENA_ARRAY(arena, TsneTileSize, piece, "tiles of P");
    TsneTileSize *on_device = dev_alloc((size_t)piece * sizeof *on_device);
    for (int64_t from = run->shape.part; from < all_tiles; from += piece * ranks) {
        int64_t left = (all_tiles - from + ranks - 1) / ranks, count = left < piece ? left : piece;
        k_tsne_count(on_device, run->packed, &rows, &run->shape, from, ranks, count, least_affinity(run, perplexity),
                     scratch);
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
 * many times as many as others. Gives the number of this rank's, and which they are (unless NULL); total: of all ranks;
 * most: the largest share. */
static int64_t deal_tiles(const TsneRun *run, int perplexity, int64_t *tile, TsneTileSize *total, TsneTileSize *most) {
    const int64_t all_tiles = k_tsne_tiles(run->points), ranks = run->shape.parts;
    const TsneTileSize *sizes = run->sizes[perplexity];
    Arena *arena = arena_new();
    TsneTileSize *dealt = ARENA_ARRAY(arena, TsneTileSize, ranks, "tiles of P");
    int64_t *work = ARENA_ARRAY(arena, int64_t, ranks, "tiles of P"), tiles = 0;
    for (int64_t t = 0; t < all_tiles; t++) {
        int64_t to = 0, row, column;
        for (int64_t r = 1; r < ranks; r++)
            to = work[r] < work[to] ? r : to;
        tsne_tile(&row, &column, run->points, t);
        work[to] += sizes[t].cells + TSNE_TILE_BLOCKS * TSNE_TILE_BLOCKS / (row == column ? 2 : 1);
        dealt[to].cells += sizes[t].cells;
        dealt[to].values += sizes[t].values;
        if (to == run->shape.part) {
            if (tile)
                tile[tiles] = t;
            tiles++;
        }
    }
    *total = *most = (TsneTileSize){0, 0};
    for (int64_t r = 0; r < ranks; r++) {
        *total = (TsneTileSize){total->cells + dealt[r].cells, total->values + dealt[r].values};
        most->cells = dealt[r].cells > most->cells ? dealt[r].cells : most->cells;
        most->values = dealt[r].values > most->values ? dealt[r].values : most->values;
    }
    arena_free(arena);
    return tiles;
}

/* The rank's P, from the sizes that were counted, and what is known of the whole. Dies when it does not fit in memory.
 * Gives the largest share of a rank. */
static TsneTileSize make_affinities(TsneRun *run, int perplexity) {
    TsneTileSize most;
    Arena *arena = arena_new();
    int64_t *tile = ARENA_ARRAY(arena, int64_t, k_tsne_tiles(run->points), "tiles of P");
    run->p_facts = (TsneResult){0};
    const int64_t tiles = deal_tiles(run, perplexity, tile, &run->p_facts.affinities, &most);
    tsne_refuse_too_large(run, &run->p_facts.affinities, &most);
    allocate_affinities(run, run->sizes[perplexity], tile, tiles);
    arena_free(arena);
    run->p_facts.affinity_nonzeros = 2 * run->p_facts.affinities.values;
    run->p_facts.bytes = tsne_bytes(run, most);
    fill_affinities(run, perplexity);
    return most;
}

/* tile (tiles): this rank's pairs of tiles. */
static void allocate_affinities(TsneRun *run, const TsneTileSize *sizes, const int64_t *tile, int64_t tiles) {
    Arena *arena = arena_new();
    int64_t *cell_start = ARENA_ARRAY(arena, int64_t, tiles + 1, "tiles of P");
    int64_t *value_start = ARENA_ARRAY(arena, int64_t, tiles + 1, "tiles of P");
    for (int64_t t = 0; t < tiles; t++) {
        cell_start[t + 1] = cell_start[t] + sizes[tile[t]].cells;
        value_start[t + 1] = value_start[t] + sizes[tile[t]].values;
    }
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
    arena_free(arena);
}

/* Sets the rank's P, and of the whole of it the sums. */
static void fill_affinities(TsneRun *run, int perplexity) {
    const size_t count = (size_t)(2 * run->points + 1);
    const TsneRows rows = rows_of(run, perplexity);
    void *scratch = dev_alloc(k_tsne_affinity_scratch(run->points, run->shape.width));
    Arena *arena = arena_new();
    int64_t *host = ARENA_ARRAY(arena, int64_t, count, "sums of P");
    int64_t *sums = dev_alloc(count * sizeof *sums);
    dev_upload(sums, host, count * sizeof *sums);
    const TsneAffinitySums on_device = {sums, sums + run->points, sums + 2 * run->points};
    const int64_t tiles = run->affinities.tiles, piece = tiles_in_piece(run);
    for (int64_t from = 0; from < tiles; from += piece) {
        k_tsne_fill(&run->affinities, on_device, from, tiles - from < piece ? tiles : from + piece, run->packed, &rows,
                    &run->shape, least_affinity(run, perplexity), scratch);
        show_affinities(run, 2, (double)from / (double)tiles);
    }
    dev_download(host, sums, count * sizeof *sums);
    dev_free(sums);
    dev_free(scratch);
    comm_sum_int64(host, count);
    TsneResult *facts = &run->p_facts;
    run->p_sum = 0;
    for (int64_t i = 0; i < run->points; i++) {
        double kept = (double)host[i] * k_tsne_kept_unit(run->points);
        double dropped = (double)host[run->points + i] * TSNE_DROPPED_UNIT;
        run->p_row[i] = kept / (2 * (double)run->points);
        run->p_sum += run->p_row[i];
        if (kept + dropped > 0)
            facts->affinity_dropped_mass = fmax(facts->affinity_dropped_mass, dropped / (kept + dropped));
    }
    run->p_log_p = 2 * (double)host[2 * run->points] * TSNE_LOG_UNIT;
    facts->affinity_sum = run->p_sum;
    arena_free(arena);
}

static float least_affinity(const TsneRun *run, int perplexity) {
    return (float)(run->least[perplexity] / (double)run->points);
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
