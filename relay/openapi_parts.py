"""What OpenAPI documents are made of. No I/O."""

from __future__ import annotations

from typing import Any, Final

Json = dict[str, Any]

POSITION: Final = r"[0-9]{1,10}:[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}:[0-9]{1,10}"
TABLE_PATTERN: Final = r"[^.,()]+\.[^,()]+"


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
