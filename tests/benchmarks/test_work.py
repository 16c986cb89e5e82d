"""The work that rates are made of, against torch's own count of timm's models."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitcore.model.variants import find_variant
from vitcore.model.work import forward_macs, step_operations


@pytest.mark.parametrize(
    ("ours", "theirs", "side"),
    [
        ("ViT-Ti_16", "vit_tiny_patch16_224", 64),
        ("ViT-S_32", "vit_small_patch32_224", 96),
        ("ViT-B_16", "vit_base_patch16_224", 224),
        ("R-ViT-Ti_16", "vit_tiny_r_s16_p8_224", 96),
        ("R26-ViT-S_32", "vit_small_r26_s32_224", 96),
    ],
)
def test_the_forward_of_timms_model_has_the_work_that_is_counted(ours: str, theirs: str, side: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(theirs, img_size=side, num_classes=17).eval()
    for block in model.blocks:
        block.attn.fused_attn = False  # as two products, which the counter sees on every device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(2, 3, side, side, device="meta"))
    assert counter.get_total_flops() == 2 * 2 * forward_macs(find_variant(ours), side, 17)


def test_a_backward_is_two_forwards_but_for_the_pictures_gradient() -> None:
    """What is trained has two products in the backward for each in the forward; only the first, of the pictures, has one."""
    variant = find_variant("ViT-Ti_16")
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=17)
    for block in model.blocks:
        block.attn.fused_attn = False
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(2, 3, 64, 64, device="meta")).sum().backward()
    patches = 16 * 192 * 3 * 16**2
    assert counter.get_total_flops() == step_operations(variant, 64, 17, 2) - 2 * 2 * patches
