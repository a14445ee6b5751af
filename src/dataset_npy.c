/* dataset_npy.c: the header of numpy's .npy format, versions 1 to 3.
 *
 * The header is a Python dictionary as text: {'descr': '<f4', 'fortran_order': False, 'shape': (10000, 28, 28), }.
 * It is read by a small parser of just such dictionaries, which evaluates nothing. Elements of Python objects would be
 * a pickle: refused, as are structured and complex types; Fortran order is refused because samples do not lie in one
 * piece in it. */
#include <string.h>

#include "dataset_format.h"

enum { HEADER_BYTES = 65536, MAX_RANK = 64 };

typedef struct {
    Dataset *dataset;
    const char *at; /* ends with a zero byte */
    char descr[32];
    bool fortran;
    int rank;
    uint64_t extents[MAX_RANK];
} Header;

static uint64_t read_header(Dataset *dataset, char *text);
static void parse_header(Header *header);
static void parse_descr(Header *header);
static void parse_shape(Header *header);
static bool parse_token(Header *header, const char *token);
static void expect_token(Header *header, const char *token);
static DType npy_type(Dataset *dataset, const char *descr, size_t *element, bool *swap);

void dataset_npy_open(Dataset *dataset) {
    DatasetSource *source = dataset->source;
    char *text = ARENA_ARRAY(source->arena, char, HEADER_BYTES + 1, dataset->spec);
    source->offset = read_header(dataset, text);
    Header header = {.dataset = dataset, .at = text};
    parse_header(&header);

    size_t element;
    DType dtype = npy_type(dataset, header.descr, &element, &source->swap);
    if (header.fortran && header.rank > 1)
        dataset_die(dataset,
                    "is in Fortran order, samples in pieces; save it with np.save(FILE, np.ascontiguousarray(a))");
    uint64_t bytes = dataset_set_shape(dataset, dtype, element, header.rank, header.extents);
    dataset_bytes_set_end(dataset, source->offset + bytes);
}

/* text (HEADER_BYTES + 1), zero at its end; gives the offset of the elements. */
static uint64_t read_header(Dataset *dataset, char *text) {
    unsigned char head[12];
    dataset_bytes_read(dataset, head, 0, 10);
    int version = head[6];
    if (memcmp(head, "\x93NUMPY", 6))
        dataset_die(dataset, "does not begin as a .npy file; save it again with numpy");
    if (version < 1 || version > 3)
        dataset_die(dataset, "is a .npy file of version %d.%d; versions 1 to 3 are read", version, head[7]);
    uint64_t start = version == 1 ? 10 : 12, length = head[8] | (uint32_t)head[9] << 8;
    if (version > 1) {
        dataset_bytes_read(dataset, head + 10, 10, 2);
        length |= (uint64_t)head[10] << 16 | (uint64_t)head[11] << 24;
    }
    if (length > HEADER_BYTES)
        dataset_die(dataset, "is damaged: its .npy header claims %llu bytes", (unsigned long long)length);
    dataset_bytes_read(dataset, text, start, (size_t)length);
    return start + length;
}

static void parse_header(Header *header) {
    bool descr = false, order = false, shape = false, *seen;
    expect_token(header, "{");
    while (!parse_token(header, "}")) {
        if (parse_token(header, "'descr'")) {
            seen = &descr;
            expect_token(header, ":");
            parse_descr(header);
        } else if (parse_token(header, "'fortran_order'")) {
            seen = &order;
            expect_token(header, ":");
            header->fortran = parse_token(header, "True");
            if (!header->fortran)
                expect_token(header, "False");
        } else {
            seen = &shape;
            expect_token(header, "'shape'");
            expect_token(header, ":");
            parse_shape(header);
        }
        if (*seen)
            dataset_die(header->dataset, "is damaged: its .npy header has a key twice");
        *seen = true;
        if (!parse_token(header, ",")) {
            expect_token(header, "}");
            break;
        }
    }
    if (!descr || !order || !shape)
        dataset_die(header->dataset, "is damaged: its .npy header lacks descr, fortran_order or shape");
}

static void parse_descr(Header *header) {
    if (parse_token(header, "["))
        dataset_die(header->dataset, "holds a structured array; save one of its fields, np.save(FILE, a['FIELD'])");
    expect_token(header, "'");
    size_t length = strcspn(header->at, "'");
    if (header->at[length] != '\'' || length >= sizeof header->descr)
        dataset_die(header->dataset, "is damaged: the type in its .npy header has no end");
    memcpy(header->descr, header->at, length);
    header->at += length + 1;
}

static void parse_shape(Header *header) {
    expect_token(header, "(");
    while (!parse_token(header, ")")) {
        uint64_t extent = 0;
        if (*header->at < '0' || *header->at > '9' || header->rank == MAX_RANK)
            dataset_die(header->dataset, "is damaged: the shape in its .npy header is not a list of numbers");
        for (; *header->at >= '0' && *header->at <= '9'; header->at++)
            if (__builtin_mul_overflow(extent, 10u, &extent) ||
                __builtin_add_overflow(extent, (uint64_t)(*header->at - '0'), &extent))
                dataset_die(header->dataset,
                            "is damaged: its .npy header asks for more elements than any memory holds");
        header->extents[header->rank++] = extent;
        parse_token(header, "L"); /* numpy under Python 2 wrote 28L */
        if (!parse_token(header, ",")) {
            expect_token(header, ")");
            break;
        }
    }
}

/* Steps over the token, and the blanks around it, when it comes next. */
static bool parse_token(Header *header, const char *token) {
    header->at += strspn(header->at, " \t\r\n");
    if (strncmp(header->at, token, strlen(token)))
        return false;
    header->at += strlen(token);
    if (token[0] != '\'' || token[1]) /* within quotes blanks count */
        header->at += strspn(header->at, " \t\r\n");
    return true;
}

static void expect_token(Header *header, const char *token) {
    if (!parse_token(header, token))
        dataset_die(header->dataset, "is damaged: its .npy header has \"%.12s\" where %s was expected", header->at,
                    token);
}

static DType npy_type(Dataset *dataset, const char *descr, size_t *element, bool *swap) {
    static const struct {
        const char *code;
        DType dtype;
    } types[] = {{"b1", DT_U8},  {"u1", DT_U8},  {"i1", DT_I8},  {"u2", DT_U16}, {"i2", DT_I16}, {"u4", DT_U32},
                 {"i4", DT_I32}, {"u8", DT_U64}, {"i8", DT_I64}, {"f2", DT_F16}, {"f4", DT_F32}, {"f8", DT_F64}};
    static const struct {
        char kind;
        const char *name;
    } refused[] = {{'O', "Python objects"}, {'c', "complex numbers"}, {'S', "text"},       {'U', "text"},
                   {'a', "text"},           {'V', "raw records"},     {'M', "date times"}, {'m', "time differences"}};
    const char *code = strchr("<>|=", descr[0]) && descr[0] ? descr + 1 : descr;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (!strcmp(types[i].code, code)) {
            char other = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '>' : '<';
            *element = dtype_bytes(types[i].dtype);
            *swap = *element > 1 && descr[0] == other;
            return types[i].dtype;
        }
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (refused[i].kind == code[0])
            dataset_die(dataset, "holds %s (numpy type %s); expected numbers, as from a.astype(np.float32)",
                        refused[i].name, descr);
    dataset_die(dataset, "has numpy type '%s'; expected bool, integers, float16, float32 or float64", descr);
}
