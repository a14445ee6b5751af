/* memory.cu: the GPU as a device: which one, its memory, its errors. See kernels.h and gpu.h.
 *
 * Copies go through the process's own lane and wait for it, so that what was uploaded may be used by any lane at once.
 * Allocation is a call of the driver (microseconds to milliseconds, and it may wait for the device): all is allocated
 * before a stage's loop, none in it.
 * Has run on the host executor only, not on a GPU. */
#include <cblas.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#include "gpu.h"

static int current_device;
static thread_local bool entered;

/* ---- Start ------------------------------------------------------------------------------------------------------ */

/* The threads are for what stays on the host: OpenBLAS solves PCA's eigenproblem, on one, for equal bits. */
void dev_start(int device, int threads) {
    openblas_set_num_threads(1);
    omp_set_dynamic(0);
    omp_set_max_active_levels(1);
    omp_set_num_threads(threads > 0 ? threads : 1);
    int devices = 0;
    GPU_OK(cudaGetDeviceCount(&devices));
    if (device >= devices)
        kernel_fail("GPU: device %d was wanted, %d are visible: ask for one per rank (sbatch --gpus-per-task=1)", device,
                 devices);
    current_device = device;
    entered = false;
    gpu_own_lane();
}

void gpu_enter(void) {
    if (!entered)
        GPU_OK(cudaSetDevice(current_device));
    entered = true;
}

void gpu_ok(cudaError_t status, const char *what, const char *file, int line) {
    if (status == cudaErrorInsufficientDriver)
        kernel_fail(
            "GPU: the driver is older than CUDA %d.%d, which this program was built with: load an older CUDA module "
            "and build again, or ask for nodes with a newer driver",
            CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (status == cudaErrorNoDevice)
        kernel_fail(
            "GPU: no device was found, one is needed: ask for one (sbatch --gpus-per-task=1), or use the CPU build");
    if (status != cudaSuccess)
        kernel_fail("GPU: %s (%s) in %.80s at %s:%d, expected success: check the device with nvidia-smi",
                 cudaGetErrorString(status), cudaGetErrorName(status), what, file, line);
}

/* Devices have no levels to choose from: those of all ranks must be alike, which dev_core tells. */
int dev_isa(void) {
    return 0;
}

void dev_limit_isa(int isa) {
    (void)isa;
}

const char *dev_core(void) {
    static char core[400];
    cudaDeviceProp device;
    gpu_enter();
    GPU_OK(cudaGetDeviceProperties(&device, current_device));
    snprintf(core, sizeof core, "%s (sm_%d%d)", device.name, device.major, device.minor);
    return core;
}

/* ---- Memory ----------------------------------------------------------------------------------------------------- */

void *dev_alloc(size_t bytes) {
    gpu_enter();
    void *memory = NULL;
    cudaError_t status = cudaMalloc(&memory, bytes ? bytes : 1);
    if (status == cudaErrorMemoryAllocation)
        kernel_fail("memory: %.4g GiB needed, %.4g GiB available on the GPU: use more GPUs, or ask for less",
                 (double)bytes / 0x1p30, (double)dev_available() / 0x1p30);
    GPU_OK(status);
    return memory;
}

/* cudaFree waits for the device, for ever if a collective of a rank that is gone is in it: so we wait first. */
void dev_free(void *memory) {
    gpu_enter();
    if (memory)
        gpu_wait_own(NULL);
    GPU_OK(cudaFree(memory));
}

void *dev_alloc_host(size_t bytes) {
    gpu_enter();
    void *memory = NULL;
    const cudaError_t status = cudaMallocHost(&memory, bytes ? bytes : 1);
    if (status == cudaErrorMemoryAllocation)
        kernel_fail("memory: %.4g GiB that the GPU can copy from are needed, and the system has not got them: use more "
                    "nodes, or a smaller --batch",
                    (double)bytes / 0x1p30);
    GPU_OK(status);
    return memory;
}

void dev_free_host(void *memory) {
    gpu_enter();
    GPU_OK(cudaFreeHost(memory));
}

void dev_upload(void *device, const void *host, size_t bytes) {
    Lane *lane = gpu_own_lane();
    if (bytes)
        GPU_OK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, lane->stream));
    lane_sync(lane);
}

void dev_download(void *host, const void *device, size_t bytes) {
    Lane *lane = gpu_own_lane();
    if (bytes)
        GPU_OK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, lane->stream));
    lane_sync(lane);
}

void *dev_stream(void) {
    return gpu_own_lane()->stream;
}

bool dev_is_host(void) {
    return false;
}

size_t dev_available(void) {
    size_t available = 0, all = 0;
    gpu_enter();
    GPU_OK(cudaMemGetInfo(&available, &all));
    return available;
}

void *gpu_copy_of(const void *host, size_t bytes) {
    if (!host)
        return NULL;
    void *copy = dev_alloc(bytes);
    dev_upload(copy, host, bytes);
    return copy;
}

void *gpu_new_host(size_t bytes) {
    void *memory = calloc(1, bytes ? bytes : 1);
    if (!memory)
        kernel_fail("memory: %zu bytes needed, and the system has not got them: use more nodes, or ask for less", bytes);
    return memory;
}
