/* attribution.c: which pixels or cells a prediction rests on. See stages.h.
 *
 * Samples are independent in eval mode, so one backward pass with one seed row per sample gives every map of a batch;
 * all methods asked for share it. Values are kept min-max normalised, with the two bounds that give the raw ones back.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "stages.h"

enum { CHOSEN_PER_CATEGORY = 20, CHOSEN_WRONG = 20, CHOSEN_UNCERTAIN = 20 };

static int last_convolution(const Graph *graph) {
    for (int i = graph->count - 1; i >= 0; i--)
        if (graph->nodes[i].op == OP_CONV)
            return i;
    return -1;
}

static Method gradcam(const Job *job, const char *layer) {
    const Graph *graph = job->model->graph;
    int usual = last_convolution(graph), node = layer ? model_layer(job->model, layer, "attribution") : usual;
    if (node < 0 || graph->nodes[node].op != OP_CONV)
        die_usage("--attribution gradcam%s%s: %s", layer ? ":" : "", layer ? layer : "",
                  usual < 0 ? "the network has no convolution"
                            : "not a convolution; see cnnscope inspect for the layers");
    Method method = {METHOD_GRADCAM, node, graph->nodes[node].shape, "gradcam"};
    if (node != usual) {
        char name[96];
        output_layer_name(name, sizeof name, graph->nodes[node].name);
        snprintf(method.variable, sizeof method.variable, "gradcam_%s", name);
    }
    return method;
}

int attribution_methods(Method **methods, const Job *job) {
    const List *list = &job->options->attribution;
    Method *found = *methods = ARENA_ARRAY(job->arena, Method, LIST_MAX, "attribution methods");
    const Method saliency = {METHOD_SALIENCY, 0, job->model->graph->nodes[0].shape, "saliency"};
    int count = 0;
    if (list->count == 0) {
        found[0] = saliency;
        return 1;
    }
    for (int i = 0; i < list->count; i++) {
        const char *name = list->items[i];
        if (strcmp(name, "none") == 0 && list->count == 1)
            return 0;
        if (strcmp(name, "saliency") == 0)
            found[count] = saliency;
        else if (strcmp(name, "gradcam") == 0)
            found[count] = gradcam(job, NULL);
        else if (strncmp(name, "gradcam:", 8) == 0)
            found[count] = gradcam(job, name + 8);
        else
            die_usage("--attribution %s: unknown; expected saliency, gradcam, gradcam:LAYER, or none alone", name);
        for (int j = 0; j < count; j++)
            if (found[j].kind == found[count].kind && found[j].node == found[count].node)
                die_usage("--attribution: %s is asked for twice", name);
        count++;
    }
    return count;
}

void attribution_declare(int variables[3], const Job *job, const Method *method, const char *samples, int64_t length) {
    bool cam = method->kind == METHOD_GRADCAM;
    const Node *node = &job->model->graph->nodes[method->node];
    char layer[96], y[128] = "y", x[128] = "x", name[160], what[512];
    output_layer_name(layer, sizeof layer, node->name);
    if (cam) {
        snprintf(y, sizeof y, "%s_y", layer);
        snprintf(x, sizeof x, "%s_x", layer);
        snprintf(what, sizeof what, "Grad-CAM of the predicted category at %s, scaled to 0..1", node->name);
    } else {
        snprintf(what, sizeof what, "absolute input gradient of the predicted category's logit, scaled to 0..1");
    }
    variables[0] =
        output_var(job->output, &(OutputVar){method->variable,
                                             DT_F32,
                                             3,
                                             {samples, y, x},
                                             {length, shape_height(method->layer), shape_width(method->layer)},
                                             what,
                                             NULL,
                                             strcmp(samples, "sample") ? NULL : job_coordinates(job, false)});
    if (cam)
        output_text(job->output, variables[0], "layer", node->name);
    for (int i = 1; i <= 2; i++) {
        const char *bound = i == 1 ? "low" : "high";
        snprintf(name, sizeof name, "%s_%s", method->variable, bound);
        snprintf(what, sizeof what, "%s value of %s before scaling: raw = low + (high - low) * %s",
                 i == 1 ? "least" : "largest", method->variable, method->variable);
        variables[i] = output_var(job->output, &(OutputVar){name, DT_F32, 1, {samples}, {length}, what, NULL, NULL});
    }
}

void attribution_wants(const Method *method, bool *want_value, bool *want_gradient) {
    want_gradient[method->node] = true;
    if (method->kind == METHOD_GRADCAM)
        want_value[method->node] = true;
}

void attribution_batch(float *map, float *low, float *high, const Method *method, const Plan *plan, Lane *lane, int B) {
    const float *gradient = graph_gradient(plan, lane, method->node);
    Shape s = method->layer;
    if (method->kind == METHOD_SALIENCY)
        k_saliency(lane, map, low, high, gradient, B, shape_channels(s), shape_height(s), shape_width(s));
    else
        k_gradcam(lane, map, low, high, graph_value(plan, lane, method->node), gradient, B, shape_channels(s),
                  shape_height(s), shape_width(s));
}

/* ---- The choice of samples ------------------------------------------------------------------------------------ */

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

int64_t attribution_most_chosen(const Job *job) {
    int64_t most = CHOSEN_PER_CATEGORY * job->categories + CHOSEN_WRONG + CHOSEN_UNCERTAIN;
    return most < job->shard.total ? most : job->shard.total;
}

int64_t *attribution_choose(int64_t *count, const Job *job, const float *logits, int outputs) {
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
