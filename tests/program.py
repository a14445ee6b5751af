"""Runs cnnscope under mpirun and reads what it wrote, for the whole-program tests.

The program is build/cnnscope, or the one CNNSCOPE_BIN names. Runs may use more ranks than there are cores, and root.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import netCDF4
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
BINARY = Path(os.environ.get("CNNSCOPE_BIN", ROOT / "build" / "cnnscope"))
DATA = ROOT / "tests" / "data"
GOLDEN = ROOT / "tests" / "golden"

MODEL = DATA / "model.pth"
IMAGES = DATA / "t10k-images-idx3-ubyte.gz"
LABELS = DATA / "t10k-labels-idx1-ubyte.gz"

ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_odls_base_sigkill_timeout": "0",  # after a failure; saves two seconds each
    "OMPI_MCA_pml": "ob1",  # shared memory, without looking for fast networks first; saves a quarter of a second each
    "OMPI_MCA_ess_singleton_isolated": "1",  # one rank without mpirun starts no daemon beside it
    "OMP_WAIT_POLICY": "passive",
}


@dataclass
class Run:
    status: int
    lines: list[str]  # of stderr
    stdout: str
    afterlife: float  # seconds from the first line of stderr to the end of mpirun
    command: str


def run(*arguments: object, ranks: int = 1, timeout: float = 120, shell: str = "") -> Run:
    """One job of `ranks` ranks, a single one without mpirun. `shell` is put before the program on every rank, as
    "ulimit -f 100;".

    A job that does not end in time is killed, whole, and fails the test.
    """
    words = [str(BINARY), *(str(a) for a in arguments)]
    program = ["sh", "-c", f'{shell} exec "$@"', "sh", *words] if shell else words
    command = launched(program, ranks)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          cwd=ROOT, env=os.environ | ENVIRONMENT) as job:
        try:
            return _watch(job, time.monotonic() + timeout, " ".join(command))
        except BaseException:
            job.terminate()  # mpirun ends its ranks
            try:
                job.wait(5)
            except subprocess.TimeoutExpired:
                job.kill()
            raise


def launched(program: list[str], ranks: int) -> list[str]:
    """The command that starts it: mpirun takes most of a second, and one rank needs none."""
    return program if ranks == 1 else ["mpirun", "--quiet", "-n", str(ranks), *program]


def _watch(job: subprocess.Popen, deadline: float, command: str) -> Run:
    """The job's streams, read as they come: stderr first, so that the time of its first line is known."""
    os.set_blocking(job.stderr.fileno(), False)
    os.set_blocking(job.stdout.fileno(), False)
    text = {job.stderr: b"", job.stdout: b""}
    first = None
    while True:
        ended = job.poll() is not None
        for stream in text:
            while chunk := _read(stream):
                text[stream] += chunk
        if first is None and text[job.stderr]:
            first = time.monotonic()
        if ended:
            break
        assert time.monotonic() < deadline, f"still running after its time: {command}\n{text[job.stderr].decode()}"
        time.sleep(0.01)
    now = time.monotonic()
    errors, output = (text[s].decode(errors="replace") for s in (job.stderr, job.stdout))
    # libevent inside mpirun sometimes says this of a rank's pipe when ranks end at once; it is no word of the program's
    lines = [line for line in errors.splitlines() if not line.startswith("[warn] Epoll")]
    return Run(job.returncode, lines, output, now - (first or now), command)


def _read(stream) -> bytes | None:
    try:
        return os.read(stream.fileno(), 1 << 16)
    except BlockingIOError:
        return None


def succeed(output: Path, *arguments: object, ranks: int = 1, timeout: float = 120) -> Path:
    """A run that must work, without a word on stderr, and leave `output` and nothing unfinished."""
    result = run(*arguments, "--output", output, "--quiet", ranks=ranks, timeout=timeout)
    assert result.status == 0, f"{result.command}\nstatus {result.status}\n" + "\n".join(result.lines)
    assert result.lines == [], result.lines
    assert output.exists() and not Path(f"{output}.partial").exists()
    return output


def survivors(word: str) -> list[str]:
    """Command lines of living processes that contain `word`, this one's own family left out."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if word in line and "pytest" not in line:
                    found.append(line)
        except OSError:
            pass  # it ended while we looked
    return found


@dataclass
class Variable:
    """A variable as it lies in the file: nothing scaled, masked or decoded."""

    dimensions: tuple[str, ...]
    values: np.ndarray
    attributes: dict[str, object]


def read(path: Path) -> tuple[dict[str, Variable], dict[str, object]]:
    """All variables and global attributes of a result."""
    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        file.set_auto_chartostring(False)
        variables = {
            name: Variable(v.dimensions, np.asarray(v[...]), {a: v.getncattr(a) for a in v.ncattrs()})
            for name, v in file.variables.items()
        }
        return variables, {a: file.getncattr(a) for a in file.ncattrs()}


def values(path: Path) -> dict[str, np.ndarray]:
    return {name: variable.values for name, variable in read(path)[0].items()}


def raw(result: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Maps as they were before they were scaled to 0..1, from their bounds (N, H, W)."""
    low, high = (result[f"{name}_{end}"][:, None, None].astype(np.float64) for end in ("low", "high"))
    return result[name] * (high - low) + low


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, in units of the largest expected value."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float(np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max())


def relative_errors(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """relative_error of each sample (N); a sample that should be zero everywhere counts its largest value."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    largest = np.abs(expected.reshape(len(expected), -1)).max(1)
    difference = np.abs(got.astype(np.float64) - expected).reshape(len(expected), -1).max(1)
    return difference / np.where(largest > 0, largest, 1)
