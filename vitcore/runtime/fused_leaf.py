"""The leaf that makes gradients in one go: forward, backward, and the sum over micro-batches where there is one.

Each gradient goes into its place as soon as autograd has made it, widened to float32 there, and is let go of: so two bundles
of gradients never exist, and what is widened is still in the cache. Sums, and what is reduced over ranks, have their place
in one buffer. Without either, gradients stay where they are made: a buffer for all would be there from the first one on,
when most of what the forward kept is there too, and be the peak. Where launching a kernel for each gradient costs more than
that memory, they are put into the buffer all at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.profiler import record_function

from vitcore.runtime.flat import JoinedList, buffer
from vitcore.runtime.reference import model

if TYPE_CHECKING:
    from vitcore.runtime.reference.data import DeviceBatch, Key
    from vitcore.runtime.reference.grads import Grads
    from vitcore.runtime.runtime import Runtime


def grad(
    rt: Runtime, params: tuple[Tensor, ...], batch: DeviceBatch, key: Key, total: Grads | None = None, **how: Any
) -> tuple[Tensor, Grads]:
    """The loss, and its gradients, added to `total` where there is one, which is donated."""
    return _grad(accumulate, rt, params, batch, key, total, how)


def grad_at_once(
    rt: Runtime, params: tuple[Tensor, ...], batch: DeviceBatch, key: Key, total: Grads | None = None, **how: Any
) -> tuple[Tensor, Grads]:
    """As `grad`, the gradients put in their places all at once."""
    return _grad(_at_once, rt, params, batch, key, total, how)


def _grad(
    backward: Callable[[Runtime, model.Tape, Grads | None], Grads], rt: Runtime, params: tuple[Tensor, ...],
    batch: DeviceBatch, key: Key, total: Grads | None, how: Mapping[str, Any],
) -> tuple[Tensor, Grads]:  # fmt: skip
    with record_function("model.forward"):
        loss, tape = model.forward(rt, params, batch, key, **how)
    with record_function("model.backward"):
        return loss, backward(rt, tape, total)


def _at_once(rt: Runtime, tape: model.Tape, total: Grads | None) -> Grads:
    into = _Places.of(rt).take() if total is None else total
    made = torch.autograd.grad(tape.loss, [tape.params[i] for i in rt.trained])
    _put(rt, dict(zip(rt.trained, made, strict=True)), into, adds=total is not None)
    return into


def _put(rt: Runtime, made: dict[int, Tensor], into: Grads, *, adds: bool) -> None:
    """Gradients into their places: neighbours of one dtype are joined first, so that each stretch of the buffer is written by
    one kernel."""
    flat, layout = buffer(into), rt.layout
    stretches: list[list[int]] = []
    for i in sorted(made, key=layout.starts.__getitem__):
        last = stretches[-1] if stretches else []
        joins = (
            last
            and flat is not None
            and layout.end(last[-1]) == layout.starts[i]
            and made[last[-1]].dtype == made[i].dtype
        )
        last.append(i) if joins else stretches.append([i])
    for first, *rest in stretches:
        if rest and flat is not None:
            place = flat[layout.starts[first] : layout.end(rest[-1])]
            value = torch.cat([made[i].reshape(-1) for i in (first, *rest)])
        else:
            place, value = into[first], made[first]
        place.add_(value) if adds else place.copy_(value)


def accumulate(rt: Runtime, tape: model.Tape, total: Grads | None) -> Grads:
    """Run backward; gradients are f32, whatever the parameters' dtype."""
    places, own = _Places.of(rt), total is None and rt.world.size == 1
    into = total or ([rt.nothing] * len(rt.names) if own else places.take())
    leaves = [tape.params[i] for i in rt.trained]
    if not places.hooked(tape.params):  # parameters of this step alone, such as a climb's
        for i, made in zip(rt.trained, torch.autograd.grad(tape.loss, leaves), strict=True):
            _place(into, i, made, adds=total is not None)
        return into
    places.open(into, adds=total is not None)
    try:
        torch.autograd.backward(tape.loss, inputs=leaves)
    finally:
        places.close()
    return into


def _place(into: Grads, i: int, made: Tensor, *, adds: bool) -> None:
    if adds:
        into[i].add_(made)
    elif buffer(into) is not None:
        into[i].copy_(made)
    else:
        into[i] = made.to(torch.float32)


def zero(rt: Runtime, params: tuple[Tensor, ...]) -> Grads:
    """Zeros for the sum over micro-batches, in one buffer."""
    places = _Places.of(rt)
    into = places.take()
    into.flat.zero_()
    return into


class _Places:
    """Where the gradients of one runtime go."""

    _all: ClassVar[weakref.WeakKeyDictionary[Runtime, _Places]] = weakref.WeakKeyDictionary()

    def __init__(self, rt: Runtime) -> None:
        self.layout, self.trained, self.nothing, self.device = rt.layout, rt.trained, rt.nothing, rt.device
        self._gaps = torch.tensor(self.layout.gaps(), dtype=torch.int64).to(rt.device)
        self._buffers: list[tuple[Tensor, weakref.ref[JoinedList]]] = []
        self._leaves: dict[int, tuple[Tensor, ...]] = {}
        self._into: Grads | None = None
        self._adds = False

    @classmethod
    def of(cls, rt: Runtime) -> _Places:
        """The runtime's own."""
        if rt not in cls._all:
            cls._all[rt] = cls(rt)
        return cls._all[rt]

    def take(self) -> JoinedList:
        """A bundle in a buffer that no bundle uses any more, else in a new one; what is in it is not defined."""
        flat = next((flat for flat, user in self._buffers if user() is None), None)
        if flat is None:
            flat = torch.zeros(self.layout.trained, device=self.device)
        elif self._gaps.numel():
            # Zeros times a factor that is not finite are none, and would be in the norm of all later steps.
            flat.index_fill_(0, self._gaps, 0.0)
        trained = frozenset(self.trained)
        bundle = JoinedList(
            self.layout.view(flat, i) if i in trained else self.nothing for i in range(len(self.layout.shapes))
        )
        bundle.flat = flat
        self._buffers = [(f, user) for f, user in self._buffers if f is not flat] + [(flat, weakref.ref(bundle))]
        return bundle

    def hooked(self, params: tuple[Tensor, ...]) -> bool:
        """Whether these parameters hand over their gradients; those that stay from step to step are made to."""
        if id(params) not in self._leaves and getattr(params, "stays", False):
            self._leaves[id(params)] = params
            known = {id(p) for held in self._leaves.values() if held is not params for p in held}
            for i in self.trained:
                if id(params[i]) not in known:
                    params[i].register_post_accumulate_grad_hook(self._hook(i))
        return id(params) in self._leaves

    def _hook(self, i: int) -> Any:
        # Not the object itself: it holds the parameters, and what a parameter's hook holds no collector sees.
        here = weakref.ref(self)

        def put(leaf: Tensor) -> None:
            places = here()
            if places is None or places._into is None:
                return  # somebody else's backward
            made, leaf.grad = leaf.grad, None
            assert made is not None, "autograd calls this once a gradient is there"
            _place(places._into, i, made, adds=places._adds)

        return put

    def open(self, into: Grads, *, adds: bool) -> None:
        """From now on gradients go into this bundle, added to what is there or in place of it."""
        self._into, self._adds = into, adds

    def close(self) -> None:
        """From now on they stay where autograd puts them."""
        self._into = None
