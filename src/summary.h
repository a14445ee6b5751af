/* summary.h: attribution maps of a whole test set without the map of any sample: mean and variance of each category's, and
 * the mean of the right and of the wrong predictions. Private to forward.c, pass.c and summary.c. */
#ifndef CNNSCOPE_SUMMARY_H
#define CNNSCOPE_SUMMARY_H

#include "attribution.h"

typedef struct Summary Summary;

/* Declares the variables; allocates nothing but a few pointers until the first summary_add. Collective. */
Summary *summary_new(Arena *arena, Job *job, const Attribution *attribution);

/* Adds the maps of `count` samples, all methods; of the rank's samples from `at` on. maps[m]: host (count, C, H, W), low[m],
 * high[m] (count) their bounds, NULL where a method has none. Not Collective. */
void summary_add(Summary *summary, const float *const *maps, const float *const *low, const float *const *high,
                 int64_t at, int64_t count);

void summary_write(Summary *summary); /* Collective */

/* Host bytes of the sums on a rank. */
double summary_bytes(const Job *job, const Attribution *attribution);

#endif
