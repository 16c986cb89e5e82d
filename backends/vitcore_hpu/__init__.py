"""The Habana Gaudi backends, hpu-lazy and hpu-eager, written against the vendor's published source.

Facts with their source (the bridge is HabanaAI/gaudi-pytorch-bridge v1.19.0): the mode is an environment variable that
is read once, when the library is first imported (habana_frameworks/torch/__init__.py:50), and its default has changed over
time, so it is always set; `mark_step` launches what was recorded (core/step_closure.py). Not run on a Gaudi card.
"""

from __future__ import annotations

from vitcore.api import Backend, Flag, hookimpl

HPU_LAZY = Backend(
    name="hpu-lazy",
    device="hpu",
    env={"PT_HPU_LAZY_MODE": "1"},
    imports=("habana_frameworks.torch.core",),
    probe="vitcore_hpu.probe:missing",
    mark="habana_frameworks.torch.core:mark_step",
    wait="habana_frameworks.torch.hpu:synchronize",
    split_after=frozenset({"model.forward", "model.backward"}),
    collective="hccl",
    precisions=("fp32", "bf16"),
    rank=30,
    about="Habana Gaudi, lazy mode (needs the vendor's own torch)",
)

HPU_EAGER = Backend(
    name="hpu-eager",
    device="hpu",
    env={"PT_HPU_LAZY_MODE": "0"},
    imports=("habana_frameworks.torch.core",),
    probe="vitcore_hpu.probe:missing",
    wait="habana_frameworks.torch.hpu:synchronize",
    collective="hccl",
    precisions=("fp32", "bf16"),
    rank=31,
    about="Habana Gaudi, eager mode",
)


@hookimpl
def vitcore_backends() -> list[Backend]:
    """Gaudi in its two modes; a process has one of them."""
    return [HPU_LAZY, HPU_EAGER]


@hookimpl
def vitcore_flags() -> list[Flag]:
    """The original recipe's flags that speak of the device."""
    from vitcore_hpu.flags import FLAGS

    return FLAGS
