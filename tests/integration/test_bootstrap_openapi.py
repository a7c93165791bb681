"""The bootstrap's OpenAPI document against its server: the same routes, and what it says of their answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import cast

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from support.model_source import ITEMS, ModelSource, delete, insert, items_layout
from support.serving_bootstrap import ServingBootstrap
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.openapi import openapi_document
from walbus.bootstrap.queries import DELTA_PARAMETERS, ROW_PARAMETERS, SNAPSHOT_PARAMETERS
from walbus.bootstrap.report import Report
from walbus.bootstrap.server import BootstrapServer

pytestmark = pytest.mark.one_version

DOCUMENT = openapi_document()
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[ServingBootstrap]:
    source = ModelSource(layouts=(items_layout(), items_layout("others", oid=16500)))
    with ServingBootstrap(source) as serving:
        source.commit([insert(ITEMS, n) for n in range(20)])
        source.commit([delete(ITEMS, 3)])
        serving.follow()
        yield serving


def test_the_document_has_the_servers_routes_and_no_others() -> None:
    router = BootstrapServer(cast(Ledger, None), cast(Report, None)).application().router
    routes = {(route.method.lower(), route.resource.canonical) for route in router.routes() if route.resource}
    assert routes == {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods}


@pytest.mark.parametrize(
    ("path", "parameters"),
    [("/v1/snapshot", SNAPSHOT_PARAMETERS), ("/v1/delta", DELTA_PARAMETERS), ("/v1/row", ROW_PARAMETERS)],
)
def test_the_document_has_the_routes_parameters_and_no_others(path: str, parameters: tuple[str, ...]) -> None:
    described = DOCUMENT["paths"][path]["get"]["parameters"]
    assert tuple(one["name"] for one in described) == parameters


def test_the_server_serves_the_document(bootstrap: ServingBootstrap) -> None:
    assert bootstrap.json("/v1/openapi.json") == (200, json.loads(json.dumps(DOCUMENT)))


def operations() -> list:
    return [found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()]


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.label)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_the_server_answers_as_the_document_says(bootstrap: ServingBootstrap, operation) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def answers(case: Case) -> None:
        check(case, bootstrap)
        if case.query and "table" in case.query:
            case.query = {**case.query, "table": ITEMS}
            check(case, bootstrap)

    answers()


def check(case: Case, bootstrap: ServingBootstrap) -> None:
    response = case.call(base_url=bootstrap.url, timeout=20)
    later = response.status_code == 503 and "retry-after" in map(str.lower, response.headers)  # a place still to come
    case.validate_response(response, checks=CHECKS[1:] if later else CHECKS)
