"""What users get wrong, and hostile files: one line for the whole job, its exit status, and nothing left behind.

A case changes some options of a job of 40 images that works, and says what the line must contain. Its files are made in
the case's folder, where the output goes too: besides these files the folder must be empty afterwards.
"""

from __future__ import annotations

import errno
import gzip
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crafted import Entry, calling, changed, idx, integers, network, npy, npy_header, pickled, save, text, write
from program import BINARY, DATA, ENVIRONMENT, GOLDEN, IMAGES, LABELS, MODEL, Run, run, succeed, survivors

RANKS = 2
# Most cases run on one rank, which starts in a tenth of the time. On RANKS: those that one rank of many meets, and some
# of each step of a job: its options, images, model, labels, names, layers, values, and output.
ON_RANKS = {
    "model missing", "images missing", "labels missing", "names missing", "model a pipe", "model cut: half",
    "IDX.gz cut: half", ".npz cut: half", "images are text", "integers without --scale", "no images", "fewer labels",
    "label too large", "label a word", "too few names", "NaN pixel", "tensor missing", "NaN weight", "os.system",
    "wrong CRC", "damage that one rank reads", "NaN that one rank reads", "label that one rank reads", "unknown option",
    "not a number", "perplexity too large", "layer to embed", "layer of Grad-CAM", "samples past the end", "no model",
    "too many components", "folder missing", "output a device", "matrix missing", "NaN", "labels", "start with NaN",
}
LEGACY = DATA / "model_legacy.pth"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
FLOATS = (PIXELS / 255).astype(np.float32)
CLASSES = np.arange(40, dtype=np.int32) % 10
WEIGHT = np.ones((10, 6), np.float32)
MATRIX = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)

Value = str | int | Path | Callable[[Path], object] | None  # a callable makes a file in the folder, and names it


def model(*, pickle: bytes | None = None, **changes: object) -> Callable[[Path], Path]:
    return lambda folder: save(folder / "bad.pth", network(**changes), pickle)


def file(name: str, data: bytes) -> Callable[[Path], Path]:
    return lambda folder: write(folder / name, data)


def array(name: str, values: np.ndarray) -> Callable[[Path], Path]:
    return lambda folder: npy(folder / name, values)


def flipped_crc(folder: Path) -> Path:
    data = bytearray(MODEL.read_bytes())
    data[len(data) // 2] ^= 0x10  # in the largest entry, conv2.weight
    return write(folder / "bad.pth", bytes(data))


def folder_called(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


def pipe(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return make


def late_damage(folder: Path) -> Path:
    """A gzip stream that goes wrong only where the last rank reads: its checksum does not fit."""
    data = bytearray(gzip.compress(idx(PIXELS), mtime=0))
    data[-8] ^= 1
    return write(folder / "bad.gz", bytes(data))


def whole(folder: Path) -> Path:
    """torch.save(model): the pickle names the user's own class."""
    return save(folder / "bad.pth", network(), b"\x80\x02c__main__\nCNN\n)\x81}" + text("training") + b"\x89sb.")


CUTS = {"nothing": 0, "one byte": 1, "a hundred bytes": 100, "half": 0.5, "all but one byte": -1}


def cut(name: str, data: Callable[[Path], bytes] | bytes, size: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        whole_file = data(folder) if callable(data) else data
        return write(folder / name, whole_file[: int(len(whole_file) * size) if isinstance(size, float) else size or 0])

    return make


def bytes_of_npz(folder: Path) -> bytes:
    np.savez(folder / "whole.npz", images=PIXELS)
    data = (folder / "whole.npz").read_bytes()
    (folder / "whole.npz").unlink()
    return data


def bytes_of_npy(folder: Path) -> bytes:
    data = npy(folder / "whole.npy", PIXELS).read_bytes()
    (folder / "whole.npy").unlink()
    return data


# name: (changed options, exit status, words of the line, in any case)
CASES: dict[str, tuple[dict[str, Value], int, list[str]]] = {
    # files that are not there, or not files
    "model missing": ({"model": "{}/no.pth"}, 1, ["no.pth"]),
    "images missing": ({"images": "{}/no.npy"}, 1, ["no.npy"]),
    "labels missing": ({"labels": "{}/no.npy"}, 1, ["no.npy"]),
    "names missing": ({"category-names": "{}/no.txt"}, 1, ["no.txt"]),
    "model a folder": ({"model": folder_called("d.pth")}, 1, ["d.pth", "director"]),
    "images a folder": ({"images": folder_called("d.npy")}, 1, ["d.npy", "director"]),
    "labels a folder": ({"labels": folder_called("d.npy")}, 1, ["d.npy", "director"]),
    "model a pipe": ({"model": pipe("p.pth")}, 1, ["p.pth", "regular file"]),
    "images a pipe": ({"images": pipe("p.npy")}, 1, ["p.npy", "regular file"]),
    "images a device": ({"images": "/dev/zero"}, 1, ["/dev/zero", "regular file"]),
    # cut short
    **{f"model cut: {k}": ({"model": cut("bad.pth", MODEL.read_bytes(), v)}, 1, ["bad.pth"]) for k, v in CUTS.items()},
    **{f"legacy model cut: {k}": ({"model": cut("bad.pth", LEGACY.read_bytes(), v)}, 1, ["bad.pth"])
       for k, v in CUTS.items() if v},
    **{f"IDX cut: {k}": ({"images": cut("bad.idx", idx(PIXELS), v)}, 1, ["bad.idx"]) for k, v in CUTS.items()},
    **{f"IDX.gz cut: {k}": ({"images": cut("bad.gz", gzip.compress(idx(PIXELS)), v)}, 1, ["bad.gz"])
       for k, v in CUTS.items() if v},
    **{f".npy cut: {k}": ({"images": cut("bad.npy", bytes_of_npy, v)}, 1, ["bad.npy"]) for k, v in CUTS.items() if v},
    **{f".npz cut: {k}": ({"images": cut("bad.npz", bytes_of_npz, v)}, 1, ["bad.npz"]) for k, v in CUTS.items() if v},
    "IDX too long": ({"images": file("bad.idx", idx(PIXELS) + b"x")}, 1, ["bad.idx"]),
    # not what they should be
    "IDX magic": ({"images": file("bad.idx", idx(PIXELS, magic=0x5603))}, 1, ["bad.idx"]),
    "model is text": ({"model": file("bad.pth", b"hello\n" * 100)}, 1, ["bad.pth"]),
    "images are text": ({"images": file("bad.npy", b"hello\n" * 100)}, 1, ["bad.npy"]),
    "model is the images": ({"model": IMAGES}, 1, [IMAGES.name]),
    "images are the model": ({"images": MODEL}, 1, [MODEL.name]),
    "images are labels": ({"images": LABELS}, 1, [LABELS.name]),
    "labels are images": ({"labels": IMAGES}, 1, [IMAGES.name]),
    "Fortran order": ({"images": array("bad.npy", np.asfortranarray(PIXELS))}, 1, ["bad.npy", "ascontiguousarray"]),
    "complex pixels": ({"images": array("bad.npy", PIXELS.astype(np.complex64))}, 1, ["bad.npy"]),
    "object array": ({"images": array("bad.npy", np.array([None, 1]))}, 1, ["bad.npy"]),
    "integers without --scale": ({"images": array("bad.npy", PIXELS.astype(np.int16))}, 2, ["bad.npy", "--scale"]),
    "no such key": ({"images": lambda d: str(write(d / "a.npz", bytes_of_npz(d))) + ":x"}, 1, ["a.npz", "images"]),
    "two channels": ({"images": array("bad.npy", np.zeros((40, 2, 28, 28), np.uint8))}, 1, ["channel"]),
    "images too small": ({"images": array("bad.npy", np.zeros((40, 3, 3), np.uint8))}, 1, ["3"]),
    "no images": ({"images": array("bad.npy", PIXELS[:0])}, 1, ["bad.npy"]),
    # counts and values
    "fewer labels": ({"labels": array("bad.npy", CLASSES[:39])}, 1, ["39", "40", "bad.npy"]),
    "more labels": ({"labels": array("bad.npy", np.zeros(41, int))}, 1, ["41", "40", "bad.npy"]),
    "multi-hot labels": ({"labels": array("bad.npy", np.eye(10, dtype=np.uint8)[CLASSES])}, 1,
                         ["bad.npy", "10 numbers", "multi-hot"]),
    "label too large": ({"labels": array("bad.npy", changed(CLASSES, 17, 10))}, 1, ["bad.npy", "17", "10"]),
    "label -2": ({"labels": array("bad.npy", changed(CLASSES, 17, -2))}, 1, ["bad.npy", "17", "-2"]),
    "label 1.5": ({"labels": array("bad.npy", changed(CLASSES.astype(float), 17, 1.5))}, 1, ["bad.npy", "17", "1.5"]),
    "label a word": ({"labels": lambda d: str(write(d / "l.csv", b"c\n" + b"1\n" * 39 + b"cat\n")) + ":c"}, 1,
                     ["l.csv", "cat"]),
    "no such column": ({"labels": lambda d: str(write(d / "l.csv", b"class\n" + b"1\n" * 40)) + ":c"}, 1,
                       ["l.csv", "class"]),
    "too few names": ({"category-names": file("names.txt", b"a\nb\n")}, 1, ["names.txt", "2", "10"]),
    "NaN pixel": ({"images": array("bad.npy", changed(FLOATS, (3, 4, 5), np.nan))}, 1, ["bad.npy", "nan", "3"]),
    "infinite pixel": ({"images": array("bad.npy", changed(FLOATS, (3, 4, 5), np.inf))}, 1, ["bad.npy", "inf", "3"]),
    # models
    "tensor missing": ({"model": model(bn2__running_var=None)}, 1, ["bad.pth", "bn2.running_var"]),
    "tensor misshapen": ({"model": model(fc__weight=np.ones((10, 7), np.float32))}, 1,
                         ["bad.pth", "fc.weight", "7", "6"]),
    "tensor of other rank": ({"model": model(conv2__weight=np.ones((6, 36), np.float32))}, 1,
                             ["bad.pth", "conv2.weight"]),
    "NaN weight": ({"model": model(fc__weight=changed(WEIGHT, (2, 3), np.nan))}, 1, ["bad.pth", "fc.weight"]),
    "infinite weight": ({"model": model(fc__bias=np.full(10, -np.inf, np.float32))}, 1, ["bad.pth", "fc.bias"]),
    "negative variance": ({"model": model(bn1__running_var=np.full(4, -1, np.float32))}, 1,
                          ["bad.pth", "bn1.running_var"]),
    "another network": ({"model": lambda d: save(d / "bad.pth", {"layer1.0.conv1.weight": Entry(WEIGHT)})}, 1,
                        ["bad.pth", "conv1.weight"]),
    "images of another model": ({"model": GOLDEN / "color.pth"}, 1, ["3", "1", "channel"]),
    "whole module": ({"model": whole}, 1, ["bad.pth", "torch.save(model.state_dict()"]),
    "os.system": ({"model": model(pickle=calling("os", "system", "true"))}, 1, ["bad.pth", "os.system"]),
    "posix.system": ({"model": model(pickle=calling("posix", "system", "true"))}, 1, ["bad.pth", "posix.system"]),
    "eval": ({"model": model(pickle=calling("builtins", "eval", "1"))}, 1, ["bad.pth", "builtins.eval"]),
    "no tensors": ({"model": model(pickle=b"\x80\x02}.")}, 1, ["bad.pth"]),
    "deep pickle": ({"model": model(pickle=b"\x80\x02" + b"(" * 1_000_000 + b".")}, 1, ["bad.pth"]),
    "unknown opcode": ({"model": model(pickle=b"\x80\x02\xff.")}, 1, ["bad.pth", "ff"]),
    "storage of 2^62": ({"model": model(fc__weight=Entry(WEIGHT, numel=2**62))}, 1, ["bad.pth"]),
    "shape of 2^62": ({"model": model(fc__weight=Entry(WEIGHT, shape=(2**31, 2**31)))}, 1, ["bad.pth"]),
    "shape that overflows": ({"model": model(fc__weight=Entry(WEIGHT, shape=(2**32, 2**32)))}, 1, ["bad.pth"]),
    "negative shape": ({"model": model(fc__weight=Entry(WEIGHT, shape=(-10, -6)))}, 1, ["bad.pth"]),
    "stride past the end": ({"model": model(fc__weight=Entry(WEIGHT, stride=(7, 1)))}, 1, ["bad.pth", "fc.weight"]),
    "negative stride": ({"model": model(fc__weight=Entry(WEIGHT, stride=(-6, 1)))}, 1, ["bad.pth"]),
    "stride that overflows": ({"model": model(fc__weight=Entry(WEIGHT, stride=(2**62, 1)))}, 1, ["bad.pth"]),
    "offset past the end": ({"model": model(fc__weight=Entry(WEIGHT, offset=1))}, 1, ["bad.pth"]),
    "storage not there": ({"model": model(pickle=pickled({**network(), "zz": Entry(WEIGHT)}))}, 1, ["bad.pth"]),
    "wrong CRC": ({"model": flipped_crc}, 1, ["bad.pth", "crc"]),
    # absurd sizes of arrays
    "IDX of 2^32": ({"images": file("bad.idx", idx(PIXELS, count=2**32 - 1))}, 1, ["bad.idx"]),
    "npy of 2^60": ({"images": file("bad.npy", npy_header(
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**60}, 28, 28), }}"))}, 1, ["bad.npy"]),
    "npy that overflows": ({"images": file("bad.npy", npy_header(
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**32}, {2**32}, 28), }}"))}, 1, ["bad.npy"]),
    "npy negative": ({"images": file("bad.npy", npy_header(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-40, -28, 28), }"))}, 1, ["bad.npy"]),
    # one rank of two
    "damage that one rank reads": ({"images": late_damage}, 1, ["bad.gz"]),
    "NaN that one rank reads": ({"images": array("bad.npy", changed(FLOATS, 39, np.nan))}, 1, ["bad.npy", "39"]),
    "label that one rank reads": ({"labels": array("bad.npy", changed(CLASSES, 39, 99))}, 1, ["bad.npy", "39", "99"]),
    # the command line
    "unknown option": ({"colour": "red"}, 2, ["--colour"]),
    "not a number": ({"batch": "many"}, 2, ["--batch", "many"]),
    "negative batch": ({"batch": -1}, 2, ["--batch"]),
    "perplexity too large": ({"tsne": 2, "perplexity": 40}, 2, ["--perplexity 40", "40"]),
    "perplexity for the subset": ({"tsne": 2, "perplexity": 20, "tsne-samples": 20}, 2, ["--perplexity 20"]),
    "perplexity not a number": ({"tsne": 2, "perplexity": "nan"}, 2, ["--perplexity"]),
    "tsne 1": ({"tsne": 1}, 2, ["--tsne"]),
    "layer to embed": ({"embed": "conv9"}, 2, ["conv9", "conv1", "relu2", "gap", "logits"]),
    "layer of Grad-CAM": ({"attribution": "gradcam:conv9"}, 2, ["conv9", "conv1", "conv2"]),
    "Grad-CAM of a vector": ({"attribution": "gradcam:gap"}, 2, ["gap", "convolution"]),
    "layer of feature maps": ({"feature-maps": "conv9"}, 2, ["conv9", "conv1"]),
    "layer of filters": ({"filters": "relu1"}, 2, ["relu1"]),
    "unknown method": ({"attribution": "magic"}, 2, ["magic", "saliency"]),
    "method twice": ({"attribution": "saliency,saliency"}, 2, ["saliency"]),
    "samples past the end": ({"samples": "0:41"}, 2, ["0:41", "40"]),
    "maps past the end": ({"feature-maps": "conv1:0:41"}, 2, ["conv1:0:41"]),
    "no samples": ({"samples": "5:5"}, 2, ["5:5"]),
    "too many means": ({"mean": "1,2"}, 2, ["--mean"]),
    "std of zero": ({"std": "0"}, 2, ["--std"]),
    "layout": ({"layout": "WHCN"}, 2, ["WHCN"]),
    "too many components": ({"pca": 11}, 2, ["--pca 11", "10"]),
    "no model": ({"model": None}, 2, ["--model"]),
    "no output": ({"output": None}, 2, ["--output"]),
    # the output
    "folder missing": ({"output": "{}/no/r.nc"}, 1, ["no/r.nc"]),
    "output a folder": ({"output": folder_called("r.nc")}, 1, ["r.nc"]),
    "output in a file": ({"output": lambda d: write(d / "f", b"x") / "r.nc"}, 1, ["r.nc"]),
    "output a device": ({"output": "/dev/full"}, 1, ["/dev/full"]),
}

EMBED_CASES: dict[str, tuple[dict[str, Value], int, list[str]]] = {
    "matrix missing": ({"input": "{}/no.npy"}, 1, ["no.npy"]),
    "a vector": ({"input": array("bad.npy", MATRIX[:, 0])}, 1, ["bad.npy"]),
    "NaN": ({"input": array("bad.npy", changed(MATRIX, (39, 5), np.nan))}, 1, ["bad.npy", "39"]),
    "no columns": ({"input": array("bad.npy", MATRIX[:, :0])}, 1, ["bad.npy"]),
    "words": ({"input": array("bad.npy", np.array([["a", "b"]] * 40))}, 1, ["bad.npy"]),
    "perplexity": ({"perplexity": 40}, 2, ["--perplexity 40"]),
    "labels": ({"labels": array("l.npy", CLASSES[:7])}, 1, ["l.npy", "7", "40"]),
    "images": ({"images": array("i.npy", PIXELS[:7])}, 1, ["i.npy", "7", "40"]),
    "start of another length": ({"init": array("s.npy", MATRIX[:7, :2])}, 1, ["s.npy", "7", "40"]),
    "start of another width": ({"init": array("s.npy", MATRIX[:, :3])}, 1, ["s.npy", "3", "2"]),
    "start with NaN": ({"init": array("s.npy", changed(MATRIX[:, :2], 4, np.nan))}, 1, ["s.npy", "nan"]),
    "option of the other command": ({"model": MODEL}, 2, ["--model"]),
}


def fill(changes: dict[str, Value], defaults: dict[str, Value], folder: Path) -> list[object]:
    """Option words of a case; its files are made on the way."""
    words = []
    for option, value in (defaults | changes).items():
        if callable(value):
            value = value(folder)
        if value is not None:
            words += [f"--{option}", str(value).replace("{}", str(folder))]
    return words


def assert_refused(result: Run, folder: Path, before: set[Path], status: int, words: list[str]) -> None:
    shown = f"{result.command}\nstatus {result.status}\n" + "\n".join(result.lines)
    assert len(result.lines) == 1, shown
    line = result.lines[0]
    assert line.startswith("cnnscope: ") and len(line) < 600, shown
    missing = [w for w in words if w.lower() not in line.lower()]
    assert not missing, f"{missing} not in: {line}"
    assert result.status == status, shown
    assert result.afterlife < 5 and survivors(str(folder)) == [], shown
    assert set(folder.rglob("*")) == before, shown


def refuse(folder: Path, words: list[object], status: int, expected: list[str], *, ranks: int = RANKS,
           shell: str = "") -> None:
    before = set(folder.rglob("*"))
    assert_refused(run(*words, ranks=ranks, timeout=60, shell=shell), folder, before, status, expected)


def ranks_of(case: str) -> int:
    return RANKS if case in ON_RANKS else 1


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, dict[str, Value]]:
    """The options of the two jobs that work, by command."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, values in (("images", PIXELS), ("labels", CLASSES), ("matrix", MATRIX)):
        np.save(folder / f"{name}.npy", values)
    return {
        "run": {"model": MODEL, "images": folder / "images.npy", "labels": folder / "labels.npy", "tsne": 0,
                "output": "{}/r.nc"},
        "embed": {"input": folder / "matrix.npy", "perplexity": 10, "max-iter": 50, "output": "{}/r.nc"},
    }


@pytest.mark.parametrize("case", CASES)
def test_bad_input(inputs, tmp_path, case):
    changes, status, expected = CASES[case]
    refuse(tmp_path, [*fill(changes, inputs["run"], tmp_path), "--quiet"], status, expected, ranks=ranks_of(case))


@pytest.mark.parametrize("case", EMBED_CASES)
def test_bad_input_of_embed(inputs, tmp_path, case):
    changes, status, expected = EMBED_CASES[case]
    refuse(tmp_path, ["embed", *fill(changes, inputs["embed"], tmp_path), "--quiet"], status, expected,
           ranks=ranks_of(case))


def test_the_cases_on_ranks_are_cases():
    assert ON_RANKS <= CASES.keys() | EMBED_CASES.keys()


def test_the_jobs_of_the_cases_work(inputs, tmp_path):
    """Without a change: the cases fail for their own reason, and the crafted model is a model."""
    for command, options in inputs.items():
        words = ["embed"] if command == "embed" else []
        succeed(tmp_path / f"{command}.nc", *words, *fill({"output": None}, options, tmp_path), ranks=RANKS)
    crafted = fill({"output": None, "model": model()}, inputs["run"], tmp_path)
    succeed(tmp_path / "crafted.nc", *crafted, ranks=RANKS)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_one_rank_of_many_as_users_start_it(inputs, tmp_path, monkeypatch, ranks):
    """The last rank alone meets the damage; mpirun has its usual patience with ranks that should end, and looks for
    networks as it does for users."""
    for name in ("OMPI_MCA_odls_base_sigkill_timeout", "OMPI_MCA_pml", "OMPI_MCA_ess_singleton_isolated"):
        monkeypatch.delitem(ENVIRONMENT, name)
        monkeypatch.delenv(name, raising=False)
    before = {late_damage(tmp_path)}
    words = fill({"images": tmp_path / "bad.gz"}, inputs["run"], tmp_path)
    assert_refused(run(*words, "--quiet", ranks=ranks), tmp_path, before, 1, ["bad.gz"])


def test_words_that_are_no_options(inputs, tmp_path):
    refuse(tmp_path, [*fill({}, inputs["run"], tmp_path), "more"], 2, ["more"])
    refuse(tmp_path, ["explode", "--quiet"], 2, ["explode"])
    refuse(tmp_path, ["--output"], 2, ["--output"])


def test_an_existing_output_is_kept(inputs, tmp_path):
    (tmp_path / "r.nc").write_text("precious")
    refuse(tmp_path, [*fill({}, inputs["run"], tmp_path), "--quiet"], 1, ["r.nc", "--overwrite"])
    assert (tmp_path / "r.nc").read_text() == "precious"


def test_an_existing_output_survives_a_failed_overwrite(inputs, tmp_path):
    (tmp_path / "r.nc").write_text("precious")
    changes = {"images": array("bad.npy", changed(FLOATS, 39, np.nan))}
    refuse(tmp_path, [*fill(changes, inputs["run"], tmp_path), "--overwrite", "--quiet"], 1, ["bad.npy"])
    assert (tmp_path / "r.nc").read_text() == "precious"


def test_a_file_name_with_control_characters(inputs, tmp_path):
    refuse(tmp_path, [*fill({"model": "{}/no\nsuch\x1b[31m.pth"}, inputs["run"], tmp_path), "--quiet"], 1, ["no?such"])


def test_nobody_calls_what_the_pickle_names(inputs, tmp_path):
    """The command of the pickle leaves a mark wherever a pickle is run."""
    changes = {"model": model(pickle=calling("os", "system", f"touch {tmp_path}/made"))}
    refuse(tmp_path, [*fill(changes, inputs["run"], tmp_path), "--quiet"], 1, ["os.system"])
    assert not (tmp_path / "made").exists()


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small file system with the options given on tmp_path/disk; only root may."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk],
                                               capture_output=True).returncode != 0:
            pytest.skip("mounting a small file system needs root")
        return disk

    yield mount
    subprocess.run(["umount", disk], capture_output=True)


@pytest.mark.parametrize("size, ranks", [("4k", 2), ("32k", 3), ("128k", 3), ("128k", 4), ("160k", 2), ("192k", 1)])
def test_disk_full(inputs, mounted, size, ranks):
    """At any point, and whoever writes: MPI-IO itself hangs here, or loses rows without a word."""
    disk = mounted(f"size={size}")
    refuse(disk, [*fill({}, inputs["run"], disk), "--quiet"], 1, ["r.nc"], ranks=ranks)


def test_file_size_limit(tmp_path):
    """ulimit -f of 16 MiB; the result would have 50."""
    words = ["--model", MODEL, "--images", IMAGES, "--tsne", 0, "--output", tmp_path / "r.nc", "--quiet"]
    refuse(tmp_path, words, 1, ["r.nc"], shell=f"ulimit -f {16 << 11};")


# call, file, error, from which such call of a rank on; words of the line. The inputs lie in a folder called inputs.
FAULTS = {
    "quota at once": ("write", "r.nc", errno.EDQUOT, 1, ["r.nc"]),
    "quota while writing": ("write", "r.nc", errno.EDQUOT, 4, ["r.nc"]),
    "disk error while writing": ("write", "r.nc", errno.EIO, 2, ["r.nc"]),
    "server restarted while writing": ("write", "r.nc", errno.ESTALE, 2, ["r.nc"]),
    "disk error while closing": ("fsync", "r.nc", errno.EIO, 1, ["r.nc", "error"]),
    "no renaming": ("rename", "r.nc", errno.EACCES, 1, ["r.nc", "renamed"]),
    "disk error in the model": ("read", "model.pth", errno.EIO, 1, ["model.pth", "error"]),
    "disk error in the images": ("read", "images.npy", errno.EIO, 4, ["images.npy", "error"]),
    "server restarted under the images": ("read", "images.npy", errno.ESTALE, 4, ["images.npy", "stale"]),
    "images cut while they are read": ("read", "images.npy", 0, 4, ["images.npy", "truncated"]),
    "labels cut while they are read": ("read", "labels.npy", 0, 3, ["labels.npy"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_disks(inputs, tmp_path, fault):
    """Of the calls below the program (faults.c): one line, and what was there before stays."""
    *how, words = FAULTS[fault]
    (tmp_path / "r.nc").write_text("precious")
    library = BINARY.parent / "libfaults.so"
    refuse(tmp_path, [*fill({}, inputs["run"], tmp_path), "--overwrite", "--quiet"], 1, words,
           shell=f"export LD_PRELOAD={library} FAULT={':'.join(map(str, how))};")
    assert (tmp_path / "r.nc").read_text() == "precious"


def test_read_only_folder(inputs, mounted, tmp_path):
    disk = tmp_path / "disk"
    disk.chmod(0o500)
    if os.access(disk, os.W_OK):
        disk = mounted("size=1m,ro")
    refuse(disk, [*fill({}, inputs["run"], disk), "--quiet"], 1, ["r.nc"])


def test_unreadable_file(inputs, tmp_path):
    path = write(tmp_path / "secret.pth", MODEL.read_bytes())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")
    refuse(tmp_path, [*fill({"model": path}, inputs["run"], tmp_path), "--quiet"], 1, ["secret.pth", "permission"])


def test_inspect_needs_no_mpi_and_refuses_in_one_line(tmp_path):
    bad = write(tmp_path / "bad.pth", b"PK\3\4 no zip")
    for path, words in ((bad, ["bad.pth"]), (tmp_path / "no.pth", ["no.pth"])):
        before = set(tmp_path.rglob("*"))
        assert_refused(run("inspect", "--model", path), tmp_path, before, 1, words)
