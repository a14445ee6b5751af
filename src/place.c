/* place.c: new samples in a stored t-SNE map. See stages.h.
 *
 *     map file ── map, features of the mapped samples ── every rank ──┐
 *     new features ── (the PCA of --pre-pca) ── rows of this rank ────┴─ k_place ──> L_place
 *                                                                     └─ place_trust.c ──> L_place_trustworthiness ...
 *
 * O(points) operations and no exchange for each new sample; every rank holds all mapped samples. */
#include <math.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "place_parts.h"
#include "progress.h"
#include "watchdog.h"

static const int64_t PIECE_BYTES = (int64_t)64 << 20;
static const double PIECE_PAIRS = 2e8;  /* of new and mapped samples, between two words of progress: a second or so */
static const double FAR_AWAY = 0x1p40;  /* beyond so many times the features of the map, squared distances overflow */
static const float MAP_MOST = 1e12f;    /* no t-SNE map is so large; likewise */
enum { PIECE_LEAST = 64 * TSNE_BLOCK }; /* new samples: enough for all threads */

static void refuse_too_large(const Place *p);
static void read_map(Place *p);
static void read_points(Place *p);
static void read_components(Place *p);
static void find_scale(Place *p);
static void pack(Place *p);
static void descend(Place *p);
static void write_places(const Place *p);
static void free_place(Place *p);

void place(Job *job, const Matrix *features) {
    Place p = {.job = job, .arena = arena_new(), .from = job->places, .features = features, .rows = *features};
    for (int i = 0; job->model && i < job->place_count; i++) {
        char layer[96];
        output_layer_name(layer, sizeof layer, features->name);
        if (strcmp(layer, job->places[i].layer) == 0)
            p.from = &job->places[i];
    }
    progress_begin(arena_printf(p.arena, "place %s", p.from->layer), "samples", features->shard.total);
    read_map(&p);
    refuse_too_large(&p);
    read_points(&p);
    if (p.from->reduced)
        read_components(&p);
    find_scale(&p);
    pack(&p);
    descend(&p);
    progress_end("");
    write_places(&p);
    place_trust(&p);
    free_place(&p);
}

static int64_t packed_floats(int64_t rows, int width) {
    return (rows + TSNE_BLOCK - 1) / TSNE_BLOCK * TSNE_BLOCK * width;
}

/* rows [first, first + count) of a dataset as floats, on every rank: rank 0 reads, because a thousand ranks that read one
 * file hurt a parallel file system. */
static void read_everywhere(float *rows, Dataset *from, int64_t first, int64_t count) {
    const int64_t numbers = count * dataset_row_size(from);
    if (!error_caught() && comm_rank() == 0) {
        Arena *arena = arena_new();
        void *raw = arena_alloc(arena, (uint64_t)numbers, dtype_bytes(from->dtype), from->spec);
        dataset_read(from, raw, first, count);
        dataset_to_float(rows, raw, from->dtype, numbers);
        arena_free(arena);
    }
    comm_all_ok();
    comm_broadcast(rows, (size_t)numbers * sizeof *rows);
    watchdog_tick();
}

static void check_map(const Place *p) {
    float most = 0;
    for (int64_t i = 0; i < p->shape.points * p->shape.axes; i++)
        most = fmaxf(most, fabsf(p->map[i]));
    if (most > MAP_MOST)
        die("%s: a point at %g, expected at most %g; is the file damaged?", p->from->map->spec, (double)most,
            (double)MAP_MOST);
    if ((double)p->shape.points <= p->from->perplexity)
        die("%s: %lld samples have a place on the map, expected more than its perplexity, %g; is the file damaged?",
            p->from->map->spec, (long long)p->shape.points, p->from->perplexity);
}

/* Who has a place on the map, and where. */
static void read_map(Place *p) {
    const PlaceMap *from = p->from;
    const int A = from->axes;
    p->map = ARENA_ARRAY(p->arena, float, from->samples *A, "the map");
    p->position = ARENA_ARRAY(p->arena, int64_t, from->samples, "the map");
    p->kept = ARENA_ARRAY(p->arena, int64_t, from->samples, "the map");
    read_everywhere(p->map, from->map, 0, from->samples);
    if (!error_caught() && comm_rank() == 0) {
        Arena *arena = arena_new();
        void *raw = arena_alloc(arena, (uint64_t)from->samples, dtype_bytes(from->position->dtype), "positions");
        dataset_read(from->position, raw, 0, from->samples);
        dataset_to_int64(p->position, raw, from->position->dtype, from->samples, from->position, 0);
        arena_free(arena);
    }
    comm_all_ok();
    comm_broadcast(p->position, (size_t)from->samples * sizeof *p->position);
    p->shape = (PlaceShape){p->features->shard.count, 0, from->width, A};
    for (int64_t i = 0; i < from->samples; i++) {
        const int64_t kept = p->shape.points;
        bool mapped = true;
        for (int a = 0; a < A; a++)
            mapped = mapped && isfinite(p->map[i * A + a]);
        if (!mapped)
            continue;
        memmove(p->map + kept * A, p->map + i * A, (size_t)A * sizeof *p->map);
        p->position[kept] = p->position[i];
        p->kept[kept] = i;
        p->shape.points++;
    }
    if (!error_caught())
        check_map(p);
    comm_all_ok();
}

static void refuse_too_large(const Place *p) {
    const PlaceMap *from = p->from;
    const double number = sizeof(float), rows = (double)p->shape.rows, width = from->width;
    const double bytes = (2 * (double)p->shape.points + 2 * rows) * (width + from->axes) * number +
                         (double)PIECE_BYTES + (from->reduced ? 8 * width * from->features : 0) +
                         (double)k_place_scratch(&p->shape);
    const double left = (double)dev_available() / comm_memory_sharers();
    if (!error_caught() && bytes > left)
        die("%s: placing into %lld samples of %d numbers takes %.4g GiB on each rank, which has %.4g GiB; use fewer "
            "ranks on a node or fewer threads, or a map by a smaller --pre-pca or by --tsne-samples",
            p->job->options->map, (long long)p->shape.points, from->width, bytes / 0x1p30, left / 0x1p30);
    comm_all_ok();
}

/* What t-SNE was given of the samples that have a place. */
static void read_points(Place *p) {
    const PlaceMap *from = p->from;
    const int64_t D = from->width, piece = PIECE_BYTES / D / (int64_t)sizeof(float) + 1;
    Arena *arena = arena_new();
    float *rows = ARENA_ARRAY(arena, float, piece *D, "features of the map");
    p->points = dev_alloc((size_t)(p->shape.points * D) * sizeof *rows);
    for (int64_t first = 0, done = 0; first < from->samples; first += piece) {
        const int64_t n = from->samples - first < piece ? from->samples - first : piece;
        int64_t some = 0;
        read_everywhere(rows, from->points, first, n);
        for (; done + some < p->shape.points && p->kept[done + some] < first + n; some++)
            memmove(rows + some * D, rows + (p->kept[done + some] - first) * D, (size_t)D * sizeof *rows);
        dev_upload(p->points + done * D, rows, (size_t)(some * D) * sizeof *rows);
        done += some;
    }
    arena_free(arena);
}

/* The new samples' scores, by the components of the map. */
static void read_components(Place *p) {
    const PlaceMap *from = p->from;
    const size_t K = (size_t)from->width, D = (size_t)from->features;
    Pca pca = {.components = from->width,
               .center = ARENA_ARRAY(p->arena, double, D, "the map's PCA"),
               .axes = ARENA_ARRAY(p->arena, double, K *D, "the map's PCA")};
    if (!error_caught() && comm_rank() == 0) {
        if (from->components->dtype != DT_F64 || from->center->dtype != DT_F64)
            die("%s: %s, expected float64; is the file damaged?", from->components->spec,
                dtype_name(from->components->dtype));
        dataset_read(from->components, pca.axes, 0, from->components->shape[0]);
        dataset_read(from->center, pca.center, 0, from->center->shape[0]);
    }
    comm_all_ok();
    comm_broadcast(pca.axes, K * D * sizeof *pca.axes);
    comm_broadcast(pca.center, D * sizeof *pca.center);
    pca_project(&pca, p->features);
    p->rows = pca.scores;
}

static float largest(const float *device, int64_t rows, int width) {
    Arena *arena = arena_new();
    double *column = ARENA_ARRAY(arena, double, width, "columns"), most = 0;
    double *there = dev_alloc((size_t)width * sizeof *there);
    k_column_most(there, device, rows, width, NULL);
    dev_download(column, there, (size_t)width * sizeof *there);
    dev_free(there);
    for (int c = 0; c < width; c++)
        most = column[c] > most || isnan(column[c]) ? column[c] : most;
    arena_free(arena);
    return (float)most;
}

/* By the map's features alone, so that no sample's place depends on the others'. */
static void find_scale(Place *p) {
    const float most = largest(p->points, p->shape.points, p->shape.width);
    p->scale = most > 0 ? ldexpf(1, -ilogbf(most) > 126 ? 126 : -ilogbf(most)) : 1;
    if (!error_caught()) {
        const double far = (double)largest(p->rows.rows, p->shape.rows, p->shape.width);
        if (!(far * (double)p->scale < FAR_AWAY))
            die("place %s: the new samples have a number of %g, those of the map at most %g; are they features of the "
                "same layer, scaled alike?",
                p->from->layer, far, (double)most);
    }
    comm_all_ok();
}

static void pack(Place *p) {
    const PlaceShape *s = &p->shape;
    const size_t map_bytes = (size_t)(s->points * s->axes) * sizeof *p->map;
    p->points_packed = dev_alloc((size_t)packed_floats(s->points, s->width) * sizeof(float));
    p->rows_packed = dev_alloc((size_t)packed_floats(s->rows, s->width) * sizeof(float));
    p->map_packed = dev_alloc((size_t)packed_floats(s->points, s->axes) * sizeof(float));
    p->map_device = dev_alloc(map_bytes);
    dev_upload(p->map_device, p->map, map_bytes);
    k_tsne_pack(p->points_packed, p->points, s->points, s->width, p->scale);
    k_tsne_pack(p->rows_packed, p->rows.rows, s->rows, s->width, p->scale);
    k_tsne_pack(p->map_packed, p->map_device, s->points, s->axes, 1);
}

static void descend(Place *p) {
    const PlaceShape *s = &p->shape;
    const int A = s->axes;
    int64_t piece = (int64_t)(PIECE_PAIRS / (double)s->points) / TSNE_BLOCK * TSNE_BLOCK;
    piece = piece > PIECE_LEAST ? piece : PIECE_LEAST;
    p->y = ARENA_ARRAY(p->arena, float, s->rows *A, "places");
    p->kl = ARENA_ARRAY(p->arena, double, packed_floats(s->rows, 1), "places");
    float *packed = ARENA_ARRAY(p->arena, float, packed_floats(piece, A), "places"),
          *y = dev_alloc((size_t)packed_floats(piece, A) * sizeof *y);
    double *kl = dev_alloc((size_t)piece * sizeof *kl);
    void *scratch = dev_alloc(k_place_scratch(s));
    for (int64_t first = 0; first < s->rows; first += piece) {
        const PlaceShape some = {s->rows - first < piece ? s->rows - first : piece, s->points, s->width, A};
        k_place(y, kl, p->rows_packed + first * s->width, p->points_packed, p->map_packed, &some, p->from->perplexity,
                scratch);
        dev_download(packed, y, (size_t)packed_floats(some.rows, A) * sizeof *y);
        dev_download(p->kl + first, kl, (size_t)some.rows * sizeof *kl);
        for (int64_t i = 0; i < some.rows; i++)
            for (int a = 0; a < A; a++)
                p->y[(first + i) * A + a] = packed[(i / TSNE_BLOCK * A + a) * TSNE_BLOCK + i % TSNE_BLOCK];
        watchdog_tick();
        progress_at(p->features->shard.total * (first + some.rows) / s->rows, "");
    }
    dev_free(scratch);
    dev_free(kl);
    dev_free(y);
}

static void write_places(const Place *p) {
    Output *out = p->job->output;
    const Shard s = p->features->shard;
    const char *layer = p->from->layer, *axis = arena_printf(p->arena, "%s_axis", layer),
               *fixed = arena_printf(p->arena, "%s_fixed_sample", layer);
    OutputVar var = {.name = arena_printf(p->arena, "%s_place", layer),
                     .type = DT_F32,
                     .rank = 2,
                     .dims = {"sample", axis},
                     .length = {s.total, p->shape.axes},
                     .long_name = arena_printf(p->arena, "place in the stored t-SNE map of %s", layer),
                     .coordinates = job_coordinates(p->job, false)};
    int id = output_var(out, &var);
    output_double(out, id, "perplexity", p->from->perplexity);
    output_int64(out, id, "pre_pca", p->from->reduced ? p->from->width : 0);
    output_int64(out, id, "samples_mapped", p->shape.points);
    output_rows(out, id, s.first, s.count, p->y);

    var.name = arena_printf(p->arena, "%s_place_kl", layer);
    var.type = DT_F64;
    var.rank = 1;
    var.long_name = "Kullback-Leibler divergence of the place from the sample's distances to the mapped ones";
    output_rows(out, output_var(out, &var), s.first, s.count, p->kl);

    var = (OutputVar){.name = fixed,
                      .type = DT_I64,
                      .rank = 1,
                      .dims = {fixed},
                      .length = {p->shape.points},
                      .long_name = "position of the mapped sample in the file that was mapped"};
    output_whole(out, output_var(out, &var), p->position);
    var = (OutputVar){.name = arena_printf(p->arena, "%s_fixed", layer),
                      .type = DT_F32,
                      .rank = 2,
                      .dims = {fixed, axis},
                      .length = {p->shape.points, p->shape.axes},
                      .long_name = arena_printf(p->arena, "the stored t-SNE map of %s", layer)};
    output_whole(out, output_var(out, &var), p->map);
}

static void free_place(Place *p) {
    dev_free(p->points);
    dev_free(p->points_packed);
    dev_free(p->rows_packed);
    dev_free(p->map_device);
    dev_free(p->map_packed);
    if (p->rows.rows != p->features->rows)
        matrix_free(&p->rows);
    arena_free(p->arena);
}
