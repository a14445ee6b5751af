/* arena.h: memory that lives and dies together.
 *
 * Everything read from a file or made for one stage comes from an arena and is freed with it in one call: parsers can
 * die() at any point without leaking, and nothing is freed twice. Blocks are zeroed and 64-byte aligned; a block of
 * 4 MiB or more gets pages of its own, huge ones where the system has them. Not thread-safe. */
#ifndef CNNSCOPE_ARENA_H
#define CNNSCOPE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Arena Arena;

Arena *arena_new(void);
void arena_free(Arena *arena); /* all blocks; NULL is allowed */

/* count * size bytes, zeroed. Dies, naming `what`, when the product overflows or memory is short. count 0 is legal. */
void *arena_alloc(Arena *arena, uint64_t count, size_t size, const char *what);

#define ARENA_ARRAY(arena, type, count, what) ((type *)arena_alloc((arena), (uint64_t)(count), sizeof(type), (what)))

/* Host memory that the process has now, or had at most until now (VmRSS and VmHWM of Linux); 0 where that is unknown. */
int64_t arena_process_bytes(bool at_most);

char *arena_printf(Arena *arena, const char *format, ...) __attribute__((format(printf, 2, 3), nonnull(2)));

#endif
