/* tsne_sizes.c: how many pairs of tiles and sums a t-SNE has, and in what units, in both builds. */
#include <math.h>

#include "shared_tsne.h"

int64_t k_tsne_tiles(int64_t points) {
    return tsne_tile_count(points) * (tsne_tile_count(points) + 1) / 2;
}

int64_t k_tsne_sums(const TsneShape *shape) {
    return shape->count * 2 * shape->axes * TSNE_BLOCK + TSNE_TOTALS;
}

/* ---- Units: powers of two that whole sums of N points stay below 2^62 of ------------------------------------------ */

/* A pair's force is below 0.37. */
double k_tsne_force_unit(int64_t points) {
    return ldexp(1.0, (int)ceil(log2((double)points + 1)) - 62);
}

/* A pair's w is at most 1. */
double k_tsne_w_unit(int64_t points) {
    return ldexp(1.0, (int)ceil(2 * log2((double)points + 1)) - 62);
}

/* A row's sum is at most N + 1. */
double k_tsne_kept_unit(int64_t points) {
    return ldexp(1.0, (int)ceil(log2((double)points + 2)) - 62);
}
