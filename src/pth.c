/* pth.c: the tensors of a .pth file. See pth.h.
 *
 * The pickle gives each tensor's storage, offset, shape and strides; all are checked against the storage's size before
 * a byte is read. Only storages that the state_dict needs are read (a checkpoint's optimizer is two thirds of it), and
 * a contiguous tensor is a pointer into its storage: reading costs one copy of the weights, two of those that are not
 * contiguous. A tensor that uses elements of its storage more than once (an expanded one) is refused: a file of a
 * hundred bytes could otherwise ask for any amount of memory. */
#include "pth.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "pth_parts.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "storages are used as they are in the file");

/* Where a tensor's elements lie, until they are read. */
typedef struct {
    const PickleValue *persistent;
    int storage;
    int64_t offset, stride[STATE_RANK_MAX];
} Placement;

static void collect(StateDict *state, Placement **placements, PthFile *file, const Pickle *pickle,
                    const PickleValue *dict);
static void tensor_parse(Tensor *tensor, Placement *placement, PthFile *file, const Pickle *pickle,
                         const PickleValue *arguments, const char *name);
static Storage *needed_storages(int *count, Placement *placements, PthFile *file, const Pickle *pickle,
                                const StateDict *state);
static void tensor_place(Tensor *tensor, const Placement *placement, const Storage *storage, PthFile *file);

StateDict *pth_read(Arena *arena, const void *bytes, size_t size, const char *path) {
    static const char zip_magic[4] = "PK\3\4";
    const uint8_t *first = bytes;
    PthFile file = {.arena = arena, .path = path, .bytes = bytes, .size = size};
    if (size > SIZE_MAX / 4)
        die("%s: is larger than any memory", path);
    file.memory_left = 2 * size + ((size_t)48 << 20);
    if (size == 0)
        die("%s: is empty, expected a file written by torch.save", path);
    bool zip = size >= sizeof zip_magic && !memcmp(bytes, zip_magic, sizeof zip_magic);
    if (!zip && *first != 0x80 && *first != 'c' && *first != '(') /* PROTO, or what protocol 0 begins with */
        die("%s: begins with byte 0x%02x, neither a zip nor a pickle: expected a file written by torch.save", path,
            *first);

    Pickle pickle;
    const PickleValue *root =
        pickle_value(&pickle, zip ? pth_zip_pickle(&file, &pickle) : pth_legacy_pickle(&file, &pickle));
    pth_refuse_commands(&file, &pickle);
    StateDict *state = ARENA_ARRAY(arena, StateDict, 1, path);
    *state = (StateDict){
        .path = path, .format = zip ? "torch.save, zip" : "torch.save, legacy", .found_under = "", .prefix = ""};
    Placement *placements;
    const PickleValue *bare = pth_tensor_arguments(&pickle, root);
    if (bare) {
        state->count = 1;
        state->tensors = ARENA_ARRAY(arena, Tensor, 1, path);
        placements = ARENA_ARRAY(arena, Placement, 1, path);
        tensor_parse(state->tensors, placements, &file, &pickle, bare, "");
    } else {
        collect(state, &placements, &file, &pickle, pth_find(&state->found_under, &file, &pickle, root));
    }
    state->globals = pth_globals(&pickle);

    int storage_count;
    Storage *storages = needed_storages(&storage_count, placements, &file, &pickle, state);
    if (zip)
        pth_zip_storages(&file, storages, storage_count);
    else
        pth_legacy_storages(&file, &pickle, storages, storage_count);
    for (int i = 0; i < state->count; i++)
        tensor_place(&state->tensors[i], &placements[i], &storages[placements[i].storage], &file);
    pth_take(&file, (uint64_t)state->count * sizeof(char *), "the names of the tensors");
    state_settle(state, arena);
    return state;
}

void pth_take(PthFile *file, uint64_t bytes, const char *what) {
    if (bytes > file->memory_left)
        die("%s: %s would take %llu bytes, more than a file of %zu bytes should need: it is damaged or made to exhaust "
            "memory",
            file->path, what, (unsigned long long)bytes, file->size);
    file->memory_left -= bytes;
}

/* ---- Storages -------------------------------------------------------------------------------------------------- */

static const StorageType storage_types[] = {
    {"Float", 4, true, DT_F32},     {"Double", 8, true, DT_F64},        {"Half", 2, true, DT_F16},
    {"BFloat16", 2, true, DT_BF16}, {"Long", 8, true, DT_I64},          {"Int", 4, true, DT_I32},
    {"Short", 2, true, DT_I16},     {"Char", 1, true, DT_I8},           {"Byte", 1, true, DT_U8},
    {"Bool", 1, true, DT_BOOL},     {"ComplexFloat", 8, false, DT_F32}, {"ComplexDouble", 16, false, DT_F64},
    {"QInt8", 1, false, DT_I8},     {"QUInt8", 1, false, DT_U8},        {"QInt32", 4, false, DT_I32},
};

static const StorageType *storage_type(const Pickle *pickle, const PickleValue *global) {
    if (global->kind != PICKLE_GLOBAL)
        return NULL;
    const PickleValue *module = pickle_value(pickle, global->global.module);
    const PickleValue *name = pickle_value(pickle, global->global.name);
    if (!pickle_text_is(module, "torch") && !pickle_text_is(module, "torch.cuda"))
        return NULL;
    for (size_t i = 0; i < sizeof storage_types / sizeof storage_types[0]; i++) {
        size_t length = strlen(storage_types[i].name);
        if (name->text.length == length + 7 && !memcmp(name->text.bytes, storage_types[i].name, length) &&
            !memcmp(name->text.bytes + length, "Storage", 7))
            return &storage_types[i];
    }
    return NULL;
}

void pth_key(char key[KEY_BYTES], const PthFile *file, const PickleValue *text) {
    if (text->kind != PICKLE_TEXT || text->text.length >= KEY_BYTES)
        die("%s: the key of a storage (byte %u of its pickle) is %s, expected a short text: the file is damaged",
            file->path, text->at, pickle_kind_name(text->kind));
    memset(key, 0, KEY_BYTES);
    memcpy(key, text->text.bytes, text->text.length);
}

/* ('storage', type, key, location, number of elements[, view]) */
bool pth_storage(Storage *storage, PthFile *file, const Pickle *pickle, const PickleValue *persistent) {
    const PickleValue *id = pickle_value(pickle, persistent->id);
    if (id->kind != PICKLE_TUPLE || !pickle_text_is(pickle_item(pickle, id, 0), "storage"))
        return false;
    const StorageType *type = storage_type(pickle, pickle_item(pickle, id, 1));
    const PickleValue *numel = pickle_item(pickle, id, 4), *view = pickle_item(pickle, id, 5);
    if (!type)
        return false;
    *storage = (Storage){.type = type, .numel = numel->integer};
    pth_key(storage->key, file, pickle_item(pickle, id, 2));
    if (numel->kind != PICKLE_INT || numel->integer < 0 ||
        __builtin_mul_overflow((uint64_t)numel->integer, type->bytes, &storage->bytes))
        die("%s: storage %s has an impossible number of elements (byte %u of %s): the file is damaged", file->path,
            storage->key, numel->at, pickle->part);
    if (view->kind != PICKLE_NOTHING && view->kind != PICKLE_NONE)
        die("%s: storage %s is a view of another, as PyTorch before 0.4 wrote: save the file again with a newer one",
            file->path, storage->key);
    return true;
}

int pth_compare_keys(const void *a, const void *b) {
    return memcmp(((const Storage *)a)->key, ((const Storage *)b)->key, KEY_BYTES);
}

/* Each storage once, sorted by key; placements[].storage becomes its index. */
static Storage *needed_storages(int *count, Placement *placements, PthFile *file, const Pickle *pickle,
                                const StateDict *state) {
    pth_take(file, (uint64_t)state->count * sizeof(Storage), "the list of storages");
    Storage *storages = ARENA_ARRAY(file->arena, Storage, state->count, file->path);
    for (int i = 0; i < state->count; i++) {
        const Tensor *tensor = &state->tensors[i];
        if (!pth_storage(&storages[i], file, pickle, placements[i].persistent) || !storages[i].type->readable)
            die("%s: tensor %s has elements of type %s, expected a real type: float32, float64, float16, bfloat16, "
                "integer or bool",
                file->path, tensor->name,
                pickle_printable(pickle, pickle_item(pickle, pickle_value(pickle, placements[i].persistent->id), 1)));
        storages[i].tensor = i;
    }
    qsort(storages, (size_t)state->count, sizeof *storages, pth_compare_keys);
    int kept = 0;
    for (int i = 0; i < state->count; i++) {
        int tensor = storages[i].tensor;
        state->tensors[tensor].dtype = storages[i].type->dtype;
        if (i == 0 || pth_compare_keys(&storages[kept - 1], &storages[i]))
            storages[kept++] = storages[i];
        else if (storages[kept - 1].type != storages[i].type || storages[kept - 1].numel != storages[i].numel)
            die("%s: tensor %s describes storage %s otherwise than another tensor does: the file is damaged",
                file->path, state->tensors[tensor].name, storages[i].key);
        placements[tensor].storage = kept - 1;
    }
    *count = kept;
    return storages;
}

/* ---- Tensors --------------------------------------------------------------------------------------------------- */

static const char *tensor_name(PthFile *file, const Pickle *pickle, const PickleValue *key) {
    bool odd = key->text.length >= STATE_NAME_BYTES;
    for (uint32_t i = 0; i < key->text.length && !odd; i++)
        odd = (unsigned char)key->text.bytes[i] < 0x20 || key->text.bytes[i] == 0x7f;
    if (odd)
        die("%s: key \"%s\" of the state_dict (byte %u of %s) is no name of a tensor: the file is damaged", file->path,
            pickle_printable(pickle, key), key->at, pickle->part);
    pth_take(file, key->text.length + (uint64_t)64, "the names of the tensors");
    return arena_printf(file->arena, "%.*s", (int)key->text.length, key->text.bytes);
}

/* The tensors of a dict, with their shapes but not yet their data; the other keys are noted. */
static void collect(StateDict *state, Placement **placements, PthFile *file, const Pickle *pickle,
                    const PickleValue *dict) {
    if (dict->items.count > INT_MAX)
        die("%s: holds %u tensors, expected fewer than 2^31", file->path, dict->items.count);
    pth_take(file, dict->items.count * (uint64_t)(sizeof(Tensor) + sizeof(Placement)), "the list of tensors");
    state->tensors = ARENA_ARRAY(file->arena, Tensor, dict->items.count, file->path);
    state->skipped = ARENA_ARRAY(file->arena, Skipped, STATE_SKIPPED_MAX, file->path);
    *placements = ARENA_ARRAY(file->arena, Placement, dict->items.count, file->path);
    for (uint32_t i = dict->items.first; i; i = pickle->items[i].next) {
        const PickleValue *key = pickle_value(pickle, pickle->items[i].key);
        const PickleValue *value = pickle_value(pickle, pickle->items[i].value);
        if (key->kind != PICKLE_TEXT)
            continue;
        const PickleValue *arguments = pth_tensor_arguments(pickle, value);
        if (arguments) {
            tensor_parse(&state->tensors[state->count], &(*placements)[state->count], file, pickle, arguments,
                         tensor_name(file, pickle, key));
            state->count++;
        } else if (state->skipped_count < STATE_SKIPPED_MAX) {
            state->skipped[state->skipped_count++] =
                (Skipped){.name = pickle_printable(pickle, key), .what = pth_describe(pickle, value)};
        }
    }
}

static int64_t integer(const PickleValue *value, const PthFile *file, const char *name, const char *what) {
    if (value->kind != PICKLE_INT || value->integer < 0)
        die("%s: tensor %s has %s %s, expected an integer of at least 0: the file is damaged", file->path, name,
            value->kind == PICKLE_INT ? "a negative" : pickle_kind_name(value->kind),
            value->kind == PICKLE_INT ? what : arena_printf(file->arena, "as its %s", what));
    return value->integer;
}

/* arguments: (storage, offset, size, stride, ...) */
static void tensor_parse(Tensor *tensor, Placement *placement, PthFile *file, const Pickle *pickle,
                         const PickleValue *arguments, const char *name) {
    const PickleValue *size = pickle_item(pickle, arguments, 2), *stride = pickle_item(pickle, arguments, 3);
    placement->persistent = pickle_item(pickle, arguments, 0);
    if (placement->persistent->kind != PICKLE_PERSISTENT || size->kind != PICKLE_TUPLE ||
        stride->kind != PICKLE_TUPLE || stride->items.count != size->items.count)
        die("%s: tensor %s is not described by a storage, an offset, a size and strides: the file is damaged",
            file->path, name);
    if (size->items.count > STATE_RANK_MAX)
        die("%s: tensor %s has %u dimensions, expected at most %d", file->path, name, size->items.count,
            STATE_RANK_MAX);
    *tensor = (Tensor){.name = name, .rank = (int)size->items.count, .size = 1};
    placement->offset = integer(pickle_item(pickle, arguments, 1), file, name, "offset");
    bool empty = false, huge = false;
    for (int d = 0; d < tensor->rank; d++) {
        tensor->shape[d] = integer(pickle_item(pickle, size, (uint32_t)d), file, name, "size");
        placement->stride[d] = integer(pickle_item(pickle, stride, (uint32_t)d), file, name, "stride");
        if (tensor->shape[d] <= 1)
            placement->stride[d] = 0; /* never stepped: may be anything in the file */
        empty |= tensor->shape[d] == 0;
        huge |= __builtin_mul_overflow(tensor->size, tensor->shape[d], &tensor->size);
    }
    if (empty)
        tensor->size = 0;
    else if (huge)
        die("%s: tensor %s has more than 2^63 elements: the file is damaged", file->path, name);
}

/* Whether an element of the storage may belong to two of the tensor: each stride must step over all that the smaller
 * ones reach. */
static bool overlaps(const Tensor *tensor, const Placement *placement) {
    bool seen[STATE_RANK_MAX] = {false};
    int64_t reach = 0;
    for (int step = 0; step < tensor->rank; step++) {
        int least = -1;
        for (int d = 0; d < tensor->rank; d++)
            if (!seen[d] && (least < 0 || placement->stride[d] < placement->stride[least]))
                least = d;
        seen[least] = true;
        if (tensor->shape[least] > 1 && placement->stride[least] <= reach)
            return true;
        reach += (tensor->shape[least] - 1) * placement->stride[least];
    }
    return false;
}

static bool is_contiguous(const Tensor *tensor, const Placement *placement) {
    int64_t expected = 1;
    for (int d = tensor->rank; d-- > 0; expected *= tensor->shape[d])
        if (tensor->shape[d] != 1 && placement->stride[d] != expected)
            return false;
    return true;
}

static void gather(uint8_t *out, const Tensor *tensor, const Placement *placement, const Storage *storage) {
    int64_t index[STATE_RANK_MAX] = {0}, at = placement->offset;
    size_t bytes = storage->type->bytes;
    for (int64_t i = 0; i < tensor->size; i++) {
        memcpy(out + (size_t)i * bytes, storage->data + (size_t)at * bytes, bytes);
        for (int d = tensor->rank; d-- > 0;) {
            at += placement->stride[d];
            if (++index[d] < tensor->shape[d])
                break;
            at -= index[d] * placement->stride[d];
            index[d] = 0;
        }
    }
}

static void tensor_place(Tensor *tensor, const Placement *placement, const Storage *storage, PthFile *file) {
    int64_t last = placement->offset;
    bool beyond = false;
    for (int d = 0; d < tensor->rank && tensor->size > 0; d++) {
        int64_t reach;
        beyond |= __builtin_mul_overflow(tensor->shape[d] - 1, placement->stride[d], &reach) ||
                  __builtin_add_overflow(last, reach, &last);
    }
    if (tensor->size > 0 && (beyond || last >= storage->numel))
        die("%s: tensor %s reaches beyond its storage of %lld elements: the file is damaged", file->path, tensor->name,
            (long long)storage->numel);
    if (tensor->size > storage->numel)
        die("%s: tensor %s has %lld elements in a storage of %lld (an expanded tensor): save it after .contiguous()",
            file->path, tensor->name, (long long)tensor->size, (long long)storage->numel);
    if (tensor->size > 0 && overlaps(tensor, placement))
        die("%s: tensor %s uses elements of its storage more than once (an expanded tensor): save it after "
            ".contiguous()",
            file->path, tensor->name);
    if (tensor->size == 0) {
        tensor->data = storage->data;
    } else if (is_contiguous(tensor, placement)) {
        tensor->data = storage->data + (size_t)placement->offset * storage->type->bytes;
    } else {
        pth_take(file, (uint64_t)tensor->size * storage->type->bytes, "a tensor that is not contiguous");
        uint8_t *data = arena_alloc(file->arena, (uint64_t)tensor->size, storage->type->bytes, tensor->name);
        gather(data, tensor, placement, storage);
        tensor->data = data;
    }
}
