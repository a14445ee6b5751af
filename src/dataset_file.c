/* dataset_file.c: whole files: their bytes, their lines, their hash; and the one way a file is opened for reading. */
#include "dataset.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dataset_format.h"
#include "sha256.h"

static bool is_text(const char *line, size_t length);

void *dataset_file_bytes(Arena *arena, const char *path, size_t *size) {
    uint64_t bytes;
    int fd = dataset_file_open(path, &bytes);
    char *data = ARENA_ARRAY(arena, char, bytes + 1, path); /* one more, so that text may be ended by a zero */
    for (uint64_t done = 0; done < bytes;) {
        size_t piece = bytes - done < DATASET_PIECE ? (size_t)(bytes - done) : DATASET_PIECE;
        int64_t got = dataset_file_read(fd, data + done, piece, done);
        if (got <= 0) {
            int error = errno;
            close(fd);
            die("%s: %s", path,
                got < 0 ? strerror(error) : "became shorter while it was read; is something writing it?");
        }
        done += (uint64_t)got;
    }
    close(fd);
    *size = (size_t)bytes;
    return data;
}

char **dataset_names(Arena *arena, const char *path, int64_t count, int64_t *found) {
    size_t size;
    char *text = dataset_file_bytes(arena, path, &size), *end = text + size;
    if (size >= 3 && !memcmp(text, "\xef\xbb\xbf", 3))
        text += 3;
    int64_t lines = end > text && end[-1] != '\n';
    for (const char *at = text; (at = memchr(at, '\n', (size_t)(end - at))); at++)
        lines++;
    if (count >= 0 && lines != count)
        die("%s: has %lld lines, expected %lld; write one name on each line", path, (long long)lines, (long long)count);
    char **names = ARENA_ARRAY(arena, char *, lines, path);
    for (int64_t i = 0; i < lines; i++) {
        char *stop = memchr(text, '\n', (size_t)(end - text)), *next = stop ? stop + 1 : end;
        if (!stop)
            stop = end;
        if (stop > text && stop[-1] == '\r')
            stop--;
        if (stop == text)
            die("%s: line %lld is empty; write one name on each line", path, (long long)i + 1);
        if (!is_text(text, (size_t)(stop - text)))
            die("%s: line %lld is not UTF-8 text; save the file as UTF-8", path, (long long)i + 1);
        *stop = '\0';
        names[i] = text;
        text = next;
    }
    *found = lines;
    return names;
}

void dataset_sha256(char hex[65], const char *path) {
    enum { PIECE = 1 << 20 };
    uint64_t size;
    int fd = dataset_file_open(path, &size);
    Arena *arena = arena_new();
    char *buffer = ARENA_ARRAY(arena, char, PIECE, path);
    Sha256 *hash = sha256_begin();
    int64_t got;
    for (uint64_t done = 0; (got = dataset_file_read(fd, buffer, PIECE, done)) > 0; done += (uint64_t)got)
        sha256_add(hash, buffer, (size_t)got);
    int error = errno;
    sha256_end(hash, hex);
    arena_free(arena);
    close(fd);
    if (got < 0)
        die("%s: cannot be read: %s", path, strerror(error));
}

int dataset_file_open(const char *path, uint64_t *size) {
    struct stat info;
    if (stat(path, &info)) /* before open(), which would wait for the other end of a pipe */
        die("%s: %s", path, errno == ENOENT ? "no such file" : strerror(errno));
    if (S_ISDIR(info.st_mode))
        die("%s: is a directory; name a file in it", path);
    if (!S_ISREG(info.st_mode))
        die("%s: is not a regular file (pipes and devices cannot be read twice); save the data to a file first", path);
    if (info.st_size == 0)
        die("%s: the file is empty", path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        die("%s: cannot be opened: %s", path, strerror(errno));
    *size = (uint64_t)info.st_size;
    return fd;
}

int64_t dataset_file_read(int fd, void *out, size_t bytes, uint64_t offset) {
    size_t done = 0;
    while (done < bytes) {
        size_t piece = bytes - done < DATASET_PIECE ? bytes - done : DATASET_PIECE;
        ssize_t got = pread(fd, (char *)out + done, piece, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (int64_t)done;
}

/* Well-formed UTF-8 (RFC 3629) without control characters other than the tab. */
static bool is_text(const char *line, size_t length) {
    static const uint32_t least[4] = {0, 0x80, 0x800, 0x10000};
    const unsigned char *at = (const unsigned char *)line, *end = at + length;
    while (at < end) {
        int more = *at < 0x80 ? 0 : (*at & 0xe0) == 0xc0 ? 1 : (*at & 0xf0) == 0xe0 ? 2 : (*at & 0xf8) == 0xf0 ? 3 : -1;
        if (more < 0 || end - at <= more)
            return false;
        uint32_t code = more ? *at & (0x3fu >> more) : *at;
        for (int i = 1; i <= more; i++) {
            if ((at[i] & 0xc0) != 0x80)
                return false;
            code = code << 6 | (at[i] & 0x3fu);
        }
        if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ||
            (code < 0x20 && code != '\t') || code == 0x7f)
            return false;
        at += more + 1;
    }
    return true;
}
