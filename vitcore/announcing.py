"""What a run says of itself before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vitcore.doctor.fitting import does_not_fit
from vitcore.doctor.memory import Memory
from vitcore.plan import Plan
from vitcore.session import Session


def announcement(plan: Plan, session: Session, said: Sequence[str], memory: Memory) -> Iterator[str]:
    """Line by line: where it runs and how, what is trained on what, what was decided, the memory that is planned, and what is
    left out. `said` are the lines of the weights that it starts from."""
    config, s = plan.config, session
    parameters = sum(p.numel() for p in s.executable.rt.own_params())
    yield f"backend {plan.backend.title} ({plan.why})"
    if s.simulator:
        yield f"SIMULATED by {s.simulator.name}: {s.simulator.about}"
    yield f"precision {config.precision}, ranks: {plan.world.size}"
    if arithmetic := s.executable.rt.arithmetic():
        yield arithmetic
    yield (
        f"model {s.variant.name}: {parameters:,} parameters; {s.dataset.name}: {len(s.dataset.train)} training and "
        f"{len(s.dataset.eval)} evaluation images of {s.dataset.num_classes} classes"
    )
    yield from said
    if s.placed:
        yield s.placed
    yield from plan.notes
    yield memory.line(s.free)
    if s.free is not None and memory.peak > s.free:
        yield does_not_fit(memory.peak, s.free, config, plan.backend, plan.lowering.remat)
    if cut := s.pixels_left_out:
        yield f"patches of {s.variant.name} leave out the last {cut} of {config.img_size} pixels of each side"
    if s.feed.dropped:
        yield (
            f"each epoch leaves out {s.feed.dropped} of {len(s.dataset.train)} training images (others each time), "
            f"so that every step has {s.images_per_step}"
        )
