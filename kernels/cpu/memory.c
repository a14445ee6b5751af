/* memory.c: the CPU as a device: its threads, its level of instructions, its memory.
 *
 * Device memory is host memory, so uploads are copies. What may be allocated is the least of the machine's available
 * memory, of the limit of this process (ulimit -v), and of what every control group above it leaves: batch systems kill the job that goes past either,
 * without a word, where malloc would never have failed. So a large allocation is first compared with it, and refused
 * in one line. */
#include <cblas.h>
#include <dnnl.h>
#include <malloc.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "cpu.h"

enum {
    ALIGN_BYTES = 64,
    HUGE_PAGE_BYTES = 2 << 20,
    OWN_PAGES_BYTES = 1 << 20,
    PAGED_FROM_BYTES = 4 << 20,
    CHECKED_FROM_BYTES = 64 << 20
};

static int thread_count = 1;
static int isa_limit = -1;

static size_t process_limit_leaves(void);
static size_t control_group_leaves(const char *controllers, const char *path);
static size_t group_leaves(const char *folder, const char *limit_file, const char *usage_file, const char *cache_key);
static size_t keyed_number(const char *path, const char *key, size_t otherwise);

/* ---- Start ------------------------------------------------------------------------------------------------------ */

void dev_start(int device, int threads) {
    (void)device;
    thread_count = threads > 0 ? threads : 1;
    mallopt(M_MMAP_THRESHOLD, OWN_PAGES_BYTES); /* so that what is freed goes back to the system, always */
    openblas_set_num_threads(1);
    omp_set_dynamic(0);
    omp_set_max_active_levels(1);
    omp_set_num_threads(thread_count);
}

int cpu_threads(void) {
    return thread_count;
}

/* Only levels that change the float32 kernels of oneDNN count: the newer AVX-512 ones add 8 and 16-bit types. */
int dev_isa(void) {
    if (isa_limit >= 0)
        return isa_limit;
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return 3;
    if (__builtin_cpu_supports("avx2"))
        return 2;
    return __builtin_cpu_supports("avx") ? 1 : 0;
#else
    return 0;
#endif
}

void dev_limit_isa(int isa) {
    static const dnnl_cpu_isa_t levels[] = {dnnl_cpu_isa_sse41, dnnl_cpu_isa_avx, dnnl_cpu_isa_avx2,
                                            dnnl_cpu_isa_avx512_core};
    int level = isa < 0 ? 0 : isa < dev_isa() ? isa : dev_isa();
    dnnl_status_t status = dnnl_set_max_cpu_isa(levels[level]); /* other machines have one level, and no such limit */
    if (status != dnnl_success && status != dnnl_unimplemented)
        kernel_fail("oneDNN: the instruction level can no longer be set: a kernel was made before dev_limit_isa");
    isa_limit = level;
}

bool cpu_divides(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

const char *dev_core(void) {
    static char core[128];
    const dnnl_version_t *version = dnnl_version();
    snprintf(core, sizeof core, "OpenBLAS %s, oneDNN %d.%d.%d%s", openblas_get_corename(), version->major,
             version->minor, version->patch, cpu_divides() ? ", dividing" : "");
    return core;
}

/* ---- Memory ----------------------------------------------------------------------------------------------------- */

void *dev_alloc(size_t bytes) {
    if (bytes >= CHECKED_FROM_BYTES) {
        size_t available = dev_available();
        if (bytes > available)
            kernel_fail("memory: %.4g GiB needed, %.4g GiB available on this node: use more nodes, or ask for less",
                        (double)bytes / 0x1p30, (double)available / 0x1p30);
    }
    size_t alignment = bytes >= PAGED_FROM_BYTES ? HUGE_PAGE_BYTES : ALIGN_BYTES;
    void *memory = NULL;
    if (posix_memalign(&memory, alignment, bytes ? bytes : 1) != 0)
        kernel_fail("memory: %zu bytes needed, and the system has not got them: use more nodes, or ask for less",
                    bytes);
    if (bytes >= PAGED_FROM_BYTES)
        madvise(memory, bytes, MADV_HUGEPAGE); /* a wish: without huge pages all is the same, only slower */
    return memory;
}

void dev_free(void *memory) {
    free(memory);
}

void *dev_alloc_host(size_t bytes) {
    return dev_alloc(bytes);
}

void dev_free_host(void *memory) {
    dev_free(memory);
}

void dev_upload(void *device, const void *host, size_t bytes) {
    if (bytes)
        memcpy(device, host, bytes);
}

void dev_download(void *host, const void *device, size_t bytes) {
    if (bytes)
        memcpy(host, device, bytes);
}

void *dev_stream(void) {
    return NULL;
}

bool dev_is_host(void) {
    return true;
}

bool dev_repeat(DevRepeat **repeat) {
    (void)repeat;
    return true;
}

void dev_repeat_end(DevRepeat *repeat) {
    (void)repeat;
}

void dev_repeat_free(DevRepeat *repeat) {
    (void)repeat;
}

size_t dev_available(void) {
    size_t least = keyed_number("/proc/meminfo", "MemAvailable:", SIZE_MAX / 1024);
    least = least < SIZE_MAX / 1024 ? least * 1024 : SIZE_MAX;
    size_t own = process_limit_leaves();
    least = own < least ? own : least;
    FILE *groups = fopen("/proc/self/cgroup", "r");
    if (!groups)
        return least;
    char line[4096];
    while (fgets(line, sizeof line, groups)) { /* NUMBER:CONTROLLERS:PATH, the second empty in version 2 */
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path = '\0';
        size_t leaves = control_group_leaves(controllers + 1, path + 1);
        least = leaves < least ? leaves : least;
    }
    fclose(groups);
    return least;
}

static size_t process_limit_leaves(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return SIZE_MAX;
    size_t used = keyed_number("/proc/self/status", "VmSize:", 0) * 1024;
    return limit.rlim_cur > used ? (size_t)limit.rlim_cur - used : 0;
}

/* The least over this group and all above it. In a container the path may not exist below its own mount: then the
 * groups that do exist, up to the root, are the ones that count. */
static size_t control_group_leaves(const char *controllers, const char *path) {
    bool version1 = strcmp(controllers, "memory") == 0;
    if (!version1 && controllers[0] != '\0')
        return SIZE_MAX;
    char folder[4096 + 64];
    int base = snprintf(folder, sizeof folder, "/sys/fs/cgroup%s", version1 ? "/memory" : "");
    snprintf(folder + base, sizeof folder - (size_t)base, "%s", path);
    size_t least = SIZE_MAX;
    for (;;) {
        size_t leaves =
            version1 ? group_leaves(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                     : group_leaves(folder, "memory.max", "memory.current", "inactive_file");
        least = leaves < least ? leaves : least;
        char *slash = strrchr(folder + base, '/');
        if (!slash)
            return least;
        *slash = '\0';
    }
}

/* Limit minus usage; pages of files that can be dropped do not count as used. */
static size_t group_leaves(const char *folder, const char *limit_file, const char *usage_file, const char *cache_key) {
    char path[4096 + 128];
    snprintf(path, sizeof path, "%s/%s", folder, limit_file);
    size_t limit = keyed_number(path, "", SIZE_MAX); /* "max" is no number: no limit */
    snprintf(path, sizeof path, "%s/%s", folder, usage_file);
    size_t usage = keyed_number(path, "", 0);
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    size_t cache = keyed_number(path, cache_key, 0);
    usage -= cache < usage ? cache : usage;
    if (limit == SIZE_MAX)
        return SIZE_MAX;
    return limit > usage ? limit - usage : 0;
}

/* The number behind `key` at the start of a line of a small file of the system. */
static size_t keyed_number(const char *path, const char *key, size_t otherwise) {
    FILE *file = fopen(path, "r");
    if (!file)
        return otherwise;
    size_t key_length = strlen(key);
    char line[256];
    unsigned long long number;
    bool found = false;
    while (!found && fgets(line, sizeof line, file)) {
        bool matches = strncmp(line, key, key_length) == 0 && (!key_length || strchr(" \t", line[key_length]));
        found = matches && sscanf(line + key_length, "%llu", &number) == 1;
        if (!found && !key_length)
            break;
    }
    fclose(file);
    return found ? (size_t)number : otherwise;
}
