"""The ResNet in front of a hybrid (BiT's ResNet v2, arXiv 1912.11370, as google-research/vision_transformer uses it).

Parameter names are timm's. Arithmetic is the original's: kernels standardised by their standard deviation plus 1e-5,
32 groups with epsilon 1e-6, and padding that depends on the size of the map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.model.shapes import EXPANSION, GROUPS
from vitcore.model.variants import Variant

# Shapes: B batch, C channels, O channels that come out, Y rows and X columns of a map, H and W rows and columns of a
# kernel, U width of a stage.


def pad_same(x_BCYX: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad so that ceil(size / stride) cells come out: what does not split evenly goes below and to the right."""
    sides = []
    for size in (x_BCYX.shape[3], x_BCYX.shape[2]):  # the last dimension first, as F.pad wants it
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x_BCYX, sides, value=value) if any(sides) else x_BCYX


class StdConv(nn.Conv2d):
    """A convolution whose kernel is standardised over everything that one output sums (arXiv 1903.10520), padded
    SAME."""

    def __init__(self, variant: Variant, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, out, kernel, stride=stride, bias=False)
        self.std_eps, self.var_eps = variant.std_eps, variant.var_eps

    def forward(self, x_BCYX: Tensor) -> Tensor:
        w_OCHW = self.weight
        # Means of squares and not var: some recording devices have no var, and this one is the population's.
        centred_OCHW = w_OCHW - w_OCHW.mean((1, 2, 3), keepdim=True)
        var_O111 = (centred_OCHW * centred_OCHW).mean((1, 2, 3), keepdim=True)
        w_OCHW = centred_OCHW / (torch.sqrt(var_O111 + self.var_eps) + self.std_eps)
        return F.conv2d(
            pad_same(x_BCYX, self.kernel_size[0], self.stride[0]), w_OCHW.to(x_BCYX.dtype), stride=self.stride
        )


class Norm(nn.GroupNorm):
    """Group norm in the dtype of its parameters, whatever the map's: these stay wide where the map is narrow."""

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return super().forward(x_BCYX.to(self.weight.dtype)).to(x_BCYX.dtype)


def _norm(variant: Variant, channels: int) -> Norm:
    return Norm(GROUPS, channels, eps=variant.group_norm_eps)


class Shortcut(nn.Module):
    """What is added to a unit whose channels or size change: a 1x1 convolution and its norm."""

    def __init__(self, variant: Variant, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv = StdConv(variant, channels, out, 1, stride)
        self.norm = _norm(variant, out)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        shortcut_BOYX: Tensor = self.norm(self.conv(x_BCYX))
        return shortcut_BOYX


class Unit(nn.Module):
    """A bottleneck: 1x1, 3x3 with the stride, 1x1 to four times the width; the shortcut is added before the last
    ReLU."""

    def __init__(self, variant: Variant, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = EXPANSION * width
        self.conv1 = StdConv(variant, channels, width, 1)
        self.norm1 = _norm(variant, width)
        self.conv2 = StdConv(variant, width, width, 3, stride)
        self.norm2 = _norm(variant, width)
        self.conv3 = StdConv(variant, width, out, 1)
        self.norm3 = _norm(variant, out)
        self.downsample = Shortcut(variant, channels, out, stride) if (channels, stride) != (out, 1) else None

    def forward(self, x_BCYX: Tensor) -> Tensor:
        shortcut_BOYX = x_BCYX if self.downsample is None else self.downsample(x_BCYX)
        y_BUYX = F.relu(self.norm1(self.conv1(x_BCYX)))
        y_BUYX = F.relu(self.norm2(self.conv2(y_BUYX)))
        return F.relu(self.norm3(self.conv3(y_BUYX)) + shortcut_BOYX)


class Root(nn.Module):
    """7x7 convolution of stride 2, norm, ReLU, 3x3 maximum of stride 2: a quarter of the size comes out."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.conv = StdConv(variant, variant.channels, variant.stem_width, 7, 2)
        self.norm = _norm(variant, variant.stem_width)

    def forward(self, images_BCYX: Tensor) -> Tensor:
        x_BOYX = F.relu(self.norm(self.conv(images_BCYX)))
        return F.max_pool2d(pad_same(x_BOYX, 3, 2, value=-torch.inf), 3, stride=2)


class Stage(nn.Module):
    """Units of one width; the first halves the size, except in the first stage."""

    def __init__(self, variant: Variant, channels: int, width: int, units: int, stride: int) -> None:
        super().__init__()
        out = EXPANSION * width
        self.blocks = nn.ModuleList(
            Unit(variant, out if unit else channels, width, 1 if unit else stride) for unit in range(units)
        )

    def forward(self, x_BCYX: Tensor) -> Tensor:
        for block in self.blocks:
            x_BCYX = block(x_BCYX)
        return x_BCYX


class Stem(nn.Module):
    """The ResNet of a hybrid: pictures (B, C, Y, X) to the map that is cut into patches.

    Its channels are `channels`; its size is the picture's over 4, and half of that for each stage after the first.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.stem = Root(variant)
        self.stages = nn.ModuleList()
        self.channels = variant.stem_width
        for number, units in enumerate(variant.stages or ()):
            width = variant.stem_width * 2**number
            self.stages.append(Stage(variant, self.channels, width, units, 2 if number else 1))
            self.channels = EXPANSION * width

    def forward(self, images_BCYX: Tensor) -> Tensor:
        # torch's group norm on the cpu loses digits in channels_last (1e-3 of a logit at 384 pixels), which a picture
        # that was permuted from rows of pixels is in.
        x_BCYX = self.stem(images_BCYX.contiguous())
        for stage in self.stages:
            x_BCYX = stage(x_BCYX)
        return x_BCYX
