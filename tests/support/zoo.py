"""The type zoo: one table a type, with every value that `support.zoo_samples` and `support.zoo_types` have of it.

    zoo = build_zoo(connection)          # types, extensions, tables; no rows yet
    zoo.insert(); zoo.update(); zoo.delete()
    rows_of(connection, table)           # what PostgreSQL prints of each value, now

The list of types is PostgreSQL's own: everything in pg_type that a column can have. A type that nothing here has a
value of makes `build_zoo` fail, so that a new version's types must be given samples.

The tables lie in schema `cage`. A specimen's table has the columns `id`, `n`, `v` (the type) and `many` (its array),
and REPLICA IDENTITY FULL; a type that can be a key has two more tables, with `v` as primary key and as the column of
a replica identity's index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import LiteralString, cast

import psycopg
from psycopg import sql

from support.zoo_samples import SELECTED, VALUELESS, samples_of
from support.zoo_types import USER_SAMPLES, USER_TYPES
from walbus.session import settings_sql

EXTENSIONS = (
    "hstore", "citext", "ltree", "cube", "earthdistance", "isn", "seg", "intarray", "uuid-ossp", "lo", "pg_trgm",
    "btree_gist", "tablefunc", "dblink", "pg_stat_statements", "pg_buffercache", "vector", "postgis",
)  # fmt: skip
NO_NULLS = ("zoo.tiny",)  # a domain that is NOT NULL
UNORDERED = ("zoo.nest", "zoo.deep", "zoo.one")  # they hold json, and cannot be keys
_LONGEST_KEY, _LONGEST_ELEMENT = 800, 20_000

# What a system view may need that this server or machine has not.
_VIEW_REFUSALS = (
    psycopg.errors.ObjectNotInPrerequisiteState,
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.InternalError_,
)

# Left out: row types of our own tables, and true arrays, which go with their elements.
_TYPES = """
SELECT t.oid::int8, pg_catalog.format_type(t.oid, NULL), t.typtype::text, t.typname::text, t.typdelim::text,
       c.oid::pg_catalog.regclass::text, n.nspname = 'pg_catalog', t.typarray <> 0,
       (SELECT pg_catalog.format_type(r.rngtypid, NULL) FROM pg_catalog.pg_range r WHERE r.rngmultitypid = t.oid)
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid AND c.relkind <> 'c'
WHERE t.typtype IN ('b', 'c', 'd', 'e', 'm', 'r') AND t.typisdefined
AND NOT EXISTS (SELECT FROM pg_catalog.pg_type element WHERE element.typarray = t.oid)
AND (c.oid IS NULL OR n.nspname IN ('pg_catalog', 'information_schema', 'ext'))
AND n.nspname !~ '^pg_(toast|temp)'
ORDER BY t.oid
"""


_MOVE_KEY = """
DO $$ DECLARE freed record;
BEGIN
    DELETE FROM cage.{t} WHERE ctid = (SELECT max(ctid) FROM cage.{t}) RETURNING v INTO freed;
    UPDATE cage.{t} SET v = freed.v WHERE ctid = (SELECT max(ctid) FROM cage.{t});
END $$
"""


class UnknownTypeError(AssertionError):
    """A type that nobody gave samples of."""


@dataclass(frozen=True)
class Specimen:
    """One type of the zoo.

    Attributes:
        number: of the type in this zoo.
        type_oid: of the type.
        type_name: as `format_type` gives it under an empty search_path: SQL as it stands.
        samples: input texts; empty where `selects` give the values.
        selects: queries of one column whose rows are values.
        delimiter: between the elements of its arrays.
        has_array: whether there is an array type.
        valueless: whether SQL makes no value of it.
    """

    number: int
    type_oid: int
    type_name: str
    samples: tuple[str, ...]
    selects: tuple[str, ...]
    delimiter: str
    has_array: bool
    valueless: bool

    @property
    def table(self) -> str:
        """Name of the table with all values."""
        return f"t{self.number}"

    @property
    def key_tables(self) -> tuple[str, str]:
        """Names of the tables that have the type as their key: primary, and by index."""
        return f"k{self.number}", f"i{self.number}"


@dataclass(frozen=True)
class Zoo:
    """All specimens in the tables of one database.

    Attributes:
        connection: with the shared session settings.
        specimens: one a type that a column can have.
        keys: those that have key tables.
    """

    connection: psycopg.Connection
    specimens: tuple[Specimen, ...]
    keys: tuple[Specimen, ...]

    @property
    def key_tables(self) -> dict[str, Specimen]:
        """The key tables by name."""
        return {table: specimen for specimen in self.keys for table in specimen.key_tables}

    def insert(self) -> None:
        """Every sample, NULL, and arrays of the samples; one transaction a type."""
        for specimen in self.specimens:
            with self.connection.transaction():
                _insert_samples(self.connection, specimen)
                _insert_selected(self.connection, specimen)
        for table, specimen in self.key_tables.items():
            _insert_keys(self.connection, specimen, table)

    def update(self) -> None:
        """Each row gets the value of the one before it, and its array stays; one key moves where another one was."""
        for specimen in self.specimens:
            _run(
                self.connection,
                "UPDATE cage.{t} SET n = {t}.n + 1, v = b.v FROM cage.{t} b WHERE {t}.id = b.id + 1",
                specimen.table,
            )
        for table in self.key_tables:
            _run(self.connection, "UPDATE cage.{t} SET n = n + 1", table)
            _run(self.connection, _MOVE_KEY, table)

    def delete(self) -> None:
        """Every second row of the zoo, and all that are known by their keys."""
        for specimen in self.specimens:
            _run(self.connection, "DELETE FROM cage.{t} WHERE id % 2 = 1", specimen.table)
        for table in self.key_tables:
            _run(self.connection, "DELETE FROM cage.{t}", table)


def build_zoo(connection: psycopg.Connection) -> Zoo:
    """Makes types and tables.

    Raises:
        UnknownTypeError: PostgreSQL has a type that nobody gave samples of.
    """
    connection.execute(settings_sql())
    make_types(connection)
    connection.execute("CREATE SCHEMA cage")
    specimens, keys = [], []
    for specimen in list(find_types(connection)):
        if not _made(connection, _table_of(specimen)):
            continue  # it holds a pseudo-type, and no column can have it
        if not (specimen.samples or specimen.selects or specimen.valueless):
            raise UnknownTypeError(f"give {specimen.type_name} samples in tests/support/zoo_samples.py")
        specimens.append(specimen)
        if specimen.samples and specimen.type_name not in UNORDERED and _made(connection, _key_tables_of(specimen)):
            keys.append(specimen)
    return Zoo(connection, tuple(specimens), tuple(keys))


def make_types(connection: psycopg.Connection) -> None:
    """The extensions that this server has, and the users' types."""
    connection.execute("CREATE SCHEMA ext")
    available = {name for (name,) in connection.execute("SELECT name::text FROM pg_available_extensions")}
    for name in EXTENSIONS:
        if name in available:
            connection.execute(
                sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA ext CASCADE").format(sql.Identifier(name))
            )
    for statement in USER_TYPES:
        with suppress(psycopg.errors.DuplicateObject):  # roles belong to the server, not to the database
            connection.execute(cast(LiteralString, statement))


def find_types(connection: psycopg.Connection) -> Iterator[Specimen]:
    """Every type that might be a column's, with its values."""
    query = (
        "SELECT enumtypid::int8, array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_catalog.pg_enum GROUP BY 1"
    )
    enums = dict(connection.execute(query).fetchall())
    rows = connection.execute(cast(LiteralString, _TYPES)).fetchall()
    for number, (oid, name, kind, bare, delimiter, relation, ours, has_array, range_name) in enumerate(rows):
        samples = enums.get(oid) or USER_SAMPLES.get(name)
        if samples is None:
            samples = samples_of(bare if name.startswith("ext.") else name, connection.info.server_version)
        if samples is None and range_name in USER_SAMPLES:
            samples = ["{}", *(f"{{{text}}}" for text in USER_SAMPLES[range_name])]
        selects: list[str] = [SELECTED[bare], f"SELECT NULL::{name}"] if ours and bare in SELECTED else []
        if samples is None and kind == "c":
            selects.append(f"SELECT json_populate_record(NULL::{name}, '{{}}')")
            selects += [f"(SELECT row_of FROM {relation} row_of LIMIT 2)"] if relation else []
        valueless = bare in VALUELESS or (name == "xml" and not _takes(connection, "xml"))
        if valueless:
            samples = []
        yield Specimen(number, oid, name, tuple(samples or ()), tuple(selects), delimiter, has_array, valueless)


def _takes(connection: psycopg.Connection, type_name: str) -> bool:
    """Whether the type's input function takes anything; a server may be built without XML."""
    try:
        connection.execute(cast(LiteralString, f"SELECT ''::{type_name}"))
    except psycopg.errors.FeatureNotSupported:
        return False
    return True


def rows_of(connection: psycopg.Connection, table: str) -> dict[int, dict[str, tuple[str | None, str | None]]]:
    """What PostgreSQL prints of a table now: by ctid's order or `id`, for each column its output text and its cast.

    Key tables have no id; their rows are numbered from 0 in the order of ctid.
    """
    head = _run(connection, "SELECT * FROM cage.{t} LIMIT 0", table)
    names = [column.name for column in head.description or ()]
    parts = [
        part for name in names for part in (sql.Identifier(name), sql.SQL("{}::text").format(sql.Identifier(name)))
    ]
    query = sql.SQL("SELECT {} FROM cage.{} ORDER BY ctid").format(sql.SQL(", ").join(parts), sql.Identifier(table))
    result = connection.execute(query).pgresult
    assert result is not None
    found = {}
    for row in range(result.ntuples):
        texts = [_text(result.get_value(row, column)) for column in range(result.nfields)]
        values = dict(zip(names, zip(texts[::2], texts[1::2], strict=True), strict=True))
        found[int(values["id"][0] or 0) if "id" in values else row] = values
    return found


def _text(value: bytes | None) -> str | None:
    r"""A text; bytes that are not UTF-8 (of "char", before version 15) as `\ooo`, as later versions print them."""
    if value is None:
        return None
    characters = value.decode(errors="surrogateescape")
    return (
        "".join(f"\\{ord(c) & 0xFF:03o}" if "\udc80" <= c <= "\udcff" else c for c in characters)
        if not characters.isascii()
        else characters
    )


def array_texts(elements: Sequence[str], delimiter: str, *, nulls: bool) -> list[str]:
    """Array literals of several shapes, with every element in one of them."""
    quoted = ['"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in elements]
    a, b, c, nothing = quoted[0], quoted[-1], quoted[len(quoted) // 2], "NULL" if nulls else quoted[0]
    shapes = [
        [], quoted, [*quoted, nothing], [nothing], [f"{{{a}{delimiter}{b}}}", f"{{{nothing}{delimiter}{c}}}"],
        [f"{{{{{a}}}{delimiter}{{{b}}}}}", f"{{{{{c}}}{delimiter}{{{nothing}}}}}"],
    ]  # fmt: skip
    plain = [f"{{{delimiter.join(shape)}}}" for shape in shapes]
    return [*plain, f"[-1:0]={{{a}{delimiter}{b}}}", f"[0:0][2:3]={{{{{b}{delimiter}{nothing}}}}}", f"[1:1]={{{a}}}"]


def _run(
    connection: psycopg.Connection, query: str, table: str, values: Sequence[object] | None = None
) -> psycopg.Cursor:
    return connection.execute(sql.SQL(cast(LiteralString, query)).format(t=sql.Identifier(table)), values)


def _made(connection: psycopg.Connection, statements: Sequence[str]) -> bool:
    """Whether the tables could be made; none is left where one could not."""
    try:
        with connection.transaction():
            for statement in statements:
                connection.execute(cast(LiteralString, statement))
    except (psycopg.errors.InvalidTableDefinition, psycopg.errors.UndefinedObject):
        return False
    return True


def _table_of(specimen: Specimen) -> list[str]:
    t, name = f"cage.{specimen.table}", specimen.type_name
    many = f", many {name}[]" if specimen.has_array else ""
    return [
        f"CREATE TABLE {t} (id int PRIMARY KEY, n int DEFAULT 0, v {name}{many})",
        f"ALTER TABLE {t} REPLICA IDENTITY FULL",
    ]


def _key_tables_of(specimen: Specimen) -> list[str]:
    (primary, by_index), name = specimen.key_tables, specimen.type_name
    return [
        f"CREATE TABLE cage.{primary} (n int DEFAULT 0, v {name} PRIMARY KEY)",
        f"CREATE TABLE cage.{by_index} (n int DEFAULT 0, v {name} NOT NULL); CREATE UNIQUE INDEX {by_index}_v ON"
        f" cage.{by_index} (v); ALTER TABLE cage.{by_index} REPLICA IDENTITY USING INDEX {by_index}_v",
    ]


def _insert_samples(connection: psycopg.Connection, specimen: Specimen) -> None:
    if not specimen.samples and not specimen.valueless:
        return
    nulls = specimen.type_name not in NO_NULLS
    values: list[str | None] = [*([None] if nulls else []), *specimen.samples]
    arrays: list[str] = []
    if specimen.has_array and specimen.samples:
        elements = [text for text in specimen.samples if len(text) <= _LONGEST_ELEMENT]
        arrays = array_texts(elements, specimen.delimiter, nulls=nulls)
    rows = [(i, value, None) for i, value in enumerate(values)]
    rows += [(len(rows) + i, specimen.samples[0], array) for i, array in enumerate(arrays)]
    many = ("many", ", %s") if specimen.has_array else ("", "")
    query = (
        f"INSERT INTO cage.{specimen.table} (id, v{', many' if specimen.has_array else ''}) VALUES (%s, %s{many[1]})"
    )
    with connection.cursor() as cursor:
        cursor.executemany(cast(LiteralString, query), [row if specimen.has_array else row[:2] for row in rows])


def _insert_selected(connection: psycopg.Connection, specimen: Specimen) -> None:
    t = f"cage.{specimen.table}"
    for select in specimen.selects:
        number = f"(SELECT count(*) FROM {t}) + row_number() OVER ()"
        query = f"INSERT INTO {t} (id, v) SELECT {number}, s.v FROM ({select}) s (v)"
        with suppress(*_VIEW_REFUSALS), connection.transaction():
            connection.execute(cast(LiteralString, query))
    if specimen.selects and specimen.has_array:
        every = f"(SELECT array_agg(v ORDER BY id) FROM {t})"
        for shape in (every, f"ARRAY[{every}, {every}]", f"ARRAY[ARRAY[{every}], ARRAY[{every}]]", "'{NULL}'", "'{}'"):
            connection.execute(cast(LiteralString, f"INSERT INTO {t} (id, many) SELECT max(id) + 1, {shape} FROM {t}"))
        connection.execute(
            cast(LiteralString, f"INSERT INTO {t} (id, many[-1:0]) SELECT max(id) + 1, {every} FROM {t}")
        )


def _insert_keys(connection: psycopg.Connection, specimen: Specimen, table: str) -> None:
    texts = [(text,) for text in specimen.samples if len(text) <= _LONGEST_KEY]
    with connection.cursor() as cursor, connection.transaction():
        cursor.executemany(
            cast(LiteralString, f"INSERT INTO cage.{table} (v) VALUES (%s) ON CONFLICT DO NOTHING"), texts
        )


__all__ = [
    "EXTENSIONS",
    "VALUELESS",
    "Specimen",
    "UnknownTypeError",
    "Zoo",
    "build_zoo",
    "find_types",
    "make_types",
    "rows_of",
]
