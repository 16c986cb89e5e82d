"""C10 where ranks end otherwise than it hopes: one is refused its device, one fails, neither ends."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from vitcore.testing.checks import Failure, NotApplicable, ranks

WAITS = "import time; time.sleep(120)"


def subject(second: str, first: str = WAITS) -> Any:
    """One whose ranks run these lines of Python."""
    code = f"import os, sys\nif os.environ['RANK'] == '1':\n {second}\nelse:\n {first}"
    return SimpleNamespace(
        backend=SimpleNamespace(collective="gloo"), seed=0, process=lambda *argv: [sys.executable, "-c", code]
    )


def test_a_rank_without_a_device_says_that_the_check_cannot_be_made_and_stops_the_other() -> None:
    begin = time.monotonic()
    with pytest.raises(NotApplicable, match="two ranks cannot run here: local rank 1 has no device"):
        ranks.two_ranks(subject("print('local rank 1 has no device', file=sys.stderr); sys.exit(4)"))
    assert time.monotonic() - begin < 60, "the other rank, which waits for it, was waited for"


def test_a_rank_that_fails_is_named_with_what_it_said() -> None:
    with pytest.raises(Failure, match="rank 1 of 2 failed: ValueError: bad luck"):
        ranks.two_ranks(subject("raise ValueError('bad luck')"))


def test_much_that_is_said_stops_nobody() -> None:
    with pytest.raises(Failure, match="rank 0 of 2 failed: the end"):
        ranks.two_ranks(subject("pass", "print('x' * 1_000_000, file=sys.stderr); sys.exit('the end')"))


def test_ranks_that_never_end_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "LONGEST", 1.0)
    with pytest.raises(Failure, match="the ranks did not end within 1 s"):
        ranks.two_ranks(subject(WAITS))
