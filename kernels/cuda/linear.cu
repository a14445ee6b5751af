/* linear.cu: the fully connected layer, and the product of matrices it shares with k_matmul.
 *
 * Not left to cuBLAS, whose choice of kernel and of the order of its sums follows the number of rows: here every output
 * is one chain of fused multiply-adds over a segment of SEGMENT inputs, and segments are added in order, so that neither
 * batch nor place is known to a sum. Segments are blocks of their own: without them a layer of few outputs would leave
 * most of the device idle. Outputs are the tile's rows and samples its columns.
 * Bound by the weights, 4 bytes each once per 64 samples, until the batch has some 64 samples; then by the multiply-adds.
 * An estimate: it has run on the host executor only, never on a GPU. */
#include <stdlib.h>

#include "product.h"
#include "tile.h"
#include "work.h"

constexpr int SEGMENT = 512;

struct KLinear {
    int batch, inputs, outputs;
    float *weight; /* (outputs, inputs) */
    float *bias;   /* (outputs), or NULL */
};

/* ---- The product ------------------------------------------------------------------------------------------------ */

namespace {

/* Row threadIdx.x of the tile. */
struct LineValues {
    const float *line; /* NULL past the last */
    int64_t step, end;

    __device__ __forceinline__ float operator()(int64_t depth) const {
        return line && depth < end ? line[depth * step] : 0.0f;
    }
};

struct MatrixValues {
    const float *first; /* of the tile's columns */
    int64_t column_step, step, end;
    int columns;
    bool along_depth;

    __device__ __forceinline__ float operator()(int column, int64_t depth) const {
        return column < columns && depth < end ? first[column * column_step + depth * step] : 0.0f;
    }
};

/* Where an index of several axes, the last fastest, leads to. */
struct Offsets {
    int64_t c, a, b;
};

} // namespace

static __device__ __forceinline__ Offsets offsets_at(const ProductAxis *axes, int count, int64_t index) {
    Offsets at = {0, 0, 0};
    for (int d = count - 1; d >= 0; d--) {
        const int64_t i = index % axes[d].size;
        index /= axes[d].size;
        at.c += i * axes[d].c_step;
        at.a += i * axes[d].a_step;
        at.b += i * axes[d].b_step;
    }
    return at;
}

/* Grid: (kept index, N in tiles), M in tiles, parts of the depth. */
template <int COLS>
static __global__ void __launch_bounds__(TILE_THREADS, 3)
    product_tile(float *c, const float *a, const float *b, const float *bias, Product p, int64_t sums, int part) {
    __shared__ TileMemory<float, COLS> memory;
    const unsigned tiles = ((unsigned)p.N + TILE_ROWS - 1) / TILE_ROWS;
    const int n = (int)(blockIdx.x % tiles) * TILE_ROWS + (int)threadIdx.x, first = (int)blockIdx.y * COLS;
    const int64_t from = (int64_t)blockIdx.z * part, to = from + part < p.K ? from + part : (int64_t)p.K;
    const Offsets at = offsets_at(p.kept, p.kept_count, blockIdx.x / tiles);
    float sum[TILE_MINE][COLS / TILE_MINE] = {};
    for (int64_t s = 0; s < sums; s++) {
        const Offsets here = offsets_at(p.summed, p.summed_count, s);
        const LineValues rows = {n < p.N ? b + at.b + here.b + n * p.b_n : NULL, p.b_k, to};
        const MatrixValues columns = {a + at.a + here.a + first * p.a_m, p.a_m, p.a_k, to, p.M - first, p.a_k == 1};
        tile_product<COLS>(sum, memory, rows, columns, from, to);
    }
    c += at.c + (int64_t)blockIdx.z * p.M * p.N;
#pragma unroll
    for (int i = 0; i < TILE_MINE; i++) {
        const int row = n - (int)threadIdx.x + tile_row(i);
        if (row >= p.N)
            continue;
        const float start = bias ? bias[row] : 0.0f;
#pragma unroll
        for (int j = 0; j < COLS / TILE_MINE; j++) {
            const int column = first + tile_column<COLS>(j);
            if (column < p.M)
                c[(int64_t)column * p.N + row] = sum[i][j] + start;
        }
    }
}

void gpu_product(Lane *lane, float *c, const float *a, const float *b, const float *bias, const Product *product,
                 int parts) {
    int64_t kept = 1, sums = 1;
    for (int d = 0; d < product->kept_count; d++)
        kept *= product->kept[d].size;
    for (int d = 0; d < product->summed_count; d++)
        sums *= product->summed[d].size;
    const int columns = product->M <= 16 ? 16 : product->M <= 32 ? 32 : 64;
    const int64_t tiles = gpu_blocks(product->M, columns), part = (product->K + parts - 1) / parts;
    if (tiles > 65535)
        kernel_fail("GPU: a product of %d rows is too large: use a smaller --batch", product->M);
    const dim3 grid(gpu_blocks(kept * gpu_blocks(product->N, TILE_ROWS), 1), (unsigned)tiles, (unsigned)parts);
    switch (columns) {
    case 16:
        gpu_launch(product_tile<16>, grid, TILE_THREADS, 0, lane->stream, c, a, b, bias, *product, sums, part);
        break;
    case 32:
        gpu_launch(product_tile<32>, grid, TILE_THREADS, 0, lane->stream, c, a, b, bias, *product, sums, part);
        break;
    default: gpu_launch(product_tile<64>, grid, TILE_THREADS, 0, lane->stream, c, a, b, bias, *product, sums, part);
    }
}

/* ---- The layer -------------------------------------------------------------------------------------------------- */

KLinear *k_linear_new(int batch, int inputs, int outputs, const float *weight, const float *bias, bool backward) {
    (void)backward; /* reads the same weights along the other axis */
    KLinear *linear = work_new<KLinear>();
    linear->batch = batch;
    linear->inputs = inputs;
    linear->outputs = outputs;
    linear->weight = work_constant(weight, (size_t)outputs * (size_t)inputs);
    linear->bias = work_constant(bias, (size_t)outputs);
    return linear;
}

void k_linear_free(KLinear *linear) {
    if (!linear)
        return;
    dev_free(linear->weight);
    dev_free(linear->bias);
    free(linear);
}

static int segments_of(int inputs) {
    return (inputs + SEGMENT - 1) / SEGMENT;
}

static int64_t parts_size(int batch, int inputs, int outputs) {
    return inputs > SEGMENT ? (int64_t)segments_of(inputs) * batch * outputs : 0;
}

size_t k_linear_scratch(const KLinear *linear) {
    const int64_t forward = parts_size(linear->batch, linear->inputs, linear->outputs);
    const int64_t backward = parts_size(linear->batch, linear->outputs, linear->inputs);
    return (size_t)(forward > backward ? forward : backward) * sizeof(float);
}

static __global__ void add_parts(float *out, const float *parts, const float *bias, int segments, uint32_t outputs,
                                 int64_t batch) {
    const uint32_t k = work_index();
    if (k >= outputs)
        return;
    for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
        float total = 0;
        for (int s = 0; s < segments; s++)
            total += parts[(s * batch + b) * outputs + k];
        out[b * outputs + k] = bias ? total + bias[k] : total;
    }
}

/* out (B, outputs) = in (B, inputs) times a matrix of which (i, k) lies at i * b_k + k * b_n. */
static void layer(Lane *lane, float *out, const float *in, const float *matrix, const float *bias, int B, int inputs,
                  int outputs, int64_t b_k, int64_t b_n, float *scratch) {
    Product product = {};
    product.M = B;
    product.N = outputs;
    product.K = inputs;
    product.a_m = inputs;
    product.a_k = 1;
    product.b_k = b_k;
    product.b_n = b_n;
    const int segments = segments_of(inputs);
    if (segments == 1) {
        gpu_product(lane, out, in, matrix, bias, &product, 1);
        return;
    }
    gpu_product(lane, scratch, in, matrix, NULL, &product, segments);
    gpu_launch(add_parts, work_grid(outputs, B), WORK_THREADS, 0, lane->stream, out, scratch, bias, segments, outputs,
               B);
}

void k_linear_forward(Lane *lane, const KLinear *linear, float *out, const float *in, void *scratch) {
    layer(lane, out, in, linear->weight, linear->bias, linear->batch, linear->inputs, linear->outputs, 1,
          linear->inputs, static_cast<float *>(scratch));
}

void k_linear_backward(Lane *lane, const KLinear *linear, float *din, const float *dout, void *scratch) {
    layer(lane, din, dout, linear->weight, NULL, linear->batch, linear->outputs, linear->inputs, linear->inputs, 1,
          static_cast<float *>(scratch));
}
