/* chosen.c: which samples keep their maps when not all do. See stages.h. */
#include <math.h>
#include <stdlib.h>

#include "comm.h"
#include "stages.h"

enum { CHOSEN_PER_CATEGORY = 20, CHOSEN_WRONG = 20, CHOSEN_UNCERTAIN = 20 };

typedef struct {
    int64_t sample;
    double probability, margin; /* of the predicted category; over the second best */
    int32_t category;           /* the label, where there is one, else the prediction */
    bool wrong, chosen;
} Score;

static Score score_of(const float *logits, int outputs, int64_t sample, int32_t label, int32_t prediction) {
    Score score = {
        .sample = sample, .category = label >= 0 ? label : prediction, .wrong = label >= 0 && label != prediction};
    if (outputs == 1) {
        double p = 1 / (1 + exp(-fabs((double)logits[0])));
        score.probability = p;
        score.margin = 2 * p - 1;
        return score;
    }
    double best = logits[prediction], sum = 0, second = -INFINITY;
    for (int k = 0; k < outputs; k++) {
        sum += exp(logits[k] - best);
        if (k != prediction && logits[k] > second)
            second = logits[k];
    }
    score.probability = 1 / sum;
    score.margin = (1 - exp(second - best)) / sum;
    return score;
}

static int by_confident_wrong(const void *a, const void *b) {
    const Score *s = a, *t = b;
    if (s->wrong != t->wrong)
        return s->wrong ? -1 : 1;
    if (s->probability != t->probability)
        return s->probability > t->probability ? -1 : 1;
    return (s->sample > t->sample) - (s->sample < t->sample);
}

static int by_uncertainty(const void *a, const void *b) {
    const Score *s = a, *t = b;
    if (s->margin != t->margin)
        return s->margin < t->margin ? -1 : 1;
    return (s->sample > t->sample) - (s->sample < t->sample);
}

static int by_sample(const void *a, const void *b) {
    const Score *s = a, *t = b;
    return (s->sample > t->sample) - (s->sample < t->sample);
}

int64_t chosen_most(const Job *job) {
    int64_t most = CHOSEN_PER_CATEGORY * job->categories + CHOSEN_WRONG + CHOSEN_UNCERTAIN;
    return most < job->shard.total ? most : job->shard.total;
}

int64_t *chosen_samples(int64_t *count, const Job *job, const float *logits, int outputs) {
    int64_t total = job->shard.total;
    Arena *scratch = arena_new();
    Score *mine = ARENA_ARRAY(scratch, Score, job->shard.count, "scores"),
          *all = ARENA_ARRAY(scratch, Score, total, "scores");
    int64_t *taken = ARENA_ARRAY(scratch, int64_t, job->categories, "categories");
    for (int64_t i = 0; i < job->shard.count; i++)
        mine[i] = score_of(logits + i * outputs, outputs, job->shard.first + i, job->labels ? job->labels[i] : -1,
                           job->predictions[i]);
    shard_gather(all, mine, sizeof *all, job->shard);
    for (int64_t i = 0; i < total; i++)
        all[i].chosen = taken[all[i].category]++ < CHOSEN_PER_CATEGORY;
    qsort(all, (size_t)total, sizeof *all, by_confident_wrong);
    for (int64_t i = 0; i < total && i < CHOSEN_WRONG && all[i].wrong; i++)
        all[i].chosen = true;
    qsort(all, (size_t)total, sizeof *all, by_uncertainty);
    for (int64_t i = 0; i < total && i < CHOSEN_UNCERTAIN; i++)
        all[i].chosen = true;
    qsort(all, (size_t)total, sizeof *all, by_sample);
    int64_t *list = ARENA_ARRAY(job->arena, int64_t, total, "chosen samples");
    *count = 0;
    for (int64_t i = 0; i < total; i++)
        if (all[i].chosen)
            list[(*count)++] = all[i].sample;
    arena_free(scratch);
    return list;
}
