"""The bootstrap's HTTP interface as an OpenAPI 3.1 document, served at `/v1/openapi.json`. No I/O.

A test compares the paths with the server's routes, and another one sends what schemathesis makes of the document to a
running server. docs/bootstrap.md says the same in words, and what no schema can say.
"""

from __future__ import annotations

from typing import Final

from walbus.bootstrap.queries import DELTA_PARAMETERS, KEY_COLUMN, MEDIA_TYPES, MOST_COUNTED, ROW_PARAMETERS
from walbus.bootstrap.queries import SNAPSHOT_PARAMETERS as SNAPSHOT
from walbus.relay.openapi_parts import (
    COUNT,
    ERROR,
    NULLABLE,
    POSITION,
    SEQ,
    TABLE_PATTERN,
    Json,
    document_of,
    get_of,
    list_of,
    object_of,
    operation_of,
    parameter,
    ref,
    ref_response,
    text,
)
from walbus.relay.stream_query import MEDIA_TYPES as STREAM_TYPES
from walbus.relay.stream_query import PARAMETERS as STREAM_PARAMETERS

#: What each parameter means, and which values it takes.
_PARAMETERS: Final[dict[str, tuple[str, Json]]] = {
    "table": ("the table, `schema.name`", {"type": "string"}),
    "tables": ("several, by patterns `schema.name`, either of which may be `*`", text(list_of(TABLE_PATTERN))),
    "after_table": ("go on with this table, behind `after_key`; those before it are done", {"type": "string"}),
    "after_key": ("go on behind this key", text("([0-9a-fA-F]{2})*")),
    "partition": ("`i/n`: the part i, from 0, of n parts of all keys", text("[0-9]{1,5}/[0-9]{1,5}")),
    "log_id": ("refuse the state of any other log", {"type": "string"}),
    "format": ("wins over the Accept header", {"enum": list(MEDIA_TYPES)}),
    "after": ("what was done: a position of the log, or `seq:N`", text(f"(seq:{SEQ}|{POSITION})")),
    "seq": ("the log's last seq at `after`; needed once the log no longer holds that", text(SEQ)),
    "count": ("tell how many changes that would be, and not which", {"enum": ["true", "false"]}),
    "limit": ("count no further", {"type": "integer", "minimum": 1, "maximum": MOST_COUNTED}),
    "key": (f"the key, a JSON object by column; or a parameter `{KEY_COLUMN}COLUMN` for each", {"type": "string"}),
}


def openapi_document() -> Json:
    """The document, as what `json` writes."""
    paths: Json = {
        "/v1/tables": {"get": get_of("tables", "Which tables there are, and how far each is", ref("Tables"))},
        "/v1/snapshot": {"get": _snapshot()},
        "/v1/delta": {"get": _delta()},
        "/v1/row": {"get": _row()},
        "/v1/stream": {"get": _stream()},
        "/v1/seeding": {"get": get_of("seeding", "How far tables are that are being seeded", _seeding())},
        "/healthz": {"get": get_of("alive", "Whether the server lives", _status("alive"))},
        "/readyz": {"get": get_of("ready", "Whether every table is consistent: 503 if not", _status("ready"))},
    }
    return document_of(
        "Walbus bootstrap",
        "The latest row of every key, and what changed since, without the source",
        paths,
        _schemas(),
        {"TooOld": ("A delta since then would not be complete: read a snapshot", "ErrorOfTooOld")},
    )


def _seeding() -> Json:
    return object_of({"seeding": {"type": "array", "items": {"type": "object"}}}, "seeding")


def _status(name: str) -> Json:
    return object_of({"status": {"const": name}}, "status")


def _snapshot() -> Json:
    forms: Json = {media_type: {"schema": {}} for media_type in MEDIA_TYPES.values()}
    operation = operation_of("snapshot", "Rows of tables in the order of their keys, as of one position", forms)
    operation["description"] = (
        "The first record of each table has the BEGIN flag, the last of all END; JSON has an object a line and one "
        "last `snapshot_end`. A response without it was broken off: go on behind the last key. Arrow has one table."
    )
    return _serving(operation, SNAPSHOT, "400", "404", "409")


def _delta() -> Json:
    forms: Json = {MEDIA_TYPES[form]: {"schema": {}} for form in ("binary", "json")}
    operation = operation_of("delta", "The last version of each key that changed, as of one position", forms)
    operation["description"] = (
        "One `insert` (the row as it is now) or `delete` for each key, in the order of their seqs, behind a `truncate` "
        "if the table was emptied. A response without END was broken off: go on behind the last seq."
    )
    operation["responses"]["200"]["content"]["application/json"] = {"schema": ref("Count")}
    return _serving(operation, DELTA_PARAMETERS, "400", "404", "409", "410")


def _row() -> Json:
    operation = operation_of("row", "One row, as of one position", {"application/json": {"schema": ref("Row")}})
    return _serving(operation, ROW_PARAMETERS, "400", "404", "409", headers=False)


def _stream() -> Json:
    forms: Json = {media_type: {"schema": {}} for media_type in STREAM_TYPES.values()}
    operation = operation_of("stream", "The log's changes with whole rows, from a place on", forms)
    operation["description"] = (
        "The relay's `/v1/stream` with the same parameters, positions and seqs, as far as the log is applied. Updates "
        "and deletes have the old row as `before`, new rows no `unchanged` columns, save where that cannot be known."
    )
    operation["parameters"] = [
        parameter("complete", "query", "the relay has what is not", {"const": "true"}) | {"required": True},
        *(
            parameter(name, "query", "as of the relay's stream", {"type": "string"})
            for name in STREAM_PARAMETERS
            if name != "complete"
        ),
    ]
    operation["responses"] |= {status: ref_response("Refused") for status in ("400", "409", "410")}
    return operation


def _serving(operation: Json, parameters: tuple[str, ...], *refusals: str, headers: bool = True) -> Json:
    required = () if parameters is SNAPSHOT else ("after", "table")
    operation["parameters"] = [
        parameter(name, "query", *_PARAMETERS[name]) | {"required": name in required} for name in parameters
    ]
    responses = operation["responses"]
    if headers:
        responses["200"]["headers"] = {
            "Walbus-Log-Id": {"description": "name of the log", "schema": {"type": "string"}},
            "Walbus-Oid": {"description": "of one table", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
            "Walbus-Folds-From": {"description": "place of one table's generation", "schema": ref("Position")},
            "Walbus-Stale": {"description": "it is being seeded again", "schema": {"const": "yes"}},
            "Walbus-Position": {"description": "of which all of it is the state", "schema": ref("Position")},
        }
    responses |= {status: ref_response("TooOld" if status == "410" else "Refused") for status in refusals}
    return operation


def _schemas() -> Json:
    position = ref("Position")
    place: Json = {"log_id": {"type": "string"}, "position": position}
    table: Json = {
        "table": {"type": "string"}, "oid": COUNT, "schema_id": COUNT, "generation": COUNT, "rows": COUNT,
        "state": {"enum": ["seeding", "consistent", "wrong", "refused", "broken"]}, "reason": NULLABLE,
        "folds_from": NULLABLE, "stale": NULLABLE, "stale_at": NULLABLE, "net_since": NULLABLE, "net_told": NULLABLE,
    }  # fmt: skip
    listed: Json = {
        "log_id": {"type": "string"}, "applied": position,
        "applied_seq": {"type": "integer"}, "tables": {"type": "array", "items": ref("Table")},
        "complete_since": NULLABLE,
    }  # fmt: skip
    count: Json = {
        **place, "table": {"type": "string"}, "changes_at_most": COUNT, "more": {"type": "boolean"}, "rows": COUNT,
    }  # fmt: skip
    row: Json = {
        **place, "table": {"type": "string"}, "seq": COUNT, "schema_id": COUNT, "row": {"type": "object"},
    }  # fmt: skip
    horizon: Json = {"horizon": object_of({"position": position, "seq": {"type": "integer"}}, "position", "seq")}
    return {
        "ErrorOfTooOld": object_of({**ERROR, **place, **horizon}, *ERROR),
        "Table": object_of(table, *table),
        "Tables": object_of(listed | {"scope": {"type": "array", "items": {"type": "string"}}}, *listed),
        "Count": object_of(count, *count),
        "Row": object_of(row, *row),
    }
