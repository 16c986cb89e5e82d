"""`vitcore recipes`: list the recipes, or show one with all that it sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vitcore.commandline import parse
from vitcore.recipes import find_recipe, load_recipe, recipe_files


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """Which recipe to show."""

    recipe: Annotated[str | None, tyro.conf.Positional] = None
    """Name or file of a recipe; without one, all names are listed."""
    json: bool = False
    """Print JSON: the settings of the recipe, or of all of them by name."""


def main(argv: Sequence[str]) -> int:
    """Print the list, or the file as it stands and what its bases add."""
    asked = parse(Recipes, argv, "vitcore recipes", __doc__ or "")
    if asked.recipe is None:
        files = recipe_files()
        if asked.json:
            print(json.dumps({name: load_recipe(str(path)) for name, path in files.items()}, indent=1))
            return 0
        width = max(map(len, files))
        print("\n".join(f"{name:<{width}}  {claim(path)}" for name, path in files.items()))
        print("\nvitcore recipes NAME shows one; vitcore train --recipe NAME runs it, --dry-run prints its settings")
        return 0
    path, values = find_recipe(asked.recipe), load_recipe(asked.recipe)
    if asked.json:
        print(json.dumps(values, indent=1))
        return 0
    text = path.read_text(encoding="utf-8")
    print(f"# {path}\n{text.rstrip()}")
    beside = [f"{name} = {json.dumps(value)}" for name, value in values.items() if not _sets(text, name)]
    if beside:
        print("\n# from its base\n" + "\n".join(beside))
    return 0


def claim(path: Path) -> str:
    """The first paragraph of a recipe's head."""
    head: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        head.append(line.strip("# "))
    return " ".join(head).rstrip(".") or "(no description)"


def _sets(text: str, name: str) -> bool:
    return any(line.partition("=")[0].strip() == name for line in text.splitlines())
