/* test_neighbors.c: nearest points and how many are nearer, against double precision: on whole numbers, where distances
 * are exact and most are ties, with ==; on others by their distances. At every level of instructions. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device.h"
#include "ref.h"

static const char *program;

typedef struct {
    int N, D, K, A;
    int first, rows; /* this rank's */
    int piece;       /* columns at a time, of which the last come first */
    bool whole;      /* coordinates are whole numbers from -3 to 3 */
} Case;

static const Case cases[] = {
    {1, 1, 0, 1, 0, 1, 1, true},           {2, 1, 1, 1, 0, 2, 2, true},        {5, 3, 4, 2, 0, 5, 5, true},
    {16, 2, 15, 3, 0, 16, 16, true},       {17, 2, 3, 5, 16, 1, 9, true},      {100, 2, 15, 30, 24, 61, 33, true},
    {203, 10, 7, 4, 8, 150, 64, true},     {203, 10, 7, 4, 8, 150, 64, false}, {90, 65, 5, 3, 0, 90, 90, false},
    {150, 300, 20, 15, 7, 120, 48, false}, {130, 129, 1, 0, 3, 100, 31, true}, {333, 3, 0, 12, 0, 333, 100, true},
};

static void *host_new(size_t count, size_t bytes) {
    void *memory = calloc(count ? count : 1, bytes);
    assert_non_null(memory);
    return memory;
}

static void take(void *host, void *device, size_t bytes) {
    dev_download(host, device, bytes);
    dev_free(device);
}

static int place_in_list(int i, int k, int count) {
    return (i / TSNE_BLOCK * count + k) * TSNE_BLOCK + i % TSNE_BLOCK;
}

typedef struct {
    int32_t *index, *asked, *nearer; /* host (blocks, .., 16) */
    float *distance, *asked_distance;
} Found;

/* Asked for are points all over, some of them twice, one not at all, and in a sample's own row itself. */
static Found find(const Case *c, const float *x, float scale) {
    const int blocks = (c->rows + TSNE_BLOCK - 1) / TSNE_BLOCK;
    const size_t lists = (size_t)blocks * c->K * TSNE_BLOCK, questions = (size_t)blocks * c->A * TSNE_BLOCK;
    Found f = {host_new(lists, 4), host_new(questions, 4), host_new(questions, 4), host_new(lists, 4),
               host_new(questions, 4)};
    for (size_t i = 0; i < lists; i++) {
        f.index[i] = INT32_MAX;
        f.distance[i] = NEIGHBOR_NONE;
    }
    for (size_t i = 0; i < questions; i++)
        f.asked[i] = i % 7 == 3 ? -1 : (int32_t)((i * 7919 + i / 16) % (size_t)c->N);
    const size_t block_bytes = (size_t)c->D * TSNE_BLOCK * 4;
    float *own = device_new(x + c->first * c->D, (size_t)(c->rows * c->D) * 4),
          *packed = device_new(NULL, blocks * block_bytes);
    int32_t *index = device_new(f.index, lists * 4), *asked = device_new(f.asked, questions * 4);
    int32_t *nearer = device_new(f.nearer, questions * 4);
    float *distance = device_new(f.distance, lists * 4), *asked_distance = device_new(f.asked_distance, questions * 4);
    k_tsne_pack(packed, own, c->rows, c->D, scale);
    float *piece = device_new(NULL, (size_t)(c->piece * c->D) * 4);
    float *piece_packed = device_new(NULL, (size_t)(c->piece + TSNE_BLOCK) / TSNE_BLOCK * block_bytes);
    for (int pass = 0; pass < 2; pass++)
        for (int from = (c->N - 1) / c->piece * c->piece; from >= 0; from -= c->piece) {
            const int columns = c->N - from < c->piece ? c->N - from : c->piece;
            const NeighborShape shape = {c->rows, c->first, columns, from, c->D};
            dev_upload(piece, x + from * c->D, (size_t)(columns * c->D) * 4);
            k_tsne_pack(piece_packed, piece, columns, c->D, scale);
            if (pass == 0)
                k_neighbors_measure(asked_distance, asked, c->A, own, piece, &shape, scale);
            else
                k_neighbors_find(index, distance, c->K, nearer, asked, asked_distance, c->A, packed, piece_packed,
                                 &shape);
        }
    take(f.index, index, lists * 4);
    take(f.distance, distance, lists * 4);
    take(f.nearer, nearer, questions * 4);
    take(f.asked_distance, asked_distance, questions * 4);
    dev_free(asked);
    dev_free(own);
    dev_free(packed);
    dev_free(piece);
    dev_free(piece_packed);
    return f;
}

static void free_found(Found *f) {
    free(f->index);
    free(f->asked);
    free(f->nearer);
    free(f->distance);
    free(f->asked_distance);
}

static void check(const Case *c, const Found *f, const double *distance, const int32_t *place, double scale) {
    for (int r = 0; r < c->rows; r++) {
        const int i = c->first + r;
        for (int k = 0; k < c->K; k++) {
            const int at = place_in_list(r, k, c->K), j = f->index[at];
            assert_in_range(j, 0, c->N - 1);
            assert_int_not_equal(j, i);
            const double truth = distance[i * c->N + j] * scale * scale;
            if (c->whole)
                assert_int_equal(place[i * c->N + j], k);
            assert_true(fabs((double)f->distance[at] - truth) <= (c->whole ? 0 : 1e-6 * truth));
            const int before = place_in_list(r, k - 1, c->K);
            assert_true(k == 0 || f->distance[before] < f->distance[at] ||
                        (f->distance[before] == f->distance[at] && f->index[before] < j));
            assert_true(c->whole || abs(place[i * c->N + j] - k) <= 1); /* float32 may swap two */
        }
        for (int a = 0; a < c->A; a++) {
            const int at = place_in_list(r, a, c->A), j = f->asked[at];
            if (j < 0)
                continue;
            const double truth = distance[i * c->N + j] * scale * scale;
            assert_true(fabs((double)f->asked_distance[at] - truth) <= (c->whole ? 0 : 1e-6 * truth));
            if (j == i) /* nobody is nearer than a point to itself, but those that lie on it */
                continue;
            assert_true(abs(f->nearer[at] - place[i * c->N + j]) <= (c->whole ? 0 : 1));
            for (int k = 0; k < c->K; k++) /* the same bits, and the same place */
                if (f->index[place_in_list(r, k, c->K)] == j) {
                    assert_true(f->distance[place_in_list(r, k, c->K)] == f->asked_distance[at]);
                    assert_int_equal(f->nearer[at], k);
                }
        }
    }
}

static void test_find(void **state) {
    (void)state;
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
        const Case *c = &cases[n];
        uint64_t random = n;
        float *x = host_new((size_t)(c->N * c->D), sizeof *x);
        double *distance = host_new((size_t)(c->N * c->N), sizeof *distance);
        int32_t *place = host_new((size_t)(c->N * c->N), sizeof *place);
        for (int i = 0; i < c->N * c->D; i++) {
            const double value = ref_uniform(&random) * 3;
            x[i] = (float)(c->whole ? round(value) : value) * 0x1p-7f;
        }
        ref_neighbors(distance, place, x, c->N, c->D);
        Found f = find(c, x, 0x1p6f);
        check(c, &f, distance, place, 0x1p6);
        free_found(&f);
        free(x);
        free(distance);
        free(place);
    }
}

/* AVX-512, AVX2 and no vectors, where the processor has them; a process can be brought to one level only. */
static void test_every_level(void **state) {
    (void)state;
    for (int level = 0; level <= 3; level++) {
        char command[4096];
        snprintf(command, sizeof command, "%s %d >/dev/null 2>&1", program, level);
        assert_int_equal(system(command), 0);
    }
}

/* test_neighbors [LEVEL]: with a level of instructions only test_find. */
int main(int argc, char **argv) {
    program = argv[0];
    dev_start(0, 2);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_find), cmocka_unit_test(test_every_level)};
    const struct CMUnitTest only[] = {cmocka_unit_test(test_find)};
    if (argc > 1) {
        dev_limit_isa(atoi(argv[1]));
        return cmocka_run_group_tests(only, NULL, NULL);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
