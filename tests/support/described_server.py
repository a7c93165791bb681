"""A server against its OpenAPI document: the same routes, and answers as the document says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, settings
from requests import Response
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

Document = dict[str, Any]

CHECKS: list[Callable] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]

#: What a case is tried with.
TRIES = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def check_routes(document: Document, application: web.Application) -> None:
    """The document has the application's routes, and no others."""
    routes = application.router.routes()
    served = {(route.method.lower(), route.resource.canonical) for route in routes if route.resource}
    assert served == {(method, path) for path, methods in document["paths"].items() for method in methods}


def query_parameters(document: Document, path: str) -> tuple[str, ...]:
    """The parameters of a path's query, in the document's order."""
    return tuple(one["name"] for one in document["paths"][path]["get"]["parameters"] if one["in"] == "query")


def takes(document: Document, path: str, name: str, value: str) -> bool:
    """Whether a parameter's text has the form that the document says."""
    (schema,) = (one["schema"] for one in document["paths"][path]["get"]["parameters"] if one["name"] == name)
    schemas = document["components"]["schemas"]
    forms = [schemas[one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in schema.get("anyOf", [schema])]
    return any(re.search(form["pattern"], value) is not None for form in forms if "pattern" in form)


def as_sent(document: Document) -> Document:
    """The document as it comes out of JSON."""
    return json.loads(json.dumps(document))


def operations(document: Document) -> list:
    """One for each route and method."""
    return [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]


def check_answer(case: Case, response: Response, *, may_fail: bool = False) -> None:
    """The answer is as the document says.

    Args:
        case: what was asked.
        response: what came.
        may_fail: whether a status of 5xx is what the case asked for.
    """
    case.validate_response(response, checks=CHECKS[1:] if may_fail else CHECKS)
