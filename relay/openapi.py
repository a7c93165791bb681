"""The relay's HTTP interface as an OpenAPI 3.1 document, served at `/v1/openapi.json`. No I/O.

A test compares the paths with the server's routes, and another one sends what schemathesis makes of the document to a
running server. docs/relay.md says the same in words, and what no schema can say.
"""

from __future__ import annotations

from walbus.relay.openapi_consumers import consumer_paths, consumer_schemas
from walbus.relay.openapi_groups import group_paths, group_schemas
from walbus.relay.openapi_parts import (
    COUNT,
    ERROR,
    NULLABLE,
    POSITION,
    SEQ,
    TABLE_PATTERN,
    Json,
    document_of,
    flag,
    get_of,
    list_of,
    object_of,
    operation_of,
    parameter,
    ref,
    ref_response,
    text,
)
from walbus.relay.openapi_registry import registry_paths, registry_schemas
from walbus.relay.selection import OPS
from walbus.relay.stream_query import LAST_EVENT_ID, MEDIA_TYPES


def openapi_document() -> Json:
    """The document, as what `json` writes."""
    refusals: Json = {
        "AnotherLog": ("Another log, or a position past this one's end", "ErrorOfLog"),
        "Trimmed": ("The position is no longer held: read a snapshot from `bootstrap`", "ErrorOfTrimmed"),
        "NotThere": ("A consumer did not get there in time", "ErrorOfWait"),
    }
    summary = "The ordered log of committed changes of one PostgreSQL database, to any number of readers"
    return document_of("Walbus relay", summary, _paths(), _schemas(), refusals)


def _paths() -> Json:
    schema_id = parameter("id", "path", "number of the layout", {"type": "integer", "minimum": 1})
    return {
        "/v1/stream": {"get": _stream()},
        "/v1/info": {"get": _info()},
        "/v1/schemas": {"get": get_of("schemas", "Every table layout", ref("Layouts"))},
        "/v1/schemas/{id}": {"get": get_of("schema", "One table layout", ref("Layout"), schema_id, "404")},
        **consumer_paths(),
        **group_paths(),
        **_chain(),
        **registry_paths(),
        "/healthz": {"get": get_of("alive", "Whether the server lives", flag("alive"))},
        "/readyz": {"get": get_of("ready", "Whether it can serve: 503 without a log", flag("ready"))},
    }


def _info() -> Json:
    operation = get_of("info", "What the log holds, and what the rooms say of themselves", ref("Info"), None, "400")
    operation["parameters"] = [
        parameter("after", "query", "tell how much is `behind` this position too", ref("Position")),
        parameter("seq", "query", "the last seq at `after`: makes `behind` more exact", text(SEQ)),
    ]
    return operation


def _chain() -> Json:
    """The routes by which another relay copies the log; docs/chaining.md."""
    name = parameter("name", "query", "of the relay that copies", text("[A-Za-z0-9_.-]{0,64}"))
    catalog = operation_of("catalog", "What capture remembers of the source's catalog", {"application/json": {}})
    catalog["responses"]["204"] = {"description": "It remembers nothing"}
    report = get_of(
        "standby", "Tells how far the copy of a required standby is durable; answers how far the log is", ref("Tip"),
        parameter("name", "path", "of the standby", {"type": "string", "minLength": 1}), "400", "404", "408", "409",
        "413",
    )  # fmt: skip
    report["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref("Tip")}}}
    stream = _stream() | {"operationId": "copy", "summary": "As /v1/stream; to a required standby, up to the true end"}
    return {
        "/v1/chain": {"get": get_of("origin", "What a copy of the log begins with", {"type": "object"}, name)},
        "/v1/chain/stream": {"get": stream},
        "/v1/chain/catalog": {"get": catalog},
        "/v1/chain/standbys/{name}": {"put": report},
    }


def _stream() -> Json:
    forms: Json = {media_type: {"schema": {}} for media_type in MEDIA_TYPES.values()}
    operation = operation_of("stream", "Changes from a place on, for ever or up to another place", forms)
    operation["description"] = (
        "Whole transactions in commit order. Binary records are the log's own (docs/log-format.md); JSON has an object "
        "a line; server-sent events carry the same lines. A stream that is broken off ends with a broken connection, "
        "so a clean end is the end that was asked for."
    )
    operation["parameters"] = _stream_parameters()
    operation["responses"] = {
        "200": operation["responses"]["200"] | {"headers": _stream_headers()},
        "400": ref_response("Refused"),
        "409": ref_response("AnotherLog"),
        "410": ref_response("Trimmed"),
        **{status: found for status, found in operation["responses"].items() if status != "200"},
    }
    return operation


def _stream_parameters() -> list[Json]:
    ops = ",".join(OPS)
    place = {"anyOf": [ref("Place"), ref("Time")]}
    texts: list[tuple[str, str, Json]] = [
        (
            "tables",
            "patterns `schema.table`, either of which may be `*`; may be repeated",
            text(list_of(TABLE_PATTERN)),
        ),
        ("ops", f"operations that pass, of {ops}", text(list_of(f"({'|'.join(OPS)})"))),
        ("columns", "columns of tables, as in `public.orders(id,total)`", text(list_of(TABLE_PATTERN + r"\([^()]+\)"))),
        ("partition", "`i/n`: the part i, from 0, of n parts of all keys", text("[0-9]{1,5}/[0-9]{1,5}")),
        ("after", "go on behind a change that was done; wins over `from`", ref("Position")),
        ("from", "begin with; default: latest when following, earliest otherwise", place),
        ("until", "end behind the transaction that holds it, or before the first one of that time", place),
        ("follow", "wait for more at the end; default: true without `until`", {"enum": ["true", "false"]}),
        ("name", "of the consumer, for logs and gauges", text("[A-Za-z0-9_.-]{0,64}")),
        ("log_id", "refuse any other log", {"type": "string"}),
        ("format", "wins over the Accept header", {"enum": list(MEDIA_TYPES)}),
        ("complete", "whole rows are the bootstrap server's to give, at the same path", {"const": "false"}),
    ]
    last_event = parameter(
        LAST_EVENT_ID, "header", "id of the last server-sent event: wins over `after` and `from`",
        text(f"{POSITION}(@[0-9a-f]*)?"),
    )  # fmt: skip
    return [*(parameter(name, "query", what, schema) for name, what, schema in texts), last_event]


def _stream_headers() -> Json:
    return {
        "Walbus-Log-Id": {"description": "name of the log", "schema": {"type": "string"}},
        "Walbus-Position": {"description": "the stream begins behind it", "schema": ref("Position")},
        "Content-Encoding": {"description": "zstd or gzip, if the client takes it", "schema": {"type": "string"}},
    }


def _schemas() -> Json:
    position, log_id = ref("Position"), {"type": "string"}
    log = {
        "log_id": log_id, "version": {"type": "string"}, "trimmed": position, "end": position,
        "last_seq": {"type": "integer"}, "commit_time": {"type": "integer"}, "bootstrap": NULLABLE,
    }  # fmt: skip
    more = {
        "scope": {"type": "array", "items": {"type": "string"}},
        "behind": object_of({"changes": COUNT, "bytes": COUNT}, "changes", "bytes"),
    }
    return {
        "Place": text(f"(earliest|latest|seq:{SEQ}|{POSITION})"),
        "Time": {"type": "string", "format": "date-time"},
        "ErrorOfLog": object_of({**ERROR, "log_id": log_id, "end": position}, *ERROR, "log_id", "end"),
        "ErrorOfTrimmed": object_of(
            {**ERROR, "log_id": log_id, "trimmed": position, "bootstrap": NULLABLE},
            *ERROR, "log_id", "trimmed", "bootstrap",
        ),
        "Info": object_of(log | more, *log),
        "Tip": object_of({"end": position, "end_lsn": {"type": "string"}, "last_seq": {"type": "integer"}}, "end"),
        "Layout": object_of({"schema": ref("Table"), "avro": {"type": "object"}}, "schema", "avro"),
        "Layouts": object_of({"schemas": {"type": "array", "items": ref("Layout")}}, "schemas"),
        **consumer_schemas(),
        **group_schemas(),
        **registry_schemas(),
        "Table": {"type": "object", "description": "docs/log-format.md has its members"},
    }  # fmt: skip
