"""What the network says of each sample and how often it is right: against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

from program import GOLDEN, IMAGES, MODEL, succeed, values

N = 1500
PLANTED = [17, 400, 402, 1203]  # samples given another label than their own


@pytest.fixture(scope="module")
def results(tmp_path_factory, mnist) -> list[dict[str, np.ndarray]]:
    """On one rank and on three: some samples without label, some with a wrong one, category 8 with none."""
    folder = tmp_path_factory.mktemp("predictions")
    label = mnist[1].astype(np.int64)
    label[5:100:10] = -1
    label[label == 8] = -1
    label[PLANTED] = (label[PLANTED] + 3) % 8
    np.save(folder / "label.npy", label)
    words = ("--model", MODEL, "--images", IMAGES, "--labels", folder / "label.npy", "--samples", N, "--attribution",
             "none", "--embed", "logits,gap", "--tsne", 0)
    return [values(succeed(folder / f"{n}.nc", *words, ranks=n)) for n in (1, 3)]


def test_of_each_sample(results):
    r = results[0]
    logs = log_softmax(r["logits"].astype(np.float64), axis=1)
    p = np.sort(np.exp(logs), 1)
    assert np.allclose(r["prediction_probability"], p[:, -1], atol=1e-6)
    assert np.allclose(r["prediction_margin"], p[:, -1] - p[:, -2], atol=1e-6)
    assert np.allclose(r["prediction_entropy"], -(np.exp(logs) * logs).sum(1), rtol=1e-4, atol=1e-6)
    known = r["label"] >= 0
    expected = np.where(known, -logs[np.arange(N), r["label"]], np.nan)
    assert np.allclose(r["prediction_loss"], expected, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert np.isnan(r["prediction_loss"]).sum() == (~known).sum() > 0
    assert r["prediction_loss"][known].mean() == pytest.approx(
        log_loss(r["label"][known], np.exp(logs[known]), labels=range(10)), rel=1e-5)


def test_of_each_category(results):
    r = results[0]
    known = r["label"] >= 0
    label, prediction = r["label"][known], r["prediction"][known]
    assert np.array_equal(r["confusion"], confusion_matrix(label, prediction, labels=range(10)))
    expected = precision_recall_fscore_support(label, prediction, labels=range(10), zero_division=0)
    for name, values_ in zip(("precision", "recall", "f1"), expected):
        assert np.allclose(r[f"category_{name}"], values_, atol=1e-12), name
    assert r["category_recall"][8] == 0 and r["prediction_accuracy_overall"] == (label == prediction).mean()


def test_calibration_error(results):
    r = results[0]
    known = r["label"] >= 0
    p, right = r["prediction_probability"][known].astype(np.float64), (r["label"] == r["prediction"])[known]
    edges = np.linspace(0, 1, 16)
    error = 0.0
    for low, high in zip(edges, edges[1:]):
        inside = (p > low) & (p <= high)
        error += abs(right[inside].sum() - p[inside].sum()) / len(p)
    assert float(r["prediction_calibration_error_overall"]) == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize("layer", ["logits", "gap"])
def test_likely_label_errors(results, layer):
    """The planted ones come first, and the order is that of the definition."""
    r = results[0]
    score = r["prediction_probability"] * (1 - r[f"{layer}_label_agreement"])
    chosen = (r["label"] >= 0) & (r["label"] != r["prediction"]) & (r[f"{layer}_label_agreement"] < 0.5)
    expected = np.flatnonzero(chosen)[np.argsort(-score[chosen], kind="stable")]
    assert np.array_equal(r[f"{layer}_suspect"], expected[:100])
    assert np.allclose(r[f"{layer}_suspect_score"], score[r[f"{layer}_suspect"]])
    assert np.array_equal(r[f"{layer}_suspect_prediction"], r["prediction"][r[f"{layer}_suspect"]])
    assert set(PLANTED) <= set(r[f"{layer}_suspect"][:12])


def test_same_on_any_number_of_ranks(results):
    one, three = results
    assert one.keys() == three.keys() and {"confusion", "gap_knn_accuracy_overall", "gap_suspect"} <= one.keys()
    for name in one:
        assert one[name].tobytes() == three[name].tobytes(), name


def test_one_output(tmp_path):
    """Two categories, of which the logit speaks for the second."""
    images = np.load(GOLDEN / "binary_images.npy")
    label = np.arange(len(images)) % 2
    np.save(tmp_path / "label.npy", label)
    r = values(succeed(tmp_path / "r.nc", "--model", GOLDEN / "binary.pth", "--images", GOLDEN / "binary_images.npy",
                       "--labels", tmp_path / "label.npy", "--tsne", 0, "--attribution", "none", ranks=2))
    p = 1 / (1 + np.exp(-r["logits"][:, 0].astype(np.float64)))
    assert np.allclose(r["prediction_probability"], np.maximum(p, 1 - p), atol=1e-6)
    assert np.allclose(r["prediction_margin"], np.abs(2 * p - 1), atol=1e-6)
    assert np.allclose(r["prediction_loss"], -np.log(np.where(label == 1, p, 1 - p)), atol=1e-5)
    assert np.array_equal(r["confusion"], confusion_matrix(label, r["prediction"], labels=[0, 1]))


def test_without_labels_only_how_sure_it_is(tmp_path, few):
    r = values(succeed(tmp_path / "r.nc", "--model", MODEL, "--images", few[0], "--tsne", 0))
    assert "prediction_entropy" in r and not {"prediction_loss", "confusion", "logits_suspect"} & r.keys()
