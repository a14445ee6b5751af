/* shared_tsne.h: what the t-SNE of the CPU and that of CUDA compute by the same lines: the numbering of pairs of tiles, and
 * a step of the search for a row's beta. */
#ifndef CNNSCOPE_SHARED_TSNE_H
#define CNNSCOPE_SHARED_TSNE_H

#include <stdbool.h>
#include <stdint.h>

#include "shared.h"

/* Distances no point has: of a point to itself, and of padding. */
#define TSNE_FAR 1e30f

enum { TSNE_TILE_BLOCKS = TSNE_TILE / TSNE_BLOCK };

ON_BOTH int64_t tsne_tile_count(int64_t points) {
    return (points + TSNE_TILE - 1) / TSNE_TILE;
}

/* The tiles of pair `number`, row <= column: those on the diagonal first, then those one off it, and so on: line `off`
 * begins at number off * tiles - off (off - 1) / 2. */
ON_BOTH void tsne_tile(int64_t *row, int64_t *column, int64_t points, int64_t number) {
    const int64_t tiles = tsne_tile_count(points);
    const double side = 2 * (double)tiles + 1;
    int64_t off = (int64_t)((side - sqrt(side * side - 8 * (double)number)) / 2); /* but for rounding */
    while (off > 0 && off * tiles - off * (off - 1) / 2 > number)
        off--;
    while ((off + 1) * tiles - (off + 1) * off / 2 <= number)
        off++;
    *row = number - (off * tiles - off * (off - 1) / 2);
    *column = *row + off;
}

/* ---- The search of one row ---------------------------------------------------------------------------------------- */

/* Passes at most; Newton's method takes 6 to 12. */
enum { TSNE_PASSES_MAX = 150 };

/* Entropy falls as beta grows; too_small and too_large enclose the answer. */
typedef struct {
    double beta, too_small, too_large;
    bool done;
} TsneSearch;

static const double TSNE_ENTROPY_TOLERANCE = 1e-6, TSNE_BETA_LEAST = 1e-20, TSNE_BETA_MOST = 1e30;

/* ln x for normal x > 0, the same bits with every libm: x = m 2^k, and the series of ln m in (m - 1) / (m + 1). */
ON_BOTH double tsne_log(double x) {
    int k;
    double m = frexp(x, &k);
    if (m < 0.70710678118654752) {
        m *= 2;
        k--;
    }
    double s = (m - 1) / (m + 1), power = s, sum = 0;
    for (int i = 1; i < 25; i += 2, power *= s * s)
        sum += power / i;
    return 2 * sum + k * 0.69314718055994531;
}

/* mean: of d - low over the other points; real: the row is that of a point. */
ON_BOTH TsneSearch tsne_search_begin(double mean, bool real) {
    const double start = real && mean > 0 ? 1 / mean : 1;
    TsneSearch search = {fmin(fmax(start, TSNE_BETA_LEAST), TSNE_BETA_MOST), 0, 0, !real};
    return search;
}

/* variance is that of t = beta (d - low): the entropy changes by minus it per unit of ln(beta). Where the perplexity is
 * out of reach (more ties at the least distance than that; or nearly N of it), beta ends at a bound. */
ON_BOTH void tsne_search_step(TsneSearch *search, double entropy, double wanted, double variance) {
    double excess = entropy - wanted;
    bool at_bound = excess > 0 ? search->beta >= TSNE_BETA_MOST : search->beta <= TSNE_BETA_LEAST;
    if (fabs(excess) <= TSNE_ENTROPY_TOLERANCE || at_bound) {
        search->done = true;
        return;
    }
    if (excess > 0)
        search->too_small = search->beta;
    else
        search->too_large = search->beta;
    double step = variance > 0 ? excess / variance : (excess > 0 ? 2 : -2);
    step = fmin(fmax(step, -2.0), 2.0);
    double factor = 1 + fabs(step) + 0.5 * step * step; /* near enough to e^|step| */
    double next = step > 0 ? search->beta * factor : search->beta / factor;
    bool below = next <= search->too_small, above = search->too_large > 0 && next >= search->too_large;
    if ((below || above) && search->too_small > 0 && search->too_large > 0)
        next = sqrt(search->too_small) * sqrt(search->too_large);
    search->beta = fmin(fmax(next, TSNE_BETA_LEAST), TSNE_BETA_MOST);
}

#endif
