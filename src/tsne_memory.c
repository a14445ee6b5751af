/* tsne_memory.c: what a t-SNE takes, before it takes it. See tsne_run.h.
 *
 * Three times may be the one that needs most: while points are gathered, while P is made, and the descent. All but P
 * grows with N; P grows with N^2 where the data has no structure, so that it is the one to name. */
#include <math.h>

#include "comm.h"
#include "error.h"
#include "tsne_run.h"

static void check_fits(const TsneRun *run, const TsneTileSize *total, const TsneTileSize *most);

TsneShape tsne_shape(int64_t points, int width, int axes, int rank, int ranks) {
    const int64_t blocks = (points + TSNE_BLOCK - 1) / TSNE_BLOCK, each = (blocks + ranks - 1) / ranks;
    return (TsneShape){points, each * rank, each, width, axes, rank, ranks};
}

int tsne_kernels(const TsneOptions *options) {
    int kernels = 0;
    for (int p = 0; p < options->perplexity_count; p++)
        kernels += options->perplexity[p].count;
    return kernels;
}

TsneBytes tsne_needs(const TsneShape *shape, const TsneOptions *options, TsneTileSize share) {
    const double points = (double)shape->points, rows = (double)(shape->count * shape->parts) * TSNE_BLOCK;
    const double own_rows = (double)shape->count * TSNE_BLOCK, tiles = (double)k_tsne_tiles(shape->points);
    const double row_bytes = shape->width * sizeof(float), map_row = shape->axes * sizeof(float);
    const double sizes = tiles * sizeof(TsneTileSize) * options->perplexity_count;
    const double input = points * row_bytes + rows * tsne_kernels(options) * TSNE_ROW_NUMBERS * sizeof(float);
    TsneBytes b = {.order = points * (2 * sizeof(int64_t) + options->perplexity_count * sizeof(float)) + sizes,
                   .affinities = tsne_p_bytes(share)};
    b.gathering = 2 * points * row_bytes + own_rows * row_bytes; /* of all ranks: one copy as sent, one in order */
    b.making = input + (double)k_tsne_affinity_scratch(shape->points, shape->width) + tiles * 3 * sizeof(int64_t) +
               4 * points * sizeof(int64_t);
    b.descent = 2 * rows * map_row + 2 * own_rows * map_row + points * map_row + /* maps; update and gains */
                (double)(shape->parts + 1) * (double)k_tsne_sums(shape) * sizeof(int64_t) +
                (double)k_tsne_scratch(shape) + 2 * points * sizeof(int64_t) + 2 * points * sizeof(float);
    if (options->perplexity_count > 1) /* the next P is made of them */
        b.descent += input;
    b.most = b.order + fmax(b.gathering, b.affinities + fmax(b.making, b.descent));
    return b;
}

double tsne_bytes(const TsneRun *run, TsneTileSize share) {
    return tsne_needs(&run->shape, run->options, share).most;
}

void tsne_refuse_too_large(const TsneRun *run, const TsneTileSize *total, const TsneTileSize *most) {
    if (!error_caught())
        check_fits(run, total, most);
    comm_all_ok();
}

static void check_fits(const TsneRun *run, const TsneTileSize *total, const TsneTileSize *most) {
    const double needed = tsne_bytes(run, *most), p_share = tsne_p_bytes(*most), others = needed - p_share;
    const double left = run->free_bytes - others, ratio = p_share / fmax(left, 1);
    if (left < 0)
        die("t-SNE of %s: %lld samples of %d numbers take %.4g GiB on each rank, which has %.4g GiB; use fewer ranks "
            "on "
            "a node, or --tsne-samples, or a smaller --pre-pca",
            run->name, (long long)run->points, run->shape.width, others / 0x1p30, run->free_bytes / 0x1p30);
    if (ratio > 1)
        die("t-SNE of %s: the affinities of %lld samples take %.4g GiB, %.4g GiB on a rank that has %.4g GiB left; use "
            "%.0f ranks with as much memory each, or --tsne-samples %lld, or a smaller --pre-pca",
            run->name, (long long)run->points, tsne_p_bytes(*total) / 0x1p30, p_share / 0x1p30, left / 0x1p30,
            ceil(ratio * comm_size()), (long long)((double)run->points / sqrt(ratio)));
}

double tsne_p_bytes(TsneTileSize size) {
    return (double)size.cells * sizeof(TsneCell) + (double)size.values * sizeof(float);
}
