/* pth.h: tensors out of a file written by torch.save, executing nothing.
 *
 * Both formats: the zip of PyTorch 1.6 and later (read with libzip) and the legacy stream of pickles. The pickle is
 * run by a machine that knows the opcodes such files use and the globals that build tensors; any other global becomes
 * an inert value, which is skipped where nobody needs it and refused, by name and byte offset, where a tensor does. */
#ifndef CNNSCOPE_PTH_H
#define CNNSCOPE_PTH_H

#include "state.h"

/* bytes: the whole file, which must outlive nothing (all is copied into the arena). path is for messages. A bare
 * tensor, as torch.save(x), is a StateDict of one tensor named "". Dies on anything malformed. */
StateDict *pth_read(Arena *arena, const void *bytes, size_t size, const char *path);

#endif
