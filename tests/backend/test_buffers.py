"""Bundles in one buffer each: norm, clipping, updates, averages and checkpoints are what they are tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from rig import HYPER, SEED, assert_same_bits, copy, cpu, spec
from torch import Tensor
from wide import SMALL, begun, feed, float64, opened  # noqa: F401

from vitcore.runtime.executable import Executable, State
from vitcore.runtime.flat import Layout, buffer
from vitcore.step.ir import Group

MORE = {**HYPER, "ema_keep": 0.8, "rho": 0.3, "max_norm": 0.02}
FROZEN = Group("frozen", r"^blocks\.0\.|^cls_token", frozen=True)
# Layers that learn at rates of their own, and norms and biases that do not decay.
LAYERED = (
    FROZEN,
    Group("none", r"bias$|norm", lr=0.7, weight_decay=0.0),
    Group("blocks", r"^blocks\.", lr=0.5),
    Group("rest", weight_decay=2.0),
)


def steps(exe: Executable, state: State, count: int = 3) -> State:
    for i in range(count):
        state = exe.step(state, {**MORE, "lr": 0.01 * (1 + i)})
    return state


def by_torch(exe: Executable, kind: str, groups: Sequence[Group], count: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters after some steps of torch.optim on the same pictures, and their average, by torch's own."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    begun(exe)
    bound = {i: g for g in exe.rt.groups for i in g.indices}
    params = [
        torch.nn.Parameter(p.detach().clone(), requires_grad=i in bound) for i, p in enumerate(exe.rt.own_params())
    ]
    ours = [
        {"params": [params[i] for i in g.indices], "lr": g.lr, "weight_decay": 0.05 * g.weight_decay}
        for g in exe.rt.groups
    ]
    rates = [g["lr"] for g in ours]
    opt: torch.optim.Optimizer = (
        torch.optim.SGD(ours, momentum=0.9) if kind == "sgdm" else torch.optim.AdamW(ours, betas=(0.9, 0.999), eps=1e-8)
    )
    held = torch.nn.ParameterList(params)
    average = AveragedModel(held, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    average.update_parameters(held)  # its first value is theirs
    data, cursor = feed(2), 0
    exe.rt.bind(tuple(params), training=True)
    for step in range(count):
        opt.zero_grad()
        for _ in range(2):
            batch, cursor = data.next_train(cursor)
            logits = exe.rt.model(batch.images.double() / 127.5 - 1)
            (torch.nn.functional.cross_entropy(logits, batch.labels) / 2).backward()
        torch.nn.utils.clip_grad_norm_([params[i] for i in bound], MORE["max_norm"])
        for group, rate in zip(opt.param_groups, rates, strict=True):
            group["lr"] = 0.01 * (1 + step) * rate
        opt.step()
        average.update_parameters(held)
    data.close()
    return params, [p.detach() for p in average.parameters()]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("groups", [(Group("all"),), LAYERED], ids=["one group", "layers and frozen"])
@pytest.mark.parametrize("kind", ["sgdm", "adamw"])
def test_clipped_updates_and_the_average_are_torchs_own_in_float64(kind: str, groups: tuple[Group, ...]) -> None:
    exe = opened(spec(kind, 2, ema=True, groups=groups))
    for kernel in ("opt.update %p, %o, %gc, %hyper, %ok {impl=torch_fused}", "ema.update %e, %p1_, %hyper, %ok {impl=buffer}",
                   "{impl=foreach}", "by=1/2, impl=buffer"):  # fmt: skip
        assert kernel in str(exe.module["train"]), kernel
    state = begun(exe)
    before = [p.detach().clone() for p in state[0]]
    # The average begins where the parameters were drawn; begin it where they are now.
    names = [v.name for v in exe.module.state]
    for e, p in zip(state[names.index("e")], before, strict=True):
        e.copy_(p)
    state = steps(exe, state)
    have, average = [p.detach().clone() for p in state[0]], [e.clone() for e in state[names.index("e")]]
    exe.close()
    other = opened(spec(kind, 2, ema=True, groups=groups))
    want, mean = by_torch(other, kind, groups)
    other.close()
    for name, one, two, first in zip(exe.rt.names, have, want, before, strict=True):
        assert float((one - two).detach().norm()) <= 1e-11 * float((one - first).norm() + 1e-30), name
    for name, one, two in zip(exe.rt.names, average, mean, strict=True):
        assert float((one - two).norm()) <= 1e-12 * float(two.norm()), name
    moved = {n for n, one, first in zip(exe.rt.names, have, before) if not torch.equal(one, first)}
    frozen = {n for n in exe.rt.names if groups is LAYERED and (n.startswith("blocks.0.") or n == "cls_token")}
    assert moved == {*exe.rt.names} - frozen


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["sgdm", "adamw"])
def test_with_and_without_buffers_the_same_numbers(kind: str) -> None:
    ends = []
    for flat in (True, False):
        exe = opened(spec(kind, 2, ema=True, groups=LAYERED), backend=replace(cpu(), flat=flat))
        state = steps(exe, begun(exe))
        assert (buffer(state[0]) is not None) == (
            buffer(state[1]["momentum" if kind == "sgdm" else "exp_avg"]) is not None
        )
        assert (buffer(state[0]) is not None) == flat
        ends.append([p.detach().clone() for p in (*state[0], *state[2])])
        exe.close()
    for one, two in zip(*ends, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", ["sgdm", "adamw"])
@pytest.mark.parametrize("groups", [(Group("all"),), LAYERED], ids=["one group", "layers and frozen"])
def test_what_was_saved_goes_on_to_the_same_bits(kind: str, groups: tuple[Group, ...]) -> None:
    step = spec(kind, 2, ema=True, groups=groups)
    exe, again = opened(step), opened(step)
    state = steps(exe, begun(exe), 2)
    saved = copy(exe.saved(state))
    restored = again.restore(copy(saved))
    assert_same_bits(copy(again.saved(restored)), saved)
    # Not only equal but parts of buffers again, as kernels of whole buffers need.
    for bundle in (restored[0], restored[2], *(s for n, s in restored[1].items() if n != "step" and None not in s)):
        assert buffer(bundle) is not None
    assert_same_bits(copy(again.saved(steps(again, restored))), copy(exe.saved(steps(exe, state))))
    exe.close()
    again.close()


def test_every_part_lies_in_its_buffer_and_groups_lie_together() -> None:
    exe = opened(spec("adamw", 2, ema=True, groups=LAYERED))
    state, layout = steps(exe, begun(exe), 1), exe.rt.layout
    spans: dict[str, set[int]] = {}
    for bundle in (state[0], state[2]):
        flat: Any = buffer(bundle)
        assert flat.numel() == layout.size and flat.data_ptr() % 64 == 0
        seen = torch.zeros(layout.size, dtype=torch.bool)
        for i, part in enumerate(bundle):
            start = (part.data_ptr() - flat.data_ptr()) // 4
            assert start % 16 == 0 and torch.equal(flat[start : start + part.numel()].view(part.shape), part)
            assert not seen[start : start + part.numel()].any()
            seen[start : start + part.numel()] = True
            group = next((g.name for g in exe.rt.groups if i in g.indices), "frozen")
            spans.setdefault(group, set()).update(range(start, start + part.numel()))
        assert not flat[~seen].any(), "what lies between is 0 and stays 0"
    for group in exe.rt.groups:
        span = layout.spans[group.name]
        assert span.start <= min(spans[group.name]) and max(spans[group.name]) < span.stop
    assert min(spans["frozen"]) >= layout.trained
    exe.close()


def test_a_layout_is_a_permutation_with_room_to_the_next_line() -> None:
    shapes = [torch.Size(s) for s in ((3, 5), (16,), (1,), (2, 2, 2), (17,))]
    from vitcore.runtime.runtime import BoundGroup

    groups = [BoundGroup("b", 1.0, 1.0, (4, 0), "sgdm"), BoundGroup("a", 1.0, 1.0, (2,), "sgdm")]
    layout = Layout(shapes, groups)
    assert layout.starts == {4: 0, 0: 32, 2: 48, 1: 64, 3: 80}
    assert layout.spans == {"b": slice(0, 48), "a": slice(48, 64)}
    assert (layout.trained, layout.size) == (64, 96)


def test_the_model_itself_computes_with_parts_of_the_buffer() -> None:
    exe = opened(spec("sgdm", 2))
    state = begun(exe)
    flat: Any = buffer(state[0])
    named = dict(exe.rt.model.named_parameters())
    assert all(named[n].data_ptr() == p.data_ptr() for n, p in zip(exe.rt.names, state[0], strict=True))
    with torch.no_grad():
        flat.zero_()
    assert not any(bool(p.any()) for p in exe.rt.model.parameters())
    assert exe.init(SEED)[0] is exe.rt.own_params()
    exe.close()


def test_the_small_model_has_sizes_that_do_not_fill_lines() -> None:
    exe = opened(spec("sgdm"), SMALL)
    assert any(p.numel() % 16 for p in exe.init(SEED)[0])
    exe.close()
