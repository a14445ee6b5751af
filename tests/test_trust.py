"""How far maps can be trusted: against scikit-learn, scipy, and plain double precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from scipy.stats import spearmanr
from sklearn.datasets import make_blobs
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from program import read, run, succeed, values

SHORT = ("--max-iter", 60)


def ranks(x: np.ndarray) -> np.ndarray:
    """(N, N) place of each other point by (distance, number), from 1; the point itself has 0."""
    d = cdist(x.astype(np.float64), x.astype(np.float64), "sqeuclidean")
    np.fill_diagonal(d, -1)
    order = np.argsort(d, axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(len(x))[None, :], axis=1)
    return place


def measures(x: np.ndarray, y: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Per sample, from the definitions."""
    n, in_x, in_y = len(x), ranks(x), ranks(y)
    worst = k * (2 * n - 3 * k - 1) / 2 if 2 * k < n else (n - k) * (n - k - 1) / 2
    near_x, near_y = (in_x > 0) & (in_x <= k), (in_y > 0) & (in_y <= k)
    false = ((in_x - k) * (near_y & ~near_x)).sum(1)
    lost = ((in_y - k) * (near_x & ~near_y)).sum(1)
    few = min(k, 10)
    recall = ((in_x > 0) & (in_x <= few) & (in_y > 0) & (in_y <= few)).sum(1) / few
    return {"trustworthiness": 1 - false / max(worst, 1), "continuity": 1 - lost / max(worst, 1), "recall": recall}


def agreement(x: np.ndarray, label: np.ndarray, k: int) -> np.ndarray:
    place = ranks(x)
    near = (place > 0) & (place <= k) & (label >= 0)[None, :]
    with np.errstate(invalid="ignore"):
        share = (near & (label[None, :] == label[:, None])).sum(1) / near.sum(1)
    return np.where(label >= 0, share, np.nan)


def stress(x: np.ndarray, y: np.ndarray) -> float:
    d, m = pdist(x.astype(np.float64)), pdist(y.astype(np.float64))
    scale = (d * m).sum() / (m * m).sum()
    return float(np.sqrt(((scale * m - d) ** 2).sum() / (d * d).sum()))


def knc(x: np.ndarray, y: np.ndarray, label: np.ndarray, k: int) -> float:
    classes = np.unique(label[label >= 0])
    near = []
    for points in (x, y):
        means = np.stack([points[label == c].astype(np.float64).mean(0) for c in classes])
        d = cdist(means, means)
        np.fill_diagonal(d, np.inf)
        near.append(np.argsort(d, axis=1, kind="stable")[:, :k])
    return sum(len(set(a) & set(b)) for a, b in zip(*near)) / (k * len(classes))


def embed(folder: Path, x: np.ndarray, *options: object, label: np.ndarray | None = None,
          ranks: int = 1) -> dict[str, np.ndarray]:
    np.save(folder / "x.npy", x)
    if label is not None:
        np.save(folder / "label.npy", label)
        options = (*options, "--labels", folder / "label.npy")
    return values(succeed(folder / "result.nc", "embed", "--input", folder / "x.npy", *SHORT, "--overwrite", *options,
                          ranks=ranks))


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    x, label = make_blobs(701, 12, centers=7, cluster_std=4, random_state=3)
    return x.astype(np.float32), label.astype(np.int64)


@pytest.mark.parametrize("k, axes", [(15, 2), (1, 2), (40, 3)])
def test_against_scikit_learn(tmp_path, blobs, k, axes):
    x, label = blobs
    result = embed(tmp_path, x, "--neighbors", k, "--tsne", axes, "--pca", 3, label=label, ranks=2)
    for name in ("pca", "tsne"):
        y = result[f"input_{name}"][:, :axes]
        overall = {m: float(result[f"input_{name}_{m}_overall"]) for m in
                   ("trustworthiness", "continuity", "recall", "label_agreement", "knn_accuracy", "knc", "cpd", "stress")}
        assert overall["trustworthiness"] == pytest.approx(trustworthiness(x, y, n_neighbors=k), abs=1e-6)
        assert overall["continuity"] == pytest.approx(trustworthiness(y, x, n_neighbors=k), abs=1e-6)
        for measure, expected in measures(x, y, k).items():
            got = result[f"input_{name}_{measure}"]
            assert np.abs(got - expected).max() < 1e-4 and np.median(np.abs(got - expected)) < 1e-7, measure
            assert overall[measure] == pytest.approx(expected.mean(), abs=1e-6), measure
        few = min(k, 10)
        sets = [NearestNeighbors(n_neighbors=few).fit(p).kneighbors(return_distance=False) for p in (x, y)]
        assert overall["recall"] == pytest.approx(np.mean([len(set(a) & set(b)) / few for a, b in zip(*sets)]))
        assert overall["cpd"] == pytest.approx(spearmanr(pdist(x.astype(float)), pdist(y.astype(float)))[0], abs=1e-5)
        assert overall["stress"] == pytest.approx(stress(x, y), abs=1e-5)
        assert overall["knc"] == knc(x, y, label, 3)
        check_labels(result, f"input_{name}", y, label, k)
    check_labels(result, "input", x, label, k)


def check_labels(result: dict[str, np.ndarray], prefix: str, points: np.ndarray, label: np.ndarray, k: int) -> None:
    expected = agreement(points, label, k)
    assert np.allclose(result[f"{prefix}_label_agreement"], expected, atol=1e-6, equal_nan=True)
    assert float(result[f"{prefix}_label_agreement_overall"]) == pytest.approx(expected.mean(), abs=1e-9)
    classifier = KNeighborsClassifier(n_neighbors=k).fit(points, label)
    assert float(result[f"{prefix}_knn_accuracy_overall"]) == (classifier.predict(None) == label).mean()


def test_samples_without_label_are_left_out(tmp_path, blobs):
    """Their neighbours' votes, their own agreement, and the means of classes."""
    x, label = blobs[0], np.where(np.arange(len(blobs[1])) % 3 == 0, -1, blobs[1])
    label[label == 4] = 9  # a category that nobody has
    result = embed(tmp_path, x, label=label, ranks=2)
    known = label >= 0
    expected = agreement(x, label, 15)
    assert np.allclose(result["input_label_agreement"], expected, atol=1e-6, equal_nan=True)
    place = ranks(x)
    right = []
    for i in np.flatnonzero(known):
        votes = np.bincount(label[(place[i] > 0) & (place[i] <= 15) & known])
        right.append(votes.argmax() == label[i])
    assert float(result["input_knn_accuracy_overall"]) == np.mean(right)
    assert float(result["input_tsne_knc_overall"]) == knc(x, result["input_tsne"], label, 3)


def test_nobody_has_a_label(tmp_path, blobs):
    x = blobs[0][:60]
    result = embed(tmp_path, x, "--perplexity", 5, label=np.full(60, -1))
    assert "input_tsne_trustworthiness" in result and not [n for n in result if "label_agree" in n or "knn" in n]


TRICKY = {
    "duplicates": np.repeat(np.random.default_rng(0).normal(size=(20, 4)), 5, 0),
    "collinear": np.arange(90.0)[:, None] * np.ones((1, 3)),
    "a grid": np.stack(np.meshgrid(*[np.arange(9.0)] * 2), -1).reshape(-1, 2),
    "all the same": np.full((50, 4), 2.5),
    "N = 5": np.random.default_rng(1).normal(size=(5, 3)),
    "N = 20": np.random.default_rng(1).normal(size=(20, 3)),
    "N = 2": np.array([[0.0], [1.0]]),
    "large": np.random.default_rng(2).normal(size=(70, 6)) * 1e30,
    "small": np.random.default_rng(2).normal(size=(70, 6)) * 1e-30,
}


@pytest.mark.parametrize("name", TRICKY)
def test_tricky_points(tmp_path, name):
    """Ties go by number, in the layer and in the map; K of at least half the samples has a range of its own."""
    x = TRICKY[name].astype(np.float32)
    n = len(x)
    result = embed(tmp_path, x, "--perplexity", min(10, n - 1), "--pca", 1, "--keep-neighbors", label=np.zeros(n, int))
    k = min(15, n - 1)
    assert result["input_neighbors"].shape == (n, k)
    for prefix, points in (("input", x), ("input_pca", result["input_pca"]), ("input_tsne", result["input_tsne"])):
        order = np.argsort(ranks(points), axis=1, kind="stable")[:, 1 : k + 1]
        # Of a map of points in a row many distances are ties but for its own rounding, which double precision sees.
        same = 0.99 if prefix == "input" and name not in ("large", "small") else 0.9
        assert (result[f"{prefix}_neighbors"] == order).mean() > same, prefix
        found = np.linalg.norm(points[:, None].astype(float) - points[result[f"{prefix}_neighbors"]], axis=2)
        assert np.allclose(result[f"{prefix}_neighbor_distances"], found, rtol=1e-5)
        assert (result[f"{prefix}_label_agreement"] == 1).all() and result[f"{prefix}_knn_accuracy_overall"] == 1
    for method in ("pca", "tsne"):
        for measure, expected in measures(x, result[f"input_{method}"], k).items():
            assert np.abs(result[f"input_{method}_{measure}"] - expected).max() < 0.02, (method, measure)
        for measure in ("cpd", "stress"):
            assert np.isfinite(result[f"input_{method}_{measure}_overall"])
        assert f"input_{method}_knc_overall" not in result  # one class
    if name == "all the same":
        assert result["input_tsne_cpd_overall"] == 0 and result["input_tsne_stress_overall"] == 1


def test_exact_ties_by_number(tmp_path):
    """On a grid of whole numbers distances are exact, and most of them are ties."""
    x = np.stack(np.meshgrid(*[np.arange(8.0)] * 3), -1).reshape(-1, 3).astype(np.float32)
    for ranks_ in (1, 3):
        result = embed(tmp_path, x, "--pca", 2, "--tsne", 0, "--keep-neighbors", "--batch", 7, ranks=ranks_)
        order = np.argsort(ranks(x), axis=1, kind="stable")[:, 1:16]
        assert np.array_equal(result["input_neighbors"], order)


def test_subset(tmp_path, blobs):
    """With --tsne-samples the measures are those of the mapped samples among themselves."""
    x, label = blobs
    result = embed(tmp_path, x, "--tsne-samples", 200, "--keep-neighbors", label=label, ranks=3)
    mapped = np.isfinite(result["input_tsne"]).all(1)
    assert mapped.sum() == 200
    for name in ("input_tsne_trustworthiness", "input_pca_recall", "input_label_agreement"):
        assert np.array_equal(np.isfinite(result[name]), mapped), name
    for method in ("pca", "tsne"):
        expected = measures(x[mapped], result[f"input_{method}"][mapped], 15)
        for measure in expected:
            assert np.abs(result[f"input_{method}_{measure}"][mapped] - expected[measure]).max() < 1e-4
    assert (result["input_neighbors"][~mapped] == -1).all()
    order = np.argsort(ranks(x[mapped]), axis=1, kind="stable")[:, 1:16]
    assert np.array_equal(result["input_neighbors"][mapped], np.flatnonzero(mapped)[order])


def test_sampled_pairs(tmp_path):
    """Past 5,000 samples distances of some pairs stand for all of them."""
    x = np.random.default_rng(5).normal(size=(5001, 6)).astype(np.float32) * np.array([4, 3, 2, 1, 1, 1], np.float32)
    np.save(tmp_path / "x.npy", x)
    found = [read(succeed(tmp_path / f"{n}.nc", "embed", "--input", tmp_path / "x.npy", "--tsne", 0, ranks=n))[0]
             for n in (1, 3)]
    y = found[0]["input_pca"].values
    cpd, stress_ = (found[0][f"input_pca_{m}_overall"] for m in ("cpd", "stress"))
    assert cpd.attributes["pairs_chosen"] == "a fixed random sample" and 500000 <= cpd.attributes["pairs"] < 510000
    assert float(cpd.values) == pytest.approx(spearmanr(pdist(x), pdist(y))[0], abs=0.003)
    assert float(stress_.values) == pytest.approx(stress(x, y), abs=0.003)
    assert cpd.values == found[1]["input_pca_cpd_overall"].values


def test_no_neighbors_no_measures(tmp_path, blobs):
    result = embed(tmp_path, blobs[0], "--neighbors", 0, label=blobs[1])
    assert not [name for name in result if name.endswith("_overall") or "trust" in name]


def test_wide_points(tmp_path):
    """More dimensions than are summed at once, and more than one block of rows at a time."""
    x = np.random.default_rng(6).normal(size=(150, 300)).astype(np.float32)
    result = embed(tmp_path, x, "--tsne", 0, "--keep-neighbors", ranks=2)
    place = ranks(x)
    assert np.array_equal(result["input_neighbors"], np.argsort(place, axis=1, kind="stable")[:, 1:16])
    assert np.abs(result["input_pca_trustworthiness"] - measures(x, result["input_pca"], 15)["trustworthiness"]).max() < 1e-4


def test_audit_of_our_own_map(tmp_path, blobs):
    """The same numbers for a map in a file as for the map just made, on any number of ranks; and they are printed."""
    x, label = blobs
    made = embed(tmp_path, x, "--keep-neighbors", label=label)
    np.save(tmp_path / "map.npy", made["input_tsne"].astype(np.float64))
    words = ("audit", "--input", tmp_path / "x.npy", "--map", tmp_path / "map.npy", "--labels", tmp_path / "label.npy",
             "--keep-neighbors", "--quiet", "--output")
    for ranks_ in (1, 3):
        done = run(*words, tmp_path / f"audit{ranks_}.nc", ranks=ranks_)
        assert done.status == 0 and done.lines == []
        found, attributes = read(tmp_path / f"audit{ranks_}.nc")
        assert attributes["map_sha256"] and np.array_equal(found["input_map"].values, made["input_tsne"])
        same = [name for name in made if name.startswith("input_tsne_") and name.replace("_tsne_", "_map_") in found]
        assert len(same) == 4 + 8 + 2  # samples, overall, neighbours
        for name in same:
            assert np.array_equal(found[name.replace("_tsne_", "_map_")].values, made[name]), name
        assert found["input_knn_accuracy_overall"].values == made["input_knn_accuracy_overall"]
        printed = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}
        assert len(printed) == 10
        for name, value in printed.items():
            assert value == pytest.approx(float(found[f"{name}_overall"].values), abs=1e-6)


def test_audit_of_a_range(tmp_path, blobs):
    x, y = blobs[0], blobs[0][:, :2]
    for name, part in (("whole", slice(None)), ("part", slice(100, 400))):
        np.save(tmp_path / f"{name}.npy", x[part])
        np.save(tmp_path / f"{name}_map.npy", y[part])
    whole, part = (values(succeed(tmp_path / f"{name}.nc", "audit", "--input", tmp_path / f"{name}.npy", "--map",
                                  tmp_path / f"{name}_map.npy", "--keep-neighbors", *more, ranks=2))
                   for name, more in (("whole", ("--samples", "100:400")), ("part", ())))
    assert np.array_equal(whole["input_neighbors"], part["input_neighbors"] + 100)
    for name in ("input_map", "input_map_recall", "input_map_trustworthiness_overall", "input_map_cpd_overall"):
        assert np.array_equal(whole[name], part[name]), name


def test_points_that_come_in_pieces(tmp_path, blobs):
    """Rows so wide that 64 MiB do not hold those of all ranks; most of their columns say nothing."""
    x, y = blobs[0][:650], blobs[0][:650, :2]
    wide = np.zeros((650, 32768), np.float32)
    wide[:, 100:30000:2500] = x
    np.save(tmp_path / "x.npy", wide)
    np.save(tmp_path / "y.npy", y)
    result = values(succeed(tmp_path / "r.nc", "audit", "--input", tmp_path / "x.npy", "--map", tmp_path / "y.npy",
                            "--keep-neighbors", ranks=3))
    assert (result["input_neighbors"] == np.argsort(ranks(x), axis=1, kind="stable")[:, 1:16]).mean() > 0.999
    for measure, expected in measures(x, y, 15).items():
        assert np.abs(result[f"input_map_{measure}"] - expected).max() < 0.07, measure
        assert result[f"input_map_{measure}_overall"] == pytest.approx(expected.mean(), abs=1e-5)
    assert result["input_map_cpd_overall"] == pytest.approx(spearmanr(pdist(x), pdist(y))[0], abs=1e-5)


def test_audit_tells_a_good_map_from_a_bad_one(tmp_path, blobs):
    x, _ = blobs
    np.save(tmp_path / "x.npy", x)
    scores = []
    for name, y in (("same", x), ("noise", np.random.default_rng(0).normal(size=(len(x), 2)))):
        np.save(tmp_path / f"{name}.npy", y)
        result = values(succeed(tmp_path / f"{name}.nc", "audit", "--input", tmp_path / "x.npy", "--map",
                                tmp_path / f"{name}.npy"))
        scores.append([float(result[f"input_map_{m}_overall"]) for m in ("trustworthiness", "continuity", "recall", "cpd")])
    assert scores[0][:3] == [1, 1, 1] and scores[0][3] == pytest.approx(1)
    assert abs(scores[1][0] - 0.5) < 0.03 and abs(scores[1][1] - 0.5) < 0.03 and abs(scores[1][3]) < 0.03


@pytest.mark.parametrize("words, expected", [
    (("--map", "{short}"), "short.npy: 600 rows of 2 values, expected a map of the 701 samples"),
    (("--map", "{nan}"), "nan.npy: sample 3 holds nan"),
    (("--map", "{none}"), "none.npy"),
    ((), "--map is missing"),
    (("--map", "{map}", "--neighbors", 0), "--neighbors 0"),
    (("--map", "{map}", "--perplexity", 5), "--perplexity: not an option of `cnnscope audit`"),
])
def test_wrong_audits_end_in_one_line(tmp_path, blobs, words, expected):
    files = {name: tmp_path / f"{name}.npy" for name in ("x", "map", "short", "nan", "none")}
    y = blobs[0][:, :2]
    for name, array in (("x", blobs[0]), ("map", y), ("short", y[:600]),
                        ("nan", np.where(np.arange(len(y))[:, None] == 3, np.nan, y))):
        np.save(files[name], array)
    refused = run("audit", "--input", files["x"], *(str(w).format(**files) for w in words), "--output",
                  tmp_path / "r.nc", ranks=2)
    assert refused.status in (1, 2) and len([line for line in refused.lines if "cnnscope:" in line]) == 1, refused.lines
    assert expected in refused.lines[-1] and not (tmp_path / "r.nc").exists()
