/* tsne_start.c: which samples t-SNE maps, and where they start. See stages.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "stages.h"

static const double START_STD = 1e-4; /* of a PCA or random start, as scikit-learn's */

/* ---- Counter-based random numbers, keyed on (seed, sample), never on rank ------------------------------------- */

static uint64_t random_bits(uint64_t seed, uint64_t sample,
                            uint64_t draw) { /* splitmix64 of the key, Steele et al. 2014 */
    uint64_t z =
        seed * 0xd1342543de82ef95u + sample * 0x9e3779b97f4a7c15u + draw * 0xbf58476d1ce4e5b9u + 0x94d049bb133111ebu;
    for (int round = 0; round < 2; round++) {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
    }
    return z;
}

static double random_normal(uint64_t seed, uint64_t sample, uint64_t axis) { /* Box & Muller 1958 */
    double u = ((double)(random_bits(seed, sample, 2 * axis) >> 11) + 0.5) * 0x1p-53;
    double v = ((double)(random_bits(seed, sample, 2 * axis + 1) >> 11) + 0.5) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

typedef struct {
    uint64_t key;
    int64_t sample;
    int32_t category;
} Draw;

static int by_category_and_key(const void *a, const void *b) {
    const Draw *s = a, *t = b;
    if (s->category != t->category)
        return s->category < t->category ? -1 : 1;
    if (s->key != t->key)
        return s->key < t->key ? -1 : 1;
    return (s->sample > t->sample) - (s->sample < t->sample);
}

/* Of each category its share, those with the smallest keys. */
int64_t *tsne_subset(int64_t *count, Arena *arena, const Job *job) {
    Shard s = job->shard;
    const int32_t *category = job->labels ? job->labels : job->predictions;
    Draw *mine = ARENA_ARRAY(arena, Draw, s.count, "subset"), *all = ARENA_ARRAY(arena, Draw, s.total, "subset");
    int64_t *keep = ARENA_ARRAY(arena, int64_t, s.count, "subset"), wanted = job->options->tsne_samples;
    bool *share = ARENA_ARRAY(arena, bool, s.total, "subset"), *kept = ARENA_ARRAY(arena, bool, s.count, "subset");
    for (int64_t i = 0; i < s.count; i++)
        mine[i] = (Draw){random_bits((uint64_t)job->options->seed, (uint64_t)(job->from + s.first + i), UINT64_MAX),
                         s.first + i, category ? category[i] : 0};
    shard_gather(all, mine, sizeof *all, s);
    qsort(all, (size_t)s.total, sizeof *all, by_category_and_key);
    /* Sorted by category, an even comb of `wanted` teeth gives each category its share to within one. */
    for (int64_t i = 0; i < wanted; i++)
        share[i * (s.total / wanted) + i * (s.total % wanted) / wanted] = true;
    for (int64_t i = 0, begin = 0, teeth = 0; i < s.total; i++) {
        teeth += share[i];
        if (i + 1 < s.total && all[i + 1].category == all[i].category)
            continue;
        for (int64_t j = begin; j < begin + teeth; j++) /* the category's smallest keys */
            if (all[j].sample >= s.first && all[j].sample < s.first + s.count)
                kept[all[j].sample - s.first] = true;
        begin = i + 1;
        teeth = 0;
    }
    *count = 0;
    for (int64_t i = 0; i < s.count; i++)
        if (kept[i])
            keep[(*count)++] = i;
    return keep;
}

/* Columns of the scores, divided by the population standard deviation of the first, times 1e-4 (scikit-learn's 'pca');
 * columns the data has no width for, and all of them where the first does not vary, are random. */
static void start_from_pca(float *start, const float *scores, int64_t n, int columns, int axes) {
    double mean = 0, square = 0;
    for (int64_t i = 0; i < n; i++)
        mean += scores[i * columns];
    mean /= (double)n;
    for (int64_t i = 0; i < n; i++)
        square += (scores[i * columns] - mean) * (scores[i * columns] - mean);
    double std = sqrt(square / (double)n);
    for (int64_t i = 0; i < n && std > 0; i++)
        for (int a = 0; a < axes && a < columns; a++)
            start[i * axes + a] = (float)((float)(scores[i * columns + a] / (float)std) * START_STD);
}

static void start_from_file(float *start, Arena *arena, const Job *job, const int64_t *positions, int64_t n, int axes) {
    const char *spec = job->options->init;
    Dataset *file = dataset_open(arena, spec);
    int64_t in_file = file->shape[0], need = job->shard.total;
    if (file->rank != 2 || file->shape[1] != axes)
        die("%s: an array of %d dimensions with rows of %lld, expected (N, %d) for --tsne %d", spec, file->rank,
            (long long)dataset_row_size(file), axes, axes);
    if (in_file != need)
        die("%s: %lld rows, but %lld samples are mapped", spec, (long long)in_file, (long long)need);
    void *raw = arena_alloc(arena, (uint64_t)(in_file * axes), dtype_bytes(file->dtype), spec);
    float *rows = ARENA_ARRAY(arena, float, in_file *axes, spec);
    dataset_read(file, raw, 0, in_file);
    dataset_to_float(rows, raw, file->dtype, in_file * axes);
    for (int64_t i = 0; i < n; i++)
        memcpy(start + i * axes, rows + positions[i] * axes, (size_t)axes * sizeof(float));
    dataset_close(file);
}

float *tsne_start(int64_t *positions, Arena *arena, const Job *job, int run, const Pca *p, int width_of_data,
                  const int64_t *keep, Shard shard) {
    const Options *o = job->options;
    int axes = o->tsne;
    int64_t n = shard.total, *mine = ARENA_ARRAY(arena, int64_t, shard.count, "positions");
    for (int64_t i = 0; i < shard.count; i++)
        mine[i] = job->shard.first + (keep ? keep[i] : i);
    shard_gather(positions, mine, sizeof *mine, shard);
    float *start = ARENA_ARRAY(arena, float, n *axes, "t-SNE start");
    for (int64_t i = 0; i < n; i++)
        for (int a = 0; a < axes; a++)
            start[i * axes + a] = (float)(START_STD * random_normal((uint64_t)o->seed + (uint64_t)run,
                                                                    (uint64_t)(job->from + positions[i]), (uint64_t)a));
    if (run > 0)
        return start;
    if (strcmp(o->init, "pca") == 0) {
        int columns = axes < p->components ? axes : p->components;
        Matrix scores = matrix_part(&p->scores, keep, shard, columns);
        float *own = ARENA_ARRAY(arena, float, shard.count *columns, "scores");
        float *all = ARENA_ARRAY(arena, float, n *columns, "scores");
        dev_download(own, scores.rows, (size_t)(shard.count * columns) * sizeof(float));
        matrix_free(&scores);
        shard_gather(all, own, (size_t)columns * sizeof(float), shard);
        int width = columns < width_of_data ? columns : width_of_data;
        if (width < columns) /* no such column in the data: keep the random one */
            for (int64_t i = 0; i < n; i++)
                memmove(all + i * width, all + i * columns, (size_t)width * sizeof(float));
        start_from_pca(start, all, n, width, axes);
    } else if (strcmp(o->init, "random") != 0) {
        if (!error_caught())
            start_from_file(start, arena, job, positions, n, axes);
        comm_all_ok();
    }
    return start;
}
