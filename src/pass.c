/* pass.c: see pass.h. */
#include "pass.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "progress.h"

static const int64_t ROUND_BYTES = (int64_t)64 << 20;
static const double ROUND_SECONDS = 1;

struct LaneWork {
    Lane *lane;
    int32_t *prediction; /* device, (B) */
    AttributionLane attribution;
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

static char *stream_row(const Pass *pass, const Stream *stream, int64_t position) {
    return stream->rows + (size_t)(position - pass->from) * stream->row_bytes;
}

static size_t pixel_bytes_of(const Pass *pass) {
    return (size_t)dataset_row_size(pass->job->images) * dtype_bytes(pass->job->images->dtype);
}

size_t pass_round_bytes(const Pass *pass, int64_t samples) {
    size_t bytes = pixel_bytes_of(pass) * (size_t)samples;
    for (int i = 0; i < pass->stream_count; i++) {
        const Stream *s = &pass->streams[i];
        bytes += s->row_bytes * (size_t)(s->to - s->from < samples ? s->to - s->from : samples);
    }
    return bytes;
}

/* The job's sample at a position of this rank, counted in the file from job->from. */
static int64_t sample_at(const Pass *pass, int64_t position) {
    return (pass->samples ? pass->samples[position - pass->shard.first] : position) * pass->job->step;
}

static bool attributes(const Pass *pass) {
    return pass->attribution && pass->attribution->count > 0;
}

void pass_plan(Pass *pass) {
    const Graph *graph = pass->job->model->graph;
    size_t bytes = pixel_bytes_of(pass);
    for (int i = 0; i < pass->stream_count; i++)
        bytes += pass->streams[i].row_bytes;
    pass->lanes = lane_count();
    int64_t batches = ROUND_BYTES / (int64_t)(bytes * (size_t)pass->batch), most[2] = {pass->shard.count, pass->lanes};
    comm_max_int64(most, 2);
    pass->most_samples = most[0];
    pass->least_round = most[1] * pass->batch;
    if (batches < most[1])
        batches = most[1];
    pass->round_samples = batches * pass->batch;
    if (pass->round_samples > most[0])
        pass->round_samples = (most[0] + pass->batch - 1) / pass->batch * pass->batch;

    pass->want_value[graph->logits] = true;
    for (int i = 0; i < pass->feature_count; i++) {
        pass->only_mapped[pass->feature_nodes[i]] = !pass->want_value[pass->feature_nodes[i]];
        pass->want_value[pass->feature_nodes[i]] = true;
    }
    pass->plan = graph_plan(pass->arena, graph, pass->batch, pass->want_value, pass->want_gradient);
}

size_t pass_lane_bytes(const Pass *pass) {
    return graph_lane_bytes(pass->plan) +
           (attributes(pass) ? attribution_lane_bytes(pass->attribution, pass->batch) : 0);
}

/* Collective. */
static void start_attribution(Pass *pass) {
    const Job *job = pass->job;
    Arena *scratch = arena_new();
    int64_t *numbers = ARENA_ARRAY(scratch, int64_t, pass->shard.count, "samples");
    int32_t *labels = ARENA_ARRAY(scratch, int32_t, pass->shard.count, "labels");
    for (int64_t i = 0; i < pass->shard.count; i++) {
        const int64_t sample = sample_at(pass, pass->shard.first + i);
        numbers[i] = job->from + sample;
        labels[i] = job->labels ? job->labels[sample / job->step - job->shard.first] : -1;
    }
    attribution_start(pass->attribution, pass->plan, pass->work[0].lane, numbers, labels, pass->shard.count,
                      pass->batch);
    for (int i = 0; i < pass->lanes; i++)
        pass->work[i].attribution = attribution_lane_new(pass->attribution);
    arena_free(scratch);
}

static void pass_memory(Pass *pass) {
    pass_plan(pass);
    pass->have = ARENA_ARRAY(pass->arena, bool, pass->round_samples, "results of a round");
    for (int i = 0; i < pass->stream_count; i++)
        pass->streams[i].rows =
            dev_alloc_host((size_t)pass->round_samples * pass->streams[i].row_bytes);
    const size_t pixel_bytes = pixel_bytes_of(pass);
    pass->pixels = dev_alloc_host((size_t)pass->round_samples * pixel_bytes);

    pass->work = ARENA_ARRAY(pass->arena, struct LaneWork, pass->lanes, "lanes");
    for (int i = 0; i < pass->lanes; i++) {
        struct LaneWork *w = &pass->work[i];
        w->lane = lane_new(graph_lane_bytes(pass->plan));
        w->prediction = dev_alloc((size_t)pass->batch * sizeof(int32_t));
    }
    if (attributes(pass))
        start_attribution(pass);
}

static void pass_free(Pass *pass) {
    for (int i = 0; i < pass->lanes; i++) {
        struct LaneWork *w = &pass->work[i];
        lane_free(w->lane);
        dev_free(w->prediction);
        if (attributes(pass))
            attribution_lane_free(&w->attribution);
    }
    if (attributes(pass))
        attribution_stop(pass->attribution);
    for (int i = 0; i < pass->stream_count; i++)
        dev_free_host(pass->streams[i].rows);
    dev_free_host(pass->pixels);
    graph_plan_free(pass->plan);
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

static void attribute_batch(const Pass *pass, struct LaneWork *w, int64_t position, int count) {
    const Attribution *a = pass->attribution;
    AttributionRows to = {.target = NULL};
    if (pass->targets[0])
        to.target = stream_row(pass, pass->targets[0], position);
    if (pass->targets[1])
        to.against = stream_row(pass, pass->targets[1], position);
    if (pass->agreement)
        to.agreement = stream_row(pass, pass->agreement, position);
    for (int m = 0; m < a->count; m++)
        for (int i = 0; i < a->methods[m].parts; i++)
            to.rows[m][i] = stream_row(pass, pass->maps[m][i], position);
    attribution_batch(a, &w->attribution, &to, pass->plan, w->lane, w->prediction, position - pass->shard.first, count);
}

static void compute_batch(Pass *pass, struct LaneWork *w, int64_t position, int count) {
    const Job *job = pass->job;
    const Graph *graph = job->model->graph;
    int B = pass->batch, outputs = (int)shape_size(graph->nodes[graph->logits].shape);
    const size_t pixel_bytes = pixel_bytes_of(pass);
    Lane *lane = w->lane;

    k_input(lane, graph_input(pass->plan, lane), pass->pixels + (size_t)(position - pass->from) * pixel_bytes,
            &job->transform, count, B);
    forward_batch(pass, lane, position, count);
    const float *logits = graph_value(pass->plan, lane, graph->logits);
    k_predict(lane, w->prediction, logits, B, outputs);
    if (pass->logits) {
        lane_download(lane, stream_row(pass, pass->logits, position), logits, (size_t)count * pass->logits->row_bytes);
        lane_download(lane, stream_row(pass, pass->prediction, position), w->prediction,
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
            lane_download(lane, stream_row(pass, s, position), graph_value(pass->plan, lane, pass->feature_nodes[i]),
                          (size_t)count * s->row_bytes);
    }
    if (attributes(pass))
        attribute_batch(pass, w, position, count);
    lane_sync(lane);
}

/* Whether all rows of a batch have come from the checkpoint. */
static bool is_there(const Pass *pass, int64_t batch) {
    int64_t to = (batch + 1) * pass->batch < pass->count ? (batch + 1) * pass->batch : pass->count;
    for (int64_t i = batch * pass->batch; i < to; i++)
        if (!pass->have[i])
            return false;
    return true;
}

static void compute_round(Pass *pass) {
    int64_t batches = (pass->count + pass->batch - 1) / pass->batch, done = 0;
#pragma omp parallel num_threads(pass->lanes)
    {
        int me = omp_get_thread_num();
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < batches; b++) {
            int64_t first = b * pass->batch;
            if (!is_there(pass, b))
                compute_batch(pass, &pass->work[me], pass->from + first,
                              (int)(pass->count - first < pass->batch ? pass->count - first : pass->batch));
            int64_t now;
#pragma omp atomic capture
            now = ++done;
            if (me == 0)
                progress_at((pass->from - pass->shard.first + now * pass->batch) * comm_size(), "");
        }
    }
}

/* The round's pixels, in runs of neighbouring samples. Where neither a batch nor the file wants them, none are read. */
static void read_round(Pass *pass) {
    const Job *job = pass->job;
    const int64_t from = pass->from, count = pass->count;
    if (!pass->image && memchr(pass->have, false, (size_t)count) == NULL)
        return;
    const size_t pixel_bytes = pixel_bytes_of(pass);
    for (int64_t i = 0, run; i < count; i += run) {
        int64_t sample = sample_at(pass, from + i);
        for (run = 1; i + run < count && sample_at(pass, from + i + run) == sample + run; run++)
            ;
        dataset_read(job->images, pass->pixels + (size_t)i * pixel_bytes, job->from + sample, run);
    }
}

static void check_logits(const Pass *pass) {
    const Job *job = pass->job;
    const int64_t from = pass->from, count = pass->count;
    int64_t outputs = (int64_t)(pass->logits->row_bytes / sizeof(float));
    const float *logits = (const float *)stream_row(pass, pass->logits, from);
    for (int64_t i = 0; i < count * outputs; i++)
        if (!isfinite(logits[i]))
            die("%s: the network's output for sample %lld is not finite; check --scale, --mean and --std, and the "
                "weights",
                job->options->images, (long long)(job->from + sample_at(pass, from + i / outputs)));
}

static void write_round(Pass *pass) {
    const int64_t from = pass->from, count = pass->count;
    for (int i = 0; i < pass->stream_count; i++) {
        const Stream *s = &pass->streams[i];
        int64_t low = from > s->from ? from : s->from, high = from + count < s->to ? from + count : s->to;
        if (low < high)
            output_rows(pass->job->output, s->var, low - s->from, high - low, stream_row(pass, s, low));
        else
            output_rows(pass->job->output, s->var, 0, 0, NULL);
    }
}

/* ---- Checkpoint ------------------------------------------------------------------------------------------------- */

/* What of a round is kept: all streams but the images, which are read again, and the features. */
static void set_pieces(Pass *pass) {
    CheckpointPiece *pieces = pass->pieces;
    int count = 0;
    for (int i = 0; i < pass->stream_count; i++) {
        const Stream *s = &pass->streams[i];
        if (s != pass->image)
            pieces[count++] = (CheckpointPiece){s->row_bytes, s->from, s->to, s->rows, pass->from, false};
    }
    for (int i = 0; pass->layers && i < pass->layers->count; i++) {
        const Matrix *m = &pass->layers->features[i];
        pieces[count++] = (CheckpointPiece){
            (size_t)m->width * sizeof(float), 0, m->shard.total, (char *)m->rows, m->shard.first, true};
    }
    pass->piece_count = count;
}

/* The rows of the batches that were computed. */
static void keep_round(Pass *pass, const char *name) {
    int64_t batches = (pass->count + pass->batch - 1) / pass->batch;
    for (int64_t b = 0, next; b < batches; b = next) {
        const bool there = is_there(pass, b);
        for (next = b + 1; next < batches && is_there(pass, next) == there; next++)
            ;
        int64_t first = b * pass->batch, to = next * pass->batch < pass->count ? next * pass->batch : pass->count;
        if (!there)
            checkpoint_append(pass->job->checkpoint, name, pass->from + first, to - first, pass->pieces,
                              pass->piece_count);
    }
}

/* ---- Rounds ----------------------------------------------------------------------------------------------------- */

/* Samples of the next round: about a second's, where a checkpoint is kept after each. The same on every rank. */
static int64_t next_round(const Pass *pass, int64_t samples, double since) {
    double seconds = progress_now() - since;
    comm_max(&seconds, 1);
    double factor = fmin(fmax(ROUND_SECONDS / fmax(seconds, 1e-6), 0.25), 16);
    int64_t next = (int64_t)((double)samples * factor) / pass->batch * pass->batch;
    next = next > pass->least_round ? next : pass->least_round;
    return next < pass->round_samples ? next : pass->round_samples;
}

/* Now, the seconds since then put down to a part. */
static double took(Pass *pass, int part, double since) {
    const double now = progress_now();
    pass->seconds[part] += now - since;
    return now;
}

static void run_round(Pass *pass, const char *name, float *all_logits) {
    Job *job = pass->job;
    double since = progress_now();
    if (job->checkpoint)
        set_pieces(pass);
    if (!error_caught()) {
        checkpoint_restore(job->checkpoint, name, pass->have, pass->from, pass->count, pass->pieces, pass->piece_count);
        read_round(pass);
    }
    comm_all_ok();
    since = took(pass, PASS_READ, since);
    compute_round(pass);
    since = took(pass, PASS_COMPUTE, since);
    if (pass->image)
        job_images_nchw(job, stream_row(pass, pass->image, pass->from), pass->pixels, pass->count);
    if (pass->logits) {
        if (!error_caught())
            check_logits(pass);
        comm_all_ok();
        memcpy(job->predictions + (pass->from - pass->shard.first), stream_row(pass, pass->prediction, pass->from),
               (size_t)pass->count * sizeof(int32_t));
    }
    if (all_logits)
        memcpy((char *)all_logits + (size_t)(pass->from - pass->shard.first) * pass->logits->row_bytes,
               stream_row(pass, pass->logits, pass->from), (size_t)pass->count * pass->logits->row_bytes);
    if (job->checkpoint) {
        if (!error_caught())
            keep_round(pass, name);
        comm_all_ok();
    }
    write_round(pass);
    took(pass, PASS_WRITE, since);
}

void pass_run(Pass *pass, const char *name, float *all_logits) {
    Checkpoint *checkpoint = pass->job->checkpoint;
    pass_memory(pass);
    if (checkpoint)
        pass->pieces = ARENA_ARRAY(pass->arena, CheckpointPiece,
                                   pass->stream_count + (pass->layers ? pass->layers->count : 0), "checkpoint");
    progress_begin(name, "samples", pass->shard.total);
    progress_restored(checkpoint_rows(checkpoint, name));
    int64_t samples = pass->round_samples;
    if (checkpoint && pass->least_round < samples)
        samples = pass->least_round;
    for (int64_t done = 0, next; done < pass->most_samples; done = next) {
        const double since = progress_now();
        next = done + samples;
        pass->from = pass->shard.first + (done < pass->shard.count ? done : pass->shard.count);
        pass->count = (next < pass->shard.count ? next : pass->shard.count) + pass->shard.first - pass->from;
        run_round(pass, name, all_logits);
        if (checkpoint)
            samples = next_round(pass, samples, since);
    }
    progress_end("");
    static const char *const parts[PASS_PARTS] = {"read", "compute", "write"};
    for (int i = 0; i < PASS_PARTS; i++) {
        char part[64];
        snprintf(part, sizeof part, "%s_%s", name, parts[i]);
        progress_part(part, pass->seconds[i]);
    }
    pass_free(pass);
}
