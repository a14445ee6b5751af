#!/usr/bin/env python3
"""Write pack/resize.npz: what torchvision's Resize and CenterCrop make of PIL images, for tests/test_pack.py.

    make_pack.py        (PyTorch, torchvision, Pillow and numpy; not part of the tests)

image_NAME      uint8 (H, W) or (H, W, 3)
NAME|R|C|F      the result for --resize R --crop C --interpolation F ("" = without it), uint8 (h, w) or (h, w, 3)
levels          uint8 (16, 16), all 256 values, and levels_tensor, float32 (1, 16, 16): ToTensor of it
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

CASES = [
    ("color", "24", "20", "bilinear"), ("color", "24", "", "bilinear"), ("color", "", "19,26", "bilinear"),
    ("color", "21,33", "", "bilinear"), ("color", "25", "22", "bicubic"), ("color", "18", "18", "nearest"),
    ("color", "23", "15,20", "lanczos"), ("color", "37", "", "bilinear"), ("color", "50", "31", "bilinear"),
    ("gray", "17", "16", "bilinear"), ("gray", "", "48,20", "bilinear"), ("gray", "30", "33", "bicubic"),
    ("wide", "16", "15", "bilinear"), ("wide", "", "14", "bilinear"), ("wide", "", "100,13", "bilinear"),
]


def main() -> None:
    random = np.random.default_rng(7)
    images = {"color": random.integers(0, 256, (53, 37, 3)), "gray": random.integers(0, 256, (29, 41)),
              "wide": random.integers(0, 256, (11, 64, 3))}
    arrays: dict[str, np.ndarray] = {}
    for name, pixels in images.items():
        arrays[f"image_{name}"] = pixels.astype(np.uint8)
    for name, resize, crop, interpolation in CASES:
        steps = []
        if resize:
            size = [int(n) for n in resize.split(",")]
            steps.append(Resize(size[0] if len(size) == 1 else size, InterpolationMode(interpolation)))
        if crop:
            steps.append(CenterCrop([int(n) for n in crop.split(",")] if "," in crop else int(crop)))
        result = Compose(steps)(Image.fromarray(arrays[f"image_{name}"]))
        arrays[f"{name}|{resize}|{crop}|{interpolation}"] = np.asarray(result)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    arrays["levels"], arrays["levels_tensor"] = levels, ToTensor()(Image.fromarray(levels)).numpy()
    np.savez_compressed(Path(__file__).parent / "pack" / "resize.npz", **arrays)


if __name__ == "__main__":
    main()
