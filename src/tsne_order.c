/* tsne_order.c: an order of points by halving. See tsne_order.h.
 *
 * Blocks of 16 rows that are near each other share most of their columns in P, which is stored by block and column;
 * the map keeps neighbours together too. In the order of the file the blocks of P would be several times as many; in
 * halves across the widest dimension, and not the longest axis, a quarter more. Every rank does this for itself: about
 * 10 N D log2(N / 16) steps, 10 ms for 10,000 points in 10 dimensions. */
#include "tsne_order.h"

#include <math.h>
#include <stdbool.h>

#include "arena.h"

enum { BLOCK = 16, ROUNDS = 4, SAMPLE = 2048, SUMS = 8 };

typedef struct {
    const float *x;
    int width;
    float scale;
    float *place; /* (points): along the axis of the part they are in */
    float *axis, *next, *mean; /* (width): of length `scale`; the next axis; of the points times scale */
} Points;

static void split(int64_t *order, int64_t count, const Points *points);
static void sort_by_number(int64_t *order, int64_t count);
static void find_places(const int64_t *order, int64_t count, const Points *points);
static int widest_dimension(const Points *points);
static float dot(const float *a, const float *b, int width);
static void select_least(int64_t *order, int64_t count, int64_t least, const float *place);
static bool before(const float *place, int64_t a, int64_t b);

void tsne_order(int64_t *order, const float *x, int64_t count, int width, float scale) {
    Arena *arena = arena_new();
    const Points points = {.x = x,
                           .width = width,
                           .scale = scale,
                           .place = ARENA_ARRAY(arena, float, count, "order of points"),
                           .axis = ARENA_ARRAY(arena, float, width, "order of points"),
                           .next = ARENA_ARRAY(arena, float, width, "order of points"),
                           .mean = ARENA_ARRAY(arena, float, width, "order of points")};
    for (int64_t i = 0; i < count; i++)
        order[i] = i;
    split(order, count, &points);
    arena_free(arena);
}

static void split(int64_t *order, int64_t count, const Points *points) {
    while (count > BLOCK) {
        int64_t blocks = (count + BLOCK - 1) / BLOCK, half = (blocks + 1) / 2 * BLOCK;
        find_places(order, count, points);
        select_least(order, count, half, points->place);
        split(order, half, points);
        order += half;
        count -= half;
    }
    sort_by_number(order, count);
}

static void sort_by_number(int64_t *order, int64_t count) {
    for (int64_t i = 1; i < count; i++)
        for (int64_t j = i; j > 0 && order[j] < order[j - 1]; j--) {
            int64_t other = order[j];
            order[j] = order[j - 1];
            order[j - 1] = other;
        }
}

/* Places along the longest axis, nearly: a few rounds of the power method on the covariance of at most SAMPLE points,
 * from the dimension of largest variance. */
static void find_places(const int64_t *order, int64_t count, const Points *points) {
    const int width = points->width;
    const float scale = points->scale;
    const int64_t step = (count + SAMPLE - 1) / SAMPLE;
    float *axis = points->axis, *next = points->next, *mean = points->mean;
    for (int k = 0; k < width; k++)
        mean[k] = next[k] = 0;
    for (int64_t i = 0; i < count; i += step)
        for (int k = 0; k < width; k++)
            mean[k] += points->x[order[i] * width + k] * scale;
    for (int k = 0; k < width; k++)
        mean[k] /= (float)((count + step - 1) / step);
    for (int64_t i = 0; i < count; i += step)
        for (int k = 0; k < width; k++) {
            float difference = points->x[order[i] * width + k] * scale - mean[k];
            next[k] += difference * difference;
        }
    const int widest = widest_dimension(points);
    for (int k = 0; k < width; k++)
        axis[k] = k == widest ? scale : 0;
    for (int round = 0; round < ROUNDS && width > 1; round++) {
        const float center = dot(mean, axis, width) / scale;
        for (int k = 0; k < width; k++)
            next[k] = 0;
        for (int64_t i = 0; i < count; i += step) {
            const float *x = points->x + order[i] * width;
            const float along = dot(x, axis, width) - center;
            for (int k = 0; k < width; k++)
                next[k] += along * (x[k] * scale - mean[k]);
        }
        const float length = sqrtf(dot(next, next, width));
        if (!(length > 0))
            break;
        for (int k = 0; k < width; k++)
            axis[k] = next[k] / length * scale;
    }
    for (int64_t i = 0; i < count; i++) {
        points->place[order[i]] = dot(points->x + order[i] * width, axis, width);
    }
}

/* The first of those with the largest sum in `next`. */
static int widest_dimension(const Points *points) {
    int widest = 0;
    for (int k = 1; k < points->width; k++)
        if (points->next[k] > points->next[widest])
            widest = k;
    return widest;
}

/* In SUMS sums, for speed; one order for all. */
static float dot(const float *a, const float *b, int width) {
    float sum[SUMS] = {0}, rest = 0;
    int k = 0;
    for (; k + SUMS <= width; k += SUMS)
        for (int l = 0; l < SUMS; l++)
            sum[l] += a[k + l] * b[k + l];
    for (; k < width; k++)
        rest += a[k] * b[k];
    for (int l = 0; l < SUMS; l++)
        rest += sum[l];
    return rest;
}

/* Hoare's selection: afterwards the first `least` are those that come before the rest. The pivot's place is drawn by a
 * fixed rule without pattern, so that no order of the input is a slow one. */
static void select_least(int64_t *order, int64_t count, int64_t least, const float *place) {
    int64_t low = 0, high = count - 1;
    uint64_t draw = (uint64_t)count;
    while (low < high) {
        draw = draw * 6364136223846793005u + 1442695040888963407u;
        int64_t pivot = order[low + (int64_t)((draw >> 33) % (uint64_t)(high - low + 1))];
        int64_t i = low, j = high;
        while (i <= j) {
            while (before(place, order[i], pivot))
                i++;
            while (before(place, pivot, order[j]))
                j--;
            if (i <= j) {
                int64_t other = order[i];
                order[i++] = order[j];
                order[j--] = other;
            }
        }
        if (least <= j + 1)
            high = j;
        else if (least >= i)
            low = i;
        else
            return;
        if (least == j + 1 || least == i)
            return;
    }
}

static bool before(const float *place, int64_t a, int64_t b) {
    const float x = place[a], y = place[b];
    return x < y || (x == y && a < b);
}
