"""From an evaluation's accumulators to numbers, lines and files; and what an evaluation with details costs a program."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rig import config, train

from vitcore.errors import VitcoreError
from vitcore.origin import find_origin
from vitcore.plan import make_plan
from vitcore.reporting import files
from vitcore.reporting.lines import lines
from vitcore.reporting.numbers import MOST_CLASSES, Details, check_classes, scores
from vitcore.session import Session

# Three classes; the last column has those of which no single class scored highest.
CONFUSION = [[8, 1, 0, 1], [2, 3, 0, 0], [4, 0, 0, 0]]
# 15 bins: (count, confidences, right); 10 in the second, 9 in the last.
BINS = [[0, 10, *[0] * 12, 9], [0, 1.0, *[0] * 12, 8.7], [0, 5, *[0] * 12, 6]]
NAMES = ("cat", "dog", "=emu $x^2$")


@pytest.fixture
def details() -> Details:
    return Details.of({"eval_confusion": CONFUSION, "eval_bins": BINS}, NAMES)


def test_classes_have_their_images_right_answers_and_shares(details: Details) -> None:
    cat, dog, emu = details.classes
    assert (cat.images, cat.correct, cat.answered, cat.accuracy) == (10, 8, 14, 80.0)
    assert cat.precision == pytest.approx(800 / 14) and (dog.accuracy, dog.precision) == (60.0, 75.0)
    assert (emu.images, emu.accuracy, emu.answered, emu.precision) == (4, 0.0, 0, None)
    assert details.mean_class_accuracy == pytest.approx(140 / 3) and details.undecided.tolist() == [1, 0, 0]


def test_a_class_without_images_has_no_accuracy_and_counts_in_no_mean() -> None:
    confusion = [[2, 0, 0], [0, 0, 0]]
    details = Details.of({"eval_confusion": confusion, "eval_bins": BINS}, ("a", "b"))
    assert details.classes[1].accuracy is None and details.mean_class_accuracy == 100.0
    assert details.worst_classes(5) == []


def test_the_calibration_error_is_the_mean_gap_between_being_right_and_being_sure(details: Details) -> None:
    # |0.5 - 0.1| of 10 images and |6/9 - 8.7/9| of 9.
    assert details.calibration_error == pytest.approx(100 * (4.0 + 2.7) / 19)
    assert [b.images for b in details.bins if b.accuracy is not None] == [10, 9]
    assert (details.bins[14].to, details.bins[0].above, details.bins[0].accuracy) == (100.0, 0.0, None)
    nothing = Details.of({"eval_confusion": CONFUSION, "eval_bins": np.zeros((3, 15)).tolist()}, NAMES)
    assert nothing.calibration_error is None and "calibration error not known" in lines(nothing)[0]


def test_the_worst_and_the_most_confused_come_first(details: Details) -> None:
    assert [score.name for score in details.worst_classes(2)] == [NAMES[2], "dog"]
    assert details.confusions(9) == [(4, NAMES[2], "cat"), (2, "dog", "cat"), (1, "cat", "dog")]
    said = "\n".join(lines(details))
    assert "mean over classes 46.67 %" in said and "     4 x =emu $x^2$ taken for cat" in said
    assert "1 image(s) of which no single class scored highest" in said and "0 of 4" in said


def test_the_files_hold_the_numbers(details: Details, tmp_path: Path) -> None:
    files.prepare(tmp_path / "deep" / "er")
    assert [*(tmp_path / "deep" / "er").iterdir()] == []
    made = files.write(tmp_path, {"loss": float("nan"), "total": 19}, details)
    assert made == ["report.json", "confusion.csv", "per_class.csv", "reliability.png", "confusion.png"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["loss"] is None and report["total"] == 19 and report["undecided"] == 1
    assert report["classes"][0] == {"name": "cat", "images": 10, "correct": 8, "answered": 14, "accuracy": 80.0,
                                    "precision": pytest.approx(800 / 14)}  # fmt: skip
    assert len(report["bins"]) == 15 and report["calibration_error"] == details.calibration_error
    rows = [*csv.reader((tmp_path / "confusion.csv").open(newline=""))]
    assert rows == [["class", *NAMES, "undecided"], *([n, *map(str, line)] for n, line in zip(NAMES, CONFUSION))]
    table = [*csv.DictReader((tmp_path / "per_class.csv").open(newline=""))]
    assert [row["images"] for row in table] == ["10", "5", "4"] and table[2]["precision"] == ""
    for name in made[3:]:
        with Image.open(tmp_path / name) as plot:
            assert np.asarray(plot.convert("L")).std() > 10, f"{name} is blank"


def test_without_matplotlib_there_are_no_plots(
    details: Details, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert files.write(tmp_path, {}, details) == ["report.json", "confusion.csv", "per_class.csv"]
    assert not [*tmp_path.glob("*.png")]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VitcoreError, match=r"--report .*file: cannot be written \(.*\); give another folder"):
        files.prepare(tmp_path / "file")
    check_classes(MOST_CLASSES)
    with pytest.raises(VitcoreError, match=r"a matrix of 21843 x 21843 confusions.*; leave --report out"):
        check_classes(21843)
    with pytest.raises(VitcoreError, match="none of 7 images could be read"):
        scores({"eval_total": 0.0}, 7)


# ---- in a program ----


def counted(settings: Any, folder: Path, details: bool) -> tuple[dict[str, Any], Any]:
    """The accumulators of two evaluations in a row, the second's, and what the executable counted."""
    plan = make_plan(config(folder, **settings, resume=str(folder / "run")), details=details)
    with Session(plan, find_origin(plan.config)) as session:
        state, _ = session.load(folder / "run")
        state, _ = session.executable.log(state)
        state, _ = session.count(state)
        before = session.executable.stats().host_reads
        _, report = session.count(state)
        return report, session.executable.stats().host_reads - before


def test_details_change_no_other_number_and_take_no_further_read(tmp_path: Path) -> None:
    train(config(tmp_path, num_steps=8, eval_every=0))
    plain, reads = counted({"eval_batch_size": 77}, tmp_path, details=False)
    full, all_reads = counted({"eval_batch_size": 77}, tmp_path, details=True)
    assert reads == all_reads == 1
    assert full.keys() - plain.keys() == {"eval_confusion", "eval_bins"}
    assert {name: full[name] for name in plain} == plain and plain["eval_total"] == 360
    matrix = np.array(full["eval_confusion"])
    assert matrix.shape == (10, 11) and matrix.sum() == 360 and matrix[:, :-1].trace() == plain["eval_correct"] > 36
    assert sum(full["eval_bins"][0]) == 360 and sum(full["eval_bins"][2]) == plain["eval_correct"]


def test_the_text_says_what_is_counted_and_only_where_it_is_asked_for(tmp_path: Path) -> None:
    plain, full = (str(make_plan(config(tmp_path), details=asked).lowered) for asked in (False, True))
    assert "details" not in plain
    assert full.replace(", details=confusion|bins", "").replace("details=confusion|bins, ", "") == plain
    assert full.count("details=confusion|bins") == 3  # made by init and by each log, counted by eval
