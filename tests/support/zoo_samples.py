"""Values for every type that PostgreSQL and its contrib extensions ship, the hard ones among them.

`SAMPLES` has input texts by type; `SELECTED` has queries for types that take no input text; `VALUELESS` are types of
which SQL makes no value at all (their input functions refuse, and only indexes hold them). Types whose values follow
from their kind (enums, composites, a catalog's row types) need no entry here: `support.zoo` makes them.

A type that is in none of them fails the zoo's tests: a new version's types must be given samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LONG_NUMBER = "7" * 4000 + "." + "3" * 4000
# About a megabyte each, which does not compress well: PostgreSQL looks for repetitions nearer than they are.
PROSE = ("".join(chr(0x21 + i * 7919 % 0x2000) for i in range(0x2000)) * 49)[:400_000]
LARGE_BYTES = "\\x" + (bytes(i * 2654435761 >> 7 & 0xFF for i in range(0x8000)).hex() * 31)[:2_000_000]
NAMES_TO_QUOTE = ["pg_class", "pg_type", '"a table".b', 'zoo."sp ace"', 'zoo."do.t""q"', 'zoo."select"', 'zoo."Mixed"']
DEEP = 1000  # levels; PostgreSQL's own limit is its stack's

_FLOATS = ["NaN", "Infinity", "-Infinity", "-0", "0", "0.1", "1e6", "1e15", "1e16", "0.0001", "0.00001", "-123.456"]
_CLOCKS = ["00:00:00", "24:00:00", "23:59:59.999999", "12:34:56.000001", "12:00:00.5", "12:00:00.50"]
_DATES = [
    "infinity", "-infinity", "4714-11-24 BC", "0044-03-15 BC", "0001-12-31 BC", "0001-01-01", "0999-12-31",
    "1969-12-31", "1970-01-01", "2000-02-29", "9999-12-31", "10000-01-01",
]  # fmt: skip
_POINTS = ["(0,0)", "(-0,1e300)", "(NaN,Infinity)", "(5e-324,-1.7976931348623157e308)", "(0.1,1e23)"]
_JSON = [
    "null", "true", '""', "[]", "{}", "-0", "1.00", "123456789012345678901234567890.5", "1e400", '"\\u2028"',
    '"\u2028\u2029"', '{"a":1,"a":2}', '{"b":1, "a" : [1,2,{"c":null}]}', '"\\ud83d\\ude00 \\"\\\\ \\n"',
    "[" * DEEP + "]" * DEEP, '{"d":' * DEEP + "0" + "}" * DEEP,
]  # fmt: skip
_REGS = ["0", "4294967295", "1234567890"]  # the last two name nothing

#: Input texts by type (as `format_type` names it, extension types bare). Each is one row.
SAMPLES: dict[str, Sequence[str]] = {
    "boolean": ["t", "f"],
    "smallint": ["-32768", "32767", "0", "-1"],
    "integer": ["-2147483648", "2147483647", "0", "8191", "8192", "-8192", "-8193", "134217727", "134217728"],
    "bigint": ["-9223372036854775808", "9223372036854775807", "0", "9007199254740993", "4398046511104", "-64", "64"],
    "oid": ["0", "2147483648", "4294967295"],
    "real": [*_FLOATS, "1e-45", "3.4028235e38", "-3.4028235e38", "1.17549435e-38", "16777216", "999999", "8388608"],
    "double precision": [
        *_FLOATS, "5e-324", "2.2250738585072014e-308", "1.7976931348623157e308", "1e23", "9007199254740993",
    ],
    "numeric": [
        "NaN", "Infinity", "-Infinity", "0", "0.00", "-0.0", "1.50", "-0.000001", "1e-300", "1e300", "10.", "1e131071",
        "0." + "0" * 16382 + "1", LONG_NUMBER, f"-{LONG_NUMBER}",
    ],
    "money": ["-12.34", "0", "92233720368547758.07", "-92233720368547758.08", "0.01"],
    "text": [
        "", "NULL", "null", " ", "\\N", "\\", "a\tb\nc\rd\be\ff\vg", '"{},()[]', "'",
        "ä\u2028\U0010ffff\ufffe", "e\u0301", PROSE,
    ],
    "character varying": ["", "NULL", "abc ", " ", "ß" * 3000, PROSE],
    "character": ["", "a", " "],
    "name": ["", "quoted name", "x" * 63, "ü" * 31, 'a"b.c'],
    '"char"': ["", "a", "\\", "\\200", "\\377", "\\001", " ", '"', "\t", "ä", "\uffff"],
    "bytea": ["\\x", "\\x00", "\\x00ff5c0a0d22", "\\x" + "00" * 5000, LARGE_BYTES],
    "date": [*_DATES, "5874897-12-31"],
    "time without time zone": _CLOCKS,
    "time with time zone": [
        "00:00:00+00", "24:00:00+00", "24:00:00-15:59:59", "12:34:56.5+15:59:59", "00:00:00-00:00:01", "12:00:00+05:30",
        "23:59:59.999999-08",
    ],
    "timestamp without time zone": [
        *[f"{d}" if "inf" in d else f"{d.split(' ')[0]} 12:34:56.000001{d[-3:] if ' BC' in d else ''}" for d in _DATES],
        "9999-12-31 23:59:59.999999", "0001-01-01 00:00:00", "294276-12-31 23:59:59.999999", "1969-12-31 23:59:59.9",
    ],
    "timestamp with time zone": [
        "infinity", "-infinity", "4714-11-24 00:00:00+00 BC", "0044-03-15 12:00:00+00 BC", "0001-12-31 23:59:59+00 BC",
        "0001-01-01 00:00:00+00", "0001-01-01 00:00:00+01", "9999-12-31 23:59:59.999999+00", "9999-12-31 23:59:59-01",
        "294276-12-31 23:59:59.999999+00", "2024-01-01 00:00:00.5+13:45", "1883-11-18 12:03:57-07:52:58",
        "1969-12-31 23:59:59.999999+00",
    ],
    "interval": [
        "0", "1 year -2 months 3 days -04:05:06.789", "-1 year +2 months -3 days 04:05:06.000001", "-1 days +02:03:00",
        "178000000 years", "-178000000 years", "2147483647 months", "-00:00:00.000001", "2147483647:59:59.999999",
        "1 month -1 day",
    ],
    "uuid": ["00000000-0000-0000-0000-000000000000", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "f" * 32],
    "json": [*_JSON, '{\n  "b" :\r\n "\\n\\u0000"\t}', '"\\ud800"', '{"":{"":0}}', "[" + '"x",' * 100_000 + "1]"],
    "jsonb": [*_JSON, '{"k": "' + PROSE.replace('"', "").replace("\\", "") + '"}', "0." + "0" * 3000 + "1"],
    "jsonpath": [
        "$", '$."a b"[*]?(@ > 1 && exists(@."c"))', "strict $.a[last - 1 to 3].type()",
        '$ ? (@ like_regex "^\\"x" flag "i")',
    ],
    "xml": [
        "", "text &amp; <a b=\"c\">\n<d/>\u00e4</a>", "<?xml version=\"1.0\"?><r/>", "<!-- x --><r><![CDATA[<]]></r>",
    ],
    "inet": ["10.0.0.1/8", "10.0.0.1", "::1", "::/0", "2001:db8::1/64", "::ffff:1.2.3.4", "0.0.0.0/0"],
    "cidr": ["10.0.0.0/8", "10.1.2.3/32", "::/0", "2001:db8::/32", "::1/128"],
    "macaddr": ["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"],
    "macaddr8": ["08:00:2b:ff:fe:01:02:03", "ff:ff:ff:ff:ff:ff:ff:ff", "08:00:2b:01:02:03"],
    "bit": ["0", "1"],
    "bit varying": ["", "1", "0", "10" * 2000],
    "point": _POINTS,
    "line": ["{1,-1,0}", "{0,-1,1e300}", "{0.1,-0,5}", "[(0,0),(1,2)]"],
    "lseg": ["[(0,0),(1,1)]", "[(NaN,-0),(Infinity,1e-300)]"],
    "box": ["(1,1),(0,0)", "(0,0),(1,1)", "(Infinity,1e300),(-Infinity,-0)"],
    "path": ["[(0,0)]", "((0,0),(1,1),(2,0))", "[(0,0),(1,1),(2,0)]", "((NaN,-Infinity),(0.1,1e23))"],
    "polygon": ["((0,0))", "((0,0),(1,1),(2,0))", "((-0,1e-300),(0.1,1e23))"],
    "circle": ["<(0,0),0>", "<(0.1,-0),1e300>", "<(NaN,1),Infinity>"],
    "tid": ["(0,0)", "(4294967295,65535)", "(1,2)"],
    "xid": ["0", "3", "4294967295"],
    "xid8": ["0", "18446744073709551615"],
    "cid": ["0", "4294967295"],
    "pg_lsn": ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"],
    "pg_snapshot": ["1:1:", "100:200:150,151", "1:9223372036854775807:5"],
    "txid_snapshot": ["1:1:", "100:200:150,151"],
    "tsvector": [
        "", "'a':1A,2 'it''s':3 '\\\\':4 ' ':16383D", "plain words without positions", "'" + "w" * 2000 + "':1",
    ],
    "tsquery": ["", "'a' & !'b' | 'c':*AB <-> 'd' <10> 'e'", "'it''s' & '\\\\'", "( 'x' | 'y' ) & !( !'z' )"],
    "int2vector": ["", "1", "-32768 0 32767"],
    "oidvector": ["", "0", "4294967295 1"],
    "refcursor": ["", "a cursor", '"'],
    "aclitem": ["=r/postgres", "postgres=arwdDxt*/postgres", '"odd role, ""x"""=r*/postgres'],
    "regclass": [*_REGS, *NAMES_TO_QUOTE, "information_schema.tables"],
    "regproc": [*_REGS, "now", "zoo.\"odd f\"", "pg_backend_pid"],
    "regprocedure": [*_REGS, "abs(integer)", "concat(\"any\")", 'zoo."odd f"(zoo."od d",integer[])'],
    "regoper": [*_REGS, "||/", "#-"],
    "regoperator": [*_REGS, "+(integer,integer)", "-(none,bigint)", "||(text,anynonarray)"],
    "regtype": [*_REGS, "int4", "timestamp with time zone", '"char"[]', 'zoo."od d"', 'zoo.mood[]', "int4range"],
    "regrole": [*_REGS, "postgres", '"odd role, ""x"""'],
    "regnamespace": [*_REGS, "pg_catalog", "zoo", '"a table"'],
    "regconfig": [*_REGS, "english", 'zoo."odd config"'],
    "regdictionary": [*_REGS, "english_stem", 'zoo."odd dict"'],
    "regcollation": [*_REGS, '"C"', "\"default\"", 'zoo."odd coll"'],
    "int4range": ["empty", "(,)", "[1,5)", "(,3)", "[7,)", "[-2147483648,2147483647)"],
    "int8range": ["empty", "(,)", "[9223372036854775806,9223372036854775807)", "[1,1]"],
    "numrange": ["empty", "(,)", "[NaN,NaN]", "(1.50,1.500001)", "[-Infinity,Infinity]", "[1e300,)"],
    "tsrange": [
        "empty", "(,)", '["0044-03-15 00:00:00 BC",infinity)', "[-infinity,infinity]", '("2024-01-01 00:00:00.5",)',
    ],
    "tstzrange": ["empty", "(,)", '["2024-01-01 00:00:00+01",infinity)', '[,"0044-03-15 00:00:00+00 BC"]'],
    "daterange": [
        "empty", "(,)", "[2024-01-01,2024-01-31]", "[-infinity,infinity]", '["0044-03-15 BC",5874897-12-31)',
    ],
    "int4multirange": ["{}", "{(,)}", "{[1,3),[5,)}", "{(,1),[2,3),[5,7)}"],
    "int8multirange": ["{}", "{(,)}", "{[1,3),[5,9223372036854775807)}"],
    "nummultirange": ["{}", "{[1.0,1.50],(2,)}", "{[NaN,NaN]}"],
    "tsmultirange": ["{}", '{["2024-01-01 00:00:00","2024-01-02 00:00:00"),["2025-01-01 00:00:00",infinity)}'],
    "tstzmultirange": ["{}", '{(,"2024-01-01 00:00:00.5+00")}'],
    "datemultirange": ["{}", "{[2024-01-01,2024-02-01),[2025-01-01,)}"],
    # information_schema's domains
    "information_schema.cardinal_number": ["0", "2147483647"],
    "information_schema.character_data": ["", "NULL", "ä"],
    "information_schema.sql_identifier": ["", "quoted name"],
    "information_schema.time_stamp": ["2024-01-01 00:00:00.12+00", "infinity"],
    "information_schema.yes_or_no": ["YES", "NO"],
    # contrib
    "hstore": ["", '"a"=>"1", "b"=>NULL', '"NULL"=>"NULL"', '"q\\"u"=>"b\\\\s", ""=>""', '" "=>"=>,ä"'],
    "citext": ["", "NULL", "MiXed ä", "\\N"],
    "ltree": ["", "Top.Science.Astronomy", "a_1.B2"],
    "lquery": ["*.a|b*@%{1,2}.c", "!x.*{3}"],
    "ltxtquery": ["a & b* | !c@%", "( a | b ) & c"],
    "cube": ["(0)", "(1,2,3),(4,5,-0)", "(NaN,Infinity)", "(1e-300,1e300)", "()"],
    "ean13": ["978-0-393-04002-9", "0000000000017"],
    "isbn": ["0-393-04002-X", "978-0-393-04002-9"],
    "isbn13": ["978-0-393-04002-9"],
    "ismn": ["M-2306-7118-7"],
    "ismn13": ["979-0-2306-7118-7"],
    "issn": ["1436-4522"],
    "issn13": ["977-1436-452-00-8"],
    "upc": ["220356483481"],
    "seg": ["1.5", "1.50", "~ 7", "1 .. 2", "3(+-)1", "< 5", "1e-10 .. 2e+10", "..3", "4.."],
    "query_int": ["1", "1 & !2 | (3 & 4)"],
    "lo": ["0", "4294967295"],
    "earth": ["(6378168, 0, 0)"],
    # pgvector
    "vector": ["[1,2,3]", "[0.1,-0,1e-45]", "[3.4028235e38]"],
    "halfvec": ["[1,2,3]", "[0.1,-0,65504,6e-08]"],
    "sparsevec": ["{}/3", "{1:1.5,3:-0.1}/5"],
}  # fmt: skip

#: Samples that older versions refuse, by the first version (of PostgreSQL) that takes them.
NEWER: dict[int, dict[str, Sequence[str]]] = {
    15: {"interval": ["2562047788:00:54.775807"]},
    17: {"interval": ["infinity", "-infinity"]},
}

#: Types without an input function, and where their values come from.
SELECTED: Mapping[str, str] = {
    "pg_node_tree": "SELECT adbin FROM pg_catalog.pg_attrdef",
    "pg_ndistinct": "SELECT stxdndistinct FROM pg_catalog.pg_statistic_ext_data",
    "pg_dependencies": "SELECT stxddependencies FROM pg_catalog.pg_statistic_ext_data",
    "pg_mcv_list": "SELECT stxdmcv FROM pg_catalog.pg_statistic_ext_data",
}

#: Types of which no statement gives a value: their input refuses, and they live in indexes.
VALUELESS = frozenset({
    "gtsvector", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary", "ghstore", "gtrgm", "ltree_gist",
    "intbig_gkey", "gbtreekey2", "gbtreekey4", "gbtreekey8", "gbtreekey16", "gbtreekey32", "gbtreekey_var",
})  # fmt: skip


def samples_of(type_name: str, server_version: int) -> list[str] | None:
    """The input texts of a type for a server (`server_version` as libpq has it, 180004); None if it has none."""
    samples = SAMPLES.get(type_name)
    if samples is None:
        return None
    newer = [
        t for since, by_type in NEWER.items() if server_version >= since * 10_000 for t in by_type.get(type_name, ())
    ]
    return [*samples, *newer]
