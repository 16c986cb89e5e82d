"""Tar shards: read at any place as the webdataset library reads them in order, and refused where they are damaged."""

from __future__ import annotations

import gc
import io
import os
import pickle
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitcore.data.datasets import Dataset, open_dataset
from vitcore.data.feed import Feed
from vitcore.data.formats import webdataset as ours
from vitcore.data.formats.shards import read_shard
from vitcore.errors import VitcoreError

Image = pytest.importorskip("PIL.Image")
library = pytest.importorskip("webdataset")

PER_SHARD, TRAIN_SHARDS = 5, 3


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "png")
    return out.getvalue()


def samples(part: str, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Samples with names of every kind that the library takes."""
    key = {0: "{0:06d}", 1: "./deep.er/{0:06d}", 2: "x" * 120 + "{0:06d}"}
    return [
        {"__key__": f"{part}/{key[n % 3].format(n)}", "png": picture(n), "cls": n % 3, "json": {"caption": "none"}}
        for n in range(first, first + count)
    ]


def write(path: Path, those: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with library.TarWriter(str(path)) as writer:
        for sample in those:
            writer.write(sample)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for shard in range(TRAIN_SHARDS):
        write(tmp_path / "train" / f"{shard:03d}.tar", samples("t", PER_SHARD, shard * PER_SHARD))
    write(tmp_path / "val" / "000.tar", samples("v", 4))
    return tmp_path


def open_shards(root: Path | None) -> Dataset:
    return open_dataset("webdataset", img_size=8, channels=3, data_path=root, workers=0)


def source(data: Dataset) -> ours.Shards:
    found = data.train._source  # type: ignore[attr-defined]
    assert isinstance(found, ours.Shards)
    return found


def add(tar: tarfile.TarFile, name: str, content: bytes, **more: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in more.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def by_hand(path: Path, *files: tuple[str, bytes], **more: Any) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            add(tar, name, content, **more)
    return path


def test_the_samples_are_those_that_the_library_reads_in_its_order(root: Path) -> None:
    data = open_shards(root)
    assert (len(data.train), len(data.eval), data.num_classes) == (TRAIN_SHARDS * PER_SHARD, 4, 3)
    urls = [str(path) for path in sorted((root / "train").glob("*.tar"))]
    theirs = [*library.WebDataset(urls, shardshuffle=False, empty_check=False)]
    shards = source(data)
    assert len(theirs) == len(shards)
    for index, sample in enumerate(theirs):
        assert shards.read(index) == sample["png"] and shards.labels[index] == int(sample["cls"])
        place, _, name = shards.where(index).partition(": ")
        assert place == urls[index // PER_SHARD] and (name in f"{sample['__key__']}.png" and len(name) >= 10)
    indices = np.array([14, 0, 7])
    images, labels, weight = data.train.load(indices, indices, 0, None)
    assert labels.tolist() == [2, 0, 1] and weight.tolist() == [1, 1, 1]
    assert torch.equal(images[1], torch.from_numpy(np.array(Image.open(io.BytesIO(picture(0))))).permute(2, 0, 1))


def test_shards_beside_each_other_are_found_by_their_names(root: Path) -> None:
    for part in ("train", "val"):
        for path in (root / part).iterdir():
            path.rename(root / f"{'validation' if part == 'val' else part}-{path.name}")
        (root / part).rmdir()
    data = open_shards(root)
    assert (len(data.train), len(data.eval)) == (15, 4)


def test_classes_have_the_names_of_the_list_beside_the_shards(root: Path) -> None:
    assert open_shards(root).class_names == ["0", "1", "2"]
    (root / "classnames.txt").write_text("cat\ndog\nemu\nowl\n")
    assert open_shards(root).class_names == ["cat", "dog", "emu", "owl"]
    (root / "classnames.txt").write_text("cat\ndog\n")
    with pytest.raises(VitcoreError, match=r"classnames.txt: it names 2 classes, the shards hold 3"):
        open_shards(root)


def test_a_shard_is_read_once_and_again_when_it_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(ours, "read_shard", lambda path: (read.append(path.name), read_shard(path))[1])
    first = source(open_shards(root))
    assert read == ["000.tar", "001.tar", "002.tar", "000.tar"]
    read.clear()
    second = source(open_shards(root))
    assert not read and [second.read(i) for i in range(15)] == [first.read(i) for i in range(15)]
    write(root / "train" / "001.tar", samples("t", 7, 100))
    third = source(open_shards(root))
    assert (
        read == ["001.tar"] and len(third) == 17 and third.read(5) == picture(100) and third.read(14) == first.read(12)
    )
    (root / "train" / "000.tar").unlink()
    assert len(open_shards(root).train) == 12 and read == ["001.tar"]


def test_a_damaged_index_is_written_anew_with_one_line(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_shards(root)
    path = root / ".vitcore" / "shards-train.index"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert len(open_shards(root).train) == 15
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: not used (it does not match its digest); the shards are read anew"
    ]
    assert path.read_bytes() == whole


def test_the_source_is_small_when_pickled_and_reads_the_same_from_many_threads(root: Path) -> None:
    first = source(open_shards(root))
    first.read(0)
    data = pickle.dumps(first)
    assert len(data) < 600
    again = pickle.loads(data)
    wrong: list[int] = []

    def read(start: int) -> None:
        for index in range(start, start + 60):
            if again.read(index % 15) != first.read(index % 15):
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_more_shards_than_may_be_open_leave_no_file_open_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held() -> list[str]:
        links = [Path("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
        return [
            name for link in links if link.is_symlink() and (name := os.readlink(link)).startswith(f"{root}/train/")
        ]

    monkeypatch.setattr(ours, "MOST_OPEN", 2)
    shards = source(open_shards(root))
    assert [shards.read(i) for i in range(15)] == [picture(i) for i in range(15)]
    assert sorted(held()) == [f"{root}/train/000.tar", f"{root}/train/001.tar"]
    del shards
    gc.collect()
    assert not held()


def test_the_order_does_not_depend_on_the_number_of_workers(root: Path) -> None:
    seen = []
    for workers in (0, 2):
        data = open_dataset("webdataset", img_size=8, data_path=root, workers=workers, loader="threads")
        feed = Feed(data, seed=3, micro_batch=5)
        cursor, labels = 0, []
        for _ in range(6):
            batch, cursor = feed.next_train(cursor)
            labels.append(batch.images.clone())
        seen.append(torch.cat(labels))
        feed.close()
    assert torch.equal(seen[0], seen[1])


def test_a_shard_that_shrank_since_is_named(root: Path) -> None:
    shards = source(open_shards(root))
    path = root / "train" / "002.tar"
    with open(path, "r+b") as file:
        file.truncate(700)
    with pytest.raises(Exception, match=r"the shard ends after \d+ of its \d+ bytes"):
        shards.read(14)
    assert shards.where(14).startswith(f"{path}: at byte ")


def test_missing_shards_say_what_belongs_where(root: Path, tmp_path: Path) -> None:
    with pytest.raises(VitcoreError, match="webdataset: no data path; give the folder that holds the shards"):
        open_shards(None)
    with pytest.raises(VitcoreError, match="absent is not a folder"):
        open_shards(tmp_path / "absent")
    (root / "val" / "000.tar").unlink()
    with pytest.raises(
        VitcoreError, match=r"webdataset: .* holds no val/\*.tar or val-\*.tar; put the shards there, each sample"
    ):
        open_shards(root)


PNG = picture(0)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("a.png", PNG)], "sample 'a' has no .cls"),
        ([("a.cls", b"1")], r"sample 'a' has no picture \(jpg, "),
        ([("a.cls", b"1"), ("b.png", PNG), ("a.png", PNG), ("b.cls", b"1")], "sample 'a' has no picture"),
        ([("a.png", PNG), ("a.jpg", PNG), ("a.cls", b"1")], "sample 'a' has two pictures"),
        ([("a.png", PNG), ("a.cls", b"1"), ("a.CLS", b"1")], "'a.CLS' is no class"),
        ([("a.png", PNG), ("a.cls", b"-1")], "'a.cls' is no class .b'-1'.; write a whole number"),
        ([("a.png", PNG), ("a.cls", b"cat")], "is no class .b'cat'"),
        ([("a.png", PNG), ("a.cls", b"9" * 12)], "is no class"),
        ([("a.png", PNG), ("a.cls", b"1" * 3000)], "is no class"),
        ([("a.png", PNG), ("a.cls", "\u0661".encode())], "is no class"),
        ([("notes.txt", b"none")], "it holds no samples"),
        ([], "it holds no samples"),
    ],
)  # fmt: skip
def test_shards_of_other_things_are_named(files: list[tuple[str, bytes]], words: str, tmp_path: Path) -> None:
    path = by_hand(tmp_path / "a.tar", *files)
    with pytest.raises(VitcoreError, match=f"{path}: .*{words}") as caught:
        read_shard(path)
    assert "\n" not in str(caught.value)


def test_what_the_library_passes_over_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "__meta__.json", b"{}")
        add(tar, "README", b"none")
        add(tar, "folder.png", b"", type=tarfile.DIRTYPE)
        add(tar, "link.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "a.PNG", PNG)
        add(tar, "a.left.png", PNG)
        add(tar, "a.cls", b" 7\n")
    found = read_shard(path)
    assert found.labels == [7] and path.read_bytes()[found.starts[0] :][: found.sizes[0]] == PNG


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:700], "it is no whole tar file"),
        (lambda data: data[:1024], "no end mark: it is cut off|it is no whole tar file"),
        (lambda data: data[: 4 * 512], "no end mark: it is cut off|no whole tar"),
        (lambda data: data.rstrip(b"\0")[:-1], "it is no whole tar file|is cut off|damaged header"),
        (lambda data: b"", "it is no whole tar file"),
        (lambda data: b"x" * 2048, "it is no whole tar file"),
        (lambda data: b"\x1f\x8b\x08" + data, "it is compressed"),
        (lambda data: data[:20] + b"!" + data[21:], "it is no whole tar file"),
        (lambda data: data.replace(b"a.cls\0", b"b.cls\0"), "after 1024 bytes there is a damaged header"),
    ],
)  # fmt: skip
def test_a_damaged_shard_is_named(damage: Callable[[bytes], bytes], words: str, tmp_path: Path) -> None:
    path = by_hand(tmp_path / "a.tar", ("a.png", PNG[:100]), ("a.cls", b"1"))
    assert read_shard(path).sizes == [100]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(VitcoreError, match=f"{path}: .*({words})"):
        read_shard(path)


def test_a_member_of_negative_size_does_not_turn_the_reader_around(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.png")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + (-512 & 0xFFFF).to_bytes(2, "big")
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header) * 2 + bytes(1024))
    with pytest.raises(VitcoreError, match=f"{path}: "):
        read_shard(path)
