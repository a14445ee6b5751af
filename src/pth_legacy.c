/* pth_legacy.c: the format before PyTorch 1.6 (and _use_new_zipfile_serialization=False): five pickles in a row - magic
 * number, protocol, facts about the machine, the object, the list of storage keys - and then, in the list's order, each
 * storage as an int64 number of elements and the elements. There are no checksums: a flipped bit in a weight cannot be
 * seen. The element size of a storage is only in the object's pickle, so all storages it names are looked at, those of
 * an optimizer too. */
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "pth_parts.h"

static const char MAGIC[10] = {0x6c, (char)0xfc, (char)0x9c, 0x46, (char)0xf9, 0x20, 0x6a, (char)0xa8, 0x50, 0x19};
enum { PROTOCOL = 1001 };

PickleRef pth_legacy_pickle(PthFile *file, Pickle *pickle) {
    pickle_open(pickle, file->arena, file->bytes, file->size, file->path, "the file", &file->memory_left);
    const PickleValue *magic = pickle_value(pickle, pickle_run(pickle));
    if (magic->kind != PICKLE_LONG || magic->text.length != sizeof MAGIC ||
        memcmp(magic->text.bytes, MAGIC, sizeof MAGIC))
        pth_refuse(file, pickle, magic);

    const PickleValue *protocol = pickle_value(pickle, pickle_run(pickle));
    if (protocol->kind != PICKLE_INT || protocol->integer != PROTOCOL)
        die("%s: found another protocol of the legacy .pth format than %d: save it again with a newer PyTorch",
            file->path, PROTOCOL);
    const PickleValue *machine = pickle_value(pickle, pickle_run(pickle));
    const PickleValue *little = pickle_value(pickle, pickle_lookup(pickle, machine, "little_endian"));
    if (little->kind != PICKLE_BOOL || !little->integer)
        die("%s: was not saved on a little-endian machine: save it again on one", file->path);
    return pickle_run(pickle);
}

/* All storages the pickle names, sorted by key, each once; those of unknown element type are left out. */
static Storage *all_storages(size_t *count, PthFile *file, const Pickle *pickle) {
    size_t room = 0, kept = 0, found = 0;
    for (uint32_t i = 1; i < pickle->value_count; i++)
        room += pickle->values[i].kind == PICKLE_PERSISTENT;
    pth_take(file, room * sizeof(Storage), "the list of storages");
    Storage *all = ARENA_ARRAY(file->arena, Storage, room, file->path);
    for (uint32_t i = 1; i < pickle->value_count; i++)
        if (pickle->values[i].kind == PICKLE_PERSISTENT && pth_storage(&all[found], file, pickle, &pickle->values[i]))
            found++;
    if (found)
        qsort(all, found, sizeof *all, pth_compare_keys);
    for (size_t i = 0; i < found; i++)
        if (i == 0 || pth_compare_keys(&all[kept - 1], &all[i]))
            all[kept++] = all[i];
        else if (all[i].bytes != all[kept - 1].bytes)
            die("%s: storage %s is described twice, with %zu and %zu bytes: the file is damaged", file->path,
                all[i].key, all[kept - 1].bytes, all[i].bytes);
    *count = kept;
    return all;
}

/* The bytes of one storage, from *at on, and *at after it. */
static const uint8_t *next_storage(size_t *at, const PthFile *file, const Storage *storage) {
    int64_t numel;
    size_t left = file->size - *at;
    if (left < sizeof numel || left - sizeof numel < storage->bytes)
        die("%s: ends at byte %zu, inside storage %s: the file is truncated", file->path, file->size, storage->key);
    memcpy(&numel, file->bytes + *at, sizeof numel);
    if (numel != storage->numel)
        die("%s: storage %s has %lld elements at byte %zu, expected %lld: the file is damaged", file->path,
            storage->key, (long long)numel, *at, (long long)storage->numel);
    const uint8_t *bytes = file->bytes + *at + sizeof numel;
    *at += sizeof numel + storage->bytes;
    return bytes;
}

static void copy(Storage *storage, PthFile *file, const uint8_t *bytes) {
    if (storage->data)
        die("%s: storage %s is listed twice: the file is damaged", file->path, storage->key);
    pth_take(file, storage->bytes, "a storage");
    storage->data = arena_alloc(file->arena, storage->bytes ? storage->bytes : 1, 1, file->path);
    memcpy(storage->data, bytes, storage->bytes);
}

void pth_legacy_storages(PthFile *file, Pickle *pickle, Storage *storages, int count) {
    size_t all_count;
    const Storage *all = all_storages(&all_count, file, pickle);
    const PickleValue *keys = pickle_value(pickle, pickle_run(pickle));
    pth_refuse_commands(file, pickle);
    if (keys->kind != PICKLE_LIST)
        die("%s: found %s before byte %zu, expected the list of storages: the file is damaged", file->path,
            pickle_kind_name(keys->kind), pickle->at);
    size_t at = pickle->at;
    for (uint32_t i = keys->items.first; i; i = pickle->items[i].next) {
        Storage wanted;
        pth_key(wanted.key, file, pickle_value(pickle, pickle->items[i].value));
        const Storage *listed = bsearch(&wanted, all, all_count, sizeof *all, pth_compare_keys);
        if (!listed)
            die("%s: storage %s is listed, but no tensor of a known type has it: the file is damaged", file->path,
                wanted.key);
        const uint8_t *bytes = next_storage(&at, file, listed);
        Storage *needed = bsearch(&wanted, storages, (size_t)count, sizeof *storages, pth_compare_keys);
        if (needed)
            copy(needed, file, bytes);
    }
    for (int i = 0; i < count; i++)
        if (!storages[i].data)
            die("%s: storage %s is not in the list of storages: the file is damaged", file->path, storages[i].key);
    if (at != file->size)
        die("%s: has %zu bytes after its last storage: the file is damaged", file->path, file->size - at);
}
