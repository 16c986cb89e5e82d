"""Recipes: listed and shown, on top of others, lowered for every backend, and each one run for two steps on small pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitcore.config import Config
from vitcore.errors import VitcoreError
from vitcore.recipes import load_recipe, recipe_files
from vitcore.recipes.show import claim

SHIPPED = {p.stem: p for p in sorted((Path(__file__).parents[2] / "vitcore" / "recipes").glob("*.toml"))}
OF_IMAGENET = ("imagenet1k_sgd", "vit_paper_finetune", "augreg", "deit3_small_budget")
HERE = ("--model_type ViT-Ti_16 --img_size 32 --pretrained_dir None --train_batch_size 8 --gradient_accumulation_steps 2 "
        "--eval_batch_size 4 --num_steps 2 --warmup_steps 1 --eval_every 0 --backend cpu --threads 1 "
        "--workers 0").split()  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.jpg")
    return folder


def test_the_list_names_every_recipe_with_its_claim(vit: Callable[..., Any]) -> None:
    done = vit("recipes")
    assert done.code == 0
    rows = done.out.splitlines()
    for name, path in recipe_files().items():
        (row,) = [r for r in rows if r.split()[:1] == [name]]
        assert claim(path) in row and len(claim(path)) > 20
    everything = json.loads(vit("recipes", "--json").out)
    assert everything == {n: json.loads(json.dumps(load_recipe(n))) for n in recipe_files()}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_head_of_a_recipe_has_its_claim_command_and_what_was_measured(name: str) -> None:
    head = [line for line in SHIPPED[name].read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("python -m vitcore.train" in line or "-m vitcore.train" in line for line in head)
    assert any("easured" in line or "not measured" in line for line in head)
    Config(**load_recipe(name))


def test_a_recipe_is_shown_with_what_its_base_sets(vit: Callable[..., Any]) -> None:
    shown = vit("recipes", "habana_vit_imagenet1k")
    assert shown.code == 0 and 'base = "imagenet1k_sgd"' in shown.out and "learning_rate = 0.06" in shown.out
    assert "is unknown" in vit("recipes", "digit").refusal


def test_a_recipe_on_another_says_only_what_differs(train: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "digits"\nnum_steps = 7\n')
    (tmp_path / "yours.py").write_text('recipe = {"base": "mine.toml", "learning_rate": 0.5}\n')
    config = json.loads(train("--recipe", tmp_path / "yours.py", "--dry-run").out)
    digits = load_recipe("digits")
    assert {k: config[k] for k in digits} == json.loads(json.dumps({**digits, "num_steps": 7, "learning_rate": 0.5}))


def test_bases_in_a_circle_and_bases_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('base = "two.toml"\n')
    (tmp_path / "two.toml").write_text('base = "one.toml"\n')
    with pytest.raises(VitcoreError, match=r"leads back to itself \(one.toml -> two.toml -> one.toml\)"):
        load_recipe(str(tmp_path / "one.toml"))
    (tmp_path / "three.toml").write_text("base = 3\n")
    with pytest.raises(VitcoreError, match="base = 3 is no recipe"):
        load_recipe(str(tmp_path / "three.toml"))
    (tmp_path / "four.toml").write_text('base = "nowhere.toml"\n')
    with pytest.raises(VitcoreError, match="does not exist"):
        load_recipe(str(tmp_path / "four.toml"))


@pytest.mark.parametrize("backend", ["cpu", "cuda", "hpu-lazy", "hpu-eager"])
@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_is_lowered_for_every_backend(name: str, backend: str, vit: Callable[..., Any]) -> None:
    done = vit("lower", "--recipe", name, "--backend", backend)
    assert done.code == 0 and f"lowered:{backend} @train(" in done.out


@pytest.mark.parametrize("name", OF_IMAGENET)
def test_a_recipe_of_imagenet_runs_on_small_pictures(name: str, tree: Path, train: Callable[..., Any]) -> None:
    done = train("--recipe", name, "--data_path", tree, *HERE, "--json")
    assert done.code == 0, done
    result = json.loads(done.out.splitlines()[-1])
    assert (result["steps"], result["total"]) == (2, 6)
