"""Strangers' packages that do not work: each is named, with its package, and does not take the others down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BACKEND = """
from vitcore.api import Backend, hookimpl

@hookimpl
def vitcore_backends():
    return [Backend(name={name!r}, device="cpu", rank=-5)]
"""
UNKNOWN_HOOK = """
from vitcore.api import hookimpl

@hookimpl
def vitcore_backend():
    return []
"""
WRONG_ARGUMENT = """
from vitcore.api import hookimpl

@hookimpl
def vitcore_kernels(device):
    return []
"""
HOOK = """
from vitcore.api import Backend, Flag, hookimpl

@hookimpl
def {hook}({arguments}):
    {body}
"""


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import a_library_that_is_not_here", "ModuleNotFoundError: No module named 'a_library_that_is_not_here'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: "),
        (UNKNOWN_HOOK, "PluginValidationError: unknown hook 'vitcore_backend'"),
        (WRONG_ARGUMENT, "PluginValidationError: Plugin 'broken' for hook 'vitcore_kernels' hookimpl definition: "),
        (HOOK.format(hook="vitcore_backends", arguments="", body="raise OSError('no card')"), "OSError: no card"),
        (HOOK.format(hook="vitcore_backends", arguments="", body="return Backend"), "TypeError: "),
    ],
)
def test_a_plugin_that_fails_is_named_with_its_reason_and_the_others_go_on(
    code: str, why: str, install: Callable[..., Path], vit: Callable[..., Any]
) -> None:
    install("vitcore_broken", code, entry="broken")
    install("vitcore_fine", BACKEND.format(name="fine"), entry="fine")
    listed = vit("backends")
    assert listed.code == 0 and "fine         runs here" in listed.out and "cpu          runs here" in listed.out
    assert f"\nplugin broken failed to load, the others go on: {why}" in listed.err and listed.err.count("\n") == 2
    found = json.loads(vit("backends", "--json").out)
    assert list(found["failed"]) == ["broken"] and found["failed"]["broken"].startswith(why)
    # A run says so too: what was left out may have been meant.
    dry = vit("train", "--dry-run")
    assert (
        dry.code == 0
        and len(dry.notes) == 1
        and dry.notes[0].startswith(f"plugin broken failed to load, the others go on: {why}")
    )
    assert f"; plugin broken failed to load: {why}" in vit("lower", "--backend", "brokn").refusal.replace("\n", " ")


def test_two_plugins_with_one_backend_name_are_refused_with_both_packages(
    install: Callable[..., Path], vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("first", BACKEND.format(name="mydev"), distribution="first-dist")
    install("second", BACKEND.format(name="mydev"), distribution="second-dist")
    refused = vit("backends").refusal
    assert refused == ("two plugins bring a backend named 'mydev': first-dist 1.0 (first) and second-dist 1.0 (second); "
                       "uninstall one, or choose with VITCORE_PLUGINS")  # fmt: skip
    monkeypatch.setenv("VITCORE_PLUGINS", "cpu,second")
    assert "second-dist 1.0 (second)" in vit("backends").out


def test_two_packages_with_one_plugin_name_are_refused_and_never_replace_each_other(
    install: Callable[..., Path], vit: Callable[..., Any]
) -> None:
    install("stranger", BACKEND.format(name="mydev"), entry="cpu", distribution="stranger-dist")
    refused = vit("train", "--dry-run").refusal
    assert refused.startswith("two packages bring a plugin named 'cpu': ") and refused.endswith("; uninstall one")
    assert "stranger-dist 1.0 (stranger)" in refused and "(vitcore_cpu)" in refused


def test_a_plugin_that_is_asked_for_but_not_installed_is_named(
    vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITCORE_PLUGINS", "cpu,cuba")
    for verb in ("backends", "train", "lower"):
        assert vit(verb).refusal.startswith(
            "VITCORE_PLUGINS names 'cuba', which is not installed (did you mean 'cuda'?)"
        )


def test_a_plugin_that_imports_torch_when_it_is_loaded_is_named(
    install: Callable[..., Path], shell: Callable[..., Any]
) -> None:
    code = "import torch\n" + BACKEND.format(name="hasty")
    site = install("vitcore_hasty", code, entry="hasty", distribution="vitcore-hasty")
    named = "plugin hasty imports torch when it is loaded; it should import it when its kernels run"
    done = shell("-c", PROBE, PYTHONPATH=site)
    assert done.code == 0, done.err
    listing, lowered, refused = json.loads(done.out)
    assert named in listing[2] and "hasty        runs here" in listing[1] and listing[0] == 0
    assert lowered[2] == f"vitcore: {named}\n" and "lowered:cpu @train(" in lowered[1]
    # A backend that must set its environment first cannot any more: refused, with the plugin that made it so.
    assert refused[0] == 2 and "(imported by plugin hasty); put this first: import os; " in refused[2]


# Three commands in one process, which imports torch once; gaudi's probe and library are pretended.
PROBE = """
import contextlib, io, json, sys
from vitcore import cli
import vitcore_hpu.probe
vitcore_hpu.probe.missing_lazy = lambda: None
seen = []
for argv in (["backends"], ["lower", "--backend", "cpu"], ["train", "--backend", "hpu-lazy"]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(argv)
    seen.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(seen))
"""


@pytest.mark.parametrize(
    ("hook", "arguments", "body", "complaint"),
    [
        ("vitcore_flags", "", "return [1 / 0]", "plugin broken: its vitcore_flags failed: ZeroDivisionError: "),
        ("vitcore_flags", "", "yield 1 / 0", "plugin broken: its vitcore_flags failed: ZeroDivisionError: "),
        ("vitcore_flags", "", "return [Flag('seed', 'int', '', '')]", "a plugin's flag --seed: the name is taken"),
        ("vitcore_flags", "", "return [Flag('hmp', 'int', '', '')]", "a plugin's flag --hmp: the name is taken"),
        ("vitcore_flags", "", "return [Flag('x', 'list', '', '')]", "a plugin's flag --x: kind 'list' is none of "),
        ("vitcore_flags", "", "return [Flag('x', 'switch', '', 'no.module:f')]", "'no.module:f' cannot be resolved: "),
        ("vitcore_flags", "", "return [Flag('x', 'switch', '', lambda v, g: ({'sed': 1}, ''))]",
         "a plugin's flag --x: 'sed' is no setting of a run (did you mean 'seed'?)"),
        ("vitcore_recipes", "", "return [('digits', 'x.toml')]", "two recipes are named 'digits': "),
        ("vitcore_recipes", "", "return 3", "plugin broken: its vitcore_recipes failed: TypeError: "),
        ("vitcore_kernels", "backend", "raise KeyError(backend)", "plugin broken: its vitcore_kernels failed: KeyError: "),
        ("vitcore_passes", "backend", "raise KeyError(backend)", "plugin broken: its vitcore_passes failed: KeyError: "),
    ],
)  # fmt: skip
def test_a_hook_that_fails_names_its_plugin(
    hook: str, arguments: str, body: str, complaint: str, install: Callable[..., Path], vit: Callable[..., Any]
) -> None:
    install("vitcore_broken", HOOK.format(hook=hook, arguments=arguments, body=body), entry="broken")
    flag = ["--x"] if "Flag('x', 'switch'" in body else []
    refused = vit("lower", "--backend", "cpu", *flag).refusal
    assert refused.startswith(complaint)
    assert "plugin broken" not in complaint or refused.endswith(
        "correct or uninstall vitcore_broken 1.0 (vitcore_broken), or leave it out with VITCORE_PLUGINS"
    )
    assert vit("backends").code == 0
