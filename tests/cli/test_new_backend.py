"""`vitcore new-backend`: what it writes, and what it refuses."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitcore.backend import Backend
from vitcore.new_backend import FILES, TEMPLATE, rendered

RENDERED = Path(__file__).parents[2] / "plugins" / "template"


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): p.read_text()
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


def test_every_field_of_a_backend_is_shown_with_what_it_is() -> None:
    text = rendered("mydev", "foo")["vitcore_mydev.py"]
    shown = {
        line.split("=")[0].strip(): line
        for line in text.splitlines()
        if line.startswith("    ") and "=" in line and "#" in line
    }
    assert {*shown} >= {*Backend.__dataclass_fields__} - {"leaf"}, {*Backend.__dataclass_fields__} - {*shown}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("new-backend MyDev", "'MyDev' is no name for a backend"),
        ("new-backend 2dev", "'2dev' is no name for a backend"),
        ("new-backend my_dev", "'my_dev' is no name for a backend"),
        ("new-backend cpu", "a backend named 'cpu' is installed already"),
        ("new-backend mydev --output there", "there: it exists already; choose another --output"),
        ("new-backend mydev --output file/inside", "file/inside: it cannot be written"),
        ("new-backend mydev --device foo:0", "--device 'foo:0' is no name of a torch device type"),
    ],
)
def test_what_is_refused_leaves_nothing(argv: str, words: str, vit: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    assert words in vit(*argv.split()).refusal
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "there"] and not [*(tmp_path / "there").iterdir()]


def test_it_is_listed_and_lowered_with_its_kernel(install: Callable[..., Path], vit: Callable[..., Any]) -> None:
    install("vitcore_mydev", rendered("mydev", "cpu")["vitcore_mydev.py"], entry="mydev", distribution="vitcore-mydev")
    assert any(line.split()[:1] == ["mydev"] for line in vit("backends").out.splitlines())
    assert "impl=mydev_sgdm" in vit("lower", "--backend", "mydev", "--recipe", "imagenet1k_sgd").out
    assert (
        "mydev_sgdm refused: only momentum SGD"
        in vit("lower", "--backend", "mydev", "--recipe", "digits", "--explain").out
    )
    sys.modules.pop("vitcore_mydev", None)
