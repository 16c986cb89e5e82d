"""`vitcore inspect`, `export`, `evaluate` and `train` on files of weights, as a person meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vitcore
from vitcore.model.vit import VisionTransformer, build_model
from vitcore.weights.write import write

SMALL: dict[str, Any] = {"width": 48, "depth": 2, "heads": 3, "mlp": 96}
RUN = ("--threads 1 --num_steps 2 --train_batch_size 8 --eval_batch_size 50 --eval_every 0 --warmup_steps 0 "
       "--dataset synthetic --img_size 32 --learning_rate 0.01").split()  # fmt: skip


def model(name: str = "ViT-Ti_16", size: int = 32, classes: int = 10, **options: Any) -> VisionTransformer:
    made = build_model(name, size, classes, **{**SMALL, **options})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return made


@pytest.mark.parametrize(
    ("to", "place", "form", "probably"),
    [
        ("npz", "m.npz", "npz, google names", "Google's code, or in its layout"),
        ("vitcore", "m.safetensors", "safetensors, vitcore names", "vitcore"),
        ("timm", "m", "safetensors, timm names", "timm, vit_"),
        ("huggingface", "m", "safetensors, huggingface names", "transformers, "),
    ],
)
def test_inspect_says_what_a_file_holds(
    to: str, place: str, form: str, probably: str, vit: Callable[..., Any], tmp_path: Path
) -> None:
    made = model()
    write(made, to, tmp_path / place)
    done = vit("inspect", place, "--json")
    assert done.code == 0 and not done.err, done.err
    held = json.loads(done.out)
    assert held["format"] == form and held["origin"].startswith(probably)
    assert held["encoder"] == "2 blocks, width 48, 3 heads, MLP 96, patch 16"
    assert held["resolution"] == "32x32 pixels, 2x2 patches" and held["head"].startswith("10 classes")
    assert held["parameters"] == sum(p.numel() for p in made.parameters()) and held["options"] == ["class token"]
    assert held["computes"] == "tanh GELU, layer norm epsilon 1e-06"
    shown = vit("inspect", place).out
    assert all(str(part) in shown for part in (form, held["encoder"], f"{held['parameters']:,}"))


def test_inspect_tells_the_options_of_a_file(vit: Callable[..., Any], tmp_path: Path) -> None:
    write(model("R26-ViT-S_32", 64, 21843, depth=1, heads=6, width=48, representation=24, pool="gap"), "npz",
          tmp_path / "r.npz")  # fmt: skip
    shown = vit("inspect", "r.npz").out
    for part in ("ResNet of stages 2-2-2-2, 64 wide", "mean of all patches", "(pre-logits) of 24",
                 "Google, imagenet21k (the original paper's upstream files)", "21843 classes"):  # fmt: skip
        assert part in shown, shown
    write(model(classes=10), "vitcore", tmp_path / "a.safetensors")
    write(vitcore.load(tmp_path / "a.safetensors", num_classes=4), "npz", tmp_path / "zero.npz")
    assert "4 classes, all zero: made to be replaced" in vit("inspect", "zero.npz").out


def test_weights_travel_through_every_format_and_come_back(vit: Callable[..., Any], tmp_path: Path) -> None:
    made = model()
    write(made, "npz", tmp_path / "0.npz")
    for i, (to, place) in enumerate(
        (("timm", "1"), ("huggingface", "2"), ("vitcore", "3.safetensors"), ("npz", "4.npz"))
    ):
        done = vit("export", "--checkpoint", ("0.npz", "1", "2", "3.safetensors")[i], "--to", to, "--output", place)
        assert done.code == 0 and done.out.startswith(f"wrote {place}: ") and f"parameters, {to}" in done.out, done
    assert (tmp_path / "4.npz").read_bytes() == (tmp_path / "0.npz").read_bytes()
    assert vit("export", "--checkpoint", "0.npz", "--to", "torch", "--output", "5.pt2").code == 0
    program = torch.export.load(tmp_path / "5.pt2").module()
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    assert (program(x) - made.eval()(x)).abs().max() < 2e-5


def test_export_resizes_and_replaces_the_head_where_asked(vit: Callable[..., Any], tmp_path: Path) -> None:
    write(model(representation=20), "npz", tmp_path / "m.npz")
    assert vit("export", *"--checkpoint m.npz --to timm --output no".split()).refusal.startswith(
        "ViT-48x2_16: timm's models have no representation layer (pre-logits)"
    )
    assert not (tmp_path / "no").exists()
    done = vit("export", *"--checkpoint m.npz --to timm --output t --num_classes 0 --img_size 64".split())
    assert done.code == 0, done
    back = vitcore.load(tmp_path / "t")
    assert back.img_size == (64, 64) and back.num_classes == 0 and back.head is None


def test_a_run_starts_from_a_file_without_being_told_its_model(vit: Callable[..., Any], tmp_path: Path) -> None:
    write(model(pool="gap", size=64), "npz", tmp_path / "m.npz")
    done = vit("train", *RUN, "--pretrained_dir", "m.npz", "--name", "tuned")
    assert done.code == 0, done
    for part in ("weights of m.npz (google), computed with tanh GELU", "positions resampled from 4x4 to 2x2 patches",
                 "the head of 10 classes starts at zero"):  # fmt: skip
        assert part in " ".join((done.out + done.err).split()), done
    held = json.loads(vit("inspect", "output/tuned", "--json").out)
    assert held["options"] == ["mean of all patches"] and held["head"].startswith("10 classes, named (class 0")
    more = vit("train", *RUN, "--num_steps", "4", "--resume", "output/tuned", "--name", "more")
    assert more.code == 0 and json.loads(vit("inspect", "output/more", "--json").out)["encoder"] == held["encoder"]
    recorded = json.loads((tmp_path / "output/tuned/config.json").read_text())
    assert recorded["position_resampling"] == "bilinear" and recorded["pretrained_dir"] == "m.npz"


def test_a_file_of_weights_is_evaluated_on_a_data_set_that_is_named(vit: Callable[..., Any], tmp_path: Path) -> None:
    write(model(), "vitcore", tmp_path / "m.safetensors")
    done = vit("evaluate", *"--checkpoint m.safetensors --dataset synthetic --json".split())
    assert done.code == 0, done
    said = json.loads(done.out.splitlines()[-1])
    assert said["total"] > 0 and said["checkpoint"] == "m.safetensors" and said["steps"] is None
    # The same model, exported, is right and wrong about the same pictures.
    assert vit("export", *"--checkpoint m.safetensors --to huggingface --output hf".split()).code == 0
    other = json.loads(vit("evaluate", *"--checkpoint hf --dataset synthetic --json".split()).out.splitlines()[-1])
    assert (other["correct"], other["total"]) == (said["correct"], said["total"])
    assert abs(other["loss"] - said["loss"]) < 1e-5


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("inspect nowhere.npz", "nowhere.npz: no such file or folder"),
        ("inspect notes.txt", "notes.txt: "),
        ("export --checkpoint m.npz --to npz --output m.npz", "m.npz: it exists already"),
        ("export --checkpoint m.npz --to torch --output x", "torch.export reads only files that end in .pt2"),
        ("export --checkpoint m.npz --to onnx --output x", "'onnx'"),
        ("evaluate --checkpoint m.npz", "give --dataset"),
        ("evaluate --checkpoint m.npz --dataset synthetic", "the weights have 7 classes, synthetic has 10"),
        ("evaluate --checkpoint zero.npz --dataset synthetic", "a head of zeros, made to be replaced"),
        (
            "train --model_type ViT-B_16 --pretrained_dir m.npz --dataset synthetic --img_size 32",
            "--model_type ViT-B_16",
        ),
        ("train --pool gap --pretrained_dir m.npz --dataset synthetic --img_size 32", "--pool"),
        (
            "train --pretrained_dir m.npz --dataset digits --img_size 8",
            "digits: pictures have 1 channel(s) and the model takes 3",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(argv: str, words: str, vit: Callable[..., Any], tmp_path: Path) -> None:
    write(model(classes=7), "npz", tmp_path / "m.npz")
    write(vitcore.load(tmp_path / "m.npz", num_classes=10), "npz", tmp_path / "zero.npz")
    (tmp_path / "notes.txt").write_text("no weights")
    assert words in vit(*argv.split()).refusal
