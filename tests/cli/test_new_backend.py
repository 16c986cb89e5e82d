"""`vitcore new-backend`: what it writes, and what it refuses."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from vitcore.backend import Backend
from vitcore.new_backend import FILES, TEMPLATE, rendered

RENDERED = Path(__file__).parents[2] / "plugins" / "template"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }


def test_the_rendered_template_in_the_repository_is_what_it_writes(vit: Callable[..., Any], tmp_path: Path) -> None:
    done = vit("new-backend", "mydev")
    assert done.code == 0 and done.out.startswith(
        "wrote vitcore-mydev; next: pip install -e vitcore-mydev, then vitcore conf"
    )
    assert contents(tmp_path / "vitcore-mydev") == contents(RENDERED), (
        "plugins/template is not `vitcore new-backend mydev` any more; write it anew: remove the folder, and run "
        "vitcore new-backend mydev --output plugins/template"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["vitcore-mydev"], "nothing else is left"


def test_every_file_of_the_template_is_written() -> None:
    assert {str(p.relative_to(TEMPLATE)) for p in TEMPLATE.rglob("*.txt")} == {*FILES}


@pytest.mark.parametrize(("name", "module", "test_class"), [("mydev", "vitcore_mydev", "TestMydev"),
                                                           ("my-dev-2", "vitcore_my_dev_2", "TestMyDev2")])  # fmt: skip
def test_names_become_those_of_modules_and_classes(name: str, module: str, test_class: str) -> None:
    files = rendered(name, "foo")
    assert {*files} == {"pyproject.toml", "README.md", f"{module}.py", f"tests/test_{module[8:]}.py"}
    assert (
        f'{name} = "{module}"' in files["pyproject.toml"]
        and f"class {test_class}(" in files[f"tests/test_{module[8:]}.py"]
    )
    for path, text in files.items():
        assert "$" not in text, path
        if path.endswith(".py"):
            ast.parse(text)


def test_the_device_is_the_hosts_or_the_one_that_is_named(vit: Callable[..., Any], tmp_path: Path) -> None:
    vit("new-backend", "one")
    vit("new-backend", "two", "--device", "foo", "--output", "deeper/two")
    assert 'device="cpu",' in (tmp_path / "vitcore-one/vitcore_one.py").read_text()
    assert 'device="foo",' in (tmp_path / "deeper/two/vitcore_two.py").read_text()


def test_a_strangers_backend_is_not_taken_for_the_host(
    install: Callable[..., Path], vit: Callable[..., Any], tmp_path: Path
) -> None:
    install("vitcore_odd", rendered("odd", "foo")["vitcore_odd.py"], entry="odd")
    vit("new-backend", "mydev")
    assert 'device="cpu",' in (tmp_path / "vitcore-mydev/vitcore_mydev.py").read_text()
    sys.modules.pop("vitcore_odd", None)


def test_without_vitcores_own_backends_the_device_is_asked_for(
    vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VITCORE_PLUGINS", "")
    assert vit("new-backend", "mydev").refusal.endswith("is not known; give --device, or unset VITCORE_PLUGINS")
    assert not [*tmp_path.iterdir()]
    assert vit("new-backend", "mydev", "--device", "foo").code == 0


def test_every_field_of_a_backend_is_shown_with_what_it_is() -> None:
    text = rendered("mydev", "foo")["vitcore_mydev.py"]
    shown = {
        line.split("=")[0].strip(): line
        for line in text.splitlines()
        if line.startswith("    ") and "=" in line and "#" in line
    }
    assert {*shown} >= {*Backend.__dataclass_fields__} - {"simulator"}, {*Backend.__dataclass_fields__} - {*shown}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("new-backend MyDev", "'MyDev' is no name for a backend"),
        ("new-backend 2dev", "'2dev' is no name for a backend"),
        ("new-backend my_dev", "'my_dev' is no name for a backend"),
        ("new-backend cpu", "a backend named 'cpu' is installed already"),
        ("new-backend hpu", "a plugin named 'hpu' is installed already"),
        ("new-backend unittest-x", "a module named 'vitcore_unittest_x' is installed already"),
        ("new-backend auto", "--backend auto means the best backend that can run here"),
        (f"new-backend {'long' * 99}", "it cannot be written (File name too long)"),
        ("new-backend mydev --output loose", "loose: it exists already; choose another --output"),
        ("new-backend mydev --output there", "there: it exists already; choose another --output"),
        ("new-backend mydev --output file/inside", "file/inside: it cannot be written"),
        ("new-backend mydev --device foo:0", "--device 'foo:0' is no name of a torch device type"),
    ],
)
def test_what_is_refused_leaves_nothing(
    argv: str, words: str, vit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loose").symlink_to("nowhere")
    monkeypatch.setitem(sys.modules, "vitcore_unittest_x", module_from_spec(ModuleSpec("vitcore_unittest_x", None)))
    assert words in vit(*argv.split()).refusal
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loose", "there"]
    assert not [*(tmp_path / "there").iterdir()]


@pytest.mark.parametrize("at", ["write_text", "replace"])
def test_a_disk_that_is_full_half_way_leaves_nothing(
    at: str, vit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> NoReturn:
        assert [*tmp_path.rglob("pyproject.toml")], "it fails half-way"
        raise OSError(errno.ENOSPC, "No space left on device")

    def second(path: Path, text: str, **kwargs: Any) -> int:
        return written(path, text, **kwargs) if path.name == "pyproject.toml" else full()

    written = Path.write_text
    with monkeypatch.context() as patched:
        patched.setattr(*((Path, at, second) if at == "write_text" else (os, at, full)))
        assert "vitcore-mydev: it cannot be written (No space left on device)" in vit("new-backend", "mydev").refusal
    assert not [*tmp_path.iterdir()]


def test_it_installs_with_pip_and_is_listed_and_lowered(
    vit: Callable[..., Any], shell: Callable[..., Any], tmp_path: Path
) -> None:
    """The whole way of a newcomer; pip fetches hatchling for the build, so this needs a package registry."""
    assert vit("new-backend", "mydev").code == 0
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--target", "site", "./vitcore-mydev"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = {"PYTHONPATH": tmp_path / "site"}
    assert "from vitcore-mydev 0.1.0 (vitcore_mydev)" in shell("-m", "vitcore", "backends", **installed).out
    lower = "-m vitcore lower --backend mydev --recipe digits".split()
    assert "impl=mydev_sgdm" in shell(*lower, "--optimizer", "sgdm", **installed).out
    adamw = shell(*lower, **installed)
    assert "lowered:mydev @train(" in adamw.out and "mydev_sgdm" not in adamw.out, "digits has AdamW: nothing to claim"


def test_it_is_listed_and_lowered_with_its_kernel(install: Callable[..., Path], vit: Callable[..., Any]) -> None:
    install("vitcore_mydev", rendered("mydev", "cpu")["vitcore_mydev.py"], entry="mydev", distribution="vitcore-mydev")
    assert any(line.split()[:1] == ["mydev"] for line in vit("backends").out.splitlines())
    assert "impl=mydev_sgdm" in vit("lower", "--backend", "mydev", "--recipe", "imagenet1k_sgd").out
    assert (
        "mydev_sgdm refused: only momentum SGD"
        in vit("lower", "--backend", "mydev", "--recipe", "digits", "--explain").out
    )
    sys.modules.pop("vitcore_mydev", None)
