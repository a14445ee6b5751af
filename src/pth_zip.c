/* pth_zip.c: the format of PyTorch 1.6 and later: a zip of NAME/data.pkl (the object), NAME/data/KEY (the storages)
 * and NAME/byteorder. libzip reads it from memory and checks every entry's CRC. torch.save compresses nothing, but a
 * file zipped again by another tool may be: deflated entries are read too, within the memory limit.
 *
 * The archive is open only while its entries are copied out, so that what dies elsewhere leaves nothing behind. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <zip.h>

#include "error.h"
#include "pth_parts.h"

enum {
    ENTRY_BYTES = 512 /* what libzip needs to list an entry, and more */,
    STEM_MAX = 1024,
    LEAF_MAX = KEY_BYTES + 8
};

/* Closes the archive (NULL: not open), then dies. */
static _Noreturn void zip_die(zip_t *zip, const char *format, ...) PRINTF_LIKE(2, 3);
static void zip_die(zip_t *zip, const char *format, ...) {
    char message[3072];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (zip)
        zip_discard(zip);
    die("%s", message);
}

/* libzip makes room for as many entries as the file lists: they are counted first. */
static size_t count_headers(const PthFile *file) {
    size_t headers = 0;
    const uint8_t *at = file->bytes, *end = file->bytes + file->size;
    while ((at = memchr(at, 'P', (size_t)(end - at)))) {
        headers += end - at >= 4 && !memcmp(at, "PK\1\2", 4);
        at++;
    }
    return headers;
}

static uint64_t number_at(const PthFile *file, uint64_t at, int bytes) {
    uint64_t number = 0;
    if (at > file->size || file->size - at < (uint64_t)bytes)
        die("%s: its zip directory leads beyond its end: the file is truncated or damaged", file->path);
    for (int i = bytes; i-- > 0;)
        number = number << 8 | file->bytes[at + (uint64_t)i];
    return number;
}

static bool is_at(const PthFile *file, uint64_t at, const char signature[4]) {
    number_at(file, at, 4);
    return !memcmp(file->bytes + at, signature, 4);
}

/* Where the record is that ends the directory: it is the last of the file but for a comment. */
static uint64_t end_record(const PthFile *file) {
    enum { RECORD = 22, COMMENT_MAX = 65535 };
    for (size_t back = RECORD; back <= file->size && back <= RECORD + COMMENT_MAX; back++)
        if (is_at(file, file->size - back, "PK\5\6") && number_at(file, file->size - back + 20, 2) == back - RECORD)
            return file->size - back;
    die("%s: its zip directory has no end: the file is truncated or damaged", file->path);
}

/* No entry may be called encrypted, patched or masked, in the directory or before its bytes. Readers differ in which of
 * these flags they look at, so that a file can be one thing to a scanner and another to those who load it. */
static void check_flags(const PthFile *file) {
    enum { ODD_FLAGS = 1 | 1 << 5 | 1 << 6 | 1 << 13, ENTRY = 46 };
    const uint64_t end = end_record(file), nowhere = UINT32_MAX;
    uint64_t count = number_at(file, end + 10, 2), at = number_at(file, end + 16, 4);
    if (end >= 20 && is_at(file, end - 20, "PK\6\7")) { /* the locator of the Zip64 record */
        const uint64_t large = number_at(file, end - 12, 8);
        count = number_at(file, large > SIZE_MAX / 2 ? SIZE_MAX : large + 32, 8);
        at = number_at(file, large + 48, 8);
    }
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t header = number_at(file, at > SIZE_MAX / 2 ? SIZE_MAX : at + 42, 4);
        uint64_t flags = number_at(file, at + 8, 2);
        if (header != nowhere) /* else it is behind 4 GiB */
            flags |= number_at(file, header + 6, 2);
        if (flags & ODD_FLAGS)
            die("%s: zip entry %llu has flags 0x%llx, encrypted or patched, expected neither: the file is damaged or "
                "made to mislead",
                file->path, (unsigned long long)i, (unsigned long long)flags);
        at += ENTRY + number_at(file, at + 28, 2) + number_at(file, at + 30, 2) + number_at(file, at + 32, 2);
    }
}

static zip_t *open_archive(PthFile *file) {
    size_t headers = count_headers(file);
    if (headers > file->memory_left / ENTRY_BYTES)
        die("%s: found %zu zip entries in %zu bytes, expected the few of a .pth file", file->path, headers, file->size);

    zip_error_t error;
    zip_error_init(&error);
    zip_source_t *source = zip_source_buffer_create(file->bytes, file->size, 0, &error);
    zip_t *zip = source ? zip_open_from_source(source, ZIP_RDONLY | ZIP_CHECKCONS, &error) : NULL;
    if (!zip) {
        char reason[256];
        snprintf(reason, sizeof reason, "%s",
                 zip_error_code_zip(&error) == ZIP_ER_EXISTS ? "an entry is there twice" : zip_error_strerror(&error));
        zip_error_fini(&error);
        if (source)
            zip_source_free(source);
        die("%s: begins like a zip file but cannot be read as one (%s): the file is truncated or damaged", file->path,
            reason);
    }
    return zip;
}

/* A whole entry, in the arena. */
static uint8_t *read_entry(size_t *size, PthFile *file, zip_t *zip, zip_int64_t index, const char *name) {
    zip_stat_t stat;
    if (zip_stat_index(zip, (zip_uint64_t)index, 0, &stat) < 0 || !(stat.valid & ZIP_STAT_SIZE))
        zip_die(zip, "%s: zip entry %s has no size: the file is damaged", file->path, name);
    if (stat.size > file->memory_left)
        zip_die(zip, "%s: zip entry %s is said to hold %llu bytes, more than a file of %zu bytes should: it is damaged",
                file->path, name, (unsigned long long)stat.size, file->size);
    file->memory_left -= stat.size;
    uint8_t *bytes = arena_alloc(file->arena, stat.size ? stat.size : 1, 1, file->path);
    zip_file_t *entry = zip_fopen_index(zip, (zip_uint64_t)index, 0);
    if (!entry)
        zip_die(zip, "%s: zip entry %s cannot be read (%s): the file is damaged", file->path, name, zip_strerror(zip));
    zip_int64_t got = zip_fread(entry, bytes, stat.size);
    uint8_t beyond;
    zip_int64_t more = zip_fread(entry, &beyond, 1); /* at the end libzip compares the CRC */
    if (got != (zip_int64_t)stat.size || more != 0) {
        char reason[256];
        snprintf(reason, sizeof reason, "%s", zip_error_strerror(zip_file_get_error(entry)));
        zip_fclose(entry);
        zip_die(zip, "%s: zip entry %s cannot be read (%s): the file is damaged, copy or save it again", file->path,
                name, reason);
    }
    zip_fclose(entry);
    *size = stat.size;
    return bytes;
}

/* A name that would lie outside of the folder it is unpacked in: nothing is unpacked here, but torch.save writes none. */
static bool leads_outside(const char *name) {
    if (*name == '/' || *name == '\\' || (*name && name[1] == ':'))
        return true;
    for (;;) {
        const size_t length = strcspn(name, "/\\");
        if (length == 2 && name[0] == '.' && name[1] == '.')
            return true;
        name += length;
        if (!*name++)
            return false;
    }
}

/* Index of the one NAME/data.pkl; stem gets NAME/. Every name is looked at on the way. */
static zip_int64_t find_pickle(char stem[STEM_MAX], const PthFile *file, zip_t *zip) {
    static const char leaf[] = "data.pkl";
    zip_int64_t found = -1, count = zip_get_num_entries(zip, 0);
    for (zip_int64_t i = 0; i < count; i++) {
        const char *name = zip_get_name(zip, (zip_uint64_t)i, ZIP_FL_ENC_RAW);
        if (!name || zip_name_locate(zip, name, ZIP_FL_ENC_RAW) != i)
            zip_die(zip, "%s: zip entry %s is there twice: the file is damaged or made to mislead", file->path,
                    name ? name : "without a name");
        if (leads_outside(name))
            zip_die(zip, "%s: zip entry %s lies outside of the file's folder: the file is made to mislead", file->path,
                    name);
        size_t length = strlen(name), before = length - (sizeof leaf - 1);
        if (length < sizeof leaf - 1 || strcmp(name + before, leaf) || (before && name[before - 1] != '/') ||
            before >= STEM_MAX)
            continue;
        if (found >= 0)
            zip_die(zip, "%s: found %s and %s%s in the zip file, expected one data.pkl", file->path, name, stem, leaf);
        memcpy(stem, name, before);
        stem[before] = '\0';
        found = i;
    }
    if (found < 0)
        zip_die(zip, "%s: found a zip file without data.pkl, expected one written by torch.save", file->path);
    return found;
}

static zip_int64_t locate(zip_t *zip, const char *stem, const char *leaf) {
    char name[STEM_MAX + LEAF_MAX];
    snprintf(name, sizeof name, "%s%s", stem, leaf);
    return zip_name_locate(zip, name, ZIP_FL_ENC_RAW);
}

PickleRef pth_zip_pickle(PthFile *file, Pickle *pickle) {
    zip_t *zip = open_archive(file);
    char stem[STEM_MAX];
    zip_int64_t data = find_pickle(stem, file, zip), order = locate(zip, stem, "byteorder");
    size_t size, order_size = 0;
    if (locate(zip, stem, "constants.pkl") >= 0)
        zip_die(zip,
                "%s: found a TorchScript archive, expected a state_dict: save it in Python with "
                "torch.save(torch.jit.load(FILE).state_dict(), \"model.pth\")",
                file->path);
    const uint8_t *bytes = read_entry(&size, file, zip, data, "data.pkl");
    const uint8_t *order_text = order >= 0 ? read_entry(&order_size, file, zip, order, "byteorder") : NULL;
    zip_discard(zip);
    check_flags(file);
    if (order_text && (order_size != 6 || memcmp(order_text, "little", 6)))
        die("%s: byteorder is %.*s, expected little: save it again on a little-endian machine", file->path,
            order_size < 16 ? (int)order_size : 16, (const char *)order_text);
    pickle_open(pickle, file->arena, bytes, size, file->path, "data.pkl", &file->memory_left);
    PickleRef root = pickle_run(pickle);
    if (pickle->at != size)
        die("%s: data.pkl has %zu bytes after the end of its pickle: the file is damaged", file->path,
            size - pickle->at);
    return root;
}

void pth_zip_storages(PthFile *file, Storage *storages, int count) {
    zip_t *zip = open_archive(file);
    char stem[STEM_MAX], leaf[LEAF_MAX];
    find_pickle(stem, file, zip);
    for (int i = 0; i < count; i++) {
        Storage *storage = &storages[i];
        size_t size;
        snprintf(leaf, sizeof leaf, "data/%s", storage->key);
        zip_int64_t index = locate(zip, stem, leaf);
        if (index < 0)
            zip_die(zip, "%s: zip entry %s%s is missing: the file is damaged", file->path, stem, leaf);
        zip_stat_t stat;
        if (zip_stat_index(zip, (zip_uint64_t)index, 0, &stat) < 0 || stat.size != storage->bytes)
            zip_die(zip, "%s: zip entry %s%s holds %llu bytes, expected %zu: the file is damaged", file->path, stem,
                    leaf, (unsigned long long)stat.size, storage->bytes);
        storage->data = read_entry(&size, file, zip, index, leaf);
    }
    zip_discard(zip);
}
