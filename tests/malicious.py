"""Malicious .pth files, each made to run a command, to exhaust memory, or to have bytes read that are not its own.

corpus(mark) makes them; every command in them would create the file `mark`. test_malicious.py has them all refused, and
fuzz_seeds.py gives the small ones to the fuzzer.
"""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from crafted import Entry, integer, integers, legacy, network, pickled, text

WEIGHT = np.ones((10, 6), np.float32)  # of fc, the last but one of the tensors
TENSORS = network(fc__weight=WEIGHT)
GOOD = pickled(TENSORS)
STORAGE = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + integer(36)  # of conv1.weight
HOOKS = b"\x89ccollections\nOrderedDict\n)R"  # behind the strides: whether a gradient is wanted, and no hooks


@dataclass
class Malicious:
    data: bytes
    words: tuple[str, ...]  # of the one line that refuses it
    pickle: bytes | None = None  # what creates `mark` where Python runs it


# ---- Zip files -------------------------------------------------------------------------------------------------------


def entries(tensors: dict[str, Entry], pickle: bytes, stem: str = "model/") -> list[tuple[str, bytes]]:
    data = [(f"{stem}data/{i}", entry.values.astype("<f4").tobytes()) for i, entry in enumerate(tensors.values())]
    return [(f"{stem}data.pkl", pickle), (f"{stem}byteorder", b"little"), *data, (f"{stem}version", b"3\n")]


def zipped(files: list[tuple[str, bytes]], deflated: bool = False) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", 8 if deflated else 0) as file:
        warnings.simplefilter("ignore")  # names that are there twice
        for name, data in files:
            file.writestr(zipfile.ZipInfo(name), data, 8 if deflated else 0)
    return out.getvalue()


def pth(pickle: bytes = GOOD, tensors: dict[str, Entry] = TENSORS, stem: str = "model/", more=()) -> bytes:
    return zipped([*entries(tensors, pickle, stem), *more])


CENTRAL, LOCAL, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"


def patched(data: bytes, signature: bytes, name: str, at: int, value: bytes) -> bytes:
    """The zip with some bytes of an entry's header changed."""
    start = data.index(signature)
    while True:
        length, where = (28, 46) if signature == CENTRAL else (26, 30)
        size = struct.unpack_from("<H", data, start + length)[0]
        if data[start + where : start + where + size] == name.encode():
            return data[: start + at] + value + data[start + at + len(value) :]
        start = data.index(signature, start + 4)


def repointed(count: int, numbers: int) -> bytes:
    """Many entries, all of one and the same bytes: a file of their size that holds `count` times as much."""
    tensors = {f"t{i}": Entry(np.zeros(numbers, np.float32)) for i in range(count)}
    body = bytes(4 * numbers)
    files = [("m/data.pkl", pickled(tensors)), *((f"m/data/{i}", body) for i in range(count))]
    out, directory, where = b"", b"", {}
    for name, data in files:
        key = name if name.endswith("pkl") else "body"
        sizes = struct.pack("<III", zlib.crc32(data), len(data), len(data))
        if key not in where:
            where[key] = len(out)
            out += LOCAL + struct.pack("<HHHHH", 20, 0, 0, 0, 33) + sizes + struct.pack("<HH", len(name), 0) + \
                name.encode() + data
        directory += CENTRAL + struct.pack("<HHHHHH", 20, 20, 0, 0, 0, 33) + sizes + \
            struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, where[key]) + name.encode()
    return out + directory + END + struct.pack("<HHHHIIH", 0, 0, len(files), len(files), len(directory), len(out), 0)


def crowded(count: int) -> bytes:
    """A directory of that many entries, all of the same few bytes."""
    local = LOCAL + struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, 0, 0, 0, 1, 0) + b"a"
    entry = CENTRAL + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    return local + entry * count + END + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, len(entry) * count, len(local), 0)


# ---- Pickles ---------------------------------------------------------------------------------------------------------


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """GLOBAL, arguments, REDUCE."""
    return b"c" + f"{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def dotted(module: str, name: str, *arguments: bytes) -> bytes:
    """The same by STACK_GLOBAL of protocol 4, which follows dots in the name."""
    return b"\x80\x04" + text(module) + text(name) + b"\x93(" + b"".join(arguments) + b"tR"


def data_bytes(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def commands(mark: Path) -> dict[str, tuple[bytes, str]]:
    """Opcodes that leave one value after having run a command, and a word that tells which."""
    shell, python = text(f"touch {mark}"), text(f"open({str(mark)!r}, 'w')")
    touch = b"(" + text("touch") + text(str(mark)) + b"l"
    system = b"cos\nsystem\n"
    os_module = call("builtins", "__import__", text("os"))
    empty = b"ccollections\nOrderedDict\n)R"
    return {
        "os.system": (call("os", "system", shell), "os.system"),
        "posix.system": (call("posix", "system", shell), "posix.system"),
        "eval": (call("builtins", "eval", python), "builtins.eval"),
        "exec": (call("builtins", "exec", python), "builtins.exec"),
        "eval as Python 2 calls it": (call("__builtin__", "eval", python), "__builtin__.eval"),
        "open": (call("builtins", "open", text(str(mark)), text("w")), "builtins.open"),
        "subprocess.call": (call("subprocess", "call", touch), "subprocess.call"),
        "subprocess.Popen": (call("subprocess", "Popen", touch), "subprocess.Popen"),
        "subprocess.getoutput": (call("subprocess", "getoutput", shell), "subprocess.getoutput"),
        "getattr of an import": (b"cbuiltins\ngetattr\n(" + os_module + text("system") + b"tR(" + shell + b"tR",
                                 "builtins.__import__"),
        "importlib": (b"cbuiltins\ngetattr\n(" + call("importlib", "import_module", text("os")) + text("system")
                      + b"tR(" + shell + b"tR", "importlib.import_module"),
        "methodcaller": (call("operator", "methodcaller", text("system"), shell) + b"(" + os_module + b"tR",
                         "builtins.__import__"),
        "partial": (call("functools", "partial", system, shell) + b")R", "os.system"),
        "a pickle in a pickle": (call("pickle", "loads", data_bytes(system + b"(" + shell + b"tR.")), "pickle.loads"),
        "timeit": (call("timeit", "timeit", text("pass"), python), "timeit.timeit"),
        "cProfile": (call("cProfile", "run", python), "cProfile.run"),
        "dots behind a module": (dotted("shutil", "os.system", shell), "shutil.os.system"),
        "dots behind a class": (dotted("pathlib", "Path.touch", call("pathlib", "Path", text(str(mark)))),
                                "pathlib.Path.touch"),
        "INST": (b"(" + shell + b"ios\nsystem\n", "os.system"),
        "OBJ": (b"(" + system + shell + b"o", "os.system"),
        "memo": (system + b"q\x01" + b"0h\x01(" + shell + b"tR", "os.system"),
        "text opcodes": (b"cos\nsystem\n(V" + f"touch {mark}".encode() + b"\ntR", "os.system"),
        "__setstate__": (empty + b"}" + text("__setstate__") + system + b"sb" + shell + b"b", "os.system"),
        "append": (empty + b"}" + text("append") + system + b"sb" + shell + b"a", "APPEND"),
    }


def hidden(payload: bytes) -> dict[str, bytes]:
    """A pickle of sound tensors with the payload where nobody needs its value, or where a tensor does."""
    shape, stride = integers((4, 1, 3, 3)), integers((9, 9, 3, 1))
    return {
        "beside the tensors": GOOD[:-2] + text("zz") + payload + b"u.",
        "as a key": GOOD[:-2] + payload + b"Nu.",
        "before, and taken away": GOOD[:2] + payload + b"0" + GOOD[2:],
        "after, and taken away": GOOD[:-1] + payload + b"0.",
        "in the metadata": GOOD[:-1] + b"}" + text("_metadata") + payload + b"sb.",
        "beside the state_dict": b"\x80\x02}(" + text("state_dict") + GOOD[2:-1] + text("optimizer") + payload + b"u.",
        "as hooks": GOOD.replace(HOOKS, b"\x89" + payload, 1),
        "as requires_grad": GOOD.replace(HOOKS, payload + HOOKS[1:], 1),
        "as a tensor": GOOD.replace(b"ctorch._utils\n_rebuild_tensor_v2\n", payload, 1),
        "as a storage": GOOD.replace(STORAGE, payload, 1),
        "as the type": GOOD.replace(b"ctorch\nFloatStorage\n", payload, 1),
        "as the size of a storage": GOOD.replace(STORAGE, STORAGE[:-5] + payload, 1),
        "as a shape": GOOD.replace(shape, payload, 1),
        "as strides": GOOD.replace(stride, payload, 1),
    }


def running(mark: Path) -> Iterator[tuple[str, Malicious]]:
    for name, (payload, word) in commands(mark).items():
        pickle = b"\x80\x02" + payload + b"."
        yield f"{name}", Malicious(pth(pickle), (word,), pickle)
        yield f"{name}, legacy", Malicious(legacy(TENSORS, pickle), (word,), pickle)
        yield f"{name}, bare pickle", Malicious(pickle, (word,), pickle)
    system = commands(mark)["os.system"][0]
    for where, pickle in hidden(system).items():
        yield f"os.system {where}", Malicious(pth(pickle), ("os.system",), pickle)
        yield f"os.system {where}, legacy", Malicious(legacy(TENSORS, pickle), ("os.system",), pickle)
    keys = b"\x80\x02](" + system + b"0" + b"".join(text(str(i)) for i in range(len(TENSORS))) + b"e."
    yield "os.system among the storages", Malicious(legacy(TENSORS, keys=keys), ("os.system",), keys)
    whole = legacy(TENSORS)
    head = whole[:16].replace(b"\x80\x02", b"\x80\x02" + system + b"0", 1)
    yield "os.system before the magic number", Malicious(head + whole[16:], ("os.system",), head)
    evaluate = commands(mark)["eval"][0]
    yield "eval beside the tensors", Malicious(pth(hidden(evaluate)["beside the tensors"]), ("builtins.eval",),
                                               hidden(evaluate)["beside the tensors"])
    yield "unknown maker of a tensor", Malicious(
        pth(GOOD.replace(b"ctorch._utils\n_rebuild_tensor_v2\n", b"cevil\nbuild\n", 1)), ("conv1.weight", "evil.build"))


# ---- Sizes, strides and bombs ----------------------------------------------------------------------------------------


def descriptions() -> Iterator[tuple[str, Malicious]]:
    """A tensor that is not what its storage holds."""
    cases = {
        "storage of 2^62": (Entry(WEIGHT, numel=2**62), "impossible number"),
        "storage of 2^40": (Entry(WEIGHT, numel=2**40), "bad.pth"),
        "storage of -1": (Entry(WEIGHT, numel=-1), "impossible number"),
        "storage of 10^30": (Entry(WEIGHT, numel=10**30), "impossible number"),
        "shape of 2^62": (Entry(WEIGHT, shape=(2**31, 2**31)), "fc.weight"),
        "shape that overflows": (Entry(WEIGHT, shape=(2**32, 2**32)), "fc.weight"),
        "shape that overflows to its size": (Entry(WEIGHT, shape=(2**63 - 1, 2), stride=(0, 0)), "fc.weight"),
        "negative shape": (Entry(WEIGHT, shape=(-10, -6)), "negative size"),
        "shape of 10^30": (Entry(WEIGHT, shape=(10**30, 1)), "fc.weight"),
        "nine dimensions": (Entry(WEIGHT, shape=(1,) * 9, stride=(1,) * 9), "9 dimensions"),
        "stride past the end": (Entry(WEIGHT, stride=(7, 1)), "beyond its storage"),
        "stride that overflows": (Entry(WEIGHT, stride=(2**62, 1)), "beyond its storage"),
        "negative stride": (Entry(WEIGHT, stride=(-6, 1), offset=54), "negative stride"),
        "stride of none": (Entry(WEIGHT, stride=()), "not described by"),
        "one number for all": (Entry(WEIGHT, stride=(0, 0)), "more than once"),
        "one row for all": (Entry(WEIGHT, stride=(0, 1)), "more than once"),
        "rows that overlap": (Entry(WEIGHT, stride=(5, 1)), "more than once"),
        "more than the storage": (Entry(WEIGHT[:1], shape=(10**9, 10**9), stride=(0, 0)), "fc.weight"),
        "offset past the end": (Entry(WEIGHT, offset=1), "beyond its storage"),
        "offset of 2^62": (Entry(WEIGHT, offset=2**62), "beyond its storage"),
        "offset that overflows": (Entry(WEIGHT, offset=2**63 - 1), "beyond its storage"),
        "negative offset": (Entry(WEIGHT, offset=-1), "negative offset"),
        "offset of -2^63": (Entry(WEIGHT, offset=-(2**63)), "fc.weight"),
    }
    for name, (entry, word) in cases.items():
        tensors = TENSORS | {"fc.weight": entry}
        in_zip = () if word == "bad.pth" else (word,)  # a zip tells by itself how much an entry holds
        yield name, Malicious(pth(pickled(tensors), tensors), in_zip)
        yield f"{name}, legacy", Malicious(legacy(tensors), in_zip)
    odd = GOOD.replace(STORAGE, STORAGE.replace(text("0"), text("../../../etc/passwd")), 1)
    yield "storage outside", Malicious(pth(odd), ("etc/passwd is missing",))
    yield "storage of two sizes", Malicious(pth(GOOD.replace(text("1") + text("cpu"), text("0") + text("cpu"), 1)),
                                            ("otherwise than another",))
    yield "storage of two types", Malicious(pth(GOOD.replace(STORAGE, STORAGE.replace(b"Float", b"Int"), 1).replace(
        text("1") + text("cpu") + integer(4), text("0") + text("cpu") + integer(36), 1)), ("otherwise than another",))


def zips() -> Iterator[tuple[str, Malicious]]:
    good, weight = pth(), "model/data/12"
    for bit in (0, 6, 13):  # encrypted, strongly encrypted, masked
        for where, signature, at in (("directory", CENTRAL, 8), ("header", LOCAL, 6)):
            flags = struct.pack("<H", 1 << bit)
            for name in ("model/data.pkl", weight):
                yield f"flag {bit} of {name} in its {where}", Malicious(patched(good, signature, name, at, flags), ())
    header_only = {
        "another name in its header": patched(good, LOCAL, weight, 30, b"model/data/99"),
        "another size in its header": patched(good, LOCAL, weight, 22, struct.pack("<I", 4)),
        "another method in its header": patched(good, LOCAL, weight, 8, struct.pack("<H", 8)),
        "another checksum in its header": patched(good, LOCAL, weight, 14, bytes(4)),
    }
    for name, data in header_only.items():
        yield name, Malicious(data, ())
    almost = b"\xfe\xff\xff\xff"
    for name, at, value in (("method 99", 10, struct.pack("<H", 99)), ("bad checksum", 16, b"abcd"),
                            ("size of 4 GiB", 20, almost * 2), ("offset of 4 GiB", 42, almost),
                            ("offset of another", 42, bytes(4))):
        yield f"{name} in the directory", Malicious(patched(good, CENTRAL, weight, at, value), ())
    end = good.rindex(END)
    for name, at, value in (("more entries than there are", 8, b"\xff\x7f\xff\x7f"), ("fewer entries", 8, b"\1\0\1\0"),
                            ("directory of 4 GiB", 12, almost),
                            ("directory behind the end", 16, b"\xf0\xff\xff\xff")):
        yield name, Malicious(good[: end + at] + value + good[end + at + len(value) :], ())
    twice = pickled(TENSORS | {"evil": Entry(WEIGHT)})
    yield "two pickles of one name", Malicious(pth(more=[("model/data.pkl", twice)]), ("is there twice",))
    yield "two pickles", Malicious(pth(more=[("other/data.pkl", twice)]), ("expected one data.pkl",))
    yield "two storages of one name", Malicious(pth(more=[(weight, WEIGHT.tobytes())]), ("is there twice",))
    yield "two entries that nobody needs", Malicious(pth(more=[("x", b"1"), ("x", b"2")]), ("is there twice",))
    for stem in ("../", "/", "/etc/", "a/../../", "..\\", "C:\\", "\\\\host\\share\\", "a\x1b[31m/"):
        yield f"model in {stem!r}", Malicious(pth(stem=stem), ("bad.pth",))
        yield f"entry in {stem!r}", Malicious(pth(more=[(f"{stem}x", b"")]), ("bad.pth",))
    yield "model in a folder of a long name", Malicious(pth(stem="a" * 3000 + "/"), ("data.pkl",))
    yield "TorchScript", Malicious(pth(more=[("model/constants.pkl", b"")]), ("TorchScript",))
    big = [(name, b"big" if name.endswith("order") else data) for name, data in entries(TENSORS, GOOD)]
    yield "big endian", Malicious(zipped(big), ("byteorder",))
    yield "a zip in a zip", Malicious(zipped([("model/data.pkl", good)]), ("data.pkl",))


def bombs() -> Iterator[tuple[str, Malicious]]:
    zeros = bytes(120_000_000)
    huge = TENSORS | {"fc.weight": Entry(WEIGHT, numel=len(zeros) // 4)}
    files = [(n, zeros if n.endswith("/12") else d) for n, d in entries(huge, pickled(huge))]
    yield "storage of zeros", Malicious(zipped(files, deflated=True), ("more than a file of",))
    yield "pickle of zeros", Malicious(zipped([("m/data.pkl", b"\x80\x02" + zeros)], deflated=True),
                                       ("more than a file of",))
    yield "pickle of values", Malicious(pth(b"\x80\x02" + b"N" * 3_000_000 + b"."), ("too many values",))
    yield "one entry a hundred times", Malicious(repointed(100, 500_000), ())
    yield "a directory of 200,000 entries", Malicious(crowded(200_000), ("zip entries",))
    laughs = b"]q\0" + b"".join(b"0(" + (b"h" + bytes([i])) * 10 + b"lq" + bytes([i + 1]) for i in range(100))
    yield "a list of ten, a hundred times", Malicious(pth(b"\x80\x02" + laughs + b"."), ("found a list",))
    yield "brackets", Malicious(pth(b"\x80\x02" + b"(" * 1_000_000 + b"."), ("bad.pth",))
    yield "a list in itself", Malicious(pth(b"\x80\x02]q\0h\0a."), ("found a list",))
    itself = b"\x80\x02}q\0" + text("state_dict") + b"h\0s."
    yield "a state_dict in itself", Malicious(pth(itself), ("without tensors",))
    for name, opcode in (("text", b"X\xff\xff\xff\xff"), ("bytes", b"\x8e" + b"\xff" * 8),
                         ("frame", b"\x95" + b"\xff" * 8), ("memo", b"Nr\xff\xff\xff\xff"),
                         ("number", b"\x8b\xff\xff\xff\x7f")):
        for form, wrap in (("", pth), (", legacy", lambda pickle: legacy(TENSORS, pickle))):
            yield f"{name} of 4 GiB{form}", Malicious(wrap(b"\x80\x04" + opcode + b"."), ("opcode",))


def corpus(mark: Path) -> dict[str, Malicious]:
    found: dict[str, Malicious] = {}
    for group in (running(mark), descriptions(), zips(), bombs()):
        for name, case in group:
            assert name not in found, name
            found[name] = replace(case, words=tuple(w for w in case.words if w != "bad.pth"))
    return found
