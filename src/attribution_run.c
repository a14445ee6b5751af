/* attribution_run.c: the passes of a batch, and the maps made of them. See attribution.h.
 *
 * Points of integrated gradients, noisy inputs and windows follow one another in one order, on one lane, each a pass of
 * the whole batch: a batch stays in its core's cache, and a sample's sums know nothing of the other samples. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attribution.h"
#include "error.h"
#include "watchdog.h"

enum { STEP_DOUBLINGS = 4 }; /* of integrated gradients, at most */

/* ---- Around a pass ---------------------------------------------------------------------------------------------- */

/* Bilinear, as PyTorch's interpolate with align_corners=False. */
static KAxis *axis_of(int in, int out) {
    Arena *arena = arena_new();
    int *index = ARENA_ARRAY(arena, int, 2 * (int64_t)out, "class activation maps");
    float *weight = ARENA_ARRAY(arena, float, 2 * (int64_t)out, "class activation maps");
    for (int i = 0; i < out; i++) {
        double at = (i + 0.5) * in / out - 0.5;
        at = at < 0 ? 0 : at;
        const int below = (int)at < in - 1 ? (int)at : in - 1;
        index[2 * i] = below;
        index[2 * i + 1] = below < in - 1 ? below + 1 : below;
        weight[2 * i + 1] = (float)(at - below);
        weight[2 * i] = 1 - weight[2 * i + 1];
    }
    KAxis *axis = k_axis_new(in, out, index, weight);
    arena_free(arena);
    return axis;
}

static void enlarge(Attribution *a) {
    const Shape input = a->job->model->graph->nodes[0].shape;
    const bool large = strcmp(a->job->options->cam_resolution, "image") == 0;
    for (int m = 0; m < a->count; m++) {
        Method *method = &a->methods[m];
        if ((large || attribution_has_evidence(a)) && method->kind >= METHOD_GRADCAM &&
            method->kind <= METHOD_LAYERCAM) {
            method->rows = axis_of(shape_height(method->layer), shape_height(input));
            method->columns = axis_of(shape_width(method->layer), shape_width(input));
        }
    }
}

static bool has(const Attribution *a, MethodKind kind) {
    for (int m = 0; m < a->count; m++)
        if (a->methods[m].kind == kind)
            return true;
    return false;
}

static void *copy_of(const void *host, size_t bytes) {
    void *device = dev_alloc(bytes);
    dev_upload(device, host, bytes);
    return device;
}

/* The rows behind the last sample are those of a batch that is not full. */
static void upload_samples(Attribution *a, const int64_t *numbers, const int32_t *labels, int64_t count) {
    Arena *arena = arena_new();
    int64_t *wide = ARENA_ARRAY(arena, int64_t, count + a->B, "samples");
    int32_t *narrow = ARENA_ARRAY(arena, int32_t, count + a->B, "labels");
    for (int64_t i = 0; i < count + a->B; i++) {
        wide[i] = i < count ? numbers[i] : 0;
        narrow[i] = i < count && labels ? labels[i] : -1;
    }
    if (has(a, METHOD_SMOOTHGRAD))
        a->numbers = copy_of(wide, (size_t)(count + a->B) * sizeof *wide);
    if (a->target == TARGET_LABEL || a->against == TARGET_LABEL)
        a->labels = copy_of(narrow, (size_t)(count + a->B) * sizeof *narrow);
    arena_free(arena);
}

void attribution_start(Attribution *a, const Plan *plan, Lane *lane, const int64_t *numbers, const int32_t *labels,
                       int64_t count, int B) {
    const int logits = a->job->model->graph->logits;
    a->B = B;
    upload_samples(a, numbers, labels, count);
    enlarge(a);
    if (!has(a, METHOD_INTEGRATED_GRADIENTS) && !has(a, METHOD_OCCLUSION) && !a->evidence[EVIDENCE_DELETION] &&
        !a->evidence[EVIDENCE_INSERTION])
        return;
    a->baseline = attribution_baseline(a->job, lane, a->size);
    a->baseline_logits = dev_alloc((size_t)a->outputs * sizeof *a->baseline_logits);
    lane_copy(lane, graph_input(plan, lane), a->baseline, (size_t)a->size * sizeof *a->baseline);
    graph_forward_without(plan, lane, a->unread);
    lane_copy(lane, a->baseline_logits, graph_value(plan, lane, logits), (size_t)a->outputs * sizeof(float));
    lane_sync(lane);
}

void attribution_stop(Attribution *a) {
    for (int m = 0; m < a->count; m++) {
        k_axis_free(a->methods[m].rows);
        k_axis_free(a->methods[m].columns);
        a->methods[m].rows = a->methods[m].columns = NULL;
    }
    dev_free(a->labels);
    dev_free(a->numbers);
    dev_free(a->baseline);
    dev_free(a->baseline_logits);
    a->labels = NULL;
    a->numbers = NULL;
    a->baseline = a->baseline_logits = NULL;
}

/* ---- A lane's memory -------------------------------------------------------------------------------------------- */

static size_t cells_of(const Attribution *a) {
    size_t most = (size_t)a->size * sizeof(float);
    for (int m = 0; m < a->count; m++) {
        const Shape s = a->methods[m].layer, input = a->job->model->graph->nodes[0].shape;
        const size_t layer = (size_t)shape_size(s) * sizeof(float);
        const size_t wide = (size_t)shape_height(s) * (size_t)shape_width(input) * sizeof(float); /* half enlarged */
        most = layer > most ? layer : most;
        most = wide > most ? wide : most;
    }
    return most / sizeof(float);
}

size_t attribution_lane_bytes(const Attribution *a, int B) {
    return (size_t)B * (2 * cells_of(a) + 2 * (size_t)a->size + (size_t)a->outputs + 8) * sizeof(float) +
           attribution_evidence_bytes(a, B);
}

AttributionLane attribution_lane_new(const Attribution *a) {
    const size_t B = (size_t)a->B, number = B * sizeof(float), input = (size_t)a->size * number;
    const size_t most = cells_of(a) * number;
    AttributionLane w = {.target = dev_alloc(B * sizeof(int32_t)),
                         .against = dev_alloc(B * sizeof(int32_t)),
                         .steps = dev_alloc(B * sizeof(int32_t)),
                         .seed = dev_alloc((size_t)a->outputs * number),
                         .map = dev_alloc(most),
                         .small = dev_alloc(most),
                         .low = dev_alloc(number),
                         .high = dev_alloc(number),
                         .x = dev_alloc(input),
                         .sum = dev_alloc(input),
                         .score = dev_alloc(number),
                         .occluded = dev_alloc(number),
                         .delta = dev_alloc_host(number)};
    attribution_evidence_new(&w, a);
    return w;
}

void attribution_lane_free(AttributionLane *w) {
    void *const device[] = {w->target, w->against, w->steps, w->seed, w->map,   w->small,
                            w->low,    w->high,    w->x,     w->sum,  w->score, w->occluded};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        dev_free(device[i]);
    dev_free_host(w->delta);
    attribution_evidence_free(w);
}

/* ---- The methods ------------------------------------------------------------------------------------------------ */

/* A batch on its lane. */
typedef struct {
    const Attribution *a;
    AttributionLane *w;
    const Plan *plan;
    Lane *lane;
    int64_t at;
    int count;
} Batch;

static const int32_t *against_of(const Batch *b) {
    return b->a->against == b->a->target ? NULL : b->w->against;
}

static const float *logits_of(const Batch *b) {
    return graph_value(b->plan, b->lane, b->a->job->model->graph->logits);
}

/* The gradient at the input that now lies there. */
static const float *gradient_pass(const Batch *b, bool guided) {
    watchdog_tick();
    graph_forward_without(b->plan, b->lane, b->a->unread);
    if (guided)
        graph_backward_guided(b->plan, b->lane, b->w->seed);
    else
        graph_backward(b->plan, b->lane, b->w->seed);
    return graph_gradient(b->plan, b->lane, 0);
}

/* large (B, pixels) <- the class activation map in w->map, which may be the same. */
static void make_large(const Batch *b, const Method *method, float *large) {
    const int B = b->a->B, H = shape_height(method->layer), W = shape_width(b->a->job->model->graph->nodes[0].shape);
    k_axis_forward(b->lane, method->columns, b->w->small, b->w->map, (int64_t)B * H, 1);
    k_axis_forward(b->lane, method->rows, large, b->w->small, B, W);
}

static void class_activation(const Batch *b, const Method *method) {
    static const CamKind kinds[] = {[METHOD_GRADCAM] = CAM_GRAD,
                                    [METHOD_GRADCAM_PLUS] = CAM_GRAD_PLUS,
                                    [METHOD_HIRESCAM] = CAM_HIRES,
                                    [METHOD_LAYERCAM] = CAM_LAYER};
    const Shape s = method->layer;
    const int B = b->a->B, H = shape_height(s), W = shape_width(s);
    AttributionLane *w = b->w;
    k_cam(b->lane, w->map, kinds[method->kind], graph_value(b->plan, b->lane, method->node),
          graph_gradient(b->plan, b->lane, method->node), B, shape_channels(s), H, W);
    if (method->map[1] != H || method->map[2] != W)
        make_large(b, method, w->map);
}

static void integrate(const Batch *b) {
    const Attribution *a = b->a;
    const Options *o = a->job->options;
    AttributionLane *w = b->w;
    const int64_t all = a->B * a->size;
    const float tolerance = o->ig_tolerance > 0 ? (float)o->ig_tolerance : HUGE_VALF;
    bool again = true;
    for (int doubling = 0; again && doubling <= STEP_DOUBLINGS; doubling++) {
        const int n = o->ig_steps << doubling;
        double *points = malloc(2 * (size_t)n * sizeof *points), *weights = points + n;
        if (!points)
            die("memory: not enough for %d steps of integrated gradients", n);
        attribution_rule(points, weights, o->ig_rule, n);
        for (int i = 0; i < n; i++) {
            k_between(b->lane, graph_input(b->plan, b->lane), w->x, a->baseline, (float)points[i], a->B, a->size);
            k_add_scaled(b->lane, w->sum, gradient_pass(b, false), (float)weights[i], i == 0, all);
        }
        free(points);
        k_integrated(b->lane, w->map, w->low, w->steps, w->sum, w->x, a->baseline, w->score, tolerance, n,
                     doubling == 0, a->B, a->size);
        again = false;
        if (o->ig_tolerance > 0) {
            lane_download(b->lane, w->delta, w->low, (size_t)b->count * sizeof *w->delta);
            lane_sync(b->lane);
            for (int i = 0; i < b->count; i++)
                again |= !(w->delta[i] <= tolerance && w->delta[i] >= -tolerance);
        }
    }
}

static void smooth(const Batch *b) {
    const Attribution *a = b->a;
    const Options *o = a->job->options;
    const int draws = o->smoothgrad_draws;
    for (int i = 0; i < draws; i++) {
        k_noisy(b->lane, graph_input(b->plan, b->lane), b->w->x, a->numbers + b->at, (uint64_t)o->seed, i,
                (float)o->smoothgrad_noise, a->B, a->size);
        k_add_scaled(b->lane, b->w->map, gradient_pass(b, false), 1.0f / (float)draws, i == 0, a->B * a->size);
    }
}

static int windows_along(const Attribution *a, int side) {
    return (side - a->window + a->stride - 1) / a->stride + 1;
}

static void occlude(const Batch *b, const Method *method) {
    const Attribution *a = b->a;
    const Shape s = method->layer;
    const int C = shape_channels(s), H = shape_height(s), W = shape_width(s);
    AttributionLane *w = b->w;
    for (int row = 0; row < windows_along(a, H); row++)
        for (int column = 0; column < windows_along(a, W); column++) {
            const int top = row * a->stride, left = column * a->stride;
            const KBox box = {top, left, top + a->window < H ? top + a->window : H,
                              left + a->window < W ? left + a->window : W};
            k_occlude(b->lane, graph_input(b->plan, b->lane), w->x, a->baseline, &box, a->B, C, H, W);
            graph_forward_without(b->plan, b->lane, b->a->unread);
            k_score(b->lane, w->occluded, logits_of(b), a->baseline_logits, w->target, against_of(b), a->B, a->outputs);
            k_occlusion_add(b->lane, w->map, w->score, w->occluded, &box, row + column == 0, a->B, H, W);
        }
    k_occlusion_mean(b->lane, w->map, a->window, a->stride, a->B, H, W);
}

/* Into w->map, or where it gives. */
static const float *map_of(const Batch *b, const Method *method) {
    const Attribution *a = b->a;
    AttributionLane *w = b->w;
    const Shape s = method->layer;
    const int64_t all = a->B * a->size;
    switch (method->kind) {
    case METHOD_SALIENCY:
        k_saliency(b->lane, w->map, graph_gradient(b->plan, b->lane, 0), a->B, shape_channels(s), shape_height(s),
                   shape_width(s));
        break;
    case METHOD_SALIENCY_SIGNED: return graph_gradient(b->plan, b->lane, 0);
    case METHOD_SALIENCY_SQUARED:
        k_product(b->lane, w->map, graph_gradient(b->plan, b->lane, 0), graph_gradient(b->plan, b->lane, 0), all);
        break;
    case METHOD_INPUT_X_GRADIENT:
        k_product(b->lane, w->map, graph_input(b->plan, b->lane), graph_gradient(b->plan, b->lane, 0), all);
        break;
    case METHOD_GRADCAM:
    case METHOD_GRADCAM_PLUS:
    case METHOD_HIRESCAM:
    case METHOD_LAYERCAM: class_activation(b, method); break;
    case METHOD_GUIDED_BACKPROP:
        lane_copy(b->lane, graph_input(b->plan, b->lane), w->x, (size_t)all * sizeof *w->x);
        return gradient_pass(b, true);
    case METHOD_SMOOTHGRAD: smooth(b); break;
    case METHOD_INTEGRATED_GRADIENTS: integrate(b); break;
    case METHOD_OCCLUSION: occlude(b, method); break;
    }
    return w->map;
}

/* As large as the image and of one channel, for the evidence: with several, their sum. */
static void keep_plane(const Batch *b, const Method *method, const float *map) {
    const Attribution *a = b->a;
    float *plane = b->w->planes + (method - a->methods) * a->B * a->pixels;
    if (method->rows && (int64_t)method->map[1] * method->map[2] != a->pixels)
        make_large(b, method, plane);
    else
        k_channel_sum(b->lane, plane, map, a->B, method->map[0], a->pixels);
}

static void run_method(const Batch *b, const Method *method, char *const rows[METHOD_PARTS]) {
    AttributionLane *w = b->w;
    const bool bounds = method->maps == 3 && method->kind != METHOD_INTEGRATED_GRADIENTS;
    const float *map = map_of(b, method);
    if (attribution_has_evidence(b->a))
        keep_plane(b, method, map);
    if (bounds)
        k_normalise(b->lane, w->map, w->low, w->high, b->a->B, (int64_t)method->map[1] * method->map[2]);
    const void *const parts[METHOD_MAPS] = {map, w->low, bounds ? (void *)w->high : (void *)w->steps};
    for (int i = 0; i < method->maps; i++)
        lane_download(b->lane, rows[i], parts[i], (size_t)b->count * method->bytes[i]);
}

void attribution_batch(const Attribution *a, AttributionLane *w, const AttributionRows *to, const Plan *plan,
                       Lane *lane, const int32_t *prediction, int64_t at, int count) {
    const Batch b = {a, w, plan, lane, at, count};
    const float *logits = logits_of(&b);
    const int32_t *labels = a->labels ? a->labels + at : NULL;
    k_target(lane, w->target, a->target, prediction, logits, labels, a->B, a->outputs);
    k_target(lane, w->against, a->against, prediction, logits, labels, a->B, a->outputs);
    if (to->target)
        lane_download(lane, to->target, w->target, (size_t)count * sizeof *w->target);
    if (to->against)
        lane_download(lane, to->against, w->against, (size_t)count * sizeof *w->against);
    k_seed(lane, w->seed, w->target, against_of(&b), a->B, a->outputs);
    if (a->baseline)
        k_score(lane, w->score, logits, a->baseline_logits, w->target, against_of(&b), a->B, a->outputs);
    lane_copy(lane, w->x, graph_input(plan, lane), (size_t)(a->B * a->size) * sizeof *w->x);
    graph_backward(plan, lane, w->seed);
    for (int m = 0; m < a->count; m++)
        if (a->methods[m].kind < METHOD_GUIDED_BACKPROP)
            run_method(&b, &a->methods[m], to->rows[m]);
    for (int m = 0; m < a->count; m++)
        if (a->methods[m].kind >= METHOD_GUIDED_BACKPROP)
            run_method(&b, &a->methods[m], to->rows[m]);
    if (attribution_has_evidence(a))
        attribution_evidence(a, w, to, plan, lane, count);
}
