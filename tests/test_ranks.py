"""The same bits for any number of ranks, threads, and batch size, and with more or fewer things asked for.

Every variable, with its attributes, and every global attribute but run_* and history are compared, bit by bit.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from program import GOLDEN, IMAGES, LABELS, MODEL, Variable, read, succeed

SHORT = ("--max-iter", 60, "--exaggeration-iter", 20)  # the switch of phases included
MNIST = ("--model", MODEL, "--images", IMAGES, "--labels", LABELS, *SHORT)
COLOR = ("--model", GOLDEN / "color.pth", "--images", GOLDEN / "color_images.npy", "--perplexity", 5, *SHORT)
MUCH = ("--embed", "logits,gap,pool2", "--attribution", "saliency,gradcam:conv1,gradcam:conv2", "--feature-maps",
        "conv1:3:20,relu2,gap:0:2", "--filters", "conv1,conv2", "--pca", 5)

JOBS = {
    "502 samples": (*MNIST, "--samples", 502, *MUCH),  # a multiple of no batch size below
    "31 samples": (*MNIST, "--samples", 31, "--perplexity", 10, *MUCH),
    "a range": (*MNIST, "--samples", "9800:10000", "--tsne", 3),
    "three channels": (*COLOR, *MUCH),
    "random start": (*MNIST, "--samples", 203, "--init", "random", "--seed", 7),
    "subset": (*MNIST, "--samples", 300, "--tsne-samples", 100),
    "chosen maps": (*MNIST, "--samples", 400, "--tsne", 0, "--keep-maps", "chosen"),
    "embed": ("embed", "--input", "{features}", "--labels", "{labels}", "--pre-pca", 20, *SHORT),
    "several maps": ("embed", "--input", "{features}", "--labels", "{labels}", "--tsne-samples", 200, "--perplexity",
                     "5,3+40", "--runs", 2, *SHORT),
}
# (ranks, threads, batch); the last leaves most ranks without a batch
VARIATIONS = [(2, 1, 8), (3, 1, 8), (5, 1, 8), (1, 2, 8), (2, 2, 8), (1, 1, 7), (2, 1, 100), (5, 1, 300)]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A job's variables and attributes, each made once."""
    folder = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(0)
    np.save(folder / "features.npy", rng.normal(size=(257, 70)).astype(np.float32))
    np.save(folder / "labels.npy", rng.integers(0, 4, 257))

    @cache
    def make(job: str, ranks: int, threads: int, batch: int) -> tuple[dict[str, Variable], dict[str, object]]:
        words = [str(w).format(features=folder / "features.npy", labels=folder / "labels.npy") for w in JOBS[job]]
        output = folder / f"{job}_{ranks}_{threads}_{batch}.nc"
        return read(succeed(output, *words, "--threads", threads, "--batch", batch, ranks=ranks))

    return make


def assert_same_variable(name: str, a: Variable, b: Variable) -> None:
    assert a.dimensions == b.dimensions and a.values.shape == b.values.shape and a.values.dtype == b.values.dtype, name
    if a.values.tobytes() != b.values.tobytes():
        different = np.flatnonzero(np.atleast_1d(a.values != b.values))
        pytest.fail(f"{name}: {different.size} values of {a.values.size} differ, first at {different[:1]}")
    assert_same_attributes(name, a.attributes, b.attributes)


def assert_same_attributes(name: str, a: dict[str, object], b: dict[str, object]) -> None:
    kept_a, kept_b = ({k: v for k, v in x.items() if not k.startswith("run_") and k != "history"} for x in (a, b))
    assert kept_a.keys() == kept_b.keys(), name
    for key in kept_a:
        assert np.array_equal(kept_a[key], kept_b[key]), (name, key, kept_a[key], kept_b[key])


@pytest.mark.parametrize("variation", VARIATIONS, ids=lambda v: "{} ranks, {} threads, batch {}".format(*v))
@pytest.mark.parametrize("job", ["502 samples", "31 samples"])
def test_same_bits(result, job, variation):
    assert_same_result(result(job, 1, 1, 8), result(job, *variation))


@pytest.mark.parametrize("job", [j for j in JOBS if j not in ("502 samples", "31 samples")])
def test_same_bits_of_other_jobs(result, job):
    assert_same_result(result(job, 1, 2, 8), result(job, 3, 1, 64))


def assert_same_result(one, other) -> None:
    assert one[0].keys() == other[0].keys()
    for name in one[0]:
        assert_same_variable(name, one[0][name], other[0][name])
    assert_same_attributes("global", one[1], other[1])


def test_everything_is_there(result):
    """What the comparisons above compare."""
    variables, attributes = result("502 samples", 1, 1, 8)
    assert {"sample", "image", "label", "prediction", "logits", "gap", "saliency", "conv1_maps", "relu2_maps",
            "conv1_filters", "conv2_filters", "logits_tsne", "gap_tsne", "pool2_tsne", "pool2_pca"} <= variables.keys()
    assert attributes["sample_count"] == 502 and any(a.startswith("run_") for a in attributes)
    for name, variable in variables.items():
        assert variable.values.dtype.kind in "SU" or np.isfinite(variable.values).all(), name
        assert name.endswith(("_low", "_map_sample")) or np.any(variable.values != 0), name


@pytest.mark.parametrize("fewer", [
    ("--attribution", "none", "--filters", "none", "--feature-maps", "none"),
    ("--embed", "gap", "--attribution", "gradcam:conv1"),
    ("--embed", "logits", "--attribution", "saliency", "--feature-maps", "relu1:0:3", "--tsne", 0),
], ids=["nothing", "other layers", "another map"])
def test_asking_for_more_changes_nothing(result, tmp_path, fewer):
    much = result("502 samples", 1, 1, 8)[0]
    less = read(succeed(tmp_path / "less.nc", *MNIST, "--samples", 502, *fewer, "--threads", 1, ranks=2))[0]
    per_job = ("_pca", "_maps", "_map_sample")  # --pca and the samples of a map differ between the two
    common = [n for n in less if n in much and not n.endswith(per_job) and "_pca_" not in n]
    assert "logits" in common and "image" in common and len(common) >= 5
    for name in common:
        assert_same_variable(name, less[name], much[name])


def test_a_sample_is_the_same_in_any_company(result, tmp_path):
    """Position in the batch, and the other samples, do not matter."""
    whole = result("502 samples", 1, 1, 8)[0]
    part = read(succeed(tmp_path / "part.nc", *MNIST, "--samples", "101:149", "--tsne", 0))[0]
    assert np.array_equal(part["sample"].values, np.arange(101, 149))
    for name in ("logits", "saliency", "saliency_low", "saliency_high", "prediction", "label", "image"):
        assert np.array_equal(part[name].values, whole[name].values[101:149]), name


def test_the_legacy_file_is_the_same_model(result, tmp_path):
    whole = result("31 samples", 1, 1, 8)[0]
    words = [GOLDEN.parent / "data" / "model_legacy.pth" if w == MODEL else w for w in JOBS["31 samples"]]
    legacy = read(succeed(tmp_path / "legacy.nc", *words, ranks=2))[0]
    for name in whole:
        assert_same_variable(name, whole[name], legacy[name])


def test_a_run_again_is_the_same(result, tmp_path):
    again = read(succeed(Path(tmp_path / "again.nc"), *JOBS["a range"], "--threads", 2))
    assert_same_result(result("a range", 1, 2, 8), again)
