"""scripts/pack.py: every source, sizes and colours as of torchvision, restarts, and what cnnscope reads of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from PIL import Image

from program import GOLDEN, MODEL, ROOT, succeed, values

SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))
from pack_archives import Tar  # noqa: E402
from pack_pixels import Recipe, Refused  # noqa: E402

SMALL_BLOCKS = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import pack_file; pack_file.BLOCK_ROWS = 4; " \
               "import pack; sys.argv[0] = 'pack.py'; pack.main()"

STOP_AT_THE_END = SMALL_BLOCKS.replace("pack.main()", "pack_file.Partial.finish = lambda *_: (_ for _ in ()).throw("
                                                      "KeyboardInterrupt); pack.main()")


def pack(*arguments: object, status: int = 0, folder: Path | None = None) -> subprocess.CompletedProcess:
    """In blocks of four images, so that a few make several."""
    done = subprocess.run([sys.executable, "-c", SMALL_BLOCKS, *map(str, arguments)], cwd=folder, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == status, done.stderr
    return done


def refused(*arguments: object, lines: int = 1) -> str:
    """The last line on stderr, of as many as expected."""
    done = pack(*arguments, status=1)
    said = done.stderr.splitlines()
    assert done.stdout == "" and len(said) == lines and all(s.startswith("pack.py: ") for s in said), done.stderr
    output = Path(str(arguments[arguments.index("-o") + 1]))
    assert not list(output.parent.glob(f"{output.name}*")), "something was left behind"
    return said[-1]


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def stored(path: Path) -> dict[str, object]:
    with netCDF4.Dataset(path) as file:
        found = {name: file[name][...] for name in file.variables}
        found["attributes"] = {a: file.getncattr(a) for a in file.ncattrs()}
        found["dimensions"] = {d: len(v) for d, v in file.dimensions.items()}
    return found


def pair(text: str) -> tuple[int, ...] | None:
    return tuple(int(n) for n in text.split(",")) if text else None


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Nine gray images of three categories, one in a folder of its own, and what lies around in such folders."""
    root = tmp_path / "images"
    names = ["cat/1.png", "cat/10.PNG", "cat/2.tif", "cat/more/0.png", "dog/a.png", "dog/b.png", "ねこ/x.png",
             "ねこ/y.png", "ねこ/z.png"]
    images = {name: save(root / name, noise(i, 12, 10)) for i, name in enumerate(names)}
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    return root, images


# --- sizes, colours, types -------------------------------------------------------------------------------------------

RESIZED = np.load(GOLDEN / "pack" / "resize.npz")


@pytest.mark.parametrize("case", [name for name in RESIZED if "|" in name])
def test_resize_and_crop_equal_torchvision(case):
    name, resize, crop, interpolation = case.split("|")
    crop = pair(crop) * 2 if crop and "," not in crop else pair(crop)
    got = Recipe(pair(resize), crop, interpolation).apply(Image.fromarray(RESIZED[f"image_{name}"]))
    expected = RESIZED[case]
    assert np.array_equal(got, expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1))


def test_bytes_come_back_from_tensors_and_floats_equal_them():
    levels, tensor = RESIZED["levels"], RESIZED["levels_tensor"]
    assert np.array_equal(Recipe().apply(tensor), levels[None]) and Recipe().apply(tensor).dtype == np.uint8
    by_product = levels.astype(np.float32)[None] * np.float32(1 / 255)  # torchvision.transforms.v2
    assert np.array_equal(Recipe().apply(by_product), levels[None])
    assert np.array_equal(Recipe(dtype="float32").apply(Image.fromarray(levels)), tensor)
    shifted = (tensor - np.float32(0.5)) / np.float32(0.25)
    assert np.array_equal(Recipe().apply(shifted), shifted) and Recipe().apply(shifted).dtype == np.float32
    assert Recipe().apply(tensor * np.float32(1.00001)).dtype == np.float32


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_colours_are_converted_as_pillow_does(mode, color):
    image = Image.fromarray(noise(1, 9, 8, 3)).convert(mode)
    got = Recipe(color=color).apply(image)
    rgb = image.convert("RGB")
    expected = np.asarray(rgb).transpose(2, 0, 1) if color == "rgb" else np.asarray(rgb.convert("L"))[None]
    assert np.array_equal(got, expected)


def test_sixteen_bits_become_floats():
    pixels = np.array([[0, 65535], [1, 300]], np.uint16)
    got = Recipe().apply(Image.fromarray(pixels))
    assert got.dtype == np.float32 and np.array_equal(got[0], pixels.astype(np.float32) / np.float32(65535))
    with pytest.raises(Refused, match="--dtype float32"):
        Recipe(dtype="uint8").apply(Image.fromarray(pixels))


# --- sources ---------------------------------------------------------------------------------------------------------


def test_folder_by_category(tmp_path, folder):
    root, images = folder
    done = pack(root, "-o", tmp_path / "a.nc", "--workers", 2)
    file = stored(tmp_path / "a.nc")
    assert "2 files that are no images are passed over: .hidden, cat/notes.txt" in done.stderr
    order = ["cat/1.png", "cat/10.PNG", "cat/2.tif", "cat/more/0.png", *list(images)[4:]]  # of ImageFolder
    assert list(file["sample_name"]) == order and list(file["category_name"]) == ["cat", "dog", "ねこ"]
    assert file["image"].dtype == np.uint8 and np.array_equal(file["image"][:, 0], [images[n] for n in order])
    assert file["label"].dtype == np.int32 and list(file["label"]) == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert file["attributes"]["Conventions"] == "CF-1.11" and file["dimensions"]["sample"] == 9
    assert (tmp_path / "a.categories.txt").read_text("utf-8") == "cat\ndog\nねこ\n"
    assert (tmp_path / "a.samples.txt").read_text("utf-8").splitlines() == order
    assert sorted(p.name for p in tmp_path.glob("a.*")) == ["a.categories.txt", "a.nc", "a.samples.txt"]


def test_unreadable_images_are_listed_never_dropped_in_silence(tmp_path, folder):
    root, images = folder
    (root / "dog" / "a.png").write_bytes((root / "dog" / "a.png").read_bytes()[:60])
    (root / "cat" / "1.png").write_text("no image at all")
    Image.fromarray(noise(1, 12, 10)).save(root / "ねこ" / "y.tif", save_all=True,
                                           append_images=[Image.fromarray(noise(2, 12, 10))])
    (root / "ねこ" / "link.png").symlink_to("nothing")
    done = pack(root, "-o", tmp_path / "a.nc", status=3)
    file = stored(tmp_path / "a.nc")
    gone = {"cat/1.png", "dog/a.png"}
    assert list(file["sample_name"]) == [n for n in images if n not in gone]
    assert np.array_equal(file["image"][:, 0], [p for n, p in images.items() if n not in gone])
    assert file["attributes"]["unreadable_count"] == 4
    listed = dict(line.split("\t") for line in (tmp_path / "a.unreadable.txt").read_text("utf-8").splitlines())
    assert set(listed) == {"cat/1.png", "dog/a.png", "ねこ/link.png", "ねこ/y.tif"}
    assert "no image" in listed["cat/1.png"] and "2 images" in listed["ねこ/y.tif"]
    assert "4 of 11 images could not be read" in done.stderr and "a.unreadable.txt" in done.stderr
    assert "7 images of 1x12x10" in done.stdout


def test_images_without_a_category(tmp_path):
    for i in range(3):
        save(tmp_path / "flat" / f"{i}.png", noise(i, 5, 6, 3))
    pack(tmp_path / "flat", "-o", tmp_path / "a.nc")
    file = stored(tmp_path / "a.nc")
    assert "label" not in file and file["image"].shape == (3, 3, 5, 6)
    save(tmp_path / "flat" / "dog" / "x.png", noise(9, 5, 6, 3))
    pack(tmp_path / "flat", "-o", tmp_path / "b.nc")
    assert list(stored(tmp_path / "b.nc")["label"]) == [-1, -1, -1, 0]


def test_jpeg_resized_and_cropped(tmp_path):
    smooth = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)
    Path(tmp_path / "in" / "x").mkdir(parents=True)
    Image.fromarray(smooth).convert("RGB").save(tmp_path / "in" / "x" / "a.jpg", quality=90)
    pack(tmp_path / "in", "-o", tmp_path / "a.nc", "--resize", 32, "--crop", "28", "--compress", 1)
    image = Image.open(tmp_path / "in" / "x" / "a.jpg").resize((42, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(image.crop((7, 2, 35, 30))).transpose(2, 0, 1)
    file = stored(tmp_path / "a.nc")
    assert np.array_equal(file["image"][0], expected)
    assert "shorter edge 32; centre crop of height, width 28, 28" in file["attributes"]["processing"]


def test_chosen_order_of_categories(tmp_path, folder):
    (tmp_path / "order.txt").write_text("ねこ\nbird\ndog\ncat\n", "utf-8")
    pack(folder[0], "-o", tmp_path / "a.nc", "--categories", tmp_path / "order.txt")
    assert list(stored(tmp_path / "a.nc")["label"]) == [3, 3, 3, 3, 2, 2, 0, 0, 0]
    (tmp_path / "order.txt").write_text("dog\ncat\n")
    assert "category 'ねこ' is not in the 2 names" in refused(folder[0], "-o", tmp_path / "b.nc", "--categories",
                                                             tmp_path / "order.txt")


@pytest.mark.parametrize("labels, expected, names", [
    (["5", "0", "", "-1"], [5, 0, -1, -1], None),
    (["dog", "cat", "", "dog"], [1, 0, -1, 1], ["cat", "dog"]),
])
def test_csv_of_paths_and_labels(tmp_path, labels, expected, names):
    pixels = [save(tmp_path / "in" / f"{i}, x.png", noise(i, 4, 5)) for i in range(4)]
    lines = [f'"in/{i}, x.png",{label}' for i, label in enumerate(labels)]
    (tmp_path / "list.csv").write_text("\ufefffile,class\n" + "\n".join(lines) + "\n", "utf-8")
    pack(tmp_path / "list.csv", "-o", tmp_path / "a.nc")
    file = stored(tmp_path / "a.nc")
    assert np.array_equal(file["image"][:, 0], pixels) and list(file["label"]) == expected
    assert (list(file["category_name"]) if names else None) == names
    (tmp_path / "list.csv").write_text((tmp_path / "list.csv").read_text("utf-8") + "in/none.png,0\n", "utf-8")
    pack(tmp_path / "list.csv", "-o", tmp_path / "b.nc", status=3)
    assert (tmp_path / "b.unreadable.txt").read_text() == "in/none.png\tNo such file or directory\n"


def test_npz(tmp_path):
    pixels, labels = noise(1, 10, 6, 7, 3), np.arange(10) % 4
    np.savez_compressed(tmp_path / "a.npz", x=pixels, y=labels[:, None], other=np.zeros(3))
    pack(tmp_path / "a.npz", "-o", tmp_path / "a.nc")
    file = stored(tmp_path / "a.nc")
    assert np.array_equal(file["image"], pixels.transpose(0, 3, 1, 2)) and np.array_equal(file["label"], labels)
    floats = noise(2, 5, 2, 4, 4).astype(np.float64) / 100 - 1
    np.savez(tmp_path / "b.npz", images=floats)
    pack(tmp_path / "b.npz", "-o", tmp_path / "b.nc", "--layout", "NCHW")
    got = stored(tmp_path / "b.nc")["image"]
    assert got.dtype == np.float32 and np.array_equal(got, floats.astype(np.float32))
    assert "--layout" in refused(tmp_path / "b.npz", "-o", tmp_path / "c.nc")
    np.savez_compressed(tmp_path / "large.npz", x=noise(4, 4000, 9, 8))
    whole = (tmp_path / "large.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:200000] + bytes(64) + whole[200064:])
    assert "x is damaged" in refused(tmp_path / "cut.npz", "-o", tmp_path / "c.nc")
    np.savez(tmp_path / "c.npz", a=pixels, b=pixels)
    assert "--image-key" in refused(tmp_path / "c.npz", "-o", tmp_path / "c.nc")
    np.savez(tmp_path / "d.npz", a=np.full((2, 3, 3), 700))
    assert "700 to 700; give --dtype float32" in refused(tmp_path / "d.npz", "-o", tmp_path / "d.nc")


def test_cifar_binaries(tmp_path):
    pixels = noise(3, 9, 3, 32, 32)
    ten = [bytes([i % 10]) + p.tobytes() for i, p in enumerate(pixels)]
    (tmp_path / "a.bin").write_bytes(b"".join(ten[:5]))
    (tmp_path / "b.bin").write_bytes(b"".join(ten[5:]))
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    pack(tmp_path / "a.bin", tmp_path / "b.bin", "-o", tmp_path / "ten.nc")
    file = stored(tmp_path / "ten.nc")
    assert np.array_equal(file["image"], pixels) and list(file["label"]) == list(range(9))
    assert list(file["category_name"]) == list("abcdefghij")
    (tmp_path / "c.bin").write_bytes(b"".join(bytes([i, 10 * i]) + p.tobytes() for i, p in enumerate(pixels)))
    pack(tmp_path / "c.bin", "-o", tmp_path / "fine.nc")
    pack(tmp_path / "c.bin", "-o", tmp_path / "coarse.nc", "--cifar-labels", "coarse")
    assert list(stored(tmp_path / "fine.nc")["label"]) == list(range(0, 90, 10))
    assert list(stored(tmp_path / "coarse.nc")["label"]) == list(range(9))
    (tmp_path / "c.bin").write_bytes(ten[0] + b"x")
    assert "CIFAR-10 and CIFAR-100 do not go into one file" in refused(tmp_path / "a.bin", tmp_path / "c.bin", "-o",
                                                                       tmp_path / "d.nc")
    (tmp_path / "d.bin").write_bytes(b"".join(ten)[:-1])
    assert "no whole number of records of CIFAR-10" in refused(tmp_path / "d.bin", "-o", tmp_path / "d.nc")


@pytest.mark.parametrize("suffix, mode", [(".tar", "w"), (".tar.gz", "w:gz")])
def test_tar_of_category_folders(tmp_path, folder, suffix, mode):
    root, images = folder
    archive = tmp_path / f"a{suffix}"
    with tarfile.open(archive, mode) as tar:
        tar.add(root, "set/images")
    pack(archive, "-o", tmp_path / "a.nc")
    file = stored(tmp_path / "a.nc")
    numbers = {"cat": 0, "dog": 1, "ねこ": 2}
    assert sorted(file["sample_name"]) == sorted(images) and list(file["category_name"]) == list(numbers)
    for name, pixels, label in zip(file["sample_name"], file["image"][:, 0], file["label"]):
        assert np.array_equal(pixels, images[name]) and label == numbers[name.split("/")[0]]
    source = Tar(str(archive), Namespace(categories=None))
    assert [item.name for item in source.items(4)] == [item.name for item in source.items(0)][4:]
    link = tarfile.TarInfo("set/images/dog/link.png")
    link.type, link.linkname = tarfile.LNKTYPE, "set/images/dog/a.png"
    with tarfile.open(tmp_path / f"link{suffix}", mode) as tar:
        tar.add(root, "set/images")
        tar.addfile(link)
    assert "dog/link.png" in pack(tmp_path / f"link{suffix}", "-o", tmp_path / "b.nc", status=3).stderr
    (tmp_path / "b.nc").unlink()
    (tmp_path / "b.samples.txt").unlink()
    data = archive.read_bytes()
    blocks = range(512, len(data), max(1024, len(data) // 5120 * 512))
    for size in [*blocks, *(n + 200 for n in blocks)]:  # between entries too: tarfile takes that for the end
        (tmp_path / f"cut{suffix}").write_bytes(data[:size].rstrip(b"\0"))
        with pytest.raises(Refused, match="truncated or damaged"):
            Tar(str(tmp_path / f"cut{suffix}"), Namespace(categories=None))
    assert "truncated or damaged" in refused(tmp_path / f"cut{suffix}", "-o", tmp_path / "b.nc")


DATASET = """
import random, time
from pathlib import Path
import numpy as np
from PIL import Image

class Set:
    classes = ["no", "yes"]
    def __init__(self, count, wait=0.0):
        self.count, self.wait = count, wait
    def __len__(self):
        return self.count
    def __getitem__(self, i):
        time.sleep(self.wait)
        if i == 5:
            raise OSError("disk on fire")
        pixels = np.full((3, 4, 3), i, np.uint8)
        pixels[0, 0, 0] = random.randrange(256)  # a random transform
        return Image.fromarray(pixels), i % 2
"""


def test_dataset_of_the_users_own(tmp_path):
    (tmp_path / "mine.py").write_text(DATASET)
    pack("mine:Set", "--args", "count=11", "-o", "a.nc", folder=tmp_path, status=3)
    pack(tmp_path / "mine.py:Set", "--args", "11", "-o", "b.nc", "--workers", 3, folder=tmp_path, status=3)
    a, b = stored(tmp_path / "a.nc"), stored(tmp_path / "b.nc")
    kept = [i for i in range(11) if i != 5]
    assert list(a["image"][:, 1, 1, 1]) == kept and list(a["label"]) == [i % 2 for i in kept]
    assert np.array_equal(a["image"], b["image"]) and list(a["category_name"]) == ["no", "yes"]
    assert (tmp_path / "a.unreadable.txt").read_text() == "item 5\tdisk on fire\n"
    assert "no module nothing" in refused("nothing:Set", "-o", tmp_path / "c.nc")
    assert "missing 1 required positional argument: 'count'; see --args" in refused(
        tmp_path / "mine.py:Set", "-o", tmp_path / "c.nc")
    assert "has no Other" in refused(tmp_path / "mine.py:Other", "-o", tmp_path / "c.nc")
    assert "expected literals" in refused(tmp_path / "mine.py:Set", "--args", "count=f()", "-o", tmp_path / "c.nc")


# --- restart ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on(tmp_path, end):
    (tmp_path / "mine.py").write_text(DATASET)
    arguments = ["mine.py:Set", "--args", "40, 0.05", "--workers", "2", "-o"]
    pack("mine.py:Set", "--args", "40", "-o", "whole.nc", folder=tmp_path, status=3)
    job = subprocess.Popen([sys.executable, "-c", SMALL_BLOCKS, *arguments, "a.nc"], cwd=tmp_path,
                           stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "a.nc.partial.journal"
    deadline = time.monotonic() + 30
    while not (journal.exists() and journal.read_bytes().count(b'{"done"') >= 3):
        assert time.monotonic() < deadline and job.poll() is None, job.stderr.read()
        time.sleep(0.01)
    job.send_signal(end)
    said = job.communicate(timeout=30)[1]
    assert not (tmp_path / "a.nc").exists()
    if end == signal.SIGTERM:
        assert job.returncode == 130 and said.splitlines()[-1] == "pack.py: stopped; the same command goes on from here"
    with journal.open("ab") as file:
        file.write(b'["half a li')  # as a full disk or a crash may leave it
    assert "--crop differs" in pack(*arguments, "a.nc", "--crop", 2, folder=tmp_path, status=1).stderr
    again = subprocess.run([sys.executable, "-c", STOP_AT_THE_END, *arguments, "a.nc"], cwd=tmp_path,
                           capture_output=True, text=True)
    assert again.returncode == 130 and "going on at image" in again.stderr
    assert "going on at image 40 of 40" in pack(*arguments, "a.nc", folder=tmp_path, status=3).stderr
    a, whole = stored(tmp_path / "a.nc"), stored(tmp_path / "whole.nc")
    for name in ("image", "label", "category_name"):
        assert np.array_equal(a[name], whole[name])
    assert sorted(p.name for p in tmp_path.glob("a.*")) == ["a.categories.txt", "a.nc", "a.unreadable.txt"]


def test_a_damaged_partial_file_begins_anew(tmp_path, folder):
    pack(folder[0], "-o", tmp_path / "whole.nc")
    done = subprocess.run([sys.executable, "-c", STOP_AT_THE_END, folder[0], "-o", tmp_path / "a.nc"],
                          capture_output=True)
    assert done.returncode == 130 and (tmp_path / "a.nc.partial").exists()
    (tmp_path / "a.nc.partial").write_bytes(b"\x89HDF\r\n\x1a\nnothing")
    assert "beginning anew" in pack(folder[0], "-o", tmp_path / "a.nc").stderr
    assert np.array_equal(stored(tmp_path / "a.nc")["image"], stored(tmp_path / "whole.nc")["image"])


def test_an_existing_file_is_kept(tmp_path, folder):
    (tmp_path / "a.nc").write_text("precious")
    done = pack(folder[0], "-o", tmp_path / "a.nc", status=1)
    assert "exists; give another name or --overwrite" in done.stderr and (tmp_path / "a.nc").read_text() == "precious"
    pack(folder[0], "-o", tmp_path / "a.nc", "--overwrite")
    assert len(stored(tmp_path / "a.nc")["image"]) == 9


# --- refusals --------------------------------------------------------------------------------------------------------


def test_images_that_do_not_go_together_are_refused(tmp_path, folder):
    root, _ = folder
    save(root / "dog" / "wide.png", noise(1, 12, 11))
    assert "dog/wide.png: is 1x12x11 (channels, height, width), the first image 1x12x10; give --resize" in refused(
        root, "-o", tmp_path / "a.nc", lines=2)
    save(root / "dog" / "wide.png", noise(1, 12, 10, 3))
    assert "dog/wide.png: is in colour, the first image is gray; give --color" in refused(
        root, "-o", tmp_path / "a.nc", lines=2)
    pack(root, "-o", tmp_path / "a.nc", "--color", "rgb")
    assert stored(tmp_path / "a.nc")["image"].shape == (10, 3, 12, 10)


def test_refusals_are_one_line(tmp_path):
    output = ("-o", tmp_path / "a.nc")
    assert "no such file or folder" in refused(tmp_path / "none", *output)
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(tmp_path / "empty", *output)
    (tmp_path / "x.docx").write_text("x")
    assert "is none of a folder, .csv" in refused(tmp_path / "x.docx", *output)
    (tmp_path / "x.npz").write_text("x")
    assert "is no .npz file" in refused(tmp_path / "x.npz", *output)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert "its columns are a, b; give --path-column" in refused(tmp_path / "x.csv", *output)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("x")
    assert "none of its 1 images can be read" in refused(tmp_path / "bad", *output)
    pack("x", *output, "--resize", "0", status=2)


# --- cnnscope reads it -----------------------------------------------------------------------------------------------


def test_cnnscope_reads_what_was_packed(tmp_path, mnist):
    """The command that pack.py prints, on two ranks, gives the results of the same pixels as .npy."""
    pixels, labels = (array[:30] for array in mnist)
    for digit in range(10):
        (tmp_path / "in" / str(digit)).mkdir(parents=True)  # also the one that these images lack
    for i, (image, label) in enumerate(zip(pixels, labels)):
        save(tmp_path / "in" / str(label) / f"{i:03}.png", image)
    done = pack(tmp_path / "in", "-o", tmp_path / "a.nc", "--compress", 4)
    words = done.stdout.splitlines()[1].split("   #")[0].split()
    words[words.index("MODEL")] = str(MODEL)
    common = ("--tsne", "0", "--batch", "4")
    packed = values(succeed(tmp_path / "packed.nc", *words[1:words.index("--output")], *common, ranks=2))
    order = np.argsort(labels, kind="stable")
    np.save(tmp_path / "images.npy", pixels[order])
    np.save(tmp_path / "labels.npy", labels[order])
    plain = values(succeed(tmp_path / "plain.nc", "--model", MODEL, "--images", tmp_path / "images.npy", "--labels",
                           tmp_path / "labels.npy", *common))
    for name in ("image", "label", "logits", "saliency"):
        assert np.array_equal(packed[name], plain[name]), name
    assert b"".join(packed["sample_name"][0]).rstrip(b"\0") == f"{labels[order[0]]}/{order[0]:03}.png".encode()


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def test_torchvision_dataset_with_its_own_transforms(tmp_path, folder):
    pytest.importorskip("torchvision", reason="PyTorch is not part of the tests' environment")
    root, _ = folder
    (root / ".hidden").rmdir()  # ImageFolder would take it for a category
    (tmp_path / "mine.py").write_text(
        "from torchvision import datasets, transforms as t\n"
        "steps = [t.Resize(8), t.CenterCrop(7), t.ToTensor()]\n"
        f"bytes_ = datasets.ImageFolder({str(root)!r}, t.Compose(steps))\n"
        f"floats = datasets.ImageFolder({str(root)!r}, t.Compose([*steps, t.Normalize([0.5] * 3, [0.2] * 3)]))\n")
    pack("mine:bytes_", "-o", "a.nc", folder=tmp_path)
    pack("mine:floats", "-o", "b.nc", folder=tmp_path)
    pack(root, "-o", "c.nc", "--resize", 8, "--crop", 7, "--color", "rgb", folder=tmp_path)
    a, b, c = (stored(tmp_path / f"{n}.nc") for n in "abc")
    assert a["image"].dtype == np.uint8 and np.array_equal(a["image"], c["image"])
    assert np.array_equal(a["label"], c["label"]) and list(a["sample_name"]) == list(c["sample_name"])
    assert b["image"].dtype == np.float32
    np.testing.assert_allclose(b["image"], (a["image"] / 255.0 - 0.5) / 0.2, atol=1e-6)
