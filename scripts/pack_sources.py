"""Where pack.py takes images from: folders, lists of paths, and Datasets. Archives are in pack_archives.py.

A Source knows what it holds before anything is decoded (`count`, `categories`) and gives Items in a fixed order;
load() decodes one of them, in any process.
"""

from __future__ import annotations

import csv
import io
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

import python_object
from pack_pixels import Refused

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".webp")


@dataclass
class Item:
    name: str | None  # of the sample
    label: int
    content: object  # a path, a file's bytes, an array, or an index into a Dataset


@dataclass
class Source:
    count: int = 0
    categories: list[str] | None = None
    labelled: bool = False
    files: bool = True  # decoding costs more than passing the pixels between processes
    passed_over: list[str] = field(default_factory=list)  # what lies in the source and is no image
    identity: list[object] = field(default_factory=list)  # differs when the source does

    def items(self, first: int) -> Iterator[Item]:
        """From item `first` on, always in the same order."""
        raise NotImplementedError

    def load(self, item: Item) -> tuple[Image.Image | np.ndarray, int]:
        """An image or an array (C, H, W), and its label. Raises whatever a damaged file makes Pillow raise."""
        content = item.content
        if isinstance(content, np.ndarray):
            return content, item.label
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)
            if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
                raise OSError(f"holds {image.n_frames} images, expected one; save each as its own file")
            image.load()
        return image, item.label


def numbered(names: list[str], options, where: str) -> tuple[list[str], dict[str, int]]:
    """The categories in order, and the number of each: as --categories lists them, else sorted."""
    order = options.categories or sorted(names)
    numbers = {name: i for i, name in enumerate(order)}
    for name in names:
        if name not in numbers:
            raise Refused(f"{where}: category {name!r} is not in the {len(order)} names of --categories")
    return order, numbers


def stamp(path: str) -> list[object]:
    info = os.stat(path)
    return [os.path.abspath(path), info.st_size, info.st_mtime_ns]


class Folder(Source):
    """FOLDER/CATEGORY/.../image, in the order of torchvision's ImageFolder; images of no category have label -1."""

    def __init__(self, path: str, options) -> None:
        super().__init__()
        entries = sorted(os.scandir(path), key=lambda e: e.name)
        if any(e.name in ("batches.meta.txt", "fine_label_names.txt") for e in entries):
            raise Refused(f"{path}: is CIFAR's folder; name its .bin files, as {path.rstrip('/')}/test_batch.bin")
        folders = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
        self.passed_over = [e.name for e in entries if e.name.startswith(".")]
        self.root, self.found = path, []
        order, numbers = numbered(folders, options, path) if folders else (None, {})
        self.categories, self.labelled = order, bool(folders)
        for name in (e.name for e in entries if e.is_file() and not e.name.startswith(".")):
            self._add(name, -1)
        for folder in folders:
            for parent, _, names in sorted(os.walk(os.path.join(path, folder), followlinks=True)):
                for name in sorted(names):
                    self._add(os.path.relpath(os.path.join(parent, name), path), numbers[folder])
        self.count, self.identity = len(self.found), [os.path.abspath(path), self.found]

    def _add(self, name: str, label: int) -> None:
        image = name.lower().endswith(SUFFIXES) and not os.path.basename(name).startswith(".")
        self.found.append((name, label)) if image else self.passed_over.append(name)

    def items(self, first: int) -> Iterator[Item]:
        return (Item(name, label, os.path.join(self.root, name)) for name, label in self.found[first:])


class Csv(Source):
    """Paths (relative to the file's folder, or --root) and labels: integers as they are, else names, sorted."""

    def __init__(self, path: str, options) -> None:
        super().__init__()
        self.root = options.root or os.path.dirname(path)
        with open(path, newline="", encoding="utf-8-sig") as file:
            try:
                reader = csv.DictReader(file)
                columns = list(reader.fieldnames or [])
                self.path_column = self._column(path, columns, options.path_column, "path-column",
                                                ("path", "file", "filename", "file_name", "image"))
                label_column = self._column(path, columns, options.label_column, "label-column",
                                            ("label", "class", "category", "target"), False)
                rows = [(row[self.path_column] or "", (row[label_column] or "").strip() if label_column else "")
                        for row in reader]
            except (csv.Error, UnicodeDecodeError) as error:
                raise Refused(f"{path}: is no CSV file in UTF-8: {error}") from error
        empty = [i for i, (name, _) in enumerate(rows) if not name]
        if empty:
            raise Refused(f"{path}: row {empty[0] + 2} names no file in column {self.path_column}")
        words = sorted({label for _, label in rows if label})
        if all(re.fullmatch(r"-?\d{1,9}", w) for w in words):
            numbers = {w: max(int(w), -1) for w in words}
            self.categories = options.categories
            if self.categories and numbers and max(numbers.values()) >= len(self.categories):
                raise Refused(f"{path}: label {max(numbers.values())}, but --categories lists {len(self.categories)}")
        else:
            self.categories, numbers = numbered(words, options, path)
        self.rows = [(name, numbers.get(label, -1)) for name, label in rows]
        self.labelled, self.count, self.identity = bool(words), len(rows), [*stamp(path), self.root]

    @staticmethod
    def _column(path: str, columns: list[str], chosen: str | None, option: str, usual: tuple[str, ...],
                needed: bool = True) -> str | None:
        found = [c for c in columns if (c == chosen if chosen else c.strip().lower() in usual)]
        if not found and (chosen or needed):
            raise Refused(f"{path}: has no column {chosen or ' or '.join(usual)}; its columns are "
                          f"{', '.join(columns)}; give --{option}")
        return found[0] if found else None

    def items(self, first: int) -> Iterator[Item]:
        return (Item(name, label, os.path.join(self.root, name)) for name, label in self.rows[first:])


class TorchDataset(Source):
    """A map-style Dataset, or a class or function that --args makes one of; its own transforms are applied.

    Item i is made with all random generators seeded by i, so that random transforms do not depend on processes.
    """

    def __init__(self, spec: str, options) -> None:
        super().__init__()
        try:
            positional, named = python_object.arguments(options.args)
            found = python_object.find(spec)
        except ValueError as error:
            raise Refused(str(error)) from error
        try:
            is_one = hasattr(found, "__getitem__") and not isinstance(found, type)
            self.dataset = found(*positional, **named) if callable(found) and not is_one else found
        except TypeError as error:
            raise Refused(f"{spec}: {error}; see --args") from error
        if not hasattr(self.dataset, "__getitem__") or not hasattr(self.dataset, "__len__"):
            raise Refused(f"{spec}: is no Dataset with __getitem__ and __len__")
        classes = getattr(self.dataset, "classes", None)
        known = isinstance(classes, (list, tuple)) and all(isinstance(c, str) for c in classes)
        self.categories = options.categories or (list(classes) if known else None)
        samples = getattr(self.dataset, "samples", None)
        if isinstance(samples, list) and len(samples) == len(self.dataset) and isinstance(samples[0], tuple) and \
                all(isinstance(s[0], (str, Path)) for s in samples):
            root = os.path.commonpath([os.path.dirname(str(s[0])) for s in samples])
            self.names = [os.path.relpath(str(s[0]), root) if root else str(s[0]) for s in samples]
        else:
            self.names = None
        self.labelled, self.count = True, len(self.dataset)
        self.identity = [spec, options.args, self.count, self.names]

    def items(self, first: int) -> Iterator[Item]:
        return (Item(self.names[i] if self.names else None, -1, i) for i in range(first, self.count))

    def load(self, item: Item) -> tuple[Image.Image | np.ndarray, int]:
        import random
        import sys

        random.seed(item.content)
        np.random.seed(item.content)
        if torch := sys.modules.get("torch"):
            torch.manual_seed(item.content)
        value = self.dataset[item.content]
        image, label = value[:2] if isinstance(value, (tuple, list)) and len(value) > 1 else (value, -1)
        if isinstance(label, (bytes, str)) or np.ndim(label) != 0 or int(label) != label:
            raise Refused(f"item {item.content}: its label is {str(label)[:40]!r}, expected an integer")
        if isinstance(image, Image.Image):
            return image, int(label)
        pixels = np.asarray(image)
        if pixels.dtype == object or pixels.ndim not in (2, 3):
            raise Refused(f"item {item.content}: its image is a {type(image).__name__} of {pixels.ndim} dimensions, "
                          "expected a PIL image, or a tensor (C,H,W) or (H,W)")
        if isinstance(image, np.ndarray) and image.ndim == 3:
            raise Refused(f"item {item.content}: its image is a numpy array; end the transforms by ToTensor()")
        return pixels if pixels.ndim == 3 else pixels[None], int(label)
