/* bench.h: what the files of bench_kernels share. */
#ifndef CNNSCOPE_BENCH_H
#define CNNSCOPE_BENCH_H

#include <stdint.h>

/* What one core reaches, measured at the start: operations a second (a multiply-add is two), bytes read from memory. */
typedef struct {
    double flops, bytes;
} Peak;

/* Operations of the repulsion of a pair of points, of that in two ways one by one, and more of its attraction, that only one
 * kind of unit of this processor can do: their bounds. */
int bench_pair_operations(void);
int bench_two_way_operations(void);
int bench_pull_operations(void);

/* Device memory (count) with random numbers from -size to size. */
float *bench_numbers(int64_t count, double size);

/* Least seconds of a call of step(what), over at least 0.02 s of calls. */
double bench_seconds(void (*step)(void *), void *what);

/* One line: the larger of the two shares of the peak is the fraction of the bound. flops or bytes 0: not counted. */
void bench_line(const char *pass, const char *layout, const char *name, double seconds, double flops, double bytes,
                const Peak *peak);

void bench_ops(const Peak *peak);  /* bench_ops.c: every operation of op_cases.h */
void bench_maps(const Peak *peak); /* bench_maps.c: attribution, evidence, placing */
void bench_rest(const Peak *peak); /* bench_rest.c: pixels, maps, PCA, t-SNE, neighbours */

#endif
