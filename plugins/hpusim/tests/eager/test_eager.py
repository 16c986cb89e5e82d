"""The simulated card in eager mode: values at once, no marks, the same library."""

from __future__ import annotations

import pytest
import torch
from vitcore_hpusim.install import events, install
from vitcore_hpusim.tensor import HpuTensor

from vitcore.backend import Backend
from vitcore.errors import VitcoreError

EAGER = Backend(name="hpu-eager", device="hpu", env={"PT_HPU_LAZY_MODE": "0"})


@pytest.fixture(scope="module", autouse=True)
def card() -> None:
    install(EAGER)


def test_values_are_there_at_once() -> None:
    a = torch.randn(3).to("hpu") * 2
    assert a._slot.value is not None and HpuTensor.recorder.pending == 0  # type: ignore[attr-defined]
    assert HpuTensor.recorder.counts.flushes == 0 and events() == []


def test_marks_do_nothing_and_closures_are_never_called() -> None:
    import habana_frameworks.torch.core as htcore

    htcore.add_step_closure(lambda: pytest.fail("called"))
    htcore.mark_step()
    assert not htcore.is_lazy() and HpuTensor.recorder.counts.flushes == 0


def test_integers_keep_their_64_bits() -> None:
    assert torch.tensor([2**40]).to("hpu").item() == 2**40


def test_the_fused_optimizers_are_the_same() -> None:
    from habana_frameworks.torch.hpex.optimizers import FusedSGD

    value = torch.randn(4)
    here, there = torch.nn.Parameter(value.to("hpu")), torch.nn.Parameter(value.clone())
    here.grad, there.grad = torch.ones(4).to("hpu"), torch.ones(4)
    FusedSGD([here], lr=0.1, momentum=0.9).step()
    torch.optim.SGD([there], lr=0.1, momentum=0.9).step()
    assert torch.allclose(here.detach().cpu(), there.detach())


def test_a_process_has_one_mode() -> None:
    with pytest.raises(VitcoreError, match="this process has the simulated card in eager mode; start another"):
        install(Backend(name="hpu-lazy", device="hpu", env={"PT_HPU_LAZY_MODE": "1"}))
