"""Runs tsne_driver (tsne_driver.c): t-SNE and PCA on arrays, without the rest of the program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np

from program import ENVIRONMENT, ROOT, launched

DRIVER = Path(os.environ.get("CNNSCOPE_BUILD", ROOT / "build")) / "tsne_driver"


def drive(*arguments: object, ranks: int = 1, threads: int = 1, fails: bool = False, limit: int = 0,
          **environment: str) -> list[list[str]]:
    """The words of each line the driver prints, or, where it must fail, of its one line on stderr. limit: bytes that
    t-SNE may take, 0: as many as there are."""
    environment |= {"THREADS": str(threads)} | ({"LIMIT": str(limit)} if limit else {})
    job = subprocess.run(launched([str(DRIVER), *map(str, arguments)], ranks), text=True,
                         env=os.environ | ENVIRONMENT | environment, capture_output=True, timeout=300)
    assert (job.returncode != 0) == fails, f"{job.args}\nstatus {job.returncode}\n{job.stdout}{job.stderr}"
    return [line.split() for line in (job.stderr if fails else job.stdout).splitlines()]


def save(path: Path, array: np.ndarray) -> Path:
    np.ascontiguousarray(array, np.float32).tofile(path)
    return path


class Affinities(NamedTuple):
    p: np.ndarray
    beta: np.ndarray
    sum: float
    dropped: float
    entries: int


def affinities(folder: Path, x: np.ndarray, perplexity: float | str, threads: int = 1) -> Affinities:
    n, d = x.shape
    (words,) = drive("affinities", save(folder / "x", x), n, d, perplexity, folder / "p", threads=threads)
    values = np.fromfile(folder / "p", np.float32)
    return Affinities(values[: n * n].reshape(n, n), values[n * n :], float(words[0]), float(words[1]), int(words[2]))


class Map(NamedTuple):
    y: np.ndarray
    kl: float
    iterations: int
    history: dict[int, float]
    dropped: float
    nonzeros: int


def tsne(folder: Path, x: np.ndarray, start: np.ndarray, perplexity: float | str = 30, iterations: int = 1000,
         exaggerated: int = 250, rate: float = 0, ranks: int = 1, threads: int = 1) -> Map:
    (n, d), axes = x.shape, start.shape[1]
    lines = drive("tsne", save(folder / "x", x), n, d, perplexity, save(folder / "start", start), axes, iterations,
                  folder / "map", exaggerated, rate, ranks=ranks, threads=threads)
    kl, done, _, dropped, nonzeros = lines[0]
    history = {int(i): float(value) for i, value in lines[1:]}
    return Map(np.fromfile(folder / "map", np.float32).reshape(n, axes), float(kl), int(done), history, float(dropped),
               int(nonzeros))


def first_maps(folder: Path, x: np.ndarray, start: np.ndarray, perplexity: float, iterations: int, exaggerated: int,
               rate: float) -> np.ndarray:
    """The start and the map after each of the iterations."""
    (n, d), axes = x.shape, start.shape[1]
    drive("maps", save(folder / "x", x), n, d, perplexity, save(folder / "start", start), axes, iterations,
          folder / "map", exaggerated, rate)
    return np.fromfile(folder / "map", np.float32).reshape(iterations + 1, n, axes)


def memory(folder: Path, x: np.ndarray, start: np.ndarray, iterations: int) -> tuple[float, float]:
    """Bytes as predicted and as taken."""
    (n, d), axes = x.shape, start.shape[1]
    lines = drive("tsne", save(folder / "x", x), n, d, 30, save(folder / "start", start), axes, iterations,
                  folder / "map", MEMORY="1")
    (words,) = (line for line in lines if line[0] == "memory")
    return float(words[1]), float(words[2])


class Components(NamedTuple):
    center: np.ndarray
    axes: np.ndarray
    variance: np.ndarray
    ratio: np.ndarray
    scores: np.ndarray


def pca(folder: Path, x: np.ndarray, k: int, ranks: int = 1, threads: int = 1) -> Components:
    n, d = x.shape
    drive("pca", save(folder / "x", x), n, d, k, folder / "pca", ranks=ranks, threads=threads)
    data = (folder / "pca").read_bytes()
    end = 8 * (d + k * d + 2 * k)
    doubles, scores = np.frombuffer(data[:end]), np.frombuffer(data[end:], np.float32)
    center, axes, variance, ratio = np.split(doubles, np.cumsum([d, k * d, k]))
    return Components(center, axes.reshape(k, d), variance, ratio, scores.reshape(n, k))


def same(a: NamedTuple, b: NamedTuple) -> bool:
    """Bit by bit."""
    return all(x == y if isinstance(x, dict) else np.asarray(x).tobytes() == np.asarray(y).tobytes()
               for x, y in zip(a, b))
