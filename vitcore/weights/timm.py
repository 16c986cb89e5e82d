"""timm's layout, which is ours too: vitcore's parameters carry timm's names. Also DINOv2's own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitcore.errors import VitcoreError
from vitcore.model.shapes import parameter_shapes
from vitcore.model.variants import Variant
from vitcore.weights.files import Array
from vitcore.weights.layout import Context, Found, Layout, Piece, class_slot, find_heads, make_variant, with_size

_BACKBONE, _STEM = "patch_embed.backbone.", "patch_embed.backbone.stem."
# Parameters of pre-training alone, which no forward reads.
_UNUSED = ("mask_token",)

TIMM_STEM = {"std_eps": 0.0, "var_eps": 1e-8, "group_norm_eps": 1e-5}
"""What timm computes a hybrid's ResNet with."""


def matches(names: Mapping[str, Any]) -> bool:
    return "patch_embed.proj.weight" in names


def clean(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], tuple[str, ...]]:
    notes = tuple(f"{n!r}, of pre-training alone, is left unused" for n in _UNUSED if n in arrays)
    return {n: a for n, a in arrays.items() if n not in _UNUSED}, notes


def sizes(context: Context) -> dict[str, Any]:
    """All of the variant that names and shapes tell; heads they do not."""
    need = context.need
    width, channels, patch, across = need("patch_embed.proj.weight", 4)
    if patch != across:
        raise VitcoreError(f"{context.path}: array 'patch_embed.proj.weight' has patches of {patch}x{across}; only "
                           "square ones are known")  # fmt: skip
    stages, stem_width = None, 64
    root = next((r for r in (_STEM, _BACKBONE) if f"{r}conv.weight" in context.shapes), None)
    if root:
        stem_width, channels = need(f"{root}conv.weight", 4)[:2]
        count = context.count(_BACKBONE + "stages.{}.")
        stages = tuple(context.count(f"{_BACKBONE}stages.{s}.blocks.{{}}.") for s in range(count))
    return {
        "patch": patch, "width": width, "depth": context.count("blocks.{}."), "mlp": need("blocks.0.mlp.fc1.weight", 2)[0],
        "channels": channels, "stages": stages, "stem_width": stem_width,
        "pool": "token" if "cls_token" in context.shapes else "gap",
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in context.shapes else None,
        "representation": need("pre_logits.fc.weight", 2)[0] if "pre_logits.fc.weight" in context.shapes else 0,
    }  # fmt: skip


def describe(context: Context) -> Found:
    """timm computes with exact GELU and epsilon 1e-6 unless the configuration beside the file says other."""
    config = context.beside.get("config", {})
    arguments, trained = _dict(config.get("model_args")), _dict(config.get("pretrained_cfg"))
    read = sizes(context)
    heads, notes = find_heads(context, read["width"], read["depth"], read["mlp"], arguments.get("num_heads"))
    if config.get("global_pool") == "avg" and read["pool"] == "token":
        raise VitcoreError(f"{context.path}: its config.json says global_pool 'avg', but it has an array 'cls_token'; a "
                           "mean that leaves the class token out is not known here")  # fmt: skip
    arithmetic: dict[str, Any] = {"gelu": "tanh" if arguments.get("act_layer") == "gelu_tanh" else "exact"}
    if read["stages"] is not None:
        arithmetic |= TIMM_STEM
    for ours, theirs in (("mean", "mean"), ("std", "std")):
        if theirs in trained:
            arithmetic[ours] = numbers(context.path, theirs, trained[theirs], read["channels"])
    if not config:
        notes += ("no config.json beside it says so, but pixels are taken in [-1, 1], as most ViT of timm are trained",)
    if "class_token" not in arguments and not config and read["pool"] == "gap":
        notes += ("without a class token the mean is taken after the last norm, as the original does",)
    classes = context.need("head.weight", 2)[0] if "head.weight" in context.shapes else 0
    variant = make_variant(context.path, heads=heads, **read, **arithmetic)
    positions = context.need("pos_embed", 3)[1]
    found = Found(variant, positions, classes, notes, class_names=label_names(trained))
    size = trained.get("input_size")
    found = with_size(found, arguments.get("img_size", size[1:] if isinstance(size, list) else None))
    slot, more = class_slot(read["pool"] == "token", positions)
    return found if found.grid or slot else replace(found, class_slot=False, notes=notes + more)


def pieces(variant: Variant, patches: int, num_classes: int) -> list[Piece]:
    """Our own names; a hybrid of the root alone has no `stem.` in timm."""
    shapes = parameter_shapes(variant, patches, num_classes)
    alone = variant.stages == ()
    return [Piece(n.replace(_STEM, _BACKBONE) if alone else n, shape, n) for n, shape in shapes.items()]


def numbers(path: str, key: str, values: Any, channels: int) -> tuple[float, ...]:
    """A configuration's number for each channel."""
    good = isinstance(values, (list, tuple)) and all(isinstance(v, (int, float)) and abs(v) < 1e6 for v in values)
    if not good or len(values) != channels:
        raise VitcoreError(f"{path}: {key} = {values!r} in the configuration beside it is not {channels} numbers; correct "
                           "or remove it")  # fmt: skip
    return tuple(float(v) for v in values)


def label_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = config.get("label_names")
    return tuple(map(str, names)) if isinstance(names, list) else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


LAYOUT = Layout("timm", matches, clean, describe, pieces)
