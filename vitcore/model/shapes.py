"""Names and shapes of a model's parameters, without making one. This module imports no torch."""

from math import prod

from vitcore.model.variants import Variant

EXPANSION = 4
"""Width of what a unit of the ResNet gives, over its own."""
GROUPS = 32
"""Of the ResNet's group norms."""


def parameter_shapes(variant: Variant, patches: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of `VisionTransformer(variant, ...)` with that many patches, by name.

    `num_classes` 0 is a model without a head.
    """
    width, mlp, read = variant.width, variant.mlp, variant.representation or variant.width
    slots = 1 if variant.pool == "token" else 0
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width)} if slots else {}
    shapes["pos_embed"] = (1, slots + patches, width)
    channels = variant.channels
    if variant.stages is not None:
        shapes |= _stem(variant)
        channels = (
            EXPANSION * variant.stem_width * 2 ** (len(variant.stages) - 1) if variant.stages else variant.stem_width
        )
    shapes |= _dense("patch_embed.proj", width, channels, variant.patch, variant.patch)
    for i in range(variant.depth):
        block = f"blocks.{i}"
        shapes |= _norm(f"{block}.norm1", width) | _dense(f"{block}.attn.qkv", 3 * width, width)
        shapes |= _dense(f"{block}.attn.proj", width, width) | _norm(f"{block}.norm2", width)
        shapes |= _dense(f"{block}.mlp.fc1", mlp, width) | _dense(f"{block}.mlp.fc2", width, mlp)
        if variant.layer_scale is not None:
            shapes |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
    shapes |= _norm("norm", width)
    if variant.representation:
        shapes |= _dense("pre_logits.fc", read, width)
    if num_classes:
        shapes |= _dense("head", num_classes, read)
    return shapes


def count_parameters(variant: Variant, patches: int, num_classes: int) -> int:
    """Numbers in all parameters together."""
    return sum(map(prod, parameter_shapes(variant, patches, num_classes).values()))


def _stem(variant: Variant) -> dict[str, tuple[int, ...]]:
    root, channels = "patch_embed.backbone.stem", variant.stem_width
    shapes = {f"{root}.conv.weight": (channels, variant.channels, 7, 7), **_norm(f"{root}.norm", channels)}
    for s, units in enumerate(variant.stages or ()):
        width = variant.stem_width * 2**s
        for u in range(units):
            unit = f"patch_embed.backbone.stages.{s}.blocks.{u}"
            for n, (out, given, side) in enumerate(
                ((width, channels, 1), (width, width, 3), (EXPANSION * width, width, 1)), start=1
            ):
                shapes |= {f"{unit}.conv{n}.weight": (out, given, side, side), **_norm(f"{unit}.norm{n}", out)}
            if u == 0:
                out = EXPANSION * width
                shapes |= {f"{unit}.downsample.conv.weight": (out, channels, 1, 1)}
                shapes |= _norm(f"{unit}.downsample.norm", out)
            channels = EXPANSION * width
    return shapes


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _dense(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
