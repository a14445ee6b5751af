/* checkpoint_folder.c: whose the folder is, and what may be in it. See checkpoint_parts.h. */
#define _GNU_SOURCE /* F_OFD_SETLK */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint_parts.h"
#include "comm.h"
#include "error.h"
#include "sha256.h"

#define IDENTITY "identity.txt"
#define LOCK "lock"
#define WHOLE_PREFIX "state-"
#define UNFINISHED ".new"
enum { IDENTITY_BYTES = 1 << 18 }; /* an option has 4 KB at most */

static void take_lock(Checkpoint *c);
static void check_identity(Checkpoint *c, const char *identity);
static void write_identity(Checkpoint *c, const char *identity);
static void remove_files(Checkpoint *c);

static void path_of(char path[PATH_BYTES], const Checkpoint *c, const char *name) {
    snprintf(path, PATH_BYTES, "%s/%s", c->folder, name);
}

static bool ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

static bool is_ours(const char *name) {
    return strncmp(name, LOG_PREFIX, strlen(LOG_PREFIX)) == 0 ||
           strncmp(name, WHOLE_PREFIX, strlen(WHOLE_PREFIX)) == 0 || strcmp(name, IDENTITY) == 0 ||
           strcmp(name, IDENTITY UNFINISHED) == 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int64_t checkpoint_list(const Checkpoint *c, char ***names) {
    DIR *folder = opendir(c->folder);
    if (!folder)
        die("%s: the checkpoint's folder cannot be read: %s", c->folder, strerror(errno));
    int64_t count = 0, space = 0;
    *names = NULL;
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (!is_ours(entry->d_name) || strlen(entry->d_name) >= NAME_BYTES)
            continue;
        if (count == space) {
            space = 2 * space + 64;
            char **more = ARENA_ARRAY(c->arena, char *, space, "checkpoint");
            if (count > 0)
                memcpy(more, *names, (size_t)count * sizeof *more);
            *names = more;
        }
        (*names)[count++] = arena_printf(c->arena, "%s", entry->d_name);
    }
    closedir(folder);
    if (count > 0)
        qsort(*names, (size_t)count, sizeof **names, by_name);
    return count;
}

/* ---- Whose it is ------------------------------------------------------------------------------------------------ */

void checkpoint_take_folder(Checkpoint *c, const char *identity) {
    if (strlen(c->folder) > PATH_BYTES - 2 * NAME_BYTES)
        die("--checkpoint: the path is longer than %d characters", PATH_BYTES - 2 * NAME_BYTES);
    if (mkdir(c->folder, 0777) != 0 && errno != EEXIST)
        die("%s: the checkpoint's folder cannot be made (%s); name one in a folder that is there and can be written to",
            c->folder, strerror(errno));
    take_lock(c);
    char **names, path[PATH_BYTES];
    int64_t count = checkpoint_list(c, &names);
    bool work = false;
    for (int64_t i = 0; i < count; i++)
        if (ends_with(names[i], UNFINISHED)) {
            path_of(path, c, names[i]);
            unlink(path);
        } else if (strcmp(names[i], IDENTITY) != 0) {
            work = true;
        }
    if (work) /* else an identity binds nobody: that run had kept nothing yet */
        check_identity(c, identity);
    else
        write_identity(c, identity);
}

/* As the results file's (output.c): it goes with the process, and belongs to the open file. */
static void take_lock(Checkpoint *c) {
    char path[PATH_BYTES];
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    struct stat here, there;
    path_of(path, c, LOCK);
    c->lock = open(path, O_CREAT | O_RDWR, 0666);
    if (c->lock < 0)
        die("%s: the checkpoint's folder cannot be written to: %s", c->folder, strerror(errno));
    if (fcntl(c->lock, F_OFD_SETLK, &lock) != 0 && (errno == EAGAIN || errno == EACCES))
        die("%s: another job is using this checkpoint; wait for that job, or choose another --checkpoint", c->folder);
    if (fstat(c->lock, &here) != 0 || stat(path, &there) != 0 || here.st_ino != there.st_ino)
        die("%s: another job has just ended using this checkpoint; run this one again", c->folder);
}

/* identity.txt: the lines, then "check = " and their SHA-256. */
static void write_identity(Checkpoint *c, const char *identity) {
    char path[PATH_BYTES], temporary[PATH_BYTES], hex[65];
    path_of(path, c, IDENTITY);
    path_of(temporary, c, IDENTITY UNFINISHED);
    sha256_hex(hex, identity, strlen(identity));
    FILE *file = fopen(temporary, "w");
    if (!file)
        die("%s: cannot be created: %s", temporary, strerror(errno));
    bool written = fprintf(file, "%scheck = %s\n", identity, hex) > 0 && fflush(file) == 0 && fsync(fileno(file)) == 0;
    if (fclose(file) != 0 || !written || rename(temporary, path) != 0)
        die("%s: the checkpoint cannot be written: %s", path, strerror(errno));
    record_sync_folder(c->folder);
}

/* The value of NAME in lines of NAME = VALUE, as a string of its own; NULL: no such line. */
static char *value_of(Arena *arena, const char *lines, const char *name, size_t length) {
    for (const char *line = lines; *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (strncmp(line, name, length) == 0 && strncmp(line + length, " = ", 3) == 0)
            return arena_printf(arena, "%.*s", (int)strcspn(line + length + 3, "\n"), line + length + 3);
    return NULL;
}

/* Adds to `found` the lines of `these` that `others` has otherwise; added: those it does not have. */
static char *differences(Arena *arena, char *found, const char *was, const char *is, bool only_missing) {
    const char *these = only_missing ? was : is, *others = only_missing ? is : was;
    for (const char *line = these; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        const char *equals = strstr(line, " = ");
        size_t length = equals ? (size_t)(equals - line) : strcspn(line, "\n");
        char *here = value_of(arena, these, line, length), *there = value_of(arena, others, line, length);
        if (!here || (only_missing && there) || (there && strcmp(here, there) == 0))
            continue;
        found = arena_printf(arena, "%s%s%.*s was %s, is %s", found, found[0] ? "; " : "", (int)length, line,
                             only_missing ? here
                             : there      ? there
                                          : "not there",
                             only_missing ? "not there" : here);
    }
    return found;
}

static void check_identity(Checkpoint *c, const char *identity) {
    char path[PATH_BYTES], hex[65];
    size_t size = 0;
    path_of(path, c, IDENTITY);
    FILE *file = fopen(path, "r");
    char *was = ARENA_ARRAY(c->arena, char, IDENTITY_BYTES, "checkpoint");
    if (file) {
        size = fread(was, 1, IDENTITY_BYTES - 1, file);
        fclose(file);
    }
    char *check = size > 0 ? strstr(was, "check = ") : NULL;
    while (check && check > was && check[-1] != '\n')
        check = strstr(check + 1, "check = ");
    if (check)
        sha256_hex(hex, was, (size_t)(check - was));
    if (!check || strncmp(check + strlen("check = "), hex, 64) != 0)
        die("%s: %s; whose work is kept here cannot be told: remove the folder %s, or choose another --checkpoint",
            path, file ? "damaged" : "missing", c->folder);
    *check = '\0';
    char *found = differences(c->arena, "", was, identity, false);
    found = differences(c->arena, found, was, identity, true);
    if (found[0])
        die("%s: holds another run's work (%s); give that run's options and files again, or choose another "
            "--checkpoint, or remove the folder",
            c->folder, found);
}

/* ---- Wholes ----------------------------------------------------------------------------------------------------- */

/* Readable, and of any key: other characters become '_', and the hash tells such keys apart. */
static void whole_stem(char stem[NAME_BYTES], const char *key) {
    char hex[65], legible[64];
    snprintf(legible, sizeof legible, "%s", key);
    for (char *at = legible; *at; at++)
        *at = isalnum((unsigned char)*at) ? *at : '_';
    sha256_hex(hex, key, strlen(key));
    snprintf(stem, NAME_BYTES, WHOLE_PREFIX "%s-%.8s.", legible, hex);
}

void checkpoint_whole_name(char name[NAME_BYTES], const char *key, int64_t number) {
    char stem[NAME_BYTES];
    whole_stem(stem, key);
    snprintf(name, NAME_BYTES, "%.200s%lld", stem, (long long)number);
}

int64_t checkpoint_newest(const Checkpoint *c, const char *key, int64_t most) {
    char stem[NAME_BYTES], **names;
    whole_stem(stem, key);
    int64_t newest = 0, count = checkpoint_list(c, &names);
    for (int64_t i = 0; i < count; i++) {
        if (strncmp(names[i], stem, strlen(stem)) != 0 || !isdigit((unsigned char)names[i][strlen(stem)]))
            continue;
        char *end;
        errno = 0;
        int64_t number = strtoll(names[i] + strlen(stem), &end, 10);
        if (*end == '\0' && errno == 0 && number < INT64_MAX && number <= most && number > newest)
            newest = number;
    }
    return newest;
}

void checkpoint_unlink(const Checkpoint *c, const char *key, int64_t number) {
    char name[NAME_BYTES], path[PATH_BYTES];
    checkpoint_whole_name(name, key, number);
    path_of(path, c, name);
    unlink(path);
}

/* ---- The end ---------------------------------------------------------------------------------------------------- */

void checkpoint_remove(Checkpoint *c) {
    if (!c)
        return;
    if (c->log >= 0)
        close(c->log);
    comm_barrier(); /* every rank has let go of its log */
    if (comm_rank() == 0)
        remove_files(c);
}

void checkpoint_discard(Arena *arena, const char *folder, const char *identity) {
    static Checkpoint c; /* static: it keeps its values over error_caught() */
    const char *message;
    int status;
    struct stat there;
    c = (Checkpoint){.arena = arena, .folder = folder, .log = -1, .lock = -1};
    if (stat(folder, &there) != 0)
        return;
    if (!error_caught())
        checkpoint_take_folder(&c, identity);
    if (!error_pending(&message, &status))
        remove_files(&c);
}

/* Nothing here may fail: the result is there. */
static void remove_files(Checkpoint *c) {
    static char **names; /* static: they keep their values over error_caught() */
    static int64_t count;
    char path[PATH_BYTES];
    if (!error_caught())
        count = checkpoint_list(c, &names);
    error_disarm();
    /* identity.txt, first by name, goes last: what a job leaves that is lost here is still told to be its own. */
    for (int64_t i = count; i-- > 0;) {
        path_of(path, c, names[i]);
        unlink(path);
    }
    path_of(path, c, LOCK);
    unlink(path);
    rmdir(c->folder); /* unless there is more in it */
    close(c->lock);
}
