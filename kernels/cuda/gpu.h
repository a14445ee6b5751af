/* gpu.h: what the CUDA kernels share among themselves; no caller outside of kernels/cuda includes it.
 *
 * The same .cu files are compiled by nvcc for the device and by the host compiler for the tests (tests/cudahost), which
 * execute every kernel on a machine without a GPU. Both ask for a few habits:
 * - a kernel is launched by gpu_launch alone, and dynamic shared memory is had by DYN_SHARED alone; no other pointer to
 *   device memory reaches a kernel than through an argument of its own (none inside a struct);
 * - a block is a multiple of 32 threads, warp operations name all 32 lanes, and no thread returns before a barrier or a
 *   warp operation that others reach;
 * - int64_t for sizes and indices that multiply; every result of a call goes through GPU_OK;
 * - no cooperative groups, thrust, cub, inline assembly, managed memory, or tests of the architecture.
 * Values are plain (NCHW): LAYOUT_BLOCKED is the same memory as LAYOUT_PLAIN here.
 *
 * Has run on the host executor only, not on a GPU. */
#ifndef CNNSCOPE_GPU_H
#define CNNSCOPE_GPU_H

#include <cuda_runtime.h>

#include "failure.h"
extern "C" {
#include "kernels.h"
}

/* One stream of the device, in whose order everything asked of the lane is done. */
struct Lane {
    cudaStream_t stream;
    void *memory;
    void *staging; /* see gpu_staging */
    size_t staging_bytes;
};

/* The lane of kernels that take none (PCA, t-SNE), and of dev_upload and dev_download, which wait for it. */
Lane *gpu_own_lane(void);

/* Until all that is asked of the process's own lane, or the event, is done; see dev_on_wait. */
void gpu_wait_own(cudaEvent_t event);

/* Device memory of the lane of at least `bytes`, for what comes from the host on its way (k_input). Its contents are the
 * caller's until the lane's next call of it; when it grows the lane is waited for. */
void *gpu_staging(Lane *lane, size_t bytes);

void *gpu_copy_of(const void *host,
                  size_t bytes);  /* new device memory with these bytes; NULL: NULL. dev_free frees it */
void *gpu_new_host(size_t bytes); /* zeroed host memory; free() frees it */

/* Makes the device given to dev_start the calling thread's: each thread of the host has a current device of its own. */
void gpu_enter(void);

/* ---- Errors: one line through the function given to dev_on_failure --------------------------------------------- */

void gpu_ok(cudaError_t status, const char *what, const char *file, int line);
#define GPU_OK(call) gpu_ok((call), #call, __FILE__, __LINE__)

/* ---- Launching -------------------------------------------------------------------------------------------------- */

/* Blocks of `each` that hold `count` things; for grid.x, which may be up to 2^31 - 1. */
static inline unsigned gpu_blocks(int64_t count, int64_t each) {
    const int64_t blocks = (count + each - 1) / each;
    if (blocks > INT32_MAX)
        kernel_fail("GPU: a kernel over %lld elements is too large: use a smaller --batch", (long long)count);
    return (unsigned)blocks;
}

enum { GPU_SHARED_PLAIN_BYTES = 48 << 10 }; /* dynamic shared memory that needs no permission */

/* gpu_launch(kernel, grid, block, shared_bytes, stream, arguments...). An empty grid is nothing to do. */
#define gpu_launch(kernel, ...) gpu_launch_at(#kernel, __FILE__, __LINE__, kernel, __VA_ARGS__)

#ifdef __CUDACC__

#define DYN_SHARED(type, name)                                                                                         \
    extern __shared__ __align__(16) unsigned char gpu_dynamic_shared[];                                                \
    type *const name = reinterpret_cast<type *>(gpu_dynamic_shared)

template <class... P, class... A>
void gpu_launch_at(const char *name, const char *file, int line, void (*kernel)(P...), dim3 grid, dim3 block,
                   size_t shared_bytes, cudaStream_t stream, A... arguments) {
    gpu_enter();
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return;
    if (shared_bytes > GPU_SHARED_PLAIN_BYTES)
        gpu_ok(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes), name, file,
               line);
    kernel<<<grid, block, shared_bytes, stream>>>(static_cast<P>(arguments)...);
    gpu_ok(cudaGetLastError(), name, file, line);
}

#else /* the host executor; cudahost.h stands in front of every file there */

#define DYN_SHARED(type, name) type *const name = static_cast<type *>(cudahost::dynamic_shared())

template <class... P, class... A>
void gpu_launch_at(const char *name, const char *file, int line, void (*kernel)(P...), dim3 grid, dim3 block,
                   size_t shared_bytes, cudaStream_t stream, A... arguments) {
    gpu_enter();
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return;
    if (shared_bytes > GPU_SHARED_PLAIN_BYTES)
        gpu_ok(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    (int)shared_bytes),
               name, file, line);
    cudahost::launch({name, file, line}, kernel, grid, block, shared_bytes, stream, static_cast<P>(arguments)...);
    gpu_ok(cudaGetLastError(), name, file, line);
}

#endif

#endif
