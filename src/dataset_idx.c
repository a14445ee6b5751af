/* dataset_idx.c: the IDX format of MNIST and its relatives: two zero bytes, a type, the number of dimensions, each
 * dimension as a big-endian 32-bit number, then the elements, big endian, C order. */
#include <string.h>

#include "dataset_format.h"

static DType idx_type(Dataset *dataset, unsigned char code);

void dataset_idx_open(Dataset *dataset) {
    DatasetSource *source = dataset->source;
    unsigned char head[4], sizes[5][4];
    dataset_bytes_read(dataset, head, 0, sizeof head);
    DType dtype = idx_type(dataset, head[2]);
    size_t element = dtype_bytes(dtype);
    int rank = head[3];
    if (rank < 1 || rank > 5)
        dataset_die(dataset, "is an IDX file of %d dimensions; 1 to 5 are read, the first of them the sample", rank);
    dataset_bytes_read(dataset, sizes, sizeof head, (size_t)rank * sizeof sizes[0]);
    uint64_t extents[5];
    for (int i = 0; i < rank; i++)
        extents[i] =
            (uint64_t)sizes[i][0] << 24 | (uint64_t)sizes[i][1] << 16 | (uint64_t)sizes[i][2] << 8 | sizes[i][3];
    uint64_t bytes = dataset_set_shape(dataset, dtype, element, rank, extents);
    source->offset = sizeof head + (uint64_t)rank * sizeof sizes[0];
    source->swap = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && element > 1;
    dataset_bytes_set_end(dataset, source->offset + bytes);
}

static DType idx_type(Dataset *dataset, unsigned char code) {
    static const struct {
        unsigned char code;
        DType dtype;
    } types[] = {{0x08, DT_U8}, {0x09, DT_I8}, {0x0b, DT_I16}, {0x0c, DT_I32}, {0x0d, DT_F32}, {0x0e, DT_F64}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].code == code)
            return types[i].dtype;
    dataset_die(dataset,
                "begins like an IDX file, but its type is %#04x; expected 0x08 (uint8), 0x09, 0x0b, 0x0c, 0x0d or 0x0e",
                code);
}
