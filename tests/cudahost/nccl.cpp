/* nccl.cpp: the calls of NCCL that src/comm_nccl.c makes, by MPI. A collective is work of its stream that is not done
 * before all ranks have begun the same one: the ranks first compare what they are about to do. After
 * CUDAHOST_NCCL_PATIENCE seconds (10) of waiting the communicator has failed, as NCCL's has when a rank is gone. */
#include <mpi.h>
#include <nccl.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

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

/* MPI is given copies: it goes on while other calls of the host wait, and device memory is closed to all then. */
struct Collective {
    ncclComm *comm;
    Intent mine;
    const void *given;
    void *result;
    std::function<void(Collective *)> exchange;
    std::vector<char> from, to;
    std::vector<Intent> all;
    MPI_Request request;
    bool begun, compared;
    time_t since;

    bool step() {
        int done = 0;
        if (!begun) {
            begun = true;
            since = time(nullptr);
            MPI_Iallgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, comm->ranks, &request);
        }
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (done && compared) {
            memcpy(result, to.data(), to.size());
            return true;
        }
        if (done) {
            for (int r = 0; r < comm->size; r++)
                if (memcmp(&all[(size_t)r], &mine, sizeof mine) != 0)
                    stop("rank %d is in collective %ld of kind %ld and %ld bytes, rank %d in %ld of kind %ld and %ld "
                         "bytes",
                         comm->rank, mine.number, mine.what, mine.bytes, r, all[(size_t)r].number, all[(size_t)r].what,
                         all[(size_t)r].bytes);
            compared = true;
            memcpy(from.data(), given, from.size());
            exchange(this);
        }
        const char *patience = getenv("CUDAHOST_NCCL_PATIENCE");
        if (time(nullptr) - since > (patience ? atoi(patience) : 10))
            comm->state = ncclRemoteError;
        return false;
    }
};

static ncclResult_t begin(ncclComm_t comm, long what, void *result, size_t result_bytes, const void *given,
                          size_t given_bytes, cudaStream_t stream, std::function<void(Collective *)> exchange) {
    need_device("a collective's result", result, result_bytes);
    need_device("what is given to a collective", given, given_bytes);
    auto c = std::make_shared<Collective>();
    c->comm = comm;
    c->mine = {++comm->begun, what, (long)given_bytes};
    c->given = given;
    c->result = result;
    c->exchange = std::move(exchange);
    c->from.resize(given_bytes);
    c->to.resize(result_bytes);
    c->all.resize((size_t)comm->size);
    enqueue(
        stream, [c] { return c->step(); }, true);
    return ncclSuccess;
}

ncclResult_t ncclAllGather(const void *mine, void *all, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
    const size_t bytes = count * type_bytes(type);
    return begin(comm, 1, all, bytes * (size_t)comm->size, mine, bytes, stream, [=](Collective *c) {
        MPI_Iallgather(c->from.data(), (int)bytes, MPI_BYTE, c->to.data(), (int)bytes, MPI_BYTE, comm->ranks,
                       &c->request);
    });
}

ncclResult_t ncclReduceScatter(const void *all, void *mine, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
    if (type != ncclInt64 || op != ncclSum)
        stop("ncclReduceScatter of type %d and operation %d is not known here", (int)type, (int)op);
    return begin(comm, 2, mine, count * 8, all, count * 8 * (size_t)comm->size, stream, [=](Collective *c) {
        MPI_Ireduce_scatter_block(c->from.data(), c->to.data(), (int)count, MPI_INT64_T, MPI_SUM, comm->ranks,
                                  &c->request);
    });
}
