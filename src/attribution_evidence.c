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

size_t attribution_evidence_bytes(const Attribution *a, int B) {
    if (!attribution_has_evidence(a))
        return 0;
    const size_t count = (size_t)a->count, plane = (size_t)B * (size_t)a->pixels * sizeof(float);
    return (2 * count + 2) * plane + (size_t)B * (1 + count * count) * sizeof(float) + k_rank_scratch(B, a->pixels);
}

void attribution_evidence_new(AttributionLane *w, const Attribution *a) {
    if (!attribution_has_evidence(a))
        return;
    const size_t count = (size_t)a->count, plane = (size_t)a->B * (size_t)a->pixels * sizeof(float);
    w->planes = dev_alloc(count * plane);
    w->tied = dev_alloc(count * plane);
    w->magnitude = dev_alloc(plane);
    w->rank = dev_alloc(plane);
    w->area = dev_alloc((size_t)a->B * sizeof(float));
    w->agreement = dev_alloc((size_t)a->B * count * count * sizeof(float));
    w->scratch = dev_alloc(k_rank_scratch(a->B, a->pixels));
}

void attribution_evidence_free(AttributionLane *w) {
    dev_free(w->planes);
    dev_free(w->tied);
    dev_free(w->magnitude);
    dev_free(w->rank);
    dev_free(w->area);
    dev_free(w->agreement);
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
    if (kind != EVIDENCE_SPARSENESS) {
        take_apart(a, w, plan, lane, kind == EVIDENCE_INSERTION);
        return;
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
        for (int k = 0; k < EVIDENCE_KINDS; k++) { /* sparseness is the last: it has ranks of its own */
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
