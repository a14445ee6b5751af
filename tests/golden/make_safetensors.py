"""Makes tests/golden/safetensors: the networks and types of tests/golden/pth once more, as the safetensors package writes them.

    python tests/golden/make_safetensors.py        (PyTorch and safetensors; made with safetensors 0.8.0)

Read by tests/test_safetensors.c, which compares each with the .pth of its name, element by element.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

PTH = Path(__file__).parent / "pth"
FOLDER = Path(__file__).parent / "safetensors"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in ("cnn_float32", "cnn_float64", "cnn_float16", "cnn_bfloat16", "types"):
        read = torch.load(PTH / f"{name}.pth", weights_only=True)
        tensors = {key: tensor.contiguous() for key, tensor in read.get("state_dict", read).items()}
        save_file(tensors, FOLDER / f"{name}.safetensors", {"format": "pt"} if name != "types" else None)


main()
