/* comm.c: MPI, in both builds. See comm.h.
 *
 * MPI's default error handler ends the job, so calls need no checks. A rank that merely returned non-zero would leave
 * the others waiting for ever: die() therefore ends in MPI_Abort, and comm_all_ok() leaves together. */
#define _GNU_SOURCE
#include "comm.h"

#include <limits.h>
#include <mpi.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "stop.h"
#include "watchdog.h"

static int rank, size, local_rank, local_size, cores;
static MPI_Win node_memory = MPI_WIN_NULL;

/* MPI counts are int: larger blocks go in pieces of this many bytes. */
static const size_t PIECE_BYTES = (size_t)1 << 30;

static void abort_job(int status) {
    if (size == 1)
        _Exit(status); /* started without mpirun, MPI_Abort would print a banner of its own */
    MPI_Abort(MPI_COMM_WORLD, status);
    _Exit(status);
}

/* HDF5 asks MPI to write and, when one rank's write fails, leaves the others waiting in a collective: the job must end
 * inside the failing call. Files opened later inherit this handler from MPI_FILE_NULL. */
static void file_error(MPI_File *file, int *code, ...) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    (void)file;
    error_disarm();
    MPI_Error_string(*code, text, &length);
    die("%s: writing failed (%s); is the disk full, or a quota or file-size limit reached?", error_unfinished(), text);
}

/* mpirun binds each rank to a core of its own, srun gives all of a node's ranks one mask: hence the count of sharers.
 */
static int count_cores(MPI_Comm node) {
    cpu_set_t mine, *all = calloc((size_t)local_size, sizeof *all), common;
    if (!all || sched_getaffinity(0, sizeof mine, &mine) != 0)
        die("the cores this process may use cannot be found out");
    MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all, sizeof mine, MPI_BYTE, node);
    int sharing = 0;
    for (int i = 0; i < local_size; i++) {
        CPU_AND(&common, &mine, &all[i]);
        sharing += CPU_COUNT(&common) > 0;
    }
    free(all);
    return CPU_COUNT(&mine) > sharing ? CPU_COUNT(&mine) / sharing : 1;
}

void comm_start(int *argc, char ***argv) {
    setenv("OMPI_MCA_io", "^ompio", 0); /* which prints a line of its own when a disk is full; ROMIO does not */
    int provided;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    error_set_end(abort_job, rank);
    stop_install(rank);
    MPI_Errhandler on_file_error;
    MPI_File_create_errhandler(file_error, &on_file_error);
    MPI_File_set_errhandler(MPI_FILE_NULL, on_file_error);
    if (provided < MPI_THREAD_FUNNELED)
        die("this MPI library has no thread support (MPI_THREAD_FUNNELED); use one that was built with it");
    MPI_Comm node;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, &local_rank);
    MPI_Comm_size(node, &local_size);
    cores = count_cores(node);
    MPI_Comm_free(&node);
    const char *tasks = getenv("SLURM_NTASKS");
    if (size == 1 && tasks && atoi(tasks) > 1 && getenv("SLURM_STEP_ID") &&
        strcmp(getenv("SLURM_STEP_ID"), "batch") != 0)
        die("Slurm started %s tasks, but each sees only itself; start them with: srun --mpi=pmix", tasks);
}

void comm_end(int status) {
    stop_ignore(); /* launchers send SIGTERM to the ranks that are slower to leave */
    watchdog_end();
    if (node_memory != MPI_WIN_NULL)
        MPI_Win_free(&node_memory);
    MPI_Finalize();
    exit(status);
}

int comm_rank(void) {
    return rank;
}

int comm_size(void) {
    return size;
}

int comm_local_rank(void) {
    return local_rank;
}

int comm_local_size(void) {
    return local_size;
}

int comm_cores(void) {
    return cores;
}

void *comm_node_memory(size_t bytes_each) {
    MPI_Comm node;
    MPI_Aint bytes;
    void *mine, *all;
    int unit;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node);
    MPI_Win_allocate_shared((MPI_Aint)bytes_each, 1, MPI_INFO_NULL, node, &mine, &node_memory);
    MPI_Win_shared_query(node_memory, 0, &bytes, &unit, &all);
    memset(mine, 0, bytes_each);
    MPI_Barrier(node);
    MPI_Comm_free(&node);
    return all;
}

void comm_all_ok(void) {
    const char *message;
    int status;
    int failing = error_pending(&message, &status) ? rank : INT_MAX, lowest;
    watchdog_waits();
    MPI_Allreduce(&failing, &lowest, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    watchdog_goes_on();
    if (lowest == INT_MAX)
        return;
    if (rank == lowest)
        error_print(message);
    error_remove_unfinished();
    MPI_Bcast(&status, 1, MPI_INT, lowest, MPI_COMM_WORLD);
    comm_end(status);
}

void comm_broadcast(void *data, size_t bytes) {
    watchdog_waits();
    for (size_t done = 0; done < bytes; done += PIECE_BYTES) {
        size_t piece = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES;
        MPI_Bcast((char *)data + done, (int)piece, MPI_BYTE, 0, MPI_COMM_WORLD);
    }
    watchdog_goes_on();
}

void comm_all_gather(void *all, const void *mine, size_t bytes_each) {
    if (mine != (const char *)all + (size_t)rank * bytes_each && bytes_each > 0)
        memmove((char *)all + (size_t)rank * bytes_each, mine, bytes_each);
    watchdog_waits();
    if (bytes_each <= PIECE_BYTES)
        MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all, (int)bytes_each, MPI_BYTE, MPI_COMM_WORLD);
    for (int owner = 0; owner < size && bytes_each > PIECE_BYTES; owner++)
        for (size_t done = 0; done < bytes_each; done += PIECE_BYTES) {
            size_t piece = bytes_each - done < PIECE_BYTES ? bytes_each - done : PIECE_BYTES;
            MPI_Bcast((char *)all + (size_t)owner * bytes_each + done, (int)piece, MPI_BYTE, owner, MPI_COMM_WORLD);
        }
    watchdog_goes_on();
}

void comm_max(double *values, int count) {
    watchdog_waits();
    MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    watchdog_goes_on();
}

static void reduce_int64(int64_t *values, size_t count, MPI_Op op) {
    const size_t most = PIECE_BYTES / sizeof *values;
    watchdog_waits();
    for (size_t done = 0; done < count; done += most)
        MPI_Allreduce(MPI_IN_PLACE, values + done, (int)(count - done < most ? count - done : most), MPI_INT64_T, op,
                      MPI_COMM_WORLD);
    watchdog_goes_on();
}

void comm_sum_int64(int64_t *values, size_t count) {
    reduce_int64(values, count, MPI_SUM);
}

void comm_max_int64(int64_t *values, size_t count) {
    reduce_int64(values, count, MPI_MAX);
}

void comm_barrier(void) {
    watchdog_waits();
    MPI_Barrier(MPI_COMM_WORLD);
    watchdog_goes_on();
}
