/* partial.h: the name of a results file, and FILE.partial, under which it is written until it is whole.
 *
 * All but partial_check are Collective and die on failure; a die() anywhere between them removes the .partial. */
#ifndef CNNSCOPE_PARTIAL_H
#define CNNSCOPE_PARTIAL_H

#include <stdbool.h>

enum { PARTIAL_PATH_BYTES = 4096 };

typedef struct {
    char path[PARTIAL_PATH_BYTES], name[PARTIAL_PATH_BYTES + 16]; /* FILE, FILE.partial */
    int lock;                                                     /* rank 0: keeps other jobs out */
} Partial;

/* Refuses an existing path unless overwrite, a folder that cannot be written, and a .partial that another job is writing
 * (on file systems with locks); then makes an empty partial->name. What a killed job left there is dropped. */
void partial_take(Partial *partial, const char *path, bool overwrite);

/* The refusals of partial_take that need no lock. */
void partial_check(const char *path, bool overwrite);

/* What the ranks have written so far is on the disk. */
void partial_sync(const Partial *partial);

/* The file, closed by every rank, gets its name once it is on the disk. */
void partial_rename(Partial *partial);

#endif
