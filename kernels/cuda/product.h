/* product.h: the product of two matrices of floats with any steps (linear.cu), for layers and for values. */
#ifndef CNNSCOPE_PRODUCT_H
#define CNNSCOPE_PRODUCT_H

#include "gpu.h"

struct ProductAxis {
    int64_t size, c_step, a_step, b_step;
};

/* c (M, N) = a (M, K) b (K, N), for every index of the `kept` axes, summed over that of the `summed` ones. Steps in
 * floats; c is dense. */
struct Product {
    int M, N, K;
    int64_t a_m, a_k, b_k, b_n;
    int kept_count, summed_count;
    ProductAxis kept[KDIMS + 1], summed[KDIMS + 1];
};

/* bias (N) is added to every row of c, or NULL. parts 1, or with no axes the depth is cut into so many equal parts, whose
 * products c (parts, M, N) stand one behind the other. */
void gpu_product(Lane *lane, float *c, const float *a, const float *b, const float *bias, const Product *product,
                 int parts);

#endif
