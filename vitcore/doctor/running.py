"""A few real steps on an opened device, watched: with an evaluation, a log and a checkpoint in between, then two steps under
the probe, then one with a batch of another size."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from vitcore import checkpoint
from vitcore.data.feed import Feed
from vitcore.doctor.lines import defined, is_foreign
from vitcore.doctor.probe import Probed, probed
from vitcore.doctor.watch import Row, Seen, Watch
from vitcore.errors import VitcoreError
from vitcore.runtime.executable import Executable, State

EVALUATED = 2
"""Batches of one evaluation, where there are so many."""


@dataclass
class Run:
    """What a run came to; `failure` is what ended it early, and where."""

    rows: list[Row] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    batches: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    steps: list[Probed] = field(default_factory=list)
    """The steps under the probe."""
    evaluation: Probed | None = None
    other_size: tuple[int, int] | None = None
    """A micro-batch of so many pictures, and how many graphs it compiled."""
    other_failed: str = ""
    failure: str = ""
    failed_at: str = ""
    records: bool = False
    """Whether the device keeps a record of its flushes."""
    fine: bool = False
    """Whether it could be asked within a step, so that flushes and fallbacks have their op and line."""
    counts: bool = False
    """Whether the device counts them."""
    feed_defined: str = ""

    @property
    def shapes(self) -> dict[tuple[int, ...], int]:
        """The shapes of training batches, and how many had each; that of another size, which was asked for, left out."""
        return dict(Counter(shape for phase, shape in self.batches if phase != OTHER))

    @property
    def peak_bytes(self) -> int:
        """The most that was alive while a graph of a training step ran, by the device's record; 0 where it keeps none."""
        return max((s.peak_bytes for s in self.seen if s.phase.startswith("step")), default=0)


OTHER = "a batch of another size"


def run(exe: Executable, start: Callable[[], State], hyper: Callable[[int], Mapping[str, float]], steps: int) -> Run:
    """Train `steps` steps and three more; what raises ends the run and is a finding, no error."""
    if steps < 2:
        raise VitcoreError(f"--steps {steps} is too few to see what is compiled again; give 2 or more")
    watch, done = Watch(exe), Run()
    done.records, done.counts = watch.events is not None, watch.counts_device
    done.feed_defined = defined(type(exe.rt.feed).next_train) if exe.rt.feed is not None else ""
    with watch, _failing(done):
        done.fine = watch.fine
        with watch.phase("start", "init"):
            state = start()
        for step in range(steps):
            with watch.phase(f"step {step + 1}", "train"):
                state = exe.step(state, hyper(step))
            if step + 1 in (max(steps // 2, 1), steps):
                state = _between(watch, state)
        for step in (steps, steps + 1):
            with watch.phase(f"step {step + 1}, probed", "train"), probed(watch) as found:
                done.steps.append(found)
                state = exe.step(state, hyper(step))
        with watch.phase("evaluation, probed", "eval"), probed(watch) as done.evaluation:
            state = exe.eval(state, 1)
        _another_size(watch, done, state, hyper(steps + 2))
    done.rows, done.seen, done.batches = watch.rows, watch.seen, watch.batches
    return done


def _between(watch: Watch, state: State) -> State:
    exe = watch.exe
    assert exe.rt.feed is not None
    batches = min(exe.rt.feed.eval_steps, EVALUATED)
    with watch.phase("evaluation", "eval", batches):
        state = exe.eval(state, batches)
    with watch.phase("log", "log"):
        state, _ = exe.log(state)
    with watch.phase("checkpoint", "checkpoint"):
        checkpoint.flatten(exe.saved(state), {v.name: v.ty.kind for v in exe.module.saved}, exe.rt.names)
    return state


def _another_size(watch: Watch, done: Run, state: State, hyper: Mapping[str, float]) -> None:
    """One step on the same pictures in smaller batches; the state is not used again."""
    rt, feed = watch.rt, watch.rt.feed
    assert feed is not None
    size = feed.micro_batch - (2 if feed.augment.mixes else 1) or 2 * feed.micro_batch
    per_micro = feed.micro_batch * feed.world_size
    other = Feed(
        feed.dataset, seed=feed.seed, micro_batch=size, accumulation=feed.global_batch // per_micro,
        world_size=feed.world_size, rank=feed.rank, augment=feed.augment, eval_batch=feed.eval_batch,
        tokens=feed.tokens,
    )  # fmt: skip
    rt.feed = other
    try:
        with watch.phase(OTHER, "train"):
            watch.exe.step(state, hyper)
        done.other_size = (size, watch.rows[-1].compiles)
    except Exception as e:  # a model may be made for one size
        done.other_failed = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
    finally:
        rt.feed = feed
        other.close()


@contextmanager
def _failing(done: Run) -> Iterator[None]:
    try:
        yield
    except Exception as e:  # a model's or a kernel's: whatever it raises is the finding
        done.failure = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
        frames = [f for f in traceback.extract_tb(e.__traceback__) if is_foreign(f.filename)]
        done.failed_at = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
