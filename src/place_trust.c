/* place_trust.c: how far the places of new samples can be trusted, for place.c: trust.c's measures of each new sample
 * against the mapped ones, in what t-SNE was given and on the map. Nobody is a neighbour of its own: a new sample that is a
 * copy of a mapped one has that at distance 0. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "comm.h"
#include "place_parts.h"
#include "progress.h"

enum { RECALLED = 10 }; /* neighbours of the recall, as in trust.c */

/* The new samples' neighbours among the mapped ones, in the layer or on the map. Device lists (blocks, K, 16). */
typedef struct {
    NeighborShape shape;
    const float *rows, *columns, *rows_packed, *columns_packed;
    float scale;
    int32_t *near;
    float *distance;
    int32_t *nearer; /* of the other's neighbours: how many are nearer than each */
} Side;

typedef struct {
    const Place *place;
    int neighbors, recalled;
    int64_t entries;
    Side layer, map;
    float *y, *y_packed; /* device: the places */
} PlaceTrust;

static void open_sides(PlaceTrust *t);
static void find(const PlaceTrust *t, Side *side, const Side *asked);
static void judge(const PlaceTrust *t);
static void write_neighbors(const PlaceTrust *t, const Side *side, const char *name);

void place_trust(const Place *p) {
    const int wanted = p->job->options->neighbors;
    PlaceTrust t = {.place = p, .neighbors = wanted < p->shape.points ? wanted : (int)p->shape.points};
    if (wanted == 0)
        return;
    t.recalled = t.neighbors < RECALLED ? t.neighbors : RECALLED;
    t.entries = (p->shape.rows + TSNE_BLOCK - 1) / TSNE_BLOCK * TSNE_BLOCK * t.neighbors;
    progress_begin(arena_printf(p->arena, "trust %s", p->from->layer), "samples", p->features->shard.total);
    open_sides(&t);
    find(&t, &t.map, NULL);
    find(&t, &t.layer, &t.map);
    find(&t, &t.map, &t.layer);
    progress_end("");
    judge(&t);
    if (p->job->options->keep_neighbors) {
        write_neighbors(&t, &t.layer, "");
        write_neighbors(&t, &t.map, "_place");
    }
    for (int i = 0; i < 2; i++) {
        const Side *side = i == 0 ? &t.layer : &t.map;
        dev_free(side->near);
        dev_free(side->distance);
        dev_free(side->nearer);
    }
    dev_free(t.y);
    dev_free(t.y_packed);
}

static void open_sides(PlaceTrust *t) {
    const Place *p = t->place;
    const int64_t M = p->shape.rows, N = p->shape.points;
    const int A = p->shape.axes;
    t->y = dev_alloc((size_t)(M * A) * sizeof *t->y);
    t->y_packed = dev_alloc((size_t)((M + TSNE_BLOCK - 1) / TSNE_BLOCK * TSNE_BLOCK * A) * sizeof *t->y);
    dev_upload(t->y, p->y, (size_t)(M * A) * sizeof *t->y);
    k_tsne_pack(t->y_packed, t->y, M, A, 1);
    const NeighborShape shape = {.rows = M, .row_first = N, .columns = N, .width = p->shape.width};
    t->layer = (Side){.shape = shape,
                      .rows = p->rows.rows,
                      .columns = p->points,
                      .rows_packed = p->rows_packed,
                      .columns_packed = p->points_packed,
                      .scale = p->scale};
    t->map = (Side){.shape = shape,
                    .rows = t->y,
                    .columns = p->map_device,
                    .rows_packed = t->y_packed,
                    .columns_packed = p->map_packed,
                    .scale = 1};
    t->map.shape.width = A;
    for (int i = 0; i < 2; i++) {
        Side *side = i == 0 ? &t->layer : &t->map;
        side->near = dev_alloc((size_t)t->entries * sizeof *side->near);
        side->distance = dev_alloc((size_t)t->entries * sizeof *side->distance);
        side->nearer = dev_alloc((size_t)t->entries * sizeof *side->nearer);
    }
}

/* The nearest; and, if asked for the other side's, how many are nearer than those. */
static void find(const PlaceTrust *t, Side *side, const Side *asked) {
    Arena *arena = arena_new();
    const size_t bytes = (size_t)t->entries * sizeof(int32_t);
    int32_t *index = ARENA_ARRAY(arena, int32_t, t->entries, "neighbours");
    float *distance = ARENA_ARRAY(arena, float, t->entries, "neighbours");
    dev_upload(side->nearer, index, bytes);
    for (int64_t i = 0; i < t->entries; i++) {
        index[i] = INT32_MAX;
        distance[i] = NEIGHBOR_NONE;
    }
    dev_upload(side->near, index, bytes);
    dev_upload(side->distance, distance, bytes);
    float *apart = dev_alloc(bytes);
    if (asked) {
        dev_upload(apart, distance, bytes);
        k_neighbors_measure(apart, asked->near, t->neighbors, side->rows, side->columns, &side->shape, side->scale);
    }
    k_neighbors_find(side->near, side->distance, t->neighbors, side->nearer, asked ? asked->near : NULL, apart,
                     asked ? t->neighbors : 0, side->rows_packed, side->columns_packed, &side->shape);
    dev_free(apart);
    arena_free(arena);
}

/* Host (rows, K) <- device (blocks, K, 16). */
static void *take(const PlaceTrust *t, Arena *arena, const void *device) {
    const int64_t rows = t->place->shape.rows, K = t->neighbors;
    int32_t *from = ARENA_ARRAY(arena, int32_t, t->entries, "neighbours"),
            *to = ARENA_ARRAY(arena, int32_t, rows * K, "neighbours");
    dev_download(from, device, (size_t)t->entries * sizeof *from);
    for (int64_t i = 0; i < rows * K; i++)
        to[i] = from[(i / K / TSNE_BLOCK * K + i % K) * TSNE_BLOCK + i / K % TSNE_BLOCK];
    return to;
}

static int declare(const PlaceTrust *t, OutputVar var, const char *suffix, const char *what) {
    const Place *p = t->place;
    var.name = arena_printf(p->arena, "%s%s", p->from->layer, suffix);
    var.long_name = what;
    if (var.rank > 0 && var.rank < 2)
        var.coordinates = job_coordinates(p->job, false);
    return output_var(p->job->output, &var);
}

static void write_measure(const PlaceTrust *t, const char *name, const char *what, const float *values, int64_t found,
                          double worst, bool penalty, int neighbors) {
    const Place *p = t->place;
    const Shard s = p->features->shard;
    int id = declare(t, (OutputVar){.type = DT_F32, .rank = 1, .dims = {"sample"}, .length = {s.total}}, name, what);
    output_int64(p->job->output, id, "neighbors", neighbors);
    output_rows(p->job->output, id, s.first, s.count, values);
    comm_sum_int64(&found, 1);
    const double share = worst > 0 ? (double)found / worst / (double)s.total : 0, mean = penalty ? 1 - share : share;
    id = declare(t, (OutputVar){.type = DT_F64}, arena_printf(p->arena, "%s_overall", name),
                 arena_printf(p->arena, "mean of %s%s", p->from->layer, name));
    output_int64(p->job->output, id, "neighbors", neighbors);
    output_whole(p->job->output, id, &mean);
}

/* As trust.c's judge_map, of each new sample among the mapped ones: as if it were one more of them. */
static void judge(const PlaceTrust *t) {
    const int64_t rows = t->place->shape.rows;
    const int K = t->neighbors;
    const double worst = trust_worst(t->place->shape.points + 1, K);
    Arena *arena = arena_new();
    const int32_t *in_layer = take(t, arena, t->layer.nearer), *in_map = take(t, arena, t->map.nearer);
    float *trusted = ARENA_ARRAY(arena, float, rows, "trust"), *continuity = ARENA_ARRAY(arena, float, rows, "trust"),
          *recall = ARENA_ARRAY(arena, float, rows, "trust");
    int64_t sums[3] = {0};
    for (int64_t i = 0; i < rows; i++) {
        int64_t false_neighbors = 0, lost = 0, found = 0;
        for (int k = 0; k < K; k++) {
            const int32_t layer = in_layer[i * K + k], map = in_map[i * K + k];
            false_neighbors += layer >= K ? layer + 1 - K : 0;
            lost += map >= K ? map + 1 - K : 0;
            found += k < t->recalled && layer < t->recalled;
        }
        trusted[i] = worst > 0 ? (float)(1 - (double)false_neighbors / worst) : 1;
        continuity[i] = worst > 0 ? (float)(1 - (double)lost / worst) : 1;
        recall[i] = (float)found / (float)t->recalled;
        sums[0] += false_neighbors;
        sums[1] += lost;
        sums[2] += found;
    }
    write_measure(t, "_place_trustworthiness", "1 where no mapped sample near the place is a false neighbour", trusted,
                  sums[0], worst, true, K);
    write_measure(t, "_place_continuity", "1 where no nearest mapped sample is far from the place", continuity, sums[1],
                  worst, true, K);
    write_measure(t, "_place_recall", "share of the nearest mapped samples that are nearest to the place, too", recall,
                  sums[2], t->recalled, false, t->recalled);
    arena_free(arena);
}

static void write_neighbors(const PlaceTrust *t, const Side *side, const char *name) {
    const Place *p = t->place;
    const Shard s = p->features->shard;
    const int64_t entries = p->shape.rows * t->neighbors;
    Arena *arena = arena_new();
    const int32_t *near = take(t, arena, side->near);
    float *distance = take(t, arena, side->distance);
    int64_t *position = ARENA_ARRAY(arena, int64_t, entries, "neighbours");
    for (int64_t i = 0; i < entries; i++) {
        position[i] = p->position[near[i]];
        distance[i] = sqrtf(distance[i]) / side->scale;
    }
    OutputVar var = {.type = DT_I64, .rank = 2, .dims = {"sample", "neighbor"}, .length = {s.total, t->neighbors}};
    const char *where = name[0] ? "near the place" : "with the nearest features";
    int id = declare(t, var, arena_printf(p->arena, "%s_neighbors", name),
                     arena_printf(p->arena, "positions in the mapped file of the samples %s", where));
    output_rows(p->job->output, id, s.first, s.count, position);
    var.type = DT_F32;
    id = declare(t, var, arena_printf(p->arena, "%s_neighbor_distances", name),
                 arena_printf(p->arena, "distances of the mapped samples %s", where));
    output_rows(p->job->output, id, s.first, s.count, distance);
    arena_free(arena);
}
