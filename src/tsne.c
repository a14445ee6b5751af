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
#include "stop.h"
#include "tsne_run.h"

enum { PATIENCE_EXAGGERATED = 250, PATIENCE = 300 }; /* iterations: these three numbers are scikit-learn's */
static const double GRADIENT_LEAST = 1e-7;
static const float FARTHEST = 1e18f; /* a map this large is none: squares of its distances may be infinite */
static const char FLEW_APART[] = "the map flew apart; use a smaller --learning-rate or --early-exaggeration";
static const double POLL_SECONDS = 0.5; /* between looks at whether the state is to be saved */

static void check_options(const TsneRun *run);
static bool load_results(bool *wanted, TsneResult *results, Arena *arena, TsneRun *run, const TsneMap *maps, int count);
static void make_map(TsneRun *run, TsneResult *result, Arena *arena);
static void prepare_descent(TsneRun *run);
static void descend(TsneRun *run, TsneResult *result);
static void begin_descent(TsneRun *run, double learning_rate);
static void end_exaggeration(TsneRun *run, double learning_rate);
static void look_at_error(TsneRun *run, TsneResult *result, int it);
static int64_t keep_state(TsneRun *run, TsneResult *result, int64_t polled, double since, const char *stage);
static void reset_momentum(TsneRun *run);
static void find_forces(TsneRun *run, bool want_cross);
static double count_seconds(TsneRun *run, TsnePart part, double since);
static double divergence(TsneRun *run);
static double gradient_norm(TsneRun *run);
static void deliver_map(const TsneRun *run, TsneResult *result, Arena *arena);
static void deliver_points(const TsneRun *run, TsneResult *result, Arena *arena);
static void free_descent(TsneRun *run);

void tsne(TsneResult *results, Arena *arena, const Matrix *x, const TsneMap *maps, int count,
          const TsneOptions *options) {
    TsneRun run = {.x = x, .options = options, .name = x->name, .points = x->shard.total, .arena = arena_new()};
    bool wanted[PERPLEXITIES_MAX] = {false};
    if (!error_caught())
        check_options(&run);
    comm_all_ok();
    run.shape = tsne_shape(run.points, x->width, options->axes, comm_rank(), comm_size());
    run.all_blocks = run.shape.count * comm_size();
    if (load_results(wanted, results, arena, &run, maps, count)) {
        double least = -(double)dev_available() / comm_memory_sharers();
        comm_max(&least, 1);
        run.free_bytes = -least;
        tsne_refuse_too_large(&run, &(TsneTileSize){0, 0}, &(TsneTileSize){0, 0});
        tsne_gather_points(&run);
        tsne_find_rows(&run, wanted);
        for (int m = 0, p = -1; m < count; m++) {
            if (results[m].map)
                continue;
            run.map = &maps[m];
            if (run.map->perplexity != p) {
                bool last = true;
                p = run.map->perplexity;
                wanted[p] = false;
                for (int other = 0; other < options->perplexity_count; other++)
                    last = last && !wanted[other];
                tsne_free_affinities(&run);
                tsne_find_affinities(&run, p, last);
            }
            make_map(&run, &results[m], arena);
        }
        tsne_free_affinities(&run);
    }
    arena_free(run.arena);
}

/* What the checkpoint has of the maps; wanted: perplexities of the others. False where there is none. */
static bool load_results(bool *wanted, TsneResult *results, Arena *arena, TsneRun *run, const TsneMap *maps,
                         int count) {
    const int checks = run->options->max_iter / TSNE_CHECK_EVERY;
    bool any = false;
    for (int m = 0; m < count; m++) {
        run->map = &maps[m];
        results[m] = (TsneResult){.check_iterations = ARENA_ARRAY(arena, int, checks, "t-SNE history"),
                                  .kl_history = ARENA_ARRAY(arena, double, checks, "t-SNE history")};
        if (tsne_load_result(&results[m], arena, run)) {
            progress_say("%-20s %d/%d iterations from the checkpoint  KL %.4f", maps[m].key, results[m].iterations,
                         results[m].iterations, results[m].kl);
            continue;
        }
        any = wanted[maps[m].perplexity] = true;
    }
    return any;
}

static void make_map(TsneRun *run, TsneResult *result, Arena *arena) {
    const TsneResult history = *result;
    *result = run->p_facts;
    result->check_iterations = history.check_iterations;
    result->kl_history = history.kl_history;
    prepare_descent(run);
    if (run->options->checkpoint)
        stop_hold();
    descend(run, result);
    deliver_map(run, result, arena);
    deliver_points(run, result, arena);
    tsne_save_result(run, result);
    if (run->options->checkpoint)
        stop_release(run->map->key);
    free_descent(run);
}

static void check_options(const TsneRun *run) {
    const TsneOptions *o = run->options;
    for (int p = 0; p < o->perplexity_count; p++)
        for (int k = 0; k < o->perplexity[p].count; k++) {
            const double value = o->perplexity[p].value[k];
            if (run->points < 2 || !(value >= 1 && value < (double)run->points))
                die("t-SNE of %s: perplexity %g of %lld samples; it must be at least 1 and less than the number of "
                    "samples",
                    run->name, value, (long long)run->points);
        }
    if (run->points > UINT32_MAX / 4)
        die("t-SNE of %s: %lld samples, at most %u are possible: choose some with --tsne-samples", run->name,
            (long long)run->points, UINT32_MAX / 4);
    if (o->axes != 2 && o->axes != 3)
        die("t-SNE of %s: %d axes asked for, it makes 2 or 3", run->name, o->axes);
}

static void prepare_descent(TsneRun *run) {
    const int A = run->options->axes;
    const int64_t block = A * TSNE_BLOCK, count = run->shape.count;
    Arena *arena = arena_new();
    float *y = ARENA_ARRAY(arena, float, run->all_blocks *block, "map");
    for (int64_t i = 0; i < run->points; i++)
        for (int a = 0; a < A; a++)
            y[i / TSNE_BLOCK * block + a * TSNE_BLOCK + i % TSNE_BLOCK] = run->map->start[run->order[i] * A + a];
    const size_t map_bytes = (size_t)(run->all_blocks * block) * sizeof(float);
    run->y = dev_alloc(map_bytes);
    dev_upload(run->y, y, map_bytes);
    arena_free(arena);
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
    TsneDescent *d = &run->descent;
    const size_t map_bytes = (size_t)(run->shape.count * run->shape.axes * TSNE_BLOCK) * sizeof(float);
    float *mine = run->y + run->shape.first * run->shape.axes * TSNE_BLOCK;
    result->learning_rate = o->learning_rate;
    if (result->learning_rate <= 0)
        result->learning_rate = fmax((double)run->points / o->early_exaggeration / 4, 50);
    const char *stage = run->map->key;
    char part[160], note[64] = "";
    progress_begin(stage, "iterations", o->max_iter);
    begin_descent(run, result->learning_rate);
    if (tsne_load(run, result))
        progress_restored(d->iteration);
    int64_t poll_at = d->iteration + 1, polled = d->iteration;
    double poll_since = progress_now();
    for (; d->iteration < o->max_iter; progress_at(d->iteration, note)) {
        const int it = (int)d->iteration;
        if (d->phase_end >= 0 && (it == d->phase_end || d->stopped))
            end_exaggeration(run, result->learning_rate);
        if (d->stopped)
            break;
        const bool check = (it + 1) % TSNE_CHECK_EVERY == 0;
        find_forces(run, check);
        if (check) {
            look_at_error(run, result, it);
            snprintf(note, sizeof note, "KL %.4f", result->kl_history[result->checks - 1]);
        }
        double since = progress_now();
        k_tsne_update(mine, run->update, run->gains, check ? run->norm : NULL, run->sums_mine, &run->shape, &d->step);
        since = count_seconds(run, TSNE_UPDATE, since);
        comm_all_gather_device(run->y, mine, map_bytes);
        count_seconds(run, TSNE_COMMUNICATION, since);
        if (check)
            d->stopped = it - d->best_iteration > d->patience || gradient_norm(run) <= GRADIENT_LEAST;
        d->iteration++;
        if (o->checkpoint && d->iteration == poll_at) {
            poll_at += keep_state(run, result, d->iteration - polled, poll_since, stage);
            polled = d->iteration;
            poll_since = progress_now();
        }
    }
    result->iterations = (int)d->iteration;
    find_forces(run, true);
    result->kl = divergence(run);
    snprintf(note, sizeof note, "KL %.4f", result->kl);
    progress_end(note);
    static const char *const parts[TSNE_PARTS] = {"repulsion", "attraction", "update", "communication"};
    for (int i = 0; i < TSNE_PARTS && !dev_stream(); i++) { /* a GPU does its parts when the host is long past them */
        snprintf(part, sizeof part, "%s %s", stage, parts[i]);
        progress_part(part, run->seconds[i]);
    }
}

static void begin_descent(TsneRun *run, double learning_rate) {
    const TsneOptions *o = run->options;
    memset(run->seconds, 0, sizeof run->seconds);
    run->descent = (TsneDescent){.step = {o->early_exaggeration, 0.5, learning_rate},
                                 .best = DBL_MAX,
                                 .patience = PATIENCE_EXAGGERATED,
                                 .phase_end = o->exaggeration_iter};
    reset_momentum(run);
}

static void end_exaggeration(TsneRun *run, double learning_rate) {
    TsneDescent *d = &run->descent;
    d->step = (TsneStep){1, 0.8, learning_rate};
    if (run->options->fast)
        d->step = (TsneStep){1, 0.9, learning_rate * run->options->early_exaggeration};
    d->best = DBL_MAX;
    d->best_iteration = d->iteration;
    d->patience = PATIENCE;
    d->phase_end = -1;
    d->stopped = false;
    reset_momentum(run);
}

static void look_at_error(TsneRun *run, TsneResult *result, int it) {
    TsneDescent *d = &run->descent;
    const double kl = divergence(run);
    result->check_iterations[result->checks] = it;
    result->kl_history[result->checks++] = kl;
    if (kl < d->best) {
        d->best = kl;
        d->best_iteration = it;
    }
}

/* Saves the state where it is time, or where a rank was asked to stop, and then stops. Gives the iterations until the
 * next such look, of `polled` since the last one. All that decides is a maximum over the ranks, hence the same on each. */
static int64_t keep_state(TsneRun *run, TsneResult *result, int64_t polled, double since, const char *stage) {
    enum { SECONDS, DUE, ASKED, NUMBERS };
    double most[NUMBERS] = {progress_now() - since, checkpoint_due(run->options->checkpoint), stop_asked()};
    comm_max(most, NUMBERS);
    if (most[DUE] > 0 || most[ASKED] > 0)
        tsne_save(run, result);
    if (most[ASKED] > 0) {
        char where[256];
        snprintf(where, sizeof where, "%s at iteration %lld of %d", stage, (long long)run->descent.iteration,
                 run->options->max_iter);
        stop_now((int)most[ASKED], where);
    }
    const double factor = fmin(fmax(POLL_SECONDS / fmax(most[SECONDS], 1e-6), 0.25), 4);
    return fmax((double)polled * factor, 1) < 1e6 ? (int64_t)fmax((double)polled * factor, 1) : 1000000;
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
    double since = progress_now(), pull_share = 0;
    if (want_cross || dev_repeat(&run->forces)) {
        pull_share = k_tsne_forces(run->sums, &run->affinities, want_cross, run->y, &run->shape, run->scratch);
        if (!want_cross)
            dev_repeat_end(run->forces);
    }
    const double now = progress_now();
    run->seconds[TSNE_REPULSION] += (1 - pull_share) * (now - since);
    run->seconds[TSNE_ATTRACTION] += pull_share * (now - since);
    since = now;
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
    tsne_check_finite(run, kl, FLEW_APART);
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
    Arena *scratch = arena_new();
    float *y = ARENA_ARRAY(scratch, float, run->all_blocks *block, "map");
    dev_download(y, run->y, (size_t)(run->all_blocks * block) * sizeof(float));
    float most = 0;
    for (int64_t i = 0; i < run->all_blocks * block; i++)
        most = fabsf(y[i]) > most ? fabsf(y[i]) : most;
    tsne_check_finite(run, most < FARTHEST ? most : INFINITY, FLEW_APART);
    result->map = ARENA_ARRAY(arena, float, run->points *A, "map");
    for (int64_t i = 0; i < run->points; i++)
        for (int a = 0; a < A; a++)
            result->map[run->order[i] * A + a] = y[i / TSNE_BLOCK * block + a * TSNE_BLOCK + i % TSNE_BLOCK];
    arena_free(scratch);
}

/* Of each point: sum over j of p ln(p / w) + ln(sum w) sum of p, as the divergence of all has it. */
static void deliver_points(const TsneRun *run, TsneResult *result, Arena *arena) {
    Arena *scratch = arena_new();
    const size_t bytes = (size_t)run->points * sizeof(int64_t);
    int64_t *logs = ARENA_ARRAY(scratch, int64_t, run->points, "divergence"), totals[TSNE_TOTALS];
    int64_t *sums = dev_alloc(bytes);
    dev_upload(sums, logs, bytes);
    k_tsne_point_logs(sums, &run->affinities, run->y, &run->shape);
    dev_download(logs, sums, bytes);
    dev_free(sums);
    comm_sum_int64(logs, (size_t)run->points);
    dev_download(totals, run->sums_mine + k_tsne_sums(&run->shape) - TSNE_TOTALS, sizeof totals);
    double log_w = log(2 * (double)totals[TSNE_TOTAL_W] * k_tsne_w_unit(run->points));
    comm_broadcast(&log_w, sizeof log_w); /* nodes may have different versions of libm */
    result->kl_sample = ARENA_ARRAY(arena, float, run->points, "divergence");
    result->sigma = ARENA_ARRAY(arena, float, run->points, "sigma");
    memcpy(result->sigma, run->sigma[run->map->perplexity], (size_t)run->points * sizeof(float));
    for (int64_t i = 0; i < run->points; i++)
        result->kl_sample[run->order[i]] = (float)((double)logs[i] * TSNE_LOG_UNIT + log_w * run->p_row[i]);
    arena_free(scratch);
}

static void free_descent(TsneRun *run) {
    void *on_device[] = {run->y, run->update, run->gains, run->sums, run->sums_mine, run->norm, run->scratch};
    dev_repeat_free(run->forces);
    run->forces = NULL;
    for (size_t i = 0; i < sizeof on_device / sizeof on_device[0]; i++)
        dev_free(on_device[i]);
}
