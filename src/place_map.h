/* place_map.h: t-SNE maps in a results file, into which new samples are to be placed. */
#ifndef CNNSCOPE_PLACE_MAP_H
#define CNNSCOPE_PLACE_MAP_H

#include "arena.h"
#include "dataset.h"
#include "model.h"
#include "options.h"

/* What is known of one before its numbers are read. */
typedef struct {
    const char *layer;   /* in the names of the file's variables */
    int64_t samples;     /* of the file; those left out by --tsne-samples have no place on the map */
    int axes;            /* 2 or 3 */
    int features, width; /* numbers of a sample: of the layer; of what t-SNE was given, after --pre-pca */
    double perplexity;
    bool reduced;                 /* by --pre-pca */
    Dataset *map, *position;      /* (samples, axes), NaN: not mapped; (samples) in the file that was mapped */
    Dataset *points;              /* (samples, width) what t-SNE was given */
    Dataset *components, *center; /* (width, features), (features), if reduced */
} PlaceMap;

/* The maps of --map: those of --embed, or of all layers that the model has; without a model the only one. Sets
 * options->embed to these layers. Dies where the file is none of ours, has none of them or lacks the features, or where
 * these are not of that layer's width (of `width` without a model). */
PlaceMap *place_maps(Arena *arena, int *count, Options *options, const Model *model, int64_t width);

#endif
