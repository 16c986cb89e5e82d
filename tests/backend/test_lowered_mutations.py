"""Mutation check of the verifier on what runs: every sealed program with one op deleted, doubled or swapped.

Each mutant is refused by the pipeline's own `verify_module`, or it is run beside the program that it was made from (what was
lowered for another device too, as it is, with the host in that device's place); what came of that stands in the table
below, with the reason. `pytest -s` prints the table with its counts.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rig import HYPER, SEED, assert_same_bits, copy, digits

from vitcore.backend import Kernel, World
from vitcore.config import Config
from vitcore.data.feed import Feed
from vitcore.model.attention import attention, self_attention
from vitcore.model.vit import build_model
from vitcore.plan import choose_kernels
from vitcore.plugins import load_plugins
from vitcore.recipes import load_recipe
from vitcore.runtime.executable import Executable
from vitcore.step.build import build
from vitcore.step.ir import Module, Op, Value, rename, walk
from vitcore.step.lowering import Lowering
from vitcore.step.ops import FUNCTIONS
from vitcore.step.pipeline import lower
from vitcore.step.verify import Illegal, verify, verify_module

BACKENDS = ("cpu", "cuda", "hpu-lazy", "hpu-eager")
PRECISIONS, ACCUMULATIONS, RANKS = ("fp32", "bf16"), (1, 2), (1, 2)
# The optimizers are those of the shipped recipes; all of them clip, so a step without clipping is looked at besides.
STEPS = (("digits", {}), ("imagenet1k_sgd", {}), ("imagenet1k_sgd", {"max_grad_norm": 0.0}))
Block = tuple[Op, ...]
Mutant = tuple[str, Block]
Survey = tuple[dict[str, Counter[str]], Counter[str]]

# What may come of a mutant that the verifier accepts, beside the program that it was made from.
SAME = "SAME"  # the same bits and counts, and the same kernels called up to each flush
WORK = "WORK"  # the same bits and counts, but other kernels called
FLUSH = "FLUSH"  # the same bits, but other counts: of flushes
METRICS = "METRICS"  # the same bits in all of the state but the metrics
OTHER = "OTHER"  # other bits: a step that means something else

# Every survivor there is, and why no rule refuses it.
EXPLAINED: dict[tuple[str, str], tuple[str, ...]] = {
    (SAME, "neither of the two uses what the other makes or consumes"): (
        "@init swap: opt.init / metrics.zero | metrics.zero / grads.zero",
        "@train swap: data.put / rng.split | model.backward / metrics.add loss | grads.add / metrics.add loss",
        "@train swap: metrics.add loss / grads.scale | health.check / grads.zero | grads.zero / params.narrow",
        "@log swap: metrics.read / rt.region log_body_2",
        "@init swap: rt.region slots / data.peek",
    ),
    (OTHER, "a type says that a value is a cursor, not how far it went; the tests of prefetch and resume see this"): (
        "@train bypass: data.advance",
        "@train chain: data.advance",
    ),
    (SAME, "a region groups ops and computes nothing: without it they run one by one, up to the same flush"): (
        "@init unwrap: rt.region slots",
        "@train unwrap: rt.region zero | rt.region zero_narrow | rt.region update",
        "@train unwrap: rt.region forward_backward | rt.region forward_backward_update",
        "@eval unwrap: rt.region apply",
        "@log unwrap: rt.region log_body | rt.region log_body_2",
    ),
    (WORK, "what only borrows may be computed twice over: of two free results one is dropped"): (
        "@train double, first used: grads.norm | params.narrow",
        "@train double, second used: grads.norm | params.narrow",
        "@eval double, first used: model.apply | params.narrow",
        "@eval double, second used: model.apply | params.narrow",
    ),
    (METRICS, "what a step counts, and how often, is the recipe's affair"): (
        "@train bypass: metrics.add loss | metrics.add grad_norm",
        "@train chain: metrics.add loss | metrics.add grad_norm | health.check",
    ),
    (METRICS, "what an evaluation counts, and how often, is the recipe's affair"): (
        "@eval bypass: metrics.count",
        "@eval chain: metrics.count | rt.region apply",
    ),
    (f"{METRICS} {OTHER}", "a step may clip twice: rules say how often gradients are reduced and scaled, not how often clipped; "
     "where the second time finds them short enough, the norm that it notes alone is another"): (
        "@train chain: grads.clip",
    ),
    (OTHER, "V4 follows from types, which say sum or mean and not of how many; check C7 of the conformance kit sees this"): (
        "@train unwrap: repeat",
        "@train bypass: repeat",
    ),
}  # fmt: skip
TABLE = {
    f"{head}: {op}": row
    for row, lines in EXPLAINED.items()
    for head, _, ops in (line.partition(": ") for line in lines)
    for op in ops.split(" | ")
}

# ---- mutants ----


def label(op: Op) -> str:
    """The op's name, and what tells it from others of that name."""
    return " ".join([op.name, *(op.attrs[k] for k in ("name", "after") if k in op.attrs)])


def operands(op: Op) -> list[Value]:
    """What the op uses: its operands, and what its block uses from outside."""
    made = {v.name for o in walk([op]) for v in (*o.outs, *o.binds)}
    return [*{a.name: a for o in walk([op]) for a in o.args if a.name not in made}.values()]


def like(v: Value, given: Sequence[Value]) -> Value | None:
    """The value of the same type, or else of the same kind."""
    same = [a for a in given if a.ty.plain == v.ty.plain] or [a for a in given if a.ty.kind == v.ty.kind]
    return same[0] if same else None


def again(op: Op) -> Op:
    """The op with every result, and every name in its block, made fresh."""
    names = {v.name: replace(v, name=f"{v.name}_again") for o in walk([op]) for v in (*o.outs, *o.binds)}

    def renamed(o: Op) -> Op:
        attrs = {**o.attrs, "name": f"{o.attrs['name']}_again"} if o.name == "rt.region" else o.attrs
        outs, binds = ([names[v.name] for v in values] for values in (o.outs, o.binds))
        return replace(o, outs=(*outs,), binds=(*binds,), body=(*map(renamed, rename(o.body, names)),), attrs=attrs)

    return renamed(op)


def deletions(ops: Block) -> Iterator[Mutant]:
    """Without the op: as it is, with its results replaced by its operands, with its block left in its place."""
    for i, op in enumerate(ops):
        before, after, what = ops[:i], ops[i + 1 :], label(op)
        yield f"delete: {what}", (*before, *after)
        names = {v.name: a for v in op.outs if (a := like(v, operands(op)))}
        if names:
            yield f"bypass: {what}", (*before, *rename(after, names))
        if op.body:
            body = rename(op.body, {b.name: a for b, a in zip(op.binds, op.args)})
            given = {v.name: y for v, y in zip(op.outs, body[-1].args)}
            yield f"unwrap: {what}", (*before, *body[:-1], *rename(after, given))


def duplications(ops: Block) -> Iterator[Mutant]:
    """The op twice: as it is; the second one's results unused; used instead of the first's; made from the first's."""
    for i, op in enumerate(ops):
        before, after, what, second = ops[: i + 1], ops[i + 1 :], label(op), again(op)
        yield f"double: {what}", (*before, op, *after)
        if not op.outs:
            continue
        yield f"double, first used: {what}", (*before, second, *after)
        used = rename(after, {v.name: w for v, w in zip(op.outs, second.outs)})
        yield f"double, second used: {what}", (*before, second, *used)
        names = {a.name: v for v in reversed(op.outs) if (a := like(v, operands(op)))}
        if names:
            yield f"chain: {what}", (*before, *rename([second], names), *used)


def swaps(ops: Block) -> Iterator[Mutant]:
    """Two neighbours in the other order."""
    for i, (first, second) in enumerate(pairwise(ops)):
        yield f"swap: {label(first)} / {label(second)}", (*ops[:i], second, first, *ops[i + 2 :])


def blocks(ops: Block, change: Callable[[Block], Iterator[Mutant]]) -> Iterator[Mutant]:
    """Every mutant of every block, as mutants of the outermost."""
    yield from change(ops)
    for i, op in enumerate(ops):
        for what, body in blocks(op.body, change) if op.body else ():
            yield what, (*ops[:i], replace(op, body=body), *ops[i + 1 :])


def mutants(module: Module) -> Iterator[tuple[str, str, Module]]:
    """(program, what was done, the module with it) for all programs."""
    for program, change in product(module.programs, (deletions, duplications, swaps)):
        for what, ops in blocks(program.ops, change):
            new = replace(program, ops=ops)
            programs = tuple(new if p is program else p for p in module.programs)
            yield program.name, what, replace(module, programs=programs)


# ---- running them ----

RAN = [Counter[str]()]  # the kernels called up to each flush, and after the last


def mark() -> None:
    """The stand-in's flush."""
    RAN.append(Counter())


def capture(rt: Any, fn: Callable[..., Any]) -> Callable[..., Any]:
    """The stand-in's recording of a step: the step."""
    return fn


def noted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that leaves a note of each call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        RAN[-1][name] += 1
        return kernel(*args, **kwargs)

    return call


# The op's reference kernel, or that of the model's function, by which the host computes what a vendor's library would.
_REFERENCE = {
    "model.forward": "autograd",
    "model.apply": "eager",
    "metrics.all_reduce": "flat",
    "grads.all_reduce": "flat",
}


def on_the_host(kernel: Kernel) -> Kernel:
    """The kernel in name and flushes, computed by the reference: a vendor's library and its compiler are not here."""
    if not str(kernel.fn).startswith(("vitcore_hpu.", "vitcore_cuda.", "vitcore.runtime.compiled:")):
        return kernel
    usual = f"{kernel.op.replace('.', '_')}__{_REFERENCE.get(kernel.op, 'reference')}"

    def function(rt: Any, *args: Any, **kwargs: Any) -> Any:
        return (attention if kernel.op == "attention" else self_attention)(*args, **kwargs)

    def call(rt: Any, *args: Any, **kwargs: Any) -> Any:
        for _ in range(before):
            rt.mark()
        out = getattr(rt, usual)(*args, **kwargs)
        for _ in range(inside + after):
            rt.mark()
        return out

    assert not callable(kernel.flushes)
    before, inside, after = kernel.flushes
    return replace(kernel, fn=function if kernel.op in FUNCTIONS else call)


def cached(feed: Feed) -> Any:
    """The feed, each batch of it loaded once."""
    once = {name: functools.cache(getattr(feed, name)) for name in ("next_train", "next_eval")}
    return SimpleNamespace(**once, after_train=feed.after_train, close=feed.close)


def differs(one: Any, other: Any) -> bool:
    """Whether some bit does."""
    try:
        assert_same_bits(one, other)
    except AssertionError:
        return True
    return False


class Bench:
    """A sealed module as it runs on the host: its mutants run from the same state, over the same data, with dropout."""

    def __init__(self, module: Module, open_module: Callable[[Module], Executable]) -> None:
        self.open, self.metrics = open_module, [v.ty.kind for v in module.state].index("metrics")
        exe = self.open(module)
        self.saved = copy(exe.saved(exe.eval(exe.step(exe.init(SEED), HYPER), 1)))
        self.want = {p.name: self.run(module, p.name) for p in module.programs}

    def run(self, module: Module, program: str) -> tuple[Any, Any, list[Counter[str]]]:
        """All that one program and what uses it come to, the counts, and what ran in each flush."""
        exe = self.open(module)
        RAN[:] = [Counter()]
        state = exe.init(SEED) if program == "init" else exe.restore(copy(self.saved))
        first, report = copy(state), None
        for i in range({"train": 2, "init": 1, "restore": 1}.get(program, 0)):
            state = exe.step(state, {**HYPER, "lr": HYPER["lr"] / (1 + i), "max_norm": 0.1})
        if program == "eval":
            state = exe.eval(state, 2)
        if program in ("eval", "log"):
            state, report = exe.log(state)
        return copy((first, state, report)), exe.stats(), [*RAN]

    def verdict(self, module: Module, program: str) -> str:
        """How a mutant compares with the program that it was made from."""
        (bits, stats, ran), (want, counts, wanted) = self.run(module, program), self.want[program]
        if differs(bits, want):
            (first, state, _), (first0, state0, _), i = bits, want, self.metrics
            apart = differs((first, state[:i], state[i + 1 :]), (first0, state0[:i], state0[i + 1 :]))
            return OTHER if apart else METRICS
        if stats != counts:
            return FLUSH
        return SAME if ran == wanted else WORK


@pytest.fixture(scope="module")
def survey() -> Iterator[Callable[[str], Survey]]:
    """`survey(backend)`: the survivors with their verdicts, and counts. A text is looked at once in all backends."""
    model, plugins, known = build_model("ViT-digits", 8, 10, dropout=0.1), load_plugins(), set[tuple[str, ...]]()
    feeds = {
        (n, size): cached(digits(4, n, world=World(size), eval_batch=8)) for n, size in product(ACCUMULATIONS, RANKS)
    }

    def modules(name: str) -> Iterator[tuple[Module, Callable[[], Bench]]]:
        backend = plugins.backend(name)
        kernels = tuple(map(on_the_host, choose_kernels(plugins, backend)[0]))
        mark, capture = backend.mark and f"{__name__}:mark", backend.capture and f"{__name__}:capture"
        host = replace(
            backend, device="cpu", imports=(), open=None, wait=None, counters=None, mark=mark, capture=capture,
            pinned=False,
        )  # fmt: skip
        for precision, n, size, (recipe, more) in product(PRECISIONS, ACCUMULATIONS, RANKS, STEPS):
            if more and (precision, n, size) != (PRECISIONS[0], 1, 1):
                continue  # clipping stands after the loop and the reduction, and has nothing to do with either
            settings, world = Config(**{**load_recipe(recipe), "gradient_accumulation_steps": n, **more}), World(size)
            module = lower(build(settings.spec), Lowering(backend, kernels, precision, world))
            how = {"backend": host, "kernels": kernels, "model": model, "feed": feeds[n, size], "world": world}
            opened = functools.partial(Executable, **how, guard=False, wrap=noted)
            yield module, functools.cache(functools.partial(Bench, module, opened))

    @functools.cache
    def look(name: str) -> Survey:
        found, counts = dict[str, Counter[str]](), Counter[str]()
        for module, bench in modules(name):
            around = (" ".join(str(v.ty) for v in module.state), str(module.groups))
            for program, what, mutant in mutants(module):
                text = str(mutant[program]).replace(module[program].level, "lowered")
                counts["mutants"] += 1
                if (text, *around) in known:
                    continue
                known.add((text, *around))
                try:
                    verify(mutant[program])  # as verify_module does; most are refused here, without the other programs
                    verify_module(mutant)
                except Illegal as refusal:
                    counts[refusal.rule] += 1
                else:
                    found.setdefault(f"@{program} {what}", Counter())[bench().verdict(mutant, program)] += 1
        return found, counts

    with pytest.MonkeyPatch.context() as patch:
        # The other rank, where there is one: its tensors are half of ours.
        patch.setattr(torch.distributed, "all_reduce", lambda flat, op: flat.mul_(1.5))
        yield look
    for feed in feeds.values():
        feed.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_mutant_of_a_lowered_program_is_refused_or_explained(
    backend: str, survey: Callable[[str], Survey]
) -> None:
    found, counts = survey(backend)
    assert {what: " ".join(v) for what, v in found.items() if not {*v} <= {*TABLE.get(what, ("",))[0].split()}} == {}
    assert counts["mutants"] > 3000


def test_the_table_of_survivors_holds_nothing_but_what_survives(survey: Callable[[str], Survey]) -> None:
    found, counts = dict[str, Counter[str]](), Counter[str]()
    for survivors, more in map(survey, BACKENDS):
        counts += more
        for what, verdicts in survivors.items():
            found[what] = found.get(what, Counter()) + verdicts
    total, refused, ran = counts.pop("mutants"), counts.total(), sum(v.total() for v in found.values())
    print(f"\n{total} mutants, {refused + ran} texts, {refused} refused: {dict(counts)}; {ran} run:")
    for what, (verdict, why) in TABLE.items():
        print(f"{found.get(what, Counter()).total():4} {verdict:10} {what}: {why}")
    assert {what: " ".join(sorted(v)) for what, v in found.items()} == {w: verdict for w, (verdict, _) in TABLE.items()}
    assert {*counts} == {"V1", "V2", "V3", "V4", "V5", "V10", "V11", "V13"}
