/* trust_suspects.c: samples whose label is likely to be wrong, for trust.c: the network predicts another, and so do most
 * of their neighbours in the layer. Ranked by how sure both are. */
#include <stdio.h>
#include <stdlib.h>

#include "trust_parts.h"

enum { SUSPECTS_MOST = 100 };

typedef struct {
    int64_t sample; /* position in the input file */
    float score;
    int32_t suggested;
} Suspect;

static int by_score(const void *a, const void *b) {
    const Suspect *s = a, *t = b;
    if (s->score != t->score)
        return s->score > t->score ? -1 : 1;
    return (s->sample > t->sample) - (s->sample < t->sample);
}

void trust_suspects(const Trust *t) {
    const Job *job = t->job;
    if (!t->labels || !job->probability)
        return;
    Arena *arena = arena_new();
    Suspect *mine = ARENA_ARRAY(arena, Suspect, t->shard.count, "labels");
    Suspect *all = ARENA_ARRAY(arena, Suspect, t->shard.total, "labels");
    for (int64_t i = 0; i < t->shard.count; i++) {
        const int64_t row = t->keep ? t->keep[i] : i;
        const float others = 1 - t->numbers[0].label_agreement[i]; /* NaN without labels */
        mine[i] = (Suspect){job->from + job->shard.first + row, 0, job->predictions[row]};
        if (job->labels[row] >= 0 && job->predictions[row] != job->labels[row] && others > 0.5f)
            mine[i].score = job->probability[row] * others;
    }
    shard_gather(all, mine, sizeof *all, t->shard);
    qsort(all, (size_t)t->shard.total, sizeof *all, by_score);
    int64_t count = 0;
    int64_t sample[SUSPECTS_MOST];
    float score[SUSPECTS_MOST];
    int32_t suggested[SUSPECTS_MOST];
    for (; count < SUSPECTS_MOST && count < t->shard.total && all[count].score > 0; count++) {
        sample[count] = all[count].sample;
        score[count] = all[count].score;
        suggested[count] = all[count].suggested;
    }
    arena_free(arena);
    const struct {
        const char *suffix, *long_name;
        int type;
        const void *values;
    } vectors[] = {
        {"", "position in the input file of a sample whose label is likely to be wrong, likeliest first", DT_I64,
         sample},
        {"_score", "probability of the prediction times the share of neighbours with another label", DT_F32, score},
        {"_prediction", "what the network says it is", DT_I32, suggested}};
    for (size_t v = 0; v < sizeof vectors / sizeof *vectors && count > 0; v++) {
        char name[192], dimension[160];
        snprintf(dimension, sizeof dimension, "%s_suspect", t->space[0].prefix);
        snprintf(name, sizeof name, "%s%s", dimension, vectors[v].suffix);
        const OutputVar var = {.name = name,
                               .type = vectors[v].type,
                               .rank = 1,
                               .dims = {dimension},
                               .length = {count},
                               .long_name = vectors[v].long_name};
        output_whole(job->output, output_var(job->output, &var), vectors[v].values);
    }
}
