"""`vitcore predict` and `vitcore attention` on models that were trained here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.io import read_image, write_png

import vitcore
from vitcore.model.vit import build_model
from vitcore.weights.write import write

QUICK = "--threads 1 --num_steps 2 --train_batch_size 8 --eval_batch_size 8 --eval_every 0 --warmup_steps 0"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of different sizes, one of them deeper, and files that are none."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for name, size in (("b.png", (8, 8)), ("a.png", (30, 20)), ("deeper/c.png", (5, 9))):
        write_png(torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(len(name))),
                  str(folder / name))  # fmt: skip
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def model_file(folder: Path, name: str = "ViT-digits", size: int = 8, classes: int = 10, **sizes: Any) -> Path:
    torch.manual_seed(1)
    model = build_model(name, size, classes, **sizes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return write(model, "vitcore", folder / "model.safetensors")


def test_probabilities_are_those_of_the_model_in_sorted_order(vit: Callable, pictures: Path, tmp_path: Path) -> None:
    weights = model_file(tmp_path, "ViT-Ti_16", 32, 7, width=32, depth=1, heads=2, mlp=32)
    done = vit("predict", pictures, "--checkpoint", weights, "--json", "--topk", "9", "--batch_size", "2")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0 and [Path(line["image"]).name for line in lines] == ["a.png", "b.png", "c.png"]
    model = vitcore.load(weights)
    for line in lines:
        x = read_image(line["image"])[None].contiguous(memory_format=torch.channels_last)
        x = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True) / 127.5 - 1
        expected = model(x).softmax(-1)[0]
        assert [t["class"] for t in line["top"]] == expected.argsort(descending=True).tolist()
        for top in line["top"]:
            assert abs(top["probability"] - expected[top["class"]].item()) < 1e-6 and top["name"] == str(top["class"])


def test_a_grey_model_sees_grey_and_the_table_is_for_people(vit: Callable, pictures: Path, tmp_path: Path) -> None:
    done = vit("predict", pictures / "b.png", "--checkpoint", model_file(tmp_path), "--topk", "2")
    head, *rows = done.out.splitlines()
    assert done.code == 0 and head.endswith("b.png") and len(rows) == 2 and all(" %  " in row for row in rows)


def test_a_run_keeps_the_names_of_its_folders(vit: Callable, pictures: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(4):
                write_png(torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8),
                          str(tmp_path / "data" / split / name / f"{i}.png"))  # fmt: skip
    done = vit("train", *QUICK.split(), "--dataset", "folder", "--data_path", "data", "--model_type", "ViT-Ti_16",
               "--img_size", "32", "--name", "pets", "--learning_rate", "0.1", "--pretrained_dir", "None")  # fmt: skip
    assert done.code == 0, done.err
    done = vit("predict", pictures / "a.png", "--checkpoint", "output/pets", "--json")
    assert done.code == 0, done.err
    assert {t["name"] for t in json.loads(done.out)["top"]} == {"cat", "dog"}
    assert "2 classes, named (cat ... dog)" in vit("inspect", "output/pets").out


def test_a_thousand_classes_without_names_are_imagenets(vit: Callable, pictures: Path, tmp_path: Path) -> None:
    weights = model_file(tmp_path, classes=1000)
    top = json.loads(vit("predict", pictures / "a.png", "--checkpoint", weights, "--json", "--topk", "1000").out)["top"]
    names = {t["class"]: t["name"] for t in top}
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")


def test_an_unreadable_picture_is_named_and_the_others_go_on(vit: Callable, pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    done = vit("predict", pictures, "--checkpoint", model_file(tmp_path), "--json")
    assert done.code == 1 and len(done.out.splitlines()) == 3
    assert len(done.notes) == 1 and "broken.png: not a readable picture" in done.notes[0]
    # Also where a whole batch is unreadable.
    one_by_one = vit("predict", pictures, "--checkpoint", tmp_path / "model.safetensors", "--json", "--batch_size", "1")
    assert [json.loads(line)["image"] for line in one_by_one.out.splitlines()] == [
        json.loads(line)["image"] for line in done.out.splitlines()
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("predict nowhere.png --checkpoint model.safetensors", "nowhere.png: no such picture or folder"),
        ("predict empty --checkpoint model.safetensors", "empty: the folder holds no pictures"),
        ("predict pictures --checkpoint model.safetenors", "did you mean 'model.safetensors'"),
        ("predict pictures --checkpoint model.safetensors --topk 0", "--topk 0 is out of range"),
        ("predict pictures --checkpoint model.safetensors --workers 0", "--workers 0 is out of range"),
        ("predict pictures --checkpoint zero.npz", "the head is all zero"),
        ("predict pictures --checkpoint none.npz", "the model has no head"),
        ("attention nowhere.png --checkpoint model.safetensors", "nowhere.png: no such picture or folder"),
        (
            "attention pictures/a.png --checkpoint model.safetensors --output no/such/x.png",
            "x.png: it cannot be written",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    argv: str, words: str, vit: Callable, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    write(vitcore.load(model_file(tmp_path), num_classes=4), "npz", tmp_path / "zero.npz")
    write(vitcore.load(tmp_path / "model.safetensors", num_classes=0), "npz", tmp_path / "none.npz")
    assert words in vit(*argv.split()).refusal


def test_the_drawing_has_the_pictures_size_and_is_nowhere_brighter(
    vit: Callable, pictures: Path, tmp_path: Path
) -> None:
    weights = model_file(tmp_path, "ViT-Ti_16", 64, 7, width=32, depth=2, heads=2, mlp=32)
    done = vit("attention", pictures / "a.png", "--checkpoint", weights)
    assert done.code == 0 and done.out == "wrote a.attention.png\n"
    drawn, picture = read_image(str(tmp_path / "a.attention.png")), read_image(str(pictures / "a.png"))
    assert drawn.shape == picture.shape and bool((drawn <= picture).all()) and bool((drawn < picture).any())
    assert vit("attention", pictures / "a.png", "--checkpoint", weights, "--output", tmp_path / "x.png").code == 0
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "a.attention.png").read_bytes()
