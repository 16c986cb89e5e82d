"""The original recipe's flags that speak of the device, and what they mean today.

Source: Model-References 1.6.1, ViT/train.py:329-392. `--hmp` was removed from the vendor's library in 1.12 in favour of
autocast; here it means bf16. Its option O2, the default, had lists of its own inside the library: autocast's defaults take their
place. Its option O1 read the two files: they are translated (`vitcore_hpu.autocast_lists`).
"""

from __future__ import annotations

from typing import Any

from vitcore.api import Flag, VitcoreError
from vitcore_hpu.autocast_lists import DEFAULTS, STANDARD, VARIABLES, inexact, list_for

Change = tuple[dict[str, Any], str]


def _truth(flag: str, value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise VitcoreError(f"--{flag} {value!r} is neither true nor false; write --{flag} true or --{flag} false")
    return value.lower() in ("true", "1")


def _meant(given: dict[str, Any]) -> str | None:
    """The backend that --use_hpu and --run_lazy_mode mean, or None where neither is given."""
    use, lazy = given.get("use_hpu"), given.get("run_lazy_mode")
    if use is None and lazy is None:
        return None
    if use == 0:
        return "cpu"
    return "hpu-lazy" if lazy is None or _truth("run_lazy_mode", lazy) else "hpu-eager"


def _backend(flag: str, given: dict[str, Any]) -> Change:
    use = given.get("use_hpu")
    if use not in (None, 0, 1):
        raise VitcoreError(f"--use_hpu {use} is neither 0 nor 1; write --use_hpu 1 for Gaudi, 0 for the processor")
    meant, asked = _meant(given), given.get("backend")
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


def _idle(given: dict[str, Any]) -> str | None:
    """Why op lists have no effect in this run, or None where they have."""
    backend = given.get("backend") if given.get("backend") not in (None, "auto") else _meant(given)
    if backend not in (None, "hpu-lazy", "hpu-eager"):
        return f"op lists are Gaudi's, and the backend is {backend}"
    if not given.get("hmp"):
        return "op lists belong to --hmp, which is not given"
    return None


def _list(kind: str, named: str) -> Change:
    """The setting that makes autocast read a list of hmp's, and what to say of it."""
    path, held, shipped = list_for(kind, named)
    what = "the original's list, which vitcore_hpu brings" if shipped else "that list"
    apart = "; ".join(inexact(kind, held))
    return {"env": (f"{VARIABLES[kind]}={path}",)}, f"{what}, by {VARIABLES[kind]}" + (f"; {apart}" if apart else "")


def hmp_opt_level(value: Any, given: dict[str, Any]) -> Change:
    """O1: the lists of --hmp-bf16 and --hmp-fp32, as given or the original's; O2: autocast's own."""
    if value not in ("O1", "O2"):
        raise VitcoreError(f"--hmp-opt-level {value} is neither O1 nor O2; with --hmp write O1 or O2, or leave it out")
    if idle := _idle(given):
        return {}, f"--hmp-opt-level {value} has no effect: {idle}"
    if value == "O2":
        return {}, f"--hmp-opt-level O2 means what --hmp alone does: {DEFAULTS}"
    env, said = list[str](), list[str]()
    for kind in VARIABLES:
        named = given.get(f"hmp_{kind}")
        if named is None:  # else that flag sets it, and says so
            change, what = _list(kind, STANDARD[kind].name)
            env += change["env"]
            said.append(f"{kind}: {what}")
        else:
            said.append(f"{kind}: the list of --hmp-{kind}")
    return {"env": tuple(env)}, f"--hmp-opt-level O1 means autocast on Gaudi with these ops; {'. '.join(said)}"


def _hmp_list(kind: str, value: str, given: dict[str, Any]) -> Change:
    flag = f"--hmp-{kind} {value}"
    if idle := _idle(given):
        return {}, f"{flag} has no effect: {idle}"
    if given.get("hmp_opt_level") != "O1":
        return {}, f"{flag} has no effect: op lists are read with --hmp-opt-level O1, and O2 is the default"
    change, what = _list(kind, value)
    return change, f"{flag} means {what}"


def hmp_bf16(value: Any, given: dict[str, Any]) -> Change:
    """The ops that are computed in bf16."""
    return _hmp_list("bf16", value, given)


def hmp_fp32(value: Any, given: dict[str, Any]) -> Change:
    """The ops that are computed in fp32."""
    return _hmp_list("fp32", value, given)


def hmp_verbose(value: Any, given: dict[str, Any]) -> Change:
    """It printed each cast."""
    return {}, "--hmp-verbose has no effect: --print-step=lowered shows where bf16 is used"


FLAGS = [
    Flag("use_hpu", "int", "The original's name for the backend: 1 Gaudi, 0 the processor.", use_hpu),
    Flag("run_lazy_mode", "str", "The original's name for hpu-lazy (true) and hpu-eager (false).", run_lazy_mode),
    Flag("hmp", "switch", "The original's name for --precision bf16.", hmp),
    Flag("hmp_opt_level", "str", "With --hmp: O1 takes the op lists below, O2 autocast's own.", hmp_opt_level),
    Flag("hmp_bf16", "str", "With --hmp-opt-level O1: file of the ops that are bf16, one a line.", hmp_bf16),
    Flag("hmp_fp32", "str", "With --hmp-opt-level O1: file of the ops that are fp32, one a line.", hmp_fp32),
    Flag("hmp_verbose", "switch", "No effect: --print-step=lowered shows where bf16 is used.", hmp_verbose),
]
