#!/usr/bin/env python3
"""Write the golden values that tests/test_mnist.py and tests/test_networks.py compare the program with.

mnist.npz holds parts of PyTorch's and scikit-learn's results for the shipped model (fp32, eval mode, test set in file
order), taken from a folder of references. The other files are small networks with random weights, NAME.pth, random
images for them, NAME_images.npy, and what PyTorch makes of these in double precision, NAME.npz:

    logits (N, K), prediction (N)
    saliency (N, H, W)       max over channels of |d logit[prediction] / dx|, x after scale, mean and std
    gradcam_conv1 (N, h, w)  relu(sum_c mean_xy(d logit / dA_c) A_c), A the convolution's output before batch norm
    gradcam_conv2            likewise
    samples (S)              whose layers are kept
    conv1, bn1, relu1, pool1, conv2, bn2, relu2, pool2 (S, C, h, w), gap (S, C)

A relu near zero or two nearly equal values under a max-pool would make a gradient depend on rounding. Of many random
images those with the widest margins are kept, so that the comparison needs no allowance for flips; the program of the
tests only has to be right to fp32 rounding.

    make.py --reference FOLDER      (PyTorch and numpy; not part of the tests)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
CANDIDATES = 400
MARGIN = 3e-5  # of the layer's largest value; fp32 rounding is a few 1e-7 of it


@dataclass
class Network:
    """One random network, its images, and how pixels become x = (pixel * scale - mean) / std."""

    name: str
    seed: int
    in_channels: int
    size: tuple[int, int]
    channels: tuple[int, int]
    kernels: tuple[tuple[int, int], tuple[int, int]]
    classes: int
    images: int
    dtype: str
    channels_last: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


NETWORKS = [
    Network("color", 1, 3, (18, 27), (8, 12), ((3, 3), (3, 3)), 5, 23, "uint8", mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.3, 0.25)),
    Network("kernels", 2, 2, (17, 16), (7, 13), ((1, 1), (5, 5)), 4, 21, "float32", channels_last=True),
    Network("binary", 3, 1, (15, 22), (5, 9), ((3, 5), (5, 3)), 1, 19, "uint8"),
]
LAYERS = ("conv1", "bn1", "relu1", "pool1", "conv2", "bn2", "relu2", "pool2", "gap")


class CNN(nn.Module):
    """The notebook's network with other sizes; padding is half the kernel. forward keeps every layer's value."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        (c1, c2), (k1, k2) = net.channels, net.kernels
        self.conv1 = nn.Conv2d(net.in_channels, c1, k1, padding=(k1[0] // 2, k1[1] // 2))
        self.bn1 = nn.BatchNorm2d(c1)
        self.conv2 = nn.Conv2d(c1, c2, k2, padding=(k2[0] // 2, k2[1] // 2))
        self.bn2 = nn.BatchNorm2d(c2)
        self.fc = nn.Linear(c2, net.classes)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        value = {}
        for i, (conv, bn) in enumerate(((self.conv1, self.bn1), (self.conv2, self.bn2)), start=1):
            value[f"conv{i}"] = conv(x)
            value[f"bn{i}"] = bn(value[f"conv{i}"])
            value[f"relu{i}"] = torch.relu(value[f"bn{i}"])
            x = value[f"pool{i}"] = nn.functional.max_pool2d(value[f"relu{i}"], 2)
        value["gap"] = x.mean((2, 3))
        value["logits"] = self.fc(value["gap"])
        return value


def random_model(net: Network) -> CNN:
    """Weights of a usual size, and batch norm statistics that are far from 0 and 1 and nearer to the data's."""
    torch.manual_seed(net.seed)
    model = CNN(net).eval()
    with torch.no_grad():
        for bn in (model.bn1, model.bn2):
            bn.weight.copy_(torch.rand_like(bn.weight) + 0.5)
            bn.weight[0].neg_()
            bn.bias.normal_(0, 0.3)
            bn.running_mean.normal_(0, 0.3)
            bn.running_var.copy_(torch.rand_like(bn.running_var) + 0.1)
            bn.num_batches_tracked.fill_(1234)
        model.fc.weight.mul_(4)
    return model


def random_images(net: Network) -> np.ndarray:
    """Noise (N, C, H, W) whose brightness and contrast differ from image to image and channel to channel."""
    rng = np.random.default_rng(net.seed)
    shape = (CANDIDATES, net.in_channels, *net.size)
    contrast = rng.uniform(0.1, 1, (*shape[:2], 1, 1))
    image = rng.uniform(0, 1 - contrast) + contrast * rng.uniform(0, 1, shape)
    return (image * 255).astype(np.uint8) if net.dtype == "uint8" else (image * 4 - 2).astype(np.float32)


def network_input(net: Network, images: np.ndarray) -> torch.Tensor:
    """x as the program computes it: in double precision, rounded once to float32."""
    scale = 1 / 255 if net.dtype == "uint8" else 1.0
    mean, std = (np.reshape(v, (-1, 1, 1)) for v in (net.mean, net.std))
    return torch.from_numpy(((images.astype(np.float64) * scale - mean) / std).astype(np.float32).astype(np.float64))


def margins(value: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of each sample: how far the nearest relu is from zero, and the nearest maximum from the runner-up (N)."""
    margin = torch.full((len(value["logits"]),), torch.inf, dtype=torch.float64)
    for i in (1, 2):
        bn, relu = value[f"bn{i}"], value[f"relu{i}"]
        windows = relu.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).sort(-1, descending=True).values
        gap = torch.where(windows[..., 0] > 0, windows[..., 0] - windows[..., 1], torch.inf)
        for distance in (bn.abs(), gap):
            margin = torch.minimum(margin, distance.flatten(1).min(1).values / bn.abs().max())
    top = value["logits"].sort(1, descending=True).values
    return torch.minimum(margin, top[:, 0] - top[:, 1] if top.shape[1] > 1 else top[:, 0].abs())


def gradients(model: CNN, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Everything the program makes of x, in double precision."""
    x = x.clone().requires_grad_()
    value = model(x)
    logits = value["logits"]
    prediction = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
    chosen = logits.gather(1, prediction[:, None]) if logits.shape[1] > 1 else logits
    dx, d1, d2 = torch.autograd.grad(chosen.sum(), (x, value["conv1"], value["conv2"]))
    result = {name: v.detach() for name, v in value.items()}
    result["prediction"] = prediction.to(torch.int32)
    result["saliency"] = dx.abs().amax(1)
    for name, gradient in (("conv1", d1), ("conv2", d2)):
        weight = gradient.mean((2, 3), keepdim=True)
        result[f"gradcam_{name}"] = torch.relu((weight * value[name].detach()).sum(1))
    return {name: v.numpy() for name, v in result.items()}


def make_network(net: Network) -> None:
    model, images = random_model(net), random_images(net)
    with torch.no_grad():  # every class gets its share of the images
        model.fc.bias.sub_(model(network_input(net, images).float())["logits"].mean(0))
    torch.save(model.state_dict(), HERE / f"{net.name}.pth")

    with torch.no_grad():
        margin = margins(model.double()(network_input(net, images))).numpy()
    best = np.sort(np.argsort(-margin, kind="stable")[: net.images])
    assert margin[best].min() > MARGIN, (net.name, margin[best].min())
    images = images[best]

    result = gradients(model, network_input(net, images))
    samples = np.array([0, net.images - 1])
    for layer in LAYERS:
        result[layer] = result[layer][samples]
    result["samples"] = samples
    assert len(np.unique(result["prediction"])) >= min(net.classes, 2), net.name
    save(HERE / f"{net.name}.npz", result)

    stored = np.moveaxis(images, 1, -1) if net.channels_last else images[:, 0] if net.in_channels == 1 else images
    np.save(HERE / f"{net.name}_images.npy", np.ascontiguousarray(stored))
    print(f"{net.name}: least margin {margin[best].min():.1e}, classes {np.bincount(result['prediction'])}")


def make_mnist(reference: Path) -> None:
    """Parts of the references, and conv1's weights as torch.load reads them."""

    def part(name: str, count: int | None = None) -> np.ndarray:
        return np.load(reference / f"{name}.npy")[:count]

    result = {
        "logits": part("logits"),
        "saliency": part("saliency_abs_first500", 100),
        "conv1": part("conv1_first"),
        "gap": part("gap", 500),
        "gradcam_conv2": part("gradcam_conv2_first100_raw14", 50),
    }
    result["conv1_weight"] = torch.load(HERE.parent / "data" / "model.pth")["conv1.weight"].numpy()
    for name in ("components", "explained_variance", "explained_variance_ratio", "mean", "scores"):
        result[f"pca_{name}"] = part(f"pca_{name}")
    save(HERE / "mnist.npz", result)


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, **{k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in arrays.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="folder with logits.npy, gap.npy, ...")
    make_mnist(parser.parse_args().reference)
    for net in NETWORKS:
        make_network(net)


if __name__ == "__main__":
    main()
