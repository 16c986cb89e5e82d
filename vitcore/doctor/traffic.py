"""What travels: copies to the device, reductions over ranks, reads by the host; counted from the text and the sizes."""

from __future__ import annotations

from dataclasses import dataclass

from vitcore.doctor.sizes import Sizes, state_bytes
from vitcore.doctor.static import Outline, collectives, flattened
from vitcore.runtime.reference.metrics import SLOTS
from vitcore.step.ir import Module


@dataclass(frozen=True)
class Traffic:
    """For a step, an evaluated batch and a log: copies to the device and their bytes, reductions and theirs, host reads."""

    copies: dict[str, int]
    copied_bytes: dict[str, int]
    reductions: dict[str, int]
    reduced_bytes: dict[str, int]
    host_reads: dict[str, int]


def travels(module: Module, outlines: dict[str, Outline], sizes: Sizes) -> Traffic:
    """The traffic of each program. Scalars of a step are counted as the reference kernels take them, each as a copy of 4
    bytes; a kernel that takes numbers copies fewer."""
    gradients, _ = state_bytes(module, sizes)
    copies, copied, reductions, reduced, reads = (dict.fromkeys(("train", "eval", "log"), 0) for _ in range(5))
    for name in copies:
        for item, times in flattened(outlines[name].items):
            ops = item.ops or (item.name,)
            for op in (o.partition(" by ")[0] for o in ops):
                rows = sizes.eval_batch if name == "eval" else sizes.micro_batch
                keys = op in ("model.forward", "model.grad") and sizes.draws
                copies[name] += times * {"data.put": 3, "metrics.zero": len(SLOTS)}.get(op, int(keys))
                copied[name] += times * {"data.put": sizes.batch_bytes(rows), "metrics.zero": 4 * len(SLOTS)}.get(
                    op, 4 * rows if keys else 0
                )
        reads[name] = outlines[name].reads
        for reduction in collectives(module[name]):
            reductions[name] += 1
            reduced[name] += gradients if reduction.name.startswith("grads") else 4 * len(SLOTS)
    copies["train"] += (scalars := _scalars(module))
    copied["train"] += 4 * scalars
    return Traffic(copies, copied, reductions, reduced, reads)


def _scalars(module: Module) -> int:
    """0-d tensors that the reference kernels make of a step's `%hyper`: one for each name, and for each multiple of it."""
    trained = [g for g in module.groups if not g.frozen]
    multiples = {"lr": {g.lr for g in trained}, "weight_decay": {g.weight_decay for g in trained}}
    return sum(len(multiples.get(name, {1.0})) for name in module.attrs.get("hyper", "").split("|") if name)
