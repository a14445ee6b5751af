"""scripts/export.py: what it writes, read by the programs it is for."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from make_result import make_result
from PIL import Image
from pyarrow import parquet

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import cnnscope  # noqa: E402
import export  # noqa: E402


def exported(*arguments: object, status: int = 0) -> str:
    """What it says: the path, or the error where one is expected."""
    done = subprocess.run([sys.executable, SCRIPTS / "export.py", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout.strip()


class Projector:
    """TensorBoard's own plugin, asked as its page asks it."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.plugins.base_plugin import TBContext
        from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
        from werkzeug.test import Client

        no_runs = SimpleNamespace(list_runs=lambda *_, **__: [])
        self.apps = ProjectorPlugin(TBContext(logdir=str(folder), data_provider=no_runs)).get_plugin_apps()
        self.client = Client

    def get(self, route: str, **query: object) -> bytes:
        answer = self.client(self.apps[route]).get(query_string={"run": ".", **query})
        assert answer.status_code == 200, answer.data
        return answer.data


@pytest.mark.parametrize("channels, names, limit", [(1, True, 8192), (3, False, 100)])
def test_projector(tmp_path, monkeypatch, channels, names, limit):
    truth = make_result(tmp_path / "a.nc", channels=channels, samples=50, names=names, trust=True, unmapped=3, unlabelled=0.1)
    ds = cnnscope.open_result(tmp_path / "a.nc")
    monkeypatch.setattr(export, "MAX_SPRITE", limit)
    export.write(export.to_projector, ds, tmp_path / "out")
    projector = Projector(tmp_path / "out")
    found = {e["tensorName"]: e for e in json.loads(projector.get("/info"))["embeddings"]}
    assert {name: e["tensorShape"] for name, e in found.items()} == {"logits": [50, 10], "logits_pca": [50, 2], "logits_tsne": [50, 2]}
    for name in found:
        values = np.frombuffer(projector.get("/tensor", name=name), "<f4").reshape(50, -1)
        np.testing.assert_array_equal(values, np.nan_to_num(ds[name].values))
    rows = list(csv.DictReader(io.StringIO(projector.get("/metadata", name="logits").decode()), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [row["label"] for row in rows] == cnnscope.category_names(ds, truth["label"])
    assert [row["wrong"] == "wrong" for row in rows] == ((truth["label"] != truth["prediction"]) & (truth["label"] >= 0)).tolist()
    assert [row["sample_name"] for row in rows] == [f"file{i}.png" for i in range(50)] if names else "sample_name" not in rows[0]
    np.testing.assert_array_equal(np.array([row["logits_tsne_trustworthiness"] for row in rows], np.float32), truth["trust"])
    sheet = np.asarray(Image.open(io.BytesIO(projector.get("/sprite_image", name="logits"))))
    width, height = found["logits"]["sprite"]["singleImageDim"]
    assert (width, height) == ((24, 20) if limit == 8192 else (12, 10)) and max(sheet.shape) <= limit
    for i in (0, 9, 49):  # eight in a row, as the projector counts: the sheet's width by the picture's
        columns = sheet.shape[1] // width
        tile = sheet[i // columns * height :, i % columns * width :][:height, :width]
        own = truth["image"][i].transpose(1, 2, 0).squeeze().astype(float)
        if limit == 100:
            own = own.reshape(10, 2, 12, 2, -1).mean((1, 3)).squeeze()
        assert np.abs(tile - own).max() <= (0 if limit == 8192 else 12)


def test_npz(tmp_path):
    make_result(tmp_path / "a.nc", samples=40, names=True)
    ds = cnnscope.open_result(tmp_path / "a.nc")
    assert exported(tmp_path / "a.nc", "--to", "npz") == str(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        assert set(found) == {*map(str, ds.variables), "attributes"}
        for name in ds.variables:
            np.testing.assert_array_equal(found[str(name)], ds[name].values)
            assert found[str(name)].dtype == ds[name].dtype
        about = json.loads(str(found["attributes"]))
    assert about["status"] == "complete" and about["logits_tsne"]["perplexity"] == 30


def test_parquet(tmp_path):
    make_result(tmp_path / "a.nc", samples=40, names=True, trust=True, classes=20)
    ds = cnnscope.open_result(tmp_path / "a.nc")
    path = exported(tmp_path / "a.nc", "--to", "parquet", "-o", tmp_path / "b.parquet")
    frame = pandas.read_parquet(path)
    assert len(frame) == 40 and not {"image", "saliency", "conv1_maps"} & set(frame)
    for name in ("sample", "sample_name", "label", "prediction", "logits_tsne_trustworthiness"):
        np.testing.assert_array_equal(frame[name], ds[name].values)
    np.testing.assert_array_equal(frame[["logits_tsne_0", "logits_tsne_1"]], ds.logits_tsne.values)
    np.testing.assert_array_equal(np.stack(frame["logits"]), ds.logits.values)  # wider than 16: lists
    assert json.loads(parquet.read_schema(path).metadata[b"cnnscope"])["status"] == "complete"


def test_what_is_refused(tmp_path):
    make_result(tmp_path / "a.nc", samples=20)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    for target in ("projector", "npz"):
        said = exported(tmp_path / "a.nc", "--to", target, "-o", tmp_path / "full", status=1)
        assert said == f"export.py: {tmp_path}/full: is a folder with other things in it, expected a new name: give another one by -o\n"
    assert (tmp_path / "full/mine.txt").read_text() == "mine"
    assert exported(tmp_path / "b.nc", "--to", "npz", status=1) == f"export.py: {tmp_path}/b.nc: no such file\n"
    for _ in range(2):  # its own folder is written anew
        assert exported(tmp_path / "a.nc", "--to", "projector") == str(tmp_path / "a_projector")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nc", "a_projector", "full"]
