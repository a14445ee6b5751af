#!/usr/bin/env python3
"""Write the networks that tests/test_onnx.py runs: narrow relatives of well-known architectures, random weights.

For each NAME: onnx/NAME.onnx as PyTorch's exporters write it (but for the stack traces in it), and onnx/NAME.npz with
images (N, C, H, W), uint8, and what PyTorch makes of x = pixel / 64 - 2 in double precision: logits (N, K) and saliency
(N, H, W), the largest over channels of |d logit[prediction] / dx|.

A relu near zero or two nearly equal values under a max-pool would make a gradient depend on rounding. Of many random
images those are kept whose results stay put when every weight and pixel is rounded differently, so that the comparison
needs no allowance for flips.

    make_onnx.py [NAME ...]      (PyTorch, torchvision, onnx, onnxscript, numpy; not part of the tests)
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision.models as zoo
from torch import nn
from torch.nn import functional as F
from torchvision.models import convnext, densenet, efficientnet, mobilenetv3, resnet
from torchvision.ops.misc import Conv2dNormActivation

HERE = Path(__file__).parent / "onnx"
CANDIDATES = 60
IMAGES = 3
STEADY = 2e-4  # largest change of a map, relative to its largest value, under perturbations of 1e-6


class Notebook(nn.Module):
    """The CNN of the .pth files, as tests/golden/binary.pth."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        one, two = state["conv1.weight"].shape, state["conv2.weight"].shape
        self.conv1 = nn.Conv2d(one[1], one[0], one[2:], padding=(one[2] // 2, one[3] // 2))
        self.bn1, self.relu1, self.pool1 = nn.BatchNorm2d(one[0]), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(two[1], two[0], two[2:], padding=(two[2] // 2, two[3] // 2))
        self.bn2, self.relu2, self.pool2 = nn.BatchNorm2d(two[0]), nn.ReLU(), nn.MaxPool2d(2)
        self.gap, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(two[0], state["fc.weight"].shape[0])
        self.load_state_dict(state)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool1(self.relu1(self.bn1(self.conv1(x))))
        x = self.pool2(self.relu2(self.bn2(self.conv2(x))))
        return self.fc(self.gap(x).flatten(1))


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.pool = nn.AvgPool2d(2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 24), nn.Linear(24, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.tanh(self.conv1(x)))
        x = self.pool(torch.tanh(self.conv2(x)))
        x = x.view(x.size(0), -1)
        x = torch.tanh(self.fc1(x))
        return F.log_softmax(self.fc3(torch.sigmoid(self.fc2(x))), dim=1)


class Mlp(nn.Module):
    """Its second layer has two units: a map by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.map, self.out = nn.Linear(64, 30), nn.Linear(30, 2), nn.Linear(2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.map(F.leaky_relu(self.hidden(x.flatten(1)), 0.1)))


class AlexNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(12, 16, 5, padding=2, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.classifier(torch.flatten(self.avgpool(self.features(x)), 1)), 1)


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 8), (8, 12), (12, 16)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(16 * 9, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


class Stages(nn.Module):
    """A torchvision residual network with two narrow stages."""

    def __init__(self, block: type, width: int, groups: int = 1, per_group: int = 64) -> None:
        super().__init__()
        self.inplanes, self.dilation, self.groups, self.base_width = width, 1, groups, per_group
        self._norm_layer = nn.BatchNorm2d
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(width), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)
        self.layer1 = resnet.ResNet._make_layer(self, block, width, 1)
        self.layer2 = resnet.ResNet._make_layer(self, block, 2 * width, 2, stride=2)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(2 * width * block.expansion, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class Inception(nn.Module):
    """Two modules as GoogLeNet's."""

    def __init__(self) -> None:
        super().__init__()
        conv = Conv2dNormActivation
        self.stem = nn.Sequential(conv(3, 8, 7, 2), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.one = nn.ModuleList([conv(8, 4, 1), nn.Sequential(conv(8, 4, 1), conv(4, 6, 3)),
                                  nn.Sequential(conv(8, 2, 1), conv(2, 4, 5)),
                                  nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv(8, 3, 1))])
        self.pool, self.fc = nn.MaxPool2d(2, 2, ceil_mode=True), nn.Linear(17, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.pool(torch.cat([branch(x) for branch in self.one], 1))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Activations(nn.Module):
    """One of each kind of the rest: pads, enlargement, splits, other norms and activations."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.conv = nn.ReflectionPad2d(2), nn.Conv2d(2, 12, 3, stride=2, dilation=2)
        self.group, self.instance, self.layer = nn.GroupNorm(3, 12), nn.InstanceNorm2d(6, affine=True), nn.LayerNorm(12)
        self.up, self.prelu = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), nn.PReLU(6)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.group(self.conv(self.pad(x)))
        a, b = x.chunk(2, 1)
        a, b = self.instance(F.selu(a)), self.prelu(b) * torch.sigmoid(b)
        x = torch.cat([F.elu(a) - 0.5, F.softplus(b) / (1 + b.abs())], 1)
        x = F.avg_pool2d(self.up(x), 3, 2, 1, count_include_pad=False)
        x = self.layer(x.permute(0, 2, 3, 1)).mean((1, 2))
        return self.fc(F.gelu(x) + F.hardswish(x))


def mobile_v3() -> nn.Module:
    row = mobilenetv3.InvertedResidualConfig
    rows = [row(8, 3, 8, 8, True, "RE", 2, 1, 1.0), row(8, 5, 24, 8, True, "HS", 1, 1, 1.0),
            row(8, 3, 16, 12, False, "HS", 2, 1, 1.0)]
    return mobilenetv3.MobileNetV3(rows, 24, num_classes=8)


def efficient() -> nn.Module:
    row = efficientnet.MBConvConfig
    return efficientnet.EfficientNet([row(1, 3, 1, 8, 8, 1), row(4, 5, 2, 8, 12, 2)], 0.2, num_classes=8,
                                     last_channel=32)


def convnext_narrow() -> nn.Module:
    row = convnext.CNBlockConfig
    net = convnext.ConvNeXt([row(8, 16, 1), row(16, None, 1)], num_classes=8)
    for block in net.modules():
        if isinstance(block, convnext.CNBlock):
            nn.init.constant_(block.layer_scale, 0.7)
    return net


def mobile_v2() -> nn.Module:
    net = zoo.MobileNetV2(8, 0.1, [[1, 8, 1, 1], [4, 12, 2, 2], [4, 16, 1, 2]])
    net.features[-1] = Conv2dNormActivation(8, 32, 1, activation_layer=nn.ReLU6)
    net.classifier[1] = nn.Linear(32, 8)
    return net


def squeeze() -> nn.Module:
    fire = zoo.squeezenet.Fire
    return nn.Sequential(nn.Conv2d(3, 12, 3, 2), nn.ReLU(True), nn.MaxPool2d(3, 2, ceil_mode=True), fire(12, 4, 8, 8),
                         fire(16, 4, 8, 8), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(), nn.Conv2d(16, 6, 1),
                         nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@dataclass
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    exporter: str = "script"  # or dynamo
    opset: int = 17
    fixed_batch: bool = False
    fold: bool = False  # batch norm into convolutions, as the exporter's default


def golden(name: str) -> nn.Module:
    return Notebook(torch.load(HERE.parent / f"{name}.pth", weights_only=True))


CASES = {
    "notebook": Case(lambda: golden("color"), (3, 18, 27)),
    "notebook_dynamo": Case(lambda: golden("color"), (3, 18, 27), "dynamo", 20),
    "lenet": Case(LeNet, (1, 28, 28), opset=9),
    "mlp": Case(Mlp, (1, 8, 8), opset=13),
    "mlp_dynamo": Case(Mlp, (1, 8, 8), "dynamo", 18),
    "alexnet": Case(AlexNet, (3, 63, 63), opset=11),
    "vgg_bn": Case(Vgg, (3, 26, 26), opset=12),
    "resnet": Case(lambda: Stages(resnet.BasicBlock, 8), (3, 40, 40)),
    "resnet_dynamo": Case(lambda: Stages(resnet.Bottleneck, 8), (3, 40, 40), "dynamo", 18),
    "resnext": Case(lambda: Stages(resnet.Bottleneck, 8, 4, 32), (3, 40, 40), fold=True),
    "densenet": Case(lambda: densenet.DenseNet(4, (2, 3), 8, num_classes=6), (3, 40, 40)),
    "squeezenet": Case(squeeze, (3, 35, 35), opset=10),
    "googlenet": Case(Inception, (3, 41, 41)),
    "mobilenet_v2": Case(mobile_v2, (3, 32, 32)),
    "mobilenet_v3": Case(mobile_v3, (3, 32, 32), fixed_batch=True),
    "mobilenet_v3_dynamo": Case(mobile_v3, (3, 32, 32), "dynamo", 18),
    "shufflenet": Case(lambda: zoo.ShuffleNetV2([1, 2, 1], [8, 8, 16, 24, 32], 7), (3, 36, 36)),
    "efficientnet": Case(efficient, (3, 32, 32), fold=True),
    "convnext": Case(convnext_narrow, (3, 32, 32)),
    "activations": Case(Activations, (2, 19, 17)),
    "activations_dynamo": Case(Activations, (2, 19, 17), "dynamo", 18),
    "convnext_dynamo": Case(convnext_narrow, (3, 32, 32), "dynamo", 18),
}


def randomise(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)) and module.affine_ok:
            nn.init.uniform_(module.weight, 0.7, 1.4)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return net.eval()


for kind in (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d):
    kind.affine_ok = True


def results(net: nn.Module, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """logits (N, K) before a softmax at the end, and saliency (N, H, W)."""
    x = images.clone().requires_grad_()
    kept: list[torch.Tensor] = []
    real = torch.softmax, F.log_softmax
    torch.softmax = F.log_softmax = lambda value, *_, **__: value
    try:
        out = net(x)
    finally:
        torch.softmax, F.log_softmax = real
    top = out.max(1).values if out.shape[1] > 1 else out[:, 0]
    top.sum().backward()
    return out.detach().numpy(), x.grad.abs().amax(1).numpy()


def steady_images(net: nn.Module, shape: tuple[int, int, int],
                  seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    torch.manual_seed(1000 + seed)
    pixels = torch.randint(0, 256, (CANDIDATES, *shape))
    images = pixels.double() / 64 - 2
    logits, maps = results(net, images)
    change = np.zeros(CANDIDATES)
    for _ in range(6):
        _, other = results(net, images * (1 + 2e-6 * torch.randn_like(images)))
        change = np.maximum(change, np.abs(other - maps).max((1, 2)) / maps.max((1, 2)))
    keep = np.sort(np.argsort(change)[:IMAGES])
    assert change[keep].max() < STEADY, f"only unsteady images: {np.sort(change)[:IMAGES]}"
    return pixels[keep].numpy().astype(np.uint8), logits[keep], maps[keep]


def export(net: nn.Module, case: Case, path: Path) -> None:
    x = torch.randn(2 if not case.fixed_batch else 1, *case.shape)
    if case.exporter == "dynamo":
        shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
        torch.onnx.export(net, (x,), str(path), dynamo=True, opset_version=case.opset, dynamic_shapes=shapes,
                          external_data=False, verbose=False)
        return
    keep = {} if case.fold else {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    torch.onnx.export(net, (x,), str(path), dynamo=False, opset_version=case.opset, input_names=["image"],
                      output_names=["output"], dynamic_axes=None if case.fixed_batch else {"image": {0: "batch"}},
                      **keep)


def strip(path: Path) -> None:
    """Without what the exporter says about where each node was in the Python source."""
    model = onnx.load(path)
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, model.graph):
        for field in ("metadata_props", "doc_string"):
            part.ClearField(field)
    onnx.save(model, path)


def main() -> None:
    warnings.simplefilter("ignore")
    HERE.mkdir(exist_ok=True)
    for seed, (name, case) in enumerate(CASES.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(sum(map(ord, name.removesuffix("_dynamo"))))
        net = case.make()
        net = net.eval() if name.startswith("notebook") else randomise(net)
        export(net, case, HERE / f"{name}.onnx")
        strip(HERE / f"{name}.onnx")
        images, logits, maps = steady_images(net.double(), case.shape, seed)
        np.savez_compressed(HERE / f"{name}.npz", images=images, logits=logits, saliency=maps.astype(np.float32))
        print(f"{name}: {(HERE / f'{name}.onnx').stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
