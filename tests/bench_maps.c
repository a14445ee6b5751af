/* bench_maps.c: the kernels of attribution and of its evidence that bench_rest.c does not have, and of new points in a map.
 *
 * Bounds: reading and writing each number once; of sorting that alone, so that what it costs besides shows as a low
 * share; of the power method in each of its rounds; of placing, the distances and 25 passes over the fixed points, 10
 * operations a pair each. */
#include <stdlib.h>

#include "bench.h"
#include "device.h"

enum {
    B = 8,
    C = 64,
    SIDE = 56,
    PIXELS = SIDE * SIDE,
    CATEGORIES = 1000,
    POINTS = 2048,
    NEW = 256,
    D = 10,
    PASSES = 25
};

typedef struct {
    Lane *lane;
    float *x, *other, *out, *map, *logits, *few, *baseline;
    int32_t *target, *rank;
    int64_t *number;
    uint8_t *mask;
    void *scratch;
    float *points, *fresh, *place_map, *y;
    double *kl;
    void *place_scratch;
} Maps;

static const KBox box = {8, 8, 24, 24};

static void target(Maps *m) {
    k_target(m->lane, m->target, TARGET_RUNNER_UP, m->rank, m->logits, NULL, B, CATEGORIES);
}
static void score(Maps *m) {
    k_score(m->lane, m->few, m->logits, NULL, m->target, NULL, B, CATEGORIES);
}
static void between(Maps *m) {
    k_between(m->lane, m->out, m->x, m->baseline, 0.3f, B, C * PIXELS);
}
static void noisy(Maps *m) {
    k_noisy(m->lane, m->out, m->x, m->number, 1, 2, 0.1f, B, C * PIXELS);
}
static void occlude(Maps *m) {
    k_occlude(m->lane, m->out, m->x, m->baseline, &box, B, C, SIDE, SIDE);
}
static void add_scaled(Maps *m) {
    k_add_scaled(m->lane, m->out, m->x, 0.5f, false, B * C * PIXELS);
}
static void product(Maps *m) {
    k_product(m->lane, m->out, m->x, m->other, B * C * PIXELS);
}
static void integrated(Maps *m) {
    k_integrated(m->lane, m->out, m->few, m->target, m->other, m->x, m->baseline, m->few, 0, 50, true, B, C * PIXELS);
}
static void occlusion_add(Maps *m) {
    k_occlusion_add(m->lane, m->map, m->few, m->few, &box, true, B, SIDE, SIDE);
}
static void occlusion_mean(Maps *m) {
    k_occlusion_mean(m->lane, m->map, 16, 8, B, SIDE, SIDE);
}
static void eigen_cam(Maps *m) {
    k_eigen_cam(m->lane, m->map, m->x, B, C, PIXELS, m->scratch);
}
static void rank(Maps *m) {
    k_rank(m->lane, m->rank, m->other, m->x, B, PIXELS, m->scratch);
}
static void reveal(Maps *m) {
    k_reveal(m->lane, m->out, m->x, m->baseline, m->rank, PIXELS / 3, false, B, C, PIXELS);
}
static void probability(Maps *m) {
    k_add_probability(m->lane, m->few, m->logits, m->target, 0.5f, true, B, CATEGORIES);
}
static void channel_sum(Maps *m) {
    k_channel_sum(m->lane, m->map, m->x, B, C, PIXELS);
}
static void pointing(Maps *m) {
    k_pointing(m->lane, m->few, m->rank, m->mask, B, PIXELS);
}
static void energy(Maps *m) {
    k_energy(m->lane, m->few, m->x, m->mask, B, PIXELS);
}
static void gini(Maps *m) {
    k_gini(m->lane, m->few, m->map, m->rank, B, PIXELS);
}
static void correlation(Maps *m) {
    k_rank_correlation(m->lane, m->few, 1, m->x, m->other, B, PIXELS);
}
static void place(Maps *m) {
    const PlaceShape shape = {NEW, POINTS, D, 2};
    k_place(m->y, m->kl, m->fresh, m->points, m->place_map, &shape, 30, m->place_scratch);
}

typedef struct {
    const char *name;
    void (*kernel)(Maps *);
    double bytes, operations;
} Row;

typedef struct {
    Maps *maps;
    const Row *row;
} Step;

static void step(void *what) {
    const Step *s = what;
    s->row->kernel(s->maps);
    lane_sync(s->maps->lane);
}

void bench_maps(const Peak *peak) {
    static const double map = 4.0 * B * PIXELS, all = 4.0 * B * C * PIXELS, logits = 4.0 * B * CATEGORIES;
    const Row rows[] = {
        {"targets, 8 x 1000", target, logits, 0},
        {"scores of the targets, 8", score, 12.0 * B, 0},
        {"between a baseline and 8 x 64 x 56 x 56", between, 2 * all, 0},
        {"noise on 8 x 64 x 56 x 56", noisy, 2 * all, 0},
        {"a window hidden in 8 x 64 x 56 x 56", occlude, 2 * all, 0},
        {"sum of gradients, 8 x 64 x 56 x 56", add_scaled, 3 * all, 0},
        {"product, 8 x 64 x 56 x 56", product, 3 * all, 0},
        {"integrated gradients, 8 x 64 x 56 x 56", integrated, 3 * all, 0},
        {"occlusion, a window of 16 x 16", occlusion_add, map + 8.0 * B * 256, 0},
        {"occlusion, mean of windows", occlusion_mean, 2 * map, 0},
        {"Eigen-CAM, 8 x 64 x 56 x 56 of noise: 1000 rounds at most", eigen_cam, 1000 * all, 0},
        {"ranks, 8 x 56 x 56: read and written once", rank, 3 * map, 0},
        {"a third hidden by rank, 8 x 64 x 56 x 56", reveal, 2 * all + map, 0},
        {"probability of the target, 8 x 1000", probability, logits, 0},
        {"sum over channels, 8 x 64 x 56 x 56", channel_sum, all + map, 0},
        {"pointing game, 8 x 56 x 56", pointing, map + map / 4, 0},
        {"energy inside, 8 x 56 x 56", energy, map + map / 4, 0},
        {"Gini index, 8 x 56 x 56", gini, 2 * map, 0},
        {"Spearman's correlation, 8 x 56 x 56", correlation, 2 * map, 0},
        {"256 new points among 2048", place, 0, (double)NEW * POINTS * (2 * D + 10 * PASSES)},
    };
    const PlaceShape shape = {NEW, POINTS, D, 2};
    const size_t eigen = k_eigen_cam_scratch(B, C, PIXELS), ranks = k_rank_scratch(B, PIXELS);
    int32_t *places = calloc(B * PIXELS, sizeof *places);
    uint8_t *inside = calloc(B * PIXELS, 1);
    if (!places || !inside)
        abort();
    for (int i = 0; i < B * PIXELS; i++) {
        places[i] = i % PIXELS * 5 % PIXELS;
        inside[i] = i % 7 == 0;
    }
    Maps m = {.lane = lane_new(64),
              .x = bench_numbers(B * C * PIXELS, 1),
              .other = bench_numbers(B * C * PIXELS, 1),
              .out = bench_numbers(B * C * PIXELS, 0),
              .map = bench_numbers(B * PIXELS, 0),
              .logits = bench_numbers(B * CATEGORIES, 1),
              .few = bench_numbers(B, 1),
              .baseline = bench_numbers(C * PIXELS, 0),
              .target = device_new(places, B * sizeof *places),
              .rank = device_new(places, B * PIXELS * sizeof *places),
              .number = dev_alloc(B * sizeof(int64_t)),
              .mask = device_new(inside, B * PIXELS),
              .scratch = dev_alloc(eigen > ranks ? eigen : ranks),
              .points = bench_numbers(POINTS * D, 1),
              .fresh = bench_numbers(NEW * D, 1),
              .place_map = bench_numbers(POINTS * 2, 10),
              .y = bench_numbers(NEW * 2, 0),
              .kl = dev_alloc(NEW * sizeof(double)),
              .place_scratch = dev_alloc(k_place_scratch(&shape))};
    static const int64_t number[B] = {0, 1, 2, 3, 4, 5, 6, 7};
    dev_upload(m.number, number, sizeof number);
    free(places);
    free(inside);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Step of = {&m, &rows[i]};
        bench_line("", "", rows[i].name, bench_seconds(step, &of), 2 * rows[i].operations, rows[i].bytes, peak);
    }
    void *memory[] = {m.x,        m.other,  m.out,       m.map,    m.logits, m.few,
                      m.baseline, m.target, m.rank,      m.number, m.mask,   m.scratch,
                      m.points,   m.fresh,  m.place_map, m.y,      m.kl,     m.place_scratch};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        dev_free(memory[i]);
    lane_free(m.lane);
}
