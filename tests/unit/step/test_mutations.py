"""Mutation check of the verifier: the shipped step with one op deleted, bypassed or swapped with its neighbour.

Each mutant is refused, or it is listed here with the reason why it is still a legal program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from vitcore.errors import VitcoreError
from vitcore.step.build import OPTIMIZERS, StepSpec, build
from vitcore.step.ir import Module, Op, Program, Value, rename
from vitcore.step.verify import verify_module

Block = tuple[Op, ...]
Mutant = tuple[str, Block]


def blocks(ops: Block, change: Callable[[Block], Iterator[Mutant]]) -> Iterator[Mutant]:
    """Every mutant of every block, as mutants of the outermost."""
    yield from change(ops)
    for i, op in enumerate(ops):
        for what, body in blocks(op.body, change) if op.body else ():
            yield what, (*ops[:i], replace(op, body=body), *ops[i + 1 :])


def label(op: Op) -> str:
    """The op's name, and what tells it from others of that name."""
    return " ".join([op.name, *(op.attrs[k] for k in ("name", "after") if k in op.attrs)])


def deletions(ops: Block) -> Iterator[Mutant]:
    for i, op in enumerate(ops):
        yield f"delete {label(op)}", (*ops[:i], *ops[i + 1 :])


def bypasses(ops: Block) -> Iterator[Mutant]:
    """Deletions that leave no name undefined: each result becomes the operand of its kind, or any operand."""
    for i, op in enumerate(ops):
        if not (op.outs and op.args):
            continue
        names: dict[str, Value] = {}
        for out in op.outs:
            same = [a for a in op.args if a.ty.kind == out.ty.kind] or [*op.args]
            names[out.name] = same[0]
        yield f"bypass {label(op)}", (*ops[:i], *rename(ops[i + 1 :], names))


def swaps(ops: Block) -> Iterator[Mutant]:
    for i, (first, second) in enumerate(pairwise(ops)):
        yield f"swap {label(first)} / {label(second)}", (*ops[:i], second, first, *ops[i + 2 :])


def survivors(module: Module) -> tuple[Counter[str], int]:
    """The mutants of `train` that the verifier accepts, and how many it refuses."""
    train, legal, refused = module["train"], Counter[str](), 0
    for change in (deletions, bypasses, swaps):
        for what, ops in blocks(train.ops, change):
            mutant: Program = replace(train, ops=ops)
            try:
                verify_module(replace(module, programs=tuple(mutant if p is train else p for p in module.programs)))
            except VitcoreError:
                refused += 1
            else:
                legal[what] += 1
    return legal, refused


INDEPENDENT = "neither uses what the other makes or consumes"
UNCOUNTED = "a step that adds less to its metrics is a step all the same"
EXPLAINED = {
    "swap data.put / rng.split": INDEPENDENT,
    "swap grads.add / metrics.add loss": INDEPENDENT,
    "swap model.backward / metrics.add loss": INDEPENDENT,
    "swap metrics.add loss / grads.scale": INDEPENDENT,
    "swap health.check / grads.zero": INDEPENDENT,
    "swap grads.zero / params.narrow": INDEPENDENT,
    "bypass metrics.add loss": UNCOUNTED,
    "bypass metrics.add grad_norm": UNCOUNTED,
    "bypass repeat": "zeros are gradients too: no rule demands that a step reads a batch",
}
ALWAYS = {"swap data.put / rng.split", "bypass metrics.add loss", "bypass metrics.add grad_norm"}
LOOP = ALWAYS | {"bypass repeat", "swap grads.add / metrics.add loss"}
INLINED = ALWAYS | {"swap model.backward / metrics.add loss"}


def check(module: Module, expected: set[str]) -> None:
    legal, refused = survivors(module)
    assert set(legal) == expected
    assert expected <= EXPLAINED.keys()
    assert max(legal.values()) == 1
    assert refused > 30


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_mutant_of_the_neutral_step_is_refused_or_explained(optimizer: str, accumulation: int, clip: bool) -> None:
    check(build(StepSpec(name="recipe", optimizer=optimizer, accumulation=accumulation, clip=clip)), LOOP)


@pytest.mark.parametrize(
    ("backend", "precision", "accumulation", "expected"),
    [
        # Where forward, backward and the sum are one op there is less to swap.
        ("cpu", "fp32", 1, ALWAYS | {"swap metrics.add loss / grads.scale"}),  # one region: the two are neighbours
        ("cpu", "fp32", 4, ALWAYS | {"bypass repeat"}),
        ("cpu", "bf16", 4, ALWAYS | {"bypass repeat", "swap grads.zero / params.narrow"}),
        ("hpu-lazy", "fp32", 1, INLINED | {"swap metrics.add loss / grads.scale"}),
        ("hpu-lazy", "fp32", 4, LOOP | {"swap health.check / grads.zero"}),
    ],
)
def test_each_mutant_of_the_lowered_step_is_refused_or_explained(
    backend: str, precision: str, accumulation: int, expected: set[str], lowered: Callable[..., Module]
) -> None:
    check(lowered(backend, precision, accumulation=accumulation), expected)
