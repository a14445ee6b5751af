/* model_draw.h: a graph for people to look at: as text with its branches, and for Graphviz. */
#ifndef CNNSCOPE_MODEL_DRAW_H
#define CNNSCOPE_MODEL_DRAW_H

#include "graph.h"

/* To stdout. nominal: the graph was made for images of nominal x nominal pixels, a file that does not say how large its
 * images are; sizes are then printed as shares of H and W (rounded down, as pooling does). 0: as they are. */
void model_draw(Arena *arena, const Graph *graph, int nominal);

/* In the DOT language of Graphviz, to a file. An existing one is refused unless overwrite. */
void model_dot(const Graph *graph, int nominal, const char *path, bool overwrite);

#endif
