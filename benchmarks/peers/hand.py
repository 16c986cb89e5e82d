"""The plain loop: timm's model, torch's autocast, cross-entropy and fused optimizer, nothing else."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.peers.loops import Given, Plain


class Hand(Plain):
    """Forward, backward, update, gradients set to None."""

    def __init__(self, given: Given) -> None:
        self.given, self.number = given, 0
        model = given.timm_model()
        self.optimizer = given.torch_optimizer(model.parameters())
        self.model = torch.compile(model) if given.compiled else model

    def step(self) -> None:
        """One optimizer step."""
        given = self.given
        images, labels = given.batch(self.number)
        self.number += 1
        with torch.autocast(given.device.type, torch.bfloat16, enabled=given.autocast):
            loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.last = loss.detach()


build = Hand
