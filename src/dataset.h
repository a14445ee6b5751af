/* dataset.h: arrays in files, as users have them, read by shard.
 *
 * A spec names an array whose first dimension is the sample:
 *     FILE            IDX, IDX.gz (told by magic, not by name), .npy (C order), .pt/.pth holding one bare tensor
 *     FILE.npz:KEY    FILE.nc:VARIABLE    FILE.csv:COLUMN    FILE.pt:KEY
 * uint8, signed and unsigned integers, bool, float16, float32, float64, any byte order the format allows.
 * Only the rows asked for are read where the format can seek (IDX, .npy, stored .npz entries, netCDF); compressed files
 * are decompressed up to the last row asked for, and only those rows kept. */
#ifndef CNNSCOPE_DATASET_H
#define CNNSCOPE_DATASET_H

#include "arena.h"
#include "kernels.h"

typedef struct Dataset {
    const char *spec;             /* for messages */
    const char *path;             /* the file */
    DType dtype;                  /* never DT_BOOL (read as DT_U8) nor DT_BF16 (read as DT_F32) */
    int rank;                     /* 1 to 5 */
    int64_t shape[5];             /* shape[0] samples */
    bool holes;                   /* set after opening: values that are no finite numbers are read as they are */
    struct DatasetSource *source; /* private to dataset.c */
} Dataset;

/* The file of a spec: the longest file name followed by a colon, unless the whole is a file's name (or nothing is). */
const char *dataset_path(Arena *arena, const char *spec);

/* Opens and checks the header; reads no samples (but .csv and .pt are read whole). Dies when the file is not what the
 * spec says: missing, a directory, empty, truncated, of another format, Fortran order, an unknown key (keys listed). */
Dataset *dataset_open(Arena *arena, const char *spec);
void dataset_close(Dataset *dataset);

int64_t dataset_row_size(const Dataset *dataset); /* elements of one sample */
size_t dtype_bytes(DType dtype);
const char *dtype_name(DType dtype); /* "uint8", "float32" ... */

/* rows (count, shape[1:]) in host byte order, in dataset->dtype, from row `first`. Ranges are checked by the caller.
 * Dies on truncated or damaged data, and on NaN or infinity, naming the sample. */
void dataset_read(Dataset *dataset, void *rows, int64_t first, int64_t count);

/* Any dtype to float32 or int64. to_int64 dies where a value is not a whole number, naming spec and row (first + i). */
void dataset_to_float(float *out, const void *in, DType dtype, int64_t count);
void dataset_to_int64(int64_t *out, const void *in, DType dtype, int64_t count, const Dataset *dataset, int64_t first);

/* The lines of a UTF-8 text file (names of categories or samples); dies unless there are `count` (-1: any number). */
char **dataset_names(Arena *arena, const char *path, int64_t count, int64_t *found);

/* A whole file in memory; dies when it is not a readable regular file or is empty. */
void *dataset_file_bytes(Arena *arena, const char *path, size_t *size);

/* Of a results file of this program (dataset_result.c): the names of its variables; dies where it is none, or not finished.
 * A number among the attributes of one of them, NAN where there is none. Whether an attribute of the file is that text. */
const char **dataset_result_names(Arena *arena, const char *path, int *count);
double dataset_result_number(const char *path, const char *variable, const char *attribute);
bool dataset_result_says(const char *path, const char *name, const char *text);

/* SHA-256 of a file, in hexadecimal. */
void dataset_sha256(char hex[65], const char *path);

#endif
