"""On a terminal a run shows a bar, and leaves the terminal as it found it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"
RUN = "--threads 1 --num_steps 40 --log_every 10 --eval_every 0 --train_batch_size 32 --warmup_steps 0 --json".split()


def on_a_terminal(folder: Path, *argv: str) -> tuple[int, str, bytes, bool]:
    """Exit code, standard output, what the terminal on standard error showed, and whether its modes were restored."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other end is closed
                return
            shown.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    before = termios.tcgetattr(theirs)
    env = {
        k: v for k, v in os.environ.items() if not k.startswith("VITCORE_") and k not in ("NO_COLOR", "TTY_COMPATIBLE")
    }
    process = subprocess.run(
        [sys.executable, "-m", "vitcore.train", *RUN, *argv], cwd=folder, stdout=subprocess.PIPE, stderr=theirs,
        env={**env, "TERM": "xterm-256color", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "110"}, text=True, timeout=300,
    )  # fmt: skip
    restored = termios.tcgetattr(theirs) == before
    os.close(theirs)
    reader.join()
    os.close(ours)
    return process.returncode, process.stdout, b"".join(shown), restored


@pytest.mark.parametrize("ends", ["well", "in an error"])
def test_a_bar_on_a_terminal_that_is_given_back_as_it_was(ends: str, tmp_path: Path) -> None:
    well = ends == "well"
    code, out, shown, restored = on_a_terminal(tmp_path, *([] if well else ["--learning_rate", "1e30"]))
    assert restored and code == (0 if well else 2)
    assert shown.count(HIDE) == 1 <= shown.count(SHOW) and shown.rindex(SHOW) > shown.rindex(HIDE), "the cursor is back"
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}".encode() in shown
    after = shown[shown.rindex(SHOW) + len(SHOW) :].decode()
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()
    assert "backend cpu (" in text and "precision fp32" in text
    if well:
        assert json.loads(out)["steps"] == 40, "the bar is in nobody's way on standard output"
        assert "40/40" in text and "loss " in text and "images_per_second " in text and "accuracy " in text
        assert after == ""
    else:
        assert out == "" and after.startswith("vitcore: error: step 2: the gradients are not finite")
        assert after.count("\n") == 1
