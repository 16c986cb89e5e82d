"""From an argument list to a resolved configuration: defaults, then the recipe, then the flags, then what legacy flags
mean. Imports no torch."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vitcore.backend import resolve
from vitcore.config import Config, check_keys
from vitcore.errors import VitcoreError
from vitcore.flags import Flag, help_text, read_flags
from vitcore.plugins import load_plugins
from vitcore.recipes import load_recipe, recipe_for

_KINDS: dict[str, Any] = {
    "switch": bool, "int": int | None, "float": float | None, "str": str | None, "bool": bool | None,
}  # fmt: skip


HELP = frozenset({"-h", "--help"})
_NO_EFFECT = {
    "cache-dataset": "the operating system caches the files",
    "loss_scale": "fp32 and bf16 need no loss scaling (the original never read it either)",
    "local_rank": "ranks come from the launcher's environment (RANK, OMPI_COMM_WORLD_RANK)",
}


@dataclass(frozen=True)
class Resolved:
    """A configuration, what was set by hand, and what is to be said about it."""

    config: Config
    by_hand: frozenset[str]
    notes: list[str] = field(default_factory=list)


def resolve_config(argv: Sequence[str], prog: str, description: str) -> Resolved:
    """Read the flags of a run; `--help` prints them, with the recipe's values, and leaves."""
    plugins = load_plugins()
    flags = [f for some in plugins.ask("vitcore_flags") for f in some]
    settings = _with_flags(flags)
    given = read_flags([a for a in _print_step_values(argv) if a not in HELP], settings, prog)
    recipe = given.get("recipe") or recipe_for(given.get("dataset"))
    values = {**load_recipe(recipe), "recipe": recipe}
    if set(argv) & HELP:
        print(help_text(settings(**values), prog, description, flags))
        raise SystemExit(0)
    own = {f.name for f in dataclasses.fields(Config)}
    config = Config(**{**values, **{n: v for n, v in given.items() if n in own}, "recipe": recipe})
    if "name" not in given and "name" not in values:
        config = dataclasses.replace(config, name=config.recipe_name)
    return _legacy(config, flags, given, plugins.complaints)


def _print_step_values(argv: Sequence[str]) -> list[str]:
    """A bare `--print-step` means text."""
    out: list[str] = []
    for flag, following in zip(argv, [*argv[1:], "--"]):
        bare = flag in ("--print-step", "--print_step") and following.startswith("-")
        out += [flag, "text"] if bare else [flag]
    return out


def _with_flags(flags: Sequence[Flag]) -> type[Config]:
    """Config with the plugins' flags as further fields."""
    taken = {f.name for f in dataclasses.fields(Config)}
    extra: list[Any] = []
    for flag in flags:
        if flag.name in taken or flag.kind not in _KINDS:
            why = "the name is taken" if flag.name in taken else f"kind {flag.kind!r} is none of {', '.join(_KINDS)}"
            raise VitcoreError(
                f"a plugin's flag --{flag.name}: {why}; correct the plugin, or leave it out with VITCORE_PLUGINS"
            )
        taken.add(flag.name)
        default = False if flag.kind == "switch" else None
        extra.append((flag.name, _KINDS[flag.kind], dataclasses.field(default=default)))
    return dataclasses.make_dataclass("Run", extra, bases=(Config,), frozen=True, kw_only=True)


def _legacy(config: Config, flags: Sequence[Flag], given: dict[str, Any], notes: Sequence[str]) -> Resolved:
    """Carry out what legacy flags mean today, and say it in one line each."""
    notes = list(notes)
    for flag in flags:
        if given.get(flag.name) is not None and given[flag.name] is not False:
            effect = flag.effect if callable(flag.effect) else resolve(flag.effect)
            changes, line = effect(given[flag.name], given)
            config = dataclasses.replace(config, **check_keys(changes, f"a plugin's flag --{flag.name}"))
            notes.append(line)
    if config.autocast and given.get("precision") not in (None, "bf16"):
        if given.get("autocast"):
            raise VitcoreError(f"--autocast means bf16, but --precision is {config.precision}; give one of the two")
        config = dataclasses.replace(config, autocast=False)  # the flag overrides the recipe
    if config.autocast:
        config = dataclasses.replace(config, precision="bf16")
        notes.append("--autocast means --precision bf16")
    notes += [f"--{name} has no effect: {why}" for name, why in _NO_EFFECT.items() if name.replace("-", "_") in given]
    if config.internal_perf_measure and config.pretrained_dir:
        notes.append(f"--internal-perf-measure: {config.pretrained_dir} is not loaded; starting from RANDOM weights, "
                     "so accuracy means nothing")  # fmt: skip
        config = dataclasses.replace(config, pretrained_dir=None)
    elif given.get("internal_perf_measure"):
        notes.append("--internal-perf-measure has no effect: the run starts from random weights anyway")
    return Resolved(config, frozenset(given), notes)


def say(line: str) -> None:
    """One line to the person at the terminal, on standard error, where it is in nobody's way."""
    print(f"vitcore: {line}", file=sys.stderr)
