"""scripts/cnnscope.py on synthetic results: what a user of the file relies on."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import netCDF4
import numpy as np
import pytest
from make_result import add, make_result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import cnnscope  # noqa: E402


def test_coordinates_and_lazy_values(tmp_path):
    truth = make_result(tmp_path / "a.nc", names=True)
    ds = cnnscope.open_result(tmp_path / "a.nc")
    assert {"label", "prediction", "sample", "sample_name", "category_name"} <= set(ds.coords)
    assert ds.label.dtype == np.int32 and np.array_equal(ds.label, truth["label"])
    wrong = ds.sel(sample=ds.label != ds.prediction)
    assert 0 < wrong.sizes["sample"] == (truth["label"] != truth["prediction"]).sum()
    assert np.array_equal(ds.logits.sel(sample=17), truth["logits"][17])


def test_names_are_text(tmp_path):
    make_result(tmp_path / "a.nc", classes=3, samples=30, names=True)
    ds = cnnscope.open_result(tmp_path / "a.nc")
    assert cnnscope.category_names(ds) == ["_dog 0", "ねこ_1$", "_dog 2"]
    assert cnnscope.category_names(ds, np.array([1, -1, 7])) == ["ねこ_1$", "no label", "7"]
    assert ds.sample_name.values[29] == "file29.png" and ds.sample_name.dims == ("sample",)


def test_names_default_to_numbers(tmp_path):
    make_result(tmp_path / "a.nc", classes=4, samples=30)
    make_result(tmp_path / "embed.nc", samples=30, embed=True)
    assert cnnscope.category_names(cnnscope.open_result(tmp_path / "a.nc")) == ["0", "1", "2", "3"]
    assert cnnscope.category_names(cnnscope.open_result(tmp_path / "embed.nc"), [2]) == ["2"]


def test_one_output_has_two_categories():
    import xarray as xr

    named = xr.Dataset(coords={"category_name": ("category", np.array(["cat"]))})
    assert cnnscope.category_names(named) == ["not cat", "cat"]
    assert cnnscope.category_names(xr.Dataset({"logits": (("sample", "category"), np.zeros((5, 1)))})) == ["0", "1"]


@pytest.mark.parametrize("chosen", [False, True])
def test_raw_gives_the_gradient_back(tmp_path, chosen):
    truth = make_result(tmp_path / "a.nc", samples=60, chosen=chosen)
    ds = cnnscope.open_result(tmp_path / "a.nc")
    raw = cnnscope.raw(ds, "saliency")
    assert raw.dims == ds.saliency.dims and raw.shape == truth["raw_saliency"].shape
    np.testing.assert_allclose(raw, truth["raw_saliency"], atol=1e-6)
    assert (raw[0] == 0.25).all() and (ds.saliency[0] == 0).all()  # a constant map
    with pytest.raises(ValueError, match="logits: not a map with bounds; this file has: saliency, gradcam"):
        cnnscope.raw(ds, "logits")


def test_of_sample_counts_as_the_image_file(tmp_path):
    truth = make_result(tmp_path / "a.nc", samples=60, chosen=True)
    ds = cnnscope.open_result(tmp_path / "a.nc")
    assert np.array_equal(cnnscope.of_sample(ds, "image", 13), truth["image"][2])
    assert np.array_equal(cnnscope.of_sample(ds, "logits", 13), truth["logits"][13])
    with pytest.raises(ValueError, match=r"saliency: sample 0 was not kept, only 12 were: +3 +8 +13 "):
        cnnscope.of_sample(ds, "saliency", 0)


def test_layers(tmp_path):
    make_result(tmp_path / "a.nc", samples=30)
    make_result(tmp_path / "b.nc", samples=30, embed=True, axes=3)
    assert cnnscope.layers(cnnscope.open_result(tmp_path / "a.nc")) == ["logits"]
    ds = cnnscope.open_result(tmp_path / "b.nc")
    assert cnnscope.layers(ds) == ["input"]
    assert cnnscope.layers(ds.drop_vars("input_pca")) == ["input"]
    assert cnnscope.layers(ds.drop_vars("input_tsne")) == ["input"]
    assert cnnscope.layers(ds.drop_vars(["input_pca", "input_tsne"])) == []


@pytest.mark.parametrize("status", [None, "writing"])
def test_unfinished_results_are_refused(tmp_path, status):
    make_result(tmp_path / "a.nc", samples=30, status=status)
    with pytest.raises(ValueError, match=r'a\.nc: has no status = "complete"'):
        cnnscope.open_result(tmp_path / "a.nc")


def test_what_is_no_result_is_refused(tmp_path):
    (tmp_path / "text.nc").write_text("hello")
    (tmp_path / "empty.nc").touch()
    make_result(tmp_path / "a.nc", samples=30)
    (tmp_path / "cut.nc").write_bytes((tmp_path / "a.nc").read_bytes()[:5000])
    for name in ("text.nc", "empty.nc", "cut.nc"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as netCDF"):
            cnnscope.open_result(tmp_path / name)
    with pytest.raises(ValueError, match="is a folder"):
        cnnscope.open_result(tmp_path)
    with pytest.raises(FileNotFoundError, match="none.nc: no such file"):
        cnnscope.open_result(tmp_path / "none.nc")


def test_readme_redoes_the_notebook(demo, monkeypatch):
    """Its figures, by the lines that the README shows: fewer than 30."""
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")
    code = next(part for part in text.split("```python\n")[1:] if "plt.subplots(4, 4" in part).split("```")[0]
    assert len(code.splitlines()) < 30
    matplotlib.use("Agg")
    plt.close("all")
    monkeypatch.setattr(plt, "show", lambda: None)
    exec(code.replace("demo/mnist.nc", str(demo)), {})
    ds = cnnscope.open_result(demo)
    pca, tsne, filters, features, saliency, gradcam = map(plt.figure, plt.get_fignums())
    for figure, name in ((pca, "logits_pca"), (tsne, "logits_tsne")):
        drawn = figure.axes[0].collections
        assert len(drawn) == 10 and sum(len(c.get_offsets()) for c in drawn) == 10000
        np.testing.assert_array_equal(drawn[3].get_offsets(), ds[name][ds.label == 3])
    for figure, tiles in ((filters, ds.conv1_filters[:, 0]), (features, ds.conv1_maps[0])):
        for ax, tile in zip(figure.axes, tiles, strict=True):
            np.testing.assert_array_equal(ax.images[0].get_array(), tile)
    for figure, name in ((saliency, "saliency"), (gradcam, "gradcam")):
        np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), ds.image[0, 0])
        np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), ds[name][0])
        assert figure.axes[1].get_title() == f"{name} for predicted class 7"
    plt.close("all")


def test_what_t_sne_was_given_is_no_layer(tmp_path):
    """L_pre_pca; a layer called L_pre, with a PCA of its own, is one."""
    make_result(tmp_path / "a.nc", samples=30)
    with netCDF4.Dataset(tmp_path / "a.nc", "a") as nc:
        add(nc, "conv_pre_pca", "sample conv_pre_pc", np.zeros((30, 4), np.float32))
    assert cnnscope.layers(cnnscope.open_result(tmp_path / "a.nc")) == ["logits"]
    with netCDF4.Dataset(tmp_path / "a.nc", "a") as nc:
        add(nc, "conv_pre_pca_explained_variance", "conv_pre_pc", np.zeros(4))
    assert cnnscope.layers(cnnscope.open_result(tmp_path / "a.nc")) == ["logits", "conv_pre"]
