/* dataset_csv.c: one column of a table of comma-separated values, as int64; made for labels.
 *
 * The first line names the columns. Fields may be quoted ("" is a quote within quotes), blanks around them do not
 * count, lines may end in CR LF, a byte order mark is skipped. Everything else is refused with its line number: a table
 * that is guessed at gives labels that are wrong. Read whole, 8 bytes kept per line. */
#include <string.h>

#include "dataset_format.h"

typedef struct {
    Dataset *dataset;
    char *at, *end; /* *end is a zero byte */
    int64_t line;   /* of `at`, from 1 */
} Table;

static int find_column(Table *table, int *columns);
static int64_t parse_whole(const Table *table, int64_t line, const char *text);
static bool next_field(Table *table, char **text);

void dataset_csv_open(Dataset *dataset) {
    DatasetSource *source = dataset->source;
    size_t size;
    Table table = {.dataset = dataset, .line = 1};
    table.at = dataset_file_bytes(source->arena, dataset->path, &size);
    table.end = table.at + size;
    if (memchr(table.at, 0, size))
        dataset_die(dataset, "is not a text file (it has zero bytes); save it as UTF-8");
    if (!strncmp(table.at, "\xef\xbb\xbf", 3))
        table.at += 3;
    while (table.end > table.at && strchr(" \t\r\n", table.end[-1]))
        *--table.end = '\0';

    uint64_t lines = 0;
    for (const char *at = table.at; at; at = strchr(at, '\n'), at = at ? at + 1 : NULL)
        lines++;
    int64_t *values = ARENA_ARRAY(source->arena, int64_t, lines, dataset->spec);
    int columns, column = find_column(&table, &columns);
    uint64_t rows = 0;
    while (table.at < table.end) {
        int64_t line = table.line;
        int count = 0;
        char *text, *wanted = NULL;
        bool more;
        do {
            more = next_field(&table, &text);
            if (count++ == column)
                wanted = text;
        } while (more);
        if (count != columns)
            dataset_die(dataset, "line %lld has %d fields, the first line has %d", (long long)line, count, columns);
        values[rows++] = parse_whole(&table, line, wanted);
    }
    if (rows == 0)
        dataset_die(dataset, "has no rows below the line that names the columns");
    dataset_set_shape(dataset, DT_I64, sizeof(int64_t), 1, &rows);
    source->memory = values;
}

/* Reads the first line: the index of the key's column, or of the only one, and how many there are. */
static int find_column(Table *table, int *columns) {
    const char *key = table->dataset->source->key;
    char list[DATASET_LIST_BYTES] = "", *text;
    int found = -1, matches = 0;
    bool more;
    *columns = 0;
    do {
        more = next_field(table, &text);
        dataset_list_add(list, text);
        if (key && !strcmp(key, text)) {
            found = *columns;
            matches++;
        }
        ++*columns;
    } while (more);
    if (!key && *columns > 1)
        dataset_die(table->dataset, "has several columns; add one of their names, as %s:COLUMN (%s)",
                    table->dataset->path, list);
    if (key && matches == 0)
        dataset_die(table->dataset, "has no column of this name; its first line names %s", list);
    if (matches > 1)
        dataset_die(table->dataset, "has %d columns of this name; rename them", matches);
    return key ? found : 0;
}

static int64_t parse_whole(const Table *table, int64_t line, const char *text) {
    const char *digit = text + (*text == '-' || *text == '+');
    int64_t value = 0;
    bool whole = *digit != '\0';
    for (; whole && *digit; digit++)
        whole = *digit >= '0' && *digit <= '9' && !__builtin_mul_overflow(value, 10, &value) &&
                !(*text == '-' ? __builtin_sub_overflow(value, *digit - '0', &value)
                               : __builtin_add_overflow(value, *digit - '0', &value));
    if (!whole && !*text)
        dataset_die(table->dataset, "line %lld has no value; write -1 where there is no label", (long long)line);
    if (!whole)
        dataset_die(table->dataset, "line %lld has '%.60s'; expected a whole number", (long long)line, text);
    return value;
}

/* The next field, its blanks and quotes taken off, ended by a zero in place; true when its line has more fields. */
static bool next_field(Table *table, char **text) {
    char *at = table->at + strspn(table->at, " \t\r"), *stop;
    *text = stop = at;
    if (*at == '"') {
        int64_t line = table->line;
        *text = stop = ++at;
        for (; *at != '"' || at[1] == '"'; at++) {
            if (at >= table->end)
                dataset_die(table->dataset, "line %lld has a quote that is never closed", (long long)line);
            table->line += *at == '\n';
            at += *at == '"';
            *stop++ = *at;
        }
        at++;
        at += strspn(at, " \t\r");
        if (*at && *at != ',' && *at != '\n')
            dataset_die(table->dataset, "line %lld has text behind a closing quote", (long long)table->line);
    } else {
        at += strcspn(at, ",\n");
        stop = at;
        while (stop > *text && strchr(" \t\r", stop[-1]))
            stop--;
    }
    bool more = *at == ',';
    table->line += *at == '\n';
    table->at = *at ? at + 1 : at;
    *stop = '\0';
    return more;
}
