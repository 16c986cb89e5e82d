"""What makes the card work unasked, each cause with its line; what does not; which numbers compile another graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import on_card

Causes = Callable[[], list[str]]


def test_a_mark_launches_what_is_recorded_and_an_empty_one_nothing(card: Any, causes: Causes) -> None:
    a = on_card(3) + 1
    assert a._slot.value is None
    card.mark()
    card.mark()
    assert causes() == ["mark"] and card.counts.empty
    assert card.pending == 0


@pytest.mark.parametrize(
    ("act", "cause"),
    [
        (lambda a: a.sum().item(), "item"),
        (lambda a: float(a.sum()), "item"),
        (lambda a: bool(a.sum() > 0), "item"),
        (lambda a: a.cpu(), "copy to the host"),
        (lambda a: a.tolist(), "copy to the host"),
        (lambda a: repr(a), "copy to the host"),
        (lambda a: torch.zeros(3).copy_(a), "copy to the host"),
        (lambda a: a.copy_(torch.zeros(3)), "copy from the host into a tensor that is waited for"),
        (lambda a: a.nonzero(), "shape depends on values: aten.nonzero.default"),
        (lambda a: a[a > 0], "shape depends on values: aten.index.Tensor"),
        (lambda a: torch.unique(a), "shape depends on values: aten._unique2.default"),
        (lambda a: torch.hpu.synchronize(), "synchronize"),  # type: ignore[attr-defined]
    ],
)
def test_what_flushes_is_named_with_its_line(act: Any, cause: str, card: Any, causes: Causes) -> None:
    a = on_card(3) * 2
    card.events.clear()
    act(a)
    event = next(e for e in card.events if e.ops)
    assert event.cause == cause and "test_flushes.py" in event.line
    assert "lambda a:" in event.line or "act(a)" in event.line


def test_host_reads_flush_everything_and_not_only_what_is_read(card: Any) -> None:
    a, b = on_card(3) + 1, on_card(3) * 2
    a.sum().item()
    assert b._slot.value is not None


def test_an_op_that_the_card_lacks_falls_back_and_cuts_the_graph(card: Any, causes: Causes) -> None:
    card.unsupported = frozenset({"gelu"})
    b = F.gelu(on_card(3) + 1) + 1
    assert causes() == ["fallback aten.gelu.default"] and card.counts.fallbacks["gelu.default"] == 1
    assert b._slot.value is None


def test_reading_what_a_waiting_write_changes_flushes(card: Any) -> None:
    a = on_card(4)
    view = a[1:]
    card.mark()
    a.mul_(0)
    assert view.sum().item() == 0


@pytest.mark.parametrize(
    ("act", "compiled"),
    [
        (lambda a, s: a + s, 1),
        (lambda a, s: a * s, 1),
        (lambda a, s: a.add_(a, alpha=s), 1),
        (lambda a, s: torch.addcmul(a, a, a, value=s), 1),
        (lambda a, s: a > s, 1),
        (lambda a, s: a * torch.tensor(s, device="hpu"), 1),
        (lambda a, s: a.lerp(a, s), 3),
        (lambda a, s: a.clamp(max=s), 3),
        (lambda a, s: a.fill_(s), 3),
    ],
)
def test_numbers_that_are_a_part_of_the_graph_compile_another(act: Any, compiled: int, card: Any) -> None:
    a = on_card(5, 5)
    before = card.counts.compiles
    for s in (0.3, 0.4, 0.6):
        b = act(a, s)
        card.mark()
        del b
    assert card.counts.compiles - before == compiled


def test_another_shape_compiles_another_graph(card: Any) -> None:
    before = card.counts.compiles
    for n in (7, 7, 6):
        x = on_card(n, 11) + 1
        card.mark()
        del x
    assert card.counts.compiles - before == 2


def test_closures_run_after_the_next_mark(card: Any) -> None:
    import habana_frameworks.torch.core as htcore

    seen: list[Any] = []
    a = on_card(2) + 1
    htcore.add_step_closure(lambda *args: seen.append((args, a._slot.value is not None)), args=(1, 2))
    assert not seen
    htcore.mark_step()
    assert seen == [((1, 2), True)]


def test_integers_beyond_32_bits_are_refused_when_they_are_copied(card: Any) -> None:
    assert torch.tensor([2**31 - 1]).to("hpu").dtype == torch.int64
    with pytest.raises(RuntimeError, match="exceed the range of Int"):
        torch.tensor([2**31]).to("hpu")


def test_what_a_device_must_refuse(card: Any) -> None:
    a = on_card(3)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        a + torch.ones(3)
    with pytest.raises(TypeError, match="can't convert hpu:0 device type tensor to numpy"):
        a.numpy()
    with pytest.raises(NotImplementedError, match="unsqueeze_"):
        a.unsqueeze_(0)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        on_card(2, 3) @ on_card(2, 3)


def test_gelu_is_tanhs_unless_the_environment_says_0(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-3, 3, 50)
    exact, tanh = F.gelu(x), F.gelu(x, approximate="tanh")
    assert card.tanh_gelu and torch.equal(F.gelu(x.to("hpu")).cpu(), tanh)
    there, here = x.to("hpu").requires_grad_(), x.clone().requires_grad_()
    F.gelu(there).sum().backward()
    F.gelu(here, approximate="tanh").sum().backward()
    assert there.grad is not None and here.grad is not None and torch.equal(there.grad.cpu(), here.grad)
    monkeypatch.setattr(card, "tanh_gelu", False)
    assert torch.equal(F.gelu(x.to("hpu")).cpu(), exact)
