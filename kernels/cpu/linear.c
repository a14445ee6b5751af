/* linear.c: the fully connected layer.
 *
 * Not left to BLAS, whose sums depend on the number of rows and on a row's place in its tile: here every output is one
 * chain of fused multiply-adds over segments of SEGMENT inputs, whose sums are then added in order (the error grows
 * with the segment, not with the width). Vectors lie along outputs, ROWS samples share each weight that is read.
 * Backward is the same product with the weights turned. Bound by the reading of the weights, once per ROWS samples. */
#include <string.h>

#include "cpu.h"

enum { ROWS = 4, COLUMNS = 32, SEGMENT = 256 };

struct KLinear {
    int batch, inputs, outputs;
    float *forward;  /* (inputs, outputs rounded up to COLUMNS) */
    float *backward; /* (outputs, inputs rounded up to COLUMNS), or NULL */
    float *bias;     /* (outputs), zeros where there is none */
};

/* to (inputs, stride) <- from (outputs, inputs), zeros to the right. In squares whose lines stay in the cache: read
 * down its columns, the 400 MB of a large layer would come a cache line a number. */
static void transpose(float *to, const float *from, size_t inputs, size_t outputs, size_t stride) {
    enum { SQUARE = 32 };
#pragma omp parallel for schedule(static)
    for (size_t first = 0; first < inputs; first += SQUARE)
        for (size_t column = 0; column < stride; column += SQUARE)
            for (size_t i = first; i < inputs && i < first + SQUARE; i++)
                for (size_t k = column; k < stride && k < column + SQUARE; k++)
                    to[i * stride + k] = k < outputs ? from[k * inputs + i] : 0;
}

KLinear *k_linear_new(int batch, int inputs, int outputs, const float *weight, const float *bias, bool backward) {
    KLinear *linear = dev_alloc(sizeof *linear);
    const size_t out_row = (size_t)cpu_rounded(outputs, COLUMNS), in_row = (size_t)cpu_rounded(inputs, COLUMNS);
    *linear = (KLinear){.batch = batch, .inputs = inputs, .outputs = outputs};
    linear->forward = dev_alloc((size_t)inputs * out_row * sizeof(float));
    linear->bias = dev_alloc((size_t)outputs * sizeof(float));
    transpose(linear->forward, weight, (size_t)inputs, (size_t)outputs, out_row);
    for (int k = 0; k < outputs; k++)
        linear->bias[k] = bias ? bias[k] : 0;
    if (backward) {
        linear->backward = dev_alloc((size_t)outputs * in_row * sizeof(float));
        memset(linear->backward, 0, (size_t)outputs * in_row * sizeof(float));
        for (size_t k = 0; k < (size_t)outputs; k++)
            memcpy(linear->backward + k * in_row, weight + k * (size_t)inputs, (size_t)inputs * sizeof(float));
    }
    return linear;
}

void k_linear_free(KLinear *linear) {
    if (!linear)
        return;
    dev_free(linear->forward);
    dev_free(linear->backward);
    dev_free(linear->bias);
    dev_free(linear);
}

size_t k_linear_scratch(const KLinear *linear) {
    (void)linear; /* the sums stay in registers */
    return 0;
}

/* total (rows, COLUMNS) = in (rows, n) times COLUMNS columns of matrix (n, stride). */
static inline __attribute__((always_inline)) void product_tile(float total[ROWS][COLUMNS], const float *in,
                                                               const float *matrix, size_t stride, int n, int rows) {
    memset(total, 0, (size_t)rows * sizeof total[0]);
    for (int from = 0; from < n; from += SEGMENT) {
        const int to = from + SEGMENT < n ? from + SEGMENT : n;
        float sum[ROWS][COLUMNS] = {{0}};
        for (int i = from; i < to; i++) {
            const float *line = matrix + (size_t)i * stride;
            for (int r = 0; r < rows; r++) {
                const float x = in[(size_t)r * (size_t)n + (size_t)i];
#pragma omp simd
                for (int k = 0; k < COLUMNS; k++)
                    sum[r][k] = __builtin_fmaf(x, line[k], sum[r][k]);
            }
        }
        for (int r = 0; r < rows; r++)
            for (int k = 0; k < COLUMNS; k++)
                total[r][k] += sum[r][k];
    }
}

/* out (rows, m) = in (rows, n) matrix (n, m rounded up) + bias (m, or NULL). */
CPU_CLONES static void product(float *out, const float *in, const float *matrix, const float *bias, int rows, int n,
                               int m) {
    const size_t stride = (size_t)cpu_rounded(m, COLUMNS);
    for (int row = 0; row < rows; row += ROWS)
        for (int column = 0; column < m; column += COLUMNS) {
            float total[ROWS][COLUMNS];
            const float *from = in + (size_t)row * (size_t)n;
            const int tile_rows = rows - row < ROWS ? rows - row : ROWS;
            if (tile_rows == ROWS)
                product_tile(total, from, matrix + column, stride, n, ROWS);
            else
                product_tile(total, from, matrix + column, stride, n, tile_rows);
            for (int r = 0; r < tile_rows; r++)
                for (int k = 0; k < COLUMNS && column + k < m; k++)
                    out[(size_t)(row + r) * (size_t)m + (size_t)(column + k)] =
                        bias ? total[r][k] + bias[column + k] : total[r][k];
        }
}

void k_linear_forward(Lane *lane, const KLinear *linear, float *out, const float *in, void *scratch) {
    (void)lane;
    (void)scratch;
    product(out, in, linear->forward, linear->bias, linear->batch, linear->inputs, linear->outputs);
}

void k_linear_backward(Lane *lane, const KLinear *linear, float *din, const float *dout, void *scratch) {
    (void)lane;
    (void)scratch;
    product(din, dout, linear->backward, NULL, linear->batch, linear->outputs, linear->inputs);
}
