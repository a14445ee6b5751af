/* progress.h: what the job is doing, and how long each stage took.
 *
 * One line per stage on rank 0's stderr: count, rate, remaining time; redrawn on a terminal, every 10 s in a log.
 * Stages do not nest. Seconds per stage go into the results file as run_seconds_STAGE (maximum over ranks). */
#ifndef CNNSCOPE_PROGRESS_H
#define CNNSCOPE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

double progress_now(void); /* seconds, monotonic */
void progress_quiet(bool quiet);
void progress_begin(const char *stage, const char *unit,
                    int64_t total); /* "forward", "samples"; total over all ranks */
/* After progress_begin: `count` of the total are there already, from a checkpoint. One line says so, and the rate leaves
 * them out. */
void progress_restored(int64_t count);
void progress_at(int64_t done, const char *note); /* note: "" or a short text behind the count, as "KL 1.62" */
void progress_end(const char *note);

/* One line for the person who runs the job, between stages. */
void progress_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* After a stage: seconds that a part of it took, kept as those of a stage of that name. */
void progress_part(const char *name, double seconds);

int progress_stages(void); /* finished ones, and their parts */
const char *progress_stage(int index, double *seconds);
void progress_forget(void); /* all stages until now, as after a trial */

#endif
