"""timm's training script, `train.py`, which its wheel does not bring: its parts, in the order in which its epoch calls them.

Of a step it keeps: the task that holds model and loss, autocast (`--amp --amp-dtype bfloat16`: no loss scaler), backward and
update, the loss read by the host at every step into a meter, gradients dropped, the meters of time, the schedule's step. Its
optimizer factory makes the optimizer, fused as `--opt-kwargs fused=True` has it; `--torchcompile` compiles the task.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from benchmarks.peers.loops import Given, Plain
from benchmarks.workload import RATE


class TimmScript(Plain):
    """One process, no accumulation, no clipping, no average of the parameters."""

    def __init__(self, given: Given) -> None:
        from timm.optim import create_optimizer_v2
        from timm.scheduler import create_scheduler_v2
        from timm.utils import AverageMeter

        self.given, self.number = given, 0
        model = given.timm_model()
        kind = {"sgdm": "momentum", "adamw": "adamw"}[given.job.optimizer]
        # Without the split of the parameters by decay: there is none.
        self.optimizer = create_optimizer_v2(
            model, opt=kind, lr=RATE, momentum=0.9, weight_decay=0.0, filter_bias_and_bn=False, fused=True
        )
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer, sched="cosine", num_epochs=10**6, updates_per_epoch=10**3
        )
        self.task = _task(model, given)
        self.autocast: Any = nullcontext
        if given.autocast:
            self.autocast = partial(torch.autocast, device_type=given.device.type, dtype=torch.bfloat16)
        self.losses, self.waits, self.updates = AverageMeter(), AverageMeter(), AverageMeter()
        self.since = time.time()
        self.optimizer.zero_grad()

    def step(self) -> None:
        """One turn of the epoch's loop."""
        began = time.time()
        images, labels = self.given.batch(self.number)
        self.number += 1
        self.waits.update(time.time() - began)
        with self.autocast():
            loss = self.task(images, labels)
        loss.backward()
        self.optimizer.step()
        self.last = loss.detach()
        self.losses.update(loss.item(), len(labels))
        self.optimizer.zero_grad()
        now = time.time()
        self.updates.update(now - self.since)
        self.since = now
        if self.scheduler is not None:
            self.scheduler.step_update(num_updates=self.number, metric=self.losses.avg)


def _task(model: torch.nn.Module, given: Given) -> Any:
    """Pictures and labels to the loss: timm's task where this release has tasks, else its model and torch's loss, as the script
    had it before."""
    try:
        from timm.task import ClassificationTask
    except ImportError:
        compiled = torch.compile(model) if given.compiled else model
        criterion = torch.nn.CrossEntropyLoss()
        return lambda images, labels: criterion(compiled(images), labels)
    # Given, as one release of timm asks for it and another makes it.
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), device=given.device, verbose=False)
    if given.compiled:
        task.compile()
    return lambda images, labels: task(images, labels)["loss"]


build = TimmScript
