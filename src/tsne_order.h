/* tsne_order.h: an order of points that keeps near ones together. */
#ifndef CNNSCOPE_TSNE_ORDER_H
#define CNNSCOPE_TSNE_ORDER_H

#include <stdint.h>

/* order (N) <- the points' numbers, by halving x (N, D): halves of whole blocks of 16 points, split across their longest
 * axis (the principal one, nearly), again and again (a principal axis tree: McNames 2001). Ties go by number: one order
 * for one input. scale: a power of two; x times it has squares that can be summed. */
void tsne_order(int64_t *order, const float *x, int64_t points, int width, float scale);

#endif
