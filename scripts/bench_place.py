#!/usr/bin/env python3
"""New samples in an old map: `cnnscope place` beside openTSNE's transform, by one ruler.

    .venv/bin/python scripts/bench_place.py FOLDER [--input X.npy] [--mapped 5000] [--threads 2]

Maps the first samples of a matrix (default: the logits of the MNIST test set by the shipped network), places the rest, and
prints for each way the trustworthiness (15 neighbours) and recall (10) of the new samples among the mapped ones, in float64
over all pairs, and seconds. openTSNE (FOLDER/env, as scripts/bench.py installs it) transforms into the same map and into its
own, with its default perplexity (5) and with the map's. Last: how far the map's own samples come to lie from their places.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import netCDF4
import numpy as np
from bench import DATA, MPI, ROOT, install
from scipy.spatial.distance import cdist

PROGRAM = ROOT / "build" / "cnnscope"
PERPLEXITY = 30

PEER = """
import json, sys, time
import numpy as np, openTSNE
x, y, n, perplexity, threads, folder = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6]
x = np.load(x).astype(float)
seconds = {}
for name, own in (("same", False), ("own", True)):
    common = dict(n_jobs=threads, random_state=0)
    if own:
        embedding = openTSNE.TSNE(perplexity=perplexity, neighbors="exact", **common).fit(x[:n])
    else:
        affinities = openTSNE.affinity.PerplexityBasedNN(x[:n], perplexity=perplexity, method="exact", **common)
        embedding = openTSNE.TSNEEmbedding(np.load(y).astype(float), affinities, **common)
    for p in (5, perplexity):
        since = time.perf_counter()
        placed = embedding.transform(x[n:], perplexity=p)
        seconds[f"{name} {p}"] = time.perf_counter() - since
        np.savez(f"{folder}/{name}_{p}.npz", placed=np.asarray(placed), fixed=np.asarray(embedding))
print(json.dumps(seconds))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--mapped", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    folder, n = arguments.folder, arguments.mapped
    folder.mkdir(parents=True, exist_ok=True)
    x = np.load(arguments.input) if arguments.input else logits(folder)
    np.save(folder / "x.npy", x)
    work = ("--input", folder / "x.npy", "--threads", arguments.threads)
    run("embed", *work, "--samples", n, "--perplexity", PERPLEXITY, "--output", folder / "map.nc")
    rank = cdist(x[n:].astype(float), x[:n].astype(float)).argsort(1, kind="stable").argsort(1, kind="stable")

    install(argparse.Namespace(folder=folder, torch=False))
    print(f"{'':44} trustworthiness   recall  seconds")
    place = ("place", "--map", folder / "map.nc", *work)
    seconds = run(*place, "--samples", f"{n}:{len(x)}", "--output", folder / "placed.nc")
    placed, fixed = read(folder / "placed.nc")
    report("cnnscope place", rank, placed, fixed, seconds)
    np.save(folder / "map.npy", fixed)
    peer = subprocess.run([folder / "env/bin/python", "-W", "ignore", "-c", PEER, folder / "x.npy", folder / "map.npy",
                           str(n), str(PERPLEXITY), str(arguments.threads), folder],
                          check=True, capture_output=True, text=True)
    for name, took in json.loads(peer.stdout.splitlines()[-1]).items():
        which, perplexity = name.split()
        found = np.load(folder / f"{which}_{perplexity}.npz")
        report(f"openTSNE transform, {which} map, perplexity {perplexity}", rank, found["placed"], found["fixed"], took)
    run(*place, "--samples", n, "--output", folder / "own.nc")
    placed, fixed = read(folder / "own.nc")
    radius = np.linalg.norm(fixed - fixed.mean(0), axis=1).max()
    apart = np.quantile(np.linalg.norm(placed - fixed, axis=1) / radius, (0.5, 0.95, 1))
    print("own samples, in radii of the map: median {:.5f}, 95th percentile {:.5f}, farthest {:.5f}".format(*apart))


def logits(folder: Path) -> np.ndarray:
    run("--model", DATA / "model.pth", "--images", DATA / "t10k-images-idx3-ubyte.gz", "--output", folder / "logits.nc",
        "--attribution", "none", "--tsne", 0, "--pca", 0)
    with netCDF4.Dataset(folder / "logits.nc") as file:
        return np.asarray(file["logits"][:])


def run(*words: object) -> float:
    """Seconds of a job."""
    since = time.perf_counter()
    subprocess.run([PROGRAM, *map(str, words), "--overwrite", "--quiet"], check=True, env=os.environ | MPI)
    return time.perf_counter() - since


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with netCDF4.Dataset(path) as file:
        return np.asarray(file["input_place"][:]).astype(float), np.asarray(file["input_fixed"][:]).astype(float)


def report(name: str, rank: np.ndarray, placed: np.ndarray, fixed: np.ndarray, seconds: float, k: int = 15) -> None:
    near = np.take_along_axis(rank, cdist(placed, fixed).argsort(1, kind="stable")[:, :k], 1)
    worst = k * (2 * (len(fixed) + 1) - 3 * k - 1) / 2  # each new sample is one more of the mapped ones
    trust = 1 - np.maximum(near + 1 - k, 0).sum(1).mean() / worst
    print(f"{name:44} {trust:15.5f} {(near[:, :10] < 10).mean():8.4f} {seconds:8.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
