/* test_pth.c: the .pth reader against files that PyTorch wrote, and against files made to break it.
 *
 * All in this process: a file that must be refused is one whose reading ends in die(), caught here. Under
 * AddressSanitizer (-DSANITIZE=ON) each file lies in a block of exactly its size. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "error.h"
#include "pth.h"

typedef struct {
    uint8_t *bytes;
    size_t size;
} File;

static File file_read(const char *path) {
    FILE *in = fopen(path, "rb");
    assert_non_null(in);
    assert_int_equal(fseek(in, 0, SEEK_END), 0);
    File file = {.size = (size_t)ftell(in)};
    rewind(in);
    file.bytes = malloc(file.size + 1);
    assert_non_null(file.bytes);
    assert_int_equal(fread(file.bytes, 1, file.size, in), file.size);
    file.bytes[file.size] = '\0';
    fclose(in);
    return file;
}

/* NULL when reading dies; *message then says why. The file is read from a block of exactly its size, freed before the
 * result is looked at. */
static const StateDict *read_bytes(Arena *arena, const void *bytes, size_t size, const char **message) {
    static uint8_t *copy;
    static const StateDict *state;
    int status;
    copy = malloc(size ? size : 1);
    assert_non_null(copy);
    memcpy(copy, bytes, size);
    state = NULL;
    if (!error_caught())
        state = pth_read(arena, copy, size, "x.pth");
    free(copy);
    if (!error_pending(message, &status))
        return state;
    assert_int_equal(status, 1);
    assert_ptr_equal(strstr(*message, "x.pth: "), *message);
    return NULL;
}

static void must_refuse(const void *bytes, size_t size, const char *words) {
    Arena *arena = arena_new();
    const char *message;
    if (read_bytes(arena, bytes, size, &message))
        fail_msg("was read, expected a refusal with: %s", words);
    if (!strstr(message, words))
        fail_msg("message: %s\nexpected: %s", message, words);
    arena_free(arena);
}

/* ---- Files that PyTorch wrote ---------------------------------------------------------------------------------- */

static const char *type_name(DType dtype) {
    static const char *const names[] = {"uint8", "int8",    "uint16",   "int16",   "uint32",  "int32", "uint64",
                                        "int64", "float16", "bfloat16", "float32", "float64", "bool"};
    return names[dtype];
}

/* Element i as expected.txt writes it. */
static void print_value(char text[40], const Tensor *tensor, int64_t i) {
    long long whole = 0;
    switch (tensor->dtype) {
    case DT_F32: snprintf(text, 40, "%.17g", (double)((const float *)tensor->data)[i]); return;
    case DT_F64: snprintf(text, 40, "%.17g", ((const double *)tensor->data)[i]); return;
    case DT_U8:
    case DT_BOOL: whole = ((const uint8_t *)tensor->data)[i]; break;
    case DT_I8: whole = ((const int8_t *)tensor->data)[i]; break;
    case DT_I16:
    case DT_F16:
    case DT_BF16: whole = ((const int16_t *)tensor->data)[i]; break;
    case DT_I32: whole = ((const int32_t *)tensor->data)[i]; break;
    case DT_I64: whole = ((const int64_t *)tensor->data)[i]; break;
    default: fail_msg("type %d is not one a .pth has", tensor->dtype);
    }
    snprintf(text, 40, "%lld", whole);
}

/* words: what follows "tensor" in a line of expected.txt. */
static void check_tensor(const Tensor *tensor, char *words, const char *file) {
    char shape[128] = "(", text[40], *rest;
    for (int d = 0; d < tensor->rank; d++)
        snprintf(shape + strlen(shape), sizeof shape - strlen(shape), d ? ",%d" : "%d", (int)tensor->shape[d]);
    strcat(shape, ")");
    const char *name = strtok_r(words, " ", &rest);
    assert_string_equal(tensor->name, strcmp(name, "-") ? name : "");
    assert_string_equal(type_name(tensor->dtype), strtok_r(NULL, " ", &rest));
    assert_string_equal(shape, strtok_r(NULL, " ", &rest));
    for (int64_t i = 0; i < tensor->size; i++) {
        const char *expected = strtok_r(NULL, " ", &rest);
        print_value(text, tensor, i);
        if (!expected || strcmp(text, expected))
            fail_msg("%s: %s[%d] is %s, expected %s", file, name, (int)i, text, expected);
    }
    assert_null(strtok_r(NULL, " ", &rest));
}

static File golden(const char *name) {
    char path[256];
    snprintf(path, sizeof path, "tests/golden/pth/%s", name);
    return file_read(path);
}

static void test_values(void **unused) {
    (void)unused;
    File text = golden("expected.txt"), file = {0};
    Arena *arena = NULL;
    const StateDict *state = NULL;
    char name[64] = "", format[16], under[64], prefix[64], *rest;
    int next = 0, files = 0, refused = 0;
    for (char *line = strtok_r((char *)text.bytes, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        int words = 0;
        if (!strncmp(line, "tensor ", 7)) {
            assert_true(next < state->count);
            check_tensor(&state->tensors[next++], line + 7, name);
            continue;
        }
        if (state) /* the file before had no more tensors than expected */
            assert_int_equal(next, state->count);
        if (sscanf(line, "file %63s %15s %63s %63s", name, format, under, prefix) == 4) {
            const char *message;
            free(file.bytes);
            arena_free(arena);
            arena = arena_new();
            file = golden(name);
            state = read_bytes(arena, file.bytes, file.size, &message);
            if (!state)
                fail_msg("%s: %s", name, message);
            assert_string_equal(strrchr(state->format, ' ') + 1, format);
            assert_string_equal(state->found_under, strcmp(under, "-") ? under : "");
            assert_string_equal(state->prefix, strcmp(prefix, "-") ? prefix : "");
            next = 0;
            files++;
        } else {
            assert_int_equal(sscanf(line, "refused %63s %n", name, &words), 1);
            File bad = golden(name);
            must_refuse(bad.bytes, bad.size, line + words);
            free(bad.bytes);
            refused++;
        }
    }
    assert_int_equal(files, 17);
    assert_int_equal(refused, 9);
    free(file.bytes);
    free(text.bytes);
    arena_free(arena);
}

static void check_equal(const StateDict *a, const StateDict *b) {
    assert_int_equal(a->count, b->count);
    for (int i = 0; i < a->count; i++) {
        const Tensor *x = &a->tensors[i], *y = &b->tensors[i];
        assert_string_equal(x->name, y->name);
        assert_int_equal(x->dtype, y->dtype);
        assert_int_equal(x->rank, y->rank);
        assert_memory_equal(x->shape, y->shape, sizeof x->shape);
        size_t item = x->dtype == DT_F32 ? 4 : x->dtype == DT_I64 || x->dtype == DT_F64 ? 8 : 1;
        if (x->size)
            assert_memory_equal(x->data, y->data, (size_t)x->size * item);
    }
}

static void test_twins(void **unused) {
    (void)unused;
    Arena *arena = arena_new();
    const char *message;
    File zip = file_read("tests/data/model.pth"), legacy = file_read("tests/data/model_legacy.pth");
    const StateDict *a = read_bytes(arena, zip.bytes, zip.size, &message);
    const StateDict *b = read_bytes(arena, legacy.bytes, legacy.size, &message);
    assert_non_null(a);
    assert_non_null(b);
    assert_int_equal(a->count, 16);
    check_equal(a, b);
    assert_int_equal(state_find(a, "fc.weight")->size, 320);
    assert_null(state_find(a, "fc.weigh"));
    assert_string_equal(state_why_not(a, "fc.weigh"), "is missing");
    free(zip.bytes);
    free(legacy.bytes);
    arena_free(arena);
}

static void test_checkpoint_globals(void **unused) {
    (void)unused;
    Arena *arena = arena_new();
    const char *message;
    File file = golden("checkpoint.pth");
    const StateDict *state = read_bytes(arena, file.bytes, file.size, &message);
    assert_non_null(strstr(state->globals, "argparse.Namespace (byte 52), "));
    assert_null(strstr(state->globals, "OrderedDict"));
    free(file.bytes);
    arena_free(arena);
}

/* ---- Damage ---------------------------------------------------------------------------------------------------- */

static const char *const damaged_files[] = {
    "tests/golden/pth/protocol4.pth",     "tests/golden/pth/protocol5_legacy.pth",  "tests/golden/pth/deflated.pth",
    "tests/golden/pth/types_legacy.pth",  "tests/golden/pth/checkpoint_legacy.pth", "tests/golden/pth/layouts.pth",
    "tests/golden/pth/module_legacy.pth",
};
enum { DAMAGED_FILES = sizeof damaged_files / sizeof damaged_files[0] };

static void test_truncated_anywhere(void **unused) {
    (void)unused;
    for (int f = 0; f < DAMAGED_FILES; f++) {
        File file = file_read(damaged_files[f]);
        for (size_t size = 0; size < file.size; size++)
            must_refuse(file.bytes, size, "x.pth");
        free(file.bytes);
    }
}

static uint32_t random_next(uint32_t *state) {
    return *state = *state * 1664525u + 1013904223u, *state >> 8;
}

/* A zip carries checksums: what is read in spite of the damage must be what was saved. The legacy format has none. */
static void test_flipped_bits(void **unused) {
    (void)unused;
    uint32_t seed = 1;
    for (int f = 0; f < DAMAGED_FILES; f++) {
        File file = file_read(damaged_files[f]);
        Arena *whole = arena_new(), *arena;
        const char *message;
        const StateDict *good = read_bytes(whole, file.bytes, file.size, &message), *state;
        bool zip = file.bytes[0] == 'P';
        int refused = 0, rounds = 3000;
        for (int i = 0; i < rounds; i++) {
            uint8_t saved[4];
            size_t at[4];
            int flips = 1 + i % 4;
            for (int k = 0; k < flips; k++) {
                at[k] = random_next(&seed) % file.size;
                saved[k] = file.bytes[at[k]];
                file.bytes[at[k]] ^= i % 8 < 4 ? 1u << random_next(&seed) % 8 : random_next(&seed) % 256;
            }
            arena = arena_new();
            state = read_bytes(arena, file.bytes, file.size, &message);
            refused += !state;
            if (state && zip && good)
                check_equal(state, good);
            arena_free(arena);
            for (int k = flips; k-- > 0;)
                file.bytes[at[k]] = saved[k];
        }
        assert_true(refused > rounds / 20);
        arena_free(whole);
        free(file.bytes);
    }
}

static uint8_t *find_bytes(File file, const char *bytes, size_t size, size_t from) {
    for (size_t i = from; i + size <= file.size; i++)
        if (!memcmp(file.bytes + i, bytes, size))
            return file.bytes + i;
    fail_msg("the file has no such bytes");
    return NULL;
}

static void test_wrong_crc(void **unused) {
    (void)unused;
    File file = file_read("tests/data/model.pth");
    const char key[] = "conv1.weight", entry[] = "model/data/7";
    uint8_t *in_pickle = find_bytes(file, key, sizeof key - 1, 0);
    *in_pickle ^= 1;
    must_refuse(file.bytes, file.size, "data.pkl cannot be read (CRC error)");
    *in_pickle ^= 1;
    uint8_t *in_weights = find_bytes(file, entry, sizeof entry - 1, 0) + 5000;
    *in_weights ^= 1;
    must_refuse(file.bytes, file.size, "data/7 cannot be read (CRC error)");
    free(file.bytes);
}

static void test_duplicate_entry(void **unused) {
    (void)unused;
    File file = file_read("tests/data/model.pth");
    const char entry[] = "model/data/11";
    for (int i = 0; i < 2; i++) /* in its own header and in the directory */
        find_bytes(file, entry, sizeof entry - 1, 0)[sizeof entry - 2] = '2';
    must_refuse(file.bytes, file.size, "an entry is there twice");
    free(file.bytes);
}

/* ---- Files made by hand, in the legacy format
 * ------------------------------------------------------------------------ */

typedef struct {
    uint8_t bytes[8192];
    size_t size;
} Writer;

static void put(Writer *w, const void *bytes, size_t size) {
    assert_true(w->size + size <= sizeof w->bytes);
    memcpy(w->bytes + w->size, bytes, size);
    w->size += size;
}

#define PUT(w, literal) put(w, literal, sizeof literal - 1)

static void put_text(Writer *w, const char *text) {
    uint32_t length = (uint32_t)strlen(text);
    PUT(w, "X");
    put(w, &length, 4);
    put(w, text, length);
}

static void put_int(Writer *w, int64_t number) {
    PUT(w, "\x8a\x08");
    put(w, &number, 8);
}

static void put_tuple(Writer *w, const int64_t *numbers, int count) {
    PUT(w, "(");
    for (int i = 0; i < count; i++)
        put_int(w, numbers[i]);
    PUT(w, "t");
}

enum { HEAD_BYTES = 45 };

static void put_head(Writer *w) {
    w->size = 0;
    PUT(w, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
           "\x80\x02M\xe9\x03."
           "\x80\x02}");
    put_text(w, "little_endian");
    PUT(w, "\x88s.");
}

typedef struct {
    const char *expected; /* words of the refusal, or NULL when it must be read */
    int rank;
    int64_t shape[9], stride[9], offset;
    int64_t numel;  /* of the storage, as the tensor says */
    int64_t stored; /* as its data says; the file has this many floats, at most 16 */
} TensorCase;

/* A state_dict of one tensor "w" whose storage is 0, 1, 2 ... */
static void put_tensor_file(Writer *w, const char *type, const TensorCase *c) {
    put_head(w);
    PUT(w, "\x80\x02}");
    put_text(w, "w");
    PUT(w, "ctorch._utils\n_rebuild_tensor_v2\n((");
    put_text(w, "storage");
    PUT(w, "ctorch\n");
    put(w, type, strlen(type));
    PUT(w, "Storage\n");
    put_text(w, "77");
    put_text(w, "cpu");
    put_int(w, c->numel);
    PUT(w, "NtQ");
    put_int(w, c->offset);
    put_tuple(w, c->shape, c->rank);
    put_tuple(w, c->stride, c->rank);
    PUT(w, "\x89}tRs.\x80\x02]");
    put_text(w, "77");
    PUT(w, "a.");
    put(w, &c->stored, 8);
    for (int i = 0; i < c->stored && i < 16; i++) {
        float value = (float)i;
        put(w, &value, 4);
    }
}

static void test_sizes_and_strides(void **unused) {
    (void)unused;
    static const TensorCase cases[] = {
        {NULL, 2, {3, 4}, {4, 1}, 0, 12, 12},
        {NULL, 2, {4, 3}, {1, 4}, 0, 12, 12},
        {NULL, 1, {3}, {5}, 1, 12, 12},
        {NULL, 0, {0}, {0}, 11, 12, 12},
        {NULL, 2, {0, (int64_t)1 << 62}, {4, 1}, 0, 12, 12},
        {NULL, 2, {1, 12}, {INT64_MAX, 1}, 0, 12, 12},
        {NULL, 8, {1, 1, 1, 1, 1, 1, 2, 2}, {9, 9, 9, 9, 9, 9, 2, 1}, 0, 12, 12},
        {"reaches beyond its storage of 12 elements", 2, {3, 4}, {4, 1}, 1, 12, 12},
        {"reaches beyond its storage", 1, {2}, {12}, 0, 12, 12},
        {"reaches beyond its storage", 0, {0}, {0}, 12, 12, 12},
        {"reaches beyond its storage", 2, {2, 2}, {INT64_MAX, INT64_MAX}, 0, 12, 12},
        {"reaches beyond its storage", 1, {3}, {(int64_t)1 << 62}, 0, 12, 12},
        {"reaches beyond its storage", 1, {2}, {1}, INT64_MAX, 12, 12},
        {"reaches beyond its storage", 1, {13}, {1}, 0, 12, 12},
        {"more than 2^63 elements", 2, {(int64_t)1 << 62, 4}, {0, 0}, 0, 12, 12},
        {"13 elements in a storage of 12", 1, {13}, {0}, 0, 12, 12},
        {"elements in a storage of 12", 1, {(int64_t)1 << 62}, {0}, 0, 12, 12},
        {"negative size", 2, {-3, -4}, {4, 1}, 0, 12, 12},
        {"negative stride", 2, {3, 4}, {-4, 1}, 8, 12, 12},
        {"negative offset", 1, {3}, {1}, -1, 12, 12},
        {"9 dimensions", 9, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}, 0, 12, 12},
        {"impossible number", 1, {1}, {1}, 0, (int64_t)1 << 62, 12},
        {"impossible number", 1, {1}, {1}, 0, -1, 12},
        {"inside storage 77", 1, {1}, {1}, 0, (int64_t)1 << 60, 12},
        {"inside storage 77", 1, {1}, {1}, 0, 13, 12},
        {"has 12 elements at byte", 1, {1}, {1}, 0, 11, 12},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const TensorCase c = cases[i];
        Writer w;
        put_tensor_file(&w, "Float", &c);
        if (c.expected) {
            must_refuse(w.bytes, w.size, c.expected);
            continue;
        }
        Arena *arena = arena_new();
        const char *message;
        const StateDict *state = read_bytes(arena, w.bytes, w.size, &message);
        if (!state)
            fail_msg("case %d: %s", (int)i, message);
        const Tensor *t = state_find(state, "w");
        for (int64_t k = 0; k < t->size; k++) { /* the value of an element is its place in the storage */
            int64_t rest = k, place = c.offset;
            for (int d = c.rank; d-- > 0; rest /= c.shape[d])
                place += rest % c.shape[d] * c.stride[d];
            assert_true(((const float *)t->data)[k] == (float)place);
        }
        arena_free(arena);
    }
}

typedef struct {
    const char *expected;
    const char *bytes;
    size_t size;
} PickleCase;

#define CASE(expected, literal)                                                                                        \
    { expected, literal, sizeof literal - 1 }

/* Objects of a legacy file, in the place of the state_dict, which begins at byte 45. */
static void test_objects(void **unused) {
    (void)unused;
    static const PickleCase cases[] = {
        CASE("calls os.system at byte 45 of the file", "cos\nsystem\n(S'true'\ntR."),
        CASE("calls posix.system at byte 47", "\x80\x02"
                                              "cposix\nsystem\nX\4\0\0\0true\x85R."),
        CASE("calls builtins.eval at byte 65", "\x80\x04\x8c\x08"
                                               "builtins\x94\x8c\x04"
                                               "eval\x94\x93\x8c\x01"
                                               "1\x85R."),
        CASE("calls os.system at byte 46", "(ios\nsystem\n."),
        CASE("calls os.system at byte 46", "(cos\nsystem\nX\4\0\0\0trueo."),
        CASE("names os.system at byte 67", "c__builtin__\ngetattr\n(cos\nsystem\nX\1\0\0\0xtRX\1\0\0\0y\x85R."),
        CASE("names os.system at byte 45", "cos\nsystem\n."),
        CASE("calls os.system at byte 52", "}X\1\0\0\0acos\nsystem\n)Rs."),
        CASE("calls os.system at byte 46", "]cos\nsystem\n)Ra."),
        CASE("calls a?b?[31m.c?", "ca\tb\033[31m\nc\r\n)R."),
        CASE("without tensors", "}."),
        CASE("found None", "N."),
        CASE("found a tuple", ")."),
        CASE("opcode 0xff at byte 47", "\x80\x02\xff."),
        CASE("opcode 0x82 at byte 45", "\x82\x01."),
        CASE("opcode 0x97 at byte 45", "\x97."),
        CASE("PROTO at byte 45 of the file names protocol 6", "\x80\x06N."),
        CASE("opcode REDUCE at byte 45 of the file needs a value", "R."),
        CASE("opcode POP at byte 45", "0."),
        CASE("opcode TUPLE at byte 45 of the file needs a mark", "t."),
        CASE("opcode TUPLE3 at byte 47", "NN\x87."),
        CASE("opcode TUPLE1 at byte 47 of the file needs a value", "N(\x85."),
        CASE("opcode SETITEMS at byte 48 of the file finds a key without a value", "}(Nu."),
        CASE("opcode SETITEM at byte 47 of the file needs a value", "NNs."),
        CASE("opcode SETITEM at byte 48 of the file needs a dict, found a list", "]NNs."),
        CASE("opcode APPEND at byte 47 of the file needs a list, found a dict", "}Na."),
        CASE("opcode BINGET at byte 45 of the file reads memo entry 0", "h\0."),
        CASE("opcode LONG_BINPUT at byte 46 of the file names memo entry 4294967295", "Nr\xff\xff\xff\xff."),
        CASE("opcode PUT at byte 46 of the file is not a memo number", "Np1x\n."),
        CASE("opcode BINUNICODE at byte 45 of the file needs 4294967295 more bytes", "X\xff\xff\xff\xff."),
        CASE("opcode BINUNICODE8 at byte 45", "\x8d\xff\xff\xff\xff\xff\xff\xff\xff."),
        CASE("opcode FRAME at byte 45", "\x95\xff\xff\xff\xff\xff\xff\xff\xff."),
        CASE("opcode GLOBAL at byte 45 of the file has no end of line", "cos"),
        CASE("opcode STOP at byte 47 of the file finds 2 values", "NN."),
        CASE("opcode STOP at byte 45 of the file finds 0 values", "."),
        CASE("opcode STOP at byte 47 of the file finds a mark", "N(."),
        CASE("opcode STACK_GLOBAL at byte 47 of the file needs two texts", "NN\x93."),
        CASE("opcode INT at byte 45", "Ix\n."),
        CASE("opcode STRING at byte 45", "Sx\n."),
        CASE("inside a pickle", "N"),
        CASE("calls collections.OrderedDict2", "ccollections\nOrderedDict2\n)R."),
        CASE("found a dict of 1 keys", "ccollections\nOrderedDict\n(]X\1\0\0\0aK\1\x86"
                                       "atR."),
        CASE("something other than pairs", "ccollections\nOrderedDict\n(]K\1atR."),
        /* a dict that is its own state_dict, model and so on; a list in itself; a call of itself */
        CASE("without tensors", "}q\0(X\x0a\0\0\0state_dicth\0X\5\0\0\0modelh\0u."),
        CASE("found a list", "]q\0h\0a."),
        CASE("found an object", "NNRq\0h\0R."),
        CASE("is not described by a storage", "}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(NK\0))tRs."),
        CASE("is not described by a storage", "}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\nNRs."),
        CASE("is not described by a storage", "}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(NQK\0K\1\x85)tRs."),
        CASE("negative offset", "}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(NQJ\xfe\xff\xff\xff))tRs."),
        CASE("negative offset", "}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(NQ\x8a\1\xff))tRs."),
        CASE("is no name of a tensor", "}X\2\0\0\0w\nctorch._utils\n_rebuild_tensor_v2\nNRs."),
        CASE("has elements of type nothing", "}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(NQK\0))tRs."),
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Writer w;
        put_head(&w);
        assert_int_equal(w.size, HEAD_BYTES);
        put(&w, cases[i].bytes, cases[i].size);
        must_refuse(w.bytes, w.size, cases[i].expected);
    }
}

/* One byte an element: no product that overflows gives it away. */
static void test_negative_storage(void **unused) {
    (void)unused;
    static const int64_t counts[] = {-1, INT64_MIN};
    for (int i = 0; i < 2; i++) {
        Writer w;
        put_tensor_file(&w, "Byte", &(TensorCase){NULL, 1, {1}, {1}, 0, counts[i], 12});
        must_refuse(w.bytes, w.size, "impossible number");
    }
}

static void test_other_files(void **unused) {
    (void)unused;
    Writer w;
    put_tensor_file(&w, "Float", &(TensorCase){NULL, 1, {2}, {1}, 0, 12, 12});
    PUT(&w, "more");
    must_refuse(w.bytes, w.size, "has 4 bytes after its last storage");
    static const PickleCase cases[] = {
        CASE("is empty", ""),
        CASE("byte 0x68", "hello"),
        CASE("byte 0x50", "PK\5\6"),
        CASE("cannot be read as one", "PK\3\4"),
        CASE("calls os.system at byte 0 of the file", "cos\nsystem\n(S'true'\ntR."),
        CASE("calls nt.system at byte 2", "\x80\x02"
                                          "cnt\nsystem\n)R."),
        CASE("found an int", "\x80\x02K\1."),
        CASE("found a dict of 0 keys", "\x80\x02}."),
        CASE("another protocol", "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe8\x03."),
        CASE("little-endian", "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}."),
        CASE("little-endian", "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."
                              "\x80\x02}X\x0d\0\0\0little_endian\x89s."),
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        must_refuse(cases[i].bytes, cases[i].size, cases[i].expected);
}

/* A tensor made by something unknown: the others are read, and asking for it names what made it. */
static void test_unknown_maker(void **unused) {
    (void)unused;
    Writer w;
    put_tensor_file(&w, "Float", &(TensorCase){NULL, 1, {2}, {1}, 0, 12, 12});
    Writer changed = {.size = HEAD_BYTES};
    memcpy(changed.bytes, w.bytes, HEAD_BYTES);
    PUT(&changed, "\x80\x02}");
    put_text(&changed, "module.evil");
    PUT(&changed, "cevil\nrebuild\n)Rs");
    put_text(&changed, "module.epoch");
    PUT(&changed, "K\7s");
    put_text(&changed, "module.w");
    size_t skip = HEAD_BYTES + 3 + 6; /* header, "\x80\x02}", key */
    put(&changed, w.bytes + skip, w.size - skip);

    Arena *arena = arena_new();
    const char *message;
    const StateDict *state = read_bytes(arena, changed.bytes, changed.size, &message);
    if (!state)
        fail_msg("%s", message);
    assert_int_equal(state->count, 1);
    assert_non_null(state_find(state, "w"));
    assert_null(state_find(state, "evil"));
    assert_non_null(strstr(state_why_not(state, "evil"), "is made by evil.rebuild (byte 64 of the file)"));
    assert_string_equal(state_why_not(state, "epoch"), "is an int");
    assert_string_equal(state_why_not(state, "other"), "is missing");
    assert_string_equal(state->globals, "evil.rebuild (byte 64)");
    arena_free(arena);
}

/* Small files may not make the reader use much memory: 3 times their size and 64 MiB. */
static void test_memory_is_bounded(void **unused) {
    (void)unused;
    enum { SIZE = 8 << 20 };
    static const char ops[] = {'N', ')', '(', '2', '}', 'Q', 0};
    uint8_t *bytes = malloc(SIZE);
    assert_non_null(bytes);
    for (const char *op = ops; *op; op++) {
        bytes[0] = 0x80;
        bytes[1] = 2;
        memset(bytes + 2, *op, SIZE - 2);
        bytes[2] = 'N';
        must_refuse(bytes, SIZE,
                    *op == 'N' || *op == ')' || *op == '}' || *op == 'Q' ? "makes too many values" : "x.pth");
    }
    memset(bytes, '(', SIZE); /* a million brackets deep */
    must_refuse(bytes, 1 << 20, "inside a pickle");
    free(bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_twins),
        cmocka_unit_test(test_checkpoint_globals),
        cmocka_unit_test(test_truncated_anywhere),
        cmocka_unit_test(test_flipped_bits),
        cmocka_unit_test(test_wrong_crc),
        cmocka_unit_test(test_duplicate_entry),
        cmocka_unit_test(test_sizes_and_strides),
        cmocka_unit_test(test_negative_storage),
        cmocka_unit_test(test_objects),
        cmocka_unit_test(test_other_files),
        cmocka_unit_test(test_unknown_maker),
        cmocka_unit_test(test_memory_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
