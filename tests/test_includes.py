"""The boundaries of the source: who may include what."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def includes() -> list[tuple[str, str]]:
    """(file, included header) for every include line of src and kernels."""
    found = []
    for folder in ("src", "kernels"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".c", ".h", ".cu", ".inc"):
                for header in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE):
                    found.append((str(path.relative_to(ROOT)), header))
    return found


def offenders(header: str, allowed: str) -> list[tuple[str, str]]:
    """Include lines of headers that match, in files that do not."""
    return [(f, h) for f, h in includes() if re.fullmatch(header, h) and not re.fullmatch(allowed, f)]


def test_there_are_include_lines_to_look_at():
    assert len(includes()) > 100


def test_ranks_are_one_boundary():
    assert offenders(r"mpi\.h|nccl\.h", r"src/comm\w*\.[ch]") == []


def test_results_are_one_boundary():
    assert offenders(r"netcdf\w*\.h|hdf5\.h", r"src/(output|dataset)\w*\.c") == []


def test_the_device_is_one_boundary():
    assert offenders(r"cuda\w*\.h|cublas\w*\.h", r"kernels/cuda/.*|src/comm_nccl\.c") == []
    assert offenders(r"dnnl.*|cblas\.h|lapacke?\.h", r"kernels/cpu/.*|kernels/dense\.c|kernels/cuda/memory\.cu") == []


def test_kernels_know_nothing_of_the_program():
    own = {p.name for p in (ROOT / "src").iterdir()}
    assert [(f, h) for f, h in includes() if f.startswith("kernels/") and Path(h).name in own] == []


def test_only_the_stages_and_main_know_the_ranks():
    """Neither the graph nor a reader of files communicates."""
    for name in ("graph", "plan", "model", "pth", "pickle", "dataset", "arena", "options", "error"):
        assert [(f, h) for f, h in includes() if re.fullmatch(rf"src/{name}\w*\.[ch]", f) and h == "comm.h"] == []
