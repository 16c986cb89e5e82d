"""A model in the format of vitcore, timm, Hugging Face or Google, or as a `torch.export` program.

What is written says how it is computed (GELU, epsilons, pixels), so that the other library computes the same logits;
what it cannot be told is refused by name.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitcore.errors import VitcoreError, nearest
from vitcore.model.variants import Variant
from vitcore.model.vit import VisionTransformer
from vitcore.weights import google, huggingface, own, timm
from vitcore.weights.layout import Layout, Piece

_TIMM = {
    "ViT-Ti_16": "vit_tiny_patch16_224", "ViT-S_16": "vit_small_patch16_224", "ViT-S_32": "vit_small_patch32_224",
    "ViT-B_8": "vit_base_patch8_224", "ViT-B_16": "vit_base_patch16_224", "ViT-B_32": "vit_base_patch32_224",
    "ViT-L_16": "vit_large_patch16_224", "ViT-L_32": "vit_large_patch32_224", "ViT-H_14": "vit_huge_patch14_224",
    "DINOv2-S_14": "vit_small_patch14_dinov2", "R50-ViT-B_16": "vit_base_r50_s16_224",
    "R50-ViT-L_32": "vit_large_r50_s32_224", "R26-ViT-B_32": "vit_base_r26_s32_224",
    "R26-ViT-S_32": "vit_small_r26_s32_224", "R-ViT-Ti_16": "vit_tiny_r_s16_p8_224",
}  # fmt: skip
_ANY_TIMM = "vit_base_patch16_224"


def write(model: VisionTransformer, to: str, output: Path) -> Path:
    """Write `model` in the format `to`, one of `FORMATS`, and return what was written: a folder for timm and
    huggingface, else a file. It appears whole or not at all; VitcoreError where something is there already."""
    if to not in FORMATS:
        raise VitcoreError(f"format {to!r} is unknown{nearest(to, [*FORMATS])}; choose one of {', '.join(FORMATS)}")
    if to == "torch" and output.suffix != ".pt2":
        raise VitcoreError(f"{output}: torch.export reads only files that end in .pt2; name the --output so")
    if output.exists():
        raise VitcoreError(f"{output}: it exists already; choose another --output, or remove it first")
    temporary = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        made = temporary / output.name
        FORMATS[to](model, made)
        os.replace(made, output)
    except OSError as e:
        raise VitcoreError(
            f"{output}: it cannot be written ({e.strerror or e}); free space or choose another --output"
        ) from e
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return output


def _arrays(
    model: VisionTransformer, layout: Layout, prefix: Callable[[str], str] = str
) -> Iterator[tuple[str, Tensor]]:
    """The model's parameters as the layout names and holds them."""
    parameters = {n: p.detach().cpu().float() for n, p in model.named_parameters()}
    for piece in _pieces(model, layout):
        whole = parameters[piece.parameter]
        rows = whole.shape[0] // piece.parts
        part = whole[piece.part * rows : (piece.part + 1) * rows]
        yield prefix(piece.name), piece.theirs(part).contiguous()


def _pieces(model: VisionTransformer, layout: Layout) -> Iterable[Piece]:
    rows, columns = model.grid
    return layout.pieces(model.variant, rows * columns, model.num_classes)


def _vitcore(model: VisionTransformer, path: Path) -> None:
    header = {own.KEY: json.dumps(own.facts(model)), "format": "pt"}
    save_file({n: p.detach().cpu().contiguous() for n, p in model.named_parameters()}, path, header)


def _npz(model: VisionTransformer, path: Path) -> None:
    variant = model.variant
    _pieces(model, google.LAYOUT)  # what has no name is refused before what is computed otherwise
    _refuse(variant, "Google's code", {
        "gelu": (variant.gelu, "tanh"), "layer_norm_eps": (variant.layer_norm_eps, 1e-6),
        "pixels": ((variant.mean, variant.std), ((0.5,) * variant.channels,) * 2),
        **({} if variant.stages is None else {"group_norm_eps": (variant.group_norm_eps, 1e-6),
           "std_eps": (variant.std_eps, 1e-5), "var_eps": (variant.var_eps, 0.0)}),
    })  # fmt: skip
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in sorted(_arrays(model, google.LAYOUT), key=lambda pair: pair[0]):
            # One after the other, so that no second copy of the model is in memory.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array.numpy(), allow_pickle=False)


def _timm(model: VisionTransformer, folder: Path) -> None:
    variant = model.variant
    if variant.representation:
        raise VitcoreError(f"{variant.name}: timm's models have no representation layer (pre-logits); load it with "
                           "num_classes=N, which drops that layer, or choose another format")  # fmt: skip
    said: dict[str, tuple[Any, Any]] = {"layer_norm_eps": (variant.layer_norm_eps, 1e-6)}
    if variant.stages is not None:
        said |= {f: (getattr(variant, f), value) for f, value in timm.TIMM_STEM.items()}
    _refuse(variant, "timm", said)
    arguments: dict[str, Any] = {
        "img_size": list(model.img_size), "in_chans": variant.channels,
        "act_layer": "gelu_tanh" if variant.gelu == "tanh" else "gelu",
    }  # fmt: skip
    if variant.stages is None:
        ratio = variant.mlp / variant.width
        _refuse(variant, "timm", {"mlp": (int(variant.width * ratio), variant.mlp)})
        arguments |= {"patch_size": variant.patch, "embed_dim": variant.width, "depth": variant.depth,
                      "num_heads": variant.heads, "mlp_ratio": ratio, "init_values": variant.layer_scale}  # fmt: skip
    elif variant.name not in _TIMM:
        raise VitcoreError(f"{variant.name}: timm has no hybrid of stages {variant.stages} and width {variant.width}; "
                           "choose another format")  # fmt: skip
    if variant.pool == "gap":
        arguments |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    trained = {
        "input_size": [variant.channels, *model.img_size], "fixed_input_size": True, "interpolation": "bilinear",
        "crop_pct": 1.0, "crop_mode": "squash", "mean": list(variant.mean), "std": list(variant.std),
        "num_classes": model.num_classes, "classifier": "head",
        "first_conv": "patch_embed.proj" if variant.stages is None else "patch_embed.backbone.stem.conv",
        **({"label_names": list(model.class_names)} if model.class_names else {}),
    }  # fmt: skip
    config = {
        "architecture": _TIMM.get(variant.name, _ANY_TIMM), "num_classes": model.num_classes,
        "num_features": variant.width, "global_pool": "avg" if variant.pool == "gap" else "token",
        "model_args": arguments, "pretrained_cfg": trained,
    }  # fmt: skip
    _folder(folder, dict(_arrays(model, timm.LAYOUT)), {"config.json": config})


def _huggingface(model: VisionTransformer, folder: Path) -> None:
    variant = model.variant
    dino = variant.layer_scale is not None
    pieces = _arrays(model, huggingface.LAYOUT)  # refuses what has no name before anything else is said
    if model.num_classes and (dino or variant.representation):
        what = "DINOv2 reads class token and mean together" if dino else "ViT has no representation layer (pre-logits)"
        raise VitcoreError(f"{variant.name}: a classifier of transformers' {what}; load it with num_classes=0 to write it "
                           "without the head, or choose another format")  # fmt: skip
    if dino and variant.mlp % variant.width:
        _refuse(variant, "transformers' DINOv2", {"mlp": (variant.mlp, variant.mlp // variant.width * variant.width)})
    height, width = model.img_size
    name = "Dinov2Model" if dino else "ViTForImageClassification" if model.num_classes else "ViTModel"
    config: dict[str, Any] = {
        "architectures": [name], "model_type": "dinov2" if dino else "vit", "hidden_size": variant.width,
        "num_hidden_layers": variant.depth, "num_attention_heads": variant.heads,
        "hidden_act": "gelu_pytorch_tanh" if variant.gelu == "tanh" else "gelu", "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "layer_norm_eps": variant.layer_norm_eps,
        "image_size": height if height == width else [height, width], "patch_size": variant.patch,
        "num_channels": variant.channels, "qkv_bias": True, "torch_dtype": "float32",
    }  # fmt: skip
    if dino:
        config |= {"mlp_ratio": variant.mlp // variant.width, "layerscale_value": variant.layer_scale,
                   "use_swiglu_ffn": False, "use_mask_token": False}  # fmt: skip
    else:
        config["intermediate_size"] = variant.mlp
        if variant.representation:
            config |= {"pooler_output_size": variant.representation, "pooler_act": "tanh"}
    if model.num_classes:
        labels = model.class_names or [f"LABEL_{i}" for i in range(model.num_classes)]
        config |= {
            "id2label": {str(i): n for i, n in enumerate(labels)},
            "label2id": {n: i for i, n in enumerate(labels)},
        }
    picture = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": height, "width": width},
        "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(variant.mean), "image_std": list(variant.std),
    }  # fmt: skip
    prefixed = {(f"vit.{n}" if model.num_classes and not n.startswith("classifier.") else n): a for n, a in pieces}
    _folder(folder, prefixed, {"config.json": config, "preprocessor_config.json": picture})


def _torch(model: VisionTransformer, path: Path) -> None:
    example = torch.zeros(2, model.variant.channels, *model.img_size)
    batch = torch.export.Dim(
        "batch", min=1, max=2**31 - 1
    )  # without a bound, torch 2.7 finds one number that it excludes
    with torch.no_grad():
        program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)


def _refuse(variant: Variant, whose: str, said: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse what the other side computes otherwise and cannot be told."""
    for field, (held, theirs) in said.items():
        if held != theirs:
            raise VitcoreError(f"{variant.name}: {whose} computes {field} as {theirs}, the model as {held}, and its files "
                               "cannot say so; choose another format, or load the weights with that value")  # fmt: skip


def _folder(folder: Path, arrays: dict[str, Tensor], texts: Mapping[str, Any]) -> None:
    folder.mkdir()
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


FORMATS: dict[str, Callable[[VisionTransformer, Path], None]] = {
    "vitcore": _vitcore, "timm": _timm, "huggingface": _huggingface, "npz": _npz, "torch": _torch,
}  # fmt: skip
"""What a model can be written as."""
