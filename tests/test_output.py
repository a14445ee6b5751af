"""The results file: its layout, what xarray makes of it, and the CF conventions."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr

from program import BINARY, ENVIRONMENT, GOLDEN, IMAGES, LABELS, MODEL, ROOT, read, run, succeed
from test_ranks import assert_same_result

SHADOWED = {"rank", "count", "mean", "std", "size", "map", "name", "values", "min", "max", "sum", "data", "dims", "all"}


# Of measured attributes: other CPUs round differently, and the number of kept affinities follows.
NUMBER = re.compile(r"(?<== )-?[0-9.]+(?:e[-+]?[0-9]+)?(?=L* ;)")


def header(text: str) -> list[str]:
    """Lines of an ncdump -h without blanks, the file's name, run_* and history."""
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith(("netcdf ", ":run_", ":history"))]


def test_ncdump_is_the_text_at_the_top_of_output_c(demo):
    source = (ROOT / "src" / "output.c").read_text()
    comment = re.search(r"netcdf [^\n]*\{\n.*?\n \* }", source, re.DOTALL)
    assert comment, "output.c holds no ncdump text"
    expected = header(re.sub(r"(?m)^ \* ?", "", comment.group()))
    got = header(subprocess.run(["ncdump", "-h", demo], check=True, capture_output=True, text=True).stdout)
    assert [NUMBER.sub("#", line) for line in got] == [NUMBER.sub("#", line) for line in expected]
    for a, b in zip(got, expected):
        assert [float(x) for x in NUMBER.findall(a)] == pytest.approx([float(x) for x in NUMBER.findall(b)], rel=0.02), a


def test_readme_options_are_the_help():
    assert run("--help").stdout in (ROOT / "README.md").read_text()


def test_coordinates_in_xarray(demo):
    with xr.open_dataset(demo) as data:
        assert {"sample", "label", "prediction"} <= set(data.coords)
        assert {"sample", "label", "prediction"} <= set(data["logits"].coords)
        assert {"label", "prediction"} <= set(data["saliency"].coords) & set(data["logits_tsne"].coords)
        assert {"logits", "saliency", "gradcam", "logits_tsne", "image"} <= set(data.data_vars)
        assert data["label"].dtype == np.int32 and data["prediction"].dtype == np.int32
        accuracy = float((data.label == data.prediction).mean())
        assert accuracy == 0.9792
        wrong = data.where(data.label != data.prediction, drop=True)
        assert wrong.sizes["sample"] == 208


def test_every_variable_is_described(demo):
    variables, _ = read(demo)
    for name, variable in variables.items():
        assert variable.attributes.get("long_name"), name
        assert "_FillValue" not in variable.attributes or variable.values.dtype.kind == "f", name
    assert not SHADOWED & set(variables)


def test_global_attributes(demo):
    _, attributes = read(demo)
    for name, path in (("model", MODEL), ("images", IMAGES), ("labels", LABELS)):
        assert attributes[f"{name}_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert attributes["status"] == "complete" and attributes["sample_count"] == 10000
    assert attributes["title"] and attributes["version"] and attributes["history"]
    assert attributes["Conventions"] == "CF-1.11, ACDD-1.3"
    assert attributes["option_embed"] == "logits" and float(attributes["option_perplexity"]) == 30
    assert attributes["run_ranks"] == 2
    paths = [a for a, v in attributes.items() if "ubyte" in str(v) and not a.startswith("run_") and a != "history"]
    assert paths == []


def test_times_have_seconds_for_unit(demo):
    _, attributes = read(demo)
    seconds = {a: v for a, v in attributes.items() if a.startswith("run_seconds_")}
    assert len(seconds) >= 3 and all(0 <= v < 1000 for v in seconds.values())
    parts = [seconds[f"run_seconds_forward_{part}"] for part in ("read", "compute", "write")]
    assert 0 < min(parts) and 0.5 * seconds["run_seconds_forward"] < sum(parts) < 2 * seconds["run_seconds_forward"]


def test_compliance_checker_finds_no_error(few, tmp_path):
    """On a file with every kind of variable; names and flags included."""
    (tmp_path / "names.txt").write_text("".join(f"digit {i}\n" for i in range(10)))
    (tmp_path / "samples.txt").write_text("".join(f"image {i}\n" for i in range(40)))
    output = succeed(tmp_path / "result.nc", "--model", MODEL, "--images", few[0], "--labels", few[1],
                     "--category-names", tmp_path / "names.txt", "--sample-names", tmp_path / "samples.txt", "--embed",
                     "logits,gap", "--attribution", "saliency,gradcam", "--perplexity", 5, "--max-iter", 100)
    checker = Path(sys.executable).with_name("compliance-checker")
    result = subprocess.run([checker, "-t", "cf:1.11", output], capture_output=True, text=True)
    assert result.returncode == 0 and "Errors" not in result.stdout, result.stdout + result.stderr


def test_names_are_flags_and_coordinates(few, tmp_path):
    (tmp_path / "names.txt").write_text("".join(f"digit {i}\n" for i in range(10)))
    output = succeed(tmp_path / "result.nc", "--model", MODEL, "--images", few[0], "--labels", few[1],
                     "--category-names", tmp_path / "names.txt", "--tsne", 0, ranks=2)
    variables, _ = read(output)
    for name in ("label", "prediction"):
        assert np.array_equal(variables[name].attributes["flag_values"], np.arange(10))
        assert variables[name].attributes["flag_meanings"].split() == [f"digit_{i}" for i in range(10)]
    assert [row.tobytes().rstrip(b"\0").decode() for row in variables["category_name"].values] == [
        f"digit {i}" for i in range(10)]


def test_without_labels(few, tmp_path):
    with xr.open_dataset(succeed(tmp_path / "r.nc", "--model", MODEL, "--images", few[0], "--perplexity", 5,
                                 "--max-iter", 60)) as data:
        assert "label" not in data.variables and "prediction" in data["logits"].coords


def test_chosen_maps(tmp_path):
    """20 of each class, the 20 most confident wrong ones and the 20 least certain ones, each once, in file order."""
    words = ("--model", MODEL, "--images", IMAGES, "--labels", LABELS, "--samples", 2000, "--tsne", 0)
    every = read(succeed(tmp_path / "all.nc", *words))[0]
    some = read(succeed(tmp_path / "some.nc", *words, "--keep-maps", "chosen", ranks=3))[0]
    kept = some["map_sample"].values
    assert some["saliency"].dimensions == ("map_sample", "y", "x") and some["image"].dimensions[0] == "map_sample"
    for name in ("saliency", "saliency_low", "saliency_high", "image"):
        assert np.array_equal(some[name].values, every[name].values[kept]), name

    logits, label = every["logits"].values.astype(np.float64), every["label"].values
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    top = np.sort(probability, 1)
    expected = set(np.concatenate([np.flatnonzero(label == k)[:20] for k in range(10)]))
    wrong = np.flatnonzero(logits.argmax(1) != label)
    expected |= set(wrong[np.argsort(-top[wrong, -1], kind="stable")[:20]])
    expected |= set(np.argsort(top[:, -1] - top[:, -2], kind="stable")[:20])
    assert kept.tolist() == sorted(expected)
    assert every.keys() >= {"saliency"} and some["logits"].values.shape == (2000, 10)


def test_no_maps(few, tmp_path):
    variables, _ = read(succeed(tmp_path / "none.nc", "--model", MODEL, "--images", few[0], "--tsne", 0, "--keep-maps",
                                "none"))
    assert not {"saliency", "image", "map_sample"} & variables.keys() and "logits" in variables


def test_overwrite(few, tmp_path):
    (tmp_path / "r.nc").write_text("old")
    succeed(tmp_path / "r.nc", "--model", MODEL, "--images", few[0], "--tsne", 0, "--overwrite")
    assert read(tmp_path / "r.nc")[1]["status"] == "complete"
    assert [p.name for p in tmp_path.iterdir()] == ["r.nc"]


def test_a_colon_in_the_output(few, tmp_path):
    result = run("--model", MODEL, "--images", few[0], "--tsne", 0, "--output", tmp_path / "a:b.nc", ranks=2)
    assert result.status == 1 and len(result.lines) == 1 and "a:b.nc: holds a ':'" in result.lines[0], result.lines
    assert list(tmp_path.iterdir()) == []


def test_compress(tmp_path):
    """The same values and attributes, in chunks of whole rows; shards end within chunks, and some ranks have none."""
    words = ("--model", MODEL, "--images", IMAGES, "--labels", LABELS, "--samples", 1500, "--tsne", 0)
    plain = succeed(tmp_path / "plain.nc", *words)
    for ranks, batch in ((3, 8), (5, 700)):
        packed = succeed(tmp_path / f"{ranks}.nc", *words, "--compress", 1, "--batch", batch, ranks=ranks)
        assert_same_result(read(plain), read(packed))
        assert packed.stat().st_size < 0.8 * plain.stat().st_size
        with netCDF4.Dataset(packed) as file:
            saliency = file["saliency"]
            assert saliency.filters()["shuffle"] and saliency.filters()["complevel"] == 1
            assert saliency.chunking() == [2**18 // (28 * 28 * 4), 28, 28]
            assert file["label"].chunking() == "contiguous"
    refused = run(*words, "--compress", 10, "--output", tmp_path / "r.nc")
    assert refused.status == 2 and len(refused.lines) == 1 and "--compress" in refused.lines[0]


def test_two_jobs_one_output(few, tmp_path):
    """The second refuses while the first runs; what the first leaves when it is killed does not stand in the way."""
    output, partial = tmp_path / "r.nc", tmp_path / "r.nc.partial"
    words = ["--model", MODEL, "--images", few[0], "--perplexity", 10, "--max-iter", 300, "--output", output]
    with subprocess.Popen([str(w) for w in (BINARY, *words)], stderr=subprocess.DEVNULL,
                          env=os.environ | ENVIRONMENT) as first:
        try:
            deadline = time.monotonic() + 30
            while not (partial.exists() and partial.stat().st_size > 10000):  # it holds data: the stages have begun
                assert first.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            first.send_signal(signal.SIGSTOP)
            held = partial.read_bytes()
            second = run(*words, "--quiet", ranks=2)
            assert second.status == 1 and len(second.lines) == 1 and "r.nc.partial: another job" in second.lines[0]
            assert first.poll() is None and partial.read_bytes() == held and not output.exists()
        finally:
            first.kill()  # as SIGKILL: nothing is tidied
    assert partial.exists()
    succeed(output, *words[:-2], ranks=2)


def test_inspect_help_version():
    text = run("inspect", "--model", GOLDEN / "color.pth").stdout
    for line in ("conv1", "(8, 3, 3, 3)", "running_var", "int64", "5"):
        assert line in text
    assert run("--version").stdout.startswith("cnnscope ")
    text = run("--help").stdout
    for option in ("--model", "--images", "--perplexity", "--attribution", "--overwrite", "embed", "inspect"):
        assert option in text


def test_progress_lines_name_the_stages(few, tmp_path):
    result = run("--model", MODEL, "--images", few[0], "--perplexity", 5, "--output", tmp_path / "r.nc", ranks=2)
    assert result.status == 0 and 2 <= len(result.lines) < 30
    assert any("tsne" in line.lower() or "t-sne" in line.lower() for line in result.lines)


def test_progress_on_a_terminal_and_in_a_log(tmp_path):
    """One line a stage, redrawn with rate, remaining time and KL; in a log one line a stage and nothing to redraw. An error begins
    a line of its own."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32))
    command = [BINARY, "embed", "--input", tmp_path / "x.npy", "--threads", "1"]
    drawn = on_terminal([*command, "--output", tmp_path / "a.nc"])
    lines = [re.sub(r".*\r\x1b\[K", "", line) for line in drawn.split("\r\n")]  # what stays to be seen
    assert [line.split()[0] for line in lines if line] == ["read", "pca", "affinities", "tsne", "trust"]
    stage = next(line for line in drawn.split("\r\n") if "\r\x1b[Ktsne" in line)
    steps = stage.split("\r\x1b[K")[1:]
    assert len(steps) >= 2  # every quarter of a second
    assert all(re.fullmatch(r"tsne input +\d+/1000 iterations [\d.e+]+/s, \d+ s left  KL \d\.\d{4}", s) for s in steps[:-1]), steps
    assert re.fullmatch(r"tsne input +1000/1000 iterations in [\d.]+ s  KL \d\.\d{4}", steps[-1])
    logged = subprocess.run([*map(str, command), "--output", tmp_path / "b.nc"], capture_output=True, text=True, env=os.environ | ENVIRONMENT).stderr
    assert "\r" not in logged and "\x1b" not in logged
    assert sum(line.startswith("tsne") for line in logged.splitlines()) == 1
    last = on_terminal([*command, "--output", tmp_path / "a.nc"]).split("\r\n")[-2]
    assert last.startswith(f"\r\x1b[Kcnnscope: {tmp_path}/a.nc: ")


def on_terminal(command):
    """All that a program writes to a terminal."""
    leader, follower = pty.openpty()
    with subprocess.Popen([*map(str, command)], stderr=follower, stdout=follower, stdin=subprocess.DEVNULL, env=os.environ | ENVIRONMENT) as job:
        os.close(follower)
        parts = []
        try:
            while part := os.read(leader, 65536):
                parts.append(part)
        except OSError:  # the other side is closed
            pass
        job.wait(60)
    os.close(leader)
    return b"".join(parts).decode()
