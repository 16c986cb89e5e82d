"""Recipes: named settings of a run, as data. A shipped recipe is a TOML file here whose head says what it claims, the
command, and what was measured; plugins bring more; a user's own is a TOML file or a Python file that sets `recipe`. A recipe
may begin at another one, `base`, and say only what differs. `vitcore recipes` lists and shows them."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitcore.config import check_keys
from vitcore.errors import VitcoreError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Data sets of the original recipe: without --recipe they mean its settings. The digits recipe serves small pictures.
ORIGINAL = "imagenet1k_sgd"
DEFAULT = "digits"
_SMALL = ("digits", "digits-tune", "synthetic")


def recipe_files() -> dict[str, Path]:
    """Every recipe that can be named, with its file; a plugin's recipe may not take a shipped one's name."""
    from vitcore.plugins import load_plugins

    found = {p.stem: p for p in sorted(Path(__file__).parent.glob("*.toml"))}
    for some in load_plugins().ask("vitcore_recipes"):
        for name, path in some:
            if name in found:
                raise VitcoreError(f"two recipes are named {name!r}: {found[name]} and {path}; rename the plugin's")
            found[name] = Path(path)
    return found


def recipe_for(dataset: str | None) -> str:
    """The recipe that a data set means when none is named."""
    return DEFAULT if dataset is None or dataset in _SMALL else ORIGINAL


def load_recipe(recipe: str) -> dict[str, Any]:
    """The settings of a recipe, by name or by file, its base's included; every bad key, value or file is named."""
    return _load(recipe, ())


def _load(recipe: str, above: tuple[Path, ...]) -> dict[str, Any]:
    path = find_recipe(recipe)
    if path.resolve() in above:
        chain = " -> ".join(p.name for p in (*above, path))
        raise VitcoreError(f"recipe {path}: its base leads back to itself ({chain}); take out one base")
    values = _python(path) if path.suffix == ".py" else _toml(path)
    base = values.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise VitcoreError(f"recipe {path}: base = {base!r} is no recipe; give the name or the path of one")
    if base is not None and base.endswith((".toml", ".py")):
        base = str(path.parent / base)
    return {**(_load(base, (*above, path.resolve())) if base else {}), **check_keys(values, f"recipe {path}")}


def find_recipe(recipe: str) -> Path:
    """The file of a recipe, by name or by path; VitcoreError where there is none."""
    path = Path(recipe)
    if path.suffix not in (".toml", ".py"):
        files = recipe_files()
        if recipe not in files:
            known = [*files]
            raise VitcoreError(
                f"recipe {recipe!r} is unknown{nearest(recipe, known)}; choose one of {', '.join(known)}, "
                "or give a .toml or .py file"
            )
        path = files[recipe]
    if not path.is_file():
        raise VitcoreError(f"recipe file {recipe!r} does not exist; give the path of a .toml or .py file")
    return path


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise VitcoreError(f"recipe {path}: not valid TOML: {e}; correct that place") from e


def _python(path: Path) -> dict[str, Any]:
    try:
        values = runpy.run_path(str(path)).get("recipe")
    except Exception as e:  # the user's own code: say what it raised
        raise VitcoreError(f"recipe {path}: running it failed: {type(e).__name__}: {e}") from e
    if not isinstance(values, dict):
        raise VitcoreError(f"recipe {path}: sets no dict called recipe; write recipe = dict(num_steps=1000, ...)")
    return dict(values)


def main(argv: Sequence[str]) -> int:
    """What `vitcore recipes` does."""
    from vitcore.recipes.show import main as show  # what reads a recipe needs no command line

    return show(argv)
