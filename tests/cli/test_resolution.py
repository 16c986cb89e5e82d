"""What a run comes to: defaults, then the recipe, then the flags, then what legacy flags mean today."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitcore
from vitcore.config import Config
from vitcore.errors import VitcoreError

ORIGINAL = {"model_type": "ViT-B_16", "img_size": 384, "train_batch_size": 512, "eval_batch_size": 64, "eval_every": 100,
            "learning_rate": 0.06, "weight_decay": 0.0, "num_steps": 10000, "decay_type": "cosine",
            "warmup_steps": 500, "max_grad_norm": 1.0, "seed": 42, "gradient_accumulation_steps": 1,
            "optimizer": "sgdm", "momentum": 0.9, "pretrained_dir": "checkpoint/ViT-B_16.npz"}  # fmt: skip


def dry(done: Any) -> dict[str, Any]:
    assert done.code == 0, done
    config: dict[str, Any] = json.loads(done.out)
    return config


def test_no_flags_at_all_are_the_digits_recipe_on_the_best_backend_here(train: Callable[..., Any]) -> None:
    config = dry(train("--dry-run"))
    assert (config["recipe"], config["dataset"], config["backend"]) == ("digits", "digits", "auto")
    assert config["name"] == "digits" and config["pretrained_dir"] is None
    assert set(config) == set(Config().as_dict()), "--dry-run prints every setting, by its name"
    assert re.search(r"^backend \w+: the first that can run here", train("--explain").out)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet1K"])
def test_a_data_set_of_the_original_selects_its_defaults(dataset: str, train: Callable[..., Any]) -> None:
    config = dry(train("--dataset", dataset, "--dry-run"))
    assert {k: config[k] for k in ORIGINAL} == ORIGINAL
    assert (config["dataset"], config["recipe"]) == (dataset, "imagenet1k_sgd")
    refused = train("--dataset", dataset).refusal
    assert refused.startswith("--pretrained_dir checkpoint/ViT-B_16.npz: ")
    assert "--internal-perf-measure" in refused and "--pretrained_dir None" in refused


def test_pretrained_weights_are_refused_by_name_and_never_ignored(train: Callable[..., Any], tmp_path: Path) -> None:
    weights = tmp_path / "ViT-B_16.npz"
    weights.write_bytes(b"weights")
    assert train("--pretrained_dir", weights).refusal.startswith(f"--pretrained_dir {weights}: ")
    (tmp_path / "mine.toml").write_text(f'pretrained_dir = "{weights}"\n')
    assert train("--recipe mine.toml").refusal.startswith(f"--pretrained_dir {weights}: ")


def test_random_weights_in_the_place_of_pretrained_ones_are_said_aloud(train: Callable[..., Any]) -> None:
    done = train("--dataset imagenet1K --internal-perf-measure --data_path nowhere --dry-run")
    assert dry(done)["pretrained_dir"] is None
    assert done.notes == ["--internal-perf-measure: checkpoint/ViT-B_16.npz is not loaded; starting from RANDOM weights, "
                          "so accuracy means nothing"]  # fmt: skip
    done = train("--dataset imagenet1K --internal-perf-measure --data_path nowhere")
    assert "RANDOM" in done.notes[0] and done.refusal.startswith("imagenet1K: nowhere is not a folder")
    assert train("--internal-perf-measure --dry-run").notes == [
        "--internal-perf-measure has no effect: the run starts from random weights anyway"
    ]


def test_flags_override_a_recipe_in_a_file_that_overrides_the_defaults(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "my run.toml").write_text("seed = 5\nlearning_rate = 1\nmomentum = 0.5\naugment_scale = [1, 2]\n")
    (tmp_path / "mine.py").write_text("recipe = dict(seed=2 + 3, learning_rate=1, momentum=0.5, augment_scale=[1, 2])")
    for file, name in (("my run.toml", "my_run"), ("mine.py", "mine")):
        config = dry(train("--recipe", tmp_path / file, "--momentum 0.25 --dry-run"))
        assert (config["seed"], config["learning_rate"], config["momentum"]) == (5, 1.0, 0.25), file
        assert (config["augment_scale"], config["beta1"], config["name"]) == ([1.0, 2.0], 0.9, name)
        assert isinstance(config["learning_rate"], float)
    (tmp_path / "named.toml").write_text('name = "run"\n')
    assert dry(train("--recipe named.toml --dry-run"))["name"] == "run"
    assert dry(train("--recipe named.toml --name other --dry-run"))["name"] == "other"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("learning_rat = 1", "'learning_rat' is no setting of a run (did you mean 'learning_rate'?)"),
        ('seed = "4"', "seed = '4' is not of type int"),
        ("seed = 4.0", "seed = 4.0 is not of type int"),
        ("seed = true", "seed = True is not of type int"),
        ("learning_rate = true", "learning_rate = True is not of type float"),
        ("json = 1", "json = 1 is not of type bool"),
        ("model_type = 3", "model_type = 3 is not of type str"),
        ('optimizer = "adagrad"', "optimizer = 'adagrad' is not of type Literal['sgdm', 'adamw', "),
        ("data_path = 5", "data_path = 5 is not of type str | None"),
        ('dropout = "x"', "dropout = 'x' is not of type float | None"),
        ("augment_scale = [1, 2, 3]", "augment_scale = [1, 2, 3] is not of type tuple[float, float]"),
        ("augment_scale = 1", "augment_scale = 1 is not of type tuple[float, float]"),
        ("disable_pass = [1]", "disable_pass = [1] is not of type tuple[str, ...]"),
        ("[nested]\nseed = 1", "'nested' is no setting of a run"),
    ],
)
def test_a_wrong_key_or_type_in_a_recipe_is_named_with_its_file(
    text: str, complaint: str, train: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "bad.toml").write_text(text)
    assert train("--recipe bad.toml").refusal.startswith(f"recipe bad.toml: {complaint}")


def test_a_recipe_file_that_cannot_be_read_is_named(train: Callable[..., Any], tmp_path: Path) -> None:
    for name, text, complaint in (
        ("bad.toml", "seed =", "recipe bad.toml: not valid TOML: "),
        ("bad.toml", b"\xff\xfe", "recipe bad.toml: not valid TOML: "),
        ("bad.py", "1 / 0", "recipe bad.py: running it failed: ZeroDivisionError: "),
        ("bad.py", "recipe = 3", "recipe bad.py: sets no dict called recipe"),
        ("bad.py", "def (", "recipe bad.py: running it failed: SyntaxError: "),
    ):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        assert train("--recipe", name).refusal.startswith(complaint)
    assert train("--recipe missing.toml").refusal.startswith("recipe file 'missing.toml' does not exist")
    unknown = train("--recipe digts").refusal
    assert unknown.startswith("recipe 'digts' is unknown (did you mean 'digits'?); choose one of ")


@pytest.mark.parametrize(
    ("argv", "backend", "precision"),
    [
        ("--use_hpu 1", "hpu-lazy", "fp32"),
        ("--use-hpu=1 --run-lazy-mode true", "hpu-lazy", "fp32"),
        ("--use_hpu 1 --run_lazy_mode False", "hpu-eager", "fp32"),
        ("--run_lazy_mode 0", "hpu-eager", "fp32"),
        ("--run_lazy_mode True", "hpu-lazy", "fp32"),
        ("--use_hpu 0", "cpu", "fp32"),
        ("--use_hpu 0 --run_lazy_mode false", "cpu", "fp32"),
        ("--use_hpu 1 --backend hpu-lazy", "hpu-lazy", "fp32"),
        ("--use_hpu 1 --backend auto", "hpu-lazy", "fp32"),
        ("--hmp", "auto", "bf16"),
        ("--autocast", "auto", "bf16"),
        ("--hmp --autocast --precision bf16", "auto", "bf16"),
        ("--hmp --no-hmp", "auto", "fp32"),
    ],
)
def test_legacy_flags_choose_backend_and_precision(
    argv: str, backend: str, precision: str, train: Callable[..., Any]
) -> None:
    config = dry(train(argv, "--dry-run"))
    assert (config["backend"], config["precision"]) == (backend, precision)


def test_a_legacy_flag_that_disagrees_with_its_successor_is_refused(train: Callable[..., Any]) -> None:
    for argv, both in (
        ("--use_hpu 0 --backend hpu-lazy", ("--use_hpu", "--backend is hpu-lazy")),
        ("--use_hpu 1 --backend cpu", ("--use_hpu", "--backend is cpu")),
        ("--use_hpu 1 --run_lazy_mode false --backend hpu-lazy", ("--use_hpu", "--backend is hpu-lazy")),
        ("--run_lazy_mode false --backend hpu-lazy", ("--run_lazy_mode", "--backend is hpu-lazy")),
        ("--hmp --precision fp32", ("--hmp", "--precision is fp32")),
        ("--autocast --precision fp32", ("--autocast", "--precision is fp32")),
    ):
        refused = train(argv).refusal
        assert all(part in refused for part in (*both, "give one of the two")), refused
    assert train("--use_hpu 2").refusal.startswith("--use_hpu 2 is neither 0 nor 1; ")
    assert train("--run_lazy_mode maybe").refusal.startswith("--run_lazy_mode 'maybe' is neither true nor false; ")
    assert train("--hmp-opt-level O3").refusal.startswith("--hmp-opt-level O3 is neither O1 nor O2; ")


def test_a_legacy_flag_overrides_what_a_recipe_sets_and_a_flag_overrides_a_legacy_setting(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text('backend = "cpu"\nprecision = "fp32"\n')
    config = dry(train("--recipe mine.toml --use_hpu 1 --hmp --dry-run"))
    assert (config["backend"], config["precision"]) == ("hpu-lazy", "bf16")
    (tmp_path / "old.toml").write_text("autocast = true\n")
    assert dry(train("--recipe old.toml --dry-run"))["precision"] == "bf16"
    config = dry(train("--recipe old.toml --precision fp32 --dry-run"))
    assert (config["precision"], config["autocast"]) == ("fp32", False)


def test_every_legacy_flag_says_its_effect_or_that_it_has_none_in_one_line(train: Callable[..., Any]) -> None:
    flags = {"--use_hpu": "1", "--run_lazy_mode": "true", "--hmp": "", "--hmp-bf16": "a.txt", "--hmp-fp32": "b.txt",
             "--hmp-opt-level": "O2", "--hmp-verbose": "", "--autocast": "", "--loss_scale": "128",
             "--cache-dataset": "", "--local_rank": "0", "--internal-perf-measure": ""}  # fmt: skip
    done = train(*(f"{flag} {value}" for flag, value in flags.items()), "--dry-run")
    assert done.code == 0 and done.err.count("\n") == len(flags) == len(done.notes)
    for flag in flags:
        said = [line for line in done.notes if line.split()[0].rstrip(":") == flag]
        assert len(said) == 1 and (" means " in said[0] or " has no effect: " in said[0]), (flag, done.notes)


def test_from_python_settings_are_checked_as_those_of_a_file_are() -> None:
    assert vitcore.recipe("digits", learning_rate=1).config(seed=3).learning_rate == 1.0
    with pytest.raises(VitcoreError, match=r"'learning_rat' is no setting of a run \(did you mean 'learning_rate'"):
        vitcore.recipe("digits").config(learning_rat=1)
    with pytest.raises(VitcoreError, match=r"optimizer = 'adagrad' is not of type"):
        vitcore.recipe("digits").lower("cpu", optimizer="adagrad")


def test_of_several_ranks_one_says_what_flags_mean(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        done = train("--hmp --dry-run")
        assert dry(done)["precision"] == "bf16" and len(done.notes) == (rank == "0")
