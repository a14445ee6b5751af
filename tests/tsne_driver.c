/* tsne_driver.c: t-SNE and PCA on raw float32 files, for tests that compare with scikit-learn (test_tsne.py,
 * test_pca.py) and between numbers of ranks.
 *
 *     tsne_driver affinities X N D PERPLEXITY OUT   OUT: P (N, N) float32, then TSNE_ROW_BETA of each point (N), in the
 *                                                    order of the file; prints sum, dropped mass, entries
 *     tsne_driver gradient X N D PERPLEXITY Y A OUT  OUT: gradient (N, A) float64; prints KL
 *     tsne_driver tsne X N D PERPLEXITY START A ITERATIONS OUT [EXAGGERATION ITS]
 *                                                    OUT: map (N, A); prints KL and history
 *     tsne_driver pca X N D K OUT                    OUT: float64 center, axes, variance, ratio; float32 scores of all
 * From the environment: THREADS, and ISA, the level of instructions (dev_limit_isa). Ranks hold uneven shards, some
 * empty. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm.h"
#include "error.h"
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

typedef struct {
    TsneShape shape;
    int64_t blocks;
    float *rows;
    TsneAffinities affinities;
    TsneBlockSums *sums;
} Affinities;

/* One rank, points in the order of the file. */
static Affinities affinities_of(const float *x, int64_t N, int D, int A, double perplexity) {
    int64_t blocks = (N + 15) / 16;
    Affinities a = {.shape = {N, 0, blocks, D, A}, .blocks = blocks};
    float *packed = dev_alloc((size_t)(blocks * 16 * D) * 4);
    void *scratch = dev_alloc(k_tsne_affinity_scratch(N, D));
    a.rows = dev_alloc((size_t)blocks * TSNE_ROW_NUMBERS * 16 * 4);
    a.sums = dev_alloc((size_t)blocks * sizeof *a.sums);
    a.affinities.start = dev_alloc((size_t)(blocks + 1) * 8);
    const float least = (float)(0x1p-24 / (double)N);
    k_tsne_pack(packed, x, N, D, 1);
    k_tsne_search(a.rows, packed, &a.shape, perplexity, scratch);
    a.affinities.start[0] = 0;
    k_tsne_count(a.affinities.start + 1, packed, a.rows, &a.shape, least, scratch);
    for (int64_t b = 0; b < blocks; b++)
        a.affinities.start[b + 1] += a.affinities.start[b];
    a.affinities.column = dev_alloc((size_t)a.affinities.start[blocks] * 4);
    a.affinities.value = dev_alloc((size_t)a.affinities.start[blocks] * 64);
    k_tsne_fill(&a.affinities, a.sums, packed, a.rows, &a.shape, least, scratch);
    dev_free(packed);
    dev_free(scratch);
    return a;
}

static void run_affinities(char **argv) {
    int64_t N = atoll(argv[1]);
    int D = atoi(argv[2]);
    Affinities a = affinities_of(read_raw(argv[0], (size_t)(N * D) * 4), N, D, 2, atof(argv[3]));
    float *dense = ARENA_ARRAY(arena, float, N *N, "P"), *beta = ARENA_ARRAY(arena, float, N, "beta");
    double sum = 0, dropped = 0;
    int64_t entries = 0;
    for (int64_t b = 0; b < a.blocks; b++) {
        entries += a.sums[b].entries;
        for (int l = 0; l < 16 && b * 16 + l < N; l++) {
            sum += a.sums[b].kept[l] / (2 * (double)N);
            dropped = fmax(dropped, a.sums[b].dropped[l] / (a.sums[b].kept[l] + a.sums[b].dropped[l]));
            beta[b * 16 + l] = a.rows[(b * TSNE_ROW_NUMBERS + TSNE_ROW_BETA) * 16 + l];
            for (int64_t k = a.affinities.start[b]; k < a.affinities.start[b + 1]; k++)
                dense[(b * 16 + l) * N + a.affinities.column[k]] = a.affinities.value[k * 16 + l];
        }
    }
    write_raw(argv[4], "wb", dense, (size_t)(N * N) * 4);
    write_raw(argv[4], "ab", beta, (size_t)N * 4);
    printf("%.17g %.17g %lld\n", sum, dropped, (long long)entries);
}

static void run_gradient(char **argv) {
    int64_t N = atoll(argv[1]);
    int D = atoi(argv[2]), A = atoi(argv[5]);
    Affinities a = affinities_of(read_raw(argv[0], (size_t)(N * D) * 4), N, D, A, atof(argv[3]));
    const float *start = read_raw(argv[4], (size_t)(N * A) * 4);
    size_t floats = (size_t)a.blocks * (size_t)A * 16;
    float *y = ARENA_ARRAY(arena, float, floats, "y"), *update = ARENA_ARRAY(arena, float, floats, "update");
    float *gains = ARENA_ARRAY(arena, float, floats, "gains");
    double *attraction = ARENA_ARRAY(arena, double, floats, "attraction"),
           *cross = ARENA_ARRAY(arena, double, a.blocks, "c");
    int64_t *repulsion = ARENA_ARRAY(arena, int64_t, floats, "repulsion"),
            *z = ARENA_ARRAY(arena, int64_t, a.blocks, "z");
    for (int64_t i = 0; i < N; i++)
        for (int d = 0; d < A; d++)
            y[i / 16 * A * 16 + d * 16 + i % 16] = start[i * A + d];
    void *scratch = dev_alloc(k_tsne_repulsion_scratch(&a.shape));
    k_tsne_repulsion(repulsion, z, y, &a.shape, scratch);
    k_tsne_attraction(attraction, cross, &a.affinities, y, &a.shape);
    double z_sum = 0, kl = 0, p_sum = 0;
    for (int64_t b = 0; b < a.blocks; b++) {
        z_sum += (double)z[b] * k_tsne_z_unit(N);
        kl += cross[b] + a.sums[b].p_log_p;
        for (int l = 0; l < 16; l++)
            p_sum += a.sums[b].kept[l] / (2 * (double)N);
    }
    kl += log(z_sum) * p_sum;
    double *gradient = ARENA_ARRAY(arena, double, N *A, "gradient");
    for (int64_t i = 0; i < N; i++)
        for (int d = 0; d < A; d++) {
            int64_t k = i / 16 * A * 16 + d * 16 + i % 16;
            gradient[i * A + d] =
                (A == 2 ? 4 : 3) * (attraction[k] - (double)repulsion[k] * k_tsne_force_unit(N) / z_sum);
        }
    write_raw(argv[6], "wb", gradient, (size_t)(N * A) * 8);
    printf("%.17g\n", kl);
    for (size_t i = 0; i < floats; i++) /* the step must find the same gradient: momentum 0, rate 1, gains at 0.8 */
        gains[i] = 1;
    k_tsne_update(y, update, gains, cross, attraction, repulsion, z, a.blocks, &a.shape, &(TsneStep){1, 0, 1});
    double worst = 0;
    for (int64_t i = 0; i < N * A; i++) {
        int64_t k = i / A / 16 * A * 16 + i % A * 16 + i / A % 16;
        worst = fmax(worst, fabs(update[k] + 0.8 * gradient[i]) / (fabs(gradient[i]) + 1e-12));
    }
    printf("%.3g\n", worst);
}

static void run_tsne(int argc, char **argv) {
    int64_t N = atoll(argv[1]);
    int D = atoi(argv[2]), A = atoi(argv[5]);
    Matrix x = matrix_of(read_raw(argv[0], (size_t)(N * D) * 4), N, D);
    TsneOptions options = {.axes = A,
                           .perplexity = atof(argv[3]),
                           .max_iter = atoi(argv[6]),
                           .early_exaggeration = 12,
                           .exaggeration_iter = 250};
    if (argc > 8)
        options.exaggeration_iter = atoi(argv[8]);
    if (argc > 9)
        options.learning_rate = atof(argv[9]);
    TsneResult result;
    tsne(&result, arena, &x, read_raw(argv[4], (size_t)(N * A) * 4), &options);
    write_raw(argv[7], "wb", result.map, (size_t)(N * A) * 4);
    if (comm_rank() == 0) {
        printf("%.17g %d %.17g %.17g %lld\n", result.kl, result.iterations, result.affinity_sum,
               result.affinity_dropped_mass, (long long)result.affinity_nonzeros);
        for (int i = 0; i < result.checks; i++)
            printf("%d %.17g\n", result.check_iterations[i], result.kl_history[i]);
    }
    dev_free(x.rows);
}

static void run_pca(char **argv) {
    int64_t N = atoll(argv[1]);
    int D = atoi(argv[2]), K = atoi(argv[3]);
    Matrix x = matrix_of(read_raw(argv[0], (size_t)(N * D) * 4), N, D);
    Pca result;
    pca(&result, arena, &x, K);
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
    else if (argc > 6 && strcmp(argv[1], "pca") == 0)
        run_pca(argv + 2);
    else
        die_usage("tsne_driver: see the top of tsne_driver.c");
    arena_free(arena);
    comm_end(0);
}
