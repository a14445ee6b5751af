"""Malicious .pth files (malicious.py): refused in one line by both readers, nothing of them run, little memory taken.

Nothing they name is a secret: where Python runs their pickles, as loading them would, each leaves its mark.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import malicious
from program import BINARY
from test_dataset import DRIVER

# Reads pickles, one a file, as Python's own unpickler does. Names of torch are there, but do nothing.
UNPICKLE = """
import io, pickle, sys

class Torch(pickle.Unpickler):
    persistent_load = lambda self, identifier: None
    def find_class(self, module, name):
        return (lambda *arguments: None) if module.startswith("torch") else super().find_class(module, name)

for path in sys.argv[1:]:
    try:
        Torch(io.BytesIO(open(path, "rb").read())).load()
    except Exception:
        pass
"""

# For each file the program's exit status, the most memory it took in bytes, and its stderr. A small process: a child's
# peak begins with its parent's.
RUN = """
import os, sys
for path in sys.argv[2:]:
    there, here = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(here, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        words = sys.argv[1].split("\\n")
        os.execv(words[0], [word.replace("{}", path) for word in words])
    os.close(here)
    with open(there, "rb") as errors:
        text = errors.read().decode(errors="replace")
    _, status, used = os.wait4(child, 0)
    print(repr((status, used.ru_maxrss * 1024, text)))  # Linux counts in KiB
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("malicious")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> dict[str, malicious.Malicious]:
    made = malicious.corpus(folder / "mark")
    for number, case in enumerate(made.values()):
        (folder / f"{number}.pth").write_bytes(case.data)
    return made


def read_all(folder: Path, words: list[object], corpus: dict[str, malicious.Malicious]) -> dict[str, tuple]:
    """(status, memory beyond that of an empty file, stderr) of each case."""
    (folder / "empty.pth").write_bytes(b"\x80\x02N.")
    paths = [folder / "empty.pth", *(folder / f"{number}.pth" for number in range(len(corpus)))]
    done = subprocess.run([sys.executable, "-S", "-c", RUN, "\n".join(map(str, words)), *paths], capture_output=True,
                          text=True, timeout=300, check=True)
    (_, least, _), *results = map(eval, done.stdout.splitlines())
    return {name: (status, memory - least, text) for name, (status, memory, text) in zip(corpus, results, strict=True)}


def test_python_runs_them(folder, corpus):
    """Otherwise nothing below would say anything."""
    running = [(name, case.pickle) for name, case in corpus.items() if case.pickle is not None]
    assert len(running) > 50
    (folder / "unpickle.py").write_text(UNPICKLE)
    idle = []
    for name, pickle in running:
        (folder / "one.pkl").write_bytes(pickle)
        command = [sys.executable, "-S", folder / "unpickle.py", folder / "one.pkl"]
        subprocess.run(command, capture_output=True, timeout=60)
        if not (folder / "mark").exists():
            idle.append(name)
        (folder / "mark").unlink(missing_ok=True)
    assert idle == []


@pytest.mark.parametrize("reader", ["a model", "a matrix"])
def test_refused(folder, corpus, reader):
    command = [BINARY, "inspect", "--model", "{}"] if reader == "a model" else [DRIVER, "dump", "{}"]
    wrong = []
    for number, (name, (status, memory, text)) in enumerate(read_all(folder, command, corpus).items()):
        case = corpus[name]
        one_line = status == 1 << 8 and text.count("\n") == 1 and text.startswith("cnnscope: ")
        words = case.words if reader == "a model" else ()  # a matrix may be wanting first
        if not one_line or not all(word in text for word in words) or memory > 3 * len(case.data) + (64 << 20):
            wrong.append(f"{name} ({number}.pth): expected {case.words}, found {status}, {memory} bytes, {text}")
    assert wrong == [], "\n" + "".join(wrong)
    assert not (folder / "mark").exists()


def test_the_sound_files_are_read(folder):
    """Those that the corpus is made from, in both formats: what is refused is refused for its own reason."""
    sound = (malicious.pth(), malicious.legacy(malicious.TENSORS), malicious.pth(more=[("a", b"")]))
    for number, data in enumerate(sound):
        path = folder / f"sound{number}.pth"
        path.write_bytes(data)
        done = subprocess.run([BINARY, "inspect", "--model", path], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
