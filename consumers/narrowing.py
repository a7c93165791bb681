"""Which part of its tables' changes a subscription asks for: keys, operations, columns. Pure.

The relay does the choosing in its streams. The bootstrap knows partitions, and no columns: what it gives is narrowed
here, in the form in which the relay leaves columns out. Of single operations it knows nothing, since a row as it is
tells none: a subscription that leaves out inserts, updates, deletes or truncates is one of the log alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from walbus.errors import UsageError
from walbus.events import Change
from walbus.records import ChangeFlag
from walbus.relay.selection import ColumnChoice, parse_selection
from walbus.relay.table_filter import pattern_matches, split_pattern
from walbus.schema import TableSchema

_ROW_OPS = frozenset(("insert", "update", "delete", "truncate"))


@dataclass(frozen=True)
class Narrowing:
    """What is asked for; nothing means all.

    Attributes:
        partition: `i/n`, the part i, from 0, of n parts of all keys.
        ops: names of the operations that come.
        columns: names of the columns that come, by pattern of the table; others have all of theirs.
    """

    partition: str | None = None
    ops: tuple[str, ...] = ()
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UsageError for what makes no sense; names it."""
        lists = [pattern for pattern, names in self.columns.items() if isinstance(names, str)]
        if lists:
            raise UsageError(
                f"the columns of {lists[0]} are a text", where="columns", mend='give a list: ["id", "total"]'
            )
        params = self.of_stream()
        chosen = parse_selection(None, params.get("ops"), params.get("columns"), params.get("partition"))
        if self.partition is not None:
            object.__setattr__(self, "partition", "{}/{}".format(*chosen.partition))  # 03/8 is 3/8
        object.__setattr__(self, "_choices", [(split_pattern(one.pattern), one) for one in chosen.columns])

    @property
    def of_log_alone(self) -> bool:
        """Whether rows as they are say nothing to this subscription."""
        return bool(self.ops) and not _ROW_OPS.issubset(self.ops)

    def of_stream(self) -> dict[str, str]:
        """The parameters of the relay's stream."""
        columns = ",".join(f"{pattern}({','.join(names)})" for pattern, names in self.columns.items())
        given = {"ops": ",".join(self.ops), "columns": columns}
        return {name: value for name, value in given.items() if value} | self.of_bootstrap()

    def of_bootstrap(self) -> dict[str, str]:
        """The parameters of the bootstrap's snapshots and deltas."""
        return {} if self.partition is None else {"partition": self.partition}

    def narrowed(self, change: Change) -> Change:
        """A row of the bootstrap without the columns that are left out."""
        schema = change.schema
        if not self.columns or schema is None or change.raw.after is None:
            return change
        left_out = self._left_out(schema)
        if not left_out:
            return change
        bitmap = left_out.to_bytes((len(schema.columns) + 7) // 8, "little")
        raw = change.raw._replace(flags=change.raw.flags | ChangeFlag.PROJECTED, unchanged=bitmap + bitmap)
        return replace(change, raw=raw)

    def _left_out(self, schema: TableSchema) -> int:
        """Bit i for each column i that does not come; columns of the key always do."""
        choices: list[tuple[tuple[str, str], ColumnChoice]] = self._choices  # type: ignore[attr-defined]  # frozen
        for pattern, choice in choices:
            if pattern_matches(pattern, schema.namespace, schema.name):
                kept = choice.columns.union(schema.columns[index].name for index in schema.key_indexes)
                return sum(1 << index for index, column in enumerate(schema.columns) if column.name not in kept)
        return 0


#: Everything.
WHOLE = Narrowing()
