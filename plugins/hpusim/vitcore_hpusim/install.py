"""Putting the simulated card, and the library in front of it, into this process."""

from __future__ import annotations

from vitcore.api import Backend, VitcoreError
from vitcore.runtime.events import Event
from vitcore_hpusim.probe import NEEDS, missing


def install(backend: Backend) -> None:
    """Make the device and the stand-in for `habana_frameworks.torch`; both are of the mode that the environment names."""
    if reason := missing():
        raise VitcoreError(f"hpusim: {reason}")
    lazy = backend.env["PT_HPU_LAZY_MODE"] == "1"
    try:
        from vitcore_hpusim.device import make
        from vitcore_hpusim.habana.library import build
        from vitcore_hpusim.tensor import HpuTensor

        recorder = make(lazy=lazy)
    except (ImportError, AttributeError, TypeError) as e:
        raise VitcoreError(f"hpusim: this torch lacks something that the simulated device is made of ({e}); it needs "
                           f"{', '.join(NEEDS)}; install another torch") from e  # fmt: skip
    if recorder.lazy != lazy:
        raise VitcoreError(f"hpusim: this process has the simulated card in {'lazy' if recorder.lazy else 'eager'} mode; start "
                           f"another for {backend.name!r}, as with the real one")  # fmt: skip
    build(HpuTensor.recorder)


def events() -> list[Event]:
    """What made the device work since the last call."""
    from vitcore_hpusim.tensor import HpuTensor

    recorder = HpuTensor.recorder
    with recorder.lock:
        seen, recorder.events = recorder.events, []
    return seen
