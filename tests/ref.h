/* ref.h: the network's operations in double precision, plain loops, as their definitions read: what the fast kernels
 * are compared with. Values are (B, C, H, W), C order. Gradients are with respect to the input, `d` for gradient. */
#ifndef CNNSCOPE_REF_H
#define CNNSCOPE_REF_H

#include "graph.h"

/* The next of evenly spread random numbers from -1 to 1 (splitmix64); the tests' one generator. */
double ref_uniform(uint64_t *state);

void ref_conv(double *out, const double *in, const float *weight, const float *bias, const ConvShape *s, int B);
void ref_conv_backward(double *din, const double *dout, const float *weight, const ConvShape *s, int B);

/* y = x * scale[c] + shift[c] (scale NULL: y = x), then max(y, 0) if relu. */
void ref_affine(double *out, const double *in, const float *scale, const float *shift, bool relu, int B, int C,
                int pixels);
void ref_affine_backward(double *din, const double *dout, const double *out, const float *scale, bool relu, int B,
                         int C, int pixels);

/* The first largest value of each window, in row-major order; padding takes no part. */
void ref_max_pool(double *out, const double *in, const ConvShape *s, int B);
void ref_max_pool_backward(double *din, const double *dout, const double *in, const ConvShape *s, int B);

void ref_global_average(double *out, const double *in, int B, int C, int pixels);
void ref_global_average_backward(double *din, const double *dout, int B, int C, int pixels);

void ref_linear(double *out, const double *in, const float *weight, const float *bias, int B, int inputs, int outputs);
void ref_linear_backward(double *din, const double *dout, const float *weight, int B, int inputs, int outputs);

/* One node, from the values it reads (of shapes in_shape). Backward: of the layers above only; other operations are
 * differentiated by finite differences of this. A whole network: values[i], gradients[i] (B * shape_size of node i),
 * values[0 .. from - 1] and the gradient of the logits given; ref_graph_backward: of a chain of the layers above. */
void ref_node(double *out, const double *const *in, const Node *node, const Shape *in_shape, int B);
void ref_node_backward(double *din, const double *dout, const double *out, const double *in, const Node *node,
                       Shape in_shape, int B);
void ref_graph(double **values, const Graph *graph, int from, int B);
void ref_graph_backward(double **gradients, double *const *values, const Graph *graph, int B);

/* Forces of t-SNE on each of N points y (N, A) by all others: repulsion sum of w^2 (y_i - y_j), attraction sum of p w
 * (y_i - y_j) for p (N, N), both (N, A); totals (2): sum of w and of - p ln w over all ordered pairs. w is
 * (1 + S / dof)^(-(dof + 1) / 2) of the squared distance S, dof = A - 1, as scikit-learn has it. */
void ref_tsne_forces(double *repulsion, double *attraction, double *totals, const float *y, const double *p, int N,
                     int A);

/* Squared distances (N, N) of points x (N, D); and of point i the place of each point j among the others, from 0, by
 * distance and number (N, N). */
void ref_neighbors(double *distance, int32_t *place, const float *x, int N, int D);

#endif
