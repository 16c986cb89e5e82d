"""Which flags there are, and how an argument list is read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FROZEN = Path(__file__).parent / "flags.txt"
ORIGINAL = (
    "--name --dataset --data_path --model_type --pretrained_dir --output_dir --img_size --train_batch_size "
    "--eval_batch_size --eval_every --learning_rate --weight_decay --num_steps --decay_type --warmup_steps "
    "--max_grad_norm --local_rank --seed --gradient_accumulation_steps --internal-perf-measure --hmp --hmp-bf16 "
    "--hmp-fp32 --hmp-opt-level --hmp-verbose --loss_scale --cache-dataset --use_hpu --resume --run_lazy_mode --autocast"
).split()
SWITCHES = ("--internal-perf-measure", "--hmp", "--hmp-verbose", "--cache-dataset", "--autocast")
VALUES = {"--dataset": "digits", "--pretrained_dir": "None", "--decay_type": "linear", "--hmp-opt-level": "O1",
          "--hmp-bf16": "ops.txt", "--hmp-fp32": "ops.txt", "--use_hpu": "0", "--run_lazy_mode": "True",
          "--weight_decay": "0", "--local_rank": "-1", "--gradient_accumulation_steps": "2"}  # fmt: skip


def dry(done: Any) -> dict[str, Any]:
    assert done.code == 0, done
    config: dict[str, Any] = json.loads(done.out)
    return config


def flags_in(text: str) -> list[str]:
    """The flags of a help text, in its order, with _ for -."""
    found = re.findall(r"^\W*?(--[a-z][\w-]*)", text, re.M)
    return [f"--{name[2:].replace('-', '_')}" for name in found]


def test_the_flags_are_those_of_the_frozen_list(vit: Callable[..., Any]) -> None:
    now = flags_in(vit("train", "--help").out)
    frozen = FROZEN.read_text(encoding="utf-8").split()
    added, gone = sorted({*now} - {*frozen}), sorted({*frozen} - {*now})
    assert now == frozen, (
        f"the flags of vitcore train changed: added {added}, gone {gone}. Flags are a promise and do not grow by "
        f"accident. If this is meant, add or take out these lines of {FROZEN}, in the order of --help, and say why in the "
        "commit; a flag of the original recipe cannot go."
    )
    assert {f"--{flag[2:].replace('-', '_')}" for flag in ORIGINAL} <= set(frozen)


def test_every_verb_that_takes_a_run_has_the_same_flags(vit: Callable[..., Any]) -> None:
    assert flags_in(vit("lower", "--help").out) == flags_in(vit("train", "-h").out)


def test_help_shows_every_flag_with_a_text_and_the_values_of_the_recipe_that_is_named(
    vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for verb in ("train", "lower", "evaluate"):
        _, *rows = re.split(r"^\W*?(?=--[a-z])", vit(verb, "--help").out, flags=re.M)
        assert len(rows) >= 8
        for row in rows:
            text = re.sub(r"--[\w-]+|\(default: .*\)|[A-Z]{3,}|[^\w ]| {2,}", "", row)
            assert len(text) > 10, f"vitcore {verb} --help has no text for {row}"
    own, theirs = vit("train", "--help").out, vit("train", "--recipe", "imagenet1k_sgd", "--help").out
    assert "(default: ViT-digits)" in own and "(default: ViT-B_16)" in theirs
    assert "The original's name for the backend" in own, "a plugin's flags have their texts too"


@pytest.mark.parametrize("spelled", ["as it was", "dashes", "underscores", "joined"])
def test_every_flag_of_the_original_is_taken_under_its_name(spelled: str, train: Callable[..., Any]) -> None:
    argv: list[str] = []
    for flag in ORIGINAL:
        name = {"dashes": flag[2:].replace("_", "-"), "underscores": flag[2:].replace("-", "_")}.get(spelled, flag[2:])
        value = [] if flag in SWITCHES else [VALUES.get(flag, "2")]
        argv += [f"--{name}={value[0]}"] if value and spelled == "joined" else [f"--{name}", *value]
    config = dry(train(*argv, "--dry-run"))
    assert (config["name"], config["img_size"], config["learning_rate"], config["seed"]) == ("2", 2, 2.0, 2)
    assert (config["decay_type"], config["local_rank"], config["pretrained_dir"]) == ("linear", -1, None)
    assert (config["backend"], config["precision"], config["max_grad_norm"]) == ("cpu", "bf16", 2.0)


@pytest.mark.parametrize(
    "argv",
    [
        "--seed 1 --seed 7",
        "--seed=1 --seed 7",
        "--seed 1 --seed=7",
        "--num-steps 1 --num_steps 9 --seed 7",
        "--num_steps 1 --num-steps 9 --seed=7",
        "--recipe imagenet1k_sgd --recipe digits --seed 7",
        "--dataset imagenet1K --dataset digits --seed 7",
    ],
)
def test_of_repeated_flags_the_last_wins_in_every_spelling(argv: str, train: Callable[..., Any]) -> None:
    config = dry(train(argv, "--dry-run"))
    assert (config["seed"], config["recipe"], config["dataset"]) == (7, "digits", "digits")
    assert "num" not in argv or config["num_steps"] == 9


def test_a_switch_can_be_turned_off_again_also_where_a_recipe_turned_it_on(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    assert dry(train("--json --no-json --dry-run"))["json"] is False
    assert dry(train("--no_json --json --dry-run"))["json"] is True
    (tmp_path / "flip.toml").write_text("augment_flip = true\njson = true\n")
    config = dry(train("--recipe flip.toml --no-augment-flip --dry_run"))
    assert (config["augment_flip"], config["json"]) == (False, True)


def test_values_of_several_words_and_of_none(train: Callable[..., Any]) -> None:
    config = dry(train("--augment-scale 0.5 2 --augment_crop 0.25 1.0 --disable_pass a b --dropout 0.25 --dry-run"))
    assert (config["augment_scale"], config["augment_crop"]) == ([0.5, 2.0], [0.25, 1.0])
    assert (config["disable_pass"], config["dropout"]) == (["a", "b"], 0.25)
    config = dry(train("--augment_crop None --dropout None --disable_pass --dry-run"))
    assert (config["augment_crop"], config["dropout"], config["disable_pass"]) == (None, None, [])


def test_print_step_takes_a_stage_or_none(train: Callable[..., Any]) -> None:
    text, lowered, python = "step @train(", "lowered:cpu @train(", "def train("
    for argv, shown in (
        ("--print-step", text),
        ("--print-step --seed 3", text),
        ("--print_step text", text),
        ("--print-step=lowered", lowered),
        ("--print-step lowered --seed 3", lowered),
        ("--print-step=python", python),
    ):
        done = train(argv)
        assert done.code == 0 and shown in done.out, (argv, done)
    assert train("--print-step=text").out == train("--print-step=text --backend hpu-lazy --precision bf16").out
    assert "rt.mark {after=forward}" in train("--print-step=lowered --backend hpu-lazy").out
    explained = train("--explain --backend hpu-lazy").out
    assert "backend hpu-lazy: asked for" in explained and "kernels that did not take an op" in explained
    assert not Path("output").exists()
