/* comm_nccl.c: device collectives of the CUDA build, by NCCL, and which GPU a rank uses. See comm.h.
 *
 * MPI starts the job and tells every rank NCCL's identification of it; NCCL then moves device memory directly. A
 * collective goes into the stream of the kernels that take no lane, behind them and before the next, and nobody waits for
 * it: the host waits where it needs a result, and then looks again and again what NCCL says (dev_on_wait), since a wait
 * inside the runtime would never end if another rank is gone. What NCCL notices, or too long a silence (comm_silence),
 * ends the whole job in one line.
 * Has run on the host executor only (tests/cudahost, NCCL over MPI), not on GPUs. */
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "comm.h"
#include "error.h"
#include "kernels.h"
#include "watchdog.h"

static ncclComm_t all_ranks;
static double silent_seconds = 600;
static const char *last = "the start"; /* what was begun last */

void comm_silence(double seconds) {
    silent_seconds = seconds;
}

/* ---- The device ------------------------------------------------------------------------------------------------- */

static int choose_device(void) {
    int devices = 0;
    cudaError_t status = cudaGetDeviceCount(&devices);
    if (status == cudaErrorInsufficientDriver)
        die("GPU: the driver is older than CUDA %d.%d, which this program was built with: choose nodes with a newer "
            "driver "
            "(sbatch --constraint or --partition), or build with an older CUDA",
            CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (status == cudaErrorNoDevice || (status == cudaSuccess && devices == 0))
        die("GPU: none is visible to rank %d, expected one: ask for one per task (sbatch --gpus-per-task=1), or use "
            "the "
            "CPU build",
            comm_rank());
    if (status != cudaSuccess)
        die("GPU: the devices cannot be counted (%s): check the node with nvidia-smi", cudaGetErrorString(status));
    if (devices > 1 && comm_local_rank() >= devices)
        die("GPU: %d ranks on a node of %d visible GPUs, expected one each: start as many tasks on a node as it has "
            "GPUs "
            "(sbatch --ntasks-per-node=%d), or ask for more (--gpus-per-task=1)",
            comm_local_size(), devices, devices);
    return devices == 1 ? 0 : comm_local_rank();
}

/* Where --gres gives the GPUs of a node to all its tasks, each sees the same first one. */
static void refuse_shared_device(int device) {
    struct cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess)
        die("GPU: device %d cannot be asked for its name: check the node with nvidia-smi", device);
    const size_t bytes = sizeof properties.uuid;
    char *all = calloc((size_t)comm_size(), bytes);
    if (!all)
        die("memory: not enough to compare the GPUs of %d ranks", comm_size());
    comm_all_gather(all, &properties.uuid, bytes);
    for (int other = 0; other < comm_rank(); other++)
        if (memcmp(all + (size_t)other * bytes, &properties.uuid, bytes) == 0)
            die("GPU: ranks %d and %d were given the same one (%s), expected one each: use sbatch --gpus-per-task=1 "
                "instead of --gres=gpu, or start fewer tasks (--ntasks-per-node)",
                other, comm_rank(), properties.name);
    free(all);
}

int comm_device(void) {
    volatile int device = 0; /* kept over the jump of a die() */
    if (!error_caught())
        device = choose_device();
    comm_all_ok();
    if (!error_caught())
        refuse_shared_device(device);
    comm_all_ok();
    return device;
}

int comm_memory_sharers(void) {
    return 1; /* each has a GPU of its own */
}

/* ---- Collectives ------------------------------------------------------------------------------------------------ */

_Noreturn static void failed(const char *why) {
    if (all_ranks)
        ncclCommAbort(all_ranks);
    die("NCCL: %s failed on rank %d (%s), expected success: another rank or its network is gone; run again with "
        "NCCL_DEBUG=WARN to see which",
        last, comm_rank(), why);
}

/* What NCCL has noticed so far; `waited`: for how long nothing has come. Returns whether it has begun all it was asked. */
static bool look(double waited) {
    ncclResult_t state;
    if (ncclCommGetAsyncError(all_ranks, &state) != ncclSuccess)
        state = ncclSystemError;
    if (state != ncclSuccess && state != ncclInProgress)
        failed(ncclGetErrorString(state));
    if (waited > silent_seconds) {
        char why[64];
        snprintf(why, sizeof why, "no word from another rank for %.0f s", waited);
        failed(why);
    }
    return state == ncclSuccess;
}

static void look_while_waiting(double waited) {
    look(waited);
}

/* A communicator that does not block answers before it has begun. */
static void begin(const char *what, ncclResult_t answer) {
    struct timespec from, now;
    last = what;
    if (answer != ncclSuccess && answer != ncclInProgress)
        failed(ncclGetErrorString(answer));
    clock_gettime(CLOCK_MONOTONIC, &from);
    now = from;
    while (!look((double)(now.tv_sec - from.tv_sec))) {
        sched_yield();
        clock_gettime(CLOCK_MONOTONIC, &now);
    }
}

static void connect_ranks(void) {
    ncclUniqueId id;
    memset(&id, 0, sizeof id);
    if (comm_rank() == 0 && ncclGetUniqueId(&id) != ncclSuccess)
        failed("no identification; is NCCL_SOCKET_IFNAME an interface of this node?");
    comm_broadcast(&id, sizeof id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    begin("the start", ncclCommInitRankConfig(&all_ranks, comm_size(), id, comm_rank(), &config));
    dev_on_wait(look_while_waiting);
    comm_barrier();
}

static void copy_alone(void *to, const void *from, size_t bytes) {
    if (to != from && cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, dev_stream()) != cudaSuccess)
        die("GPU: a copy of %zu bytes on the device failed: check the device with nvidia-smi", bytes);
}

void comm_all_gather_device(void *all, const void *mine, size_t bytes_each) {
    if (bytes_each == 0)
        return;
    if (comm_size() == 1) {
        copy_alone(all, mine, bytes_each);
        return;
    }
    if (!all_ranks)
        connect_ranks();
    begin("an all-gather", ncclAllGather(mine, all, bytes_each, ncclUint8, all_ranks, dev_stream()));
}

void comm_reduce_scatter_device(int64_t *mine, int64_t *all, size_t count_each) {
    if (count_each == 0)
        return;
    if (comm_size() == 1) {
        copy_alone(mine, all, count_each * sizeof *mine);
        return;
    }
    if (!all_ranks)
        connect_ranks();
    begin("a reduce-scatter", ncclReduceScatter(all, mine, count_each, ncclInt64, ncclSum, all_ranks, dev_stream()));
}
