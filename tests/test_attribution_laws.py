"""Attribution on captum's own test networks with the numbers that captum's tests expect (golden/make_captum.py), the
axioms of Sundararajan et al. 2017 as properties, and the evidence measures against Quantus (golden/make_quantus.py)."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from program import BINARY, GOLDEN, IMAGES, MODEL, raw, succeed, values

needs_onnx = pytest.mark.skipif(b"built without ONNX" in BINARY.read_bytes(), reason="built without protobuf-c")
pytestmark = needs_onnx
RAMP = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)


@pytest.fixture
def attribute(tmp_path):
    def make(network: str, images: np.ndarray, *words: object) -> dict[str, np.ndarray]:
        np.save(tmp_path / "images.npy", np.asarray(images, np.float32))
        return values(succeed(tmp_path / "r.nc", "--model", GOLDEN / "captum" / f"{network}.onnx", "--images",
                              tmp_path / "images.npy", "--tsne", 0, "--pca", 0, "--overwrite", *words))

    return make


# ---- captum's answers ------------------------------------------------------------------------------------------------


def test_grad_cam(attribute):
    got = attribute("one_conv", RAMP, "--target", 0, "--attribution", "gradcam:conv1,gradcam:relu1")
    np.testing.assert_allclose(raw(got, "gradcam"), [[[11.25, 13.5], [20.25, 22.5]]], rtol=1e-6)
    np.testing.assert_allclose(raw(got, "gradcam_relu1"), [[[0, 4], [28, 32.5]]], rtol=1e-6)


def test_guided_backprop(attribute):
    got = attribute("one_conv", np.concatenate([RAMP, RAMP + 1]), "--target", 0, "--attribution", "guided_backprop")
    rows = [[[0, 1, 1, 1], [1, 3, 3, 2], [1, 3, 3, 2], [1, 2, 2, 1]], [[1, 2, 2, 1], [2, 4, 4, 2], [2, 4, 4, 2], [1, 2, 2, 1]]]
    np.testing.assert_array_equal(got["guided_backprop"][:, 0], rows)


def test_occlusion(attribute):
    got = attribute("multi_layer", np.reshape([[20, 50, 30], [2, 10, 3]], (2, 1, 1, 3)), "--target", 0, "--attribution",
                    "occlusion", "--occlusion-window", 1)
    np.testing.assert_allclose(got["occlusion"][:, 0], [[80, 200, 120], [8, 35, 12]], rtol=1e-6)
    got = attribute("one_conv", RAMP + 1, "--target", 0, "--attribution", "occlusion", "--occlusion-window", 4, "--baseline", 1)
    np.testing.assert_allclose(got["occlusion"], np.full((1, 4, 4), 67), rtol=1e-6)


@pytest.mark.parametrize("network", ["paper_one", "paper_two"])
def test_integrated_gradients(attribute, network):
    """The example of the paper: (1.5, -0.5) at (3, 1), whichever way the function is written."""
    got = attribute(network, np.reshape([3, 1], (1, 1, 1, 2)), "--attribution", "integrated_gradients", "--ig-steps", 2000,
                    "--ig-rule", "riemann_middle")
    np.testing.assert_allclose(got["integrated_gradients"][0, 0, 0], [1.5, -0.5], atol=2e-3)
    assert abs(got["integrated_gradients_delta"][0]) < 2e-3


# ---- Axioms ----------------------------------------------------------------------------------------------------------


def test_implementation_invariance(attribute):
    """Two networks that are one function have the same maps, wherever no relu is at its kink."""
    points = np.random.default_rng(0).uniform(-2, 4, (40, 1, 1, 2)).round(2) + 0.003
    methods = ("saliency_signed", "input_x_gradient", "smoothgrad", "integrated_gradients", "occlusion")
    one, two = (attribute(network, points, "--attribution", ",".join(methods), "--smoothgrad-draws", 5)
                for network in ("paper_one", "paper_two"))
    assert (one["logits"] > 0).any() and (one["logits"] == 0).any()
    for method in methods:
        np.testing.assert_allclose(one[method], two[method], atol=0.15 if method == "integrated_gradients" else 1e-5)
        assert np.abs(one[method]).max() > 0.5


def test_symmetry(attribute):
    """Inputs that the network treats alike, and that are alike, are attributed alike; another one is not."""
    methods = ("saliency_signed", "input_x_gradient", "integrated_gradients", "occlusion")
    got = attribute("multi_layer", np.reshape([[7, 7, 1], [5, 2, 5]], (2, 1, 1, 3)), "--target", 1, "--baseline", 0.5,
                    "--attribution", ",".join(methods), "--occlusion-window", 1)
    for method in methods:
        rows = got[method].reshape(2, 3)
        assert rows[0, 0] == rows[0, 1] and rows[1, 0] == rows[1, 2]
        assert method == "saliency_signed" or rows[0, 0] != rows[0, 2]


def test_dummy_and_completeness(attribute):
    """What the output does not look at gets nothing; the rest adds up to what the output gains."""
    points = np.reshape([[-3, 2], [4, -1], [3.5, 0.5]], (3, 1, 1, 2))
    got = attribute("paper_one", points, "--attribution", "integrated_gradients,occlusion", "--ig-steps", 3000, "--ig-rule",
                    "riemann_middle", "--occlusion-window", 1)
    maps = got["integrated_gradients"].reshape(3, 2)
    assert (maps[0] == 0).all() and maps[1, 1] == 0 and got["occlusion"].reshape(3, 2)[1, 1] == 0
    np.testing.assert_allclose(maps.sum(1), got["logits"][:, 0], atol=3e-3)  # at the baseline 0


# ---- Evidence as Quantus measures it -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    rows = np.load(GOLDEN / "quantus_mnist.npz")
    count = len(rows["target"])
    folder = tmp_path_factory.mktemp("quantus")
    pixels = np.frombuffer(gzip.decompress(IMAGES.read_bytes()), np.uint8)[16:].reshape(-1, 28, 28)
    np.save(folder / "masks.npy", pixels > 100)
    got = values(succeed(folder / "r.nc", "--model", MODEL, "--images", IMAGES, "--samples", count, "--tsne", 0, "--pca", 0,
                         "--attribution", "saliency,saliency_signed", "--evidence", "deletion,sparseness", "--evidence-steps",
                         28, "--masks", folder / "masks.npy"))
    assert np.array_equal(got["prediction"], rows["target"])
    return got, rows


@pytest.mark.parametrize("method", ["saliency", "saliency_signed"])
@pytest.mark.parametrize("measure", ["deletion", "sparseness", "pointing", "energy"])
def test_as_quantus(measured, method, measure):
    got, rows = measured
    errors = np.abs(got[f"{method}_{measure}"] - rows[f"{method}.{measure}"])
    assert np.quantile(errors, 0.95) < (2e-3 if measure == "deletion" else 1e-4), np.sort(errors)[-8:]
