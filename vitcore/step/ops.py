"""The op table: what every op means to the compiler. Printer, parser, verifier, passes, kernels and docs read it.

An entry is a typing rule (its docstring says what the op does), the operands it consumes, its effects (host: waits for
or works on the host; transfer; collective; accumulate: only folds a result into an accumulator), and the role that
names a compiled region (in parentheses: where nothing else names it). Typing rules raise `Bad(rule, message)`; rules V4
(gradients reduced and scaled exactly once) and V5 (randomness never reused) need no analysis of their own: they follow
from the types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vitcore.step.ir import Ty

Attrs = Mapping[str, str]
Infer = Callable[[Sequence[Ty], Attrs], list[Ty]]


class Bad(Exception):
    """A typing rule is broken: the verifier's rule and what is wrong, with its remedy."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


@dataclass(frozen=True)
class OpDef:
    """One row of the table."""

    name: str
    infer: Infer
    takes: tuple[int, ...]
    effects: frozenset[str]
    role: str
    attrs: tuple[str, ...]
    required: tuple[str, ...]

    @property
    def doc(self) -> str:
        """What the op does, in a sentence."""
        return (self.infer.__doc__ or "").strip()


OPS: dict[str, OpDef] = {}

# Functions of the model that kernels may claim, as ops are claimed; set on the ops that run the model.
FUNCTIONS = ("self_attention", "attention", "dropout")
RUNS_MODEL = ("model.forward", "model.grad", "model.apply")

# Set by lowering on any op: how it is implemented, by which named formula, in which precision, how often it flushes by itself.
LOWERED_ATTRS = ("impl", "variant", "autocast", "casts", "flushes", *FUNCTIONS)


def op(name: str, *, takes: tuple[int, ...] = (), effects: str = "", role: str = "", attrs: str = "") -> Callable:
    """Enter a typing rule into the table. `takes`: operand positions it consumes; the others are borrowed. `attrs`: the
    attributes it knows; `name!` is one that it must have."""

    def enter(infer: Infer) -> Infer:
        required = tuple(a[:-1] for a in attrs.split() if a.endswith("!"))
        known = tuple(a.rstrip("!") for a in attrs.split())
        OPS[name] = OpDef(name, infer, takes, frozenset(effects.split()), role, known, required)
        return infer

    return enter


SCALAR, NARROW = Ty("scalar", ("f32",)), Ty("weights", ("bf16",))
PARAMS, KEPT, EMA = Ty("params", ("f32",)), Ty("params", ("f32", "kept")), Ty("ema", ("f32",))
GRADS = Ty("grads", ("f32", "sum", "partial"))
HOST, DEV = Ty("batch", ("host",)), Ty("batch", ("dev",))
CURSOR, KEY, METRICS, TAPE = Ty("cursor"), Ty("key"), Ty("metrics"), Ty("tape")


def _operands(args: Sequence[Ty], *kinds: str) -> None:
    if [a.kind for a in args] != list(kinds):
        given = ", ".join(map(str, args))
        raise Bad("V2", f"takes ({', '.join(kinds)}) but is given ({given}); give it operands of these kinds")


def _on_device(batch: Ty) -> None:
    if not batch.has("dev"):
        raise Bad("V2", "the batch is on the host; put it on the device with data.put first")


def _ready(grads: Ty, verb: str) -> None:
    if not grads.has("synced"):
        raise Bad("V4", f"{verb} gradients that were never reduced; put grads.all_reduce before it")
    if not grads.has("mean"):
        raise Bad("V4", f"{verb} gradients that are still a sum over micro-batches; put grads.scale before it")


@op("data.next", takes=(0,), effects="host", attrs="split")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Read the micro-batch at the cursor and advance it; `split` is train or eval (fixed shape, padded by weight 0)."""
    _operands(a, "cursor")
    return [HOST, a[0]]


@op("data.advance", takes=(0,))
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """The cursor after the training micro-batch at the cursor, which was read before."""
    _operands(a, "cursor")
    return [CURSOR]


@op("data.peek", effects="host")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Read the training micro-batch at the cursor and stay there."""
    _operands(a, "cursor")
    return [HOST]


@op("data.put", effects="transfer", attrs="pixels ahead")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Copy a batch to the device; bytes become numbers in [-1, 1] there, but stay with {pixels=bytes}: the model takes both."""
    _operands(a, "batch")
    if not a[0].has("host"):
        raise Bad("V2", "the batch is already on the device; remove this data.put")
    return [DEV]


@op("data.augment", role="(augment)", attrs="do!")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Change the pictures by what the host drew for each row: `do` names it, of flip, erase and mix, joined by |."""
    _operands(a, "batch")
    _on_device(a[0])
    wrong = [part for part in attrs.get("do", "").split("|") if part not in ("flip", "erase", "mix")]
    if wrong:
        raise Bad("V2", f"does not know {wrong[0]!r}; name some of flip, erase and mix, joined by |")
    return [DEV]


@op("rng.split", takes=(0,), attrs="stream")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Make two keys of one: the first is carried on, the second is spent on the draws of `stream`."""
    _operands(a, "key")
    return [KEY, KEY]


@op("model.init", takes=(0,), effects="host")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Draw fresh parameters on the host, so that they are equal on every device, and put them on the device."""
    _operands(a, "key")
    return [PARAMS]


@op("params.narrow", role="(narrow)")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """A narrow copy of the weights of the products, by the parameters or their average; the others as they are."""
    _operands([PARAMS if a[:1] == [EMA] else a[0]] if len(a) == 1 else a, "params")
    return [NARROW]


def _model(a: Sequence[Ty], *more: str) -> None:
    """What runs the model takes parameters, their average, or a narrow copy of either, and a batch that is on the device."""
    _operands([PARAMS if a[:1] in ([EMA], [NARROW]) else a[0], *a[1:]] if a else a, "params", "batch", *more)
    _on_device(a[1])


@op("model.forward", takes=(2,), role="forward", attrs=(_FORWARD := "label_smoothing loss patch_dropout reads remat"))
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """The training loss of a batch (weighted mean over its rows) and the tape that backward needs; {reads=pooled}: the last
    block computes what the head reads alone."""
    _model(a, "key")
    return [SCALAR, TAPE]


@op("model.grad", takes=(2, 3), role="forward_backward", attrs=_FORWARD)
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """`model.forward` and `model.backward` in one, and `grads.add` where gradients are given: the loss and the gradients."""
    _model(a, "key", *(["grads"] if len(a) > 3 else []))
    if a[3:] not in ([], [GRADS]):
        raise Bad("V2", f"adds to {a[3]}; give it a sum that is not yet reduced")
    return [SCALAR, GRADS]


@op("model.backward", takes=(0,), role="backward")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """The gradients of the loss with respect to every parameter."""
    _operands(a, "tape")
    return [GRADS]


@op("model.apply", role="apply", attrs="reads")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """The logits of a batch in evaluation mode, by the parameters or their average."""
    _model(a)
    return [Ty("logits")]


@op("grads.zero", role="(zero)")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Gradients of zero, one per parameter."""
    _operands(a, "params")
    return [GRADS]


@op("grads.add", takes=(0, 1), effects="accumulate")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """The sum of two bundles of gradients."""
    _operands(a, "grads", "grads")
    if a[0] != a[1]:
        raise Bad("V2", f"adds {a[0]} and {a[1]}; both must be of one type")
    return [a[0]]


@op("grads.scale", takes=(0,), attrs="by!")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Scale a sum over micro-batches to their mean; `by` is 1/n."""
    _operands(a, "grads")
    if a[0].has("mean"):
        raise Bad("V4", "these gradients are scaled twice; they are a mean already, remove one grads.scale")
    if not re.fullmatch(r"1/[1-9][0-9]*", attrs["by"]):
        raise Bad("V4", f"a sum times {attrs['by']} is no mean; write {{by=1/n}} with n micro-batches")
    return [a[0].but("sum", "mean")]


@op("grads.all_reduce", takes=(0,), effects="collective", attrs="group!")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """The mean of the gradients over the ranks of `group`."""
    _operands(a, "grads")
    if a[0].has("synced"):
        raise Bad("V4", "these gradients are reduced twice; remove one grads.all_reduce")
    return [a[0].but("partial", "synced")]


@op("grads.norm")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """The global L2 norm of the gradients."""
    _operands(a, "grads")
    _ready(a[0], "measures")
    return [SCALAR]


@op("grads.clip", takes=(0,))
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Scale the gradients so that their global L2 norm is at most hyper.max_norm; also the norm before."""
    _operands(a, "grads", "hyper")
    _ready(a[0], "clips")
    return [a[0], SCALAR]


@op("health.check", takes=(0,))
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Note on the device whether the scalar is finite; the flag is down where it is not."""
    _operands(a, "metrics", "scalar")
    return [METRICS, Ty("flag")]


@op("opt.init", role="slots", attrs="kind!")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Optimizer state of `kind`, every slot made now."""
    _operands(a, "params")
    return [Ty("opt", (attrs["kind"],))]


@op("opt.update", takes=(0, 1, 2), role="update")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """One optimizer step; parameters and state keep their old values where the flag is down."""
    _operands(a, "params", "opt", "grads", "hyper", "flag")
    _ready(a[2], "updates from")
    return [a[0], a[1]]


@op("params.ascend", takes=(0, 1), role="(ascend)")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """The parameters moved by hyper.rho along the gradients' direction, and the old ones, kept."""
    _operands(a, "params", "grads", "hyper")
    return [PARAMS, KEPT]


@op("params.descend", takes=(0, 1), role="(descend)")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """The parameters that were kept, in place of the moved ones."""
    _operands(a, "params", "params")
    if a[1] != KEPT:
        raise Bad("V2", "these parameters were not kept; give the second result of params.ascend")
    return [PARAMS]


@op("ema.init", role="(average)")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """An average of the parameters that begins at their values."""
    _operands(a, "params")
    return [EMA]


@op("ema.update", takes=(0,), role="(average)")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """The average moved towards the parameters: hyper.ema_keep of it stays; it is not moved where the flag is down."""
    _operands(a, "ema", "params", "hyper", "flag")
    return [EMA]


def _details(attrs: Attrs) -> None:
    if attrs.get("details", "confusion|bins") != "confusion|bins":
        raise Bad("V2", f"does not know details={attrs['details']}; write {{details=confusion|bins}}, or leave it out")


@op("metrics.zero", attrs="details")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Fresh accumulators on the device; `details` has those of an evaluation by class and by confidence too."""
    _operands(a)
    _details(attrs)
    return [METRICS]


@op("metrics.add", takes=(0,), effects="accumulate", attrs="name!")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Add a scalar to the running mean called `name`."""
    _operands(a, "metrics", "scalar")
    return [METRICS]


@op("metrics.count", takes=(0,), attrs="details")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Count right answers and rows of an evaluated batch, each row by its weight; `details` counts them by class and by
    confidence too, in accumulators that were made with it."""
    _operands(a, "metrics", "logits", "batch")
    _details(attrs)
    _on_device(a[2])
    return [METRICS]


@op("metrics.all_reduce", takes=(0,), effects="collective", attrs="group!")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Sum the accumulators over the ranks of `group`."""
    _operands(a, "metrics")
    if a[0].has("synced"):
        raise Bad("V4", "these metrics are reduced twice; remove one metrics.all_reduce")
    return [Ty("metrics", ("synced",))]


@op("metrics.read", takes=(0,), effects="host")
def _(a: Sequence[Ty], attrs: Attrs) -> list[Ty]:
    """Wait for the device and read the accumulators: the only host read there is."""
    _operands(a, "metrics")
    if not a[0].has("synced"):
        raise Bad("V4", "reads metrics that were never reduced; put metrics.all_reduce before it")
    return [Ty("report")]
