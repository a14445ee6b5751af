/* lane.cu: a lane is a stream with its memory. See kernels.h and gpu.h.
 *
 * Lanes, each driven by a host thread, let copies of one batch overlap the kernels of another: while one lane's batch is
 * computed, a second uploads, a third downloads, and a fourth is between two batches. That needs host memory of
 * dev_alloc_host: copies from and to any other wait. Values are plain (NCHW) throughout, so bringing them to NCHW is a
 * copy: 8 bytes of traffic an element, as k_accumulate has 12.
 * Has run on the host executor only, not on a GPU. */
#include <stdlib.h>

#include "gpu.h"

enum { LANES = 4, BLOCK = 256 };

int lane_count(void) {
    return LANES;
}

Lane *lane_new(size_t memory_bytes) {
    Lane *lane = (Lane *)gpu_new_host(sizeof *lane);
    lane->memory = dev_alloc(memory_bytes);
    GPU_OK(cudaStreamCreateWithFlags(&lane->stream, cudaStreamNonBlocking));
    GPU_OK(cudaMemsetAsync(lane->memory, 0, memory_bytes, lane->stream));
    GPU_OK(cudaStreamSynchronize(lane->stream));
    return lane;
}

void lane_free(Lane *lane) {
    if (!lane)
        return;
    lane_sync(lane);
    GPU_OK(cudaStreamDestroy(lane->stream));
    dev_free(lane->memory);
    dev_free(lane->staging);
    free(lane);
}

/* Made by dev_start, before there are threads. */
Lane *gpu_own_lane(void) {
    static Lane *own;
    if (!own)
        own = lane_new(0);
    return own;
}

void *lane_memory(Lane *lane) {
    return lane->memory;
}

void *gpu_staging(Lane *lane, size_t bytes) {
    if (bytes > lane->staging_bytes) {
        lane_sync(lane);
        dev_free(lane->staging);
        lane->staging = dev_alloc(bytes);
        lane->staging_bytes = bytes;
    }
    return lane->staging;
}

void lane_sync(Lane *lane) {
    gpu_enter();
    if (lane == gpu_own_lane())
        gpu_wait_own(NULL);
    else
        GPU_OK(cudaStreamSynchronize(lane->stream));
}

void lane_copy(Lane *lane, void *device_to, const void *device_from, size_t bytes) {
    gpu_enter();
    if (bytes)
        GPU_OK(cudaMemcpyAsync(device_to, device_from, bytes, cudaMemcpyDeviceToDevice, lane->stream));
}

void lane_download(Lane *lane, void *host, const void *device, size_t bytes) {
    gpu_enter();
    if (bytes)
        GPU_OK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, lane->stream));
}

void lane_upload(Lane *lane, void *device, const void *host, size_t bytes) {
    gpu_enter();
    if (bytes)
        GPU_OK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, lane->stream));
}

/* ---- Layouts ---------------------------------------------------------------------------------------------------- */

static int64_t elements(int B, int C, int H, int W) {
    return (int64_t)B * C * H * W;
}

size_t k_value_bytes(Layout layout, int B, int C, int H, int W) {
    (void)layout;
    return (size_t)elements(B, C, H, W) * sizeof(float);
}

void k_to_plain(Lane *lane, float *plain, const float *value, Layout layout, int B, int C, int H, int W) {
    (void)layout;
    lane_copy(lane, plain, value, k_value_bytes(LAYOUT_PLAIN, B, C, H, W));
}

__global__ static void add(float *sum, const float *part, int64_t count) {
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < count)
        sum[i] += part[i];
}

void k_accumulate(Lane *lane, float *sum, Layout layout, const float *part, Layout part_layout, bool first, int B,
                  int C, int H, int W) {
    (void)part_layout;
    const int64_t count = elements(B, C, H, W);
    if (first)
        k_from_plain(lane, sum, layout, part, B, C, H, W);
    else
        gpu_launch(add, gpu_blocks(count, BLOCK), BLOCK, 0, lane->stream, sum, part, count);
}

void k_from_plain(Lane *lane, float *value, Layout layout, const float *plain, int B, int C, int H, int W) {
    (void)layout;
    lane_copy(lane, value, plain, k_value_bytes(LAYOUT_PLAIN, B, C, H, W));
}
