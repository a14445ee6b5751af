/* pass.c: see pass.h. */
#include "pass.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "progress.h"

static const int64_t ROUND_BYTES = (int64_t)64 << 20;

struct LaneWork {
    Lane *lane;
    int32_t *prediction;            /* device, (B) */
    float *seed, *map, *low, *high; /* device */
};

Pass *pass_new(Arena *arena, Job *job, Shard shard, const int64_t *samples) {
    Pass *pass = ARENA_ARRAY(arena, Pass, 1, "a pass");
    *pass = (Pass){.job = job, .arena = arena, .shard = shard, .samples = samples, .batch = job->options->batch};
    if (job->model->graph->count > (int)(sizeof pass->want_value / sizeof *pass->want_value))
        die("%s: more than %zu layers", job->options->model, sizeof pass->want_value / sizeof *pass->want_value);
    return pass;
}

Stream *pass_stream(Pass *pass, const OutputVar *var, size_t row_bytes, int64_t from, int64_t to) {
    if (pass->stream_count == STREAMS_MAX)
        die_usage("more than %d variables are asked for in one pass", STREAMS_MAX);
    Stream *stream = &pass->streams[pass->stream_count++];
    *stream =
        (Stream){.var = var ? output_var(pass->job->output, var) : -1, .row_bytes = row_bytes, .from = from, .to = to};
    return stream;
}

static char *stream_row(const Pass *pass, const Stream *stream, int64_t round, int64_t position) {
    return stream->rows + (size_t)(position - pass->shard.first - round * pass->round_samples) * stream->row_bytes;
}

static void pass_memory(Pass *pass) {
    Job *job = pass->job;
    const Graph *graph = job->model->graph;
    size_t pixel_bytes = (size_t)dataset_row_size(job->images) * dtype_bytes(job->images->dtype), bytes = pixel_bytes;
    for (int i = 0; i < pass->stream_count; i++)
        bytes += pass->streams[i].row_bytes;
    int64_t batches = ROUND_BYTES / (int64_t)(bytes * (size_t)pass->batch), most = pass->shard.count;
    comm_max_int64(&most, 1);
    pass->lanes = lane_count();
    if (batches < pass->lanes)
        batches = pass->lanes;
    pass->round_samples = batches * pass->batch;
    if (pass->round_samples > most)
        pass->round_samples = (most + pass->batch - 1) / pass->batch * pass->batch;
    pass->rounds = (most + pass->round_samples - 1) / pass->round_samples;
    for (int i = 0; i < pass->stream_count; i++)
        pass->streams[i].rows = dev_alloc_host((size_t)pass->round_samples * pass->streams[i].row_bytes);
    pass->pixels = dev_alloc_host((size_t)pass->round_samples * pixel_bytes);

    pass->want_value[graph->logits] = true;
    for (int i = 0; i < pass->feature_count; i++) {
        pass->only_mapped[pass->feature_nodes[i]] = !pass->want_value[pass->feature_nodes[i]];
        pass->want_value[pass->feature_nodes[i]] = true;
    }
    pass->plan = graph_plan(pass->arena, graph, pass->batch, pass->want_value, pass->want_gradient);
    size_t outputs = (size_t)shape_size(graph->nodes[graph->logits].shape), cells = 1, B = (size_t)pass->batch;
    for (int m = 0; m < pass->method_count; m++) {
        size_t map = (size_t)shape_height(pass->methods[m].layer) * shape_width(pass->methods[m].layer);
        cells = map > cells ? map : cells;
    }
    pass->work = ARENA_ARRAY(pass->arena, struct LaneWork, pass->lanes, "lanes");
    for (int i = 0; i < pass->lanes; i++) {
        struct LaneWork *w = &pass->work[i];
        w->lane = lane_new(graph_lane_bytes(pass->plan));
        w->prediction = dev_alloc(B * sizeof(int32_t));
        w->seed = dev_alloc(B * outputs * sizeof(float));
        w->map = dev_alloc(B * cells * sizeof(float));
        w->low = dev_alloc(B * sizeof(float));
        w->high = dev_alloc(B * sizeof(float));
    }
}

static void pass_free(Pass *pass) {
    for (int i = 0; i < pass->lanes; i++) {
        struct LaneWork *w = &pass->work[i];
        lane_free(w->lane);
        dev_free(w->prediction);
        dev_free(w->seed);
        dev_free(w->map);
        dev_free(w->low);
        dev_free(w->high);
    }
    for (int i = 0; i < pass->stream_count; i++)
        dev_free_host(pass->streams[i].rows);
    dev_free_host(pass->pixels);
    graph_plan_free(pass->plan);
}

/* The job's sample at a position of this rank. */
static int64_t sample_at(const Pass *pass, int64_t position) {
    return pass->samples ? pass->samples[position - pass->shard.first] : position;
}

static bool is_mapped(const Stream *feature, int64_t position, int count) {
    return position < feature->to && position + count > feature->from;
}

static void forward_batch(const Pass *pass, Lane *lane, int64_t position, int count) {
    bool unread[sizeof pass->only_mapped / sizeof *pass->only_mapped];
    memcpy(unread, pass->only_mapped, sizeof unread);
    for (int i = 0; i < pass->feature_count; i++)
        if (is_mapped(pass->features[i], position, count))
            unread[pass->feature_nodes[i]] = false;
    graph_forward_without(pass->plan, lane, unread);
}

static void compute_batch(Pass *pass, struct LaneWork *w, int64_t round, int64_t position, int count) {
    const Job *job = pass->job;
    const Graph *graph = job->model->graph;
    int B = pass->batch, outputs = (int)shape_size(graph->nodes[graph->logits].shape);
    size_t pixel_bytes = (size_t)dataset_row_size(job->images) * dtype_bytes(job->images->dtype);
    int64_t in_round = position - pass->shard.first - round * pass->round_samples;
    Lane *lane = w->lane;

    k_input(lane, graph_input(pass->plan, lane), pass->pixels + (size_t)in_round * pixel_bytes, &job->transform, count,
            B);
    forward_batch(pass, lane, position, count);
    const float *logits = graph_value(pass->plan, lane, graph->logits);
    k_predict(lane, w->prediction, logits, B, outputs);
    if (pass->logits) {
        lane_download(lane, stream_row(pass, pass->logits, round, position), logits,
                      (size_t)count * pass->logits->row_bytes);
        lane_download(lane, stream_row(pass, pass->prediction, round, position), w->prediction,
                      (size_t)count * sizeof(int32_t));
    }
    for (int i = 0; pass->layers && i < pass->layers->count; i++) {
        Matrix *m = &pass->layers->features[i];
        lane_copy(lane, m->rows + (position - m->shard.first) * m->width,
                  graph_value(pass->plan, lane, pass->layers->nodes[i]), (size_t)count * m->width * sizeof(float));
    }
    for (int i = 0; i < pass->feature_count; i++) {
        const Stream *s = pass->features[i];
        if (is_mapped(s, position, count))
            lane_download(lane, stream_row(pass, s, round, position),
                          graph_value(pass->plan, lane, pass->feature_nodes[i]), (size_t)count * s->row_bytes);
    }
    if (pass->method_count > 0) {
        k_seed(lane, w->seed, w->prediction, B, outputs);
        graph_backward(pass->plan, lane, w->seed);
    }
    for (int m = 0; m < pass->method_count; m++) {
        float *const parts[3] = {w->map, w->low, w->high};
        attribution_batch(w->map, w->low, w->high, &pass->methods[m], pass->plan, lane, B);
        for (int i = 0; i < 3; i++)
            lane_download(lane, stream_row(pass, pass->maps[m][i], round, position), parts[i],
                          (size_t)count * pass->maps[m][i]->row_bytes);
    }
    lane_sync(lane);
}

static void compute_round(Pass *pass, int64_t round, int64_t from, int64_t count) {
    int64_t batches = (count + pass->batch - 1) / pass->batch, done = 0;
#pragma omp parallel num_threads(pass->lanes)
    {
        int me = omp_get_thread_num();
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < batches; b++) {
            int64_t first = b * pass->batch;
            compute_batch(pass, &pass->work[me], round, from + first,
                          (int)(count - first < pass->batch ? count - first : pass->batch));
            int64_t now;
#pragma omp atomic capture
            now = ++done;
            if (me == 0)
                progress_at((from - pass->shard.first + now * pass->batch) * comm_size(), "");
        }
    }
}

/* Pixels of positions [from, from + count), in runs of neighbouring samples. */
static void read_round(Pass *pass, int64_t from, int64_t count) {
    const Job *job = pass->job;
    size_t pixel_bytes = (size_t)dataset_row_size(job->images) * dtype_bytes(job->images->dtype);
    for (int64_t i = 0, run; i < count; i += run) {
        int64_t sample = sample_at(pass, from + i);
        for (run = 1; i + run < count && sample_at(pass, from + i + run) == sample + run; run++)
            ;
        dataset_read(job->images, pass->pixels + (size_t)i * pixel_bytes, job->from + sample, run);
    }
}

static void check_logits(const Pass *pass, int64_t round, int64_t from, int64_t count) {
    const Job *job = pass->job;
    int64_t outputs = (int64_t)(pass->logits->row_bytes / sizeof(float));
    const float *logits = (const float *)stream_row(pass, pass->logits, round, from);
    for (int64_t i = 0; i < count * outputs; i++)
        if (!isfinite(logits[i]))
            die("%s: the network's output for sample %lld is not finite; check --scale, --mean and --std, and the "
                "weights",
                job->options->images, (long long)(job->from + sample_at(pass, from + i / outputs)));
}

static void write_round(Pass *pass, int64_t round, int64_t from, int64_t count) {
    for (int i = 0; i < pass->stream_count; i++) {
        const Stream *s = &pass->streams[i];
        int64_t low = from > s->from ? from : s->from, high = from + count < s->to ? from + count : s->to;
        if (low < high)
            output_rows(pass->job->output, s->var, low - s->from, high - low, stream_row(pass, s, round, low));
        else
            output_rows(pass->job->output, s->var, 0, 0, NULL);
    }
}

void pass_run(Pass *pass, const char *name, float *all_logits) {
    Job *job = pass->job;
    pass_memory(pass);
    progress_begin(name, "samples", pass->shard.total);
    for (int64_t round = 0; round < pass->rounds; round++) {
        int64_t from = pass->shard.first + round * pass->round_samples,
                left = pass->shard.first + pass->shard.count - from;
        int64_t count = left < 0 ? 0 : left < pass->round_samples ? left : pass->round_samples;
        if (!error_caught())
            read_round(pass, from, count);
        comm_all_ok();
        compute_round(pass, round, from, count);
        if (pass->image)
            job_images_nchw(job, stream_row(pass, pass->image, round, from), pass->pixels, count);
        if (pass->logits) {
            if (!error_caught())
                check_logits(pass, round, from, count);
            comm_all_ok();
            memcpy(job->predictions + (from - pass->shard.first), stream_row(pass, pass->prediction, round, from),
                   (size_t)count * sizeof(int32_t));
        }
        if (all_logits)
            memcpy((char *)all_logits + (size_t)(from - pass->shard.first) * pass->logits->row_bytes,
                   stream_row(pass, pass->logits, round, from), (size_t)count * pass->logits->row_bytes);
        write_round(pass, round, from, count);
    }
    progress_end("");
    pass_free(pass);
}
