"""scripts/export_onnx.py: names and batch norm kept, results checked, by both exporters. Needs PyTorch and onnx."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from program import IMAGES, LABELS, MODEL, ROOT, succeed, values

SCRIPT = ROOT / "scripts" / "export_onnx.py"
CNN = f"{ROOT / 'scripts' / 'train_demo_model.py'}:CNN"
MISSING = [name for name in ("torch", "onnx", "onnxruntime", "onnxscript") if not importlib.util.find_spec(name)]
needs_torch = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)}: not part of the tests' environment")

MODELS = """
import torch
from torch import nn

def twins():  # equal tensors, which the script exporter stores once
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

class Last(nn.Module):  # channels come last where it takes its average, as in ConvNeXt
    def __init__(self):
        super().__init__()
        self.norm, self.pool, self.fc = nn.LayerNorm(2), nn.AdaptiveAvgPool2d(1), nn.Linear(2, 3)

    def forward(self, x):
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.fc(self.pool(x).flatten(1))

class Pair(nn.Module):
    def forward(self, x):
        return x, x

class Stubborn(nn.Module):
    def forward(self, x):
        return x.flatten(1) + torch.zeros(2, 1)  # a batch of two only
"""


def export(*arguments: object, status: int = 0, folder: Path | None = None) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], cwd=folder, capture_output=True, text=True,
                          timeout=180)
    assert done.returncode == status, done.stderr
    return done


def refused(*arguments: object, folder: Path) -> str:
    done = export(*arguments, "-o", folder / "a.onnx", folder=folder, status=1)
    assert done.stdout == "" and done.stderr.startswith("export_onnx.py: "), done.stderr
    assert not list(folder.glob("a.onnx*"))
    return done.stderr.splitlines()[-1]


@pytest.mark.skipif("torch" not in MISSING, reason="PyTorch is here")
def test_without_pytorch_it_says_what_to_install():
    said = export(CNN, "--input", "1,28,28", "-o", "never.onnx", status=1).stderr
    assert said.count("\n") == 1 and "pip install torch onnx" in said


@needs_torch
@pytest.mark.parametrize("exporter", ["script", "dynamo"])
def test_the_notebooks_cnn_keeps_its_names_and_gives_the_same(tmp_path, exporter):
    import onnx

    path = tmp_path / "cnn.onnx"
    done = export(CNN, "--weights", MODEL, "--input", "1,28,28", "-o", path, "--exporter", exporter)
    graph = onnx.load(path).graph
    kept = {tensor.name for tensor in graph.initializer}
    layers = ("conv1", "bn1", "conv2", "bn2", "fc")
    assert {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")} <= kept
    assert [node.op_type for node in graph.node].count("BatchNormalization") == 2
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert "onnxruntime gives PyTorch's result" in done.stdout and f"cnnscope --model {path}" in done.stdout
    assert done.stderr == ""
    common = ("--images", IMAGES, "--labels", LABELS, "--samples", "200", "--tsne", "0")
    expected = values(succeed(tmp_path / "pth.nc", "--model", MODEL, *common))
    got = values(succeed(tmp_path / "onnx.nc", "--model", path, *common))
    assert set(got) == set(expected) and np.array_equal(got["prediction"], expected["prediction"])
    for name in ("logits", "saliency"):
        limit = 1e-5 * np.abs(expected[name]).max()
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=limit)


@needs_torch
@pytest.mark.parametrize("exporter", ["script", "dynamo"])
def test_equal_tensors_keep_their_own_names(tmp_path, exporter):
    import onnx

    (tmp_path / "mine.py").write_text(MODELS)
    export("mine:twins", "--input", "2,9,8", "-o", "a.onnx", "--exporter", exporter, folder=tmp_path)
    graph = onnx.load(tmp_path / "a.onnx").graph
    kept = {tensor.name for tensor in graph.initializer}
    assert {f"{n}.{part}" for n in (0, 1, 3, 4, 7) for part in ("weight", "bias")} <= kept
    assert {f"{n}.running_{part}" for n in (1, 4) for part in ("mean", "var")} <= kept
    assert {node.op_type for node in graph.node} & {"Identity", "Expand", "CastLike"} == set()


@needs_torch
@pytest.mark.parametrize("exporter", ["script", "dynamo"])
def test_channels_last_stay_images_of_their_own(tmp_path, exporter):
    (tmp_path / "mine.py").write_text(MODELS)
    export("mine:Last", "--input", "2,9,8", "-o", "a.onnx", "--exporter", exporter, folder=tmp_path)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((3, 2, 9, 8), dtype=np.float32))
    succeed(tmp_path / "a.nc", "--model", tmp_path / "a.onnx", "--images", tmp_path / "images.npy", "--tsne", 0,
            "--pca", 0, "--filters", "none", "--feature-maps", "none")


@needs_torch
def test_checkpoints_of_training_loops(tmp_path):
    import torch

    state = torch.load(MODEL, weights_only=True)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "checkpoint.pth")
    for name, weights in (("a", MODEL), ("b", tmp_path / "checkpoint.pth")):
        export(CNN, "--weights", weights, "--input", "1,28,28", "-o", tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@needs_torch
def test_refusals(tmp_path):
    import torch

    (tmp_path / "mine.py").write_text(MODELS)
    cnn = (CNN, "--input", "1,28,28")
    assert "no such file" in refused(*cnn, "--weights", "none.pth", folder=tmp_path)
    (tmp_path / "bad.pth").write_text("hello")
    assert "is no state_dict that loads" in refused(*cnn, "--weights", "bad.pth", folder=tmp_path)
    state = torch.load(MODEL, weights_only=True)
    state["more"] = state.pop("fc.bias")
    torch.save(state, tmp_path / "other.pth")
    assert "it lacks fc.bias, and 1 more; see --args" in refused(*cnn, "--weights", "other.pth", folder=tmp_path)
    assert "(10, 32), the model's is (7, 32)" in refused(*cnn, "--weights", MODEL, "--args", "num_classes=7",
                                                        folder=tmp_path)
    assert "unexpected keyword argument 'x'; see --args" in refused(*cnn, "--args", "x=1", folder=tmp_path)
    assert "expected one tensor of logits" in refused("mine:Pair", "--input", "1,2,2", folder=tmp_path)
    assert "a batch of 1 gives (2, 36)" in refused("mine:Stubborn", "--input", "1,6,6", folder=tmp_path)
    export("mine:Stubborn", "--input", "1,6,6", "--fixed-batch", 2, "-o", "b.onnx", folder=tmp_path)
    (tmp_path / "a.onnx").write_text("precious")
    done = export(*cnn, "-o", tmp_path / "a.onnx", status=1)
    assert "--overwrite" in done.stderr and (tmp_path / "a.onnx").read_text() == "precious"
