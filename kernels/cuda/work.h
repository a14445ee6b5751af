/* work.h: how work is dealt to threads, and sums over the threads of a warp or a block.
 *
 * Three ways: a thread for each number of a sample (work_grid: x over the sample, y over samples, which repeats when
 * there are more than y holds); a warp for each line of numbers (WORK_WARPS of them a block); a block for each run.
 * No sum depends on the number of samples, nor on the place of one. */
#ifndef CNNSCOPE_WORK_H
#define CNNSCOPE_WORK_H

#include "gpu.h"

constexpr int WORK_THREADS = 256, WORK_WARPS = WORK_THREADS / 32, WORK_SAMPLES_MOST = 1024;

/* A sample is walked by 32-bit numbers: division by 64-bit ones is several times as slow. */
static inline dim3 work_grid(int64_t of_a_sample, int64_t samples) {
    if (of_a_sample > INT32_MAX)
        kernel_fail("GPU: a value of %lld numbers a sample is too large, at most 2^31 - 1 are supported",
                 (long long)of_a_sample);
    const int64_t at_once = samples < WORK_SAMPLES_MOST ? samples : (int64_t)WORK_SAMPLES_MOST;
    return dim3(gpu_blocks(of_a_sample, WORK_THREADS), (unsigned)at_once);
}

/* The thread's number of the sample. */
static __device__ __forceinline__ uint32_t work_index(void) {
    return blockIdx.x * WORK_THREADS + threadIdx.x;
}

/* The warp's line. */
static __device__ __forceinline__ int64_t work_line(void) {
    return (int64_t)blockIdx.x * WORK_WARPS + threadIdx.x / 32;
}

static __device__ __forceinline__ int work_lane(void) {
    return (int)threadIdx.x % 32;
}

/* Every lane gets the sum: pairs, then pairs of pairs. All lanes call it. */
template <class T> static __device__ __forceinline__ T warp_sum(T value) {
    for (int apart = 16; apart > 0; apart /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, apart);
    return value;
}

/* Every thread gets the sum over the block, of warps in their order; `parts` is shared, (WORK_WARPS), and may be used
 * again at once. All threads call it. */
template <class T> static __device__ __forceinline__ T block_sum(T value, T *parts) {
    value = warp_sum(value);
    if (work_lane() == 0)
        parts[threadIdx.x / 32] = value;
    __syncthreads();
    T sum = 0;
    for (int w = 0; w < WORK_WARPS; w++)
        sum += parts[w];
    __syncthreads();
    return sum;
}

/* A copy on the device of an array of the host, for the life of a kernel; NULL stays NULL. */
template <class T> static inline T *work_constant(const T *host, size_t count) {
    return static_cast<T *>(gpu_copy_of(host, count * sizeof(T)));
}

template <class T> static inline T *work_new(void) {
    return static_cast<T *>(gpu_new_host(sizeof(T)));
}

#endif
