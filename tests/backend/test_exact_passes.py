"""What an exact pass promises: with it or without it, the same bits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from rig import HYPER, assert_same_bits, copy, open_program, run, shipped_kernels, spec

from vitcore.backend import Backend, Kernel
from vitcore.errors import VitcoreError
from vitcore.runtime.executable import Executable
from vitcore.runtime.reference import REFERENCE
from vitcore.step.ir import Op
from vitcore.step.lowering import Fuel
from vitcore.step.pipeline import PIPELINE, fuel_from_env

EXACT = [p.name for p in PIPELINE if p.tier == "exact"]
ALGEBRAIC = [p.name for p in PIPELINE if p.tier == "algebraic"]
STEPS = 5


def end_of(exe: Executable, steps: int = STEPS) -> Any:
    """What the checkpoint would hold after some steps, an evaluation and a log in between, and what was logged."""
    state = run(exe, steps - 1)
    state, first = exe.log(exe.eval(state, 1))
    state = run(exe, 1, state)
    saved = copy(exe.saved(state))
    exe.close()
    return {**saved, "log": first}


@pytest.mark.parametrize("kernels", ["shipped", "reference"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_exact_pass_left_out_changes_no_bit(accumulation: int, kernels: str) -> None:
    # A sum over micro-batches is in a buffer, gradients of one micro-batch are not, and functions of whole buffers round what
    # tensors end with otherwise; so those that take both are the reference's (tests/backend/test_savings.py has them all).
    both = ("opt.update", "grads.clip", "grads.norm")
    use = shipped_kernels(without=both) if kernels == "shipped" else REFERENCE
    step = spec("adamw", accumulation)
    exe = open_program(step, use, dropout=0.1, micro_batch=4)
    with_all, text = end_of(exe), str(exe.module)
    assert {*EXACT} >= {"inline_single_repeat", "fold_zero_add", "form_regions", "carry_zero_grads"}
    changed = []
    for disabled in ([name] for name in EXACT if name != "carry_zero_grads"):
        exe = open_program(step, use, dropout=0.1, micro_batch=4, disabled=disabled)
        assert_same_bits(end_of(exe), with_all)
        changed += disabled if str(exe.module) != text else []
    # Each of them did something; there is nothing to carry on a device that is not lazy, see below, nothing to compute once
    # more where nobody asks for it, and no kernel for two ops in one among the reference's.
    always = ["fuse_grad", "form_regions"] if kernels == "shipped" else ["form_regions"]
    assert changed == (["inline_single_repeat", "fold_zero_add", *always] if accumulation == 1 else always)
    assert_same_bits(end_of(open_program(step, use, dropout=0.1, micro_batch=4, disabled=EXACT)), with_all)


def test_a_pass_is_disabled_by_its_name_alone() -> None:
    with pytest.raises(VitcoreError, match=r"no pass is called 'fold_zero_ad' \(did you mean 'fold_zero_add'\?\)"):
        open_program(spec(), disabled=["fold_zero_ad"])
    with pytest.raises(VitcoreError, match="'seal' cannot be disabled"):
        open_program(spec(), disabled=["seal"])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_stopping_after_any_number_of_rewrites_changes_no_bit(accumulation: int) -> None:
    texts, want = [], None
    for fuel in (0, 1, 2, 4, None):
        exe = open_program(spec("adamw", accumulation), micro_batch=4, fuel=fuel, disabled=ALGEBRAIC)
        texts.append(str(exe.module))
        end = end_of(exe, 2)
        want = want or end
        assert_same_bits(end, want)
    assert len({*texts}) == len(texts)


def test_fuel_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITCORE_FUEL", "3")
    assert fuel_from_env() == Fuel(3)
    monkeypatch.setenv("VITCORE_FUEL", "three")
    with pytest.raises(VitcoreError, match="VITCORE_FUEL='three' is no number of rewrites"):
        fuel_from_env()
    monkeypatch.delenv("VITCORE_FUEL")
    assert fuel_from_env() == Fuel(None)


# ---- a lazy device that computes at once and counts its flushes ----


class Device(ModuleType):
    """Stands where a vendor's library would: `mark` and `counters` by name."""

    flushes = 0

    def mark(self) -> None:
        self.flushes += 1

    def counters(self) -> dict[str, int]:
        return {"flushes": self.flushes, "compiles": 3}


@pytest.fixture
def device() -> Iterator[Device]:
    name = "vitcore_pretended_device"
    sys.modules[name] = made = Device(name)
    yield made
    del sys.modules[name]


def lazy(**more: Any) -> Backend:
    """The recipe's own cuts: after forward; after backward with `thorough`."""
    return Backend(
        name="pretended", device="cpu", mark="vitcore_pretended_device:mark",
        split_after=more.pop("split_after", frozenset({"model.forward", "model.backward"})), **more,
    )  # fmt: skip


def predicted(ops: tuple[Op, ...]) -> int:
    """Flushes that the text says one run of a block makes: marks, and what kernels declare."""
    each = {"rt.mark": lambda op: 1, "repeat": lambda op: int(op.attrs["n"]) * predicted(op.body)}
    return sum(each.get(op.name, lambda op: sum(op.flushes) + predicted(op.body))(op) for op in ops)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_flushes_counted_are_flushes_predicted(device: Device, accumulation: int) -> None:
    exe = open_program(spec("sgdm", accumulation), backend=lazy(counters="vitcore_pretended_device:counters"))
    state = exe.init(1)
    assert device.flushes == predicted(exe.module["init"].ops) > 0
    before, one = device.flushes, predicted(exe.module["train"].ops)
    assert one == 2 * accumulation + 1  # after each forward, after each backward, after the update
    for _ in range(3):
        state = exe.step(state, HYPER)
    assert device.flushes - before == 3 * one
    before = device.flushes
    state = exe.eval(state, 2)
    assert device.flushes - before == 2 * predicted(exe.module["eval"].ops) == 2
    before = device.flushes
    exe.log(state)
    assert device.flushes - before == predicted(exe.module["log"].ops)
    stats = exe.stats()
    exe.close()
    assert (stats.flushes, stats.marks, stats.compiles) == (device.flushes, device.flushes, 3)


def test_a_kernel_that_flushes_by_itself_is_not_flushed_again(device: Device) -> None:
    def update(rt: Any, *args: Any) -> Any:
        device.mark()
        out = rt.opt_update__reference(*args)
        device.mark()
        return out

    flushing = Kernel("opt.update", "fused", update, flushes=(1, 0, 1))
    plain = open_program(spec("sgdm", 2), backend=lazy())
    exe = open_program(spec("sgdm", 2), (flushing, *REFERENCE), backend=lazy())
    state, before = exe.init(1), device.flushes
    exe.step(state, HYPER)
    # Its first flush ends the region before it, its second its own, so that no mark follows.
    assert device.flushes - before == predicted(exe.module["train"].ops) == predicted(plain.module["train"].ops) + 1
    assert str(exe.module["train"]).count("rt.mark") == str(plain.module["train"]).count("rt.mark") - 1
    assert_same_bits(end_of(exe), end_of(plain))


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_lazy_device_comes_to_the_bits_of_an_eager_one(device: Device, accumulation: int) -> None:
    step = spec("adamw", accumulation)
    want = end_of(open_program(step, dropout=0.1, micro_batch=4))
    for disabled in ([], ["carry_zero_grads"], ["fold_zero_add"] if accumulation == 1 else ["form_regions"]):
        exe = open_program(step, dropout=0.1, micro_batch=4, backend=lazy(), disabled=disabled)
        carried = "derived<grads" in str(exe.module)
        folds = accumulation == 1 and not {*disabled} & {"inline_single_repeat", "fold_zero_add"}
        assert carried == (not folds and disabled != ["carry_zero_grads"])
        assert_same_bits(end_of(exe), want)


def test_carried_zeros_are_rebuilt_and_never_saved(device: Device) -> None:
    exe = open_program(spec("sgdm", 2), backend=lazy())
    state = run(exe, 2)
    assert len(state) == 6 and {*exe.saved(state)} == {"p", "o", "c", "k", "m"}
    again = open_program(spec("sgdm", 2), backend=lazy())
    restored = again.restore(copy(exe.saved(state)))
    assert all(not z.any() for z in restored[-1])
    assert_same_bits(again.step(restored, HYPER), exe.step(state, HYPER))
    exe.close()
    again.close()
