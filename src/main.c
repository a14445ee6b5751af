/* main.c: the job. See README.md for what it is for, stages.h for the stages. */
#include <math.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "forecast.h"
#include "job.h"
#include "options.h"
#include "progress.h"
#include "stages.h"
#include "stop.h"
#include "watchdog.h"

static void device_failed(const char *message) {
    die("%s", message);
}

/* Every rank uses the same instructions and library cores, so that every rank's bits are the same. */
static void start_device(Options *options) {
    dev_on_failure(device_failed);
    options->threads = options->threads ? options->threads : comm_cores();
    dev_start(comm_device(), options->threads);
    double isa = -dev_isa();
    comm_max(&isa, 1);
    dev_limit_isa((int)-isa);
    char core[256] = "";
    if (!error_caught()) {
        strncpy(core, dev_core(), sizeof core - 1);
        comm_broadcast(core, sizeof core);
        if (strcmp(core, dev_core()) != 0)
            die("this rank's libraries run as %s, rank 0's as %s: results would differ; use nodes of one kind",
                dev_core(), core);
    }
    comm_all_ok();
}

int main(int argc, char **argv) {
    static Options options;
    options_early(argc, argv);
    if (argc > 1 && strcmp(argv[1], "inspect") == 0) { /* no MPI */
        options_parse(&options, argc, argv);
        model_inspect(options.model, options.dot, options.overwrite);
        return 0;
    }
    comm_start(&argc, &argv);
    if (!error_caught())
        options_parse(&options, argc, argv);
    comm_all_ok();
    if (options.checkpoint)
        stop_keep(options.checkpoint, options.max_time);
    if (options.watchdog)
        watchdog_start(comm_node_memory(watchdog_bytes()), comm_local_rank(), comm_local_size(), comm_rank(),
                       options.watchdog);
    comm_silence(options.watchdog ? options.watchdog : INFINITY);
    progress_quiet(options.quiet);
    start_device(&options);

    static Job job;
    job_open(&job, &options);
    if (options.plan) {
        forecast(&job);
        comm_end(0);
    }
    if (job_is_done(&job))
        comm_end(0);
    job_create_output(&job);
    job_open_checkpoint(&job);
    Layers layers = job.model ? forward(&job) : matrix_read(&job);
    for (int i = 0; i < layers.count; i++) {
        if (options.command == COMMAND_AUDIT)
            audit(&job, &layers.features[i]);
        else if (options.command == COMMAND_PLACE)
            place(&job, &layers.features[i]);
        else
            embed(&job, &layers.features[i], layers.nodes[i]);
        matrix_free(&layers.features[i]);
    }
    job_finish_output(&job);
    comm_end(0);
}
