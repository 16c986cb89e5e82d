"""The original recipe's flags that speak of the device, and what they mean today.

Source: Model-References 1.6.1, ViT/train.py:329-392. `--hmp` was removed from the vendor's library in 1.12 in favour of
autocast; here it means bf16.
"""

from __future__ import annotations

from typing import Any

from vitcore.api import Flag, VitcoreError

Change = tuple[dict[str, Any], str]


def _truth(flag: str, value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise VitcoreError(f"--{flag} {value!r} is neither true nor false; write --{flag} true or --{flag} false")
    return value.lower() in ("true", "1")


def _backend(flag: str, given: dict[str, Any]) -> Change:
    use, lazy = given.get("use_hpu"), given.get("run_lazy_mode")
    if use not in (None, 0, 1):
        raise VitcoreError(f"--use_hpu {use} is neither 0 nor 1; write --use_hpu 1 for Gaudi, 0 for the processor")
    gaudi = "hpu-lazy" if lazy is None or _truth("run_lazy_mode", lazy) else "hpu-eager"
    meant = "cpu" if use == 0 else gaudi
    asked = given.get("backend")
    if asked not in (None, "auto", meant):
        raise VitcoreError(f"--{flag} means --backend {meant}, but --backend is {asked}; give one of the two")
    return {"backend": meant}, f"--{flag} {given[flag]} means --backend {meant}"


def use_hpu(value: Any, given: dict[str, Any]) -> Change:
    """1: Gaudi, lazily unless --run_lazy_mode is false; 0: the processor."""
    return _backend("use_hpu", given)


def run_lazy_mode(value: Any, given: dict[str, Any]) -> Change:
    """true: hpu-lazy; false: hpu-eager."""
    return _backend("run_lazy_mode", given)


def hmp(value: Any, given: dict[str, Any]) -> Change:
    """Habana mixed precision."""
    if given.get("precision") not in (None, "bf16"):
        raise VitcoreError(
            f"--hmp means --precision bf16, but --precision is {given['precision']}; give one of the two"
        )
    return {"precision": "bf16"}, "--hmp means --precision bf16, carried out by autocast"


def hmp_opt_level(value: Any, given: dict[str, Any]) -> Change:
    """O1 and O2 chose op lists of a library that is gone."""
    if value not in ("O1", "O2"):
        raise VitcoreError(f"--hmp-opt-level {value} is neither O1 nor O2; with --hmp write O1 or O2, or leave it out")
    return {}, f"--hmp-opt-level {value} has no effect: autocast's own op lists are used"


def _no_effect(name: str, why: str) -> Any:
    def effect(value: Any, given: dict[str, Any]) -> Change:
        return {}, f"--{name} has no effect: {why}"

    return effect


FLAGS = [
    Flag("use_hpu", "int", "The original's name for the backend: 1 Gaudi, 0 the processor.", use_hpu),
    Flag("run_lazy_mode", "str", "The original's name for hpu-lazy (true) and hpu-eager (false).", run_lazy_mode),
    Flag("hmp", "switch", "The original's name for --precision bf16.", hmp),
    Flag("hmp_opt_level", "str", "No effect: autocast's own op lists are used.", hmp_opt_level),
    Flag(
        "hmp_bf16", "str", "No effect: op-list file of the former library.",
        _no_effect("hmp-bf16", "autocast's own list of bf16 ops is used"),
    ),
    Flag(
        "hmp_fp32", "str", "No effect: op-list file of the former library.",
        _no_effect("hmp-fp32", "autocast's own list of fp32 ops is used"),
    ),
    Flag(
        "hmp_verbose", "switch", "No effect: --print-step=lowered shows where bf16 is used.",
        _no_effect("hmp-verbose", "--print-step=lowered shows where bf16 is used"),
    ),
]  # fmt: skip
