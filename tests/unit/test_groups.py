"""Parameter groups from a run's settings: against timm's, their first match, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from vitcore.config import Config
from vitcore.errors import VitcoreError
from vitcore.groups import parameter_groups
from vitcore.model.vit import VisionTransformer, build_model, parameter_names
from vitcore.plan import make_plan
from vitcore.runtime.runtime import bind_groups
from vitcore.step.ir import Group
from vitcore.step.text import ParseError, parse_module

# Ours and timm's of the same names: a class token, a hybrid's stem, layer scale.
MODELS = {
    "ViT-Ti_16": "vit_tiny_patch16_224",
    "R26-ViT-S_32": "vit_small_r26_s32_224",
    "DINOv2-S_14": "vit_small_patch14_dinov2",
}


def on_meta(name: str) -> VisionTransformer:
    with torch.device("meta"):
        return build_model(name, 224, 10)


def of(config: Config, name: str) -> Group:
    """The group that takes a parameter."""
    return next(g for g in config.groups if re.search(g.pattern, name))


def settings(**more: Any) -> Config:
    return Config(**{"model_type": "ViT-Ti_16", "weight_decay": 0.05, **more})


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer_decay", [0.65, 0.75])
def test_layers_are_timms(name: str, layer_decay: float) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(MODELS[name], num_classes=10)
    by_tensor = {id(p): n for n, p in theirs.named_parameters()}
    want = {
        by_tensor[id(p)]: (group["lr_scale"], group["weight_decay"] > 0)
        for group in param_groups_layer_decay(
            theirs, 0.05, layer_decay=layer_decay, no_weight_decay_list=theirs.no_weight_decay()
        )
        for p in group["params"]
    }
    config = settings(model_type=name, layer_decay=layer_decay, decay_norms_and_biases=False)
    ours = parameter_names(on_meta(name))
    assert {*ours} == {*want} and len({lr for lr, _ in want.values()}) == 14
    for parameter in ours:
        group = of(config, parameter)
        assert group.lr == pytest.approx(want[parameter][0], rel=1e-12), parameter
        assert (group.weight_decay > 0) == want[parameter][1], parameter


def test_the_groups_of_the_original_are_as_they_were() -> None:
    assert Config().groups == settings().groups == (Group("all"),)
    undecayed = Group("undecayed", r"bias$|norm|cls_token|pos_embed|gamma$", weight_decay=0.0)
    assert settings(decay_norms_and_biases=False).groups == (undecayed, Group("decayed"))
    assert settings(decay_norms_and_biases=False, weight_decay=0.0).groups == (Group("all"),)


def test_no_decay_names_further_parameters() -> None:
    beside = settings(no_decay="^head", decay_norms_and_biases=False)
    alone = settings(no_decay="^head")
    said = {n: (of(beside, n).weight_decay, of(alone, n).weight_decay) for n in parameter_names(on_meta("ViT-Ti_16"))}
    assert said["head.weight"] == (0, 0) and said["norm.weight"] == (0, 1) and said["blocks.3.mlp.fc1.weight"] == (1, 1)


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_all_settings_combine_and_the_first_group_wins(optimizer: str, layer_decay: float) -> None:
    config = settings(
        optimizer=optimizer, layer_decay=layer_decay, freeze=r"^blocks\.[01]\.|qkv", no_decay=r"fc1\.weight$|^patch",
        decay_norms_and_biases=False,
    )  # fmt: skip
    assert config.groups[0] == Group("frozen", r"^blocks\.[01]\.|qkv", frozen=True)
    assert len({g.name for g in config.groups}) == len(config.groups)
    for name in parameter_names(on_meta("ViT-Ti_16")):
        group, matrix = of(config, name), re.fullmatch(r"blocks\..*(qkv|proj|fc.)\.weight", name)
        frozen = name.startswith(("blocks.0.", "blocks.1.")) or "qkv" in name
        assert group.frozen == frozen, name
        if frozen:
            continue
        assert group.kind == ("" if optimizer == "adamw" else "muon" if matrix else "adamw"), name
        undecayed = re.search(r"bias|norm|cls_token|pos_embed|fc1|patch_embed", name)
        assert group.weight_decay == (0 if undecayed else 1), name
        block = re.match(r"blocks\.(\d+)", name)
        depth = int(block[1]) + 1 if block else 12 if name.startswith("norm") else 13 if "head" in name else 0
        assert group.lr == pytest.approx(layer_decay ** (13 - depth)), name


def test_every_group_that_is_printed_takes_a_parameter() -> None:
    names = parameter_names(on_meta("ViT-Ti_16"))
    for optimizer, decayed_apart, count in (("adamw", True, 28), ("lamb", False, 14), ("muon", False, 26)):
        config = settings(optimizer=optimizer, layer_decay=0.7, decay_norms_and_biases=not decayed_apart)
        taken = {of(config, n).name for n in names}
        assert taken == {g.name for g in config.groups} and len(taken) == count, optimizer


def test_the_header_says_kind_and_freezing_and_reads_back() -> None:
    module = make_plan(settings(optimizer="muon", freeze="^pos_embed", backend="cpu"), to_run=False).neutral
    lines = str(module).splitlines()
    assert lines[1] == "group @frozen {frozen=yes, lr=1, pattern=^pos_embed, weight_decay=1}"
    assert lines[2].startswith("group @matrices {kind=muon, lr=1, pattern=") and "kind=adamw" in lines[3]
    assert parse_module(str(module)) == module
    for wrong in ("frozen=no", "frozen=1", "melted=yes"):
        with pytest.raises(ParseError, match="line 2: expected"):
            parse_module(str(module).replace("frozen=yes", wrong))


def test_layers_of_a_model_that_only_a_file_knows_are_refused_with_the_remedy() -> None:
    config = settings(layer_decay=0.7, pretrained_dir="w.npz").by_file(["pretrained_dir"])
    with pytest.raises(
        VitcoreError, match=r"--layer_decay 0\.7 needs the number of the model's blocks .* give --model_type"
    ):
        _ = config.groups
    assert len(replace(config, layer_decay=1.0).groups) == 1


@pytest.mark.parametrize("setting", ["freeze", "no_decay"])
@pytest.mark.parametrize("pattern", ["(", "(?i)head"])
def test_a_pattern_that_cannot_stand_among_others_is_refused(setting: str, pattern: str) -> None:
    with pytest.raises(VitcoreError, match=rf"--{setting} .* is no regular expression"):
        Config(**{setting: pattern})


NAMES = ["blocks.0.norm1.bias", "head.weight", "patch_embed.proj.weight"]


@pytest.mark.parametrize(
    ("freeze", "why"),
    [("^neck", r"--freeze '\^neck' matches no parameter; they are named as blocks.0.norm1.bias"),
     (".", r"--freeze '\.' matches every parameter, so that nothing is trained")],
)  # fmt: skip
def test_freezing_nothing_or_everything_is_refused_by_name(freeze: str, why: str) -> None:
    groups = parameter_groups("adamw", freeze=freeze, undecayed=None, layer_decay=1.0, depth=0)
    with pytest.raises(VitcoreError, match=why):
        bind_groups(groups, NAMES, "adamw")


def test_what_is_frozen_is_in_no_bound_group() -> None:
    groups = parameter_groups("muon", freeze="^head", undecayed="bias$", layer_decay=1.0, depth=0)
    bound = bind_groups(groups, NAMES, "muon")
    assert [(g.name, g.kind, g.weight_decay, g.indices) for g in bound] == [
        ("undecayed", "adamw", 0.0, (0,)), ("decayed", "adamw", 1.0, (2,))
    ]  # fmt: skip
