/* safetensors.c: the tensors of a .safetensors file (state.h).
 *
 *     uint64 N | JSON header, N bytes | data
 *     {"__metadata__": {"key": "text"}, "conv1.weight": {"dtype": "F32", "shape": [16,1,3,3], "data_offsets": [0,576]}}
 *
 * The format allows so little JSON that this reads just that, strictly: no value nests, no number is anything but a
 * whole one, and any other key, order of bytes or type of value is an error. The header is walked twice, to count the
 * tensors and to keep them, so that what is kept is in proportion to it. As the format wants, tensors lie one behind
 * the other, without holes or overlap; a tensor is a pointer into the file. There are no checksums. */
#include <stdlib.h>
#include <string.h>

#include "dataset.h"
#include "error.h"
#include "state.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are used as they are in the file");

enum { LENGTH_BYTES = 8, HEADER_MAX = 16 << 20, DTYPE_BYTES = 16 };

typedef struct {
    uint64_t begin, end; /* bytes of the data */
    const char *name;
} Extent;

typedef struct {
    const char *path, *text; /* the header */
    size_t size, at;
    const char *data;
    uint64_t data_bytes;
    char *names;      /* room for all of them: a decoded text is no longer than the one in the file */
    Extent *extents;  /* of all tensors, those of skipped types too */
    StateDict *state; /* NULL: only counting */
    int64_t count;
} Reader;

static void read_header(Reader *r);
static void check_extents(const Reader *r);

bool safetensors_is(const void *bytes, size_t size, const char *path) {
    static const char extension[] = ".safetensors";
    const uint8_t *b = bytes;
    size_t length = strlen(path), tail = sizeof extension - 1;
    return (length >= tail && !strcmp(path + length - tail, extension)) ||
           (size > LENGTH_BYTES && b[LENGTH_BYTES] == '{' && !(b[4] | b[5] | b[6] | b[7]));
}

StateDict *safetensors_read(Arena *arena, const void *bytes, size_t size, const char *path) {
    uint64_t length = 0;
    if (size > LENGTH_BYTES)
        memcpy(&length, bytes, LENGTH_BYTES);
    if (length < 2 || length > size - LENGTH_BYTES)
        die("%s: begins with a header of %llu bytes in a file of %zu, expected a .safetensors file: it is truncated or "
            "damaged",
            path, (unsigned long long)length, size);
    if (length > HEADER_MAX)
        die("%s: has a header of %llu bytes, expected at most %d: the file is damaged or made to exhaust memory", path,
            (unsigned long long)length, HEADER_MAX);
    Reader r = {.path = path,
                .text = (const char *)bytes + LENGTH_BYTES,
                .size = (size_t)length,
                .data = (const char *)bytes + LENGTH_BYTES + length,
                .data_bytes = size - LENGTH_BYTES - length};
    read_header(&r);
    StateDict *state = ARENA_ARRAY(arena, StateDict, 1, path);
    *state = (StateDict){.path = path,
                         .format = "safetensors",
                         .found_under = "",
                         .prefix = "",
                         .globals = "",
                         .tensors = ARENA_ARRAY(arena, Tensor, r.count, path),
                         .skipped = ARENA_ARRAY(arena, Skipped, STATE_SKIPPED_MAX, path)};
    r.names = ARENA_ARRAY(arena, char, length, path);
    r.extents = ARENA_ARRAY(arena, Extent, r.count, path);
    r.state = state;
    r.at = 0, r.count = 0;
    read_header(&r);
    check_extents(&r);
    state_settle(state, arena);
    return state;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

static _Noreturn void die_at(const Reader *r, const char *expected) {
    char found[16] = "its end";
    if (r->at < r->size) {
        memcpy(found, "'?'", 4);
        if ((unsigned char)r->text[r->at] > 0x20 && (unsigned char)r->text[r->at] < 0x7f)
            found[1] = r->text[r->at];
    }
    die("%s: header of the safetensors file has %s at byte %zu, expected %s: the file is damaged", r->path, found,
        LENGTH_BYTES + r->at, expected);
}

static void skip_space(Reader *r) {
    while (r->at < r->size && r->text[r->at] && strchr(" \t\r\n", r->text[r->at]))
        r->at++;
}

/* Whether the next character is this one, which is then passed. */
static bool take(Reader *r, char c) {
    skip_space(r);
    bool there = r->at < r->size && r->text[r->at] == c;
    r->at += there;
    return there;
}

static void need(Reader *r, char c) {
    const char expected[4] = {'\'', c, '\'', '\0'};
    if (!take(r, c))
        die_at(r, expected);
}

static uint64_t whole_number(Reader *r) {
    skip_space(r);
    uint64_t value = 0;
    size_t first = r->at;
    for (; r->at < r->size && r->text[r->at] >= '0' && r->text[r->at] <= '9'; r->at++)
        if (__builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(r->text[r->at] - '0'), &value) || value > INT64_MAX)
            die_at(r, "a number less than 2^63");
    if (r->at == first || (r->text[first] == '0' && r->at > first + 1))
        die_at(r, "a whole number");
    return value;
}

static uint32_t hex4(Reader *r) {
    static const char digits[] = "0123456789abcdef";
    uint32_t code = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        const char c = r->at < r->size ? r->text[r->at] : '\0';
        const char *digit = c ? strchr(digits, c >= 'A' && c <= 'F' ? c + 32 : c) : NULL;
        if (!digit)
            die_at(r, "four hexadecimal digits");
        code = code << 4 | (uint32_t)(digit - digits);
    }
    return code;
}

/* What follows a backslash, as UTF-8. Gives the number of bytes. */
static size_t escaped(Reader *r, char out[4]) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char c = r->at < r->size ? r->text[r->at] : '\0';
    const char *simple = c ? strchr(from, c) : NULL;
    if (!simple && c != 'u')
        die_at(r, "an escape of JSON");
    r->at++;
    if (simple)
        return out[0] = to[simple - from], 1;
    uint32_t code = hex4(r);
    if ((code & 0xf800) == 0xd800) { /* a character in two halves */
        uint32_t low = 0;
        if (r->size - r->at >= 2 && r->text[r->at] == '\\' && r->text[r->at + 1] == 'u') {
            r->at += 2;
            low = hex4(r);
        }
        if ((code & 0xfc00) != 0xd800 || (low & 0xfc00) != 0xdc00)
            die_at(r, "before it both halves of a surrogate pair");
        code = 0x10000 + ((code & 0x3ff) << 10 | (low & 0x3ff));
    }
    const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned char first[] = {0, 0xc0, 0xe0, 0xf0};
    for (int i = more; i > 0; i--, code >>= 6)
        out[i] = (char)(0x80 | (code & 0x3f));
    out[0] = (char)(first[more] | code);
    return (size_t)more + 1;
}

/* A text, decoded into out, of which no more than room - 1 bytes are kept; NULL: only passed. Gives its length. */
static size_t text(Reader *r, char *out, size_t room) {
    size_t length = 0;
    need(r, '"');
    while (r->at < r->size && r->text[r->at] != '"') {
        char bytes[4] = {r->text[r->at]};
        size_t count = 1;
        if ((unsigned char)bytes[0] < 0x20)
            die_at(r, "no control character in a text");
        r->at++;
        if (bytes[0] == '\\')
            count = escaped(r, bytes);
        for (size_t i = 0; i < count; i++, length++)
            if (out && length + 1 < room)
                out[length] = bytes[i];
    }
    if (out)
        out[length < room ? length : room - 1] = '\0';
    need(r, '"');
    return length;
}

/* ---- The header ------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    DType dtype;
} dtypes[] = {{"F32", DT_F32}, {"F64", DT_F64}, {"F16", DT_F16},  {"BF16", DT_BF16}, {"I64", DT_I64},
              {"U64", DT_U64}, {"I32", DT_I32}, {"U32", DT_U32},  {"I16", DT_I16},   {"U16", DT_U16},
              {"I8", DT_I8},   {"U8", DT_U8},   {"BOOL", DT_BOOL}};

typedef struct {
    char dtype[DTYPE_BYTES];
    int rank;
    int64_t shape[STATE_RANK_MAX];
    uint64_t begin, end;
} Entry;

static void read_shape(Reader *r, Entry *e) {
    need(r, '[');
    e->rank = 0;
    if (take(r, ']'))
        return;
    do {
        if (e->rank == STATE_RANK_MAX)
            die_at(r, "a shape of at most 8 dimensions");
        e->shape[e->rank++] = (int64_t)whole_number(r);
    } while (take(r, ','));
    need(r, ']');
}

/* {"dtype": ..., "shape": ..., "data_offsets": ...}, each once, in any order. */
static void read_entry(Reader *r, Entry *e) {
    bool seen[3] = {false};
    need(r, '{');
    do {
        static const char *const keys[] = {"dtype", "shape", "data_offsets"};
        char key[DTYPE_BYTES];
        int which = 0;
        text(r, key, sizeof key);
        while (which < 3 && strcmp(key, keys[which]))
            which++;
        if (which == 3 || seen[which])
            die_at(r, "before it dtype, shape and data_offsets, each once");
        seen[which] = true;
        need(r, ':');
        if (which == 0) {
            text(r, e->dtype, sizeof e->dtype);
        } else if (which == 1) {
            read_shape(r, e);
        } else {
            need(r, '[');
            e->begin = whole_number(r);
            need(r, ',');
            e->end = whole_number(r);
            need(r, ']');
        }
    } while (take(r, ','));
    need(r, '}');
    if (!seen[0] || !seen[1] || !seen[2])
        die_at(r, "before it dtype, shape and data_offsets");
}

static void keep(Reader *r, const Entry *e, const char *name) {
    StateDict *state = r->state;
    size_t known = 0, count = sizeof dtypes / sizeof *dtypes;
    if (e->begin > e->end || e->end > r->data_bytes)
        die("%s: tensor %s lies in bytes %llu to %llu of %llu: the file is truncated or damaged", r->path, name,
            (unsigned long long)e->begin, (unsigned long long)e->end, (unsigned long long)r->data_bytes);
    r->extents[r->count] = (Extent){e->begin, e->end, name};
    while (known < count && strcmp(dtypes[known].name, e->dtype))
        known++;
    if (known == count) {
        if (state->skipped_count < STATE_SKIPPED_MAX)
            state->skipped[state->skipped_count++] =
                (Skipped){name, "is of a type this program does not read: save it as float32"};
        return;
    }
    Tensor *tensor = &state->tensors[state->count++];
    *tensor = (Tensor){.name = name, .dtype = dtypes[known].dtype, .rank = e->rank, .size = 1};
    bool empty = false, huge = false;
    for (int d = 0; d < e->rank; d++) {
        tensor->shape[d] = e->shape[d];
        empty |= e->shape[d] == 0;
        huge |= __builtin_mul_overflow(tensor->size, e->shape[d], &tensor->size);
    }
    tensor->size = empty ? 0 : tensor->size;
    uint64_t bytes;
    if ((huge && !empty) || __builtin_mul_overflow((uint64_t)tensor->size, dtype_bytes(tensor->dtype), &bytes) ||
        bytes != e->end - e->begin)
        die("%s: tensor %s has %llu bytes of data (%llu to %llu), which are not those of its shape: the file is "
            "damaged",
            r->path, name, (unsigned long long)(e->end - e->begin), (unsigned long long)e->begin,
            (unsigned long long)e->end);
    tensor->data = r->data + e->begin;
}

static void read_metadata(Reader *r) {
    need(r, '{');
    if (take(r, '}'))
        return;
    do {
        text(r, NULL, 0);
        need(r, ':');
        text(r, NULL, 0);
    } while (take(r, ','));
    need(r, '}');
}

static void read_header(Reader *r) {
    char counted[STATE_NAME_BYTES];
    size_t used = 0;
    bool metadata = false;
    need(r, '{');
    bool empty = take(r, '}');
    while (!empty) {
        char *name = r->state ? r->names + used : counted;
        size_t length = text(r, name, r->state ? r->size - used : sizeof counted);
        bool odd = length >= STATE_NAME_BYTES;
        for (size_t i = 0; i < length && !odd; i++)
            odd = (unsigned char)name[i] < 0x20 || name[i] == 0x7f;
        if (odd)
            die_at(r, "before it the name of a tensor, without control characters");
        used += length + 1;
        need(r, ':');
        if (!strcmp(name, "__metadata__")) {
            if (metadata)
                die_at(r, "__metadata__ only once");
            metadata = true;
            read_metadata(r);
        } else {
            Entry entry = {.rank = 0};
            read_entry(r, &entry);
            if (r->state)
                keep(r, &entry, name);
            r->count++;
        }
        if (!take(r, ','))
            break;
    }
    if (!empty)
        need(r, '}');
    skip_space(r);
    if (r->at != r->size)
        die_at(r, "nothing more");
}

static int by_place(const void *a, const void *b) {
    const Extent *x = a, *y = b;
    return x->begin != y->begin ? (x->begin < y->begin ? -1 : 1) : (x->end > y->end) - (x->end < y->end);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const Extent *)a)->name, ((const Extent *)b)->name);
}

/* All names differ, and each byte of the data belongs to one tensor. */
static void check_extents(const Reader *r) {
    if (r->count)
        qsort(r->extents, (size_t)r->count, sizeof *r->extents, by_name);
    for (int64_t i = 1; i < r->count; i++)
        if (!strcmp(r->extents[i].name, r->extents[i - 1].name))
            die("%s: tensor %s is there twice: the file is damaged or made to mislead", r->path, r->extents[i].name);
    uint64_t at = 0;
    if (r->count)
        qsort(r->extents, (size_t)r->count, sizeof *r->extents, by_place);
    for (int64_t i = 0; i < r->count; at = r->extents[i++].end)
        if (r->extents[i].begin != at)
            die("%s: tensor %s begins at byte %llu of the data, expected %llu, where the one before ends: the file is "
                "damaged",
                r->path, r->extents[i].name, (unsigned long long)r->extents[i].begin, (unsigned long long)at);
    if (at != r->data_bytes)
        die("%s: has %llu bytes that belong to no tensor: the file is damaged", r->path,
            (unsigned long long)(r->data_bytes - at));
}
