/* predictions.c: how sure the network is of each sample, and how often it is right. See stages.h.
 *
 * From the logits that forward made, in double. What is summed over samples are whole numbers, so that the number of
 * ranks changes no bit. */
#include <math.h>
#include <stdio.h>

#include "comm.h"
#include "stages.h"

enum { BINS = 15, CONFUSION_MOST = 4096 /* categories, whose confusion is (categories, categories) */ };
static const double SUM_UNIT = 0x1p-40; /* of probabilities summed */

typedef struct {
    float *probability, *entropy, *margin, *loss; /* (rows) */
    int64_t *of_label, *of_prediction, *right;    /* (categories) of samples with a label */
    int64_t *confusion;                           /* (categories, categories) or NULL */
    int64_t count[BINS], hits[BINS], sum[BINS];   /* by probability of the prediction */
} Judged;

static void judge_sample(Judged *judged, const Job *job, int64_t i, const float *logits, int outputs);
static void count_sample(Judged *judged, const Job *job, int64_t i);
static void write_samples(Job *job, const Judged *judged);
static void write_counts(Job *job, Judged *judged, Arena *arena);

void predictions(Job *job, const float *logits, int outputs) {
    const int64_t rows = job->shard.count, K = job->categories;
    Arena *arena = arena_new();
    Judged judged = {.probability = ARENA_ARRAY(job->arena, float, rows, "predictions"),
                     .entropy = ARENA_ARRAY(arena, float, rows, "predictions"),
                     .margin = ARENA_ARRAY(arena, float, rows, "predictions"),
                     .loss = ARENA_ARRAY(arena, float, rows, "predictions"),
                     .of_label = ARENA_ARRAY(arena, int64_t, K, "predictions"),
                     .of_prediction = ARENA_ARRAY(arena, int64_t, K, "predictions"),
                     .right = ARENA_ARRAY(arena, int64_t, K, "predictions")};
    if (K <= CONFUSION_MOST)
        judged.confusion = ARENA_ARRAY(arena, int64_t, K * K, "predictions");
    for (int64_t i = 0; i < rows; i++) {
        judge_sample(&judged, job, i, logits + i * outputs, outputs);
        if (job->labels && job->labels[i] >= 0)
            count_sample(&judged, job, i);
    }
    job->probability = judged.probability;
    write_samples(job, &judged);
    if (job->labels)
        write_counts(job, &judged, arena);
    arena_free(arena);
}

/* The softmax of a sample; of one output, the logit of category 1, that of 0 being 0. */
static void judge_sample(Judged *judged, const Job *job, int64_t i, const float *logits, int outputs) {
    const int64_t K = job->categories;
    const double zero = outputs == 1 ? 0 : -INFINITY;
    double most = zero, sum = 0, weighted = 0, second = -INFINITY;
    for (int k = 0; k < outputs; k++)
        most = fmax(most, (double)logits[k]);
    const int32_t predicted = job->predictions[i];
    for (int64_t k = 0; k < K; k++) {
        const double logit = outputs == 1 ? (k == 1 ? (double)logits[0] : 0) : (double)logits[k], e = exp(logit - most);
        sum += e;
        weighted += e * (logit - most);
        if (k != predicted)
            second = fmax(second, logit - most);
    }
    const int32_t label = job->labels ? job->labels[i] : -1;
    const double of_label = label < 0      ? NAN
                            : outputs == 1 ? (label == 1 ? (double)logits[0] : 0)
                                           : (double)logits[label];
    judged->probability[i] = (float)(1 / sum); /* the prediction's logit is the largest */
    judged->entropy[i] = (float)fmax(0, log(sum) - weighted / sum);
    judged->margin[i] = (float)((1 - exp(second)) / sum);
    judged->loss[i] = (float)(log(sum) - (of_label - most));
}

static void count_sample(Judged *judged, const Job *job, int64_t i) {
    const int32_t label = job->labels[i], prediction = job->predictions[i];
    const double p = judged->probability[i];
    int bin = (int)ceil(p * BINS) - 1; /* each up to and with its upper bound */
    bin = bin < 0 ? 0 : bin < BINS ? bin : BINS - 1;
    judged->of_label[label]++;
    judged->of_prediction[prediction]++;
    judged->right[label] += label == prediction;
    if (judged->confusion)
        judged->confusion[label * job->categories + prediction]++;
    judged->count[bin]++;
    judged->hits[bin] += label == prediction;
    judged->sum[bin] += llrint(p / SUM_UNIT);
}

static void write_samples(Job *job, const Judged *judged) {
    const struct {
        const char *name, *long_name;
        const float *values;
        bool of_label;
    } vectors[] = {
        {"prediction_probability", "softmax of the predicted category's logit", judged->probability, false},
        {"prediction_entropy", "entropy of the softmax of the logits, in nats", judged->entropy, false},
        {"prediction_margin", "softmax of the predicted category less that of the next", judged->margin, false},
        {"prediction_loss", "cross-entropy of the label, in nats; NaN = no label", judged->loss, true}};
    const Shard s = job->shard;
    for (size_t v = 0; v < sizeof vectors / sizeof *vectors; v++) {
        if (vectors[v].of_label && !job->labels)
            continue;
        const OutputVar var = {
            vectors[v].name, DT_F32, 1, {"sample"}, {s.total}, vectors[v].long_name, NULL, job_coordinates(job, false)};
        output_rows(job->output, output_var(job->output, &var), s.first, s.count, vectors[v].values);
    }
}

static void write_whole(Job *job, const char *name, const char *long_name, int type, int rank, const void *data) {
    const int64_t K = job->categories;
    const OutputVar var = {name, type, rank, {"true_category", "predicted_category"}, {K, K}, long_name, NULL, NULL};
    output_whole(job->output, output_var(job->output, &var), data);
}

static double ratio(int64_t part, int64_t whole) {
    return whole > 0 ? (double)part / (double)whole : 0;
}

/* Precision, recall and F1 are 0 where there is nothing to divide by, as scikit-learn has them. */
static void write_counts(Job *job, Judged *judged, Arena *arena) {
    const int64_t K = job->categories;
    comm_sum_int64(judged->of_label, (size_t)K);
    comm_sum_int64(judged->of_prediction, (size_t)K);
    comm_sum_int64(judged->right, (size_t)K);
    comm_sum_int64(judged->count, BINS);
    comm_sum_int64(judged->hits, BINS);
    comm_sum_int64(judged->sum, BINS);
    double *precision = ARENA_ARRAY(arena, double, K, "predictions"),
           *recall = ARENA_ARRAY(arena, double, K, "predictions");
    double *f1 = ARENA_ARRAY(arena, double, K, "predictions"), error = 0;
    int64_t labelled = 0, right = 0;
    for (int64_t k = 0; k < K; k++) {
        precision[k] = ratio(judged->right[k], judged->of_prediction[k]);
        recall[k] = ratio(judged->right[k], judged->of_label[k]);
        f1[k] = ratio(2 * judged->right[k], judged->of_label[k] + judged->of_prediction[k]);
        labelled += judged->of_label[k];
        right += judged->right[k];
    }
    if (labelled == 0)
        return;
    for (int b = 0; b < BINS; b++)
        error += fabs((double)judged->hits[b] - (double)judged->sum[b] * SUM_UNIT) / (double)labelled;
    if (judged->confusion) {
        comm_sum_int64(judged->confusion, (size_t)(K * K));
        write_whole(job, "confusion", "samples of each category by prediction", DT_I64, 2, judged->confusion);
    }
    write_whole(job, "category_precision", "share of a category's predictions that are right", DT_F64, 1, precision);
    write_whole(job, "category_recall", "share of a category's samples that are predicted so", DT_F64, 1, recall);
    write_whole(job, "category_f1", "harmonic mean of precision and recall", DT_F64, 1, f1);
    const double accuracy = ratio(right, labelled);
    write_whole(job, "prediction_accuracy_overall", "share of the labelled samples predicted right", DT_F64, 0,
                &accuracy);
    const OutputVar var = {.name = "prediction_calibration_error_overall",
                           .type = DT_F64,
                           .long_name =
                               "expected calibration error, by the probability of the prediction in equal bins"};
    const int id = output_var(job->output, &var);
    output_int64(job->output, id, "bins", BINS);
    output_whole(job->output, id, &error);
}
