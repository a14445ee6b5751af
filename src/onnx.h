/* onnx.h: a network from an .onnx file, as a Graph. Opsets 7 to 21; weights inside the file or beside it.
 *
 * onnx_file.c takes the file apart (protobuf-c, from the onnx.proto of the ONNX package), onnx_tensor.c reads its
 * numbers; onnx_fold.c computes at load what depends on no image (shapes above all); onnx_ops_*.c turn the other
 * operations into nodes of the graph, and onnx_names.c names them. Without protobuf-c the program is built with
 * onnx_absent.c, which says so.
 *
 * A file may be hostile: sizes, indices, nesting and paths are checked, and reading takes no more memory than three
 * times the file (external data included) and 64 MiB, but for weights that ConstantOfShape fills with one number: a
 * few bytes stand for a whole network then (the ONNX package's light_*.onnx), up to 1 GiB. */
#ifndef CNNSCOPE_ONNX_H
#define CNNSCOPE_ONNX_H

#include "graph.h"
#include "sha256.h"

typedef struct {
    Shape input;             /* of one image, (C, H, W); any shape for tests */
    const char *logits_node; /* --logits-node: the node or value taken as the network's output; NULL: chosen here */
    bool as_is;              /* for tests: the output as it stands, whatever its shape, Softmax included */
    Sha256 *hash;            /* external data is added as it is read; NULL: not wanted */
} OnnxWish;

typedef struct {
    Graph *graph;            /* the output is called "logits" */
    const char *output_name; /* what its layer would be called otherwise, as fc */
} OnnxNetwork;

/* Told by content: whether the bytes begin as a serialised ModelProto does. */
bool onnx_is(const void *bytes, size_t size);

/* The network in `bytes`, the whole file; path is for messages and for the folder that external data lies in. The
 * batch is dimension 0 of every value, symbolic or of any fixed size. A layer is named after its weight without
 * ".weight", else after its node; names are unique, '.' and '_' taken as one. Dies with all operations that are not
 * supported in one line; when the batch is mixed with other dimensions; when the output is not a vector. */
OnnxNetwork onnx_read(Arena *arena, const void *bytes, size_t size, const char *path, const OnnxWish *wish);

/* For `cnnscope inspect`: prints what the file is and holds, and gives the shape of an image; free dimensions are
 * taken from `nominal`. */
Shape onnx_print(const void *bytes, size_t size, const char *path, Shape nominal);

#endif
