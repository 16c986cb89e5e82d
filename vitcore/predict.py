"""`python -m vitcore.predict`: the most probable classes of pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vitcore.cli import run
from vitcore.commandline import parse, say
from vitcore.errors import VitcoreError
from vitcore.inference import as_model_sees, class_names, find_pictures, open_model, refuse_without_head, view_of

if TYPE_CHECKING:
    from torch import Tensor

    from vitcore.data.view import View
    from vitcore.model.vit import VisionTransformer


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Which pictures, by which model, and how the answer is printed."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Pictures, and folders of them."""
    checkpoint: str
    """Checkpoint or run folder of ours, file of weights, official name or hub id."""
    topk: int = 5
    """Classes to print for each picture."""
    batch_size: int = 32
    """Pictures at a time."""
    workers: int = 2
    """Threads that decode pictures."""
    img_size: int | None = None
    """Side in pixels to which pictures are resized; unset: the model's own."""
    backend: str = "auto"
    """Backend, or auto for the best that can run here."""
    json: bool = False
    """Print one JSON object a picture."""


def main(argv: Sequence[str]) -> int:
    """Print the classes of each picture; exit code 1 when some could not be read."""
    asked = parse(Predict, argv, "vitcore predict", __doc__ or "")
    for name in ("topk", "batch_size", "workers"):
        if getattr(asked, name) < 1:
            raise VitcoreError(f"--{name} {getattr(asked, name)} is out of range: it must be at least 1")
    if not asked.images:
        raise VitcoreError("no pictures were given; name a picture or a folder of them")
    paths = find_pictures(asked.images)
    model = open_model(asked.checkpoint, asked.backend, asked.img_size)
    refuse_without_head(model, asked.checkpoint)
    names, view, read = class_names(model), view_of(asked.checkpoint, model), 0
    for path, top in predict(model, view, paths, asked.topk, asked.batch_size, asked.workers):
        read += 1
        ranked: list[dict[str, Any]] = [{"class": number, "name": names[number], "probability": p} for p, number in top]
        if asked.json:
            print(json.dumps({"image": path, "top": ranked}), flush=True)
        else:
            print(
                f"{path}\n" + "\n".join(f"  {100 * r['probability']:6.2f} %  {r['name']}" for r in ranked), flush=True
            )
    return 0 if read == len(paths) else 1


def predict(
    model: VisionTransformer, view: View, paths: Sequence[str], topk: int, batch_size: int, workers: int = 2
) -> Iterator[tuple[str, list[tuple[float, int]]]]:
    """(path, [(probability, class) ...] from the most probable) of each picture that can be read, in order; the others
    are named on standard error. Pictures are fitted as `view` says. The next batch is decoded, in `workers` threads, while
    the model is at this one."""
    import torch

    device = next(model.parameters()).device
    with ThreadPoolExecutor(workers, thread_name_prefix="vitcore-decode") as pool:

        def begin(start: int) -> list[Future[Tensor | None]]:
            return [pool.submit(_read, path, model, view) for path in paths[start : start + batch_size]]

        following = begin(0)
        for start in range(0, len(paths), batch_size):
            pictures = [future.result() for future in following]
            following = begin(start + batch_size)
            read = [(path, x) for path, x in zip(paths[start : start + batch_size], pictures) if x is not None]
            if not read:
                continue
            with torch.inference_mode():
                images = torch.cat([x for _, x in read]).to(device)
                best = model(images).float().softmax(-1).cpu().topk(min(topk, model.num_classes))
            for (path, _), probabilities, classes in zip(read, best.values.tolist(), best.indices.tolist()):
                yield path, list(zip(probabilities, classes))


def _read(path: str, model: VisionTransformer, view: View) -> Tensor | None:
    import torch

    from vitcore.data.decode import UnreadablePicture, picture_into, read_file

    picture_CYX = torch.empty((view.channels, *view.size), dtype=torch.uint8)
    try:
        picture_into(picture_CYX, read_file(path), view)
        return as_model_sees(picture_CYX, model)
    except UnreadablePicture as e:
        say(f"{path}: not a readable picture ({e}); left out")
        return None


if __name__ == "__main__":
    sys.exit(run(main))
