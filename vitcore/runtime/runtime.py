"""`rt`: what generated programs call. One class for every backend; a backend changes it by data and by kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vitcore.backend import Backend, Kernel, World, resolve
from vitcore.errors import VitcoreError
from vitcore.model.vit import VisionTransformer, computes_narrow, parameter_names
from vitcore.runtime.codegen import call_name
from vitcore.runtime.flat import JoinedTuple, Layout, buffer
from vitcore.runtime.guards import no_host_reads
from vitcore.step.build import OPTIMIZERS
from vitcore.step.ir import Group, Module, walk
from vitcore.step.ops import FUNCTIONS, OPS

if TYPE_CHECKING:
    from vitcore.data.feed import Feed

Params = tuple[Tensor, ...]

# The kinds that the groups of a module with this optimizer can have.
KINDS = {**{kind: (kind,) for kind in OPTIMIZERS}, "muon": ("muon", "adamw")}


@dataclass
class Counts:
    """What the runtime itself counts since it was opened."""

    steps: int = 0
    marks: int = 0
    host_reads: int = 0
    reductions: int = 0
    bytes_reduced: int = 0


@dataclass(frozen=True)
class BoundGroup:
    """A parameter group that is trained, with the positions of its parameters."""

    name: str
    lr: float
    weight_decay: float
    indices: tuple[int, ...]
    kind: str
    """Of optimizer."""


class Runtime:
    """The model, the data and the device, and every chosen kernel as a method `<op>__<impl>`.

    A claimed kernel is called as `kernel(rt, ...)` and may call any reference kernel: `rt.opt_update__reference(...)`.
    """

    def __init__(
        self,
        backend: Backend,
        module: Module,
        kernels: Sequence[Kernel],
        model: VisionTransformer,
        feed: Feed | None,
        world: World,
        *,
        guard: bool = False,
        wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> None:
        self.backend, self.world, self.feed, self.guard = backend, world, feed, guard
        self.device = torch.device(backend.device)
        self.model = model.to(self.device)
        self.counts = Counts()
        self.names = parameter_names(self.model)
        self._slots = [self._slot(name) for name in self.names]
        self._functions = self.model.functions
        self._claimed: dict[str, str] = {}
        self.groups = bind_groups(module.groups, self.names, module.attrs["optimizer"])
        self.trained = tuple(sorted(i for group in self.groups for i in group.indices))
        """Positions of the parameters that are not frozen."""
        self.nothing = torch.zeros(0, device=self.device)
        """Stands in a bundle of gradients for those of a frozen parameter: it has no numbers, so that nothing is computed,
        kept or reduced for it."""
        self.layout = Layout([slot[name].shape for slot, name in self._slots], self.groups)
        self._own = self._bound = self._owned()
        self._narrow: JoinedTuple | None = None
        self._computes_narrow = frozenset(i for i, name in enumerate(self.names) if computes_narrow(name))
        for p in (p for i, p in enumerate(self._own) if i not in frozenset(self.trained)):
            p.requires_grad_(False)
        v = model.variant
        self.draws_in_forward = max(v.dropout, v.attention_dropout, v.drop_path) > 0
        self.places: dict[int, Tensor] = {}
        """0 ... n - 1 on the device, by n."""
        self._training: bool | None = None
        self._mark = resolve(backend.mark) if backend.mark else None
        self._arithmetic = resolve(backend.arithmetic) if backend.arithmetic else None
        self._precision: str = module.attrs.get("precision", "fp32")
        self.op = ""
        self._watched = wrap is not None
        self._attach(module, kernels, wrap)

    def _attach(self, module: Module, kernels: Sequence[Kernel], wrap: Any) -> None:
        ops = [op for p in module.programs for op in walk(p.ops) if "impl" in op.attrs]
        used = {call_name(op) for op in ops} | {f"{f}__{op.attrs[f]}" for op in ops for f in FUNCTIONS if f in op.attrs}
        for k in kernels:
            name = f"{k.op.replace('.', '_')}__{k.name}"
            if hasattr(self, name):
                continue  # an earlier plugin brings a kernel of this name: it was asked first
            if name in used:
                fn = k.fn if callable(k.fn) else resolve(k.fn)
                method: Callable[..., Any] = MethodType(fn, self)
                method = self._naming(k.op, method) if self.guard and k.op in OPS else method
                setattr(self, name, wrap(name, method) if wrap and k.op in OPS else method)
            else:
                setattr(self, name, functools.partial(self._call_late, k))

    def _call_late(self, kernel: Kernel, *args: Any, **kwargs: Any) -> Any:
        """A kernel that the program does not name, called by one that it does."""
        fn = kernel.fn if callable(kernel.fn) else resolve(kernel.fn)
        return fn(self, *args, **kwargs)

    def _naming(self, op: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def named(*args: Any, **kwargs: Any) -> Any:
            self.op = op
            return method(*args, **kwargs)

        return named

    def _slot(self, name: str) -> tuple[dict[str, Any], str]:
        path, _, last = name.rpartition(".")
        return self.model.get_submodule(path)._parameters, last

    # ---- parameters ----

    def _owned(self) -> Params:
        """The model's own tensors, made parts of one buffer where the backend keeps one."""
        own = JoinedTuple(slot[name] for slot, name in self._slots)
        own.stays = True
        if self.backend.flat:
            own.flat = torch.zeros(self.layout.size, device=self.device)
            for i, p in enumerate(own):
                part = self.layout.view(own.flat, i)
                part.copy_(p.data)
                p.data = part
        return own

    @torch.no_grad()
    def narrow(self, params: Params) -> Params:
        """bf16 copies of the weights that compute narrow, the others as they are; in memory that stays, so that the copy of
        one time is gone with the next."""
        narrow = self._computes_narrow
        if self._narrow is None:
            held = self.layout.zeros(self.device, torch.bfloat16)
            self._narrow = JoinedTuple(held[i] if i in narrow else p for i, p in enumerate(self._own))
            self._narrow.flat, self._narrow.stays = held.flat, True
            for i in narrow.intersection(self.trained):
                self._narrow[i].requires_grad_()
        copies = self._narrow
        flat = buffer(params)
        if flat is not None:
            copies.flat.copy_(flat)
        else:
            torch._foreach_copy_([copies[i] for i in narrow], [params[i] for i in narrow])
        if params is self._own:
            return copies
        return tuple(copies[i] if i in narrow else p for i, p in enumerate(params))

    def own_params(self) -> Params:
        """The tensors that the model was built with, in the fixed order, bound to it."""
        self.bind(self._own, training=bool(self._training))
        return self._own

    def take_params(self, values: Params) -> Params:
        """Copy values into the model's own tensors and return those, as after a restore."""
        own = self.own_params()
        with torch.no_grad():
            for tensor, value in zip(own, values, strict=True):
                tensor.copy_(value)
        return own

    def joined(self, values: Any) -> Any:
        """An average, or the slots of an optimizer, as parts of one buffer each, where the backend keeps them so."""
        if not self.backend.flat:
            return values
        if isinstance(values, dict):
            # What counts updates is one number for all.
            return {slot: self.joined(held) if len(held) == len(self.names) else held for slot, held in values.items()}
        return self.layout.adopt(values, self.device)

    def bundle(self, trained: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the trained parameters, in their order, as a bundle of one a parameter."""
        if len(trained) == len(self.names):
            return list(trained)
        found = dict(zip(self.trained, trained, strict=True))
        return [found.get(i, self.nothing) for i in range(len(self.names))]

    def bind(self, params: Params, *, training: bool, functions: Mapping[str, str] | None = None) -> None:
        """Let the model compute with these tensors, in this mode, and with the claimed functions that the text names."""
        if params is not self._bound:
            for (slot, name), tensor in zip(self._slots, params, strict=True):
                slot[name] = tensor
            self._bound = params
        if training is not self._training:
            self.model.train(training)
            self._training = training
        if (functions := functions or {}) != self._claimed:
            self._claimed = dict(functions)
            named = {f: getattr(self, f"{f}__{name}") for f, name in functions.items()}
            self.model.functions = replace(self._functions, **named)

    # ---- what generated programs and kernels call ----

    def arithmetic(self) -> str:
        """Set the device's switches for the program's precision, which another program of the process may have changed; what
        they then mean, in a sentence, or nothing."""
        return self._arithmetic(self._precision) if self._arithmetic else ""

    def mark(self) -> None:
        """Flush a lazy device."""
        self.counts.marks += 1
        if self._mark is not None:
            # What a device does to carry out its graph is its own business, also where a kernel flushes in a region.
            with _disable_current_modes() if self.guard else nullcontext():
                self._mark()

    def region(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a region's function: guarded where guards are on, else the function itself."""
        if not self.guard:
            return fn

        @functools.wraps(fn)
        def guarded(*args: Any) -> Any:
            with no_host_reads(lambda: f"region {fn.__name__}, op {self.op}"):
                return fn(*args)

        return guarded

    def capture(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a region that is a whole step: as the backend records it, but where something looks on, which is nothing that a
        device records: a guard, or what wraps the kernels."""
        assert self.backend.capture is not None, "a pass asked for what the backend does not offer"
        return self.region(fn) if self.guard or self._watched else resolve(self.backend.capture)(self, fn)

    def read(self, values: Tensor) -> list[float]:
        """The one place where the host waits for the device: a vector of floats."""
        self.counts.host_reads += 1
        return values.tolist()

    def all_reduce_sum(self, flat: Tensor) -> None:
        """Sum a flat buffer over all ranks, in place."""
        import torch.distributed as dist

        self.counts.reductions += 1
        self.counts.bytes_reduced += flat.numel() * flat.element_size()
        dist.all_reduce(flat, op=dist.ReduceOp.SUM)

    def wait(self) -> None:
        """Block until the device has done all work."""
        if self.backend.wait:
            resolve(self.backend.wait)()

    def device_counters(self) -> Mapping[str, int]:
        """What the device itself counts, where its backend says how."""
        return resolve(self.backend.counters)() if self.backend.counters else {}


def bind_groups(groups: Sequence[Group], names: Sequence[str], optimizer: str) -> tuple[BoundGroup, ...]:
    """Give every parameter to the first group whose pattern matches its name, and return those that are trained.

    VitcoreError: a parameter that matches none; a group that is to be frozen and matches none, or leaves none to be trained;
    a kind of optimizer that the module's has no part of.
    """
    import re

    taken: dict[str, list[int]] = {g.name: [] for g in groups}
    for i, name in enumerate(names):
        group = next((g for g in groups if re.search(g.pattern, name)), None)
        if group is None:
            raise VitcoreError(f"parameter {name!r} is in no parameter group; add a group with pattern='.*' at the end")
        taken[group.name].append(i)
    for g in groups:
        if g.frozen and not taken[g.name]:
            raise VitcoreError(
                f"--freeze {g.pattern!r} matches no parameter; they are named as {names[0]}, {names[-1]}: correct it"
            )
        if g.kind not in ("", *KINDS[optimizer]):
            raise VitcoreError(f"parameter group {g.name!r} is of kind {g.kind!r}, which is no part of {optimizer}; name one "
                               f"of {', '.join(KINDS[optimizer])}")  # fmt: skip
    bound = tuple(
        BoundGroup(g.name, g.lr, g.weight_decay, tuple(taken[g.name]), g.kind or optimizer)
        for g in groups
        if taken[g.name] and not g.frozen
    )
    if not bound:
        frozen = " and ".join(repr(g.pattern) for g in groups if g.frozen)
        raise VitcoreError(f"--freeze {frozen} matches every parameter, so that nothing is trained; leave some out")
    return bound
