/* record.c: see record.h. CRC-32 is zlib's, about 1 GB/s: it finds every torn write and every single flipped bit. */
#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "error.h"

enum { VERSION = 1, PATH_BYTES = 4096 };
static const char MAGIC[8] = "cnnscope";

typedef struct {
    char magic[8];
    uint32_t version;
    uint32_t crc; /* of the header, with 0 here */
    Record record;
} RecordHeader;

static uint32_t add_crc(uint32_t crc, const void *bytes, size_t size) {
    const unsigned char *at = bytes;
    for (size_t piece; size > 0; at += piece, size -= piece) {
        piece = size < INT_MAX ? size : INT_MAX;
        crc = (uint32_t)crc32(crc, at, (uInt)piece);
    }
    return crc;
}

static uint32_t header_crc(const RecordHeader *header) {
    RecordHeader copy = *header;
    copy.crc = 0;
    return add_crc(0, &copy, sizeof copy);
}

void record_key(Record *record, const char *key) {
    memset(record->key, 0, sizeof record->key);
    snprintf(record->key, sizeof record->key, "%s", key);
}

static void write_all(int file, const char *path, const void *bytes, size_t size) {
    for (const char *at = bytes; size > 0;) {
        ssize_t done = write(file, at, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            die("%s: the checkpoint cannot be written (%s); finished work before this is kept: make room, or give "
                "another --checkpoint, and run the same command again",
                path, done < 0 ? strerror(errno) : "the disk takes no more");
        at += done;
        size -= (size_t)done;
    }
}

void record_begin(RecordWriter *writer, int file, const char *path, const Record *record) {
    RecordHeader header;
    memset(&header, 0, sizeof header); /* the gaps between members, too */
    memcpy(header.magic, MAGIC, sizeof MAGIC);
    header.version = VERSION;
    header.record = *record;
    header.crc = header_crc(&header);
    *writer = (RecordWriter){file, path, record->bytes, add_crc(0, NULL, 0)};
    write_all(file, path, &header, sizeof header);
}

void record_add(RecordWriter *writer, const void *piece, size_t bytes) {
    if (bytes > writer->left)
        die("%s: a record would be longer than its header says (a fault in this program)", writer->path);
    writer->left -= bytes;
    writer->crc = add_crc(writer->crc, piece, bytes);
    write_all(writer->file, writer->path, piece, bytes);
}

void record_end(RecordWriter *writer) {
    if (writer->left > 0)
        die("%s: a record would be shorter than its header says (a fault in this program)", writer->path);
    write_all(writer->file, writer->path, &writer->crc, sizeof writer->crc);
}

static bool read_all(int file, int64_t offset, void *bytes, size_t size) {
    for (char *at = bytes; size > 0;) {
        ssize_t done = pread(file, at, size, offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return false;
        at += done;
        offset += done;
        size -= (size_t)done;
    }
    return true;
}

int64_t record_size(const Record *record) {
    return (int64_t)(sizeof(RecordHeader) + record->bytes + sizeof(uint32_t));
}

bool record_open(RecordReader *reader, Record *record, int file, int64_t offset, int64_t size, uint64_t run) {
    RecordHeader header;
    const int64_t least = (int64_t)(sizeof header + sizeof(uint32_t));
    if (offset < 0 || offset > size - least || !read_all(file, offset, &header, sizeof header))
        return false;
    const Record *r = &header.record;
    if (memcmp(header.magic, MAGIC, sizeof MAGIC) != 0 || header.version != VERSION ||
        header.crc != header_crc(&header))
        return false;
    if (r->run != run || r->bytes > (uint64_t)(size - least - offset) || r->first < 0 || r->count < 0 ||
        r->count > INT64_MAX - r->first || r->key[sizeof r->key - 1] != '\0')
        return false;
    *record = *r;
    *reader = (RecordReader){file, offset + (int64_t)sizeof header, r->bytes, add_crc(0, NULL, 0)};
    return true;
}

bool record_take(RecordReader *reader, void *piece, size_t bytes) {
    if (bytes > reader->left || !read_all(reader->file, reader->offset, piece, bytes))
        return false;
    reader->offset += (int64_t)bytes;
    reader->left -= bytes;
    reader->crc = add_crc(reader->crc, piece, bytes);
    return true;
}

bool record_sound(RecordReader *reader) {
    uint32_t crc;
    return reader->left == 0 && read_all(reader->file, reader->offset, &crc, sizeof crc) && crc == reader->crc;
}

void record_sync_folder(const char *folder) {
    int file = open(folder, O_RDONLY | O_DIRECTORY);
    if (file < 0 || fsync(file) != 0)
        die("%s: the checkpoint cannot be made durable: %s", folder, strerror(errno));
    close(file);
}

void record_write_file(const char *folder, const char *name, Record *record, const RecordPart *parts, int count) {
    char path[PATH_BYTES], temporary[PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(temporary, sizeof temporary, "%s/%s.new", folder, name);
    record->bytes = 0;
    for (int i = 0; i < count; i++)
        record->bytes += parts[i].size;
    int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (file < 0)
        die("%s: cannot be created: %s", temporary, strerror(errno));
    RecordWriter writer;
    record_begin(&writer, file, path, record);
    for (int i = 0; i < count; i++)
        record_add(&writer, parts[i].bytes, parts[i].size);
    record_end(&writer);
    if (fsync(file) != 0 || close(file) != 0 || rename(temporary, path) != 0)
        die("%s: the checkpoint cannot be made durable: %s", path, strerror(errno));
    record_sync_folder(folder);
}

void *record_read_file(const char *folder, const char *name, const char *key, uint64_t run, size_t *bytes) {
    char path[PATH_BYTES];
    struct stat info;
    RecordReader reader;
    Record record, wanted;
    void *payload = NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int file = open(path, O_RDONLY);
    if (file < 0)
        return NULL;
    record_key(&wanted, key);
    if (fstat(file, &info) == 0 && record_open(&reader, &record, file, 0, info.st_size, run) &&
        record_size(&record) == info.st_size && memcmp(record.key, wanted.key, sizeof wanted.key) == 0 &&
        (payload = malloc(record.bytes ? record.bytes : 1))) {
        *bytes = record.bytes;
        if (!record_take(&reader, payload, *bytes) || !record_sound(&reader)) {
            free(payload);
            payload = NULL;
        }
    }
    close(file);
    return payload;
}
