"""The step compiler stays small: a new feature is an op, a kernel and a golden, and the budget is counted here."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import vitcore.step.ir

STEP = Path(vitcore.step.ir.__file__).parent
BUDGET = 1200

_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def docstring_lines(tree: ast.Module) -> set[int]:
    """The lines of docstrings, those that stand under a field included: statements that are nothing but a string."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def code_lines(text: str) -> int:
    """Lines that hold code: not blank, not a comment alone, not a docstring."""
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _SILENT:
            held.update(range(token.start[0], token.end[0] + 1))
    return len(held - docstring_lines(ast.parse(text)))


def test_the_counter_counts_code_alone() -> None:
    text = '"""Doc\nof two lines."""\n\n# a comment\nx = 1  # counts\ny = """of\n\nthree"""\n'
    text += 'class C:\n    z: int\n    """Field."""\n'
    assert code_lines(text) == 1 + 3 + 2


def test_the_step_compiler_stays_within_its_budget() -> None:
    counts = {str(path.relative_to(STEP)): code_lines(path.read_text(encoding="utf-8")) for path in STEP.rglob("*.py")}
    listed = "\n".join(f"{n:5d} {name}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
    assert sum(counts.values()) < BUDGET, f"vitcore/step has {sum(counts.values())} lines of code\n{listed}"


def test_a_pass_stays_within_forty_lines_of_code_or_explains_itself() -> None:
    long = {p.stem: n for p in (STEP / "passes").glob("*.py") if (n := code_lines(p.read_text(encoding="utf-8"))) > 40}
    # form_regions is one walk and the closing of a region: two ideas that are of no use apart.
    assert long.keys() <= {"form_regions"}, long
