"""t-SNE: affinities, gradient and first iterations against scikit-learn's own functions, the finished map against its
quality, and the same bits for any number of ranks and threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.manifold._t_sne import _gradient_descent, _joint_probabilities, _kl_divergence

from tsne_tools import affinities, drive, first_maps, memory, same, save, tsne


def blobs(n: int, d: int, seed: int = 0) -> np.ndarray:
    return make_blobs(n, d, centers=5, cluster_std=2, random_state=seed)[0].astype(np.float32)


def pca_start(x: np.ndarray, axes: int = 2) -> np.ndarray:
    y = PCA(axes, svd_solver="full").fit_transform(x).astype(np.float32)
    return (y / np.std(y[:, 0]) * 1e-4).astype(np.float32)


def random_start(n: int, axes: int, scale: float = 1e-4) -> np.ndarray:
    return (scale * np.random.default_rng(1).standard_normal((n, axes))).astype(np.float32)


def distances(x: np.ndarray) -> np.ndarray:
    return squareform(pdist(x.astype(np.float64), "sqeuclidean"))


def sklearn_p(x: np.ndarray, perplexity: float) -> np.ndarray:
    return _joint_probabilities(distances(x), perplexity, 0)


def perplexities(x: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Of each row, in double precision."""
    d = distances(x)
    np.fill_diagonal(d, np.inf)
    d -= d.min(1, keepdims=True)
    e = np.exp(-beta[:, None].astype(np.float64) * d)
    p = e / e.sum(1, keepdims=True)
    return np.exp(-np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=1))


def exact_p(x: np.ndarray, beta: np.ndarray) -> np.ndarray:
    d = distances(x)
    np.fill_diagonal(d, np.inf)
    d -= d.min(1, keepdims=True)
    e = np.exp(-beta[:, None].astype(np.float64) * d)
    c = e / e.sum(1, keepdims=True)
    return (c + c.T) / (2 * len(x))


@pytest.mark.parametrize("n, d, perplexity", [(500, 10, 30), (333, 3, 5), (201, 784, 50), (70, 65, 10.5), (31, 1, 10)])
def test_affinities(tmp_path: Path, n: int, d: int, perplexity: float) -> None:
    x = blobs(n, d)
    got = affinities(tmp_path, x, perplexity)
    assert np.abs(perplexities(x, got.beta) - perplexity).max() < 1e-5 * perplexity
    # scikit-learn stops at 1e-5 of the entropy, which moves its smallest p by a few 1e-5 of themselves
    expected = squareform(sklearn_p(x, perplexity))
    np.testing.assert_allclose(got.p, expected, rtol=2e-4, atol=1e-7 / n**2)
    np.testing.assert_allclose(got.p, exact_p(x, got.beta), rtol=1e-5, atol=1e-7 / n**2)
    assert np.array_equal(got.p, got.p.T) and not got.p.diagonal().any()
    assert abs(got.sum - 1) < 1e-7
    assert 0 <= got.dropped <= 2.0**-23
    assert got.entries == np.count_nonzero(got.p)
    assert same(got, affinities(tmp_path, x, perplexity, threads=2))


@pytest.mark.parametrize("n, d, perplexity", [(500, 10, "5+30+100"), (201, 784, "50+10"), (31, 1, "10+10")])
def test_affinities_of_several_perplexities(tmp_path: Path, n: int, d: int, perplexity: str) -> None:
    """The mean of the conditional distributions, made symmetric (openTSNE's Multiscale, whose own P agree to
    1e-6 of the largest but in the few rows where its search stops early)."""
    x = blobs(n, d)
    got = affinities(tmp_path, x, perplexity)
    each = [sklearn_p(x, float(p)) for p in perplexity.split("+")]
    np.testing.assert_allclose(got.p, squareform(np.mean(each, axis=0)), rtol=2e-4, atol=1e-7 / n**2)
    assert abs(got.sum - 1) < 1e-7 and 0 <= got.dropped <= 2.0**-23
    assert same(got, affinities(tmp_path, x, perplexity, threads=2))


def test_dropped_affinities(tmp_path: Path) -> None:
    """Far clusters: pairs are dropped, by the rule and not past its bound."""
    x = blobs(400, 5) + 40 * (np.arange(400) % 2)[:, None].astype(np.float32)
    got = affinities(tmp_path, x, 20)
    p = exact_p(x, got.beta)
    dropped = np.where(got.p > 0, 0, p).sum(1) / p.sum(1)
    assert 0 < dropped.max() <= 2.0**-23
    assert got.dropped == pytest.approx(dropped.max(), rel=1e-3)
    assert p[got.p == 0].max() < 2 * 2.0**-24 / 400 / 800


def flat_tails() -> np.ndarray:
    """Two clusters that are nearly all one distance wide, and so far apart that each point of the other one is just too
    far to be kept."""
    points = np.random.default_rng(0).normal(size=(600, 300))
    return np.concatenate([points, 38 * (np.arange(600) % 2)[:, None]], 1).astype(np.float32)


@pytest.mark.parametrize("kind", ["most data", "flat tails"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_what_rows_drop_is_measured(tmp_path: Path, kind: str, ranks: int) -> None:
    """t-SNE leaves out more than what no data could need, where no row drops 2^-23 of itself then; else it goes back."""
    x, perplexity = (blobs(1500, 10), 5) if kind == "most data" else (flat_tails(), 270)
    n = len(x)
    sure = affinities(tmp_path, x, perplexity)  # of pairs that weigh 2^-24 / n
    got = tsne(tmp_path, x, random_start(n, 2), perplexity, 10, exaggerated=5, ranks=ranks)
    d, beta = distances(x), sure.beta.astype(np.float64)[:, None]
    np.fill_diagonal(d, np.inf)
    c = np.exp(-beta * (d - d.min(1, keepdims=True)))
    c /= c.sum(1, keepdims=True)
    kept = np.maximum(c, c.T) >= 2.0**-19 / n
    dropped = (np.where(kept, 0, c + c.T).sum(1) / (c + c.T).sum(1)).max()
    assert (dropped > 2.0**-23) == (kind == "flat tails")
    assert 0 <= got.dropped <= 2.0**-23
    if kind == "flat tails":
        assert kept.sum() < 0.7 * got.nonzeros and got.nonzeros <= sure.entries
    else:
        assert got.dropped == pytest.approx(dropped, rel=1e-3) and got.nonzeros < 0.97 * sure.entries


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("scale", [1e-4, 1, 30])
@pytest.mark.parametrize("n", [300, 700, 1041])
def test_gradient(tmp_path: Path, n: int, axes: int, scale: float) -> None:
    """Tiles of 512: within one, across two, and with a last one of a few points."""
    x, y = blobs(n, 6), random_start(n, axes, scale)
    (kl,), (step_error,) = drive("gradient", save(tmp_path / "x", x), n, 6, 30, save(tmp_path / "y", y), axes,
                                 tmp_path / "g", threads=2)
    got = np.fromfile(tmp_path / "g", count=n * axes).reshape(n, axes)
    expected_kl, expected = _kl_divergence(y.astype(np.float64).ravel(), sklearn_p(x, 30), axes - 1, n, axes)
    # its P differs by the tolerance of its search
    assert float(kl) == pytest.approx(expected_kl, rel=2e-5)
    np.testing.assert_allclose(got.ravel(), expected, rtol=0, atol=5e-5 * np.abs(expected).max())
    assert np.abs(got.sum(0)).max() < 2e-5 * np.abs(got).sum()
    assert float(step_error) < 2e-6


def descend(x: np.ndarray, start: np.ndarray, iterations: int, exaggerated: int, rate: float) -> np.ndarray:
    """scikit-learn's own schedule, in double precision."""
    n, axes = start.shape
    p = sklearn_p(x, 30)
    options = dict(n_iter_check=50, learning_rate=rate, kwargs={})
    args = [max(axes - 1, 1), n, axes]
    first = min(exaggerated, iterations)
    y, _, it = _gradient_descent(_kl_divergence, start.astype(np.float64).ravel(), 0, first, momentum=0.5,
                                 n_iter_without_progress=250, args=[12 * p, *args], **options)
    if iterations > exaggerated:
        y, _, it = _gradient_descent(_kl_divergence, y, it + 1, iterations, momentum=0.8, args=[p, *args], **options)
    return y.reshape(n, axes)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("iterations, exaggerated, rate", [(1, 250, 50), (10, 250, 50), (20, 250, 8), (50, 250, 2),
                                                           (50, 20, 8), (50, 5, 8)])
def test_first_iterations(tmp_path: Path, axes: int, iterations: int, exaggerated: int, rate: float) -> None:
    """At the default rate of 50, and while P is exaggerated, a difference of 1e-7 soon grows by ten every few
    iterations, in scikit-learn itself; at lower rates 50 iterations can be compared. Where a component of the gradient
    comes within 1e-7 of zero, its sign, and so a gain, is chance: two of three sets of points must agree."""
    start, errors = random_start(400, axes), []
    for seed in range(3):
        x = blobs(400, 8, seed)
        got = tsne(tmp_path, x, start, iterations=iterations, exaggerated=exaggerated, rate=rate)
        expected = descend(x, start, iterations, exaggerated, rate)
        assert got.iterations == iterations
        errors.append(np.abs(got.y - expected).max() / np.abs(expected).max())
    assert sorted(errors)[1] < 1e-4, errors


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("exaggerated", [250, 20])
def test_each_of_the_first_iterations(tmp_path: Path, axes: int, exaggerated: int) -> None:
    """At the default rate trajectories separate (test_first_iterations), single steps do not: at each of the first 50 of
    our maps, scikit-learn's P and gradient in double precision, with its rule of gains and momentum, give the next one.
    Update and gains are carried along our own maps. With 20, the switch of phases is among them."""
    n, rate, x = 500, 50, blobs(500, 8)
    maps = first_maps(tmp_path, x, random_start(n, axes), 30, 50, exaggerated, rate).astype(np.float64)
    p = sklearn_p(x, 30)
    gains = np.ones((n, axes))
    worst = []
    for k in range(50):
        factor, momentum = (12, 0.5) if k < exaggerated else (1, 0.8)
        update = np.zeros((n, axes)) if k in (0, exaggerated) else maps[k] - maps[k - 1]
        if k == exaggerated:
            gains[:] = 1
        gradient = _kl_divergence(maps[k].ravel(), factor * p, axes - 1, n, axes)[1].reshape(n, axes)
        gains = np.where(update * gradient < 0, gains + 0.2, gains * 0.8).clip(0.01)
        expected = maps[k] + momentum * update - rate * gains * gradient
        worst.append(np.abs(expected - maps[k + 1]).max() / np.abs(maps[k + 1] - maps[k]).max())
    assert max(worst) < 1e-4, worst


def test_history_is_against_p(tmp_path: Path) -> None:
    """Of the map before the update of iteration 49, while P is exaggerated; and the last one of the final map."""
    x = blobs(300, 8)
    got = tsne(tmp_path, x, pca_start(x), iterations=100)
    assert list(got.history) == [49, 99]
    p = sklearn_p(x, 30)
    for iterations, kl in ((49, got.history[49]), (99, got.history[99]), (100, got.kl)):
        y = tsne(tmp_path, x, pca_start(x), iterations=iterations).y
        assert kl == pytest.approx(_kl_divergence(y.astype(np.float64).ravel(), p, 1, 300, 2)[0], rel=2e-5)


def test_divergence_falls(tmp_path: Path) -> None:
    x = blobs(50, 2)
    kl = [tsne(tmp_path, x, pca_start(x), perplexity=10, iterations=i).kl for i in (250, 300, 350)]
    assert kl[0] > kl[1] > kl[2]


def test_stops_without_progress(tmp_path: Path) -> None:
    """At steps too large to settle: by the history, at the first check more than 300 iterations after the best one."""
    x = blobs(30, 3)
    got = tsne(tmp_path, x, random_start(30, 2), perplexity=8, iterations=20000, exaggerated=0, rate=2000)
    checks = np.array(list(got.history))
    kl = np.array(list(got.history.values()))
    best = np.array([checks[: i + 1][kl[: i + 1].argmin()] for i in range(len(checks))])
    assert checks[-1] - best[-1] > 300 and (checks[:-1] - best[:-1] <= 300).all()
    assert got.iterations == checks[-1] + 1 < 20000


def test_stops_without_gradient(tmp_path: Path) -> None:
    """All points in one place: nothing moves, and the first check of each phase ends it."""
    got = tsne(tmp_path, blobs(40, 3), np.zeros((40, 2), np.float32), perplexity=8)
    assert got.iterations == 100 and list(got.history) == [49, 99] and not got.y.any()


@pytest.mark.parametrize("seed", range(3))
def test_uniform_grid(tmp_path: Path, seed: int) -> None:
    """scikit-learn's test: neighbours on a 10 x 10 grid keep their spacing within 0.5 to 2 of the mean, at the latest
    when a second run goes on where the first ended."""
    x = np.array([(i, j) for i in np.linspace(0, 1, 10) for j in np.linspace(0, 1, 10)], np.float32)
    start = (1e-4 * np.random.default_rng(seed).standard_normal((100, 2))).astype(np.float32)
    first = tsne(tmp_path, x, start, perplexity=50).y
    assert any(is_even(y) for y in (first, tsne(tmp_path, x, first, perplexity=50).y))


def is_even(y: np.ndarray) -> bool:
    spread = distances(y)
    np.fill_diagonal(spread, np.inf)
    nearest = np.sqrt(spread.min(1))
    return 0.5 < (nearest / nearest.mean()).min() and (nearest / nearest.mean()).max() < 2


@pytest.mark.parametrize("n, d, perplexity, axes, iterations",
                         [(31, 4, 10, 2, 120), (700, 10, 30, 2, 120), (700, 10, 30, 3, 60), (1300, 70, 12, 2, 60),
                          (5, 3, 2, 2, 300), (700, 10, "3+30", 2, 60)])
def test_same_bits(tmp_path: Path, n: int, d: int, perplexity: float, axes: int, iterations: int) -> None:
    x, start = blobs(n, d), random_start(n, axes)
    one = tsne(tmp_path, x, start, perplexity, iterations, exaggerated=40)
    assert np.ptp(one.y) > 0.01
    for ranks, threads in ((1, 2), (2, 1), (2, 2), (3, 1), (5, 2)):
        assert same(one, tsne(tmp_path, x, start, perplexity, iterations, exaggerated=40, ranks=ranks,
                              threads=threads)), (ranks, threads)


@pytest.mark.parametrize("name, x, perplexity", [
    ("duplicates", np.repeat(blobs(10, 3), 20, axis=0), 5),
    ("all equal", np.full((40, 3), 0.7, np.float32), 10),
    ("collinear", np.arange(60, dtype=np.float32)[:, None] * np.array([[1, 2, 3]], np.float32), 12),
    ("nearly N", blobs(20, 2), 19.9),
    ("perplexity 1", blobs(20, 2), 1),
    ("two", np.array([[0, 0], [3, 4]], np.float32), 1),
    ("three", blobs(3, 2), 1.5),
    ("one dimension", blobs(17, 1), 4),
    ("huge", blobs(40, 3) * np.float32(1e30), 8),
    ("tiny", blobs(40, 3) * np.float32(1e-35), 8),
    ("an outlier", np.concatenate([blobs(40, 3), np.full((1, 3), 1e7, np.float32)]), 8),
    ("far from zero", blobs(40, 3) + np.float32(1e5), 8),
])
def test_degenerate(tmp_path: Path, name: str, x: np.ndarray, perplexity: float) -> None:
    got = tsne(tmp_path, x, random_start(len(x), 2), perplexity, 300)
    assert np.isfinite(got.y).all() and np.isfinite(got.kl), name
    assert got.dropped <= 2.0**-23
    if name not in ("huge", "tiny"):  # scaled before, in tsne.c
        p = affinities(tmp_path, x, perplexity)
        assert np.isfinite(p.p).all() and np.isfinite(p.beta).all() and abs(p.sum - 1) < 1e-6


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("perplexity", [10, "5+20+30"])
def test_same_bits_at_every_level(tmp_path: Path, axes: int, perplexity, monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX-512, AVX2 and no vectors, where the processor has them."""
    x, start = blobs(550, 9), random_start(550, axes)
    maps = []
    for level in (3, 2, 0):
        monkeypatch.setenv("ISA", str(level))
        maps.append(tsne(tmp_path, x, start, perplexity, 60, exaggerated=20))
    assert same(maps[0], maps[1]) and same(maps[0], maps[2])


def test_scale_does_not_matter(tmp_path: Path) -> None:
    """By a power of two, to the last bit: squares of 2^100 would overflow, of 2^-100 vanish."""
    x, start = blobs(100, 5), random_start(100, 2)
    one = tsne(tmp_path, x, start, 10, 100)
    for factor in (2.0**100, 2.0**-100):
        assert same(one, tsne(tmp_path, x * np.float32(factor), start, 10, 100))


def test_more_points_than_int_squares(tmp_path: Path) -> None:
    """70,000^2 is past 2^32: the gradient of points at both ends and in the middle, from the definition, with the kernel's
    own beta (tested at smaller sizes); and the same bits on two ranks."""
    n = 70000
    random = np.random.default_rng(2)
    x = np.sort(random.random(n).astype(np.float32))[:, None] * np.float32(1000)
    y = (30 * random.standard_normal((n, 2))).astype(np.float32)
    drive("gradient", save(tmp_path / "x", x), n, 1, 4, save(tmp_path / "y", y), 2, tmp_path / "g", threads=2)
    got = np.fromfile(tmp_path / "g", count=2 * n).reshape(n, 2)
    beta = np.fromfile(tmp_path / "g", np.float32, offset=16 * n).astype(np.float64)
    x, y = x[:, 0].astype(np.float64), y.astype(np.float64)

    def conditional(j: int) -> np.ndarray:
        d = (x - x[j]) ** 2
        d[j] = np.inf
        e = np.exp(-beta[j] * (d - d.min()))
        return e / e.sum()

    def weights(i: int) -> np.ndarray:
        return 1 / (1 + ((y - y[i]) ** 2).sum(1))

    attractions, repulsions, chosen = [], [], [0, 33333, 46342, 69999]
    for i in chosen:
        p = conditional(i)
        for j in range(max(i - 60, 0), min(i + 60, n)):
            p[j] += conditional(j)[i]
        w, apart = weights(i), y[i] - y
        attractions.append(4 * ((p / (2 * n) * w)[:, None] * apart).sum(0))
        repulsions.append(4 * ((w * w)[:, None] * apart).sum(0))
    rest, repulsion = np.array(attractions) - got[chosen], np.array(repulsions)
    z = (repulsion**2).sum() / (repulsion * rest).sum()  # one number for all of them, and the right one
    np.testing.assert_allclose(rest, repulsion / z, rtol=0, atol=1e-5 * np.abs(repulsion / z).max())
    sample = np.mean([weights(i).sum() - 1 for i in random.choice(n, 400, replace=False)]) * n
    assert z == pytest.approx(sample, rel=0.05)


def test_memory_is_predicted(tmp_path: Path) -> None:
    """On data without structure P is nearly full; in many dimensions the points count as much."""
    for n, d in ((6000, 30), (9000, 700)):
        x = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
        predicted, taken = memory(tmp_path, x, random_start(n, 2), iterations=2)
        assert predicted > 4e7
        assert predicted == pytest.approx(taken, rel=0.1), (n, d)


@pytest.mark.parametrize("ranks", [1, 2])
def test_too_large_p_is_refused(tmp_path: Path, ranks: int) -> None:
    """One line, before P is allocated, naming what would fit; the same run with memory to spare ends well."""
    n = 5000
    x = save(tmp_path / "x", np.random.default_rng(0).standard_normal((n, 20)))
    start = save(tmp_path / "y", random_start(n, 2))
    arguments = ("tsne", x, n, 20, 30, start, 2, 1, tmp_path / "map")
    lines = drive(*arguments, ranks=ranks, fails=True, limit=25 << 20)
    line = " ".join(lines[0])
    assert len(lines) == 1 and "affinities of 5000 samples" in line and "--tsne-samples" in line, lines
    assert int(line.split(" ranks with")[0].split()[-1]) > ranks
    drive(*arguments, ranks=ranks, limit=2 << 30)
    wide = save(tmp_path / "wide", np.ones((n, 700)))
    lines = drive("tsne", wide, n, 700, 30, start, 2, 1, tmp_path / "map", ranks=ranks, fails=True, limit=20 << 20)
    assert len(lines) == 1 and "5000 samples of 700 numbers" in " ".join(lines[0]), lines


def test_refusals(tmp_path: Path) -> None:
    x, start = save(tmp_path / "x", blobs(20, 2)), save(tmp_path / "y", random_start(20, 2))
    for perplexity, axes, word in ((20, 2, "perplexity"), (0.5, 2, "perplexity"), ("nan", 2, "perplexity"),
                                   (5, 4, "axes")):
        lines = drive("tsne", x, 10 if axes == 4 else 20, 2, perplexity, start, axes, 10, tmp_path / "map", ranks=2,
                      fails=True)
        assert len(lines) == 1 and word in lines[0], lines
    broken = blobs(20, 2)
    broken[7, 1] = np.nan
    lines = drive("tsne", save(tmp_path / "x", broken), 20, 2, 5, start, 2, 10, tmp_path / "map", ranks=2, fails=True)
    assert len(lines) == 1 and "finite" in lines[0], lines
    lines = drive("tsne", save(tmp_path / "x", blobs(20, 2)), 20, 2, 5, start, 2, 500, tmp_path / "map", 250, 1e30,
                  ranks=2, fails=True)
    assert any("apart;" in line for line in lines), lines
    for name, array in (("x", blobs(10, 2)), ("y", random_start(10, 2))):  # twins do not part: no number is infinite
        save(tmp_path / name, np.repeat(array, 2, 0))
    lines = drive("tsne", x, 20, 2, 5, start, 2, 12, tmp_path / "map", 250, 1e24, fails=True)
    assert any("apart;" in line for line in lines), lines
