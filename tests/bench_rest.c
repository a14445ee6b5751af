/* bench_rest.c: the kernels that are no operation of the network, timed: pixels and maps, PCA, t-SNE, neighbours.
 *
 * Bounds: reading and writing each number once, or the arithmetic that cannot be left out, as noted beside each; of t-SNE's
 * affinities the distances alone, so what its exponentials cost shows as a low share. An operation on a lane of a vector
 * is half a multiply-add of the peak, as is the same on a double. */
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "device.h"
#include "ref.h"

static uint64_t random_state = 1;
static const Peak *core;

float *bench_numbers(int64_t count, double size) {
    float *host = malloc((size_t)count * sizeof *host);
    if (!host)
        abort();
    for (int64_t i = 0; i < count; i++)
        host[i] = (float)(size * ref_uniform(&random_state));
    float *device = device_new(host, (size_t)count * sizeof *host);
    free(host);
    return device;
}

static double *doubles(int count, double value) {
    double *host = malloc((size_t)count * sizeof *host);
    if (!host)
        abort();
    for (int i = 0; i < count; i++)
        host[i] = value;
    double *device = device_new(host, (size_t)count * sizeof *host);
    free(host);
    return device;
}

static void line(const char *name, void (*step)(void *), void *what, double operations, double bytes) {
    bench_line("", "", name, bench_seconds(step, what), 2 * operations, bytes, core);
}

/* ---- Into and out of the network -------------------------------------------------------------------------------- */

enum { B = 8, C = 64, SIDE = 56, CATEGORIES = 1000 };

typedef struct {
    Lane *lane;
    PixelTransform transform;
    float *value, *gradient, *map, *low, *high, *logits;
    int32_t *prediction;
    uint8_t *pixels;
} Ends;

static void input(void *what) {
    Ends *e = what;
    k_input(e->lane, e->value, e->pixels, &e->transform, B, B);
    lane_sync(e->lane);
}

static void predict(void *what) {
    Ends *e = what;
    k_predict(e->lane, e->prediction, e->logits, B, CATEGORIES);
    lane_sync(e->lane);
}

static void seed(void *what) {
    Ends *e = what;
    k_seed(e->lane, e->logits, e->prediction, NULL, B, CATEGORIES);
    lane_sync(e->lane);
}

static void saliency(void *what) {
    Ends *e = what;
    k_saliency(e->lane, e->map, e->gradient, B, C, SIDE, SIDE);
    lane_sync(e->lane);
}

static void gradcam(void *what) {
    Ends *e = what;
    k_cam(e->lane, e->map, CAM_GRAD, e->value, e->gradient, B, C, SIDE, SIDE);
    lane_sync(e->lane);
}

static void normalise(void *what) {
    Ends *e = what;
    k_normalise(e->lane, e->map, e->low, e->high, B, SIDE * SIDE);
    lane_sync(e->lane);
}

static void time_ends(void) {
    const double map = (double)B * SIDE * SIDE, all = map * C, logits = (double)B * CATEGORIES;
    Ends e = {.lane = lane_new(64),
              .transform = {.dtype = DT_U8, .channels = 16, .height = SIDE, .width = SIDE, .scale = 1.0 / 255},
              .value = bench_numbers(B * C * SIDE * SIDE, 1),
              .gradient = bench_numbers(B * C * SIDE * SIDE, 1),
              .map = dev_alloc((size_t)map * sizeof(float)),
              .low = dev_alloc(B * sizeof(float)),
              .high = dev_alloc(B * sizeof(float)),
              .logits = bench_numbers(B * CATEGORIES, 1),
              .prediction = dev_alloc(B * sizeof(int32_t)),
              .pixels = calloc(B * 16 * SIDE, SIDE)};
    for (int c = 0; c < 16; c++)
        e.transform.std[c] = 1;
    line("pixels of bytes, 8 x 16 x 56 x 56", input, &e, 0, 5 * map * 16);
    line("saliency, 8 x 64 x 56 x 56", saliency, &e, 0, 4 * all + 4 * map);
    line("Grad-CAM, 8 x 64 x 56 x 56", gradcam, &e, 0, 8 * all + 4 * map);
    line("maps to 0..1, 8 x 56 x 56", normalise, &e, 0, 8 * map);
    line("predictions, 8 x 1000", predict, &e, 0, 4 * logits);
    line("seeds, 8 x 1000", seed, &e, 0, 4 * logits);
    void *all_of_them[] = {e.value, e.gradient, e.map, e.low, e.high, e.logits, e.prediction};
    for (size_t i = 0; i < sizeof all_of_them / sizeof *all_of_them; i++)
        dev_free(all_of_them[i]);
    free(e.pixels);
    lane_free(e.lane);
}

/* ---- PCA -------------------------------------------------------------------------------------------------------- */

enum { ROWS = 2048, WIDTH = 256, COMPONENTS = 50, BITS = 20 };

typedef struct {
    float *x;
    double *center, *scale, *axes, *t, *t_scale, *most;
    int64_t *sums, *high, *low;
    void *scratch;
} Pca;

static void column_most(void *what) {
    Pca *p = what;
    k_column_most(p->most, p->x, ROWS, WIDTH, p->center);
}

static void column_sums(void *what) {
    Pca *p = what;
    k_column_sums(p->sums, p->x, ROWS, WIDTH, p->center, p->scale, 2, 40);
}

static void covariance(void *what) {
    Pca *p = what;
    k_covariance(p->high, p->low, p->x, ROWS, WIDTH, p->center, p->scale, BITS, p->scratch);
}

static void project(void *what) {
    Pca *p = what;
    k_project(p->t, p->x, ROWS, WIDTH, p->center, p->axes, COMPONENTS);
}

static void back_project(void *what) {
    Pca *p = what;
    k_back_project(p->high, p->low, p->x, ROWS, WIDTH, p->center, p->scale, p->t, COMPONENTS, p->t_scale, BITS,
                   p->scratch);
}

static void time_pca(void) {
    const double bytes = (double)ROWS * WIDTH * sizeof(float), products = (double)ROWS * WIDTH * WIDTH;
    Pca p = {.x = bench_numbers(ROWS * WIDTH, 0.5),
             .center = doubles(WIDTH, 0.1),
             .scale = doubles(WIDTH, 1),
             .axes = doubles(COMPONENTS * WIDTH, 0.0625),
             .t = doubles(ROWS * COMPONENTS, 0),
             .t_scale = doubles(COMPONENTS, 0x1p-4),
             .most = doubles(WIDTH, 0),
             .sums = dev_alloc(WIDTH * sizeof(int64_t)),
             .high = dev_alloc(WIDTH * WIDTH * sizeof(int64_t)),
             .low = dev_alloc(WIDTH * WIDTH * sizeof(int64_t)),
             .scratch = dev_alloc(k_covariance_scratch())};
    const double projected = (double)ROWS * WIDTH * COMPONENTS;
    line("PCA, largest of the columns, 2048 x 256", column_most, &p, 0, bytes);
    line("PCA, sums of the columns", column_sums, &p, 0, bytes);
    line("PCA, covariance: 3 products of doubles, half of each", covariance, &p, 2 * 3 * products / 2, 0);
    line("PCA, projection on 50 axes, in doubles", project, &p, 2 * projected, 0);
    line("PCA, projection back: 3 products of doubles", back_project, &p, 2 * 3 * projected, 0);
    void *all[] = {p.x, p.center, p.scale, p.axes, p.t, p.t_scale, p.most, p.sums, p.high, p.low, p.scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        dev_free(all[i]);
}

/* ---- t-SNE ------------------------------------------------------------------------------------------------------ */

enum { N = 4096, D = 10, TILES = N / TSNE_TILE * (N / TSNE_TILE + 1) / 2 };

typedef struct {
    TsneShape shape;
    float *x, *packed, *rows, *y, *update, *gains, least;
    double *norm;
    int64_t *sums;
    TsneTileSize *sizes;
    TsneAffinities p, none; /* none: the same pairs of tiles, without cells */
    TsneAffinitySums p_sums;
    TsneRows view; /* of rows */
    void *scratch, *force_scratch;
} Tsne;

static void pack(void *what) {
    Tsne *t = what;
    k_tsne_pack(t->packed, t->x, N, D, 1);
}

static void search(void *what) {
    Tsne *t = what;
    k_tsne_search(t->rows, t->packed, &t->shape, &(TsneKernels){1, {30}, {1}}, t->scratch);
}

static void count(void *what) {
    Tsne *t = what;
    k_tsne_count(t->sizes, t->packed, &t->view, &t->shape, 0, 1, TILES, t->least, t->scratch);
}

static void fill(void *what) {
    Tsne *t = what;
    k_tsne_fill(&t->p, t->p_sums, 0, TILES, t->packed, &t->view, &t->shape, t->least, t->scratch);
}

static void repulsion(void *what) {
    Tsne *t = what;
    k_tsne_forces(t->sums, &t->none, false, t->y, &t->shape, t->force_scratch);
}

static void forces(void *what) {
    Tsne *t = what;
    k_tsne_forces(t->sums, &t->p, false, t->y, &t->shape, t->force_scratch);
}

static void update(void *what) {
    Tsne *t = what;
    k_tsne_update(t->y, t->update, t->gains, t->norm, t->sums, &t->shape, &(TsneStep){1, 0.8, 100});
}

/* Places for P, from the sizes found. Returns how many pairs are kept. */
static int64_t make_room(Tsne *t) {
    TsneTileSize sizes[TILES];
    int64_t tile[TILES], cells[TILES + 1] = {0}, values[TILES + 1] = {0};
    dev_download(sizes, t->sizes, sizeof sizes);
    for (int i = 0; i < TILES; i++) {
        tile[i] = i;
        cells[i + 1] = cells[i] + sizes[i].cells;
        values[i + 1] = values[i] + sizes[i].values;
    }
    t->p = (TsneAffinities){TILES,
                            device_new(tile, sizeof tile),
                            device_new(cells, sizeof cells),
                            device_new(values, sizeof values),
                            dev_alloc((size_t)cells[TILES] * sizeof(TsneCell)),
                            device_new(NULL, (size_t)(values[TILES] + TSNE_BLOCK) * sizeof(float))};
    t->none = t->p;
    const int64_t zeros[TILES + 1] = {0};
    t->none.cell_start = t->none.value_start = device_new(zeros, sizeof zeros);
    return values[TILES];
}

static void time_tsne(void) {
    const double pairs = N / 2.0 * (N - 1);
    Tsne t = {.shape = {N, 0, N / TSNE_BLOCK, D, 2, 0, 1},
              .x = bench_numbers(N * D, 1),
              .packed = bench_numbers(N * D, 1),
              .rows = bench_numbers(N * TSNE_ROW_NUMBERS, 1),
              .y = bench_numbers(N * 2, 10),
              .update = bench_numbers(N * 2, 0),
              .gains = bench_numbers(N * 2, 0),
              .least = 0x1p-19f / N,
              .norm = dev_alloc(N / TSNE_BLOCK * sizeof(double)),
              .sizes = dev_alloc(TILES * sizeof(TsneTileSize)),
              .scratch = dev_alloc(k_tsne_affinity_scratch(N, D))};
    t.view = (TsneRows){t.rows, 1, 1};
    t.sums = dev_alloc((size_t)k_tsne_sums(&t.shape) * sizeof(int64_t));
    t.force_scratch = dev_alloc(k_tsne_scratch(&t.shape));
    t.p_sums.kept = calloc(2 * N + 1, sizeof(int64_t));
    int64_t *p_sums = device_new(t.p_sums.kept, (2 * N + 1) * sizeof(int64_t));
    free(t.p_sums.kept);
    t.p_sums = (TsneAffinitySums){p_sums, p_sums + N, p_sums + 2 * N};
    line("t-SNE, 4096 points of 10 dimensions packed", pack, &t, 0, 8.0 * N * D);
    line("t-SNE, search: distances both ways", search, &t, 2 * pairs * 2 * D, 0);
    line("t-SNE, count of P: distances", count, &t, pairs * 2 * D, 0);
    const double kept = (double)make_room(&t);
    line("t-SNE, P filled: distances", fill, &t, pairs * 2 * D, 4 * kept);
    const int force = bench_pair_operations(), pull = bench_pull_operations();
    line("t-SNE, repulsion, by what bounds a pair", repulsion, &t, pairs * force, 0);
    line("t-SNE, repulsion, by what bounds two ways one by one", repulsion, &t, pairs * bench_two_way_operations(), 0);
    line("t-SNE, both forces, P read", forces, &t, pairs * force + kept * pull, 4 * kept);
    repulsion(&t);
    line("t-SNE, update: 5 numbers read, 3 written", update, &t, 0, (2 * 8 + 6 * 4.0) * N * 2);
    void *all[] = {
        t.x,     t.packed,         t.rows,          t.y,      t.update,       t.gains,         t.norm,   t.sums,
        t.sizes, t.scratch,        t.force_scratch, t.p.tile, t.p.cell_start, t.p.value_start, t.p.cell, t.p.value,
        p_sums,  t.none.cell_start};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        dev_free(all[i]);
}

/* ---- Neighbours ------------------------------------------------------------------------------------------------- */

enum { K = 15, ASKED = 30 };

typedef struct {
    NeighborShape shape;
    float *x, *packed, *distance, *asked_distance;
    int32_t *index, *nearer, *asked;
} Neighbors;

static void measure(void *what) {
    Neighbors *n = what;
    k_neighbors_measure(n->asked_distance, n->asked, ASKED, n->x, n->x, &n->shape, 1);
}

static void find(void *what) {
    Neighbors *n = what;
    k_neighbors_find(n->index, n->distance, K, n->nearer, n->asked, n->asked_distance, ASKED, n->packed, n->packed,
                     &n->shape);
}

/* Lists are full after the first call: then few columns belong there, as of most pieces of a large set. */
static void time_neighbors(void) {
    static int32_t asked[N * ASKED], none[N * ASKED];
    static float far[N * K];
    for (int i = 0; i < N * ASKED; i++)
        asked[i] = (int32_t)((int64_t)i * 7919 % N);
    for (int i = 0; i < N * K; i++)
        far[i] = NEIGHBOR_NONE;
    Neighbors n = {.shape = {N, 0, N, 0, D},
                   .x = bench_numbers(N * D, 1),
                   .packed = bench_numbers(N * D, 1),
                   .distance = device_new(far, sizeof far),
                   .asked_distance = bench_numbers(N * ASKED, 1),
                   .nearer = device_new(none, sizeof none),
                   .asked = device_new(asked, sizeof asked)};
    for (int i = 0; i < N * K; i++)
        none[i] = INT32_MAX;
    n.index = device_new(none, N * K * sizeof *none);
    k_tsne_pack(n.packed, n.x, N, D, 1);
    line("neighbours, 30 distances of 4096 points", measure, &n, 2.0 * N * ASKED * D, 4.0 * N * ASKED * (D + 2));
    line("neighbours, 15 nearest, 30 places: 2 D + 2 A + 3 operations", find, &n,
         (double)N * N * (2 * D + 2 * ASKED + 3), 0);
    void *all[] = {n.x, n.packed, n.distance, n.asked_distance, n.index, n.nearer, n.asked};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        dev_free(all[i]);
}

void bench_rest(const Peak *peak) {
    core = peak;
    time_ends();
    time_pca();
    time_tsne();
    time_neighbors();
}
