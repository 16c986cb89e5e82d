"""Sorting ImageNet 2012 as it is published, on archives of the same layout with three classes; killed, damaged and hostile."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from vitcore.data import imagenet
from vitcore.data.datasets import open_dataset
from vitcore.data.formats import devkit
from vitcore.data.imagenet import Sorted, prepare_imagenet
from vitcore.errors import VitcoreError

# The first releases of Python 3.11 know no filter.
FILTER: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}

# Numbers of the challenge are not in the order of the names, nor is the truth in that of the pictures.
CLASSES = {1: ("n00000030", 4), 2: ("n00000010", 3), 3: ("n00000020", 2)}
TRUTH = [2, 3, 1, 1, 2, 2, 3]
Change = Callable[[str, bytes], bytes | None]
Renamed = Callable[[str], str]


def unchanged(name: str, data: bytes) -> bytes | None:
    return data


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def picture(name: str) -> bytes:
    return f"pixels of {name}".encode() * (1 + len(name) % 3)


def train_names(wnid: str, count: int) -> list[str]:
    return [f"{wnid}_{n * 37}.JPEG" for n in range(count)]


def class_tar(wnid: str, count: int, rename: Renamed = str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in train_names(wnid, count):
            add(tar, rename(name), picture(name))
    return out.getvalue()


def meta() -> bytes:
    """meta.mat as the kit has it: a struct array of which the low-level classes come first."""
    fields = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    synsets = np.empty((len(CLASSES) + 1, 1), dtype=[(field, object) for field in fields])
    for row, (number, (wnid, count)) in enumerate(CLASSES.items()):
        synsets[row, 0] = (
            float(number),
            wnid,
            f"a word, of {wnid}",
            "a gloss",
            0.0,
            np.empty((1, 0)),
            0.0,
            float(count),
        )
    synsets[-1, 0] = (4.0, "n00000001", "animal", "above", 3.0, np.array([[1.0, 2.0, 3.0]]), 1.0, 0.0)
    out = io.BytesIO()
    scipy.io.savemat(out, {"synsets": synsets})
    return out.getvalue()


def write(root: Path, change: Change = unchanged) -> Path:
    """The three archives, with what `change` makes of each part's bytes."""
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        folder = tarfile.TarInfo("ILSVRC2012_devkit_t12/data")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        truth = "".join(f"{number}\n" for number in TRUTH).encode()
        for name, data in (
            ("data/ILSVRC2012_validation_ground_truth.txt", truth),
            ("data/meta.mat", meta()),
            ("readme.txt", b""),
        ):
            changed = change(name, data)
            if changed is not None:
                add(tar, f"ILSVRC2012_devkit_t12/{name}", changed)
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as tar:
        for wnid, count in CLASSES.values():
            changed = change(f"{wnid}.tar", class_tar(wnid, count))
            if changed is not None:
                add(tar, f"{wnid}.tar", changed)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in range(len(TRUTH), 0, -1):
            name = f"ILSVRC2012_val_{number:08d}.JPEG"
            changed = change(name, picture(name))
            if changed is not None:
                add(tar, name, changed)
    return root


def check(root: Path) -> None:
    """Every picture is there once, in its class, with its bytes, and nothing else is."""
    expected = {
        f"train/{wnid}/{name}": picture(name) for wnid, count in CLASSES.values() for name in train_names(wnid, count)
    }
    for number, label in enumerate(TRUTH, 1):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        expected[f"val/{CLASSES[label][0]}/{name}"] = picture(name)
    found = {
        str(p.relative_to(root)): p.read_bytes()
        for part in ("train", "val")
        for p in (root / part).rglob("*")
        if p.is_file()
    }
    assert {n: d for n, d in found.items() if not n.endswith(".tar")} == expected
    assert not list(root.rglob(".*")), "nothing is left of the work"


COUNTS = Sorted(classes=3, train=9, val=7)


def test_the_published_archives_are_sorted_and_then_opened_as_a_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_imagenet(write(tmp_path)) == COUNTS
    check(tmp_path)
    data = open_dataset("imagenet1K", img_size=8, data_path=tmp_path, workers=0)
    assert data.class_names == ["n00000010", "n00000020", "n00000030"] and (len(data.train), len(data.eval)) == (9, 7)
    said = capsys.readouterr().err.splitlines()
    assert "vitcore: sorting the training classes: 100 %" in said
    assert "vitcore: sorting the validation pictures: 100 %" in said


def test_sorting_again_changes_nothing_and_needs_the_archives_no_more(tmp_path: Path) -> None:
    prepare_imagenet(write(tmp_path))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert prepare_imagenet(tmp_path) == COUNTS
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p != tmp_path} == before
    (tmp_path / "ILSVRC2012_img_train.tar").unlink()
    (tmp_path / "ILSVRC2012_img_val.tar").unlink()
    assert prepare_imagenet(tmp_path) == COUNTS


@pytest.mark.parametrize("place", ["ILSVRC2012_img_train", "train", "."])
def test_unpacked_archives_are_sorted_too(place: str, tmp_path: Path) -> None:
    write(tmp_path)
    for name, folder in (
        ("ILSVRC2012_img_train.tar", place), ("ILSVRC2012_img_val.tar", "ILSVRC2012_img_val"),
        ("ILSVRC2012_devkit_t12.tar.gz", "."),
    ):  # fmt: skip
        with tarfile.open(tmp_path / name) as tar:
            tar.extractall(tmp_path / folder, **FILTER)
        (tmp_path / name).unlink()
    assert prepare_imagenet(tmp_path) == COUNTS
    check(tmp_path)
    assert len([*(tmp_path / "ILSVRC2012_img_val").iterdir()]) == 7, "what was unpacked is left as it was"


def test_validation_pictures_that_lie_in_val_are_moved_into_their_classes(tmp_path: Path) -> None:
    write(tmp_path)
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar") as tar:
        tar.extractall(tmp_path / "val", **FILTER)
    (tmp_path / "val" / "n00000010").mkdir()
    os.rename(
        tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG",
        tmp_path / "val" / "n00000010" / "ILSVRC2012_val_00000001.JPEG",
    )
    assert prepare_imagenet(tmp_path) == COUNTS
    check(tmp_path)


def kill_at(root: str, writes: int) -> None:
    """Sort, and die without a word in the middle of the write of that number."""
    done = 0

    def copy(source: Any, target: Any, length: int = 0) -> None:
        nonlocal done
        done += 1
        data = source.read()
        if done == writes:
            target.write(data[: len(data) // 2])
            target.flush()
            os._exit(9)
        target.write(data)

    shutil.copyfileobj = copy  # type: ignore[assignment]
    prepare_imagenet(Path(root))
    os._exit(0)


def test_a_run_that_is_killed_anywhere_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = multiprocessing.get_context("fork")
    unpacked: list[str] = []
    unpack = imagenet._unpack_class
    monkeypatch.setattr(imagenet, "_unpack_class", lambda *args: (unpacked.append(args[1]), unpack(*args))[1])
    for writes in range(1, 18):
        root = write(tmp_path / str(writes))
        process = fork.Process(target=kill_at, args=(str(root), writes))
        process.start()
        process.join()
        assert process.exitcode == (9 if writes <= 16 else 0)
        visible = {p.name: len([*p.iterdir()]) for part in ("train",) if (root / part).is_dir()
                   for p in (root / part).iterdir() if not p.name.startswith(".")}  # fmt: skip
        assert visible.items() <= dict(CLASSES.values()).items(), "a class is whole or not there"
        assert (root / "val").is_dir() == (writes == 17)
        unpacked.clear()
        assert prepare_imagenet(root) == COUNTS
        assert not {*unpacked} & {*visible}, "what was whole is not done again"
        check(root)


def test_what_is_missing_is_named_with_its_size_and_place(tmp_path: Path) -> None:
    site = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"
    with pytest.raises(
        VitcoreError, match=r"absent is not a folder; give the one that holds ILSVRC2012_img_train.tar \(138 GB\)"
    ):
        prepare_imagenet(tmp_path / "absent")
    with pytest.raises(
        VitcoreError, match=f"imagenet: {tmp_path} holds no ILSVRC2012_devkit_t12.tar.gz .* from {site}"
    ):
        prepare_imagenet(tmp_path)
    for name, words in (
        ("ILSVRC2012_img_train.tar", r"lacks training classes, and holds neither ILSVRC2012_img_train.tar \(138 GB\)"),
        ("ILSVRC2012_img_val.tar", r"holds neither ILSVRC2012_img_val.tar \(6.3 GB\)"),
    ):
        (write(tmp_path) / name).unlink()
        with pytest.raises(VitcoreError, match=words):
            prepare_imagenet(tmp_path)
        assert not (tmp_path / "train").exists(), "nothing is begun that cannot be ended"
    for root in (None, tmp_path):
        with pytest.raises(
            VitcoreError, match=r"imagenet1K: .*fetch ILSVRC2012_img_train.tar .* `vitcore data prepare imagenet"
        ):
            open_dataset("imagenet1K", img_size=8, data_path=root)


WNID = "n00000010"


def damaged(part: str, change: Callable[[bytes], bytes | None]) -> Change:
    return lambda name, data: change(data) if name == part else data


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        (f"{WNID}.tar", lambda d: class_tar(WNID, 3, lambda n: f"../../{n}"), "'../../n00000010_0.JPEG' is no picture of"),
        (f"{WNID}.tar", lambda d: class_tar(WNID, 3, lambda n: f"/tmp/{n}"), "is no picture of the class"),
        (f"{WNID}.tar", lambda d: class_tar(WNID, 3, lambda n: f"sub/{n}"), "is no picture of the class"),
        (f"{WNID}.tar", lambda d: class_tar("n00000020", 3), "'n00000020_0.JPEG' is no picture of the class"),
        (f"{WNID}.tar", lambda d: class_tar(WNID, 3, lambda n: f"{WNID}_1.JPEG"), "'n00000010_1.JPEG' is no picture"),
        (f"{WNID}.tar", lambda d: class_tar(WNID, 2), "it holds 2 pictures, 3 are published"),
        (f"{WNID}.tar", lambda d: class_tar(WNID, 4), "it holds 4 pictures, 3 are published"),
        (f"{WNID}.tar", lambda d: d[:600], "n00000010.tar: it is no whole tar file"),
        (f"{WNID}.tar", lambda d: d[:10], "n00000010.tar: it is no whole tar file"),
        (f"{WNID}.tar", lambda d: None, "it lacks the archives of n00000010; fetch ILSVRC2012_img_train.tar again"),
        ("ILSVRC2012_val_00000003.JPEG", lambda d: None, r"n00000030: it holds 1 pictures, 2 are published"),
        ("data/meta.mat", lambda d: None, "it lacks data/meta.mat"),
        ("data/meta.mat", lambda d: d[:300], "data/meta.mat is not that of ImageNet 2012"),
        ("data/meta.mat", lambda d: d.replace(WNID.encode(), b"../../../"), "is no WordNet id|is not that of ImageNet 2012"),
        ("data/ILSVRC2012_validation_ground_truth.txt", lambda d: b"2\n4\n", "picture 2 is of class b'4', which"),
        ("data/ILSVRC2012_validation_ground_truth.txt", lambda d: b"cat\n", "picture 1 is of class b'cat', which"),
        ("data/ILSVRC2012_validation_ground_truth.txt", lambda d: b"", "is empty"),
        ("data/ILSVRC2012_validation_ground_truth.txt", lambda d: b"2\n", "is none of the 1 validation pictures"),
    ],
)  # fmt: skip
def test_damaged_and_hostile_archives_are_named_and_write_nothing_outside(
    part: str, change: Callable[[bytes], bytes | None], words: str, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    root = write(tmp_path / "a" / "b", damaged(part, change))
    with pytest.raises(VitcoreError, match=words) as caught:
        prepare_imagenet(root)
    assert "\n" not in str(caught.value)
    assert not [
        p
        for p in tmp_path.rglob("*.JPEG")
        if not p.is_relative_to(root / "train") and not p.is_relative_to(root / ".val.partial")
    ]
    assert not (root / "train" / WNID).exists() or not part.startswith(WNID)
    assert prepare_imagenet(write(root)) == COUNTS, "with whole archives it goes on from there"
    check(root)


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        link = tarfile.TarInfo(f"{WNID}_0.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(VitcoreError, match=r"'n00000010_0.JPEG' is no picture of the class"):
        prepare_imagenet(write(tmp_path, damaged(f"{WNID}.tar", lambda d: out.getvalue())))


def test_an_archive_that_was_cut_is_named(tmp_path: Path) -> None:
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        path = write(tmp_path) / name
        path.write_bytes(path.read_bytes()[: 600 if path.suffix == ".tar" else path.stat().st_size // 2])
        with pytest.raises(VitcoreError, match=f"{path}: it (is no whole tar file|cannot be read|lacks)"):
            prepare_imagenet(tmp_path)


def test_too_little_room_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=30_000))
    with pytest.raises(VitcoreError, match=r"imagenet: .* needs 0.0 GB more and has 0.0 GB free; make room there"):
        prepare_imagenet(write(tmp_path))
    assert not (tmp_path / "train").exists() and not (tmp_path / "val").exists()


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with imagenet._alone(tmp_path), pytest.raises(VitcoreError, match="is being sorted by another process"):
        prepare_imagenet(tmp_path)


def test_a_class_with_too_few_pictures_is_named_before_the_work_begins(tmp_path: Path) -> None:
    prepare_imagenet(write(tmp_path))
    next((tmp_path / "train" / WNID).iterdir()).unlink()
    shutil.rmtree(tmp_path / "train" / "n00000030")
    with pytest.raises(VitcoreError, match=f"train/{WNID}: it holds 2 pictures, 3 are published; remove the folder"):
        prepare_imagenet(tmp_path)
    assert not (tmp_path / "train" / "n00000030").exists()


def test_without_scipy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(
        VitcoreError, match=r"meta.mat: MATLAB's file is read by scipy .*pip install 'vitcore\[imagenet\]'"
    ):
        devkit.read_devkit(write(tmp_path) / devkit.ARCHIVE)
