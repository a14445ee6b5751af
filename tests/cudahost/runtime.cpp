/* runtime.cpp: the CUDA runtime's calls: devices, memory, streams, events.
 *
 * A stream is a queue that nobody works on until the host waits for it, and then the streams take turns by lot: what
 * is used without waiting is not there yet. Device memory can be touched while kernels and copies run only, it starts
 * as NaN, and a page that can never be touched follows each allocation. The machine is made up:
 *
 *     CUDAHOST_SEED=1      the order of everything that CUDA leaves open
 *     CUDAHOST_DEVICES=8   how many it has; CUDA_VISIBLE_DEVICES, as for a real one, says which of them are visible
 *     CUDAHOST_DRIVER=old  a driver older than the toolkit
 *     CUDAHOST_MEMORY=N    bytes of device memory (8 GiB)
 *     CUDAHOST_PINNED=1    copies in any stream but the first made must be of pinned host memory, or they would wait */
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "runtime.h"

struct CUevent_st {
    unsigned long asked, reached; /* records so far */
};

struct Work {
    std::function<bool()> run;
    bool main_only;
};

struct CUgraph_st {
    std::vector<Work> works;
};

struct CUgraphExec_st {
    std::vector<Work> works;
};

struct CUstream_st {
    int device;
    std::deque<Work> queue;
    CUgraph_st *recording; /* what is asked goes there and is not done; or NULL */
};

namespace cudahost {

std::recursive_mutex lock;
typedef std::lock_guard<std::recursive_mutex> Guard;

static const size_t PAGE = 4096, ALIGN = 256, FILLED_BYTES = 16 << 20;
static std::map<uintptr_t, Allocation> allocations;
static std::map<const void *, size_t> allowed_shared; /* cudaFuncSetAttribute */
static std::vector<CUstream_st *> streams;
static std::map<uintptr_t, size_t> pinned; /* host memory by cudaMallocHost */
static size_t allocated;
static int opened;
static thread_local int device;
static const std::thread::id main_thread = std::this_thread::get_id();

static size_t setting(const char *name, size_t otherwise) {
    const char *value = getenv(name);
    return value ? strtoull(value, nullptr, 10) : otherwise;
}

/* ---- Memory ----------------------------------------------------------------------------------------------------- */

static size_t mapped(size_t bytes) {
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

/* The allocation ends at the page's end, but for its alignment; the bytes around it must stay as they are. */
static char *page_of(const Allocation &a) {
    return (char *)((uintptr_t)a.start / PAGE * PAGE);
}

static void protect(const Allocation &a, bool open) {
    mprotect(page_of(a), mapped(a.bytes), open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

#if !defined(__SANITIZE_ADDRESS__)
/* Whether all of [from, to) is 0xff. */
static bool untouched(const char *from, const char *to) {
    return from == to || (*from == (char)0xff && memcmp(from, from + 1, (size_t)(to - from - 1)) == 0);
}
#endif

static void fences(const Allocation &a) {
#if defined(__SANITIZE_ADDRESS__)
    (void)a; /* poisoned: an access stops there and then */
#else
    const char *page = page_of(a), *end = page + mapped(a.bytes);
    const bool before = untouched(page, a.start);
    if (!before || !untouched(a.start + a.bytes, end))
        stop("a kernel has written outside of its allocation of %zu bytes, %s it", a.bytes,
             before ? "behind" : "before");
#endif
}

static void open_memory() {
    if (opened++ == 0)
        for (auto &a : allocations)
            protect(a.second, true);
}

static void close_memory() {
    if (--opened > 0)
        return;
    for (auto &a : allocations) {
        fences(a.second);
        protect(a.second, false);
    }
}

Allocation *allocation_of(const void *p) {
    auto next = allocations.upper_bound((uintptr_t)p);
    return next == allocations.begin() ? nullptr : &std::prev(next)->second;
}

static bool on_device(const void *p) {
    const Allocation *a = allocation_of(p);
    return a && (const char *)p < a->start + (a->bytes ? a->bytes : 1);
}

void need_device(const char *what, const void *p, size_t bytes) {
    const Allocation *a = allocation_of(p);
    if (!bytes)
        return;
    if (!a || (const char *)p >= a->start + a->bytes)
        stop("%s: %p is not device memory", what, p);
    if ((const char *)p + bytes > a->start + a->bytes)
        stop("%s: %zu bytes at offset %zu run past an allocation of %zu bytes", what, bytes,
             (size_t)((const char *)p - a->start), a->bytes);
}

void kernel_pointer(Site site, int argument, const void *pointer) {
    Guard guard(lock);
    if (pointer && !on_device(pointer))
        stop("kernel %s, launched at %s:%d: argument %d (%p) is not device memory", site.what, site.file, site.line,
             argument, pointer);
}

/* ---- Streams ---------------------------------------------------------------------------------------------------- */

void enqueue(cudaStream_t stream, std::function<bool()> work, bool main_only) {
    Guard guard(lock);
    if (!stream || std::find(streams.begin(), streams.end(), stream) == streams.end())
        stop("work for a stream that does not exist (the default stream is not used here)");
    if (stream->device != device)
        stop("work for a stream of device %d by a host thread whose device is %d", stream->device, device);
    if (stream->recording && main_only)
        stop("a collective in a stream that is being recorded: that is not known here");
    if (stream->recording)
        stream->recording->works.push_back({std::move(work), main_only});
    else
        stream->queue.push_back({std::move(work), main_only});
}

static void not_recording(const char *what) {
    for (const CUstream_st *s : streams)
        if (s->recording)
            stop("%s while a stream is being recorded", what);
}

/* The first piece of work of a stream; false when it cannot be done yet. */
static bool step(CUstream_st *stream) {
    Work &work = stream->queue.front();
    if ((work.main_only && std::this_thread::get_id() != main_thread) || !work.run())
        return false;
    stream->queue.pop_front();
    return true;
}

/* One piece of work of any stream, by lot; false when none can be done. */
static bool step_any() {
    std::vector<CUstream_st *> waiting;
    for (CUstream_st *s : streams)
        if (!s->queue.empty())
            waiting.push_back(s);
    for (; !waiting.empty(); waiting.pop_back()) {
        std::swap(waiting[draw() % waiting.size()], waiting.back());
        if (step(waiting.back()))
            return true;
    }
    return false;
}

static void wait_for(CUstream_st *stream) {
    not_recording("a wait");
    open_memory();
    for (int idle = 0; !stream->queue.empty(); idle++) {
        if (step_any())
            idle = 0;
        else
            usleep(100);
        if (idle > 600000)
            stop("a stream waits for an event that nobody records, or for a collective of the main thread");
    }
    close_memory();
}

static bool check_copy(const void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyHostToDevice && kind != cudaMemcpyDeviceToHost && kind != cudaMemcpyDeviceToDevice)
        stop("a copy of kind %d: expected a direction", (int)kind);
    if (to_device)
        need_device("copy to the device", to, bytes);
    if (from_device)
        need_device("copy from the device", from, bytes);
    if ((!to_device && on_device(to)) || (!from_device && on_device(from)))
        stop("a copy of kind %d is given device memory where that of the host was expected", (int)kind);
    return !to_device;
}

static bool is_pinned(const void *p, size_t bytes) {
    auto next = pinned.upper_bound((uintptr_t)p);
    return next != pinned.begin() && (uintptr_t)p + bytes <= std::prev(next)->first + std::prev(next)->second;
}

void enqueue_kernel(Site site, void (*call)(const void *), std::shared_ptr<const void> arguments, size_t bytes,
                    const void *kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
    Guard guard(lock);
    const size_t count = (size_t)block.x * block.y * block.z;
    if (count == 0 || count > 1024 || count % 32 != 0 || block.z > 64 || grid.x > INT32_MAX || grid.y > 65535 ||
        grid.z > 65535)
        stop("kernel %s, launched at %s:%d: grid %u %u %u of blocks %u %u %u is not allowed", site.what, site.file,
             site.line, grid.x, grid.y, grid.z, block.x, block.y, block.z);
    const size_t allowed = allowed_shared.count(kernel) ? allowed_shared[kernel] : 48 << 10;
    if (shared_bytes > allowed)
        stop("kernel %s, launched at %s:%d: %zu bytes of dynamic shared memory, %zu are allowed", site.what, site.file,
             site.line, shared_bytes, allowed);
    Grid g = {site, call, std::move(arguments), bytes, grid, block, shared_bytes};
    enqueue(stream, [g] {
        run_grid(g);
        return true;
    });
}

/* ---- Bad accesses ----------------------------------------------------------------------------------------------- */

#if !defined(__SANITIZE_ADDRESS__)
static void on_fault(int, siginfo_t *info, void *) {
    if (running)
        stop("bad access to %p", info->si_addr);
    stop("host code touches %p%s", info->si_addr, on_device(info->si_addr) ? ", which is device memory" : "");
}

static const bool watching = [] {
    static char stack[64 << 10];
    stack_t alternative = {};
    alternative.ss_sp = stack;
    alternative.ss_size = sizeof stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    return true;
}();
#endif

} // namespace cudahost

/* ---- The calls, as NVIDIA's headers declare them ---------------------------------------------------------------- */

using namespace cudahost;

/* Numbers of the visible devices among the machine's; a wrong one hides itself and those behind it. */
static std::vector<size_t> visible_devices() {
    std::vector<size_t> visible;
    const size_t all = setting("CUDAHOST_DEVICES", 8);
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    for (size_t i = 0; !list && i < all; i++)
        visible.push_back(i);
    for (char *end; list && *list; list = *end == ',' ? end + 1 : end) {
        const size_t number = strtoul(list, &end, 10);
        if (end == list || number >= all)
            break;
        visible.push_back(number);
    }
    return visible;
}

cudaError_t cudaGetDeviceCount(int *count) {
    if (getenv("CUDAHOST_DRIVER") && strcmp(getenv("CUDAHOST_DRIVER"), "old") == 0)
        return cudaErrorInsufficientDriver;
    *count = (int)visible_devices().size();
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaSetDevice(int chosen) {
    if (chosen < 0 || (size_t)chosen >= visible_devices().size())
        return cudaErrorInvalidDevice;
    device = chosen;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int number) {
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    memset(properties, 0, sizeof *properties);
    snprintf(properties->name, sizeof properties->name, "host executor");
    properties->major = 9;
    properties->pciBusID = number;
    snprintf(properties->uuid.bytes, sizeof properties->uuid.bytes, "%zu %s", visible_devices()[(size_t)number], host);
    return cudaSuccess;
}

const char *cudaGetErrorName(cudaError_t status) {
    return status == cudaSuccess ? "cudaSuccess" : "cudaError";
}

const char *cudaGetErrorString(cudaError_t status) {
    switch (status) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    default: return "an error of the host executor";
    }
}

cudaError_t cudaGetLastError(void) {
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    Guard guard(lock);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value > 227 << 10)
        return cudaErrorInvalidValue;
    allowed_shared[kernel] = (size_t)value;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    Guard guard(lock);
    not_recording("cudaMalloc");
    if (bytes > setting("CUDAHOST_MEMORY", (size_t)8 << 30) - allocated)
        return cudaErrorMemoryAllocation;
    const size_t all = mapped(bytes);
    char *map = (char *)mmap(nullptr, all + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return cudaErrorMemoryAllocation;
    Allocation a = {map + PAGE + (all - bytes) / ALIGN * ALIGN, bytes, nullptr};
    protect(a, true);
    memset(map + PAGE, 0xff, all < FILLED_BYTES ? all : 0);
    if (all >= FILLED_BYTES) { /* the rest stays what the system gives: filling would take longer than the test */
        memset(map + PAGE, 0xff, (size_t)(a.start - (map + PAGE)));
        memset(a.start + bytes, 0xff, (size_t)(map + PAGE + all - (a.start + bytes)));
    }
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(map + PAGE, (size_t)(a.start - (map + PAGE)));
    ASAN_POISON_MEMORY_REGION(a.start + bytes, (size_t)(map + PAGE + all - (a.start + bytes)));
#endif
    protect(a, opened > 0);
    allocations[(uintptr_t)a.start] = a;
    allocated += bytes;
    *memory = a.start;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory) {
    Guard guard(lock);
    auto found = allocations.find((uintptr_t)memory);
    if (!memory)
        return cudaSuccess;
    if (found == allocations.end())
        stop("cudaFree of %p, which is no allocation of the device", memory);
    for (CUstream_st *s : std::vector<CUstream_st *>(streams))
        wait_for(s);
    const Allocation a = found->second;
    allocations.erase(found);
    allocated -= a.bytes;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(page_of(a), mapped(a.bytes));
#endif
    free(a.shadow);
    munmap(page_of(a) - PAGE, mapped(a.bytes) + 2 * PAGE);
    return cudaSuccess;
}

/* Ordinary memory, spoilt. */
cudaError_t cudaMallocHost(void **memory, size_t bytes) {
    Guard guard(lock);
    *memory = malloc(bytes);
    if (!*memory)
        return cudaErrorMemoryAllocation;
    memset(*memory, 0xff, bytes);
    pinned[(uintptr_t)*memory] = bytes;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory) {
    Guard guard(lock);
    for (CUstream_st *s : std::vector<CUstream_st *>(streams))
        wait_for(s);
    if (memory && pinned.erase((uintptr_t)memory) == 0)
        stop("cudaFreeHost of %p, which is not by cudaMallocHost", memory);
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *all) {
    Guard guard(lock);
    *all = setting("CUDAHOST_MEMORY", (size_t)8 << 30);
    *available = *all - allocated;
    return cudaSuccess;
}

/* The host's side of a download is spoilt until it is done. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    Guard guard(lock);
    if (check_copy(to, from, bytes, kind))
        memset(to, 0xff, bytes);
    if (kind != cudaMemcpyDeviceToDevice && stream != streams.front() && setting("CUDAHOST_PINNED", 0) &&
        !is_pinned(kind == cudaMemcpyHostToDevice ? from : to, bytes))
        stop("a copy of %zu bytes of host memory that is not pinned", bytes);
    enqueue(stream, [=] {
        memmove(to, from, bytes);
        return true;
    });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    Guard guard(lock);
    need_device("cudaMemsetAsync", to, bytes);
    enqueue(stream, [=] {
        memset(to, value, bytes);
        return true;
    });
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    Guard guard(lock);
    *stream = new CUstream_st{device, {}, nullptr};
    streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Guard guard(lock);
    wait_for(stream);
    return cudaSuccess;
}

/* Asking often enough gets the work done. */
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    Guard guard(lock);
    not_recording("a query");
    open_memory();
    step_any();
    close_memory();
    return stream->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    Guard guard(lock);
    if (stream->recording || mode != cudaStreamCaptureModeThreadLocal)
        stop("cudaStreamBeginCapture: the stream is being recorded, or the mode is not known here");
    stream->recording = new CUgraph_st;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    Guard guard(lock);
    if (!stream->recording)
        stop("cudaStreamEndCapture of a stream that is not being recorded");
    *graph = stream->recording;
    stream->recording = nullptr;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long) {
    *executable = new CUgraphExec_st{graph->works};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    Guard guard(lock);
    for (const Work &work : executable->works)
        enqueue(stream, work.run);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete executable;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    Guard guard(lock);
    wait_for(stream);
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new CUevent_st{0, 0};
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    Guard guard(lock);
    const unsigned long number = ++event->asked;
    enqueue(stream, [=] {
        event->reached = std::max(event->reached, number);
        return true;
    });
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    Guard guard(lock);
    const unsigned long number = event->asked;
    enqueue(stream, [=] { return event->reached >= number; });
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    Guard guard(lock);
    not_recording("a query");
    open_memory();
    step_any();
    close_memory();
    return event->reached >= event->asked ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    while (cudaEventQuery(event) != cudaSuccess)
        ;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    Guard guard(lock);
    for (CUstream_st *s : std::vector<CUstream_st *>(streams))
        wait_for(s);
    delete event;
    return cudaSuccess;
}
