"""Makes tests/golden/pth: small files as torch.save writes them in all the ways users have, and their values as text.

    python tests/golden/make_pth_golden.py        (PyTorch and numpy; made with PyTorch 2.15)

Each run gives the same zip files; legacy ones hold memory addresses as keys, which differ.

expected.txt is read by tests/test_pth.c. One block a file:

    file NAME FORMAT FOUND_UNDER PREFIX           ('-' for an empty text)
    tensor NAME DTYPE (SHAPE) VALUE VALUE ...     (C order; %.17g holds any float64; 16-bit floats as their bits)
    refused NAME TEXT                             (a file that must be refused with TEXT in the message)

networks.txt is read by tests/test_model.c: networks of the notebook's kind and what their graph must hold.

    network NAME CHANNELS HEIGHT WIDTH            (of the images)
    node NAME (SHAPE) KERNEL
    weight VALUE VALUE ...                        (of the node before; scale and shift of batch norm, in double, then
    bias VALUE VALUE ...                          rounded to float32; %.9g holds any float32)
"""

from __future__ import annotations

import argparse
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).parent / "pth"


class Net(nn.Module):
    """Pickled whole, to be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))  # no inner modules: the legacy format would add their source code


def every_type() -> OrderedDict[str, torch.Tensor]:
    values = torch.tensor([[0.0, -1.5, 3.0], [1e-3, 65504.0, -7.0]])
    whole = torch.tensor([-3, 0, 100])
    floats = {str(t)[6:]: values.to(t) for t in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}
    floats["tiny_float16"] = torch.tensor([6e-8, -6e-5, float("inf"), float("nan")]).half()
    integers = {str(t)[6:]: whole.to(t) for t in (torch.int64, torch.int32, torch.int16, torch.int8)}
    others = {"uint8": torch.tensor([0, 255], dtype=torch.uint8), "bool": torch.tensor([True, False]),
              "scalar": torch.tensor(1797), "none": torch.zeros(0, 3), "long_integer": torch.tensor([2**62 + 1])}
    return OrderedDict(floats | integers | others)


def every_layout() -> OrderedDict[str, torch.Tensor]:
    base = torch.arange(48, dtype=torch.float32)
    whole = base.reshape(2, 3, 2, 4)
    return OrderedDict(
        whole=whole, transposed=whole.transpose(1, 3), slice=whole[1, :, 1, 1:3], last=base[47:], reversed_axes=whole.T,
        steps=base[1::5], channels_last=whole.contiguous(memory_format=torch.channels_last),
        ones=whole[:, 1:2].transpose(0, 1), parameter=nn.Parameter(base[:6].view(2, 3)))


def network() -> OrderedDict[str, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(conv1=nn.Conv2d(1, 2, 3), bn1=nn.BatchNorm2d(2))).state_dict()


def checkpoint() -> dict[str, object]:
    """What a training script keeps, and only some of it tensors."""
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"epoch": 3, "arch": "cnn", "args": argparse.Namespace(lr=0.1, layers=[1, 2], name=None),
            "best": np.float64(0.97), "history": [1.0, np.arange(3), {"a": (1, 2, 3, 4)}], "big": 2**70, "set": {1, 2},
            "complex": torch.zeros(2, dtype=torch.complex64), "device": torch.device("cpu"), "size": torch.Size([1, 2]),
            "dtype": torch.float16, "loss": torch.tensor(0.5), "optimizer": optimizer.state_dict(),
            "state_dict": network()}


def prefixed(prefix: str) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((prefix + name, tensor) for name, tensor in network().items())


def with_attribute() -> OrderedDict[str, torch.Tensor]:
    tensor = torch.arange(3.0)
    tensor.note = "a tensor with an attribute"
    parameter = nn.Parameter(torch.arange(2.0))
    parameter.note = "and a parameter"
    return OrderedDict(tensor=tensor, parameter=parameter)


# name: (object, key path to its tensors, prefix to take off, arguments of torch.save)
LEGACY = {"_use_new_zipfile_serialization": False}
FILES = {
    "types": (every_type(), "", "", {}),
    "types_legacy": (every_type(), "", "", LEGACY),
    "layouts": (every_layout(), "", "", {}),
    "layouts_legacy": (every_layout(), "", "", LEGACY),
    "protocol4": (network(), "", "", {"pickle_protocol": 4}),
    "protocol5_legacy": (network(), "", "", {"pickle_protocol": 5} | LEGACY),
    "plain_dict": (dict(network()), "", "", {}),
    "deflated": (network(), "", "", {}),
    "bare": (torch.arange(6.0).view(2, 3).T, "", "", {}),
    "checkpoint": (checkpoint(), "state_dict", "", {}),
    "checkpoint_legacy": (checkpoint(), "state_dict", "", LEGACY),
    "nested": ({"model": {"state_dict": prefixed("module."), "epoch": 1}}, "model/state_dict", "module.", {}),
    "both": ({"model_ema": prefixed("x."), "model": network()}, "model", "", {}),
    "compiled": (prefixed("_orig_mod.module."), "", "_orig_mod.module.", {}),
    "averaged": ({"model_ema": prefixed("module.") | {"n_averaged": torch.tensor(7)}}, "model_ema", "module.", {}),
    "half_prefixed": (prefixed("model.") | {"other": torch.ones(1)}, "", "", {}),
    "attribute": (with_attribute(), "", "", {}),
}


def modules() -> dict[str, tuple[object, str, dict[str, object]]]:
    return {"module": (Net(), "whole pickled module (networks.Net, byte 2 of data.pkl)", {}),
            "module_legacy": (Net(), "whole pickled module (networks.Net, byte", LEGACY),
            "module_in_checkpoint": ({"model": Net(), "best": torch.ones(1)}, "under key model", {}),
            "expanded": ({"a": torch.ones(1).expand(1000)}, "expanded", {}),
            "complex": ({"a": torch.ones(1, dtype=torch.complex64)}, "ComplexFloatStorage", {}),
            "no_tensors": ({"epoch": 3, "lr": 0.1}, "epoch, lr", {}),
            "a_list": ([torch.ones(1)], "found a list", {})}


def deflate(path: Path) -> None:
    """Zips the file again, compressed, as other tools may."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in entries.items():
            new.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # dated 1980: the same file every time


def values(tensor: torch.Tensor) -> str:
    array = tensor.detach().contiguous()
    if array.dtype in (torch.float16, torch.bfloat16):
        array = array.view(torch.int16)
    array = array.double() if array.is_floating_point() else array.long()
    return " ".join(f"{v:.17g}" if isinstance(v, float) else str(v) for v in array.flatten().tolist())


class Cnn(nn.Module):
    """The notebook's network, of any sizes."""

    def __init__(self, channels: int, first: int, second: int, outputs: int, kernels: list[tuple[int, int]],
                 bias: bool = True, affine: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, first, kernels[0], padding=(kernels[0][0] // 2, kernels[0][1] // 2), bias=bias)
        self.bn1 = nn.BatchNorm2d(first, affine=affine)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(first, second, kernels[1], padding=(kernels[1][0] // 2, kernels[1][1] // 2))
        self.bn2 = nn.BatchNorm2d(second)
        self.pool2 = nn.MaxPool2d(2)
        self.fc = nn.Linear(second, outputs, bias=bias)
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.1)


def networks() -> dict[str, tuple[Cnn, tuple[int, int, int]]]:
    torch.manual_seed(1)
    half = Cnn(3, 2, 3, 5, [(3, 5), (1, 1)]).half()
    half.state_dict()["conv2.weight"][:, 0, 0, 0] = torch.tensor([6e-8, -6e-5, -65504])  # subnormal twice, largest
    return {"cnn_float32": (Cnn(1, 2, 3, 4, [(3, 3), (3, 3)]), (1, 28, 28)),
            "cnn_float16": (half, (3, 20, 33)),
            "cnn_bfloat16": (Cnn(2, 3, 2, 1, [(1, 7), (5, 3)], bias=False, affine=False).bfloat16(), (2, 4, 5)),
            "cnn_float64": (Cnn(1, 3, 1, 2, [(5, 5), (3, 1)]).double(), (1, 7, 9))}


def row(name: str, tensor: torch.Tensor) -> str:
    return " ".join([name, *(f"{v:.9g}" for v in tensor.detach().float().flatten().tolist())])


def node(name: str, shape: tuple[int, ...], kernel: tuple[int, int] = (0, 0)) -> str:
    return f"node {name} ({','.join(map(str, shape))}) {kernel[0]}x{kernel[1]}"


def graph(model: Cnn, shape: tuple[int, int, int]) -> list[str]:
    lines = [node("input", shape)]
    for n in "12":
        conv, bn = getattr(model, "conv" + n), getattr(model, "bn" + n)
        shape = (conv.out_channels, *shape[1:])
        lines += [node("conv" + n, shape, conv.kernel_size), row("weight", conv.weight)]
        lines += [row("bias", conv.bias)] if conv.bias is not None else []
        ones, zeros = torch.ones(shape[0]), torch.zeros(shape[0])
        weight, bias = (bn.weight, bn.bias) if bn.affine else (ones, zeros)
        scale = weight.double() / (bn.running_var.double() + 1e-5).sqrt()
        shift = bias.double() - bn.running_mean.double() * scale
        lines += [node("bn" + n, shape), row("weight", scale), row("bias", shift), node("relu" + n, shape)]
        shape = (shape[0], shape[1] // 2, shape[2] // 2)
        lines += [node("pool" + n, shape, (2, 2))]
    lines += [node("gap", (shape[0], 1, 1)), node("logits", (model.fc.out_features, 1, 1)),
              row("weight", model.fc.weight)]
    return lines + ([row("bias", model.fc.bias)] if model.fc.bias is not None else [])


def make_networks() -> None:
    lines = []
    for name, (model, shape) in networks().items():
        wrapped = {"state_dict": nn.DataParallel(model).state_dict()} if name == "cnn_float64" else model.state_dict()
        torch.save(wrapped, FOLDER / f"{name}.pth")
        lines += [f"network {name}.pth {' '.join(map(str, shape))}", *graph(model, shape)]
    (FOLDER / "networks.txt").write_text("\n".join(lines) + "\n")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    module = types.ModuleType("networks")
    module.Net, Net.__module__ = Net, "networks"
    sys.modules["networks"] = module
    lines = []
    for name, (saved, under, prefix, options) in FILES.items():
        torch.save(saved, FOLDER / f"{name}.pth", **options)
        read = torch.load(FOLDER / f"{name}.pth", weights_only=False)
        for key in filter(None, under.split("/")):
            read = read[key]
        form = "legacy" if options.keys() & LEGACY.keys() else "zip"
        if name == "deflated":
            deflate(FOLDER / f"{name}.pth")
        lines.append(f"file {name}.pth {form} {under or '-'} {prefix or '-'}")
        for key, tensor in ({"-": read} if isinstance(read, torch.Tensor) else read).items():
            shape = ",".join(map(str, tensor.shape))
            lines.append(f"tensor {key.removeprefix(prefix)} {str(tensor.dtype)[6:]} ({shape}) {values(tensor)}")
    for name, (saved, text, options) in modules().items():
        torch.save(saved, FOLDER / f"{name}.pth", **options)
        lines.append(f"refused {name}.pth {text}")
    (FOLDER / "pickled.pth").write_bytes(pickle.dumps(dict(network())))
    lines.append("refused pickled.pth torch.save")
    torch.jit.script(nn.Linear(1, 1)).save(str(FOLDER / "script.pth"))
    lines.append("refused script.pth TorchScript")
    make_networks()
    (FOLDER / "expected.txt").write_text("\n".join(lines) + "\n")


main()
