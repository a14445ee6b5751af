/* norms.c: products of two values, softmax, norms over one sample, local response. Plain values, plain loops.
 *
 * Statistics and the sums of a gradient are in double; a product is a chain of fused multiply-adds along K for every
 * result, whatever the batch. */
#include <math.h>
#include <string.h>

#include "cpu.h"
#include "shared.h"

/* c += a b. */
CPU_CLONES static void product(float *c, const float *a, const float *b, int M, int N, int K, int64_t am, int64_t ak,
                               int64_t bk, int64_t bn) {
    for (int m = 0; m < M; m++, c += N) {
        for (int k = 0; k < K; k++) {
            const float x = a[m * am + k * ak];
            const float *line = b + k * bk;
            if (bn == 1)
                for (int n = 0; n < N; n++)
                    c[n] = __builtin_fmaf(x, line[n], c[n]);
            else
                for (int n = 0; n < N; n++)
                    c[n] = __builtin_fmaf(x, line[n * bn], c[n]);
        }
    }
}

void k_matmul(Lane *lane, float *c, const float *a, const float *b, const KProduct *p) {
    (void)lane;
    int64_t index[KDIMS + 1] = {0}, size = (int64_t)p->M * p->N;
    for (int d = 0; d < p->n; d++)
        size *= p->c_step[d] ? p->size[d] : 1;
    memset(c, 0, (size_t)size * sizeof *c);
    for (int d = 0; d >= 0;) {
        product(c, a, b, p->M, p->N, p->K, p->a_turned ? 1 : p->K, p->a_turned ? p->M : 1, p->b_turned ? 1 : p->N,
                p->b_turned ? p->K : 1);
        for (d = p->n - 1; d >= 0; d--) {
            const bool last = ++index[d] == p->size[d];
            const int64_t by = last ? 1 - p->size[d] : 1;
            c += by * p->c_step[d];
            a += by * p->a_step[d];
            b += by * p->b_step[d];
            if (!last)
                break;
            index[d] = 0;
        }
    }
}

/* ---- Softmax ---------------------------------------------------------------------------------------------------- */

static void softmax_line(float *out, const float *in, bool logarithm, int64_t n, int64_t step) {
    float most = in[0];
    for (int64_t i = 1; i < n; i++)
        most = in[i * step] > most ? in[i * step] : most;
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)(in[i * step] - most));
    const double log_sum = log(sum);
    for (int64_t i = 0; i < n; i++) {
        const double x = (double)(in[i * step] - most);
        out[i * step] = (float)(logarithm ? x - log_sum : exp(x) / sum);
    }
}

static void softmax_line_back(float *din, const float *dout, const float *out, bool logarithm, int64_t n,
                              int64_t step) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += logarithm ? (double)dout[i * step] : (double)dout[i * step] * out[i * step];
    for (int64_t i = 0; i < n; i++) {
        const double g = dout[i * step], y = out[i * step];
        din[i * step] = (float)(logarithm ? g - exp(y) * sum : y * (g - sum));
    }
}

void k_softmax_forward(Lane *lane, float *out, const float *in, bool logarithm, int64_t outer, int64_t n,
                       int64_t inner) {
    (void)lane;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++)
            softmax_line(out + o * n * inner + i, in + o * n * inner + i, logarithm, n, inner);
}

void k_softmax_backward(Lane *lane, float *din, const float *dout, const float *out, bool logarithm, int64_t outer,
                        int64_t n, int64_t inner) {
    (void)lane;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++) {
            const int64_t at = o * n * inner + i;
            softmax_line_back(din + at, dout + at, out + at, logarithm, n, inner);
        }
}

/* ---- Norms ------------------------------------------------------------------------------------------------------ */

struct KNorm {
    NormShape shape;
    int batch;
    float *weight, *bias; /* (channels) */
};

KNorm *k_norm_new(const NormShape *shape, int batch, const float *weight, const float *bias) {
    KNorm *norm = dev_alloc(sizeof *norm);
    *norm = (KNorm){.shape = *shape, .batch = batch};
    norm->weight = dev_alloc((size_t)shape->channels * sizeof(float));
    norm->bias = dev_alloc((size_t)shape->channels * sizeof(float));
    for (int64_t c = 0; c < shape->channels; c++) {
        norm->weight[c] = weight ? weight[c] : 1;
        norm->bias[c] = bias ? bias[c] : 0;
    }
    return norm;
}

void k_norm_free(KNorm *norm) {
    if (!norm)
        return;
    dev_free(norm->weight);
    dev_free(norm->bias);
    dev_free(norm);
}

typedef struct {
    double mean, scale; /* 1 / sqrt(variance + epsilon) */
} Moments;

static Moments moments_of(const float *x, int64_t n, double epsilon) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i];
    const double mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++)
        squares += ((double)x[i] - mean) * ((double)x[i] - mean);
    return (Moments){mean, 1 / sqrt(squares / (double)n + epsilon)};
}

void k_norm_forward(Lane *lane, const KNorm *norm, float *out, const float *in) {
    (void)lane;
    const NormShape *s = &norm->shape;
    for (int64_t run = 0; run < norm->batch * s->groups; run++, in += s->n, out += s->n) {
        const Moments m = moments_of(in, s->n, (double)s->epsilon);
        const int64_t first = run % s->groups * s->n;
        for (int64_t i = 0; i < s->n; i += s->pixels) {
            const int64_t c = (first + i) / s->pixels % s->channels;
            const double scale = m.scale * (double)norm->weight[c];
            for (int64_t p = i; p < i + s->pixels; p++)
                out[p] = (float)(((double)in[p] - m.mean) * scale + (double)norm->bias[c]);
        }
    }
}

/* With h = (x - mean) scale and g = dout weight: dx = scale (g - mean(g) - h mean(g h)). */
void k_norm_backward(Lane *lane, const KNorm *norm, float *din, const float *dout, const float *in) {
    (void)lane;
    const NormShape *s = &norm->shape;
    for (int64_t run = 0; run < norm->batch * s->groups; run++, in += s->n, dout += s->n, din += s->n) {
        const Moments m = moments_of(in, s->n, (double)s->epsilon);
        const int64_t first = run % s->groups * s->n;
        double sum = 0, product_sum = 0;
        for (int64_t i = 0; i < s->n; i += s->pixels) {
            const double weight = norm->weight[(first + i) / s->pixels % s->channels];
            for (int64_t p = i; p < i + s->pixels; p++) {
                sum += (double)dout[p] * weight;
                product_sum += (double)dout[p] * weight * ((double)in[p] - m.mean) * m.scale;
            }
        }
        sum /= (double)s->n;
        product_sum /= (double)s->n;
        for (int64_t i = 0; i < s->n; i += s->pixels) {
            const double weight = norm->weight[(first + i) / s->pixels % s->channels];
            for (int64_t p = i; p < i + s->pixels; p++) {
                const double h = ((double)in[p] - m.mean) * m.scale;
                din[p] = (float)(m.scale * ((double)dout[p] * weight - sum - h * product_sum));
            }
        }
    }
}

/* ---- Local response --------------------------------------------------------------------------------------------- */

void k_lrn_forward(Lane *lane, float *out, const float *in, const LrnShape *lrn, int B, int C, int64_t pixels) {
    (void)lane;
    for (int b = 0; b < B; b++, in += C * pixels, out += C * pixels)
        for (int c = 0; c < C; c++)
            for (int64_t p = 0; p < pixels; p++)
                out[c * pixels + p] = in[c * pixels + p] * powf(response(lrn, in + p, c, C, pixels), -lrn->beta);
}

void k_lrn_backward(Lane *lane, float *din, const float *dout, const float *in, const LrnShape *lrn, int B, int C,
                    int64_t pixels, void *scratch) {
    (void)lane;
    float *factor = scratch, *pull = factor + C * pixels; /* s^-beta; dout x s^(-beta - 1) */
    for (int b = 0; b < B; b++, in += C * pixels, dout += C * pixels, din += C * pixels) {
        for (int c = 0; c < C; c++)
            for (int64_t p = 0; p < pixels; p++) {
                const int64_t i = c * pixels + p;
                const float s = response(lrn, in + p, c, C, pixels);
                factor[i] = powf(s, -lrn->beta);
                pull[i] = dout[i] * in[i] * factor[i] / s;
            }
        for (int c = 0; c < C; c++)
            for (int64_t p = 0; p < pixels; p++) {
                const int64_t i = c * pixels + p;
                const Channels k = reached_by(lrn, c, C);
                float sum = 0;
                for (int j = k.from; j < k.to; j++)
                    sum += pull[j * pixels + p];
                din[i] = dout[i] * factor[i] - 2 * lrn->alpha * lrn->beta / (float)lrn->size * in[i] * sum;
            }
    }
}
