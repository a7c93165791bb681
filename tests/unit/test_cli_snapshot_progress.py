"""What `walbus snapshot` waits for, told by a status file; time passes as it is told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from walbus.cli.snapshot_progress import SeedingWatch
from walbus.errors import SourceMisconfigured, StoreError

TABLE = "public.t"


class Bootstrap:
    """A status file that is written whenever somebody waits, and the clock of that."""

    def __init__(self, path: Path) -> None:
        self.path, self.now, self.runs = path, 0.0, True
        self.tables: list[dict[str, object]] = []
        self.write()

    def write(self) -> None:
        self.path.write_text(json.dumps({"time": self.now, "tables": self.tables}))

    def pause(self, seconds: float) -> None:
        self.now += seconds
        if self.runs:
            self.write()

    def watch(self) -> SeedingWatch:
        return SeedingWatch(self.path, {TABLE: 2}, lambda: self.now, self.pause)


@pytest.fixture
def bootstrap(tmp_path: Path) -> Bootstrap:
    return Bootstrap(tmp_path / "bootstrap.json")


def test_a_generation_is_waited_for_however_long_it_takes(bootstrap: Bootstrap) -> None:
    bootstrap.tables = [{"table": TABLE, "state": "seeding", "generation": 2}]
    bootstrap.write()
    looks = bootstrap.watch().looks()
    assert all(set(next(looks)) == {TABLE} for _ in range(1000))
    bootstrap.tables = [{"table": TABLE, "state": "consistent", "generation": 2}]
    bootstrap.write()
    assert [set(look) for look in looks] == [set()]


def test_a_table_that_is_published_no_longer_is_not_waited_for(bootstrap: Bootstrap) -> None:
    bootstrap.tables = [{"table": TABLE, "state": "seeding", "generation": 2}]
    bootstrap.write()
    looks = bootstrap.watch().looks()
    next(looks)
    bootstrap.tables = [{"table": "public.renamed", "state": "seeding", "generation": 1}]
    with pytest.raises(SourceMisconfigured, match=r"public\.t is published no longer"):
        for _ in zip(range(1000), looks, strict=False):
            assert bootstrap.now < 60


def test_a_store_that_begins_anew_is_waited_for(bootstrap: Bootstrap) -> None:
    looks = bootstrap.watch().looks()
    for _ in range(20):
        next(looks)
    bootstrap.tables = [{"table": TABLE, "state": "consistent", "generation": 2}]
    bootstrap.write()
    assert list(looks) == [{}]


def test_a_bootstrap_that_is_silent_is_told(bootstrap: Bootstrap) -> None:
    bootstrap.tables = [{"table": TABLE, "state": "seeding", "generation": 2}]
    bootstrap.write()
    bootstrap.runs = False
    with pytest.raises(StoreError, match="says nothing any more"):
        for _ in bootstrap.watch().looks():
            assert bootstrap.now < 60
