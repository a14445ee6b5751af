/* state.h: a state_dict: tensors by name, as a file of weights holds them. Two kinds of file give one: those written by
 * torch.save (pth.h) and .safetensors (safetensors.c). */
#ifndef CNNSCOPE_STATE_H
#define CNNSCOPE_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "kernels.h"

typedef struct {
    const char *name; /* key in the state_dict, as "conv1.weight" */
    DType dtype;      /* in the file */
    int rank;
    int64_t shape[8];
    int64_t size;     /* number of elements */
    const void *data; /* contiguous, C order, little endian, in `dtype`; may be unaligned */
} Tensor;

typedef struct {
    const char *name, *what; /* a key of the state_dict that is no tensor, and what it is: "is made by NAME (byte N)" */
} Skipped;

typedef struct {
    const char *path;
    const char *format;      /* "torch.save, zip", "torch.save, legacy" or "safetensors" */
    const char *found_under; /* the key of the checkpoint the tensors were under, as "state_dict"; "" for a bare one */
    const char *prefix;      /* taken off every name, as "module."; "" for none */
    Tensor *tensors;         /* in file order */
    int count;
    Skipped *skipped; /* the first 1000 of them */
    int skipped_count;
    const char *globals; /* what else a pickle names, as "argparse.Namespace (byte 27)": nothing of it was run */
} StateDict;

/* The tensors in `bytes`, the whole file, told by content (or by the name .safetensors). bytes must outlive the result,
 * which points into it where nothing has to be converted. Dies on anything malformed. */
StateDict *state_read(Arena *arena, const void *bytes, size_t size, const char *path);

const Tensor *state_find(const StateDict *state, const char *name); /* or NULL */

/* Why state_find gives NULL: "is missing", or what the file has under that name. */
const char *state_why_not(const StateDict *state, const char *name);

/* ---- For the readers ------------------------------------------------------------------------------------------- */

enum { STATE_RANK_MAX = 8, STATE_NAME_BYTES = 1024, STATE_SKIPPED_MAX = 1000 };

/* Takes wrappers' prefixes off the names, and dies where two are the same. Memory: count pointers. */
void state_settle(StateDict *state, Arena *arena);

/* safetensors.c */
bool safetensors_is(const void *bytes, size_t size, const char *path);
StateDict *safetensors_read(Arena *arena, const void *bytes, size_t size, const char *path);

#endif
