/* plan_run.c: the passes over a batch, forward and backward, as plan.c laid them out; values and gradients for callers. */
#include <stdlib.h>

#include "error.h"
#include "plan_parts.h"

static void *at(const Plan *plan, Lane *lane, int slot) {
    return slot == NONE ? NULL : (char *)lane_memory(lane) + plan->slots[slot].offset;
}

float *graph_input(const Plan *plan, Lane *lane) {
    return at(plan, lane, plan->places[0].value);
}

enum { FEW = 64 }; /* values read by a node whose pointers lie on the stack */

static void forward_step(const Plan *plan, Lane *lane, int i, const float **in, const bool *unread) {
    const Place *p = &plan->places[i];
    for (int k = 0; k < p->n; k++)
        in[k] = at(plan, lane, plan_read_slot(plan, p, k));
    const ForwardArgs args = {.out = at(plan, lane, p->value),
                              .in = in,
                              .saved = at(plan, lane, p->saved),
                              .scratch = at(plan, lane, plan->scratch)};
    graph_op(plan->graph->nodes[i].op)->forward(&p->step, lane, &args);
    const Sides s = graph_sides(plan->graph->nodes[i].shape);
    if (p->plain != NONE && p->plain != p->value && (p->plain_read || !unread || !unread[i]))
        k_to_plain(lane, at(plan, lane, p->plain), args.out, p->step.layout, plan->batch, s.C, s.H, s.W);
}

void graph_forward(const Plan *plan, Lane *lane) {
    graph_forward_without(plan, lane, NULL);
}

void graph_forward_without(const Plan *plan, Lane *lane, const bool *unread) {
    const float *few[FEW];
    for (int i = 0; i < plan->graph->count; i++) {
        const Place *p = &plan->places[i];
        if (!p->runs)
            continue;
        const float **in = p->n <= FEW ? few : malloc((size_t)p->n * sizeof *in);
        if (!in)
            die("memory: not enough for a layer that reads %d values", p->n);
        forward_step(plan, lane, i, in, unread);
        if (in != few)
            free(in);
    }
}

static void backward_step(const Plan *plan, Lane *lane, int i, const float **in, float **din, bool guided) {
    const Place *p = &plan->places[i];
    for (int k = 0; k < p->n; k++) {
        const Edge *e = &p->edges[k];
        in[k] = at(plan, lane, plan_read_slot(plan, p, k));
        din[k] = !e->flows ? NULL : at(plan, lane, e->direct ? plan->places[e->node].gradient : e->part);
    }
    const BackwardArgs args = {.din = din,
                               .dout = at(plan, lane, p->gradient),
                               .out = at(plan, lane, p->value),
                               .in = in,
                               .saved = at(plan, lane, p->saved),
                               .scratch = at(plan, lane, plan->scratch),
                               .guided = guided};
    graph_op(plan->graph->nodes[i].op)->backward(&p->step, lane, &args);
    for (int k = 0; k < p->n; k++) {
        const Edge *e = &p->edges[k];
        const Place *r = &plan->places[e->node];
        const Sides s = graph_sides(plan->graph->nodes[e->node].shape);
        if (e->flows && !e->direct)
            k_accumulate(lane, at(plan, lane, r->gradient), r->step.layout, din[k], plan_read_layout(plan, p, k),
                         e->first, plan->batch, s.C, s.H, s.W);
    }
}

static void backward(const Plan *plan, Lane *lane, const float *seed, bool guided) {
    if (plan->lowest == NONE)
        return;
    const Graph *g = plan->graph;
    const float *few_in[FEW];
    float *few_din[FEW];
    for (int i = g->logits; i >= plan->lowest; i--) {
        const Place *p = &plan->places[i];
        const Sides s = graph_sides(g->nodes[i].shape);
        if (i == g->logits)
            k_from_plain(lane, at(plan, lane, p->gradient), p->step.layout, seed, plan->batch, s.C, s.H, s.W);
        if (p->graded && p->gradient_wanted && p->gradient != p->plain_gradient)
            k_to_plain(lane, at(plan, lane, p->plain_gradient), at(plan, lane, p->gradient), p->step.layout,
                       plan->batch, s.C, s.H, s.W);
        if (!p->flows)
            continue;
        const bool few = p->n <= FEW;
        const float **in = few ? few_in : malloc((size_t)p->n * sizeof *in);
        float **din = few ? few_din : malloc((size_t)p->n * sizeof *din);
        if (!in || !din)
            die("memory: not enough for a layer that reads %d values", p->n);
        backward_step(plan, lane, i, in, din, guided);
        if (!few) {
            free(in);
            free(din);
        }
    }
}

void graph_backward(const Plan *plan, Lane *lane, const float *seed) {
    backward(plan, lane, seed, false);
}

void graph_backward_guided(const Plan *plan, Lane *lane, const float *seed) {
    backward(plan, lane, seed, true);
}

const float *graph_value(const Plan *plan, Lane *lane, int node) {
    if (!plan->places[node].value_wanted)
        die("layer %s: its value is read, and the plan was not asked to keep it", plan->graph->nodes[node].name);
    return at(plan, lane, plan->places[node].plain);
}

const float *graph_gradient(const Plan *plan, Lane *lane, int node) {
    if (!plan->places[node].gradient_wanted)
        die("layer %s: its gradient is read, and the plan was not asked for it", plan->graph->nodes[node].name);
    return at(plan, lane, plan->places[node].plain_gradient);
}
