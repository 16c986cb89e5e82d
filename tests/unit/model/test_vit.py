"""The model against known parameter counts and against timm with the same weights."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from vitcore.errors import VitcoreError
from vitcore.model.attention import attention
from vitcore.model.functions import Functions
from vitcore.model.init import init_parameters
from vitcore.model.loss import cross_entropy
from vitcore.model.shapes import count_parameters, parameter_shapes
from vitcore.model.variants import VARIANTS, Variant
from vitcore.model.vit import VisionTransformer, build_model, parameter_names

TINY = Variant(name="tiny", patch=4, width=24, depth=3, heads=3, mlp=40, img_size=12)


def random_model(variant: Variant = TINY, seed: int = 0) -> VisionTransformer:
    """A float64 model with every parameter random, so that nothing hides behind a zero."""
    model = VisionTransformer(variant, variant.img_size, 7).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


def timm_model(variant: Variant, **options: object) -> torch.nn.Module:
    timm = pytest.importorskip("timm")
    return timm.models.vision_transformer.VisionTransformer(
        img_size=variant.img_size,
        patch_size=variant.patch,
        num_classes=7,
        embed_dim=variant.width,
        depth=variant.depth,
        num_heads=variant.heads,
        mlp_ratio=variant.mlp / variant.width,
        **options,
    )


# Body and head at 224 px, from the original repository's own test of its models.
COUNTS = {
    "ViT-B_16": 86_567_656,
    "ViT-B_32": 88_224_232,
    "ViT-L_16": 304_326_632,
    "ViT-L_32": 306_535_400,
    "ViT-H_14": 632_045_800,
    "R50-ViT-B_16": 98_659_112,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_those_of_the_original(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, 224, 1000)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("ViT-B_16", "vit_base_patch16_224"),
        ("ViT-B_32", "vit_base_patch32_224"),
        ("ViT-L_16", "vit_large_patch16_224"),
        ("ViT-H_14", "vit_huge_patch14_224"),
        ("ViT-Ti_16", "vit_tiny_patch16_224"),
        ("ViT-S_16", "vit_small_patch16_224"),
        ("R50-ViT-B_16", "vit_base_r50_s16_224"),
        ("R26-ViT-S_32", "vit_small_r26_s32_224"),
        ("R50-ViT-L_32", "vit_large_r50_s32_224"),
        ("DINOv2-S_14", "vit_small_patch14_dinov2"),
    ],
)
def test_names_and_shapes_are_timms(name: str, theirs: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        ours = build_model(name, 224, 1000)
        expected = timm.create_model(theirs, num_classes=1000, img_size=224)
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in expected.state_dict().items()}


@pytest.mark.parametrize(("gelu", "layer"), [("tanh", "gelu_tanh"), ("exact", "gelu")])
def test_logits_and_gradients_equal_timms(gelu: str, layer: str) -> None:
    variant = replace(TINY, gelu=gelu)
    ours = random_model(variant)
    theirs = timm_model(variant, act_layer=layer).double()
    theirs.load_state_dict(ours.state_dict())
    assert theirs.norm.eps == variant.layer_norm_eps
    images = torch.randn(5, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for model in (ours, theirs):
        logits = model(images)
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad((logits**2).sum(), [parameters[name] for name in parameter_names(ours)])
        results.append((logits, gradients))
    (our_logits, our_gradients), (their_logits, their_gradients) = results
    assert (our_logits - their_logits).abs().max() <= 1e-12 * their_logits.abs().max()
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        assert (mine - other).abs().max() <= 1e-12 * max(1.0, float(other.abs().max()))


def test_the_two_gelus_differ() -> None:
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tanh, exact = random_model(), random_model(replace(TINY, gelu="exact"))
    difference = (tanh(images) - exact(images)).abs().max()
    assert 1e-6 < difference < 0.1


def test_the_class_slot_of_the_position_embedding_counts() -> None:
    model = random_model()
    images = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    before = model(images)
    with torch.no_grad():
        # Not the whole slot alike: the LayerNorm that follows takes a common shift away.
        model.pos_embed[:, 0, :5] += 1.0
    assert not torch.allclose(before, model(images))


def test_a_fresh_model_has_the_loss_log_k() -> None:
    model = build_model("ViT-digits", 8, 10)
    init_parameters(model, torch.Generator().manual_seed(0))
    logits = model(torch.randn(6, 1, 8, 8))
    loss = cross_entropy(logits, torch.arange(6), torch.ones(6))
    assert torch.equal(logits, torch.zeros(6, 10))
    assert loss.item() == pytest.approx(math.log(10), rel=1e-6)


def test_one_assignment_replaces_attention_in_every_block() -> None:
    model, calls = random_model(), []

    def counted(*args: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append(options["p"])
        return attention(*args, **options)

    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    before = model(images)
    model.functions = Functions(attention=counted)
    assert torch.equal(model(images), before)
    assert calls == [0.0] * TINY.depth


def test_softmax_runs_in_float32_for_narrow_scores() -> None:
    q, k, v = (torch.randn(1, 2, 9, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    narrow = attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert narrow.dtype == torch.bfloat16
    scores = (q.bfloat16() * 8**-0.5) @ k.bfloat16().transpose(-2, -1)
    expected = scores.float().softmax(-1).bfloat16() @ v.bfloat16()
    assert torch.equal(narrow, expected)


def test_autocast_runs() -> None:
    model = VisionTransformer(TINY, 12, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 3, 12, 12)).dtype == torch.bfloat16


def test_names_are_in_natural_order_whatever_the_order_of_creation() -> None:
    with torch.device("meta"):
        names = parameter_names(build_model("ViT-Ti_16", 224, 10))
    assert names.index("blocks.2.attn.qkv.weight") < names.index("blocks.10.attn.qkv.weight")
    module = torch.nn.Module()
    for name in ("b10", "a", "b2"):
        module.register_parameter(name, torch.nn.Parameter(torch.zeros(1)))
    assert parameter_names(module) == ["a", "b2", "b10"]


@pytest.mark.parametrize(
    ("img_size", "num_classes", "words"),
    [
        (7, 10, "img_size 7 is smaller than one patch of 16 pixels; use 16 or more"),
        (0, 10, "img_size 0 is smaller than one patch"),
        (-16, 10, "img_size -16 is smaller than one patch"),
        ((224, 15), 10, r"img_size \(224, 15\) is smaller than one patch"),
        (224, -1, "num_classes -1 must not be negative"),
    ],
)
def test_sizes_that_make_no_model_are_refused(img_size: Any, num_classes: int, words: str) -> None:
    with pytest.raises(VitcoreError, match=words):
        build_model("ViT-B_16", img_size, num_classes)


def test_an_incomplete_last_patch_is_left_out_as_in_the_original() -> None:
    with torch.device("meta"):
        assert build_model("ViT-H_14", 384, 0).grid == (27, 27)
    model = build_model("ViT-digits", (9, 11), 10)
    init_parameters(model, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    images = torch.rand(2, 1, 9, 11)
    cut = build_model("ViT-digits", (8, 10), 10)
    cut.load_state_dict(model.state_dict())
    assert model.grid == cut.grid == (4, 5)
    assert torch.equal(model(images), cut(images[:, :, :8, :10]))


def test_without_a_head_the_class_tokens_features_come_out() -> None:
    model = build_model("ViT-digits", 8, 0)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 48)


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_are_known_without_making_the_model(name: str) -> None:
    variant = VARIANTS[name]
    with torch.device("meta"):
        model = VisionTransformer(variant, variant.img_size, 10)
        other = VisionTransformer(variant.replace(pool="gap", representation=7), (64, 96), 0)
    for made, classes in ((model, 10), (other, 0)):
        rows, columns = made.grid
        shapes = parameter_shapes(made.variant, rows * columns, classes)
        assert shapes == {n: tuple(p.shape) for n, p in made.named_parameters()}
        assert count_parameters(made.variant, rows * columns, classes) == sum(p.numel() for p in made.parameters())


def test_an_override_replaces_a_field_and_an_unknown_one_is_refused() -> None:
    assert build_model("ViT-digits", 8, 10, dropout=0.3).variant == replace(VARIANTS["ViT-digits"], dropout=0.3)
    with pytest.raises(VitcoreError, match=r"no field 'drop_out' \(did you mean 'dropout'\?\)"):
        build_model("ViT-digits", 8, 10, drop_out=0.3)


def test_pictures_of_another_shape_are_refused() -> None:
    with pytest.raises(VitcoreError, match=r"pictures of shape \(3, 8, 8\) for a model of \(1, 8, 8\)"):
        build_model("ViT-digits", 8, 10)(torch.zeros(2, 3, 8, 8))
