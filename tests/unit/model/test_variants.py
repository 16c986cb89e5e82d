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


def test_the_published_names_of_hybrids_are_understood() -> None:
    assert find_variant("R50+ViT-B_16") is VARIANTS["R50-ViT-B_16"]
    assert find_variant("R+ViT-Ti_16") is VARIANTS["R-ViT-Ti_16"]


def test_the_grid_of_a_hybrid_is_its_last_map_cut_in_patches() -> None:
    grids = {name: VARIANTS[name].grid(224, 384) for name in VARIANTS if name.startswith("R")}
    assert grids == {"R50-ViT-B_16": (14, 24), "R50-ViT-L_32": (7, 12), "R26-ViT-B_32": (7, 12), "R-ViT-Ti_16": (7, 12),
                     "R26-ViT-S_32": (7, 12)}  # fmt: skip
    assert {name: VARIANTS[name].stride for name in grids} == {name: 16 if "B_16" in name else 32 for name in grids}
    assert VARIANTS["R50-ViT-B_16"].grid(225, 17) == (15, 2)  # padded, where patches alone would cut


def test_the_original_recipe_keeps_its_dropout_and_the_augreg_sizes_have_none() -> None:
    assert {name: v.dropout for name, v in VARIANTS.items() if v.dropout} == dict.fromkeys(
        ["ViT-B_16", "ViT-B_32", "ViT-L_16", "ViT-L_32", "ViT-H_14", "R50-ViT-B_16", "R50-ViT-L_32", "R26-ViT-B_32"],
        0.1,
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
        ({"group_norm_eps": -1.0}, "group_norm_eps=-1.0 must be positive"),
        ({"pool": "max"}, "pool='max' is not known"),
        ({"std_eps": 0.0}, "std_eps=0.0 and var_eps=0.0 must not be negative, nor both 0"),
        ({"stages": (3, 0)}, "nor a stage empty"),
        ({"stages": (), "stem_width": 60}, "stem_width=60 is not a multiple of 32"),
        ({"std": (0.0,)}, r"std=\(0.0,\) must be positive"),
        ({"mean": (0.4, 0.4, 0.4)}, "not one for each of 1 channels"),
    ],
)
def test_numbers_that_make_no_model_are_refused(change: dict, words: str) -> None:
    with pytest.raises(VitcoreError, match=words):
        replace(VARIANTS["ViT-digits"], **change)


def test_the_zoo_is_read_without_torch() -> None:
    code = "import sys, vitcore.model.variants; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
