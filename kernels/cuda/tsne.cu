/* tsne.cu: the forces of t-SNE, and its step.
 *
 * Both sides of each pair of points come from one computation, as on the CPU. Repulsion: a block takes 128 rows against a
 * tile of 512 columns, its four warps a quarter of the columns each. A lane keeps four rows in registers; a column and
 * the force on it wander from lane to lane, and after 32 steps are back with both sides whole. Attraction: a block takes
 * the cells of a pair of tiles, half a warp a cell, its lanes the rows, one diagonal a step; the tiles' forces are added
 * up in shared memory.
 * Sums in float32 have at most 512 terms, always the same ones, and are then rounded to whole units and added by atomic
 * operations on integers: whatever order those come in, and however many GPUs share the pairs, the bits are the same.
 * w is by the fast reciprocal (square root in 3-D), within 2 units of the last place: 2e-7 of a pair's force.
 *
 * Price of the repulsion, from the code of sm_90: 16.4 instructions for 32 pairs of points and both of their sides in
 * 2-D, 22.9 in 3-D, and an atomic addition of 8 bytes for every 51 pairs: 1.8e12 such pairs a second on an H100 at best,
 * 28 us an iteration at 10,000 points. Of few points (FEW) the columns of a tile are cut over four times as many blocks:
 * there would be fewer than multiprocessors, and each warp alone on its scheduler.
 * Estimates: it has run on the host executor only, never on a GPU. */
#include "shared_tsne.h"
#include "work.h"

enum {
    LANE_ROWS = 4,
    ROWS = 32 * LANE_ROWS,        /* of a block of the repulsion */
    ROW_PARTS = TSNE_TILE / ROWS, /* blocks of a pair of tiles */
    WARPS = 4,                    /* of such a block */
    COLUMNS = TSNE_TILE / WARPS,  /* of each of its warps */
    FEW = 4096,                   /* points, up to which those are cut into FEW_PARTS blocks */
    FEW_PARTS = 4,
    PULL_THREADS = 256,         /* of a block of the attraction */
    HALVES = PULL_THREADS / 16, /* cells it works on at once */
    PULL_FEW = 16384,           /* points, up to which a pair's cells are dealt to PULL_PARTS blocks */
    PULL_PARTS = TSNE_TILE_BLOCKS * TSNE_TILE_BLOCKS / PULL_THREADS,
};
static_assert(ROWS == 32 * WARPS, "a thread adds up a row's force");
static_assert(COLUMNS % (32 * FEW_PARTS) == 0, "a warp takes 32 columns at a time");
static_assert(PULL_THREADS == WORK_THREADS, "block_sum");

size_t k_tsne_scratch(const TsneShape *shape) {
    (void)shape;
    return 0;
}

/* Where the sums of axis 0 of a point stand, in sums (parts, count, 2, A, 16 + totals); the others are 16 apart. */
template <int A>
static __device__ __forceinline__ unsigned long long *sums_of(int64_t *sums, int64_t point, bool attraction,
                                                              int64_t count) {
    const int64_t block = point / TSNE_BLOCK, part = block / count;
    return reinterpret_cast<unsigned long long *>(sums) + part * (count * 2 * A * TSNE_BLOCK + TSNE_TOTALS) +
           ((block - part * count) * 2 + attraction) * (A * TSNE_BLOCK) + point % TSNE_BLOCK;
}

/* scale is a power of two: nothing is lost but what is less than a unit. Signed sums are those modulo 2^64. */
static __device__ __forceinline__ unsigned long long in_units(float force, float scale) {
    return (unsigned long long)__float2ll_rn(force * scale);
}

template <int A> static __device__ __forceinline__ float weight(const float *difference) {
    if (A == 2)
        return __fdividef(1.0f, fmaf(difference[1], difference[1], fmaf(difference[0], difference[0], 1.0f)));
    float square = difference[0] * difference[0];
#pragma unroll
    for (int a = 1; a < A; a++)
        square = fmaf(difference[a], difference[a], square);
    const float root = rsqrtf(fmaf(square, 0.5f, 1.0f));
    return root * root * root;
}

/* ---- Repulsion -------------------------------------------------------------------------------------------------- */

/* force, w: of the lane's rows y, += those from the 32 columns of the warp; column_force: from the rows on the lane's
 * own column. MASKED: pairs of a point with itself, and of padding, count for nothing; row_of_lane, column_of_lane: the
 * numbers of the lane's first row and of its own column. */
template <int A, bool MASKED>
static __device__ __forceinline__ void repel_columns(float (&force)[LANE_ROWS][A], float &w, float (&column_force)[A],
                                                     const float (&y)[LANE_ROWS][A], float (&column)[A],
                                                     int64_t row_of_lane, int64_t columns_from, int64_t points) {
    const int lane = work_lane();
#pragma unroll 4
    for (int s = 0; s < 32; s++) {
        const int64_t number = columns_from + (lane + s) % 32; /* of the column that is here now */
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) {
            float difference[A];
#pragma unroll
            for (int a = 0; a < A; a++)
                difference[a] = y[r][a] - column[a];
            float here = weight<A>(difference);
            if (MASKED && (number >= points || row_of_lane + 32 * r >= points || number == row_of_lane + 32 * r))
                here = 0;
            const float square = here * here;
            w += here;
#pragma unroll
            for (int a = 0; a < A; a++) {
                force[r][a] = fmaf(square, difference[a], force[r][a]);
                column_force[a] = fmaf(-square, difference[a], column_force[a]);
            }
        }
#pragma unroll
        for (int a = 0; a < A; a++) {
            column[a] = __shfl_sync(0xffffffffu, column[a], lane + 1);
            column_force[a] = __shfl_sync(0xffffffffu, column_force[a], lane + 1);
        }
    }
}

/* How many blocks the columns of a tile are cut into: by the number of points alone, as the terms of a float sum must be
 * the same on any number of ranks. */
static int column_parts(int64_t points) {
    return points <= FEW ? FEW_PARTS : 1;
}

/* sums: zeros before. tile: numbers of the rank's pairs of tiles. A tile against itself: every ordered pair, for the rows'
 * side only. Grid: ROW_PARTS for each of the rank's pairs of tiles, and column_parts. */
template <int A>
static __global__ void __launch_bounds__(ROWS) repel(int64_t *sums, const int64_t *tile, const float *y,
                                                     int64_t points, int64_t count, float force_scale, double w_scale) {
    __shared__ float row_force[WARPS][A][ROWS];
    __shared__ double warp_w[WARPS];
    int64_t row_tile, column_tile;
    tsne_tile(&row_tile, &column_tile, points, tile[blockIdx.x / ROW_PARTS]);
    const int64_t first = row_tile * TSNE_TILE + (int64_t)(blockIdx.x % ROW_PARTS) * ROWS;
    if (first >= points) /* the whole block */
        return;
    const bool within = row_tile == column_tile;
    const int lane = work_lane(), warp = (int)threadIdx.x / 32;
    float mine[LANE_ROWS][A], force[LANE_ROWS][A] = {};
    double w = 0;
    for (int r = 0; r < LANE_ROWS; r++) {
        const int64_t row = first + 32 * r + lane;
        for (int a = 0; a < A; a++) /* past the last point: any number */
            mine[r][a] = row < points ? y[(row / TSNE_BLOCK * A + a) * TSNE_BLOCK + row % TSNE_BLOCK] : 0;
    }
    const int columns = COLUMNS / (int)gridDim.y;
    const int64_t from = column_tile * TSNE_TILE + ((int)blockIdx.y * WARPS + warp) * columns;
    for (int64_t k = from; k < from + columns && k < points; k += 32) {
        const int64_t own = k + lane;
        float column[A], column_force[A] = {}, some_w = 0;
        for (int a = 0; a < A; a++)
            column[a] = own < points ? y[(own / TSNE_BLOCK * A + a) * TSNE_BLOCK + own % TSNE_BLOCK] : 0;
        if (within || k + 32 > points)
            repel_columns<A, true>(force, some_w, column_force, mine, column, first + lane, k, points);
        else
            repel_columns<A, false>(force, some_w, column_force, mine, column, first + lane, k, points);
        w += (double)some_w;
        if (!within && own < points)
            for (int a = 0; a < A; a++)
                atomicAdd(sums_of<A>(sums, own, false, count) + a * TSNE_BLOCK, in_units(column_force[a], force_scale));
    }
    for (int r = 0; r < LANE_ROWS; r++)
        for (int a = 0; a < A; a++)
            row_force[warp][a][32 * r + lane] = force[r][a];
    w = warp_sum(w);
    if (lane == 0)
        warp_w[warp] = w;
    __syncthreads();
    const int64_t row = first + threadIdx.x;
    for (int a = 0; a < A && row < points; a++) {
        float sum = 0;
        for (int i = 0; i < WARPS; i++)
            sum += row_force[i][a][threadIdx.x];
        atomicAdd(sums_of<A>(sums, row, false, count) + a * TSNE_BLOCK, in_units(sum, force_scale));
    }
    if (threadIdx.x == 0) {
        double sum = 0;
        for (int i = 0; i < WARPS; i++)
            sum += warp_w[i];
        int64_t *total = sums + count * 2 * A * TSNE_BLOCK + TSNE_TOTAL_W;
        atomicAdd(reinterpret_cast<unsigned long long *>(total),
                  (unsigned long long)__double2ll_rn((within ? sum / 2 : sum) * w_scale));
    }
}

/* The first part's total, to all. */
static __global__ void share_total(int64_t *sums, int64_t each, int total, int parts) {
    const int64_t first = sums[each - TSNE_TOTALS + total];
    for (int part = 1 + (int)work_index(); part < parts; part += WORK_THREADS)
        sums[(part + 1) * each - TSNE_TOTALS + total] = first;
}

static void share_with_all(cudaStream_t stream, int64_t *sums, const TsneShape *shape, int total) {
    if (shape->parts > 1)
        gpu_launch(share_total, 1, WORK_THREADS, 0, stream, sums, k_tsne_sums(shape), total, shape->parts);
}

static void launch_repulsion(int64_t *sums, const TsneAffinities *affinities, const float *y, const TsneShape *shape,
                             cudaStream_t stream) {
    const dim3 grid(gpu_blocks(affinities->tiles * ROW_PARTS, 1), (unsigned)column_parts(shape->points));
    gpu_launch(shape->axes == 2 ? repel<2> : repel<3>, grid, ROWS, 0, stream, sums, affinities->tile, y, shape->points,
               shape->count, (float)(1 / k_tsne_force_unit(shape->points)), 1 / k_tsne_w_unit(shape->points));
    share_with_all(stream, sums, shape, TSNE_TOTAL_W);
}

/* ---- Attraction ------------------------------------------------------------------------------------------------- */

namespace {

/* Whole numbers of 64 bits as two halves, which shared memory adds without a loop: a carry is what the low half's
 * addition tells. */
template <int A> struct TileForces {
    unsigned low[2][A][TSNE_TILE], high[2][A][TSNE_TILE];

    __device__ __forceinline__ void add(int side, int a, int point, unsigned long long term) {
        const unsigned part = (unsigned)term, before = atomicAdd(&low[side][a][point], part);
        atomicAdd(&high[side][a][point], (unsigned)(term >> 32) + (before + part < before));
    }

    __device__ __forceinline__ unsigned long long sum(int side, int a, int point) const {
        return (unsigned long long)high[side][a][point] << 32 | low[side][a][point];
    }
};

} // namespace

/* offset (PULL_THREADS) <- where the values of each cell begin; returns the number of all. parts (WORK_WARPS); both are
 * shared. cells: up to PULL_THREADS. All threads call it. */
static __device__ int value_offsets(int *offset, int *parts, const TsneCell *cell, int64_t cells) {
    const int lane = work_lane(), warp = (int)threadIdx.x / 32;
    int own = 0, before = 0, all = 0;
    if (threadIdx.x < cells)
        for (int s = 0; s < TSNE_BLOCK; s++)
            own += __popc(cell[threadIdx.x].mask[s]);
    int sum = own; /* with the warp's lanes before */
    for (int apart = 1; apart < 32; apart *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, apart);
        sum += lane >= apart ? other : 0;
    }
    __syncthreads(); /* the last chunk's have been read */
    if (lane == 31)
        parts[warp] = sum;
    __syncthreads();
    for (int w = 0; w < WORK_WARPS; w++) {
        before += w < warp ? parts[w] : 0;
        all += parts[w];
    }
    offset[threadIdx.x] = before + sum - own;
    __syncthreads();
    return all;
}

/* One cell by half a warp, its row l in lane l. mask NULL: none, for the company of the other half. y: of the two
 * blocks. Returns the lane's - sum of p ln w. */
template <int A, bool CROSS>
static __device__ __forceinline__ float attract_cell(float (&force)[A], float (&back)[A], const uint16_t *mask,
                                                     const float *value, const float *row_y, const float *column_y) {
    const int l = work_lane() % TSNE_BLOCK;
    float row[A], column[A], logs = 0;
#pragma unroll
    for (int a = 0; a < A; a++) {
        row[a] = mask ? row_y[a * TSNE_BLOCK + l] : 0;
        column[a] = mask ? column_y[a * TSNE_BLOCK + l] : 0;
        force[a] = back[a] = 0;
    }
#pragma unroll 4
    for (int s = 0; s < TSNE_BLOCK; s++) {
        const unsigned bits = mask ? mask[s] : 0;
        const float p = bits >> l & 1 ? value[__popc(bits & ((1u << l) - 1))] : 0;
        value += __popc(bits);
        float difference[A], square = 0;
#pragma unroll
        for (int a = 0; a < A; a++) {
            difference[a] = row[a] - column[a];
            square = fmaf(difference[a], difference[a], square);
        }
        const float pull = p * weight<A>(difference);
        if (CROSS)
            logs = fmaf(p, log1pf(A == 2 ? square : 0.5f * square), logs);
#pragma unroll
        for (int a = 0; a < A; a++) {
            force[a] = fmaf(pull, difference[a], force[a]);
            back[a] = fmaf(-pull, difference[a], back[a]);
            column[a] = __shfl_sync(0xffffffffu, column[a], l + 1, TSNE_BLOCK);
            back[a] = __shfl_sync(0xffffffffu, back[a], l + 1, TSNE_BLOCK);
        }
    }
    return A == 2 ? logs : 1.5f * logs;
}

/* Grid: the rank's pairs of tiles, and the blocks that the cells of each are dealt to, PULL_THREADS at a time. How many
 * these are is, like column_parts, by the number of points alone. */
template <int A, bool CROSS>
static __global__ void __launch_bounds__(PULL_THREADS, 3)
    attract(int64_t *sums, const int64_t *tile, const int64_t *cell_start, const int64_t *value_start,
            const TsneCell *cell, const float *value, const float *y, int64_t points, int64_t count) {
    __shared__ TileForces<A> forces;
    __shared__ int offset[PULL_THREADS], parts[WORK_WARPS];
    __shared__ double double_parts[WORK_WARPS];
    const int64_t end = cell_start[blockIdx.x + 1];
    if (cell_start[blockIdx.x] == end) /* the whole block */
        return;
    int64_t row_tile, column_tile;
    tsne_tile(&row_tile, &column_tile, points, tile[blockIdx.x]);
    const int half = (int)threadIdx.x / TSNE_BLOCK, l = (int)threadIdx.x % TSNE_BLOCK;
    for (int i = (int)threadIdx.x; i < 2 * A * TSNE_TILE; i += PULL_THREADS)
        (&forces.low[0][0][0])[i] = (&forces.high[0][0][0])[i] = 0;
    double logs = 0;
    value += value_start[blockIdx.x];
    for (int64_t first = cell_start[blockIdx.x]; first < end; first += PULL_THREADS) {
        const int64_t chunk = end - first < PULL_THREADS ? end - first : (int64_t)PULL_THREADS;
        const int values = value_offsets(offset, parts, cell + first, chunk);
        const bool mine = (first - cell_start[blockIdx.x]) / PULL_THREADS % gridDim.y == blockIdx.y;
        for (int64_t k = half; mine && k - half < chunk; k += HALVES) {
            const bool there = k < chunk;
            const TsneCell *own = cell + first + (there ? k : 0);
            const int row = own->row * TSNE_BLOCK, column = own->column * TSNE_BLOCK;
            float force[A], back[A];
            logs += (double)attract_cell<A, CROSS>(
                force, back, there ? own->mask : NULL, value + (there ? offset[k] : 0),
                y + (row_tile * TSNE_TILE + row) * A, y + (column_tile * TSNE_TILE + column) * A);
#pragma unroll
            for (int a = 0; a < A; a++)
                if (there) {
                    forces.add(0, a, row + l, in_units(force[a], (float)(1 / TSNE_PULL_UNIT)));
                    forces.add(1, a, column + l, in_units(back[a], (float)(1 / TSNE_PULL_UNIT)));
                }
        }
        value += values;
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < 2 * A * TSNE_TILE; i += PULL_THREADS) {
        const int side = i / (A * TSNE_TILE), a = i / TSNE_TILE % A, place = i % TSNE_TILE;
        const unsigned long long sum = forces.sum(side, a, place);
        if (sum)
            atomicAdd(sums_of<A>(sums, (side ? column_tile : row_tile) * TSNE_TILE + place, true, count) +
                          a * TSNE_BLOCK,
                      sum);
    }
    if (!CROSS)
        return;
    logs = block_sum(logs, double_parts);
    if (threadIdx.x == 0) {
        int64_t *total = sums + count * 2 * A * TSNE_BLOCK + TSNE_TOTAL_CROSS;
        atomicAdd(reinterpret_cast<unsigned long long *>(total),
                  (unsigned long long)__double2ll_rn(logs * (1 / TSNE_LOG_UNIT)));
    }
}

static void launch_attraction(int64_t *sums, const TsneAffinities *affinities, bool cross, const float *y,
                              const TsneShape *shape, cudaStream_t stream) {
    const dim3 grid(gpu_blocks(affinities->tiles, 1), shape->points <= PULL_FEW ? PULL_PARTS : 1);
    gpu_launch(shape->axes == 2 ? (cross ? attract<2, true> : attract<2, false>)
                                : (cross ? attract<3, true> : attract<3, false>),
               grid, PULL_THREADS, 0, stream, sums, affinities->tile, affinities->cell_start, affinities->value_start,
               affinities->cell, affinities->value, y, shape->points, shape->count);
    if (cross)
        share_with_all(stream, sums, shape, TSNE_TOTAL_CROSS);
}

double k_tsne_forces(int64_t *sums, const TsneAffinities *affinities, bool cross, const float *y, const TsneShape *shape,
                     void *scratch) {
    (void)scratch;
    cudaStream_t stream = gpu_own_lane()->stream;
    GPU_OK(cudaMemsetAsync(sums, 0, (size_t)(shape->parts * k_tsne_sums(shape)) * sizeof *sums, stream));
    launch_repulsion(sums, affinities, y, shape, stream);
    launch_attraction(sums, affinities, cross, y, shape, stream);
    return 0;
}

/* ---- What each point has of the divergence ----------------------------------------------------------------------- */

/* Grid: the rank's pairs of tiles. sums (N): of p ln(p / w), as attract goes through the cells. */
template <int A>
static __global__ void __launch_bounds__(PULL_THREADS)
    point_logs(int64_t *sums, const int64_t *tile, const int64_t *cell_start, const int64_t *value_start,
               const TsneCell *cell, const float *value, const float *y, int64_t points) {
    __shared__ int offset[PULL_THREADS], parts[WORK_WARPS];
    const int64_t end = cell_start[blockIdx.x + 1];
    const int half = (int)threadIdx.x / TSNE_BLOCK, l = (int)threadIdx.x % TSNE_BLOCK;
    int64_t row_tile, column_tile;
    tsne_tile(&row_tile, &column_tile, points, tile[blockIdx.x]);
    value += value_start[blockIdx.x];
    for (int64_t first = cell_start[blockIdx.x]; first < end; first += PULL_THREADS) {
        const int64_t chunk = end - first < PULL_THREADS ? end - first : (int64_t)PULL_THREADS;
        const int values = value_offsets(offset, parts, cell + first, chunk);
        for (int64_t k = half; k - half < chunk; k += HALVES) {
            const bool there = k < chunk;
            const TsneCell *own = cell + first + (there ? k : 0);
            const int64_t row = row_tile * TSNE_TILE + own->row * TSNE_BLOCK,
                          column = column_tile * TSNE_TILE + own->column * TSNE_BLOCK;
            const float *next = value + (there ? offset[k] : 0);
            float mine[A], other[A], row_sum = 0, column_sum = 0;
#pragma unroll
            for (int a = 0; a < A; a++) {
                mine[a] = y[row * A + a * TSNE_BLOCK + l];
                other[a] = y[column * A + a * TSNE_BLOCK + l];
            }
            for (int s = 0; s < TSNE_BLOCK; s++) {
                const unsigned bits = there ? own->mask[s] : 0;
                const float p = bits >> l & 1 ? next[__popc(bits & ((1u << l) - 1))] : 0;
                next += __popc(bits);
                float square = 0;
#pragma unroll
                for (int a = 0; a < A; a++) {
                    square = fmaf(mine[a] - other[a], mine[a] - other[a], square);
                    other[a] = __shfl_sync(0xffffffffu, other[a], l + 1, TSNE_BLOCK);
                }
                const float logs = A == 2 ? log1pf(square) : 1.5f * log1pf(0.5f * square);
                const float term = p > 0 ? p * (logf(p) + logs) : 0;
                row_sum += term;
                column_sum = __shfl_sync(0xffffffffu, column_sum + term, l + 1, TSNE_BLOCK);
            }
            if (there && row + l < points)
                atomicAdd(reinterpret_cast<unsigned long long *>(sums) + row + l,
                          in_units(row_sum, (float)(1 / TSNE_LOG_UNIT)));
            if (there && column + l < points)
                atomicAdd(reinterpret_cast<unsigned long long *>(sums) + column + l,
                          in_units(column_sum, (float)(1 / TSNE_LOG_UNIT)));
        }
        value += values;
    }
}

void k_tsne_point_logs(int64_t *sums, const TsneAffinities *affinities, const float *y, const TsneShape *shape) {
    gpu_launch(shape->axes == 2 ? point_logs<2> : point_logs<3>, gpu_blocks(affinities->tiles, 1), PULL_THREADS, 0,
               gpu_own_lane()->stream, sums, affinities->tile, affinities->cell_start, affinities->value_start,
               affinities->cell, affinities->value, y, shape->points);
}

/* ---- The step --------------------------------------------------------------------------------------------------- */

/* Grid: a warp for each block of 16 points. */
static __global__ void descend(float *y, float *update, float *gains, double *norm, const int64_t *sums, int64_t count,
                               int axes, double force_unit, double w_unit, double pull_scale, float momentum,
                               float rate) {
    const int floats = axes * TSNE_BLOCK;
    const int64_t b = work_line();
    const double over_z = force_unit / (2 * (double)sums[count * 2 * floats + TSNE_TOTAL_W] * w_unit);
    const double factor = axes == 2 ? 4 : 3; /* 2 (dof + 1) / dof, dof = axes - 1 */
    double squares = 0;
    for (int k = work_lane(); k < floats && b < count; k += 32) {
        const int64_t i = b * floats + k, repulsion = sums[2 * b * floats + k];
        const double pull = pull_scale * (double)sums[(2 * b + 1) * floats + k] - (double)repulsion * over_z;
        float gradient = (float)(factor * pull);
        const float gain = update[i] * gradient < 0 ? gains[i] + 0.2f : gains[i] * 0.8f;
        gains[i] = gain < 0.01f ? 0.01f : gain;
        gradient *= gains[i];
        update[i] = momentum * update[i] - rate * gradient;
        y[i] += update[i];
        squares += (double)gradient * gradient;
    }
    squares = warp_sum(squares);
    if (norm && b < count && work_lane() == 0)
        norm[b] = squares;
}

void k_tsne_update(float *y_mine, float *update, float *gains, double *norm, const int64_t *sums,
                   const TsneShape *shape, const TsneStep *step) {
    gpu_launch(descend, gpu_blocks(shape->count, WORK_WARPS), WORK_THREADS, 0, gpu_own_lane()->stream, y_mine, update,
               gains, norm, sums, shape->count, shape->axes, k_tsne_force_unit(shape->points), k_tsne_w_unit(shape->points),
               step->exaggeration * TSNE_PULL_UNIT, (float)step->momentum, (float)step->learning_rate);
}
