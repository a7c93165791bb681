"""A list of tables without one of them would leave its rows out of a consumer's snapshot for good."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.memory_store import MemoryStore
from support.model_source import items_layout
from support.mvcc_model import fill
from walbus.bootstrap.ledger import Ledger
from walbus.schema import TableSchema


class Layouts:
    """The log's layouts, which grow."""

    def __init__(self, count: int) -> None:
        self.count = count

    def register(self, schema: TableSchema) -> tuple[TableSchema, bool]:
        raise AssertionError("the bootstrap reads layouts")

    def get(self, schema_id: int) -> TableSchema:
        return replace(items_layout(), id=schema_id)

    def all(self) -> list[TableSchema]:
        return [self.get(number) for number in range(1, self.count + 1)]


def restarted(store: MemoryStore, layouts: Layouts | None) -> Ledger:
    ledger = Ledger(store, fill)
    ledger.schemas = layouts
    return ledger


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_nothing_is_listed_before_the_first_look_at_the_publication(store: MemoryStore) -> None:
    assert not restarted(store, Layouts(3)).listed


def test_a_process_killed_before_every_table_was_known_lists_none_when_it_starts_again(store: MemoryStore) -> None:
    restarted(store, Layouts(3)).tell_listed(None)
    assert not restarted(store, Layouts(3)).listed


def test_a_complete_list_outlives_a_restart_with_the_source_away(store: MemoryStore) -> None:
    restarted(store, Layouts(3)).tell_listed(3)
    assert restarted(store, Layouts(3)).listed


def test_a_table_that_entered_the_log_since_the_last_look_makes_the_list_incomplete(store: MemoryStore) -> None:
    layouts = Layouts(3)
    ledger = restarted(store, layouts)
    ledger.tell_listed(3)
    assert ledger.listed
    layouts.count = 4
    assert not ledger.listed
    assert not restarted(store, layouts).listed
    ledger.tell_listed(4)
    assert ledger.listed


def test_nothing_is_listed_while_the_log_is_not_open(store: MemoryStore) -> None:
    restarted(store, Layouts(3)).tell_listed(3)
    assert not restarted(store, None).listed
