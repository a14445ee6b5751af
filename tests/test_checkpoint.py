"""--checkpoint, --max-time, --watchdog: jobs that are stopped, killed or damaged go on to the same bits.

Each job is interrupted again and again, at random times, and goes on with other ranks, threads and batches, until it is
done. CNNSCOPE_STOPS sets how often (scripts/soak.sh: hundreds of times).
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from program import BINARY, ENVIRONMENT, IMAGES, LABELS, MODEL, ROOT, Run, read, run, succeed, survivors
from test_errors import mounted  # noqa: F401 (a fixture)
from test_ranks import assert_same_result

STOPS = int(os.environ.get("CNNSCOPE_STOPS", 10))
FAULTS = BINARY.parent / "libfaults.so"
SEED = int(os.environ.get("CNNSCOPE_SEED", 1))
MNIST = ("--model", MODEL, "--images", IMAGES, "--labels", LABELS)
SHORT = ("--max-iter", 120, "--exaggeration-iter", 50)
JOBS = {  # what takes their time
    "tsne": (*MNIST, "--samples", 1500, "--max-iter", 1500, "--embed", "logits,gap", "--attribution",
             "saliency,gradcam"),
    "forward": (*MNIST, "--samples", 4000, "--tsne", 0, "--embed", "gap,pool2", "--attribution",
                "saliency,gradcam:conv1,gradcam:conv2", "--feature-maps", "conv1:0:2000,relu2:1000:1010"),
    "chosen maps": (*MNIST, "--samples", 3000, "--tsne", 0, "--keep-maps", "chosen", "--attribution",
                    "saliency,gradcam:conv1,smoothgrad,integrated_gradients", "--smoothgrad-draws", 4, "--ig-steps", 10,
                    "--baseline", "mean", "--target", "label:runner-up"),
    "embed": ("embed", "--input", "{features}", "--labels", "{labels}", "--pre-pca", 20, "--tsne-samples", 1500,
              "--max-iter", 250, "--exaggeration-iter", 50, "--init", "random"),
}
STATES = (*MNIST, "--samples", 1500, "--learning-rate", 2, "--max-iter", 6000, "--checkpoint-interval", 1)  # some seconds


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """(words of a job, its variables and attributes when nothing interrupts it), each made once."""
    folder = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(0)
    np.save(folder / "features.npy", rng.normal(size=(2000, 300)).astype(np.float32))
    np.save(folder / "labels.npy", rng.integers(0, 4, 2000))

    @cache
    def make(job: str):
        words = tuple(str(w).format(features=folder / "features.npy", labels=folder / "labels.npy")
                      for w in (JOBS | {"states": STATES})[job])
        return words, read(succeed(folder / f"{job}.nc", *words, "--threads", 1, ranks=2))

    return make


class Live:
    """A job that runs beside the test."""

    def __init__(self, *words: object, ranks: int):
        self.process = subprocess.Popen(["mpirun", "--quiet", "-n", str(ranks), str(BINARY), *(str(w) for w in words)],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        cwd=ROOT, env=os.environ | ENVIRONMENT, text=True, errors="replace")

    def ranks(self) -> list[int]:
        """Processes of the ranks, in order."""
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            return sorted(int(c) for c in children if Path(f"/proc/{c}/comm").read_text() == "cnnscope\n")
        except OSError:
            return []  # it has ended

    def until(self, condition, timeout: float = 60) -> bool:
        """False when the job ended before."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        return True

    def end(self, timeout: float) -> tuple[int, list[str]]:
        """Status and lines, within the time."""
        try:
            text = self.process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.process.returncode, [line for line in text.splitlines() if not line.startswith("[warn] Epoll")]

    def kill(self) -> None:
        for process in self.ranks():
            os.kill(process, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()


def send(job: Live, how: str, rng: random.Random) -> None:
    ranks = job.ranks()
    if how == "USR1":  # mpirun hands it on
        job.process.send_signal(signal.SIGUSR1)
    elif how == "TERM":  # as srun does; mpirun itself would leave the ranks a second
        for rank in ranks:
            os.kill(rank, signal.SIGTERM)
    else:
        for rank in rng.sample(ranks, 1) if how == "KILL one" and ranks else ranks:
            os.kill(rank, signal.SIGKILL)


def words_of(how: str, status: int, lines: list[str]) -> None:
    said = [line for line in lines if line.startswith("cnnscope: ")]
    if how in ("USR1", "TERM"):
        assert status in (0, 99), lines
        assert len(said) == (status == 99) and all("stopped by SIG" + how in line for line in said), lines
    else:
        assert status != 0 or not said, lines


@pytest.mark.parametrize("how", ["USR1", "TERM", "KILL one", "KILL all"])
@pytest.mark.parametrize("job", JOBS)
def test_interrupted_again_and_again(result, tmp_path, job, how):
    words, whole = result(job)
    rng = random.Random(f"{job} {how} {SEED}")
    output, folder = tmp_path / "r.nc", tmp_path / "ck"
    ends = []  # seconds from the signal to the end of the job
    for _ in range(max(1, STOPS // 8)):
        while not output.exists():
            Path(f"{output}.partial").unlink(missing_ok=True)  # a killed job's; below it says that MPI_Init is over
            live = Live(*words, "--output", output, "--checkpoint", folder, "--checkpoint-interval", 1, "--threads",
                        rng.choice((1, 2)), "--batch", rng.choice((8, 8, 7, 100)), ranks=rng.choice((1, 2, 3)))
            try:
                if live.until(Path(f"{output}.partial").exists):
                    live.until(lambda end=time.monotonic() + rng.choice((0.02, 0.3, 1, 2)) * rng.random():
                               time.monotonic() > end)
                    before = time.monotonic()
                    send(live, how, rng)
                    status, lines = live.end(30)
                    seconds = time.monotonic() - before
                    words_of(how, status, lines)
                    assert status == 0 or seconds < (5 if how in ("USR1", "TERM") else 10), (seconds, lines)
                    assert (status == 0) <= output.exists(), lines
                    ends += [seconds] if status else []
                else:
                    assert live.end(1)[0] == 0
            finally:
                live.kill()
            if output.exists():
                break
            if rng.random() < 0.5:  # else it is interrupted once more
                succeed(output, *words, "--checkpoint", folder, ranks=rng.choice((1, 2, 3)))
        assert_same_result(whole, read(output))
        output.unlink()
        shutil.rmtree(folder, ignore_errors=True)  # a rank that was killed behind its last line left it
    print(f"{job}, {how}: {len(ends)} interruptions, the slowest end took {max(ends, default=0):.1f} s")


def stopped(tmp_path: Path, words, after: str, pause: float = 0) -> list[str]:
    """Lines of a run that is stopped `pause` seconds after `after` (a pattern) is in the checkpoint's folder."""
    live = Live(*words, "--output", tmp_path / "r.nc", "--checkpoint", tmp_path / "ck", "--threads", 1, ranks=2)
    try:
        assert live.until(Path(tmp_path / "r.nc.partial").exists)
        assert live.until(lambda: any((tmp_path / "ck").glob(after))), live.end(1)
        time.sleep(pause)
        send(live, "USR1", random)
        status, lines = live.end(10)
    finally:
        live.kill()
    assert status == 99, lines
    assert not list(tmp_path.glob("r.nc*"))
    return lines


def go_on(tmp_path: Path, words, ranks: int) -> list[str]:
    done = run(*words, "--output", tmp_path / "r.nc", "--checkpoint", tmp_path / "ck", "--threads", 1, ranks=ranks)
    assert done.status == 0, done.lines
    assert not (tmp_path / "ck").exists()
    return done.lines


def test_with_a_checkpoint_nothing_changes(result, tmp_path):
    words, whole = result("tsne")
    succeed(tmp_path / "r.nc", *words, "--checkpoint", tmp_path / "ck", ranks=3)
    assert_same_result(whole, read(tmp_path / "r.nc"))
    assert [p.name for p in tmp_path.iterdir()] == ["r.nc"]


def test_nothing_is_computed_twice(result, tmp_path):
    """Stopped before the second map: the pass and the first map come from the folder."""
    words, whole = result("tsne")
    stopped(tmp_path, words, "state-pca_gap-*.1")
    lines = go_on(tmp_path, words, ranks=3)
    assert any(re.match(r"forward +1500/1500 samples from the checkpoint", line) for line in lines), lines
    assert any(re.match(r"tsne logits +1500/1500 iterations from the checkpoint", line) for line in lines), lines
    assert any(re.match(r"trust logits +1500/1500 samples from the checkpoint", line) for line in lines), lines
    assert not any(re.match("affinities logits|(tsne|trust) logits .* in ", line) for line in lines), lines
    assert_same_result(whole, read(tmp_path / "r.nc"))


@pytest.mark.parametrize("more", [(), ("--keep-neighbors",), ("--keep-neighbors", "--tsne-samples", 700)])
def test_finished_measures_are_kept(tmp_path, more):
    """Of all that a layer's maps are measured by, also of some samples only; on other ranks than before."""
    words = (*MNIST, "--samples", 1000, "--max-iter", 60, "--exaggeration-iter", 20, "--embed", "logits,gap", *more)
    whole = read(succeed(tmp_path / "whole.nc", *words, ranks=2))
    assert {"prediction_entropy", "prediction_calibration_error_overall", "logits_suspect", "logits_tsne_knc_overall"} <= \
        whole[0].keys()
    killed = run(*words, "--output", tmp_path / "r.nc", "--checkpoint", tmp_path / "ck", ranks=2,
                 shell=f"export LD_PRELOAD={FAULTS} FAULT=rename:r.nc:-9:1;")
    assert killed.status != 0 and not (tmp_path / "r.nc").exists()
    lines = go_on(tmp_path, words, ranks=3)
    kept = [line for line in lines if "from the checkpoint" in line]
    assert [line.split()[:2] for line in kept if line.startswith(("tsne", "trust"))] == \
        [[stage, layer] for layer in ("logits", "gap") for stage in ("tsne", "trust")], lines
    assert not any(re.match("affinities|(tsne|trust) .* in ", line) for line in lines), lines
    assert_same_result(whole, read(tmp_path / "r.nc"))


@pytest.mark.parametrize("where, kept, ranks", [
    ("write:/ck/rows-:-10:40", "forward", 3), ("rename:/ck/state-pca_logits:-10:1", "forward", 1),
    ("rename:/ck/state-tsne_logits:-10:1", "forward", 2), ("rename:/ck/state-trust_logits:-10:1", "tsne logits", 3),
    ("rename:/ck/state-pca_gap:-10:1", "trust logits", 1), ("rename:/ck/state-trust_gap:-10:1", "tsne gap", 3)])
def test_stopped_at_each_stage(result, tmp_path, where, kept, ranks):
    """SIGUSR1 in the middle of keeping the work of a stage: status 99, and on other ranks the work of the one before is
    not done again."""
    words, whole = result("tsne")
    done = run(*words, "--output", tmp_path / "r.nc", "--checkpoint", tmp_path / "ck", "--threads", 1, "--quiet", ranks=2,
               shell=f"export LD_PRELOAD={FAULTS} FAULT={where};")
    assert done.status == 99 and len(done.lines) == 1 and "stopped by SIGUSR1" in done.lines[0], done.lines
    assert [p.name for p in tmp_path.iterdir()] == ["ck"]
    lines = go_on(tmp_path, words, ranks=ranks)
    assert any(re.match(rf"{kept} .* from the checkpoint", line) for line in lines), lines
    assert_same_result(whole, read(tmp_path / "r.nc"))


def test_max_time(result, tmp_path):
    words, whole = result("tsne")
    endless = ("--max-iter", 10**8, "--learning-rate", 0.5)
    for _ in range(2):
        done = run(*words, *endless, "--output", tmp_path / "r.nc", "--checkpoint", tmp_path / "ck", "--max-time", 3,
                   "--quiet", ranks=2)
        assert done.status == 99 and len(done.lines) == 1 and "stopped by --max-time" in done.lines[0], done.lines
        assert sorted(p.name for p in tmp_path.iterdir()) == ["ck"]
    done = run(*words, "--output", tmp_path / "r.nc", "--max-time", 3)
    assert done.status == 2 and len(done.lines) == 1 and "--checkpoint" in done.lines[0]


@pytest.fixture(scope="module")
def kept(result, tmp_path_factory):
    """A folder with rows, and two states of the first map; and what is to come of it."""
    folder = tmp_path_factory.mktemp("kept")
    words, whole = result("tsne")
    for pause in np.arange(0.05, 2, 0.1):  # until it was stopped twice inside the descent
        stopped(folder, words, "state-pca_logits-*.1", pause=pause)
        if len(list(folder.glob("ck/state-tsne_logits-*"))) == 2:
            break
    assert len(list(folder.glob("ck/state-tsne_logits-*"))) == len(list(folder.glob("ck/rows-*"))) == 2
    return folder / "ck", words, whole


@pytest.mark.parametrize("what", ["nothing", "newest state", "both states", "pca", "rows flipped", "rows torn",
                                  "rows' first header", "a file more"])
def test_damage_is_computed_again(kept, tmp_path, what):
    folder, words, whole = kept
    ck = shutil.copytree(folder, tmp_path / "ck")
    states = sorted(ck.glob("state-tsne_logits-*"))
    rows = sorted(ck.glob("rows-*"))
    flipped = {"newest state": states[1:], "both states": states, "pca": ck.glob("state-pca*"), "rows flipped": rows,
               "rows' first header": rows[:1]}.get(what, [])
    for path in flipped:
        data = bytearray(path.read_bytes())
        data[100 if "header" in what else len(data) * 2 // 3] ^= 4
        path.write_bytes(data)
    if what == "rows torn":
        os.truncate(rows[0], rows[0].stat().st_size * 2 // 3)
    if what == "a file more":
        (ck / "rows-99999-x").write_bytes(rows[0].read_bytes()[:1000])
        (ck / "state-tsne_logits-x.7").write_bytes(b"x")
        (ck / "state-tsne_logits-x.8.new").write_bytes(b"x")
    done = run(*words, "--output", tmp_path / "r.nc", "--checkpoint", ck, ranks=3)
    assert done.status == 0, done.lines
    assert_same_result(whole, read(tmp_path / "r.nc"))
    begun = [int(re.match(r"tsne logits +(\d+)/1500 iterations from the checkpoint", line)[1]) for line in done.lines
             if re.match("tsne logits .* from the checkpoint", line)]
    assert len(begun) == (what != "both states"), done.lines
    if what in ("nothing", "newest state"):
        test_damage_is_computed_again.begun = getattr(test_damage_is_computed_again, "begun", {}) | {what: begun[0]}
        both = test_damage_is_computed_again.begun
        assert len(both) < 2 or both["newest state"] < both["nothing"], both


@pytest.mark.parametrize("changes, expected", [
    (("--seed", 7), ["option_seed was 0, is 7"]),
    (("--embed", "logits", "--max-iter", 20),
     ["option_embed was logits,gap, is logits", "option_max_iter was 1500, is 20"]),
    (("--labels", "{labels}"), ["labels_sha256 was ", ", is "])])
def test_another_runs_folder_is_refused(kept, mnist, tmp_path, changes, expected):
    folder, words, _ = kept
    np.save(tmp_path / "labels.npy", mnist[1][::-1])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    changes = [str(c).format(labels=tmp_path / "labels.npy") for c in changes]
    refused(tmp_path, (*words, *changes), folder, ["holds another run's work", *expected])
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def refused(tmp_path: Path, words, folder: Path, expected, ranks: int = 2) -> None:
    done = run(*words, "--output", tmp_path / "r.nc", "--checkpoint", folder, "--quiet", ranks=ranks)
    assert done.status == 1 and len(done.lines) == 1 and done.lines[0].startswith("cnnscope: "), done.lines
    assert all(e in done.lines[0] for e in expected), done.lines
    assert not list(tmp_path.glob("r.nc*"))


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_identity_is_refused(kept, tmp_path, damage):
    folder, words, _ = kept
    ck = shutil.copytree(folder, tmp_path / "ck")
    identity = ck / "identity.txt"
    text = identity.read_bytes()
    if damage == "gone":
        identity.unlink()
    else:
        identity.write_bytes(text[:-70] if damage == "cut" else text.replace(b"option_seed = 0", b"option_seed = 1"))
    refused(tmp_path, words, ck, ["identity.txt: missing" if damage == "gone" else "identity.txt: damaged"])


def test_an_identity_without_work_binds_nobody(kept, tmp_path):
    folder, _, _ = kept
    (tmp_path / "ck").mkdir()
    shutil.copy(folder / "identity.txt", tmp_path / "ck")
    succeed(tmp_path / "r.nc", *MNIST, "--samples", 40, "--tsne", 0, "--checkpoint", tmp_path / "ck")
    assert [p.name for p in tmp_path.iterdir()] == ["r.nc"]


def test_two_jobs_one_folder(kept, tmp_path):
    folder, words, whole = kept
    ck = shutil.copytree(folder, tmp_path / "ck")
    live = Live(*words, "--output", tmp_path / "first.nc", "--checkpoint", ck, ranks=1)
    try:
        live.until(Path(tmp_path / "first.nc.partial").exists)
        time.sleep(0.3)  # it opens the folder next
        for rank in live.ranks():
            os.kill(rank, signal.SIGSTOP)
        refused(tmp_path, words, ck, ["another job is using this checkpoint"])
        for rank in live.ranks():
            os.kill(rank, signal.SIGCONT)
        assert live.end(60)[0] == 0
    finally:
        live.kill()
    assert_same_result(whole, read(tmp_path / "first.nc"))


def test_a_run_that_fails_is_not_run_again(result, mounted, tmp_path):  # noqa: F811
    """Launchers end the ranks of such a job by SIGTERM; the mark tells them that it is no request to stop."""
    words, _ = result("tsne")
    done = run(*words, "--output", mounted("size=1m") / "r.nc", "--checkpoint", tmp_path / "ck", "--quiet", ranks=3)
    assert done.status == 1 and len(done.lines) == 1 and "is the disk full" in done.lines[0], done.lines
    assert (tmp_path / "ck" / "failed").exists()
    live = Live(*words, "--output", tmp_path / "r.nc", "--checkpoint", tmp_path / "ck", "--quiet", ranks=2)
    try:
        assert live.until(Path(tmp_path / "r.nc.partial").exists)
        assert not (tmp_path / "ck" / "failed").exists()  # that was another run
        (tmp_path / "ck" / "failed").touch()
        send(live, "TERM", random)
        assert live.end(10) == (1, [])
    finally:
        live.kill()
    assert sorted(p.name for p in tmp_path.iterdir()) in (["ck"], ["ck", "disk"])


# ---- killed where it hurts most


def killed_at(tmp_path: Path, words, number: int, ranks: int, call: str = "change", where: str = "") -> Run:
    """A run whose first rank to come to its Nth write, fsync, rename or removal (or only one of these)
    of checkpoint or result is killed in it."""
    done = run(*words, "--output", tmp_path / "r.nc", "--checkpoint", tmp_path / "ck", "--threads", 1, ranks=ranks,
               shell=f"export LD_PRELOAD={FAULTS} FAULT={call}:{tmp_path}/{where}:-9:{number};")
    assert not [line for line in done.lines if line.startswith("cnnscope: ")], done.lines
    return done


def test_killed_while_working(result, tmp_path):
    """What the checkpoint has it keeps, whatever is killed; and goes on to the same bits."""
    words, whole = result("states")
    rng = random.Random(SEED)
    kills, limit = 0, 150
    while kills < max(4, STOPS // 2):
        kept = {"forward": 0, "tsne logits": 0, "trust logits": 0}
        for _ in range(4):
            number = rng.randint(1, limit)
            killed = killed_at(tmp_path, words, number, rng.choice((1, 2)))
            status, lines = killed.status, killed.lines
            for stage in kept:
                found = [re.match(rf"{stage} +(\d+)/\d+ \w+ from the checkpoint", line) for line in lines]
                if any(line.startswith(stage) for line in lines):
                    assert max((int(m[1]) for m in found if m), default=0) >= kept[stage], (stage, kept, lines)
                    kept[stage] = max((int(m[1]) for m in found if m), default=0)
            if any(re.match("forward .* in ", line) for line in lines):
                kept["forward"] = 1500
            if any(line.startswith("trust logits") for line in lines):
                kept["tsne logits"] = 6000
            kills += status != 0
            if status == 0:  # there are not so many
                limit = max(number, 2)
                break
            assert not (tmp_path / "r.nc").exists()
        else:
            go_on(tmp_path, words, ranks=rng.choice((1, 3)))
        assert_same_result(whole, read(tmp_path / "r.nc"))
        assert [p.name for p in tmp_path.iterdir()] == ["r.nc"]
        (tmp_path / "r.nc").unlink()
    print(f"{kills} kills")


@pytest.mark.parametrize("old", [False, True])
def test_killed_while_closing(result, tmp_path, old):
    """At any of the last calls that change a file: the result is the old one or the new one, and the job, queued again,
    ends well."""
    words, whole = result("tsne")
    more = ("--overwrite",) if old else ()
    rng = random.Random(f"{old} {SEED}")
    ranks = rng.choice((1, 2))
    killed = run(*words, "--output", tmp_path / "r.nc", "--checkpoint", tmp_path / "all", ranks=2,
                 shell=f"export LD_PRELOAD={FAULTS} FAULT=rename:r.nc:-9:1;")
    assert killed.status != 0
    place = tmp_path / "place"
    last, none = 1, 400  # calls that there are, and are not
    kills = named = 0
    while kills < max(6, STOPS // 4):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        shutil.copytree(tmp_path / "all", place / "ck")
        if old:
            (place / "r.nc").write_bytes(b"old")
        if kills == 0:  # surely behind the renaming (the first such call removes the mark of a job that failed)
            status = killed_at(place, (*words, *more), 3, ranks, "unlink", "ck/").status
            assert status != 0 and not list(place.glob("ck/state-tsne_logits*"))
            kills = 1
        else:
            number = (last + none) // 2 if none - last > 40 else max(1, none - rng.randint(0, 40))
            status = killed_at(place, (*words, *more), number, ranks).status
            if status == 0:  # a busy machine makes more calls: neither bound is sure
                last, none = min(last, number - 1), number
            else:
                last, none = max(last, number), max(none, number + 5)
                kills += 1
        is_new = (place / "r.nc").exists() and (place / "r.nc").read_bytes() != b"old"
        named += is_new and status != 0
        assert is_new or ((place / "r.nc").exists() == old and (place / "ck").exists())
        done = run(*words, "--output", place / "r.nc", "--checkpoint", place / "ck", ranks=rng.choice((1, 3)),
                   *(() if is_new else more))
        assert done.status == 0, done.lines
        assert not is_new or len(done.lines) == 1 and "r.nc: complete already" in done.lines[0], done.lines
        assert not any(line.startswith("affinities") for line in done.lines), done.lines
        assert_same_result(whole, read(place / "r.nc"))
        assert [p.name for p in place.iterdir()] == ["r.nc"]
    print(f"{kills} kills, {named} of them when the result had its name")


# ---- folders that take no more


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_folders_disk_is_full(result, mounted, tmp_path, ranks):  # noqa: F811
    """One line; with room, the same command goes on from what was kept."""
    words, whole = result("forward")
    disk = mounted("size=16m")
    refused(tmp_path, words, disk / "ck", ["cannot be written (No space left", "make room"], ranks=ranks)
    assert [p for p in (disk / "ck").glob("rows-*") if p.stat().st_size > 0]
    shutil.copytree(disk / "ck", tmp_path / "ck")
    lines = go_on(tmp_path, words, ranks=2)
    assert any(re.match(r"forward +[1-9]\d*/4000 samples from the checkpoint", line) for line in lines), lines
    assert_same_result(whole, read(tmp_path / "r.nc"))


def test_the_state_finds_no_room(result, mounted, tmp_path):  # noqa: F811
    """The one before stays."""
    words = (*MNIST, "--samples", 1500, "--attribution", "none", "--keep-maps", "none", "--feature-maps", "none",
             "--checkpoint-interval", 1, "--max-iter", 10**6, "--learning-rate", 1)
    disk = mounted("size=200k")
    refused(tmp_path, words, disk / "ck", ["state-tsne_logits-", "cannot be written (No space left"])
    assert list((disk / "ck").glob("state-tsne_logits-*.*"))


@pytest.mark.parametrize("call, name, error, number, said", [
    ("write", "/ck/rows-", errno.EDQUOT, 40, "quota"), ("write", "/ck/state-tsne_gap", errno.EDQUOT, 2, "quota"),
    ("fsync", "/ck/state-trust", errno.EIO, 1, "error"), ("fsync", "/ck/identity", errno.EDQUOT, 1, "quota")])
def test_faults_of_the_folders_disk(result, tmp_path, call, name, error, number, said):
    """One line; what was kept before stays, and the same command goes on from it."""
    words, whole = result("tsne")
    done = run(*words, "--output", tmp_path / "r.nc", "--checkpoint", tmp_path / "ck", "--quiet", ranks=2,
               shell=f"export LD_PRELOAD={FAULTS} FAULT={call}:{name}:{error}:{number};")
    assert done.status == 1 and len(done.lines) == 1 and done.lines[0].startswith("cnnscope: "), done.lines
    assert name.split("-")[0] in done.lines[0] and said in done.lines[0], done.lines
    assert [p.name for p in tmp_path.iterdir()] == ["ck"]
    lines = go_on(tmp_path, words, ranks=3)
    kept = {line.split()[0] for line in lines if "from the checkpoint" in line}
    expected = {"rows": {"forward"}, "identity": set()}.get(name.split("/")[-1].split("-")[0], {"forward", "tsne"})  # each stage's first word
    assert expected <= kept, (kept, lines)
    assert_same_result(whole, read(tmp_path / "r.nc"))


def test_a_folder_that_cannot_be_used(result, mounted, tmp_path):  # noqa: F811
    words = (*MNIST, "--samples", 40, "--tsne", 0)
    refused(tmp_path, words, mounted("size=1m,ro") / "ck", ["ck: the checkpoint's folder cannot be made (Read-only"])
    refused(tmp_path, words, tmp_path / "no" / "ck", ["cannot be made (No such file"])
    (tmp_path / "file").write_text("")
    refused(tmp_path, words, tmp_path / "file", ["file"])


# ---- watchdog


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_stopped_rank_is_named(result, tmp_path, checkpoint):
    words, _ = result("tsne")
    more = ("--checkpoint", tmp_path / "ck") if checkpoint else ()
    live = Live(*words, "--max-iter", 10**8, "--learning-rate", 0.5, "--output", tmp_path / "r.nc", "--threads", 1,
                "--watchdog", 3, "--quiet", *more, ranks=3)
    try:
        assert live.until(Path(tmp_path / "r.nc.partial").exists)
        time.sleep(2)
        os.kill(live.ranks()[1], signal.SIGSTOP)
        status, lines = live.end(15)
    finally:
        live.kill()
    assert status == 1 and len(lines) == 1, (status, lines)
    assert re.match(rf"cnnscope: rank 1 on host {os.uname().nodename} made no progress for \d+ s in stage \w+", lines[0])
    assert {p.name for p in tmp_path.iterdir()} <= {"ck"} and not survivors(str(tmp_path))


@pytest.mark.parametrize("rank, fault, stage", [
    (1, "write:r.nc.partial:-19:12", "forward"), (0, "rename:r.nc:-19:1", "closing the file"),
    (0, "fsync:/ck/state-tsne:-19:1", "tsne logits")])
def test_a_rank_stopped_inside_a_write_is_named(result, tmp_path, rank, fault, stage):
    """While the others wait for it in netCDF, in HDF5, at the end, or beside the checkpoint."""
    words, _ = result("tsne")
    done = run(*words, "--output", tmp_path / "r.nc", "--checkpoint", tmp_path / "ck", "--threads", 1, "--watchdog", 2,
               "--quiet", ranks=3, timeout=30,
               shell=f"if [ $OMPI_COMM_WORLD_RANK = {rank} ]; then export LD_PRELOAD={FAULTS} FAULT={fault}; fi;")
    assert done.status == 1 and len(done.lines) == 1, done
    assert re.match(rf"cnnscope: rank {rank} on host {os.uname().nodename} made no progress for \d+ s in stage {stage} "
                    r"\(its process is stopped\)", done.lines[0]), done.lines
    assert {p.name for p in tmp_path.iterdir()} == {"ck"} and not survivors(str(tmp_path))


def test_a_job_that_was_suspended_goes_on(result, tmp_path):
    """All of it stopped for longer than the watchdog waits, as schedulers do."""
    words, whole = result("tsne")
    live = Live(*words, "--output", tmp_path / "r.nc", "--threads", 1, "--watchdog", 2, "--quiet", ranks=2)
    try:
        assert live.until(Path(tmp_path / "r.nc.partial").exists)
        ranks = live.ranks()
        for what, pause in ((signal.SIGSTOP, 6), (signal.SIGCONT, 0)):
            for rank in ranks:
                os.kill(rank, what)
            time.sleep(pause)
        status, lines = live.end(60)
    finally:
        live.kill()
    assert (status, lines) == (0, [])
    assert_same_result(whole, read(tmp_path / "r.nc"))
