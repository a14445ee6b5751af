/* fuzz.c: libFuzzer on everything that reads bytes from outside. One program, one parser a run:
 *
 *     FUZZ=pth|safetensors|onnx|dataset|keyed|names|options build/fuzz [libFuzzer's options] CORPUS
 *
 * A parser may refuse (die, caught here) or read; it may not touch memory that is not its own, overflow, hang, ask for
 * memory the input cannot fill, or leave a message of several lines. What it reads is used: each value is looked at. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dataset.h"
#include "error.h"
#include "model.h"
#include "onnx.h"
#include "options.h"
#include "pth.h"
#include "state.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerInitialize(int *count, char ***arguments);

static volatile unsigned char seen; /* what was read must be readable */

static void look_at(const void *data, size_t size) {
    for (size_t i = 0; i < size; i++)
        seen ^= ((const unsigned char *)data)[i];
}

/* The bytes as a file that can be opened by its name. */
static const char *as_file(const uint8_t *bytes, size_t size) {
    static char path[64];
    static int file = -1;
    if (file < 0) {
        file = memfd_create("fuzz", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    }
    if (file < 0 || ftruncate(file, 0) || pwrite(file, bytes, size, 0) != (ssize_t)size)
        abort();
    return path;
}

static void look_at_tensors(const StateDict *state) {
    for (int i = 0; i < state->count; i++) {
        look_at(state->tensors[i].name, strlen(state->tensors[i].name));
        look_at(state->tensors[i].data, (size_t)state->tensors[i].size * dtype_bytes(state->tensors[i].dtype));
    }
}

static void run_pth(Arena *arena, const uint8_t *bytes, size_t size) {
    look_at_tensors(pth_read(arena, bytes, size, "fuzz"));
}

static void run_safetensors(Arena *arena, const uint8_t *bytes, size_t size) {
    look_at_tensors(safetensors_read(arena, bytes, size, "fuzz"));
}

/* The last three bytes are the size of the images. */
static void run_onnx(Arena *arena, const uint8_t *bytes, size_t size) {
    if (size < 3)
        return;
    size -= 3;
    const OnnxWish wish = {.input = shape_chw(bytes[size] + 1, bytes[size + 1] + 1, bytes[size + 2] + 1)};
    OnnxNetwork network = onnx_read(arena, bytes, size, "fuzz", &wish);
    look_at(network.output_name, strlen(network.output_name));
}

static void read_spec(Arena *arena, const char *spec) {
    Dataset *dataset = dataset_open(arena, spec);
    const size_t row = (size_t)dataset_row_size(dataset) * dtype_bytes(dataset->dtype);
    if (row * (size_t)dataset->shape[0] < (size_t)16 << 20) {
        void *rows = arena_alloc(arena, (size_t)dataset->shape[0], row, "rows");
        dataset_read(dataset, rows, 0, dataset->shape[0]);
        look_at(rows, row * (size_t)dataset->shape[0]);
    }
    dataset_close(dataset);
}

static void run_dataset(Arena *arena, const uint8_t *bytes, size_t size) {
    if (size >= 4 && (memcmp(bytes, "\x89HDF", 4) == 0 || memcmp(bytes, "CDF", 3) == 0))
        return; /* the library's parser, not ours */
    if (size && bytes[0] == 0x80)
        return; /* a pickle: the target pth */
    read_spec(arena, as_file(bytes, size));
}

/* .npz and .csv: told by content. */
static void run_keyed(Arena *arena, const uint8_t *bytes, size_t size) {
    if (size && bytes[0] == 0x80)
        return;
    read_spec(arena, arena_printf(arena, "%s:x", as_file(bytes, size)));
}

static void run_names(Arena *arena, const uint8_t *bytes, size_t size) {
    int64_t count;
    char **names = dataset_names(arena, as_file(bytes, size), -1, &count);
    for (int64_t i = 0; i < count; i++)
        look_at(names[i], strlen(names[i]));
}

/* Words separated by newlines. */
static void run_options(Arena *arena, const uint8_t *bytes, size_t size) {
    enum { WORDS = 64 };
    char *text = arena_alloc(arena, size + 1, 1, "text"), *words[WORDS + 1] = {"cnnscope"};
    memcpy(text, bytes, size);
    int count = 1;
    for (char *word; count < WORDS && (word = strsep(&text, "\n"));)
        words[count++] = word;
    Options options;
    options_parse(&options, count, words);
    look_at(&options, sizeof options);
}

static const struct {
    const char *name;
    void (*run)(Arena *arena, const uint8_t *bytes, size_t size);
} targets[] = {{"pth", run_pth},        {"safetensors", run_safetensors},
               {"onnx", run_onnx},      {"dataset", run_dataset},
               {"keyed", run_keyed},    {"names", run_names},
               {"options", run_options}};
static void (*target)(Arena *arena, const uint8_t *bytes, size_t size);

int LLVMFuzzerInitialize(int *count, char ***arguments) {
    (void)count;
    (void)arguments;
    const char *name = getenv("FUZZ");
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++)
        if (name && strcmp(name, targets[i].name) == 0)
            target = targets[i].run;
    if (!target) {
        fprintf(stderr, "FUZZ=%s: expected one of the names at the top of tests/fuzz.c\n", name ? name : "");
        exit(2);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    static Arena *arena;
    const char *message;
    int status;
    arena = arena_new();
    if (!error_caught())
        target(arena, bytes, size);
    if (error_pending(&message, &status) && (status < 1 || status > 2 || strlen(message) == 0))
        abort();
    arena_free(arena);
    return 0;
}
