"""From an argument list to a resolved configuration: defaults, then the recipe, then the flags, then what legacy flags
mean. Imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, takewhile
from typing import Annotated, Any

from vitcore.backend import resolve
from vitcore.config import Config, check_keys
from vitcore.errors import VitcoreError
from vitcore.flags import Flag
from vitcore.plugins import load_plugins
from vitcore.recipes import load_recipe, recipe_for

_KINDS: dict[str, Any] = {
    "switch": bool, "int": int | None, "float": float | None, "str": str | None, "bool": bool | None,
}  # fmt: skip

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
    own: dict[str, Any] = field(default_factory=dict)
    """What a verb asks besides a run's settings."""


def resolve_config(argv: Sequence[str], prog: str, description: str, base: type[Config] = Config) -> Resolved:
    """Read the flags of a run; `--help` prints them, with the recipe's values, and leaves. `base` has a verb's own flags
    besides."""
    plugins = load_plugins()
    flags = [f for some in plugins.ask("vitcore_flags") for f in some]
    settings, argv = _with_flags(flags, base) if argv else base, _print_step_values(argv)
    recipe = _last(argv, "recipe") or recipe_for(_last(argv, "dataset"))
    values = {**load_recipe(recipe), "recipe": recipe}
    default = settings(**values)
    # Without flags nothing is parsed, and the parser's hundred modules are not imported.
    parsed = parse(settings, argv, prog, description, default=default) if argv else default
    given = {n: getattr(parsed, n) for n in _named(argv) if hasattr(parsed, n)}
    names = [f.name for f in dataclasses.fields(Config)]
    config = Config(**{n: getattr(parsed, n) for n in names})
    config = dataclasses.replace(config, recipe=recipe)
    if "name" not in given and "name" not in values:
        config = dataclasses.replace(config, name=config.recipe_name)
    resolved = _legacy(config, flags, given, plugins.complaints)
    own = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(base) if f.name not in names}
    return dataclasses.replace(resolved, config=resolved.config.by_file(given), own=own)


def parse(settings: type, argv: Sequence[str], prog: str, description: str, **default: Any) -> Any:
    """The settings as tyro reads them; what it refuses in a box of lines is refused in one, as everything else is."""
    import tyro

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(settings, args=argv, prog=prog, description=description, **default)
    except SystemExit as e:
        if not e.code:
            raise
        raise VitcoreError(f"{_said(box.getvalue())}; see {prog} --help") from None


def _said(box: str) -> str:
    """What stands in a box of tyro's below its title, up to the first rule or empty line, and the flag it proposes."""

    def is_rule(row: str) -> bool:
        return not row.strip("╭╮╰╯─-")

    rows = [*dropwhile(is_rule, (line.strip("│ ") for line in box.splitlines()[1:]))]
    said = " ".join(takewhile(lambda row: not is_rule(row), rows)).rstrip(".")
    proposed = rows[rows.index("Perhaps you meant:") + 1 :] if "Perhaps you meant:" in rows else []
    return f"{said} (did you mean {proposed[0].split()[0]}?)" if proposed else said


def _named(argv: Sequence[str]) -> list[str]:
    """The fields whose flags stand in the argument list; tyro does not say which values are defaults."""
    names = [a[2:].partition("=")[0].replace("-", "_") for a in argv if a.startswith("--")]
    return [*names, *(n.removeprefix("no_") for n in names)]


def _last(argv: Sequence[str], name: str) -> str | None:
    """The last value given to `--name`: which recipe it is decides the defaults that the parser shows."""
    found = None
    for flag, following in zip(argv, [*argv[1:], ""]):
        key, equals, value = flag.partition("=")
        if key == f"--{name}":
            found = value if equals else following
    return found


def _print_step_values(argv: Sequence[str]) -> list[str]:
    """A bare `--print-step` means text."""
    out: list[str] = []
    for flag, following in zip(argv, [*argv[1:], "--"]):
        bare = flag in ("--print-step", "--print_step") and following.startswith("-")
        out += [flag, "text"] if bare else [flag]
    return out


def _with_flags(flags: Sequence[Flag], base: type[Config]) -> type[Config]:
    """Config, or what extends it, with the plugins' flags as further fields."""
    import tyro

    taken = {f.name for f in dataclasses.fields(base)}
    extra: list[Any] = []
    annotated: Any = Annotated  # made at run time, which a type checker would not have
    for flag in flags:
        if flag.name in taken or flag.kind not in _KINDS:
            why = "the name is taken" if flag.name in taken else f"kind {flag.kind!r} is none of {', '.join(_KINDS)}"
            raise VitcoreError(
                f"a plugin's flag --{flag.name}: {why}; correct the plugin, or leave it out with VITCORE_PLUGINS"
            )
        taken.add(flag.name)
        default = False if flag.kind == "switch" else None
        extra.append((flag.name, annotated[_KINDS[flag.kind], tyro.conf.arg(help=flag.help)], field(default=default)))
    return dataclasses.make_dataclass("Run", extra, bases=(base,), frozen=True, kw_only=True)


def _legacy(config: Config, flags: Sequence[Flag], given: dict[str, Any], notes: Sequence[str]) -> Resolved:
    """Carry out what legacy flags mean today, and say it in one line each."""
    notes = list(notes)
    for flag in flags:
        if given.get(flag.name) is not None and given[flag.name] is not False:
            effect = flag.effect if callable(flag.effect) else resolve(flag.effect)
            changes, line = effect(given[flag.name], given)
            if "env" in changes:  # added to what is set, as several flags may mean some
                changes = {**changes, "env": (*config.env, *changes["env"])}
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
