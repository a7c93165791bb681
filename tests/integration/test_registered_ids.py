"""Ids of schemas from a registry that is not the relay: Apicurio, and a guarded relay in its place."""

from __future__ import annotations

import http.server
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs

from support.apicurio_server import ApicurioServer
from support.certificates import Authority
from support.guarded_relay import GuardedRelay
from support.relay_log import schema_piece, table_schema
from walbus.config import SchemaRegistryConfig
from walbus.consumers.registered_ids import RegisteredIds
from walbus.errors import SinkRefused, SinkUnavailable
from walbus.schema import TableSchema
from walbus.topics import TopicNames
from walbus.topics.catalog import text_of
from walbus.topics.forms import key_form, row_form

pytestmark = pytest.mark.one_version


def numbered(number: int, *columns: str, table: str = "orders") -> TableSchema:
    """Layout `number` of a table: a key and these columns, all of int4."""
    return replace(table_schema(table, 1, ("id", *columns)), id=number)


@contextmanager
def ids_of(prefix: str, url: str, **keys: Any) -> Iterator[RegisteredIds]:
    with closing(RegisteredIds(TopicNames(prefix), SchemaRegistryConfig(url=url, **keys))) as made:
        yield made


def test_schemas_are_registered_under_their_topics_and_ids_are_the_registrys(apicurio: ApicurioServer):
    first, second, rekeyed = numbered(1), numbered(2, "total"), numbered(3, "total", "note")
    with ids_of("shop", apicurio.url) as ids:
        rows, keys = [ids.rows(one) for one in (first, second, rekeyed)], [ids.keys(one) for one in (first, rekeyed)]
        ends = ids.ends
    assert len(set(rows)) == 3 and len(set(keys)) == 1
    with SchemaRegistryClient({"url": apicurio.url}) as client:
        mine = [name for name in client.get_subjects() if name.startswith("shop.")]
        assert sorted(mine) == [
            "shop.public.orders-key", "shop.public.orders-value", "shop.transactions-key", "shop.transactions-value",
        ]  # fmt: skip
        assert client.get_versions("shop.public.orders-value") == [1, 2, 3]
        assert client.get_schema(rows[1]).schema_str == text_of(row_form(second))
        assert client.get_schema(keys[0]).schema_str == text_of(key_form(first))
        assert client.get_latest_version("shop.transactions-value").schema_id == ends[1]
    with ids_of("shop", apicurio.url) as again:
        assert [again.rows(one) for one in (first, second, rekeyed)] == rows


def test_a_schema_that_the_registry_does_not_let_follow_is_refused(apicurio: ApicurioServer):
    subject = "strict.public.orders-value"
    with SchemaRegistryClient({"url": apicurio.url}) as client, ids_of("strict", apicurio.url) as ids:
        ids.rows(numbered(1, "total"))
        client.set_compatibility(subject, "FULL")
        assert ids.rows(numbered(2, "total", "note")) > 0  # a column more goes together with what was
        key, total = numbered(3, "total").columns
        retyped = replace(numbered(3), columns=(key, replace(total, type_oid=16, type_name="bool")))
        with pytest.raises(SinkRefused) as refused:
            ids.rows(retyped)
        assert "table public.orders, layout 3" in refused.value.what
        assert "version 2 of its subject under compatibility FULL" in refused.value.what
        assert refused.value.where == f"subject {subject} at {apicurio.url}"
        assert "compatibility" in str(refused.value.mend)
        assert client.get_versions(subject) == [1, 2]
        client.set_compatibility(subject, "NONE")
        assert ids.rows(retyped) > 0


def test_a_layout_of_another_log_with_the_number_of_one_before_has_an_id_of_its_own(apicurio: ApicurioServer):
    with ids_of("again", apicurio.url) as ids:
        first, other = ids.rows(numbered(1, "total")), ids.rows(numbered(1, "note"))
        assert first != other
        assert ids.rows(numbered(1, "total")) == first


def test_a_registry_that_is_away_is_told_once_and_asked_again(apicurio: ApicurioServer):
    with ids_of("away", apicurio.url) as ids, capture_logs() as said:
        ids.check()
        apicurio.stop()
        try:
            for _ in range(3):
                with pytest.raises(SinkUnavailable, match="cannot be asked"):
                    ids.rows(numbered(1))
        finally:
            apicurio.start()
        assert ids.rows(numbered(1)) > 0
    assert [line["event"] for line in said] == ["schema_registry_is_away", "schema_registry_is_back"]


def test_a_registry_behind_tls_and_a_token(tmp_path: Path):
    authority = Authority(tmp_path)
    keys = authority.server("localhost")
    with GuardedRelay(tmp_path, {"topics": ["*.*"]}, tls=authority.believed(), **keys) as relay:
        url, layout = f"https://localhost:{relay.port}", relay.writer.schemas.get(1)
        relay.writer.append(schema_piece(0x10_000, 0, layout))  # only then the relay tells its schema
        relay.writer.sync()
        token = SecretStr(relay.tokens["topics"])
        with ids_of("walbus", url, ca_file=authority.pem, token=token) as ids:
            ids.check()
            assert (ids.rows(layout), ids.keys(layout)) == (8, 9)
            with pytest.raises(SinkRefused, match="read-only"):
                ids.rows(numbered(77, "nothing", table="others"))
        with ids_of("walbus", url, ca_file=authority.pem) as nobody, pytest.raises(SinkRefused, match="token"):
            nobody.rows(layout)
        with ids_of("walbus", url, token=token) as stranger, pytest.raises(SinkUnavailable, match="authority"):
            stranger.check()


def test_user_and_password_are_shown(tmp_path: Path):
    asked = []

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, b64decode(self.headers.get("Authorization", "").partition(" ")[2])))
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = (200, b'{"id": 7}') if asked[-1][1] == b"walbus:secret" else (401, b"no")
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/api/"
        with ids_of("walbus", url, user="walbus", password="secret") as ids:
            assert ids.rows(numbered(1)) == 7
        with ids_of("walbus", url, user="walbus", password="wrong") as ids, pytest.raises(SinkRefused, match="401"):
            ids.rows(numbered(1))
        server.shutdown()
        thread.join()
    assert asked[0] == ("/api/subjects/walbus.public.orders-value/versions", b"walbus:secret")


@pytest.mark.parametrize(
    "keys", [{"url": "registry:8081"}, {"url": "http://u:p@registry"}, {"url": "http://r", "user": "u", "token": "t"}]
)
def test_a_section_that_cannot_be_is_refused(keys: dict[str, str]):
    with pytest.raises(ValidationError):
        SchemaRegistryConfig(**keys)
