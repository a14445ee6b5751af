/* tsne_affinity.cu: the affinities P of t-SNE, from all pairs of points.
 *
 * Distances are direct differences: 16 points, one block of them, stand in shared memory, and every lane of the block of
 * threads has other points of its own, 16 distances from each. Search: 16 rows a block of threads; their distances from
 * all points go to scratch, and then each row is a warp's. Count and fill: a block of threads takes a pair of tiles, column
 * block by column block, half a warp a cell (diagonal s pairs its lane l with column (l + s) modulo 16), a pair of points
 * once for both. The places of values are sums over the cells before: the same P on every run.
 *
 * Price: three times N^2 / 2 distances (the search's both ways: twice that; twice more where rows drop too much) of D times 2.06 instructions of a lane, one in
 * 16 pairs a load; of 60,000 points of 50 dimensions 0.1 s on an H100, and as much for the search's passes, 4 bytes a
 * pair and pass. Estimates: it has run on the host executor only, never on a GPU. */
#include "shared_tsne.h"
#include "work.h"

enum {
    WINDOW = 2 * TSNE_BLOCK, /* 16 columns twice, so that 16 from place s on are those of diagonal s */
    DIMENSIONS = 128,        /* in shared memory at once; summed before they are added to the total */
    SEARCH_THREADS = 512,    /* a warp for each of 16 rows */
    CELL_THREADS = 256,      /* half a warp for each two of a tile's 32 blocks of rows */
    SLOTS_MOST = 512,        /* blocks of the search at once: more than a GPU has room for */
    FLUSH = 2,               /* a lane's terms in float32 before they are added in double */
};
static const size_t SEARCH_BYTES_MOST = (size_t)2 << 30;

static_assert(CELL_THREADS == WORK_THREADS, "block_sum");

static size_t slot_bytes(int64_t points) {
    return (size_t)points * TSNE_BLOCK * sizeof(float);
}

static int64_t search_slots(int64_t points) {
    const int64_t most = SLOTS_MOST, slots = (int64_t)(SEARCH_BYTES_MOST / slot_bytes(points));
    return slots < 1 ? 1 : slots < most ? slots : most;
}

static __global__ void pack(float *packed, const float *x, int64_t rows, int64_t numbers, int width, float scale) {
    const int64_t i = (int64_t)blockIdx.x * WORK_THREADS + threadIdx.x;
    const int64_t line = i / TSNE_BLOCK, row = line / width * TSNE_BLOCK + i % TSNE_BLOCK;
    if (i < numbers)
        packed[i] = row < rows ? x[row * width + line % width] * scale : 0;
}

void k_tsne_pack(float *packed, const float *x, int64_t rows, int width, float scale) {
    const int64_t numbers = (rows + TSNE_BLOCK - 1) / TSNE_BLOCK * width * TSNE_BLOCK;
    gpu_launch(pack, gpu_blocks(numbers, WORK_THREADS), WORK_THREADS, 0, gpu_own_lane()->stream, packed, x, rows,
               numbers, width, scale);
}

size_t k_tsne_affinity_scratch(int64_t points, int width) {
    (void)width;
    return (size_t)search_slots(points) * slot_bytes(points);
}

/* d: squared distances of the lane's points own[r], in blocks (D, 16) of their own, from the points shift, shift + 1, ...
 * modulo 16 of the block at x (D, 16). window (DIMENSIONS, WINDOW): shared. All threads call it. */
template <int POINTS>
static __device__ __forceinline__ void distances(float (&d)[POINTS][TSNE_BLOCK], float *window, const float *x,
                                                 const float *const (&own)[POINTS], int shift, int width) {
    for (int first = 0; first < width; first += DIMENSIONS) {
        const int some = width - first < DIMENSIONS ? width - first : DIMENSIONS;
        __syncthreads(); /* the window's last contents have been read */
        for (int i = (int)threadIdx.x; i < some * WINDOW; i += (int)blockDim.x)
            window[i] = x[((int64_t)first + i / WINDOW) * TSNE_BLOCK + i % TSNE_BLOCK];
        __syncthreads();
        float sum[POINTS][TSNE_BLOCK] = {};
        for (int i = 0; i < some; i++) {
            float mine[POINTS];
#pragma unroll
            for (int r = 0; r < POINTS; r++)
                mine[r] = own[r][((int64_t)first + i) * TSNE_BLOCK];
#pragma unroll
            for (int s = 0; s < TSNE_BLOCK; s++) {
                const float other = window[i * WINDOW + shift + s];
#pragma unroll
                for (int r = 0; r < POINTS; r++)
                    sum[r][s] = fmaf(mine[r] - other, mine[r] - other, sum[r][s]);
            }
        }
#pragma unroll
        for (int r = 0; r < POINTS; r++)
#pragma unroll
            for (int s = 0; s < TSNE_BLOCK; s++)
                d[r][s] = first ? d[r][s] + sum[r][s] : sum[r][s];
    }
}

/* ---- Search ----------------------------------------------------------------------------------------------------- */

/* Sums over a row: of e, t e, t^2 e with t = beta (d - low), e = exp(-t). */
struct Moments {
    double e, te, tte;
};

static __device__ __forceinline__ Moments moments(const float *d, int64_t points, float beta, float low) {
    Moments sums = {0, 0, 0};
    for (int64_t j = work_lane(); j < points; j += 32 * FLUSH) {
        float e = 0, te = 0, tte = 0;
#pragma unroll
        for (int k = 0; k < FLUSH; k++) {
            const float t = j + 32 * k < points ? (d[j + 32 * k] - low) * beta : 80.0f;
            const float here = t < 80.0f ? expf(-t) : 0; /* farther ones would bring infinity times zero */
            const float once = t < 80.0f ? t * here : 0;
            e += here;
            te += once;
            tte += t < 80.0f ? t * once : 0;
        }
        sums.e += (double)e;
        sums.te += (double)te;
        sums.tte += (double)tte;
    }
    return {warp_sum(sums.e), warp_sum(sums.te), warp_sum(sums.tte)};
}

/* The numbers of one row, by a warp, to `numbers`, which are 16 apart. d (points). */
static __device__ void search_row(float *numbers, const float *d, int64_t points, double wanted, float share) {
    float low = TSNE_FAR, beta;
    double total = 0, scale = 0;
    for (int64_t j = work_lane(); j < points; j += 32) {
        low = d[j] < low ? d[j] : low;
        total += d[j] < TSNE_FAR ? (double)d[j] : 0;
    }
    for (int apart = 16; apart > 0; apart /= 2)
        low = fminf(low, __shfl_xor_sync(0xffffffffu, low, apart));
    total = warp_sum(total);
    TsneSearch search = tsne_search_begin(total / (double)(points - 1) - (double)low, true);
    for (int pass = 0; pass < TSNE_PASSES_MAX && !search.done; pass++) {
        beta = (float)search.beta;
        const Moments sums = moments(d, points, beta, low);
        const double mean = sums.te / sums.e;
        scale = 1 / sums.e;
        tsne_search_step(&search, tsne_log(sums.e) + mean, wanted, sums.tte / sums.e - mean * mean);
    }
    if (work_lane() == 0) {
        numbers[TSNE_ROW_BETA * TSNE_BLOCK] = beta;
        numbers[TSNE_ROW_LOW * TSNE_BLOCK] = low;
        numbers[TSNE_ROW_SCALE * TSNE_BLOCK] = (float)scale * share;
    }
}

/* rows (count, kernels, TSNE_ROW_NUMBERS, 16) of the blocks from `from` on; d (grid, 16, points): each block of threads'
 * own. */
static __global__ void __launch_bounds__(SEARCH_THREADS)
    search_rows(float *rows, float *d, const float *x, int64_t from, int64_t count, int64_t points, int width,
                TsneKernels kernels) {
    __shared__ __align__(16) float window[DIMENSIONS * WINDOW];
    const int warp = (int)threadIdx.x / 32;
    d += blockIdx.x * points * TSNE_BLOCK;
    for (int64_t b = blockIdx.x; b < count; b += gridDim.x) {
        const int64_t first = (from + b) * TSNE_BLOCK, row = first + warp;
        for (int64_t k = 0; first < points && k < points; k += SEARCH_THREADS) {
            const int64_t j = k + threadIdx.x, there = j < points ? j : 0;
            const float *const own[1] = {x + there / TSNE_BLOCK * TSNE_BLOCK * width + there % TSNE_BLOCK};
            float found[1][TSNE_BLOCK];
            distances<1>(found, window, x + first * width, own, 0, width);
            for (int s = 0; s < TSNE_BLOCK && j < points; s++)
                d[s * points + j] = j == first + s ? TSNE_FAR : found[0][s];
        }
        __syncthreads();
        for (int k = 0; k < kernels.count; k++) {
            float *numbers = rows + (b * kernels.count + k) * TSNE_ROW_NUMBERS * TSNE_BLOCK + warp;
            if (row < points)
                search_row(numbers, d + warp * points, points, tsne_log(kernels.perplexity[k]), kernels.share[k]);
            else if (work_lane() == 0)
                for (int i = 0; i < TSNE_ROW_NUMBERS; i++)
                    numbers[i * TSNE_BLOCK] = 0;
        }
        __syncthreads(); /* d is written again */
    }
}

void k_tsne_search(float *rows, const float *x, const TsneShape *shape, const TsneKernels *kernels, void *scratch) {
    const int64_t slots = search_slots(shape->points);
    gpu_launch(search_rows, gpu_blocks(shape->count < slots ? shape->count : slots, 1), SEARCH_THREADS, 0,
               gpu_own_lane()->stream, rows, static_cast<float *>(scratch), x, shape->first, shape->count,
               shape->points, shape->width, *kernels);
}

/* ---- Count and fill --------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ void add_units(int64_t *sum, double value, double scale) {
    atomicAdd(reinterpret_cast<unsigned long long *>(sum), (unsigned long long)__double2ll_rn(value * scale));
}

/* c(j|i) or c(i|j) of a pair, from the numbers of its row or of its column in each kernel, `apart` from each other. */
static __device__ __forceinline__ float conditional(float d, const float *numbers, int apart, int kernels) {
    float sum = 0;
#pragma unroll 1 /* else registers are spilled */
    for (; kernels > 0; kernels--, numbers += TSNE_ROW_NUMBERS * apart)
        sum += expf(-(d - numbers[TSNE_ROW_LOW * apart]) * numbers[TSNE_ROW_BETA * apart]) *
               numbers[TSNE_ROW_SCALE * apart];
    return sum;
}

/* A pair of points, once: on the diagonal of P each pair appears twice, and points with themselves. */
static __device__ __forceinline__ bool is_pair(int64_t row, int64_t column, int s, int64_t points) {
    const int l = (int)(row % TSNE_BLOCK);
    const bool once =
        row / TSNE_BLOCK != column / TSNE_BLOCK || (s > 0 && (s < TSNE_BLOCK / 2 || (s == TSNE_BLOCK / 2 && l < s)));
    return once && row < points && column < points;
}

/* Bit l: lane l of this half of the warp. All lanes call it. */
static __device__ __forceinline__ unsigned half_ballot(bool vote) {
    return __ballot_sync(0xffffffffu, vote) >> (work_lane() & 16) & 0xffff;
}

/* Where the cells of a column of cells go. */
struct Places {
    int cells, values;     /* of the column */
    int cell[2], value[2]; /* of this half warp's two: how many are before */
};

/* pairs: what this half warp's two cells, of row blocks 2 half and + 1, keep; shared (TSNE_TILE_BLOCKS). */
static __device__ __forceinline__ Places find_places(int *shared, const int (&pairs)[2]) {
    const int lane = work_lane(), half = (int)threadIdx.x / TSNE_BLOCK;
    __syncthreads(); /* the last column's have been read */
    if (lane % TSNE_BLOCK == 0) {
        shared[2 * half] = pairs[0];
        shared[2 * half + 1] = pairs[1];
    }
    __syncthreads();
    const int own = shared[lane];
    const unsigned full = __ballot_sync(0xffffffffu, own > 0);
    int sum = own;
    for (int apart = 1; apart < 32; apart *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, apart);
        sum += lane >= apart ? other : 0;
    }
    Places places = {__popc(full), __shfl_sync(0xffffffffu, sum, 31), {0, 0}, {0, 0}};
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int block = 2 * half + r;
        places.cell[r] = __popc(full & ((1u << block) - 1));
        places.value[r] = __shfl_sync(0xffffffffu, sum - own, block);
    }
    return places;
}

/* This half warp's two cells of column c. p (2, 16): negative where no pair is kept. */
static __device__ __forceinline__ void write_cells(TsneCell *cell, float *value, const float (&p)[2][TSNE_BLOCK],
                                                   const Places &places, int c) {
    const int half = (int)threadIdx.x / TSNE_BLOCK, l = (int)threadIdx.x % TSNE_BLOCK;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float *next = value + places.value[r];
        unsigned all = 0, mask = 0; /* of the lane's own diagonal */
#pragma unroll
        for (int s = 0; s < TSNE_BLOCK; s++) {
            const unsigned bits = half_ballot(p[r][s] >= 0);
            if (p[r][s] >= 0)
                next[__popc(bits & ((1u << l) - 1))] = p[r][s];
            next += __popc(bits);
            all |= bits;
            mask = l == s ? bits : mask;
        }
        if (!all)
            continue;
        TsneCell *to = cell + places.cell[r];
        to->mask[l] = (uint16_t)mask;
        if (l == 0) {
            to->row = (uint8_t)(2 * half + r);
            to->column = (uint8_t)c;
        }
    }
}

/* STORE false: sizes (grid) of the pairs of tiles from + blockIdx.x * step. STORE: cell, value and sums of the pairs at
 * tile, cell_start, value_start (grid). least: as k_tsne_count's. */
template <bool STORE>
static __global__ void __launch_bounds__(CELL_THREADS)
    find_cells(TsneTileSize *sizes, int64_t from, int64_t step, TsneCell *cell, float *value, const int64_t *tile,
               const int64_t *cell_start, const int64_t *value_start, int64_t *kept, int64_t *dropped, int64_t *p_log_p,
               double kept_scale, double dropped_scale, double log_scale, const float *x, const float *rows,
               int all_kernels, int kernels, int64_t points, int width, float least, float p_scale) {
    __shared__ __align__(16) float window[DIMENSIONS * WINDOW];
    __shared__ float numbers[TSNE_KERNELS_MAX * TSNE_ROW_NUMBERS * WINDOW];
    __shared__ int counts[TSNE_TILE_BLOCKS];
    __shared__ double parts[WORK_WARPS];
    const int64_t blocks = (points + TSNE_BLOCK - 1) / TSNE_BLOCK;
    const int half = (int)threadIdx.x / TSNE_BLOCK, l = (int)threadIdx.x % TSNE_BLOCK;
    int64_t row_tile, column_tile, cells = 0, values = 0;
    tsne_tile(&row_tile, &column_tile, points, STORE ? tile[blockIdx.x] : from + blockIdx.x * step);
    const int64_t row_block = row_tile * TSNE_TILE_BLOCKS + 2 * half; /* and the next one */
    const float *own[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int64_t block = row_block + r < blocks ? row_block + r : 0; /* past the points: no pair */
        own[r] = x + block * TSNE_BLOCK * width + l;
    }
    const int row_numbers = all_kernels * TSNE_ROW_NUMBERS * TSNE_BLOCK;
    const int to_next = row_block + 1 < blocks ? row_numbers : 0;
    const float *own_numbers = rows + (row_block < blocks ? row_block * row_numbers : 0) + l;
    double row_kept[2] = {0, 0}, row_dropped[2] = {0, 0}, logs = 0;
    for (int c = 0; c < TSNE_TILE_BLOCKS && column_tile * TSNE_TILE_BLOCKS + c < blocks; c++) {
        const int64_t column_block = column_tile * TSNE_TILE_BLOCKS + c;
        float d[2][TSNE_BLOCK]; /* then p, or -1 */
        __syncthreads();        /* the last column's numbers have been read */
        for (int i = (int)threadIdx.x; i < kernels * TSNE_ROW_NUMBERS * WINDOW; i += CELL_THREADS)
            numbers[i] = rows[(column_block * all_kernels * TSNE_ROW_NUMBERS + i / WINDOW) * TSNE_BLOCK + i % TSNE_BLOCK];
        distances<2>(d, window, x + column_block * TSNE_BLOCK * width, own, l, width);
        int pairs[2] = {0, 0};
        float column_kept = 0, column_dropped = 0;
#pragma unroll
        for (int s = 0; s < TSNE_BLOCK; s++) {
            const int64_t column = column_block * TSNE_BLOCK + (l + s) % TSNE_BLOCK;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const bool real =
                    row_block + r <= column_block && is_pair((row_block + r) * TSNE_BLOCK + l, column, s, points);
                const float there = real ? conditional(d[r][s], own_numbers + r * to_next, TSNE_BLOCK, kernels) : 0;
                const float back = real ? conditional(d[r][s], numbers + l + s, WINDOW, kernels) : 0;
                const bool keep = real && (there >= least || back >= least);
                pairs[r] += __popc(half_ballot(keep));
                if (STORE) {
                    const float pair = there + back, p = pair * p_scale;
                    d[r][s] = keep ? p : -1;
                    row_kept[r] += keep ? (double)pair : 0;
                    row_dropped[r] += keep ? 0 : (double)pair;
                    column_kept += keep ? pair : 0;
                    column_dropped += keep ? 0 : pair;
                    logs += keep && p > 0 ? (double)(p * logf(p)) : 0;
                }
            }
            if (STORE) { /* the column's sums move on with it, and are home after 16 steps */
                column_kept = __shfl_sync(0xffffffffu, column_kept, l + 1, TSNE_BLOCK);
                column_dropped = __shfl_sync(0xffffffffu, column_dropped, l + 1, TSNE_BLOCK);
            }
        }
        if (STORE) {
            if (column_block * TSNE_BLOCK + l < points) {
                add_units(kept + column_block * TSNE_BLOCK + l, (double)column_kept, kept_scale);
                add_units(dropped + column_block * TSNE_BLOCK + l, (double)column_dropped, dropped_scale);
            }
            const Places places = find_places(counts, pairs);
            write_cells(cell + cell_start[blockIdx.x] + cells, value + value_start[blockIdx.x] + values, d, places, c);
            cells += places.cells;
            values += places.values;
        } else {
            cells += (pairs[0] > 0) + (pairs[1] > 0);
            values += pairs[0] + pairs[1];
        }
    }
    if (STORE) {
#pragma unroll
        for (int r = 0; r < 2; r++)
            if ((row_block + r) * TSNE_BLOCK + l < points) {
                add_units(kept + (row_block + r) * TSNE_BLOCK + l, row_kept[r], kept_scale);
                add_units(dropped + (row_block + r) * TSNE_BLOCK + l, row_dropped[r], dropped_scale);
            }
        logs = block_sum(logs, parts);
        if (threadIdx.x == 0)
            add_units(p_log_p, logs, log_scale);
    } else { /* the lanes of half a warp have counted the same */
        cells = block_sum(cells, reinterpret_cast<int64_t *>(parts));
        values = block_sum(values, reinterpret_cast<int64_t *>(parts));
        if (threadIdx.x == 0)
            sizes[blockIdx.x] = {cells / TSNE_BLOCK, values / TSNE_BLOCK};
    }
}

static float p_scale(int64_t points) {
    return (float)(0.5 / (double)points);
}

void k_tsne_count(TsneTileSize *sizes, const float *x, const TsneRows *rows, const TsneShape *shape, int64_t from,
                  int64_t step, int64_t tiles, float least, void *scratch) {
    (void)scratch;
    gpu_launch(find_cells<false>, gpu_blocks(tiles, 1), CELL_THREADS, 0, gpu_own_lane()->stream, sizes, from, step,
               nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 0, 0, x, rows->numbers, rows->all,
               rows->count, shape->points, shape->width, least, p_scale(shape->points));
}

void k_tsne_fill(const TsneAffinities *affinities, TsneAffinitySums sums, int64_t from, int64_t to, const float *x,
                 const TsneRows *rows, const TsneShape *shape, float least, void *scratch) {
    (void)scratch;
    gpu_launch(find_cells<true>, gpu_blocks(to - from, 1), CELL_THREADS, 0, gpu_own_lane()->stream, nullptr, 0, 0,
               affinities->cell, affinities->value, affinities->tile + from, affinities->cell_start + from,
               affinities->value_start + from, sums.kept, sums.dropped, sums.p_log_p, 1 / k_tsne_kept_unit(shape->points),
               1 / TSNE_DROPPED_UNIT, 1 / TSNE_LOG_UNIT, x, rows->numbers, rows->all, rows->count, shape->points,
               shape->width, least, p_scale(shape->points));
}
