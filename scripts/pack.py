#!/usr/bin/env python3
"""Pack images as people have them into one netCDF file that cnnscope reads in shards.

    pack.py SOURCE --output FILE.nc [--resize 256 --crop 224] [options]

SOURCE is a folder of one folder per category; a .csv of paths and labels; an .npz; CIFAR-10 or CIFAR-100 binaries
(several .bin); a tar of category folders; or MODULE:NAME (FILE.py:NAME), a PyTorch Dataset with its own transforms.
FILE.nc holds image(sample, channel, y, x) as uint8, or float32 where bytes would lose something, and label(sample),
category_name, sample_name where known. --resize and --crop are torchvision's Resize and CenterCrop on PIL images.

Beside it come FILE.categories.txt and FILE.samples.txt, for cnnscope, and FILE.unreadable.txt when images could not be
read: these are left out, and the exit status is 3. Works in blocks: a run that was stopped goes on when started again.
Exit status: 0 done, 1 refused, 2 command line, 3 done but for unreadable images.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

try:
    from PIL import UnidentifiedImageError

    from pack_archives import TARS, Cifar, Npz, Tar
    from pack_file import Partial
    from pack_pixels import FILTERS, Recipe, Refused
    from pack_sources import Csv, Folder, Item, Source, TorchDataset
except ImportError as error:
    sys.exit(f"pack.py: {error}: run scripts/setup.sh once, then .venv/bin/python scripts/pack.py; for a PyTorch "
             "Dataset the Python that has PyTorch, with pip install netCDF4 Pillow")

INTERVAL = 10  # seconds between lines of progress in a log
UNREADABLE = 3  # exit status
SHOWN = 5  # names in a message

_work: tuple[Source, Recipe]  # of a decoding process, inherited when it is forked


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(pack(options))
    except (Refused, OSError) as error:
        sys.exit(f"pack.py: {error}")
    except BrokenProcessPool:
        sys.exit("pack.py: a decoding process was killed (for memory?); to go on, start again with fewer --workers")
    except MemoryError:
        sys.exit("pack.py: out of memory; to go on, start again with fewer --workers")
    except KeyboardInterrupt:
        print("\npack.py: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def parse_arguments() -> argparse.Namespace:
    def sizes(text: str) -> tuple[int, ...]:
        numbers = tuple(int(n) if n.isdecimal() else 0 for n in text.split(","))
        if not 1 <= len(numbers) <= 2 or min(numbers) < 1:
            raise argparse.ArgumentTypeError(f"{text}: expected pixels, as 224 or 224,160 (height, width)")
        return numbers

    def positive(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text}: expected a number from 1")
        return int(text)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", nargs="+", metavar="SOURCE")
    add("-o", "--output", type=Path, required=True, metavar="FILE.nc")
    add("--overwrite", action="store_true", help="replace an existing FILE.nc")
    add("--fresh", action="store_true", help="begin anew instead of going on with an unfinished FILE.nc.partial")
    add("--resize", type=sizes, metavar="S|H,W", help="shorter edge, or both, before --crop")
    add("--crop", type=sizes, metavar="S|H,W", help="from the centre; zeros around an image that is smaller")
    add("--interpolation", choices=FILTERS, default="bilinear")
    add("--color", choices=("auto", "rgb", "gray"), default="auto", help="auto: as the first image")
    add("--dtype", choices=("auto", "uint8", "float32"), default="auto", help="auto: uint8 where nothing is lost")
    add("--categories", type=Path, metavar="FILE", help="category names in the order of the network's outputs, one a "
        "line (default: sorted, as torchvision's ImageFolder)")
    add("--root", metavar="FOLDER", help="where a CSV's paths begin (its own folder)")
    add("--path-column", metavar="NAME", help="of a CSV (path, file, filename, file_name or image)")
    add("--label-column", metavar="NAME", help="of a CSV (label, class, category or target)")
    add("--image-key", metavar="NAME", help="of an .npz, where several arrays could be the images")
    add("--label-key", metavar="NAME", help="likewise the labels")
    add("--layout", choices=("NCHW", "NHWC"), help="of an .npz, where sizes do not tell")
    add("--cifar-labels", choices=("fine", "coarse"), default="fine", help="of CIFAR-100")
    add("--args", default="", help="arguments of MODULE:NAME, as \"root='data', train=False\"")
    add("--compress", type=int, choices=range(10), default=0, metavar="LEVEL", help="deflate, 1 to 9 (0: none)")
    add("--workers", type=positive, default=len(os.sched_getaffinity(0)), metavar="N", help="decoding processes")
    options = parser.parse_args()
    if options.crop and len(options.crop) == 1:
        options.crop *= 2
    return options


def pack(options: argparse.Namespace) -> int:
    if options.output.exists() and not options.overwrite:
        raise Refused(f"{options.output}: exists; give another name or --overwrite")
    if options.categories:
        options.categories = read_names(options.categories)
    source = open_source(options.source, options)
    if source.passed_over:
        say(f"{len(source.passed_over)} files that are no images are passed over: {some(source.passed_over)}")
    recipe = Recipe(options.resize, options.crop, options.interpolation, options.color, options.dtype)
    settle(source, recipe, options.source[0])
    with Partial(options, source, recipe) as partial:
        if partial.done:
            say(f"going on at image {partial.done} of {source.count}")
        progress = Progress(partial.done, source.count)
        for results in blocks(source, recipe, partial, options.workers):
            partial.append(results)
            progress.show(partial.done, len(partial.unreadable))
        progress.end()
        beside = partial.finish(options.source)
    if partial.unreadable:
        say(f"{len(partial.unreadable)} of {source.count} images could not be read and are left out, listed in "
            f"{beside['unreadable']}: {some([name for name, _ in partial.unreadable])}")
    print_command(options.output, source, partial.rows, recipe, beside)
    return UNREADABLE if partial.unreadable else 0


def read_names(path: Path) -> list[str]:
    try:
        names = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise Refused(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    if not names or not all(names) or len(set(names)) < len(names):
        raise Refused(f"{path}: expected a different name on each line")
    return names


def open_source(paths: list[str], options: argparse.Namespace) -> Source:
    path = paths[0]
    if all(p.endswith(".bin") for p in paths):
        return Cifar(paths, options)
    if len(paths) > 1:
        raise Refused(f"{paths[1]}: a second source; only CIFAR's .bin files can be several")
    if not os.path.exists(path):
        if re.fullmatch(r".+:[A-Za-z_][\w.]*", path):
            return TorchDataset(path, options)
        raise Refused(f"{path}: no such file or folder")
    if os.path.isdir(path):
        return Folder(path, options)
    lower = path.lower()
    kind = Csv if lower.endswith(".csv") else Npz if lower.endswith(".npz") else Tar if lower.endswith(TARS) else None
    if not kind:
        raise Refused(f"{path}: is none of a folder, .csv, .npz, CIFAR's .bin, {', '.join(TARS)}; or MODULE:NAME")
    return kind(path, options)


def settle(source: Source, recipe: Recipe, where: str) -> None:
    """The recipe, completed by the first image that can be read."""
    reason = f"holds no images; of {len(source.passed_over)} other files" if source.passed_over else "holds no images"
    for item in source.items(0):
        try:
            value, _ = source.load(item)
        except (Refused, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001: a damaged file makes Pillow raise many kinds
            reason = f"none of its {source.count} images can be read; the last: {item.name}: {in_words(error)}"
            continue
        try:
            return recipe.fix(value)
        except Refused as error:
            raise Refused(f"{item.name or where}: {error}") from error
    raise Refused(f"{where}: {reason}")


def blocks(source: Source, recipe: Recipe, partial: Partial, workers: int) -> Iterator[list[tuple]]:
    """work() of all items not yet done, in order, block by block; no more than one block is in memory."""
    global _work
    _work = source, recipe
    items = source.items(partial.done)
    if workers == 1 or not (source.files or recipe.resize or recipe.crop):
        while block := [work(item) for item in islice(items, partial.block)]:
            yield block
        return
    pool = ProcessPoolExecutor(workers, get_context("fork"), begin_worker)
    try:
        while block := list(islice(items, partial.block)):
            yield list(pool.map(work, block, chunksize=max(1, min(32, len(block) // (4 * workers)))))
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # the parent was killed

    threading.Thread(target=watch, daemon=True).start()


def work(item: Item) -> tuple[str, str | None, int, object]:
    """("image", name, label, pixels), or "unreadable" or "refused" with the reason in the place of pixels."""
    source, recipe = _work
    try:
        value, label = source.load(item)
    except Refused as error:
        return "refused", item.name, -1, str(error)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001: a damaged file makes Pillow raise many kinds
        return "unreadable", item.name or f"item {item.content}", -1, in_words(error)
    try:
        return "image", item.name, label, recipe.apply(value)
    except Refused as error:
        return "refused", item.name, -1, str(error)


def in_words(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is no image that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).splitlines() or [""])[0]
    return line if isinstance(error, OSError) and line else f"{type(error).__name__}: {line}".rstrip(": ")


def some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def say(text: str) -> None:
    print(f"pack.py: {text}", file=sys.stderr, flush=True)


class Progress:
    """One line, redrawn on a terminal; in a log a line every INTERVAL seconds."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count, self.begin, self.last = first, count, time.monotonic(), time.monotonic()
        self.terminal = sys.stderr.isatty()

    def show(self, done: int, unreadable: int) -> None:
        now = time.monotonic()
        if not self.terminal and now - self.last < INTERVAL:
            return
        self.last = now
        rate = (done - self.first) / max(now - self.begin, 1e-9)
        left = (self.count - done) / max(rate, 1e-9)
        text = f"pack.py: {done} of {self.count} images, {rate:.0f}/s, {left:.0f} s left"
        text += f", {unreadable} unreadable" if unreadable else ""
        text, end = (f"\r{text}\x1b[K", "") if self.terminal else (text, "\n")
        print(text, end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.terminal:
            print(file=sys.stderr)


def print_command(output: Path, source: Source, rows: int, recipe: Recipe, beside: dict[str, Path]) -> None:
    """What to type next, on stdout."""
    shape = "x".join(map(str, recipe.shape))
    print(f"{output}: {rows} images of {shape}, {recipe.dtype}"
          + (f", {len(source.categories)} {'category' if len(source.categories) == 1 else 'categories'}"
             if source.categories else "") + ". Next, with your model:")
    words = ["cnnscope", "--model", "MODEL", "--images", f"{output}:image"]
    words += ["--labels", f"{output}:label"] if source.labelled else []
    words += ["--category-names", str(beside["categories"])] if "categories" in beside else []
    words += ["--sample-names", str(beside["samples"])] if "samples" in beside else []
    print(shlex.join([*words, "--output", "RESULT.nc"]) + "   # and --mean, --std as in training")


if __name__ == "__main__":
    main()
