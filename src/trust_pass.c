/* trust_pass.c: all pairs of points, for trust.c.
 *
 * Each rank has its own points and their lists; the points of all stream past in pieces, so that no rank ever holds them
 * all. Four passes: the nearest in each map; the distances in the layer of those; the nearest in the layer, and how many
 * are nearer than those; the same two for the layer's nearest in each map. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "progress.h"
#include "trust_parts.h"

static const int64_t PIECE_BYTES = (int64_t)64 << 20; /* of points from all ranks */

static float scale_of(const Matrix *x);
static void open_space(const Trust *t, TrustSpace *s);
static TrustAsked asked_new(const Trust *t, int count);
static void asked_free(TrustAsked *asked);
static TrustAsked choose_pairs(const Trust *t);
static void copy_list(const Trust *t, TrustAsked *to, int at, const int32_t *near);
static void stream(const Trust *t, TrustSpace *s, bool nearest, TrustAsked *measured, TrustAsked *counted);
static void *take_rows(const Trust *t, Arena *into, const void *device, int count);
static void take_neighbors(const Trust *t, TrustSpace *s);
static void take_pairs(const Trust *t, TrustSpace *s, const TrustAsked *pairs);

void trust_find(Trust *t) {
    const int K = t->neighbors, maps = t->spaces - 1;
    TrustAsked pairs = choose_pairs(t), nearest = asked_new(t, K * maps), back = asked_new(t, K);
    for (int s = 0; s < t->spaces; s++)
        open_space(t, &t->space[s]);
    for (int m = 1; m <= maps; m++) {
        stream(t, &t->space[m], true, &pairs, NULL);
        take_pairs(t, &t->space[m], &pairs);
        take_neighbors(t, &t->space[m]);
        copy_list(t, &nearest, (m - 1) * K, t->space[m].near);
    }
    stream(t, &t->space[0], false, &pairs, NULL);
    take_pairs(t, &t->space[0], &pairs);
    asked_free(&pairs);
    stream(t, &t->space[0], false, &nearest, NULL);
    stream(t, &t->space[0], true, NULL, &nearest);
    take_neighbors(t, &t->space[0]);
    t->space[0].nearer = take_rows(t, t->arena, nearest.nearer, nearest.count);
    asked_free(&nearest);
    copy_list(t, &back, 0, t->space[0].near);
    for (int m = 1; m <= maps; m++) {
        const size_t bytes =
            (size_t)((t->shard.count + TSNE_BLOCK - 1) / TSNE_BLOCK * K * TSNE_BLOCK) * sizeof(int32_t);
        Arena *arena = arena_new();
        dev_upload(back.nearer, arena_alloc(arena, bytes, 1, "neighbours"), bytes);
        arena_free(arena);
        stream(t, &t->space[m], false, &back, NULL);
        stream(t, &t->space[m], false, NULL, &back);
        t->space[m].nearer = take_rows(t, t->arena, back.nearer, K);
    }
    asked_free(&back);
}

int32_t *trust_nearest(const Trust *t, Arena *arena, const Matrix *x) {
    TrustSpace s = {.x = x};
    open_space(t, &s);
    stream(t, &s, true, NULL, NULL);
    int32_t *nearest = take_rows(t, arena, s.near, t->neighbors);
    dev_free(s.packed);
    dev_free(s.near);
    dev_free(s.near_distance);
    return nearest;
}

static int64_t blocks_of(int64_t rows) {
    return (rows + TSNE_BLOCK - 1) / TSNE_BLOCK;
}

/* The power of two that brings the largest value to [1, 2): squares neither overflow nor vanish. */
static float scale_of(const Matrix *x) {
    Arena *arena = arena_new();
    double most = 0, *column = ARENA_ARRAY(arena, double, x->width, "columns"), *device = NULL;
    device = dev_alloc((size_t)x->width * sizeof *device);
    k_column_most(device, x->rows, x->shard.count, x->width, NULL);
    dev_download(column, device, (size_t)x->width * sizeof *device);
    dev_free(device);
    for (int c = 0; c < x->width; c++)
        most = column[c] > most || isnan(column[c]) ? column[c] : most;
    arena_free(arena);
    double bad = !isfinite(most);
    comm_max(&bad, 1);
    comm_max(&most, 1);
    if (!error_caught() && bad)
        die("trust of %s: values that are not finite numbers; look at the weights and the input", x->name);
    comm_all_ok();
    return most > 0 ? ldexpf(1, -ilogb(most) > 126 ? 126 : -ilogb(most)) : 1;
}

static void open_space(const Trust *t, TrustSpace *s) {
    const int64_t rows = t->shard.count, entries = blocks_of(rows) * t->neighbors * TSNE_BLOCK;
    s->scale = scale_of(s->x);
    s->packed = dev_alloc((size_t)(blocks_of(rows) * TSNE_BLOCK * s->x->width) * sizeof(float));
    k_tsne_pack(s->packed, s->x->rows, rows, s->x->width, s->scale);
    Arena *arena = arena_new();
    int32_t *index = ARENA_ARRAY(arena, int32_t, entries, "neighbours");
    float *distance = ARENA_ARRAY(arena, float, entries, "neighbours");
    for (int64_t i = 0; i < entries; i++) {
        index[i] = INT32_MAX;
        distance[i] = NEIGHBOR_NONE;
    }
    s->near = dev_alloc((size_t)entries * sizeof *index);
    s->near_distance = dev_alloc((size_t)entries * sizeof *distance);
    dev_upload(s->near, index, (size_t)entries * sizeof *index);
    dev_upload(s->near_distance, distance, (size_t)entries * sizeof *distance);
    arena_free(arena);
}

/* Nothing is asked for yet, and nobody was nearer. */
static TrustAsked asked_new(const Trust *t, int count) {
    const int64_t entries = blocks_of(t->shard.count) * count * TSNE_BLOCK;
    const size_t bytes = (size_t)entries * sizeof(int32_t);
    Arena *arena = arena_new();
    int32_t *host = ARENA_ARRAY(arena, int32_t, entries, "neighbours");
    TrustAsked asked = {count, dev_alloc(bytes), dev_alloc(bytes), dev_alloc(bytes)};
    dev_upload(asked.distance, host, bytes);
    dev_upload(asked.nearer, host, bytes);
    for (int64_t i = 0; i < entries; i++)
        host[i] = -1;
    dev_upload(asked.point, host, bytes);
    arena_free(arena);
    return asked;
}

static void asked_free(TrustAsked *asked) {
    dev_free(asked->point);
    dev_free(asked->distance);
    dev_free(asked->nearer);
}

/* Splitmix64 of (row, draw), Steele et al. 2014: counter-based, and the same for every job. */
static uint64_t random_bits(uint64_t row, uint64_t draw) {
    uint64_t z = row * 0x9e3779b97f4a7c15u + draw * 0xbf58476d1ce4e5b9u + 0x94d049bb133111ebu;
    for (int round = 0; round < 2; round++) {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
    }
    return z;
}

/* Each unordered pair once: a point with the next N/2 (for even N half of the points leave the last one out); or some of
 * all ordered ones. */
static TrustAsked choose_pairs(const Trust *t) {
    const int64_t N = t->shard.total, entries = blocks_of(t->shard.count) * t->pairs_per_row * TSNE_BLOCK;
    Arena *arena = arena_new();
    int32_t *point = ARENA_ARRAY(arena, int32_t, entries, "pairs");
    for (int64_t i = 0; i < entries; i++) {
        const int64_t row = i / t->pairs_per_row / TSNE_BLOCK * TSNE_BLOCK + i % TSNE_BLOCK;
        const int64_t draw = i / TSNE_BLOCK % t->pairs_per_row, sample = t->shard.first + row;
        const int64_t step =
            t->all_pairs ? draw : (int64_t)(random_bits((uint64_t)sample, (uint64_t)draw) % (uint64_t)(N - 1));
        const bool twice = t->all_pairs && 2 * (step + 1) == N && 2 * sample >= N;
        point[i] = row < t->shard.count && !twice ? (int32_t)((sample + 1 + step) % N) : -1;
    }
    TrustAsked asked = {t->pairs_per_row, dev_alloc((size_t)entries * sizeof(int32_t)),
                        dev_alloc((size_t)entries * sizeof(float)), NULL};
    dev_upload(asked.point, point, (size_t)entries * sizeof(int32_t));
    arena_free(arena);
    return asked;
}

/* to->point from entry `at` on <- a list of K. */
static void copy_list(const Trust *t, TrustAsked *to, int at, const int32_t *near) {
    const int64_t list = (int64_t)t->neighbors * TSNE_BLOCK, blocks = blocks_of(t->shard.count);
    Arena *arena = arena_new();
    int32_t *from = ARENA_ARRAY(arena, int32_t, blocks * list, "neighbours");
    dev_download(from, near, (size_t)(blocks * list) * sizeof *from);
    for (int64_t b = 0; b < blocks; b++)
        dev_upload(to->point + (b * to->count + at) * TSNE_BLOCK, from + b * list, (size_t)list * sizeof *from);
    arena_free(arena);
}

/* All points in pieces: from each rank the next `step` of its own. measured, counted: NULL or what is to be done. */
static void stream(const Trust *t, TrustSpace *s, bool nearest, TrustAsked *measured, TrustAsked *counted) {
    const int64_t D = s->x->width, count = t->shard.count, ranks = comm_size();
    const size_t row_bytes = (size_t)D * sizeof(float);
    int64_t most = count, step = PIECE_BYTES / (int64_t)row_bytes / ranks / TSNE_BLOCK * TSNE_BLOCK;
    comm_max_int64(&most, 1);
    step = step < blocks_of(most) * TSNE_BLOCK ? step : blocks_of(most) * TSNE_BLOCK;
    step = step > TSNE_BLOCK ? step : TSNE_BLOCK;
    Arena *arena = arena_new();
    float *mine = ARENA_ARRAY(arena, float, step *D, "points"),
          *all = ARENA_ARRAY(arena, float, ranks *step *D, "points");
    float *piece = dev_alloc((size_t)step * row_bytes), *packed = dev_alloc((size_t)step * row_bytes);
    NeighborShape shape = {.rows = count, .row_first = t->shard.first, .width = s->x->width};
    for (int64_t from = 0; from < most; from += step) {
        const int64_t left = count - from, n = left < 0 ? 0 : left < step ? left : step;
        dev_download(mine, s->x->rows + (n ? from * D : 0), (size_t)n * row_bytes);
        comm_all_gather(all, mine, (size_t)step * row_bytes);
        for (int64_t r = 0; r < ranks; r++) {
            const int64_t there = t->counts[r] - from;
            shape.columns = there < step ? there : step;
            shape.column_first = t->firsts[r] + from;
            if (shape.columns <= 0 || count == 0)
                continue;
            dev_upload(piece, all + r * step * D, (size_t)shape.columns * row_bytes);
            if (measured)
                k_neighbors_measure(measured->distance, measured->point, measured->count, s->x->rows, piece, &shape,
                                    s->scale);
            if (!nearest && !counted)
                continue;
            k_tsne_pack(packed, piece, shape.columns, s->x->width, s->scale);
            k_neighbors_find(s->near, s->near_distance, nearest ? t->neighbors : 0, counted ? counted->nearer : NULL,
                             counted ? counted->point : NULL, counted ? counted->distance : NULL,
                             counted ? counted->count : 0, s->packed, packed, &shape);
        }
        if (s == t->space && nearest) /* the pass that takes longest */
            progress_at(from + step < most ? t->shard.total * (from + step) / most : t->shard.total, "");
    }
    dev_free(piece);
    dev_free(packed);
    arena_free(arena);
}

/* Host (rows, count) of 4-byte numbers <- device (blocks, count, 16). */
static void *take_rows(const Trust *t, Arena *into, const void *device, int count) {
    const int64_t rows = t->shard.count, entries = blocks_of(rows) * count * TSNE_BLOCK;
    int32_t *to = ARENA_ARRAY(into, int32_t, rows * count, "neighbours");
    Arena *arena = arena_new();
    int32_t *from = ARENA_ARRAY(arena, int32_t, entries, "neighbours");
    dev_download(from, device, (size_t)entries * sizeof *from);
    for (int64_t i = 0; i < rows; i++)
        for (int k = 0; k < count; k++)
            to[i * count + k] = from[(i / TSNE_BLOCK * count + k) * TSNE_BLOCK + i % TSNE_BLOCK];
    arena_free(arena);
    return to;
}

static void take_neighbors(const Trust *t, TrustSpace *s) {
    s->neighbor = take_rows(t, t->arena, s->near, t->neighbors);
    s->neighbor_distance = take_rows(t, t->arena, s->near_distance, t->neighbors);
    for (int64_t i = 0; i < t->shard.count * t->neighbors; i++)
        s->neighbor_distance[i] = sqrtf(s->neighbor_distance[i]) / s->scale;
}

/* The distances of all ranks' pairs, without the places that ask for none, on the first rank. */
static void take_pairs(const Trust *t, TrustSpace *s, const TrustAsked *pairs) {
    const int each = pairs->count;
    Arena *arena = arena_new();
    float *mine = take_rows(t, arena, pairs->distance, each);
    float *all = ARENA_ARRAY(arena, float, t->shard.total *each, "pairs");
    shard_gather(all, mine, (size_t)each * sizeof *all, t->shard);
    s->pairs = ARENA_ARRAY(t->arena, float, comm_rank() == 0 ? t->pairs : 0, "pairs");
    for (int64_t i = 0, count = 0; comm_rank() == 0 && i < t->shard.total; i++) {
        const bool less = t->all_pairs && t->shard.total % 2 == 0 && 2 * i >= t->shard.total;
        memcpy(s->pairs + count, all + i * each, (size_t)(each - less) * sizeof *all);
        count += each - less;
    }
    arena_free(arena);
}
