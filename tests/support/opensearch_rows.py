"""Documents of an OpenSearch as rows, for `walbus.demo.compare.compare_sinks`; what the sink wrote otherwise is undone.

compare_sinks(database.dsn, [OpenSearchRows(url)])
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import httpx
import msgspec

from walbus.demo.sink_rows import Found, key_of
from walbus.demo.source_rows import SourceTable


class _Hit(msgspec.Struct, rename={"source": "_source"}):
    source: dict[str, msgspec.Raw]


class _Hits(msgspec.Struct):
    hits: list[_Hit]


class _Found(msgspec.Struct):
    hits: _Hits


class OpenSearchRows:
    """One document a row, a field a column; see `walbus.demo.sink_rows.SinkRows`."""

    name = "opensearch"

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=60)
        self._http.post("/_all/_refresh")
        self._indices: dict[str, str] = {}
        for index, told in self._http.get("/_mapping").json().items():
            layout = told["mappings"]["_meta"]["walbus"]["layout"]
            self._indices[f"{layout['namespace']}.{layout['name']}"] = index

    def tables(self) -> set[str]:
        return {table for table in self._indices if self._sources(table)}

    def rows(self, table: SourceTable) -> Iterator[Found]:
        for source in self._sources(table.table):
            raw = {unquote(field): value for field, value in source.items() if not field.startswith("_walbus")}
            values = {column.name: _value(column.type_name, raw[column.name]) for column in table.columns}
            assert raw.keys() == values.keys()
            values |= {
                column.name: "null" for column in table.key_columns if values[column.name] is None
            }  # JSON's null
            key = {column.name: _key_value(column.type_name, values[column.name]) for column in table.key_columns}
            yield key_of(table, key), values

    def close(self) -> None:
        self._http.close()

    def _sources(self, table: str) -> list[dict[str, msgspec.Raw]]:
        if table not in self._indices:
            return []
        index = self._indices[table].replace("%", "%25")
        found = self._http.post(f"/{index}/_search", json={"size": 10_000})
        return [hit.source for hit in msgspec.json.decode(found.content, type=_Found).hits.hits]


def _value(type_name: str, raw: msgspec.Raw) -> object:
    """The value in the document; of JSON its text, which may be that of a string that holds it."""
    value: Any = msgspec.json.decode(raw) if type_name not in ("json", "jsonb") else None
    if type_name not in ("json", "jsonb") or bytes(raw) == b"null":
        return value
    text = bytes(raw).decode()
    odd = text.startswith('"') and (len(text) > 1000 or "\\ud800" in text)
    return json.loads(text) if odd else text


def _key_value(type_name: str, value: object) -> object:
    """As the source prints it."""
    if type_name == "timestamp with time zone" and isinstance(value, str) and value.endswith("Z"):
        return value.replace("T", " ").replace("Z", "+00")
    return value
