"""The fastest loop by hand that is known for a processor, and nobody's default: how near vitcore comes to it, not whom it beats.

Weights in bf16 with fp32 masters in one fused optimizer; on a processor attention by two batched products, which timm's own
unfused path is (queries scaled first), elsewhere torch's fused one. It rounds more than autocast does: gradients are bf16, and on
a processor scores and probabilities too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.peers.loops import Given, Plain
from vitcore.errors import VitcoreError


class Tuned(Plain):
    """Forward and backward in bf16, one widening of all gradients, one update of all masters, one narrowing."""

    def __init__(self, given: Given) -> None:
        if not given.autocast:
            raise VitcoreError(
                "the loop `tuned` is one of bf16 weights; give --precision bf16, or leave it out by --peers"
            )
        self.given, self.number = given, 0
        wide = given.timm_model()
        self.masters = [p.detach().clone().requires_grad_() for p in wide.parameters()]
        model = wide.to(torch.bfloat16)
        if given.device.type == "cpu":
            for block in model.blocks:
                block.attn.fused_attn = False
        self.narrow = list(model.parameters())
        self.optimizer = given.torch_optimizer(self.masters)
        self.wide_grads = [torch.empty_like(m) for m in self.masters]
        for master, grad in zip(self.masters, self.wide_grads):
            master.grad = grad
        self.model = torch.compile(model) if given.compiled else model

    def step(self) -> None:
        """One optimizer step."""
        images, labels = self.given.batch(self.number)
        self.number += 1
        loss = F.cross_entropy(self.model(images.to(torch.bfloat16)).float(), labels)
        made = torch.autograd.grad(loss, self.narrow)
        with torch.no_grad():
            torch._foreach_copy_(self.wide_grads, made)
            del made
            self.optimizer.step()
            torch._foreach_copy_(self.narrow, [m.detach() for m in self.masters])
        self.last = loss.detach()


build = Tuned
