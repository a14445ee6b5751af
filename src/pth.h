/* pth.h: tensors out of a file written by torch.save, executing nothing.
 *
 * Both formats: the zip of PyTorch 1.6 and later (read with libzip) and the legacy stream of pickles. The pickle is
 * run by a machine that knows the opcodes such files use and the globals that build tensors; any other global becomes
 * an inert value, which is skipped where nobody needs it and refused, by name and byte offset, where a tensor does. */
#ifndef CNNSCOPE_PTH_H
#define CNNSCOPE_PTH_H

#include <stdint.h>

#include "arena.h"
#include "kernels.h"

typedef struct {
    const char *name; /* key in the state_dict, as "conv1.weight" */
    DType dtype;      /* in the file */
    int rank;
    int64_t shape[8];
    int64_t size;     /* number of elements */
    const void *data; /* contiguous, C order, little endian, in `dtype`; in the arena */
} Tensor;

typedef struct {
    const char *name, *what; /* a key of the state_dict that is no tensor, and what it is: "is made by NAME (byte N)" */
} Skipped;

typedef struct {
    const char *path;
    const char *format;      /* "zip" or "legacy" */
    const char *found_under; /* the key of the checkpoint the tensors were under, as "state_dict"; "" for a bare one */
    const char *prefix;      /* taken off every name, as "module."; "" for none */
    Tensor *tensors;         /* in file order */
    int count;
    Skipped *skipped; /* the first 1000 of them */
    int skipped_count;
    const char *globals; /* what else the pickle names, as "argparse.Namespace (byte 27)": nothing of it was run */
} StateDict;

/* bytes: the whole file, which must outlive nothing (all is copied into the arena). path is for messages. A bare
 * tensor, as torch.save(x), is a StateDict of one tensor named "". Dies on anything malformed. */
StateDict *pth_read(Arena *arena, const void *bytes, size_t size, const char *path);

const Tensor *state_find(const StateDict *state, const char *name); /* or NULL */

/* Why state_find gives NULL: "is missing", or what the file has under that name. */
const char *state_why_not(const StateDict *state, const char *name);

#endif
