/* dataset.c: opens an array by what its file holds, and reads rows of it.
 *
 * Formats are told by their first bytes, so that names do not matter (a gzipped IDX file is often called ".idx" or
 * nothing at all); only .csv has no such mark and goes by its name. A spec is cut at a colon only where the part
 * before it is a file and the whole is not. Reading makes one pass over the rows for byte order and one for values
 * that are not finite, each over pieces that still lie in the cache. See dataset.h and dataset_format.h. */
#include "dataset.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dataset_format.h"

enum { MAGIC_BYTES = 8, CHECK_ELEMENTS = 1 << 16 };

static void open_format(Dataset *dataset, const unsigned char magic[MAGIC_BYTES]);
static void read_elements(Dataset *dataset, void *out, int64_t first, int64_t count);
static void check_elements(Dataset *dataset, const void *values, int64_t first, int64_t count);

Dataset *dataset_open(Arena *arena, const char *spec) {
    Dataset *dataset = ARENA_ARRAY(arena, Dataset, 1, "dataset");
    dataset->source = ARENA_ARRAY(arena, DatasetSource, 1, "dataset");
    dataset->source->arena = arena;
    dataset->source->nc = -1;
    dataset->spec = arena_printf(arena, "%s", spec);
    dataset->path = dataset_path(arena, dataset->spec);
    const size_t end = strlen(dataset->path);
    dataset->source->key = dataset->spec[end] ? dataset->spec + end + 1 : NULL;

    int fd = dataset_file_open(dataset->path, &dataset->source->file_size);
    unsigned char magic[MAGIC_BYTES] = {0};
    int64_t got = dataset_file_read(fd, magic, sizeof magic, 0);
    int error = errno;
    close(fd);
    if (got < 0)
        dataset_die(dataset, "cannot be read: %s", strerror(error));
    open_format(dataset, magic);
    return dataset;
}

const char *dataset_path(Arena *arena, const char *spec) {
    struct stat info;
    char *path = arena_printf(arena, "%s", spec);
    if (stat(spec, &info) == 0)
        return path;
    for (char *colon; (colon = strrchr(path, ':'));) {
        *colon = '\0';
        if (path[0] && stat(path, &info) == 0)
            return path;
    }
    return spec;
}

void dataset_close(Dataset *dataset) {
    if (!dataset)
        return;
    dataset_bytes_close(dataset->source->bytes);
    dataset->source->bytes = NULL;
    dataset_netcdf_close(dataset->source);
}

int64_t dataset_row_size(const Dataset *dataset) {
    int64_t size = 1;
    for (int i = 1; i < dataset->rank; i++)
        size *= dataset->shape[i];
    return size;
}

void dataset_read(Dataset *dataset, void *rows, int64_t first, int64_t count) {
    int64_t row = dataset_row_size(dataset), total = count * row;
    size_t element = dtype_bytes(dataset->dtype);
    bool netcdf = dataset->source->nc >= 0;
    if (netcdf && count > 0)
        dataset_netcdf_read(dataset, rows, first, count);
    for (int64_t done = 0, piece; done < total; done += piece) {
        void *values = (char *)rows + (size_t)done * element;
        piece = total - done < CHECK_ELEMENTS ? total - done : CHECK_ELEMENTS;
        if (!netcdf)
            read_elements(dataset, values, first * row + done, piece);
        if (!dataset->holes)
            check_elements(dataset, values, first * row + done, piece);
    }
}

void dataset_die(Dataset *dataset, const char *format, ...) {
    char message[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    dataset_close(dataset);
    die("%s: %s", dataset->spec, message);
}

uint64_t dataset_set_shape(Dataset *dataset, DType dtype, size_t element, int rank, const uint64_t *extents) {
    if (rank < 1 || rank > 5)
        dataset_die(dataset, "has %d dimensions; 1 to 5 are read, the first of them the sample", rank);
    uint64_t count = 1, bytes;
    for (int i = 0; i < rank; i++) {
        if (extents[i] == 0)
            dataset_die(dataset, "is empty: dimension %d of %d has no entries", i + 1, rank);
        if (__builtin_mul_overflow(count, extents[i], &count) || count > INT64_MAX / 8)
            dataset_die(dataset, "is damaged: its header asks for more elements than any memory holds");
        dataset->shape[i] = (int64_t)extents[i];
    }
    bytes = count * element;
    dataset->dtype = dtype;
    dataset->rank = rank;
    return bytes;
}

void dataset_check_ratio(Dataset *dataset, uint64_t plain, uint64_t packed) {
    if (plain / 1032 > packed + 64)
        dataset_die(dataset,
                    "is damaged: its header asks for %llu bytes of samples, more than %llu packed bytes can hold",
                    (unsigned long long)plain, (unsigned long long)packed);
}

void dataset_list_add(char list[DATASET_LIST_BYTES], const char *name) {
    size_t used = strlen(list);
    if (used > DATASET_LIST_BYTES - 100) {
        if (strcmp(list + used - 3, "..."))
            memcpy(list + used, ", ...", 6);
        return;
    }
    snprintf(list + used, 90, "%s%.80s", used ? ", " : "", name);
}

static void open_format(Dataset *dataset, const unsigned char magic[MAGIC_BYTES]) {
    static const unsigned char hdf5[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    DatasetSource *source = dataset->source;
    const char *end = strrchr(dataset->path, '.');
    unsigned char inner[6] = {0};

    if (!memcmp(magic, "PK\3\4", 4) || !memcmp(magic, "PK\5\6", 4)) {
        if (dataset_zip_is_pt(dataset)) {
            dataset_pt_open(dataset);
        } else {
            dataset_bytes_open_zip(dataset);
            dataset_npy_open(dataset);
        }
        return;
    }
    bool classic = !memcmp(magic, "CDF", 3) && (magic[3] == 1 || magic[3] == 2 || magic[3] == 5);
    if (classic || !memcmp(magic, hdf5, sizeof hdf5)) {
        dataset_netcdf_open(dataset, classic);
        return;
    }
    if (magic[0] == 0x80 && magic[1] >= 2 && magic[1] <= 5) { /* a pickle: torch.save before PyTorch 1.6 */
        dataset_pt_open(dataset);
        return;
    }
    if (end && !strcasecmp(end, ".csv")) {
        dataset_csv_open(dataset);
        return;
    }
    bool gzip = magic[0] == 0x1f && magic[1] == 0x8b;
    if (gzip)
        dataset_bytes_open_gzip(dataset);
    else
        dataset_bytes_open_file(dataset);
    if (source->key)
        dataset_die(dataset, "%s holds one array, which has no name; leave out ':%s'", dataset->path, source->key);
    dataset_bytes_read(dataset, inner, 0, gzip || source->file_size > 6 ? 6 : (size_t)source->file_size);
    if (!memcmp(inner, "\x93NUMPY", 6))
        dataset_npy_open(dataset);
    else if (inner[0] == 0 && inner[1] == 0)
        dataset_idx_open(dataset);
    else
        dataset_die(
            dataset,
            "is none of the formats read (it begins with bytes %02x %02x %02x %02x); expected IDX, IDX.gz, .npy, "
            ".npz:KEY, netCDF FILE.nc:VARIABLE, .pt or FILE.csv:COLUMN",
            inner[0], inner[1], inner[2], inner[3]);
}

static void read_elements(Dataset *dataset, void *out, int64_t first, int64_t count) {
    const DatasetSource *source = dataset->source;
    size_t element = dtype_bytes(dataset->dtype), bytes = (size_t)count * element;
    uint64_t at = (uint64_t)first * element;
    if (source->memory)
        memcpy(out, (const char *)source->memory + at, bytes);
    else
        dataset_bytes_read(dataset, out, source->offset + at, bytes);
    if (source->swap)
        dataset_swap(out, element, count);
}

static void check_elements(Dataset *dataset, const void *values, int64_t first, int64_t count) {
    int64_t bad = dataset_first_bad(values, dataset->dtype, count);
    if (bad < 0)
        return;
    double value = dataset_value(values, dataset->dtype, bad);
    int64_t row = dataset_row_size(dataset);
    dataset_die(dataset, "sample %lld holds %g (its value %lld of %lld); %s", (long long)((first + bad) / row), value,
                (long long)((first + bad) % row), (long long)row,
                isfinite(value) ? "values up to 3.4e38, the largest float32, are read" : "all values must be finite");
}
