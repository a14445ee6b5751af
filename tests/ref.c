/* ref.c: see ref.h. Nothing here is fast or clever; that is its use. */
#include "ref.h"

#include <math.h>
#include <string.h>

double ref_uniform(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-52 - 1;
}

static int64_t at(int b, int c, int y, int x, int C, int H, int W) {
    return (((int64_t)b * C + c) * H + y) * W + x;
}

static bool inside(const ConvShape *s, int y, int x) {
    return y >= 0 && y < s->in_height && x >= 0 && x < s->in_width;
}

static int apart(int dilation) { /* also groups: 0 means 1 */
    return dilation > 0 ? dilation : 1;
}

/* Every (sample, output channel, output pixel, input channel, tap) of a convolution that lies inside, once. */
typedef void (*Visit)(double *result, const double *given, int64_t in_at, int64_t out_at, double weight);

static void each_product(double *result, const double *given, const float *weight, const ConvShape *s, int B,
                         Visit visit) {
    const int groups = apart(s->groups), in_group = s->in_channels / groups, out_group = s->out_channels / groups;
    for (int b = 0; b < B; b++)
        for (int k = 0; k < s->out_channels; k++)
            for (int y = 0; y < s->out_height; y++)
                for (int x = 0; x < s->out_width; x++)
                    for (int c = 0; c < in_group; c++)
                        for (int i = 0; i < s->kernel_height; i++)
                            for (int j = 0; j < s->kernel_width; j++) {
                                int in_y = y * s->stride_height - s->pad_top + i * apart(s->dilation_height);
                                int in_x = x * s->stride_width - s->pad_left + j * apart(s->dilation_width);
                                int in_c = k / out_group * in_group + c;
                                if (inside(s, in_y, in_x))
                                    visit(result, given,
                                          at(b, in_c, in_y, in_x, s->in_channels, s->in_height, s->in_width),
                                          at(b, k, y, x, s->out_channels, s->out_height, s->out_width),
                                          weight[at(k, c, i, j, in_group, s->kernel_height, s->kernel_width)]);
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
            int in_y = y * s->stride_height - s->pad_top + i * apart(s->dilation_height);
            int in_x = x * s->stride_width - s->pad_left + j * apart(s->dilation_width);
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

/* ---- Any shape -------------------------------------------------------------------------------------------------- */

/* The index of each axis of value number i of a sample. */
static void unravel(int index[SHAPE_RANK], int64_t i, Shape s) {
    for (int d = s.rank - 1; d >= 0; i /= s.dim[d--])
        index[d] = (int)(i % s.dim[d]);
}

static int64_t ravel(const int index[SHAPE_RANK], Shape s) {
    int64_t i = 0;
    for (int d = 0; d < s.rank; d++)
        i = i * s.dim[d] + index[d];
    return i;
}

static double function(const Node *n, double x) {
    const double alpha = n->scalar.alpha, beta = n->scalar.beta, line = alpha * x + beta;
    switch (n->op) {
    case OP_CLIP: return fmin(fmax(x, n->scalar.low), n->scalar.high);
    case OP_LEAKY_RELU: return x > 0 ? x : alpha * x;
    case OP_ELU: return x > 0 ? x : alpha * (exp(x) - 1);
    case OP_SELU: return beta * (x > 0 ? x : alpha * (exp(x) - 1));
    case OP_SIGMOID: return 1 / (1 + exp(-x));
    case OP_HARD_SIGMOID: return fmin(fmax(line, 0), 1);
    case OP_HARD_SWISH: return x * fmin(fmax(x / 6 + 0.5, 0), 1);
    case OP_TANH: return tanh(x);
    case OP_SOFTPLUS: return log(1 + exp(x));
    case OP_GELU:
        return n->scalar.tanh_form ? x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)))
                                   : x / 2 * (1 + erf(x / sqrt(2)));
    case OP_ERF: return erf(x);
    case OP_SQRT: return sqrt(x);
    case OP_EXP: return exp(x);
    case OP_LOG: return log(x);
    case OP_NEG: return -x;
    case OP_ABS: return fabs(x);
    case OP_RECIPROCAL: return 1 / x;
    case OP_POW: return pow(x, alpha);
    default: return NAN;
    }
}

static double pair(OpKind op, double a, double b) {
    switch (op) {
    case OP_ADD: return a + b;
    case OP_SUB: return a - b;
    case OP_MUL: return a * b;
    case OP_DIV: return a / b;
    case OP_LESS: return a < b;
    case OP_LESS_EQUAL: return a <= b;
    case OP_EQUAL: return a == b;
    case OP_WHERE: return a != 0 ? b : 0;
    case OP_WHERE_NOT: return a != 0 ? 0 : b;
    default: return a > 0 ? a : a * b;
    }
}

/* A value's number for a result's index, where axes of size 1 stand for all. */
static int64_t broadcast(const int index[SHAPE_RANK], int rank, Shape s) {
    int own[SHAPE_RANK] = {0};
    for (int d = 0; d < s.rank; d++)
        own[d] = s.dim[d] == 1 ? 0 : index[d + rank - s.rank];
    return ravel(own, s);
}

static double operand(const Node *n, int side, const double *const *in, const Shape *shape, int b, const int *index) {
    if (n->n_inputs == 1 && n->operand_first == (side == 0))
        return (double)n->operand.values[broadcast(index, n->shape.rank, n->operand.shape)];
    const int k = n->n_inputs == 2 ? side : 0;
    return in[k][b * shape_size(shape[k]) + broadcast(index, n->shape.rank, shape[k])];
}

/* One axis of a resized value: two places and their weights. */
static void places(int at[2], double weight[2], const Node *n, int d, int i, int in) {
    const int out = n->shape.dim[d];
    const double scale = n->resize.scale[d] > 0 ? n->resize.scale[d] : (double)out / in;
    double x = i;
    if (in != out) {
        const double halves = (i + 0.5) / scale - 0.5;
        switch (n->resize.coordinates) {
        case RESIZE_HALF_PIXEL: x = halves; break;
        case RESIZE_PYTORCH_HALF_PIXEL: x = out > 1 ? halves : 0; break;
        case RESIZE_ALIGN_CORNERS: x = out > 1 ? i * (in - 1.0) / (out - 1.0) : 0; break;
        case RESIZE_ASYMMETRIC: x = i / scale; break;
        case RESIZE_TF_HALF_PIXEL: x = (i + 0.5) / scale; break;
        }
    }
    weight[0] = 1 - (x - floor(x)), weight[1] = x - floor(x);
    if (n->resize.mode == RESIZE_NEAREST) {
        static const double before[] = {0.5, 0.5, 0, 0};
        const ResizeNearest how = n->resize.nearest;
        x = how == NEAREST_ROUND_PREFER_FLOOR  ? ceil(x - before[0])
            : how == NEAREST_ROUND_PREFER_CEIL ? floor(x + before[1])
            : how == NEAREST_FLOOR             ? floor(x)
                                               : ceil(x);
        weight[0] = 1, weight[1] = 0;
    }
    for (int t = 0; t < 2; t++)
        at[t] = (int)fmin(fmax(floor(x) + t, 0), in - 1);
}

static double resized(const Node *n, const double *x, Shape s, const int *index) {
    double sum = 0;
    for (int corner = 0; corner < 1 << s.rank; corner++) {
        int from[SHAPE_RANK];
        double product = 1;
        for (int d = 0; d < s.rank; d++) {
            int at[2];
            double weight[2];
            places(at, weight, n, d, index[d], s.dim[d]);
            from[d] = at[corner >> d & 1];
            product *= weight[corner >> d & 1];
        }
        sum += product * x[ravel(from, s)];
    }
    return sum;
}

static double padded(const Node *n, const double *x, Shape s, const int *index) {
    int from[SHAPE_RANK];
    for (int d = 0; d < s.rank; d++) {
        from[d] = index[d] - n->pad.before[d];
        const bool out = from[d] < 0 || from[d] >= s.dim[d];
        if (out && n->pad.mode == PAD_CONSTANT)
            return (double)n->pad.value;
        if (n->pad.mode == PAD_EDGE)
            from[d] = from[d] < 0 ? 0 : from[d] >= s.dim[d] ? s.dim[d] - 1 : from[d];
        else if (out)
            from[d] = from[d] < 0 ? -from[d] : 2 * s.dim[d] - 2 - from[d];
    }
    return x[ravel(from, s)];
}

static double averaged(const Node *n, const double *x, Shape s, const int *index) {
    double sum = 0;
    int64_t cells = 0;
    for (int64_t i = 0; i < shape_size(s); i++) {
        int from[SHAPE_RANK], kept[SHAPE_RANK], count = 0;
        unravel(from, i, s);
        for (int d = 0; d < s.rank; d++)
            if (!n->reduce.axes[d] || n->reduce.keep)
                kept[count++] = n->reduce.axes[d] ? 0 : from[d];
        if (memcmp(kept, index, (size_t)count * sizeof *kept) == 0) {
            sum += x[i];
            cells++;
        }
    }
    return sum / (double)cells;
}

/* Of the values that share the index of all axes but the softmax's. */
static double softmax(const Node *n, const double *x, Shape s, int64_t at) {
    int index[SHAPE_RANK], other[SHAPE_RANK];
    unravel(index, at, s);
    double sum = 0;
    for (int64_t i = 0; i < shape_size(s); i++) {
        unravel(other, i, s);
        bool same = true;
        for (int d = 0; d < s.rank; d++)
            same &= index[d] == other[d] || d == n->along.axis || (n->along.to_last && d > n->along.axis);
        sum += same ? exp(x[i]) : 0;
    }
    return n->op == OP_SOFTMAX ? exp(x[at]) / sum : x[at] - log(sum);
}

/* Group of a value, and which weight is its own. */
static void membership(int64_t *group, int64_t *weight, const Node *n, Shape s, int64_t i) {
    int index[SHAPE_RANK];
    unravel(index, i, s);
    *weight = index[0];
    if (n->op == OP_INSTANCE_NORM)
        *group = index[0];
    else if (n->op == OP_GROUP_NORM)
        *group = index[0] / (s.dim[0] / n->norm.groups);
    else {
        int64_t run = 1;
        for (int d = n->norm.axis; d < s.rank; d++)
            run *= s.dim[d];
        *group = i / run;
        *weight = i % run;
    }
}

static double normalised(const Node *n, const double *x, Shape s, int64_t at) {
    int64_t own, mine, group, unused;
    membership(&own, &mine, n, s, at);
    double sum = 0, squares = 0, count = 0;
    for (int64_t i = 0; i < shape_size(s); i++) {
        membership(&group, &unused, n, s, i);
        if (group == own)
            sum += x[i], squares += x[i] * x[i], count++;
    }
    const double mean = sum / count, variance = squares / count - mean * mean;
    const double y = (x[at] - mean) / sqrt(variance + (double)n->norm.epsilon);
    return y * (n->weight.values ? (double)n->weight.values[mine] : 1) +
           (n->bias.values ? (double)n->bias.values[mine] : 0);
}

static double local_response(const Node *n, const double *x, Shape s, int64_t at) {
    const int64_t pixels = shape_size(s) / s.dim[0], c = at / pixels;
    double squares = 0;
    for (int64_t k = 0; k < s.dim[0]; k++)
        if (k >= c - (n->lrn.size - 1) / 2 && k <= c + n->lrn.size / 2) /* floor and ceil of (size - 1) / 2 */
            squares += x[k * pixels + at % pixels] * x[k * pixels + at % pixels];
    return x[at] / pow((double)n->lrn.bias + (double)n->lrn.alpha / n->lrn.size * squares, (double)n->lrn.beta);
}

static double average(const Node *n, const double *x, const int *index) {
    const ConvShape *w = &n->window;
    double sum = 0, cells = 0;
    for (int i = 0; i < w->kernel_height; i++)
        for (int j = 0; j < w->kernel_width; j++) {
            const int y = index[1] * w->stride_height - w->pad_top + i * apart(w->dilation_height);
            const int xx = index[2] * w->stride_width - w->pad_left + j * apart(w->dilation_width);
            const bool in = inside(w, y, xx);
            const bool padding = y < w->in_height + w->pad_bottom && xx < w->in_width + w->pad_right;
            sum += in ? x[at(0, index[0], y, xx, 0, w->in_height, w->in_width)] : 0;
            cells += in || (n->count_include_pad && padding);
        }
    return sum / cells;
}

static double product(const Node *n, const double *const *in, const Shape *shape, int b, const int *index) {
    const int rank = n->shape.rank, one = n->n_inputs == 1;
    const Shape a = one && n->operand_first ? n->operand.shape : shape[0];
    double sum = 0;
    int left[SHAPE_RANK], right[SHAPE_RANK];
    memcpy(left, index, sizeof left);
    memcpy(right, index, sizeof right);
    for (int k = 0; k < a.dim[a.rank - 1]; k++) {
        left[rank - 1] = right[rank - 2] = k;
        sum += operand(n, 0, in, shape, b, left) * operand(n, 1, in, shape, b, right);
    }
    return sum;
}

static double joined(const Node *n, const double *const *in, const Shape *shape, int b, int *index) {
    int k = 0;
    for (; index[n->along.axis] >= shape[k].dim[n->along.axis]; k++)
        index[n->along.axis] -= shape[k].dim[n->along.axis];
    return in[k][b * shape_size(shape[k]) + ravel(index, shape[k])];
}

static double gemm(const Node *n, const double *x, int64_t i) {
    const int outputs = n->shape.dim[n->shape.rank - 1];
    const int inputs = n->weight.shape.dim[n->gemm.weight_in_out ? 0 : 1], k = (int)(i % outputs);
    double sum = 0;
    for (int c = 0; c < inputs; c++)
        sum += (double)n->weight.values[n->gemm.weight_in_out ? (int64_t)c * outputs + k : (int64_t)k * inputs + c] *
               x[i / outputs * inputs + c];
    return (double)n->gemm.alpha * sum + (n->bias.values ? (double)n->gemm.beta * (double)n->bias.values[k] : 0);
}

/* Value number i of sample b. */
static double one_value(const Node *n, const double *const *in, const Shape *shape, int b, int64_t i) {
    const Shape s = shape[0];
    const double *x = in[0] + b * shape_size(s);
    int index[SHAPE_RANK] = {0}, from[SHAPE_RANK] = {0};
    unravel(index, i, n->shape);
    switch (n->op) {
    case OP_ADD:
    case OP_SUB:
    case OP_MUL:
    case OP_DIV:
    case OP_LESS:
    case OP_LESS_EQUAL:
    case OP_EQUAL:
    case OP_WHERE:
    case OP_WHERE_NOT:
    case OP_PRELU: return pair(n->op, operand(n, 0, in, shape, b, index), operand(n, 1, in, shape, b, index));
    case OP_AVERAGE_POOL: return average(n, x, index);
    case OP_GLOBAL_MAX_POOL: {
        const int64_t pixels = shape_size(s) / s.dim[0];
        double most = x[i * pixels];
        for (int64_t p = 1; p < pixels; p++)
            most = fmax(most, x[i * pixels + p]);
        return most;
    }
    case OP_LINEAR: return gemm(n, x, i);
    case OP_MATMUL: return product(n, in, shape, b, index);
    case OP_CONCAT: return joined(n, in, shape, b, index);
    case OP_RESHAPE: return x[i];
    case OP_TRANSPOSE:
        for (int d = 0; d < s.rank; d++)
            from[n->perm[d]] = index[d];
        return x[ravel(from, s)];
    case OP_SLICE:
        for (int d = 0; d < s.rank; d++)
            from[d] = n->slice.start[d] + index[d] * n->slice.step[d];
        return x[ravel(from, s)];
    case OP_PAD: return padded(n, x, s, index);
    case OP_RESIZE: return resized(n, x, s, index);
    case OP_REDUCE_MEAN: return averaged(n, x, s, index);
    case OP_SOFTMAX:
    case OP_LOG_SOFTMAX: return softmax(n, x, s, i);
    case OP_LAYER_NORM:
    case OP_INSTANCE_NORM:
    case OP_GROUP_NORM: return normalised(n, x, s, i);
    case OP_LRN: return local_response(n, x, s, i);
    default: return function(n, x[i]);
    }
}

void ref_node(double *out, const double *const *in, const Node *n, const Shape *shape, int B) {
    const Shape s = shape[0];
    const int C = s.rank > 0 ? s.dim[0] : 1, pixels = (int)(shape_size(s) / C);
    const int64_t size = shape_size(n->shape);
    switch (n->op) {
    case OP_CONV: ref_conv(out, in[0], n->weight.values, n->bias.values, &n->window, B); break;
    case OP_BATCH_NORM: ref_affine(out, in[0], n->weight.values, n->bias.values, false, B, C, pixels); break;
    case OP_RELU: ref_affine(out, in[0], NULL, NULL, true, B, C, pixels); break;
    case OP_MAX_POOL: ref_max_pool(out, in[0], &n->window, B); break;
    case OP_GLOBAL_AVERAGE_POOL: ref_global_average(out, in[0], B, C, pixels); break;
    default:
        for (int64_t i = 0; i < B * size; i++)
            out[i] = one_value(n, in, shape, (int)(i / size), i % size);
    }
}

void ref_node_backward(double *din, const double *dout, const double *out, const double *in, const Node *n, Shape s,
                       int B) {
    const int C = s.rank > 0 ? s.dim[0] : 1, pixels = (int)(shape_size(s) / C);
    switch (n->op) {
    case OP_CONV: ref_conv_backward(din, dout, n->weight.values, &n->window, B); break;
    case OP_BATCH_NORM: ref_affine_backward(din, dout, NULL, n->weight.values, false, B, C, pixels); break;
    case OP_RELU: ref_affine_backward(din, dout, out, NULL, true, B, C, pixels); break;
    case OP_MAX_POOL: ref_max_pool_backward(din, dout, in, &n->window, B); break;
    case OP_GLOBAL_AVERAGE_POOL: ref_global_average_backward(din, dout, B, C, pixels); break;
    default: ref_linear_backward(din, dout, n->weight.values, B, (int)shape_size(s), n->shape.dim[0]);
    }
}

void ref_graph(double **values, const Graph *g, int from, int B) {
    for (int i = from; i < g->count; i++) {
        const double *in[16];
        Shape shape[16];
        for (int k = 0; k < g->nodes[i].n_inputs; k++) {
            in[k] = values[g->nodes[i].inputs[k]];
            shape[k] = g->nodes[g->nodes[i].inputs[k]].shape;
        }
        ref_node(values[i], in, &g->nodes[i], shape, B);
    }
}

void ref_graph_backward(double **gradients, double *const *values, const Graph *g, int B) {
    for (int i = g->logits; i > 0; i = g->nodes[i].inputs[0]) {
        const int from = g->nodes[i].inputs[0];
        ref_node_backward(gradients[from], gradients[i], values[i], values[from], &g->nodes[i], g->nodes[from].shape,
                          B);
    }
}

void ref_tsne_forces(double *repulsion, double *attraction, double *totals, const float *y, const double *p, int N,
                     int A) {
    const double dof = A - 1;
    totals[0] = totals[1] = 0;
    for (int i = 0; i < N; i++) {
        for (int a = 0; a < A; a++)
            repulsion[i * A + a] = attraction[i * A + a] = 0;
        for (int j = 0; j < N; j++) {
            double square = 0;
            for (int a = 0; a < A; a++)
                square += pow((double)y[i * A + a] - (double)y[j * A + a], 2);
            double w = pow(1 + square / dof, -(dof + 1) / 2);
            if (i == j)
                continue;
            totals[0] += w;
            totals[1] -= p[(int64_t)i * N + j] * log(w);
            for (int a = 0; a < A; a++) {
                double difference = (double)y[i * A + a] - (double)y[j * A + a];
                repulsion[i * A + a] += w * w * difference;
                attraction[i * A + a] += p[(int64_t)i * N + j] * w * difference;
            }
        }
    }
}

void ref_neighbors(double *distance, int32_t *place, const float *x, int N, int D) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            distance[i * N + j] = 0;
            for (int k = 0; k < D; k++)
                distance[i * N + j] += pow((double)x[i * D + k] - (double)x[j * D + k], 2);
        }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            place[i * N + j] = 0;
            for (int k = 0; k < N; k++) {
                const double own = distance[i * N + j], other = distance[i * N + k];
                place[i * N + j] += k != i && (other < own || (other == own && k < j));
            }
        }
}
