/* selftest.cu: does the host executor find what it is there to find? Correct code, and the same code with one bug.
 *
 *     selftest          every bug, each with five seeds in a process of its own; a table of what was found
 *     selftest BUG      that one; exit status 0 when nothing was noticed
 *
 * Built three times: plain, with AddressSanitizer, and with the race detector. For each bug the table says which builds
 * must find it: with every seed (ALWAYS), or with at least one of the five (SOMETIMES). "none" must never be noticed. */
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "gpu.h"

enum Bug {
    NONE,
    NO_BARRIER_BEFORE_READING,
    NO_BARRIER_BEFORE_REUSE,
    NO_BARRIER_IN_SUM,
    NO_WARP_BARRIER,
    SHARED_OVERRUN,
    SHARED_NOT_WRITTEN,
    DEVICE_OVERRUN,
    DEVICE_WRITE_OVERRUN,
    DIVERGENT_BARRIER,
    BARRIER_IN_A_BRANCH,
    RETURN_BEFORE_WARP,
    RACE_BETWEEN_BLOCKS,
    HOST_POINTER,
    HOST_POINTER_IN_STRUCT,
    HOST_READS_DEVICE,
    NO_SYNC,
    OTHER_STREAM_NOT_WAITED_FOR,
    TOO_MUCH_SHARED,
    WRONG_DIRECTION,
    WAIT_IN_RECORDING,
    BUGS
};

enum Found { NOT_NEEDED, SOMETIMES, ALWAYS };

static const struct {
    const char *name;
    Found plain, asan, race;
} table[BUGS] = {
    {"none", NOT_NEEDED, NOT_NEEDED, NOT_NEEDED},
    {"no-barrier-before-reading", SOMETIMES, SOMETIMES, ALWAYS},
    {"no-barrier-before-reuse", SOMETIMES, SOMETIMES, ALWAYS},
    {"no-barrier-in-sum", SOMETIMES, SOMETIMES, ALWAYS},
    {"no-warp-barrier", SOMETIMES, SOMETIMES, ALWAYS},
    {"shared-overrun", ALWAYS, ALWAYS, ALWAYS},
    {"shared-not-written", ALWAYS, ALWAYS, ALWAYS},
    {"device-overrun", ALWAYS, ALWAYS, ALWAYS},
    {"device-write-overrun", ALWAYS, ALWAYS, ALWAYS},
    {"divergent-barrier", ALWAYS, ALWAYS, ALWAYS},
    {"barrier-in-a-branch", ALWAYS, ALWAYS, ALWAYS},
    {"return-before-warp", ALWAYS, ALWAYS, ALWAYS},
    {"race-between-blocks", NOT_NEEDED, NOT_NEEDED, ALWAYS}, /* only the detector sees two blocks at once */
    {"host-pointer", ALWAYS, ALWAYS, ALWAYS},
    {"host-pointer-in-struct", NOT_NEEDED, NOT_NEEDED, ALWAYS},
    {"host-reads-device", ALWAYS, ALWAYS, ALWAYS},
    {"no-sync", ALWAYS, ALWAYS, ALWAYS},
    {"other-stream-not-waited-for", SOMETIMES, SOMETIMES, SOMETIMES},
    {"too-much-shared", ALWAYS, ALWAYS, ALWAYS},
    {"wrong-direction", ALWAYS, ALWAYS, ALWAYS},
    {"wait-in-recording", ALWAYS, ALWAYS, ALWAYS},
};

#if defined(__SANITIZE_ADDRESS__)
static const char build[] = "AddressSanitizer";
#elif defined(__SANITIZE_THREAD__)
static const char build[] = "race detector";
#else
static const char build[] = "plain";
#endif

static Found expected(int bug) {
    return build[0] == 'A' ? table[bug].asan : build[0] == 'r' ? table[bug].race : table[bug].plain;
}

/* ---- Correct code, with places for bugs ------------------------------------------------------------------------- */

enum { TILE = 64, POINTS = 200, COLUMNS = 3 };

template <class T> __device__ T block_sum(T value, Bug bug) {
    __shared__ T part[TILE / 32];
    for (int by = 16; by > 0; by /= 2)
        value += __shfl_down_sync(0xffffffffu, value, by);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = value;
    if (bug != NO_BARRIER_IN_SUM)
        __syncthreads();
    value = 0;
    for (int i = 0; i < TILE / 32; i++)
        value += part[i];
    return value;
}

/* total (blocks) += sums of x_i x_j over the block's i and all j; and by an atomic, whole (1): the points. */
__global__ void pairs(double *total, unsigned long long *whole, const float *x, int64_t n, Bug bug) {
    DYN_SHARED(float, tile);
    const int64_t i = (int64_t)blockIdx.x * TILE + threadIdx.x;
    const float mine = i < n ? x[i] : 0;
    double sum = 0;
    if (bug == RETURN_BEFORE_WARP && i >= n)
        return;
    for (int64_t from = 0; from < n; from += TILE) {
        const int64_t j = from + threadIdx.x;
        if (bug != SHARED_NOT_WRITTEN || threadIdx.x != 7)
            tile[threadIdx.x] = j < n ? x[j] : 0;
        if (bug == DEVICE_OVERRUN && j == n)
            sum += x[j];
        if (bug == DIVERGENT_BARRIER && threadIdx.x >= 32)
            __syncthreads();
        else if (bug == BARRIER_IN_A_BRANCH) {
            if (threadIdx.x != 0)
                __syncthreads();
        } else if (bug != NO_BARRIER_BEFORE_READING)
            __syncthreads();
        for (int k = 0; k < TILE + (bug == SHARED_OVERRUN); k++)
            sum += (double)mine * tile[k];
        if (bug != NO_BARRIER_BEFORE_REUSE)
            __syncthreads();
    }
    sum = block_sum(sum, bug);
    if (threadIdx.x == 0) {
        total[blockIdx.x] = sum;
        if (bug == RACE_BETWEEN_BLOCKS)
            *whole += min((int64_t)TILE, n - (int64_t)blockIdx.x * TILE);
        else
            atomicAdd(whole, (unsigned long long)min((int64_t)TILE, n - (int64_t)blockIdx.x * TILE));
    }
    if (bug == DEVICE_WRITE_OVERRUN && threadIdx.x == 0 && blockIdx.x == 0)
        total[gridDim.x] = 1;
}

/* out (32) = in reversed, through shared memory of one warp. */
__global__ void reverse(float *out, const float *in, Bug bug) {
    __shared__ float line[32];
    line[threadIdx.x] = in[threadIdx.x];
    if (bug != NO_WARP_BARRIER)
        __syncwarp();
    out[threadIdx.x] = line[31 - threadIdx.x];
}

struct Column {
    const float *values;
};

__global__ void column(float *out, Column c) {
    out[31 - threadIdx.x] = c.values[threadIdx.x];
}

static bool wrong(const char *what, double is, double should) {
    if (fabs(is - should) <= 1e-9 * fabs(should))
        return false;
    fprintf(stderr, "wrong result: %s is %.17g, expected %.17g\n", what, is, should);
    return true;
}

static int run(Bug bug) {
    Lane *lane = lane_new(4096), *other = lane_new(4096);
    const unsigned blocks = gpu_blocks(POINTS, TILE);
    std::vector<float> x(POINTS), line(32), back(32);
    std::vector<double> total(blocks);
    unsigned long long whole = 0;
    double sum = 0;
    for (int i = 0; i < POINTS; i++)
        sum += x[(size_t)i] = (float)(i % 17 - 5);
    float *device_x = (float *)gpu_copy_of(x.data(), POINTS * sizeof(float));
    double *device_total = (double *)dev_alloc(blocks * sizeof(double));
    unsigned long long *device_whole = (unsigned long long *)gpu_copy_of(&whole, sizeof whole);
    const size_t shared = bug == TOO_MUCH_SHARED ? 228 << 10 : TILE * sizeof(float);
    gpu_launch(pairs, blocks, TILE, shared, lane->stream, device_total, device_whole,
               bug == HOST_POINTER ? x.data() : device_x, POINTS, bug);
    lane_download(lane, total.data(), device_total, blocks * sizeof(double));
    lane_download(lane, &whole, device_whole, sizeof whole);
    float *from = (float *)lane_memory(lane), *to = (float *)lane_memory(other);
    lane_copy(lane, from, device_x, 32 * sizeof(float));
    if (bug != OTHER_STREAM_NOT_WAITED_FOR)
        lane_sync(lane);
    gpu_launch(reverse, 1, 32, 0, other->stream, to, from, bug);
    if (bug == HOST_POINTER_IN_STRUCT)
        gpu_launch(column, 1, 32, 0, other->stream, to, Column{x.data()});
    if (bug == WRONG_DIRECTION)
        lane_download(other, from, to, 4);
    lane_download(other, back.data(), to, 32 * sizeof(float));
    if (bug == WAIT_IN_RECORDING)
        GPU_OK(cudaStreamBeginCapture(lane->stream, cudaStreamCaptureModeThreadLocal));
    if (bug != NO_SYNC)
        lane_sync(other);
    lane_sync(lane);
    double all = 0;
    for (double t : total)
        all += t;
    bool bad = wrong("the sum", all, sum * sum) || wrong("the count", (double)whole, POINTS);
    for (int i = 0; i < 32; i++)
        bad = bad || wrong("an element", back[(size_t)i], x[(size_t)(31 - i)]);
    if (bug == HOST_READS_DEVICE)
        bad = wrong("device memory", device_x[0], 7);
    dev_free(device_x);
    dev_free(device_total);
    dev_free(device_whole);
    lane_free(other);
    lane_free(lane);
    return bad ? 3 : 0;
}

/* ---- The table -------------------------------------------------------------------------------------------------- */

/* Whether the process noticed; *line: what it said. */
static bool noticed(const char *program, int bug, int seed, char line[160]) {
    int pipe_ends[2];
    if (pipe(pipe_ends) != 0)
        abort();
    const pid_t child = fork();
    if (child == 0) {
        char number[16];
        snprintf(number, sizeof number, "%d", seed);
        setenv("CUDAHOST_SEED", number, 1);
        setenv("CUDAHOST_NO_LINES", "1", 1);
        dup2(pipe_ends[1], 2);
        close(pipe_ends[0]);
        execl(program, program, table[bug].name, (char *)nullptr);
        _exit(127);
    }
    close(pipe_ends[1]);
    FILE *said = fdopen(pipe_ends[0], "r");
    char text[1000];
    while (fgets(text, sizeof text, said))
        if (strstr(text, "cudahost:") || strstr(text, "cnnscope:") || strstr(text, "ERROR: AddressSanitizer") ||
            strstr(text, "wrong result"))
            snprintf(line, 160, "%.*s", (int)strcspn(text, "\n"), text);
    fclose(said);
    int status = 0;
    waitpid(child, &status, 0);
    return status != 0;
}

int main(int count, char **arguments) {
    enum { SEEDS = 5 };
    for (int bug = 0; count > 1 && bug < BUGS; bug++)
        if (strcmp(arguments[1], table[bug].name) == 0) {
            dev_start(0, 1);
            return run((Bug)bug);
        }
    int failures = 0;
    printf("%s build, times noticed with %d seeds:\n", build, SEEDS);
    for (int bug = 0; bug < BUGS; bug++) {
        char line[160] = "";
        int times = 0;
        for (int seed = 1; seed <= SEEDS; seed++)
            times += noticed(arguments[0], bug, seed, line);
        const Found want = expected(bug);
        const bool right = want == ALWAYS ? times == SEEDS : want == SOMETIMES ? times > 0 : bug > 0 || times == 0;
        printf("%-28s %d %s  %s\n", table[bug].name, times, right ? "ok  " : "FAIL", line);
        failures += !right;
    }
    return failures != 0;
}
