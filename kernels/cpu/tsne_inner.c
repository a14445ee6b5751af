/* tsne_inner.c: the innermost loops of t-SNE, compiled for three levels of vectors; the best one the processor has is
 * chosen when the program runs. They are written once, in tsne_map.inc and tsne_rows.inc, and give the same bits at
 * every level (simd.h). */
#include "tsne_inner.h"

#include <stddef.h>

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#define ISA(name) tsne_##name##_avx512
#define SIMD_BYTES 64
#include "tsne_level.inc"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define ISA(name) tsne_##name##_avx2
#define SIMD_BYTES 32
#include "tsne_level.inc"
#pragma GCC pop_options

#endif

#define ISA(name) tsne_##name##_base
#define SIMD_BYTES 16
#include "tsne_level.inc"

const TsneInner *tsne_inner(void) {
#if defined(__x86_64__)
    const int level = dev_isa(); /* less than what the processor has after dev_limit_isa */
    if (level >= 3 && __builtin_cpu_supports("x86-64-v4"))
        return &tsne_loops_avx512;
    if (level >= 2 && __builtin_cpu_supports("x86-64-v3"))
        return &tsne_loops_avx2;
#endif
    return &tsne_loops_base;
}
