/* checkpoint.c: see checkpoint.h. Rank 0 looks through the folder once, reading headers only, and tells the others; each
 * rank then reads what overlaps its own samples. Price of a restart: the rows are read once (twice where shards meet). */
#include "checkpoint.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "checkpoint_parts.h"
#include "comm.h"
#include "error.h"
#include "kernels.h"
#include "progress.h"
#include "sha256.h"
#include "stop.h"

enum { PIECE_BYTES = 1 << 18, KEPT = 2 };

static void find_rows(Checkpoint *c);
static void scan_log(Checkpoint *c, const char *name);
static void add_run(Checkpoint *c, const RowRun *run);

Checkpoint *checkpoint_open(Arena *arena, const char *folder, double interval, const char *identity) {
    if (!folder)
        return NULL;
    Checkpoint *c = ARENA_ARRAY(arena, Checkpoint, 1, "checkpoint");
    *c = (Checkpoint){.arena = arena, .folder = folder, .interval = interval, .log = -1, .lock = -1};
    if (!error_caught() && comm_rank() == 0)
        checkpoint_take_folder(c, identity);
    comm_all_ok();
    char hex[65];
    sha256_hex(hex, identity, strlen(identity));
    hex[16] = '\0';
    c->run = strtoull(hex, NULL, 16);
    comm_broadcast(&c->run, sizeof c->run);
    if (!error_caught() && comm_rank() == 0)
        find_rows(c);
    comm_all_ok();
    int64_t counts[2] = {c->run_count, c->name_count};
    comm_broadcast(counts, sizeof counts);
    if (comm_rank() != 0) {
        c->run_count = counts[0];
        c->name_count = counts[1];
        c->runs = ARENA_ARRAY(arena, RowRun, c->run_count, "checkpoint");
        c->names = arena_alloc(arena, (uint64_t)c->name_count, sizeof *c->names, "checkpoint");
    }
    comm_broadcast(c->runs, (size_t)c->run_count * sizeof *c->runs);
    comm_broadcast(c->names, (size_t)c->name_count * sizeof *c->names);
    c->saved_at = c->synced_at = progress_now();
    return c;
}

/* ---- What is there ---------------------------------------------------------------------------------------------- */

static void find_rows(Checkpoint *c) {
    char **names;
    int64_t count = checkpoint_list(c, &names);
    for (int64_t i = 0; i < count; i++)
        if (strncmp(names[i], LOG_PREFIX, strlen(LOG_PREFIX)) == 0)
            scan_log(c, names[i]);
}

/* Records that follow each other in a file and in their positions are one run of the index. */
static void scan_log(Checkpoint *c, const char *name) {
    char path[PATH_BYTES];
    struct stat info;
    snprintf(path, sizeof path, "%s/%s", c->folder, name);
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &info) != 0)
        die("%s: cannot be read: %s", path, strerror(errno));
    RowRun run = {.file = c->name_count};
    RecordReader reader;
    Record record;
    for (int64_t at = 0; record_open(&reader, &record, file, at, info.st_size, c->run); at += record_size(&record)) {
        if (run.first < run.to && (memcmp(run.key, record.key, sizeof run.key) != 0 || run.to != record.first)) {
            add_run(c, &run);
            run.first = run.to;
        }
        if (run.first == run.to) {
            memcpy(run.key, record.key, sizeof run.key);
            run.first = record.first;
            run.offset = at;
        }
        run.to = record.first + record.count;
    }
    if (run.first < run.to)
        add_run(c, &run);
    close(file);
    char(*all)[NAME_BYTES] = arena_alloc(c->arena, (uint64_t)c->name_count + 1, sizeof *c->names, "checkpoint");
    if (c->name_count > 0)
        memcpy(all, c->names, (size_t)c->name_count * sizeof *all);
    snprintf(all[c->name_count], NAME_BYTES, "%s", name);
    c->names = all;
    c->name_count++;
}

static void add_run(Checkpoint *c, const RowRun *run) {
    if ((c->run_count & (c->run_count - 1)) == 0) { /* a power of two: the space is used up */
        RowRun *more = ARENA_ARRAY(c->arena, RowRun, 2 * c->run_count + 1, "checkpoint");
        if (c->run_count > 0)
            memcpy(more, c->runs, (size_t)c->run_count * sizeof *more);
        c->runs = more;
    }
    c->runs[c->run_count++] = *run;
}

static int by_first(const void *a, const void *b) {
    const RowRun *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

int64_t checkpoint_rows(const Checkpoint *c, const char *key) {
    if (!c)
        return 0;
    Arena *scratch = arena_new();
    RowRun *found = ARENA_ARRAY(scratch, RowRun, c->run_count, "checkpoint");
    Record wanted;
    int64_t count = 0, rows = 0, to = 0;
    record_key(&wanted, key);
    for (int64_t i = 0; i < c->run_count; i++)
        if (memcmp(c->runs[i].key, wanted.key, sizeof wanted.key) == 0)
            found[count++] = c->runs[i];
    if (count > 0)
        qsort(found, (size_t)count, sizeof *found, by_first);
    for (int64_t i = 0; i < count; i++) {
        int64_t from = found[i].first > to ? found[i].first : to;
        rows += found[i].to > from ? found[i].to - from : 0;
        to = found[i].to > to ? found[i].to : to;
    }
    arena_free(scratch);
    return rows;
}

/* ---- Rows ------------------------------------------------------------------------------------------------------- */

/* The rows that a piece has of [first, first + count). */
static int64_t piece_rows(const CheckpointPiece *piece, int64_t first, int64_t count, int64_t *from) {
    int64_t low = piece->from > first ? piece->from : first;
    int64_t high = piece->to < first + count ? piece->to : first + count;
    *from = low;
    return high > low ? high - low : 0;
}

static uint64_t payload_bytes(const CheckpointPiece *pieces, int piece_count, int64_t first, int64_t count) {
    uint64_t bytes = 0;
    int64_t from;
    for (int i = 0; i < piece_count; i++)
        bytes += (uint64_t)piece_rows(&pieces[i], first, count, &from) * pieces[i].row_bytes;
    return bytes;
}

static void open_log(Checkpoint *c) {
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    for (char *at = host; *at; at++)
        *at = isalnum((unsigned char)*at) ? *at : '_';
    snprintf(c->log_path, sizeof c->log_path, "%s/" LOG_PREFIX "%05d-%s-%lld-%lld", c->folder, comm_rank(), host,
             (long long)getpid(), (long long)time(NULL));
    c->log = open(c->log_path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND, 0666);
    if (c->log < 0)
        die("%s: cannot be created: %s", c->log_path, strerror(errno));
    stop_sync(c->log);
}

void checkpoint_append(Checkpoint *c, const char *key, int64_t first, int64_t count, const CheckpointPiece *pieces,
                       int piece_count) {
    if (!c || count == 0)
        return;
    if (c->log < 0)
        open_log(c);
    Record record = {.first = first, .count = count, .run = c->run};
    record.bytes = payload_bytes(pieces, piece_count, first, count);
    record_key(&record, key);
    RecordWriter writer;
    Arena *scratch = arena_new();
    char *buffer = ARENA_ARRAY(scratch, char, PIECE_BYTES, "checkpoint");
    record_begin(&writer, c->log, c->log_path, &record);
    for (int i = 0; i < piece_count; i++) {
        const CheckpointPiece *p = &pieces[i];
        int64_t from;
        size_t bytes = (size_t)piece_rows(p, first, count, &from) * p->row_bytes;
        const char *rows = bytes ? p->rows + (size_t)(from - p->origin) * p->row_bytes : NULL;
        for (size_t done = 0, part; done < bytes; done += part) {
            part = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES;
            if (p->on_device)
                dev_download(buffer, rows + done, part);
            record_add(&writer, p->on_device ? buffer : rows + done, part);
        }
    }
    record_end(&writer);
    arena_free(scratch);
    if (progress_now() - c->synced_at < c->interval)
        return;
    if (fsync(c->log) != 0)
        die("%s: the checkpoint cannot be made durable: %s", c->log_path, strerror(errno));
    c->synced_at = progress_now();
}

/* The payload's rows of [first, first + count), into their places; the rest is read for its CRC. */
static bool take_rows(RecordReader *reader, const Record *record, char *buffer, int64_t first, int64_t count,
                      const CheckpointPiece *pieces, int piece_count) {
    for (int i = 0; i < piece_count; i++) {
        const CheckpointPiece *p = &pieces[i];
        int64_t in_record, wanted;
        const size_t bytes = (size_t)piece_rows(p, record->first, record->count, &in_record) * p->row_bytes;
        int64_t low = record->first > first ? record->first : first;
        int64_t high = record->first + record->count < first + count ? record->first + record->count : first + count;
        const size_t take = (size_t)piece_rows(p, low, high > low ? high - low : 0, &wanted) * p->row_bytes;
        const size_t begin = take ? (size_t)(wanted - in_record) * p->row_bytes : 0;
        char *rows = take ? p->rows + (size_t)(wanted - p->origin) * p->row_bytes : NULL;
        for (size_t done = 0, part; done < bytes; done += part) {
            part = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES;
            if (!record_take(reader, buffer, part))
                return false;
            size_t from = done > begin ? done : begin, to = done + part < begin + take ? done + part : begin + take;
            if (from >= to)
                continue;
            if (p->on_device)
                dev_upload(rows + (from - begin), buffer + (from - done), to - from);
            else
                memcpy(rows + (from - begin), buffer + (from - done), to - from);
        }
    }
    return record_sound(reader);
}

/* Walks the records of a run, from the first that may still be asked for. */
static void restore_run(Checkpoint *c, RowRun *run, char *buffer, bool *have, int64_t first, int64_t count,
                        const CheckpointPiece *pieces, int piece_count) {
    char path[PATH_BYTES];
    struct stat info;
    snprintf(path, sizeof path, "%s/%s", c->folder, c->names[run->file]);
    int file = open(path, O_RDONLY);
    if (file < 0)
        return;
    RecordReader reader;
    Record record;
    if (fstat(file, &info) != 0)
        info.st_size = 0;
    for (int64_t at = run->offset;
         record_open(&reader, &record, file, at, info.st_size, c->run) && record.first < first + count &&
         record.first + record.count <= run->to && memcmp(record.key, run->key, sizeof run->key) == 0;
         at += record_size(&record)) {
        if (record.first + record.count <= first) { /* positions only grow: never asked for again */
            run->offset = at + record_size(&record);
            run->first = record.first + record.count;
            continue;
        }
        if (record.bytes == payload_bytes(pieces, piece_count, record.first, record.count) &&
            take_rows(&reader, &record, buffer, first, count, pieces, piece_count))
            for (int64_t i = record.first > first ? record.first : first;
                 i < record.first + record.count && i < first + count; i++)
                have[i - first] = true;
    }
    close(file);
}

void checkpoint_restore(Checkpoint *c, const char *key, bool *have, int64_t first, int64_t count,
                        const CheckpointPiece *pieces, int piece_count) {
    memset(have, 0, (size_t)count * sizeof *have);
    if (!c || count == 0)
        return;
    Arena *scratch = arena_new();
    char *buffer = ARENA_ARRAY(scratch, char, PIECE_BYTES, "checkpoint");
    Record wanted;
    record_key(&wanted, key);
    for (int64_t i = 0; i < c->run_count; i++)
        if (memcmp(c->runs[i].key, wanted.key, sizeof wanted.key) == 0 && c->runs[i].first < first + count &&
            c->runs[i].to > first)
            restore_run(c, &c->runs[i], buffer, have, first, count, pieces, piece_count);
    arena_free(scratch);
}

/* ---- Wholes ----------------------------------------------------------------------------------------------------- */

bool checkpoint_due(const Checkpoint *c) {
    return c && comm_rank() == 0 && progress_now() - c->saved_at >= c->interval;
}

void checkpoint_save(Checkpoint *c, const char *key, const RecordPart *parts, int count) {
    if (!c)
        return;
    if (!error_caught() && comm_rank() == 0) {
        char name[NAME_BYTES];
        Record record = {.run = c->run};
        record_key(&record, key);
        int64_t newest = checkpoint_newest(c, key, INT64_MAX);
        checkpoint_whole_name(name, key, newest + 1);
        record_write_file(c->folder, name, &record, parts, count);
        for (int64_t old = newest + 1 - KEPT; (old = checkpoint_newest(c, key, old)) > 0; old--)
            checkpoint_unlink(c, key, old);
    }
    comm_all_ok();
    c->saved_at = progress_now();
}

void *checkpoint_load(Checkpoint *c, Arena *arena, const char *key, size_t *bytes) {
    if (!c)
        return NULL;
    void *found = NULL;
    uint64_t size = 0;
    if (comm_rank() == 0)
        for (int64_t number = INT64_MAX; !found && (number = checkpoint_newest(c, key, number)) > 0; number--) {
            char name[NAME_BYTES];
            checkpoint_whole_name(name, key, number);
            found = record_read_file(c->folder, name, key, c->run, bytes);
            size = found ? *bytes : 0;
        }
    int64_t there = found != NULL;
    comm_broadcast(&there, sizeof there);
    comm_broadcast(&size, sizeof size);
    if (!there)
        return NULL;
    void *copy = arena_alloc(arena, size, 1, "checkpoint");
    if (found)
        memcpy(copy, found, size);
    free(found);
    comm_broadcast(copy, size);
    *bytes = size;
    return copy;
}
