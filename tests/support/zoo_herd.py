"""The zoo in few wide tables, for tests whose cost is by the table.

Schema `herd` gets tables `h0`, `h1`, … with an `id` (the primary key, and the replica identity, so that TOASTed values
that do not change are not sent) and two columns for each of many types; and tables `k…` whose key is of a type that
sinks may hold in a form of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString, cast

from support.zoo import Specimen, Zoo

KEYS = (
    "boolean", "bigint", "real", "double precision", "numeric", "text", "character", "bytea", "date", "uuid", "jsonb",
    "timestamp with time zone", '"char"', "int4range", "zoo.mood", "zoo.pair", 'zoo."od d"', "zoo.flag", "zoo.code",
)  # fmt: skip
_TYPES_A_TABLE = 40


@dataclass(frozen=True)
class Herd:
    """The wide tables.

    Attributes:
        zoo: whose rows they were filled with.
        groups: the specimens of each table, `h0` first.
        keys: names of the key tables.
    """

    zoo: Zoo
    groups: tuple[tuple[Specimen, ...], ...]
    keys: tuple[str, ...]

    def update(self) -> None:
        """Each row gets the values of the one before it, but for the arrays; keys stay, and one moves."""
        for number, group in enumerate(self.groups):
            sets = ", ".join(f"{s.table}_v = b.{s.table}_v" for s in group)
            self._run(f"UPDATE herd.h{number} h SET {sets} FROM herd.h{number} b WHERE h.id = b.id + 1")
        for table in self.keys:
            self._run(f"UPDATE herd.{table} SET n = n + 1")
            self._run(
                f"DO $$ DECLARE freed record; BEGIN DELETE FROM herd.{table} WHERE ctid = (SELECT max(ctid) FROM"
                f" herd.{table}) RETURNING v INTO freed; UPDATE herd.{table} SET v = freed.v WHERE ctid ="
                f" (SELECT max(ctid) FROM herd.{table}); END $$"
            )

    def repeat(self) -> None:
        """Every row once more, under another id."""
        for number, group in enumerate(self.groups):
            columns = ", ".join(name for specimen in group for name in _columns(specimen))
            table = f"herd.h{number}"
            self._run(f"INSERT INTO {table} (id, {columns}) SELECT id + 10000, {columns} FROM {table}")

    def delete(self) -> None:
        """Every third row, and some of the keys."""
        for number in range(len(self.groups)):
            self._run(f"DELETE FROM herd.h{number} WHERE id % 3 = 1")
        for table in self.keys:
            self._run(f"DELETE FROM herd.{table} WHERE ctid = (SELECT min(ctid) FROM herd.{table})")

    def _run(self, query: str) -> None:
        self.zoo.connection.execute(cast(LiteralString, query))


def build_herd(zoo: Zoo) -> Herd:
    """Puts the rows that the zoo has now into wide tables, in place of its own."""
    run = zoo.connection.execute
    run("CREATE SCHEMA herd")
    starts = range(0, len(zoo.specimens), _TYPES_A_TABLE)
    groups = tuple(zoo.specimens[start : start + _TYPES_A_TABLE] for start in starts)
    for number, group in enumerate(groups):
        columns = [f"{s.table}.{name.rpartition('_')[2]} AS {name}" for s in group for name in _columns(s)]
        joined = f"cage.{group[0].table}" + "".join(f" FULL JOIN cage.{s.table} USING (id)" for s in group[1:])
        run(cast(LiteralString, f"CREATE TABLE herd.h{number} AS SELECT id, {', '.join(columns)} FROM {joined}"))
        run(cast(LiteralString, f"ALTER TABLE herd.h{number} ADD PRIMARY KEY (id)"))
    keys = tuple(specimen.key_tables[0] for specimen in zoo.keys if specimen.type_name in KEYS)
    for table in keys:
        run(cast(LiteralString, f"ALTER TABLE cage.{table} SET SCHEMA herd"))
    run("DROP SCHEMA cage CASCADE")
    return Herd(zoo, groups, keys)


def _columns(specimen: Specimen) -> list[str]:
    return [f"{specimen.table}_{name}" for name in (("v", "many") if specimen.has_array else ("v",))]
