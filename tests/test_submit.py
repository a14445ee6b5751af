"""scripts/submit.sh on a real Slurm cluster (slurm_cluster.py): what it proposes, and that the proposed job runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from program import BINARY, IMAGES, LABELS, MODEL, ROOT, read
from slurm_cluster import Cluster, unavailable

if reason := unavailable():
    pytest.skip(f"no Slurm cluster can be made here: {reason}", allow_module_level=True)

JOB = ("--model", MODEL, "--images", IMAGES, "--labels", LABELS, "--samples", 500, "--max-iter", 60, "--output", "r.nc")


@pytest.fixture(scope="module")
def cluster():
    with Cluster(nodes=3, cpus=8) as made:
        made.environment["CNNSCOPE"] = str(BINARY)
        yield made


def submit(cluster: Cluster, folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([ROOT / "scripts" / "submit.sh", *(str(w) for w in words)], cwd=folder, capture_output=True,
                          text=True, check=False, timeout=120, env=os.environ | cluster.environment | environment)


def proposal(result: subprocess.CompletedProcess) -> tuple[dict[str, str], list[str]]:
    """Options and the rest of the sbatch line."""
    assert result.returncode == 0, result.stderr
    words = shlex.split(next(line for line in result.stdout.splitlines() if line.startswith("sbatch ")))
    options = dict(re.findall(r"^--([a-z-]+)=(.*)$", "\n".join(words[1:words.index("--model")]), re.M))
    return options, words


def test_the_proposed_job_runs(cluster, tmp_path):
    result = submit(cluster, tmp_path, "--go", "main", "--job-name=mine", "--", *JOB)
    options, words = proposal(result)
    assert options["partition"] == "main" and options["job-name"] == "mine"
    assert (options["nodes"], options["ntasks-per-node"], options["cpus-per-task"]) == ("1", "2", "4")
    assert 100 < int(options["mem"].removesuffix("M")) < 600 and options["time"] == "5"
    assert Path(tmp_path, words[words.index("--model") - 1]).resolve() == ROOT / "slurm" / "cpu.sbatch"
    identifier = re.search(r"^Submitted batch job (\d+)$", result.stdout, re.M)[1]
    fields = cluster.state(identifier)
    assert fields["TimeLimit"] == "00:05:00" and fields["MinMemoryNode"] == options["mem"], fields
    job = cluster.wait(identifier)
    assert job.state == "COMPLETED", job
    assert read(tmp_path / "r.nc")[1]["run_ranks"] == 2


def test_only_prints(cluster, tmp_path):
    options, _ = proposal(submit(cluster, tmp_path, "main", *JOB))
    assert options["nodes"] == "1" and list(tmp_path.iterdir()) == []
    assert cluster.command("squeue", "-h", "-t", "PENDING,RUNNING") == ""


def test_more_nodes_where_one_takes_too_long(cluster, tmp_path):
    options, _ = proposal(submit(cluster, tmp_path, "main", *JOB, HOURS="0.0001"))
    assert options["nodes"] == "3"


def test_the_limit_of_the_partition(cluster, tmp_path):
    result = submit(cluster, tmp_path, "main", *JOB, "--max-iter", 10**9)
    options, _ = proposal(result)
    assert options["time"] == "60" and options["nodes"] == "3" and "--checkpoint" in result.stdout


@pytest.mark.parametrize("words, status, expected", [
    (("nowhere", *JOB), 1, "nowhere"), (("main", *JOB, "--model", "no.pth"), 1, "no.pth"), (("main",), 2, "PARTITION"),
    (("main", *JOB, "--perplexity", 0), 2, "--perplexity")])
def test_refusals(cluster, tmp_path, words, status, expected):
    result = submit(cluster, tmp_path, *words)
    assert result.returncode == status and expected in result.stderr and result.stdout == "", result
    assert status == 2 or len(result.stderr.splitlines()) == 1
