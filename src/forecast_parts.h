/* forecast_parts.h: what a trial measured, between forecast.c, which makes it, and forecast_sheet.c, which multiplies it
 * up. Private to the two. Seconds are those of the slowest rank of the trial. */
#ifndef CNNSCOPE_FORECAST_PARTS_H
#define CNNSCOPE_FORECAST_PARTS_H

#include "pass.h"

/* A layer to map. Of t-SNE, the trial had `points` points, on `ranks` ranks. */
typedef struct {
    char key[112]; /* its name as in run_seconds_pca_KEY */
    int width, components;
    bool writes_features;                /* they are a variable of the result */
    double pca_seconds, pca_row_seconds; /* pca_seconds + rows of the fullest rank * pca_row_seconds */
    int map_width;                       /* numbers of a point; 0: no t-SNE */
    int64_t judged_by;                   /* samples that tell the size of P; 0: it is taken to be full */
    double cells, values;                /* of the whole P, of the largest one, estimated */
    double cells_of_maps;                /* of the P of each map, added up */
    int64_t points;
    double trial_cells;
    double gather_seconds, affinity_seconds;                                    /* of the trial */
    double repulsion_seconds, attraction_seconds, update_seconds, comm_seconds; /* of one iteration of it */
    int64_t judged;       /* points of the trial of trust; 0: it is not asked for */
    int judged_maps;      /* maps it measures */
    double trust_seconds; /* of the trial */
} LayerTrial;

typedef struct {
    const Job *job;
    int64_t mapped;      /* points of t-SNE */
    ForwardPlan network; /* of the network; first NULL for `embed` */
    int64_t chosen;      /* samples of the second pass */
    int layer_count;
    LayerTrial *layers;
    int64_t tried;                             /* samples of the trial */
    double sample_seconds, map_sample_seconds; /* of one sample on a rank; and of one of the second pass */
    double prepare_seconds;                    /* before the first sample */
    double network_bytes;                      /* weights as the kernels want them, code made for them */
    double lane_bytes;                         /* of all lanes of a rank */
    double program_bytes;                      /* host: program, libraries, model as read, labels */
    double available_bytes;                    /* device memory for one rank, with what it has already */
    double result_bytes, forward_bytes;        /* in the file; of these, written in the stage `forward` or `read` */
    double judged_bytes;                       /* in the file, of predictions */
    double byte_seconds, flush_byte_seconds;   /* to write one; to bring it to the disk */
} Forecast;

/* Prints the sheet for `ranks` ranks, on rank 0. Dies where it does not fit, naming the least ranks that do. Collective. */
void forecast_print(const Forecast *f, int ranks);

#endif
