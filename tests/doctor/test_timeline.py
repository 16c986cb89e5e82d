"""The drawing: well formed, in the program's order, nothing on top of anything else."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import Any

import pytest

from vitcore.commandline import resolve_config
from vitcore.doctor.diagnose import Finding
from vitcore.doctor.examination import examine
from vitcore.doctor.report import Report
from vitcore.doctor.timeline import draw
from vitcore.plan import make_plan

SVG = "{http://www.w3.org/2000/svg}"


def report(*argv: str) -> Report:
    return examine(make_plan(resolve_config(argv, "vitcore explain", "").config, to_run=False), run=False)


def programs(svg: str) -> dict[str, ET.Element]:
    return {g.get("data-name", ""): g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "program"}


def boxes(program: ET.Element, *kinds: str) -> list[tuple[float, float, float, float]]:
    found = [r for r in program.iter(f"{SVG}rect") if r.get("class") in kinds]
    keys = ("x", "y", "width", "height")
    return [tuple(float(r.get(k, "nan")) for k in keys) for r in found]  # type: ignore[misc]


@pytest.mark.parametrize("backend", ["hpu-lazy", "cpu"])
@pytest.mark.parametrize("accumulation", ["1", "16"])
def test_boxes_are_in_order_and_do_not_overlap(backend: str, accumulation: str) -> None:
    found = report("--backend", backend, "--gradient_accumulation_steps", accumulation)
    svg = draw(found)
    drawn = programs(svg)
    assert list(drawn) == ["train", "eval", "log"]
    width = float(ET.fromstring(svg).get("width", "0"))
    for name, program in drawn.items():
        rows = boxes(program, "host", "region", "read")
        assert len(rows) >= 2
        starts = sorted((x, x + w) for x, _, w, _ in rows)
        assert all(end <= start for (_, end), (start, _) in pairwise(starts)), (name, starts)
        assert starts[-1][1] < width
        outline = found.programs[name]
        assert len(boxes(program, "loop")) == (name == "train" and accumulation != "1")
        strokes = list(program.iter(f"{SVG}line"))
        assert len([s for s in strokes if s.get("class") == "mark"]) == sum(
            1 for item in _flat(outline.items) if item.kind == "mark"
        )
        assert len([s for s in strokes if s.get("class") == "read"]) == outline.reads


def _flat(items: Any) -> Any:
    for item in items:
        yield from _flat(item.body) if item.kind == "loop" else [item]


def test_every_label_fits_its_box_and_every_cause_is_written() -> None:
    found = report("--backend", "hpu-lazy", "--gradient_accumulation_steps", "16")
    train = programs(draw(found))["train"]
    texts = [t.text or "" for t in train.iter(f"{SVG}text")]
    for item in _flat(found.programs["train"].items):
        causes = [*item.inside, *([item.name] if item.kind == "flush" else [])]
        assert all(any(text.endswith(cause) for text in texts) for cause in causes)
    assert "x16" in texts and "host" in texts and "device" in texts
    regions = sorted(boxes(train, "region"))
    labels = sorted(
        (float(t.get("x", "0")), t.text or "") for t in train.iter(f"{SVG}text") if "op" in (t.text or "")[-5:]
    )
    for (x, _, width, _), (start, text) in zip(regions, labels):
        assert x < start and start + 6.6 * len(text) < x + width, text


def test_what_a_run_found_is_drawn_in_its_region_and_the_title_says_simulated() -> None:
    found = report("--backend", "hpu-lazy")
    op = next(o for i in _flat(found.programs["train"].items) for o in i.ops if o.startswith("opt.update"))
    fields = {**vars(found), "findings": [Finding("error", f"{op}: flushes", "", "")], "title": "x (SIMULATED by <y>)"}
    svg = draw(Report(**fields))
    (fault,) = (line for line in programs(svg)["train"].iter(f"{SVG}line") if line.get("class") == "fault")
    assert fault.find(f"{SVG}title") is not None and "SIMULATED by &lt;y&gt;" in svg


def test_a_page_has_a_legend_in_words() -> None:
    lazy, eager = draw(report("--backend", "hpu-lazy")), draw(report("--backend", "cpu"))
    assert "a kernel flushes by itself" in lazy and "rt.mark</text>" in lazy
    assert "not lazy: no flushes" in eager and "rt.mark</text>" not in eager
