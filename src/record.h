/* record.h: the records that a checkpoint's files are made of. No ranks here: checkpoint.h.
 *
 * A record: header (RecordHeader in record.c: magic, version, the run it belongs to, key, rows, bytes, CRC of all that),
 * payload, CRC of the payload; numbers as this machine has them. A record that is torn, damaged or of another run is no
 * record: whoever looks for it computes again. Files are hostile until a CRC says that we wrote them; sizes are checked
 * against the file before anything is read. */
#ifndef CNNSCOPE_RECORD_H
#define CNNSCOPE_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RECORD_KEY_BYTES = 160 };

typedef struct {
    char key[RECORD_KEY_BYTES]; /* what of the run: "forward", "tsne logits" */
    int64_t first, count;       /* of rows: their positions; a record that is a whole has 0, 0 */
    uint64_t run;               /* of which run: a hash of its identity */
    uint64_t bytes;             /* of the payload */
} Record;

/* Sets the key, cut to its size. */
void record_key(Record *record, const char *key);

/* ---- Writing, at the end of an open file ------------------------------------------------------------------------ */

typedef struct {
    int file;
    const char *path; /* for messages */
    uint64_t left;    /* bytes of the payload still to come */
    uint32_t crc;
} RecordWriter;

/* Header, then the payload in pieces of any size (record->bytes in all), then its CRC. Die when the disk is full or the
 * folder gone, naming the path; what was written before stays good. */
void record_begin(RecordWriter *writer, int file, const char *path, const Record *record);
void record_add(RecordWriter *writer, const void *piece, size_t bytes);
void record_end(RecordWriter *writer);

/* ---- Reading ---------------------------------------------------------------------------------------------------- */

typedef struct {
    int file;
    int64_t offset; /* of the next byte */
    uint64_t left;  /* bytes of the payload still to come */
    uint32_t crc;
} RecordReader;

/* False unless a record of that run begins at the offset, and ends within the file's `size`. */
bool record_open(RecordReader *reader, Record *record, int file, int64_t offset, int64_t size, uint64_t run);
bool record_take(RecordReader *reader, void *piece, size_t bytes); /* the next of the payload; false: cannot be read */
bool record_sound(RecordReader *reader);   /* all of the payload was taken, and is what was written */
int64_t record_size(const Record *record); /* in the file, with header and CRC */

/* ---- Whole files of one record ---------------------------------------------------------------------------------- */

typedef struct {
    const void *bytes;
    size_t size;
} RecordPart;

/* folder/name <- one record of these parts; under a temporary name, fsynced, then renamed: the file is the old one or
 * the new one, whenever the machine stops. record->bytes is set here. */
void record_write_file(const char *folder, const char *name, Record *record, const RecordPart *parts, int count);

/* The payload of folder/name, from malloc; NULL unless the file is one sound record of that run and key and no more. */
void *record_read_file(const char *folder, const char *name, const char *key, uint64_t run, size_t *bytes);

/* Makes renamed and removed files of the folder durable. */
void record_sync_folder(const char *folder);

#endif
