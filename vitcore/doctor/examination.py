"""All that can be said of a plan, or of an executable at hand: read, estimated, run and diagnosed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vitcore.backend import Backend, Kernel
from vitcore.doctor.costs import Cost, kernel_costs
from vitcore.doctor.diagnose import Finding, diagnose
from vitcore.doctor.memory import Memory, estimate
from vitcore.doctor.report import Report
from vitcore.doctor.running import Run, run
from vitcore.doctor.sizes import Sizes, sizes_of_executable, sizes_of_plan
from vitcore.doctor.static import read_module
from vitcore.doctor.traffic import Traffic, travels
from vitcore.errors import VitcoreError
from vitcore.origin import find_origin
from vitcore.plan import Plan
from vitcore.runtime.executable import Executable, State
from vitcore.step.ir import Module

STEPS = 6


def examine(plan: Plan, steps: int = STEPS, run: bool = True) -> Report:
    """Of a plan; with `run` on its own device, opened here, on the recipe's own data, with a learning rate that moves."""
    if not run:
        costs = kernel_costs(plan)
        return _report(plan.lowered, plan.backend, plan.kernels, costs, lambda: sizes_of_plan(plan), None)
    from vitcore.session import Session

    config = plan.config
    with Session(plan, find_origin(config)) as session:
        rate, exe = config.learning_rate or 1e-3, session.executable
        return examine_executable(
            exe,
            lambda: session.start()[0],
            # No two steps have one rate, and none is 0 or 1, which a device may take for a constant of its own.
            lambda step: {"lr": rate * (1 - step / (4 * (steps + 3))), **config.hypers(step)},
            steps,
            kernel_costs(plan),
            plan.kernels,
        )


def examine_executable(
    exe: Executable,
    start: Callable[[], State],
    hyper: Callable[[int], Mapping[str, float]],
    steps: int = STEPS,
    costs: Sequence[Cost] = (),
    kernels: Sequence[Kernel] = (),
) -> Report:
    """Of an executable with its feed, which is run: `start` makes its state, `hyper` the scalars of a step."""
    done = run(exe, start, hyper, steps)
    return _report(exe.module, exe.rt.backend, kernels, costs, lambda: sizes_of_executable(exe), done)


def _report(
    module: Module, backend: Backend, kernels: Sequence[Kernel], costs: Sequence[Cost], sizes_of: Callable[[], Sizes],
    done: Run | None,
) -> Report:  # fmt: skip
    programs, unknown = read_module(module), ""
    memory: Memory | None = None
    traffic: Traffic | None = None
    try:
        sizes = sizes_of()
        traffic, memory = travels(module, programs, sizes), estimate(module, sizes, kernels)
    except VitcoreError as e:
        unknown = str(e)
    findings: list[Finding] = diagnose(done, lazy=backend.lazy) if done else []
    findings += [
        Finding("note", str(cost), "", f"compare the speed of both: --disable_kernel {cost.kernel}")
        for cost in costs
        if cost.flushes > cost.reference and cost.program in ("train", "eval")
    ]
    world, precision = module["train"].attrs.get("world", "1"), module.attrs.get("precision", "fp32")
    return Report(
        backend.title, module.name, backend.lazy, int(world), precision, programs, list(costs), traffic, memory, unknown,
        done, findings,
    )  # fmt: skip
