/* pca_wide.c: the first principal components of a matrix with too many columns for a covariance, and too many
 * rows for their products (pca_few.c).
 *
 * A block Krylov method with thick restarts (Rayleigh-Ritz on a growing basis; Stathopoulos & Saad 1998): each round
 * multiplies a block of K + 8 vectors by the covariance, two passes over the rows on all ranks, and the first rank adds
 * the part of the residuals that its basis does not hold yet. It ends when every wanted pair has a residual below
 * 2e-7 of its eigenvalue: the eigenvalue is then right to the square of that over its gap, the vector to about
 * 1e-6 where eigenvalues are apart. Memory of the first rank: 9 (K + 8) D doubles twice. */
#include <math.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "pca_parts.h"

enum { EXTRA = 8, BASIS_BLOCKS = 4, KEPT_BLOCKS = 2, ROUNDS_MOST = 1000 };
static const double RESIDUAL_MOST = 2e-7;

/* Of the first rank. Vectors are rows of D numbers. */
typedef struct {
    int D, K, block, size;                /* size: vectors in the basis */
    double *basis, *image;                /* (BASIS_BLOCKS * block, D): orthonormal, and times the covariance */
    double *ritz, *ritz_image;            /* (KEPT_BLOCKS * block, D): approximate eigenvectors */
    double *residual;                     /* (block, D) */
    double *small, *coordinates, *values; /* (most, most), (most, most), (most) */
} Solver;

static Solver solver_new(Arena *arena, int D, int K);
static void multiply(double *image, const double *vectors, int count, const PcaInput *input);
static double product_scale(const PcaInput *input);
static bool find_ritz(Solver *solver);
static bool has_converged(const Solver *solver, int found);
static int next_block(Solver *solver, double *vectors, int found);
static int orthonormalise(double *vectors, int count, const Solver *solver);
static void start_block(double *vectors, int count, int D);

void pca_wide(double *values, double *axes, const PcaInput *input, int K) {
    const int D = input->x->width, block = K + EXTRA;
    const bool solves = comm_rank() == 0;
    Arena *arena = arena_new();
    double *vectors = ARENA_ARRAY(arena, double, (uint64_t)block *(uint64_t)D, "PCA vectors");
    double *image = ARENA_ARRAY(arena, double, (uint64_t)block *(uint64_t)D, "PCA vectors");
    Solver solver = {.D = D};
    int count = 0, rounds = 0;
    if (solves) {
        solver = solver_new(arena, D, K);
        start_block(vectors, block, D);
        count = orthonormalise(vectors, block, &solver);
    }
    for (;;) {
        comm_broadcast(&count, sizeof count);
        if (count == 0)
            break;
        comm_broadcast(vectors, (size_t)count * (size_t)D * sizeof *vectors);
        multiply(image, vectors, count, input);
        if (!error_caught() && ++rounds > ROUNDS_MOST)
            die("PCA of %s: no convergence in %d rounds; use fewer components", input->x->name, ROUNDS_MOST);
        comm_all_ok();
        if (solves) {
            const size_t old = (size_t)solver.size * (size_t)D, bytes = (size_t)count * (size_t)D * sizeof(double);
            memcpy(solver.basis + old, vectors, bytes);
            memcpy(solver.image + old, image, bytes);
            solver.size += count;
            int found = solver.size < KEPT_BLOCKS * block ? solver.size : KEPT_BLOCKS * block;
            bool done = !find_ritz(&solver) || has_converged(&solver, found);
            count = done ? 0 : next_block(&solver, vectors, found);
        }
    }
    if (solves) {
        int found = solver.size < K ? solver.size : K;
        memcpy(values, solver.values, (size_t)found * sizeof *values);
        memcpy(axes, solver.ritz, (size_t)found * (size_t)D * sizeof *axes);
    }
    comm_broadcast(values, (size_t)K * sizeof *values);
    comm_broadcast(axes, (size_t)K * (size_t)D * sizeof *axes);
    arena_free(arena);
}

static Solver solver_new(Arena *arena, int D, int K) {
    Solver s = {.D = D, .K = K, .block = K + EXTRA};
    const uint64_t most = (uint64_t)BASIS_BLOCKS * (uint64_t)s.block, kept = (uint64_t)KEPT_BLOCKS * (uint64_t)s.block;
    s.basis = ARENA_ARRAY(arena, double, most *(uint64_t)D, "PCA basis");
    s.image = ARENA_ARRAY(arena, double, most *(uint64_t)D, "PCA basis");
    s.ritz = ARENA_ARRAY(arena, double, kept *(uint64_t)D, "PCA vectors");
    s.ritz_image = ARENA_ARRAY(arena, double, kept *(uint64_t)D, "PCA vectors");
    s.residual = ARENA_ARRAY(arena, double, (uint64_t)s.block *(uint64_t)D, "PCA residuals");
    s.small = ARENA_ARRAY(arena, double, most *most, "PCA projection");
    s.coordinates = ARENA_ARRAY(arena, double, most *most, "PCA projection");
    s.values = ARENA_ARRAY(arena, double, most, "PCA values");
    return s;
}

/* image (count, D) = covariance times vectors, on every rank. */
static void multiply(double *image, const double *vectors, int count, const PcaInput *input) {
    const Matrix *x = input->x;
    const int D = x->width;
    const size_t numbers = (size_t)count * (size_t)D;
    double *axes = dev_alloc(numbers * sizeof *axes), *device_scale = dev_alloc((size_t)count * sizeof(double));
    double *t = dev_alloc((size_t)x->shard.count * (size_t)count * sizeof *t);
    int64_t *high = dev_alloc(numbers * sizeof *high), *low = dev_alloc(numbers * sizeof *low);
    Arena *arena = arena_new();
    double *sums = ARENA_ARRAY(arena, double, numbers, "products"),
           *scale = ARENA_ARRAY(arena, double, count, "scales");
    for (int k = 0; k < count; k++)
        scale[k] = product_scale(input);
    dev_upload(axes, vectors, numbers * sizeof *axes);
    dev_upload(device_scale, scale, (size_t)count * sizeof *scale);
    k_project(t, x->rows, x->shard.count, D, input->device_center, axes, count);
    k_back_project(high, low, x->rows, x->shard.count, D, input->device_center, input->device_scale, t, count,
                   device_scale, input->bits, input->scratch);
    pca_sum(sums, high, low, numbers, input->bits);
    const double unit = ldexp(1, -2 * input->bits) / input->samples_less_one;
    for (int c = 0; c < D; c++)
        for (int k = 0; k < count; k++) {
            double both = input->scale[c] * scale[k];
            image[(size_t)k * (size_t)D + (size_t)c] =
                both > 0 ? sums[(size_t)c * (size_t)count + (size_t)k] * unit / both : 0;
        }
    void *on_device[] = {axes, device_scale, t, high, low};
    for (size_t i = 0; i < sizeof on_device / sizeof on_device[0]; i++)
        dev_free(on_device[i]);
    arena_free(arena);
}

/* No row's product with a unit vector is longer than the row: Cauchy and Schwarz. A hair more, for rounding. */
static double product_scale(const PcaInput *input) {
    double square = 0;
    for (int c = 0; c < input->x->width; c++)
        square += input->most[c] * input->most[c];
    int exponent;
    frexp(sqrt(square) * (1 + 0x1p-20), &exponent);
    return square > 0 ? ldexp(1, -exponent) : 0;
}

/* Best approximations in the basis; when that is full, it is replaced by the best of them. False if LAPACK fails. */
static bool find_ritz(Solver *s) {
    const int m = s->size, D = s->D, most = KEPT_BLOCKS * s->block, found = m < most ? m : most;
    k_dense_product(s->small, s->basis, s->image, true, m, m, D, 1, 0);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < i; j++) {
            double mean = 0.5 * (s->small[i * m + j] + s->small[j * m + i]);
            s->small[i * m + j] = s->small[j * m + i] = mean;
        }
    if (!k_eigen(s->values, s->coordinates, s->small, m, found))
        return false;
    k_dense_product(s->ritz, s->coordinates, s->basis, false, found, D, m, 1, 0);
    k_dense_product(s->ritz_image, s->coordinates, s->image, false, found, D, m, 1, 0);
    if (m + s->block > BASIS_BLOCKS * s->block) {
        memcpy(s->basis, s->ritz, (size_t)found * (size_t)D * sizeof(double));
        memcpy(s->image, s->ritz_image, (size_t)found * (size_t)D * sizeof(double));
        s->size = found;
    }
    for (int k = 0; k < s->block && k < found; k++)
        for (int c = 0; c < D; c++) {
            size_t at = (size_t)k * (size_t)D + (size_t)c;
            s->residual[at] = s->ritz_image[at] - s->values[k] * s->ritz[at];
        }
    return true;
}

static bool has_converged(const Solver *s, int found) {
    if (found < s->K)
        return false;
    for (int k = 0; k < s->K; k++) {
        const double *residual = s->residual + (size_t)k * (size_t)s->D;
        double norm = sqrt(pca_dot(residual, residual, s->D));
        if (norm > RESIDUAL_MOST * fmax(s->values[k], 0) + pca_noise(s->D) * s->values[0])
            return false;
    }
    return true;
}

/* vectors <- directions of the residuals that are not in the basis; their number, 0 when it holds all there is. */
static int next_block(Solver *s, double *vectors, int found) {
    const size_t D = (size_t)s->D;
    int count = 0;
    for (int k = 0; k < s->block && k < found; k++) {
        const double *residual = s->residual + (size_t)k * D;
        double norm = sqrt(pca_dot(residual, residual, s->D));
        if (norm <= 1e-14 * s->values[0])
            continue;
        for (size_t c = 0; c < D; c++)
            vectors[(size_t)count * D + c] = residual[c] / norm;
        count++;
    }
    return orthonormalise(vectors, count, s);
}

/* Against the basis and each other, twice; unit vectors of which less than 1e-8 is left are dropped. */
static int orthonormalise(double *vectors, int count, const Solver *s) {
    const size_t D = (size_t)s->D;
    for (int pass = 0; pass < 2; pass++) {
        if (s->size > 0 && count > 0) {
            k_dense_product(s->small, vectors, s->basis, true, count, s->size, s->D, 1, 0);
            k_dense_product(vectors, s->small, s->basis, false, count, s->D, s->size, -1, 1);
        }
        int kept = 0;
        for (int i = 0; i < count; i++) {
            double *v = vectors + (size_t)kept * D;
            if (kept < i)
                memcpy(v, vectors + (size_t)i * D, D * sizeof *v);
            for (int j = 0; j < kept; j++) {
                const double *other = vectors + (size_t)j * D;
                double share = pca_dot(v, other, s->D);
                for (size_t c = 0; c < D; c++)
                    v[c] -= share * other[c];
            }
            double norm = sqrt(pca_dot(v, v, s->D));
            if (norm < (pass == 0 ? 1e-8 : 0.5))
                continue;
            for (size_t c = 0; c < D; c++)
                v[c] /= norm;
            kept++;
        }
        count = kept;
    }
    return count;
}

/* Numbers in [-1, 1) from a counter (the mixing of SplitMix64, Steele et al. 2014), made unit vectors. */
static void start_block(double *vectors, int count, int D) {
    for (int k = 0; k < count; k++) {
        double *v = vectors + (size_t)k * (size_t)D;
        for (int c = 0; c < D; c++) {
            uint64_t z = ((uint64_t)k << 32 | (uint64_t)c) * 0x9e3779b97f4a7c15u + 0x9e3779b97f4a7c15u;
            z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
            z = (z ^ z >> 27) * 0x94d049bb133111ebu;
            v[c] = (double)(int64_t)(z ^ z >> 31) * 0x1p-63;
        }
        double norm = sqrt(pca_dot(v, v, D));
        for (int c = 0; c < D; c++)
            v[c] /= norm;
    }
}
