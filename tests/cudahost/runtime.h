/* runtime.h: what the parts of the host executor tell each other. One lock guards it all: host threads may call at the
 * same time, and the one that waits for a stream does the work. */
#ifndef CUDAHOST_RUNTIME_H
#define CUDAHOST_RUNTIME_H

#include <functional>
#include <mutex>

#include "cudahost.h"

namespace cudahost {

/* Prints "cudahost: ..." and ends the process with status 86. */
[[noreturn]] void stop(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t draw(); /* random, from CUDAHOST_SEED */

/* ---- runtime.cpp ---- */
extern std::recursive_mutex lock;
/* Work of a stream: true when done, false when it must be tried again (a collective that waits for other ranks).
 * main_only: to be done by the thread that called first. Unless the stream is the current device's, stops. */
void enqueue(cudaStream_t stream, std::function<bool()> work, bool main_only = false);
/* Stops unless all of [p, p + bytes) lies in one allocation of the device. */
void need_device(const char *what, const void *p, size_t bytes);
struct Allocation {
    char *start;
    size_t bytes;
    void *shadow; /* races.cpp */
};
Allocation *allocation_of(const void *p); /* the one that p lies in, or the last one that begins before it, or NULL */

/* ---- blocks.cpp ---- */
struct Grid {
    Site site;
    void (*call)(const void *arguments);
    std::shared_ptr<const void> arguments;
    size_t argument_bytes;
    dim3 grid, block;
    size_t shared_bytes;
};
void run_grid(const Grid &grid);
extern thread_local const Grid *running; /* the kernel that this host thread executes, or NULL */
bool in_fiber(const void *address);

/* Where a thread stands: what the race detector compares. Barriers order a block's threads, warp operations a warp's. */
struct Position {
    uint32_t block, barriers, warp_steps;
};
Position position();
bool dynamic_range(const char **start, size_t *bytes);

/* ---- races.cpp: nothing happens unless built with CUDAHOST_RACES ---- */
void races_grid();
void races_block();

} // namespace cudahost

#endif
