"""What a layout of weights is: the names and shapes of a file's arrays, and where each lies in a parameter of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import TYPE_CHECKING, Any, Literal

from vitcore.errors import VitcoreError
from vitcore.model.variants import VARIANTS, Variant
from vitcore.weights.files import Array

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
Kind = Literal["same", "dense", "conv"]
"""How a file holds a parameter: as we do; (inputs, outputs) of a dense layer, each perhaps split in heads; HWIO."""


@dataclass(frozen=True)
class Piece:
    """One array of a file, `name` of `shape`, and the parameter that it fills: all of it, or part `part` of `parts`
    equal ones along the first dimension."""

    name: str
    shape: tuple[int, ...]
    parameter: str
    kind: Kind = "same"
    part: int = 0
    parts: int = 1

    def ours(self, array: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The file's array as it lies in our part of that shape; a view."""
        if self.kind == "conv":
            return array.permute(3, 2, 0, 1)
        if self.kind == "dense":
            return array.reshape(shape[1], shape[0]).T
        return array.reshape(shape)

    def theirs(self, part: Tensor) -> Tensor:
        """Our part of a parameter as the file holds it."""
        if self.kind == "conv":
            return part.permute(2, 3, 1, 0)
        return (part.T if self.kind == "dense" else part).reshape(self.shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of that shape is this piece: a norm's or bias's length may come with dimensions of 1."""
        return shape == self.shape or (self.kind == "same" and _without_ones(shape) == _without_ones(self.shape))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(d for d in shape if d != 1)


@dataclass(frozen=True)
class Found:
    """What names and shapes say of a model. `positions` is the number of rows of the position embedding; `notes` are
    what had to be assumed, or is left unused, for people."""

    variant: Variant
    positions: int
    num_classes: int
    notes: tuple[str, ...] = ()
    class_slot: bool = True
    """Whether the class token, if there is one, has a position: then it is the first."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches, where the file says so; else they are a square."""
    img_size: tuple[int, int] | None = None
    """Rows and columns of pixels, where the file says so; else of the grid."""
    class_names: tuple[str, ...] | None = None

    @property
    def patches(self) -> int:
        """Positions but the class token's."""
        return self.positions - (self.variant.pool == "token" and self.class_slot)


Pieces = Callable[[Variant, int, int], list[Piece]]


@dataclass(frozen=True)
class Layout:
    """One library's way of naming. `clean` gives the arrays under the names that `describe` and `pieces` use."""

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    clean: Callable[[Mapping[str, Array]], tuple[dict[str, Array], tuple[str, ...]]]
    describe: Callable[[Context], Found]
    pieces: Pieces
    """(variant, patches, classes) -> the arrays of such a file; VitcoreError for a model that it has no names for."""


@dataclass(frozen=True)
class Context:
    """What `describe` reads: the shapes by clean name, the JSON beside the file, and what the caller said himself."""

    path: str
    shapes: Shapes
    beside: Mapping[str, Any] = field(default_factory=dict)
    """`config` and `preprocessor`: the file's own configuration, by whose library it was written; {} where absent."""
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def need(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of an array without which there is no model."""
        if name not in self.shapes:
            raise VitcoreError(f"{self.path}: array {name!r} is missing; a Vision Transformer has one, so the file is "
                               "incomplete or of another kind: fetch it again")  # fmt: skip
        shape = self.shapes[name]
        if len(shape) != dimensions or 0 in shape:
            raise VitcoreError(f"{self.path}: array {name!r} is of shape {list(shape)}, where {dimensions} dimensions, "
                               "none of them 0, were expected; the file is damaged or of another kind")  # fmt: skip
        return shape

    def count(self, pattern: str) -> int:
        """How many of `pattern.format(0)`, `pattern.format(1)` ... begin an array's name; a gap is an error."""
        head, tail = pattern.split("{}")
        found = set()
        for name in self.shapes:
            if name.startswith(head):
                digits = name[len(head) :].partition(tail)[0]
                if digits.isascii() and digits.isdigit() and len(digits) < 5:
                    found.add(int(digits))
        first = min(found, default=0)
        if found != set(range(first, first + len(found))):
            gap = next(i for i in range(first, first + len(found)) if i not in found)
            raise VitcoreError(f"{self.path}: arrays {pattern.format(gap)!r} are missing between others; the file is "
                               "incomplete: fetch it again")  # fmt: skip
        return len(found)


def find_heads(context: Context, width: int, depth: int, mlp: int, said: Any = None) -> tuple[int, tuple[str, ...]]:
    """(heads, notes) where shapes do not tell: as said, as in the known variant of that size, or 64 wide."""
    if "heads" in context.overrides:
        return context.overrides["heads"], ()
    if isinstance(said, int) and said > 0:
        return said, ()
    known = {v.heads for v in VARIANTS.values() if (v.width, v.depth, v.mlp) == (width, depth, mlp)}
    if len(known) == 1:
        return known.pop(), ()
    if width % 64:
        raise VitcoreError(f"{context.path}: it does not say how many heads its {width} channels are split into; "
                           "give them (heads=N), or keep its config.json beside it")  # fmt: skip
    return width // 64, (f"{width // 64} heads of 64 channels are assumed: the file does not say",)


def make_variant(path: str, **sizes: Any) -> Variant:
    """The variant of these sizes, under the name of the known one of the same structure where there is one."""
    known = next((v for v in VARIANTS.values() if structure(v) == tuple(sizes[f] for f in STRUCTURE)), None)
    base: dict[str, Any] = {"name": f"ViT-{sizes['width']}x{sizes['depth']}_{sizes['patch']}", "img_size": 224}
    if known:
        base = {f: getattr(known, f) for f in ("name", "img_size", "dropout")}
    try:
        return Variant(**base, **sizes)
    except VitcoreError as e:
        raise VitcoreError(f"{path}: the shapes of its arrays make no model: {e}") from e


STRUCTURE = ("patch", "width", "depth", "heads", "mlp", "channels", "stages", "stem_width", "pool", "layer_scale")
"""What of a variant its weights decide; whether there are factors of branches, not with which value they began."""


def structure(variant: Variant) -> tuple[Any, ...]:
    """The values of `STRUCTURE`; comparable between a known variant and one that was read."""
    values = {f: getattr(variant, f) for f in STRUCTURE}
    if variant.layer_scale is not None:
        values["layer_scale"] = 1.0
    if variant.stages is None:
        values["stem_width"] = 64
    return tuple(values.values())


def with_size(found: Found, said: Any) -> Found:
    """With the size in pixels that a configuration says, one side or (rows, columns), if it makes as many patches."""
    sides = [said, said] if isinstance(said, int) else said
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(s) is int and 0 < s < 1 << 16 for s in sides):
        return found
    grid = found.variant.grid(*sides)
    return replace(found, grid=grid, img_size=(sides[0], sides[1])) if grid[0] * grid[1] == found.patches else found


def class_slot(token: bool, positions: int) -> tuple[bool, tuple[str, ...]]:
    """(whether the first position is a class token's, notes): it is none where only all positions make a square."""
    none = token and square(positions) is not None and square(positions - 1) is None
    return not none, ("the class token has no position of its own",) if none else ()


def square(patches: int) -> tuple[int, int] | None:
    """The sides of a square grid, or None when it is none."""
    side = isqrt(patches)
    return (side, side) if side * side == patches else None
