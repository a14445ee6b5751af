/* bench_kernels.c: the speed of each operation's kernels beside what this machine could do.
 *
 *     build/bench_kernels          a table: the cases of kernel_cases.h, forward and backward, on one thread
 *     build/bench_kernels --peak   only what all cores reach together, as JSON (for scripts/bench.py)
 *
 * The bounds are measured at the start: multiply-adds on registers, and reading memory far larger than the caches (one
 * core's share is its own, measured alone). Convolutions and linear layers are compared with the multiply-adds, the
 * rest with bytes read and written once at that speed: more than 100 % says that the values stayed in a cache. */
#include <omp.h>
#include <string.h>

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
static void peaks(double *flops, double *bytes, int threads) {
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
    *flops = all_flops;
    *bytes = all_bytes;
}

/* Least seconds of a call, over at least LEAST_SECONDS of calls. */
static double seconds_of(Lane *lane, const Fast *f, const Laid *l, void (*step)(Lane *, const Fast *, const Laid *)) {
    double least = 1e9;
    step(lane, f, l);
    for (double spent = 0; spent < LEAST_SECONDS;) {
        double start = omp_get_wtime();
        step(lane, f, l);
        lane_sync(lane);
        double seconds = omp_get_wtime() - start;
        least = seconds < least ? seconds : least;
        spent += seconds;
    }
    return least;
}

static void time_case(const Case *c, Layout layout, double flops, double bytes) {
    Bench b = bench_new(c, false);
    Fast f = fast_new(&b, layout, BATCH_TIMED);
    Lane *lane = lane_new(laid_bytes(&f));
    const Laid l = lay(lane, &f, b.x, b.dy);
    const double seconds[] = {seconds_of(lane, &f, &l, fast_forward), seconds_of(lane, &f, &l, fast_backward)};
    const ConvShape w = b.node.window;
    double adds = 0, moved = (double)BATCH_TIMED * (double)(b.in_size + b.out_size) * sizeof(float);
    if (c->op == OP_CONV)
        adds = 2.0 * BATCH_TIMED * (double)b.out_size * w.in_channels * w.kernel_height * w.kernel_width;
    if (c->op == OP_LINEAR)
        adds = 2.0 * BATCH_TIMED * (double)b.in_size * (double)b.out_size;
    for (int i = 0; i < 2; i++)
        printf("%-8s %-7s %9.4f ms  %8.1f %s  %4.0f %%  %s\n", i ? "backward" : "forward",
               f.in == LAYOUT_PLAIN ? "plain" : "blocked", 1e3 * seconds[i], (adds ? adds : moved) / seconds[i] / 1e9,
               adds ? "GFLOP/s" : "GB/s   ", 100 * (adds ? adds / flops : moved / bytes) / seconds[i], b.name);
    lane_free(lane);
    fast_free(&f);
    bench_free(&b);
}

int main(int count, char **arguments) {
    double flops, bytes;
    if (count > 1 && strcmp(arguments[1], "--peak") == 0) {
        peaks(&flops, &bytes, omp_get_max_threads());
        printf("{\"gflops\": %.1f, \"gbytes\": %.2f, \"threads\": %d}\n", flops / 1e9, bytes / 1e9,
               omp_get_max_threads());
        return 0;
    }
    dev_start(0, 1);
    peaks(&flops, &bytes, 1);
    printf("one core: %.1f GFLOP/s of multiply-adds, %.2f GB/s read from memory; %d samples a call\n", flops / 1e9,
           bytes / 1e9, BATCH_TIMED);
    for (int i = 0; i < CASES; i++)
        for (int layout = LAYOUT_PLAIN; layout <= LAYOUT_BLOCKED; layout++)
            time_case(&cases[i], (Layout)layout, flops, bytes);
    return 0;
}
