"""What is saved changes nothing: loss, every gradient and the logits in float64, with each saving alone and with all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rig import shipped_kernels, spec
from wide import SAVINGS, SMALL, float64, furthest, values  # noqa: F401

from vitcore.data.augment import Augment
from vitcore.model.variants import Variant
from vitcore.model.vit import VisionTransformer
from vitcore.runtime.reference import REFERENCE
from vitcore.step.ir import Group

pytestmark = pytest.mark.usefixtures("float64")
BOUND = 1e-12
RESCALED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HYBRID = Variant(
    name="small-hybrid", patch=1, width=20, depth=2, heads=2, mlp=28, img_size=32, stages=(1, 1), stem_width=32
)
FROZEN = (Group("frozen", r"^blocks\.0\.|^patch_embed", frozen=True), Group("all"))

# What a step may be besides plain: fields of its description, of the model and of what is drawn for a batch.
STEPS: dict[str, tuple[dict[str, Any], dict[str, Any], Augment | None]] = {
    "plain": ({}, {}, None),
    "accumulation": ({"accumulation": 4}, {}, None),
    "dropout": ({}, {"dropout": 0.2}, None),
    "attention_dropout": ({}, {"attention_dropout": 0.3}, None),
    "drop_path": ({"accumulation": 2}, {"drop_path": 0.4}, None),
    "layer_scale": ({}, {"layer_scale": 0.3}, None),
    "gap": ({}, {"pool": "gap"}, None),
    "rescaled": ({}, RESCALED, None),
    "rescaled gap": ({"accumulation": 2}, {**RESCALED, "pool": "gap"}, None),
    "representation": ({"label_smoothing": 0.1}, {"representation": 12}, None),
    "patch_dropout": ({"patch_dropout": 0.5}, {}, Augment(patch_dropout=0.5)),
    "patch_dropout gap": ({"patch_dropout": 0.5}, {"pool": "gap"}, Augment(patch_dropout=0.5)),
    "flip": ({"augment": ("flip",)}, RESCALED, Augment(flip=True)),
    "mix": ({"augment": ("flip", "mix"), "loss": "sigmoid"}, {}, Augment(flip=True, mixup=0.8)),
    "sam": ({"sam": True}, {"dropout": 0.1}, None),
    "sam, accumulation": ({"sam": True, "accumulation": 2}, {}, None),
    "frozen": ({"groups": FROZEN}, {}, None),
    "frozen, accumulation": ({"groups": FROZEN, "accumulation": 2}, {}, None),
}


@pytest.mark.parametrize("case", STEPS)
def test_each_saving_alone_and_all_together_change_no_value(case: str) -> None:
    fields, sizes, augment = STEPS[case]
    step, variant = spec(fields.pop("optimizer", "sgdm"), clip=False, **fields), SMALL.replace(**sizes)
    _, want = values(step, variant, plain=True, augment=augment)
    fusing = (*(k for k in shipped_kernels() if k.op in ("model.grad", "grads.zero", "grads.scale")), *REFERENCE)
    seen = set()
    for alone in SAVINGS:
        disabled = [name for name in SAVINGS if name != alone]
        text, have = values(step, variant, augment=augment, disabled=disabled, kernels=fusing)
        seen |= {mark for mark in ("pixels=bytes", "reads=pooled", "model.grad") if mark in text}
        assert furthest(have, want) < BOUND, alone
    assert seen == {"pixels=bytes", "reads=pooled", "model.grad"} - ({"pixels=bytes"} if case == "mix" else set())
    text, have = values(step, variant, augment=augment)
    assert "self_attention=" in text and "model.grad" in text
    assert furthest(have, want) < BOUND


def test_a_hybrid_too() -> None:
    step = spec("sgdm", 2, clip=False)
    _, want = values(step, HYBRID, plain=True, side=32)
    for disabled in ((), *((name,) for name in SAVINGS)):
        _, have = values(step, HYBRID, side=32, disabled=disabled)
        assert furthest(have, want) < 1e-11, disabled  # standardised kernels cancel a digit


def test_a_distance_is_seen() -> None:
    step = spec("sgdm", clip=False)
    _, want = values(step, plain=True)
    name = next(k for k in want if k[0] == "grads.scale" and k[2] == "blocks.2.attn.qkv.weight")
    assert furthest({**want, name: want[name] * (1 + 1e-11)}, want) > BOUND


@pytest.mark.parametrize("sizes", [{}, RESCALED, {"pool": "gap"}, {**RESCALED, "pool": "gap"}], ids=str)
@pytest.mark.parametrize("bytes_", [True, False])
def test_tokens_are_those_of_a_convolution(sizes: dict[str, Any], bytes_: bool) -> None:
    """The tokens that the first block reads, and the gradients of all that makes them, against torch's convolution of
    normalised pictures, a class token put in front, and positions added."""
    model = VisionTransformer(SMALL.replace(**sizes), (14, 9), 3).double()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    images = torch.randint(0, 256, (3, 3, 14, 9), generator=generator, dtype=torch.uint8)
    pixels = images.double() / 127.5 - 1
    # Where the model rescales, its own numbers, which are float32's.
    mean, std = (model.mean_C11, model.std_C11) if model.variant.rescales else (0.5, 0.5)
    normal = (pixels * 0.5 + 0.5 - mean) / std
    proj = model.patch_embed.proj
    want = F.conv2d(normal, proj.weight, proj.bias, stride=4).flatten(2).transpose(1, 2)
    if model.cls_token is not None:
        want = torch.cat([model.cls_token.expand(3, -1, -1), want], 1)
    want = want + model.pos_embed
    have = model._embed(images if bytes_ else pixels)
    assert float((have - want).detach().norm() / want.detach().norm()) < 1e-14
    made = [p for p in (proj.weight, proj.bias, model.pos_embed, model.cls_token) if p is not None]
    outer = torch.randn(want.shape, generator=generator, dtype=want.dtype)
    for one, other in zip(torch.autograd.grad(have, made, outer), torch.autograd.grad(want, made, outer), strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-13
