"""The Vision Transformer (arXiv 2010.11929) as plain modules: no device, no dtype, no marks.

Parameter names are timm's, so that weights pass between the two unchanged.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.errors import VitcoreError
from vitcore.model.functions import Functions
from vitcore.model.patches import Normalisation, PatchEmbedding, bytes_to_unit, centred
from vitcore.model.variants import Variant, find_variant

# Shapes: B batch, C channels, Y rows and X columns of the picture in pixels, G rows and J columns of the patch grid,
# N tokens (class token, if any, and patches), D width, M width of the MLP, R width of the representation, H heads,
# E width of one head (D = H * E), K classes.

# A dropout site is 4 * block + place; the position embedding's comes after those of the last block.
ATTENTION_PLACE, PROJECTION_PLACE, GELU_PLACE, MLP_PLACE = range(4)
PLACES = 4
# Far beyond those: two sites a block for its dropped branches.
DROP_PATH_SITES = 1_000_000


def _site(block: int, place: int) -> int:
    return PLACES * block + place


def _drop(module: "Attention | Mlp", x: Tensor, functions: Functions, block: int, place: int) -> Tensor:
    """Dropout at the module's rate in training mode."""
    p = module.dropout if module.training else 0.0
    return functions.dropout(x, p, _site(block, place)) if p > 0.0 else x


class Attention(nn.Module):
    """Self-attention with one projection for q, k and v, dropout after the output projection."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.heads = variant.heads
        self.attention_dropout = variant.attention_dropout
        self.dropout = variant.dropout
        self.qkv = nn.Linear(variant.width, 3 * variant.width)
        self.proj = nn.Linear(variant.width, variant.width)

    def forward(self, x_BND: Tensor, functions: Functions, block: int, queries: int | None = None) -> Tensor:
        """`queries`: of how many tokens, from the first on, the result is asked for; None: of all."""
        batch, tokens, width = x_BND.shape
        p = self.attention_dropout if self.training else 0.0
        site = _site(block, ATTENTION_PLACE) if p > 0.0 else 0
        heads = (self.heads, width // self.heads)
        # Masks of probabilities are numbered over all queries, so with dropout all are computed.
        if queries is None or p > 0.0:
            qkv_BN3HE = self.qkv(x_BND).reshape(batch, tokens, 3, *heads)
            attended_BND = functions.self_attention(
                qkv_BN3HE, attention=functions.attention, p=p, site=site, dropout=functions.dropout
            )
            x_BND = attended_BND[:, :queries]
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q_BQHE = F.linear(x_BND[:, :queries], weight[:width], bias[:width]).reshape(batch, queries, *heads)
            kv_BN2HE = F.linear(x_BND, weight[width:], bias[width:]).reshape(batch, tokens, 2, *heads)
            kv_2BHNE = kv_BN2HE.permute(2, 0, 3, 1, 4)
            q_BHQE = q_BQHE.transpose(1, 2)
            attended_BHQE = functions.attention(q_BHQE, kv_2BHNE[0], kv_2BHNE[1], dropout=functions.dropout)
            x_BND = attended_BHQE.transpose(1, 2).reshape(batch, queries, width)
        return _drop(self, self.proj(x_BND), functions, block, PROJECTION_PLACE)


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


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (CaiT, arXiv 2103.17239)."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(variant.width))

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND * self.gamma


class Representation(nn.Module):
    """The dense layer and tanh between the pooled tokens and the head ("pre-logits"): (B, D) to (B, R)."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.fc = nn.Linear(variant.width, variant.representation)

    def forward(self, x_BD: Tensor) -> Tensor:
        return torch.tanh(self.fc(x_BD))


class Block(nn.Module):
    """One pre-norm encoder block: x + attention(norm(x)), then x + mlp(norm(x)), each branch scaled if the variant
    says so.

    `block` is its number. An argument and not an attribute, and not touched where nothing is dropped: so a compiler
    that specialises on plain numbers compiles one block for all. `branches_B11` are the factors of the two branches where
    some are dropped: 0, or what makes up for those that are. `queries`: how many tokens, from the first on, come out; None:
    all. What does not come out is not computed, but for the keys and values of all tokens.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(variant.width, eps=variant.layer_norm_eps)
        self.attn = Attention(variant)
        self.ls1 = None if variant.layer_scale is None else LayerScale(variant)
        self.norm2 = nn.LayerNorm(variant.width, eps=variant.layer_norm_eps)
        self.mlp = Mlp(variant)
        self.ls2 = None if variant.layer_scale is None else LayerScale(variant)

    def forward(
        self, x_BND: Tensor, functions: Functions, block: int, branches_B11: tuple[Tensor, Tensor] | None = None,
        queries: int | None = None,
    ) -> Tensor:  # fmt: skip
        branch_BND = self.attn(self.norm1(x_BND), functions, block, queries)
        branch_BND = branch_BND if self.ls1 is None else self.ls1(branch_BND)
        x_BND = x_BND if queries is None else x_BND[:, :queries]
        x_BND = x_BND + (branch_BND if branches_B11 is None else branch_BND * branches_B11[0])
        branch_BND = self.mlp(self.norm2(x_BND), functions, block)
        branch_BND = branch_BND if self.ls2 is None else self.ls2(branch_BND)
        return x_BND + (branch_BND if branches_B11 is None else branch_BND * branches_B11[1])


class VisionTransformer(nn.Module):
    """Pictures, of shape (B, C, Y, X), float in [-1, 1] or bytes, to logits of shape (B, K); without a head, `num_classes` 0,
    to what the head would read, (B, D) or (B, R).

    `img_size` is the side of square pictures in pixels, or (rows, columns). `functions` holds the functions that a
    backend may replace, for all blocks at once. In training mode with dropout the forward runs inside
    `vitcore.model.dropout.dropout_keys`. Parameters are uninitialised in the sense of the recipe until
    `init_parameters` or a checkpoint fills them. Raises VitcoreError for sizes that make no model.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, variant: Variant, img_size: int | tuple[int, int], num_classes: int) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        rows, columns = variant.grid(height, width) if min(height, width) > 0 else (0, 0)
        if min(rows, columns) < 1:
            raise VitcoreError(
                f"{variant.name}: img_size {img_size} is smaller than one patch of {variant.stride} pixels; use "
                f"{variant.stride} or more"
            )
        if num_classes < 0:
            raise VitcoreError(
                f"{variant.name}: num_classes {num_classes} must not be negative; give the data set's, or 0 for no head"
            )
        self.variant = variant
        self.img_size = height, width
        self.grid = rows, columns
        self.num_classes = num_classes
        self.class_names: tuple[str, ...] | None = None
        self.functions = Functions()
        if variant.rescales:
            for name, values in (("mean_C11", variant.mean), ("std_C11", variant.std)):
                # From NumPy, so on the host even where parameters are made elsewhere: nothing fills a buffer later.
                values_C11 = torch.from_numpy(np.array(values, np.float32)[:, None, None])
                self.register_buffer(name, values_C11, persistent=False)
        slots = 1 if variant.pool == "token" else 0
        self.cls_token = nn.Parameter(torch.zeros(1, 1, variant.width)) if slots else None
        self.pos_embed = nn.Parameter(torch.zeros(1, slots + rows * columns, variant.width))
        self.patch_embed = PatchEmbedding(variant)
        self.blocks = nn.ModuleList(Block(variant) for _ in range(variant.depth))
        self.norm = nn.LayerNorm(variant.width, eps=variant.layer_norm_eps)
        self.pre_logits = Representation(variant) if variant.representation else None
        self.head = nn.Linear(variant.representation or variant.width, num_classes) if num_classes else None

    def forward(
        self, images_BCYX: Tensor, keep_BK: Tensor | None = None, reads: str = "",
        run: Callable[..., Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """`keep_BK`, int64, are the patches that each sample keeps (patch dropout, arXiv 2208.07220); None: all. With `reads`
        "pooled" the last block computes what the head reads and no more, where that is the class token. `run` runs a block:
        `run(block, x_BND, ...)` stands for `block(x_BND, ...)`."""
        self._check(images_BCYX)
        x_BND = self._embed(images_BCYX)
        if self.training and self.variant.dropout > 0.0:
            x_BND = self.functions.dropout(x_BND, self.variant.dropout, _site(self.variant.depth, 0))
        if keep_BK is not None:
            x_BND = self._kept(x_BND, keep_BK)
        for number, block in enumerate(self.blocks):
            last = number == self.variant.depth - 1 and reads == "pooled" and self.cls_token is not None
            branches = self._branches(x_BND, number)
            given = (x_BND, self.functions, number, branches, 1 if last else None)
            x_BND = block(*given) if run is None else run(block, *given)
        # Each row is normalised by itself, so of the class token's alone only that row need be.
        x_BD = self.norm(x_BND).mean(1) if self.cls_token is None else self.norm(x_BND[:, 0])
        if self.pre_logits is not None:
            x_BD = self.pre_logits(x_BD)
        return x_BD if self.head is None else self.head(x_BD)

    def _embed(self, images_BCYX: Tensor) -> Tensor:
        """What the first block reads: patches, the class token in front, positions added, without a copy of all tokens."""
        folds = images_BCYX.dtype == torch.uint8 and self.patch_embed.backbone is None
        bytes_as = self._normalisation() if folds else None
        if not folds:
            images_BCYX = self._as_trained(centred(images_BCYX))
        slots = 0 if self.cls_token is None else 1
        dtype = self.norm.weight.dtype
        x_BND = self.patch_embed(images_BCYX, slots, bytes_as, dtype)
        bias_1D = self.patch_embed.bias(bytes_as)[None]
        # The class token's row of the product is 0.
        bias_ND = bias_1D.expand(self.pos_embed.shape[1] - slots, -1)
        base_1ND = self.pos_embed + (bias_ND if self.cls_token is None else torch.cat([self.cls_token[0], bias_ND]))
        # In place, as a product does not keep its result for the backward; under autocast its dtype is not what was asked for,
        # and the sum is of the parameters' dtype.
        return x_BND.add_(base_1ND.to(dtype)) if x_BND.dtype == dtype else x_BND + base_1ND

    def _normalisation(self) -> Normalisation:
        """Of bytes, all in one: to [-1, 1], then as the weights were trained."""
        unit = bytes_to_unit(self.patch_embed.proj.weight)
        if not self.variant.rescales:
            return unit
        return Normalisation(
            unit.factor_C11 * 0.5 / self.std_C11, (unit.rest_C11 * 0.5 + 0.5 - self.mean_C11) / self.std_C11
        )

    def _kept(self, x_BND: Tensor, keep_BK: Tensor) -> Tensor:
        """The class token, if any, and the patches that each sample keeps."""
        slots = 0 if self.cls_token is None else 1
        patches_BKD = x_BND[:, slots:].gather(1, keep_BK[:, :, None].expand(-1, -1, x_BND.shape[-1]))
        return torch.cat([x_BND[:, :slots], patches_BKD], dim=1) if slots else patches_BKD

    def _branches(self, x_BND: Tensor, block: int) -> tuple[Tensor, Tensor] | None:
        """The factors of a block's branches, (B, 1, 1) each; None where none are dropped. Made here and not in the block: a
        rate of its own would be one more compilation each."""
        rate = self.variant.drop_path * block / max(self.variant.depth - 1, 1) if self.training else 0.0
        if rate == 0.0:
            return None
        ones_B11 = torch.ones_like(x_BND[:, :1, :1])
        site = DROP_PATH_SITES + 2 * block
        return self.functions.dropout(ones_B11, rate, site), self.functions.dropout(ones_B11, rate, site + 1)

    def _as_trained(self, images_BCYX: Tensor) -> Tensor:
        """Pictures in [-1, 1] as the weights were trained to see them, channel by channel."""
        if not self.variant.rescales:
            return images_BCYX
        return (images_BCYX * 0.5 + 0.5 - self.mean_C11) / self.std_C11

    def _check(self, images_BCYX: Tensor) -> None:
        expected = (self.variant.channels, *self.img_size)
        if tuple(images_BCYX.shape[1:]) != expected:
            raise VitcoreError(
                f"{self.variant.name}: pictures of shape {tuple(images_BCYX.shape[1:])} for a model of {expected} "
                "(channels, height, width); build the model for them or resize them"
            )


def build_model(
    variant_name: str, img_size: int | tuple[int, int], num_classes: int, **overrides: Any
) -> VisionTransformer:
    """Build the named variant; `overrides` replace fields of it, such as `dropout=0.0`.

    Raises VitcoreError for an unknown variant or field, and for sizes that make no model.
    """
    return VisionTransformer(find_variant(variant_name).replace(**overrides), img_size, num_classes)


def parameter_names(model: nn.Module) -> list[str]:
    """The names of the model's parameters in the one fixed order: numbers inside names count as numbers.

    Sorted, so the order does not depend on the order of creation; `blocks.2` comes before `blocks.10`.
    """
    return sorted((name for name, _ in model.named_parameters()), key=_natural)


def computes_narrow(name: str) -> bool:
    """Whether a parameter of this name is used in the dtype of the products, where that is narrower than its own: those of
    the blocks and of what follows them. What makes tokens of a picture computes with the parameters themselves: a hybrid
    standardises its kernels first, and the patches' are multiplied by the pictures' normalisation."""
    return name.startswith(("blocks.", "norm.", "pre_logits.", "head."))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
