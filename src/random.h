/* random.h: random numbers from a counter: the same for a key wherever, and by however many ranks, they are asked for. */
#ifndef CNNSCOPE_RANDOM_H
#define CNNSCOPE_RANDOM_H

#include <stdint.h>

/* splitmix64 of (seed, item, draw), Steele et al. 2014. */
uint64_t random_bits(uint64_t seed, uint64_t item, uint64_t draw);

/* A standard normal deviate of it (Box & Muller 1958). */
double random_normal(uint64_t seed, uint64_t item, uint64_t draw);

#endif
