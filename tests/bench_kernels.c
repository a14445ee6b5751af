/* bench_kernels.c: the speed of every kernel beside what this machine could do.
 *
 *     build/bench_kernels          a table, on one thread: the cases of kernel_cases.h, those of op_cases.h (bench_ops.c),
 *                                  forward and backward; all others (bench_rest.c, bench_maps.c)
 *     build/bench_kernels --peak   only what all cores reach together, as JSON (for scripts/bench.py)
 *
 * The bounds are measured at the start: multiply-adds on registers, and reading memory far larger than the caches (one
 * core's share is its own, measured alone). Convolutions and linear layers are compared with the multiply-adds, the
 * rest with bytes read and written once at that speed: more than 100 % says that the values stayed in a cache. */
#include <omp.h>
#include <string.h>

#include "../kernels/cpu/cpu.h"
#include "bench.h"
#include "kernel_cases.h"

enum { CHAINS = 16, ROUNDS = 1 << 18, MEMORY = 256 << 20, BATCH_TIMED = 8 };
static const double LEAST_SECONDS = 0.02;
static volatile float sink;

/* Enough independent chains to hide the latency of a multiply-add; all levels of vectors, by the compiler. */
__attribute__((noinline)) static double multiply_adds(void) {
    enum { LANES = 16 };
    float sum[CHAINS][LANES] = {{0}}, a[LANES], b[LANES];
    for (int l = 0; l < LANES; l++)
        a[l] = 0.999f + 1e-4f * (float)l, b[l] = 1e-3f;
    double start = omp_get_wtime();
    for (int r = 0; r < ROUNDS; r++)
        for (int c = 0; c < CHAINS; c++)
#pragma omp simd
            for (int l = 0; l < LANES; l++)
                sum[c][l] = __builtin_fmaf(sum[c][l], a[l], b[l]);
    double seconds = omp_get_wtime() - start;
    for (int c = 0; c < CHAINS; c++)
        sink = sum[c][c % LANES];
    return 2.0 * ROUNDS * CHAINS * LANES / seconds;
}

static double bytes_read(const float *memory) {
    double start = omp_get_wtime();
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < MEMORY / sizeof *memory; i++)
        sum += memory[i];
    sink = sum;
    return MEMORY / (omp_get_wtime() - start);
}

/* Sums over `threads` threads of the best of five. */
static void peaks(Peak *peak, int threads) {
    double all_flops = 0, all_bytes = 0;
#pragma omp parallel num_threads(threads) reduction(+ : all_flops, all_bytes)
    {
        float *memory = need(MEMORY);
        memset(memory, 1, MEMORY);
        double best[2] = {0};
        for (int i = 0; i < 5; i++) {
#pragma omp barrier
            double f = multiply_adds(), b = bytes_read(memory);
            best[0] = f > best[0] ? f : best[0];
            best[1] = b > best[1] ? b : best[1];
        }
        all_flops = best[0];
        all_bytes = best[1];
        free(memory);
    }
    *peak = (Peak){all_flops, all_bytes};
}

/* 2 differences, 2 for the distance, 6 for the reciprocal, 2 for the square and the sum, 4 for two forces. Zen adds in
 * units of their own: the 7 additions there take longer than 5 multiplications and, beside them, a division. */
int bench_pair_operations(void) {
    return cpu_divides() ? 7 : 16;
}

/* Of a pair whose two directions are computed one by one: twice 2 differences, 2 for the distance, 6 for the
 * reciprocal, 2 for the square and the sum, 2 for the force; on Zen twice 5 of its multiplications, and the division, which
 * takes their units for the time of 2. */
int bench_two_way_operations(void) {
    return cpu_divides() ? 14 : 28;
}

/* 2 differences, 1 product, 4 for two forces; of those on Zen 6 additions. */
int bench_pull_operations(void) {
    return cpu_divides() ? 6 : 7;
}

double bench_seconds(void (*step)(void *), void *what) {
    double least = 1e9;
    step(what);
    for (double spent = 0; spent < LEAST_SECONDS;) {
        double start = omp_get_wtime();
        step(what);
        double seconds = omp_get_wtime() - start;
        least = seconds < least ? seconds : least;
        spent += seconds;
    }
    return least;
}

void bench_line(const char *pass, const char *layout, const char *name, double seconds, double flops, double bytes,
                const Peak *peak) {
    const bool computes = flops / peak->flops > bytes / peak->bytes;
    printf("%-8s %-7s %9.4f ms  %8.1f %s  %4.0f %%  %s\n", pass, layout, 1e3 * seconds,
           (computes ? flops : bytes) / seconds / 1e9, computes ? "GFLOP/s" : "GB/s   ",
           100 * (computes ? flops / peak->flops : bytes / peak->bytes) / seconds, name);
}

typedef struct {
    Lane *lane;
    const Fast *fast;
    const Laid *laid;
    void (*pass)(Lane *, const Fast *, const Laid *);
} Step;

static void one_pass(void *what) {
    const Step *step = what;
    step->pass(step->lane, step->fast, step->laid);
    lane_sync(step->lane);
}

static void time_case(const Case *c, Layout layout, const Peak *peak) {
    Bench b = bench_new(c, false);
    Fast f = fast_new(&b, layout, BATCH_TIMED);
    Lane *lane = lane_new(laid_bytes(&f));
    const Laid l = lay(lane, &f, b.x, b.dy);
    const ConvShape w = b.node.window;
    double flops = 0;
    if (c->op == OP_CONV)
        flops = 2.0 * BATCH_TIMED * (double)b.out_size * w.in_channels * w.kernel_height * w.kernel_width;
    if (c->op == OP_LINEAR)
        flops = 2.0 * BATCH_TIMED * (double)b.in_size * (double)b.out_size;
    const double bytes = flops > 0 ? 0 : (double)BATCH_TIMED * (double)(b.in_size + b.out_size) * sizeof(float);
    Step forward = {lane, &f, &l, fast_forward}, backward = {lane, &f, &l, fast_backward};
    const char *laid = f.in == LAYOUT_PLAIN ? "plain" : "blocked";
    bench_line("forward", laid, b.name, bench_seconds(one_pass, &forward), flops, bytes, peak);
    bench_line("backward", laid, b.name, bench_seconds(one_pass, &backward), flops, bytes, peak);
    lane_free(lane);
    fast_free(&f);
    bench_free(&b);
}

int main(int count, char **arguments) {
    Peak peak;
    if (count > 1 && strcmp(arguments[1], "--peak") == 0) {
        peaks(&peak, omp_get_max_threads());
        printf("{\"gflops\": %.1f, \"gbytes\": %.2f, \"threads\": %d, \"pair_operations\": %d}\n", peak.flops / 1e9,
               peak.bytes / 1e9, omp_get_max_threads(), bench_pair_operations());
        return 0;
    }
    dev_start(0, 1);
    peaks(&peak, 1);
    printf("one core: %.1f GFLOP/s of multiply-adds, %.2f GB/s read from memory; %d samples a call\n", peak.flops / 1e9,
           peak.bytes / 1e9, BATCH_TIMED);
    for (int i = 0; i < CASES; i++)
        for (int layout = LAYOUT_PLAIN; layout <= LAYOUT_BLOCKED; layout++)
            time_case(&cases[i], (Layout)layout, &peak);
    bench_ops(&peak);
    bench_rest(&peak);
    bench_maps(&peak);
    return 0;
}
