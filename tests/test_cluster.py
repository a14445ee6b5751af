"""The sbatch files on a real Slurm cluster of three nodes (slurm_cluster.py): results, refusals, lost ranks, requeue.

Skipped as a whole where no cluster can be made. Results of any ranks and nodes are compared bit by bit.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from program import BINARY, IMAGES, LABELS, MODEL, ROOT, read, succeed
from slurm_cluster import Cluster, Job, unavailable
from test_ranks import assert_same_result

if reason := unavailable():
    pytest.skip(f"no Slurm cluster can be made here: {reason}", allow_module_level=True)

SLURM = ROOT / "slurm"
MNIST = ("--model", MODEL, "--images", IMAGES, "--labels", LABELS)
SHORT = ("--samples", 500, "--max-iter", 60, "--exaggeration-iter", 20, "--attribution", "saliency,gradcam", "--embed",
         "logits,gap", "--threads", 1)
LONG = ("--samples", 2000, "--max-iter", 12_000, "--attribution", "saliency,gradcam", "--threads", 1)
ENDLESS = ("--samples", 2000, "--max-iter", 10**9, "--learning-rate", 0.5, "--threads", 1)


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as made:
        made.environment["CNNSCOPE"] = str(BINARY)
        yield made


def over(ranks: int, nodes: int) -> tuple[str, ...]:
    """Options of sbatch for that many ranks."""
    return (f"--nodes={nodes}", f"--ntasks={ranks}", f"--ntasks-per-node={-(-ranks // nodes)}", "--cpus-per-task=1")


def words(log: str) -> list[str]:
    """Lines of a log that are not Slurm's own."""
    return [line for line in log.splitlines() if not re.match(r"(srun|slurmstepd\S*|sbatch): ", line)]


@pytest.fixture(scope="module")
def result(cluster, tmp_path_factory):
    """The short job's variables and attributes, for (ranks, nodes, take), each made once."""
    folder = tmp_path_factory.mktemp("cluster")

    @cache
    def make(ranks: int, nodes: int, take: int = 0):
        output = folder / f"{ranks}_{nodes}_{take}.nc"
        job = cluster.submit(SLURM / "cpu.sbatch", *MNIST, *SHORT, "--output", output.name, options=over(ranks, nodes),
                             folder=folder)
        assert_completed(cluster.wait(job))
        return read(output)

    return make


def assert_completed(job: Job) -> None:
    assert (job.state, job.status) == ("COMPLETED", 0), job
    assert "tsne" in job.log and not re.search("error|cnnscope:", job.log), job.log


@pytest.mark.parametrize("ranks, nodes, take", [(1, 1, 1), (2, 1, 0), (2, 2, 0), (3, 3, 0), (4, 2, 0), (8, 3, 0)])
def test_same_bits(result, ranks, nodes, take):
    one, other = result(1, 1), result(ranks, nodes, take)
    assert other[1]["run_ranks"] == ranks
    assert_same_result(one, other)


def test_array(cluster, result, tmp_path):
    """One line of the list is one run; quotes are a shell's."""
    (tmp_path / "a b").mkdir()
    (tmp_path / "runs.txt").write_text("--embed logits --output 'a b/1.nc'\n--embed gap --output 2.nc\n"
                                       "--embed logits --samples -7 --output 3.nc\n")
    identifier = cluster.submit(SLURM / "array.sbatch", "runs.txt", *MNIST, *SHORT, options=("--array=1-3", *over(2, 1)),
                                folder=tmp_path)
    one, two, three = (cluster.wait(f"{identifier}_{i}") for i in (1, 2, 3))
    assert_completed(one)
    assert_completed(two)
    assert three.status == 2 and len(words(three.log)) == 1 and "--samples -7" in three.log, three
    assert sorted(p.name for p in tmp_path.glob("*.log")) == [f"cnnscope-{identifier}_{i}.log" for i in (1, 2, 3)]
    whole = result(1, 1)[0]
    for path, layer in ((tmp_path / "a b" / "1.nc", "logits"), (tmp_path / "2.nc", "gap")):
        assert np.array_equal(read(path)[0][f"{layer}_tsne"].values, whole[f"{layer}_tsne"].values)
    assert not (tmp_path / "3.nc").exists()


def test_array_list_is_checked(cluster, tmp_path):
    (tmp_path / "runs.txt").write_text("--output 1.nc\n")
    for options, arguments, expected in ((("--array=2",), ("runs.txt",), "runs.txt: no line 2"),
                                         ((), ("runs.txt",), "--array=1-"), (("--array=1",), (), "--array=1-")):
        identifier = cluster.submit(SLURM / "array.sbatch", *arguments, options=(*over(1, 1), *options), folder=tmp_path)
        job = cluster.wait(identifier)
        assert job.status == 2 and job.log.count("\n") == 1 and expected in job.log, job


def test_each_rank_has_a_gpu(cluster, tmp_path):
    """gpu.sbatch as it is, over two nodes: every rank sees one device, no two of a node the same."""
    shows = script(tmp_path, "echo rank $SLURM_PROCID on $SLURMD_NODENAME has $CUDA_VISIBLE_DEVICES with $*")
    job = cluster.wait(cluster.submit(SLURM / "gpu.sbatch", "--model", "a b", options=("--nodes=2",), folder=tmp_path,
                                      environment={"CNNSCOPE": shows}))
    assert job.state == "COMPLETED", job
    assert sorted(re.findall(r"^rank \d on (n\d has \d) with --model a b$", job.log, re.M)) == \
        ["n0 has 0", "n0 has 1", "n1 has 0", "n1 has 1"], job.log


def script(folder: Path, text: str) -> str:
    """A program in the place of cnnscope."""
    path = folder / "program"
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


# ---- refusals


@pytest.mark.parametrize("changes, status, expected", [
    (("--model", "no.pth"), 1, "no.pth"), (("--perplexity", 0), 2, "--perplexity"), (("--samples", 20000), 2, "10000")])
def test_bad_input_is_one_line(cluster, tmp_path, changes, status, expected):
    job = cluster.wait(cluster.submit(SLURM / "cpu.sbatch", *MNIST, *SHORT, *changes, "--output", "r.nc",
                                      options=over(4, 3), folder=tmp_path))
    assert job.state == "FAILED" and job.status == status, job
    assert len(words(job.log)) == 1 and words(job.log)[0].startswith("cnnscope: ") and expected in job.log, job.log
    assert [p.suffix for p in tmp_path.iterdir()] == [".log"]


def test_existing_output_is_refused(cluster, tmp_path):
    (tmp_path / "r.nc").write_text("old")
    job = cluster.wait(cluster.submit(SLURM / "cpu.sbatch", *MNIST, *SHORT, "--output", "r.nc", options=over(2, 2),
                                      folder=tmp_path))
    assert job.status == 1 and len(words(job.log)) == 1 and "--overwrite" in job.log, job
    assert (tmp_path / "r.nc").read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_no_program(cluster, tmp_path):
    job = cluster.wait(cluster.submit(SLURM / "cpu.sbatch", options=over(1, 1), folder=tmp_path,
                                      environment={"CNNSCOPE": "no/such/program"}))
    assert job.status == 1 and job.log.count("\n") == 1 and "set CNNSCOPE" in job.log, job


# ---- jobs that end early


@pytest.fixture
def endless(cluster, tmp_path):
    """A job of 5 ranks on 3 nodes that is in the middle of t-SNE. Where a test leaves it running it is cancelled."""
    identifier = cluster.submit(SLURM / "cpu.sbatch", *MNIST, *ENDLESS, "--output", "r.nc",
                                options=("--nodes=3", "--ntasks=5", "--ntasks-per-node=2", "--cpus-per-task=1"),
                                folder=tmp_path)
    until_in_tsne(cluster, identifier, tmp_path)
    yield identifier
    cluster.command("scancel", "--full", identifier, check=False)


def until_in_tsne(cluster: Cluster, identifier: str, folder: Path, times: int = 1) -> None:
    log = folder / f"cnnscope-{identifier}.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("affinities") >= times):
        assert time.monotonic() < deadline and cluster.state(identifier)["JobState"] in ("PENDING", "RUNNING", "COMPLETING"), \
            log.exists() and log.read_text()
        time.sleep(0.05)
    time.sleep(random.Random(identifier).uniform(0, 0.5))


def test_scancel(cluster, endless, tmp_path):
    cluster.command("scancel", endless)
    assert cluster.wait(endless, 10).state == "CANCELLED"
    assert [p.suffix for p in tmp_path.iterdir()] == [".log"]
    assert not any(cluster.processes("cnnscope").values())


@pytest.mark.parametrize("whom", ["one rank", "the first rank", "a node's ranks", "all ranks"])
def test_killed_ranks(cluster, endless, tmp_path, whom):
    """The job ends within 10 s, nothing has the name of a result, and the output can be written by the next job."""
    ranks = cluster.processes("cnnscope")
    assert [len(r) for r in ranks.values()] == [2, 2, 1]
    chosen = {"one rank": ranks["n1"][:1], "the first rank": ranks["n0"], "a node's ranks": ranks["n1"],
              "all ranks": sum(ranks.values(), [])}[whom]
    for process in chosen:
        os.kill(process, signal.SIGKILL)
    job = cluster.wait(endless, 10)
    assert job.state == "FAILED" and job.status != 0, job
    assert not any(cluster.processes("cnnscope").values())
    assert {p.name for p in tmp_path.glob("r.nc*")} <= {"r.nc.partial"}
    again = cluster.submit(SLURM / "cpu.sbatch", *MNIST, *SHORT, "--output", "r.nc", options=over(2, 2), folder=tmp_path)
    assert_completed(cluster.wait(again))
    assert {p.name for p in tmp_path.glob("r.nc*")} == {"r.nc"}


def test_two_jobs_one_output(cluster, endless, tmp_path):
    """On other nodes than the first one's, too: the lock is the file system's."""
    size = (tmp_path / "r.nc.partial").stat().st_size
    second = cluster.wait(cluster.submit(SLURM / "cpu.sbatch", *MNIST, *SHORT, "--output", "r.nc", options=over(2, 2),
                                         folder=tmp_path))
    assert second.status == 1 and len(words(second.log)) == 1, second
    assert "r.nc.partial: another job is writing it" in second.log
    assert cluster.state(endless)["JobState"] == "RUNNING" and (tmp_path / "r.nc.partial").stat().st_size == size


def requeued(cluster: Cluster, identifier: str, timeout: float, times: int = 1) -> None:
    deadline = time.monotonic() + timeout
    while (fields := cluster.state(identifier))["Restarts"] != str(times):
        assert time.monotonic() < deadline, (fields, cluster.command("sinfo", "-N", "-l"))
        time.sleep(0.1)


def test_exit_99_is_run_again(cluster, result, tmp_path):
    """Requeued into the same log, over a PMIx folder that the first run's crash has left."""
    program = script(tmp_path, f"""
if ((SLURM_RESTART_COUNT < 1)); then
    trap '' TERM
    mkdir {cluster.folder}/tmp/$SLURMD_NODENAME/spmix_appdir_0_$SLURM_JOB_ID.1
    echo first; sleep 0.2; exit 99
fi
exec {BINARY} "$@" """)
    identifier = cluster.submit(SLURM / "cpu.sbatch", *MNIST, *SHORT, "--output", "r.nc", options=over(2, 2),
                                folder=tmp_path, environment={"CNNSCOPE": program})
    requeued(cluster, identifier, 30)
    job = cluster.wait(identifier)
    assert job.state == "COMPLETED" and re.search("(?s)first.*first.*tsne", job.log), job
    assert_same_result(result(1, 1), read(tmp_path / "r.nc"))


def test_an_end_that_gets_lost(cluster, result, tmp_path):
    """The result had its name when the job was lost: queued again it ends at once, and well."""
    program = script(tmp_path, f"""
{BINARY} "$@" || exit
if ((SLURM_RESTART_COUNT < 1)); then
    trap '' TERM
    sleep 0.2; exit 99
fi""")
    identifier = cluster.submit(SLURM / "cpu.sbatch", *MNIST, *SHORT, "--output", "r.nc", "--checkpoint", "ck",
                                options=over(2, 2), folder=tmp_path, environment={"CNNSCOPE": program})
    requeued(cluster, identifier, 30)
    written = (tmp_path / "r.nc").stat().st_mtime_ns
    job = cluster.wait(identifier)
    assert job.state == "COMPLETED" and words(job.log)[-1].startswith("cnnscope: r.nc: complete already"), job
    assert (tmp_path / "r.nc").stat().st_mtime_ns == written and not (tmp_path / "ck").exists()
    assert_same_result(result(1, 1), read(tmp_path / "r.nc"))


@pytest.mark.parametrize("first", ["Slurm", "the watchdog"])
def test_a_hung_node(cluster, tmp_path, first):
    """All of it stops answering. Where Slurm gives the node up first, the job goes on without it; where the watchdog is
    faster, it says so, and the job goes on when it is submitted again."""
    words = (*MNIST, *LONG, "--checkpoint-interval", 1, "--watchdog", 90 if first == "Slurm" else 3, "--output", "r.nc",
             "--checkpoint", "ck")
    identifier = cluster.submit(SLURM / "cpu.sbatch", *words, options=over(4, 2), folder=tmp_path)
    until_in_tsne(cluster, identifier, tmp_path)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("ck/state-tsne_logits-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    node = [node for node, ranks in cluster.processes("cnnscope").items() if ranks][1]
    cluster.signal(node, signal.SIGSTOP)
    try:
        if first == "Slurm":
            requeued(cluster, identifier, 60)
        else:
            job = cluster.wait(identifier, 60)
            assert job.state == "FAILED" and re.search(
                r"^cnnscope: rank \d on host n\d has waited \d+ s in stage tsne logits for ranks of other nodes", job.log,
                re.M), job
            identifier = cluster.submit(SLURM / "cpu.sbatch", *words, options=over(4, 2), folder=tmp_path)
        job = cluster.wait(identifier, 120)
    finally:
        cluster.signal(node, signal.SIGCONT)
    assert job.state == "COMPLETED", job
    assert re.search(r"^tsne logits +\d+/\d+ iterations from the checkpoint", job.log, re.M), job.log
    deadline = time.monotonic() + 60  # until Slurm or the watchdog has ended what woke up there
    while any(cluster.processes("cnnscope").values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cluster.power_off(node)  # booted anew: Slurm looks at a node that is down only once a minute
    cluster.power_on(node)
    cluster.until_idle()
    assert_same_result(read(succeed(tmp_path / "whole.nc", *MNIST, *LONG, ranks=2)), read(tmp_path / "r.nc"))


def test_only_that_run_of_an_array_is_run_again(cluster, tmp_path):
    """The last run's plain job number is that of the whole array."""
    program = script(tmp_path, """
echo run $SLURM_ARRAY_TASK_ID, started again ${SLURM_RESTART_COUNT:-0} times, $*
exit $((SLURM_ARRAY_TASK_ID == 3 && ${SLURM_RESTART_COUNT:-0} == 0 ? 99 : 0))""")
    (tmp_path / "runs.txt").write_text("a\nb\nc\n")
    identifier = cluster.submit(SLURM / "array.sbatch", "runs.txt", options=("--array=1-3", *over(1, 1)), folder=tmp_path,
                                environment={"CNNSCOPE": program})
    requeued(cluster, f"{identifier}_3", 30)
    jobs = [cluster.wait(f"{identifier}_{i}") for i in (1, 2, 3)]
    assert [job.state for job in jobs] == ["COMPLETED"] * 3, jobs
    ran = re.findall(r"^run (\d), started again (\d) times, (\w)$", "".join(job.log for job in jobs), re.M)
    assert ran == [("1", "0", "a"), ("2", "0", "b"), ("3", "0", "c"), ("3", "1", "c")], jobs


def test_a_chain_of_requeues(cluster, tmp_path):
    """Told to stop as at the time limit, preempted, and a node without power; the job goes on from its checkpoint each
    time, at last on the nodes that are left, to the bits of a run that nobody disturbed."""
    words = (*MNIST, *LONG, "--checkpoint-interval", 1)
    identifier = cluster.submit(SLURM / "cpu.sbatch", *words, "--output", "r.nc", "--checkpoint", "ck",
                                options=("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1"), folder=tmp_path)
    for restart, how in enumerate(("time limit", "preemption", "power"), 1):
        until_in_tsne(cluster, identifier, tmp_path, restart)
        if how == "time limit":
            cluster.command("scancel", "--signal=USR1", identifier)
        elif how == "preemption":
            cluster.command("scontrol", "requeue", identifier)
        else:
            nodes = [node for node, ranks in cluster.processes("cnnscope").items() if ranks]
            cluster.power_off(nodes[1])
        try:
            requeued(cluster, identifier, 60, restart)
            assert not list(tmp_path.glob("r.nc"))
        except BaseException:
            if how == "power":
                cluster.power_on(nodes[1])
            raise
    try:
        job = cluster.wait(identifier, 120)
    finally:
        cluster.power_on(nodes[1])
    assert job.state == "COMPLETED", job
    assert job.log.count("stopped by SIGUSR1") == 1 and "at iteration" in job.log, job
    begun = [int(i) for i in re.findall(r"^tsne logits +(\d+)/\d+ iterations from the checkpoint", job.log, re.M)]
    assert len(begun) == 3 and 0 < begun[0] <= begun[1] <= begun[2], (begun, job)
    assert {p.name for p in tmp_path.iterdir()} == {"r.nc", Path(cluster.state(identifier)["StdOut"]).name}
    assert_same_result(read(succeed(tmp_path / "whole.nc", *MNIST, *LONG, ranks=2)), read(tmp_path / "r.nc"))


def test_the_common_part_is_the_same():
    """Slurm copies an sbatch file before it runs it, so that the three cannot share a fourth."""
    parts = {path.name: path.read_text().partition("# ---- The same in ")[2] for path in SLURM.glob("*.sbatch")}
    assert len(parts) == 3 and len(set(parts.values())) == 1 and "requeue" in parts["cpu.sbatch"]
