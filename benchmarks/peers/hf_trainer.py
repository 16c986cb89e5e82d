"""transformers' Trainer with its own ViTForImageClassification: `Trainer.train()` itself, in a thread, let through a turnstile.

A callback at the end of each step stops the thread until the next step is asked for. So a step is one whole turn of the
Trainer's loop, with everything that it does besides (its batches' way through `get_batch_samples`, callbacks, counts, the
schedule); what the turnstile adds is one change of threads, some tens of microseconds. Driving `training_step` from outside
would leave out what the Trainer costs. Its check of the loss, which waits for the device at each step, is off
(`logging_nan_inf_filter=False`); nothing is logged, saved or evaluated.
"""

from __future__ import annotations

import tempfile
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from benchmarks.peers.loops import Given
from benchmarks.workload import RATE
from vitcore.errors import VitcoreError


class Turnstile:
    """Lets a worker through one step at a time. What the worker raises is raised where the step is asked for."""

    def __init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._context: AbstractContextManager[Any] = nullcontext()
        self.failed: BaseException | None = None
        self.leave = False

    def enter(self) -> None:
        """The worker, before its first step: waits to be let through."""
        self._go.acquire()
        self._context.__enter__()

    def arrive(self) -> None:
        """The worker, at the end of a step: reports it and waits to be let through again."""
        self._context.__exit__(None, None, None)
        self._done.release()
        self.enter()

    def fall(self, error: BaseException) -> None:
        """The worker, when it ends by an error."""
        self.failed = error
        self._done.release()

    def step(self, context: AbstractContextManager[Any]) -> None:
        """Let the worker through, and wait until it has done a step within the context."""
        self._context = context
        self._go.release()
        self._done.acquire()
        if self.failed is not None:
            raise VitcoreError(f"the Trainer ended: {type(self.failed).__name__}: {self.failed}") from self.failed

    def end(self) -> None:
        """Let the worker through for the last time."""
        self.leave = True
        self._context = nullcontext()
        self._go.release()


class HfTrainer:
    """The Trainer at a turnstile."""

    name = ""

    def __init__(self, given: Given) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.given, self.turnstile = given, Turnstile()
        self._folder = tempfile.TemporaryDirectory()
        self.trainer: Any = _trainer(transformers, given, self.turnstile, self._folder.name)
        self._thread = threading.Thread(target=self._work, name="hf-trainer", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self.turnstile.enter()
            self.trainer.train()
        except BaseException as e:  # whatever it is, whoever waits must hear of it
            self.turnstile.fall(e)

    def step(self) -> None:
        """One turn of the Trainer's loop."""
        self.turnstile.step(nullcontext())

    def within(self, context: AbstractContextManager[Any]) -> None:
        """One turn inside a context."""
        self.turnstile.step(context)

    def loss(self) -> float:
        """Of the last step."""
        return float(self.trainer.last)

    def close(self) -> None:
        """Let the Trainer come to its end."""
        if self.turnstile.failed is None:
            self.turnstile.end()
            self._thread.join()
        self.trainer = self.given = None  # type: ignore[assignment]
        self._folder.cleanup()


class Batches:
    """The batches in turn, as the Trainer's model takes them."""

    def __init__(self, given: Given) -> None:
        self.given = given

    def __len__(self) -> int:
        return 10**9  # more than anyone asks for, so that no epoch ends

    def __iter__(self) -> Any:
        number = 0
        while True:
            images, labels = self.given.batch(number)
            yield {"pixel_values": images, "labels": labels}
            number += 1


def _trainer(hf: Any, given: Given, turnstile: Turnstile, folder: str) -> Any:
    class AtTurnstile(hf.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            turnstile.arrive()
            control.should_training_stop = turnstile.leave
            return control

    class OfBatches(hf.Trainer):  # type: ignore[misc]
        last: torch.Tensor

        def get_train_dataloader(self) -> Any:
            return Batches(given)

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.last = super().training_step(*args, **kwargs)
            return self.last

    model = hf.ViTForImageClassification.from_pretrained(given.folder / "hf")
    arguments = hf.TrainingArguments(
        output_dir=folder, max_steps=10**9, per_device_train_batch_size=given.job.batch, learning_rate=RATE,
        lr_scheduler_type="constant", max_grad_norm=0.0, weight_decay=0.0, bf16=given.autocast, optim="adamw_torch_fused",
        torch_compile=given.compiled, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
        logging_nan_inf_filter=False, use_cpu=given.device.type == "cpu", dataloader_pin_memory=False, seed=0,
    )  # fmt: skip
    # The Trainer's own SGD is not fused, and has no momentum unless told by a string; another is given so.
    own = (None, None)
    if given.job.optimizer == "sgdm":
        optimizer = given.torch_optimizer(model.to(given.device).parameters())
        own = (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))
    trainer = OfBatches(model=model, args=arguments, optimizers=own, callbacks=[AtTurnstile()])
    trainer.remove_callback(hf.PrinterCallback)  # it prints a summary at the end
    return trainer


build = HfTrainer
