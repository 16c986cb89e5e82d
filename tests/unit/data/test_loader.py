"""Who decodes makes no difference to what is decoded; memory that is held is not written; who decodes is chosen."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import encode_jpeg

from vitcore.data.augment import Augment
from vitcore.data.batch import Batch
from vitcore.data.datasets import Dataset, DatasetOptions, open_dataset
from vitcore.data.feed import Feed
from vitcore.data.loading import loader
from vitcore.data.loading.foreman import rows_of_a_chunk
from vitcore.data.loading.loader import Inline, Threads, make_loader, needs_workers
from vitcore.data.loading.processes import Processes
from vitcore.data.loading.shared import MOST_FREE, Blocks, pack, unpack
from vitcore.data.view import View
from vitcore.errors import VitcoreError

PICTURES, SIDE = 24, 16
ALL = Augment(crop=(0.1, 1.0), flip=True, policy="three", jitter=0.3, mixup=0.8, cutmix=1.0, erase=0.25)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of many sizes in two classes, of which two are damaged."""
    root = tmp_path_factory.mktemp("tree")
    for part in ("train", "val"):
        for i in range(PICTURES):
            folder = root / part / ("cat", "dog")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            draw = torch.Generator().manual_seed(i)
            picture = torch.randint(0, 256, (3, 20 + 3 * i, 90 - 2 * i), generator=draw, dtype=torch.uint8)
            (folder / f"{i:02}.jpg").write_bytes(bytes(encode_jpeg(picture).numpy()))
    for name in ("cat/04.jpg", "dog/15.jpg"):
        (root / "train" / name).write_bytes(b"no picture")
    return root


def stream(dataset: Dataset, cuts: list[tuple[int, int, int]], first: int = 0) -> list[Batch]:
    """All ranks' batches, in the order of positions; a cut (steps, ranks, micro-batch) is a run that resumes there."""
    batches, cursor = [], first
    for steps, world_size, micro_batch in cuts:
        feeds = [
            Feed(dataset, seed=3, micro_batch=micro_batch, accumulation=8 // micro_batch // world_size,
                 world_size=world_size, rank=rank, augment=ALL)
            for rank in range(world_size)
        ]  # fmt: skip
        for _ in range(steps * feeds[0].global_batch // micro_batch // world_size):
            batches += [feed.next_train(cursor)[0] for feed in feeds]
            cursor = feeds[0].after_train(cursor)
        if feeds[0].dataset.train.workers < 2:  # type: ignore[attr-defined]
            for feed in feeds:
                feed.close()
    return batches


def joined(batches: list[Batch]) -> dict[str, torch.Tensor]:
    parts = [{**dict(zip(Batch._fields, batch[:4])), **batch.draws} for batch in batches]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def kinds(tree: Path) -> Iterator[dict[str, Dataset]]:
    """The tree, opened for each kind of loader."""
    made = {
        kind: open_dataset("folder", img_size=SIDE, data_path=tree, bad_images="replace", workers=workers, loader=kind)
        for kind, workers in (("auto", 0), ("threads", 3), ("processes", 2))
    }
    yield made
    for dataset in made.values():
        dataset.train.close()  # type: ignore[attr-defined]


def test_threads_processes_ranks_and_cuts_give_the_same_bits(kinds: dict[str, Dataset]) -> None:
    whole = joined(stream(kinds["auto"], [(6, 1, 8)]))
    assert whole["positions"].tolist() == list(range(48)) and (whole["weight"] == 1).all()
    assert set(whole) > {"flip", "blend", "box", "erase"}
    for kind in ("threads", "processes"):
        again = joined(stream(kinds[kind], [(2, 1, 4), (1, 2, 2), (3, 1, 8)]))
        assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole), kind


def test_evaluation_is_the_same_for_all_and_bad_pictures_are_counted_once_by_all(kinds: dict[str, Dataset]) -> None:
    indices = np.arange(PICTURES)
    evaluated = {kind: data.train.load(indices, indices, 0, None) for kind, data in kinds.items()}
    for images, labels, weight in evaluated.values():
        assert torch.equal(images, evaluated["auto"][0]) and torch.equal(labels, evaluated["auto"][1])
        assert [row for row, w in enumerate(weight.tolist()) if w == 0] == [2, 19], "it skips, and never replaces"
        assert not images[[2, 19]].any()
    assert {data.train.bad_images for data in kinds.values()} == {2}


def test_a_batch_that_is_held_is_never_written_again(kinds: dict[str, Dataset]) -> None:
    indices = np.arange(PICTURES)
    train = kinds["processes"].train
    held = [train.load(indices + 0, indices + 100 * i, 0, Augment(crop=(0.1, 1.0)))[0] for i in range(4)]
    copies = [images.clone() for images in held]
    for i in range(8):
        train.load(indices, indices + 1000 * i, 0, Augment(crop=(0.1, 1.0)))
    assert all(torch.equal(images, copy) for images, copy in zip(held, copies))
    assert len({images.data_ptr() for images in held}) == 4


def test_the_splits_of_a_data_set_share_one_loader_which_starts_again(tree: Path) -> None:
    data = open_dataset("folder", img_size=SIDE, data_path=tree, bad_images="skip", workers=2, loader="threads")
    assert data.train._loader is data.eval._loader  # type: ignore[attr-defined]
    one = np.arange(2)
    before = data.train.load(one, one, 0, None)[0]
    data.train.close()  # type: ignore[attr-defined]
    assert torch.equal(data.train.load(one, one, 0, None)[0], before)
    data.train.close()  # type: ignore[attr-defined]


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    blocks = Blocks()
    block, images = blocks.take((4, 3, 2, 2))
    view = images[1:, :, 0]
    assert blocks.take((4, 3, 2, 2))[0] is not block
    del images
    gc.collect()
    view[:] = 7
    assert all(blocks.take((4, 3, 2, 2))[0] is not block for _ in range(3)) and (view == 7).all()
    del view
    gc.collect()
    held = [blocks.take((4, 3, 2, 2)) for _ in range(4)]
    assert block in [taken for taken, _ in held]
    assert block.number not in blocks.gone


def test_free_memory_is_given_back_to_the_system_beyond_a_few_blocks() -> None:
    blocks = Blocks()
    small = [blocks.take((10,)) for _ in range(MOST_FREE + 3)]
    numbers = {block.number for block, _ in small}
    del small
    gc.collect()
    blocks.take((1000,))
    assert len(blocks.gone) == 3 and set(blocks.gone) < numbers


def test_what_is_packed_shares_its_arrays() -> None:
    value = {"labels": np.arange(1000), "names": ["a", "b"], "bytes": np.frombuffer(b"abc" * 99, np.uint8)}
    block, spans = pack(value)
    first, second = unpack(block.memory, spans), unpack(block.memory, spans)
    assert first["names"] == ["a", "b"] and first["labels"].tolist() == list(range(1000))
    assert bytes(first["bytes"]) == b"abc" * 99
    assert np.shares_memory(first["labels"], second["labels"])


def test_who_decodes_is_chosen_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = loader.MOST_THREADS, loader.MOST_THREADS + 1
    assert isinstance(make_loader(0, "processes"), Inline)
    assert isinstance(make_loader(few, "auto"), Threads) and isinstance(make_loader(many, "auto"), Processes)
    assert isinstance(make_loader(many, "threads"), Threads) and isinstance(make_loader(1, "processes"), Processes)
    monkeypatch.setattr(loader, "usable_cores", lambda: 48)
    assert make_loader("auto", "auto").workers == 48


def test_pixels_of_the_models_size_need_no_workers() -> None:
    class Pixels:
        labels = np.zeros(1, np.int64)

        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> np.ndarray:
            return np.zeros((3, 8, 8), np.uint8)

        def where(self, index: int) -> str:
            return "here"

    assert not needs_workers(Pixels(), View(size=(8, 8))) and needs_workers(Pixels(), View(size=(8, 9)))
    Pixels.read = lambda self, index: b"file"  # type: ignore[assignment, method-assign]
    assert needs_workers(Pixels(), View(size=(8, 8)))


def test_an_unknown_loader_is_refused_by_name(tree: Path) -> None:
    with pytest.raises(VitcoreError, match=r"loader='forks' is not known; give one of auto, threads, processes"):
        open_dataset("folder", img_size=SIDE, data_path=tree, loader="forks")


@pytest.mark.parametrize(
    ("rows", "workers", "expected"), [(64, 2, 16), (64, 8, 4), (8, 1, 4), (1000, 4, 16), (2, 9, 4)]
)
def test_a_batch_is_split_so_that_all_workers_share_it(rows: int, workers: int, expected: int) -> None:
    assert rows_of_a_chunk(rows, workers) == expected


def test_options_make_one_loader() -> None:
    options = DatasetOptions(name="x", img_size=8, workers=2, loader="threads")
    assert options.decoders is options.decoders and options.decoders.workers == 2
