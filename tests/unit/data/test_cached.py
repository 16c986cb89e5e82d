"""The cache of pictures: written once, read as views of its files, refused where it is not whole."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitcore.data.augment import Augment
from vitcore.data.datasets import open_dataset
from vitcore.data.formats import caching
from vitcore.data.formats.cached import CachedPictures, main
from vitcore.data.pictures import PictureSplit
from vitcore.errors import VitcoreError

SIZES = [(80, 60), (60, 80), (50, 50), (200, 120), (40, 30)]  # width, height


def smooth(seed: int, size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of JPEGs and a PNG, one turned by EXIF, with a picture that cannot be read."""
    root = tmp_path_factory.mktemp("original")
    for part, count in (("train", 5), ("val", 3)):
        for label, name in enumerate(("cat", "dög")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                exif = Image.Exif()
                exif[0x0112] = 6 if i == 1 else 1
                smooth(10 * label + i, SIZES[i]).save(root / part / name / f"{i}.jpg", quality=95, exif=exif)
    smooth(3, (64, 64)).save(root / "train" / "cat" / "z.png")
    (root / "train" / "cat" / "0bad.jpg").write_bytes((root / "train" / "cat" / "0.jpg").read_bytes()[:-40])
    return root


def cache(original: Path, output: Path, *flags: str) -> int:
    return main(["--dataset", "folder", "--data_path", str(original), "--output", str(output), *flags])


@pytest.fixture(scope="module")
def raw(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("caches") / "raw"
    assert cache(original, output, "--side", "48") == 0
    return output


def source(path: Path, part: str = "train") -> CachedPictures:
    dataset = open_dataset("cached", data_path=path, img_size=32)
    split = dataset.train if part == "train" else dataset.eval
    assert isinstance(split, PictureSplit) and isinstance(split.source, CachedPictures)
    return split.source


def images(dataset: str, path: Path, size: int = 32, augment: Augment | None = None) -> torch.Tensor:
    split = open_dataset(dataset, data_path=path, img_size=size, bad_images="skip").train
    indices = np.arange(len(split))
    return split.load(indices, indices, 7, augment)[0]


def test_shapes_labels_and_names_are_those_of_the_files(raw: Path, original: Path) -> None:
    dataset = open_dataset("cached", data_path=raw, img_size=32)
    assert dataset.class_names == ["cat", "dög"] and len(dataset.train) == 11 and len(dataset.eval) == 6
    pictures = source(raw)
    # cat: 0.jpg to 4.jpg, without the bad one, then z.png; the second is stored lying and shown upright.
    sizes = [(48, 64), (48, 64), (48, 48), (48, 80), (30, 40)]
    assert [pictures.read(i).shape for i in range(11)] == [  # type: ignore[union-attr]
        (3, *size) for size in [*sizes, (48, 48), *sizes]
    ]
    assert pictures.labels.tolist() == [0] * 6 + [1] * 5
    assert pictures.where(0) == f"{raw}/train.pictures: picture 0 (from {original}/train/cat/0.jpg)"
    assert pictures.where(10).endswith(f"picture 10 (from {original}/train/dög/4.jpg)")
    assert source(raw, "val").labels.tolist() == [0] * 3 + [1] * 3


def test_unreadable_pictures_are_named_counted_and_left_out(
    original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING):
        cache(original, tmp_path / "out", "--side", "16")
    assert f"{original}/train/cat/0bad.jpg: not a readable picture (Image is incomplete or truncated); left out" in (
        caplog.text
    )
    said = capsys.readouterr().out
    assert (
        "train 11 pictures" in said and "1 could not be read and are left out" in said and said.count("left out") == 1
    )
    assert f"--dataset cached --data_path {tmp_path / 'out'}" in said


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_cache_shows_what_the_files_show(kind: str, original: Path, tmp_path: Path) -> None:
    cache(original, tmp_path / "out", "--side", "48", "--format", kind)
    for augment in (None, Augment(crop=(0.5, 1.0), flip=True)):
        expected = images("folder", original, augment=augment).float()
        expected = expected[[0, *range(2, 12)]]  # without the bad one, which is second
        if augment is not None:  # its positions are others after the first
            expected = expected[:1]
        found = images("cached", tmp_path / "out", augment=augment).float()[: len(expected)]
        assert (found - expected).abs().mean() < (3 if augment is None else 6), augment


def test_pixels_of_a_raw_cache_without_a_side_are_exact(original: Path, tmp_path: Path) -> None:
    cache(original, tmp_path / "out", "--side", "None")
    expected, found = images("folder", original), images("cached", tmp_path / "out")
    assert torch.equal(found[[2, 5]], expected[[3, 6]])  # no JPEG that was decoded smaller, and the PNG
    assert source(tmp_path / "out").read(3).shape == (3, 120, 200)  # type: ignore[union-attr]


def test_jpegs_that_are_small_enough_are_kept_as_they_are(original: Path, tmp_path: Path) -> None:
    cache(original, tmp_path / "out", "--side", "60", "--format", "jpeg", "--quality", "90")
    pictures = source(tmp_path / "out")
    assert bytes(pictures.read(0)) == (original / "train" / "cat" / "0.jpg").read_bytes()
    turned, large = (Image.open(io.BytesIO(bytes(pictures.read(i)))) for i in (1, 3))
    assert turned.size == (80, 60) and turned.getexif().get(0x0112, 1) == 1  # was 60 x 80 as stored
    assert large.size == (100, 60)


def test_grey_pictures_stay_grey(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (6, 9, 7), dtype=np.uint8)
    for part in ("train", "t10k"):
        for what, array in (("images-idx3", grey), ("labels-idx1", np.arange(6, dtype=np.uint8))):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (tmp_path / f"{part}-{what}-ubyte").write_bytes(header + array.tobytes())
    main(["--dataset", "idx", "--data_path", str(tmp_path), "--output", str(tmp_path / "out"), "--side", "None"])
    dataset = open_dataset("cached", data_path=tmp_path / "out", img_size=8)
    assert dataset.channels == 1 and dataset.num_classes >= 6
    read = source(tmp_path / "out").read(4)
    assert (np.asarray(read) == grey[4]).all() and np.asarray(read).shape == (1, 9, 7)


def test_a_source_is_pickled_by_its_path(raw: Path) -> None:
    pictures = source(raw)
    packed = pickle.dumps(pictures)
    assert len(packed) < 500
    again = pickle.loads(packed)
    assert (np.asarray(again.read(4)) == np.asarray(pictures.read(4))).all() and (again.labels == pictures.labels).all()
    assert not np.asarray(pictures.read(4)).flags.writeable and not np.asarray(pictures.read(4)).flags.owndata


def test_it_serves_worker_processes(raw: Path) -> None:
    code = (
        "import numpy as np, torch; from vitcore.data.datasets import open_dataset\n"
        "def load(**options):\n"
        f"    dataset = open_dataset('cached', data_path={str(raw)!r}, img_size=32, **options)\n"
        "    i = np.arange(11); images = dataset.train.load(i, i, 0, None)[0].clone(); dataset.train.close()\n"
        "    return images\n"
        "if __name__ == '__main__':\n"
        "    assert torch.equal(load(), load(workers=2, loader='processes'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def refused(call: object, *arguments: object) -> str:
    with pytest.raises(VitcoreError) as raised:
        call(*arguments)  # type: ignore[operator]
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda p: (p / "cache.json").unlink(), "no finished cache of pictures (cache.json is missing)"),
        (lambda p: (p / "cache.json").write_text("{"), "cache.json: not readable"),
        (lambda p: (p / "cache.json").write_text("[1]"), "it is no description of a cache"),
        (lambda p: edit(p, vitcore_cache=2), "it is of version 2, and this is 1"),
        (lambda p: edit(p, class_names="cat"), "its class_names is damaged"),
        (lambda p: edit(p, kind="tiff"), "its kind or channels is damaged"),
        (lambda p: flip(p / "train.index.npy"), "train.index.npy: the index is not the one that cache.json describes"),
        (lambda p: flip(p / "val.names"), "val.index.npy: the index is not the one that cache.json describes"),
        (lambda p: (p / "val.pictures").unlink(), "val.pictures: No such file"),
        (lambda p: (p / "train.pictures").open("ab").write(b"x"), "copy the file again"),
        (lambda p: cut(p / "train.pictures"), "copy the file again"),
    ],
)
def test_what_is_damaged_or_foreign_is_refused(raw: Path, tmp_path: Path, damage: object, said: str) -> None:
    shutil.copytree(raw, tmp_path / "copy")
    damage(tmp_path / "copy")  # type: ignore[operator]
    line = refused(lambda: open_dataset("cached", data_path=tmp_path / "copy", img_size=32))
    assert said in line and str(tmp_path / "copy") in line


def edit(path: Path, **changes: object) -> None:
    told = json.loads((path / "cache.json").read_text())
    (path / "cache.json").write_text(json.dumps({**told, **changes}))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_missing_data_path_is_said() -> None:
    assert "no data path" in refused(lambda: open_dataset("cached", img_size=32))


def test_a_file_that_is_cut_while_it_is_read_is_a_bad_picture(original: Path, raw: Path, tmp_path: Path) -> None:
    """The mapped pages beyond the new end are gone: nothing can be read there, and nothing is; a copy is shorter."""
    shutil.copytree(raw, tmp_path / "copy")
    pictures = source(tmp_path / "copy")
    (tmp_path / "copy" / "train.pictures").write_bytes((raw / "train.pictures").read_bytes()[:-5])
    again = pickle.loads(pickle.dumps(pictures))  # as a worker that starts later
    split = open_dataset("cached", data_path=raw, img_size=32, bad_images="skip").train
    assert isinstance(split, PictureSplit)
    split._source = split._reader.source = again
    indices = np.arange(9, 11)
    _, _, weight = split.load(indices, indices, 0, None)
    assert weight.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--side", "0"], "--side 0 must be at least 1"),
        (["--quality", "101"], "--quality 101 is out of range"),
        (["--format", "tiff"], "tiff"),
    ],
)
def test_settings_that_cannot_be_are_refused(original: Path, tmp_path: Path, flags: list[str], said: str) -> None:
    assert said in refused(lambda: cache(original, tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_nothing_is_overwritten(original: Path, tmp_path: Path, raw: Path) -> None:
    before = (raw / "train.pictures").read_bytes()
    assert "exists already" in refused(lambda: cache(original, raw))
    assert (raw / "train.pictures").read_bytes() == before
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.doc").write_text("mine")
    assert "holds files that are no unfinished cache's" in refused(lambda: cache(original, tmp_path / "out"))
    assert (tmp_path / "out.partial" / "thesis.doc").read_text() == "mine"


def test_data_without_files_is_refused(tmp_path: Path) -> None:
    assert "nothing to cache" in refused(lambda: main(["--dataset", "digits", "--output", str(tmp_path / "out")]))


def test_a_killed_run_leaves_no_cache_and_the_next_begins_anew(
    original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import os; from vitcore.data.formats import caching; from vitcore.data.formats.cached import main\n"
        "real, calls = caching.store, []\n"
        "def store(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 25: os.kill(os.getpid(), 9)\n"
        "    return real(*arguments)\n"
        "caching.store = store\n"
        f"main(['--dataset', 'folder', '--data_path', {str(original)!r}, '--output', {str(tmp_path / 'out')!r},"
        " '--workers', '1'])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100).returncode == -9
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial" / "train.pictures").exists()
    assert "no finished cache" in refused(
        lambda: open_dataset("cached", data_path=tmp_path / "out.partial", img_size=8)
    )
    with caplog.at_level(logging.INFO):
        assert cache(original, tmp_path / "out", "--side", "32") == 0
    assert "the cache is begun anew" in caplog.text and not (tmp_path / "out.partial").exists()
    assert len(open_dataset("cached", data_path=tmp_path / "out", img_size=8).train) == 11


def test_two_writers_are_one_too_many(original: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    with open(tmp_path / "out.partial" / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is writing this cache" in refused(lambda: cache(original, tmp_path / "out"))
    assert cache(original, tmp_path / "out", "--side", "8") == 0


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 50_000))
    line = refused(lambda: cache(original, tmp_path / "out", "--side", "48"))
    assert "the cache will have about 0.0 GB, and 0.0 GB are free" in line and "--format jpeg" in line
    assert not (tmp_path / "out.partial" / "train.pictures").exists()
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: usage(10**9, 0, 10**9))
    assert cache(original, tmp_path / "out", "--side", "48") == 0


def test_a_disk_that_fills_up_is_said(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching, "_sync", full)
    assert "no room is left on the disk" in refused(lambda: cache(original, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_part_without_a_readable_picture_is_refused(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "bad")
    for path in (tmp_path / "bad" / "val").rglob("*.jpg"):
        path.write_bytes(b"no picture")
    assert "val: none of the 6 pictures can be read" in refused(lambda: cache(tmp_path / "bad", tmp_path / "out"))
