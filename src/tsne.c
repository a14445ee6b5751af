/* tsne.c: exact t-SNE over the ranks, as scikit-learn's method='exact' does it. See stages.h.
 *
 * Every rank holds all points and the map. It owns whole 16-row blocks of the state of the descent, ceil(blocks / ranks)
 * each, the last ones maybe none; and pairs of tiles of 512 points, for the affinities and the forces of both sides. The
 * affinities need one gather, of three numbers a row, and a sum of what the tiles keep; an iteration needs a
 * reduce-scatter of forces, with the sum of w, and a gather of the map. What is added over pairs are whole numbers, what
 * is added over blocks has their order, so the number of ranks changes no bit.
 * Price per iteration: N^2 / 2 pairs and the cells of P, divided by the ranks (kernels/cpu/tsne.c), and 16 A + 4 A bytes
 * a point that are sent. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "progress.h"
#include "tsne_run.h"

enum {
    CHECK_EVERY = 50, /* iterations between looks at the error: these four numbers are scikit-learn's */
    PATIENCE_EXAGGERATED = 250,
    PATIENCE = 300,
};
static const double GRADIENT_LEAST = 1e-7;

static void check_options(const TsneRun *run);
static void prepare_descent(TsneRun *run, const float *start);
static void descend(TsneRun *run, TsneResult *result);
static void reset_momentum(TsneRun *run);
static void find_forces(TsneRun *run, bool want_cross);
static double count_seconds(TsneRun *run, TsnePart part, double since);
static double divergence(TsneRun *run);
static double gradient_norm(TsneRun *run);
static void deliver_map(const TsneRun *run, TsneResult *result, Arena *arena);
static void run_free(TsneRun *run);

void tsne(TsneResult *result, Arena *arena, const Matrix *x, const float *start, const TsneOptions *options) {
    TsneRun run = {.x = x, .options = options, .name = x->name, .points = x->shard.total, .arena = arena_new()};
    if (!error_caught())
        check_options(&run);
    comm_all_ok();
    int64_t blocks = (run.points + TSNE_BLOCK - 1) / TSNE_BLOCK, each = (blocks + comm_size() - 1) / comm_size();
    run.all_blocks = each * comm_size();
    run.shape = (TsneShape){run.points, each * comm_rank(), each, x->width, options->axes, comm_rank(), comm_size()};
    int checks = options->max_iter / CHECK_EVERY;
    *result = (TsneResult){.check_iterations = ARENA_ARRAY(arena, int, checks, "t-SNE history"),
                           .kl_history = ARENA_ARRAY(arena, double, checks, "t-SNE history")};
    double least = -(double)dev_available() / comm_memory_sharers();
    comm_max(&least, 1);
    run.free_bytes = -least;
    tsne_refuse_too_large(&run, &(TsneTileSize){0, 0}, &(TsneTileSize){0, 0});
    tsne_gather_points(&run);
    tsne_find_affinities(&run, result);
    prepare_descent(&run, start);
    descend(&run, result);
    deliver_map(&run, result, arena);
    run_free(&run);
}

static void check_options(const TsneRun *run) {
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

static void prepare_descent(TsneRun *run, const float *start) {
    const int A = run->options->axes;
    const int64_t block = A * TSNE_BLOCK, count = run->shape.count;
    float *y = ARENA_ARRAY(run->arena, float, run->all_blocks *block, "map");
    for (int64_t i = 0; i < run->points; i++)
        for (int a = 0; a < A; a++)
            y[i / TSNE_BLOCK * block + a * TSNE_BLOCK + i % TSNE_BLOCK] = start[run->order[i] * A + a];
    const size_t map_bytes = (size_t)(run->all_blocks * block) * sizeof(float);
    run->y = dev_alloc(map_bytes);
    dev_upload(run->y, y, map_bytes);
    run->update = dev_alloc((size_t)(count * block) * sizeof(float));
    run->gains = dev_alloc((size_t)(count * block) * sizeof(float));
    run->sums = dev_alloc((size_t)(comm_size() * k_tsne_sums(&run->shape)) * sizeof(int64_t));
    run->sums_mine = dev_alloc((size_t)k_tsne_sums(&run->shape) * sizeof(int64_t));
    run->norm = dev_alloc((size_t)count * sizeof(double));
    run->scratch = dev_alloc(k_tsne_scratch(&run->shape));
}

/* scikit-learn's schedule, or a faster one: a short exaggeration, and after it the step that P without its factor allows,
 * since what P pulls with is that much less (Linderman & Steinerberger 2019, Belkina et al. 2019: rate ~ N / exaggeration);
 * scikit-learn keeps the small one. Measured on logits and pooled features of MNIST and logits of Fashion-MNIST: 500
 * iterations end at a lower divergence than 1000 of scikit-learn's. The rule for stopping is scikit-learn's. Phase 1 judges by the error against the exaggerated P, which grows
 * with the error against P: the same decisions. */
static void descend(TsneRun *run, TsneResult *result) {
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
            if (o->fast)
                step = (TsneStep){1, 0.9, result->learning_rate * o->early_exaggeration};
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
        double since = progress_now();
        k_tsne_update(mine, run->update, run->gains, check ? run->norm : NULL, run->sums_mine, &run->shape, &step);
        since = count_seconds(run, TSNE_UPDATE, since);
        comm_all_gather_device(run->y, mine, map_bytes);
        count_seconds(run, TSNE_COMMUNICATION, since);
        if (check)
            stopped = it - best_iteration > patience || gradient_norm(run) <= GRADIENT_LEAST;
        progress_at(it + 1, note);
    }
    result->iterations = it;
    find_forces(run, true);
    result->kl = divergence(run);
    snprintf(note, sizeof note, "KL %.4f", result->kl);
    progress_end(note);
    static const char *const parts[TSNE_PARTS] = {"repulsion", "attraction", "update", "communication"};
    for (int i = 0; i < TSNE_PARTS && !dev_stream(); i++) { /* a GPU does its parts when the host is long past them */
        snprintf(stage, sizeof stage, "tsne %s %s", run->name, parts[i]);
        progress_part(stage, run->seconds[i]);
    }
}

static void reset_momentum(TsneRun *run) {
    const int64_t floats = run->shape.count * run->shape.axes * TSNE_BLOCK;
    Arena *arena = arena_new();
    float *values = ARENA_ARRAY(arena, float, floats, "gains");
    dev_upload(run->update, values, (size_t)floats * sizeof(float));
    for (int64_t i = 0; i < floats; i++)
        values[i] = 1;
    dev_upload(run->gains, values, (size_t)floats * sizeof(float));
    arena_free(arena);
}

static void find_forces(TsneRun *run, bool want_cross) {
    double since = progress_now();
    if (want_cross || dev_repeat(&run->forces)) {
        k_tsne_repulsion(run->sums, run->y, &run->shape, run->scratch);
        since = count_seconds(run, TSNE_REPULSION, since);
        k_tsne_attraction(run->sums, &run->affinities, want_cross, run->y, &run->shape, run->scratch);
        if (!want_cross)
            dev_repeat_end(run->forces);
    }
    since = count_seconds(run, TSNE_ATTRACTION, since);
    comm_reduce_scatter_device(run->sums_mine, run->sums, (size_t)k_tsne_sums(&run->shape));
    count_seconds(run, TSNE_COMMUNICATION, since);
}

/* Returns the time. */
static double count_seconds(TsneRun *run, TsnePart part, double since) {
    const double now = progress_now();
    run->seconds[part] += now - since;
    return now;
}

/* KL(P || Q) = sum p ln p - sum p ln w + ln(sum w) sum p, of the map that find_forces saw. The first rank's number
 * counts: nodes may have different versions of libm. */
static double divergence(TsneRun *run) {
    int64_t totals[TSNE_TOTALS];
    dev_download(totals, run->sums_mine + k_tsne_sums(&run->shape) - TSNE_TOTALS, sizeof totals);
    double w_sum = 2 * (double)totals[TSNE_TOTAL_W] * k_tsne_w_unit(run->points);
    double cross = 2 * (double)totals[TSNE_TOTAL_CROSS] * TSNE_LOG_UNIT;
    double kl = run->p_log_p + cross + log(w_sum) * run->p_sum;
    comm_broadcast(&kl, sizeof kl);
    tsne_check_finite(run, kl, "the map flew apart; use a smaller --learning-rate or --early-exaggeration");
    return kl;
}

/* Squares are added in the order of the blocks. */
static double gradient_norm(TsneRun *run) {
    Arena *arena = arena_new();
    double *all = ARENA_ARRAY(arena, double, run->all_blocks, "sums of blocks");
    dev_download(all + run->shape.first, run->norm, (size_t)run->shape.count * sizeof *all);
    comm_all_gather(all, all + run->shape.first, (size_t)run->shape.count * sizeof *all);
    double sum = 0;
    for (int64_t b = 0; b < run->all_blocks; b++)
        sum += all[b];
    arena_free(arena);
    return sqrt(sum);
}

static void deliver_map(const TsneRun *run, TsneResult *result, Arena *arena) {
    const int A = run->options->axes;
    const int64_t block = A * TSNE_BLOCK;
    float *y = ARENA_ARRAY(run->arena, float, run->all_blocks *block, "map");
    dev_download(y, run->y, (size_t)(run->all_blocks * block) * sizeof(float));
    result->map = ARENA_ARRAY(arena, float, run->points *A, "map");
    for (int64_t i = 0; i < run->points; i++)
        for (int a = 0; a < A; a++)
            result->map[run->order[i] * A + a] = y[i / TSNE_BLOCK * block + a * TSNE_BLOCK + i % TSNE_BLOCK];
}

static void run_free(TsneRun *run) {
    void *on_device[] = {run->affinities.tile,
                         run->affinities.cell_start,
                         run->affinities.value_start,
                         run->affinities.cell,
                         run->affinities.value,
                         run->y,
                         run->update,
                         run->gains,
                         run->sums,
                         run->sums_mine,
                         run->norm,
                         run->scratch};
    dev_repeat_free(run->forces);
    for (size_t i = 0; i < sizeof on_device / sizeof on_device[0]; i++)
        dev_free(on_device[i]);
    arena_free(run->arena);
}
