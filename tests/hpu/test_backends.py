"""What the two backends are before a card is touched: which comes first, what is missing, their environment."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vitcore_hpu
from vitcore_hpu import probe

from vitcore.errors import VitcoreError
from vitcore.plan import with_env


def version(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Let these distributions have these versions, or be missing."""
    usual = importlib.metadata.version

    def asked(name: str) -> str:
        found = versions.get(name.replace("-", "_"), "")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found or usual(name)

    monkeypatch.setattr(importlib.metadata, "version", asked)


@pytest.mark.parametrize(
    ("plugin", "first"),
    [
        ("1.19.0", "hpu-lazy"), ("1.20.1.97", "hpu-lazy"), ("1.9", "hpu-lazy"), ("0.18.2", "hpu-lazy"),
        ("1.21.0", "hpu-eager"), ("1.21.0.555+git1", "hpu-eager"), ("1.23.0", "hpu-eager"), ("2.0.0", "hpu-eager"),
        (None, "hpu-eager"), ("main", "hpu-eager"),
    ],
)  # fmt: skip
def test_auto_asks_the_mode_first_that_is_the_vendors_default(
    plugin: str | None, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(monkeypatch, habana_torch_plugin=plugin)
    backends = sorted(vitcore_hpu.vitcore_backends(), key=lambda b: -b.rank)
    assert backends[0].name == first and {b.name for b in backends} == {"hpu-lazy", "hpu-eager"}
    assert min(b.rank for b in backends) > 20  # before the other devices


def test_the_environment_is_set_in_full_and_is_not_to_be_overridden() -> None:
    lazy, eager = sorted(vitcore_hpu.vitcore_backends(), key=lambda b: not b.lazy)
    assert dict(eager.env) == {"PT_HPU_LAZY_MODE": "0", "PT_HPU_FORCE_TANH_FOR_GELU": "0"}
    assert dict(lazy.env) == {
        "PT_HPU_LAZY_MODE": "1", "PT_HPU_FORCE_TANH_FOR_GELU": "0", "PT_HPU_ENABLE_CACHE_METRICS": "1",
        "PT_HPU_ENABLE_LAZY_COLLECTIVES": "0",
    }  # fmt: skip
    for pair in ("PT_HPU_LAZY_MODE=2", "PT_HPU_ENABLE_LAZY_COLLECTIVES=1", "PT_HPU_FORCE_TANH_FOR_GELU=1"):
        with pytest.raises(VitcoreError, match="needs PT_HPU_"):
            with_env(lazy, [pair])
    assert with_env(lazy, ["HLS_MODULE_ID=3"]).env["HLS_MODULE_ID"] == "3"
    assert vitcore_hpu.vitcore_kernels("cpu") == ()


class Machine:
    """What a probe sees: which packages are there, and which cards."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packages, self.cards = {"habana_frameworks", "habana_frameworks.torch"}, ["accel/accel0"]
        usual = importlib.util.find_spec

        def spec(name: str, package: Any = None) -> Any:
            if name.startswith("habana_frameworks"):
                return SimpleNamespace() if name in self.packages else None
            return usual(name, package)

        monkeypatch.setattr(probe.importlib.util, "find_spec", spec)
        monkeypatch.setattr(probe, "Path", lambda root: SimpleNamespace(glob=self.glob))

    def glob(self, pattern: str) -> list[Path]:
        return [Path(c) for c in self.cards if Path(c).match(pattern)]


def test_each_thing_that_is_missing_is_said_in_the_order_in_which_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    version(monkeypatch, torch="2.6.0+git1234")
    assert probe.missing_lazy() is None and probe.missing_eager() is None
    machine.cards = ["hl0"]
    assert probe.missing_lazy() is None
    machine.cards = ["hl_controlD0"]
    assert "no Gaudi card" in str(probe.missing_lazy()) and "hl-smi" in str(probe.missing_eager())
    version(monkeypatch, torch=None)
    assert "torch is missing" in str(probe.missing_lazy())
    machine.packages = {"habana_frameworks"}
    assert "no torch part" in str(probe.missing_lazy())
    machine.packages = set()
    assert str(probe.missing_eager()).startswith("habana_frameworks is not installed; install")


@pytest.mark.parametrize(
    ("torch", "taken"), [("2.6.0+git1234", True), ("2.9.0+hpu.1", True), ("2.14.1", False), ("2.9.0+cu130", False)]
)
def test_lazy_mode_refuses_stock_torch_and_eager_takes_it(
    torch: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch)
    version(monkeypatch, torch=torch)
    assert probe.missing_eager() is None
    said = probe.missing_lazy()
    assert (said is None) is taken
    if said:
        assert torch in said and "--backend hpu-eager" in said
