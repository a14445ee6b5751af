/* blocks.cpp: executes a grid: one block after another, its threads as fibers, in an order drawn by lot.
 *
 * A fiber takes a thread that has not begun, runs it, and goes on to the next as long as nothing blocks, so kernels
 * without barriers cost one call a thread. Shared memory is NaN when a block begins; dynamic shared memory ends at a
 * page that cannot be touched. */
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include "runtime.h"

extern "C" char __start_cudahost_shared[] __attribute__((weak)), __stop_cudahost_shared[] __attribute__((weak));

namespace cudahost {

Thread *self;
uint3 block_index;
dim3 block_size, grid_size;
thread_local const Grid *running;

void stop(const char *format, ...) {
    char message[700];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (running)
        fprintf(stderr, "cudahost: %s [kernel %s, launched at %s:%d, block %u %u %u]\n", message, running->site.what,
                running->site.file, running->site.line, block_index.x, block_index.y, block_index.z);
    else
        fprintf(stderr, "cudahost: %s\n", message);
    fflush(nullptr);
    _exit(86);
}

uint64_t draw() {
    static uint64_t state = getenv("CUDAHOST_SEED") ? strtoull(getenv("CUDAHOST_SEED"), nullptr, 10) : 1;
    uint64_t z = state += 0x9e3779b97f4a7c15u; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* ---- Fibers ----------------------------------------------------------------------------------------------------- */

static const size_t STACK_BYTES = 128 << 10, PAGE_BYTES = 4096, SHARED_BYTES = 256 << 10;

struct Fiber {
    char *stack; /* its lowest address that may be used */
    size_t stack_bytes;
    void *fake_stack; /* AddressSanitizer's */
#if defined(__x86_64__)
    void *pointer;
#else
    ucontext_t context;
#endif
};

enum State { FRESH, READY, AT_BARRIER, AT_WARP, RETURNED };

struct FiberThread : Thread {
    State state;
    Fiber *fiber;
    Site site; /* where it waits */
};

struct Warp {
    uint64_t value[2][32];
    unsigned steps; /* warp operations done; values of two in turn, as a lane may be one ahead */
    int arrived, returned;
    Site site;
};

static Fiber scheduler, *current = &scheduler;
static std::vector<Fiber *> idle;
static std::vector<FiberThread> threads;
static std::vector<Warp> warps;
static std::vector<int> fresh, ready;
static int alive, arrived, votes[2];
static uint32_t barriers, block_number;
static Site barrier_site;
static char *shared_arena, *shared_start;

#if defined(__x86_64__)
extern "C" void cudahost_switch(void **from, void *to);
asm(".text\n"
    ".globl cudahost_switch\n"
    "cudahost_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
#endif

#if defined(__SANITIZE_ADDRESS__)
/* The scheduler's stack is that of the host thread that waits for a stream; AddressSanitizer knows its bounds. */
static void arrived_from_scheduler(void *fake_stack, bool keep) {
    const void *stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fake_stack, &stack, &bytes);
    if (keep) {
        scheduler.stack = (char *)const_cast<void *>(stack);
        scheduler.stack_bytes = bytes;
    }
}
#endif

static void switch_to(Fiber *to) {
    Fiber *from = current;
    current = to;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
#if defined(__x86_64__)
    cudahost_switch(&from->pointer, to->pointer);
#else
    swapcontext(&from->context, &to->context);
#endif
#if defined(__SANITIZE_ADDRESS__)
    arrived_from_scheduler(from->fake_stack, from != &scheduler);
#endif
}

static FiberThread *me() {
    return static_cast<FiberThread *>(self);
}

static int pick(std::vector<int> &from) {
    std::swap(from[draw() % from.size()], from.back());
    const int picked = from.back();
    from.pop_back();
    return picked;
}

static void thread_returned() {
    FiberThread *t = me();
    Warp &w = warps[(size_t)t->warp];
    if (arrived > 0)
        stop("thread %d has returned while %d others wait in %s at %s:%d", t->number, arrived, barrier_site.what,
             barrier_site.file, barrier_site.line);
    if (w.arrived > 0)
        stop("thread %d has returned while lanes of its warp wait in %s at %s:%d", t->number, w.site.what, w.site.file,
             w.site.line);
    t->state = RETURNED;
    w.returned++;
    alive--;
}

/* Not inlined: a fiber may go on in another host thread, where `running` is another variable. */
static __attribute__((noinline)) void run_thread() {
    running->call(running->arguments.get());
    thread_returned();
}

static void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    arrived_from_scheduler(nullptr, true);
#endif
    for (;;) {
        do {
            FiberThread &t = threads[(size_t)pick(fresh)];
            t.fiber = current;
            self = &t;
            run_thread();
        } while (!fresh.empty() && (ready.empty() || draw() % 2));
        idle.push_back(current);
        switch_to(&scheduler);
    }
}

static Fiber *take_fiber() {
    if (!idle.empty()) {
        Fiber *fiber = idle.back();
        idle.pop_back();
        return fiber;
    }
    Fiber *fiber = new Fiber();
    char *memory = (char *)mmap(nullptr, PAGE_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, PAGE_BYTES, PROT_NONE) != 0)
        stop("no memory for a fiber");
    fiber->stack = memory + PAGE_BYTES;
    fiber->stack_bytes = STACK_BYTES;
#if defined(__x86_64__)
    void **top = (void **)(fiber->stack + STACK_BYTES) - 2;
    *top = (void *)fiber_main;
    fiber->pointer = top - 6; /* the registers that cudahost_switch takes off */
#else
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&fiber->context, fiber_main, 0);
#endif
    return fiber;
}

bool in_fiber(const void *address) {
    return address >= current->stack && address < current->stack + current->stack_bytes;
}

/* ---- What threads wait for -------------------------------------------------------------------------------------- */

static void wait_as(State state) {
    FiberThread *t = me();
    t->state = state;
    switch_to(&scheduler);
    self = t;
}

static void wake(FiberThread &t) {
    t.state = READY;
    ready.push_back(t.number);
}

static bool same(const Site &a, const Site &b) {
    return a.line == b.line && strcmp(a.file, b.file) == 0 && strcmp(a.what, b.what) == 0;
}

int barrier(Site site, int predicate, Vote vote) {
    FiberThread *t = me();
    const int all = (int)threads.size();
    if (alive < all)
        stop("thread %d reaches %s at %s:%d after %d threads of its block have returned", t->number, site.what,
             site.file, site.line, all - alive);
    if (arrived > 0 && !same(site, barrier_site))
        stop("threads of one block meet at different barriers, %s:%d and %s:%d", barrier_site.file, barrier_site.line,
             site.file, site.line);
    if (arrived == 0)
        votes[barriers % 2] = 0;
    int *sum = &votes[barriers % 2];
    barrier_site = t->site = site;
    *sum += predicate;
    if (++arrived == all) {
        arrived = 0;
        barriers++;
        for (FiberThread &other : threads)
            if (other.state == AT_BARRIER)
                wake(other);
    } else {
        wait_as(AT_BARRIER);
    }
    return vote == COUNT ? *sum : vote == ALL ? *sum == all : *sum > 0;
}

void warp_exchange(uint64_t out[32], unsigned mask, uint64_t value, Site site) {
    FiberThread *t = me();
    Warp &w = warps[(size_t)t->warp];
    if (mask != 0xffffffffu)
        stop("%s at %s:%d has mask %08x, expected all 32 lanes", site.what, site.file, site.line, mask);
    if (w.returned > 0)
        stop("thread %d reaches %s at %s:%d after %d lanes of its warp have returned", t->number, site.what, site.file,
             site.line, w.returned);
    if (w.arrived > 0 && !same(site, w.site))
        stop("lanes of one warp meet in %s at %s:%d and %s at %s:%d", w.site.what, w.site.file, w.site.line, site.what,
             site.file, site.line);
    uint64_t *values = w.value[w.steps % 2];
    w.site = t->site = site;
    values[t->lane] = value;
    if (++w.arrived == 32) {
        w.arrived = 0;
        w.steps++;
        for (int i = 0; i < 32; i++)
            if (threads[(size_t)(t->warp * 32 + i)].state == AT_WARP)
                wake(threads[(size_t)(t->warp * 32 + i)]);
    } else {
        wait_as(AT_WARP);
    }
    memcpy(out, values, 32 * sizeof *out);
}

static void stuck() {
    for (const FiberThread &t : threads)
        if (t.state == AT_BARRIER || t.state == AT_WARP)
            fprintf(stderr, "cudahost:   thread %d waits in %s at %s:%d\n", t.number, t.site.what, t.site.file,
                    t.site.line);
    stop("the block cannot go on: its threads wait for each other in different places");
}

/* ---- Blocks ----------------------------------------------------------------------------------------------------- */

void *dynamic_shared() {
    if (!shared_start)
        stop("DYN_SHARED in a kernel that was launched without dynamic shared memory");
    return shared_start;
}

bool dynamic_range(const char **start, size_t *bytes) {
    *start = shared_start;
    *bytes = running && shared_start ? running->shared_bytes : 0;
    return shared_start != nullptr;
}

static void begin_shared(size_t bytes) {
    if (__start_cudahost_shared)
        memset(__start_cudahost_shared, 0xff, (size_t)(__stop_cudahost_shared - __start_cudahost_shared));
    if (!shared_arena) {
        shared_arena = (char *)mmap(nullptr, SHARED_BYTES + PAGE_BYTES, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(shared_arena + SHARED_BYTES, PAGE_BYTES, PROT_NONE);
    }
    const size_t rounded = (bytes + 15) / 16 * 16;
    shared_start = bytes ? shared_arena + SHARED_BYTES - rounded : nullptr;
    if (bytes)
        memset(shared_start, 0xff, rounded);
#if defined(__SANITIZE_ADDRESS__)
    if (bytes)
        ASAN_POISON_MEMORY_REGION(shared_start + bytes, rounded - bytes);
#endif
}

static void end_shared(size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    if (bytes)
        ASAN_UNPOISON_MEMORY_REGION(shared_start + bytes, 15);
#endif
    for (size_t i = bytes; shared_start && i < (bytes + 15) / 16 * 16; i++)
        if (shared_start[i] != (char)0xff)
            stop("the kernel writes %zu bytes past its %zu bytes of dynamic shared memory", i - bytes + 1, bytes);
}

static void run_block(size_t shared_bytes) {
    const int count = (int)(block_size.x * block_size.y * block_size.z);
    begin_shared(shared_bytes);
    threads.resize((size_t)count);
    warps.assign((size_t)count / 32, Warp{});
    fresh.clear();
    ready.clear();
    for (int i = 0; i < count; i++) {
        const unsigned n = (unsigned)i;
        FiberThread &t = threads[n];
        t.index = {n % block_size.x, n / block_size.x % block_size.y, n / (block_size.x * block_size.y)};
        t.number = i;
        t.lane = i % 32;
        t.warp = i / 32;
        t.state = FRESH;
        fresh.push_back(i);
    }
    alive = count;
    arrived = 0;
    barriers = 0;
    races_block();
    while (alive > 0) {
        if (!fresh.empty() && (ready.empty() || draw() % 2)) {
            switch_to(take_fiber());
        } else if (!ready.empty()) {
            self = &threads[(size_t)pick(ready)];
            switch_to(me()->fiber);
        } else {
            stuck();
        }
    }
    end_shared(shared_bytes);
}

void run_grid(const Grid &grid) {
    running = &grid;
    block_size = grid.block;
    grid_size = grid.grid;
    const size_t blocks = (size_t)grid_size.x * grid_size.y * grid_size.z;
    std::vector<uint32_t> order(blocks);
    for (size_t i = 0; i < blocks; i++)
        order[i] = (uint32_t)i;
    for (size_t i = blocks; i > 1; i--)
        std::swap(order[i - 1], order[draw() % i]);
    races_grid();
    for (uint32_t b : order) {
        block_number = b;
        block_index = {b % grid_size.x, b / grid_size.x % grid_size.y, b / (grid_size.x * grid_size.y)};
        run_block(grid.shared_bytes);
    }
    running = nullptr;
}

Here here() {
    return {self->index, block_index, block_size, grid_size};
}

int lane() {
    return self->lane;
}

Position position() {
    return {block_number, barriers, warps[(size_t)self->warp].steps};
}

} // namespace cudahost
