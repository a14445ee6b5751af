/* pickle.h: Python's pickle as plain data.
 *
 * A pickle is a program for a stack machine. Here it runs without being able to do anything: every opcode either makes
 * a value or is refused by name and byte offset, and calling a global makes a PICKLE_CALL value that only records what
 * would have been called with what. Nothing is imported, looked up or run. What a call means is the caller's business
 * (pth.c knows those that build tensors).
 *
 * Values refer to each other by number, so a hostile file can make cycles and values shared a million times over for a
 * few bytes: walk them only to a fixed depth. Text points into the pickle's bytes, which must stay. */
#ifndef CNNSCOPE_PICKLE_H
#define CNNSCOPE_PICKLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"

typedef uint32_t PickleRef; /* number of a value; 0 is no value */

typedef enum {
    PICKLE_NOTHING, /* the kind of value 0 */
    PICKLE_NONE,
    PICKLE_BOOL,  /* integer */
    PICKLE_INT,   /* integer */
    PICKLE_LONG,  /* text: an integer of more than 64 bits, little endian (decimal when written in decimal) */
    PICKLE_FLOAT, /* its value is not kept */
    PICKLE_TEXT,  /* text: as in the file, escapes of the old text opcodes left as they are */
    PICKLE_BYTES, /* text */
    PICKLE_TUPLE, /* items, without keys */
    PICKLE_LIST,
    PICKLE_SET,
    PICKLE_DICT,      /* items with keys, in file order; a later equal key replaces an earlier one. OrderedDict too */
    PICKLE_GLOBAL,    /* global */
    PICKLE_CALL,      /* call: an object made by calling a global, or anything else */
    PICKLE_PERSISTENT /* id: something kept outside of the pickle */
} PickleKind;

typedef struct {
    PickleKind kind;
    uint32_t at; /* byte offset of the opcode that made it */
    union {
        int64_t integer;
        struct {
            const char *bytes;
            uint32_t length;
        } text;
        struct {
            uint32_t first, last, count; /* chain in Pickle.items */
        } items;
        struct {
            PickleRef module, name;
        } global;
        struct {
            PickleRef callee, arguments, state; /* state: what BUILD set, or 0 */
        } call;
        PickleRef id;
    };
} PickleValue;

typedef struct {
    PickleRef key, value;
    uint32_t next; /* 0 ends the chain */
} PickleItem;

typedef struct {
    Arena *arena;
    const char *path;    /* for messages: the file */
    const char *part;    /* for messages: what of the file the offsets count in, as "data.pkl" */
    size_t *memory_left; /* bytes that may still be taken; a pickle that wants more is refused */

    const uint8_t *bytes;
    size_t size, at, op_at; /* at: next byte to read; op_at: the opcode being run */

    PickleValue *values;
    PickleItem *items;
    PickleRef *stack, *memo;
    uint32_t *marks; /* heights of the stack */
    uint32_t value_count, item_count, stack_count, memo_count, mark_count;
    size_t value_room, item_room, stack_room, memo_room, mark_room;
} Pickle;

/* Starts on bytes[0..size) (at most 4 GiB). */
void pickle_open(Pickle *pickle, Arena *arena, const void *bytes, size_t size, const char *path, const char *part,
                 size_t *memory_left);

/* Runs from pickle->at to STOP and gives the value; pickle->at is then the byte after. May be called again for the
 * next pickle of a stream: values stay, memo and stack start empty. */
PickleRef pickle_run(Pickle *pickle);

const PickleValue *pickle_value(const Pickle *pickle, PickleRef ref);

/* Item number `index` of a tuple or list; value 0 when it is neither or has fewer. */
const PickleValue *pickle_item(const Pickle *pickle, const PickleValue *list, uint32_t index);

/* The value of a text key in a dict, or 0. */
PickleRef pickle_lookup(const Pickle *pickle, const PickleValue *dict, const char *key);

bool pickle_text_is(const PickleValue *value, const char *text);
bool pickle_is_global(const Pickle *pickle, const PickleValue *value, const char *module, const char *name);

/* For messages, in the arena: text (or "module.name" of a global) with control characters as '?', cut where long. */
const char *pickle_printable(const Pickle *pickle, const PickleValue *value);
const char *pickle_kind_name(PickleKind kind); /* "a dict", "an int" ... */

#endif
