/* kernels.h: everything the device does.
 *
 * Two implementations, chosen when the program is linked: kernels/cpu (C, OpenMP, oneDNN, OpenBLAS) and kernels/cuda.
 * Callers never ask which. "Device memory" of the CPU build is host memory, reached through the same calls.
 * Kernels allocate nothing: what they need besides their operands is passed in, from the caller's memory plan.
 * Outputs come first, then inputs, then sizes. `dX` is the gradient of X.
 *
 * Legend of sizes (ints unless said): B samples of a batch, C channels, H rows, W columns, K outputs (categories);
 * N points of a t-SNE or PCA (int64), D their dimensions, A axes of a map (2 or 3). Arrays are C order, float32.
 *
 * Determinism: every float is computed by one owner in one fixed order, so that no result depends on the number of
 * threads, lanes or ranks, nor on the other samples of a batch. */
#ifndef CNNSCOPE_KERNELS_H
#define CNNSCOPE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    DT_U8,
    DT_I8,
    DT_U16,
    DT_I16,
    DT_U32,
    DT_I32,
    DT_U64,
    DT_I64,
    DT_F16,
    DT_BF16,
    DT_F32,
    DT_F64,
    DT_BOOL
} DType;

/* ---- The device, and its memory (memory.c) ------------------------------------------------------------------- */

/* First call of all, once: take device `device` (ignored on the CPU) and `threads` threads (CPU: of OpenMP). */
void dev_start(int device, int threads);

/* How a kernel that cannot go on ends the run (memory, libraries): `fail` is given a message without newline and does
 * not return. Before it is set, the message goes to stderr and the process exits with status 1. */
void dev_on_failure(void (*fail)(const char *message));

/* The level of instructions the libraries may use, as an ordered number; ranks agree on the least before any kernel
 * is made. Results of different levels differ by rounding. */
int dev_isa(void);
void dev_limit_isa(int isa);

/* What must be equal on all ranks for equal bits, besides the level: names of the library cores in use. */
const char *dev_core(void);

bool dev_is_host(void); /* device memory is memory of the host */
size_t dev_available(void);    /* bytes this process could still allocate on the device, as far as is known */
void *dev_alloc(size_t bytes); /* 64-byte aligned, contents undefined; dies when there is not enough */
void dev_free(void *memory);   /* NULL is allowed */
/* Host memory that a lane's copies come from and go to while others compute; from any other they wait. Contents undefined;
 * dies when there is not enough. */
void *dev_alloc_host(size_t bytes);
void dev_free_host(void *memory); /* NULL is allowed */
void dev_upload(void *device, const void *host, size_t bytes);
void dev_download(void *host, const void *device, size_t bytes);

/* CUDA: the stream in whose order the functions work that take no lane, for the collectives between them; CPU: NULL. */
void *dev_stream(void);

/* Calls that take no lane and are made again and again with the same arguments, none of them waiting for a result: true:
 * they are to be made now, before dev_repeat_end. false: that was done (CUDA: as one graph, recorded once); but
 * the call first waits for what was asked at the last one, so that the host is never more than one repetition ahead.
 * *repeat NULL: the first time. CPU: always true. */
typedef struct DevRepeat DevRepeat;
bool dev_repeat(DevRepeat **repeat);
void dev_repeat_end(DevRepeat *repeat);
void dev_repeat_free(DevRepeat *repeat); /* NULL is allowed */

/* Of the CUDA build alone: `look` is called again and again while the host waits for what it asked of functions that take no lane, with the
 * seconds since the wait began, and may end the run: a collective among the work never ends when a rank is gone. */
void dev_on_wait(void (*look)(double seconds));

/* ---- Lanes: who works on a batch of the network (lane.c) ---------------------------------------------------------
 * A batch goes through the whole graph on one lane. CPU: a lane is a thread and its cache; CUDA: a stream. Functions
 * that take a lane may be called for different lanes at the same time, from different threads. */
typedef struct Lane Lane;
int lane_count(void);                /* lanes worth having on this device */
Lane *lane_new(size_t memory_bytes); /* with zeroed device memory of that size for activations and scratch */
void lane_free(Lane *lane);
void *lane_memory(Lane *lane);
void lane_sync(Lane *lane); /* wait for all that was asked of the lane */
/* In the lane's order; done at lane_sync. */
void lane_copy(Lane *lane, void *device_to, const void *device_from, size_t bytes);
void lane_download(Lane *lane, void *host, const void *device, size_t bytes);
void lane_upload(Lane *lane, void *device, const void *host, size_t bytes); /* host stays as it is until lane_sync */

/* How a value lies in memory; opaque outside of kernels. PLAIN is NCHW (or row-major). */
typedef enum { LAYOUT_PLAIN, LAYOUT_BLOCKED } Layout;

/* Bytes of a value of B samples of (C, H, W); for a vector of K units pass C = K, H = W = 1. More than the values
 * themselves: kernels work on whole groups of samples and channels, and the rest up to there is theirs. */
size_t k_value_bytes(Layout layout, int B, int C, int H, int W);

/* plain (B,C,H,W) <- a value in `layout`, and back. */
void k_to_plain(Lane *lane, float *plain, const float *value, Layout layout, int B, int C, int H, int W);
void k_from_plain(Lane *lane, float *value, Layout layout, const float *plain, int B, int C, int H, int W);

/* sum (in `layout`) += part (in `part_layout`, which is `layout` or PLAIN); first: sum = part. */
void k_accumulate(Lane *lane, float *sum, Layout layout, const float *part, Layout part_layout, bool first, int B,
                  int C, int H, int W);

/* ---- Operations of the network --------------------------------------------------------------------------------
 * Each is prepared once per process (primitives made, weights brought into the device's order) and shared by lanes.
 * `in` and `out` are in the layouts given or chosen when preparing. backward gives din from dout, in eval mode:
 * samples are independent, parameters are constants. scratch: k_*_scratch bytes of lane memory, 64-byte aligned. */
typedef struct {
    int in_channels, out_channels;
    int in_height, in_width, out_height, out_width;
    int kernel_height, kernel_width, stride_height, stride_width;
    int pad_top, pad_left, pad_bottom, pad_right;
    int dilation_height, dilation_width, groups; /* 0 means 1 */
} ConvShape;                                     /* 2-D cross-correlation, as torch.nn.Conv2d */

typedef struct KConv KConv;
/* weight (out_channels, in_channels / groups, kernel_height, kernel_width), bias (out_channels) or NULL: host, not kept.
 * *out_layout is chosen here. backward: whether k_conv_backward will be called. */
KConv *k_conv_new(Layout *out_layout, Layout in_layout, const ConvShape *shape, int batch, const float *weight,
                  const float *bias, bool backward);
void k_conv_free(KConv *conv);
size_t k_conv_scratch(const KConv *conv);
void k_conv_forward(Lane *lane, const KConv *conv, float *out, const float *in, void *scratch);
void k_conv_backward(Lane *lane, const KConv *conv, float *din, const float *dout, void *scratch);

/* Batch norm in eval mode, y = x * scale + shift per channel (two roundings, never fused), with or without the relu
 * that follows; the fused pair does the same arithmetic as the two. relu alone: scale and shift NULL. Both may work in
 * place (out == in, din == dout). Backward needs the relu's output, NULL without a relu (any value > 0 there passes
 * the gradient, as in PyTorch). guided: nor does a gradient below 0 pass the relu (Springenberg et al. 2015). scale and
 * shift are not kept. */
typedef struct KAffine KAffine;
KAffine *k_affine_new(Layout layout, int batch, int C, int H, int W, const float *scale, const float *shift, bool relu);
void k_affine_free(KAffine *affine);
void k_affine_forward(Lane *lane, const KAffine *affine, float *out, const float *in);
void k_affine_backward(Lane *lane, const KAffine *affine, float *din, const float *dout, const float *out, bool guided);

/* Max pooling, of `in` or (relu) of relu(in * scale + shift) per channel, in one pass and with the bits of KAffine and
 * KMaxPool one after the other; scale and shift NULL: of relu(in). Ties: the first of the window in row-major order, as
 * in PyTorch. in_channels == out_channels. scale and shift are not kept. */
typedef struct KMaxPool KMaxPool;
KMaxPool *k_max_pool_new(Layout layout, const ConvShape *shape, int batch, bool relu, const float *scale,
                         const float *shift);
void k_max_pool_free(KMaxPool *pool);
size_t k_max_pool_saved(const KMaxPool *pool); /* bytes kept from forward to backward: where each maximum was */
/* saved NULL: not kept. */
void k_max_pool_forward(Lane *lane, const KMaxPool *pool, float *out, void *saved, const float *in);
/* guided: as in k_affine_backward. */
void k_max_pool_backward(Lane *lane, const KMaxPool *pool, float *din, const float *dout, const void *saved,
                         bool guided);

/* Mean of each window, in and out in `layout`: over the cells inside the image, or (count_padding) inside the image with
 * its padding, as in PyTorch. */
void k_average_pool_forward(Lane *lane, float *out, const float *in, Layout layout, const ConvShape *shape,
                            bool count_padding, int B);
void k_average_pool_backward(Lane *lane, float *din, const float *dout, Layout layout, const ConvShape *shape,
                             bool count_padding, int B);

/* Largest of each plain plane, (B, C, pixels) -> (B, C); the first of equals gets the gradient. */
void k_global_max_forward(Lane *lane, float *out, const float *in, int B, int C, int64_t pixels);
void k_global_max_backward(Lane *lane, float *din, const float *dout, const float *in, int B, int C, int64_t pixels);

/* Mean over H and W, (B,C,H,W) -> plain (B,C). */
void k_global_average_forward(Lane *lane, float *out, const float *in, Layout in_layout, int B, int C, int H, int W);
void k_global_average_backward(Lane *lane, float *din, Layout in_layout, const float *dout, int B, int C, int H, int W);

/* out (B, outputs) = in (B, inputs) weight^T + bias. Values are plain, and their memory that of k_value_bytes: a device
 * may make the product with a fixed, larger number of rows, so that no row depends on the batch size.
 * weight (outputs, inputs), bias (outputs) or NULL: host, not kept. backward: whether k_linear_backward will be called.
 */
typedef struct KLinear KLinear;
KLinear *k_linear_new(int batch, int inputs, int outputs, const float *weight, const float *bias, bool backward);
void k_linear_free(KLinear *linear);
size_t k_linear_scratch(const KLinear *linear);
void k_linear_forward(Lane *lane, const KLinear *linear, float *out, const float *in, void *scratch);
void k_linear_backward(Lane *lane, const KLinear *linear, float *din, const float *dout, void *scratch);

/* ---- Elementwise (elementwise.c) --------------------------------------------------------------------------------
 * y = f(x); in place allowed (out == in, din == dout). */
typedef enum {
    K_CLIP, /* low, high; slope 0 at the bounds, as PyTorch's relu6 and hardtanh (its clamp, the same in ONNX, has 1) */
    K_LEAKY_RELU,
    K_ELU,
    K_SELU, /* beta (x > 0 ? x : alpha (e^x - 1)) */
    K_SIGMOID,
    K_HARD_SIGMOID, /* clip(alpha x + beta, 0, 1) */
    K_HARD_SWISH,
    K_TANH,
    K_SOFTPLUS,
    K_GELU,
    K_GELU_TANH,
    K_ERF,
    K_SQRT,
    K_EXP,
    K_LOG,
    K_NEG,
    K_ABS,
    K_RECIPROCAL,
    K_POW /* x^alpha */
} KFunction;

typedef struct {
    KFunction function;
    float alpha, beta, low, high;
} KUnary;

void k_unary_forward(Lane *lane, float *out, const float *in, Layout layout, const KUnary *unary, int B, int C, int H,
                     int W);
void k_unary_backward(Lane *lane, float *din, const float *dout, const float *in, Layout layout, const KUnary *unary,
                      int B, int C, int H, int W);

/* y = a op b, either broadcast as in numpy. Shapes of a sample, filled up with ones in front to KDIMS. A constant is
 * given by its values (host, not kept) and has no batch; NULL: a value. Blocked: (C,H,W) last, each operand (C,H,W) or
 * (C,1,1), a constant's C may be 1. forward may work in place on an operand of the result's shape. */
enum { KDIMS = 5 };
typedef enum {
    K_ADD,
    K_SUB,
    K_MUL,
    K_DIV,
    K_PRELU, /* a > 0 ? a : a b */
    K_LESS,  /* 1 or 0, as the next two: no gradient */
    K_LESS_EQUAL,
    K_EQUAL,
    K_WHERE,    /* a ? b : 0, whatever b is */
    K_WHERE_NOT /* a ? 0 : b */
} KBinaryKind;
typedef struct KBinary KBinary;
KBinary *k_binary_new(KBinaryKind kind, Layout layout, int batch, const int out[KDIMS], const int a[KDIMS],
                      const int b[KDIMS], const float *a_constant, const float *b_constant);
void k_binary_free(KBinary *binary);
size_t k_binary_scratch(const KBinary *binary); /* of backward */
/* A constant's pointer is not read. da or db NULL: not wanted. */
void k_binary_forward(Lane *lane, const KBinary *binary, float *out, const float *a, const float *b);
void k_binary_backward(Lane *lane, const KBinary *binary, float *da, float *db, const float *dout, const float *a,
                       const float *b, void *scratch);

/* ---- Values moved (moves.c) -------------------------------------------------------------------------------------
 * A box of up to KDIMS + 1 axes, the batch among them; steps in floats, any sign. */
typedef struct {
    int n;
    int64_t size[KDIMS + 1], to_step[KDIMS + 1], from_step[KDIMS + 1];
} KMove;
void k_move(Lane *lane, float *to, const float *from, const KMove *move);
void k_fill(Lane *lane, float *to, float value, int64_t count);

int64_t k_sample_step(Layout layout, int C, int H, int W); /* floats from one sample to the next */
bool k_whole_blocks(int C); /* channels fill blocks: then blocked values of several can stand one behind the other */

/* One axis made anew: out[i] = sum of two weight[i][t] * in[index[i][t]] (index -1: nothing there), on plain values
 * (outer, axis, inner). index, weight (out, 2): host, not kept. */
typedef struct KAxis KAxis;
KAxis *k_axis_new(int in, int out, const int *index, const float *weight);
void k_axis_free(KAxis *axis);
void k_axis_forward(Lane *lane, const KAxis *axis, float *out, const float *in, int64_t outer, int64_t inner);
void k_axis_backward(Lane *lane, const KAxis *axis, float *din, const float *dout, int64_t outer, int64_t inner);

/* ---- Products, reductions, norms (norms.c, moves.c), all on plain values ----------------------------------------- */

/* c (M, N) = a (M, K) b (K, N) for every index of n outer axes, the batch first; turned: stored (K, M), (N, K). Steps in
 * floats; 0 along an axis: that operand is the same for all of it, or c the sum over it. */
typedef struct {
    int M, N, K, n;
    bool a_turned, b_turned;
    int64_t size[KDIMS + 1], c_step[KDIMS + 1], a_step[KDIMS + 1], b_step[KDIMS + 1];
} KProduct;
void k_matmul(Lane *lane, float *c, const float *a, const float *b, const KProduct *product);

/* out = mean of `cells` values each. box: over in, from_step those of in, to_step those of out, 0 along what is
 * averaged; values: of out. scratch: values doubles. */
void k_mean_forward(Lane *lane, float *out, const float *in, const KMove *box, int64_t values, int64_t cells,
                    void *scratch);
void k_mean_backward(Lane *lane, float *din, const float *dout, const KMove *box, int64_t cells);

/* Along the middle axis of (outer, n, inner). backward reads the output. */
void k_softmax_forward(Lane *lane, float *out, const float *in, bool logarithm, int64_t outer, int64_t n,
                       int64_t inner);
void k_softmax_backward(Lane *lane, float *din, const float *dout, const float *out, bool logarithm, int64_t outer,
                        int64_t n, int64_t inner);

/* (x - mean) / sqrt(variance + epsilon) * weight + bias, of `groups` runs of `n` values in a sample; the value at i of
 * a sample has weight and bias number (i / pixels) % channels (host, not kept; NULL: 1, 0). */
typedef struct {
    int64_t groups, n, pixels, channels;
    float epsilon;
} NormShape;
typedef struct KNorm KNorm;
KNorm *k_norm_new(const NormShape *shape, int batch, const float *weight, const float *bias);
void k_norm_free(KNorm *norm);
void k_norm_forward(Lane *lane, const KNorm *norm, float *out, const float *in);
void k_norm_backward(Lane *lane, const KNorm *norm, float *din, const float *dout, const float *in);

/* y = x / (bias + alpha / size * sum of x^2 over `size` neighbouring channels)^beta, (B, C, pixels). scratch: of
 * backward, 2 C pixels floats. */
typedef struct {
    int size;
    float alpha, beta, bias;
} LrnShape;
void k_lrn_forward(Lane *lane, float *out, const float *in, const LrnShape *lrn, int B, int C, int64_t pixels);
void k_lrn_backward(Lane *lane, float *din, const float *dout, const float *in, const LrnShape *lrn, int B, int C,
                    int64_t pixels, void *scratch);

/* ---- Into and out of the network (ends.c) ---------------------------------------------------------------------- */

typedef struct {
    DType dtype;        /* of the pixels */
    bool channels_last; /* (B,H,W,C) instead of (B,C,H,W) */
    int channels, height, width;
    double scale;             /* x = (pixel * scale - mean[c]) / std[c], rounded once to float32 */
    double mean[16], std[16]; /* of channel min(c, 15) */
} PixelTransform;

/* out plain (B,C,H,W) <- pixels (host) of `count` <= B samples; the rest of the batch becomes zeros. */
void k_input(Lane *lane, float *out, const void *pixels, const PixelTransform *transform, int count, int B);

/* prediction (B): the first largest of K logits; K = 1: 1 where the logit is > 0, else 0. */
void k_predict(Lane *lane, int32_t *prediction, const float *logits, int B, int K);

/* ---- Attribution (attribution.c), all on plain values ------------------------------------------------------------- */

/* An output by what it is to the sample, in the place of its number. */
enum { TARGET_PREDICTED = -1, TARGET_RUNNER_UP = -2, TARGET_LABEL = -3 };

/* target (B): number of the output looked at. `which`: a number, or one of those above; RUNNER_UP: the first largest of
 * the outputs but the predicted one; LABEL: that of labels (B), or the predicted one where the label is -1. With one
 * output, and labels NULL: the predicted one. */
void k_target(Lane *lane, int32_t *target, int which, const int32_t *prediction, const float *logits,
              const int32_t *labels, int B, int K);

/* seed (B, K): 1 at the target, -1 at `against` (NULL: none; 0 where the two are one), else 0. K = 1: 1. */
void k_seed(Lane *lane, float *seed, const int32_t *target, const int32_t *against, int B, int K);

/* score (B) = logit of the target less that of `against` (NULL: none), less the same of `from` (K; NULL: 0). */
void k_score(Lane *lane, float *score, const float *logits, const float *from, const int32_t *target,
             const int32_t *against, int B, int K);

/* Inputs of passes. x (B, size), baseline (size).
 * k_between: out = baseline + share (x - baseline).
 * k_noisy: out = x + share (largest - smallest of the sample's x) normal deviates, keyed on (seed, number, draw). number
 * (B): of the samples. Smilkov et al. 2017.
 * k_occlude: out = x, and baseline in rows [top, bottom), columns [left, right) of every channel. */
typedef struct {
    int top, left, bottom, right;
} KBox;
void k_between(Lane *lane, float *out, const float *x, const float *baseline, float share, int B, int64_t size);
void k_noisy(Lane *lane, float *out, const float *x, const int64_t *number, uint64_t seed, int draw, float share, int B,
             int64_t size);
void k_occlude(Lane *lane, float *out, const float *x, const float *baseline, const KBox *box, int B, int C, int H,
               int W);

/* sum = (first: 0, else sum) + weight * part, of count values. */
void k_add_scaled(Lane *lane, float *sum, const float *part, float weight, bool first, int64_t count);

/* out = a * b, of count values. */
void k_product(Lane *lane, float *out, const float *a, const float *b, int64_t count);

/* Integrated gradients (Sundararajan et al. 2017): map (B, size) = (x - baseline) * mean gradient; delta (B) = its sum -
 * score, 0 where it is complete; steps (B) = n. Samples with |delta| <= tolerance are left as they are; first: none is. */
void k_integrated(Lane *lane, float *map, float *delta, int32_t *steps, const float *mean, const float *x,
                  const float *baseline, const float *score, float tolerance, int n, bool first, int B, int64_t size);

/* Occlusion (Zeiler & Fergus 2014): sum (B,H,W), in the box, = (first: 0 everywhere, else sum) + score - occluded. Then
 * each cell by how many windows hold it, of those from every `stride` rows and columns. */
void k_occlusion_add(Lane *lane, float *sum, const float *score, const float *occluded, const KBox *box, bool first,
                     int B, int H, int W);
void k_occlusion_mean(Lane *lane, float *sum, int window, int stride, int B, int H, int W);

/* map (B,H,W) = max over channels of |gradient (B,C,H,W)|. Simonyan et al. 2014. */
void k_saliency(Lane *lane, float *map, const float *gradient, int B, int C, int H, int W);

/* map (B,H,W) = relu(sum over channels), with g = gradient, A = value (B,C,H,W):
 * CAM_GRAD        mean_xy(g) A                                                               Selvaraju et al. 2017
 * CAM_GRAD_PLUS   sum_xy(relu(g) g^2 / (2 g^2 + sum_xy(A) g^3 + 1e-6)) A         Chattopadhay et al. 2018, as in
 *                 pytorch-grad-cam
 * CAM_HIRES       g A                                                                        Draelos & Carin 2020
 * CAM_LAYER       relu(g) A                                                                  Jiang et al. 2021 */
typedef enum { CAM_GRAD, CAM_GRAD_PLUS, CAM_HIRES, CAM_LAYER } CamKind;
void k_cam(Lane *lane, float *map, CamKind kind, const float *value, const float *gradient, int B, int C, int H, int W);

/* map (B, pixels) = relu of the first principal component's scores, pixels being the observations of C channels; the
 * score farthest from 0 is positive, so that the map is bright where something stands out. Muhammad & Yeasin 2020. By the
 * power method, in double, up to 1000 rounds. scratch: k_eigen_cam_scratch bytes. */
size_t k_eigen_cam_scratch(int B, int C, int64_t pixels);
void k_eigen_cam(Lane *lane, float *map, const float *value, int B, int C, int64_t pixels, void *scratch);

/* (map - low) / (high - low) in place, low, high (B): the smallest and largest of the sample's `pixels` values; a
 * constant map becomes zeros. */
void k_normalise(Lane *lane, float *map, float *low, float *high, int B, int64_t pixels);

/* ---- Evidence for attribution maps (evidence.c), plain, map (B, pixels) ------------------------------------------- */

/* rank: place of each pixel by falling value, from 0, equals by their index; tied: likewise, but equals all have the mean
 * of their places; NULL: not wanted. scratch: k_rank_scratch bytes. */
size_t k_rank_scratch(int B, int64_t pixels);
void k_rank(Lane *lane, int32_t *rank, float *tied, const float *map, int B, int64_t pixels, void *scratch);

/* out (B, C, pixels): the first `cut` pixels by rank (B, pixels) are the baseline's (C, pixels), the others x's;
 * insertion: the other way round. Petsiuk et al. 2018. */
void k_reveal(Lane *lane, float *out, const float *x, const float *baseline, const int32_t *rank, int64_t cut,
              bool insertion, int B, int C, int64_t pixels);

/* area (B) = (first: 0, else area) + weight * softmax of the target's logit; K = 1: its sigmoid. */
void k_add_probability(Lane *lane, float *area, const float *logits, const int32_t *target, float weight, bool first,
                       int B, int K);

/* sum (B, pixels) of map (B, C, pixels) over channels. */
void k_channel_sum(Lane *lane, float *sum, const float *map, int B, int C, int64_t pixels);

/* mask (B, pixels): what is not 0 is inside.
 * k_pointing: hit (B) = 1 where the first pixel by rank is inside, else 0. Zhang et al. 2018.
 * k_energy: share (B) of the map's positive values that is inside; 0 without any. Wang et al. 2020.
 * NaN where nothing is inside. */
void k_pointing(Lane *lane, float *hit, const int32_t *rank, const uint8_t *mask, int B, int64_t pixels);
void k_energy(Lane *lane, float *share, const float *map, const uint8_t *mask, int B, int64_t pixels);

/* gini (B): Gini index of maps that are nowhere negative, 0 even, towards 1 sparse (Hurley & Rickard 2009); of zeros 0. */
void k_gini(Lane *lane, float *gini, const float *map, const int32_t *rank, int B, int64_t pixels);

/* result[b * step]: Spearman's correlation of two maps, from their ties' ranks. */
void k_rank_correlation(Lane *lane, float *result, int64_t step, const float *a, const float *b, int B, int64_t pixels);

/* ---- Dense linear algebra of PCA (linalg.c) --------------------------------------------------------------------
 * x (rows, D): the rank's rows, device. Sums over rows are sums of integers: exact, so that neither the number of ranks
 * nor that of threads nor the BLAS changes a bit. scale: powers of two (0 for a column without content) such that
 * |x - center| * scale <= 1. */

/* most (D) = largest |x - center| of each column, 0 of no rows; center NULL: zeros. */
void k_column_most(double *most, const float *x, int64_t rows, int width, const double *center);
/* sums (D) of ((x - center) * scale)^power, power 1 or 2, in units of 2^-bits, each term rounded. */
void k_column_sums(int64_t *sums, const float *x, int64_t rows, int width, const double *center, const double *scale,
                   int power, int bits);

/* Products of two columns, summed over the rows: (high + low 2^-bits) 2^(-2 bits) with bits <= 22 and rows of the whole
 * job * 4^bits <= 2^62. k_covariance: of (x - center) * scale with itself, (D, D), both triangles. k_back_project: of
 * (x - center) * scale with t (rows, K) * t_scale, (D, K). */
size_t k_covariance_scratch(void);
void k_covariance(int64_t *high, int64_t *low, const float *x, int64_t rows, int width, const double *center,
                  const double *scale, int bits, void *scratch);
void k_back_project(int64_t *high, int64_t *low, const float *x, int64_t rows, int width, const double *center,
                    const double *scale, const double *t, int columns, const double *t_scale, int bits, void *scratch);

/* t (rows, K) = (x - center) axes^T, axes (K, D). A row's result does not depend on its place. */
void k_project(double *t, const float *x, int64_t rows, int width, const double *center, const double *axes, int K);

/* Host memory, for the one rank that solves: values (k, descending) and vectors (k, n) of a symmetric matrix (n, n),
 * which is overwritten; false if LAPACK fails. c (m, n) = alpha a (m, k) b (k, n) + beta c, b given as (n, k) if
 * transposed. */
bool k_eigen(double *values, double *vectors, double *matrix, int n, int k);
/* rotation (n, n), n <= 3: of all orthogonal matrices, reflections among them, the one that brings the rows of a (m, n)
 * nearest to those of b: u v^T, where cross (n, n) = a^T b = u s v^T (Schoenemann 1966). false if LAPACK fails. */
bool k_rotation(double *rotation, const double *cross, int n);
void k_dense_product(double *c, const double *a, const double *b, bool transposed, int m, int n, int k, double alpha,
                     double beta);

/* ---- t-SNE (tsne.c, tsne_affinity.c) -----------------------------------------------------------------------------
 * Points are in an order where near ones stand together, in blocks of 16, the lanes; the last block is padded. x is
 * (blocks, D, 16), y (blocks, A, 16), both of all points. A rank owns `count` whole blocks of rows, the same number on
 * every rank, from `first`: their distributions, and their part of the state of the descent. Blocks past the points are
 * legal and empty.
 *
 * What is summed over pairs (P, forces) is worked on by pairs of tiles of 512 points, each by one rank, for both of its
 * points; pairs of tiles have numbers from 0 to k_tsne_tiles - 1. What a pair of tiles gives is rounded to whole units
 * before it is added, to sums of all points: sums of integers are exact, so neither the number of ranks nor that of
 * threads changes a bit, however the work is dealt. */
enum { TSNE_BLOCK = 16, TSNE_TILE = 512 };

typedef struct {
    int64_t points;       /* N */
    int64_t first, count; /* blocks of this rank's rows */
    int width, axes;      /* D, A */
    int part, parts;      /* this rank, and ranks: together they own parts * count blocks */
} TsneShape;

int64_t k_tsne_tiles(int64_t points);

/* Gaussians around each point, each of the width that gives its perplexity, and the share of each in the conditional
 * distributions of a P: shares of 1 / n for the mean of n of them. */
enum { TSNE_KERNELS_MAX = 16 };
typedef struct {
    int count;
    double perplexity[TSNE_KERNELS_MAX];
    float share[TSNE_KERNELS_MAX];
} TsneKernels;

/* What a row knows of one such kernel: exp(-beta_i (d_ij - low_i)) * scale_i, whose sum over j != i is its share. */
enum { TSNE_ROW_BETA, TSNE_ROW_LOW, TSNE_ROW_SCALE, TSNE_ROW_NUMBERS };

/* The kernels of one P, among those that were searched together: c(j|i) is the sum of `count` ones. */
typedef struct {
    const float *numbers; /* of all blocks (blocks, all, TSNE_ROW_NUMBERS, 16), from the first of these kernels on */
    int all, count;
} TsneRows;

/* 16 x 16 pairs of P. Diagonal s pairs row l of block `row` of the row tile with row (l + s) modulo 16 of block `column`
 * of the column tile; bit l of its mask: the pair is kept. Each pair is in one cell only. */
typedef struct {
    uint16_t mask[TSNE_BLOCK];
    uint8_t row, column;
} TsneCell;

/* The rank's share of P: cells that keep any pair, and p of the kept pairs, in the order of their bits. */
typedef struct {
    int64_t tiles;                     /* pairs of tiles */
    int64_t *tile;                     /* (tiles) their numbers */
    int64_t *cell_start, *value_start; /* (tiles + 1) */
    TsneCell *cell;                    /* (cell_start[tiles]) */
    float *value;                      /* (value_start[tiles] + TSNE_BLOCK): the last ones are read, and not used */
} TsneAffinities;

typedef struct {
    int64_t cells, values; /* of a pair of tiles */
} TsneTileSize;

/* Sums over the kept and the dropped pairs of P, in units: of each row's c(j|i) + c(i|j) = 2N p, and of the unordered
 * pairs' p ln p. */
typedef struct {
    int64_t *kept, *dropped; /* (N), in units of k_tsne_kept_unit and TSNE_DROPPED_UNIT */
    int64_t *p_log_p;        /* (1), TSNE_LOG_UNIT */
} TsneAffinitySums;
double k_tsne_kept_unit(int64_t points);
#define TSNE_DROPPED_UNIT 0x1p-79 /* for `least` <= 2^-19 / N: a row's sum stays below 2^-18 */
#define TSNE_LOG_UNIT 0x1p-53     /* |p ln p| and |p ln w| stay below 2^9 in all */

/* packed (ceil(rows / 16), D, 16) <- x (rows, D), times scale (a power of two). */
void k_tsne_pack(float *packed, const float *x, int64_t rows, int width, float scale);

/* Bytes of scratch for the three below. */
size_t k_tsne_affinity_scratch(int64_t points, int width);
/* rows (count, kernels, TSNE_ROW_NUMBERS, 16) of blocks [shape->first, + shape->count), from one computation of their
 * distances: entropy of each row's distribution in each kernel = ln(perplexity) to 1e-6, where it can be. */
void k_tsne_search(float *rows, const float *x, const TsneShape *shape, const TsneKernels *kernels, void *scratch);
/* sizes (tiles) of the pairs of tiles number from, from + step, from + 2 step, ...; a pair is kept where c(j|i) or c(i|j)
 * is at least `least`. */
void k_tsne_count(TsneTileSize *sizes, const float *x, const TsneRows *rows, const TsneShape *shape, int64_t from,
                  int64_t step, int64_t tiles, float least, void *scratch);
/* affinities (all but cell and value given) of its places [from, to), whose sums are added. */
void k_tsne_fill(const TsneAffinities *affinities, TsneAffinitySums sums, int64_t from, int64_t to, const float *x,
                 const TsneRows *rows, const TsneShape *shape, float least, void *scratch);

/* Forces on all points as this rank's pairs give them: for each part (count, 2, A, 16), the repulsion
 * sum of w^2 (y_i - y_j) and the attraction sum of p w (y_i - y_j) of each block, then TSNE_TOTALS, the same in each
 * part: sums of w over all unordered pairs, and of - p ln w. Added up over the ranks, a rank needs only its own part, and
 * gets the totals with it. k_tsne_sums: their number in a part. */
enum { TSNE_TOTAL_W, TSNE_TOTAL_CROSS, TSNE_TOTALS };
int64_t k_tsne_sums(const TsneShape *shape);
double k_tsne_force_unit(int64_t points); /* of the repulsion */
double k_tsne_w_unit(int64_t points);
#define TSNE_PULL_UNIT 0x1p-62 /* of the attraction, which is below 0.55 on any point; and TSNE_LOG_UNIT */

/* Sets all of sums (parts, k_tsne_sums): the forces of the pairs of tiles that are in affinities, with - p ln w if asked
 * for. Returns the share of its time that the attraction took, 0 where that is not known. */
size_t k_tsne_scratch(const TsneShape *shape);
double k_tsne_forces(int64_t *sums, const TsneAffinities *affinities, bool cross, const float *y, const TsneShape *shape,
                     void *scratch);

/* sums (N) += of each point the sum of p ln(p / w) over this rank's pairs that it is in, in TSNE_LOG_UNIT. */
void k_tsne_point_logs(int64_t *sums, const TsneAffinities *affinities, const float *y, const TsneShape *shape);

typedef struct {
    double exaggeration, momentum, learning_rate;
} TsneStep;

/* One step of gradient descent with gains, on the rank's part y_mine (count, A, 16) of the map, its update and gains;
 * sums (k_tsne_sums): of all ranks, this rank's part. norm (count), if not NULL: sums of (gain * gradient)^2. */
void k_tsne_update(float *y_mine, float *update, float *gains, double *norm, const int64_t *sums,
                   const TsneShape *shape, const TsneStep *step);

/* ---- Neighbours (neighbors.c) ------------------------------------------------------------------------------------
 * Of this rank's points among all points, which come a piece at a time, in any order. Squared distances, each the sum of
 * squared differences in one order, the same bits in all functions. "Nearer" is by distance, then by number: there are no
 * ties, and no result depends on the order of the pieces. Lists are (blocks, entries, 16), blocks of 16 of the rank's
 * points, the last one padded. Packed points are scaled (k_tsne_pack), so that distances stay below NEIGHBOR_NONE. */
#define NEIGHBOR_NONE 5e29f

typedef struct {
    int64_t rows, row_first;       /* this rank's points, and the number of the first of them */
    int64_t columns, column_first; /* likewise of the piece of all points */
    int width;                     /* D */
} NeighborShape;

/* distance (blocks, A, 16) of the points asked for, for those that are in the piece. asked (blocks, A, 16): their numbers,
 * -1: none. x (rows, D) and columns (columns, D) times scale. */
void k_neighbors_measure(float *distance, const int32_t *asked, int A, const float *x, const float *columns,
                         const NeighborShape *shape, float scale);

/* index, distance (blocks, K, 16): the K nearest other points so far, nearest first, of those and the piece; to begin
 * with INT32_MAX and NEIGHBOR_NONE. nearer (blocks, A, 16) += how many points of the piece are nearer than the one asked
 * for, whose distance is given. K and A may be 0. x (blocks, D, 16), columns (.., D, 16): packed. */
void k_neighbors_find(int32_t *index, float *distance, int K, int32_t *nearer, const int32_t *asked,
                      const float *asked_distance, int A, const float *x, const float *columns,
                      const NeighborShape *shape);

/* ---- New points in a map (place.c) -------------------------------------------------------------------------------
 * Each new point by itself, against fixed points and their map: p(j) ~ exp(-beta d_j), d_j its squared distance to fixed
 * point j, beta such that the entropy is ln(perplexity), to 1e-6; q(j) = w_j / sum of w, w of t-SNE. It is placed where
 * KL(p || q) is lowest: of the descents from the places of its nearest fixed points, by Newton's method. */
typedef struct {
    int64_t rows, points; /* new; fixed */
    int width, axes;
} PlaceShape;

size_t k_place_scratch(const PlaceShape *shape);
/* y (blocks, A, 16) and kl (blocks, 16): places of the new points, and their divergence. x (blocks, D, 16), points (.., D, 16)
 * and map (.., A, 16): packed, x and points with one scale. perplexity < points. Lanes past the rows are not set. */
void k_place(float *y, double *kl, const float *x, const float *points, const float *map, const PlaceShape *shape,
             double perplexity, void *scratch);

#endif
