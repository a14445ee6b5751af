/* pass.h: a pass of this rank's samples through the network, in rounds. Private to forward.c and pass.c.
 *
 * A round is at most 64 MiB of results: the rank reads its pixels, its lanes take batches from it one by one (the only
 * parallel region over lanes), then all ranks write their rows together. Ranks with fewer samples take part in every
 * round with empty writes. No result depends on the lane, the batch or the round a sample was computed in. With a
 * checkpoint a round takes about a second, so that a run that is stopped loses no more. */
#ifndef CNNSCOPE_PASS_H
#define CNNSCOPE_PASS_H

#include "attribution.h"
#include "stages.h"

/* Results of one variable for the samples of a round, on their way to the file. Positions count the pass's samples,
 * over all ranks; rows[0] is the round's first. */
typedef struct {
    int var;
    size_t row_bytes;
    int64_t from, to; /* half-open; the positions the variable has rows of */
    char *rows;       /* host, (round samples, row_bytes) */
} Stream;

enum { STREAMS_MAX = (METHOD_PARTS + 1) * LIST_MAX + 7 };
enum { PASS_READ, PASS_COMPUTE, PASS_WRITE, PASS_PARTS }; /* what its seconds are of: run_seconds_NAME_PART */

typedef struct {
    Job *job;
    Arena *arena;
    Plan *plan;
    int batch, lanes;
    Shard shard;                        /* of the pass's samples, in positions */
    const int64_t *samples;             /* of this rank's positions, counted in the job; NULL: all of job->shard */
    int64_t round_samples, least_round; /* samples a rank takes in a round, at most and at least */
    int64_t most_samples;               /* of the rank that has most */

    int64_t from, count;     /* the round's positions */
    bool *have;              /* (count) whose rows came from the checkpoint */
    char *pixels;            /* of a round, as read */
    CheckpointPiece *pieces; /* of a round; what of it the checkpoint keeps */
    int piece_count;
    Stream streams[STREAMS_MAX];
    int stream_count;
    Stream *image, *logits, *prediction; /* NULL: not asked for */
    Stream *maps[LIST_MAX][METHOD_PARTS]; /* per method */
    Stream *features[LIST_MAX];          /* per entry of --feature-maps */
    int feature_nodes[LIST_MAX], feature_count;
    Stream *targets[2];          /* of attribution: that looked at, that compared with; NULL: not kept */
    Stream *agreement;           /* of its methods; NULL: not asked for */
    Attribution *attribution;    /* NULL: none */
    const Layers *layers; /* NULL: no features kept */

    bool want_value[1024], want_gradient[1024]; /* per node; of every batch */
    bool only_mapped[1024]; /* per node: its value is wanted for feature maps of some batches only */
    struct LaneWork *work;  /* per lane */
    double seconds[PASS_PARTS];
} Pass;

/* The samples of a pass: this rank's positions, and what they are (NULL: the samples of job->shard). */
Pass *pass_new(Arena *arena, Job *job, Shard shard, const int64_t *samples);

/* Declares the variable, and a stream of rows for positions [from, to). Collective. */
Stream *pass_stream(Pass *pass, const OutputVar *var, size_t row_bytes, int64_t from, int64_t to);

/* Host bytes that a round of so many samples touches. */
size_t pass_round_bytes(const Pass *pass, int64_t samples);

/* Device bytes of a lane, after pass_plan. */
size_t pass_lane_bytes(const Pass *pass);

/* What pass_run does first: chooses lanes, rounds and the memory plan (pass->plan, to be freed by graph_plan_free), and
 * allocates nothing else. Collective. */
void pass_plan(Pass *pass);

/* Collective. Computes and writes all that was asked for, as the stage `name`; what the checkpoint has of it under that
 * name is not computed again. all_logits (shard.count, outputs) or
 * NULL: where the logits are kept as well. */
void pass_run(Pass *pass, const char *name, float *all_logits);

/* For --plan: what forward() would run, declared in the job's output; nothing is allocated or computed. Collective. */
typedef struct {
    Layers layers; /* without their rows */
    Pass *first, *second; /* second: of the chosen samples; NULL: none is needed */
    const char *kept;     /* maps: "all", "chosen", "none" */
} ForwardPlan;
ForwardPlan forward_plan(Arena *arena, Job *job);

#endif
