/* place_map.c: finds the maps of a results file. See place_map.h. */
#include "place_map.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "output.h"
#include "progress.h"

typedef struct {
    Arena *arena;
    const char *path;
    const char **names; /* of its variables */
    int count;
} Stored;

static bool is_there(const Stored *stored, const char *layer, const char *suffix);
static char *maps_there(const Stored *stored);
static void choose_by_model(const Stored *stored, Options *options, const Model *model);
static void choose_alone(const Stored *stored, Options *options);
static void open_map(PlaceMap *map, const Stored *stored, const char *layer, int64_t width);

PlaceMap *place_maps(Arena *arena, int *count, Options *options, const Model *model, int64_t width) {
    Stored stored = {.arena = arena, .path = options->map};
    stored.names = dataset_result_names(arena, options->map, &stored.count);
    const bool any =
        !options->embed_given || (options->embed.count == 1 && strcmp(options->embed.items[0], "all") == 0);
    if (model && !dataset_result_says(options->map, "model_sha256", model->sha256))
        progress_say("%s was not made with %s: unless that is the same network in another file, its map says nothing",
                     options->map, options->model);
    if (any && model)
        choose_by_model(&stored, options, model);
    else if (any)
        choose_alone(&stored, options);
    *count = options->embed.count;
    PlaceMap *maps = ARENA_ARRAY(arena, PlaceMap, *count, "maps");
    for (int i = 0; i < *count; i++) {
        char layer[96];
        snprintf(layer, sizeof layer, "%s", options->embed.items[i]);
        if (model) {
            const Node *node = &model->graph->nodes[model_layer(model, options->embed.items[i], "embed")];
            output_layer_name(layer, sizeof layer, node->name);
            width = shape_size(node->shape);
        }
        open_map(&maps[i], &stored, layer, width);
    }
    return maps;
}

static bool is_there(const Stored *stored, const char *layer, const char *suffix) {
    char name[192];
    snprintf(name, sizeof name, "%s%s", layer, suffix);
    for (int i = 0; i < stored->count; i++)
        if (strcmp(stored->names[i], name) == 0)
            return true;
    return false;
}

/* The layer of a variable LAYER_tsne; NULL: the variable is another. */
static char *layer_of(const Stored *stored, const char *variable) {
    const size_t length = strlen(variable), end = strlen("_tsne");
    if (length <= end || strcmp(variable + length - end, "_tsne") != 0)
        return NULL;
    return arena_printf(stored->arena, "%.*s", (int)(length - end), variable);
}

static char *maps_there(const Stored *stored) {
    char *text = "";
    for (int i = 0; i < stored->count; i++) {
        const char *layer = layer_of(stored, stored->names[i]);
        if (layer && strlen(text) < 500)
            text = arena_printf(stored->arena, "%s%s%s", text, text[0] ? ", " : "", layer);
    }
    return text[0] ? text : "no layer";
}

static void choose_by_model(const Stored *stored, Options *options, const Model *model) {
    const Graph *graph = model->graph;
    char **layers = ARENA_ARRAY(stored->arena, char *, graph->count, "layers");
    options->embed = (List){0, layers};
    for (int i = 1; i < graph->count; i++) {
        char layer[96];
        output_layer_name(layer, sizeof layer, graph->nodes[i].name);
        if (graph_is_distinct(graph, i) && is_there(stored, layer, "_tsne"))
            layers[options->embed.count++] = arena_printf(stored->arena, "%s", graph->nodes[i].name);
    }
    if (options->embed.count == 0)
        die("%s: has t-SNE maps of %s, expected one of a layer of %s; make it with --embed and that model",
            stored->path, maps_there(stored), options->model);
}

static void choose_alone(const Stored *stored, Options *options) {
    char **layer = ARENA_ARRAY(stored->arena, char *, 1, "layers"), *one;
    options->embed = (List){0, layer};
    for (int i = 0; i < stored->count; i++)
        if ((one = layer_of(stored, stored->names[i]))) {
            layer[0] = one;
            options->embed.count++;
        }
    if (options->embed.count != 1)
        die("%s: has t-SNE maps of %s, expected one; %s", stored->path, maps_there(stored),
            options->embed.count ? "choose it with --embed LAYER" : "make one (--tsne 2)");
}

static Dataset *open_part(const Stored *stored, const char *layer, const char *suffix, int rank) {
    Dataset *part = dataset_open(stored->arena, arena_printf(stored->arena, "%s:%s%s", stored->path, layer, suffix));
    if (part->rank < rank)
        die("%s: an array of %d dimensions, expected at least %d; is the file damaged?", part->spec, part->rank, rank);
    return part;
}

static void open_map(PlaceMap *map, const Stored *stored, const char *layer, int64_t width) {
    if (!is_there(stored, layer, "_tsne"))
        die("%s: has t-SNE maps of %s, expected one of %s; choose with --embed", stored->path, maps_there(stored),
            layer);
    const char *variable = arena_printf(stored->arena, "%s_tsne", layer);
    const double pre_pca = dataset_result_number(stored->path, variable, "pre_pca");
    *map = (PlaceMap){.layer = arena_printf(stored->arena, "%s", layer),
                      .perplexity = dataset_result_number(stored->path, variable, "perplexity"),
                      .reduced = pre_pca > 0};
    if (isnan(pre_pca) || !(map->perplexity >= 1))
        die("%s:%s: has no pre_pca, or no perplexity that is one number, among its attributes, expected a map by one "
            "perplexity; make it again with --perplexity P",
            stored->path, variable);
    const char *points = map->reduced ? "_pre_pca" : "";
    if (!is_there(stored, layer, points) || !is_there(stored, "sample", "") ||
        (map->reduced &&
         (!is_there(stored, layer, "_pre_pca_components") || !is_there(stored, layer, "_pre_pca_center"))))
        die("%s: has no features of %s, expected %s%s beside its map; make the map again with this version",
            stored->path, layer, layer, points);
    map->map = open_part(stored, layer, "_tsne", 2);
    map->points = open_part(stored, layer, points, 2);
    map->position = open_part(stored, "sample", "", 1);
    map->map->holes = true;
    map->samples = map->map->shape[0];
    map->axes = (int)map->map->shape[1];
    const int64_t of_points = dataset_row_size(map->points);
    int64_t features = of_points;
    if (map->reduced) {
        map->components = open_part(stored, layer, "_pre_pca_components", 2);
        map->center = open_part(stored, layer, "_pre_pca_center", 1);
        features = dataset_row_size(map->components);
        if (map->components->shape[0] != of_points || map->center->shape[0] * dataset_row_size(map->center) != features)
            die("%s: its principal components are %lld of %lld numbers, expected %lld; is the file damaged?",
                stored->path, (long long)map->components->shape[0], (long long)features, (long long)of_points);
    }
    if ((map->axes != 2 && map->axes != 3) || map->map->rank != 2 || map->samples > INT32_MAX / 2 ||
        map->points->shape[0] != map->samples || map->position->shape[0] != map->samples ||
        dataset_row_size(map->position) != 1 || of_points > INT32_MAX / 8)
        die("%s: its map of %s and what belongs to it are of different sizes; is the file damaged?", stored->path,
            layer);
    if (features != width)
        die("%s: its map of %s is of %lld numbers a sample, but the new ones have %lld; give features of the same "
            "layer "
            "(or another map, with --embed)",
            stored->path, layer, (long long)features, (long long)width);
    map->features = (int)features;
    map->width = (int)of_points;
}
