"""Random little programs, recorded and replayed, against the same programs run eagerly on the processor: equal bits."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

PROGRAMS = int(os.environ.get("HPUSIM_PROGRAMS", "250"))


def _ops(rng: random.Random, ts: list[Tensor], w: Tensor, mark: Callable[[], None], device: str) -> Iterator[None]:
    """One random act on some tensors; every act is drawn before it is done, so that two runs draw alike."""
    while True:
        a, b = rng.choice(ts), rng.choice(ts)
        s, i, j = rng.choice([0.5, 1.0, 2.0, rng.random()]), rng.randrange(4), rng.randrange(4)
        act = rng.randrange(34)
        if act == 0:
            ts.append(a + b)
        elif act == 1:
            ts.append(a * s)
        elif act == 2:
            a.add_(b.clone(), alpha=s)
        elif act == 3:
            ts.append((a @ b).tanh())
        elif act == 4:
            ts.append(a.t())
        elif act == 5:
            a[i].mul_(s)
        elif act == 6:
            ts.append(a.clamp(-s, s))
        elif act == 7:
            a[:, i] = s
        elif act == 8:
            ts.append(torch.cat([a[:2], b[2:]]))
        elif act == 9:
            ts.append(a.softmax(-1))
        elif act == 10:
            a.copy_(b.clone())
        elif act == 11 and len(ts) > 3:
            ts.pop(rng.randrange(len(ts)))
        elif act == 12:
            ts.append(torch.addcdiv(a, b, b * b + 1, value=s))
        elif act == 13:
            (a @ w).pow(2).mean().backward()
        elif act == 14:
            mark()
        elif act == 15:
            ts.append(b / (1 + abs(float(a.sum().tanh()))))
        elif act == 16 and w.grad is not None:
            with torch.no_grad():
                w.sub_(w.grad.clamp(-1, 1) * 0.1)
        elif act == 17:
            (a.view(-1) if a.is_contiguous() else a[i])[:: i + 1].mul_(s)
        elif act == 18:
            ts.append(a.expand(2, 4, 4)[1] + 0)
        elif act == 19:
            ts.append(a.transpose(0, 1)[i : i + 1].expand(4, 4).clone())
        elif act == 20 and bool((a.sum() > 0).cpu()):
            ts.append(-b)
        elif act == 21:
            a[a > s] = 0.0
        elif act == 22:
            ts.append((a > 0).nonzero().sum() * torch.ones(4, 4, device=device))
        elif act == 23:
            a.copy_(torch.full((4, 4), s))  # from the host
        elif act == 24:
            ts.append(a.to(torch.bfloat16).to(torch.float32))
        elif act == 25:
            ts.append(a.reshape(2, 8).permute(1, 0).reshape(4, 4))
        elif act == 26:
            a.diagonal().fill_(s)
        elif act == 27:
            ts.append(torch.where(a > b, a, b))
        elif act == 28:
            ts.append(torch.zeros_like(a).index_add_(0, torch.tensor([i, j], device=device), b[:2]))
        elif act == 29:
            w.grad = None
        elif act == 30:
            ts.append(torch.nn.functional.layer_norm(a, (4,)) if i else a.cumsum(0))
        elif act == 31:
            a.unsqueeze(0).squeeze(0).sub_(b.mean())
        elif act == 32:
            ts.append(a.detach())
        else:
            torch.stack([a[i], b[j]]).sum().sqrt()  # of no use to anyone
        yield


def run(seed: int, device: str, mark: Callable[[], None]) -> list[Tensor]:
    rng = random.Random(seed)
    made = torch.Generator().manual_seed(seed)
    ts = [torch.randn(4, 4, generator=made).to(device) for _ in range(3)]
    w = torch.randn(4, 4, generator=made).to(device).requires_grad_()
    acts = _ops(rng, ts, w, mark, device)
    for _ in range(rng.randrange(5, 40)):
        next(acts)
    return [t.cpu() for t in [*ts, w.detach(), *([w.grad] if w.grad is not None else [])]]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        for a, b in zip(one, other)
    )


def test_a_replayed_program_has_the_bits_of_the_eager_one(card: Any) -> None:
    wrong = [s for s in range(PROGRAMS) if not same(run(s, "cpu", lambda: None), run(s, "hpu", card.mark))]
    assert not wrong, f"{len(wrong)} of {PROGRAMS} programs differ, seeds {wrong[:10]}"


def test_marks_at_random_places_change_no_bit(card: Any) -> None:
    card.random_marks = 0.3
    wrong = [s for s in range(PROGRAMS // 5) if not same(run(s, "cpu", lambda: None), run(s, "hpu", card.mark))]
    assert not wrong, wrong[:10]


def test_a_program_that_comes_again_compiles_nothing_and_stays_right(card: Any) -> None:
    for seed in range(PROGRAMS // 10):
        for _ in range(2):
            run(seed, "hpu", card.mark)
            card.flush("between")
        before = card.counts.compiles
        again = run(seed, "hpu", card.mark)
        assert card.counts.compiles == before, f"seed {seed}"
        assert same(run(seed, "cpu", lambda: None), again), f"seed {seed}"


def test_a_wrong_replay_would_be_seen(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is no formality: where copies from the host do not wait for what reads their target, programs differ."""
    monkeypatch.setattr(type(card), "is_used", lambda self, slot: slot.value is None)
    assert any(not same(run(s, "cpu", lambda: None), run(s, "hpu", card.mark)) for s in range(PROGRAMS))
