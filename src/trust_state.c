/* trust_state.c: the measures of a layer's maps in a checkpoint, for trust.c: the rows of each sample in the ranks' logs, and
 * one whole with the rest. The whole comes last: with it the rows are there, or have been damaged since. */
#include <string.h>

#include "comm.h"
#include "error.h"
#include "trust_parts.h"

enum { PIECES_MOST = 6 * (1 + TRUST_MAPS_MAX) };

typedef struct {
    int64_t points, spaces, class_neighbors;
    TrustNumbers numbers[1 + TRUST_MAPS_MAX]; /* without their rows */
} Saved;

static int set_pieces(CheckpointPiece *pieces, const Trust *t);

bool trust_restore(Trust *t, const char *stage) {
    Checkpoint *checkpoint = t->job->checkpoint;
    const int64_t rows = t->shard.count;
    Arena *scratch = arena_new();
    size_t bytes;
    Saved saved;
    const void *found = checkpoint_load(checkpoint, scratch, stage, &bytes);
    if (found && bytes == sizeof saved)
        memcpy(&saved, found, sizeof saved);
    if (!found || bytes != sizeof saved || saved.points != t->shard.total || saved.spaces != t->spaces) {
        arena_free(scratch);
        return false;
    }
    for (int s = 0; s < t->spaces && t->job->options->keep_neighbors; s++) {
        t->space[s].neighbor = ARENA_ARRAY(t->arena, int32_t, rows * t->neighbors, "neighbours");
        t->space[s].neighbor_distance = ARENA_ARRAY(t->arena, float, rows * t->neighbors, "neighbours");
    }
    CheckpointPiece pieces[PIECES_MOST];
    const int count = set_pieces(pieces, t);
    bool *have = ARENA_ARRAY(scratch, bool, rows, "checkpoint");
    if (!error_caught())
        checkpoint_restore(checkpoint, stage, have, t->shard.first, rows, pieces, count);
    comm_all_ok();
    double missing = memchr(have, false, (size_t)rows) != NULL;
    comm_max(&missing, 1);
    arena_free(scratch);
    if (missing > 0)
        return false;
    t->class_neighbors = (int)saved.class_neighbors;
    for (int s = 0; s < t->spaces; s++) {
        const TrustNumbers own = t->numbers[s];
        t->numbers[s] = saved.numbers[s];
        t->numbers[s].trustworthiness = own.trustworthiness;
        t->numbers[s].continuity = own.continuity;
        t->numbers[s].recall = own.recall;
        t->numbers[s].label_agreement = own.label_agreement;
    }
    return true;
}

void trust_keep(const Trust *t, const char *stage) {
    if (!t->job->checkpoint)
        return;
    if (!error_caught()) {
        CheckpointPiece pieces[PIECES_MOST];
        const int count = set_pieces(pieces, t);
        checkpoint_append(t->job->checkpoint, stage, t->shard.first, t->shard.count, pieces, count);
    }
    comm_all_ok();
    Saved saved;
    memset(&saved, 0, sizeof saved);
    saved.points = t->shard.total;
    saved.spaces = t->spaces;
    saved.class_neighbors = t->class_neighbors;
    for (int s = 0; s < t->spaces; s++) {
        saved.numbers[s] = t->numbers[s];
        saved.numbers[s].trustworthiness = saved.numbers[s].continuity = NULL;
        saved.numbers[s].recall = saved.numbers[s].label_agreement = NULL;
    }
    checkpoint_save(t->job->checkpoint, stage, &(RecordPart){&saved, sizeof saved}, 1);
}

static int set_pieces(CheckpointPiece *pieces, const Trust *t) {
    const size_t list_bytes = (size_t)t->neighbors * sizeof(float);
    int count = 0;
    for (int s = 0; s < t->spaces; s++) {
        const TrustNumbers *n = &t->numbers[s];
        const bool listed = t->job->options->keep_neighbors;
        const struct {
            void *rows;
            size_t bytes;
        } all[] = {{n->trustworthiness, sizeof(float)},
                   {n->continuity, sizeof(float)},
                   {n->recall, sizeof(float)},
                   {n->label_agreement, sizeof(float)},
                   {listed ? t->space[s].neighbor : NULL, list_bytes},
                   {listed ? t->space[s].neighbor_distance : NULL, list_bytes}};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            if (all[i].rows)
                pieces[count++] =
                    (CheckpointPiece){all[i].bytes, 0, t->shard.total, all[i].rows, t->shard.first, false};
    }
    return count;
}
