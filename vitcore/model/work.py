"""The nominal work of a model: the multiplications of all its matrix products, by arithmetic on its shapes.

That of the model as the paper has it: what an implementation leaves out (all but the class token in the last block) or does twice
(attention scores in a fused backward) changes its time and not its work, so that rates of different implementations compare.
"""

from __future__ import annotations

from vitcore.model.shapes import EXPANSION
from vitcore.model.variants import Variant

ASSUMED_CLASSES = 1000
"""Of a head, where no data set is opened yet; its part of a model's work and memory is small."""


def forward_macs(variant: Variant, side: int, classes: int) -> int:
    """Multiply-accumulates of one picture's forward, of `side` pixels, with convolutions counted as products."""
    rows, columns = variant.grid(side, side)
    patches, d = rows * columns, variant.width
    tokens = patches + (1 if variant.pool == "token" else 0)
    channels, macs = (variant.channels, 0) if variant.stages is None else _stem(variant, side)
    macs += patches * d * channels * variant.patch**2
    products = tokens * (3 * d * d + d * d + 2 * d * variant.mlp)
    attention = 2 * tokens * tokens * d
    macs += variant.depth * (products + attention)
    if variant.representation:
        macs += d * variant.representation
    return macs + (variant.representation or d) * classes


def step_operations(variant: Variant, side: int, classes: int, images: int) -> int:
    """Operations of a training step, forward and backward: 2 a multiply-accumulate, 3 times the forward's."""
    return 3 * 2 * forward_macs(variant, side, classes) * images


def _stem(variant: Variant, side: int) -> tuple[int, int]:
    """Channels that come out of a hybrid's ResNet, and the multiply-accumulates of its convolutions."""
    size, channels = -(-side // 2), variant.stem_width
    macs = size**2 * channels * variant.channels * 7 * 7
    size = -(-size // 2)
    for number, units in enumerate(variant.stages or ()):
        width = variant.stem_width * 2**number
        out = EXPANSION * width
        for unit in range(units):
            before, stride = size, 2 if number and not unit else 1
            size = -(-size // stride)
            macs += before**2 * channels * width + size**2 * (width * width * 9 + width * out)
            if channels != out or stride != 1:
                macs += size**2 * channels * out
            channels = out
    return channels, macs
