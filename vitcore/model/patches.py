"""From pictures to tokens: square patches, each mapped by one product, which takes bytes as they are.

Parameter names are timm's.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.model.stem import Stem
from vitcore.model.variants import Variant

# Shapes: B batch, C channels, Y rows and X columns of the picture in pixels, G rows and J columns of the patch grid, P and Q
# rows and columns of a patch, N tokens, K numbers of a patch, D width.

# Subtracted from bytes before a product; see PatchEmbedding.
_BYTES_MIDDLE = 128


class Normalisation(NamedTuple):
    """How a byte u becomes what the weights see, channel by channel: (u - 128) * factor + rest."""

    factor_C11: Tensor
    rest_C11: Tensor


def bytes_to_unit(weight_DCPP: Tensor) -> Normalisation:
    """Bytes to numbers in [-1, 1], in the dtype and on the device of the weights."""
    factor_C11 = torch.full_like(weight_DCPP[0, :, :1, :1], 1 / 127.5)
    return Normalisation(factor_C11, factor_C11 * (_BYTES_MIDDLE - 127.5))


def centred(images_BCYX: Tensor) -> Tensor:
    """Bytes as numbers in [-1, 1]; numbers as they are."""
    return images_BCYX.to(torch.float32) / 127.5 - 1 if images_BCYX.dtype == torch.uint8 else images_BCYX


class PatchEmbedding(nn.Module):
    """Cuts a picture, or the map of a hybrid's ResNet, into square patches and maps each to a token.

    The weights are those of a convolution whose kernel is as large as its stride, which is one product of all patches with
    a matrix; as a product its result lies token after token, where a convolution's would have to be turned.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.backbone = None if variant.stages is None else Stem(variant)
        self.patch = variant.patch
        channels = variant.channels if self.backbone is None else self.backbone.channels
        self.proj = nn.Conv2d(channels, variant.width, kernel_size=variant.patch, stride=variant.patch)

    def forward(self, images_BCYX: Tensor, slots: int, bytes_as: Normalisation | None, dtype: torch.dtype) -> Tensor:
        """(B, C, Y, X) to (B, slots + G * J, D), of which the first `slots` tokens are 0 and the bias is not added.

        Of bytes, `bytes_as` says how they become what the weights see; it is folded into the weights, and its constant
        part is left to `bias`, so that no normalised picture is ever made. `dtype` is that of the product.
        """
        x_BCYX = images_BCYX if self.backbone is None else self.backbone(images_BCYX.to(dtype))
        patches_BNK, weight_DCPP = cut(x_BCYX, self.patch), self.proj.weight
        if slots:
            patches_BNK = F.pad(patches_BNK, (0, 0, slots, 0), value=0 if bytes_as is None else _BYTES_MIDDLE)
        patches_BNK = patches_BNK.to(dtype)
        if bytes_as is not None:
            # Around 0, bytes are exact in 8 bits of mantissa, and a narrow product cancels nothing large.
            patches_BNK = patches_BNK - _BYTES_MIDDLE
            weight_DCPP = weight_DCPP * bytes_as.factor_C11
        return F.linear(patches_BNK, weight_DCPP.flatten(1).to(dtype))

    def bias(self, bytes_as: Normalisation | None) -> Tensor:
        """What every patch's token has besides: (D,)."""
        bias_D: Tensor = self.proj.bias  # type: ignore[assignment]
        return bias_D if bytes_as is None else bias_D + (self.proj.weight * bytes_as.rest_C11).sum((1, 2, 3))


def cut(images_BCYX: Tensor, patch: int) -> Tensor:
    """Square patches of `patch` pixels a side, row by row, each as its channels' pixels: (B, G * J, C * patch * patch). What is
    left over at the lower and the right edge is left out."""
    batch, channels, height, width = images_BCYX.shape
    rows, columns = height // patch, width // patch
    images_BCYX = images_BCYX[:, :, : rows * patch, : columns * patch]
    cells_BCGPJQ = images_BCYX.reshape(batch, channels, rows, patch, columns, patch)
    return cells_BCGPJQ.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch * patch)
