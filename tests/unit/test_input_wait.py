"""The share of the time in which training waits for its input: counted, and shown by the run itself."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from vitcore import cli, stopwatch
from vitcore.data.formats.synthetic import SyntheticSplit
from vitcore.stopwatch import WARMUP_STEPS, Stopwatch

RUN = (
    "train --dataset synthetic --model_type ViT-digits --img_size 8 --train_batch_size 8 --eval_batch_size 64 --threads 1 "
    "--num_steps 12 --log_every 6 --eval_every 0 --warmup_steps 0 --json"
)


def test_shares_leave_out_what_is_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now)
    watch = Stopwatch(0)
    assert watch.input_wait != watch.input_wait, "nothing is known yet"
    watch.start()
    now += 10.0
    watch.lap(WARMUP_STEPS, waited=9.0)
    assert watch.recent_input_wait() == 0.9, "a log shows the start as it was"
    now += 50.0  # an evaluation
    watch.start()
    now += 4.0
    watch.lap(WARMUP_STEPS + 2, waited=10.0)
    now += 4.0
    watch.lap(WARMUP_STEPS + 4, waited=12.0)
    assert watch.recent_input_wait() == 3.0 / 8.0 == watch.input_wait, "without warm-up and evaluation"
    assert watch.seconds == 18.0


@pytest.mark.parametrize("seconds", [0.1, 0.0])
def test_a_run_says_whether_it_waits_for_input(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    load = SyntheticSplit.load

    def slowly(self: SyntheticSplit, *asked: Any) -> Any:
        time.sleep(seconds)
        return load(self, *asked)

    monkeypatch.setattr(SyntheticSplit, "load", slowly)
    monkeypatch.chdir(tmp_path)
    assert cli.main(RUN.split()) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    share = result["input_wait"]
    assert share > 0.5 if seconds else share < 0.5
    printed = [int(percent) for percent in re.findall(r"  input wait (\d+) %  left ", err)]
    lines = (tmp_path / result["run_dir"] / "metrics.jsonl").read_text().splitlines()
    recorded = [line["input_wait"] for line in map(json.loads, lines) if line["event"] == "train"]
    assert printed == [round(100 * each) for each in recorded] and len(printed) == 2
    assert printed[1] > 50 if seconds else printed[1] < 50
