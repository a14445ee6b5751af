#!/usr/bin/env python3
"""Write sanity_color.npz: what tests/test_sanity.py expects of the sanity checks of attribution methods.

The network of color.pth in double precision, its first IMAGES images, the methods METHODS. Weights are redrawn layer by
layer from the last one as src/sanity_weights.c says, by the generator of src/random.h, written here once more; maps come
from PyTorch, their likeness from scipy (Spearman) and scikit-image (SSIM). `randomised_correlation`, `randomised_ssim`:
(images, 3 steps, methods); `random_logit_...`: (images, methods); `other`: the outputs drawn at random.

    make_sanity.py      (PyTorch, scipy, scikit-image; not part of the tests)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

import make
import make_attribution

HERE = Path(__file__).parent
SEED = 5
METHODS = ("saliency", "saliency_signed", "input_x_gradient", "gradcam")
NODES = {"conv1": 1, "bn1": 2, "conv2": 5, "bn2": 6, "fc": 10}  # in the program's graph
STEPS = (("fc",), ("conv2", "bn2"), ("conv1", "bn1"))
MASK = (1 << 64) - 1


def bits(item: int, draw: int) -> int:
    z = SEED * 0xD1342543DE82EF95 + item * 0x9E3779B97F4A7C15 + draw * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB & MASK
    for _ in range(2):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        z ^= z >> 31
    return z


def redrawn(tensor: torch.Tensor, node: int, part: int) -> torch.Tensor:
    values = tensor.numpy().astype(np.float64)
    uniform = [((bits((node << 40) | part, i) >> 11) + 0.5) / 2**53 for i in range(2 * values.size)]
    normal = np.sqrt(-2 * np.log(uniform[::2])) * np.cos(2 * np.pi * np.array(uniform[1::2]))
    return torch.from_numpy((values.mean() + values.std() * normal).astype(np.float32).reshape(values.shape))


def redraw(net: nn.Module, name: str) -> None:
    module = getattr(net, name)
    if isinstance(module, nn.BatchNorm2d):  # as a factor and a shift
        factor = (module.weight / (module.running_var + module.eps).sqrt()).float()
        shift = (module.bias - module.running_mean * module.weight / (module.running_var + module.eps).sqrt()).float()
        module.running_mean.zero_()
        module.running_var.fill_(1 - module.eps)
        module.weight.copy_(redrawn(factor, NODES[name], 0))
        module.bias.copy_(redrawn(shift, NODES[name], 1))
    else:
        module.weight.copy_(redrawn(module.weight.float(), NODES[name], 0))
        module.bias.copy_(redrawn(module.bias.float(), NODES[name], 1))


def maps(net: nn.Module, x: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """(images, methods, H, W)"""
    values = []
    handle = net.conv2.register_forward_hook(lambda _, __, out: values.append(out))
    x = x.clone().requires_grad_()
    logits = net(x).gather(1, target[:, None]).sum()
    handle.remove()
    gradient, inner = torch.autograd.grad(logits, (x, values[0]))
    cam = torch.relu((inner.mean((2, 3), keepdim=True) * values[0]).sum(1, keepdim=True))
    cam = nn.functional.interpolate(cam, x.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    every = (gradient.abs().amax(1), gradient.sum(1), (x * gradient).sum(1), cam)
    return torch.stack([m.detach() for m in every], 1).numpy()


def alike(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    result = np.zeros((2, *first.shape[:2]))
    for index in np.ndindex(first.shape[:2]):
        a, b = np.abs(first[index]), np.abs(second[index])
        result[0][index] = spearmanr(a.ravel(), b.ravel()).statistic if np.ptp(a) and np.ptp(b) else 0
        a, b = ((m - m.min()) / (np.ptp(m) or 1) for m in (a, b))
        result[1][index] = structural_similarity(a, b, data_range=1)
    return result[0], result[1]


def main() -> None:
    net, x, _ = make_attribution.notebook("color")
    net = net.double().eval()
    target = net(x).argmax(1)
    outputs = net.fc.out_features
    trained = maps(net, x, target)
    other = [bits(i, MASK - 1) % (outputs - 1) for i in range(len(x))]
    other = torch.tensor([o + (o >= int(t)) for o, t in zip(other, target)])
    result = {"other": other.numpy()}
    result["random_logit_correlation"], result["random_logit_ssim"] = alike(trained, maps(net, x, other))
    correlation, ssim = [], []
    with torch.no_grad():
        for step in STEPS:
            for name in step:
                redraw(net, name)
            with torch.enable_grad():
                both = alike(trained, maps(net, x, target))
            correlation.append(both[0])
            ssim.append(both[1])
    result["randomised_correlation"], result["randomised_ssim"] = np.stack(correlation, 1), np.stack(ssim, 1)
    make.save(HERE / "sanity_color.npz", result)
    print({k: v.round(3).tolist() for k, v in result.items()})


if __name__ == "__main__":
    main()
