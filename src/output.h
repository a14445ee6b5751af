/* output.h: the results file, netCDF-4, written by all ranks together.
 *
 * Written as FILE.nc.partial; output_finish() sets status = "complete", closes, fsyncs and renames it, so that a killed
 * job never looks finished. Stages declare a variable where they write it. All functions are Collective, are called
 * with the same arguments on every rank (but for rows), and die on failure. */
#ifndef CNNSCOPE_OUTPUT_H
#define CNNSCOPE_OUTPUT_H

#include "kernels.h"

enum { OUTPUT_RANK = 5, OUTPUT_GLOBAL = -1, OUTPUT_CHAR = 1000 /* a type beside those of DType: UTF-8 text */ };

typedef struct Output Output;

typedef struct {
    const char *name; /* may hold '.', which becomes '_' */
    int type;         /* DType (DT_F16 and DT_BF16 are kept as float32, DT_BOOL as uint8), or OUTPUT_CHAR */
    int rank;         /* dimensions; 0 = scalar */
    const char *dims[OUTPUT_RANK]; /* names; defined on first use with the length given, '.' becomes '_' */
    int64_t length[OUTPUT_RANK];
    const char *long_name, *units, *coordinates; /* attributes; NULL = none */
} OutputVar;

/* Refuses an existing file unless overwrite, a folder that cannot be written, and a path.partial that another job is
 * writing (on file systems with locks); then opens path.partial. What a killed job left there is dropped.
 * compress: level 1 to 9 of deflate with shuffle for all but small variables, 0 = none. */
Output *output_create(const char *path, bool overwrite, int compress);

/* Whether a complete results file lies there that says of itself, by output_text(OUTPUT_GLOBAL, name), this value. One rank
 * asks; damaged files and others of that name do not say so. */
bool output_is_there(const char *path, const char *name, const char *value);

/* An output without a file, which takes everything and writes nothing; and the bytes of the variables that were declared in
 * it. For --plan; the second frees it. Not Collective. */
Output *output_count(void);
int64_t output_counted(Output *output);

int output_var(Output *output, const OutputVar *var); /* gives the variable's id */

/* Attributes of a variable, or of the file (var = OUTPUT_GLOBAL). */
void output_text(Output *output, int var, const char *name, const char *value);
void output_double(Output *output, int var, const char *name, double value);
void output_int64(Output *output, int var, const char *name, int64_t value);
void output_int32s(Output *output, int var, const char *name, const int32_t *values, int count);

/* rows [first, first + count) along the first dimension, host, in the variable's type; each rank its own, none twice;
 * count may be 0. */
void output_rows(Output *output, int var, int64_t first, int64_t count, const void *rows);
/* Likewise along the second dimension, of entry `index` of the first. */
void output_rows_of(Output *output, int var, int64_t index, int64_t first, int64_t count, const void *rows);
void output_whole(Output *output, int var, const void *data); /* small; equal on every rank; rank 0 writes it */

/* A layer's name in the file: '.' and other characters that are not letters, digits or '_' become '_'; a name that
 * begins with a digit, or is taken by another meaning, gets the prefix layer_. */
void output_layer_name(char *name, size_t size, const char *layer);

int64_t output_bytes(const Output *output); /* data bytes written so far, all ranks */
void output_flush(Output *output); /* all that was written is on the disk */
void output_finish(Output *output);

#endif
