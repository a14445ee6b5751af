/* test_inner.c: the innermost loops of t-SNE's forces, both ways of computing them (cpu_divides), whatever way this
 * processor takes: against plain loops in double precision; columns that are not asked for stay as they are; and the same
 * bits at every level of instructions.
 *
 *     test_inner [LEVEL]     with a level only that one, and what it found */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../kernels/cpu/tsne_inner.h"

enum { COLUMNS = TSNE_TILE / TSNE_BLOCK, ROWS = TSNE_GROUP, LANES = TSNE_BLOCK, AXES = 3 };

static uint64_t state = 1, hash = 14695981039346656037u;

static uint32_t draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static void add_to_hash(const float *values, size_t count) {
    for (size_t i = 0; i < count * sizeof *values; i++)
        hash = (hash ^ ((const unsigned char *)values)[i]) * 1099511628211u;
}

/* Places as the loops want them: rows (ROWS, A, 16), columns (COLUMNS, A, TSNE_WINDOW), each twice. */
typedef struct {
    int A;
    float rows[ROWS * AXES * LANES], columns[COLUMNS * AXES * TSNE_WINDOW];
} Places;

static void place_all(Places *p, int A) {
    p->A = A;
    for (int i = 0; i < ROWS * A * LANES; i++)
        p->rows[i] = (float)(draw() % 20001) / 1000 - 10;
    for (int v = 0; v < COLUMNS * A; v++)
        for (int l = 0; l < LANES; l++)
            p->columns[v * TSNE_WINDOW + l] = p->columns[v * TSNE_WINDOW + LANES + l] =
                (float)(draw() % 20001) / 1000 - 10;
}

/* Of row lane l of block r and the column that diagonal s of block c pairs with it. */
static double difference(const Places *p, int r, int c, int s, int l, int a) {
    return (double)p->rows[(r * p->A + a) * LANES + l] - p->columns[(c * p->A + a) * TSNE_WINDOW + (l + s) % LANES];
}

static double weight(const Places *p, int r, int c, int s, int l) {
    double square = 0;
    for (int a = 0; a < p->A; a++)
        square += difference(p, r, c, s, l, a) * difference(p, r, c, s, l, a);
    return p->A == 2 ? 1 / (1 + square) : pow(1 + square / 2, -1.5);
}

/* Relative to the largest of all. */
static void check(const float *got, const double *truth, int count, double tolerance) {
    double most = 0, worst = 0;
    for (int i = 0; i < count; i++) {
        most = fmax(most, fabs(truth[i]));
        worst = fmax(worst, fabs((double)got[i] - truth[i]));
    }
    assert_true(most > 0 && worst <= tolerance * most);
}

static void check_repulsion(const Places *p, const uint8_t *columns, int count, bool masked, bool keep, bool divides) {
    enum { UNTOUCHED = 7 };
    static float mask[ROWS][TSNE_CELL], w[COLUMNS * TSNE_COLUMN_CELLS];
    static double fj_true[COLUMNS * AXES * LANES];
    double fi_true[ROWS * AXES * LANES] = {0}, z_true = 0, z = 0;
    float fi[ROWS * AXES * LANES] = {0}, zi[LANES] = {0}, fj[COLUMNS * AXES * TSNE_WINDOW] = {0};
    float folded[COLUMNS * AXES * LANES];
    const int A = p->A;
    memset(fj_true, 0, sizeof fj_true);
    for (size_t i = 0; i < sizeof w / sizeof *w; i++)
        w[i] = UNTOUCHED;
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < TSNE_CELL; i++)
            mask[r][i] = draw() % 3 > 0;
    const float *masks[COLUMNS][ROWS];
    for (int k = 0; k < count; k++)
        for (int r = 0; r < ROWS; r++)
            masks[k][r] = mask[(r + k) % ROWS];
    TsneAhead ahead = {mask[0], mask[0]};
    tsne_inner()->map[A - 2].repel[divides](fi, zi, fj, keep ? w : NULL, p->rows, p->columns, columns, count,
                                            masked ? masks[0] : NULL, &ahead);
    bool asked[COLUMNS] = {false};
    for (int k = 0; k < count; k++) {
        const int c = columns[k];
        asked[c] = true;
        for (int r = 0; r < ROWS; r++)
            for (int s = 0; s < LANES; s++)
                for (int l = 0; l < LANES; l++) {
                    double true_w = weight(p, r, c, s, l) * (masked ? (double)masks[k][r][s * LANES + l] : 1);
                    const float kept = w[c * TSNE_COLUMN_CELLS + r * TSNE_CELL + s * LANES + l];
                    assert_true(fabs((double)kept - (keep ? true_w : UNTOUCHED)) <= 1e-6 * true_w);
                    z_true += true_w;
                    for (int a = 0; a < A; a++) {
                        const double force = true_w * true_w * difference(p, r, c, s, l, a);
                        fi_true[(r * A + a) * LANES + l] += force;
                        fj_true[(c * A + a) * LANES + (l + s) % LANES] -= force;
                    }
                }
    }
    for (int c = 0; c < COLUMNS; c++)
        for (int i = 0; i < A * LANES; i++) {
            const float *two = fj + (c * A + i / LANES) * TSNE_WINDOW + i % LANES;
            folded[c * A * LANES + i] = two[0] + two[LANES];
            assert_true(asked[c] || (two[0] == 0 && two[LANES] == 0 && w[c * TSNE_COLUMN_CELLS] == UNTOUCHED));
        }
    for (int l = 0; l < LANES; l++)
        z += (double)zi[l];
    assert_true(fabs(z - z_true) <= 1e-6 * z_true);
    check(fi, fi_true, ROWS * A * LANES, 2e-6);
    check(folded, fj_true, COLUMNS * A * LANES, 2e-6);
    add_to_hash(fi, (size_t)(ROWS * A * LANES));
    add_to_hash(folded, (size_t)(COLUMNS * A * LANES));
    add_to_hash(zi, LANES);
}

static void test_repulsion(void **unused) {
    (void)unused;
    static const uint8_t all[COLUMNS] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                         16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
    static const uint8_t some[] = {31, 2, 3, 5, 8, 13, 21, 22, 30};
    static Places p;
    for (int A = 2; A <= AXES; A++)
        for (int divides = 0; divides < 2; divides++) {
            place_all(&p, A);
            check_repulsion(&p, all, COLUMNS, false, false, divides);
            check_repulsion(&p, some, 9, false, true, divides);
            check_repulsion(&p, some, 9, true, true, divides);
            check_repulsion(&p, some + 2, 1, true, false, divides);
        }
}

/* Cells of P, of random fill: none, few, all of a column's rows, so that they are taken in twos and alone. */
static void check_attraction(const Places *p, bool with_cross, bool divides) {
    enum { CELLS = COLUMNS * ROWS };
    static TsneCell cell[CELLS];
    static float value[CELLS * TSNE_CELL + LANES], w[COLUMNS * TSNE_COLUMN_CELLS];
    static double fj_true[COLUMNS * AXES * LANES];
    double fi_true[ROWS * AXES * LANES] = {0}, cross_true = 0;
    float fi[ROWS * AXES * LANES] = {0}, fj[COLUMNS * AXES * LANES] = {0};
    const int A = p->A;
    int cells = 0, values = 0;
    memset(fj_true, 0, sizeof fj_true);
    memset(cell, 0, sizeof cell);
    for (int c = 0; c < COLUMNS; c++)
        for (int r = 0; r < ROWS; r++) {
            const uint32_t fill = c % 4 == 3 ? 0 : draw() % 101;
            if (c % 4 == 2 && r % 2)
                continue;
            cell[cells].row = (uint8_t)(3 * TSNE_GROUP + r);
            cell[cells].column = (uint8_t)c;
            const int before = values;
            for (int s = 0; s < LANES; s++)
                for (int l = 0; l < LANES; l++) {
                    const double true_w = weight(p, r, c, s, l);
                    w[c * TSNE_COLUMN_CELLS + r * TSNE_CELL + s * LANES + l] = (float)true_w;
                    if (draw() % 100 >= fill)
                        continue;
                    cell[cells].mask[s] |= (uint16_t)(1u << l);
                    const double share = (double)(value[values++] = 1e-6f * (float)(1 + draw() % 1000));
                    cross_true -= share * log(true_w);
                    for (int a = 0; a < A; a++) {
                        double force = share * true_w * difference(p, r, c, s, l, a);
                        fi_true[(r * A + a) * LANES + l] += force;
                        fj_true[(c * A + a) * LANES + (l + s) % LANES] -= force;
                    }
                }
            cells += values > before;
        }
    const float *next = value;
    TsneAhead ahead = {value, value + values};
    const double cross = tsne_inner()->map[A - 2].attract[divides](fi, fj, cell, cells, &next, w, p->rows, p->columns,
                                                                   with_cross, &ahead);
    assert_ptr_equal(next, value + values);
    assert_true(fabs(cross - (with_cross ? cross_true : 0)) <= 1e-6 * cross_true);
    check(fi, fi_true, ROWS * A * LANES, 2e-6);
    check(fj, fj_true, COLUMNS * A * LANES, 2e-6);
    add_to_hash(fi, (size_t)(ROWS * A * LANES));
    add_to_hash(fj, (size_t)(COLUMNS * A * LANES));
}

static void test_attraction(void **unused) {
    (void)unused;
    static Places p;
    for (int A = 2; A <= AXES; A++)
        for (int way = 0; way < 4; way++) {
            place_all(&p, A);
            check_attraction(&p, way & 1, way & 2);
        }
}

static const char *program;

static void test_every_level(void **unused) {
    (void)unused;
    char first[64] = "";
    for (int level = 3; level >= 0; level--) {
        char command[4096], line[256], found[64] = "";
        snprintf(command, sizeof command, "%s %d 2>&1", program, level);
        FILE *child = popen(command, "r");
        assert_non_null(child);
        while (fgets(line, sizeof line, child))
            sscanf(line, "found %63s", found);
        assert_int_equal(pclose(child), 0);
        assert_true(found[0]);
        if (level == 3)
            memcpy(first, found, sizeof first);
        assert_string_equal(first, found);
    }
}

int main(int argc, char **argv) {
    program = argv[0];
    dev_start(0, 1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_repulsion), cmocka_unit_test(test_attraction),
                                       cmocka_unit_test(test_every_level)};
    if (argc == 1)
        return cmocka_run_group_tests(tests, NULL, NULL);
    dev_limit_isa(atoi(argv[1]));
    const struct CMUnitTest of_one[] = {tests[0], tests[1]};
    const int failed = cmocka_run_group_tests(of_one, NULL, NULL);
    printf("found %016llx\n", (unsigned long long)hash);
    return failed;
}
