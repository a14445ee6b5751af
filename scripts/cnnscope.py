"""Read a results file of cnnscope into xarray.

    import cnnscope

    ds = cnnscope.open_result("mnist.nc")
    wrong = ds.sel(sample=ds.label != ds.prediction)      # label and prediction are coordinates
    ds.saliency.sel(sample=7).plot()                      # `sample` counts as the image file does
    gradient = cnnscope.raw(ds, "saliency")               # |gradient| before its scaling to 0..1
    for layer in cnnscope.layers(ds):
        print(layer, ds[f"{layer}_tsne"].shape)

The Dataset is plain xarray and reads lazily: a variable costs memory when its values are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xarray as xr

# Paul Tol's "muted" set and a violet: at least 15 units of CIELAB apart for normal and colour-blind eyes (simulated).
HUES = ["#332288", "#ddcc77", "#117733", "#cc6677", "#88ccee", "#882255", "#44aa99", "#999933", "#aa4499", "#9922ff"]


def open_result(path: str | Path) -> xr.Dataset:
    """Open a finished results file; names become str, label and prediction coordinates.

    Raises FileNotFoundError, or ValueError for what is no netCDF file or no finished result: a killed job's
    file opens in netCDF and reads as zeros, so nothing without status = "complete" is accepted.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a results file (.nc)")
    try:
        ds = xr.open_dataset(path, engine="netcdf4", decode_timedelta=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: cannot be read as netCDF ({reason}), expected a results file of cnnscope") from error
    if ds.attrs.get("status") != "complete":
        ds.close()
        raise ValueError(f'{path}: has no status = "complete", so it is not the finished result of a run; run it again')
    decoded = {
        name: (ds[name].dims, np.char.decode(ds[name].values, "utf-8", "replace"), ds[name].attrs)
        for name in ("sample_name", "category_name")
        if name in ds.variables and ds[name].dtype.kind == "S"
    }
    known = [name for name in ("label", "prediction", *decoded) if name in ds.variables]
    return ds.assign(decoded).set_coords(known)


def layers(ds: xr.Dataset) -> list[str]:
    """The embedded layers, in the order of the file: those with a PCA or a t-SNE map, the map of an audit, or places."""
    found = []
    for name in ds.data_vars:
        layer, _, method = str(name).rpartition("_")
        axis = f"{layer}_pc" if method == "pca" else f"{layer}_axis" if method in ("tsne", "map", "place") else None
        # L_pre_pca is what t-SNE was given of L, no map of a layer L_pre; that one's would say what variance it explains.
        given = layer.endswith("_pre") and method == "pca" and f"{name}_explained_variance" not in ds.variables
        if axis in ds[name].dims and layer not in found and not given:
            found.append(layer)
    return found


def trust(ds: xr.Dataset, layer: str, method: str) -> dict[str, float]:
    """How far a map ("pca", "tsne", "map" or "place") of a layer can be trusted: its overall numbers by name, those in the file."""
    start, end = f"{layer}_{method}_", "_overall"
    return {str(v)[len(start) : -len(end)]: float(ds[v]) for v in ds.data_vars
            if str(v).startswith(start) and str(v).endswith(end)}


def map_details(ds: xr.Dataset, layer: str, number: int) -> str:
    """What sets one of several t-SNE maps of a layer apart, for example: perplexity 30, seed 1: KL 1.569."""
    at = {name: ds[f"{layer}_tsne_map_{name}"] for name in ("perplexity", "seed", "kl")}
    perplexity = float(at["perplexity"][number])
    several = at["perplexity"].attrs.get("comment", "").partition(", ")[2].split()
    before = len({int(n) for n in np.flatnonzero(np.isnan(at["perplexity"].values[:number]))})
    runs = len(np.unique(at["seed"].values))
    text = f"{perplexity:g}" if np.isfinite(perplexity) else several[min(before // runs, len(several) - 1)]
    seed = f", seed {int(at['seed'][number])}" if runs > 1 else ""
    return f"perplexity {text}{seed}: KL {float(at['kl'][number]):.3f}"


def raw(ds: xr.Dataset, name: str) -> xr.DataArray:
    """A map that is stored scaled to 0..1 (saliency, gradcam, ...) as it was before, from its bounds."""
    low, high = f"{name}_low", f"{name}_high"
    if not {name, low, high} <= set(ds.variables):
        scaled = [str(v)[:-4] for v in ds.variables if str(v).endswith("_low")]
        raise ValueError(f"{name}: not a map with bounds; this file has: {', '.join(scaled) or 'none'}")
    values = ds[low] + ds[name] * (ds[high] - ds[low])
    return values.transpose(*ds[name].dims).rename(name)


def of_sample(ds: xr.Dataset, name: str, sample: int) -> xr.DataArray:
    """The values of a variable for one sample, counted as in the image file, also where only some samples were kept."""
    dimension = ds[name].dims[0]
    kept = ds[dimension].values
    if sample not in kept:
        raise ValueError(f"{name}: sample {sample} was not kept, only {len(kept)} were: {str(kept[:8])[1:-1]} ...")
    return ds[name].sel({dimension: sample})


def category_names(ds: xr.Dataset, categories: Iterable[int] | None = None) -> list[str]:
    """Names of these categories (default: of all outputs), or their numbers where the file knows no name.

    -1 is "no label". A network with one output has two categories: its name, for a positive logit, and "not" its name.
    """
    known = ds["category_name"].values.tolist() if "category_name" in ds.variables else []
    if len(known) == 1:
        known = [f"not {known[0]}", known[0]]
    if categories is None:
        categories = range(max(len(known), 2 if ds.sizes.get("category") == 1 else ds.sizes.get("category", 0)))
    return ["no label" if c < 0 else known[c] if c < len(known) else str(c) for c in map(int, categories)]
