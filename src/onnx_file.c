/* onnx_file.c: an .onnx file as protobuf-c's structures.
 *
 * protobuf-c recurses without a limit and allocates whatever a file's few bytes call for, so the nesting is walked
 * first, and it gets an allocator that stops at a budget. It copies the weights; onnx_tensor.c frees that copy tensor
 * by tensor. */
#include <stdlib.h>
#include <string.h>

#include "onnx_parts.h"

enum { DEEPEST = 32, OLDEST_OPSET = 7, NEWEST_OPSET = 21, HEAD = 64 };
static const uint64_t SPARE_BYTES = (uint64_t)32 << 20;

bool onnx_is(const void *bytes, size_t size) {
    return size > 2 && ((const unsigned char *)bytes)[0] == 0x08 && ((const unsigned char *)bytes)[1] < 0x80;
}

/* ---- Taking the file apart -------------------------------------------------------------------------------------- */

/* A varint at *at; false when it does not end before `end`. */
static bool varint(uint64_t *value, const uint8_t **at, const uint8_t *end) {
    *value = 0;
    for (int shift = 0; *at < end && shift < 64; shift += 7) {
        *value |= (uint64_t)(**at & 0x7f) << shift;
        if (*(*at)++ < 0x80)
            return true;
    }
    return false;
}

/* Whether the messages in these bytes are nested no deeper than `depth` and none ends beyond its parent. */
static bool well_nested(const ProtobufCMessageDescriptor *type, const uint8_t *at, const uint8_t *end, int depth) {
    while (at < end) {
        uint64_t tag, length;
        if (!varint(&tag, &at, end))
            return false;
        switch (tag & 7) {
        case PROTOBUF_C_WIRE_TYPE_VARINT:
            if (!varint(&length, &at, end))
                return false;
            continue;
        case PROTOBUF_C_WIRE_TYPE_64BIT: length = 8; break;
        case PROTOBUF_C_WIRE_TYPE_32BIT: length = 4; break;
        case PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED:
            if (!varint(&length, &at, end))
                return false;
            break;
        default: return false;
        }
        if (length > (uint64_t)(end - at))
            return false;
        const ProtobufCFieldDescriptor *field =
            tag >> 3 > UINT32_MAX ? NULL : protobuf_c_message_descriptor_get_field(type, (unsigned)(tag >> 3));
        if ((tag & 7) == PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED && field && field->type == PROTOBUF_C_TYPE_MESSAGE &&
            (depth == 0 || !well_nested(field->descriptor, at, at + length, depth - 1)))
            return false;
        at += length;
    }
    return true;
}

typedef struct {
    uint64_t left;
    bool short_of;
} Budget;

static void *budget_alloc(void *context, size_t size) {
    Budget *budget = context;
    if (size + HEAD > budget->left) {
        budget->short_of = true;
        return NULL;
    }
    budget->left -= size + HEAD;
    return malloc(size);
}

static void budget_free(void *context, void *block) {
    (void)context;
    free(block);
}

Onnx__ModelProto *onnx_file_open(const void *bytes, size_t size, const char *path) {
    const uint8_t *at = bytes;
    if (!well_nested(&onnx__model_proto__descriptor, at, at + size, DEEPEST))
        die("%s: is not a whole .onnx file (a message of it ends beyond its parent, or is nested too deep), expected a "
            "serialised ModelProto: it was cut short or damaged; copy or export it again",
            path);
    Budget budget = {.left = size + SPARE_BYTES};
    ProtobufCAllocator allocator = {.alloc = budget_alloc, .free = budget_free, .allocator_data = &budget};
    Onnx__ModelProto *model = onnx__model_proto__unpack(&allocator, size, bytes);
    if (!model && budget.short_of)
        die("%s: would take far more memory than its %zu bytes, expected a network: it is damaged", path, size);
    if (!model || !model->graph)
        die("%s: is not a whole .onnx file, expected a serialised ModelProto with a graph: it was cut short or "
            "damaged; copy or export it again",
            path);
    return model;
}

void onnx_file_close(Onnx__ModelProto *model) {
    onnx__model_proto__free_unpacked(model, NULL);
}

int onnx_file_opset(const Onnx__ModelProto *model, const char *path) {
    int64_t opset = 1; /* where a file of the first version does not say */
    for (size_t i = 0; i < model->n_opset_import; i++) {
        const Onnx__OperatorSetIdProto *set = model->opset_import[i];
        if (!set->domain || !set->domain[0] || !strcmp(set->domain, "ai.onnx"))
            opset = set->has_version ? set->version : 1;
    }
    if (opset < OLDEST_OPSET || opset > NEWEST_OPSET)
        die("%s: is of ONNX opset %lld, expected %d to %d: export it again with opset_version=17", path,
            (long long)opset, OLDEST_OPSET, NEWEST_OPSET);
    return (int)opset;
}
