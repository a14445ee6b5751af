/* audit.c: the measures of a map that was made elsewhere, so that exact and approximate methods are compared with the same
 * ruler. See stages.h. */
#include "stages.h"

void audit(Job *job, const Matrix *features) {
    const Shard s = job->shard;
    Matrix map = matrix_read_map(job);
    const OutputVar var = {.name = "input_map",
                           .type = DT_F32,
                           .rank = 2,
                           .dims = {"sample", "input_axis"},
                           .length = {s.total, map.width},
                           .long_name = "map of the input, as it was given",
                           .coordinates = job_coordinates(job, false)};
    const int id = output_var(job->output, &var);
    Arena *arena = arena_new();
    float *rows = ARENA_ARRAY(arena, float, s.count *map.width, "map");
    dev_download(rows, map.rows, (size_t)(s.count * map.width) * sizeof *rows);
    output_rows(job->output, id, s.first, s.count, rows);
    arena_free(arena);
    const TrustMap maps[] = {{"map", "map", map}};
    trust(job, "input", features, NULL, maps, 1);
    matrix_free(&map);
}
