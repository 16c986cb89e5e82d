"""A trained model on a device, pictures for it, and names for its classes: what predict and attention share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitcore.data.view import View
from vitcore.errors import VitcoreError
from vitcore.plugins import load_plugins
from vitcore.runtime.opening import choose_backend, open_backend, place_threads, set_environment
from vitcore.saved import saved_config

if TYPE_CHECKING:
    from torch import Tensor

    from vitcore.model.vit import VisionTransformer

IMAGENET_CLASSES = 1000


def open_model(checkpoint: str, backend: str, img_size: int | None) -> VisionTransformer:
    """The model of a checkpoint or file of weights, on the device of a backend. Torch is imported in here, after the
    backend's environment is set."""
    plugins = load_plugins()
    chosen, _ = choose_backend(plugins, backend)
    set_environment(chosen, plugins)
    from vitcore.weights.load import load

    model = load(checkpoint, img_size)
    open_backend(chosen, plugins)
    place_threads(chosen, 0)
    return model.to(chosen.device)


def find_pictures(given: Sequence[str]) -> list[str]:
    """Paths of pictures: files as they are, folders searched to any depth in sorted order, hidden files left out."""
    from vitcore.data.formats.tree import EXTENSIONS  # here, as it imports NumPy, which --help does not need

    found: list[str] = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            inside = [
                os.path.join(folder, file)
                for folder, _, files in os.walk(path)
                for file in files
                if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
            ]
            if not inside:
                raise VitcoreError(f"{path}: the folder holds no pictures ({', '.join(EXTENSIONS)}); give another")
            found += sorted(inside)
        elif path.exists():
            found.append(name)
        else:
            raise VitcoreError(f"{path}: no such picture or folder; give the path of one")
    return found


def view_of(checkpoint: str, model: VisionTransformer) -> View:
    """How pictures are fitted for a model, in colour: as its run evaluated them where `checkpoint` is one of a run, else
    squashed, as the original does."""
    config = saved_config(Path(checkpoint))
    if config is None:
        return View(size=model.img_size)
    return View(size=model.img_size, interpolation=config.interpolation, resize=config.eval_resize,
                crop_pct=config.eval_crop_pct)  # fmt: skip


def as_model_sees(picture_CYX: Tensor, model: VisionTransformer) -> Tensor:
    """A picture, uint8 RGB of the model's size, as a batch of one, float in [-1, 1], grey where the model takes that."""
    import torch

    if model.variant.channels == 1:
        # ITU-R BT.601, as Pillow and the JPEG format weigh colours.
        grey_YX = torch.tensordot(torch.tensor([0.299, 0.587, 0.114]), picture_CYX.float(), 1)
        picture_CYX = grey_YX.round()[None]
    elif model.variant.channels != 3:
        raise VitcoreError(f"{model.variant.name}: it takes {model.variant.channels} channels, and a picture has 3 or 1; "
                           "pass another model")  # fmt: skip
    return picture_CYX[None].float() / 127.5 - 1


def class_names(model: VisionTransformer) -> Sequence[str]:
    """The names that the weights carry; ImageNet's for a head of 1000 classes without names; else the numbers."""
    if model.class_names is not None:
        return model.class_names
    if model.num_classes == IMAGENET_CLASSES:
        from torchvision.models import ViT_B_16_Weights

        names: list[str] = ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"]
        return names
    return [str(number) for number in range(model.num_classes)]


def refuse_without_head(model: VisionTransformer, checkpoint: str) -> None:
    """A head that is not there, or predicts nothing, predicts nothing."""
    if model.head is None:
        raise VitcoreError(f"{checkpoint}: the model has no head, so it predicts no classes; pass a fine-tuned one")
    if not bool(model.head.weight.any()):
        raise VitcoreError(f"{checkpoint}: the head is all zero, made to be replaced (as in Google's imagenet21k files): it "
                           "predicts no classes; fine-tune it first, vitcore train --pretrained_dir")  # fmt: skip
