/* bench_ops.c: the operations of op_cases.h, timed with so many samples that a value has some 200,000 numbers.
 *
 * A case is a network: what its operation reads may be made by others first (a second operand, say), which are timed and
 * counted with it. The bound is reading and writing each node's values once; of convolutions and products, their
 * multiply-adds. */
#include <stdio.h>

#include "bench.h"
#include "device.h"
#include "op_cases.h"

enum { NUMBERS = 200000 };

typedef struct {
    Plan *plan;
    Lane *lane;
    float *seed;
} Pass;

static void forward(void *what) {
    const Pass *pass = what;
    graph_forward(pass->plan, pass->lane);
    lane_sync(pass->lane);
}

static void backward(void *what) {
    const Pass *pass = what;
    graph_backward(pass->plan, pass->lane, pass->seed);
    lane_sync(pass->lane);
}

/* Multiply-adds of a sample's node. */
static double multiply_adds_of(const Graph *g, int node) {
    const Node *n = &g->nodes[node];
    const Shape in = g->nodes[n->n_inputs ? n->inputs[0] : 0].shape;
    const double out = (double)size_of(g, node);
    switch (n->op) {
    case OP_CONV: return out * (double)(shape_size(n->weight.shape) / n->weight.shape.dim[0]);
    case OP_LINEAR: return out * (double)shape_size(n->weight.shape) / (double)n->shape.dim[n->shape.rank - 1];
    case OP_MATMUL: return out * (double)in.dim[n->operand_first ? in.rank - 2 : in.rank - 1];
    default: return 0;
    }
}

static void time_operation(const Case *c, const Peak *peak) {
    int from;
    Graph *g = one_operation(c, false, &from);
    double flops = 0, numbers_moved = 0;
    for (int i = 1; i < g->count; i++) {
        numbers_moved += (double)size_of(g, i);
        for (int k = 0; k < g->nodes[i].n_inputs; k++)
            numbers_moved += (double)size_of(g, g->nodes[i].inputs[k]);
        flops += 2 * multiply_adds_of(g, i);
    }
    const int batch = 1 + (int)(NUMBERS / size_of(g, 0));
    bool value[NODES_MAX] = {0}, gradient[NODES_MAX] = {0};
    value[g->logits] = gradient[0] = true;
    Pass pass = {.plan = graph_plan(arena, g, batch, value, gradient)};
    pass.lane = lane_new(graph_lane_bytes(pass.plan));
    const size_t in_bytes = (size_t)(batch * size_of(g, 0)) * sizeof(float);
    pass.seed =
        device_new(numbers(batch * size_of(g, g->logits)), (size_t)(batch * size_of(g, g->logits)) * sizeof(float));
    dev_upload(graph_input(pass.plan, pass.lane), numbers(batch * size_of(g, 0)), in_bytes);
    char shape[64], name[128];
    snprintf(name, sizeof name, "%s of %s, %d samples", graph_op_name(c->node.op), shape_text(shape, c->shape), batch);
    const double bytes = batch * numbers_moved * (double)sizeof(float);
    bench_line("forward", "plain", name, bench_seconds(forward, &pass), batch * flops, bytes, peak);
    bench_line("backward", "plain", name, bench_seconds(backward, &pass), batch * flops, bytes, peak);
    dev_free(pass.seed);
    lane_free(pass.lane);
    graph_plan_free(pass.plan);
}

void bench_ops(const Peak *peak) {
    op_cases_begin();
    for (int i = 0; i < CASES; i++) {
        time_operation(&cases[i], peak);
        arena_free(arena);
        arena = arena_new();
    }
    arena_free(arena);
}
