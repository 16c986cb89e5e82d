"""An independent forward of Google's Vision Transformer, in NumPy and float64, from its files' own names and layout.

It shares nothing with vitcore: written from the description of google-research/vision_transformer (tanh GELU, epsilon
1e-6 of both norms, kernels over their standard deviation plus 1e-5, padding by size, corner-aligned positions, pre-logits
with tanh). Each `mistake` is one that loaders and re-implementations have made.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import zoom

Array = np.ndarray[Any, Any]
_TODAY = {"LayerNorm_2": "LayerNorm_1", "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
          "MlpBlock_3": "MlpBlock_0"}  # fmt: skip


def random_parameters(
    rng: np.random.Generator, *, patch: int, width: int, depth: int, heads: int, mlp: int, classes: int,
    grid: tuple[int, int], stages: tuple[int, ...] | None = None, stem_width: int = 64, token: bool = True,
    representation: int = 0, today: bool = False, prefix: str = "", flat_norms: bool = False,
) -> dict[str, Array]:  # fmt: skip
    """Parameters of a file, float32, by name; none is at a value at which a mistake would not show.

    `today` numbers as current Flax does; `flat_norms` gives group norms one dimension instead of four.
    """
    p: dict[str, Array] = {}

    def kernel(name: str, *shape: int, fan_in: int, gain: float = 1.3) -> None:
        p[name] = (rng.standard_normal(shape) * gain / math.sqrt(fan_in)).astype(np.float32)

    def vector(name: str, *shape: int, around: float = 0.0) -> None:
        p[name] = (around + 0.3 * rng.standard_normal(shape)).astype(np.float32)

    def group_norm(name: str, channels: int) -> None:
        shape = (channels,) if flat_norms else (1, 1, 1, channels)
        # A unit's last norm is small, as training from zero leaves it: else a chain of random units amplifies rounding.
        vector(f"{name}/scale", *shape, around=0.2 if name.endswith("gn3") else 1.0)
        vector(f"{name}/bias", *shape)

    channels = 3
    if stages is not None:
        kernel("conv_root/kernel", 7, 7, 3, stem_width, fan_in=147)
        group_norm("gn_root", stem_width)
        channels = stem_width
        for s, units in enumerate(stages, start=1):
            inner = stem_width * 2 ** (s - 1)
            for u in range(1, units + 1):
                unit = f"block{s}/unit{u}"
                kernel(f"{unit}/conv1/kernel", 1, 1, channels, inner, fan_in=channels)
                kernel(f"{unit}/conv2/kernel", 3, 3, inner, inner, fan_in=9 * inner)
                kernel(f"{unit}/conv3/kernel", 1, 1, inner, 4 * inner, fan_in=inner)
                group_norm(f"{unit}/gn1", inner)
                group_norm(f"{unit}/gn2", inner)
                group_norm(f"{unit}/gn3", 4 * inner)
                if u == 1:
                    kernel(f"{unit}/conv_proj/kernel", 1, 1, channels, 4 * inner, fan_in=channels)
                    group_norm(f"{unit}/gn_proj", 4 * inner)
                channels = 4 * inner
    kernel("embedding/kernel", patch, patch, channels, width, fan_in=patch * patch * channels)
    vector("embedding/bias", width)
    if token:
        vector("cls", 1, 1, width)
    vector("Transformer/posembed_input/pos_embedding", 1, grid[0] * grid[1] + token, width)
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            vector(f"{block}/{norm}/scale", width, around=1.0)
            vector(f"{block}/{norm}/bias", width)
        for part in ("query", "key", "value"):
            kernel(f"{attention}/{part}/kernel", width, heads, width // heads, fan_in=width)
            vector(f"{attention}/{part}/bias", heads, width // heads)
        kernel(f"{attention}/out/kernel", heads, width // heads, width, fan_in=width)
        vector(f"{attention}/out/bias", width)
        kernel(f"{block}/MlpBlock_3/Dense_0/kernel", width, mlp, fan_in=width)
        vector(f"{block}/MlpBlock_3/Dense_0/bias", mlp)
        kernel(f"{block}/MlpBlock_3/Dense_1/kernel", mlp, width, fan_in=mlp)
        vector(f"{block}/MlpBlock_3/Dense_1/bias", width)
    vector("Transformer/encoder_norm/scale", width, around=1.0)
    vector("Transformer/encoder_norm/bias", width)
    if representation:
        kernel("pre_logits/kernel", width, representation, fan_in=width)
        vector("pre_logits/bias", representation)
    kernel("head/kernel", representation or width, classes, fan_in=representation or width, gain=3.0)
    vector("head/bias", classes)
    if today:
        p = {re.sub("|".join(_TODAY), lambda m: _TODAY[m[0]], name): value for name, value in p.items()}
    return {prefix + name: value for name, value in p.items()}


def forward(params: Mapping[str, Array], images: Array, mistake: str | None = None) -> Array:
    """Logits (B, K) of pictures (B, rows, columns, 3) in [-1, 1], in float64."""
    prefix = next(n for n in params if n.endswith("embedding/kernel")).removesuffix("embedding/kernel")
    back = {new: old for old, new in _TODAY.items()}
    p = {n.removeprefix(prefix): v.astype(np.float64) for n, v in params.items()}
    if any("/MlpBlock_0/" in n for n in p):
        p = {re.sub("|".join(f"{new}(?=/)" for new in back), lambda m: back[m[0]], n): v for n, v in p.items()}
    x = images.astype(np.float64)
    if mistake == "pixels from 0 to 1":
        x = (x + 1) / 2
    if mistake == "ImageNet's mean and deviation":
        x = ((x + 1) / 2 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    if "conv_root/kernel" in p:
        x = _resnet(p, x, mistake)
    kernel = p["embedding/kernel"]
    if mistake == "height and width of the kernel swapped":
        kernel = kernel.transpose(1, 0, 2, 3)
    side = kernel.shape[0]
    x = _conv(x, kernel, side) + p["embedding/bias"]
    grid = x.shape[1:3]
    x = x.reshape(len(x), -1, x.shape[-1])
    positions = p["Transformer/posembed_input/pos_embedding"]
    if "cls" in p:
        x = np.concatenate([np.broadcast_to(p["cls"], (len(x), 1, x.shape[-1])), x], 1)
        patches = _resample(positions[:, 1:], grid, mistake)
        slot = (
            np.zeros_like(positions[:, :1]) if mistake == "the class token without its position" else positions[:, :1]
        )
        x = x + np.concatenate([slot, patches], 1)
    else:
        x = x + _resample(positions, grid, mistake)
    depth = len({n.split("/")[1] for n in p if n.startswith("Transformer/encoderblock_")})
    order = sorted(range(depth), key=str) if mistake == "blocks sorted as text" else range(depth)
    for i in order:
        x = _block({n.split(f"encoderblock_{i}/")[1]: v for n, v in p.items() if f"encoderblock_{i}/" in n}, x, mistake)
    norm = p["Transformer/encoder_norm/scale"], p["Transformer/encoder_norm/bias"]
    if "cls" in p:
        x = _layer_norm(x, *norm, mistake)[:, 0]
    elif mistake == "the mean before the last norm":
        x = _layer_norm(x.mean(1), *norm, mistake)
    else:
        x = _layer_norm(x, *norm, mistake).mean(1)
    if "pre_logits/kernel" in p and mistake != "no pre-logits":
        x = x @ p["pre_logits/kernel"] + p["pre_logits/bias"]
        x = x if mistake == "pre-logits without tanh" else np.tanh(x)
    return x @ p["head/kernel"] + p["head/bias"]


def _block(p: Mapping[str, Array], x: Array, mistake: str | None) -> Array:
    y = _layer_norm(x, p["LayerNorm_0/scale"], p["LayerNorm_0/bias"], mistake)
    a = "MultiHeadDotProductAttention_1"

    def project(part: str) -> Array:
        kernel, bias = p[f"{a}/{part}/kernel"], p[f"{a}/{part}/bias"]
        if mistake == "heads interleaved":
            kernel = kernel.reshape(len(kernel), kernel.shape[2], kernel.shape[1]).transpose(0, 2, 1)
        out: Array = np.einsum("bnd,dhe->bhne", y, kernel)
        return out if mistake == "no bias of query, key and value" else out + bias[:, None]

    q, k, v = map(project, ("query", "key", "value"))
    scores = np.einsum("bhne,bhme->bhnm", q / math.sqrt(q.shape[-1]), k)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhnm,bhme->bnhe", scores / scores.sum(-1, keepdims=True), v)
    x = x + np.einsum("bnhe,hed->bnd", mixed, p[f"{a}/out/kernel"]) + p[f"{a}/out/bias"]
    y = _layer_norm(x, p["LayerNorm_2/scale"], p["LayerNorm_2/bias"], mistake)
    y = _gelu(y @ p["MlpBlock_3/Dense_0/kernel"] + p["MlpBlock_3/Dense_0/bias"], mistake)
    out: Array = x + y @ p["MlpBlock_3/Dense_1/kernel"] + p["MlpBlock_3/Dense_1/bias"]
    return out


def _gelu(x: Array, mistake: str | None) -> Array:
    if mistake == "exact GELU":
        out: Array = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        return out
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _layer_norm(x: Array, scale: Array, bias: Array, mistake: str | None) -> Array:
    eps = {"layer norm epsilon 1e-5": 1e-5, "layer norm epsilon 1e-12": 1e-12}.get(mistake or "", 1e-6)
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(var + eps) * scale + bias)


def _resample(positions: Array, grid: tuple[int, ...], mistake: str | None) -> Array:
    """Rows then columns, each interpolated linearly with the corners kept."""
    side = math.isqrt(positions.shape[1])
    x = positions.reshape(side, side, -1)
    if mistake == "positions by bicubic":
        x = zoom(x, (grid[0] / side, grid[1] / side, 1), order=3, mode="nearest", grid_mode=True)
        return x.reshape(1, grid[0] * grid[1], -1)
    for axis, new in enumerate(grid):
        old = x.shape[axis]
        if mistake == "positions by half pixels":
            at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        else:
            at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
        low = np.minimum(np.floor(at + 1e-12).astype(int), old - 1)
        high, part = np.minimum(low + 1, old - 1), at - low
        part = part.reshape([-1 if a == axis else 1 for a in range(3)])
        x = np.take(x, low, axis) * (1 - part) + np.take(x, high, axis) * part
    return x.reshape(1, grid[0] * grid[1], -1)


def _resnet(p: Mapping[str, Array], x: Array, mistake: str | None) -> Array:
    x = np.maximum(_gn(p, "gn_root", _std_conv(p, "conv_root", x, 2, mistake), mistake), 0)
    if mistake == "the pool without padding":
        x = sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2].max((-2, -1))
    else:
        x = sliding_window_view(_same(x, 3, 2, -np.inf), (3, 3), (1, 2))[:, ::2, ::2].max((-2, -1))
    stages = 1 + max((int(n[5 : n.index("/")]) for n in p if re.match(r"block\d+/", n)), default=0)
    for s in range(1, stages):
        units = 1 + max(int(m[1]) for n in p if (m := re.match(rf"block{s}/unit(\d+)/", n)))
        for u in range(1, units):
            stride = 2 if s > 1 and u == 1 else 1
            unit, short = f"block{s}/unit{u}", x
            first = mistake == "the stride in the first convolution"
            y = _std_conv(p, f"{unit}/conv1", x, stride if first else 1, mistake)
            y = np.maximum(_gn(p, f"{unit}/gn1", y, mistake), 0)
            y = _std_conv(p, f"{unit}/conv2", y, 1 if first else stride, mistake)
            y = np.maximum(_gn(p, f"{unit}/gn2", y, mistake), 0)
            y = _gn(p, f"{unit}/gn3", _std_conv(p, f"{unit}/conv3", y, 1, mistake), mistake)
            if u == 1:
                short = _gn(p, f"{unit}/gn_proj", _std_conv(p, f"{unit}/conv_proj", x, stride, mistake), mistake)
            x = np.maximum(y + short, 0)
    return x


def _std_conv(p: Mapping[str, Array], name: str, x: Array, stride: int, mistake: str | None) -> Array:
    w = p[f"{name}/kernel"]
    var = w.var((0, 1, 2), ddof=1 if mistake == "the unbiased variance of kernels" else 0)
    scale = np.sqrt(var) + 1e-5
    if mistake == "kernels over the root of variance + 1e-5":
        scale = np.sqrt(var + 1e-5)
    if mistake == "kernels over the root of variance + 1e-8":
        scale = np.sqrt(var + 1e-8)
    w = (w - w.mean((0, 1, 2))) / scale
    side = w.shape[0]
    if mistake == "symmetric padding":
        x = np.pad(x, ((0, 0), (side // 2, side // 2), (side // 2, side // 2), (0, 0)))
    else:
        x = _same(x, side, stride, 0.0)
    return _conv(x, w, stride)


def _same(x: Array, kernel: int, stride: int, value: float) -> Array:
    pads = []
    for size in x.shape[1:3]:
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def _conv(x: Array, kernel: Array, stride: int) -> Array:
    windows = sliding_window_view(x, kernel.shape[:2], (1, 2))[:, ::stride, ::stride]  # (B, rows, columns, C, h, w)
    return np.asarray(np.tensordot(windows, kernel, axes=((4, 5, 3), (0, 1, 2))))


def _gn(p: Mapping[str, Array], name: str, x: Array, mistake: str | None) -> Array:
    each = mistake == "a group for each channel of the projection's norm" and name.endswith("gn_proj")
    eps = 1e-5 if mistake == "group norm epsilon 1e-5" else 1e-6
    groups = x.shape[-1] if each else 32
    y = x.reshape(*x.shape[:3], groups, -1)
    y = (y - y.mean((1, 2, 4), keepdims=True)) / np.sqrt(y.var((1, 2, 4), keepdims=True) + eps)
    return np.asarray(y.reshape(x.shape) * p[f"{name}/scale"].reshape(-1) + p[f"{name}/bias"].reshape(-1))
