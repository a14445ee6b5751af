/* dataset_netcdf.c: a variable of a netCDF file, classic or netCDF-4, by the library's serial calls: every rank opens
 * the file for itself and reads its rows.
 *
 * What conventions say about values is obeyed or refused, never passed over: packed variables (scale_factor,
 * add_offset) are refused, _Unsigned is obeyed, a missing value (_FillValue, or the default one of types wider than a
 * byte) is an error that names its sample, except -1, which already means "no label".
 * A truncated netCDF-4 file does not open; classic ones are checked by dataset_classic.c. */
#include <netcdf.h>
#include <stdlib.h>
#include <string.h>

#include "dataset_format.h"

static int find_variable(Dataset *dataset, int *rank);
static DType variable_type(Dataset *dataset, nc_type type);
static void check_packing(Dataset *dataset);
static void find_fill(Dataset *dataset, nc_type type);

static void check(Dataset *dataset, int code) {
    if (code != NC_NOERR)
        dataset_die(dataset, "cannot be read (%s); is the file damaged?", nc_strerror(code));
}

void dataset_netcdf_open(Dataset *dataset, bool classic) {
    DatasetSource *source = dataset->source;
    setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0); /* inputs are only read, and many cluster file systems refuse locks */
    if (classic)
        dataset_classic_check(dataset);
    int rank, dimensions[NC_MAX_VAR_DIMS], code = nc_open(dataset->path, NC_NOWRITE, &source->nc);
    if (code != NC_NOERR) {
        source->nc = -1;
        dataset_die(dataset, "is a truncated or damaged netCDF file (%s); copy it again", nc_strerror(code));
    }
    source->variable = find_variable(dataset, &rank);
    nc_type type;
    check(dataset, nc_inq_var(source->nc, source->variable, NULL, &type, NULL, dimensions, NULL));
    DType dtype = variable_type(dataset, type);
    uint64_t extents[5] = {0};
    for (int i = 0; i < rank && i < 5; i++) {
        size_t length;
        check(dataset, nc_inq_dimlen(source->nc, dimensions[i], &length));
        extents[i] = length;
    }
    uint64_t bytes = dataset_set_shape(dataset, dtype, dtype_bytes(dtype), rank, extents);
    check_packing(dataset);
    find_fill(dataset, type);
    if (!classic)
        dataset_check_ratio(dataset, bytes, source->file_size);
}

void dataset_netcdf_read(Dataset *dataset, void *rows, int64_t first, int64_t count) {
    DatasetSource *source = dataset->source;
    size_t start[5] = {(size_t)first}, counts[5] = {(size_t)count}, element = dtype_bytes(dataset->dtype);
    for (int i = 1; i < dataset->rank; i++)
        counts[i] = (size_t)dataset->shape[i];
    check(dataset, nc_get_vara(source->nc, source->variable, start, counts, rows));
    if (!source->has_fill)
        return;
    int64_t row = dataset_row_size(dataset);
    const unsigned char *value = rows;
    for (int64_t i = 0; i < count * row; i++, value += element)
        if (*value == *source->fill && !memcmp(value, source->fill, element))
            dataset_die(dataset,
                        "sample %lld has a missing value (_FillValue); write a number there, or -1 for no label",
                        (long long)(first + i / row));
}

void dataset_netcdf_close(DatasetSource *source) {
    if (source->nc >= 0)
        nc_close(source->nc);
    source->nc = -1;
}

/* The variable of the key, or the only one that is not a coordinate; dies listing the variables. */
static int find_variable(Dataset *dataset, int *rank) {
    int nc = dataset->source->nc, variable = -1, variables, candidates = 0, only = -1, ignored;
    const char *key = dataset->source->key;
    char list[DATASET_LIST_BYTES] = "", name[NC_MAX_NAME + 1];
    check(dataset, nc_inq_nvars(nc, &variables));
    for (int i = 0; i < variables; i++) {
        check(dataset, nc_inq_varname(nc, i, name));
        check(dataset, nc_inq_varndims(nc, i, rank));
        if (key && !strcmp(name, key))
            variable = i;
        if (*rank > 0 && nc_inq_dimid(nc, name, &ignored) != NC_NOERR) {
            candidates++;
            only = i;
        }
        dataset_list_add(list, name);
    }
    if (key && variable < 0)
        dataset_die(dataset, "has no variable of this name; it holds %s", variables ? list : "none");
    if (!key && candidates != 1)
        dataset_die(dataset, "does not hold just one array; add a name, as %s:VARIABLE (%s)", dataset->path,
                    variables ? list : "it holds none");
    variable = key ? variable : only;
    check(dataset, nc_inq_varndims(nc, variable, rank));
    return variable;
}

static DType variable_type(Dataset *dataset, nc_type type) {
    static const struct {
        nc_type type;
        DType dtype, as_unsigned;
    } types[] = {{NC_BYTE, DT_I8, DT_U8},     {NC_UBYTE, DT_U8, DT_U8},    {NC_SHORT, DT_I16, DT_U16},
                 {NC_USHORT, DT_U16, DT_U16}, {NC_INT, DT_I32, DT_U32},    {NC_UINT, DT_U32, DT_U32},
                 {NC_INT64, DT_I64, DT_U64},  {NC_UINT64, DT_U64, DT_U64}, {NC_FLOAT, DT_F32, DT_F32},
                 {NC_DOUBLE, DT_F64, DT_F64}};
    int nc = dataset->source->nc, variable = dataset->source->variable;
    char text[8] = "", name[NC_MAX_NAME + 1] = "unknown";
    size_t length;
    nc_type kind;
    if (nc_inq_att(nc, variable, "_Unsigned", &kind, &length) == NC_NOERR && kind == NC_CHAR && length < sizeof text)
        check(dataset, nc_get_att_text(nc, variable, "_Unsigned", text));
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].type == type)
            return !strcmp(text, "true") ? types[i].as_unsigned : types[i].dtype;
    nc_inq_type(nc, type, name, NULL);
    dataset_die(dataset, "is of netCDF type %s; expected integers, float or double", name);
}

static void check_packing(Dataset *dataset) {
    static const struct {
        const char *name;
        double neutral;
    } attributes[] = {{"scale_factor", 1}, {"add_offset", 0}};
    for (int i = 0; i < 2; i++) {
        double value;
        size_t length;
        int code = nc_inq_attlen(dataset->source->nc, dataset->source->variable, attributes[i].name, &length);
        if (code == NC_ENOTATT)
            continue;
        if (code != NC_NOERR || length != 1 ||
            nc_get_att_double(dataset->source->nc, dataset->source->variable, attributes[i].name, &value) != NC_NOERR)
            dataset_die(dataset, "has a %s that is not a number", attributes[i].name);
        if (value != attributes[i].neutral)
            dataset_die(dataset, "is packed (%s = %g); write it unpacked, or delete the attribute and give --scale",
                        attributes[i].name, value);
    }
}

static void find_fill(Dataset *dataset, nc_type type) {
    DatasetSource *source = dataset->source;
    static const unsigned char minus_one[8] = {255, 255, 255, 255, 255, 255, 255, 255};
    nc_type kind = NC_NAT;
    size_t length = 0;
    int no_fill = 0;
    if (nc_inq_att(source->nc, source->variable, "_FillValue", &kind, &length) == NC_NOERR) {
        source->has_fill = kind == type && length == 1;
        if (source->has_fill)
            check(dataset, nc_get_att(source->nc, source->variable, "_FillValue", source->fill));
    } else if (type != NC_BYTE && type != NC_UBYTE) {
        check(dataset, nc_inq_var_fill(source->nc, source->variable, &no_fill, source->fill));
        source->has_fill = !no_fill;
    }
    bool is_signed =
        dataset->dtype == DT_I8 || dataset->dtype == DT_I16 || dataset->dtype == DT_I32 || dataset->dtype == DT_I64;
    if (is_signed && !memcmp(source->fill, minus_one, dtype_bytes(dataset->dtype)))
        source->has_fill = false;
}
