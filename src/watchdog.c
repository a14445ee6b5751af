/* watchdog.c: see watchdog.h. */
#include "watchdog.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "error.h"

typedef struct {
    _Atomic int64_t last;  /* ns: when there was progress */
    _Atomic int64_t extra; /* ns: what was asked for beyond the limit */
    _Atomic int waits;
    _Atomic int said; /* of the node's first rank: one of the node has spoken */
    int rank, process;
} Slot;

static const int64_t SECOND = 1000000000;
static Slot alone; /* before the start */
static Slot *slots = &alone, *own = &alone;
static int slot_count;
static int64_t limit;
static pthread_t thread;
static bool started, ended; /* ended: under the mutex */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t end_is_near;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

size_t watchdog_bytes(void) {
    return sizeof(Slot);
}

void watchdog_tick(void) {
    atomic_store_explicit(&own->last, now(), memory_order_relaxed);
    atomic_store_explicit(&own->extra, 0, memory_order_relaxed);
}

void watchdog_allow(double seconds) {
    watchdog_tick();
    atomic_store_explicit(&own->extra, (int64_t)((seconds < 1e6 ? seconds : 1e6) * (double)SECOND),
                          memory_order_relaxed);
}

void watchdog_waits(void) {
    atomic_store_explicit(&own->waits, 1, memory_order_relaxed);
}

void watchdog_goes_on(void) {
    atomic_store_explicit(&own->waits, 0, memory_order_relaxed);
    watchdog_tick();
}

static bool first_to_speak(void) {
    return atomic_exchange(&slots[0].said, 1) == 0;
}

static bool is_late(Slot *slot, int64_t time) {
    return time - atomic_load(&slot->last) > limit + atomic_load(&slot->extra);
}

/* A process that somebody stopped (SIGSTOP), or that is gone. */
static bool is_stopped(const Slot *slot) {
    char path[64], state[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", slot->process);
    FILE *file = fopen(path, "r");
    if (!file)
        return access("/proc/self/stat", F_OK) == 0;
    size_t length = fread(state, 1, sizeof state - 1, file);
    fclose(file);
    state[length] = '\0';
    const char *behind_name = strrchr(state, ')'); /* PID (NAME) STATE ... */
    return behind_name && behind_name[1] && strchr("TtZX", behind_name[2]);
}

/* The rank that the others wait for, where it is one of this node. *busy: one is at work, and has time left. */
static const Slot *find_behind(bool *busy, int64_t time) {
    *busy = false;
    for (int i = 0; i < slot_count; i++)
        if (is_stopped(&slots[i]))
            return &slots[i];
    for (int i = 0; i < slot_count; i++)
        if (!atomic_load(&slots[i].waits)) {
            if (is_late(&slots[i], time))
                return &slots[i];
            *busy = true;
        }
    return NULL;
}

static void speak(const Slot *behind, int64_t time) {
    char host[256] = "", text[1024];
    gethostname(host, sizeof host - 1);
    const Slot *named = behind ? behind : own;
    const double seconds = (double)(time - atomic_load(&own->last)) / (double)SECOND;
    if (behind)
        snprintf(text, sizeof text, "rank %d on host %s made no progress for %.0f s in stage %s%s", named->rank, host,
                 seconds, error_stage(), is_stopped(behind) ? " (its process is stopped)" : "");
    else
        snprintf(text, sizeof text, "rank %d on host %s has waited %.0f s in stage %s for ranks of other nodes",
                 named->rank, host, seconds, error_stage());
    strncat(text, "; if it only wants more time, give --watchdog more seconds (0: never)",
            sizeof text - strlen(text) - 1);
    error_print(text);
}

/* False: watchdog_end was called meanwhile. */
static bool sleep_for(int64_t pause) {
    const int64_t until = now() + pause;
    const struct timespec t = {.tv_sec = until / SECOND, .tv_nsec = until % SECOND};
    pthread_mutex_lock(&mutex);
    while (!ended && pthread_cond_timedwait(&end_is_near, &mutex, &t) != ETIMEDOUT)
        ;
    const bool goes_on = !ended;
    pthread_mutex_unlock(&mutex);
    return goes_on;
}

/* Where no rank of this node is behind, those of the other node are heard first. */
static void *watch(void *unused) {
    const int64_t pause = limit < 4 * SECOND ? limit / 4 : SECOND, patience = 5 * SECOND;
    int64_t suspected = 0;
    (void)unused;
    for (int64_t before = now(); sleep_for(pause); before = now()) {
        const int64_t time = now();
        bool busy;
        if (time - before > pause + 2 * SECOND) { /* the whole job was suspended, or the machine is in distress */
            watchdog_tick();
            continue;
        }
        if (!is_late(own, time)) {
            suspected = 0;
            continue;
        }
        const Slot *behind = find_behind(&busy, time);
        suspected = suspected ? suspected : time;
        if (!behind && (busy || time - suspected < patience))
            continue;
        if (first_to_speak())
            speak(behind, time);
        error_mark();
        error_remove_unfinished();
        _exit(1);
    }
    return NULL;
}

void watchdog_start(void *memory, int mine, int count, int rank, int seconds) {
    slots = memory;
    slot_count = count;
    limit = seconds * SECOND;
    own = &slots[mine];
    own->rank = rank;
    own->process = (int)getpid();
    watchdog_tick();
    error_set_first_to_speak(first_to_speak);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&end_is_near, &monotonic);
    if (pthread_create(&thread, NULL, watch, NULL) != 0)
        die("--watchdog: no thread can be started; is there a limit on threads (ulimit -u)?");
    started = true;
}

void watchdog_end(void) {
    if (!started)
        return;
    pthread_mutex_lock(&mutex);
    ended = true;
    pthread_cond_signal(&end_is_near);
    pthread_mutex_unlock(&mutex);
    pthread_join(thread, NULL);
    own = slots = &alone;
}
