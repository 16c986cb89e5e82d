"""A run that is cut and resumed, also inside an epoch and twice, ends in the very bits of the run that was not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import assert_same_bits, checkpoint_of, config, contents, records, resume, train

from vitcore.config import Config
from vitcore.session import Session
from vitcore.training import Result

# An epoch of digits-tune is 16 of these steps: 7 is inside the first, 17 inside the second.
CUTS, STEPS = (7, 17), 24
VARIANTS = {
    "adamw": {"optimizer": "adamw"},
    "sgdm": {"optimizer": "sgdm", "learning_rate": 0.05},
}


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """Tensors, cursor and key to the bit; of the facts, all but the clock's and the folder's."""
    assert (one / "state.safetensors").read_bytes() == (other / "state.safetensors").read_bytes()
    (t1, v1, f1), (t2, v2, f2) = contents(one), contents(other)
    assert_same_bits(t1, t2)
    assert v1 == v2 and {*v1} == {"c", "k"}
    for facts in (f1, f2):
        del facts["train_seconds"]
        for place in ("output_dir", "resume"):
            del facts["config"][place]
    assert f1 == f2


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_cut_twice_inside_epochs_ends_in_the_same_bits(variant: str, tmp_path: Path) -> None:
    settings = VARIANTS[variant]
    whole, cut = config(tmp_path / "whole", **settings), config(tmp_path / "cut", **settings)
    end = train(whole)
    stopped = train(cut, stop_at=CUTS[0])
    assert (
        stopped.steps == 7 and stopped.accuracy != stopped.accuracy and stopped.checkpoint == str(checkpoint_of(cut, 7))
    )
    assert resume(cut, stop_at=CUTS[1]).steps == 17
    again = resume(cut)
    _assert_same_end(whole, end, cut, again)
    # The second evaluation is after both cuts, the first between them: its checkpoint is the same too.
    assert_same_checkpoint(checkpoint_of(whole, 12), _kept(cut, whole))


def _kept(cut: Config, whole: Config) -> Path:
    """Step 12 of the cut run: its own checkpoint has gone, the best one may be it; else the whole run's own."""
    best = checkpoint_of(cut, 12).with_name("best")
    return best if contents(best)[2]["step"] == 12 else checkpoint_of(whole, 12)


def _assert_same_end(whole: Config, end: Result, cut: Config, again: Result) -> None:
    assert_same_checkpoint(checkpoint_of(whole, STEPS), checkpoint_of(cut, STEPS))
    keys = ("accuracy", "correct", "total", "loss", "steps")
    assert {k: getattr(end, k) for k in keys} == {k: getattr(again, k) for k in keys} and end.total == 360
    for event in ("train", "eval"):
        assert records(whole, event) == records(cut, event)
    assert {*records(whole, "train")} == {5, 10, 12, 15, 20, 24} and {*records(whole, "eval")} == {12, 24}
    losses = [line["loss"] for line in records(whole, "train").values()]
    assert len({*losses}) == 6


def test_accumulators_that_were_cut_are_those_that_were_not(tmp_path: Path) -> None:
    """The cut falls between two logs, so the checkpoint holds losses that nobody has read yet."""
    once, twice = config(tmp_path / "once"), config(tmp_path / "twice")
    train(once, stop_at=9)
    train(twice, stop_at=7)
    assert contents(checkpoint_of(twice, 7))[0]["metrics/steps"].item() == 2
    resume(twice, stop_at=9)
    tensors, values, facts = contents(checkpoint_of(once, 9))
    assert tensors["metrics/steps"].item() == 4 and tensors["metrics/loss"].item() > 0
    assert values["c"] == 9 * 64 and values["k"]["seed"] == 7 and facts["step"] == 9
    assert_same_checkpoint(checkpoint_of(once, 9), checkpoint_of(twice, 9))


@pytest.mark.parametrize(
    "more",
    [
        {"dropout": 0.0, "max_grad_norm": 0.0, "gradient_accumulation_steps": 1},
        {"decay_norms_and_biases": False, "precision": "bf16"},
    ],
    ids=["plain", "undecayed-bf16"],
)
def test_other_programs_resume_to_the_same_bits(more: dict[str, Any], tmp_path: Path) -> None:
    settings = {"num_steps": 6, "eval_every": 0, "train_batch_size": 16, **more}
    whole, cut = config(tmp_path / "whole", **settings), config(tmp_path / "cut", **settings)
    train(whole)
    train(cut, stop_at=3)
    resume(cut)
    assert_same_checkpoint(checkpoint_of(whole, 6), checkpoint_of(cut, 6))


def test_a_run_resumes_on_other_micro_batches_of_the_same_step(tmp_path: Path) -> None:
    """Accumulation is no part of what a step means: the same images, nearly the same numbers."""
    settings = config(tmp_path, num_steps=6, gradient_accumulation_steps=1, eval_every=0)
    train(settings, stop_at=3)
    result = resume(replace(settings, gradient_accumulation_steps=4))
    assert result.steps == 6 and contents(checkpoint_of(settings, 6))[1]["c"] == 6 * 64


def test_resuming_at_the_end_evaluates_and_changes_nothing(tmp_path: Path) -> None:
    settings = config(tmp_path, num_steps=6)
    end = train(settings)
    before = contents(checkpoint_of(settings, 6))[0]
    again = resume(settings)
    assert (again.accuracy, again.loss, again.steps) == (end.accuracy, end.loss, 6)
    assert again.checkpoint == end.checkpoint
    assert_same_bits(contents(checkpoint_of(settings, 6))[0], before)


def test_the_best_checkpoint_is_the_best_of_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path, num_steps=8, eval_every=4, train_batch_size=8)
    train(settings, stop_at=5)
    first = records(settings, "eval")[4]["accuracy"]
    assert first > 0
    real = Session.evaluate

    def worse(session: Session, state: Any) -> Any:
        state, values = real(session, state)
        return state, {**values, "accuracy": 0.0}

    monkeypatch.setattr(Session, "evaluate", worse)
    resume(settings)
    assert contents(checkpoint_of(settings, 8))[2]["best"] == first
    assert contents(checkpoint_of(settings, 8).with_name("best"))[2]["step"] == 4


def test_resuming_from_an_older_checkpoint_keeps_the_new_ones_and_puts_the_old_aside(tmp_path: Path) -> None:
    settings = config(tmp_path, num_steps=12, eval_every=3, keep_checkpoints=3, train_batch_size=8)
    train(settings)
    reference = contents(checkpoint_of(settings, 12))[0]
    run_dir = Path(settings.output_dir) / settings.name
    result = train(replace(settings, resume=str(checkpoint_of(settings, 6))), stop_at=8)
    assert result.checkpoint == str(checkpoint_of(settings, 8)) and Path(result.checkpoint).is_dir()
    aside = run_dir / "checkpoints-earlier-1"
    assert {p.name for p in aside.iterdir()} >= {"step-00000009", "step-00000012"}
    assert_same_bits(contents(aside / "step-00000012")[0], reference)
    resume(settings)  # the newest is step 8, and leads to the same end
    assert_same_bits(contents(checkpoint_of(settings, 12))[0], reference)


def test_a_second_run_in_the_same_folder_keeps_its_own_checkpoints_and_the_first_ones(tmp_path: Path) -> None:
    first = config(tmp_path, num_steps=9, eval_every=3, train_batch_size=8)
    train(first)
    ends = contents(checkpoint_of(first, 9))[0]
    second = replace(first, seed=8, num_steps=4, eval_every=2)
    result = train(second, stop_at=3)
    assert result.checkpoint == str(checkpoint_of(second, 3))
    assert contents(checkpoint_of(second, 3))[2]["config"]["seed"] == 8
    run_dir = Path(first.output_dir) / first.name
    aside = run_dir / "checkpoints-earlier-1"
    assert {p.name for p in aside.iterdir()} == {"best", "step-00000006", "step-00000009"}
    assert_same_bits(contents(aside / "step-00000009")[0], ends)
    assert resume(second).steps == 4
    train(second, stop_at=1)
    assert {p.name for p in run_dir.glob("checkpoints*")} == {
        f"checkpoints{t}" for t in ("", "-earlier-1", "-earlier-2")
    }
