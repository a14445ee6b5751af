/* shard.c: see shard.h. */
#include "shard.h"

#include <string.h>

#include "arena.h"
#include "comm.h"

Shard shard_of(int64_t total, int64_t batch, int rank, int size) {
    int64_t batches = (total + batch - 1) / batch;
    int64_t each = batches / size, more = batches % size; /* the first `more` ranks have one batch more */
    int64_t from = (rank * each + (rank < more ? rank : more)) * batch;
    int64_t to = from + (each + (rank < more)) * batch;
    from = from < total ? from : total;
    to = to < total ? to : total;
    return (Shard){.total = total, .first = from, .count = to - from};
}

Shard shard_from_counts(int64_t count) {
    Arena *arena = arena_new();
    int64_t *counts = ARENA_ARRAY(arena, int64_t, comm_size(), "sample counts");
    comm_all_gather(counts, &count, sizeof count);
    Shard shard = {.count = count};
    for (int rank = 0; rank < comm_size(); rank++) {
        shard.first += rank < comm_rank() ? counts[rank] : 0;
        shard.total += counts[rank];
    }
    arena_free(arena);
    return shard;
}

/* MPI_Allgatherv would do on MPI, but NCCL has only equal blocks: one way for both, padded to the largest shard. */
void shard_gather(void *all, const void *mine, size_t row_bytes, Shard shard) {
    Arena *arena = arena_new();
    int64_t most = shard.count, *counts = ARENA_ARRAY(arena, int64_t, comm_size(), "sample counts");
    comm_max_int64(&most, 1);
    comm_all_gather(counts, &shard.count, sizeof shard.count);
    size_t block = (size_t)most * row_bytes;
    char *padded = arena_alloc(arena, (uint64_t)comm_size(), block, "gathered rows"), *to = all;
    if (shard.count > 0)
        memcpy(padded + (size_t)comm_rank() * block, mine, (size_t)shard.count * row_bytes);
    comm_all_gather(padded, padded + (size_t)comm_rank() * block, block);
    for (int rank = 0; rank < comm_size(); rank++) {
        memcpy(to, padded + (size_t)rank * block, (size_t)counts[rank] * row_bytes);
        to += (size_t)counts[rank] * row_bytes;
    }
    arena_free(arena);
}
