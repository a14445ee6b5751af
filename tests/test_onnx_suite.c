/* test_onnx_suite.c: the ONNX project's own cases as oracle (Debian: libonnx-testdata), all whose operations we have.
 *
 * A case is a network, most often of one node, with inputs and expected outputs. It is run in every way that makes a
 * network of it:
 *   - its first input is the images, dimension 0 the batch, and the other inputs are numbers of the file;
 *   - one input, or all of them together, belong to one image, the rest to the file: a batch of one is put in front, and
 *     axes, lists of sizes and permutations are rewritten as of one dimension more (onnx_ways.c);
 *   - all inputs belong to the file, and the output is computed when it is loaded.
 * A case passes when at least one way is accepted and each that is gives the expected numbers. Where none is, the case
 * itself must show why (inapplicable, below), whatever the message said; else it has failed. Of operations that can give
 * more than their value (masks, places of maxima, means) the first output is compared, and such cases are counted.
 * Files of opset 1 to 6 are raised to 7 where no node has a form that 7 dropped. Prints the counts, and is skipped where
 * the suite is not installed. CNNSCOPE_ONNX_SUITE names another folder than the usual one.
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
#include "onnx_ways.h"

enum { REASONS = 200 };
static const char *suite_folder = "/usr/share/libonnx-testdata/data";
static const char *chosen;

static struct {
    int passed, failed, other, first_only, at_load, ways, reasons;
    char reason[REASONS][160];
    int count[REASONS];
} tally;

static void not_applicable(const Case *c, const char *reason) {
    int i = 0;
    while (i < tally.reasons && strcmp(tally.reason[i], reason) != 0)
        i++;
    assert_true(i < REASONS);
    if (i == tally.reasons)
        snprintf(tally.reason[tally.reasons++], sizeof tally.reason[i], "%s", reason);
    tally.count[i]++;
    tally.other++;
    if (chosen)
        print_message("%s: not applicable: %s\n", c->name, reason);
}

static bool exists(const char *path) {
    struct stat info;
    return !stat(path, &info) && S_ISREG(info.st_mode);
}

/* ---- Reading a case ---------------------------------------------------------------------------------------------- */

/* A tensor outside of any file; NULL when it is of a type, or a shape, that no constant of ours has. */
static OnnxConstant *tensor_values(Arena *arena, Onnx__TensorProto *proto) {
    static const OnnxWish wish = {.as_is = true};
    static OnnxConstant *constant;
    const char *message;
    int status;
    constant = NULL;
    if (!proto)
        return NULL;
    if (!error_caught()) {
        Onnx *onnx = ARENA_ARRAY(arena, Onnx, 1, "tensor");
        *onnx = (Onnx){.arena = arena, .path = "test data", .wish = &wish, .budget = 1 << 30};
        constant = onnx_tensor(onnx, proto);
        onnx_floats(onnx, constant);
    }
    return error_pending(&message, &status) ? NULL : constant;
}

static bool is_initializer(const Onnx__GraphProto *graph, const char *name) {
    for (size_t i = 0; i < graph->n_initializer; i++)
        if (!strcmp(graph->initializer[i]->name, name))
            return true;
    return false;
}

static void read_case(Case *c) {
    Onnx__ModelProto *model = onnx__model_proto__unpack(NULL, c->size, c->bytes);
    assert_non_null(model);
    c->graph = model->graph;
    for (size_t i = 0; i < model->n_opset_import; i++)
        if (!model->opset_import[i]->domain || !model->opset_import[i]->domain[0])
            c->opset = (int)model->opset_import[i]->version;
    for (size_t i = 0; i < c->graph->n_input; i++)
        if (!is_initializer(c->graph, c->graph->input[i]->name)) {
            assert_true(c->count < MOST);
            c->input[c->count] = c->graph->input[i]->name;
            c->tensor[c->count] = read_tensor(c, "input", c->count);
            c->value[c->count] = tensor_values(c->arena, read_tensor(c, "input", c->count));
            c->count++;
        }
    static const char *const with_more[] = {"Dropout", "MaxPool", "LayerNormalization", "BatchNormalization", NULL};
    assert_true(c->graph->n_output <= MOST);
    c->outputs = one_of(c->graph->node[c->graph->n_node - 1]->op_type, with_more) ? 1 : (int)c->graph->n_output;
    for (int i = 0; i < c->outputs; i++) {
        c->result[i] = read_tensor(c, "output", i);
        c->expected[i] = tensor_values(c->arena, read_tensor(c, "output", i));
    }
}

/* ---- Why not ----------------------------------------------------------------------------------------------------- */

static const char *type_name(int type) {
    static const char *const names[] = {"undefined", "float32", "uint8",     "int8",       "uint16",  "int16",
                                        "int32",     "int64",   "string",    "bool",       "float16", "float64",
                                        "uint32",    "uint64",  "complex64", "complex128", "bfloat16"};
    return type >= 0 && type < (int)(sizeof names / sizeof *names) ? names[type] : "another type";
}

static int64_t int_of(const Onnx__NodeProto *node, const char *name, int64_t otherwise) {
    const Onnx__AttributeProto *a = onnx_attribute(node, name);
    return a ? a->i : otherwise;
}

/* What a node asks for that README's list of operations leaves out; NULL: nothing. */
static const char *node_inapplicable(const Case *c, const Onnx__NodeProto *node) {
    static const char *const windows[] = {"Conv", "MaxPool", "AveragePool", NULL};
    const char *op = node->op_type;
    const OnnxConstant *first = c->count ? c->value[0] : NULL;
    if (one_of(op, windows) && first && first->rank != 4)
        return "windows of one or three dimensions";
    if (int_of(node, "training_mode", 0))
        return "training";
    if (!strcmp(op, "Dropout") && c->count > 2 && c->value[2] && c->value[2]->floats[0] != 0)
        return "training";
    if (!strcmp(op, "Resize") && onnx_text_is(node, "mode", "cubic", false))
        return "Resize by cubics";
    if (!strcmp(op, "Resize") && onnx_text_is(node, "coordinate_transformation_mode", "tf_crop_and_resize", false))
        return "Resize of a part (tf_crop_and_resize)";
    if (!strcmp(op, "Flatten") && int_of(node, "axis", 1) != 1)
        return "Flatten that joins the batch to another dimension, or leaves several";
    if (!strcmp(op, "Gemm") && int_of(node, "transA", 0))
        return "Gemm of a transposed batch";
    if (!strcmp(op, "Gemm") && c->count > 2 && c->value[2] && c->value[2]->rank == 2 && c->value[2]->dim[0] > 1)
        return "Gemm with another bias for each image";
    if (!strcmp(op, "Range") && c->value[0] && !c->value[0]->whole)
        return "Range of numbers that are not whole";
    if (!strcmp(op, "Pow") && c->count > 1 && (!c->value[1] || c->value[1]->size != 1))
        return "Pow by more than one number";
    return NULL;
}

/* What no way is tried of: other operations, and numbers that are not computed with as their type says. */
static const char *foreign(const Case *c) {
    static char made[160];
    const Onnx__GraphProto *graph = c->graph;
    for (size_t i = 0; i < graph->n_node; i++)
        if ((graph->node[i]->domain && graph->node[i]->domain[0]) ||
            (!onnx_op_find(graph->node[i]) && !onnx_fold_find(graph->node[i]))) {
            snprintf(made, sizeof made, "operation %.60s", graph->node[i]->op_type);
            return made;
        }
    for (size_t i = 0; i < graph->n_input + graph->n_output; i++) {
        const Onnx__TypeProto *type = (i < graph->n_input ? graph->input[i] : graph->output[i - graph->n_input])->type;
        if (type && type->value_case != ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE)
            return "a sequence, not a tensor";
    }
    for (int i = 0; i < c->count + c->outputs; i++) {
        const bool input = i < c->count;
        const Onnx__TensorProto *tensor = input ? c->tensor[i] : c->result[i - c->count];
        const int type = tensor ? tensor->data_type : 0;
        if (type != FLOAT && type != BOOL && type != INT32 && type != INT64 && type != DOUBLE &&
            !(input && type == HALF)) {
            snprintf(made, sizeof made, "numbers of type %s", type_name(type));
            return made;
        }
    }
    /* The case divides by 2.4 - 1; the operation's text, onnxruntime 1.32 and PyTorch by 2 - 1, and so do we. */
    const OnnxConstant *x = c->value[0], *scales = c->count ? c->value[c->count - 1] : NULL;
    const Onnx__NodeProto *node = graph->node[0];
    if (!strcmp(node->op_type, "Resize") &&
        onnx_text_is(node, "coordinate_transformation_mode", "align_corners", false) &&
        onnx_text_is(node, "mode", "linear", false) && x && scales && !scales->whole && scales->size == x->rank)
        for (int d = 0; d < x->rank; d++)
            if (x->dim[d] * (double)scales->floats[d] != floor(x->dim[d] * (double)scales->floats[d]))
                return "Resize by align_corners to 2.4 numbers (contradicts the operation's text)";
    return NULL;
}

static const char *inapplicable(const Case *c) {
    const char *reason;
    for (int i = 0; i <= c->outputs; i++) {
        const OnnxConstant *value = i < c->outputs ? c->expected[i] : c->count ? c->value[0] : NULL;
        if (value && value->size == 0)
            return "values without numbers";
    }
    for (size_t i = 0; i < c->graph->n_node; i++)
        if ((c->opset < FILE_OPSET && (reason = old_form(c->graph->node[i]))) ||
            (reason = node_inapplicable(c, c->graph->node[i])))
            return reason;
    return NULL;
}

/* ---- Running ----------------------------------------------------------------------------------------------------- */

/* What the network makes of the image, in the graph's own lane; NULL with the reason when it is refused. */
static float *run_way(const Case *c, const Way *way, int output_at, Shape *shape, const char **message) {
    static float *values;
    static Shape made;
    int status;
    values = NULL;
    if (!error_caught()) {
        const size_t size = onnx__model_proto__get_packed_size(way->model);
        void *bytes = ARENA_ARRAY(c->arena, char, (int64_t)size, "model");
        onnx__model_proto__pack(way->model, bytes);
        const char *output = way->model->graph->output[output_at]->name;
        const OnnxWish wish = {.input = way->image, .logits_node = output, .as_is = true};
        const Graph *g = onnx_read(c->arena, bytes, size, c->name, &wish).graph;
        bool *want = ARENA_ARRAY(c->arena, bool, g->count, "wants"), *none = ARENA_ARRAY(c->arena, bool, g->count, "");
        want[g->logits] = true;
        made = g->nodes[g->logits].shape;
        Plan *plan = graph_plan(c->arena, g, way->batch, want, none);
        Lane *lane = lane_new(graph_lane_bytes(plan));
        dev_upload(graph_input(plan, lane), way->pixels, (size_t)(shape_size(way->image) * way->batch) * sizeof(float));
        graph_forward(plan, lane);
        lane_sync(lane);
        const int64_t total = shape_size(made) * way->batch;
        values = ARENA_ARRAY(c->arena, float, total, "output");
        dev_download(values, graph_value(plan, lane, g->logits), (size_t)total * sizeof(float));
        lane_free(lane);
        graph_plan_free(plan);
    }
    *shape = made;
    return error_pending(message, &status) ? NULL : values;
}

/* Sizes are compared from the last, with ones in front. */
static bool same_shape(const OnnxConstant *expected, int batch, Shape found) {
    for (int d = 1; d <= expected->rank || d <= found.rank + 1; d++) {
        const int64_t a = d <= expected->rank ? expected->dim[expected->rank - d] : 1;
        const int64_t b = d <= found.rank ? found.dim[found.rank - d] : d == found.rank + 1 ? batch : 1;
        if (a != b)
            return false;
    }
    return true;
}

static const char *difference(const float *found, const OnnxConstant *expected) {
    static char words[160];
    for (int64_t i = 0; i < expected->size; i++) {
        const double a = found[i], b = expected->floats[i];
        if (!(fabs(a - b) <= 2e-6 + 1e-4 * fabs(b)) && !(isnan(a) && isnan(b)) && a != b) {
            snprintf(words, sizeof words, "number %lld is %g, expected %g", (long long)i, a, b);
            return words;
        }
    }
    return NULL;
}

/* Way number `which`: 0 the batch, 1 numbers, 2 all inputs in the image, 3 and on one of them; false: not of this case. */
static bool make_way(const Case *c, int which, int output_at, Way *way) {
    unsigned flows = 0;
    for (int i = 0; i < c->count; i++)
        flows |= is_flow(c, i) ? 1u << i : 0;
    if (which == 0)
        return as_batch(c, way);
    if (which == 1)
        return as_numbers(c, way, output_at);
    const unsigned mask = which == 2 ? flows : flows & 1u << (which - 3);
    return mask && (which == 2 || mask != flows) && as_image(c, way, mask);
}

/* One output in one way: accepted or not; *failure: how it differs. */
static bool try_way(const Case *c, int which, int output_at, const char **refusal, const char **failure) {
    Way way = {0};
    Shape shape;
    const char *message = "";
    const OnnxConstant *expected = c->expected[output_at];
    if (!expected || expected->size == 0 || !make_way(c, which, output_at, &way))
        return false;
    const float *found = run_way(c, &way, output_at, &shape, &message);
    if (!found) {
        *refusal = arena_printf(c->arena, "%s", message);
        if (chosen)
            print_message("%s: way %d: %s\n", c->name, which, message);
        return false;
    }
    const char *why = same_shape(expected, way.batch, shape) ? difference(found, expected) : "another shape";
    if (why)
        *failure = arena_printf(c->arena, "output %d, way %d: %s", output_at, which, why);
    return true;
}

static void run_case(Case *c) {
    int ways = 0, at_load = 0;
    const char *refusal = "no way to run it", *failure = NULL;
    read_case(c);
    const char *reason = foreign(c);
    if (reason) {
        not_applicable(c, reason);
        return;
    }
    reason = inapplicable(c);
    for (int which = 0; which < 3 + c->count && !failure; which++) {
        int accepted = 0;
        for (int i = 0; i < c->outputs && !failure; i++)
            accepted += try_way(c, which, i, &refusal, &failure);
        ways += accepted == c->outputs;
        at_load += accepted == c->outputs && which == 1;
    }
    if (!failure && ways == 0 && reason) {
        not_applicable(c, reason);
    } else if (failure || ways == 0) {
        tally.failed++;
        print_message("%s: failed: %s\n", c->name, failure ? failure : refusal);
    } else {
        tally.passed++;
        tally.ways += ways;
        tally.at_load += ways == at_load;
        tally.first_only += c->outputs < (int)c->graph->n_output;
        if (chosen)
            print_message("%s: passed in %d ways\n", c->name, ways);
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
        Case c = {.arena = arena, .name = arena_printf(arena, "%s/%s", group, entries[i]->d_name), .folder = path};
        if (wanted && exists(file)) {
            c.bytes = dataset_file_bytes(arena, file, &c.size);
            run_case(&c);
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
    print_message(
        "ONNX suite: %d passed (in %d ways; %d only as numbers known at load; %d by their first output), %d failed, "
        "%d not applicable\n",
        tally.passed, tally.ways, tally.at_load, tally.first_only, tally.failed, tally.other);
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
