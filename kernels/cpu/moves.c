/* moves.c: values that change their place and not themselves, and axes made anew (padding, resizing).
 *
 * A move walks a box by two sets of steps; axes that lie behind one another on both sides are walked as one, so a
 * concatenation is a row of copies. Bound by memory; a transposition reads whole lines for single values. */
#include <string.h>

#include "cpu.h"
#include "shared.h"

/* The next run of the last axis; false after the last. */
static bool next_run(const KMove *m, int64_t index[KDIMS + 1], int64_t *to, int64_t *from) {
    for (int d = m->n - 2; d >= 0; d--) {
        *to += m->to_step[d];
        *from += m->from_step[d];
        if (++index[d] < m->size[d])
            return true;
        *to -= m->to_step[d] * m->size[d];
        *from -= m->from_step[d] * m->size[d];
        index[d] = 0;
    }
    return false;
}

void k_move(Lane *lane, float *to, const float *from, const KMove *move) {
    (void)lane;
    const KMove m = joined(move);
    const int64_t n = m.size[m.n - 1], to_step = m.to_step[m.n - 1], from_step = m.from_step[m.n - 1];
    int64_t index[KDIMS + 1] = {0}, at_to = 0, at_from = 0;
    do {
        if (to_step == 1 && from_step == 1)
            memmove(to + at_to, from + at_from, (size_t)n * sizeof *to);
        else
            for (int64_t i = 0; i < n; i++)
                to[at_to + i * to_step] = from[at_from + i * from_step];
    } while (next_run(&m, index, &at_to, &at_from));
}

void k_fill(Lane *lane, float *to, float value, int64_t count) {
    (void)lane;
    for (int64_t i = 0; i < count; i++)
        to[i] = value;
}

int64_t k_sample_step(Layout layout, int C, int H, int W) {
    return cpu_sample_size(layout, C, H, W);
}

bool k_whole_blocks(int C) {
    return C % cpu_width(LAYOUT_BLOCKED) == 0;
}

void k_mean_forward(Lane *lane, float *out, const float *in, const KMove *box, int64_t values, int64_t cells,
                    void *scratch) {
    (void)lane;
    double *sum = scratch;
    memset(sum, 0, (size_t)values * sizeof *sum);
    const KMove m = joined(box);
    const int64_t n = m.size[m.n - 1], to_step = m.to_step[m.n - 1], from_step = m.from_step[m.n - 1];
    int64_t index[KDIMS + 1] = {0}, at_to = 0, at_from = 0;
    do {
        for (int64_t i = 0; i < n; i++)
            sum[at_to + i * to_step] += (double)in[at_from + i * from_step];
    } while (next_run(&m, index, &at_to, &at_from));
    for (int64_t i = 0; i < values; i++)
        out[i] = (float)(sum[i] / (double)cells);
}

void k_mean_backward(Lane *lane, float *din, const float *dout, const KMove *box, int64_t cells) {
    (void)lane;
    const KMove m = joined(box);
    const int64_t n = m.size[m.n - 1], to_step = m.to_step[m.n - 1], from_step = m.from_step[m.n - 1];
    int64_t index[KDIMS + 1] = {0}, at_to = 0, at_from = 0;
    do {
        for (int64_t i = 0; i < n; i++)
            din[at_from + i * from_step] = dout[at_to + i * to_step] / (float)cells;
    } while (next_run(&m, index, &at_to, &at_from));
}

/* ---- One axis --------------------------------------------------------------------------------------------------- */

struct KAxis {
    int in, out;
    int *index;    /* (out, 2) */
    float *weight; /* (out, 2) */
};

KAxis *k_axis_new(int in, int out, const int *index, const float *weight) {
    KAxis *axis = dev_alloc(sizeof *axis);
    *axis = (KAxis){.in = in, .out = out};
    axis->index = dev_alloc((size_t)out * 2 * sizeof *index);
    axis->weight = dev_alloc((size_t)out * 2 * sizeof *weight);
    memcpy(axis->index, index, (size_t)out * 2 * sizeof *index);
    memcpy(axis->weight, weight, (size_t)out * 2 * sizeof *weight);
    return axis;
}

void k_axis_free(KAxis *axis) {
    if (!axis)
        return;
    dev_free(axis->index);
    dev_free(axis->weight);
    dev_free(axis);
}

void k_axis_forward(Lane *lane, const KAxis *axis, float *out, const float *in, int64_t outer, int64_t inner) {
    (void)lane;
    for (int64_t o = 0; o < outer; o++, in += axis->in * inner)
        for (int64_t i = 0; i < axis->out; i++, out += inner) {
            const int *index = axis->index + 2 * i;
            const float *weight = axis->weight + 2 * i;
            const float *first = in + index[0] * inner, *second = in + index[1] * inner;
            for (int64_t k = 0; k < inner; k++) {
                const float x = index[0] >= 0 ? weight[0] * first[k] : 0;
                out[k] = index[1] >= 0 ? x + weight[1] * second[k] : x;
            }
        }
}

void k_axis_backward(Lane *lane, const KAxis *axis, float *din, const float *dout, int64_t outer, int64_t inner) {
    (void)lane;
    memset(din, 0, (size_t)(outer * axis->in * inner) * sizeof *din);
    for (int64_t o = 0; o < outer; o++, din += axis->in * inner)
        for (int64_t i = 0; i < axis->out; i++, dout += inner)
            for (int t = 0; t < 2; t++) {
                const int64_t index = axis->index[2 * i + t];
                const float weight = axis->weight[2 * i + t];
                for (int64_t k = 0; index >= 0 && k < inner; k++)
                    din[index * inner + k] += weight * dout[k];
            }
}
