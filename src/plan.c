/* plan.c: which nodes run for what is asked, and where their values live. plan_run.c runs them.
 *
 * Time is counted in steps: node i runs forward at i and backward at 2 * count - i. Each value, gradient and saved
 * array is a slot with the first and the last time it is touched; slots whose times do not meet share memory (largest
 * first, each at the lowest free place), elementwise steps work in place. So a lane needs about the largest two or
 * three values of a batch, which for small batches fit a core's cache. What was asked for lives to the end.
 * A gradient is in the layout of its value. The last node that reads a value writes its gradient, those before add
 * theirs, in falling order of their indices, through a part of their own.
 * Planning is quadratic in the number of nodes and done once per process. */
#include <stdlib.h>

#include "error.h"
#include "plan_parts.h"

enum { SLOT_ALIGN = 64, BATCH_MAX = 1 << 20 };

static void make_places(Plan *plan, Arena *arena);
static void mark(Plan *plan, const bool *want_value, const bool *want_gradient);
static void fuse(Plan *plan);
static void prepare(Plan *plan);
static void assign_forward(Plan *plan);
static void assign_backward(Plan *plan);
static void work_in_place(Plan *plan);
static void place_slots(Plan *plan, Arena *arena);

Plan *graph_plan(Arena *arena, const Graph *graph, int batch, const bool *want_value, const bool *want_gradient) {
    if (batch < 1 || batch > BATCH_MAX)
        die("--batch: %d was found, expected 1 to %d", batch, BATCH_MAX);
    Plan *plan = ARENA_ARRAY(arena, Plan, 1, "memory plan");
    plan->graph = graph;
    plan->batch = batch;
    make_places(plan, arena);
    mark(plan, want_value, want_gradient);
    fuse(plan);
    prepare(plan);
    assign_forward(plan);
    assign_backward(plan);
    work_in_place(plan);
    place_slots(plan, arena);
    return plan;
}

void graph_plan_free(Plan *plan) {
    for (int i = 0; plan && i < plan->graph->count; i++) {
        const Op *op = graph_op(plan->graph->nodes[i].op);
        if (plan->places[i].runs && op->release)
            op->release(&plan->places[i].step);
    }
}

size_t graph_lane_bytes(const Plan *plan) {
    return plan->lane_bytes;
}

/* ---- What has to run -------------------------------------------------------------------------------------------- */

static void make_places(Plan *plan, Arena *arena) {
    const Graph *g = plan->graph;
    int64_t edges = 0;
    plan->places = ARENA_ARRAY(arena, Place, g->count, "memory plan");
    for (int i = 0; i < g->count; i++) {
        Place *p = &plan->places[i];
        const int n = p->n = g->nodes[i].n_inputs;
        p->edges = ARENA_ARRAY(arena, Edge, n, "memory plan");
        p->in = ARENA_ARRAY(arena, Shape, n, "memory plan");
        p->laid = ARENA_ARRAY(arena, Layout, n, "memory plan");
        p->flows_to = ARENA_ARRAY(arena, bool, n, "memory plan");
        for (int k = 0; k < n; k++)
            p->edges[k] = (Edge){.node = g->nodes[i].inputs[k], .part = NONE};
        edges += n;
    }
    plan->slots = ARENA_ARRAY(arena, Slot, 5 * (int64_t)g->count + edges + 1, "memory plan");
}

/* Runs: what a wanted value, or the logits where a gradient is wanted, depends on. Graded: what the logits depend on
 * and a wanted gradient leads to. */
static void mark(Plan *plan, const bool *want_value, const bool *want_gradient) {
    const Graph *g = plan->graph;
    plan->lowest = NONE;
    for (int i = 0; i < g->count; i++) {
        Place *p = &plan->places[i];
        p->value_wanted = want_value[i];
        p->gradient_wanted = want_gradient[i];
        p->value = p->plain = p->saved = p->gradient = p->plain_gradient = NONE;
        if (want_gradient[i] && plan->lowest == NONE)
            plan->lowest = i;
        p->graded = want_gradient[i]; /* for now: leads to a wanted one */
        for (int k = 0; k < p->n; k++)
            p->graded |= plan->places[p->edges[k].node].graded;
    }
    for (int i = g->count - 1; i >= 0; i--) {
        Place *p = &plan->places[i];
        p->runs |= want_value[i] || i == 0 || (i == g->logits && plan->lowest != NONE);
        for (int k = 0; p->runs && k < p->n; k++)
            plan->places[p->edges[k].node].runs = true;
    }
    for (int i = g->count - 1; i >= 0; i--) {
        Place *p = &plan->places[i];
        p->graded &= i == g->logits || p->flows; /* flows, for now: read by one the logits depend on */
        p->flows = false;
        for (int k = 0; k < p->n; k++) {
            Place *r = &plan->places[p->edges[k].node];
            p->edges[k].flows = p->flows_to[k] = p->graded && r->graded;
            p->flows |= p->edges[k].flows;
            r->flows |= p->graded;
        }
        if (want_gradient[i] && !p->graded)
            die("layer %s: its gradient was asked for, and the output %s does not depend on it: choose another layer",
                g->nodes[i].name, g->nodes[g->logits].name);
    }
}

/* Whether a node is of that operation, one node alone reads it, and nobody asked for it. */
static bool only_for(const Plan *plan, int node, OpKind op) {
    const Graph *g = plan->graph;
    const Place *q = &plan->places[node];
    if (g->nodes[node].op != op || node == g->logits || q->value_wanted || q->gradient_wanted)
        return false;
    int readers = 0;
    for (int j = node + 1; j < g->count; j++)
        for (int k = 0; plan->places[j].runs && k < plan->places[j].n; k++)
            readers += plan->places[j].edges[k].node == node;
    return readers == 1;
}

/* A batch norm that only a relu reads, and nobody asked for, is done by the relu; likewise a relu, with what it does, by
 * a max pooling. */
static void fuse(Plan *plan) {
    const Graph *g = plan->graph;
    for (int i = 1; i < g->count; i++) {
        Place *p = &plan->places[i];
        const bool pools = g->nodes[i].op == OP_MAX_POOL;
        if (!p->runs || (g->nodes[i].op != OP_RELU && !pools))
            continue;
        const int before = p->edges[0].node;
        if (!only_for(plan, before, pools ? OP_RELU : OP_BATCH_NORM))
            continue;
        Place *q = &plan->places[before];
        p->step.fused = pools ? q->step.fused : &g->nodes[before];
        p->step.relu = pools;
        p->edges[0] = q->edges[0];
        p->flows_to[0] = q->flows_to[0];
        q->runs = q->flows = q->graded = false;
    }
}

static void prepare(Plan *plan) {
    const Graph *g = plan->graph;
    for (int i = 0; i < g->count; i++) {
        Place *p = &plan->places[i];
        if (!p->runs)
            continue;
        for (int k = 0; k < p->n; k++) {
            p->in[k] = g->nodes[p->edges[k].node].shape;
            p->laid[k] = plan->places[p->edges[k].node].step.layout;
        }
        p->step = (Step){.node = &g->nodes[i],
                         .fused = p->step.fused,
                         .relu = p->step.relu,
                         .n = p->n,
                         .in = p->in,
                         .laid = p->laid,
                         .flows = p->flows_to,
                         .batch = plan->batch,
                         .backward = p->flows};
        graph_op(g->nodes[i].op)->prepare(&p->step);
    }
}

/* ---- Slots ------------------------------------------------------------------------------------------------------ */

static int the_end(const Plan *plan) {
    return 2 * plan->graph->count + 1;
}

static int backward_time(const Plan *plan, int node) {
    return 2 * plan->graph->count - node;
}

static int new_slot(Plan *plan, size_t bytes, int from) {
    plan->slots[plan->slot_count] =
        (Slot){.bytes = (bytes + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN, .from = from, .to = from};
    return plan->slot_count++;
}

static void keep_until(Plan *plan, int slot, int time) {
    Slot *s = &plan->slots[slot];
    s->to = time > s->to ? time : s->to;
}

static size_t bytes_of(const Plan *plan, int node, Layout layout) {
    const Sides s = graph_sides(plan->graph->nodes[node].shape);
    return k_value_bytes(layout, plan->batch, s.C, s.H, s.W);
}

Layout plan_read_layout(const Plan *plan, const Place *p, int k) {
    return p->step.reads_plain ? LAYOUT_PLAIN : plan->places[p->edges[k].node].step.layout;
}

int plan_read_slot(const Plan *plan, const Place *p, int k) {
    const Place *r = &plan->places[p->edges[k].node];
    return p->step.reads_plain ? r->plain : r->value;
}

static void assign_forward(Plan *plan) {
    const Graph *g = plan->graph;
    size_t scratch = 0;
    for (int i = 0; i < g->count; i++) {
        Place *p = &plan->places[i];
        if (!p->runs)
            continue;
        const Op *op = graph_op(g->nodes[i].op);
        p->value = new_slot(plan, bytes_of(plan, i, p->step.layout), i);
        if (p->step.layout == LAYOUT_PLAIN)
            p->plain = p->value;
        else if (p->value_wanted)
            p->plain = new_slot(plan, bytes_of(plan, i, LAYOUT_PLAIN), i);
        if (p->value_wanted)
            keep_until(plan, p->plain, the_end(plan));
        if (op->keeps_output && p->flows)
            keep_until(plan, p->value, backward_time(plan, i));
        if (p->step.saved_bytes) {
            p->saved = new_slot(plan, p->step.saved_bytes, i);
            keep_until(plan, p->saved, backward_time(plan, i));
        }
        for (int k = 0; k < p->n; k++) {
            const int node = p->edges[k].node;
            Place *r = &plan->places[node];
            if (p->step.reads_plain && r->plain == NONE)
                r->plain = new_slot(plan, bytes_of(plan, node, LAYOUT_PLAIN), node);
            r->plain_read |= p->step.reads_plain;
            keep_until(plan, plan_read_slot(plan, p, k), op->keeps_inputs && p->flows ? backward_time(plan, i) : i);
        }
        scratch = p->step.scratch_bytes > scratch ? p->step.scratch_bytes : scratch;
    }
    /* The caller fills the input of the next batch while it may still read the results of this one. */
    plan->slots[plan->places[0].value].from = NONE;
    keep_until(plan, plan->places[0].value, the_end(plan));
    plan->scratch = new_slot(plan, scratch, NONE);
    keep_until(plan, plan->scratch, the_end(plan));
}

/* Room for the gradient of node `i`, first written at `time`; complete when its own turn comes. */
static void assign_gradient(Plan *plan, int i, int time) {
    Place *p = &plan->places[i];
    const bool is_plain = p->step.layout == LAYOUT_PLAIN;
    p->gradient = new_slot(plan, bytes_of(plan, i, p->step.layout), time);
    if (p->flows || p->gradient_wanted)
        keep_until(plan, p->gradient, backward_time(plan, i));
    if (!p->gradient_wanted)
        return;
    p->plain_gradient =
        is_plain ? p->gradient : new_slot(plan, bytes_of(plan, i, LAYOUT_PLAIN), backward_time(plan, i));
    keep_until(plan, p->plain_gradient, the_end(plan));
}

static void assign_backward(Plan *plan) {
    if (plan->lowest == NONE)
        return;
    const Graph *g = plan->graph;
    assign_gradient(plan, g->logits, g->count);
    for (int i = g->logits; i > plan->lowest; i--) {
        const Place *p = &plan->places[i];
        for (int k = 0; p->flows && k < p->n; k++) {
            Edge *e = &p->edges[k];
            if (!e->flows)
                continue;
            const Layout own = plan->places[e->node].step.layout, layout = plan_read_layout(plan, p, k);
            const int now = backward_time(plan, i);
            e->first = plan->places[e->node].gradient == NONE;
            e->direct = e->first && layout == own;
            if (e->first)
                assign_gradient(plan, e->node, now);
            keep_until(plan, plan->places[e->node].gradient, now);
            if (!e->direct)
                e->part = new_slot(plan, bytes_of(plan, e->node, layout), now);
        }
    }
}

/* An elementwise step writes where it read, when nobody reads that again. */
static void work_in_place(Plan *plan) {
    const Graph *g = plan->graph;
    for (int i = 1; i < g->count; i++) {
        Place *p = &plan->places[i];
        for (int k = 0; p->runs && graph_op(g->nodes[i].op)->in_place && k < p->n; k++) {
            const int slot = plan_read_slot(plan, p, k);
            if (plan->slots[slot].to != i || shape_size(p->in[k]) != shape_size(g->nodes[i].shape) ||
                plan_read_layout(plan, p, k) != p->step.layout)
                continue;
            keep_until(plan, slot, plan->slots[p->value].to);
            plan->slots[p->value].bytes = 0;
            p->plain = p->plain == p->value ? slot : p->plain;
            p->value = slot;
            break;
        }
    }
    for (int i = g->count - 1; i > plan->lowest && plan->lowest != NONE; i--) {
        const Place *p = &plan->places[i];
        if (!p->flows || p->n != 1 || !graph_op(g->nodes[i].op)->in_place || !p->edges[0].direct)
            continue;
        Place *r = &plan->places[p->edges[0].node];
        if (plan->slots[p->gradient].to != backward_time(plan, i) ||
            shape_size(p->in[0]) != shape_size(g->nodes[i].shape) || r->step.layout != p->step.layout)
            continue;
        keep_until(plan, p->gradient, plan->slots[r->gradient].to);
        plan->slots[r->gradient].bytes = 0;
        r->plain_gradient = r->plain_gradient == r->gradient ? p->gradient : r->plain_gradient;
        r->gradient = p->gradient;
    }
}

static int larger_first(const void *a, const void *b) {
    const Slot *x = *(Slot *const *)a, *y = *(Slot *const *)b;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    return x < y ? -1 : x > y;
}

/* placed is in order of offset, so one walk finds the lowest place where nothing of the same time lies. */
static void place_slots(Plan *plan, Arena *arena) {
    const int count = plan->slot_count;
    Slot **order = ARENA_ARRAY(arena, Slot *, count, "memory plan");
    Slot **placed = ARENA_ARRAY(arena, Slot *, count, "memory plan");
    for (int i = 0; i < count; i++)
        order[i] = &plan->slots[i];
    qsort(order, (size_t)count, sizeof *order, larger_first);
    for (int i = 0; i < count && order[i]->bytes > 0; i++) {
        Slot *slot = order[i];
        for (int j = 0; j < i; j++) {
            const Slot *other = placed[j];
            bool meet = slot->from <= other->to && other->from <= slot->to;
            if (meet && slot->offset + slot->bytes > other->offset && slot->offset < other->offset + other->bytes)
                slot->offset = other->offset + other->bytes;
        }
        int at = i;
        for (; at > 0 && placed[at - 1]->offset > slot->offset; at--)
            placed[at] = placed[at - 1];
        placed[at] = slot;
        size_t end = slot->offset + slot->bytes;
        plan->lane_bytes = end > plan->lane_bytes ? end : plan->lane_bytes;
    }
}
