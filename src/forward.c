/* forward.c: the stage that takes all samples through the network: what is asked of a pass (pass.h), and the passes.
 *
 * Maps of all samples come from the same pass as the logits; where only chosen samples keep theirs, the choice needs all
 * logits first, and a second pass computes the chosen ones again, to the same bits. */
#include <stdio.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "pass.h"
#include "progress.h"

static const int64_t KEEP_ALL_BYTES = (int64_t)2 << 30;

/* ---- What a pass is asked for --------------------------------------------------------------------------------- */

static void want_maps(Pass *pass, Attribution *attribution, const char *samples) {
    Job *job = pass->job;
    const PixelTransform *t = &job->transform;
    size_t pixel = dtype_bytes(t->dtype == DT_F16 ? DT_F32 : t->dtype);
    int64_t length = pass->shard.total;
    pass->attribution = attribution;
    OutputVar image = job_image_var(job, samples, length);
    pass->image = pass_stream(pass, &image, (size_t)t->channels * t->height * t->width * pixel, 0, length);
    for (int end = 0; end < 2; end++) {
        const int var = attribution_declare_target(attribution, end == 1, samples, length);
        if (var >= 0) {
            pass->targets[end] = pass_stream(pass, NULL, sizeof(int32_t), 0, length);
            pass->targets[end]->var = var;
        }
    }
    const int agreement = attribution_declare_agreement(attribution, samples, length);
    if (agreement >= 0) {
        const size_t pairs = (size_t)attribution->count * (size_t)attribution->count;
        pass->agreement = pass_stream(pass, NULL, pairs * sizeof(float), 0, length);
        pass->agreement->var = agreement;
    }
    for (int m = 0; m < attribution->count; m++) {
        const Method *method = &attribution->methods[m];
        int variables[METHOD_PARTS];
        attribution_declare(variables, attribution, method, samples, length);
        attribution_wants(method, pass->want_value, pass->want_gradient);
        for (int i = 0; i < method->parts; i++) {
            pass->maps[m][i] = pass_stream(pass, NULL, method->bytes[i], 0, length);
            pass->maps[m][i]->var = variables[i];
        }
    }
}

/* L or L:A:B, A and B file positions. */
static void want_feature_map(Pass *pass, int node, int64_t from, int64_t to) {
    Job *job = pass->job;
    const Node *layer = &job->model->graph->nodes[node];
    char name[96], variable[128], sample[128], dims[3][128], what[256];
    output_layer_name(name, sizeof name, layer->name);
    snprintf(variable, sizeof variable, "%s_maps", name);
    snprintf(sample, sizeof sample, "%s_map_sample", name);
    snprintf(dims[0], sizeof dims[0], "%s_channel", name);
    snprintf(dims[1], sizeof dims[1], "%s_y", name);
    snprintf(dims[2], sizeof dims[2], "%s_x", name);
    snprintf(what, sizeof what, "feature maps of %s (%s)", layer->name, graph_op_name(layer->op));
    Arena *scratch = arena_new();
    int64_t *positions = ARENA_ARRAY(scratch, int64_t, to - from, "feature map samples");
    for (int64_t i = 0; i < to - from; i++)
        positions[i] = job->from + from + i;
    int id = output_var(
        job->output,
        &(OutputVar){sample, DT_I64, 1, {sample}, {to - from}, "position of the sample in the input file", NULL, NULL});
    output_whole(job->output, id, positions);
    arena_free(scratch);
    Shape s = layer->shape;
    pass->feature_nodes[pass->feature_count] = node;
    pass->features[pass->feature_count++] =
        pass_stream(pass,
                    &(OutputVar){variable,
                                 DT_F32,
                                 4,
                                 {sample, dims[0], dims[1], dims[2]},
                                 {to - from, shape_channels(s), shape_height(s), shape_width(s)},
                                 what,
                                 NULL,
                                 NULL},
                    (size_t)shape_size(s) * sizeof(float), from, to);
}

static int first_convolution(const Graph *graph) {
    for (int i = 0; i < graph->count; i++)
        if (graph->nodes[i].op == OP_CONV)
            return i;
    return -1;
}

static bool is_none(const List *list) {
    return list->count == 1 && strcmp(list->items[0], "none") == 0;
}

static void want_feature_maps(Pass *pass) {
    const Job *job = pass->job;
    const List *list = &job->options->feature_maps;
    int usual = first_convolution(job->model->graph);
    if (list->count == 0 && usual >= 0)
        want_feature_map(pass, usual, 0, 1);
    for (int i = 0; i < list->count && !is_none(list); i++) {
        char layer[256], range[64] = "";
        snprintf(layer, sizeof layer, "%s", list->items[i]);
        int64_t from = job->from, to = job->from + 1;
        char *colon = strchr(layer, ':'), *second = colon ? strchr(colon + 1, ':') : NULL;
        if (colon) {
            snprintf(range, sizeof range, "%s", colon + 1);
            *colon = '\0';
            if (second)
                range[second - colon - 1] = '\0';
            if (!second || !parse_int64(range, &from) || !parse_int64(second + 1, &to) || from < job->from ||
                to <= from || to > job->from + job->shard.total)
                die_usage("--feature-maps %s: expected LAYER:A:B, file positions A to B (without B) within %lld:%lld",
                          list->items[i], (long long)job->from, (long long)(job->from + job->shard.total));
        }
        int node = model_layer(job->model, layer, "feature-maps");
        for (int j = 0; j < pass->feature_count; j++)
            if (pass->feature_nodes[j] == node)
                die_usage("--feature-maps: %s is asked for twice", layer);
        want_feature_map(pass, node, from - job->from, to - job->from);
    }
}

static void want_values(Pass *pass, const Layers *layers) {
    Job *job = pass->job;
    const Graph *graph = job->model->graph;
    int64_t outputs = shape_size(graph->nodes[graph->logits].shape);
    pass->logits = pass_stream(pass,
                               &(OutputVar){"logits",
                                            DT_F32,
                                            2,
                                            {"sample", "category"},
                                            {pass->shard.total, outputs},
                                            "output of the network before any softmax",
                                            NULL,
                                            job_coordinates(job, true)},
                               (size_t)outputs * sizeof(float), 0, pass->shard.total);
    pass->prediction = pass_stream(pass,
                                   &(OutputVar){"prediction",
                                                DT_I32,
                                                1,
                                                {"sample"},
                                                {pass->shard.total},
                                                outputs == 1 ? "predicted category, 1 where the logit is positive"
                                                             : "predicted category, the largest logit's",
                                                NULL,
                                                NULL},
                                   sizeof(int32_t), 0, pass->shard.total);
    job_put_flags(job, pass->prediction->var);
    pass->layers = layers;
    for (int i = 0; i < layers->count; i++)
        pass->want_value[layers->nodes[i]] = true;
}

/* ---- The stage ------------------------------------------------------------------------------------------------ */

static Layers layers_of(Job *job) {
    const Graph *graph = job->model->graph;
    const List *list = &job->options->embed;
    bool all = list->count == 1 && strcmp(list->items[0], "all") == 0;
    int most = all ? graph->count : list->count, *nodes = ARENA_ARRAY(job->arena, int, most, "layers");
    Layers layers = {.features = ARENA_ARRAY(job->arena, Matrix, most, "layers"), .nodes = nodes};
    for (int i = 0; i < most; i++) {
        int node = all ? i : model_layer(job->model, list->items[i], "embed");
        if (all && !graph_is_distinct(graph, node))
            continue;
        for (int j = 0; j < layers.count; j++)
            if (nodes[j] == node)
                die_usage("--embed: %s is asked for twice", list->items[i]);
        int64_t width = shape_size(graph->nodes[node].shape);
        if (job->options->pca_given && job->options->pca > width)
            die_usage("--pca %d: layer %s is only %lld wide", job->options->pca, graph->nodes[node].name,
                      (long long)width);
        if (job->options->tsne_given && job->options->tsne > width && strcmp(job->options->init, "pca") == 0)
            die_usage("--tsne %d: layer %s is only %lld wide, too narrow for a PCA start; give --init random",
                      job->options->tsne, graph->nodes[node].name, (long long)width);
        nodes[layers.count] = node;
        layers.features[layers.count++] =
            (Matrix){.name = graph->nodes[node].name, .shard = job->shard, .width = (int)width};
    }
    return layers;
}

static void allocate_layers(const Job *job, const Layers *layers) {
    int64_t bytes = 0, most_samples = job->shard.count;
    for (int i = 0; i < layers->count; i++)
        bytes += layers->features[i].width * (int64_t)sizeof(float);
    comm_max_int64(&most_samples, 1);
    if ((double)bytes * (double)most_samples > (double)dev_available() / comm_memory_sharers())
        die("--embed: the features need %.4g GiB a rank, and %.4g GiB are free; use more ranks, or embed fewer layers "
            "a run",
            (double)bytes * (double)most_samples / (1 << 30),
            (double)dev_available() / comm_memory_sharers() / (1 << 30));
    for (int i = 0; i < layers->count; i++)
        layers->features[i].rows = dev_alloc((size_t)job->shard.count * layers->features[i].width * sizeof(float));
}

static void write_filters(Job *job) {
    const Graph *graph = job->model->graph;
    const List *list = &job->options->filters;
    int usual = first_convolution(graph), count = list->count ? list->count : usual >= 0;
    for (int i = 0; i < count && !is_none(list); i++) {
        const Node *node = &graph->nodes[list->count ? model_layer(job->model, list->items[i], "filters") : usual];
        if (node->op != OP_CONV)
            die_usage("--filters %s: not a convolution; see cnnscope inspect for the layers", list->items[i]);
        char name[96], variable[128], dims[4][128], what[256];
        static const char *const suffix[4] = {"filter", "in_channel", "ky", "kx"};
        output_layer_name(name, sizeof name, node->name);
        snprintf(variable, sizeof variable, "%s_filters", name);
        snprintf(what, sizeof what, "weights of %s", node->name);
        for (int d = 0; d < 4; d++)
            snprintf(dims[d], sizeof dims[d], "%s_%s", name, suffix[d]);
        const ConvShape *w = &node->window;
        int id = output_var(
            job->output, &(OutputVar){variable,
                                      DT_F32,
                                      4,
                                      {dims[0], dims[1], dims[2], dims[3]},
                                      {w->out_channels, w->in_channels / w->groups, w->kernel_height, w->kernel_width},
                                      what,
                                      NULL,
                                      NULL});
        output_whole(job->output, id, node->weight.values);
    }
}

/* --keep-maps, or what its default comes to; one line says so where not all are kept. */
static const char *maps_kept(const Job *job, const Attribution *attribution) {
    const PixelTransform *t = &job->transform;
    if (job->options->keep_maps)
        return job->options->keep_maps;
    int64_t largest = (int64_t)t->channels * t->height * t->width * (int64_t)dtype_bytes(t->dtype);
    for (int m = 0; m < attribution->count; m++) {
        const int64_t bytes = (int64_t)attribution->methods[m].bytes[0];
        largest = bytes > largest ? bytes : largest;
    }
    if (job->shard.total < KEEP_ALL_BYTES / largest)
        return "all";
    progress_say("maps of all samples would take more than 2 GiB a variable: only those of chosen samples are kept "
                 "(20 of each category, the most confident wrong, the least certain); --keep-maps all keeps all");
    return "chosen";
}

/* What the first pass is asked for. Every rank comes to the same; nothing is computed yet. */
static Pass *first_pass(Arena *arena, Job *job, Layers *layers, Attribution **attribution, const char **kept) {
    *attribution = attribution_new(arena, job);
    *layers = layers_of(job);
    *kept = maps_kept(job, *attribution);
    output_text(job->output, OUTPUT_GLOBAL, "maps_kept", *kept);
    Pass *pass = pass_new(arena, job, job->shard, NULL);
    want_values(pass, layers);
    want_feature_maps(pass);
    if (strcmp(*kept, "all") == 0)
        want_maps(pass, *attribution, "sample");
    write_filters(job);
    return pass;
}

/* The second pass, over the samples that keep their maps. */
static void chosen_pass(Arena *arena, Job *job, const float *logits, Attribution *attribution) {
    const Graph *graph = job->model->graph;
    int64_t count, first = 0, mine = 0;
    int64_t *samples = chosen_samples(&count, job, logits, (int)shape_size(graph->nodes[graph->logits].shape));
    for (int64_t i = 0; i < count; i++) {
        first += samples[i] < job->shard.first;
        mine += samples[i] >= job->shard.first && samples[i] < job->shard.first + job->shard.count;
    }
    Pass *pass = pass_new(arena, job, (Shard){.total = count, .first = first, .count = mine}, samples + first);
    int64_t *positions = ARENA_ARRAY(arena, int64_t, count, "chosen samples");
    for (int64_t i = 0; i < count; i++)
        positions[i] = job->from + samples[i];
    int id = output_var(
        job->output,
        &(OutputVar){
            "map_sample", DT_I64, 1, {"map_sample"}, {count}, "position of the sample in the input file", NULL, NULL});
    output_whole(job->output, id, positions);
    want_maps(pass, attribution, "map_sample");
    pass_run(pass, "attribution", NULL);
}

ForwardPlan forward_plan(Arena *arena, Job *job) {
    static ForwardPlan plan; /* static: it keeps its values over error_caught() */
    static Attribution *attribution;
    plan = (ForwardPlan){.kept = NULL};
    if (!error_caught()) {
        plan.first = first_pass(arena, job, &plan.layers, &attribution, &plan.kept);
        if (strcmp(plan.kept, "chosen") == 0) {
            const int64_t most = chosen_most(job);
            plan.second = pass_new(arena, job, (Shard){.total = most, .count = most}, NULL);
            want_maps(plan.second, attribution, "map_sample");
        }
    }
    comm_all_ok();
    return plan;
}

Layers forward(Job *job) {
    static struct { /* static: it keeps its values over error_caught() */
        Layers layers;
        Pass *pass;
        Attribution *attribution;
        const char *kept;
    } plan;
    Arena *arena = arena_new();
    if (!error_caught()) {
        plan.pass = first_pass(arena, job, &plan.layers, &plan.attribution, &plan.kept);
        allocate_layers(job, &plan.layers);
    }
    comm_all_ok();
    const bool chosen = strcmp(plan.kept, "chosen") == 0;
    job->predictions = ARENA_ARRAY(job->arena, int32_t, job->shard.count, "predictions");
    const size_t row_bytes = plan.pass->logits->row_bytes;
    float *logits = arena_alloc(arena, (uint64_t)job->shard.count, row_bytes, "logits");
    pass_run(plan.pass, "forward", logits);
    predictions(job, logits, (int)(row_bytes / sizeof *logits));
    if (chosen)
        chosen_pass(arena, job, logits, plan.attribution);
    arena_free(arena);
    return plan.layers;
}
