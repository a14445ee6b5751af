/* random.c: see random.h. */
#include "random.h"

#include <math.h>

uint64_t random_bits(uint64_t seed, uint64_t item, uint64_t draw) {
    uint64_t z =
        seed * 0xd1342543de82ef95u + item * 0x9e3779b97f4a7c15u + draw * 0xbf58476d1ce4e5b9u + 0x94d049bb133111ebu;
    for (int round = 0; round < 2; round++) {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
    }
    return z;
}

double random_normal(uint64_t seed, uint64_t item, uint64_t draw) {
    double u = ((double)(random_bits(seed, item, 2 * draw) >> 11) + 0.5) * 0x1p-53;
    double v = ((double)(random_bits(seed, item, 2 * draw + 1) >> 11) + 0.5) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}
