/* attribution.c: which methods are asked for, and their variables in the results file. See attribution.h.
 *
 * Maps that are never negative are kept min-max normalised, with the two bounds that give the raw ones back; signed ones
 * as they are. */
#include "attribution.h"

#include <stdio.h>
#include <string.h>

#include "error.h"

static const struct {
    const char *name, *variable, *what; /* on the command line, in the file, in words */
    bool cam, normalised, by_channel;
} table[] = {
    [METHOD_SALIENCY] = {"saliency", "saliency", "absolute input gradient", .normalised = true},
    [METHOD_SALIENCY_SIGNED] = {"saliency_signed", "saliency_signed", "input gradient", .by_channel = true},
    [METHOD_SALIENCY_SQUARED] = {"saliency_squared", "saliency_squared", "squared input gradient", .by_channel = true},
    [METHOD_INPUT_X_GRADIENT] = {"input_x_gradient", "input_x_gradient", "input times its gradient",
                                 .by_channel = true},
    [METHOD_GRADCAM] = {"gradcam", "gradcam", "Grad-CAM", .cam = true, .normalised = true},
    [METHOD_GRADCAM_PLUS] = {"gradcam++", "gradcam_plus_plus", "Grad-CAM++", .cam = true, .normalised = true},
    [METHOD_HIRESCAM] = {"hirescam", "hirescam", "HiRes-CAM", .cam = true, .normalised = true},
    [METHOD_LAYERCAM] = {"layercam", "layercam", "LayerCAM", .cam = true, .normalised = true},
    [METHOD_GUIDED_BACKPROP] = {"guided_backprop", "guided_backprop", "guided backpropagation", .by_channel = true},
    [METHOD_SMOOTHGRAD] = {"smoothgrad", "smoothgrad", "mean input gradient over noisy inputs", .by_channel = true},
    [METHOD_INTEGRATED_GRADIENTS] = {"integrated_gradients", "integrated_gradients", "integrated gradients",
                                     .by_channel = true},
    [METHOD_OCCLUSION] = {"occlusion", "occlusion", "loss by occlusion"},
};

static const struct {
    const char *name, *what;
} evidences[EVIDENCE_KINDS] = {
    [EVIDENCE_DELETION] = {"deletion", "mean probability of the category while pixels are deleted, the largest of %s "
                                       "first: small where these matter"},
    [EVIDENCE_INSERTION] = {"insertion", "mean probability of the category while pixels are inserted, the largest of "
                                         "%s first: large where these suffice"},
    [EVIDENCE_SPARSENESS] = {"sparseness", "Gini index of the magnitudes of %s: 0 even, towards 1 in few pixels"},
};

enum { METHODS = sizeof table / sizeof *table };

/* ---- What is asked for ------------------------------------------------------------------------------------------ */

static int last_convolution(const Graph *graph) {
    for (int i = graph->count - 1; i >= 0; i--)
        if (graph->nodes[i].op == OP_CONV)
            return i;
    return -1;
}

static void cam_layer(Method *method, const Job *job, const char *name, const char *layer) {
    const Graph *graph = job->model->graph;
    const int usual = last_convolution(graph), node = layer ? model_layer(job->model, layer, "attribution") : usual;
    if (node < 0)
        die_usage("--attribution %s: the network has no convolution; expected %s:LAYER, of cnnscope inspect", name,
                  name);
    const Node *at = &graph->nodes[node];
    if (at->op != OP_CONV && (!shape_is_spatial(at->shape) || node == 0))
        die_usage("--attribution %s:%s: has no rows and columns; expected a convolution, or another layer with images "
                  "as its output: see cnnscope inspect",
                  name, layer);
    method->node = node;
    method->layer = at->shape;
    if (node != usual) {
        char legal[96];
        output_layer_name(legal, sizeof legal, at->name);
        snprintf(method->variable, sizeof method->variable, "%s_%s", table[method->kind].variable, legal);
    }
}

static Method method_of(const Job *job, const char *text) {
    const Node *input = &job->model->graph->nodes[0];
    const char *colon = strchr(text, ':');
    const size_t length = colon ? (size_t)(colon - text) : strlen(text);
    int kind = 0;
    while (kind < METHODS && (strlen(table[kind].name) != length || strncmp(table[kind].name, text, length)))
        kind++;
    if (kind == METHODS || (colon && !table[kind].cam)) {
        char known[512] = "";
        for (int i = 0; i < METHODS; i++)
            snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s, ", table[i].name,
                     table[i].cam ? "[:LAYER]" : "");
        die_usage("--attribution %s: unknown; expected %sor none alone", text, known);
    }
    Method method = {.kind = (MethodKind)kind, .layer = input->shape, .maps = table[kind].normalised ? 3 : 1};
    snprintf(method.variable, sizeof method.variable, "%s", table[kind].variable);
    if (table[kind].cam)
        cam_layer(&method, job, table[kind].name, colon ? colon + 1 : NULL);
    if (kind == METHOD_INTEGRATED_GRADIENTS)
        method.maps = 3;
    const bool large = table[kind].cam && strcmp(job->options->cam_resolution, "image") == 0;
    const Shape of = large ? input->shape : method.layer;
    method.map[0] = table[kind].by_channel ? shape_channels(of) : 1;
    method.map[1] = shape_height(of);
    method.map[2] = shape_width(of);
    method.bytes[0] = (size_t)method.map[0] * (size_t)method.map[1] * (size_t)method.map[2] * sizeof(float);
    for (int i = 1; i < METHOD_PARTS; i++)
        method.bytes[i] = sizeof(float); /* as long as an int32_t */
    return method;
}

static void choose_evidence(Attribution *a) {
    const List *list = &a->job->options->evidence;
    for (int i = 0; i < list->count; i++) {
        const char *name = list->items[i];
        bool *wanted = strcmp(name, "agreement") == 0 ? &a->agreement : NULL;
        for (int k = 0; k < EVIDENCE_KINDS; k++)
            if (strcmp(name, evidences[k].name) == 0)
                wanted = &a->evidence[k];
        if (!wanted)
            die_usage("--evidence %s: unknown; expected deletion, insertion, sparseness or agreement", name);
        if (*wanted)
            die_usage("--evidence: %s is asked for twice", name);
        *wanted = true;
    }
    for (int m = 0; m < a->count; m++) {
        a->methods[m].parts = a->methods[m].maps;
        for (int k = 0; k < EVIDENCE_KINDS; k++)
            a->methods[m].parts += a->evidence[k];
    }
}

/* One end of --target: a word, or an output's number. */
static int target_end(const Job *job, const char *text, int outputs) {
    int64_t number;
    if (strcmp(text, "predicted") == 0)
        return TARGET_PREDICTED;
    if (strcmp(text, "label") == 0) {
        if (!job->labels)
            die_usage("--target label: --labels is missing");
        return TARGET_LABEL;
    }
    if (outputs > 1 && strcmp(text, "runner-up") == 0)
        return TARGET_RUNNER_UP;
    if (!parse_int64(text, &number) || number < 0 || number >= outputs)
        die_usage(
            "--target %s: expected predicted, label, runner-up (of two outputs or more), a category of 0 to %d, or "
            "two of these as A:B, for the difference of their logits",
            job->options->target, outputs - 1);
    return (int)number;
}

static void choose_target(Attribution *a) {
    const Options *o = a->job->options;
    char first[64];
    const char *colon = strchr(o->target, ':');
    snprintf(first, sizeof first, "%.*s", (int)(colon ? colon - o->target : 63), o->target);
    a->target = a->against = target_end(a->job, first, a->outputs);
    if (colon) {
        a->against = target_end(a->job, colon + 1, a->outputs);
        if (a->against == a->target || a->outputs == 1)
            die_usage("--target %s: expected two different outputs", o->target);
    }
    a->tells_target = a->target != TARGET_PREDICTED || a->against != a->target;
}

Attribution *attribution_new(Arena *arena, Job *job) {
    const Options *o = job->options;
    const List *list = &o->attribution;
    const Graph *graph = job->model->graph;
    const Shape input = graph->nodes[0].shape;
    Attribution *a = ARENA_ARRAY(arena, Attribution, 1, "attribution");
    *a = (Attribution){.job = job,
                       .methods = ARENA_ARRAY(arena, Method, LIST_MAX, "attribution methods"),
                       .unread = ARENA_ARRAY(arena, bool, graph->count, "attribution"),
                       .size = shape_size(input),
                       .pixels = (int64_t)shape_height(input) * shape_width(input),
                       .outputs = (int)shape_size(graph->nodes[graph->logits].shape)};
    const int side = shape_height(input) < shape_width(input) ? shape_height(input) : shape_width(input);
    a->window = o->occlusion_window ? o->occlusion_window : side < 4 ? 1 : side / 4;
    a->stride = o->occlusion_stride ? o->occlusion_stride : a->window < 2 ? 1 : a->window / 2;
    if (a->window > side || a->stride > a->window)
        die_usage("--occlusion-window %d, --occlusion-stride %d: expected a window of at most %d, the images' shorter "
                  "side, and a stride of at most the window",
                  a->window, a->stride, side);
    for (int i = 0; i < graph->count; i++)
        a->unread[i] = i != graph->logits;
    choose_target(a);
    if (list->count == 0) {
        a->methods[a->count++] = method_of(job, "saliency");
        choose_evidence(a);
        return a;
    }
    for (int i = 0; i < list->count; i++) {
        if (strcmp(list->items[i], "none") == 0 && list->count == 1)
            return a;
        Method *found = &a->methods[a->count];
        *found = method_of(job, list->items[i]);
        for (int j = 0; j < a->count; j++)
            if (a->methods[j].kind == found->kind && a->methods[j].node == found->node)
                die_usage("--attribution: %s is asked for twice", list->items[i]);
        a->count++;
    }
    choose_evidence(a);
    return a;
}

/* ---- Variables -------------------------------------------------------------------------------------------------- */

static const char *category_text(char text[64], int target) {
    if (target >= 0)
        snprintf(text, 64, "category %d", target);
    else
        snprintf(text, 64, "the %s category",
                 target == TARGET_PREDICTED   ? "predicted"
                 : target == TARGET_RUNNER_UP ? "second"
                                              : "labelled");
    return text;
}

/* "the predicted category's logit", "Grad-CAM of the predicted category" ... */
static void what_of(char what[512], const Attribution *a, const Method *method, const char *layer) {
    char target[64], other[64] = "", less[96] = "";
    const char *of = category_text(target, a->target), *name = table[method->kind].what;
    if (a->against != a->target)
        snprintf(less, sizeof less, " less %s", category_text(other, a->against));
    if (table[method->kind].cam)
        snprintf(what, 512, "%s of %s%s at %s", name, of, less, layer);
    else
        snprintf(what, 512, "%s of %s's logit%s%s", name, of, less, less[0] ? "'s" : "");
    if (table[method->kind].normalised)
        strncat(what, ", scaled to 0..1", 511 - strlen(what));
}

static void put_settings(Output *output, int var, const Attribution *a, const Method *method, const char *layer) {
    const Options *o = a->job->options;
    const MethodKind kind = method->kind;
    if (table[kind].cam)
        output_text(output, var, "layer", layer);
    if (kind == METHOD_INTEGRATED_GRADIENTS) {
        output_text(output, var, "rule", o->ig_rule);
        output_int64(output, var, "steps", o->ig_steps);
    }
    if (kind == METHOD_INTEGRATED_GRADIENTS || kind == METHOD_OCCLUSION)
        output_text(output, var, "baseline", o->baseline);
    if (kind == METHOD_SMOOTHGRAD) {
        output_int64(output, var, "draws", o->smoothgrad_draws);
        output_double(output, var, "noise", o->smoothgrad_noise);
    }
    if (kind == METHOD_OCCLUSION) {
        output_int64(output, var, "window", a->window);
        output_int64(output, var, "stride", a->stride);
    }
}

static void declare_bounds(int variables[METHOD_PARTS], const Attribution *a, const Method *method, const char *samples,
                           int64_t length) {
    char name[160], what[512];
    for (int i = 1; i <= 2; i++) {
        const char *bound = i == 1 ? "low" : "high";
        snprintf(name, sizeof name, "%s_%s", method->variable, bound);
        snprintf(what, sizeof what, "%s value of %s before scaling: raw = low + (high - low) * %s",
                 i == 1 ? "least" : "largest", method->variable, method->variable);
        variables[i] = output_var(a->job->output, &(OutputVar){name, DT_F32, 1, {samples}, {length}, what, NULL, NULL});
    }
}

static void declare_delta(int variables[METHOD_PARTS], const Attribution *a, const char *samples, int64_t length) {
    variables[1] = output_var(a->job->output,
                              &(OutputVar){"integrated_gradients_delta",
                                           DT_F32,
                                           1,
                                           {samples},
                                           {length},
                                           "sum of integrated_gradients less what the logit gains from the baseline to "
                                           "the image: 0 where complete",
                                           NULL,
                                           NULL});
    variables[2] = output_var(a->job->output, &(OutputVar){"integrated_gradients_steps",
                                                           DT_I32,
                                                           1,
                                                           {samples},
                                                           {length},
                                                           "points of the integral that were needed",
                                                           NULL,
                                                           NULL});
}

static void declare_evidence(int *variables, const Attribution *a, const Method *method, const char *samples,
                             int64_t length) {
    for (int k = 0; k < EVIDENCE_KINDS; k++) {
        if (!a->evidence[k])
            continue;
        char name[160], what[512];
        snprintf(name, sizeof name, "%s_%s", method->variable, evidences[k].name);
        snprintf(what, sizeof what, evidences[k].what, method->variable);
        *variables = output_var(a->job->output, &(OutputVar){name, DT_F32, 1, {samples}, {length}, what, NULL, NULL});
        if (k != EVIDENCE_SPARSENESS) {
            output_text(a->job->output, *variables, "baseline", a->job->options->baseline);
            output_int64(a->job->output, *variables, "steps", a->job->options->evidence_steps);
        }
        variables++;
    }
}

void attribution_declare(int variables[METHOD_PARTS], const Attribution *a, const Method *method, const char *samples,
                         int64_t length) {
    const Node *node = &a->job->model->graph->nodes[method->node];
    char layer[96], y[128] = "y", x[128] = "x", what[512];
    output_layer_name(layer, sizeof layer, node->name);
    if (table[method->kind].cam && strcmp(a->job->options->cam_resolution, "image") != 0) {
        snprintf(y, sizeof y, "%s_y", layer);
        snprintf(x, sizeof x, "%s_x", layer);
    }
    what_of(what, a, method, node->name);
    const char *coordinates = strcmp(samples, "sample") ? NULL : job_coordinates(a->job, false);
    const OutputVar flat = {
        method->variable, DT_F32, 3, {samples, y, x}, {length, method->map[1], method->map[2]}, what, NULL,
        coordinates};
    const OutputVar deep = {method->variable,
                            DT_F32,
                            4,
                            {samples, "channel", y, x},
                            {length, method->map[0], method->map[1], method->map[2]},
                            what,
                            NULL,
                            coordinates};
    variables[0] = output_var(a->job->output, table[method->kind].by_channel ? &deep : &flat);
    put_settings(a->job->output, variables[0], a, method, node->name);
    if (table[method->kind].normalised)
        declare_bounds(variables, a, method, samples, length);
    if (method->kind == METHOD_INTEGRATED_GRADIENTS)
        declare_delta(variables, a, samples, length);
    declare_evidence(variables + method->maps, a, method, samples, length);
}

int attribution_declare_target(const Attribution *a, bool against, const char *samples, int64_t length) {
    if (!a->tells_target || a->count == 0 || (against && a->against == a->target))
        return -1;
    const int id =
        output_var(a->job->output, &(OutputVar){against ? "attribution_target_against" : "attribution_target",
                                                DT_I32,
                                                1,
                                                {samples},
                                                {length},
                                                against ? "category whose logit is taken off that looked at"
                                                        : "category whose logit the attribution maps look at",
                                                NULL,
                                                NULL});
    job_put_flags(a->job, id);
    return id;
}

int attribution_declare_agreement(const Attribution *a, const char *samples, int64_t length) {
    if (!a->agreement || a->count == 0)
        return -1;
    const int id =
        output_var(a->job->output, &(OutputVar){"attribution_agreement",
                                                DT_F32,
                                                3,
                                                {samples, "attribution", "other_attribution"},
                                                {length, a->count, a->count},
                                                "Spearman's rank correlation of two methods' maps over the pixels",
                                                NULL,
                                                NULL});
    char *names = "";
    for (int m = 0; m < a->count; m++)
        names = arena_printf(a->job->arena, "%s%s%s", names, m ? " " : "", a->methods[m].variable);
    output_text(a->job->output, id, "attributions", names);
    return id;
}

void attribution_wants(const Method *method, bool *want_value, bool *want_gradient) {
    if (method->kind != METHOD_OCCLUSION)
        want_gradient[method->node] = true;
    if (table[method->kind].cam)
        want_value[method->node] = true;
}
