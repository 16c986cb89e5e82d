"""Describing, lowering and printing a step imports no torch; each check is a process of its own."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

LOWER_EVERYTHING = """
    from vitcore.backend import World
    from vitcore.plugins import load_plugins
    from vitcore.runtime.reference import REFERENCE
    from vitcore.step.build import OPTIMIZERS, StepSpec, build
    from vitcore.runtime.codegen import source
    from vitcore.step.lowering import Lowering
    from vitcore.step.pipeline import lower

    plugins, texts = load_plugins(), 0
    for name in ("cpu", "cuda", "hpu-lazy", "hpu-eager"):
        backend = plugins.backend(name)
        for precision in backend.precisions:
            for accumulation in (1, 16):
                for optimizer in OPTIMIZERS:
                    module = build(StepSpec(name="recipe", optimizer=optimizer, accumulation=accumulation))
                    kernels = [*plugins.kernels(name), *REFERENCE]
                    sealed = lower(module, Lowering(backend, kernels, precision=precision, world=World(8)))
                    texts += len(str(sealed)) > 1000
                    texts += all(len(source(program)) > 50 for program in sealed.programs)
    assert texts == (3 + 3 + 2 + 2) * 2 * len(OPTIMIZERS) * 2, texts
"""


def run(code: str) -> str:
    """What the code prints, in a fresh process that ends by saying whether torch was imported."""
    ends = "\nimport sys\nprint('torch' in sys.modules, 'torchvision' in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", dedent(code) + ends], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_lowering_and_printing_for_every_backend_imports_no_torch() -> None:
    assert run(LOWER_EVERYTHING) == "False False"


@pytest.mark.parametrize("module", ["vitcore", "vitcore.api", "vitcore.plugins", "vitcore.runtime.reference"])
def test_importing_it_imports_no_torch(module: str) -> None:
    assert run(f"import {module}") == "False False"


def test_loading_the_plugins_imports_no_torch_and_names_none_that_does() -> None:
    code = """
        from vitcore.plugins import load_plugins

        plugins = load_plugins()
        assert not plugins.imported_torch, plugins.imported_torch
        assert {"cpu", "cuda", "hpu-lazy", "hpu-eager"} <= plugins.backends.keys(), plugins.failed
    """
    assert run(code) == "False False"


def test_the_check_sees_torch_where_it_is_imported() -> None:
    assert run("import sys, types; sys.modules['torch'] = types.ModuleType('torch')") == "True False"
