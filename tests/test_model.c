/* test_model.c: graphs of .pth files against what PyTorch says of the same networks (golden/make_pth_golden.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dataset.h"
#include "error.h"
#include "model.h"
#include "sha256.h"

/* NULL when it dies, with the message. */
static const Model *model_read(Arena *arena, const char *path, Shape input, const char **message, int *status) {
    static const Model *model;
    size_t size;
    Arena *file = arena_new();
    const void *bytes = dataset_file_bytes(file, path, &size);
    model = NULL;
    if (!error_caught())
        model = model_open(arena, file, bytes, size, path, input, NULL);
    return error_pending(message, status) ? NULL : model;
}

static const Model *must_read(Arena *arena, const char *path, Shape input) {
    const char *message;
    int status;
    const Model *model = model_read(arena, path, input, &message, &status);
    if (!model)
        fail_msg("%s", message);
    return model;
}

static void must_refuse(const char *path, Shape input, const char *words) {
    Arena *arena = arena_new();
    const char *message;
    int status;
    if (model_read(arena, path, input, &message, &status))
        fail_msg("%s was read, expected a refusal with: %s", path, words);
    assert_int_equal(status, 1);
    if (!strstr(message, words))
        fail_msg("message: %s\nexpected: %s", message, words);
    arena_free(arena);
}

/* ---- Against PyTorch ------------------------------------------------------------------------------------------- */

static void check_node(const Node *node, const char *line) {
    char expected[128], found[128];
    int read = 0;
    assert_int_equal(sscanf(line, "node %127[^\n]%n", expected, &read), 1);
    const bool window = node->op == OP_CONV || node->op == OP_MAX_POOL;
    snprintf(found, sizeof found, "%s (%d,%d,%d) %dx%d", node->name, shape_channels(node->shape),
             shape_height(node->shape), shape_width(node->shape), window ? node->window.kernel_height : 0,
             window ? node->window.kernel_width : 0);
    assert_string_equal(found, expected);
}

static void check_values(const float *values, char *text, const char *what) {
    char *rest, found[32];
    assert_non_null(values);
    for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest), values++) {
        snprintf(found, sizeof found, "%.9g", (double)*values);
        if (strcmp(found, word))
            fail_msg("%s: found %s, expected %s", what, found, word);
    }
}

static void test_graphs(void **unused) {
    (void)unused;
    Arena *texts = arena_new(), *arena = NULL;
    size_t size;
    char *rest, *text = dataset_file_bytes(texts, "tests/golden/pth/networks.txt", &size);
    char *lines = ARENA_ARRAY(texts, char, size + 1, "lines"), path[128], name[64];
    memcpy(lines, text, size);
    const Graph *graph = NULL;
    int next = 0, networks = 0, weights = 0, biases = 0;
    for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        Shape input = {.rank = 3};
        if (sscanf(line, "network %63s %d %d %d", name, &input.dim[0], &input.dim[1], &input.dim[2]) == 4) {
            arena_free(arena);
            arena = arena_new();
            snprintf(path, sizeof path, "tests/golden/pth/%s", name);
            graph = must_read(arena, path, input)->graph;
            assert_int_equal(graph->count, 11);
            assert_int_equal(graph->logits, 10);
            next = 0;
            networks++;
        } else if (!strncmp(line, "node ", 5)) {
            check_node(&graph->nodes[next], line);
            assert_int_equal(graph->nodes[next].n_inputs, next > 0);
            assert_true(next == 0 || graph->nodes[next].inputs[0] == next - 1);
            next++;
        } else if (!strncmp(line, "weight ", 7)) {
            check_values(graph->nodes[next - 1].weight.values, line + 7, graph->nodes[next - 1].name);
            weights++;
        } else {
            assert_int_equal(strncmp(line, "bias ", 5), 0);
            check_values(graph->nodes[next - 1].bias.values, line + 5, graph->nodes[next - 1].name);
            biases++;
        }
    }
    assert_int_equal(networks, 4);
    assert_int_equal(weights, 20);
    assert_int_equal(biases, 18); /* two layers of cnn_bfloat16 have none */
    arena_free(arena);
    arena_free(texts);
}

static void test_no_bias(void **unused) {
    (void)unused;
    Arena *arena = arena_new();
    const Graph *graph = must_read(arena, "tests/golden/pth/cnn_bfloat16.pth", shape_chw(2, 4, 4))->graph;
    assert_null(graph->nodes[graph_find(graph, "conv1")].bias.values);
    assert_null(graph->nodes[graph_find(graph, "logits")].bias.values);
    assert_non_null(graph->nodes[graph_find(graph, "conv2")].bias.values);
    arena_free(arena);
}

static void check_same(const float *a, const float *b, int64_t count) {
    assert_non_null(a);
    assert_non_null(b);
    assert_memory_equal(a, b, (size_t)count * sizeof(float));
}

static void test_twins(void **unused) {
    (void)unused;
    Arena *arena = arena_new();
    Shape input = shape_chw(1, 28, 28);
    const Model *zip = must_read(arena, "tests/data/model.pth", input);
    const Model *legacy = must_read(arena, "tests/data/model_legacy.pth", input);
    const int64_t weights[] = {0, 16 * 9, 16, 0, 0, 32 * 16 * 9, 32, 0, 0, 0, 320};
    const int64_t biases[] = {0, 16, 16, 0, 0, 32, 32, 0, 0, 0, 10};
    for (int i = 0; i < 11; i++) {
        const Node *a = &zip->graph->nodes[i], *b = &legacy->graph->nodes[i];
        assert_int_equal(a->op, b->op);
        assert_memory_equal(&a->shape, &b->shape, sizeof a->shape);
        if (weights[i])
            check_same(a->weight.values, b->weight.values, weights[i]);
        if (biases[i])
            check_same(a->bias.values, b->bias.values, biases[i]);
    }
    assert_string_equal(zip->sha256, "bd708a40390abfa9198d2372ccc4a23e5d20e9a6834779dd20054aca411c3eda");
    assert_string_not_equal(zip->sha256, legacy->sha256);
    arena_free(arena);
}

/* The same tensors in a .safetensors, of every floating type, give the same graph. */
static void test_safetensors(void **unused) {
    (void)unused;
    static const char *const names[] = {"cnn_float32", "cnn_float64", "cnn_float16", "cnn_bfloat16"};
    static const int channels[] = {1, 1, 3, 2};
    for (int f = 0; f < 4; f++) {
        Arena *arena = arena_new();
        char path[2][128];
        snprintf(path[0], sizeof path[0], "tests/golden/pth/%s.pth", names[f]);
        snprintf(path[1], sizeof path[1], "tests/golden/safetensors/%s.safetensors", names[f]);
        const Shape input = shape_chw(channels[f], 9, 11);
        const Graph *a = must_read(arena, path[0], input)->graph, *b = must_read(arena, path[1], input)->graph;
        int compared = 0;
        for (int i = 0; i < a->count; i++) {
            const Constant *x[] = {&a->nodes[i].weight, &a->nodes[i].bias};
            const Constant *y[] = {&b->nodes[i].weight, &b->nodes[i].bias};
            for (int k = 0; k < 2; k++) {
                assert_true(shape_equal(x[k]->shape, y[k]->shape));
                assert_int_equal(x[k]->values == NULL, y[k]->values == NULL);
                if (x[k]->values)
                    check_same(x[k]->values, y[k]->values, shape_size(x[k]->shape));
                compared += x[k]->values != NULL;
            }
        }
        assert_int_equal(compared, f == 3 ? 8 : 10);
        arena_free(arena);
    }
    must_refuse("tests/golden/safetensors/types.safetensors", shape_chw(1, 28, 28), "tensor conv1.weight is missing");
}

/* ---- What does not fit ------------------------------------------------------------------------------------------- */

static void test_images_that_do_not_fit(void **unused) {
    (void)unused;
    must_refuse("tests/data/model.pth", shape_chw(3, 28, 28), "for images of 1 channels, the images have 3");
    must_refuse("tests/data/model.pth", shape_chw(1, 3, 28), "at least 4 x 4 pixels, found 3 x 28");
    must_refuse("tests/data/model.pth", shape_chw(1, 28, 3), "at least 4 x 4 pixels, found 28 x 3");
    Arena *arena = arena_new();
    const Graph *graph = must_read(arena, "tests/data/model.pth", shape_chw(1, 4, 7))->graph;
    assert_int_equal(shape_height(graph->nodes[8].shape), 1);
    assert_int_equal(shape_width(graph->nodes[8].shape), 1);
    arena_free(arena);
}

static void test_other_networks(void **unused) {
    (void)unused;
    must_refuse("tests/golden/pth/protocol4.pth", shape_chw(1, 28, 28),
                "tensor conv2.weight is missing (found 7: conv1.weight");
    must_refuse("tests/golden/pth/types.pth", shape_chw(1, 28, 28), "tensor conv1.weight is missing");
    must_refuse("tests/golden/pth/bare.pth", shape_chw(1, 28, 28), "tensor conv1.weight is missing");
}

static void test_layer_names(void **unused) {
    (void)unused;
    Arena *arena = arena_new();
    const char *message;
    int status;
    Model *model = (Model *)must_read(arena, "tests/data/model.pth", shape_chw(1, 28, 28));
    assert_int_equal(model_layer(model, "conv1", "--embed"), 1);
    assert_int_equal(model_layer(model, "gap", "--embed"), 9);
    assert_int_equal(model_layer(model, "logits", "--embed"), 10);
    assert_int_equal(model_layer(model, "fc", "--embed"), 10);
    model->graph->nodes[5].name = "block.0_conv";
    assert_int_equal(model_layer(model, "block.0.conv", "--embed"), 5);
    assert_int_equal(model_layer(model, "block_0_conv", "--embed"), 5);
    static const char *const wrong[] = {"conv", "conv12", "", "input", "blocks0_conv", "FC"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        if (!error_caught()) {
            model_layer(model, wrong[i], "--embed");
            fail_msg("layer '%s' was found", wrong[i]);
        }
        assert_true(error_pending(&message, &status));
        assert_int_equal(status, 2);
        assert_non_null(strstr(message, "--embed"));
        assert_non_null(strstr(message, "conv1, bn1, relu1, pool1, block.0_conv, bn2, relu2, pool2, gap, logits"));
    }
    arena_free(arena);
}

static void test_sha256(void **unused) {
    (void)unused;
    char hex[65];
    sha256_hex(hex, "", 0); /* FIPS 180-4 examples */
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    sha256_hex(hex, "abc", 3);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    Sha256 *hash = sha256_begin();
    sha256_add(hash, "a", 1);
    sha256_add(hash, "", 0);
    sha256_add(hash, "bc", 2);
    sha256_end(hash, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_graphs),         cmocka_unit_test(test_no_bias),
        cmocka_unit_test(test_twins),          cmocka_unit_test(test_images_that_do_not_fit),
        cmocka_unit_test(test_other_networks), cmocka_unit_test(test_layer_names),
        cmocka_unit_test(test_sha256),         cmocka_unit_test(test_safetensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
