"""A checkpoint that is damaged, or of another run, is refused in one line and nothing is lost."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rig import assert_same_bits, checkpoint_of, config, contents, resume, train

import vitcore
from vitcore import checkpoint
from vitcore import session as session_module
from vitcore.config import Config
from vitcore.data.datasets import open_dataset
from vitcore.errors import VitcoreError

TENSORS, FACTS = "state.safetensors", "state.json"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of eight steps with checkpoints at 4, 6 and 8."""
    settings = config(tmp_path_factory.mktemp("trained"), num_steps=8, train_batch_size=8, eval_every=4, save_every=2,
                      keep_checkpoints=3)  # fmt: skip
    train(settings)
    return settings


@pytest.fixture
def settings(trained: Config, tmp_path: Path) -> Config:
    """A copy of that run, to be damaged, and to be trained on to step 10."""
    shutil.copytree(trained.output_dir, tmp_path / "run-copy")
    return replace(trained, output_dir=str(tmp_path / "run-copy"), num_steps=10)


def files(settings: Config) -> dict[str, str]:
    """Every file of the run, with a digest."""
    root = Path(settings.output_dir)
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def refused(settings: Config, *parts: str, **changes: Any) -> str:
    """Resuming is refused with all these parts in one line, and leaves every file as it was."""
    before = files(settings)
    with pytest.raises(VitcoreError) as error:
        resume(settings, **changes)
    said = str(error.value)
    assert "\n" not in said
    for part in parts:
        assert part in said, said
    assert files(settings) == before
    return said


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record, indent=1))


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "tensors cut in half": (TENSORS, lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])),
    "tensors cut by a byte": (TENSORS, lambda p: p.write_bytes(p.read_bytes()[:-1])),
    "tensors empty": (TENSORS, lambda p: p.write_bytes(b"")),
    "a bit of the data flipped": (TENSORS, lambda p: flip(p, -1000)),
    "a bit of the header flipped": (TENSORS, lambda p: flip(p, 3)),
    "tensors missing": (TENSORS, lambda p: p.unlink()),
    "facts cut in half": (FACTS, lambda p: p.write_text(p.read_text()[: p.stat().st_size // 2])),
    "facts empty": (FACTS, lambda p: p.write_text("")),
    "facts no object": (FACTS, lambda p: p.write_text("[1, 2]")),
    "facts no text": (FACTS, lambda p: p.write_bytes(b"\xff\xfe\x00" * 99)),
    "a fact missing": (FACTS, lambda p: edit(p, lambda r: r.pop("values"))),
    "the cursor edited": (FACTS, lambda p: edit(p, lambda r: r["values"].update(c=0))),
    "the key edited": (FACTS, lambda p: edit(p, lambda r: r["values"]["k"].update(seed=8))),
    "the step edited": (FACTS, lambda p: edit(p, lambda r: r["facts"].update(step=3))),
    "the seed edited": (FACTS, lambda p: edit(p, lambda r: r["facts"]["config"].update(seed=8))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_as_good_as_ever(
    damage: str, settings: Config, trained: Config
) -> None:
    file, harm = DAMAGE[damage]
    newest = checkpoint_of(settings, 8)
    harm(newest / file)
    said = refused(settings, f"checkpoint {newest}: {file} ", "resume from another")
    assert re.search("cannot be read|does not match its digest", said)
    resume(settings, resume=str(checkpoint_of(settings, 6)), num_steps=8)
    assert_same_bits(contents(checkpoint_of(settings, 8))[0], contents(checkpoint_of(trained, 8))[0])


def test_facts_that_are_missing_are_missed_by_name_and_the_run_folder_offers_the_one_before(settings: Config) -> None:
    newest = checkpoint_of(settings, 8)
    (newest / FACTS).unlink()
    refused(settings, f"checkpoint {newest}: {FACTS} cannot be read", resume=str(newest))
    assert checkpoint.newest(newest.parents[1]) == checkpoint_of(settings, 6)


def test_another_format_is_refused_by_its_number(settings: Config) -> None:
    newest = checkpoint_of(settings, 8)
    edit(newest / FACTS, lambda r: r.update(format=2))
    refused(settings, f"checkpoint {newest}: format 2, this version reads 1; use the vitcore that wrote it")
    (newest / FACTS).write_text('{"format": 99, "else": "unknown"}')
    refused(settings, f"checkpoint {newest}: format 99, this version reads 1")


def test_a_layout_of_the_facts_that_says_the_same_is_no_edit(settings: Config) -> None:
    facts = checkpoint_of(settings, 8) / FACTS
    facts.write_text(json.dumps(json.loads(facts.read_text())))
    assert resume(settings, stop_at=9).steps == 9


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = "it is of ViT-digits at 8 px, 10 classes, adamw, not of this model and optimizer"
    refused(settings, ours, "'opt/momentum/", "is nothing there", optimizer="sgdm")
    newest = checkpoint_of(settings, 8)
    refused(settings, f"checkpoint {newest}", "ViT-Ti_16", "ViT-digits",
            model_type="ViT-Ti_16", img_size=16, dataset="synthetic")  # fmt: skip
    other = {"dataset": "synthetic", "augment_translate": 0.0}
    refused(settings, f"checkpoint {newest}: its data set is digits-tune, --dataset is synthetic", **other)
    monkeypatch.setattr(session_module, "open_dataset", partial(open_dataset, classes=7))
    refused(settings, ours, "'params/head.bias' is [10] torch.float32 there and [7] float32 here", **other)


def test_what_decides_the_order_and_the_schedule_must_be_as_it_was(settings: Config) -> None:
    path = f"checkpoint {checkpoint_of(settings, 8)}: "
    refused(settings, path + "its seed is 7, --seed is 8; resume with its own", seed=8)
    refused(settings, path + "its steps have 8 images, these have 16; set --train_batch_size", train_batch_size=16)
    refused(settings, path + "it is at step 8, beyond --num_steps 7; raise it", num_steps=7)


def test_where_there_is_no_checkpoint_that_is_said(settings: Config, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    refused(settings, f"checkpoint {nothing}: no such checkpoint or run folder; give a folder that holds {FACTS}",
            resume=str(nothing))  # fmt: skip
    (nothing / "checkpoints" / "step-00000004").mkdir(parents=True)
    refused(settings, f"run folder {nothing}: it holds no complete checkpoint; start without --resume",
            resume=str(nothing))  # fmt: skip


def test_nothing_that_is_loaded_can_execute_code() -> None:
    roots = [Path(vitcore.__file__).parent, *Path(vitcore.__file__).parents[1].glob("backends/*"),
             *Path(vitcore.__file__).parents[1].glob("plugins/*")]  # fmt: skip
    sources = {p: p.read_text() for root in roots for p in root.rglob("*.py")}
    assert len(sources) > 50
    loads = re.compile(r"torch\.load\b|\b[pP]ickle\.\w*load|\bUnpickler\b|\bmarshal\b|\bshelve\b|np\.load\b|yaml\.load")
    # shared.py reads what this run's own processes wrote into anonymous memory, no file.
    found = {p.name: loads.findall(text) for p, text in sources.items() if loads.search(text)}
    assert found == {"pth.py": ["torch.load"], "shared.py": ["pickle.load"], "cached.py": ["np.load"]}
    cached = next(text for p, text in sources.items() if p.name == "cached.py")
    assert re.search(r"np\.load\([^)]*allow_pickle=False\)", cached)
    reader = next(text for p, text in sources.items() if p.name == "pth.py")
    assert len(loads.findall(reader)) == 1 and re.search(r"torch\.load\([^)]*weights_only=True", reader)
    assert not [p for p, text in sources.items() if re.search(r"allow_pickle(?!=False)|weights_only(?!=True)", text)]
    runs = re.compile(r"(?<![\w.])(?<!def )(?<!@)(eval|exec)\((?!\))")
    assert [p.name for p, text in sources.items() if runs.search(text)] == ["codegen.py"]
