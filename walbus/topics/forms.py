"""Table layouts as the Avro schemas of table topics.

A row has the very bytes that it has in the log: the same fields, unions and order. Its schema lacks the log's own
numbers (`pgOid`, `walbusSchemaId`), so that two layouts whose rows are alike, as before and behind a change of the
replica identity, are one schema.

A key is a record of the key's columns. None is ever null, so each is its native type by itself; the types that have
values outside of Avro's range are a union with `string`, as in rows. The same key always has the same bytes, since
each value has one canonical text, and the schema of a key is another one only if its columns are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from walbus.errors import DamagedRecord
from walbus.schema import Column, TableSchema
from walbus.values.avro_bytes import native_string
from walbus.values.from_text import OUTSIDE
from walbus.values.key_codec import split_key
from walbus.values.layouts import PerLayout
from walbus.values.schema_form import avro_schema, safe_name
from walbus.values.types import NATIVE

Json = dict[str, Any]

_OF_THE_LOG: Final = ("pgOid", "walbusSchemaId")
_IN_ROWS_ONLY: Final = ("default", "pgKey")
_DATES_AND_TIMES: Final = frozenset({1082, 1083, 1114, 1184})


def row_form(schema: TableSchema) -> Json:
    """The Avro schema of a topic's rows; a new document at each call."""
    form = avro_schema(schema)
    for name in _OF_THE_LOG:
        del form[name]
    return form


def key_form(schema: TableSchema) -> Json:
    """The Avro schema of a topic's keys; without fields for a table without a key."""
    row = row_form(schema)
    keys = [(row["fields"][index], schema.columns[index]) for index in schema.key_indexes]
    fields = [
        {**{name: value for name, value in field.items() if name not in _IN_ROWS_ONLY}, "type": _key_type(column)}
        for field, column in keys
    ]
    namespace = f"{row['namespace']}.{safe_name(schema.name)}"
    return {"type": "record", "name": "Key", "namespace": namespace, "pgTable": schema.table, "fields": fields}


def _key_type(column: Column) -> object:
    native = NATIVE.get(column.type_oid)
    if native is None:
        return "string"
    return [native.avro, "string"] if _may_be_outside(column) else native.avro


def _may_be_outside(column: Column) -> bool:
    native = NATIVE[column.type_oid]
    return column.type_oid in _DATES_AND_TIMES or (isinstance(native.avro, dict) and "items" in native.avro)


def key_bytes(schema: TableSchema, key: bytes) -> bytes:
    """A key of the log (`walbus.keys`) as Avro.

    Raises:
        DamagedRecord: the bytes are no key of this layout.
    """
    parts, encoders = split_key(key), _key_encoders(schema)
    if len(parts) != len(encoders):
        what = f"a key has {len(parts)} parts instead of {len(encoders)}"
        raise DamagedRecord(what, where=f"{schema.table}, schema {schema.id}")
    return b"".join([encode(str(part).encode()) for encode, part in zip(encoders, parts, strict=True)])


def _encoder(column: Column) -> Callable[[bytes], bytes]:
    """Text to the Avro of a key's field."""
    native = NATIVE.get(column.type_oid)
    if native is None:
        return _string
    encode = native.encode
    if not _may_be_outside(column):
        return lambda text: encode(text)[1:]  # without the branch of a row's union

    def in_union(text: bytes) -> bytes:
        try:
            return b"\x00" + encode(text)[1:]
        except OUTSIDE:
            return b"\x02" + _string(text)

    return in_union


def _string(text: bytes) -> bytes:
    return native_string(text)[1:]


_key_encoders = PerLayout(lambda schema: [_encoder(schema.columns[index]) for index in schema.key_indexes])
