"""Results that several files of tests look at, each made once."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from program import IMAGES, LABELS, MODEL, ROOT, succeed

DEMO = ("--attribution", "saliency,gradcam:conv2")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the demo's job (scripts/demo.sh), on the whole test set."""
    return whole_set(tmp_path_factory, *DEMO)


@pytest.fixture(scope="session")
def gap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the pooled features in place of the logits."""
    return whole_set(tmp_path_factory, "--attribution", "none", "--embed", "gap")


def whole_set(tmp_path_factory: pytest.TempPathFactory, *options: str) -> Path:
    files = [p.relative_to(ROOT) for p in (MODEL, IMAGES, LABELS)]
    return succeed(tmp_path_factory.mktemp("whole") / "mnist.nc", "--model", files[0], "--images", files[1], "--labels",
                   files[2], *options, ranks=2, timeout=240)


@pytest.fixture(scope="session")
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """MNIST's test set: images (10000, 28, 28) and labels (10000), uint8."""
    images, labels = (np.frombuffer(gzip.decompress(p.read_bytes()), np.uint8) for p in (IMAGES, LABELS))
    return images[16:].reshape(-1, 28, 28), labels[8:]


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory, mnist: tuple[np.ndarray, np.ndarray]) -> tuple[Path, Path]:
    """The first 40 images and labels of MNIST's test set as .npy files, for jobs that should be short."""
    folder = tmp_path_factory.mktemp("few")
    for name, array in zip(("images.npy", "labels.npy"), mnist):
        np.save(folder / name, array[:40])
    return folder / "images.npy", folder / "labels.npy"
