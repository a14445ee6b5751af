/* tsne_order.c: kd-order of points. See tsne_order.h.
 *
 * Blocks of 16 rows that are near each other share most of their columns in P, which is stored by block and column;
 * the map keeps neighbours together too. In the order of the file the blocks of P would be several times as many.
 * Every rank does this for itself: N D log2(N / 16) steps, 2 ms for 10,000 points in 10 dimensions. */
#include "tsne_order.h"

#include <stdbool.h>

enum { BLOCK = 16 };

typedef struct {
    const float *x;
    int width;
} Points;

static void split(int64_t *order, int64_t count, const Points *points);
static void sort_by_number(int64_t *order, int64_t count);
static int widest_dimension(const int64_t *order, int64_t count, const Points *points);
static void select_least(int64_t *order, int64_t count, int64_t least, const Points *points, int dimension);
static bool before(const Points *points, int dimension, int64_t a, int64_t b);

void tsne_order(int64_t *order, const float *x, int64_t points, int width) {
    for (int64_t i = 0; i < points; i++)
        order[i] = i;
    split(order, points, &(Points){x, width});
}

static void split(int64_t *order, int64_t count, const Points *points) {
    while (count > BLOCK) {
        int64_t blocks = (count + BLOCK - 1) / BLOCK, half = (blocks + 1) / 2 * BLOCK;
        select_least(order, count, half, points, widest_dimension(order, count, points));
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

/* The first of the widest. Dimensions go in pieces that fit on the stack, so that each row is read once. */
static int widest_dimension(const int64_t *order, int64_t count, const Points *points) {
    enum { PIECE = 256 };
    int widest = 0;
    float most = -1;
    for (int from = 0; from < points->width; from += PIECE) {
        int pieces = points->width - from < PIECE ? points->width - from : PIECE;
        float low[PIECE], high[PIECE];
        for (int64_t i = 0; i < count; i++) {
            const float *row = points->x + order[i] * points->width + from;
            for (int k = 0; k < pieces; k++) {
                low[k] = i && low[k] < row[k] ? low[k] : row[k];
                high[k] = i && high[k] > row[k] ? high[k] : row[k];
            }
        }
        for (int k = 0; k < pieces; k++)
            if (high[k] - low[k] > most) {
                most = high[k] - low[k];
                widest = from + k;
            }
    }
    return widest;
}

/* Hoare's selection: afterwards the first `least` are those that come before the rest. The pivot's place is drawn by a
 * fixed rule without pattern, so that no order of the input is a slow one. */
static void select_least(int64_t *order, int64_t count, int64_t least, const Points *points, int dimension) {
    int64_t low = 0, high = count - 1;
    uint64_t draw = (uint64_t)count;
    while (low < high) {
        draw = draw * 6364136223846793005u + 1442695040888963407u;
        int64_t pivot = order[low + (int64_t)((draw >> 33) % (uint64_t)(high - low + 1))];
        int64_t i = low, j = high;
        while (i <= j) {
            while (before(points, dimension, order[i], pivot))
                i++;
            while (before(points, dimension, pivot, order[j]))
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

static bool before(const Points *points, int dimension, int64_t a, int64_t b) {
    float x = points->x[a * points->width + dimension];
    float y = points->x[b * points->width + dimension];
    return x < y || (x == y && a < b);
}
