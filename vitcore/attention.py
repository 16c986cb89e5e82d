"""`python -m vitcore.attention`: draw over a picture what a model attends to."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vitcore.cli import run
from vitcore.commandline import parse
from vitcore.errors import VitcoreError
from vitcore.inference import as_model_sees, find_pictures, open_model

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Which picture, by which model, and where the drawing goes."""

    image: Annotated[str, tyro.conf.Positional]
    """The picture."""
    checkpoint: str
    """Checkpoint or run folder of ours, file of weights, official name or hub id."""
    output: str | None = None
    """PNG to write; unset: the picture's name with .attention.png, in the working folder."""
    img_size: int | None = None
    """Side in pixels to which the picture is resized for the model; unset: the model's own."""
    backend: str = "auto"
    """Backend, or auto for the best that can run here."""


def main(argv: Sequence[str]) -> int:
    """Write the picture, at its own size, darkened where the model does not look."""
    asked = parse(Attention, argv, "vitcore attention", __doc__ or "")
    (path,) = find_pictures([asked.image])[:1]
    output = Path(asked.output or f"{Path(path).stem}.attention.png")
    model = open_model(asked.checkpoint, asked.backend, asked.img_size)
    from vitcore.data.decode import UnreadablePicture, decode, read_file, resize
    from vitcore.model.rollout import attention_rollout

    try:
        picture = decode(read_file(path))
    except UnreadablePicture as e:
        raise VitcoreError(f"{path}: not a readable picture ({e}); give another") from e
    device = next(model.parameters()).device
    shares = attention_rollout(model, as_model_sees(resize(picture, model.img_size), model).to(device))[0].cpu()
    _write(darken(picture, shares), output)
    print(f"wrote {output}")
    return 0


def darken(picture_CYX: Tensor, shares_GJ: Tensor) -> Tensor:
    """The picture, uint8, times the shares of its patches over the largest, interpolated between their centres."""
    import torch.nn.functional as F

    mask_11GJ = (shares_GJ / shares_GJ.max())[None, None]
    mask_YX = F.interpolate(mask_11GJ, picture_CYX.shape[1:], mode="bilinear", align_corners=False)[0, 0]
    return (picture_CYX.float() * mask_YX).round().clamp(0, 255).byte()


def _write(picture_CYX: Tensor, output: Path) -> None:
    from torchvision.io import encode_png

    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        temporary.write_bytes(encode_png(picture_CYX).numpy().tobytes())
        temporary.replace(output)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise VitcoreError(f"{output}: it cannot be written ({e.strerror}); choose another --output") from e


if __name__ == "__main__":
    sys.exit(run(main))
