#!/usr/bin/env python3
"""Write the golden values of tests/test_attribution.py: attribution_NAME.npz, by captum and pytorch-grad-cam.

Networks: color and binary of make.py, and resnet of make_onnx.py (built anew, and compared with its file); the first
IMAGES of their images; all in double precision. Per target T (predicted; some of runner_up, 2):

    saliency_signed, guided_backprop, integrated_gradients, smoothgrad (N, C, H, W); occlusion (N, H, W)
    integrated_gradients_delta (N)
    CAM_LAYER (N, h, w)        of gradcam, gradcam_plus_plus, hirescam, layercam: raw, after the relu
    gradcam_LAYER_image        the first of these as large as the image, bilinear, align_corners=False
    T.NAME                     the same for another target

SmoothGrad's noise is the program's own counter-based one (kernels/shared_attribution.h), written here once more with
numpy and the inverse normal distribution of PyTorch; that it is normal is tested in tests/test_ends.c.

    make_attribution.py      (PyTorch, torchvision, onnx, captum, grad-cam, numpy; not part of the tests)
"""

from __future__ import annotations

from pathlib import Path

import captum.attr as captum
import numpy as np
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from torch import nn

import make
import make_onnx

HERE = Path(__file__).parent
IMAGES = 3
DRAWS, NOISE, SEED = 8, 0.15, 3
WINDOW, STRIDE = 6, 4
CAMS = {"gradcam": GradCAM, "gradcam_plus_plus": GradCAMPlusPlus, "hirescam": HiResCAM, "layercam": LayerCAM}


def noise(sample: int, draw: int, size: int) -> np.ndarray:
    """Normal deviates of one sample's draw."""
    mask = (1 << 64) - 1
    z = SEED * 0xD1342543DE82EF95 + sample * 0x9E3779B97F4A7C15 + draw * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    z ^= z >> 31

    def mixed(x: np.ndarray) -> np.ndarray:
        x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
        x = (x ^ x >> np.uint32(15)) * np.uint32(0x846CA68B)
        return x ^ x >> np.uint32(16)

    bits = mixed(mixed(np.arange(size, dtype=np.uint32) + np.uint32(z >> 32)) ^ np.uint32(z & 0xFFFFFFFF))
    return torch.special.ndtri(torch.from_numpy(((bits >> np.uint32(8)) + 0.5) / 2**24)).numpy()


def targets_of(logits: torch.Tensor, target: str) -> torch.Tensor:
    if logits.shape[1] == 1:
        return torch.zeros(len(logits), dtype=torch.long)
    order = logits.argsort(1, descending=True)
    return {"predicted": order[:, 0], "runner_up": order[:, 1]}.get(target, torch.full((len(logits),), 2))


def attribute(net: nn.Module, x: torch.Tensor, target: torch.Tensor, baseline: torch.Tensor,
              rule: str) -> dict[str, torch.Tensor]:
    """Of the methods that look at the input."""
    result = {"saliency_signed": captum.Saliency(net).attribute(x, target, abs=False),
              "guided_backprop": captum.GuidedBackprop(net).attribute(x, target)}
    result["integrated_gradients"], delta = captum.IntegratedGradients(net).attribute(
        x, baseline, target, n_steps=20, method=rule, return_convergence_delta=True)
    result["integrated_gradients_delta"] = delta
    gradients = []
    for draw in range(DRAWS):
        spread = np.ptp(x.detach().numpy().reshape(len(x), -1), axis=1)
        shift = [NOISE * s * noise(i, draw, x[i].numel()).reshape(x[i].shape) for i, s in enumerate(spread)]
        gradients.append(captum.Saliency(net).attribute(x + torch.from_numpy(np.stack(shift)), target, abs=False))
    result["smoothgrad"] = torch.stack(gradients).mean(0)
    shape = (x.shape[1], WINDOW, WINDOW), (x.shape[1], STRIDE, STRIDE)
    result["occlusion"] = captum.Occlusion(net).attribute(x, *shape, baselines=baseline, target=target)[:, 0]
    return result


def activation_maps(net: nn.Module, x: torch.Tensor, target: torch.Tensor, layers: dict[str, nn.Module],
                    last: str) -> dict[str, torch.Tensor]:
    result = {}
    for name, module in layers.items():
        values = []
        handle = module.register_forward_hook(lambda _, __, out: values.append(out))
        logits = net(x.clone().requires_grad_())
        handle.remove()
        (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), values[-1])
        value = values[-1].detach()
        for cam, kind in CAMS.items():
            with kind(net, [module]) as maker:
                raw = maker.get_cam_image(x, module, None, value.numpy(), gradient.numpy(), False)
            result[f"{cam}_{name}"] = torch.relu(torch.from_numpy(np.asarray(raw, np.float64)))
        if name == last:
            result[f"gradcam_{name}_image"] = nn.functional.interpolate(
                result[f"gradcam_{name}"][:, None], x.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return result


def write(name: str, net: nn.Module, x: torch.Tensor, layers: dict[str, nn.Module], last: str, baseline: torch.Tensor,
          rule: str, others: tuple[str, ...]) -> None:
    net = net.double().eval()
    logits = net(x).detach()
    result = attribute(net, x, targets_of(logits, "predicted"), baseline, rule)
    result |= activation_maps(net, x, targets_of(logits, "predicted"), layers, last)
    for other in others:
        more = attribute(net, x, targets_of(logits, other), baseline, rule)
        more |= activation_maps(net, x, targets_of(logits, other), {last: layers[last]}, last)
        kept = ("saliency_signed", "integrated_gradients", f"gradcam_{last}")
        result |= {f"{other}.{key}": more[key] for key in kept}
    result["logits"] = logits
    make.save(HERE / f"attribution_{name}.npz", {k: v.detach().numpy() for k, v in result.items()})
    print(name, (HERE / f"attribution_{name}.npz").stat().st_size)


def notebook(name: str) -> tuple[make_onnx.Notebook, torch.Tensor, np.ndarray]:
    """The network of make.py, its input, and its pixels (N, C, H, W)."""
    net = next(n for n in make.NETWORKS if n.name == name)
    pixels = np.load(HERE / f"{name}_images.npy")[:IMAGES]
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels
    return make_onnx.Notebook(torch.load(HERE / f"{name}.pth")), make.network_input(net, pixels), pixels


def main() -> None:
    net, x, pixels = notebook("color")
    definition = next(n for n in make.NETWORKS if n.name == "color")
    mean = make.network_input(definition, pixels.mean(0, keepdims=True))
    write("color", net, x, {"conv2": net.conv2, "relu1": net.relu1}, "conv2", mean, "gausslegendre", ("runner_up", "2"))
    net, x, pixels = notebook("binary")
    grey = make.network_input(next(n for n in make.NETWORKS if n.name == "binary"), np.full_like(pixels[:1], 51))
    write("binary", net, x, {"conv2": net.conv2}, "conv2", grey, "riemann_middle", ())

    torch.manual_seed(sum(map(ord, "resnet")))
    net = make_onnx.randomise(make_onnx.CASES["resnet"].make()).double()
    kept = np.load(HERE / "onnx" / "resnet.npz")
    x = torch.from_numpy(kept["images"]).double() / 64 - 2
    assert np.abs(net(x).detach().numpy() - kept["logits"]).max() < 1e-9, "not the network of the file"
    layers = {"layer2_1_conv2": net.layer2[-1].conv2, "layer1_0_relu_1": net.layer1[-1]}
    write("resnet", net, x, layers, "layer2_1_conv2", torch.zeros_like(x[:1]), "riemann_right", ("runner_up",))


if __name__ == "__main__":
    main()
