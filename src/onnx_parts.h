/* onnx_parts.h: what the onnx*.c files share; nobody else includes it. */
#ifndef CNNSCOPE_ONNX_PARTS_H
#define CNNSCOPE_ONNX_PARTS_H

#include <limits.h>
#include <stdint.h>

#include "error.h"
#include "onnx.h"
#include "onnx.pb-c.h"

enum { ONNX_RANK = 8 };

/* In a folded shape: the size of the batch, whatever it is. */
#define ONNX_BATCH INT64_MIN

/* A value known at load. */
typedef struct {
    const char *name; /* of the initialiser; "" for a computed one */
    bool whole;       /* integers or truth values, in ints; else floats */
    int rank;
    int64_t dim[ONNX_RANK], size;
    int64_t per_sample; /* if not 0: dimension 0 is the batch, image i's numbers are these plus i times this */
    int64_t *ints;      /* NULL until onnx_ints or onnx_floats reads them from proto */
    float *floats;
    Onnx__TensorProto *proto;
} OnnxConstant;

/* A name of the file and what it stands for. */
typedef struct {
    const char *name;
    OnnxConstant *constant; /* or NULL: */
    int node;               /* of the graph; NONE while nothing has made it */
    int flat;               /* if not 0: the graph node whose values, of all images, are strung together here */
    int uses;               /* by nodes that run */
    int maker;              /* index of the ONNX node that makes it; NONE for inputs and initialisers */
} OnnxValue;

enum { NONE = -1 };

typedef struct {
    Arena *arena;
    const char *path;
    const OnnxWish *wish;
    Onnx__ModelProto *model;
    Onnx__GraphProto *file; /* its graph */
    int opset;
    uint64_t budget; /* bytes that computed constants may still take */
    Graph *graph;

    OnnxValue *values;
    int *slots; /* hash table of indices into values */
    int value_count, slot_count;
    int64_t batch; /* fixed in the file, or ONNX_BATCH */

    const char **taken; /* hash table of layer names */
    int taken_count;
    int output;              /* value that becomes the logits */
    const char *output_name; /* see OnnxNetwork */
    bool *done;              /* of each ONNX node: runs not, or was made with an earlier one */
} Onnx;

/* ---- onnx_file.c ----------------------------------------------------------------------------------------------- */

/* Takes the file apart; free with onnx_file_close (a die() between leaks it, which an ending run can afford). */
Onnx__ModelProto *onnx_file_open(const void *bytes, size_t size, const char *path);
void onnx_file_close(Onnx__ModelProto *model);
int onnx_file_opset(const Onnx__ModelProto *model, const char *path); /* dies unless it is one we know */

/* A tensor of the file; its numbers are not read yet. Dies when dimensions, type or data do not fit together. */
OnnxConstant *onnx_tensor(Onnx *onnx, Onnx__TensorProto *proto);
/* Its numbers, read on first use (the file's copy is then freed). onnx_floats dies on numbers that float32 does not
 * hold; onnx_ints dies unless they are whole numbers. */
const float *onnx_floats(Onnx *onnx, OnnxConstant *constant);
const int64_t *onnx_ints(Onnx *onnx, OnnxConstant *constant);
/* A computed constant, zeros. Dies when the file computes more than its share of memory. */
OnnxConstant *onnx_constant_new(Onnx *onnx, bool whole, int rank, const int64_t *dim);

/* ---- onnx_names.c ---------------------------------------------------------------------------------------------- */

void onnx_values_init(Onnx *onnx);
int onnx_value_find(const Onnx *onnx, const char *name); /* or NONE */
int onnx_value_add(Onnx *onnx, const char *name);        /* dies when the name is taken */
/* A layer's name: of the weight, else of the node; part is added where a node becomes several. */
const char *onnx_layer_name(Onnx *onnx, const Onnx__NodeProto *node, const OnnxConstant *weight, const char *part);
/* What a message calls a node: "Conv node /conv1/Conv". */
const char *onnx_node_text(const Onnx *onnx, const Onnx__NodeProto *node);
const char *onnx_shape_text(char text[64], const OnnxConstant *constant);

/* ---- onnx_node.c: a node's attributes and inputs ---------------------------------------------------------------- */

/* Dies with the file, the node, and this text: what was found and what was expected. */
_Noreturn void onnx_refuse(const Onnx *onnx, const Onnx__NodeProto *node, const char *format, ...) PRINTF_LIKE(3, 4);

const Onnx__AttributeProto *onnx_attribute(const Onnx__NodeProto *node, const char *name); /* or NULL */
int64_t onnx_int(const Onnx *onnx, const Onnx__NodeProto *node, const char *name, int64_t otherwise);
float onnx_float(const Onnx *onnx, const Onnx__NodeProto *node, const char *name, float otherwise);
bool onnx_text_is(const Onnx__NodeProto *node, const char *name, const char *text, bool otherwise);
const char *onnx_text(const Onnx *onnx, const Onnx__NodeProto *node, const char *name, const char *otherwise);
/* A list of integers; NULL and count 0 when it is not there. */
const int64_t *onnx_list(const Onnx__NodeProto *node, const char *name, int *count);

bool onnx_has(const Onnx__NodeProto *node, int input); /* given, and not the empty name */
OnnxValue *onnx_input(const Onnx *onnx, const Onnx__NodeProto *node, int input);
/* Graph node of an input; dies when it is a constant. */
int onnx_flow(const Onnx *onnx, const Onnx__NodeProto *node, int input);
Shape onnx_flow_shape(const Onnx *onnx, const Onnx__NodeProto *node, int input);
/* An input that must be known at load; NULL when it is not given. */
OnnxConstant *onnx_known(const Onnx *onnx, const Onnx__NodeProto *node, int input);
/* Dies on a constant with per_sample, but for nodes of the few operations that know of it. */
void onnx_same_for_all(const Onnx *onnx, const Onnx__NodeProto *node, const OnnxConstant *constant);
const int64_t *onnx_known_ints(Onnx *onnx, const Onnx__NodeProto *node, int input, int *count);
float onnx_known_float(Onnx *onnx, const Onnx__NodeProto *node, int input, float otherwise); /* one number */
/* A list given as attribute in old opsets and as input in newer ones: whichever is there; NULL when neither is. */
const int64_t *onnx_list_or_input(Onnx *onnx, const Onnx__NodeProto *node, const char *name, int input, int *count);
/* An axis of a value of that rank, batch counted, from 0; negative ones count from the end. */
int onnx_axis(const Onnx *onnx, const Onnx__NodeProto *node, int64_t axis, int rank);
/* Likewise, of one sample: the batch is refused. rank is that of the sample. */
int onnx_sample_axis(const Onnx *onnx, const Onnx__NodeProto *node, int64_t axis, int rank);

/* Adds a node that makes output 0 of `node` (or gives an inner one, output NONE). inputs: `count` graph nodes. */
int onnx_emit(Onnx *onnx, const Onnx__NodeProto *node, int output, Node made, int count, const int *inputs);
void onnx_alias(Onnx *onnx, const Onnx__NodeProto *node, int output, int graph_node);
void onnx_define(Onnx *onnx, const Onnx__NodeProto *node, OnnxConstant *constant); /* output 0 is known */
/* inputs[0] in another shape of equal size; nothing is added when it has it already. */
int onnx_reshape(Onnx *onnx, const Onnx__NodeProto *node, int output, int input, Shape target);

/* ---- Operations ------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    void (*build)(Onnx *onnx, const Onnx__NodeProto *node);
} OnnxOp;

const OnnxOp *onnx_op_find(const Onnx__NodeProto *node);   /* on images; NULL: not supported */
const OnnxOp *onnx_op_nn(const char *name);                /* onnx_ops_nn.c: windows, norms, products */
const OnnxOp *onnx_op_math(const char *name);              /* onnx_ops_math.c: number by number */
const OnnxOp *onnx_op_shape(const char *name);             /* onnx_ops_shape.c: what moves numbers */
const OnnxOp *onnx_fold_find(const Onnx__NodeProto *node); /* onnx_fold.c: all inputs known at load */

/* Output 0 is that shape, or the part of it that a Shape node asks for. */
void onnx_define_shape(Onnx *onnx, const Onnx__NodeProto *node, int rank, const int64_t *dim);

/* From start, end and step as ONNX gives them, for an axis of `size`: first index and count. */
void onnx_slice_range(int64_t *first, int64_t *count, int64_t size, int64_t start, int64_t end, int64_t step);

#endif
