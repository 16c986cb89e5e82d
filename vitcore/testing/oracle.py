"""The same step in float64, written from the formulas and not from the kernels: what every backend is measured against.

Parameters are drawn as the program draws them and dropout's masks are the model's own; loss, gradients, clipping and
updates are computed by torch's functions and textbook formulas.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcore.backend import World
from vitcore.data.order import sample_keys
from vitcore.model.dropout import dropout_keys
from vitcore.model.init import init_parameters
from vitcore.model.vit import parameter_names
from vitcore.step.build import StepSpec
from vitcore.testing.problem import EVAL_BATCH, GROUPS, Subject, feed, head, hyper, model
from vitcore.testing.recording import Records

Bundle = dict[str, Tensor]


def oracle(
    subject: Subject, spec: StepSpec, steps: int, *, dropout: float = 0.0, gelu: str = "tanh", poisoned: int | None = None,
    variants: frozenset[str] = frozenset(), answers: Records | None = None,
) -> Records:  # fmt: skip
    """The values of every op of some steps and of one evaluation, by op, number and name. `variants` are the named
    formulas that the backend's kernels declare. Right answers are counted in the logits of `answers`, where they are given:
    in a narrow precision another answer may be a rounding away."""
    net = model(dropout, "tanh" if "gelu_tanh" in variants else gelu)
    init_parameters(net, torch.Generator().manual_seed(subject.seed))
    assert net.head is not None
    net.head.weight.data.copy_(head(subject.seed))
    net = net.double()
    run = _Run(net, spec, variants)
    data, cursor = feed(subject.seed, spec, World(), poisoned), 0
    try:
        for step in range(steps):
            cursor = run.step(data, cursor, subject.seed, {k: _f32(v) for k, v in hyper(step).items()})
        run.evaluate(data, answers or {})
    finally:
        data.close()
    return run.records


def _f32(value: float) -> float:
    """A scalar as a device is given it."""
    return float(torch.tensor(value, dtype=torch.float32))


class _Run:
    def __init__(self, net: Any, spec: StepSpec, variants: frozenset[str]) -> None:
        self.net, self.spec, self.variants = net, spec, variants
        self.names = parameter_names(net)
        named = dict(net.named_parameters())
        self.params = [named[n] for n in self.names]
        slots = {"sgdm": ("momentum",), "adamw": ("exp_avg", "exp_avg_sq")}[spec.optimizer]
        self.opt = {s: [torch.zeros_like(p) for p in self.params] for s in slots}
        self.updates = 0
        self.records: Records = {}
        self.counts: dict[str, int] = {}
        self.sums = dict.fromkeys(("loss", "loss_n", "grad_norm", "grad_norm_n"), 0.0)
        self.health = dict.fromkeys(("0.steps", "0.bad_steps", "0.first_bad_step"), 0.0)
        self.totals = {"eval_loss": 0.0, "eval_correct": 0.0, "eval_correct5": 0.0, "eval_total": 0.0}

    def note(self, op: str, values: Mapping[str, Tensor]) -> None:
        number = self.counts.get(op, 0)
        self.counts[op] = number + 1
        for name, value in values.items():
            self.records[op, number, name] = value.detach().double().clone()

    def bundle(self, tensors: list[Tensor]) -> Bundle:
        return dict(zip(self.names, tensors))

    def step(self, data: Any, cursor: int, seed: int, h: Mapping[str, float]) -> int:
        total = [torch.zeros_like(p) for p in self.params]
        for _ in range(self.spec.accumulation):
            batch, cursor = data.next_train(cursor)
            loss = self.loss(batch, seed)
            self.note("model.forward", {"": loss})
            grads = torch.autograd.grad(loss, self.params)
            self.note("model.backward", self.bundle(list(grads)))
            total = [t + g for t, g in zip(total, grads)]
            self.note("grads.add", self.bundle(total))
            self.add("loss", loss)
        mean = [t / self.spec.accumulation for t in total]
        self.note("grads.scale", self.bundle(mean))
        self.note("grads.all_reduce", self.bundle(mean))
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in mean]))
        if self.spec.clip:
            mean = [g * min(1.0, h["max_norm"] / (float(norm) + 1e-6)) for g in mean]
            self.note("grads.clip", {**{f"0.{n}": g for n, g in self.bundle(mean).items()}, "1": norm})
        else:
            self.note("grads.norm", {"": norm})
        self.add("grad_norm", norm)
        finite = bool(torch.isfinite(norm))
        self.health["0.steps"] += 1
        if not finite and not self.health["0.bad_steps"]:
            self.health["0.first_bad_step"] = self.health["0.steps"]
        self.health["0.bad_steps"] += not finite
        self.note("health.check", {"1": torch.tensor(float(finite)), **_tensors(self.health)})
        if finite:
            self.update(mean, h)
        slots = {f"1.{s}.{n}": t for s, some in self.opt.items() for n, t in zip(self.names, some)}
        self.note("opt.update", {**{f"0.{n}": p for n, p in self.bundle(self.params).items()}, **slots})
        return cursor

    def add(self, name: str, value: Tensor) -> None:
        self.sums[name] += float(value)
        self.sums[f"{name}_n"] += 1
        self.note("metrics.add", _tensors(self.sums))

    def loss(self, batch: Any, seed: int) -> Tensor:
        keys = torch.from_numpy(sample_keys(seed, batch.positions.numpy(), zlib.crc32(b"model")))
        self.net.train()
        with dropout_keys(keys) if self.net.variant.dropout else nullcontext():
            logits = self.net(_pixels(batch.images))
        rows = F.cross_entropy(logits, batch.labels, reduction="none", label_smoothing=self.spec.label_smoothing)
        return (rows * batch.weight).sum() / batch.weight.sum()

    def update(self, grads: list[Tensor], h: Mapping[str, float]) -> None:
        self.updates += 1
        with torch.no_grad():
            for i, name in enumerate(self.names):
                group = next(g for g in GROUPS if re.search(g.pattern, name))
                lr, decay = h["lr"] * group.lr, h["weight_decay"] * group.weight_decay
                (self.sgdm if self.spec.optimizer == "sgdm" else self.adamw)(i, grads[i], lr, decay, h)

    def sgdm(self, i: int, g: Tensor, lr: float, decay: float, h: Mapping[str, float]) -> None:
        velocity = self.opt["momentum"][i]
        velocity.copy_(h["momentum"] * velocity + g + decay * self.params[i])
        self.params[i].sub_(lr * velocity)

    def adamw(self, i: int, g: Tensor, lr: float, decay: float, h: Mapping[str, float]) -> None:
        first, second, t = self.opt["exp_avg"][i], self.opt["exp_avg_sq"][i], self.updates
        first.copy_(h["beta1"] * first + (1 - h["beta1"]) * g)
        second.copy_(h["beta2"] * second + (1 - h["beta2"]) * g.square())
        self.params[i].mul_(1 - lr * decay)
        one, two = 1 - h["beta1"] ** t, 1 - h["beta2"] ** t
        if "adamw_eps_before_correction" in self.variants:
            self.params[i].sub_(lr * two**0.5 / one * first / (second.sqrt() + h["eps"]))
        else:
            self.params[i].sub_(lr * (first / one) / ((second / two).sqrt() + h["eps"]))

    @torch.no_grad()
    def evaluate(self, data: Any, answers: Records) -> None:
        self.net.eval()
        for call in range(data.eval_steps):
            batch, _ = data.next_eval(call * EVAL_BATCH)
            logits = self.net(_pixels(batch.images))
            self.note("model.apply", {"": logits})
            for row in range(len(logits)):
                if batch.weight[row] == 0:
                    continue
                said = answers.get(("model.apply", call, ""), logits)[row]
                order, label = said.argsort(descending=True).tolist(), int(batch.labels[row])
                self.totals["eval_total"] += 1
                self.totals["eval_correct"] += order[0] == label
                self.totals["eval_correct5"] += label in order[:5]
                self.totals["eval_loss"] += float(F.cross_entropy(logits[row], batch.labels[row]))
            self.note("metrics.count", _tensors(self.totals))


def _tensors(values: Mapping[str, float]) -> Bundle:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def _pixels(images: Tensor) -> Tensor:
    return images.double() / 127.5 - 1 if images.dtype == torch.uint8 else images.double()
