/* pth_find.c: where in a saved object the tensors are. Checkpoints wrap the state_dict in dicts of everything else a
 * training run had at hand; the whole object is never walked (it may have cycles), only the usual keys are looked at.
 * Where there is no state_dict, the message says what there is, and how to save one. */
#include <string.h>

#include "error.h"
#include "pth_parts.h"

enum { PARTS = 16, PART_BYTES = 128 }; /* of a dotted name */
enum { DEPTH = 4, GLOBALS_SHOWN = 20, GLOBALS_SEEN = 1000, KEYS_SHOWN = 8 };

static const char *const usual_keys[] = {"state_dict", "model_state_dict", "model", "model_ema"};
enum { USUAL_KEYS = sizeof usual_keys / sizeof usual_keys[0] };

/* ---- What a value is ------------------------------------------------------------------------------------------- */

const PickleValue *pth_tensor_arguments(const Pickle *pickle, const PickleValue *value) {
    static const char *const rebuild[] = {"_rebuild_tensor", "_rebuild_tensor_v2"};
    static const char *const wrap[] = {"_rebuild_parameter", "_rebuild_parameter_with_state"};
    for (int depth = 0; depth < DEPTH && value->kind == PICKLE_CALL; depth++) {
        const PickleValue *callee = pickle_value(pickle, value->call.callee);
        const PickleValue *arguments = pickle_value(pickle, value->call.arguments);
        if (pickle_is_global(pickle, callee, "torch._tensor", "_rebuild_from_type_v2")) {
            /* (function, type, arguments of function, attributes): a tensor on which someone set attributes */
            callee = pickle_item(pickle, arguments, 0);
            arguments = pickle_item(pickle, arguments, 2);
        }
        for (int i = 0; i < 2; i++)
            if (pickle_is_global(pickle, callee, "torch._utils", rebuild[i]))
                return arguments;
        if (!pickle_is_global(pickle, callee, "torch._utils", wrap[0]) &&
            !pickle_is_global(pickle, callee, "torch._utils", wrap[1]))
            return NULL;
        value = pickle_item(pickle, arguments, 0);
    }
    return NULL;
}

static bool is_module(const Pickle *pickle, const PickleValue *value) {
    if (value->kind != PICKLE_CALL)
        return false;
    const PickleValue *state = pickle_value(pickle, value->call.state);
    return pickle_lookup(pickle, state, "_modules") || pickle_lookup(pickle, state, "_parameters");
}

static bool has_tensors(const Pickle *pickle, const PickleValue *dict) {
    for (uint32_t i = dict->items.first; i; i = pickle->items[i].next)
        if (pickle_value(pickle, pickle->items[i].key)->kind == PICKLE_TEXT &&
            pth_tensor_arguments(pickle, pickle_value(pickle, pickle->items[i].value)))
            return true;
    return false;
}

/* ---- Finding --------------------------------------------------------------------------------------------------- */

static const PickleValue *find(const char **found_under, const Pickle *pickle, const PickleValue *dict, int depth) {
    if (dict->kind != PICKLE_DICT || depth == DEPTH)
        return NULL;
    bool module = false;
    for (int i = 0; i < USUAL_KEYS; i++) {
        const PickleValue *inner = pickle_value(pickle, pickle_lookup(pickle, dict, usual_keys[i]));
        const char *below = "";
        const PickleValue *found = find(&below, pickle, inner, depth + 1);
        if (found) {
            *found_under = *below ? arena_printf(pickle->arena, "%s/%s", usual_keys[i], below) : usual_keys[i];
            return found;
        }
        module |= is_module(pickle, inner);
    }
    return !module && has_tensors(pickle, dict) ? dict : NULL;
}

const PickleValue *pth_find(const char **found_under, PthFile *file, const Pickle *pickle, const PickleValue *root) {
    *found_under = "";
    const PickleValue *found = find(found_under, pickle, root, 0);
    if (!found)
        pth_refuse(file, pickle, root);
    return found;
}

/* ---- Saying what there is instead ----------------------------------------------------------------------------------
 */

/* The global behind a call, through calls of what calls gave; value 0 when there is none. */
static const PickleValue *called_global(const Pickle *pickle, const PickleValue *value) {
    for (int depth = 0; depth < 64 && value->kind == PICKLE_CALL; depth++)
        value = pickle_value(pickle, value->call.callee);
    if (value->kind == PICKLE_PERSISTENT) /* ('module', class, source ...) of the legacy format */
        value = pickle_item(pickle, pickle_value(pickle, value->id), 1);
    return value->kind == PICKLE_GLOBAL ? value : pickle_value(pickle, 0);
}

static bool builds_tensors(const Pickle *pickle, const PickleValue *global) {
    const PickleValue *module = pickle_value(pickle, global->global.module);
    const PickleValue *name = pickle_value(pickle, global->global.name);
    if (pickle_text_is(module, "torch"))
        return pickle_text_is(name, "Tensor") ||
               (name->text.length > 7 && !memcmp(name->text.bytes + name->text.length - 7, "Storage", 7));
    return pickle_is_global(pickle, global, "collections", "OrderedDict") ||
           pickle_is_global(pickle, global, "torch._tensor", "_rebuild_from_type_v2") ||
           (pickle_text_is(module, "torch._utils") && name->text.length > 9 &&
            !memcmp(name->text.bytes, "_rebuild_", 9));
}

const char *pth_describe(const Pickle *pickle, const PickleValue *value) {
    const PickleValue *global = called_global(pickle, value);
    if (global->kind != PICKLE_GLOBAL)
        return arena_printf(pickle->arena, "is %s", pickle_kind_name(value->kind));
    return arena_printf(pickle->arena, "is made by %s (byte %u of %s), which builds no tensor this program can read",
                        pickle_printable(pickle, global), global->at, pickle->part);
}

const char *pth_globals(const Pickle *pickle) {
    const char *all = "", *shown[GLOBALS_SHOWN];
    int count = 0, seen = 0;
    for (uint32_t i = 1; i < pickle->value_count && count < GLOBALS_SHOWN && seen < GLOBALS_SEEN; i++) {
        const PickleValue *value = &pickle->values[i];
        if (value->kind != PICKLE_GLOBAL || builds_tensors(pickle, value))
            continue;
        const char *name = pickle_printable(pickle, value);
        int same = 0;
        seen++;
        while (same < count && strcmp(shown[same], name))
            same++;
        if (same == count) {
            shown[count++] = name;
            all = arena_printf(pickle->arena, "%s%s%s (byte %u)", all, *all ? ", " : "", name, value->at);
        }
    }
    return all;
}

static _Noreturn void refuse_module(const PthFile *file, const Pickle *pickle, const PickleValue *module,
                                    const PickleValue *key) {
    const PickleValue *class = called_global(pickle, module);
    die("%s: found a whole pickled module (%s, byte %u of %s%s%s), expected its state_dict: save it in Python with "
        "torch.save(model.state_dict(), \"model.pth\")",
        file->path, pickle_printable(pickle, class), class->at, pickle->part, key ? ", under key " : "",
        key ? pickle_printable(pickle, key) : "");
}

static _Noreturn void refuse_global(const PthFile *file, const Pickle *pickle, const PickleValue *global, bool called) {
    die("%s: pickle %s %s at byte %u of %s, which builds no tensor (it was not run), and holds no state_dict: expected "
        "a file written by torch.save(model.state_dict(), \"model.pth\")",
        file->path, called ? "calls" : "names", pickle_printable(pickle, global), global->at, pickle->part);
}

static _Noreturn void refuse_dict(const PthFile *file, const Pickle *pickle, const PickleValue *dict) {
    const char *keys = "";
    int shown = 0;
    for (uint32_t i = dict->items.first; i && shown < KEYS_SHOWN; i = pickle->items[i].next, shown++)
        keys = arena_printf(pickle->arena, "%s%s%s", keys, shown ? ", " : "",
                            pickle_printable(pickle, pickle_value(pickle, pickle->items[i].key)));
    die("%s: found a dict of %u keys (%s%s) without tensors, expected a state_dict, bare or under state_dict, "
        "model_state_dict, model or model_ema: save it with torch.save(model.state_dict(), \"model.pth\")",
        file->path, dict->items.count, keys, dict->items.count > KEYS_SHOWN ? ", ..." : "");
}

static bool is_one_of(const char *const *words, const char *word, size_t length) {
    for (; *words; words++)
        if (strlen(*words) == length && !memcmp(*words, word, length))
            return true;
    return false;
}

/* A dotted name that goes through one of these modules, or ends in one of these functions of Python; or one longer than
 * honest ones are. The list protects nobody: nothing is run, whatever its name. It is there so that a file made to attack
 * those who load it in Python is not taken for a model because its weights are sound. */
static bool may_run_commands(const Pickle *pickle, const PickleValue *global) {
    static const char *const modules[] = {"os",        "posix",  "nt",     "pty",     "subprocess", "sys",     "runpy",
                                          "importlib", "shutil", "ctypes", "marshal", "pickle",     "_pickle", NULL};
    static const char *const python[] = {"builtins", "__builtins__", "__builtin__", NULL};
    static const char *const functions[] = {"eval", "exec", "execfile", "compile", "open", "__import__", "apply", NULL};
    const PickleValue *const texts[] = {pickle_value(pickle, global->global.module),
                                        pickle_value(pickle, global->global.name)};
    bool of_python = false;
    int parts = 0;
    for (int t = 0; t < 2; t++) {
        const char *at = texts[t]->text.bytes, *const end = at + texts[t]->text.length;
        for (const char *dot; at <= end; at = dot + 1) {
            dot = memchr(at, '.', (size_t)(end - at));
            dot = dot ? dot : end;
            const size_t length = (size_t)(dot - at);
            const bool last = t == 1 && dot == end;
            if (length > PART_BYTES || ++parts > PARTS ||
                (last ? of_python && is_one_of(functions, at, length) : is_one_of(modules, at, length)))
                return true;
            of_python = is_one_of(python, at, length);
        }
    }
    return false;
}

void pth_refuse_commands(const PthFile *file, const Pickle *pickle) {
    for (uint32_t i = 1; i < pickle->value_count; i++) {
        const PickleValue *global = &pickle->values[i];
        if (global->kind != PICKLE_GLOBAL || !may_run_commands(pickle, global))
            continue;
        bool called = false;
        for (uint32_t k = 1; k < pickle->value_count && !called; k++)
            called = pickle->values[k].kind == PICKLE_CALL && called_global(pickle, &pickle->values[k]) == global;
        die("%s: pickle %s %s at byte %u of %s, which may run commands where it is loaded in Python (here nothing was "
            "run); expected weights alone: ask for them as .safetensors",
            file->path, called ? "calls" : "names", pickle_printable(pickle, global), global->at, pickle->part);
    }
}

void pth_refuse(const PthFile *file, const Pickle *pickle, const PickleValue *root) {
    pth_refuse_commands(file, pickle);
    if (is_module(pickle, root))
        refuse_module(file, pickle, root, NULL);
    if (root->kind == PICKLE_DICT)
        for (uint32_t i = root->items.first; i; i = pickle->items[i].next) {
            const PickleValue *value = pickle_value(pickle, pickle->items[i].value);
            if (is_module(pickle, value))
                refuse_module(file, pickle, value, pickle_value(pickle, pickle->items[i].key));
        }
    if (called_global(pickle, root)->kind == PICKLE_GLOBAL)
        refuse_global(file, pickle, called_global(pickle, root), root->kind == PICKLE_CALL);
    for (int called = 1; called >= 0; called--) /* a call says more than the mention of a global */
        for (uint32_t i = 1; i < pickle->value_count; i++) {
            const PickleValue *global = called_global(pickle, &pickle->values[i]);
            if ((pickle->values[i].kind == PICKLE_CALL) == called && global->kind == PICKLE_GLOBAL &&
                !builds_tensors(pickle, global))
                refuse_global(file, pickle, global, called);
        }
    if (root->kind == PICKLE_DICT)
        refuse_dict(file, pickle, root);
    die("%s: found %s, expected a state_dict: save it with torch.save(model.state_dict(), \"model.pth\")", file->path,
        pickle_kind_name(root->kind));
}
