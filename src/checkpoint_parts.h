/* checkpoint_parts.h: between checkpoint.c (rows and wholes) and checkpoint_folder.c (the folder, its names and whose it
 * is; rank 0 only). */
#ifndef CNNSCOPE_CHECKPOINT_PARTS_H
#define CNNSCOPE_CHECKPOINT_PARTS_H

#include "checkpoint.h"

enum { PATH_BYTES = 4096, NAME_BYTES = 256 };
#define LOG_PREFIX "rows-"

/* Records that follow each other in a log: positions [first, to). */
typedef struct {
    char key[RECORD_KEY_BYTES];
    int64_t first, to;
    int64_t file;   /* of names */
    int64_t offset; /* of the first record that is still of interest */
} RowRun;

struct Checkpoint {
    Arena *arena;
    const char *folder;
    double interval;
    uint64_t run;
    int lock; /* rank 0: holds the folder for this job */

    int64_t run_count, name_count;
    RowRun *runs;              /* (run_count) what earlier runs left */
    char (*names)[NAME_BYTES]; /* (name_count) their logs */

    int log; /* of this rank and run; -1: none yet */
    char log_path[PATH_BYTES];
    double synced_at, saved_at;
};

/* Makes, locks and checks the folder, and removes what is unfinished in it. */
void checkpoint_take_folder(Checkpoint *checkpoint, const char *identity);

/* Names of the files in the folder that are a checkpoint's, in order; in the arena. */
int64_t checkpoint_list(const Checkpoint *checkpoint, char ***names);

/* Wholes have a number from 1 on: the largest one of a key that is at most `most`; 0: none. */
int64_t checkpoint_newest(const Checkpoint *checkpoint, const char *key, int64_t most);
void checkpoint_whole_name(char name[NAME_BYTES], const char *key, int64_t number);
void checkpoint_unlink(const Checkpoint *checkpoint, const char *key, int64_t number);

#endif
