"""Data sets of Hugging Face's `datasets`, made here with the package itself; the hub is never asked."""

from __future__ import annotations

import io
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitcore.data.datasets import Dataset, find_dataset, open_dataset
from vitcore.data.decode import UnreadablePicture
from vitcore.data.formats.hf import Rows
from vitcore.errors import VitcoreError

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Asking for an address is an error of the test, and the package's cache is the test's own."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        pytest.fail(f"the network was asked: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(number: int, side: int = 8) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, "png")
    return out.getvalue()


def rows(count: int, picture: str = "img", label: str = "label", **more: Any) -> Any:
    """A split: pictures as bytes, classes cat, dog and emu, and further columns as (feature, values)."""
    features = {picture: datasets.Image(), label: datasets.ClassLabel(names=["cat", "dog", "emu"])}
    values = {
        picture: [{"bytes": png(n), "path": f"{n}.png"} for n in range(count)],
        label: [n % 3 for n in range(count)],
    }
    for name, (feature, column) in more.items():
        features[name], values[name] = feature, column
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def saved(root: Path, **splits: Any) -> Path:
    datasets.disable_progress_bars()
    datasets.DatasetDict(splits).save_to_disk(str(root / "saved"))
    datasets.enable_progress_bars()
    return root / "saved"


def open_hf(name: str, path: Path | None = None, **options: Any) -> Dataset:
    return open_dataset(name, img_size=8, channels=3, data_path=path, workers=0, **options)


def test_a_saved_data_set_is_read_with_its_pictures_still_encoded(tmp_path: Path) -> None:
    data = open_hf("hf:mine", saved(tmp_path, train=rows(7), validation=rows(4), test=rows(5)))
    assert (data.name, len(data.train), len(data.eval), data.class_names) == ("hf:mine", 7, 4, ["cat", "dog", "emu"])
    indices = np.array([5, 0, 3])
    images, labels, _ = data.train.load(indices, indices, 0, None)
    expected = [torch.from_numpy(np.array(Image.open(io.BytesIO(png(n))))).permute(2, 0, 1) for n in indices.tolist()]
    assert torch.equal(images, torch.stack(expected)) and labels.tolist() == [2, 0, 0]
    source = data.train._source  # type: ignore[attr-defined]
    assert source.read(5) == png(5) and source.where(5) == "hf:mine[train]: row 5 (5.png)"
    pickled = pickle.dumps(source)
    assert len(pickled) < 4000 and pickle.loads(pickled).read(6) == png(6)


def test_test_is_evaluated_on_where_there_is_no_other(tmp_path: Path) -> None:
    assert len(open_hf("hf:mine", saved(tmp_path, train=rows(3), test=rows(5))).eval) == 5


def test_a_folder_of_pictures_is_read_by_the_package(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "folder" / part / name
            folder.mkdir(parents=True)
            for n in range(count):
                (folder / f"{n}.png").write_bytes(png(n))
    data = open_hf(f"hf:{tmp_path / 'folder'}")
    assert (len(data.train), len(data.eval), data.class_names) == (6, 4, ["cat", "dog"])
    source = data.train._source  # type: ignore[attr-defined]
    assert source.read(1) == png(1) and "cat/1.png" in source.where(1)
    (tmp_path / "folder" / "train" / "cat" / "1.png").unlink()
    with pytest.raises(VitcoreError, match=r"row 1 \(.*cat/1.png\): not a readable picture \(No such file"):
        data.train.load(np.array([1]), np.array([1]), 0, None)


def test_columns_are_found_by_type_and_of_several_by_name(tmp_path: Path) -> None:
    coarse = (datasets.ClassLabel(names=["animal"]), [0] * 4)
    split = rows(4, "picture", "fine_label", coarse_label=coarse, text=(datasets.Value("string"), ["x"] * 4))
    assert open_hf("hf:mine", saved(tmp_path, train=split, test=split)).class_names == ["cat", "dog", "emu"]


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (lambda: rows(4, "a", b=(datasets.Image(), [{"bytes": png(1), "path": None}] * 4)),
         r"it has several columns of pictures \(Image\): a \(Image\), label \(ClassLabel\), b \(Image\); cast"),
        (lambda: rows(4, label="a", b=(datasets.ClassLabel(names=["x"]), [0] * 4)),
         r"it has several columns of classes \(ClassLabel\)"),
        (lambda: rows(4).cast_column("label", datasets.Value("int64")), r"it has no column of classes \(ClassLabel\)"),
        (lambda: rows(4).remove_columns("img"), r"it has no column of pictures \(Image\)"),
        (lambda: datasets.Dataset.from_dict(
            {"image": [{"bytes": png(1), "path": None}] * 2, "label": [0, -1]},
            features=datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"]))),
         r"it has label -1, classes are 0 to 0 \(-1 where they are kept secret\)"),
        (lambda: datasets.Dataset.from_dict(
            {"image": [{"bytes": png(1), "path": None}] * 2, "label": [0, None]},
            features=datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"]))),
         "column 'label' lacks classes"),
    ],
)  # fmt: skip
def test_columns_that_do_not_serve_are_named(split: Any, words: str, tmp_path: Path) -> None:
    path = saved(tmp_path, train=split(), test=rows(3))
    with pytest.raises(VitcoreError, match=f"^hf:mine: split 'train': {words}"):
        open_hf("hf:mine", path)


def test_splits_that_are_missing_or_differ_are_named(tmp_path: Path) -> None:
    with pytest.raises(VitcoreError, match="hf:mine: it has no split 'train', only 'test'"):
        open_hf("hf:mine", saved(tmp_path / "a", test=rows(3)))
    with pytest.raises(VitcoreError, match=r"hf:mine: it has no split to evaluate on \(validation, .*\), only 'train'"):
        open_hf("hf:mine", saved(tmp_path / "b", train=rows(3)))
    other = rows(3).cast_column("label", datasets.ClassLabel(names=["cat", "dog", "owl"]))
    with pytest.raises(VitcoreError, match="the splits 'train' and 'test' have different classes"):
        open_hf("hf:mine", saved(tmp_path / "c", train=rows(3), test=other))


def test_a_row_without_a_picture_is_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    split = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(1), "path": None}, None, {"bytes": b"none", "path": None}], "label": [0, 0, 0]},
        features=datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"])),
    )
    data = open_hf("hf:mine", saved(tmp_path, train=split, test=split), bad_images="skip")
    indices = np.arange(3)
    assert data.train.load(indices, indices, 0, None)[2].tolist() == [1, 0, 0] and data.train.bad_images == 2


def test_what_is_not_here_is_not_fetched_unasked_and_the_libraries_are_left_as_they_were(tmp_path: Path) -> None:
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()
    with pytest.raises(
        VitcoreError, match=r"hf:some-one/thing: it could not be opened \(.*\); add --download to fetch it"
    ):
        open_hf("hf:some-one/thing")
    with pytest.raises(VitcoreError, match=r"hf:some-one/thing:config: it could not be opened"):
        open_hf("hf:some-one/thing:config")
    assert (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()) == before


def test_download_lets_the_package_ask_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    asked: list[Any] = []

    def load(name: str, config: str | None) -> Any:
        asked.append((name, config, datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE))
        raise ConnectionError("no way out")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for download, remedy in ((True, "check the name and the network"), (False, "add --download")):
        with pytest.raises(VitcoreError, match=rf"it could not be opened \(no way out\); {remedy}"):
            open_hf("hf:some-one/thing:plain", download=download)
    assert asked == [("some-one/thing", "plain", offline, offline) for offline in (False, True)]


def test_a_folder_that_holds_no_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(VitcoreError, match=r"hf:mine: .*/absent is not a folder; give one that save_to_disk wrote"):
        open_hf("hf:mine", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VitcoreError, match=r"hf:mine: .*/empty is no data set that `datasets` opens"):
        open_hf("hf:mine", tmp_path / "empty")
    path = saved(tmp_path, train=rows(3), test=rows(3))
    next((path / "train").glob("*.arrow")).write_bytes(b"damaged")
    with pytest.raises(VitcoreError, match=r"hf:mine: .*/saved is no data set that `datasets` opens") as caught:
        open_hf("hf:mine", path)
    assert "\n" not in str(caught.value)


def test_names_are_checked_before_torch_and_the_package_are_imported() -> None:
    code = (
        "import sys; from vitcore.data.datasets import find_dataset\n"
        "assert find_dataset('hf:a/b:c') == find_dataset('hf:mnist') == 'vitcore.data.formats.hf:open_hf'\n"
        "assert not {'torch', 'datasets'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for name in ("hf:", "hf::"):
        with pytest.raises(VitcoreError, match="has no name; write hf:NAME"):
            find_dataset(name)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(VitcoreError, match=r"hf:mine: this needs the package datasets .*pip install 'vitcore\[hf\]'"):
        open_hf("hf:mine")


def test_a_row_whose_file_is_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    table = [{"image": {"bytes": None, "path": str(tmp_path / "pipe.jpg")}}]
    with pytest.raises(UnreadablePicture, match="no regular file"):
        Rows(table, "image", np.zeros(1, np.int64), "made up").read(0)
