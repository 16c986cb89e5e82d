"""Each failure of the vendor's library, produced once by planting its cause, and what is said of it.

The library is pretended, on the path of a process of its own, with the code that raises as the vendor's source does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from standin import Gaudi, OnTheProcessor
from vitcore_hpu import device, probe
from vitcore_hpu.failures import explain

from vitcore.errors import VitcoreError

HERE = Path(__file__).parent
# Opens a backend whose card is said to be there, and prints the refusal.
JOB = """
import sys
sys.path.insert(0, {here!r})
import lines
lines.start()
from vitcore.errors import VitcoreError
from vitcore.plugins import load_plugins
from vitcore.runtime.opening import open_backend
import vitcore_hpu.probe as probe
probe._card = lambda: None
probe._stock_torch = {stock}
plugins = load_plugins()
{first}
try:
    open_backend(plugins.backend({backend!r}), plugins)
except VitcoreError as e:
    print(e)
"""
RAISES = {
    "mismatch": "raise AssertionError('Error: Compile-time major/minor PyTorch version 2.5.1 differs from run-time 2.14.1.')",
    "stock": "raise AssertionError('Stock PyTorch version 2.14.1 is not supported in Lazy mode.')",
    "no local part": "None.startswith('git')",
    "no driver": "import ctypes; ctypes.CDLL('libSynapse_is_not_here.so')",
    "other mode": "raise RuntimeError('Wrong PT plugin library loaded in the system. Expected LAZY, got EAGER.')",
    "no card": "raise RuntimeError('synStatus=8 [Device not found] Device acquire failed. No devices found.')",
    "busy card": "raise RuntimeError('synStatus=20 [Device already acquired] Device acquire failed.')",
    "busy card of another release": "raise RuntimeError('synStatus=26 [Generic failure] Device acquire failed.')",
    "not whole": "import habana_frameworks.torch.missing_part",
    "no torch.hpu": "",
}  # fmt: skip
SAID = {
    "mismatch": (
        "built for torch 2.5.1 and torch 2.14.1 is installed",
        "major and minor",
        "install the torch and the plugin",
    ),
    "stock": ("stock torch is refused in lazy mode", "--backend hpu-eager"),
    "no local part": ("stock torch is refused in lazy mode", "--backend hpu-eager"),
    "no driver": ("driver is missing (libSynapse_is_not_here.so)", "LD_LIBRARY_PATH"),
    "other mode": ("is that of EAGER mode and PT_HPU_LAZY_MODE asks for LAZY", "start another"),
    "no card": ("shows no Gaudi card", "check hl-smi"),
    "busy card": ("cannot be acquired (synStatus=20)", "end it", "HLS_MODULE_ID"),
    "busy card of another release": ("cannot be acquired (synStatus=26)", "end it"),
    "not whole": ("habana_frameworks is not whole", "reinstall"),
    "no torch.hpu": ("did not register itself with torch", "reinstall"),
}


def package(folder: Path, code: str, **more: str) -> Path:
    """A library of that name, whose torch part runs the code when it is imported."""
    root = folder / "habana_frameworks"
    (root / "torch" / "core").mkdir(parents=True)
    (root / "__init__.py").write_text(more.get("parent", ""))
    (root / "torch" / "__init__.py").write_text(code)
    (root / "torch" / "core" / "__init__.py").write_text("")
    return folder


def refusal(folder: Path, backend: str = "hpu-lazy", first: str = "", stock: str = "lambda: None", **env: str) -> str:
    """What opening the backend comes to in a process with that folder on its path."""
    code = JOB.format(here=str(HERE), stock=stock, backend=backend, first=first)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PT_HPU", "VITCORE_PLUGINS"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                          env={**clean, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": "", **env})  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip()
    assert said.count("\n") == 0 and said, said
    return said


@pytest.mark.parametrize("cause", RAISES)
def test_what_the_library_raises_becomes_one_sentence(cause: str, tmp_path: Path) -> None:
    said = refusal(package(tmp_path, RAISES[cause]))
    assert said.startswith("backend 'hpu-lazy'")
    assert all(part in said for part in SAID[cause]), said
    assert "Error" not in said


def test_a_plugin_that_breaks_the_import_of_torch_is_named_with_the_way_out(tmp_path: Path) -> None:
    package(tmp_path, "", parent="raise RuntimeError('synapse is broken')")
    info = tmp_path / "habana_torch_plugin-1.21.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: habana-torch-plugin\nVersion: 1.21.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\ndevice_backend = habana_frameworks.autoload:__autoload\n")
    # The probe would stop at the broken parent; it is asked only whether the package is there.
    first = "probe._library = lambda: None"
    said = refusal(tmp_path, "hpu-eager", first)
    assert "fails while torch loads it by itself" in said and "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in said, said


def test_an_exception_of_another_kind_is_left_as_it_is(tmp_path: Path) -> None:
    said = refusal(package(tmp_path, "raise KeyError('of its own')"))
    assert "opening it by vitcore_hpu.device:acquire failed: KeyError: 'of its own'" in said
    assert explain(KeyError("x")) is None
    try:
        raise KeyError("outer") from AssertionError("Stock PyTorch version 2.9 is not supported in Lazy mode.")
    except KeyError as e:
        assert "stock torch" in (explain(e) or "")


def test_a_missing_library_is_said_without_an_exception(tmp_path: Path) -> None:
    first = "probe._library = lambda: None"
    assert "habana_frameworks is not installed; install" in refusal(tmp_path, "hpu-lazy", first)


# ---- what torch says without the library; the causes are real ones ----


def raised(act: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:
        act()
    return caught.value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("act", "part"),
    [
        (lambda: torch.hpu.is_available(), "did not register itself with torch"),  # type: ignore[attr-defined]
        (lambda: torch.zeros(1).to("hpu"), "did not register itself with torch"),
        (lambda: torch.nn.Linear(1, 1).to("hpu"), "did not register itself with torch"),
        (lambda: torch.zeros(1).is_hpu, "did not register itself with torch"),  # type: ignore[attr-defined]
        (lambda: torch.random.fork_rng(device_type="hpu").__enter__(), "did not register itself with torch"),
        (lambda: torch.distributed.init_process_group("hccl", rank=0, world_size=1, store=torch.distributed.HashStore()),
         "torch.distributed knows no 'hccl'"),
    ],
    ids=["torch.hpu", "tensor", "module", "is_hpu", "fork_rng", "hccl"],
)  # fmt: skip
def test_what_torch_says_without_the_library_is_explained(act: Callable[[], object], part: str) -> None:
    said = explain(raised(act))
    assert said is not None and part in said


def test_the_compiler_that_is_not_registered_is_explained() -> None:
    """In a process of its own: a compiler that is registered once stays."""
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import lines; lines.start()\n"
        "import torch\nfrom vitcore_hpu.failures import explain\n"
        "try:\n    torch.compile(torch.nn.Linear(1, 1), backend='hpu_backend')(torch.ones(1))\n"
        "except Exception as e:\n    print(explain(e))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "torch.compile knows no 'hpu_backend'" in done.stdout and "--backend hpu-eager" in done.stdout, done.stderr


def test_autocast_without_the_library_is_silent_so_a_tensor_is_asked_for() -> None:
    """`torch.autocast("hpu")` alone proves nothing; no tensor can be made where it does nothing."""
    with torch.autocast("hpu", torch.bfloat16):
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32
    assert explain(raised(lambda: torch.zeros(1).to("hpu")))


# ---- taking the card ----


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "eager"])
def test_the_card_is_taken_by_an_allocation_and_the_optimizer_made(gaudi: Callable[..., Gaudi], lazy: bool) -> None:
    stand_in = gaudi(lazy=lazy)
    with OnTheProcessor():
        device.acquire()
    assert stand_in.marks == (1 if lazy else 0) and len(stand_in.called("FusedSGD")) == 1


def test_a_library_that_shows_no_card_is_refused(gaudi: Callable[..., Gaudi]) -> None:
    gaudi(lazy=True).available = False
    with pytest.raises(VitcoreError, match="habana_frameworks is loaded and shows no Gaudi card; check hl-smi"):
        device.acquire()


def test_a_card_that_another_process_holds_is_refused_at_the_allocation(
    gaudi: Callable[..., Gaudi], monkeypatch: pytest.MonkeyPatch
) -> None:
    gaudi(lazy=True)

    def busy(*args: object, **kwargs: object) -> None:
        raise RuntimeError("synStatus=20 [Device already acquired] Device acquire failed.")

    monkeypatch.setattr(torch, "zeros", busy)
    assert "a card is one process's alone" in str(explain(raised(device.acquire)))


def test_a_library_that_is_loaded_in_the_other_mode_is_refused_with_the_line_to_put_first(
    gaudi: Callable[..., Gaudi], monkeypatch: pytest.MonkeyPatch
) -> None:
    gaudi(lazy=False)
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1")  # set after the import, so too late
    line = r"put this first: import os; os.environ\['PT_HPU_LAZY_MODE'\] = '1'"
    with pytest.raises(VitcoreError, match=f"loaded already in eager mode, .*{line}"):
        device.acquire()
    assert "loaded already in eager mode" in str(probe.missing_lazy())
    assert "loaded already" not in str(probe.missing_eager())


@pytest.mark.parametrize(
    ("value", "lazy", "said"),
    [("1", True, None), ("0", False, None), ("1", False, "in lazy mode"), ("0", True, "in eager mode"),
     (None, True, "in unknown mode"), (None, False, "in unknown mode")],
)  # fmt: skip
def test_a_library_that_is_half_loaded_is_known_by_the_variable(
    value: str | None, lazy: bool, said: str | None, gaudi: Callable[..., Gaudi], monkeypatch: pytest.MonkeyPatch
) -> None:
    gaudi(lazy=lazy)
    monkeypatch.delitem(sys.modules, "habana_frameworks.torch.utils.internal")
    monkeypatch.delenv("PT_HPU_LAZY_MODE")
    if value is not None:
        monkeypatch.setenv("PT_HPU_LAZY_MODE", value)
    found = probe.other_mode(lazy)
    assert found is None if said is None else said in str(found)
