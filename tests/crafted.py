"""Small files, wrong on purpose and right; nothing here needs PyTorch.

A .pth of the new format is a zip of stored entries: data.pkl, a pickle that says which tensor lies in which entry, and
data/0, data/1, ..., the raw numbers. The pickle is written opcode by opcode, so that it can say anything.
"""

from __future__ import annotations

import json
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHAPES = {
    "conv1.weight": (4, 1, 3, 3), "conv1.bias": (4,), "bn1.weight": (4,), "bn1.bias": (4,), "bn1.running_mean": (4,),
    "bn1.running_var": (4,), "conv2.weight": (6, 4, 3, 3), "conv2.bias": (6,), "bn2.weight": (6,), "bn2.bias": (6,),
    "bn2.running_mean": (6,), "bn2.running_var": (6,), "fc.weight": (10, 6), "fc.bias": (10,),
}


@dataclass
class Entry:
    """A tensor as the pickle describes it, which need not be what its storage holds."""

    values: np.ndarray
    shape: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    offset: int = 0
    numel: int | None = None  # of the storage


def network(**changes: Entry | np.ndarray | None) -> dict[str, Entry]:
    """The tensors of a small network of the notebook's kind; changes by name, '__' for '.', None leaves one out."""
    rng = np.random.default_rng(0)
    tensors = {name: Entry(rng.uniform(0.1, 1, shape).astype(np.float32)) for name, shape in SHAPES.items()}
    for name, change in changes.items():
        key = name.replace("__", ".")
        if change is None:
            del tensors[key]
        else:
            tensors[key] = change if isinstance(change, Entry) else Entry(change)
    return tensors


def integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def pickled(tensors: dict[str, Entry]) -> bytes:
    ordered_dict = b"ccollections\nOrderedDict\n)R"
    items = b""
    for number, (name, entry) in enumerate(tensors.items()):
        shape = entry.values.shape if entry.shape is None else entry.shape
        dense = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        stride = dense if entry.stride is None else entry.stride
        numel = entry.values.size if entry.numel is None else entry.numel
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(number)) + text("cpu") + integer(numel)
        items += (text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + integer(entry.offset) +
                  integers(shape) + integers(stride) + b"\x89" + ordered_dict + b"tR")
    return b"\x80\x02" + ordered_dict + b"(" + items + b"u."


def save(path: Path, tensors: dict[str, Entry], pickle: bytes | None = None) -> Path:
    """A .pth of those tensors, or of them and another pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("model/data.pkl", pickled(tensors) if pickle is None else pickle)
        file.writestr("model/byteorder", "little")
        for number, entry in enumerate(tensors.values()):
            file.writestr(f"model/data/{number}", entry.values.astype("<f4").tobytes())
        file.writestr("model/version", "3\n")
    return path


def legacy(tensors: dict[str, Entry], pickle: bytes | None = None, keys: bytes | None = None) -> bytes:
    """The same as torch.save wrote before PyTorch 1.6: five pickles in a row, then the storages. keys: the fifth."""
    head = (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." b"\x80\x02M\xe9\x03."
            b"\x80\x02}" + text("little_endian") + b"\x88s.")
    names = b"\x80\x02](" + b"".join(text(str(number)) for number in range(len(tensors))) + b"e."
    sizes = (entry.values.size if entry.numel is None else entry.numel for entry in tensors.values())
    data = b"".join(struct.pack("<Q", size % 2**64)
                    + entry.values.astype("<f4").tobytes() for size, entry in zip(sizes, tensors.values()))
    return head + (pickled(tensors) if pickle is None else pickle) + (names if keys is None else keys) + data


def calling(module: str, name: str, argument: str) -> bytes:
    """A pickle that, where pickles are run, calls module.name(argument)."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + text(argument) + b"\x85R."


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def idx(images: np.ndarray, count: int | None = None, magic: int = 0x0803) -> bytes:
    return struct.pack(">4I", magic, len(images) if count is None else count, *images.shape[1:]) + images.tobytes()


def npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def npy_header(header: str, data: bytes = b"") -> bytes:
    padded = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + data


def changed(array: np.ndarray, where: object, value: float) -> np.ndarray:
    copy = array.copy()
    copy[where] = value
    return copy


def safetensors(path: Path, tensors: dict[str, Entry], **header: object) -> Path:
    """The float32 tensors as a .safetensors file; header: changed entries of its JSON."""
    entries, at = {}, 0
    for name, entry in tensors.items():
        size = entry.values.size * 4
        entries[name] = {"dtype": "F32", "shape": entry.shape or entry.values.shape, "data_offsets": [at, at + size]}
        at += size
    text_of_header = json.dumps(entries | header).encode()
    data = b"".join(entry.values.astype("<f4").tobytes() for entry in tensors.values())
    return write(path, struct.pack("<Q", len(text_of_header)) + text_of_header + data)
