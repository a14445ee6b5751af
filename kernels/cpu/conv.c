/* conv.c: convolutions, by oneDNN's direct kernels; the gradient of an image of few channels by our own (conv_few.c).
 *
 * float32 throughout, direct algorithm (Winograd's error is larger). A primitive works on one group of CPU_GROUP
 * samples and is run once per group; primitives and reordered weights are made once and read by all lanes.
 * An input of up to 3 channels is read as plain NCHW (of blocked ones oneDNN has but plain loops, a thousand times as
 * slow), other inputs blocked; what lies otherwise is brought there first, in scratch. */
#include <string.h>

#include "cpu.h"
#include "shared.h"

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
    int padded_channels; /* of the image side, inside the primitives */
    Few *few;            /* instead of the pass backward, or NULL */
};

static void make_passes(KConv *conv, const float *weight, const float *bias, bool backward);
static dnnl_memory_desc_t value_desc(Layout layout, int channels, int height, int width);
static void make_pass(Pass *pass, const dnnl_primitive_desc_t desc);
static dnnl_memory_t in_order(const dnnl_memory_desc_t *order, const dnnl_memory_desc_t *given, const float *values);
static void run_groups(Lane *lane, const KConv *conv, const Pass *pass, bool backward, float *image, float *features,
                       void *scratchpad);

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

/* With zeros for the channels that only fill the last block: oneDNN's fast kernels want whole blocks. */
static float *padded_weight(const KConv *conv, const float *weight) {
    const ConvShape *s = &conv->shape;
    const size_t filter = (size_t)s->in_channels * (size_t)s->kernel_height * (size_t)s->kernel_width;
    const size_t step = filter / (size_t)s->in_channels * (size_t)conv->padded_channels;
    float *padded = dev_alloc((size_t)s->out_channels * step * sizeof *padded);
    memset(padded, 0, (size_t)s->out_channels * step * sizeof *padded);
    for (int k = 0; k < s->out_channels; k++)
        memcpy(padded + (size_t)k * step, weight + (size_t)k * filter, filter * sizeof *padded);
    return padded;
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
    const bool few = whole && shape->in_channels <= FEW_CHANNELS;
    const bool near = apart(shape->dilation_height) == 1 && apart(shape->dilation_width) == 1;
    const bool own = few && near && backward && in_layout == LAYOUT_PLAIN;
    if (few)
        conv->pass_layout = LAYOUT_PLAIN;
    if (own)
        conv->few = cpu_few_new(shape, weight);
    if (is_odd(shape))
        conv->pass_layout = conv->out_layout = LAYOUT_PLAIN;
    conv->padded_channels =
        whole && !few ? cpu_rounded(shape->in_channels, cpu_width(LAYOUT_BLOCKED)) : shape->in_channels;
    float *padded = conv->padded_channels > shape->in_channels ? padded_weight(conv, weight) : NULL;
    int threads = cpu_one_thread();
    make_passes(conv, padded ? padded : weight, bias, backward && !own);
    cpu_threads_back(threads);
    dev_free(padded);
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
    cpu_few_free(conv->few);
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
    if (conv->few) {
        cpu_few_backward(conv->few, din, dout, &conv->shape, conv->batch);
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
    const int in_channels = conv->padded_channels;
    const dnnl_dims_t whole = {s->out_channels, in_channels, s->kernel_height, s->kernel_width};
    const dnnl_dim_t *weight_dims = groups > 1 ? grouped : whole;
    const dnnl_dims_t bias_dims = {s->out_channels};
    dnnl_memory_desc_t given_weight, any_weight, bias_desc;
    cpu_check(
        dnnl_memory_desc_init_by_tag(&given_weight, dims, weight_dims, dnnl_f32, groups > 1 ? dnnl_goihw : dnnl_oihw),
        "a weight's shape");
    cpu_check(dnnl_memory_desc_init_by_tag(&any_weight, dims, weight_dims, dnnl_f32, dnnl_format_tag_any),
              "a weight's shape");
    cpu_check(dnnl_memory_desc_init_by_tag(&bias_desc, 1, bias_dims, dnnl_f32, dnnl_x), "a bias's shape");

    dnnl_memory_desc_t in = value_desc(conv->pass_layout, in_channels, s->in_height, s->in_width);
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
        in = value_desc(back_layout(conv), in_channels, s->in_height, s->in_width);
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
