"""What the page of scripts/report.py works on: points, numbers of each sample, and sheets of small pictures.

Numbers travel as 16-bit steps between a least and a largest value, in base64: a fifth of their size as text, and finer
than any pixel. Pictures of one kind lie side by side in one PNG (a sheet), because ten thousand files of their own would
cost more in headers than in pixels. Where there are too many, some are taken by the rule of `choose`.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

import cnnscope

MAX_POINTS = 100_000  # of a map: more are slow to draw
MAX_PIXELS = 8_000_000  # of a sheet: 10,000 pictures of 28 x 28
MAX_SIDE = 64  # of a small picture
METHODS = {"pca": "PCA", "tsne": "t-SNE", "map": "Map", "place": "Places in the stored map"}
MEASURES = ("trustworthiness", "continuity", "recall", "label_agreement", "persistence", "spread", "kl_sample", "kl")
EVIDENCE = ("deletion", "insertion", "sparseness", "delta")
NUMBERS = {"prediction_probability": "probability", "prediction_margin": "margin", "prediction_entropy": "entropy",
           "prediction_loss": "loss"}
# Ten places of Matplotlib's inferno; and blue over white to red, for maps with a sign.
HEAT = ["#000003", "#1a0b40", "#4a0b6a", "#781c6d", "#a42c60", "#cd4247", "#ed6825", "#fb9906", "#f7cf3d", "#fcfea4"]
SIGNED = ["#2166ac", "#67a9cf", "#d1e5f0", "#ffffff", "#fddbc7", "#ef8a62", "#b2182b"]


@dataclass
class Sheet:
    """Pictures of one kind, those of `Report.pictured`, in rows of `columns`."""

    key: str
    title: str
    png: bytes
    columns: int
    rows: int
    width: int  # of one picture, in pixels
    height: int
    evidence: dict[str, np.ndarray]  # numbers of each picture


@dataclass
class Report:
    """Results files cut to the samples they share, and the pictures of some of these."""

    names: list[str]  # of the files
    runs: list[xr.Dataset]
    samples: np.ndarray  # file positions
    pictured: np.ndarray  # indices into samples, rising
    sheets: list[Sheet]
    notes: list[str]  # what was left out, for people


def gather(names: list[str], runs: list[xr.Dataset], points: int = MAX_POINTS, pixels: int = MAX_PIXELS) -> Report:
    """Raises ValueError where the files share no sample, or disagree about what a sample is."""
    shared = runs[0].sample.values
    for name, ds in zip(names[1:], runs[1:]):
        shared = np.intersect1d(shared, ds.sample.values)
        if not shared.size:
            raise ValueError(f"{name}: has no sample of {names[0]}, expected results of the same images")
    notes = []
    mistaken = np.zeros(len(shared), bool)
    for ds in runs:
        mistaken |= wrong(at(ds, shared)) | np.isin(shared, list(suspects(ds)))
    chosen = choose(mistaken, points)
    if len(chosen) < len(shared):
        notes.append(f"The maps show {len(chosen):,} of {len(shared):,} samples: wrong ones and likely label errors, at most "
                     "half, and every so many of the others. All tables count all samples.")
    samples = shared[chosen]
    cut = [at(ds, samples) for ds in runs]
    pictured, sheets = pictures(runs, samples, mistaken[chosen], pixels)
    if 0 < len(pictured) < len(samples):
        notes.append(f"{len(pictured):,} of {len(samples):,} samples have their pictures in this page, chosen by the same rule "
                     "of those that the file keeps.")
    return Report(names, cut, samples, pictured, sheets, notes)


def at(ds: xr.Dataset, samples: np.ndarray) -> xr.Dataset:
    same = len(samples) == ds.sizes["sample"] and (samples == ds.sample.values).all()
    return ds if same else ds.sel(sample=samples)


def choose(first: np.ndarray, limit: int) -> np.ndarray:
    """Rising indices of at most `limit`: all, else those marked `first` (at most half) and others evenly spaced."""
    if len(first) <= limit:
        return np.arange(len(first))
    marked = evenly(np.flatnonzero(first), limit // 2)
    others = np.setdiff1d(np.arange(len(first)), marked)
    return np.sort(np.concatenate([marked, evenly(others, limit - len(marked))]))


def evenly(indices: np.ndarray, limit: int) -> np.ndarray:
    return indices if len(indices) <= limit else indices[np.arange(limit) * len(indices) // max(limit, 1)]


def wrong(ds: xr.Dataset) -> np.ndarray:
    if not {"label", "prediction"} <= set(ds.variables):
        return np.zeros(ds.sizes["sample"], bool)
    return (ds.label.values >= 0) & (ds.label.values != ds.prediction.values)


def suspects(ds: xr.Dataset) -> dict[int, dict[str, Any]]:
    """Labels likely to be wrong, likeliest first, of the first layer that has such a list: {sample: what it says}."""
    for layer in cnnscope.layers(ds):
        if f"{layer}_suspect" in ds.variables:
            columns = (ds[f"{layer}_suspect{end}"].values.tolist() for end in ("", "_score", "_prediction"))
            return {s: {"layer": layer, "score": score, "prediction": p} for s, score, p in zip(*columns) if s >= 0}
    return {}


# ---- for the page ---------------------------------------------------------------------------------------------------


def payload(report: Report) -> dict[str, Any]:
    """All that report.js needs, ready for JSON."""
    first = report.runs[0]
    tiles = np.full(len(report.samples), -1)
    tiles[report.pictured] = np.arange(len(report.pictured))
    present = [ds[v].values for ds in report.runs for v in ("label", "prediction") if v in ds.variables]
    categories = range(max([int(v.max()) + 1 for v in present if v.size] + [0]))
    named = max(report.runs, key=lambda ds: "category_name" in ds.variables)
    return {
        "samples": whole(report.samples),
        "sampleNames": first["sample_name"].values.tolist() if "sample_name" in first.variables else None,
        "categories": cnnscope.category_names(named, categories),
        "hues": cnnscope.HUES,
        "label": whole(first.label.values) if "label" in first.variables else None,
        "tiles": whole(tiles),
        "sheets": [{"key": s.key, "title": s.title, "columns": s.columns, "rows": s.rows, "width": s.width,
                    "height": s.height, "evidence": {e: steps(v) for e, v in s.evidence.items()}} for s in report.sheets],
        "runs": [run_payload(name, ds, report.runs[0]) for name, ds in zip(report.names, report.runs)],
    }


def run_payload(name: str, ds: xr.Dataset, first: xr.Dataset) -> dict[str, Any]:
    place = {int(sample): i for i, sample in enumerate(ds.sample.values)}
    return {
        "name": name,
        "prediction": whole(ds.prediction.values) if "prediction" in ds.variables else None,
        "numbers": {title: steps(ds[v].values) for v, title in NUMBERS.items() if v in ds.variables},
        "suspects": [place[s] for s in suspects(ds) if s in place],
        "maps": [part for layer in cnnscope.layers(ds) for part in layer_maps(ds, layer, first)],
    }


def layer_maps(ds: xr.Dataset, layer: str, first: xr.Dataset) -> list[dict[str, Any]]:
    """Its PCA, its t-SNE map, further t-SNE maps of other perplexities and seeds, and what else it has."""
    parts = [map_payload(ds, layer, method, first) for method in METHODS if f"{layer}_{method}" in ds.variables]
    for number in range(1, ds.sizes.get(f"{layer}_tsne_map", 0)):
        points = aligned(ds[f"{layer}_tsne_maps"].values[number], ds, f"{layer}_tsne", first)
        title, _, divergence = cnnscope.map_details(ds, layer, number).partition(": KL ")
        trust = {m: steps(ds[f"{layer}_tsne_{m}"].values) for m in ("persistence", "spread") if f"{layer}_tsne_{m}" in ds.variables}
        parts.append({"layer": layer, "method": "further", "title": f"t-SNE of {layer}, {title}", "overall": f"KL divergence {divergence}",
                      "axes": axes(points), "trust": trust})
    return parts


def map_payload(ds: xr.Dataset, layer: str, method: str, first: xr.Dataset) -> dict[str, Any]:
    name = f"{layer}_{method}"
    found = cnnscope.trust(ds, layer, method)
    words = [f"{m} {found[m]:.3f}" for m in ("trustworthiness", "continuity", "recall") if m in found]
    if method == "tsne" and f"{name}_kl" in ds.variables:
        words.insert(0, f"KL divergence {float(ds[f'{name}_kl']):.3f}")
    points = ds[name].values[:, :3]
    if method == "pca":
        points = points[:, : ds.sizes.get(f"{layer}_axis", 3 if ds.sizes[f"{layer}_pc"] == 3 else 2)]  # as its trust was measured
        if f"{name}_explained_variance_ratio" in ds.variables:
            share = 100 * ds[f"{name}_explained_variance_ratio"].values[: points.shape[1]].sum()
            words.insert(0, f"{share:.1f} % of the variance")
    stored = ds[f"{layer}_fixed"].values if method == "place" else None
    return {"layer": layer, "method": method, "title": f"{METHODS[method]} of {layer}", "overall": ", ".join(words),
            "axes": axes(aligned(points, ds, name, first)), "behind": axes(stored) if stored is not None else None,
            "trust": {m: steps(ds[f"{name}_{m}"].values) for m in MEASURES
                      if f"{name}_{m}" in ds.variables and ds[f"{name}_{m}"].dims == ("sample",)}}


def axes(points: np.ndarray) -> list[dict[str, Any]]:
    """The first two or three; the only one beside zeros."""
    points = points[:, :3]
    return [steps(column) for column in (points.T if points.shape[1] > 1 else (points[:, 0], np.zeros(len(points))))]


def aligned(points: np.ndarray, ds: xr.Dataset, name: str, first: xr.Dataset) -> np.ndarray:
    """Points of another file than the first turned to that one's map of this name, where it has one; places stay."""
    if first is ds or name not in first.variables or first[name].shape[1] < points.shape[1] or name.endswith("_place"):
        return points
    return procrustes(points, first[name].values[:, : points.shape[1]])


def procrustes(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Points moved, turned, mirrored and scaled to lie as near as can be to those of target (Gower 1975)."""
    both = np.isfinite(points).all(1) & np.isfinite(target).all(1)
    if both.sum() < 2:
        return points
    middle, goal = points[both].mean(0), target[both].mean(0)
    a, b = (points[both] - middle).astype(float), (target[both] - goal).astype(float)
    u, singular, v = np.linalg.svd(a.T @ b)
    size = (a**2).sum()
    return (points - middle) @ (u @ v) * (singular.sum() / size if size else 1.0) + goal


def steps(values: np.ndarray) -> dict[str, Any]:
    """Numbers as 65,535 steps from low to high; the last step, 65535, is NaN."""
    values = np.asarray(values, float)
    known = np.isfinite(values)
    low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 0.0)
    scaled = np.zeros(values.shape) if high == low else (np.where(known, values, low) - low) / (high - low)
    return {"low": low, "high": high, "data": base(np.where(known, np.rint(65534 * scaled), 65535).astype("<u2"))}


def whole(values: np.ndarray) -> str:
    return base(np.asarray(values).astype("<i4"))


def base(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


# ---- pictures -------------------------------------------------------------------------------------------------------


def pictures(runs: list[xr.Dataset], samples: np.ndarray, first: np.ndarray, limit: int) -> tuple[np.ndarray, list[Sheet]]:
    """Which samples have pictures (of those that every file keeps), and the sheets: images, then maps by file."""
    found = [(i, name) for i, ds in enumerate(runs) for name in map(str, ds.data_vars)
             if is_picture(ds, name) and not (i and name == "image")]
    if not found:
        return np.zeros(0, int), []
    kept = samples
    for i, name in found:
        kept = np.intersect1d(kept, runs[i][runs[i][name].dims[0]].values)
    places = np.searchsorted(samples, kept) if (np.diff(samples) > 0).all() else np.flatnonzero(np.isin(samples, kept))
    largest = max(math.prod(min(n, MAX_SIDE) for n in runs[i][name].shape[-2:]) for i, name in found)
    pictured = places[choose(first[places], max(limit // largest, 1))]
    sheets = []
    for i, name in found:
        values = runs[i][name].sel({runs[i][name].dims[0]: samples[pictured]}).values
        title = name.replace("_", " ") + (f" ({i + 1})" if len(runs) > 1 and name != "image" else "")
        evidence = {e: runs[i][f"{name}_{e}"].sel({runs[i][name].dims[0]: samples[pictured]}).values for e in EVIDENCE
                    if f"{name}_{e}" in runs[i].variables}
        sheets.append(sheet(f"{name}-{i}", title, shown(values) if name == "image" else coloured(values), evidence))
    return pictured, sheets


def is_picture(ds: xr.Dataset, name: str) -> bool:
    """The images, and the attribution maps in their size or in a layer's: (sample, y, x) or (sample, channel, y, x)."""
    dims = ds[name].dims
    spatial = len(dims) in (3, 4) and str(dims[-1]).split("_")[-1] == "x" and str(dims[-2]).split("_")[-1] == "y"
    return spatial and dims[0] in ("sample", "map_sample") and (len(dims) == 3 or dims[1] == "channel")


def shown(images: np.ndarray) -> list[Image.Image]:
    """(N, C, H, W) pixels as small gray or colour pictures; other channel counts by their mean, other ranges each by its own."""
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdims=True)
    if images.dtype != np.uint8:
        low = images.min((1, 2, 3), keepdims=True)
        high = images.max((1, 2, 3), keepdims=True)
        unit = (low >= 0) & (high <= 1)
        low, span = np.where(unit, 0, low), np.where(unit, 1, np.maximum(high - low, 1e-30))
        images = np.rint(255 * (images - low) / span).astype(np.uint8)
    return [small(Image.fromarray(i[0] if len(i) == 1 else np.ascontiguousarray(i.transpose(1, 2, 0)))) for i in images]


def coloured(maps: np.ndarray) -> list[Image.Image]:
    """Maps as pictures of at most 16 colours: of 0..1 from dark to bright; with a sign from blue over white to red."""
    if maps.ndim == 4:
        maps = maps.mean(1)
    ramp, levels = HEAT, 16
    if np.nanmin(maps, initial=0) < 0:
        largest = np.abs(maps).max((1, 2), keepdims=True)
        maps, ramp, levels = 0.5 + 0.5 * maps / np.maximum(largest, 1e-30), SIGNED, 15
    elif np.nanmax(maps, initial=0) > 1:
        maps = maps / np.maximum(maps.max((1, 2), keepdims=True), 1e-30)
    palette = ramp_colours(ramp, levels).ravel().tolist()
    drawn = []
    for values in np.rint(np.nan_to_num(maps) * (levels - 1)).astype(np.uint8):
        picture = small(Image.fromarray(values), smooth=False).convert("P")
        picture.putpalette(palette)
        drawn.append(picture)
    return drawn


def ramp_colours(stops: list[str], levels: int) -> np.ndarray:
    rgb = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops])
    place = np.linspace(0, len(stops) - 1, levels)
    return np.stack([np.rint(np.interp(place, np.arange(len(stops)), column)) for column in rgb.T], 1).astype(np.uint8)


def small(picture: Image.Image, smooth: bool = True) -> Image.Image:
    if max(picture.size) <= MAX_SIDE:
        return picture
    scale = MAX_SIDE / max(picture.size)
    size = tuple(max(round(side * scale), 1) for side in picture.size)
    return picture.resize(size, Image.Resampling.BOX if smooth else Image.Resampling.NEAREST)


def sheet(key: str, title: str, pictures: list[Image.Image], evidence: dict[str, np.ndarray]) -> Sheet:
    width, height = pictures[0].size
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = -(-len(pictures) // columns)
    whole_picture = Image.new(pictures[0].mode, (columns * width, rows * height))
    if palette := pictures[0].getpalette():
        whole_picture.putpalette(palette)
    for i, picture in enumerate(pictures):
        whole_picture.paste(picture, (i % columns * width, i // columns * height))
    return Sheet(key, title, png(whole_picture), columns, rows, width, height, evidence)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, **({"bits": 4} if picture.mode == "P" else {}))
    return buffer.getvalue()
