"""The file pack.py writes, block by block, so that a run that was stopped can go on.

FILE.nc.partial grows along `sample`; after each block it is flushed, and only then FILE.nc.partial.journal gets the
block's names and labels and a line that says how far all is done. A new run takes the journal up to its last such line
and writes over what the file may hold beyond it. At the end names and labels go into the file, the text files are
written, and the file gets its own name: FILE.nc is always whole. Memory: one block, and the names.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # many cluster file systems refuse it; the journal is locked

import netCDF4  # noqa: E402
import numpy as np  # noqa: E402

from pack_pixels import Recipe, Refused  # noqa: E402
from pack_sources import Source  # noqa: E402

BLOCK_BYTES, BLOCK_ROWS = 64 << 20, 2048
CHUNK_BYTES = 1 << 20  # what cnnscope reads at least; a batch of small images is a part of it
LONGEST_MEANINGS = 32000  # bytes of an attribute; HDF5 holds less than 64 KiB
NAME_ROWS = 65536


class Partial:
    """As a context: closes what is open. `done` counts items of the source, `rows` images in the file."""

    def __init__(self, options, source: Source, recipe: Recipe) -> None:
        self.output, self.source, self.recipe = options.output, source, recipe
        self.path = Path(f"{options.output}.partial")
        self.journal_path = Path(f"{options.output}.partial.journal")
        self.compress = options.compress
        self.done = self.rows = 0
        self.names: list[str | None] = []
        self.labels: list[int] = []
        self.unreadable: list[tuple[str, str]] = []
        size = int(np.prod(recipe.shape)) * np.dtype(recipe.dtype).itemsize
        self.block = max(1, min(BLOCK_BYTES // size, BLOCK_ROWS))
        self.chunk = max(1, min(CHUNK_BYTES // size, self.block))
        self.block -= self.block % self.chunk
        self.made_of = {
            "the source": _digest(source.identity), "the categories": _digest(source.categories),
            "--resize": recipe.resize, "--crop": recipe.crop, "--interpolation": recipe.interpolation,
            "--color": recipe.color, "--dtype": recipe.dtype, "the image shape": recipe.shape,
            "--compress": options.compress,
        }
        self.file, self.journal = None, open(self.journal_path, "a+b")
        try:
            fcntl.flock(self.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(f"{self.path}: another pack.py is writing it") from error
        except OSError:
            pass  # a file system without locks
        if options.fresh or not self._go_on():
            self._begin()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.file and self.file.isopen():
            self.file.close()
        if kind and issubclass(kind, Refused):  # other options or another source are needed: nothing to go on with
            self.path.unlink(missing_ok=True)
            self.journal_path.unlink(missing_ok=True)
        self.journal.close()

    def _go_on(self) -> bool:
        """False when there is nothing to go on with."""
        self.journal.seek(0)
        lines = self.journal.read().split(b"\n")[:-1]
        if not lines or not self.path.exists():
            return False
        try:
            earlier = json.loads(lines[0])
            marks = [i for i, line in enumerate(lines) if line.startswith(b'{"done"')]
            entries = [json.loads(line) for line in lines[1:marks[-1] + 1]] if marks else []
        except ValueError:
            return False
        now = json.loads(json.dumps(self.made_of))
        other = [key for key in now if earlier.get(key) != now[key]]
        if other:
            raise Refused(f"{self.path}: is unfinished and of another job ({other[0]} differs); finish that one, or "
                          "begin anew with --fresh")
        try:
            self.file = netCDF4.Dataset(self.path, "a")
            image = self.file["image"]
        except (OSError, IndexError, RuntimeError) as error:
            print(f"pack.py: {self.path}: was damaged when it was stopped ({error}); beginning anew", file=sys.stderr)
            return False
        for entry in entries:
            if isinstance(entry, list):
                self.names.append(entry[0])
                self.labels.append(entry[1])
            elif "unreadable" in entry:
                self.unreadable.append((entry["unreadable"], entry["reason"]))
            else:
                self.done, self.rows = entry["done"], entry["rows"]
        if len(image) < self.rows or len(self.names) != self.rows:
            print(f"pack.py: {self.path}: holds less than its journal says; beginning anew", file=sys.stderr)
            self.file.close()
            self.done = self.rows = 0
            self.names, self.labels, self.unreadable = [], [], []
            return False
        kept = sum(len(line) + 1 for line in lines[:(marks[-1] if marks else 0) + 1])
        self.journal.truncate(kept)
        return True

    def _begin(self) -> None:
        self.journal.truncate(0)
        self.file = netCDF4.Dataset(self.path, "w", format="NETCDF4")
        for name, length in zip(("sample", "channel", "y", "x"), (None, *self.recipe.shape)):
            self.file.createDimension(name, length)
        image = self.file.createVariable(
            "image", np.dtype(self.recipe.dtype), ("sample", "channel", "y", "x"), fill_value=False,
            chunksizes=(self.chunk, *self.recipe.shape), compression="zlib" if self.compress else None,
            complevel=self.compress)
        image.long_name = "pixels of the images"
        image.units = "1"
        self._flush()
        self._write([self.made_of])

    def _flush(self) -> None:
        self.file.sync()
        _fsync(self.path)

    def _write(self, entries: list[object]) -> None:
        self.journal.seek(0, os.SEEK_END)
        self.journal.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        self.journal.flush()
        os.fsync(self.journal.fileno())

    def append(self, results: list[tuple[str, str | None, int, object]]) -> None:
        """One block of what work() in pack.py gives."""
        pixels, entries = [], []
        categories = len(self.source.categories) if self.source.categories else 2**31
        for i, (kind, name, label, value) in enumerate(results, self.done):
            where = name or f"image {i} of the source"
            if kind == "refused":
                raise Refused(f"{where}: {value}")
            if kind == "unreadable":
                self.unreadable.append((_clean(where), str(value)))
                entries.append({"unreadable": _clean(where), "reason": value})
                continue
            if label >= categories:
                raise Refused(f"{where}: label {label}, expected one below {categories}, the number of categories")
            self.names.append(name and _clean(name))
            self.labels.append(max(int(label), -1))
            entries.append([self.names[-1], self.labels[-1]])
            pixels.append(value)
        if pixels:
            image = self.file["image"]
            image.set_auto_maskandscale(False)
            image[self.rows:self.rows + len(pixels)] = np.stack(pixels)
            self._flush()
        self.done, self.rows = self.done + len(results), self.rows + len(pixels)
        self._write([*entries, {"done": self.done, "rows": self.rows}])

    def finish(self, sources: list[str]) -> dict[str, Path]:
        """Names, labels and attributes into the file, which gets its name; the text files beside it."""
        file, source = self.file, self.source
        if len(file["image"]) != self.rows:
            raise Refused(f"{self.path}: holds {len(file['image'])} images, {self.rows} are in its journal: the source "
                          "changed while the run was stopped; begin anew with --fresh")
        categories = [_clean(c) for c in source.categories] if source.categories else []
        names = self.names if self.rows and None not in self.names else []
        width = max((len(n.encode()) for n in [*categories, *names]), default=0)
        if width and "name_length" not in file.dimensions:
            file.createDimension("name_length", width)
        if categories and "category" not in file.dimensions:
            file.createDimension("category", len(categories))
        if source.labelled:
            label = _variable(file, "label", "i4", ("sample",), (NAME_ROWS,), "category of the sample; -1: not known")
            label[:self.rows] = np.array(self.labels, np.int32)
            meanings = " ".join(re.sub(r"\s", "_", c) for c in categories)
            if categories and len(meanings.encode()) < LONGEST_MEANINGS:
                label.flag_values, label.flag_meanings = np.arange(len(categories), dtype=np.int32), meanings
        if categories:
            _put_names(file, "category_name", ("category", "name_length"), categories, width, "name of the category")
        if names:
            _put_names(file, "sample_name", ("sample", "name_length"), names, width, "file the sample was read from")
        known = [n for n in ("label", "sample_name") if n in file.variables]
        if known:
            file["image"].coordinates = " ".join(known)
        file.title = "Images for cnnscope"
        file.Conventions = "CF-1.11"
        file.history = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {shlex.join(['pack.py', *sys.argv[1:]])}"
        file.source = shlex.join(sources)
        file.processing = self._processing()
        file.unreadable_count = np.int32(len(self.unreadable))
        file.close()
        _fsync(self.path)
        beside = self._text_files(categories, names)
        os.replace(self.path, self.output)
        self.journal_path.unlink()
        return beside

    def _processing(self) -> str:
        steps = [f"colour {self.recipe.color}"] if self.recipe.color != "auto" else []
        if self.recipe.resize:
            what = "shorter edge" if len(self.recipe.resize) == 1 else "height, width"
            steps.append(f"resized ({self.recipe.interpolation}) to {what} {', '.join(map(str, self.recipe.resize))}")
        if self.recipe.crop:
            steps.append("centre crop of height, width {}, {}".format(*self.recipe.crop))
        return "; ".join(steps) or "none"

    def _text_files(self, categories: list[str], names: list[str]) -> dict[str, Path]:
        stem = str(self.output)[:-3] if self.output.suffix == ".nc" else str(self.output)
        texts = {"categories": categories, "samples": names,
                 "unreadable": [f"{name}\t{reason}" for name, reason in self.unreadable]}
        written = {}
        for kind, lines in texts.items():
            path = Path(f"{stem}.{kind}.txt")
            if lines:
                path.write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="\n")
                written[kind] = path
            else:
                path.unlink(missing_ok=True)  # of an earlier file of this name
        return written


def _variable(file: netCDF4.Dataset, name: str, kind: str, dimensions: tuple[str, ...], chunks: tuple[int, ...],
              long_name: str) -> netCDF4.Variable:
    if name not in file.variables:  # it is when a run was stopped while it finished
        file.createVariable(name, kind, dimensions, fill_value=False, chunksizes=chunks)
    variable = file[name]
    variable.set_auto_maskandscale(False)
    variable.long_name = long_name
    return variable


def _put_names(file: netCDF4.Dataset, name: str, dimensions: tuple[str, str], names: list[str], width: int,
               long_name: str) -> None:
    """Fixed-width, zero-padded UTF-8."""
    rows = min(len(names), NAME_ROWS)
    variable = _variable(file, name, "S1", dimensions, (rows, width), long_name)
    variable.set_auto_chartostring(False)
    for first in range(0, len(names), rows):
        piece = np.array([n.encode() for n in names[first:first + rows]], f"S{width}")
        variable[first:first + len(piece)] = piece.view("S1").reshape(len(piece), width)
    variable.setncattr("_Encoding", "utf-8")


def _clean(name: str) -> str:
    """A name that fits on a line of UTF-8: what does not is written as an escape."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda m: f"\\x{ord(m[0]):02x}", text) or "?"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode("utf-8", "backslashreplace")).hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
