"""The zoo: names, refusals, and that reading it needs no torch."""

import subprocess
import sys
from dataclasses import replace

import pytest

from vitcore.errors import VitcoreError
from vitcore.model.variants import VARIANTS, find_variant


def test_each_variant_is_found_by_its_own_name() -> None:
    for name, variant in VARIANTS.items():
        assert find_variant(name) is variant
        assert variant.name == name


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(VitcoreError, match=r"unknown variant 'ViT-B16' \(did you mean 'ViT-B_16'\?\); choose one of"):
        find_variant("ViT-B16")


def test_the_hybrid_is_refused_by_name() -> None:
    with pytest.raises(VitcoreError, match=r"^R50-ViT-B_16: the hybrid stem is not implemented yet; choose one of"):
        find_variant("R50-ViT-B_16")


def test_the_original_recipe_keeps_its_dropout_and_the_augreg_sizes_have_none() -> None:
    assert {name: v.dropout for name, v in VARIANTS.items() if v.dropout} == dict.fromkeys(
        ["ViT-B_16", "ViT-B_32", "ViT-L_16", "ViT-L_32", "ViT-H_14"], 0.1
    )
    assert all(v.attention_dropout == 0.0 and v.layer_norm_eps == 1e-6 for v in VARIANTS.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 5}, "width 48 is not a multiple of 5 heads"),
        ({"dropout": 1.0}, "dropout=1.0 is not a rate"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1 is not a rate"),
        ({"gelu": "relu"}, "gelu='relu' is not known"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0 must be positive"),
    ],
)
def test_numbers_that_make_no_model_are_refused(change: dict, words: str) -> None:
    with pytest.raises(VitcoreError, match=words):
        replace(VARIANTS["ViT-digits"], **change)


def test_the_zoo_is_read_without_torch() -> None:
    code = "import sys, vitcore.model.variants; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
