"""torch's own lazy device: a third party's plugin under the kit, and a real model's steps on it, counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PLUGIN = HERE.parents[1] / "plugins" / "lazysim"


def test_the_plugins_own_test_file_is_green(lazysim: Any) -> None:
    done = lazysim("-m", "pytest", "-rs", "-p", "no:cacheprovider", "--rootdir", str(PLUGIN), str(PLUGIN / "tests"))
    assert done.returncode == 0, done.stdout[-3000:]
    assert "12 passed, 1 skipped" in done.stdout and "C10: the backend has no collective" in done.stdout


@pytest.fixture(scope="module")
def trained(lazy_job: Any) -> dict[str, Any]:
    said: dict[str, Any] = lazy_job("lazy_job.py")
    return said


def test_twenty_steps_of_vit_ti_follow_the_reference(trained: dict[str, Any]) -> None:
    """ViT-Ti/16, accumulation 2: the distance of each loss from the host's, which is itself rounding away from float64."""
    assert len(trained["losses"]) == 20 == len(trained["reference"])
    assert max(abs(a - b) for a, b in zip(trained["losses"], trained["reference"])) < 1e-4
    assert trained["losses"][-1] < trained["losses"][0] - 0.1


def test_each_step_flushes_as_often_as_its_text_says(trained: dict[str, Any]) -> None:
    assert trained["predicted"] > 0 and set(trained["flushes"]) == {trained["predicted"]}, trained["flushes"]


def test_nothing_is_compiled_after_warm_up_and_nothing_falls_back(trained: dict[str, Any]) -> None:
    """While the learning rate moves, across an evaluation, a log and a checkpoint."""
    assert trained["compiles"][0] > 0 and not any(trained["compiles"][1:]), trained["compiles"]
    assert not any(trained["fallbacks"]), trained["fallbacks"]
    assert trained["between"] == [0, 0], "a second evaluation, log and checkpoint compile nothing and fall back nowhere"


def test_memory_does_not_grow_over_300_steps(lazy_job: Any) -> None:
    first, last = lazy_job("lazy_memory.py")
    assert last - first < 16, f"{first} MiB after 100 steps, {last} after 300"


def test_marks_at_random_change_no_value(lazy_job: Any) -> None:
    said = lazy_job("lazy_marks.py")
    assert len(set(said["ends"])) == 1 and len(set(said["marks"])) > 3, said


@pytest.fixture(scope="module")
def rules(lazy_job: Any) -> dict[str, Any]:
    said: dict[str, Any] = lazy_job("lazy_rules.py")
    return said


@pytest.mark.parametrize(
    "rule",
    "average ascent augmented sigmoid drop_path patch_dropout lamb lion muon frozen".split(),
)
def test_every_rule_records_what_the_reference_computes(rules: dict[str, Any], rule: str) -> None:
    said = rules[rule.replace("_", " ")]
    for here, there in zip(said["losses"], said["reference"], strict=True):
        # Of a step of signs a rounding may turn one round.
        assert here == pytest.approx(there, rel=2e-3 if rule == "lion" else 2e-4)
    assert len({loss for loss, _ in said["losses"]}) == 8, "it trains"
    flushes, compiles, fallbacks = zip(*said["counts"])
    assert set(flushes) == {said["predicted"]} and not any(fallbacks), said["counts"]
    assert compiles[0] > 0 and not any(compiles[2:]), said["counts"]
