"""From a configuration to a lowered module, without torch: which backend and why, which kernels, which program."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from vitcore import tuning
from vitcore.backend import Backend, Kernel, World
from vitcore.compiling import KERNEL, choose_compile, keep_compiled
from vitcore.config import Config
from vitcore.debug import debug_level
from vitcore.doctor.costs import kernel_costs
from vitcore.doctor.fitting import choose_remat, smaller_step
from vitcore.errors import VitcoreError, nearest
from vitcore.model.variants import find_variant
from vitcore.plugins import Plugins, load_plugins
from vitcore.runtime.codegen import source
from vitcore.runtime.distributed import world_from_env
from vitcore.runtime.opening import choose_backend, open_backend, place_threads
from vitcore.runtime.reference import REFERENCE
from vitcore.saved import saved_choice
from vitcore.simulation import simulated
from vitcore.step.build import build
from vitcore.step.ir import Module
from vitcore.step.lowering import Lowering, Pass
from vitcore.step.pipeline import fuel_from_env, lower, pipeline
from vitcore.tuning import Shape


@dataclass(frozen=True)
class Plan:
    """All that is decided before a device is touched."""

    config: Config
    plugins: Plugins
    backend: Backend
    why: str
    world: World
    kernels: tuple[Kernel, ...]
    neutral: Module
    lowered: Module
    lowering: Lowering
    passes: tuple[Pass, ...]
    notes: tuple[str, ...] = ()
    """What was decided for the run and is to be said before its first step."""
    slower: Mapping[str, str] = field(default_factory=dict)
    """Kernels that were left out because they were measured to be slower, each with the reason."""

    def show(self, stage: str) -> str:
        """The programs as `text` (neutral), `lowered`, or the generated `python`."""
        if stage == "python":
            return "\n\n".join(source(p) for p in self.lowered.programs)
        return str(self.neutral if stage == "text" else self.lowered)

    def lower_with(self, kernels: Sequence[Kernel]) -> Module:
        """The module as these kernels would have it, in place of the plan's."""
        low = self.lowering
        fresh = Lowering(self.backend, kernels, low.precision, self.world, fuel_from_env(), low.remat)
        return lower(self.neutral, fresh, self.passes)

    def explain(self) -> str:
        """The passes as they ran, every kernel that refused an op, and what those that took one cost in flushes."""
        costs = list(map(str, kernel_costs(self)))
        lines = [
            f"backend {self.backend.title}: {self.why}",
            "",
            *self.lowering.log,
            "",
            "kernels that did not take an op:",
            *(self.lowering.refusals or ["none"]),
            *(["", "what claimed kernels cost:", *costs] if costs else []),
        ]
        return "\n".join(lines)


def make_plan(config: Config, *, to_run: bool = True, details: bool = False) -> Plan:
    """Choose the backend and lower the recipe's module for it; `to_run=False` lowers for a device that is not here,
    `details` lets evaluations count by class and by confidence too."""
    plugins = load_plugins()
    if config.model_type is not None:
        find_variant(config.model_type)
    if to_run:
        from vitcore.data.datasets import find_dataset  # imports NumPy, which printing a program does not need

        find_dataset(config.dataset)
        config = _find_weights(config)
    if to_run or config.backend == "auto":
        backend, why = choose_backend(plugins, config.backend, simulate=config.simulate)
    else:
        backend, why = plugins.backend(config.backend), "asked for"
        backend = simulated(plugins, backend) if config.simulate else backend
    backend = with_env(backend, config.env)
    world = world_from_env()
    if world.size > 1 and backend.collective is None:
        raise VitcoreError(f"backend {backend.name!r} has no collective for {world.size} ranks; start one process")
    compiled, why_compiled = choose_compile(config, backend, plugins.kernels(backend.name))
    if compiled:
        keep_compiled()
    # A run that goes on takes what it took before, or it would not go on to the same bits.
    before = saved_choice(Path(config.resume), backend.name) if config.resume else None
    slower = measured(config, backend, plugins, measure=to_run) if before is None else before
    enabled = (*config.enable_kernel, *([KERNEL] if compiled else []))
    kernels, left_out = choose_kernels(plugins, backend, config.disable_kernel, enabled, slower)
    remat: str = "none" if config.remat == "auto" else config.remat
    lowering = Lowering(backend, kernels, config.precision, world, fuel_from_env(), remat, refusals=left_out)
    extra = [p for some in plugins.ask("vitcore_passes", backend=backend.name) for p in some]
    neutral = build(replace(config.spec, details=details))
    passes = tuple(pipeline(extra, config.disable_pass))
    lowered, notes = lower(neutral, lowering, passes), [why_compiled] if why_compiled else []
    if config.remat == "auto" and to_run:
        open_backend(backend, plugins)
        remat, said = choose_remat(config, backend, lowered, kernels)
        notes.append(said)
        if remat != "none":
            lowering = replace(lowering, fuel=fuel_from_env(), remat=remat, log=[], refusals=[*left_out], dumps=[])
            lowered = lower(neutral, lowering, passes)
    _debug(backend, why, neutral, lowering)
    return Plan(config, plugins, backend, why, world, kernels, neutral, lowered, lowering, passes, tuple(notes), slower)


def measured(config: Config, backend: Backend, plugins: Plugins, *, measure: bool) -> dict[str, str]:
    """The kernels that were measured to be slower for this model and batch, each with the reason. What is not known yet is
    measured, on the opened device, where a run is about to begin; a run that goes on must find the same ones as before."""
    if backend.tune is None:
        return {}

    def opened() -> None:
        open_backend(backend, plugins)
        place_threads(backend, config.threads)

    if config.model_type is not None:
        variant = find_variant(config.model_type).replace(**({"pool": config.pool} if config.pool else {}))
    elif measure:
        opened()  # first, as what reads checkpoints and weights imports torch
        from vitcore.origin import find_origin

        try:
            variant = find_origin(config).variant
        except VitcoreError:
            return {}  # refused where the model is made; or of two stages, each of which has a plan of its own
    else:
        return {}  # a file says which model it is, and is not read to print a program
    patches = math.prod(variant.grid(config.img_size, config.img_size))
    kept = patches - round(patches * config.patch_dropout)
    shape = Shape(
        rows=config.micro_batch, tokens=kept + (variant.pool == "token"), heads=variant.heads,
        head_width=variant.width // variant.heads, narrow=config.precision == "bf16",
    )  # fmt: skip
    if kept < 1:
        return {}  # smaller than a patch: refused where the model is built
    try:
        return tuning.left_out(backend, shape, opened if measure else None, config.threads)
    except (RuntimeError, MemoryError) as e:
        from vitcore.doctor.exhausted import is_exhausted  # it imports torch, as what was measured did

        if not is_exhausted(e):
            raise
        raise VitcoreError(f"out of memory while ways of computing attention were compared for a micro-batch of {shape.rows}. "
                           f"What helps: {smaller_step(config, backend, config.remat)}") from e  # fmt: skip


def choose_kernels(
    plugins: Plugins, backend: Backend, disabled: Collection[str] = (), enabled: Collection[str] = (),
    slower: Mapping[str, str] = MappingProxyType({}),
) -> tuple[tuple[Kernel, ...], list[str]]:  # fmt: skip
    """The kernels that a backend asks, in order, and a line for each that is left out: by name, by default, because it was
    measured to be slower, or because the simulator cannot run it. Those that are enabled by name are asked first."""
    offered = plugins.kernels(backend.name)
    names = list(dict.fromkeys(k.name for k in offered))
    for flag, given in (("disable_kernel", {*disabled} - {"all"}), ("enable_kernel", {*enabled})):
        for name in sorted(given - {*names}):
            raise VitcoreError(f"--{flag} {name!r} is no kernel of backend {backend.name!r}{nearest(name, names)}; it has: "
                               f"{', '.join(names) or 'none'}")  # fmt: skip
    reasons = {
        k.name: f"{k.opt_in}; {'--compile yes' if k.name == KERNEL else f'--enable_kernel {k.name}'} takes it"
        for k in offered
        if k.opt_in and k.name not in enabled
    }
    reasons |= {name: f"{why}; --enable_kernel {name} takes it" for name, why in slower.items() if name not in enabled}
    reasons |= backend.simulator.without if backend.simulator else {}
    reasons |= dict.fromkeys(names if "all" in disabled else disabled, "left out by --disable_kernel")
    kept = sorted((k for k in offered if k.name not in reasons), key=lambda k: k.name not in enabled)
    said = [f"{k.op}: {k.name} refused: {reasons[k.name]}" for k in offered if k.name in reasons]
    return (*kept, *REFERENCE), said


def with_env(backend: Backend, pairs: Sequence[str]) -> Backend:
    """The backend with further settings of its environment; its own are not to be overridden."""
    asked = dict(pair.split("=", 1) for pair in pairs)
    for name in asked.keys() & backend.env.keys():
        if asked[name] != backend.env[name]:
            raise VitcoreError(f"--env {name}={asked[name]}: backend {backend.name!r} needs {name}={backend.env[name]}; leave "
                               "it out, or choose another backend")  # fmt: skip
    return replace(backend, env={**backend.env, **asked})


def _find_weights(config: Config) -> Config:
    """The configuration with the path that the name of the weights stands for, so that a run's record holds it."""
    if config.pretrained_dir is None or config.resume is not None:
        return config
    from vitcore.weights.resolve import resolve

    try:
        return replace(config, pretrained_dir=str(resolve(config.pretrained_dir)))
    except VitcoreError as e:
        raise VitcoreError(f"--pretrained_dir {config.pretrained_dir}: {e}; to start from random weights pass "
                           "--pretrained_dir None or --internal-perf-measure") from e  # fmt: skip


def _debug(backend: Backend, why: str, neutral: Module, lowering: Lowering) -> None:
    """`VITCORE_DEBUG` 1: the backend and the passes; 2: programs before the passes and after each change."""
    level = debug_level()
    if level >= 1:
        print("\n".join([f"backend {backend.title}: {why}", *lowering.log]), file=sys.stderr)
    if level >= 2:
        print("\n".join([str(neutral), *(f"// {title}\n{text}" for title, text in lowering.dumps)]), file=sys.stderr)
