"""Table layouts as Avro schemas.

Every field is a nullable union: `null`, the native type, and `string` for the text of values outside the native
range; or `null` and `string` for text-like types and for all that have no native form. Properties beside Avro's own
(`pgType`, `pgTypmod`, `pgName`, `pgKey`) say what PostgreSQL calls it; Avro readers ignore them.

Avro names are `[A-Za-z_][A-Za-z0-9_]*`. A column whose name is not one gets a safe name, unique in its table, and
keeps its real name in `pgName`.
"""

from __future__ import annotations

import re
from typing import Any

from walbus.schema import Column, TableSchema
from walbus.values.types import NATIVE, NUMERIC, NativeType

_VALID = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z", re.ASCII)
_INVALID_CHARACTER = re.compile(r"[^A-Za-z0-9_]", re.ASCII)


def avro_schema(schema: TableSchema) -> dict[str, Any]:
    """The Avro record that the rows of this layout are written in; a new document at each call."""
    names = field_names(schema)
    return {
        "type": "record",
        "name": safe_name(schema.name),
        "namespace": f"walbus.{safe_name(schema.namespace)}",
        "pgTable": schema.table,
        "pgOid": schema.oid,
        "walbusSchemaId": schema.id,
        "fields": [_field(name, column) for name, column in zip(names, schema.columns, strict=True)],
    }


def bare_schema(schema: TableSchema, *, logical: bool) -> dict[str, Any]:
    """The same layout for decoding alone: fields `c0`, `c1`, … of plain types, with logical ones where asked for."""
    return {
        "type": "record",
        "name": "row",
        "fields": [
            {"name": f"c{i}", "type": _bare_union(column, logical=logical)} for i, column in enumerate(schema.columns)
        ],
    }


def field_names(schema: TableSchema) -> list[str]:
    """The Avro name of each column: its own where that is valid, else a safe one that no other column has."""
    taken = {column.name for column in schema.columns if _VALID.match(column.name)}
    names = []
    for column in schema.columns:
        name = column.name
        if not _VALID.match(name):
            name = _unique(safe_name(name), taken)
            taken.add(name)
        names.append(name)
    return names


def safe_name(name: str) -> str:
    """A valid Avro name: each other character becomes `_xHEX_`; a leading digit gets an underscore before it."""
    safe = _INVALID_CHARACTER.sub(lambda match: f"_x{ord(match[0]):X}_", name)
    return f"_{safe}" if not safe or safe[0].isdigit() else safe


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate


def _field(name: str, column: Column) -> dict[str, Any]:
    field: dict[str, Any] = {"name": name, "type": _union(column), "default": None, "pgType": column.type_name}
    if column.typmod != -1:
        field["pgTypmod"] = column.typmod
    if name != column.name:
        field["pgName"] = column.name
    if column.in_key:
        field["pgKey"] = True
    return field


def _union(column: Column) -> list[object]:
    native = NATIVE.get(column.type_oid)
    if native is not None:
        return _with_text_branch(native, native.avro)
    text: dict[str, object] = {"type": "string", "pgType": column.type_name}
    if column.type_oid == NUMERIC:
        text["logicalType"] = "pg-numeric"
    return ["null", text]


def _bare_union(column: Column, *, logical: bool) -> list[object]:
    native = NATIVE.get(column.type_oid)
    if native is None:
        return ["null", "string"]
    # A conversion of our own (uuid) works on the raw form.
    return _with_text_branch(native, native.avro if logical and native.python is None else native.raw)


def _with_text_branch(native: NativeType, avro: object) -> list[object]:
    return ["null", avro] if native.text_like else ["null", avro, "string"]
