"""The Vision Transformer (arXiv 2010.11929) as plain modules: no device, no dtype, no marks.

Parameter names are timm's, so that weights pass between the two unchanged.
"""

import re
from dataclasses import fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.errors import VitcoreError, nearest
from vitcore.model.functions import Functions
from vitcore.model.variants import Variant, find_variant

# Shapes: B batch, C channels, S side of the picture in pixels, G side of the patch grid, N tokens (class token and
# patches), D width, M width of the MLP, H heads, E width of one head (D = H * E), K classes.

# A dropout site is 4 * block + place; the position embedding's comes after those of the last block.
ATTENTION_PLACE, PROJECTION_PLACE, GELU_PLACE, MLP_PLACE = range(4)
PLACES = 4


def _site(block: int, place: int) -> int:
    return PLACES * block + place


def _drop(module: "Attention | Mlp", x: Tensor, functions: Functions, block: int, place: int) -> Tensor:
    """Dropout at the module's rate in training mode."""
    p = module.dropout if module.training else 0.0
    return functions.dropout(x, p, _site(block, place)) if p > 0.0 else x


class PatchEmbedding(nn.Module):
    """Cuts a picture into square patches and maps each to a token: (B, C, S, S) to (B, G * G, D)."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.proj = nn.Conv2d(variant.channels, variant.width, kernel_size=variant.patch, stride=variant.patch)

    def forward(self, images_BCSS: Tensor) -> Tensor:
        patches_BDGG: Tensor = self.proj(images_BCSS)
        return patches_BDGG.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with one projection for q, k and v, dropout after the output projection."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.heads = variant.heads
        self.attention_dropout = variant.attention_dropout
        self.dropout = variant.dropout
        self.qkv = nn.Linear(variant.width, 3 * variant.width)
        self.proj = nn.Linear(variant.width, variant.width)

    def forward(self, x_BND: Tensor, functions: Functions, block: int) -> Tensor:
        batch, tokens, width = x_BND.shape
        p = self.attention_dropout if self.training else 0.0
        qkv_BN3HE = self.qkv(x_BND).reshape(batch, tokens, 3, self.heads, width // self.heads)
        qkv_3BHNE = qkv_BN3HE.permute(2, 0, 3, 1, 4)
        attended_BHNE = functions.attention(
            # By index: what unbind, chunk and split return is not of the device on every recording device.
            qkv_3BHNE[0],
            qkv_3BHNE[1],
            qkv_3BHNE[2],
            p=p,
            site=_site(block, ATTENTION_PLACE) if p > 0.0 else 0,
            dropout=functions.dropout,
        )
        x_BND = self.proj(attended_BHNE.transpose(1, 2).reshape(batch, tokens, width))
        return _drop(self, x_BND, functions, block, PROJECTION_PLACE)


class Mlp(nn.Module):
    """Dense, GELU, dense, with dropout after GELU and after the second dense layer."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.approximate = "tanh" if variant.gelu == "tanh" else "none"
        self.dropout = variant.dropout
        self.fc1 = nn.Linear(variant.width, variant.mlp)
        self.fc2 = nn.Linear(variant.mlp, variant.width)

    def forward(self, x_BND: Tensor, functions: Functions, block: int) -> Tensor:
        hidden_BNM = F.gelu(self.fc1(x_BND), approximate=self.approximate)
        hidden_BNM = _drop(self, hidden_BNM, functions, block, GELU_PLACE)
        return _drop(self, self.fc2(hidden_BNM), functions, block, MLP_PLACE)


class Block(nn.Module):
    """One pre-norm encoder block: x + attention(norm(x)), then x + mlp(norm(x)).

    `block` is its number. An argument and not an attribute, and not touched where nothing is dropped: so a compiler
    that specialises on plain numbers compiles one block for all.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(variant.width, eps=variant.layer_norm_eps)
        self.attn = Attention(variant)
        self.norm2 = nn.LayerNorm(variant.width, eps=variant.layer_norm_eps)
        self.mlp = Mlp(variant)

    def forward(self, x_BND: Tensor, functions: Functions, block: int) -> Tensor:
        x_BND = x_BND + self.attn(self.norm1(x_BND), functions, block)
        x_BND = x_BND + self.mlp(self.norm2(x_BND), functions, block)
        return x_BND


class VisionTransformer(nn.Module):
    """Pictures, float of shape (B, C, S, S) in [-1, 1], to logits of shape (B, K).

    `functions` holds the functions that a backend may replace, for all blocks at once. In training mode with dropout
    the forward runs inside `vitcore.model.dropout.dropout_keys`. Parameters are uninitialised in the sense of the
    recipe until `init_parameters` or a checkpoint fills them. Raises VitcoreError for sizes that make no model.
    """

    def __init__(self, variant: Variant, img_size: int, num_classes: int) -> None:
        super().__init__()
        if img_size <= 0 or img_size % variant.patch:
            below = img_size // variant.patch * variant.patch
            sizes = f"{below} or {below + variant.patch}" if below > 0 else str(variant.patch)
            raise VitcoreError(
                f"{variant.name}: img_size {img_size} is not a positive multiple of the patch size {variant.patch}; "
                f"use {sizes}"
            )
        if num_classes < 1:
            raise VitcoreError(f"{variant.name}: num_classes {num_classes} must be at least 1; give the data set's")
        self.variant = variant
        self.img_size = img_size
        self.num_classes = num_classes
        self.functions = Functions()
        tokens = 1 + (img_size // variant.patch) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, variant.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, variant.width))
        self.patch_embed = PatchEmbedding(variant)
        self.blocks = nn.ModuleList(Block(variant) for _ in range(variant.depth))
        self.norm = nn.LayerNorm(variant.width, eps=variant.layer_norm_eps)
        self.head = nn.Linear(variant.width, num_classes)

    def forward(self, images_BCSS: Tensor) -> Tensor:
        self._check(images_BCSS)
        x_BND = self.patch_embed(images_BCSS)
        # cat needs one dtype; under autocast the patches may be narrower than the parameter.
        cls_B1D = self.cls_token.to(x_BND.dtype).expand(x_BND.shape[0], -1, -1)
        x_BND = torch.cat([cls_B1D, x_BND], dim=1) + self.pos_embed
        if self.training and self.variant.dropout > 0.0:
            x_BND = self.functions.dropout(x_BND, self.variant.dropout, _site(self.variant.depth, 0))
        for number, block in enumerate(self.blocks):
            x_BND = block(x_BND, self.functions, number)
        # Each row is normalised by itself, so only the class token's, the one the head reads, need be.
        logits_BK: Tensor = self.head(self.norm(x_BND[:, 0]))
        return logits_BK

    def _check(self, images_BCSS: Tensor) -> None:
        expected = (self.variant.channels, self.img_size, self.img_size)
        if tuple(images_BCSS.shape[1:]) != expected:
            raise VitcoreError(
                f"{self.variant.name}: pictures of shape {tuple(images_BCSS.shape[1:])} for a model of {expected} "
                "(channels, height, width); build the model for them or resize them"
            )


def build_model(variant_name: str, img_size: int, num_classes: int, **overrides: Any) -> VisionTransformer:
    """Build the named variant; `overrides` replace fields of it, such as `dropout=0.0`.

    Raises VitcoreError for an unknown variant or field, and for sizes that make no model.
    """
    variant = find_variant(variant_name)
    known = [field.name for field in fields(Variant)]
    for name in overrides:
        if name not in known:
            raise VitcoreError(
                f"{variant_name}: a variant has no field {name!r}{nearest(name, known)}; choose from {', '.join(known)}"
            )
    return VisionTransformer(replace(variant, **overrides), img_size, num_classes)


def parameter_names(model: nn.Module) -> list[str]:
    """The names of the model's parameters in the one fixed order: numbers inside names count as numbers.

    Sorted, so the order does not depend on the order of creation; `blocks.2` comes before `blocks.10`.
    """
    return sorted((name for name, _ in model.named_parameters()), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
