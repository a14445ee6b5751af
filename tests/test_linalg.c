/* test_linalg.c: the sums and products of PCA, on the device, against plain loops of 64-bit integers: equal, so that the
 * CPU, CUDA, and any dealing of rows give the same; and projections, which no row's company changes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

static uint64_t random_state = 1;

static double uniform(void) { /* -1 to 1; splitmix64 */
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-52 - 1;
}

static void *need(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    assert_non_null(memory);
    return memory;
}

/* Columns of very different sizes, the second without content; t likewise. */
typedef struct {
    int64_t rows;
    int width, columns;
    float *x;                             /* (rows, width) */
    double *t, *center, *scale, *t_scale; /* (rows, columns), (width), (width), (columns) */
    float *on_x;                          /* of the device, and so on */
    double *on_t, *on_center, *on_scale, *on_t_scale;
} Data;

static double power_below(double most) { /* of two, its inverse at least `most` */
    return most > 0 ? ldexp(1, -ilogb(most) - 1) : 0;
}

static Data data_new(int64_t rows, int width, int columns) {
    Data d = {.rows = rows, .width = width, .columns = columns};
    const size_t in = (size_t)(rows * width), out = (size_t)(rows * columns);
    d.x = need(in, sizeof *d.x);
    d.t = need(out, sizeof *d.t);
    d.center = need((size_t)width, sizeof *d.center);
    d.scale = need((size_t)width, sizeof *d.scale);
    d.t_scale = need((size_t)columns, sizeof *d.t_scale);
    for (int c = 0; c < width; c++) {
        const double size = exp2(c % 40 - 20);
        double most = 0;
        d.center[c] = size * uniform();
        for (int64_t r = 0; r < rows; r++) {
            d.x[r * width + c] = (float)(size * uniform());
            most = fmax(most, fabs((double)d.x[r * width + c] - d.center[c]));
        }
        d.scale[c] = c == 1 ? 0 : power_below(most);
    }
    for (int c = 0; c < columns; c++) {
        for (int64_t r = 0; r < rows; r++)
            d.t[r * columns + c] = (c + 1) * uniform();
        d.t_scale[c] = power_below(c + 1);
    }
    d.on_x = device_new(d.x, in * sizeof *d.x);
    d.on_t = device_new(d.t, out * sizeof *d.t);
    d.on_center = device_new(d.center, (size_t)width * sizeof *d.center);
    d.on_scale = device_new(d.scale, (size_t)width * sizeof *d.scale);
    d.on_t_scale = device_new(d.t_scale, (size_t)columns * sizeof *d.t_scale);
    return d;
}

static void data_free(Data *d) {
    free(d->x), free(d->t), free(d->center), free(d->scale), free(d->t_scale);
    dev_free(d->on_x), dev_free(d->on_t), dev_free(d->on_center), dev_free(d->on_scale), dev_free(d->on_t_scale);
}

static void check_integers(const char *what, const void *device, const int64_t *expected, int64_t count) {
    int64_t *found = need((size_t)count, sizeof *found);
    dev_download(found, device, (size_t)count * sizeof *found);
    for (int64_t i = 0; i < count; i++)
        if (found[i] != expected[i])
            fail_msg("%s: number %lld is %lld, expected %lld", what, (long long)i, (long long)found[i],
                     (long long)expected[i]);
    free(found);
}

/* 1 row, rows of one block and of several, columns that fill no tile. */
static const struct {
    int64_t rows;
    int width, columns;
} shapes[] = {{1, 1, 1}, {3, 5, 2}, {257, 130, 17}, {9000, 40, 3}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* ---- Columns ---------------------------------------------------------------------------------------------------- */

static void test_columns(void **state) {
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        Data d = data_new(shapes[s].rows, shapes[s].width, shapes[s].columns);
        const int bits = 40;
        double *most = need((size_t)d.width, sizeof *most), *on_most = device_new(NULL, (size_t)d.width * sizeof *most);
        int64_t *sums = need((size_t)d.width, sizeof *sums),
                *on_sums = device_new(NULL, (size_t)d.width * sizeof *sums);
        for (int variant = 0; variant < 4; variant++) {
            const bool centred = variant % 2;
            const int power = 1 + variant / 2;
            k_column_most(on_most, d.on_x, d.rows, d.width, centred ? d.on_center : NULL);
            k_column_sums(on_sums, d.on_x, d.rows, d.width, centred ? d.on_center : NULL, d.on_scale, power, bits);
            dev_download(most, on_most, (size_t)d.width * sizeof *most);
            for (int c = 0; c < d.width; c++) {
                double largest = 0;
                sums[c] = 0;
                for (int64_t r = 0; r < d.rows; r++) {
                    const double x = (double)d.x[r * d.width + c] - (centred ? d.center[c] : 0), v = x * d.scale[c];
                    largest = fmax(largest, fabs(x));
                    sums[c] += llrint((power == 2 ? v * v : v) * 0x1p40);
                }
                assert_true(most[c] == largest);
            }
            check_integers("column sums", on_sums, sums, d.width);
        }
        const float nan = NAN; /* stays, wherever it is */
        dev_upload(d.on_x + (d.rows - 1) * d.width, &nan, sizeof nan);
        k_column_most(on_most, d.on_x, d.rows, d.width, NULL);
        dev_download(most, on_most, (size_t)d.width * sizeof *most);
        assert_true(isnan(most[0]) && (d.width == 1 || !isnan(most[1])));
        k_column_most(on_most, d.on_x, 0, d.width, NULL); /* a rank without rows */
        dev_download(most, on_most, (size_t)d.width * sizeof *most);
        assert_true(most[d.width - 1] == 0);
        free(most), free(sums), dev_free(on_most), dev_free(on_sums);
        data_free(&d);
    }
}

/* ---- Products --------------------------------------------------------------------------------------------------- */

/* v = (high + low 2^-bits) 2^-bits, both whole numbers. */
static void cut(int64_t *high, int64_t *low, double v, int bits) {
    const double whole = rint(ldexp(v, bits));
    *high = (int64_t)whole;
    *low = (int64_t)rint(ldexp(ldexp(v, bits) - whole, bits));
}

/* high, low (width, columns) of rows [from, to): against t, or (t NULL) against x itself. */
static void plain_products(int64_t *high, int64_t *low, const Data *d, bool with_t, int bits) {
    const int columns = with_t ? d->columns : d->width;
    int64_t *a = need((size_t)d->width * 2, sizeof *a), *b = need((size_t)columns * 2, sizeof *b);
    memset(high, 0, (size_t)d->width * (size_t)columns * sizeof *high);
    memset(low, 0, (size_t)d->width * (size_t)columns * sizeof *low);
    for (int64_t r = 0; r < d->rows; r++) {
        for (int c = 0; c < d->width; c++)
            cut(&a[2 * c], &a[2 * c + 1], ((double)d->x[r * d->width + c] - d->center[c]) * d->scale[c], bits);
        for (int c = 0; with_t && c < columns; c++)
            cut(&b[2 * c], &b[2 * c + 1], d->t[r * columns + c] * d->t_scale[c], bits);
        const int64_t *other = with_t ? b : a;
        for (int i = 0; i < d->width; i++)
            for (int j = 0; j < columns; j++) {
                high[i * columns + j] += a[2 * i] * other[2 * j];
                low[i * columns + j] += a[2 * i] * other[2 * j + 1] + a[2 * i + 1] * other[2 * j];
            }
    }
    free(a), free(b);
}

static void test_products(void **state) {
    (void)state;
    static const int all_bits[] = {22, 9};
    for (int s = 0; s < 2 * SHAPES; s++) {
        Data d = data_new(shapes[s / 2].rows, shapes[s / 2].width, shapes[s / 2].columns);
        const int bits = all_bits[s % 2];
        for (int with_t = 0; with_t < 2; with_t++) {
            const int columns = with_t ? d.columns : d.width;
            const size_t count = (size_t)d.width * (size_t)columns, bytes = count * sizeof(int64_t);
            int64_t *high = need(count, sizeof *high), *low = need(count, sizeof *low);
            int64_t *on_high = device_new(NULL, bytes), *on_low = device_new(NULL, bytes);
            void *scratch = dev_alloc(k_covariance_scratch());
            if (with_t)
                k_back_project(on_high, on_low, d.on_x, d.rows, d.width, d.on_center, d.on_scale, d.on_t, columns,
                               d.on_t_scale, bits, scratch);
            else
                k_covariance(on_high, on_low, d.on_x, d.rows, d.width, d.on_center, d.on_scale, bits, scratch);
            plain_products(high, low, &d, with_t, bits);
            check_integers(with_t ? "back projection, high" : "covariance, high", on_high, high, (int64_t)count);
            check_integers(with_t ? "back projection, low" : "covariance, low", on_low, low, (int64_t)count);
            free(high), free(low), dev_free(on_high), dev_free(on_low), dev_free(scratch);
        }
        data_free(&d);
    }
}

/* ---- Projection ------------------------------------------------------------------------------------------------- */

/* Rows give the same bits wherever they lie, and whatever their company. */
static void test_project(void **state) {
    (void)state;
    enum { ROWS = 300, D = 1037, K = 19 };
    Data d = data_new(ROWS, D, 1);
    double *axes = need(K * D, sizeof *axes), *together = need(ROWS * K, sizeof *together), alone[K];
    for (int i = 0; i < K * D; i++)
        axes[i] = uniform();
    double *on_axes = device_new(axes, K * D * sizeof *axes), *on_t = device_new(NULL, ROWS * K * sizeof *axes);
    float *on_rounded = device_new(NULL, ROWS * K * sizeof(float)), *rounded = need(ROWS * K, sizeof *rounded);
    k_project(on_t, d.on_x, ROWS, D, d.on_center, on_axes, K);
    k_round(on_rounded, on_t, ROWS * K);
    dev_download(together, on_t, ROWS * K * sizeof *together);
    dev_download(rounded, on_rounded, ROWS * K * sizeof *rounded);
    for (int r = 0; r < ROWS; r += 23) {
        k_project(on_t, d.on_x + r * D, 1, D, d.on_center, on_axes, K);
        dev_download(alone, on_t, sizeof alone);
        assert_memory_equal(alone, together + r * K, sizeof alone);
        for (int k = 0; k < K; k++) {
            double sum = 0, size = 0;
            for (int c = 0; c < D; c++) {
                sum += ((double)d.x[r * D + c] - d.center[c]) * axes[k * D + c];
                size += fabs(((double)d.x[r * D + c] - d.center[c]) * axes[k * D + c]);
            }
            assert_true(fabs(sum - alone[k]) <= 1e-14 * size);
            assert_true(rounded[r * K + k] == (float)alone[k]);
        }
    }
    free(axes), free(together), free(rounded), dev_free(on_axes), dev_free(on_t), dev_free(on_rounded);
    data_free(&d);
}

int main(void) {
    dev_start(0, 2);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_project),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
