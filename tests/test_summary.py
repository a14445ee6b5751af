"""Attribution maps of a whole set without the map of any sample (--keep): against numpy over the maps themselves."""

from __future__ import annotations

import numpy as np
import pytest

from program import GOLDEN, IMAGES, LABELS, MODEL, raw, read, run, succeed, values
from test_ranks import assert_same_result

MNIST = ("--model", MODEL, "--images", IMAGES, "--tsne", 0, "--pca", 0)
COLOR = ("--model", GOLDEN / "color.pth", "--images", GOLDEN / "color_images.npy", "--tsne", 0, "--pca", 0)
METHODS = ("saliency", "gradcam", "input_x_gradient")


def check(got: dict[str, np.ndarray], maps: dict[str, np.ndarray], category: np.ndarray, labels: np.ndarray | None) -> None:
    assert np.array_equal(got["summary_count"], np.bincount(category, minlength=len(got["summary_count"])))
    for method in METHODS:
        every = raw(maps, method) if f"{method}_low" in maps else maps[method].astype(np.float64)
        every = every.squeeze(1) if every.ndim == 4 and every.shape[1] == 1 else every
        scale = np.abs(every).max()
        for k, count in enumerate(got["summary_count"]):
            mean, variance = got[f"{method}_mean"][k], got[f"{method}_variance"][k]
            if count == 0:
                assert np.isnan(mean).all() and np.isnan(variance).all()
                continue
            np.testing.assert_allclose(mean, every[category == k].mean(0), rtol=1e-6, atol=1e-6 * scale)
            np.testing.assert_allclose(variance, every[category == k].var(0), rtol=1e-5, atol=1e-6 * scale**2)
        for judged, name in enumerate(("mean_wrong", "mean_right")):
            if labels is None:
                assert f"{method}_{name}" not in got
                continue
            these = (labels >= 0) & ((labels == maps["prediction"]) == judged)
            np.testing.assert_allclose(got[f"{method}_{name}"], every[these].mean(0), rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("labelled", [True, False])
def test_as_numpy(tmp_path, labelled):
    """Some categories have no sample, some samples no label."""
    labels = np.arange(300) % 7
    labels[::11] = -1
    np.save(tmp_path / "labels.npy", np.concatenate([labels, np.zeros(9700, int)]))
    words = (*MNIST, "--samples", 300, "--attribution", ",".join(METHODS),
             *(("--labels", tmp_path / "labels.npy") if labelled else ()))
    both, summary = (values(succeed(tmp_path / f"{keep}.nc", *words, "--keep", keep)) for keep in ("both", "summary"))
    category = np.where(labels >= 0, labels, both["prediction"]) if labelled else both["prediction"]
    check(both, both, category, labels if labelled else None)
    assert not {"saliency", "gradcam_low", "image", "map_sample"} & set(summary)
    for name in summary:
        assert np.array_equal(summary[name], both[name], equal_nan=summary[name].dtype.kind == "f"), name
    one = values(succeed(tmp_path / "maps.nc", *words, "--attribution", "gradcam"))
    assert np.array_equal(one["gradcam"], both["gradcam"]) and not any("summary" in name for name in one)


def test_channels_and_layers(tmp_path):
    path = succeed(tmp_path / "r.nc", *COLOR, "--keep", "both", "--attribution", "input_x_gradient,saliency,gradcam",
                   "--mean", "0.5,0.4,0.3")
    variables, got = read(path)[0], values(path)
    check(got, got, got["prediction"], None)
    assert variables["input_x_gradient_mean"].dimensions == ("summary_category", "channel", "y", "x")
    assert variables["gradcam_variance"].dimensions == ("summary_category", "conv2_y", "conv2_x")
    two = values(succeed(tmp_path / "two.nc", "--model", GOLDEN / "binary.pth", "--images", GOLDEN / "binary_images.npy",
                         "--tsne", 0, "--keep", "summary"))
    assert two["saliency_mean"].shape[0] == 2 and two["summary_count"][1] == two["prediction"].sum()


def test_same_bits_for_ranks_threads_and_batches(tmp_path):
    words = (*MNIST, "--labels", LABELS, "--samples", 203, "--attribution", "saliency,integrated_gradients", "--ig-steps", 5,
             "--evidence", "deletion,insertion,agreement", "--evidence-steps", 3, "--keep")
    for keep in (("summary",), ("both", "--keep-maps", "chosen"), ("both",)):
        results = [read(succeed(tmp_path / f"{len(list(tmp_path.iterdir()))}.nc", *words, *keep, "--batch", batch, "--threads",
                                threads, ranks=ranks)) for ranks, threads, batch in ((1, 1, 8), (3, 1, 7), (2, 2, 100))]
        for other in results[1:]:
            assert_same_result(results[0], other)


def test_most_and_least_faithful_are_kept(tmp_path):
    """By insertion less deletion of the first method; their maps are those of a run that keeps all."""
    words = (*MNIST, "--labels", LABELS, "--samples", 250, "--attribution", "gradcam,saliency", "--evidence",
             "deletion,insertion", "--evidence-steps", 5)
    every = values(succeed(tmp_path / "all.nc", *words))
    order = np.lexsort((np.arange(250), -(every["gradcam_insertion"] - every["gradcam_deletion"])))
    kept = np.sort(np.concatenate([order[:20], order[-20:]]))
    for more in (("--keep", "summary"), ("--keep", "both", "--keep-maps", "chosen")):
        path = succeed(tmp_path / "r.nc", *words, *more, "--overwrite", ranks=2)
        got = values(path)
        if "both" in more:
            assert set(kept) < set(got["map_sample"])
        else:
            assert np.array_equal(got["map_sample"], kept) and read(path)[1]["maps_kept"] == "faithful"
        for name in ("gradcam", "gradcam_high", "saliency", "image"):
            assert np.array_equal(got[name], every[name][got["map_sample"]]), name
        for name in ("gradcam_deletion", "saliency_insertion"):
            assert np.array_equal(got[name], every[name]), name  # of all samples


def test_mistakes(tmp_path):
    wrong = run(*COLOR, "--output", tmp_path / "r.nc", "--keep", "most")
    assert wrong.status == 2 and len(wrong.lines) == 1 and "summary or both" in wrong.lines[0]
    large = run(*COLOR, "--output", tmp_path / "r.nc", "--keep", "summary", "--attribution", "input_x_gradient", "--scale",
                1e9, ranks=2)
    assert large.status == 1 and len(large.lines) == 1 and "input_x_gradient of sample 0" in large.lines[0]
    assert list(tmp_path.iterdir()) == []
