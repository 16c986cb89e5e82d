"""C4, C5 and C6: what a step asks of the device, counted."""

from __future__ import annotations

from torch import Tensor

from vitcore import checkpoint
from vitcore.backend import resolve
from vitcore.doctor.flushes import predicted
from vitcore.runtime.executable import Executable, State, Stats
from vitcore.runtime.guards import HostReadError
from vitcore.testing.checks import Failure
from vitcore.testing.problem import Subject, hyper


def no_host_read(subject: Subject) -> str:
    """C4: training, evaluating and logging under the guard; and one host read a log."""
    for optimizer, accumulation in (("sgdm", 1), ("adamw", 2)):
        exe = subject.open(subject.spec(optimizer, accumulation), dropout=0.1, guard=True)
        try:
            state = subject.train(exe, 2)
            assert exe.rt.feed is not None
            state = exe.eval(state, exe.rt.feed.eval_steps)
            exe.log(state)
            reads = exe.stats().host_reads
        except HostReadError as e:
            raise Failure(str(e)) from e
        finally:
            exe.close()
        if reads != 1:
            raise Failure(
                f"metrics.read: the host read the device {reads} times for one log; read all accumulators at once"
            )
    return "training, evaluation and log under the guard; one host read a log"


def flushes(subject: Subject) -> str:
    """C6: marks, and the flushes that the device counts, of each step and each evaluated batch."""
    said = []
    for optimizer, accumulation in (("sgdm", 1), ("sgdm", 2), ("adamw", 2)):
        exe = subject.open(subject.spec(optimizer, accumulation))
        try:
            state = subject.train(exe, 1)
            say = {p: predicted(exe.module[p].ops) for p in ("train", "eval")}
            for step in (1, 2):
                before = exe.stats()
                state = exe.step(state, hyper(step))
                _compare(exe, before, say["train"], f"a step of {optimizer}, accumulation {accumulation}")
            before = exe.stats()
            state = exe.eval(state, 2)
            _compare(exe, before, 2 * say["eval"], "two evaluated batches")
        finally:
            exe.close()
        said.append(str(say["train"]))
    what = "marks and counted flushes" if _counts(subject, "flushes") else "marks"
    return f"{what} a step as predicted: {', '.join(said)}"


def _compare(exe: Executable, before: Stats, expected: int, what: str) -> None:
    now = exe.stats()
    marks, counted = now.marks - before.marks, now.flushes - before.flushes
    asked = "marks" if marks != counted or not exe.rt.backend.counters else "flushes"
    if counted != expected or marks > expected:
        raise Failure(f"{what}: the text says {expected} flushes, the device counts {counted} ({marks} asked by rt.mark); "
                      f"place a mark after each region (split_after), and let kernels that flush by themselves declare it "
                      f"(flushes=(before, inside, after)); what is counted here are {asked}")  # fmt: skip


def _counts(subject: Subject, what: str) -> bool:
    return subject.backend.counters is not None and what in resolve(subject.backend.counters)()


def compile_budget(subject: Subject) -> str:
    """C5: no tensor of the state appears after `init`; after some steps, one evaluation, one log and one checkpoint nothing
    is compiled again, and no op falls back, while the learning rate moves. In every precision."""
    graphs = [_warm_up(subject, precision) for precision in subject.backend.precisions]
    if not _counts(subject, "compiles"):
        return "no state appears after init; the device counts no compilations"
    return f"{', '.join(map(str, graphs))} graphs at warm-up, none after; no fallback"


def _warm_up(subject: Subject, precision: str) -> int:
    exe = subject.open(subject.spec("adamw", 2), precision=precision, dropout=0.1)
    try:
        begin = exe.stats().compiles
        state = subject.start(exe)
        shape = _shape(state)
        state = exe.step(state, hyper(0))
        if (new := _shape(state)) != shape:
            raise Failure(f"opt.update: the state has other tensors after the first step than after init "
                          f"({sorted(set(new) ^ set(shape))[:3]}); make every slot in opt.init")  # fmt: skip
        first = exe.stats()
        state = exe.step(state, hyper(1))
        if compiled := exe.stats().compiles - first.compiles:
            raise Failure(f"{precision}: the second step compiles {compiled} graphs that the first did not: something appears at "
                          "the first update, or a number is a constant of the graph; make state in init, and take scalars by "
                          "hyper.tensor")  # fmt: skip
        state = _cycle(exe, state, 2)
        warm = exe.stats()
        _cycle(exe, state, 5)
        after = exe.stats()
    finally:
        exe.close()
    if after.compiles != warm.compiles:
        raise Failure(f"{precision}: {after.compiles - warm.compiles} graphs are compiled after warm-up, in steps with a moving "
                      "learning rate, an evaluation with a padded batch, a log and a checkpoint; look for Python numbers that "
                      "change and for shapes that do")  # fmt: skip
    if after.fallbacks != warm.fallbacks:
        raise Failure(f"{precision}: {after.fallbacks - warm.fallbacks} ops fall back to the host after warm-up; keep the "
                      "kernels inside the subset that the device records")  # fmt: skip
    return warm.compiles - begin


def _cycle(exe: Executable, state: State, first: int) -> State:
    assert exe.rt.feed is not None
    for step in (first, first + 1):
        state = exe.step(state, hyper(step))
    state = exe.eval(state, exe.rt.feed.eval_steps)
    state, _ = exe.log(state)
    checkpoint.flatten(exe.saved(state), {v.name: v.ty.kind for v in exe.module.saved}, exe.rt.names)
    return exe.step(state, hyper(first + 2))


def _shape(state: State) -> list[str]:
    found = []

    def look(value: object, path: str) -> None:
        if isinstance(value, Tensor):
            found.append(f"{path} {list(value.shape)} {value.dtype}")
        elif isinstance(value, dict):
            for k, v in value.items():
                look(v, f"{path}.{k}")
        elif isinstance(value, (tuple, list)):
            for i, v in enumerate(value):
                look(v, f"{path}.{i}")

    look(state, "state")
    return found
