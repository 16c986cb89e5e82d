"""Where the simulator may be used, asked without torch."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest
from vitcore_hpusim import HPUSIM
from vitcore_hpusim.probe import missing


def test_it_can_run_exactly_where_torch_has_what_it_needs() -> None:
    import torch.utils.backend_registration as registration

    has = hasattr(registration, "_setup_privateuseone_for_python_backend")
    assert (missing() is None) == has, missing()
    assert has or "install torch 2.11 or newer" in (missing() or "")


def test_asking_imports_no_torch() -> None:
    code = "import sys; from vitcore_hpusim.probe import missing; missing(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_refuses_where_the_real_library_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "habana_frameworks").mkdir()
    (tmp_path / "habana_frameworks" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "habana_frameworks", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    reason = missing()
    assert reason is not None and "habana_frameworks is installed here" in reason and "leave --simulate out" in reason


def test_it_refuses_where_it_is_loaded_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "habana_frameworks", types.ModuleType("habana_frameworks"))
    assert "habana_frameworks is installed here" in (missing() or "")


def test_it_refuses_a_torch_without_what_it_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch" / "utils").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text("")
    (tmp_path / "torch" / "utils" / "backend_registration.py").write_text("def rename_privateuse1_backend(): ...\n")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert "has no _setup_privateuseone_for_python_backend in torch/utils/backend_registration.py" in (missing() or "")


def test_it_says_what_it_is_not() -> None:
    assert "no Gaudi card is behind this" in HPUSIM.about and HPUSIM.without.keys() == {"compiled"}
