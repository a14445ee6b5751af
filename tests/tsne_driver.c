/* tsne_driver.c: t-SNE and PCA on raw float32 files, for tests that compare with scikit-learn (test_tsne.py,
 * test_pca.py) and between numbers of ranks.
 *
 *     tsne_driver affinities X N D PERPLEXITY OUT   OUT: P (N, N) float32, then TSNE_ROW_BETA of each point (N), in the
 *                                                    order of the file; prints sum, dropped mass, entries
 *     tsne_driver gradient X N D PERPLEXITY Y A OUT  OUT: gradient (N, A) float64, then TSNE_ROW_BETA of each point;
 *                                                    prints KL, and the largest relative error of the step
 *     tsne_driver tsne X N D PERPLEXITY START A ITERATIONS OUT [EXAGGERATED RATE]
 *                                                    OUT: map (N, A); prints KL and history
 *     tsne_driver maps X N D PERPLEXITY START A ITERATIONS OUT EXAGGERATED RATE
 *                                                    OUT: the maps after 0, 1, ... ITERATIONS, (.., N, A)
 *     tsne_driver pca X N D K OUT                    OUT: float64 center, axes, variance, ratio; float32 scores of all
 * PERPLEXITY: P, or P+Q+... for the mean of several; TSNE_ROW_BETA is the first one's.
 * From the environment: THREADS; ISA, the level of instructions (dev_limit_isa); SECONDS: tell those of each part;
 * MEMORY: tell the bytes predicted and taken; LIMIT: bytes that tsne may take. Ranks hold uneven shards, some
 * empty. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "comm.h"
#include "error.h"
#include "progress.h"
#include "stages.h"

static Arena *arena;

static void *read_raw(const char *path, size_t bytes) {
    void *data = arena_alloc(arena, bytes, 1, path);
    FILE *file = fopen(path, "rb");
    if (!file || fread(data, 1, bytes, file) != bytes)
        die("%s: cannot be read as %zu bytes", path, bytes);
    fclose(file);
    return data;
}

static void write_raw(const char *path, const char *mode, const void *data, size_t bytes) {
    if (comm_rank() != 0)
        return;
    FILE *file = fopen(path, mode);
    if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0)
        die("%s: cannot be written", path);
}

/* Batches of 7, dealt so that the last ranks get less. */
static Matrix matrix_of(const float *x, int64_t N, int D) {
    int64_t batches = (N + 6) / 7, each = (batches + comm_size() - 1) / comm_size() * 7;
    int64_t first = comm_rank() * each < N ? comm_rank() * each : N;
    int64_t count = N - first < each ? N - first : each;
    Matrix matrix = {"test", {N, first, count}, D, dev_alloc((size_t)(count * D) * sizeof(float))};
    dev_upload(matrix.rows, x + first * D, (size_t)(count * D) * sizeof(float));
    return matrix;
}

/* P, or P+Q+... */
static Perplexity perplexity_of(const char *text) {
    Perplexity p = {.text = text};
    for (const char *at = text; at && p.count < PERPLEXITIES_MAX; at = strchr(at, '+') ? strchr(at, '+') + 1 : NULL)
        p.value[p.count++] = atof(at);
    return p;
}

typedef struct {
    TsneShape shape;
    int64_t blocks;
    int kernels;
    float *rows;
    TsneAffinities affinities;
    int64_t *kept, *dropped, *p_log_p; /* TsneAffinitySums */
} Affinities;

/* One rank, points in the order of the file. */
static Affinities affinities_of(const float *x, int64_t N, int D, int A, const char *text) {
    const Perplexity perplexity = perplexity_of(text);
    TsneKernels kernels = {.count = perplexity.count};
    const int64_t blocks = (N + 15) / 16, tiles = k_tsne_tiles(N);
    Affinities a = {.shape = {N, 0, blocks, D, A, 0, 1}, .blocks = blocks};
    float *packed = dev_alloc((size_t)(blocks * 16 * D) * 4);
    void *scratch = dev_alloc(k_tsne_affinity_scratch(N, D));
    a.kernels = kernels.count;
    for (int k = 0; k < kernels.count; k++) {
        kernels.perplexity[k] = perplexity.value[k];
        kernels.share[k] = 1 / (float)kernels.count;
    }
    a.rows = dev_alloc((size_t)(blocks * kernels.count) * TSNE_ROW_NUMBERS * 16 * 4);
    a.kept = ARENA_ARRAY(arena, int64_t, 2 * N + 1, "sums");
    a.dropped = a.kept + N;
    a.p_log_p = a.kept + 2 * N;
    const float least = (float)(0x1p-24 / (double)N);
    k_tsne_pack(packed, x, N, D, 1);
    const TsneRows rows = {a.rows, kernels.count, kernels.count};
    k_tsne_search(a.rows, packed, &a.shape, &kernels, scratch);
    TsneTileSize *sizes = ARENA_ARRAY(arena, TsneTileSize, tiles, "sizes");
    k_tsne_count(sizes, packed, &rows, &a.shape, 0, 1, tiles, least, scratch);
    a.affinities = (TsneAffinities){.tiles = tiles,
                                    .tile = ARENA_ARRAY(arena, int64_t, tiles, "tiles"),
                                    .cell_start = ARENA_ARRAY(arena, int64_t, tiles + 1, "cells"),
                                    .value_start = ARENA_ARRAY(arena, int64_t, tiles + 1, "values")};
    for (int64_t t = 0; t < tiles; t++) {
        a.affinities.tile[t] = t;
        a.affinities.cell_start[t + 1] = a.affinities.cell_start[t] + sizes[t].cells;
        a.affinities.value_start[t + 1] = a.affinities.value_start[t] + sizes[t].values;
    }
    a.affinities.cell = dev_alloc((size_t)a.affinities.cell_start[tiles] * sizeof(TsneCell));
    a.affinities.value = ARENA_ARRAY(arena, float, a.affinities.value_start[tiles] + 16, "P");
    k_tsne_fill(&a.affinities, (TsneAffinitySums){a.kept, a.dropped, a.p_log_p}, 0, tiles, packed, &rows, &a.shape,
                least, scratch);
    dev_free(packed);
    dev_free(scratch);
    return a;
}

static double kept_sum(const Affinities *a) {
    double sum = 0;
    for (int64_t i = 0; i < a->shape.points; i++)
        sum += (double)a->kept[i] * k_tsne_kept_unit(a->shape.points) / (2 * (double)a->shape.points);
    return sum;
}

static void run_affinities(char **argv) {
    int64_t N = atoll(argv[1]);
    int D = atoi(argv[2]);
    Affinities a = affinities_of(read_raw(argv[0], (size_t)(N * D) * 4), N, D, 2, argv[3]);
    float *dense = ARENA_ARRAY(arena, float, N *N, "P"), *beta = ARENA_ARRAY(arena, float, N, "beta");
    double dropped = 0;
    int64_t entries = 0, columns = (N + TSNE_TILE - 1) / TSNE_TILE, t = 0;
    const float *value = a.affinities.value;
    for (int64_t off = 0; off < columns; off++) /* the pairs of tiles in the order of their numbers */
        for (int64_t tile = 0; tile + off < columns; tile++, t++)
            for (int64_t c = a.affinities.cell_start[t]; c < a.affinities.cell_start[t + 1]; c++) {
                const TsneCell *cell = &a.affinities.cell[c];
                for (int k = 0; k < 256; k++)
                    if (cell->mask[k / 16] >> k % 16 & 1) {
                        int64_t i = tile * TSNE_TILE + cell->row * 16 + k % 16;
                        int64_t j = (tile + off) * TSNE_TILE + cell->column * 16 + (k % 16 + k / 16) % 16;
                        if (dense[i * N + j] != 0)
                            die("the pair %lld, %lld has two places", (long long)i, (long long)j);
                        dense[i * N + j] = dense[j * N + i] = *value++;
                        entries += 2;
                    }
            }
    for (int64_t i = 0; i < N; i++) {
        double weight = (double)a.dropped[i] * TSNE_DROPPED_UNIT;
        dropped = fmax(dropped, weight / ((double)a.kept[i] * k_tsne_kept_unit(N) + weight));
        beta[i] = a.rows[(i / 16 * a.kernels * TSNE_ROW_NUMBERS + TSNE_ROW_BETA) * 16 + i % 16];
    }
    write_raw(argv[4], "wb", dense, (size_t)(N * N) * 4);
    write_raw(argv[4], "ab", beta, (size_t)N * 4);
    printf("%.17g %.17g %lld\n", kept_sum(&a), dropped, (long long)entries);
}

static void run_gradient(char **argv) {
    int64_t N = atoll(argv[1]);
    int D = atoi(argv[2]), A = atoi(argv[5]);
    Affinities a = affinities_of(read_raw(argv[0], (size_t)(N * D) * 4), N, D, A, argv[3]);
    const float *start = read_raw(argv[4], (size_t)(N * A) * 4);
    size_t floats = (size_t)a.blocks * (size_t)A * 16;
    float *y = ARENA_ARRAY(arena, float, floats, "y"), *update = ARENA_ARRAY(arena, float, floats, "update");
    float *gains = ARENA_ARRAY(arena, float, floats, "gains");
    int64_t *sums = ARENA_ARRAY(arena, int64_t, k_tsne_sums(&a.shape), "forces");
    for (int64_t i = 0; i < N; i++)
        for (int d = 0; d < A; d++)
            y[i / 16 * A * 16 + d * 16 + i % 16] = start[i * A + d];
    void *scratch = dev_alloc(k_tsne_scratch(&a.shape));
    k_tsne_forces(sums, &a.affinities, true, y, &a.shape, scratch);
    const int64_t *totals = sums + k_tsne_sums(&a.shape) - TSNE_TOTALS;
    double w_sum = 2 * (double)totals[TSNE_TOTAL_W] * k_tsne_w_unit(N);
    double logs = 2 * (double)(totals[TSNE_TOTAL_CROSS] + *a.p_log_p) * TSNE_LOG_UNIT;
    double kl = logs + log(w_sum) * kept_sum(&a);
    double *gradient = ARENA_ARRAY(arena, double, N *A, "gradient");
    for (int64_t i = 0; i < N; i++)
        for (int d = 0; d < A; d++) {
            int64_t k = i / 16 * 2 * A * 16 + d * 16 + i % 16;
            gradient[i * A + d] = (A == 2 ? 4 : 3) * ((double)sums[k + A * 16] * TSNE_PULL_UNIT -
                                                      (double)sums[k] * k_tsne_force_unit(N) / w_sum);
        }
    float *beta = ARENA_ARRAY(arena, float, N, "beta");
    for (int64_t i = 0; i < N; i++)
        beta[i] = a.rows[(i / 16 * a.kernels * TSNE_ROW_NUMBERS + TSNE_ROW_BETA) * 16 + i % 16];
    write_raw(argv[6], "wb", gradient, (size_t)(N * A) * 8);
    write_raw(argv[6], "ab", beta, (size_t)N * 4);
    printf("%.17g\n", kl);
    for (size_t i = 0; i < floats; i++) /* the step must find the same gradient: momentum 0, rate 1, gains at 0.8 */
        gains[i] = 1;
    k_tsne_update(y, update, gains, NULL, sums, &a.shape, &(TsneStep){1, 0, 1});
    double worst = 0;
    for (int64_t i = 0; i < N * A; i++) {
        int64_t k = i / A / 16 * A * 16 + i % A * 16 + i / A % 16;
        worst = fmax(worst, fabs(update[k] + 0.8 * gradient[i]) / (fabs(gradient[i]) + 1e-12));
    }
    printf("%.3g\n", worst);
}

static size_t memory_now(const char *key) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    size_t kilobytes = 0;
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, key, strlen(key)) == 0)
            kilobytes = (size_t)atoll(line + strlen(key));
    if (file)
        fclose(file);
    return kilobytes * 1024;
}

/* This process may take so much more. */
static void limit_memory(size_t bytes) {
    const struct rlimit limit = {memory_now("VmSize:") + bytes, RLIM_INFINITY};
    if (setrlimit(RLIMIT_AS, &limit) != 0)
        die("setrlimit failed");
}

static void run_tsne(int argc, char **argv) {
    int64_t N = atoll(argv[1]);
    int D = atoi(argv[2]), A = atoi(argv[5]);
    Matrix x = matrix_of(read_raw(argv[0], (size_t)(N * D) * 4), N, D);
    const Perplexity perplexity = perplexity_of(argv[3]);
    TsneOptions options = {.axes = A,
                           .perplexity_count = 1,
                           .perplexity = &perplexity,
                           .max_iter = atoi(argv[6]),
                           .early_exaggeration = 12,
                           .exaggeration_iter = 250};
    if (argc > 8)
        options.exaggeration_iter = atoi(argv[8]);
    if (argc > 9)
        options.learning_rate = atof(argv[9]);
    TsneResult result;
    const float *start = read_raw(argv[4], (size_t)(N * A) * 4);
    if (getenv("LIMIT"))
        limit_memory((size_t)atoll(getenv("LIMIT")));
    const size_t before = memory_now("VmRSS:");
    tsne(&result, arena, &x, &(TsneMap){0, start, "tsne test"}, 1, &options);
    if (getenv("MEMORY") && comm_rank() == 0)
        printf("memory %.0f %.0f\n", result.bytes, (double)memory_now("VmHWM:") - (double)before);
    write_raw(argv[7], "wb", result.map, (size_t)(N * A) * 4);
    if (comm_rank() == 0) {
        printf("%.17g %d %.17g %.17g %lld\n", result.kl, result.iterations, result.affinity_sum,
               result.affinity_dropped_mass, (long long)result.affinity_nonzeros);
        for (int i = 0; i < result.checks; i++)
            printf("%d %.17g\n", result.check_iterations[i], result.kl_history[i]);
    }
    if (getenv("SECONDS"))
        for (int i = 0; i < progress_stages(); i++) {
            double seconds;
            const char *stage = progress_stage(i, &seconds);
            comm_max(&seconds, 1);
            if (comm_rank() == 0)
                fprintf(stderr, "%s: %.3f s\n", stage, seconds);
        }
    dev_free(x.rows);
}

static void run_maps(char **argv) {
    int64_t N = atoll(argv[1]);
    int D = atoi(argv[2]), A = atoi(argv[5]);
    const float *x = read_raw(argv[0], (size_t)(N * D) * 4), *start = read_raw(argv[4], (size_t)(N * A) * 4);
    const Perplexity perplexity = perplexity_of(argv[3]);
    TsneOptions options = {.axes = A,
                           .perplexity_count = 1,
                           .perplexity = &perplexity,
                           .early_exaggeration = 12,
                           .exaggeration_iter = atoi(argv[8]),
                           .learning_rate = atof(argv[9])};
    progress_quiet(true);
    for (options.max_iter = 0; options.max_iter <= atoi(argv[6]); options.max_iter++) {
        Matrix matrix = matrix_of(x, N, D);
        TsneResult result;
        tsne(&result, arena, &matrix, &(TsneMap){0, start, "tsne test"}, 1, &options);
        write_raw(argv[7], options.max_iter ? "ab" : "wb", result.map, (size_t)(N * A) * 4);
        dev_free(matrix.rows);
    }
}

static void run_pca(char **argv) {
    int64_t N = atoll(argv[1]);
    int D = atoi(argv[2]), K = atoi(argv[3]);
    Matrix x = matrix_of(read_raw(argv[0], (size_t)(N * D) * 4), N, D);
    Pca result;
    pca(&result, arena, &x, K, NULL, "");
    write_raw(argv[4], "wb", result.center, (size_t)D * 8);
    write_raw(argv[4], "ab", result.axes, (size_t)K * (size_t)D * 8);
    write_raw(argv[4], "ab", result.variance, (size_t)K * 8);
    write_raw(argv[4], "ab", result.variance_ratio, (size_t)K * 8);
    float *scores = ARENA_ARRAY(arena, float, N *K, "scores");
    shard_gather(scores, result.scores.rows, (size_t)K * 4, result.scores.shard);
    write_raw(argv[4], "ab", scores, (size_t)(N * K) * 4);
    dev_free(x.rows);
    dev_free(result.scores.rows);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    dev_start(0, getenv("THREADS") ? atoi(getenv("THREADS")) : 1);
    if (getenv("ISA"))
        dev_limit_isa(atoi(getenv("ISA")));
    arena = arena_new();
    if (argc > 6 && strcmp(argv[1], "affinities") == 0)
        run_affinities(argv + 2);
    else if (argc > 8 && strcmp(argv[1], "gradient") == 0)
        run_gradient(argv + 2);
    else if (argc > 9 && strcmp(argv[1], "tsne") == 0)
        run_tsne(argc - 2, argv + 2);
    else if (argc > 11 && strcmp(argv[1], "maps") == 0)
        run_maps(argv + 2);
    else if (argc > 6 && strcmp(argv[1], "pca") == 0)
        run_pca(argv + 2);
    else
        die_usage("tsne_driver: see the top of tsne_driver.c");
    arena_free(arena);
    comm_end(0);
}
