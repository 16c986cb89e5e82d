"""A stand-in for `habana_frameworks` and the device, on tensors of the processor, that records every call.

It offers what the published list holds and vitcore_hpu uses, and nothing else; its numbers come from the formulas that the
vendor's source and documentation state (FusedSGD: torch's SGD; FusedAdamW: epsilon before the bias correction).
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vitcore.backend import Backend

ROOT = "habana_frameworks"
# Bound at import by the kernels' modules, so they are imported anew for each stand-in.
KERNELS = ("optim", "clip", "attention")


@dataclass
class Gaudi:
    """What was asked of the stand-in."""

    lazy: bool
    available: bool = True
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    marks: int = 0
    graphs: list[str] = field(default_factory=list)
    """What torch.compile handed over: one entry a graph."""
    stats: dict[str, dict[str, Any]] = field(default_factory=dict)

    def called(self, name: str) -> list[dict[str, Any]]:
        """The arguments of each call of that name, by the published parameter's name."""
        return [arguments for what, arguments in self.calls if what == name]

    def note(self, name: str, /, **arguments: Any) -> None:
        self.calls.append((name, arguments))

    def mark(self) -> None:
        self.marks += self.lazy

    def backend(self) -> Backend:
        """The backend whose device this is, its tensors on the processor."""
        from dataclasses import replace

        from vitcore.plugins import load_plugins

        return replace(load_plugins().backend("hpu-lazy" if self.lazy else "hpu-eager"), device="cpu", probe=None)


_now: list[Gaudi] = []


def _compiler(graph: Any, example_inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    _now[-1].graphs.append(f"{len(list(graph.graph.nodes))} nodes")
    forward: Callable[..., Any] = graph.forward
    return forward


@functools.cache
def _register() -> None:
    """Once a process, as nothing takes a torch.compile backend away again."""
    from torch._dynamo import register_backend

    register_backend(_compiler, name="hpu_backend")


class OnTheProcessor(TorchFunctionMode):
    """Makes on the processor what is asked for on `hpu`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("hpu"):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


@contextmanager
def standing_in(*, lazy: bool) -> Iterator[Gaudi]:
    """The library in `sys.modules`, `torch.hpu`, and the environment of the mode; all gone afterwards."""
    device = Gaudi(lazy)
    modules = _modules(device)
    before = {k: os.environ.get(k) for k in ("PT_HPU_LAZY_MODE",)}
    os.environ["PT_HPU_LAZY_MODE"] = str(int(lazy))
    _forget()
    sys.modules.update(modules)
    torch.hpu = modules[f"{ROOT}.torch.hpu"]  # type: ignore[attr-defined]
    _now.append(device)
    if not lazy:
        _register()
    try:
        yield device
    finally:
        _now.pop()
        del torch.hpu  # type: ignore[attr-defined]
        _forget()
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


def _forget() -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == ROOT or n in {f"vitcore_hpu.{k}" for k in KERNELS}]:
        del sys.modules[name]


@pytest.fixture
def gaudi() -> Iterator[Callable[..., Gaudi]]:
    """`gaudi(lazy=True)`: the stand-in, until the test ends."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda *, lazy: stack.enter_context(standing_in(lazy=lazy))


def _modules(device: Gaudi) -> dict[str, types.ModuleType]:
    def recorded(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        said = inspect.signature(fn)

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            device.note(name, **dict(said.bind(*args, **kwargs).arguments))
            return fn(*args, **kwargs)

        return call

    def mark_step(device_str: str = "", sync: bool = False) -> None:
        device.mark()

    class MetricNotFound(Exception):
        pass

    def metric_global(name: str) -> Any:
        if name not in device.stats:
            raise MetricNotFound(name)
        return types.SimpleNamespace(stats=lambda: list(device.stats[name].items()))

    device.stats = {
        "graph_compilation": {"TotalNumber": 3, "TotalTime": 9, "AvgTime": 3.0},
        "cpu_fallback": {"TotalNumber": 1, "FallbackOps": {}},
    }
    if device.lazy:
        device.stats["recipe_cache"] = {"TotalHit": 5, "RecipeHit": {}, "TotalMiss": 3, "RecipeMiss": {}}
    held: dict[str, dict[str, Any]] = {
        "": {},
        ".torch": {},
        ".torch.core": {"mark_step": recorded("mark_step", mark_step)},
        ".torch.utils": {},
        ".torch.utils.internal": {"is_lazy": lambda: device.lazy},
        ".torch.hpu": {
            "is_available": lambda: device.available,
            "synchronize": recorded("synchronize", lambda: None),
        },
        ".torch.hpu.metrics": {
            "metric_global": recorded("metric_global", metric_global),
            "MetricNotFound": MetricNotFound,
        },
        ".torch.hpex": {},
        ".torch.hpex.optimizers": _optimizers(device),
        ".torch.hpex.normalization": {"FusedClipNorm": _clip_norm(device)},
        ".torch.hpex.kernels": {"FusedSDPA": _sdpa(device)},
    }
    made: dict[str, types.ModuleType] = {}
    for tail, content in held.items():
        module = types.ModuleType(ROOT + tail)
        module.__path__ = []
        module.__dict__.update(content)
        made[ROOT + tail] = module
        parent, _, own = (ROOT + tail).rpartition(".")
        if parent:
            setattr(made[parent], own, module)
    return made


def _optimizers(device: Gaudi) -> dict[str, Any]:
    from torch.optim import Optimizer

    class FusedSGD(Optimizer):
        def __init__(
            self,
            params: Any,
            lr: float,
            momentum: float = 0,
            weight_decay: float = 0,
            dampening: float = 0,
            nesterov: bool = False,
        ) -> None:
            said = {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "dampening": dampening,
                "nesterov": nesterov,
            }
            device.note("FusedSGD", **said)
            super().__init__(params, said)
            device.mark()

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for group in self.param_groups:
                    device.mark()
                    with_grad = [p for p in group["params"] if p.grad is not None]
                    device.note(
                        "FusedSGD.step", count=len(with_grad), **{k: v for k, v in group.items() if k != "params"}
                    )
                    for p in with_grad:
                        d = p.grad + group["weight_decay"] * p
                        if group["momentum"]:
                            buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
                            d = buffer.mul_(group["momentum"]).add_(d)
                        p.data.sub_(group["lr"] * d)
                    device.mark()

    class FusedAdamW(Optimizer):
        def __init__(
            self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
            weight_decay: float = 0.0, bias_correction: bool = True, moments_dtype: Any = None,
        ) -> None:  # fmt: skip
            said = {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "bias_correction": bias_correction,
            }
            device.note("FusedAdamW", **said)
            super().__init__(params, said)

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for group in self.param_groups:
                    device.mark()
                    device.note("FusedAdamW.step", **{k: v for k, v in group.items() if k != "params"})
                    group["step"] = group.get("step", 0) + 1
                    beta1, beta2 = group["betas"]
                    size = group["lr"]
                    if group["bias_correction"]:
                        size *= (1 - beta2 ** group["step"]) ** 0.5 / (1 - beta1 ** group["step"])
                    for p in (p for p in group["params"] if p.grad is not None):
                        state = self.state[p]
                        if not state:
                            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                        state["exp_avg"].mul_(beta1).add_(p.grad * (1 - beta1))
                        state["exp_avg_sq"].mul_(beta2).add_(p.grad * p.grad * (1 - beta2))
                        p.data.mul_(1 - group["lr"] * group["weight_decay"])
                        p.data.sub_(size * state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"]))
            device.mark()

    return {"FusedSGD": FusedSGD, "FusedAdamW": FusedAdamW}


def _clip_norm(device: Gaudi) -> Any:
    class FusedClipNorm:
        def __init__(self, parameters: Any, max_norm: Any) -> None:
            device.note("FusedClipNorm", count=len(list(parameters)), max_norm=max_norm)
            self.max_norm = torch.ones(1) * max_norm

        def clip_norm(self, parameters: Any) -> Tensor:
            device.mark()
            grads = [p.grad for p in parameters if p.grad is not None]
            device.note("FusedClipNorm.clip_norm", count=len(grads))
            if not grads:
                return torch.tensor(0.0)
            with torch.no_grad():
                total = torch.stack([(g * g).sum() for g in grads]).sum().sqrt().reshape(1)
                for g in grads:
                    g.mul_((self.max_norm / (total + 1e-6)).clamp(max=1.0))
            device.mark()
            return total

    return FusedClipNorm


def _sdpa(device: Gaudi) -> Any:
    class FusedSDPA(torch.autograd.Function):
        @staticmethod
        def forward(  # type: ignore[override]
            ctx: Any, q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
            scale: float | None = None, softmax_mode: str = "None", recompute_mode: Any = None, valid_seq_len: Any = None,
            seq_padding_type: str = "left", return_dropout_mask: bool = False, return_attn_probs: bool = False,
        ) -> Tensor:  # fmt: skip
            if not torch.compiler.is_compiling():
                device.note("FusedSDPA", attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale,
                            softmax_mode=softmax_mode, recompute_mode=recompute_mode)  # fmt: skip
            probabilities = torch.softmax((q @ k.transpose(-2, -1)) * scale, -1)
            ctx.save_for_backward(q, k, v, probabilities)
            ctx.scale = scale
            return probabilities @ v

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
            q, k, v, probabilities = ctx.saved_tensors
            of_p = grad @ v.transpose(-2, -1)
            of_s = probabilities * (of_p - (of_p * probabilities).sum(-1, keepdim=True)) * ctx.scale
            return (of_s @ k, of_s.transpose(-2, -1) @ q, probabilities.transpose(-2, -1) @ grad, *[None] * 10)

    return FusedSDPA
