/* comm_mpi.c: device collectives of the CPU build, where device memory is host memory. See comm.h. */
#include "comm.h"

#include <mpi.h>
#include <string.h>

#include "watchdog.h"

int comm_device(void) {
    return comm_local_rank();
}

int comm_memory_sharers(void) {
    return comm_local_size();
}

void comm_silence(double seconds) {
    (void)seconds;
}

void comm_all_gather_device(void *all, const void *mine, size_t bytes_each) {
    comm_all_gather(all, mine, bytes_each);
}

void comm_reduce_scatter_device(int64_t *mine, int64_t *all, size_t count_each) {
    const size_t piece = (size_t)1 << 26; /* elements: MPI counts are int */
    if (comm_size() == 1) {
        memcpy(mine, all, count_each * sizeof *mine);
        return;
    }
    watchdog_waits();
    if (count_each <= piece)
        MPI_Reduce_scatter_block(all, mine, (int)count_each, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
    for (int owner = 0; owner < comm_size() && count_each > piece; owner++)
        for (size_t done = 0; done < count_each; done += piece)
            MPI_Reduce(all + (size_t)owner * count_each + done, mine + done,
                       (int)(count_each - done < piece ? count_each - done : piece), MPI_INT64_T, MPI_SUM, owner,
                       MPI_COMM_WORLD);
    watchdog_goes_on();
}
