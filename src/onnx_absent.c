/* onnx_absent.c: in place of the other onnx_*.c files where protobuf-c or onnx.proto is missing. */
#include "error.h"
#include "onnx.h"

static _Noreturn void absent(const char *path) {
    die("%s: is an .onnx file, and cnnscope was built without ONNX: install protobuf-c and onnx.proto (Debian: "
        "libprotobuf-c-dev protobuf-c-compiler libonnx-dev) and build again",
        path);
}

/* The same test as in onnx_file.c: field 1 (ir_version), a number, comes first. */
bool onnx_is(const void *bytes, size_t size) {
    return size > 2 && ((const unsigned char *)bytes)[0] == 0x08 && ((const unsigned char *)bytes)[1] < 0x80;
}

OnnxNetwork onnx_read(Arena *arena, const void *bytes, size_t size, const char *path, const OnnxWish *wish) {
    (void)arena, (void)bytes, (void)size, (void)wish;
    absent(path);
}

Shape onnx_print(const void *bytes, size_t size, const char *path, Shape nominal) {
    (void)bytes, (void)size, (void)nominal;
    absent(path);
}
