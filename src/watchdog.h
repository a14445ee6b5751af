/* watchdog.h: a thread that ends a job which makes no progress (--watchdog S).
 *
 * A rank that is stopped, hangs in a library or waits for a lost one says nothing by itself. Each rank leaves the time of
 * its last progress, and whether it waits for others, in memory that all ranks of its node see; after S seconds without
 * any, the thread of one that can still speak names the rank that is behind. It never calls MPI. */
#ifndef CNNSCOPE_WATCHDOG_H
#define CNNSCOPE_WATCHDOG_H

#include <stddef.h>

size_t watchdog_bytes(void); /* a rank, of memory shared on a node */

/* slots: of the `count` ranks of this node, zeroed; this rank's is `mine`. seconds > 0. */
void watchdog_start(void *slots, int mine, int count, int rank, int seconds);
void watchdog_end(void); /* before the slots go */

void watchdog_tick(void);            /* there is progress. Costs some 30 ns; may be called before the start */
void watchdog_allow(double seconds); /* what comes now may take that much longer, until the next tick */
void watchdog_waits(void);           /* for other ranks, from here ... */
void watchdog_goes_on(void);         /* ... to here; a tick, too */

#endif
