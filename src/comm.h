/* comm.h: the ranks of the job. Everything marked Collective must be called by every rank, from the main thread. */
#ifndef CNNSCOPE_COMM_H
#define CNNSCOPE_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void comm_start(int *argc, char ***argv); /* Collective. MPI_THREAD_FUNNELED; installs MPI_Abort as die()'s end */
_Noreturn void comm_end(int status);      /* Collective. Leaves MPI and the process */

int comm_rank(void);
int comm_size(void);
int comm_local_rank(void); /* among the ranks of this node */
int comm_local_size(void);
int comm_cores(void); /* cores of this rank's affinity mask / the node's ranks that share any of them, at least 1 */

/* Collective, once. Zeroed memory that all ranks of this node see: comm_local_size() blocks, in the order of their local
 * ranks. Lives until comm_end. */
void *comm_node_memory(size_t bytes_each);

/* Collective. The device this rank is to use, for dev_start: that of its local rank, or the only one it sees. Ends the
 * job in one line where there are too few, where two ranks have the same one, or where the driver is too old. On the CPU
 * any number does. */
int comm_device(void);

/* How many ranks of this node, this one among them, take memory from what dev_available tells this one. */
int comm_memory_sharers(void);

/* Collective. Ends the error_caught() step before it (error.h): where any rank died in it, the lowest one's message is
 * printed once and every rank leaves with its exit status. */
void comm_all_ok(void);

/* Collective. Host memory. */
void comm_broadcast(void *data, size_t bytes);                        /* from rank 0 */
void comm_all_gather(void *all, const void *mine, size_t bytes_each); /* all: comm_size() blocks, in rank order */
void comm_max(double *values, int count);
void comm_sum_int64(int64_t *values, size_t count); /* exact, hence the same for any number of ranks */
void comm_max_int64(int64_t *values, size_t count);
void comm_barrier(void);

/* Collective. Device memory (comm_mpi.c | comm_nccl.c): equal blocks, in rank order; mine may lie inside all, in its
 * own place. In the order of the kernels that take no lane; on GPUs done when one of those is waited for. */
void comm_all_gather_device(void *all, const void *mine, size_t bytes_each);
/* mine (count_each) <- the sum over all ranks of their all (comm_size(), count_each), this rank's block of it; exact. mine
 * does not overlap all, and all is undefined afterwards. */
void comm_reduce_scatter_device(int64_t *mine, int64_t *all, size_t count_each);

/* A wait of so many seconds for a collective of device memory ends the job (600); not on the CPU. */
void comm_silence(double seconds);

#endif
