"""The parts of the page of scripts/report.py that are there without a script: tables, drawings, the gallery.

Each function gives HTML, or "" where the file holds nothing to show. Everything from a file is escaped. Drawings are SVG
in the colour of the text, so that they read in light and dark, and each has its numbers in words or a table beside it.
"""

from __future__ import annotations

import base64
import csv
import io
from html import escape
from urllib.parse import quote

import numpy as np
import xarray as xr
from PIL import Image

import cnnscope
import report_data
from report_data import Report, Sheet

BINS = 15  # of probability, as in the program
ROWS = 100  # of a long table
PER_CATEGORY = 8  # pictures of each kind in the gallery
MAX_CATEGORIES = 20  # of the gallery and the matrix in numbers
STAGES = "run_seconds_"


class Html(str):
    """Text that is HTML already."""


def sections(report: Report, whole: list[xr.Dataset], model: str = "") -> str:
    """All parts in the order of the page; `whole` are the files uncut, for what counts all samples; `model` is inspect's text."""
    parts = {
        "Trust": per_file(report, whole, trust),
        "Label errors": label_errors(report, whole[0]),
        "Gallery": gallery(report),
        "Flipped predictions": flipped(report),
        "Confusion matrix": per_file(report, whole, confusion),
        "Categories": per_file(report, whole, categories),
        "Calibration": per_file(report, whole, calibration),
        "Attribution": per_file(report, whole, attribution),
        "Network": (f"<pre>{escape(model)}</pre>" if model else "") + per_file(report, whole, network),
        "Divergence of t-SNE": per_file(report, whole, divergence),
        "Where the time went": per_file(report, whole, seconds),
        "Provenance": per_file(report, whole, provenance),
    }
    return "\n".join(f'<section id="{anchor(title)}"><h2>{title}</h2>{body}</section>' for title, body in parts.items() if body)


def anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def per_file(report: Report, whole: list[xr.Dataset], part) -> str:
    bodies = [part(ds) for ds in whole]
    if len(whole) == 1 or not any(bodies):
        return "".join(bodies)
    return "".join(f"<h3>{escape(name)}</h3>{body or '<p>Not in this file.</p>'}" for name, body in zip(report.names, bodies))


def table(head: list[str], rows: list[list[object]], caption: str = "", kind: str = "") -> str:
    """Cells that are numbers are set right; all but Html is escaped."""
    def cell(value: object) -> str:
        if isinstance(value, (int, float, np.number)):
            return f'<td class="number">{number(value)}</td>'
        return f"<td>{value if isinstance(value, Html) else escape(str(value))}</td>"

    right = [any(isinstance(row[i], (int, float, np.number)) for row in rows) for i in range(len(head))]
    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    top = "".join(f'<th scope="col"{" class=number" if r else ""}>{escape(h)}</th>' for h, r in zip(head, right))
    about = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption or head[0])}"><table class="{kind}">{about}'
            f"<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>")


def number(value: int | float | np.number) -> str:
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if np.isnan(value):
        return "–"
    return f"{value:.4f}" if value == 0 or 5e-4 <= abs(value) < 1000 else f"{value:.3g}"


# ---- samples --------------------------------------------------------------------------------------------------------


def tile(sheet: Sheet, index: int, label: str = "") -> str:
    """A picture of a sheet; without a label it is decoration."""
    x = 100 * (index % sheet.columns) / max(sheet.columns - 1, 1)
    y = 100 * (index // sheet.columns) / max(sheet.rows - 1, 1)
    about = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return (f'<span class="tile sheet-{escape(sheet.key)}" {about} style="background-position:{x:.4f}% {y:.4f}%"></span>')


def sample_button(report: Report, index: int, words: str) -> Html:
    """A button that shows a sample (an index into report.samples) in the panel of the maps."""
    place = int(np.searchsorted(report.pictured, index))
    pictured = place < len(report.pictured) and report.pictured[place] == index
    picture = tile(report.sheets[0], place) if pictured and report.sheets else ""
    return Html(f'<button type="button" class="sample" data-index="{index}" aria-label="sample {report.samples[index]}: {escape(words)}">'
            f"{picture}<small>{escape(words)}</small></button>")


def label_errors(report: Report, ds: xr.Dataset) -> str:
    found = report_data.suspects(ds)
    if not found:
        return ""
    place = {int(s): i for i, s in enumerate(report.samples)}
    labels = dict(zip(ds.sample.values.tolist(), ds.label.values.tolist()))
    lines = [[rank + 1, s, *cnnscope.category_names(ds, [labels[s], f["prediction"]]), f["score"], f["layer"]]
             for rank, (s, f) in enumerate(found.items())]
    head = ["rank", "sample", "label", "prediction", "score", "layer"]
    text = io.StringIO()
    csv.writer(text).writerows([head, *lines])
    link = (f'<p><a download="label-errors.csv" href="data:text/csv;charset=utf-8,{quote(text.getvalue())}">'
            "Download as CSV</a></p>")
    rows = [[line[0], sample_button(report, place[line[1]], str(line[1])) if line[1] in place else line[1], *line[2:]]
            for line in lines]
    layer = lines[0][-1]
    return (f"<p>Labels that are likely to be wrong, likeliest first: the network says otherwise, and so do most neighbours in "
            f"{escape(str(layer))}. Score: probability of the prediction times the share of the neighbours.</p>{link}"
            + table(head, rows, "Likely label errors"))


def gallery(report: Report) -> str:
    """For each category the surest right ones, the least certain, and the wrong ones, surest first."""
    ds = report.runs[0]
    if not report.sheets or "prediction" not in ds.variables or "prediction_probability" not in ds.variables:
        return ""
    kinds = ds["label" if "label" in ds.variables else "prediction"].values[report.pictured]
    prediction = ds.prediction.values[report.pictured]
    sure = ds.prediction_probability.values[report.pictured]
    right = kinds == prediction
    present = np.unique(kinds[kinds >= 0])
    parts = []
    for category in present[:MAX_CATEGORIES]:
        own = kinds == category
        picks = {"Surest": np.flatnonzero(own & right)[np.argsort(-sure[own & right], kind="stable")],
                 "Least certain": np.flatnonzero(own & right)[np.argsort(sure[own & right], kind="stable")],
                 "Wrong": np.flatnonzero(own & ~right)[np.argsort(-sure[own & ~right], kind="stable")]}
        name = cnnscope.category_names(ds, [category])[0]
        rows = "".join(f'<div class="strip"><h4>{title}</h4>' + ("".join(
            sample_button(report, int(report.pictured[p]), caption(ds, prediction[p], sure[p])) for p in picked[:PER_CATEGORY])
            or "<p>none</p>") + "</div>" for title, picked in picks.items())
        parts.append(f"<details{' open' if category == present[0] else ''}><summary>{escape(name)}: {int(own.sum()):,} pictures, "
                     f"{int((own & ~right).sum()):,} wrong</summary>{rows}</details>")
    more = f"<p>The first {MAX_CATEGORIES} of {len(present)} categories.</p>" if len(present) > MAX_CATEGORIES else ""
    return more + "".join(parts)


def caption(ds: xr.Dataset, prediction: int, sure: float) -> str:
    return f"{cnnscope.category_names(ds, [prediction])[0]} {100 * sure:.1f} %"


def flipped(report: Report) -> str:
    """Samples that the first two files predict differently."""
    if len(report.runs) < 2 or not all("prediction" in ds.variables for ds in report.runs[:2]):
        return ""
    a, b = report.runs[:2]
    flips = np.flatnonzero(a.prediction.values != b.prediction.values)
    rows = [[sample_button(report, int(i), str(report.samples[i])),
             *(cnnscope.category_names(a, a.label.values[[i]]) if "label" in a.variables else ["–"]),
             *cnnscope.category_names(a, a.prediction.values[[i]]), *cnnscope.category_names(b, b.prediction.values[[i]])]
            for i in flips[:ROWS]]
    words = f"<p>{len(flips):,} of {len(report.samples):,} samples are predicted differently"
    if "label" in a.variables:
        label = a.label.values
        better = int(((b.prediction.values == label) & (a.prediction.values != label)).sum())
        worse = int(((a.prediction.values == label) & (b.prediction.values != label)).sum())
        words += f": {better:,} became right, {worse:,} became wrong"
    words += f". The first {ROWS} are listed.</p>" if len(flips) > ROWS else ".</p>"
    return words + (table(["sample", "label", *report.names[:2]], rows, "Predictions that differ") if rows else "")


# ---- how good it is -------------------------------------------------------------------------------------------------


def confusion(ds: xr.Dataset) -> str:
    if not {"label", "prediction"} <= set(ds.variables) or not (ds.label.values >= 0).any():
        return ""
    known = ds.label.values >= 0
    label, prediction = ds.label.values[known], ds.prediction.values[known]
    present = np.union1d(np.unique(label), np.unique(prediction))
    counts = np.zeros((len(present), len(present)), int)
    np.add.at(counts, (np.searchsorted(present, label), np.searchsorted(present, prediction)), 1)
    names = cnnscope.category_names(ds, present)
    right = int((label == prediction).sum())
    words = f"<p>Accuracy {100 * right / len(label):.2f} %: {len(label) - right:,} of {len(label):,} wrong.</p>"
    off = counts * (1 - np.eye(len(present), dtype=int))
    worst = [np.unravel_index(i, counts.shape) for i in np.argsort(-off, axis=None, kind="stable")[:10]]
    mistakes = table(["label", "predicted as", "samples"], [[names[i], names[j], int(off[i, j])] for i, j in worst if off[i, j]],
                     "Most frequent mistakes")
    if len(present) > MAX_CATEGORIES:
        return words + f"<p>{len(present)} categories: the matrix is in the file.</p>" + mistakes
    share = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1))  # the root keeps single errors visible
    head = "".join(f'<th scope="col">{escape(n)}</th>' for n in names)
    rows = "".join(f'<tr><th scope="row">{escape(n)}</th>' + "".join(
        f'<td class="cell{" strong" if share[i, j] > 0.55 else ""}" style="--share:{share[i, j]:.3f}">{counts[i, j] or ""}</td>'
        for j in range(len(names))) + "</tr>" for i, n in enumerate(names))
    return (words + '<div class="pair"><div class="wide" tabindex="0" role="region" aria-label="Confusion matrix">'
            '<table class="confusion"><caption>Rows: label. Columns: '
            f"prediction.</caption><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>{mistakes}</div>")


def categories(ds: xr.Dataset) -> str:
    measures = [m for m in ("precision", "recall", "f1") if f"category_{m}" in ds.variables]
    if not measures or "label" not in ds.variables:
        return ""
    n = len(ds[f"category_{measures[0]}"])
    label = ds.label.values
    rows = [[name, int((label == c).sum()), *(float(ds[f"category_{m}"][c]) for m in measures)]
            for c, name in enumerate(cnnscope.category_names(ds, range(n)))]
    return table(["category", "samples", *measures], rows, "Precision, recall and F1 of each category")


def calibration(ds: xr.Dataset) -> str:
    if not {"label", "prediction_probability"} <= set(ds.variables) or not (ds.label.values >= 0).any():
        return ""
    known = ds.label.values >= 0
    sure = ds.prediction_probability.values[known].astype(float)
    right = (ds.label.values == ds.prediction.values)[known]
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    filled = np.flatnonzero(counts)
    means = np.bincount(bins, sure, BINS)[filled] / counts[filled]
    shares = np.bincount(bins, right, BINS)[filled] / counts[filled]
    error = float((counts[filled] * np.abs(means - shares)).sum() / len(sure))
    rows = [[f"{b / BINS:.2f} to {(b + 1) / BINS:.2f}", int(counts[b]), float(m), float(s)] for b, m, s in zip(filled, means, shares)]
    words = (f"<p>Where the network says 90 %, is it right nine times of ten? Expected calibration error {error:.4f}, of {BINS} equal bins. "
             "On the dashed line it would be calibrated.</p>")
    drawing = chart(list(zip(means, shares)), (0, 1), (0, 1), "mean probability", "share right", "Calibration curve", diagonal=True)
    numbers = table(["probability", "samples", "mean probability", "share right"], rows, "Calibration by bin")
    return f'{words}<div class="pair">{drawing}{numbers}</div>'


def chart(points: list[tuple[float, float]], xs: tuple[float, float], ys: tuple[float, float], x_name: str, y_name: str,
          title: str, diagonal: bool = False) -> str:
    """A line with its points, in the colour of the text."""
    def place(x: float, y: float) -> tuple[float, float]:
        return (60 + 320 * (x - xs[0]) / ((xs[1] - xs[0]) or 1), 220 - 200 * (y - ys[0]) / ((ys[1] - ys[0]) or 1))

    spots = [place(x, y) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    marks = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{a:.4g}, {b:.4g}</title></circle>' for (x, y), (a, b) in zip(spots, points))
    ideal = '<line x1="60" y1="220" x2="380" y2="20" class="ideal"/>' if diagonal else ""
    return (f'<svg class="chart" viewBox="0 0 400 260" role="img" aria-label="{escape(title)}; the numbers are in the table">{ideal}'
            f'<path d="M60 20V220H380" class="axis"/><polyline points="{line}"/>{marks}'
            f'<text x="55" y="24" class="end">{ys[1]:.3g}</text><text x="55" y="220" class="end">{ys[0]:.3g}</text>'
            f'<text x="60" y="236">{xs[0]:.4g}</text><text x="380" y="236" class="end">{xs[1]:.4g}</text>'
            f'<text x="220" y="252" class="middle">{escape(x_name)}</text>'
            f'<text x="16" y="120" class="middle" transform="rotate(-90 16 120)">{escape(y_name)}</text></svg>')


# ---- maps and methods -----------------------------------------------------------------------------------------------


def trust(ds: xr.Dataset) -> str:
    """A row for each map with all that was measured of it as a whole."""
    found = {(layer, method): cnnscope.trust(ds, layer, method) for layer in cnnscope.layers(ds) for method in report_data.METHODS
             if f"{layer}_{method}" in ds.variables}
    columns = list(dict.fromkeys(name for numbers in found.values() for name in numbers))
    if not columns:
        return ""
    rows = [[layer, report_data.METHODS[method], *(numbers.get(c, "") for c in columns)] for (layer, method), numbers in found.items()]
    several = [[layer, cnnscope.map_details(ds, layer, n).partition(":")[0], float(ds[f"{layer}_tsne_map_kl"][n])]
               for layer in cnnscope.layers(ds) for n in range(ds.sizes.get(f"{layer}_tsne_map", 0))]
    return ("<p>How far each map can be trusted as a whole, against the layer itself: 1 is best, but for the stress, the spread (in radii of "
            "the map), and the divergence, where 0 is. Trustworthiness: what is near on the map is near in the layer. Continuity: what is "
            "near in the layer is near on the map. Recall: nearest neighbours kept.</p>"
            + table(["layer", "map", *(c.replace("_", " ") for c in columns)], rows, "Measures of the maps")
            + (table(["layer", "t-SNE map", "KL divergence"], several, "Maps of several perplexities and starts") if several else ""))


def attribution(ds: xr.Dataset) -> str:
    """A row for each method with the means of its evidence, and how alike the methods are."""
    titles = {"deletion": "deletion (small is good)", "insertion": "insertion (large is good)", "sparseness": "sparseness",
              "delta": "mean |completeness error|"}
    methods = [str(v).removesuffix("_sparseness").removesuffix("_deletion") for v in ds.data_vars if str(v).endswith(("_deletion", "_sparseness"))]
    methods = list(dict.fromkeys(methods))
    columns = [e for e in titles if any(f"{m}_{e}" in ds.variables for m in methods)]
    if not methods:
        return ""
    rows = [[m.replace("_", " "), *(float(np.abs(ds[f"{m}_{e}"]).mean()) if f"{m}_{e}" in ds.variables else "" for e in columns)] for m in methods]
    body = ("<p>How faithful each kind of map is to the network, mean over the samples: the probability that is left while the pixels it marks "
            "are deleted, or that comes while they are inserted. It says nothing of whether the network is right.</p>"
            + table(["method", *(titles[c] for c in columns)], rows, "Evidence of the attribution methods"))
    if "attribution_agreement" in ds.variables:
        names = [n.replace("_", " ") for n in ds.attribution_agreement.attrs["attributions"].split()]
        means = np.nanmean(ds.attribution_agreement.values, 0)
        body += table(["", *names], [[name, *map(float, row)] for name, row in zip(names, means)],
                      "Agreement: mean rank correlation of two methods' maps")
    return f'<div class="pair">{body}</div>'


# ---- the network and the run ----------------------------------------------------------------------------------------


def network(ds: xr.Dataset) -> str:
    kinds = {"_filters": "filters", "_maps": "feature maps", "_pca": "PCA", "_tsne": "t-SNE"}
    rows: list[list[object]] = []
    pictures = []
    for name in map(str, ds.data_vars):
        for end, kind in kinds.items():
            if name.endswith(end) and (end != "_maps" or f"{name.removesuffix('_maps')}_map_sample" in ds.variables):
                rows.append([name.removesuffix(end), kind, " x ".join(map(str, ds[name].shape)), name])
        if name in ("logits", *cnnscope.layers(ds)):
            rows.append([name, "features", " x ".join(map(str, ds[name].shape)), name])
        if name.endswith("_filters") and ds[name].ndim == 4:
            weights = ds[name].values[:64]
            pictures.append(mosaic(weights[:, :16].reshape(-1, *weights.shape[2:]), f"Filters of {name.removesuffix('_filters')}: "
                                   + " x ".join(map(str, ds[name].shape)), min(weights.shape[1], 16) if weights.shape[1] > 1 else 0))
        if name.endswith("_maps") and f"{name.removesuffix('_maps')}_map_sample" in ds.variables:
            sample = ds[ds[name].dims[0]].values[0]
            pictures.append(mosaic(ds[name].values[0, :64], f"Feature maps of {name.removesuffix('_maps')}, sample {sample}", 0, own=True))
    if not rows:
        return ""
    return ("<p>What the file holds of each layer.</p>"
            + table(["layer", "what", "shape", "variable"], rows, "Layers in the file") + '<div class="mosaics">' + "".join(pictures) + "</div>")


def mosaic(tiles: np.ndarray, title: str, columns: int = 0, own: bool = False) -> str:
    """Gray tiles (N, h, w) in one picture: of one range around zero, or each of its own."""
    columns = columns or int(np.ceil(np.sqrt(len(tiles))))
    n, h, w = tiles.shape
    low, high = (tiles.min((1, 2), keepdims=True), tiles.max((1, 2), keepdims=True)) if own else (-np.abs(tiles).max(), np.abs(tiles).max())
    gray = np.rint(255 * (tiles - low) / np.maximum(high - low, 1e-30)).astype(np.uint8)
    out = np.full((-(-n // columns) * (h + 1) - 1, columns * (w + 1) - 1), 255, np.uint8)
    for i, t in enumerate(gray):
        out[i // columns * (h + 1) :, i % columns * (w + 1) :][:h, :w] = t
    data = base64.b64encode(report_data.png(Image.fromarray(out))).decode()
    width = min(max(out.shape[1] * 8, 160), 480)
    return (f'<figure><img src="data:image/png;base64,{data}" width="{width}" alt="{escape(title)}"><figcaption>{escape(title)}, '
            f"{'each scaled to its own range' if own else 'black to white: least to largest weight, gray is zero'}</figcaption></figure>")


def divergence(ds: xr.Dataset) -> str:
    parts = []
    for layer in cnnscope.layers(ds):
        if f"{layer}_tsne_kl_history" in ds.variables:
            y = ds[f"{layer}_tsne_kl_history"].values
            x = ds[f"{layer}_tsne_check"].values
            good = np.isfinite(y)
            x, y = x[good], y[good]
            if not len(y):
                continue
            title = f"KL divergence of the t-SNE map of {layer}: {y[0]:.3f} at iteration {x[0]}, {float(ds[f'{layer}_tsne_kl']):.3f} at the end"
            parts.append(f"<figure>{chart(list(zip(x, y)), (x.min(), x.max()), (0, y.max()), 'iteration', 'KL divergence', title)}"
                         f"<figcaption>{escape(title)}</figcaption></figure>")
    return f'<div class="mosaics">{"".join(parts)}</div>' if parts else ""


def seconds(ds: xr.Dataset) -> str:
    taken = {k[len(STAGES) :].replace("_", " "): float(v) for k, v in ds.attrs.items() if str(k).startswith(STAGES)}
    if not taken:
        return ""
    longest = max(taken.values()) or 1
    rows: list[list[object]] = [
        [name, s, Html(f'<span class="bar" style="width:{100 * s / longest:.1f}%" aria-hidden="true"></span>')]
        for name, s in taken.items()]
    machine = ", ".join(f"{ds.attrs[k]} {w}" for k, w in (("run_ranks", "ranks"), ("run_threads", "threads each")) if k in ds.attrs)
    return (f"<p>Seconds of each stage, the longest of the ranks{': ' + escape(machine) if machine else ''}. Parts of a stage follow it.</p>"
            + table(["stage", "seconds", "share of the longest"], rows, "Seconds of each stage"))


def provenance(ds: xr.Dataset) -> str:
    rows = [[k, str(v)] for k, v in ds.attrs.items() if not str(k).startswith(STAGES)]
    lines = table(["attribute", "value"], rows, "Attributes of the file", "long")
    return f"<details><summary>{len(rows)} attributes of the file</summary>{lines}</details>"
