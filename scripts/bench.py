#!/usr/bin/env python3
"""Measures the whole demo job and its stages, and a peer on the same data in the same run.

    .venv/bin/python scripts/bench.py [--repeat 3] [--peer] [--csv FILE]

Runs the program on the shipped MNIST test set with 2 ranks x 1 thread, 1 rank x 2 threads and 1 rank x 1 thread,
alternating, and prints median, least and largest seconds of the whole job (process start to renamed file) and of each
stage, with the exact KL beside them. --peer runs scikit-learn's Barnes-Hut t-SNE on the same logits (its own default
settings, as the notebook) and prints the ratio and the exact KL of its map. Timing is never a test: a busy machine is
named, not failed.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
LAYOUTS = ((2, 1), (1, 2), (1, 1))  # (ranks, threads)
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


def busy_seconds() -> float:
    """CPU seconds used on this machine since boot, by anybody."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def run_job(binary: Path, output: Path, ranks: int, threads: int) -> dict[str, float]:
    """One demo job; seconds of the whole and of its stages, the KL, and CPU seconds used by others meanwhile."""
    command = ["mpirun", "--quiet", "--bind-to", "none", "-n", str(ranks), str(binary), "--quiet", "--overwrite",
               "--model", str(DATA / "model.pth"), "--images", str(DATA / "t10k-images-idx3-ubyte.gz"),
               "--labels", str(DATA / "t10k-labels-idx1-ubyte.gz"), "--threads", str(threads), "--output", str(output)]
    before, own, start = busy_seconds(), os.times(), time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | ENVIRONMENT)
    seconds = time.perf_counter() - start
    used = os.times().children_user + os.times().children_system - own.children_user - own.children_system
    with xr.open_dataset(output) as ds:
        stages = {k.removeprefix("run_seconds_"): float(v) for k, v in ds.attrs.items() if k.startswith("run_seconds_")}
        kl = float(ds.logits_tsne_kl)
    return {"whole job": seconds} | stages | {"kl": kl, "others": busy_seconds() - before - used}


def exact_kl(x: np.ndarray, y: np.ndarray, perplexity: float = 30) -> float:
    """KL of a map against the exact joint probabilities, by scikit-learn's own functions for P, in blocks for Q."""
    from sklearn.manifold._t_sne import _joint_probabilities
    from sklearn.metrics import pairwise_distances
    from scipy.spatial.distance import squareform

    p = squareform(_joint_probabilities(pairwise_distances(x, metric="sqeuclidean").astype(np.float32), perplexity, 0))
    y = y.astype(np.float64)
    z = cross = own = 0.0
    for i in range(0, len(y), 500):
        w = 1 / (1 + pairwise_distances(y[i : i + 500], y, metric="sqeuclidean"))
        w[np.arange(len(w)), i + np.arange(len(w))] = 0
        z += w.sum()
        rows = p[i : i + 500]
        kept = (rows > 1e-15) & (w > 0)
        own += float((rows[kept] * np.log(rows[kept])).sum())
        cross += float((rows[kept] * np.log(w[kept])).sum())
    return own - cross + float(np.log(z))


def run_peer(logits: np.ndarray) -> dict[str, float]:
    from sklearn.manifold import TSNE

    start = time.perf_counter()
    y = TSNE(n_components=2, n_jobs=os.cpu_count()).fit_transform(logits)
    return {"seconds": time.perf_counter() - start, "kl": exact_kl(logits, y)}


def show(title: str, runs: list[dict[str, float]]) -> list[list[object]]:
    print(f"\n{title}, {len(runs)} runs: median (least .. largest) seconds")
    rows = []
    for name in runs[0]:
        values = [r[name] for r in runs]
        middle, low, high = statistics.median(values), min(values), max(values)
        rows.append([title, name, middle, low, high])
        if name == "kl":
            print(f"  exact KL of the map    {middle:.4f}")
        elif name == "others":
            if high > 0.05 * statistics.median(r["whole job"] for r in runs):
                print(f"  WARNING: other processes used up to {high:.1f} s of CPU during a run; repeat on an idle machine")
        else:
            print(f"  {name:22s} {middle:8.3f}  ({low:.3f} .. {high:.3f})")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each layout (3)")
    parser.add_argument("--peer", action="store_true", help="also scikit-learn's Barnes-Hut t-SNE")
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "cnnscope")
    parser.add_argument("--csv", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    if not options.binary.exists():
        print(f"bench.py: {options.binary}: no such program; run scripts/setup.sh first", file=sys.stderr)
        return 1
    results: dict[tuple[int, int], list[dict[str, float]]] = {layout: [] for layout in LAYOUTS}
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "bench.nc"
        for _ in range(options.repeat):
            for layout in LAYOUTS:
                results[layout].append(run_job(options.binary, output, *layout))
        with xr.open_dataset(output) as ds:
            logits = ds.logits.values
    for (ranks, threads), runs in results.items():
        rows += show(f"{ranks} rank(s) x {threads} thread(s)", runs)
    single = statistics.median(r["whole job"] for r in results[1, 1])
    for layout in LAYOUTS[:2]:
        print(f"speed-up of {layout[0]} x {layout[1]} over 1 x 1: "
              f"{single / statistics.median(r['whole job'] for r in results[layout]):.2f}")
    if options.peer:
        peer = run_peer(logits)
        stage = statistics.median(r["affinities_logits"] + r["tsne_logits"] for r in results[1, 2])
        print(f"\nscikit-learn Barnes-Hut t-SNE: {peer['seconds']:.1f} s, exact KL {peer['kl']:.4f}; "
              f"this program is {peer['seconds'] / stage:.1f} times as fast")
        rows.append(["scikit-learn Barnes-Hut", "tsne", peer["seconds"], peer["seconds"], peer["seconds"]])
        rows.append(["scikit-learn Barnes-Hut", "kl", peer["kl"], peer["kl"], peer["kl"]])
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["what", "figure", "median", "least", "largest"])
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
