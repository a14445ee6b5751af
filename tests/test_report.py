"""scripts/report.py: what its page holds. What it shows and does in a browser: test_report_browser.py."""

from __future__ import annotations

import base64
import csv
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import netCDF4
import numpy as np
import pytest
from make_result import add, make_result
from program import MODEL
from scipy.spatial import procrustes

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import cnnscope  # noqa: E402
import report_data  # noqa: E402

WRONG_NAMES = ["<img src=x onerror=alert(1)>", "</script><b>bold</b>", "a & b"]


def report(*arguments: object, status: int = 0) -> Path | str:
    """The page; the error where one is expected."""
    done = subprocess.run([sys.executable, SCRIPTS / "report.py", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return Path(done.stdout.strip()) if status == 0 else done.stderr


def judged(path: Path, seed: int = 0, **kind: object) -> dict[str, np.ndarray]:
    """A synthetic result with probabilities, likely label errors and evidence; what is behind it."""
    truth = make_result(path, **kind)
    rng = np.random.default_rng(seed)
    n = len(truth["label"])
    shares = np.exp(truth["logits"] - truth["logits"].max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    truth["probability"] = shares.max(1).astype(np.float32)
    truth["wrong"] = (truth["label"] != truth["prediction"]) & (truth["label"] >= 0)
    truth["suspects"] = np.flatnonzero(truth["wrong"])[:5].astype(np.int64)
    truth["deletion"] = rng.random(n).astype(np.float32)
    with netCDF4.Dataset(path, "a") as nc:
        add(nc, "prediction_probability", "sample", truth["probability"])
        add(nc, "logits_suspect", "logits_suspect", truth["suspects"])
        add(nc, "logits_suspect_score", "logits_suspect", np.linspace(0.9, 0.5, len(truth["suspects"])).astype(np.float32))
        add(nc, "logits_suspect_prediction", "logits_suspect", truth["prediction"][truth["suspects"]])
        if "saliency" in nc.variables and "map_sample" not in nc.dimensions:
            add(nc, "saliency_deletion", "sample", truth["deletion"])
        nc.setncatts({"run_seconds_forward": 1.5, "run_seconds_tsne_logits": 3.0})
    return truth


class Tables(HTMLParser):
    """The tables of a page: {caption: rows of texts}; and addresses that anything would be fetched from."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] = []
        self.cell, self.caption, self.addresses = None, None, []
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action") and value]
        if tag == "table":
            self.rows = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th", "caption"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag == "caption":
            self.tables[self.cell] = self.rows
            self.rows = self.tables[self.cell]
        elif tag in ("td", "th"):
            self.rows[-1].append(self.cell)
        if tag in ("td", "th", "caption"):
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


def test_tables_hold_the_numbers_of_the_file(tmp_path):
    truth = judged(tmp_path / "a.nc", trust=True, several=True, unlabelled=0.1)
    page = report(tmp_path / "a.nc")
    assert page == tmp_path / "a.html"
    seen = Tables(page)
    known = truth["label"] >= 0
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (truth["label"][known], truth["prediction"][known]), 1)
    shown = [[int(cell or 0) for cell in row[1:]] for row in seen.tables["Rows: label. Columns: prediction."][1:]]
    np.testing.assert_array_equal(shown, counts)
    assert [row[0] for row in seen.tables["Seconds of each stage"][1:]] == ["forward", "tsne logits"]
    errors = seen.tables["Likely label errors"]
    assert [int(row[1]) for row in errors[1:]] == truth["suspects"].tolist()
    link = next(a for a in seen.addresses if a.startswith("data:text/csv"))
    listed = list(csv.DictReader(io.StringIO(unquote(link.partition(",")[2]))))
    assert [int(row["sample"]) for row in listed] == truth["suspects"].tolist()
    assert [int(row["label"]) for row in listed] == truth["label"][truth["suspects"]].tolist()
    edges = np.ceil(truth["probability"][known] * 15).astype(int)
    assert [int(row[1]) for row in seen.tables["Calibration by bin"][1:]] == [(edges == e).sum() for e in np.unique(edges)]
    ds = cnnscope.open_result(tmp_path / "a.nc")
    head, *_, last = seen.tables["Measures of the maps"]
    measures = dict(zip(head, last))
    assert float(measures["trustworthiness"]) == pytest.approx(float(ds.logits_tsne_trustworthiness_overall), abs=1e-4)
    assert [row[1:] for row in seen.tables["Maps of several perplexities and starts"][1:]][2] == ["perplexity 5+50, seed 0", "1.0000"]
    evidence = dict(zip(*seen.tables["Evidence of the attribution methods"]))
    assert float(evidence["deletion (small is good)"]) == pytest.approx(truth["deletion"].mean(), abs=1e-4)
    assert all(a.startswith(("data:", "#")) for a in seen.addresses)


def test_names_are_text(tmp_path):
    judged(tmp_path / "a.nc", classes=3, samples=60, names=True)
    with netCDF4.Dataset(tmp_path / "a.nc", "a") as nc:
        nc["category_name"][:] = np.array([n.encode().ljust(40, b"\0") for n in WRONG_NAMES]).view("S1").reshape(3, 40)
        nc.run_host = "<script>alert(2)</script>"
    text = report(tmp_path / "a.nc").read_text("utf-8")
    assert "&lt;img src=x" in text and "<img src=x" not in text and "<b>bold" not in text and "alert(2)</script>" not in text
    assert len(re.findall("</script>", text)) == 4


def test_layers_of_the_network(demo, tmp_path):
    text = report(demo, "--model", MODEL, "-o", tmp_path / "a.html").read_text("utf-8")
    assert re.search(r"o  conv2   Conv +3 x 3 +\(32, H/2, W/2\)  pool1", text)
    make_result(tmp_path / "b.nc", samples=30)
    with netCDF4.Dataset(tmp_path / "b.nc", "a") as nc:
        nc.setncatts({"model_sha256": "0" * 64, "run_model": "other.pth"})
    assert report(tmp_path / "b.nc", "--model", MODEL, status=1) == (
        f"report.py: {MODEL}: is not the network of {tmp_path / 'b.nc'}, expected the one of other.pth\n")


@pytest.mark.parametrize("kind", [{"embed": True}, {"classes": 30, "samples": 90, "labels": False}, {"chosen": True, "axes": 3},
                                  {"embed": True, "fixed": 50}, {"channels": 3, "unmapped": 10, "samples": 50}, {"classes": 1, "samples": 3}])
def test_every_kind_of_file(tmp_path, kind):
    make_result(tmp_path / "a.nc", **kind)
    assert Tables(report(tmp_path / "a.nc")).tables


def test_wrong_files(tmp_path):
    make_result(tmp_path / "a.nc", samples=20, status="running")
    assert 'has no status = "complete"' in report(tmp_path / "a.nc", status=1)
    make_result(tmp_path / "b.nc", samples=20)
    with netCDF4.Dataset(tmp_path / "b.nc", "a") as nc:
        nc["sample"][:] += 1000
    make_result(tmp_path / "c.nc", samples=20)
    assert report(tmp_path / "b.nc", tmp_path / "c.nc", status=1).startswith("report.py: c: has no sample of b")
    assert not list(tmp_path.glob("*.html*"))


def test_samples_are_chosen_by_rule(tmp_path):
    """Wrong ones first, at most half; others evenly; told in the page. All tables count all."""
    marked = np.zeros(100, bool)
    marked[10:14] = True
    chosen = report_data.choose(marked, 20)
    assert len(chosen) == 20 and set(range(10, 14)) <= set(chosen) and max(np.diff(chosen)) < 10
    assert len(report_data.choose(np.ones(100, bool), 20)) == 20
    judged(tmp_path / "a.nc")
    text = report(tmp_path / "a.nc", "--points", 100, "--pixels", 20 * 24 * 50).read_text("utf-8")
    assert "The maps show 100 of 400 samples" in text and "50 of 100 samples have their pictures" in text
    assert "400 samples" in text


@pytest.mark.parametrize("turn", [[[0, 3], [3, 0]], [[1, 3], [-3, 1]]])  # a mirror, a turn
def test_steps_and_procrustes(turn):
    values = np.array([-3.0, np.nan, 7.5, 2.0])
    packed = report_data.steps(values)
    found = np.frombuffer(base64.b64decode(packed["data"]), "<u2").astype(float)
    found = np.where(found == 65535, np.nan, packed["low"] + found * (packed["high"] - packed["low"]) / 65534)
    np.testing.assert_allclose(found, values, atol=1e-4)
    rng = np.random.default_rng(0)
    target = rng.normal(size=(50, 2))
    moved = target @ turn + [5, -2] + 0.1 * rng.normal(size=(50, 2))
    ours = report_data.procrustes(moved, target)
    _, _, least = procrustes(target, moved)
    share = ((ours - target) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
    assert share == pytest.approx(least, rel=1e-9)
