/* simd.h: vectors of floats in plain C, and the few functions of t-SNE on them.
 *
 * Included once for each level of instructions, inside a region compiled for it (tsne_inner.c): ISA(name) is a function
 * or type of that level, SIMD_BYTES its vector. Sixteen rows are worked on together, as PARTS vectors of LANES floats.
 * Every operation is elementwise and every fused multiply-add is written as one, so that all levels, and machines
 * without vectors, give the same bits. No function of libm: its versions differ in the last bit.
 *
 * Errors, measured over all float32 of one period: reciprocal 0.523 ulp (mean -6e-10; 0.65 % not the nearest float),
 * reciprocal root 1.00 ulp (mean -2e-10), exponential 0.89 ulp (mean -5e-10). */
#define V ISA(V)
#define VI ISA(VI)
#define LANES (SIMD_BYTES / (int)sizeof(float))
#define PARTS (16 / LANES)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float V __attribute__((vector_size(SIMD_BYTES)));
typedef int32_t VI __attribute__((vector_size(SIMD_BYTES)));
typedef float ISA(VUnaligned) __attribute__((vector_size(SIMD_BYTES), aligned(4), may_alias));

INLINE V ISA(all)(float value) {
    return value - (V){0};
}

INLINE V ISA(load)(const float *from) {
    return *(const ISA(VUnaligned) *)from;
}

INLINE void ISA(store)(float *to, V value) {
    *(ISA(VUnaligned) *)to = value;
}

/* By name where there is one: in long functions the compiler leaves some of the plain loops as they are. */
INLINE V ISA(fma)(V a, V b, V c) {
#if SIMD_BYTES == 64
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif SIMD_BYTES == 32
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    V r;
    UNROLL for (int l = 0; l < LANES; l++) r[l] = __builtin_fmaf(a[l], b[l], c[l]);
    return r;
#endif
}

/* c - a b */
INLINE V ISA(fnma)(V a, V b, V c) {
#if SIMD_BYTES == 64
    return (V)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif SIMD_BYTES == 32
    return (V)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return ISA(fma)(-a, b, c);
#endif
}

/* 1/d. Subtracting the bits from a constant gives 1/d to 6 %; a quadratic, whose three constants (with the first) were
 * fitted to the least largest error, leaves 3.8e-5, and one Newton step the rounding. Half the time of a division on
 * cores that divide 16 floats in 16 cycles. */
INLINE V ISA(reciprocal)(V d) {
    V r = (V)(0x7ef2a547 - (VI)d);
    V u = ISA(fma)(d, r, ISA(all)(-1.50101563f));
    r *= ISA(fma)(u, u, ISA(all)(0.748987252f));
    V error = ISA(fnma)(d, r, ISA(all)(1.0f));
    return ISA(fma)(r, error, r);
}

/* d^(-1/2), likewise; 2.0e-5 before the Newton step. */
INLINE V ISA(reciprocal_root)(V d) {
    V r = (V)(0x5f111089 - ((VI)d >> 1));
    V u = ISA(fma)(d, r * r, ISA(all)(-1.12665237f));
    r *= ISA(fma)(u, u, ISA(all)(1.01317292f));
    V error = ISA(fnma)(d * r, r, ISA(all)(1.0f));
    return ISA(fma)(0.5f * r, error, r);
}

/* e^-t for t >= 0; past 80 it stays at e^-80 = 2e-35, so that no product of it is subnormal. */
INLINE V ISA(exp_minus)(V t) {
    VI small = t < 80.0f;
    t = (V)(((VI)t & small) | ((VI)ISA(all)(80.0f) & ~small));
    V shifted = ISA(fma)(t, ISA(all)(-1.44269504f), ISA(all)(12582912.0f)); /* 1.5 * 2^23: rounds to a whole number */
    V n = shifted - 12582912.0f;
    V r = ISA(fma)(n, ISA(all)(-0.693145752f), -t); /* ln 2 in two parts, the first with 9 trailing zero bits */
    r = ISA(fma)(n, ISA(all)(-1.42860677e-06f), r);
    V p = ISA(all)(1.0f / 5040);
    p = ISA(fma)(p, r, ISA(all)(1.0f / 720));
    p = ISA(fma)(p, r, ISA(all)(1.0f / 120));
    p = ISA(fma)(p, r, ISA(all)(1.0f / 24));
    p = ISA(fma)(p, r, ISA(all)(1.0f / 6));
    p = ISA(fma)(p, r, ISA(all)(0.5f));
    p = ISA(fma)(p, r, ISA(all)(1.0f));
    p = ISA(fma)(p, r, ISA(all)(1.0f));
    return (V)((VI)p + ((VI)shifted << 23));
}

/* ln x for normal x > 0: x = m 2^k with m in [0.707, 1.414), and the series of ln m in s = (m - 1) / (m + 1). Finite,
 * and so harmless where multiplied by zero, for x = 0. */
INLINE V ISA(log)(V x) {
    VI bits = (VI)x - 0x3f3504f3;
    VI exponent = bits >> 23;
    V m = (V)((bits & 0x007fffff) + 0x3f3504f3);
    V k = __builtin_convertvector(exponent, V);
    V s = (m - 1.0f) / (m + 1.0f), q = s * s;
    V p = ISA(all)(2.0f / 9);
    p = ISA(fma)(p, q, ISA(all)(2.0f / 7));
    p = ISA(fma)(p, q, ISA(all)(2.0f / 5));
    p = ISA(fma)(p, q, ISA(all)(2.0f / 3));
    p = ISA(fma)(p, q, ISA(all)(2.0f));
    return ISA(fma)(k, ISA(all)(0.693147182f), p * s);
}

/* Sixteen lanes move down by 1 or 2 places, the first ones to the end. */
INLINE void ISA(rotate)(V *v, const int places) {
    V first = v[0];
    VI next;
    UNROLL for (int l = 0; l < LANES; l++) next[l] = l + places;
    UNROLL for (int h = 0; h < PARTS; h++) v[h] = __builtin_shuffle(v[h], h + 1 < PARTS ? v[h + 1] : first, next);
}
