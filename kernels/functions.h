/* functions.h: the elementwise functions and their slopes, for the CPU and for CUDA; first exponential, hyperbolic and
 * error functions of one float32, without branches and without libm.
 *
 * Loops over these become vectors, and every fused multiply-add is written as one, so that all levels of instructions,
 * and all versions of libm, give the same bits. The polynomials are least-largest-error fits in double, of the error
 * given relative to the function. NaN gives NaN. Largest errors measured against double are in test_ops.c. */
#ifndef CNNSCOPE_FUNCTIONS_H
#define CNNSCOPE_FUNCTIONS_H

#include "shared.h"

ON_BOTH float bits_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

ON_BOTH uint32_t float_as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

ON_BOTH float fmadd(float a, float b, float c) {
    return fmaf(a, b, c);
}

ON_BOTH float absolute(float x) {
    return bits_as_float(float_as_bits(x) & 0x7fffffffu);
}

ON_BOTH float with_sign(float magnitude, float sign) {
    return bits_as_float(float_as_bits(magnitude) | (float_as_bits(sign) & 0x80000000u));
}

/* x = n ln 2 + r, |r| <= ln 2 / 2; gives e^r - 1 (5e-11). |x| < 2^21. */
ON_BOTH float reduced(float x, uint32_t *n) {
    const float shifted = fmadd(x, 1.44269504f, 12582912.0f); /* 1.5 * 2^23: rounds to a whole number */
    const float k = shifted - 12582912.0f;
    *n = float_as_bits(shifted) - 0x4b400000u;
    float r = fmadd(k, -0.693145752f, x); /* ln 2 in two parts, the first with 9 trailing zero bits */
    r = fmadd(k, -1.42860677e-06f, r);
    float p = fmadd(0.000199168688f, r, 0.00139460736f);
    p = fmadd(p, r, 0.00833326671f);
    p = fmadd(p, r, 0.0416662693f);
    p = fmadd(p, r, 0.166666672f);
    p = fmadd(p, r, 0.5f);
    return fmadd(r * r, p, r);
}

ON_BOTH float power_of_two(uint32_t n) { /* -126 to 127 */
    return bits_as_float((n + 127u) << 23);
}

ON_BOTH float exponential(float x) {
    uint32_t n;
    x = x < -104.0f ? -104.0f : x; /* 0 */
    x = x > 89.0f ? 89.0f : x;     /* infinite */
    const float y = 1.0f + reduced(x, &n);
    const uint32_t half = (uint32_t)((int32_t)n >> 1); /* 2^n itself may be beyond float32 */
    return y * power_of_two(half) * power_of_two(n - half);
}

/* e^x - 1 for x <= 0; 0 above. */
ON_BOTH float exponential_minus_1(float x) {
    uint32_t n;
    x = x < -40.0f ? -40.0f : x; /* -1 */
    x = x > 0.0f ? 0.0f : x;
    const float y = reduced(x, &n), scale = power_of_two(n);
    return fmadd(scale, y, scale - 1.0f);
}

ON_BOTH float sigmoid(float x) {
    return 1.0f / (1.0f + exponential(-x));
}

ON_BOTH float hyperbolic_tangent(float x) {
    const float a = absolute(x), q = a * a;
    const float large = 1.0f - 2.0f / (exponential(2.0f * a) + 1.0f);
    float p = fmadd(-0.00552862464f, q, 0.0204833057f); /* (tanh a - a) / a^3 for a < 0.65: 6e-9 */
    p = fmadd(p, q, -0.053692963f);
    p = fmadd(p, q, 0.133308992f);
    p = fmadd(p, q, -0.333332628f);
    const float small = fmadd(a * q, p, a);
    return with_sign(a < 0.65f ? small : large, x);
}

ON_BOTH float error_function(float x) {
    float a = absolute(x);
    a = a > 4.0f ? 4.0f : a; /* 1 - 2e-8 */
    const float q = a * a;
    float p = fmadd(8.79441868e-05f, q, -0.000823626469f); /* erf a / a - 1 for a < 0.86: 2e-10 */
    p = fmadd(p, q, 0.00520873349f);
    p = fmadd(p, q, -0.0268623047f);
    p = fmadd(p, q, 0.112837449f);
    p = fmadd(p, q, -0.376126379f);
    p = fmadd(p, q, 0.128379166f);
    const float small = fmadd(a, p, a);
    float l = fmadd(0.000201489951f, a, -0.00309726503f); /* ln(1 - erf a) + a^2 for 0.86 to 4: 2e-9 of erf */
    l = fmadd(l, a, 0.022440562f);
    l = fmadd(l, a, -0.104370765f);
    l = fmadd(l, a, 0.363313198f);
    l = fmadd(l, a, -1.12796664f);
    l = fmadd(l, a, -0.000126062499f);
    const float large = 1.0f - exponential(l - q);
    return with_sign(a < 0.86f ? small : large, x);
}

/* ln(1 + e^x) = max(x, 0) + ln(1 + y), y = e^-|x|, by the series in s = y / (2 + y). */
ON_BOTH float soft_plus(float x) {
    const float y = exponential(-absolute(x)), s = y / (2.0f + y), q = s * s;
    float p = fmadd(0.217923969f, q, 0.171478495f); /* (ln((1 + s) / (1 - s)) - 2 s) / s^3: 6e-12 */
    p = fmadd(p, q, 0.22301501f);
    p = fmadd(p, q, 0.28568396f);
    p = fmadd(p, q, 0.400000542f);
    p = fmadd(p, q, 0.666666687f);
    const float rest = fmadd(s * q, p, 2.0f * s);
    return (x > 0.0f ? x : 0.0f) + rest;
}

/* ---- Of one value, and its slope ---------------------------------------------------------------------------------- */

static const float ROOT_HALF = 0.70710678f, ROOT_2_OVER_PI = 0.79788456f, DENSITY = 0.39894228f, CUBE = 0.044715f;

ON_BOTH float value_of(KFunction f, const KUnary *u, float x) {
    switch (f) {
    case K_CLIP: return x < u->low ? u->low : x > u->high ? u->high : x;
    case K_LEAKY_RELU: return x > 0 ? x : x * u->alpha;
    case K_ELU: return x > 0 ? x : u->alpha * exponential_minus_1(x);
    case K_SELU: return u->beta * (x > 0 ? x : u->alpha * exponential_minus_1(x));
    case K_SIGMOID: return sigmoid(x);
    case K_HARD_SIGMOID: {
        const float y = u->alpha * x + u->beta;
        return y < 0 ? 0 : y > 1 ? 1 : y;
    }
    case K_HARD_SWISH: return x <= -3 ? 0 : x >= 3 ? x : x * (x + 3) / 6;
    case K_TANH: return hyperbolic_tangent(x);
    case K_SOFTPLUS: return soft_plus(x);
    case K_GELU: return 0.5f * x * (1 + error_function(x * ROOT_HALF));
    case K_GELU_TANH: return 0.5f * x * (1 + hyperbolic_tangent(ROOT_2_OVER_PI * (x + CUBE * x * x * x)));
    case K_ERF: return error_function(x);
    case K_SQRT: return sqrtf(x);
    case K_EXP: return exponential(x);
    case K_LOG: return logf(x);
    case K_NEG: return -x;
    case K_ABS: return fabsf(x);
    case K_RECIPROCAL: return 1 / x;
    case K_POW: return powf(x, u->alpha);
    }
    return x;
}

ON_BOTH float slope_of(KFunction f, const KUnary *u, float x) {
    switch (f) {
    case K_CLIP: return (x > u->low) & (x < u->high) ? 1 : 0; /* as PyTorch's relu6 and hardtanh at the bounds */
    case K_LEAKY_RELU: return x > 0 ? 1 : u->alpha;
    case K_ELU: return x > 0 ? 1 : u->alpha * exponential(x);
    case K_SELU: return u->beta * (x > 0 ? 1 : u->alpha * exponential(x));
    case K_SIGMOID: {
        const float y = sigmoid(x);
        return y * (1 - y);
    }
    case K_HARD_SIGMOID: {
        const float y = u->alpha * x + u->beta;
        return y > 0 && y < 1 ? u->alpha : 0;
    }
    case K_HARD_SWISH: return x <= -3 ? 0 : x >= 3 ? 1 : x / 3 + 0.5f;
    case K_TANH: {
        const float y = hyperbolic_tangent(x);
        return 1 - y * y;
    }
    case K_SOFTPLUS: return sigmoid(x);
    case K_GELU: return 0.5f * (1 + error_function(x * ROOT_HALF)) + x * DENSITY * exponential(-0.5f * x * x);
    case K_GELU_TANH: {
        const float t = hyperbolic_tangent(ROOT_2_OVER_PI * (x + CUBE * x * x * x));
        return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * ROOT_2_OVER_PI * (1 + 3 * CUBE * x * x);
    }
    case K_ERF: return 2 * ROOT_HALF * ROOT_2_OVER_PI * exponential(-x * x);
    case K_SQRT: return 0.5f / sqrtf(x);
    case K_EXP: return exponential(x);
    case K_LOG: return 1 / x;
    case K_NEG: return -1;
    case K_ABS: return x > 0 ? 1 : x < 0 ? -1 : 0;
    case K_RECIPROCAL: return -1 / (x * x);
    case K_POW: return u->alpha * powf(x, u->alpha - 1);
    }
    return 1;
}

/* ---- Of two values ------------------------------------------------------------------------------------------------ */

ON_BOTH float result(KBinaryKind kind, float a, float b) {
    switch (kind) {
    case K_ADD: return a + b;
    case K_SUB: return a - b;
    case K_MUL: return a * b;
    case K_DIV: return a / b;
    case K_PRELU: return a > 0 ? a : a * b;
    case K_LESS: return a < b;
    case K_LESS_EQUAL: return a <= b;
    case K_EQUAL: return a == b;
    case K_WHERE: return a != 0 ? b : 0;
    case K_WHERE_NOT: return a != 0 ? 0 : b;
    }
    return 0;
}

/* Share of g = dout that goes to a (side 0) or b (side 1). */
ON_BOTH float share(KBinaryKind kind, int side, float g, float a, float b) {
    switch (kind) {
    case K_ADD: return g;
    case K_SUB: return side == 0 ? g : -g;
    case K_MUL: return g * (side == 0 ? b : a);
    case K_DIV: return side == 0 ? g / b : -g * a / (b * b);
    case K_PRELU: return side == 0 ? (a > 0 ? g : g * b) : a > 0 ? 0 : g * a;
    case K_LESS:
    case K_LESS_EQUAL:
    case K_EQUAL: return 0;
    case K_WHERE: return side == 1 && a != 0 ? g : 0;
    case K_WHERE_NOT: return side == 1 && a == 0 ? g : 0;
    }
    return 0;
}

#endif
