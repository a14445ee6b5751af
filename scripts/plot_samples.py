"""Figures of samples for plot.py: attribution maps beside the images, and whether their methods can be believed."""

from __future__ import annotations

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import cnnscope

ATTRIBUTIONS = ("saliency", "input_x_gradient", "gradcam", "gradcam_plus_plus", "hirescam", "layercam",
                "guided_backprop", "smoothgrad", "integrated_gradients", "occlusion")
EVIDENCE = ("deletion", "insertion", "sparseness")
WRONG = "#b00020"
MOST_CATEGORIES = 20  # in one figure
PER_ROW, MAX_ROWS, GAP = 6, 30, 3  # of the contact sheet: samples, categories, pixels between them
DASHES = ("-", "--", ":", "-.")


def of_method(name: str, method: str) -> bool:
    """Whether a variable is a map by that method, at whatever layer; gradcam_plus_plus is a method of its own."""
    other = method == "gradcam" and of_method(name, "gradcam_plus_plus")
    return name == method or name.startswith(f"{method}_") and not other


def attribution_names(ds: xr.Dataset) -> list[str]:
    """The variables that are attribution maps, in the file's order."""
    return [str(v) for v in ds.data_vars if ds[v].ndim in (3, 4) and ds[v].dims[0] in ("sample", "map_sample")
            and any(of_method(str(v), m) for m in ATTRIBUTIONS)]


def default_samples(ds: xr.Dataset, name: str, count: int = 8) -> list[int]:
    """The first samples that the map was kept for; with labels half of them wrong ones, where there are so many."""
    kept = ds[name][ds[name].dims[0]].values
    if "label" not in ds.variables:
        return kept[:count].tolist()
    seen = ds[["label", "prediction"]].sel(sample=kept)
    wrong = kept[((seen.label != seen.prediction) & (seen.label >= 0)).values][: count // 2]
    first = kept[~np.isin(kept, wrong)][: count - len(wrong)]
    return np.concatenate([first, wrong]).tolist()


# ---- maps -----------------------------------------------------------------------------------------------------------


def attributions(ds: xr.Dataset, name: str, samples: list[int]) -> Figure:
    """Input and map side by side, prediction and label above; Grad-CAM lies over the input."""
    columns = min(len(samples), 4 if len(samples) > 4 else 2)
    rows = -(-len(samples) // columns)
    height, width = ds[name].shape[-2:]
    tall = 1.55 * np.clip(height / width, 0.25, 3) * (1 if "image" in ds else 2)
    figure = Figure(figsize=(3.2 * columns, (tall + 0.45) * rows + 0.4), layout="constrained")
    parts = figure.subfigures(rows, columns, squeeze=False).flat
    for part, sample in zip(parts, samples):
        values = cnnscope.of_sample(ds, name, sample).values
        picture = displayed(cnnscope.of_sample(ds, "image", sample).values) if "image" in ds else None
        axes = part.subplots(1, 1 if picture is None else 2, squeeze=False)[0]
        gray = {"cmap": "gray", "vmin": 0, "vmax": 1}
        if picture is not None:
            axes[0].imshow(picture, **gray)
        if name == "saliency":
            axes[-1].imshow(values, cmap="hot", vmin=0, vmax=1)
        else:
            height, width = values.shape if picture is None else picture.shape[:2]
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            if picture is not None:
                axes[-1].imshow(picture, **gray)
            # More transparent where the map is low, so that the input stays visible there.
            alpha = None if picture is None else 0.3 + 0.6 * np.sqrt(values)
            axes[-1].imshow(values, cmap="inferno", vmin=0, vmax=1, alpha=alpha, extent=extent,
                            interpolation="bilinear")
        for ax in axes:
            ax.axis("off")
        part.suptitle(caption(ds, sample), size=8, color=WRONG if is_wrong(ds, sample) else "k")
    layer = ds[name].attrs.get("layer", ds[name].dims[1].removesuffix("_y"))
    title = "Saliency: |gradient of the predicted class's logit|, each map scaled to 0..1" if name == "saliency" else \
        f"Grad-CAM of {layer} for the predicted class, over the input"
    figure.suptitle("\n".join([title, *failure(ds, name)]), color=WRONG if failure(ds, name) else "k")
    return figure


def contact_sheet(ds: xr.Dataset, of: str) -> Figure:
    """A row for each category: inputs, each beside its saliency; right ones, the surest first, then wrong ones in red frames.
    of: label or prediction."""
    kept = ds["saliency"][ds["saliency"].dims[0]].values
    kinds = ds[of].sel(sample=kept).values
    present = [int(c) for c in np.unique(kinds) if c >= 0][:MAX_ROWS]
    picks = [contact_samples(ds, kept[kinds == c]) for c in present]
    height, width = ds["saliency"].shape[-2:]
    sheet = np.ones((len(present) * (height + GAP) - GAP, PER_ROW * (2 * width + GAP) - GAP, 3))
    ratio = sheet.shape[0] / sheet.shape[1]
    figure = Figure(figsize=(9, np.clip(8.2 * ratio, 1, 40) + 0.8), layout="compressed")
    ax = figure.add_subplot()
    for row, samples in enumerate(picks):
        for column, sample in enumerate(samples):
            y, x = row * (height + GAP), column * (2 * width + GAP)
            picture = displayed(cnnscope.of_sample(ds, "image", sample).values)
            sheet[y : y + height, x : x + width] = picture if picture.ndim == 3 else picture[..., None]
            values = cnnscope.of_sample(ds, "saliency", sample).values
            sheet[y : y + height, x + width : x + 2 * width] = matplotlib.colormaps["hot"](values)[..., :3]
            if is_wrong(ds, sample):
                ax.add_patch(Rectangle((x - 0.5, y - 0.5), 2 * width, height, fill=False, color=WRONG, lw=2))
    ax.imshow(sheet, interpolation="nearest")
    names = [short(name, 16) for name in cnnscope.category_names(ds, present)]
    ax.set_yticks([row * (height + GAP) + height / 2 for row in range(len(present))], names)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_ylabel(of)
    figure.suptitle("Saliency beside its input, for the predicted class; red: wrong")
    return figure


def contact_samples(ds: xr.Dataset, samples: np.ndarray) -> list[int]:
    """Of one category: right ones, the surest first where the file knows, and at most a third wrong ones."""
    seen = ds.sel(sample=samples)
    known = {"label", "prediction"} <= set(ds.variables)
    wrong = ((seen.label != seen.prediction) & (seen.label >= 0)).values if known else np.zeros(len(samples), bool)
    right = samples[~wrong]
    if "prediction_probability" in ds.variables:
        right = right[np.argsort(-seen.prediction_probability.values[~wrong], kind="stable")]
    last = samples[wrong][: PER_ROW // 3].tolist()
    return right[: PER_ROW - len(last)].tolist() + last


def methods_side_by_side(ds: xr.Dataset, names: list[str], samples: list[int]) -> Figure:
    """A row for each sample: the input, then each method's map with its evidence; red for the category, blue against."""
    height, width = ds[names[0]].shape[-2:]
    tall = 1.7 * np.clip(height / width, 0.25, 3)
    columns = len(names) + ("image" in ds)
    figure = Figure(figsize=(1.7 * columns, (tall + 0.5) * len(samples) + 0.6), layout="constrained")
    grid = figure.subplots(len(samples), columns, squeeze=False)
    for row, sample in zip(grid, samples):
        if "image" in ds:
            row[0].imshow(displayed(cnnscope.of_sample(ds, "image", sample).values), cmap="gray", vmin=0, vmax=1)
            row[0].set_title(caption(ds, sample).replace(": ", ":\n").replace(", ", "\n"), size=6,
                             color=WRONG if is_wrong(ds, sample) else "k")
        for ax, name in zip(row[-len(names) :], names):
            values = cnnscope.of_sample(ds, name, sample).values
            if f"{name}_low" in ds:
                ax.imshow(values, cmap="inferno", vmin=0, vmax=1)
            else:
                values = values.sum(0) if values.ndim == 3 else values
                most = np.abs(values).max() or 1
                ax.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most)
            lines = [name.replace("_", " "), *(f.replace(": ", ":\n").replace(", ", ",\n") for f in failure(ds, name))]
            lines = lines if sample == samples[0] else []
            lines += [f"{e} {float(cnnscope.of_sample(ds, f'{name}_{e}', sample)):.2f}" for e in EVIDENCE
                      if f"{name}_{e}" in ds]
            ax.set_title("\n".join(lines), size=6, color=WRONG if failure(ds, name) else "k")
        for ax in row:
            ax.axis("off")
    figure.suptitle("Attribution methods; deletion: small is good, insertion: large is good")
    return figure


def failure(ds: xr.Dataset, name: str) -> list[str]:
    """A line that says that the method failed its sanity check, where it did."""
    if "attribution_sanity_failed" not in ds:
        return []
    failed = ds.attribution_sanity_failed
    bits = dict(zip(failed.attrs["attributions"].split(), failed.values)).get(name, 0)
    words = [w.replace("_", " ") for i, w in enumerate(failed.attrs["flag_meanings"].split()) if int(bits) >> i & 1]
    return [f"sanity check failed: {', '.join(words)}"] if words else []


def mean_maps(ds: xr.Dataset) -> Figure:
    """A row for each method: the mean map of each category's samples, of the wrong and of the right predictions."""
    names = [str(v).removesuffix("_mean") for v in ds.data_vars
             if str(v).endswith("_mean") and ds[v].dims[0] == "summary_category"]
    counts = ds.summary_count.values
    shown = np.flatnonzero(counts)[:MOST_CATEGORIES]
    titles = [short(n, 12) for n in cnnscope.category_names(ds, shown)]
    judged = [w for w in ("wrong", "right") if f"{names[0]}_mean_{w}" in ds]
    figure = Figure(figsize=(1.2 * (len(shown) + len(judged)) + 1, 1.45 * len(names) + 0.8), layout="constrained")
    grid = figure.subplots(len(names), len(shown) + len(judged), squeeze=False)
    for row, name in zip(grid, names):
        maps = [*ds[f"{name}_mean"].values[shown], *(ds[f"{name}_mean_{w}"].values for w in judged)]
        maps = [m.sum(0) if m.ndim == 3 else m for m in maps]
        most = max(float(np.nanmax(np.abs(m))) for m in maps) or 1
        signed = min(float(np.nanmin(m)) for m in maps) < 0
        for ax, values, title in zip(row, maps, [*titles, *judged]):
            ax.imshow(values, cmap="RdBu_r" if signed else "inferno", vmin=-most if signed else 0, vmax=most)
            ax.set(xticks=[], yticks=[])
            if ax in grid[0]:
                ax.set_title(title, size=7)
        row[0].set_ylabel("\n".join([name.replace("_", " "), *failure(ds, name)]).replace(": ", ":\n"), size=6,
                          color=WRONG if failure(ds, name) else "k")
    figure.suptitle(f"Mean attribution maps of {counts.sum():,} samples by category, one scale a row")
    return figure


def sanity_curves(ds: xr.Dataset) -> Figure:
    """How alike maps stay as the network's layers are randomised from the last one on, and for another output."""
    found = ds.attribution_randomised_correlation_overall.attrs
    names, layers = found["attributions"].split(), found["layers"].split()
    failed = ds.attribution_sanity_failed
    figure = Figure(figsize=(10, 4.2 + 0.1 * len(names)), layout="constrained")
    for ax, measure, title in zip(figure.subplots(1, 2, sharex=True), ("correlation", "ssim"),
                                  ("Spearman's correlation", "structural similarity")):
        steps = ds[f"attribution_randomised_{measure}_overall"].values
        other = f"attribution_random_logit_{measure}_overall"
        for i, name in enumerate(names):
            bad = bool(failed[i])
            label = name.replace("_", " ") + (" (failed)" if bad else "")
            line = ax.plot([1, *steps[:, i]], marker="o", ms=3, lw=2 if bad else 1, ls=DASHES[i // 10 % len(DASHES)],
                           color=cnnscope.HUES[i % len(cnnscope.HUES)], label=label if measure == "ssim" else None)[0]
            if other in ds:
                ax.plot([len(layers) + 1], [float(ds[other][i])], marker="s" if bad else "D", ms=4, color=line.get_color())
        if measure == "correlation":
            ax.axhline(failed.attrs["random_weights_most"], color="0.6", lw=0.8, ls=":")
        ticks = ["trained", *layers, *(["another\noutput"] if other in ds else [])]
        ax.set_xticks(range(len(ticks)), ticks, rotation=45 if len(ticks) > 6 else 0, size=7)
        ax.set(title=title, ylim=(min(-0.05, float(np.nanmin(steps)) - 0.05), 1.03),
               xlabel="random from this layer to the last")
    figure.legend(loc="outside right center", fontsize=7)
    figure.suptitle(f"Maps of {ds.sizes['sanity_sample']} samples compared with the trained network's: alike = they show "
                    "the image, not the network")
    return figure


def displayed(image: np.ndarray) -> np.ndarray:
    """(C, H, W) pixels as (H, W) gray or (H, W, 3) colours in 0..1; other channel counts by their mean."""
    if image.dtype == np.uint8:
        image = image / 255
    elif image.min() < 0 or image.max() > 1:
        image = scaled(image)
    return image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)


def scaled(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)


def caption(ds: xr.Dataset, sample: int) -> str:
    """For example: sample 115: predicted 9, label 4."""
    known = {v: int(cnnscope.of_sample(ds, v, sample)) for v in ("prediction", "label") if v in ds.variables}
    words = {"prediction": "predicted", "label": "label"}
    parts = [f"{words[v]} {short(*cnnscope.category_names(ds, [c]))}" for v, c in known.items() if c >= 0]
    lines = [f"sample {sample}" + (": " if parts else "") + ", ".join(parts)]
    return lines[0] if len(lines[0]) <= 48 else f"sample {sample}: {parts[0]},\n{', '.join(parts[1:])}"


def is_wrong(ds: xr.Dataset, sample: int) -> bool:
    if not {"label", "prediction"} <= set(ds.variables):
        return False
    label, prediction = (int(cnnscope.of_sample(ds, v, sample)) for v in ("label", "prediction"))
    return 0 <= label != prediction


def short(name: str, length: int = 20) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
