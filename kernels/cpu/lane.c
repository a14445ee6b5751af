/* lane.c: lanes, and how values lie in memory.
 *
 * A lane is one thread's memory and oneDNN stream. Values between convolutions are kept in oneDNN's blocked form
 * (8 or 16 channels side by side, a vector register), because every kernel then reads and writes whole vectors;
 * they are brought to NCHW only where someone outside asks for them, which costs one pass over the value.
 * Batches are rounded up to groups of CPU_GROUP samples, and convolutions always work on one group: so the primitive
 * that computes a sample is the same whatever the batch size. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>

#include "cpu.h"

struct Lane {
    void *memory;
    dnnl_stream_t stream;
};

static dnnl_engine_t engine;

static void make_engine(void) {
    cpu_check(dnnl_engine_create(&engine, dnnl_cpu, 0), "dnnl_engine_create");
}

int lane_count(void) {
    return cpu_threads();
}

Lane *lane_new(size_t memory_bytes) {
    Lane *lane = dev_alloc(sizeof *lane);
    lane->memory = dev_alloc(memory_bytes);
    memset(lane->memory, 0, memory_bytes);
    cpu_check(dnnl_stream_create(&lane->stream, cpu_engine(), dnnl_stream_default_flags), "dnnl_stream_create");
    return lane;
}

void lane_free(Lane *lane) {
    if (!lane)
        return;
    dnnl_stream_destroy(lane->stream);
    dev_free(lane->memory);
    dev_free(lane);
}

void *lane_memory(Lane *lane) {
    return lane->memory;
}

void lane_sync(Lane *lane) {
    cpu_check(dnnl_stream_wait(lane->stream), "dnnl_stream_wait");
}

void lane_copy(Lane *lane, void *device_to, const void *device_from, size_t bytes) {
    (void)lane;
    memcpy(device_to, device_from, bytes);
}

void lane_download(Lane *lane, void *host, const void *device, size_t bytes) {
    (void)lane;
    memcpy(host, device, bytes);
}

void lane_upload(Lane *lane, void *device, const void *host, size_t bytes) {
    (void)lane;
    memcpy(device, host, bytes);
}

dnnl_engine_t cpu_engine(void) {
    static once_flag once = ONCE_FLAG_INIT;
    call_once(&once, make_engine);
    return engine;
}

dnnl_stream_t cpu_stream(const Lane *lane) {
    return lane->stream;
}

int cpu_one_thread(void) {
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    return threads;
}

void cpu_threads_back(int threads) {
    omp_set_num_threads(threads);
}

void cpu_check(dnnl_status_t status, const char *what) {
    if (status == dnnl_out_of_memory)
        kernel_fail("memory: not enough for %s of oneDNN: use more nodes, or a smaller --batch", what);
    if (status != dnnl_success)
        kernel_fail("oneDNN: %s failed with status %d, expected 0: check the library's version (2.6 is tested)", what,
                 (int)status);
}

/* ---- Layouts ---------------------------------------------------------------------------------------------------- */

int cpu_width(Layout layout) {
    return layout == LAYOUT_PLAIN ? 1 : dev_isa() >= 3 ? 16 : 8;
}

int64_t cpu_sample_size(Layout layout, int C, int H, int W) {
    return (int64_t)cpu_rounded(C, cpu_width(layout)) * H * W;
}

size_t k_value_bytes(Layout layout, int B, int C, int H, int W) {
    return (size_t)cpu_rounded(B, CPU_GROUP) * (size_t)cpu_sample_size(layout, C, H, W) * sizeof(float);
}

void k_to_plain(Lane *lane, float *plain, const float *value, Layout layout, int B, int C, int H, int W) {
    (void)lane;
    const int width = cpu_width(layout);
    const int64_t pixels = (int64_t)H * W, sample = cpu_sample_size(layout, C, H, W);
    if (layout == LAYOUT_PLAIN) {
        memcpy(plain, value, (size_t)(B * sample) * sizeof *plain);
        return;
    }
    for (int b = 0; b < B; b++)
        for (int c = 0; c < C; c++) {
            float *to = plain + ((int64_t)b * C + c) * pixels;                               /* (H, W) */
            const float *from = value + b * sample + c / width * width * pixels + c % width; /* (H, W, width) */
            for (int64_t p = 0; p < pixels; p++)
                to[p] = from[p * width];
        }
}

void k_accumulate(Lane *lane, float *sum, Layout layout, const float *part, Layout part_layout, bool first, int B,
                  int C, int H, int W) {
    if (first && part_layout == LAYOUT_PLAIN) {
        k_from_plain(lane, sum, layout, part, B, C, H, W);
        return;
    }
    const int width = cpu_width(layout);
    const int64_t pixels = (int64_t)H * W, sample = cpu_sample_size(layout, C, H, W);
    if (part_layout == layout) {
#pragma omp simd
        for (int64_t i = 0; i < B * sample; i++)
            sum[i] = first ? part[i] : sum[i] + part[i];
        return;
    }
    for (int b = 0; b < B; b++)
        for (int c = 0; c < C; c++) {
            const float *from = part + ((int64_t)b * C + c) * pixels;
            float *to = sum + b * sample + c / width * width * pixels + c % width;
            for (int64_t p = 0; p < pixels; p++)
                to[p * width] += from[p];
        }
}

void k_from_plain(Lane *lane, float *value, Layout layout, const float *plain, int B, int C, int H, int W) {
    (void)lane;
    const int width = cpu_width(layout);
    const int64_t pixels = (int64_t)H * W, sample = cpu_sample_size(layout, C, H, W);
    if (layout == LAYOUT_PLAIN) {
        memcpy(value, plain, (size_t)(B * sample) * sizeof *value);
        return;
    }
    for (int b = 0; b < B; b++)
        for (int c = 0; c < cpu_rounded(C, width); c++) {
            const float *from = plain + ((int64_t)b * C + c) * pixels;               /* (H, W) */
            float *to = value + b * sample + c / width * width * pixels + c % width; /* (H, W, width) */
            for (int64_t p = 0; p < pixels; p++)
                to[p * width] = c < C ? from[p] : 0;
        }
}
