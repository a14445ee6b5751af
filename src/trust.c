/* trust.c: how far the maps of a layer can be trusted. See stages.h.
 *
 *     points ── exact K nearest, and who is nearer (trust_pass.c) ──> per sample: trustworthiness, continuity, recall,
 *            │                                                         agreement of labels
 *            ├─ distances of pairs ──> CPD, stress    (trust_overall.c)
 *            └─ means of classes ────> KNC            (trust_overall.c)
 *
 * All points against all points, O(N^2 D / ranks) operations and O(N K / ranks) memory. What is summed over samples are
 * whole numbers, so that the number of ranks changes no bit. */
#include "trust_parts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "progress.h"

enum {
    RECALLED = 10,          /* neighbours of the recall, or K where that is less */
    PAIRS_ALL = 5000,       /* samples, up to which distances of all pairs are compared */
    PAIRS_SAMPLED = 500000, /* about so many of them past that */
};

static void open_trust(Trust *t, const char *layer, const Matrix *x, const TrustMap *maps, int count);
static int pairs_per_row(int64_t N);
static void gather_labels(Trust *t);
static void allocate_rows(Trust *t);
static void measure(Trust *t);
static void judge_map(Trust *t, int map);
static void judge_labels(Trust *t, int space);
static void free_trust(Trust *t);

void trust(Job *job, const char *layer, const Matrix *x, const int64_t *keep, const TrustMap *maps, int count) {
    Trust t = {.job = job, .arena = arena_new(), .shard = x->shard, .keep = keep};
    if (!trust_begin(&t)) {
        arena_free(t.arena);
        return;
    }
    char stage[128];
    snprintf(stage, sizeof stage, "trust %s", layer);
    open_trust(&t, layer, x, maps, count);
    if (trust_restore(&t, stage)) {
        progress_say("%-20s %lld/%lld samples from the checkpoint", stage, (long long)x->shard.total,
                     (long long)x->shard.total);
    } else {
        progress_begin(stage, "samples", x->shard.total);
        measure(&t);
        progress_end("");
        trust_keep(&t, stage);
    }
    trust_write(&t);
    trust_suspects(&t);
    free_trust(&t);
}

static void measure(Trust *t) {
    trust_find(t);
    for (int m = 1; m < t->spaces; m++)
        judge_map(t, m);
    for (int s = 0; s < t->spaces; s++)
        judge_labels(t, s);
    trust_pairs(t);
    trust_classes(t);
}

/* While the distances of pairs are brought together in the last space; or, on the first rank, while they are sorted. */
double trust_bytes(int64_t rows, int64_t total, int width, int maps, int neighbors) {
    const double n = (double)rows, N = (double)total, each = pairs_per_row(total), spaces = 1 + maps, number = 4;
    const double lists = n * neighbors * number * (5 * maps + 2 + 4 * spaces + maps), pairs = spaces * N * each;
    const double packed = n * (width + 3.0 * maps) * number;
    const double passing = fmin(64 << 20, N * width * number) + 3 * fmin(64 << 20, n * width * number);
    const double gathering = 3 * n * each + 2 * N * each, sorting = 5 * N * each;
    return lists + packed + pairs * number + fmax(fmax(gathering, sorting) * number, 2 * n * each * number + passing);
}

static int pairs_per_row(int64_t N) {
    return (int)(N <= PAIRS_ALL ? N / 2 : (PAIRS_SAMPLED + N - 1) / N);
}

bool trust_begin(Trust *t) {
    const int64_t N = t->shard.total;
    if (t->job->options->neighbors == 0 || N < 2 || N > INT32_MAX - TSNE_BLOCK)
        return false;
    t->neighbors = t->job->options->neighbors < N ? t->job->options->neighbors : (int)N - 1;
    t->recalled = t->neighbors < RECALLED ? t->neighbors : RECALLED;
    t->firsts = ARENA_ARRAY(t->arena, int64_t, comm_size(), "shards");
    t->counts = ARENA_ARRAY(t->arena, int64_t, comm_size(), "shards");
    comm_all_gather(t->firsts, &t->shard.first, sizeof *t->firsts);
    comm_all_gather(t->counts, &t->shard.count, sizeof *t->counts);
    return true;
}

static void open_trust(Trust *t, const char *layer, const Matrix *x, const TrustMap *maps, int count) {
    const int64_t N = x->shard.total;
    t->all_pairs = N <= PAIRS_ALL;
    t->pairs_per_row = pairs_per_row(N);
    t->pairs = t->all_pairs ? N * (N - 1) / 2 : N * t->pairs_per_row;
    t->spaces = 1 + count;
    t->space[0] = (TrustSpace){.prefix = layer, .what = x->name, .x = x};
    for (int m = 0; m < count; m++)
        t->space[1 + m] = (TrustSpace){.prefix = arena_printf(t->arena, "%s_%s", layer, maps[m].name),
                                       .what = arena_printf(t->arena, "%s of %s", maps[m].title, x->name),
                                       .x = &maps[m].points};
    gather_labels(t);
    allocate_rows(t);
}

static void allocate_rows(Trust *t) {
    const int64_t rows = t->shard.count;
    for (int s = 0; s < t->spaces; s++) {
        TrustNumbers *n = &t->numbers[s];
        if (t->labels)
            n->label_agreement = ARENA_ARRAY(t->arena, float, rows, "trust");
        if (s == 0)
            continue;
        n->trustworthiness = ARENA_ARRAY(t->arena, float, rows, "trust");
        n->continuity = ARENA_ARRAY(t->arena, float, rows, "trust");
        n->recall = ARENA_ARRAY(t->arena, float, rows, "trust");
    }
}

static void gather_labels(Trust *t) {
    if (!t->job->labels)
        return;
    int32_t *mine = ARENA_ARRAY(t->arena, int32_t, t->shard.count, "labels");
    int32_t *all = ARENA_ARRAY(t->arena, int32_t, t->shard.total, "labels");
    for (int64_t i = 0; i < t->shard.count; i++)
        mine[i] = t->job->labels[t->keep ? t->keep[i] : i];
    shard_gather(all, mine, sizeof *all, t->shard);
    for (int64_t i = 0; i < t->shard.total; i++)
        t->categories = all[i] >= t->categories ? all[i] + 1 : t->categories;
    t->labels = t->categories > 0 ? all : NULL;
}

double trust_worst(int64_t N, int64_t K) {
    return K < N - K ? 0.5 * (double)K * (double)(2 * N - 3 * K - 1) : 0.5 * (double)(N - K) * (double)(N - K - 1);
}

/* Trustworthiness: neighbours in the map that are none in the layer, by how far from being one. Continuity: the other
 * way round. */
static void judge_map(Trust *t, int map) {
    const int K = t->neighbors, asked = K * (t->spaces - 1);
    const int64_t rows = t->shard.count;
    const double worst = trust_worst(t->shard.total, K);
    TrustNumbers *n = &t->numbers[map];
    int64_t sums[3] = {0};
    for (int64_t i = 0; i < rows; i++) {
        const int32_t *in_layer = t->space[0].nearer + i * asked + (map - 1) * K,
                      *in_map = t->space[map].nearer + i * K;
        int64_t false_neighbors = 0, lost = 0, found = 0;
        for (int k = 0; k < K; k++) {
            false_neighbors += in_layer[k] >= K ? in_layer[k] + 1 - K : 0;
            lost += in_map[k] >= K ? in_map[k] + 1 - K : 0;
            found += k < t->recalled && in_layer[k] < t->recalled;
        }
        n->trustworthiness[i] = worst > 0 ? (float)(1 - (double)false_neighbors / worst) : 1;
        n->continuity[i] = worst > 0 ? (float)(1 - (double)lost / worst) : 1;
        n->recall[i] = (float)found / (float)t->recalled;
        sums[0] += false_neighbors;
        sums[1] += lost;
        sums[2] += found;
    }
    comm_sum_int64(sums, 3);
    const double N = (double)t->shard.total;
    n->trustworthiness_mean = worst > 0 ? 1 - (double)sums[0] / worst / N : 1;
    n->continuity_mean = worst > 0 ? 1 - (double)sums[1] / worst / N : 1;
    n->recall_mean = (double)sums[2] / t->recalled / N;
}

/* Of a sample: the share of its labelled neighbours with its label; and whether most of them have it. */
static void judge_labels(Trust *t, int space) {
    TrustNumbers *n = &t->numbers[space];
    n->label_agreement_mean = n->knn_accuracy = NAN;
    if (!t->labels)
        return;
    int *votes = ARENA_ARRAY(t->arena, int, t->categories, "votes");
    enum { SAME, LABELLED, RIGHT, JUDGED, SUMS };
    int64_t sums[SUMS] = {0};
    for (int64_t i = 0; i < t->shard.count; i++) {
        const int32_t own = t->labels[t->shard.first + i], *neighbor = t->space[space].neighbor + i * t->neighbors;
        int labelled = 0;
        int32_t winner = -1;
        for (int k = 0; k < t->neighbors; k++)
            if (t->labels[neighbor[k]] >= 0) {
                labelled++;
                votes[t->labels[neighbor[k]]]++;
            }
        for (int k = 0; k < t->neighbors; k++) {
            const int32_t label = t->labels[neighbor[k]];
            if (label >= 0 && (winner < 0 || votes[label] > votes[winner] ||
                               (votes[label] == votes[winner] && label < winner))) /* scikit-learn's: the smallest */
                winner = label;
        }
        n->label_agreement[i] = own >= 0 && labelled > 0 ? (float)votes[own] / (float)labelled : NAN;
        if (own >= 0 && labelled > 0) {
            sums[SAME] += votes[own];
            sums[LABELLED] += labelled;
            sums[RIGHT] += winner == own;
            sums[JUDGED]++;
        }
        for (int k = 0; k < t->neighbors; k++)
            if (t->labels[neighbor[k]] >= 0)
                votes[t->labels[neighbor[k]]] = 0;
    }
    comm_sum_int64(sums, SUMS);
    if (sums[JUDGED] > 0) {
        n->label_agreement_mean = (double)sums[SAME] / (double)sums[LABELLED];
        n->knn_accuracy = (double)sums[RIGHT] / (double)sums[JUDGED];
    }
}

static void free_trust(Trust *t) {
    for (int s = 0; s < t->spaces; s++) {
        dev_free(t->space[s].packed);
        dev_free(t->space[s].near);
        dev_free(t->space[s].near_distance);
    }
    arena_free(t->arena);
}
