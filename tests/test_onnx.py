"""Networks from .onnx files: against PyTorch in double precision (golden/make_onnx.py), over ranks, and files that are
wrong. Files of the last kind are made here byte by byte, as protobuf's wire format is short to write."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from program import BINARY, GOLDEN, MODEL, relative_error, relative_errors, raw, read, run, succeed, values

FOLDER = GOLDEN / "onnx"
NAMES = sorted(p.stem for p in FOLDER.glob("*.onnx"))
PIXELS = ("--scale", "0.015625", "--mean", "2")
QUICK = ("--pca", "0", "--tsne", "0", "--filters", "none", "--feature-maps", "none")

pytestmark = pytest.mark.skipif(b"built without ONNX" in BINARY.read_bytes(), reason="built without protobuf-c")


def job(folder: Path, name: str, *more: object, ranks: int = 1) -> dict[str, np.ndarray]:
    return values(succeed(folder / f"{name}_{ranks}.nc", "--model", FOLDER / f"{name}.onnx", "--images",
                          f"{FOLDER / name}.npz:images", *PIXELS, *(more or QUICK), ranks=ranks))


@pytest.mark.parametrize("name", NAMES)
def test_architecture_as_in_pytorch(tmp_path: Path, name: str) -> None:
    result, golden = job(tmp_path, name), np.load(FOLDER / f"{name}.npz")
    assert relative_error(result["logits"], golden["logits"]) < 2e-5
    assert (result["prediction"] == golden["logits"].argmax(1)).all()
    assert relative_errors(raw(result, "saliency"), golden["saliency"]).max() < 5e-4


def test_notebook_cnn_equals_pth(tmp_path: Path) -> None:
    images, scaling = ("--images", GOLDEN / "color_images.npy"), ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.3,0.25")
    layers = ("--embed", "logits,pool1", "--pca", "2", "--tsne", "0", "--attribution", "saliency,gradcam:conv2",
              "--feature-maps", "relu2")
    pth, onnx = (values(succeed(tmp_path / f"{i}.nc", "--model", model, *images, *scaling, *layers))
                 for i, model in enumerate((GOLDEN / "color.pth", FOLDER / "notebook.onnx")))
    assert pth.keys() == onnx.keys()
    for name in pth:
        assert np.array_equal(pth[name].reshape(-1), onnx[name].reshape(-1)), name


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v3"])
def test_same_bits_for_any_ranks_and_batches(tmp_path: Path, name: str) -> None:
    images = np.load(FOLDER / f"{name}.npz")["images"]
    np.save(tmp_path / "images.npy", np.concatenate([np.roll(images, i, 3) for i in range(4)]))
    results = [values(succeed(tmp_path / f"{ranks}_{batch}.nc", "--model", FOLDER / f"{name}.onnx", "--images",
                              tmp_path / "images.npy", *PIXELS, "--batch", batch, "--perplexity", "3", "--max-iter",
                              "60", "--exaggeration-iter", "20", "--attribution", "saliency,gradcam", ranks=ranks))
               for ranks, batch in ((1, 8), (2, 2), (3, 1), (5, 5))]
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for variable, array in results[0].items():
            assert np.array_equal(array, other[variable]), variable


def test_logits_node_and_layers(tmp_path: Path) -> None:
    """A hidden layer as the output; a layer is called after its weight."""
    result = job(tmp_path, "mlp", "--logits-node", "/hidden/Gemm", *QUICK)
    assert result["logits"].shape == (3, 30)
    whole = job(tmp_path, "mlp", *QUICK[:4], "--embed", "hidden,logits", "--overwrite")
    assert np.array_equal(whole["hidden"], result["logits"])
    attributes = read(tmp_path / "mlp_1.nc")[1]
    assert len(attributes["model_sha256"]) == 64


def test_inspect() -> None:
    text = run("inspect", "--model", FOLDER / "resnet.onnx").stdout
    for word in ("opset 17", "layer1.0.conv1", "GlobalAveragePool", "logits", "(3, 40, 40)"):
        assert word in text, text


# ---- Files written here ----------------------------------------------------------------------------------------------


def number(value: int) -> bytes:
    value &= 2**64 - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(index: int, value: int | bytes | str | float) -> bytes:
    if isinstance(value, int):
        return number(index << 3) + number(value)
    if isinstance(value, float):
        return number(index << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return number(index << 3 | 2) + number(len(value)) + value


def tensor(name: str, array: np.ndarray, dims: tuple[int, ...] | None = None, kind: int | None = None,
           typed: bool = False, external: dict[str, object] | None = None) -> bytes:
    kinds = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "float16": 10, "float64": 11}
    out = b"".join(field(1, d) for d in (array.shape if dims is None else dims))
    out += field(2, kinds[str(array.dtype)] if kind is None else kind) + field(8, name)
    if external is not None:
        return out + b"".join(field(13, field(1, k) + field(2, str(v))) for k, v in external.items()) + field(14, 1)
    if typed and array.dtype == np.float32:
        return out + field(4, array.tobytes())
    if typed:
        bits = array.view(np.uint16) if array.dtype == np.float16 else array
        index = {"float16": 5, "int32": 5, "int64": 7, "float64": 10}[str(array.dtype)]
        packed = array.tobytes() if index == 10 else b"".join(number(int(v)) for v in bits.reshape(-1))
        return out + field(index, packed)
    return out + field(9, array.tobytes())


def attribute(name: str, value: int | float | list[int] | str) -> bytes:
    if isinstance(value, list):
        return field(5, field(1, name) + b"".join(field(8, v) for v in value) + field(20, 7))
    index, kind = {int: (3, 2), float: (2, 1), str: (4, 3)}[type(value)]
    return field(5, field(1, name) + field(index, value) + field(20, kind))


def node(op: str, inputs: list[str], outputs: list[str], name: str = "", domain: str = "", **attributes) -> bytes:
    out = b"".join(field(1, i) for i in inputs) + b"".join(field(2, o) for o in outputs)
    out += field(3, name) + field(4, op) + b"".join(attribute(k, v) for k, v in attributes.items())
    return out + (field(7, domain) if domain else b"")


def value(name: str, shape: tuple[int | str, ...]) -> bytes:
    dims = b"".join(field(1, field(1, d) if isinstance(d, int) else field(2, d)) for d in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def model(nodes: list[bytes], tensors: list[bytes], shape: tuple[int | str, ...] = ("n", 1, 4, 4), opset: int = 13,
          outputs: tuple[str, ...] = ("y",)) -> bytes:
    graph = b"".join(field(1, n) for n in nodes) + b"".join(field(5, t) for t in tensors)
    graph += field(11, value("x", shape)) + b"".join(field(12, value(o, ("n", "k"))) for o in outputs)
    return field(1, 7) + field(2, "tests") + field(8, field(2, opset)) + field(7, graph)


RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((3, 16)).astype(np.float32)
IMAGES = RNG.standard_normal((5, 1, 4, 4)).astype(np.float32)
LINEAR = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "fc.weight"], ["y"], "fc_node", transB=1)]


def logits(folder: Path, data: bytes, *more: object) -> np.ndarray:
    (folder / "m.onnx").write_bytes(data)
    np.save(folder / "images.npy", IMAGES)
    return values(succeed(folder / "r.nc", "--model", folder / "m.onnx", "--images", folder / "images.npy", *QUICK,
                          "--attribution", "none", "--overwrite", *more))["logits"]


def refusal(folder: Path, data: bytes, *more: object) -> str:
    (folder / "bad.onnx").write_bytes(data)
    np.save(folder / "images.npy", IMAGES)
    result = run("--model", folder / "bad.onnx", "--images", folder / "images.npy", "--output", folder / "bad.nc",
                 *QUICK, *more, shell="ulimit -v 4000000;")
    assert result.status in (1, 2), (result.status, result.lines)
    assert len(result.lines) == 1 and result.lines[0].startswith("cnnscope: "), result.lines
    return result.lines[0]


EXPECTED = IMAGES.reshape(5, 16) @ WEIGHT.T


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_types_of_weights(tmp_path: Path, dtype: str, typed: bool) -> None:
    if dtype == "bfloat16":
        array = (WEIGHT.view(np.uint32) >> 16).astype(np.uint16)
        exact = (array.astype(np.uint32) << 16).view(np.float32)
        stored = tensor("fc.weight", array.view(np.float16), kind=16, typed=typed)
    else:
        array = WEIGHT.astype(dtype)
        exact = array.astype(np.float32)
        stored = tensor("fc.weight", array, typed=typed)
    got = logits(tmp_path, model(LINEAR, [stored]))
    assert relative_error(got, IMAGES.reshape(5, 16) @ exact.T) < 1e-6


def test_weights_in_an_external_file(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"12345678" + WEIGHT.tobytes())
    place = {"location": "w.bin", "offset": 8, "length": WEIGHT.nbytes}
    got = logits(tmp_path, model(LINEAR, [tensor("fc.weight", WEIGHT, external=place)]))
    assert relative_error(got, EXPECTED) < 1e-6


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize("batch", ["n", 1, 5])
def test_shape_chain(tmp_path: Path, opset: int, batch: int | str) -> None:
    """x.view(x.size(0), -1) as PyTorch's exporter writes it."""
    one = tensor("axes", np.array([0], np.int64))
    unsqueeze = (node("Unsqueeze", ["s"], ["u"], axes=[0]) if opset < 13 else node("Unsqueeze", ["s", "axes"], ["u"]))
    nodes = [node("Shape", ["x"], ["shape"]), node("Gather", ["shape", "zero"], ["s"], axis=0), unsqueeze,
             node("Concat", ["u", "rest"], ["target"], axis=0), node("Reshape", ["x", "target"], ["f"]), LINEAR[1]]
    tensors = [tensor("zero", np.array(0, np.int64)), tensor("rest", np.array([-1], np.int64)), one,
               tensor("fc.weight", WEIGHT)]
    got = logits(tmp_path, model(nodes, tensors, (batch, 1, 4, 4), opset))
    assert relative_error(got, EXPECTED) < 1e-6


def test_softmax_at_the_end_is_taken_off(tmp_path: Path) -> None:
    nodes = [LINEAR[0], node("Gemm", ["f", "fc.weight"], ["z"], transB=1), node("Softmax", ["z"], ["y"], axis=1)]
    assert relative_error(logits(tmp_path, model(nodes, [tensor("fc.weight", WEIGHT)])), EXPECTED) < 1e-6


def test_one_output_means_two_categories(tmp_path: Path) -> None:
    nodes = [LINEAR[0], node("Gemm", ["f", "fc.weight"], ["z"], transB=1), node("Sigmoid", ["z"], ["y"])]
    got = logits(tmp_path, model(nodes, [tensor("fc.weight", WEIGHT[:1])]))
    assert relative_error(got, EXPECTED[:, :1]) < 1e-6
    assert (values(tmp_path / "r.nc")["prediction"] == (EXPECTED[:, 0] > 0)).all()


MATMUL = [node("Flatten", ["x"], ["f"]), node("MatMul", ["f", "w"], ["y"])]
IMAGE_NUMBERS = [node("Shape", ["x"], ["shape"]), node("Gather", ["shape", "zero"], ["n"]),
                 node("Range", ["zero", "n", "step"], ["r"])]
BAD = {
    "unsupported": (model([node("GridSample", ["x", "x"], ["a"]), node("Det", ["a"], ["b"]), node("Det", ["b"], ["c"]),
                           node("Magic", ["c"], ["y"], domain="my.own")], []),
                    "GridSample (1), Det (2), my.own.Magic (1)"),
    "circle": (model([node("Add", ["x", "b"], ["a"]), node("Add", ["a", "x"], ["b"]), node("Relu", ["b"], ["y"])], []),
               "circle"),
    "undefined": (model([node("Relu", ["nothing"], ["y"])], []), "no node before it makes"),
    "twice": (model([node("Relu", ["x"], ["y"]), node("Relu", ["x"], ["y"])], []), "two values are called y"),
    "opset": (model(LINEAR, [tensor("fc.weight", WEIGHT)], opset=22), "opset 22, expected 7 to 21"),
    "batch": (model([node("Reshape", ["x", "t"], ["y"])], [tensor("t", np.array([1, -1], np.int64))], (2, 1, 4, 4)),
              "batch"),
    "transposed": (model([node("Transpose", ["x"], ["y"], perm=[1, 0, 2, 3])], []), "batch"),
    "dense": (model([node("Relu", ["x"], ["y"])], []), "one vector of categories"),
    "size": (model(LINEAR, [tensor("fc.weight", WEIGHT)], ("n", 3, 4, 4)), "(N, 3, 4, 4), found (1, 4, 4)"),
    "dims": (model(LINEAR, [tensor("fc.weight", WEIGHT, dims=(2**40, 2**40))]), "damaged"),
    "negative": (model(LINEAR, [tensor("fc.weight", WEIGHT, dims=(-3, -16))]), "damaged"),
    "short": (model(LINEAR, [tensor("fc.weight", WEIGHT, dims=(4, 16))]), "192"),
    "text": (model(LINEAR, [tensor("fc.weight", WEIGHT, kind=8)]), "type 8"),
    "nan": (model(LINEAR, [tensor("fc.weight", WEIGHT * np.float32("nan"))]), "NaN"),
    "huge_resize": (model([node("Upsample", ["x", "s"], ["y"])],
                          [tensor("s", np.array([1, 1, 1e5, 1e5], np.float32))], opset=9), "2^31"),
    "huge_constant": (model([node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])],
                            [tensor("s", np.array([10**6, 10**6], np.int64))]), "no more memory than the file"),
    "doubling": (model([node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(40)]
                       + [node("Add", ["x", "c40"], ["y"])], [tensor("c0", np.ones(8, np.float32))]),
                 "no more memory than the file"),
    "weight_computed": (model([node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "f"], ["y"])], []),
                        "computed from the image"),
    "no_input": (model([node("Constant", [], ["y"], value_float=1.0)], []), "does not depend on the image"),
    "outputs": (model([node("Relu", ["x"], ["a"]), node("Relu", ["x"], ["b"])], [], outputs=("a", "b")),
                "2 outputs (a, b)"),
    "groups": (model([node("Conv", ["x", "w"], ["y"], group=7)], [tensor("w", np.ones((2, 1, 3, 3), np.float32))]),
               "groups"),
    "stride": (model([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[0, 1])], []), "strides"),
    "kernel": (model([node("MaxPool", ["x"], ["y"], kernel_shape=[9, 9])], []), ""),
    "axis": (model([node("Softmax", ["x"], ["a"], axis=9), node("Relu", ["a"], ["y"])], []), "axis 9"),
    "split": (model([node("Split", ["x"], ["y", "z"], axis=2, split=[3, 3])], [], opset=12), "fit"),
    "slice": (model([node("Slice", ["x", "a", "b", "c"], ["y"])],
                    [tensor("a", np.array([1], np.int64)), tensor("b", np.array([2], np.int64)),
                     tensor("c", np.array([0], np.int64))]), "batch"),
    "training": (model([node("BatchNormalization", ["x"] + ["s"] * 4, ["y"], training_mode=1)],
                       [tensor("s", np.ones(1, np.float32))], opset=14), "training"),
    "flat": (model([node("Relu", ["x"], ["a"]), node("Reshape", ["a", "all"], ["b"]), node("Relu", ["b"], ["y"])],
                   [tensor("all", np.array([-1], np.int64))]), "joins the batch to other dimensions"),
    "across_images": (model([node("Relu", ["x"], ["a"]), node("Reshape", ["a", "all"], ["b"]),
                             node("Gather", ["b", "places"], ["y"])],
                            [tensor("all", np.array([-1], np.int64)),
                             tensor("places", np.arange(16).reshape(1, 16))]), "picks places across the batch"),
    "by_the_batch": (model([*IMAGE_NUMBERS, node("Concat", ["r", "one"], ["s"], axis=0),
                            node("Reshape", ["x", "s"], ["y"])],
                           [tensor("zero", np.array(0)), tensor("step", np.array(1)), tensor("one", np.array([1]))]),
                     "counts by the batch"),
    "batch_added": (model([*IMAGE_NUMBERS, node("Add", ["x", "r"], ["y"])],
                          [tensor("zero", np.array(0)), tensor("step", np.array(1))]), "the numbers of the images"),
    "where_constants": (model([node("Where", ["c", "zero", "zero"], ["a"]), node("Add", ["x", "a"], ["y"])],
                              [tensor("c", np.array([1])), tensor("zero", np.zeros(1, np.float32))]), "Where"),
    "matmul": (model(MATMUL, [tensor("w", WEIGHT)]), "multiplies"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_in_one_line(tmp_path: Path, name: str) -> None:
    data, words = BAD[name]
    assert words in refusal(tmp_path, data)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "..", "", "link.bin"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    (inside / "link.bin").symlink_to(tmp_path / "w.bin")
    data = model(LINEAR, [tensor("fc.weight", WEIGHT, external={"location": location})])
    assert "the model's own folder" in refusal(inside, data)


def test_external_data_cut_short(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes()[:-1])
    for place in ({}, {"offset": 2**62}, {"offset": -8}, {"length": 10**15}):
        data = model(LINEAR, [tensor("fc.weight", WEIGHT, external={"location": "w.bin", **place})])
        assert "bad.onnx" in refusal(tmp_path, data)


def test_nested_beyond_reason(tmp_path: Path) -> None:
    """A graph in an attribute of a node of a graph ..., 20,000 deep."""
    graph = b""
    for _ in range(20000):
        graph = field(1, field(5, field(6, graph)))
        if len(graph) > 400000:
            break
    assert "nested too deep" in refusal(tmp_path, field(1, 7) + field(7, graph))


def test_more_memory_than_bytes(tmp_path: Path) -> None:
    """Each empty node takes two bytes of the file and a hundred times that in memory."""
    assert "memory" in refusal(tmp_path, field(1, 7) + field(7, b"\x0a\x00" * 3_000_000))


def test_truncated_and_flipped(tmp_path: Path) -> None:
    """Whatever happens to a file, the program ends by itself, with one line where it ends badly."""
    whole = (FOLDER / "mlp.onnx").read_bytes()
    np.save(tmp_path / "images.npy", RNG.standard_normal((2, 1, 8, 8)).astype(np.float32))
    rng = np.random.default_rng(1)
    damaged = [whole[:n] for n in (3, 40, len(whole) // 2, len(whole) - 1)]
    for _ in range(14):
        copy = bytearray(whole)
        copy[int(rng.integers(2, 600 if rng.random() < 0.7 else len(whole)))] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(copy))
    for data in damaged:
        (tmp_path / "d.onnx").write_bytes(data)
        result = run("inspect", "--model", tmp_path / "d.onnx")
        assert result.status in (0, 1), (result.status, result.lines)
        assert len(result.lines) == result.status, result.lines


def test_wrong_option(tmp_path: Path) -> None:
    data = model(LINEAR, [tensor("fc.weight", WEIGHT)])
    assert "no such node or value" in refusal(tmp_path, data, "--logits-node", "nothing")
    assert "is not an .onnx file" in refusal(tmp_path, MODEL.read_bytes(), "--logits-node", "fc", "--scale", "1")
