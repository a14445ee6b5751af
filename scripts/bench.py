#!/usr/bin/env python3
"""Times the program and its peers on the same data, alternating, on this machine.

    .venv/bin/python scripts/bench.py FOLDER [--only logits,tsne ...] [--torch] [--long] [--samples N] [--repeat 3]

Rows: logits, saliency (peer: torch, with --torch), tsne (openTSNE and scikit-learn Barnes-Hut), pixels (--pre-pca 50;
scikit-learn on pixels), attribution (of the first tenth of the images: integrated gradients of 50 steps, SmoothGrad of
25 draws, Grad-CAM, saliency with its deletion curve of 28 steps; peers captum, pytorch-grad-cam and Quantus, with
--torch), job (process start to renamed file; with --torch, PyTorch and scikit-learn doing the same in a notebook's
way), layouts (1 x 1, 2 ranks x 1 thread, 1 x 2), growth (2.5k to 20k, with --long 60k). Peers are installed into
FOLDER/env, only when a row needs them. Results: FOLDER/bench.csv and bench.png.

Everything is pinned to as many cores as it has threads. Peers' seconds are those of their calls, without reading; ours
are those of the same work. Medians with least and largest. The KL beside each map is one ruler's, in float64 over all
pairs, for N up to 20,000; past that our own file's for our map and none for peers. The map of --pre-pca is judged by
the affinities of the pixels themselves. More samples than the data has are copies with noise of 1e-3 of the spread, and
said to be.

Bounds: the FMA throughput of these cores, measured at the start by build/bench_kernels. A network's bound is its
multiply-adds at that rate; t-SNE's repulsion needs 16 vector operations for both directions of a pair (2 differences,
2 for the distance, 6 for the reciprocal, 2 for the square and the sum, 4 for two forces), so a step's bound is that. On
AMD's Zen, which adds in other units than it multiplies in, it is the 7 additions.
Timing is never a test: a busy machine is named, not failed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
ROWS = ("logits", "saliency", "tsne", "pixels", "attribution", "job", "layouts", "growth")
MULTIPLY_ADDS = 16 * 9 * 28 * 28 + 32 * 16 * 9 * 14 * 14 + 32 * 10  # of one image in the shipped network
ITERATIONS = 1000
DELETION_STEPS = 28
RULER_MAX = 20_000
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
       "OMPI_MCA_btl_vader_single_copy_mechanism": "none"}


# ---- One measured process --------------------------------------------------------------------------------------------


def busy_seconds() -> float:
    """CPU seconds used on this machine since boot, by anybody."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def measured(command: list[str], cores: int) -> dict[str, float]:
    """Runs to the end on `cores` cores: its seconds, CPU seconds of others meanwhile."""
    mine = sorted(os.sched_getaffinity(0))[:cores]
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = os.environ | MPI | dict.fromkeys(names, str(cores))
    before, start = busy_seconds(), time.perf_counter()
    process = subprocess.Popen(command, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, mine))
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"bench.py: {' '.join(command)}: ended with status {process.returncode}")
    others = busy_seconds() - before - usage.ru_utime - usage.ru_stime
    return {"whole": seconds, "others": max(others, 0)}


def ours(options: argparse.Namespace, arguments: list[str], ranks: int = 1, threads: int = 2) -> dict[str, float]:
    """The program; adds its stages' seconds, MiB of its largest rank, and its KL."""
    import xarray as xr

    output = options.folder / "bench.nc"
    run = measured(["mpirun", "--quiet", "--bind-to", "none", "-n", str(ranks), str(options.binary), *arguments,
                    "--quiet", "--overwrite", "--threads", str(threads), "--output", str(output)], ranks * threads)
    with xr.open_dataset(output) as ds:
        run |= {k.removeprefix("run_seconds_"): float(v) for k, v in ds.attrs.items() if k.startswith("run_seconds_")}
        run["MiB"] = float(ds.attrs["run_bytes_memory"]) / 2**20
        for name in ds.variables:
            if name.endswith("_tsne_kl"):
                run["kl"] = float(ds[name])
            if name.endswith("_tsne"):
                np.save(options.folder / "ours.npy", ds[name].values)
                run["p_bytes"] = 2 * float(ds[name].affinity_nonzeros)  # 4 a pair, which is kept once
    return run


def peer(options: argparse.Namespace, kind: str, data: Path) -> dict[str, float]:
    """A peer in an interpreter of its own; it says how long its computing took, without imports and reading."""
    said = options.folder / "peer.json"
    run = measured([str(options.folder / "env/bin/python"), __file__, "--run-peer", kind, str(data), str(said)], 2)
    return run | json.loads(said.read_text())


# ---- Peers (in FOLDER/env) -------------------------------------------------------------------------------------------


def run_peer(kind: str, data: str, said: str) -> None:
    x = np.load(data)
    if kind.startswith("torch"):
        seconds = run_torch(kind, x)
    elif kind == "notebook":
        seconds = run_notebook(x, Path(said))
    elif kind.startswith("attribution"):
        seconds = run_attribution(kind.split()[1], x)
    else:
        if kind.startswith("openTSNE"):
            from openTSNE import TSNE

            made = TSNE(n_jobs=2, negative_gradient_method="fft" if kind.endswith("FFT") else "bh", random_state=0)
            start = time.perf_counter()
            y = np.asarray(made.fit(x))
        else:
            from sklearn.manifold import TSNE

            made = TSNE(n_jobs=2, random_state=0)
            start = time.perf_counter()
            y = made.fit_transform(x)
        seconds = time.perf_counter() - start
        np.save(Path(said).with_name("peer.npy"), y)
    Path(said).write_text(json.dumps({"compute": seconds, "MiB": peak_memory()}))


def peak_memory() -> float:
    """MiB of this process at most, nan where unknown. Not getrusage's, which begins with what it was forked from."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def run_torch(kind: str, images: np.ndarray) -> float:
    """Least of four passes, after one to warm up, of the best batch size: what a careful user gets."""
    import torch

    net = torch_net()
    net = net.to(memory_format=torch.channels_last)
    x = torch_input(images).contiguous(memory_format=torch.channels_last)

    def one(batch: int) -> float:
        start = time.perf_counter()
        for part in x.split(batch):
            if kind == "torch logits":
                with torch.inference_mode():
                    net(part)
            else:
                part = part.detach().requires_grad_(True)
                net(part).max(1)[0].sum().backward()
                part.grad.abs().amax(1)
        return time.perf_counter() - start

    one(100)
    return min(one(batch) for batch in (50, 100, 250, 1000) for _ in range(4))


def run_notebook(images: np.ndarray, said: Path) -> float:
    """The job's work as a notebook does it, batches of 100; of scikit-learn, PCA and t-SNE as they come."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    start, net, logits, saliency = time.perf_counter(), torch_net(), [], []
    for part in torch_input(images).split(100):
        part.requires_grad_(True)
        output = net(part)
        output.max(1)[0].sum().backward()
        size = part.grad.abs().amax(1)
        low, high = size.amin((1, 2), keepdim=True), size.amax((1, 2), keepdim=True)
        saliency.append(((size - low) / (high - low)).numpy())
        logits.append(output.detach().numpy())
    logits = np.concatenate(logits)
    np.savez(said.with_name("notebook.npz"), logits=logits, saliency=np.concatenate(saliency),
             pca=PCA(2).fit_transform(logits), tsne=TSNE(n_jobs=2, random_state=0).fit_transform(logits))
    return time.perf_counter() - start


def run_attribution(method: str, images: np.ndarray) -> float:
    """The better of two batch sizes, after a batch to warm up; maps of the predicted category."""
    import captum.attr as captum
    import quantus
    from pytorch_grad_cam import GradCAM

    net, x = torch_net(), torch_input(images)
    flipping = quantus.PixelFlipping(features_in_step=784 // DELETION_STEPS, perturb_baseline=0.0, abs=False,
                                     normalise=False, disable_warnings=True)
    cam = GradCAM(net, [net[4]])
    makers = {
        "integrated_gradients": lambda part, target: captum.IntegratedGradients(net).attribute(
            part, 0, target, n_steps=50),
        "smoothgrad": lambda part, target: captum.NoiseTunnel(captum.Saliency(net)).attribute(
            part, nt_samples=25, stdevs=0.15, target=target, abs=False),
        "gradcam": lambda part, _: cam(part.clone().requires_grad_(), None),
        "saliency": lambda part, target: flipping(
            model=net, x_batch=part.numpy(), y_batch=target.numpy(), softmax=True, batch_size=len(part), device="cpu",
            a_batch=captum.Saliency(net).attribute(part.clone(), target).numpy()),
    }

    def one(batch: int) -> float:
        start = time.perf_counter()
        for part in x.split(batch):
            makers[method](part, net(part).argmax(1))
        return time.perf_counter() - start

    x, whole = x[:50], x
    one(50)
    x = whole
    return min(one(batch) for batch in (25, 100))


def torch_net():
    """The shipped network's shape; its weights do not matter here."""
    import torch
    from torch import nn

    torch.set_num_threads(2)
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
                        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net


def torch_input(images: np.ndarray):
    import torch

    return torch.from_numpy((images[:, None] / np.float32(255) - 0.1307) / 0.3081).float()


def install(options: argparse.Namespace) -> None:
    python = options.folder / "env/bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", options.folder / "env"], check=True)
    wanted = ["numpy", "scikit-learn", "openTSNE"] + ["torch"] * options.torch
    wanted += ["captum", "grad-cam", "quantus"] * (options.torch and "attribution" in options.only)
    have = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True)
    have = {line.split("==")[0].lower() for line in have.stdout.splitlines()}
    if missing := [name for name in wanted if name.lower() not in have]:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *missing], check=True)


# ---- The ruler -------------------------------------------------------------------------------------------------------


class Ruler:
    """KL(P || Q) of any map of the points x, over all pairs in float64, in blocks of rows."""

    def __init__(self, x: np.ndarray, perplexity: float = 30):
        self.x = x.astype(np.float64)
        n = len(x)
        self.low, self.beta, self.sum = np.zeros(n), np.ones(n), np.zeros(n)
        for i, d in self.blocks(self.x):
            rows = slice(i, i + len(d))
            low = d.min(1)
            d -= low[:, None]
            least, most = np.zeros(len(d)), np.full(len(d), np.inf)
            beta = 1 / np.maximum(np.median(d, 1), 1e-300)
            for _ in range(60):
                p = np.exp(-d * beta[:, None])
                total = p.sum(1)
                over = np.log(total) + beta * (np.where(p > 0, d, 0) * p).sum(1) / total - np.log(perplexity)
                if np.abs(over).max() < 1e-7:
                    break
                least, most = np.where(over > 0, beta, least), np.where(over > 0, most, beta)
                beta = np.where(np.isinf(most), beta * 2, (least + most) / 2)
            self.low[rows], self.beta[rows], self.sum[rows] = low, beta, total

    @staticmethod
    def blocks(points: np.ndarray):
        """First row and squared distances to all points, infinite to itself."""
        norms = (points**2).sum(1)
        for i in range(0, len(points), 256):
            part = points[i : i + 256]
            d = np.maximum(norms[i : i + 256, None] + norms - 2 * part @ points.T, 0)
            d[np.arange(len(part)), i + np.arange(len(part))] = np.inf
            yield i, d

    def kl(self, y: np.ndarray) -> float:
        z = total = 0.0
        for (i, d), (_, e) in zip(self.blocks(self.x), self.blocks(y.astype(np.float64))):
            rows = slice(i, i + len(d))
            p = np.exp(-(d - self.low[rows, None]) * self.beta[rows, None]) / self.sum[rows, None]
            p += np.exp(-(d - self.low) * self.beta) / self.sum
            p /= 2 * len(y)
            w = 1 / (1 + e)
            z += w.sum()
            kept = (p > 0) & (w > 0)
            total += float((p[kept] * np.log(p[kept] / w[kept])).sum())
        return total + float(np.log(z))


# ---- Rows ------------------------------------------------------------------------------------------------------------


class Table:
    """Runs the contenders of a row in turn, prints and keeps their figures."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.rows = options, []
        told = subprocess.run([options.binary.with_name("bench_kernels"), "--peak"], check=True, capture_output=True)
        self.peak = json.loads(told.stdout)  # {"gflops": of two cores, "gbytes": read from memory by both}
        print(f"measured here: {self.peak['gflops']:.0f} GFLOP/s of FMA, {self.peak['gbytes']:.1f} GB/s from memory")

    def row(self, title: str, contenders: dict, repeat: int | None = None) -> dict[str, float]:
        """contenders: name -> (run, what to time, note of the median seconds and a run). Median seconds of each."""
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for _ in range(repeat or self.options.repeat):
            for name, (run, _, _) in contenders.items():
                runs[name].append(run())
        print(f"\n{title}: median (least .. largest) seconds of {repeat or self.options.repeat}")
        medians = {}
        for name, (_, timed, note) in contenders.items():
            values = [sum(r[part] for part in timed) for r in runs[name]]
            medians[name] = middle = statistics.median(values)
            memory, kl = max(r["MiB"] for r in runs[name]), runs[name][-1].get("kl", float("nan"))
            others = max(r["others"] / r["whole"] for r in runs[name])
            text = f"  {name:24s} {middle:8.3f}  ({min(values):.3f} .. {max(values):.3f})  {memory:6.0f} MiB"
            text += f"  KL {kl:.4f}" if kl == kl else ""
            first = next(iter(medians.values()))
            text += f"  {middle / first:.2f} x" if len(medians) > 1 else ""
            print(text + (f"  {note(middle, runs[name][-1])}" if note else ""), flush=True)
            if others > 0.05:
                print(f"    WARNING: others used {others:.2f} cores meanwhile: repeat on an idle machine")
            self.rows.append([title, name, len(values), middle, min(values), max(values), memory, kl, others])
        return medians

    def write(self) -> None:
        with (self.options.folder / "bench.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "what", "runs", "median_s", "least_s", "largest_s", "peak_MiB", "exact_kl",
                             "others_cores"])
            writer.writerows(self.rows)
        self.plot()

    def plot(self) -> None:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        rows = [r for r in self.rows if not r[0].startswith("growth")]
        grown = [r for r in self.rows if r[0].startswith("growth")]
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 0.22 * len(rows) + 1.5), layout="constrained")
        left.barh([f"{r[0]}: {r[1]}" for r in rows], [r[3] for r in rows],
                  color=["tab:blue" if r[1].startswith("cnnscope") else "tab:gray" for r in rows])
        left.set(xscale="log", xlabel="seconds")
        left.invert_yaxis()
        for name in dict.fromkeys(r[1] for r in grown):
            points = [(int(r[0].split()[1]), r[3]) for r in grown if r[1] == name]
            right.plot(*zip(*points), marker="o", label=name)
        if grown:
            right.legend()
        right.set(xscale="log", yscale="log", xlabel="points", ylabel="seconds of t-SNE")
        sizes = sorted({int(r[0].split()[1]) for r in grown})
        right.set_xticks(sizes, [f"{size:,}" for size in sizes])
        right.minorticks_off()
        figure.savefig(self.options.folder / "bench.png", dpi=120)


def logits_of(options: argparse.Namespace, common: list[str]) -> np.ndarray:
    import xarray as xr

    ours(options, common + ["--tsne", "0", "--pca", "0", "--attribution", "none"])
    with xr.open_dataset(options.folder / "bench.nc") as ds:
        return ds.logits.values.copy()


def points(base: np.ndarray, count: int) -> np.ndarray:
    """`count` rows: the first ones, and past the end copies with noise."""
    copies = base[np.arange(count) % len(base)].astype(np.float32)
    copies[len(base) :] += 1e-3 * base.std() * np.random.default_rng(0).standard_normal(copies[len(base) :].shape)
    return copies


def maps(table: Table, title: str, x: np.ndarray, arguments: list[str], peers: list[str], repeat=None) -> None:
    """Exact t-SNE of x by us and by peers, each map's KL by one ruler."""
    options, n = table.options, len(x)
    data = options.folder / "points.npy"
    np.save(data, x)
    ruler = Ruler(x) if n <= RULER_MAX else None

    def judged(run: dict[str, float], file: str) -> dict[str, float]:
        return run | ({"kl": ruler.kl(np.load(options.folder / file))} if ruler else {})

    def pairs(seconds: float, run: dict[str, float]) -> str:
        rate, read = n * (n - 1.0) * ITERATIONS / seconds, run["p_bytes"] * ITERATIONS / seconds / 1e9
        bound = 2 * table.peak["gflops"] * 1e9 / 2 / table.peak["pair_operations"]
        return (f"{rate / 1e9:.2f} Gpair/s, {rate / bound:.0%} of the repulsion's bound; P read at {read:.1f} GB/s, "
                f"{read / table.peak['gbytes']:.0%} of memory's")

    stages = ("pca_input", "affinities_input", "tsne_input")
    command = ["embed", "--input", str(data), *arguments]
    contenders = {"cnnscope, exact": (lambda: judged(ours(options, command), "ours.npy"), stages, pairs)}
    for kind in peers:
        contenders[kind] = (lambda kind=kind: judged(peer(options, kind, data), "peer.npy"), ("compute",), None)
    table.row(title, contenders, repeat)


def attribution(table: Table, common: list[str], raw: np.ndarray) -> None:
    options, images = table.options, table.options.folder / "some.npy"
    np.save(images, raw)
    for method, more in (("integrated_gradients", []), ("smoothgrad", []), ("gradcam", []),
                         ("saliency", ["--evidence", "deletion", "--evidence-steps", str(DELETION_STEPS)])):
        arguments = [*common, "--attribution", method, *more]
        contenders = {"cnnscope, computing": (lambda: ours(options, arguments), ("forward_compute",),
                                              lambda seconds, _: f"{len(raw) / seconds:.0f} images/s")}
        if options.torch:
            name = {"gradcam": "pytorch-grad-cam", "saliency": "captum and Quantus"}.get(method, "captum")
            contenders[name] = (
                lambda method=method: peer(options, f"attribution {method}", images), ("compute",), None)
        table.row(f"{' and '.join([method, *more[1:2]])} of {len(raw)} images".replace("_", " "), contenders)


def measure(options: argparse.Namespace) -> None:
    table = Table(options)
    images = str(DATA / "t10k-images-idx3-ubyte.gz")
    few = ["--samples", str(options.samples)] if options.samples < 10_000 else []
    common = ["--model", str(DATA / "model.pth"), "--images", images, *few]
    bare = common + ["--tsne", "0", "--pca", "0"]
    raw = np.frombuffer(gzip.open(images).read(), np.uint8, offset=16).reshape(-1, 28, 28)[: options.samples]
    pixels = options.folder / "images.npy"
    np.save(pixels, raw)
    n = len(raw)
    for row, method, passes in (("logits", "none", 1), ("saliency", "saliency", 2)):
        if row in options.only:
            def rate(seconds: float, _: dict[str, float], passes: int = passes) -> str:
                speed = 2 * MULTIPLY_ADDS * n * passes / seconds / 1e9
                return f"{n / seconds:.0f} images/s, {speed:.0f} GFLOP/s, {speed / table.peak['gflops']:.0%} of the bound"

            arguments = bare + ["--attribution", method]
            contenders = {"cnnscope, computing": (lambda: ours(options, arguments), ("forward_compute",), rate),
                          "cnnscope, with reading and writing": (lambda: ours(options, arguments), ("forward",), rate)}
            if options.torch:
                contenders["torch, computing"] = (lambda row=row: peer(options, f"torch {row}", pixels),
                                                  ("compute",), rate)
            table.row(f"{row} of {n} images", contenders)
    if "attribution" in options.only:
        some = max(n // 10, 1)
        attribution(table, [*common[:4], "--samples", str(some), "--tsne", "0", "--pca", "0"], raw[:some])
    if {"tsne", "growth"} & options.only:
        logits = logits_of(options, common)
    if "tsne" in options.only:
        maps(table, f"t-SNE of {n} x 10 logits", logits, [], ["openTSNE", "scikit-learn"])
    if "pixels" in options.only:
        maps(table, f"t-SNE of {n} x 784 pixels", raw.reshape(n, -1) / np.float32(255), ["--pre-pca", "50"],
             ["scikit-learn"])
    if "growth" in options.only:
        for size in [s for s in (2_500, 5_000, 10_000, 20_000, 60_000) if s <= (60_000 if options.long else 20_000)]:
            size = size * options.samples // 10_000
            copies = "" if size <= n else " (copies with noise)"
            peers = ["openTSNE", "scikit-learn"] if size <= 20_000 else ["openTSNE FFT"]
            maps(table, f"growth: {size} points{copies}", points(logits, size), [], peers, 1)
    labels = ["--labels", str(DATA / "t10k-labels-idx1-ubyte.gz")]
    if "job" in options.only:
        contenders = {"cnnscope": (lambda: ours(options, common + labels), ("whole",), None)}
        if options.torch:
            contenders["a notebook, without figures"] = (lambda: peer(options, "notebook", pixels), ("whole",), None)
        table.row("demo job, process start to renamed file", contenders)
    if "layouts" in options.only:
        table.row("layouts of the demo job, seconds in stages", {
            f"cnnscope, {ranks} x {threads}": (
                lambda ranks=ranks, threads=threads: ours(options, common + labels, ranks, threads),
                ("forward", "affinities_logits", "tsne_logits"), None)
            for ranks, threads in ((1, 1), (2, 1), (1, 2))})
    table.write()


def main() -> int:
    if sys.argv[1:2] == ["--run-peer"]:
        run_peer(*sys.argv[2:5])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where peers are installed and results go")
    parser.add_argument("--only", default=",".join(ROWS), help="rows, by commas (all)")
    parser.add_argument("--torch", action="store_true", help="install PyTorch too, and measure it")
    parser.add_argument("--long", action="store_true", help="60,000 points too")
    parser.add_argument("--samples", type=int, default=10_000, help="fewer, to try this script")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "cnnscope")
    options = parser.parse_args()
    options.only = set(options.only.split(","))
    if unknown := options.only - set(ROWS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: unknown; the rows are {', '.join(ROWS)}")
    if not options.binary.exists() or not options.binary.with_name("bench_kernels").exists():
        print(f"bench.py: {options.binary.parent}: no program; run scripts/setup.sh first", file=sys.stderr)
        return 1
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.torch or {"tsne", "pixels", "growth"} & options.only:
        install(options)
    measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
