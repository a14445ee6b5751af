"""scripts/plot.py on synthetic results: the figures hold the numbers of the file, and every kind of file is drawn."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_result import make_result
from matplotlib.colors import to_hex, to_rgba
from PIL import Image

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import cnnscope  # noqa: E402
import plot  # noqa: E402
import plot_samples  # noqa: E402

NETWORK = ["logits_pca", "logits_tsne", "confusion", "conv1_filters", "conv2_filters"]
SAMPLES = ["saliency", "gradcam", "saliency_contact_sheet"]


def draw(path, shown=None, measure="trustworthiness", fade=False, **kind):
    """(truth, dataset, {name: figure}) of a synthetic file; every figure is rendered once."""
    truth = make_result(path / "a.nc", **kind)
    ds = cnnscope.open_result(path / "a.nc")
    with plot.matplotlib.rc_context(plot.STYLE):
        drawn = dict(plot.figures(ds, shown, measure, fade))
        for figure in drawn.values():
            figure.savefig(io.BytesIO(), format="png", dpi=40)
    return truth, ds, drawn


def points(figure):
    """All points of a scatter figure, sorted, and the colours seen."""
    ax = figure.axes[0]
    parts = [c._offsets3d if hasattr(c, "_offsets3d") else c.get_offsets().T for c in ax.collections]
    colours = {to_hex(rgba[:3]) for c in ax.collections if len(c.get_offsets()) for rgba in c.get_facecolors()}
    return np.sort(np.concatenate([np.ma.getdata(np.array(p)).T for p in parts]), 0), colours


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_ten_classes(tmp_path):
    truth, ds, drawn = draw(tmp_path)
    assert list(drawn) == NETWORK + ["conv1_maps_sample0", "conv1_maps_sample1"] + SAMPLES
    assert drawn["logits_tsne"].get_suptitle() == "t-SNE of logits\n400 samples, perplexity 30, KL divergence 1.250"
    assert "% of the variance explained" in drawn["logits_pca"].get_suptitle()
    first = 100 * float(ds.logits_pca_explained_variance_ratio[0])
    assert drawn["logits_pca"].axes[0].get_xlabel() == f"PC1 ({first:.1f} %)"
    for method in ("pca", "tsne"):
        where, colours = points(drawn[f"logits_{method}"])
        np.testing.assert_array_equal(where, np.sort(ds[f"logits_{method}"].values, 0))
        assert colours == set(plot.HUES)
        assert legend(drawn[f"logits_{method}"]) == [str(c) for c in range(10)]


def test_three_named_classes_in_3d_and_colour(tmp_path):
    truth, ds, drawn = draw(tmp_path, classes=3, axes=3, channels=3, samples=90, names=True, unlabelled=0.2)
    unlabelled = (truth["label"] < 0).sum()
    assert unlabelled > 0
    for method in ("pca", "tsne"):
        figure = drawn[f"logits_{method}"]
        assert figure.axes[0].name == "3d"
        assert figure.axes[0].get_zlabel().startswith({"pca": "PC3 (", "tsne": "t-SNE 3"}[method])
        assert len(points(figure)[0]) == 90
        assert legend(figure) == ["_dog 0", "ねこ_1$", "_dog 2", "no label"]
        assert len(figure.axes[0].collections[0].get_offsets()) == unlabelled
    tile = drawn["conv1_filters"].axes[5].images[0].get_array()
    weights = ds.conv1_filters.values[5].transpose(1, 2, 0)
    np.testing.assert_allclose(tile, (weights - weights.min()) / np.ptp(weights))
    picture = drawn["saliency"].subfigs[1].axes[0].images[0].get_array()
    np.testing.assert_allclose(picture, truth["image"][1].transpose(1, 2, 0) / 255)


@pytest.mark.parametrize("kind", [{}, {"channels": 3, "chosen": True}, {"labels": False, "samples": 60}])
def test_contact_sheet(tmp_path, kind):
    """Input and saliency of each tile, in the row of its category; wrong ones last, in a frame."""
    truth, ds, drawn = draw(tmp_path, classes=4, **kind)
    ax = drawn["saliency_contact_sheet"].axes[0]
    sheet = np.asarray(ax.images[0].get_array())
    kinds = truth["label" if kind.get("labels", True) else "prediction"][truth["kept"]]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "1", "2", "3"]
    wrong = (truth["label"] != truth["prediction"])[truth["kept"]] & kind.get("labels", True)
    frames = {(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in ax.patches}
    assert (len(frames) > 0) == wrong.any()
    for row in range(4):
        own = np.flatnonzero((kinds == row) & ~wrong).tolist()
        bad = np.flatnonzero((kinds == row) & wrong)[:2].tolist()
        for column, i in enumerate(own[: 6 - len(bad)] + bad):
            y, x = row * 23, column * 51
            picture = np.broadcast_to(truth["image"][i].transpose(1, 2, 0) / 255, (20, 24, 3))
            np.testing.assert_allclose(sheet[y : y + 20, x : x + 24], picture)
            colours = plot.matplotlib.colormaps["hot"](ds.saliency.values[i])[..., :3]
            np.testing.assert_allclose(sheet[y : y + 20, x + 24 : x + 48], colours)
            assert ((y, x) in frames) == bool(wrong[i])


def test_sixteen_classes_use_two_markers(tmp_path):
    _, _, drawn = draw(tmp_path, classes=16, labels=False, embed=True)
    assert list(drawn) == ["input_pca", "input_tsne"]
    figure = drawn["input_tsne"]
    assert figure.legends[0].get_title().get_text() == "prediction" and len(legend(figure)) == 16
    round_, triangle = (c for c in figure.axes[0].collections if len(c.get_offsets()))
    assert len(round_.get_paths()[0]) != len(triangle.get_paths()[0])
    assert len(round_.get_offsets()) + len(triangle.get_offsets()) == 400


def test_a_map_of_a_part_of_the_samples(tmp_path):
    _, ds, drawn = draw(tmp_path, samples=60, unmapped=20, embed=True)
    np.testing.assert_array_equal(points(drawn["input_tsne"])[0], np.sort(ds.input_tsne.values[20:], 0))
    assert "40 of 60 samples" in drawn["input_tsne"].get_suptitle()
    assert "\n60 samples" in drawn["input_pca"].get_suptitle()


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("measure", ["trustworthiness", "recall"])
def test_maps_of_trust(tmp_path, axes, measure):
    """In the titles, and a figure of each map that has the measure: its colours, the least trusted points on top."""
    truth, ds, drawn = draw(tmp_path, measure=measure, trust=True, axes=axes, unmapped=20, samples=120, embed=True)
    assert list(drawn) == ["input_pca", "input_tsne", "input_tsne_trust"] + ["confusion"]
    mean = np.nanmean(truth["trust"], dtype=float)
    for name in ("input_tsne", "input_tsne_trust"):
        line = drawn[name].get_suptitle().splitlines()[2]
        assert line == f"trustworthiness {mean:.3f}, neighbour recall {mean:.3f}"
    assert len(drawn["input_pca"].get_suptitle().splitlines()) == 2
    shown = drawn["input_tsne_trust"].axes[0].collections[-1]
    np.testing.assert_array_equal(shown.get_array(), np.sort(truth["trust"][20:])[::-1])
    np.testing.assert_array_equal(points(drawn["input_tsne_trust"])[0], np.sort(ds.input_tsne.values[20:], 0))
    assert drawn["input_tsne_trust"].axes[1].get_ylabel() == measure


def test_points_fade_with_their_trust(tmp_path):
    truth, ds, drawn = draw(tmp_path, trust=True, fade=True, classes=1, samples=80)
    shown = drawn["logits_tsne"].axes[0].collections[-1]
    place = {tuple(p): t for p, t in zip(ds.logits_tsne.values.tolist(), truth["trust"])}
    trust = np.array([place[tuple(p)] for p in shown.get_offsets().astype(np.float32).tolist()])
    alpha = np.array(shown.get_alpha())
    assert (np.diff(alpha[np.argsort(trust)]) >= 0).all() and alpha.min() < 0.1 and alpha.max() > 0.6


@pytest.mark.parametrize("axes, classes", [(2, 5), (3, 30)])
def test_several_maps(tmp_path, axes, classes):
    """Side by side, with their numbers; what moves most fades most."""
    _, ds, drawn = draw(tmp_path, several=True, axes=axes, classes=classes, unmapped=9, samples=120)
    figure = drawn["logits_tsne_maps"]
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == [
        "perplexity 30, seed 0: KL 1.250", "perplexity 30, seed 1: KL 1.500", "perplexity 5+50, seed 0: KL 1.000",
        "perplexity 5+50, seed 1: KL 2.000"]
    assert f"mean spread {float(ds.logits_tsne_spread_overall):.3f} radii" in figure.get_suptitle()
    assert f"{float(ds.logits_tsne_persistence_overall):.1%} of neighbours persist" in figure.get_suptitle()
    assert "111 samples" in figure.get_suptitle()
    if axes == 3:
        return
    spread = ds.logits_tsne_spread.values[9:]
    for panel, values in zip(panels, ds.logits_tsne_maps.values):
        alpha = {tuple(p): a for c in panel.collections if len(c.get_offsets())
                 for p, a in zip(c.get_offsets().astype(np.float32).tolist(), c.get_alpha())}
        found = np.array([alpha[tuple(p)] for p in values[9:].tolist()])
        assert (np.diff(found[np.argsort(spread)]) <= 1e-6).all() and found.max() - found.min() > 0.5
    assert len(figure.legends) == 1


@pytest.mark.parametrize("axes", [2, 3])
def test_places_in_a_stored_map(tmp_path, axes):
    """New samples in the colours of their classes, over all mapped ones in grey."""
    truth, _, drawn = draw(tmp_path, classes=4, samples=90, fixed=250, axes=axes, embed=True)
    assert list(drawn) == ["input_place", "confusion"]
    figure = drawn["input_place"]
    assert figure.get_suptitle() == "Placed in the t-SNE map of input\n90 samples, over the 250 mapped ones"
    where, colours = points(figure)
    np.testing.assert_array_equal(where, np.sort(np.concatenate([truth["place"], truth["fixed"]]), 0))
    assert colours == {plot.NO_LABEL, *plot.HUES[:4]} and legend(figure) == list("0123")
    assert len(figure.axes[0].collections[0].get_offsets()) == 250 and figure.axes[0].collections[0].get_zorder() == 0


def test_hundred_classes(tmp_path):
    truth, _, drawn = draw(tmp_path, classes=100, samples=2000, chosen=True)
    figure = drawn["logits_tsne"]
    assert not figure.legends and len(figure.axes) == 2  # a colour bar instead
    assert len(points(figure)[1]) == 100
    assert [t.get_text() for t in figure.axes[0].texts] == [str(c) for c in range(100)]
    assert not drawn["logits_pca"].axes[0].texts
    ax = drawn["confusion"].axes[0]
    assert len(ax.get_xticks()) == 100 and not ax.texts
    assert {"conv1_maps_sample3", "conv1_maps_sample8"} <= set(drawn)


def test_confusion(tmp_path):
    truth, _, drawn = draw(tmp_path, classes=5, samples=1500, unlabelled=0.3)
    known = truth["label"] >= 0
    label, prediction = truth["label"][known], truth["prediction"][known]
    counts = np.zeros((5, 5), int)
    for i, j in zip(label, prediction):
        counts[i, j] += 1
    wrong = len(label) - np.trace(counts)
    ax = drawn["confusion"].axes[0]
    assert wrong > 0
    assert ax.get_title() == f"Accuracy {100 * np.trace(counts) / len(label):.2f} % ({wrong} of {len(label):,} wrong)"
    np.testing.assert_allclose((ax.images[0].get_array() / 100) ** 2, counts / counts.sum(1, keepdims=True), atol=1e-12)
    shown = {(round(t.get_position()[1]), round(t.get_position()[0])): int(t.get_text()) for t in ax.texts}
    assert shown == {(i, j): counts[i, j] for i, j in zip(*np.nonzero(counts))}


def test_filters_and_feature_maps(tmp_path):
    _, ds, drawn = draw(tmp_path, samples=30)
    tiles = [ax.images[0] for ax in drawn["conv1_filters"].axes if ax.images]
    assert len(tiles) == 16 and tiles[0].norm.vmin == -tiles[0].norm.vmax == -np.abs(ds.conv1_filters).max()
    np.testing.assert_array_equal(tiles[7].get_array(), ds.conv1_filters[7, 0])
    mosaic = drawn["conv2_filters"].axes[0].images[0].get_array()
    np.testing.assert_array_equal(mosaic[4 * 31 : 4 * 31 + 3, 4 * 9 : 4 * 9 + 3], ds.conv2_filters[31, 9])
    maps = drawn["conv1_maps_sample1"].axes
    assert len(maps) == 16
    np.testing.assert_array_equal(maps[11].images[0].get_array(), ds.conv1_maps[1, 11])


def test_samples(tmp_path):
    truth, ds, drawn = draw(tmp_path, samples=300)
    wrong = np.flatnonzero(truth["label"] != truth["prediction"])[:4].tolist()
    assert wrong
    first = [i for i in range(12) if i not in wrong][: 8 - len(wrong)]
    assert plot.default_samples(ds, "saliency") == first + wrong
    saliency, cam = drawn["saliency"].subfigs[-1], drawn["gradcam"].subfigs[-1]
    last = wrong[-1]
    caption = f"sample {last}: predicted {truth['prediction'][last]}, label {truth['label'][last]}"
    assert saliency.get_suptitle() == cam.get_suptitle() == caption
    assert to_rgba(saliency._suptitle.get_color()) == to_rgba(plot_samples.WRONG)
    assert drawn["saliency"].subfigs[0]._suptitle.get_color() == "k"
    assert saliency.axes[1].images[0].get_cmap().name == "hot"
    np.testing.assert_array_equal(saliency.axes[1].images[0].get_array(), ds.saliency[last])
    np.testing.assert_allclose(saliency.axes[0].images[0].get_array(), truth["image"][last, 0] / 255)
    over = cam.axes[1].images
    np.testing.assert_array_equal(over[1].get_array(), ds.gradcam[last])
    assert tuple(over[1].get_extent()) == tuple(over[0].get_extent()) == (-0.5, 23.5, 19.5, -0.5)
    assert "Grad-CAM of conv2" in drawn["gradcam"].get_suptitle()


def test_methods_side_by_side(tmp_path):
    """With more maps than saliency and Grad-CAM, a row of all of them for each sample, with its evidence."""
    make_result(tmp_path / "a.nc", samples=60)
    ds = cnnscope.open_result(tmp_path / "a.nc").load()
    signed = np.random.default_rng(0).normal(size=(60, 3, 20, 24)).astype(np.float32)
    ds["integrated_gradients"] = (("sample", "rgb", "y", "x"), signed)
    ds["integrated_gradients_delta"] = ("sample", signed[:, 0, 0, 0])
    ds["gradcam_plus_plus"] = ds.gradcam.copy()
    ds["gradcam_plus_plus_low"] = ds.gradcam_low
    ds["saliency_deletion"] = ("sample", np.linspace(0, 1, 60))
    names = plot.attribution_names(ds)
    assert names == ["saliency", "gradcam", "integrated_gradients", "gradcam_plus_plus"]
    drawn = dict(plot.figures(ds, [3, 59]))
    assert "gradcam_plus_plus" not in drawn and {"gradcam", "saliency"} <= set(drawn)
    axes = drawn["methods"].axes
    assert len(axes) == 2 * 5
    assert axes[1].get_title() == "saliency\ndeletion 0.05" and axes[6].get_title() == "deletion 1.00"
    red_and_blue = axes[8].images[0]
    np.testing.assert_array_equal(red_and_blue.get_array(), signed[59].sum(0))
    assert red_and_blue.get_clim() == (-np.abs(signed[59].sum(0)).max(), np.abs(signed[59].sum(0)).max())
    np.testing.assert_array_equal(axes[7].images[0].get_array(), ds.gradcam[59])


def test_sanity_checks(tmp_path):
    """The curves are the file's numbers, and a method that failed says so in every figure of its maps."""
    make_result(tmp_path / "a.nc", samples=60)
    ds = cnnscope.open_result(tmp_path / "a.nc").load()
    ds["gradcam_plus_plus"] = ds.gradcam.copy()
    names = {"attributions": "saliency gradcam gradcam_plus_plus"}
    steps = np.array([[0.75, 0.5, 0.25], [0.625, 0.25, 0.125]])
    for measure, less in (("correlation", 0), ("ssim", 0.5)):
        ds[f"attribution_randomised_{measure}_overall"] = (("randomised", "attribution"), steps - less,
                                                           names | {"layers": "logits conv1"})
        ds[f"attribution_random_logit_{measure}_overall"] = ("attribution", steps[0] / 2)
    ds["attribution_sanity_failed"] = ("attribution", np.array([1, 0, 0]), names | {
        "random_weights_most": 0.5, "flag_meanings": "random_weights another_output"})
    ds["sanity_sample"] = np.arange(9)
    drawn = dict(plot.figures(ds))
    curves, ssim = (ax.lines for ax in drawn["sanity"].axes)
    np.testing.assert_array_equal(curves[0].get_ydata(), [1, 0.75, 0.625])
    np.testing.assert_array_equal(ssim[4].get_ydata(), [1, -0.25, -0.375])
    assert curves[5].get_ydata() == [0.125] and "9 samples" in drawn["sanity"].get_suptitle()
    assert legend(drawn["sanity"]) == ["saliency (failed)", "gradcam", "gradcam plus plus"]
    assert [t.get_text() for t in drawn["sanity"].axes[0].get_xticklabels()] == \
        ["trained", "logits", "conv1", "another\noutput"]
    assert "sanity check failed: random weights" in drawn["saliency"].get_suptitle()
    assert "sanity" not in drawn["gradcam"].get_suptitle()
    titles = [ax.get_title() for ax in drawn["methods"].axes[1:4]]
    assert titles == ["saliency\nsanity check failed:\nrandom weights", "gradcam", "gradcam plus plus"]


def test_mean_maps(tmp_path):
    """A picture for each category that has samples, and of the wrong and the right, a row for each method."""
    make_result(tmp_path / "a.nc", samples=60)
    ds = cnnscope.open_result(tmp_path / "a.nc").load()
    counts = np.array([3, 0, 57, 0, 0, 0, 0, 0, 0, 0])
    ds["summary_count"] = ("summary_category", counts)
    rng = np.random.default_rng(0)
    ds["gradcam_mean"] = (("summary_category", "conv2_y", "conv2_x"), rng.random((10, 10, 12)))
    ds["occlusion_mean"] = (("summary_category", "y", "x"), rng.normal(size=(10, 20, 24)))
    for method, shape in (("gradcam", ("conv2_y", "conv2_x")), ("occlusion", ("y", "x"))):
        for judged in ("wrong", "right"):
            ds[f"{method}_mean_{judged}"] = (shape, ds[f"{method}_mean"].values[0] / 2)
    figure = dict(plot.figures(ds))["mean_maps"]
    assert [ax.get_title() for ax in figure.axes[:4]] == ["0", "2", "wrong", "right"] and len(figure.axes) == 8
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), ds.gradcam_mean[2])
    low, high = figure.axes[4].images[0].get_clim()
    assert low == -high == -np.abs(ds.occlusion_mean.values[[0, 2]]).max() and "60 samples" in figure.get_suptitle()


def test_asked_samples_fill_pages(tmp_path):
    asked = list(range(5, 30))
    _, _, drawn = draw(tmp_path, shown=asked, samples=40)
    assert list(drawn)[5:] == ["saliency_1", "saliency_2", "gradcam_1", "gradcam_2", "saliency_contact_sheet"]
    parts = [part for name in ("saliency_1", "saliency_2") for part in drawn[name].subfigs if part.axes]
    captions = [part.get_suptitle().split(":")[0] for part in parts]
    assert captions == [f"sample {i}" for i in asked]


@pytest.mark.parametrize("pixels, expected", [
    (np.array([[[0, 51]]], np.uint8), [[0, 0.2]]),
    (np.array([[[0, 0.5]]], np.float32), [[0, 0.5]]),
    (np.array([[[-1, 3.0]]], np.float32), [[0, 1]]),
    (np.array([[[1000, 3000]]], np.uint16), [[0, 1]]),
    (np.array([[[0, 255]], [[255, 255]]], np.uint8), [[0.5, 1]]),
    (np.array([[[255]], [[0]], [[51]]], np.uint8), [[[1, 0, 0.2]]]),
])
def test_pixels(pixels, expected):
    np.testing.assert_allclose(plot.displayed(pixels), expected)


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPTS / "plot.py", *map(str, arguments)], capture_output=True, text=True)


def test_command(tmp_path):
    make_result(tmp_path / "a.nc", samples=5000, embed=True)
    done = run(tmp_path / "a.nc")
    folder = tmp_path / "a_figures"
    names = ["input_pca.png", "input_pca.pdf", "input_tsne.png", "input_tsne.pdf", "confusion.png", "confusion.pdf"]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(folder / name) for name in names]
    with Image.open(folder / "input_tsne.png") as picture:
        assert picture.width > 1200 and np.asarray(picture.convert("L")).std() > 5
    pdf = (folder / "input_tsne.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/Subtype /Image" in pdf and len(pdf) < 500_000
    again = run(tmp_path / "a.nc", "-o", tmp_path / "new" / "folder", "--format", "png")
    assert again.returncode == 0 and len(list((tmp_path / "new" / "folder").iterdir())) == 3


@pytest.mark.parametrize("case, message", [
    ("missing", "no such file"),
    ("text", "cannot be read as netCDF"),
    ("unfinished", 'has no status = "complete"'),
    ("sample", "holds no sample 99, expected 0 to 29"),
    ("output", "File exists"),
])
def test_bad_input_is_one_line(tmp_path, case, message):
    path = tmp_path / "a.nc"
    if case == "text":
        path.write_text("hello")
    elif case != "missing":
        make_result(path, samples=30, status=None if case == "unfinished" else "complete")
    options = {"sample": ["--samples", "3,99"], "output": ["-o", path]}.get(case, [])
    done = run(path, *options)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("plot.py: ") and message in done.stderr
    assert "a.nc" in done.stderr


@pytest.mark.parametrize("options", [["--format", "gif"], ["--samples", "x"], []])
def test_bad_options(tmp_path, options):
    assert run(*([tmp_path / "a.nc"] if options else []), *options).returncode == 2
