"""Values of a real PostgreSQL through `walbus.values`, against PostgreSQL's own text of them."""

from __future__ import annotations

import json
import math
import random
import struct
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal

import msgspec
import psycopg
import pytest

from support.database import Database
from walbus.keys import decode_key, key_texts
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.session import settings_sql
from walbus.values import decode_row, row_encoder, row_json, row_texts

_ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_OTHER_CASTS = (16, 869)  # bool::text says true, inet::text adds /32; both unlike what is replicated


def unescape(field: bytes) -> bytes | None:
    """One field of COPY's text form."""
    if field == b"\\N":
        return None
    first, *rest = field.split(b"\\")
    out = [first]
    parts = iter(rest)
    for part in parts:
        if part == b"":  # an escaped backslash
            out.append(b"\\" + next(parts, b""))
        else:
            out.append(_ESCAPES.get(part[:1], part[:1]) + part[1:])
    return b"".join(out)


@pytest.fixture
def session(database: Database) -> psycopg.Connection:
    connection = database.connect()
    connection.execute(settings_sql())
    return connection


def layout(session: psycopg.Connection, table: str, key: Sequence[str] = ()) -> TableSchema:
    """The layout as capture would register it."""
    rows = session.execute(
        "SELECT attname, atttypid, CASE WHEN typnamespace = 'pg_catalog'::regnamespace THEN typname"
        " ELSE nspname || '.' || typname END, atttypmod FROM pg_attribute"
        " JOIN pg_type t ON t.oid = atttypid JOIN pg_namespace n ON n.oid = typnamespace"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [table],
    ).fetchall()
    columns = tuple(Column(name, oid, kind, typmod, name in key) for name, oid, kind, typmod in rows)
    oid = session.execute("SELECT %s::regclass::oid::int8", [table]).fetchone()
    assert oid is not None
    return TableSchema(1, oid[0], *table.split("."), ReplicaIdentity.DEFAULT, columns)


def copied(session: psycopg.Connection, query: str) -> list[list[bytes | None]]:
    """Rows as pgoutput would send them: COPY's text form, unescaped."""
    with session.cursor().copy(f"COPY ({query}) TO STDOUT") as copy:
        data = b"".join(bytes(block) for block in copy)
    return [[unescape(field) for field in line.split(b"\t")] for line in data.split(b"\n")[:-1]]


def assert_round_trip(session: psycopg.Connection, schema: TableSchema) -> list[bytes]:
    """Every row of the table comes out of Avro as the text that went in, and as `::text` has it; the payloads."""
    table = f"{schema.namespace}.{schema.name}"
    encoder = row_encoder(schema)
    names = ", ".join('"' + c.name.replace('"', '""') + '"::text' for c in schema.columns)
    sent = copied(session, f"SELECT * FROM {table} ORDER BY ctid")
    casts = copied(session, f"SELECT {names} FROM {table} ORDER BY ctid")
    payloads = [encoder.encode(row) for row in sent]
    assert payloads, "an empty table proves nothing"
    for row, cast, payload in zip(sent, casts, payloads, strict=True):
        texts = row_texts(schema, payload)
        assert [t if t is None else t.encode() for t in texts] == row
        same = [c for c in range(len(row)) if schema.columns[c].type_oid not in _OTHER_CASTS]
        # char(n)::text strips the padding that the value has
        assert [_unpadded(schema, c, row[c]) for c in same] == [_unpadded(schema, c, cast[c]) for c in same]
        line = msgspec.json.encode(row_json(schema, payload))
        assert b"\n" not in line
        json.loads(line)  # takes 1e400, which a json column may hold
    return payloads


def _unpadded(schema: TableSchema, index: int, text: bytes | None) -> bytes | None:
    return text.rstrip(b" ") if text and schema.columns[index].type_oid == 1042 else text


# fmt: off
# ruff: noqa: E501 - one line a type
HARD: list[tuple[str, list[str]]] = [
    ("bool", ["true", "false"]),
    ("int2", ["-32768", "32767", "0", "-1"]),
    ("int4", ["-2147483648", "2147483647", "0", "8191", "8192", "-8193", "134217727", "134217728"]),
    ("int8", ["-9223372036854775808", "9223372036854775807", "0", "-1", "4398046511104"]),
    ("oid", ["0", "4294967295", "2147483648"]),
    ("float4", ["NaN", "Infinity", "-Infinity", "-0", "1e-45", "3.4028235e38", "0.1", "16777216", "1e6", "999999", "1e-5"]),
    ("float8", ["NaN", "Infinity", "-Infinity", "-0", "5e-324", "1.7976931348623157e308", "1e15", "1e23", "0.0001", "0.00001"]),
    ("numeric", ["NaN", "Infinity", "-Infinity", "0", "0.00", "1.50", "-0.000001", "1" + "0" * 300, "1e-300"]),
    ("numeric(10,2)", ["1.5", "NaN", "12345678.90"]),
    ("text", ["", "NULL", "null", " ", "\\N", "a\tb\nc\rd\be\ff\vg", "\\", '"{},', "\U0010ffff\u2028ä", "x" * 100_000]),
    ("varchar(10)", ["", "abc ", "NULL"]),
    ("char(5)", ["a", "", "abcde", " a"]),
    ("name", ["quoted name", ""]),
    ('"char"', ["a", "", "\\377", "\\"]),
    ("bytea", ["\\x", "\\x00", "\\x00ff5c0a", "\\x" + "00" * 5000]),
    ("date", ["infinity", "-infinity", "0044-03-15 BC", "4713-11-24 BC", "5874897-12-31", "9999-12-31", "10000-01-01", "0001-01-01", "1969-12-31"]),
    ("time", ["24:00:00", "00:00:00", "23:59:59.999999", "12:00:00.5", "12:34:56.000001"]),
    ("timetz", ["24:00:00+00", "12:34:56.5+15:59", "00:00:00-15:59:59"]),
    ("timestamp", ["infinity", "-infinity", "0044-03-15 12:00:00 BC", "294276-12-31 23:59:59.999999", "9999-12-31 23:59:59.999999", "10000-01-01 00:00:00", "0001-01-01 00:00:00", "1969-12-31 23:59:59.9", "0001-12-31 00:00:00 BC"]),
    ("timestamptz", ["infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "294276-12-31 23:59:59.999999+00", "2024-01-01 00:00:00.5+13:45", "0001-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00"]),
    ("interval", ["1 year -2 months 3 days -04:05:06.789", "-178000000 years", "00:00:00", "-1 days +02:03:00"]),
    ("uuid", ["00000000-0000-0000-0000-000000000000", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"]),
    ("json", ['{"a":1,"a":2}', "1e400", '{\n  "b" :\r\n "\\n\\u0000"\t}', '"\u2028"', "null", "[]", "123456789012345678901234567890"]),
    ("jsonb", ['{"a":1,"b":[1e400,null,"x\\ny"]}', "null", '"é"', "1.00"]),
    ("jsonpath", ['$."a"[*]?(@ > 1)']),
    ("money", ["-12.34", "92233720368547758.07"]),
    ("inet", ["10.0.0.1/8", "::1"]),
    ("cidr", ["10.0.0.0/8"]),
    ("macaddr", ["08:00:2b:01:02:03"]),
    ("bit(5)", ["10101"]),
    ("varbit", ["", "1"]),
    ("point", ["(1e300,-0)", "(NaN,Infinity)"]),
    ("box[]", ["{(1,1),(0,0);(2,2),(1,1)}"]),
    ("polygon", ["((0,0),(1,1),(2,0))"]),
    ("pg_lsn", ["16/B374D848", "0/0"]),
    ("xid8", ["18446744073709551615"]),
    ("tsvector", ["'a':1A,2 'it''s':3"]),
    ("tsquery", ["'a' & !'b'"]),
    ("int4range", ["empty", "(,)", "[1,5)", "(,3)"]),
    ("tstzrange", ['["2024-01-01 00:00:00+00",infinity)']),
    ("int4multirange", ["{}", "{[1,3),[5,)}"]),
    ("regclass", ["pg_class"]),
    ("mood", ["happy", "so so", 'it\'s "x"']),
    ("mood[]", ['{happy,"so so",NULL}']),
    ("pair", ["(1,)", '(2,"a,b")', '(,"""")']),
    ("pair[]", ['{"(1,a)","(2,\\"b c\\")"}']),
    ("positive", ["1", "2147483647"]),
    ("positive[]", ["{1,2}"]),
    ("int4[]", ["{}", "{1,NULL,-3}", "[2:4]={1,2,3}", "{{1,2},{3,4}}", "{{{1},{2}},{{3},{4}}}", "{NULL}", "[0:0]={7}"]),
    ("int8[]", ["{9223372036854775807,NULL}"]),
    ("int2[]", ["{-32768}"]),
    ("bool[]", ["{t,f,NULL}"]),
    ("oid[]", ["{4294967295}"]),
    ("text[]", ['{}', '{NULL,"NULL","null",nULLx}', '{"",a," ","a b"}', '{"\\"","\\\\",",","{","}"}', '{"a\nb\tc"}', "[0:1]={a,b}", "{ä,\u2003}"]),
    ("varchar(3)[]", ['{abc,""}']),
    ("char(3)[]", ["{a,abc}"]),
    ("name[]", ['{a,"b c"}']),
    ("bytea[]", ['{"\\\\x00","\\\\x",NULL}']),
    ("float4[]", ["{NaN,-Infinity,0.1,NULL,1e-45}"]),
    ("float8[]", ["{NaN,Infinity,1e23,-0}"]),
    ("numeric[]", ["{NaN,1.50,NULL}"]),
    ("date[]", ["{2024-01-31,NULL}", "{infinity,2024-01-31}"]),
    ("time[]", ["{12:00:00}", "{24:00:00}"]),
    ("timestamp[]", ['{"2024-01-01 00:00:00.5",NULL}', "{infinity}"]),
    ("timestamptz[]", ['{"2024-01-01 00:00:00+00"}', '{"0044-03-15 00:00:00+00 BC"}']),
    ("uuid[]", ["{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11,NULL}"]),
    ("jsonb[]", ['{"{\\"a\\": 1}",NULL}']),
    ("interval[]", ['{"1 year -00:00:01"}']),
]
# fmt: on


def make_types(database: Database) -> None:
    database.execute("CREATE TYPE mood AS ENUM ('happy', 'so so')")
    database.execute("""ALTER TYPE mood ADD VALUE 'it''s "x"'""")
    database.execute("CREATE TYPE pair AS (a int, b text)")
    database.execute("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")


def test_every_hard_value_comes_out_of_avro_as_the_text_that_postgresql_gives(
    database: Database, session: psycopg.Connection
) -> None:
    make_types(database)
    columns = ", ".join(f'"c {i}" {kind}' for i, (kind, _) in enumerate(HARD))
    database.execute(f"CREATE TABLE zoo ({columns})")
    database.execute("INSERT INTO zoo DEFAULT VALUES")
    for i, (_, values) in enumerate(HARD):
        for value in values:
            database.execute(f'INSERT INTO zoo ("c {i}") VALUES (%s)', [value])
    payloads = assert_round_trip(session, layout(session, "public.zoo"))
    assert len(payloads) == 1 + sum(len(values) for _, values in HARD)


def test_native_values_are_python_values_and_those_outside_are_text(
    database: Database, session: psycopg.Connection
) -> None:
    database.execute(
        "CREATE TABLE t (a int2, b int8, c float4, d float8, e text, f bytea, g date, h time, i timestamp,"
        " j timestamptz, k uuid, l numeric, m int4[], n text[], o date[], p bool)"
    )
    database.execute(
        r"INSERT INTO t VALUES (-5, 9223372036854775807, 0.1, '-0', 'ü', '\x00ff', '2024-02-29', '23:59:59.999999',"
        r" '2024-01-01 00:00:00.5', '2024-01-01 02:00:00+02', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '1.50',"
        r" '{1,NULL}', '{NULL,\"NULL\"}', '{2024-01-31,NULL}', true),"
        r" (NULL, NULL, 'NaN', 'Infinity', '', '\x', 'infinity', '24:00', '0044-03-15 BC', '-infinity', NULL, 'NaN',"
        r" '[2:3]={1,2}', '{{a},{b}}', '{infinity}', false)".replace('\\"', '"')
    )
    schema = layout(session, "public.t")
    first, second = (decode_row(schema, payload) for payload in assert_round_trip(session, schema))
    assert first == {
        "a": -5,
        "b": 2**63 - 1,
        "c": struct.unpack("<f", struct.pack("<f", 0.1))[0],
        "d": 0.0,
        "e": "ü",
        "f": b"\x00\xff",
        "g": date(2024, 2, 29),
        "h": time(23, 59, 59, 999999),
        "i": datetime(2024, 1, 1, 0, 0, 0, 500000),
        "j": datetime(2024, 1, 1, tzinfo=UTC),
        "k": uuid.UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        "l": Decimal("1.50"),
        "m": [1, None],
        "n": [None, "NULL"],
        "o": [date(2024, 1, 31), None],
        "p": True,
    }
    assert math.copysign(1, first["d"]) == -1
    assert str(first["l"]) == "1.50"
    assert math.isnan(second["c"])
    assert second["l"].is_nan()
    assert {k: second[k] for k in "ghijmnop"} == {
        "g": "infinity",
        "h": "24:00:00",
        "i": "0044-03-15 00:00:00 BC",
        "j": "-infinity",
        "m": "[2:3]={1,2}",
        "n": "{{a},{b}}",
        "o": "{infinity}",
        "p": False,
    }


def doubles(randomly: random.Random) -> list[float]:
    """Random bits, powers of two with their neighbours, short decimals, whole numbers."""
    numbers = [struct.unpack("<d", randomly.randbytes(8))[0] for _ in range(3000)]
    for exponent in range(-1074, 1024):
        power = math.ldexp(1.0, exponent)
        numbers += [power, math.nextafter(power, 0), math.nextafter(power, math.inf)]
    numbers += [float(f"{randomly.randint(1, 999)}e{e}") for e in range(-323, 309) for _ in range(2)]
    numbers += [float(randomly.randint(-(10**17), 10**17)) for _ in range(1000)]
    return numbers


def floats(randomly: random.Random) -> list[float]:
    bits = [randomly.getrandbits(32) for _ in range(5000)]
    bits += [(e << 23) + m for e in range(255) for m in (-1, 0, 1, 2) if (e << 23) + m >= 0]
    numbers = [struct.unpack("<f", struct.pack("<I", b))[0] for b in bits]
    numbers += [float(randomly.randint(-(10**9), 10**9)) for _ in range(1000)]
    numbers += [float(f"{randomly.randint(1, 999)}e{e}") for e in range(-44, 36) for _ in range(3)]
    return numbers


@pytest.mark.parametrize(("kind", "make"), [("float8", doubles), ("float4", floats)])
def test_floats_keep_their_bits_and_are_printed_as_postgresql_prints_them(
    database: Database, session: psycopg.Connection, kind: str, make: Callable[[random.Random], list[float]]
) -> None:
    seed = random.randrange(1 << 32)
    numbers = make(random.Random(seed))
    database.execute(f"CREATE TABLE f (x {kind}, bits bytea)")
    with session.cursor().copy("COPY public.f (x) FROM STDIN") as copy:
        for number in numbers:
            copy.write_row([repr(number)])
    database.execute(f"UPDATE f SET bits = {kind}send(x)")
    schema = layout(session, "public.f")
    for payload in assert_round_trip(session, schema):
        row = decode_row(schema, payload)
        if not math.isnan(row["x"]):
            assert struct.pack(">d" if kind == "float8" else ">f", row["x"]) == row["bits"]


def random_text(randomly: random.Random) -> str:
    """Any code points that PostgreSQL takes, those that mean something in arrays and JSON more often."""
    points = [randomly.randint(1, 0xD7FF), randomly.randint(0xE000, 0x10FFFF), *map(ord, '"\\{},; \t\n\rNULnul')]
    return "".join(chr(randomly.choice(points)) for _ in range(randomly.choice((0, 1, 4, 30))))


def test_random_texts_alone_and_in_arrays_come_out_as_they_are(database: Database, session: psycopg.Connection) -> None:
    seed = random.randrange(1 << 32)
    randomly = random.Random(seed)
    database.execute("CREATE TABLE r (a text, b text[], c jsonb, d name[], e char(7), f bytea[], n int)")
    rows = []
    for number in range(400):
        text = random_text(randomly)
        texts = [randomly.choice([None, random_text(randomly), "NULL"]) for _ in range(randomly.randint(0, 4))]
        names = [text[:10], None]
        rows.append((text, texts, json.dumps({text: texts}), names, text[:7], [text.encode(), b"", None], number))
    with session.cursor().copy("COPY public.r FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
    schema = layout(session, "public.r")
    payloads = assert_round_trip(session, schema)
    assert len(payloads) == len(rows)
    for payload in payloads:
        values = decode_row(schema, payload)
        row = rows[values["n"]]  # COPY may put a small row behind into a page that has room
        assert (values["a"], values["b"], values["f"]) == (row[0], row[1], row[5]), f"seed {seed}"
        assert json.loads(values["c"]) == json.loads(row[2])


def test_random_times_and_numbers_of_postgresqls_whole_range_come_out_as_they_are(
    database: Database, session: psycopg.Connection
) -> None:
    database.execute(
        "CREATE TABLE r AS SELECT"
        " timestamp '4714-11-24 BC' + (random() * 109203489)::int * interval '1 day' + random() * interval '1 day' AS a,"
        " timestamp '0001-01-01' + (random() * 3652058)::int * interval '1 day' + random() * interval '1 day' AS b,"
        " timestamptz '0001-01-02 00:00+00' + (random() * 3652056)::int * interval '1 day' AS c,"
        " date '4714-11-24 BC' + (random() * 2147483493)::int AS d,"
        " date '0001-01-01' + (random() * 3652058)::int AS e,"
        " time '00:00' + random() * interval '1 day' AS f,"
        " make_interval((random()*200-100)::int, (random()*20-10)::int, 0, (random()*60-30)::int, 0, 0, random()*9e5-5e5)"
        " AS g,"
        " (random() - 0.5)::numeric * power(10::numeric, (random() * 60 - 30)::int) AS h,"
        " (random() * 1.8e19 - 9e18)::int8 AS i,"
        " ARRAY[random()::float4, NULL, (random() * power(10, random() * 70 - 35))::float4] AS j,"
        " ARRAY[random() * power(10, random() * 600 - 300), -random()] AS k,"
        " ARRAY[now() + random() * interval '1 year', NULL] AS l,"
        " gen_random_uuid() AS m"
        " FROM generate_series(1, 2000)"
    )
    schema = layout(session, "public.r")
    native = {"b": datetime, "c": datetime, "e": date, "f": time, "i": int, "j": list, "k": list, "l": list}
    for payload in assert_round_trip(session, schema):
        row = decode_row(schema, payload)
        assert {name: type(row[name]) for name in native} == native
        assert isinstance(row["a"], datetime | str)
        assert type(row["h"]) is Decimal
        assert type(row["m"]) is uuid.UUID


def test_names_that_avro_forbids_and_reserved_words_keep_their_values_apart(
    database: Database, session: psycopg.Connection
) -> None:
    database.execute('CREATE TABLE n ("select" int, "a b" int, "a_x20_b" int, "ä" int, "1" int)')
    database.execute("INSERT INTO n VALUES (1, 2, 3, 4, 5)")
    schema = layout(session, "public.n")
    (payload,) = assert_round_trip(session, schema)
    assert decode_row(schema, payload) == {"select": 1, "a b": 2, "a_x20_b": 3, "ä": 4, "1": 5}


def test_keys_sort_bytewise_as_postgresql_sorts_the_rows(database: Database, session: psycopg.Connection) -> None:
    database.execute('CREATE TABLE k (a int8, b text COLLATE "C", c int2, PRIMARY KEY (a, b, c))')
    rows = [
        (a, b, c)
        for a in (-(2**63), -1, 0, 1, 255, 256, 2**63 - 1)
        for b in ("", "a", "a\x01", "ab", "a b", "ü", "\U0001f600", "z")
        for c in (-1, 0, 1)
    ]
    with session.cursor().copy("COPY public.k FROM STDIN") as copy:
        for row in random.sample(rows, len(rows)):
            copy.write_row(row)
    schema = layout(session, "public.k", key=("a", "b", "c"))
    encoder = row_encoder(schema)
    keys = [encoder.key(row) for row in copied(session, "SELECT * FROM public.k ORDER BY a, b, c")]
    assert all(key is not None for key in keys)
    assert keys == sorted(keys)
    assert [decode_key(schema, key) for key in keys if key] == sorted(rows, key=lambda r: (r[0], r[1].encode(), r[2]))
    assert key_texts(keys[0] or b"") == ("-9223372036854775808", "", "-1")
