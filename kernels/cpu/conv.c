/* conv.c: convolutions, by oneDNN's direct kernels, and one of our own for the gradient of an image.
 *
 * float32 throughout, direct algorithm (Winograd's error is larger). A primitive works on one group of CPU_GROUP
 * samples and is run once per group; primitives and reordered weights are made once and read by all lanes.
 * An input of up to 3 channels is read as plain NCHW; other plain inputs are blocked first, into scratch.
 *
 * The gradient with respect to an image of few channels is not left to oneDNN, which pads the channels to a whole
 * vector (with one channel 15/16 of its work is thrown away): few_backward puts vectors along the other side's channels
 * instead, and is about four times as fast. */
#include <string.h>

#include "cpu.h"
#include "shared.h"

enum { FEW_CHANNELS = 3 };

typedef struct {
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t in, out; /* of one group: in (image side) and out (feature side), whichever is written */
    dnnl_memory_t weight, bias;
    size_t scratchpad; /* bytes, a multiple of 64 */
} Pass;

struct KConv {
    ConvShape shape;
    int batch;
    Layout in_layout;
    Layout pass_layout; /* of the image side, inside the primitives */
    Layout out_layout;  /* of the feature side */
    Pass forward, backward;
    float *few_weight; /* (blocks of out_channels, kernel_height, kernel_width, in_channels, block), or NULL */
};

static void make_passes(KConv *conv, const float *weight, const float *bias, bool backward);
static dnnl_memory_desc_t value_desc(Layout layout, int channels, int height, int width);
static void make_pass(Pass *pass, const dnnl_primitive_desc_t desc);
static dnnl_memory_t in_order(const dnnl_memory_desc_t *order, const dnnl_memory_desc_t *given, const float *values);
static void run_groups(Lane *lane, const KConv *conv, const Pass *pass, bool backward, float *image, float *features,
                       void *scratchpad);
static void few_new(KConv *conv, const float *weight);
static void few_backward(const KConv *conv, float *din, const float *dout);

static int groups_of(const ConvShape *s) {
    return s->groups > 1 ? s->groups : 1;
}

/* Groups of several channels that fill no block: oneDNN has no blocked kernel for them, but a product of matrices on
 * plain values. */
static bool is_odd(const ConvShape *s) {
    const int g = groups_of(s), in = s->in_channels / g, out = s->out_channels / g, width = cpu_width(LAYOUT_BLOCKED);
    return g > 1 && (in > 1 || out > 1) && (in % width || out % width);
}

/* Of the image side in the gradient's pass. */
static Layout back_layout(const KConv *conv) {
    return conv->out_layout;
}

/* Of the image side: one layout into the other. */
static void convert(Lane *lane, float *to, Layout to_layout, const float *from, Layout from_layout, const KConv *conv) {
    const ConvShape *s = &conv->shape;
    if (to_layout == LAYOUT_PLAIN)
        k_to_plain(lane, to, from, from_layout, conv->batch, s->in_channels, s->in_height, s->in_width);
    else
        k_from_plain(lane, to, to_layout, from, conv->batch, s->in_channels, s->in_height, s->in_width);
}

KConv *k_conv_new(Layout *out_layout, Layout in_layout, const ConvShape *shape, int batch, const float *weight,
                  const float *bias, bool backward) {
    KConv *conv = dev_alloc(sizeof *conv);
    *conv = (KConv){.shape = *shape,
                    .batch = batch,
                    .in_layout = in_layout,
                    .pass_layout = LAYOUT_BLOCKED,
                    .out_layout = LAYOUT_BLOCKED};
    const bool whole = groups_of(shape) == 1;
    const bool few = whole && in_layout == LAYOUT_PLAIN && shape->in_channels <= FEW_CHANNELS;
    const bool near = apart(shape->dilation_height) == 1 && apart(shape->dilation_width) == 1;
    const bool own = few && near && backward;
    if (few)
        conv->pass_layout = LAYOUT_PLAIN;
    if (own)
        few_new(conv, weight);
    if (is_odd(shape))
        conv->pass_layout = conv->out_layout = LAYOUT_PLAIN;
    int threads = cpu_one_thread();
    make_passes(conv, weight, bias, backward && !own);
    cpu_threads_back(threads);
    *out_layout = conv->out_layout;
    return conv;
}

void k_conv_free(KConv *conv) {
    if (!conv)
        return;
    Pass *passes[] = {&conv->forward, &conv->backward};
    for (int i = 0; i < 2; i++) {
        dnnl_primitive_destroy(passes[i]->primitive);
        dnnl_memory_destroy(passes[i]->weight);
        dnnl_memory_destroy(passes[i]->bias);
    }
    dev_free(conv->few_weight);
    dev_free(conv);
}

static size_t converted_bytes(const KConv *conv, Layout layout) {
    const ConvShape *s = &conv->shape;
    return layout == conv->in_layout ? 0
                                     : k_value_bytes(layout, conv->batch, s->in_channels, s->in_height, s->in_width);
}

size_t k_conv_scratch(const KConv *conv) {
    size_t forward = conv->forward.scratchpad + converted_bytes(conv, conv->pass_layout);
    size_t backward = 0;
    if (conv->backward.primitive)
        backward = conv->backward.scratchpad + converted_bytes(conv, back_layout(conv));
    return forward > backward ? forward : backward;
}

void k_conv_forward(Lane *lane, const KConv *conv, float *out, const float *in, void *scratch) {
    float *image = (float *)in; /* only read: oneDNN's handles know no const */
    if (conv->pass_layout != conv->in_layout) {
        image = (float *)((char *)scratch + conv->forward.scratchpad);
        convert(lane, image, conv->pass_layout, in, conv->in_layout, conv);
    }
    run_groups(lane, conv, &conv->forward, false, image, out, scratch);
}

void k_conv_backward(Lane *lane, const KConv *conv, float *din, const float *dout, void *scratch) {
    if (conv->few_weight) {
        few_backward(conv, din, dout);
        return;
    }
    float *image = conv->in_layout == back_layout(conv) ? din : (float *)((char *)scratch + conv->backward.scratchpad);
    run_groups(lane, conv, &conv->backward, true, image, (float *)dout, scratch);
    if (image != din)
        convert(lane, din, conv->in_layout, image, back_layout(conv), conv);
}

/* ---- oneDNN ----------------------------------------------------------------------------------------------------- */

static void make_passes(KConv *conv, const float *weight, const float *bias, bool backward) {
    const ConvShape *s = &conv->shape;
    const dnnl_dims_t strides = {s->stride_height, s->stride_width}, pad_before = {s->pad_top, s->pad_left},
                      pad_after = {s->pad_bottom, s->pad_right};
    const int groups = groups_of(s), dims = groups > 1 ? 5 : 4; /* oneDNN counts dilation from 0 */
    const dnnl_dims_t dilation = {apart(s->dilation_height) - 1, apart(s->dilation_width) - 1};
    const dnnl_dims_t grouped = {groups, s->out_channels / groups, s->in_channels / groups, s->kernel_height,
                                 s->kernel_width};
    const dnnl_dims_t whole = {s->out_channels, s->in_channels, s->kernel_height, s->kernel_width};
    const dnnl_dim_t *weight_dims = groups > 1 ? grouped : whole;
    const dnnl_dims_t bias_dims = {s->out_channels};
    dnnl_memory_desc_t given_weight, any_weight, bias_desc;
    cpu_check(
        dnnl_memory_desc_init_by_tag(&given_weight, dims, weight_dims, dnnl_f32, groups > 1 ? dnnl_goihw : dnnl_oihw),
        "a weight's shape");
    cpu_check(dnnl_memory_desc_init_by_tag(&any_weight, dims, weight_dims, dnnl_f32, dnnl_format_tag_any),
              "a weight's shape");
    cpu_check(dnnl_memory_desc_init_by_tag(&bias_desc, 1, bias_dims, dnnl_f32, dnnl_x), "a bias's shape");

    dnnl_memory_desc_t in = value_desc(conv->pass_layout, s->in_channels, s->in_height, s->in_width);
    dnnl_memory_desc_t out = value_desc(conv->out_layout, s->out_channels, s->out_height, s->out_width);
    dnnl_primitive_attr_t attributes;
    cpu_check(dnnl_primitive_attr_create(&attributes), "dnnl_primitive_attr_create");
    cpu_check(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user), "scratchpad mode");

    dnnl_convolution_desc_t operation;
    dnnl_primitive_desc_t forward, backward_desc;
    cpu_check(dnnl_dilated_convolution_forward_desc_init(&operation, dnnl_forward_inference, dnnl_convolution_direct,
                                                         &in, &any_weight, bias ? &bias_desc : NULL, &out, strides,
                                                         dilation, pad_before, pad_after),
              "a convolution");
    cpu_check(dnnl_primitive_desc_create(&forward, &operation, attributes, cpu_engine(), NULL), "a convolution");
    conv->forward.in = in;
    conv->forward.out = out;
    make_pass(&conv->forward, forward);
    conv->forward.weight =
        in_order(dnnl_primitive_desc_query_md(forward, dnnl_query_weights_md, 0), &given_weight, weight);
    if (bias)
        conv->forward.bias = in_order(&bias_desc, &bias_desc, bias);
    if (backward) {
        in = value_desc(back_layout(conv), s->in_channels, s->in_height, s->in_width);
        cpu_check(dnnl_dilated_convolution_backward_data_desc_init(&operation, dnnl_convolution_direct, &in,
                                                                   &any_weight, &out, strides, dilation, pad_before,
                                                                   pad_after),
                  "a convolution's gradient");
        cpu_check(dnnl_primitive_desc_create(&backward_desc, &operation, attributes, cpu_engine(), forward),
                  "a convolution's gradient");
        conv->backward.in = in;
        conv->backward.out = out;
        make_pass(&conv->backward, backward_desc);
        conv->backward.weight =
            in_order(dnnl_primitive_desc_query_md(backward_desc, dnnl_query_weights_md, 0), &given_weight, weight);
        dnnl_primitive_desc_destroy(backward_desc);
    }
    dnnl_primitive_desc_destroy(forward);
    dnnl_primitive_attr_destroy(attributes);
}

/* Of one group of samples. */
static dnnl_memory_desc_t value_desc(Layout layout, int channels, int height, int width) {
    const dnnl_dims_t dims = {CPU_GROUP, channels, height, width};
    dnnl_format_tag_t tag = layout == LAYOUT_PLAIN ? dnnl_nchw : cpu_width(layout) == 16 ? dnnl_nChw16c : dnnl_nChw8c;
    dnnl_memory_desc_t desc;
    cpu_check(dnnl_memory_desc_init_by_tag(&desc, 4, dims, dnnl_f32, tag), "a value's shape");
    return desc;
}

static void make_pass(Pass *pass, const dnnl_primitive_desc_t desc) {
    cpu_check(dnnl_primitive_create(&pass->primitive, desc), "dnnl_primitive_create");
    size_t bytes = dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0));
    pass->scratchpad = (bytes + 63) / 64 * 64;
}

static dnnl_memory_t in_order(const dnnl_memory_desc_t *order, const dnnl_memory_desc_t *given, const float *values) {
    dnnl_memory_t from, to;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t reorder;
    dnnl_stream_t stream;
    cpu_check(dnnl_memory_create(&from, given, cpu_engine(), (void *)values), "dnnl_memory_create");
    cpu_check(dnnl_memory_create(&to, order, cpu_engine(), DNNL_MEMORY_ALLOCATE), "dnnl_memory_create");
    cpu_check(dnnl_reorder_primitive_desc_create(&desc, given, cpu_engine(), order, cpu_engine(), NULL), "a reorder");
    cpu_check(dnnl_primitive_create(&reorder, desc), "a reorder");
    cpu_check(dnnl_stream_create(&stream, cpu_engine(), dnnl_stream_default_flags), "dnnl_stream_create");
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    cpu_check(dnnl_primitive_execute(reorder, stream, 2, arguments), "a reorder");
    cpu_check(dnnl_stream_wait(stream), "a reorder");
    dnnl_stream_destroy(stream);
    dnnl_primitive_destroy(reorder);
    dnnl_primitive_desc_destroy(desc);
    dnnl_memory_destroy(from);
    return to;
}

static void run_groups(Lane *lane, const KConv *conv, const Pass *pass, bool backward, float *image, float *features,
                       void *scratchpad) {
    int threads = cpu_one_thread();
    const size_t image_step = dnnl_memory_desc_get_size(&pass->in) / sizeof(float);
    const size_t feature_step = dnnl_memory_desc_get_size(&pass->out) / sizeof(float);
    const dnnl_dims_t pad_dims = {(dnnl_dim_t)pass->scratchpad};
    dnnl_memory_desc_t pad_desc;
    dnnl_memory_t in, out, pad;
    cpu_check(dnnl_memory_desc_init_by_tag(&pad_desc, 1, pad_dims, dnnl_u8, dnnl_x), "scratch");
    cpu_check(dnnl_memory_create(&in, &pass->in, cpu_engine(), image), "dnnl_memory_create");
    cpu_check(dnnl_memory_create(&out, &pass->out, cpu_engine(), features), "dnnl_memory_create");
    cpu_check(dnnl_memory_create(&pad, &pad_desc, cpu_engine(), scratchpad), "dnnl_memory_create");
    const dnnl_exec_arg_t arguments[] = {{backward ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, in},
                                         {backward ? DNNL_ARG_DIFF_DST : DNNL_ARG_DST, out},
                                         {DNNL_ARG_WEIGHTS, pass->weight},
                                         {DNNL_ARG_SCRATCHPAD, pad},
                                         {DNNL_ARG_BIAS, pass->bias}};
    for (int group = 0; group < cpu_rounded(conv->batch, CPU_GROUP) / CPU_GROUP; group++) {
        cpu_check(dnnl_memory_set_data_handle(in, image + (size_t)group * image_step), "dnnl_memory_set_data_handle");
        cpu_check(dnnl_memory_set_data_handle(out, features + (size_t)group * feature_step),
                  "dnnl_memory_set_data_handle");
        cpu_check(dnnl_primitive_execute(pass->primitive, cpu_stream(lane), pass->bias ? 5 : 4, arguments),
                  backward ? "a convolution's gradient" : "a convolution");
        cpu_check(dnnl_stream_wait(cpu_stream(lane)), "dnnl_stream_wait");
    }
    dnnl_memory_destroy(pad);
    dnnl_memory_destroy(out);
    dnnl_memory_destroy(in);
    cpu_threads_back(threads);
}

/* ---- The gradient of an image of few channels -------------------------------------------------------------------
 * din[c][y][x] = sum over k, i, j of weight[k][c][i][j] dout[k][(y + pad_top - i) / stride][(x + pad_left - j) /
 * stride], where these divide and lie inside. Vectors lie along k, a block of channels of dout, and are summed at the
 * end. */

static void few_new(KConv *conv, const float *weight) {
    const ConvShape *s = &conv->shape;
    const int width = cpu_width(LAYOUT_BLOCKED), channels = cpu_rounded(s->out_channels, width);
    const int64_t taps = (int64_t)s->kernel_height * s->kernel_width;
    float *to = dev_alloc((size_t)channels * (size_t)taps * (size_t)s->in_channels * sizeof(float));
    conv->few_weight = to;
    for (int block = 0; block < channels; block += width)
        for (int64_t tap = 0; tap < taps; tap++)
            for (int c = 0; c < s->in_channels; c++)
                for (int k = block; k < block + width; k++)
                    *to++ = k < s->out_channels ? weight[((int64_t)k * s->in_channels + c) * taps + tap] : 0;
}

/* The sum of a vector, by halves, each a vector again. */
static inline __attribute__((always_inline)) float sum_of(const float *vector, int width) {
    float eight[8], four[4];
#pragma omp simd
    for (int l = 0; l < 8; l++)
        eight[l] = width == 16 ? vector[l] + vector[l + 8] : vector[l];
#pragma omp simd
    for (int l = 0; l < 4; l++)
        four[l] = eight[l] + eight[l + 4];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* The kernel's rows (or columns) i = from, from + stride ... below `to` that reach position `at` of the image. */
typedef struct {
    int from, to;
} Taps;

static inline __attribute__((always_inline)) Taps taps_at(int at, int out_size, int stride, int kernel) {
    const int first = at - (out_size - 1) * stride;
    return (Taps){first > 0 ? first : at % stride, at < kernel ? at + 1 : kernel};
}

/* din (channels, in_height, in_width) += one block of dout (out_height, out_width, width); channels and width are
 * constants at each call, so that the sums stay in registers. */
static inline __attribute__((always_inline)) void add_block(float *din, const float *dout, const float *weight,
                                                            const ConvShape *s, int channels, int width) {
    const int w_step = s->stride_width * channels * width;
    for (int y = 0; y < s->in_height; y++) {
        const Taps rows = taps_at(y + s->pad_top, s->out_height, s->stride_height, s->kernel_height);
        for (int x = 0; x < s->in_width; x++, din++) {
            const Taps columns = taps_at(x + s->pad_left, s->out_width, s->stride_width, s->kernel_width);
            float sum[FEW_CHANNELS][CPU_WIDTH_MAX] = {{0}};
            const int64_t row = (y + s->pad_top - rows.from) / s->stride_height;
            const int64_t column = (x + s->pad_left - columns.from) / s->stride_width;
            const float *line = dout + (row * s->out_width + column) * width;
            for (int i = rows.from; i < rows.to; i += s->stride_height, line -= (int64_t)s->out_width * width) {
                const float *g = line, *w = weight + (int64_t)(i * s->kernel_width + columns.from) * channels * width;
                for (int j = columns.from; j < columns.to; j += s->stride_width, g -= width, w += w_step)
#pragma GCC unroll 3
                    for (int c = 0; c < channels; c++)
#pragma omp simd
                        for (int l = 0; l < width; l++)
                            sum[c][l] = __builtin_fmaf(w[c * width + l], g[l], sum[c][l]);
            }
#pragma GCC unroll 3
            for (int c = 0; c < channels; c++)
                din[(int64_t)c * s->in_height * s->in_width] += sum_of(sum[c], width);
        }
    }
}

CPU_CLONES static void add_any_block(float *din, const float *dout, const float *weight, const ConvShape *s,
                                     int width) {
    switch (s->in_channels * 100 + width) {
    case 116: add_block(din, dout, weight, s, 1, 16); break;
    case 216: add_block(din, dout, weight, s, 2, 16); break;
    case 316: add_block(din, dout, weight, s, 3, 16); break;
    case 108: add_block(din, dout, weight, s, 1, 8); break;
    case 208: add_block(din, dout, weight, s, 2, 8); break;
    case 308: add_block(din, dout, weight, s, 3, 8); break;
    }
}

static void few_backward(const KConv *conv, float *din, const float *dout) {
    const ConvShape *s = &conv->shape;
    const int width = cpu_width(LAYOUT_BLOCKED);
    const int64_t sample = (int64_t)s->in_channels * s->in_height * s->in_width;
    const int64_t block_size = (int64_t)s->out_height * s->out_width * width;
    const int64_t weight_step = (int64_t)s->kernel_height * s->kernel_width * s->in_channels * width;
    memset(din, 0, (size_t)(conv->batch * sample) * sizeof *din);
    for (int b = 0; b < conv->batch; b++, din += sample) {
        const float *weight = conv->few_weight;
        for (int k = 0; k < s->out_channels; k += width, dout += block_size, weight += weight_step)
            add_any_block(din, dout, weight, s, width);
    }
}
