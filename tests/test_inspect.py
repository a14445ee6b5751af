"""`cnnscope inspect`, and through it every reason for which a .pth is not the notebook's network.

No MPI: the program is started as it is. The files are made by crafted.py, without PyTorch.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from crafted import Entry, network, pickled, safetensors, save, text
from program import BINARY, DATA, GOLDEN

PTH = GOLDEN / "pth"


def inspect(path: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BINARY, "inspect", "--model", path, *options], capture_output=True, text=True, timeout=60,
                          check=False)


def refusal(path: Path) -> tuple[str, str]:
    """Stdout and the one line of stderr of a file that cannot be run."""
    done = inspect(path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"cnnscope: {path}: ")
    return done.stdout, lines[0]


def words(line: str) -> list[str]:
    return line.split()


@pytest.mark.parametrize(("name", "form"), [("model.pth", "zip"), ("model_legacy.pth", "legacy")])
def test_shipped_model(name: str, form: str) -> None:
    done = inspect(DATA / name)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert f"format  torch.save, {form}" in lines
    rows = [words(line) for line in lines]
    assert ["conv2.weight", "float32", "(32,", "16,", "3,", "3)"] in rows
    assert ["bn1.num_batches_tracked", "int64", "()"] in rows
    assert "16 tensors, 5324 elements" in lines
    layers = rows[rows.index(next(r for r in rows if r[:1] == ["layer"])) + 1 :]
    assert {r.pop(0) for r in layers} == {"o"}
    assert [r[0] for r in layers] == "input conv1 bn1 relu1 pool1 conv2 bn2 relu2 pool2 gap logits".split()
    assert layers[5] == ["conv2", "Conv", "3", "x", "3", "(32,", "H/2,", "W/2)", "pool1"]
    assert layers[9] == ["gap", "GlobalAveragePool", "(32,", "1,", "1)", "pool2"]
    assert layers[10] == ["logits", "Gemm", "(10)", "gap"]


def test_sizes_come_from_the_tensors() -> None:
    out = inspect(PTH / "cnn_float16.pth").stdout
    rows = [words(line) for line in out.splitlines()]
    assert ["o", "conv1", "Conv", "3", "x", "5", "(2,", "H,", "W)", "input"] in rows
    assert ["o", "conv2", "Conv", "1", "x", "1", "(3,", "H/2,", "W/2)", "pool1"] in rows
    assert ["fc.weight", "float16", "(5,", "3)"] in rows


def test_wrapped_network_can_be_run() -> None:
    out = inspect(PTH / "cnn_float64.pth").stdout
    assert "under   key state_dict of a checkpoint\nprefix  module., taken off every name\n" in out
    assert out.splitlines()[-1].split() == ["o", "logits", "Gemm", "(2)", "gap"]


def test_tensors_of_another_network_are_printed_before_it_is_refused() -> None:
    out, line = refusal(PTH / "checkpoint.pth")
    assert ["conv1.weight", "float32", "(2,", "1,", "3,", "3)"] in [words(row) for row in out.splitlines()]
    assert "argparse.Namespace (byte 52)" in out
    assert "tensor conv2.weight is missing" in line
    assert "notebook's CNN" in line


def test_safetensors() -> None:
    done = inspect(GOLDEN / "safetensors" / "cnn_float64.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "format  safetensors" in lines and "prefix  module., taken off every name" in lines
    assert ["conv2.weight", "float64", "(1,", "3,", "3,", "1)"] in map(words, lines)
    layers = inspect(PTH / "cnn_float64.pth").stdout.split(" layer ")[1]
    assert done.stdout.split(" layer ")[1] == layers


@pytest.mark.parametrize(("changes", "header", "message"), [
    ({"fc__weight": None}, {}, "fc.weight is missing"),
    ({}, {"conv1.weight": {"dtype": "F8_E4M3", "shape": [144], "data_offsets": [0, 144]}}, "conv1.weight is of a type"),
    ({"fc__bias": np.full(10, np.nan)}, {}, "fc.bias holds nan at (0)"),
    ({}, {"fc.bias": None}, "expected '{'"),
    ({"a\x1b": np.ones(1)}, {}, "the name of a tensor"),
])
def test_bad_safetensors(tmp_path: Path, changes: dict, header: dict, message: str) -> None:
    assert message in refusal(safetensors(tmp_path / "bad.safetensors", network(**changes), **header))[1]


# ---- The graph -------------------------------------------------------------------------------------------------------


def draw(name: str) -> tuple[list[str], list[list[str]]]:
    """The columns at the left of each layer's line, and the words behind them."""
    text = inspect(GOLDEN / "onnx" / f"{name}.onnx").stdout
    head, *lines = text[text.index(" layer ") - 40 :].split("\n\n")[-1].splitlines()
    width = head.index("layer")
    return [line[:width].rstrip() for line in lines], [line[width:].split() for line in lines]


def test_drawing_of_a_residual_network() -> None:
    rails, rows = draw("resnet")
    names = [row[0] for row in rows]
    first = names.index("maxpool")
    assert rails[first : first + 8] == ["o", "+-o", "| o", "| o", "| o", "| o", "o-'", "o"]
    both = names.index("layer2.0.downsample.0")  # the block's other branch
    assert rails[both - 1 : both + 3] == ["| o", "o |", "o |", "o-'"]
    assert rows[both + 2] == ["layer2.0", "Add", "(16,", "5,", "5)", "layer2.0.bn2", "layer2.0.downsample.1"]


def test_drawing_of_an_inception_block() -> None:
    rails, rows = draw("googlenet")
    names = [row[0] for row in rows]
    assert [rails[names.index(name)] for name in ("stem.1", "one.0.0", "one.1.0.0", "one.2.0.0", "one.3.0", "Concat")] \
        == ["o", "+-o", "+-|-o", "+-|-|-o", "o | | |", "o-'-'-'"]


@pytest.mark.parametrize("name", ["googlenet", "densenet"])
def test_dot(tmp_path: Path, name: str) -> None:
    """Every layer is a node with name, operation and shape; every value read is an edge; Graphviz takes it, if here."""
    model, path = GOLDEN / "onnx" / f"{name}.onnx", tmp_path / "graph.dot"
    done = inspect(model, "--dot", path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", inspect(model).stdout)
    text = path.read_text()
    labels = dict(re.findall(r'^  (n\d+) \[fillcolor="#\w+", label="(.*?)"\];$', text, re.M))
    edges = [(labels[a].split("\\n")[0], labels[b].split("\\n")[0]) for a, b in re.findall(r"(n\d+) -> (n\d+);", text)]
    rows = draw(name)[1]
    shape_at = [next(i for i, word in enumerate(row) if word.startswith("(")) for row in rows]
    shape_end = [next(i for i, word in enumerate(row) if word.endswith(")")) + 1 for row in rows]
    assert list(labels.values()) == [
        f"{row[0]}\\n{' '.join(row[1:at])}\\n{' '.join(row[at:end])}" for row, at, end in zip(rows, shape_at, shape_end)]
    assert edges == [(read, row[0]) for row, end in zip(rows, shape_end) for read in row[end:]]
    if dot := shutil.which("dot"):
        drawn = subprocess.run([dot, "-Tplain", path], capture_output=True, text=True, timeout=60, check=True)
        assert drawn.stderr == "" and drawn.stdout.count("\nnode ") == len(rows)


def test_dot_of_odd_names(tmp_path: Path) -> None:
    model, path = tmp_path / "odd.onnx", tmp_path / "graph.dot"
    model.write_bytes((GOLDEN / "onnx" / "googlenet.onnx").read_bytes().replace(b"one.0.0.weight", b'o"e\\0\n0.weight'))
    assert inspect(model, "--dot", path).returncode == 0
    assert r'label="o_e_0_0\nConv 1 x 1' in path.read_text()


def test_dot_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "graph.dot"
    path.write_text("precious")
    for target, message in ((path, "exists already"), (tmp_path / "no" / "graph.dot", "cannot be written")):
        done = inspect(DATA / "model.pth", "--dot", target)
        assert done.returncode == 1 and done.stderr.startswith(f"cnnscope: {target}: ") and message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert path.read_text() == "precious"
    assert inspect(DATA / "model.pth", "--dot", path, "--overwrite").returncode == 0
    assert path.read_text().startswith("digraph") and "conv2\\nConv 3 x 3\\n(32, H/2, W/2)" in path.read_text()
    done = inspect(DATA / "model.pth", "--dot", "/dev/full", "--overwrite")
    assert done.returncode == 1 and done.stderr.startswith("cnnscope: /dev/full: cannot be written")


def test_dot_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    path, words = tmp_path / "graph.dot", [BINARY, "inspect", "--model", GOLDEN / "onnx" / "googlenet.onnx", "--dot"]
    path.write_text("precious")
    for options in ([path, "--overwrite"], [tmp_path / "new.dot"]):
        done = subprocess.run(["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", *words, *options], capture_output=True, text=True)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith(f"cnnscope: {options[0]}: cannot be written: File too large")
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "precious"


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


REFUSED = {
    "no conv1": ({"conv1__weight": None}, "conv1.weight is missing"),
    "no scale of bn1": ({"bn1__weight": None}, "bn1.weight is missing"),
    "no shift of bn2": ({"bn2__bias": None}, "bn2.bias is missing"),
    "no mean": ({"bn1__running_mean": None}, "bn1.running_mean is missing"),
    "no fc": ({"fc__weight": None}, "fc.weight is missing"),
    "a tensor too many": ({"conv3__weight": ones(2, 2)}, "conv3.weight has no place"),
    "a part too many": ({"fc__running_mean": ones(2)}, "fc.running_mean has no place"),
    "channels": ({"conv2__weight": ones(6, 5, 3, 3)}, "conv2.weight has shape (6, 5, 3, 3), expected (any, 4, any, any)"),
    "rank": ({"conv1__weight": ones(4, 3, 3)}, "conv1.weight has shape (4, 3, 3), expected (any, any, any, any)"),
    "rank of fc": ({"fc__weight": ones(10, 6, 1)}, "fc.weight has shape (10, 6, 1), expected (any, 6)"),
    "norm": ({"bn2__running_var": ones(5)}, "bn2.running_var has shape (5), expected (6)"),
    "bias": ({"conv1__bias": ones(5)}, "conv1.bias has shape (5), expected (4)"),
    "classes": ({"fc__bias": ones(9)}, "fc.bias has shape (9), expected (10)"),
    "no classes": ({"fc__weight": ones(0, 6), "fc__bias": None}, "fc.weight has shape (0, 6), expected (any, 6)"),
    "even kernel": ({"conv2__weight": ones(6, 4, 3, 2)}, "conv2.weight has a kernel of 3 x 2, expected odd sizes"),
    "NaN": ({"conv2__weight": np.where(np.arange(216).reshape(6, 4, 3, 3) == 100, np.nan, 1)},
            "conv2.weight holds nan at (2, 3, 0, 1)"),
    "infinity": ({"bn1__running_mean": np.array([0, np.inf, 0, 0])}, "bn1.running_mean holds inf at (1)"),
    "variance": ({"bn1__running_var": np.array([0, 1, -2, 0])}, "bn1.running_var holds -2 at (2)"),
    "scale": ({"bn1__running_var": np.zeros(4), "bn1__weight": np.full(4, 3e38), "bn1__running_mean": np.zeros(4)},
              "channel 0 of bn1"),
    "shift": ({"bn1__weight": np.full(4, 1e38), "bn1__running_mean": np.full(4, 100)}, "channel 0 of bn1"),
    "storage": ({"fc__weight": Entry(ones(10, 6), numel=61)}, "data/12 holds 240 bytes, expected 244"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_not_the_network(tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    assert message in refusal(save(tmp_path / "bad.pth", network(**changes)))[1]


def test_layers_may_be_without_bias(tmp_path: Path) -> None:
    without = network(conv1__bias=None, conv2__bias=None, fc__bias=None, bn1__weight=None, bn1__bias=None)
    assert inspect(save(tmp_path / "good.pth", without)).returncode == 0


def test_tensor_made_by_a_call(tmp_path: Path) -> None:
    """The state_dict needs it: refused by name and byte offset."""
    good = network()
    pickle = pickled(good).replace(b"ctorch._utils\n_rebuild_tensor_v2\n", b"cevil\nbuild\n", 1)
    offset = pickle.index(b"cevil")
    line = refusal(save(tmp_path / "bad.pth", good, pickle))[1]
    assert f"conv1.weight is made by evil.build (byte {offset} of data.pkl)" in line


def test_call_that_nobody_needs_is_not_run(tmp_path: Path) -> None:
    """Passed over, unless it is one that runs commands in Python (test_malicious.py)."""
    good = network()
    call = b"cargparse\nNamespace\n)R"
    pickle = b"\x80\x02}(" + text("state_dict") + pickled(good)[2:-1] + text("other") + call + b"u."
    done = inspect(save(tmp_path / "good.pth", good, pickle))
    assert done.returncode == 0
    assert f"skipped objects of argparse.Namespace (byte {pickle.index(b'cargparse')})" in done.stdout


def test_bomb(tmp_path: Path) -> None:
    """300 MB of zeros in a third of a megabyte."""
    path = save(tmp_path / "bad.pth", {})
    huge = network(fc__weight=Entry(ones(10, 6), numel=75_000_000))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", pickled(huge))
        for number, (name, entry) in enumerate(huge.items()):
            zeros = name == "fc.weight"
            file.writestr(f"m/data/{number}", bytes(300_000_000) if zeros else entry.values.tobytes())
    assert path.stat().st_size < 400_000
    assert "more than a file of" in refusal(path)[1]


def test_bytes_after_the_pickle(tmp_path: Path) -> None:
    path = save(tmp_path / "bad.pth", network(), pickled(network()) + b"more")
    assert "has 4 bytes after the end" in refusal(path)[1]


@pytest.mark.parametrize("order", ["big", "middle"])
def test_byte_order(tmp_path: Path, order: str) -> None:
    path = tmp_path / "bad.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", pickled(network()))
        file.writestr("m/byteorder", order)
    assert f"byteorder is {order}" in refusal(path)[1]


@pytest.mark.parametrize(("entries", "message"), [
    (["a/data.pkl", "b/data.pkl"], "expected one data.pkl"), (["a/other"], "without data.pkl"),
    (["data.pkl"], "data/0 is missing"), (["m/data.pkl", "m/constants.pkl"], "TorchScript"),
])
def test_other_zips(tmp_path: Path, entries: list[str], message: str) -> None:
    path = tmp_path / "bad.pth"
    with zipfile.ZipFile(path, "w") as file:
        for name in entries:
            file.writestr(name, pickled(network()))
    assert message in refusal(path)[1]


PEAK = """import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)  # Linux counts in KiB
"""


def peak_bytes(path: Path, expected: int = 1) -> int:
    """The most memory that inspecting a file took. Started by a small process: a child's peak begins with its parent's."""
    command = [sys.executable, "-S", "-c", PEAK, BINARY, "inspect", "--model", path]
    status, peak = map(int, subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split())
    assert status == expected
    return peak


@pytest.mark.parametrize("opcode", [b"N", b")", b"K\1", b"(", b"2", b"X\1\0\0\0aq\0"])
def test_memory_is_bounded(tmp_path: Path, opcode: bytes) -> None:
    """A pickle with a value in every byte takes at most 3 times the file and 64 MiB."""
    empty = tmp_path / "empty.pth"
    empty.write_bytes(b"\x80\x02N.")
    hostile = save(tmp_path / "bad.pth", network(), b"\x80\x02N" + opcode * (30_000_000 // len(opcode)) + b".")
    assert peak_bytes(hostile) - peak_bytes(empty) <= 3 * hostile.stat().st_size + 64 * 2**20


def test_memory_of_a_large_network(tmp_path: Path) -> None:
    """Weights in PyTorch's channels_last order, which want a copy that is in order before they are made into layers."""
    empty = tmp_path / "empty.pth"
    empty.write_bytes(b"\x80\x02N.")
    conv2 = Entry(np.ones((3000, 1000, 3, 3), np.float32), stride=(9000, 1, 3000, 1000))
    vectors = {f"bn2__{part}": ones(3000) for part in ("weight", "bias", "running_mean", "running_var")}
    vectors |= {f"bn1__{part}": ones(1000) for part in ("weight", "bias", "running_mean", "running_var")}
    path = save(tmp_path / "large.pth", network(conv1__weight=ones(1000, 1, 3, 3), conv1__bias=None, conv2__weight=conv2,
                                                conv2__bias=None, fc__weight=ones(10, 3000), **vectors))
    assert peak_bytes(path, 0) - peak_bytes(empty) <= 3 * path.stat().st_size + 64 * 2**20
