/* model_draw.c: a graph as text and as DOT. See model_draw.h.
 *
 *     o      maxpool                  The values that are still to be read run down in columns; `o` is the layer of the
 *     +-o    layer1.0.conv1           line, joined to what it reads: a column that goes on (+), or ends there (').
 *     | o    layer1.0.relu
 *     o-'    layer1.0
 */
#include "model_draw.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"

enum { COLUMNS = 24 /* of values drawn; more are left out */, NONE = -1, WINDOW_BYTES = 32, SIZES_BYTES = 96 };

/* "(16, 28, 28)", or "(16, H/2, W/2)". */
static const char *sizes(char text[SIZES_BYTES], Shape shape, int nominal) {
    if (!nominal || shape.rank != 3)
        return shape_text(text, shape);
    int used = snprintf(text, SIZES_BYTES, "(%d", shape.dim[0]);
    for (int d = 1; d < 3; d++) {
        const char axis = "HW"[d - 1];
        if (shape.dim[d] == 1)
            used += snprintf(text + used, (size_t)(SIZES_BYTES - used), ", 1");
        else if (shape.dim[d] == nominal)
            used += snprintf(text + used, (size_t)(SIZES_BYTES - used), ", %c", axis);
        else
            used += snprintf(text + used, (size_t)(SIZES_BYTES - used), ", %c/%d", axis, nominal / shape.dim[d]);
    }
    snprintf(text + used, (size_t)(SIZES_BYTES - used), ")");
    return text;
}

/* "3 x 3", "3 x 3 / 2" where it moves by more than one, "" without a window. */
static const char *window(char text[WINDOW_BYTES], const Node *node) {
    text[0] = '\0';
    if (node->op != OP_CONV && node->op != OP_MAX_POOL && node->op != OP_AVERAGE_POOL)
        return text;
    const ConvShape *w = &node->window;
    int used = snprintf(text, WINDOW_BYTES, "%d x %d", w->kernel_height, w->kernel_width);
    if (w->stride_height > 1 || w->stride_width > 1)
        used += snprintf(text + used, (size_t)(WINDOW_BYTES - used), " / %d", w->stride_height);
    if (w->stride_height != w->stride_width)
        snprintf(text + used, (size_t)(WINDOW_BYTES - used), " x %d", w->stride_width);
    return text;
}

/* ---- Text ------------------------------------------------------------------------------------------------------- */

typedef struct {
    int value[COLUMNS]; /* node whose value runs there, or NONE */
    int used;           /* columns ever used so far: the first ones */
} Rails;

static bool reads(const Node *node, int value) {
    for (int k = 0; k < node->n_inputs; k++)
        if (node->inputs[k] == value)
            return true;
    return false;
}

/* The column of node i: the first of a value that ends with it, else the first free one; NONE when there is none. */
static int column_of(const Rails *rails, const int *last, int i) {
    for (int c = 0; c < COLUMNS; c++)
        if (rails->value[c] != NONE && last[rails->value[c]] == i)
            return c;
    for (int c = 0; c < COLUMNS; c++)
        if (rails->value[c] == NONE)
            return c;
    return NONE;
}

/* The line's columns, as wide as any line's will be; then the value of node i takes its own. */
static void draw_line(char line[2 * COLUMNS + 1], Rails *rails, const Node *node, const int *last, int i) {
    const int own = column_of(rails, last, i);
    int from = own, to = own;
    for (int c = 0; c < COLUMNS && own != NONE; c++)
        if (rails->value[c] != NONE && reads(node, rails->value[c])) {
            from = c < from ? c : from;
            to = c > to ? c : to;
        }
    for (int c = 0; c < COLUMNS; c++) {
        const int value = rails->value[c];
        const bool here = value != NONE, ends = here && last[value] == i;
        const bool goes_on = here && !ends && reads(node, value);
        line[2 * c] = c == own ? 'o' : ends ? '\'' : goes_on ? '+' : here ? '|' : c > from && c < to ? '-' : ' ';
        line[2 * c + 1] = c >= from && c < to ? '-' : ' ';
        if (ends)
            rails->value[c] = NONE;
    }
    line[2 * COLUMNS] = '\0';
    if (own != NONE) {
        rails->value[own] = last[i] > i ? i : NONE;
        rails->used = own + 1 > rails->used ? own + 1 : rails->used;
    }
}

void model_draw(Arena *arena, const Graph *graph, int nominal) {
    int *last = ARENA_ARRAY(arena, int, graph->count, "drawing"); /* the last to read each */
    char(*lines)[2 * COLUMNS + 1] = arena_alloc(arena, (uint64_t)graph->count, sizeof *lines, "drawing");
    size_t name = sizeof "layer" - 1, output = sizeof "output" - 1;
    char text[SIZES_BYTES], hole[WINDOW_BYTES];
    Rails rails = {.used = 0};
    for (int c = 0; c < COLUMNS; c++)
        rails.value[c] = NONE;
    for (int i = 0; i < graph->count; i++) {
        const Node *node = &graph->nodes[i];
        for (int k = 0; k < node->n_inputs; k++)
            last[node->inputs[k]] = i;
        name = strlen(node->name) > name ? strlen(node->name) : name;
        const size_t length = strlen(sizes(text, node->shape, nominal));
        output = length > output ? length : output;
    }
    for (int i = 0; i < graph->count; i++)
        draw_line(lines[i], &rails, &graph->nodes[i], last, i);

    printf("\n%*s  %-*s  %-22s  %-11s  %-*s  reads\n", 2 * rails.used - 1, "", (int)name, "layer", "operation",
           "window", (int)output, "output");
    for (int i = 0; i < graph->count; i++) {
        const Node *node = &graph->nodes[i];
        printf("%-*.*s  %-*s  %-22s  %-11s  %-*s ", 2 * rails.used - 1, 2 * rails.used - 1, lines[i], (int)name,
               node->name, graph_op_name(node->op), window(hole, node), (int)output, sizes(text, node->shape, nominal));
        for (int k = 0; k < node->n_inputs; k++)
            printf(" %s", graph->nodes[node->inputs[k]].name);
        printf("\n");
    }
}

/* ---- DOT -------------------------------------------------------------------------------------------------------- */

static const char *colour(const Graph *graph, int i) {
    const Node *node = &graph->nodes[i];
    if (i == 0 || i == graph->logits)
        return "#f6d6ad";
    if (node->op == OP_CONV || node->op == OP_LINEAR || node->op == OP_MATMUL)
        return "#c9def2";
    return node->n_inputs > 1 ? "#d5ebcf" : "#ffffff";
}

static void write_dot(FILE *out, const Graph *graph, int nominal) {
    char text[SIZES_BYTES], hole[WINDOW_BYTES];
    fputs("digraph network {\n  node [shape=box, style=\"rounded,filled\", fontname=\"Helvetica\", fontsize=10, "
          "margin=\"0.12,0.05\"];\n  edge [arrowsize=0.6, color=\"#606060\"];\n",
          out);
    for (int i = 0; i < graph->count; i++) {
        const Node *node = &graph->nodes[i];
        window(hole, node); /* a layer's name needs no escapes: letters, digits, '_', '.' and '-' (onnx_names.c) */
        fprintf(out, "  n%d [fillcolor=\"%s\", label=\"%s\\n%s%s%s\\n%s\"];\n", i, colour(graph, i), node->name,
                graph_op_name(node->op), *hole ? " " : "", hole, sizes(text, node->shape, nominal));
        for (int k = 0; k < node->n_inputs; k++)
            fprintf(out, "  n%d -> n%d;\n", node->inputs[k], i);
    }
    fputs("}\n", out);
}

/* Beside the old file, until it is whole; a device or a pipe is written as it is. */
void model_dot(const Graph *graph, int nominal, const char *path, bool overwrite) {
    struct stat info;
    const bool there = stat(path, &info) == 0, plain = !there || S_ISREG(info.st_mode);
    if (there && !overwrite)
        die("%s: exists already, expected a new file: give --overwrite to replace it", path);
    Arena *arena = arena_new();
    const char *target = plain ? arena_printf(arena, "%s.partial", path) : path;
    signal(SIGXFSZ, SIG_IGN); /* a write past the file-size limit fails with EFBIG, and says so */
    FILE *out = fopen(target, "w");
    if (!out)
        die("%s: cannot be written: %s", path, strerror(errno));
    write_dot(out, graph, nominal);
    int error = fflush(out) || ferror(out) ? errno : 0;
    if (fclose(out) && !error)
        error = errno;
    if (!error && plain && rename(target, path))
        error = errno;
    if (error && plain)
        unlink(target);
    if (error)
        die("%s: cannot be written: %s", path, strerror(error));
    arena_free(arena);
}
