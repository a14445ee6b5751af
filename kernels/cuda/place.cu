/* place.cu: new points in a map of fixed ones. See kernels.h.
 *
 * A block of threads has one new point at a time: its threads share the fixed points among them, whose weights e stay in
 * the block's part of the scratch, and add up sums in double; the first thread takes the steps (shared_place.h).
 *
 * Price: some 80 instructions for each fixed point and look, and about 25 looks. Estimates: it has run on the host executor
 * only, never on a GPU. */
#include "shared_place.h"
#include "work.h"

enum {
    BLOCKS = 1024, /* at once; each has points floats of scratch */
    SCRATCH_MOST = 1 << 30,
};

static unsigned blocks_at_once(const PlaceShape *shape) {
    const int64_t fit = SCRATCH_MOST / (shape->points * (int64_t)sizeof(float)) + 1;
    int64_t blocks = fit < BLOCKS ? fit : (int64_t)BLOCKS;
    blocks = shape->rows < blocks ? shape->rows : blocks;
    return (unsigned)(blocks > 1 ? blocks : 1);
}

size_t k_place_scratch(const PlaceShape *shape) {
    return (size_t)blocks_at_once(shape) * (size_t)shape->points * sizeof(float);
}

/* Of numbers that are not negative they order as these do. */
static __device__ __forceinline__ uint32_t bits_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

/* The smallest over the block, on all threads; parts: shared, (WORK_WARPS). All threads call it. */
static __device__ uint64_t block_least(uint64_t value, uint64_t *parts) {
    for (int apart = 16; apart > 0; apart /= 2) {
        const uint64_t other = __shfl_xor_sync(0xffffffffu, value, apart);
        value = other < value ? other : value;
    }
    if (work_lane() == 0)
        parts[threadIdx.x / 32] = value;
    __syncthreads();
    uint64_t least = parts[0];
    for (int w = 1; w < WORK_WARPS; w++)
        least = parts[w] < least ? parts[w] : least;
    __syncthreads();
    return least;
}

/* e <- squared distances of one new point (D, 16 apart) from all. */
static __device__ void find_distances(float *e, const float *own, const float *points, PlaceShape shape) {
    for (int64_t j = threadIdx.x; j < shape.points; j += WORK_THREADS) {
        const float *other = points + j / TSNE_BLOCK * shape.width * TSNE_BLOCK + j % TSNE_BLOCK;
        float sum = 0;
        for (int64_t i = 0; i < shape.width; i++) {
            const float difference = own[i * TSNE_BLOCK] - other[i * TSNE_BLOCK];
            sum = fmaf(difference, difference, sum);
        }
        e[j] = sum;
    }
    __syncthreads();
}

/* start (PLACE_STARTS): the nearest, by distance and then by number. */
static __device__ void find_nearest(int32_t *start, const float *e, int64_t points, uint64_t *parts) {
    uint64_t last = 0;
    for (int k = 0; k < PLACE_STARTS && k < points; k++) {
        uint64_t least = UINT64_MAX;
        for (int64_t j = threadIdx.x; j < points; j += WORK_THREADS) {
            const uint64_t key = ((uint64_t)bits_of(e[j]) << 32 | (uint64_t)j) + 1;
            least = key > last && key < least ? key : least;
        }
        last = block_least(least, parts);
        if (threadIdx.x == 0)
            start[k] = (int32_t)((last - 1) & 0xffffffffu);
    }
    __syncthreads();
}

/* e: distances, then exp(-beta (d - low)); mass and entropy of the row on all threads. */
static __device__ void find_distribution(float *e, double *mass, double *entropy, int64_t points, double perplexity,
                                         double *sums, uint64_t *parts, TsneSearch *search) {
    uint64_t least = UINT64_MAX;
    double total = 0;
    for (int64_t j = threadIdx.x; j < points; j += WORK_THREADS) {
        const uint64_t bits = bits_of(e[j]);
        least = bits < least ? bits : least;
        total += (double)e[j];
    }
    float low;
    const uint32_t low_bits = (uint32_t)block_least(least, parts);
    memcpy(&low, &low_bits, sizeof low);
    total = block_sum(total, sums);
    if (threadIdx.x == 0)
        *search = tsne_search_begin(total / (double)points - (double)low, true);
    __syncthreads();
    float beta = (float)search->beta;
    for (int pass = 0; pass < TSNE_PASSES_MAX; pass++) {
        double moment[3] = {0, 0, 0};
        for (int64_t j = threadIdx.x; j < points; j += WORK_THREADS) {
            const float t = (e[j] - low) * beta;
            const double weight = (double)expf(-t);
            if (t < 80.0f) {
                moment[0] += weight;
                moment[1] += (double)t * weight;
                moment[2] += (double)t * (double)t * weight;
            }
        }
        for (int i = 0; i < 3; i++)
            moment[i] = block_sum(moment[i], sums);
        const double mean = moment[1] / moment[0];
        *mass = moment[0];
        *entropy = tsne_log(moment[0]) + mean;
        if (threadIdx.x == 0)
            tsne_search_step(search, *entropy, tsne_log(perplexity), moment[2] / moment[0] - mean * mean);
        __syncthreads();
        const bool done = search->done;
        const float next = (float)search->beta;
        __syncthreads();
        if (done || pass + 1 == TSNE_PASSES_MAX)
            break;
        beta = next;
    }
    for (int64_t j = threadIdx.x; j < points; j += WORK_THREADS) {
        const float t = (e[j] - low) * beta;
        e[j] = t < 44.0f ? expf(-t) : 0;
    }
    __syncthreads();
}

/* sums (place_sums): shared, at y, which all threads have. */
template <int A>
static __device__ void look(double *sums, const float *y, const float *e, const float *map, int64_t points,
                            double *parts) {
    constexpr int TRIANGLE = A * (A + 1) / 2, COUNT = PLACE_VECTORS + 2 * A + 2 * TRIANGLE;
    double sum[COUNT] = {};
    for (int64_t j = threadIdx.x; j < points; j += WORK_THREADS) {
        const float *column = map + j / TSNE_BLOCK * A * TSNE_BLOCK + j % TSNE_BLOCK;
        float difference[A], square = 0;
#pragma unroll
        for (int a = 0; a < A; a++) {
            difference[a] = y[a] - column[a * TSNE_BLOCK];
            square = fmaf(difference[a], difference[a], square);
        }
        const float s = fmaf(square, 1.0f / (A - 1), 1.0f), root = rsqrtf(s), r = root * root,
                    w = A == 2 ? r : r * root;
        const float er = e[j] * r, wr = w * r, err = er * r, wrr = wr * r;
        sum[PLACE_LOG] += (double)(e[j] * logf(s));
        sum[PLACE_Z] += (double)w;
        sum[PLACE_PULL] += (double)er;
        sum[PLACE_PUSH] += (double)wr;
        int t = PLACE_VECTORS + 2 * A;
#pragma unroll
        for (int a = 0; a < A; a++) {
            sum[PLACE_VECTORS + a] += (double)(er * difference[a]);
            sum[PLACE_VECTORS + A + a] += (double)(wr * difference[a]);
#pragma unroll
            for (int b = a; b < A; b++, t++) {
                sum[t] += (double)(err * difference[a] * difference[b]);
                sum[t + TRIANGLE] += (double)(wrr * difference[a] * difference[b]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const double all = block_sum(sum[i], parts);
        if (threadIdx.x == 0)
            sums[i] = all;
    }
    __syncthreads();
}

static __device__ float place_of(const float *map, int32_t point, int axis, int A) {
    return map[(point / TSNE_BLOCK * A + axis) * TSNE_BLOCK + point % TSNE_BLOCK];
}

template <int A>
static __global__ void __launch_bounds__(WORK_THREADS, 2) /* with less said, nvcc saves registers and spills some */
    place(float *y, double *kl, const float *x, const float *points, const float *map, PlaceShape shape,
          double perplexity, float *scratch) {
    __shared__ double parts[WORK_WARPS], sums[PLACE_SUMS_MOST], energy[PLACE_STARTS];
    __shared__ uint64_t least[WORK_WARPS];
    __shared__ int32_t start[PLACE_STARTS];
    __shared__ TsneSearch beta_search;
    __shared__ PlaceSearch search;
    float *e = scratch + (int64_t)blockIdx.x * shape.points;
    const int starts = shape.points < PLACE_STARTS ? (int)shape.points : (int)PLACE_STARTS;
    for (int64_t row = blockIdx.x; row < shape.rows; row += gridDim.x) {
        const int64_t block = row / TSNE_BLOCK, lane = row % TSNE_BLOCK;
        double mass = 0, entropy = 0;
        float at[A];
        find_distances(e, x + block * shape.width * TSNE_BLOCK + lane, points, shape);
        find_nearest(start, e, shape.points, least);
        find_distribution(e, &mass, &entropy, shape.points, perplexity, parts, least, &beta_search);
        for (int k = 0; k < starts; k++) { /* lowest energy first; ties as they were */
            const int32_t point = start[k];
            for (int a = 0; a < A; a++)
                at[a] = place_of(map, point, a, A);
            look<A>(sums, at, e, map, shape.points, parts);
            if (threadIdx.x == 0) {
                const double found = place_model(sums, mass, A).energy;
                int place = k;
                for (; place > 0 && found < energy[place - 1]; place--) {
                    energy[place] = energy[place - 1];
                    start[place] = start[place - 1];
                }
                energy[place] = found;
                start[place] = point;
            }
            __syncthreads();
        }
        for (int d = 0; d < PLACE_DESCENTS && d < starts; d++) {
            if (threadIdx.x == 0) {
                for (int a = 0; a < A; a++)
                    at[a] = place_of(map, start[d], a, A);
                search = place_begin(at, A);
            }
            __syncthreads();
            for (bool done = false; !done;) {
                for (int a = 0; a < A; a++)
                    at[a] = search.next[a];
                look<A>(sums, at, e, map, shape.points, parts);
                if (threadIdx.x == 0)
                    place_step(&search, sums, mass, A);
                __syncthreads();
                done = search.done;
                __syncthreads();
            }
            const double found = search.model.energy - entropy;
            if (threadIdx.x == 0 && (d == 0 || found < kl[row])) {
                kl[row] = found;
                for (int a = 0; a < A; a++)
                    y[(block * A + a) * TSNE_BLOCK + lane] = search.y[a];
            }
            __syncthreads();
        }
    }
}

void k_place(float *y, double *kl, const float *x, const float *points, const float *map, const PlaceShape *shape,
             double perplexity, void *scratch) {
    const unsigned blocks = shape->rows ? blocks_at_once(shape) : 0;
    if (shape->axes == 2)
        gpu_launch(place<2>, blocks, WORK_THREADS, 0, gpu_own_lane()->stream, y, kl, x, points, map, *shape, perplexity,
                   (float *)scratch);
    else
        gpu_launch(place<3>, blocks, WORK_THREADS, 0, gpu_own_lane()->stream, y, kl, x, points, map, *shape, perplexity,
                   (float *)scratch);
}
