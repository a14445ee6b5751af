/* dataset_pt.c: a tensor saved by torch.save, alone or in a dictionary. Read whole: pth.c keeps its elements. */
#include <string.h>
#include <zip.h>

#include "dataset_format.h"
#include "pth.h"

static const Tensor *find_tensor(Dataset *dataset, const StateDict *state);

bool dataset_zip_is_pt(Dataset *dataset) {
    zip_t *archive = zip_open(dataset->path, ZIP_RDONLY, NULL);
    bool found = false;
    for (zip_int64_t i = 0, n = archive ? zip_get_num_entries(archive, 0) : 0; i < n && !found; i++) {
        const char *name = zip_get_name(archive, (zip_uint64_t)i, ZIP_FL_ENC_RAW),
                   *end = name ? strrchr(name, '/') : NULL;
        found = name && !strcmp(end ? end + 1 : name, "data.pkl");
    }
    if (archive)
        zip_discard(archive);
    return found;
}

void dataset_pt_open(Dataset *dataset) {
    DatasetSource *source = dataset->source;
    size_t size;
    Arena *whole = arena_new();
    const void *file = dataset_file_bytes(whole, dataset->path, &size);
    const StateDict *state = pth_read(source->arena, file, size, dataset->path);
    arena_free(whole);
    const Tensor *tensor = find_tensor(dataset, state);

    DType dtype = tensor->dtype == DT_BF16 ? DT_F32 : tensor->dtype == DT_BOOL ? DT_U8 : tensor->dtype;
    uint64_t extents[8] = {0};
    for (int i = 0; i < tensor->rank && i < 8; i++)
        extents[i] = (uint64_t)tensor->shape[i];
    dataset_set_shape(dataset, dtype, dtype_bytes(dtype), tensor->rank, extents);
    source->memory = tensor->data;
    if (tensor->dtype == DT_BF16) {
        float *wide = ARENA_ARRAY(source->arena, float, tensor->size, dataset->spec);
        dataset_to_float(wide, tensor->data, DT_BF16, tensor->size);
        source->memory = wide;
    }
}

static const Tensor *find_tensor(Dataset *dataset, const StateDict *state) {
    char list[DATASET_LIST_BYTES] = "";
    for (int i = 0; i < state->count; i++)
        dataset_list_add(list, state->tensors[i].name);
    if (state->count == 0)
        dataset_die(dataset, "holds no tensor; save one with torch.save(x, FILE)");
    const char *key = dataset->source->key;
    const Tensor *tensor = key ? state_find(state, key) : &state->tensors[0];
    if (!tensor && state->count == 1 && !state->tensors[0].name[0])
        dataset_die(dataset, "holds one tensor without a name; leave out ':%s'", key);
    if (!tensor)
        dataset_die(dataset, "has no tensor of this name; it holds %s", list);
    if (!key && state->count > 1)
        dataset_die(dataset, "holds several tensors; add one of their names, as %s:KEY (%s)", dataset->path, list);
    return tensor;
}
