"""C1, C2 and C11: what is decided before a device is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from vitcore.backend import World
from vitcore.errors import VitcoreError
from vitcore.plugins import load_plugins
from vitcore.recipes import load_recipe, recipe_files
from vitcore.runtime.codegen import source
from vitcore.step.build import StepSpec, build
from vitcore.step.ir import Module
from vitcore.step.lowering import Lowering
from vitcore.step.pipeline import lower, pipeline
from vitcore.step.text import parse
from vitcore.step.verify import verify_module
from vitcore.testing.checks import Failure
from vitcore.testing.problem import Subject

_NO_TORCH = """
import sys
from vitcore.plugins import load_plugins
plugins = load_plugins()
if "torch" in sys.modules:
    sys.exit("the plugin %s imports torch when it is loaded" % ", ".join(plugins.imported_torch))
from vitcore.config import Config
from vitcore.plan import make_plan
from vitcore.recipes import load_recipe, recipe_files
for name in recipe_files():
    make_plan(Config(**{**load_recipe(name), "backend": sys.argv[1]}), to_run=False)
    if "torch" in sys.modules:
        sys.exit("lowering the recipe %s imports torch: a hook or a kernel's `when` does" % name)
"""


def no_torch(subject: Subject) -> str:
    """C1, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _NO_TORCH, subject.backend.name], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Failure(f"{reason}; import torch inside kernels, and name callables as 'module:function'")
    return f"{len(recipe_files())} recipes lowered without torch"


def lowers(subject: Subject) -> str:
    """C2: twice to the same text, each verified, read back and turned into Python."""
    count = 0
    for what, spec, precision, world in _programs(subject):
        try:
            module = _lower(subject, spec, precision, world)
            again = _lower(subject, spec, precision, world)
        except VitcoreError as e:
            raise Failure(f"{what}: it does not lower: {e}") from e
        if str(module) != str(again):
            raise Failure(
                f"{what}: lowered twice, it has two texts; a `when`, `flushes` or pass must depend on the op alone"
            )
        for program in verify_module(module).programs:
            if not program.sealed or parse(str(program)) != program:
                raise Failure(f"{what}: @{program.name} is not sealed, or does not read back as it prints")
            compile(source(program), program.name, "exec")
            count += 1
    return f"{count} programs"


def _programs(subject: Subject) -> Iterator[tuple[str, StepSpec, str, World]]:
    from vitcore.config import Config

    sizes = (1, 2) if subject.backend.collective else (1,)
    for name in recipe_files():
        config = Config(**load_recipe(name))
        for precision in subject.backend.precisions:
            for size in sizes:
                for accumulation in (1, 4):
                    spec = replace(config.spec, accumulation=accumulation)
                    yield (
                        f"recipe {name}, {precision}, {size} rank(s), accumulation {accumulation}",
                        spec,
                        precision,
                        World(size),
                    )


def _lower(subject: Subject, spec: StepSpec, precision: str, world: World) -> Module:
    return lower(build(spec), Lowering(subject.backend, subject.kernels, precision, world), pipeline(subject.passes))


def refusals(subject: Subject) -> str:
    """C11: what is offered is known, and what is not offered is refused with its name."""
    from vitcore.step.passes.choose_precision import POLICIES

    backend = subject.backend
    for precision in backend.precisions:
        if precision not in POLICIES:
            raise Failure(f"precision {precision!r} is offered and known nowhere; offer some of {', '.join(POLICIES)}")
    if "fp32" not in backend.precisions:
        raise Failure(
            "precision 'fp32' is not offered; every backend computes it, as everything is measured against it"
        )
    for precision in (*(p for p in POLICIES if p not in backend.precisions), "fp7"):
        _refused(partial(_lower, subject, subject.spec("sgdm"), precision, World()), precision)
    for hook in ("open", "mark", "wait", "counters", "probe"):
        named = getattr(backend, hook)
        if named is not None and ":" not in named:
            raise Failure(f"{hook}={named!r} is no 'module:function'")
    if backend.collective is None:
        from vitcore.runtime.distributed import open_group

        _refused(lambda: open_group(backend, World(2, 0)), backend.name)
    _refused(lambda: load_plugins().backend(backend.name + "x"), backend.name)
    return f"precisions beyond {', '.join(backend.precisions)}" + ("" if backend.collective else ", and two ranks")


def _refused(act: Callable[[], object], name: str) -> None:
    try:
        act()
    except VitcoreError as e:
        if name not in str(e):
            raise Failure(f"the refusal of {name!r} does not name it: {e}") from e
        return
    raise Failure(f"{name!r} is not supported, and not refused")
