"""What the tests of the running program share: opening one on real data, running it, comparing states bit by bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vitcore.backend import Backend, Kernel, World
from vitcore.config import Config
from vitcore.data.augment import Augment
from vitcore.data.datasets import open_dataset
from vitcore.data.feed import Feed
from vitcore.model.vit import build_model
from vitcore.plan import choose_kernels, make_plan
from vitcore.plugins import load_plugins
from vitcore.runtime.executable import Executable, State
from vitcore.runtime.reference import REFERENCE
from vitcore.step.build import StepSpec, build
from vitcore.step.ir import Module
from vitcore.step.lowering import Fuel, Lowering
from vitcore.step.pipeline import lower, pipeline
from vitcore.training import Result, Trainer

SEED = 7
WARP = Augment(rotate=10.0, scale=(0.9, 1.1), shear=5.0, translate=0.5)
HYPER = {"lr": 0.01, "weight_decay": 0.05, "momentum": 0.9, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "max_norm": 0.5}
LAUNCHER = ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE",
            "MASTER_ADDR", "MASTER_PORT")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def guarded() -> Iterator[None]:
    """Guards on, here and in every process that is started; one thread; no launcher's environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITCORE_DEBUG", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in (*LAUNCHER, "VITCORE_FUEL", "VITCORE_PLUGINS"):
            patch.delenv(name, raising=False)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


def spec(optimizer: str = "sgdm", accumulation: int = 1, *, clip: bool = True, **more: Any) -> StepSpec:
    """A step's description."""
    return StepSpec(name="test", optimizer=optimizer, accumulation=accumulation, clip=clip, **more)


def cpu() -> Backend:
    """The shipped cpu backend."""
    return load_plugins().backend("cpu")


def shipped_kernels(without: Sequence[str] = ()) -> tuple[Kernel, ...]:
    """The kernels that the cpu backend asks, in order, but for its own of some ops."""
    own = choose_kernels(load_plugins(), cpu())[0][: -len(REFERENCE)]
    return (*(k for k in own if k.op not in without), *REFERENCE)


def lowered(
    step: StepSpec,
    kernels: Sequence[Kernel] = REFERENCE,
    *,
    backend: Backend | None = None,
    precision: str = "fp32",
    world: World | None = None,
    disabled: Sequence[str] = (),
    fuel: int | None = None,
) -> Module:
    """The sealed module of a step."""
    lowering = Lowering(backend or cpu(), kernels, precision, world or World(), Fuel(fuel))
    return lower(build(step), lowering, pipeline((), disabled))


def open_program(
    step: StepSpec,
    kernels: Sequence[Kernel] = REFERENCE,
    *,
    feed: Any = None,
    micro_batch: int = 8,
    dropout: float = 0.0,
    guard: bool | None = None,
    backend: Backend | None = None,
    world: World | None = None,
    **how: Any,
) -> Executable:
    """A step's program, ready to run on the small model and, unless `feed` is given, on augmented digits."""
    world, backend = world or World(), backend or cpu()
    module = lowered(step, kernels, backend=backend, world=world, **how)
    feed = feed or digits(micro_batch, step.accumulation, world=world)
    model = build_model("ViT-digits", 8, 10, dropout=dropout)
    return Executable(module, backend, kernels, model, feed, world, guard=guard)


def digits(micro_batch: int, accumulation: int = 1, *, world: World | None = None, eval_batch: int = 50) -> Feed:
    """Augmented digits, for one rank."""
    world = world or World()
    return Feed(
        open_dataset("digits-tune", img_size=8), seed=SEED, micro_batch=micro_batch, accumulation=accumulation,
        world_size=world.size, rank=world.rank, augment=WARP, eval_batch=eval_batch,
    )  # fmt: skip


def run(exe: Executable, steps: int, state: State | None = None, **hyper: float) -> State:
    """Some steps from a fresh state, or on from one; the learning rate moves."""
    state = exe.init(SEED) if state is None else state
    for i in range(steps):
        state = exe.step(state, {**HYPER, "lr": HYPER["lr"] * (1 + i) / (1 + steps), **hyper})
    return state


def copy(value: Any) -> Any:
    """A state, or any part of one, that later steps cannot write into."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: copy(v) for k, v in value.items()}
    return tuple(copy(v) for v in value) if _is_bundle(value) else value


def _is_bundle(value: Any) -> bool:
    """Whether it is a sequence of values, of one buffer or not, and no key or batch."""
    return isinstance(value, (tuple, list)) and not hasattr(value, "_fields")


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Everything in a nest of tuples and dicts, by its path."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif _is_bundle(value):
        items = list(enumerate(value))
    else:
        return {name: value}
    return {k: v for key, each in items for k, v in leaves(each, f"{name}/{key}").items()}


def assert_same_bits(one: Any, other: Any) -> None:
    """Equal structure, equal plain values, equal bits of every tensor (NaN equals itself, 0.0 equals -0.0)."""
    a, b = leaves(one), leaves(other)
    assert a.keys() == b.keys()
    for name, x in a.items():
        if isinstance(x, Tensor):
            same = torch.equal(x, b[name]) or (x.dtype == b[name].dtype and torch.equal(_bits(x), _bits(b[name])))
            assert same, f"{name} differs by up to {(x - b[name]).abs().max().item():.3g}"
        else:
            assert x == b[name], name


def _bits(x: Tensor) -> Tensor:
    return x.detach().flatten().view(torch.uint8)


def relative_error(have: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The norm of the difference of two bundles over the norm of the second, in float64."""
    far = sum(
        float((h.detach().double() - w.detach().double()).square().sum()) for h, w in zip(have, want, strict=True)
    )
    return (far / sum(float(w.detach().double().square().sum()) for w in want)) ** 0.5


# ---- whole runs ----


SMALL = Config(
    name="run", dataset="digits-tune", train_batch_size=64, gradient_accumulation_steps=2, eval_batch_size=90,
    num_steps=24, optimizer="adamw", learning_rate=0.003, weight_decay=0.05, warmup_steps=4, dropout=0.1, seed=SEED,
    augment_rotate=10.0, augment_scale=(0.9, 1.1), augment_translate=0.5, log_every=5, eval_every=12, threads=1,
    backend="cpu",
)  # fmt: skip
"""A short run on digits-tune with everything on: dropout, augmentation, accumulation, logs and evaluations."""


def config(folder: Path, **settings: Any) -> Config:
    """The short run, in a folder, with other settings."""
    return replace(SMALL, **{"output_dir": str(folder), **settings})


def train(settings: Config, stop_at: int | None = None) -> Result:
    """Train in this process, without a word."""
    return Trainer(make_plan(settings), quiet=True, stop_at=stop_at).run()


def resume(settings: Config, stop_at: int | None = None, **changes: Any) -> Result:
    """Go on from the newest checkpoint of the run's own folder."""
    run_dir = Path(settings.output_dir) / settings.name
    return train(replace(settings, **{"resume": str(run_dir), **changes}), stop_at)


def checkpoint_of(settings: Config, step: int) -> Path:
    """A checkpoint's folder."""
    return Path(settings.output_dir) / settings.name / "checkpoints" / f"step-{step:08d}"


def contents(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """A checkpoint's tensors, plain values and facts, read without vitcore."""
    record = json.loads((folder / "state.json").read_text())
    return load_file(folder / "state.safetensors"), record["values"], record["facts"]


def records(settings: Config, event: str) -> dict[int, dict[str, float]]:
    """The lines of metrics.jsonl of one kind by step, the last of each, without what depends on the clock."""
    lines = (Path(settings.output_dir) / settings.name / "metrics.jsonl").read_text().splitlines()
    found = {line["step"]: line for line in map(json.loads, lines) if line["event"] == event}
    clock = ("time", "images_per_second", "input_wait")
    return {step: {k: v for k, v in line.items() if k not in clock} for step, line in found.items()}
