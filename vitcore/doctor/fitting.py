"""Whether a step fits into the device's memory, and what makes it smaller. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from vitcore.backend import Backend, Kernel, resolve
from vitcore.config import Config
from vitcore.doctor.quantities import size
from vitcore.errors import VitcoreError
from vitcore.step.ir import Module

ANOTHER_MODEL = "a smaller --img_size or --model_type"


def free_memory(backend: Backend) -> int | None:
    """Bytes that this process may still take on the opened device; None where that is not known."""
    found = resolve(backend.memory)() if backend.memory else None
    return None if found is None else int(found[0])


def choose_remat(config: Config, backend: Backend, module: Module, kernels: Sequence[Kernel]) -> tuple[str, str]:
    """What `--remat auto` is on the opened backend, and why: `blocks` where a step of the module, which has none, is planned to
    need more than is free."""
    # Here and not at the top: it imports torch.
    from vitcore.doctor.memory import estimate
    from vitcore.doctor.sizes import sizes_of_config
    from vitcore.origin import find_origin

    free = free_memory(backend)
    if free is None:
        raise VitcoreError(f"--remat auto: backend {backend.name!r} does not say how much memory is free; give --remat blocks "
                           "or --remat none")  # fmt: skip
    peak = estimate(module, sizes_of_config(config, find_origin(config).variant), kernels).peak
    remat, without = ("none", "") if peak <= free else ("blocks", "without it ")
    return remat, f"remat {remat}: {without}about {size(peak)} are planned and {size(free)} are free"


def smaller_step(config: Config, backend: Backend, remat: str) -> str:
    """The flags that make a step need less, the most harmless first, beside what is set already."""
    ways = []
    if config.micro_batch > 1:
        ways.append(f"--gradient_accumulation_steps {_more_parts(config)} (the same step in smaller parts)")
    if remat == "none":
        ways.append("--remat blocks (the same step, with a quarter more work)")
    if config.precision == "fp32" and "bf16" in backend.precisions:
        ways.append("--precision bf16")
    if config.train_batch_size > 1:
        ways.append(f"a --train_batch_size below {config.train_batch_size}")
    return " or ".join(ways or [ANOTHER_MODEL])


def smaller_evaluation(config: Config) -> str:
    """The same of an evaluated batch."""
    half = config.eval_batch_size // 2
    return f"--eval_batch_size {half}" if half else ANOTHER_MODEL


def does_not_fit(peak: int, free: int, config: Config, backend: Backend, remat: str) -> str:
    """The warning of a plan that needs more than is free."""
    return (
        f"warning: the step may run out of memory, as about {size(peak)} are planned and {size(free)} are free; what "
        f"helps: {smaller_step(config, backend, remat)}"
    )


def _more_parts(config: Config) -> int:
    """The number of micro-batches that is at least twice as many and divides the batch."""
    n, whole = config.gradient_accumulation_steps, config.train_batch_size
    return next((k for k in range(2 * n, whole) if whole % k == 0), whole)
