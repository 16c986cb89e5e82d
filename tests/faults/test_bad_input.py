"""What people get wrong: each is refused with one line that names the thing, the rule and the remedy, and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitcore import cli
from vitcore.plugins import load_plugins

RUN = "--threads 1 --train_batch_size 16 --eval_batch_size 360 --num_steps 2 --eval_every 0 --warmup_steps 0"
Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Refuse:
    """The line with which `vitcore ARGS...` is refused, in an empty folder; what else is said stands before it."""
    monkeypatch.setenv("VITCORE_DEBUG", "0")
    monkeypatch.chdir(tmp_path)

    def call(*argv: object) -> str:
        load_plugins.cache_clear()
        code = cli.main([word for a in argv for word in (a.split(" ") if isinstance(a, str) else [str(a)])])
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert code == 2 and not out and "Traceback" not in err, (code, out, err)
        assert lines[-1].startswith("vitcore: error: ") and sum("error: " in line for line in lines) == 1, err
        return str(lines[-1]).removeprefix("vitcore: error: ")

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("finished")
    assert cli.main(["train", *RUN.split(), "--output_dir", str(folder), "--name", "run"]) == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ("trian", ["'trian' is no verb (did you mean 'train'?)", "vitcore --help"]),
        ("backends --jason", ["backends: '--jason' is no flag of it", "--json"]),
        ("train --backend cqu", ["backend 'cqu' is not known (did you mean 'cpu'?)", "installed backends: "]),
        ("lower --backend hpulazy", ["backend 'hpulazy' is not known (did you mean 'hpu-lazy'?)"]),
        ("train --backend hpu-lazy", ["backend 'hpu-lazy' cannot run here: habana_frameworks", "install"]),
        ("train --model_type ViT-B16", ["unknown variant 'ViT-B16' (did you mean 'ViT-B_16'?)", "choose one of "]),
        ("train --model_type R50-ViT-B16", ["unknown variant 'R50-ViT-B16' (did you mean 'R50-ViT-B_16'?)", "choose one of "]),
        ("train --dataset digts", ["unknown data set 'digts' (did you mean 'digits'?)", "choose one of "]),
        ("train --recipe digit", ["recipe 'digit' is unknown (did you mean 'digits'?)", "choose one of "]),
        ("train --learning_rat 1", ["--learning_rat", "(did you mean --learning-rate?)", "vitcore train --help"]),
        ("evaluate --checkpont x", ["vitcore evaluate --help"]),
        ("evaluate", ["--checkpoint", "vitcore evaluate --help"]),
        ("train stray", ["stray", "vitcore train --help"]),
        ("train --num_steps", ["--num-steps", "vitcore train --help"]),
        ("train --num_steps 3.5", ["--num-steps", "'3.5'", "vitcore train --help"]),
        ("train --learning_rate fast", ["--learning-rate", "'fast'", "vitcore train --help"]),
        ("train --optimizer lions", ["--optimizer", "'lions'", "'sgdm', 'adamw'"]),
        ("train --print-step=source", ["--print-step", "'source'", "'lowered'"]),
        ("train --augment_scale 1", ["--augment-scale", "2 values"]),
        ("train --augment_scale 2 1", ["--augment_scale (2.0, 1.0) is no range", "low <= high"]),
        ("train --learning_rate nan", ["--learning_rate nan is no finite number"]),
        ("train --weight_decay inf", ["--weight_decay inf is no finite number"]),
        ("train --learning_rate -1", ["--learning_rate -1.0 is out of range: it must not be negative"]),
        ("train --num_steps -3", ["--num_steps -3 is out of range: it must be at least 1"]),
        ("train --num_steps 0", ["--num_steps 0 is out of range"]),
        ("train --train_batch_size -8", ["--train_batch_size -8 is out of range"]),
        ("train --seed -1", ["--seed -1 is out of range"]),
        ("train --seed 9223372036854775808", ["--seed 9223372036854775808 is out of range: it must be below 2^63"]),
        ("train --momentum 1", ["--momentum 1.0 is out of range: it must be in [0, 1)"]),
        ("train --eps 0", ["--eps 0.0 is out of range: it must be above 0"]),
        ("train --dropout 1.5", ["dropout=1.5 is not a rate", "at least 0 and under 1"]),
        ("train --train_batch_size 10 --gradient-accumulation-steps 4",
         ["--train_batch_size 10 is not divisible by --gradient_accumulation_steps 4", "change one of them"]),
        ("train --train_batch_size 2000", ["1437 training pictures", "2000", "use a smaller batch"]),
        ("train --dataset synthetic --img_size 1", ["img_size 1 is smaller than one patch of 2 pixels", "use 2"]),
        ("train --img_size 16", ["digits: the pictures are 8x8 and img_size is 16", "use img_size 8"]),
        ("train --model_type ViT-Ti_16", ["pictures have 1 channel(s) and the model takes 3", "choose"]),
        ("train --augment_crop 0.5 1", ["digits", "crop"]),
        ("train --disable_pass place_mark", ["no pass is called 'place_mark' (did you mean 'place_marks'?)"]),
        ("train --disable_pass seal", ["pass 'seal' cannot be disabled"]),
        ("train --resume nowhere", ["checkpoint nowhere: no such checkpoint or run folder", "state.json"]),
        ("evaluate --checkpoint nowhere", ["nowhere: neither a path nor the name of published weights", "give a file"]),
        ("evaluate --checkpoint ./nowhere", ["nowhere: no such file or folder", "give the path"]),
        ("train --name= ", ["--name '' is no name for a folder"]),
        ("train --name a/b", ["--name 'a/b' is no name for a folder", "without slashes"]),
        ("train --name ..", ["--name '..' is no name for a folder"]),
        ("train --name a\\b", ["is no name for a folder"]),
        ("train --output_dir /proc/x", ["output folder /proc/x/digits: cannot be written", "--output_dir"]),
    ],
)  # fmt: skip
def test_it_is_refused_in_one_line(argv: str, parts: list[str], refuse: Refuse) -> None:
    line = refuse(argv.strip())
    assert all(part in line for part in parts), line


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is an NVIDIA GPU here")
def test_a_gpu_that_is_not_here_is_refused_with_what_is_missing(refuse: Refuse) -> None:
    assert refuse("train --backend cuda").startswith("backend 'cuda' cannot run here: the NVIDIA driver ")


def test_a_traceback_is_shown_as_well_where_debugging_was_asked_for(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("VITCORE_DEBUG", "1")
    assert cli.main(["train", "--img_size", "16"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert lines[-1].startswith("vitcore: error: digits: the pictures are 8x8") and lines[-1] != lines[-2]


@pytest.mark.parametrize("verb", ["train", "lower", "backends"])
@pytest.mark.parametrize("level", ["yes", "-1", "6", "1.5"])
def test_a_debug_level_that_is_none_is_refused_by_every_verb(
    verb: str, level: str, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITCORE_DEBUG", level)
    assert refuse(verb) == f"VITCORE_DEBUG={level!r} is no level; set 0 to 5"


def test_fuel_that_is_no_number_is_refused(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    for fuel in ("plenty", "-1", "1.5"):
        monkeypatch.setenv("VITCORE_FUEL", fuel)
        for verb in ("train", "lower", "train --print-step=lowered"):
            line = refuse(verb)
            assert line.startswith(f"VITCORE_FUEL={fuel!r} is no number of rewrites; "), line


def test_an_output_folder_that_is_a_file_is_refused_before_anything_is_computed(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert refuse("train --output_dir file").startswith("output folder file/digits: cannot be written (")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "taken").write_text("mine")
    assert refuse("train --name taken").startswith("output folder output/taken: cannot be written (File exists); ")
    assert (tmp_path / "file").read_text() == (tmp_path / "output" / "taken").read_text() == "mine"


def test_training_that_diverges_stops_with_the_step_in_which_it_did(refuse: Refuse, tmp_path: Path) -> None:
    line = refuse("train", RUN, "--num_steps 20 --log_every 7 --name wild --learning_rate 1e30")
    assert line.startswith("step 2: the gradients are not finite (6 steps since the last log)")
    assert "--learning_rate" in line and "--resume" in line
    assert not list((tmp_path / "output" / "wild").glob("checkpoints/*")), "no checkpoint of what went wrong"


def test_a_checkpoint_that_was_changed_or_cut_is_refused(refuse: Refuse, finished: Path, tmp_path: Path) -> None:
    def damaged(name: str, damage: Callable[[bytes], bytes]) -> Path:
        run = tmp_path / "damaged"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(finished, run)
        (file,) = run.glob(f"checkpoints/step-*/{name}")
        file.write_bytes(damage(file.read_bytes()))
        return run

    def flip(data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1])

    for name, damage, why in (
        ("state.safetensors", lambda data: data[:1000], "does not match its digest; it is corrupt"),
        ("state.safetensors", flip, "does not match its digest; it is corrupt"),
        ("state.json", lambda data: data[:100], "it is incomplete or corrupt"),
        ("state.json", lambda data: b"[]", "it is incomplete or corrupt"),
        ("state.json", lambda data: data.replace(b'"format": 1', b'"format": 99'), "format 99, this version reads 1"),
    ):
        run = damaged(name, damage)
        line = refuse("train", RUN, "--num_steps 4 --resume", run)
        assert line.startswith(f"checkpoint {run}/checkpoints/step-00000002: ") and why in line, line
        assert refuse("evaluate --checkpoint", run).startswith(f"checkpoint {run}"), line


def test_a_checkpoint_of_another_model_or_run_is_refused(refuse: Refuse, finished: Path) -> None:
    step = f"checkpoint {finished}/checkpoints/step-00000002: "
    for argv, why in (
        ("--optimizer sgdm", "it is of ViT-digits at 8 px, 10 classes, adamw, not of this model and optimizer: "),
        ("--dataset synthetic --img_size 10", "not of this model and optimizer: 'params/pos_embed' is [1, 17, 48]"),
        ("--seed 3", "its seed is 42, --seed is 3; "),
        ("--train_batch_size 32", "its steps have 16 images, these have 32; "),
        ("--num_steps 1", "it is at step 2, beyond --num_steps 1; "),
    ):
        line = refuse("train", RUN, "--name again --resume", finished, argv)
        assert line.startswith(step) and why in line, line
    empty = finished.parent / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    assert refuse("train --resume", empty).startswith(f"run folder {empty}: it holds no complete checkpoint; ")
    assert refuse("evaluate --checkpoint", empty).startswith(f"run folder {empty}: it holds no complete checkpoint; ")


def test_a_checkpoint_of_a_version_with_other_settings_is_refused(
    refuse: Refuse, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "newer")
    (file,) = (tmp_path / "newer").glob("checkpoints/step-*/state.json")
    record = json.loads(file.read_text())
    record["facts"]["config"]["of_the_future"] = 1
    file.write_text(json.dumps(record))
    line = refuse("evaluate --checkpoint newer")
    assert "of_the_future" in line and "corrupt or of another version" in line
