/* test_onnx_suite.c: the ONNX project's own cases as oracle (Debian: libonnx-testdata), all whose operations we have.
 *
 * A case is a network with inputs and expected outputs. Its first input is taken for the images (dimension 0 the batch)
 * and the others become initialisers; where all operations go number by number, the whole input is one image, so that
 * nothing is lost to the batch. Each output is compared in turn. A case that asks for something that is no part of a
 * classifier (another type of input, the batch mixed, 1-D windows) is not applicable, and its reason counted. Prints
 * the counts; skipped where the suite is not installed. CNNSCOPE_ONNX_SUITE names another folder than the usual one.
 *
 *     test_onnx_suite [CASE]     with CASE, a part of a name: says what came of each such case */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "dataset.h"
#include "onnx_parts.h"

enum { REASONS = 400 };
static const char *suite_folder = "/usr/share/libonnx-testdata/data";
static const char *chosen;

static struct {
    int passed, failed, other, reasons;
    char reason[REASONS][160];
    int count[REASONS];
} tally;

typedef struct {
    Arena *arena;
    const char *name;
    Onnx__ModelProto *model;
    Onnx__TensorProto *input;
    OnnxConstant *image;
    float *pixels;
    bool whole; /* the input is one image */
} Case;

static void not_applicable(const Case *c, const char *reason) {
    int i = 0;
    while (i < tally.reasons && strcmp(tally.reason[i], reason) != 0)
        i++;
    if (i == tally.reasons && i < REASONS)
        snprintf(tally.reason[tally.reasons++], sizeof tally.reason[i], "%s", reason);
    if (i < REASONS)
        tally.count[i]++;
    tally.other++;
    if (chosen)
        print_message("%s: not applicable: %s\n", c->name, reason);
}

static bool exists(const char *path) {
    struct stat info;
    return !stat(path, &info) && S_ISREG(info.st_mode);
}

static Onnx__TensorProto *read_tensor(Arena *arena, const char *folder, const char *what, int i) {
    const char *path = arena_printf(arena, "%s/test_data_set_0/%s_%d.pb", folder, what, i);
    size_t size;
    if (!exists(path))
        return NULL;
    const void *bytes = dataset_file_bytes(arena, path, &size);
    return onnx__tensor_proto__unpack(NULL, size, bytes);
}

/* A tensor outside of any file. */
static OnnxConstant *tensor_values(Arena *arena, Onnx__TensorProto *proto) {
    static const OnnxWish wish = {.as_is = true};
    Onnx *onnx = ARENA_ARRAY(arena, Onnx, 1, "tensor");
    *onnx = (Onnx){.arena = arena, .path = "test data", .wish = &wish, .budget = 1 << 30};
    OnnxConstant *constant = onnx_tensor(onnx, proto);
    if (constant->whole)
        onnx_ints(onnx, constant);
    else if (!constant->floats && constant->size)
        onnx_floats(onnx, constant);
    return constant;
}

static bool number_by_number(const Onnx__GraphProto *graph) {
    static const char *const ops[] = {"Add",       "Sub",       "Mul",      "Div",     "Pow",         "PRelu",
                                      "Sum",       "Relu",      "Sigmoid",  "Tanh",    "Softplus",    "Erf",
                                      "Sqrt",      "Exp",       "Log",      "Neg",     "Abs",         "Reciprocal",
                                      "HardSwish", "LeakyRelu", "Elu",      "Selu",    "HardSigmoid", "Gelu",
                                      "Clip",      "Constant",  "Identity", "Dropout", "Cast"};
    for (size_t i = 0; i < graph->n_node; i++) {
        bool found = false;
        for (size_t k = 0; k < sizeof ops / sizeof *ops; k++)
            found = found || !strcmp(graph->node[i]->op_type, ops[k]);
        if (!found)
            return false;
    }
    return true;
}

static const char *unfit(const Case *c) {
    const Onnx__GraphProto *graph = c->model->graph;
    /* It takes 2.4 for "the length of the resized tensor", which has 2; PyTorch and onnxruntime take 2, as we do. */
    if (strstr(c->name, "test_resize_downsample_scales_linear_align_corners"))
        return "contradicts the operator's text";
    static char text[160];
    for (size_t i = 0; i < graph->n_node; i++)
        if ((graph->node[i]->domain && graph->node[i]->domain[0]) ||
            (!onnx_op_find(graph->node[i]) && !onnx_fold_find(graph->node[i]))) {
            snprintf(text, sizeof text, "operation %.60s", graph->node[i]->op_type);
            return text;
        }
    for (size_t i = 0; i < graph->n_input + graph->n_output; i++) {
        const Onnx__TypeProto *type = (i < graph->n_input ? graph->input[i] : graph->output[i - graph->n_input])->type;
        if (type && type->value_case != ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE)
            return "a sequence, not a tensor";
    }
    if (!c->input)
        return "no input";
    if (c->input->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT)
        return "input is not float32";
    if (c->input->n_dims > SHAPE_RANK + (number_by_number(graph) ? 0 : 1))
        return "input of too many dimensions";
    for (size_t d = 0; d < c->input->n_dims; d++)
        if (c->input->dims[d] == 0)
            return "input without numbers";
    if (c->input->n_dims == 0 && !number_by_number(graph))
        return "input is one number";
    return NULL;
}

/* Reasons for which the front end rightly refuses: what was asked is not of one image at a time, or not of images. */
static const char *rightly(const char *message) {
    static const char *const words[] = {"batch",
                                        "image to image",
                                        "2-D windows",
                                        "computed from the image",
                                        "(C, H, W)",
                                        "whole ones",
                                        "same for all images",
                                        "dimensions, expected",
                                        "does not depend on the image",
                                        "training",
                                        "where its maxima are",
                                        "by the mode",
                                        "choice that cnnscope has not",
                                        "pads by -",
                                        "opset",
                                        "expected floating-point ones",
                                        "each image",
                                        "picks",
                                        "out of range",
                                        "expected one number",
                                        "mixes whole",
                                        "leaves nothing",
                                        "inputs (",
                                        "multiplies single",
                                        "is of ONNX type",
                                        "one for each unit"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strstr(message, words[i]))
            return words[i];
    return NULL;
}

/* What the network makes of the input, in the graph's own lane; NULL with the reason when it is refused. */
static float *run_output(const Case *c, const void *bytes, size_t size, const char *output, int64_t *count,
                         const char **message) {
    static float *values;
    static int64_t total;
    int status;
    values = NULL;
    if (!error_caught()) {
        Shape shape = {.rank = c->image->rank - !c->whole};
        for (int d = 0; d < shape.rank; d++)
            shape.dim[d] = (int)c->image->dim[d + !c->whole];
        const int batch = c->whole ? 1 : (int)c->image->dim[0];
        const OnnxWish wish = {.input = shape, .logits_node = output, .as_is = true};
        const Graph *g = onnx_read(c->arena, bytes, size, c->name, &wish).graph;
        bool *want = ARENA_ARRAY(c->arena, bool, g->count, "wants"), *none = ARENA_ARRAY(c->arena, bool, g->count, "");
        want[g->logits] = true;
        Plan *plan = graph_plan(c->arena, g, batch, want, none);
        Lane *lane = lane_new(graph_lane_bytes(plan));
        dev_upload(graph_input(plan, lane), c->pixels, (size_t)c->image->size * sizeof(float));
        graph_forward(plan, lane);
        lane_sync(lane);
        total = shape_size(g->nodes[g->logits].shape) * batch;
        values = ARENA_ARRAY(c->arena, float, total, "output");
        dev_download(values, graph_value(plan, lane, g->logits), (size_t)total * sizeof(float));
        lane_free(lane);
        graph_plan_free(plan);
    }
    *count = total;
    return error_pending(message, &status) ? NULL : values;
}

static const char *difference(const float *found, const OnnxConstant *expected) {
    static char text[160];
    for (int64_t i = 0; i < expected->size; i++) {
        const double a = found[i], b = expected->floats[i];
        if (!(fabs(a - b) <= 2e-6 + 1e-4 * fabs(b)) && !(isnan(a) && isnan(b)) && a != b) {
            snprintf(text, sizeof text, "number %lld is %g, expected %g", (long long)i, a, b);
            return text;
        }
    }
    return NULL;
}

static void fail_case(const Case *c, const char *output, const char *why) {
    tally.failed++;
    print_message("%s: %s: failed: %s\n", c->name, output, why);
}

static void run_case(Case *c, const char *folder) {
    Onnx__GraphProto *graph = c->model->graph;
    c->input = read_tensor(c->arena, folder, "input", 0);
    const char *reason = unfit(c);
    if (reason) {
        not_applicable(c, reason);
        return;
    }
    c->image = tensor_values(c->arena, c->input);
    c->pixels = c->image->floats;
    c->whole = number_by_number(graph);
    const char *first = NULL;
    Onnx__TensorProto **tensors = ARENA_ARRAY(c->arena, Onnx__TensorProto *, graph->n_initializer + graph->n_input, "");
    if (graph->n_initializer > 0)
        memcpy(tensors, graph->initializer, graph->n_initializer * sizeof *tensors);
    for (size_t i = 0, file = 0; i < graph->n_input; i++) {
        bool given = false;
        for (size_t k = 0; k < graph->n_initializer && !given; k++)
            given = !strcmp(tensors[k]->name, graph->input[i]->name);
        if (given)
            continue;
        Onnx__TensorProto *value = file ? read_tensor(c->arena, folder, "input", (int)file) : NULL;
        if (file == 0) {
            first = graph->input[i]->name;
            if (c->whole)
                graph->input[i]->type = NULL;
        } else if (value) {
            value->name = graph->input[i]->name;
            tensors[graph->n_initializer++] = value;
        }
        file++;
    }
    graph->initializer = tensors;
    if (!first) {
        not_applicable(c, "no input");
        return;
    }
    const size_t size = onnx__model_proto__get_packed_size(c->model);
    void *bytes = ARENA_ARRAY(c->arena, char, size, "model");
    onnx__model_proto__pack(c->model, bytes);
    for (size_t o = 0; o < graph->n_output; o++) {
        const char *output = graph->output[o]->name, *message = "";
        Onnx__TensorProto *proto = read_tensor(c->arena, folder, "output", (int)o);
        if (!proto || proto->data_type != ONNX__TENSOR_PROTO__DATA_TYPE__FLOAT) {
            not_applicable(c, "output is not float32");
            return;
        }
        const OnnxConstant *expected = tensor_values(c->arena, proto);
        int64_t count = 0;
        const float *found = run_output(c, bytes, size, output, &count, &message);
        const char *why = found ? NULL : rightly(message);
        if (!found && why)
            not_applicable(c, why);
        else if (!found)
            fail_case(c, output, message);
        else if (count != expected->size)
            fail_case(c, output, "another number of values");
        else if ((why = difference(found, expected)))
            fail_case(c, output, why);
        else if (o + 1 == graph->n_output)
            tally.passed++;
        if (!found || why)
            return;
    }
}

static void run_folder(const char *group) {
    char folder[512];
    struct dirent **entries;
    snprintf(folder, sizeof folder, "%s/%s", suite_folder, group);
    const int count = scandir(folder, &entries, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        Arena *arena = arena_new();
        const char *path = arena_printf(arena, "%s/%s", folder, entries[i]->d_name);
        const char *file = arena_printf(arena, "%s/model.onnx", path);
        const bool wanted = !chosen || strstr(entries[i]->d_name, chosen);
        Case c = {.arena = arena, .name = arena_printf(arena, "%s/%s", group, entries[i]->d_name)};
        if (wanted && exists(file)) {
            size_t size;
            const void *bytes = dataset_file_bytes(arena, file, &size);
            c.model = onnx__model_proto__unpack(NULL, size, bytes);
            assert_non_null(c.model);
            run_case(&c, path);
        }
        free(entries[i]);
        arena_free(arena);
    }
    if (count >= 0)
        free(entries);
}

static void the_suite(void **state) {
    (void)state;
    struct stat info;
    if (stat(suite_folder, &info)) {
        print_message("%s is not there (Debian: libonnx-testdata): nothing compared\n", suite_folder);
        skip();
    }
    static const char *const groups[] = {"node", "pytorch-converted", "pytorch-operator", "simple"};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        run_folder(groups[i]);
    for (int i = 0; i < tally.reasons; i++)
        print_message("  not applicable, %s: %d\n", tally.reason[i], tally.count[i]);
    print_message("ONNX suite: %d passed, %d failed, %d not applicable\n", tally.passed, tally.failed, tally.other);
    assert_int_equal(tally.failed, 0);
    assert_true(chosen || tally.passed >= 1);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_suite)};
    chosen = argc > 1 ? argv[1] : NULL;
    suite_folder = getenv("CNNSCOPE_ONNX_SUITE") ? getenv("CNNSCOPE_ONNX_SUITE") : suite_folder;
    dev_start(0, 2);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
