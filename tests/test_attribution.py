"""Attribution against captum and pytorch-grad-cam (golden/make_attribution.py), and its own laws.

Golden values are in double precision; a relu or max-pool near a tie on a path or under noise may fall the other way in
float32, and then changes one of the mean's terms: hence a tolerance for the largest error and one for most values.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from program import BINARY, GOLDEN, IMAGES, LABELS, MODEL, raw, read, relative_errors, run, succeed, values
from test_ranks import assert_same_result

N = 3
CAMS = ("gradcam", "gradcam_plus_plus", "hirescam", "layercam")
PLAIN = ("saliency", "saliency_signed", "saliency_squared", "input_x_gradient", "guided_backprop")
PATHS = ("smoothgrad", "integrated_gradients", "occlusion")
SETTINGS = ("--ig-steps", 20, "--smoothgrad-draws", 8, "--seed", 3, "--occlusion-window", 6, "--occlusion-stride", 4)
NETWORKS = {
    "color": ("--model", GOLDEN / "color.pth", "--images", GOLDEN / "color_images.npy", "--mean", "0.5,0.4,0.3",
              "--std", "0.2,0.3,0.25", "--baseline", "mean"),
    "binary": ("--model", GOLDEN / "binary.pth", "--images", GOLDEN / "binary_images.npy", "--baseline", 51,
               "--ig-rule", "riemann_middle"),
    "resnet": ("--model", GOLDEN / "onnx" / "resnet.onnx", "--images", f"{GOLDEN / 'onnx' / 'resnet.npz'}:images",
               "--scale", 1 / 64, "--mean", 2, "--ig-rule", "riemann_right"),
}
LAST = {"color": "conv2", "binary": "conv2", "resnet": "layer2_1_conv2"}
OTHER = {"color": "relu1", "resnet": "layer1_0_relu_1"}
needs_onnx = pytest.mark.skipif(b"built without ONNX" in BINARY.read_bytes(), reason="built without protobuf-c")
ALL = [pytest.param(name, marks=needs_onnx if name == "resnet" else ()) for name in NETWORKS]


def words(name: str) -> str:
    """All methods, each class activation map at the last convolution and at another layer."""
    cams = [cam.replace("_plus_plus", "++") for cam in CAMS]
    return ",".join((*PLAIN, *PATHS, *cams, *(f"{cam}:{OTHER[name]}" for cam in cams if name in OTHER)))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attribution")

    @cache
    def make(name: str, *more: object) -> Path:
        output = folder / f"{name}_{len(list(folder.iterdir()))}.nc"
        attribution = () if "--attribution" in more else ("--attribution", words(name))
        return succeed(output, *NETWORKS[name], "--samples", N, *SETTINGS, "--tsne", 0, "--pca", 0, *attribution, *more)

    return make


@pytest.fixture(scope="module")
def golden():
    return cache(lambda name: dict(np.load(GOLDEN / f"attribution_{name}.npz")))


def assert_close(got: np.ndarray, expected: np.ndarray, most: float, largest: float) -> None:
    """Errors in units of each sample's largest value: of 99 of 100 values, and of all."""
    assert got.shape == expected.shape and np.isfinite(got).all()
    axes = tuple(range(1, got.ndim))
    errors = np.abs(got - expected.astype(np.float64)) / np.abs(expected).max(axes, keepdims=True)
    assert np.quantile(errors, 0.99) < most and errors.max() < largest, (np.quantile(errors, 0.99), errors.max())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("method", ["saliency_signed", "guided_backprop", *PATHS])
def test_as_captum(result, golden, name, method):
    once = method in ("saliency_signed", "guided_backprop")
    got = values(result(name))[method]
    assert_close(got, golden(name)[method], 2e-5 if once else 1e-4, 1e-4 if once else 1e-2)


@pytest.mark.parametrize("name", ALL)
def test_plain_gradients(result, golden, name):
    """What the other methods make of the gradient, from the file's own."""
    got = values(result(name))
    gradient = got["saliency_signed"].astype(np.float64)
    np.testing.assert_allclose(raw(got, "saliency"), np.abs(gradient).max(1), atol=1e-5 * np.abs(gradient).max())
    np.testing.assert_allclose(got["saliency_squared"], gradient**2, rtol=1e-6)
    scale, mean, std = {"color": (1 / 255, [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]), "binary": (1 / 255, [0], [1]),
                        "resnet": (1 / 64, [2], [1])}[name]
    x = (got["image"] * scale - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    np.testing.assert_allclose(got["input_x_gradient"], x * gradient, atol=1e-6 * np.abs(x * gradient).max())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("method", CAMS)
@pytest.mark.parametrize("at", [LAST, OTHER], ids=["last", "other"])
def test_as_pytorch_grad_cam(result, golden, name, method, at):
    if name not in at:
        pytest.skip("looked at in one layer")
    variable = method if at is LAST else f"{method}_{at[name]}"
    assert read(result(name))[0][variable].dimensions == ("sample", f"{at[name]}_y", f"{at[name]}_x")
    expected = golden(name)[f"{method}_{at[name]}"]
    got = raw(values(result(name)), variable)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
    strong = expected.max((1, 2)) > 0.01 * expected.max()
    assert strong.any() and relative_errors(got[strong], expected[strong]).max() < 1e-3


@pytest.mark.parametrize("name", ALL)
def test_cams_as_large_as_the_image(result, golden, name):
    path = result(name, "--attribution", "gradcam", "--cam-resolution", "image")
    assert read(path)[0]["gradcam"].dimensions == ("sample", "y", "x")
    expected = golden(name)[f"gradcam_{LAST[name]}_image"]
    assert np.abs(raw(values(path), "gradcam") - expected).max() < 1e-4 * expected.max()


@pytest.mark.parametrize("name, target", [("color", "runner-up"), ("color", "2"),
                                          pytest.param("resnet", "runner-up", marks=needs_onnx)])
def test_targets(result, golden, name, target):
    got, gold = values(result(name, "--target", target)), golden(name)
    order = np.argsort(-gold["logits"], 1)
    assert np.array_equal(got["attribution_target"], order[:, 1] if target == "runner-up" else [2] * N)
    key = target.replace("-", "_")
    assert_close(got["saliency_signed"], gold[f"{key}.saliency_signed"], 2e-5, 1e-4)
    assert_close(got["integrated_gradients"], gold[f"{key}.integrated_gradients"], 1e-4, 1e-2)
    expected = gold[f"{key}.gradcam_{LAST[name]}"]
    assert np.abs(raw(got, "gradcam") - expected).max() < 1e-4 * expected.max()


def test_difference_of_two_targets_is_linear(result):
    """The gradient of a difference is the difference of gradients; so of integrated gradients and occlusion."""
    methods = ("saliency_signed", "integrated_gradients", "smoothgrad", "occlusion")
    got = {t: values(result("color", "--target", t, "--attribution", ",".join(methods)))
           for t in ("predicted:2", "predicted", "2")}
    for method in methods:
        one, other = (got[t][method].astype(np.float64) for t in ("predicted", "2"))
        np.testing.assert_allclose(got["predicted:2"][method], one - other, atol=1e-5 * np.abs(one).max())
    assert np.array_equal(got["predicted:2"]["attribution_target"], got["predicted"]["prediction"])
    assert (got["predicted:2"]["attribution_target_against"] == 2).all()
    same = got["predicted"]["prediction"] == 2
    assert (got["predicted:2"]["saliency_signed"][same] == 0).all()
    assert "attribution_target" not in got["predicted"]


def test_label_as_target(result, tmp_path):
    np.save(tmp_path / "labels.npy", np.array([2, -1, 0] + [1] * 20))
    got = values(result("color", "--target", "label", "--labels", tmp_path / "labels.npy", "--attribution",
                        "saliency_signed"))
    expected = values(result("color", "--target", "2", "--attribution", "saliency_signed"))
    assert np.array_equal(got["attribution_target"], [2, got["prediction"][1], 0])
    assert np.array_equal(got["saliency_signed"][0], expected["saliency_signed"][0])
    assert not np.array_equal(got["saliency_signed"][2], expected["saliency_signed"][2])


# ---- Completeness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_delta_is_what_completeness_misses(result, golden, name):
    got, gold = values(result(name)), golden(name)
    np.testing.assert_allclose(got["integrated_gradients_delta"], gold["integrated_gradients_delta"],
                               atol=2e-3 * np.abs(gold["integrated_gradients"].sum((1, 2, 3))).max())
    assert (got["integrated_gradients_steps"] == 20).all()
    attributes = read(result(name))[0]["integrated_gradients"].attributes
    assert attributes["steps"] == 20
    assert attributes["baseline"] == {"color": "mean", "binary": "51", "resnet": "zero"}[name]


def test_tolerance_doubles_the_steps_of_those_that_miss_it(tmp_path):
    def make(*more: object, ranks: int = 1) -> dict[str, np.ndarray]:
        return values(succeed(tmp_path / "r.nc", "--model", MODEL, "--images", IMAGES, "--samples", 40, "--tsne", 0,
                              "--attribution", "integrated_gradients", "--overwrite", *more, ranks=ranks))

    name = "integrated_gradients"
    got, other = make("--ig-tolerance", 0.03), make("--ig-tolerance", 0.03, "--batch", 5, ranks=2)
    steps, delta = got[f"{name}_steps"], got[f"{name}_delta"]
    assert set(np.unique(steps)) <= {50, 100, 200, 400, 800} and len(set(steps)) > 1
    assert (np.abs(delta[steps < 800]) <= 0.03).all()
    for n in (50, 100):
        once = make("--ig-steps", n)
        same = steps == n
        assert same.any() and np.array_equal(got[name][same], once[name][same])
        assert (np.abs(once[f"{name}_delta"][steps > n]) > 0.03).all()
    for variable in (name, f"{name}_steps", f"{name}_delta"):
        assert np.array_equal(got[variable], other[variable])


def test_baselines(result, tmp_path):
    """A file's image is a number's where all its pixels are that; the mean image is the mean."""
    def of(baseline: object) -> np.ndarray:
        method = "integrated_gradients"
        return values(result("color", "--attribution", method, "--baseline", baseline))[method]

    shape = (3, 18, 27)
    np.save(tmp_path / "grey.npy", np.full(shape, 51, np.uint8))
    assert np.array_equal(of(51), of(tmp_path / "grey.npy"))
    np.save(tmp_path / "mean.npy", np.load(GOLDEN / "color_images.npy")[:N].mean(0))
    np.testing.assert_allclose(of("mean"), of(tmp_path / "mean.npy"), atol=1e-6)
    assert not np.array_equal(of("zero"), of(0)) and not np.array_equal(of("mean"), of(0))
    np.save(tmp_path / "small.npy", np.zeros((3, 18, 26), np.uint8))
    failed = run(*NETWORKS["color"][:-2], "--baseline", tmp_path / "small.npy", "--attribution", "occlusion", "--output",
                 tmp_path / "r.nc", "--tsne", 0, ranks=2)
    assert failed.status == 1 and len(failed.lines) == 1 and "1404" in failed.lines[0] and "1458" in failed.lines[0]


def test_mean_of_floats(tmp_path):
    """Sums of floats are those of whole units: near the mean, and the same bits on other ranks."""
    images = np.load(GOLDEN / "kernels_images.npy")
    images[0] *= 8  # on the first rank alone
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "mean.npy", images.astype(np.float64).mean(0).astype(np.float32))
    common = ("--model", GOLDEN / "kernels.pth", "--images", tmp_path / "images.npy", "--layout", "NHWC", "--tsne", 0,
              "--attribution", "integrated_gradients", "--ig-steps", 4, "--batch", 4)
    one, two, file = (values(succeed(tmp_path / f"{i}.nc", *common, "--baseline", b, ranks=r))["integrated_gradients"]
                      for i, (b, r) in enumerate((("mean", 1), ("mean", 3), (tmp_path / "mean.npy", 1))))
    assert np.array_equal(one, two)
    assert_close(one, file, 1e-5, 1e-2)


# ---- Evidence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["color", "binary"])
def test_deletion_and_insertion_by_running_such_images(result, tmp_path, name):
    """The images taken apart here, and the program's own logits of them."""
    steps, methods = 5, ("saliency_signed", "integrated_gradients")
    got = values(result(name, "--baseline", 51, "--attribution", ",".join(methods), "--evidence",
                        "insertion,deletion", "--evidence-steps", steps))
    image = got["image"]
    cuts = [round(k * image[0, 0].size / steps) for k in range(steps + 1)]
    pictures = []
    for method in methods:
        plane = got[method][:, 0]
        for channel in range(1, image.shape[1]):
            plane = plane + got[method][:, channel]
        order = np.argsort(-plane.reshape(N, -1), 1, kind="stable")
        for insertion in (False, True):
            for cut in cuts:
                first = np.zeros((N, image[0, 0].size), bool)
                np.put_along_axis(first, order[:, :cut], True, 1)
                present = (first == insertion).reshape(N, 1, *image.shape[2:])
                pictures.append(np.where(present, image, 51))
    np.save(tmp_path / "pictures.npy", np.concatenate(pictures).astype(np.uint8))
    words = list(NETWORKS[name])
    words[3] = tmp_path / "pictures.npy"
    logits = values(succeed(tmp_path / "r.nc", *words, "--attribution", "none", "--tsne", 0, "--pca", 0))["logits"]
    logits = logits.astype(np.float64).reshape(len(methods), 2, steps + 1, N, -1)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    chosen = got["prediction"] if logits.shape[-1] > 1 else np.zeros(N, int)
    probability = (odds / odds.sum(-1, keepdims=True))[..., np.arange(N), chosen] if logits.shape[-1] > 1 \
        else 1 / (1 + np.exp(-logits[..., 0]))
    area = ((probability[:, :, 1:] + probability[:, :, :-1]) / 2).mean(2)
    for i, method in enumerate(methods):
        np.testing.assert_allclose(got[f"{method}_deletion"], area[i, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[f"{method}_insertion"], area[i, 1], rtol=1e-5, atol=1e-6)
    assert np.abs(area[:, 0] - area[:, 1]).max() > 1e-3


def test_sparseness_and_agreement(result, golden):
    """By numpy and scipy; class activation maps as large as the image, ties (zeros) among their values."""
    methods = ("saliency_signed", "occlusion", "gradcam", "layercam:relu1")
    path = result("color", "--attribution", ",".join(methods), "--evidence", "sparseness,agreement", "--cam-resolution",
                  "image")
    got, names = values(path), read(path)[0]["attribution_agreement"].attributes["attributions"].split()
    assert names == ["saliency_signed", "occlusion", "gradcam", "layercam_relu1"]
    maps = [got[n].astype(np.float64) for n in names]
    maps = [m.sum(1) if m.ndim == 4 else m for m in maps]
    for name, map in zip(names, maps):
        low = got[f"{name}_low"][:, None, None] if f"{name}_low" in got else 0
        high = got[f"{name}_high"][:, None, None] if f"{name}_low" in got else 1
        a = np.sort(np.abs(map * (high - low) + low).reshape(N, -1), 1)
        n = a.shape[1]
        gini = ((2 * np.arange(1, n + 1) - n - 1) * a).sum(1) / (n * a.sum(1))
        np.testing.assert_allclose(got[f"{name}_sparseness"], gini, atol=1e-5)
    for i, one in enumerate(maps):
        for j, other in enumerate(maps):
            expected = [spearmanr(one[k], other[k], axis=None).statistic for k in range(N)]
            np.testing.assert_allclose(got["attribution_agreement"][:, i, j], expected, atol=2e-4)
    plain = values(result("color", "--attribution", ",".join(methods), "--evidence", "agreement,sparseness"))
    for name in ("attribution_agreement", "gradcam_sparseness"):
        assert np.array_equal(plain[name], got[name])  # at the layer's resolution in the file


# ---- Bits, choices, mistakes -----------------------------------------------------------------------------------------


def test_same_bits_for_ranks_threads_and_batches(few, tmp_path):
    common = ("--model", MODEL, "--images", few[0], "--labels", few[1], "--samples", 37, "--tsne", 0, "--attribution",
              "saliency,gradcam++:relu1,layercam,guided_backprop,smoothgrad,integrated_gradients,occlusion", "--target",
              "label:runner-up", "--baseline", "mean", "--ig-steps", 7, "--smoothgrad-draws", 3, "--evidence",
              "deletion,insertion,sparseness,agreement", "--evidence-steps", 4)
    results = [read(succeed(tmp_path / f"{i}.nc", *common, "--batch", batch, "--threads", threads, ranks=ranks))
               for i, (ranks, threads, batch) in enumerate(((1, 1, 8), (2, 2, 8), (3, 1, 5), (1, 2, 40)))]
    for other in results[1:]:
        assert_same_result(results[0], other)


def test_asking_for_more_changes_nothing(result):
    every = values(result("color"))
    for method in (*PLAIN, *PATHS, "gradcam"):
        got = values(result("color", "--attribution", method))
        assert {n for n in got if n.startswith(("saliency", "gradcam"))} <= {method, f"{method}_low", f"{method}_high"}
        assert np.array_equal(got[method], every[method]), method


def test_chosen_samples_have_the_same_maps(tmp_path):
    common = ("--model", MODEL, "--images", IMAGES, "--labels", LABELS, "--samples", 600, "--tsne", 0, "--attribution",
              "smoothgrad,integrated_gradients", "--target", "label", "--ig-steps", 3, "--smoothgrad-draws", 2)
    every, chosen = (values(succeed(tmp_path / f"{k}.nc", *common, "--keep-maps", k, ranks=2))
                     for k in ("all", "chosen"))
    kept = chosen["map_sample"]
    assert 0 < len(kept) < 600
    for name in ("smoothgrad", "integrated_gradients", "integrated_gradients_delta", "attribution_target"):
        assert np.array_equal(chosen[name], every[name][kept]), name


@pytest.mark.parametrize("option, value, expected", [
    ("attribution", "integrated_gradients:conv1", "unknown"),
    ("attribution", "gradcam:gap", "rows and columns"),
    ("target", "label", "--labels"),
    ("target", "5", "0 to 4"),
    ("target", "1:1", "different"),
    ("target", "predicted:", "expected"),
    ("ig-rule", "simpson", "riemann_middle"),
    ("cam-resolution", "screen", "layer or image"),
    ("evidence", "truth", "sparseness"),
    ("occlusion-window", 19, "18"),
    ("baseline", "absent.npy", "absent.npy"),
])
def test_mistakes(tmp_path, option, value, expected):
    failed = run(*NETWORKS["color"][:-2], "--tsne", 0, "--output", tmp_path / "r.nc", f"--{option}", value, ranks=2)
    assert len(failed.lines) == 1 and expected in failed.lines[0], failed.lines
    assert failed.status == (1 if option == "baseline" else 2) and list(tmp_path.iterdir()) == []
