/* model.c: the network of a file: onnx.h reads an .onnx; here, the notebook's CNN from a state_dict, as a Graph.
 *
 * A state_dict holds tensors, not a network: the layers are known by their names and every size is read off the
 * tensors' shapes. What a shape cannot tell is taken from the notebook: stride 1, padding kernel / 2, pooling by 2, eps
 * 1e-5. To be sure that the file is of this network and not of one that only begins like it, a tensor with no place in
 * it is refused as much as a missing one; convolutions and the output layer may be without bias, as PyTorch's may.
 *
 * Batch norm in eval mode is y = x * scale + shift; both are computed here in double and rounded once. */
#include "model.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "dataset.h"
#include "error.h"
#include "onnx.h"
#include "sha256.h"
#include "state.h"

#define BATCH_NORM_EPS 1e-5
#define NETWORK "the notebook's CNN (conv1 bn1 relu1 pool1 conv2 bn2 relu2 pool2 gap fc)"

enum { ANY = -1, SMALLEST_IMAGE = 4 /* two poolings by 2 leave one pixel */, TEXT_BYTES = 256 };

typedef struct {
    int out, in, height, width; /* of the weight: (out, in, height, width) */
    const float *weight, *bias;
} Conv;

typedef struct {
    const float *scale, *shift;
} Norm;

static void check_names(const StateDict *state);
static Graph *build(Arena *arena, const StateDict *state, Shape input);

Model *model_open(Arena *arena, Arena *file, const void *bytes, size_t size, const char *path, Shape input,
                  const char *logits_node) {
    Model *model = ARENA_ARRAY(arena, Model, 1, path);
    if (!safetensors_is(bytes, size, path) && onnx_is(bytes, size)) {
        Sha256 *hash = sha256_begin();
        sha256_add(hash, bytes, size);
        const OnnxWish wish = {.input = input, .logits_node = logits_node, .hash = hash};
        const OnnxNetwork network = onnx_read(arena, bytes, size, path, &wish);
        arena_free(file);
        sha256_end(hash, model->sha256);
        model->graph = network.graph;
        model->output_name = network.output_name;
        return model;
    }
    if (logits_node)
        die_usage("--logits-node %s: %s is not an .onnx file, whose nodes can be named", logits_node, path);
    sha256_hex(model->sha256, bytes, size);
    Arena *weights = arena_new(); /* as they are in the file */
    const bool in_place = safetensors_is(bytes, size, path);
    const StateDict *state = state_read(weights, bytes, size, path);
    check_names(state);
    if (!in_place)
        arena_free(file);
    model->graph = build(arena, state, input);
    model->output_name = "fc";
    arena_free(weights);
    if (in_place)
        arena_free(file);
    return model;
}

static bool same_name(const char *a, const char *b) {
    for (; *a && *b; a++, b++)
        if (*a != *b && !((*a == '.' || *a == '_') && (*b == '.' || *b == '_')))
            return false;
    return *a == *b;
}

int model_layer(const Model *model, const char *name, const char *option) {
    const Graph *graph = model->graph;
    for (int i = 1; i < graph->count; i++)
        if (same_name(graph->nodes[i].name, name))
            return i;
    if (same_name(name, model->output_name))
        return graph->logits;
    char layers[2048] = "";
    for (int i = 1, used = 0; i < graph->count && used < (int)sizeof layers; i++)
        used += snprintf(layers + used, sizeof layers - (size_t)used, "%s%s", i > 1 ? ", " : "", graph->nodes[i].name);
    die_usage("--%s %s: no such layer, expected one of %s", option, name, layers);
}

/* ---- Tensors by name ------------------------------------------------------------------------------------------- */

/* A dimension of -1 stands for any. */
static const char *dims_text(char text[TEXT_BYTES], const int64_t *shape, int rank) {
    int used = snprintf(text, TEXT_BYTES, "(");
    for (int d = 0; d < rank && used < TEXT_BYTES - 24; d++) {
        if (shape[d] == ANY)
            used += snprintf(text + used, (size_t)(TEXT_BYTES - used), "%sany", d ? ", " : "");
        else
            used += snprintf(text + used, (size_t)(TEXT_BYTES - used), "%s%lld", d ? ", " : "", (long long)shape[d]);
    }
    snprintf(text + used, (size_t)(TEXT_BYTES - used), ")");
    return text;
}

static _Noreturn void die_missing(const StateDict *state, const char *name) {
    char found[512] = "no other tensor";
    for (int i = 0, used = 0; i < state->count && i < 4 && used < (int)sizeof found; i++)
        used += snprintf(found + used, sizeof found - (size_t)used, "%s%s", i ? ", " : "", state->tensors[i].name);
    die("%s: tensor %s %s (found %d: %s%s), expected those of " NETWORK ": see cnnscope inspect --model FILE",
        state->path, name, state_why_not(state, name), state->count, found, state->count > 4 ? ", ..." : "");
}

/* Dies unless the tensor `layer`.`part` is there, of a floating type and of this shape. */
static const Tensor *need(const StateDict *state, const char *layer, const char *part, int rank,
                          const int64_t *expected) {
    char name[TEXT_BYTES], found_text[TEXT_BYTES], expected_text[TEXT_BYTES];
    snprintf(name, sizeof name, "%s.%s", layer, part);
    const Tensor *tensor = state_find(state, name);
    if (!tensor)
        die_missing(state, name);
    bool fits = tensor->rank == rank;
    for (int d = 0; d < rank && fits; d++)
        fits = tensor->shape[d] >= 1 && tensor->shape[d] <= INT_MAX &&
               (expected[d] == ANY || tensor->shape[d] == expected[d]);
    if (!fits)
        die("%s: tensor %s has shape %s, expected %s: this is not the state_dict of " NETWORK, state->path, name,
            dims_text(found_text, tensor->shape, tensor->rank), dims_text(expected_text, expected, rank));
    if (tensor->dtype != DT_F32 && tensor->dtype != DT_F64 && tensor->dtype != DT_F16 && tensor->dtype != DT_BF16)
        die("%s: tensor %s is of type %s, expected float32, float64, float16 or bfloat16: save the model before it is "
            "quantized",
            state->path, name, dtype_name(tensor->dtype));
    return tensor;
}

/* False when the tensor is not in the file; dies when something else is there under its name. */
static bool has(const StateDict *state, const char *layer, const char *part) {
    char name[TEXT_BYTES];
    snprintf(name, sizeof name, "%s.%s", layer, part);
    if (state_find(state, name))
        return true;
    if (strcmp(state_why_not(state, name), "is missing") != 0)
        die_missing(state, name);
    return false;
}

static bool has_place(const char *name) {
    static const char *const layers[] = {"conv1", "bn1", "conv2", "bn2", "fc"};
    static const char *const parts[] = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"};
    if (!strcmp(name, "n_averaged")) /* of torch.optim.swa_utils.AveragedModel */
        return true;
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < (layers[i][0] == 'b' ? 5 : 2); j++) {
            size_t length = strlen(layers[i]);
            if (!strncmp(name, layers[i], length) && name[length] == '.' && !strcmp(name + length + 1, parts[j]))
                return true;
        }
    return false;
}

/* Before any shape is looked at: a file of another network is best described by the names it lacks. */
static void check_names(const StateDict *state) {
    static const char *const needed[] = {"conv1.weight",     "bn1.running_mean", "bn1.running_var", "conv2.weight",
                                         "bn2.running_mean", "bn2.running_var",  "fc.weight"};
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
        if (!state_find(state, needed[i]))
            die_missing(state, needed[i]);
    for (int i = 0; i < state->count; i++)
        if (!has_place(state->tensors[i].name))
            die("%s: tensor %s has no place in " NETWORK ", the only one a state_dict can be of: export another "
                "network to ONNX (scripts/export_onnx.py)",
                state->path, state->tensors[i].name);
}

/* ---- Values ---------------------------------------------------------------------------------------------------- */

static double half_value(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value = exponent == 0    ? ldexp(fraction, -24)
                   : exponent == 31 ? (fraction ? NAN : INFINITY)
                                    : ldexp(1024 + fraction, exponent - 25);
    return bits & 0x8000 ? -value : value;
}

static double bfloat16_value(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Element i, of a floating type; dies unless it is a number that a float32 can hold. */
static double value_at(const StateDict *state, const Tensor *tensor, int64_t i) {
    double value;
    float single;
    uint16_t half;
    const char *at = (const char *)tensor->data + (size_t)i * dtype_bytes(tensor->dtype); /* may be unaligned */
    if (tensor->dtype == DT_F64) {
        memcpy(&value, at, sizeof value);
    } else if (tensor->dtype == DT_F32) {
        memcpy(&single, at, sizeof single);
        value = single;
    } else {
        memcpy(&half, at, sizeof half);
        value = tensor->dtype == DT_F16 ? half_value(half) : bfloat16_value(half);
    }
    if (!isfinite((float)value)) {
        int64_t index[8], rest = i;
        char text[TEXT_BYTES];
        for (int d = tensor->rank; d-- > 0; rest /= tensor->shape[d])
            index[d] = rest % tensor->shape[d];
        die("%s: tensor %s holds %g at %s, expected finite float32 numbers: the training diverged or the file is "
            "damaged",
            state->path, tensor->name, value, dims_text(text, index, tensor->rank));
    }
    return value;
}

static const float *floats(Arena *arena, const StateDict *state, const Tensor *tensor) {
    float *values = ARENA_ARRAY(arena, float, tensor->size, tensor->name);
    for (int64_t i = 0; i < tensor->size; i++)
        values[i] = (float)value_at(state, tensor, i);
    return values;
}

static const float *bias_read(Arena *arena, const StateDict *state, const char *layer, int outputs) {
    if (!has(state, layer, "bias"))
        return NULL;
    return floats(arena, state, need(state, layer, "bias", 1, (int64_t[]){outputs}));
}

/* ---- Layers ---------------------------------------------------------------------------------------------------- */

static Conv conv_read(Arena *arena, const StateDict *state, const char *layer, int in_channels) {
    const Tensor *weight = need(state, layer, "weight", 4, (int64_t[]){ANY, in_channels, ANY, ANY});
    Conv conv = {.out = (int)weight->shape[0],
                 .in = (int)weight->shape[1],
                 .height = (int)weight->shape[2],
                 .width = (int)weight->shape[3]};
    if (conv.height % 2 == 0 || conv.width % 2 == 0)
        die("%s: tensor %s has a kernel of %d x %d, expected odd sizes: with padding kernel / 2 an even one would "
            "change the image's size",
            state->path, weight->name, conv.height, conv.width);
    conv.weight = floats(arena, state, weight);
    conv.bias = bias_read(arena, state, layer, conv.out);
    return conv;
}

static Norm norm_read(Arena *arena, const StateDict *state, const char *layer, int channels) {
    const int64_t shape[1] = {channels};
    const Tensor *mean = need(state, layer, "running_mean", 1, shape), *weight = NULL, *bias = NULL;
    const Tensor *variance = need(state, layer, "running_var", 1, shape);
    if (has(state, layer, "weight") || has(state, layer, "bias")) { /* both, or affine=False */
        weight = need(state, layer, "weight", 1, shape);
        bias = need(state, layer, "bias", 1, shape);
    }
    float *scale = ARENA_ARRAY(arena, float, channels, layer), *shift = ARENA_ARRAY(arena, float, channels, layer);
    for (int c = 0; c < channels; c++) {
        double var = value_at(state, variance, c);
        if (var < 0)
            die("%s: tensor %s holds %g at (%d), expected a variance of at least 0: the file is damaged", state->path,
                variance->name, var, c);
        double factor = (weight ? value_at(state, weight, c) : 1) / sqrt(var + BATCH_NORM_EPS);
        scale[c] = (float)factor;
        shift[c] = (float)((bias ? value_at(state, bias, c) : 0) - value_at(state, mean, c) * factor);
        if (!isfinite(scale[c]) || !isfinite(shift[c]))
            die("%s: channel %d of %s has a scale or shift beyond float32: the file is damaged", state->path, c, layer);
    }
    return (Norm){.scale = scale, .shift = shift};
}

static int add_conv(Graph *graph, const char *name, int input, const Conv *conv) {
    ConvShape window = {.stride_height = 1,
                        .stride_width = 1,
                        .pad_top = conv->height / 2,
                        .pad_left = conv->width / 2,
                        .pad_bottom = conv->height / 2,
                        .pad_right = conv->width / 2};
    return graph_add(graph, (Node){.op = OP_CONV,
                                   .name = name,
                                   .n_inputs = 1,
                                   .inputs = &input,
                                   .window = window,
                                   .weight = {{4, {conv->out, conv->in, conv->height, conv->width}}, conv->weight},
                                   .bias = {shape_vector(conv->out), conv->bias}});
}

/* bnN, reluN, poolN after a convolution; gives poolN. */
static int add_rest(Graph *graph, const char *const names[3], int input, Norm norm) {
    ConvShape window = {.kernel_height = 2, .kernel_width = 2, .stride_height = 2, .stride_width = 2};
    const Shape channels = shape_vector(shape_channels(graph->nodes[input].shape));
    int node = graph_add(graph, (Node){.op = OP_BATCH_NORM,
                                       .name = names[0],
                                       .n_inputs = 1,
                                       .inputs = &input,
                                       .weight = {channels, norm.scale},
                                       .bias = {channels, norm.shift}});
    node = graph_add(graph, (Node){.op = OP_RELU, .name = names[1], .n_inputs = 1, .inputs = &node});
    return graph_add(graph,
                     (Node){.op = OP_MAX_POOL, .name = names[2], .n_inputs = 1, .inputs = &node, .window = window});
}

static void check_image(const StateDict *state, const Conv *conv, Shape image) {
    if (conv->in != shape_channels(image))
        die("%s: tensor conv1.weight is for images of %d channels, the images have %d: give images of that many, or "
            "say how they lie with --layout",
            state->path, conv->in, shape_channels(image));
    if (shape_height(image) < SMALLEST_IMAGE || shape_width(image) < SMALLEST_IMAGE)
        die("%s: two poolings by 2 need images of at least %d x %d pixels, found %d x %d", state->path, SMALLEST_IMAGE,
            SMALLEST_IMAGE, shape_height(image), shape_width(image));
}

static Graph *build(Arena *arena, const StateDict *state, Shape input) {
    Conv conv1 = conv_read(arena, state, "conv1", ANY);
    Norm bn1 = norm_read(arena, state, "bn1", conv1.out);
    Conv conv2 = conv_read(arena, state, "conv2", conv1.out);
    Norm bn2 = norm_read(arena, state, "bn2", conv2.out);
    const Tensor *fc = need(state, "fc", "weight", 2, (int64_t[]){ANY, conv2.out});
    check_image(state, &conv1, input);

    Graph *graph = graph_new(arena, 11);
    int node = graph_add(graph, (Node){.op = OP_INPUT, .name = "input", .shape = input});
    node = add_conv(graph, "conv1", node, &conv1);
    node = add_rest(graph, (const char *[]){"bn1", "relu1", "pool1"}, node, bn1);
    node = add_conv(graph, "conv2", node, &conv2);
    node = add_rest(graph, (const char *[]){"bn2", "relu2", "pool2"}, node, bn2);
    node = graph_add(graph, (Node){.op = OP_GLOBAL_AVERAGE_POOL, .name = "gap", .n_inputs = 1, .inputs = &node});
    graph->logits = graph_add(
        graph, (Node){.op = OP_LINEAR,
                      .name = "logits",
                      .n_inputs = 1,
                      .inputs = &node,
                      .gemm = {.alpha = 1, .beta = 1, .flatten = true},
                      .weight = {{2, {(int)fc->shape[0], (int)fc->shape[1]}}, floats(arena, state, fc)},
                      .bias = {shape_vector((int)fc->shape[0]), bias_read(arena, state, "fc", (int)fc->shape[0])}});
    return graph;
}
