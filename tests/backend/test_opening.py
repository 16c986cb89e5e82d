"""Opening a backend: its environment comes before torch, and what cannot run is refused by name with the remedy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rig import HYPER, SEED, open_program, spec

from vitcore.backend import Backend
from vitcore.errors import VitcoreError
from vitcore.plugins import Plugins, load_plugins
from vitcore.runtime.opening import choose_backend, open_backend, set_environment, unavailable


@pytest.fixture
def vendor() -> Iterator[Any]:
    """A vendor's library that can be imported by name."""
    name = "vitcore_pretended_vendor"
    sys.modules[name] = made = ModuleType(name)
    made.__dict__.update(asked=[], probe=lambda: None, start=lambda: made.asked.append("start"))
    yield made
    del sys.modules[name]


def plugins(*backends: Backend) -> Plugins:
    return Plugins(load_plugins().manager, backends={b.name: b for b in backends}, imported_torch=["eager_one"])


def test_an_environment_that_comes_after_torch_is_refused_with_the_line_to_put_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PRETENDED_LAZY", raising=False)
    backend = Backend(name="late", device="cpu", env={"PRETENDED_LAZY": "1"})
    message = (
        "backend 'late' needs its environment before torch is imported, and torch is imported already; "
        "put this first: import os; os.environ['PRETENDED_LAZY'] = '1'"
    )
    for opened in (set_environment, open_backend):
        with pytest.raises(VitcoreError, match=f"^{re.escape(message)}$"):
            opened(backend)
    assert "PRETENDED_LAZY" not in os.environ
    with pytest.raises(VitcoreError, match=r"already \(imported by plugin eager_one\); put this first"):
        open_backend(backend, plugins(backend))
    monkeypatch.setenv("PRETENDED_LAZY", "0")
    with pytest.raises(VitcoreError, match="put this first"):
        open_backend(backend)
    monkeypatch.setenv("PRETENDED_LAZY", "1")  # it agrees already: a notebook that was told in time
    open_backend(backend)


def test_a_backend_that_cannot_run_here_is_refused_with_its_own_reason(vendor: Any) -> None:
    backend = Backend(name="far", device="cpu", probe="vitcore_pretended_vendor:probe")
    assert unavailable(backend) is None
    vendor.probe = lambda: "its driver is missing; install pretended-driver"
    message = "^backend 'far' cannot run here: its driver is missing; install pretended-driver$"
    with pytest.raises(VitcoreError, match=message):
        open_backend(backend)
    with pytest.raises(VitcoreError, match=message):
        choose_backend(plugins(backend), "far")
    vendor.probe = lambda: 1 / 0
    with pytest.raises(VitcoreError, match="its probe 'vitcore_pretended_vendor:probe' failed: ZeroDivisionError"):
        open_backend(backend)


def test_auto_takes_the_best_that_can_run_and_says_what_it_passed_over(vendor: Any) -> None:
    vendor.probe = lambda: "no such device; plug one in"
    best = Backend(name="best", device="cpu", probe="vitcore_pretended_vendor:probe", rank=99)
    good, fair = Backend(name="good", device="cpu", rank=50), Backend(name="fair", device="cpu", rank=10)
    backend, why = choose_backend(plugins(fair, best, good), "auto")
    assert (backend.name, why) == ("good", "the first that can run here; passed over: best (no such device)")
    with pytest.raises(VitcoreError, match=r"no backend can run here: best \(no such device\)"):
        choose_backend(plugins(best), "auto")
    with pytest.raises(
        VitcoreError, match=r"backend 'bets' is not known \(did you mean 'best'\?\); installed backends"
    ):
        choose_backend(plugins(best), "bets")


def test_an_import_that_fails_is_named_with_its_reason(vendor: Any) -> None:
    backend = Backend(name="broken", device="cpu", imports=("vitcore_pretended_vendor", "vitcore_nowhere"))
    with pytest.raises(VitcoreError, match=r"^backend 'broken': importing vitcore_nowhere failed: ModuleNotFoundError"):
        open_backend(backend)


def test_what_opens_a_backend_is_called_once_and_its_failure_is_named(vendor: Any) -> None:
    backend = Backend(name="there", device="cpu", open="vitcore_pretended_vendor:start")
    open_backend(backend)
    assert vendor.asked == ["start"]

    def fails() -> None:
        raise RuntimeError("the card is busy")

    vendor.start = fails
    with pytest.raises(
        VitcoreError, match=r"^backend 'there': opening it by vitcore_pretended_vendor:start failed: .*busy"
    ):
        open_backend(backend)
    del vendor.start
    with pytest.raises(VitcoreError, match="'vitcore_pretended_vendor:start' cannot be resolved"):
        open_backend(backend)


# ---- VITCORE_DEBUG ----


def debug_output(level: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("VITCORE_DEBUG", level)
    capsys.readouterr()
    exe = open_program(spec("sgdm", 2))
    exe.step(exe.init(SEED), HYPER)
    exe.close()
    return capsys.readouterr().err


def test_each_level_of_debugging_says_more(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    at = {level: debug_output(level, monkeypatch, capsys) for level in ("0", "1", "3", "4", "5")}
    assert at["0"] == at["1"] == ""
    for level in ("3", "4", "5"):
        assert "@rt.region\ndef " in at[level] and "def train(p, o, c, k, m, hyper):" in at[level]
    timed = re.findall(r"^(\S+ by \w+): \d+\.\d{3} ms$", at["4"], re.M)
    assert timed.count("model.forward by autograd") == 2 and timed.count("opt.update by reference") == 1
    hashed = re.findall(r"^(\S+ by \w+): \d+\.\d{3} ms (#[0-9a-f]{8})$", at["5"], re.M)
    assert [name for name, _ in hashed] == timed
    again = re.findall(r"^(\S+ by \w+): \d+\.\d{3} ms (#[0-9a-f]{8})$", debug_output("5", monkeypatch, capsys), re.M)
    assert again == hashed  # the same values: the first line that differs between two machines is where they part


def test_a_level_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for level in ("6", "-1", "much"):
        monkeypatch.setenv("VITCORE_DEBUG", level)
        with pytest.raises(VitcoreError, match=f"VITCORE_DEBUG='{level}' is no level; set 0 to 5"):
            open_program(spec())


def test_a_run_at_the_highest_level_prints_all_of_it_to_standard_error_alone(tmp_path: Path) -> None:
    args = ["--dataset", "digits-tune", "--num-steps", "2", "--train-batch-size", "16", "--backend", "cpu",
            "--output-dir", str(tmp_path), "--warmup-steps", "0", "--json"]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "vitcore", "train", *args], capture_output=True, text=True,
                          env={**os.environ, "VITCORE_DEBUG": "5"}, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n") == 1 and done.stdout.startswith("{")
    for part in ("backend cpu: asked for", "01 inline_single_repeat", "step @train(", "def train(", "#"):
        assert part in done.stderr
    assert json.loads(done.stdout)["steps"] == 2
