/* bench_device.c: what a device reaches: pairs of points a second of t-SNE's repulsion, images a second of ResNet-50.
 *
 *     bench_device            CSV on stdout: what, size, unit, rate, fraction of the bound (empty: none is known)
 *     bench_device --small    sizes for the host executor, where only that it runs is of interest
 *
 * Pairs are ordered ones, as scikit-learn's loop sees them; both sides of a pair come from one computation. The bound of
 * those, 3.2e12 a second, is that of an H100 without that symmetry, from the code of sm_90: an estimate. ResNet-50 has
 * random weights, batch norms folded into convolutions, 224 x 224 images of bytes; "saliency" is with the input's gradient.
 * Needs the kernels alone, no MPI and no netCDF. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "device.h"
#include "error.h"
#include "graph.h"
#include "ref.h"

static const double PAIRS_BOUND = 3.2e12, LEAST_SECONDS = 0.5;
static Arena *arena;
static uint64_t random_state = 1;

static float *numbers(int64_t count, double size) {
    float *values = ARENA_ARRAY(arena, float, count, "numbers");
    for (int64_t i = 0; i < count; i++)
        values[i] = (float)(size * ref_uniform(&random_state));
    return values;
}

static void print_rate(const char *what, const char *size, const char *unit, double rate, double bound) {
    printf("%s,%s,%s,%.4g,", what, size, unit, rate);
    if (bound > 0)
        printf("%.3f", rate / bound);
    printf("\n");
    fflush(stdout);
}

/* ---- t-SNE ------------------------------------------------------------------------------------------------------ */

static void time_repulsion(int64_t points, int axes, double least_seconds) {
    const int64_t blocks = (points + TSNE_BLOCK - 1) / TSNE_BLOCK;
    const TsneShape shape = {points, 0, blocks, 1, axes, 0, 1};
    const size_t bytes = (size_t)(blocks * TSNE_BLOCK * axes) * sizeof(float);
    float *y = device_new(numbers(blocks * TSNE_BLOCK * axes, 10), bytes);
    int64_t *sums = dev_alloc((size_t)k_tsne_sums(&shape) * sizeof *sums), total;
    void *scratch = dev_alloc(k_tsne_scratch(&shape));
    const int64_t tiles = k_tsne_tiles(points);
    int64_t *tile = ARENA_ARRAY(arena, int64_t, tiles, "tiles"),
            *zeros = ARENA_ARRAY(arena, int64_t, tiles + 1, "zeros");
    for (int64_t t = 0; t < tiles; t++)
        tile[t] = t;
    int64_t *starts = device_new(zeros, (size_t)(tiles + 1) * sizeof *zeros);
    const TsneAffinities none = {.tiles = tiles,
                                 .tile = device_new(tile, (size_t)tiles * sizeof *tile),
                                 .cell_start = starts,
                                 .value_start = starts};
    double seconds = 0;
    int times = 1;
    for (;; times *= 2) {
        const double start = omp_get_wtime();
        for (int i = 0; i < times; i++)
            k_tsne_forces(sums, &none, false, y, &shape, scratch);
        dev_download(&total, sums, sizeof total);
        seconds = omp_get_wtime() - start;
        if (seconds >= least_seconds)
            break;
    }
    char size[64];
    snprintf(size, sizeof size, "%lld points in %d-D", (long long)points, axes);
    print_rate("repulsion", size, "pairs/s", (double)points * (double)points * times / seconds,
               axes == 2 ? PAIRS_BOUND : 0);
    dev_free(none.tile);
    dev_free(starts);
    dev_free(y);
    dev_free(sums);
    dev_free(scratch);
}

/* ---- ResNet-50 -------------------------------------------------------------------------------------------------- */

static int add(Graph *g, Node n, int from, int other) {
    const int inputs[] = {from, other};
    n.name = arena_printf(arena, "node%d", g->count);
    n.n_inputs = other < 0 ? 1 : 2;
    n.inputs = inputs;
    return graph_add(g, n);
}

static int convolution(Graph *g, int from, int outputs, int kernel, int stride, bool relu) {
    const int C = g->nodes[from].shape.dim[0], pad = kernel / 2;
    const Shape shape = {4, {outputs, C, kernel, kernel}};
    Node n = {.op = OP_CONV,
              .weight = {shape, numbers(shape_size(shape), sqrt(6.0 / (C * kernel * kernel)))},
              .bias = {shape_vector(outputs), numbers(outputs, 0.1)}};
    n.window = (ConvShape){.out_channels = outputs,
                           .kernel_height = kernel,
                           .kernel_width = kernel,
                           .stride_height = stride,
                           .stride_width = stride,
                           .pad_top = pad,
                           .pad_left = pad,
                           .pad_bottom = pad,
                           .pad_right = pad};
    const int made = add(g, n, from, -1);
    return relu ? add(g, (Node){.op = OP_RELU}, made, -1) : made;
}

static Graph *resnet50(int side) {
    static const int blocks[] = {3, 4, 6, 3};
    Graph *g = graph_new(arena, 200);
    graph_add(g, (Node){.op = OP_INPUT, .name = "input", .shape = shape_chw(3, side, side)});
    int x = convolution(g, 0, 64, 7, 2, true);
    Node pool = {.op = OP_MAX_POOL};
    pool.window = (ConvShape){.kernel_height = 3,
                              .kernel_width = 3,
                              .stride_height = 2,
                              .stride_width = 2,
                              .pad_top = 1,
                              .pad_left = 1,
                              .pad_bottom = 1,
                              .pad_right = 1};
    x = add(g, pool, x, -1);
    for (int stage = 0; stage < 4; stage++)
        for (int b = 0; b < blocks[stage]; b++) {
            const int width = 64 << stage, stride = stage > 0 && b == 0 ? 2 : 1;
            int y = convolution(g, x, width, 1, 1, true);
            y = convolution(g, y, width, 3, stride, true);
            y = convolution(g, y, 4 * width, 1, 1, false);
            x = b == 0 ? convolution(g, x, 4 * width, 1, stride, false) : x;
            x = add(g, (Node){.op = OP_RELU}, add(g, (Node){.op = OP_ADD}, y, x), -1);
        }
    x = add(g, (Node){.op = OP_GLOBAL_AVERAGE_POOL}, x, -1);
    Node last = {.op = OP_LINEAR,
                 .weight = {{2, {1000, 2048}}, numbers(2048000, 0.02)},
                 .bias = {shape_vector(1000), numbers(1000, 0.1)}};
    last.gemm.alpha = last.gemm.beta = 1;
    last.gemm.flatten = true;
    add(g, last, x, -1);
    return g;
}

/* Whole batches on all lanes, pixels and logits over the bus included, as the program does it. */
static void time_network(int side, int batch, bool saliency, double least_seconds) {
    Graph *g = resnet50(side);
    bool value[256] = {false}, gradient[256] = {false};
    value[g->logits] = true;
    gradient[0] = saliency;
    Plan *plan = graph_plan(arena, g, batch, value, gradient);
    const int lanes = lane_count();
    PixelTransform transform = {.dtype = DT_U8, .channels = 3, .height = side, .width = side, .scale = 1.0 / 255};
    for (int c = 0; c < 16; c++)
        transform.mean[c] = transform.std[c] = 0.5;
    const size_t pixels = (size_t)batch * 3 * (size_t)side * (size_t)side;
    uint8_t *images = dev_alloc_host(pixels);
    for (size_t i = 0; i < pixels; i++)
        images[i] = (uint8_t)(i * 2654435761u >> 13);
    double seconds = 0;
    int times = least_seconds > 0 ? lanes : 1;
    for (;; times *= 2) {
        double start = 0;
#pragma omp parallel num_threads(lanes)
        {
            Lane *lane = lane_new(graph_lane_bytes(plan));
            float *logits = dev_alloc_host((size_t)batch * 1000 * sizeof *logits);
            int32_t *prediction = dev_alloc((size_t)batch * sizeof *prediction);
            float *seed = dev_alloc((size_t)batch * 1000 * sizeof *seed);
#pragma omp single
            start = omp_get_wtime();
#pragma omp for schedule(dynamic)
            for (int i = 0; i < times; i++) {
                k_input(lane, graph_input(plan, lane), images, &transform, batch, batch);
                graph_forward(plan, lane);
                k_predict(lane, prediction, graph_value(plan, lane, g->logits), batch, 1000);
                if (saliency) {
                    k_seed(lane, seed, prediction, NULL, batch, 1000);
                    graph_backward(plan, lane, seed);
                }
                lane_download(lane, logits, graph_value(plan, lane, g->logits), (size_t)batch * 1000 * sizeof *logits);
                lane_sync(lane);
            }
#pragma omp single
            seconds = omp_get_wtime() - start;
            dev_free_host(logits);
            dev_free(prediction);
            dev_free(seed);
            lane_free(lane);
        }
        if (seconds >= least_seconds)
            break;
    }
    char size[64];
    snprintf(size, sizeof size, "batch %d of %d x %d", batch, side, side);
    print_rate(saliency ? "ResNet-50 with saliency" : "ResNet-50", size, "images/s", (double)batch * times / seconds,
               0);
    dev_free_host(images);
    graph_plan_free(plan);
}

int main(int count, char **arguments) {
    const bool small = count > 1 && strcmp(arguments[1], "--small") == 0;
    dev_start(0, small ? 1 : omp_get_max_threads());
    arena = arena_new();
    static const int64_t sizes[] = {1000, 10000, 60000, 300000};
    printf("what,size,unit,rate,fraction of the bound\n");
    for (int i = 0; i < (small ? 1 : 4); i++)
        for (int axes = 2; axes <= 3; axes++)
            time_repulsion(sizes[i], axes, small ? 0 : LEAST_SECONDS);
    for (int saliency = 0; saliency < 2; saliency++)
        time_network(small ? 32 : 224, small ? 1 : 64, saliency, small ? 0 : LEAST_SECONDS);
    arena_free(arena);
    return 0;
}
