/* sanity.c: the tests of attribution methods, and their variables. See sanity.h.
 *
 * Costs a pass over the samples for each network, with all that the methods ask for; maps of the trained network stay in
 * memory, 8 bytes a pixel, and those of one other. What is random depends on --seed and the samples' positions alone. */
#include "sanity.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "pass.h"
#include "progress.h"
#include "random.h"

/* Mean correlation of maps beyond which a method fails: that of a network of random weights only, and that of another
 * output. Maps of the same magnitudes have 1, independent ones 0. */
static const double RANDOM_MOST = 0.5, OTHER_MOST = 0.9;

enum { CORRELATION, SSIM, MEASURES };
enum { FAILS_RANDOM = 1, FAILS_OTHER = 2 };
#define KEY "sanity"

typedef struct {
    Job *job; /* the run's */
    Arena *arena;
    const Attribution *attribution; /* the run's */
    SanitySteps steps;
    Shard shard;
    int64_t *samples; /* (shard.count) this rank's, counted in the job */
    int H, W;
    bool other; /* another output is tried too */

    /* Of the trained network, a row a sample of this rank. */
    int32_t *targets[2];    /* outputs looked at and compared with; from dev_alloc_host, as the next */
    char *planes[LIST_MAX]; /* per method: maps of the network tried last */
    float *ranks, *scaled;  /* (samples, methods, pixels) */
    float *alike[MEASURES]; /* (all samples, networks but the trained one, methods) */
    uint64_t *keys;
} Sanity;

int sanity_networks(const Job *job) {
    const Graph *graph = job->model->graph;
    return 1 + sanity_steps(graph).count + (shape_size(graph->nodes[graph->logits].shape) > 1);
}

int64_t sanity_samples(const Job *job, const Attribution *a) {
    const int64_t wanted = a->count > 0 ? job->options->sanity : 0;
    return wanted < job->shard.total ? wanted : job->shard.total;
}

double sanity_bytes(const Attribution *a, int64_t samples) {
    return (double)samples * a->count * (double)a->pixels * 3 * sizeof(float);
}

static int compared(const Sanity *s) {
    return s->steps.count + s->other;
}

/* ---- Samples, targets ------------------------------------------------------------------------------------------- */

static void choose_samples(Sanity *s) {
    const Shard all = s->job->shard;
    const int64_t count = sanity_samples(s->job, s->attribution);
    s->shard = (Shard){.total = count};
    s->samples = ARENA_ARRAY(s->arena, int64_t, count, "sanity samples");
    for (int64_t i = 0; i < count; i++) {
        const int64_t sample = i * (all.total / count) + i * (all.total % count) / count;
        if (sample >= all.first && sample < all.first + all.count)
            s->samples[s->shard.count++] = sample;
        s->shard.first += sample < all.first;
    }
}

/* An output other than that looked at, and than what it is compared with where there are more. */
static int32_t other_output(const Sanity *s, int64_t i) {
    const Attribution *a = s->attribution;
    const int32_t target = s->targets[0][i], against = a->against == a->target ? target : s->targets[1][i];
    const bool both = against != target && a->outputs > 2;
    int32_t other = (int32_t)(random_bits((uint64_t)a->job->options->seed, (uint64_t)(a->job->from + s->samples[i]),
                                          UINT64_MAX - 1) %
                              (uint64_t)(a->outputs - 1 - both));
    const int32_t low = both && against < target ? against : target, high = both && against > target ? against : target;
    other += other >= low;
    other += both && other >= high;
    return other;
}

/* ---- A network -------------------------------------------------------------------------------------------------- */

static void *rows_of(const Sanity *s, size_t row_bytes) {
    return arena_alloc(s->arena, (uint64_t)(s->shard.count + 1), row_bytes, "sanity checks");
}

/* s->planes <- the methods' maps by this graph. fixed: outputs to look at, or NULL: s->targets <- those of the run. */
static void maps_of(Sanity *s, Graph *graph, int32_t *const fixed[2], int64_t before) {
    Arena *arena = arena_new();
    Model model = *s->job->model;
    Job job = *s->job;
    Attribution a = attribution_without_evidence(s->attribution);
    model.graph = graph;
    job.model = &model;
    job.checkpoint = NULL;
    a.job = &job;
    a.keeps_planes = true;
    Pass *pass = pass_new(arena, &job, s->shard, s->samples);
    pass->attribution = &a;
    pass->before = before;
    for (int end = 0; end < 2; end++) {
        a.fixed[end] = fixed ? fixed[end] : NULL;
        if (fixed)
            continue;
        pass->targets[end] = pass_stream(pass, NULL, sizeof(int32_t), 0, s->shard.total);
        pass->targets[end]->kept = (char *)s->targets[end];
    }
    for (int m = 0; m < a.count; m++) {
        attribution_wants(&a.methods[m], pass->want_value, pass->want_gradient);
        pass->planes[m] = pass_stream(pass, NULL, (size_t)a.pixels * sizeof(float), 0, s->shard.total);
        pass->planes[m]->kept = s->planes[m];
    }
    pass_run_within(pass, KEY, NULL);
    arena_free(arena);
}

/* How much the maps in s->planes are like the trained network's, into entry `network` of all samples. Collective. */
static void compare(Sanity *s, int network) {
    const int methods = s->attribution->count;
    const int64_t pixels = s->attribution->pixels, count = s->shard.count;
    Arena *arena = arena_new();
    float *rank = ARENA_ARRAY(arena, float, pixels, "a map"), *scaled = ARENA_ARRAY(arena, float, pixels, "a map");
    float *mine = ARENA_ARRAY(arena, float, (count + 1) * MEASURES * methods, "sanity checks");
    float *all = ARENA_ARRAY(arena, float, s->shard.total *MEASURES *methods, "sanity checks");
    for (int64_t i = 0; i < count; i++)
        for (int m = 0; m < methods; m++) {
            const int64_t reference = (i * methods + m) * pixels;
            float *to = mine + i * MEASURES * methods + m;
            sanity_view(rank, scaled, (float *)s->planes[m] + i * pixels, pixels, s->keys);
            to[CORRELATION * methods] = (float)sanity_correlation(s->ranks + reference, rank, pixels);
            to[SSIM * methods] = (float)sanity_ssim(s->scaled + reference, scaled, s->H, s->W);
        }
    shard_gather(all, mine, (size_t)(MEASURES * methods) * sizeof *all, s->shard);
    for (int64_t i = 0; i < s->shard.total; i++)
        for (int k = 0; k < MEASURES; k++)
            memcpy(s->alike[k] + (i * compared(s) + network) * methods, all + (i * MEASURES + k) * methods,
                   (size_t)methods * sizeof *all);
    arena_free(arena);
}

static void look_at_trained(Sanity *s) {
    const int methods = s->attribution->count;
    const int64_t pixels = s->attribution->pixels;
    for (int end = 0; end < 2; end++)
        s->targets[end] = dev_alloc_host((size_t)(s->shard.count + 1) * sizeof(int32_t));
    s->ranks = rows_of(s, (size_t)(methods * pixels) * sizeof *s->ranks);
    s->scaled = rows_of(s, (size_t)(methods * pixels) * sizeof *s->scaled);
    s->keys = ARENA_ARRAY(s->arena, uint64_t, pixels, "a map");
    for (int m = 0; m < methods; m++)
        s->planes[m] = dev_alloc_host((size_t)((s->shard.count + 1) * pixels) * sizeof(float));
    maps_of(s, s->job->model->graph, NULL, 0);
    for (int64_t i = 0; i < s->shard.count; i++)
        for (int m = 0; m < methods; m++) {
            const int64_t at = (i * methods + m) * pixels;
            sanity_view(s->ranks + at, s->scaled + at, (float *)s->planes[m] + i * pixels, pixels, s->keys);
        }
}

/* ---- Checkpoint ------------------------------------------------------------------------------------------------- */

/* Networks that were tried, and all that was compared. */
static size_t alike_bytes(const Sanity *s) {
    return (size_t)(s->shard.total * compared(s) * s->attribution->count) * sizeof(float);
}

static void keep(const Sanity *s, int64_t done) {
    const RecordPart parts[] = {
        {&done, sizeof done}, {s->alike[CORRELATION], alike_bytes(s)}, {s->alike[SSIM], alike_bytes(s)}};
    checkpoint_save(s->job->checkpoint, KEY, parts, sizeof parts / sizeof *parts);
}

static int64_t restore(Sanity *s) {
    size_t bytes;
    int64_t done;
    const char *found = checkpoint_load(s->job->checkpoint, s->arena, KEY, &bytes);
    if (!found || bytes != sizeof done + 2 * alike_bytes(s))
        return 0;
    memcpy(&done, found, sizeof done);
    for (int k = 0; k < MEASURES; k++)
        memcpy(s->alike[k], found + sizeof done + (size_t)k * alike_bytes(s), alike_bytes(s));
    return done;
}

/* ---- The file --------------------------------------------------------------------------------------------------- */

static void put_names(const Sanity *s, int var, bool by_step) {
    const Attribution *a = s->attribution;
    char *names = "", *layers = "";
    for (int m = 0; m < a->count; m++)
        names = arena_printf(s->arena, "%s%s%s", names, m ? " " : "", a->methods[m].variable);
    for (int k = 0; k < s->steps.count; k++)
        layers =
            arena_printf(s->arena, "%s%s%s", layers, k ? " " : "", s->job->model->graph->nodes[s->steps.layer[k]].name);
    output_text(s->job->output, var, "attributions", names);
    if (by_step)
        output_text(s->job->output, var, "layers", layers);
}

/* Of each sample, and their mean: `count` networks from `first` on. */
static void write_measure(const Sanity *s, const char *of, int measure, int first, int count, double *mean) {
    static const char *const names[MEASURES] = {"correlation", "ssim"};
    static const char *const words[MEASURES] = {"Spearman's correlation of the magnitudes of maps",
                                                "structural similarity of the magnitudes of maps, scaled to 0..1,"};
    const bool by_step = strcmp(of, "randomised") == 0;
    const int methods = s->attribution->count, row = count * methods;
    const int64_t total = s->shard.total;
    Output *output = s->job->output;
    float *rows = ARENA_ARRAY(s->arena, float, total *row, "sanity checks");
    memset(mean, 0, (size_t)row * sizeof *mean);
    for (int64_t i = 0; i < total; i++)
        for (int k = 0; k < row; k++) {
            rows[i * row + k] = s->alike[measure][(i * compared(s) + first) * methods + k];
            mean[k] += (double)rows[i * row + k] / (double)total;
        }
    char name[96], what[256];
    snprintf(name, sizeof name, "attribution_%s_%s", of, names[measure]);
    snprintf(what, sizeof what, "%s with those %s", words[measure],
             by_step ? "of a network of random weights from this layer on" : "for another output, drawn at random");
    OutputVar var = {name, DT_F32, 3,   {"sanity_sample", "randomised", "attribution"}, {total, count, methods},
                     what, NULL,   NULL};
    if (!by_step)
        var = (OutputVar){name, DT_F32, 2, {"sanity_sample", "attribution"}, {total, methods}, what, NULL, NULL};
    int id = output_var(output, &var);
    put_names(s, id, by_step);
    output_rows(output, id, s->shard.first, s->shard.count, rows + s->shard.first * row);
    strncat(name, "_overall", sizeof name - 1 - strlen(name));
    var.rank--;
    for (int d = 0; d < var.rank; d++) {
        var.dims[d] = var.dims[d + 1];
        var.length[d] = var.length[d + 1];
    }
    var.type = DT_F64;
    id = output_var(output, &var);
    put_names(s, id, by_step);
    output_whole(output, id, mean);
}

/* Which methods fail what, on each method's maps and all together. */
static void write_verdicts(const Sanity *s, const int *maps, const double *random, const double *other) {
    const Attribution *a = s->attribution;
    Output *output = s->job->output;
    int32_t *failed = ARENA_ARRAY(s->arena, int32_t, a->count, "sanity checks");
    for (int m = 0; m < a->count; m++) {
        failed[m] =
            (random && random[m] > RANDOM_MOST ? FAILS_RANDOM : 0) | (other && other[m] > OTHER_MOST ? FAILS_OTHER : 0);
        if (maps[m] < 0)
            continue;
        char text[128] = "passed";
        if (failed[m])
            snprintf(text, sizeof text, "failed: %s%s%s", failed[m] & FAILS_RANDOM ? "random weights" : "",
                     failed[m] == (FAILS_RANDOM | FAILS_OTHER) ? ", " : "",
                     failed[m] & FAILS_OTHER ? "another output" : "");
        output_text(output, maps[m], "sanity_check", text);
    }
    const int id = output_var(output, &(OutputVar){"attribution_sanity_failed",
                                                   DT_I32,
                                                   1,
                                                   {"attribution"},
                                                   {a->count},
                                                   "whether a method's maps stay alike where they should not",
                                                   NULL,
                                                   NULL});
    const int32_t masks[] = {FAILS_RANDOM, FAILS_OTHER};
    put_names(s, id, false);
    output_int32s(output, id, "flag_masks", masks, 2);
    output_text(output, id, "flag_meanings", "random_weights another_output");
    output_double(output, id, "random_weights_most", RANDOM_MOST);
    output_double(output, id, "another_output_most", OTHER_MOST);
    output_whole(output, id, failed);
}

static void write_all(const Sanity *s, const int *maps) {
    const int methods = s->attribution->count, steps = s->steps.count;
    const int64_t count = s->shard.count;
    int64_t *positions = ARENA_ARRAY(s->arena, int64_t, count, "sanity samples");
    for (int64_t i = 0; i < count; i++)
        positions[i] = s->job->from + s->samples[i];
    const int id = output_var(s->job->output, &(OutputVar){"sanity_sample",
                                                           DT_I64,
                                                           1,
                                                           {"sanity_sample"},
                                                           {s->shard.total},
                                                           "position of the sample in the input file",
                                                           NULL,
                                                           NULL});
    output_rows(s->job->output, id, s->shard.first, count, positions);
    double *random = ARENA_ARRAY(s->arena, double, (steps + 1) * methods, "sanity checks");
    double *other = ARENA_ARRAY(s->arena, double, methods, "sanity checks");
    for (int measure = MEASURES - 1; measure >= 0; measure--) { /* the means that decide come last */
        if (steps > 0)
            write_measure(s, "randomised", measure, 0, steps, random);
        if (s->other)
            write_measure(s, "random_logit", measure, steps, 1, other);
    }
    write_verdicts(s, maps, steps > 0 ? random + (steps - 1) * methods : NULL, s->other ? other : NULL);
}

/* ---- The stage -------------------------------------------------------------------------------------------------- */

void sanity(Job *job, const Attribution *a, const int *maps) {
    if (sanity_samples(job, a) == 0)
        return;
    const Graph *trained = job->model->graph;
    const Shape input = trained->nodes[0].shape;
    static Sanity s; /* static: it keeps its values over error_caught() */
    s = (Sanity){.job = job,
                 .arena = arena_new(),
                 .attribution = a,
                 .steps = sanity_steps(trained),
                 .H = shape_height(input),
                 .W = shape_width(input),
                 .other = a->outputs > 1 && (a->against == a->target || a->outputs > 2)};
    choose_samples(&s);
    const int64_t total = s.shard.total;
    for (int k = 0; k < MEASURES; k++)
        s.alike[k] = arena_alloc(s.arena, (uint64_t)total, alike_bytes(&s) / (size_t)total + 1, "sanity checks");
    progress_begin(KEY, "samples", total * (1 + compared(&s)));
    const int64_t done = restore(&s);
    if (done < compared(&s))
        look_at_trained(&s);
    Graph graph = *trained;
    graph.nodes = ARENA_ARRAY(s.arena, Node, trained->count, "random weights");
    memcpy(graph.nodes, trained->nodes, (size_t)trained->count * sizeof *graph.nodes);
    for (int k = 0; k < s.steps.count && done < compared(&s); k++) {
        sanity_draw(s.arena, &graph, s.steps.from[k], k == 0 ? trained->count : s.steps.from[k - 1],
                    (uint64_t)job->options->seed);
        if (k < done)
            continue;
        maps_of(&s, &graph, s.targets, total * (1 + k));
        compare(&s, k);
        keep(&s, k + 1);
    }
    if (s.other && done < compared(&s)) {
        for (int64_t i = 0; i < s.shard.count; i++)
            s.targets[0][i] = other_output(&s, i);
        maps_of(&s, job->model->graph, s.targets, total * compared(&s));
        compare(&s, s.steps.count);
        keep(&s, compared(&s));
    }
    progress_end("");
    for (int m = 0; m < a->count; m++)
        dev_free_host(s.planes[m]);
    dev_free_host(s.targets[0]);
    dev_free_host(s.targets[1]);
    write_all(&s, maps);
    arena_free(s.arena);
}
