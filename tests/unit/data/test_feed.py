"""The feed: ranks joined are one rank, evaluation sees each picture once, and reading ahead changes nothing."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcore.data.augment import Augment
from vitcore.data.batch import Batch
from vitcore.data.datasets import Dataset, DatasetOptions, open_dataset
from vitcore.data.feed import Feed
from vitcore.data.loading.readahead import ReadAhead
from vitcore.data.order import sample_indices
from vitcore.data.pictures import PictureSplit
from vitcore.errors import VitcoreError

DIGITS = open_dataset("digits", img_size=8)
WARP = Augment(rotate=15.0, scale=(0.9, 1.1), shear=5.0, translate=1.0)


def feed(dataset: Dataset = DIGITS, **options: object) -> Feed:
    return Feed(dataset, **{"seed": 1, "micro_batch": 16, **options})  # type: ignore[arg-type]


def joined(batches: list[Batch]) -> Batch:
    images, labels, weight, positions = (torch.cat(parts) for parts in zip(*(b[:4] for b in batches), strict=True))
    draws = {name: torch.cat([b.draws[name] for b in batches]) for name in batches[0].draws}
    return Batch(images, labels, weight, positions, draws)


def train_stream(world_size: int, global_batch: int, steps: int, first: int = 0) -> Batch:
    """The batches of all ranks, in the order of positions."""
    feeds = [
        feed(world_size=world_size, rank=rank, micro_batch=global_batch // world_size, augment=WARP)
        for rank in range(world_size)
    ]
    batches, cursor = [], first
    for _ in range(steps):
        results = [one.next_train(cursor) for one in feeds]
        batches += [batch for batch, _ in results]
        (cursor,) = {following for _, following in results}
    for one in feeds:
        one.close()
    return joined(batches)


def same(first: Batch, second: Batch) -> bool:
    return (
        first.draws.keys() == second.draws.keys()
        and all(torch.equal(a, b) for a, b in zip(first[:4], second[:4], strict=True))
        and all(torch.equal(first.draws[name], second.draws[name]) for name in first.draws)
    )


def test_ranks_joined_are_one_rank_over_an_epochs_end() -> None:
    one = train_stream(1, 240, 7)
    assert one.positions.tolist() == list(range(7 * 240))
    for world_size in (2, 4):
        assert same(train_stream(world_size, 240, 7), one)


def test_a_cut_and_resume_continues_bit_for_bit() -> None:
    whole = train_stream(1, 240, 6)
    assert same(joined([train_stream(1, 240, 4), train_stream(2, 240, 2, first=4 * 240)]), whole)


def test_micro_steps_joined_are_the_large_batch() -> None:
    small, large = feed(micro_batch=8, accumulation=4), feed(micro_batch=32)
    assert small.global_batch == large.global_batch == 32
    batches, cursor = [], 0
    for _ in range(4):
        batch, cursor = small.next_train(cursor)
        batches.append(batch)
    assert same(joined(batches), large.next_train(0)[0]) and cursor == 32


def test_it_says_what_is_dropped() -> None:
    one = feed(micro_batch=100, accumulation=2, world_size=2)
    assert (one.global_batch, one.usable, one.dropped, one.steps_per_epoch) == (400, 1200, 237, 3)


def test_an_epoch_shows_no_picture_twice_and_the_next_drops_others() -> None:
    one = feed(micro_batch=400)
    epochs = []
    for epoch in range(2):
        pictures = torch.cat([one.next_train((3 * epoch + step) * 400)[0].images for step in range(3)])
        epochs.append({picture.numpy().tobytes() for picture in pictures})
    distinct = {picture.numpy().tobytes() for picture in DIGITS.train.load(*[np.arange(1437)] * 2, 0, None)[0]}
    assert len(distinct) == 1437  # So that bytes identify a picture.
    assert len(epochs[0]) == len(epochs[1]) == 1200 and epochs[0] != epochs[1]


@given(st.integers(1, 90), st.integers(1, 20), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_evaluation_counts_every_picture_once(size: int, eval_batch: int, world_size: int) -> None:
    data = open_dataset("synthetic", img_size=4, eval_size=size, train_size=8)
    expected = data.eval.load(np.arange(size), np.arange(size), 0, None)[0]
    seen: list[int] = []
    for rank in range(world_size):
        one = feed(data, micro_batch=1, world_size=world_size, rank=rank, eval_batch=eval_batch)
        assert one.eval_steps == -(-size // (eval_batch * world_size))
        cursor = 0
        for _ in range(one.eval_steps):
            batch, cursor = one.next_eval(cursor)
            assert batch.images.shape == (eval_batch, 3, 4, 4) and batch.labels.shape == (eval_batch,)
            inside = batch.positions < size
            assert torch.equal(batch.weight, inside.float())
            assert not batch.images[~inside].any() and not batch.labels[~inside].any()
            assert torch.equal(batch.images[inside], expected[batch.positions[inside]])
            seen += batch.positions[inside].tolist()
        one.close()
    assert sorted(seen) == list(range(size))


def test_dtypes_are_those_of_the_contract() -> None:
    one = feed()
    for batch in (one.next_train(0)[0], one.next_eval(0)[0]):
        assert [part.dtype for part in batch[:4]] == [torch.float32, torch.int64, torch.float32, torch.int64]
    synthetic = feed(open_dataset("synthetic", img_size=8))
    assert synthetic.next_train(0)[0].images.dtype == torch.uint8


def test_reading_ahead_gives_what_a_fresh_feed_gives_also_after_a_jump() -> None:
    one = feed(augment=WARP)
    for cursor in (0, 16, 32, 160, 176, 0, 16):
        assert same(one.next_train(cursor)[0], feed(augment=WARP).next_train(cursor)[0])
    one.close()


def test_evaluation_between_two_training_steps_changes_neither() -> None:
    one, other = feed(), feed()
    one.next_train(0)
    one.next_eval(0)
    assert same(one.next_train(16)[0], other.next_train(16)[0])
    assert same(one.next_eval(0)[0], other.next_eval(0)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"micro_batch": 0}, "micro_batch=0 must be at least 1"),
        ({"accumulation": 0}, "accumulation=0 must be at least 1"),
        ({"world_size": 0}, "world_size=0 must be at least 1"),
        ({"eval_batch": 0}, "eval_batch=0 must be at least 1"),
        ({"rank": 1}, "rank 1 is outside the world of 1"),
        ({"rank": -1}, "rank -1 is outside the world of 1"),
        ({"micro_batch": 512, "accumulation": 4}, "1437 training pictures do not fill one global batch of 2048"),
        ({"augment": Augment(crop=(0.1, 1.0))}, "digits: random crops are for folders of pictures"),
    ],
)
def test_what_cannot_be_fed_is_refused_before_the_first_step(options: dict, words: str) -> None:
    with pytest.raises(VitcoreError, match=words):
        feed(**options)


def test_cursors_outside_the_data_are_refused() -> None:
    one = feed()
    with pytest.raises(VitcoreError, match="train cursor -1 is negative"):
        one.next_train(-1)
    for cursor in (-1, 360):
        with pytest.raises(VitcoreError, match=f"eval cursor {cursor} is outside the 360 pictures; .* make 23 calls"):
            one.next_eval(cursor)


def test_a_closed_feed_says_so_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    one = feed()
    one.next_train(0)
    one.next_eval(0)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    one.close()
    one.close()
    assert not any(thread.is_alive() for thread in started)
    with pytest.raises(VitcoreError, match="the train feed is closed"):
        one.next_train(16)


def test_reading_ahead_loads_while_the_caller_works() -> None:
    loaded: list[int] = []
    ahead = ReadAhead(lambda cursor: loaded.append(cursor) or cursor, lambda cursor: cursor + 1, "test")
    assert ahead.get(0) == 0
    for _ in range(500):
        if loaded == [0, 1]:
            break
        time.sleep(0.01)
    assert loaded == [0, 1] and ahead.get(1) == 1
    ahead.close()
    assert loaded[:2] == [0, 1] and loaded.count(1) == 1


def test_an_exception_surfaces_in_the_call_that_wanted_the_value_and_only_there() -> None:
    def load(cursor: int) -> int:
        if cursor == 2:
            raise VitcoreError("number two is bad")
        return cursor

    ahead = ReadAhead(load, lambda cursor: cursor + 1, "test")
    assert [ahead.get(0), ahead.get(1)] == [0, 1]
    with pytest.raises(VitcoreError, match="number two is bad"):
        ahead.get(2)
    assert ahead.get(1) == 1
    assert ahead.get(7) == 7  # The bad guess is dropped in silence.
    ahead.close()


class Numbered:
    """A source of tiny pictures whose label is their index."""

    def __init__(self, size: int) -> None:
        self.labels = np.arange(size, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        return np.full((3, 2, 2), index % 256, dtype=np.uint8)

    def where(self, index: int) -> str:
        return f"number {index}"


@dataclass
class Numbers:
    """A data set of `Numbered`."""

    train: PictureSplit
    eval: PictureSplit
    name: str = "numbers"
    num_classes: int = 1
    channels: int = 3
    class_names: tuple[str, ...] = ("one",)


def numbers(size: int, source: type[Numbered] = Numbered, **options: object) -> Numbers:
    shared = DatasetOptions(name="numbers", img_size=2, **options)  # type: ignore[arg-type]
    return Numbers(PictureSplit(source(size), shared), PictureSplit(source(4), shared))


def divided(global_batch: int) -> st.SearchStrategy[tuple[int, int, int]]:
    """Ways to make a global batch: ranks, accumulation, micro-batch."""
    whole = range(1, global_batch + 1)
    ways = [(w, a, global_batch // w // a) for w in whole for a in whole if global_batch % (w * a) == 0]
    return st.sampled_from(ways)


@given(st.data(), st.integers(1, 8), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_any_ranks_and_cuts_see_the_one_sequence_and_each_picture_once_an_epoch(
    data: st.DataObject, global_batch: int, seed: int
) -> None:
    size = data.draw(st.integers(global_batch, 40), label="size")
    dataset, cursor, seen = numbers(size), 0, list[tuple[int, int, int]]()
    for _ in range(data.draw(st.integers(1, 4), label="runs")):  # each resumes where the one before it was cut
        world, accumulation, micro = data.draw(divided(global_batch), label="ranks, accumulation, micro-batch")
        ranks = [
            feed(dataset, seed=seed, world_size=world, rank=rank, micro_batch=micro, accumulation=accumulation)
            for rank in range(world)
        ]
        for _ in range(accumulation * data.draw(st.integers(1, 6), label="steps")):
            results = [rank.next_train(cursor) for rank in ranks]
            for batch, _ in results:
                shown = batch.images[:, 0, 0, 0].tolist()
                seen += zip(batch.positions.tolist(), batch.labels.tolist(), shown, strict=True)
            (cursor,) = {following for _, following in results}
        for rank in ranks:
            rank.close()
    usable = size - size % global_batch
    assert [position for position, _, _ in seen] == list(range(cursor))
    expected = sample_indices(seed, np.arange(cursor), size, usable).tolist()
    assert [label for _, label, _ in seen] == expected and [colour for _, _, colour in seen] == expected
    for first in range(0, cursor, usable):
        epoch = expected[first : first + usable]
        assert len(set(epoch)) == len(epoch), "a picture is seen twice in one epoch"


def test_a_slow_source_is_waited_for_and_a_fast_one_is_not() -> None:
    class Slow(Numbered):
        def read(self, index: int) -> np.ndarray:
            time.sleep(0.02)
            return super().read(index)

    shares = []
    for source in (Slow, Numbered):
        one, cursor = feed(numbers(64, source), micro_batch=8), 0
        one.next_train(0)  # the first batch is waited for in any case
        began, before = time.perf_counter(), one.waited
        for _ in range(8):
            _, cursor = one.next_train(cursor)
            time.sleep(0.03)  # a step
        shares.append((one.waited - before) / (time.perf_counter() - began))
        one.close()
    assert shares[0] > 0.5 > shares[1], shares


def test_evaluation_is_not_waiting_for_input() -> None:
    one = feed()
    one.next_eval(0)
    assert one.waited == 0.0
    one.next_train(0)
    assert one.waited > 0.0
    one.close()


def test_pictures_are_mixed_in_pairs_and_so_a_micro_batch_is_even() -> None:
    for mix in (Augment(mixup=0.8), Augment(cutmix=1.0)):
        with pytest.raises(
            VitcoreError, match=r"mixup and cutmix mix pairs of pictures, and micro_batch=15 is odd; make "
        ):
            feed(augment=mix, micro_batch=15)
        one = feed(augment=mix, micro_batch=14)
        assert one.next_train(0)[0].draws["own"].shape == (14,)
        one.close()


def test_batches_are_pinned_on_the_device_of_the_thread_that_made_the_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[tuple[int, torch.Size, str]] = []
    device = threading.local()
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 3)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: setattr(device, "index", index))

    def pin(part: torch.Tensor) -> torch.Tensor:
        pinned.append((device.index, part.shape, threading.current_thread().name))
        return part.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    augment = Augment(flip=True)
    one, plain = feed(pin=True, augment=augment), feed(augment=augment)
    for cursor in (0, 16):
        assert same(one.next_train(cursor)[0], plain.next_train(cursor)[0])
    assert same(one.next_eval(0)[0], plain.next_eval(0)[0])
    one.close()
    plain.close()
    assert {index for index, _, _ in pinned} == {3}
    assert any(name.startswith("vitcore-train") for _, _, name in pinned), "also from the thread that reads ahead"
    assert [shape for _, shape, _ in pinned[:4]] == [(16, 1, 8, 8), (16,), (16,), (16,)]


def test_reading_ahead_keeps_several_values_under_way_and_in_order() -> None:
    begun, go = list[int](), threading.Event()

    def load(cursor: int) -> int:
        begun.append(cursor)
        if cursor:
            assert go.wait(10)
        return cursor

    ahead = ReadAhead(load, lambda cursor: cursor + 1 if cursor < 5 else None, "test", depth=3)
    assert ahead.get(0) == 0
    for _ in range(500):
        if len(begun) == 4:
            break
        time.sleep(0.01)
    assert sorted(begun) == [0, 1, 2, 3], "three are loaded at a time"
    go.set()
    assert [ahead.get(cursor) for cursor in range(1, 6)] == [1, 2, 3, 4, 5]
    assert sorted(begun) == list(range(6)), "each is loaded once, and nothing after the last"
    ahead.close()
