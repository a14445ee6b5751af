/* job_output.c: what a run says about itself and its samples in the results file. See job.h. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm.h"
#include "error.h"
#include "job.h"
#include "progress.h"
#include "sha256.h"

#define CONFIGURATION "run_configuration"

static void put_option(void *output, const char *name, const char *value) {
    output_text(output, OUTPUT_GLOBAL, name, value);
}

struct Lines {
    Arena *arena;
    char *text;
};

static void put_globals(Job *job) {
    Output *out = job->output;
    const bool placing = job->options->command == COMMAND_PLACE;
    const struct {
        const char *name, *value;
    } texts[] = {
        {"title", placing      ? "New samples in a stored map"
                  : job->model ? "What a trained network computes for a test set"
                  : job->map ? "How far a map can be trusted"
                             : "Maps of a feature matrix"},
        {"Conventions", "CF-1.11, ACDD-1.3"},
        {"summary",
         placing      ? "Places of samples in a t-SNE map of others, one row a sample"
         : job->model ? "Logits, features, attribution maps, principal components and exact t-SNE maps, one row a sample"
         : job->map ? "Measures of a map against the features it was made of, one row a sample"
                    : "Principal components and exact t-SNE map, one row a sample"},
        {"source", "cnnscope " CNNSCOPE_VERSION},
        {"version", CNNSCOPE_VERSION},
        {"model_sha256", job->model ? job->model->sha256 : ""},
        {"images_sha256", job->images_sha256},
        {"input_sha256", job->input_sha256},
        {"map_sha256", job->map_sha256},
        {"labels_sha256", job->labels_sha256},
        {"predictions_sha256", job->predictions_sha256},
        {"init_sha256", job->init_sha256},
        {"baseline_sha256", job->baseline_sha256}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i].value[0])
            output_text(out, OUTPUT_GLOBAL, texts[i].name, texts[i].value);
    output_int64(out, OUTPUT_GLOBAL, "sample_count", job->shard.total);
    options_describe(job->options, put_option, out);
}

/* A line of the identity; a value is kept on its line. */
static void put_line(void *lines, const char *name, const char *value) {
    struct Lines *to = lines;
    char *one = arena_printf(to->arena, "%s", value);
    for (char *c = one; *c; c++)
        *c = *c == '\n' ? ' ' : *c;
    to->text = arena_printf(to->arena, "%s%s = %s\n", to->text, name, one);
}

/* What follows a file's name in a spec: one file may hold several arrays. */
static const char *key_of(const Dataset *data) {
    return data ? data->spec + strlen(data->path) : "";
}

/* Lines that tell runs apart whose results differ. */
static struct Lines describe(Job *job) {
    struct Lines lines = {job->arena, ""};
    const Command command = job->options->command;
    const struct {
        const char *name, *value;
    } texts[] = {{"version", CNNSCOPE_VERSION},
                 {"command", command == COMMAND_RUN     ? "run"
                             : command == COMMAND_EMBED ? "embed"
                             : command == COMMAND_AUDIT ? "audit"
                                                        : "place"},
                 {"model_sha256", job->model ? job->model->sha256 : ""},
                 {"images_sha256", job->images_sha256},
                 {"images_key", key_of(job->images)},
                 {"input_sha256", job->input_sha256},
                 {"input_key", key_of(job->input)},
                 {"labels_sha256", job->labels_sha256},
                 {"labels_key", job->labels_key},
                 {"init_sha256", job->init_sha256},
                 {"init_key", job->init_key},
                 {"baseline_sha256", job->baseline_sha256},
                 {"baseline_key", job->baseline_key}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        put_line(&lines, texts[i].name, texts[i].value);
    options_describe(job->options, put_line, &lines);
    return lines;
}

/* Of the checkpoint: work goes on on the same kind of device only, for the same bits. */
static const char *identity_of(Job *job) {
    struct Lines lines = describe(job);
    char level[16];
    snprintf(level, sizeof level, "%d", dev_isa());
    put_line(&lines, "device", dev_core());
    put_line(&lines, "device_level", level);
    return lines.text;
}

/* Of the result: a hash of all that it was made of, on whatever device. Collective. */
static void configuration_of(char hex[65], Job *job) {
    struct Lines lines = describe(job);
    put_line(&lines, "predictions_sha256", job->predictions_sha256);
    put_line(&lines, "category_names_sha256", job->category_names_sha256);
    put_line(&lines, "sample_names_sha256", job->sample_names_sha256);
    put_line(&lines, "keep_neighbors", job->options->keep_neighbors ? "yes" : "no");
    sha256_hex(hex, lines.text, strlen(lines.text));
    comm_broadcast(hex, 65); /* rank 0 knows all of these */
}

void job_open_checkpoint(Job *job) {
    job->checkpoint =
        checkpoint_open(job->arena, job->options->checkpoint, job->options->checkpoint_interval, identity_of(job));
}

bool job_is_done(Job *job) {
    const Options *o = job->options;
    char configuration[65];
    int64_t done = 0;
    if (!o->checkpoint || o->overwrite)
        return false;
    configuration_of(configuration, job);
    if (comm_rank() == 0 && output_is_there(o->output, CONFIGURATION, configuration)) {
        char line[512];
        snprintf(line, sizeof line, "%.400s: complete already, of the same files and options; nothing to do",
                 o->output);
        error_print(line);
        checkpoint_discard(job->arena, o->checkpoint, identity_of(job));
        done = 1;
    }
    comm_broadcast(&done, sizeof done);
    return done;
}

/* Fixed-width, zero-padded UTF-8; all names of the file share one width. */
static void put_names(Job *job, const char *variable, const char *dimension, const char *long_name, char **names,
                      int64_t total, int64_t first, int64_t count, int64_t width) {
    OutputVar var = {variable, OUTPUT_CHAR, 2, {dimension, "name_length"}, {total, width}, long_name, NULL, NULL};
    int id = output_var(job->output, &var);
    Arena *scratch = arena_new();
    char *text = arena_alloc(scratch, (uint64_t)count, (size_t)width, "names");
    for (int64_t i = 0; i < count; i++)
        memcpy(text + i * width, names[first + i], strlen(names[first + i]));
    output_rows(job->output, id, count ? first : 0, count, text);
    arena_free(scratch);
}

static int64_t widest(char **names, int64_t count) {
    int64_t width = 1;
    for (int64_t i = 0; names && i < count; i++)
        width = (int64_t)strlen(names[i]) > width ? (int64_t)strlen(names[i]) : width;
    return width;
}

/* CF flags let cf_xarray select by name; their words are separated by blanks, so that names lose theirs. */
void job_put_flags(const Job *job, int var) {
    if (!job->category_names)
        return;
    Arena *scratch = arena_new();
    int32_t *values = ARENA_ARRAY(scratch, int32_t, job->categories, "categories");
    char *words = "";
    for (int64_t k = 0; k < job->categories; k++) {
        values[k] = (int32_t)k;
        char *word = arena_printf(scratch, "%s", job->category_names[k]);
        for (char *c = word; *c; c++)
            *c = *c == ' ' || *c == '\t' ? '_' : *c;
        words = arena_printf(scratch, "%s%s%s", words, k ? " " : "", word);
    }
    output_int32s(job->output, var, "flag_values", values, (int)job->categories);
    output_text(job->output, var, "flag_meanings", words);
    arena_free(scratch);
}

void job_create_output(Job *job) {
    job->output = output_create(job->options->output, job->options->overwrite, job->options->compress);
    job_put_samples(job);
}

void job_put_samples(Job *job) {
    Shard s = job->shard;
    put_globals(job);

    Arena *scratch = arena_new();
    int64_t *position = ARENA_ARRAY(scratch, int64_t, s.count, "positions");
    for (int64_t i = 0; i < s.count; i++)
        position[i] = job->from + s.first + i;
    int id = output_var(
        job->output,
        &(OutputVar){
            "sample", DT_I64, 1, {"sample"}, {s.total}, "position of the sample in the input file", NULL, NULL});
    output_rows(job->output, id, s.first, s.count, position);
    arena_free(scratch);

    char **names = job->sample_names ? job->sample_names + job->from : NULL;
    int64_t width = widest(names, s.total), other = widest(job->category_names, job->categories);
    width = width > other ? width : other;
    if (names)
        put_names(job, "sample_name", "sample", "name of the sample", names, s.total, s.first, s.count, width);
    if (job->category_names)
        put_names(job, "category_name", "category", "name of the category", job->category_names, job->categories, 0,
                  comm_rank() == 0 ? job->categories : 0, width);

    const struct {
        const char *name, *long_name;
        const int32_t *values;
    } vectors[] = {{"label", "given category of the sample, -1 = none", job->labels},
                   {"prediction", "predicted category of the sample", job->predictions}};
    for (int i = 0; i < 2; i++)
        if (vectors[i].values) {
            id = output_var(
                job->output,
                &(OutputVar){vectors[i].name, DT_I32, 1, {"sample"}, {s.total}, vectors[i].long_name, NULL, NULL});
            job_put_flags(job, id);
            output_rows(job->output, id, s.first, s.count, vectors[i].values);
        }
}

const char *job_coordinates(const Job *job, bool over_category) {
    const struct {
        bool there;
        const char *name;
    } known[] = {{job->labels, "label"},
                 {job->model || job->predictions, "prediction"},
                 {job->sample_names, "sample_name"},
                 {over_category && job->category_names, "category_name"}};
    char *text = "";
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].there)
            text = arena_printf(job->arena, "%s%s%s", text, text[0] ? " " : "", known[i].name);
    return text[0] ? text : NULL;
}

void job_images_nchw(const Job *job, void *images, const void *pixels, int64_t count) {
    const PixelTransform *t = &job->transform;
    size_t item = dtype_bytes(t->dtype), C = (size_t)t->channels, cells = (size_t)t->height * t->width;
    if (t->dtype == DT_F16 && !t->channels_last) {
        dataset_to_float(images, pixels, t->dtype, count * (int64_t)(C * cells));
    } else if (!t->channels_last) {
        memcpy(images, pixels, (size_t)count * C * cells * item);
    } else {
        for (int64_t i = 0; i < count; i++)
            for (size_t c = 0; c < C; c++)
                for (size_t p = 0; p < cells; p++) {
                    const char *from = (const char *)pixels + (((size_t)i * cells + p) * C + c) * item;
                    size_t to = ((size_t)i * C + c) * cells + p;
                    if (t->dtype == DT_F16)
                        dataset_to_float((float *)images + to, from, t->dtype, 1);
                    else
                        memcpy((char *)images + to * item, from, item);
                }
    }
}

OutputVar job_image_var(const Job *job, const char *samples, int64_t length) {
    const PixelTransform *t = &job->transform;
    return (OutputVar){"image",
                       (int)t->dtype,
                       4,
                       {samples, "channel", "y", "x"},
                       {length, t->channels, t->height, t->width},
                       "pixels as read",
                       NULL,
                       strcmp(samples, "sample") ? NULL : job_coordinates(job, false)};
}

void job_finish_output(Job *job) {
    const Options *o = job->options;
    Output *out = job->output;
    int64_t threads = o->threads, memory = arena_process_bytes(true);
    const double since = progress_now();
    output_flush(out);
    progress_part("output close", progress_now() - since);
    char date[32], text[4200], host[256] = "", configuration[65];
    configuration_of(configuration, job);
    time_t now = time(NULL);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
    gethostname(host, sizeof host - 1);
    snprintf(text, sizeof text, "%s %s", date, o->command_line);
    const struct {
        const char *name, *value;
    } texts[] = {{"history", text},
                 {CONFIGURATION, configuration},
                 {"run_date", date},
                 {"run_command", o->command_line},
                 {"run_host", host},
                 {"run_model", o->model},
                 {"run_images", o->images},
                 {"run_input", o->input},
                 {"run_map", o->map},
                 {"run_labels", o->labels},
                 {"run_predictions", o->predictions}};
    comm_broadcast(text, sizeof text); /* attributes are collective: every rank writes rank 0's */
    comm_broadcast(date, sizeof date);
    comm_broadcast(host, sizeof host);
    comm_max_int64(&threads, 1);
    comm_max_int64(&memory, 1);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i].value)
            output_text(out, OUTPUT_GLOBAL, texts[i].name, texts[i].value);
    output_int64(out, OUTPUT_GLOBAL, "run_ranks", comm_size());
    output_int64(out, OUTPUT_GLOBAL, "run_threads", threads);
    output_int64(out, OUTPUT_GLOBAL, "run_batch", o->batch);
    output_text(out, OUTPUT_GLOBAL, "run_device", dev_core());
    output_int64(out, OUTPUT_GLOBAL, "run_bytes_written", output_bytes(out));
    output_int64(out, OUTPUT_GLOBAL, "run_bytes_memory", memory);
    for (int i = 0; i < progress_stages(); i++) {
        char name[128];
        double seconds;
        snprintf(name, sizeof name, "run_seconds_%s", progress_stage(i, &seconds));
        for (char *c = name; *c; c++)
            *c = *c == ' ' || *c == '.' || *c == '-' ? '_' : *c;
        comm_max(&seconds, 1);
        output_double(out, OUTPUT_GLOBAL, name, seconds);
    }
    output_finish(out);
    checkpoint_remove(job->checkpoint);
}
