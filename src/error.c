/* error.c: die(), and the one step a die() can jump out of. See error.h. */
#include "error.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE_BYTES = 4096, UNFINISHED_BYTES = 4096, WAIT_MS_PER_RANK = 40, WAIT_MS_MAX = 1000, OTHERS_WORD_S = 2 };

static _Thread_local jmp_buf jump;
static _Thread_local bool armed;
static _Thread_local char pending[MESSAGE_BYTES];
static _Thread_local int pending_status;

static void (*end_job)(int status) = exit;
static bool (*first_to_speak)(void);
static int rank_number;
static char stage[160] = "opening the input";
static char unfinished[UNFINISHED_BYTES], mark[UNFINISHED_BYTES];
static uint64_t unfinished_inode;

static _Noreturn void fail(int status, const char *format, va_list args) {
    char message[MESSAGE_BYTES];
    vsnprintf(message, sizeof message, format, args);
    if (armed) {
        armed = false;
        memcpy(pending, message, sizeof pending);
        pending_status = status;
        longjmp(jump, 1);
    }
    error_remove_unfinished();
    error_mark();
    int ms = rank_number * WAIT_MS_PER_RANK < WAIT_MS_MAX ? rank_number * WAIT_MS_PER_RANK : WAIT_MS_MAX;
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
    if (!first_to_speak || first_to_speak())
        error_print(message);
    else /* who has spoken is about to end the job */
        nanosleep(&(struct timespec){.tv_sec = OTHERS_WORD_S}, NULL);
    end_job(status);
    _Exit(status);
}

void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fail(1, format, args);
}

void die_usage(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fail(2, format, args);
}

jmp_buf *error_arm(void) {
    armed = true;
    pending_status = 0;
    return &jump;
}

void error_disarm(void) {
    armed = false;
}

bool error_pending(const char **message, int *status) {
    armed = false;
    *message = pending;
    *status = pending_status;
    return pending_status != 0;
}

void error_print(const char *message) {
    char line[MESSAGE_BYTES + 16] = "";
    int start = isatty(STDERR_FILENO) ? snprintf(line, sizeof line, "\r\033[K") : 0; /* over a line of progress */
    int length = start + snprintf(line + start, sizeof line - 1 - (size_t)start, "cnnscope: %s", message);
    if (length > (int)sizeof line - 2)
        length = (int)sizeof line - 2;
    for (int i = start; i < length; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[length++] = '\n';
    fflush(stdout);
    if (write(STDERR_FILENO, line, (size_t)length) < 0) /* one write: lines of several ranks never mix */
        return;
}

void error_set_end(void (*end)(int status), int rank) {
    end_job = end;
    rank_number = rank;
    signal(SIGXFSZ, SIG_IGN); /* a write past the file-size limit fails with EFBIG, and says so */
}

void error_set_first_to_speak(bool (*first)(void)) {
    first_to_speak = first;
}

void error_set_stage(const char *name) {
    snprintf(stage, sizeof stage, "%s", name);
}

const char *error_stage(void) {
    return stage;
}

void error_set_mark(const char *path) {
    snprintf(mark, sizeof mark, "%s", path);
}

void error_mark(void) {
    int file = mark[0] ? open(mark, O_WRONLY | O_CREAT, 0666) : -1;
    if (file >= 0)
        close(file);
}

void error_set_unfinished(const char *path, uint64_t inode) {
    unfinished[0] = '\0';
    unfinished_inode = inode;
    if (path)
        snprintf(unfinished, sizeof unfinished, "%s", path);
}

const char *error_unfinished(void) {
    return unfinished;
}

void error_remove_unfinished(void) {
    struct stat now;
    if (unfinished[0] && stat(unfinished, &now) == 0 && now.st_ino == unfinished_inode)
        unlink(unfinished);
    unfinished[0] = '\0';
}
