"""`python -m vitcore.new_backend NAME`: write an installable plugin for a device, to be filled in."""

from __future__ import annotations

import importlib.util
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
from vitcore.plugins import Plugins, load_plugins
from vitcore.runtime.opening import unavailable

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
    plugins = load_plugins()
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", asked.name):
        raise VitcoreError(f"{asked.name!r} is no name for a backend: lower-case letters, digits and single dashes, a letter "
                           "first, such as mydev")  # fmt: skip
    refuse_taken(asked.name, plugins)
    device = host_device(plugins) if asked.device is None else asked.device
    if not re.fullmatch(r"[a-z][a-z0-9_]*", device):
        raise VitcoreError(f"--device {device!r} is no name of a torch device type; give one, without a number")
    folder = write(Path(asked.output or f"vitcore-{asked.name}"), asked.name, device)
    print(f"wrote {folder}; next: pip install -e {folder}, then vitcore conformance --backend {asked.name}")
    return 0


def refuse_taken(name: str, plugins: Plugins) -> None:
    """A name under which the plugin could not be chosen, or would hide what is installed."""
    if name == "auto":
        raise VitcoreError(
            "--backend auto means the best backend that can run here; choose another name, such as mydev"
        )
    module = module_name(name)
    taken = {f"backend named {name!r}": name in plugins.backends, f"plugin named {name!r}": name in plugins.entries,
             f"module named {module!r}": importlib.util.find_spec(module) is not None}  # fmt: skip
    for what, is_taken in taken.items():
        if is_taken:
            raise VitcoreError(f"a {what} is installed already; choose another name, or uninstall its package")


def host_device(plugins: Plugins) -> str:
    """The host's device type, from the one of vitcore's own backends that is tried last: a stranger's rank says nothing."""
    entries = {name: plugins.entries[origin] for name, origin in plugins.origin.items()}
    own = [plugins.backends[name] for name, e in entries.items() if e.dist is not None and e.dist.name == "vitcore"]
    here = [b for b in own if unavailable(b) is None]
    if not here:
        raise VitcoreError(
            "none of vitcore's own backends can run here, so the host's device type is not known; give --device, or "
            "unset VITCORE_PLUGINS"
        )
    return min(here, key=lambda b: b.rank).device


def module_name(name: str) -> str:
    """The plugin's module."""
    return f"vitcore_{name.replace('-', '_')}"


def write(folder: Path, name: str, device: str) -> Path:
    """The plugin's files in a folder that appears whole or not at all."""
    if os.path.lexists(folder):
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
    words = {
        "name": name, "device": device, "identifier": name.replace("-", "_"), "module": module_name(name),
        "class_name": "".join(part.capitalize() for part in name.split("-")),
    }  # fmt: skip
    return {
        Template(path).substitute(words): Template((TEMPLATE / source).read_text(encoding="utf-8")).substitute(words)
        for source, path in FILES.items()
    }


if __name__ == "__main__":
    sys.exit(run(main))
