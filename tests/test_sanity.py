"""Whether attribution methods see what the network has learnt (--sanity): against PyTorch, scipy and scikit-image
(golden/make_sanity.py), and what follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from program import BINARY, GOLDEN, IMAGES, LABELS, MODEL, read, run, succeed, values
from test_checkpoint import stopped
from test_ranks import assert_same_result

COLOR = ("--model", GOLDEN / "color.pth", "--images", GOLDEN / "color_images.npy", "--mean", "0.5,0.4,0.3", "--std",
         "0.2,0.3,0.25", "--tsne", 0, "--pca", 0)
METHODS = ("saliency", "saliency_signed", "input_x_gradient", "gradcam")
MNIST = ("--model", MODEL, "--images", IMAGES, "--tsne", 0, "--pca", 0)


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    output = tmp_path_factory.mktemp("sanity") / "r.nc"
    return succeed(output, *COLOR, "--samples", 3, "--sanity", 10, "--seed", 5, "--attribution", ",".join(METHODS))


@pytest.mark.parametrize("of", ["randomised", "random_logit"])
@pytest.mark.parametrize("measure", ["correlation", "ssim"])
def test_as_pytorch_scipy_and_scikit_image(checked, of, measure):
    expected = np.load(GOLDEN / "sanity_color.npz")[f"{of}_{measure}"]
    variables = read(checked)[0]
    got = variables[f"attribution_{of}_{measure}"]
    np.testing.assert_allclose(got.values, expected, atol=2e-4)
    overall = variables[f"attribution_{of}_{measure}_overall"]
    assert got.dimensions == ("sanity_sample", *overall.dimensions)
    np.testing.assert_allclose(overall.values, got.values.astype(np.float64).mean(0), rtol=1e-12)
    assert got.attributes["attributions"] == " ".join(METHODS)
    assert (of == "random_logit") or got.attributes["layers"] == "logits conv2 conv1"


def test_samples_are_spread_evenly(tmp_path):
    got = values(succeed(tmp_path / "r.nc", *COLOR, "--samples", "2:13", "--sanity", 4, "--keep-maps", "none", ranks=2))
    assert got["sanity_sample"].tolist() == [2, 4, 7, 10]
    assert "saliency" not in got and got["attribution_randomised_correlation"].shape == (4, 3, 1)


def test_weights_follow_the_seed_alone(tmp_path):
    """And not which methods are asked for, nor how many samples."""
    name = "attribution_randomised_correlation"
    one, other, fewer = (
        values(succeed(tmp_path / f"{i}.nc", *COLOR, "--samples", 3, "--seed", seed, "--sanity", n, "--attribution", m))
        for i, (seed, n, m) in enumerate(((1, 3, "saliency,gradcam"), (2, 3, "saliency"), (1, 1, "gradcam"))))
    assert not np.array_equal(one[name][:, :, 0], other[name][:, :, 0])
    assert np.array_equal(one[name][:1, :, 1:], fewer[name])


def test_who_fails_is_flagged(tmp_path):
    """Where most of the image is the baseline, so is most of the product of input and gradient: whatever the weights."""
    methods = ("saliency", "input_x_gradient", "integrated_gradients", "smoothgrad")
    path = succeed(tmp_path / "r.nc", *MNIST, "--samples", 300, "--sanity", 60, "--keep-maps", "chosen", "--ig-steps", 10,
                   "--smoothgrad-draws", 5, "--attribution", ",".join(methods))
    variables = read(path)[0]
    flags = variables["attribution_sanity_failed"]
    assert flags.values.tolist() == [0, 3, 3, 0]
    assert flags.attributes["flag_meanings"] == "random_weights another_output"
    for i, method in enumerate(methods):
        failed = variables["attribution_randomised_correlation_overall"].values[-1, i] > 0.5
        other = variables["attribution_random_logit_correlation_overall"].values[i] > 0.9
        assert bool(flags.values[i] & 1) == failed and bool(flags.values[i] & 2) == other
        assert variables[method].attributes["sanity_check"] == \
            ("failed: random weights, another output" if failed else "passed")


@pytest.mark.parametrize("target", ["predicted", "2", "runner-up:predicted", "label:2"])
def test_another_output_is_another_one(tmp_path, target):
    """Neither the one looked at nor, where there are so many, the one it is compared with."""
    np.save(tmp_path / "labels.npy", np.arange(len(np.load(GOLDEN / "color_images.npy"))) % 5)
    got = values(succeed(tmp_path / "r.nc", *COLOR, "--samples", 12, "--sanity", 12, "--target", target, "--labels",
                         tmp_path / "labels.npy", "--attribution", "saliency_signed"))
    assert np.isfinite(got["attribution_randomised_correlation"]).all()
    assert (got["attribution_random_logit_correlation"] < 0.9999).all()


@pytest.mark.skipif(b"built without ONNX" in BINARY.read_bytes(), reason="built without protobuf-c")
def test_deep_networks_take_several_layers_a_step(tmp_path):
    """17 layers in 16 steps, the last of which leaves nothing as it was."""
    path = succeed(tmp_path / "r.nc", "--model", GOLDEN / "onnx" / "efficientnet.onnx", "--images",
                   f"{GOLDEN / 'onnx' / 'efficientnet.npz'}:images", "--scale", 1 / 64, "--mean", 2, "--tsne", 0, "--pca", 0,
                   "--sanity", 3)
    got = read(path)[0]["attribution_randomised_correlation"]
    layers = got.attributes["layers"].split()
    assert got.values.shape == (3, 16, 1) and len(layers) == 16 and layers[0] == "logits" and layers[-1] == "features.0.0"
    assert np.isfinite(got.values).all() and (np.abs(got.values[:, -1]) < 0.5).all()


def test_one_output(tmp_path):
    """Nothing to compare it with; its weights are random all the same."""
    got = values(succeed(tmp_path / "r.nc", "--model", GOLDEN / "binary.pth", "--images", GOLDEN / "binary_images.npy",
                         "--samples", 4, "--sanity", 4, "--tsne", 0, "--pca", 0))
    assert "attribution_random_logit_correlation" not in got
    assert (np.abs(got["attribution_randomised_correlation"][:, -1]) < 0.9).all()


def test_a_stopped_run_goes_on(tmp_path):
    """Networks that were tried are not tried again, on other ranks too."""
    words = (*MNIST, "--labels", LABELS, "--samples", 300, "--sanity", 120, "--attribution", "integrated_gradients,occlusion",
             "--occlusion-stride", 1, "--keep-maps", "none", "--seed", 3)
    whole = read(succeed(tmp_path / "whole.nc", *words, ranks=2))
    stopped(tmp_path, words, "state-sanity-*.2")
    assert_same_result(whole, read(succeed(tmp_path / "r.nc", *words, "--checkpoint", tmp_path / "ck", "--batch", 5,
                                           ranks=3)))


def test_mistakes(tmp_path):
    failed = run(*COLOR, "--output", tmp_path / "r.nc", "--sanity", -1)
    assert failed.status == 2 and len(failed.lines) == 1 and "--sanity -1" in failed.lines[0]
