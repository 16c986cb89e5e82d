"""The step program: types, values, ops and programs, as immutable data.

A training step is a few dozen ops on *bundles* (all parameters, all gradients). Bundles that hold state are *linear*:
each is consumed exactly once and may be borrowed before that. From this follow donation (in-place updates are legal),
exact checkpoints (the linear parameters are the state) and most of the verifier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

LINEAR = frozenset({"params", "opt", "ema", "grads", "tape", "key", "cursor", "metrics"})
FREE = frozenset({"weights", "batch", "logits", "scalar", "flag", "hyper", "report"})

# The ops that carry control flow or are placed by lowering; they have no entry in the op table of `ops.py`.
FLOW = frozenset({"repeat", "yield", "return", "rt.region", "rt.mark"})


@dataclass(frozen=True)
class Ty:
    """A type: a kind and its parameters, printed `kind<a b>`.

    `derived` marks a program parameter that may cross steps but is never saved, since `restore` rebuilds it from saved
    state; it prints as `derived<kind<a b>>` and behaves as the plain type wherever it is used.
    """

    kind: str
    args: tuple[str, ...] = ()
    derived: bool = False

    def __str__(self) -> str:
        text = f"{self.kind}<{' '.join(self.args)}>" if self.args else self.kind
        return f"derived<{text}>" if self.derived else text

    def has(self, arg: str) -> bool:
        """Whether `arg` is among the type's parameters: `opt<sgdm>` has "sgdm"."""
        return arg in self.args

    def but(self, old: str, new: str) -> Ty:
        """The same type with parameter `old` replaced by `new`."""
        return replace(self, args=tuple(new if a == old else a for a in self.args))

    @property
    def plain(self) -> Ty:
        """The type without its `derived` mark."""
        return replace(self, derived=False) if self.derived else self

    @property
    def linear(self) -> bool:
        """Whether a value of this type is consumed exactly once."""
        return self.kind in LINEAR


@dataclass(frozen=True)
class Value:
    """A named, typed result; names are unique in a program."""

    name: str
    ty: Ty

    def __str__(self) -> str:
        return "%" + self.name


@dataclass(frozen=True)
class Op:
    """One operation. `binds` and `body` are the block of a `repeat` or `rt.region`."""

    name: str
    args: tuple[Value, ...] = ()
    outs: tuple[Value, ...] = ()
    attrs: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[Value, ...] = ()
    body: tuple[Op, ...] = ()

    def with_attrs(self, **attrs: str) -> Op:
        """The same op with more (or other) attributes."""
        return replace(self, attrs={**self.attrs, **attrs})

    @property
    def flushes(self) -> tuple[int, int, int]:
        """How often the op's kernel flushes a lazy device by itself: before, inside and after its own work."""
        before, inside, after = (int(n) for n in self.attrs.get("flushes", "0/0/0").split("/"))
        return before, inside, after


@dataclass(frozen=True)
class Program:
    """One program over a module's state: `level` is `step`, then `lowering:<backend>`, then `lowered:<backend>`."""

    name: str
    level: str
    params: tuple[Value, ...]
    ops: tuple[Op, ...]
    attrs: Mapping[str, str] = field(default_factory=dict)

    @property
    def neutral(self) -> bool:
        """Whether lowering has not begun: the text serves every device, world size and precision."""
        return self.level == "step"

    @property
    def sealed(self) -> bool:
        """Whether lowering is complete."""
        return self.level.startswith("lowered:")

    @property
    def results(self) -> tuple[Value, ...]:
        """What the program returns."""
        return self.ops[-1].args if self.ops and self.ops[-1].name == "return" else ()

    def __str__(self) -> str:
        from vitcore.step.text import print_program

        return print_program(self)


@dataclass(frozen=True)
class Group:
    """A parameter group: the parameters whose name matches `pattern` (first group wins), with multiples of the
    learning rate and weight decay, and the kind of optimizer where it is another than the module's. What is `frozen` is
    not trained: it has no gradient, no optimizer state and no update."""

    name: str
    pattern: str = ".*"
    lr: float = 1.0
    weight_decay: float = 1.0
    kind: str = ""
    frozen: bool = False


@dataclass(frozen=True)
class Module:
    """Programs over the same state (`init`, `train`, `eval`, `log`, `restore`), with a header of facts and groups."""

    name: str
    attrs: Mapping[str, str]
    groups: tuple[Group, ...]
    programs: tuple[Program, ...]

    def __getitem__(self, name: str) -> Program:
        for program in self.programs:
            if program.name == name:
                return program
        raise KeyError(f"module @{self.name} has no program @{name}")

    def __str__(self) -> str:
        from vitcore.step.text import print_module

        return print_module(self)

    @property
    def state(self) -> tuple[Value, ...]:
        """The values that cross from step to step, in order: `train`'s parameters that it consumes or that are derived."""
        return tuple(v for v in self["train"].params if v.ty.linear or v.ty.derived)

    @property
    def saved(self) -> tuple[Value, ...]:
        """The values of a checkpoint: the state without what is derived."""
        return tuple(v for v in self.state if not v.ty.derived)


def walk(ops: Iterable[Op]) -> Iterator[Op]:
    """Every op, outer before inner, in program order."""
    for op in ops:
        yield op
        yield from walk(op.body)


def values(program: Program) -> Iterator[Value]:
    """Every value the program defines: parameters, results and block arguments."""
    yield from program.params
    for op in walk(program.ops):
        yield from op.binds
        yield from op.outs


def rename(ops: Iterable[Op], names: Mapping[str, Value]) -> tuple[Op, ...]:
    """The ops with operands replaced by name, at every depth."""
    return tuple(
        replace(op, args=tuple(names.get(a.name, a) for a in op.args), body=rename(op.body, names)) for op in ops
    )


def fresh(program: Program, stem: str) -> str:
    """A value name starting with `stem` that the program does not use yet."""
    taken = {v.name for v in values(program)}
    name, n = stem, 1
    while name in taken:
        n += 1
        name = f"{stem}{n}"
    return name
