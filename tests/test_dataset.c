/* test_dataset.c: arrays from files.
 *
 *     test_dataset                              the unit tests
 *     test_dataset dump SPEC [FIRST COUNT]...   "dtype extent extent ...", newline, then the bytes of each range of
 * rows test_dataset cut SPEC                     reads the file cut after every byte, and counts what happened
 *     test_dataset flip SPEC SEED COUNT         the same with so many flipped bits, one at a time
 *     test_dataset names PATH COUNT | sha256 PATH
 * The modes are for test_dataset.py, which makes the files and knows what is in them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <zip.h>
#include <zlib.h>

#include "dataset.h"
#include "dataset_format.h"
#include "error.h"

/* pth_read dies by jumping over the arena that holds the file: a leak the ending program can afford. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:dataset_pt_open\n";
}

static const char *folder; /* for files made here */

static const char *write_file(Arena *arena, const char *name, const void *bytes, size_t size) {
    const char *path = arena_printf(arena, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, size, file) != size || fclose(file))
        exit(99);
    return path;
}

/* The message of the die() that opening and reading `spec` whole ends with; NULL when all went well, and then *rows
 * (in the arena). */
static const char *message_of_reading(Arena *arena, const char *spec, void **rows, size_t *bytes) {
    static const char *message;
    int status;
    if (!error_caught()) {
        Dataset *dataset = dataset_open(arena, spec);
        *bytes = (size_t)(dataset->shape[0] * dataset_row_size(dataset)) * dtype_bytes(dataset->dtype);
        *rows = arena_alloc(arena, *bytes, 1, "rows");
        dataset_read(dataset, *rows, 0, dataset->shape[0]);
        dataset_close(dataset);
    }
    return error_pending(&message, &status) ? message : NULL;
}

/* ---- Modes for test_dataset.py --------------------------------------------------------------------------------- */

static int dump(int count, char **arguments) {
    Arena *arena = arena_new();
    Dataset *dataset = dataset_open(arena, arguments[0]);
    size_t row = (size_t)dataset_row_size(dataset) * dtype_bytes(dataset->dtype);
    printf("%s", dtype_name(dataset->dtype));
    for (int i = 0; i < dataset->rank; i++)
        printf(" %lld", (long long)dataset->shape[i]);
    printf("\n");
    for (int i = 1; i + 1 < count; i += 2) {
        int64_t first = atoll(arguments[i]), rows = atoll(arguments[i + 1]);
        char *data = malloc((size_t)rows * row + 1);
        dataset_read(dataset, data, first, rows);
        fwrite(data, row, (size_t)rows, stdout);
        free(data);
    }
    dataset_close(dataset);
    arena_free(arena);
    return 0;
}

/* A sound file, and what became of reading its damaged copies. */
typedef struct {
    char *path, *spec; /* of the copy: the sound file's with ".damaged" in front of the ending */
    char *bytes;       /* of the sound file */
    size_t size;
    void *rows; /* of the sound file */
    size_t row_bytes;
    int died, same, different; /* ended in a message; gave the same rows; gave other rows */
    int nameless;              /* messages that do not begin with the file's name */
} Damage;

static Damage damage_begin(Arena *arena, const char *spec) {
    Damage damage = {0};
    Dataset *dataset = dataset_open(arena, spec);
    const char *end = strrchr(dataset->path, '.'), *key = dataset->source->key;
    damage.path = arena_printf(arena, "%.*s.damaged%s", (int)(end - dataset->path), dataset->path, end);
    damage.spec = arena_printf(arena, "%s%s%s", damage.path, key ? ":" : "", key ? key : "");
    damage.bytes = dataset_file_bytes(arena, dataset->path, &damage.size);
    dataset_close(dataset);
    if (message_of_reading(arena, spec, &damage.rows, &damage.row_bytes))
        exit(98);
    return damage;
}

/* Reads a copy that ends after `size` bytes. */
static void damage_try(Damage *damage, size_t size) {
    Arena *arena = arena_new();
    FILE *file = fopen(damage->path, "wb");
    void *rows;
    size_t bytes;
    if (!file || fwrite(damage->bytes, 1, size, file) != size || fclose(file))
        exit(99);
    const char *message = message_of_reading(arena, damage->spec, &rows, &bytes);
    if (message) {
        damage->died++;
        damage->nameless += strncmp(message, damage->path, strlen(damage->path)) != 0;
    } else if (bytes == damage->row_bytes && !memcmp(rows, damage->rows, bytes)) {
        damage->same++;
    } else {
        damage->different++;
    }
    unlink(damage->path);
    arena_free(arena);
}

static Damage cut(Arena *arena, const char *spec) {
    Damage damage = damage_begin(arena, spec);
    for (size_t size = 0; size < damage.size; size++)
        damage_try(&damage, size);
    return damage;
}

static Damage flip(Arena *arena, const char *spec, uint64_t seed, int count) {
    Damage damage = damage_begin(arena, spec);
    uint64_t random = seed * 2 + 1;
    for (int i = 0; i < count; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        size_t bit = (size_t)(random >> 20) % (damage.size * 8);
        damage.bytes[bit / 8] ^= (char)(1 << bit % 8);
        damage_try(&damage, damage.size);
        damage.bytes[bit / 8] ^= (char)(1 << bit % 8);
    }
    return damage;
}

static int damage_mode(char **arguments) {
    Arena *arena = arena_new();
    bool flips = !strcmp(arguments[1], "flip");
    Damage damage = flips ? flip(arena, arguments[2], strtoull(arguments[3], NULL, 10), atoi(arguments[4]))
                          : cut(arena, arguments[2]);
    printf("died %d same %d different %d nameless %d\n", damage.died, damage.same, damage.different, damage.nameless);
    arena_free(arena);
    return 0;
}

static int names(const char *path, const char *count) {
    Arena *arena = arena_new();
    int64_t found;
    char **lines = dataset_names(arena, path, atoll(count), &found);
    for (int64_t i = 0; i < found; i++)
        printf("%s\n", lines[i]);
    arena_free(arena);
    return 0;
}

static int sha256(const char *path) {
    char hex[65];
    dataset_sha256(hex, path);
    printf("%s\n", hex);
    return 0;
}

/* ---- Unit tests ------------------------------------------------------------------------------------------------- */

static void halves_become_the_floats_they_are(void **state) {
    (void)state;
    static const struct {
        uint16_t half;
        float value;
    } cases[] = {{0x0000, 0.0f},      {0x3c00, 1.0f},        {0xc000, -2.0f},         {0x7bff, 65504.0f},
                 {0x0400, 0x1p-14f},  {0x0001, 0x1p-24f},    {0x83ff, -0x1.ff8p-15f}, {0x3555, 0x1.554p-2f},
                 {0xfbff, -65504.0f}, {0x3c01, 0x1.004p+0f}, {0x2e66, 0x1.998p-4f}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_true(dataset_half_to_float(cases[i].half) == cases[i].value);
    assert_true(dataset_half_to_float(0x7c00) > 1e38f && dataset_half_to_float(0xfc00) < -1e38f);
    assert_true(dataset_half_to_float(0x7e00) != dataset_half_to_float(0x7e00));
    assert_true(signbit(dataset_half_to_float(0x8000)));
}

static void every_type_becomes_float(void **state) {
    (void)state;
    float out[2];
    dataset_to_float(out, (uint8_t[]){0, 255}, DT_U8, 2);
    assert_true(out[0] == 0 && out[1] == 255);
    dataset_to_float(out, (int8_t[]){-128, 127}, DT_I8, 2);
    assert_true(out[0] == -128 && out[1] == 127);
    dataset_to_float(out, (uint16_t[]){1, 65535}, DT_U16, 2);
    assert_true(out[1] == 65535);
    dataset_to_float(out, (int16_t[]){-32768, 5}, DT_I16, 2);
    assert_true(out[0] == -32768);
    dataset_to_float(out, (uint32_t[]){0xffffffffu, 16777217u}, DT_U32, 2);
    assert_true(out[0] == 0x1p32f && out[1] == 16777216.0f);
    dataset_to_float(out, (int32_t[]){INT32_MIN, 7}, DT_I32, 2);
    assert_true(out[0] == -0x1p31f && out[1] == 7);
    dataset_to_float(out, (uint64_t[]){UINT64_MAX, 9}, DT_U64, 2);
    assert_true(out[0] == 0x1p64f && out[1] == 9);
    dataset_to_float(out, (int64_t[]){INT64_MIN, -3}, DT_I64, 2);
    assert_true(out[0] == -0x1p63f && out[1] == -3);
    dataset_to_float(out, (uint16_t[]){0x3f80, 0xc2f7}, DT_BF16, 2);
    assert_true(out[0] == 1 && out[1] == -123.5f);
    dataset_to_float(out, (double[]){0.1, -1e-50}, DT_F64, 2);
    assert_true(out[0] == 0.1f && out[1] == 0);
}

static void whole_numbers_become_int64(void **state) {
    (void)state;
    const Dataset labels = {.spec = "labels.npy"};
    int64_t out[3];
    dataset_to_int64(out, (float[]){-1, 0, 16777216}, DT_F32, 3, &labels, 0);
    assert_int_equal(out[0], -1);
    assert_int_equal(out[2], 16777216);
    dataset_to_int64(out, (uint64_t[]){INT64_MAX, 1, 2}, DT_U64, 3, &labels, 0);
    assert_true(out[0] == INT64_MAX);
    dataset_to_int64(out, (double[]){-0x1p63, 0x1p62, 3}, DT_F64, 3, &labels, 0);
    assert_true(out[0] == INT64_MIN && out[1] == (int64_t)1 << 62);
    dataset_to_int64(out, (int8_t[]){-128, 127, -1}, DT_I8, 3, &labels, 0);
    assert_int_equal(out[0], -128);
    dataset_to_int64(out, (uint8_t[]){200, 1, 0}, DT_U8, 3, &labels, 0);
    assert_int_equal(out[0], 200);
}

static void expect_refused(const void *values, DType dtype, int64_t first, const char *expected) {
    const Dataset labels = {.spec = "labels.npy"};
    const char *message;
    int status;
    int64_t out[2];
    if (!error_caught())
        dataset_to_int64(out, values, dtype, 2, &labels, first);
    assert_true(error_pending(&message, &status));
    assert_string_equal(message, expected);
    assert_int_equal(status, 1);
}

static void other_numbers_are_refused_as_int64(void **state) {
    (void)state;
    expect_refused((float[]){1, 2.5f}, DT_F32, 40, "labels.npy: sample 41 is 2.5; expected a whole number");
    expect_refused((double[]){0x1p63, 1}, DT_F64, 7, "labels.npy: sample 7 is 9.22337e+18; expected a whole number");
    expect_refused((uint16_t[]){0x3c00, 0x3800}, DT_F16, 0, "labels.npy: sample 1 is 0.5; expected a whole number");
    expect_refused((uint64_t[]){1, (uint64_t)1 << 63}, DT_U64, 0,
                   "labels.npy: sample 1 is 9223372036854775808, more than an int64 holds");
}

static void byte_order_is_turned(void **state) {
    (void)state;
    uint16_t two[] = {0x0102, 0xfffe};
    uint32_t four[] = {0x01020304};
    uint64_t eight[] = {0x0102030405060708};
    dataset_swap(two, 2, 2);
    dataset_swap(four, 4, 1);
    dataset_swap(eight, 8, 1);
    assert_int_equal(two[0], 0x0201);
    assert_int_equal(two[1], 0xfeff);
    assert_int_equal(four[0], 0x04030201);
    assert_true(eight[0] == 0x0807060504030201);
}

/* A bad value anywhere in a set larger than the pieces it is read in is found, and named by sample. */
static void values_that_are_not_finite_are_found(void **state) {
    (void)state;
    enum { N = 200000, ROW = 4 };
    static const int64_t places[] = {0, 3, 65535, 65536, 131071, N - 1};
    Arena *arena = arena_new();
    unsigned char *file = ARENA_ARRAY(arena, unsigned char, 12 + 4 * N, "file");
    memcpy(file, (unsigned char[]){0, 0, 0x0d, 2, 0, 0, (N / ROW) >> 8, (N / ROW) & 255, 0, 0, 0, ROW}, 12);
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        void *rows;
        size_t bytes;
        memcpy(file + 12 + 4 * places[i], (unsigned char[]){0xff, 0x80, 0, 0}, 4);
        const char *path = write_file(arena, "nan.idx", file, 12 + 4 * N);
        const char *message = message_of_reading(arena, path, &rows, &bytes);
        assert_non_null(message);
        assert_string_equal(message, arena_printf(arena,
                                                  "%s: sample %d holds -inf (its value %d of 4); all values must "
                                                  "be finite",
                                                  path, (int)places[i] / ROW, (int)places[i] % ROW));
        memset(file + 12 + 4 * places[i], 0, 4);
    }
    arena_free(arena);
}

/* Headers that ask for more than any memory: refused before anything is allocated. */
static void absurd_sizes_are_refused(void **state) {
    (void)state;
    Arena *arena = arena_new();
    static const struct {
        const char *name, *bytes, *expected;
        size_t size;
    } cases[] = {
        {"a.idx", "\0\0\x0e\5\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
         "more elements", 24},
        {"b.idx", "\0\0\x08\2\xff\xff\xff\xff\xff\xff\xff\xff", "more elements", 12},
        {"c.idx", "\0\0\x08\1\xff\xff\xff\xffx", "truncated", 9},
        {"d.idx", "\0\0\x08\2\0\0\0\0\0\0\0\1", "empty", 12},
        {"e.idx", "\0\0\x08\0\0\0\0\1", "0 dimensions", 8},
        {"f.idx", "\0\0\x08\6\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0\1x", "6 dimensions", 29},
        {"g.idx", "\0\0\x0a\1\0\0\0\1x", "its type is 0x0a", 9},
        {"h.idx", "\0\0\x08\1\0\0\0\1xy", "damaged: 10 bytes found, 9 expected", 10},
        {"i.png", "\x89PNG\r\n\x1a\n........", "none of the formats read (it begins with bytes 89 50 4e 47)", 16},
        {"j.idx", "\0", "truncated", 1},
        {"k.txt", "ab", "none of the formats", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        void *rows;
        size_t bytes;
        const char *path = write_file(arena, cases[i].name, cases[i].bytes, cases[i].size);
        const char *message = message_of_reading(arena, path, &rows, &bytes);
        assert_non_null(message);
        if (!strstr(message, cases[i].expected))
            fail_msg("%s: '%s' lacks '%s'", cases[i].name, message, cases[i].expected);
    }
    arena_free(arena);
}

/* ---- Damage: a part of a file never passes for the whole, and nothing crashes (run under ASan and UBSan too) --- */

static const char small_idx[] = "\0\0\x0b\2\0\0\0\4\0\0\0\3abcdefghijklmnopqrstuvwx";
static const char small_npy[] =
    "\x93NUMPY\1\0\x46\0{'descr': '>f4', 'fortran_order': False, 'shape': (3, 2), }          \n"
    "ABCDEFGHIJKLMNOPQRSTUVWX";
/* CDF-1: dimensions s (record, 3 of them) and c = 2, attribute t = "ab", variables y short (s) and x short (s, c). */
static const char small_nc[] = "CDF\1\0\0\0\3"
                               "\0\0\0\x0a\0\0\0\2\0\0\0\1s\0\0\0\0\0\0\0\0\0\0\1c\0\0\0\0\0\0\2"
                               "\0\0\0\x0c\0\0\0\1\0\0\0\1t\0\0\0\0\0\0\2\0\0\0\2ab\0\0"
                               "\0\0\0\x0b\0\0\0\2"
                               "\0\0\0\1y\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\3\0\0\0\4\0\0\0\x98"
                               "\0\0\0\1x\0\0\0\0\0\0\2\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\3\0\0\0\4\0\0\0\x9c"
                               "y1..abcdy2..efghy3..ijkl";

static const char *write_gzip(Arena *arena, const char *name, const void *bytes, size_t size) {
    const char *path = arena_printf(arena, "%s/%s", folder, name);
    gzFile file = gzopen(path, "wb");
    if (!file || gzwrite(file, bytes, (unsigned)size) != (int)size || gzclose(file) != Z_OK)
        exit(99);
    return path;
}

static const char *write_zip(Arena *arena, const char *name, int method, const void *bytes, size_t size) {
    const char *path = arena_printf(arena, "%s/%s", folder, name);
    zip_t *archive = zip_open(path, ZIP_CREATE | ZIP_TRUNCATE, NULL);
    zip_source_t *source = zip_source_buffer(archive, bytes, size, 0);
    zip_int64_t index = zip_file_add(archive, "x.npy", source, 0);
    if (index < 0 || zip_set_file_compression(archive, (zip_uint64_t)index, method, 9) || zip_close(archive))
        exit(99);
    return arena_printf(arena, "%s:x", path);
}

static void damaged_files_never_pass_for_sound_ones(void **state) {
    (void)state;
    Arena *arena = arena_new();
    const struct {
        const char *spec;
        bool checksum; /* no flipped bit may give other rows */
    } cases[] = {
        {write_file(arena, "a.idx", small_idx, sizeof small_idx - 1), false},
        {write_file(arena, "a.npy", small_npy, sizeof small_npy - 1), false},
        {arena_printf(arena, "%s:x", write_file(arena, "a.nc", small_nc, sizeof small_nc - 1)), false},
        {write_gzip(arena, "a.gz", small_idx, sizeof small_idx - 1), true},
        {write_gzip(arena, "b.gz", small_npy, sizeof small_npy - 1), true},
        {write_zip(arena, "s.npz", ZIP_CM_STORE, small_npy, sizeof small_npy - 1), true},
        {write_zip(arena, "d.npz", ZIP_CM_DEFLATE, small_npy, sizeof small_npy - 1), true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Damage damage = cut(arena, cases[i].spec);
        if (damage.same || damage.different || damage.nameless || damage.died != (int)damage.size)
            fail_msg("%s cut: %d same, %d different, %d nameless", cases[i].spec, damage.same, damage.different,
                     damage.nameless);
        damage = flip(arena, cases[i].spec, i, 2000);
        if (damage.nameless || damage.died < 200 || (cases[i].checksum && damage.different))
            fail_msg("%s flipped: %d died, %d different, %d nameless", cases[i].spec, damage.died, damage.different,
                     damage.nameless);
    }
    arena_free(arena);
}

/* A table of values has no end mark: one that lost whole rows, or digits of its last number, cannot be told. */
static void damaged_tables_are_read_or_refused(void **state) {
    (void)state;
    Arena *arena = arena_new();
    static const char table[] = "name,label\n\"a, b\",3\nc,14\n";
    const char *spec = arena_printf(arena, "%s:label", write_file(arena, "a.csv", table, sizeof table - 1));
    Damage damage = cut(arena, spec);
    assert_int_equal(damage.different, 3); /* after 3, after its end of line, after 1 */
    assert_int_equal(damage.same, 1);      /* only the last end of line is missing */
    assert_int_equal(damage.died, (int)damage.size - 4);
    damage = flip(arena, spec, 1, 2000);
    assert_int_equal(damage.nameless, 0);
    assert_true(damage.died > 500);
    arena_free(arena);
}

static void a_list_for_messages_is_cut(void **state) {
    (void)state;
    char list[DATASET_LIST_BYTES] = "";
    dataset_list_add(list, "one");
    dataset_list_add(list, "two");
    assert_string_equal(list, "one, two");
    for (int i = 0; i < 1000; i++)
        dataset_list_add(list,
                         "a name that is longer than it should be, as if someone wanted to overflow a buffer with it");
    assert_true(strlen(list) < DATASET_LIST_BYTES);
    assert_string_equal(list + strlen(list) - 5, ", ...");
}

static int unit_tests(void) {
    static char made[] = "/tmp/test_dataset_XXXXXX";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(halves_become_the_floats_they_are),
        cmocka_unit_test(every_type_becomes_float),
        cmocka_unit_test(whole_numbers_become_int64),
        cmocka_unit_test(other_numbers_are_refused_as_int64),
        cmocka_unit_test(byte_order_is_turned),
        cmocka_unit_test(values_that_are_not_finite_are_found),
        cmocka_unit_test(absurd_sizes_are_refused),
        cmocka_unit_test(damaged_files_never_pass_for_sound_ones),
        cmocka_unit_test(damaged_tables_are_read_or_refused),
        cmocka_unit_test(a_list_for_messages_is_cut),
    };
    folder = mkdtemp(made);
    int failed = folder ? cmocka_run_group_tests(tests, NULL, NULL) : 1;
    if (folder && !failed) {
        char command[64];
        snprintf(command, sizeof command, "rm -r %s", folder);
        failed = system(command);
    }
    return failed;
}

int main(int count, char **arguments) {
    const char *mode = count > 2 ? arguments[1] : "";
    if (!strcmp(mode, "dump"))
        return dump(count - 2, arguments + 2);
    if (!strcmp(mode, "cut") || (!strcmp(mode, "flip") && count == 5))
        return damage_mode(arguments);
    if (!strcmp(mode, "names") && count == 4)
        return names(arguments[2], arguments[3]);
    if (!strcmp(mode, "sha256"))
        return sha256(arguments[2]);
    return unit_tests();
}
