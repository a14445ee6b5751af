/* tsne_state.c: a t-SNE in a checkpoint, as one whole: its state on the way, at last its result. See tsne_run.h.
 *
 * Saved: Saved below, the history, then the map, each sample's part of the divergence and sigma in the order of the samples
 * (a result), or map, update and gains in whole blocks in the order of t-SNE without the padding of the ranks (a state), so
 * that any number of ranks can go on from it. */
#include <string.h>

#include "comm.h"
#include "tsne_run.h"

typedef struct {
    int64_t points, axes, ended; /* ended: a result */
    TsneDescent descent;
    int64_t checks;
    /* of a result */
    int64_t iterations, affinity_nonzeros;
    double kl, learning_rate, affinity_sum, affinity_dropped_mass, bytes;
} Saved;

static int64_t blocks_of(const TsneRun *run) {
    return (run->points + TSNE_BLOCK - 1) / TSNE_BLOCK;
}

static size_t history_bytes(int64_t checks) {
    return (size_t)checks * (sizeof(int) + sizeof(double));
}

/* What is saved of this t-SNE, where it is such a whole: its parts, one behind the other. */
static bool find(Saved *saved, const char **rest, const TsneRun *run, Arena *scratch, bool ended) {
    size_t bytes;
    const int64_t A = run->options->axes, checks_most = run->options->max_iter / TSNE_CHECK_EVERY;
    const char *found = checkpoint_load(run->options->checkpoint, scratch, run->map->key, &bytes);
    if (!found || bytes < sizeof *saved)
        return false;
    memcpy(saved, found, sizeof *saved);
    *rest = found + sizeof *saved;
    if (saved->points != run->points || saved->axes != A || (saved->ended != 0) != ended || saved->checks < 0 ||
        saved->checks > checks_most || saved->descent.iteration < 0 ||
        saved->descent.iteration > run->options->max_iter)
        return false;
    const int64_t floats = ended ? run->points * (A + 2) : 3 * blocks_of(run) * TSNE_BLOCK * A;
    return bytes == sizeof *saved + history_bytes(saved->checks) + (size_t)floats * sizeof(float);
}

static const char *take_history(TsneResult *result, const Saved *saved, const char *rest) {
    const size_t checks = (size_t)saved->checks;
    result->checks = (int)checks;
    memcpy(result->check_iterations, rest, checks * sizeof *result->check_iterations);
    rest += checks * sizeof *result->check_iterations;
    memcpy(result->kl_history, rest, checks * sizeof *result->kl_history);
    return rest + checks * sizeof *result->kl_history;
}

bool tsne_load_result(TsneResult *result, Arena *arena, const TsneRun *run) {
    Saved saved;
    const char *rest;
    Arena *scratch = arena_new();
    const bool there = find(&saved, &rest, run, scratch, true);
    if (there) {
        const int64_t floats = run->points * run->options->axes;
        rest = take_history(result, &saved, rest);
        result->map = ARENA_ARRAY(arena, float, floats, "map");
        memcpy(result->map, rest, (size_t)floats * sizeof(float));
        rest += (size_t)floats * sizeof(float);
        result->kl_sample = ARENA_ARRAY(arena, float, 2 * run->points, "divergence");
        memcpy(result->kl_sample, rest, 2 * (size_t)run->points * sizeof(float));
        result->sigma = result->kl_sample + run->points;
        result->kl = saved.kl;
        result->iterations = (int)saved.iterations;
        result->learning_rate = saved.learning_rate;
        result->affinity_sum = saved.affinity_sum;
        result->affinity_dropped_mass = saved.affinity_dropped_mass;
        result->affinity_nonzeros = saved.affinity_nonzeros;
        result->bytes = saved.bytes;
    }
    arena_free(scratch);
    return there;
}

/* This rank's blocks of all; ranks beyond the last block have none. */
static void upload_blocks(float *mine, const char *all, const TsneRun *run) {
    const int64_t block = run->shape.axes * TSNE_BLOCK, left = blocks_of(run) - run->shape.first;
    const int64_t count = left < 0 ? 0 : left < run->shape.count ? left : run->shape.count;
    if (count > 0)
        dev_upload(mine, all + (size_t)(run->shape.first * block) * sizeof(float),
                   (size_t)(count * block) * sizeof(float));
}

bool tsne_load(TsneRun *run, TsneResult *result) {
    Saved saved;
    const char *rest;
    Arena *scratch = arena_new();
    const bool there = find(&saved, &rest, run, scratch, false);
    if (there) {
        const size_t map_bytes = (size_t)(blocks_of(run) * run->shape.axes * TSNE_BLOCK) * sizeof(float);
        rest = take_history(result, &saved, rest);
        run->descent = saved.descent;
        dev_upload(run->y, rest, map_bytes);
        upload_blocks(run->update, rest + map_bytes, run);
        upload_blocks(run->gains, rest + 2 * map_bytes, run);
    }
    arena_free(scratch);
    return there;
}

static Saved describe(const TsneRun *run, const TsneResult *result) {
    Saved saved;
    memset(&saved, 0, sizeof saved);
    saved.points = run->points;
    saved.axes = run->options->axes;
    saved.descent = run->descent;
    saved.checks = result->checks;
    return saved;
}

/* all (all_blocks, A, 16), host <- every rank's blocks. */
static float *gather_blocks(const TsneRun *run, const float *mine, Arena *scratch) {
    const size_t bytes = (size_t)(run->shape.count * run->shape.axes * TSNE_BLOCK) * sizeof(float);
    float *all = arena_alloc(scratch, (uint64_t)comm_size(), bytes, "checkpoint");
    float *own = all + (size_t)comm_rank() * (bytes / sizeof *all);
    dev_download(own, mine, bytes);
    comm_all_gather(all, own, bytes);
    return all;
}

void tsne_save(const TsneRun *run, const TsneResult *result) {
    const size_t map_bytes = (size_t)(blocks_of(run) * run->shape.axes * TSNE_BLOCK) * sizeof(float);
    const size_t checks = (size_t)result->checks;
    Arena *scratch = arena_new();
    Saved saved = describe(run, result);
    float *y = arena_alloc(scratch, map_bytes, 1, "checkpoint");
    dev_download(y, run->y, map_bytes);
    const RecordPart parts[] = {{&saved, sizeof saved},
                                {result->check_iterations, checks * sizeof *result->check_iterations},
                                {result->kl_history, checks * sizeof *result->kl_history},
                                {y, map_bytes},
                                {gather_blocks(run, run->update, scratch), map_bytes},
                                {gather_blocks(run, run->gains, scratch), map_bytes}};
    checkpoint_save(run->options->checkpoint, run->map->key, parts, sizeof parts / sizeof *parts);
    arena_free(scratch);
}

void tsne_save_result(const TsneRun *run, const TsneResult *result) {
    const size_t checks = (size_t)result->checks;
    Saved saved = describe(run, result);
    saved.ended = 1;
    saved.iterations = result->iterations;
    saved.kl = result->kl;
    saved.learning_rate = result->learning_rate;
    saved.affinity_sum = result->affinity_sum;
    saved.affinity_dropped_mass = result->affinity_dropped_mass;
    saved.affinity_nonzeros = result->affinity_nonzeros;
    saved.bytes = result->bytes;
    const RecordPart parts[] = {{&saved, sizeof saved},
                                {result->check_iterations, checks * sizeof *result->check_iterations},
                                {result->kl_history, checks * sizeof *result->kl_history},
                                {result->map, (size_t)(run->points * run->options->axes) * sizeof(float)},
                                {result->kl_sample, (size_t)run->points * sizeof(float)},
                                {result->sigma, (size_t)run->points * sizeof(float)}};
    checkpoint_save(run->options->checkpoint, run->map->key, parts, sizeof parts / sizeof *parts);
}
