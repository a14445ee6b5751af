/* pth_parts.h: between the files of the .pth reader. pth.c makes tensors, pth_find.c finds the state_dict in what the
 * pickle holds, pth_zip.c and pth_legacy.c know the two formats. */
#ifndef CNNSCOPE_PTH_PARTS_H
#define CNNSCOPE_PTH_PARTS_H

#include "pickle.h"
#include "pth.h"

typedef struct {
    Arena *arena;
    const char *path;
    const uint8_t *bytes;
    size_t size;
    size_t memory_left; /* what reading may still take: in all, 3 times the file (itself included) and 64 MiB */
} PthFile;

typedef struct {
    const char *name; /* as in torch.FloatStorage, without "Storage" */
    size_t bytes;
    bool readable; /* has a DType; others are only skipped */
    DType dtype;
} StorageType;

enum { KEY_BYTES = 32 }; /* of a storage: a small number, or in the legacy format an address, in decimal */

typedef struct {
    char key[KEY_BYTES];
    const StorageType *type;
    int64_t numel;
    size_t bytes;
    int tensor;    /* whose storage it is */
    uint8_t *data; /* in the arena, 64-byte aligned */
} Storage;

/* Takes from memory_left; dies, naming `what`, when there is not enough. */
void pth_take(PthFile *file, uint64_t bytes, const char *what);

/* What a PICKLE_PERSISTENT value stands for. False where the element type is unknown, dies on what is malformed. */
bool pth_storage(Storage *storage, PthFile *file, const Pickle *pickle, const PickleValue *persistent);
void pth_key(char key[KEY_BYTES], const PthFile *file, const PickleValue *text);
int pth_compare_keys(const void *a, const void *b); /* of two Storages, for qsort */

/* The two formats: run the pickle of the saved object, then read `count` storages, sorted by key, all different. */
PickleRef pth_zip_pickle(PthFile *file, Pickle *pickle);
void pth_zip_storages(PthFile *file, Storage *storages, int count);
PickleRef pth_legacy_pickle(PthFile *file, Pickle *pickle);
void pth_legacy_storages(PthFile *file, Pickle *pickle, Storage *storages, int count);

/* The dict of tensors in a saved object (a bare one, or under one of the usual keys); dies where there is none, saying
 * what there is instead. *found_under as in StateDict. */
const PickleValue *pth_find(const char **found_under, PthFile *file, const Pickle *pickle, const PickleValue *root);

/* The arguments (storage, offset, size, stride, ...) of a value that is a tensor, or NULL. */
const PickleValue *pth_tensor_arguments(const Pickle *pickle, const PickleValue *value);

/* Dies because nothing in the file is a state_dict: names the global called first, or what the file holds. */
_Noreturn void pth_refuse(const PthFile *file, const Pickle *pickle, const PickleValue *root);

/* Dies where the pickle names what runs commands: nothing of it is run here, but no honest file has it. */
void pth_refuse_commands(const PthFile *file, const Pickle *pickle);

/* "is made by NAME (byte N)" of an object, "is a dict" ... of others; in the arena. */
const char *pth_describe(const Pickle *pickle, const PickleValue *value);

/* Globals that build no tensor, as StateDict.globals. */
const char *pth_globals(const Pickle *pickle);

#endif
