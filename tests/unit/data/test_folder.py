"""Folders of pictures: every kind of file, every kind of mistake. The files are written here."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vitcore.data.augment import Augment
from vitcore.data.datasets import open_dataset
from vitcore.data.feed import Feed
from vitcore.errors import VitcoreError

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")

CROP = Augment(crop=(0.05, 1.0), flip=True)


def colours(red: int, green: int, blue: int, size: tuple[int, int] = (24, 16)):  # type: ignore[no-untyped-def]
    return Image.new("RGB", size, (red, green, blue))


def noise(seed: int, size: tuple[int, int] = (24, 16)):  # type: ignore[no-untyped-def]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for part, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise(10 * label + number).save(folder / f"{number}.png")
    return tmp_path


def open_tree(path: Path, **options):  # type: ignore[no-untyped-def]
    return open_dataset("folder", data_path=path, img_size=8, channels=3, **options)


def load(split, augment: Augment | None = None):  # type: ignore[no-untyped-def]
    indices = np.arange(len(split))
    return split.load(indices, indices + 100, 0, augment)


def one_picture(tmp_path: Path, name: str, write: Callable[[Path], None]) -> torch.Tensor:
    """What the data set makes of one file, at 8x8."""
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        write(tmp_path / part / "only" / name)
    images, _, weight = load(open_tree(tmp_path).eval)
    assert weight.tolist() == [1.0]
    return images[0]


def test_a_tree_is_read_in_sorted_order(tree: Path) -> None:
    (tree / "train" / ".hidden").mkdir()
    (tree / "train" / "cat" / ".hidden.png").write_bytes(b"")
    data = open_tree(tree)
    assert data.class_names == ["cat", "dog"] and data.num_classes == 2
    images, labels, weight = load(data.train)
    assert (len(data.train), len(data.eval)) == (6, 4)
    assert images.dtype == torch.uint8 and images.shape == (6, 3, 8, 8)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] and weight.tolist() == [1.0] * 6
    # Sorted by name, so the first of train and of val are the same pixels here.
    assert torch.equal(images[0], load(data.eval)[0][0])


def test_evaluation_resizes_the_whole_picture_with_antialiasing(tree: Path) -> None:
    picture = noise(0)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float(),
        (8, 8),
        mode="bilinear",
        antialias=True,
    )[0]
    got = load(open_tree(tree).eval)[0][0]
    assert (got.float() - expected).abs().max() <= 1.0


def test_crops_are_drawn_by_position_whatever_the_batch_and_the_workers(tree: Path) -> None:
    inline = open_tree(tree).train
    images, _, _ = load(inline, CROP)
    threaded = open_tree(tree, workers=3).train
    assert torch.equal(load(threaded, CROP)[0], images)
    rows = np.array([4, 1])
    assert torch.equal(threaded.load(rows, rows + 100, 0, CROP)[0], images[rows])
    assert not torch.equal(inline.load(rows, rows + 200, 0, CROP)[0], images[rows])
    assert not torch.equal(load(inline)[0], images)


def test_a_warp_gives_floats_in_range(tree: Path) -> None:
    images, _, _ = load(open_tree(tree).train, Augment(rotate=10.0, crop=(0.5, 1.0)))
    assert images.dtype == torch.float32 and images.min() >= -1 and images.max() <= 1


@pytest.mark.parametrize("augment", [None, CROP, Augment(rotate=5.0)])
def test_loading_nothing_tells_the_shape_and_dtype(tree: Path, augment: Augment | None) -> None:
    split = open_tree(tree, workers=1).train
    nothing, one = np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for empty, full in zip(split.load(nothing, nothing, 0, augment), split.load(one, one, 0, augment), strict=True):
        assert (len(empty), empty.dtype, empty.shape[1:]) == (0, full.dtype, full.shape[1:])


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA"])
def test_png_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    picture = one_picture(tmp_path, "a.png", lambda path: colours(255, 255, 255).convert(mode).save(path))
    assert torch.equal(picture, torch.full((3, 8, 8), 255, dtype=torch.uint8))


def test_a_16_bit_png_keeps_its_high_byte(tmp_path: Path) -> None:
    pixels = np.full((16, 24), 0x80FF, dtype=np.uint16)
    picture = one_picture(tmp_path, "a.png", lambda path: Image.fromarray(pixels).save(path))
    assert torch.equal(picture, torch.full((3, 8, 8), 0x80, dtype=torch.uint8))


def test_grey_and_cmyk_jpegs_become_rgb(tmp_path: Path) -> None:
    grey = one_picture(tmp_path / "grey", "a.jpg", lambda path: colours(90, 90, 90).convert("L").save(path))
    assert (grey.float() - 90).abs().max() <= 2
    cmyk = one_picture(tmp_path / "cmyk", "a.jpeg", lambda path: colours(200, 40, 90).convert("CMYK").save(path))
    assert (cmyk.float() - torch.tensor([200.0, 40.0, 90.0])[:, None, None]).abs().max() <= 6


def test_a_jpeg_named_png_is_read_by_its_content(tmp_path: Path) -> None:
    picture = one_picture(tmp_path, "a.PNG", lambda path: colours(200, 40, 90).save(path, format="JPEG"))
    assert (picture.float() - torch.tensor([200.0, 40.0, 90.0])[:, None, None]).abs().max() <= 6


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [colours(255, 0, 0), colours(0, 255, 0), colours(0, 0, 255)]
    picture = one_picture(
        tmp_path, "a.gif", lambda path: frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    )
    assert picture[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_the_exif_orientation_is_applied(name: str, tmp_path: Path) -> None:
    upright = noise(0, (8, 8)).resize((32, 32), Image.Resampling.NEAREST)

    def turned(path: Path) -> None:
        exif = Image.Exif()
        exif[0x112] = 6  # To be shown, turn by 90 degrees clockwise.
        upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=100)

    picture = one_picture(tmp_path / "turned", name, turned)
    plain = one_picture(tmp_path / "plain", name, lambda path: upright.save(path, quality=100))
    assert (picture.float() - plain.float()).abs().mean() < 4


def damage(tree: Path) -> Path:
    """A JPEG of class dog, cut in half."""
    path = tree / "train" / "dog" / "cut.jpg"
    noise(5, (64, 48)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_picture_stops_the_run_by_default(tree: Path, workers: int) -> None:
    path = damage(tree)
    split = open_tree(tree, workers=workers).train
    with pytest.raises(VitcoreError) as caught:
        load(split)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a readable picture (Image is incomplete or truncated); replace or remove")
    assert 'set bad_images to "skip"' in message and "\n" not in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_picture_is_skipped_counted_and_named_once(
    tree: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = damage(tree)
    split = open_tree(tree, workers=workers, bad_images="skip").train
    for _ in range(2):
        images, labels, weight = load(split, CROP)
    assert weight.tolist() == [1, 1, 1, 1, 1, 1, 0] and labels[-1] == 1
    assert not images[-1].any() and split.bad_images == 1
    assert [record.getMessage() for record in caplog.records if str(path) in record.getMessage()] == [
        f"{path}: not a readable picture (Image is incomplete or truncated); skipped"
    ]


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_pictures_are_named(tree: Path, content: bytes) -> None:
    (tree / "train" / "cat" / "zzz.png").write_bytes(content)
    with pytest.raises(VitcoreError, match=r"zzz.png: not a readable picture \(.+\); replace"):
        load(open_tree(tree).train)


def test_a_picture_that_vanished_is_named(tree: Path) -> None:
    split = open_tree(tree).train
    os.remove(tree / "train" / "dog" / "2.png")
    with pytest.raises(VitcoreError, match=r"2.png: not a readable picture \(.*No such file"):
        load(split)


def test_no_data_path_is_refused() -> None:
    with pytest.raises(VitcoreError, match=r"folder: no data path; give the folder that holds train/ and val/"):
        open_dataset("folder", img_size=8)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VitcoreError, match=r"folder: .*/absent is not a folder; give the one that holds"):
        open_tree(tmp_path / "absent")


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_missing_part_is_refused(tree: Path, part: str) -> None:
    (tree / part).rename(tree / "elsewhere")
    with pytest.raises(
        VitcoreError, match=f"folder: .*/{part} is missing; give a data folder that holds train/ and val/"
    ):
        open_tree(tree)


def test_a_part_without_classes_is_refused(tree: Path) -> None:
    for name in ("cat", "dog"):
        (tree / "val" / name).rename(tree / name)
    noise(0).save(tree / "val" / "loose.png")
    with pytest.raises(VitcoreError, match=r"/val holds no class folders; put the pictures of each class in a folder"):
        open_tree(tree)


def test_an_empty_class_is_named(tree: Path) -> None:
    (tree / "train" / "bird").mkdir()
    (tree / "train" / "bird" / "notes.txt").write_text("none yet")
    with pytest.raises(
        VitcoreError, match=r"/train/bird holds no pictures \(\.jpg, .*\); add some or remove the folder"
    ):
        open_tree(tree)


def test_different_classes_are_named(tree: Path) -> None:
    (tree / "val" / "dog").rename(tree / "val" / "Dog")
    with pytest.raises(
        VitcoreError, match=r"different classes \('dog' only in train/; 'Dog' only in val/\); give both"
    ):
        open_tree(tree)


def test_files_of_other_kinds_are_counted_in_the_log(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "train" / "cat" / "old.bmp").write_bytes(b"BM")
    open_tree(tree)
    assert "1 files are not pictures" in caplog.text


def test_imagenet_says_how_many_classes_it_found(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vitcore"):
        data = open_dataset("imagenet1K", data_path=tree, img_size=8)
    assert data.name == "imagenet1K"
    assert f"imagenet1K: 2 of 1000 classes, 6 training and 4 evaluation pictures in {tree}" in caplog.text


def test_the_decoder_is_imported_with_the_first_picture(tree: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from vitcore.data.datasets import open_dataset\n"
        f"d = open_dataset('folder', data_path={str(tree)!r}, img_size=8); z = np.zeros(1, dtype=np.int64)\n"
        "assert 'PIL' not in sys.modules; d.train.load(z, z, 0, None); assert 'PIL' in sys.modules\n"
        "assert 'torchvision' not in sys.modules  # a second of start-up, for odd JPEGs alone"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_feed_counts_pictures_that_were_skipped(tree: Path) -> None:
    damage(tree)
    (tree / "val" / "cat" / "0.png").write_bytes(b"no picture")
    feed = Feed(open_tree(tree, bad_images="skip"), seed=0, micro_batch=7, eval_batch=3, augment=CROP)
    batch, cursor = feed.next_train(0)
    feed.next_train(cursor)
    assert float(batch.weight.sum()) == 6
    assert feed.next_eval(0)[0].weight.tolist() == [0, 1, 1]
    assert feed.bad_images == 2
    feed.close()


def test_a_bad_picture_read_ahead_stops_the_step_that_wanted_it(tree: Path) -> None:
    damage(tree)
    feed = Feed(open_tree(tree, workers=1), seed=0, micro_batch=1)
    with pytest.raises(VitcoreError, match=r"cut.jpg: not a readable picture"):
        cursor = 0
        for _ in range(7):
            _, cursor = feed.next_train(cursor)
    feed.close()
