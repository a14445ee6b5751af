/* error.h: how a run ends when something is wrong.
 *
 * Code that meets bad input calls die() and never returns; no error code travels through the program.
 * A step that touches the outside world (files, devices) is run as
 *
 *     if (!error_caught())
 *         step();
 *     comm_all_ok();          // Collective
 *
 * Inside such a step die() jumps back to error_caught() with the message kept, and comm_all_ok() ends the job on
 * every rank with one line, that of the lowest failing rank. Outside of one (or on another thread) die() removes the
 * registered unfinished file, waits a little by rank so that one message wins, prints it, and ends the whole job.
 *
 * Messages read "FILE: what was found, what was expected, what to do"; the prefix "cnnscope: " and the newline are
 * added here, and control characters (from file names) are shown as '?', so that a message is always one line. */
#ifndef CNNSCOPE_ERROR_H
#define CNNSCOPE_ERROR_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

#define PRINTF_LIKE(string, first) __attribute__((format(printf, string, first)))

_Noreturn void die(const char *format, ...) PRINTF_LIKE(1, 2);       /* exit status 1: files, memory, devices */
_Noreturn void die_usage(const char *format, ...) PRINTF_LIKE(1, 2); /* exit status 2: the command line */

/* False on the way in; true when a die() inside the step jumped back. One step at a time, on the calling thread. */
#define error_caught() (setjmp(*error_arm()) != 0)
jmp_buf *error_arm(void);

/* From here a die() ends the whole job at once, also inside a step: for failures that leave other ranks waiting. */
void error_disarm(void);

/* Ends the step: true when it died, with its message and exit status (kept until the next error_arm). */
bool error_pending(const char **message, int *status);

/* Prints one line "cnnscope: MESSAGE" to stderr. */
void error_print(const char *message);

/* comm.c sets how a job is ended from one rank (MPI_Abort) and this rank's number; before that, exit() is used. */
void error_set_end(void (*end)(int status), int rank);

/* first: true for the first call among the ranks of this node and their threads, who alone then prints why the job ends,
 * even where many find it at once and ending takes its time. */
void error_set_first_to_speak(bool (*first)(void));

/* What the run is doing, for messages. Copied. */
void error_set_stage(const char *stage);
const char *error_stage(void);

/* A file that is made when this rank ends the job from here on, as a word to ranks that the launcher then sends SIGTERM
 * (stop.h). Copied. */
void error_set_mark(const char *path);
void error_mark(void); /* makes it; safe in a signal handler */

/* The file to unlink when the run ends with an error, if that is still the file of this number (as stat gives it), and
 * not a later job's of the same name; NULL when there is none (any more). Copied. */
void error_set_unfinished(const char *path, uint64_t inode);
void error_remove_unfinished(void); /* safe in a signal handler */
const char *error_unfinished(void); /* its path, or "" */

#endif
