/* repeat.cu: waiting for the process's own lane, and what is asked of it again and again. See kernels.h and gpu.h.
 *
 * The first time, calls are as always, which loads their kernels; the second time they are recorded as a graph, which is
 * then launched whole: one call of the driver for all kernels, which follow each other without its help (an estimate: 1 us
 * between two of a graph, 3 us and more between two launches). The host asks for one while the one before is at work, so
 * that the device has no pause between two.
 * Has run on the host executor only, not on a GPU. */
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "gpu.h"

struct DevRepeat {
    bool recording;
    cudaGraphExec_t graph; /* NULL at first */
    cudaEvent_t done;      /* of the last repetition */
};

/* ---- Waiting ---------------------------------------------------------------------------------------------------- */

static void (*look_while_waiting)(double seconds);

void dev_on_wait(void (*look)(double seconds)) {
    look_while_waiting = look;
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void gpu_wait_own(cudaEvent_t event) {
    cudaStream_t stream = gpu_own_lane()->stream;
    if (!look_while_waiting) {
        GPU_OK(event ? cudaEventSynchronize(event) : cudaStreamSynchronize(stream));
        return;
    }
    const double from = seconds_now();
    for (;;) {
        const cudaError_t left = event ? cudaEventQuery(event) : cudaStreamQuery(stream);
        if (left == cudaSuccess)
            return;
        look_while_waiting(seconds_now() - from);
        if (left != cudaErrorNotReady)
            GPU_OK(left);
        sched_yield();
    }
}

/* ---- Repetitions ------------------------------------------------------------------------------------------------ */

bool dev_repeat(DevRepeat **made) {
    cudaStream_t stream = gpu_own_lane()->stream;
    gpu_enter();
    if (!*made) {
        *made = (DevRepeat *)gpu_new_host(sizeof **made);
        GPU_OK(cudaEventCreateWithFlags(&(*made)->done, cudaEventDisableTiming));
        return true;
    }
    DevRepeat *repeat = *made;
    gpu_wait_own(repeat->done);
    repeat->recording = !repeat->graph;
    if (repeat->recording) {
        GPU_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        return true;
    }
    GPU_OK(cudaGraphLaunch(repeat->graph, stream));
    GPU_OK(cudaEventRecord(repeat->done, stream));
    return false;
}

void dev_repeat_end(DevRepeat *repeat) {
    cudaStream_t stream = gpu_own_lane()->stream;
    if (repeat->recording) {
        cudaGraph_t recorded;
        GPU_OK(cudaStreamEndCapture(stream, &recorded));
        GPU_OK(cudaGraphInstantiate(&repeat->graph, recorded, 0));
        GPU_OK(cudaGraphDestroy(recorded));
        GPU_OK(cudaGraphLaunch(repeat->graph, stream));
    }
    GPU_OK(cudaEventRecord(repeat->done, stream));
}

void dev_repeat_free(DevRepeat *repeat) {
    if (!repeat)
        return;
    gpu_wait_own(NULL);
    if (repeat->graph)
        GPU_OK(cudaGraphExecDestroy(repeat->graph));
    GPU_OK(cudaEventDestroy(repeat->done));
    free(repeat);
}
