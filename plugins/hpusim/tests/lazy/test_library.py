"""The stand-in for the vendor's library: where it marks, what it computes, what it counts, what it refuses."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from conftest import on_card


@pytest.fixture
def library(card: Any) -> Any:
    import habana_frameworks.torch as ht

    return ht


def _twins(*shapes: tuple[int, ...]) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    values = [torch.randn(*s) for s in shapes]
    return [torch.nn.Parameter(v.to("hpu")) for v in values], [torch.nn.Parameter(v.double()) for v in values]


def _gradients(here: list[Any], there: list[Any]) -> None:
    for p, q in zip(here, there):
        g = torch.randn(q.shape)
        p.grad, q.grad = g.to("hpu"), g.double()


def _far(here: list[Any], there: list[Any]) -> float:
    return max(float((p.detach().cpu().double() - q.detach()).abs().max()) for p, q in zip(here, there))


@pytest.mark.parametrize("how", [{}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}])
def test_fused_sgd_is_torchs(how: Any, library: Any) -> None:
    here, there = _twins((3, 4), (5,))
    mine = library.hpex.optimizers.FusedSGD(here, lr=0.1, **how)
    theirs = torch.optim.SGD(there, lr=0.1, **how)
    for step in range(4):
        _gradients(here, there)
        for optimizer in (mine, theirs):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            optimizer.step()
    assert _far(here, there) < 1e-6


def test_fused_adamw_adds_epsilon_before_the_correction(library: Any) -> None:
    here, there = _twins((3, 4), (5,))
    mine = library.hpex.optimizers.FusedAdamW(here, lr=0.1, betas=(0.8, 0.9), eps=0.1, weight_decay=0.2)
    first, second = [torch.zeros_like(p) for p in there], [torch.zeros_like(p) for p in there]
    for t in range(1, 5):
        _gradients(here, there)
        mine.step()
        with torch.no_grad():
            for p, m, v in zip(there, first, second):
                assert p.grad is not None
                m.copy_(0.8 * m + 0.2 * p.grad)
                v.copy_(0.9 * v + 0.1 * p.grad**2)
                p.mul_(1 - 0.1 * 0.2)
                p.sub_(0.1 * (1 - 0.9**t) ** 0.5 / (1 - 0.8**t) * m / (v.sqrt() + 0.1))
    assert _far(here, there) < 1e-6
    assert mine.param_groups[0]["step"] == 4 and mine.state[here[0]]["step"] == 0, (
        "the count is the group's, on the host"
    )


def test_a_moving_rate_compiles_nothing(library: Any, card: Any) -> None:
    for made, how in (
        (library.hpex.optimizers.FusedSGD, {"momentum": 0.9}),
        (library.hpex.optimizers.FusedAdamW, {"weight_decay": 0.1}),
    ):
        here, there = _twins((3, 4))
        optimizer = made(here, lr=0.1, **how)
        seen = []
        for step in range(4):
            _gradients(here, there)
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            optimizer.step()
            seen.append(card.counts.compiles)
        assert seen[-1] == seen[1]


def test_where_it_marks(library: Any, card: Any) -> None:
    """FusedSGD when made and around each group; FusedAdamW before each group and at the end; FusedClipNorm around itself."""

    def marks(act: Any) -> int:
        card.events.clear()
        act()
        return sum(e.cause == "mark" for e in card.events)

    here, there = _twins((2,), (3,))
    groups = [{"params": here[:1]}, {"params": here[1:]}]
    _gradients(here, there)
    sgd = library.hpex.optimizers.FusedSGD
    assert marks(lambda: sgd(groups, lr=0.1, momentum=0.9)) == 1
    made = sgd([{"params": here[:1]}, {"params": here[1:]}], lr=0.1, momentum=0.9)
    assert marks(made.step) == 4
    assert marks(library.hpex.optimizers.FusedAdamW(groups, lr=0.1).step) == 3
    clip = library.hpex.normalization.FusedClipNorm(here, 1.0)
    assert marks(lambda: clip.clip_norm(here)) == 2
    assert marks(lambda: clip.clip_norm([torch.nn.Parameter(on_card(2))])) == 1, "nothing to clip: it leaves early"


def test_clipping_is_torchs(library: Any) -> None:
    here, there = _twins((3, 4), (5,))
    _gradients(here, there)
    clip = library.hpex.normalization.FusedClipNorm(here, 0.7)
    total = clip.clip_norm(here)
    expected = torch.nn.utils.clip_grad_norm_(there, 0.7)
    assert float(total.reshape(())) == pytest.approx(float(expected), rel=1e-6)
    assert _far([p.grad for p in here], [p.grad for p in there]) < 1e-6


def test_fused_attention_and_its_gradients_are_torchs(library: Any) -> None:
    values = [torch.randn(2, 3, 5, 4) for _ in range(4)]
    here = [v.to("hpu").requires_grad_() for v in values[:3]]
    there = [v.double().requires_grad_() for v in values[:3]]
    mine = library.hpex.kernels.FusedSDPA.apply(*here, None, 0.0, False, 0.3, "None", None)
    theirs = torch.nn.functional.scaled_dot_product_attention(*there, scale=0.3)
    mine.backward(values[3].to("hpu"))
    theirs.backward(values[3].double())
    assert _far([mine], [theirs]) < 1e-6
    assert _far([t.grad for t in here], [t.grad for t in there]) < 1e-6


def test_metrics_are_lists_of_pairs_and_unknown_names_are_refused(
    library: Any, card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from habana_frameworks.torch.hpu.metrics import MetricNotFound, metric_global, metric_localcontext

    monkeypatch.delenv("PT_HPU_ENABLE_CACHE_METRICS", raising=False)
    with pytest.raises(MetricNotFound):
        metric_global("recipe_cache")
    monkeypatch.setenv("PT_HPU_ENABLE_CACHE_METRICS", "1")
    cache = metric_global("recipe_cache")
    before = dict(cache.stats())
    with metric_localcontext("graph_compilation") as compilations:
        for _ in range(3):
            x = on_card(2, 13) * 3
            card.mark()
            del x
    assert dict(compilations.stats())["TotalNumber"] == 1
    after = dict(cache.stats())
    assert after["TotalMiss"] - before["TotalMiss"] == 1 and after["TotalHit"] - before["TotalHit"] == 2
    assert [k for k, _ in metric_global("cpu_fallback").stats()] == ["TotalNumber", "FallbackOps"]
    with pytest.raises(MetricNotFound):
        metric_global("nonsense")


def test_every_module_says_that_it_is_simulated(library: Any) -> None:
    modules = [m for n, m in sys.modules.items() if n.partition(".")[0] == "habana_frameworks"]
    assert len(modules) > 10 and all("SIMULATED" in (m.__doc__ or "") for m in modules)
    assert "SIMULATED" in torch.hpu.get_device_name()  # type: ignore[attr-defined]


def test_ordinary_code_runs_on_it(card: Any) -> None:
    """Copies, stock optimizers, checkpointing of activations, torch.func."""
    import copy

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.Linear(4, 2)).to("hpu")
    x = on_card(3, 4)
    assert next(model.parameters()).device == torch.device("hpu", 0)
    assert isinstance(next(model.parameters()), torch.nn.Parameter)
    assert torch.equal(copy.deepcopy(model)(x).cpu(), model(x).cpu())
    out = torch.utils.checkpoint.checkpoint(model, x.requires_grad_(), use_reentrant=False)
    torch.optim.AdamW(model.parameters()).zero_grad()
    out.sum().backward()
    assert torch.equal(torch.func.grad(lambda t: model(t).sum())(x.detach()).cpu(), x.grad.cpu())  # type: ignore[union-attr]
    assert next(copy.deepcopy(model).to("cpu").parameters()).device.type == "cpu"
