/* forecast_sheet.c: from a trial to what the whole job takes on any number of ranks, and the lines that say so. See
 * forecast.h.
 *
 * Lines are KEY: VALUE, bytes and seconds as plain numbers with a reading of them behind; keys of seconds are those of the
 * run_seconds_ attributes that the run will write. What ranks have unequal shares of is MIN..MAX. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "comm.h"
#include "error.h"
#include "forecast_parts.h"
#include "tsne_run.h"

enum { KEY_BYTES = 160, LINES_MOST = 4096, RANKS_MOST = 1 << 20 };
static const double FILE_BYTES = 6 << 20; /* netCDF, HDF5 and MPI-IO with an open file: measured */
static const double PIECE = 64 << 20;     /* of features and images on their way (matrix.c, embed.c) */

typedef struct {
    char key[KEY_BYTES];
    double value;
} Line;

/* What one rank needs, line by line, and the stage that needs most at one time. */
typedef struct {
    Line lines[LINES_MOST];
    int count;
    double host, device, most; /* most: of both where they are one memory, else of the host */
    double most_device;
    char stage[KEY_BYTES];
} Sheet;

static void fill(Sheet *sheet, const Forecast *f, int rank, int ranks);
static void fill_layer(Sheet *sheet, const Forecast *f, int layer, int rank, int ranks);
static void fill_tsne(Sheet *sheet, const Forecast *f, int layer, int rank, int ranks, double *own);
static void add(Sheet *sheet, double value, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void stage_needs(Sheet *sheet, const char *stage, const char *layer, double host, double device);
static TsneTileSize share_of(const LayerTrial *l, int ranks);
static bool fits(Sheet *sheet, const Forecast *f, int ranks);
static int64_t least_ranks(Sheet *sheet, const Forecast *f, int ranks);
static void print_bytes(const Sheet *first, const Sheet *last);
static double print_seconds(const Forecast *f, int ranks);
static double print_layer_seconds(const Forecast *f, const LayerTrial *l, int ranks);
static double put_seconds(double seconds, const char *format, ...) __attribute__((format(printf, 2, 3)));

void forecast_print(const Forecast *f, int ranks) {
    static Sheet first, last;
    fill(&first, f, 0, ranks);
    fill(&last, f, ranks - 1, ranks);
    const int64_t total = f->job->shard.total, batch = f->job->options->batch;
    const bool good = fits(&first, f, ranks);
    fill(&first, f, 0, ranks);
    if (comm_rank() == 0) {
        const int64_t most = shard_of(total, batch, 0, ranks).count,
                      least = shard_of(total, batch, ranks - 1, ranks).count;
        const double pairs = (double)f->mapped * (double)(f->mapped - 1) / 2;
        printf("ranks: %d\nthreads_per_rank: %d\n", ranks, f->job->options->threads);
        printf("samples: %lld\nsamples_tried: %lld\nsamples_per_rank: ", (long long)total, (long long)f->tried);
        printf(least < most ? "%lld..%lld\n" : "%lld\n", (long long)least, (long long)most);
        if (f->job->options->tsne > 0)
            printf("pairs_per_iteration: %.0f\npairs_per_iteration_per_rank: %.0f\n", pairs, ceil(pairs / ranks));
        for (int i = 0; i < f->layer_count && f->job->options->tsne > 0; i++)
            printf("affinities_%s: %.0f (estimated from %lld samples)\n", f->layers[i].key, 2 * f->layers[i].values,
                   (long long)f->layers[i].judged_by);
        print_bytes(&first, &last);
        printf("available_bytes_per_rank: %.0f (%.1f MiB)\n", f->available_bytes, f->available_bytes / 0x1p20);
        printf("result_bytes: %.0f (%.1f MiB%s)\n", f->result_bytes, f->result_bytes / 0x1p20,
               f->job->options->compress ? ", before it is compressed" : "");
        put_seconds(print_seconds(f, ranks), "total");
        printf("fits: %s\n", good ? "yes" : "no");
        fflush(stdout);
    }
    if (!error_caught() && !good) {
        const int64_t enough = least_ranks(&first, f, ranks);
        fill(&first, f, 0, ranks);
        if (enough > 0)
            die("--plan: %s takes %.4g GiB on each of %d ranks, which have %.4g GiB each; the least number of ranks "
                "with "
                "as much memory each that would do is %lld",
                first.stage, first.most / 0x1p30, ranks, f->available_bytes / 0x1p30, (long long)enough);
        die("--plan: %s takes %.4g GiB on each of %d ranks, which have %.4g GiB each, and no number of ranks would do; "
            "use "
            "fewer ranks on a node, --tsne-samples or a smaller --pre-pca",
            first.stage, first.most / 0x1p30, ranks, f->available_bytes / 0x1p30);
    }
    comm_all_ok();
}

/* ---- Memory ----------------------------------------------------------------------------------------------------- */

static void fill(Sheet *sheet, const Forecast *f, int rank, int ranks) {
    const Job *job = f->job;
    const double rows = (double)shard_of(job->shard.total, job->options->batch, rank, ranks).count;
    sheet->count = 0;
    sheet->most = sheet->most_device = 0;
    add(sheet, f->program_bytes, "host_bytes_program");
    add(sheet, FILE_BYTES, "host_bytes_file");
    double features = 0, round = 0;
    for (int i = 0; i < f->layer_count; i++)
        features += rows * f->layers[i].width * sizeof(float);
    if (f->network.first) {
        const Pass *pass = f->network.first;
        const int64_t samples = (int64_t)fmin(rows, (double)pass->round_samples);
        round = (double)pass_round_bytes(pass, samples) + rows * (double)(sizeof(int32_t) + pass->logits->row_bytes);
        if (f->network.second) {
            const Pass *second = f->network.second;
            const double chosen = fmin(fmin((double)f->chosen, (double)second->round_samples), rows);
            round += (double)pass_round_bytes(second, (int64_t)chosen);
        }
        add(sheet, f->network_bytes, "device_bytes_network");
        add(sheet, f->lane_bytes, "device_bytes_lanes");
    } else {
        round = fmin(PIECE, rows * f->layers[0].width * 8) + (job->images ? 2 * PIECE : 0);
    }
    add(sheet, round, "host_bytes_round");
    add(sheet, features, "device_bytes_features");
    sheet->host = f->program_bytes + FILE_BYTES;
    sheet->device = features;
    stage_needs(sheet, f->network.first ? "forward" : "read", NULL, round, f->network_bytes + f->lane_bytes);
    sheet->host += f->network.first ? rows * sizeof(int32_t) : 0;
    for (int i = 0; i < f->layer_count; i++) {
        fill_layer(sheet, f, i, rank, ranks);
        sheet->device -= rows * f->layers[i].width * sizeof(float); /* freed behind each layer */
    }
}

/* One layer's maps: the PCA, whose scores stay; t-SNE; the measures of both. */
static void fill_layer(Sheet *sheet, const Forecast *f, int layer, int rank, int ranks) {
    const LayerTrial *l = &f->layers[layer];
    const Options *o = f->job->options;
    const double rows = (double)shard_of(f->job->shard.total, o->batch, rank, ranks).count;
    double own = 0; /* host, to the layer's end */
    if (l->writes_features)
        own += fmin(PIECE, rows * l->width * sizeof(float));
    const double scores = rows * l->components * sizeof(float);
    if (l->components > 0) {
        const double bytes = pca_bytes((int64_t)rows, f->job->shard.total, l->width, l->components);
        add(sheet, bytes, "host_bytes_pca_%s", l->key);
        stage_needs(sheet, "pca", l->key, own + bytes, 0);
        own += (double)l->width * l->components * sizeof(double);
        own += o->pca > 0 ? scores + rows * o->pca * sizeof(float) : 0;
    }
    fill_tsne(sheet, f, layer, rank, ranks, &own);
    if (l->judged == 0)
        return;
    const double points = ceil((double)f->mapped / ranks);
    double copies = points * l->judged_maps * 3 * sizeof(float); /* of maps, at most */
    if (f->mapped < f->job->shard.total)
        copies += points * l->width * sizeof(float);
    const double bytes = trust_bytes((int64_t)points, f->mapped, l->width, l->judged_maps, o->neighbors);
    add(sheet, bytes, "host_bytes_trust_%s", l->key);
    stage_needs(sheet, "trust", l->key, own + bytes, scores + copies);
}

/* The points that t-SNE maps, its start, and itself. */
static void fill_tsne(Sheet *sheet, const Forecast *f, int layer, int rank, int ranks, double *own) {
    const LayerTrial *l = &f->layers[layer];
    const Options *o = f->job->options;
    if (l->map_width == 0)
        return;
    const double rows = (double)shard_of(f->job->shard.total, o->batch, rank, ranks).count;
    const double scores = rows * l->components * sizeof(float);
    const double mapped = (double)f->mapped, own_points = ceil(mapped / ranks);
    const bool copied = l->map_width < l->width || f->mapped < f->job->shard.total;
    const double points = copied ? own_points * l->map_width * sizeof(float) : 0;
    const int maps = o->perplexity_count * o->runs;
    const double start = /* positions, starts; of each map the map and two numbers of each sample */
        mapped * (sizeof(int64_t) + (o->runs * o->tsne + maps * (o->tsne + 2)) * sizeof(float));
    const TsneOptions options = {.axes = o->tsne, .perplexity_count = o->perplexity_count, .perplexity = o->perplexity};
    const TsneShape shape = tsne_shape(f->mapped, l->map_width, o->tsne, rank, ranks);
    const TsneBytes t = tsne_needs(&shape, &options, share_of(l, ranks));
    add(sheet, start + t.order + t.gathering, "host_bytes_tsne_points_%s", l->key);
    add(sheet, points + t.making, "device_bytes_tsne_search_%s", l->key);
    add(sheet, t.affinities, "device_bytes_tsne_affinities_%s", l->key);
    add(sheet, t.descent, "device_bytes_tsne_descent_%s", l->key);
    *own += start;
    const double host = *own + t.order, device = scores + points;
    stage_needs(sheet, "gathering", l->key, host + t.gathering, device);
    stage_needs(sheet, "affinities", l->key, host, device + t.affinities + t.making);
    stage_needs(sheet, "tsne", l->key, host, device + t.affinities + t.descent);
    *own += rows * (o->tsne + 2) * sizeof(float); /* as they are written */
    if (maps > 1)
        stage_needs(sheet, "stability", l->key,
                    *own + stability_bytes((int64_t)own_points, f->mapped, o->tsne, maps, o->neighbors), device);
}

static void add(Sheet *sheet, double value, const char *format, ...) {
    if (sheet->count == LINES_MOST)
        return;
    Line *line = &sheet->lines[sheet->count++];
    va_list args;
    va_start(args, format);
    vsnprintf(line->key, sizeof line->key, format, args);
    va_end(args);
    line->value = value;
}

/* Bytes beside those of the whole job. */
static void stage_needs(Sheet *sheet, const char *stage, const char *layer, double host, double device) {
    const bool one = dev_is_host();
    const double needs = sheet->host + host + (one ? sheet->device + device : 0);
    sheet->most_device = fmax(sheet->most_device, sheet->device + device);
    if (needs > sheet->most) {
        sheet->most = needs;
        snprintf(sheet->stage, sizeof sheet->stage, "%s%s%s", stage, layer ? " " : "", layer ? layer : "");
    }
}

static TsneTileSize share_of(const LayerTrial *l, int ranks) {
    return (TsneTileSize){(int64_t)ceil(l->cells / ranks), (int64_t)ceil(l->values / ranks)};
}

/* The first rank has the largest shard, and solves. */
static bool fits(Sheet *sheet, const Forecast *f, int ranks) {
    fill(sheet, f, 0, ranks);
    return (dev_is_host() ? sheet->most : sheet->most_device) <= f->available_bytes;
}

/* 0: none would do. */
static int64_t least_ranks(Sheet *sheet, const Forecast *f, int ranks) {
    int64_t low = ranks, high = ranks;
    while (!fits(sheet, f, (int)high)) {
        low = high;
        high *= 2;
        if (high > RANKS_MOST)
            return 0;
    }
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (fits(sheet, f, (int)middle))
            high = middle;
        else
            low = middle;
    }
    return high;
}

static void print_bytes(const Sheet *first, const Sheet *last) {
    for (int i = 0; i < first->count; i++) {
        const double most = first->lines[i].value, least = last->lines[i].value;
        printf("%s: ", first->lines[i].key);
        if (least != most)
            printf("%.0f..", fmin(least, most));
        printf("%.0f (%.1f MiB)\n", fmax(least, most), fmax(least, most) / 0x1p20);
    }
    printf("bytes_per_rank: %.0f (%.1f MiB, most of it in stage %s)\n", first->most, first->most / 0x1p20,
           first->stage);
    if (!dev_is_host())
        printf("device_bytes_per_rank: %.0f (%.1f MiB)\n", first->most_device, first->most_device / 0x1p20);
}

/* ---- Time ------------------------------------------------------------------------------------------------------- */

static double put_seconds(double seconds, const char *format, ...) {
    va_list args;
    va_start(args, format);
    printf("seconds_");
    vprintf(format, args);
    printf(": %.3g\n", seconds);
    va_end(args);
    return seconds;
}

static double print_seconds(const Forecast *f, int ranks) {
    const double rows = (double)shard_of(f->job->shard.total, f->job->options->batch, 0, ranks).count;
    const double writing = f->forward_bytes * f->byte_seconds;
    double total = put_seconds(f->prepare_seconds, "prepare");
    total += put_seconds(rows * f->sample_seconds + writing, "%s", f->network.first ? "forward" : "read");
    if (f->network.second) /* the chosen ones may all be of one rank */
        total += put_seconds(fmin((double)f->chosen, rows) * f->map_sample_seconds, "attribution");
    for (int i = 0; i < f->layer_count; i++)
        total += print_layer_seconds(f, &f->layers[i], ranks);
    return total + put_seconds(f->result_bytes * f->flush_byte_seconds, "output_close");
}

/* Times of the trial, multiplied by what grows: rows of a rank, pairs of points, pairs of tiles, cells of P. */
static double print_layer_seconds(const Forecast *f, const LayerTrial *l, int ranks) {
    const Options *o = f->job->options;
    const double rows = (double)shard_of(f->job->shard.total, o->batch, 0, ranks).count;
    double total = 0;
    if (l->components > 0)
        total += put_seconds(l->pca_seconds + rows * l->pca_row_seconds, "pca_%s", l->key);
    const double size = comm_size(), work = size / ranks, judged = (double)f->mapped / (double)(l->judged + !l->judged);
    if (l->judged > 0)
        total += put_seconds(l->trust_seconds * judged * judged * work, "trust_%s", l->key);
    if (l->map_width == 0)
        return total;
    if (o->perplexity_count * o->runs > 1 && l->judged > 0) /* each of its maps: about one of ten passes of trust */
        total += put_seconds(o->perplexity_count * o->runs * 0.1 * l->trust_seconds * judged * judged * work,
                             "stability_%s", l->key);
    const double points = (double)f->mapped / (double)l->points;
    const double tiles = (double)k_tsne_tiles(f->mapped) / (double)k_tsne_tiles(l->points);
    const double iterations = o->max_iter + 1, maps = o->perplexity_count * o->runs;
    const double repulsion = maps * iterations * l->repulsion_seconds * tiles * work;
    const double attraction = iterations * l->attraction_seconds * l->cells_of_maps / fmax(l->trial_cells, 1) * work;
    const double update = maps * iterations * (l->update_seconds * points * work + l->comm_seconds * points);
    total += l->gather_seconds * points;
    total += put_seconds(l->affinity_seconds * points * points * work, "affinities_%s", l->key);
    put_seconds(repulsion, "tsne_%s_repulsion", l->key);
    put_seconds(attraction, "tsne_%s_attraction", l->key);
    return total + put_seconds(repulsion + attraction + update, "tsne_%s", l->key);
}
