"""Google's layout (google-research/vision_transformer, big_vision): Flax names, kernels as (inputs, outputs) and HWIO.

Both numberings of a block's parts are read, the published one (one counter over all parts) and today's Flax (one a
class); training states (`opt/target/`), big_vision's `params/`, its position embedding without a class slot, and layers
that a scan stacked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vitcore.errors import VitcoreError
from vitcore.model.shapes import parameter_shapes
from vitcore.model.variants import Variant
from vitcore.weights.files import Array
from vitcore.weights.layout import Context, Found, Layout, Piece, class_slot, make_variant

if TYPE_CHECKING:
    from torch import Tensor

_PREFIXES = ("opt/target/", "params/img/", "params/")
_BLOCK = "Transformer/encoderblock_{}"
_POSITIONS = "Transformer/posembed_input/pos_embedding"
_ATTENTION = "MultiHeadDotProductAttention_1"
_TODAY = (("LayerNorm_1/", "LayerNorm_2/"), ("MultiHeadDotProductAttention_0/", f"{_ATTENTION}/"),
          ("MlpBlock_0/", "MlpBlock_3/"))  # fmt: skip

# Names of ours below a block, and theirs; a norm's weight is their scale, a layer's their kernel.
_IN_BLOCK = {
    "norm1": "LayerNorm_0", "norm2": "LayerNorm_2", "attn.proj": f"{_ATTENTION}/out",
    "mlp.fc1": "MlpBlock_3/Dense_0", "mlp.fc2": "MlpBlock_3/Dense_1",
}  # fmt: skip
_OUTSIDE = {
    "patch_embed.proj": "embedding", "norm": "Transformer/encoder_norm", "pre_logits.fc": "pre_logits", "head": "head",
    "patch_embed.backbone.stem.conv": "conv_root", "patch_embed.backbone.stem.norm": "gn_root",
}  # fmt: skip


def matches(names: Mapping[str, Any]) -> bool:
    return any(n.endswith("embedding/kernel") for n in names) or any("encoderblock" in n for n in names)


def clean(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    prefix = next((p for p in _PREFIXES if any(n.startswith(f"{p}embedding/") for n in arrays)), "")
    if left := [n for n in arrays if not n.startswith(prefix)]:
        notes += (f"{len(left)} arrays outside {prefix!r} are left unused",)
    named = {n[len(prefix) :]: a for n, a in arrays.items() if n.startswith(prefix)}
    named = _unstack(named)
    if any("/MlpBlock_0/" in n for n in named):
        named = {_published(n): a for n, a in named.items()}
    if "pos_embedding" in named and _POSITIONS not in named:
        named = {(_POSITIONS if n == "pos_embedding" else n): a for n, a in named.items()}
    return named, notes


def _published(name: str) -> str:
    head, mark, rest = name.partition("Transformer/encoderblock_")
    if mark:
        for today, published in _TODAY:
            rest = rest.replace(f"/{today}", f"/{published}")
    return head + mark + rest


def _unstack(named: dict[str, Array]) -> dict[str, Array]:
    """Layers that lie one upon another on the first axis, each under its own name."""
    stacked = "Transformer/encoderblock/"
    out = {n: a for n, a in named.items() if not n.startswith(stacked)}
    for name, array in named.items():
        if name.startswith(stacked):
            read = lru_cache(maxsize=1)(array.read)
            for i in range(array.shape[0] if array.shape and array.shape[0] < 1000 else 0):
                layer = replace(array, shape=array.shape[1:], read=_Layer(read, i))
                out[f"{_BLOCK.format(i)}/{name[len(stacked) :]}"] = layer
    return out


class _Layer:
    """Reads one layer of a stack."""

    def __init__(self, read: Any, index: int) -> None:
        self.read, self.index = read, index

    def __call__(self) -> Tensor:
        layer: Tensor = self.read()[self.index]
        return layer


def describe(context: Context) -> Found:
    """Every number from names and shapes: the arrays of attention are split in heads."""
    patch, across, channels, width = context.need("embedding/kernel", 4)
    if patch != across:
        raise VitcoreError(f"{context.path}: array 'embedding/kernel' has patches of {patch}x{across}; only square ones "
                           "are known")  # fmt: skip
    if any(n.startswith("MAPHead_0/") for n in context.shapes):
        raise VitcoreError(f"{context.path}: array 'MAPHead_0/...' pools by attention, which vitcore's model does not; use "
                           "a file whose head reads the class token or the mean")  # fmt: skip
    depth = context.count("Transformer/encoderblock_{}/")
    heads = context.need(f"{_BLOCK.format(0)}/{_ATTENTION}/query/kernel", 3)[1]
    mlp = context.need(f"{_BLOCK.format(0)}/MlpBlock_3/Dense_0/kernel", 2)[1]
    stages, stem_width = None, 64
    if "conv_root/kernel" in context.shapes:
        channels, stem_width = context.need("conv_root/kernel", 4)[2:]
        stages = tuple(context.count(f"block{s + 1}/unit{{}}/") for s in range(context.count("block{}/unit1/")))
    token = "cls" in context.shapes
    positions = context.need(_POSITIONS, 3)[1]
    slot, notes = class_slot(token, positions)
    variant = make_variant(
        context.path, patch=patch, width=width, depth=depth, heads=heads, mlp=mlp, channels=channels, stages=stages,
        stem_width=stem_width, pool="token" if token else "gap", layer_scale=None,
        representation=context.need("pre_logits/kernel", 2)[1] if "pre_logits/kernel" in context.shapes else 0,
    )  # fmt: skip
    classes = context.need("head/kernel", 2)[1] if "head/kernel" in context.shapes else 0
    return Found(variant, positions, classes, notes, class_slot=slot)


def pieces(variant: Variant, patches: int, num_classes: int) -> list[Piece]:
    """The arrays of a file in the published numbering."""
    if variant.layer_scale is not None:
        raise VitcoreError(f"{variant.name}: Google's layout has no name for the factors of residual branches "
                           "(layer_scale); choose another format")  # fmt: skip
    out: list[Piece] = []
    for name, shape in parameter_shapes(variant, patches, num_classes).items():
        module, _, kind = name.rpartition(".")
        if name in ("cls_token", "pos_embed"):
            out.append(Piece("cls" if name == "cls_token" else _POSITIONS, shape, name))
        elif module.endswith("attn.qkv"):
            out += _qkv(variant, module, kind, name)
        elif kind == "bias" or "norm" in module.rpartition(".")[2]:
            theirs = f"{_theirs(module)}/{'bias' if kind == 'bias' else 'scale'}"
            out.append(Piece(theirs, (1, 1, 1, *shape) if ".backbone." in name else shape, name))
        elif len(shape) == 4:
            out.append(Piece(f"{_theirs(module)}/kernel", (*shape[2:], shape[1], shape[0]), name, "conv"))
        else:
            inputs = (variant.heads, shape[1] // variant.heads) if module.endswith("attn.proj") else (shape[1],)
            out.append(Piece(f"{_theirs(module)}/kernel", (*inputs, shape[0]), name, "dense"))
    return out


def _qkv(variant: Variant, module: str, kind: str, name: str) -> list[Piece]:
    split = (variant.heads, variant.width // variant.heads)
    below = f"{_BLOCK.format(module.split('.')[1])}/{_ATTENTION}"
    return [
        Piece(f"{below}/{which}/bias", split, name, "same", part, 3) if kind == "bias"
        else Piece(f"{below}/{which}/kernel", (variant.width, *split), name, "dense", part, 3)
        for part, which in enumerate(("query", "key", "value"))
    ]  # fmt: skip


def _theirs(module: str) -> str:
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", module):
        return f"{_BLOCK.format(found[1])}/{_IN_BLOCK[found[2]]}"
    found = re.fullmatch(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.(.+)", module)
    assert found is not None, module
    part = found[3].replace("downsample.conv", "conv_proj").replace("downsample.norm", "gn_proj").replace("norm", "gn")
    return f"block{int(found[1]) + 1}/unit{int(found[2]) + 1}/{part}"


LAYOUT = Layout("google", matches, clean, describe, pieces)
