"""The small training problem that the checks run: model, data and settings chosen so that mistakes show.

The learning rate moves, momentum, weight decay and Adam's epsilon are large, two parameter groups differ, clipping is at
work in some steps and not in others, one batch is not finite, and the evaluation's last batch is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitcore.backend import Backend, Kernel, World
from vitcore.data.batch import Batch
from vitcore.data.datasets import open_dataset
from vitcore.data.feed import Feed
from vitcore.model.variants import Variant
from vitcore.model.vit import VisionTransformer
from vitcore.plan import choose_kernels
from vitcore.plugins import Plugins, load_plugins
from vitcore.runtime.executable import Executable, State
from vitcore.runtime.reference import REFERENCE
from vitcore.simulation import simulated
from vitcore.step.build import StepSpec, build
from vitcore.step.ir import Group, Module
from vitcore.step.lowering import Lowering, Pass
from vitcore.step.pipeline import lower, pipeline
from vitcore.testing.process import command

SIDE, CLASSES, TRAIN_IMAGES, EVAL_IMAGES, EVAL_BATCH = 16, 5, 48, 11, 4
BATCH = 8
"""Images in one step of all ranks together, whatever the accumulation."""
GROUPS = (Group("no_decay", r"bias$|norm", 0.5, 0.0), Group("all"))
_MODEL = Variant(name="conformance", patch=8, width=32, depth=3, heads=2, mlp=48, img_size=SIDE)

Wrap = Callable[[str, Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Subject:
    """What is tested: a backend with the kernels and passes that its plugins bring, and the seed of everything."""

    backend: Backend
    kernels: tuple[Kernel, ...]
    passes: tuple[tuple[str, Pass], ...] = ()
    seed: int = 0
    enabled: tuple[str, ...] = ()
    """Kernels that are left out by default and were enabled."""

    def process(self, *argv: str) -> list[str]:
        """The command of another process of the same."""
        return command(self.backend.name, *argv, simulate=self.backend.simulator is not None, enabled=self.enabled)

    def spec(self, optimizer: str, accumulation: int = 1, **more: Any) -> StepSpec:
        """A step's description."""
        return StepSpec(name="conformance", optimizer=optimizer, accumulation=accumulation, groups=GROUPS, **more)

    def lowered(self, spec: StepSpec, precision: str = "fp32", world: World | None = None) -> Module:
        """The sealed module for the backend."""
        lowering = Lowering(self.backend, self.kernels, precision, world or World())
        return lower(build(spec), lowering, pipeline(self.passes))

    def open(
        self, spec: StepSpec, *, precision: str = "fp32", world: World | None = None, dropout: float = 0.0,
        gelu: str = "tanh", guard: bool = False, wrap: Wrap | None = None, poisoned: int | None = None,
    ) -> Executable:  # fmt: skip
        """The program, ready to run; `wrap` is put around every kernel."""
        world = world or World()
        return Executable(
            self.lowered(spec, precision, world), self.backend, self.kernels, model(dropout, gelu),
            feed(self.seed, spec, world, poisoned), world, guard=guard, wrap=wrap,
        )  # fmt: skip

    def start(self, exe: Executable) -> State:
        """A fresh state whose head is not zero: with a zero head, as `init` makes it, every loss is the same."""
        saved = exe.saved(exe.init(self.seed))
        params = list(saved[exe.params_name])
        i = exe.rt.names.index("head.weight")
        with torch.no_grad():
            params[i] = head(self.seed).to(exe.rt.device)
        return exe.restore({**saved, exe.params_name: tuple(params)})

    def train(self, exe: Executable, steps: int, state: State | None = None, first: int = 0) -> State:
        """Some steps from a fresh state, or on from one that has made `first`."""
        state = self.start(exe) if state is None else state
        for step in range(first, first + steps):
            state = exe.step(state, hyper(step))
        return state


def subject(
    name: str, seed: int = 0, plugins: Plugins | None = None, *, simulate: bool = False, enabled: Sequence[str] = ()
) -> Subject:
    """The installed backend called `name`, or its simulator, as a run would use it that enables some more kernels."""
    plugins = plugins or load_plugins()
    backend = plugins.backend(name)
    backend = simulated(plugins, backend) if simulate else backend
    kernels, _ = choose_kernels(plugins, backend, enabled=enabled)
    passes = tuple(p for some in plugins.ask("vitcore_passes", backend=name) for p in some)
    return Subject(backend, kernels, passes, seed, tuple(enabled))


def reference(of: Subject) -> Subject:
    """The reference kernels on the host, eagerly: what a backend is measured against."""
    host = Backend(
        name="reference", device=torch.Generator().device.type, precisions=(*of.backend.precisions, "bf16-casts")
    )
    return replace(of, backend=host, kernels=REFERENCE, passes=())


def model(dropout: float = 0.0, gelu: str = "tanh") -> VisionTransformer:
    """The model, on the host, its parameters not drawn yet."""
    return VisionTransformer(_MODEL.replace(dropout=dropout, gelu=gelu), SIDE, CLASSES)


def head(seed: int) -> Tensor:
    """The head's first weights."""
    return torch.randn(CLASSES, _MODEL.width, generator=torch.Generator().manual_seed(seed + 1)) * 0.2


def hyper(step: int) -> dict[str, float]:
    """The scalars of a step; no two have one value, which a device may take for one constant."""
    return {
        "lr": 0.041 * (1 + 0.3 * step), "weight_decay": 0.13, "momentum": 0.87, "beta1": 0.8, "beta2": 0.9,
        "eps": 0.011, "max_norm": 0.37 if step % 2 == 0 else 53.0,
    }  # fmt: skip


def feed(seed: int, spec: StepSpec, world: World, poisoned: int | None = None) -> Feed:
    """Synthetic pictures for one rank."""
    data = open_dataset("synthetic", img_size=SIDE, channels=3, train_size=TRAIN_IMAGES, eval_size=EVAL_IMAGES,
                        classes=CLASSES)  # fmt: skip
    made = Feed(data, seed=seed, micro_batch=BATCH // (spec.accumulation * world.size), accumulation=spec.accumulation,
                world_size=world.size, rank=world.rank, eval_batch=EVAL_BATCH)  # fmt: skip
    return made if poisoned is None else Poisoned(made, poisoned)


class Poisoned(Feed):
    """A feed one of whose training batches is not finite."""

    def __init__(self, feed: Feed, step: int) -> None:
        self.__dict__.update(feed.__dict__)
        self._at = step * BATCH

    def next_train(self, cursor: int) -> tuple[Batch, int]:
        """As the feed's, but for the first batch of the step."""
        batch, following = super().next_train(cursor)
        if cursor != self._at:
            return batch, following
        images: Tensor = batch.images.float() / 127.5 - 1
        return batch._replace(images=images * float("inf")), following


def host_leaves(value: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Every tensor in a nest of tuples, lists and dicts, on the host; bundles by the parameters' names."""
    if isinstance(value, torch.Tensor):
        return {"": value.detach().cpu()}
    if isinstance(value, Mapping):
        items = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        items = [*value._asdict().items()]
    elif isinstance(value, (tuple, list)):
        labels = names if len(value) == len(names) else [str(i) for i in range(len(value))] if len(value) > 1 else [""]
        items = list(zip(labels, value))
    else:
        return {}
    return {".".join(filter(None, (k, n))): t for k, v in items for n, t in host_leaves(v, names).items()}
