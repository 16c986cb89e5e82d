"""Hugging Face's layouts of ViT and DINOv2: as transformers saves them, and as a living model of version 5 names them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vitcore.errors import VitcoreError
from vitcore.model.shapes import parameter_shapes
from vitcore.model.variants import IMAGENET_MEAN, IMAGENET_STD, Variant
from vitcore.weights.files import Array
from vitcore.weights.layout import Context, Found, Layout, Piece, find_heads, make_variant, with_size
from vitcore.weights.timm import numbers

_PREFIXES = ("vit.", "dinov2.")
_PATCHES = "embeddings.patch_embeddings.projection"
_SHORT = {"q": "query", "k": "key", "v": "value"}
# How a living model of transformers 5 names what its files name otherwise.
_LIVING: tuple[tuple[str, Any], ...] = (
    (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attention\.([qkv])_proj\.", lambda m: f".attention.attention.{_SHORT[m[1]]}."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
_LIVING_VIT: tuple[tuple[str, Any], ...] = (
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)

_OUTSIDE = {
    "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings", "patch_embed.proj": _PATCHES,
    "norm": "layernorm", "pre_logits.fc": "pooler.dense", "head": "classifier",
}  # fmt: skip
_VIT = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip
_DINO = {
    "norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1",
}  # fmt: skip
_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")


def matches(names: Mapping[str, Any]) -> bool:
    return any(n.endswith(f"{_PATCHES}.weight") for n in names)


def clean(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], tuple[str, ...]]:
    prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in arrays)), "")
    named = {n.removeprefix(prefix): a for n, a in arrays.items()}
    for pattern, by in (*_LIVING, *(() if any(".norm1." in n for n in named) else _LIVING_VIT)):
        named = {re.sub(pattern, by, n): a for n, a in named.items()}
    unused = "embeddings.mask_token"
    notes = (f"{unused!r}, of pre-training alone, is left unused",) if unused in named else ()
    return {n: a for n, a in named.items() if n != unused}, notes


def describe(context: Context) -> Found:
    """transformers computes with exact GELU and epsilon 1e-12 (DINOv2: 1e-6) unless config.json says other."""
    config, picture = context.beside.get("config", {}), context.beside.get("preprocessor", {})
    width, channels, patch, across = context.need(f"{_PATCHES}.weight", 4)
    if patch != across:
        raise VitcoreError(f"{context.path}: array '{_PATCHES}.weight' has patches of {patch}x{across}; only square ones "
                           "are known")  # fmt: skip
    dino = "encoder.layer.0.norm1.weight" in context.shapes
    depth = context.count("encoder.layer.{}.")
    mlp = context.need(f"encoder.layer.0.{'mlp.fc1' if dino else 'intermediate.dense'}.weight", 2)[0]
    heads, notes = find_heads(context, width, depth, mlp, config.get("num_attention_heads"))
    if (act := config.get("pooler_act", "tanh")) != "tanh" and "pooler.dense.weight" in context.shapes:
        raise VitcoreError(f"{context.path}: its config.json says pooler_act {act!r}; only tanh is known")
    arithmetic: dict[str, Any] = {"gelu": _gelu(context.path, config.get("hidden_act", "gelu"))}
    eps = config.get("layer_norm_eps", 1e-6 if dino else 1e-12)
    if not isinstance(eps, float):
        raise VitcoreError(f"{context.path}: layer_norm_eps = {eps!r} in its config.json is no number; correct it")
    arithmetic["layer_norm_eps"] = eps
    arithmetic |= _pixels(context.path, picture, channels, dino)
    variant = make_variant(
        context.path, patch=patch, width=width, depth=depth, heads=heads, mlp=mlp, channels=channels, stages=None,
        stem_width=64, pool="token", layer_scale=1.0 if dino else None,
        representation=context.need("pooler.dense.weight", 2)[0] if "pooler.dense.weight" in context.shapes else 0,
        **arithmetic,
    )  # fmt: skip
    classes = 0
    if "classifier.weight" in context.shapes:
        classes, reads = context.need("classifier.weight", 2)
        if reads != (variant.representation or width):
            raise VitcoreError(f"{context.path}: array 'classifier.weight' reads {reads} channels of a model of {width} "
                               "(class token and mean together): only heads on one of them are known; pass a file "
                               "without the head")  # fmt: skip
    positions = context.need("embeddings.position_embeddings", 3)[1]
    found = Found(variant, positions, classes, notes, class_names=_labels(config, classes))
    return with_size(found, config.get("image_size"))


def _pixels(path: str, picture: Mapping[str, Any], channels: int, dino: bool) -> dict[str, tuple[float, ...]]:
    """Mean and deviation of pixels from 0 to 1 that preprocessor_config.json asks for: (v * factor - mean) / deviation of
    pixels v from 0 to 255. What it leaves open is as transformers has it for the architecture."""
    if not picture.get("do_normalize", True):
        mean, std = (0.0,) * channels, (1.0,) * channels
    else:
        usual = (IMAGENET_MEAN, IMAGENET_STD) if dino and channels == 3 else ((0.5,) * channels,) * 2
        mean = numbers(path, "image_mean", picture.get("image_mean", usual[0]), channels)
        std = numbers(path, "image_std", picture.get("image_std", usual[1]), channels)
    factor = picture.get("rescale_factor", 1 / 255) if picture.get("do_rescale", True) else 1.0
    if not isinstance(factor, (int, float)) or not 0.0 < factor < 1e6:
        raise VitcoreError(f"{path}: rescale_factor = {factor!r} in its preprocessor_config.json is no positive number; "
                           "correct it")  # fmt: skip
    scale = 255.0 * factor
    return {"mean": tuple(m / scale for m in mean), "std": tuple(s / scale for s in std)}


def _gelu(path: str, act: Any) -> str:
    if act == "gelu":
        return "exact"
    if act in _TANH:
        return "tanh"
    raise VitcoreError(f"{path}: its config.json says hidden_act {act!r}; only gelu and {', '.join(_TANH)} are known")


def _labels(config: Mapping[str, Any], classes: int) -> tuple[str, ...] | None:
    labels = config.get("id2label")
    if not isinstance(labels, dict) or len(labels) != classes:
        return None
    names = tuple(str(labels.get(str(i), f"LABEL_{i}")) for i in range(classes))
    return None if all(n == f"LABEL_{i}" for i, n in enumerate(names)) else names


def pieces(variant: Variant, patches: int, num_classes: int) -> list[Piece]:
    """The arrays of a file without its prefix; q, k and v are apart. VitcoreError for what ViT of transformers is not."""
    if variant.stages is not None or variant.pool != "token":
        what = "ResNet before the encoder" if variant.stages is not None else "mean instead of the class token"
        raise VitcoreError(f"{variant.name}: Hugging Face's layout has no {what}; choose another format")
    below = _VIT if variant.layer_scale is None else _DINO
    out: list[Piece] = []
    for name, shape in parameter_shapes(variant, patches, num_classes).items():
        module, _, kind = name.rpartition(".")
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", module)
        if name in _OUTSIDE:
            out.append(Piece(_OUTSIDE[name], shape, name))
        elif found is None:
            out.append(Piece(f"{_OUTSIDE[module]}.{kind}", shape, name))
        elif found[2] == "attn.qkv":
            third = (shape[0] // 3, *shape[1:])
            layer = f"encoder.layer.{found[1]}.attention.attention"
            out += [Piece(f"{layer}.{which}.{kind}", third, name, "same", part, 3)
                    for part, which in enumerate(_SHORT.values())]  # fmt: skip
        else:
            theirs = below[f"{found[2]}.{kind}"] if kind == "gamma" else f"{below[found[2]]}.{kind}"
            out.append(Piece(f"encoder.layer.{found[1]}.{theirs}", shape, name))
    return out


LAYOUT = Layout("huggingface", matches, clean, describe, pieces)
