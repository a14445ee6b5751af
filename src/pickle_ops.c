/* pickle_ops.c: what each opcode does. One table gives it its name, its argument and its function; what is not in the
 * table is refused. It covers protocols 0 to 5 but for the extension registry and out-of-band buffers, which
 * torch.save never writes. */
#include "pickle_ops.h"

/* ---- Several at once ------------------------------------------------------------------------------------------ */

/* Everything above the last mark leaves the stack; it stays readable at stack[base..base + *count) until a push. */
static uint32_t pop_mark(Pickle *pickle, uint32_t *count) {
    if (pickle->mark_count == 0)
        pickle_refuse(pickle, "needs a mark, and there is none");
    uint32_t base = pickle->marks[--pickle->mark_count];
    *count = pickle->stack_count - base;
    pickle->stack_count = base;
    return base;
}

static void fill(Pickle *pickle, PickleRef container, uint32_t base, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        pickle_add_item(pickle, container, 0, pickle->stack[base + i]);
}

static void fill_pairs(Pickle *pickle, PickleRef container, uint32_t base, uint32_t count) {
    if (count % 2)
        pickle_refuse(pickle, "finds a key without a value");
    for (uint32_t i = 0; i < count; i += 2)
        pickle_add_item(pickle, container, pickle->stack[base + i], pickle->stack[base + i + 1]);
}

/* The container on top of the stack; 0 when it is an object, whose items nobody needs. */
static PickleRef top_container(Pickle *pickle, PickleKind kind) {
    PickleRef ref = pickle_top(pickle);
    PickleKind found = pickle->values[ref].kind;
    if (found == PICKLE_CALL)
        return 0;
    if (found != kind)
        pickle_refuse(pickle, "needs %s, found %s", pickle_kind_name(kind), pickle_kind_name(found));
    return ref;
}

/* ---- Opcodes: plain values --------------------------------------------------------------------------------------- */

static void op_proto(Pickle *pickle, const Argument *a) {
    if (a->number > 5)
        pickle_refuse(pickle, "names protocol %d, expected 0 to 5", (int)a->number);
}

static void op_frame(Pickle *pickle, const Argument *a) {
    if (a->number > pickle->size - pickle->at)
        pickle_refuse(pickle, "announces %llu bytes, the file has %zu more", (unsigned long long)a->number,
                      pickle->size - pickle->at);
}

static void op_none(Pickle *pickle, const Argument *a) {
    (void)a;
    pickle_push_new(pickle, PICKLE_NONE);
}

static void op_bool(Pickle *pickle, const Argument *a) {
    enum { NEWTRUE = 0x88 };
    pickle_push_new(pickle, PICKLE_BOOL)->integer = a->op == NEWTRUE;
}

static void op_int(Pickle *pickle, const Argument *a) {
    pickle_push_new(pickle, PICKLE_INT)->integer = (int64_t)a->number;
}

static void op_float(Pickle *pickle, const Argument *a) {
    (void)a;
    pickle_push_new(pickle, PICKLE_FLOAT);
}

static void op_long(Pickle *pickle, const Argument *a) {
    if (a->length > 8) {
        pickle_push(pickle, pickle_text_new(pickle, PICKLE_LONG, a->data, a->length));
        return;
    }
    uint64_t number = a->length && (a->data[a->length - 1] & 0x80) ? UINT64_MAX : 0; /* two's complement */
    for (uint32_t i = a->length; i-- > 0;)
        number = number << 8 | (uint8_t)a->data[i];
    pickle_push_new(pickle, PICKLE_INT)->integer = (int64_t)number;
}

/* INT and LONG of protocol 0: decimal; I00 and I01 are the bools. */
static void op_decimal(Pickle *pickle, const Argument *a) {
    uint32_t length = a->length;
    if (a->op == 'I' && length == 2 && a->data[0] == '0') {
        pickle_push_new(pickle, PICKLE_BOOL)->integer = a->data[1] == '1';
        return;
    }
    if (a->op == 'L' && length && a->data[length - 1] == 'L')
        length--;
    bool negative = length && a->data[0] == '-', large = false;
    if (length <= negative)
        pickle_refuse(pickle, "has no digits");
    int64_t number = 0;
    for (uint32_t i = negative; i < length; i++) {
        int digit = a->data[i] - '0';
        if (digit < 0 || digit > 9)
            pickle_refuse(pickle, "is not a decimal number");
        large |= __builtin_mul_overflow(number, 10, &number) || __builtin_add_overflow(number, digit, &number);
    }
    if (large)
        pickle_push(pickle, pickle_text_new(pickle, PICKLE_LONG, a->data, length));
    else
        pickle_push_new(pickle, PICKLE_INT)->integer = negative ? -number : number;
}

static void op_text(Pickle *pickle, const Argument *a) {
    pickle_push(pickle, pickle_text_new(pickle, PICKLE_TEXT, a->data, a->length));
}

static void op_quoted_text(Pickle *pickle, const Argument *a) {
    if (a->length < 2 || (a->data[0] != '\'' && a->data[0] != '"') || a->data[a->length - 1] != a->data[0])
        pickle_refuse(pickle, "has no quotes around its text");
    pickle_push(pickle, pickle_text_new(pickle, PICKLE_TEXT, a->data + 1, a->length - 2));
}

static void op_bytes(Pickle *pickle, const Argument *a) {
    pickle_push(pickle, pickle_text_new(pickle, PICKLE_BYTES, a->data, a->length));
}

/* ---- Opcodes: stack and memo ---------------------------------------------------------------------------------------
 */

static void op_mark(Pickle *pickle, const Argument *a) {
    (void)a;
    pickle->marks = pickle_grown(pickle, pickle->marks, pickle->mark_count, &pickle->mark_room, sizeof *pickle->marks);
    pickle->marks[pickle->mark_count++] = pickle->stack_count;
}

static void op_pop_mark(Pickle *pickle, const Argument *a) {
    (void)a;
    uint32_t count;
    pop_mark(pickle, &count);
}

static void op_pop(Pickle *pickle, const Argument *a) {
    if (pickle->mark_count && pickle->stack_count == pickle_floor(pickle))
        op_pop_mark(pickle, a); /* as in Python: POP takes a bare mark away */
    else
        pickle_pop(pickle);
}

static void op_dup(Pickle *pickle, const Argument *a) {
    (void)a;
    pickle_push(pickle, pickle_top(pickle));
}

static uint64_t memo_number(const Pickle *pickle, const Argument *a) {
    if (a->op != 'p' && a->op != 'g')
        return a->number;
    uint64_t number = 0;
    if (a->length == 0 || a->length > 10)
        pickle_refuse(pickle, "is not a memo number");
    for (uint32_t i = 0; i < a->length; i++) {
        if (a->data[i] < '0' || a->data[i] > '9')
            pickle_refuse(pickle, "is not a memo number");
        number = number * 10 + (uint64_t)(a->data[i] - '0');
    }
    return number;
}

static void memo_set(Pickle *pickle, uint64_t number) {
    if (number >= pickle->size) /* picklers count up by one: there are fewer entries than bytes */
        pickle_refuse(pickle, "names memo entry %llu of a pickle of %zu bytes", (unsigned long long)number,
                      pickle->size);
    PickleRef value = pickle_top(pickle);
    while (pickle->memo_count <= number) {
        pickle->memo = pickle_grown(pickle, pickle->memo, pickle->memo_count, &pickle->memo_room, sizeof *pickle->memo);
        pickle->memo[pickle->memo_count++] = 0;
    }
    pickle->memo[number] = value;
}

static void op_put(Pickle *pickle, const Argument *a) {
    memo_set(pickle, memo_number(pickle, a));
}

static void op_memoize(Pickle *pickle, const Argument *a) {
    (void)a;
    memo_set(pickle, pickle->memo_count);
}

static void op_get(Pickle *pickle, const Argument *a) {
    uint64_t number = memo_number(pickle, a);
    if (number >= pickle->memo_count || !pickle->memo[number])
        pickle_refuse(pickle, "reads memo entry %llu, which was never set", (unsigned long long)number);
    pickle_push(pickle, pickle->memo[number]);
}

/* ---- Opcodes: containers -------------------------------------------------------------------------------------------
 */

static void op_empty(Pickle *pickle, const Argument *a) {
    pickle_push_new(pickle, a->op == ']'   ? PICKLE_LIST
                            : a->op == ')' ? PICKLE_TUPLE
                            : a->op == '}' ? PICKLE_DICT
                                           : PICKLE_SET);
}

static void op_collect(Pickle *pickle, const Argument *a) { /* LIST, TUPLE, FROZENSET */
    uint32_t count, base = pop_mark(pickle, &count);
    PickleRef ref = pickle_value_new(pickle, a->op == 'l' ? PICKLE_LIST : a->op == 't' ? PICKLE_TUPLE : PICKLE_SET);
    fill(pickle, ref, base, count);
    pickle_push(pickle, ref);
}

static void op_small_tuple(Pickle *pickle, const Argument *a) {
    enum { TUPLE1 = 0x85 };
    PickleRef items[3], ref = pickle_value_new(pickle, PICKLE_TUPLE);
    int count = a->op - TUPLE1 + 1;
    for (int i = count; i-- > 0;)
        items[i] = pickle_pop(pickle);
    for (int i = 0; i < count; i++)
        pickle_add_item(pickle, ref, 0, items[i]);
    pickle_push(pickle, ref);
}

static void op_dict(Pickle *pickle, const Argument *a) {
    (void)a;
    uint32_t count, base = pop_mark(pickle, &count);
    PickleRef ref = pickle_value_new(pickle, PICKLE_DICT);
    fill_pairs(pickle, ref, base, count);
    pickle_push(pickle, ref);
}

static void op_append(Pickle *pickle, const Argument *a) {
    (void)a;
    PickleRef value = pickle_pop(pickle), into = top_container(pickle, PICKLE_LIST);
    if (into)
        pickle_add_item(pickle, into, 0, value);
}

static void op_append_all(Pickle *pickle, const Argument *a) { /* APPENDS, ADDITEMS */
    uint32_t count, base = pop_mark(pickle, &count);
    PickleRef into = top_container(pickle, a->op == 'e' ? PICKLE_LIST : PICKLE_SET);
    if (into)
        fill(pickle, into, base, count);
}

static void op_set_item(Pickle *pickle, const Argument *a) {
    (void)a;
    PickleRef value = pickle_pop(pickle), key = pickle_pop(pickle), into = top_container(pickle, PICKLE_DICT);
    if (into)
        pickle_add_item(pickle, into, key, value);
}

static void op_set_items(Pickle *pickle, const Argument *a) {
    (void)a;
    uint32_t count, base = pop_mark(pickle, &count);
    PickleRef into = top_container(pickle, PICKLE_DICT);
    if (into)
        fill_pairs(pickle, into, base, count);
}

/* ---- Opcodes: globals and calls, none of which happens
 * --------------------------------------------------------------- */

static PickleRef global_new(Pickle *pickle, PickleRef module, PickleRef name) {
    PickleRef ref = pickle_value_new(pickle, PICKLE_GLOBAL);
    pickle->values[ref].global.module = module;
    pickle->values[ref].global.name = name;
    return ref;
}

/* Dicts are made by a call too when they are OrderedDicts: empty, or (in Python 2) from a list of [key, value]. */
static PickleRef call_new(Pickle *pickle, PickleRef callee, PickleRef arguments) {
    const PickleValue *called = pickle_value(pickle, callee);
    if (!pickle_is_global(pickle, called, "collections", "OrderedDict") &&
        !pickle_is_global(pickle, called, "builtins", "dict") &&
        !pickle_is_global(pickle, called, "__builtin__", "dict")) {
        PickleRef ref = pickle_value_new(pickle, PICKLE_CALL);
        pickle->values[ref].call.callee = callee;
        pickle->values[ref].call.arguments = arguments;
        return ref;
    }
    PickleRef dict = pickle_value_new(pickle, PICKLE_DICT);
    const PickleValue *pairs = pickle_item(pickle, pickle_value(pickle, arguments), 0);
    uint32_t next = pairs->kind == PICKLE_LIST ? pairs->items.first : 0;
    for (; next; next = pickle->items[next].next) {
        const PickleValue *pair = pickle_value(pickle, pickle->items[next].value);
        if ((pair->kind != PICKLE_TUPLE && pair->kind != PICKLE_LIST) || pair->items.count != 2)
            pickle_refuse(pickle, "makes a dict of something other than pairs");
        const PickleItem *key = &pickle->items[pair->items.first];
        pickle_add_item(pickle, dict, key->value, pickle->items[key->next].value);
    }
    return dict;
}

static void op_global(Pickle *pickle, const Argument *a) {
    PickleRef module = pickle_text_new(pickle, PICKLE_TEXT, a->data, a->length);
    PickleRef name = pickle_text_new(pickle, PICKLE_TEXT, a->data2, a->length2);
    pickle_push(pickle, global_new(pickle, module, name));
}

static void op_stack_global(Pickle *pickle, const Argument *a) {
    (void)a;
    PickleRef name = pickle_pop(pickle), module = pickle_pop(pickle);
    if (pickle->values[name].kind != PICKLE_TEXT || pickle->values[module].kind != PICKLE_TEXT)
        pickle_refuse(pickle, "needs two texts");
    pickle_push(pickle, global_new(pickle, module, name));
}

static void op_reduce(Pickle *pickle, const Argument *a) { /* REDUCE, NEWOBJ, NEWOBJ_EX */
    enum { NEWOBJ_EX = 0x92 };
    if (a->op == NEWOBJ_EX)
        pickle_pop(pickle); /* keyword arguments */
    PickleRef arguments = pickle_pop(pickle), callee = pickle_pop(pickle);
    pickle_push(pickle, call_new(pickle, callee, arguments));
}

static void op_instance(Pickle *pickle, const Argument *a) { /* INST: class in the argument; OBJ: on the stack */
    uint32_t count, base = pop_mark(pickle, &count);
    PickleRef callee;
    if (a->op == 'o') {
        if (count == 0)
            pickle_refuse(pickle, "needs a class");
        callee = pickle->stack[base++];
        count--;
    } else {
        PickleRef module = pickle_text_new(pickle, PICKLE_TEXT, a->data, a->length);
        callee = global_new(pickle, module, pickle_text_new(pickle, PICKLE_TEXT, a->data2, a->length2));
    }
    PickleRef arguments = pickle_value_new(pickle, PICKLE_TUPLE);
    fill(pickle, arguments, base, count);
    pickle_push(pickle, call_new(pickle, callee, arguments));
}

static void op_build(Pickle *pickle, const Argument *a) {
    (void)a;
    PickleRef state = pickle_pop(pickle), object = pickle_top(pickle);
    if (pickle->values[object].kind == PICKLE_CALL) /* what is set on a dict, as _metadata, is dropped */
        pickle->values[object].call.state = state;
}

static void op_persistent(Pickle *pickle, const Argument *a) {
    PickleRef id = a->op == 'P' ? pickle_text_new(pickle, PICKLE_TEXT, a->data, a->length) : pickle_pop(pickle);
    pickle_push_new(pickle, PICKLE_PERSISTENT)->id = id;
}

static void op_stop(Pickle *pickle, const Argument *a) {
    (void)pickle, (void)a;
}

/* ---- The table, and the arguments
 * ------------------------------------------------------------------------------------ */

const Opcode pickle_opcodes[256] = {
    [0x80] = {"PROTO", U1, op_proto},
    [0x95] = {"FRAME", U8, op_frame},
    ['.'] = {"STOP", NO_ARG, op_stop},

    ['N'] = {"NONE", NO_ARG, op_none},
    [0x88] = {"NEWTRUE", NO_ARG, op_bool},
    [0x89] = {"NEWFALSE", NO_ARG, op_bool},
    ['K'] = {"BININT1", U1, op_int},
    ['M'] = {"BININT2", U2, op_int},
    ['J'] = {"BININT", I4, op_int},
    ['I'] = {"INT", LINE, op_decimal},
    ['L'] = {"LONG", LINE, op_decimal},
    [0x8a] = {"LONG1", DATA1, op_long},
    [0x8b] = {"LONG4", DATA4, op_long},
    ['F'] = {"FLOAT", LINE, op_float},
    ['G'] = {"BINFLOAT", F8, op_float},
    ['S'] = {"STRING", LINE, op_quoted_text},
    ['T'] = {"BINSTRING", DATA4, op_text},
    ['U'] = {"SHORT_BINSTRING", DATA1, op_text},
    ['V'] = {"UNICODE", LINE, op_text},
    ['X'] = {"BINUNICODE", DATA4, op_text},
    [0x8c] = {"SHORT_BINUNICODE", DATA1, op_text},
    [0x8d] = {"BINUNICODE8", DATA8, op_text},
    ['B'] = {"BINBYTES", DATA4, op_bytes},
    ['C'] = {"SHORT_BINBYTES", DATA1, op_bytes},
    [0x8e] = {"BINBYTES8", DATA8, op_bytes},
    [0x96] = {"BYTEARRAY8", DATA8, op_bytes},

    ['('] = {"MARK", NO_ARG, op_mark},
    ['0'] = {"POP", NO_ARG, op_pop},
    ['1'] = {"POP_MARK", NO_ARG, op_pop_mark},
    ['2'] = {"DUP", NO_ARG, op_dup},
    ['p'] = {"PUT", LINE, op_put},
    ['q'] = {"BINPUT", U1, op_put},
    ['r'] = {"LONG_BINPUT", U4, op_put},
    [0x94] = {"MEMOIZE", NO_ARG, op_memoize},
    ['g'] = {"GET", LINE, op_get},
    ['h'] = {"BINGET", U1, op_get},
    ['j'] = {"LONG_BINGET", U4, op_get},

    [']'] = {"EMPTY_LIST", NO_ARG, op_empty},
    [')'] = {"EMPTY_TUPLE", NO_ARG, op_empty},
    ['}'] = {"EMPTY_DICT", NO_ARG, op_empty},
    [0x8f] = {"EMPTY_SET", NO_ARG, op_empty},
    ['l'] = {"LIST", NO_ARG, op_collect},
    ['t'] = {"TUPLE", NO_ARG, op_collect},
    [0x91] = {"FROZENSET", NO_ARG, op_collect},
    [0x85] = {"TUPLE1", NO_ARG, op_small_tuple},
    [0x86] = {"TUPLE2", NO_ARG, op_small_tuple},
    [0x87] = {"TUPLE3", NO_ARG, op_small_tuple},
    ['d'] = {"DICT", NO_ARG, op_dict},
    ['a'] = {"APPEND", NO_ARG, op_append},
    ['e'] = {"APPENDS", NO_ARG, op_append_all},
    [0x90] = {"ADDITEMS", NO_ARG, op_append_all},
    ['s'] = {"SETITEM", NO_ARG, op_set_item},
    ['u'] = {"SETITEMS", NO_ARG, op_set_items},

    ['c'] = {"GLOBAL", TWO_LINES, op_global},
    [0x93] = {"STACK_GLOBAL", NO_ARG, op_stack_global},
    ['R'] = {"REDUCE", NO_ARG, op_reduce},
    [0x81] = {"NEWOBJ", NO_ARG, op_reduce},
    [0x92] = {"NEWOBJ_EX", NO_ARG, op_reduce},
    ['i'] = {"INST", TWO_LINES, op_instance},
    ['o'] = {"OBJ", NO_ARG, op_instance},
    ['b'] = {"BUILD", NO_ARG, op_build},
    ['P'] = {"PERSID", LINE, op_persistent},
    ['Q'] = {"BINPERSID", NO_ARG, op_persistent},
};
