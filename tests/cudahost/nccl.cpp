/* nccl.cpp: the calls of NCCL that src/comm_nccl.c makes, by MPI. A collective is work of its stream that is not done
 * before all ranks have begun the same one: the ranks first compare what they are about to do. After
 * CUDAHOST_NCCL_PATIENCE seconds (10) of waiting the communicator has failed, as NCCL's has when a rank is gone. */
#include <mpi.h>
#include <nccl.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>

#include "runtime.h"

using namespace cudahost;

struct ncclComm {
    MPI_Comm ranks;
    int rank, size;
    long begun; /* collectives so far */
    ncclResult_t state;
};

static size_t type_bytes(ncclDataType_t type) {
    return type == ncclUint8 ? 1 : type == ncclInt64 ? 8 : (stop("NCCL type %d is not known here", (int)type), 0);
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static int number;
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    snprintf(id->internal, sizeof id->internal, "host executor, rank %d, %d", rank, ++number);
    return ncclSuccess;
}

/* Ranks with another identification come to another communicator, which then has the wrong size. */
ncclResult_t ncclCommInitRankConfig(ncclComm_t *made, int size, ncclUniqueId id, int rank, ncclConfig_t *) {
    unsigned colour = 0;
    for (char c : id.internal)
        colour = colour * 31 + (unsigned char)c;
    ncclComm *comm = new ncclComm{MPI_COMM_NULL, rank, size, 0, ncclSuccess};
    int own_rank, own_size;
    MPI_Comm_split(MPI_COMM_WORLD, (int)(colour & 0x7fffffff), rank, &comm->ranks);
    MPI_Comm_rank(comm->ranks, &own_rank);
    MPI_Comm_size(comm->ranks, &own_size);
    if (own_rank != rank || own_size != size)
        stop("ncclCommInitRankConfig as rank %d of %d, but %d ranks have this identification", rank, size, own_size);
    *made = comm;
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state) {
    *state = comm->state;
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
    comm->state = ncclInvalidUsage;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
    return result == ncclRemoteError ? "remote process exited or there was a network error"
                                     : "an error of the host executor";
}

/* What a rank is about to do; all must be equal. */
struct Intent {
    long number, what, bytes;
};

struct Collective {
    ncclComm *comm;
    Intent mine;
    std::unique_ptr<Intent[]> all;
    MPI_Request request;
    bool begun, compared;
    time_t from;
    std::function<void(MPI_Request *)> exchange;

    bool step() {
        int done = 0;
        if (!begun) {
            begun = true;
            from = time(nullptr);
            MPI_Iallgather(&mine, sizeof mine, MPI_BYTE, all.get(), sizeof mine, MPI_BYTE, comm->ranks, &request);
        }
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (done && compared)
            return true;
        if (done) {
            for (int r = 0; r < comm->size; r++)
                if (memcmp(&all[r], &mine, sizeof mine) != 0)
                    stop("rank %d is in collective %ld of kind %ld and %ld bytes, rank %d in %ld of kind %ld and %ld "
                         "bytes",
                         comm->rank, mine.number, mine.what, mine.bytes, r, all[r].number, all[r].what, all[r].bytes);
            compared = true;
            exchange(&request);
        }
        const char *patience = getenv("CUDAHOST_NCCL_PATIENCE");
        if (time(nullptr) - from > (patience ? atoi(patience) : 10))
            comm->state = ncclRemoteError;
        return false;
    }
};

static ncclResult_t begin(ncclComm_t comm, long what, size_t bytes, cudaStream_t stream,
                          std::function<void(MPI_Request *)> exchange) {
    auto c = std::make_shared<Collective>(Collective{comm,
                                                     {++comm->begun, what, (long)bytes},
                                                     std::unique_ptr<Intent[]>(new Intent[(size_t)comm->size]),
                                                     MPI_REQUEST_NULL,
                                                     false,
                                                     false,
                                                     0,
                                                     std::move(exchange)});
    enqueue(
        stream, [c] { return c->step(); }, true);
    return ncclSuccess;
}

ncclResult_t ncclAllGather(const void *mine, void *all, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
    const size_t bytes = count * type_bytes(type);
    need_device("ncclAllGather", mine, bytes);
    need_device("ncclAllGather", all, bytes * (size_t)comm->size);
    return begin(comm, 1, bytes, stream, [=](MPI_Request *request) {
        const bool in_place = mine == (char *)all + (size_t)comm->rank * bytes;
        MPI_Iallgather(in_place ? MPI_IN_PLACE : mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, comm->ranks,
                       request);
    });
}

ncclResult_t ncclReduceScatter(const void *all, void *mine, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
    if (type != ncclInt64 || op != ncclSum)
        stop("ncclReduceScatter of type %d and operation %d is not known here", (int)type, (int)op);
    need_device("ncclReduceScatter", all, count * 8 * (size_t)comm->size);
    need_device("ncclReduceScatter", mine, count * 8);
    return begin(comm, 2, count * 8, stream, [=](MPI_Request *request) {
        MPI_Ireduce_scatter_block(all, mine, (int)count, MPI_INT64_T, MPI_SUM, comm->ranks, request);
    });
}
