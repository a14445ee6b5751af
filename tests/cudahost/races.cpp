/* races.cpp: watches every access of a kernel to device and shared memory, when built with CUDAHOST_RACES.
 *
 * The .cu files are then compiled with -fsanitize=thread, which puts a call in front of each load and store; the calls
 * are defined here instead of by the compiler's library. For each byte (of an aligned word: for its first, which is
 * four times as fast) is kept who wrote and who read it last, and what orders two threads is CUDA's own: the end of a
 * launch, a barrier within a block, a warp operation within a warp. Blocks of one launch are never ordered. So a race is
 * found whatever the order was, once both accesses happen.
 * Found too: any byte past an allocation, host memory, and shared memory read before it is written. The line of the
 * access is printed unless CUDAHOST_NO_LINES is set: finding it takes half a second. */
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "runtime.h"

#if !defined(CUDAHOST_RACES)

namespace cudahost {
void races_grid() {
}
void races_block() {
}
void atomic_access(void *, size_t) {
}
} // namespace cudahost

#else

extern "C" char __data_start[], _end[]; /* the program's variables: __shared__ ones are among them */

namespace cudahost {

enum Access { READ, WRITE, ATOMIC };

/* Of one byte. Numbers of launches and of blocks begin at 1: 0 is never. */
struct Cell {
    uint32_t epoch; /* the launch (device memory) or the block (shared memory) that the rest is about */
    bool written, atomic, read, readers_of_other_warps, readers_of_other_blocks;
    uint16_t write_thread, read_warp;
    uint32_t write_block, write_barriers, write_steps;
    uint32_t read_block, read_barriers, read_steps, read_lanes;
};

static uint32_t launches, blocks;
static Cell *variables, *dynamic_cells;

void races_grid() {
    launches++;
}

void races_block() {
    blocks++;
}

[[noreturn]] static void report(const char *what, const void *address, size_t bytes, const void *from) {
    Dl_info where;
    char command[600];
    fflush(nullptr);
    if (!getenv("CUDAHOST_NO_LINES") && dladdr(from, &where) && where.dli_fname) {
        snprintf(command, sizeof command, "addr2line -Cpe '%s' %#zx 1>&2", where.dli_fname,
                 (size_t)((const char *)from - 1 - (const char *)where.dli_fbase));
        if (system(command) != 0)
            fprintf(stderr, "cudahost: the line is not known\n");
    }
    stop("%s: %zu bytes at %p, by thread %d", what, bytes, address, self->number);
}

/* A message if this access and an earlier one are not ordered, and keeps the access. */
static const char *note(Cell *c, uint32_t epoch, Access access) {
    const Position at = position();
    const unsigned lane_bit = 1u << self->lane;
    const uint16_t thread = (uint16_t)self->number, warp = (uint16_t)self->warp;
    if (c->epoch != epoch)
        *c = Cell{};
    c->epoch = epoch;
    const char *wrong = nullptr;
    if (c->written && !(c->atomic && access == ATOMIC) && !(c->write_block == at.block && c->write_thread == thread)) {
        if (c->write_block != at.block)
            wrong = "race with another block that wrote here";
        else if (c->write_barriers == at.barriers && !(c->write_thread / 32 == warp && c->write_steps != at.warp_steps))
            wrong = "race with another thread that wrote here: a barrier is missing";
    }
    const bool same_phase = c->read_block == at.block && c->read_barriers == at.barriers;
    if (access != READ && c->read) {
        if (c->readers_of_other_blocks || c->read_block != at.block)
            wrong = "race with another block that read here";
        else if (same_phase && (c->readers_of_other_warps || c->read_warp != warp ||
                                (c->read_steps == at.warp_steps && (c->read_lanes & ~lane_bit))))
            wrong = "race with another thread that read here: a barrier is missing";
    }
    if (access == READ) {
        const bool more = c->read && same_phase;
        c->readers_of_other_blocks = c->readers_of_other_blocks || (c->read && c->read_block != at.block);
        c->readers_of_other_warps = more && (c->readers_of_other_warps || c->read_warp != warp);
        c->read_lanes = (more && c->read_warp == warp && c->read_steps == at.warp_steps ? c->read_lanes : 0) | lane_bit;
        c->read = true;
        c->read_warp = warp;
        c->read_block = at.block;
        c->read_barriers = at.barriers;
        c->read_steps = at.warp_steps;
    } else {
        c->written = true;
        c->atomic = access == ATOMIC;
        c->write_thread = thread;
        c->write_block = at.block;
        c->write_barriers = at.barriers;
        c->write_steps = at.warp_steps;
    }
    return wrong;
}

static Cell *new_cells(size_t count) {
    Cell *cells = (Cell *)calloc(count, sizeof *cells);
    if (!cells)
        stop("no memory to watch %zu bytes", count);
    return cells;
}

/* Whether [p, p + bytes) lies in [start, start + size), or begins there and is reported. */
static bool inside(const char *p, size_t bytes, const char *start, size_t size, const void *from) {
    if (p < start || p >= start + size)
        return false;
    if (p + bytes > start + size)
        report("access past the end", p, bytes, from);
    return true;
}

static void watch(const void *address, size_t bytes, Access access, const void *from) {
    if (!running || !self || in_fiber(address))
        return;
    const char *p = (const char *)address, *dynamic;
    size_t dynamic_bytes;
    Allocation *a;
    Cell *cells;
    bool shared = true;
    dynamic_range(&dynamic, &dynamic_bytes);
    if (dynamic && inside(p, bytes, dynamic, dynamic_bytes, from)) {
        dynamic_cells = dynamic_cells ? dynamic_cells : new_cells(256 << 10);
        cells = dynamic_cells + (p - dynamic);
    } else if (p >= __data_start && p < _end) {
        variables = variables ? variables : new_cells((size_t)(_end - __data_start));
        cells = variables + (p - __data_start);
    } else if ((a = allocation_of(p)) && inside(p, bytes, a->start, a->bytes, from)) {
        a->shadow = a->shadow ? a->shadow : new_cells(a->bytes);
        cells = (Cell *)a->shadow + (p - a->start);
        shared = false;
    } else {
        const char *arguments = (const char *)running->arguments.get();
        if (access != READ || p < arguments || p >= arguments + running->argument_bytes)
            report(a && p < a->start + a->bytes + 4096 ? "access behind an allocation"
                                                       : "access to memory that is neither the device's nor shared",
                   p, bytes, from);
        return;
    }
    const size_t step = bytes % 4 == 0 && (uintptr_t)p % 4 == 0 ? 4 : 1;
    for (size_t i = 0; i < bytes; i += step) {
        if (shared && access != WRITE && (cells[i].epoch != blocks || !cells[i].written))
            report("shared memory is read before it is written", p, bytes, from);
        const char *wrong = note(&cells[i], shared ? blocks : launches, access);
        if (wrong)
            report(wrong, p, bytes, from);
    }
}

void atomic_access(void *address, size_t bytes) {
    watch(address, bytes, ATOMIC, __builtin_return_address(0));
}

} // namespace cudahost

#define WATCHED(bytes)                                                                                                 \
    extern "C" void __tsan_read##bytes(void *p) {                                                                      \
        cudahost::watch(p, bytes, cudahost::READ, __builtin_return_address(0));                                        \
    }                                                                                                                  \
    extern "C" void __tsan_write##bytes(void *p) {                                                                     \
        cudahost::watch(p, bytes, cudahost::WRITE, __builtin_return_address(0));                                       \
    }                                                                                                                  \
    extern "C" void __tsan_unaligned_read##bytes(void *p) {                                                            \
        cudahost::watch(p, bytes, cudahost::READ, __builtin_return_address(0));                                        \
    }                                                                                                                  \
    extern "C" void __tsan_unaligned_write##bytes(void *p) {                                                           \
        cudahost::watch(p, bytes, cudahost::WRITE, __builtin_return_address(0));                                       \
    }
WATCHED(1)
WATCHED(2)
WATCHED(4)
WATCHED(8)
WATCHED(16)
extern "C" void __tsan_read_range(void *p, size_t bytes) {
    cudahost::watch(p, bytes, cudahost::READ, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void *p, size_t bytes) {
    cudahost::watch(p, bytes, cudahost::WRITE, __builtin_return_address(0));
}
extern "C" void __tsan_vptr_update(void *, void *) {
}
extern "C" void __tsan_vptr_read(void *) {
}
extern "C" void __tsan_func_entry(void *) {
}
extern "C" void __tsan_func_exit() {
}
extern "C" void __tsan_init() {
}
extern "C" int __tsan_atomic32_fetch_add(volatile int *p, int by, int) { /* the counts of shared_ptr, on the host */
    return __atomic_fetch_add(p, by, __ATOMIC_SEQ_CST);
}

#endif
