/* onnx_names.c: the file's names, and those that layers get.
 *
 * Layers are asked for by name and become parts of variables' names, so they keep to letters, digits, '_', '.' and '-',
 * and are unique with '.' and '_' taken as one. PyTorch's older exporter calls a node by the modules it is in and its
 * operation, as /layer1/layer1.0/conv1/Conv: what is left of it is layer1.0.conv1. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "onnx_parts.h"

enum { LONGEST = 72 };

/* ---- Values ----------------------------------------------------------------------------------------------------- */

static uint64_t hash_of(const char *name) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 1099511628211u;
    return hash ^ hash >> 32;
}

void onnx_values_init(Onnx *onnx) {
    int64_t names = (int64_t)onnx->file->n_initializer + (int64_t)onnx->file->n_input;
    for (size_t i = 0; i < onnx->file->n_node; i++)
        names += (int64_t)onnx->file->node[i]->n_output;
    if (names > 1 << 24)
        die("%s: names %lld values, expected a network: the file is damaged", onnx->path, (long long)names);
    for (onnx->slot_count = 64; onnx->slot_count < 2 * names; onnx->slot_count *= 2)
        ;
    onnx->slots = ARENA_ARRAY(onnx->arena, int, onnx->slot_count, onnx->path); /* index + 1 */
    onnx->values = ARENA_ARRAY(onnx->arena, OnnxValue, names + 1, onnx->path);
}

static int slot_of(const Onnx *onnx, const char *name) {
    int slot = (int)(hash_of(name) % (uint64_t)onnx->slot_count);
    while (onnx->slots[slot] && strcmp(onnx->values[onnx->slots[slot] - 1].name, name) != 0)
        slot = (slot + 1) % onnx->slot_count;
    return slot;
}

int onnx_value_find(const Onnx *onnx, const char *name) {
    return onnx->slots[slot_of(onnx, name)] - 1;
}

int onnx_value_add(Onnx *onnx, const char *name) {
    int slot = slot_of(onnx, name);
    if (onnx->slots[slot])
        die("%s: two values are called %.200s, expected one: the file is damaged", onnx->path, name);
    onnx->values[onnx->value_count] = (OnnxValue){.name = name, .node = NONE, .maker = NONE};
    onnx->slots[slot] = ++onnx->value_count;
    return onnx->value_count - 1;
}

/* ---- Layers ----------------------------------------------------------------------------------------------------- */

static bool ends_with(const char *name, const char *end) {
    size_t length = strlen(name), tail = strlen(end);
    return length > tail && !strcmp(name + length - tail, end);
}

/* "onnx::Conv_123" is the exporter's own number, no layer of the user's. */
static bool weight_name(char out[256], const OnnxConstant *weight) {
    if (!weight || !weight->name[0] || strstr(weight->name, "::"))
        return false;
    const int cut = ends_with(weight->name, ".weight") || ends_with(weight->name, "_weight") ? 7 : 0;
    snprintf(out, 256, "%.*s", cut ? (int)strlen(weight->name) - cut : 0, weight->name);
    return cut != 0 && strlen(weight->name) < 256;
}

static bool is_operation(const char *piece, const char *op) { /* "Relu" or "Relu_1" */
    size_t length = strlen(op);
    return !strncmp(piece, op, length) && (piece[length] == '\0' || piece[length] == '_');
}

static void node_name(char out[256], const char *name, const char *op) {
    char text[256], *pieces[32], *rest = text;
    int count = 0;
    snprintf(text, sizeof text, "%s", name[0] == '/' ? name + 1 : name);
    for (char *piece; count < 32 && (piece = strsep(&rest, "/"));)
        if (piece[0])
            pieces[count++] = piece;
    char tail[64] = "";
    if (count > 1 && is_operation(pieces[count - 1], op))
        snprintf(tail, sizeof tail, "%.60s", pieces[--count] + strlen(op));
    int used = 0;
    out[0] = '\0';
    for (int i = 0; i < count; i++) {
        size_t length = strlen(pieces[i]);
        bool repeats = i + 1 < count && !strncmp(pieces[i], pieces[i + 1], length) && pieces[i + 1][length] == '.';
        if (!repeats && used < 256)
            used += snprintf(out + used, (size_t)(256 - used), "%s%s", used ? "." : "", pieces[i]);
    }
    if (used < 256)
        snprintf(out + used, (size_t)(256 - used), "%s", tail);
}

static bool is_taken(const Onnx *onnx, const char *name) {
    /* Names the results file uses itself. */
    static const char *const own[] = {
        "input",         "logits",     "image", "label", "prediction", "sample", "gradcam", "saliency", "sample_name",
        "category_name", "map_sample", "all",   "none",  "channel",    "y",      "x",       "category", "name_length"};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!strcmp(own[i], name))
            return true;
    for (int i = 0; i < onnx->taken_count; i++)
        if (!strcmp(onnx->taken[i], name))
            return true;
    return false;
}

static void sanitise(char *name) {
    if (strlen(name) > LONGEST)
        name[LONGEST] = '\0';
    char *to = name;
    for (const char *c = name; *c; c++)
        if (isalnum((unsigned char)*c) || *c == '_' || *c == '-' || (*c == '.' && to > name))
            *to++ = *c;
        else if (to > name && to[-1] != '_')
            *to++ = '_';
    while (to > name && (to[-1] == '.' || to[-1] == '_'))
        to--;
    *to = '\0';
}

static void as_variable(char out[128], const char *name) {
    snprintf(out, 128, "%s", name);
    for (char *c = out; *c; c++)
        *c = *c == '.' ? '_' : *c;
}

const char *onnx_layer_name(Onnx *onnx, const Onnx__NodeProto *node, const OnnxConstant *weight, const char *part) {
    char name[256] = "", unique[128], variable[128];
    if (!weight_name(name, weight))
        node_name(name, node->name && node->name[0] ? node->name : node->op_type, node->op_type);
    sanitise(name);
    if (!name[0])
        snprintf(name, sizeof name, "%.40s", node->op_type);
    sanitise(name);
    snprintf(unique, sizeof unique, "%s%s%s", name, part[0] ? "." : "", part);
    as_variable(variable, unique);
    for (int i = 0; is_taken(onnx, variable); i = i < 8 ? i + 1 : i + onnx->taken_count) {
        if (i == 0)
            snprintf(unique, sizeof unique, "%s.%.40s", name, part[0] ? part : node->op_type);
        else
            snprintf(unique, sizeof unique, "%s%s%.40s_%d", name, part[0] ? "." : "", part, i);
        as_variable(variable, unique);
    }
    onnx->taken[onnx->taken_count++] = arena_printf(onnx->arena, "%s", variable);
    return arena_printf(onnx->arena, "%s", unique);
}

const char *onnx_node_text(const Onnx *onnx, const Onnx__NodeProto *node) {
    const char *name = node->name && node->name[0] ? node->name : node->n_output ? node->output[0] : "";
    return arena_printf(onnx->arena, "%.60s node %.200s", node->op_type, name);
}
