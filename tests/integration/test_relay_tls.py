"""TLS of the servers and of the clients: what is believed, what is refused and how that is told, and renewal."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

import walbus
from support.certificates import Authority
from support.descriptors import no_descriptors
from support.guarded_relay import GuardedRelay, listened, new_token
from support.relay_log import transaction
from support.waiting import wait_for
from support.walbus_command import walbus as run
from walbus.config import RelayConfig
from walbus.consumers.transport import HttpPeer, RelayPeer
from walbus.credentials import Credentials, credentials_from_environment
from walbus.errors import ConfigError, RelayUnavailable, RequestRefused
from walbus.relay import serve_relay
from walbus.relay.delivery import Delivery
from walbus.relay.feed import Feed
from walbus.relay.outlet import Outlet
from walbus.relay.tls import CertificateFiles, ServerTls

pytestmark = pytest.mark.one_version

TOKENS = {"all": ["*.*"], "narrow": ["public.orders"]}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def relay(tmp_path: Path, authority: Authority) -> Iterator[GuardedRelay]:
    with GuardedRelay(tmp_path, TOKENS, tls=authority.believed(), **authority.server("localhost")) as made:
        yield made


def start(tmp_path: Path, **keys: Path) -> ConfigError:
    """The error of a server that does not start."""
    with pytest.raises(ConfigError) as failure:
        serve_relay(
            tmp_path, RelayConfig(listen="127.0.0.1:0", **keys), bootstrap_url=None, status_dir=tmp_path,
            stop=threading.Event(),
        )  # fmt: skip
    return failure.value


def peer(relay: GuardedRelay, host: str = "localhost", scheme: str = "https", **credentials: object) -> RelayPeer:
    return RelayPeer(HttpPeer(f"{scheme}://{host}:{relay.port}", Credentials(**credentials)))


def test_a_client_with_token_and_authority_reads(relay, authority):
    reader = peer(relay, token=SecretStr(relay.tokens["all"]), ca_file=authority.pem)
    assert reader.info().log.end.commit_lsn == 60 * 16
    stream = reader.stream(reader.info().log.trimmed, reader.info().log.log_id, ("*.*",), "reader")
    seen: list[int] = []
    wait_for(lambda: seen.extend(h.commit_lsn for h, _ in stream.records(1)) or 960 in seen, what="the records")
    stream.close()
    reader.close()


def test_tls_below_1_2_is_refused(relay, authority):
    old = authority.believed()
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", relay.port), timeout=10) as plain, pytest.raises(OSError):
        old.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize(
    ("case", "said", "mend"),
    [
        ("stranger", "authority is not known here", "ca_file"),
        ("other name", "for another name", "the name that it is for"),
        ("other address", "for another address", "the name that it is for"),
        ("expired", "has expired", "renewed"),
        ("plain server", "speaks no TLS", "http://"),
        ("plain client", "no answer", "https://"),
    ],
)
def test_what_is_wrong_with_a_connection_is_told_with_what_to_do(tmp_path, authority, monkeypatch, case, said, mend):
    believed = Authority(tmp_path) if case == "stranger" else authority
    names = {"other name": "relay.example", "other address": "127.0.0.9"}
    keys = {} if case == "plain server" else authority.server(names.get(case, "localhost"))
    if case == "expired":  # it ran on when its certificate ended
        keys = authority.server("localhost", ends_in_days=-1)
        monkeypatch.setattr("walbus.relay.tls.valid_until", lambda _: 1e12)
    address = "127.0.0.1" if case == "other address" else "localhost"
    monkeypatch.setattr(GuardedRelay, "get", lambda *_: (200, b""))  # no client of the helper's would get through
    with GuardedRelay(tmp_path, TOKENS, **keys) as relay:
        client = peer(
            relay, address, "http" if case == "plain client" else "https",
            token=SecretStr(relay.tokens["all"]), ca_file=believed.pem,
        )  # fmt: skip
        with pytest.raises(RelayUnavailable) as failure:
            client.info()
        client.close()
        assert said in failure.value.what
        assert mend in failure.value.mend
        assert relay.tokens["all"] not in str(failure.value)


def test_a_token_that_is_missing_unknown_or_narrow_is_told_with_what_to_do(relay, authority):
    for token, status, said in [(None, 401, "needed"), (new_token(), 401, "not known"), ("narrow", 403, "reach")]:
        secret = relay.tokens.get(token or "", token)
        reader = peer(relay, token=SecretStr(secret) if secret else None, ca_file=authority.pem)
        with pytest.raises(RequestRefused, match=said) as failure:
            reader.stream(reader.info().log.end, "x", ("*.*",), "r")
        assert failure.value.status == status
        assert failure.value.mend
        reader.close()


def test_the_system_does_not_believe_our_authority(relay):
    reader = peer(relay, token=SecretStr(relay.tokens["all"]))
    with pytest.raises(RelayUnavailable, match="authority"):
        reader.info()
    reader.close()


def test_a_server_that_asks_for_certificates_lets_no_other_in(tmp_path, authority):
    theirs = authority.server("a-client")
    keys = {**authority.server("localhost"), "tls_client_ca": authority.pem}
    shown = authority.believed()
    shown.load_cert_chain(theirs["tls_cert"], theirs["tls_key"])
    with GuardedRelay(tmp_path, TOKENS, tls=shown, **keys) as relay:
        token = SecretStr(relay.tokens["all"])
        ours = peer(
            relay, token=token, ca_file=authority.pem, cert=theirs["tls_cert"], key=theirs["tls_key"]
        )  # fmt: skip
        assert ours.info().log.log_id
        ours.close()
        stranger = peer(relay, token=token, ca_file=authority.pem)
        with pytest.raises(RelayUnavailable, match="asks for a certificate of yours"):
            stranger.info()
        stranger.close()


def test_a_renewed_certificate_is_served_without_dropping_a_stream(tmp_path, relay, authority):
    keys = RelayConfig.model_validate(relay._config).model_dump()
    connection = relay.connection()
    connection.request(
        "GET", "/v1/stream?from=earliest", headers={"Authorization": f"Bearer {relay.tokens['all']}"}
    )  # fmt: skip
    stream = connection.getresponse()
    before = served(relay, authority)
    renewed = authority.server("localhost", ends_in_days=500)
    with listened() as events:
        renewed["tls_cert"].replace(keys["tls_cert"])  # between the two, key and certificate do not fit
        wait_for(lambda: [e for e in events if e["event"] == "tls_kept"], what="the server to keep the old one")
        assert served(relay, authority) == before
        renewed["tls_key"].replace(keys["tls_key"])
        wait_for(lambda: [e for e in events if e["event"] == "tls_reloaded"], what="the server to take the new one")
        assert [e["event"] for e in events].count("tls_kept") == 1
    assert served(relay, authority) != before
    relay.append()
    heard = len(stream.read1(1 << 20))
    wait_for(lambda: len(stream.read1(1 << 20)) + heard > 0, what="the stream to go on")
    connection.close()


def served(relay: GuardedRelay, authority: Authority) -> bytes:
    with (
        socket.create_connection(("localhost", relay.port), timeout=10) as plain,
        authority.believed().wrap_socket(plain, server_hostname="localhost") as client,
    ):
        shown = client.getpeercert(binary_form=True)
        assert shown is not None
        return shown


def test_files_that_could_not_be_read_for_want_of_descriptors_are_read_later(tmp_path, authority):
    files, renewed = authority.server("localhost"), authority.server("localhost")
    tls = ServerTls(CertificateFiles(files["tls_cert"], files["tls_key"], None, "relay"), time.time)
    before = tls.context
    for kind, path in renewed.items():
        path.replace(files[kind])
    with listened() as events:
        with no_descriptors():
            for _ in range(3):
                tls.refresh()
        assert [event["event"] for event in events] == ["tls_kept"]
        assert tls.context is before
        tls.refresh()
    assert tls.context is not before


def test_a_wrong_key_is_told_at_the_start(tmp_path, authority):
    one, other = authority.server("localhost"), authority.server("localhost")
    error = start(tmp_path, tls_cert=one["tls_cert"], tls_key=other["tls_key"])
    assert "not that of the certificate" in error.what
    assert "relay.tls_key" in error.where


@pytest.mark.parametrize("broken", ["tls_cert", "tls_key"])
@pytest.mark.parametrize("how", ["missing", "garbage", "swapped", "empty"])
def test_files_that_cannot_be_used_are_told_at_the_start(tmp_path, authority, broken, how):
    keys = authority.server("localhost")
    other = keys["tls_key" if broken == "tls_cert" else "tls_cert"].read_bytes()
    keys[broken].unlink()
    if how != "missing":
        keys[broken].write_bytes({"garbage": b"\xff\x00 no PEM", "swapped": other, "empty": b""}[how])
    assert f"relay.{broken}" in (start(tmp_path, **keys).where or "")


def test_an_encrypted_key_asks_nobody_for_its_password(tmp_path, authority):
    keys = authority.server("localhost")
    plain = keys["tls_key"].with_suffix(".plain")
    shutil.move(keys["tls_key"], plain)
    subprocess.run(
        ["openssl", "pkey", "-in", plain, "-aes256", "-passout", "pass:secret", "-out", keys["tls_key"]], check=True
    )
    error = start(tmp_path, **keys)
    assert "encrypted" in error.what
    assert error.mend


def test_an_expired_certificate_is_told_at_the_start(tmp_path, authority):
    assert "expired on" in start(tmp_path, **authority.server("localhost", ends_in_days=-1)).what


def test_one_that_is_about_to_expire_is_told_ahead(tmp_path, authority):
    with (
        listened() as events,
        GuardedRelay(tmp_path, TOKENS, tls=authority.believed(), **authority.server("localhost", ends_in_days=10)),
    ):
        assert [e["level"] for e in events if e["event"] == "tls_certificate_expires"] == ["warning"]


def test_the_token_goes_to_no_other_host(monkeypatch):
    asked: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.host, request.headers.get("Authorization")))
        return httpx.Response(307, headers={"Location": "http://evil.example/v1/info"})

    real = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **keys: real(**{**keys, "transport": httpx.MockTransport(answer)}))
    reader = RelayPeer(HttpPeer("http://127.0.0.1:1", Credentials(token=SecretStr("wbt_x"))))
    with pytest.raises(RequestRefused, match="307"):
        reader.info()
    assert asked == [("127.0.0.1", "Bearer wbt_x")]


def test_a_relay_under_tls_cannot_send_the_token_on_in_the_clear():
    reader = RelayPeer(HttpPeer("https://relay.example", Credentials(token=SecretStr("wbt_x"))))
    with pytest.raises(ConfigError, match="in the clear"):
        reader.bootstrap("http://relay.example:7071")
    reader.bootstrap("https://relay.example:7071").close()
    reader.close()


def test_credentials_come_from_the_environment_and_are_not_printed(monkeypatch):
    secret = new_token()
    monkeypatch.setenv("WALBUS_CLIENT__TOKEN", secret)
    monkeypatch.setenv("WALBUS_CLIENT__CA_FILE", "/no/such/file")
    found = credentials_from_environment()
    assert found.headers() == {"Authorization": f"Bearer {secret}"}
    assert secret not in repr(found)
    with pytest.raises(ConfigError, match=r"client\.ca_file"):
        walbus.connect("https://relay.example")
    monkeypatch.delenv("WALBUS_CLIENT__CA_FILE")
    with pytest.raises(ConfigError) as failure:
        walbus.connect("http://127.0.0.1:1", token="a\nb" + secret)
    assert secret not in str(failure.value)


def test_tail_reads_over_tls_with_the_environments_token(relay, authority):
    url = f"https://localhost:{relay.port}"
    believed = {"WALBUS_CLIENT__CA_FILE": str(authority.pem)}
    ended = run("tail", "public.nothing", "--from", "earliest", "--until", "latest", "--url", url,
                WALBUS_CLIENT__TOKEN=relay.tokens["all"], **believed)  # fmt: skip
    assert (ended.code, ended.stderr) == (0, "")
    refused = run("tail", "--url", url, **believed)
    assert "a token is needed" in refused.one_line()
    assert "WALBUS_CLIENT__TOKEN" in refused.one_line()
    narrow = run("tail", "--url", url, WALBUS_CLIENT__TOKEN=relay.tokens["narrow"], **believed)
    assert "does not reach" in narrow.one_line()
    stranger = run("tail", "--url", url, WALBUS_CLIENT__TOKEN=relay.tokens["all"])
    assert "authority is not known here" in stranger.one_line()


def test_a_reader_under_tls_that_stands_still_leaves_the_feed_once(relay, authority, monkeypatch):
    """TLS holds back a writer late: a stream that does not stand still then would join and leave without a pause."""
    joined: list[object] = []
    follow = Feed.follow

    def counted(feed: Feed, outlet: Outlet) -> Awaitable[object]:
        joined.append(outlet)
        return follow(feed, outlet)

    monkeypatch.setattr(Feed, "follow", counted)
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect(("localhost", relay.port))
    stopped = authority.believed().wrap_socket(plain, server_hostname="localhost")
    token = relay.tokens["all"]
    stopped.sendall(f"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    assert b"200 OK" in stopped.recv(1000)
    wait_for(lambda: len(joined) == 1, what="the reader to be a member")
    live = relay.connection()
    live.request("GET", "/v1/stream?tables=public.orders,public.items", headers={"Authorization": f"Bearer {token}"})
    stream = live.getresponse()
    end = relay.writer.bounds().end.commit_lsn
    forks: list[bool] = []  # whether each was verbatim when it was made; its feed closes it with its last member
    fork = Delivery.fork
    monkeypatch.setattr(Delivery, "fork", lambda delivery: forks.append(delivery.verbatim) or fork(delivery))
    while True not in forks:
        end += 16
        relay.writer.append(transaction(end, 1, table=1, size=32_000))
        relay.writer.sync()
        heard = 0
        while heard < 32_000:
            heard += len(stream.read1(1 << 16))
    for _ in range(2):  # two seconds
        assert stream.read1(1 << 16)
    assert len(joined) <= 4
    live.close()
    stopped.close()
