/* stages.h: what main calls, one after the other. Each is Collective; each rank holds its shard of the samples. */
#ifndef CNNSCOPE_STAGES_H
#define CNNSCOPE_STAGES_H

#include "arena.h"
#include "checkpoint.h"
#include "graph.h"
#include "job.h"
#include "kernels.h"
#include "shard.h"

/* A matrix (total, width) whose rows lie on the ranks as the samples do. */
typedef struct {
    const char *name; /* for messages and progress: the layer */
    Shard shard;
    int width;
    float *rows; /* device, (shard.count, width) */
} Matrix;

/* ---- The network (forward.c, chosen.c) --------------------------------------------------------------------- */

typedef struct {
    int count;
    Matrix *features; /* one per layer to embed; freed by matrix_free */
    const int *nodes; /* of the graph; -1 for the matrix of `embed` */
} Layers;

/* Logits and predictions of every sample, features of the layers to embed, feature maps, filters, images and
 * attribution maps: one pass over this rank's samples, written as they are made (a second pass over chosen samples
 * where not all maps are kept). */
Layers forward(Job *job);

/* How sure the network is of each sample, and how often it is right, into the results file (predictions.c). logits: host,
 * (shard.count, outputs). */
void predictions(Job *job, const float *logits, int outputs);

/* The matrix of `cnnscope embed` and `audit` in place of a network. Writes the images, where given. */
Layers matrix_read(Job *job);
Matrix matrix_read_map(const Job *job); /* that of `audit --map` */

void matrix_free(Matrix *matrix);

/* A copy of the rows `keep` (this rank's, ascending; NULL: all) and the first `width` columns. `shard` of the result. */
Matrix matrix_part(const Matrix *from, const int64_t *keep, Shard shard, int width);

/* Which samples keep their maps when not all do: 20 of each category, the 20 most confident wrong ones, the 20 least
 * certain ones (where `usual`); of faithfulness (shard.count; NULL: none) the 20 largest and the 20 smallest. logits: host,
 * (shard.count, outputs). Gives the job's sample indices, ascending, the same on every rank. */
int64_t *chosen_samples(int64_t *count, const Job *job, const float *logits, int outputs, bool usual,
                        const float *faithfulness);
int64_t chosen_most(const Job *job, bool usual, bool faithful); /* their number, at most */

/* ---- Maps of a layer (embed.c) ---------------------------------------------------------------------------------- */

/* PCA and t-SNE of a matrix, as the options ask, into the results file. */
void embed(Job *job, const Matrix *features, int node);

/* Principal components that takes of a layer of this width: for the file, for --pre-pca and for the start. */
int embed_components(const Options *o, int width);

/* Whether its features go into the file: all but logits (there already) and spatial ones; and what t-SNE is given as it
 * is, the matrix of `embed` included. node: NULL for that. */
bool embed_writes_features(const Options *o, const Node *node, bool is_logits, int width);

/* ---- PCA (pca.c) ------------------------------------------------------------------------------------------------ */

typedef struct {
    int components;   /* K; columns past the rank of the data are zeros */
    double *center;   /* (width) mean */
    double *axes;     /* (K, width) unit vectors; the entry of largest magnitude is positive (scikit-learn >= 1.5) */
    double *variance; /* (K) divided by N - 1 */
    double *variance_ratio; /* (K) of the total variance */
    Matrix scores;          /* (total, K), sharded like the input; rows with dev_alloc */
} Pca;

/* Bytes of memory that takes at most at one time beside its result, on the rank that solves, which has `rows`. */
double pca_bytes(int64_t rows, int64_t total, int width, int components);

/* Exact PCA, two passes, double accumulation; the same bits for any number of ranks. What the checkpoint (or NULL) has
 * under that key is not computed again, but for the scores; else it is kept there. */
void pca(Pca *result, Arena *arena, const Matrix *x, int components, Checkpoint *checkpoint, const char *key);

/* p->scores <- the rows of x by its center and axes. The bits of pca, whatever rows stand beside. */
void pca_project(Pca *p, const Matrix *x);

/* ---- t-SNE (tsne.c) --------------------------------------------------------------------------------------------- */

/* --tsne-samples: a class-stratified subset keyed on (seed, file position); this rank's kept rows, ascending. */
int64_t *tsne_subset(int64_t *count, Arena *arena, const Job *job);

/* The first Y (shard.total, --tsne) of the mapped samples, on every rank; shard and keep say which they are, and
 * positions (shard.total) receives them, counted in the job. run 0: --init; others: random, of the seed --seed + run. p:
 * PCA of a layer of that width; read by --init pca only. */
float *tsne_start(int64_t *positions, Arena *arena, const Job *job, int run, const Pca *p, int width_of_data,
                  const int64_t *keep, Shard shard);

typedef struct {
    int axes; /* 2 or 3 */
    int perplexity_count;
    const Perplexity *perplexity; /* PERPLEXITIES_MAX numbers in all, at most */
    bool
        fast; /* not scikit-learn's schedule: after the exaggeration, momentum 0.9 and the rate times early_exaggeration */
    int max_iter;
    double early_exaggeration;
    int exaggeration_iter;
    double learning_rate; /* 0: max(N / early_exaggeration / 4, 50) */

    Checkpoint *checkpoint; /* NULL: none */
} TsneOptions;              /* scikit-learn's meanings */

/* One of the maps of a matrix. */
typedef struct {
    int perplexity;     /* which of those of the options */
    const float *start; /* host, (total, axes), sample order, the same on every rank: the first Y, used as it is */
    const char *key;    /* in the checkpoint, and for progress: "tsne LAYER" */
} TsneMap;

typedef struct {
    float *map;       /* host, (total, axes), sample order, on every rank; in the arena */
    float *kl_sample; /* likewise, (total): what each sample has of kl */
    float *sigma;     /* (total): width of each sample's Gaussian, that of the first perplexity of the map, in the units
                       * of x: c(j|i) ~ exp(-d^2 / (2 sigma^2)). 0 where more samples than that are nearest ones, infinity
                       * where there are not so many */
    double kl;        /* of the final map, against P */
    int iterations;   /* done */
    int checks;       /* entries of the history */
    int *check_iterations;
    double *kl_history;                         /* against P, of Y before the update of iterations 49, 99, ... */
    double learning_rate;                       /* used */
    double affinity_sum, affinity_dropped_mass; /* total of P as kept; largest share dropped from a row */
    int64_t affinity_nonzeros;
    TsneTileSize affinities; /* of P, over all ranks */
    double
        bytes; /* of memory, at most at one time, on the rank that takes most: as predicted before the last P was made */
} TsneResult;

/* Exact-gradient t-SNE (van der Maaten & Hinton 2008) of the rows of x, sharded over the ranks: all-pairs affinities and
 * all-pairs repulsion. results, maps: `count` of them, those of one perplexity together. The widths of all perplexities'
 * Gaussians are searched in one computation of distances; maps of one perplexity share its P, of which there is one at a
 * time. Where a map has several perplexities its P is the mean of theirs, row by row, made symmetric (openTSNE's
 * Multiscale). Dies at once when a P does not fit in memory, naming what would fit; later, where its rows turn out to drop
 * more than they may, and the larger P does not. The same bits for any number of ranks, and with or without other maps.
 * A checkpoint gets the state of the descent now and then, and each result; from a state
 * the affinities are computed once more, from a result nothing is. */
void tsne(TsneResult *results, Arena *arena, const Matrix *x, const TsneMap *maps, int count,
          const TsneOptions *options);

/* ---- Trust (trust.c) -------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name, *title; /* in names of variables and in words: "tsne", "t-SNE map" */
    Matrix points;            /* sharded like what it is a map of */
} TrustMap;

/* How far the maps of x can be trusted, each sample and on the whole, into the results file as LAYER_MAP_...; nothing with
 * --neighbors 0. x: the rows `keep` of this rank's samples (ascending; NULL: all). At most two maps. All pairs of points;
 * the same bits for any number of ranks. */
void trust(Job *job, const char *layer, const Matrix *x, const int64_t *keep, const TrustMap *maps, int count);

/* The largest that the places of false neighbours of one sample can add up to: they are the farthest, and where the
 * neighbours are most of the samples, as many as there are others (Kaski et al. 2003, Venna & Kaski 2006). */
double trust_worst(int64_t N, int64_t K);

/* Bytes of memory that takes at most at one time on the first rank, which has `rows` of the mapped samples. */
double trust_bytes(int64_t rows, int64_t total, int width, int maps, int neighbors);

/* What `count` t-SNE maps of x have in common, into the results file (stability.c): the maps aligned to the first, and of
 * each sample how far its places and its neighbours differ between them. x and keep as for trust. */
void stability(Job *job, const Matrix *x, const char *layer, const int64_t *keep, const TsneMap *maps,
               const TsneResult *results, int count);
double stability_bytes(int64_t rows, int64_t total, int axes, int maps, int neighbors); /* as trust_bytes */

/* `cnnscope audit`: the same for a map that somebody else made, whose overall numbers are printed, too (audit.c). */
void audit(Job *job, const Matrix *features);

/* ---- New samples in a stored map (place.c) ------------------------------------------------------------------------ */

/* `cnnscope place`: where the samples with these features belong in the map that --map holds of the layer, into the results
 * file as LAYER_place_..., with how far that can be trusted. Each sample by itself, against all mapped ones, which do not
 * move: the same bits for any number of ranks and for any other samples beside it. */
void place(Job *job, const Matrix *features);

#endif
