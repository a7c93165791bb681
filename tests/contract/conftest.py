"""Each suite of the log runs on each of its engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.relay_log import ENGINES, FileEngine


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FileEngine]:
    """A log's engine in an empty folder."""
    made = ENGINES[request.param](tmp_path / "log")
    yield made
    made.close()
