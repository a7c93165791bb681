"""The bootstrap's OpenAPI document against its server: the same routes, and what it says of their answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given
from schemathesis import Case

from support.described_server import TRIES, as_sent, check_answer, check_routes, operations, query_parameters, takes
from support.model_source import ITEMS, ModelSource, delete, insert, items_layout
from support.serving_bootstrap import ServingBootstrap
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.openapi import openapi_document
from walbus.bootstrap.queries import DELTA_PARAMETERS, ROW_PARAMETERS, SNAPSHOT_PARAMETERS
from walbus.bootstrap.report import Report
from walbus.bootstrap.server import BootstrapServer

pytestmark = pytest.mark.one_version

DOCUMENT = openapi_document()


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[ServingBootstrap]:
    source = ModelSource(layouts=(items_layout(), items_layout("others", oid=16500)))
    with ServingBootstrap(source) as serving:
        source.commit([insert(ITEMS, n) for n in range(20)])
        source.commit([delete(ITEMS, 3)])
        serving.follow()
        yield serving


def test_the_document_has_the_servers_routes_and_no_others() -> None:
    check_routes(DOCUMENT, BootstrapServer(cast(Ledger, None), cast(Report, None)).application())


@pytest.mark.parametrize(
    ("path", "parameters"),
    [("/v1/snapshot", SNAPSHOT_PARAMETERS), ("/v1/delta", DELTA_PARAMETERS), ("/v1/row", ROW_PARAMETERS)],
)
def test_the_document_has_the_routes_parameters_and_no_others(path: str, parameters: tuple[str, ...]) -> None:
    assert query_parameters(DOCUMENT, path) == parameters


def test_the_document_takes_the_seqs_that_there_are() -> None:
    seq = time.time_ns() // 1000  # where a log of today begins to count
    assert takes(DOCUMENT, "/v1/delta", "seq", str(seq)) and takes(DOCUMENT, "/v1/delta", "after", f"seq:{seq}")


def test_the_server_serves_the_document(bootstrap: ServingBootstrap) -> None:
    assert bootstrap.json("/v1/openapi.json") == (200, as_sent(DOCUMENT))


@pytest.mark.parametrize("operation", operations(DOCUMENT), ids=lambda operation: operation.label)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_the_server_answers_as_the_document_says(bootstrap: ServingBootstrap, operation) -> None:
    @TRIES
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
    check_answer(case, response, may_fail=later)
