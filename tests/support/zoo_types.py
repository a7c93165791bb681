"""Types that users make: enums, domains, composites, ranges, base types, and things whose names need quotes.

`USER_TYPES` makes them in schema `zoo` (and in one whose name needs quotes itself); `USER_SAMPLES` has their input
texts, as `support.zoo_samples` has those of PostgreSQL's own types.
"""

from __future__ import annotations

from collections.abc import Sequence

#: 63 bytes, the most that a name may have; every byte counts, so the last letter has two.
LONG_NAME = "l" * 61 + "ü"

USER_TYPES = [
    "CREATE SCHEMA zoo",
    'CREATE SCHEMA "a table"',
    'CREATE ROLE "odd role, ""x"""',
    # What reg* values name.
    'CREATE TABLE "a table".b (id int); CREATE TABLE zoo."sp ace" (); CREATE TABLE zoo."do.t""q" ();'
    ' CREATE TABLE zoo."select" (); CREATE TABLE zoo."Mixed" ()',
    'CREATE TEXT SEARCH CONFIGURATION zoo."odd config" (COPY = pg_catalog.english)',
    'CREATE TEXT SEARCH DICTIONARY zoo."odd dict" (TEMPLATE = pg_catalog.simple)',
    'CREATE COLLATION zoo."odd coll" FROM "C"',
    # What pg_node_tree and the statistics types have values of.
    "CREATE TABLE zoo.counted (a int DEFAULT 1 + 2, b text DEFAULT now()::text || '\"x\\', c numeric)",
    "INSERT INTO zoo.counted SELECT i % 3, 'x' || i % 3, i % 7 FROM generate_series(1, 100) i",
    "CREATE STATISTICS zoo.counts (ndistinct, dependencies, mcv) ON a, b, c FROM zoo.counted; ANALYZE zoo.counted",
    # Enums: labels added at both ends and in the middle, one renamed.
    "CREATE TYPE zoo.mood AS ENUM ('sad', 'so so', 'glad')",
    "ALTER TYPE zoo.mood ADD VALUE 'it''s \"x\"' BEFORE 'so so'; ALTER TYPE zoo.mood ADD VALUE 'NULL'",
    "ALTER TYPE zoo.mood ADD VALUE '' BEFORE 'sad'; ALTER TYPE zoo.mood RENAME VALUE 'glad' TO 'happy, {very}'",
    "CREATE TYPE \"a table\".\"odd. t\"\"ype\" AS ENUM ('ä', '\U0001f600', '\\')",
    f"CREATE TYPE zoo.{LONG_NAME} AS ENUM ('a')",
    # Domains over base types, over domains, over arrays, and over each other kind.
    'CREATE DOMAIN zoo."od d" AS int CHECK (VALUE > 0); CREATE DOMAIN zoo.small AS zoo."od d" CHECK (VALUE < 1000)',
    "CREATE DOMAIN zoo.tiny AS zoo.small NOT NULL CHECK (VALUE < 100); CREATE DOMAIN zoo.price AS numeric(10, 2)",
    "CREATE DOMAIN zoo.ints AS int[] CHECK (cardinality(VALUE) < 10); CREATE DOMAIN zoo.smalls AS zoo.small[]",
    "CREATE DOMAIN zoo.feeling AS zoo.mood; CREATE DOMAIN zoo.code AS char(4); CREATE DOMAIN zoo.flag AS bool",
    "CREATE DOMAIN zoo.moment AS timestamptz; CREATE DOMAIN zoo.document AS jsonb; CREATE DOMAIN zoo.blob AS bytea",
    "CREATE DOMAIN zoo.real_number AS float4; CREATE DOMAIN zoo.span AS int4range",
    # Composites: in composites, in arrays in composites, of domains, with odd names, with nothing in them.
    'CREATE TYPE zoo.pair AS ("a b" int, b text)',
    "CREATE TYPE zoo.nest AS (p zoo.pair, ps zoo.pair[], m zoo.mood, ms zoo.mood[], d zoo.small, ns numeric[], b bytea,"
    ' t timestamptz, c char(3), f float4, o bool, r int4range, j json, k "char")',
    "CREATE TYPE zoo.deep AS (n zoo.nest, ns zoo.nest[], i int[]); CREATE TYPE zoo.one AS (ones zoo.deep[])",
    "CREATE TYPE zoo.nothing AS (); CREATE DOMAIN zoo.checked_pair AS zoo.pair CHECK ((VALUE).b <> 'no')",
    'CREATE TYPE "a table"."com,po)site" AS ("""" text, ")" zoo.feeling)',
    # Ranges of built-in and of user types.
    "CREATE TYPE zoo.floats AS RANGE (subtype = float8); CREATE TYPE zoo.texts AS RANGE (subtype = text)",
    "CREATE TYPE zoo.moods AS RANGE (subtype = zoo.mood); CREATE TYPE zoo.pairs AS RANGE (subtype = zoo.pair)",
    "CREATE TYPE zoo.times AS RANGE (subtype = time); CREATE TYPE zoo.arrays AS RANGE (subtype = int[])",
    'CREATE TYPE "a table"."ran ge" AS RANGE (subtype = numeric, multirange_type_name = "a table"."multi, ran ge")',
    # A base type with input and output functions of PostgreSQL's own, and arrays delimited by a semicolon.
    "CREATE TYPE zoo.base",
    "CREATE FUNCTION zoo.base_in(cstring) RETURNS zoo.base LANGUAGE internal IMMUTABLE STRICT AS 'textin'",
    "CREATE FUNCTION zoo.base_out(zoo.base) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout'",
    "CREATE TYPE zoo.base (INPUT = zoo.base_in, OUTPUT = zoo.base_out, LIKE = text, DELIMITER = ';')",
    'CREATE FUNCTION zoo."odd f"(zoo."od d", int[]) RETURNS int LANGUAGE sql AS \'SELECT 1\'',
]

_PAIRS = ["(1,)", '(2,"a,b")', '(,"""")', '(,"")', "(-5,NULL)", '(0,"\\\\ (x) {y}")', "(,)", "(1,\n)"]
_NEST = (
    '("(1,""a """"b"""""")","{""(1,x)"",NULL,""(2,\\\\""c d\\\\"")""}","it\'s ""x""","{sad,NULL,""NULL"",""""}",7,'
    '"{NaN,1.50}","\\\\x00ff","2024-01-01 00:00:00.5+00",ab,0.1,t,"[1,5)","{""a"":1e400, ""a"":2}","\\\\377")'
)
_EMPTY_NEST = "(,,,,,,,,,,,,,)"

#: Input texts by type, as `format_type` names it under an empty search_path. Enums need none.
USER_SAMPLES: dict[str, Sequence[str]] = {
    'zoo."od d"': ["1", "2147483647"],
    "zoo.small": ["1", "999"],
    "zoo.tiny": ["1", "99"],
    "zoo.price": ["1.5", "NaN", "12345678.90", "-0.00"],
    "zoo.ints": ["{}", "{1,NULL,-3}", "[2:3]={1,2}", "{{1},{2}}"],
    "zoo.smalls": ["{}", "{1,NULL}", "[0:0]={5}"],
    "zoo.feeling": ["sad", "NULL", ""],
    "zoo.code": ["a", "", "abcd"],
    "zoo.flag": ["t", "f"],
    "zoo.moment": ["infinity", "2024-01-01 00:00:00.5+00", "0044-03-15 00:00:00+00 BC"],
    "zoo.document": ["null", '{"a": [1, 1e400]}'],
    "zoo.blob": ["\\x", "\\x00ff"],
    "zoo.real_number": ["NaN", "-0", "1e-45", "3.4028235e38"],
    "zoo.span": ["empty", "[1,5)"],
    "zoo.pair": _PAIRS,
    "zoo.checked_pair": _PAIRS,
    "zoo.nest": [_EMPTY_NEST, _NEST],
    "zoo.deep": ["(,,)", f'("{_EMPTY_NEST}","{{}}","[2:3]={{1,NULL}}")'],
    "zoo.one": ["()", '("{}")', '("{NULL,""(,,)""}")'],
    "zoo.nothing": ["()"],
    '"a table"."com,po)site"': ["(,)", '("""x\\\\",sad)', '("a,b)",NULL)'],
    "zoo.floats": ["empty", "(,)", "[NaN,NaN]", "(-Infinity,1e23]", "[-0,0]", "[5e-324,0.1)"],
    "zoo.texts": ["empty", "(,)", '["","a b")', '["\\"","\\\\")', "[NULL,null]", '["a,b","c]")'],
    "zoo.moods": ["empty", '["","NULL"]', "(sad,)"],
    "zoo.pairs": ["empty", '["(1,a)","(2,""b c"")")', "(,)"],
    "zoo.times": ["empty", "[00:00:00,24:00:00]", "(12:00:00.5,)"],
    "zoo.arrays": ["empty", '["{}","{1,NULL}")', '["{1,2}","{{1},{2}}"]', "(,)"],
    '"a table"."ran ge"': ["empty", "[1.0,1.50]", "(,NaN]"],
    "zoo.base": ["", "a;b", "NULL", '"{x,y}\\', "a,b", "ä"],
}  # fmt: skip
