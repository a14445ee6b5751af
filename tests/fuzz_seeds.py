#!/usr/bin/env python3
"""Sound small files for scripts/fuzz.sh to damage: fuzz_seeds.py CORPUS CNNSCOPE; CORPUS has one folder per parser."""

import gzip
import io
import re
import struct
import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np

from malicious import corpus as malicious_corpus

corpus, program = Path(sys.argv[1]), sys.argv[2]
tests = Path(__file__).parent
values = np.arange(24).reshape(2, 3, 4)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(save) -> bytes:
    file = io.BytesIO()
    save(file, x=values.astype(np.float32), y=values[:, 0, 0])
    return file.getvalue()


def classic(form: str, unlimited: bool) -> bytes:
    file = netCDF4.Dataset("seed", "w", format=form, memory=1)
    file.createDimension("n", None if unlimited else 2)
    file.createDimension("m", 3)
    for name in ("x", "y"):
        variable = file.createVariable(name, "i2", ("n", "m"))
        variable.units = "1"
        variable[:] = np.arange(6).reshape(2, 3)
    return bytes(file.close())


def onnx(path: Path) -> bytes:
    """The file, and behind it the size of its images."""
    layers = subprocess.run([program, "inspect", "--model", path], capture_output=True, text=True, check=True).stdout
    size = re.search(r"Input +\((\d+), (\d+), (\d+)\)", layers)
    return path.read_bytes() + bytes(int(n) - 1 for n in size.groups())


def record(key: bytes, first: int, count: int, payload: bytes) -> bytes:
    """Of a checkpoint, without what fuzz.c mends: magic, run and CRCs."""
    return struct.pack("<8sII160sqqQQ", b"", 1, 0, key, first, count, 0, len(payload)) + payload + bytes(4)


def rows(first: int, count: int) -> bytes:
    return record(b"forward", first, count, bytes(3 * count + 5 * len(range(max(first, 20), min(first + count, 30)))))


idx = struct.pack(">HBB3I", 0, 8, 3, 2, 3, 4) + bytes(range(24))
seeds = {
    "pth": [path.read_bytes() for path in sorted(tests.glob("*/**/*.pt*")) if path.stat().st_size < 40000]
           + [case.data for case in malicious_corpus(Path("/mark")).values() if len(case.data) < 40000],
    "safetensors": [path.read_bytes() for path in sorted(tests.glob("golden/safetensors/*"))],
    "onnx": [onnx(path) for path in sorted(tests.glob("golden/onnx/*.onnx"))],
    "dataset": [idx, gzip.compress(idx), struct.pack(">HBBI", 0, 13, 1, 2) + struct.pack(">2f", 1, 2),
                *(npy(values.astype(t)) for t in ("u1", "<i8", ">i4", "f2", "<f4", ">f8", "?"))],
    "keyed": [npz(np.savez), npz(np.savez_compressed)],
    "csv": [b"path,x\na,1\nb,2\n", b'"a b",x\r\n"c,""d",-3\r\n', "\ufeffx\n-1\n".encode(), b'x,"y\nz"\n1,"2\n3"\n'],
    # classic files as they are, and recipes (make_netcdf in fuzz.c): format, dimensions, variables, their types ...
    "netcdf": [*(classic(form, unlimited) for form in ("NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA")
                 for unlimited in (False, True)),
               *(bytes([form, 1, 1, 3, 2, kind, 2, 0, 1, 2, 0, 0, 1, *range(16), 3, 0, 1, *b"true"])
                 for form in (0, 3) for kind in range(1, 16))],
    "names": [b"zero\none\ntwo\n", "null\r\neins\r\nzw\u00f6lf".encode()],
    "options": [b"embed\n--input\nx\n--output\ny\n--tsne\n3\n--init\nrandom", b"inspect\n--model\nm",
                b"--model\nm\n--images\nx:y\n--output\ny\n--mean\n1,2,3\n--samples\n3:5\n--schedule\nfast\n--pca\n7"],
    # the first byte: which file, and whether it is mended
    "checkpoint": [b"\x03" + rows(0, 8) + rows(8, 16) + rows(24, 40), b"\x03" + rows(16, 16) + rows(0, 24) + rows(16, 48),
                   b"\x00" + rows(0, 8), b"\x04" + record(b"tsne logits", 0, 0, bytes(range(99))),
                   b"\x05version = 1\noption_seed = 7\nx\n = \n", b"\x02version = 1\ncheck = 0\n"],
}
for target, files in seeds.items():
    for i, data in enumerate(files):
        (corpus / target / f"seed{i}").write_bytes(data)
