/* trust_overall.c: how well a map keeps distances and the places of classes, for trust.c (Kobak & Berens 2019).
 *
 * CPD: Spearman's correlation of the distances in the layer and in the map. Stress: sqrt(sum (s m - d)^2 / sum d^2) of
 * distances d in the layer, m in the map, with the s that makes it least: a t-SNE map has no scale. KNC: the share of the
 * means of classes nearest to each that are so in layer and map. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "comm.h"
#include "trust_parts.h"

enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS }; /* of the radix sort: three digits */
static const int64_t MEANS_BYTES = (int64_t)128 << 20, ROWS_BYTES = (int64_t)64 << 20;
static const int64_t CLASSES_MOST = 4096; /* their distances are (classes, classes) */
enum { CLASS_NEIGHBORS_MOST = 10 };       /* Kobak & Berens' */

static void rank_pairs(uint32_t *rank, const float *distance, int64_t count);
static double correlation(const uint32_t *a, const uint32_t *b, int64_t count);
static double stress_of(const float *map, const float *layer, int64_t count);
static void mean_distances(double *distance, const Trust *t, const TrustSpace *s, const int32_t *place,
                           const int64_t *members, int64_t classes);
static void nearest_classes(int32_t *nearest, const double *distance, int64_t classes, int K);

/* ---- Distances of pairs ------------------------------------------------------------------------------------------- */

void trust_pairs(Trust *t) {
    double found[TRUST_MAPS_MAX][2] = {{0}};
    if (comm_rank() == 0) {
        Arena *arena = arena_new();
        uint32_t *layer = ARENA_ARRAY(arena, uint32_t, t->pairs, "pairs");
        uint32_t *map = ARENA_ARRAY(arena, uint32_t, t->pairs, "pairs");
        rank_pairs(layer, t->space[0].pairs, t->pairs);
        for (int m = 1; m < t->spaces; m++) {
            rank_pairs(map, t->space[m].pairs, t->pairs);
            found[m - 1][0] = correlation(map, layer, t->pairs);
            found[m - 1][1] = stress_of(t->space[m].pairs, t->space[0].pairs, t->pairs);
        }
        arena_free(arena);
    }
    comm_broadcast(found, sizeof found);
    for (int m = 1; m < t->spaces; m++) {
        t->numbers[m].cpd = found[m - 1][0];
        t->numbers[m].stress = found[m - 1][1];
    }
}

/* rank (count): twice the place of each distance among all, from 0, equal ones in the middle of theirs. */
static void rank_pairs(uint32_t *rank, const float *distance, int64_t count) {
    Arena *arena = arena_new();
    uint32_t *bits = ARENA_ARRAY(arena, uint32_t, count, "pairs"),
             *order = ARENA_ARRAY(arena, uint32_t, count, "pairs");
    uint32_t *next = ARENA_ARRAY(arena, uint32_t, count, "pairs");
    memcpy(bits, distance, (size_t)count * sizeof *bits); /* they are not negative: bits order as they do */
    for (int64_t i = 0; i < count; i++)
        order[i] = (uint32_t)i;
    for (int shift = 0; shift < 32; shift += DIGIT_BITS) {
        static int64_t start[DIGITS + 1];
        memset(start, 0, sizeof start);
        for (int64_t i = 0; i < count; i++)
            start[(bits[i] >> shift & (DIGITS - 1)) + 1]++;
        for (int d = 0; d < DIGITS; d++)
            start[d + 1] += start[d];
        for (int64_t i = 0; i < count; i++)
            next[start[bits[order[i]] >> shift & (DIGITS - 1)]++] = order[i];
        uint32_t *swap = order;
        order = next;
        next = swap;
    }
    for (int64_t i = 0, end; i < count; i = end) {
        for (end = i + 1; end < count && bits[order[end]] == bits[order[i]]; end++)
            ;
        for (int64_t j = i; j < end; j++)
            rank[order[j]] = (uint32_t)(i + end - 1);
    }
    arena_free(arena);
}

/* Of ranks, whose mean is count - 1; 0 where one of them has no order at all. */
static double correlation(const uint32_t *a, const uint32_t *b, int64_t count) {
    double ab = 0, aa = 0, bb = 0;
    for (int64_t i = 0; i < count; i++) {
        const double x = (double)a[i] - (double)(count - 1), y = (double)b[i] - (double)(count - 1);
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa) / sqrt(bb) : 0;
}

static double stress_of(const float *map, const float *layer, int64_t count) {
    double both = 0, maps = 0, layers = 0;
    for (int64_t i = 0; i < count; i++) {
        both += sqrt((double)map[i] * layer[i]);
        maps += map[i];
        layers += layer[i];
    }
    return maps > 0 && layers > 0 ? sqrt(fmax(0, 1 - both / maps * (both / layers))) : 1;
}

/* ---- Means of classes --------------------------------------------------------------------------------------------- */

void trust_classes(Trust *t) {
    Arena *arena = arena_new();
    int64_t *members = ARENA_ARRAY(arena, int64_t, t->categories, "classes"), classes = 0;
    int32_t *place = ARENA_ARRAY(arena, int32_t, t->categories, "classes"); /* of a category among those that occur */
    for (int64_t i = 0; t->labels && i < t->shard.total; i++)
        if (t->labels[i] >= 0)
            members[t->labels[i]]++;
    for (int64_t k = 0; k < t->categories; k++)
        if (members[k] > 0) {
            place[k] = (int32_t)classes;
            members[classes++] = members[k];
        }
    const int64_t half = (classes - 1) / 2;
    const int K = half < CLASS_NEIGHBORS_MOST ? (int)half : CLASS_NEIGHBORS_MOST;
    for (int m = 1; m < t->spaces; m++)
        t->numbers[m].knc = NAN;
    if (K < 1 || classes > CLASSES_MOST) {
        arena_free(arena);
        return;
    }
    t->class_neighbors = K;
    double *distance = ARENA_ARRAY(arena, double, classes *classes, "classes");
    int32_t *nearest[1 + TRUST_MAPS_MAX];
    for (int s = 0; s < t->spaces; s++) {
        nearest[s] = ARENA_ARRAY(arena, int32_t, classes * K, "classes");
        mean_distances(distance, t, &t->space[s], place, members, classes);
        nearest_classes(nearest[s], distance, classes, K);
    }
    for (int m = 1; m < t->spaces; m++) {
        int64_t kept = 0;
        for (int64_t i = 0; i < classes * K; i++)
            for (int k = 0; k < K; k++)
                kept += nearest[0][i] == nearest[m][i / K * K + k];
        t->numbers[m].knc = (double)kept / (double)(classes * K);
    }
    arena_free(arena);
}

/* sums (classes, columns) += this rank's rows, in whole units: the same for any number of ranks. */
static void add_rows(int64_t *sums, const Trust *t, const TrustSpace *s, const int32_t *place, int64_t from,
                     int64_t columns, double units) {
    const int64_t D = s->x->width, step = ROWS_BYTES / (D * (int64_t)sizeof(float)) + 1;
    Arena *arena = arena_new();
    float *rows = ARENA_ARRAY(arena, float, (t->shard.count < step ? t->shard.count : step) * D, "points");
    for (int64_t i = 0; i < t->shard.count; i += step) {
        const int64_t n = t->shard.count - i < step ? t->shard.count - i : step;
        dev_download(rows, s->x->rows + i * D, (size_t)(n * D) * sizeof *rows);
        for (int64_t r = 0; r < n; r++) {
            const int32_t label = t->labels[t->shard.first + i + r];
            int64_t *sum = label >= 0 ? sums + place[label] * columns : NULL;
            for (int64_t c = 0; sum && c < columns; c++)
                sum[c] += llrint((double)rows[r * D + from + c] * units);
        }
    }
    arena_free(arena);
}

/* distance (classes, classes): squared, of means, in scaled units; a class is apart from itself. */
static void mean_distances(double *distance, const Trust *t, const TrustSpace *s, const int32_t *place,
                           const int64_t *members, int64_t classes) {
    const int64_t D = s->x->width, most = MEANS_BYTES / (classes * (int64_t)sizeof(int64_t));
    const int64_t piece = most < 1 ? 1 : most < D ? most : D;
    const double units = ldexp(1, 60 - (int)ceil(log2((double)t->shard.total + 1)));
    Arena *arena = arena_new();
    int64_t *sums = ARENA_ARRAY(arena, int64_t, classes * piece, "classes");
    double *means = ARENA_ARRAY(arena, double, classes *piece, "classes");
    memset(distance, 0, (size_t)(classes * classes) * sizeof *distance);
    for (int64_t from = 0; from < D; from += piece) {
        const int64_t columns = D - from < piece ? D - from : piece;
        memset(sums, 0, (size_t)(classes * columns) * sizeof *sums);
        add_rows(sums, t, s, place, from, columns, units * s->scale);
        comm_sum_int64(sums, (size_t)(classes * columns));
        for (int64_t i = 0; i < classes * columns; i++)
            means[i] = (double)sums[i] / units / (double)members[i / columns];
#pragma omp parallel for schedule(dynamic, 1)
        for (int64_t a = 0; a < classes; a++)
            for (int64_t b = 0; b < classes; b++)
                for (int64_t c = 0; c < columns; c++) {
                    const double apart = means[a * columns + c] - means[b * columns + c];
                    distance[a * classes + b] += apart * apart;
                }
    }
    for (int64_t a = 0; a < classes; a++)
        distance[a * classes + a] = INFINITY;
    arena_free(arena);
}

/* nearest (classes, K), ties by number. */
static void nearest_classes(int32_t *nearest, const double *distance, int64_t classes, int K) {
    for (int64_t a = 0; a < classes; a++) {
        int found = 0;
        for (int64_t b = 0; b < classes; b++) {
            const double d = distance[a * classes + b];
            int k = found < K ? found++ : K;
            for (; k > 0 && d < distance[a * classes + nearest[a * K + k - 1]]; k--)
                if (k < K)
                    nearest[a * K + k] = nearest[a * K + k - 1];
            if (k < K)
                nearest[a * K + k] = (int32_t)b;
        }
    }
}
