/* test_safetensors.c: the .safetensors reader against the .pth of the same tensors, and against files made to break it.
 *
 * As in test_pth.c: a file that must be refused is one whose reading ends in die(), caught here; each lies in a block of
 * exactly its size, for AddressSanitizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dataset.h"
#include "error.h"
#include "state.h"

static const char *const names[] = {"cnn_float32", "cnn_float64", "cnn_float16", "cnn_bfloat16", "types"};
enum { FILES = sizeof names / sizeof *names };

/* NULL when reading dies; *message then says why. `copy` is the block read from: the caller frees it last. */
static const StateDict *read_bytes(Arena *arena, uint8_t **copy, const void *bytes, size_t size, const char **message) {
    static const StateDict *state;
    int status;
    *copy = malloc(size ? size : 1);
    assert_non_null(*copy);
    memcpy(*copy, bytes, size);
    state = NULL;
    if (!error_caught())
        state = state_read(arena, *copy, size, "x.safetensors");
    if (!error_pending(message, &status))
        return state;
    assert_int_equal(status, 1);
    assert_ptr_equal(strstr(*message, "x.safetensors: "), *message);
    return NULL;
}

/* words NULL: must be read. */
static void must_end(const void *bytes, size_t size, const char *words) {
    Arena *arena = arena_new();
    uint8_t *copy;
    const char *message;
    const StateDict *state = read_bytes(arena, &copy, bytes, size, &message);
    if (state && words)
        fail_msg("was read, expected a refusal with: %s", words);
    if (!state && (!words || !strstr(message, words)))
        fail_msg("message: %s\nexpected: %s", message, words ? words : "(none)");
    free(copy);
    arena_free(arena);
}

static const uint8_t *file_read(Arena *arena, const char *format, const char *name, size_t *size) {
    char path[128];
    snprintf(path, sizeof path, format, name);
    return dataset_file_bytes(arena, path, size);
}

static void test_values(void **unused) {
    (void)unused;
    for (int f = 0; f < FILES; f++) {
        Arena *arena = arena_new();
        size_t size, pth_size;
        const uint8_t *bytes = file_read(arena, "tests/golden/safetensors/%s.safetensors", names[f], &size);
        const uint8_t *pth_bytes = file_read(arena, "tests/golden/pth/%s.pth", names[f], &pth_size);
        const StateDict *got = state_read(arena, bytes, size, "told by its content");
        const StateDict *expected = state_read(arena, pth_bytes, pth_size, "x.pth");
        assert_string_equal(got->format, "safetensors");
        assert_string_equal(got->prefix, expected->prefix);
        assert_int_equal(got->count, expected->count);
        for (int i = 0; i < expected->count; i++) {
            const Tensor *e = &expected->tensors[i], *g = state_find(got, e->name);
            assert_non_null(g);
            assert_int_equal(g->dtype, e->dtype);
            assert_int_equal(g->rank, e->rank);
            assert_memory_equal(g->shape, e->shape, sizeof e->shape);
            if (e->size)
                assert_memory_equal(g->data, e->data, (size_t)e->size * dtype_bytes(e->dtype));
        }
        arena_free(arena);
    }
}

/* ---- Damage ---------------------------------------------------------------------------------------------------- */

static void test_truncated_anywhere(void **unused) {
    (void)unused;
    for (int f = 0; f < FILES; f++) {
        Arena *arena = arena_new();
        size_t size;
        const uint8_t *bytes = file_read(arena, "tests/golden/safetensors/%s.safetensors", names[f], &size);
        for (size_t cut = 0; cut < size; cut++)
            must_end(bytes, cut, "x.safetensors: ");
        arena_free(arena);
    }
}

static uint32_t random_next(uint32_t *state) {
    return *state = *state * 1664525u + 1013904223u, *state >> 8;
}

/* There are no checksums: what is read must only be within the file. */
static void test_flipped_bits(void **unused) {
    (void)unused;
    uint32_t seed = 1, sum = 0;
    for (int f = 0; f < FILES; f++) {
        Arena *arena = arena_new();
        size_t size, at[4];
        uint8_t *bytes = (uint8_t *)file_read(arena, "tests/golden/safetensors/%s.safetensors", names[f], &size),
                old[4];
        int refused = 0, rounds = 4000;
        for (int i = 0; i < rounds; i++) {
            const int flips = 1 + i % 4;
            for (int k = 0; k < flips; k++) {
                at[k] = random_next(&seed) % size;
                old[k] = bytes[at[k]];
                bytes[at[k]] ^= i % 8 < 4 ? 1u << random_next(&seed) % 8 : random_next(&seed) % 256;
            }
            Arena *own = arena_new();
            uint8_t *copy;
            const char *message;
            const StateDict *state = read_bytes(own, &copy, bytes, size, &message);
            refused += !state;
            for (int t = 0; state && t < state->count; t++)
                for (size_t b = 0; b < (size_t)state->tensors[t].size * dtype_bytes(state->tensors[t].dtype); b++)
                    sum += ((const uint8_t *)state->tensors[t].data)[b];
            free(copy);
            arena_free(own);
            for (int k = flips; k-- > 0;)
                bytes[at[k]] = old[k];
        }
        assert_true(refused > rounds / 4);
        arena_free(arena);
    }
    assert_int_not_equal(sum, 0);
}

/* ---- Headers made by hand ---------------------------------------------------------------------------------------- */

typedef struct {
    const char *expected; /* NULL: must be read */
    int data_bytes;
    const char *header;
} HeaderCase;

#define W(rest) "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]" rest
#define U8(name, from, to, size)                                                                                       \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" size "],\"data_offsets\":[" from "," to "]}"

static size_t put_file(uint8_t *file, const HeaderCase *c) {
    const uint64_t length = strlen(c->header);
    memcpy(file, &length, 8);
    memcpy(file + 8, c->header, length);
    memset(file + 8 + length, 1, (size_t)c->data_bytes);
    return 8 + length + (size_t)c->data_bytes;
}

static void test_headers(void **unused) {
    (void)unused;
    static const HeaderCase cases[] = {
        {NULL, 8, W("}}")},
        {NULL, 8, W("}}   ")},
        {NULL, 8, " {\n\t\"w\" : { \"data_offsets\" : [ 0 , 8 ] , \"shape\":[1,2],\"dtype\":\"F32\" }\r\n}"},
        {NULL, 0, "{}"},
        {NULL, 8, "{\"__metadata__\":{}," U8("w", "0", "8", "8") "}"},
        {NULL, 8, "{\"__metadata__\":{\"a\\n\\u00e9\\\"\":\"}\",\"b\":\"\"}," U8("w", "0", "8", "8") "}"},
        {NULL, 3, "{" U8("b", "1", "3", "2") "," U8("a", "0", "1", "1") "," U8("e", "1", "1", "0") "}"},
        {NULL, 4, "{\"q\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}"},
        {NULL, 4, "{\"q\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}"},
        {NULL, 0, "{\"q\":{\"dtype\":\"F32\",\"shape\":[0,9223372036854775807,9],\"data_offsets\":[0,0]}}"},
        /* offsets */
        {"begins at byte 1 of the data, expected 0", 3, "{" U8("a", "1", "3", "2") "}"},
        {"begins at byte 2 of the data, expected 1", 4, "{" U8("a", "0", "1", "1") "," U8("b", "2", "4", "2") "}"},
        {"begins at byte 1 of the data, expected 2", 3, "{" U8("a", "0", "2", "2") "," U8("b", "1", "3", "2") "}"},
        {"begins at byte 0 of the data, expected 2", 2, "{" U8("a", "0", "2", "2") "," U8("b", "0", "2", "2") "}"},
        {"1 bytes that belong to no tensor", 3, "{" U8("a", "0", "2", "2") "}"},
        {"5 bytes that belong to no tensor", 5, "{}"},
        {"lies in bytes 0 to 9 of 8", 8, "{" U8("a", "0", "9", "9") "}"},
        {"lies in bytes 8 to 0 of 8", 8, "{" U8("a", "8", "0", "8") "}"},
        {"lies in bytes 0 to 9223372036854775807 of 8", 8, "{" U8("a", "0", "9223372036854775807", "8") "}"},
        /* sizes */
        {"8 bytes of data (0 to 8), which are not those", 8, "{" U8("a", "0", "8", "7") "}"},
        {"not those of its shape", 8, "{\"w\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}"},
        {"not those of its shape", 8, "{" U8("a", "0", "8", "4294967296,4294967296,8") "}"},
        {"not those of its shape", 0,
         "{\"w\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}"},
        {"at most 8 dimensions", 1, "{" U8("a", "0", "1", "1,1,1,1,1,1,1,1,1") "}"},
        {"a number less than 2^63", 8, "{" U8("a", "0", "9223372036854775808", "8") "}"},
        {"a number less than 2^63", 8, "{" U8("a", "0", "18446744073709551624", "8") "}"},
        {"a whole number", 8, "{" U8("a", "0", "08", "8") "}"},
        {"'-' at byte", 8, "{" U8("a", "0", "8", "-8") "}"},
        {"'.' at byte", 8, "{" U8("a", "0", "8", "8.0") "}"},
        {"'e' at byte", 8, "{" U8("a", "0", "8", "8e0") "}"},
        /* names */
        {"w is there twice", 16, W("},") "\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}"},
        {"w is there twice", 16, W("},") "\"\\u0077\":{\"dtype\":\"F8_E5M2\",\"shape\":[8],\"data_offsets\":[8,16]}}"},
        {"__metadata__ only once", 0, "{\"__metadata__\":{},\"__metadata__\":{}}"},
        {"the name of a tensor", 8, "{" U8("a\\n", "0", "8", "8") "}"},
        {"the name of a tensor", 8, "{" U8("a\\u0000", "0", "8", "8") "}"},
        {"no control character", 8, "{" U8("a\n", "0", "8", "8") "}"},
        {"an escape of JSON", 8, "{" U8("a\\x", "0", "8", "8") "}"},
        {"four hexadecimal digits", 8, "{" U8("a\\u12g4", "0", "8", "8") "}"},
        {"surrogate pair", 8, "{" U8("a\\ud83d", "0", "8", "8") "}"},
        {"surrogate pair", 8, "{" U8("a\\ude00\\ude00", "0", "8", "8") "}"},
        {"surrogate pair", 8, "{" U8("a\\ud83d\\u0041", "0", "8", "8") "}"},
        /* not the JSON of the format */
        {"dtype, shape and data_offsets", 8, W(",\"dtype\":\"F32\"}}")},
        {"dtype, shape and data_offsets", 8, W(",\"more\":1}}")},
        {"dtype, shape and data_offsets", 8, "{\"w\":{\"dtype\":\"U8\",\"shape\":[8]}}"},
        {"its end at byte", 8, W("}")},
        {"its end at byte", 8, W("")},
        {"its end at byte", 8, "{\"w"},
        {"its end at byte", 8, "{\"w\\"},
        {"expected '\"'", 8, W("},}")},
        {"expected '\"'", 8, "{\"w\":{}}"},
        {"expected '\"'", 0, "{\"__metadata__\":{\"a\":1}}"},
        {"expected '{'", 0, "{\"__metadata__\":null}"},
        {"expected '{'", 0, "[]"},
        {"expected '{'", 8, "{\"w\":[]}"},
        {"expected nothing more", 8, W("}}x")},
        {"expected nothing more", 8, W("}}{}")},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t file[512];
        must_end(file, put_file(file, &cases[i]), cases[i].expected);
    }
}

static void test_names_and_types(void **unused) {
    (void)unused;
    static const HeaderCase c = {NULL, 12,
                                 "{" U8("\\u0041\\/\\u00e9\\ud83d\\ude00\\\\", "0", "8",
                                        "8") ","
                                             "\"q\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[8,12]}}"};
    Arena *arena = arena_new();
    uint8_t file[512], *copy;
    const char *message;
    const StateDict *state = read_bytes(arena, &copy, file, put_file(file, &c), &message);
    assert_non_null(state);
    assert_non_null(state_find(state, "A/\xc3\xa9\xf0\x9f\x98\x80\\"));
    assert_null(state_find(state, "q"));
    assert_non_null(strstr(state_why_not(state, "q"), "is of a type this program does not read"));
    assert_string_equal(state_why_not(state, "r"), "is missing");
    free(copy);
    arena_free(arena);
}

/* A name of 1023 bytes is the longest. */
static void test_long_name(void **unused) {
    (void)unused;
    for (int length = 1023; length <= 1024; length++) {
        char header[1200];
        uint8_t file[1300];
        const int size = snprintf(header, sizeof header,
                                  "{\"%0*d\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", length, 0);
        assert_true(size > 0 && size < (int)sizeof header);
        const HeaderCase c = {length == 1023 ? NULL : "the name of a tensor", 1, header};
        must_end(file, put_file(file, &c), c.expected);
    }
}

static void test_lengths_of_the_header(void **unused) {
    (void)unused;
    static const HeaderCase c = {NULL, 8, W("}}")};
    static const uint64_t lengths[] = {0, 1, 1 << 20, (uint64_t)1 << 32, UINT64_MAX - 7, UINT64_MAX};
    uint8_t file[512];
    const size_t size = put_file(file, &c);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        memcpy(file, &lengths[i], 8);
        must_end(file, size, "begins with a header of");
    }
    enum { LARGE = 17 << 20 };
    uint8_t *large = calloc(LARGE + 8, 1);
    assert_non_null(large);
    memcpy(large, &(uint64_t){LARGE}, 8);
    must_end(large, LARGE + 8, "expected at most 16777216");
    free(large);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_truncated_anywhere),
        cmocka_unit_test(test_flipped_bits),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_names_and_types),
        cmocka_unit_test(test_long_name),
        cmocka_unit_test(test_lengths_of_the_header),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
