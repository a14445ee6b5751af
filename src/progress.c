/* progress.c: one line per stage on rank 0's stderr, and the seconds each stage took. See progress.h.
 *
 * The line is redrawn four times a second on a terminal; in a log it is repeated every ten seconds, so that a log of a
 * long job stays short and still shows life. */
#include "progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm.h"
#include "error.h"
#include "watchdog.h"

enum { STAGES_MAX = 512, NAME_BYTES = 96, LINE_BYTES = 256 };

static struct {
    char name[NAME_BYTES];
    double seconds;
} stages[STAGES_MAX];
static int stage_count;

static char unit[32];
static int64_t total, restored;
static double began, shown;
static bool quiet;

double progress_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void progress_quiet(bool silent) {
    quiet = silent;
}

static bool on_terminal(void) {
    return isatty(STDERR_FILENO);
}

void progress_begin(const char *stage, const char *units, int64_t count) {
    if (stage_count == STAGES_MAX) /* more layers than names: their times are added to the last */
        stage_count--;
    snprintf(stages[stage_count].name, NAME_BYTES, "%s", stage);
    error_set_stage(stage);
    watchdog_tick();
    snprintf(unit, sizeof unit, "%s", units);
    total = count;
    restored = 0;
    began = progress_now();
    shown = began;
}

static void print_line(int64_t done, const char *note, bool last) {
    double seconds = progress_now() - began;
    char line[LINE_BYTES], rest[64] = "";
    if (last)
        snprintf(rest, sizeof rest, " in %.2f s", seconds);
    else if (done > restored && total > 0)
        snprintf(rest, sizeof rest, " %.4g/s, %.0f s left", (double)(done - restored) / seconds,
                 seconds * (double)(total - done) / (double)(done - restored));
    snprintf(line, sizeof line, "%-20s %lld/%lld %s%s%s%s", stages[stage_count].name, (long long)done, (long long)total,
             unit, rest, note[0] ? "  " : "", note);
    if (on_terminal())
        fprintf(stderr, "\r\033[K%s%s", line, last ? "\n" : "");
    else
        fprintf(stderr, "%s\n", line);
    fflush(stderr);
}

void progress_restored(int64_t count) {
    restored = count;
    if (count > 0)
        progress_say("%-20s %lld/%lld %s from the checkpoint", stages[stage_count].name, (long long)count,
                     (long long)total, unit);
}

void progress_at(int64_t done, const char *note) {
    double now = progress_now();
    watchdog_tick();
    if (quiet || comm_rank() != 0 || now - shown < (on_terminal() ? 0.25 : 10.0))
        return;
    shown = now;
    print_line(done, note, false);
}

void progress_end(const char *note) {
    watchdog_tick();
    stages[stage_count].seconds = progress_now() - began;
    if (!quiet && comm_rank() == 0)
        print_line(total, note, true);
    stage_count++;
}

void progress_say(const char *format, ...) {
    if (quiet || comm_rank() != 0)
        return;
    va_list args;
    va_start(args, format);
    fputs(on_terminal() ? "\r\033[K" : "", stderr);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

void progress_part(const char *name, double seconds) {
    if (stage_count == STAGES_MAX)
        return;
    snprintf(stages[stage_count].name, NAME_BYTES, "%s", name);
    stages[stage_count++].seconds = seconds;
}

int progress_stages(void) {
    return stage_count;
}

const char *progress_stage(int index, double *seconds) {
    *seconds = stages[index].seconds;
    return stages[index].name;
}

void progress_forget(void) {
    stage_count = 0;
}
