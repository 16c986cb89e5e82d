"""`--compile`: when the leaf `compiled` is taken, what is said of it, and that the next process finds what was compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vitcore.config import Config
from vitcore.errors import VitcoreError
from vitcore.plan import Plan, make_plan

CONFIG = Config(model_type="ViT-S_16", img_size=224, train_batch_size=64, backend="cpu")


def planned(**settings: object) -> Plan:
    return make_plan(replace(CONFIG, **settings), to_run=False)  # type: ignore[arg-type]


def test_nothing_is_compiled_unasked() -> None:
    assert "impl=compiled" not in planned().show("lowered") and planned().notes == ()


@pytest.mark.parametrize("backend", ["cpu", "cuda", "hpu-eager"])
def test_what_is_asked_for_is_in_the_text(backend: str) -> None:
    text = planned(backend=backend, compile="yes").show("lowered")
    assert "model.apply" in text and text.count("impl=compiled") == 2


def test_a_backend_without_the_leaf_refuses_it_by_name() -> None:
    with pytest.raises(VitcoreError, match="--compile yes: backend 'hpu-lazy' has no leaf"):
        planned(backend="hpu-lazy", compile="yes")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(VitcoreError, match=r"needs a C\+\+ compiler here.*install g\+\+"):
        planned(compile="yes")
    (said,) = planned(compile="auto").notes
    assert said.startswith("compile auto: no; ") and "install g++" in said


@pytest.mark.parametrize(("steps", "taken"), [(100, False), (1_000_000, True)])
def test_auto_takes_it_where_the_run_is_long_enough(steps: int, taken: bool) -> None:
    plan = planned(compile="auto", num_steps=steps)
    assert ("impl=compiled" in plan.show("lowered")) is taken
    (said,) = plan.notes
    assert said.startswith(f"compile auto: {'yes' if taken else 'no'}; the run has ") and "7e+14 on here" in said


RUN = """
import sys
from vitcore.cli import run
from vitcore.train import main
code = run(main, sys.argv[1:])
from torch._inductor.utils import fresh_inductor_cache
from torch._dynamo.utils import counters
print(dict(counters["aot_autograd"]) | dict(counters["inductor"]), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_compiled(tmp_path: Path) -> None:
    hits = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", RUN, "--backend", "cpu", "--compile", "yes", "--num_steps", "2", "--eval_every", "0",
             "--output_dir", str(tmp_path / "runs"), "--json"],
            capture_output=True, text=True, env={**os.environ, "VITCORE_CACHE": str(tmp_path / "cache")}, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["steps"] == 2
        counters = eval(done.stderr.splitlines()[-1])
        hits.append((counters.get("autograd_cache_hit", 0), counters.get("autograd_cache_miss", 0)))
    (first_hits, first_misses), (second_hits, second_misses) = hits
    assert (first_hits, second_misses) == (0, 0) and first_misses == second_hits > 0, hits
    assert [*(tmp_path / "cache" / "inductor").iterdir()]
