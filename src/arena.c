/* arena.c: a chain of chunks, bumped; large blocks are mapped one by one. See arena.h. */
#include "arena.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "error.h"

enum { ALIGNMENT = 64 };
static const size_t CHUNK_BYTES = (size_t)64 << 10, OWN_PAGES_BYTES = (size_t)4 << 20;

typedef struct Chunk {
    struct Chunk *next;
    size_t size; /* of the whole mapping or allocation, this header included */
    size_t used; /* offset of the first free byte; the header takes the first ALIGNMENT bytes */
    int mapped;
} Chunk;

struct Arena {
    Chunk *chunks; /* the head is the one being bumped */
};

_Static_assert(sizeof(Chunk) <= ALIGNMENT, "the header of a chunk keeps its blocks aligned");

static Chunk *chunk_new(size_t payload) {
    size_t size = payload + ALIGNMENT;
    Chunk *chunk;
    int mapped = payload >= OWN_PAGES_BYTES;
    if (mapped) {
        chunk = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (chunk == MAP_FAILED)
            return NULL;
        madvise(chunk, size, MADV_HUGEPAGE);
    } else {
        chunk = aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
        if (!chunk)
            return NULL;
        memset(chunk, 0, size);
    }
    *chunk = (Chunk){.size = size, .used = ALIGNMENT, .mapped = mapped};
    return chunk;
}

Arena *arena_new(void) {
    Arena *arena = calloc(1, sizeof *arena);
    if (!arena)
        die("out of memory");
    return arena;
}

void arena_free(Arena *arena) {
    if (!arena)
        return;
    for (Chunk *chunk = arena->chunks, *next; chunk; chunk = next) {
        next = chunk->next;
        if (chunk->mapped)
            munmap(chunk, chunk->size);
        else
            free(chunk);
    }
    free(arena);
}

void *arena_alloc(Arena *arena, uint64_t count, size_t size, const char *what) {
    uint64_t bytes;
    if (__builtin_mul_overflow(count, (uint64_t)size, &bytes) || bytes > PTRDIFF_MAX / 2)
        die("%s: %llu items of %zu bytes are more than any memory holds", what, (unsigned long long)count, size);
    size_t need = ((size_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    Chunk *head = arena->chunks;
    if (head && head->size - head->used >= need && !head->mapped) {
        void *block = (char *)head + head->used;
        head->used += need;
        return block;
    }
    Chunk *chunk = chunk_new(need > CHUNK_BYTES ? need : CHUNK_BYTES);
    if (!chunk)
        die("%s: out of memory, %.1f MiB wanted", what, (double)need / (1 << 20));
    chunk->used += need;
    if (head && need > CHUNK_BYTES / 4) { /* a large block goes behind the head, which may still have room */
        chunk->next = head->next;
        head->next = chunk;
    } else {
        chunk->next = head;
        arena->chunks = chunk;
    }
    return (char *)chunk + ALIGNMENT;
}

int64_t arena_process_bytes(bool at_most) {
    FILE *status = fopen("/proc/self/status", "r");
    const char *format = at_most ? "VmHWM: %lld kB" : "VmRSS: %lld kB";
    char line[256];
    long long kilobytes = 0;
    while (status && fgets(line, sizeof line, status) && sscanf(line, format, &kilobytes) != 1)
        ;
    if (status)
        fclose(status);
    return (int64_t)kilobytes * 1024;
}

char *arena_printf(Arena *arena, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    char *text = ARENA_ARRAY(arena, char, length + 1, "text");
    vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    va_end(args);
    return text;
}
