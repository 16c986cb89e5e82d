"""IDX files, the format of MNIST: what is read, what is refused. The files are written here."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from vitcore.data.datasets import Dataset, open_dataset
from vitcore.data.formats import idx
from vitcore.errors import VitcoreError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 5, 6), dtype=np.uint8)
LABELS = np.array([0, 3, 1, 2, 2, 1, 0], dtype=np.uint8)


def packed(values: np.ndarray) -> bytes:
    """An array as an IDX file."""
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    return head + values.tobytes()


def write(
    root: Path, images: np.ndarray = GREY, labels: np.ndarray = LABELS, *, dots: bool = False, zipped: bool = False
) -> None:
    for part, count in (("train", len(images)), ("t10k", 3)):
        for what, values in ((f"images-idx{images.ndim}", images), ("labels-idx1", labels)):
            name = f"{part}-{what}-ubyte"
            data = packed(values[:count])
            path = root / (name.replace("-idx", ".idx") if dots else name)
            if zipped:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data))
            else:
                path.write_bytes(data)


def open_idx(root: Path, channels: int | None = None) -> Dataset:
    return open_dataset("idx", img_size=6, channels=channels, data_path=root, workers=0)


def everything(split) -> tuple[torch.Tensor, ...]:  # type: ignore[no-untyped-def]
    indices = np.arange(len(split))
    return split.load(indices, indices, 0, None)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dots", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_grey_files_are_read_plain_and_compressed_under_both_names(dots: bool, zipped: bool, tmp_path: Path) -> None:
    write(tmp_path, dots=dots, zipped=zipped)
    data = open_idx(tmp_path)
    assert (len(data.train), len(data.eval), data.channels, data.class_names) == (7, 3, 1, ["0", "1", "2", "3"])
    images, labels, _ = everything(data.train)
    assert images.shape == (7, 1, 6, 6) and labels.tolist() == LABELS.tolist()
    path = next(tmp_path.glob("train-images*"))
    assert np.array_equal(idx.read_idx(path), GREY)


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_pictures_of_three_channels_may_have_them_first_or_last(order: str, tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (7, 3, 6, 6), dtype=np.uint8)
    write(tmp_path, images if order == "NCHW" else np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
    data = open_idx(tmp_path)
    assert data.channels == 3 and torch.equal(everything(data.train)[0], torch.from_numpy(images))
    with pytest.raises(VitcoreError, match=r"idx: pictures have 3 channel\(s\) and the model takes 1"):
        open_idx(tmp_path, channels=1)


def test_grey_pictures_are_repeated_for_a_model_of_three_channels(tmp_path: Path) -> None:
    write(tmp_path)
    one, three = everything(open_idx(tmp_path, 1).train)[0], everything(open_idx(tmp_path, 3).train)[0]
    assert three.shape == (7, 3, 6, 6) and torch.equal(three, one.expand(-1, 3, -1, -1))


def test_a_name_with_a_prefix_is_found_and_two_data_sets_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path)
    for path in [*tmp_path.iterdir()]:
        path.rename(path.with_name(f"emnist-letters-{path.name.replace('t10k', 'test')}"))
    assert len(open_idx(tmp_path).train) == 7
    write(tmp_path)
    with pytest.raises(
        VitcoreError, match="holds emnist-letters-train-images-idx3-ubyte and train-images-idx3-ubyte; leave"
    ):
        open_idx(tmp_path)


def test_a_missing_folder_and_a_missing_file_say_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(VitcoreError, match="idx: no data path; give the folder that holds train-images-idx3-ubyte, "):
        open_dataset("idx", img_size=6)
    with pytest.raises(VitcoreError, match=r"idx: .*absent is not a folder"):
        open_idx(tmp_path / "absent")
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        VitcoreError, match=r"holds no t10k-labels-idx1-ubyte, plain or .gz; put train-images-idx3-ubyte, "
    ):
        open_idx(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "it is cut off"),
        (lambda data: data + b"\0", "it goes on after its end: its header says 7x5x6 values"),
        (lambda data: data[:9], "it is cut off"),
        (lambda data: b"", "it is no IDX file"),
        (lambda data: b"\x89PNG" + data, "it is no IDX file .it begins with 89504e47"),
        (lambda data: data[:2] + b"\x0d" + data[3:], "type 0x0d in 3 dimensions is not read"),
        (lambda data: data[:3] + b"\x02" + data[4:], "type 0x08 in 2 dimensions is not read"),
        (lambda data: data[:4] + b"\xff" * 12 + data[16:], "it is cut off: of 4294967295x4294967295x4294967295 values"),
        (lambda data: packed(GREY[:, :0]), "7x0x6 values are no pictures"),
        (lambda data: packed(LABELS), "7 values are no pictures"),
        (lambda data: packed(np.zeros((7, 3, 5, 3), np.uint8)), "7x3x5x3 values are no pictures"),
        (lambda data: packed(np.zeros((7, 2, 5, 2), np.uint8)), "7x2x5x2 values are no pictures"),
        (lambda data: packed(GREY[:6]), "6 pictures, but 7 labels in train-labels-idx1-ubyte"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [False, True])
def test_a_damaged_file_is_named(damage, words: str, zipped: bool, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    data = damage(path.read_bytes())
    if zipped:
        path.unlink()
        path = tmp_path / "train-images-idx3-ubyte.gz"
        data = gzip.compress(data)
    path.write_bytes(data)
    with pytest.raises(VitcoreError, match=words) as caught:
        open_idx(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_gzip_or_ends_early_is_named(tmp_path: Path) -> None:
    write(tmp_path, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for data in (whole[:-9], whole[:20], b"no gzip at all", whole[:30] + bytes([whole[30] ^ 255]) + whole[31:]):
        path.write_bytes(data)
        with pytest.raises(VitcoreError, match=r"train-images-idx3-ubyte.gz: it (cannot be read|is cut off|goes on)"):
            open_idx(tmp_path)


def test_a_small_file_that_claims_much_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + np.array([1 << 20] * 3, dtype=">u4").tobytes()))
    with pytest.raises(VitcoreError, match="it is cut off: of 1048576x1048576x1048576 values there is no room in it"):
        idx.read_idx(path)


def test_labels_of_more_dimensions_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(packed(GREY))
    with pytest.raises(VitcoreError, match="train-labels-idx1-ubyte: it has 3 dimensions, labels have one"):
        open_idx(tmp_path)
