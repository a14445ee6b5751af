"""A small synthetic results file, laid out as the program's own, for the tests of scripts/.

    make_result.py FILE.nc [--classes 10] [--axes 2] [--channels 1] [--samples 400] [--unlabelled 0.0]
                           [--unmapped 0] [--no-labels] [--chosen] [--names] [--embed] [--trust] [--several] [--status complete]

The numbers are made up (a blurred pattern per class, Gaussian clusters); what can be checked holds: PCA is the PCA
of the logits, maps are scaled to 0..1 and the bounds give `raw_saliency` below, predictions are the largest logit.
"""

from __future__ import annotations

import argparse

import netCDF4
import numpy as np


def make_result(path, classes=10, axes=2, channels=1, samples=400, unlabelled=0.0, labels=True, chosen=False,
                names=False, embed=False, unmapped=0, trust=False, several=False, fixed=0, status="complete"):
    """Write the file; returns the arrays behind it for comparison."""
    rng = np.random.default_rng(7)
    truth = {}
    label = rng.permutation(np.arange(samples) % classes).astype(np.int32)
    truth["logits"] = (4 * np.eye(classes)[label] + rng.normal(size=(samples, classes))).astype(np.float32)
    truth["prediction"] = truth["logits"].argmax(1).astype(np.int32)
    label[rng.random(samples) < unlabelled] = -1
    truth["label"] = label
    truth["kept"] = np.arange(3, samples, 5) if chosen else np.arange(samples)
    with netCDF4.Dataset(path, "w") as nc:
        nc.setncatts({"title": "synthetic", "Conventions": "CF-1.11 ACDD-1.3"})
        add(nc, "sample", "sample", np.arange(samples, dtype=np.int64))
        if labels:
            add(nc, "label", "sample", label)
        add(nc, "prediction", "sample", truth["prediction"])
        if names:
            add_names(nc, "category", [f"ねこ_{c}$" if c % 2 else f"_dog {c}" for c in range(classes)])
            add_names(nc, "sample", [f"file{i}.png" for i in range(samples)])
        layer = "input" if embed else "logits"
        if fixed:
            truth["place"], truth["fixed"] = add_places(nc, rng, layer, samples, fixed, axes)
        else:
            add_embedding(nc, rng, layer, truth["logits"], axes)
            nc[f"{layer}_tsne"][:unmapped] = np.nan
        if trust:
            truth["trust"] = add_trust(nc, rng, layer, samples, unmapped)
        if several:
            add_maps(nc, rng, layer)
        if not embed:
            add_network(nc, rng, truth, channels, chosen)
        if status is not None:
            nc.status = status
    return truth


def add_network(nc, rng, truth, channels, chosen):
    """What only a run with a network has: logits, images, saliency, Grad-CAM, filters, feature maps."""
    add(nc, "logits", "sample category", truth["logits"])
    nc["logits"].coordinates = "label prediction"
    first = "map_sample" if chosen else "sample"
    kept = truth["kept"]
    if chosen:
        add(nc, first, first, kept.astype(np.int64))
    truth["image"] = images(truth["prediction"][kept], channels, 20, 24)
    add(nc, "image", f"{first} channel y x", truth["image"])
    truth["raw_saliency"] = np.abs(rng.normal(size=(len(kept), 20, 24))).astype(np.float32)
    truth["raw_saliency"] = 0.1 + truth["raw_saliency"] * truth["image"].max(1) / np.float32(255)
    truth["raw_saliency"][0] = 0.25  # a constant map is stored as zeros
    add_scaled(nc, "saliency", f"{first} y x", truth["raw_saliency"])
    add_scaled(nc, "gradcam", f"{first} conv2_y conv2_x", truth["raw_saliency"][:, ::2, ::2] ** 2)
    add(nc, "conv1_filters", "conv1_filter conv1_in_channel conv1_ky conv1_kx", rng.normal(size=(16, channels, 3, 3)))
    add(nc, "conv2_filters", "conv2_filter conv2_in_channel conv2_ky conv2_kx", rng.normal(size=(32, 16, 3, 3)))
    add(nc, "conv1_map_sample", "conv1_map_sample", kept[:2].astype(np.int64))
    maps = rng.normal(size=(2, 16, 1, 1)) * truth["image"][:2].mean(1, keepdims=True) + rng.normal(size=(2, 16, 20, 24))
    add(nc, "conv1_maps", "conv1_map_sample conv1_channel conv1_y conv1_x", maps.astype(np.float32))


def images(kinds, channels, height, width):
    """(N, channels, height, width) uint8: a few bright discs whose places depend on the kind."""
    y, x = np.mgrid[:height, :width]
    out = np.zeros((len(kinds), channels, height, width))
    for i, kind in enumerate(kinds):
        place = np.random.default_rng(int(kind))
        for _ in range(3):
            disc = np.exp(-((y - place.uniform(4, height - 4)) ** 2 + (x - place.uniform(4, width - 4)) ** 2) / 12)
            out[i] += place.uniform(0.2, 1, size=(channels, 1, 1)) * disc
    return (255 * np.clip(out, 0, 1)).astype(np.uint8)


def add_embedding(nc, rng, layer, x, axes):
    """PCA of x, and points around one place per class in the stead of a t-SNE map."""
    centred = x - x.mean(0)
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    variance = singular**2 / (len(x) - 1)
    add(nc, f"{layer}_pca", f"sample {layer}_pc", (centred @ components[:axes].T).astype(np.float32))
    add(nc, f"{layer}_pca_explained_variance", f"{layer}_pc", variance[:axes])
    add(nc, f"{layer}_pca_explained_variance_ratio", f"{layer}_pc", (variance / variance.sum())[:axes])
    side = int(np.ceil(x.shape[1] ** (1 / axes)))
    places = np.stack(np.unravel_index(x.argmax(1), (side,) * axes), 1) * 9.0
    add(nc, f"{layer}_tsne", f"sample {layer}_axis", (places + rng.normal(size=places.shape)).astype(np.float32))
    nc[f"{layer}_tsne"].setncatts({"perplexity": 30.0, "n_iter": np.int32(1000)})
    add(nc, f"{layer}_tsne_kl", "", np.float64(1.25))


def add_trust(nc, rng, layer, samples, unmapped):
    """Measures of the t-SNE map, made up; (samples) of trustworthiness."""
    values = 1 - rng.random(samples).astype(np.float32) ** 3
    values[:unmapped] = np.nan
    for measure in ("trustworthiness", "recall"):
        add(nc, f"{layer}_tsne_{measure}", "sample", values)
        add(nc, f"{layer}_tsne_{measure}_overall", "", np.nanmean(values, dtype=np.float64))
    return values


def add_maps(nc, rng, layer):
    """Of perplexities 30 and 5+50, two runs each, and what they have in common, made up."""
    first = nc[f"{layer}_tsne"][:].filled(np.nan)
    maps = np.stack([first, *(first + rng.normal(size=(3, *first.shape)))]).astype(np.float32)
    add(nc, f"{layer}_tsne_maps", f"{layer}_tsne_map sample {layer}_axis", maps)
    for name, values in (("perplexity", [30, 30, np.nan, np.nan]), ("seed", [0, 1, 0, 1]), ("kl", [1.25, 1.5, 1, 2])):
        add(nc, f"{layer}_tsne_map_{name}", f"{layer}_tsne_map", values)
    nc[f"{layer}_tsne_map_perplexity"].comment = "NaN: the mean of several, 5+50"
    for name, value in (("spread", maps.std(0).mean(1)), ("persistence", rng.random(len(first)).astype(np.float32))):
        add(nc, f"{layer}_tsne_{name}", "sample", value)
        add(nc, f"{layer}_tsne_{name}_overall", "", np.nanmean(value, dtype=np.float64))


def add_places(nc, rng, layer, samples, fixed, axes):
    """Places in a stored map, which stands beside them, in the stead of maps of one's own; both (.., axes)."""
    kept = f"{layer}_fixed_sample"
    add(nc, kept, kept, np.arange(fixed, dtype=np.int64))
    found = [rng.normal(size=(count, axes)).astype(np.float32) for count in (samples, fixed)]
    add(nc, f"{layer}_place", f"sample {layer}_axis", found[0])
    add(nc, f"{layer}_fixed", f"{kept} {layer}_axis", found[1])
    add(nc, f"{layer}_place_kl", "sample", rng.random(samples))
    return found


def add_scaled(nc, name, dims, values):
    flat = values.reshape(len(values), -1)
    low, high = flat.min(1), flat.max(1)
    span = np.where(high > low, high - low, 1)
    shape = (len(values),) + (1,) * (values.ndim - 1)
    add(nc, name, dims, (values - low.reshape(shape)) / span.reshape(shape))
    add(nc, f"{name}_low", dims.split()[0], low)
    add(nc, f"{name}_high", dims.split()[0], high)


def add_names(nc, dimension, names):
    encoded = np.array([n.encode() for n in names])
    characters = encoded.view("S1").reshape(len(names), -1)
    if "name_length" not in nc.dimensions:
        nc.createDimension("name_length", 40)
    padded = np.zeros((len(names), 40), "S1")
    padded[:, : characters.shape[1]] = characters
    add(nc, f"{dimension}_name", f"{dimension} name_length", padded)


def add(nc, name, dims, values):
    values = np.asarray(values)
    for dimension, length in zip(dims.split(), values.shape):
        if dimension not in nc.dimensions:
            nc.createDimension(dimension, length)
    nc.createVariable(name, values.dtype, dims.split())[...] = values


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    for option, default in {"classes": 10, "axes": 2, "channels": 1, "samples": 400}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--unlabelled", type=float, default=0.0)
    parser.add_argument("--unmapped", type=int, default=0)
    parser.add_argument("--status", default="complete")
    parser.add_argument("--no-labels", dest="labels", action="store_false")
    for option in ("chosen", "names", "embed", "trust", "several"):
        parser.add_argument(f"--{option}", action="store_true")
    make_result(**vars(parser.parse_args()))
