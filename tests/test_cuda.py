"""The whole program of the CUDA build: close to the CPU build's results, and with its own equal bit for bit over ranks.

Runs where CNNSCOPE_CUDA_BIN names a program of the CUDA build: scripts/cuda-host.sh gives that of the host executor
(slow: hence few samples), scripts/gpu-check.sh one for a GPU. CNNSCOPE_BIN is that of the CPU build, as everywhere.
CNNSCOPE_CUDA_SEEDS: in how many orders of threads, blocks and streams the executor is to run (1). CNNSCOPE_CUDA_RANKS: as
many GPUs as there are (3).
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import program
from program import BINARY, GOLDEN, IMAGES, LABELS, MODEL, Run, raw, read, relative_error, relative_errors, run
from test_embed import affinities, kl_of
from test_ranks import assert_same_result

CUDA = Path(os.environ.get("CNNSCOPE_CUDA_BIN", ""))
SEEDS = int(os.environ.get("CNNSCOPE_CUDA_SEEDS", 1))
RANKS = int(os.environ.get("CNNSCOPE_CUDA_RANKS", 3))

pytestmark = pytest.mark.skipif(not CUDA.is_file(), reason="no CUDA build: scripts/cuda-host.sh makes one")
on_executor = pytest.mark.skipif(CUDA.is_file() and b"CUDAHOST_SEED" not in CUDA.read_bytes(),
                                 reason="of the host executor")

MNIST = ("--model", MODEL, "--images", IMAGES, "--labels", LABELS)
RESNET = ("--model", GOLDEN / "onnx" / "resnet.onnx", "--images", "{resnet}", "--perplexity", 3)
JOBS = {
    "network": (*MNIST, "--samples", 230, "--attribution", "saliency,gradcam:conv2", "--embed", "logits,gap", "--pca", 3,
                "--tsne", 0, "--feature-maps", "conv1:0:3,relu2:2:30"),
    "first steps": (*MNIST, "--samples", 230, "--attribution", "none", "--max-iter", 10),
    "map": (*MNIST, "--samples", 230, "--attribution", "none", "--max-iter", 180, "--exaggeration-iter", 60),
    "3-D": ("embed", "--input", "{features}", "--pre-pca", 20, "--tsne", 3, "--max-iter", 60, "--exaggeration-iter", 30),
    "several maps": ("embed", "--input", "{features}", "--perplexity", "5,3+40", "--runs", 2, "--max-iter", 10),
    "place": ("place", "--map", "{map}", "--input", "{features}", "--samples", "200:257", "--keep-neighbors"),
    "attribution": (*RESNET, "--attribution", "saliency,saliency_squared,input_x_gradient,gradcam,gradcam++,hirescam,"
                    "layercam:layer1_0_relu_1,guided_backprop,smoothgrad,integrated_gradients,occlusion", "--target",
                    "predicted:runner-up", "--baseline", "mean", "--ig-steps", 3, "--smoothgrad-draws", 2,
                    "--occlusion-window", 20, "--occlusion-stride", 19, "--cam-resolution", "image", "--evidence",
                    "deletion,sparseness,agreement", "--evidence-steps", 2, "--tsne", 0),
    "branches": (*RESNET, "--attribution", "saliency,gradcam", "--max-iter", 20),
}


def build(binary: Path, output: Path, *words: object, ranks: int = 1) -> Run:
    """One job of that program."""
    before, program.BINARY = program.BINARY, binary
    try:
        return run(*words, "--output", output, "--quiet", ranks=ranks, timeout=400)
    finally:
        program.BINARY = before


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Variables and attributes of a job by one of the programs, each made once; seed: of the executor."""
    folder = tmp_path_factory.mktemp("cuda")
    np.save(folder / "features.npy", np.random.default_rng(0).normal(size=(257, 70)).astype(np.float32))
    images = np.load(GOLDEN / "onnx" / "resnet.npz")["images"]
    np.save(folder / "resnet.npy", np.concatenate([np.roll(images, i, 3) for i in range(4)]))

    mapped = build(BINARY if BINARY.is_file() else CUDA, folder / "map.nc", *(
        w.format(features=folder / "features.npy") if isinstance(w, str) else w for w in JOBS["3-D"]), "--samples", 200)
    assert mapped.status == 0, mapped.lines

    @cache
    def make(job: str, binary: Path, ranks: int = 1, batch: int = 8, seed: int = 1):
        words = [str(w).format(features=folder / "features.npy", resnet=folder / "resnet.npy", map=folder / "map.nc")
                 for w in JOBS[job]]
        output = folder / f"{job}_{binary == CUDA}_{ranks}_{batch}_{seed}.nc"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CUDAHOST_SEED", str(seed))
            patch.setenv("CUDAHOST_PINNED", "1")  # else lanes would not overlap
            done = build(binary, output, *words, "--batch", batch, ranks=ranks)
        assert (done.status, done.lines) == (0, []), f"{done.command}\n" + "\n".join(done.lines)
        return read(output)

    return make


@pytest.fixture(scope="module")
def pair(result):
    """Values of a job by the CUDA build, and by the CPU build."""
    def make(job: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        if not BINARY.is_file():
            pytest.skip(f"no CPU build at {BINARY} to compare with")
        cuda, cpu = (result(job, binary) for binary in (CUDA, BINARY))
        assert cuda[0].keys() == cpu[0].keys()
        assert {n for n in cuda[1] if not n.startswith("run_")} == {n for n in cpu[1] if not n.startswith("run_")}
        return tuple({name: variable.values for name, variable in one[0].items()} for one in (cuda, cpu))

    return make


@pytest.mark.parametrize("job", ["network", "branches"])
def test_network(pair, job):
    """Rounding differs. A tie that rounding decides another way may change the map of one sample in a hundred."""
    cuda, cpu = pair(job)
    for name in {"logits", "gap", "conv1_maps", "relu2_maps"} & cuda.keys():
        assert relative_error(cuda[name], cpu[name]) < 1e-5, name
    for name in {"prediction", "label", "image", "conv1_map_sample", "conv1_filters"} & cuda.keys():
        assert np.array_equal(cuda[name], cpu[name]), name
    for name in ("saliency", "gradcam"):
        errors = relative_errors(raw(cuda, name), raw(cpu, name))
        assert (errors > 1e-4).sum() <= len(errors) // 100, (name, np.sort(errors)[-4:])


def test_attribution(pair):
    """As above, of each value: a tie may change a few pixels of a map."""
    cuda, cpu = pair("attribution")
    names = ("saliency", "saliency_squared", "input_x_gradient", "gradcam", "gradcam_plus_plus", "hirescam",
             "layercam_layer1_0_relu_1", "guided_backprop", "smoothgrad", "integrated_gradients", "occlusion")
    for name in names:
        one, other = (raw(x, name) if f"{name}_low" in x else x[name] for x in (cuda, cpu))
        largest = np.abs(other).reshape(len(other), -1).max(1).reshape(-1, *[1] * (other.ndim - 1))
        errors = np.abs(one - other) / np.where(largest > 0, largest, 1)
        assert np.quantile(errors, 0.98) < 1e-4 and np.median(errors.reshape(len(errors), -1).max(1)) < 1e-3, name
    assert relative_error(cuda["integrated_gradients_delta"], cpu["integrated_gradients_delta"]) < 1e-2
    for name in ("saliency_sparseness", "gradcam_sparseness", "occlusion_sparseness"):
        np.testing.assert_allclose(cuda[name], cpu[name], atol=1e-3)
    for name in ("attribution_agreement", "integrated_gradients_deletion"):
        assert np.quantile(np.abs(cuda[name] - cpu[name]), 0.95) < 1e-2, name
    for name in ("attribution_target", "attribution_target_against", "integrated_gradients_steps"):
        assert np.array_equal(cuda[name], cpu[name]), name


def test_pca(pair):
    cuda, cpu = pair("network")
    for layer in ("logits", "gap"):
        for name in ("pca_explained_variance", "pca_explained_variance_ratio", "pca_center"):
            np.testing.assert_allclose(cuda[f"{layer}_{name}"], cpu[f"{layer}_{name}"], rtol=1e-5)
        for name in ("pca", "pca_components"):
            assert relative_error(cuda[f"{layer}_{name}"], cpu[f"{layer}_{name}"]) < 1e-4


def test_first_steps_of_the_map(pair):
    """Later, differences of rounding grow tenfold every few iterations, as scikit-learn's own do."""
    cuda, cpu = pair("first steps")
    assert relative_error(cuda["logits_tsne"], cpu["logits_tsne"]) < 1e-3
    assert cuda["logits_tsne_kl"] == pytest.approx(cpu["logits_tsne_kl"], rel=1e-4)


def test_several_maps(pair):
    """As the CPU build has them, after a few steps; one of a single perplexity, one of two, from two starts each."""
    cuda, cpu = pair("several maps")
    np.testing.assert_allclose(cuda["input_tsne_map_kl"], cpu["input_tsne_map_kl"], rtol=1e-4)
    for name in ("input_tsne_kl_sample", "input_sigma", "input_tsne_maps"):
        assert relative_error(cuda[name], cpu[name]) < 1e-3, name


@pytest.mark.parametrize("job, layer", [("map", "logits"), ("3-D", "input"), ("branches", "logits")])
def test_divergence_of_the_map(pair, job, layer):
    """The kept divergence is that of the kept map. Maps of a few samples end apart: those of the CPU, from inputs that
    differ by 1e-6, have divergences of up to 17 % between them."""
    cuda, cpu = pair(job)
    assert cuda[f"{layer}_tsne"].shape == cpu[f"{layer}_tsne"].shape and np.isfinite(cuda[f"{layer}_tsne"]).all()
    assert cuda[f"{layer}_tsne_kl"] == pytest.approx(cpu[f"{layer}_tsne_kl"], rel=0.2)
    if job == "map":
        exact = kl_of(affinities(cuda["logits"], 30), cuda["logits_tsne"])
        assert cuda["logits_tsne_kl"] == pytest.approx(exact, rel=1e-4)


def test_places(pair):
    """Where rounding decides between two minima they are as low as each other."""
    cuda, cpu = pair("place")
    np.testing.assert_allclose(cuda["input_place_kl"], cpu["input_place_kl"], atol=1e-4)
    apart = np.linalg.norm(cuda["input_place"] - cpu["input_place"], axis=1)
    assert (apart > 1e-2).mean() < 0.02, np.sort(apart)[-4:]
    assert (cuda["input_neighbors"] != cpu["input_neighbors"]).mean() < 0.01


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("ranks, batch", [(2, 8), (3, 7)])
def test_same_bits_on_other_ranks(result, job, ranks, batch):
    if ranks > RANKS:
        pytest.skip("there are not so many GPUs")
    assert_same_result(result(job, CUDA), result(job, CUDA, ranks, batch, 1 + SEEDS // 2))


@on_executor
@pytest.mark.parametrize("seed", range(2, SEEDS + 1))
@pytest.mark.parametrize("job", JOBS)
def test_same_bits_in_other_orders(result, job, seed):
    assert_same_result(result(job, CUDA), result(job, CUDA, 1, 8, seed))


@pytest.mark.parametrize("changed, expected", [
    (("--images", "absent.npy"), 1),
    (("--model", IMAGES), 1),
    (("--perplexity", 40), 2),
    (("--embed", "conv9"), 2),
    (("--scale", 1e38), 1),
], ids=["no file", "no model", "perplexity", "no layer", "not finite"])
def test_errors_are_those_of_the_cpu_build(tmp_path, changed, expected):
    """The same line and exit status, at two ranks, and nothing left behind."""
    said = []
    for binary in (CUDA, BINARY):
        if binary.is_file():
            done = build(binary, tmp_path / "r.nc", *MNIST, "--samples", 40, "--perplexity", 5, *changed,
                         ranks=min(2, RANKS))
            assert done.status == expected and len(done.lines) == 1 and done.lines[0].startswith("cnnscope: "), done
            assert list(tmp_path.iterdir()) == []
            said.append(done.lines)
    assert said[0] == said[-1]


@on_executor
@pytest.mark.parametrize("machine, ranks, line", [
    ({"CUDAHOST_DEVICES": "0"}, 1, "cnnscope: GPU: none is visible to rank 0"),
    ({"CUDAHOST_DEVICES": "1"}, 2, "cnnscope: GPU: ranks 0 and 1 were given the same one"),
    ({"CUDAHOST_DEVICES": "2"}, 3, "cnnscope: GPU: 3 ranks on a node of 2 visible GPUs"),
    ({"CUDAHOST_DRIVER": "old"}, 2, "cnnscope: GPU: the driver is older than CUDA"),
    ({"CUDAHOST_MEMORY": "100000"}, 2, "cnnscope: memory: "),
], ids=["none", "shared", "few", "old driver", "little memory"])
def test_devices_that_do_not_do(tmp_path, monkeypatch, machine, ranks, line):
    for name, value in machine.items():
        monkeypatch.setenv(name, value)
    done = build(CUDA, tmp_path / "r.nc", *MNIST, "--samples", 40, "--perplexity", 5, ranks=ranks)
    assert done.status == 1 and len(done.lines) == 1 and done.lines[0].startswith(line), done
    assert list(tmp_path.iterdir()) == []
