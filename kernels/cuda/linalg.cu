/* linalg.cu: the dense linear algebra of PCA.
 *
 * Sums over the samples are sums of whole numbers, exact in any order and equal to the CPU's: numbers are cut into two
 * parts of `bits` <= 22 bits, whose products are multiplied and added as integers, so rows are dealt to as many blocks
 * as the device has room for, and added by atomic operations on integers. Not by cuBLAS in doubles: integers need no
 * second pass over tiles of products, and devices without fast doubles have fast integers.
 * Price of a covariance: 3 multiply-adds of 32 x 32 to 64 bits a pair of columns and row, at half the rate of a float's
 * on an H100: 0.4 s for a million rows of 2048 columns. k_project: one multiply-add in double for each number and axis.
 * Estimates from the code: it has run on the host executor only, never on a GPU. */
#include <math.h>
#include <string.h>

#include "tile.h"
#include "work.h"

constexpr int64_t SUM_ROWS = 1024;   /* rows summed by a thread */
constexpr int64_t EXACT_ROWS = 8192; /* rows summed by a tile */
constexpr int COLUMNS = 16;          /* of a tile: 8 x 2 sums of two 64-bit numbers are a thread's registers */

static dim3 column_grid(int64_t rows, int width) {
    const int64_t parts = (rows + SUM_ROWS - 1) / SUM_ROWS;
    return dim3(gpu_blocks(width, WORK_THREADS), (unsigned)(parts < 65535 ? parts : 65535));
}

/* A double that is not negative is ordered as its bits are, NaN above all. */
static __global__ void column_most(unsigned long long *most, const float *x, int64_t rows, int width,
                                   const double *center) {
    const int64_t c = work_index();
    if (c >= width)
        return;
    const double middle = center ? center[c] : 0;
    for (int64_t from = blockIdx.y * SUM_ROWS; from < rows; from += gridDim.y * SUM_ROWS) {
        double largest = 0;
        for (int64_t r = from; r < rows && r < from + SUM_ROWS; r++) {
            const double size = fabs((double)x[r * width + c] - middle);
            largest = size > largest || size != size ? size : largest;
        }
        unsigned long long bits;
        memcpy(&bits, &largest, sizeof bits);
        atomicMax(&most[c], bits);
    }
}

static __global__ void column_sums(unsigned long long *sums, const float *x, int64_t rows, int width,
                                   const double *center, const double *scale, int power, double units) {
    const int64_t c = work_index();
    if (c >= width)
        return;
    const double middle = center ? center[c] : 0, by = scale[c];
    for (int64_t from = blockIdx.y * SUM_ROWS; from < rows; from += gridDim.y * SUM_ROWS) {
        int64_t sum = 0;
        for (int64_t r = from; r < rows && r < from + SUM_ROWS; r++) {
            const double v = ((double)x[r * width + c] - middle) * by;
            sum += llrint((power == 2 ? v * v : v) * units);
        }
        atomicAdd(&sums[c], (unsigned long long)sum); /* modulo 2^64, as signed numbers are */
    }
}

void k_column_most(double *most, const float *x, int64_t rows, int width, const double *center) {
    cudaStream_t stream = gpu_own_lane()->stream;
    GPU_OK(cudaMemsetAsync(most, 0, (size_t)width * sizeof *most, stream));
    gpu_launch(column_most, column_grid(rows, width), WORK_THREADS, 0, stream,
               reinterpret_cast<unsigned long long *>(most), x, rows, width, center);
}

void k_column_sums(int64_t *sums, const float *x, int64_t rows, int width, const double *center, const double *scale,
                   int power, int bits) {
    cudaStream_t stream = gpu_own_lane()->stream;
    GPU_OK(cudaMemsetAsync(sums, 0, (size_t)width * sizeof *sums, stream));
    gpu_launch(column_sums, column_grid(rows, width), WORK_THREADS, 0, stream,
               reinterpret_cast<unsigned long long *>(sums), x, rows, width, center, scale, power, ldexp(1.0, bits));
}

/* ---- Exact products --------------------------------------------------------------------------------------------- */

/* v = (high + low 2^-bits) 2^-bits, |high| <= 2^bits and |low| <= 2^(bits - 1) whole numbers. */
static __device__ __forceinline__ Cut cut(double v, double scale, double units) {
    v *= scale * units;
    const double high = rint(v);
    return {(int32_t)high, (int32_t)rint((v - high) * units)};
}

namespace {

/* The tile's row threadIdx.x is a column of x; the depth walks the rows of x. */
struct CutColumn {
    const float *x; /* NULL past the last column */
    int64_t width, end;
    double center, scale, units;

    __device__ __forceinline__ Cut operator()(int64_t row) const {
        return x && row < end ? cut((double)x[row * width] - center, scale, units) : Cut{0, 0};
    }
};

/* Columns of x, or of t, from `first` on. */
template <class Number> struct CutColumns {
    static constexpr bool along_depth = false;
    const Number *x;
    int64_t width, end;
    const double *center, *scale; /* center NULL: zeros */
    double units;
    int first;

    __device__ __forceinline__ Cut operator()(int column, int64_t row) const {
        const int c = first + column;
        return c < width && row < end ? cut((double)x[row * width + c] - (center ? center[c] : 0), scale[c], units)
                                      : Cut{0, 0};
    }
};

} // namespace

static __device__ __forceinline__ void add_to(int64_t *sum, int64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long *>(sum), (unsigned long long)value);
}

/* high, low (width, columns) += the products of columns of x and of `other`, over a part of the rows. mirrored: other is
 * x, and what lies below the diagonal is left to k_covariance's last step. Grid: columns of x, columns of other, rows. */
template <class Number>
static __global__ void __launch_bounds__(TILE_THREADS, 3)
    exact_tile(int64_t *high, int64_t *low, const float *x, const double *center, const double *scale,
               const Number *other, const double *other_center, const double *other_scale, int64_t rows, int width,
               int columns, double units, bool mirrored) {
    __shared__ TileMemory<Cut, COLUMNS> memory;
    const int first = (int)blockIdx.x * TILE_ROWS, mine = first + (int)threadIdx.x;
    const int other_first = (int)blockIdx.y * COLUMNS;
    if (mirrored && other_first + COLUMNS <= first) /* the whole block */
        return;
    for (int64_t from = blockIdx.z * EXACT_ROWS; from < rows; from += gridDim.z * EXACT_ROWS) {
        const int64_t to = from + EXACT_ROWS < rows ? from + EXACT_ROWS : rows;
        const CutColumn a = {mine < width ? x + mine : NULL, width, to, mine < width ? center[mine] : 0,
                             mine < width ? scale[mine] : 0, units};
        const CutColumns<Number> b = {other, columns, to, other_center, other_scale, units, other_first};
        ExactSum sum[TILE_MINE][COLUMNS / TILE_MINE] = {};
        tile_product<COLUMNS>(sum, memory, a, b, from, to);
#pragma unroll
        for (int i = 0; i < TILE_MINE; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS / TILE_MINE; j++) {
                const int row = first + tile_row(i), column = other_first + tile_column<COLUMNS>(j);
                if (row >= width || column >= columns || (mirrored && column < row))
                    continue;
                add_to(&high[(int64_t)row * columns + column], sum[i][j].high);
                add_to(&low[(int64_t)row * columns + column], sum[i][j].low);
            }
    }
}

static __global__ void mirror(int64_t *high, int64_t *low, int width) {
    const int c = (int)work_index();
    for (int r = (int)blockIdx.y; r < width; r += (int)gridDim.y)
        if (c < r) {
            high[(int64_t)r * width + c] = high[(int64_t)c * width + r];
            low[(int64_t)r * width + c] = low[(int64_t)c * width + r];
        }
}

static dim3 exact_grid(int64_t rows, int width, int columns) {
    const int64_t parts = (rows + EXACT_ROWS - 1) / EXACT_ROWS;
    if (columns > 65535 * COLUMNS)
        kernel_fail("PCA: %d columns are more than a GPU kernel takes, at most %d", columns, 65535 * COLUMNS);
    return dim3(gpu_blocks(width, TILE_ROWS), gpu_blocks(columns, COLUMNS), (unsigned)(parts < 65535 ? parts : 65535));
}

size_t k_covariance_scratch(void) {
    return 0; /* the sums are made where they belong */
}

void k_covariance(int64_t *high, int64_t *low, const float *x, int64_t rows, int width, const double *center,
                  const double *scale, int bits, void *scratch) {
    (void)scratch;
    cudaStream_t stream = gpu_own_lane()->stream;
    const size_t bytes = (size_t)width * (size_t)width * sizeof *high;
    GPU_OK(cudaMemsetAsync(high, 0, bytes, stream));
    GPU_OK(cudaMemsetAsync(low, 0, bytes, stream));
    gpu_launch(exact_tile<float>, exact_grid(rows, width, width), TILE_THREADS, 0, stream, high, low, x, center, scale,
               x, center, scale, rows, width, width, ldexp(1.0, bits), true);
    gpu_launch(mirror, work_grid(width, width), WORK_THREADS, 0, stream, high, low, width);
}

void k_back_project(int64_t *high, int64_t *low, const float *x, int64_t rows, int width, const double *center,
                    const double *scale, const double *t, int columns, const double *t_scale, int bits, void *scratch) {
    (void)scratch;
    cudaStream_t stream = gpu_own_lane()->stream;
    const size_t bytes = (size_t)width * (size_t)columns * sizeof *high;
    GPU_OK(cudaMemsetAsync(high, 0, bytes, stream));
    GPU_OK(cudaMemsetAsync(low, 0, bytes, stream));
    gpu_launch(exact_tile<double>, exact_grid(rows, width, columns), TILE_THREADS, 0, stream, high, low, x, center,
               scale, t, static_cast<const double *>(NULL), t_scale, rows, width, columns, ldexp(1.0, bits), false);
}

/* ---- Projection ------------------------------------------------------------------------------------------------- */

namespace {

struct CentredRow {
    const float *x; /* NULL past the last row */
    const double *center;
    int64_t end;

    __device__ __forceinline__ double operator()(int64_t d) const {
        return x && d < end ? (double)x[d] - center[d] : 0;
    }
};

struct Axes {
    static constexpr bool along_depth = true;
    const double *axes; /* (K, D) */
    int64_t width;
    int first, count;

    __device__ __forceinline__ double operator()(int column, int64_t d) const {
        return first + column < count && d < width ? axes[(first + column) * width + d] : 0;
    }
};

} // namespace

/* Grid: rows, axes. */
static __global__ void __launch_bounds__(TILE_THREADS, 3)
    project(double *t, const float *x, int64_t rows, int width, const double *center, const double *axes, int K) {
    __shared__ TileMemory<double, COLUMNS> memory;
    const int64_t first = (int64_t)blockIdx.x * TILE_ROWS, mine = first + threadIdx.x;
    const CentredRow row = {mine < rows ? x + mine * width : NULL, center, width};
    const Axes columns = {axes, width, (int)blockIdx.y * COLUMNS, K};
    double sum[TILE_MINE][COLUMNS / TILE_MINE] = {};
    tile_product<COLUMNS>(sum, memory, row, columns, 0, width);
#pragma unroll
    for (int i = 0; i < TILE_MINE; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS / TILE_MINE; j++) {
            const int64_t r = first + tile_row(i);
            const int k = columns.first + tile_column<COLUMNS>(j);
            if (r < rows && k < K)
                t[r * K + k] = sum[i][j];
        }
}

void k_project(double *t, const float *x, int64_t rows, int width, const double *center, const double *axes, int K) {
    gpu_launch(project, dim3(gpu_blocks(rows, TILE_ROWS), gpu_blocks(K, COLUMNS)), TILE_THREADS, 0,
               gpu_own_lane()->stream, t, x, rows, width, center, axes, K);
}
