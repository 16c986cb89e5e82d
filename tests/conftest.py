"""What holds for the whole suite: its options, which must stand here so that every way of starting pytest knows them, and a
cache of its own, so that no test depends on what was measured, prepared or indexed on this machine before."""

from __future__ import annotations

import os
import tempfile

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--update-goldens`."""
    parser.addoption(
        "--update-goldens", action="store_true", help="rewrite tests/golden/programs from what is lowered now"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Point `VITCORE_CACHE`, here and in every process that is started, at a folder that goes with the session."""
    before = os.environ.get("VITCORE_CACHE")
    folder = tempfile.TemporaryDirectory(prefix="vitcore-cache-")
    os.environ["VITCORE_CACHE"] = folder.name

    def restore() -> None:
        folder.cleanup()
        os.environ.pop("VITCORE_CACHE")
        if before is not None:
            os.environ["VITCORE_CACHE"] = before

    config.add_cleanup(restore)
