"""The command line as a caller meets it: in this process where that is enough, in one of its own where it is the point."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vitcore import cli
from vitcore.plugins import load_plugins

# A run of a second: three steps of 16 digits each.
QUICK = "--threads 1 --num_steps 3 --train_batch_size 16 --eval_batch_size 360 --eval_every 0 --warmup_steps 0".split()


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def notes(self) -> list[str]:
        """The lines that a command says to people."""
        return [line.removeprefix("vitcore: ") for line in self.err.splitlines() if line.startswith("vitcore: ")]

    @property
    def refusal(self) -> str:
        """The one line of a refusal: exit code 2, nothing on standard output, no traceback."""
        assert self.code == 2 and not self.out, self
        assert "Traceback" not in self.err, self.err
        errors = [line for line in self.err.splitlines() if "error: " in line]
        assert len(errors) == 1 and self.err.endswith(f"{errors[0]}\n"), self.err
        assert errors[0].startswith("vitcore: error: "), self.err
        return errors[0].removeprefix("vitcore: error: ")


def environment() -> dict[str, str]:
    """This process's environment without what a launcher, a debugger or a terminal would have said."""
    said = ("VITCORE_", "OMPI_", "COLUMNS", "FORCE_COLOR", "PYTHONPATH", "RANK", "WORLD_SIZE")
    # The processor is the best device for whom no other can be seen.
    return {k: v for k, v in os.environ.items() if not k.startswith(said)} | {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def vit(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Done]]:
    """`vitcore ARGS...` in this process, in an empty folder; plugins are looked for anew."""
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    load_plugins.cache_clear()

    def call(*argv: object) -> Done:
        load_plugins.cache_clear()
        try:
            code = cli.main([str(a) for a in argv])
        except SystemExit as e:
            code = int(e.code or 0)
        return Done(code, *capsys.readouterr())

    yield call
    load_plugins.cache_clear()


@pytest.fixture
def train(vit: Callable[..., Done]) -> Callable[..., Done]:
    """`vitcore train ARGS...`; the arguments may be one string."""
    return lambda *argv: vit("train", *(w for a in argv for w in (a.split() if isinstance(a, str) else [a])))


def shell_at(folder: Path, *argv: object, **env: object) -> Done:
    """`python ARGS...` in a folder, as a process of its own, with further variables of the environment."""
    done = subprocess.run(
        [sys.executable, *map(str, argv)], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**environment(), **{k: str(v) for k, v in env.items()}},
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def shell_in() -> Callable[..., Done]:
    """`shell_at`, for fixtures that serve a whole file."""
    return shell_at


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., Done]:
    """`python ARGS...` in an empty folder, with further variables of the environment as keywords."""
    return lambda *argv, **env: shell_at(tmp_path, *argv, **env)


@pytest.fixture
def quick() -> list[str]:
    """Flags of a run of a second: three steps of 16 digits each."""
    return QUICK


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Install a plugin as pip would: a module NAME.py and its metadata, in a folder on the path, which is returned."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def package(name: str, code: str, *, entry: str | None = None, distribution: str | None = None) -> Path:
        distribution = distribution or name
        (site / f"{name}.py").write_text(code, encoding="utf-8")
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        about = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        (info / "METADATA").write_text(about, encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[vitcore]\n{entry or name} = {name}\n", encoding="utf-8")
        sys.modules.pop(name, None)
        return site

    return package
