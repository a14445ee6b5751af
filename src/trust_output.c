/* trust_output.c: the measures of trust in the results file, for trust.c. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "comm.h"
#include "trust_parts.h"

static void write_neighbors(const Trust *t, const TrustSpace *s);
static bool any_unlabelled(const Trust *t);

void trust_write(const Trust *t) {
    for (int i = 0; i < t->spaces; i++) {
        const TrustSpace *s = &t->space[i];
        const TrustNumbers *n = &t->numbers[i];
        const int K = t->neighbors;
        if (i > 0) {
            trust_write_samples(t, s, "_trustworthiness", "1 where no neighbour in the %s is a false one",
                                n->trustworthiness, "neighbors", K);
            trust_write_samples(t, s, "_continuity", "1 where no neighbour is missing in the %s", n->continuity,
                                "neighbors", K);
            trust_write_samples(t, s, "_recall", "share of the nearest samples that are nearest in the %s, too",
                                n->recall, "neighbors", t->recalled);
        }
        if (n->label_agreement)
            trust_write_samples(t, s, "_label_agreement",
                                "share of the labelled neighbours in the %s that have the label", n->label_agreement,
                                "neighbors", K);
        if (i > 0) {
            trust_write_overall(t, s, "_trustworthiness", "trustworthiness of the %s (Venna & Kaski)",
                                n->trustworthiness_mean, "neighbors", K);
            trust_write_overall(t, s, "_continuity", "continuity of the %s (Venna & Kaski)", n->continuity_mean,
                                "neighbors", K);
            trust_write_overall(t, s, "_recall", "share of nearest samples that are nearest in the %s", n->recall_mean,
                                "neighbors", t->recalled);
        }
        trust_write_overall(t, s, "_label_agreement", "share of neighbours in the %s that have the sample's label",
                            n->label_agreement_mean, "neighbors", K);
        trust_write_overall(t, s, "_knn_accuracy", "accuracy of labels told by the neighbours in the %s",
                            n->knn_accuracy, "neighbors", K);
        if (i > 0) {
            trust_write_overall(t, s, "_knc",
                                "share of nearest class means that are nearest in the %s (KNC, Kobak & Berens)", n->knc,
                                "class_neighbors", t->class_neighbors);
            trust_write_overall(t, s, "_cpd",
                                "Spearman correlation of distances with those in the %s (CPD, Kobak & Berens)", n->cpd,
                                "pairs", t->pairs);
            trust_write_overall(t, s, "_stress", "normalised stress of the %s at its best scale", n->stress, "pairs",
                                t->pairs);
        }
        if (t->job->options->keep_neighbors)
            write_neighbors(t, s);
    }
}

static int declare(const Trust *t, const TrustSpace *s, OutputVar var, const char *suffix, const char *format) {
    char name[192], what[256];
    snprintf(name, sizeof name, "%s%s", s->prefix, suffix);
    snprintf(what, sizeof what, format, s->what);
    var.name = name;
    var.long_name = what;
    const int id = output_var(t->job->output, &var);
    if (var.rank > 0 && t->shard.total < t->job->shard.total)
        output_text(t->job->output, id, "samples", "those of option_tsne_samples, the others have no value");
    return id;
}

void *trust_rows(const Trust *t, Arena *arena, const void *values, size_t bytes, int each, const void *none) {
    const int64_t count = t->job->shard.count;
    const size_t row_bytes = (size_t)each * bytes;
    char *rows = arena_alloc(arena, (uint64_t)count, row_bytes, "trust");
    for (int64_t i = 0; t->keep && i < count * each; i++)
        memcpy(rows + (size_t)i * bytes, none, bytes);
    for (int64_t i = 0; i < t->shard.count; i++)
        memcpy(rows + (size_t)(t->keep ? t->keep[i] : i) * row_bytes, (const char *)values + (size_t)i * row_bytes,
               row_bytes);
    return rows;
}

int trust_write_samples(const Trust *t, const TrustSpace *s, const char *suffix, const char *format,
                        const float *values, const char *attribute, int64_t number) {
    Output *out = t->job->output;
    const Shard shard = t->job->shard;
    const OutputVar var = {.type = DT_F32,
                           .rank = 1,
                           .dims = {"sample"},
                           .length = {shard.total},
                           .coordinates = job_coordinates(t->job, false)};
    const int id = declare(t, s, var, suffix, format);
    output_int64(out, id, attribute, number);
    if (strcmp(suffix, "_label_agreement") == 0 && any_unlabelled(t))
        output_text(out, id, "comment", "NaN: the sample, or each of its neighbours, has no label");
    Arena *arena = arena_new();
    output_rows(out, id, shard.first, shard.count, trust_rows(t, arena, values, sizeof *values, 1, &(float){NAN}));
    arena_free(arena);
    return id;
}

void trust_write_overall(const Trust *t, const TrustSpace *s, const char *suffix, const char *format, double value,
                         const char *attribute, int64_t number) {
    if (isnan(value))
        return;
    char name[64];
    snprintf(name, sizeof name, "%s_overall", suffix);
    const int id = declare(t, s, (OutputVar){.type = DT_F64}, name, format);
    output_int64(t->job->output, id, attribute, number);
    if (strcmp(attribute, "pairs") == 0)
        output_text(t->job->output, id, "pairs_chosen", t->all_pairs ? "all" : "a fixed random sample");
    output_whole(t->job->output, id, &value);
    if (t->job->map && comm_rank() == 0) {
        char what[256];
        snprintf(what, sizeof what, format, s->what);
        snprintf(name, sizeof name, "%s%s", s->prefix, suffix);
        printf("%-28s %9.6f  %s\n", name, value, what);
    }
}

static void write_neighbors(const Trust *t, const TrustSpace *s) {
    Output *out = t->job->output;
    const Shard shard = t->job->shard;
    const int64_t rows = t->shard.count, K = t->neighbors;
    Arena *arena = arena_new();
    int64_t *mine = ARENA_ARRAY(arena, int64_t, rows, "positions"),
            *all = ARENA_ARRAY(arena, int64_t, t->shard.total, "positions");
    int64_t *position = ARENA_ARRAY(arena, int64_t, rows * K, "neighbours");
    for (int64_t i = 0; i < rows; i++)
        mine[i] = t->job->from + shard.first + (t->keep ? t->keep[i] : i);
    shard_gather(all, mine, sizeof *all, t->shard);
    for (int64_t i = 0; i < rows * K; i++)
        position[i] = all[s->neighbor[i]];
    OutputVar var = {.type = DT_I64, .rank = 2, .dims = {"sample", "neighbor"}, .length = {shard.total, K}};
    int id = declare(t, s, var, "_neighbors", "positions in the input file of the nearest samples in the %s");
    output_rows(out, id, shard.first, shard.count,
                trust_rows(t, arena, position, sizeof *position, (int)K, &(int64_t){-1}));
    var.type = DT_F32;
    id = declare(t, s, var, "_neighbor_distances", "distances of the nearest samples in the %s");
    output_rows(out, id, shard.first, shard.count,
                trust_rows(t, arena, s->neighbor_distance, sizeof(float), (int)K, &(float){NAN}));
    arena_free(arena);
}

static bool any_unlabelled(const Trust *t) {
    bool any = false;
    for (int64_t i = 0; i < t->shard.total; i++)
        any |= t->labels[i] < 0;
    return any;
}
