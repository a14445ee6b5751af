/* partial.c: checks where a result may be written, keeps other jobs out, and renames what is whole. See partial.h. */
#define _GNU_SOURCE /* F_OFD_SETLK */
#include "partial.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "comm.h"
#include "error.h"

static void folder_of(char folder[PARTIAL_PATH_BYTES], const char *path) {
    snprintf(folder, PARTIAL_PATH_BYTES, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = '\0';
    else
        snprintf(folder, PARTIAL_PATH_BYTES, ".");
}

void partial_check(const char *path, bool overwrite) {
    struct stat info;
    char folder[PARTIAL_PATH_BYTES];
    if (strlen(path) >= PARTIAL_PATH_BYTES - 16)
        die("--output: the path is longer than %d characters", PARTIAL_PATH_BYTES - 16);
    folder_of(folder, path);
    if (strchr(path, ':'))
        die("%s: holds a ':', which MPI-IO takes for the end of a file system's name; choose another --output", path);
    if (stat(folder, &info) != 0)
        die("%s: its folder %s cannot be used (%s); create it first", path, folder, strerror(errno));
    if (!S_ISDIR(info.st_mode))
        die("%s: %s is not a folder", path, folder);
    if (access(folder, W_OK | X_OK) != 0)
        die("%s: folder %s cannot be written to (%s)", path, folder, strerror(errno));
    if (stat(path, &info) == 0) {
        if (!S_ISREG(info.st_mode))
            die("%s: exists and is not a file; choose another --output", path);
        if (!overwrite)
            die("%s: exists already; choose another --output, or give --overwrite", path);
    }
}

/* A lock on a new or old .partial, or a refusal. It is the kernel's, and goes when the process does, so that it tells a
 * living job on any node from a killed one. It is on one byte far behind the data, because MPI-IO locks what it writes on
 * some file systems; and it belongs to the open file, because a process loses an ordinary lock as soon as it closes the
 * file elsewhere, as MPI-IO does. A file system without locks gives no protection. */
static int open_locked(const char *partial, int how) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)1 << 62, .l_len = 1};
    int file = open(partial, O_CREAT | O_RDWR | how, 0666);
    if (file < 0 && errno != EEXIST)
        die("%s: cannot be created: %s", partial, strerror(errno));
    if (file < 0 || (fcntl(file, F_OFD_SETLK, &lock) != 0 && (errno == EAGAIN || errno == EACCES)))
        die("%s: another job is writing it; wait for that job, or choose another --output", partial);
    return file;
}

static uint64_t inode_of(int file) {
    struct stat info;
    return fstat(file, &info) == 0 ? info.st_ino : 0;
}

/* The .partial for this job alone, a new file: ranks of a lost job may still be writing the old one (on a node that
 * hangs), and go on doing so where it hurts nobody. */
static int take_partial(const char *partial, const char *path, bool overwrite) {
    struct stat there;
    int old = open_locked(partial, 0);
    error_set_unfinished(partial, inode_of(old)); /* the lock makes it ours to remove */
    /* Another job may have ended since we looked, and have renamed what we opened. */
    partial_check(path, overwrite);
    if (stat(partial, &there) != 0 || there.st_ino != inode_of(old))
        die("%s: another job has just ended writing it; run this one again, or choose another --output", partial);
    if (unlink(partial) != 0)
        die("%s: a killed job left it, and it cannot be removed: %s", partial, strerror(errno));
    int file = open_locked(partial, O_EXCL);
    error_set_unfinished(partial, inode_of(file));
    close(old);
    return file;
}

void partial_take(Partial *partial, const char *path, bool overwrite) {
    uint64_t inode = 0;
    *partial = (Partial){.lock = -1};
    if (!error_caught()) {
        partial_check(path, overwrite);
        snprintf(partial->path, sizeof partial->path, "%s", path);
        snprintf(partial->name, sizeof partial->name, "%s.partial", path);
        if (comm_rank() == 0)
            partial->lock = take_partial(partial->name, path, overwrite);
    }
    comm_all_ok();
    if (comm_rank() == 0)
        inode = inode_of(partial->lock);
    comm_broadcast(&inode, sizeof inode);
    error_set_unfinished(partial->name, inode);
}

static void sync_path(const char *path, const char *name) {
    int file = open(path, O_RDONLY);
    if (file < 0 || fsync(file) != 0)
        die("%s: cannot be made durable: %s", name, strerror(errno));
    close(file);
}

void partial_sync(const Partial *partial) {
    comm_barrier();
    if (!error_caught() && comm_rank() == 0)
        sync_path(partial->name, partial->path);
    comm_all_ok();
}

void partial_rename(Partial *partial) {
    comm_barrier(); /* every rank has closed before one renames */
    if (!error_caught() && comm_rank() == 0) {
        char folder[PARTIAL_PATH_BYTES];
        sync_path(partial->name, partial->path);
        if (rename(partial->name, partial->path) != 0)
            die("%s: cannot be renamed to its name: %s", partial->name, strerror(errno));
        folder_of(folder, partial->path);
        sync_path(folder, partial->path);
    }
    comm_all_ok();
    error_set_unfinished(NULL, 0);
    if (comm_rank() == 0)
        close(partial->lock);
}
