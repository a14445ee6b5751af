/* plan.c: which nodes run for what is asked, where their values live, and the passes over a batch.
 *
 * Time is counted in steps: node i runs forward at i and backward at 2 * count - i. Each value, gradient and saved
 * array is a slot with the first and the last time it is touched; slots whose times do not meet share memory (largest
 * first, each at the lowest free place), elementwise steps work in place. So a lane needs about the largest two or
 * three values of a batch, which for small batches fit a core's cache. What was asked for lives to the end.
 * Planning is quadratic in the number of nodes and done once per process. */
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "plan.h"

enum { NONE = -1, SLOT_ALIGN = 64, BATCH_MAX = 1 << 20 };

typedef struct {
    size_t bytes, offset;
    int from, to;
} Slot;

typedef struct {
    Step step;
    int reads;                    /* node index; past a fused batch norm */
    bool runs;                    /* in forward */
    bool flows;                   /* backward runs from this node to the one it reads */
    int value, plain, saved;      /* slots: value in its own layout; its NCHW copy (same slot if it is NCHW) */
    int gradient, plain_gradient; /* slots; only the ones needed */
    bool value_wanted, gradient_wanted;
} Place;

struct Plan {
    const Graph *graph;
    int batch;
    Place *places; /* of each node */
    Slot *slots;
    int slot_count;
    int scratch; /* slot */
    int lowest;  /* node at which backward stops, or NONE */
    size_t lane_bytes;
};

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
    plan->places = ARENA_ARRAY(arena, Place, graph->count, "memory plan");
    plan->slots = ARENA_ARRAY(arena, Slot, 5 * (int64_t)graph->count + 1, "memory plan");
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
    for (int i = 0; plan && i < plan->graph->count; i++)
        if (plan->places[i].runs)
            graph_op(plan->graph->nodes[i].op)->release(&plan->places[i].step);
}

size_t graph_lane_bytes(const Plan *plan) {
    return plan->lane_bytes;
}

/* ---- What has to run -------------------------------------------------------------------------------------------- */

static void mark(Plan *plan, const bool *want_value, const bool *want_gradient) {
    const Graph *g = plan->graph;
    plan->lowest = NONE;
    for (int i = g->count - 1; i >= 0; i--) {
        Place *p = &plan->places[i];
        p->reads = g->nodes[i].input;
        p->value_wanted = want_value[i];
        p->gradient_wanted = want_gradient[i];
        p->value = p->plain = p->saved = p->gradient = p->plain_gradient = NONE;
        plan->lowest = want_gradient[i] ? i : plan->lowest;
    }
    for (int i = g->count - 1; i >= 0; i--)
        if (want_value[i] || i == 0 || (i == g->logits && plan->lowest != NONE))
            for (int n = i; n != NONE; n = g->nodes[n].input)
                plan->places[n].runs = true;
    if (plan->lowest == NONE)
        return;
    /* Every node reads one other, so a single path leads from the logits to the input. */
    int n = g->logits;
    for (; n > plan->lowest; n = g->nodes[n].input)
        plan->places[n].flows = true;
    for (int i = 0; i < g->count; i++)
        if (want_gradient[i] && !plan->places[i].flows && i != n)
            die("layer %s: its gradient was asked for, and the output %s does not depend on it: choose another layer",
                g->nodes[i].name, g->nodes[g->logits].name);
}

/* A batch norm that only a relu reads, and nobody asked for, is done by the relu. */
static void fuse(Plan *plan) {
    const Graph *g = plan->graph;
    for (int i = 1; i < g->count; i++) {
        Place *p = &plan->places[i];
        const int norm = g->nodes[i].input;
        const Place *q = &plan->places[norm];
        if (!p->runs || g->nodes[i].op != OP_RELU || g->nodes[norm].op != OP_BATCH_NORM || norm == g->logits ||
            q->value_wanted || q->gradient_wanted)
            continue;
        int readers = 0;
        for (int j = norm + 1; j < g->count; j++)
            readers += plan->places[j].runs && g->nodes[j].input == norm;
        if (readers > 1)
            continue;
        p->step.fused = &g->nodes[norm];
        p->reads = g->nodes[norm].input;
        plan->places[norm].runs = plan->places[norm].flows = false;
    }
}

static void prepare(Plan *plan) {
    const Graph *g = plan->graph;
    for (int i = 0; i < g->count; i++) {
        Place *p = &plan->places[i];
        if (!p->runs)
            continue;
        const Op *op = graph_op(g->nodes[i].op);
        p->step.node = &g->nodes[i];
        p->step.batch = plan->batch;
        p->step.backward = p->flows;
        if (p->reads != NONE) {
            p->step.input = &g->nodes[p->reads];
            p->step.in_layout = op->plain_input ? LAYOUT_PLAIN : plan->places[p->reads].step.layout;
        }
        op->prepare(&p->step);
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
    const Shape s = plan->graph->nodes[node].shape;
    return k_value_bytes(layout, plan->batch, s.channels, s.height, s.width);
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
        if (p->reads != NONE) {
            Place *r = &plan->places[p->reads];
            if (op->plain_input && r->plain == NONE)
                r->plain = new_slot(plan, bytes_of(plan, p->reads, LAYOUT_PLAIN), p->reads);
            keep_until(plan, op->plain_input ? r->plain : r->value, i);
        }
        scratch = p->step.scratch_bytes > scratch ? p->step.scratch_bytes : scratch;
    }
    /* The caller fills the input of the next batch while it may still read the results of this one. */
    plan->slots[plan->places[0].value].from = NONE;
    keep_until(plan, plan->places[0].value, the_end(plan));
    plan->scratch = new_slot(plan, scratch, NONE);
    keep_until(plan, plan->scratch, the_end(plan));
}

/* The gradient of node `i`, written at `time`: in its own layout where it flows on, in NCHW where asked for or where
 * the node above gives it so. */
static void assign_gradient(Plan *plan, int i, int time, bool comes_plain) {
    Place *p = &plan->places[i];
    bool is_plain = p->step.layout == LAYOUT_PLAIN;
    if (p->flows || is_plain || !comes_plain) {
        p->gradient = new_slot(plan, bytes_of(plan, i, p->step.layout), time);
        if (p->flows)
            keep_until(plan, p->gradient, backward_time(plan, i));
    }
    if (is_plain)
        p->plain_gradient = p->gradient;
    else if (comes_plain || p->gradient_wanted)
        p->plain_gradient = new_slot(plan, bytes_of(plan, i, LAYOUT_PLAIN), time);
    if (p->gradient_wanted)
        keep_until(plan, p->plain_gradient, the_end(plan));
}

static void assign_backward(Plan *plan) {
    if (plan->lowest == NONE)
        return;
    const Graph *g = plan->graph;
    assign_gradient(plan, g->logits, g->count, true);
    for (int i = g->logits; i > plan->lowest; i--)
        if (plan->places[i].flows)
            assign_gradient(plan, plan->places[i].reads, backward_time(plan, i), graph_op(g->nodes[i].op)->plain_input);
}

/* An elementwise step writes where it read, when nobody reads that again. */
static void work_in_place(Plan *plan) {
    const Graph *g = plan->graph;
    for (int i = 1; i < g->count; i++) {
        Place *p = &plan->places[i];
        const Place *r = p->runs ? &plan->places[p->reads] : NULL;
        if (!r || !graph_op(g->nodes[i].op)->in_place || plan->slots[r->value].to != i)
            continue;
        keep_until(plan, r->value, plan->slots[p->value].to);
        plan->slots[p->value].bytes = 0;
        p->plain = p->plain == p->value ? r->value : p->plain;
        p->value = r->value;
    }
    for (int i = g->count - 1; i > plan->lowest && plan->lowest != NONE; i--) {
        const Place *p = &plan->places[i];
        Place *r = p->flows ? &plan->places[p->reads] : NULL;
        if (!r || !graph_op(g->nodes[i].op)->in_place || plan->slots[p->gradient].to != backward_time(plan, i))
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

/* ---- Passes ----------------------------------------------------------------------------------------------------- */

static void *at(const Plan *plan, Lane *lane, int slot) {
    return slot == NONE ? NULL : (char *)lane_memory(lane) + plan->slots[slot].offset;
}

float *graph_input(const Plan *plan, Lane *lane) {
    return at(plan, lane, plan->places[0].value);
}

void graph_forward(const Plan *plan, Lane *lane) {
    const Graph *g = plan->graph;
    for (int i = 0; i < g->count; i++) {
        const Place *p = &plan->places[i];
        if (!p->runs)
            continue;
        const Op *op = graph_op(g->nodes[i].op);
        const Place *r = p->reads == NONE ? p : &plan->places[p->reads];
        const ForwardArgs args = {.out = at(plan, lane, p->value),
                                  .in = at(plan, lane, op->plain_input ? r->plain : r->value),
                                  .saved = at(plan, lane, p->saved),
                                  .scratch = at(plan, lane, plan->scratch)};
        op->forward(&p->step, lane, &args);
        const Shape s = g->nodes[i].shape;
        if (p->plain != NONE && p->plain != p->value)
            k_to_plain(lane, at(plan, lane, p->plain), args.out, p->step.layout, plan->batch, s.channels, s.height,
                       s.width);
    }
}

/* Node i's gradient has just been written, in NCHW or in its own layout: give it the other where needed. */
static void complete_gradient(const Plan *plan, Lane *lane, int i, bool came_plain) {
    const Place *p = &plan->places[i];
    const Shape s = plan->graph->nodes[i].shape;
    if (p->gradient == NONE || p->plain_gradient == NONE || p->gradient == p->plain_gradient)
        return;
    float *own = at(plan, lane, p->gradient), *plain = at(plan, lane, p->plain_gradient);
    if (came_plain)
        k_from_plain(lane, own, p->step.layout, plain, plan->batch, s.channels, s.height, s.width);
    else
        k_to_plain(lane, plain, own, p->step.layout, plan->batch, s.channels, s.height, s.width);
}

void graph_backward(const Plan *plan, Lane *lane, const float *seed) {
    if (plan->lowest == NONE)
        return;
    const Graph *g = plan->graph;
    const Place *logits = &plan->places[g->logits];
    const Shape k = g->nodes[g->logits].shape;
    k_to_plain(lane, at(plan, lane, logits->plain_gradient), seed, LAYOUT_PLAIN, plan->batch, k.channels, k.height,
               k.width);
    complete_gradient(plan, lane, g->logits, true);
    for (int i = g->logits; i > plan->lowest; i--) {
        const Place *p = &plan->places[i];
        if (!p->flows)
            continue;
        const Op *op = graph_op(g->nodes[i].op);
        const Place *r = &plan->places[p->reads];
        const BackwardArgs args = {.din = at(plan, lane, op->plain_input ? r->plain_gradient : r->gradient),
                                   .dout = at(plan, lane, p->gradient),
                                   .out = at(plan, lane, p->value),
                                   .saved = at(plan, lane, p->saved),
                                   .scratch = at(plan, lane, plan->scratch)};
        op->backward(&p->step, lane, &args);
        complete_gradient(plan, lane, p->reads, op->plain_input);
    }
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
