/* tsne_order.h: an order of points that keeps near ones together. */
#ifndef CNNSCOPE_TSNE_ORDER_H
#define CNNSCOPE_TSNE_ORDER_H

#include <stdint.h>

/* order (N) <- the points' numbers, in kd-order of x (N, D): halves of whole blocks of 16 points, split across the
 * widest dimension, again and again. Ties go by number: one order for one input. */
void tsne_order(int64_t *order, const float *x, int64_t points, int width);

#endif
