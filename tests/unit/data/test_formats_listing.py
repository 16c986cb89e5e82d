"""The index of a large folder's listing: the same pictures as a plain walk, what changed is found, what is damaged is said."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcore.data.formats import listing
from vitcore.data.formats.folder import Files
from vitcore.data.formats.index import DamagedIndex, Index, open_index, write_index
from vitcore.data.formats.tree import read_tree
from vitcore.data.formats.walk import EXTENSIONS, LocalDisk, Stamp
from vitcore.errors import VitcoreError


class Simulated:
    """A file system that holds only names: folders by path, with the names in each."""

    def __init__(self, folders: dict[str, list[str]]) -> None:
        self.folders = folders
        self.times = dict.fromkeys(folders, 1)
        self.scanned: list[str] = []

    def stamp(self, folder: str) -> tuple[Stamp, tuple[int, int]]:
        if folder not in self.folders:
            raise FileNotFoundError(2, "No such file or directory")
        return Stamp(self.times[folder], self.times[folder]), (0, hash(folder))

    def scan(self, folder: str) -> Iterator[tuple[str, bool]]:
        self.scanned.append(folder)
        for name in self.folders[folder]:
            yield name, f"{folder}/{name}" in self.folders


def many(root: Path, classes: int, pictures: int) -> Simulated:
    folders: dict[str, list[str]] = {}
    for part in ("train", "val"):
        folders[f"{root}/{part}"] = [f"n{c:04d}" for c in range(classes)]
        for c in range(classes):
            # Not in order, as a file system gives them.
            folders[f"{root}/{part}/n{c:04d}"] = [f"n{c:04d}_{(i * 7919) % pictures}.JPEG" for i in range(pictures)]
    return Simulated(folders)


def paths(pictures: listing.Listing) -> list[str]:
    return [pictures.path(i) for i in range(len(pictures))]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However few the pictures, and however fresh the folders, an index is kept and believed."""
    monkeypatch.setattr(listing, "INDEX_FROM", 0)
    monkeypatch.setattr(listing, "SETTLE_NS", 0)
    monkeypatch.setenv("VITCORE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for part in ("train", "val"):
        for name, files in {
            "cat": ["b.png", "a.jpg", "notes.txt"],
            "dog": ["x/2.png", "x/1.png", "x-1.png", "y.WEBP"],
        }.items():
            for file in files:
                path = root / part / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.encode())
    return root


def test_twenty_thousand_pictures_are_listed_once_and_then_mapped(tmp_path: Path) -> None:
    disk = many(tmp_path, 20, 1000)
    first = read_tree(tmp_path, "folder", disk)
    assert len(disk.scanned) == 42
    disk.scanned.clear()
    again = read_tree(tmp_path, "folder", disk)
    assert disk.scanned == [f"{tmp_path}/train", f"{tmp_path}/val"], "the classes are looked for, the pictures are not"
    for part, one, two in zip(("train", "val"), first, again, strict=True):
        expected = [f"{tmp_path}/{part}/n{c:04d}/{name}" for c in range(20)
                    for name in sorted(disk.folders[f"{tmp_path}/{part}/n{c:04d}"])]  # fmt: skip
        assert paths(one) == paths(two) == expected
        assert one.labels.tolist() == two.labels.tolist() == np.repeat(np.arange(20), 1000).tolist()
        assert two.index.path == tmp_path.resolve() / ".vitcore" / f"{part}.index"
        assert len(pickle.dumps(two)) < 500, "a worker gets the path of the index"
        assert paths(pickle.loads(pickle.dumps(two))) == expected


def test_few_pictures_leave_no_file_and_are_pickled_as_arrays(tree: Path) -> None:
    train, _ = read_tree(tree, "folder")
    assert sorted(p.name for p in tree.iterdir()) == ["train", "val"] and train.index.path is None
    assert paths(pickle.loads(pickle.dumps(train))) == paths(train)


def test_the_listing_is_a_sorted_walk_at_any_depth(tree: Path) -> None:
    train, _ = read_tree(tree, "folder")
    names = [os.path.relpath(p, tree / "train") for p in paths(train)]
    assert names == ["cat/a.jpg", "cat/b.png", "dog/x-1.png", "dog/x/1.png", "dog/x/2.png", "dog/y.WEBP"]
    assert train.labels.tolist() == [0, 0, 1, 1, 1, 1] and train.class_names == ["cat", "dog"]
    files = Files(train)
    assert files.read(4) == b"x/2.png" and files.where(4) == str(tree / "train" / "dog" / "x" / "2.png")


@pytest.mark.usefixtures("kept")
def test_a_folder_that_changed_is_listed_again_and_it_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[str] = []
    scan = LocalDisk.scan
    monkeypatch.setattr(
        LocalDisk, "scan", lambda self, folder: (scanned.append(os.path.relpath(folder, tree)), scan(self, folder))[1]
    )

    def read() -> list[str]:
        scanned.clear()
        return [os.path.relpath(p, tree / "train") for p in paths(read_tree(tree, "folder")[0])]

    first = read()
    assert read() == first and scanned == ["train", "val"]
    (tree / "train" / "dog" / "x" / "3.png").write_bytes(b"new")
    assert read() == [*first[:5], "dog/x/3.png", first[5]] and scanned == ["train", "train/dog", "train/dog/x", "val"]
    (tree / "train" / "cat" / "a.jpg").unlink()
    (tree / "train" / "dog" / "x" / "3.png").unlink()
    assert read() == first[1:] and "train/cat" in scanned
    for part in ("train", "val"):
        (tree / part / "bird").mkdir()
        (tree / part / "bird" / "1.gif").write_bytes(b"")
    assert read() == ["bird/1.gif", *first[1:]] and scanned == ["train", "train/bird", "val", "val/bird"]
    assert read_tree(tree, "folder")[0].labels.tolist() == [0, 1, 2, 2, 2, 2]
    (tree / "train" / "bird").rename(tree / "train" / "emu")
    (tree / "val" / "bird").rename(tree / "val" / "emu")
    assert read() == [*first[1:], "emu/1.gif"]
    assert read() == [*first[1:], "emu/1.gif"] and scanned == ["train", "val"]


def test_times_that_were_set_back_do_not_hide_a_change(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "INDEX_FROM", 0)
    monkeypatch.setattr(listing, "SETTLE_NS", 0)
    folder = tree / "train" / "cat"
    before = folder.stat()
    read_tree(tree, "folder")
    (folder / "c.png").write_bytes(b"")
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(read_tree(tree, "folder")[0]) == 7


def test_a_folder_that_had_just_changed_is_not_believed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "INDEX_FROM", 0)
    read_tree(tree, "folder")
    scanned: list[str] = []
    scan = LocalDisk.scan
    monkeypatch.setattr(LocalDisk, "scan", lambda self, folder: (scanned.append(folder), scan(self, folder))[1])
    read_tree(tree, "folder")
    assert str(tree / "train" / "cat") in scanned


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1], "it does not match its digest"),
        (lambda data: data[:20], "it is cut off, or of another version"),
        (lambda data: b"", "it is cut off, or of another version"),
        (lambda data: b"another file" * 9, "it is cut off, or of another version"),
        (lambda data: data[:60] + b"?" + data[61:], "it does not match its digest"),
    ],
)  # fmt: skip
def test_a_damaged_index_is_made_anew_and_said_in_one_line(
    damage, reason: str, tree: Path, caplog: pytest.LogCaptureFixture
) -> None:  # type: ignore[no-untyped-def]
    first = paths(read_tree(tree, "folder")[0])
    path = tree / ".vitcore" / "train.index"
    path.write_bytes(damage(path.read_bytes()))
    caplog.clear()
    assert paths(read_tree(tree, "folder")[0]) == first
    said = [r.getMessage() for r in caplog.records if "not used" in r.getMessage()]
    assert said == [f"{path}: not used ({reason}); the folders are listed anew"]
    caplog.clear()
    read_tree(tree, "folder")
    assert "not used" not in caplog.text


@pytest.mark.usefixtures("kept")
def test_where_the_data_cannot_be_written_the_index_is_in_the_cache(tree: Path, tmp_path: Path) -> None:
    (tree / ".vitcore").write_text("a file, so that no folder can be made")
    train, _ = read_tree(tree, "folder")
    assert train.index.path is not None and train.index.path.parent == tmp_path / "cache" / "indexes"
    assert read_tree(tree, "folder")[0].index.digest == train.index.digest


@pytest.mark.usefixtures("kept")
def test_where_nothing_can_be_written_it_is_said_and_the_run_goes_on(
    tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tree / ".vitcore").write_text("")
    monkeypatch.setenv("VITCORE_CACHE", "/dev/null/cache")
    train, _ = read_tree(tree, "folder")
    assert len(train) == 6 and train.index.path is None
    assert f"the listing of {tree / 'train'} could not be kept in " in caplog.text


@pytest.mark.usefixtures("kept")
def test_an_index_that_was_replaced_is_not_taken_for_the_one_that_was_handed_on(tree: Path) -> None:
    data = pickle.dumps(read_tree(tree, "folder")[0])
    (tree / "train" / "cat" / "new.png").write_bytes(b"")
    read_tree(tree, "folder")
    with pytest.raises(VitcoreError, match=r"train.index: the listing of the data was replaced since the run began"):
        pickle.loads(data)
    (tree / ".vitcore" / "train.index").unlink()
    with pytest.raises(
        VitcoreError, match=r"train.index: the listing of the data cannot be read again \(.*No such file"
    ):
        pickle.loads(data)


@pytest.mark.usefixtures("kept")
def test_files_of_other_kinds_are_counted_from_the_index_too(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "vitcore"):
            read_tree(tree, "folder")
        assert f"folder: {tree / 'train'}: 1 files are not pictures" in caplog.text


def test_hidden_folders_are_left_out_and_links_are_followed(tree: Path) -> None:
    (tree / "train" / "cat" / ".thumbnails").mkdir()
    (tree / "train" / "cat" / ".thumbnails" / "a.png").write_bytes(b"")
    (tree / "elsewhere").mkdir()
    (tree / "elsewhere" / "far.png").write_bytes(b"far")
    (tree / "train" / "cat" / "linked").symlink_to(tree / "elsewhere")
    (tree / "train" / "cat" / "c.png").symlink_to(tree / "elsewhere" / "far.png")
    (tree / "train" / "dangling").symlink_to(tree / "nowhere")
    train, _ = read_tree(tree, "folder")
    names = [os.path.relpath(p, tree / "train") for p in paths(train)]
    assert names[:4] == ["cat/a.jpg", "cat/b.png", "cat/c.png", "cat/linked/far.png"] and train.class_names == [
        "cat",
        "dog",
    ]


def test_a_link_to_a_folder_above_is_named(tree: Path) -> None:
    (tree / "train" / "dog" / "x" / "up").symlink_to(tree / "train" / "dog")
    with pytest.raises(VitcoreError, match="train/dog/x/up is a link to a folder above it; remove the link"):
        read_tree(tree, "folder")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    class Forbidden(Simulated):
        def scan(self, folder: str) -> Iterator[tuple[str, bool]]:
            if folder.endswith("n0001"):
                raise PermissionError(13, "Permission denied")
            return super().scan(folder)

    with pytest.raises(VitcoreError, match=r"train/n0001 cannot be listed \(Permission denied\); make it readable"):
        read_tree(tmp_path, "folder", Forbidden(many(tmp_path, 2, 3).folders))


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=8)
PICTURES = st.builds(lambda name, ending: name + ending, NAMES, st.sampled_from([*EXTENSIONS, ".PNG", ".txt", ""]))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.lists(PICTURES, min_size=1, max_size=6, unique=True), min_size=1, max_size=5))
def test_any_names_give_the_same_listing_by_the_index_as_by_sorting(classes: dict[str, list[str]]) -> None:
    classes = {f"c{n}": [*names, "one.png"] for n, names in classes.items()}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "INDEX_FROM", 0)
        root = Path(name)
        folders = {f"{root}/{p}": list(classes) for p in ("train", "val")}
        folders |= {f"{root}/{p}/{c}": names for p in ("train", "val") for c, names in classes.items()}
        expected = [f"{root}/train/{c}/{f}" for c in sorted(classes) for f in sorted(set(classes[c]))
                    if f.lower().endswith(EXTENSIONS) and not f.startswith(".")]  # fmt: skip
        disk = Simulated({path: sorted(set(names)) for path, names in folders.items()})
        for _ in range(2):
            train, _ = read_tree(root, "folder", disk)
            assert paths(train) == expected and train.index.path is not None
            assert [train.class_names[label] for label in train.labels] == [p.split("/")[-2] for p in expected]


def test_names_that_are_no_utf_8_are_found_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "INDEX_FROM", 0)
    raw = os.fsencode(tree / "train" / "cat") + b"/\xff\xfe.png"
    with open(raw, "wb") as file:
        file.write(b"raw")
    files = Files(pickle.loads(pickle.dumps(read_tree(tree, "folder")[0])))
    assert files.read(2) == b"raw" and os.fsencode(files.where(2)) == raw


def test_an_index_holds_arrays_of_any_shape_and_is_refused_as_another_kind(tmp_path: Path) -> None:
    arrays = {"a": np.arange(7, dtype=np.uint8), "b": np.ones((3, 2), np.int64), "none": np.empty((0, 2), np.int64)}
    made = write_index(tmp_path / "x.index", "things", {"n": 1}, arrays)
    assert made.facts == {"n": 1} and all(
        np.array_equal(made.arrays[n], a) and made.arrays[n].dtype == a.dtype for n, a in arrays.items()
    )
    assert not made.arrays["b"].flags.writeable
    with pytest.raises(DamagedIndex, match="it is an index of 'things', not of 'others'"):
        open_index(tmp_path / "x.index", "others")
    assert [p.name for p in tmp_path.iterdir()] == ["x.index"]
    with pytest.raises(TypeError):
        write_index(tmp_path / "y.index", "things", {"n": object()}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.index"], "what could not be written leaves nothing"
    assert pickle.loads(pickle.dumps(Index({"n": 1}, {}))).facts == {"n": 1}


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.integers(1, 255), st.booleans())
def test_any_byte_that_changes_makes_an_index_damaged(place: int, change: int, cut: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "x.index")
        write_index(path, "things", {"n": 1}, {"a": np.arange(20)})
        data = bytearray(path.read_bytes())
        place %= len(data)
        data[place] ^= change
        path.write_bytes(data[:place] if cut else data)
        with pytest.raises(DamagedIndex):
            open_index(path, "things")


# A file system of CLASSES folders with PICTURES names each, which are made as they are asked for.
JOB = """
import json, sys, time
from pathlib import Path
from vitcore.data.formats.tree import read_tree
from vitcore.data.formats.walk import Stamp
root, classes, pictures = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

class Disk:
    def stamp(self, folder):
        return Stamp(1, 1), (0, hash(folder))
    def scan(self, folder):
        name = folder.rpartition("/")[2]
        if name in ("train", "val"):
            return ((f"n{c:08d}", True) for c in range(classes))
        count = pictures if "/train/" in folder else 5
        return ((f"{name}_{(i * 7919) % count}.JPEG", False) for i in range(count))

began = time.perf_counter()
train, val = read_tree(root, "folder", Disk())
seconds = time.perf_counter() - began
last = train.path(len(train) - 1)
# Not ru_maxrss, which a process inherits from the one that started it.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"seconds": seconds, "megabytes": int(status["VmHWM"].split()[0]) / 1024,
                  "pictures": len(train), "last": last, "heavy": "torch" in sys.modules}))
"""


def job(root: Path, classes: int, pictures: int) -> dict[str, object]:
    argv = [sys.executable, "-c", JOB, str(root), str(classes), str(pictures)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=900, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_ten_million_pictures_open_in_ten_seconds_and_300_megabytes(tmp_path: Path) -> None:
    first = job(tmp_path, 1000, 10_000)
    again = job(tmp_path, 1000, 10_000)
    print("first", first, "again", again, "bytes", (tmp_path / ".vitcore" / "train.index").stat().st_size)
    assert first["pictures"] == again["pictures"] == 10_000_000 and first["last"] == again["last"]
    assert again["seconds"] < 10 and again["megabytes"] < 300  # type: ignore[operator]


def test_a_hundred_thousand_pictures_open_in_the_memory_of_none(tmp_path: Path) -> None:
    job(tmp_path, 100, 1000)
    again, none = job(tmp_path, 100, 1000), job(tmp_path / "none", 1, 1)
    assert again["pictures"] == 100_000 and not again["heavy"]
    # A list of their paths would take 12 MB.
    assert again["megabytes"] < none["megabytes"] + 6  # type: ignore[operator]
