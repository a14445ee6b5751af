"""The nine well-known networks of the onnx package run whole, at their full size, and give the outputs beside them.

All their weights are one number, made by ConstantOfShape, so that these outputs say little but for DenseNet's;
scripts/check_networks.py runs them with random weights too, against onnxruntime.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from program import BINARY, raw, relative_error, succeed, values

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
         "zfnet512")
SIZE = (1, 3, 224, 224)

pytestmark = pytest.mark.skipif(b"built without ONNX" in BINARY.read_bytes(), reason="built without protobuf-c")


@pytest.mark.parametrize("name", NAMES)
def test_runs_whole(tmp_path: Path, name: str) -> None:
    count = np.prod(SIZE)
    np.save(tmp_path / "ramp.npy", (np.arange(count).reshape(SIZE) / count).astype(np.float32))  # as the package has it
    result = values(succeed(tmp_path / "r.nc", "--model", FOLDER / f"light_{name}.onnx", "--images",
                            tmp_path / "ramp.npy", "--pca", 0, "--tsne", 0, "--filters", "none", "--feature-maps",
                            "none", "--batch", 1))
    expected = numpy_helper.to_array(onnx.load_tensor(FOLDER / f"light_{name}_output_0.pb")).reshape(1, 1000)
    logits = result["logits"].astype(np.float64)
    if name != "densenet121":  # the others end in a softmax, which cnnscope looks before
        logits = np.exp(logits - logits.max())
        logits /= logits.sum()
    assert relative_error(logits, expected) < 1e-6
    assert np.isfinite(raw(result, "saliency")).all()
