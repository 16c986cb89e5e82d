"""What only describes and prints imports nothing heavy, whatever the machine's speed: a bound on modules, not on time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

HEAVY = ("torch", "torchvision", "numpy", "tensorboard", "rich", "safetensors", "PIL")
BACKENDS = ("cpu", "cuda", "hpu-lazy", "hpu-eager")
LIGHT = [
    ["--help"],
    ["--version"],
    ["train", "--help"],
    ["evaluate", "--help"],
    ["lower", "--help"],
    ["explain", "--help"],
    ["backends", "--help"],
    ["backends"],
    ["backends", "--json"],
    *(["lower", "--backend", name, "--precision", "bf16", "--explain"] for name in BACKENDS),
    *(["lower", "--recipe", "imagenet1k_sgd", "--backend", name, "--print-step=python"] for name in BACKENDS),
    ["train", "--dry-run"],
    ["train", "--print-step=lowered"],
    ["train", "--recipe", "digts"],
    ["train", "--model_type", "R50-ViT-B16"],
    ["inspect", "--help"],
    ["export", "--help"],
    ["predict", "--help"],
    ["bench", "--help"],
    ["bench", "compare", "--help"],
    ["attention", "--help"],
    ["conformance", "--help"],
    ["new-backend", "--help"],
    ["new-backend", "mydev"],
]
# One process for all: what any of them imports stays to be seen, and the first to import it is named.
PROBE = """
import contextlib, io, json, sys
from vitcore.cli import main
heavy, seen = set(json.loads(sys.argv[2])), {}
for argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main(argv)
        except SystemExit as e:
            code = int(e.code or 0)
    seen[" ".join(argv)] = [code, len(out.getvalue() + err.getvalue()), sorted(heavy & set(sys.modules))]
print(json.dumps(seen))
"""


def test_help_listing_lowering_and_refusing_a_name_import_nothing_heavy(shell: Callable[..., Any]) -> None:
    done = shell("-c", PROBE, json.dumps(LIGHT), json.dumps(HEAVY))
    assert done.code == 0, done.err
    seen = json.loads(done.out)
    assert len(seen) == len(LIGHT)
    for argv, (code, printed, imported) in seen.items():
        assert not imported, f"vitcore {argv} imported {imported}"
        assert printed > 5 and code == (2 if "digts" in argv or "B16" in argv else 0)


def test_the_modules_that_are_commands_import_nothing_heavy_either(shell: Callable[..., Any]) -> None:
    for verb, argv in (("train", ["--help"]), ("backends", []), ("lower", ["--backend", "hpu-lazy"])):
        done = shell("-X", "importtime", "-m", f"vitcore.{verb}", *argv)
        imported = {
            line.rsplit("|", 1)[-1].strip() for line in done.err.splitlines() if line.startswith("import time:")
        }
        assert done.code == 0 and done.out and "vitcore.errors" in imported, done.err
        assert not imported & set(HEAVY), verb


def test_every_backend_is_lowered_for_on_any_machine(vit: Callable[..., Any]) -> None:
    for name in BACKENDS:
        done = vit("lower", "--backend", name)
        assert done.code == 0 and f"lowered:{name} @train(" in done.out and not done.err
    assert "rt.mark {after=update}" in vit("lower", "--backend", "hpu-lazy").out
    assert "rt.mark" not in vit("lower", "--backend", "hpu-eager").out


def test_the_listing_says_where_each_backend_came_from_and_why_it_cannot_run(vit: Callable[..., Any]) -> None:
    listed = json.loads(vit("backends", "--json").out)
    assert (
        set(listed) == {"backends", "failed", "imports_torch"} and not listed["failed"] and not listed["imports_torch"]
    )
    rows = {row["name"]: row for row in listed["backends"]}
    assert set(BACKENDS) <= set(rows)
    assert rows["cpu"]["runs_here"] is True and rows["cpu"]["reason"] is None
    assert rows["cpu"]["from"].startswith("vitcore ") and rows["cpu"]["from"].endswith("(vitcore_cpu)")
    assert rows["hpu-lazy"]["lazy"] is True and rows["hpu-eager"]["lazy"] is False
    plain = vit("backends").out
    for row in rows.values():
        assert row["runs_here"] is (row["reason"] is None)
        assert f"{row['name']:<12} {'runs here' if row['runs_here'] else 'cannot run here'}\n" in plain
        assert row["from"] in plain and (row["reason"] or "") in plain
