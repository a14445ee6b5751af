"""PCA: against scikit-learn's full solver, on degenerate matrices, and the same bits for any number of ranks and
threads. Layers of up to 1024 columns go through their covariance, wider ones of up to 1024 rows through
pca_few.c, others through pca_wide.c."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from program import GOLDEN
from tsne_tools import drive, pca, same, save


def low_rank(n: int, d: int, rank: int = 40, noise: float = 0.1) -> np.ndarray:
    g = np.random.default_rng(0)
    return ((g.normal(size=(n, rank)) * np.linspace(4, 1, rank)) @ g.normal(size=(rank, d))
            + noise * g.normal(size=(n, d)) + 5).astype(np.float32)


def flat(n: int, d: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, d)).astype(np.float32)


def steep(n: int, d: int) -> np.ndarray:
    """Variances from 1 down to 1e-8 of the largest."""
    g = np.random.default_rng(2)
    left, right = (np.linalg.qr(g.normal(size=(size, 16)))[0] for size in (n, d))
    return (left * np.geomspace(100, 0.01, 16) @ right.T).astype(np.float32)


MATRICES = {
    "narrow": (low_rank(500, 12, 5), 3),
    "more columns than rows": (low_rank(30, 200), 10),
    "no gaps": (flat(300, 60), 20),
    "several blocks of columns": (low_rank(700, 600), 25),
    "wide": (low_rank(1200, 1500), 10),
    "wide, no gaps": (flat(1030, 1100), 8),
    "few rows": (low_rank(300, 3000), 10),
    "few rows, several tiles": (low_rank(600, 8000), 12),
    "few rows, no gaps": (flat(150, 1500), 8),
    "few rows, steep": (steep(60, 2000), 15),
    "very few rows": (low_rank(9, 2000), 5),
    "far from zero": (1e5 + flat(400, 7), 4),
    "unequal columns": (flat(400, 5) * np.array([1, 1e-3, 1e3, 1, 10], np.float32), 5),
}


@pytest.mark.parametrize("name", MATRICES)
def test_against_full_solver(tmp_path: Path, name: str) -> None:
    x, k = MATRICES[name]
    got = pca(tmp_path, x, k, threads=2)
    full = PCA(k, svd_solver="full").fit(x.astype(np.float64))
    np.testing.assert_allclose(got.center, full.mean_, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got.variance, full.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(got.ratio, full.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(got.axes, full.components_, rtol=0, atol=2e-6)
    scores = full.transform(x.astype(np.float64))
    np.testing.assert_allclose(got.scores, scores, rtol=0, atol=2e-6 * np.abs(scores).max())
    assert np.abs(got.axes @ got.axes.T - np.eye(k)).max() < 1e-10
    assert (got.axes[np.arange(k), np.abs(got.axes).argmax(1)] > 0).all()


def test_logits(tmp_path: Path) -> None:
    """Of the demo, against scikit-learn's own default in single precision."""
    golden = np.load(GOLDEN / "mnist.npz")
    got = pca(tmp_path, golden["logits"], 2)
    for ours, name in ((got.center, "mean"), (got.axes, "components"), (got.variance, "explained_variance"),
                       (got.ratio, "explained_variance_ratio"), (got.scores, "scores")):
        expected = golden[f"pca_{name}"]
        assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max(), name


def test_pixels(tmp_path: Path, mnist: tuple[np.ndarray, np.ndarray]) -> None:
    x = mnist[0].reshape(len(mnist[0]), -1).astype(np.float32) / 255
    got = pca(tmp_path, x, 50, threads=2)
    full = PCA(50, svd_solver="full").fit(x.astype(np.float64))
    np.testing.assert_allclose(got.variance, full.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(got.axes, full.components_, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["narrow", "several blocks of columns", "wide", "few rows",
                                  "few rows, several tiles", "few rows, steep", "very few rows"])
def test_same_bits(tmp_path: Path, name: str) -> None:
    x, k = MATRICES[name]
    one = pca(tmp_path, x, k)
    for ranks, threads in ((1, 2), (2, 1), (3, 1), (5, 2)):
        assert same(one, pca(tmp_path, x, k, ranks=ranks, threads=threads)), (ranks, threads)


def test_small_components_of_few_rows(tmp_path: Path) -> None:
    """Down to 1e-12 of the largest variance, where the squares alone are right to 1e-5: pca_few.c gives small ones their
    right angles and their variances back. A column that is constant has no part in them."""
    g = np.random.default_rng(3)
    left, right = (np.linalg.qr(g.normal(size=(size, 16)))[0] for size in (60, 2000))
    x = (left * np.geomspace(100, 1e-4, 16) @ right.T).astype(np.float32)
    x[:, 7] = 0.3
    got = pca(tmp_path, x, 15)
    full = PCA(15, svd_solver="full").fit(x.astype(np.float64))
    assert np.abs(got.axes @ got.axes.T - np.eye(15)).max() < 5e-11
    assert not got.axes[:, 7].any()
    np.testing.assert_allclose(got.variance, full.explained_variance_, rtol=5e-9)


@pytest.mark.parametrize("width", [3, 2000])
def test_constant(tmp_path: Path, width: int) -> None:
    for rows in (1, 40):
        got = pca(tmp_path, np.full((rows, width), 0.1, np.float32), 2, ranks=2)
        assert np.allclose(got.center, np.float32(0.1), rtol=1e-12)
        assert not any(part.any() for part in (got.axes, got.variance, got.ratio, got.scores))


@pytest.mark.parametrize("width", [7, 2000])
def test_past_the_rank(tmp_path: Path, width: int) -> None:
    """Three points span two dimensions: the other components are zeros."""
    x = flat(3, width)
    got = pca(tmp_path, x, 5)
    full = PCA(2, svd_solver="full").fit(x.astype(np.float64))
    np.testing.assert_allclose(got.variance, [*full.explained_variance_, 0, 0, 0], rtol=1e-9)
    np.testing.assert_allclose(got.axes, np.concatenate([full.components_, np.zeros((3, width))]), atol=1e-6)
    assert not got.scores[:, 2:].any() and not got.ratio[2:].any()


def test_one_column_is_constant(tmp_path: Path) -> None:
    x = flat(50, 3)
    x[:, 1] = 0.3
    got = pca(tmp_path, x, 3)
    assert got.variance[2] == 0 and not got.axes[:, 1].any() and got.ratio.sum() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(tmp_path: Path, value: float) -> None:
    x = flat(40, 3)
    x[2, 1] = value
    lines = drive("pca", save(tmp_path / "x", x), 40, 3, 2, tmp_path / "pca", ranks=3, fails=True)
    assert len(lines) == 1 and "finite" in lines[0], lines
