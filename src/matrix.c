/* matrix.c: matrices whose rows lie on the ranks as the samples do. See stages.h. */
#include <math.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "progress.h"
#include "stages.h"
#include "watchdog.h"

static const int64_t PIECE_BYTES = (int64_t)64 << 20;

void matrix_free(Matrix *matrix) {
    dev_free(matrix->rows);
    matrix->rows = NULL;
}

Matrix matrix_part(const Matrix *from, const int64_t *keep, Shard shard, int width) {
    Matrix to = {.name = from->name, .shard = shard, .width = width};
    Arena *arena = arena_new();
    float *all = ARENA_ARRAY(arena, float, from->shard.count * from->width, "features");
    float *some = ARENA_ARRAY(arena, float, shard.count *width, "features");
    dev_download(all, from->rows, (size_t)from->shard.count * from->width * sizeof(float));
    for (int64_t i = 0; i < shard.count; i++)
        memcpy(some + i * width, all + (keep ? keep[i] : i) * from->width, (size_t)width * sizeof(float));
    to.rows = dev_alloc((size_t)shard.count * width * sizeof(float));
    dev_upload(to.rows, some, (size_t)shard.count * width * sizeof(float));
    arena_free(arena);
    return to;
}

static void read_rows(const Job *job, const Matrix *m, Dataset *from) {
    DType dtype = from->dtype;
    int64_t row_bytes = m->width * (int64_t)(dtype_bytes(dtype) + sizeof(float)), step = PIECE_BYTES / row_bytes + 1;
    Arena *scratch = arena_new();
    char *raw = arena_alloc(scratch, (uint64_t)(step * m->width), dtype_bytes(dtype), "rows");
    float *rows = ARENA_ARRAY(scratch, float, step * m->width, "rows");
    for (int64_t i = 0; i < m->shard.count; i += step) {
        int64_t n = m->shard.count - i < step ? m->shard.count - i : step;
        watchdog_tick();
        for (int64_t k = 0, run = job->step == 1 ? n : 1; k < n; k += run)
            dataset_read(from, raw + (size_t)(k * m->width) * dtype_bytes(dtype),
                         job->from + (m->shard.first + i + k) * job->step, run);
        dataset_to_float(rows, raw, dtype, n * m->width);
        for (int64_t k = 0; k < n * m->width; k++)
            if (!isfinite(rows[k]))
                die("%s: sample %lld has a value beyond float32", from->spec,
                    (long long)(job->from + (m->shard.first + i + k / m->width) * job->step));
        dev_upload(m->rows + i * m->width, rows, (size_t)(n * m->width) * sizeof(float));
    }
    arena_free(scratch);
}

/* Images are shown, not computed with: copied into the file in pieces, every rank its own. */
static void copy_images(Job *job) {
    const PixelTransform *t = &job->transform;
    size_t values = (size_t)t->channels * t->height * t->width, in = values * dtype_bytes(t->dtype), out = values * 4;
    out = in > out ? in : out;
    int64_t step = PIECE_BYTES / (int64_t)out + 1, most = job->shard.count;
    OutputVar var = job_image_var(job, "sample", job->shard.total);
    int id = output_var(job->output, &var);
    Arena *scratch = arena_new();
    void *pixels = arena_alloc(scratch, (uint64_t)step, in, "images"),
         *images = arena_alloc(scratch, (uint64_t)step, out, "images");
    comm_max_int64(&most, 1);
    for (int64_t i = 0; i < most; i += step) {
        int64_t n = job->shard.count - i < step ? job->shard.count - i : step;
        n = n < 0 ? 0 : n;
        if (!error_caught())
            dataset_read(job->images, pixels, job->from + job->shard.first + i, n);
        comm_all_ok();
        job_images_nchw(job, images, pixels, n);
        output_rows(job->output, id, job->shard.first + i, n, images);
    }
    arena_free(scratch);
}

Layers matrix_read(Job *job) {
    const Options *o = job->options;
    int64_t width = dataset_row_size(job->input);
    if (!error_caught()) {
        if (o->pca_given && o->pca > width)
            die_usage("--pca %d: %s is only %lld wide", o->pca, o->input, (long long)width);
        if (o->tsne_given && o->tsne > width && strcmp(o->init, "pca") == 0)
            die_usage("--tsne %d: %s is only %lld wide, too narrow for a PCA start; give --init random", o->tsne,
                      o->input, (long long)width);
    }
    comm_all_ok();
    int *node = ARENA_ARRAY(job->arena, int, 1, "the matrix");
    Matrix *m = ARENA_ARRAY(job->arena, Matrix, 1, "the matrix");
    *node = -1;
    *m = (Matrix){.name = "input", .shard = job->shard, .width = (int)width};
    progress_begin("read", "samples", job->shard.total);
    if (!error_caught()) {
        m->rows = dev_alloc((size_t)job->shard.count * (size_t)width * sizeof(float));
        read_rows(job, m, job->input);
    }
    comm_all_ok();
    if (job->images)
        copy_images(job);
    progress_end("");
    return (Layers){.count = 1, .features = m, .nodes = node};
}

Matrix matrix_read_map(const Job *job) {
    static Matrix map; /* static: it keeps its value over error_caught() */
    map = (Matrix){.name = "map", .shard = job->shard, .width = (int)job->map->shape[1]};
    if (!error_caught()) {
        map.rows = dev_alloc((size_t)(job->shard.count * map.width) * sizeof(float));
        read_rows(job, &map, job->map);
    }
    comm_all_ok();
    return map;
}
