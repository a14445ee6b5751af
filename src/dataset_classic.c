/* dataset_classic.c: proves that a netCDF classic file is sound before the library sees it.
 *
 * The library reads zeros past the end of a truncated classic file, and crashes on headers whose counts make no sense,
 * so the header (CDF-1, CDF-2 or CDF-5, big endian) is walked here first: magic, number of records, then the lists of
 * dimensions, attributes and variables. Counts are 8 bytes in CDF-5, else 4; offsets are 4 bytes in CDF-1, else 8;
 * names and attribute values are padded to 4 bytes. Variables of the record dimension take turns, one record each,
 * padded to 4 bytes unless there is only one such variable. Costs one read of the header. */
#include <stdio.h>
#include <string.h>

#include "dataset_format.h"

enum { DIMENSION_TAG = 10, VARIABLE_TAG = 11, ATTRIBUTE_TAG = 12, MAX_NAME = 256, MAX_VAR_DIMENSIONS = 1024 };

typedef struct {
    FILE *file;
    uint64_t left; /* bytes of the file not walked yet */
    int count_bytes, offset_bytes;
    bool bad;
    uint64_t *dimensions, dimension_count; /* their lengths; 0: the record dimension */
    uint64_t fixed_end;                    /* where the last variable without records ends */
    uint64_t record_end, record_bytes;     /* where the first record ends, and from one to the next */
    uint64_t record_variables, last_record_size;
} Walk;

static void walk_dimensions(Walk *walk, Arena *arena);
static void walk_attributes(Walk *walk);
static void walk_variable(Walk *walk);
static uint64_t walk_list(Walk *walk, uint64_t tag, uint64_t least_bytes);
static void walk_name(Walk *walk);
static uint64_t walk_type(Walk *walk);
static uint64_t walk_number(Walk *walk, int bytes);
static void walk_skip(Walk *walk, uint64_t bytes);
static uint64_t padded(uint64_t bytes);

void dataset_classic_check(Dataset *dataset) {
    unsigned char magic[4] = {0};
    Walk walk = {.file = fopen(dataset->path, "rb"), .left = dataset->source->file_size - sizeof magic};
    if (!walk.file)
        dataset_die(dataset, "cannot be opened");
    walk.bad = fread(magic, 1, sizeof magic, walk.file) != sizeof magic;
    walk.count_bytes = magic[3] == 5 ? 8 : 4;
    walk.offset_bytes = magic[3] == 1 ? 4 : 8;
    uint64_t records = walk_number(&walk, walk.count_bytes), end = 0;
    walk_dimensions(&walk, dataset->source->arena);
    walk_attributes(&walk);
    for (uint64_t left = walk_list(&walk, VARIABLE_TAG, 32); left > 0 && !walk.bad; left--)
        walk_variable(&walk);
    fclose(walk.file);

    if (walk.record_variables == 1)
        walk.record_bytes = walk.last_record_size;
    if (!walk.bad && walk.record_variables > 0 && records > 0)
        walk.bad = __builtin_mul_overflow(records - 1, walk.record_bytes, &end) ||
                   __builtin_add_overflow(end, walk.record_end, &end);
    if (walk.bad)
        dataset_die(dataset, "is a truncated or damaged netCDF file: its header makes no sense; copy it again");
    if (walk.fixed_end > end)
        end = walk.fixed_end;
    if (end > dataset->source->file_size)
        dataset_die(dataset, "is truncated: the file has %llu bytes, its header promises %llu; copy it again",
                    (unsigned long long)dataset->source->file_size, (unsigned long long)end);
}

static void walk_dimensions(Walk *walk, Arena *arena) {
    walk->dimension_count = walk_list(walk, DIMENSION_TAG, 12);
    walk->dimensions = ARENA_ARRAY(arena, uint64_t, walk->dimension_count, "dimensions of a netCDF file");
    int record_dimensions = 0;
    for (uint64_t i = 0; i < walk->dimension_count && !walk->bad; i++) {
        walk_name(walk);
        walk->dimensions[i] = walk_number(walk, walk->count_bytes);
        record_dimensions += walk->dimensions[i] == 0;
        walk->bad |= walk->dimensions[i] > INT64_MAX / 8 || record_dimensions > 1;
    }
}

static void walk_attributes(Walk *walk) {
    for (uint64_t left = walk_list(walk, ATTRIBUTE_TAG, 12); left > 0 && !walk->bad; left--) {
        walk_name(walk);
        uint64_t bytes = walk_type(walk), count = walk_number(walk, walk->count_bytes);
        if (__builtin_mul_overflow(count, bytes, &bytes))
            walk->bad = true;
        else
            walk_skip(walk, bytes);
    }
}

static void walk_variable(Walk *walk) {
    walk_name(walk);
    uint64_t rank = walk_number(walk, walk->count_bytes), size = 1;
    bool in_records = false;
    walk->bad |= rank > MAX_VAR_DIMENSIONS;
    for (uint64_t i = 0; i < rank && !walk->bad; i++) {
        uint64_t id = walk_number(walk, walk->count_bytes);
        if (id >= walk->dimension_count || (i > 0 && walk->dimensions[id] == 0)) {
            walk->bad = true;
            return;
        }
        if (walk->dimensions[id] == 0)
            in_records = true;
        else
            walk->bad |= __builtin_mul_overflow(size, walk->dimensions[id], &size) || size > INT64_MAX / 8;
    }
    walk_attributes(walk);
    size *= walk_type(walk);
    walk_number(walk, walk->count_bytes); /* the size, which readers are told to compute */
    uint64_t begin = walk_number(walk, walk->offset_bytes), end;
    if (walk->bad || __builtin_add_overflow(begin, size, &end)) {
        walk->bad = true;
        return;
    }
    uint64_t *last = in_records ? &walk->record_end : &walk->fixed_end;
    *last = end > *last ? end : *last;
    if (in_records) {
        walk->record_variables++;
        walk->last_record_size = size;
        walk->bad |= __builtin_add_overflow(walk->record_bytes, padded(size), &walk->record_bytes);
    }
}

/* Gives the number of entries, which must have room in the file. */
static uint64_t walk_list(Walk *walk, uint64_t tag, uint64_t least_bytes) {
    uint64_t found = walk_number(walk, 4), count = walk_number(walk, walk->count_bytes);
    walk->bad |= count > walk->left / least_bytes || (found != tag && (found != 0 || count != 0));
    return walk->bad ? 0 : count;
}

static void walk_name(Walk *walk) {
    uint64_t length = walk_number(walk, walk->count_bytes);
    walk->bad |= length == 0 || length > MAX_NAME;
    walk_skip(walk, length);
}

/* Gives the bytes of a value. */
static uint64_t walk_type(Walk *walk) {
    static const unsigned char bytes[] = {0, 1, 1, 2, 4, 4, 8, 1, 2, 4, 8, 8}; /* NC_BYTE 1 to NC_UINT64 11 */
    uint64_t type = walk_number(walk, 4);
    walk->bad |= type == 0 || type >= (walk->count_bytes == 8 ? sizeof bytes : 7);
    return walk->bad ? 0 : bytes[type];
}

static uint64_t walk_number(Walk *walk, int bytes) {
    unsigned char digits[8];
    uint64_t number = 0;
    if (walk->bad || walk->left < (uint64_t)bytes || fread(digits, 1, (size_t)bytes, walk->file) != (size_t)bytes) {
        walk->bad = true;
        return 0;
    }
    walk->left -= (uint64_t)bytes;
    for (int i = 0; i < bytes; i++)
        number = number << 8 | digits[i];
    return number;
}

static void walk_skip(Walk *walk, uint64_t bytes) {
    if (walk->bad || bytes > walk->left || padded(bytes) > walk->left ||
        fseeko(walk->file, (off_t)padded(bytes), SEEK_CUR)) {
        walk->bad = true;
        return;
    }
    walk->left -= padded(bytes);
}

static uint64_t padded(uint64_t bytes) {
    return (bytes + 3) / 4 * 4;
}
