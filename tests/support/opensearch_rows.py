"""Documents of an OpenSearch as rows, for `walbus.demo.compare.compare_sinks`; what the sink wrote otherwise is undone.

compare_sinks(database.dsn, [OpenSearchRows(url)])
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import httpx

from walbus.demo.sink_rows import Found, key_of
from walbus.demo.source_rows import SourceTable


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
            values = {unquote(field): value for field, value in source.items() if not field.startswith("_walbus")}
            yield key_of(table, values), values

    def close(self) -> None:
        self._http.close()

    def _sources(self, table: str) -> list[dict[str, Any]]:
        if table not in self._indices:
            return []
        index = self._indices[table].replace("%", "%25")
        found = self._http.post(f"/{index}/_search", json={"size": 10_000, "version": True}).json()
        return [hit["_source"] for hit in found["hits"]["hits"]]
