"""A drawing of one step, one evaluated batch and one log: what the host does, what the device does, and what flushes.

Plain SVG. Boxes stand in the program's order; their widths are counts of ops and no times. A loop is drawn once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from vitcore.doctor.report import Report
from vitcore.doctor.static import PROGRAMS, Item

HOST_Y, DEVICE_Y, BOX, LANE, LINE = 46, 108, 34, 178, 15
LEFT, GAP, CHAR, PAD = 76, 12, 6.6, 14
"""Pixels: the left margin, between boxes, of a character of 11 px in a monospaced face, inside a box."""
TICKS = {"mark": "#1b6ca8", "flush": "#c46a00", "read": "#c01f1f", "fault": "#c01f1f"}
HOST_FILL, REGION_FILL, LOOP_FILL = "#e6e8ec", "#d8ebd5", "#f6f3fb"


@dataclass
class _Lane:
    """The elements of a program's two rows, and how far they reach."""

    parts: list[str] = field(default_factory=list)
    x: float = LEFT
    notes: list[tuple[str, str]] = field(default_factory=list)
    """What the numbered ticks stand for."""


def draw(report: Report) -> str:
    """The SVG of a report, programs below each other."""
    sizes = _recorded(report)
    faults = _faults(report)
    lanes, y, widest = [], 40, 0.0
    for name in ("train", "eval", "log"):
        lane = _Lane()
        _items(lane, report.programs[name].items, sizes, faults, name)
        head = f"{PROGRAMS[name]} (@{name})"
        for i, (kind, cause) in enumerate(lane.notes, 1):
            lane.parts.append(_text(LEFT, LANE - 8 + LINE * (i - 1), f"{i}  {cause}", fill=TICKS[kind]))
        body = "".join([_text(8, 18, head, weight="bold"), _text(8, HOST_Y + 21, "host"), _text(8, DEVICE_Y + 21, "device"),
                        *lane.parts])  # fmt: skip
        lanes.append(f'<g transform="translate(0 {y})" class="program" data-name="{name}">{body}</g>')
        written = max((len(cause) * CHAR + LEFT + 30 for _, cause in lane.notes), default=0)
        y, widest = y + LANE + LINE * len(lane.notes), max(widest, lane.x, written)
    legend, legend_width = _legend(y + 14, report)
    width = max(widest, legend_width, 560) + 16
    title = f"{report.module} on {report.title}, precision {report.precision}: order and flushes, no times"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{y + 44}" viewBox="0 0 {width:.0f} {y + 44}" '
        'font-family="Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{_text(8, 22, title, size=13, weight="bold")}'
        f"{''.join(lanes)}{legend}</svg>\n"
    )


def _items(lane: _Lane, items: tuple[Item, ...], sizes: dict[str, int], faults: dict[str, int], program: str) -> None:
    for at, item in enumerate(items):
        if item.kind == "loop":
            start, before = lane.x, len(lane.parts)
            lane.x += GAP
            _items(lane, item.body, sizes, faults, program)
            frame = _box(
                start,
                HOST_Y - 20,
                lane.x - start,
                DEVICE_Y + BOX - HOST_Y + 34,
                LOOP_FILL,
                "loop",
                "#8a7fb0",
                dash=True,
            )
            lane.parts[before:before] = [frame, _text(start + 6, HOST_Y - 7, f"x{item.times}", weight="bold")]
            lane.x += GAP
        elif item.kind == "region":
            following = next((i.name for i in items[at + 1 :] if i.kind in ("mark", "flush")), "")
            _region(lane, item, sizes.get(following, 0), faults)
        elif item.kind in ("mark", "flush"):
            _tick(lane, lane.x - GAP / 2 if item.kind == "mark" else lane.x, item.kind, item.name)
            lane.x += GAP if item.kind == "flush" else 0
        else:
            _host(lane, item)


def _host(lane: _Lane, item: Item) -> None:
    name = item.name.partition(" by ")[0]
    width, read = len(name) * CHAR + PAD, item.kind == "read"
    fill = "#f7d4d4" if read else HOST_FILL
    lane.parts.append(_box(lane.x, HOST_Y, width, BOX, fill, "read" if read else "host", TICKS["read"] if read else "#9aa0aa",
                           title=item.name))  # fmt: skip
    lane.parts.append(_text(lane.x + PAD / 2, HOST_Y + 21, name, fill=TICKS["read"] if read else "#222"))
    lane.x += width + GAP
    if read:
        _tick(lane, lane.x - GAP / 2, "read", f"{item.name}: the host waits for the device")


def _region(lane: _Lane, item: Item, recorded: int, faults: dict[str, int]) -> None:
    """A box of the device; in it ticks for what flushes inside, and in red for what a run found that should not."""
    ops = recorded or len(item.ops)
    said = f"{item.name} ({ops} op{'' if ops == 1 else 's'})"
    # A tenth of a recorded graph's ops is a pixel, up to a width that still fits a page.
    width = max(len(said) * CHAR + PAD, 16 * len(item.ops), min(recorded / 10, 360))
    tip = f"{item.name}: {', '.join(item.ops)}"
    lane.parts.append(_box(lane.x, DEVICE_Y, width, BOX, REGION_FILL, "region", "#5a9150", title=tip))
    lane.parts.append(_text(lane.x + PAD / 2, DEVICE_Y + 21, said))
    for i, cause in enumerate(item.inside):
        _tick(lane, lane.x + width * (i + 1) / (len(item.inside) + 1), "flush", cause, inside=True)
    wrong = [f"{op}: {faults[op]} finding(s)" for op in item.ops if op in faults]
    for i, fault in enumerate(wrong):
        _tick(lane, lane.x + width * (i + 1) / (len(wrong) + 1), "fault", fault, inside=True)
    lane.x += width + GAP


def _tick(lane: _Lane, x: float, kind: str, cause: str, *, inside: bool = False) -> None:
    """A stroke with its cause: a mark's is the region before it, the others are numbered and written below."""
    top = HOST_Y + BOX + 4 if kind == "read" else DEVICE_Y - 12
    bottom = DEVICE_Y + 7 if inside else DEVICE_Y + BOX + 8
    dash = ' stroke-dasharray="3 2"' if kind == "fault" else ""
    lane.parts.append(
        f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{TICKS[kind]}" '
        f'stroke-width="3"{dash}><title>{escape(cause)}</title></line>'
    )
    if kind != "mark":
        lane.notes.append((kind, cause))
        number = str(len(lane.notes))
        lane.parts.append(_text(x - 3 * len(number), top - 3, number, fill=TICKS[kind], size=10))


def _recorded(report: Report) -> dict[str, int]:
    """Ops of the graph that each mark or flush sent, where a device's record says; the last step without a probe counts."""
    seen = report.run.seen if report.run else []
    return {
        s.at: s.ops for s in seen if s.ops > 0 and s.declared and s.at.startswith("rt.mark") and "probed" not in s.phase
    }


def _faults(report: Report) -> dict[str, int]:
    """How many errors a run found in each op."""
    found: dict[str, int] = {}
    for finding in report.findings:
        if finding.severity == "error":
            at = finding.what.partition(":")[0]
            found[at] = found.get(at, 0) + 1
    return found


def _legend(y: float, report: Report) -> tuple[str, float]:
    entries = [(HOST_FILL, "host work"), (REGION_FILL, "region: a graph of the device")]
    ticks = [
        ("mark", "rt.mark"),
        ("flush", "a kernel flushes by itself"),
        ("read", "the host reads"),
        ("fault", "found by a run"),
    ]
    parts, x = [], 8.0
    for fill, said in entries:
        parts += [_box(x, y, 16, 12, fill, "legend", "#777"), _text(x + 22, y + 10, said)]
        x += 22 + len(said) * CHAR + 22
    for kind, said in ticks if report.lazy else ticks[2:]:
        dash = ' stroke-dasharray="3 2"' if kind == "fault" else ""
        parts.append(f'<line class="legend" x1="{x + 4}" x2="{x + 4}" y1="{y - 2}" y2="{y + 14}" stroke="{TICKS[kind]}" '
                     f'stroke-width="3"{dash}/>')  # fmt: skip
        parts.append(_text(x + 12, y + 10, said))
        x += 12 + len(said) * CHAR + 22
    note = "" if report.lazy else "not lazy: no flushes"
    return "".join([*parts, _text(x, y + 10, note)]), x + len(note) * CHAR


def _box(
    x: float,
    y: float,
    width: float,
    height: float,
    fill: str,
    kind: str,
    stroke: str,
    *,
    dash: bool = False,
    title: str = "",
) -> str:
    dashed = ' stroke-dasharray="5 3"' if dash else ""
    tip = f"<title>{escape(title)}</title>" if title else ""
    return (f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" rx="3" fill="{fill}" '
            f'stroke="{stroke}"{dashed}>{tip}</rect>')  # fmt: skip


def _text(x: float, y: float, said: str, *, fill: str = "#222", size: int = 11, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{fill}" font-size="{size}" font-weight="{weight}">{escape(said)}</text>'
