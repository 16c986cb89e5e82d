"""What a device is to vitcore: frozen data, read without importing torch, and the kernels it claims."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vitcore.errors import VitcoreError

if TYPE_CHECKING:
    from vitcore.step.ir import Op

Flushes = tuple[int, int, int]
NO_FLUSHES: Flushes = (0, 0, 0)


@dataclass(frozen=True)
class World:
    """The process group a program is lowered for: `size` ranks, this one being `rank`."""

    size: int = 1
    rank: int = 0


@dataclass(frozen=True)
class Simulator:
    """A stand-in for a device on ordinary machines, as data; used only where `--simulate` asks for it.

    It shows what a program asks of the device, and computes what the program says. It says nothing of the device's speed.
    """

    name: str
    """What everything that it takes part in is marked with."""
    backends: tuple[str, ...]
    """The backends whose device it simulates."""
    install: str
    """Called with the backend after its environment is set and before its libraries are imported."""
    probe: str | None = None
    """Torch-free: None where it can run here, else a sentence that says what is missing."""
    without: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Kernels that it cannot run, each with the reason."""
    events: str | None = None
    """Returns what made the device work since the last call: a list of `vitcore.runtime.events.Event`."""
    about: str = ""
    """One line for `vitcore backends`."""


@dataclass(frozen=True)
class Backend:
    """A device as data. Every callable is named "module:function" and resolved only when the backend is chosen."""

    name: str
    """What `--backend` takes."""
    device: str
    """The torch device type."""
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Environment set before torch is imported."""
    imports: tuple[str, ...] = ()
    """Modules whose import registers the device."""
    open: str | None = None
    """Called once after the imports, with no arguments."""
    probe: str | None = None
    """Torch-free: returns None where the device can run here, else a sentence that says what is missing and what to
    install."""
    mark: str | None = None
    """Flushes a lazy device; None: the device is not lazy."""
    wait: str | None = None
    """Blocks until the device has done all work."""
    memory: str | None = None
    """Returns the device's memory in bytes, that which is free for this process and all of it, or None where that cannot be
    known; called once the device is open."""
    counters: str | None = None
    """Returns a mapping of what the device counts: compiles, cache_hits, flushes, fallbacks."""
    failure: str | None = None
    """Called with an exception that the device's libraries raised while they were imported or opened: returns a sentence
    that says what is wrong and what to do, or None where it does not know the exception. Torch-free."""
    threads: str | None = None
    """Returns how many threads torch's operators on the host should have at most where `--threads` does not say, or None for
    torch's own choice; for devices that compute on the host."""
    compiler: str | None = None
    """The torch.compile backend of the leaf `compiled`, for backends that offer it (`vitcore.api.COMPILED`)."""
    compiler_probe: str | None = None
    """Torch-free: None where that compiler can work here, else a sentence that says what is missing and what to install."""
    compile_pays: float | None = None
    """From how many nominal operations of a run on `--compile auto` takes that leaf; None: never."""
    compiles: str = "blocks"
    """How much of the model that leaf compiles: each block by itself, one compilation for all (`blocks`), or all of it
    (`model`), which takes longer and fuses across blocks."""
    split_after: frozenset[str] = frozenset()
    """Ops that end a region."""
    collective: str | None = None
    """The torch.distributed backend that reduces this device's tensors; None: one process only."""
    precisions: tuple[str, ...] = ("fp32",)
    """What `--precision` may be: `fp32`; `tf32`, products of float32 by the device's shorter multiplication, which its
    `arithmetic` switches on; `bf16`, carried out by torch.autocast of the device, whose table decides what is
    narrow; `bf16-casts`, carried out by casts in the graph (`vitcore.runtime.casts`), for devices without a table too."""
    arithmetic: str | None = None
    """Called with the precision's name before each step and evaluation: makes the device's switches of how float32 is multiplied
    what that precision means, and returns a sentence which says so. Without it the device has one way."""
    narrow_weights: bool = False
    """Whether `bf16` is carried out by narrow copies of the weights, made once a step, and not by the device's autocast: what is
    narrow is then the same on every device, activations between products included."""
    flat: bool = False
    """Whether parameters, gradients and the optimizer's slots are each one buffer, group after group, so that what is done
    to all of them is one kernel each; for devices whose tensors can be views."""
    tune: str | None = None
    """Called with a `vitcore.tuning.Shape` once for each, by what measured: returns the seconds of one forward and backward of
    each kernel that it compares, by name, infinite for one that refuses the shape; all but the fastest are then left out."""
    capture: str | None = None
    """Called with the runtime and a region's function that is a whole step: returns what stands in for it, which records the
    device's work once and launches it as a whole from then on."""
    prefetch: bool = False
    """Whether the next batch is put on the device while this one's step runs: for devices that copy while they compute."""
    pinned: bool = False
    """Whether batches wait in pinned host memory (torch's own, of the current accelerator), from which the device copies while
    it computes."""
    rank: int = 0
    """The order in which `--backend auto` tries: the highest that can run here wins."""
    about: str = ""
    """One line for `vitcore backends`."""
    simulator: Simulator | None = None
    """What stands in for the device in this run; set by `--simulate` and never by a plugin."""

    @property
    def title(self) -> str:
        """The name for people and records: one that is simulated always says so."""
        return f"{self.name} (SIMULATED by {self.simulator.name})" if self.simulator else self.name

    @property
    def lazy(self) -> bool:
        """Whether the device defers work until it is flushed."""
        return self.mark is not None


@dataclass(frozen=True)
class Keeps:
    """What a kernel of self-attention keeps for its backward, its result left out where that is what the output projection
    reads anyway: so many times the numbers of q, of the scores (rows * heads * tokens^2), and of the scores' rows in f32."""

    tokens: float = 3
    scores: float = 1
    rows: float = 0
    number: int = 0
    """Bytes of a number of the first two; 0: of the dtype of q."""


@dataclass(frozen=True)
class Kernel:
    """An implementation of an op. The first kernel whose `when` accepts an op claims it."""

    op: str
    name: str
    """The `impl=` in the text; the runtime calls it as `rt.<op>__<name>`."""
    fn: Callable[..., Any] | str
    """`fn(rt, *operands, **attributes)`, or "module:function" so that describing it imports nothing."""
    when: Callable[[Op, World], bool | str] | None = None
    """Accepts (True) or refuses (False, or a sentence saying why); None accepts always."""
    flushes: Flushes | Callable[[Op], Flushes] = NO_FLUSHES
    """How often it flushes a lazy device by itself: before, inside, after its work."""
    variant: str = ""
    """The named formula (`vitcore.formulas`) that it computes in place of the reference's, printed on the op."""
    tier: str = "exact"
    """`exact`: the reference's bits; `algebraic`: equal in float64; `numerics`: another formula or rounding."""
    keeps: Keeps | None = None
    """Of a kernel of self_attention: what it keeps, by which memory is planned; None: as the reference does."""
    opt_in: str = ""
    """Why it is left out unless `--enable_kernel` names it; empty: it is asked in its turn."""

    def refusal(self, op: Op, world: World) -> str | None:
        """Why the kernel does not take this op, or None when it does."""
        verdict = True if self.when is None else self.when(op, world)
        if verdict is True:
            return None
        return verdict or "its condition does not hold"

    def flushes_for(self, op: Op) -> Flushes:
        """The declared flushes for this op."""
        return self.flushes(op) if callable(self.flushes) else self.flushes


def kernel(
    op: str,
    *,
    when: Callable[[Op, World], bool | str] | None = None,
    flushes: Flushes | Callable[[Op], Flushes] = NO_FLUSHES,
    variant: str = "",
    tier: str = "exact",
    opt_in: str = "",
) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a plain function as a kernel for `op`; its name becomes the `impl`."""

    def claim(fn: Callable[..., Any]) -> Kernel:
        return Kernel(op, fn.__name__, fn, when, flushes, variant, tier, opt_in=opt_in)

    return claim


def resolve(reference: str) -> Any:
    """Import what "module:function" names; a VitcoreError names the reference where that fails."""
    module, _, attribute = reference.partition(":")
    try:
        found = importlib.import_module(module)
        for part in attribute.split(".") if attribute else ():
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError, OSError) as e:
        raise VitcoreError(
            f"{reference!r} cannot be resolved: {e}; install what provides it or correct the name"
        ) from e
