/* checkpoint.h: finished work, kept in a folder for a run that ends early (--checkpoint DIR).
 *
 *     identity.txt      which run this is: NAME = VALUE lines, for people too; another run's folder is refused
 *     rows-*            logs, one a rank a run, only ever appended to: after each round of a pass its new rows
 *     NAME.N            wholes: what a stage knows at one time (state or result of t-SNE, axes of a PCA), by rank 0;
 *                       a new file each time, the newest two are kept
 *     lock, failed      of the job that runs, and of one that ended by an error
 *
 * The results file is never part of it: a restart writes a new one from these. Ranks, threads and batch size may be
 * others than before. What is damaged is computed again. All functions are Collective but where said, and do nothing (or
 * find nothing) when the checkpoint is NULL. They die, in one line, when the folder takes no more. */
#ifndef CNNSCOPE_CHECKPOINT_H
#define CNNSCOPE_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "record.h"

typedef struct Checkpoint Checkpoint;

/* Makes the folder where there is none, takes it for this job, and finds what an earlier run of the same identity (lines
 * "NAME = VALUE\n") left. Dies where the folder is another run's, naming what differs, or another job's. interval:
 * seconds between states. NULL without a folder. */
Checkpoint *checkpoint_open(Arena *arena, const char *folder, double interval, const char *identity);

/* After the results file has its name: removes the run's files, and the folder when nothing else is in it. */
void checkpoint_remove(Checkpoint *checkpoint);

/* The same for a folder that is not opened, where it is there and of that identity: what a job left that was lost after its
 * result had its name. Rank 0 only; fails silently. */
void checkpoint_discard(Arena *arena, const char *folder, const char *identity);

/* ---- Rows ------------------------------------------------------------------------------------------------------- */

/* Rows of one variable or layer, as they lie in memory. */
typedef struct {
    size_t row_bytes;
    int64_t from, to; /* half-open: positions it has rows of at all */
    char *rows;
    int64_t origin; /* the position of rows[0] */
    bool on_device;
} CheckpointPiece;

/* This rank's rows [first, first + count) of all pieces become part of the log. Not Collective. */
void checkpoint_append(Checkpoint *checkpoint, const char *key, int64_t first, int64_t count,
                       const CheckpointPiece *pieces, int piece_count);

/* Rows of [first, first + count) that are there come back: have (count) says which; other rows' memory is undefined.
 * A rank asks for positions in ascending order. Not Collective. */
void checkpoint_restore(Checkpoint *checkpoint, const char *key, bool *have, int64_t first, int64_t count,
                        const CheckpointPiece *pieces, int piece_count);

/* How many positions of a key seem to be there. Not Collective; the same on every rank. */
int64_t checkpoint_rows(const Checkpoint *checkpoint, const char *key);

/* ---- Wholes ----------------------------------------------------------------------------------------------------- */

/* Rank 0's parts replace what the key had; the one before is kept beside it. Other ranks' parts are not looked at. */
void checkpoint_save(Checkpoint *checkpoint, const char *key, const RecordPart *parts, int count);

/* The newest sound whole of a key, on every rank, in the arena; NULL: none. */
void *checkpoint_load(Checkpoint *checkpoint, Arena *arena, const char *key, size_t *bytes);

/* Whether states are to be written now: rank 0's clock, the others have false. Not Collective. */
bool checkpoint_due(const Checkpoint *checkpoint);

#endif
