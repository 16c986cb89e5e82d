"""What a machine is called, for records: times of two machines are not to be compared by accident."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def describe(device: torch.device) -> dict[str, Any]:
    """The device's name, torch's version and the threads of its operators."""
    return {"device": _name(device), "torch": torch.__version__, "threads": torch.get_num_threads()}


def _name(device: torch.device) -> str:
    if device.type != "cpu":
        module = getattr(torch, device.type, None)
        return str(module.get_device_name()) if hasattr(module, "get_device_name") else device.type
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
