/* tsne_inner.c: the innermost loops of t-SNE and of neighbours, compiled for three levels of vectors; the best one the
 * processor has is chosen when the program runs. They are written once, in tsne_map.inc, tsne_rows.inc, tsne_cells.inc,
 * neighbors.inc and place.inc, and give the same bits at every level (simd.h). */
#include "tsne_inner.h"

#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>

/* Of eight lanes, chosen by the bits of the first index: which of the packed values goes to each of them. */
#define PLACES_1(m) {0, (m) & 1, BITS(m, 3), BITS(m, 7), BITS(m, 15), BITS(m, 31), BITS(m, 63), BITS(m, 127)}
#define PLACES_4(m) PLACES_1(m), PLACES_1((m) + 1), PLACES_1((m) + 2), PLACES_1((m) + 3)
#define PLACES_16(m) PLACES_4(m), PLACES_4((m) + 4), PLACES_4((m) + 8), PLACES_4((m) + 12)
#define PLACES_64(m) PLACES_16(m), PLACES_16((m) + 16), PLACES_16((m) + 32), PLACES_16((m) + 48)
#define BITS(m, lanes) __builtin_popcount((m) & (lanes))
static const uint8_t packed_place[256][8] = {PLACES_64(0), PLACES_64(64), PLACES_64(128), PLACES_64(192)};

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
