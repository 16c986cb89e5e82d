"""What augmentation on the device draws for the rows of a batch: small tensors, made on the host.

Each row is a pure function of (seed, its position) to the last bit, so that it is the same on every world size and
backend. Shapes and dtypes are the same for every batch. Boxes are top, left, bottom, right in pixels, bottom and right
outside; an empty one, as all zeros, is none.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitcore.data.augment import Augment
from vitcore.data.order import ERASE_STREAM, KEEP_STREAM, MIX_STREAM, Int64s, draw_uniform
from vitcore.data.places import draw_flips
from vitcore.errors import VitcoreError

# Zhong et al. 2017 (arXiv 1708.04896), with the defaults of torchvision's RandomErasing: the share of the picture's
# area, height over width, and the tries to fit a rectangle before none is erased.
ERASE_SHARE, ERASE_RATIO, ERASE_ATTEMPTS = (0.02, 0.33), (0.3, 3.3), 10

Box = tuple[float, float, float, float]
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)


def draw_batch(
    seed: int, positions: Int64s, weight: Tensor, augment: Augment, size: tuple[int, int], tokens: int | None = None
) -> dict[str, Tensor]:
    """The draws of the B rows at `positions` for pictures of `size` (rows, columns), by name; each only where asked for.

    flip: bool (B,), the row is mirrored. blend: float32 (B,), the share of a row's own picture, everywhere; the rest is
    its partner's. box: float32 (B, 4), the rectangle taken from the partner. own: float32 (B,), the share of its own
    label. erase: float32 (B, 4), the rectangle erased. keep: int64 (B, K), the patches kept, ascending, of `tokens`.

    The partner of position p is p ^ 1. Where the `weight` of a row or of its partner is 0, the row is not mixed. Raises
    VitcoreError where pictures are mixed and the rows are not whole pairs side by side, and where patches are left out
    and `tokens` is None.
    """
    draws: dict[str, Tensor] = {}
    if augment.flip:
        draws["flip"] = torch.from_numpy(draw_flips(seed, positions))
    if augment.mixes:
        check_pairs(positions)
        read = (weight != 0).numpy()
        blend, box, own = _mixes(seed, positions, read & read.reshape(-1, 2)[:, ::-1].reshape(-1), augment, size)
        draws |= {"blend": _float32(blend), "box": _float32(box).reshape(-1, 4), "own": _float32(own)}
    if augment.erase > 0.0:
        draws["erase"] = _float32(_erased(seed, positions, augment.erase, size)).reshape(-1, 4)
    if augment.patch_dropout > 0.0:
        if tokens is None:
            raise VitcoreError("augment: patch_dropout needs the number of the model's patches; give tokens")
        draws["keep"] = torch.from_numpy(draw_kept(seed, positions, tokens, augment.patch_dropout))
    return draws


def check_pairs(positions: Int64s) -> None:
    """VitcoreError unless the partner p ^ 1 of each position stands beside it, in rows 2i and 2i + 1."""
    if len(positions) % 2:
        raise VitcoreError(
            f"augment: mixup and cutmix pair neighbouring pictures, and {len(positions)} of them are no whole pairs; "
            "use an even micro-batch"
        )
    pairs = positions.reshape(-1, 2)
    alone = pairs[pairs[:, 0] ^ 1 != pairs[:, 1], 0]
    if len(alone):
        raise VitcoreError(
            f"augment: mixup and cutmix pair positions 2i and 2i + 1, and position {alone[0]} stands without its partner; "
            "resume at an even position, with an even micro-batch"
        )


def symmetric_beta(alpha: float, level: float, turn: float) -> float:
    """A number of the distribution Beta(alpha, alpha), from two that are uniform in [0, 1).

    L. Devroye, "Random variate generation in one line of code" (1996), by the polar method for Student's t. Exact for
    every alpha > 0 and without rejection, so each row costs two draws, whatever the others do.
    """
    cosine = math.cos(2.0 * math.pi * turn)
    # 1 - level is in (0, 1]; its power may underflow to 0 for a small alpha, which gives 0 or 1, as it should.
    power = (1.0 - level) ** (1.0 / alpha)
    rest = cosine * cosine * (1.0 - power)
    # 0.5 - 0.5 * sqrt(rest / (power + rest)), without the cancellation.
    lower = 0.5 * power / (power + rest) / (1.0 + math.sqrt(rest / (power + rest)))
    return lower if cosine < 0.0 else 1.0 - lower


def cut_box(share: float, down: float, right: float, size: tuple[int, int]) -> Box:
    """A rectangle of the picture's aspect and `share` of its area, around a pixel that is drawn; what is outside is cut.

    Yun et al. 2019 (arXiv 1905.04899), with the rounding of torchvision's CutMix. `down`, `right`: uniform in [0, 1).
    """
    (rows, columns), half = size, 0.5 * math.sqrt(share)
    y, x, dy, dx = int(down * rows), int(right * columns), int(half * rows), int(half * columns)
    return float(max(y - dy, 0)), float(max(x - dx, 0)), float(min(y + dy, rows)), float(min(x + dx, columns))


def erase_box(draws: list[float], size: tuple[int, int]) -> Box:
    """The first of ten rectangles that is smaller than the picture, as in torchvision's RandomErasing, else none.

    `draws`, uniform in [0, 1): an area for each try, a ratio for each, then top and left.
    """
    rows, columns = size
    low, high = math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])
    for area_draw, ratio_draw in zip(draws[:ERASE_ATTEMPTS], draws[ERASE_ATTEMPTS : 2 * ERASE_ATTEMPTS], strict=True):
        area = rows * columns * (ERASE_SHARE[0] + area_draw * (ERASE_SHARE[1] - ERASE_SHARE[0]))
        ratio = math.exp(low + ratio_draw * (high - low))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height < rows and width < columns:
            top, left = int(draws[-2] * (rows - height + 1)), int(draws[-1] * (columns - width + 1))
            return float(top), float(left), float(top + height), float(left + width)
    return NO_BOX


def draw_kept(seed: int, positions: Int64s, tokens: int, rate: float) -> Int64s:
    """The patches that stay in each sequence, of shape (len(positions), K), ascending; all subsets are as likely.

    K = max(1, round((1 - rate) * tokens)). Liu et al. 2022 (arXiv 2208.07220).
    """
    kept = max(1, round((1.0 - rate) * tokens))
    # 53 random bits a patch: of 196 patches two agree once in 4 * 10^11 samples, and then the sort is still stable.
    order = np.argsort(draw_uniform(seed, positions, KEEP_STREAM, tokens), axis=1, kind="stable")
    return np.sort(order[:, :kept], axis=1).astype(np.int64)


def _mixes(
    seed: int, positions: Int64s, allowed: npt.NDArray[np.bool_], augment: Augment, size: tuple[int, int]
) -> tuple[list[float], list[Box], list[float]]:
    """blend, box and own of the rows."""
    both = augment.mixup > 0.0 and augment.cutmix > 0.0
    blends, boxes, owns = [1.0] * len(positions), [NO_BOX] * len(positions), [1.0] * len(positions)
    for row, draws in enumerate(draw_uniform(seed, positions, MIX_STREAM, 6).tolist()):
        chance, which, level, turn, down, right = draws
        if not allowed[row] or chance >= augment.mix_probability:
            continue
        if which < 0.5 if both else augment.mixup > 0.0:
            blends[row] = owns[row] = symmetric_beta(augment.mixup, level, turn)
        else:
            boxes[row] = box = cut_box(1.0 - symmetric_beta(augment.cutmix, level, turn), down, right, size)
            # The share of what is really cut out, at an edge or after rounding.
            owns[row] = 1.0 - (box[2] - box[0]) * (box[3] - box[1]) / (size[0] * size[1])
    return blends, boxes, owns


def _erased(seed: int, positions: Int64s, probability: float, size: tuple[int, int]) -> list[Box]:
    draws = draw_uniform(seed, positions, ERASE_STREAM, 1 + 2 * ERASE_ATTEMPTS + 2).tolist()
    return [erase_box(row[1:], size) if row[0] < probability else NO_BOX for row in draws]


def _float32(numbers: list[float] | list[Box]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)
