/* onnx_tensor.c: the numbers of an .onnx file's tensors, inside the file or beside it, and of constants computed at
 * load. A tensor is read when it is first used; the parser's copy of it is freed there and then. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dataset.h"
#include "dataset_format.h"
#include "onnx_parts.h"

static size_t element_bytes(int type) {
    switch (type) {
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT8:
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT8:
    case ONNX__TENSOR_PROTO__DATA_TYPE__BOOL: return 1;
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT16:
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT16:
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16:
    case ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16: return 2;
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT:
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT32:
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT32: return 4;
    case ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE:
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT64:
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT64: return 8;
    default: return 0;
    }
}

static bool is_floating(int type) {
    return type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT || type == ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE ||
           type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16 || type == ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16;
}

static bool set_shape(OnnxConstant *constant, size_t rank, const int64_t *dim) {
    if (rank > ONNX_RANK)
        return false;
    constant->rank = (int)rank;
    constant->size = 1;
    for (size_t d = 0; d < rank; d++) {
        constant->dim[d] = dim[d];
        if (dim[d] < 0 || __builtin_mul_overflow(constant->size, dim[d], &constant->size) ||
            constant->size > INT64_MAX / 8)
            return false;
    }
    return true;
}

const char *onnx_shape_text(char text[64], const OnnxConstant *constant) {
    int used = snprintf(text, 64, "(");
    for (int d = 0; d < constant->rank && used < 40; d++)
        used += snprintf(text + used, (size_t)(64 - used), "%s%lld", d ? ", " : "", (long long)constant->dim[d]);
    snprintf(text + used, (size_t)(64 - used), ")");
    return text;
}

static bool is_external(const Onnx__TensorProto *proto) {
    return proto->has_data_location && proto->data_location == ONNX__TENSOR_PROTO__DATA_LOCATION__EXTERNAL;
}

/* Elements in the field that this type's numbers are kept in; -1 where it has no such field. */
static int64_t typed_count(const Onnx__TensorProto *t) {
    switch (t->data_type) {
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT: return (int64_t)t->n_float_data;
    case ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE: return (int64_t)t->n_double_data;
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT64: return (int64_t)t->n_int64_data;
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT32:
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT64: return (int64_t)t->n_uint64_data;
    default: return (int64_t)t->n_int32_data;
    }
}

OnnxConstant *onnx_tensor(Onnx *onnx, Onnx__TensorProto *proto) {
    OnnxConstant *constant = ARENA_ARRAY(onnx->arena, OnnxConstant, 1, onnx->path);
    constant->name = proto->name ? arena_printf(onnx->arena, "%s", proto->name) : "";
    constant->proto = proto;
    const size_t bytes = element_bytes(proto->data_type);
    if (!proto->has_data_type || !bytes)
        die("%s: tensor %s is of ONNX type %d, expected numbers of 8 to 64 bits: export the network in float32",
            onnx->path, constant->name, proto->data_type);
    constant->whole = !is_floating(proto->data_type);
    if (!set_shape(constant, proto->n_dims, proto->dims))
        die("%s: tensor %s has %zu dimensions of sizes no array has, expected %d at most: the file is damaged",
            onnx->path, constant->name, proto->n_dims, ONNX_RANK);
    char text[64];
    if (!is_external(proto) && (proto->has_raw_data ? proto->raw_data.len != (uint64_t)constant->size * bytes
                                                    : typed_count(proto) != constant->size))
        die("%s: tensor %s of shape %s has %lld bytes or numbers, expected %lld numbers of %zu bytes: the file is "
            "damaged",
            onnx->path, constant->name, onnx_shape_text(text, constant),
            (long long)(proto->has_raw_data ? (int64_t)proto->raw_data.len : typed_count(proto)),
            (long long)constant->size, bytes);
    return constant;
}

static OnnxConstant *computed(Onnx *onnx, uint64_t *budget, bool whole, int rank, const int64_t *dim) {
    OnnxConstant *constant = ARENA_ARRAY(onnx->arena, OnnxConstant, 1, onnx->path);
    constant->name = "";
    constant->whole = whole;
    uint64_t bytes = 0;
    if (!set_shape(constant, (size_t)rank, dim) || (bytes = (uint64_t)constant->size * (whole ? 8 : 4) + 256) > *budget)
        die("%s: computes a constant of shape %s, expected one that takes no more memory than the file: it is damaged, "
            "or computes what should be kept in it",
            onnx->path, onnx_shape_text((char[64]){0}, constant));
    *budget -= bytes;
    if (whole)
        constant->ints = ARENA_ARRAY(onnx->arena, int64_t, constant->size, onnx->path);
    else
        constant->floats = ARENA_ARRAY(onnx->arena, float, constant->size, onnx->path);
    return constant;
}

OnnxConstant *onnx_constant_new(Onnx *onnx, bool whole, int rank, const int64_t *dim) {
    return computed(onnx, &onnx->budget, whole, rank, dim);
}

OnnxConstant *onnx_constant_filled(Onnx *onnx, OnnxConstant *value, int rank, const int64_t *dim) {
    OnnxConstant *constant = computed(onnx, &onnx->fill_budget, value && value->whole, rank, dim);
    for (int64_t i = 0; value && i < constant->size; i++)
        if (constant->whole)
            constant->ints[i] = onnx_ints(onnx, value)[0];
        else
            constant->floats[i] = onnx_floats(onnx, value)[0];
    return constant;
}

/* ---- External data ---------------------------------------------------------------------------------------------- */

static const char *external_entry(const Onnx__TensorProto *proto, const char *key) {
    for (size_t i = 0; i < proto->n_external_data; i++)
        if (proto->external_data[i]->key && !strcmp(proto->external_data[i]->key, key))
            return proto->external_data[i]->value;
    return NULL;
}

static uint64_t external_number(const Onnx *onnx, const OnnxConstant *constant, const char *key, uint64_t otherwise) {
    const char *text = external_entry(constant->proto, key);
    if (!text)
        return otherwise;
    char *end;
    unsigned long long number = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || number > INT64_MAX)
        die("%s: tensor %s has the external %s %s, expected a number: the file is damaged", onnx->path, constant->name,
            key, text);
    return number;
}

/* The file it names, which has to lie in the model's folder, links followed. */
static char *external_path(const Onnx *onnx, const OnnxConstant *constant) {
    const char *location = external_entry(constant->proto, "location");
    const char *slash = strrchr(onnx->path, '/');
    bool leaves = !location || !location[0] || location[0] == '/' || !strcmp(location, "..") ||
                  !strncmp(location, "../", 3) || strstr(location, "/../");
    size_t length = location ? strlen(location) : 0;
    leaves = leaves || (length > 3 && !strcmp(location + length - 3, "/.."));
    char *path = arena_printf(onnx->arena, "%.*s%s", slash ? (int)(slash - onnx->path) + 1 : 0, onnx->path,
                              location ? location : "");
    if (!leaves) {
        char *folder =
            arena_printf(onnx->arena, "%.*s", slash ? (int)(slash - onnx->path) + 1 : 1, slash ? onnx->path : ".");
        char *real_folder = realpath(folder, NULL), *real = realpath(path, NULL);
        size_t head = real_folder ? strlen(real_folder) : 0;
        leaves = real && real_folder && (strncmp(real, real_folder, head) != 0 || (head > 1 && real[head] != '/'));
        free(real_folder);
        free(real);
    }
    if (leaves)
        die("%s: tensor %s lies in the external file %s, expected one in the model's own folder: do not trust this "
            "file, or move its data beside it",
            onnx->path, constant->name, location ? location : "(without a name)");
    return path;
}

static void *external_bytes(const Onnx *onnx, const OnnxConstant *constant, size_t bytes) {
    const char *path = external_path(onnx, constant);
    uint64_t size, offset = external_number(onnx, constant, "offset", 0);
    uint64_t length = external_number(onnx, constant, "length", bytes);
    int fd = dataset_file_open(path, &size);
    if (length != bytes || offset > size || bytes > size - offset) {
        close(fd);
        die("%s: tensor %s of %s is said to be %llu bytes from byte %llu of %s (%llu bytes), expected %zu bytes inside "
            "it: the files do not belong together, or one was cut short",
            onnx->path, constant->name, onnx_shape_text((char[64]){0}, constant), (unsigned long long)length,
            (unsigned long long)offset, path, (unsigned long long)size, bytes);
    }
    void *data = malloc(bytes ? bytes : 1);
    int64_t got = data ? dataset_file_read(fd, data, bytes, offset) : -1;
    close(fd);
    if (got != (int64_t)bytes)
        die("%s: %zu bytes cannot be read from byte %llu", path, bytes, (unsigned long long)offset);
    if (onnx->wish->hash)
        sha256_add(onnx->wish->hash, data, bytes);
    return data;
}

/* ---- Numbers ---------------------------------------------------------------------------------------------------- */

static double number_at(int type, const void *data, int64_t i) {
    switch (type) {
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT8:
    case ONNX__TENSOR_PROTO__DATA_TYPE__BOOL: return ((const uint8_t *)data)[i];
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT8: return ((const int8_t *)data)[i];
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT16: return ((const uint16_t *)data)[i];
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT16: return ((const int16_t *)data)[i];
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16: return dataset_half_to_float(((const uint16_t *)data)[i]);
    case ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16: {
        uint32_t wide = (uint32_t)((const uint16_t *)data)[i] << 16;
        float value;
        memcpy(&value, &wide, sizeof value);
        return value;
    }
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT: return ((const float *)data)[i];
    case ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE: return ((const double *)data)[i];
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT32: return ((const int32_t *)data)[i];
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT32: return ((const uint32_t *)data)[i];
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT64: return (double)((const uint64_t *)data)[i];
    default: return (double)((const int64_t *)data)[i];
    }
}

/* In the typed fields a number of 16 bits or fewer takes an int32, a uint32 a uint64. */
static double typed_at(const Onnx__TensorProto *t, int64_t i) {
    switch (t->data_type) {
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT: return t->float_data[i];
    case ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE: return t->double_data[i];
    case ONNX__TENSOR_PROTO__DATA_TYPE__INT64: return (double)t->int64_data[i];
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT32:
    case ONNX__TENSOR_PROTO__DATA_TYPE__UINT64: return (double)t->uint64_data[i];
    case ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16:
    case ONNX__TENSOR_PROTO__DATA_TYPE__BFLOAT16: {
        uint16_t half = (uint16_t)t->int32_data[i];
        return number_at(t->data_type, &half, 0);
    }
    default: return t->int32_data[i];
    }
}

static void release(Onnx__TensorProto *proto) {
    free(proto->raw_data.data);
    free(proto->float_data);
    free(proto->double_data);
    free(proto->int64_data);
    proto->raw_data.data = NULL;
    proto->float_data = NULL;
    proto->double_data = NULL;
    proto->int64_data = NULL;
    proto->raw_data.len = proto->n_float_data = proto->n_double_data = proto->n_int64_data = 0;
}

static void read_numbers(Onnx *onnx, OnnxConstant *constant) {
    Onnx__TensorProto *proto = constant->proto;
    const int type = proto->data_type;
    const size_t bytes = (size_t)constant->size * element_bytes(type);
    void *external = is_external(proto) ? external_bytes(onnx, constant, bytes) : NULL;
    const void *raw = external ? external : proto->has_raw_data ? (const void *)proto->raw_data.data : NULL;
    const bool is_raw = external || proto->has_raw_data;
    if (constant->whole)
        constant->ints = ARENA_ARRAY(onnx->arena, int64_t, constant->size, constant->name);
    else
        constant->floats = ARENA_ARRAY(onnx->arena, float, constant->size, constant->name);
    if (is_raw && type == ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT && bytes)
        memcpy(constant->floats, raw, bytes);
    else if (is_raw && type == ONNX__TENSOR_PROTO__DATA_TYPE__INT64 && bytes)
        memcpy(constant->ints, raw, bytes);
    else
        for (int64_t i = 0; i < constant->size; i++) {
            double value = is_raw ? number_at(type, raw, i) : typed_at(proto, i);
            if (!constant->whole)
                constant->floats[i] = (float)value;
            else if (!is_raw && type == ONNX__TENSOR_PROTO__DATA_TYPE__INT64)
                constant->ints[i] = proto->int64_data[i];
            else
                constant->ints[i] = value < 9e18 ? (int64_t)value : INT64_MAX;
        }
    for (int64_t i = 0; constant->whole && i < constant->size; i++)
        if (constant->ints[i] == ONNX_BATCH) /* "to the end, downwards" in a Slice; the number stands for the batch */
            constant->ints[i]++;
    free(external);
    release(proto);
}

const int64_t *onnx_ints(Onnx *onnx, OnnxConstant *constant) {
    if (!constant->ints && !constant->floats)
        read_numbers(onnx, constant);
    if (!constant->ints)
        die("%s: tensor %s holds floating-point numbers, expected whole ones", onnx->path, constant->name);
    return constant->ints;
}

const float *onnx_floats(Onnx *onnx, OnnxConstant *constant) {
    if (constant->floats)
        return constant->floats;
    if (!constant->ints)
        read_numbers(onnx, constant);
    if (constant->floats) {
        for (int64_t i = 0; i < constant->size && !onnx->wish->as_is; i++)
            if (isnan(constant->floats[i]))
                die("%s: tensor %s holds NaN at place %lld, expected float32 numbers: the training diverged or the "
                    "file is damaged",
                    onnx->path, constant->name, (long long)i);
        return constant->floats;
    }
    OnnxConstant *floats = onnx_constant_new(onnx, false, constant->rank, constant->dim);
    for (int64_t i = 0; i < constant->size; i++)
        floats->floats[i] = (float)constant->ints[i];
    constant->floats = floats->floats;
    return constant->floats;
}
