"""Worker processes that die, do not start, or are left alone: the run goes on or ends with a line, and nothing hangs."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from vitcore.data.augment import Augment
from vitcore.data.datasets import DatasetOptions
from vitcore.data.loading.processes import Processes
from vitcore.data.pictures import PictureSplit
from vitcore.data.source import Source
from vitcore.errors import VitcoreError

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # so that workers find it too
from deadly import SIDE, Deadly  # noqa: E402

PROMPT = 5.0
"""Seconds in which what is prompt is done, on a busy machine."""


@pytest.fixture(scope="module")
def workers() -> Iterator[Processes]:
    """Two workers for all tests that do not end them."""
    made = Processes(2)
    yield made
    made.close()


def split(source: Source, workers: Processes, bad_images: str = "stop") -> PictureSplit:
    """The pictures of a source, decoded by `workers` although they need no decoding."""
    options = DatasetOptions(name="shelf", img_size=SIDE, bad_images=bad_images)
    made = PictureSplit(source, options)
    made._loader = workers
    return made


def load(pictures: PictureSplit, count: int, first: int = 0) -> tuple[list[int], list[int], list[float]]:
    """The colours, labels and weights of `count` samples in training."""
    indices = np.arange(first, first + count)
    images, labels, weight = pictures.load(indices, indices, 0, Augment())
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist(), labels.tolist(), weight.tolist()


def pids(workers: Processes) -> list[int]:
    foreman = workers._foreman
    return [] if foreman is None else [worker.pid for worker in list(foreman._workers.values())]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def wait_until_gone(some: list[int]) -> None:
    end = time.monotonic() + PROMPT
    while not all(gone(pid) for pid in some):
        assert time.monotonic() < end, f"of {some} some are still there"
        time.sleep(0.02)


def test_a_picture_that_kills_its_worker_once_is_tried_again(
    workers: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = split(Deadly(40, tmp_path, {3: 1, 20: 1}), workers)
    assert load(pictures, 40) == (list(range(40)), list(range(40)), [1.0] * 40)
    assert pictures.bad_images == 0
    for index, how in ((3, "SIGSEGV"), (20, "SIGKILL, as when memory runs out")):
        (line,) = [line for line in caplog.messages if line.startswith(f"shelf/{index}.jpg")]
        assert "the worker process that decoded it died, of signal" in line and how in line and "once more" in line


def test_a_picture_that_kills_twice_is_unreadable_and_skipped_and_kills_no_more(
    workers: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = split(Deadly(40, tmp_path, {5: 99}), workers, "skip")
    for _ in range(2):
        colours, labels, weight = load(pictures, 40)
        assert weight == [0.0 if i == 5 else 1.0 for i in range(40)] and labels == list(range(40))
        assert colours == [0 if i == 5 else i for i in range(40)]
    assert pictures.bad_images == 1 and (tmp_path / "5").read_text() == "xx"
    named = [line for line in caplog.messages if "not a readable picture" in line]
    assert len(named) == 1 and named[0].startswith(
        "shelf/5.jpg: not a readable picture (2 worker processes died over it"
    )
    assert named[0].endswith("; skipped")


def test_a_picture_that_kills_twice_stops_the_run_that_is_to_stop(workers: Processes, tmp_path: Path) -> None:
    with pytest.raises(VitcoreError, match=r"^shelf/7.jpg: not a readable picture \(2 worker .*SIGSEGV.*replace or"):
        load(split(Deadly(40, tmp_path, {7: 99}), workers), 40)


def test_the_replacement_of_a_picture_that_kills_is_that_of_one_that_cannot_be_read(
    workers: Processes, tmp_path: Path
) -> None:
    deadly = split(Deadly(40, tmp_path, {9: 99}), workers, "replace")
    blank = split(Deadly(40, unreadable=(9,)), workers, "replace")
    found = load(deadly, 40)
    assert found == load(blank, 40) and found[2] == [1.0] * 40 and found[0][9] != 9


def test_workers_killed_at_any_moment_cost_nothing_but_time(workers: Processes) -> None:
    pictures = split(Deadly(4096, seconds=0.001), workers, "skip")
    load(pictures, 8)
    draw, ended, killed = random.Random(5), threading.Event(), list[int]()

    def kill() -> None:
        while not ended.wait(draw.uniform(0.0, 0.1)):
            if some := pids(workers):
                killed.append(draw.choice(some))
                try:
                    os.kill(killed[-1], signal.SIGKILL)
                except ProcessLookupError:
                    killed.pop()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for batch in range(12):
            colours, labels, weight = load(pictures, 64, first=64 * batch)
            # One that was being decoded at two deaths is skipped, as is promised.
            right = [index % 251 if read else 0 for index, read in zip(range(64 * batch, 64 * batch + 64), weight)]
            assert colours == right and labels == list(range(64 * batch, 64 * batch + 64))
            assert sum(weight) > 56
    finally:
        ended.set()
        killer.join()
    assert len(killed) >= 3


def test_a_keeper_that_dies_is_replaced(workers: Processes, caplog: pytest.LogCaptureFixture) -> None:
    pictures = split(Deadly(64), workers)
    load(pictures, 8)
    assert workers._foreman is not None
    os.kill(workers._foreman._hiring._keeper.pid, signal.SIGKILL)
    for pid in pids(workers):
        os.kill(pid, signal.SIGKILL)
    assert load(pictures, 64)[2] == [1.0] * 64
    assert "the process that worker processes are forked from died; another takes its place" in caplog.messages


def test_a_bug_of_the_source_is_shown_with_its_place(workers: Processes) -> None:
    pictures = split(Deadly(16, broken=4), workers)
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process: KeyError: 'a bug'.*deadly.py"):
        load(pictures, 16)
    assert load(pictures, 4)[2] == [1.0] * 4, "the workers go on"


def test_a_source_that_cannot_be_pickled_is_named(workers: Processes) -> None:
    source = Deadly(4)
    source.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(VitcoreError, match=r'source \(Deadly\) cannot be sent to worker .*set loader to "threads"'):
        load(split(source, workers), 4)


def test_a_source_that_workers_cannot_import_is_named(
    workers: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(split(Deadly(4), workers), 4)  # the workers are there, and what comes now into the path is not in theirs
    (tmp_path / "only_here.py").write_text("from deadly import Deadly\nclass Local(Deadly): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    local = importlib.import_module("only_here").Local(4)
    with pytest.raises(
        VitcoreError, match=r"cannot load the data set's source \(ModuleNotFoundError: .*only_here.*threads"
    ):
        load(split(local, workers), 4)


def test_a_worker_that_cannot_start_ends_the_run_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libgone.so is not there')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = Processes(2)
    with pytest.raises(
        VitcoreError, match=r"^worker processes cannot start \(ImportError: libgone.so is not there\); "
    ):
        load(split(Deadly(4), broken), 4)
    broken.close()


def test_workers_that_always_die_end_the_run(workers: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = split(Deadly(64, seconds=0.05), workers)
    load(pictures, 4)
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.001):
            for pid in pids(workers):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(VitcoreError, match=r"worker processes die one after the other|died over it"):
            load(pictures, 64)
    finally:
        ended.set()
        killer.join()


def test_closing_in_the_midst_of_a_batch_is_prompt_and_leaves_no_process() -> None:
    slow = Processes(2)
    pictures = split(Deadly(64, seconds=0.2), slow)
    load(pictures, 2)
    some = pids(slow)
    assert len(some) == 2
    caught: list[BaseException] = []

    def read() -> None:
        try:
            load(pictures, 64)
        except VitcoreError as error:
            caught.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    time.sleep(0.1)
    os.kill(some[0], signal.SIGKILL)  # a death while it closes changes nothing
    began = time.monotonic()
    slow.close()
    slow.close()
    reading.join(PROMPT)
    assert time.monotonic() - began < PROMPT and not reading.is_alive()
    assert [str(error) for error in caught] == ["the loader is closed; read again to start its workers anew"]
    wait_until_gone(some)


def test_closing_while_workers_start_is_prompt() -> None:
    starting = Processes(2)
    starting.start()
    assert starting._foreman is not None
    keeper = starting._foreman._hiring._keeper
    began = time.monotonic()
    starting.close()
    assert time.monotonic() - began < PROMPT and keeper.returncode is not None


ORPHANS = f"""
import sys, numpy as np
sys.path.insert(0, {str(HERE)!r})
from deadly import Deadly
from vitcore.data.loading.processes import Processes
from vitcore.data.loading.reading import Reader, Rows
from vitcore.data.view import View
workers = Processes(2)
reader, rows = Reader(Deadly(4096, seconds=0.01), View(size=(8, 8))), Rows(np.arange(4096), np.arange(4096), 0, None)
workers.read(reader, rows.part(0, 4))
foreman = workers._foreman
print(foreman._hiring._keeper.pid, *(w.pid for w in foreman._workers.values()), flush=True)
workers.read(reader, rows)
"""


@pytest.mark.parametrize(
    "signum",
    [signal.SIGKILL, *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGINT, signal.SIGTERM))],
)
def test_no_worker_outlives_the_process_that_it_works_for(signum: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        some = [int(word) for word in process.stdout.readline().split()]
        assert len(some) == 3 and not any(gone(pid) for pid in some)
        process.send_signal(signum)
        process.wait(PROMPT)
        wait_until_gone(some)
    finally:
        process.kill()
        process.wait()
