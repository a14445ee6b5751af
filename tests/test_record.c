/* test_record.c: a checkpoint's records are what was written, or nothing: every truncation, flips, other runs and keys. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "record.h"

enum { PAYLOAD = 5000, FLIPS = 20000, RUN = 77 };
static char folder[] = "/tmp/cnnscope-record.XXXXXX";
static unsigned char payload[PAYLOAD];

static char *path_of(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static size_t read_back(unsigned char *bytes, size_t size) {
    FILE *file = fopen(path_of("whole"), "rb");
    assert_true(file != NULL);
    size_t length = fread(bytes, 1, size, file);
    fclose(file);
    return length;
}

/* Not by O_TRUNC: closing such a file would wait for the disk. */
static void put_back(const unsigned char *bytes, size_t size) {
    int file = open(path_of("whole"), O_WRONLY);
    assert_true(file >= 0 && write(file, bytes, size) == (ssize_t)size && ftruncate(file, (off_t)size) == 0);
    close(file);
}

static bool is_there(const char *key, uint64_t run) {
    size_t size = 0;
    unsigned char *found = record_read_file(folder, "whole", key, run, &size);
    assert_true(!found || (size == PAYLOAD && memcmp(found, payload, size) == 0)); /* the truth, or nothing */
    free(found);
    return found != NULL;
}

static void write_whole(void) {
    Record record = {.run = RUN};
    record_key(&record, "tsne logits");
    record_write_file(folder, "whole", &record,
                      (RecordPart[]){{payload, 1000}, {payload + 1000, 0}, {payload + 1000, PAYLOAD - 1000}}, 3);
    assert_true(is_there("tsne logits", RUN));
}

static void test_damage_is_seen(void **state) {
    static unsigned char good[PAYLOAD + 1000], bad[PAYLOAD + 1001];
    (void)state;
    write_whole();
    const size_t size = read_back(good, sizeof good);
    for (size_t cut = 0; cut < size; cut++) {
        put_back(good, cut);
        assert_true(!is_there("tsne logits", RUN));
    }
    memcpy(bad, good, size);
    put_back(bad, size + 1); /* and one byte more */
    assert_true(!is_there("tsne logits", RUN));
    for (int i = 0; i < FLIPS; i++) {
        size_t bit = i < (int)(8 * 400) ? (size_t)i : (size_t)rand() % (8 * size); /* all of the header's */
        memcpy(bad, good, size);
        bad[bit / 8] ^= (unsigned char)(1 << bit % 8);
        put_back(bad, size);
        assert_true(!is_there("tsne logits", RUN));
    }
    put_back(good, size);
    assert_true(is_there("tsne logits", RUN));
    assert_true(!is_there("tsne logits", RUN + 1) && !is_there("tsne logit", RUN) && !is_there("tsne logits2", RUN));
}

/* Records of a log follow each other; one that is cut ends the log, and what is before it stays. */
static void test_log(void **state) {
    enum { COUNT = 5 };
    int64_t ends[COUNT + 1] = {0};
    (void)state;
    int file = open(path_of("rows"), O_RDWR | O_CREAT | O_APPEND, 0600);
    assert_true(file >= 0);
    for (int i = 0; i < COUNT; i++) {
        Record record = {.first = 10 * i, .count = 10, .run = RUN, .bytes = (uint64_t)(100 * i)};
        RecordWriter writer;
        record_key(&record, "forward");
        record_begin(&writer, file, "rows", &record);
        for (int part = 0; part < i; part++)
            record_add(&writer, payload + 100 * part, 100);
        record_end(&writer);
        ends[i + 1] = ends[i] + record_size(&record);
    }
    assert_true(lseek(file, 0, SEEK_END) == ends[COUNT]);
    for (int64_t size = ends[COUNT]; size >= 0; size--) {
        int64_t at = 0;
        int whole = 0;
        RecordReader reader;
        Record record;
        unsigned char bytes[100];
        for (; record_open(&reader, &record, file, at, size, RUN); at += record_size(&record), whole++) {
            assert_true(record.first == 10 * whole && record.count == 10 && record.bytes == (uint64_t)(100 * whole));
            assert_true(!record_sound(&reader) == (whole > 0)); /* not before all of it was taken */
            for (int part = 0; part < whole; part++)
                assert_true(record_take(&reader, bytes, 100) && memcmp(bytes, payload + 100 * part, 100) == 0);
            assert_true(record_sound(&reader) && !record_take(&reader, bytes, 1));
        }
        int expected = 0;
        while (expected < COUNT && ends[expected + 1] <= size)
            expected++;
        assert_true(whole == expected);
    }
    close(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_damage_is_seen), cmocka_unit_test(test_log)};
    if (!mkdtemp(folder))
        return 1;
    srand(1);
    for (int i = 0; i < PAYLOAD; i++)
        payload[i] = (unsigned char)rand();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    remove(path_of("whole"));
    remove(path_of("rows"));
    rmdir(folder);
    return failed;
}
