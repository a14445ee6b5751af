/* options.c: the table of options, and what is made of it. See options.h.
 *
 * Every option has one line in the table: its name, the field it sets, its default, which commands know it, whether it
 * can change a result (then it becomes an attribute option_NAME of the results file), and its help. */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

typedef enum {
    KIND_TEXT,
    KIND_FLAG,
    KIND_INT,
    KIND_INT64,
    KIND_DOUBLE,
    KIND_LIST,
    KIND_COUNT /* a flag, or a number behind '=' */
} Kind;

typedef struct {
    const char *name;
    Kind kind;
    size_t field;
    const char *initial; /* as if given; NULL: nothing */
    double least, most;  /* of numbers, inclusive */
    int commands;        /* that know it */
    bool result;         /* can change a result */
    const char *value, *help;
} Row;

#define FIELD(name) offsetof(Options, name)
#define BOTH (COMMAND_RUN | COMMAND_EMBED)
#define ALL (BOTH | COMMAND_AUDIT | COMMAND_PLACE)
#define NETWORK (COMMAND_RUN | COMMAND_PLACE)
#define MATRIX (COMMAND_EMBED | COMMAND_AUDIT | COMMAND_PLACE)

static const Row table[] = {
    {"model", KIND_TEXT, FIELD(model), NULL, 0, 0, NETWORK | COMMAND_INSPECT, false, "FILE",
     "trained network: .onnx, or .pth/.pt/.safetensors weights of the notebook's CNN"},
    {"images", KIND_TEXT, FIELD(images), NULL, 0, 0, BOTH | COMMAND_PLACE, false, "FILE",
     "IDX, IDX.gz, .npy, .npz:KEY or FILE.nc:VARIABLE; (N,H,W) or (N,C,H,W)"},
    {"input", KIND_TEXT, FIELD(input), NULL, 0, 0, MATRIX, false, "FILE",
     "matrix (N,D) to embed: .npy, .npz:KEY, .pt:KEY or FILE.nc:VARIABLE"},
    {"map", KIND_TEXT, FIELD(map), NULL, 0, 0, COMMAND_AUDIT | COMMAND_PLACE, false, "FILE",
     "of `audit`: the map (N,A) of the matrix, by whatever made it; of `place`: a results file"},
    {"labels", KIND_TEXT, FIELD(labels), NULL, 0, 0, ALL, false, "FILE",
     "integers (N), the same formats or FILE.csv:COLUMN; -1 = no label"},
    {"predictions", KIND_TEXT, FIELD(predictions), NULL, 0, 0, COMMAND_EMBED | COMMAND_PLACE, false, "FILE",
     "predicted categories (N), formats as for --labels"},
    {"category-names", KIND_TEXT, FIELD(category_names), NULL, 0, 0, ALL, false, "FILE", "one name a line"},
    {"sample-names", KIND_TEXT, FIELD(sample_names), NULL, 0, 0, ALL, false, "FILE",
     "one name a line, one line a sample of the file"},
    {"output", KIND_TEXT, FIELD(output), NULL, 0, 0, ALL, false, "FILE", "netCDF file to write"},
    {"dot", KIND_TEXT, FIELD(dot), NULL, 0, 0, COMMAND_INSPECT, false, "FILE",
     "of `inspect`: the graph for Graphviz (dot -Tsvg FILE > graph.svg)"},
    {"overwrite", KIND_FLAG, FIELD(overwrite), NULL, 0, 0, ALL | COMMAND_INSPECT, false, NULL,
     "replace an existing file"},
    {"layout", KIND_TEXT, FIELD(layout), "NCHW", 0, 0, BOTH | COMMAND_PLACE, true, "NCHW|NHWC", "order of the images' dimensions"},
    {"scale", KIND_DOUBLE, FIELD(scale), NULL, 0, HUGE_VAL, NETWORK, true, "S",
     "x = (pixel * S - mean) / std; default 1/255 for uint8, 1 for floats"},
    {"mean", KIND_LIST, FIELD(mean), "0", 0, 0, NETWORK, true, "A[,B,C]", "per channel, or one for all"},
    {"std", KIND_LIST, FIELD(std), "1", 0, 0, NETWORK, true, "A[,B,C]", "per channel, or one for all"},
    {"samples", KIND_TEXT, FIELD(samples), "all", 0, 0, ALL, true, "N|A:B|all",
     "the first N, or file positions A to B (without B)"},
    {"logits-node", KIND_TEXT, FIELD(logits_node), NULL, 0, 0, NETWORK, true, "NAME",
     "node of the .onnx file taken as the output; default: its own, before a final softmax"},
    {"embed", KIND_LIST, FIELD(embed), "logits", 0, 0, NETWORK, true, "L[,L...]|all",
     "layers to map by PCA and t-SNE"},
    {"pca", KIND_INT, FIELD(pca), NULL, 0, 4096, BOTH, true, "K", "principal components kept; 0 = none; default 2"},
    {"tsne", KIND_INT, FIELD(tsne), NULL, 0, 3, BOTH, true, "2|3|0",
     "dimensions of the t-SNE map; 0 = none; default 2"},
    {"pre-pca", KIND_INT, FIELD(pre_pca), "50", 0, 4096, BOTH, true, "K",
     "before t-SNE, PCA to K dimensions where a layer is wider; 0 = never"},
    {"tsne-samples", KIND_TEXT, FIELD(tsne_samples_text), "all", 0, 0, BOTH, true, "N|all",
     "t-SNE of a class-stratified subset"},
    {"perplexity", KIND_LIST, FIELD(perplexity_texts), "30", 0, 0, BOTH, true, "P[+Q...][,...]",
     "effective number of neighbours; P,Q: a map of each; P+Q: one map of the mean of both"},
    {"runs", KIND_INT, FIELD(runs), "1", 1, MAPS_MAX, BOTH, true, "M",
     "maps of each perplexity: the first from --init, others from random starts, seeds S + 1, S + 2, ..."},
    {"schedule", KIND_TEXT, FIELD(schedule), "sklearn", 0, 0, BOTH, true, "sklearn|fast",
     "of t-SNE; fast: the same divergence in half the iterations"},
    {"max-iter", KIND_INT, FIELD(max_iter), "1000", 1, 1000000000, BOTH, true, "N",
     "iterations of t-SNE; fast: 500, else"},
    {"early-exaggeration", KIND_DOUBLE, FIELD(early_exaggeration), "12", 1, 1e6, BOTH, true, "F",
     "factor on P in the first iterations"},
    {"exaggeration-iter", KIND_INT, FIELD(exaggeration_iter), "250", 0, 1000000000, BOTH, true, "N",
     "how many iterations those are; fast: 60, else"},
    {"learning-rate", KIND_TEXT, FIELD(learning_rate_text), "auto", 0, 0, BOTH, true, "R|auto",
     "auto = max(N / early exaggeration / 4, 50)"},
    {"init", KIND_TEXT, FIELD(init), "pca", 0, 0, BOTH, true, "pca|random|FILE",
     "start of t-SNE; FILE: (N,2) or (N,3)"},
    {"seed", KIND_INT64, FIELD(seed), "0", 0, 9e15, BOTH, true, "S", "of random starts and subsets"},
    {"neighbors", KIND_INT, FIELD(neighbors), "15", 0, 1000, ALL, true, "K",
     "of each sample, for measures of how far its maps can be trusted; 0 = no measures"},
    {"keep-neighbors", KIND_FLAG, FIELD(keep_neighbors), NULL, 0, 0, ALL, false, NULL,
     "who they are, and their distances, into the file"},
    {"attribution", KIND_LIST, FIELD(attribution), NULL, 0, 0, COMMAND_RUN, true, "M[:L][,...]",
     "saliency (default), gradcam, gradcam:LAYER, integrated_gradients, ...: see Attribution below; none"},
    {"target", KIND_TEXT, FIELD(target), "predicted", 0, 0, COMMAND_RUN, true, "T[:T]",
     "whose logit that looks at: predicted, label, runner-up, a category's number; A:B: A's less B's"},
    {"baseline", KIND_TEXT, FIELD(baseline), "zero", 0, 0, COMMAND_RUN, true, "zero|mean|V|FILE",
     "image to compare with: zero input, mean image, all pixels V, or a file's"},
    {"ig-steps", KIND_INT, FIELD(ig_steps), "50", 1, 10000, COMMAND_RUN, true, "N",
     "points on the path of integrated gradients"},
    {"ig-rule", KIND_TEXT, FIELD(ig_rule), "gausslegendre", 0, 0, COMMAND_RUN, true, "RULE",
     "gausslegendre, riemann_left, riemann_middle or riemann_right"},
    {"ig-tolerance", KIND_DOUBLE, FIELD(ig_tolerance), NULL, 1e-6, 1e9, COMMAND_RUN, true, "T",
     "double the steps, up to 16 times, of samples whose sum misses the logit's difference by more"},
    {"smoothgrad-draws", KIND_INT, FIELD(smoothgrad_draws), "25", 1, 100000, COMMAND_RUN, true, "N",
     "noisy copies of each sample"},
    {"smoothgrad-noise", KIND_DOUBLE, FIELD(smoothgrad_noise), "0.15", 0, 100, COMMAND_RUN, true, "F",
     "its standard deviation, in units of the sample's range"},
    {"occlusion-window", KIND_INT, FIELD(occlusion_window), NULL, 1, 65536, COMMAND_RUN, true, "N",
     "rows and columns hidden at a time; default: a quarter of the shorter side"},
    {"occlusion-stride", KIND_INT, FIELD(occlusion_stride), NULL, 1, 65536, COMMAND_RUN, true, "N",
     "from one window to the next; default: half a window"},
    {"cam-resolution", KIND_TEXT, FIELD(cam_resolution), "layer", 0, 0, COMMAND_RUN, true, "layer|image",
     "of class activation maps; image: bilinear"},
    {"evidence", KIND_LIST, FIELD(evidence), NULL, 0, 0, COMMAND_RUN, true, "E[,...]",
     "for the maps of each sample: deletion, insertion, sparseness, agreement; default: none"},
    {"evidence-steps", KIND_INT, FIELD(evidence_steps), "20", 1, 10000, COMMAND_RUN, true, "N",
     "in which pixels are deleted and inserted"},
    {"feature-maps", KIND_LIST, FIELD(feature_maps), NULL, 0, 0, COMMAND_RUN, true, "L[:A:B][,...]",
     "of file positions A to B, else of the first sample; default: first convolution; none"},
    {"filters", KIND_LIST, FIELD(filters), NULL, 0, 0, COMMAND_RUN, true, "L[,...]",
     "weights of convolutions; default: the first; none"},
    {"keep-maps", KIND_TEXT, FIELD(keep_maps), NULL, 0, 0, COMMAND_RUN, true, "all|chosen|none",
     "images and attribution maps kept; default: all while a variable is under 2 GiB, else chosen"},
    {"batch", KIND_INT, FIELD(batch), "8", 1, 65536, ALL, false, "N", "samples computed together; changes no result"},
    {"threads", KIND_INT, FIELD(threads), NULL, 1, 4096, ALL, false, "N",
     "per rank; default: this node's cores / its ranks"},
    {"compress", KIND_INT, FIELD(compress), "0", 0, 9, ALL, false, "LEVEL",
     "of the output file, 1 to 9 (deflate with shuffle); 0 = none"},
    {"plan", KIND_COUNT, FIELD(plan), NULL, 1, 1000000, BOTH, false, "[=R]",
     "only tell memory, time and size of the run on R ranks (of this job's, without =R)"},
    {"checkpoint", KIND_TEXT, FIELD(checkpoint), NULL, 0, 0, BOTH, false, "DIR",
     "keeps finished work there: after an early end the same command goes on from it"},
    {"checkpoint-interval", KIND_INT, FIELD(checkpoint_interval), "600", 1, 1000000, BOTH, false, "S",
     "seconds between the states of t-SNE kept there"},
    {"max-time", KIND_INT, FIELD(max_time), NULL, 1, 1000000000, BOTH, false, "S",
     "stop after S seconds, with the work in --checkpoint, and exit with status 99"},
    {"watchdog", KIND_INT, FIELD(watchdog), "600", 0, 1000000000, BOTH | COMMAND_PLACE, false, "S",
     "end a job that makes no progress for S seconds; 0 = never"},
    {"quiet", KIND_FLAG, FIELD(quiet), NULL, 0, 0, ALL, false, NULL, "no progress lines"},
};

/* Measured, with momentum and learning rate of src/tsne.c: see README. */
enum { FAST_ITERATIONS = 500, FAST_EXAGGERATION_ITERATIONS = 60 };

enum { ROWS = sizeof table / sizeof table[0], FIRST_CODE = 256 };

static const char usage[] =
    "cnnscope: what did this network learn? Logits, features, saliency, Grad-CAM, PCA and exact t-SNE of a whole test\n"
    "set, as one MPI job, into one netCDF file.\n\n"
    "  mpirun -n R cnnscope --model FILE --images FILE [--labels FILE] --output FILE.nc [options]\n"
    "  mpirun -n R cnnscope embed --input FILE --output FILE.nc [--labels FILE] [options]\n"
    "  mpirun -n R cnnscope audit --input FILE --map FILE --output FILE.nc [--labels FILE] [options]\n"
    "  mpirun -n R cnnscope place --map FILE.nc --model FILE --images FILE | --input FILE  --output FILE.nc [options]\n"
    "  cnnscope inspect --model FILE [--dot FILE.dot]\n"
    "Under Slurm: srun --mpi=pmix in place of mpirun -n R.\n\n"
    "Options (e: of `embed` too; a: of `embed` and `audit` too; capitals: only of these):\n";

/* Their names, in lines. */
static void print_options_of(const char *title, Command command) {
    const int width = 118;
    int used = printf("%s", title);
    for (int i = 0; i < ROWS; i++)
        if (table[i].commands & (int)command) {
            const bool full = used + 3 + (int)strlen(table[i].name) > width;
            used = (full ? 0 : used) + printf("%s --%s", full ? "\n " : "", table[i].name) - full;
        }
    putchar('\n');
}

static void print_help(void) {
    fputs(usage, stdout);
    for (int i = 0; i < ROWS; i++) {
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", table[i].name, table[i].kind == KIND_COUNT ? "" : " ",
                 table[i].value ? table[i].value : "");
        const int commands = table[i].commands, both = COMMAND_EMBED | COMMAND_AUDIT;
        const char mark = (commands & both) == both ? 'a' : commands & COMMAND_EMBED ? 'e' : ' ';
        printf("  %c %-31s %s", commands & COMMAND_RUN ? mark : toupper(mark), left, table[i].help);
        if (table[i].initial)
            printf(" (%s)", table[i].initial);
        putchar('\n');
    }
    puts("    --help, --version");
    print_options_of("Options of `place`:", COMMAND_PLACE);
}

void options_early(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            print_help();
        else if (strcmp(argv[i], "--version") == 0)
            puts("cnnscope " CNNSCOPE_VERSION);
        else
            continue;
        exit(0);
    }
}

bool parse_double(const char *text, double *value) {
    char *end;
    errno = 0;
    *value = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*value);
}

bool parse_int64(const char *text, int64_t *value) {
    char *end;
    errno = 0;
    *value = strtoll(text, &end, 10);
    return end != text && *end == '\0' && errno == 0;
}

static void *copy_or_die(void *copy) {
    if (!copy)
        die("out of memory");
    return copy;
}

static List split(const Row *row, const char *text) {
    List list = {.items = copy_or_die(calloc(LIST_MAX, sizeof(char *)))};
    char *rest = copy_or_die(strdup(text));
    for (char *item; (item = strsep(&rest, ","));) {
        if (item[0] == '\0')
            die_usage("--%s %s: an entry of the list is empty", row->name, text);
        if (list.count == LIST_MAX)
            die_usage("--%s: more than %d entries", row->name, LIST_MAX);
        list.items[list.count++] = item;
    }
    return list;
}

static void set(Options *options, const Row *row, const char *text) {
    void *field = (char *)options + row->field;
    double number = 0;
    int64_t whole = 0;
    bool is_number = row->kind == KIND_DOUBLE;
    switch (row->kind) {
    case KIND_TEXT:
        if (text[0] == '\0')
            die_usage("--%s: the value is empty", row->name);
        *(const char **)field = text;
        return;
    case KIND_FLAG: *(bool *)field = true; return;
    case KIND_LIST: *(List *)field = split(row, text); return;
    case KIND_COUNT:
        if (!text) {
            *(int *)field = PLAN_THESE_RANKS;
            return;
        }
        break;
    case KIND_INT:
    case KIND_INT64:
    case KIND_DOUBLE: break;
    }
    if (is_number ? !parse_double(text, &number) : !parse_int64(text, &whole))
        die_usage("--%s %s: not a %snumber", row->name, text, is_number ? "" : "whole ");
    if (!is_number)
        number = (double)whole;
    if (number < row->least || number > row->most)
        die_usage("--%s %s: expected %g to %g", row->name, text, row->least, row->most);
    if (row->kind == KIND_INT || row->kind == KIND_COUNT)
        *(int *)field = (int)whole;
    else if (row->kind == KIND_INT64)
        *(int64_t *)field = whole;
    else
        *(double *)field = number;
}

/* "all", "N" or "A:B" into a half-open range; to = -1 for all. */
static void parse_range(const char *option, const char *text, int64_t *from, int64_t *to) {
    *from = 0;
    *to = -1;
    if (strcmp(text, "all") == 0)
        return;
    char first[32];
    const char *colon = strchr(text, ':');
    if (colon) {
        snprintf(first, sizeof first, "%.*s", (int)(colon - text), text);
        if (!parse_int64(first, from) || !parse_int64(colon + 1, to) || *from < 0 || *to <= *from)
            die_usage("--%s %s: expected A:B with 0 <= A < B (file positions, without B)", option, text);
    } else if (!parse_int64(text, to) || *to < 1) {
        die_usage("--%s %s: expected a number of samples, A:B, or all", option, text);
    }
}

static void need(const char *value, const char *option) {
    if (!value)
        die_usage("--%s is missing; see cnnscope --help", option);
}

static void parse_perplexities(Options *o) {
    const List *texts = &o->perplexity_texts;
    int all = 0;
    for (int i = 0; i < texts->count; i++) {
        if (i == PERPLEXITIES_MAX)
            die_usage("--perplexity: more than %d entries", PERPLEXITIES_MAX);
        Perplexity *p = &o->perplexity[i];
        *p = (Perplexity){.text = texts->items[i]};
        char *rest = copy_or_die(strdup(texts->items[i]));
        for (char *one; (one = strsep(&rest, "+")); p->count++, all++) {
            if (all == PERPLEXITIES_MAX)
                die_usage("--perplexity: more than %d perplexities", PERPLEXITIES_MAX);
            if (!parse_double(one, &p->value[p->count]))
                die_usage("--perplexity %s: not a number, or some of them with + between", texts->items[i]);
            if (p->value[p->count] < 1 || p->value[p->count] > 1e9)
                die_usage("--perplexity %s: expected 1 to 1e+09", texts->items[i]);
        }
        o->perplexity_count++;
    }
    if (o->perplexity_count * o->runs > MAPS_MAX)
        die_usage("--runs %d: of %d perplexities that makes %d maps, at most %d are possible", o->runs,
                  o->perplexity_count, o->perplexity_count * o->runs, MAPS_MAX);
}

/* Samples come through a network or as they are. */
static void check_place(const Options *o) {
    need(o->map, "map");
    if (!o->model == !o->input)
        die_usage("--%s: `place` takes either a network and images (--model, --images) or features (--input)",
                  o->model ? "input" : "model");
    if (o->model)
        need(o->images, "images");
    if (o->model && o->predictions)
        die_usage("--predictions: the network's own are taken where there is a --model");
    if (o->input && o->embed.count > 1 && o->embed_given)
        die_usage("--embed: name the one layer whose features --input has");
}

static void check(Options *o) {
    if (o->command == COMMAND_RUN || o->command == COMMAND_INSPECT)
        need(o->model, "model");
    if (o->command == COMMAND_PLACE)
        check_place(o);
    if (o->command == COMMAND_RUN)
        need(o->images, "images");
    if (o->command == COMMAND_EMBED || o->command == COMMAND_AUDIT)
        need(o->input, "input");
    if (o->command == COMMAND_AUDIT)
        need(o->map, "map");
    if (o->command == COMMAND_AUDIT && o->neighbors == 0)
        die_usage("--neighbors 0: expected at least 1: there is nothing else to do");
    if (o->command != COMMAND_INSPECT)
        need(o->output, "output");
    if (o->max_time && !o->checkpoint)
        die_usage("--max-time: give --checkpoint DIR too, the folder that keeps the work");
    if (strcmp(o->layout, "NCHW") != 0 && strcmp(o->layout, "NHWC") != 0)
        die_usage("--layout %s: expected NCHW or NHWC", o->layout);
    if (o->keep_maps && strcmp(o->keep_maps, "all") != 0 && strcmp(o->keep_maps, "chosen") != 0 &&
        strcmp(o->keep_maps, "none") != 0)
        die_usage("--keep-maps %s: expected all, chosen or none", o->keep_maps);
    if (strcmp(o->ig_rule, "gausslegendre") != 0 && strcmp(o->ig_rule, "riemann_left") != 0 &&
        strcmp(o->ig_rule, "riemann_middle") != 0 && strcmp(o->ig_rule, "riemann_right") != 0)
        die_usage("--ig-rule %s: expected gausslegendre, riemann_left, riemann_middle or riemann_right", o->ig_rule);
    if (strcmp(o->cam_resolution, "layer") != 0 && strcmp(o->cam_resolution, "image") != 0)
        die_usage("--cam-resolution %s: expected layer or image", o->cam_resolution);
    if (o->tsne == 1)
        die_usage("--tsne 1: expected 2 or 3 dimensions, or 0 for none");
    if (strcmp(o->schedule, "sklearn") != 0 && strcmp(o->schedule, "fast") != 0)
        die_usage("--schedule %s: expected sklearn or fast", o->schedule);
    if (strcmp(o->learning_rate_text, "auto") != 0 &&
        (!parse_double(o->learning_rate_text, &o->learning_rate) || o->learning_rate <= 0))
        die_usage("--learning-rate %s: expected a positive number, or auto", o->learning_rate_text);
    parse_perplexities(o);
    parse_range("samples", o->samples, &o->samples_from, &o->samples_to);
    o->tsne_samples = -1;
    if (strcmp(o->tsne_samples_text, "all") != 0 &&
        (!parse_int64(o->tsne_samples_text, &o->tsne_samples) || o->tsne_samples < 2))
        die_usage("--tsne-samples %s: expected a number of at least 2, or all", o->tsne_samples_text);
}

static char *join(int argc, char **argv) {
    size_t length = 1;
    for (int i = 0; i < argc; i++)
        length += strlen(argv[i]) + 1;
    char *text = copy_or_die(calloc(length, 1));
    for (int i = 0; i < argc; i++) {
        strcat(text, i ? " " : "");
        strcat(text, argv[i]);
    }
    return text;
}

void options_parse(Options *options, int argc, char **argv) {
    *options = (Options){.command = COMMAND_RUN, .pca = 2, .tsne = 2, .command_line = join(argc, argv)};
    struct option names[ROWS + 3] = {0};
    for (int i = 0; i < ROWS; i++) {
        int argument = table[i].kind == KIND_FLAG    ? no_argument
                       : table[i].kind == KIND_COUNT ? optional_argument
                                                     : required_argument;
        names[i] = (struct option){table[i].name, argument, NULL, FIRST_CODE + i}; /* no character of getopt's own */
        if (table[i].initial)
            set(options, &table[i], table[i].initial);
    }
    bool iterations_given = false, exaggeration_given = false;
    int first = 1;
    if (argc > 1 && argv[1][0] != '-') {
        first = 2;
        if (strcmp(argv[1], "embed") == 0)
            options->command = COMMAND_EMBED;
        else if (strcmp(argv[1], "inspect") == 0)
            options->command = COMMAND_INSPECT;
        else if (strcmp(argv[1], "audit") == 0)
            options->command = COMMAND_AUDIT;
        else if (strcmp(argv[1], "place") == 0)
            options->command = COMMAND_PLACE;
        else
            die_usage("%s: unknown command; expected embed, audit, place, inspect, or options (see cnnscope --help)", argv[1]);
    }
    opterr = 0;
    optind = first;
    for (int code; (code = getopt_long(argc, argv, "+:", names, NULL)) != -1;) {
        const char *word = argv[optind - 1];
        if (code == '?')
            die_usage("%s: unknown option; see cnnscope --help", word);
        if (code == ':')
            die_usage("%s: its value is missing", word);
        const Row *row = &table[code - FIRST_CODE];
        if (!(row->commands & (int)options->command))
            die_usage("--%s: not an option of `cnnscope%s%s`; see cnnscope --help", row->name, first == 2 ? " " : "",
                      first == 2 ? argv[1] : "");
        set(options, row, row->kind == KIND_FLAG ? "" : optarg);
        options->pca_given |= row->field == FIELD(pca);
        options->tsne_given |= row->field == FIELD(tsne);
        options->embed_given |= row->field == FIELD(embed);
        iterations_given |= row->field == FIELD(max_iter);
        exaggeration_given |= row->field == FIELD(exaggeration_iter);
    }
    if (options->command == COMMAND_AUDIT || options->command == COMMAND_PLACE)
        options->pca = options->tsne = 0; /* they make no maps */
    if (options->command == COMMAND_PLACE) {
        static char *nothing[] = {"none"};
        options->attribution = options->feature_maps = options->filters = (List){1, nothing};
        options->keep_maps = "none";
    }
    if (strcmp(options->schedule, "fast") == 0) {
        options->max_iter = iterations_given ? options->max_iter : FAST_ITERATIONS;
        options->exaggeration_iter = exaggeration_given ? options->exaggeration_iter : FAST_EXAGGERATION_ITERATIONS;
    }
    if (optind < argc)
        die_usage("%s: unexpected; options begin with --", argv[optind]);
    check(options);
}

static void describe_list(char *text, size_t size, const List *list) {
    text[0] = '\0';
    for (int i = 0; i < list->count; i++)
        snprintf(text + strlen(text), size - strlen(text), "%s%s", i ? "," : "", list->items[i]);
}

void options_describe(const Options *options, void (*put)(void *context, const char *name, const char *value),
                      void *context) {
    for (int i = 0; i < ROWS; i++) {
        const Row *row = &table[i];
        if (!row->result || !(row->commands & (int)options->command))
            continue;
        const void *field = (const char *)options + row->field;
        char name[64] = "option_", text[4096] = "";
        for (const char *c = row->name; *c; c++)
            snprintf(name + strlen(name), sizeof name - strlen(name), "%c", *c == '-' ? '_' : *c);
        if (row->kind == KIND_TEXT)
            snprintf(text, sizeof text, "%s", *(char *const *)field ? *(char *const *)field : "default");
        else if (row->kind == KIND_INT)
            snprintf(text, sizeof text, "%d", *(const int *)field);
        else if (row->kind == KIND_INT64)
            snprintf(text, sizeof text, "%lld", (long long)*(const int64_t *)field);
        else if (row->kind == KIND_DOUBLE)
            snprintf(text, sizeof text, "%.17g", *(const double *)field);
        else
            describe_list(text, sizeof text, field);
        if (row->field == FIELD(init) && strcmp(text, "pca") != 0 && strcmp(text, "random") != 0)
            snprintf(text, sizeof text, "file"); /* its content is told by init_sha256, its path changes nothing */
        put(context, name, text[0] ? text : "default");
    }
}
