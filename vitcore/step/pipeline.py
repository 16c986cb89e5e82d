"""The pass manager: the ordered passes, each verified, logged with a number, and disabled by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vitcore.errors import VitcoreError, nearest
from vitcore.step.ir import Module
from vitcore.step.lowering import Fuel, Lowering, Pass
from vitcore.step.passes.begin_lowering import begin_lowering
from vitcore.step.passes.capture_step import capture_step
from vitcore.step.passes.carry_zero_grads import carry_zero_grads
from vitcore.step.passes.choose_implementations import choose_implementations
from vitcore.step.passes.choose_precision import choose_precision
from vitcore.step.passes.fold_zero_add import fold_zero_add
from vitcore.step.passes.form_regions import form_regions
from vitcore.step.passes.fuse_grad import fuse_grad
from vitcore.step.passes.inline_single_repeat import inline_single_repeat
from vitcore.step.passes.keep_bytes import keep_bytes
from vitcore.step.passes.narrow_weights import narrow_weights
from vitcore.step.passes.place_marks import place_marks
from vitcore.step.passes.prefetch import prefetch
from vitcore.step.passes.rematerialise import rematerialise
from vitcore.step.passes.seal import seal
from vitcore.step.passes.skip_unread import skip_unread
from vitcore.step.verify import verify, verify_module

PIPELINE: tuple[Pass, ...] = (
    inline_single_repeat, fold_zero_add, begin_lowering, prefetch, keep_bytes, skip_unread, carry_zero_grads,
    choose_precision, narrow_weights, rematerialise, fuse_grad, choose_implementations, form_regions, capture_step,
    place_marks, seal,
)  # fmt: skip


def pipeline(extra: Iterable[tuple[str, Pass]] = (), disabled: Iterable[str] = ()) -> list[Pass]:
    """The passes in order: plugins' passes stand after the stage they name, disabled ones are left out."""
    passes = list(PIPELINE)
    for stage, new in extra:
        names = [p.name for p in passes]
        if stage not in names:
            what = f"pass {new.name!r} wants to run after {stage!r}"
            raise VitcoreError(f"{what}, which is no pass{nearest(stage, names)}")
        passes.insert(names.index(stage) + 1, new)
    for name in disabled:
        found = next((p for p in passes if p.name == name), None)
        if found is None:
            raise VitcoreError(f"no pass is called {name!r}{nearest(name, [p.name for p in passes])}; see --explain")
        if found.required:
            raise VitcoreError(f"pass {name!r} cannot be disabled: a program cannot be lowered without it")
        passes.remove(found)
    return passes


def fuel_from_env() -> Fuel:
    """`VITCORE_FUEL=n` allows n optional rewrites; unset allows all."""
    text = os.environ.get("VITCORE_FUEL", "")
    if text and not text.isdecimal():
        raise VitcoreError(f"VITCORE_FUEL={text!r} is no number of rewrites; set a whole number or unset it")
    return Fuel(int(text) if text else None)


def lower(module: Module, lowering: Lowering, passes: Sequence[Pass] = PIPELINE) -> Module:
    """Run every pass over every program, verifying after each; the log and the dumps land in `lowering`."""
    verify_module(module)
    for number, each in enumerate(passes, 1):
        lowering.module, done = module, []
        for program in module.programs:
            new = verify(each.run(program, lowering))
            changed = new != program
            line = f"{number:02d} {each.name} ({each.tier}) @{program.name}: {'changed' if changed else 'unchanged'}"
            lowering.log.append(line)
            if changed:
                lowering.dumps.append((line, str(new)))
            done.append(new)
        module = replace(module, programs=tuple(done))
    attrs = {**module.attrs, "backend": lowering.backend.name, "precision": lowering.precision}
    attrs |= {"simulated": lowering.backend.simulator.name} if lowering.backend.simulator else {}
    return verify_module(replace(module, attrs=attrs))
