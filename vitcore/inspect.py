"""`python -m vitcore.inspect`: what a file of weights holds, read from names and shapes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vitcore.cli import run
from vitcore.commandline import parse

if TYPE_CHECKING:
    from vitcore.weights.examine import Weights


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """What to look at."""

    file: Annotated[str, tyro.conf.Positional]
    """File or folder of weights (npz, safetensors, pth, a checkpoint or run of ours), official name or hub id."""
    json: bool = False
    """Print one JSON object."""


def main(argv: Sequence[str]) -> int:
    """Print a table, or one JSON object."""
    asked = parse(Inspect, argv, "vitcore inspect", __doc__ or "")
    from vitcore.weights.examine import examine
    from vitcore.weights.resolve import resolve

    held = describe(examine(resolve(asked.file)))
    if asked.json:
        print(json.dumps(held))
        return 0
    width = max(map(len, held))
    for name, value in held.items():
        shown = "; ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else value
        if shown != "":
            print(f"{name:<{width}}  {shown}")
    return 0


def describe(weights: Weights) -> dict[str, Any]:
    """What `vitcore inspect` says: plain data, in the order it is shown."""
    variant, found, grid = weights.variant, weights.found, weights.grid
    size = weights.img_size
    patches = f"{grid[0]}x{grid[1]}" if grid else str(found.patches)
    stem = ""
    if variant.stages is not None:
        stem = (
            f"ResNet of stages {'-'.join(map(str, variant.stages)) or 'none (root alone)'}, {variant.stem_width} wide"
        )
    arrays = [weights.arrays[p.name] for p in weights.pieces]
    return {
        "file": str(weights.path),
        "format": f"{weights.file.format}, {weights.layout} names",
        "model": variant.name,
        "stem": stem,
        "encoder": f"{variant.depth} blocks, width {variant.width}, {variant.heads} heads, MLP {variant.mlp}, "
        f"patch {variant.patch}",
        "options": [
            "class token" if variant.pool == "token" else "mean of all patches",
            *([f"representation layer (pre-logits) of {variant.representation}"] if variant.representation else []),
            *(["factors of residual branches (layer scale)"] if variant.layer_scale is not None else []),
        ],
        "computes": variant.arithmetic,
        "resolution": f"{size[0]}x{size[1]} pixels, {patches} patches" if size else f"{patches} patches, of unknown grid",
        "head": _head(weights),
        "parameters": sum(prod(a.shape) for a in arrays),
        "dtypes": ", ".join(sorted({a.dtype for a in arrays})),
        "origin": origin(weights),
        "notes": list(weights.notes),
        "variant": json.dumps(asdict(variant)),
    }  # fmt: skip


def _head(weights: Weights) -> str:
    classes = weights.found.num_classes
    if not classes:
        return "none"
    names = weights.found.class_names
    known = f", named ({names[0]} ... {names[-1]})" if names else ""
    return f"{classes} classes{known}{', all zero: made to be replaced' if weights.head_is_zero() else ''}"


def origin(weights: Weights) -> str:
    """Where the weights probably come from; shapes and names do not prove it."""
    found, variant = weights.found, weights.variant
    if weights.layout == "vitcore":
        return "vitcore"
    if weights.layout == "timm":
        named = weights.config.get("architecture")
        return f"timm, {named}" if isinstance(named, str) else "a state dict of timm, or of its names"
    if weights.layout == "huggingface":
        named = weights.config.get("_name_or_path") or weights.config.get("model_type")
        return f"transformers, {named}" if isinstance(named, str) and named else "a state dict of transformers"
    if variant.representation and found.num_classes == 21843:
        return "Google, imagenet21k (the original paper's upstream files)"
    if found.num_classes == 21843:
        return "Google, AugReg upstream on imagenet21k"
    if found.num_classes == 1000:
        return "Google, on ImageNet 2012: imagenet21k+imagenet2012, AugReg or SAM, whose files do not differ in form"
    return "Google's code, or in its layout"


if __name__ == "__main__":
    sys.exit(run(main))
