"""What of a run is wrong, each with its line of Python and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from vitcore.doctor.compare import Difference, differences
from vitcore.doctor.lines import BACKWARD
from vitcore.doctor.probe import Fault
from vitcore.doctor.running import OTHER, Run
from vitcore.doctor.watch import Row, Seen

SEVERITIES = ("error", "warning", "note")

_KEEP = "keep the value on the device (torch.where, masked_fill, a factor of 0 or 1), or read it in a log step"
_RECORDED = ("write it with ops that the device records (docs/backends.md, section 2, names those that most lack), or claim the "
             "op with a kernel of the device's own")  # fmt: skip
_CLIP = ("leave out the stock function: the reference kernel of grads.clip takes the norm from sums of squares "
         "(vitcore.runtime.reference.grads:clip)")  # fmt: skip
_PADDED = "pad the batch and give the rows a weight of 0, or drop it, as vitcore.data.feed does"
_SELDOM = frozenset({"linalg_vector_norm", "_foreach_norm", "lerp", "unbind", "split", "split_with_sizes", "logsumexp"})
_READS = ("item", "_local_scalar_dense", "host", "tolist")


@dataclass(frozen=True)
class Finding:
    """`where` is file:line: text, or "" where no line is to blame."""

    severity: str
    what: str
    where: str
    remedy: str


def diagnose(run: Run, *, lazy: bool) -> list[Finding]:
    """Every finding of a run, the worst first."""
    found = [*_failure(run), *_reads(run), *_fallbacks(run)]
    found += _flushes(run, found)
    found += _recompiled(run)
    if lazy:
        found += [*_numbers(run), *_outside(run, {_bare(f.where) for f in found})]
    if not any(f.where == run.feed_defined for f in found):
        found += _batches(run, lazy)
    found += _predictions(run, found)
    return sorted(found, key=lambda f: SEVERITIES.index(f.severity))


def _failure(run: Run) -> Iterator[Finding]:
    if run.failure:
        yield Finding("error", f"the run failed: {run.failure}", run.failed_at,
                      "correct it; what comes after it was not looked at")  # fmt: skip


def _faults(run: Run, kind: str) -> Iterator[tuple[Fault, int]]:
    """The probe's faults by op and line, each with how often it came in the phase in which it came most."""
    probes = [*run.steps, *([run.evaluation] if run.evaluation else [])]
    most: dict[tuple[str, str, str], tuple[Fault, int]] = {}
    for probe in probes:
        keys = [(f.at, f.name, f.line) for f in probe.faults if f.kind == kind]
        for key, count in Counter(keys).items():
            fault = next(f for f in probe.faults if (f.at, f.name, f.line) == key)
            most[key] = max(most.get(key, (fault, 0)), (fault, count), key=lambda found: found[1])
    yield from most.values()


def _unit(fault: Fault) -> str:
    return "an evaluated batch" if "evaluation" in fault.phase else "a step"


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count} times"


def _reads(run: Run) -> Iterator[Finding]:
    for fault, count in _faults(run, "read"):
        what = f"{fault.at}: {fault.name} reads a value of the device on the host, {_times(count)} {_unit(fault)}"
        if re.search(r":\d+: (el)?(if|while) ", fault.line):
            what += "; the branch depends on data, so that what is recorded may differ from step to step"
        yield Finding(
            "error", f"{what}; all that is pending must be done first, which cuts the graph", fault.line, _KEEP
        )


def _fallbacks(run: Run) -> Iterator[Finding]:
    lines = set()
    for fault, count in _faults(run, "fallback"):
        lines.add(_bare(fault.line))
        remedy = _CLIP if "clip_grad" in fault.line else _RECORDED
        yield Finding("error", f"{fault.at}: {fault.name} falls back to the host, {_times(count)} {_unit(fault)}, and cuts the "
                      "graph", fault.line, remedy)  # fmt: skip
    recorded = Counter(
        (s.at, s.cause, s.line) for s in run.seen if s.cause.startswith("fallback") and not s.declared
    )  # fmt: skip
    for at, cause, line in recorded:
        if _bare(line) not in lines and not any(f.at == at for f, _ in _faults(run, "fallback")):
            yield Finding("error", f"{at}: {cause}; it runs on the host and cuts the graph", line, _RECORDED)
    # A read by the host counts as a fallback on some devices, and is a finding of its own.
    explained = lines or recorded or any(_faults(run, "read"))
    if not explained and (rows := [r for r in _steps(run)[1:] if r.fallbacks]):
        yield Finding("error", f"{rows[0].fallbacks} ops fall back to the host in {rows[0].phase}, by the device's count; which "
                      "they are was not seen", "", _RECORDED)  # fmt: skip


def _flushes(run: Run, explained: list[Finding]) -> Iterator[Finding]:
    """Flushes that the text does not say. Where the device keeps no record, the probe's lines are better than the clean
    steps', which only know the kernel."""
    known = {_bare(f.where) for f in explained}
    loose = [s for s in run.seen if not s.declared and s.phase != OTHER]
    told = {s.at for s in loose if "probed" in s.phase}
    if not run.records:
        loose = [s for s in loose if "probed" in s.phase or s.at not in told]
    groups: dict[tuple[str, str, str], list[Seen]] = {}
    for s in loose:
        groups.setdefault((s.at, s.cause, s.line), []).append(s)
    excused = {f.what.partition(":")[0] for f in explained}
    for (at, cause, line), times in groups.items():
        vague = cause in ("a flush", "mark") or any(word in cause for word in ("fallback", *_READS))
        if _bare(line) in known or (at in excused and vague):
            continue
        phases = {s.phase for s in times}
        unit = "a step" if all(p.startswith("step") for p in phases) else f"in the {times[0].phase}"
        said = "" if cause == "a flush" else f" by {cause}"
        often = _times(-(-len(times) // len(phases)))
        yield Finding("error", f"{at}: flushes{said} without saying so, {often} {unit}", line,
                      "let the kernel declare it (flushes=(before, inside, after)), or take out what flushes")  # fmt: skip


def _steps(run: Run) -> list[Row]:
    return [r for r in run.rows if r.program == "train" and r.phase != OTHER]


def _recompiled(run: Run) -> Iterator[Finding]:
    """Graphs that are compiled after the first time that a program ran."""
    for program in ("train", "eval", "log", "checkpoint"):
        rows = [r for r in run.rows if r.program == program and r.phase != OTHER]
        grown = [r for r in rows[1:] if r.compiles]
        if not grown:
            continue
        least = min(r.compiles for r in grown)
        count = "a graph is" if least == 1 else f"{least} graphs are"
        if program == "train":
            every = 1 < len(grown) == len(rows) - 1
            when = "in every step" if every else "in " + ", ".join(r.phase for r in grown)
        else:
            when = f"when {'an' if program == 'eval' else 'a'} {grown[0].phase} comes again"
        what, where, remedy = _why(run, rows, grown)
        yield Finding("error", f"{count} compiled after warm-up, {when}: {what}", where, remedy)


def _why(run: Run, rows: list[Row], grown: list[Row]) -> tuple[str, str, str]:
    """What explains compilations: the shape of a batch, a difference between two steps, or state that comes late."""
    usual = max(run.shapes, key=lambda s: run.shapes[s], default=())
    odd = {phase for phase, shape in run.batches if shape != usual}
    if odd >= {r.phase for r in grown}:
        shapes = " and ".join(str(list(s)) for s in run.shapes if s != usual)
        return f"batches of shape {shapes} where the others have {list(usual)}", run.feed_defined, _PADDED
    found = differences(run.steps)
    for kind in ("number", "ops", "shape"):
        for d in (d for d in found if d.kind == kind):
            return str(d), d.line, _REMEDIES[kind]
    phases = {r.phase for r in grown}
    seen = [s for s in run.seen if s.compiled and s.phase in phases]
    at = f"the graph that is flushed at {seen[0].at}" if seen else "which graph was not seen"
    where = next((s.line for s in seen if s.line), "")
    if len(rows) > 2 and phases == {rows[1].phase}:
        return (
            f"{at}; something is made at the first update",
            where,
            "make every slot in opt.init, and every buffer in init",
        )
    return at, where, "look for Python numbers and shapes that change from step to step"


_REMEDIES = {
    "number": "pass what changes as a 0-d tensor of the device, as hyper.tensor does; a Python number is a constant of the graph",
    "ops": "let every step record the same ops, and choose by masks and not by branches",
    "shape": "keep every shape fixed: pad, and mask by weights",
}


def _numbers(run: Run) -> Iterator[Finding]:
    """Python numbers that change where the device compiles nothing for it: another device would."""
    if any(r.compiles for r in _steps(run)[1:]):
        return
    said: set[str] = set()
    for d in differences(run.steps):
        if d.kind == "number" and _bare(d.line) not in said:
            said.add(_bare(d.line))
            yield Finding("warning", f"{_described(d)}; nothing was compiled for it here, a device that takes it for a constant "
                          "compiles a graph each time", d.line, _REMEDIES["number"])  # fmt: skip


def _outside(run: Run, known: set[str]) -> Iterator[Finding]:
    """Ops that this device takes and most recording devices do not; stock clipping is the one that is met most."""
    met = Counter((c.at, c.name, c.line) for c in (run.steps[-1].calls if run.steps else ()))
    for (at, name, line), count in met.items():
        if name.split(".")[1] in _SELDOM and _bare(line) not in known:
            stock = "clip_grad" in line
            yield Finding("warning" if stock else "note", f"{at}: {name}, {_times(count)} a step, is an op that many recording "
                          "devices lack; this one takes it", line, _CLIP if stock else _RECORDED)  # fmt: skip


def _described(d: Difference) -> str:
    return f"{d.at}: {d}"


def _batches(run: Run, lazy: bool) -> Iterator[Finding]:
    shapes = run.shapes
    if len(shapes) > 1:
        counts = ", ".join(f"{count} of {list(shape)}" for shape, count in shapes.items())
        cost = "each shape is a graph of its own" if lazy else "what is compiled by shape is compiled anew for each"
        what = f"data.next: batches have several shapes ({counts}), as of a ragged last batch; {cost}"
        yield Finding("error" if lazy else "warning", what, run.feed_defined, _PADDED)


def _predictions(run: Run, explained: list[Finding]) -> Iterator[Finding]:
    """Counts that differ from the text where nothing else said why."""
    if (
        run.failure
        or not run.counts
        or any("flush" in f.what or "graph" in f.what for f in explained if f.severity == "error")
    ):
        return
    for row in _steps(run):
        if row.predicted >= 0 and row.flushes != row.predicted:
            more = row.flushes > row.predicted
            yield Finding("error" if more else "warning", f"{row.phase}: the text says {row.predicted} flushes, the device "
                          f"counts {row.flushes}", "", "let kernels declare what they flush, no more and no less")  # fmt: skip
            return


def _bare(line: str) -> str:
    return line.removesuffix(BACKWARD)
