"""`vitcore evaluate --report`, and how pictures are fitted for `evaluate` and `predict`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from vitcore.data.decode import picture_into
from vitcore.data.view import Resize, View

QUICK = (
    "--threads 1 --num_steps 2 --train_batch_size 8 --eval_batch_size 3 --eval_every 0 --warmup_steps 0 --backend cpu"
)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """`data` with two classes of wide pictures, whose sides are of other colours than their middle."""
    for split, count in (("train", 4), ("val", 5)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([label, i])
                coarse = Image.fromarray(rng.integers(0, 256, (3, 9, 3), dtype=np.uint8))
                coarse.resize((150, 50), Image.Resampling.BILINEAR).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def run(vit: Callable[..., Any], pets: Path) -> str:
    """A run on it, of which pictures were cropped."""
    done = vit("train", *QUICK.split(), "--dataset", "folder", "--data_path", "data", "--model_type", "ViT-Ti_16",
               "--img_size", "32", "--name", "pets", "--learning_rate", "0.3", "--pretrained_dir", "None",
               "--eval_resize", "crop", "--eval_crop_pct", "0.8")  # fmt: skip
    assert done.code == 0, done.err
    return "output/pets"


def test_a_report_is_written_and_told(run: str, vit: Callable[..., Any], tmp_path: Path) -> None:
    done = vit("evaluate", "--checkpoint", run, "--backend", "cpu", "--report", "rep")
    assert done.code == 0, done.err
    first, second, *_ = done.out.splitlines()
    assert first.startswith("accuracy ") and second.startswith("mean over classes ")
    assert "report in rep: report.json, confusion.csv, per_class.csv, reliability.png, confusion.png" in done.notes
    assert {p.name for p in (tmp_path / "rep").iterdir()} == {
        "report.json", "confusion.csv", "per_class.csv", "reliability.png", "confusion.png"}  # fmt: skip
    report = json.loads((tmp_path / "rep" / "report.json").read_text())
    assert (report["dataset"], report["eval_resize"], report["eval_crop_pct"]) == ("folder", "crop", 0.8)
    assert [c["name"] for c in report["classes"]] == ["cat", "dog"] and report["total"] == 10
    rows = [*csv.reader((tmp_path / "rep" / "confusion.csv").open(newline=""))]
    assert sum(int(cell) for row in rows[1:] for cell in row[1:]) == 10
    said = json.loads(vit("evaluate", "--checkpoint", run, "--backend", "cpu", "--report", "rep", "--json").out)
    assert (said["report"], said["correct"]) == ("rep", report["correct"])
    assert said["calibration_error"] == pytest.approx(report["calibration_error"])
    plain = vit("evaluate", "--checkpoint", run, "--backend", "cpu")
    assert plain.out == first + "\n"


def test_a_missing_matplotlib_is_said_in_a_line(
    run: str, vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = vit("evaluate", "--checkpoint", run, "--backend", "cpu", "--report", "rep")
    assert done.code == 0 and "no plots, as matplotlib is not installed; pip install matplotlib" in done.notes


def test_a_folder_that_cannot_be_written_is_refused_first(run: str, vit: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = vit("evaluate", "--checkpoint", run, "--report", "taken")
    assert done.refusal.startswith("--report taken: cannot be written (")


def test_an_unreadable_picture_is_in_no_count_of_the_report(run: str, vit: Callable[..., Any], pets: Path) -> None:
    (pets / "val" / "cat" / "3.png").write_bytes(b"no picture")
    stopped = vit("evaluate", "--checkpoint", run, "--report", "rep")
    assert stopped.code == 2 and "3.png: not a readable picture" in stopped.err
    done = vit("evaluate", "--checkpoint", run, "--report", "rep", "--bad_images", "skip", "--json")
    assert done.code == 0, done.err
    report = json.loads(Path("rep/report.json").read_text())
    assert [c["images"] for c in report["classes"]] == [4, 5] and report["bad_images"] == 1 and report["total"] == 9


# ---- how pictures are fitted ----


def evaluated(vit: Callable[..., Any], run: str, *argv: str) -> float:
    done = vit("evaluate", "--checkpoint", run, "--backend", "cpu", "--json", *argv)
    assert done.code == 0, done.err
    loss: float = json.loads(done.out.splitlines()[-1])["loss"]
    return loss


def test_evaluate_fits_pictures_as_the_run_did_or_as_asked(run: str, vit: Callable[..., Any]) -> None:
    own = evaluated(vit, run)
    assert own == evaluated(vit, run, "--eval_resize", "crop", "--eval_crop_pct", "0.8")
    others = [evaluated(vit, run, *argv.split()) for argv in (
        "--eval_resize squash", "--eval_crop_pct 1.0", "--interpolation bicubic")]  # fmt: skip
    assert len({own, *others}) == 4, "each way of fitting gives another loss on wide pictures"


def test_predict_fits_pictures_as_the_run_evaluated_them(run: str, vit: Callable[..., Any], pets: Path) -> None:
    from vitcore import load

    files, model = sorted((pets / "val").rglob("*.png")), load(run)
    done = vit("predict", *files, "--checkpoint", run, "--json")
    assert done.code == 0, done.err
    view = View(size=(32, 32), resize="crop", crop_pct=0.8)
    for line, file in zip(done.out.splitlines(), files, strict=True):
        x = torch.empty(3, 32, 32, dtype=torch.uint8)
        picture_into(x, file.read_bytes(), view)
        want = model(x[None].float() / 127.5 - 1).softmax(-1)[0]
        for top in json.loads(line)["top"]:
            assert abs(top["probability"] - want[top["class"]].item()) < 1e-6
    # The mean loss of an evaluation is that of these probabilities, so both saw the same pixels.
    tops = [{t["name"]: t["probability"] for t in json.loads(line)["top"]} for line in done.out.splitlines()]
    loss = -np.mean([np.log(top[file.parent.name]) for top, file in zip(tops, files, strict=True)])
    assert loss == pytest.approx(evaluated(vit, run), rel=1e-4)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(40, 120), (97, 50), (33, 200), (64, 64), (20, 31)])
def test_crop_is_torchvisions_resize_and_centre_crop_within_a_grey_level(
    height: int, width: int, interpolation: Any
) -> None:
    coarse = np.random.default_rng(height).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1)

    def fitted(resize: Resize) -> torch.Tensor:
        out = torch.empty(3, 28, 28, dtype=torch.uint8)
        picture_into(out, np.ascontiguousarray(picture),
                     View(size=(28, 28), interpolation=interpolation, resize=resize, crop_pct=0.875))  # fmt: skip
        return out.int()

    way = v2.Compose(
        [v2.Resize(32, interpolation=v2.InterpolationMode(interpolation), antialias=True), v2.CenterCrop(28)]
    )
    want = way(torch.from_numpy(picture.copy())).int()
    assert (fitted("crop") - want).abs().max() <= 1
    far = (fitted("squash") - want).abs().max()
    assert far > 8, "squashing is another picture"
