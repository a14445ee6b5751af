/* attribution_evidence.c: measures of the maps of a batch. See attribution.h.
 *
 * Deletion and insertion (Petsiuk et al. 2018) take the image apart pixel by pixel in the order of the map, and watch
 * the probability of the target: a pass of the network for each step, over the whole batch. What methods share is their
 * maps as large as the image, kept for all of them: so this is after the last method's passes. */
#include "attribution.h"

bool attribution_has_evidence(const Attribution *a) {
    bool any = a->agreement;
    for (int k = 0; k < EVIDENCE_KINDS; k++)
        any |= a->evidence[k];
    return any && a->count > 0;
}

bool attribution_has_planes(const Attribution *a) {
    return a->keeps_planes || attribution_has_evidence(a);
}

static size_t scratch_bytes(const Attribution *a, int B) {
    size_t most = attribution_has_evidence(a) ? k_rank_scratch(B, a->pixels) : 0;
    for (int m = 0; m < a->count; m++) {
        const Shape s = a->methods[m].layer;
        const int64_t pixels = (int64_t)shape_height(s) * shape_width(s);
        const size_t bytes =
            a->methods[m].kind == METHOD_EIGENCAM ? k_eigen_cam_scratch(B, shape_channels(s), pixels) : 0;
        most = bytes > most ? bytes : most;
    }
    return most;
}

size_t attribution_evidence_bytes(const Attribution *a, int B) {
    const size_t count = (size_t)a->count, plane = (size_t)B * (size_t)a->pixels * sizeof(float);
    const size_t scratch = scratch_bytes(a, B) + (a->evidence[EVIDENCE_POINTING] ? plane / sizeof(float) : 0);
    if (!attribution_has_evidence(a))
        return scratch + (attribution_has_planes(a) ? count * plane : 0);
    return (2 * count + 2) * plane + (size_t)B * (1 + count * count) * sizeof(float) + scratch;
}

void attribution_evidence_new(AttributionLane *w, const Attribution *a) {
    const size_t count = (size_t)a->count, plane = (size_t)a->B * (size_t)a->pixels * sizeof(float);
    if (attribution_has_planes(a))
        w->planes = dev_alloc(count * plane);
    const size_t scratch = scratch_bytes(a, a->B);
    if (scratch > 0)
        w->scratch = dev_alloc(scratch);
    if (!attribution_has_evidence(a))
        return;
    if (a->evidence[EVIDENCE_POINTING])
        w->mask = dev_alloc((size_t)a->B * (size_t)a->pixels);
    w->tied = dev_alloc(count * plane);
    w->magnitude = dev_alloc(plane);
    w->rank = dev_alloc(plane);
    w->area = dev_alloc((size_t)a->B * sizeof(float));
    w->agreement = dev_alloc((size_t)a->B * count * count * sizeof(float));
}

void attribution_evidence_free(AttributionLane *w) {
    dev_free(w->planes);
    dev_free(w->tied);
    dev_free(w->magnitude);
    dev_free(w->rank);
    dev_free(w->area);
    dev_free(w->agreement);
    dev_free(w->mask);
    dev_free(w->scratch);
}

/* w->area: by the trapezoidal rule over the share of pixels. */
static void take_apart(const Attribution *a, AttributionLane *w, const Plan *plan, Lane *lane, bool insertion) {
    const Graph *graph = a->job->model->graph;
    const int steps = a->job->options->evidence_steps;
    for (int i = 0; i <= steps; i++) {
        const int64_t cut = (a->pixels * i + steps / 2) / steps;
        k_reveal(lane, graph_input(plan, lane), w->x, a->baseline, w->rank, cut, insertion, a->B,
                 (int)(a->size / a->pixels), a->pixels);
        graph_forward_without(plan, lane, a->unread);
        k_add_probability(lane, w->area, graph_value(plan, lane, graph->logits), w->target,
                          (i == 0 || i == steps ? 0.5f : 1.0f) / (float)steps, i == 0, a->B, a->outputs);
    }
}

static void measure(const Attribution *a, AttributionLane *w, const Plan *plan, Lane *lane, EvidenceKind kind,
                    const float *plane) {
    const KUnary magnitude = {.function = K_ABS};
    switch (kind) {
    case EVIDENCE_POINTING: k_pointing(lane, w->area, w->rank, w->mask, a->B, a->pixels); return;
    case EVIDENCE_ENERGY: k_energy(lane, w->area, plane, w->mask, a->B, a->pixels); return;
    case EVIDENCE_SPARSENESS: break;
    default: take_apart(a, w, plan, lane, kind == EVIDENCE_INSERTION); return;
    }
    k_unary_forward(lane, w->magnitude, plane, LAYOUT_PLAIN, &magnitude, a->B, 1, 1, (int)a->pixels);
    k_rank(lane, w->rank, NULL, w->magnitude, a->B, a->pixels, w->scratch);
    k_gini(lane, w->area, w->magnitude, w->rank, a->B, a->pixels);
}

void attribution_evidence(const Attribution *a, AttributionLane *w, const AttributionRows *to, const Plan *plan,
                          Lane *lane, int count) {
    const int64_t plane = a->B * a->pixels, pairs = (int64_t)a->count * a->count;
    for (int m = 0; m < a->count; m++) {
        const float *map = w->planes + m * plane;
        float *tied = w->tied + m * plane;
        int part = a->methods[m].maps;
        k_rank(lane, w->rank, a->agreement ? tied : NULL, map, a->B, a->pixels, w->scratch);
        for (int k = 0; k < EVIDENCE_KINDS; k++) {
            if (!a->evidence[k])
                continue;
            measure(a, w, plan, lane, (EvidenceKind)k, map);
            lane_download(lane, to->rows[m][part++], w->area, (size_t)count * sizeof *w->area);
        }
        for (int other = 0; to->agreement && other <= m; other++) {
            k_rank_correlation(lane, w->agreement + m * a->count + other, pairs, tied, w->tied + other * plane, a->B,
                               a->pixels);
            k_rank_correlation(lane, w->agreement + other * a->count + m, pairs, tied, w->tied + other * plane, a->B,
                               a->pixels);
        }
    }
    if (to->agreement)
        lane_download(lane, to->agreement, w->agreement, (size_t)(count * pairs) * sizeof *w->agreement);
}
