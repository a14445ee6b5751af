#!/usr/bin/env python3
"""Train the demo model: the notebook's CNN on MNIST, saved as a state_dict.

Only PyTorch and numpy are needed, and the four MNIST files (IDX, gzipped or not). The tests and the demo do not run
this: they use tests/data/model.pth, which a run like this one made. The four epochs take about half a minute on two
cores and give 97 to 98 % on the test set.

    train_demo_model.py TRAIN_IMAGES TRAIN_LABELS TEST_IMAGES TEST_LABELS --output model.pth --legacy model_legacy.pth
"""

from __future__ import annotations

import argparse
import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn


class CNN(nn.Module):
    """The network of the notebook; its attribute names are the keys of the state_dict."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, stride=1, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.pool1 = nn.MaxPool2d(kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, stride=1, padding=1)
        self.bn2 = nn.BatchNorm2d(32)
        self.pool2 = nn.MaxPool2d(kernel_size=2, stride=2)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool1(torch.relu(self.bn1(self.conv1(x))))
        x = self.pool2(torch.relu(self.bn2(self.conv2(x))))
        return self.fc(self.flatten(self.gap(x)))


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, gzipped or not."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    zeros, code, rank = struct.unpack(">HBB", data[:4])
    if zeros != 0 or code != 8:
        sys.exit(f"{path}: not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_set(images: Path, labels: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels as ToTensor gives them, uint8 / 255 as (N, 1, H, W), and labels (N)."""
    pixels = torch.from_numpy(read_idx(images).copy()).to(torch.float32).div(255).unsqueeze(1)
    targets = torch.from_numpy(read_idx(labels).astype(np.int64))
    if len(pixels) != len(targets):
        sys.exit(f"{images} has {len(pixels)} images, {labels} has {len(targets)} labels")
    return pixels, targets


def train(model: CNN, pixels: torch.Tensor, targets: torch.Tensor, epochs: int, batch: int, rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * -(-len(pixels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(pixels)).split(batch):
            loss = nn.functional.cross_entropy(model(pixels[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1} of {epochs}: mean loss {total / len(pixels):.4f}")


@torch.no_grad()
def accuracy(model: CNN, pixels: torch.Tensor, targets: torch.Tensor) -> float:
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(pixels.split(1000), targets.split(1000)))
    return right / len(targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--output", type=Path, default=Path("model.pth"))
    parser.add_argument("--legacy", type=Path, help="also save it here in the format of PyTorch before 1.6")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    model = CNN().to(memory_format=torch.channels_last)
    train(model, *read_set(options.train_images, options.train_labels), options.epochs, options.batch,
          options.learning_rate)
    print(f"test accuracy {accuracy(model, *read_set(options.test_images, options.test_labels)):.4f}")

    model.to(memory_format=torch.contiguous_format)
    torch.save(model.state_dict(), options.output)
    print(options.output)
    if options.legacy:
        torch.save(model.state_dict(), options.legacy, _use_new_zipfile_serialization=False)
        print(options.legacy)


if __name__ == "__main__":
    main()
