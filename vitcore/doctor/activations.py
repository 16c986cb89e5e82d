"""What autograd keeps of a training forward for its backward, by arithmetic on shapes: no tensor is made, no torch imported.

Each line says where it is kept, in which shape, and how often. That it is what the model really keeps, tests measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod
from typing import NamedTuple

from vitcore.backend import Keeps
from vitcore.model.shapes import EXPANSION, GROUPS
from vitcore.model.variants import Variant

# Shapes: B rows, N tokens, Q tokens that a block gives, D width, M width of the MLP, H heads, R what the head reads.


class Kept(NamedTuple):
    """Tensors of one shape; `number` is the bytes of each of their numbers."""

    where: str
    shape: tuple[int, ...]
    number: int
    times: int = 1

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return prod(self.shape) * self.number * self.times


@dataclass(frozen=True)
class How:
    """How a forward computes. `residual` and `product` are bytes of a number between the blocks and in products: 4 and 4 in
    fp32, 4 and 2 where operands are cast (`casts`, whose copies of weights are kept too), 2 and 2 with narrow weights."""

    residual: int = 4
    product: int = 4
    casts: bool = False
    pooled: bool = False
    """Whether the last block computes the class token alone."""
    patch_dropout: float = 0.0
    keeps: Keeps | None = None
    """What the kernel of self-attention keeps; None: as the reference."""
    unrecorded: int = 0
    """How many things come first of which nothing is trained, and nothing kept: what makes tokens, then block by block."""


@dataclass(frozen=True)
class Activations:
    """What is kept: `outside` of the blocks, in each of the `depth` blocks but the last, in the last. `inputs` of a block is
    what is left of it where blocks compute twice. `working` is what a block's backward makes besides."""

    outside: tuple[Kept, ...]
    block: tuple[Kept, ...]
    last: tuple[Kept, ...]
    inputs: Kept
    depth: int
    working: int

    def peak(self, remat: bool) -> int:
        """The most that is kept at one time."""
        outside, block, last = (sum(k.bytes for k in of) for of in (self.outside, self.block, self.last))
        if not remat or self.depth == 0:
            return outside + max(self.depth - 1, 0) * block + last
        inputs = self.inputs.bytes
        return outside + self.depth * inputs + max((block if self.depth > 1 else 0) - inputs, last - inputs, 0)

    @property
    def first(self) -> int:
        """What is still kept when the backward comes to what was computed first."""
        return sum(k.bytes for k in self.outside if k.where.startswith("patch_embed"))

    def largest(self, remat: bool) -> list[Kept]:
        """Every line, largest first."""
        often = min(1, self.depth - 1) if remat else self.depth - 1
        often = max(often, 0)
        lines = [*self.outside, *(k._replace(times=k.times * often) for k in self.block), *self.last]
        lines += [self.inputs._replace(times=self.depth)] if remat else []
        return sorted(lines, key=lambda k: -k.bytes)


def activations(variant: Variant, side: tuple[int, int], rows: int, classes: int, how: How) -> Activations:
    """Of a micro-batch of `rows` pictures."""
    v, d = variant, how.product
    patches = prod(variant.grid(*side))
    slots = 1 if v.pool == "token" else 0
    whole, tokens = slots + patches, slots + patches - round(patches * how.patch_dropout)
    cut = (how.pooled and v.pool == "token" and not v.attention_dropout, 1 if how.pooled and slots else tokens)
    channels = v.channels if v.stages is None else _channels(v)
    outside = [*_stem(v, side, rows, how)] if v.stages is not None else []
    outside.append(Kept("patch_embed", (rows, whole, channels * v.patch**2), d))
    if how.product != 4 and v.stages is not None:  # a copy of the kernels, where the map's gradient is asked for
        outside.append(Kept("patch_embed.proj.weight", (v.width, channels * v.patch**2), d))
    if v.dropout:
        outside.append(Kept("patch_embed", (rows, whole, v.width), 1))
    # Of the class token's row alone, but that is a view of what the last block gave.
    outside += [Kept("norm", (rows, cut[1], v.width), how.residual), Kept("norm", (rows, 1 if slots else tokens), 4, 2)]
    if v.representation:
        outside += _dense("pre_logits.fc", (rows, v.width), v.representation, how)
    if v.representation and how.casts:
        outside.append(Kept("pre_logits", (rows, v.representation), d))
    if classes:
        outside += _dense("head", (rows, v.representation or v.width), classes, how)
    outside.append(Kept("loss", (rows, classes), 4))
    if how.unrecorded:
        outside = [k for k in outside if not k.where.startswith("patch_embed")]
    recorded = min(v.depth, v.depth + 1 - how.unrecorded)
    return Activations(
        tuple(outside),
        tuple(_block(v, "blocks", rows, tokens, tokens, False, how)),
        tuple(_block(v, f"blocks.{v.depth - 1}", rows, tokens, cut[1], cut[0], how)) if recorded > 0 else (),
        Kept("blocks", (rows, tokens, v.width), how.residual),
        max(recorded, 0),
        _working(v, rows, tokens, how),
    )


def _block(v: Variant, name: str, B: int, N: int, Q: int, alone: bool, how: How) -> Iterator[Kept]:
    """`alone`: the projection makes the query of the one token alone."""
    d, D, M = how.product, v.width, v.mlp
    yield Kept(f"{name}.norm1", (B, N, D), how.residual)
    yield Kept(f"{name}.norm1", (B, N), 4, 2)
    yield from _dense(f"{name}.attn.qkv", (B, N, D), 3 * D, how)
    if alone and how.casts:
        yield Kept(f"{name}.attn.qkv", (B, Q, D), d)
    yield from _attention(v, f"{name}.attn", B, N, Q if alone else N, how)
    yield from _dense(f"{name}.attn.proj", (B, Q if alone else N, D), D, how)
    yield from _branch(v, f"{name}.attn.proj", f"{name}.ls1", (B, Q, D), how)
    yield Kept(f"{name}.norm2", (B, Q, D), how.residual)
    yield Kept(f"{name}.norm2", (B, Q), 4, 2)
    yield from _dense(f"{name}.mlp.fc1", (B, Q, D), M, how)
    yield Kept(f"{name}.mlp.fc1", (B, Q, M), d)
    if v.dropout:
        yield Kept(f"{name}.mlp.fc1", (B, Q, M), 1)
    yield from _dense(f"{name}.mlp.fc2", (B, Q, M), D, how)
    yield from _branch(v, f"{name}.mlp.fc2", f"{name}.ls2", (B, Q, D), how)


def _dense(name: str, read: tuple[int, ...], out: int, how: How) -> Iterator[Kept]:
    """A dense layer keeps what it reads, and its weights where they are a copy."""
    yield Kept(name, read, how.product)
    if how.casts:
        yield Kept(f"{name}.weight", (out, read[-1]), how.product)


def _branch(v: Variant, name: str, scale: str, shape: tuple[int, ...], how: How) -> Iterator[Kept]:
    if v.dropout:
        yield Kept(name, shape, 1)
    if v.layer_scale is not None:
        yield Kept(scale, shape, how.product)


def _attention(v: Variant, name: str, B: int, N: int, Q: int, how: How) -> Iterator[Kept]:
    d, scores = how.product, (B, v.heads, Q, N)
    if how.keeps is not None and not v.attention_dropout and Q == N:
        k = how.keeps
        yield Kept(f"{name} (q, k, v)", (round(k.tokens * B * N * v.width),), k.number or d)
        yield Kept(f"{name} (probabilities)", (round(k.scores * prod(scores)),), k.number or d)
        yield Kept(f"{name} (sums)", (round(k.rows * B * v.heads * N),), 4)
        return
    yield Kept(f"{name} (q)", (B, Q, v.width), d)
    yield Kept(f"{name} (k, v)", (B, N, v.width), d, 2)
    yield Kept(f"{name} (probabilities)", scores, 4)
    if d != 4 or v.attention_dropout:  # what is multiplied with v is then another tensor than the softmax's
        yield Kept(f"{name} (probabilities)", scores, d)
    if v.attention_dropout:
        yield Kept(f"{name} (probabilities)", scores, 1)


def _working(v: Variant, B: int, N: int, how: How) -> int:
    """The most that the backward of one block makes and holds at a time, the gradients of parameters left out: of the MLP
    two gradients of its inner width, or of attention those of the scores before and after the softmax, or those of q, k and
    v side by side; each beside the gradient of the block's result."""
    d, BND, BNM, scores = how.product, B * N * v.width, B * N * v.mlp, B * v.heads * N * N
    inner = (3 if v.dropout else 2) * BNM * d
    softmax = scores * (8 if how.keeps is None else 2 * (how.keeps.number or d)) + 4 * BND * d
    sides = 9 * BND * d
    return BND * how.residual + max(inner, softmax, sides)


def _channels(v: Variant) -> int:
    return EXPANSION * v.stem_width * 2 ** (len(v.stages) - 1) if v.stages else v.stem_width


def _stem(v: Variant, side: tuple[int, int], B: int, how: How) -> Iterator[Kept]:
    """A hybrid's ResNet: each convolution keeps the map that it reads, its kernels with their mean taken off, and these
    standardised; each norm the map that it reads, in f32; each ReLU its result, which the next convolution reads where it
    need not be padded."""
    d, root = how.product, "patch_embed.backbone"

    def conv(name: str, out: int, given: int, kernel: int, read: tuple[int, int] | None = None) -> Iterator[Kept]:
        """`read`: the size of what it reads, where nothing else keeps that."""
        yield Kept(name, (out, given, kernel, kernel), 4)
        yield Kept(name, (out, given, kernel, kernel), d)
        if read is not None:
            yield Kept(name, (B, given, *read), d)

    def norm(name: str, channels: int, size: tuple[int, int]) -> Iterator[Kept]:
        yield Kept(name, (B, channels, *size), 4)
        yield Kept(name, (B, GROUPS), 4, 2)

    def half(size: tuple[int, int]) -> tuple[int, int]:
        return ceil(size[0] / 2), ceil(size[1] / 2)

    def padded(size: tuple[int, int], kernel: int, stride: int) -> tuple[int, int]:
        y, x = (n + max((ceil(n / stride) - 1) * stride + kernel - n, 0) for n in size)
        return y, x

    size, channels = half(side), v.stem_width
    yield from conv(f"{root}.stem.conv", channels, v.channels, 7, padded(side, 7, 2))
    yield from norm(f"{root}.stem.norm", channels, size)
    yield Kept(f"{root}.stem", (B, channels, *size), d)
    yield Kept(f"{root}.stem", (B, channels, *padded(size, 3, 2)), d)
    size = half(size)
    yield Kept(f"{root}.stem", (B, channels, *size), 8)
    if v.stages:
        yield Kept(f"{root}.stem", (B, channels, *size), d)
    for s, units in enumerate(v.stages or ()):
        width = v.stem_width * 2**s
        for u in range(units):
            unit, stride = f"{root}.stages.{s}.blocks.{u}", 2 if s and not u else 1
            after, out = (half(size) if stride == 2 else size), EXPANSION * width
            yield from conv(f"{unit}.conv1", width, channels, 1)
            yield from norm(f"{unit}.norm1", width, size)
            yield Kept(f"{unit}", (B, width, *size), d)
            yield from conv(f"{unit}.conv2", width, width, 3, padded(size, 3, stride))
            yield from norm(f"{unit}.norm2", width, after)
            yield Kept(f"{unit}", (B, width, *after), d)
            yield from conv(f"{unit}.conv3", out, width, 1)
            yield from norm(f"{unit}.norm3", out, after)
            yield Kept(f"{unit}", (B, out, *after), d)
            if (channels, stride) != (out, 1):
                yield from conv(f"{unit}.downsample.conv", out, channels, 1)
                yield from norm(f"{unit}.downsample.norm", out, after)
            size, channels = after, out
