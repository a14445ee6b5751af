/* fuzz.c: libFuzzer on everything that reads bytes from outside. One program, one parser a run:
 *
 *     FUZZ=pth|safetensors|onnx|dataset|keyed|csv|netcdf|names|options|checkpoint build/fuzz [libFuzzer's options] CORPUS
 *
 * A parser may refuse (die, caught here) or read; it may not touch memory that is not its own, overflow, hang, ask for
 * memory the input cannot fill, or leave a message of several lines. What it reads is used: each value is looked at. */
#include <fcntl.h>
#include <netcdf.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "checkpoint_parts.h"
#include "comm.h"
#include "dataset.h"
#include "error.h"
#include "model.h"
#include "onnx.h"
#include "options.h"
#include "progress.h"
#include "pth.h"
#include "sha256.h"
#include "state.h"
#include "stop.h"

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
    if (size >= 4 && memcmp(bytes, "\x89HDF", 4) == 0)
        return; /* the library's parser, not ours */
    if (size && bytes[0] == 0x80)
        return; /* a pickle: the target pth */
    read_spec(arena, as_file(bytes, size));
}

static void run_keyed(Arena *arena, const uint8_t *bytes, size_t size) {
    if (size && bytes[0] == 0x80)
        return;
    read_spec(arena, arena_printf(arena, "%s:x", as_file(bytes, size)));
}

static char own_path[64]; /* of a file with a name of its own, removed at the end */

static void remove_own(void) {
    unlink(own_path);
}

/* /tmp/fuzz-PID.END, which is not there. */
static const char *own_file(const char *end) {
    if (!own_path[0]) {
        snprintf(own_path, sizeof own_path, "/tmp/fuzz-%ld.%s", (long)getpid(), end);
        atexit(remove_own);
    }
    unlink(own_path);
    return own_path;
}

/* Told by its name only. */
static void run_csv(Arena *arena, const uint8_t *bytes, size_t size) {
    const char *path = as_file(bytes, size), *link = own_file("csv");
    if (symlink(path, link))
        abort();
    read_spec(arena, arena_printf(arena, "%s:x", link));
}

/* ---- netCDF ----------------------------------------------------------------------------------------------------
 * The library's own parser of netCDF-4 loops for ever on some damaged files and is not ours to mend; a classic file is
 * proved sound before the library sees it, so that bytes of one are taken as they are. Of netCDF-4 the layer above is
 * tried, on sound files of odd types, shapes and attributes, which the bytes describe. */

typedef struct {
    const uint8_t *at, *end;
} Bytes;

static int next(Bytes *bytes, int below) {
    return bytes->at < bytes->end ? *bytes->at++ % below : 0;
}

static const void *next_values(Bytes *bytes) {
    static uint8_t values[1024]; /* 3^4 of the largest type, and more */
    const size_t left = (size_t)(bytes->end - bytes->at), taken = left < 16 ? left : 16;
    for (size_t i = 0; taken && i < sizeof values; i++)
        values[i] = bytes->at[i % taken];
    bytes->at += taken;
    return values;
}

static nc_type next_type(Bytes *bytes, int file) {
    nc_type type = next(bytes, 16);
    if (type == 13 && nc_def_compound(file, 8, "pair", &type) == NC_NOERR)
        nc_insert_compound(file, type, "a", 0, NC_INT);
    else if (type == 14)
        nc_def_opaque(file, 5, "five", &type);
    else if (type == 15)
        nc_def_vlen(file, "many", NC_INT, &type);
    return type;
}

/* A file of a few small dimensions and variables. What the library refuses is left out. */
static void make_netcdf(const char *path, Bytes bytes) {
    static const int formats[] = {0, NC_64BIT_OFFSET, NC_64BIT_DATA, NC_NETCDF4, NC_NETCDF4 | NC_CLASSIC_MODEL};
    static const char *const names[] = {"x", "y", "d0"}, *const attributes[] = {"_FillValue", "scale_factor",
                                                                                "add_offset", "_Unsigned", "units"};
    int file, dims[4], variable;
    if (nc_create(path, NC_CLOBBER | formats[next(&bytes, 5)], &file))
        abort();
    const int dimensions = 1 + next(&bytes, 4), variables = next(&bytes, 4);
    for (int d = 0; d < dimensions; d++) {
        const char name[] = {'d', (char)('0' + d), '\0'};
        if (nc_def_dim(file, name, (size_t)next(&bytes, 4), &dims[d])) /* 0: unlimited */
            dims[d] = 0;
    }
    for (int v = 0; v < variables; v++) {
        const size_t start[6] = {0}, count[6] = {3, 3, 3, 3, 3, 3};
        const nc_type type = next_type(&bytes, file);
        int rank = next(&bytes, 7), of[6];
        for (int d = 0; d < rank; d++)
            of[d] = dims[next(&bytes, dimensions)];
        if (nc_def_var(file, names[v % 3], type, rank, of, &variable))
            continue;
        for (int a = next(&bytes, 4); a > 0; a--) {
            const char *name = attributes[next(&bytes, 5)];
            nc_type kind = next(&bytes, 3) ? type : 1 + next(&bytes, 11);
            const bool again = nc_inq_attid(file, variable, name, NULL) == NC_NOERR; /* which the library gets wrong */
            if (kind < NC_STRING && !again)
                nc_put_att(file, variable, name, kind, (size_t)next(&bytes, 4), next_values(&bytes));
        }
        size_t extent[6], length;
        for (int d = 0; d < rank; d++)
            extent[d] = nc_inq_dimlen(file, of[d], &length) == NC_NOERR && length ? length : count[d];
        if (nc_enddef(file) == NC_NOERR && type < NC_STRING && rank < 5)
            nc_put_vara(file, variable, start, extent, next_values(&bytes));
        nc_redef(file);
    }
    nc_close(file);
}

static void run_netcdf(Arena *arena, const uint8_t *bytes, size_t size) {
    const bool classic = size >= 3 && memcmp(bytes, "CDF", 3) == 0;
    const char *path = classic ? as_file(bytes, size) : own_file("nc");
    if (!classic)
        make_netcdf(path, (Bytes){bytes, bytes + size});
    read_spec(arena, size % 2 ? arena_printf(arena, "%s:x", path) : path);
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

/* ---- Checkpoint -------------------------------------------------------------------------------------------------
 * A folder with one hostile file, opened as a run of one rank does. The first byte says which file, and whether what only
 * chance would get right (magic, version, run, CRCs; the identity's hash) is put right first. */

static jmp_buf step_failed;

int comm_rank(void) {
    return 0;
}

void comm_all_ok(void) {
    const char *message;
    int status;
    if (error_pending(&message, &status))
        longjmp(step_failed, 1);
}

void comm_barrier(void) {
}

void comm_broadcast(void *data, size_t bytes) {
    look_at(data, bytes);
}

double progress_now(void) {
    return 0;
}

void stop_sync(int file) {
    (void)file;
}

static const char identity[] = "version = 1\noption_seed = 0\n";
enum { HEADER_BYTES = 16 + sizeof(Record) }; /* RecordHeader of record.c: magic, version, CRC, record */

static void put_crc(uint8_t *to, const uint8_t *bytes, size_t size) {
    const uint32_t crc = (uint32_t)crc32(0, bytes, (uInt)size);
    memcpy(to, &crc, sizeof crc);
}

/* Records that follow each other as their lengths say, each one made sound. */
static void mend_records(uint8_t *bytes, size_t size, uint64_t run) {
    const uint32_t version = 1, none = 0;
    Record record;
    for (size_t at = 0; size - at >= HEADER_BYTES + sizeof none; at += HEADER_BYTES + record.bytes + sizeof none) {
        memcpy(&record, bytes + at + 16, sizeof record);
        record.run = run;
        memcpy(bytes + at, "cnnscope", 8);
        memcpy(bytes + at + 8, &version, sizeof version);
        memcpy(bytes + at + 12, &none, sizeof none);
        memcpy(bytes + at + 16, &record, sizeof record);
        put_crc(bytes + at + 12, bytes + at, HEADER_BYTES);
        if (record.bytes > size - at - HEADER_BYTES - sizeof none)
            return;
        put_crc(bytes + at + HEADER_BYTES + record.bytes, bytes + at + HEADER_BYTES, record.bytes);
    }
}

static void put_file(const char *folder, const char *name, const void *bytes, size_t size) {
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || write(file, bytes, size) != (ssize_t)size)
        abort();
    close(file);
}

static void put_identity(Arena *arena, const char *folder, const char *lines) {
    char hex[65];
    sha256_hex(hex, lines, strlen(lines));
    const char *text = arena_printf(arena, "%scheck = %s\n", lines, hex);
    put_file(folder, "identity.txt", text, strlen(text));
}

/* What a pass restores: two kinds of rows, of which one is there for some positions only. */
static void look_at_rows(Checkpoint *checkpoint) {
    enum { ROWS = 64, ROUND = 40 };
    bool have[ROWS];
    char *all = malloc(3 * ROWS), *some = malloc(5 * 10); /* their ends are watched */
    memset(all, 0, 3 * ROWS);
    memset(some, 0, 5 * 10);
    const CheckpointPiece pieces[] = {{3, 0, ROWS, all, 0, false}, {5, 20, 30, some, 20, false}};
    if (checkpoint_rows(checkpoint, "forward") < 0)
        abort();
    for (int first = 0; first < ROWS; first += ROUND)
        checkpoint_restore(checkpoint, "forward", have + first, first, first + ROUND < ROWS ? ROUND : ROWS - first,
                           pieces, 2);
    look_at(have, sizeof have);
    look_at(all, 3 * ROWS);
    look_at(some, 5 * 10);
    free(all);
    free(some);
}

static void run_checkpoint(Arena *arena, const uint8_t *bytes, size_t size) {
    enum { ROWS_FILE, STATE_FILE, IDENTITY_FILE, FILES };
    static char folder[64], hex[65], name[NAME_BYTES];
    if (size == 0)
        return;
    const int which = bytes[0] % FILES;
    const bool mend = bytes[0] / FILES % 2;
    uint8_t *copy = arena_alloc(arena, size, 1, "copy"); /* ends with a zero */
    memcpy(copy, bytes + 1, --size);
    snprintf(folder, sizeof folder, "/tmp/fuzz-%ld.ck", (long)getpid());
    mkdir(folder, 0700);
    sha256_hex(hex, identity, strlen(identity));
    hex[16] = '\0';
    if (which != IDENTITY_FILE && mend)
        mend_records(copy, size, strtoull(hex, NULL, 16));
    checkpoint_whole_name(name, "tsne logits", 7);
    put_file(folder, which == STATE_FILE ? name : LOG_PREFIX "1", copy, size);
    if (which != IDENTITY_FILE)
        put_identity(arena, folder, identity);
    else if (mend)
        put_identity(arena, folder, (const char *)copy);
    else
        put_file(folder, "identity.txt", copy, size);
    const int unused = dup(STDERR_FILENO); /* from it on: what a refusal leaves open */
    if (setjmp(step_failed) == 0) {
        size_t length;
        Checkpoint *checkpoint = checkpoint_open(arena, folder, 1, identity);
        look_at_rows(checkpoint);
        const void *whole = checkpoint_load(checkpoint, arena, "tsne logits", &length);
        if (whole)
            look_at(whole, length);
        checkpoint_remove(checkpoint);
    }
    close_range((unsigned)unused, ~0u, 0);
    static const char *const files[] = {"identity.txt", LOG_PREFIX "1", name, "lock"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[PATH_BYTES];
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    rmdir(folder);
}

static const struct {
    const char *name;
    void (*run)(Arena *arena, const uint8_t *bytes, size_t size);
} targets[] = {{"pth", run_pth},         {"safetensors", run_safetensors},
               {"onnx", run_onnx},       {"dataset", run_dataset},
               {"keyed", run_keyed},     {"csv", run_csv},
               {"netcdf", run_netcdf},   {"names", run_names},
               {"options", run_options}, {"checkpoint", run_checkpoint}};
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
