#!/usr/bin/env python3
"""Take a results file of cnnscope to other programs.

    export.py FILE.nc --to projector [-o FOLDER]     TensorBoard: tensorboard --logdir FOLDER; or projector.tensorflow.org, by its TSVs
    export.py FILE.nc --to npz       [-o FILE.npz]   numpy.load
    export.py FILE.nc --to parquet   [-o FILE.parquet]   pandas.read_parquet, polars, DuckDB, R

projector: for each embedded layer its features, and each of its maps, as L.tsv, L_tsne.tsv, ...; metadata.tsv with names, label,
prediction and all numbers of each sample; sprites.png where every sample's image is in the file, made smaller where all do not fit
into 8192 x 8192 pixels; projector_config.pbtxt.
npz: every variable under its own name, compressed; the file's attributes as JSON in `attributes`.
parquet: a row for each sample: its numbers, and what has up to 16 of them a sample (maps, logits) as NAME_0, NAME_1, ...; longer
features as one column of lists. No images and attribution maps. The file's attributes are in the schema's metadata.
Prints the path of what it wrote. Whole or not at all: a file appears under its name when it is complete.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

try:
    import numpy as np
    import xarray as xr
    from PIL import Image

    import cnnscope
    import report_data
except ImportError as error:
    sys.exit(f"export.py: {error}: run scripts/setup.sh once, then .venv/bin/python scripts/export.py")

MAX_SPRITE = 8192  # pixels a side, of the projector
MAX_COLUMNS = 16  # that one variable is spread over


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.nc", help="a results file of cnnscope")
    parser.add_argument("--to", choices=WRITERS, required=True, help="the format")
    parser.add_argument("-o", "--output", type=Path, metavar="PATH", help="default: beside the file, by its name")
    arguments = parser.parse_args()
    ending = "_projector" if arguments.to == "projector" else f".{arguments.to}"
    output = arguments.output or arguments.file.with_name(arguments.file.stem + ending)
    try:
        write(WRITERS[arguments.to], cnnscope.open_result(arguments.file), output)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"export.py: {error}")
    print(output)


def write(writer: Callable[[xr.Dataset, Path], None], ds: xr.Dataset, output: Path) -> None:
    if output.is_dir() and (writer is not to_projector or not (output / "projector_config.pbtxt").exists() and any(output.iterdir())):
        raise ValueError(f"{output}: is a folder with other things in it, expected a new name: give another one by -o")
    partial = output.with_name(output.name + ".partial")
    remove(partial)
    try:
        writer(ds, partial)
        if output.is_dir():
            remove(output)
        os.replace(partial, output)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def of_samples(ds: xr.Dataset, dimensions: int) -> list[str]:
    """The variables with so many dimensions, the first of them the samples, in the order of the file."""
    return [str(name) for name in ds.variables if ds[name].ndim == dimensions and ds[name].dims[0] == "sample"]


# ---- TensorBoard ----------------------------------------------------------------------------------------------------


def to_projector(ds: xr.Dataset, folder: Path) -> None:
    folder.mkdir(parents=True)
    write_tsv(folder / "metadata.tsv", *metadata(ds))
    sprite = write_sprite(ds, folder / "sprites.png")
    parts = []
    for name in tensors(ds):
        values = np.nan_to_num(ds[name].values)  # samples without a place on a t-SNE map
        write_tsv(folder / f"{name}.tsv", None, [np.char.mod("%.9g", column) for column in values.T])
        parts.append(f'embeddings {{\n  tensor_name: "{name}"\n  tensor_path: "{name}.tsv"\n  metadata_path: "metadata.tsv"\n{sprite}}}\n')
    if not parts:
        raise ValueError("the file has no embedded layer, expected one: run cnnscope with --embed")
    (folder / "projector_config.pbtxt").write_text("".join(parts))


def tensors(ds: xr.Dataset) -> list[str]:
    """Features, where they are in the file and a row each, and maps, of every embedded layer."""
    names = [layer + end for layer in cnnscope.layers(ds) for end in ("", "_pca", "_tsne", "_map", "_place")]
    return [name for name in names if name in of_samples(ds, 2)]


def metadata(ds: xr.Dataset) -> tuple[list[str], list[np.ndarray]]:
    """What the projector can colour and search by: categories by name, numbers, whether it is wrong."""
    heads, columns = [], []
    for name in of_samples(ds, 1):
        values = ds[name].values
        if name in ("label", "prediction"):
            values = np.array(cnnscope.category_names(ds, values))
        heads.append(name)
        columns.append(np.array([" ".join(v.split()) for v in values]) if values.dtype.kind == "U" else values.astype(str))
    if {"label", "prediction"} <= set(ds.variables):
        heads.append("wrong")
        columns.append(np.where(report_data.wrong(ds), "wrong", "right"))
    return heads, columns


def write_tsv(path: Path, heads: list[str] | None, columns: list[np.ndarray]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        if heads and len(heads) > 1:  # the projector's rule: a single column has no head
            file.write("\t".join(heads) + "\n")
        file.writelines("\t".join(row) + "\n" for row in zip(*columns))


def write_sprite(ds: xr.Dataset, path: Path) -> str:
    """The pictures in the order of the samples; the lines about them for the configuration."""
    if "image" not in ds.variables or ds["image"].dims[0] != "sample":
        return ""
    pictures = report_data.shown(ds["image"].values)
    side = min(max(pictures[0].size), MAX_SPRITE // int(np.ceil(np.sqrt(len(pictures)))))
    if side < 1:
        return ""
    scale = min(side / max(pictures[0].size), 1)
    width, height = (max(int(length * scale), 1) for length in pictures[0].size)
    if scale < 1:
        pictures = [picture.resize((width, height), Image.Resampling.BOX) for picture in pictures]
    path.write_bytes(report_data.sheet("image", "image", pictures, {}).png)
    return f'  sprite {{\n    image_path: "{path.name}"\n    single_image_dim: {width}\n    single_image_dim: {height}\n  }}\n'


# ---- NumPy, Parquet -------------------------------------------------------------------------------------------------


def to_npz(ds: xr.Dataset, path: Path) -> None:
    """One variable in memory at a time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        for name in ds.variables:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, ds[name].values, allow_pickle=False)
        with archive.open("attributes.npy", "w") as file:
            np.lib.format.write_array(file, np.array(attributes(ds)), allow_pickle=False)


def attributes(ds: xr.Dataset) -> str:
    """Of the file, and under the names of the variables theirs."""
    return json.dumps({**ds.attrs, **{str(v): ds[v].attrs for v in ds.variables if ds[v].attrs}}, default=lambda v: v.tolist())


def to_parquet(ds: xr.Dataset, path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {name: pyarrow.array(ds[name].values) for name in of_samples(ds, 1)}
    for name in of_samples(ds, 2):
        values = ds[name].values
        if values.shape[1] <= MAX_COLUMNS:
            columns |= {f"{name}_{i}": pyarrow.array(np.ascontiguousarray(column)) for i, column in enumerate(values.T)}
        else:
            columns[name] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.ravel()), values.shape[1])
    table = pyarrow.table(columns).replace_schema_metadata({"cnnscope": attributes(ds)})
    parquet.write_table(table, path, compression="zstd")


WRITERS = {"projector": to_projector, "npz": to_npz, "parquet": to_parquet}

if __name__ == "__main__":
    main()
