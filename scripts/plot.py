#!/usr/bin/env python3
"""Draw the figures of a results file: what the network learned, on a few pages.

    plot.py FILE.nc [-o FOLDER] [--samples 0,5,17] [--format png,pdf] [--trust trustworthiness] [--fade]

For each embedded layer its PCA and t-SNE maps, or new samples over the stored map they were placed in (grey), by class,
and by how far each point can be trusted; where there are several t-SNE maps of it, all of them side by side, points fading
with how far they move between them; the filters and feature maps in the file; for some samples the
input beside its saliency and under its Grad-CAM; a contact sheet of saliency, a row for each category; what the sanity
checks of attribution methods found; the confusion matrix. What the file does not hold is left out.
Prints the path of each figure. Colours are safe for colour-blind readers: 10 hues, with a second marker up to 20
classes, beyond that an ordered scale with each class written at the middle of its points.
Points are drawn in a random but fixed order, so that no class covers the others; PDF and SVG are vectors, but for the points,
which are one bitmap, so that the file stays small however many there are.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import matplotlib
    import numpy as np
    import xarray as xr
    from matplotlib import font_manager, patheffects
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    import cnnscope
    from plot_samples import (attribution_names, attributions, caption, contact_sheet, default_samples, displayed, mean_maps,
                              methods_side_by_side, of_method, sanity_curves, scaled, short)
except ImportError as error:
    sys.exit(f"plot.py: {error}: run scripts/setup.sh once, then .venv/bin/python scripts/plot.py")

HUES = cnnscope.HUES
NO_LABEL = "#d0d0d0"
FORMATS = ("png", "pdf", "svg")
CJK_FONTS = {"Noto Sans CJK JP", "IPAexGothic", "IPAGothic", "Hiragino Sans", "Yu Gothic", "WenQuanYi Zen Hei"}
MAX_TILES = 100  # of one grid
MAX_INPUTS = 64  # input channels of one filter that are drawn
PER_PAGE = 20  # samples
METHODS = {"pca": "PCA", "tsne": "t-SNE", "map": "Map", "place": "Placed in the t-SNE map"}  # of a layer
MEASURES = ("trustworthiness", "continuity", "recall", "label_agreement", "persistence")  # of each sample, from 0 to 1
MAPS_PER_ROW = 4

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "pdf.fonttype": 42,  # TrueType, as publishers ask for
    "svg.hashsalt": "cnnscope",
    "text.parse_math": False,  # names may contain $
}


def main() -> None:
    arguments = parse_arguments()
    matplotlib.use("Agg")
    matplotlib.rcParams.update(STYLE)
    installed = {font.name for font in font_manager.fontManager.ttflist}
    matplotlib.rcParams["font.family"] = ["DejaVu Sans", *sorted(CJK_FONTS & installed)]
    try:
        with warnings.catch_warnings(record=True) as caught:
            write(arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"plot.py: {error}")
    if any("Glyph" in str(warning.message) for warning in caught):
        print("plot.py: no installed font has some letters of the names; install fonts-noto-cjk or such",
              file=sys.stderr)


def write(arguments: argparse.Namespace) -> None:
    ds = cnnscope.open_result(arguments.file)
    missing = set(arguments.samples or []) - set(ds.sample.values)
    if missing:
        first, last = ds.sample.values[[0, -1]]
        raise ValueError(f"{arguments.file}: holds no sample {min(missing)}, expected {first} to {last} in --samples")
    folder = arguments.output or arguments.file.with_name(f"{arguments.file.stem}_figures")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(ds, arguments.samples, arguments.trust, arguments.fade):
        for suffix in arguments.format:
            path = folder / f"{name}.{suffix}"
            figure.savefig(path, metadata={"CreationDate": None} if suffix == "pdf" else None)
            print(path, flush=True)


def parse_arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    def formats(text: str) -> list[str]:
        if not set(text.split(",")) <= set(FORMATS):
            raise argparse.ArgumentTypeError(f"{text}: expected some of {','.join(FORMATS)}")
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.nc", help="a results file of cnnscope")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: FILE_figures beside the file")
    parser.add_argument("--samples", type=numbers, metavar="I,J,...", help="file positions of the samples to show; "
                        "default: the first 8, or with labels the first 4 and the first 4 that are wrong")
    parser.add_argument("--format", type=formats, default=["png", "pdf"], help="png,pdf (default), svg")
    parser.add_argument("--trust", choices=MEASURES, default=MEASURES[0], help="the measure in the maps of trust; "
                        "default: %(default)s")
    parser.add_argument("--fade", action="store_true", help="in the maps by class, points fade as their trust does")
    return parser.parse_args()


def figures(ds: xr.Dataset, samples: list[int] | None = None, measure: str = MEASURES[0],
            fade: bool = False) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of everything the file has numbers for, one at a time."""
    for layer in cnnscope.layers(ds):
        for method in METHODS:
            if f"{layer}_{method}" in ds:
                trusted = f"{layer}_{method}_{measure}" in ds
                yield f"{layer}_{method}", scatter(ds, layer, method, fade=measure if fade and trusted else None)
                if trusted:
                    yield f"{layer}_{method}_trust", scatter(ds, layer, method, measure=measure)
        if f"{layer}_tsne_maps" in ds:
            yield f"{layer}_tsne_maps", several_maps(ds, layer)
    if {"label", "prediction"} <= set(ds.variables) and (ds.label >= 0).any():
        yield "confusion", confusion(ds)
    for name in map(str, ds.data_vars):
        if name.endswith("_filters") and ds[name].ndim == 4:
            yield name, filters(ds, name.removesuffix("_filters"))
        if name.endswith("_maps") and ds[name].ndim == 4:
            positions = ds[name][ds[name].dims[0]].values
            for sample in (s for s in positions if s in samples) if samples else positions[:4]:
                yield f"{name}_sample{sample}", feature_maps(ds, name.removesuffix("_maps"), int(sample))
    for name in map(str, ds.data_vars):
        if name == "saliency" or of_method(name, "gradcam") and ds[name].ndim == 3:
            shown = samples or default_samples(ds, name)
            for page, start in enumerate(range(0, len(shown), PER_PAGE)):
                suffix = f"_{page + 1}" if len(shown) > PER_PAGE else ""
                yield name + suffix, attributions(ds, name, shown[start : start + PER_PAGE])
    if "attribution_randomised_correlation_overall" in ds:
        yield "sanity", sanity_curves(ds)
    if "summary_count" in ds:
        yield "mean_maps", mean_maps(ds)
    if {"saliency", "image"} <= set(ds.variables) and (of := coloured_by(ds)):
        yield "saliency_contact_sheet", contact_sheet(ds, of)
    methods = attribution_names(ds)
    if len(methods) > 2:
        yield "methods", methods_side_by_side(ds, methods, (samples or default_samples(ds, methods[0]))[:PER_PAGE])


# ---- maps of a layer ------------------------------------------------------------------------------------------------


def scatter(ds: xr.Dataset, layer: str, method: str, measure: str | None = None, fade: str | None = None) -> Figure:
    """A map of a layer, a point per sample, coloured by label, else by prediction; 3-D where the map is.

    With a measure of trust coloured by that, the least trusted points on top; or faded by one.
    """
    points = ds[f"{layer}_{method}"].values
    of = coloured_by(ds)
    mapped = np.isfinite(points).all(1)  # t-SNE may have been asked for a part of the samples
    categories = ds[of].values[mapped] if of else np.zeros(mapped.sum(), int)
    points = points[mapped]
    dimensions = points.shape[1] if points.shape[1] <= 3 else 2
    points = np.column_stack([points, categories])[:, : max(dimensions, 2)]  # a 1-D map is spread by category
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    ax = figure.add_subplot(projection="3d" if dimensions == 3 else None)
    if method == "place":
        fixed = ds[f"{layer}_fixed"].values
        ax.computed_zorder = False  # of a 3-D map: by depth, which would hide the new ones
        ax.scatter(*fixed.T, s=np.clip(60000 / len(fixed), 2, 25), c=NO_LABEL, linewidths=0, rasterized=True, zorder=0)
    if measure:
        draw_trust(figure, ax, points, ds[f"{layer}_{method}_{measure}"].values[mapped], measure)
    else:
        alpha = clear(ds[f"{layer}_{method}_{fade}"].values[mapped]) if fade else None
        draw_points(figure, ax, ds, points, categories, of, named=method != "pca", alpha=alpha)
    axes = [ax.xaxis, ax.yaxis] if dimensions < 3 else [ax.xaxis, ax.yaxis, ax.zaxis]
    for i, axis in enumerate(axes):
        axis.set_label_text(f"{ {'pca': 'PC', 'tsne': 't-SNE ', 'place': 't-SNE '}.get(method, 'axis ')}{i + 1}" if i < dimensions else of or "")
    if dimensions == 2:
        ax.set_aspect("equal", adjustable="datalim")
    if dimensions == 3:
        ax.set_box_aspect(None, zoom=1.1)
        for axis in axes:
            axis.set_pane_color("white")
    details = {"pca": pca_details, "tsne": tsne_details, "place": place_details}.get(method, lambda *_: "as it was given")(
        ds, layer, axes[:dimensions])
    count = f"{len(points):,}" + (f" of {len(mapped):,}" if not mapped.all() else "")
    figure.suptitle(f"{METHODS[method]} of {layer}\n{count} samples, {details}{trust_details(ds, layer, method)}")
    if method != "pca":
        figure.supxlabel("The sizes of clusters and the distances between them carry no meaning", size=7, color="0.4")
    return figure


def coloured_by(ds: xr.Dataset) -> str | None:
    return next((v for v in ("label", "prediction") if v in ds.variables and np.ptp(ds[v].values) > 0), None)


def several_maps(ds: xr.Dataset, layer: str) -> Figure:
    """All t-SNE maps of a layer, aligned to the first and side by side; points fade as their places move between them."""
    maps = ds[f"{layer}_tsne_maps"].values
    of = coloured_by(ds)
    mapped = np.isfinite(maps[0]).all(1)
    categories = ds[of].values[mapped] if of else np.zeros(mapped.sum(), int)
    spread = ds[f"{layer}_tsne_spread"].values[mapped]
    alpha = clear(1 - spread / max(float(np.quantile(spread, 0.99)), 1e-9))
    columns = min(len(maps), MAPS_PER_ROW)
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(3.6 * columns + 1, 3.7 * rows + 1), layout="constrained")
    for i, points in enumerate(maps):
        ax = figure.add_subplot(rows, columns, i + 1, projection="3d" if maps.shape[2] == 3 else None)
        draw_points(figure if i == 0 else None, ax, ds, points[mapped], categories, of, named=True, alpha=alpha)
        for axis in (ax.xaxis, ax.yaxis, ax.zaxis) if maps.shape[2] == 3 else (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("")
            axis.set_tick_params(length=0)
        if maps.shape[2] == 2:
            ax.set_aspect("equal", adjustable="datalim")
        ax.set_title(cnnscope.map_details(ds, layer, i))
    found = cnnscope.trust(ds, layer, "tsne")
    words = {"spread": "mean spread {:.3f} radii", "persistence": "{:.1%} of neighbours persist"}
    texts = [text.format(found[name]) for name, text in words.items() if name in found]
    figure.suptitle(f"{len(maps)} t-SNE maps of {layer}, aligned to the first\n{mapped.sum():,} samples, faded by the "
                    f"spread of their places; {', '.join(texts)}")
    return figure


def pca_details(ds: xr.Dataset, layer: str, axes: list[Axis]) -> str:
    share = 100 * ds[f"{layer}_pca_explained_variance_ratio"].values[: len(axes)]
    for axis, percent in zip(axes, share):
        axis.set_label_text(f"{axis.get_label_text()} ({percent:.1f} %)")
    return f"{share.sum():.1f} % of the variance explained"


def tsne_details(ds: xr.Dataset, layer: str, axes: list[Axis]) -> str:
    for axis in axes:
        axis.set_major_formatter("")  # its units mean nothing
        axis.set_tick_params(length=0)
    perplexity = ds[f"{layer}_tsne"].attrs["perplexity"]  # a text where it is the mean of several
    perplexity = perplexity if isinstance(perplexity, str) else f"{perplexity:g}"
    return f"perplexity {perplexity}, KL divergence {float(ds[f'{layer}_tsne_kl']):.3f}"


def place_details(ds: xr.Dataset, layer: str, axes: list[Axis]) -> str:
    for axis in axes:
        axis.set_major_formatter("")
        axis.set_tick_params(length=0)
    return f"over the {ds.sizes[f'{layer}_fixed_sample']:,} mapped ones"


def trust_details(ds: xr.Dataset, layer: str, method: str) -> str:
    """A line for the title, of what the file has."""
    found = cnnscope.trust(ds, layer, method)
    words = {"trustworthiness": "trustworthiness", "continuity": "continuity", "recall": "neighbour recall",
             "cpd": "distance correlation"}
    texts = [f"{words[name]} {found[name]:.3f}" for name in words if name in found]
    return "\n" + ", ".join(texts) if texts else ""


def draw_trust(figure: Figure, ax: Axes, points: np.ndarray, values: np.ndarray, measure: str) -> None:
    """Points by one number of each; from the value that 1 % are below, or colours would tell nothing."""
    known = np.isfinite(values)
    order = np.flatnonzero(known)[np.argsort(-values[known], kind="stable")]
    low = float(np.quantile(values[known], 0.01)) if known.any() else 0.0
    style = {"s": np.clip(60000 / len(points), 2, 25), "linewidths": 0, "rasterized": True}
    ax.scatter(*points[~known].T, c=NO_LABEL, **style)
    drawn = ax.scatter(*points[order].T, c=values[order], cmap="plasma", vmin=min(low, 0.999), vmax=1, **style)
    bar = figure.colorbar(drawn, ax=ax, shrink=0.8, extend="min", pad=0.08 if ax.name == "3d" else 0.02)
    bar.set_label(measure.replace("_", " "))


def clear(values: np.ndarray) -> np.ndarray:
    """How opaque a point is, by its trust."""
    low = np.nanquantile(values, 0.01) if np.isfinite(values).any() else 0.0
    return np.nan_to_num(np.clip((values - low) / max(1 - low, 1e-3), 0, 1), nan=0.0) * 0.65 + 0.05


def draw_points(figure: Figure | None, ax: Axes, ds: xr.Dataset, points: np.ndarray, categories: np.ndarray,
                of: str | None, named: bool, alpha: np.ndarray | None = None) -> None:
    """The points, and their key into the figure unless it is None; `named` writes each category at the middle of its points."""
    present = [int(c) for c in np.unique(categories) if c >= 0]
    names = [short(name) for name in cnnscope.category_names(ds, present)]
    many = len(present) > 2 * len(HUES)
    # The ends of viridis that vanish on white are left out.
    scale = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(len(present), 2)))
    rank = np.searchsorted(present, categories)
    colours = scale[np.minimum(rank, len(scale) - 1)] if many else np.array([HUES[r % len(HUES)] for r in rank])
    order = np.random.default_rng(0).permutation(len(points))
    style = {"s": np.clip(60000 / len(points), 2, 25), "linewidths": 0, "alpha": 0.7, "rasterized": True}
    if points.shape[1] == 3:
        style |= {"alpha": 1.0, "depthshade_minalpha": 0.4}
    grey = order[categories[order] < 0]
    ax.scatter(*points[grey].T, c=NO_LABEL, zorder=1, **style)
    for marker, chosen in (("o", rank < len(HUES)), ("^", rank >= len(HUES))) if not many else (("o", rank >= 0),):
        drawn = order[(chosen & (categories >= 0))[order]]
        if not drawn.size:
            continue
        faded = style if alpha is None else style | {"alpha": alpha[drawn]}
        ax.scatter(*points[drawn].T, c=colours[drawn], marker=marker, zorder=2, **faded)
    if many and figure:
        draw_bar(figure, ax, scale, names, of)
    elif of and figure:
        draw_legend(figure, names, of, unlabelled=len(grey) > 0)
    for category, name in zip(present, names) if named and of else ():
        middle = np.median(points[categories == category], axis=0)
        ax.text(*middle, name if len(name) <= 10 else str(category), size=6 if many else 9, ha="center", va="center",
                zorder=9, path_effects=[patheffects.withStroke(linewidth=1.5, foreground="white")])


def draw_bar(figure: Figure, ax: Axes, scale: np.ndarray, names: list[str], of: str) -> None:
    norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
    ticks = np.unique(np.linspace(0, len(names) - 1, 11).round().astype(int))
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, ListedColormap(scale)), ax=ax, ticks=ticks, shrink=0.8,
                          pad=0.08 if ax.name == "3d" else 0.02)
    bar.ax.set_yticklabels([names[t] for t in ticks], size=8)
    bar.ax.minorticks_off()
    bar.set_label(of)


def draw_legend(figure: Figure, names: list[str], of: str, unlabelled: bool) -> None:
    looks = [("o^"[i // len(HUES)], HUES[i % len(HUES)], name) for i, name in enumerate(names)]
    looks += [("o", NO_LABEL, "no label")] if unlabelled else []
    handles = [Line2D([], [], ls="", ms=6, marker=marker, color=colour, label=name) for marker, colour, name in looks]
    figure.legend(handles=handles, title=of, loc="outside right center")


# ---- confusion matrix -----------------------------------------------------------------------------------------------


def confusion(ds: xr.Dataset) -> Figure:
    """Rows are labels, columns predictions, coloured by the share of the row; samples without label are left out."""
    known = ds.label.values >= 0
    label, prediction = ds.label.values[known], ds.prediction.values[known]
    categories = np.union1d(np.union1d(label, prediction), np.arange(len(cnnscope.category_names(ds))))
    categories = categories[categories >= 0]
    n = len(categories)
    counts = np.zeros((n, n), int)
    np.add.at(counts, (np.searchsorted(categories, label), np.searchsorted(categories, prediction)), 1)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    inches = np.clip(0.42 * n, 4, 10)
    figure = Figure(figsize=(inches + 1.6, inches + 0.6), layout="compressed")
    ax = figure.add_subplot()
    # The square root keeps single errors visible beside a full diagonal.
    picture = ax.imshow(100 * np.sqrt(share), cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    bar = figure.colorbar(picture, ax=ax, shrink=0.7, ticks=100 * np.sqrt([0, 0.01, 0.05, 0.2, 0.5, 1]))
    bar.ax.set_yticklabels(["0 %", "1 %", "5 %", "20 %", "50 %", "100 %"])
    bar.set_label("share of the samples with this label")
    if n <= 20:
        for i, j in zip(*np.nonzero(counts)):
            colour = "w" if share[i, j] > 0.3 else "k"
            ax.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", size=7, color=colour)
    names = [short(name, 16) for name in cnnscope.category_names(ds, categories)]
    ticks = np.arange(0, n, -(-n // 100))
    turned = max(map(len, names)) > 3
    ax.set_xticks(ticks, [names[t] for t in ticks], rotation=90 if turned or n > 30 else 0)
    ax.set_yticks(ticks, [names[t] for t in ticks])
    ax.tick_params(labelsize=8 if n <= 20 else 5 if n > 60 else 6, length=2)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="prediction", ylabel="label")
    wrong = int((label != prediction).sum())
    ax.set_title(f"Accuracy {100 * (1 - wrong / len(label)):.2f} % ({wrong:,} of {len(label):,} wrong)", size=11)
    return figure


# ---- filters and feature maps ---------------------------------------------------------------------------------------


def filters(ds: xr.Dataset, layer: str) -> Figure:
    """The weights of a convolution: a tile per filter for 1 or 3 input channels, else rows of one tile per channel."""
    weights = ds[f"{layer}_filters"].values
    count, inputs, height, width = weights.shape
    size = f"{count} filters of {inputs} x {height} x {width}"
    limit = np.abs(weights).max() or 1.0
    if inputs == 3:
        tiles = [scaled(w.transpose(1, 2, 0)) for w in weights[:MAX_TILES]]
        return grid(tiles, f"Filters of {layer}: {size}\nRGB, each scaled to its own range")
    if inputs == 1:
        figure = grid(list(weights[:MAX_TILES, 0]), f"Filters of {layer}: {size}", Normalize(-limit, limit))
        picture = figure.axes[0].images[0]
    else:
        shown = weights[:MAX_TILES, :MAX_INPUTS]
        mosaic = np.full((len(shown) * (height + 1) - 1, shown.shape[1] * (width + 1) - 1), np.nan)
        for i, j in np.ndindex(*shown.shape[:2]):
            mosaic[i * (height + 1) :, j * (width + 1) :][:height, :width] = shown[i, j]
        inch = 9 / max(mosaic.shape)
        figure = Figure(figsize=(max(mosaic.shape[1] * inch, 4) + 1, mosaic.shape[0] * inch + 1), layout="compressed")
        ax = figure.add_subplot()
        picture = ax.imshow(mosaic, cmap="gray", norm=Normalize(-limit, limit), interpolation="nearest")
        ax.set(xticks=[], yticks=[], ylabel=f"filter (0..{len(shown) - 1})")
        ax.set_xlabel(f"input channel (0..{shown.shape[1] - 1})")
        ax.spines[:].set_visible(False)
        partly = ", the first ones shown" if shown.size < weights.size else ""
        figure.suptitle(f"Filters of {layer}: {size}{partly}")
    figure.colorbar(picture, ax=figure.axes, shrink=0.6, label="weight")
    return figure


def feature_maps(ds: xr.Dataset, layer: str, sample: int) -> Figure:
    maps = cnnscope.of_sample(ds, f"{layer}_maps", sample).values
    title = f"Feature maps of {layer}: {caption(ds, sample)}\n{len(maps)} channels, each scaled to its own range"
    return grid(list(maps[:MAX_TILES]), title + (f", {MAX_TILES} shown" if len(maps) > MAX_TILES else ""))


def grid(tiles: list[np.ndarray], title: str, norm: Normalize | None = None) -> Figure:
    """Gray or RGB tiles in a nearly square grid, numbered; without norm each has its own range."""
    columns = int(np.ceil(np.sqrt(len(tiles))))
    rows = -(-len(tiles) // columns)
    tile = np.clip(8 / columns, 0.8, 2.5)
    ratio = np.clip(tiles[0].shape[0] / tiles[0].shape[1], 0.25, 4)
    figure = Figure(figsize=(max(tile * columns, 4), rows * (tile * ratio + 0.15) + 0.7), layout="compressed")
    for i, values in enumerate(tiles):
        ax = figure.add_subplot(rows, columns, i + 1)
        ax.imshow(values, cmap="gray", norm=norm, interpolation="nearest")
        ax.set_title(str(i), size=6, pad=2, color="0.4")
        ax.axis("off")
    figure.suptitle(title)
    return figure


if __name__ == "__main__":
    main()
