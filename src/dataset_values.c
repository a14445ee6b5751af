/* dataset_values.c: numbers as files hold them: sizes and names of types, byte order, conversions, finiteness. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "dataset_format.h"

static const struct {
    size_t bytes;
    const char *name;
} types[] = {
    [DT_U8] = {1, "uint8"},    [DT_I8] = {1, "int8"},       [DT_U16] = {2, "uint16"},  [DT_I16] = {2, "int16"},
    [DT_U32] = {4, "uint32"},  [DT_I32] = {4, "int32"},     [DT_U64] = {8, "uint64"},  [DT_I64] = {8, "int64"},
    [DT_F16] = {2, "float16"}, [DT_BF16] = {2, "bfloat16"}, [DT_F32] = {4, "float32"}, [DT_F64] = {8, "float64"},
    [DT_BOOL] = {1, "bool"},
};

size_t dtype_bytes(DType dtype) {
    return types[dtype].bytes;
}

const char *dtype_name(DType dtype) {
    return types[dtype].name;
}

/* CASE(DT_I16, int16_t) converts count elements of that C type. */
#define CASE(dtype_, type, result)                                                                                     \
    case dtype_:                                                                                                       \
        for (int64_t i = 0; i < count; i++)                                                                            \
            out[i] = (result)((const type *)in)[i];                                                                    \
        break

void dataset_to_float(float *out, const void *in, DType dtype, int64_t count) {
    switch (dtype) {
        CASE(DT_BOOL, uint8_t, float);
        CASE(DT_U8, uint8_t, float);
        CASE(DT_I8, int8_t, float);
        CASE(DT_U16, uint16_t, float);
        CASE(DT_I16, int16_t, float);
        CASE(DT_U32, uint32_t, float);
        CASE(DT_I32, int32_t, float);
        CASE(DT_U64, uint64_t, float);
        CASE(DT_I64, int64_t, float);
        CASE(DT_F32, float, float);
        CASE(DT_F64, double, float);
    case DT_F16:
        for (int64_t i = 0; i < count; i++)
            out[i] = dataset_half_to_float(((const uint16_t *)in)[i]);
        break;
    case DT_BF16:
        for (int64_t i = 0; i < count; i++) {
            uint32_t bits = (uint32_t)((const uint16_t *)in)[i] << 16;
            memcpy(&out[i], &bits, sizeof bits);
        }
        break;
    }
}

static void floats_to_int64(int64_t *out, const void *in, DType dtype, int64_t count, const Dataset *dataset,
                            int64_t first) {
    for (int64_t i = 0; i < count; i++) {
        double value = dataset_value(in, dtype, i);
        if (!(value >= -0x1p63 && value < 0x1p63) || value != trunc(value))
            die("%s: sample %lld is %g; expected a whole number", dataset->spec, (long long)(first + i), value);
        out[i] = (int64_t)value;
    }
}

void dataset_to_int64(int64_t *out, const void *in, DType dtype, int64_t count, const Dataset *dataset, int64_t first) {
    switch (dtype) {
        CASE(DT_BOOL, uint8_t, int64_t);
        CASE(DT_U8, uint8_t, int64_t);
        CASE(DT_I8, int8_t, int64_t);
        CASE(DT_U16, uint16_t, int64_t);
        CASE(DT_I16, int16_t, int64_t);
        CASE(DT_U32, uint32_t, int64_t);
        CASE(DT_I32, int32_t, int64_t);
        CASE(DT_I64, int64_t, int64_t);
    case DT_U64:
        for (int64_t i = 0; i < count; i++) {
            uint64_t value = ((const uint64_t *)in)[i];
            if (value > INT64_MAX)
                die("%s: sample %lld is %llu, more than an int64 holds", dataset->spec, (long long)(first + i),
                    (unsigned long long)value);
            out[i] = (int64_t)value;
        }
        break;
    case DT_F16:
    case DT_BF16:
    case DT_F32:
    case DT_F64: floats_to_int64(out, in, dtype, count, dataset, first); break;
    }
}

void dataset_swap(void *values, size_t element, int64_t count) {
    if (element == 2)
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)values)[i] = __builtin_bswap16(((uint16_t *)values)[i]);
    else if (element == 4)
        for (int64_t i = 0; i < count; i++)
            ((uint32_t *)values)[i] = __builtin_bswap32(((uint32_t *)values)[i]);
    else if (element == 8)
        for (int64_t i = 0; i < count; i++)
            ((uint64_t *)values)[i] = __builtin_bswap64(((uint64_t *)values)[i]);
}

int64_t dataset_first_bad(const void *values, DType dtype, int64_t count) {
    bool bad = false; /* looked at without a branch first: nearly always there is none */
    if (dtype == DT_F16)
        for (int64_t i = 0; i < count; i++)
            bad |= (((const uint16_t *)values)[i] & 0x7c00) == 0x7c00;
    else if (dtype == DT_F32)
        for (int64_t i = 0; i < count; i++)
            bad |= (((const uint32_t *)values)[i] & 0x7f800000) == 0x7f800000;
    else if (dtype == DT_F64)
        for (int64_t i = 0; i < count; i++)
            bad |= !(fabs(((const double *)values)[i]) <= (double)FLT_MAX);
    for (int64_t i = 0; bad && i < count; i++)
        if (!(fabs(dataset_value(values, dtype, i)) <= (double)FLT_MAX))
            return i;
    return -1;
}

/* IEEE binary16: 1 sign, 5 exponent, 10 fraction bits. Exact, subnormal numbers included. */
float dataset_half_to_float(uint16_t half) {
    int exponent = half >> 10 & 31, fraction = half & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                 : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                                : ldexpf((float)fraction, -24);
    return half >> 15 ? -size : size;
}

double dataset_value(const void *values, DType dtype, int64_t index) {
    if (dtype == DT_F64)
        return ((const double *)values)[index];
    float value;
    dataset_to_float(&value, (const char *)values + (size_t)index * dtype_bytes(dtype), dtype, 1);
    return value;
}
