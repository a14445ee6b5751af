/* comm_driver.c: device collectives on the ranks of a job, by numbers whose result is known exactly.
 *
 *     mpirun -n R comm_driver           every collective, in place and not; prints "right" once
 *     mpirun -n R comm_driver alone     rank 0 calls one that the others do not: the job must end, in one line
 *     mpirun -n R comm_driver silent    the same, and nobody but the rank itself notices, after 2 s
 *     mpirun -n R comm_driver differ    rank 0 gathers other sizes than the others
 *     mpirun -n R comm_driver device    a line a rank: which of the visible devices it takes */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm.h"
#include "device.h"
#include "error.h"

static void device_failed(const char *message) {
    die("%s", message);
}

static void *need(size_t bytes) {
    void *memory = calloc(1, bytes);
    if (!memory)
        die("no memory");
    return memory;
}

static void check(int64_t is, int64_t should, const char *what) {
    if (is != should)
        die("%s: %lld on rank %d, expected %lld", what, (long long)is, comm_rank(), (long long)should);
}

static int64_t number(int rank, size_t i) {
    return 1000000 * (rank + 1) - 3 * (int64_t)i;
}

static void test_all_gather(size_t each, bool in_place) {
    const size_t R = (size_t)comm_size(), bytes = each * sizeof(int64_t);
    int64_t *host = need(R * bytes);
    int64_t *all = device_new(NULL, R * bytes), *mine = in_place ? all + (size_t)comm_rank() * each : dev_alloc(bytes);
    for (size_t i = 0; i < each; i++)
        host[i] = number(comm_rank(), i);
    dev_upload(mine, host, bytes);
    comm_all_gather_device(all, mine, bytes);
    dev_download(host, all, R * bytes);
    for (size_t i = 0; i < R * each; i++)
        check(host[i], number((int)(i / each), i % each), "all-gather");
    dev_free(all);
    if (!in_place)
        dev_free(mine);
    free(host);
}

static void test_reduce_scatter(size_t each) {
    const size_t R = (size_t)comm_size(), bytes = each * sizeof(int64_t);
    int64_t *host = need(R * bytes), *all = dev_alloc(R * bytes), *mine = device_new(NULL, bytes);
    for (size_t i = 0; i < R * each; i++)
        host[i] = number(comm_rank(), i);
    dev_upload(all, host, R * bytes);
    comm_reduce_scatter_device(mine, all, each);
    dev_download(host, mine, bytes);
    for (size_t i = 0; i < each; i++) {
        int64_t sum = 0;
        for (int r = 0; r < comm_size(); r++)
            sum += number(r, (size_t)comm_rank() * each + i);
        check(host[i], sum, "reduce-scatter");
    }
    dev_free(all);
    dev_free(mine);
    free(host);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    dev_on_failure(device_failed);
    const int device = comm_device();
    dev_start(device, 1);
    if (argc > 1 && strcmp(argv[1], "device") == 0) {
        const char *visible = getenv("CUDA_VISIBLE_DEVICES"), *node = getenv("SLURMD_NODENAME");
        printf("rank %d on %s takes number %d of %s\n", comm_rank(), node ? node : "here", device,
               visible ? visible : "all");
        comm_end(0);
    }
    static const size_t sizes[] = {1, 7, 1000, 100003};
    for (int i = 0; i < 4; i++) {
        test_all_gather(sizes[i], false);
        test_all_gather(sizes[i], true);
        test_reduce_scatter(sizes[i]);
    }
    comm_all_gather_device(NULL, NULL, 0);
    if (argc > 1 && strcmp(argv[1], "silent") == 0)
        comm_silence(2);
    if (argc > 1 && (strcmp(argv[1], "alone") == 0 || strcmp(argv[1], "silent") == 0)) {
        if (comm_rank() == 0)
            test_all_gather(5, false);
        else
            sleep(60);
    }
    if (argc > 1 && strcmp(argv[1], "differ") == 0)
        test_all_gather(comm_rank() == 0 ? 5 : 6, false);
    if (comm_rank() == 0)
        puts("right");
    comm_end(0);
}
