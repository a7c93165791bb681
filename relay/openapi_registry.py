"""The routes of the schema registry in the OpenAPI document (`walbus.relay.openapi`). No I/O."""

from __future__ import annotations

from walbus.compatibility import LEVELS
from walbus.relay.openapi_parts import Json, object_of, operation_of, parameter, ref, ref_response, text

_MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
_COUNTED: Json = {"type": "integer", "minimum": 1, "maximum": (1 << 31) - 1}
_TEXT: Json = {"type": "string"}
_SUBJECT = parameter("subject", "path", "a topic's name and -key or -value", text("[A-Za-z0-9._-]{1,255}"))
_VERSION = parameter("version", "path", "a number, or latest", text("([1-9][0-9]{0,8}|latest)"))
_ID = parameter("id", "path", "of a schema", _COUNTED)


def registry_paths() -> Json:
    """The paths."""
    texts = {"type": "array", "items": _TEXT}
    numbers = {"type": "array", "items": _COUNTED}
    listed = _get("subjects", "Names of the subjects that the token sees", texts)
    listed["parameters"] = [parameter("subjectPrefix", "query", "only those that begin so", _TEXT)]
    levels = object_of({"compatibilityLevel": {"enum": [*LEVELS]}}, "compatibilityLevel")
    modes = _one("mode", "READONLY")
    version, schema, one = "/subjects/{subject}/versions/{version}", "/schemas/ids/{id}", ref("RegisteredSchema")
    of_schema = {"type": "array", "items": object_of({"subject": _TEXT, "version": _COUNTED}, "subject", "version")}
    return {
        "/subjects": {"get": listed},
        "/subjects/{subject}": {
            "post": _sent("lookup", "Which version of a subject a schema is", one),
            "delete": _never("deleteSubject", _SUBJECT),
        },
        "/subjects/{subject}/versions": {
            "get": _get("versions", "Versions of a subject", numbers, _SUBJECT),
            "post": _sent("register", "The id of a schema that is there; others are refused", _one("id", None)),
        },
        version: {
            "get": _get("version", "One version", one, _SUBJECT, _VERSION),
            "delete": _never("deleteVersion", _SUBJECT, _VERSION),
        },
        f"{version}/schema": {"get": _get("versionText", "The schema of one version", {}, _SUBJECT, _VERSION)},
        "/compatibility/subjects/{subject}/versions": {"post": _checked("compatibleWithAll", "all versions")},
        "/compatibility/subjects/{subject}/versions/{version}": {
            "post": _checked("compatible", "one version", _VERSION)
        },
        "/schemas/types": {"get": _get("types", "Kinds of schemas", texts)},
        schema: {"get": _get("registered", "The schema with an id", _one("schema", None), _ID)},
        f"{schema}/schema": {"get": _get("registeredText", "The schema with an id, bare", {}, _ID)},
        f"{schema}/subjects": {"get": _get("subjectsOf", "Whose schema it is", texts, _ID)},
        f"{schema}/versions": {"get": _get("versionsOf", "Which versions have it", of_schema, _ID)},
        "/config": {
            "get": _get("level", "Which compatibility is checked by", levels),
            "put": _never("setLevel"),
            "delete": _never("forgetLevel"),
        },
        "/config/{subject}": {
            "get": _get("levelOf", "The same of a subject", levels, _SUBJECT),
            "put": _never("setLevelOf", _SUBJECT),
            "delete": _never("forgetLevelOf", _SUBJECT),
        },
        "/mode": {"get": _get("mode", "Whether schemas may be registered", modes), "put": _never("setMode")},
        "/mode/{subject}": {
            "get": _get("modeOf", "The same of a subject", modes, _SUBJECT),
            "put": _never("setModeOf", _SUBJECT),
            "delete": _never("forgetModeOf", _SUBJECT),
        },
    }


def registry_schemas() -> Json:
    """What they send and take."""
    registered = {"subject": _TEXT, "version": _COUNTED, "id": _COUNTED, "schema": _TEXT}
    sent = {"schema": _TEXT, "schemaType": {"enum": ["AVRO"]}}
    return {"RegisteredSchema": object_of(registered, *registered), "SentSchema": object_of(sent, "schema")}


def _one(name: str, value: str | None) -> Json:
    kind = {"id": _COUNTED, "schema": _TEXT}[name] if value is None else {"const": value}
    return object_of({name: kind}, name)


def _get(name: str, summary: str, schema: Json, *parameters: Json) -> Json:
    operation = operation_of(name, summary, {_MEDIA_TYPE: {"schema": schema}})
    if parameters:
        operation["parameters"] = list(parameters)
        operation["responses"] |= {status: ref_response("Refused") for status in ("404", "422")}
    return operation


def _sent(name: str, summary: str, schema: Json) -> Json:
    operation = _get(name, summary, schema, _SUBJECT)
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref("SentSchema")}}}
    operation["responses"] |= {status: ref_response("Refused") for status in ("408", "413")}
    return operation


def _never(name: str, *parameters: Json) -> Json:
    """What is refused whoever asks for it."""
    operation = _get(name, "Refused: the registry is read-only", {}, *parameters)
    del operation["responses"]["200"]
    operation["responses"]["422"] = ref_response("Refused")
    return operation


def _checked(name: str, against: str, *parameters: Json) -> Json:
    told = object_of(
        {"is_compatible": {"type": "boolean"}, "messages": {"type": "array", "items": _TEXT}}, "is_compatible"
    )
    operation = _sent(name, f"Whether a schema could come behind {against}", told)
    operation["parameters"] += [
        *parameters,
        parameter("level", "query", "instead of the configured one", {"enum": [*LEVELS]}),
        parameter("verbose", "query", "whether messages are wanted", {"type": "boolean"}),
    ]
    operation["responses"]["501"] = ref_response("Refused")
    return operation
