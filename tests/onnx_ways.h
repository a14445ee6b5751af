/* onnx_ways.h: a case of the ONNX suite, and the ways in which it is made a network of images; of test_onnx_suite.c. */
#ifndef CNNSCOPE_ONNX_WAYS_H
#define CNNSCOPE_ONNX_WAYS_H

#include "onnx_parts.h"

enum {
    MOST = 16,
    FILE_OPSET = 7,
    FLOAT = ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT,
    DOUBLE = ONNX__TENSOR_PROTO__DATA_TYPE__DOUBLE,
    HALF = ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT16,
    BOOL = ONNX__TENSOR_PROTO__DATA_TYPE__BOOL,
    INT32 = ONNX__TENSOR_PROTO__DATA_TYPE__INT32,
    INT64 = ONNX__TENSOR_PROTO__DATA_TYPE__INT64
};

typedef struct {
    Arena *arena;
    const char *name, *folder;
    const void *bytes; /* of the model */
    size_t size;
    int opset, count;
    Onnx__GraphProto *graph;         /* as it is in the file */
    Onnx__TensorProto *tensor[MOST]; /* of each input that is no initialiser */
    OnnxConstant *value[MOST];       /* NULL where the type is none of ours */
    const char *input[MOST];         /* its name */
    int outputs;                     /* those to compare: without masks, places of maxima and means */
    Onnx__TensorProto *result[MOST]; /* what they are to be */
    OnnxConstant *expected[MOST];    /* or NULL */
} Case;

/* One way of running a case: a model changed in place, and its image. */
typedef struct {
    Onnx__ModelProto *model;
    Shape image;
    int batch;
    const float *pixels;
} Way;

bool one_of(const char *op, const char *const *list); /* which ends in NULL */

/* The tensor in the case's file WHAT_i.pb, NULL when there is none. */
Onnx__TensorProto *read_tensor(const Case *c, const char *what, int i);

/* Why a file of opset 1 to 6 cannot be raised to 7, or NULL. */
const char *old_form(const Onnx__NodeProto *node);

/* Whether input i can be part of an image; lists of sizes and the like can not. */
bool is_flow(const Case *c, int i);

/* Three ways: input 0 is the images, as the file has it; the inputs in `mask` are parts of one image, cut from a vector
 * and given their shapes; all is known at load, and the image is zeros, to which the output is added. False where the
 * case cannot be run so. */
bool as_batch(const Case *c, Way *way);
bool as_image(const Case *c, Way *way, unsigned mask);
bool as_numbers(const Case *c, Way *way, int output_at);

#endif
