/* forecast.c: the trial behind --plan. See forecast.h.
 *
 * The job's own stages work on some of its samples, evenly spread over the file, with an output that only counts bytes;
 * what they took is multiplied up by forecast_sheet.c. So a plan knows of no stage's inside but what grows with what. It
 * takes about three seconds, more where a batch takes longer.
 *
 * P of t-SNE has a size that only the data knows. With all samples in the trial it is counted; with a share s of them,
 * perplexity is taken s times as large: then distributions have the widths they have among all samples, and a row keeps s
 * times as many of its pairs. */
#define _GNU_SOURCE /* O_TMPFILE, malloc_trim */
#include "forecast.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm.h"
#include "error.h"
#include "forecast_parts.h"
#include "partial.h"
#include "progress.h"

enum {
    SAMPLES_MOST = 10000,
    POINTS_ENOUGH = 2048, /* of a t-SNE whose times are multiplied up; fewer are replaced by random points */
    RANDOM_POINTS = 4096,
    JUDGES_LEAST = 32, /* samples that say anything of P */
    ITERATIONS = 12,
    WRITTEN_BYTES = 64 << 20,
};
static const double FEATURE_BYTES = 256 << 20, TRIAL_SECONDS = 1.5, PERPLEXITY_LEAST = 2, TRUST_WORK = 6e9;

static void plan_network(Forecast *f, Arena *arena);
static Layers try_samples(Forecast *f, Arena *arena);
static Layers try_forward(Forecast *f, Arena *arena, const char *keep, int64_t samples, double *seconds);
static int64_t more_samples(const Forecast *f, const Layers *layers, int64_t samples, double seconds);
static void try_layer(Forecast *f, LayerTrial *l, const Matrix *x, int node);
static void try_pca(Pca *p, LayerTrial *l, Arena *arena, const Matrix *x);
static Matrix part_for_pca(const Forecast *f, Arena *arena, const Matrix *x);
static Matrix even_part(Arena *arena, const Matrix *x, double most, int width);
static double points_that_fit(int64_t points);
static void try_tsne(Forecast *f, LayerTrial *l, const Matrix *x);
static void try_trust(Forecast *f, LayerTrial *l, const Matrix *x, const Matrix *scores);
static void take_pairs(const Forecast *f, LayerTrial *l, const TsneResult *trials, double share);
static void random_points(Matrix *points, Arena *arena, int64_t count, int width);
static void run_tsne(TsneResult *results, LayerTrial *l, const Forecast *f, const Matrix *points,
                     const Perplexity *perplexity);
static double seconds_of(const char *stage);
static double seconds_of_all(const char *stage);
static double slowest(double seconds);
static void try_writing(Forecast *f);

void forecast(Job *job) {
    static Forecast f; /* static: it keeps its values over error_caught() */
    const Options *o = job->options;
    Arena *arena = arena_new();
    progress_quiet(true);
    f = (Forecast){.job = job, .mapped = job->shard.total};
    if (o->tsne_samples >= 0 && o->tsne_samples < f.mapped)
        f.mapped = o->tsne_samples;
    if (!error_caught())
        partial_check(o->output, o->overwrite);
    comm_all_ok();
    job->output = output_count();
    job_put_samples(job);
    const int64_t before = output_counted(job->output);
    if (job->model)
        plan_network(&f, arena);
    Layers layers = try_samples(&f, arena);
    f.layer_count = layers.count;
    f.layers = ARENA_ARRAY(arena, LayerTrial, layers.count, "layers");
    for (int i = 0; i < layers.count; i++) {
        try_layer(&f, &f.layers[i], &layers.features[i], layers.nodes[i]);
        matrix_free(&layers.features[i]);
    }
    f.result_bytes += f.forward_bytes + f.judged_bytes + (double)before;
    try_writing(&f);
    malloc_trim(0);
    double least = -((double)dev_available() / comm_memory_sharers()), most = (double)arena_process_bytes(false);
    if (dev_is_host())
        least -= most;
    comm_max(&least, 1);
    comm_max(&most, 1);
    f.available_bytes = -least;
    f.program_bytes = most;
    forecast_print(&f, o->plan == PLAN_THESE_RANKS ? comm_size() : o->plan);
    arena_free(arena);
}

/* ---- The network ------------------------------------------------------------------------------------------------ */

/* What the whole job's passes need, without running them. */
static void plan_network(Forecast *f, Arena *arena) {
    Job *job = ARENA_ARRAY(arena, Job, 1, "a job"); /* stays: the passes know it */
    *job = *f->job;
    job->shard = (Shard){.total = job->shard.total, .count = job->shard.total}; /* rounds as large as they may be */
    job->output = output_count();
    f->network = forward_plan(arena, job);
    f->forward_bytes = (double)output_counted(job->output);
    if (f->network.second)
        f->chosen = f->network.second->shard.total;
    malloc_trim(0);
    const int64_t before = arena_process_bytes(false);
    pass_plan(f->network.first);
    f->network_bytes = fmax((double)(arena_process_bytes(false) - before), 0);
    f->lane_bytes = (double)f->network.first->lanes * (double)pass_lane_bytes(f->network.first);
    graph_plan_free(f->network.first->plan);
    if (f->network.second) {
        pass_plan(f->network.second);
        f->lane_bytes =
            fmax(f->lane_bytes, (double)f->network.second->lanes * (double)pass_lane_bytes(f->network.second));
        graph_plan_free(f->network.second->plan);
    }
}

/* More and more samples until the time is worth measuring. Gives the features of the last ones. */
static Layers try_samples(Forecast *f, Arena *arena) {
    const int64_t total = f->job->shard.total;
    const char *keep = f->network.second ? "none" : f->network.kept;
    int64_t samples = 2 * (int64_t)lane_count() * f->job->options->batch * comm_size(), more;
    Layers layers;
    double seconds;
    for (samples = samples < total ? samples : total;; samples = more) {
        const double since = progress_now();
        layers = try_forward(f, arena, keep, samples, &seconds);
        if (f->tried == 0)
            f->prepare_seconds = fmax(slowest(progress_now() - since) - seconds, 0);
        f->tried = samples;
        f->sample_seconds = seconds / (double)shard_of(samples, f->job->options->batch, 0, comm_size()).count;
        more = more_samples(f, &layers, samples, seconds);
        if (more <= samples)
            break;
        for (int i = 0; i < layers.count; i++)
            matrix_free(&layers.features[i]);
    }
    if (f->network.second) { /* the time of maps, by the difference to a pass that makes them */
        const int64_t few = f->chosen < samples ? f->chosen : samples;
        Layers again = try_forward(f, arena, "all", few, &seconds);
        f->map_sample_seconds = seconds / (double)shard_of(few, f->job->options->batch, 0, comm_size()).count;
        for (int i = 0; i < again.count; i++)
            matrix_free(&again.features[i]);
    }
    return layers;
}

static int64_t more_samples(const Forecast *f, const Layers *layers, int64_t samples, double seconds) {
    int64_t most = f->job->shard.total < SAMPLES_MOST ? f->job->shard.total : SAMPLES_MOST, width = 0;
    for (int i = 0; i < layers->count; i++)
        width += layers->features[i].width;
    double least = -(double)dev_available() / comm_memory_sharers() / 4;
    comm_max(&least, 1);
    const int64_t fit = (int64_t)(fmin(FEATURE_BYTES, -least) * comm_size() / (double)(width * (int64_t)sizeof(float)));
    most = fit < most ? fit : most;
    if (seconds > TRIAL_SECONDS / 2)
        return samples;
    const double times = fmin(fmax(TRIAL_SECONDS / fmax(seconds, 1e-3), 2), 50);
    return (double)samples * times < (double)most ? (int64_t)((double)samples * times) : most;
}

/* `samples` of the job's, evenly spread, through the network (or read, for `embed`). */
static Layers try_forward(Forecast *f, Arena *arena, const char *keep, int64_t samples, double *seconds) {
    static char *none[] = {"none"};
    Options *o = ARENA_ARRAY(arena, Options, 1, "options");
    *o = *f->job->options;
    o->feature_maps = o->filters = (List){1, none};
    o->keep_maps = keep;
    Job trial = *f->job;
    trial.arena = arena;
    trial.options = o;
    trial.step = trial.shard.total / samples;
    trial.shard = shard_of(samples, o->batch, comm_rank(), comm_size());
    trial.output = output_count();
    Layers layers = trial.model ? forward(&trial) : matrix_read(&trial);
    const int64_t bytes = output_counted(trial.output);
    if (trial.model) { /* what is written of the predictions, behind the passes */
        Job passes = trial;
        passes.output = output_count();
        forward_plan(arena, &passes);
        f->judged_bytes =
            (double)(bytes - output_counted(passes.output)) * (double)f->job->shard.total / (double)samples;
    }
    if (!trial.model) /* of the whole job, as far as `read` writes anything: the images */
        f->forward_bytes = (double)bytes * (double)f->job->shard.total / (double)samples;
    *seconds = seconds_of(trial.model ? "forward" : "read");
    return layers;
}

/* ---- A layer's maps --------------------------------------------------------------------------------------------- */

static void try_layer(Forecast *f, LayerTrial *l, const Matrix *x, int node) {
    const Job *job = f->job;
    const Options *o = job->options;
    const Node *layer = node < 0 ? NULL : &job->model->graph->nodes[node];
    const double total = (double)job->shard.total;
    Arena *arena = arena_new();
    *l = (LayerTrial){.width = x->width, .components = embed_components(o, x->width)};
    snprintf(l->key, sizeof l->key, "input");
    if (layer)
        output_layer_name(l->key, sizeof l->key, x->name);
    l->writes_features = embed_writes_features(o, layer, layer && node == job->model->graph->logits, x->width);
    Pca p = {0};
    Matrix tried = *x;
    if (l->components > 0) {
        tried = part_for_pca(f, arena, x);
        try_pca(&p, l, arena, &tried);
    }
    if (o->pca > 0)
        f->result_bytes += total * o->pca * 4 + ((double)x->width * (o->pca + 1) + 2.0 * o->pca) * 8;
    if (l->writes_features)
        f->result_bytes += total * x->width * 4;
    if (o->tsne > 0) {
        const bool reduced = o->pre_pca > 0 && x->width > o->pre_pca;
        l->map_width = reduced ? o->pre_pca : x->width;
        const int maps = o->perplexity_count * o->runs;
        if (reduced)
            f->result_bytes += total * o->pre_pca * 4 + (double)x->width * (o->pre_pca + 1) * 8;
        f->result_bytes += total * (o->tsne + 2) * 4 + 8 + o->max_iter / 50 * 12;
        if (maps > 1)
            f->result_bytes += total * (maps * o->tsne + 1 + (o->neighbors > 0)) * 4 + maps * 24 + 16;
        try_tsne(f, l, reduced ? &p.scores : &tried);
    }
    if (o->neighbors > 0 && (o->pca > 0 || o->tsne > 0))
        try_trust(f, l, &tried, o->pca > 0 ? &p.scores : NULL);
    if (l->components > 0)
        matrix_free(&p.scores);
    if (tried.rows != x->rows)
        matrix_free(&tried);
    arena_free(arena);
}

/* `most` rows of all ranks together, evenly spread, and the first `width` columns. */
static Matrix even_part(Arena *arena, const Matrix *x, double most, int width) {
    const int64_t count = (int64_t)((double)x->shard.count * fmin(most / (double)x->shard.total, 1));
    int64_t *keep = ARENA_ARRAY(arena, int64_t, count, "rows of a trial");
    for (int64_t i = 0; i < count; i++)
        keep[i] = i * x->shard.count / count;
    return matrix_part(x, keep, shard_from_counts(count), width);
}

/* PCA of wide layers takes too long for a trial of many samples; but it takes another way with few (pca_few.c). */
static Matrix part_for_pca(const Forecast *f, Arena *arena, const Matrix *x) {
    enum { WIDE = 1024, ROWS = 1100 };
    if (x->width <= WIDE || f->job->shard.total <= ROWS || x->shard.total <= ROWS)
        return *x;
    return even_part(arena, x, ROWS + comm_size(), x->width);
}

/* Times of all rows and of half of them tell what grows with rows. Halves of a wide layer's would take another way; there
 * about half of the time is the solver's. */
static void try_pca(Pca *p, LayerTrial *l, Arena *arena, const Matrix *x) {
    const int64_t rows = shard_of(x->shard.total, TSNE_BLOCK, 0, comm_size()).count;
    double since = progress_now();
    pca(p, arena, x, l->components, NULL, NULL);
    const double seconds = slowest(progress_now() - since);
    double grows = seconds / 2;
    if (rows >= 4 && x->width <= 1024) {
        Matrix half = *x;
        Pca of_half;
        half.shard = shard_from_counts(x->shard.count / 2);
        since = progress_now();
        pca(&of_half, arena, &half, l->components, NULL, NULL);
        grows = fmax(2 * (seconds - slowest(progress_now() - since)), 0);
        matrix_free(&of_half.scores);
    }
    l->pca_row_seconds = fmin(grows, seconds) / (double)rows;
    l->pca_seconds = fmax(seconds - grows, 0);
}

/* A trial takes a third of the memory at most, were its P full. */
static double points_that_fit(int64_t points) {
    double least = -(double)dev_available() / comm_memory_sharers();
    comm_max(&least, 1);
    return fmin((double)points, sqrt(-least / 3 * comm_size() / (sizeof(float) / 2.0 * 1.1)));
}

/* x: what t-SNE maps, of the trial's samples; maybe with more columns, or more rows. */
static void try_tsne(Forecast *f, LayerTrial *l, const Matrix *x) {
    Arena *arena = arena_new();
    const double most = fmin((double)f->mapped, points_that_fit(x->shard.total));
    Matrix points = even_part(arena, x, most, l->map_width);
    const int64_t n = points.shard.total;
    const double share = fmin((double)n / (double)f->mapped, 1);
    const Options *o = f->job->options;
    TsneResult results[PERPLEXITIES_MAX] = {{0}};
    Perplexity perplexity[PERPLEXITIES_MAX];
    memcpy(perplexity, o->perplexity, sizeof perplexity);
    if (n >= JUDGES_LEAST || n == f->mapped) {
        for (int i = 0; i < o->perplexity_count && share < 1; i++)
            for (int k = 0; k < perplexity[i].count; k++)
                perplexity[i].value[k] = fmin(fmax(perplexity[i].value[k] * share, PERPLEXITY_LEAST), (double)n / 3);
        run_tsne(results, l, f, &points, perplexity);
        l->judged_by = n;
    }
    take_pairs(f, l, results, share);
    if (n < POINTS_ENOUGH && n < f->mapped) {
        dev_free(points.rows);
        random_points(&points, arena, f->mapped < RANDOM_POINTS ? f->mapped : RANDOM_POINTS, l->map_width);
        for (int i = 0; i < o->perplexity_count; i++)
            for (int k = 0; k < perplexity[i].count; k++)
                perplexity[i].value[k] = fmin(30, (double)points.shard.total / 3);
        run_tsne(results, l, f, &points, perplexity);
    }
    l->points = points.shard.total;
    l->trial_cells = (double)results[o->perplexity_count - 1].affinities.cells;
    matrix_free(&points);
    arena_free(arena);
}

/* The measures of the layer's maps; any numbers do in the place of a t-SNE map. */
static void try_trust(Forecast *f, LayerTrial *l, const Matrix *x, const Matrix *scores) {
    const Options *o = f->job->options;
    const int axes = o->tsne == 3 ? 3 : 2;
    const double most = fmin((double)f->mapped, sqrt(TRUST_WORK / (x->width + 100)));
    Arena *arena = arena_new();
    TrustMap maps[2];
    Matrix part = even_part(arena, x, most, x->width);
    if (scores)
        maps[l->judged_maps++] =
            (TrustMap){"pca", "PCA map", even_part(arena, scores, most, scores->width < axes ? scores->width : axes)};
    if (o->tsne > 0)
        maps[l->judged_maps++] =
            (TrustMap){"tsne", "t-SNE map", even_part(arena, x, most, x->width < axes ? x->width : axes)};
    Job job = *f->job;
    job.shard = part.shard;
    job.output = output_count();
    progress_forget();
    trust(&job, "trial", &part, NULL, maps, l->judged_maps);
    l->judged = part.shard.total;
    l->trust_seconds = seconds_of("trust trial");
    f->result_bytes += (double)output_counted(job.output) * (double)f->job->shard.total / (double)l->judged;
    for (int i = 0; i < l->judged_maps; i++)
        matrix_free(&maps[i].points);
    matrix_free(&part);
    arena_free(arena);
}

/* The sizes of all P, by a trial of a share of the points. */
static void take_pairs(const Forecast *f, LayerTrial *l, const TsneResult *trials, double share) {
    const Options *o = f->job->options;
    const int64_t points = f->mapped;
    const double all_values = (double)points * (double)(points - 1) / 2;
    const double blocks = ceil((double)points / TSNE_BLOCK), all_cells = blocks * (blocks + 1) / 2;
    for (int i = 0; i < o->perplexity_count; i++) {
        double values = all_values, cells = all_cells;
        if (l->judged_by > 0) {
            values = fmin((double)trials[i].affinities.values / share / share, all_values);
            cells = fmin((double)trials[i].affinities.cells / share / share, all_cells);
        }
        l->values = fmax(l->values, values);
        l->cells = fmax(l->cells, cells);
        l->cells_of_maps += cells * o->runs;
    }
}

static void random_points(Matrix *points, Arena *arena, int64_t count, int width) {
    points->shard = shard_of(count, TSNE_BLOCK, comm_rank(), comm_size());
    points->width = width;
    const int64_t numbers = points->shard.count * width;
    float *rows = ARENA_ARRAY(arena, float, numbers, "random points");
    uint64_t state = (uint64_t)comm_rank();
    for (int64_t i = 0; i < numbers; i++) { /* Knuth's MMIX generator */
        state = state * 6364136223846793005u + 1442695040888963407u;
        rows[i] = (float)(state >> 40) * 0x1p-24f;
    }
    points->rows = dev_alloc((size_t)numbers * sizeof(float));
    dev_upload(points->rows, rows, (size_t)numbers * sizeof(float));
}

/* A map of each perplexity. */
static void run_tsne(TsneResult *results, LayerTrial *l, const Forecast *f, const Matrix *points,
                     const Perplexity *perplexity) {
    const int axes = f->job->options->tsne, count = f->job->options->perplexity_count;
    TsneMap maps[PERPLEXITIES_MAX];
    Arena *arena = arena_new();
    float *start = ARENA_ARRAY(arena, float, points->shard.total *axes, "t-SNE start");
    for (int64_t i = 0; i < points->shard.total * axes; i++)
        start[i] = (float)(i * 7919 % 10007) / 10007;
    for (int i = 0; i < count; i++)
        maps[i] = (TsneMap){i, start, "tsne trial"};
    TsneOptions options = {.axes = axes,
                           .perplexity_count = count,
                           .perplexity = perplexity,
                           .max_iter = ITERATIONS,
                           .early_exaggeration = 12};
    Matrix named = *points;
    named.name = "trial";
    progress_forget();
    const double since = progress_now();
    tsne(results, arena, &named, maps, count, &options);
    const double all = slowest(progress_now() - since), loops = ITERATIONS + 1; /* and the final forces */
    l->affinity_seconds = seconds_of_all("affinities trial");
    l->gather_seconds = fmax(all - l->affinity_seconds - seconds_of_all("tsne trial"), 0);
    l->repulsion_seconds = seconds_of("tsne trial repulsion") / loops;
    l->attraction_seconds = seconds_of("tsne trial attraction") / loops;
    l->update_seconds = seconds_of("tsne trial update") / loops;
    l->comm_seconds = seconds_of("tsne trial communication") / loops;
    arena_free(arena);
}

/* ---- Times ------------------------------------------------------------------------------------------------------ */

static double slowest(double seconds) {
    comm_max(&seconds, 1);
    return seconds;
}

/* Of the last stage of that name. */
static double seconds_of(const char *stage) {
    double seconds = 0, one;
    for (int i = 0; i < progress_stages(); i++)
        if (strcmp(progress_stage(i, &one), stage) == 0)
            seconds = one;
    return slowest(seconds);
}

/* Of all stages of that name. */
static double seconds_of_all(const char *stage) {
    double seconds = 0, one;
    for (int i = 0; i < progress_stages(); i++)
        if (strcmp(progress_stage(i, &one), stage) == 0)
            seconds += one;
    return slowest(seconds);
}

/* A file without a name, in the folder of the output, on rank 0; none where the file system has none (then the rate is
 * that of a slow disk). */
static void try_writing(Forecast *f) {
    char folder[4096];
    f->byte_seconds = f->flush_byte_seconds = 1 / 200e6;
    if (comm_rank() == 0) {
        snprintf(folder, sizeof folder, "%s", f->job->options->output);
        char *slash = strrchr(folder, '/');
        snprintf(slash ? slash + 1 : folder, 3, ".");
        const size_t bytes = (size_t)fmin(fmax(f->result_bytes, 1 << 20), WRITTEN_BYTES);
        char *data = calloc(bytes, 1);
        const int file = open(folder, O_TMPFILE | O_WRONLY, 0600);
        const double since = progress_now();
        if (data && file >= 0 && write(file, data, bytes) == (ssize_t)bytes) {
            const double written = progress_now();
            if (fsync(file) == 0) {
                f->byte_seconds = (written - since) / (double)bytes;
                f->flush_byte_seconds = (progress_now() - written) / (double)bytes;
            }
        }
        if (file >= 0)
            close(file);
        free(data);
    }
    comm_broadcast(&f->byte_seconds, sizeof f->byte_seconds);
    comm_broadcast(&f->flush_byte_seconds, sizeof f->flush_byte_seconds);
}
