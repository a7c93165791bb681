"""The tables of a replica as they are read: swapped by a rebuild in the middle of that, or changed by others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.model_source import column, items_layout
from walbus.consumers.sinks.postgres_schema import TargetSchema
from walbus.errors import SinkRefused
from walbus.schema import TableSchema

KEY = column("id", 23, "int4", in_key=True)
BEFORE, AFTER = items_layout("items", KEY, column("name")), items_layout("items", KEY, column("label"), schema_id=2)


class Target:
    """A database whose table has one layout after the other: `swaps` of them before its columns are read."""

    where = "a database of the test"

    def __init__(self, *layouts: TableSchema, swaps: int) -> None:
        self._layouts, self._left = list(layouts), swaps

    def run(self, query: str, parameters: list[object]) -> list[tuple[Any, ...]]:
        assert parameters == ["cache"]
        if "pg_attribute" in query:
            if self._left:
                self._left -= 1
                del self._layouts[0]
            names = [one.name for one in self._layouts[0].columns]
            return [("public", "items", [*names, "_walbus_seq", "_walbus_mark"])]
        if "_walbus.tables" in query:
            layout = json.dumps(self._layouts[0].to_dict())
            return [(1, "public", "items", ["int4", "text"], "_walbus_seq", "_walbus_mark", layout)]
        return []


@pytest.mark.parametrize("swaps", [0, 1, 2])
def test_a_replica_that_is_swapped_while_it_is_read_is_read_again(swaps: int) -> None:
    layouts = (BEFORE, AFTER, BEFORE)[: swaps + 1]
    target: Any = Target(*layouts, swaps=swaps)
    found = TargetSchema(target, "cache", "{schema}").by_name("public.items")
    assert found is not None
    assert found.layout == layouts[-1]


def test_a_replica_that_others_changed_is_refused_with_the_columns_that_it_lost() -> None:
    class Changed(Target):
        def run(self, query: str, parameters: list[object]) -> list[tuple[Any, ...]]:
            return [("public", "items", ["id"])] if "pg_attribute" in query else super().run(query, parameters)

    target: Any = Changed(BEFORE, swaps=0)
    with pytest.raises(SinkRefused, match="has lost columns: _walbus_mark, _walbus_seq, name"):
        TargetSchema(target, "cache", "{schema}")
