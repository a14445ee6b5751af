"""Archives and arrays that pack.py takes images from: tar, .npz, CIFAR's binaries.

Read in one pass, a sample at a time; nothing is unpacked to disk, no pickle is opened.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image

from pack_pixels import Refused
from pack_sources import SUFFIXES, Item, Source, numbered, stamp

COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PIECE = 1 << 20
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError)


class _Tail:
    """A file that remembers its last block."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.end = file, b""

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.end = (self.end + data)[-tarfile.BLOCKSIZE:]
        return data


class Tar(Source):
    """Category folders inside an archive, under whatever folders all images share; in the archive's order."""

    def __init__(self, path: str, options) -> None:
        super().__init__()
        self.path, names = path, []
        for member, _ in self._members():
            name = PurePosixPath(member.name)
            if self._is_image(member):
                names.append(name)
            elif not member.isdir():
                self.passed_over.append(str(name))
        parents = [name.parts[:-1] for name in names]
        self.shared = len(os.path.commonprefix(parents)) if parents else 0
        folders = sorted({p[self.shared] for p in parents if len(p) > self.shared})
        self.labelled = bool(folders)
        self.categories, self.numbers = numbered(folders, options, path) if folders else (None, {})
        self.count, self.identity = len(names), stamp(path)

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        """In one pass. tarfile itself takes a truncated archive for one that ends: its last block must be zeros."""
        seen = 0
        try:
            with open(self.path, "rb") as file:
                unpack = COMPRESSED.get(file.read(2), open)
            with unpack(self.path, "rb") as file:
                tail = _Tail(file)
                with tarfile.open(fileobj=tail, mode="r|") as tar:
                    for member in tar:
                        yield member, tar
                        tar.members.clear()  # or a million of them stay in memory
                        seen += 1
                while tail.read(PIECE):
                    pass  # to the checksum
            if tail.end.strip(b"\0"):
                raise tarfile.ReadError("it lacks its end")
        except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            why = f"is truncated or damaged after {seen} entries ({error}); copy it again"
            raise Refused(f"{self.path}: {why}") from error

    @staticmethod
    def _is_image(member: tarfile.TarInfo) -> bool:
        base = os.path.basename(member.name)
        is_file = member.isreg() or member.islnk() or member.issym()
        return is_file and base.lower().endswith(SUFFIXES) and not base.startswith(".")

    def items(self, first: int) -> Iterator[Item]:
        images = 0
        for member, tar in self._members():
            if not self._is_image(member):
                continue
            images += 1
            if images <= first:
                continue
            parts = PurePosixPath(member.name).parts[self.shared:]
            label = self.numbers[parts[0]] if len(parts) > 1 else -1
            content = tar.extractfile(member).read() if member.isreg() else None
            yield Item("/".join(parts), label, content)
        if images < self.count:
            raise Refused(f"{self.path}: held {self.count} images, now {images}; is something writing it?")

    def load(self, item: Item) -> tuple[Image.Image | np.ndarray, int]:
        if item.content is None:
            raise OSError("is a link; make the archive with tar --dereference --hard-dereference")
        return super().load(item)


class Npz(Source):
    """Two arrays of an .npz: images (N, H, W), (N, H, W, C) or (N, C, H, W), read row by row, and labels (N)."""

    def __init__(self, path: str, options) -> None:
        super().__init__(files=False)
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                arrays = [name for name in archive.namelist() if name.endswith(".npy")]
                headers = {name[:-4]: self._header(archive, name) for name in arrays}
        except (*DAMAGED, ValueError) as error:
            raise Refused(f"{path}: is no .npz file that numpy reads ({error})") from error
        listing = ", ".join(f"{k} {shape}" for k, (shape, _, _) in headers.items()) or "nothing"
        self.key = options.image_key or self._only(
            [k for k, (shape, _, _) in headers.items() if len(shape) in (3, 4)], "images", "image-key", listing)
        if self.key not in headers:
            raise Refused(f"{path}: has no array {self.key}; it holds {listing}")
        self.shape, fortran, self.dtype = headers[self.key]
        if fortran or self.dtype.kind not in "uif" or len(self.shape) not in (3, 4):
            raise Refused(f"{path}: {self.key} is {self.dtype} {self.shape}{' in Fortran order' if fortran else ''}; "
                          "expected numbers (N,H,W), (N,H,W,C) or (N,C,H,W) in C order")
        self.last = self._channels_last(options.layout)
        self.count = self.shape[0]
        vectors = [k for k, (s, _, d) in headers.items() if s in ((self.count,), (self.count, 1)) and d.kind in "iu"]
        label_key = options.label_key or (self._only(vectors, "labels", "label-key", listing) if vectors else None)
        self.labelled, self.categories = label_key is not None, options.categories
        self.labels = np.full(self.count, -1)
        if label_key:
            if label_key not in vectors:
                raise Refused(f"{path}: {label_key} is not {self.count} integers; it holds {listing}")
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    self.labels = np.maximum(arrays[label_key].reshape(-1).astype(np.int64), -1)
            except (*DAMAGED, ValueError) as error:
                raise Refused(f"{path}: {label_key} is damaged ({error}); copy the file again") from error
        self.identity = [*stamp(path), self.key, label_key, self.last]

    @staticmethod
    def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
        with archive.open(name) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return read(file)

    def _only(self, keys: list[str], what: str, option: str, listing: str) -> str:
        if len(keys) != 1:
            raise Refused(f"{self.path}: which array holds the {what}? It has {listing}; give --{option}")
        return keys[0]

    def _channels_last(self, layout: str | None) -> bool:
        if layout or len(self.shape) == 3:
            return layout == "NHWC" and len(self.shape) == 4
        first, last = self.shape[1] in (1, 3), self.shape[3] in (1, 3)
        if first == last:
            raise Refused(f"{self.path}: {self.key} {self.shape}: where are its channels? Give --layout NCHW or NHWC")
        return last

    def items(self, first: int) -> Iterator[Item]:
        row = self.shape[1:]
        size = int(np.prod(row)) * self.dtype.itemsize
        with zipfile.ZipFile(self.path) as archive, archive.open(self.key + ".npy") as file:
            version = np.lib.format.read_magic(file)
            (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
            for i in range(self.count):
                try:
                    data = file.read(size)
                except DAMAGED as error:
                    raise Refused(f"{self.path}: {self.key} is damaged ({error}); copy the file again") from error
                if len(data) < size:
                    raise Refused(f"{self.path}: {self.key} is damaged: it ends in image {i} of {self.count}; copy the "
                                  "file again")
                if i >= first:
                    pixels = np.frombuffer(data, self.dtype).reshape(row)
                    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1) if self.last else pixels
                    yield Item(None, int(self.labels[i]), pixels)


class Cifar(Source):
    """CIFAR-10 and CIFAR-100 binaries: records of 1 or 2 label bytes and 3072 pixels."""

    def __init__(self, paths: list[str], options) -> None:
        super().__init__(files=False, labelled=True)
        self.parts, kinds = [], set()
        for path in paths:
            if not os.path.isfile(path):
                raise Refused(f"{path}: no such file")
            size = os.path.getsize(path)
            heads = [n for n in (1, 2) if size and size % (n + 3072) == 0]
            if not heads:
                raise Refused(f"{path}: has {size} bytes, no whole number of records of CIFAR-10 (3073) or CIFAR-100 "
                              "(3074)")
            kinds.add(heads[0])
            self.parts.append((path, size // (heads[0] + 3072)))
        if len(kinds) > 1:
            raise Refused(f"{paths[1]}: CIFAR-10 and CIFAR-100 do not go into one file")
        self.head = kinds.pop()
        self.at = 1 if self.head == 2 and options.cifar_labels == "fine" else 0
        self.classes = 10 if self.head == 1 else 100 if self.at else 20
        file = "batches.meta.txt" if self.head == 1 else f"{options.cifar_labels}_label_names.txt"
        names = Path(paths[0]).with_name(file)
        if options.categories:
            self.categories = options.categories
        elif names.is_file():
            self.categories = [line.strip() for line in names.read_text("utf-8").splitlines() if line.strip()]
        if self.categories and len(self.categories) != self.classes:
            raise Refused(f"{names}: lists {len(self.categories)} categories, expected {self.classes}")
        self.count = sum(n for _, n in self.parts)
        self.identity = [stamp(path) for path in paths] + [self.at]

    def items(self, first: int) -> Iterator[Item]:
        for path, records in self.parts:
            with open(path, "rb") as file:
                file.seek(min(first, records) * (self.head + 3072))
                for i in range(min(first, records), records):
                    record = file.read(self.head + 3072)
                    if len(record) != self.head + 3072 or record[self.at] >= self.classes:
                        raise Refused(f"{path}: record {i} is none of CIFAR (its label is 0x"
                                      f"{record[self.at:self.at + 1].hex()}); copy the file again")
                    pixels = np.frombuffer(record, np.uint8, offset=self.head).reshape(3, 32, 32)
                    yield Item(None, record[self.at], pixels)
            first = max(first - records, 0)
