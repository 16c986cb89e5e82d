"""No device has a name in `vitcore/`: what the core knows about devices comes from backends, as data. No exemptions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vitcore

ROOT = Path(vitcore.__file__).parent

# What no other word contains is found anywhere; what other words contain ("input", "timestamps") as a word of its own,
# where an underscore or a digit ends a word.
DEVICE = re.compile(
    r"cuda|hpu|gaudi|habana|hccl|nccl|mark_step"
    r"|(?<![a-z])(?:npu|xpu|xla|mps|gloo)(?![a-z])"
    r"|(?<=[\"'])cpu(?=[\"'])",
    re.I,
)


def named(text: str) -> list[tuple[int, str]]:
    """The lines that name a device, each with the name."""
    return [(n, found.group()) for n, line in enumerate(text.splitlines(), 1) for found in DEVICE.finditer(line)]


@pytest.mark.parametrize(
    "line",
    ["torch.cuda.synchronize()", "def hpu_lazy():", "HPUGraph", "import torch_xla", "is_xpu", "MPS", "npu:0",
     "x = 'cpu'", 'device == "cpu"', "backend=gloo", "htcore.mark_step()", "NCCL_DEBUG", "# on Gaudi", "npu2"],
)  # fmt: skip
def test_a_device_name_is_seen(line: str) -> None:
    assert named(f"\n{line}\n")[0][0] == 2


@pytest.mark.parametrize(
    "line", ["the input's timestamps", "on the cpu", "exploded", "relaxation", "gloomy", "x.cpu()"]
)
def test_other_words_are_not_taken_for_device_names(line: str) -> None:
    assert named(line) == []


def test_vitcore_names_no_device() -> None:
    files = sorted(path for pattern in ("*.py", "*.toml") for path in ROOT.rglob(pattern))
    assert len(files) > 20
    shown = [
        f"vitcore/{path.relative_to(ROOT)}:{n}: {name}"
        for path in files
        for n, name in [*named(path.read_text(encoding="utf-8")), *((0, name) for _, name in named(path.name))]
    ]
    assert not shown, "what a device is called belongs into its backend:\n" + "\n".join(shown)
