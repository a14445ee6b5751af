/* stability.c: what several t-SNE maps of a layer have in common. See stages.h.
 *
 * Each map is turned (or mirrored) and moved to where it is nearest to the first one, which it may be because distances
 * in a map, not places, have a meaning; sizes stay. All maps are on every rank; the first rank's turns count for all, and
 * what follows from them are the same few operations in the same order. Neighbours are found as for the measures of
 * trust, O(N^2 / ranks) distances a map. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "progress.h"
#include "trust_parts.h"

enum { AXES_MOST = 3 };

/* How a map lies: rows (y - center) * rotation + center of the first are its aligned places. */
typedef struct {
    double center[AXES_MOST], rotation[AXES_MOST * AXES_MOST];
    double radius; /* root mean square distance from the center */
} Pose;

static void find_pose(Pose *pose, const float *map, const float *first, const Pose *of_first, int64_t N, int axes);
static void apply_pose(float *aligned, const float *map, const Pose *pose, const Pose *of_first, int64_t N, int axes);
static void spread_of(float *spread, float *const *maps, const Pose *pose, int count, int64_t N, int axes);
static void write_maps(const Trust *t, const TrustSpace *s, float *const *aligned, const TsneMap *maps,
                       const TsneResult *results, int count);
static void write_spread(const Trust *t, const TrustSpace *s, const float *spread, int count);
static void write_persistence(Trust *t, const TrustSpace *s, float *const *maps, int count);

void stability(Job *job, const Matrix *x, const char *layer, const int64_t *keep, const TsneMap *maps,
               const TsneResult *results, int count) {
    const int axes = job->options->tsne;
    const int64_t N = x->shard.total;
    Trust t = {.job = job, .arena = arena_new(), .shard = x->shard, .keep = keep};
    Pose pose[MAPS_MAX];
    float *aligned[MAPS_MAX], *spread = ARENA_ARRAY(t.arena, float, N, "maps");
    const TrustSpace s = {.prefix = arena_printf(t.arena, "%s_tsne", layer),
                          .what = arena_printf(t.arena, "t-SNE maps of %s", x->name)};
    char stage[128];
    snprintf(stage, sizeof stage, "stability %s", layer);
    progress_begin(stage, "maps", count);
    for (int m = 0; m < count; m++) {
        aligned[m] = m == 0 ? results->map : ARENA_ARRAY(t.arena, float, N *axes, "maps");
        if (comm_rank() == 0)
            find_pose(&pose[m], results[m].map, results->map, m == 0 ? NULL : pose, N, axes);
        comm_broadcast(&pose[m], sizeof *pose);
        if (m > 0)
            apply_pose(aligned[m], results[m].map, &pose[m], pose, N, axes);
    }
    spread_of(spread, aligned, pose, count, N, axes);
    write_maps(&t, &s, aligned, maps, results, count);
    write_spread(&t, &s, spread, count);
    if (trust_begin(&t))
        write_persistence(&t, &s, aligned, count);
    progress_end("");
    arena_free(t.arena);
}

double stability_bytes(int64_t rows, int64_t total, int axes, int maps, int neighbors) {
    const double n = (double)rows, N = (double)total, number = 4;
    return N * number * (axes * (maps - 1) + 1) + n * number * axes + n * neighbors * number * (maps + 4) +
           n * number * (axes + 2);
}

/* ---- Alignment ------------------------------------------------------------------------------------------------------ */

/* of_first: the first map's; NULL for the first map itself. */
static void find_pose(Pose *pose, const float *map, const float *first, const Pose *of_first, int64_t N, int axes) {
    double cross[AXES_MOST * AXES_MOST] = {0}, square = 0;
    *pose = (Pose){.radius = 0};
    for (int64_t i = 0; i < N; i++)
        for (int a = 0; a < axes; a++)
            pose->center[a] += (double)map[i * axes + a];
    for (int a = 0; a < axes; a++)
        pose->center[a] /= (double)N;
    for (int64_t i = 0; i < N; i++)
        for (int a = 0; a < axes; a++) {
            const double own = (double)map[i * axes + a] - pose->center[a];
            square += own * own;
            for (int b = 0; b < axes && of_first; b++)
                cross[a * axes + b] += own * ((double)first[i * axes + b] - of_first->center[b]);
        }
    pose->radius = sqrt(square / (double)N);
    if (of_first && !k_rotation(pose->rotation, cross, axes))
        die("aligning t-SNE maps: LAPACK's singular values did not converge");
}

static void apply_pose(float *aligned, const float *map, const Pose *pose, const Pose *of_first, int64_t N, int axes) {
    for (int64_t i = 0; i < N; i++)
        for (int b = 0; b < axes; b++) {
            double place = of_first->center[b];
            for (int a = 0; a < axes; a++)
                place += ((double)map[i * axes + a] - pose->center[a]) * pose->rotation[a * axes + b];
            aligned[i * axes + b] = (float)place;
        }
}

/* Root mean square distance to the mean place, of places in units of each map's radius: perplexities give maps of
 * different sizes. */
static void spread_of(float *spread, float *const *maps, const Pose *pose, int count, int64_t N, int axes) {
    for (int64_t i = 0; i < N; i++) {
        double square = 0;
        for (int a = 0; a < axes; a++) {
            double place[MAPS_MAX], mean = 0;
            for (int m = 0; m < count; m++) {
                const double from_center = (double)maps[m][i * axes + a] - pose->center[a];
                place[m] = pose[m].radius > 0 ? from_center / pose[m].radius : 0;
                mean += place[m] / count;
            }
            for (int m = 0; m < count; m++)
                square += (place[m] - mean) * (place[m] - mean) / count;
        }
        spread[i] = (float)sqrt(square);
    }
}

/* ---- Into the file -------------------------------------------------------------------------------------------------- */

static int map_variable(const Trust *t, const TrustSpace *s, const char *suffix, const char *long_name, int type,
                        int count, const void *values) {
    char name[192], dimension[160];
    snprintf(dimension, sizeof dimension, "%s_map", s->prefix);
    snprintf(name, sizeof name, "%s_%s", dimension, suffix);
    const OutputVar var = {
        .name = name, .type = type, .rank = 1, .dims = {dimension}, .length = {count}, .long_name = long_name};
    const int id = output_var(t->job->output, &var);
    output_whole(t->job->output, id, values);
    return id;
}

static void write_maps(const Trust *t, const TrustSpace *s, float *const *aligned, const TsneMap *maps,
                       const TsneResult *results, int count) {
    const Options *o = t->job->options;
    Output *out = t->job->output;
    double perplexity[MAPS_MAX], kl[MAPS_MAX];
    int64_t seed[MAPS_MAX];
    char several[512] = "NaN: the mean of several, ";
    for (int m = 0, before = -1; m < count; before = maps[m++].perplexity) {
        const Perplexity *p = &o->perplexity[maps[m].perplexity];
        perplexity[m] = p->count == 1 ? p->value[0] : NAN;
        if (p->count > 1 && before != maps[m].perplexity)
            snprintf(several + strlen(several), sizeof several - strlen(several), "%s ", p->text);
        kl[m] = results[m].kl;
        seed[m] = o->seed + m % o->runs;
    }
    const int id_perplexity =
        map_variable(t, s, "perplexity", "perplexity of each t-SNE map", DT_F64, count, perplexity);
    several[strlen(several) - 1] = '\0';
    for (int i = 0; i < o->perplexity_count; i++)
        if (o->perplexity[i].count > 1) {
            output_text(out, id_perplexity, "comment", several);
            break;
        }
    const int id_seed = map_variable(t, s, "seed", "seed of each t-SNE map's start", DT_I64, count, seed);
    output_text(out, id_seed, "comment",
                "the first of each perplexity starts as option_init says, the others at random");
    map_variable(t, s, "kl", "Kullback-Leibler divergence of each t-SNE map", DT_F64, count, kl);

    char name[192], what[256], dimension[160], axis[160], coordinates[1024];
    const char *of_samples = job_coordinates(t->job, false);
    snprintf(name, sizeof name, "%s_maps", s->prefix);
    snprintf(dimension, sizeof dimension, "%s_map", s->prefix);
    snprintf(axis, sizeof axis, "%.*s_axis", (int)(strlen(s->prefix) - strlen("_tsne")), s->prefix);
    snprintf(what, sizeof what, "%s, each turned or mirrored, and moved, to be nearest to the first", s->what);
    snprintf(coordinates, sizeof coordinates, "%s_perplexity %s_seed %s_kl%s%s", dimension, dimension, dimension,
             of_samples ? " " : "", of_samples ? of_samples : "");
    const Shard shard = t->job->shard;
    const OutputVar var = {.name = name,
                           .type = DT_F32,
                           .rank = 3,
                           .dims = {dimension, "sample", axis},
                           .length = {count, shard.total, o->tsne},
                           .long_name = what,
                           .coordinates = coordinates};
    const int id = output_var(out, &var);
    if (t->shard.total < shard.total)
        output_text(out, id, "comment", "NaN: not among the samples of option_tsne_samples");
    for (int m = 0; m < count; m++) {
        Arena *arena = arena_new();
        const float *own = aligned[m] + t->shard.first * o->tsne;
        output_rows_of(out, id, m, shard.first, shard.count,
                       trust_rows(t, arena, own, sizeof *own, o->tsne, &(float){NAN}));
        arena_free(arena);
    }
}

static void write_spread(const Trust *t, const TrustSpace *s, const float *spread, int count) {
    double mean = 0;
    for (int64_t i = 0; i < t->shard.total; i++)
        mean += (double)spread[i] / (double)t->shard.total;
    const char *const format = "spread of places over the aligned %s";
    const int id = trust_write_samples(t, s, "_spread", format, spread + t->shard.first, "maps", count);
    output_text(
        t->job->output, id, "definition",
        "root mean square distance to the mean place over the maps, of places in units of the radius of each map, "
        "the root mean square distance of all samples from its center");
    trust_write_overall(t, s, "_spread", format, mean, "maps", count);
}

static int by_number(const void *a, const void *b) {
    const int32_t s = *(const int32_t *)a, t = *(const int32_t *)b;
    return (s > t) - (s < t);
}

/* How many numbers two ascending lists have in common. */
static int in_common(const int32_t *a, const int32_t *b, int K) {
    int count = 0;
    for (int i = 0, j = 0; i < K && j < K;) {
        count += a[i] == b[j];
        const bool next_a = a[i] <= b[j], next_b = b[j] <= a[i];
        i += next_a;
        j += next_b;
    }
    return count;
}

static void write_persistence(Trust *t, const TrustSpace *s, float *const *maps, int count) {
    const int axes = t->job->options->tsne, K = t->neighbors;
    const int64_t rows = t->shard.count;
    const double pairs = (double)count * (count - 1) / 2;
    int32_t *near[MAPS_MAX];
    float *kept = ARENA_ARRAY(t->arena, float, rows, "neighbours");
    for (int m = 0; m < count; m++) {
        const size_t bytes = (size_t)(rows * axes) * sizeof(float);
        Matrix points = {"t-SNE map", t->shard, axes, dev_alloc(bytes)};
        dev_upload(points.rows, maps[m] + t->shard.first * axes, bytes);
        near[m] = trust_nearest(t, t->arena, &points);
        matrix_free(&points);
        for (int64_t i = 0; i < rows; i++)
            qsort(near[m] + i * K, (size_t)K, sizeof **near, by_number);
        progress_at(m + 1, "");
    }
    int64_t all = 0;
    for (int64_t i = 0; i < rows; i++) {
        int64_t common = 0;
        for (int a = 0; a < count; a++)
            for (int b = 0; b < a; b++)
                common += in_common(near[a] + i * K, near[b] + i * K, K);
        kept[i] = (float)((double)common / pairs / K);
        all += common;
    }
    comm_sum_int64(&all, 1);
    const char *const format = "share of the neighbours in one of the %s that are so in another, mean over all pairs";
    const int id = trust_write_samples(t, s, "_persistence", format, kept, "neighbors", K);
    output_int64(t->job->output, id, "maps", count);
    trust_write_overall(t, s, "_persistence", format, (double)all / pairs / K / (double)t->shard.total, "neighbors", K);
}
