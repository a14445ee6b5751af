"""Other networks of the notebook's architecture, random weights, against PyTorch in double precision (golden/make.py).

color:   3 channels, not square, 5 classes, mean and std per channel        kernels: 1x1 and 5x5, channels last, floats
binary:  one output, kernels 3x5 and 5x3, images (N, H, W)

Their images keep clear of relu and max-pool ties, so every value of every sample has to be right.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crafted import network, safetensors, save
from program import BINARY, GOLDEN, raw, read, relative_error, relative_errors, succeed, values

TOLERANCE = 2e-5  # of the largest value; fp32 rounding reaches 1e-6 here
OPTIONS = {
    "color": ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.3,0.25"),
    "kernels": ("--layout", "NHWC"),
    "binary": (),
}
SPATIAL = ("conv1", "bn1", "relu1", "pool1", "conv2", "bn2", "relu2", "pool2")


@pytest.fixture(scope="module", params=OPTIONS)
def case(request, tmp_path_factory) -> tuple[Path, dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """The result's path and values, the golden values, and the images, of one network."""
    name = request.param
    golden = dict(np.load(GOLDEN / f"{name}.npz"))
    images = np.load(GOLDEN / f"{name}_images.npy")
    output = succeed(
        tmp_path_factory.mktemp(name) / "result.nc", "--model", GOLDEN / f"{name}.pth", "--images",
        GOLDEN / f"{name}_images.npy", *OPTIONS[name], "--embed", "logits,gap,pool2", "--attribution",
        "saliency,gradcam:conv1,gradcam:conv2", "--feature-maps", ",".join(f"{s}:0:{len(images)}" for s in SPATIAL),
        "--filters", "conv1,conv2", "--tsne", 0, "--pca", 1, "--batch", 4, ranks=2)
    return output, values(output), golden, images


def test_logits_and_prediction(case):
    _, result, golden, _ = case
    assert relative_error(result["logits"], golden["logits"]) < TOLERANCE
    assert np.array_equal(result["prediction"], golden["prediction"])
    assert "label" not in result


@pytest.mark.parametrize("layer", SPATIAL)
def test_layer(case, layer):
    _, result, golden, images = case
    assert np.array_equal(result[f"{layer}_map_sample"], np.arange(len(images)))
    assert relative_error(result[f"{layer}_maps"][golden["samples"]], golden[layer]) < TOLERANCE


def test_features(case):
    _, result, golden, _ = case
    assert relative_error(result["gap"][golden["samples"]], golden["gap"]) < TOLERANCE
    assert "pool2" not in result  # spatial: only its PCA is kept


def test_pca_of_a_spatial_layer_flattens_in_c_order(case):
    _, result, _, images = case
    x = result["pool2_maps"].reshape(len(images), -1).astype(np.float64)
    _, _, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    axis = axes[0] * np.sign(axes[0][np.abs(axes[0]).argmax()])
    assert relative_error(result["pool2_pca"][:, 0], (x - x.mean(0)) @ axis) < 1e-4
    assert relative_error(result["pool2_pca_components"].reshape(-1), axis) < 1e-4


def test_saliency(case):
    _, result, golden, _ = case
    assert relative_errors(raw(result, "saliency"), golden["saliency"]).max() < TOLERANCE


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_gradcam(case, layer):
    _, result, golden, _ = case
    expected = golden[f"gradcam_{layer}"]
    name = "gradcam" if layer == "conv2" else "gradcam_conv1"  # the last convolution is the default
    assert read(case[0])[0][name].dimensions == ("sample", f"{layer}_y", f"{layer}_x")
    # Where relu leaves next to nothing, the unit is the largest value of the whole set.
    got = raw(result, name)
    assert relative_error(got, expected) < TOLERANCE
    strong = expected.max((1, 2)) > 0.01 * expected.max()
    assert strong.sum() > 3 and relative_errors(got[strong], expected[strong]).max() < 10 * TOLERANCE


def test_the_images_are_kept_channels_first(case):
    path, result, golden, images = case
    if images.ndim == 3:
        images = images[:, None]
    elif path.parent.name.startswith("kernels"):
        images = np.moveaxis(images, -1, 1)
    assert result["image"].dtype == images.dtype and np.array_equal(result["image"], images)


def test_filters_have_the_layer_s_shape(case):
    _, result, golden, images = case
    conv1 = result["conv1_filters"]
    assert conv1.shape[:2] == (golden["conv1"].shape[1], result["image"].shape[1])
    assert result["conv2_filters"].shape[:2] == (golden["conv2"].shape[1], conv1.shape[0])


def test_conv1_maps_are_the_filters_over_the_input(case):
    """One position, far from the border, by the definition of a convolution: filters and maps belong together."""
    path, result, _, _ = case
    color = path.parent.name.startswith("color")
    mean, std = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]) if color else ([0], [1])
    scale = 1 / 255 if result["image"].dtype == np.uint8 else 1
    x = (result["image"] * scale - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    weight = result["conv1_filters"].astype(np.float64)
    height, width = weight.shape[2:]
    window = x[:, :, 8 - height // 2 : 9 + height // 2, 7 - width // 2 : 8 + width // 2]
    difference = result["conv1_maps"][:, :, 8, 7] - np.einsum("nchw,kchw->nk", window, weight)
    assert np.ptp(difference, axis=0).max() < 1e-5  # what is left is the bias, the same for every sample


def test_safetensors_gives_the_same_result(few, tmp_path):
    """The same tensors in either file: every variable, and every attribute but the file's own hash."""
    tensors = network()
    files = save(tmp_path / "a.pth", tensors), safetensors(tmp_path / "a.safetensors", tensors)
    pth, other = (read(succeed(tmp_path / f"{f.suffix[1:]}.nc", "--model", f, "--images", few[0], "--tsne", 0, "--embed",
                               "logits,pool2", "--attribution", "saliency,gradcam")) for f in files)
    assert pth[0].keys() == other[0].keys()
    for name, variable in pth[0].items():
        assert np.array_equal(variable.values, other[0][name].values), name
    differ = {name for name in pth[1] if not name.startswith("run_") and pth[1][name] != other[1][name]}
    assert differ - {"history"} == {"model_sha256"}


# ---- --embed all -----------------------------------------------------------------------------------------------------


def embedded(path: Path) -> set[str]:
    return {name.removesuffix("_pca") for name in values(path) if name.endswith("_pca") and not name.endswith("_pre_pca")}


def test_embed_all_of_constant_and_narrow_layers(few, tmp_path):
    """conv2 gives a constant, and so do all behind it; the output is one unit wide."""
    model = save(tmp_path / "m.pth", network(conv2__weight=np.zeros((6, 4, 3, 3)), fc__weight=np.ones((1, 6)),
                                             fc__bias=np.ones(1)))
    path = succeed(tmp_path / "r.nc", "--model", model, "--images", few[0], "--embed", "all", "--perplexity", 5,
                   "--max-iter", 60, ranks=2)
    assert embedded(path) == {*SPATIAL, "gap", "logits"}
    result = values(path)
    for layer in embedded(path):
        assert result[f"{layer}_pca"].shape == result[f"{layer}_tsne"].shape == (40, 2)
        assert np.isfinite(result[f"{layer}_tsne"]).all() and np.ptp(result[f"{layer}_tsne"]) > 0
        assert (np.ptp(result[f"{layer}_pca"]) == 0) == (layer not in SPATIAL[:4])
    assert result["conv1_tsne"].std() > 0 and read(path)[0]["conv1_tsne"].attributes["pre_pca"] == 50
    assert read(path)[0]["gap_tsne"].attributes["pre_pca"] == 0


@pytest.mark.skipif(b"built without ONNX" in BINARY.read_bytes(), reason="built without protobuf-c")
@pytest.mark.parametrize(("name", "absent", "present"), [
    ("mlp", {"Flatten", "input"}, {"hidden", "layer_map", "logits"}),  # Flatten holds the images' own numbers
    ("squeezenet", {"layer_9"}, {"layer_8", "logits"}),  # the logits are a Flatten
    ("resnet", {"Flatten"}, {"avgpool", "layer1_0", "layer1_0_relu_1", "logits"}),
])
def test_embed_all_takes_each_value_once(tmp_path, name, absent, present):
    path = succeed(tmp_path / "r.nc", "--model", GOLDEN / "onnx" / f"{name}.onnx", "--images",
                   f"{GOLDEN / 'onnx' / name}.npz:images", "--scale", 1, "--embed", "all", "--tsne", 0)
    assert embedded(path) >= present and not embedded(path) & absent
    scores = [v.tobytes() for k, v in sorted(values(path).items()) if k.endswith("_pca")]
    assert len(scores) > 2 and len(set(scores)) == len(scores)
