"""C3, C7 and C13: values, op by op, against float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from vitcore.backend import resolve
from vitcore.model.vit import parameter_names
from vitcore.step.build import StepSpec
from vitcore.step.ir import Module, walk
from vitcore.testing.checks import Failure
from vitcore.testing.oracle import oracle
from vitcore.testing.problem import Subject, host_leaves, model, reference
from vitcore.testing.recording import FACTOR, Divergence, Recorder, Records, first_divergence

STEPS, BAD = 4, 2
# In a narrow precision two runs drift apart from update to update, whichever ops they are made of: one update is looked at.
NARROW_STEPS, NARROW_BAD = 3, 1
# The host multiplies float32 in one way alone. A shorter way may be as far off as narrow numbers are, which are shorter still.
_AS_FAR_AS = {"tf32": "bf16-casts"}
DROPOUT = 0.1
# Relative distance of two sums of one set of numbers in other orders, over a few steps.
ROUNDING = 2e-6
# Calls of the second step: in the first the head is zero, and so are most gradients.
_PLANTED = {
    "model.forward": 2,
    "model.backward": 2,
    "grads.add": 2,
    "grads.scale": 1,
    "grads.clip": 1,
    "opt.update": 1,
    "metrics.count": 1,
}


@dataclass(frozen=True)
class Case:
    """A step that is compared, and the model's GELU."""

    spec: StepSpec
    gelu: str = "tanh"


def cases(subject: Subject) -> dict[str, Case]:
    """Both optimizers, with and without clipping, smoothing and accumulation; both forms of GELU."""
    return {
        "sgdm": Case(subject.spec("sgdm")),
        "adamw, accumulation 2, exact GELU": Case(subject.spec("adamw", 2, label_smoothing=0.1), "exact"),
        "sgdm without clipping": Case(subject.spec("sgdm", clip=False)),
    }


def near_float64(subject: Subject) -> str:
    """C3: in every precision, with dropout, one batch that is not finite, and an evaluation."""
    for precision in subject.backend.precisions:
        for what, case in cases(subject).items():
            if found := divergence(subject, case, precision):
                raise Failure(f"{precision}, {what}: {found}")
    programs = f"{len(cases(subject))} programs of {STEPS} steps ({NARROW_STEPS} in narrow precisions)"
    return f"{', '.join(subject.backend.precisions)}: {programs} within {FACTOR:g}x of the reference"


def divergence(subject: Subject, case: Case, precision: str) -> Divergence | None:
    """The first op that is further from float64 than it may be."""
    narrow = precision != "fp32"
    steps, bad = (NARROW_STEPS, NARROW_BAD) if narrow else (STEPS, BAD)
    candidate = recorded(subject, case, precision, bad, Recorder(), steps)
    usual = recorded(reference(subject), case, _AS_FAR_AS.get(precision, precision), bad, Recorder(), steps)
    declared = variants(subject.lowered(case.spec, precision))
    exact, usual_exact = (
        oracle(subject, case.spec, steps, dropout=DROPOUT, gelu=case.gelu, poisoned=bad, variants=named,
               answers=run.records if narrow else None)
        for named, run in ((declared, candidate), (frozenset[str](), usual))
    )  # fmt: skip
    found = first_divergence(candidate.records, usual.records, exact, usual_exact, narrow=narrow)
    return found and replace(found, impl=candidate.impls.get(found.op, ""))


def recorded(
    subject: Subject, case: Case, precision: str, poisoned: int | None, recorder: Recorder, steps: int = STEPS
) -> Recorder:
    """The recorder after some steps and an evaluation."""
    recorder.names = parameter_names(model())
    if subject.backend.mark:
        recorder.flush = resolve(subject.backend.mark)
    exe = subject.open(
        case.spec, precision=precision, dropout=DROPOUT, gelu=case.gelu, wrap=recorder, poisoned=poisoned
    )
    try:
        state = subject.train(exe, steps)
        assert exe.rt.feed is not None
        exe.log(exe.eval(state, exe.rt.feed.eval_steps))
    finally:
        exe.close()
    return recorder


def variants(module: Module) -> frozenset[str]:
    """The named formulas that the program's kernels declare."""
    return frozenset(op.attrs["variant"] for p in module.programs for op in walk(p.ops) if "variant" in op.attrs)


def accumulation(subject: Subject) -> str:
    """C7: four micro-batches of two against one batch of eight, dropout on; the reference says how far rounding goes."""

    def ends(of: Subject, times: int) -> Mapping[str, Tensor]:
        exe = of.open(of.spec("sgdm", times), dropout=DROPOUT)
        try:
            params = of.train(exe, 3)[0]
            return host_leaves(params, exe.rt.names)
        finally:
            exe.close()

    ours, theirs = ((ends(s, 4), ends(s, 1)) for s in (subject, reference(subject)))
    distances = {n: apart(ours[0][n], ours[1][n]) for n in ours[0]}
    worst = max(distances, key=lambda n: distances[n])
    bound = FACTOR * max(apart(theirs[0][worst], theirs[1][worst]), ROUNDING)
    if not distances[worst] <= bound:
        raise Failure(f"after 3 steps parameter {worst} of 4 micro-batches of 2 is {distances[worst]:.2g} (relative) from that "
                      f"of one batch of 8, where {bound:.2g} is rounding; look at grads.zero, grads.add and grads.scale, and "
                      "at how many batches are read")  # fmt: skip
    return f"4 x 2 and 1 x 8 images differ by {distances[worst]:.1e} at most"


def apart(a: Tensor, b: Tensor) -> float:
    """The relative distance of two tensors, infinite where one of them is not finite."""
    distance = float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12))
    return distance if distance == distance else float("inf")


def boundaries(subject: Subject) -> str:
    """C13: no op writes into what it borrows; and a fault that is planted into an op's result is found there."""
    case = Case(subject.spec("adamw", 2))
    recorder = recorded(subject, case, "fp32", None, Recorder())
    if recorder.written:
        raise Failure(f"{recorder.written[0]} is borrowed, and changed by it; write into fresh memory, or into what the op "
                      "consumes")  # fmt: skip
    # Against the same program without the fault: before the fault they are equal, whatever the device rounds.
    right = recorder.records
    made = {op: number for op, number in _PLANTED.items() if any(seen == op for seen, _, _ in right)}
    for op, number in made.items():
        planted: Records = recorded(subject, case, "fp32", None, Recorder((op, number))).records
        found = first_divergence(planted, right, right)
        if found is None or (found.op, found.number) != (op, number):
            where = "nowhere" if found is None else f"in {found.op}, call {found.number + 1}"
            raise Failure(f"a fault planted into result {number + 1} of {op} is found {where}: results of ops are not seen "
                          f"where they are made; a kernel before {op} may hand out memory that it writes into later")  # fmt: skip
    return f"nothing borrowed is written; faults planted into {len(made)} ops are found in them"
