/* tsne.c: exact t-SNE over the ranks, as scikit-learn's method='exact' does it. See stages.h.
 *
 * Every rank holds all points and the map, and owns whole 16-row blocks of P, of the forces and of the state of the
 * descent: ceil(blocks / ranks) each, the last ones maybe none. The affinities need one gather, of three numbers a row;
 * an iteration needs two small ones: the sums of w per block, and the map. Nothing is added up in an order that depends
 * on the ranks, so their number changes no bit.
 * Price per iteration: N^2 / 2 pairs and the reading of P, divided by the ranks (kernels/cpu/tsne.c). */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "progress.h"
#include "stages.h"
#include "tsne_order.h"

enum {
    CHECK_EVERY = 50, /* iterations between looks at the error: these four numbers are scikit-learn's */
    PATIENCE_EXAGGERATED = 250,
    PATIENCE = 300,
};
static const double GRADIENT_LEAST = 1e-7;

/* A pair is kept where c(j|i) or c(i|j) is at least this over N: what a row drops is below 2^-23 of its weight. */
static const double AFFINITY_LEAST = 0x1p-24;

typedef struct {
    const Matrix *x;
    const TsneOptions *options;
    const char *name;
    int64_t points, all_blocks; /* all_blocks: of all ranks, padding included */
    TsneShape shape;
    int64_t *order; /* host: sample at each place of the kd-order */
    float *packed;  /* device: points (blocks, D, 16) */
    float *rows;    /* device: TSNE_ROW_NUMBERS of each row (all_blocks, .., 16) */
    TsneAffinities affinities;
    double p_sum, p_log_p; /* of the whole P, as kept */
    float *y;              /* device (all_blocks, A, 16) */
    float *update, *gains; /* device, of the rank (count, A, 16) */
    double *attraction;
    int64_t *repulsion, *z; /* z: (all_blocks) */
    double *partial;        /* device (count): sums of a block, on their way to sum_over_blocks */
    void *scratch;
    Arena *arena; /* of what is here on the host */
} Run;

static void check_options(const Run *run);
static void gather_points(Run *run);
static void check_finite(const Run *run, double value, const char *otherwise);
static float find_scale(const Run *run, const float *all);
static void find_rows(Run *run);
static void find_affinities(Run *run, TsneResult *result);
static int64_t count_columns(Run *run, void *scratch);
static void sum_affinities(Run *run, TsneResult *result, const TsneBlockSums *sums);
static void refuse_too_large(const Run *run, int64_t columns);
static TsneShape piece_of(const Run *run, int64_t from);
static void show_affinities(const Run *run, int pass, int64_t blocks);
static void prepare_descent(Run *run, const float *start);
static void descend(Run *run, TsneResult *result);
static void reset_momentum(Run *run);
static void find_forces(Run *run, bool want_cross);
static double divergence(Run *run);
static double sum_over_blocks(Run *run);
static void deliver_map(const Run *run, TsneResult *result, Arena *arena);
static void run_free(Run *run);

void tsne(TsneResult *result, Arena *arena, const Matrix *x, const float *start, const TsneOptions *options) {
    Run run = {.x = x, .options = options, .name = x->name, .points = x->shard.total, .arena = arena_new()};
    if (!error_caught())
        check_options(&run);
    comm_all_ok();
    int64_t blocks = (run.points + TSNE_BLOCK - 1) / TSNE_BLOCK, each = (blocks + comm_size() - 1) / comm_size();
    run.all_blocks = each * comm_size();
    run.shape = (TsneShape){run.points, each * comm_rank(), each, x->width, options->axes};
    int checks = options->max_iter / CHECK_EVERY;
    *result = (TsneResult){.check_iterations = ARENA_ARRAY(arena, int, checks, "t-SNE history"),
                           .kl_history = ARENA_ARRAY(arena, double, checks, "t-SNE history")};
    gather_points(&run);
    find_rows(&run);
    find_affinities(&run, result);
    prepare_descent(&run, start);
    descend(&run, result);
    deliver_map(&run, result, arena);
    run_free(&run);
}

static void check_options(const Run *run) {
    const TsneOptions *o = run->options;
    if (run->points < 2 || !(o->perplexity >= 1 && o->perplexity < (double)run->points))
        die("t-SNE of %s: perplexity %g of %lld samples; it must be at least 1 and less than the number of samples",
            run->name, o->perplexity, (long long)run->points);
    if (run->points > UINT32_MAX / 4)
        die("t-SNE of %s: %lld samples, at most %u are possible: choose some with --tsne-samples", run->name,
            (long long)run->points, UINT32_MAX / 4);
    if (o->axes != 2 && o->axes != 3)
        die("t-SNE of %s: %d axes asked for, it makes 2 or 3", run->name, o->axes);
}

/* ---- Points and affinities ------------------------------------------------------------------------------------- */

static void gather_points(Run *run) {
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

static void check_finite(const Run *run, double value, const char *otherwise) {
    if (!error_caught() && !isfinite(value))
        die("t-SNE of %s: %s", run->name, otherwise);
    comm_all_ok();
}

/* The power of two that brings the largest value to [1, 2): squares neither overflow nor vanish, and no bit changes. */
static float find_scale(const Run *run, const float *all) {
    float most = 0;
    for (int64_t i = 0; i < run->points * run->x->width; i++)
        most = fabsf(all[i]) > most || isnan(all[i]) ? fabsf(all[i]) : most; /* a NaN stays */
    check_finite(run, most, "values that are not finite numbers; look at the weights and the input");
    return most > 0 ? ldexpf(1, -ilogbf(most) > 126 ? 126 : -ilogbf(most)) : 1;
}

/* beta, low and scale of each row: computed by its owner, then everyone's. */
static void find_rows(Run *run) {
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

static void find_affinities(Run *run, TsneResult *result) {
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
        k_tsne_fill(&part, sums + from, run->packed, run->rows, &piece,
                    (float)(AFFINITY_LEAST / (double)run->points), scratch);
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

/* Sets where each block's columns start, and gives their total on this rank. */
static int64_t count_columns(Run *run, void *scratch) {
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

static void refuse_too_large(const Run *run, int64_t columns) {
    const double column_bytes = sizeof(uint32_t) + TSNE_BLOCK * sizeof(float);
    int64_t total = columns, most = columns;
    comm_sum_int64(&total, 1);
    comm_max_int64(&most, 1);
    double here = (double)dev_available() / comm_local_size();
    double least = -here;
    comm_max(&least, 1);
    const double needed = (double)most * column_bytes, free_bytes = fmax(-least, 1), ratio = needed / free_bytes;
    if (!error_caught() && ratio > 1)
        die("t-SNE of %s: the affinities of %lld samples take %.2f GiB, %.2f GiB on a rank that has %.2f GiB left; use %.0f "
            "ranks with as much memory each, or --tsne-samples %lld, or a smaller --pre-pca",
            run->name, (long long)run->points, (double)total * column_bytes / 0x1p30, needed / 0x1p30,
            free_bytes / 0x1p30, ceil(ratio * comm_size()), (long long)((double)run->points / sqrt(ratio)));
    comm_all_ok();
}

static void sum_affinities(Run *run, TsneResult *result, const TsneBlockSums *sums) {
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
static TsneShape piece_of(const Run *run, int64_t from) {
    const double pairs_of_block = (double)run->points * TSNE_BLOCK;
    int64_t blocks = (int64_t)(1e10 / (pairs_of_block * (run->shape.width + 150))) / 64 * 64 + 64;
    TsneShape piece = run->shape;
    piece.first += from;
    piece.count = run->shape.count - from < blocks ? run->shape.count - from : blocks;
    return piece;
}

static void show_affinities(const Run *run, int pass, int64_t blocks) {
    enum { PASSES = 3 };
    double share = (pass + (double)blocks / (double)run->shape.count) / PASSES;
    progress_at((int64_t)(share * (double)run->points), "");
}

/* ---- Gradient descent ------------------------------------------------------------------------------------------- */

static void prepare_descent(Run *run, const float *start) {
    const int A = run->options->axes;
    const int64_t block = A * TSNE_BLOCK, count = run->shape.count;
    float *y = ARENA_ARRAY(run->arena, float, run->all_blocks * block, "map");
    for (int64_t i = 0; i < run->points; i++)
        for (int a = 0; a < A; a++)
            y[i / TSNE_BLOCK * block + a * TSNE_BLOCK + i % TSNE_BLOCK] = start[run->order[i] * A + a];
    const size_t map_bytes = (size_t)(run->all_blocks * block) * sizeof(float);
    run->y = dev_alloc(map_bytes);
    dev_upload(run->y, y, map_bytes);
    run->update = dev_alloc((size_t)(count * block) * sizeof(float));
    run->gains = dev_alloc((size_t)(count * block) * sizeof(float));
    run->attraction = dev_alloc((size_t)(count * block) * sizeof(double));
    run->repulsion = dev_alloc((size_t)(count * block) * sizeof(int64_t));
    run->z = dev_alloc((size_t)run->all_blocks * sizeof(int64_t));
    run->partial = dev_alloc((size_t)count * sizeof(double));
    run->scratch = dev_alloc(k_tsne_repulsion_scratch(&run->shape));
}

/* scikit-learn's schedule and its rule for stopping. Phase 1 judges by the error against the exaggerated P, which grows
 * with the error against P: the same decisions. */
static void descend(Run *run, TsneResult *result) {
    const TsneOptions *o = run->options;
    const size_t map_bytes = (size_t)(run->shape.count * run->shape.axes * TSNE_BLOCK) * sizeof(float);
    float *mine = run->y + run->shape.first * run->shape.axes * TSNE_BLOCK;
    result->learning_rate = o->learning_rate;
    if (result->learning_rate <= 0)
        result->learning_rate = fmax((double)run->points / o->early_exaggeration / 4, 50);
    char stage[160], note[64] = "";
    snprintf(stage, sizeof stage, "tsne %s", run->name);
    progress_begin(stage, "iterations", o->max_iter);
    TsneStep step = {o->early_exaggeration, 0.5, result->learning_rate};
    double best = DBL_MAX;
    int best_iteration = 0, patience = PATIENCE_EXAGGERATED, phase_end = o->exaggeration_iter, it;
    bool stopped = false;
    reset_momentum(run);
    for (it = 0; it < o->max_iter; it++) {
        if (phase_end >= 0 && (it == phase_end || stopped)) {
            step = (TsneStep){1, 0.8, result->learning_rate};
            best = DBL_MAX;
            best_iteration = it;
            patience = PATIENCE;
            phase_end = -1;
            stopped = false;
            reset_momentum(run);
        }
        if (stopped)
            break;
        const bool check = (it + 1) % CHECK_EVERY == 0;
        find_forces(run, check);
        if (check) {
            double kl = divergence(run);
            snprintf(note, sizeof note, "KL %.4f", kl);
            result->check_iterations[result->checks] = it;
            result->kl_history[result->checks++] = kl;
            if (kl < best) {
                best = kl;
                best_iteration = it;
            }
        }
        k_tsne_update(mine, run->update, run->gains, check ? run->partial : NULL, run->attraction, run->repulsion, run->z,
                      run->all_blocks, &run->shape, &step);
        comm_all_gather_device(run->y, mine, map_bytes);
        if (check)
            stopped = it - best_iteration > patience || sqrt(sum_over_blocks(run)) <= GRADIENT_LEAST;
        progress_at(it + 1, note);
    }
    result->iterations = it;
    find_forces(run, true);
    result->kl = divergence(run);
    snprintf(note, sizeof note, "KL %.4f", result->kl);
    progress_end(note);
}

static void reset_momentum(Run *run) {
    const int64_t floats = run->shape.count * run->shape.axes * TSNE_BLOCK;
    Arena *arena = arena_new();
    float *values = ARENA_ARRAY(arena, float, floats, "gains");
    dev_upload(run->update, values, (size_t)floats * sizeof(float));
    for (int64_t i = 0; i < floats; i++)
        values[i] = 1;
    dev_upload(run->gains, values, (size_t)floats * sizeof(float));
    arena_free(arena);
}

static void find_forces(Run *run, bool want_cross) {
    int64_t *z = run->z + run->shape.first;
    k_tsne_repulsion(run->repulsion, z, run->y, &run->shape, run->scratch);
    k_tsne_attraction(run->attraction, want_cross ? run->partial : NULL, &run->affinities, run->y, &run->shape);
    comm_all_gather_device(run->z, z, (size_t)run->shape.count * sizeof *z);
}

/* KL(P || Q) = sum p ln p - sum p ln w + ln(sum w) sum p, of the map that find_forces saw. The first rank's number
 * counts: nodes may have different versions of libm. */
static double divergence(Run *run) {
    Arena *arena = arena_new();
    int64_t *z = ARENA_ARRAY(arena, int64_t, run->all_blocks, "sums of w");
    dev_download(z, run->z, (size_t)run->all_blocks * sizeof *z);
    double z_sum = 0;
    for (int64_t b = 0; b < run->all_blocks; b++)
        z_sum += (double)z[b];
    arena_free(arena);
    double kl = run->p_log_p + sum_over_blocks(run) + log(z_sum * k_tsne_z_unit(run->points)) * run->p_sum;
    comm_broadcast(&kl, sizeof kl);
    check_finite(run, kl, "the map flew apart; use a smaller --learning-rate or --early-exaggeration");
    return kl;
}

/* Of run->partial, in the order of the blocks. */
static double sum_over_blocks(Run *run) {
    Arena *arena = arena_new();
    double *all = ARENA_ARRAY(arena, double, run->all_blocks, "sums of blocks");
    dev_download(all + run->shape.first, run->partial, (size_t)run->shape.count * sizeof *all);
    comm_all_gather(all, all + run->shape.first, (size_t)run->shape.count * sizeof *all);
    double sum = 0;
    for (int64_t b = 0; b < run->all_blocks; b++)
        sum += all[b];
    arena_free(arena);
    return sum;
}

static void deliver_map(const Run *run, TsneResult *result, Arena *arena) {
    const int A = run->options->axes;
    const int64_t block = A * TSNE_BLOCK;
    float *y = ARENA_ARRAY(run->arena, float, run->all_blocks * block, "map");
    dev_download(y, run->y, (size_t)(run->all_blocks * block) * sizeof(float));
    result->map = ARENA_ARRAY(arena, float, run->points * A, "map");
    for (int64_t i = 0; i < run->points; i++)
        for (int a = 0; a < A; a++)
            result->map[run->order[i] * A + a] = y[i / TSNE_BLOCK * block + a * TSNE_BLOCK + i % TSNE_BLOCK];
}

static void run_free(Run *run) {
    void *on_device[] = {run->affinities.start, run->affinities.column, run->affinities.value, run->y,
                         run->update,           run->gains,             run->attraction,       run->repulsion,
                         run->z,                run->partial,           run->scratch};
    for (size_t i = 0; i < sizeof on_device / sizeof on_device[0]; i++)
        dev_free(on_device[i]);
    arena_free(run->arena);
}
