/* stop.c: see stop.h. What the handler calls is safe in a handler; it may run on any thread. */
#include "stop.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm.h"
#include "error.h"

/* A stop that is noted but not agreed on for so long (a rank is lost) ends the rank. Less than the 30 s that Slurm waits
 * before it kills. */
enum { STATUS = 99, PATIENCE_SECONDS = 20, PATH_BYTES = 4096 };

static int rank_number, log_file = -1;
static bool keeping;
static char mark[PATH_BYTES];
static volatile sig_atomic_t held, asked;

static const char *name_of(int signal_number) {
    return signal_number == SIGALRM ? "--max-time" : signal_number == SIGUSR1 ? "SIGUSR1" : "SIGTERM";
}

static void say(int signal_number, const char *where) {
    const char *const parts[] = {"cnnscope: stopped by ", name_of(signal_number), where[0] ? " in stage " : "", where,
                                 ": the work is kept; run the same command again to go on\n"};
    char line[512] = "";
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        strncat(line, parts[i], sizeof line - 1 - strlen(line));
    if (write(STDERR_FILENO, line, strlen(line)) < 0)
        return;
}

static _Noreturn void leave(int status) {
    error_remove_unfinished();
    _exit(status);
}

static void on_signal(int signal_number) {
    /* Silent, because a launcher ends the other ranks by SIGTERM after one spoke. */
    if (!keeping || signal_number == SIGINT || access(mark, F_OK) == 0)
        leave(1);
    if (held && !asked) {
        asked = signal_number;
        alarm(PATIENCE_SECONDS); /* --max-time has no more to say */
        return;
    }
    if (held && signal_number != SIGALRM)
        return;
    if (rank_number == 0)
        say(held ? asked : signal_number, error_stage());
    else /* the launcher kills rank 0 as soon as another rank is gone: it has the word first */
        nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
    if (log_file >= 0)
        fsync(log_file);
    leave(STATUS);
}

static void handle(int signal_number, void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(signal_number, &action, NULL);
}

void stop_install(int rank) {
    rank_number = rank;
    handle(SIGTERM, on_signal);
    handle(SIGINT, on_signal);
    handle(SIGUSR1, on_signal);
}

void stop_keep(const char *folder, int max_time) {
    snprintf(mark, sizeof mark, "%s/failed", folder);
    if (rank_number == 0)
        unlink(mark); /* an earlier job's */
    error_set_mark(mark);
    keeping = true;
    handle(SIGALRM, on_signal);
    alarm((unsigned)max_time);
}

void stop_sync(int file) {
    log_file = file;
}

void stop_hold(void) {
    asked = 0;
    held = 1;
}

int stop_asked(void) {
    return asked;
}

void stop_now(int signal_number, const char *where) {
    stop_ignore();
    comm_barrier(); /* the state is saved, and no rank will be ended by a signal */
    error_remove_unfinished();
    if (rank_number == 0)
        say(signal_number, where);
    comm_end(STATUS);
}

void stop_release(const char *where) {
    double most = asked;
    comm_max(&most, 1);
    if (most > 0)
        stop_now((int)most, where);
    held = 0;
}

void stop_ignore(void) {
    if (!keeping)
        return;
    alarm(0);
    handle(SIGTERM, SIG_IGN);
    handle(SIGUSR1, SIG_IGN);
    handle(SIGALRM, SIG_IGN);
}
