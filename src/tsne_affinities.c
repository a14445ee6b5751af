/* tsne_affinities.c: the points of a t-SNE on every rank, and the rank's rows of P.
 *
 * P is of all pairs. Three passes over the distances, none of which exchanges P: each row's own distribution; after a
 * gather of three numbers a row, how many columns each block keeps; their values. Between the last two it is known what
 * P takes, and too much is refused before anything is allocated. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "progress.h"
#include "tsne_order.h"
#include "tsne_run.h"

/* A pair is kept where c(j|i) or c(i|j) is at least this over N: what a row drops is below 2^-23 of its weight. */
static const double AFFINITY_LEAST = 0x1p-24;

static float find_scale(const TsneRun *run, const float *all);
static void find_rows(TsneRun *run);
static int64_t count_columns(TsneRun *run, void *scratch);
static void sum_affinities(TsneRun *run, TsneResult *result, const TsneBlockSums *sums);
static void refuse_too_large(const TsneRun *run, int64_t columns);
static TsneShape piece_of(const TsneRun *run, int64_t from);
static void show_affinities(const TsneRun *run, int pass, int64_t blocks);

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
    tsne_order(run->order, all, run->points, x->width);

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
    int64_t columns = count_columns(run, scratch);
    refuse_too_large(run, columns);
    run->affinities.column = dev_alloc((size_t)columns * sizeof(uint32_t));
    run->affinities.value = dev_alloc((size_t)columns * TSNE_BLOCK * sizeof(float));
    TsneBlockSums *sums = dev_alloc((size_t)run->shape.count * sizeof *sums);
    for (int64_t from = 0; from < run->shape.count;) {
        TsneShape piece = piece_of(run, from);
        TsneAffinities part = run->affinities;
        part.start += from;
        k_tsne_fill(&part, sums + from, run->packed, run->rows, &piece, (float)(AFFINITY_LEAST / (double)run->points),
                    scratch);
        show_affinities(run, 2, from += piece.count);
    }
    sum_affinities(run, result, sums);
    dev_free(sums);
    dev_free(scratch);
    dev_free(run->packed);
    dev_free(run->rows);
    run->packed = run->rows = NULL;
    int64_t most = columns;
    comm_max_int64(&most, 1);
    char note[160];
    snprintf(note, sizeof note, "%.0f neighbours a point, %.1f MiB a rank",
             (double)result->affinity_nonzeros / (double)run->points,
             (double)most * (double)(sizeof(uint32_t) + TSNE_BLOCK * sizeof(float)) / 0x1p20);
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
        show_affinities(run, 0, from += piece.count);
    }
    dev_free(scratch);
    float *mine = run->rows + run->shape.first * TSNE_ROW_NUMBERS * TSNE_BLOCK;
    comm_all_gather_device(run->rows, mine, (size_t)run->shape.count * block_bytes);
}

/* Sets where each block's columns start, and gives their total on this rank. */
static int64_t count_columns(TsneRun *run, void *scratch) {
    const int64_t count = run->shape.count;
    int64_t *on_device = dev_alloc((size_t)count * sizeof(int64_t));
    for (int64_t from = 0; from < count;) {
        TsneShape piece = piece_of(run, from);
        k_tsne_count(on_device + from, run->packed, run->rows, &piece, (float)(AFFINITY_LEAST / (double)run->points),
                     scratch);
        show_affinities(run, 1, from += piece.count);
    }
    int64_t *start = ARENA_ARRAY(run->arena, int64_t, count + 1, "blocks of P");
    dev_download(start + 1, on_device, (size_t)count * sizeof(int64_t));
    for (int64_t b = 0; b < count; b++)
        start[b + 1] += start[b];
    dev_free(on_device);
    run->affinities.start = dev_alloc((size_t)(count + 1) * sizeof(int64_t));
    dev_upload(run->affinities.start, start, (size_t)(count + 1) * sizeof(int64_t));
    return start[count];
}

static void refuse_too_large(const TsneRun *run, int64_t columns) {
    const double column_bytes = sizeof(uint32_t) + TSNE_BLOCK * sizeof(float);
    int64_t total = columns, most = columns;
    comm_sum_int64(&total, 1);
    comm_max_int64(&most, 1);
    double here = (double)dev_available() / comm_local_size();
    double least = -here;
    comm_max(&least, 1);
    const double needed = (double)most * column_bytes, free_bytes = fmax(-least, 1), ratio = needed / free_bytes;
    if (!error_caught() && ratio > 1)
        die("t-SNE of %s: the affinities of %lld samples take %.2f GiB, %.2f GiB on a rank that has %.2f GiB left; use "
            "%.0f "
            "ranks with as much memory each, or --tsne-samples %lld, or a smaller --pre-pca",
            run->name, (long long)run->points, (double)total * column_bytes / 0x1p30, needed / 0x1p30,
            free_bytes / 0x1p30, ceil(ratio * comm_size()), (long long)((double)run->points / sqrt(ratio)));
    comm_all_ok();
}

static void sum_affinities(TsneRun *run, TsneResult *result, const TsneBlockSums *sums) {
    typedef struct {
        double kept, dropped_share, p_log_p, entries;
    } BlockTotal;
    const int64_t count = run->shape.count;
    TsneBlockSums *host = ARENA_ARRAY(run->arena, TsneBlockSums, count, "sums of P");
    BlockTotal *all = ARENA_ARRAY(run->arena, BlockTotal, run->all_blocks, "sums of P");
    dev_download(host, sums, (size_t)count * sizeof *host);
    for (int64_t b = 0; b < count; b++) {
        BlockTotal *total = &all[run->shape.first + b];
        *total = (BlockTotal){0, 0, host[b].p_log_p, (double)host[b].entries};
        for (int l = 0; l < TSNE_BLOCK; l++) {
            double weight = host[b].kept[l] + host[b].dropped[l];
            total->kept += host[b].kept[l];
            bool real = (run->shape.first + b) * TSNE_BLOCK + l < run->points;
            if (real && weight > 0)
                total->dropped_share = fmax(total->dropped_share, host[b].dropped[l] / weight);
        }
    }
    comm_all_gather(all, all + run->shape.first, (size_t)count * sizeof *all);
    for (int64_t b = 0; b < run->all_blocks; b++) {
        run->p_sum += all[b].kept / (2 * (double)run->points);
        run->p_log_p += all[b].p_log_p;
        result->affinity_dropped_mass = fmax(result->affinity_dropped_mass, all[b].dropped_share);
        result->affinity_nonzeros += (int64_t)all[b].entries;
    }
    result->affinity_sum = run->p_sum;
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

static void show_affinities(const TsneRun *run, int pass, int64_t blocks) {
    enum { PASSES = 3 };
    double share = (pass + (double)blocks / (double)run->shape.count) / PASSES;
    progress_at((int64_t)(share * (double)run->points), "");
}
