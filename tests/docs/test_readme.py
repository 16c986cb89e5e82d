"""The README's claims, checked against what is there."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DIGITS_BY_NEAREST_NEIGHBOUR = 95.6


def blocks(language: str) -> list[str]:
    """The texts of the fenced blocks of a language, "" for none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
    return [text for kind, text in found if kind == language]


def test_the_step_in_the_readme_is_the_one_that_is_built() -> None:
    from vitcore.step.build import StepSpec, build

    shown = next(b for b in blocks("") if b.startswith("step @train"))
    assert shown == str(build(StepSpec(name="x", optimizer="sgdm", accumulation=16))["train"])


def test_the_readme_has_two_shell_blocks_that_install_and_train_or_test() -> None:
    train, test = blocks("sh")
    assert train.strip().endswith("python -m vitcore.train")
    assert test.strip().endswith("python -m pytest")
    assert all(b.count("\n") == 1 and "pip install" in b for b in (train, test))


def test_the_backend_in_the_readme_loads_lowers_and_claims_its_op(tmp_path: Path) -> None:
    (tmp_path / "vitcore_mydev.py").write_text(blocks("python")[0], encoding="utf-8")
    info = tmp_path / "vitcore_mydev-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vitcore-mydev\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vitcore]\nmydev = vitcore_mydev\n")
    command = "-m vitcore lower --recipe imagenet1k_sgd --backend mydev"
    done = subprocess.run(
        [sys.executable, *command.split()], env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "flushes=0/0/1, impl=sgdm_then_mark" in done.stdout
    code = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(code) <= 20, "the README promises a backend in 20 lines"


def test_every_verb_has_its_row() -> None:
    from vitcore.cli import VERBS

    for verb in VERBS:
        assert re.search(rf"^\| `vitcore {verb}\b", README, re.M), verb


def test_every_hook_is_documented_with_its_arguments() -> None:
    from vitcore.hooks import Hooks

    page = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    hooks = {n: f for n, f in vars(Hooks).items() if n.startswith("vitcore_")}
    assert hooks
    for name, hook in hooks.items():
        arguments = ", ".join(p for p in inspect.signature(hook).parameters if p != "self")
        assert f"### {name}({arguments})\n" in page, name


def test_every_rule_and_pass_is_documented() -> None:
    from vitcore.step.pipeline import PIPELINE

    page = (ROOT / "docs/program.md").read_text(encoding="utf-8")
    assert all(f"| V{n} |" in page for n in range(1, 15))
    assert all(f"`{p.name}`" in page for p in PIPELINE)


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("recipe", ["digits"])
def test_the_readmes_train_command_learns_digits(recipe: str, tmp_path: Path) -> None:
    """One seed to the end, as a newcomer runs it; the mean over three seeds stands in docs/evidence.md."""
    command = shlex.split(blocks("sh")[0].rsplit("&&", 1)[1])
    arguments = [*command[1:], "--json", "--output_dir", str(tmp_path)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["total"] == 360
    # One seed of 360 images wavers by about 0.5 points around its mean, which is well above this figure.
    assert result["accuracy"] >= DIGITS_BY_NEAREST_NEIGHBOUR - 1.0, result
