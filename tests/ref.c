/* ref.c: see ref.h. Nothing here is fast or clever; that is its use. */
#include "ref.h"

#include <string.h>

static int64_t at(int b, int c, int y, int x, int C, int H, int W) {
    return (((int64_t)b * C + c) * H + y) * W + x;
}

static bool inside(const ConvShape *s, int y, int x) {
    return y >= 0 && y < s->in_height && x >= 0 && x < s->in_width;
}

/* Every (sample, output channel, output pixel, input channel, tap) of a convolution that lies inside, once. */
typedef void (*Visit)(double *result, const double *given, int64_t in_at, int64_t out_at, double weight);

static void each_product(double *result, const double *given, const float *weight, const ConvShape *s, int B,
                         Visit visit) {
    for (int b = 0; b < B; b++)
        for (int k = 0; k < s->out_channels; k++)
            for (int y = 0; y < s->out_height; y++)
                for (int x = 0; x < s->out_width; x++)
                    for (int c = 0; c < s->in_channels; c++)
                        for (int i = 0; i < s->kernel_height; i++)
                            for (int j = 0; j < s->kernel_width; j++) {
                                int in_y = y * s->stride_height - s->pad_top + i;
                                int in_x = x * s->stride_width - s->pad_left + j;
                                if (inside(s, in_y, in_x))
                                    visit(result, given,
                                          at(b, c, in_y, in_x, s->in_channels, s->in_height, s->in_width),
                                          at(b, k, y, x, s->out_channels, s->out_height, s->out_width),
                                          weight[at(k, c, i, j, s->in_channels, s->kernel_height, s->kernel_width)]);
                            }
}

static void add_forward(double *out, const double *in, int64_t in_at, int64_t out_at, double weight) {
    out[out_at] += weight * in[in_at];
}

static void add_backward(double *din, const double *dout, int64_t in_at, int64_t out_at, double weight) {
    din[in_at] += weight * dout[out_at];
}

static void zero(double *values, int64_t count) {
    memset(values, 0, (size_t)count * sizeof *values);
}

void ref_conv(double *out, const double *in, const float *weight, const float *bias, const ConvShape *s, int B) {
    const int64_t pixels = (int64_t)s->out_height * s->out_width;
    for (int64_t i = 0; i < B * s->out_channels * pixels; i++)
        out[i] = bias ? bias[i / pixels % s->out_channels] : 0;
    each_product(out, in, weight, s, B, add_forward);
}

void ref_conv_backward(double *din, const double *dout, const float *weight, const ConvShape *s, int B) {
    zero(din, (int64_t)B * s->in_channels * s->in_height * s->in_width);
    each_product(din, dout, weight, s, B, add_backward);
}

void ref_affine(double *out, const double *in, const float *scale, const float *shift, bool relu, int B, int C,
                int pixels) {
    for (int64_t i = 0; i < (int64_t)B * C * pixels; i++) {
        const int64_t c = i / pixels % C;
        const double y = scale ? in[i] * (double)scale[c] + (double)shift[c] : in[i];
        out[i] = relu && y < 0 ? 0 : y;
    }
}

void ref_affine_backward(double *din, const double *dout, const double *out, const float *scale, bool relu, int B,
                         int C, int pixels) {
    for (int64_t i = 0; i < (int64_t)B * C * pixels; i++) {
        const double g = relu && out[i] <= 0 ? 0 : dout[i];
        din[i] = scale ? g * (double)scale[i / pixels % C] : g;
    }
}

/* Where the maximum of an output is, in `in`. */
static int64_t largest(const double *in, const ConvShape *s, int b, int c, int y, int x) {
    int64_t best = -1;
    for (int i = 0; i < s->kernel_height; i++)
        for (int j = 0; j < s->kernel_width; j++) {
            int in_y = y * s->stride_height - s->pad_top + i, in_x = x * s->stride_width - s->pad_left + j;
            int64_t here = at(b, c, in_y, in_x, s->in_channels, s->in_height, s->in_width);
            if (inside(s, in_y, in_x) && (best < 0 || in[here] > in[best]))
                best = here;
        }
    return best;
}

void ref_max_pool(double *out, const double *in, const ConvShape *s, int B) {
    for (int b = 0; b < B; b++)
        for (int c = 0; c < s->in_channels; c++)
            for (int y = 0; y < s->out_height; y++)
                for (int x = 0; x < s->out_width; x++)
                    *out++ = in[largest(in, s, b, c, y, x)];
}

void ref_max_pool_backward(double *din, const double *dout, const double *in, const ConvShape *s, int B) {
    zero(din, (int64_t)B * s->in_channels * s->in_height * s->in_width);
    for (int b = 0; b < B; b++)
        for (int c = 0; c < s->in_channels; c++)
            for (int y = 0; y < s->out_height; y++)
                for (int x = 0; x < s->out_width; x++)
                    din[largest(in, s, b, c, y, x)] += *dout++;
}

void ref_global_average(double *out, const double *in, int B, int C, int pixels) {
    for (int64_t i = 0; i < (int64_t)B * C; i++) {
        out[i] = 0;
        for (int p = 0; p < pixels; p++)
            out[i] += in[i * pixels + p] / pixels;
    }
}

void ref_global_average_backward(double *din, const double *dout, int B, int C, int pixels) {
    for (int64_t i = 0; i < (int64_t)B * C * pixels; i++)
        din[i] = dout[i / pixels] / pixels;
}

void ref_linear(double *out, const double *in, const float *weight, const float *bias, int B, int inputs, int outputs) {
    for (int b = 0; b < B; b++)
        for (int k = 0; k < outputs; k++) {
            double sum = bias ? bias[k] : 0;
            for (int i = 0; i < inputs; i++)
                sum += (double)weight[(int64_t)k * inputs + i] * in[(int64_t)b * inputs + i];
            out[(int64_t)b * outputs + k] = sum;
        }
}

void ref_linear_backward(double *din, const double *dout, const float *weight, int B, int inputs, int outputs) {
    for (int b = 0; b < B; b++)
        for (int i = 0; i < inputs; i++) {
            double sum = 0;
            for (int k = 0; k < outputs; k++)
                sum += (double)weight[(int64_t)k * inputs + i] * dout[(int64_t)b * outputs + k];
            din[(int64_t)b * inputs + i] = sum;
        }
}

void ref_node(double *out, const double *in, const Node *n, Shape s, int B) {
    const int pixels = s.height * s.width;
    switch (n->op) {
    case OP_CONV: ref_conv(out, in, n->weight, n->bias, &n->window, B); break;
    case OP_BATCH_NORM: ref_affine(out, in, n->weight, n->bias, false, B, s.channels, pixels); break;
    case OP_RELU: ref_affine(out, in, NULL, NULL, true, B, s.channels, pixels); break;
    case OP_MAX_POOL: ref_max_pool(out, in, &n->window, B); break;
    case OP_GLOBAL_AVERAGE_POOL: ref_global_average(out, in, B, s.channels, pixels); break;
    case OP_LINEAR: ref_linear(out, in, n->weight, n->bias, B, (int)shape_size(s), n->outputs); break;
    case OP_INPUT:
    case OP_COUNT: break;
    }
}

void ref_node_backward(double *din, const double *dout, const double *out, const double *in, const Node *n, Shape s,
                       int B) {
    const int pixels = s.height * s.width;
    switch (n->op) {
    case OP_CONV: ref_conv_backward(din, dout, n->weight, &n->window, B); break;
    case OP_BATCH_NORM: ref_affine_backward(din, dout, NULL, n->weight, false, B, s.channels, pixels); break;
    case OP_RELU: ref_affine_backward(din, dout, out, NULL, true, B, s.channels, pixels); break;
    case OP_MAX_POOL: ref_max_pool_backward(din, dout, in, &n->window, B); break;
    case OP_GLOBAL_AVERAGE_POOL: ref_global_average_backward(din, dout, B, s.channels, pixels); break;
    case OP_LINEAR: ref_linear_backward(din, dout, n->weight, B, (int)shape_size(s), n->outputs); break;
    case OP_INPUT:
    case OP_COUNT: break;
    }
}

void ref_graph(double **values, const Graph *g, int B) {
    for (int i = 1; i < g->count; i++)
        ref_node(values[i], values[g->nodes[i].input], &g->nodes[i], g->nodes[g->nodes[i].input].shape, B);
}

void ref_graph_backward(double **gradients, double *const *values, const Graph *g, int B) {
    for (int i = g->logits; i > 0; i = g->nodes[i].input) {
        const int from = g->nodes[i].input;
        ref_node_backward(gradients[from], gradients[i], values[i], values[from], &g->nodes[i], g->nodes[from].shape,
                          B);
    }
}
