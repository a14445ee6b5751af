/* state.c: which reader a file of weights wants, and what both do with names. See state.h. */
#include "state.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "pth.h"

StateDict *state_read(Arena *arena, const void *bytes, size_t size, const char *path) {
    return safetensors_is(bytes, size, path) ? safetensors_read(arena, bytes, size, path)
                                             : pth_read(arena, bytes, size, path);
}

const Tensor *state_find(const StateDict *state, const char *name) {
    for (int i = 0; i < state->count; i++)
        if (!strcmp(state->tensors[i].name, name))
            return &state->tensors[i];
    return NULL;
}

const char *state_why_not(const StateDict *state, const char *name) {
    size_t skip = strlen(state->prefix);
    for (int i = 0; i < state->skipped_count; i++) {
        const char *key = state->skipped[i].name;
        if (!strcmp(key, name) || (!strncmp(key, state->prefix, skip) && !strcmp(key + skip, name)))
            return state->skipped[i].what;
    }
    return "is missing";
}

/* Wrappers put a word before every name; torch.optim's AveragedModel adds one name of its own. */
static bool all_begin(const StateDict *state, const char *prefix) {
    size_t length = strlen(prefix);
    int found = 0;
    for (int i = 0; i < state->count; i++) {
        if (!strncmp(state->tensors[i].name, prefix, length))
            found++;
        else if (strcmp(state->tensors[i].name, "n_averaged"))
            return false;
    }
    return found > 0;
}

static void strip_prefixes(StateDict *state, Arena *arena) {
    static const char *const prefixes[] = {"module.", "model.", "_orig_mod."};
    for (int p = 0; p < 3; p++) {
        if (!all_begin(state, prefixes[p]))
            continue;
        for (int i = 0; i < state->count; i++)
            if (!strncmp(state->tensors[i].name, prefixes[p], strlen(prefixes[p])))
                state->tensors[i].name += strlen(prefixes[p]);
        state->prefix = arena_printf(arena, "%s%s", state->prefix, prefixes[p]);
        p = -1; /* from the first again: wrappers nest in any order */
    }
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void state_settle(StateDict *state, Arena *arena) {
    strip_prefixes(state, arena);
    const char **names = ARENA_ARRAY(arena, const char *, state->count, state->path);
    for (int i = 0; i < state->count; i++)
        names[i] = state->tensors[i].name;
    if (state->count)
        qsort(names, (size_t)state->count, sizeof *names, compare_names);
    for (int i = 1; i < state->count; i++)
        if (!strcmp(names[i - 1], names[i]))
            die("%s: tensor %s is there twice: the file is damaged or made to mislead", state->path, names[i]);
}
