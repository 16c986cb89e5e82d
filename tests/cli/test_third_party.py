"""A stranger's package, as the README shows it: found, listed, lowered for and trained with, through the one door."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The README's plugin on a device that is here: it computes on the processor and counts the marks it is asked for.
COUNTING = '''
"""vitcore-counting: the processor as a lazy device that counts its marks."""

from vitcore.api import Backend, hookimpl, kernel

MARKS = []


def mark():
    MARKS.append(1)


@kernel("opt.update", when=lambda op, world: op.args[1].ty.has("sgdm") or "only sgdm", flushes=(0, 0, 1))
def sgdm_then_mark(rt, params, state, grads, hyper, ok):
    """Momentum SGD that flushes after itself, as a fused vendor kernel does."""
    out = rt.opt_update__reference(params, state, grads, hyper, ok)
    rt.mark()
    return out


@hookimpl
def vitcore_backends():
    return [Backend(name="counting", device="cpu", mark="vitcore_counting:mark", split_after=frozenset({"model.forward"}))]


@hookimpl
def vitcore_kernels(backend):
    return [sgdm_then_mark] if backend == "counting" else []
'''
# What its author might write to see how a run went: the flushes that the text predicts, and those that were counted.
COUNTED = """
import json, sys
from vitcore import cli
from vitcore.commandline import resolve_config
from vitcore.plan import make_plan
import vitcore_counting

def predicted(ops):
    each = {"rt.mark": lambda op: 1, "repeat": lambda op: int(op.attrs["n"]) * predicted(op.body)}
    return sum(each.get(op.name, lambda op: sum(op.flushes) + predicted(op.body))(op) for op in ops)

argv = sys.argv[1:]
code = cli.main(["train", *argv])
module = make_plan(resolve_config(argv, "vitcore train", "").config).lowered
print(json.dumps({"code": code, "counted": len(vitcore_counting.MARKS),
                  "predicted": {p.name: predicted(p.ops) for p in module.programs}}))
"""
OTHER_HOOKS = """
from vitcore.api import Flag, hookimpl
from pathlib import Path

SEEN = []

@hookimpl
def vitcore_flags():
    return [Flag("warm", "bool", "Warm the device up.", "vitcore_extras:warm"),
            Flag("boost", "float", "Multiply the learning rate.", boost),
            Flag("tea", "switch", "Make tea.", lambda value, given: ({}, "--tea has no effect: there is no kettle"))]

def boost(value, given):
    return {"learning_rate": given.get("learning_rate", 1.0) * value}, f"--boost {value} means a higher learning rate"

def warm(value, given):
    return {"warmup_steps": 0 if value is False else 7}, f"--warm {value} means --warmup_steps 7"

@hookimpl
def vitcore_recipes():
    return [("tiny", str(Path(__file__).parent / "tiny.toml"))]

@hookimpl
def vitcore_observers(run_dir):
    def hear(event, values):
        with open(Path(run_dir) / "heard.txt", "a") as f:
            print(event, values["step"], file=f)
    return [hear]
"""


@pytest.fixture
def counting(install: Callable[..., Path]) -> Path:
    """The folder in which the plugin is installed."""
    return install("vitcore_counting", COUNTING, entry="counting", distribution="vitcore-counting")


def test_it_is_listed_with_its_package(counting: Path, vit: Callable[..., Any]) -> None:
    assert "counting     runs here\n" in vit("backends").out
    rows = {row["name"]: row for row in json.loads(vit("backends", "--json").out)["backends"]}
    assert rows["counting"]["from"] == "vitcore-counting 1.0 (vitcore_counting)"
    assert (rows["counting"]["lazy"], rows["counting"]["device"], rows["counting"]["runs_here"]) == (True, "cpu", True)


def test_lowering_shows_its_claim_its_flushes_and_where_its_marks_stand(
    counting: Path, vit: Callable[..., Any]
) -> None:
    lowered = vit("lower", "--recipe", "imagenet1k_sgd", "--backend", "counting").out
    assert "flushes=0/0/1, impl=sgdm_then_mark" in lowered
    assert "rt.mark {after=forward}" in lowered
    train = lowered.split("@train(")[1].split("\n\n")[0]
    assert "rt.mark {after=update}" not in train, "the kernel flushes by itself, so no second mark is placed"
    adamw = vit("lower", "--backend", "counting", "--optimizer", "adamw", "--explain").out
    assert "impl=sgdm_then_mark" not in adamw and "only sgdm" in adamw


def test_training_with_it_asks_for_as_many_marks_as_its_text_predicts(
    counting: Path, shell: Callable[..., Any], quick: list[str]
) -> None:
    argv = [*quick, "--backend", "counting", "--optimizer", "sgdm", "--gradient-accumulation-steps", "2", "--json"]
    done = shell("-c", COUNTED, *argv, PYTHONPATH=counting)
    assert done.code == 0, done.err
    result, counts = (json.loads(line) for line in done.out.splitlines())
    assert (result["backend"], result["steps"], result["total"], counts["code"]) == ("counting", 3, 360, 0)
    assert "backend counting (asked for)" in done.err
    marks = counts["predicted"]
    assert marks["train"] >= 4, "after each of two forwards, after backward, and the kernel's own"
    # Three steps; one log of training; one evaluation in a single batch, with its log; nothing was restored.
    assert counts["counted"] == marks["init"] + 3 * marks["train"] + marks["eval"] + 2 * marks["log"]


def test_only_the_plugins_that_are_asked_for_are_loaded(
    counting: Path, vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITCORE_PLUGINS", "counting, cpu")
    assert {row["name"] for row in json.loads(vit("backends", "--json").out)["backends"]} == {"counting", "cpu"}
    assert vit("train", "--use_hpu", "1").refusal.startswith("Unrecognized options: --use_hpu, 1; see ")
    monkeypatch.setenv("VITCORE_PLUGINS", "")
    assert json.loads(vit("backends", "--json").out)["backends"] == []
    assert vit("lower", "--backend", "cpu").refusal.startswith("backend 'cpu' is not known; ")
    assert vit("train").refusal == "no backend can run here: none is installed"
    monkeypatch.delenv("VITCORE_PLUGINS")
    monkeypatch.setenv("VITCORE_TRACE_HOOKS", "1")
    traced = vit("backends").err
    assert traced.count("finish vitcore_backends") == 4, "one call for each of the plugins that bring backends"


def test_flags_recipes_and_observers_of_a_plugin_are_as_good_as_our_own(
    install: Callable[..., Path], train: Callable[..., Any], quick: list[str]
) -> None:
    site = install("vitcore_extras", OTHER_HOOKS)
    (site / "tiny.toml").write_text("learning_rate = 0.5\nseed = 9\n")
    done = train("--recipe tiny --boost 4 --learning-rate 0.25 --warm True --tea --dry-run")
    config = json.loads(done.out)
    assert (config["learning_rate"], config["warmup_steps"], config["seed"], config["name"]) == (1.0, 7, 9, "tiny")
    assert done.notes == ["--warm True means --warmup_steps 7", "--boost 4.0 means a higher learning rate",
                          "--tea has no effect: there is no kettle"]  # fmt: skip
    assert "--warm" in train("--warm maybe").refusal
    text = train("--help").out
    assert "Multiply the learning rate." in text and "Warm the device up." in text
    assert train(*quick, "--recipe tiny").code == 0
    assert Path("output/tiny/heard.txt").read_text().split("\n") == ["start 1", "train 3", "eval 3", "checkpoint 3", ""]
