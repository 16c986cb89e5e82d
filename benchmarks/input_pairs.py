"""One comparison of the input benchmark, in a process of its own: `python input_pairs.py '{"case": ...}'` prints JSON.

Of its own, since what malloc has learnt from other work decides how fast the standard way is: Pillow's pictures of several
megapixels cost twice as much in a fresh process, whose freed memory goes back to the system each time, as in one that has
handled larger blocks before. Both ways of a pair run in the same process, on one core, in turn.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitcore.data.augment import Augment
from vitcore.data.datasets import open_dataset
from vitcore.data.decode import picture_into
from vitcore.data.feed import Feed
from vitcore.data.places import crop_box, draw_crops
from vitcore.data.view import View

SHARE = (0.08, 1.0)
Run = Callable[[], object]


def standard(root: Path, size: int, batch: int) -> Run:
    """ImageFolder, RandomResizedCrop, flip, ToTensor, Normalize and DataLoader, in this process."""
    from torch.utils.data import DataLoader
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    steps = [
        T.RandomResizedCrop(size, SHARE),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize([0.5] * 3, [0.5] * 3),
    ]
    loader = DataLoader(ImageFolder(root / "train", T.Compose(steps)), batch, shuffle=True, drop_last=True)

    def epoch() -> None:
        for images, _ in loader:
            assert images.dtype == torch.float32

    return epoch


def fed(dataset: str, root: Path, size: int, batch: int) -> Run:
    """The same through the feed. The device's part, mirroring and normalising into a buffer that stays, is timed too."""
    feed = Feed(
        open_dataset(dataset, data_path=root, img_size=size, workers=0),
        seed=1, micro_batch=batch, augment=Augment(crop=SHARE, flip=True),
    )  # fmt: skip
    buffer, cursor = torch.empty((batch, 3, size, size)), 0

    def epoch() -> None:
        nonlocal cursor
        for _ in range(feed.steps_per_epoch):
            given, cursor = feed.next_train(cursor)
            for row in given.draws["flip"].nonzero()[:, 0].tolist():
                given.images[row] = given.images[row].flip(-1)
            for out, image in zip(buffer, given.images):  # by pictures, which a core's cache holds
                out.copy_(image).div_(127.5).sub_(1.0)
        # What is read ahead belongs to this epoch's time, in the place of what the last one read ahead for it.
        for _, future in feed._train._pending:
            future.result()

    return epoch


def crops(root: Path, size: int) -> Run:
    """Ours from a file's bytes to the crop, in a batch's row."""
    files, draws, view = read(root), draw_crops(3, np.arange(len(read(root)))), View(size=(size, size))
    out = torch.empty((3, size, size), dtype=torch.uint8)

    def epoch() -> None:
        for data, row in zip(files, draws):
            picture_into(out, data, view, row, SHARE)

    return epoch


def library_crops(root: Path, size: int, library: str) -> Run | None:
    """The same crops by a library; None where it is not installed."""
    out_CHW = torch.empty((3, size, size), dtype=torch.uint8)
    way = (torchvision_io if library == "torchvision.io" else opencv)(out_CHW, size, scaled="scaled" in library)
    files, draws = read(root), draw_crops(3, np.arange(len(read(root))))
    return way and (lambda: [way(data, row) for data, row in zip(files, draws)])


def torchvision_io(out_CHW: torch.Tensor, size: int, scaled: bool) -> Callable[[bytes, Any], None]:
    """torchvision.io and an antialiased resize of uint8."""
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import functional as TF

    warnings.simplefilter("ignore")

    def way(data: bytes, row: Any) -> None:
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        top, left, height, width = crop_box(image.shape[1], image.shape[2], row, SHARE)
        out_CHW.copy_(TF.resized_crop(image, top, left, height, width, [size, size], antialias=True))

    return way


def opencv(out_CHW: torch.Tensor, size: int, scaled: bool) -> Callable[[bytes, Any], None] | None:
    """simplejpeg and OpenCV, decoded smaller where the crop is twice the size or more, if that is asked for."""
    import simplejpeg

    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)
    planes = list(out_CHW.numpy())

    def way(data: bytes, row: Any) -> None:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        box = crop_box(height, width, row, SHARE)
        scale = next((s for s in (8, 4, 2) if scaled and min(box[2:]) >= s * size), 1)
        image = simplejpeg.decode_jpeg(data, min_height=-(-height // scale), min_width=-(-width // scale))
        top, left, rows, columns = (side // scale for side in box)
        kind = cv2.INTER_AREA if rows > size and columns > size else cv2.INTER_LINEAR
        cut = image[top : top + rows, left : left + columns]
        cv2.split(cv2.resize(cut, (size, size), interpolation=kind), planes)

    return way


def read(root: Path) -> list[bytes]:
    """The training files' bytes."""
    return [path.read_bytes() for path in sorted((root / "train").glob("*/*.jpg"))]


def measure(theirs: Run, ours: Run, pairs: int) -> dict[str, list[float]]:
    """Seconds of each run, wall and CPU, pair by pair, the order swapped from pair to pair."""
    spent: dict[str, list[float]] = {f"{who} {clock}": [] for who in ("their", "our") for clock in ("wall", "cpu")}
    theirs(), ours()
    for pair in range(pairs):
        for who, run in (("their", theirs), ("our", ours))[:: 1 if pair % 2 == 0 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            spent[f"{who} wall"].append(time.perf_counter() - wall)
            spent[f"{who} cpu"].append(time.process_time() - cpu)
    return spent


def main(asked: dict[str, Any]) -> dict[str, list[float]] | None:
    """Run one comparison: `way` is "folder", "cached" or a library; None where that is not installed."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    root, size, batch, way = Path(asked["root"]), asked["size"], asked["batch"], asked["way"]
    theirs: Run | None
    if way in ("folder", "cached"):
        theirs, ours = standard(root, size, batch), fed(way, Path(asked["ours"]), size, batch)
    else:
        theirs, ours = library_crops(root, size, way), crops(root, size)
    return None if theirs is None else measure(theirs, ours, asked["pairs"])


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
