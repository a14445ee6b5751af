/* embed.c: PCA and exact t-SNE of one layer's features, as the options ask. See stages.h.
 *
 *     features ── PCA to max(--pca, axes of the start, --pre-pca) ──> L_pca
 *              ├─ the first --pre-pca scores, where the layer is wider ── start ── t-SNE ──> L_tsne
 *              └─ with both maps ── trust ──> L_pca_..., L_tsne_...
 *
 * One PCA serves all three uses: its leading columns do not depend on how many follow. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "progress.h"
#include "stages.h"

static const int64_t PIECE_BYTES = (int64_t)64 << 20;

typedef struct {
    Job *job;
    Arena *arena;
    const Matrix *x;
    char layer[96]; /* name in the file */
    bool is_logits;
    const Node *node; /* NULL for the matrix of `embed` */
} Layer;

/* ---- PCA ------------------------------------------------------------------------------------------------------ */

/* The feature dimensions of the layer in the file, behind `ahead` others. Gives their number. */
static int feature_dims(OutputVar *var, char names[3][128], const Layer *l, int ahead) {
    static const char *const suffix[3] = {"channel", "y", "x"};
    bool spatial = l->node && shape_is_spatial(l->node->shape);
    const int lengths[3] = {spatial ? shape_channels(l->node->shape) : l->x->width,
                            spatial ? shape_height(l->node->shape) : 0, spatial ? shape_width(l->node->shape) : 0};
    int count = spatial ? 3 : 1;
    for (int i = 0; i < count; i++) {
        snprintf(names[i], sizeof names[i], "%s_%s", l->layer, spatial ? suffix[i] : "unit");
        if (l->is_logits)
            snprintf(names[i], sizeof names[i], "category");
        var->dims[ahead + i] = names[i];
        var->length[ahead + i] = lengths[i];
    }
    var->rank = ahead + count;
    return count;
}

static int layer_var(const Layer *l, OutputVar var, const char *suffix, const char *format) {
    char name[192], what[256];
    snprintf(name, sizeof name, "%s%s", l->layer, suffix);
    snprintf(what, sizeof what, format, l->x->name);
    var.name = name;
    var.long_name = what;
    return output_var(l->job->output, &var);
}

static void write_features(const Layer *l) {
    char names[3][128];
    const Matrix *x = l->x;
    OutputVar var = {
        .type = DT_F32, .dims = {"sample"}, .length = {x->shard.total}, .coordinates = job_coordinates(l->job, false)};
    feature_dims(&var, names, l, 1);
    int id = layer_var(l, var, "", "features of %s");
    int64_t step = PIECE_BYTES / ((int64_t)x->width * 4) + 1, most = x->shard.count;
    comm_max_int64(&most, 1);
    float *rows = ARENA_ARRAY(l->arena, float, step * x->width, "features");
    for (int64_t i = 0; i < most; i += step) {
        int64_t n = x->shard.count - i < step ? x->shard.count - i : step;
        n = n < 0 ? 0 : n;
        dev_download(rows, x->rows + (n ? i * x->width : 0), (size_t)(n * x->width) * sizeof(float));
        output_rows(l->job->output, id, x->shard.first + i, n, rows);
    }
}

/* The first K of the components computed. */
static void write_pca(const Layer *l, const Pca *p, int K) {
    const Matrix *x = l->x;
    Output *out = l->job->output;
    char names[3][128], pc[128];
    snprintf(pc, sizeof pc, "%s_pc", l->layer);
    int64_t n = x->shard.count, computed = p->components;
    float *all = ARENA_ARRAY(l->arena, float, n *computed, "scores"),
          *kept = ARENA_ARRAY(l->arena, float, n *K, "scores");
    dev_download(all, p->scores.rows, (size_t)(n * computed) * sizeof(float));
    for (int64_t i = 0; i < n; i++)
        memcpy(kept + i * K, all + i * computed, (size_t)K * sizeof(float));

    OutputVar scores = {.type = DT_F32,
                        .rank = 2,
                        .dims = {"sample", pc},
                        .length = {x->shard.total, K},
                        .coordinates = job_coordinates(l->job, false)};
    output_rows(out, layer_var(l, scores, "_pca", "principal component scores of %s"), x->shard.first, n, kept);
    OutputVar axes = {.type = DT_F64, .dims = {pc}, .length = {K}}, center = {.type = DT_F64};
    feature_dims(&axes, names, l, 1);
    output_whole(out, layer_var(l, axes, "_pca_components", "principal axes of %s"), p->axes);
    feature_dims(&center, names, l, 0);
    output_whole(out, layer_var(l, center, "_pca_center", "mean features of %s"), p->center);
    OutputVar vector = {.type = DT_F64, .rank = 1, .dims = {pc}, .length = {K}};
    output_whole(out, layer_var(l, vector, "_pca_explained_variance", "variance of %s along each component"),
                 p->variance);
    output_whole(
        out,
        layer_var(l, vector, "_pca_explained_variance_ratio", "share of the total variance of %s along each component"),
        p->variance_ratio);
}

/* What t-SNE is given, where no other variable holds it: `cnnscope place` works from the file alone. */
static void write_points_of_map(const Layer *l, const Pca *p, int K) {
    const Matrix *x = l->x;
    Output *out = l->job->output;
    char names[3][128], pc[128];
    snprintf(pc, sizeof pc, "%s_pre_pc", l->layer);
    float *kept = ARENA_ARRAY(l->arena, float, x->shard.count *K, "scores");
    Matrix scores = matrix_part(&p->scores, NULL, x->shard, K);
    dev_download(kept, scores.rows, (size_t)(x->shard.count * K) * sizeof *kept);
    matrix_free(&scores);
    OutputVar var = {.type = DT_F32,
                     .rank = 2,
                     .dims = {"sample", pc},
                     .length = {x->shard.total, K},
                     .coordinates = job_coordinates(l->job, false)};
    output_rows(out, layer_var(l, var, "_pre_pca", "principal component scores of %s that t-SNE was given"),
                x->shard.first, x->shard.count, kept);
    OutputVar axes = {.type = DT_F64, .dims = {pc}, .length = {K}}, center = {.type = DT_F64};
    feature_dims(&axes, names, l, 1);
    output_whole(out, layer_var(l, axes, "_pre_pca_components", "principal axes of %s before t-SNE"), p->axes);
    feature_dims(&center, names, l, 0);
    output_whole(out, layer_var(l, center, "_pre_pca_center", "mean features of %s before t-SNE"), p->center);
}

/* ---- t-SNE ---------------------------------------------------------------------------------------------------- */

/* rows (shard.count, each) <- values (mapped, each) of all mapped samples, NaN for the others. */
static float *own_rows(const Layer *l, const float *values, int each, const int64_t *positions, int64_t mapped) {
    const Shard s = l->job->shard;
    float *rows = ARENA_ARRAY(l->arena, float, s.count *each, "map");
    for (int64_t i = 0; i < s.count * each; i++)
        rows[i] = NAN;
    for (int64_t i = 0; i < mapped; i++)
        if (positions[i] >= s.first && positions[i] < s.first + s.count)
            memcpy(rows + (positions[i] - s.first) * each, values + i * each, (size_t)each * sizeof(float));
    return rows;
}

static void write_points(const Layer *l, const TsneResult *r, const int64_t *positions, int64_t mapped);

static void write_tsne(const Layer *l, const TsneResult *r, const int64_t *positions, int64_t mapped, int pre_pca) {
    const Options *o = l->job->options;
    Output *out = l->job->output;
    Shard s = l->job->shard;
    char axis[128], check[128];
    snprintf(axis, sizeof axis, "%s_axis", l->layer);
    snprintf(check, sizeof check, "%s_tsne_check", l->layer);
    OutputVar map = {.type = DT_F32,
                     .rank = 2,
                     .dims = {"sample", axis},
                     .length = {s.total, o->tsne},
                     .coordinates = job_coordinates(l->job, false)};
    int id = layer_var(l, map, "_tsne", "exact t-SNE map of %s");
    if (mapped < s.total)
        output_text(out, id, "comment", "NaN: not among the samples of option_tsne_samples");
    const struct {
        const char *name;
        double value;
    } reals[] = {{"early_exaggeration", o->early_exaggeration},
                 {"learning_rate", r->learning_rate},
                 {"affinity_dropped_mass", r->affinity_dropped_mass},
                 {"affinity_sum", r->affinity_sum}};
    const struct {
        const char *name;
        int64_t value;
    } integers[] = {{"samples_mapped", mapped},
                    {"pre_pca", pre_pca},
                    {"max_iter", o->max_iter},
                    {"exaggeration_iter", o->exaggeration_iter},
                    {"n_iter", r->iterations},
                    {"seed", o->seed},
                    {"affinity_nonzeros", r->affinity_nonzeros}};
    if (o->perplexity->count == 1)
        output_double(out, id, "perplexity", o->perplexity->value[0]);
    else
        output_text(out, id, "perplexity", o->perplexity->text);
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++)
        output_double(out, id, reals[i].name, reals[i].value);
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++)
        output_int64(out, id, integers[i].name, integers[i].value);
    bool named = strcmp(o->init, "pca") == 0 || strcmp(o->init, "random") == 0;
    output_text(out, id, "schedule", o->schedule);
    output_text(out, id, "init", named ? o->init : "file");
    output_rows(out, id, s.first, s.count, own_rows(l, r->map, o->tsne, positions, mapped));
    write_points(l, r, positions, mapped);

    OutputVar scalar = {.type = DT_F64};
    output_whole(out, layer_var(l, scalar, "_tsne_kl", "Kullback-Leibler divergence of the t-SNE map of %s"), &r->kl);
    if (r->checks > 0) {
        OutputVar checks = {.type = DT_I32, .rank = 1, .dims = {check}, .length = {r->checks}}, history = checks;
        history.type = DT_F64;
        output_whole(out,
                     layer_var(l, checks, "_tsne_check", "iterations of t-SNE of %s at which its divergence was taken"),
                     r->check_iterations);
        output_whole(out,
                     layer_var(l, history, "_tsne_kl_history", "Kullback-Leibler divergence of %s before the update"),
                     r->kl_history);
    }
}

/* Each sample's part of the divergence, and the width of its Gaussian. */
static void write_points(const Layer *l, const TsneResult *r, const int64_t *positions, int64_t mapped) {
    Output *out = l->job->output;
    const Shard s = l->job->shard;
    const OutputVar var = {.type = DT_F32,
                           .rank = 1,
                           .dims = {"sample"},
                           .length = {s.total},
                           .coordinates = job_coordinates(l->job, false)};
    const char *const left_out = "NaN: not among the samples of option_tsne_samples";
    int id = layer_var(l, var, "_tsne_kl_sample", "what each sample has of the divergence of the t-SNE map of %s");
    output_text(out, id, "comment", mapped < s.total ? left_out : "they add up to that of the map");
    output_rows(out, id, s.first, s.count, own_rows(l, r->kl_sample, 1, positions, mapped));
    id = layer_var(l, var, "_sigma", "standard deviation of each sample's Gaussian in what t-SNE maps of %s");
    output_double(out, id, "perplexity", l->job->options->perplexity->value[0]);
    if (mapped < s.total)
        output_text(out, id, "comment", left_out);
    output_rows(out, id, s.first, s.count, own_rows(l, r->sigma, 1, positions, mapped));
}

static void trust_maps(const Layer *l, const Pca *p, const float *map, const int64_t *keep, Shard shard);

/* A map of each perplexity and run: runs of one perplexity together. Gives their number, and the positions of the mapped
 * samples. */
static int list_maps(TsneMap *maps, int64_t *positions, const Layer *l, const Pca *p, const int64_t *keep,
                     Shard shard) {
    const Options *o = l->job->options;
    int count = 0;
    for (int i = 0; i < o->perplexity_count; i++)
        for (int run = 0; run < o->runs; run++, count++) {
            const float *start = i > 0 ? maps[run].start : NULL;
            if (i == 0)
                start = tsne_start(positions, l->arena, l->job, run, p, l->x->width, keep, shard);
            maps[count] = (TsneMap){i, start, arena_printf(l->arena, "tsne %s", l->layer)};
            if (count > 0)
                maps[count].key = arena_printf(l->arena, "tsne %s map %d", l->layer, count + 1);
        }
    return count;
}

static void map_layer(const Layer *l, const Pca *p) {
    const Options *o = l->job->options;
    int64_t count = l->x->shard.count, *keep = NULL;
    bool reduce = o->pre_pca > 0 && l->x->width > o->pre_pca;
    if (o->tsne_samples >= 0 && o->tsne_samples < l->x->shard.total)
        keep = tsne_subset(&count, l->arena, l->job);
    Shard shard = keep ? shard_from_counts(count) : l->x->shard;
    int64_t *positions = ARENA_ARRAY(l->arena, int64_t, shard.total, "positions");
    TsneMap maps[MAPS_MAX];
    TsneResult results[MAPS_MAX];
    const int map_count = list_maps(maps, positions, l, p, keep, shard);
    Matrix input = reduce || keep
                       ? matrix_part(reduce ? &p->scores : l->x, keep, shard, reduce ? o->pre_pca : l->x->width)
                       : *l->x;
    TsneOptions options = {.axes = o->tsne,
                           .perplexity_count = o->perplexity_count,
                           .perplexity = o->perplexity,
                           .fast = strcmp(o->schedule, "fast") == 0,
                           .max_iter = o->max_iter,
                           .early_exaggeration = o->early_exaggeration,
                           .exaggeration_iter = o->exaggeration_iter,
                           .learning_rate = o->learning_rate,
                           .checkpoint = l->job->checkpoint};
    tsne(results, l->arena, &input, maps, map_count, &options);
    write_tsne(l, results, positions, shard.total, reduce ? o->pre_pca : 0);
    if (map_count > 1)
        stability(l->job, &input, l->layer, keep, maps, results, map_count);
    if (input.rows != l->x->rows)
        matrix_free(&input);
    trust_maps(l, p, results->map, keep, shard);
}

/* The first components and the t-SNE map (shard.total, axes), NULL where there is none, against the layer itself. */
static void trust_maps(const Layer *l, const Pca *p, const float *map, const int64_t *keep, Shard shard) {
    const Options *o = l->job->options;
    const int axes = o->tsne == 3 ? 3 : 2;
    TrustMap maps[2];
    int count = 0;
    if (o->neighbors == 0 || (o->pca == 0 && !map))
        return;
    if (o->pca > 0)
        maps[count++] = (TrustMap){"pca", axes == 2 ? "PCA map" : "3-D PCA map",
                                   matrix_part(&p->scores, keep, shard, o->pca < axes ? o->pca : axes)};
    if (map) {
        const size_t row_bytes = (size_t)axes * sizeof(float);
        Matrix points = {"t-SNE map", shard, axes, dev_alloc((size_t)shard.count * row_bytes)};
        dev_upload(points.rows, map + shard.first * axes, (size_t)shard.count * row_bytes);
        maps[count++] = (TrustMap){"tsne", "t-SNE map", points};
    }
    Matrix part = keep ? matrix_part(l->x, keep, shard, l->x->width) : *l->x;
    trust(l->job, l->layer, &part, keep, maps, count);
    if (keep)
        matrix_free(&part);
    while (count-- > 0)
        matrix_free(&maps[count].points);
}

bool embed_writes_features(const Options *o, const Node *node, bool is_logits, int width) {
    const bool mapped_as_it_is = o->tsne > 0 && !(o->pre_pca > 0 && width > o->pre_pca);
    return !is_logits && ((node && !shape_is_spatial(node->shape)) || mapped_as_it_is);
}

int embed_components(const Options *o, int width) {
    int components = o->pca;
    if (o->tsne > components && strcmp(o->init, "pca") == 0)
        components = o->tsne;
    if (o->tsne > 0 && o->pre_pca > 0 && width > o->pre_pca && o->pre_pca > components)
        components = o->pre_pca;
    return components;
}

void embed(Job *job, const Matrix *features, int node) {
    const Options *o = job->options;
    Layer l = {.job = job,
               .arena = arena_new(),
               .x = features,
               .node = node < 0 ? NULL : &job->model->graph->nodes[node],
               .is_logits = node >= 0 && node == job->model->graph->logits};
    if (node < 0)
        snprintf(l.layer, sizeof l.layer, "input");
    else
        output_layer_name(l.layer, sizeof l.layer, features->name);
    const bool reduced = o->tsne > 0 && o->pre_pca > 0 && features->width > o->pre_pca;
    if (embed_writes_features(o, l.node, l.is_logits, features->width))
        write_features(&l);

    const int components = embed_components(o, features->width);
    Pca p = {0};
    if (components > 0) {
        char stage[128];
        snprintf(stage, sizeof stage, "pca %s", l.layer);
        progress_begin(stage, "samples", features->shard.total);
        pca(&p, l.arena, features, components, job->checkpoint, stage);
        progress_end("");
    }
    if (o->pca > 0)
        write_pca(&l, &p, o->pca);
    if (reduced)
        write_points_of_map(&l, &p, o->pre_pca);
    if (o->tsne > 0)
        map_layer(&l, &p);
    else
        trust_maps(&l, &p, NULL, NULL, features->shard);
    if (components > 0)
        matrix_free(&p.scores);
    arena_free(l.arena);
}
