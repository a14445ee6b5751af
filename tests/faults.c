/* faults.c: a library for LD_PRELOAD that lets chosen calls fail as they do on disks and networks that break.
 *
 *     FAULT=CALL:WORD:ERRNO:N
 *
 * From the Nth CALL (write, read, fsync or rename) on a file whose path holds WORD on, each one fails with that error
 * number; of a read 0 means the end of the file. Calls with an offset count as the plain ones. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static bool fails(const char *call, const char *path) {
    static int seen;
    char wanted[16], word[256];
    int error, from;
    const char *fault = getenv("FAULT");
    if (!fault || sscanf(fault, "%15[^:]:%255[^:]:%d:%d", wanted, word, &error, &from) != 4)
        return false;
    if (strcmp(call, wanted) || !strstr(path, word) || __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST) < from)
        return false;
    errno = error;
    return true;
}

static bool fails_on(const char *call, int file) {
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    const int error = errno;
    const ssize_t length = readlink(name, path, sizeof path - 1);
    errno = error;
    if (length < 0)
        return false;
    path[length] = '\0';
    return fails(call, path);
}

/* The function that this one stands before. */
#define NEXT(name) (__extension__(__typeof__(&name)) dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *data, size_t bytes) {
    return fails_on("write", file) ? -1 : NEXT(write)(file, data, bytes);
}

ssize_t pwrite(int file, const void *data, size_t bytes, off_t at) {
    return fails_on("write", file) ? -1 : NEXT(pwrite)(file, data, bytes, at);
}

ssize_t pwrite64(int file, const void *data, size_t bytes, off64_t at) {
    return fails_on("write", file) ? -1 : NEXT(pwrite64)(file, data, bytes, at);
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
    return fails("rename", to) ? -1 : NEXT(rename)(from, to);
}
