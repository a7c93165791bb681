"""The OpenAPI document against the server that it describes: the same routes, and what it says of their answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from schemathesis import Case

from support.described_server import TRIES, as_sent, check_answer, check_routes, operations, query_parameters, takes
from support.guarded_relay import GuardedRelay
from support.relay_log import table_schema
from support.relay_server import Relay, rows_of
from support.waiting import wait_for
from walbus.config import RelayConfig
from walbus.relay.openapi import openapi_document
from walbus.relay.server import RelayServer
from walbus.relay.stream_query import PARAMETERS

pytestmark = pytest.mark.one_version

DOCUMENT = openapi_document()


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    made = Relay(tmp_path_factory.mktemp("relay"))
    made.writer = made.engine.open_writer()
    for i in range(1, 21):
        schema, _ = made.writer.schemas.register(table_schema(("orders", "items")[i % 2], 1 + i % 2))
        made.writer.append(rows_of(schema, i * 16, range(i, i + 3)))
    made.writer.sync()
    wait_for(lambda: made.get("/readyz")[0] == 200, what="the server to find the log")
    yield made
    made.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedRelay]:
    tokens = {"narrow": ["public.orders"], "all": ["*.*"], "metrics": [], "admin": []}
    with GuardedRelay(tmp_path_factory.mktemp("guarded"), tokens, required_standbys=("b",)) as made:
        yield made


def without_waiting(case: Case) -> None:
    """Asks for an answer that has an end, and comes at once."""
    if case.path in {"/v1/stream", "/v1/chain/stream"}:
        case.query = {**(case.query or {}), "follow": "false"}
    if case.path.endswith("/wait"):
        case.query = {**(case.query or {}), "timeout": "0"}


def test_the_document_has_the_servers_routes_and_no_others(tmp_path: Path):
    check_routes(DOCUMENT, RelayServer(tmp_path, RelayConfig(), None, tmp_path, {}).application())


def test_the_document_has_the_streams_parameters_and_no_others():
    assert query_parameters(DOCUMENT, "/v1/stream") == PARAMETERS


def test_the_document_takes_the_seqs_that_there_are():
    seq = time.time_ns() // 1000  # where a log of today begins to count
    assert takes(DOCUMENT, "/v1/info", "seq", str(seq)) and takes(DOCUMENT, "/v1/stream", "from", f"seq:{seq}")


@pytest.mark.parametrize("seconds", ["0", "0.5", "30", "300"])
def test_the_document_takes_the_timeouts_that_the_server_takes(seconds):
    assert takes(DOCUMENT, "/v1/consumers/{name}/wait", "timeout", seconds)


def test_the_server_serves_the_document(relay):
    assert relay.json("/v1/openapi.json") == (200, as_sent(DOCUMENT))


@pytest.mark.parametrize("operation", operations(DOCUMENT), ids=lambda operation: operation.label)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_the_server_answers_as_the_document_says(relay, operation):
    @TRIES
    @given(case=operation.as_strategy())
    def answers(case: Case) -> None:
        without_waiting(case)  # streams without an end: below
        response = case.call(base_url=f"http://127.0.0.1:{relay.port}", timeout=20)
        late = case.path.endswith("/wait") and response.status_code == 504  # what the client asked for, and no failure
        check_answer(case, response, may_fail=late)

    answers()


@pytest.mark.parametrize("operation", operations(DOCUMENT), ids=lambda operation: operation.label)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_a_server_with_tokens_and_a_required_standby_answers_as_the_document_says(guarded, operation):
    unknown = "Bearer wbt_" + "A" * 43

    @settings(TRIES, max_examples=8)
    @given(case=operation.as_strategy())
    def answers(case: Case) -> None:
        without_waiting(case)
        if "standbys" in case.path:
            case.path_parameters = {"name": "b"}
        for token in ("", unknown, *(f"Bearer {one}" for one in guarded.tokens.values())):
            case.headers = {**(case.headers or {}), "Authorization": token} if token else case.headers
            response = case.call(base_url=f"http://127.0.0.1:{guarded.port}", timeout=20)
            late = case.path.endswith("/wait") and response.status_code == 504
            check_answer(case, response, may_fail=late)
            known = token not in {"", unknown} or (not token and operation.path in {"/healthz", "/readyz"})
            assert (response.status_code != 401) == known, (token, response.status_code)

    answers()


class FirstBlock(HTTPAdapter):
    """Hangs up once something has been told: an answer without an end is never whole."""

    def send(self, request: requests.PreparedRequest, **how: Any) -> requests.Response:  # type: ignore[override]
        response = super().send(request, **{**how, "stream": True})
        response._content = response.raw.read1(1 << 16, decode_content=True)
        response.close()
        return response


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/chain/stream"])
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_a_stream_without_an_end_begins_as_the_document_says(relay, path, monkeypatch):
    for module in ("feed", "streams"):
        monkeypatch.setattr(f"walbus.relay.{module}.HEARTBEAT_SECONDS", 0.05)
    operation = next(one for one in operations(DOCUMENT) if one.path == path)
    begun = []

    @TRIES
    @given(case=operation.as_strategy(), open_end=st.booleans())
    def answers(case: Case, open_end: bool) -> None:
        query = {name: value for name, value in (case.query or {}).items() if name != "until" or not open_end}
        case.query = {**query, "follow": "true"}
        with requests.Session() as session:
            session.mount("http://", FirstBlock())
            response = case.call(base_url=f"http://127.0.0.1:{relay.port}", session=session, timeout=20)
        begun.append(response.status_code)
        check_answer(case, response)

    answers()
    assert begun.count(200) >= 5
    wait_for(lambda: relay.json("/v1/info")[1]["streams"] == [], what="the server to see that all have hung up")


@pytest.mark.parametrize("path", ["/v1/stream?log_id=0", "/v1/stream?from=x", "/nothing"])
def test_every_refusal_has_the_three_members_of_an_error(relay, path):
    status, body = relay.json(path)
    assert status >= 400
    assert set(DOCUMENT["components"]["schemas"]["Error"]["required"]) <= set(body)
