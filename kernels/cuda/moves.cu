/* moves.cu: values moved as they are (transposition, slices, concatenation), means over some axes, and axes made anew
 * (padding, resizing).
 *
 * A thread for each number moved or made; a mean has a warp for each. Axes that lie behind one another on both sides are
 * walked as one (shared.h). Bound by memory, 8 bytes a number, and by about 25 instructions for each axis that is left;
 * a transposition reads 32 bytes for 4. An estimate: it has run on the host executor only, never on a GPU. */
#include <stdlib.h>

#include "shared.h"
#include "work.h"

namespace {

struct Offsets {
    int64_t to, from;
};

} // namespace

/* Of the index-th number of the box. Index: 32 bits wherever they are enough, as division by 64 is slow. */
template <class Index> static __device__ __forceinline__ Offsets offsets_at(const KMove &m, Index index) {
    Offsets at = {0, 0};
    for (int d = m.n - 1; d >= 0; d--) {
        const Index size = (Index)m.size[d], i = d > 0 ? index % size : index;
        index /= size;
        at.to += (int64_t)i * m.to_step[d];
        at.from += (int64_t)i * m.from_step[d];
    }
    return at;
}

/* to = from / cells (cells 0: undivided); or, turned, from = to / cells. */
template <class Index>
static __global__ void move_box(float *to, const float *from, KMove m, int64_t count, float cells, bool turned) {
    const int64_t i = (int64_t)blockIdx.x * WORK_THREADS + threadIdx.x;
    if (i >= count)
        return;
    const Offsets at = offsets_at(m, (Index)i);
    const float value = from[turned ? at.to : at.from];
    to[turned ? at.from : at.to] = cells > 0 ? value / cells : value;
}

static int64_t box_size(const KMove *move) {
    int64_t count = 1;
    for (int d = 0; d < move->n; d++)
        count *= move->size[d];
    return count;
}

static void run_box(Lane *lane, float *to, const float *from, const KMove *box, float cells, bool turned) {
    const KMove m = joined(box);
    const int64_t count = box_size(&m);
    if (count <= INT32_MAX)
        gpu_launch(move_box<uint32_t>, gpu_blocks(count, WORK_THREADS), WORK_THREADS, 0, lane->stream, to, from, m,
                   count, cells, turned);
    else
        gpu_launch(move_box<uint64_t>, gpu_blocks(count, WORK_THREADS), WORK_THREADS, 0, lane->stream, to, from, m,
                   count, cells, turned);
}

void k_move(Lane *lane, float *to, const float *from, const KMove *move) {
    run_box(lane, to, from, move, 0, false);
}

static __global__ void fill(float *to, float value, int64_t count) {
    const int64_t i = (int64_t)blockIdx.x * WORK_THREADS + threadIdx.x;
    if (i < count)
        to[i] = value;
}

void k_fill(Lane *lane, float *to, float value, int64_t count) {
    gpu_launch(fill, gpu_blocks(count, WORK_THREADS), WORK_THREADS, 0, lane->stream, to, value, count);
}

int64_t k_sample_step(Layout layout, int C, int H, int W) {
    (void)layout;
    return (int64_t)C * H * W;
}

bool k_whole_blocks(int C) {
    (void)C;
    return true;
}

/* A warp for each value: lanes take every 32nd of its cells. */
static __global__ void mean_of_cells(float *out, const float *in, KMove kept, KMove averaged, int64_t values,
                                     uint32_t cells) {
    const int64_t value = work_line();
    if (value >= values) /* the whole warp */
        return;
    const Offsets at = offsets_at(kept, (uint64_t)value);
    double sum = 0;
    for (uint32_t i = (uint32_t)work_lane(); i < cells; i += 32)
        sum += (double)in[at.from + offsets_at(averaged, i).from];
    sum = warp_sum(sum);
    if (work_lane() == 0)
        out[at.to] = (float)(sum / (double)cells);
}

/* The axes of a box that are averaged, or those that are kept. */
static KMove some_axes(const KMove *box, bool averaged) {
    KMove some = {};
    for (int d = 0; d < box->n; d++)
        if ((box->to_step[d] == 0) == averaged) {
            some.size[some.n] = box->size[d];
            some.to_step[some.n] = box->to_step[d];
            some.from_step[some.n++] = box->from_step[d];
        }
    return some;
}

void k_mean_forward(Lane *lane, float *out, const float *in, const KMove *box, int64_t values, int64_t cells,
                    void *scratch) {
    (void)scratch; /* the sums stay in registers */
    (void)values;
    const KMove m = joined(box), kept = some_axes(&m, false), averaged = some_axes(&m, true);
    const int64_t lines = box_size(&kept);
    if (cells > INT32_MAX)
        kernel_fail("GPU: a mean of %lld values is too large, at most 2^31 - 1 are supported", (long long)cells);
    gpu_launch(mean_of_cells, gpu_blocks(lines, WORK_WARPS), WORK_THREADS, 0, lane->stream, out, in, kept, averaged,
               lines, cells);
}

void k_mean_backward(Lane *lane, float *din, const float *dout, const KMove *box, int64_t cells) {
    run_box(lane, din, dout, box, (float)cells, true);
}

/* ---- One axis --------------------------------------------------------------------------------------------------- */

struct KAxis {
    int in, out;
    int *index;    /* (out, 2) */
    float *weight; /* (out, 2) */
    int *start;    /* (in + 1): where the readers of each begin in `reader`, which names entries of index, ascending */
    int *reader;
};

KAxis *k_axis_new(int in, int out, const int *index, const float *weight) {
    KAxis *axis = work_new<KAxis>();
    axis->in = in;
    axis->out = out;
    axis->index = work_constant(index, (size_t)out * 2);
    axis->weight = work_constant(weight, (size_t)out * 2);
    int *start = static_cast<int *>(gpu_new_host(((size_t)in + 2) * sizeof(int)));
    int *reader = static_cast<int *>(gpu_new_host((size_t)out * 2 * sizeof(int)));
    for (int i = 0; i < 2 * out; i++)
        if (index[i] >= 0)
            start[index[i] + 2]++;
    for (int i = 0; i < in; i++)
        start[i + 2] += start[i + 1];
    for (int i = 0; i < 2 * out; i++)
        if (index[i] >= 0)
            reader[start[index[i] + 1]++] = i; /* start[v + 1] goes from where v begins to where it ends */
    axis->start = work_constant(start, (size_t)in + 1);
    axis->reader = work_constant(reader, (size_t)out * 2);
    free(start);
    free(reader);
    return axis;
}

void k_axis_free(KAxis *axis) {
    if (!axis)
        return;
    dev_free(axis->index);
    dev_free(axis->weight);
    dev_free(axis->start);
    dev_free(axis->reader);
    free(axis);
}

/* x: along (axis, inner); y: outer. */
static __global__ void make_axis(float *out, const float *in, const int *index, const float *weight, int in_size,
                                 int out_size, uint32_t inner, int64_t outer) {
    const uint32_t at = work_index(), i = at / inner, k = at % inner;
    if (i >= (uint32_t)out_size)
        return;
    const int first = index[2 * i], second = index[2 * i + 1];
    for (int64_t o = blockIdx.y; o < outer; o += gridDim.y) {
        const float *from = in + o * in_size * inner + k;
        const float x = first >= 0 ? weight[2 * i] * from[(int64_t)first * inner] : 0;
        out[o * out_size * inner + at] = second >= 0 ? x + weight[2 * i + 1] * from[(int64_t)second * inner] : x;
    }
}

static __global__ void make_axis_back(float *din, const float *dout, const int *start, const int *reader,
                                      const float *weight, int in_size, int out_size, uint32_t inner, int64_t outer) {
    const uint32_t at = work_index(), i = at / inner, k = at % inner;
    if (i >= (uint32_t)in_size)
        return;
    for (int64_t o = blockIdx.y; o < outer; o += gridDim.y) {
        const float *from = dout + o * out_size * inner + k;
        float sum = 0;
        for (int r = start[i]; r < start[i + 1]; r++)
            sum += weight[reader[r]] * from[(int64_t)(reader[r] / 2) * inner];
        din[o * in_size * inner + at] = sum;
    }
}

void k_axis_forward(Lane *lane, const KAxis *axis, float *out, const float *in, int64_t outer, int64_t inner) {
    gpu_launch(make_axis, work_grid(axis->out * inner, outer), WORK_THREADS, 0, lane->stream, out, in, axis->index,
               axis->weight, axis->in, axis->out, inner, outer);
}

void k_axis_backward(Lane *lane, const KAxis *axis, float *din, const float *dout, int64_t outer, int64_t inner) {
    gpu_launch(make_axis_back, work_grid(axis->in * inner, outer), WORK_THREADS, 0, lane->stream, din, dout,
               axis->start, axis->reader, axis->weight, axis->in, axis->out, inner, outer);
}
