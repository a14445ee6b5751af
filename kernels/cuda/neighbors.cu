/* neighbors.cu: nearest points, and how many are nearer than given ones. See kernels.h.
 *
 * A thread has a row and takes it through the whole piece of columns, 16 at a time: these stand in shared memory, a part of
 * their dimensions at once. Lists stay in global memory, where the 16 rows of a block lie side by side; a row looks at
 * the last entry of its list for each 16 columns, and at more only where a column belongs there.
 *
 * Price of a pair: 2 D + 3 A instructions and D / 16 + A / 8 loads, most of them from the cache. Estimates: it has run on the
 * host executor only, never on a GPU. */
#include "shared_tsne.h"
#include "work.h"

enum {
    ROWS = 128,       /* a block of threads */
    DIMENSIONS = 128, /* in shared memory at once; summed before they are added to the total, as on the CPU */
};

static int64_t blocks_of(int64_t points) {
    return (points + TSNE_BLOCK - 1) / TSNE_BLOCK;
}

static __global__ void measure(float *distance, const int32_t *asked, int A, int64_t numbers, const float *x,
                               const float *columns, NeighborShape shape, float scale) {
    const int64_t at = (int64_t)blockIdx.x * WORK_THREADS + threadIdx.x;
    const int64_t row = at / TSNE_BLOCK / A * TSNE_BLOCK + at % TSNE_BLOCK;
    const int64_t j = at < numbers && asked[at] >= 0 ? asked[at] - shape.column_first : -1;
    if (at >= numbers || row >= shape.rows || j < 0 || j >= shape.columns)
        return;
    float total = 0;
    for (int from = 0; from < shape.width; from += DIMENSIONS) {
        const int to = shape.width - from < DIMENSIONS ? shape.width : from + DIMENSIONS;
        float sum = 0;
        for (int i = from; i < to; i++) {
            /* fused or not, the products are exact: scale is a power of two */
            const float difference = x[row * shape.width + i] * scale - columns[j * shape.width + i] * scale;
            sum = fmaf(difference, difference, sum);
        }
        total = from ? total + sum : sum;
    }
    distance[at] = total;
}

void k_neighbors_measure(float *distance, const int32_t *asked, int A, const float *x, const float *columns,
                         const NeighborShape *shape, float scale) {
    const int64_t numbers = blocks_of(shape->rows) * A * TSNE_BLOCK;
    gpu_launch(measure, gpu_blocks(numbers, WORK_THREADS), WORK_THREADS, 0, gpu_own_lane()->stream, distance, asked, A,
               numbers, x, columns, *shape, scale);
}

/* d: of the thread's own point (D, 16) from the 16 points at x (D, 16). tile (DIMENSIONS, 16): shared. All threads call
 * it. */
static __device__ __forceinline__ void distances(float (&d)[TSNE_BLOCK], float *tile, const float *x, const float *own,
                                                 int width) {
    for (int first = 0; first < width; first += DIMENSIONS) {
        const int some = width - first < DIMENSIONS ? width - first : DIMENSIONS;
        __syncthreads(); /* the tile's last contents have been read */
        for (int i = (int)threadIdx.x; i < some * TSNE_BLOCK; i += ROWS)
            tile[i] = x[(int64_t)first * TSNE_BLOCK + i];
        __syncthreads();
        float sum[TSNE_BLOCK] = {};
        for (int i = 0; i < some; i++) {
            const float mine = own[((int64_t)first + i) * TSNE_BLOCK];
#pragma unroll
            for (int s = 0; s < TSNE_BLOCK; s++) {
                const float difference = mine - tile[i * TSNE_BLOCK + s];
                sum[s] = fmaf(difference, difference, sum[s]);
            }
        }
#pragma unroll
        for (int s = 0; s < TSNE_BLOCK; s++)
            d[s] = first ? d[s] + sum[s] : sum[s];
    }
}

/* Lists of a row are 16 apart. */
static __device__ void insert(int32_t *index, float *distance, int K, float d, int32_t number) {
    int k = K - 1;
    if (d == distance[k * TSNE_BLOCK] && number > index[k * TSNE_BLOCK])
        return;
    for (; k > 0; k--) {
        const float before = distance[(k - 1) * TSNE_BLOCK];
        const int32_t there = index[(k - 1) * TSNE_BLOCK];
        if (before < d || (before == d && there < number))
            break;
        distance[k * TSNE_BLOCK] = before;
        index[k * TSNE_BLOCK] = there;
    }
    distance[k * TSNE_BLOCK] = d;
    index[k * TSNE_BLOCK] = number;
}

static __global__ void __launch_bounds__(ROWS)
    find(int32_t *index, float *distance, int K, int32_t *nearer, const int32_t *asked, const float *asked_distance,
         int A, const float *x, const float *columns, NeighborShape shape, int64_t places) {
    __shared__ __align__(16) float tile[DIMENSIONS * TSNE_BLOCK];
    const int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.x, mine = row < places ? row : 0;
    const int64_t block = mine / TSNE_BLOCK, lane = mine % TSNE_BLOCK, block_floats = (int64_t)shape.width * TSNE_BLOCK;
    for (int64_t c = 0; c < shape.columns; c += TSNE_BLOCK) {
        const int n = shape.columns - c < TSNE_BLOCK ? (int)(shape.columns - c) : TSNE_BLOCK;
        const int32_t first = (int32_t)(shape.column_first + c);
        float d[TSNE_BLOCK] = {};
        distances(d, tile, columns + c / TSNE_BLOCK * block_floats, x + block * block_floats + lane, shape.width);
        if (row >= places)
            continue; /* to the barriers of the next columns, with the others */
#pragma unroll
        for (int s = 0; s < TSNE_BLOCK; s++)
            d[s] = s >= n || first + s == shape.row_first + row ? TSNE_FAR : d[s];
#pragma unroll
        for (int s = 0; s < TSNE_BLOCK; s++)
            if (K > 0 && d[s] <= distance[(block * K + K - 1) * TSNE_BLOCK + lane])
                insert(index + block * K * TSNE_BLOCK + lane, distance + block * K * TSNE_BLOCK + lane, K, d[s],
                       first + s);
        for (int a = 0; a < A; a++) {
            const int64_t at = (block * A + a) * TSNE_BLOCK + lane;
            const float limit = asked_distance[at];
            const int32_t number = asked[at];
            int count = 0;
#pragma unroll
            for (int s = 0; s < TSNE_BLOCK; s++)
                count += d[s] < limit || (d[s] == limit && first + s < number);
            nearer[at] += count;
        }
    }
}

void k_neighbors_find(int32_t *index, float *distance, int K, int32_t *nearer, const int32_t *asked,
                      const float *asked_distance, int A, const float *x, const float *columns,
                      const NeighborShape *shape) {
    const int64_t places = blocks_of(shape->rows) * TSNE_BLOCK;
    gpu_launch(find, gpu_blocks(places, ROWS), ROWS, 0, gpu_own_lane()->stream, index, distance, K, nearer, asked,
               asked_distance, A, x, columns, *shape, places);
}
