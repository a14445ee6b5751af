"""New samples in a stored map: against plain double precision, and the same bits whoever else is placed."""

from __future__ import annotations

import shutil
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits, make_blobs

from program import IMAGES, LABELS, MODEL, read, run, succeed, values
from test_ranks import assert_same_result

SHORT = ("--max-iter", 300, "--exaggeration-iter", 100, "--neighbors", 0)


def conditional(x: np.ndarray, points: np.ndarray, perplexity: float) -> np.ndarray:
    """(M, N) p(j | i) of each new sample over the mapped ones, by bisection."""
    d = cdist(x.astype(np.float64), points.astype(np.float64), "sqeuclidean")
    d -= d.min(1, keepdims=True)
    low, high = np.full((len(d), 1), -60.0), np.full((len(d), 1), 60.0)  # ln beta
    for _ in range(200):
        middle = (low + high) / 2
        e = np.exp(-np.exp(middle) * d)
        p = e / e.sum(1, keepdims=True)
        wide = -(p * np.log(np.where(p > 0, p, 1))).sum(1, keepdims=True) > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return p


def divergence(y: np.ndarray, p: np.ndarray, fixed: np.ndarray) -> float:
    """KL(p || q), q by Student's t with A - 1 degrees of freedom, of one sample at y."""
    axes = fixed.shape[1]
    w = (1 + ((y - fixed) ** 2).sum(1) / (axes - 1)) ** (-axes / 2)
    q = w / w.sum()
    return float((p * np.log(np.where(p > 0, p, 1) / q)).sum())


def gradient(y: np.ndarray, p: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    h = 1e-4
    return np.array([(divergence(y + s, p, fixed) - divergence(y - s, p, fixed)) / (2 * h)
                     for s in h * np.eye(fixed.shape[1])])


def blobs(n: int, d: int, seed: int = 0) -> np.ndarray:
    return make_blobs(n, d, centers=5, cluster_std=2, random_state=seed)[0].astype(np.float32)


def mapped(folder: Path, x: np.ndarray, *options: object) -> Path:
    np.save(folder / "mapped.npy", x)
    return succeed(folder / "map.nc", "embed", "--input", folder / "mapped.npy", *SHORT, "--overwrite", *options)


def placed(folder: Path, x: np.ndarray, *options: object, ranks: int = 1) -> dict[str, np.ndarray]:
    np.save(folder / "x.npy", x)
    return values(succeed(folder / "placed.nc", "place", "--map", folder / "map.nc", "--input", folder / "x.npy",
                          "--overwrite", *options, ranks=ranks))


CASES = {
    "2-D": (blobs(400, 10), 300, ("--perplexity", 30)),
    "3-D": (blobs(350, 6, 1), 300, ("--tsne", 3, "--perplexity", 12.5)),
    "PCA first": (load_digits().data[:800].astype(np.float32), 600, ("--pre-pca", 20, "--pca", 0, "--perplexity", 20)),
    "as wide as it is": (blobs(150, 300, 3), 120, ("--pre-pca", 0, "--perplexity", 10)),
    "a subset": (blobs(400, 10, 4), 350, ("--tsne-samples", 200, "--perplexity", 15)),
    "small numbers": (blobs(200, 5, 5) * np.float32(1e-25), 150, ("--perplexity", 10)),
}


@pytest.mark.parametrize("name", CASES)
def test_divergence_is_that_of_double_precision_and_lowest(tmp_path: Path, name: str) -> None:
    x, n, options = CASES[name]
    stored = values(mapped(tmp_path, x[:n], *options))
    result = placed(tmp_path, x[n:], "--keep-neighbors")
    kept = np.isfinite(stored["input_tsne"]).all(1)
    fixed = stored["input_tsne"][kept].astype(np.float64)
    assert np.array_equal(result["input_fixed"], stored["input_tsne"][kept])
    assert np.array_equal(result["input_fixed_sample"], np.flatnonzero(kept))
    points, new = stored.get("input_pre_pca", x[:n])[kept], x[n:]
    if "input_pre_pca" in stored:
        new = (x[n:] - stored["input_pre_pca_center"]) @ stored["input_pre_pca_components"].T
    else:
        assert np.array_equal(stored["input"], x[:n])
    scale = 1 / np.abs(points).max()
    p = conditional(new * scale, points * scale, options[-1])
    place, kl = result["input_place"].astype(np.float64), result["input_place_kl"]
    assert np.allclose(kl, [divergence(*z, fixed) for z in zip(place, p)], atol=2e-5)
    steep = [np.linalg.norm(gradient(*z, fixed)) for z in zip(place, p)]
    assert np.max(steep) < 2e-4, np.sort(steep)[-5:]
    near = cdist(new, points).argsort(1)[:, :8]
    starts = [min(divergence(fixed[j], q, fixed) for j in own) for own, q in zip(near, p)]
    assert (kl <= np.array(starts) + 1e-5).all()
    missed = 0
    for i in range(12):
        found = [minimize(divergence, fixed[j], (p[i], fixed), method="BFGS").fun for j in near[i]]
        missed += kl[i] > min(found) + 1e-4
    assert missed <= 1  # of eight starts two are followed
    check_measures(result, new, points, place, fixed)


def check_measures(result: dict[str, np.ndarray], new: np.ndarray, points: np.ndarray, place: np.ndarray,
                   fixed: np.ndarray, k: int = 15) -> None:
    """Each new sample as one more of the mapped ones."""
    n = len(points)
    in_layer, in_map = (cdist(a.astype(np.float64), b.astype(np.float64)).argsort(1).argsort(1)
                        for a, b in ((new, points), (place, fixed)))
    worst = k * (2 * (n + 1) - 3 * k - 1) / 2
    expected = {
        "trustworthiness": 1 - np.where((in_map < k) & (in_layer >= k), in_layer + 1 - k, 0).sum(1) / worst,
        "continuity": 1 - np.where((in_layer < k) & (in_map >= k), in_map + 1 - k, 0).sum(1) / worst,
        "recall": ((in_layer < 10) & (in_map < 10)).sum(1) / 10,
    }
    for measure, value in expected.items():
        got = result[f"input_place_{measure}"]
        assert np.median(np.abs(got - value)) < 1e-6 and np.abs(got - value).max() < 0.11, measure
        assert np.mean(np.abs(got - value) > 1e-6) < 0.05, measure
        assert float(result[f"input_place_{measure}_overall"]) == pytest.approx(got.astype(float).mean(), abs=1e-6)
    for prefix, order in (("input", in_layer), ("input_place", in_map)):
        neighbors = np.searchsorted(result["input_fixed_sample"], result[f"{prefix}_neighbors"])
        assert (np.take_along_axis(order, neighbors, 1) == np.arange(k)).mean() > 0.99, prefix
        assert result[f"{prefix}_neighbor_distances"].shape == neighbors.shape


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a map of 300 samples, map.nc, and 103 others, x.npy, 4 of them copies of mapped ones."""
    folder = tmp_path_factory.mktemp("place")
    x = blobs(400, 60, 7)
    mapped(folder, x[:300], "--pre-pca", 30, "--perplexity", 12)
    np.save(folder / "x.npy", np.concatenate([x[300:399], x[:4]]))
    return folder


@pytest.mark.parametrize("ranks, threads, batch", [(2, 1, 8), (3, 1, 7), (5, 1, 8), (1, 2, 8), (3, 2, 100)])
def test_same_bits_on_any_number_of_ranks(stored: Path, ranks: int, threads: int, batch: int) -> None:
    def job(name: str, ranks: int, threads: int, batch: int):
        return read(succeed(stored / name, "place", "--map", stored / "map.nc", "--input", stored / "x.npy",
                            "--keep-neighbors", "--overwrite", "--threads", threads, "--batch", batch, ranks=ranks))

    assert_same_result(job("one.nc", 1, 1, 8), job("more.nc", ranks, threads, batch))


@pytest.mark.parametrize("level", ["SSE41", "AVX2"])
def test_same_bits_with_other_vectors(stored: Path, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    words = ("place", "--map", stored / "map.nc", "--input", stored / "x.npy", "--overwrite", "--keep-neighbors")
    best = values(succeed(stored / "best.nc", *words))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", level)
    other = values(succeed(stored / "other.nc", *words))
    assert all(np.array_equal(best[name], other[name], equal_nan=True) for name in best)


def test_a_sample_is_placed_by_itself(stored: Path) -> None:
    """The others of its job change nothing, a very far one among them included."""
    x = np.load(stored / "x.npy")
    all_of_them = placed(stored, x)
    alone = placed(stored, x[41:42])
    beside = placed(stored, np.concatenate([x[40:42], x[:1] * np.float32(1e9)]))
    for name in ("input_place", "input_place_kl", "input_place_recall"):
        assert np.array_equal(all_of_them[name][41:42], alone[name]) and np.array_equal(beside[name][1:2], alone[name])
    np.save(stored / "x.npy", x)


def test_own_samples_come_back(tmp_path: Path) -> None:
    """Each has its own copy among the mapped ones as its nearest neighbour."""
    x = blobs(500, 10, 8)
    fixed = values(mapped(tmp_path, x, "--max-iter", 1000))["input_tsne"]
    result = placed(tmp_path, x)
    radius = np.linalg.norm(fixed - fixed.mean(0), axis=1).max()
    apart = np.linalg.norm(result["input_place"] - fixed, axis=1) / radius
    assert np.median(apart) < 0.01 and np.quantile(apart, 0.95) < 0.03, np.quantile(apart, [0.5, 0.95, 1])


TRICKY = {
    "N = 5": (np.random.default_rng(1).normal(size=(5, 3)), 2),
    "N = 2": (np.array([[0.0, 0.0], [1.0, 2.0]]), 1),
    "all the same": (np.full((40, 4), 2.5), 10),
    "duplicates": (np.repeat(np.random.default_rng(0).normal(size=(20, 4)), 5, 0), 10),
    "collinear": (np.arange(90.0)[:, None] * np.ones((1, 3)), 10),
    "large": (np.random.default_rng(2).normal(size=(70, 6)) * 1e30, 10),
}


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", TRICKY)
def test_tricky_maps(tmp_path: Path, name: str, axes: int) -> None:
    x, perplexity = TRICKY[name]
    x = x.astype(np.float32)
    fixed = values(mapped(tmp_path, x, "--perplexity", perplexity, "--tsne", axes, "--init", "random"))["input_tsne"]
    result = placed(tmp_path, np.concatenate([x[:1], x.mean(0, keepdims=True, dtype=np.float64).astype(np.float32)]))
    place = result["input_place"]
    assert np.isfinite(place).all() and (np.abs(place - fixed.mean(0)) <= 3 * np.abs(fixed - fixed.mean(0)).max() + 10).all()
    scale = 1 / max(np.abs(x).max(), 1e-30)
    if name != "duplicates":  # whose perplexity no beta gives exactly at the mean
        p = conditional(x[:1] * scale, x * scale, perplexity)
        expected = divergence(place[0].astype(np.float64), p[0], fixed.astype(np.float64))
        assert result["input_place_kl"][0] == pytest.approx(expected, abs=1e-3)
    assert 0 <= result["input_place_trustworthiness_overall"] <= 1


def test_through_the_network(tmp_path: Path) -> None:
    """Every layer of the map at once, with predictions; the same as placing the stored features of the layer."""
    network = ("--model", MODEL, "--images", IMAGES, "--labels", LABELS, "--quiet")
    made = values(succeed(tmp_path / "map.nc", *network, "--samples", 300, "--embed", "logits,gap", "--attribution",
                          "none", *SHORT))
    words = ("place", "--map", tmp_path / "map.nc")
    result = values(succeed(tmp_path / "placed.nc", *words, *network, "--samples", "300:420", ranks=2))
    both = values(succeed(tmp_path / "both.nc", *network, "--samples", "300:420", "--embed", "logits,gap", "--tsne", 0))
    assert {"logits_place", "gap_place", "logits", "prediction", "label", "prediction_accuracy_overall"} <= result.keys()
    assert not {"saliency", "conv1_maps", "conv1_filters", "image"} & result.keys()
    assert result["sample"][0] == 300 and np.array_equal(result["logits"], both["logits"])
    np.save(tmp_path / "gap.npy", both["gap"])
    again = values(succeed(tmp_path / "again.nc", *words, "--input", tmp_path / "gap.npy", "--embed", "gap"))
    assert np.array_equal(again["gap_place"], result["gap_place"]) and "logits_place" not in again
    one = values(succeed(tmp_path / "one.nc", *words, *network, "--samples", "300:420", "--embed", "fc"))
    assert np.array_equal(one["logits_place"], result["logits_place"]) and "gap_place" not in one
    p = conditional(both["gap"], made["gap"], 30)
    expected = [divergence(y, q, made["gap_tsne"].astype(float)) for y, q in zip(result["gap_place"].astype(float), p)]
    assert np.allclose(result["gap_place_kl"], expected, atol=2e-5)


def test_another_network_is_named(tmp_path: Path) -> None:
    network = ("--model", MODEL, "--images", IMAGES, "--samples", 40)
    succeed(tmp_path / "map.nc", *network, "--attribution", "none", "--perplexity", 5, *SHORT)
    words = ("place", "--map", tmp_path / "map.nc", *network, "--overwrite", "--output", tmp_path / "r.nc")
    said = f"{tmp_path / 'map.nc'} was not made with {MODEL}: "
    for same in (True, False):
        done = run(*words)
        assert done.status == 0 and any(line.startswith(said) for line in done.lines) != same, done.lines
        with netCDF4.Dataset(tmp_path / "map.nc", "a") as file:
            file.model_sha256 = "0" * 64


def changed_map(folder: Path) -> Path:
    path = shutil.copy(folder / "map.nc", folder / "changed.nc")
    with netCDF4.Dataset(path, "a") as file:
        file["input_tsne"][3] = 1e20
    return path


def renamed(folder: Path, name: str, variable: str) -> Path:
    """The map, without a variable."""
    path = shutil.copy(folder / "map.nc", folder / name)
    with netCDF4.Dataset(path, "a") as file:
        file.renameVariable(variable, "other")
    return path


def unfinished(folder: Path) -> Path:
    path = shutil.copy(folder / "map.nc", folder / "unfinished.nc")
    with netCDF4.Dataset(path, "a") as file:
        file.delncattr("status")
    return path


WRONG = {
    "other width": (("--input", "{narrow}"), "its map of input is of 60 numbers a sample, but the new ones have 59"),
    "no samples": (("--input", "{empty}"), "is empty"),
    "far away": (("--input", "{far}"), "are they features of the same layer, scaled alike?"),
    "no file": (("--map", "{folder}/none.nc"), "none.nc: no such file"),
    "not netCDF": (("--map", "{x}"), "is no netCDF-4 file"),
    "not ours": (("--map", "{unfinished}"), "is no finished results file of cnnscope"),
    "no map": (("--map", "{no_map}"), "has t-SNE maps of no layer, expected one; make one (--tsne 2)"),
    "no features": (("--map", "{no_features}"), "has no features of input, expected input_pre_pca"),
    "a place out of reach": (("--map", "{changed}"), "changed.nc:input_tsne: a point at 1e+20, expected at most 1e+12"),
    "another layer": (("--embed", "gap"), "has t-SNE maps of input, expected one of gap"),
    "no --map": ((), "--map is missing"),
    "twice": (("--model", MODEL), "`place` takes either a network and images"),
    "an option of others": (("--perplexity", 5), "--perplexity: not an option of `cnnscope place`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line(stored: Path, tmp_path: Path, name: str) -> None:
    words, expected = WRONG[name]
    x = np.load(stored / "x.npy")
    files = {"folder": tmp_path, "x": stored / "x.npy", "unfinished": unfinished(stored), "changed": changed_map(stored),
             "no_map": renamed(stored, "no_map.nc", "input_tsne"),
             "no_features": renamed(stored, "no_features.nc", "input_pre_pca")}
    for key, array in (("narrow", x[:, 1:]), ("empty", x[:0]), ("far", x * np.float32(1e30))):
        files[key] = tmp_path / f"{key}.npy"
        np.save(files[key], array)
    usual = {"--map": stored / "map.nc", "--input": stored / "x.npy"}
    for word in usual.keys() & set(words) | ({"--map"} if name == "no --map" else set()):
        del usual[word]
    done = run("place", *(w for pair in usual.items() for w in pair), *(str(w).format(**files) for w in words),
               "--output", tmp_path / "r.nc", ranks=2)
    said = [line for line in done.lines if line.startswith("cnnscope: ")]
    assert done.status in (1, 2) and len(said) == 1 and expected in said[0], done.lines
    assert not list(tmp_path.glob("r.nc*"))
