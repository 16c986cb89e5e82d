"""`python -m vitcore.new_backend NAME`: write an installable plugin for a device, to be filled in."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated

import tyro

from vitcore.cli import run
from vitcore.commandline import parse
from vitcore.errors import VitcoreError
from vitcore.plugins import load_plugins

TEMPLATE = Path(__file__).parent / "template"
# File of the template -> file of the plugin.
FILES = {
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "module.py.txt": "$module.py",
    "tests/test.py.txt": "tests/test_$identifier.py",
}


@dataclass(frozen=True, kw_only=True)
class NewBackend:
    """What the backend is called, and where the plugin goes."""

    name: Annotated[str, tyro.conf.Positional]
    """Name that --backend will take: lower-case letters, digits and single dashes."""
    device: str | None = None
    """Torch's name of the device type; unset: the host's, so that the plugin runs before anything is changed."""
    output: str | None = None
    """Folder to write; unset: vitcore-NAME here. It must not exist."""


def main(argv: Sequence[str]) -> int:
    """Write the folder and say what to do next."""
    asked = parse(NewBackend, argv, "vitcore new-backend", __doc__ or "")
    backends = load_plugins().backends
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", asked.name):
        raise VitcoreError(f"{asked.name!r} is no name for a backend: lower-case letters, digits and single dashes, a letter "
                           "first, such as mydev")  # fmt: skip
    if asked.name in backends:
        raise VitcoreError(
            f"a backend named {asked.name!r} is installed already; choose another name, or uninstall its package"
        )
    # The host's type, from the backend that is tried last: it runs anywhere.
    host = min(backends.values(), key=lambda b: b.rank).device if backends else ""
    device = asked.device or host
    if not re.fullmatch(r"[a-z][a-z0-9_]*", device):
        raise VitcoreError(f"--device {device!r} is no name of a torch device type; give one, without a number")
    folder = write(Path(asked.output or f"vitcore-{asked.name}"), asked.name, device)
    print(f"wrote {folder}; next: pip install -e {folder}, then vitcore conformance --backend {asked.name}")
    return 0


def write(folder: Path, name: str, device: str) -> Path:
    """The plugin's files in a folder that appears whole or not at all."""
    if folder.exists():
        raise VitcoreError(f"{folder}: it exists already; choose another --output, or remove it first")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        for path, text in rendered(name, device).items():
            (temporary / path).parent.mkdir(exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    except OSError as e:
        raise VitcoreError(f"{folder}: it cannot be written ({e.strerror}); choose another --output") from e
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def rendered(name: str, device: str) -> dict[str, str]:
    """Each file of the plugin, by its path, as text."""
    identifier = name.replace("-", "_")
    words = {
        "name": name, "device": device, "identifier": identifier, "module": f"vitcore_{identifier}",
        "class_name": "".join(part.capitalize() for part in name.split("-")),
    }  # fmt: skip
    return {
        Template(path).substitute(words): Template((TEMPLATE / source).read_text(encoding="utf-8")).substitute(words)
        for source, path in FILES.items()
    }


if __name__ == "__main__":
    sys.exit(run(main))
