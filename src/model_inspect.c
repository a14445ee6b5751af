/* model_inspect.c: `cnnscope inspect`. Prints whatever tensors a file has, so that it helps most with a file that
 * cannot be run: the reason comes last, as the one line on stderr, after all that could be read.
 *
 * A state_dict does not say how large its images are: the graph is made for a nominal size. */
#include <stdio.h>

#include "dataset.h"
#include "error.h"
#include "model.h"
#include "model_draw.h"
#include "onnx.h"
#include "sha256.h"
#include "state.h"

enum { NOMINAL = 64, NOMINAL_ONNX = 224, NAME_WIDTH = 28 };

static void print_shape(const Tensor *tensor) {
    printf("(");
    for (int d = 0; d < tensor->rank; d++)
        printf("%s%lld", d ? ", " : "", (long long)tensor->shape[d]);
    printf(tensor->rank == 1 ? ",)\n" : ")\n");
}

static void print_file(const StateDict *state, const void *bytes, size_t size) {
    char hex[65];
    sha256_hex(hex, bytes, size);
    printf("file    %s, %zu bytes\n", state->path, size);
    printf("format  %s\n", state->format);
    printf("sha256  %s\n", hex);
    if (*state->found_under)
        printf("under   key %s of a checkpoint\n", state->found_under);
    if (*state->prefix)
        printf("prefix  %s, taken off every name\n", state->prefix);
    if (*state->globals)
        printf("skipped objects of %s; nothing of the pickle is run\n", state->globals);
}

static void print_tensors(const StateDict *state) {
    int64_t elements = 0;
    printf("\n%-*s  %-8s  %s\n", NAME_WIDTH, "tensor", "type", "shape");
    for (int i = 0; i < state->count; i++) {
        const Tensor *tensor = &state->tensors[i];
        printf("%-*s  %-8s  ", NAME_WIDTH, *tensor->name ? tensor->name : "(a bare tensor)", dtype_name(tensor->dtype));
        print_shape(tensor);
        elements += tensor->size;
    }
    for (int i = 0; i < state->skipped_count; i++)
        printf("%-*s  (%s)\n", NAME_WIDTH, state->skipped[i].name, state->skipped[i].what);
    printf("%d tensors, %lld elements\n", state->count, (long long)elements);
}

void model_inspect(const char *path, const char *dot, bool overwrite) {
    Arena *arena = arena_new(), *file = arena_new();
    size_t size;
    const void *bytes = dataset_file_bytes(file, path, &size);
    Shape image;
    int nominal = 0;
    if (!safetensors_is(bytes, size, path) && onnx_is(bytes, size)) {
        image = onnx_print(bytes, size, path, shape_chw(3, NOMINAL_ONNX, NOMINAL_ONNX));
    } else {
        Arena *tensors = arena_new(); /* apart, and gone before the model is made: one copy of the weights at a time */
        const StateDict *state = state_read(tensors, bytes, size, path);
        print_file(state, bytes, size);
        print_tensors(state);
        const Tensor *first = state_find(state, "conv1.weight");
        bool has_channels = first && first->rank == 4 && first->shape[1] >= 1 && first->shape[1] < 1 << 20;
        image = shape_chw(has_channels ? (int)first->shape[1] : 1, NOMINAL, NOMINAL);
        nominal = NOMINAL;
        arena_free(tensors);
    }
    const Graph *graph = model_open(arena, file, bytes, size, path, image, NULL)->graph;
    model_draw(arena, graph, nominal);
    if (dot)
        model_dot(graph, nominal, dot, overwrite);
    arena_free(arena);
}
