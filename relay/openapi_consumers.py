"""The routes of the known consumers in the OpenAPI document (`walbus.relay.openapi`). No I/O."""

from __future__ import annotations

from walbus.relay.openapi_parts import Json, get_of, object_of, parameter, ref, ref_response, text

_NAME = parameter("name", "path", "of the consumer", text("[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}"))
_LSN = "[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}"
_NULLABLE: Json = {"type": ["string", "null"]}
_FORGOTTEN = object_of({"forgotten": text(".+")}, "forgotten")
_COUNT: Json = {"type": "integer", "minimum": 0, "maximum": (1 << 53) - 1}
_TABLES: Json = {"type": "array", "maxItems": 16, "items": {"type": "string", "maxLength": 129}}
_PLACE: Json = {"anyOf": [ref("Position"), {"type": "null"}]}


def consumer_paths() -> Json:
    """The paths."""
    return {
        "/v1/consumers": {"get": get_of("consumers", "The consumers known to the relay", ref("Consumers"))},
        "/v1/consumers/{name}": {
            "get": get_of("consumer", "One consumer", ref("Consumer"), _NAME, "404"),
            "put": _report(),
            "delete": get_of(
                "forget", "Forgets a name", object_of({"forgotten": text(".+")}, "forgotten"), _NAME, "404"
            ),
        },
        "/v1/consumers/{name}/wait": {"get": _wait()},
    }


def _report() -> Json:
    told = object_of({"last_done": _PLACE}, "last_done")
    operation = get_of("report", "A consumer says where it is", told, _NAME, "400", "408", "409", "413", "429")
    content = {"application/json": {"schema": ref("ConsumerReport")}}
    return operation | {"requestBody": {"required": True, "content": content}}


def _wait() -> Json:
    operation = get_of("wait", "Waits until a consumer has got somewhere", ref("Consumer"), _NAME, "400", "404", "429")
    operation["description"] = "One of `lsn` and `position` is needed."
    operation["parameters"] += [
        parameter("lsn", "query", "everything that commits before it is to be done", text(_LSN)),
        parameter("position", "query", "everything up to it is to be done", ref("Position")),
        parameter("timeout", "query", "seconds, at most 300; default: 30", text(r"[0-9]{1,3}(\.[0-9]{1,6})?")),
    ]
    operation["responses"]["504"] = ref_response("NotThere")
    return operation


def consumer_schemas() -> Json:
    """What they send and take."""
    number: Json = {"type": "number"}
    lag = {
        "changes": _COUNT, "bytes": _COUNT, "seconds": number, "leaves_in_hours": {"type": ["number", "null"]},
        "gone": {"type": "boolean"},
    }  # fmt: skip
    consumer = {
        "name": {"type": "string"}, "phase": _NULLABLE, "last_done": _PLACE, "seq": {"type": ["integer", "null"]},
        "log_id": _NULLABLE, "whole": {"type": "boolean"}, "confirmed": {"type": "boolean"},
        "reported_at": {"type": ["number", "null"]}, "lag": {"anyOf": [object_of(lag, *lag), {"type": "null"}]},
        "sent": _PLACE, "streams": _COUNT, "first_seen": number, "last_seen": number, "address": {"type": "string"},
        "agent": {"type": "string"}, "sink": _NULLABLE, "tables": _TABLES, "unread": _TABLES, "waiting_for": _NULLABLE,
    }  # fmt: skip
    consumers = {
        "log_id": {"type": "string"}, "end": ref("Position"), "last_seq": _COUNT, "problem": _NULLABLE,
        "consumers": {"type": "array", "items": ref("Consumer")},
    }  # fmt: skip
    report = {
        "session": text("[0-9a-f]{1,32}"), "begins": {"type": "boolean"}, "log_id": text("[0-9a-f]{0,32}"),
        "phase": text("[a-z]{1,16}"), "last_done": _PLACE, "seq": _COUNT, "generation": _COUNT,
        "whole": {"type": "boolean"},
    }  # fmt: skip
    more = {
        "tables": _TABLES, "sink": {"anyOf": [text("[A-Za-z0-9_.-]{1,64}"), {"type": "null"}]},
        "waiting_for": {"type": ["string", "null"], "maxLength": 300}, "unread": _TABLES,
    }  # fmt: skip
    error = {"error": {"type": "string"}, "where": _NULLABLE, "mend": _NULLABLE}
    return {
        "Consumer": object_of(consumer | {"scope": {"type": "array", "items": {"type": "string"}}}, *consumer),
        "Consumers": object_of(consumers, *consumers),
        "ConsumerReport": object_of(report | more, *report),
        "ErrorOfWait": object_of(error | {"consumer": ref("Consumer")}, *error, "consumer"),
    }
