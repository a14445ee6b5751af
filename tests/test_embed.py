"""`cnnscope embed`: PCA and t-SNE of any matrix, against scikit-learn and numpy."""

from __future__ import annotations

from pathlib import Path

import netCDF4
import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, _t_sne, trustworthiness

from program import read, relative_error, run, succeed, values

N, D = 300, 12


@pytest.fixture(scope="module")
def matrix() -> tuple[np.ndarray, np.ndarray]:
    """Five loose clusters (N, D), and which one each row is of (N)."""
    x, y = make_blobs(N, D, centers=5, cluster_std=3, random_state=0)
    return x.astype(np.float32), y.astype(np.int64)


def embed(folder: Path, x: np.ndarray, *options: object, ranks: int = 2) -> dict[str, np.ndarray]:
    np.save(folder / "x.npy", x)
    return values(succeed(folder / "result.nc", "embed", "--input", folder / "x.npy", *options, ranks=ranks))


def affinities(x: np.ndarray, perplexity: float) -> np.ndarray:
    """P as scikit-learn makes it (N, N)."""
    distances = squareform(pdist(x.astype(np.float64), "sqeuclidean")).astype(np.float32)
    return squareform(_t_sne._joint_probabilities(distances, perplexity, 0))


def kl_of(p: np.ndarray, y: np.ndarray) -> float:
    freedom = max(y.shape[1] - 1, 1)
    q = (1 + squareform(pdist(y.astype(np.float64), "sqeuclidean")) / freedom) ** (-(freedom + 1) / 2)
    np.fill_diagonal(q, 0)
    q /= q.sum()
    some = p > 1e-15
    return float((p[some] * np.log(p[some] / q[some])).sum())


@pytest.mark.parametrize("axes", [2, 3])
def test_kl_is_that_of_scikit_learn_s_p(tmp_path, matrix, axes):
    x, _ = matrix
    result = embed(tmp_path, x, "--tsne", axes, "--perplexity", 20)
    p, y = affinities(x, 20), result["input_tsne"]
    assert y.shape == (N, axes)
    assert result["input_tsne_kl"] == pytest.approx(kl_of(p, y), rel=1e-4)
    peer = TSNE(axes, perplexity=20, method="exact", init="pca").fit(x).embedding_
    # In 3-D, starts end in minima 0.13 apart here, scikit-learn's own as well.
    assert result["input_tsne_kl"] < kl_of(p, peer) + (0.03 if axes == 2 else 0.2)
    assert trustworthiness(x, y) > trustworthiness(x, peer) - 0.01


@pytest.mark.parametrize("axes", [2, 3])
def test_start_from_a_file_and_first_iterations(tmp_path, matrix, axes):
    """One start, few iterations: the same trajectory as scikit-learn's exact method. Differences grow tenfold every
    five iterations from here on, in scikit-learn's own runs from starts 1e-7 apart too."""
    x, _ = matrix
    start = np.random.default_rng(1).normal(0, 1e-4, (N, axes)).astype(np.float32)
    np.save(tmp_path / "start.npy", start)
    result = embed(tmp_path, x, "--tsne", axes, "--init", tmp_path / "start.npy", "--max-iter", 10)
    p = squareform(affinities(x, 30), checks=False)
    expected, _, _ = _t_sne._gradient_descent(
        _t_sne._kl_divergence, start.ravel().astype(np.float64), it=0, max_iter=10, momentum=0.5, n_iter_check=50,
        learning_rate=max(N / 12 / 4, 50), args=[p * 12, axes - 1, N, axes])
    assert relative_error(result["input_tsne"], expected.reshape(N, axes)) < 1e-4


def test_pca_start(tmp_path, matrix):
    """After one iteration with next to no step the map is its start: PCA scores scaled to 1e-4."""
    x, _ = matrix
    result = embed(tmp_path, x, "--max-iter", 1, "--learning-rate", 1e-12)
    scores = PCA(2, svd_solver="full").fit_transform(x.astype(np.float64))
    assert relative_error(result["input_tsne"], scores / scores[:, 0].std() * 1e-4) < 1e-4


def test_random_start_belongs_to_the_sample(tmp_path, matrix):
    """Keyed on seed and file position: the same in a part of the file, another with another seed."""
    options = ("--init", "random", "--max-iter", 1, "--learning-rate", 1e-12, "--overwrite")
    whole, part, other = (embed(tmp_path, matrix[0], *options, *more)["input_tsne"]
                          for more in ((), ("--samples", "100:200"), ("--seed", 1)))
    assert np.array_equal(part, whole[100:200]) and not np.array_equal(other, whole)
    assert whole.std() == pytest.approx(1e-4, rel=0.1) and abs(whole.mean()) < 2e-5


@pytest.mark.parametrize("shape, k", [((N, D), 4), ((30, 100), 5), ((9, 3), 3), ((60, 1), 1), ((600, 1500), 2)])
def test_pca(tmp_path, shape, k):
    rng = np.random.default_rng(2)
    x = (rng.normal(size=shape) * np.geomspace(1, 0.01, shape[1]) * 3 + 5).astype(np.float32)
    result = embed(tmp_path, x, "--pca", k, "--tsne", 0)
    peer = PCA(k, svd_solver="full").fit(x.astype(np.float64))
    for name, expected in (("", peer.transform(x.astype(np.float64))), ("_components", peer.components_),
                           ("_center", peer.mean_), ("_explained_variance", peer.explained_variance_),
                           ("_explained_variance_ratio", peer.explained_variance_ratio_)):
        assert relative_error(result[f"input_pca{name}"], expected) < 1e-4, name


@pytest.mark.parametrize("kind", ["float16", "float64", "npz", "netcdf", "big-endian"])
def test_input_formats(tmp_path, matrix, kind):
    x = matrix[0].astype(np.float16)
    spec = tmp_path / "input"
    if kind == "npz":
        np.savez(tmp_path / "m.npz", other=x[:1], features=x.astype(np.float32))
        spec = f"{tmp_path}/m.npz:features"
    elif kind == "netcdf":
        with netCDF4.Dataset(tmp_path / "m.nc", "w") as file:
            file.createDimension("row", N)
            file.createDimension("column", D)
            file.createVariable("features", "f4", ("row", "column"))[:] = x
        spec = f"{tmp_path}/m.nc:features"
    else:
        spec = tmp_path / "m.npy"
        np.save(spec, x.astype({"float16": "f2", "float64": "f8", "big-endian": ">f4"}[kind]))
    got = values(succeed(tmp_path / "a.nc", "embed", "--input", spec, "--max-iter", 60, ranks=2))
    plain = embed(tmp_path, x.astype(np.float32), "--max-iter", 60)
    for name in plain:
        assert np.array_equal(got[name], plain[name]), name


def test_what_is_carried_along(tmp_path, matrix):
    x, y = matrix
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (N, 4, 5, 3), np.uint8)
    predictions = (y + (rng.random(N) < 0.1)) % 5
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "predictions.npy", predictions.astype(np.int32))
    rows = "\n".join(f'"row, {i}",{-1 if i == 7 else label}' for i, label in enumerate(y))
    (tmp_path / "labels.csv").write_text(f"id,class\n{rows}\n")
    (tmp_path / "classes.txt").write_text("red\ngreen apple\nbleu\nžlutý\n黒\n", encoding="utf-8")
    (tmp_path / "samples.txt").write_text("".join(f"sample {i}\n" for i in range(N)))
    result = embed(tmp_path, x, "--labels", f"{tmp_path}/labels.csv:class", "--images", tmp_path / "images.npy",
                   "--layout", "NHWC", "--predictions", tmp_path / "predictions.npy", "--category-names",
                   tmp_path / "classes.txt", "--sample-names", tmp_path / "samples.txt", "--samples", "5:285",
                   "--max-iter", 60)
    part = slice(5, 285)
    expected = np.where(np.arange(N) == 7, -1, y)[part]
    assert np.array_equal(result["sample"], np.arange(5, 285))
    assert np.array_equal(result["label"], expected) and np.array_equal(result["prediction"], predictions[part])
    assert np.array_equal(result["image"], np.moveaxis(images[part], -1, 1))
    assert names(result["category_name"]) == ["red", "green apple", "bleu", "žlutý", "黒"]
    assert names(result["sample_name"]) == [f"sample {i}" for i in range(5, 285)]
    assert "logits" not in result and np.array_equal(result["input"], x[part])  # for `cnnscope place`
    assert result["input_tsne"].shape == (280, 2)


def names(characters: np.ndarray) -> list[str]:
    return [row.tobytes().rstrip(b"\0").decode() for row in characters]


def test_subset_of_the_samples(tmp_path, matrix):
    """--tsne-samples: stratified by label, the rest of the map is missing, and the seed chooses."""
    x, y = matrix
    np.save(tmp_path / "y.npy", y)
    options = ("--labels", tmp_path / "y.npy", "--tsne-samples", 100, "--max-iter", 60)
    first, again, other = (embed(tmp_path / folder, x, *options, "--seed", seed) for folder, seed in
                           ((made(tmp_path / "a"), 0), (made(tmp_path / "b"), 0), (made(tmp_path / "c"), 1)))
    mapped = chosen(first)
    assert len(mapped) == 100 and len(np.unique(mapped)) == 100
    assert np.ptp(np.bincount(y[mapped]) / np.bincount(y)) < 0.05
    assert np.array_equal(mapped, chosen(again)) and not np.array_equal(mapped, chosen(other))


def chosen(result: dict[str, np.ndarray]) -> np.ndarray:
    """File positions of the samples in the map."""
    if "input_tsne_sample" in result:
        return result["input_tsne_sample"]
    return np.flatnonzero(np.isfinite(result["input_tsne"]).all(1))


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_pre_pca_is_what_the_map_is_made_of(tmp_path):
    """A matrix whose columns past the third are zeros is changed by nothing when PCA to 3 comes first."""
    rng = np.random.default_rng(4)
    x = np.zeros((200, 60), np.float32)
    x[:, :3] = rng.normal(size=(200, 3)) * (5, 3, 1)
    result = embed(tmp_path, x, "--pre-pca", 3)
    assert result["input_tsne_kl"] == pytest.approx(kl_of(affinities(x, 30), result["input_tsne"]), rel=1e-3)
    assert read(tmp_path / "result.nc")[0]["input_tsne"].attributes["pre_pca"] == 3


@pytest.mark.parametrize("x", [np.full((50, 4), 2.5), np.repeat(np.eye(5), 10, 0), np.arange(50.0)[:, None],
                               np.zeros((1, 3))], ids=["constant", "duplicates", "a line", "one point"])
def test_degenerate_matrices_have_finite_maps(tmp_path, x):
    options = ("--perplexity", 10) if len(x) > 10 else ("--tsne", 0)
    result = embed(tmp_path, x.astype(np.float32), *options)
    for name, array in result.items():
        assert array.dtype.kind != "f" or np.isfinite(array).all(), name
    assert len(x) == 1 or np.ptp(result["input_tsne"], 0).min() > 0
    if np.ptp(x) == 0:
        assert (result["input_pca"] == 0).all() and (result["input_pca_explained_variance_ratio"] == 0).all()


def test_more_components_than_columns(tmp_path):
    """Asked for it is an error; by default the missing columns are zeros, and the start of t-SNE is random there."""
    x = np.random.default_rng(5).normal(size=(60, 1)).astype(np.float32)
    result = embed(tmp_path, x, "--perplexity", 10)
    assert result["input_pca"].shape == (60, 2) and (result["input_pca"][:, 1] == 0).all()
    assert np.ptp(result["input_tsne"][:, 1]) > 0
    refused = run("embed", "--input", tmp_path / "x.npy", "--output", tmp_path / "no.nc", "--pca", 2, "--quiet")
    assert refused.status == 2 and len(refused.lines) == 1 and "--pca 2" in refused.lines[0]


def test_kl_falls_with_iterations(tmp_path, matrix):
    kl = [embed(tmp_path, matrix[0], "--overwrite", "--max-iter", n)["input_tsne_kl"] for n in (250, 300, 350)]
    assert kl[0] > kl[1] > kl[2]
