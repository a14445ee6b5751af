#!/usr/bin/env python3
"""Run cnnscope on well-known networks at their full size and compare it with PyTorch.

    check_networks.py                       all of them, by both exporters: about half an hour on two cores
    check_networks.py resnet18 vgg11_bn     these only; `light`: those of the onnx package

Each network has random weights, scaled so that every layer's output has a spread near 1. Of its logits and saliency the
table gives the error of cnnscope and that of PyTorch's own float32, both against PyTorch in float64 and relative to
the largest value (logits) or to the norm of the map (saliency; a relu or a max-pool near a tie may flip in either).
Seconds are those of all processors, for a whole run on 4 images, loading included; of PyTorch, for the images alone.
The onnx package's light_*.onnx networks have one number for all weights: they are run as they are, against the output
that comes with them, and with random weights against onnxruntime, without saliency.

Not part of the tests. It wants a Python of its own, beside the built program:

    python3 -m venv netsenv && netsenv/bin/pip install torch torchvision onnx onnxscript onnxruntime netCDF4
    netsenv/bin/python scripts/check_networks.py

The exit status is 1 when a run fails, or when an error is above its limit.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import netCDF4
import numpy as np
import onnx
import onnxruntime
import torch
import torchvision.models as zoo
from onnx import numpy_helper
from torch import nn

import export_onnx

IMAGES = 4
LIMIT = 1e-4        # of logits
SALIENCY_LIMIT = 3  # times PyTorch's own error,
FLIP = 5e-3         # and this: in a map of 50,000 pixels one flipped relu or max-pool is about 1e-3
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


class LeNet5(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(),
                         nn.AvgPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(),
                         nn.Linear(84, 10))


class Mlp(nn.Sequential):
    """Its layer of two units is a map by itself."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 2), nn.Linear(2, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "lenet5": (LeNet5, (1, 28, 28)),
    "mlp": (Mlp, (1, 28, 28)),
    **{name: (getattr(zoo, name), (3, 224, 224)) for name in (
        "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "squeezenet1_0",
        "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x1_0",
        "efficientnet_b0", "convnext_tiny")},
    "googlenet": (lambda: zoo.googlenet(aux_logits=False, init_weights=False), (3, 224, 224)),
    "inception_v3": (lambda: zoo.inception_v3(aux_logits=False, init_weights=False), (3, 299, 299)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"{', '.join(NETWORKS)}, light")
    parser.add_argument("--exporter", choices=("script", "dynamo"), help="one only")
    parser.add_argument("--binary", type=Path, default=Path(__file__).resolve().parent.parent / "build" / "cnnscope")
    options = parser.parse_args()
    names = options.networks or [*NETWORKS, "light"]
    if unknown := [n for n in names if n not in NETWORKS and n != "light"]:
        parser.error(f"{unknown[0]}: no such network; there are {', '.join(NETWORKS)}, light")
    wrong = 0
    print(f"{'network':20}{'exporter':10}{'logits':>9}{'(torch)':>9}{'saliency':>10}{'(torch)':>9}{'seconds':>9}"
          f"{'(torch)':>9}{'MB':>7}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            rows = check_light(options.binary, Path(folder)) if name == "light" else check(name, options, Path(folder))
            for passed, row in rows:
                wrong += not passed
                print(row + ("" if passed else "   <-- WRONG"), flush=True)
    print(f"{wrong} wrong" if wrong else "all as PyTorch and onnxruntime have it")
    return 1 if wrong else 0


# ---- A network of PyTorch's -----------------------------------------------------------------------------------------


def check(name: str, options: argparse.Namespace, folder: Path):
    make, shape = NETWORKS[name]
    torch.manual_seed(sum(map(ord, name)))
    images = torch.randint(0, 256, (IMAGES, *shape), dtype=torch.uint8)
    pixels = images.float() / 64 - 2
    net = spread(make(), pixels)
    exact_logits, exact_maps = torch_results(net.double(), pixels.double())
    start = time.process_time()
    logits, maps = torch_results(net.float(), pixels)
    seconds = time.process_time() - start
    own = largest_error(logits, exact_logits), map_error(maps, exact_maps)
    np.save(folder / "images.npy", images.numpy())
    for exporter in [options.exporter] if options.exporter else ["script", "dynamo"]:
        head = f"{name:20}{exporter:10}"
        path = folder / f"{name}.onnx"
        try:
            export_onnx.export(net, pixels[:2], path, SimpleNamespace(
                model=name, exporter=exporter, fixed_batch=None, opset=None))
            result = run(options.binary, path, folder, "--scale", 1 / 64, "--mean", 2)
        except (ValueError, RuntimeError) as error:
            yield False, f"{head}{error}"
            continue
        finally:
            path.unlink(missing_ok=True)
        errors = largest_error(result.logits, exact_logits), map_error(result.maps, exact_maps)
        yield (errors[0] <= LIMIT and errors[1] <= max(FLIP, SALIENCY_LIMIT * own[1]),
               f"{head}{errors[0]:9.1e}{own[0]:9.1e}{errors[1]:10.1e}{own[1]:9.1e}{result.seconds:9.2f}"
               f"{seconds:9.2f}{result.megabytes:7.0f}")


@torch.no_grad()
def spread(net: nn.Module, pixels: torch.Tensor) -> nn.Module:
    """The network in eval mode, its weights scaled layer by layer as the images pass: untrained ones let the signal of
    deep networks vanish, and all images would have the same logits."""

    def scale(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros(()) if layer.bias is None else layer.bias
        bias = bias[:, None, None] if isinstance(layer, nn.Conv2d) and bias.dim() else bias
        size = (output - bias).std().clamp_min(1e-12)
        layer.weight /= size
        return (output - bias) / size + bias

    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of these images
            nn.init.uniform_(module.weight, 0.7, 1.4)
            nn.init.uniform_(module.bias, -0.3, 0.3)
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "layer_scale"):  # ConvNeXt's blocks start as nothing
            nn.init.constant_(module.layer_scale, 0.5)
    hooks = [m.register_forward_hook(scale) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    net.train()(pixels)
    for hook in hooks:
        hook.remove()
    return net.eval()


def torch_results(net: nn.Module, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """logits (N, K); saliency (N, H, W), the largest over channels of |d logit[prediction] / dx|."""
    x = pixels.clone().requires_grad_()
    logits = net(x)
    logits.max(1).values.sum().backward()
    return logits.detach().numpy(), x.grad.abs().amax(1).numpy()


# ---- The networks of the onnx package --------------------------------------------------------------------------------


def check_light(binary: Path, folder: Path):
    """One row each: as it is, against the output beside it, and with random weights, against onnxruntime."""
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    for path in sorted(LIGHT.glob("light_*.onnx")):
        model = onnx.load(path)
        known = {tensor.name for tensor in model.graph.initializer}
        size = [d.dim_value for i in model.graph.input if i.name not in known for d in i.type.tensor_type.shape.dim]
        ramp = np.arange(np.prod(size), dtype=np.float32).reshape(size) / np.float32(np.prod(size))
        expected = numpy_helper.to_array(onnx.load_tensor(path.with_name(f"{path.stem}_output_0.pb")))
        head = f"{path.stem:20} "
        try:
            yield light_row(head + "as it is", binary, path, folder, ramp, expected)
            random = folder / "random.onnx"
            randomise(model, random)
            images = np.random.default_rng(0).standard_normal((IMAGES, *size[1:]), dtype=np.float32)
            session = onnxruntime.InferenceSession(random, quiet, providers=["CPUExecutionProvider"])
            expected = np.concatenate([session.run(None, {session.get_inputs()[0].name: i[None]})[0] for i in images])
            yield light_row(head + "random", binary, random, folder, images, expected)
        except RuntimeError as error:
            yield False, f"{head}{error}"


def light_row(head: str, binary: Path, path: Path, folder: Path, images: np.ndarray, expected: np.ndarray):
    np.save(folder / "images.npy", images)
    result = run(binary, path, folder)
    logits = result.logits.astype(np.float64)
    expected = expected.reshape(len(images), -1)
    if np.allclose(expected.sum(1), 1):
        logits = np.exp(logits - logits.max(1, keepdims=True))
        logits /= logits.sum(1, keepdims=True)
    error = largest_error(logits, expected)
    return error <= LIMIT, f"{head:30}{error:9.1e}{'':28}{result.seconds:9.2f}{'':9}{result.megabytes:7.0f}"


def randomise(model: onnx.ModelProto, path: Path) -> None:
    """Random weights in place of the constant ones, scaled by what they read."""
    graph, rng = model.graph, np.random.default_rng(0)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    norms = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[4:5]}
    for node in [n for n in graph.node if n.op_type == "ConstantOfShape"]:
        shape, name = shapes[node.input[0]], node.output[0]
        values = rng.standard_normal(shape, dtype=np.float32)
        if name in norms:
            values = values**2 + 1  # variances
        elif len(shape) > 1:
            values *= np.float32((2 / np.prod(shape[1:])) ** 0.5)
        graph.initializer.append(numpy_helper.from_array(values, name))
        graph.node.remove(node)
    if graph.node[-1].op_type == "Softmax":  # cnnscope looks at what it reads
        result = graph.node.pop().input[0]
        del graph.output[:]
        graph.output.append(onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None))
    onnx.save(model, path)


# ---- The program -----------------------------------------------------------------------------------------------------


def run(binary: Path, model: Path, folder: Path, *more: object) -> SimpleNamespace:
    """logits, saliency maps, seconds and peak memory of one run on folder/images.npy; RuntimeError: what it says."""
    words = [binary, "--model", model, "--images", folder / "images.npy", "--output", folder / "result.nc",
             "--overwrite", "--quiet", "--tsne", 0, "--pca", 0, "--filters", "none", "--feature-maps", "none",
             "--batch", 2, *more]
    before, peak = resource.getrusage(resource.RUSAGE_CHILDREN), 0
    with open(folder / "said.txt", "w+") as said:
        with subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=said) as job:
            while job.poll() is None:
                peak = memory_peak(job.pid) or peak
                time.sleep(0.01)
        said.seek(0)
        if job.returncode:
            raise RuntimeError(said.read().strip() or f"status {job.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with netCDF4.Dataset(folder / "result.nc") as file:
        file.set_auto_mask(False)
        low, high = (file[f"saliency_{end}"][:][:, None, None] for end in ("low", "high"))
        return SimpleNamespace(logits=file["logits"][:], maps=file["saliency"][:].astype(float) * (high - low) + low,
                               seconds=seconds, megabytes=peak / 1024)


def memory_peak(pid: int) -> int:
    """In KiB; 0 once the process has ended. (The rusage of a child begins with the memory of its parent.)"""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def largest_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def map_error(got: np.ndarray, expected: np.ndarray) -> float:
    """The worst of the maps: norm of the difference over norm of the map."""
    return float(max(np.linalg.norm(g - e) / np.linalg.norm(e) for g, e in zip(got, expected, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
