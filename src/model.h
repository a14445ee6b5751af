/* model.h: a trained network, from any of the files users have, as one Graph. */
#ifndef CNNSCOPE_MODEL_H
#define CNNSCOPE_MODEL_H

#include "graph.h"

typedef struct {
    Graph *graph;
    const char *output_name; /* what the output layer is called in the file, as fc */
    char sha256[65];         /* of the file (and its external data), hexadecimal */
} Model;

/* The network in `bytes`, the whole file, told by content. `file` is the arena they lie in: taken over, and freed as
 * soon as nothing needs them, so that reading takes at most 3 times the file, the result included (float16 weights
 * become twice as large). input: the images' (C, H, W). An .onnx file gives the graph
 * it holds (onnx.h; logits_node, or NULL, is --logits-node). A .pth or .safetensors must hold the notebook's CNN: conv1, bn1, relu1,
 * pool1, conv2, bn2, relu2, pool2, gap, fc, with sizes read from the tensors' shapes (padding kernel / 2). The output
 * layer's node is called "logits"; its own name (fc) means the same to model_layer. Dies naming the missing, misshapen
 * or non-finite tensor, or the node that cannot be run. */
Model *model_open(Arena *arena, Arena *file, const void *bytes, size_t size, const char *path, Shape input,
                  const char *logits_node);

/* Node index of the layer called `name` (module path, '.' and '_' alike). Exits 2, listing the layers, when there is
 * none; `option` is named in that message. */
int model_layer(const Model *model, const char *name, const char *option);

/* `cnnscope inspect --model FILE`: prints tensors, layers and shapes to stdout, and writes the graph in the DOT language
 * to the file `dot` (NULL: not wanted), which may exist only with overwrite; no MPI. */
void model_inspect(const char *path, const char *dot, bool overwrite);

#endif
