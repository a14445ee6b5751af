/* ends.c: into the network (pixels) and out of it (predictions). All on plain values.
 *
 * A pixel is transformed in double and rounded once; 8-bit pixels through a table of their 256 values, per channel. */
#include <string.h>

#include "cpu.h"
#include "shared.h"

/* ---- Pixels ----------------------------------------------------------------------------------------------------- */

void k_input(Lane *lane, float *out, const void *pixels, const PixelTransform *transform, int count, int B) {
    (void)lane;
    const PixelTransform *t = transform;
    const int64_t plane = (int64_t)t->height * t->width, sample = plane * t->channels;
    const int64_t step = t->channels_last ? t->channels : 1;
    for (int c = 0; c < t->channels; c++) {
        float table[256];
        for (int value = 0; t->dtype == DT_U8 && value < 256; value++)
            table[value] = transformed(value, t, c);
        for (int b = 0; b < count; b++) {
            float *to = out + b * sample + c * plane;
            const int64_t from = b * sample + (t->channels_last ? c : c * plane);
            if (t->dtype == DT_U8)
                for (int64_t p = 0; p < plane; p++)
                    to[p] = table[((const uint8_t *)pixels)[from + p * step]];
            else
                for (int64_t p = 0; p < plane; p++)
                    to[p] = transformed(pixel_at(pixels, t->dtype, from + p * step), t, c);
        }
    }
    memset(out + count * sample, 0, (size_t)((B - count) * sample) * sizeof *out);
}

/* ---- Predictions ------------------------------------------------------------------------------------------------ */

void k_predict(Lane *lane, int32_t *prediction, const float *logits, int B, int K) {
    (void)lane;
    for (int b = 0; b < B; b++) {
        const float *row = logits + (int64_t)b * K;
        int best = K == 1 ? row[0] > 0 : 0;
        for (int k = 1; k < K; k++)
            best = row[k] > row[best] ? k : best;
        prediction[b] = best;
    }
}
