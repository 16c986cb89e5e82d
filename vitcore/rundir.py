"""The run folder: the resolved configuration, the step's text, the fingerprint, metrics as JSON lines and for
TensorBoard."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcore.errors import VitcoreError
from vitcore.folders import make_writable


def prepare(output_dir: str, name: str) -> Path:
    """Make the run folder and prove that it can be written, before anything is computed."""
    run_dir = Path(output_dir) / name
    try:
        make_writable(run_dir)
    except OSError as e:
        raise VitcoreError(
            f"output folder {run_dir}: cannot be written ({e.strerror}); choose another with --output_dir"
        ) from e
    return run_dir


def put_aside(run_dir: Path, step: int) -> Path | None:
    """Move checkpoints beyond `step`, where this run starts, out of its way; returns where to, or None.

    They are of an earlier run in the same folder. Left in place they would pass for this run's newest, and its own
    would be the first to be thrown away.
    """
    checkpoints = run_dir / "checkpoints"
    beyond = [p for p in checkpoints.glob("step-*") if p.name > f"step-{step:08d}"]
    if step == 0:
        beyond += checkpoints.glob("best")
    if not beyond:
        return None
    n = 1
    while (aside := run_dir / f"checkpoints-earlier-{n}").exists():
        n += 1
    aside.mkdir()
    for path in beyond:
        path.rename(aside / path.name)
    return aside


class RunFolder:
    """Writes one run's records. On ranks other than 0 `write=False` makes every method do nothing."""

    def __init__(self, path: Path, *, write: bool = True, simulated: str | None = None) -> None:
        self.path, self.write = path, write
        self._mark = {"simulated": simulated} if simulated else {}
        self._metrics: Any = None
        self._board: Any = None

    def open(self, config: Mapping[str, Any], program: str, lowered: str, python: str, fingerprint: str) -> None:
        """Record what runs: config.json, step.txt (neutral), step.lowered.txt, step.py, fingerprint.txt."""
        if not self.write:
            return
        texts = {
            "step.txt": program,
            "step.lowered.txt": lowered,
            "step.py": python,
            "fingerprint.txt": fingerprint + "\n",
        }
        for name, text in {"config.json": json.dumps({**config, **self._mark}, indent=1) + "\n", **texts}.items():
            (self.path / name).write_text(text, encoding="utf-8")
        self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        if not importlib.util.find_spec("tensorboard"):
            raise VitcoreError("tensorboard is missing, which a run writes its metrics with; pip install tensorboard")

    def record(self, event: str, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and a TensorBoard scalar `event/name` for each value."""
        if not self.write or self._metrics is None:
            return
        line = {"event": event, "step": step, "time": round(time.time(), 3), **values, **self._mark}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        if self._board is None:
            # With the first values and not before the first step, which need not wait for its hundreds of modules.
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.path / "tensorboard"))
        for name, value in values.items():
            self._board.add_scalar(f"{'SIMULATED/' if self._mark else ''}{event}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the files."""
        if self._metrics is not None:
            self._metrics.close()
            if self._board is not None:
                self._board.close()
            self._metrics = self._board = None
