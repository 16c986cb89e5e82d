"""What each of two ranks runs for test_two_ranks.py: `python rank_job.py FOLDER`, with the launcher's environment set.

Its results go to FOLDER/<rank>.json and FOLDER/<rank>.safetensors.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "backend"))

from rig import checkpoint_of, config, digits, open_program, run, shipped_kernels, spec, train
from safetensors.torch import save_file

from vitcore.api import hookimpl
from vitcore.backend import World
from vitcore.data.batch import Batch
from vitcore.plugins import load_plugins
from vitcore.runtime.distributed import close_group, open_group, world_from_env
from vitcore.runtime.reference import REFERENCE

STEPS = 5
# name: optimizer, images of both ranks in a micro-batch, accumulation, dropout, kernels
CASES = {
    "plain": ("sgdm", 16, 1, 0.0, REFERENCE),
    "dropout": ("sgdm", 16, 1, 0.1, REFERENCE),
    "accumulation": ("sgdm", 8, 4, 0.1, REFERENCE),
    "adamw": ("adamw", 8, 2, 0.1, None),
}
# With the shipped kernels each gradient begins at a line of the buffer.
LINE = {"adamw": 16}


class Watched:
    """The feed of one rank; it notes the evaluation images that count, and rank 1's images may be poisoned."""

    def __init__(self, world: World, micro_batch: int, accumulation: int, poison_at: int | None) -> None:
        self.feed = digits(micro_batch, accumulation, world=world, eval_batch=50)
        self.poison_at, self.count, self.evaluated = poison_at if world.rank else None, -1, list[int]()

    def next_train(self, cursor: int) -> tuple[Batch, int]:
        self.count += 1
        batch, cursor = self.feed.next_train(cursor)
        return (batch._replace(images=batch.images * float("nan")) if self.count == self.poison_at else batch), cursor

    def next_eval(self, cursor: int) -> tuple[Batch, int]:
        batch, cursor = self.feed.next_eval(cursor)
        self.evaluated += batch.positions[batch.weight > 0].tolist()
        return batch, cursor

    def close(self) -> None:
        self.feed.close()


def case(name: str, world: World, poison_at: int | None = None) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Five steps, a log, an evaluation, a log: what was said and counted, and the parameters."""
    optimizer, images, accumulation, dropout, kernels = CASES[name]
    feed = Watched(world, images // world.size, accumulation, poison_at)
    exe = open_program(
        spec(optimizer, accumulation), kernels or shipped_kernels(), feed=feed, dropout=dropout, world=world
    )
    state = run(exe, STEPS, eps=1e-3)
    trained = exe.stats()
    state, report = exe.log(state)
    state, evaluated = exe.log(exe.eval(state, feed.feed.eval_steps))
    params = [p.detach().clone() for p in state[0]]
    exe.close()
    found = {"train": report, "eval": evaluated, "stats": asdict(trained), "all_stats": asdict(exe.stats()),
             "images": feed.evaluated, "numbers": sum(p.numel() for p in params),
             "in_lines": sum(-(-p.numel() // LINE.get(name, 1)) * LINE.get(name, 1) for p in params)}  # fmt: skip
    return found, params


class TellsOnItself:
    """An observer that sends its own process SIGTERM in the log of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def vitcore_observers(self, run_dir: str) -> list[Any]:
        def hears(event: str, values: dict[str, Any]) -> None:
            if event == "train" and values["step"] == self.step:
                os.kill(os.getpid(), signal.SIGTERM)

        return [hears]


def runs(folder: Path, world: World, port: int) -> dict[str, Any]:
    """Whole runs: one uninterrupted, one resumed from a checkpoint between two logs, one stopped by rank 1's signal."""
    settings = config(
        folder / "whole", num_steps=6, train_batch_size=16, eval_every=0, save_every=3, keep_checkpoints=9
    )
    os.environ["MASTER_PORT"] = str(port)
    train(settings)
    os.environ["MASTER_PORT"] = str(port + 1)
    train(replace(settings, output_dir=str(folder / "resumed"), resume=str(checkpoint_of(settings, 3))))
    os.environ["MASTER_PORT"] = str(port + 2)
    manager = load_plugins().manager
    if world.rank == 1:
        manager.register(TellsOnItself(2), name="signal")
    stopped = train(replace(settings, output_dir=str(folder / "stopped"), log_every=2))
    return {"stopped": asdict(stopped)}


def main(folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    world = world_from_env()
    open_group(load_plugins().backend("cpu"), world)
    found: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name in CASES:
        found[name], params = case(name, world)
        tensors.update({f"{name}/{i}": p for i, p in enumerate(params)})
    found["poisoned"], params = case("plain", world, poison_at=2)
    tensors.update({f"poisoned/{i}": p for i, p in enumerate(params)})
    close_group()
    found["runs"] = runs(folder, world, port)
    save_file(tensors, folder / f"{world.rank}.safetensors")
    (folder / f"{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
