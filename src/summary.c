/* summary.c: see summary.h.
 *
 * Sums are of whole numbers, values in units of 2^-80 and squares in units of 2^-60, 128 bits wide: exact, so that no
 * number of ranks, threads or rounds changes a bit. A variance is rounded once, at the end. 32 bytes a cell of each
 * category's map, two additions a cell of each sample. */
#include "summary.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "comm.h"
#include "error.h"
#include "watchdog.h"

__extension__ typedef __int128 Wide;
__extension__ typedef unsigned __int128 WideBits;

enum { VALUE_BITS = 80, SQUARE_BITS = 60, LIMBS = 4, BLOCK = 128 };
enum { VALUES, SQUARES, KINDS };
enum { WRONG, RIGHT };
static const double MOST = 0x1p20; /* of a value: sums of 2^26 samples fit */

struct Summary {
    Job *job;
    const Attribution *attribution;
    Arena *arena;
    int64_t categories;
    bool judged;                /* there are labels */
    int variables[LIST_MAX][4]; /* per method: mean, variance, means of the wrong and of the right */
    int count_variable;
    int64_t *counts; /* (categories) samples */
    int64_t judged_counts[2];
    int64_t cells[LIST_MAX];     /* of a map */
    Wide *sums[LIST_MAX][KINDS]; /* (categories, cells) */
    Wide *judged_sums[LIST_MAX]; /* (2, cells) */
};

/* ---- The file --------------------------------------------------------------------------------------------------- */

static int declare(const Summary *s, const Method *method, const char *suffix, const char *what, bool by_category) {
    char name[192], words[320], y[128], x[128];
    attribution_dimensions(y, x, s->attribution, method);
    snprintf(name, sizeof name, "%s_%s", method->variable, suffix);
    snprintf(words, sizeof words, what, method->variable);
    const bool deep = method->map[0] > 1;
    OutputVar var = {.name = name, .type = DT_F32, .long_name = words};
    const struct {
        bool there;
        const char *dim;
        int64_t length;
    } dims[] = {{by_category, "summary_category", s->categories},
                {deep, "channel", method->map[0]},
                {true, y, method->map[1]},
                {true, x, method->map[2]}};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        if (dims[d].there) {
            var.dims[var.rank] = dims[d].dim;
            var.length[var.rank++] = dims[d].length;
        }
    return output_var(s->job->output, &var);
}

Summary *summary_new(Arena *arena, Job *job, const Attribution *attribution) {
    Summary *s = ARENA_ARRAY(arena, Summary, 1, "summary");
    *s = (Summary){.job = job,
                   .attribution = attribution,
                   .arena = arena,
                   .categories = job->categories,
                   .judged = job->labels != NULL};
    for (int m = 0; m < attribution->count; m++) {
        const Method *method = &attribution->methods[m];
        s->cells[m] = (int64_t)(method->bytes[0] / sizeof(float));
        s->variables[m][0] =
            declare(s, method, "mean", "mean of %s, before any scaling, of each category's samples", true);
        s->variables[m][1] =
            declare(s, method, "variance", "variance of %s, before any scaling, over each category's samples", true);
        if (s->judged) {
            s->variables[m][2] =
                declare(s, method, "mean_wrong", "mean of %s of the samples whose label is not predicted", false);
            s->variables[m][3] =
                declare(s, method, "mean_right", "mean of %s of the samples whose label is predicted", false);
        }
    }
    s->count_variable =
        output_var(job->output, &(OutputVar){"summary_count",
                                             DT_I64,
                                             1,
                                             {"summary_category"},
                                             {s->categories},
                                             "samples of each category: of that label, and without one of "
                                             "that prediction",
                                             NULL,
                                             NULL});
    return s;
}

double summary_bytes(const Job *job, const Attribution *attribution) {
    double bytes = 0;
    for (int m = 0; m < attribution->count; m++)
        bytes += (double)attribution->methods[m].bytes[0] / sizeof(float) * sizeof(Wide) *
                 (double)(KINDS * job->categories + 2);
    return bytes;
}

/* ---- Sums ------------------------------------------------------------------------------------------------------- */

static void allocate(Summary *s) {
    s->counts = ARENA_ARRAY(s->arena, int64_t, s->categories, "summary");
    for (int m = 0; m < s->attribution->count; m++) {
        for (int k = 0; k < KINDS; k++)
            s->sums[m][k] = ARENA_ARRAY(s->arena, Wide, s->categories * s->cells[m], "summaries of attribution maps");
        s->judged_sums[m] = ARENA_ARRAY(s->arena, Wide, 2 * s->cells[m], "summaries of attribution maps");
    }
}

/* Where a sample's map is added. */
typedef struct {
    int64_t category;
    int judged; /* RIGHT, WRONG; -1: neither */
} Place;

/* x in units of 2^-(high + low), towards 0, by two conversions to 64 bits: |x| < 2^(62 - high), low at most 62. */
static inline Wide wide_of(double x, double high, double low, int low_bits) {
    const int64_t whole = (int64_t)(x * high);
    const int64_t rest = (int64_t)((x * high - (double)whole) * low);
    return (Wide)((WideBits)(Wide)whole << low_bits) + rest;
}

/* Cells [from, to) of one sample. */
static void add_cells(const Summary *s, int m, const float *map, float low, float high, Place place, int64_t from,
                      int64_t to) {
    const int64_t cells = s->cells[m];
    Wide *values = s->sums[m][VALUES] + place.category * cells, *squares = s->sums[m][SQUARES] + place.category * cells;
    Wide *more = place.judged < 0 ? NULL : s->judged_sums[m] + place.judged * cells;
    for (int64_t i = from; i < to; i++) {
        const double v = (double)(low + (high - low) * map[i]); /* as readers of the file do it */
        const Wide value = wide_of(v, 0x1p24, 0x1p56, VALUE_BITS - 24);
        values[i] += value;
        squares[i] += wide_of(v * v, 0x1p20, 0x1p40, SQUARE_BITS - 20);
        if (more)
            more[i] += value;
    }
}

static void check(const Summary *s, int m, const float *map, float low, float high, int64_t sample) {
    bool fits = fabs((double)low) < MOST && fabs((double)high) < MOST;
    for (int64_t i = 0; i < s->cells[m]; i++)
        fits &= fabs((double)map[i]) < MOST; /* not of NaN */
    if (!fits)
        die("%s: %s of sample %lld has values beyond 2^20, too large to be summed up; check --scale, --mean and --std, "
            "or "
            "use --keep maps",
            s->job->options->images, s->attribution->methods[m].variable, (long long)sample);
}

void summary_add(Summary *s, const float *const *maps, const float *const *low, const float *const *high, int64_t at,
                 int64_t count) {
    const Job *job = s->job;
    Arena *arena = arena_new();
    Place *places = ARENA_ARRAY(arena, Place, count, "summary");
    if (!s->counts)
        allocate(s);
    for (int64_t i = 0; i < count; i++) {
        const int32_t label = job->labels ? job->labels[at + i] : -1, prediction = job->predictions[at + i];
        places[i] = (Place){label >= 0 ? label : prediction, label < 0 ? -1 : label == prediction ? RIGHT : WRONG};
        s->counts[places[i].category]++;
        if (places[i].judged >= 0)
            s->judged_counts[places[i].judged]++;
        for (int m = 0; m < s->attribution->count; m++)
            check(s, m, maps[m] + i * s->cells[m], low[m] ? low[m][i] : 0, low[m] ? high[m][i] : 1,
                  job->from + job->shard.first + at + i);
    }
    for (int m = 0; m < s->attribution->count; m++) {
        const int64_t cells = s->cells[m];
#pragma omp parallel for
        for (int64_t from = 0; from < cells; from += BLOCK) /* a block has one owner, who goes through all samples */
            for (int64_t i = 0; i < count; i++)
                add_cells(s, m, maps[m] + i * cells, low[m] ? low[m][i] : 0, low[m] ? high[m][i] : 1, places[i], from,
                          from + BLOCK < cells ? from + BLOCK : cells);
    }
    arena_free(arena);
}

/* ---- All ranks' ------------------------------------------------------------------------------------------------- */

/* sums (cells) <- those of all ranks. Collective. */
static void add_ranks(Wide *sums, int64_t *limbs, int64_t cells) {
    for (int64_t i = 0; i < cells; i++)
        for (int l = 0; l < LIMBS; l++)
            limbs[i * LIMBS + l] =
                l == LIMBS - 1 ? (int64_t)(sums[i] >> 96) : (int64_t)((WideBits)sums[i] >> 32 * l & UINT32_MAX);
    comm_sum_int64(limbs, (size_t)(cells * LIMBS));
    for (int64_t i = 0; i < cells; i++) {
        WideBits sum = 0;
        for (int l = 0; l < LIMBS; l++)
            sum += (WideBits)(Wide)limbs[i * LIMBS + l] << 32 * l;
        sums[i] = (Wide)sum;
    }
    watchdog_tick();
}

/* squares NULL: the means alone. Of no samples: NaN. */
static void finish(float *mean, float *variance, const Wide *values, const Wide *squares, int64_t cells,
                   int64_t count) {
    for (int64_t i = 0; i < cells; i++) {
        const double of = ldexp((double)values[i], -VALUE_BITS) / (double)count;
        mean[i] = count > 0 ? (float)of : NAN;
        if (squares)
            variance[i] =
                count > 0 ? (float)fmax(0, ldexp((double)squares[i], -SQUARE_BITS) / (double)count - of * of) : NAN;
    }
}

void summary_write(Summary *s) {
    const bool first = comm_rank() == 0;
    Output *output = s->job->output;
    int64_t most = 0;
    if (!s->counts) /* a rank without samples */
        allocate(s);
    for (int m = 0; m < s->attribution->count; m++)
        most = s->cells[m] > most ? s->cells[m] : most;
    Arena *arena = arena_new();
    int64_t *limbs = ARENA_ARRAY(arena, int64_t, most * LIMBS, "summary");
    float *mean = ARENA_ARRAY(arena, float, most, "summary"), *variance = ARENA_ARRAY(arena, float, most, "summary");
    comm_sum_int64(s->counts, (size_t)s->categories);
    comm_sum_int64(s->judged_counts, 2);
    output_whole(output, s->count_variable, s->counts);
    for (int m = 0; m < s->attribution->count; m++) {
        const int64_t cells = s->cells[m];
        for (int64_t k = 0; k < s->categories; k++) {
            Wide *values = s->sums[m][VALUES] + k * cells, *squares = s->sums[m][SQUARES] + k * cells;
            add_ranks(values, limbs, cells);
            add_ranks(squares, limbs, cells);
            finish(mean, variance, values, squares, cells, s->counts[k]);
            output_rows(output, s->variables[m][0], first ? k : 0, first, mean);
            output_rows(output, s->variables[m][1], first ? k : 0, first, variance);
        }
        for (int judged = 0; judged < 2 && s->judged; judged++) {
            Wide *values = s->judged_sums[m] + judged * cells;
            add_ranks(values, limbs, cells);
            finish(mean, NULL, values, NULL, cells, s->judged_counts[judged]);
            output_whole(output, s->variables[m][2 + judged], mean);
        }
    }
    arena_free(arena);
}
