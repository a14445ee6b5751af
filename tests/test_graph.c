/* test_graph.c: whole networks. Values and gradients against the double-precision reference, whose gradient is checked
 * by finite differences; the same bits whatever is asked for, for every batch size, place and thread, with the lane's
 * memory full of NaN beforehand (so that memory shared or read too early would show); refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "error.h"
#include "ref.h"

enum { NODES_MAX = 24, BATCH = 33, LANES = 2 };

static Arena *arena;
static uint64_t random_state = 1; /* of ref_uniform */

static float uniform(void) {
    return (float)ref_uniform(&random_state);
}

static float *numbers(int64_t count) {
    float *values = ARENA_ARRAY(arena, float, count, "numbers");
    for (int64_t i = 0; i < count; i++)
        values[i] = uniform();
    return values;
}

/* ---- Networks --------------------------------------------------------------------------------------------------- */

static Graph *start(int channels, int height, int width) {
    Graph *g = graph_new(arena, NODES_MAX);
    graph_add(g, (Node){.op = OP_INPUT, .name = "input", .shape = shape_chw(channels, height, width)});
    return g;
}

static int add(Graph *g, OpKind op, ConvShape window, int outputs) {
    const Shape in = g->nodes[g->count - 1].shape;
    const int from = g->count - 1, C = in.dim[0];
    Node n = {.op = op, .name = arena_printf(arena, "node%d", g->count), .n_inputs = 1, .inputs = &from};
    switch (op) {
    case OP_CONV:
        n.window = window;
        n.weight.shape = (Shape){4, {window.out_channels, C, window.kernel_height, window.kernel_width}};
        n.weight.values = numbers(shape_size(n.weight.shape));
        n.bias = (Constant){shape_vector(window.out_channels), numbers(window.out_channels)};
        break;
    case OP_LINEAR:
        n.gemm.alpha = n.gemm.beta = 1;
        n.gemm.flatten = true;
        n.weight = (Constant){{2, {outputs, (int)shape_size(in)}}, numbers(shape_size(in) * outputs)};
        n.bias = (Constant){shape_vector(outputs), numbers(outputs)};
        break;
    case OP_BATCH_NORM:
        n.weight = (Constant){shape_vector(C), numbers(C)};
        n.bias = (Constant){shape_vector(C), numbers(C)};
        break;
    case OP_MAX_POOL: n.window = window; break;
    default: break;
    }
    return graph_add(g, n);
}

static void conv(Graph *g, int out_channels, int kh, int kw, int stride) {
    add(g, OP_CONV,
        (ConvShape){.out_channels = out_channels,
                    .kernel_height = kh,
                    .kernel_width = kw,
                    .stride_height = stride,
                    .stride_width = stride,
                    .pad_top = kh / 2,
                    .pad_left = kw / 2,
                    .pad_bottom = kh / 2,
                    .pad_right = kw / 2},
        0);
}

static void simple(Graph *g, OpKind op) {
    add(g, op, (ConvShape){0}, 0);
}

static void max_pool(Graph *g, int kernel, int stride) {
    add(g, OP_MAX_POOL,
        (ConvShape){.kernel_height = kernel, .kernel_width = kernel, .stride_height = stride, .stride_width = stride},
        0);
}

static void linear(Graph *g, int outputs) {
    add(g, OP_LINEAR, (ConvShape){0}, outputs);
}

/* The notebook's CNN. */
static Graph *notebook(int channels, int height, int width, int c1, int c2, int kh, int kw, int classes) {
    Graph *g = start(channels, height, width);
    const int outs[] = {c1, c2};
    for (int block = 0; block < 2; block++) {
        conv(g, outs[block], kh, kw, 1);
        simple(g, OP_BATCH_NORM);
        simple(g, OP_RELU);
        max_pool(g, 2, 2);
    }
    simple(g, OP_GLOBAL_AVERAGE_POOL);
    linear(g, classes);
    return g;
}

static Graph *make_network(int which) {
    random_state = (uint64_t)which + 1;
    Graph *g;
    switch (which) {
    case 0: return notebook(1, 28, 28, 16, 32, 3, 3, 10);
    case 1: return notebook(3, 20, 33, 7, 13, 3, 3, 5);
    case 2: return notebook(2, 9, 14, 5, 18, 3, 5, 1);
    case 3: return notebook(5, 8, 8, 16, 3, 1, 1, 3);
    case 4: /* an MLP on images: only plain values */
        g = start(2, 3, 5);
        linear(g, 40);
        simple(g, OP_RELU);
        linear(g, 7);
        return g;
    case 5: /* flattened by its linear layer; relu and batch norm in every order; overlapping pools; stride 2 */
        g = start(3, 17, 13);
        simple(g, OP_BATCH_NORM);
        conv(g, 20, 5, 5, 2);
        simple(g, OP_RELU);
        simple(g, OP_BATCH_NORM);
        simple(g, OP_BATCH_NORM);
        simple(g, OP_RELU);
        simple(g, OP_RELU);
        max_pool(g, 3, 2);
        conv(g, 9, 1, 1, 1);
        linear(g, 30);
        simple(g, OP_BATCH_NORM);
        simple(g, OP_RELU);
        linear(g, 4);
        return g;
    default: /* ends in a spatial value */
        g = start(1, 6, 7);
        conv(g, 4, 3, 3, 1);
        simple(g, OP_RELU);
        conv(g, 2, 3, 3, 1);
        return g;
    }
}
enum { NETWORKS = 7 };

/* ---- Running one ------------------------------------------------------------------------------------------------ */

typedef struct {
    float *values[NODES_MAX], *gradients[NODES_MAX]; /* (samples, shape) of what was wanted, else NULL */
} Results;

static int64_t size_of(const Graph *g, int node) {
    return shape_size(g->nodes[node].shape);
}

static Results results_new(const Graph *g, const bool *want_value, const bool *want_gradient, int samples) {
    Results r = {{0}, {0}};
    for (int i = 0; i < g->count; i++) {
        r.values[i] = want_value[i] ? ARENA_ARRAY(arena, float, samples *size_of(g, i), "values") : NULL;
        r.gradients[i] = want_gradient[i] ? ARENA_ARRAY(arena, float, samples *size_of(g, i), "gradients") : NULL;
    }
    return r;
}

/* One batch, from sample `first`; results are read after the next batch's input has been filled. */
static void run_batch(const Graph *g, const Plan *plan, Lane *lane, int batch, const float *x, const float *seed,
                      Results *r, int first) {
    device_spoil(lane_memory(lane), graph_lane_bytes(plan));
    const size_t bytes = (size_t)(batch * size_of(g, 0)) * sizeof(float);
    float *device_seed =
        device_new(seed + first * size_of(g, g->logits), (size_t)(batch * size_of(g, g->logits)) * sizeof *seed);
    dev_upload(graph_input(plan, lane), x + first * size_of(g, 0), bytes);
    graph_forward(plan, lane);
    graph_backward(plan, lane, device_seed);
    lane_sync(lane);
    dev_free(device_seed);
    if (!r->values[0])
        device_spoil(graph_input(plan, lane), bytes);
    for (int i = 0; i < g->count; i++) {
        const size_t node_bytes = (size_t)(batch * size_of(g, i)) * sizeof(float);
        if (r->values[i])
            dev_download(r->values[i] + first * size_of(g, i), graph_value(plan, lane, i), node_bytes);
        if (r->gradients[i])
            dev_download(r->gradients[i] + first * size_of(g, i), graph_gradient(plan, lane, i), node_bytes);
    }
}

/* `samples`, a multiple of the batch, on `threads` lanes. */
static Results run(const Graph *g, int batch, int samples, int threads, const bool *want_value,
                   const bool *want_gradient, const float *x, const float *seed) {
    Results r = results_new(g, want_value, want_gradient, samples);
    Plan *plan = graph_plan(arena, g, batch, want_value, want_gradient);
    Lane *lanes[LANES];
    for (int i = 0; i < LANES; i++)
        lanes[i] = lane_new(graph_lane_bytes(plan));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int first = 0; first < samples; first += batch)
        run_batch(g, plan, lanes[omp_get_thread_num()], batch, x, seed, &r, first);
    for (int i = 0; i < LANES; i++)
        lane_free(lanes[i]);
    graph_plan_free(plan);
    return r;
}

static const bool all[NODES_MAX] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
static const bool none[NODES_MAX] = {0};

static void reference(const Graph *g, double **values, double **gradients, const float *x, const float *seed,
                      int samples) {
    for (int i = 0; i < g->count; i++) {
        values[i] = ARENA_ARRAY(arena, double, samples *size_of(g, i), "values");
        gradients[i] = ARENA_ARRAY(arena, double, samples *size_of(g, i), "gradients");
    }
    for (int64_t i = 0; i < samples * size_of(g, 0); i++)
        values[0][i] = x[i];
    for (int64_t i = 0; i < samples * size_of(g, g->logits); i++)
        gradients[g->logits][i] = seed[i];
    ref_graph(values, g, 1, samples);
    ref_graph_backward(gradients, values, g, samples);
}

static void check_close(int which, int node, const char *what, const float *fast, const double *exact, int64_t count) {
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < count; i++) {
        double error = fabs(fast[i] - exact[i]);
        largest = fmax(largest, fabs(exact[i]));
        worst = error > worst || isnan(error) ? error : worst;
    }
    if (!(worst <= 4e-6 * largest))
        fail_msg("network %d, node %d, %s: error %g of %g", which, node, what, worst, largest);
}

/* ---- Tests ------------------------------------------------------------------------------------------------------ */

static void test_against_reference(void **state) {
    (void)state;
    enum { SAMPLES = 5 };
    for (int which = 0; which < NETWORKS; which++) {
        Graph *g = make_network(which);
        const float *x = numbers(SAMPLES * size_of(g, 0)), *seed = numbers(SAMPLES * size_of(g, g->logits));
        double *values[NODES_MAX], *gradients[NODES_MAX];
        reference(g, values, gradients, x, seed, SAMPLES);
        Results r = run(g, SAMPLES, SAMPLES, 1, all, all, x, seed);
        for (int i = 0; i < g->count; i++) {
            check_close(which, i, "value", r.values[i], values[i], SAMPLES * size_of(g, i));
            check_close(which, i, "gradient", r.gradients[i], gradients[i], SAMPLES * size_of(g, i));
        }
    }
}

/* The reference's gradient of <logits, seed> along a random direction, sign included. */
static void test_finite_differences(void **state) {
    (void)state;
    const double step = 1e-7;
    for (int which = 0; which < NETWORKS; which++) {
        Graph *g = make_network(which);
        const float *x = numbers(size_of(g, 0)), *seed = numbers(size_of(g, g->logits)),
                    *direction = numbers(size_of(g, 0));
        double *values[NODES_MAX], *gradients[NODES_MAX];
        reference(g, values, gradients, x, seed, 1);
        double given = 0, measured = 0;
        for (int64_t i = 0; i < size_of(g, 0); i++)
            given += direction[i] * gradients[0][i];
        for (int side = -1; side <= 1; side += 2) {
            for (int64_t i = 0; i < size_of(g, 0); i++)
                values[0][i] = x[i] + side * step * direction[i];
            ref_graph(values, g, 1, 1);
            for (int64_t k = 0; k < size_of(g, g->logits); k++)
                measured += side * values[g->logits][k] * seed[k] / (2 * step);
        }
        if (!(fabs(measured - given) <= 1e-5 * (1 + fabs(given))))
            fail_msg("network %d: slope %.9g, gradient gives %.9g", which, measured, given);
    }
}

static void check_same(int which, const Graph *g, const char *what, const Results *r, const Results *expected,
                       int samples) {
    for (int i = 0; i < g->count; i++) {
        const size_t bytes = (size_t)(samples * size_of(g, i)) * sizeof(float);
        if (r->values[i] && memcmp(r->values[i], expected->values[i], bytes) != 0)
            fail_msg("network %d, node %d, %s: the value has other bits", which, i, what);
        if (r->gradients[i] && memcmp(r->gradients[i], expected->gradients[i], bytes) != 0)
            fail_msg("network %d, node %d, %s: the gradient has other bits", which, i, what);
    }
}

/* Everything; each node alone, its value or its gradient; random choices. */
static void test_asking_for_more_changes_nothing(void **state) {
    (void)state;
    enum { SAMPLES = 3 };
    for (int which = 0; which < NETWORKS; which++) {
        Graph *g = make_network(which);
        const float *x = numbers(SAMPLES * size_of(g, 0)), *seed = numbers(SAMPLES * size_of(g, g->logits));
        const Results full = run(g, SAMPLES, SAMPLES, 1, all, all, x, seed);
        for (int i = 0; i < g->count; i++) {
            bool one[NODES_MAX] = {0};
            one[i] = true;
            Results value = run(g, SAMPLES, SAMPLES, 1, one, none, x, seed);
            Results gradient = run(g, SAMPLES, SAMPLES, 1, none, one, x, seed);
            check_same(which, g, "alone", &value, &full, SAMPLES);
            check_same(which, g, "alone", &gradient, &full, SAMPLES);
        }
        for (int round = 0; round < 30; round++) {
            bool value[NODES_MAX], gradient[NODES_MAX];
            for (int i = 0; i < g->count; i++) {
                value[i] = uniform() > 0.3;
                gradient[i] = uniform() > 0.6;
            }
            Results some = run(g, SAMPLES, SAMPLES, 1, value, gradient, x, seed);
            check_same(which, g, "some", &some, &full, SAMPLES);
        }
    }
}

static void test_batch_and_threads(void **state) {
    (void)state;
    for (int which = 0; which < NETWORKS; which++) {
        Graph *g = make_network(which);
        const float *x = numbers(BATCH * size_of(g, 0)), *seed = numbers(BATCH * size_of(g, g->logits));
        const Results one = run(g, 1, BATCH, 1, all, all, x, seed);
        const struct {
            int batch, samples, threads;
        } cases[] = {{1, 33, 2},  {5, 30, 1},  {5, 30, 2},  {8, 32, 2},
                     {16, 32, 1}, {16, 32, 2}, {33, 33, 1}, {11, 33, 2}};
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            Results r = run(g, cases[i].batch, cases[i].samples, cases[i].threads, all, all, x, seed);
            check_same(which, g, arena_printf(arena, "batch %d, %d threads", cases[i].batch, cases[i].threads), &r,
                       &one, cases[i].samples);
        }
    }
}

/* Asked for less, a lane needs less: the logits alone need about the largest value and what is pooled from it, saliency
 * the gradients of these, too, in the same places. */
static void test_memory_plan(void **state) {
    (void)state;
    Graph *g = make_network(0);
    bool logits[NODES_MAX] = {0}, input[NODES_MAX] = {0};
    logits[g->logits] = input[0] = true;
    Plan *forward = graph_plan(arena, g, 8, logits, none), *saliency = graph_plan(arena, g, 8, logits, input);
    Plan *everything = graph_plan(arena, g, 8, all, all);
    const size_t conv1 = k_value_bytes(LAYOUT_BLOCKED, 8, 16, 28, 28);
    assert_true(graph_lane_bytes(forward) >= conv1 && graph_lane_bytes(forward) < conv1 * 3 / 2);
    assert_true(graph_lane_bytes(saliency) < conv1 * 2);
    assert_true(graph_lane_bytes(everything) > graph_lane_bytes(saliency));
    graph_plan_free(forward);
    graph_plan_free(saliency);
    graph_plan_free(everything);
}

/* A batch norm that a relu and another node read is not left to the relu. */
static void test_branch(void **state) {
    (void)state;
    enum { SAMPLES = 2 };
    Graph *g = make_network(0);
    const int logits = g->logits,
              side = graph_add(
                  g, (Node){.op = OP_GLOBAL_AVERAGE_POOL, .name = "side", .n_inputs = 1, .inputs = (int[]){2}});
    g->logits = logits;
    const float *x = numbers(SAMPLES * size_of(g, 0)), *seed = numbers(SAMPLES * size_of(g, logits));
    bool two[NODES_MAX] = {0}, path[NODES_MAX];
    two[logits] = two[side] = true;
    memcpy(path, all, sizeof path);
    path[side] = false;
    const Results full = run(g, SAMPLES, SAMPLES, 1, all, path, x, seed);
    Results r = run(g, SAMPLES, SAMPLES, 1, two, none, x, seed);
    check_same(0, g, "branch", &r, &full, SAMPLES);
    assert_true(full.values[side][0] != 0);
}

/* ---- Refusals --------------------------------------------------------------------------------------------------- */

static void refused(const char *expected) {
    const char *message = "";
    int status = 0;
    assert_true(error_pending(&message, &status));
    assert_int_equal(status, 1);
    if (!strstr(message, expected))
        fail_msg("\"%s\" does not say \"%s\"", message, expected);
}

static void refused_node(Node node, const char *expected) {
    Graph *g = start(3, 8, 6);
    const int zero = 0;
    node.name = "odd";
    if (node.op != OP_INPUT && node.n_inputs == 0)
        node.n_inputs = 1;
    if (!node.inputs)
        node.inputs = &zero;
    if (!error_caught())
        graph_add(g, node);
    refused(expected);
    refused("layer odd");
    assert_int_equal(g->count, 1);
}

static void test_refused_nodes(void **state) {
    (void)state;
    const ConvShape good = {.kernel_height = 3, .kernel_width = 3, .stride_height = 1, .stride_width = 1};
    const Constant weight = {{4, {4, 3, 3, 3}}, NULL};
    ConvShape w = good;
    w.dilation_width = 4;
    refused_node((Node){.op = OP_CONV, .window = w, .weight = weight}, "expected at least the kernel's 3 x 9");
    w = good, w.groups = 2;
    refused_node((Node){.op = OP_CONV, .window = w, .weight = weight}, "2 groups");
    w = good, w.groups = -1;
    refused_node((Node){.op = OP_CONV, .window = w, .weight = weight}, "-1 groups");
    refused_node((Node){.op = OP_CONV, .window = good, .weight = {{4, {4, 2, 3, 3}}, NULL}}, "expected 3 channels");
    w = good, w.stride_height = 0;
    refused_node((Node){.op = OP_CONV, .window = w, .weight = weight}, "strides 0 x 1");
    w = good, w.pad_left = -1;
    refused_node((Node){.op = OP_CONV, .window = w, .weight = weight}, "padding 0, -1, 0, 0");
    w = good, w.pad_top = w.pad_bottom = INT32_MAX;
    refused_node((Node){.op = OP_CONV, .window = w, .weight = weight}, "2147483647");
    refused_node((Node){.op = OP_CONV, .window = good, .weight = {{4, {0, 3, 3, 3}}, NULL}}, "(0, 6, 4)");
    refused_node((Node){.op = OP_CONV, .window = good, .weight = {{4, {INT32_MAX, 3, 3, 3}}, NULL}},
                 "2147483647 x 3 x 3 x 3 weights");
    refused_node((Node){.op = OP_CONV, .window = good, .weight = {{4, {70000000, 3, 1, 1}}, NULL}},
                 "less than 2^31 values");
    w = good, w.pad_right = 3;
    refused_node((Node){.op = OP_MAX_POOL, .window = w}, "padding as large as the kernel");
    refused_node((Node){.op = OP_LINEAR, .gemm.flatten = true, .weight = {{2, {0, 144}}, NULL}}, "(0)");
    refused_node((Node){.op = OP_LINEAR, .gemm.flatten = true, .weight = {{2, {9, 6}}, NULL}}, "expected 144 inputs");
    refused_node((Node){.op = OP_RELU, .inputs = (int[]){1}}, "reads layer 1");
    refused_node((Node){.op = OP_RELU, .inputs = (int[]){-1}}, "reads layer -1");
    refused_node((Node){.op = OP_RELU, .n_inputs = 2, .inputs = (int[]){0, 0}}, "reads 2 values");
    refused_node((Node){.op = OP_INPUT, .shape = {3, {1, 1, 1}}}, "one Input in front");
    refused_node((Node){.op = OP_ADD, .operand = {{1, {5}}, numbers(5)}}, "(3, 8, 6) and (5)");
    refused_node((Node){.op = OP_ADD}, "two or a constant");
    refused_node((Node){.op = OP_CONCAT, .along.axis = 3}, "axis 3");
    refused_node((Node){.op = OP_RESHAPE, .target = {2, {12, 13}}}, "(12, 13)");
    refused_node((Node){.op = OP_TRANSPOSE, .perm = {0, 0, 1}}, "axis 0 is there twice");
    refused_node((Node){.op = OP_SLICE, .slice = {{0, 0, 4}, {1, 1, 1}, {3, 8, 3}}}, "3 values from 4");
    refused_node((Node){.op = OP_PAD, .pad = {.mode = PAD_REFLECT, .before = {0, 0, 6}}}, "padding of 6 and 0");
    refused_node((Node){.op = OP_GROUP_NORM, .norm.groups = 2}, "2 groups");
    refused_node((Node){.op = OP_MATMUL, .n_inputs = 2, .inputs = (int[]){0, 0}}, "a product of values");
    Graph *g = graph_new(arena, 4);
    if (!error_caught())
        graph_add(g, (Node){.op = OP_INPUT, .name = "input", .shape = shape_chw(3, 0, 4)});
    refused("(3, 0, 4)");
    if (!error_caught())
        graph_add(g, (Node){.op = OP_INPUT, .name = "input", .shape = shape_chw(1 << 20, 1 << 20, 1 << 20)});
    refused("less than 2^31 values");
}

static void test_refused_plans(void **state) {
    (void)state;
    Graph *g = make_network(0);
    bool side[NODES_MAX] = {0};
    const int logits = g->logits;
    side[graph_add(g, (Node){.op = OP_RELU, .name = "side", .n_inputs = 1, .inputs = (int[]){4}})] = true;
    g->logits = logits;
    if (!error_caught())
        graph_plan(arena, g, 8, none, side);
    refused("layer side: its gradient was asked for, and the output");
    if (!error_caught())
        graph_plan(arena, g, 0, all, none);
    refused("--batch: 0");
    Plan *plan = graph_plan(arena, g, 2, side, none); /* its value can be had, though */
    Lane *lane = lane_new(graph_lane_bytes(plan));
    graph_forward(plan, lane);
    assert_non_null(graph_value(plan, lane, graph_find(g, "side")));
    if (!error_caught())
        graph_value(plan, lane, 1);
    refused("the plan was not asked");
    if (!error_caught())
        graph_gradient(plan, lane, 0);
    refused("the plan was not asked");
    lane_free(lane);
    graph_plan_free(plan);
}

static void test_names(void **state) {
    (void)state;
    Graph *g = make_network(0);
    assert_int_equal(graph_find(g, "node3"), 3);
    assert_int_equal(graph_find(g, "nod"), -1);
    assert_string_equal(graph_op_name(OP_CONV), "Conv");
    assert_string_equal(graph_op_name(OP_LINEAR), "Gemm");
    assert_int_equal(g->logits, g->count - 1);
    assert_true(shape_is_spatial(g->nodes[1].shape) && !shape_is_spatial(g->nodes[9].shape));
    assert_int_equal(shape_size(g->nodes[5].shape), 32 * 14 * 14);
}

int main(void) {
    dev_start(0, LANES);
    dev_limit_isa(dev_isa());
    arena = arena_new();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference),
        cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_asking_for_more_changes_nothing),
        cmocka_unit_test(test_batch_and_threads),
        cmocka_unit_test(test_memory_plan),
        cmocka_unit_test(test_branch),
        cmocka_unit_test(test_refused_nodes),
        cmocka_unit_test(test_refused_plans),
        cmocka_unit_test(test_names),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_free(arena);
    return failed;
}
