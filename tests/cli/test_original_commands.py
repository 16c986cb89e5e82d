"""The four single-card command lines of the original README (Model-References 1.6.1, ViT), run to the end.

Their text is verbatim but for `train.py`, which is `-m vitcore.train`. What may be changed to run one here is CHANGED; what each
comes to, unchanged, is the golden beside this file.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vitcore_hpu
from PIL import Image

from vitcore.model.init import init_parameters
from vitcore.model.variants import Variant
from vitcore.model.vit import VisionTransformer
from vitcore.weights.write import write

GOLDEN = Path(__file__).parent / "original_commands.json"
_START = ("$PYTHON train.py --name imagenet1k_TF --dataset imagenet1K --data_path "
          "/root/software/data/pytorch/imagenet/ILSVRC2012 --model_type ViT-B_16 --pretrained_dir ./ViT-B_16.npz "
          "--num_steps 20000 ")  # fmt: skip
COMMANDS = {
    "fp32 of 32": f"{_START}--train_batch_size 32 --gradient_accumulation_steps 1 --img_size 384 --learning_rate 0.06",
    "bf16 of 32": f"{_START}--train_batch_size 32 --gradient_accumulation_steps 1 --img_size 384 --learning_rate 0.06 "
    "--hmp --hmp-opt-level O1",
    "fp32 of 512": f"{_START}--train_batch_size 512 --gradient_accumulation_steps 16 --img_size 384 --learning_rate 0.06",
    "bf16 of 512": f"{_START}--train_batch_size 512 --gradient_accumulation_steps 16 --img_size 384 --learning_rate 0.06 "
    "--hmp --hmp-opt-level O1",
}
CHANGED = {"data_path", "pretrained_dir", "num_steps", "model_type"}
"""The data and the weights are others, steps are fewer, and the model's type is left to the file of weights."""


def arguments(command: str) -> list[str]:
    """The line as it is typed today."""
    assert command.startswith("$PYTHON train.py ")
    return shlex.split(command)[2:]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 520 small pictures in ImageNet's layout, and a small model's weights in Google's."""
    folder, rng = tmp_path_factory.mktemp("original"), np.random.default_rng(0)
    for part, count in (("train", 260), ("val", 8)):
        for name in ("n01440764", "n01443537"):
            (folder / "ILSVRC2012" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                picture = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BILINEAR)
                picture.save(folder / "ILSVRC2012" / part / name / f"{part}_{i}.JPEG", quality=90)
    small = Variant(name="small", patch=32, width=48, depth=2, heads=3, mlp=96, img_size=224)
    model = VisionTransformer(small, 224, 21)
    init_parameters(model, torch.Generator().manual_seed(0))
    write(model, "npz", folder / "small.npz")
    return folder


@pytest.mark.parametrize("which", COMMANDS)
def test_a_line_of_the_original_readme_comes_to_what_it_said_and_runs_to_the_end(
    which: str, here: Path, shell_in: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    argv = arguments(COMMANDS[which])
    dry = shell_in(here, "-m", "vitcore.train", *argv, "--dry-run")
    assert dry.code == 0, dry
    resolved = {**json.loads(dry.out), "dry_run": False}
    steps = 2 if resolved["train_batch_size"] == 32 else 1  # to the end, whatever it is
    _golden(which, resolved, update=request.config.getoption("--update-goldens", False))

    appended = ["--data_path", here / "ILSVRC2012", "--pretrained_dir", here / "small.npz", "--num_steps", steps,
                "--model_type", "None"]  # fmt: skip
    done = shell_in(here, "-m", "vitcore.train", *argv, *appended)
    assert done.code == 0, done
    assert f"of 16) after {steps} steps" in done.out
    run = json.loads((here / "output" / "imagenet1k_TF" / "config.json").read_text(encoding="utf-8"))
    differ = {name for name in resolved if run.get(name) != json.loads(json.dumps(resolved[name]))}
    assert differ <= {*CHANGED, "backend"}, differ
    assert run["precision"] == ("bf16" if "--hmp" in argv else "fp32")


def _golden(which: str, resolved: dict[str, Any], *, update: bool) -> None:
    """What the line resolves to, but for settings at their defaults that came later than the original."""
    from vitcore.config import Config

    defaults = json.loads(json.dumps(Config().as_dict()))
    said = {name: value for name, value in resolved.items() if value != defaults[name]}
    # Where the package is installed is the machine's affair.
    said = json.loads(json.dumps(said).replace(str(Path(vitcore_hpu.__file__).parent), "VITCORE_HPU"))
    goldens = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
    if update:
        GOLDEN.write_text(json.dumps({**goldens, which: said}, indent=1) + "\n", encoding="utf-8")
    else:
        assert said == goldens[which]
