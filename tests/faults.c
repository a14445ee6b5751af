/* faults.c: a library for LD_PRELOAD that lets chosen calls fail as they do on disks and networks that break, or a process
 * be killed or stopped in the middle of them.
 *
 *     FAULT=CALL:WORD:ERRNO:N
 *
 * From the Nth CALL (write, read, fsync, rename or unlink; `change`: any of these but read) on a file whose path holds WORD
 * on, each one fails with that error number; of a read 0 means the end of the file. Calls with an offset count as the plain
 * ones; rmdir counts as unlink. A negative number is a signal that the process sends itself instead, half-way through a
 * write. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

typedef enum { GOES_ON, FAILS, GETS_SIGNAL } Fate;

static Fate fate_of(const char *call, const char *path) {
    static int seen;
    char wanted[16], word[256];
    int error, from;
    const char *fault = getenv("FAULT");
    if (!fault || sscanf(fault, "%15[^:]:%255[^:]:%d:%d", wanted, word, &error, &from) != 4)
        return GOES_ON;
    const bool counts = strcmp(wanted, "change") == 0 ? strcmp(call, "read") != 0 : strcmp(call, wanted) == 0;
    if (!counts || !strstr(path, word) || __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST) < from)
        return GOES_ON;
    if (error < 0)
        return GETS_SIGNAL;
    errno = error;
    return FAILS;
}

static void send_signal(void) {
    int signal_number = 0;
    if (sscanf(getenv("FAULT"), "%*[^:]:%*[^:]:-%d", &signal_number) == 1)
        kill(getpid(), signal_number);
}

static Fate fate_of_file(const char *call, int file) {
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    const int error = errno;
    const ssize_t length = readlink(name, path, sizeof path - 1);
    errno = error;
    if (length < 0)
        return GOES_ON;
    path[length] = '\0';
    return fate_of(call, path);
}

static bool fails_as(Fate fate) {
    if (fate == GETS_SIGNAL)
        send_signal();
    return fate == FAILS;
}

static bool fails_on(const char *call, int file) {
    return fails_as(fate_of_file(call, file));
}

/* The function that this one stands before. */
#define NEXT(name) (__extension__(__typeof__(&name)) dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *data, size_t bytes) {
    const Fate fate = fate_of_file("write", file);
    if (fate != GETS_SIGNAL)
        return fate == FAILS ? -1 : NEXT(write)(file, data, bytes);
    const ssize_t half = NEXT(write)(file, data, bytes / 2);
    send_signal();
    return half;
}

ssize_t pwrite(int file, const void *data, size_t bytes, off_t at) {
    const Fate fate = fate_of_file("write", file);
    if (fate != GETS_SIGNAL)
        return fate == FAILS ? -1 : NEXT(pwrite)(file, data, bytes, at);
    const ssize_t half = NEXT(pwrite)(file, data, bytes / 2, at);
    send_signal();
    return half;
}

ssize_t pwrite64(int file, const void *data, size_t bytes, off64_t at) {
    return pwrite(file, data, bytes, at);
}

ssize_t read(int file, void *data, size_t bytes) {
    return fails_on("read", file) ? (errno ? -1 : 0) : NEXT(read)(file, data, bytes);
}

ssize_t pread(int file, void *data, size_t bytes, off_t at) {
    return fails_on("read", file) ? (errno ? -1 : 0) : NEXT(pread)(file, data, bytes, at);
}

ssize_t pread64(int file, void *data, size_t bytes, off64_t at) {
    return fails_on("read", file) ? (errno ? -1 : 0) : NEXT(pread64)(file, data, bytes, at);
}

int fsync(int file) {
    return fails_on("fsync", file) ? -1 : NEXT(fsync)(file);
}

int rename(const char *from, const char *to) {
    return fails_as(fate_of("rename", to)) ? -1 : NEXT(rename)(from, to);
}

int unlink(const char *path) {
    return fails_as(fate_of("unlink", path)) ? -1 : NEXT(unlink)(path);
}

int rmdir(const char *path) {
    return fails_as(fate_of("unlink", path)) ? -1 : NEXT(rmdir)(path);
}
