/* dataset_result.c: what is in a results file of this program, for who reads one again: names of variables, numbers among
 * their attributes. The arrays themselves are read as any other's. */
#include <math.h>
#include <netcdf.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dataset_format.h"

static void check(int nc, const char *path, int code) {
    if (code == NC_NOERR)
        return;
    nc_close(nc);
    die("%s: cannot be read (%s); is the file damaged?", path, nc_strerror(code));
}

static int open_result(const char *path) {
    static const unsigned char hdf5[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    unsigned char magic[sizeof hdf5] = {0};
    uint64_t size;
    const int fd = dataset_file_open(path, &size);
    const int64_t got = dataset_file_read(fd, magic, sizeof magic, 0);
    close(fd);
    if (got != (int64_t)sizeof magic || memcmp(magic, hdf5, sizeof magic) != 0)
        die("%s: is no netCDF-4 file, expected a results file of cnnscope with a t-SNE map in it", path);
    setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0); /* as dataset_netcdf.c */
    int nc;
    const int code = nc_open(path, NC_NOWRITE, &nc);
    if (code != NC_NOERR)
        die("%s: is a truncated or damaged netCDF file (%s); copy it again", path, nc_strerror(code));
    return nc;
}

/* False: there is no such text, or it is longer than that. */
static bool take_text(int nc, const char *name, char *text, size_t size) {
    nc_type type;
    size_t length;
    memset(text, 0, size);
    return nc_inq_att(nc, NC_GLOBAL, name, &type, &length) == NC_NOERR && type == NC_CHAR && length < size &&
           nc_get_att_text(nc, NC_GLOBAL, name, text) == NC_NOERR;
}

const char **dataset_result_names(Arena *arena, const char *path, int *count) {
    const int nc = open_result(path);
    char text[NC_MAX_NAME + 1] = "";
    if (!take_text(nc, "status", text, sizeof text) || strcmp(text, "complete") != 0) {
        nc_close(nc);
        die("%s: is no finished results file of cnnscope (it does not say status = \"complete\"), expected one with a "
            "t-SNE map in it",
            path);
    }
    check(nc, path, nc_inq_nvars(nc, count));
    const char **names = ARENA_ARRAY(arena, const char *, *count, path);
    for (int i = 0; i < *count; i++) {
        check(nc, path, nc_inq_varname(nc, i, text));
        names[i] = arena_printf(arena, "%s", text);
    }
    nc_close(nc);
    return names;
}

double dataset_result_number(const char *path, const char *variable, const char *attribute) {
    const int nc = open_result(path);
    int id;
    nc_type type = NC_NAT;
    size_t length = 0;
    double value = NAN;
    if (nc_inq_varid(nc, variable, &id) != NC_NOERR || nc_inq_att(nc, id, attribute, &type, &length) != NC_NOERR ||
        type == NC_CHAR || length != 1 || nc_get_att_double(nc, id, attribute, &value) != NC_NOERR)
        value = NAN;
    nc_close(nc);
    return value;
}

bool dataset_result_says(const char *path, const char *name, const char *text) {
    char found[256];
    const int nc = open_result(path);
    const bool there = take_text(nc, name, found, sizeof found);
    nc_close(nc);
    return there && strcmp(found, text) == 0;
}
