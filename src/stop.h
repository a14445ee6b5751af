/* stop.h: signals that end a run.
 *
 * Without a checkpoint SIGTERM, SIGINT and SIGUSR1 remove the unfinished file and end the rank with status 1.
 * With one, SIGTERM, SIGUSR1 and SIGALRM (--max-time) mean: keep the work, end with status 99, "run me again". Most of
 * the time all finished work is in the checkpoint already, and a rank may go at once, inside the handler: no other rank
 * is asked, so nothing can hang. Where work is in memory only (the descent of t-SNE), between stop_hold and
 * stop_release, the handler only takes a note: the ranks agree on it, save, and leave together by stop_now.
 * A SIGTERM that a launcher sends because another rank failed is told by the mark that die() leaves in the checkpoint's
 * folder: such a job ends with status 1, and is not run again for ever. */
#ifndef CNNSCOPE_STOP_H
#define CNNSCOPE_STOP_H

void stop_install(int rank); /* after MPI_Init */

/* From here on work is kept in the folder. max_time: seconds from now, 0 = any. */
void stop_keep(const char *folder, int max_time);

void stop_sync(int file); /* a signal makes this file durable before the rank goes */

void stop_hold(void);
int stop_asked(void); /* the signal that this rank was sent since stop_hold; 0: none */
/* Collective. Ends the job with status 99 and one line that says by which signal, and where. */
_Noreturn void stop_now(int signal_number, const char *where);
/* Collective, with all work saved: stops now if any rank was asked to since stop_hold. */
void stop_release(const char *where);

void stop_ignore(void); /* from here on signals but SIGINT do nothing: the run is about to end by itself */

#endif
