"""The options of the whole suite; they must stand here so that every way of starting pytest knows them."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--update-goldens`."""
    parser.addoption(
        "--update-goldens", action="store_true", help="rewrite tests/golden/programs from what is lowered now"
    )
