"""Lightning Fabric's loop: timm's model, `Fabric(precision="bf16-mixed")`, its `setup` and its `backward`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.peers.loops import Given, Plain


class FabricLoop(Plain):
    """The loop of Fabric's documentation, with a fused optimizer; the model is compiled before `setup`, as it asks."""

    def __init__(self, given: Given) -> None:
        from lightning.fabric import Fabric

        self.given, self.number = given, 0
        precision = "bf16-mixed" if given.autocast else "32-true"
        self.fabric = Fabric(accelerator=given.device.type, devices=1, precision=precision)
        model = given.timm_model()
        optimizer = given.torch_optimizer(model.parameters())
        self.model, self.optimizer = self.fabric.setup(torch.compile(model) if given.compiled else model, optimizer)

    def step(self) -> None:
        """One optimizer step."""
        images, labels = self.given.batch(self.number)
        self.number += 1
        loss = F.cross_entropy(self.model(images), labels)
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.last = loss.detach()


build = FabricLoop
