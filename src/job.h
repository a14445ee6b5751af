/* job.h: what one run works on: inputs opened and checked on every rank, before anything is computed or written. */
#ifndef CNNSCOPE_JOB_H
#define CNNSCOPE_JOB_H

#include "checkpoint.h"
#include "dataset.h"
#include "model.h"
#include "options.h"
#include "output.h"
#include "place_map.h"
#include "shard.h"

typedef struct {
    Arena *arena; /* of all below */
    Options *options;
    Model *model;             /* NULL without --model: `embed`, `audit`, and often `place` */
    Dataset *images;          /* NULL when not given */
    Dataset *input;           /* NULL with --model */
    Dataset *map;             /* NULL but for `audit` */
    PlaceMap *places;         /* of `place`: the stored map of each layer of options->embed, in that order */
    int place_count;
    PixelTransform transform; /* of the images */
    int64_t from;             /* file position of the job's sample 0 */
    int64_t step;             /* file positions from one sample to the next: 1, more in a plan's trial */
    Shard shard;
    int32_t *labels;       /* (shard.count), -1 = none; NULL without --labels */
    int32_t *predictions;  /* (shard.count), by the network or --predictions; NULL when there are neither */
    const float *probability; /* (shard.count) of the network's predictions; NULL without a network */
    int64_t categories;    /* outputs of the network, or names given, or labels seen; one output counts as two */
    char **category_names; /* (categories) or NULL */
    char **sample_names;   /* of the whole file, or NULL */
    char images_sha256[65], labels_sha256[65], input_sha256[65], map_sha256[65], predictions_sha256[65],
        init_sha256[65], baseline_sha256[65]; /* "" = none */
    const char *labels_key, *init_key, *baseline_key; /* what follows the file's name in these specs; rank 0's */
    char category_names_sha256[65], sample_names_sha256[65]; /* rank 0's */
    Output *output;
    Checkpoint *checkpoint; /* NULL without --checkpoint */
} Job;

/* Collective. Opens model, images or matrix, labels and names; divides the samples over the ranks. */
void job_open(Job *job, Options *options);

/* Collective. With --checkpoint, without --overwrite: whether the result is there already, complete and of the same inputs
 * and options: a job that is queued again after it was lost behind its last step ends well. Says so in one line, and removes
 * what is left of the checkpoint. */
bool job_is_done(Job *job);

/* Collective. Creates the results file and writes what is known before any computing (job_put_samples): global
 * attributes, sample, names, labels. */
void job_create_output(Job *job);
void job_put_samples(Job *job);

/* Collective. Opens --checkpoint, which must be this run's: the same inputs, options that can change a result, and kind
 * of device. */
void job_open_checkpoint(Job *job);

/* The auxiliary coordinates of a variable over `sample` (and `category`): those the file has of label, prediction,
 * sample_name, category_name. NULL when none. */
const char *job_coordinates(const Job *job, bool over_category);

/* Attributes of an integer variable whose values are categories, where they have names. */
void job_put_flags(const Job *job, int var);

/* images (count, C, H, W) <- pixels as read, whatever --layout; in their own type (float16 becomes float32). */
void job_images_nchw(const Job *job, void *images, const void *pixels, int64_t count);
OutputVar job_image_var(const Job *job, const char *samples, int64_t length); /* that variable */

/* Collective. The run_* attributes and history; closes the results file, and then removes the checkpoint. */
void job_finish_output(Job *job);

#endif
