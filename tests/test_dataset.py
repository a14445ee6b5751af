"""Arrays from files against numpy: every format and type, ranges of rows, damage, and what users get wrong.

The files are made here; the program under test is `test_dataset` (test_dataset.c) in the build folder, which is `build`
or what CNNSCOPE_BUILD names.
"""

import csv
import gzip
import hashlib
import io
import os
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import netCDF4
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
DRIVER = Path(os.environ.get("CNNSCOPE_BUILD", ROOT / "build")) / "test_dataset"
MNIST_IMAGES = ROOT / "tests/data/t10k-images-idx3-ubyte.gz"
MNIST_LABELS = ROOT / "tests/data/t10k-labels-idx1-ubyte.gz"

IDX_TYPES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}
NPY_TYPES = [o + t for t in ("u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8") for o in "<>"] + ["u1", "i1", "?"]
NETCDF_TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
SHAPES = [(7,), (5, 3), (4, 5, 3), (3, 2, 5, 4), (2, 3, 2, 2, 2)]


def run(*arguments):
    return subprocess.run([DRIVER, *map(str, arguments)], capture_output=True, timeout=120)


def read(spec, *ranges):
    """The rows of `ranges` (first, count pairs; default: all), as one array, and the shape of the whole."""
    if not ranges:
        ranges = (0, int(run("dump", spec).stdout.split()[1]))
    done = run("dump", spec, *ranges)
    assert done.returncode == 0, done.stderr
    head, data = done.stdout.split(b"\n", 1)
    dtype, *shape = head.decode().split()
    shape = tuple(map(int, shape))
    return np.frombuffer(data, dtype).reshape(-1, *shape[1:]), shape


def refusal(spec, *ranges):
    """The one line that ends reading `spec`."""
    done = run("dump", spec, *(ranges or (0, 1)))
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    text = done.stderr.decode(errors="replace")
    assert text.startswith("cnnscope: ") and text.count("\n") == 1 and text.endswith("\n"), text
    return text[len("cnnscope: ") : -1]


def shown(value):
    """Names of parametrised cases: what is expected, not the bytes."""
    return value if isinstance(value, str) and len(value) < 80 and value.isprintable() else "case"


def numbers(shape, dtype, seed=1):
    """Values over the whole range of the type, its ends included."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind == "f":
        limit = min(np.finfo(dtype).max, np.finfo("f4").max)
        array = (rng.standard_normal(shape) * 1000).astype(dtype)
        array.flat[:3] = [limit, -limit, np.finfo(dtype).tiny]
    else:
        info = np.iinfo(dtype)
        array = rng.integers(info.min, info.max, shape, dtype.newbyteorder("="), endpoint=True).astype(dtype)
        array.flat[:2] = [info.max, info.min]
    return array


def idx_bytes(array):
    code = IDX_TYPES[array.dtype.newbyteorder("=").name]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def npy_bytes(array, version=(1, 0)):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version)
    return out.getvalue()


def npy_with(header, data=b"", version=1, padding=None):
    text = header.encode("latin1")
    length = struct.pack("<H" if version == 1 else "<I", len(text) if padding is None else padding)
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def npy_shaped(shape, *more):
    return npy_with(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}", *more)


def write(path, data):
    path.write_bytes(data)
    return path


def write_netcdf(path, array, name="x", format="NETCDF4", unlimited=False, **how):
    attributes, dtype = how.pop("attributes", {}), how.pop("dtype", array.dtype)
    with netCDF4.Dataset(path, "w", format=format) as file:
        for i, extent in enumerate(array.shape):
            file.createDimension(f"d{i}", None if unlimited and i == 0 else extent)
        variable = file.createVariable(name, dtype, [f"d{i}" for i in range(array.ndim)], **how)
        variable.set_auto_maskandscale(False)
        variable.setncatts(attributes)
        variable[:] = array
    return path


def check_equal(spec, array):
    """All rows, no rows, the first, the last, one in the middle, and blocks that go forward and back."""
    rows, shape = read(spec)
    expected = array.astype("u1") if array.dtype == bool else array.astype(array.dtype.newbyteorder("="))
    assert shape == array.shape
    assert rows.dtype == expected.dtype
    assert rows.tobytes() == expected.tobytes()
    n = len(array)
    ranges = [(0, 0), (0, 1), (n - 1, 1), (n // 2, n - n // 2), (0, n), (n // 2, 1), (n, 0), (n - 1, 1)]
    rows, _ = read(spec, *np.ravel(ranges))
    assert rows.tobytes() == b"".join(expected[a : a + b].tobytes() for a, b in ranges)


# ---- Formats and types ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", IDX_TYPES)
def test_idx(tmp_path, dtype):
    for shape in SHAPES:
        array = numbers(shape, dtype)
        check_equal(write(tmp_path / "plain", idx_bytes(array)), array)
        check_equal(write(tmp_path / "named.txt", gzip.compress(idx_bytes(array))), array)


@pytest.mark.parametrize("dtype", NPY_TYPES)
def test_npy_and_npz(tmp_path, dtype):
    for shape in SHAPES:
        array = numbers(shape, dtype)
        for version in (1, 0), (2, 0), (3, 0):
            check_equal(write(tmp_path / "a.npy", npy_bytes(array, version)), array)
        check_equal(write(tmp_path / "a.npy.gz", gzip.compress(npy_bytes(array))), array)
        other = numbers((3,), "f4")
        np.savez(tmp_path / "s.npz", first=other, second=array)
        np.savez_compressed(tmp_path / "c.npz", first=other, second=array)
        check_equal(f"{tmp_path}/s.npz:second", array)
        check_equal(f"{tmp_path}/c.npz:second", array)
        check_equal(f"{tmp_path}/c.npz:first", other)


@pytest.mark.parametrize("dtype", NETCDF_TYPES)
def test_netcdf4(tmp_path, dtype):
    for shape in SHAPES:
        array = numbers(shape, dtype)
        if array.dtype.kind == "i" or array.itemsize > 1:  # not the default fill values
            array[array == netCDF4.default_fillvals.get(array.dtype.str[1:])] = 1
        write_netcdf(tmp_path / "a.nc", array)
        check_equal(f"{tmp_path}/a.nc:x", array)
        check_equal(f"{tmp_path}/a.nc", array)
        write_netcdf(tmp_path / "z.nc", array, unlimited=True, zlib=True, dtype=">" + dtype, endian="big")
        check_equal(f"{tmp_path}/z.nc:x", array)


@pytest.mark.parametrize("format", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA", "NETCDF4_CLASSIC"])
@pytest.mark.parametrize("unlimited", [False, True])
def test_netcdf_classic(tmp_path, format, unlimited):
    for dtype in "i1", "i2", "i4", "f4", "f8":
        for shape in SHAPES:
            array = numbers(shape, dtype)
            write_netcdf(tmp_path / "a.nc", array, format=format, unlimited=unlimited)
            check_equal(f"{tmp_path}/a.nc:x", array)


def test_netcdf_attributes(tmp_path):
    array = np.array([[-3, 5], [100, -1]], "i2")
    write_netcdf(tmp_path / "u.nc", array, attributes={"_Unsigned": "true"})
    check_equal(f"{tmp_path}/u.nc:x", array.view("u2"))
    write_netcdf(tmp_path / "s.nc", array, attributes={"scale_factor": 1.0, "add_offset": 0.0})
    check_equal(f"{tmp_path}/s.nc:x", array)
    write_netcdf(tmp_path / "s.nc", array, attributes={"scale_factor": 0.1})
    assert "packed (scale_factor = 0.1)" in refusal(f"{tmp_path}/s.nc:x")
    write_netcdf(tmp_path / "o.nc", array, attributes={"add_offset": np.float32(2)})
    assert "packed (add_offset = 2)" in refusal(f"{tmp_path}/o.nc:x")
    write_netcdf(tmp_path / "f.nc", array, fill_value=100)
    assert "sample 1 has a missing value" in refusal(f"{tmp_path}/f.nc:x", 0, 2)
    check_equal(f"{write_netcdf(tmp_path / 'm.nc', array, fill_value=-1)}:x", array)
    with netCDF4.Dataset(tmp_path / "never.nc", "w") as file:
        file.createDimension("sample", 4)
        file.createVariable("x", "f4", "sample")[:2] = 1
    assert "sample 2 has a missing value" in refusal(f"{tmp_path}/never.nc:x", 0, 4)
    check_equal(f"{write_netcdf(tmp_path / 'byte.nc', numbers((300,), 'u1'))}:x", numbers((300,), "u1"))


def test_larger_than_any_buffer(tmp_path):
    array = numbers((5000, 1001), "<f4")
    np.savez_compressed(tmp_path / "c.npz", x=array)
    np.savez(tmp_path / "s.npz", x=array)
    write(tmp_path / "x.gz", gzip.compress(idx_bytes(array), 1))
    for spec in f"{tmp_path}/c.npz:x", f"{tmp_path}/s.npz:x", f"{tmp_path}/x.gz":
        blocks = [(i, 500) for i in range(0, 5000, 500)] + [(4999, 1), (7, 2)]
        rows, _ = read(spec, *np.ravel(blocks))
        assert rows.tobytes() == b"".join(array[a : a + b].tobytes() for a, b in blocks)


def test_going_forward_unpacks_once(tmp_path):
    array = np.random.default_rng(2).integers(0, 16, (2000, 5000), "u1")
    path = write(tmp_path / "x.gz", gzip.compress(idx_bytes(array), 1))
    np.savez_compressed(tmp_path / "x.npz", x=array)

    def seconds(spec, step):
        before = os.times()
        read(spec, *np.ravel([(i, step - 1) for i in range(0, 2000, step)]))
        after = os.times()
        return after.children_user - before.children_user

    for spec in path, f"{tmp_path}/x.npz:x":
        assert seconds(spec, 10) < 5 * seconds(spec, 2000) + 0.2  # from the start each time: a hundred times as long


def test_gzip_of_several_members_and_trailing_zeros(tmp_path):
    array = numbers((50, 20), "i4")
    data = idx_bytes(array)
    check_equal(write(tmp_path / "m.gz", gzip.compress(data[:1000]) + gzip.compress(data[1000:])), array)
    check_equal(write(tmp_path / "e.gz", gzip.compress(data) + gzip.compress(b"")), array)
    assert "truncated" in refusal(write(tmp_path / "t.gz", gzip.compress(data[:1000])))
    assert "more follows" in refusal(write(tmp_path / "l.gz", gzip.compress(data + b"x")))


def test_mnist():
    images, shape = read(MNIST_IMAGES)
    assert shape == (10000, 28, 28)
    assert images.tobytes() == gzip.open(MNIST_IMAGES).read()[16:]
    labels, shape = read(MNIST_LABELS)
    assert shape == (10000,)
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    middle, _ = read(MNIST_IMAGES, 3333, 100, 3433, 50)
    assert middle.tobytes() == images[3333:3483].tobytes()


def test_csv(tmp_path):
    labels = np.array([3, -1, 9223372036854775807, -9223372036854775808, 0, 7], "i8")
    plain = "name,label\n" + "".join(f"f{i}.png,{v}\n" for i, v in enumerate(labels))
    odd = '\ufeff name , "label" \r\n'
    for i, v in enumerate(labels):
        odd += f'"a ""b"", {i}\n.png" , "{v}" \r\n' if i % 2 else f"é, {v:+}\r\n"
    for text in plain, plain[:-1], plain + "\n \r\n", odd:
        check_equal(f"{write(tmp_path / 'l.csv', text.encode())}:label", labels)
    only = write(tmp_path / "only.CSV", b"\xef\xbb\xbflabel\n1\n2\n003\n")
    check_equal(only, np.array([1, 2, 3], "i8"))
    check_equal(f"{only}:label", np.array([1, 2, 3], "i8"))
    with open(tmp_path / "w.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["a,b", "y: z", ""], ["x\ny", 5, 1], ['q"', 6, 2]])
    check_equal(f"{tmp_path}/w.csv:y: z", np.array([5, 6], "i8"))
    check_equal(f"{tmp_path}/w.csv:", np.array([1, 2], "i8"))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a,label\n1,2\n1,cat\n", "line 3 has 'cat'; expected a whole number"),
        ("a,label\n1,2\n1,\n1,3\n", "line 3 has no value; write -1"),
        ("a,label\n1,2\n\n1,3\n", "line 3 has 1 fields, the first line has 2"),
        ("a,label\n1,2,3\n", "line 2 has 3 fields"),
        ("a,label\n1,7.0\n", "line 2 has '7.0'"),
        ("a,label\n1,1e3\n", "line 2 has '1e3'"),
        ("a,label\n1,1 2\n", "line 2 has '1 2'"),
        ("a,label\n1,9223372036854775808\n", "line 2 has '9223372036854775808'"),
        ("a,label\n1,99999999999999999999\n", "line 2 has '99999999999999999999'"),
        ("a,label\n1,-9223372036854775809\n", "line 2 has '-9223372036854775809'"),
        ("a,label\n1,-\n", "line 2 has '-'"),
        ('a,label\n"x\ny",1\n"z,1\n', "line 4 has a quote that is never closed"),
        ('a,label\n"x"y,1\n', "line 2 has text behind a closing quote"),
        ("a,b\n1,2\n", "has no column of this name; its first line names a, b"),
        ("label,label\n1,2\n", "has 2 columns of this name"),
        ("a,label\n", "has no rows"),
        ("a,label", "has no rows"),
        ("\n\n", "has no column of this name"),
        ("a,label\n1,2\0\n", "is not a text file"),
        ("a,label\n1," + "x" * 5000 + "\n", "line 2 has 'xxxx"),
    ],
    ids=shown,
)
def test_csv_refused(tmp_path, text, expected):
    assert expected in refusal(f"{write(tmp_path / 'l.csv', text.encode())}:label")


# ---- Tensors saved by PyTorch (made by golden/make_pth_golden.py) --------------------------------------------------

PTH = ROOT / "tests/golden/pth"


@pytest.mark.parametrize("file", ["types.pth", "types_legacy.pth"])
def test_pt_types(file):
    values = np.array([[0.0, -1.5, 3.0], [1e-3, 65504.0, -7.0]], "f4")
    halves = ((values.view("u4") + 0x7FFF + (values.view("u4") >> 16 & 1)) & 0xFFFF0000).view("f4")
    for dtype in "float32", "float64", "float16":
        check_equal(f"{PTH}/{file}:{dtype}", values.astype(dtype))
    check_equal(f"{PTH}/{file}:bfloat16", halves)
    for dtype in "int64", "int32", "int16", "int8":
        check_equal(f"{PTH}/{file}:{dtype}", np.array([-3, 0, 100], dtype))
    check_equal(f"{PTH}/{file}:uint8", np.array([0, 255], "u1"))
    check_equal(f"{PTH}/{file}:bool", np.array([1, 0], "u1"))
    check_equal(f"{PTH}/{file}:long_integer", np.array([2**62 + 1]))
    assert "sample 2 holds inf" in refusal(f"{PTH}/{file}:tiny_float16", 0, 4)
    assert "has 0 dimensions" in refusal(f"{PTH}/{file}:scalar")
    assert "is empty" in refusal(f"{PTH}/{file}:none")
    assert "add one of their names, as" in refusal(f"{PTH}/{file}")
    assert "has no tensor of this name; it holds float32, float64" in refusal(f"{PTH}/{file}:x")


def test_pt_layouts():
    whole = np.arange(48, dtype="f4").reshape(2, 3, 2, 4)
    for file in "layouts.pth", "layouts_legacy.pth":
        check_equal(f"{PTH}/{file}:whole", whole)
        check_equal(f"{PTH}/{file}:transposed", whole.swapaxes(1, 3).copy())
    check_equal(PTH / "bare.pth", np.arange(6, dtype="f4").reshape(2, 3).T.copy())
    assert "leave out ':x'" in refusal(f"{PTH}/bare.pth:x")
    assert "torch.save" in refusal(f"{PTH}/module.pth:x")


# ---- Specs, keys, and files that are something else ---------------------------------------------------------------


def test_colons(tmp_path):
    one, two = numbers((4,), "i4"), numbers((5,), "i4", 2)
    np.savez(tmp_path / "a.npz", **{"k": one, "k:l": two})
    np.save(tmp_path / "x:y.npy", two)
    check_equal(f"{tmp_path}/a.npz:k", one)
    check_equal(f"{tmp_path}/a.npz:k.npy", one)
    check_equal(f"{tmp_path}/a.npz:k:l", two)
    check_equal(f"{tmp_path}/x:y.npy", two)
    with open(tmp_path / "a.npz:k", "wb") as file:  # by name, numpy would add .npz
        np.savez(file, k=two)
    check_equal(f"{tmp_path}/a.npz:k", two)
    check_equal(f"{tmp_path}/a.npz:k:k", two)
    assert refusal(f"{tmp_path}/none.npz:k") == f"{tmp_path}/none.npz:k: no such file"
    assert refusal(f"{tmp_path}/none.npy") == f"{tmp_path}/none.npy: no such file"
    assert "leave out ':k'" in refusal(f"{tmp_path}/x:y.npy:k")


def test_keys_are_listed(tmp_path):
    np.savez(tmp_path / "a.npz", images=numbers((4,), "i4"), labels=numbers((4,), "i4"))
    assert "has no array of this name; it holds images, labels" in refusal(f"{tmp_path}/a.npz:image")
    assert "add one of their names, as" in refusal(f"{tmp_path}/a.npz")
    assert "images, labels" in refusal(f"{tmp_path}/a.npz")
    np.savez(tmp_path / "one.npz", x=numbers((4,), "i4"))
    check_equal(tmp_path / "one.npz", numbers((4,), "i4"))
    np.savez(tmp_path / "many.npz", **{f"array_{i}": np.zeros(1) for i in range(300)})
    assert len(refusal(f"{tmp_path}/many.npz:x")) < 1000
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    assert "is a zip file without arrays" in refusal(f"{tmp_path}/text.zip:x")

    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        file.createDimension("sample", 3)
        file.createVariable("sample", "i8", "sample")[:] = range(3)
        file.createVariable("x", "f4", "sample")[:] = range(3)
        file.createVariable("scalar", "f4", ())[:] = 1
        file.createVariable("text", "S1", "sample")[:] = "a"
        file.createVariable("string", str, "sample")[0] = "a"
    assert "has no variable of this name; it holds sample, x, scalar, text, string" in refusal(f"{tmp_path}/a.nc:y")
    assert "add a name" in refusal(f"{tmp_path}/a.nc")
    assert "has 0 dimensions" in refusal(f"{tmp_path}/a.nc:scalar")
    assert "is of netCDF type char" in refusal(f"{tmp_path}/a.nc:text")
    assert "is of netCDF type string" in refusal(f"{tmp_path}/a.nc:string")
    check_equal(f"{tmp_path}/a.nc:x", np.arange(3, dtype="f4"))
    check_equal(f"{tmp_path}/a.nc:sample", np.arange(3))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "folder").mkdir()
    assert "is a directory" in refusal(tmp_path / "folder")
    assert "is a directory" in refusal(f"{tmp_path}/folder:x")
    for name in "e.idx", "e.npy", "e.npz", "e.nc", "e.csv", "e.pt":
        assert "the file is empty" in refusal(f"{write(tmp_path / name, b'')}:x")
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(tmp_path / "pipe")
    assert "is not a regular file" in refusal("/dev/null")
    assert "no such file" in refusal("")
    if os.geteuid():
        os.chmod(write(tmp_path / "secret", idx_bytes(numbers((4,), "u1"))), 0)
        assert "Permission denied" in refusal(tmp_path / "secret")
    assert "Not a directory" in refusal(f"{write(tmp_path / 'f', b'x')}/g")
    assert "none of the formats" in refusal(write(tmp_path / "p.png", b"\x89PNG\r\n\x1a\n" + bytes(100)))
    assert "none of the formats" in refusal(write(tmp_path / "p.jpg.gz", gzip.compress(b"\xff\xd8\xff" + bytes(100))))
    assert "truncated" in refusal(write(tmp_path / "s.gz", gzip.compress(b"ab")))
    assert "damaged netCDF" in refusal(write(tmp_path / "h.nc", b"\x89HDF\r\n\x1a\n" + bytes(100)) )
    assert refusal(f"{tmp_path}/a\nb") == f"{tmp_path}/a?b: no such file"


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: np.asfortranarray(numbers((3, 4), "f4")), "np.ascontiguousarray"),
        (lambda: np.array([1, "a", None], object), "holds Python objects (numpy type |O)"),
        (lambda: np.zeros(3, [("a", "f4"), ("b", "i4")]), "holds a structured array"),
        (lambda: np.zeros(3, "c8"), "holds complex numbers (numpy type <c8)"),
        (lambda: np.zeros(3, "c16"), "holds complex numbers"),
        (lambda: np.array(["a", "bc"]), "holds text (numpy type <U2)"),
        (lambda: np.array([b"a"]), "holds text"),
        (lambda: np.zeros(3, "M8[s]"), "holds date times"),
        (lambda: np.zeros(3, "m8[s]"), "holds time differences"),
        (lambda: np.zeros(3, "V5"), "holds raw records"),
        (lambda: np.zeros(3, np.longdouble), "has numpy type"),
        (lambda: np.float32(3), "has 0 dimensions"),
        (lambda: np.zeros((1, 1, 1, 1, 1, 2)), "has 6 dimensions"),
        (lambda: np.zeros((0, 28, 28)), "is empty: dimension 1 of 3"),
        (lambda: np.zeros((3, 0)), "is empty: dimension 2 of 2"),
    ],
    ids=shown,
)
def test_arrays_that_are_refused(tmp_path, make, expected):
    np.save(tmp_path / "a.npy", make(), allow_pickle=True)
    assert expected in refusal(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", x=make())
    assert expected in refusal(f"{tmp_path}/a.npz:x")


@pytest.mark.parametrize(
    "data, expected",
    [
        (npy_shaped("(99999999999, 99999999999)"), "more elements"),
        (npy_shaped("(18446744073709551616,)"), "more elements"),
        (npy_with("{'descr': '<f8', 'fortran_order': False, 'shape': (2305843009213693952,), }"), "more elements"),
        (npy_shaped("(9999999999,)"), "truncated"),
        (npy_shaped("(-1,)"), "not a list of numbers"),
        (npy_shaped("(1.5,)"), "was expected"),
        (npy_shaped("(" + "1," * 100 + ")"), "not a list of numbers"),
        (npy_with("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,), }", bytes(4)), "False was expected"),
        (npy_with("{'descr': '<f4', 'fortran_order': False, }"), "lacks descr, fortran_order or shape"),
        (npy_with("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4)), "key twice"),
        (npy_with("{'descr': '<f4', 'color': 1, 'fortran_order': False, 'shape': (1,)}"), "'shape' was expected"),
        (npy_with("{'descr': '" + "<" * 100 + "', 'fortran_order': False, 'shape': (1,)}", bytes(4)), "has no end"),
        (npy_with("{'descr': '', 'fortran_order': False, 'shape': (1,)}", bytes(4)), "has numpy type ''"),
        (npy_with("__import__('os').system('true')"), "{ was expected"),
        (npy_shaped("(1,)", b"", 1, 60000), "truncated"),
        (npy_shaped("(1,)", b"", 2, 2**32 - 1), "claims 4294967295 bytes"),
        (npy_shaped("(1,)", bytes(4), 4), "of version 4.0"),
        (npy_shaped("(2,)", bytes(4)), "truncated: "),
        (npy_shaped("(1,)", bytes(5)), "damaged: "),
        (npy_with("{'descr': '<f4', 'fortran_order': False"), "was expected"),
    ],
    ids=shown,
)
def test_npy_headers_that_are_refused(tmp_path, data, expected):
    assert expected in refusal(write(tmp_path / "a.npy", data))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", data)
    assert expected in refusal(f"{tmp_path}/a.npz:x")


def test_npy_headers_that_are_accepted(tmp_path):
    array = np.arange(6, dtype="<i4").reshape(2, 3)
    for header in (
        "{'shape':(2,3),'descr':'<i4','fortran_order':False}",
        "{ 'fortran_order' : False , 'shape' : ( 2L , 3L , ) , 'descr' : '<i4' , }\n",
    ):
        check_equal(write(tmp_path / "a.npy", npy_with(header, array.tobytes())), array)
    header = "{'descr': '<i4', 'fortran_order': True, 'shape': (6,), }"
    check_equal(write(tmp_path / "a.npy", npy_with(header, array.tobytes())), array.ravel())


def test_values_that_are_not_finite(tmp_path):
    for dtype in "<f2", ">f2", "<f4", ">f4", "<f8", ">f8":
        for bad in np.nan, np.inf, -np.inf:
            array = np.ones((6, 2, 2), dtype)
            array[4, 1, 0] = bad
            np.save(tmp_path / "a.npy", array)
            assert f"sample 4 holds {bad} (its value 2 of 4)".replace("nan", "") in refusal(
                tmp_path / "a.npy", 3, 3
            ).replace("nan", "").replace("--", "-").replace("holds -(", "holds (")
            assert read(tmp_path / "a.npy", 0, 4)[0].shape == (4, 2, 2)
    np.save(tmp_path / "a.npy", np.array([1, 1e300]))
    assert "sample 1 holds 1e+300" in refusal(tmp_path / "a.npy", 0, 2)
    write_netcdf(tmp_path / "a.nc", np.array([1, 2, np.nan], "f4"))
    assert "sample 2 holds " in refusal(f"{tmp_path}/a.nc:x", 0, 3)


# ---- Damage ---------------------------------------------------------------------------------------------------------


def damaged(mode, *arguments):
    """How often what happened: died, same, different, nameless."""
    done = run(mode, *arguments)
    assert done.returncode == 0 and done.stderr == b"", (arguments, done.returncode, done.stderr[-3000:])
    words = done.stdout.decode().split()
    return dict(zip(words[::2], map(int, words[1::2])))


@pytest.mark.parametrize("unlimited", [False, True])
@pytest.mark.parametrize("format", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"])
def test_damaged_netcdf_classic(tmp_path, format, unlimited):
    """The library reads zeros behind the end of such a file, and crashes on some headers (test_dataset.c has the other
    formats)."""
    array = np.random.default_rng(3).integers(0, 200, (6, 4, 3), "i2")
    path = write_netcdf(tmp_path / "a.nc", array, format=format, unlimited=unlimited, attributes={"units": "1"})
    counts = damaged("cut", f"{path}:x")
    assert counts == {"died": path.stat().st_size, "same": 0, "different": 0, "nameless": 0}
    counts = damaged("flip", f"{path}:x", 1, 3000)
    assert counts["died"] > 500 and counts["nameless"] == 0


def test_cut_netcdf4(tmp_path):
    array = np.arange(1000, dtype="f4").reshape(100, 10)
    whole = write_netcdf(tmp_path / "a.nc", array, zlib=True).read_bytes()
    for size in [8, 9, 47, 48, 96, 512, *range(600, len(whole), 701), len(whole) - 1]:
        message = refusal(f"{write(tmp_path / 'cut.nc', whole[:size])}:x", 0, 100)
        assert "netCDF" in message, (size, message)


def test_flipped_bits_in_netcdf4_data(tmp_path):
    """Only in the data: on some damaged metadata HDF5 itself hangs (1.10.8), which --watchdog is there for."""
    array = np.arange(300, dtype="f4").reshape(30, 10)
    whole = write_netcdf(tmp_path / "a.nc", array, zlib=True, complevel=4, shuffle=False).read_bytes()
    packed = zlib.compress(array.tobytes(), 4)
    start = whole.index(packed)
    for bit in np.random.default_rng(4).integers(8 * start, 8 * (start + len(packed)), 60):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        message = refusal(f"{write(tmp_path / 'flipped.nc', bytes(data))}:x", 0, 30)
        assert "cannot be read (NetCDF: " in message, bit


def test_wrong_checksums(tmp_path):
    array = numbers((100, 50000), "u1")
    data = bytearray(gzip.compress(idx_bytes(array), mtime=0))
    data[-8] ^= 1
    path = write(tmp_path / "a.gz", bytes(data))
    assert "damaged gzip" in refusal(path, 0, 100)
    assert "damaged gzip" in refusal(path, 99, 1)
    assert read(path, 0, 50)[0].tobytes() == array[:50].tobytes()  # only who reads the end can know
    data = idx_bytes(numbers((2**19 - 8,), "u1"))  # its last byte will end both of zlib's buffers
    packed = zlib.compress(data)[2:-4]
    packed = b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * (-(len(packed) + 11) % 2**18) + b"\0" + packed
    for checksum, good in (zlib.crc32(data), True), (zlib.crc32(data) ^ 1, False):
        write(tmp_path / "b.gz", packed + struct.pack("<II", checksum, len(data)))
        assert (run("dump", tmp_path / "b.gz", 0, 2**19 - 8).returncode == 0) == good
    for save in np.savez, np.savez_compressed:
        save(tmp_path / "a.npz", x=array)
        whole = bytearray((tmp_path / "a.npz").read_bytes())
        central = whole.rindex(b"PK\1\2")
        whole[central + 16] ^= 1
        write(tmp_path / "a.npz", bytes(whole))
        assert "damaged zip" in refusal(f"{tmp_path}/a.npz:x", 0, 1)


def test_bombs(tmp_path):
    """Headers that ask for far more than the packed bytes can hold are refused without unpacking."""
    head = struct.pack(">BBBBII", 0, 0, 8, 2, 1 << 20, 1 << 16)
    packed = gzip.compress(head + os.urandom(1 << 20))
    size = struct.pack("<I", (len(head) + (1 << 36)) & 0xFFFFFFFF)
    assert "more than" in refusal(write(tmp_path / "a.gz", packed[:-4] + size))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }"
        file.writestr("x.npy", npy_with(header, bytes(1000)))
    assert "truncated" in refusal(f"{tmp_path}/a.npz:x")


def test_zip_entries_that_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("x.npy", npy_bytes(numbers((5,), "u1")))
    assert "packed by method 12" in refusal(f"{tmp_path}/b.npz:x")


# ---- Names, hashes -----------------------------------------------------------------------------------------------


def test_names(tmp_path):
    path = write(tmp_path / "names.txt", "\ufeffzéro\r\none two\n数\t三".encode())
    assert run("names", path, -1).stdout.decode() == "zéro\none two\n数\t三\n"
    assert run("names", path, 3).returncode == 0
    done = run("names", path, 10)
    assert done.returncode == 1
    assert done.stderr.decode() == f"cnnscope: {path}: has 3 lines, expected 10; write one name on each line\n"
    for text, expected in [
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\n\xff\n", "line 2 is not UTF-8"),
        (b"\xc0\xaf\n", "line 1 is not UTF-8"),
        (b"a\xe6\x95\n", "line 1 is not UTF-8"),
        (b"\xed\xa0\x80\n", "line 1 is not UTF-8"),
        (b"\xf4\x90\x80\x80\n", "line 1 is not UTF-8"),
        (b"a\0b\n", "line 1 is not UTF-8"),
        (b"", "the file is empty"),
    ]:
        done = run("names", write(path, text), -1)
        assert done.returncode == 1 and expected in done.stderr.decode(), text


def test_sha256(tmp_path):
    for data in b"abc", os.urandom(3_000_001), bytes(1 << 20):
        assert run("sha256", write(tmp_path / "x", data)).stdout.decode().strip() == hashlib.sha256(data).hexdigest()
    assert "no such file" in run("sha256", tmp_path / "none").stderr.decode()


def test_units():
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
