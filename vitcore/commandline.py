"""From an argument list to a resolved configuration: defaults, then the recipe, then the flags, then what legacy flags
mean. Imports no torch."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vitcore.backend import resolve
from vitcore.config import Config
from vitcore.errors import VitcoreError
from vitcore.flags import Flag
from vitcore.plugins import load_plugins
from vitcore.recipes import load_recipe, recipe_for

_KINDS: dict[str, Any] = {"switch": bool, "int": int | None, "float": float | None, "str": str | None}
_PRINTS = ("text", "lowered", "python")


@dataclass(frozen=True)
class Resolved:
    """A configuration, what was set by hand, and what is to be said about it."""

    config: Config
    by_hand: frozenset[str]
    notes: list[str] = field(default_factory=list)


def resolve_config(argv: Sequence[str], prog: str, description: str) -> Resolved:
    """Parse the flags of a run. Repeated flags: the last wins; `-` and `_` in names are alike."""
    import tyro

    argv = _print_step_values(argv)
    by_hand = frozenset(a[2:].split("=")[0].replace("-", "_") for a in argv if a.startswith("--"))
    named = _peek(argv, "recipe")
    recipe = named or recipe_for(_peek(argv, "dataset"))
    values = {**load_recipe(recipe), "recipe": recipe}
    flags = [f for some in load_plugins().manager.hook.vitcore_flags() for f in some]
    default = _with_flags(flags)(**_checked(values, recipe))
    parsed = tyro.cli(
        type(default), default=default, args=argv, prog=prog, description=description,
        config=(tyro.conf.FlagCreatePairsOff,) if False else (),
    )  # fmt: skip
    config = Config(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(Config)})
    resolved = Resolved(config, by_hand)
    if "name" not in by_hand and config.name == "run":
        resolved = Resolved(dataclasses.replace(config, name=config.recipe_name), by_hand)
    return _legacy(resolved, flags, parsed)


def _checked(values: dict[str, Any], recipe: str) -> dict[str, Any]:
    """The recipe's values if each has its setting's type; the file is named otherwise."""
    for f in dataclasses.fields(Config):
        want: Any = {"int": int, "float": (int, float), "bool": bool, "str": str}.get(str(f.type))
        value = values.get(f.name)
        if (
            want
            and value is not None
            and (not isinstance(value, want) or (isinstance(value, bool) and want is not bool))
        ):
            raise VitcoreError(f"recipe {recipe}: {f.name} = {value!r} is not of type {f.type}; correct the value")
    return {k: float(v) if isinstance(v, int) and _type_of(k) == "float" else v for k, v in values.items()}


def _type_of(name: str) -> str:
    return next(str(f.type) for f in dataclasses.fields(Config) if f.name == name)


def _peek(argv: Sequence[str], name: str) -> str | None:
    """The last value given to `--name`, before anything else is parsed."""
    found = None
    for i, a in enumerate(argv):
        if a == f"--{name}" and i + 1 < len(argv):
            found = argv[i + 1]
        elif a.startswith(f"--{name}="):
            found = a.split("=", 1)[1]
    return found


def _print_step_values(argv: Sequence[str]) -> list[str]:
    """A bare `--print-step` means text."""
    out: list[str] = []
    for i, a in enumerate(argv):
        out.append(a)
        bare = a in ("--print-step", "--print_step")
        if bare and (i + 1 == len(argv) or argv[i + 1] not in _PRINTS):
            out.append("text")
    return out


def _with_flags(flags: Sequence[Flag]) -> type[Config]:
    """Config with the plugins' flags as further fields."""
    extra = []
    for flag in flags:
        default = False if flag.kind == "switch" else None
        kind = bool | None if flag.kind == "bool" else _KINDS[flag.kind]
        extra.append((flag.name, kind, dataclasses.field(default=default)))
    made = dataclasses.make_dataclass("Run", extra, bases=(Config,), frozen=True, kw_only=True)
    made.__doc__ = "\n".join(f"{f.name}: {f.help}" for f in flags)
    return made


def _legacy(resolved: Resolved, flags: Sequence[Flag], parsed: Any) -> Resolved:
    """Carry out what legacy flags mean today, and say it in one line each."""
    config, by_hand, notes = resolved.config, resolved.by_hand, list(resolved.notes)
    for flag in flags:
        if flag.name in by_hand:
            effect = flag.effect if callable(flag.effect) else resolve(flag.effect)
            set_by_hand = {n: getattr(parsed, n) for n in by_hand if hasattr(parsed, n)}
            changes, line = effect(getattr(parsed, flag.name), set_by_hand)
            config = dataclasses.replace(config, **changes)
            notes.append(line)
    if config.autocast:
        if "precision" in by_hand and config.precision != "bf16":
            raise VitcoreError(f"--autocast means bf16, but --precision is {config.precision}; give one of the two")
        config = dataclasses.replace(config, precision="bf16")
        notes.append("--autocast means --precision bf16")
    if "cache_dataset" in by_hand:
        notes.append("--cache-dataset has no effect: the operating system caches the files")
    if "loss_scale" in by_hand:
        notes.append(
            "--loss_scale has no effect: fp32 and bf16 need no loss scaling (the original never read it either)"
        )
    if "local_rank" in by_hand:
        notes.append(
            "--local_rank has no effect: ranks come from the launcher's environment (RANK, OMPI_COMM_WORLD_RANK)"
        )
    if config.internal_perf_measure and config.pretrained_dir:
        config = dataclasses.replace(config, pretrained_dir=None)
        notes.append("--internal-perf-measure: starting from RANDOM weights, so accuracy means nothing")
    return Resolved(config, by_hand, notes)


def say(line: str) -> None:
    """One line to the person at the terminal, on standard error, where it is in nobody's way."""
    print(f"vitcore: {line}", file=sys.stderr)
