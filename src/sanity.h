/* sanity.h: whether attribution methods see what the network has learnt (Adebayo et al. 2018, Sixt et al. 2020). Private
 * to forward.c, forecast*.c and sanity*.c.
 *
 * Weights are drawn anew layer by layer, from the last to the first, and each method's maps of the same samples and
 * outputs are compared with those of the trained network; and once those of the trained network for another output. A
 * method whose maps stay as they were shows the image, not the network: it fails, and the file says so. */
#ifndef CNNSCOPE_SANITY_H
#define CNNSCOPE_SANITY_H

#include "attribution.h"

/* Collective. On --sanity samples, evenly spread, into the results file. maps (methods): the variables of their maps
 * there, which are flagged; -1: none. Each network that was tried becomes a part of the checkpoint. */
void sanity(Job *job, const Attribution *a, const int *maps);

int64_t sanity_samples(const Job *job, const Attribution *a); /* of the job; 0: no tests are asked for */
int sanity_networks(
    const Job *job); /* passes over these samples: the trained one, those of random weights, another output */

/* Host bytes of a rank with so many of these samples. */
double sanity_bytes(const Attribution *a, int64_t samples);

/* ---- sanity_weights.c ------------------------------------------------------------------------------------------- */

enum { SANITY_STEPS_MOST = 16 };

/* Step k draws the nodes from[k] ... from[k - 1] - 1 anew, the first one from[0] to the last. A step has a layer of
 * weights with the norms behind it; in networks of more than SANITY_STEPS_MOST layers, neighbouring ones together. */
typedef struct {
    int count;
    int from[SANITY_STEPS_MOST];
    int layer[SANITY_STEPS_MOST]; /* the node that gives it its name: the first with weights */
} SanitySteps;
SanitySteps sanity_steps(const Graph *graph);

/* Weights and biases of the nodes [from, to) become normal deviates of the same mean and standard deviation, tensor by
 * tensor, keyed on (seed, node, element). */
void sanity_draw(Arena *arena, Graph *graph, int from, int to, uint64_t seed);

/* ---- sanity_alike.c --------------------------------------------------------------------------------------------- */

/* A map (H, W) as it is compared: the ranks of its magnitudes, equals sharing the mean of theirs, and the magnitudes
 * scaled to 0..1. Of a map that is not finite or does not vary: all zeros. keys (pixels): scratch. */
void sanity_view(float *rank, float *scaled, const float *map, int64_t pixels, uint64_t *keys);

/* Spearman's correlation of two maps, from their ranks; 0 where one does not vary. */
double sanity_correlation(const float *a, const float *b, int64_t pixels);

/* Mean structural similarity of two scaled maps (Wang et al. 2004): windows of 7 x 7, of equal weights, that lie inside
 * (smaller ones in smaller maps), sample covariance, range 1: scikit-image's structural_similarity. */
double sanity_ssim(const float *a, const float *b, int H, int W);

#endif
