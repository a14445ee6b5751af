/* options.h: the command line. One table in options.c gives parsing, --help, and the attributes in the results file. */
#ifndef CNNSCOPE_OPTIONS_H
#define CNNSCOPE_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#define CNNSCOPE_VERSION "0.1.0"

enum { LIST_MAX = 64 }; /* entries of a comma-separated option */
enum { PLAN_THESE_RANKS = -1 };
enum { PERPLEXITIES_MAX = 16, MAPS_MAX = 64 }; /* of all t-SNE maps of a layer, those averaged for one map each; maps */

typedef enum { COMMAND_RUN = 1, COMMAND_EMBED = 2, COMMAND_INSPECT = 4, COMMAND_AUDIT = 8, COMMAND_PLACE = 16 } Command;

typedef struct {
    int count;
    char **items;
} List; /* of a comma-separated option */

/* Of a t-SNE map. More than one: its P is the mean of theirs. */
typedef struct {
    int count;
    double value[PERPLEXITIES_MAX];
    const char *text; /* "30", "30+300" */
} Perplexity;

typedef struct {
    Command command;

    const char *model, *images, *input, *map, *labels, *predictions,
        *output; /* files and specs (dataset.h); NULL: not given */
    const char *category_names, *sample_names;
    const char *layout; /* "NCHW" or "NHWC" */
    double scale;       /* 0: by the type of the pixels */
    List mean, std;
    const char *samples;              /* "N" or "A:B" */
    int64_t samples_from, samples_to; /* of `samples`; to = -1: all */

    const char *logits_node; /* NULL: the network's own output */
    List embed;
    bool embed_given;
    int pca, tsne; /* dimensions; 0 = none. -1 (pca, not given): 2, and fewer where a layer is narrower */
    bool pca_given, tsne_given;
    int pre_pca; /* 0 = never */
    const char *tsne_samples_text;
    int64_t tsne_samples; /* -1: all */
    List perplexity_texts;
    int perplexity_count; /* maps of a layer are made for each of these, `runs` from other starts */
    Perplexity perplexity[PERPLEXITIES_MAX];
    int runs;
    const char *schedule; /* "sklearn" or "fast" */
    int max_iter;         /* this and exaggeration_iter have defaults of the schedule */
    double early_exaggeration;
    int exaggeration_iter;
    const char *learning_rate_text;
    double learning_rate; /* 0: auto */
    const char *init;     /* "pca", "random" or a file */
    int64_t seed;
    int neighbors; /* of the measures of trust; 0 = none */
    bool keep_neighbors;

    const char *dot; /* of `inspect`; NULL: not wanted */

    List attribution, feature_maps, filters; /* count 0: not given */
    const char *target;                      /* "predicted" ..., or two, A:B */
    const char *baseline;                    /* "zero", "mean", a number or a file */
    int ig_steps;
    const char *ig_rule;
    double ig_tolerance; /* 0: none */
    int smoothgrad_draws;
    double smoothgrad_noise;
    int occlusion_window, occlusion_stride; /* 0: by the images' size */
    const char *cam_resolution;             /* "layer" or "image" */
    List evidence;                          /* count 0: none */
    int evidence_steps;
    const char *keep_maps;                   /* "all", "chosen", "none"; NULL: by size */

    int batch, threads; /* 0: chosen by the program */
    int compress;       /* level of deflate, 0 = none */
    int plan;                /* ranks to plan for; 0: no plan */
    bool overwrite, quiet;
    const char *checkpoint;  /* folder; NULL: none */
    int checkpoint_interval; /* seconds */
    int max_time, watchdog;  /* seconds; 0: no limit */

    char *command_line;
} Options;

/* Handles --help and --version (prints and exits 0). Safe before MPI: touches nothing but argv and stdout. */
void options_early(int argc, char **argv);

/* Parses and checks everything that needs no file; die_usage on anything wrong. What it points to lives for ever. */
void options_parse(Options *options, int argc, char **argv);

/* Calls put("option_NAME", value) for every option that can change a result, in the table's order. */
void options_describe(const Options *options, void (*put)(void *context, const char *name, const char *value),
                      void *context);

/* Numbers in texts: false unless the whole text is one finite number. */
bool parse_double(const char *text, double *value);
bool parse_int64(const char *text, int64_t *value);

#endif
