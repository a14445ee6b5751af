"""--plan: what it says of memory, time and size, against runs; what it refuses. And what an install holds.

Times are compared with a run of the same minute, three times at most, and where the cores have other work not at all.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from program import BINARY, GOLDEN, IMAGES, LABELS, MODEL, ROOT, read, run, succeed

MNIST = ("--model", MODEL, "--images", IMAGES, "--labels", LABELS)


def plan(*arguments: object, ranks: int = 1, of: int | None = None) -> dict[str, str]:
    """The lines KEY: VALUE of a plan, for `of` ranks or its own."""
    result = run(*arguments, "--plan" if of is None else f"--plan={of}", ranks=ranks)
    assert result.status == 0 and result.lines == [], (result.command, result.lines)
    return lines_of(result.stdout)


def lines_of(text: str) -> dict[str, str]:
    pairs = re.findall(r"^(\w+): (.+)$", text, re.M)
    assert len(pairs) == len(text.splitlines()) == len({key for key, _ in pairs}), text
    return dict(pairs)


def number(planned: dict[str, str], key: str) -> float:
    """The value, the largest one where ranks differ."""
    return float(planned[key].split()[0].split("..")[-1])


def blobs(n: int, d: int, centers: int = 20) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.uniform(-10, 10, (centers, d))[rng.integers(0, centers, n)] + rng.normal(0, 2, (n, d))).astype(np.float32)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plan")
    rng = np.random.default_rng(0)
    arrays = {"small": blobs(2000, 12), "large": blobs(10000, 60), "noise": rng.normal(size=(9000, 30)).astype(np.float32),
              "many": blobs(30000, 10)[np.argsort(rng.integers(0, 2, 30000))],
              "pictures": rng.integers(0, 256, (1500, 3, 40, 40), np.uint8)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: folder / f"{name}.npy" for name in arrays}


JOBS = {
    "MNIST": (*MNIST, "--attribution", "saliency,gradcam:conv2", "--max-iter", 100),
    "two layers": (*MNIST, "--embed", "gap,pool2", "--samples", 2000, "--keep-maps", "none", "--max-iter", 60),
    "resnet": ("--model", GOLDEN / "onnx" / "resnet.onnx", "--images", "{pictures}", "--max-iter", 200),
    "chosen maps": (*MNIST, "--samples", 3000, "--keep-maps", "chosen", "--tsne", 0),
    "small matrix": ("embed", "--input", "{small}", "--max-iter", 300),
    "large matrix": ("embed", "--input", "{large}", "--max-iter", 60),
    "several maps": ("embed", "--input", "{large}", "--perplexity", "5,10+100", "--runs", 2, "--max-iter", 20),
    "subset": ("embed", "--input", "{large}", "--tsne-samples", 3000, "--max-iter", 200),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("job", JOBS)
def test_against_a_run(inputs, tmp_path, job, ranks):
    words = [str(w).format(**inputs) for w in JOBS[job]]
    for attempt in range(3):
        planned = plan(*words, "--output", tmp_path / "r.nc", ranks=ranks)
        assert list(tmp_path.iterdir()) == []
        attributes = read(succeed(tmp_path / "r.nc", *words, ranks=ranks))[1]
        (tmp_path / "r.nc").unlink()
        assert number(planned, "bytes_per_rank") == pytest.approx(attributes["run_bytes_memory"], rel=0.1), planned
        if job != "chosen maps":  # how many are chosen is not known
            assert number(planned, "result_bytes") == pytest.approx(attributes["run_bytes_written"], rel=0.01)
        stages = {k: float(v) for k, v in attributes.items() if k.startswith("run_seconds_")}
        parts = re.compile("_(repulsion|attraction|update|communication|read|compute|write)$")
        spent = sum(v for k, v in stages.items() if not parts.search(k))
        if spent / 2 - 0.1 < number(planned, "seconds_total") < 2 * spent + 0.2:
            break
        if os.getloadavg()[0] > 2 * os.cpu_count():
            break
    else:
        pytest.fail(f"{planned} for {stages}")
    assert {k for k in planned if k.startswith("seconds_")} - {"seconds_total", "seconds_prepare"} <= \
        {k.removeprefix("run_") for k in stages}
    assert number(planned, "samples") == attributes["sample_count"] and planned["fits"] == "yes"


def test_other_ranks_from_one(inputs, tmp_path):
    """What --plan=4 says on one rank is what four ranks say of themselves."""
    words = ("embed", "--input", inputs["large"], "--output", tmp_path / "r.nc", "--threads", 1)
    one, four = plan(*words, of=4), plan(*words, ranks=4)
    assert one["ranks"] == four["ranks"] == "4"
    assert one["samples_per_rank"] == four["samples_per_rank"] == "2496..2504"
    assert one["pairs_per_iteration"] == four["pairs_per_iteration"] == str(10000 * 9999 // 2)
    for key in one:
        if "bytes" in key and not key.startswith("available"):
            assert number(one, key) == pytest.approx(number(four, key), rel=0.15), key


def test_affinities_from_a_share(inputs, tmp_path):
    """30,000 points judged by 10,000 of them, which are not the first ones."""
    words = ("embed", "--input", inputs["many"], "--max-iter", 1)
    planned = plan(*words, "--output", tmp_path / "r.nc", ranks=2)
    variables, attributes = read(succeed(tmp_path / "r.nc", *words, ranks=2))
    assert re.search("estimated from (9999|10000) samples", planned["affinities_input"])
    assert number(planned, "affinities_input") == \
        pytest.approx(variables["input_tsne"].attributes["affinity_nonzeros"], rel=0.1)
    assert number(planned, "bytes_per_rank") == pytest.approx(attributes["run_bytes_memory"], rel=0.1)


def test_what_does_not_fit_is_refused(inputs, tmp_path):
    """With the least number of ranks that would do; and that many do."""
    words = ("embed", "--input", inputs["noise"], "--max-iter", 1, "--threads", 1, "--output", tmp_path / "r.nc")
    enough = run(*words, "--plan", shell="ulimit -v 4000000;")
    roomy = lines_of(enough.stdout)
    wanted = 0.7 * number(roomy, "bytes_per_rank")
    limit = int(4000000 - (number(roomy, "available_bytes_per_rank") - wanted) / 1024)
    result = run(*words, "--plan", shell=f"ulimit -v {limit};")
    assert result.status == 1 and len(result.lines) == 1, result
    assert lines_of(result.stdout)["fits"] == "no"
    found = re.search(r"^cnnscope: --plan: affinities input takes .* of 1 ranks.* would do is (\d+)$", result.lines[0])
    assert found and int(found[1]) in (2, 3), result.lines
    ranks = int(found[1])
    again = run(*words, f"--plan={ranks}", shell=f"ulimit -v {limit};")
    assert again.status == 0 and lines_of(again.stdout)["fits"] == "yes"
    assert run(*words, f"--plan={ranks - 1}", shell=f"ulimit -v {limit};").status == 1
    assert list(tmp_path.iterdir()) == []
    assert run(*words, shell=f"ulimit -v {limit};").status == 1  # the run itself thinks so, too


@pytest.mark.parametrize("changes, status, expected", [
    (("--plan=0",), 2, "--plan 0"), (("--plan=many",), 2, "--plan many"), (("--plan", "--input", "no.npy"), 1, "no.npy"),
    (("--plan", "--perplexity", 5000), 2, "--perplexity"), (("--plan", "--output", "no/such/r.nc"), 1, "no/such")])
def test_wrong_input_is_one_line(inputs, tmp_path, changes, status, expected):
    result = run("embed", "--input", inputs["small"], "--output", tmp_path / "r.nc", *changes, ranks=2)
    assert result.status == status and len(result.lines) == 1 and expected in result.lines[0], result
    assert result.stdout == ""


def test_existing_output_is_refused(inputs, tmp_path):
    (tmp_path / "r.nc").write_text("old")
    words = ("embed", "--input", inputs["small"], "--output", tmp_path / "r.nc", "--plan")
    result = run(*words)
    assert result.status == 1 and len(result.lines) == 1 and "--overwrite" in result.lines[0]
    assert run(*words, "--overwrite").status == 0 and (tmp_path / "r.nc").read_text() == "old"


# ---- building and installing


def cmake(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(["cmake", *(str(w) for w in words)], capture_output=True, text=True, timeout=120, check=False)


def test_old_library_is_one_line(tmp_path):
    (tmp_path / "openblas_config.h").write_text('#define OPENBLAS_VERSION " OpenBLAS 0.3.9 "\n')
    result = cmake("-S", ROOT, "-B", tmp_path / "build", f"-DOPENBLAS_INCLUDE_DIR={tmp_path}")
    assert result.returncode != 0
    assert re.search(r"OpenBLAS\s+0\.3\.9\s+\(.*\)\s+is\s+too\s+old,\s+0\.3\.10\s+or\s+newer\s+is\s+needed", result.stderr)


def test_install(tmp_path):
    """What a user without root gets is whole: the program runs, submit.sh finds the sbatch files."""
    assert cmake("--install", BINARY.parent, "--prefix", tmp_path).returncode == 0
    version = subprocess.run([tmp_path / "bin" / "cnnscope", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("cnnscope ")
    share = tmp_path / "share" / "cnnscope"
    assert {p.name for p in (share / "slurm").iterdir()} == {p.name for p in (ROOT / "slurm").iterdir()}
    assert os.access(share / "scripts" / "submit.sh", os.X_OK)
    imports = set(re.findall(r"^(?:import|from) (\w+)", "".join(p.read_text() for p in (share / "scripts").glob("*.py")),
                             re.M))
    own = {p.stem for p in (ROOT / "scripts").glob("*.py")}
    assert imports & own <= {p.stem for p in (share / "scripts").glob("*.py")}
