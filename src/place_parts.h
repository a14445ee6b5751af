/* place_parts.h: new samples and the map they are placed in, between place.c and its parts. */
#ifndef CNNSCOPE_PLACE_PARTS_H
#define CNNSCOPE_PLACE_PARTS_H

#include "stages.h"

/* Fixed points are the mapped samples of the stored map, all of them on every rank, in the order of its file; rows are
 * this rank's new samples. Device, but for what is said to be host's. */
typedef struct {
    Job *job;
    Arena *arena; /* of what is on the host */
    const PlaceMap *from;
    const Matrix *features; /* of the new samples */
    PlaceShape shape;
    int64_t *kept;                 /* host (points): number among the samples of the stored file */
    int64_t *position;             /* host (points): in the file that was mapped */
    float *map;                    /* host (points, A) */
    float scale;                   /* a power of two: distances are of numbers times scale */
    float *points, *points_packed; /* (points, D), (.., D, 16) */
    float *map_device, *map_packed;
    Matrix rows; /* what t-SNE would have been given: the features, or their scores */
    float *rows_packed;
    float *y;   /* host (rows, A) */
    double *kl; /* host (rows) */
} Place;

/* Collective. How far the places can be trusted, into the results file; nothing with --neighbors 0. */
void place_trust(const Place *place);

#endif
