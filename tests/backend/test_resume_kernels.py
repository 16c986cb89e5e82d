"""A run that goes on takes the kernels that it took before, whatever is measured by then."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vitcore import tuning
from vitcore.config import Config
from vitcore.plan import make_plan
from vitcore.recipes import load_recipe
from vitcore.training import train

CONFIG = Config(**{**load_recipe("digits"), "backend": "cpu", "eval_every": 0, "log_every": 1, "num_steps": 2})


def fastest(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Measurements of a user whose fastest attention is this one."""
    seconds = dict.fromkeys(("products", "products_padded", "fused_forward", "sdpa"), 2.0) | {name: 1.0}
    monkeypatch.setenv("VITCORE_CACHE", str(folder / name))
    monkeypatch.setattr("vitcore_cpu.attention.measure", lambda shape: seconds)


def taken(config: Config) -> str:
    text = str(make_plan(config).lowered["train"])
    return text.split("self_attention=")[1].split("}")[0].split(",")[0]


def test_a_run_that_goes_on_takes_the_kernels_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, output_dir=str(tmp_path / "runs"))
    fastest("sdpa", monkeypatch, tmp_path)
    assert taken(config) == "sdpa"
    done = train(make_plan(config), quiet=True)
    fastest("fused_forward", monkeypatch, tmp_path)
    assert taken(config) == "fused_forward"
    assert done.checkpoint is not None
    assert taken(replace(config, resume=done.checkpoint)) == taken(replace(config, resume=done.run_dir)) == "sdpa"


def test_a_checkpoint_that_says_nothing_of_it_is_measured_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastest("sdpa", monkeypatch, tmp_path)
    for facts in ({}, {"measured": None}, {"measured": {"backend": "another", "slower": ["sdpa"]}}):
        (tmp_path / "state.json").write_text(json.dumps({"facts": facts}))
        assert taken(replace(CONFIG, resume=str(tmp_path))) == "sdpa"
    assert [*tuning.folder().glob("*.json")], "and kept"
