"""What the rounds say: each loop by itself, every ratio with its interval, and a verdict against the best peer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import BOUND
from benchmarks.peers.rounds import GEMM, Measured
from benchmarks.workload import Workload
from vitcore.bench.bootstrap import median_interval


def facts(job: Workload, found: dict[str, Measured], ours: Sequence[str], product: int) -> dict[str, Any]:
    """The results as plain data: `loops`, `ratios` (how many times as fast as the other each variant of vitcore is) and
    `verdicts`. Rates are shares of that of the matrix product, of `product` operations, in the same rounds."""
    rates = [product / t for t in found[GEMM].times]
    loops = []
    for name, m in found.items():
        if name == GEMM:
            continue
        step = statistics.median(m.times)
        # In the same round, so that a machine that was slow for a while is slow for both.
        shares = [job.operations / t / g for t, g in zip(m.times, rates)]
        loops.append({
            "name": name, "ours": name in ours, "times": m.times, "step_seconds": step, "images_per_second": job.batch / step,
            "mfu": statistics.median(shares), "held_bytes": m.held, "peak_bytes": m.peak, "first_step_seconds": m.first_step,
            "first_loss": m.first_loss, "last_loss": m.last_loss,
        })  # fmt: skip
    others = [row["name"] for row in loops if not row["ours"]]
    ratios = []
    for variant in ours:
        for other in [*others, *(n for n in ours[:1] if n != variant)]:
            paired = [t / o for t, o in zip(found[other].times, found[variant].times, strict=True)]
            ratios.append({"of": variant, "to": other, **median_interval(paired).as_dict()})
    bounds = [name for name in others if name.removesuffix("-compiled") in BOUND]
    peers = [row for row in loops if row["name"] in others and row["name"] not in bounds]
    judged = {name: f"the bound, {name}" for name in bounds}
    if peers:
        best = min(peers, key=lambda row: row["step_seconds"])["name"]
        judged = {best: f"the best peer, {best}", **judged}
    verdicts = [{**r, "against": judged[r["to"]], "verdict": _verdict(r)} for r in ratios if r["to"] in judged]
    return {"loops": loops, "ratios": ratios, "verdicts": verdicts,
            "gemm_operations_per_second": statistics.median(rates)}  # fmt: skip


def _verdict(ratio: dict[str, Any]) -> str:
    if ratio["low"] > 1:
        return "faster"
    return "slower" if ratio["high"] < 1 else "no difference is resolved"


def show(title: str, said: dict[str, Any]) -> str:
    """The results for people."""
    rows = [("loop", "ms a step", "images/s", "MFU", "peak MB", "held MB", "first step s")]
    for row in said["loops"]:
        rows.append((
            row["name"], f"{row['step_seconds'] * 1e3:.2f}", f"{row['images_per_second']:.2f}", f"{row['mfu']:.1%}",
            _megabytes(row["peak_bytes"]), _megabytes(row["held_bytes"]), f"{row['first_step_seconds']:.2f}",
        ))  # fmt: skip
    pairs = [("vitcore's", "to", "times as fast", "95 % interval", "least .. most")]
    for r in said["ratios"]:
        pairs.append((r["of"], r["to"], f"{r['median']:.3f}", f"{r['low']:.3f} .. {r['high']:.3f}",
                      f"{r['least']:.3f} .. {r['most']:.3f}"))  # fmt: skip
    gemm = said["gemm_operations_per_second"] / 1e9
    lines = [
        title,
        f"matrix product: {gemm:.0f} GFLOP/s, in the same rounds; MFU is a share of it",
        "",
        *_aligned(rows),
        "",
    ]
    lines += [*_aligned(pairs), ""] if len(pairs) > 1 else []
    for v in said["verdicts"]:
        lines.append(f"{v['of']}: {v['median']:.3f} [{v['low']:.3f} .. {v['high']:.3f}] times as fast as "
                     f"{v['against']}: {v['verdict']}")  # fmt: skip
    return "\n".join(lines)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count else "not counted"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
            for row in rows]  # fmt: skip
