/* tile.h: the product of two matrices, which every heavy kernel is: convolutions, fully connected layers, products of
 * values, PCA.
 *
 * A block of TILE_THREADS threads makes TILE_ROWS x COLS sums, each thread 8 x COLS / 8 of them, in registers. The depth
 * is walked in chunks of TILE_DEPTH: both operands of a chunk lie in shared memory, twice, so that the next chunk is
 * read while this one is multiplied. Every sum is one chain in the order of the depth, whatever the tile and its place.
 *
 * Price, for floats and 64 columns: a step of the depth is 64 fused multiply-adds and 4 reads of 16 bytes from shared
 * memory for a thread, and 768 bytes from the cache for the block; an estimate from the code: it has run on the host
 * executor only. */
#ifndef CNNSCOPE_TILE_H
#define CNNSCOPE_TILE_H

#include "gpu.h"

constexpr int TILE_THREADS = 128, TILE_ROWS = 128, TILE_DEPTH = 8;
constexpr int TILE_MINE = 8; /* rows of a thread, and parts that the columns fall into */

template <class Value, int COLS> struct TileMemory {
    alignas(16) Value rows[2][TILE_DEPTH][TILE_ROWS];
    alignas(16) Value columns[2][TILE_DEPTH][COLS];
};

/* Whole numbers below 2^22 in two parts, and what their products add up to (linalg.cu). */
struct Cut {
    int32_t high, low;
};
struct ExactSum {
    int64_t high, low;
};

static __device__ __forceinline__ void tile_add(float &sum, float a, float b) {
    sum = fmaf(a, b, sum);
}

static __device__ __forceinline__ void tile_add(double &sum, double a, double b) {
    sum = fma(a, b, sum);
}

static __device__ __forceinline__ void tile_add(ExactSum &sum, const Cut &a, const Cut &b) {
    sum.high += (int64_t)a.high * b.high;
    sum.low += (int64_t)a.high * b.low;
    sum.low += (int64_t)a.low * b.high;
}

/* Of a thread's i-th row and j-th column, their number in the tile: rows in two runs of four, columns in one. */
static __device__ __forceinline__ int tile_row(int i) {
    return i / 4 * (TILE_ROWS / 2) + (int)threadIdx.x % 16 * 4 + i % 4;
}

template <int COLS> static __device__ __forceinline__ int tile_column(int j) {
    return (int)threadIdx.x / 16 * (COLS / TILE_MINE) + j;
}

/* sum += rows x columns over the depths [from, to). Rows gives rows(depth), the value at that depth of the tile's row
 * number threadIdx.x; Columns gives columns(column, depth) of any column of the tile, and columns.along_depth, whether
 * neighbours in memory differ in the depth. Both are asked for depths up to the end of the last chunk, and give 0 from
 * `to` on. All threads of the block call this together; a further call may follow at once. */
template <int COLS, class Sum, class Value, class Rows, class Columns>
static __device__ __forceinline__ void tile_product(Sum (&sum)[TILE_MINE][COLS / TILE_MINE],
                                                    TileMemory<Value, COLS> &memory, const Rows &rows,
                                                    const Columns &columns, int64_t from, int64_t to) {
    constexpr int COLUMN_SHARE = COLS * TILE_DEPTH / TILE_THREADS;
    const int me = threadIdx.x;
    Value row[TILE_DEPTH] = {}, column[COLUMN_SHARE] = {};
    int place[COLUMN_SHARE]; /* in a chunk (TILE_DEPTH, COLS) */
#pragma unroll
    for (int i = 0; i < COLUMN_SHARE; i++) {
        const int n = me + i * TILE_THREADS;
        place[i] = columns.along_depth ? n % TILE_DEPTH * COLS + n / TILE_DEPTH : n;
    }
    int buffer = 0;
    for (int64_t depth = from; depth < to + TILE_DEPTH; depth += TILE_DEPTH) {
        if (depth < to) {
#pragma unroll
            for (int k = 0; k < TILE_DEPTH; k++)
                row[k] = rows(depth + k);
#pragma unroll
            for (int i = 0; i < COLUMN_SHARE; i++)
                column[i] = columns(place[i] % COLS, depth + place[i] / COLS);
        }
        if (depth > from) {
            const int full = buffer ^ 1;
#pragma unroll
            for (int k = 0; k < TILE_DEPTH; k++) {
                Value a[TILE_MINE], b[COLS / TILE_MINE];
#pragma unroll
                for (int i = 0; i < TILE_MINE; i++)
                    a[i] = memory.rows[full][k][tile_row(i)];
#pragma unroll
                for (int j = 0; j < COLS / TILE_MINE; j++)
                    b[j] = memory.columns[full][k][tile_column<COLS>(j)];
#pragma unroll
                for (int i = 0; i < TILE_MINE; i++)
#pragma unroll
                    for (int j = 0; j < COLS / TILE_MINE; j++)
                        tile_add(sum[i][j], a[i], b[j]);
            }
        }
        if (depth < to) {
#pragma unroll
            for (int k = 0; k < TILE_DEPTH; k++)
                memory.rows[buffer][k][me] = row[k];
#pragma unroll
            for (int i = 0; i < COLUMN_SHARE; i++)
                memory.columns[buffer][place[i] / COLS][place[i] % COLS] = column[i];
        }
        __syncthreads();
        buffer ^= 1;
    }
}

#endif
