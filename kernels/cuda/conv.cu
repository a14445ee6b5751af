/* conv.cu: convolutions and their input gradients, as products of matrices that are never formed.
 *
 * The rows of the product are the pixels of all samples, its columns the channels of a group, its depth the taps: a
 * channel and a place in the window each. A table says for every tap how far from the pixel's own place its value lies
 * and whether that is inside the image. The gradient is the same product with the two sides exchanged; with a stride,
 * pixels fall into classes (by their remainder) that see different taps, each a product of its own, all in one launch.
 * Weights are brought into the order (class, tap, group, channel) once, padded to whole tiles.
 * Groups of one input channel (depthwise) have no depth worth a product: a thread makes an output from its window.
 *
 * A sum is one chain in the order (channel, row, column) of the weight, so it knows nothing of the batch. Price: one
 * fused multiply-add a tap; as nvcc compiles it for sm_90, of the instructions for a chunk of 8 taps 512 in 734 are
 * multiply-adds with tiles of 64 channels, 256 in 436 with 32, 128 in 278 with 16, and 17 channels cost 32: an estimated
 * 65 %, 55 % and 45 % of the peak. Depthwise: 4 bytes read and written a value, and about 12 instructions for each place
 * of the window. Estimates from the code: it has run on the host executor only, never on a GPU. */
#include <stdlib.h>

#include "shared.h"
#include "tile.h"
#include "work.h"

namespace {

/* No sum of two of these, or of one and a place in an image, is inside an image or overflows. */
constexpr int OUTSIDE = INT32_MIN / 2;

struct alignas(16) Tap { /* read at once */
    int64_t offset;      /* from the pixel's place in its first channel, in floats */
    int32_t down, across;
};

/* Pixels of the written side that see the same taps: rows first_row, first_row + row_step ... of `height`. */
struct Class {
    int64_t taps, weights; /* where they begin */
    int32_t depth;         /* taps; those up to a whole chunk are OUTSIDE */
    int32_t first_row, first_column, height, width;
};

/* Both directions: `from` is the side that is read. Pixel (i, j) of a class is at row i * from_step + from_start there. */
struct PassShape {
    int batch, groups;
    int from_channels, from_height, from_width, from_row_step, from_column_step, from_top,
        from_left; /* channels: group */
    int to_channels, to_height, to_width, to_row_step, to_column_step;
    int padded_channels; /* to_channels in whole tiles */
};

struct Pass {
    PassShape shape;
    int classes, columns; /* columns: of a tile */
    int64_t most_pixels;  /* of a class, all samples */
    Tap *taps;
    Class *list;
    float *weight;
};

} // namespace

struct KConv {
    ConvShape shape;
    int batch;
    bool depthwise;
    Pass forward, backward;
    float *weight; /* depthwise: (out_channels, kernel_height, kernel_width) */
    float *bias;   /* or NULL */
};

static void make_pass(Pass *pass, const ConvShape *s, int batch, const float *weight, bool backward);
static void run_pass(Lane *lane, const Pass *pass, float *to, const float *from, const float *bias);

static int groups_of(const ConvShape *s) {
    return s->groups > 1 ? s->groups : 1;
}

static void free_pass(const Pass *pass) {
    dev_free(pass->taps);
    dev_free(pass->list);
    dev_free(pass->weight);
}

/* ---- Depthwise -------------------------------------------------------------------------------------------------- */

static __global__ void depthwise_forward(float *out, const float *in, const float *weight, const float *bias,
                                         ConvShape s, int batch) {
    const uint32_t i = work_index(), pixels = (uint32_t)s.out_height * s.out_width;
    if (i >= pixels * s.out_channels)
        return;
    const int k = (int)(i / pixels), p = (int)(i % pixels), y = p / s.out_width, x = p % s.out_width;
    const int channel = k / (s.out_channels / s.in_channels);
    const int top = y * s.stride_height - s.pad_top, left = x * s.stride_width - s.pad_left;
    const int down = apart(s.dilation_height), across = apart(s.dilation_width);
    for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
        const float *plane = in + (b * s.in_channels + channel) * s.in_height * s.in_width;
        const float *w = weight + (int64_t)k * s.kernel_height * s.kernel_width;
        float sum = 0;
        for (int r = 0; r < s.kernel_height; r++)
            for (int c = 0; c < s.kernel_width; c++, w++) {
                const int row = top + r * down, column = left + c * across;
                if ((unsigned)row < (unsigned)s.in_height && (unsigned)column < (unsigned)s.in_width)
                    sum = fmaf(*w, plane[(int64_t)row * s.in_width + column], sum);
            }
        out[b * s.out_channels * pixels + i] = bias ? sum + bias[k] : sum;
    }
}

/* The place in the output from which tap `tap` reads position `at` of the input; -1: none does. */
static __device__ __forceinline__ int read_by(int at, int pad, int tap, int dilation, int stride, int out_size) {
    const int place = at + pad - tap * dilation;
    return place >= 0 && place % stride == 0 && place / stride < out_size ? place / stride : -1;
}

static __global__ void depthwise_backward(float *din, const float *dout, const float *weight, ConvShape s, int batch) {
    const uint32_t i = work_index(), pixels = (uint32_t)s.in_height * s.in_width;
    if (i >= pixels * s.in_channels)
        return;
    const int channel = (int)(i / pixels), p = (int)(i % pixels), h = p / s.in_width, l = p % s.in_width;
    const int each = s.out_channels / s.in_channels;
    const int down = apart(s.dilation_height), across = apart(s.dilation_width);
    for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
        float sum = 0;
        for (int k = channel * each; k < (channel + 1) * each; k++) {
            const float *plane = dout + (b * s.out_channels + k) * s.out_height * s.out_width;
            const float *w = weight + (int64_t)k * s.kernel_height * s.kernel_width;
            for (int r = 0; r < s.kernel_height; r++) {
                const int y = read_by(h, s.pad_top, r, down, s.stride_height, s.out_height);
                for (int c = 0; y >= 0 && c < s.kernel_width; c++) {
                    const int x = read_by(l, s.pad_left, c, across, s.stride_width, s.out_width);
                    if (x >= 0)
                        sum = fmaf(w[r * s.kernel_width + c], plane[(int64_t)y * s.out_width + x], sum);
                }
            }
        }
        din[b * s.in_channels * pixels + i] = sum;
    }
}

/* ---- The convolution -------------------------------------------------------------------------------------------- */

KConv *k_conv_new(Layout *out_layout, Layout in_layout, const ConvShape *shape, int batch, const float *weight,
                  const float *bias, bool backward) {
    (void)in_layout;
    KConv *conv = work_new<KConv>();
    const int groups = groups_of(shape);
    conv->shape = *shape;
    conv->batch = batch;
    conv->depthwise = groups > 1 && shape->in_channels == groups;
    conv->bias = work_constant(bias, (size_t)shape->out_channels);
    if (conv->depthwise) {
        conv->weight = work_constant(weight, (size_t)shape->out_channels * (size_t)shape->kernel_height *
                                                 (size_t)shape->kernel_width);
    } else {
        make_pass(&conv->forward, shape, batch, weight, false);
        if (backward)
            make_pass(&conv->backward, shape, batch, weight, true);
    }
    *out_layout = LAYOUT_PLAIN;
    return conv;
}

void k_conv_free(KConv *conv) {
    if (!conv)
        return;
    free_pass(&conv->forward);
    free_pass(&conv->backward);
    dev_free(conv->weight);
    dev_free(conv->bias);
    free(conv);
}

size_t k_conv_scratch(const KConv *conv) {
    (void)conv; /* the sums stay in registers */
    return 0;
}

void k_conv_forward(Lane *lane, const KConv *conv, float *out, const float *in, void *scratch) {
    (void)scratch;
    const ConvShape *s = &conv->shape;
    if (conv->depthwise)
        gpu_launch(depthwise_forward, work_grid((int64_t)s->out_channels * s->out_height * s->out_width, conv->batch),
                   WORK_THREADS, 0, lane->stream, out, in, conv->weight, conv->bias, *s, conv->batch);
    else
        run_pass(lane, &conv->forward, out, in, conv->bias);
}

void k_conv_backward(Lane *lane, const KConv *conv, float *din, const float *dout, void *scratch) {
    (void)scratch;
    const ConvShape *s = &conv->shape;
    if (conv->depthwise)
        gpu_launch(depthwise_backward, work_grid((int64_t)s->in_channels * s->in_height * s->in_width, conv->batch),
                   WORK_THREADS, 0, lane->stream, din, dout, conv->weight, *s, conv->batch);
    else
        run_pass(lane, &conv->backward, din, dout, NULL);
}

/* ---- The product ------------------------------------------------------------------------------------------------ */

namespace {

/* Row threadIdx.x of the tile: one pixel of the side that is read. */
struct PixelValues {
    const float *place;
    const Tap *taps;
    int y, x, height, width;

    __device__ __forceinline__ float operator()(int64_t depth) const {
        const Tap tap = taps[depth];
        const bool is_inside =
            (unsigned)(y + tap.down) < (unsigned)height && (unsigned)(x + tap.across) < (unsigned)width;
        return is_inside ? place[tap.offset] : 0.0f;
    }
};

struct Weights {
    static constexpr bool along_depth = false;
    const float *first; /* of the tile's columns, at depth 0 */
    int64_t stride;

    __device__ __forceinline__ float operator()(int column, int64_t depth) const {
        return first[depth * stride + column];
    }
};

} // namespace

/* Grid: pixels of a class in tiles, (group, columns in tiles), classes. */
template <int COLS>
static __global__ void __launch_bounds__(TILE_THREADS, 3)
    conv_tile(float *to, const float *from, const float *weight, const float *bias, const Tap *taps, const Class *list,
              PassShape s) {
    __shared__ TileMemory<float, COLS> memory;
    const Class c = list[blockIdx.z];
    const uint32_t pixels = (uint32_t)c.height * (uint32_t)c.width, all = pixels * (uint32_t)s.batch;
    const uint32_t first = blockIdx.x * TILE_ROWS;
    if (first >= all) /* for the whole block: classes differ in size */
        return;
    const int tiles = s.padded_channels / COLS, group = (int)blockIdx.y / tiles;
    const int first_column = (int)blockIdx.y % tiles * COLS;

    const int64_t from_plane = (int64_t)s.from_height * s.from_width, to_plane = (int64_t)s.to_height * s.to_width;
    const uint32_t n = first + threadIdx.x, b = n / pixels, p = n % pixels;
    PixelValues rows = {from, taps + c.taps, OUTSIDE, 0, s.from_height, s.from_width};
    if (n < all) {
        rows.y = (int)(p / (uint32_t)c.width) * s.from_row_step + s.from_top;
        rows.x = (int)(p % (uint32_t)c.width) * s.from_column_step + s.from_left;
        rows.place +=
            ((int64_t)b * s.groups + group) * s.from_channels * from_plane + (int64_t)rows.y * s.from_width + rows.x;
    }
    const Weights columns = {weight + c.weights + (int64_t)group * s.padded_channels + first_column,
                             (int64_t)s.groups * s.padded_channels};
    float sum[TILE_MINE][COLS / TILE_MINE] = {};
    tile_product<COLS>(sum, memory, rows, columns, 0, c.depth);

    const bool whole = to_plane % 4 == 0 && pixels == to_plane; /* then four pixels of a run lie together, aligned */
#pragma unroll
    for (int i = 0; i < TILE_MINE; i++) {
        const uint32_t m = first + (uint32_t)tile_row(i);
        if (m >= all || (whole && i % 4))
            continue;
        const uint32_t at = m % pixels;
        const int row = (int)(at / (uint32_t)c.width) * s.to_row_step + c.first_row;
        const int column = (int)(at % (uint32_t)c.width) * s.to_column_step + c.first_column;
        float *place = to + ((int64_t)(m / pixels) * s.groups + group) * s.to_channels * to_plane +
                       (int64_t)row * s.to_width + column;
#pragma unroll
        for (int j = 0; j < COLS / TILE_MINE; j++) {
            const int channel = first_column + tile_column<COLS>(j);
            if (channel >= s.to_channels)
                continue;
            const float start = bias ? bias[group * s.to_channels + channel] : 0.0f;
            if (whole)
                *reinterpret_cast<float4 *>(place + channel * to_plane) =
                    make_float4(sum[i][j] + start, sum[i / 4 * 4 + 1][j] + start, sum[i / 4 * 4 + 2][j] + start,
                                sum[i / 4 * 4 + 3][j] + start);
            else
                place[channel * to_plane] = sum[i][j] + start;
        }
    }
}

static void run_pass(Lane *lane, const Pass *pass, float *to, const float *from, const float *bias) {
    const PassShape *s = &pass->shape;
    const dim3 grid(gpu_blocks(pass->most_pixels, TILE_ROWS),
                    (unsigned)(s->padded_channels / pass->columns * s->groups), (unsigned)pass->classes);
    switch (pass->columns) {
    case 16:
        gpu_launch(conv_tile<16>, grid, TILE_THREADS, 0, lane->stream, to, from, pass->weight, bias, pass->taps,
                   pass->list, *s);
        break;
    case 32:
        gpu_launch(conv_tile<32>, grid, TILE_THREADS, 0, lane->stream, to, from, pass->weight, bias, pass->taps,
                   pass->list, *s);
        break;
    default:
        gpu_launch(conv_tile<64>, grid, TILE_THREADS, 0, lane->stream, to, from, pass->weight, bias, pass->taps,
                   pass->list, *s);
    }
}

/* ---- Tables and weights ----------------------------------------------------------------------------------------- */

/* What a pass is made of, on the host, before it is copied to the device. */
namespace {
struct Draft {
    Tap *taps;
    Class *list;
    float *weight;                   /* zeros where channels or taps only fill a tile */
    int64_t tap_count, weight_count; /* so far */
};
} // namespace

/* The class of the gradient whose pixels have these remainders; forward's only class has row = column = 0, step 1. Taps
 * come in the order of the weight, so that sums do too. */
static void add_class(Draft *draft, Pass *pass, const ConvShape *s, const float *weight, bool backward, int row,
                      int column) {
    const PassShape *p = &pass->shape;
    const int down = apart(s->dilation_height), across = apart(s->dilation_width);
    const int64_t from_plane = (int64_t)p->from_height * p->from_width,
                  cells = (int64_t)s->kernel_height * s->kernel_width;
    const int in_channels = s->in_channels / p->groups;
    Class *c = &draft->list[pass->classes++];
    c->taps = draft->tap_count;
    c->weights = draft->weight_count;
    c->depth = 0;
    c->first_row = row;
    c->first_column = column;
    c->height = (p->to_height - row + p->to_row_step - 1) / p->to_row_step;
    c->width = (p->to_width - column + p->to_column_step - 1) / p->to_column_step;
    for (int channel = 0; channel < p->from_channels; channel++)
        for (int r = 0; r < s->kernel_height; r++)
            for (int q = 0; q < s->kernel_width; q++) {
                int below = r * down, right = q * across;
                if (backward) {
                    const int y = row + s->pad_top - below, x = column + s->pad_left - right;
                    if (y % s->stride_height != 0 || x % s->stride_width != 0)
                        continue;
                    below = y / s->stride_height;
                    right = x / s->stride_width;
                }
                Tap *tap = &draft->taps[c->taps + c->depth];
                tap->offset = channel * from_plane + (int64_t)below * p->from_width + right;
                tap->down = below;
                tap->across = right;
                for (int group = 0; group < p->groups; group++)
                    for (int to = 0; to < p->to_channels; to++) {
                        const int64_t out = (int64_t)group * (s->out_channels / p->groups) + (backward ? channel : to);
                        const int64_t cell = (out * in_channels + (backward ? to : channel)) * cells;
                        draft->weight[c->weights + ((int64_t)c->depth * p->groups + group) * p->padded_channels + to] =
                            weight[cell + (int64_t)r * s->kernel_width + q];
                    }
                c->depth++;
            }
    const int64_t chunked = (c->depth + TILE_DEPTH - 1) / TILE_DEPTH * TILE_DEPTH;
    for (int64_t t = c->depth; t < chunked; t++) {
        draft->taps[c->taps + t].offset = 0;
        draft->taps[c->taps + t].down = draft->taps[c->taps + t].across = OUTSIDE;
    }
    draft->tap_count += chunked;
    draft->weight_count += chunked * p->groups * p->padded_channels;
}

static void make_pass(Pass *pass, const ConvShape *s, int batch, const float *weight, bool backward) {
    const int groups = groups_of(s), in_channels = s->in_channels / groups, out_channels = s->out_channels / groups;
    PassShape *p = &pass->shape;
    p->batch = batch;
    p->groups = groups;
    p->from_channels = backward ? out_channels : in_channels;
    p->from_height = backward ? s->out_height : s->in_height;
    p->from_width = backward ? s->out_width : s->in_width;
    p->from_row_step = backward ? 1 : s->stride_height;
    p->from_column_step = backward ? 1 : s->stride_width;
    p->from_top = backward ? 0 : -s->pad_top;
    p->from_left = backward ? 0 : -s->pad_left;
    p->to_channels = backward ? in_channels : out_channels;
    p->to_height = backward ? s->in_height : s->out_height;
    p->to_width = backward ? s->in_width : s->out_width;
    p->to_row_step = backward ? s->stride_height : 1;
    p->to_column_step = backward ? s->stride_width : 1;
    pass->columns = p->to_channels <= 16 ? 16 : p->to_channels <= 32 ? 32 : 64;
    p->padded_channels = (p->to_channels + pass->columns - 1) / pass->columns * pass->columns;

    const int rows = p->to_row_step < p->to_height ? p->to_row_step : p->to_height;
    const int columns = p->to_column_step < p->to_width ? p->to_column_step : p->to_width;
    const int64_t classes = (int64_t)rows * columns, tiles = (int64_t)p->padded_channels / pass->columns * groups;
    pass->most_pixels = (int64_t)((p->to_height + p->to_row_step - 1) / p->to_row_step) *
                        ((p->to_width + p->to_column_step - 1) / p->to_column_step) * batch;
    if (pass->most_pixels > INT32_MAX || classes > 65535 || tiles > 65535)
        kernel_fail(
            "convolution: %lld pixels a batch, %lld channel tiles, stride %d x %d are more than a GPU kernel takes: "
            "use a smaller --batch",
            (long long)pass->most_pixels, (long long)tiles, s->stride_height, s->stride_width);
    const size_t taps =
        (size_t)p->from_channels * (size_t)s->kernel_height * (size_t)s->kernel_width + (size_t)classes * TILE_DEPTH;
    Draft draft = {
        static_cast<Tap *>(gpu_new_host(taps * sizeof(Tap))),
        static_cast<Class *>(gpu_new_host((size_t)classes * sizeof(Class))),
        static_cast<float *>(gpu_new_host(taps * (size_t)groups * (size_t)p->padded_channels * sizeof(float))), 0, 0};
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++)
            add_class(&draft, pass, s, weight, backward, row, column);
    pass->taps = work_constant(draft.taps, (size_t)draft.tap_count);
    pass->list = work_constant(draft.list, (size_t)pass->classes);
    pass->weight = work_constant(draft.weight, (size_t)draft.weight_count);
    free(draft.taps);
    free(draft.list);
    free(draft.weight);
}
