"""What a pass is, and what passes know: the backend and its kernels as data, precision, world, fuel and the log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from vitcore.backend import Backend, Kernel, World
from vitcore.step.ir import Module, Op, Program

TIERS = ("exact", "algebraic", "numerics", "placement")


@dataclass
class Fuel:
    """A budget of optional rewrites; `VITCORE_FUEL=n` stops after n, so that a wrong rewrite can be bisected."""

    left: int | None = None
    used: int = 0

    def take(self) -> bool:
        """Whether one more rewrite may be made."""
        if self.left is not None and self.used >= self.left:
            return False
        self.used += 1
        return True


@dataclass
class Lowering:
    """The context of one lowering. `kernels` are in the order in which they are asked; the reference comes last."""

    backend: Backend
    kernels: Sequence[Kernel]
    precision: str = "fp32"
    world: World = field(default_factory=World)
    fuel: Fuel = field(default_factory=Fuel)
    remat: str = "none"
    """What of the forward is computed once more in the backward, `none` or `blocks`."""
    module: Module | None = None
    """The module as it was before the running pass, for passes that look at a sibling program."""
    log: list[str] = field(default_factory=list)
    """One numbered line a pass and program."""
    refusals: list[str] = field(default_factory=list)
    """Every kernel that did not take an op, with its reason (`--explain`)."""
    dumps: list[tuple[str, str]] = field(default_factory=list)
    """(title, text) after each pass that changed something."""


Rewrite = Callable[[Program, Lowering], Program]


@dataclass(frozen=True)
class Pass:
    """A rewrite of one program. Tier `exact` keeps every bit, `algebraic` the mathematics, `numerics` may change
    rounding, `placement` decides where and how but not what."""

    name: str
    tier: str
    run: Rewrite
    required: bool = False
    """Whether lowering is impossible without it, so that it cannot be disabled."""


def with_attrs(program: Program, names: Collection[str], fuel: Fuel | None = None, **attrs: str) -> Program:
    """The program, its ops of these names with further attributes, in every block; with `fuel` each is a rewrite that may
    be stopped."""

    def block(ops: Sequence[Op]) -> tuple[Op, ...]:
        more = (replace(op, body=block(op.body)) for op in ops)
        return tuple(op.with_attrs(**attrs) if op.name in names and (not fuel or fuel.take()) else op for op in more)

    return replace(program, ops=block(program.ops))


def lowering_pass(tier: str, *, required: bool = False) -> Callable[[Rewrite], Pass]:
    """Make a pass of a function; its name is the function's."""

    def make(run: Rewrite) -> Pass:
        return Pass(run.__name__, tier, run, required)

    return make
