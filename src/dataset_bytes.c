/* dataset_bytes.c: the bytes of one array's file, from a plain file, a gzip file, or an entry of a zip.
 *
 * Plain files and stored zip entries are read where the rows lie. Packed ones (gzip, deflated entries) are unpacked
 * from the start and thrown away up to the first row asked for; reads that go forward carry on, so a shard costs one
 * pass whatever the block size, and no more memory than a buffer. Going back starts again.
 *
 * Damage: a plain file must have the very size its header promises. gzip ends with the size modulo 2^32, looked at when
 * opening; the checksum is tested by whoever reads the last row (in a job, the last rank). Where that size does not
 * agree the file is unpacked once to find out: it is cut off, or made of several members, which is legal. A zip entry
 * of up to 64 MiB is tested against its checksum when opening, a larger one when it is read from start to end. */
#include "dataset_format.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zip.h>
#include <zlib.h>

enum { GZIP_BUFFER = 256 << 10, SKIP_BUFFER = 64 << 10, ZIP_TESTED_BYTES = 64 << 20 };

struct DatasetBytes {
    int fd;            /* plain file, and the trailer of a gzip file; -1: none */
    gzFile gzip;       /* or NULL */
    zip_t *archive;    /* or NULL */
    zip_file_t *entry; /* open in archive */
    zip_uint64_t index;
    bool stored;   /* the entry can be sought in */
    uint64_t size; /* of a plain file or an entry; of gzip content only what the trailer says, modulo 2^32 */
    uint64_t end;  /* as the header promises; 0 before it is known */
    uint64_t at;   /* of gzip and zip: the next byte */
};

static DatasetBytes *bytes_new(Dataset *dataset);
static zip_int64_t find_entry(Dataset *dataset, zip_t *archive);
static void open_entry(Dataset *dataset);
static size_t packed_read(Dataset *dataset, void *out, size_t bytes);
static void packed_seek(Dataset *dataset, uint64_t offset);
static void packed_skip(Dataset *dataset, uint64_t offset);
static void packed_skip_to_end(Dataset *dataset);
static void check_at_end(Dataset *dataset);
static _Noreturn void die_size(Dataset *dataset, uint64_t found);

void dataset_bytes_open_file(Dataset *dataset) {
    DatasetBytes *bytes = bytes_new(dataset);
    bytes->fd = dataset_file_open(dataset->path, &bytes->size);
}

void dataset_bytes_open_gzip(Dataset *dataset) {
    DatasetBytes *bytes = bytes_new(dataset);
    unsigned char trailer[4] = {0};
    bytes->fd = dataset_file_open(dataset->path, &bytes->size);
    if (bytes->size >= 18)
        dataset_file_read(bytes->fd, trailer, 4, bytes->size - 4);
    bytes->size = trailer[0] | (uint32_t)trailer[1] << 8 | (uint32_t)trailer[2] << 16 | (uint32_t)trailer[3] << 24;
    bytes->gzip = gzopen(dataset->path, "rb");
    if (!bytes->gzip)
        dataset_die(dataset, "cannot be opened: %s", strerror(errno));
    gzbuffer(bytes->gzip, GZIP_BUFFER);
}

void dataset_bytes_open_zip(Dataset *dataset) {
    DatasetBytes *bytes = bytes_new(dataset);
    zip_stat_t info;
    int code;
    bytes->archive = zip_open(dataset->path, ZIP_RDONLY, &code);
    if (!bytes->archive) {
        zip_error_t error;
        zip_error_init_with_code(&error, code);
        dataset_die(dataset, "is a damaged or truncated zip file (%s); save or copy it again",
                    zip_error_strerror(&error));
    }
    zip_int64_t index = find_entry(dataset, bytes->archive);
    bytes->index = (zip_uint64_t)index;
    const zip_uint64_t needed = ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD;
    if (zip_stat_index(bytes->archive, bytes->index, 0, &info) || (info.valid & needed) != needed)
        dataset_die(dataset, "the zip entry has no size or method; save the file again with numpy.savez");
    if (info.encryption_method != ZIP_EM_NONE ||
        (info.comp_method != ZIP_CM_STORE && info.comp_method != ZIP_CM_DEFLATE))
        dataset_die(dataset,
                    "the zip entry is encrypted or packed by method %d; save it with numpy.savez or savez_compressed",
                    info.comp_method);
    bytes->stored = info.comp_method == ZIP_CM_STORE;
    if (info.comp_size > dataset->source->file_size || (bytes->stored && info.comp_size != info.size))
        dataset_die(dataset, "is a damaged zip file: the sizes of an entry cannot be; save or copy it again");
    dataset_check_ratio(dataset, info.size, info.comp_size);
    bytes->size = info.size;
    open_entry(dataset);
    if (bytes->size <= ZIP_TESTED_BYTES) {
        packed_skip_to_end(dataset);
        open_entry(dataset);
    }
}

void dataset_bytes_close(DatasetBytes *bytes) {
    if (!bytes)
        return;
    if (bytes->gzip)
        gzclose_r(bytes->gzip);
    if (bytes->entry)
        zip_fclose(bytes->entry);
    if (bytes->archive)
        zip_discard(bytes->archive);
    if (bytes->fd >= 0)
        close(bytes->fd);
}

void dataset_bytes_read(Dataset *dataset, void *out, uint64_t offset, size_t bytes) {
    DatasetBytes *from = dataset->source->bytes;
    if (!from->gzip && !from->archive) {
        int64_t got = dataset_file_read(from->fd, out, bytes, offset);
        if (got < 0)
            dataset_die(dataset, "cannot be read: %s", strerror(errno));
        if ((size_t)got < bytes)
            die_size(dataset, offset + (uint64_t)got);
        return;
    }
    packed_seek(dataset, offset);
    for (size_t done = 0; done < bytes;) {
        size_t got = packed_read(dataset, (char *)out + done, bytes - done);
        if (got == 0)
            die_size(dataset, from->at);
        done += got;
    }
    if (from->end && from->at == from->end)
        check_at_end(dataset);
}

void dataset_bytes_set_end(Dataset *dataset, uint64_t end) {
    DatasetBytes *bytes = dataset->source->bytes;
    bytes->end = end;
    if (!bytes->gzip) {
        if (bytes->size != end)
            die_size(dataset, bytes->size);
        return;
    }
    dataset_check_ratio(dataset, end, dataset->source->file_size);
    if (bytes->size != (end & UINT32_MAX))
        packed_skip_to_end(dataset);
}

static DatasetBytes *bytes_new(Dataset *dataset) {
    DatasetBytes *bytes = ARENA_ARRAY(dataset->source->arena, DatasetBytes, 1, dataset->spec);
    bytes->fd = -1;
    dataset->source->bytes = bytes;
    return bytes;
}

/* The entry of the key (KEY.npy), or the only one; dies listing the keys. */
static zip_int64_t find_entry(Dataset *dataset, zip_t *archive) {
    const char *key = dataset->source->key;
    char list[DATASET_LIST_BYTES] = "";
    zip_int64_t entries = zip_get_num_entries(archive, 0), arrays = 0, only = -1;
    for (zip_int64_t i = 0; i < entries; i++) {
        const char *name = zip_get_name(archive, (zip_uint64_t)i, ZIP_FL_ENC_RAW);
        size_t length = name ? strlen(name) : 0;
        if (length < 5 || strcmp(name + length - 4, ".npy"))
            continue;
        if (key && !strncmp(name, key, length - 4) && (!strcmp(key + length - 4, "") || !strcmp(name, key)))
            return i;
        arrays++;
        only = i;
        char shown[96] = "";
        strncat(shown, name, length - 4 < sizeof shown - 1 ? length - 4 : sizeof shown - 1);
        dataset_list_add(list, shown);
    }
    if (arrays == 0)
        dataset_die(dataset, "is a zip file without arrays; expected one made by numpy.savez");
    if (key)
        dataset_die(dataset, "has no array of this name; it holds %s", list);
    if (arrays > 1)
        dataset_die(dataset, "holds several arrays; add one of their names, as %s:KEY (%s)", dataset->path, list);
    return only;
}

static void open_entry(Dataset *dataset) {
    DatasetBytes *bytes = dataset->source->bytes;
    if (bytes->entry)
        zip_fclose(bytes->entry);
    bytes->entry = zip_fopen_index(bytes->archive, bytes->index, 0);
    bytes->at = 0;
    if (!bytes->entry)
        dataset_die(dataset, "is a damaged zip file (%s); save or copy it again", zip_strerror(bytes->archive));
}

/* The next bytes, at least one unless at the end. */
static size_t packed_read(Dataset *dataset, void *out, size_t bytes) {
    DatasetBytes *from = dataset->source->bytes;
    size_t piece = bytes < DATASET_PIECE ? bytes : DATASET_PIECE;
    int64_t got;
    if (from->gzip) {
        int code = Z_OK;
        got = gzread(from->gzip, out, (unsigned)piece);
        gzerror(from->gzip, &code);
        if (got < 0 || (got == 0 && code != Z_OK && code != Z_STREAM_END))
            dataset_die(dataset, "is %s after %" PRIu64 " unpacked bytes; copy it again",
                        code == Z_BUF_ERROR ? "a truncated gzip file, which ends" : "a damaged gzip file", from->at);
    } else {
        got = zip_fread(from->entry, out, piece);
        if (got < 0)
            dataset_die(dataset, "is a damaged zip file (%s, after %" PRIu64 " bytes); save or copy it again",
                        zip_file_strerror(from->entry), from->at);
    }
    from->at += (uint64_t)got;
    return (size_t)got;
}

static void packed_seek(Dataset *dataset, uint64_t offset) {
    DatasetBytes *bytes = dataset->source->bytes;
    if (offset == bytes->at)
        return;
    if (bytes->archive && bytes->stored) {
        if (offset > INT64_MAX || zip_fseek(bytes->entry, (zip_int64_t)offset, SEEK_SET))
            dataset_die(dataset, "cannot be read (%s)", zip_file_strerror(bytes->entry));
        bytes->at = offset;
        return;
    }
    if (offset < bytes->at) {
        if (bytes->archive)
            open_entry(dataset);
        else if (gzrewind(bytes->gzip))
            dataset_die(dataset, "cannot be read: %s", strerror(errno));
        bytes->at = 0;
    }
    packed_skip(dataset, offset);
}

/* Reads on up to `offset`, and throws it away. */
static void packed_skip(Dataset *dataset, uint64_t offset) {
    DatasetBytes *bytes = dataset->source->bytes;
    unsigned char thrown_away[SKIP_BUFFER];
    while (bytes->at < offset) {
        uint64_t left = offset - bytes->at;
        if (packed_read(dataset, thrown_away, left < sizeof thrown_away ? (size_t)left : sizeof thrown_away) == 0)
            die_size(dataset, bytes->at);
    }
}

/* Reads all that is left, which tests the checksum, and the size against what is promised. */
static void packed_skip_to_end(Dataset *dataset) {
    DatasetBytes *bytes = dataset->source->bytes;
    packed_skip(dataset, bytes->end ? bytes->end : bytes->size);
    check_at_end(dataset);
}

static void check_at_end(Dataset *dataset) {
    DatasetBytes *bytes = dataset->source->bytes;
    unsigned char more;
    if (packed_read(dataset, &more, 1) != 0)
        dataset_die(dataset, "is damaged: more follows the %" PRIu64 " bytes that its header describes; save it again",
                    bytes->at - 1);
}

static _Noreturn void die_size(Dataset *dataset, uint64_t found) {
    uint64_t end = dataset->source->bytes->end;
    if (end == 0)
        dataset_die(dataset, "is truncated: it ends within its header, after %" PRIu64 " bytes; copy it again", found);
    if (found < end)
        dataset_die(dataset,
                    "is truncated: %" PRIu64 " bytes found, %" PRIu64 " expected from its header; copy it again", found,
                    end);
    dataset_die(dataset, "is damaged: %" PRIu64 " bytes found, %" PRIu64 " expected from its header; save it again",
                found, end);
}
