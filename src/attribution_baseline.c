/* attribution_baseline.c: what an image is compared with, and the points between the two. See attribution.h.
 *
 * The mean image is over all samples of the job: a second reading of this rank's images, a third where pixels are no
 * small whole numbers. Pixels are added as whole numbers, those of other types in units of a 2^-30th of the largest: the
 * same bits for any number of ranks. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attribution.h"
#include "comm.h"
#include "error.h"
#include "watchdog.h"

static const size_t READ_BYTES = 16 << 20;

/* ---- Baselines -------------------------------------------------------------------------------------------------- */

/* f(context, pixel, value) of every pixel of this rank's images. */
typedef void Look(void *context, int64_t pixel, float value);

static void look_at_images(const Job *job, Look *look, void *context) {
    const int64_t size = dataset_row_size(job->images);
    const size_t row = (size_t)size * dtype_bytes(job->images->dtype);
    const int64_t most = READ_BYTES > row ? (int64_t)(READ_BYTES / row) : 1;
    Arena *arena = arena_new();
    char *raw = arena_alloc(arena, (uint64_t)most, row, "images");
    float *values = ARENA_ARRAY(arena, float, most *size, "images");
    for (int64_t done = 0, n; done < job->shard.count; done += n) {
        n = job->shard.count - done < most ? job->shard.count - done : most;
        dataset_read(job->images, raw, job->from + job->shard.first + done, n);
        dataset_to_float(values, raw, job->images->dtype, n * size);
        for (int64_t i = 0; i < n * size; i++)
            look(context, i % size, values[i]);
        watchdog_tick();
    }
    arena_free(arena);
}

typedef struct {
    double most, unit;
    int64_t *sums;
} Mean;

static void look_for_most(void *context, int64_t pixel, float value) {
    Mean *mean = context;
    (void)pixel;
    mean->most = fmax(mean->most, fabs((double)value));
}

static void add_pixel(void *context, int64_t pixel, float value) {
    const Mean *mean = context;
    mean->sums[pixel] += llrint((double)value / mean->unit);
}

/* Collective. In the order of the images' pixels. */
static void mean_image(double *pixels, Arena *arena, const Job *job) {
    const int64_t size = dataset_row_size(job->images);
    static Mean mean; /* static: it keeps its values over error_caught() */
    const DType type = job->images->dtype;
    const bool small = type == DT_U8 || type == DT_I8 || type == DT_U16 || type == DT_I16;
    mean = (Mean){.unit = 1, .sums = ARENA_ARRAY(arena, int64_t, size, "mean image")};
    if (!error_caught() && !small)
        look_at_images(job, look_for_most, &mean);
    comm_all_ok();
    comm_max(&mean.most, 1);
    if (!small)
        mean.unit = mean.most > 0 ? ldexp(1, ilogb(mean.most) - 30) : 1;
    if (!error_caught())
        look_at_images(job, add_pixel, &mean);
    comm_all_ok();
    comm_sum_int64(mean.sums, (size_t)size);
    for (int64_t i = 0; i < size; i++)
        pixels[i] = (double)mean.sums[i] * mean.unit / (double)job->shard.total;
}

static void file_image(double *pixels, Arena *arena, const Job *job) {
    const int64_t size = dataset_row_size(job->images);
    Dataset *file = dataset_open(arena, job->options->baseline);
    const int64_t found = file->shape[0] * dataset_row_size(file);
    if (found != size)
        die("%s: %lld values were found, expected one image of %lld, as those of %s", file->spec, (long long)found,
            (long long)size, job->images->spec);
    void *raw = arena_alloc(arena, (uint64_t)size, dtype_bytes(file->dtype), "baseline");
    float *values = ARENA_ARRAY(arena, float, size, "baseline");
    dataset_read(file, raw, 0, file->shape[0]);
    dataset_to_float(values, raw, file->dtype, size);
    for (int64_t i = 0; i < size; i++)
        pixels[i] = (double)values[i];
    dataset_close(file);
}

float *attribution_baseline(const Job *job, Lane *lane, int64_t size) {
    const char *what = job->options->baseline;
    Arena *arena = arena_new();
    double *pixels = dev_alloc_host((size_t)size * sizeof *pixels), value;
    PixelTransform transform = job->transform;
    transform.dtype = DT_F64;
    if (strcmp(what, "mean") == 0) {
        mean_image(pixels, arena, job);
    } else if (parse_double(what, &value)) {
        for (int64_t i = 0; i < size; i++)
            pixels[i] = value;
    } else if (strcmp(what, "zero") != 0) {
        if (!error_caught())
            file_image(pixels, arena, job);
        comm_all_ok();
    }
    float *baseline = dev_alloc((size_t)size * sizeof *baseline);
    if (strcmp(what, "zero") == 0)
        k_fill(lane, baseline, 0, size);
    else
        k_input(lane, baseline, pixels, &transform, 1, 1);
    lane_sync(lane);
    dev_free_host(pixels);
    arena_free(arena);
    return baseline;
}

/* ---- Points of the integral ------------------------------------------------------------------------------------- */

/* Gauss-Legendre: roots of the Legendre polynomial of degree n by Newton's method, symmetric about 1/2. */
static void gauss_legendre(double *points, double *weights, int n) {
    for (int i = 0; i < (n + 1) / 2; i++) {
        double x = cos(acos(-1.0) * (i + 0.75) / (n + 0.5)), slope = 1;
        for (int round = 0; round < 100; round++) {
            double p = 1, before = 0;
            for (int k = 1; k <= n; k++) {
                const double next = ((2 * k - 1) * x * p - (k - 1) * before) / k;
                before = p;
                p = next;
            }
            slope = n * (x * p - before) / (x * x - 1);
            const double step = p / slope;
            x -= step;
            if (fabs(step) < 1e-15)
                break;
        }
        points[i] = (1 - x) / 2;
        points[n - 1 - i] = (1 + x) / 2;
        weights[i] = weights[n - 1 - i] = 1 / ((1 - x * x) * slope * slope);
    }
}

void attribution_rule(double *points, double *weights, const char *rule, int n) {
    if (strcmp(rule, "gausslegendre") == 0) {
        gauss_legendre(points, weights, n);
        return;
    }
    const double at = strcmp(rule, "riemann_left") == 0 ? 0 : strcmp(rule, "riemann_right") == 0 ? 1 : 0.5;
    for (int i = 0; i < n; i++) {
        points[i] = (i + at) / n;
        weights[i] = 1.0 / n;
    }
}
