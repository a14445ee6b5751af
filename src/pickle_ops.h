/* pickle_ops.h: between pickle.c, which reads and steps, and pickle_ops.c, which has the table of opcodes. */
#ifndef CNNSCOPE_PICKLE_OPS_H
#define CNNSCOPE_PICKLE_OPS_H

#include "error.h"
#include "pickle.h"

typedef enum { NO_ARG, U1, U2, U4, I4, U8, F8, LINE, TWO_LINES, DATA1, DATA4, DATA8 } ArgumentKind;

typedef struct {
    uint8_t op;
    uint64_t number;  /* U1 to U8; I4 with its sign extended */
    const char *data; /* LINE, TWO_LINES, DATA* */
    uint32_t length;
    const char *data2; /* TWO_LINES */
    uint32_t length2;
} Argument;

typedef struct {
    const char *name;
    ArgumentKind argument;
    void (*run)(Pickle *pickle, const Argument *argument);
} Opcode;

/* Of all 256; one without a name is not known. */
extern const Opcode pickle_opcodes[256];

/* `array` with room for one more than `count`; dies when that is more than memory_left. */
void *pickle_grown(Pickle *pickle, void *array, size_t count, size_t *room, size_t item);

/* New values; pointers to values are good until the next one is made. */
PickleRef pickle_value_new(Pickle *pickle, PickleKind kind);
PickleRef pickle_text_new(Pickle *pickle, PickleKind kind, const char *bytes, uint32_t length);
PickleValue *pickle_push_new(Pickle *pickle, PickleKind kind);
void pickle_add_item(Pickle *pickle, PickleRef container, PickleRef key, PickleRef value);

/* The stack. Opcodes reach down to the last mark, the floor, and no further; on an empty stack they are refused. */
void pickle_push(Pickle *pickle, PickleRef ref);
PickleRef pickle_pop(Pickle *pickle);
PickleRef pickle_top(const Pickle *pickle);
uint32_t pickle_floor(const Pickle *pickle);

/* Dies: "FILE: opcode NAME at byte N of PART " and what is wrong with it. */
_Noreturn void pickle_refuse(const Pickle *pickle, const char *format, ...) PRINTF_LIKE(2, 3);

#endif
