"""The prepared run for a GPU: which parts there are, and that none costs another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_session
from benchmarks.gpu_session import Part, arguments, parts, run


def named(*argv: str) -> dict[str, Part]:
    return {p.name: p for p in parts(arguments().parse_args([*argv]))}


def test_every_part_and_job_is_there_by_default() -> None:
    jobs = [f"peers:{job}" for job in gpu_session.JOBS]
    assert [*named()] == ["machine", "tests", "attention", "parity", "remat", "conformance", *jobs]
    assert [*named("--parts", "parity,peers:ViT-S_16:224:32")] == ["parity", "peers:ViT-S_16:224:32"]


def test_ways_become_flags_of_the_variants() -> None:
    command = named("--parts", "peers:ViT-S_16:224:32", "--ways", "eager,compiled-graph")[
        "peers:ViT-S_16:224:32"
    ].command
    given = [command[i + 1] for i, word in enumerate(command) if word == "--vitcore"]
    assert given == ["eager=--disable_pass capture_step", "compiled-graph=--enable_kernel compiled"]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(SystemExit, match="'speed' is no part; choose from machine, tests"):
        named("--parts", "speed")


def python(name: str, code: str, seconds: float = 60.0, file: str = "") -> Part:
    return Part(name, (sys.executable, "-c", code), seconds, file)


def test_lines_of_a_part_are_its_results(tmp_path: Path) -> None:
    said = run(python("rate", "print('{\"a\": 1}'); print('words')"), tmp_path, tmp_path, 60)
    assert (said["exit"], said["results"]) == (0, [{"a": 1}]) and "last" not in said


def test_a_part_that_fails_says_how(tmp_path: Path) -> None:
    said = run(python("bad", "raise SystemExit('no such card')"), tmp_path, tmp_path, 60)
    assert (said["exit"], said["last"]) == (1, ["no such card"])


def test_a_part_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    said = run(python("slow", "import time; print('begun', flush=True); time.sleep(600)", 30), tmp_path, tmp_path, 3)
    assert said["exit"] == "stopped after 3 s" and said["seconds"] < 60


def test_what_has_no_time_left_is_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_session.main(["--parts", "machine,tests", "--seconds", "1", "--out", str(tmp_path)]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["part"], line["exit"]) for line in lines] == [(n, "no time was left") for n in ("machine", "tests")]
    assert [json.loads(line) for line in (tmp_path / "session.jsonl").read_text().splitlines()] == lines


def test_the_packages_that_a_machine_lacks_come_first(tmp_path: Path) -> None:
    (tmp_path / "carried.py").write_text("print('{\"carried\": true}')")
    assert run(python("site", "import carried"), tmp_path, tmp_path, 60)["results"] == [{"carried": True}]


def test_a_part_measures_on_this_machine(tmp_path: Path) -> None:
    argv = ["--device", "cpu", "--tiny", "--parts", "machine", "--out", str(tmp_path)]
    assert gpu_session.main(argv) == 0
    (line,) = map(json.loads, (tmp_path / "session.jsonl").read_text().splitlines())
    assert line["results"][0]["matrix_tflops"] > 0 and line["results"][0]["copy_gb_per_s"] > 0
