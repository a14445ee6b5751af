/* job.c: opens and checks the inputs of a run. See job.h.
 *
 * Every rank opens every file (headers are small), so that a wrong one is found by all at once; the model is read by
 * rank 0 alone and broadcast, because a thousand ranks reading one file hurt a parallel file system. */
#include "job.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "comm.h"
#include "error.h"
#include "watchdog.h"

static const double SLOW_DISK = 2e7; /* bytes/s: how slow the watchdog lets it be */

static void choose_samples(Job *job, int64_t in_file, const char *spec) {
    const Options *o = job->options;
    int64_t to = o->samples_to < 0 ? in_file : o->samples_to;
    if (to > in_file)
        die_usage("--samples %s: %s holds %lld samples", o->samples, spec, (long long)in_file);
    job->from = o->samples_from;
    job->shard = shard_of(to - job->from, o->batch, comm_rank(), comm_size());
    int64_t mapped = o->tsne_samples >= 0 && o->tsne_samples < job->shard.total ? o->tsne_samples : job->shard.total;
    for (int p = 0; o->tsne > 0 && p < o->perplexity_count; p++)
        for (int k = 0; k < o->perplexity[p].count; k++)
            if (o->perplexity[p].value[k] >= (double)mapped)
                die_usage("--perplexity %g: must be less than the number of samples, %lld (or give --tsne 0)",
                          o->perplexity[p].value[k], (long long)mapped);
}

static void transform_constants(Job *job, const List *list, const char *option, double *values, int channels) {
    if (list->count != 1 && list->count != channels)
        die_usage("--%s: %d values for images of %d channels", option, list->count, channels);
    if (list->count > 16)
        die_usage("--%s: more than 16 values", option);
    for (int c = 0; c < 16; c++) {
        const char *text = list->items[c < list->count ? c : list->count - 1];
        if (!parse_double(text, &values[c]) || (values == job->transform.std && values[c] <= 0))
            die_usage("--%s %s: expected %s", option, text,
                      values == job->transform.std ? "positive numbers" : "numbers");
    }
}

/* (N,H,W) or (N,C,H,W) or (N,H,W,C): the transform says which. */
static void describe_images(Job *job) {
    Dataset *images = job->images;
    Options *o = job->options;
    PixelTransform *t = &job->transform;
    t->dtype = images->dtype;
    t->channels_last = strcmp(o->layout, "NHWC") == 0 && images->rank == 4;
    if (images->rank != 3 && images->rank != 4)
        die("%s: an array of %d dimensions, expected images as (N,H,W) or (N,C,H,W)", images->spec, images->rank);
    int64_t size[3] = {1, images->shape[1], images->shape[2]}; /* C, H, W */
    if (images->rank == 4) {
        size[0] = images->shape[t->channels_last ? 3 : 1];
        size[1] = images->shape[t->channels_last ? 1 : 2];
        size[2] = images->shape[t->channels_last ? 2 : 3];
    }
    if (size[0] < 1 || size[1] < 1 || size[2] < 1 || size[0] * size[1] > (1 << 30) / size[2])
        die("%s: images of %lld channels of %lld x %lld, expected at least 1 of each and less than 2^30 values",
            images->spec, (long long)size[0], (long long)size[1], (long long)size[2]);
    t->channels = (int)size[0];
    t->height = (int)size[1];
    t->width = (int)size[2];
    if (!o->model)
        return;
    bool is_float = t->dtype == DT_F16 || t->dtype == DT_F32 || t->dtype == DT_F64;
    if (o->scale == 0 && t->dtype != DT_U8 && !is_float)
        die_usage("--scale is missing: %s holds %s pixels, and only uint8 (1/255) and floats (1) have a default",
                  images->spec, dtype_name(t->dtype));
    if (o->scale == 0)
        o->scale = t->dtype == DT_U8 ? 1.0 / 255 : 1;
    t->scale = o->scale;
    transform_constants(job, &o->mean, "mean", t->mean, t->channels);
    transform_constants(job, &o->std, "std", t->std, t->channels);
}

static Dataset *open_vector(Job *job, const char *spec, int64_t samples, const char *of) {
    Dataset *vector = dataset_open(job->arena, spec);
    if (vector->rank == 2 && vector->shape[1] > 1)
        die("%s: has %lld numbers a sample, expected one, the category: several categories of one sample (multi-hot) "
            "are not read; one-hot rows become categories by argmax(1)",
            spec, (long long)vector->shape[1]);
    if (vector->rank > 2)
        die("%s: an array of %d dimensions, expected one integer a sample", spec, vector->rank);
    if (vector->shape[0] != samples)
        die("%s: %lld values, but %s holds %lld samples", spec, (long long)vector->shape[0], of, (long long)samples);
    return vector;
}

/* This rank's part of labels or predictions; `least` -1 or 0. */
static int32_t *read_categories(Job *job, Dataset *vector, int64_t least) {
    int64_t first = job->from + job->shard.first, count = job->shard.count;
    Arena *scratch = arena_new();
    void *raw = arena_alloc(scratch, (uint64_t)count, dtype_bytes(vector->dtype), "labels");
    int64_t *wide = ARENA_ARRAY(scratch, int64_t, count, "labels");
    int32_t *narrow = ARENA_ARRAY(job->arena, int32_t, count, "labels");
    int64_t limit = job->categories ? job->categories : INT32_MAX;
    dataset_read(vector, raw, first, count);
    dataset_to_int64(wide, raw, vector->dtype, count, vector, first);
    for (int64_t i = 0; i < count; i++) {
        if (wide[i] < least || wide[i] >= limit)
            die("%s: sample %lld has %lld, expected %lld to %lld", vector->spec, (long long)(first + i),
                (long long)wide[i], (long long)least, (long long)limit - 1);
        narrow[i] = (int32_t)wide[i];
    }
    arena_free(scratch);
    dataset_close(vector);
    return narrow;
}

static void open_data(Job *job) {
    const Options *o = job->options;
    if (o->images)
        job->images = dataset_open(job->arena, o->images);
    if (o->input)
        job->input = dataset_open(job->arena, o->input);
    if (o->command == COMMAND_AUDIT)
        job->map = dataset_open(job->arena, o->map);
    const Dataset *first = job->input ? job->input : job->images;
    if (job->input && job->input->rank < 2)
        die("%s: an array of %d dimension, expected a matrix (N, D)", o->input, job->input->rank);
    if (job->input && (dataset_row_size(job->input) < 1 || dataset_row_size(job->input) > INT32_MAX / 8))
        die("%s: rows of %lld values, expected 1 to %d", o->input, (long long)dataset_row_size(job->input),
            INT32_MAX / 8);
    if (first->shape[0] < 1)
        die("%s: no samples", first->spec);
    if (job->images)
        describe_images(job);
    if (job->input && job->images && job->images->shape[0] != job->input->shape[0])
        die("%s: %lld images, but %s holds %lld samples", o->images, (long long)job->images->shape[0], o->input,
            (long long)job->input->shape[0]);
    if (job->map && (job->map->rank != 2 || job->map->shape[0] != first->shape[0] || job->map->shape[1] < 1 ||
                     job->map->shape[1] > 4096))
        die("%s: %lld rows of %lld values, expected a map of the %lld samples of %s, of at most 4096 dimensions",
            o->map, (long long)job->map->shape[0], (long long)dataset_row_size(job->map), (long long)first->shape[0],
            first->spec);
    choose_samples(job, first->shape[0], first->spec);
}

static void open_model(Job *job) {
    static const char *path;
    static Arena *file;
    static void *bytes;
    static size_t size; /* static: they keep their values over error_caught() */
    path = job->options->model;
    file = arena_new();
    if (!error_caught() && comm_rank() == 0)
        bytes = dataset_file_bytes(file, path, &size);
    comm_all_ok();
    comm_broadcast(&size, sizeof size);
    if (comm_rank() != 0)
        bytes = arena_alloc(file, size, 1, path);
    comm_broadcast(bytes, size);
    if (!error_caught()) {
        const PixelTransform *t = &job->transform;
        job->model = model_open(job->arena, file, bytes, size, path, shape_chw(t->channels, t->height, t->width),
                                job->options->logits_node);
        const Graph *graph = job->model->graph;
        int64_t outputs = shape_size(graph->nodes[graph->logits].shape);
        job->categories = outputs == 1 ? 2 : outputs;
    }
    comm_all_ok();
}

static void open_labels(Job *job) {
    const Options *o = job->options;
    const Dataset *data = job->input ? job->input : job->images;
    int64_t in_file = data->shape[0], found;
    if (o->category_names) {
        job->category_names =
            dataset_names(job->arena, o->category_names, job->categories ? job->categories : -1, &found);
        job->categories = found;
    }
    if (o->sample_names)
        job->sample_names = dataset_names(job->arena, o->sample_names, in_file, &found);
    if (o->labels)
        job->labels = read_categories(job, open_vector(job, o->labels, in_file, data->spec), -1);
    if (o->predictions)
        job->predictions = read_categories(job, open_vector(job, o->predictions, in_file, data->spec), 0);
}

/* The file that --baseline names; NULL: none. */
static const char *baseline_file(const Options *o) {
    double value;
    const bool word = !o->baseline || strcmp(o->baseline, "zero") == 0 || strcmp(o->baseline, "mean") == 0;
    return word || parse_double(o->baseline, &value) ? NULL : o->baseline;
}

static void hash_inputs(Job *job) {
    const Options *o = job->options;
    const Dataset *largest = job->input ? job->input : job->images;
    struct stat info;
    if (stat(largest->path, &info) == 0) /* rank 0 reads it all, and the others wait */
        watchdog_allow((double)info.st_size / SLOW_DISK);
    if (comm_rank() != 0)
        return;
    if (o->images)
        dataset_sha256(job->images_sha256, job->images->path);
    if (o->input)
        dataset_sha256(job->input_sha256, job->input->path);
    if (o->map)
        dataset_sha256(job->map_sha256, job->map ? job->map->path : o->map);
    const struct {
        const char *spec;
        char *hex;
        const char **key;
    } others[] = {
        {o->labels, job->labels_sha256, &job->labels_key},
        {o->predictions, job->predictions_sha256, NULL},
        {o->category_names, job->category_names_sha256, NULL},
        {o->sample_names, job->sample_names_sha256, NULL},
        {strcmp(o->init, "pca") && strcmp(o->init, "random") ? o->init : NULL, job->init_sha256, &job->init_key},
        {baseline_file(o), job->baseline_sha256, &job->baseline_key}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (others[i].spec) {
            const char *path = dataset_path(job->arena, others[i].spec);
            dataset_sha256(others[i].hex, path);
            if (others[i].key)
                *others[i].key = arena_printf(job->arena, "%s", others[i].spec + strlen(path));
        }
}

void job_open(Job *job, Options *options) {
    *job = (Job){.arena = arena_new(), .options = options, .step = 1, .labels_key = "", .init_key = "",
                  .baseline_key = ""};
    if (!error_caught())
        open_data(job);
    comm_all_ok();
    if (options->model)
        open_model(job);
    if (!error_caught() && options->command == COMMAND_PLACE)
        job->places = place_maps(job->arena, &job->place_count, options, job->model,
                                 job->input ? dataset_row_size(job->input) : 0);
    comm_all_ok();
    if (!error_caught())
        open_labels(job);
    comm_all_ok();
    if (!error_caught())
        hash_inputs(job);
    comm_all_ok();
    comm_broadcast(job->images_sha256, sizeof job->images_sha256);
    comm_broadcast(job->input_sha256, sizeof job->input_sha256);
    comm_broadcast(job->map_sha256, sizeof job->map_sha256);
    comm_broadcast(job->labels_sha256, sizeof job->labels_sha256);
    comm_broadcast(job->predictions_sha256, sizeof job->predictions_sha256);
    comm_broadcast(job->init_sha256, sizeof job->init_sha256);
    comm_broadcast(job->baseline_sha256, sizeof job->baseline_sha256);
    int64_t categories = job->categories;
    for (int64_t i = 0; categories == 0 && i < job->shard.count; i++) {
        if (job->labels && job->labels[i] >= job->categories)
            job->categories = job->labels[i] + 1;
        if (job->predictions && job->predictions[i] >= job->categories)
            job->categories = job->predictions[i] + 1;
    }
    comm_max_int64(&job->categories, 1);
}
