"""Several t-SNE maps of one layer, and what each sample has of a map: against scikit-learn, scipy and plain double
precision, from the file's own numbers."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import cdist
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.manifold._utils import _binary_search_perplexity

from program import read, run, succeed, values
from test_checkpoint import Live
from test_ranks import assert_same_result
from test_trust import TRICKY, ranks

SHORT = ("--max-iter", 60)


def embed(folder: Path, x: np.ndarray, *options: object, ranks: int = 1, name: str = "r"):
    np.save(folder / "x.npy", x)
    return read(succeed(folder / f"{name}.nc", "embed", "--input", folder / "x.npy", "--overwrite", *SHORT, *options,
                        ranks=ranks))[0]


@pytest.fixture(scope="module")
def blobs() -> np.ndarray:
    return make_blobs(530, 12, centers=7, cluster_std=4, random_state=3)[0].astype(np.float32)


def squares(x: np.ndarray) -> np.ndarray:
    return cdist(x.astype(np.float64), x.astype(np.float64), "sqeuclidean")


def conditional(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    d = squares(x)
    np.fill_diagonal(d, np.inf)
    e = np.exp(-(d - d.min(1, keepdims=True)) / (2 * sigma[:, None].astype(np.float64) ** 2))
    return e / e.sum(1, keepdims=True)


def sklearn_conditional(x: np.ndarray, perplexity: float) -> np.ndarray:
    return np.asarray(_binary_search_perplexity(squares(x).astype(np.float32), perplexity, 0))


def divergences(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each sample."""
    freedom = y.shape[1] - 1
    w = (1 + squares(y) / freedom) ** (-(freedom + 1) / 2)
    np.fill_diagonal(w, 0)
    p, q = np.maximum(p, 1e-300), np.maximum(w / w.sum(), 1e-300)
    return (p * np.log(p / q)).sum(1)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("perplexity", ["30", "5+20+100"])
def test_divergence_of_each_sample(tmp_path, blobs, axes, perplexity):
    """They add up to the map's own, and are what float64 makes of the features and the map in the file."""
    found = embed(tmp_path, blobs, "--tsne", axes, "--perplexity", perplexity, ranks=2)
    each, kl = found["input_tsne_kl_sample"].values, float(found["input_tsne_kl"].values)
    assert each.sum(dtype=np.float64) == pytest.approx(kl, rel=1e-6)
    c = np.mean([sklearn_conditional(blobs, float(p)) for p in perplexity.split("+")], axis=0)
    expected = divergences((c + c.T) / (2 * len(c)), found["input_tsne"].values)
    assert kl == pytest.approx(expected.sum(), rel=3e-5)  # scikit-learn's own search stops at 1e-5 of the entropy
    assert np.abs(each - expected).max() < 2e-4 * expected.max()
    assert np.corrcoef(each, expected)[0, 1] > 1 - 1e-6


@pytest.mark.parametrize("perplexity", [3, 30])
@pytest.mark.parametrize("scale", [1, 1e-3, 3e20])
def test_sigma(tmp_path, blobs, perplexity, scale):
    """In the units of the input: Gaussians of that width are scikit-learn's rows of P."""
    found = embed(tmp_path, blobs * np.float32(scale), "--perplexity", perplexity)["input_sigma"]
    assert found.attributes["perplexity"] == perplexity
    expected = sklearn_conditional(blobs, perplexity)
    np.testing.assert_allclose(conditional(blobs, found.values / scale), expected, rtol=5e-4, atol=1e-9)


def test_sigma_of_principal_components(tmp_path, blobs):
    """What t-SNE maps is what sigma is measured in."""
    wide = np.column_stack([blobs, 100 * blobs[:, :3], blobs[:, ::-1]])
    sigma = embed(tmp_path, wide, "--pre-pca", 5, "--perplexity", "12+30")["input_sigma"]
    assert sigma.attributes["perplexity"] == 12
    scores = PCA(5, svd_solver="full").fit_transform(wide.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(conditional(scores, sigma.values), sklearn_conditional(scores, 12), rtol=1e-3, atol=1e-8)


def test_sigma_that_does_not_exist(tmp_path, blobs):
    """0 among more samples at one place than the perplexity; infinity where N - 1 are fewer."""
    x = blobs[:60].copy()
    x[:10] = x[0]
    sigma = embed(tmp_path, x, "--perplexity", 5)["input_sigma"].values
    assert (sigma[:10] == 0).all() and (sigma[10:] > 0).all() and np.isfinite(sigma).all()
    assert (embed(tmp_path, x[9:29], "--perplexity", 19.5)["input_sigma"].values == np.inf).all()


@pytest.fixture(scope="module")
def several(tmp_path_factory, blobs):
    """Six maps, on two ranks."""
    folder = tmp_path_factory.mktemp("several")
    return embed(folder, blobs, "--perplexity", "20,7,5+60", "--runs", 2, "--seed", 3, "--neighbors", 12, ranks=2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, blobs):
    """Each of them by a job of its own."""
    folder = tmp_path_factory.mktemp("alone")
    return [embed(folder, blobs, "--perplexity", p, "--init", init, "--seed", seed, "--neighbors", 12)
            for p in ("20", "7", "5+60") for init, seed in (("pca", 3), ("random", 4))]


def test_maps_are_those_of_jobs_of_their_own(several, alone):
    assert np.array_equal(several["input_tsne_map_kl"].values, [float(a["input_tsne_kl"].values) for a in alone])
    assert several["input_tsne_map_seed"].values.tolist() == [3, 4] * 3
    assert np.array_equal(several["input_tsne_map_perplexity"].values, [20, 20, 7, 7, np.nan, np.nan], equal_nan=True)
    assert "5+60" in several["input_tsne_map_perplexity"].attributes["comment"]
    for name, variable in alone[0].items():  # the first map, and all that belongs to it
        assert np.array_equal(variable.values, several[name].values, equal_nan=True), name
    assert np.array_equal(several["input_tsne_maps"].values[0], several["input_tsne"].values)


def test_maps_are_aligned(several, alone):
    maps = several["input_tsne_maps"]
    assert maps.dimensions == ("input_tsne_map", "sample", "input_axis")
    first = alone[0]["input_tsne"].values.astype(np.float64)
    for got, job in zip(maps.values, alone):
        y = job["input_tsne"].values.astype(np.float64)
        turn, _ = orthogonal_procrustes(y - y.mean(0), first - first.mean(0))
        expected = (y - y.mean(0)) @ turn + first.mean(0)
        assert np.abs(got - expected).max() < 1e-6 * np.abs(expected).max()


def test_a_mirrored_map_is_mirrored_back(tmp_path, blobs):
    """One that is the first but for a turn, a reflection and a move lies on it: by a start that is."""
    start = np.random.default_rng(0).normal(0, 1e-4, (len(blobs), 2)).astype(np.float32)
    for name, y in (("a", start), ("b", start * np.array([-1, 1], np.float32))):
        np.save(tmp_path / f"{name}.npy", y)
    a, b = (embed(tmp_path, blobs, "--perplexity", "20,20", "--init", tmp_path / f"{n}.npy") for n in "ab")
    assert np.array_equal(a["input_tsne_maps"].values[0], a["input_tsne_maps"].values[1])
    assert (a["input_tsne_spread"].values == 0).all() and (a["input_tsne_persistence"].values == 1).all()
    assert np.array_equal(a["input_tsne"].values * [-1, 1], b["input_tsne"].values)


def stability(maps: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Spread and persistence of each sample, from the aligned maps."""
    centred = maps.astype(np.float64) - maps[0].astype(np.float64).mean(0)
    radius = np.sqrt((centred**2).sum(2).mean(1))
    places = centred / np.where(radius > 0, radius, 1)[:, None, None]
    spread = np.sqrt(((places - places.mean(0)) ** 2).sum(2).mean(0))
    near = [(0 < r) & (r <= k) for r in map(ranks, maps)]
    pairs = [(a & b).sum(1) / k for i, a in enumerate(near) for b in near[:i]]
    return spread, np.mean(pairs, axis=0)


def check_stability(found, k: int, exact: bool = True) -> None:
    mapped = np.isfinite(found["input_tsne"].values).all(1)
    spread, kept = stability(found["input_tsne_maps"].values[:, mapped], k)
    np.testing.assert_allclose(found["input_tsne_spread"].values[mapped], spread, rtol=1e-4, atol=1e-5)
    assert float(found["input_tsne_spread_overall"].values) == pytest.approx(spread.mean(), rel=1e-4, abs=1e-6)
    got = found["input_tsne_persistence"].values[mapped]
    assert (np.abs(got - kept) < 1e-6).mean() > (0.99 if exact else 0)  # but for ties of float32
    assert float(found["input_tsne_persistence_overall"].values) == pytest.approx(got.mean(dtype=float), abs=1e-6)
    assert np.isnan(found["input_tsne_spread"].values[~mapped]).all()
    assert np.isnan(found["input_tsne_persistence"].values[~mapped]).all()


def test_spread_and_persistence(several):
    check_stability(several, 12)
    assert several["input_tsne_persistence"].attributes["neighbors"] == 12
    assert 0.1 < float(several["input_tsne_persistence_overall"].values) < 0.9


def test_three_axes_and_a_subset(tmp_path, blobs):
    found = embed(tmp_path, blobs, "--tsne", 3, "--tsne-samples", 211, "--perplexity", "20,5", "--runs", 2, ranks=3)
    assert found["input_tsne_maps"].values.shape == (4, len(blobs), 3)
    check_stability(found, 15)


@pytest.mark.parametrize("name", TRICKY)
def test_tricky_points(tmp_path, name):
    """Of N = 5, duplicates, all the same, ...; one class. Each on three ranks as on one."""
    x = TRICKY[name].astype(np.float32)
    np.save(tmp_path / "label.npy", np.zeros(len(x), int))
    high = min(10, len(x) - 1)
    words = ("--perplexity", f"{high},1+{high}", "--runs", 2, "--labels", tmp_path / "label.npy")
    found = embed(tmp_path, x, *words)
    for variable in ("input_tsne_maps", "input_tsne_spread", "input_tsne_persistence", "input_tsne_kl_sample"):
        assert np.isfinite(found[variable].values).all(), variable
    kl = float(found["input_tsne_kl"].values)
    assert found["input_tsne_kl_sample"].values.sum(dtype=float) == pytest.approx(kl, rel=2e-6, abs=1e-6)
    check_stability(found, min(15, len(x) - 1), exact=False)
    again = embed(tmp_path, x, *words, ranks=3, name="again")
    assert_same_result((found, {}), (again, {}))


def test_without_neighbors(tmp_path, blobs):
    found = embed(tmp_path, blobs, "--runs", 2, "--neighbors", 0)
    assert "input_tsne_spread" in found and "input_tsne_persistence" not in found


def test_same_bits_on_all_ranks(tmp_path, blobs):
    words = ("--perplexity", "20,5+40", "--runs", 2)
    one = embed(tmp_path, blobs, *words)
    for count in (2, 3, 5):
        assert_same_result((one, {}), (embed(tmp_path, blobs, *words, ranks=count, name=f"r{count}"), {}))


def test_stopped_in_the_second_map(tmp_path, blobs):
    """The first map comes from the checkpoint, the second goes on where it was, on another number of ranks."""
    np.save(tmp_path / "x.npy", np.concatenate([blobs + i for i in range(4)]))
    words = ("embed", "--input", tmp_path / "x.npy", "--perplexity", "20,5", "--max-iter", 700, "--threads", 1)
    whole = read(succeed(tmp_path / "whole.nc", *words, ranks=2, timeout=300))
    for attempt in range(8):  # the signal may come before or behind it
        folder, output = tmp_path / f"ck{attempt}", tmp_path / f"{attempt}.nc"
        job = Live(*words, "--output", output, "--checkpoint", folder, ranks=2)
        if job.until(lambda: any(folder.glob("*tsne_input-*.1"))):
            time.sleep(0.02)
            job.process.send_signal(signal.SIGUSR1)
        status, lines = job.end(60)
        if any(re.search(r"in stage tsne input map 2 at iteration [1-9]", line) for line in lines):
            break
    else:
        pytest.fail("\n".join(lines))
    done = run(*words, "--output", output, "--checkpoint", folder, ranks=3, timeout=300)
    restored = [re.match("(tsne input.*?) +[0-9/]* iterations from the checkpoint", line) for line in done.lines]
    assert status == 99 and done.status == 0
    assert [m[1] for m in restored if m] == ["tsne input", "tsne input map 2"], done.lines
    assert_same_result(whole, read(output))


@pytest.mark.parametrize("words, expected", [
    (("--perplexity", "5,,30"), "an entry of the list is empty"),
    (("--perplexity", "5+"), "--perplexity 5+: not a number"),
    (("--perplexity", "30+x"), "--perplexity 30+x: not a number"),
    (("--perplexity", "5+0.5"), "--perplexity 5+0.5: expected 1 to"),
    (("--perplexity", "5,5+600"), "--perplexity 600: must be less than the number of samples, 530"),
    (("--perplexity", ",".join(["5"] * 17)), "--perplexity: more than 16"),
    (("--perplexity", "+".join(["5"] * 17)), "--perplexity: more than 16"),
    (("--runs", 0), "--runs 0: expected 1 to 64"),
    (("--runs", 20, "--perplexity", "5,6,7,8"), "80 maps, at most 64"),
])
def test_wrong_options_are_one_line(tmp_path, blobs, words, expected):
    np.save(tmp_path / "x.npy", blobs)
    refused = run("embed", "--input", tmp_path / "x.npy", "--output", tmp_path / "r.nc", *words)
    assert refused.status == 2 and len(refused.lines) == 1 and expected in refused.lines[0], refused.lines
