/* sanity_alike.c: how much two maps are alike. See sanity.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sanity.h"

static int by_key(const void *a, const void *b) {
    const uint64_t *s = a, *t = b;
    return (*s > *t) - (*s < *t);
}

void sanity_view(float *rank, float *scaled, const float *map, int64_t pixels, uint64_t *keys) {
    float low = INFINITY, high = 0;
    bool finite = true;
    for (int64_t p = 0; p < pixels; p++) {
        const float magnitude = fabsf(map[p]);
        uint32_t bits; /* of numbers that are not negative: in their order */
        memcpy(&bits, &magnitude, sizeof bits);
        keys[p] = (uint64_t)bits << 32 | (uint64_t)p;
        finite &= isfinite(magnitude) != 0;
        low = fminf(low, magnitude);
        high = fmaxf(high, magnitude);
    }
    if (!finite || !(high > low)) {
        memset(rank, 0, (size_t)pixels * sizeof *rank);
        memset(scaled, 0, (size_t)pixels * sizeof *scaled);
        return;
    }
    qsort(keys, (size_t)pixels, sizeof *keys, by_key);
    for (int64_t from = 0, to; from < pixels; from = to) {
        for (to = from; to < pixels && keys[to] >> 32 == keys[from] >> 32; to++)
            ;
        for (int64_t i = from; i < to; i++)
            rank[(uint32_t)keys[i]] = (float)(from + to - 1) / 2;
    }
    for (int64_t p = 0; p < pixels; p++)
        scaled[p] = (fabsf(map[p]) - low) / (high - low);
}

double sanity_correlation(const float *a, const float *b, int64_t pixels) {
    const double mean = (double)(pixels - 1) / 2;
    double both = 0, first = 0, second = 0;
    if (a[0] == 0 && memcmp(a, a + 1, (size_t)(pixels - 1) * sizeof *a) == 0)
        return 0;
    if (b[0] == 0 && memcmp(b, b + 1, (size_t)(pixels - 1) * sizeof *b) == 0)
        return 0;
    for (int64_t p = 0; p < pixels; p++) {
        const double x = (double)a[p] - mean, y = (double)b[p] - mean;
        both += x * y;
        first += x * x;
        second += y * y;
    }
    return both / sqrt(first * second);
}

/* Of the window's values: means, variances, covariance. */
static double ssim_at(const float *a, const float *b, int W, int side) {
    const double n = (double)side * side, c1 = 0.01 * 0.01, c2 = 0.03 * 0.03;
    double mean_a = 0, mean_b = 0, var_a = 0, var_b = 0, both = 0;
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++) {
            const double u = (double)a[y * W + x], v = (double)b[y * W + x];
            mean_a += u;
            mean_b += v;
            var_a += u * u;
            var_b += v * v;
            both += u * v;
        }
    mean_a /= n;
    mean_b /= n;
    var_a = (var_a - n * mean_a * mean_a) / (n - 1);
    var_b = (var_b - n * mean_b * mean_b) / (n - 1);
    both = (both - n * mean_a * mean_b) / (n - 1);
    return (2 * mean_a * mean_b + c1) * (2 * both + c2) /
           ((mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2));
}

double sanity_ssim(const float *a, const float *b, int H, int W) {
    enum { WINDOW = 7 };
    int side = H < W ? H : W;
    side = side < WINDOW ? side - (side + 1) % 2 : WINDOW;
    if (side < 3)
        return NAN;
    double sum = 0;
    for (int y = 0; y + side <= H; y++)
        for (int x = 0; x + side <= W; x++)
            sum += ssim_at(a + y * W + x, b + y * W + x, W, side);
    return sum / ((double)(H - side + 1) * (W - side + 1));
}
