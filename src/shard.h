/* shard.h: who holds which samples. */
#ifndef CNNSCOPE_SHARD_H
#define CNNSCOPE_SHARD_H

#include <stddef.h>
#include <stdint.h>

/* A contiguous run of the job's samples per rank, every sample exactly once, in file order. */
typedef struct {
    int64_t total; /* samples of the job */
    int64_t first; /* this rank's first sample, counted in the job */
    int64_t count; /* of this rank; may be 0 */
} Shard;

/* Whole batches, as evenly as they go; the last one may be uneven. */
Shard shard_of(int64_t total, int64_t batch, int rank, int size);

/* Collective. The shard of this rank where each brings `count` samples of its own choice, in rank order. */
Shard shard_from_counts(int64_t count);

/* Collective. all (total, row_bytes) <- the rows of all ranks, host memory. */
void shard_gather(void *all, const void *mine, size_t row_bytes, Shard shard);

#endif
