"""The simulated card's own tests, each mode in a process of its own, and what the package holds."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parents[2] / "plugins" / "hpusim"


def own_tests(card: Any, *which: str, **env: str) -> str:
    tests = [str(PLUGIN / "tests" / name) for name in which]
    done = card(
        "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(PLUGIN), *tests, **env
    )
    assert done.returncode == 0, done.stdout[-3000:]
    out: str = done.stdout
    return out


def test_the_lazy_card(card: Any) -> None:
    """250 random programs against eager ones; every cause of a flush; the bridge's autocast; the vendor's library."""
    assert " passed" in own_tests(card, "lazy")


def test_the_eager_card(card: Any) -> None:
    assert " passed" in own_tests(card, "eager")


def test_where_it_may_be_used(beside: Any) -> None:
    assert " passed" in own_tests(beside, "test_probe.py")


def test_both_backends_pass_the_whole_conformance_kit_on_it(card: Any) -> None:
    out = own_tests(card, "test_conformance.py")
    assert "26 passed" in out and "skipped" not in out


@pytest.mark.slow
def test_two_thousand_random_programs(card: Any) -> None:
    own_tests(card, "lazy/test_programs.py", HPUSIM_PROGRAMS="2000")


def test_the_package_holds_no_library_of_the_vendors_name(beside: Any, tmp_path: Path) -> None:
    assert {p.name for p in beside.site.iterdir() if not p.name.endswith(".dist-info")} == {"vitcore_hpusim"}
    assert not [p for p in beside.site.rglob("*") if p.name == "habana_frameworks"]
    done = beside("-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(PLUGIN))
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"vitcore_hpusim", "vitcore_hpusim-0.1.0.dist-info"}
