"""What OpenAPI documents are made of. No I/O."""

from __future__ import annotations

from typing import Any, Final

from walbus import __version__

Json = dict[str, Any]

POSITION: Final = r"[0-9]{1,10}:[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}:[0-9]{1,10}"
TABLE_PATTERN: Final = r"[^.,()]+\.[^,()]+"
SEQ: Final = r"[0-9]{1,16}"
NULLABLE: Final[Json] = {"type": ["string", "null"]}
COUNT: Final[Json] = {"type": "integer", "minimum": 0}
#: What every refusal has.
ERROR: Final[Json] = {"error": {"type": "string"}, "where": NULLABLE, "mend": NULLABLE}


def document_of(title: str, summary: str, paths: Json, schemas: Json, refusals: Json) -> Json:
    """A document, as what `json` writes.

    Args:
        title: of the server.
        summary: what it serves.
        paths: its own; this document and the figures are added.
        schemas: its own; `Position` and `Error` are added.
        refusals: its own responses, by name: what each means, and the schema of its body.
    """
    shared: Json = {
        "/v1/openapi.json": {"get": get_of("openapi", "This document", {"type": "object"})},
        "/metrics": {"get": operation_of("metrics", "Figures for Prometheus", {"text/plain": {}})},
    }
    everywhere = {
        "Position": text(POSITION) | {"examples": ["1:16/B374D848:4"]},
        "Error": object_of(ERROR, *ERROR),
    }
    retry = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    responses: Json = {
        "Refused": _refusal("What is wrong, where, and how to mend it", "Error"),
        **{name: _refusal(what, schema) for name, (what, schema) in refusals.items()},
        "NotReady": _refusal("Not now", "Error") | {"headers": retry},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": __version__,
            "summary": summary,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"token": []}],
        "paths": paths | shared,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": everywhere | schemas,
            "responses": responses,
        },
    }


def _refusal(what: str, schema: str) -> Json:
    return {"description": what, "content": {"application/json": {"schema": ref(schema)}}}


def get_of(name: str, summary: str, schema: Json, parameter: Json | None = None, *refusals: str) -> Json:
    """An operation that answers with a JSON document."""
    operation = operation_of(name, summary, {"application/json": {"schema": schema}})
    if parameter is not None:
        operation["parameters"] = [parameter]
    operation["responses"].update({status: ref_response("Refused") for status in refusals})
    return operation


def operation_of(name: str, summary: str, content: Json) -> Json:
    """An operation, and the refusals that each has."""
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": content},
            "401": ref_response("Refused"),
            "403": ref_response("Refused"),
            "503": ref_response("NotReady"),
            "default": ref_response("Refused"),
        },
    }


def parameter(name: str, where: str, what: str, schema: Json) -> Json:
    """A parameter of an operation; one of the path is required."""
    return {"name": name, "in": where, "required": where == "path", "description": what, "schema": schema}


def text(pattern: str) -> Json:
    """A text that matches a pattern as a whole."""
    return {"type": "string", "pattern": f"^{pattern}$"}


def list_of(pattern: str) -> str:
    """The pattern of a list, separated by commas."""
    return f"{pattern}(,{pattern})*"


def flag(name: str) -> Json:
    """An object that says one thing, which is so."""
    return object_of({name: {"const": True}}, name)


def object_of(properties: Json, *required: str) -> Json:
    """An object with members, some of which are always there."""
    return {"type": "object", "properties": properties, "required": list(required)}


def ref(schema: str) -> Json:
    """A schema of the document."""
    return {"$ref": f"#/components/schemas/{schema}"}


def ref_response(response: str) -> Json:
    """A response of the document."""
    return {"$ref": f"#/components/responses/{response}"}
