"""vitcore-hpusim: a simulated Gaudi card for machines without one, used only where `--simulate` asks for it.

It shows what a program asks of the card: what is recorded, what flushes and why, what would be compiled. Values are computed on
the processor by our own formulas. It makes no claim about Gaudi's speed, memory, kernels or rounding.
"""

from __future__ import annotations

from vitcore.api import Simulator, hookimpl

HPUSIM = Simulator(
    name="hpusim",
    backends=("hpu-lazy", "hpu-eager"),
    install="vitcore_hpusim.install:install",
    probe="vitcore_hpusim.probe:missing",
    without={"compiled": "the simulated device cannot run torch.compile's hpu_backend"},
    events="vitcore_hpusim.install:events",
    about="no Gaudi card is behind this; nothing here says anything about its speed, memory or rounding",
)


@hookimpl
def vitcore_simulators() -> list[Simulator]:
    """The simulated card."""
    return [HPUSIM]
