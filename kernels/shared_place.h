/* shared_place.h: what the CPU and CUDA compute by the same lines when a point is placed in a fixed map: its divergence with
 * gradient and curvature, from sums over the fixed points, and a step of Newton's method on these 2 or 3 numbers.
 *
 * With differences D = y - y_j, s = 1 + |D|^2 / (A - 1), w = s^(-A/2) and Z = sum w, as in shared_tsne.h and tsne_map.inc,
 *
 *     KL = sum p ln p - sum p ln (w / Z) = -entropy + A/2 sum p ln s + ln Z */
#ifndef CNNSCOPE_SHARED_PLACE_H
#define CNNSCOPE_SHARED_PLACE_H

#include "shared_tsne.h"

enum {
    PLACE_STARTS = 8,   /* places of the nearest fixed points: where the divergence may begin its descent */
    PLACE_DESCENTS = 2, /* the lowest of them from which it does; more lower no result of MNIST's by 1e-5 */
    PLACE_STEPS = 60,   /* of one descent at most; most take 5 to 10 */
};

/* Sums over the fixed points, e being p but for a factor: then A of e D / s, A of w D / s, and the same with D D^T / s^2,
 * whose upper triangle goes by rows. */
enum { PLACE_LOG, PLACE_Z, PLACE_PULL, PLACE_PUSH, PLACE_VECTORS, PLACE_SUMS_MOST = 22 };

ON_BOTH int place_sums(int A) {
    return PLACE_VECTORS + 2 * A + A * (A + 1);
}

typedef struct {
    double energy; /* KL + entropy */
    double gradient[3], hessian[3][3];
} PlaceModel;

/* mass: sum of e. */
ON_BOTH PlaceModel place_model(const double *sums, double mass, int A) {
    const int triangle = A * (A + 1) / 2;
    const double *pull = sums + PLACE_VECTORS, *push = pull + A, *pull2 = push + A, *push2 = pull2 + triangle;
    const double nu = A - 1, c = A / nu, p = 1 / mass, q = 1 / sums[PLACE_Z];
    PlaceModel m = {0.5 * A * p * sums[PLACE_LOG] + tsne_log(sums[PLACE_Z]), {0}, {{0}}};
    for (int a = 0, t = 0; a < A; a++) {
        m.gradient[a] = c * (p * pull[a] - q * push[a]);
        for (int b = a; b < A; b++, t++) {
            double h = 2 * c / nu * ((0.5 * A + 1) * q * push2[t] - p * pull2[t]) - c * q * push[a] * c * q * push[b];
            if (a == b)
                h += c * (p * sums[PLACE_PULL] - q * sums[PLACE_PUSH]);
            m.hessian[a][b] = m.hessian[b][a] = h;
        }
    }
    return m;
}

/* One point's descent: Newton's method with the absolute values of the curvatures, so that it leaves saddles, within a
 * radius that follows its success. */
typedef struct {
    float y[3], next[3];             /* lowest so far; where the sums are wanted */
    PlaceModel model;                /* at y */
    double radius, length, promised; /* length of the step to next; by how much it should lower the energy */
    int steps;
    bool done;
} PlaceSearch;

/* In units of the map, whose kernel has width 1. */
static const double PLACE_RADIUS = 1, PLACE_RADIUS_MOST = 0x1p20, PLACE_SHORT = 0x1p-12;
static const double PLACE_NOISE = 0x1p-18;                   /* of an energy, which is a sum of float32 terms */

ON_BOTH PlaceSearch place_begin(const float *start, int A) {
    PlaceSearch s = {{0}, {0}, {0, {0}, {{0}}}, PLACE_RADIUS, 0, 0, 0, false};
    for (int a = 0; a < A; a++)
        s.next[a] = start[a];
    return s;
}

/* vector[k] of value[k]: Jacobi's rotations, of which A = 2 needs one. matrix is overwritten. */
ON_BOTH void place_eigen(double value[3], double vector[3][3], double matrix[3][3], int A) {
    for (int a = 0; a < A; a++)
        for (int b = 0; b < A; b++)
            vector[a][b] = a == b;
    for (int sweep = 0; sweep < (A == 2 ? 1 : 8); sweep++)
        for (int a = 0; a < A; a++)
            for (int b = a + 1; b < A; b++) {
                if (matrix[a][b] == 0)
                    continue;
                const double ratio = (matrix[b][b] - matrix[a][a]) / (2 * matrix[a][b]);
                const double t = (ratio < 0 ? -1 : 1) / (fabs(ratio) + sqrt(ratio * ratio + 1));
                const double cosine = 1 / sqrt(t * t + 1), sine = t * cosine;
                for (int k = 0; k < A; k++) {
                    const double left = matrix[k][a], right = matrix[k][b];
                    matrix[k][a] = cosine * left - sine * right;
                    matrix[k][b] = sine * left + cosine * right;
                }
                for (int k = 0; k < A; k++) {
                    const double up = matrix[a][k], down = matrix[b][k];
                    matrix[a][k] = cosine * up - sine * down;
                    matrix[b][k] = sine * up + cosine * down;
                    const double first = vector[a][k], second = vector[b][k];
                    vector[a][k] = cosine * first - sine * second;
                    vector[b][k] = sine * first + cosine * second;
                }
            }
    for (int a = 0; a < A; a++)
        value[a] = matrix[a][a];
}

/* The next place to look at, from y. */
ON_BOTH void place_propose(PlaceSearch *s, int A) {
    double value[3], vector[3][3], matrix[3][3], step[3] = {0}, square = 0;
    memcpy(matrix, s->model.hessian, sizeof matrix);
    place_eigen(value, vector, matrix, A);
    s->promised = 0;
    double along[3];
    for (int k = 0; k < A; k++) {
        along[k] = 0;
        for (int a = 0; a < A; a++)
            along[k] -= vector[k][a] * s->model.gradient[a];
        along[k] /= fmax(fabs(value[k]), 1e-9);
        square += along[k] * along[k];
    }
    s->length = sqrt(square);
    const double share = s->length > s->radius ? s->radius / s->length : 1;
    s->length *= share;
    for (int k = 0; k < A; k++)
        for (int a = 0; a < A; a++)
            step[a] += share * along[k] * vector[k][a];
    for (int a = 0; a < A; a++) {
        s->next[a] = (float)(s->y[a] + step[a]);
        s->promised -= s->model.gradient[a] * step[a];
    }
    for (int k = 0; k < A; k++)
        s->promised -= 0.5 * value[k] * share * along[k] * share * along[k];
}

/* sums: at next. An energy within its noise is judged by its gradient. */
ON_BOTH void place_step(PlaceSearch *s, const double *sums, double mass, int A) {
    const PlaceModel found = place_model(sums, mass, A);
    double before = 0, after = 0;
    for (int a = 0; a < A; a++) {
        before += s->model.gradient[a] * s->model.gradient[a];
        after += found.gradient[a] * found.gradient[a];
    }
    const double gained = s->model.energy - found.energy, noise = PLACE_NOISE * (1 + fabs(found.energy));
    const bool first = s->steps == 0, near_end = s->promised < noise && fabs(gained) < noise;
    if (first || (near_end ? after < before : gained > 0)) {
        for (int a = 0; a < A; a++)
            s->y[a] = s->next[a];
        s->model = found;
        if (!first && gained > 0.5 * s->promised && 2 * s->length > s->radius)
            s->radius = fmin(2 * s->length, PLACE_RADIUS_MOST);
        s->done = !first && s->length < PLACE_SHORT;
    } else {
        s->radius = s->length / 4;
        s->done = s->radius < PLACE_SHORT;
    }
    s->steps++;
    s->done = s->done || s->steps == PLACE_STEPS;
    if (!s->done)
        place_propose(s, A);
}

#endif
