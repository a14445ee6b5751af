/* test_ops.c: every operation of the graph, as a network of one, on plain and on blocked values: its value against
 * ref.c, its input gradient against signed finite differences of ref.c in double, element by element, the same bits in
 * every batch; then random networks with residual sums, products and concatenations; then what they need of memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "error.h"
#include "op_cases.h"

enum { SAMPLES = 5 };

/* ---- Running a network ------------------------------------------------------------------------------------------ */

typedef struct {
    float *value, *gradient; /* of the logits; of one node */
} Result;

static Result run(const Graph *g, int batch, int node, bool everything, const float *x, const float *seed) {
    bool values[NODES_MAX] = {0}, gradients[NODES_MAX] = {0};
    values[g->logits] = gradients[node] = true;
    for (int i = 0; everything && i < g->count; i++)
        values[i] = gradients[i] = true;
    Result r = {ARENA_ARRAY(arena, float, SAMPLES *size_of(g, g->logits), "value"),
                ARENA_ARRAY(arena, float, SAMPLES *size_of(g, node), "gradient")};
    Plan *plan = graph_plan(arena, g, batch, values, gradients);
    Lane *lane = lane_new(graph_lane_bytes(plan));
    const size_t seed_bytes = (size_t)(batch * size_of(g, g->logits)) * sizeof *seed;
    float *device_seed = dev_alloc(seed_bytes);
    for (int first = 0; first + batch <= SAMPLES; first += batch) {
        device_spoil(lane_memory(lane), graph_lane_bytes(plan));
        dev_upload(device_seed, seed + first * size_of(g, g->logits), seed_bytes);
        const size_t sample = sizeof(float) * (size_t)batch;
        dev_upload(graph_input(plan, lane), x + first * size_of(g, 0), sample * (size_t)size_of(g, 0));
        graph_forward(plan, lane);
        graph_backward(plan, lane, device_seed);
        lane_sync(lane);
        dev_download(r.value + first * size_of(g, g->logits), graph_value(plan, lane, g->logits),
                     sample * (size_t)size_of(g, g->logits));
        dev_download(r.gradient + first * size_of(g, node), graph_gradient(plan, lane, node),
                     sample * (size_t)size_of(g, node));
    }
    dev_free(device_seed);
    lane_free(lane);
    graph_plan_free(plan);
    return r;
}

static double **reference(const Graph *g, const float *x, int samples) {
    double **values = ARENA_ARRAY(arena, double *, g->count, "values");
    for (int i = 0; i < g->count; i++)
        values[i] = ARENA_ARRAY(arena, double, samples *size_of(g, i), "values");
    for (int64_t i = 0; i < samples * size_of(g, 0); i++)
        values[0][i] = x[i];
    ref_graph(values, g, 1, samples);
    return values;
}

static double weighed(const Graph *g, double **values, const float *seed) {
    double sum = 0;
    for (int64_t i = 0; i < size_of(g, g->logits); i++)
        sum += values[g->logits][i] * (double)seed[i];
    return sum;
}

static void check_close(const char *what, const float *fast, const double *exact, int64_t count, double tolerance) {
    double largest = 1e-3, worst = 0;
    for (int64_t i = 0; i < count; i++) {
        const double error = fabs((double)fast[i] - exact[i]);
        largest = fmax(largest, fabs(exact[i]));
        worst = error > worst || isnan(error) ? error : worst;
    }
    if (!(worst <= tolerance * largest))
        fail_msg("%s: error %g of %g", what, worst, largest);
}

/* Of <logits, seed> with respect to each element of a node's value (one sample), which later nodes are made of. */
static double *slopes(const Graph *g, double **values, int node, const float *seed) {
    const double step = 1e-6;
    double *found = ARENA_ARRAY(arena, double, size_of(g, node), "slopes");
    for (int64_t i = 0; i < size_of(g, node); i++) {
        const double x = values[node][i];
        for (int side = -1; side <= 1; side += 2) {
            values[node][i] = x + side * step;
            ref_graph(values, g, node + 1, 1);
            found[i] += side * weighed(g, values, seed) / (2 * step);
        }
        values[node][i] = x;
    }
    ref_graph(values, g, node + 1, 1);
    return found;
}

static void check_same(const char *what, const Graph *g, int node, Result a, Result b) {
    const size_t value = (size_t)(SAMPLES * size_of(g, g->logits)), gradient = (size_t)(SAMPLES * size_of(g, node));
    if (memcmp(a.value, b.value, value * sizeof(float)) != 0)
        fail_msg("%s: the value has other bits", what);
    if (memcmp(a.gradient, b.gradient, gradient * sizeof(float)) != 0)
        fail_msg("%s: the gradient has other bits", what);
}

static void test_operations(void **state) {
    (void)state;
    bool seen[OP_COUNT] = {[OP_INPUT] = true, [OP_RELU] = true}; /* test_kernels.c, test_graph.c */
    for (int i = 0; i < 2 * CASES; i++) {
        const Case *c = &cases[i / 2];
        random_state = (uint64_t)i + 1;
        int from;
        Graph *g = i % 2 && c->shape.rank != 3 ? NULL : one_operation(c, i % 2, &from);
        if (!g)
            continue;
        seen[c->node.op] = true;
        const char *what =
            arena_printf(arena, "%s (case %d%s)", graph_op_name(c->node.op), i / 2, i % 2 ? ", blocked" : "");
        const float *x = numbers(SAMPLES * size_of(g, 0)), *seed = numbers(SAMPLES * size_of(g, g->logits));
        const Result r = run(g, SAMPLES, from, false, x, seed);
        double **values = reference(g, x, SAMPLES);
        check_close(what, r.value, values[g->logits], SAMPLES * size_of(g, g->logits), 3e-6);
        for (int s = 0; s < 2; s++) {
            double **one = reference(g, x + s * size_of(g, 0), 1);
            double *exact = slopes(g, one, from, seed + s * size_of(g, g->logits));
            check_close(arena_printf(arena, "%s, gradient", what), r.gradient + s * size_of(g, from), exact,
                        size_of(g, from), 1e-5);
        }
        check_same(what, g, from, run(g, 1, from, false, x, seed), r);
        check_same(what, g, from, run(g, SAMPLES, from, true, x, seed), r);
    }
    for (int op = 0; op < OP_COUNT; op++)
        if (!seen[op])
            fail_msg("%s is not tested", graph_op_name((OpKind)op));
}

/* ---- Functions of one value, far out ----------------------------------------------------------------------------- */

static double exact(KFunction f, double x) {
    switch (f) {
    case K_EXP: return exp(x);
    case K_SIGMOID: return 1 / (1 + exp(-x));
    case K_TANH: return tanh(x);
    case K_ERF: return erf(x);
    case K_SOFTPLUS: return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
    case K_ELU: return x > 0 ? x : expm1(x);
    default: return x / 2 * (1 + erf(x / sqrt(2)));
    }
}

/* out = f(in), of values of the host. */
static void apply(Lane *lane, float *out, const float *in, const KUnary *unary, int count) {
    const size_t bytes = (size_t)count * sizeof(float);
    float *device_in = device_new(in, bytes), *device_out = device_new(NULL, bytes);
    k_unary_forward(lane, device_out, device_in, LAYOUT_PLAIN, unary, 1, count, 1, 1);
    device_take(lane, out, device_out, bytes);
    dev_free(device_in);
}

/* In units of the last place, over normal numbers; the bits of a value alone, at each place of a row, and as NaN. */
static void test_functions(void **state) {
    (void)state;
    static const struct {
        KFunction f;
        double least, most; /* where to look */
        double ulp;
    } table[] = {{K_EXP, -87, 88.7, 1.1},    {K_SIGMOID, -87, 90, 2.6}, {K_TANH, -12, 12, 2}, {K_ERF, -6, 6, 1.6},
                 {K_SOFTPLUS, -87, 90, 2.4}, {K_ELU, -90, 3, 1.4},      {K_GELU, -1, 8, 4}};
    enum { COUNT = 200000, ROW = 48 };
    float *x = numbers(COUNT), *y = numbers(COUNT), *one = numbers(ROW);
    Lane *lane = lane_new(64);
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        const KUnary unary = {.function = table[t].f, .alpha = 1};
        double worst = 0, at = 0;
        for (int i = 0; i < COUNT; i++)
            x[i] = (float)(i % 2 ? table[t].least + (table[t].most - table[t].least) * i / COUNT
                                 : (i % 4 ? 1 : -1) * exp2(-20 + 21.0 * i / COUNT));
        apply(lane, y, x, &unary, COUNT);
        for (int i = 0; i < COUNT; i++) {
            const double z = exact(table[t].f, (double)x[i]);
            if (fabs(z) < FLT_MIN || (double)x[i] < table[t].least)
                continue;
            const double error = fabs((double)y[i] - z) / ldexp(1, ilogb(z) - 23);
            at = error > worst ? (double)x[i] : at;
            worst = error > worst ? error : worst;
        }
        if (!(worst <= table[t].ulp))
            fail_msg("function %d: %g ulp at %.9g", (int)table[t].f, worst, at);
        for (int count = 1; count <= ROW; count++) {
            apply(lane, one, x + 77, &unary, count);
            assert_memory_equal(one, y + 77, (size_t)count * sizeof(float));
        }
        const float odd[] = {NAN, INFINITY, -INFINITY, -0.0f, 1e30f, -1e30f};
        apply(lane, one, odd, &unary, 6);
        assert_true(isnan(one[0]));
        for (int i = 1; i < 6; i++) {
            const double z = exact(table[t].f, (double)odd[i]);
            if (!isnan(z) && one[i] != (float)z)
                fail_msg("function %d of %g is %g, expected %g", (int)table[t].f, (double)odd[i], (double)one[i], z);
        }
    }
    lane_free(lane);
}

/* PyTorch's relu6 and hardtanh give 0 there; a tie is seen in real networks, where many values are exactly 0 or 6. */
static void test_clip_at_its_bounds(void **state) {
    (void)state;
    const float x[] = {-1, 0, 1, 6, 7}, ones[] = {1, 1, 1, 1, 1}, expected[] = {0, 0, 1, 0, 0};
    float slope[5];
    const KUnary unary = {.function = K_CLIP, .low = 0, .high = 6};
    Lane *lane = lane_new(64);
    float *device_x = device_new(x, sizeof x), *device_ones = device_new(ones, sizeof ones);
    float *device_slope = device_new(NULL, sizeof slope);
    k_unary_backward(lane, device_slope, device_ones, device_x, LAYOUT_PLAIN, &unary, 1, 5, 1, 1);
    device_take(lane, slope, device_slope, sizeof slope);
    dev_free(device_x), dev_free(device_ones);
    lane_free(lane);
    assert_memory_equal(slope, expected, sizeof expected);
}

/* ---- Random networks -------------------------------------------------------------------------------------------- */

static int pick(int count) {
    return (int)((double)(uniform() + 1) / 2 * count) % count;
}

/* Nodes of the same height and width, so that any two can be joined. */
static Graph *random_network(uint64_t seed) {
    random_state = seed;
    static const OpKind simple[] = {OP_RELU, OP_SIGMOID, OP_HARD_SWISH, OP_TANH, OP_GELU};
    Graph *g = graph_new(arena, NODES_MAX);
    int node[40], count = 0;
    node[count++] = put(g, (Node){.op = OP_INPUT, .shape = CHW(3, 5, 6)}, -1, -1);
    while (count < 16) {
        const int a = node[count - 1 - pick(count < 4 ? count : 4)], b = node[pick(count)];
        const Shape s = g->nodes[a].shape, t = g->nodes[b].shape;
        int made;
        switch (pick(8)) {
        case 0:
        case 1: made = conv(g, a, pick(2) ? 16 : 20, 3, 1); break;
        case 2: made = put(g, (Node){.op = OP_RELU}, norm(g, a), -1); break;
        case 3: made = put(g, (Node){.op = simple[pick(5)]}, a, -1); break;
        case 4:
        case 5: made = put(g, (Node){.op = s.dim[0] == t.dim[0] ? OP_ADD : OP_CONCAT}, a, b); break;
        case 6:
            made = put(g, (Node){.op = OP_MUL}, a,
                       put(g, (Node){.op = OP_SIGMOID}, put(g, (Node){.op = OP_GLOBAL_AVERAGE_POOL}, a, -1), -1));
            break;
        default: made = put(g, (Node){.op = OP_ADD}, conv(g, a, 16, 1, 1), conv(g, b, 16, 3, 1));
        }
        node[count++] = made;
    }
    int last = node[--count];
    for (int i = 0; i < 3; i++)
        last = put(g, (Node){.op = OP_CONCAT}, last, node[pick(count)]);
    last = put(g, (Node){.op = OP_GLOBAL_AVERAGE_POOL}, last, -1);
    const int inputs = (int)size_of(g, last);
    put(g,
        (Node){.op = OP_LINEAR,
               .gemm = {.alpha = 1, .beta = 1, .flatten = true},
               .weight = {{2, {4, inputs}}, numbers(4 * inputs)}},
        last, -1);
    return g;
}

/* The slope along a random direction, of the input and of other nodes, against the gradient computed. */
static void test_random_networks(void **state) {
    (void)state;
    enum { NETWORKS = 40 };
    for (int which = 1; which <= NETWORKS; which++) {
        Graph *g = random_network((uint64_t)which * 1000);
        const float *x = numbers(SAMPLES * size_of(g, 0)), *seed = numbers(SAMPLES * size_of(g, g->logits));
        const char *what = arena_printf(arena, "network %d", which);
        double **values = reference(g, x, 1);
        const Result r = run(g, SAMPLES, 0, false, x, seed);
        check_close(what, r.value, values[g->logits], size_of(g, g->logits), 1e-5);
        const float *direction = numbers(size_of(g, 0));
        double given = 0, size = 0, measured = 0;
        for (int64_t i = 0; i < size_of(g, 0); i++) {
            given += (double)direction[i] * (double)r.gradient[i];
            size += fabs((double)direction[i] * (double)r.gradient[i]);
        }
        for (int side = -1; side <= 1; side += 2) {
            for (int64_t i = 0; i < size_of(g, 0); i++)
                values[0][i] = (double)x[i] + side * 1e-7 * (double)direction[i];
            ref_graph(values, g, 1, 1);
            measured += side * weighed(g, values, seed) / 2e-7;
        }
        if (!(fabs(measured - given) <= 1e-5 * (size + 0.01)))
            fail_msg("%s: slope %.9g, gradient gives %.9g", what, measured, given);
        check_same(what, g, 0, run(g, 1, 0, false, x, seed), r);
        check_same(what, g, 0, run(g, SAMPLES, 0, false, x, seed), r);
    }
}

/* ---- Memory ----------------------------------------------------------------------------------------------------- */

/* conv, batch norm, relu, conv, batch norm, sum, relu: twenty times. */
static Graph *residual_chain(int blocks) {
    Graph *g = graph_new(arena, NODES_MAX);
    int x = put(g, (Node){.op = OP_INPUT, .shape = CHW(3, 8, 8)}, -1, -1);
    x = conv(g, x, 16, 3, 1);
    for (int b = 0; b < blocks; b++) {
        int y = put(g, (Node){.op = OP_RELU}, norm(g, conv(g, x, 16, 3, 1)), -1);
        y = norm(g, conv(g, y, 16, 3, 1));
        x = put(g, (Node){.op = OP_RELU}, put(g, (Node){.op = OP_ADD}, y, x), -1);
    }
    put(g, (Node){.op = OP_GLOBAL_AVERAGE_POOL}, x, -1);
    return g;
}

/* Forward: the block's input, a convolution's input and its output. Backward: what the relus gave, and likewise. */
static void test_memory(void **state) {
    (void)state;
    enum { BLOCKS = 20, BATCH = 8 };
    const size_t value = k_value_bytes(LAYOUT_BLOCKED, BATCH, 16, 8, 8);
    const size_t image = k_value_bytes(LAYOUT_PLAIN, BATCH, 3, 8, 8), rest = 4096;
    bool values[NODES_MAX] = {0}, none[NODES_MAX] = {0}, input[NODES_MAX] = {true};
    Graph *g = residual_chain(BLOCKS);
    values[g->logits] = true;
    Plan *forward = graph_plan(arena, g, BATCH, values, none), *backward = graph_plan(arena, g, BATCH, values, input);
    assert_true(graph_lane_bytes(forward) >= 3 * value);
    assert_true(graph_lane_bytes(forward) <= 3 * value + image + rest);
    assert_true(graph_lane_bytes(backward) >= 2 * BLOCKS * value);
    assert_true(graph_lane_bytes(backward) <= (2 * BLOCKS + 4) * value + 2 * image + rest);
    graph_plan_free(forward);
    graph_plan_free(backward);
}

int main(void) {
    dev_start(0, 2);
    dev_limit_isa(dev_isa());
    op_cases_begin();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_operations),
        cmocka_unit_test(test_functions),
        cmocka_unit_test(test_clip_at_its_bounds),
        cmocka_unit_test(test_random_networks),
        cmocka_unit_test(test_memory),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_free(arena);
    return failed;
}
