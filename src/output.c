/* output.c: the one netCDF writer. See output.h.
 *
 * Why parallel netCDF-4 and not one file a rank or a gather to rank 0: users open one file, and no rank holds it all.
 * Every data call is collective, ranks without rows write zero of them. Lengths that do not fit the file system or a
 * full disk are reported by HDF5 at the write or at the close; both end in die(), which removes the .partial.
 *
 * The demo's file by ncdump -h, without history and run_* (numbers to the accuracy of other CPUs):
 *
 * netcdf mnist {
 * dimensions:
 *     sample = 10000 ;
 *     category = 10 ;
 *     conv1_map_sample = 1 ;
 *     conv1_channel = 16 ;
 *     conv1_y = 28 ;
 *     conv1_x = 28 ;
 *     channel = 1 ;
 *     y = 28 ;
 *     x = 28 ;
 *     conv2_y = 14 ;
 *     conv2_x = 14 ;
 *     conv1_filter = 16 ;
 *     conv1_in_channel = 1 ;
 *     conv1_ky = 3 ;
 *     conv1_kx = 3 ;
 *     true_category = 10 ;
 *     predicted_category = 10 ;
 *     logits_pc = 2 ;
 *     logits_axis = 2 ;
 *     logits_tsne_check = 20 ;
 *     logits_suspect = 100 ;
 * variables:
 *     int64 sample(sample) ;
 *         sample:long_name = "position of the sample in the input file" ;
 *     int label(sample) ;
 *         label:long_name = "given category of the sample, -1 = none" ;
 *     float logits(sample, category) ;
 *         logits:long_name = "output of the network before any softmax" ;
 *         logits:coordinates = "label prediction" ;
 *     int prediction(sample) ;
 *         prediction:long_name = "predicted category, the largest logit\'s" ;
 *     int64 conv1_map_sample(conv1_map_sample) ;
 *         conv1_map_sample:long_name = "position of the sample in the input file" ;
 *     float conv1_maps(conv1_map_sample, conv1_channel, conv1_y, conv1_x) ;
 *         conv1_maps:long_name = "feature maps of conv1 (Conv)" ;
 *     ubyte image(sample, channel, y, x) ;
 *         image:long_name = "pixels as read" ;
 *         image:coordinates = "label prediction" ;
 *     float saliency(sample, y, x) ;
 *         saliency:long_name = "absolute input gradient of the predicted category\'s logit, scaled to 0..1" ;
 *         saliency:coordinates = "label prediction" ;
 *     float saliency_low(sample) ;
 *         saliency_low:long_name = "least value of saliency before scaling: raw = low + (high - low) * saliency" ;
 *     float saliency_high(sample) ;
 *         saliency_high:long_name = "largest value of saliency before scaling: raw = low + (high - low) * saliency" ;
 *     float gradcam(sample, conv2_y, conv2_x) ;
 *         gradcam:long_name = "Grad-CAM of the predicted category at conv2, scaled to 0..1" ;
 *         gradcam:coordinates = "label prediction" ;
 *         gradcam:layer = "conv2" ;
 *     float gradcam_low(sample) ;
 *         gradcam_low:long_name = "least value of gradcam before scaling: raw = low + (high - low) * gradcam" ;
 *     float gradcam_high(sample) ;
 *         gradcam_high:long_name = "largest value of gradcam before scaling: raw = low + (high - low) * gradcam" ;
 *     float conv1_filters(conv1_filter, conv1_in_channel, conv1_ky, conv1_kx) ;
 *         conv1_filters:long_name = "weights of conv1" ;
 *     float prediction_probability(sample) ;
 *         prediction_probability:long_name = "softmax of the predicted category\'s logit" ;
 *         prediction_probability:coordinates = "label prediction" ;
 *     float prediction_entropy(sample) ;
 *         prediction_entropy:long_name = "entropy of the softmax of the logits, in nats" ;
 *         prediction_entropy:coordinates = "label prediction" ;
 *     float prediction_margin(sample) ;
 *         prediction_margin:long_name = "softmax of the predicted category less that of the next" ;
 *         prediction_margin:coordinates = "label prediction" ;
 *     float prediction_loss(sample) ;
 *         prediction_loss:long_name = "cross-entropy of the label, in nats; NaN = no label" ;
 *         prediction_loss:coordinates = "label prediction" ;
 *     int64 confusion(true_category, predicted_category) ;
 *         confusion:long_name = "samples of each category by prediction" ;
 *     double category_precision(true_category) ;
 *         category_precision:long_name = "share of a category\'s predictions that are right" ;
 *     double category_recall(true_category) ;
 *         category_recall:long_name = "share of a category\'s samples that are predicted so" ;
 *     double category_f1(true_category) ;
 *         category_f1:long_name = "harmonic mean of precision and recall" ;
 *     double prediction_accuracy_overall ;
 *         prediction_accuracy_overall:long_name = "share of the labelled samples predicted right" ;
 *     double prediction_calibration_error_overall ;
 *         prediction_calibration_error_overall:long_name = "expected calibration error, by the probability of the prediction in equal bins" ;
 *         prediction_calibration_error_overall:bins = 15LL ;
 *     float logits_pca(sample, logits_pc) ;
 *         logits_pca:long_name = "principal component scores of logits" ;
 *         logits_pca:coordinates = "label prediction" ;
 *     double logits_pca_components(logits_pc, category) ;
 *         logits_pca_components:long_name = "principal axes of logits" ;
 *     double logits_pca_center(category) ;
 *         logits_pca_center:long_name = "mean features of logits" ;
 *     double logits_pca_explained_variance(logits_pc) ;
 *         logits_pca_explained_variance:long_name = "variance of logits along each component" ;
 *     double logits_pca_explained_variance_ratio(logits_pc) ;
 *         logits_pca_explained_variance_ratio:long_name = "share of the total variance of logits along each component" ;
 *     float logits_tsne(sample, logits_axis) ;
 *         logits_tsne:long_name = "exact t-SNE map of logits" ;
 *         logits_tsne:coordinates = "label prediction" ;
 *         logits_tsne:perplexity = 30. ;
 *         logits_tsne:early_exaggeration = 12. ;
 *         logits_tsne:learning_rate = 208.333333333333 ;
 *         logits_tsne:affinity_dropped_mass = 6.08044715992961e-08 ;
 *         logits_tsne:affinity_sum = 1.00000000928913 ;
 *         logits_tsne:samples_mapped = 10000LL ;
 *         logits_tsne:pre_pca = 0LL ;
 *         logits_tsne:max_iter = 1000LL ;
 *         logits_tsne:exaggeration_iter = 250LL ;
 *         logits_tsne:n_iter = 1000LL ;
 *         logits_tsne:seed = 0LL ;
 *         logits_tsne:affinity_nonzeros = 10926830LL ;
 *         logits_tsne:schedule = "sklearn" ;
 *         logits_tsne:init = "pca" ;
 *     float logits_tsne_kl_sample(sample) ;
 *         logits_tsne_kl_sample:long_name = "what each sample has of the divergence of the t-SNE map of logits" ;
 *         logits_tsne_kl_sample:coordinates = "label prediction" ;
 *         logits_tsne_kl_sample:comment = "they add up to that of the map" ;
 *     float logits_sigma(sample) ;
 *         logits_sigma:long_name = "standard deviation of each sample\'s Gaussian in what t-SNE maps of logits" ;
 *         logits_sigma:coordinates = "label prediction" ;
 *         logits_sigma:perplexity = 30. ;
 *     double logits_tsne_kl ;
 *         logits_tsne_kl:long_name = "Kullback-Leibler divergence of the t-SNE map of logits" ;
 *     int logits_tsne_check(logits_tsne_check) ;
 *         logits_tsne_check:long_name = "iterations of t-SNE of logits at which its divergence was taken" ;
 *     double logits_tsne_kl_history(logits_tsne_check) ;
 *         logits_tsne_kl_history:long_name = "Kullback-Leibler divergence of logits before the update" ;
 *     float logits_label_agreement(sample) ;
 *         logits_label_agreement:long_name = "share of the labelled neighbours in the logits that have the label" ;
 *         logits_label_agreement:coordinates = "label prediction" ;
 *         logits_label_agreement:neighbors = 15LL ;
 *     double logits_label_agreement_overall ;
 *         logits_label_agreement_overall:long_name = "share of neighbours in the logits that have the sample\'s label" ;
 *         logits_label_agreement_overall:neighbors = 15LL ;
 *     double logits_knn_accuracy_overall ;
 *         logits_knn_accuracy_overall:long_name = "accuracy of labels told by the neighbours in the logits" ;
 *         logits_knn_accuracy_overall:neighbors = 15LL ;
 *     float logits_pca_trustworthiness(sample) ;
 *         logits_pca_trustworthiness:long_name = "1 where no neighbour in the PCA map of logits is a false one" ;
 *         logits_pca_trustworthiness:coordinates = "label prediction" ;
 *         logits_pca_trustworthiness:neighbors = 15LL ;
 *     float logits_pca_continuity(sample) ;
 *         logits_pca_continuity:long_name = "1 where no neighbour is missing in the PCA map of logits" ;
 *         logits_pca_continuity:coordinates = "label prediction" ;
 *         logits_pca_continuity:neighbors = 15LL ;
 *     float logits_pca_recall(sample) ;
 *         logits_pca_recall:long_name = "share of the nearest samples that are nearest in the PCA map of logits, too" ;
 *         logits_pca_recall:coordinates = "label prediction" ;
 *         logits_pca_recall:neighbors = 10LL ;
 *     float logits_pca_label_agreement(sample) ;
 *         logits_pca_label_agreement:long_name = "share of the labelled neighbours in the PCA map of logits that have the label" ;
 *         logits_pca_label_agreement:coordinates = "label prediction" ;
 *         logits_pca_label_agreement:neighbors = 15LL ;
 *     double logits_pca_trustworthiness_overall ;
 *         logits_pca_trustworthiness_overall:long_name = "trustworthiness of the PCA map of logits (Venna & Kaski)" ;
 *         logits_pca_trustworthiness_overall:neighbors = 15LL ;
 *     double logits_pca_continuity_overall ;
 *         logits_pca_continuity_overall:long_name = "continuity of the PCA map of logits (Venna & Kaski)" ;
 *         logits_pca_continuity_overall:neighbors = 15LL ;
 *     double logits_pca_recall_overall ;
 *         logits_pca_recall_overall:long_name = "share of nearest samples that are nearest in the PCA map of logits" ;
 *         logits_pca_recall_overall:neighbors = 10LL ;
 *     double logits_pca_label_agreement_overall ;
 *         logits_pca_label_agreement_overall:long_name = "share of neighbours in the PCA map of logits that have the sample\'s label" ;
 *         logits_pca_label_agreement_overall:neighbors = 15LL ;
 *     double logits_pca_knn_accuracy_overall ;
 *         logits_pca_knn_accuracy_overall:long_name = "accuracy of labels told by the neighbours in the PCA map of logits" ;
 *         logits_pca_knn_accuracy_overall:neighbors = 15LL ;
 *     double logits_pca_knc_overall ;
 *         logits_pca_knc_overall:long_name = "share of nearest class means that are nearest in the PCA map of logits (KNC, Kobak & Berens)" ;
 *         logits_pca_knc_overall:class_neighbors = 4LL ;
 *     double logits_pca_cpd_overall ;
 *         logits_pca_cpd_overall:long_name = "Spearman correlation of distances with those in the PCA map of logits (CPD, Kobak & Berens)" ;
 *         logits_pca_cpd_overall:pairs = 500000LL ;
 *         logits_pca_cpd_overall:pairs_chosen = "a fixed random sample" ;
 *     double logits_pca_stress_overall ;
 *         logits_pca_stress_overall:long_name = "normalised stress of the PCA map of logits at its best scale" ;
 *         logits_pca_stress_overall:pairs = 500000LL ;
 *         logits_pca_stress_overall:pairs_chosen = "a fixed random sample" ;
 *     float logits_tsne_trustworthiness(sample) ;
 *         logits_tsne_trustworthiness:long_name = "1 where no neighbour in the t-SNE map of logits is a false one" ;
 *         logits_tsne_trustworthiness:coordinates = "label prediction" ;
 *         logits_tsne_trustworthiness:neighbors = 15LL ;
 *     float logits_tsne_continuity(sample) ;
 *         logits_tsne_continuity:long_name = "1 where no neighbour is missing in the t-SNE map of logits" ;
 *         logits_tsne_continuity:coordinates = "label prediction" ;
 *         logits_tsne_continuity:neighbors = 15LL ;
 *     float logits_tsne_recall(sample) ;
 *         logits_tsne_recall:long_name = "share of the nearest samples that are nearest in the t-SNE map of logits, too" ;
 *         logits_tsne_recall:coordinates = "label prediction" ;
 *         logits_tsne_recall:neighbors = 10LL ;
 *     float logits_tsne_label_agreement(sample) ;
 *         logits_tsne_label_agreement:long_name = "share of the labelled neighbours in the t-SNE map of logits that have the label" ;
 *         logits_tsne_label_agreement:coordinates = "label prediction" ;
 *         logits_tsne_label_agreement:neighbors = 15LL ;
 *     double logits_tsne_trustworthiness_overall ;
 *         logits_tsne_trustworthiness_overall:long_name = "trustworthiness of the t-SNE map of logits (Venna & Kaski)" ;
 *         logits_tsne_trustworthiness_overall:neighbors = 15LL ;
 *     double logits_tsne_continuity_overall ;
 *         logits_tsne_continuity_overall:long_name = "continuity of the t-SNE map of logits (Venna & Kaski)" ;
 *         logits_tsne_continuity_overall:neighbors = 15LL ;
 *     double logits_tsne_recall_overall ;
 *         logits_tsne_recall_overall:long_name = "share of nearest samples that are nearest in the t-SNE map of logits" ;
 *         logits_tsne_recall_overall:neighbors = 10LL ;
 *     double logits_tsne_label_agreement_overall ;
 *         logits_tsne_label_agreement_overall:long_name = "share of neighbours in the t-SNE map of logits that have the sample\'s label" ;
 *         logits_tsne_label_agreement_overall:neighbors = 15LL ;
 *     double logits_tsne_knn_accuracy_overall ;
 *         logits_tsne_knn_accuracy_overall:long_name = "accuracy of labels told by the neighbours in the t-SNE map of logits" ;
 *         logits_tsne_knn_accuracy_overall:neighbors = 15LL ;
 *     double logits_tsne_knc_overall ;
 *         logits_tsne_knc_overall:long_name = "share of nearest class means that are nearest in the t-SNE map of logits (KNC, Kobak & Berens)" ;
 *         logits_tsne_knc_overall:class_neighbors = 4LL ;
 *     double logits_tsne_cpd_overall ;
 *         logits_tsne_cpd_overall:long_name = "Spearman correlation of distances with those in the t-SNE map of logits (CPD, Kobak & Berens)" ;
 *         logits_tsne_cpd_overall:pairs = 500000LL ;
 *         logits_tsne_cpd_overall:pairs_chosen = "a fixed random sample" ;
 *     double logits_tsne_stress_overall ;
 *         logits_tsne_stress_overall:long_name = "normalised stress of the t-SNE map of logits at its best scale" ;
 *         logits_tsne_stress_overall:pairs = 500000LL ;
 *         logits_tsne_stress_overall:pairs_chosen = "a fixed random sample" ;
 *     int64 logits_suspect(logits_suspect) ;
 *         logits_suspect:long_name = "position in the input file of a sample whose label is likely to be wrong, likeliest first" ;
 *     float logits_suspect_score(logits_suspect) ;
 *         logits_suspect_score:long_name = "probability of the prediction times the share of neighbours with another label" ;
 *     int logits_suspect_prediction(logits_suspect) ;
 *         logits_suspect_prediction:long_name = "what the network says it is" ;
 *
 * // global attributes:
 *         :title = "What a trained network computes for a test set" ;
 *         :Conventions = "CF-1.11, ACDD-1.3" ;
 *         :summary = "Logits, features, attribution maps, principal components and exact t-SNE maps, one row a sample" ;
 *         :source = "cnnscope 0.1.0" ;
 *         :version = "0.1.0" ;
 *         :model_sha256 = "bd708a40390abfa9198d2372ccc4a23e5d20e9a6834779dd20054aca411c3eda" ;
 *         :images_sha256 = "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be" ;
 *         :labels_sha256 = "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b" ;
 *         :sample_count = 10000LL ;
 *         :option_layout = "NCHW" ;
 *         :option_scale = "0.0039215686274509803" ;
 *         :option_mean = "0" ;
 *         :option_std = "1" ;
 *         :option_samples = "all" ;
 *         :option_logits_node = "default" ;
 *         :option_embed = "logits" ;
 *         :option_pca = "2" ;
 *         :option_tsne = "2" ;
 *         :option_pre_pca = "50" ;
 *         :option_tsne_samples = "all" ;
 *         :option_perplexity = "30" ;
 *         :option_runs = "1" ;
 *         :option_schedule = "sklearn" ;
 *         :option_max_iter = "1000" ;
 *         :option_early_exaggeration = "12" ;
 *         :option_exaggeration_iter = "250" ;
 *         :option_learning_rate = "auto" ;
 *         :option_init = "pca" ;
 *         :option_seed = "0" ;
 *         :option_neighbors = "15" ;
 *         :option_attribution = "saliency,gradcam:conv2" ;
 *         :option_target = "predicted" ;
 *         :option_baseline = "zero" ;
 *         :option_ig_steps = "50" ;
 *         :option_ig_rule = "gausslegendre" ;
 *         :option_ig_tolerance = "0" ;
 *         :option_smoothgrad_draws = "25" ;
 *         :option_smoothgrad_noise = "0.14999999999999999" ;
 *         :option_occlusion_window = "0" ;
 *         :option_occlusion_stride = "0" ;
 *         :option_cam_resolution = "layer" ;
 *         :option_evidence = "default" ;
 *         :option_evidence_steps = "20" ;
 *         :option_sanity = "0" ;
 *         :option_feature_maps = "default" ;
 *         :option_filters = "default" ;
 *         :option_keep = "maps" ;
 *         :option_keep_maps = "default" ;
 *         :maps_kept = "all" ;
 *         :status = "complete" ;
 * }
 */
#include "output.h"

#include <ctype.h>
#include <netcdf.h>
#include <netcdf_par.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "comm.h"
#include "dataset.h"
#include "error.h"
#include "partial.h"
#include "stop.h"
#include "watchdog.h"

enum { CHUNK_BYTES = 256 << 10 /* of a compressed variable: read as a whole for a single sample */ };

static const double SLOW_DISK = 1e7; /* bytes/s: how slow the watchdog lets it be */

struct Output {
    Partial partial;
    int file;
    int compress; /* level of deflate, 0 = none */
    bool counts; /* there is no file: only the bytes of what is declared are added up */
    int64_t bytes;
};

static void check(const Output *output, int status, const char *what) {
    if (status == NC_NOERR)
        return;
    if (status == NC_EHDFERR || status > 0)
        die("%s: %s failed (%s); is the disk full, or a quota or file-size limit reached?", output->partial.path, what,
            nc_strerror(status));
    die("%s: %s failed: %s", output->partial.path, what, nc_strerror(status));
}

Output *output_create(const char *path, bool overwrite, int compress) {
    Output *output = calloc(1, sizeof *output);
    if (!output)
        die("out of memory");
    error_set_stage("creating the output");
    partial_take(&output->partial, path, overwrite);
    output->compress = compress;
    check(output,
          nc_create_par(output->partial.name, NC_NETCDF4 | NC_CLOBBER, MPI_COMM_WORLD, MPI_INFO_NULL, &output->file),
          "creating the file");
    return output;
}

static bool says(int file, const char *name, const char *value) {
    char text[128];
    size_t length;
    return nc_inq_attlen(file, NC_GLOBAL, name, &length) == NC_NOERR && length == strlen(value) &&
           length < sizeof text && nc_get_att_text(file, NC_GLOBAL, name, text) == NC_NOERR &&
           memcmp(text, value, length) == 0;
}

bool output_is_there(const char *path, const char *name, const char *value) {
    struct stat info;
    int file;
    if (stat(path, &info) != 0 || !S_ISREG(info.st_mode) || nc_open(path, NC_NOWRITE, &file) != NC_NOERR)
        return false;
    const bool there = says(file, "status", "complete") && says(file, name, value);
    nc_close(file);
    return there;
}

Output *output_count(void) {
    Output *output = calloc(1, sizeof *output);
    if (!output)
        die("out of memory");
    output->counts = true;
    return output;
}

int64_t output_counted(Output *output) {
    int64_t bytes = output->bytes;
    free(output);
    return bytes;
}

static nc_type type_of(int type) {
    switch (type) {
    case OUTPUT_CHAR: return NC_CHAR;
    case DT_U8:
    case DT_BOOL: return NC_UBYTE;
    case DT_I8: return NC_BYTE;
    case DT_U16: return NC_USHORT;
    case DT_I16: return NC_SHORT;
    case DT_U32: return NC_UINT;
    case DT_I32: return NC_INT;
    case DT_U64: return NC_UINT64;
    case DT_I64: return NC_INT64;
    case DT_F64: return NC_DOUBLE;
    default: return NC_FLOAT;
    }
}

static void legal_name(char *to, size_t size, const char *from) {
    snprintf(to, size, "%s", from);
    for (char *c = to; *c; c++)
        if (!isalnum((unsigned char)*c) && *c != '_')
            *c = '_';
}

void output_layer_name(char *name, size_t size, const char *layer) {
    static const char *const reserved[] = {
        "sample",     "category", "channel", "y",     "x",           "name_length",   "image",      "label",
        "prediction", "saliency", "gradcam", "rank",  "count",       "mean",          "std",        "size",
        "values",     "map",      "name",    "input", "sample_name", "category_name", "map_sample", "dims",
        "data",       "min",      "max",     "sum",   "var",         "all",           "any",
        "confusion",  "occlusion", "smoothgrad"};
    char legal[NC_MAX_NAME];
    legal_name(legal, sizeof legal - 64, layer);
    bool prefix = !isalpha((unsigned char)legal[0]);
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++)
        prefix |= strcmp(legal, reserved[i]) == 0;
    snprintf(name, size, "%s%s", prefix ? "layer_" : "", legal);
}

static int dimension(Output *output, const char *name, int64_t length) {
    char legal[NC_MAX_NAME];
    legal_name(legal, sizeof legal, name);
    int id;
    size_t known;
    if (nc_inq_dimid(output->file, legal, &id) != NC_NOERR) {
        check(output, nc_def_dim(output->file, legal, (size_t)length, &id), legal);
        return id;
    }
    check(output, nc_inq_dimlen(output->file, id, &known), legal);
    if ((int64_t)known != length)
        die("%s: dimension %s would need lengths %zu and %lld; two layers have the same name in the file",
            output->partial.path, legal, known, (long long)length);
    return id;
}

/* Chunks are whole rows of the first dimension; a variable of less than one stays as it is. */
static void compress_var(Output *output, int id, const char *name, const OutputVar *var) {
    size_t chunk[OUTPUT_RANK], row;
    check(output, nc_inq_type(output->file, type_of(var->type), NULL, &row), name);
    for (int i = 1; i < var->rank; i++) {
        chunk[i] = (size_t)var->length[i];
        row *= chunk[i];
    }
    if (var->rank == 0 || row == 0 || (size_t)var->length[0] * row < CHUNK_BYTES)
        return;
    chunk[0] = row < CHUNK_BYTES ? CHUNK_BYTES / row : 1;
    check(output, nc_def_var_chunking(output->file, id, NC_CHUNKED, chunk), name);
    check(output, nc_def_var_deflate(output->file, id, NC_SHUFFLE, 1, output->compress), name);
}

static int count_var(Output *output, const OutputVar *var) {
    int64_t bytes = var->type == OUTPUT_CHAR ? 1 : (int64_t)dtype_bytes((DType)var->type);
    for (int i = 0; i < var->rank; i++)
        bytes *= var->length[i];
    output->bytes += bytes;
    return 0;
}

int output_var(Output *output, const OutputVar *var) {
    if (output->counts)
        return count_var(output, var);
    char name[NC_MAX_NAME];
    int dims[OUTPUT_RANK], id, status = nc_redef(output->file);
    if (status != NC_EINDEFINE)
        check(output, status, "defining a variable");
    legal_name(name, sizeof name, var->name);
    for (int i = 0; i < var->rank; i++)
        dims[i] = dimension(output, var->dims[i], var->length[i]);
    check(output, nc_def_var(output->file, name, type_of(var->type), var->rank, dims, &id), name);
    check(output, nc_def_var_fill(output->file, id, NC_NOFILL, NULL), name); /* every value is written */
    if (output->compress > 0)
        compress_var(output, id, name, var);
    output_text(output, id, "long_name", var->long_name);
    if (var->units)
        output_text(output, id, "units", var->units);
    if (var->coordinates)
        output_text(output, id, "coordinates", var->coordinates);
    if (var->type == OUTPUT_CHAR)
        output_text(output, id, "_Encoding", "utf-8");
    return id;
}

/* False where there is no file to write an attribute to. */
static bool define_mode(Output *output) {
    int status = output->counts ? NC_EINDEFINE : nc_redef(output->file);
    if (status != NC_EINDEFINE)
        check(output, status, "writing an attribute");
    return !output->counts;
}

void output_text(Output *output, int var, const char *name, const char *value) {
    if (define_mode(output))
        check(output, nc_put_att_text(output->file, var, name, strlen(value), value), name);
}

void output_double(Output *output, int var, const char *name, double value) {
    if (define_mode(output))
        check(output, nc_put_att_double(output->file, var, name, NC_DOUBLE, 1, &value), name);
}

void output_int64(Output *output, int var, const char *name, int64_t value) {
    long long number = value;
    if (define_mode(output))
        check(output, nc_put_att_longlong(output->file, var, name, NC_INT64, 1, &number), name);
}

void output_int32s(Output *output, int var, const char *name, const int32_t *values, int count) {
    if (define_mode(output))
        check(output, nc_put_att_int(output->file, var, name, NC_INT, (size_t)count, values), name);
}

static void data_mode(Output *output, int var) {
    int status = nc_enddef(output->file);
    if (status != NC_ENOTINDEFINE)
        check(output, status, "defining variables");
    check(output, nc_var_par_access(output->file, var, NC_COLLECTIVE), "parallel access");
}

/* Rows along dimension `along`, 0 or 1; index: of dimension 0 where that is not the one. */
static void write_slab(Output *output, int var, int along, int64_t index, int64_t first, int64_t count,
                       const void *data) {
    if (output->counts)
        return;
    static const char nothing[8];
    size_t start[NC_MAX_VAR_DIMS] = {0}, extent[NC_MAX_VAR_DIMS] = {0}, item;
    int dims[NC_MAX_VAR_DIMS], rank;
    char name[NC_MAX_NAME + 1];
    nc_type type;
    data_mode(output, var);
    check(output, nc_inq_var(output->file, var, name, &type, &rank, dims, NULL), "a variable");
    check(output, nc_inq_type(output->file, type, NULL, &item), name);
    for (int i = 0; i < rank; i++)
        check(output, nc_inq_dimlen(output->file, dims[i], &extent[i]), name);
    if (along == 1) {
        start[0] = (size_t)index;
        extent[0] = 1;
    }
    start[along] = count > 0 ? (size_t)first : 0;
    extent[along] = (size_t)count; /* of a scalar netCDF looks at neither */
    int64_t bytes = count > 0 ? (int64_t)item : 0;
    for (int i = 0; i < rank; i++)
        bytes *= (int64_t)extent[i];
    output->bytes += bytes;
    check(output, nc_put_vara(output->file, var, start, extent, count > 0 ? data : nothing), name);
}

void output_rows(Output *output, int var, int64_t first, int64_t count, const void *rows) {
    write_slab(output, var, 0, 0, first, count, rows);
}

void output_rows_of(Output *output, int var, int64_t index, int64_t first, int64_t count, const void *rows) {
    write_slab(output, var, 1, index, first, count, rows);
}

void output_whole(Output *output, int var, const void *data) {
    if (output->counts)
        return;
    int rank, dims[NC_MAX_VAR_DIMS];
    size_t length = 1;
    check(output, nc_inq_varndims(output->file, var, &rank), "a variable");
    if (rank > 0) {
        check(output, nc_inq_vardimid(output->file, var, dims), "a variable");
        check(output, nc_inq_dimlen(output->file, dims[0], &length), "a variable");
    }
    bool mine = comm_rank() == 0 || rank == 0; /* a scalar has no empty selection: all ranks write the same value */
    write_slab(output, var, 0, 0, 0, mine ? (int64_t)length : 0, data);
}

int64_t output_bytes(const Output *output) {
    int64_t bytes = output->bytes;
    comm_sum_int64(&bytes, 1);
    return bytes;
}

void output_flush(Output *output) {
    int status = nc_enddef(output->file);
    if (status != NC_ENOTINDEFINE)
        check(output, status, "defining variables");
    check(output, nc_sync(output->file), "writing the file");
    partial_sync(&output->partial);
}

void output_finish(Output *output) {
    output_text(output, OUTPUT_GLOBAL, "status", "complete");
    error_set_stage("closing the file");
    const double patience = (double)output_bytes(output) / SLOW_DISK;
    watchdog_allow(patience);
    check(output, nc_close(output->file), "closing the file");
    watchdog_allow(patience);
    stop_ignore(); /* what is left is short, and then there is nothing to go on with */
    partial_rename(&output->partial);
    free(output);
}
