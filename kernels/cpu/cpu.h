/* cpu.h: what the CPU kernels share among themselves; no caller outside of kernels/cpu includes it. */
#ifndef CNNSCOPE_CPU_H
#define CNNSCOPE_CPU_H

#include <dnnl.h>

#include "failure.h"
#include "kernels.h"

/* Compiles a function once for each level of vectors and chooses when the program starts. Results are the same bits at
 * every level: loops over lanes are elementwise, sums have one order, and multiply-adds that are fused say so. */
#ifdef __x86_64__
#define CPU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CPU_CLONES
#endif

int cpu_threads(void); /* given to dev_start */

/* Whether this processor divides vectors beside its other arithmetic, and adds beside its multiply-adds: AMD's Zen. Where
 * it does, t-SNE's forces in 2-D are divided, multiplied and added one after the other, rounding otherwise than where it
 * does not; dev_core names it, and so ranks of both kinds are refused. Not a question of the level of instructions: forced
 * to another level, a processor gives the same bits. */
bool cpu_divides(void);

/* A blocked value is (groups of CPU_GROUP samples, ceil(C / width), H, W, width); a plain one is the same with width 1.
 * Channels added by rounding up hold zeros. The samples added hold anything. */
enum { CPU_GROUP = 4, CPU_WIDTH_MAX = 16 };
int cpu_width(Layout layout);                                /* 1, or oneDNN's block at this level: 8 or 16 */
int64_t cpu_sample_size(Layout layout, int C, int H, int W); /* floats of one sample */
static inline int cpu_rounded(int count, int to) {
    return (count + to - 1) / to * to;
}

/* affine.c: one number of each channel (C), with zeros up to whole blocks of width; for dev_free. */
float *cpu_channels(const float *values, int C, int width);

/* oneDNN: one engine per process, one stream per lane. Primitives are made and run with OpenMP set to one thread, so
 * that neither their blocking nor their sums know how many threads there are: cpu_one_thread gives the number to give
 * back to cpu_threads_back. */
dnnl_engine_t cpu_engine(void);
dnnl_stream_t cpu_stream(const Lane *lane);
int cpu_one_thread(void);
void cpu_threads_back(int threads);
void cpu_check(dnnl_status_t status, const char *what); /* fails unless dnnl_success */

/* conv_few.c: din plain (batch, in_channels, in_height, in_width), in_channels <= FEW_CHANNELS, from dout blocked, with
 * neither groups nor dilation. */
enum { FEW_CHANNELS = 3 };
typedef struct Few Few;
Few *cpu_few_new(const ConvShape *shape, const float *weight);
void cpu_few_free(Few *few);
void cpu_few_backward(const Few *few, float *din, const float *dout, const ConvShape *shape, int batch);

#endif
