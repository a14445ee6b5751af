"""The demo's job on MNIST's whole test set, against PyTorch and scikit-learn (golden/make.py) and against definitions.

Relative errors are in units of the largest expected value. A gradient jumps where a relu's input or the lead of a
maximum is within rounding of zero: PyTorch's own fp32 and fp64 differ so in 1 of 10,000 images; FLIPS are allowed here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from program import GOLDEN, raw, read, relative_error, relative_errors, succeed, values

TOLERANCE = 1e-4
FLIPS = 1  # images of a set of 100 or fewer


@pytest.fixture(scope="module")
def result(demo: Path, gap: Path) -> dict[str, np.ndarray]:
    return values(gap) | values(demo)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "mnist.npz"))


def test_samples_are_the_file(result, mnist):
    images, labels = mnist
    assert np.array_equal(result["sample"], np.arange(10000)) and result["sample"].dtype == np.int64
    assert np.array_equal(result["image"], images[:, None]) and result["image"].dtype == np.uint8
    assert np.array_equal(result["label"], labels) and result["label"].dtype == np.int32


def test_accuracy_is_9792(result, mnist):
    assert result["prediction"].dtype == np.int32
    assert int((result["prediction"] != mnist[1]).sum()) == 208


def test_logits(result, golden):
    assert result["logits"].dtype == np.float32
    assert relative_error(result["logits"], golden["logits"]) < TOLERANCE
    assert np.array_equal(result["prediction"], result["logits"].argmax(1))


def test_conv1_map_of_the_first_sample(result, golden):
    assert np.array_equal(result["conv1_map_sample"], [0])
    assert relative_error(result["conv1_maps"][0], golden["conv1"]) < TOLERANCE


def test_gap_features(result, golden):
    assert result["gap"].shape == (10000, 32)
    assert relative_error(result["gap"][:500], golden["gap"]) < TOLERANCE


@pytest.mark.parametrize("variable, reference, count",
                         [("saliency", "saliency", 100), ("gradcam", "gradcam_conv2", 50)])
def test_maps(result, golden, variable, reference, count):
    first = {name: values[:count] for name, values in result.items() if name.startswith(variable)}
    errors = relative_errors(raw(first, variable), golden[reference])
    assert (errors > TOLERANCE).sum() <= FLIPS, np.flatnonzero(errors > TOLERANCE)


@pytest.mark.parametrize("variable", ["saliency", "gradcam"])
def test_maps_of_every_sample_span_0_to_1(result, variable):
    maps, low, high = (result[variable + end] for end in ("", "_low", "_high"))
    flat = maps.reshape(10000, -1)
    constant = high == low
    assert np.isfinite(flat).all() and (low >= 0).all()
    assert (flat[~constant].min(1) == 0).all() and (flat[~constant].max(1) == 1).all()
    assert (flat[constant] == 0).all() and constant.sum() < 100


def test_filters_are_the_weights(result):
    weight = np.load(GOLDEN / "mnist.npz")["conv1_weight"]
    assert np.array_equal(result["conv1_filters"], weight)


def test_pca_of_the_logits(result, golden):
    for name, key in (("", "scores"), ("_components", "components"), ("_center", "mean"),
                      ("_explained_variance", "explained_variance"),
                      ("_explained_variance_ratio", "explained_variance_ratio")):
        assert relative_error(result[f"logits_pca{name}"], golden[f"pca_{key}"]) < TOLERANCE, name


def test_pca_of_gap_by_definition(result):
    x = result["gap"].astype(np.float64)
    centered = x - x.mean(0)
    _, singular, axes = np.linalg.svd(centered, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2][[0, 1], np.abs(axes[:2]).argmax(1)])[:, None]
    assert relative_error(result["gap_pca_components"], axes) < TOLERANCE
    assert relative_error(result["gap_pca"], centered @ axes.T) < TOLERANCE
    assert relative_error(result["gap_pca_explained_variance"], singular[:2] ** 2 / 9999) < TOLERANCE
    ratio = singular[:2] ** 2 / (singular**2).sum()
    assert relative_error(result["gap_pca_explained_variance_ratio"], ratio) < TOLERANCE


def test_tsne_kl_of_the_logits(result):
    assert result["logits_tsne_kl"] <= 1.575
    history, check = result["logits_tsne_kl_history"], result["logits_tsne_check"]
    assert np.array_equal(check, np.arange(49, 1000, 50)) and np.isfinite(history).all()
    late = history[check >= 300]
    assert (np.diff(late) < 0).all() and result["logits_tsne_kl"] < late[-1] + 1e-3


def test_tsne_kl_is_what_the_map_has(result):
    """The KL divergence once more, from the logits and the map alone, in double precision."""
    assert result["logits_tsne_kl"] == pytest.approx(exact_kl(result["logits"], result["logits_tsne"]), rel=2e-4)


def test_tsne_is_trustworthy(result):
    assert trust(result["logits"], result["logits_tsne"]) >= 0.995
    assert trust(result["gap"], result["gap_tsne"]) >= 0.98
    some = result["logits"][::10], result["logits_tsne"][::10]
    assert trust(*some) == pytest.approx(trustworthiness(*some), abs=1e-9)


@pytest.mark.parametrize("layer", ["logits", "gap"])
def test_fast_schedule_reaches_the_same_divergence_in_half_the_iterations(result, tmp_path, layer):
    np.save(tmp_path / "x.npy", result[layer])
    fast = succeed(tmp_path / "fast.nc", "embed", "--input", tmp_path / "x.npy", "--schedule", "fast", "--pca", 0,
                   ranks=2, timeout=240)
    got = values(fast)
    assert read(fast)[0]["input_tsne"].attributes["n_iter"] <= 500
    assert got["input_tsne_kl"] <= result[f"{layer}_tsne_kl"]
    near, kept, before = (nearest(x) for x in (result[layer], got["input_tsne"], result[f"{layer}_tsne"]))
    assert recall(near, kept) >= recall(near, before) - 0.002
    scores = [trust(result[layer], y) for y in (got["input_tsne"], result[f"{layer}_tsne"])]
    assert scores[0] >= scores[1] - 0.001


def trust(x: np.ndarray, y: np.ndarray, k: int = 5) -> float:
    """scikit-learn's trustworthiness, by counting who is nearer: a tenth of the time of sorting all."""
    n, x = len(x), x.astype(np.float64)
    near = NearestNeighbors(n_neighbors=k).fit(y).kneighbors(return_distance=False)
    intruders = 0
    for rows in np.array_split(np.arange(n), n // 500 + 1):
        distance = squared_distances(x, rows)
        distance[np.arange(len(rows)), rows] = -1
        reach = np.take_along_axis(distance, near[rows], 1)
        rank = np.stack([(distance < reach[:, i : i + 1]).sum(1) for i in range(k)])
        intruders += np.maximum(rank - k, 0).sum()
    return 1 - 2 * intruders / (n * k * (2 * n - 3 * k - 1))


def nearest(x: np.ndarray) -> np.ndarray:
    """The 10 nearest neighbours of each sample (N, 10)."""
    return NearestNeighbors(n_neighbors=10).fit(x).kneighbors(return_distance=False)


def recall(near: np.ndarray, kept: np.ndarray) -> float:
    """Share of the neighbours `near` that `kept` has."""
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(near, kept)]))


def test_tsne_says_what_it_left_out(demo):
    attributes = read(demo)[0]["logits_tsne"].attributes
    assert 0 <= attributes["affinity_dropped_mass"] <= 2.0**-23
    assert attributes["affinity_sum"] == pytest.approx(1, abs=1e-6)
    assert 30 * 10000 < attributes["affinity_nonzeros"] < 10000**2
    assert attributes["n_iter"] == 1000 and attributes["perplexity"] == 30


def exact_kl(x: np.ndarray, y: np.ndarray, perplexity: float = 30, neighbours: int = 1500) -> float:
    """KL(P || Q) of a map y (N, 2) of x (N, D). The neighbours hold all but 1e-7 of P; Q is of all pairs."""
    n = len(x)
    x, y = x.astype(np.float64), y.astype(np.float64)
    p, z = np.zeros((n, n), np.float32), 0.0
    for rows in np.array_split(np.arange(n), 40):
        distance = squared_distances(x, rows)
        distance[np.arange(len(rows)), rows] = np.inf
        near = np.argpartition(distance, neighbours, axis=1)[:, :neighbours]
        weights = conditional(np.take_along_axis(distance, near, 1), perplexity)
        np.put_along_axis(p[rows[0] : rows[-1] + 1], near, weights, 1)
        z += (1 / (1 + squared_distances(y, rows))).sum() - len(rows)
    kl = 0.0
    for rows in np.array_split(np.arange(n), 40):
        joint = (p[rows].astype(np.float64) + p[:, rows].T) / (2 * n)
        i, j = np.nonzero(joint)
        joint = joint[i, j]
        q = 1 / (1 + ((y[rows[i]] - y[j]) ** 2).sum(1)) / z
        kl += (joint * np.log(joint / q)).sum()
    return kl


def squared_distances(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    norm = (x**2).sum(1)
    return np.maximum(norm[rows][:, None] + norm - 2 * x[rows] @ x.T, 0)


def conditional(distance: np.ndarray, perplexity: float) -> np.ndarray:
    """Rows of p(j|i) of that perplexity (rows, neighbours), by bisection on log beta, to 1e-6 of it."""
    distance = distance - distance.min(1, keepdims=True)
    low, high = np.full(len(distance), -30.0), np.full(len(distance), 30.0)
    for _ in range(26):
        middle = (low + high) / 2
        beta = np.exp(middle)[:, None]
        p = np.exp(-beta * distance)
        total = p.sum(1)
        entropy = np.log(total) + (beta * distance * p).sum(1) / total
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return p / total[:, None]
