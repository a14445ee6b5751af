/* sanity_weights.c: networks whose weights are drawn anew. See sanity.h. */
#include <math.h>

#include "random.h"
#include "sanity.h"

static bool has_weights(const Node *node) {
    return node->op == OP_CONV || node->op == OP_LINEAR || (node->op == OP_MATMUL && node->operand.values);
}

SanitySteps sanity_steps(const Graph *graph) {
    int layers = 0, seen = 0;
    for (int i = 0; i <= graph->logits; i++)
        layers += has_weights(&graph->nodes[i]);
    SanitySteps steps = {.count = layers < SANITY_STEPS_MOST ? layers : SANITY_STEPS_MOST};
    for (int i = graph->logits, k = 0; i >= 0 && k < steps.count; i--) {
        if (!has_weights(&graph->nodes[i]))
            continue;
        seen++;
        if (seen == (int)((int64_t)(k + 1) * layers / steps.count)) {
            steps.from[k] = seen == layers ? 0 : i; /* norms before the first layer go with it */
            steps.layer[k++] = i;
        }
    }
    return steps;
}

static void draw(Arena *arena, Constant *constant, uint64_t seed, uint64_t key) {
    if (!constant->values)
        return;
    const int64_t size = shape_size(constant->shape);
    float *values = ARENA_ARRAY(arena, float, size, "random weights");
    double mean = 0, square = 0;
    for (int64_t i = 0; i < size; i++)
        mean += (double)constant->values[i] / (double)size;
    for (int64_t i = 0; i < size; i++)
        square += ((double)constant->values[i] - mean) * ((double)constant->values[i] - mean) / (double)size;
    for (int64_t i = 0; i < size; i++)
        values[i] = (float)(mean + sqrt(square) * random_normal(seed, key, (uint64_t)i));
    constant->values = values;
}

void sanity_draw(Arena *arena, Graph *graph, int from, int to, uint64_t seed) {
    for (int i = from; i < to; i++) {
        Node *node = &graph->nodes[i];
        const uint64_t key = (uint64_t)i << 40;
        draw(arena, &node->weight, seed, key);
        draw(arena, &node->bias, seed, key | 1);
        if (node->op == OP_MATMUL)
            draw(arena, &node->operand, seed, key | 2);
    }
}
