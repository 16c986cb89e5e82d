"""Kernels chosen by measurement: when it is made, where it is kept, and that the printed text says what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from vitcore import tuning
from vitcore.backend import Backend, Kernel
from vitcore.cli import main
from vitcore.plan import choose_kernels
from vitcore.plugins import Plugins, load_plugins
from vitcore.runtime.reference import REFERENCE
from vitcore.step.build import StepSpec, build
from vitcore.step.lowering import Lowering
from vitcore.step.pipeline import lower
from vitcore.tuning import Shape

SHAPE = Shape(rows=4, tokens=17, heads=2, head_width=8, narrow=False)
TOY = Backend(name="toy", device="toy", tune="vitcore_toy_measures:measure")
WAYS = tuple(Kernel("self_attention", name, f"nobody:{name}", tier="numerics") for name in ("one", "two", "three"))


class Measures(ModuleType):
    """Stands where a backend's module would: says the seconds that it is told, and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__("vitcore_toy_measures")
        self.asked: list[Shape] = []
        self.seconds = {"one": 0.003, "two": 0.001, "three": 0.002}

    def measure(self, shape: Shape) -> dict[str, float]:
        self.asked.append(shape)
        return self.seconds


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Measures:
    """An empty cache, and what is measured."""
    monkeypatch.setenv("VITCORE_CACHE", str(tmp_path / "cache"))
    made = Measures()
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


@pytest.fixture
def plugins() -> Iterator[Plugins]:
    """The installed plugins, and one that brings the toy with its ways of attention."""
    from vitcore.api import hookimpl

    class Toy:
        @hookimpl
        def vitcore_backends(self) -> list[Backend]:
            return [TOY]

        @hookimpl
        def vitcore_kernels(self, backend: str) -> tuple[Kernel, ...]:
            return WAYS if backend == "toy" else ()

    found, toy = load_plugins(), Toy()
    found.manager.register(toy, name="toy")
    yield found
    found.manager.unregister(toy)


def cached() -> list[Path]:
    return sorted(tuning.folder().glob("*")) if tuning.folder().exists() else []


def text_of(plugins: Plugins, slower: dict[str, str], enabled: tuple[str, ...] = ()) -> tuple[str, str]:
    """The printed step, and the lines about kernels that are left out."""
    kernels, said = choose_kernels(plugins, TOY, (), enabled, slower)
    assert kernels[-len(REFERENCE) :] == REFERENCE
    return str(lower(build(StepSpec(name="t", optimizer="sgdm")), Lowering(TOY, kernels))), "\n".join(said)


def test_it_is_measured_once_and_kept(measures: Measures) -> None:
    opened: list[str] = []
    first = tuning.left_out(TOY, SHAPE, before=lambda: opened.append("opened"))
    (path,) = cached()
    kept = path.read_bytes()
    assert (len(measures.asked), opened) == (1, ["opened"])
    measures.seconds = {"one": 1.0, "two": 2.0, "three": 3.0}
    assert tuning.left_out(TOY, SHAPE, before=lambda: opened.append("again")) == first
    assert (len(measures.asked), opened, path.read_bytes(), cached()) == (1, ["opened"], kept, [path])
    assert json.loads(kept) == {
        "backend": "toy", "rows": 4, "tokens": 17, "heads": 2, "head_width": 8, "narrow": False,
        "seconds": {"one": 0.003, "two": 0.001, "three": 0.002},
    }  # fmt: skip


def test_the_slower_are_left_out_with_both_times(measures: Measures) -> None:
    slower = tuning.left_out(TOY, SHAPE, before=lambda: None)
    shape = "4 x 17 tokens, 2 heads of 8, f32"
    assert slower == {
        "one": f"measured here, two takes 1.00 ms for {shape}, this 3.00 ms",
        "three": f"measured here, two takes 1.00 ms for {shape}, this 2.00 ms",
    }


@pytest.mark.parametrize(
    "other", [{"rows": 8}, {"tokens": 16}, {"heads": 1}, {"head_width": 4}, {"narrow": True}], ids=str
)
def test_another_shape_is_measured_by_itself(measures: Measures, other: dict[str, int]) -> None:
    shape = Shape(**{"rows": 4, "tokens": 17, "heads": 2, "head_width": 8, "narrow": False, **other})
    for each in (SHAPE, shape, SHAPE, shape):
        tuning.left_out(TOY, each, before=lambda: None)
    assert measures.asked == [SHAPE, shape] and len(cached()) == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "SOME_VISIBLE_DEVICES"])
def test_other_threads_or_devices_are_measured_by_themselves(
    measures: Measures, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("1", "0", "1"):
        monkeypatch.setenv(name, value)
        tuning.left_out(TOY, SHAPE, before=lambda: None)
    assert len(measures.asked) == 2


def test_without_a_device_only_what_is_known_counts(measures: Measures) -> None:
    assert tuning.left_out(TOY, SHAPE) == {} and not measures.asked and not cached()
    tuning.left_out(TOY, SHAPE, before=lambda: None)
    assert {*tuning.left_out(TOY, SHAPE)} == {"one", "three"} and len(measures.asked) == 1


def test_a_backend_that_measures_nothing_leaves_nothing_out(measures: Measures) -> None:
    assert tuning.left_out(Backend(name="toy", device="toy"), SHAPE, before=pytest.fail) == {}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"seconds": 3}',
        b'{"seconds": {"two": "soon"}}',
        b'{"seconds": {"two": null}}',
        b"\xff",
    ],
)
def test_a_damaged_file_is_measured_anew_and_replaced(measures: Measures, damage: bytes) -> None:
    want = tuning.left_out(TOY, SHAPE, before=lambda: None)
    (path,) = cached()
    kept = path.read_bytes()
    path.write_bytes(damage)
    assert tuning.left_out(TOY, SHAPE) == {}
    assert tuning.left_out(TOY, SHAPE, before=lambda: None) == want
    assert len(measures.asked) == 2 and cached() == [path] and path.read_bytes() == kept


def test_of_two_that_measure_at_once_the_first_counts_for_both(
    measures: Measures, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = measures.measure

    def while_another_does(shape: Shape) -> dict[str, float]:
        measures.measure = before  # type: ignore[method-assign]
        tuning.left_out(TOY, SHAPE, before=lambda: None)
        return {"one": 0.1, "two": 0.2, "three": 0.3}

    measures.measure = while_another_does  # type: ignore[method-assign]
    assert {*tuning.left_out(TOY, SHAPE, before=lambda: None)} == {"one", "three"}
    assert len(cached()) == 1


@pytest.mark.parametrize("blocked", ["a file in its place", "no such place"])
def test_where_nothing_can_be_kept_it_is_measured_each_time(
    measures: Measures, blocked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITCORE_CACHE", str(tmp_path / "file") if "file" in blocked else "/dev/null/cache")
    ways = [{*tuning.left_out(TOY, SHAPE, before=lambda: None)} for _ in range(2)]
    assert ways == [{"one", "three"}] * 2 and len(measures.asked) == 2


def test_without_a_folder_of_its_own_it_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VITCORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.folder() == tmp_path / "vitcore" / "tuning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tuning.folder() == tmp_path / "home" / ".cache" / "vitcore" / "tuning"


# ---- what the text says ----


@pytest.mark.parametrize("fastest", ["one", "two", "three"])
def test_the_measurement_decides_what_is_printed(measures: Measures, plugins: Plugins, fastest: str) -> None:
    measures.seconds = {name: 0.001 if name == fastest else 0.002 for name in ("one", "two", "three")}
    assert "self_attention=one" in text_of(plugins, {})[0], "unmeasured, the first that is asked"
    text, said = text_of(plugins, tuning.left_out(TOY, SHAPE, before=lambda: None))
    assert text.count(f"self_attention={fastest}") == text.count("self_attention=") == 2
    for other in {"one", "two", "three"} - {fastest}:
        assert f"self_attention: {other} refused: measured here, {fastest} takes 1.00 ms" in said
        assert f"this 2.00 ms; --enable_kernel {other} takes it" in said


def test_a_kernel_that_is_enabled_by_name_is_taken_whatever_was_measured(measures: Measures, plugins: Plugins) -> None:
    slower = tuning.left_out(TOY, SHAPE, before=lambda: None)
    text, said = text_of(plugins, slower, enabled=("three",))
    assert "self_attention=three" in text and "self_attention=two" not in text
    assert "three refused" not in said and "one refused" in said


FLAGS = ("--backend", "cpu", "--model-type", "ViT-digits", "--dataset", "digits")
LOWER = """
import sys
from vitcore.cli import main
try:
    main(["lower", *sys.argv[1:]])
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def lowered(*flags: str) -> str:
    """What `vitcore lower` prints, in a process of its own that imports no torch."""
    done = subprocess.run(
        [sys.executable, "-c", LOWER, *FLAGS, *flags], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "False", done.stderr
    return done.stdout


def test_printing_a_program_measures_nothing_and_shows_what_is_known(
    measures: Measures, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = lowered()
    assert "self_attention=products_padded" in before and not cached()
    shapes: list[Shape] = []
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "left_out", lambda backend, shape, before=None, threads=0: shapes.append(shape) or {})
        with contextlib.suppress(SystemExit):
            main(["lower", *FLAGS])
    # As a run of this model and batch would keep it.
    (shape,), backend = shapes, load_plugins().backend("cpu")
    path = tuning.folder() / f"{tuning._key(backend, shape, threads=1)}.json"  # as the recipe of the digits
    tuning._write(path, backend, shape, {"sdpa": 0.1, "products_padded": 0.2, "fused_forward": 0.3})
    after = lowered()
    assert "self_attention=sdpa" in after and after.replace("=sdpa", "=products_padded") == before
    assert "products_padded refused: measured here, sdpa takes 100.00 ms" in lowered("--explain")
    assert "self_attention=products_padded" in lowered("--enable-kernel", "products_padded")
