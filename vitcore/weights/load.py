"""From a file of weights to a model: parameters filled in place, positions resampled, the head kept or new."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitcore.errors import VitcoreError
from vitcore.model.variants import Variant, find_variant
from vitcore.model.vit import VisionTransformer
from vitcore.weights.examine import Weights, check_structure, examine
from vitcore.weights.layout import Piece
from vitcore.weights.positions import Resampling, resample
from vitcore.weights.resolve import resolve


def load(
    path: str | Path,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    *,
    model_type: str | None = None,
    positions: Resampling = "bilinear",
    **overrides: Any,
) -> VisionTransformer:
    """The model of a file of weights, in evaluation mode; `vitcore.load` says more."""
    weights = examine(resolve(path), overrides)
    if model_type is not None:
        check_structure(str(weights.path), weights.variant, find_variant(model_type), f"model_type {model_type}")
    size = _side(img_size) or weights.img_size
    if size is None:
        raise VitcoreError(f"{weights.path}: its {weights.found.patches} patches are no square and it does not say of which "
                           "grid they are; give img_size=(rows, columns) in pixels")  # fmt: skip
    variant, classes = weights.variant, weights.found.num_classes
    if num_classes is not None:
        variant, classes = variant.replace(representation=0), num_classes
    model = empty_model(variant, size, classes)
    fill(model, weights, positions, head=num_classes is None)
    if num_classes is None:
        model.class_names = weights.found.class_names
    return model.eval()


def _side(img_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if img_size is None:
        return None
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return height, width


def empty_model(variant: Variant, img_size: int | tuple[int, int], num_classes: int) -> VisionTransformer:
    """A model whose parameters have memory and no values yet: drawing what is overwritten would take longer than
    reading it."""
    with torch.device("meta"):
        model = VisionTransformer(variant, img_size, num_classes)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape))
    return model


@torch.no_grad()
def fill(model: VisionTransformer, weights: Weights, positions: Resampling, *, head: bool) -> list[str]:
    """Copy every array into its place in `model`; `head` False makes the head zero and leaves its arrays unread, as are
    those of a representation that the model has not. A representation that only the model has stays as it is. Returns
    what was done besides, for people."""
    parameters = dict(model.named_parameters())
    said = []
    grid = _old_grid(weights, model)
    if grid != model.grid:
        how = "bilinear, corner on corner" if positions == "bilinear" else "bicubic, antialiased"
        said.append(f"positions resampled from {_by(grid)} to {_by(model.grid)} patches, {how}")

    def place(piece: Piece) -> None:
        if piece.parameter == "pos_embed":
            _fill_positions(parameters["pos_embed"], weights, piece, grid, model.grid, positions)
        elif piece.parameter in parameters and (head or not piece.parameter.startswith("head.")):
            _fill(parameters[piece.parameter], weights, piece)

    # Two threads: one reads while the other copies.
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(place, weights.pieces):
            pass
    if not head:
        for name, parameter in parameters.items():
            if name.startswith("head."):
                parameter.zero_()
        said.append(f"the head of {model.num_classes} classes starts at zero")
    if weights.variant.representation and not model.variant.representation:
        said.append("the representation layer (pre-logits) is dropped")
    if model.variant.representation and not weights.variant.representation:
        said.append("the representation layer (pre-logits) is not in the file: it starts at random")
    return said


@torch.no_grad()
def _fill(parameter: Tensor, weights: Weights, piece: Piece) -> None:
    rows = parameter.shape[0] // piece.parts
    part = parameter[piece.part * rows : (piece.part + 1) * rows]
    part.copy_(piece.ours(weights.arrays[piece.name].read(), tuple(part.shape)))


@torch.no_grad()
def _fill_positions(
    parameter: Tensor, weights: Weights, piece: Piece, old: tuple[int, int], new: tuple[int, int], how: Resampling
) -> None:
    held = weights.arrays[piece.name].read().reshape(piece.shape)
    slots = parameter.shape[1] - new[0] * new[1]
    theirs = held.shape[1] - old[0] * old[1]
    parameter[:, :slots] = held[:, :theirs] if theirs else 0.0
    parameter[:, slots:] = resample(held[:, theirs:], old, new, how)


def _old_grid(weights: Weights, model: VisionTransformer) -> tuple[int, int]:
    if weights.grid is not None:
        return weights.grid
    rows, columns = model.grid
    if rows * columns != weights.found.patches:
        raise VitcoreError(f"{weights.path}: its {weights.found.patches} patches are no square and not the {_by(model.grid)} "
                           "of the size asked for; give img_size=(rows, columns) of its own grid")  # fmt: skip
    return model.grid


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"
