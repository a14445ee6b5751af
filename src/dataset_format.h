/* dataset_format.h: what the readers of the formats share. Private to dataset*.c.
 *
 * Opening goes in three steps: dataset.c finds the file and tells its format by its first bytes; the format's *_open
 * reads the header and calls dataset_set_shape, which checks every size; then the format proves that the file is long
 * enough for what its header promises. Reading fills the caller's rows piece by piece, in place. */
#ifndef CNNSCOPE_DATASET_FORMAT_H
#define CNNSCOPE_DATASET_FORMAT_H

#include "dataset.h"
#include "error.h"

typedef struct DatasetBytes DatasetBytes;

/* Exactly one of bytes, memory and nc is in use. */
typedef struct DatasetSource {
    Arena *arena;
    const char *key;     /* behind the colon of the spec; NULL when there is none */
    uint64_t file_size;  /* bytes */
    DatasetBytes *bytes; /* IDX, .npy, .npz: the array's file, decompressed */
    uint64_t offset;     /* there, of the first element */
    bool swap;           /* its elements are in the other byte order */
    const void *memory;  /* .csv, .pt: all elements, in the arena */
    int nc, variable;    /* netCDF handles; nc is -1 when not in use */
    bool has_fill;       /* netCDF: this value stands for "missing" */
    unsigned char fill[8];
} DatasetSource;

/* die() with the spec in front, everything open of the dataset closed first. */
_Noreturn void dataset_die(Dataset *dataset, const char *format, ...) PRINTF_LIKE(2, 3);

/* Sets dtype, rank and shape; dies unless rank is 1 to 5, every extent is positive and the whole fits in the address
 * space. Gives the bytes of all elements, each of `element` bytes in the file. */
uint64_t dataset_set_shape(Dataset *dataset, DType dtype, size_t element, int rank, const uint64_t *extents);

/* Dies unless `packed` bytes of deflated data can hold `plain` bytes (deflate shrinks by 1032 at most): a damaged or
 * hostile header must not make callers ask for more memory than the file could ever fill. */
void dataset_check_ratio(Dataset *dataset, uint64_t plain, uint64_t packed);

/* Names for messages, "a, b, c", cut short where there are many. */
enum { DATASET_LIST_BYTES = 512 };
void dataset_list_add(char list[DATASET_LIST_BYTES], const char *name);

/* Opens a file that must be regular, readable and not empty; dies with `path` in front otherwise. */
int dataset_file_open(const char *path, uint64_t *size);
/* Up to `bytes` bytes from `offset`, fewer at the end of the file; -1 with errno set when reading fails. */
int64_t dataset_file_read(int fd, void *out, size_t bytes, uint64_t offset);

/* ---- dataset_bytes.c: one array's file, plain or unpacked on the way ------------------------------------------ */

enum { DATASET_PIECE = 64 << 20 }; /* bytes asked of the system or of a library at once */

void dataset_bytes_open_file(Dataset *dataset);
void dataset_bytes_open_gzip(Dataset *dataset);
void dataset_bytes_open_zip(Dataset *dataset); /* the .npy in a .npz that the key names */
void dataset_bytes_close(DatasetBytes *bytes);

/* Dies unless `bytes` bytes lie at `offset`. Forward reads of packed data go on where the last one ended. */
void dataset_bytes_read(Dataset *dataset, void *out, uint64_t offset, size_t bytes);
/* The header promises that the array's file ends at `end`: dies at once where it is cheap to know that it does not,
 * otherwise in the read that reaches the end. */
void dataset_bytes_set_end(Dataset *dataset, uint64_t end);

/* ---- The formats. Each fills dataset and source, or dies ------------------------------------------------------- */

void dataset_idx_open(Dataset *dataset); /* these two need source->bytes */
void dataset_npy_open(Dataset *dataset);
void dataset_csv_open(Dataset *dataset);
void dataset_pt_open(Dataset *dataset);
bool dataset_zip_is_pt(Dataset *dataset); /* a zip of torch.save, not of numpy.savez */
void dataset_netcdf_open(Dataset *dataset, bool classic);
void dataset_netcdf_read(Dataset *dataset, void *rows, int64_t first, int64_t count);
void dataset_netcdf_close(DatasetSource *source);
void dataset_classic_check(Dataset *dataset); /* dies unless the whole of a CDF-1, CDF-2 or CDF-5 file is there */

/* ---- dataset_values.c ------------------------------------------------------------------------------------------- */

void dataset_swap(void *values, size_t element, int64_t count);            /* byte order, in place */
int64_t dataset_first_bad(const void *values, DType dtype, int64_t count); /* not finite as float32; -1: none */
float dataset_half_to_float(uint16_t half);
double dataset_value(const void *values, DType dtype, int64_t index); /* for messages */

#endif
