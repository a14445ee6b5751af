/* pickle.c: reads opcodes and their arguments, and lets the table in pickle_ops.c run them. See pickle.h.
 *
 * Costs: one step per opcode, no recursion, 24 bytes per value and 12 per item of a container, in arrays that double
 * (old ones stay in the arena, so twice that), all counted against memory_left before it is taken. */
#include "pickle.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "pickle_ops.h"

enum { PRINTABLE_MAX = 120, FIRST_ROOM = 256 };

static Argument argument_read(Pickle *pickle, uint8_t op);

void pickle_open(Pickle *pickle, Arena *arena, const void *bytes, size_t size, const char *path, const char *part,
                 size_t *memory_left) {
    *pickle = (Pickle){.arena = arena, .path = path, .part = part, .memory_left = memory_left};
    pickle->bytes = bytes;
    pickle->size = size < UINT32_MAX ? size : UINT32_MAX;
}

PickleRef pickle_run(Pickle *pickle) {
    enum { STOP = '.' };
    pickle->stack_count = pickle->mark_count = pickle->memo_count = 0;
    for (;;) {
        pickle->op_at = pickle->at;
        if (pickle->at >= pickle->size)
            die("%s: %s ends at byte %zu, inside a pickle: expected more, the file is truncated", pickle->path,
                pickle->part, pickle->size);
        uint8_t op = pickle->bytes[pickle->at++];
        if (!pickle_opcodes[op].name)
            die("%s: %s has opcode 0x%02x at byte %zu, which files made by torch.save do not use: the file is damaged, "
                "or not a .pth file",
                pickle->path, pickle->part, op, pickle->op_at);
        if (op == STOP)
            break;
        Argument argument = argument_read(pickle, op);
        pickle_opcodes[op].run(pickle, &argument);
    }
    if (pickle->mark_count)
        pickle_refuse(pickle, "finds a mark that nothing used");
    if (pickle->stack_count != 1)
        pickle_refuse(pickle, "finds %u values where one is expected", pickle->stack_count);
    return pickle->stack[0];
}

/* ---- Reading values -------------------------------------------------------------------------------------------- */

const PickleValue *pickle_value(const Pickle *pickle, PickleRef ref) {
    static const PickleValue nothing;
    return ref ? &pickle->values[ref] : &nothing;
}

const PickleValue *pickle_item(const Pickle *pickle, const PickleValue *list, uint32_t index) {
    if ((list->kind != PICKLE_TUPLE && list->kind != PICKLE_LIST) || index >= list->items.count)
        return pickle_value(pickle, 0);
    uint32_t item = list->items.first;
    while (index--)
        item = pickle->items[item].next;
    return pickle_value(pickle, pickle->items[item].value);
}

PickleRef pickle_lookup(const Pickle *pickle, const PickleValue *dict, const char *key) {
    PickleRef found = 0;
    if (dict->kind == PICKLE_DICT)
        for (uint32_t i = dict->items.first; i; i = pickle->items[i].next)
            if (pickle_text_is(pickle_value(pickle, pickle->items[i].key), key))
                found = pickle->items[i].value;
    return found;
}

bool pickle_text_is(const PickleValue *value, const char *text) {
    size_t length = strlen(text);
    return value->kind == PICKLE_TEXT && value->text.length == length && !memcmp(value->text.bytes, text, length);
}

bool pickle_is_global(const Pickle *pickle, const PickleValue *value, const char *module, const char *name) {
    return value->kind == PICKLE_GLOBAL && pickle_text_is(pickle_value(pickle, value->global.name), name) &&
           pickle_text_is(pickle_value(pickle, value->global.module), module);
}

const char *pickle_printable(const Pickle *pickle, const PickleValue *value) {
    if (value->kind == PICKLE_GLOBAL)
        return arena_printf(pickle->arena, "%s.%s",
                            pickle_printable(pickle, pickle_value(pickle, value->global.module)),
                            pickle_printable(pickle, pickle_value(pickle, value->global.name)));
    if (value->kind != PICKLE_TEXT)
        return pickle_kind_name(value->kind);
    bool cut = value->text.length > PRINTABLE_MAX;
    char *text = arena_printf(pickle->arena, "%.*s%s", cut ? PRINTABLE_MAX : (int)value->text.length, value->text.bytes,
                              cut ? "..." : "");
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    return text;
}

const char *pickle_kind_name(PickleKind kind) {
    static const char *const names[] = {"nothing", "None",   "a bool",   "an int",    "an int",
                                        "a float", "a text", "bytes",    "a tuple",   "a list",
                                        "a set",   "a dict", "a global", "an object", "a storage"};
    return names[kind];
}

_Noreturn void pickle_refuse(const Pickle *pickle, const char *format, ...) {
    char what[256];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    die("%s: opcode %s at byte %zu of %s %s: the file is damaged", pickle->path,
        pickle_opcodes[pickle->bytes[pickle->op_at]].name, pickle->op_at, pickle->part, what);
}

/* ---- Arguments ----------------------------------------------------------------------------------------------------
 */

static const uint8_t *take(Pickle *pickle, uint64_t count) {
    if (count > pickle->size - pickle->at)
        pickle_refuse(pickle, "needs %llu more bytes, %zu are left", (unsigned long long)count,
                      pickle->size - pickle->at);
    const uint8_t *bytes = pickle->bytes + pickle->at;
    pickle->at += count;
    return bytes;
}

static uint64_t little_endian(const uint8_t *bytes, int count) {
    uint64_t number = 0;
    for (int i = count; i-- > 0;)
        number = number << 8 | bytes[i];
    return number;
}

static const char *take_line(Pickle *pickle, uint32_t *length) {
    const uint8_t *line = pickle->bytes + pickle->at, *end = memchr(line, '\n', pickle->size - pickle->at);
    if (!end)
        pickle_refuse(pickle, "has no end of line");
    *length = (uint32_t)(end - line);
    pickle->at += *length + (size_t)1;
    return (const char *)line;
}

static Argument argument_read(Pickle *pickle, uint8_t op) {
    static const int widths[] = {
        [U1] = 1, [U2] = 2, [U4] = 4, [I4] = 4, [U8] = 8, [DATA1] = 1, [DATA4] = 4, [DATA8] = 8};
    ArgumentKind kind = pickle_opcodes[op].argument;
    Argument argument = {.op = op};
    switch (kind) {
    case NO_ARG: break;
    case F8: take(pickle, 8); break;
    case LINE:
    case TWO_LINES:
        argument.data = take_line(pickle, &argument.length);
        if (kind == TWO_LINES)
            argument.data2 = take_line(pickle, &argument.length2);
        break;
    default:
        argument.number = little_endian(take(pickle, (uint64_t)widths[kind]), widths[kind]);
        if (kind == I4)
            argument.number = (uint64_t)(int64_t)(int32_t)(uint32_t)argument.number;
        if (kind >= DATA1) {
            argument.data = (const char *)take(pickle, argument.number);
            argument.length = (uint32_t)argument.number;
        }
    }
    return argument;
}

/* ---- Memory ---------------------------------------------------------------------------------------------------- */

void *pickle_grown(Pickle *pickle, void *array, size_t count, size_t *room, size_t item) {
    if (count < *room)
        return array;
    size_t wanted = *room ? 2 * *room : FIRST_ROOM;
    if (wanted > UINT32_MAX || wanted > *pickle->memory_left / item)
        die("%s: %s makes too many values (byte %zu): expected less than 3 times the file's size and 64 MiB to hold "
            "them, the file is damaged or made to exhaust memory",
            pickle->path, pickle->part, pickle->op_at);
    *pickle->memory_left -= wanted * item;
    void *larger = arena_alloc(pickle->arena, wanted, item, pickle->path);
    if (*room)
        memcpy(larger, array, *room * item);
    *room = wanted;
    return larger;
}

void pickle_push(Pickle *pickle, PickleRef ref) {
    pickle->stack =
        pickle_grown(pickle, pickle->stack, pickle->stack_count, &pickle->stack_room, sizeof *pickle->stack);
    pickle->stack[pickle->stack_count++] = ref;
}

/* Number 0 stays unused, for "no value" and the end of a chain. */
PickleRef pickle_value_new(Pickle *pickle, PickleKind kind) {
    if (pickle->value_count == 0)
        pickle->value_count = 1;
    pickle->values =
        pickle_grown(pickle, pickle->values, pickle->value_count, &pickle->value_room, sizeof *pickle->values);
    pickle->values[pickle->value_count] = (PickleValue){.kind = kind, .at = (uint32_t)pickle->op_at};
    return pickle->value_count++;
}

PickleValue *pickle_push_new(Pickle *pickle, PickleKind kind) {
    PickleRef ref = pickle_value_new(pickle, kind);
    pickle_push(pickle, ref);
    return &pickle->values[ref];
}

PickleRef pickle_text_new(Pickle *pickle, PickleKind kind, const char *bytes, uint32_t length) {
    PickleRef ref = pickle_value_new(pickle, kind);
    pickle->values[ref].text.bytes = bytes;
    pickle->values[ref].text.length = length;
    return ref;
}

void pickle_add_item(Pickle *pickle, PickleRef container, PickleRef key, PickleRef value) {
    if (pickle->item_count == 0)
        pickle->item_count = 1;
    pickle->items = pickle_grown(pickle, pickle->items, pickle->item_count, &pickle->item_room, sizeof *pickle->items);
    uint32_t item = pickle->item_count++;
    pickle->items[item] = (PickleItem){.key = key, .value = value};
    PickleValue *into = &pickle->values[container];
    if (into->items.count++)
        pickle->items[into->items.last].next = item;
    else
        into->items.first = item;
    into->items.last = item;
}

/* ---- Stack ----------------------------------------------------------------------------------------------------- */

uint32_t pickle_floor(const Pickle *pickle) {
    return pickle->mark_count ? pickle->marks[pickle->mark_count - 1] : 0;
}

PickleRef pickle_pop(Pickle *pickle) {
    if (pickle->stack_count <= pickle_floor(pickle))
        pickle_refuse(pickle, "needs a value, and the stack has none");
    return pickle->stack[--pickle->stack_count];
}

PickleRef pickle_top(const Pickle *pickle) {
    if (pickle->stack_count <= pickle_floor(pickle))
        pickle_refuse(pickle, "needs a value, and the stack has none");
    return pickle->stack[pickle->stack_count - 1];
}
