"""Exponents of planted growth, and the command once through at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from benchmarks.growth import exponent, exponent_interval, fitted, in_turn, main, points
from benchmarks.orders import balanced
from benchmarks.workload import Workload
from vitcore.errors import VitcoreError

ROOT = Path(__file__).parents[2]


def test_a_planted_exponent_is_found_within_its_interval() -> None:
    sizes, rng = [17, 37, 65, 145], np.random.default_rng(0)
    # What a whole round shares, a slow moment of the machine, changes no exponent.
    shared = np.exp(rng.standard_normal(30))
    times = [(shared * size**1.4 * (1 + 0.02 * rng.random(30))).tolist() for size in sizes]
    found = fitted(sizes, [size**2 for size in sizes], times)
    assert found["exponent"] == pytest.approx(1.4, abs=0.02)
    assert found["arithmetic"] == pytest.approx(2)
    assert found["low"] <= found["exponent"] <= found["high"]
    assert found["high"] - found["low"] < 0.05
    theirs = scipy.stats.linregress(np.log(sizes), np.log(found["medians"])).slope
    assert exponent(sizes, found["medians"]) == pytest.approx(theirs)
    noisy = [(size**1.4 * np.exp(0.5 * rng.standard_normal(30))).tolist() for size in sizes]
    low, high = exponent_interval(sizes, noisy)
    assert high - low > 0.1 and low < 1.4 < high


def test_the_arithmetic_of_each_axis_is_that_of_the_model() -> None:
    job = Workload("ViT-Ti_16", 96, 4, classes=100)
    grown = {axis: points(job, axis, values) for axis, values in
             {"tokens": [64, 96, 128, 192], "width": [192, 384], "depth": [3, 24], "batch": [2, 16]}.items()}  # fmt: skip
    assert [size for size, _ in grown["tokens"]] == [17, 37, 65, 145]
    assert [j.variant.heads for _, j in grown["width"]] == [3, 6]
    assert exponent(*zip(*((size, j.operations) for size, j in grown["batch"]))) == pytest.approx(1)
    for axis, (least, most) in {"tokens": (1, 2), "width": (1, 2), "depth": (0.9, 1)}.items():
        assert least < exponent(*zip(*((size, j.operations) for size, j in grown[axis]))) < most, axis


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 9])
def test_everyone_stands_everywhere_and_follows_everyone_equally_often(count: int) -> None:
    orders = balanced(count)
    assert len(orders) == (count if count % 2 == 0 else 2 * count)
    places = Counter((place, who) for order in orders for place, who in enumerate(order))
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert len(places) == count**2 and len({*places.values()}) == 1
    assert len(follows) == count * (count - 1) and len({*follows.values()}) <= 1


def test_every_point_has_its_turn_in_every_round() -> None:
    order: list[int] = []
    found = in_turn([lambda i=i: order.append(i) for i in range(3)], rounds=6)  # type: ignore[misc]
    assert [order[i : i + 3] for i in range(0, 18, 3)] == balanced(3) and [len(times) for times in found] == [6] * 3


def test_the_command_measures_every_axis(tmp_path: Path) -> None:
    file = tmp_path / "growth.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", "--backend", "cpu", "--model", "ViT-digits", "--img_size", "8",
         "--batch", "2", "--sides", "4,6,8,10", "--widths", "24,48,72,96", "--depths", "1,2,3,4",
         "--batches", "1,2,3,4", "--rounds", "2", "--threads", "1", "--json", str(file)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(file.read_text())
    assert [*said["axes"]] == ["tokens", "width", "depth", "batch"]
    for axis, found in said["axes"].items():
        assert f"{axis}: exponent" in done.stdout and [len(times) for times in found["times"]] == [2, 2, 2, 2]
    whole = said["accumulation"]
    # 16 steps with their updates take longer than their compute alone.
    assert "accumulation 16" in done.stdout and whole["compute_ratio"]["rounds"] == 2
    assert whole["update_seconds"] > 0 and min(whole["compute_seconds"]) > 0


def test_too_few_points_make_no_exponent() -> None:
    with pytest.raises(VitcoreError, match="fewer than 4 points"):
        main(["--axes", "depth", "--depths", "1,2,2,3"])
    with pytest.raises(VitcoreError, match="'heads' is no axis"):
        main(["--axes", "heads"])
