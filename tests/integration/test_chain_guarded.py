"""Relays that copy each other under TLS and tokens, and as `walbus run` starts them, without a source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from support import plain_http
from support.certificates import Authority
from support.chained_relay import ChainedRelay, records_of
from support.guarded_relay import GuardedRelay
from support.relay_server import Relay, fill
from support.waiting import wait_for
from support.walbus_command import Running, walbus, write_config
from walbus.credentials import Credentials
from walbus.demo.postgres import free_port
from walbus.errors import RequestRefused
from walbus.position import parse_position
from walbus.relay.standbys import read_report

pytestmark = pytest.mark.one_version

TOKENS: Mapping[str, list[str]] = {"all": ["*.*"], "narrow": ["public.orders"], "admin": []}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def relay(tmp_path: Path, authority: Authority) -> Iterator[GuardedRelay]:
    (tmp_path / "a").mkdir()
    keys = authority.server("localhost")
    with GuardedRelay(
        tmp_path / "a", TOKENS, tls=authority.believed(), required_standbys=("required",), **keys
    ) as made:
        yield made


def copy_of(
    relay: GuardedRelay, authority: Authority, folder: Path, token: str, name: str, *, believes: bool = True
) -> ChainedRelay:
    shown = Credentials(SecretStr(relay.tokens[token]), authority.pem if believes else None)
    return ChainedRelay(folder, [f"https://localhost:{relay.port}"], name=name, credentials=shown)


def test_a_required_standby_copies_under_tls_with_the_token_of_an_admin(
    relay: GuardedRelay, authority: Authority, tmp_path: Path
) -> None:
    standby = copy_of(relay, authority, tmp_path / "b", "admin", "required")
    standby.has(relay.writer.bounds().end)
    for _ in range(50):
        relay.append()
    standby.has(relay.writer.bounds().end)
    assert standby.records() == records_of(relay.engine.folder)

    def reported() -> bool:
        report = read_report(relay.engine.folder, "required")
        return report is not None and report.tip.position == relay.writer.bounds().end

    wait_for(reported, what="its report")
    other = copy_of(relay, authority, tmp_path / "c", "all", "other")  # one that nobody waits for needs no admin
    other.has(relay.writer.bounds().end)
    other.stop()
    standby.stop()


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        ("all", "required", "may not read as required"),
        ("narrow", "other", "does not reach all tables"),
    ],
)
def test_a_copy_whose_token_does_not_reach_far_enough_ends_and_says_so(
    relay: GuardedRelay, authority: Authority, tmp_path: Path, token: str, name: str, said: str
) -> None:
    error = copy_of(relay, authority, tmp_path / "b", token, name).ended()
    assert isinstance(error, RequestRefused)
    assert said in str(error)


def test_a_copy_that_does_not_believe_the_certificate_waits_and_says_why(
    relay: GuardedRelay, authority: Authority, tmp_path: Path
) -> None:
    copy = copy_of(relay, authority, tmp_path / "b", "all", "other", believes=False)
    wait_for(lambda: "authority is not known here" in str(copy.status().get("error")), what="it says why it waits")
    assert not (copy.log / "segments").exists()
    copy.stop()


def test_a_token_that_is_taken_out_ends_the_copying(relay: GuardedRelay, authority: Authority, tmp_path: Path) -> None:
    copy = copy_of(relay, authority, tmp_path / "b", "all", "other")
    wait_for(lambda: copy.status().get("state") == "copying", what="it copies")
    relay.write_tokens({name: tables for name, tables in TOKENS.items() if name != "all"})
    error = copy.ended()
    assert isinstance(error, RequestRefused)
    assert "not known here" in str(error)


# --- walbus run -----------------------------------------------------------------------------------------------------


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Relay]:
    (tmp_path / "first").mkdir()
    running = Relay(tmp_path / "first")
    yield fill(running)
    running.close()


def test_walbus_run_copies_and_serves_without_a_source(upstream: Relay, tmp_path: Path) -> None:
    port = free_port()
    sections: dict[str, dict[str, object]] = {
        "relay": {"listen": f"127.0.0.1:{port}", "upstream": [f"http://127.0.0.1:{upstream.port}"], "name": "second"},
        "bootstrap": {"enabled": False},
    }
    config = write_config(tmp_path / "walbus.toml", sections, tmp_path / "data")
    running = Running("run", "-c", str(config), log=tmp_path / "run.log")
    try:
        end = upstream.writer.bounds().end
        wait_for(lambda: ended_at(port) == str(end), 90, what="the copy serves the upstream's log")
        status = walbus("status", "--json", "-c", str(config))
        assert status.code == 0, status.stderr
        assert '"name": "capture"' not in status.stdout
        assert walbus("status", "-c", str(config)).code == 0
        patient = {"walbus.cli.ready._TIMEOUT": 60.0}  # a healthcheck is not, and the machine may be busy
        assert walbus("ready", "-c", str(config), constants=patient).stdout == "ready\n"
    finally:
        code = running.stop()
    assert code == 0, running.log()
    assert records_of(tmp_path / "data" / "relay") == records_of(upstream.engine.folder)


def ended_at(port: int) -> str | None:
    try:
        document = plain_http.get(f"http://127.0.0.1:{port}/v1/info", timeout=5).json()
    except httpx.HTTPError:
        return None
    return str(parse_position(document["end"])) if "end" in document else None


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("run", "bootstrap, unless bootstrap.enabled = false, reads the source"),
        ("bootstrap", "bootstrap reads the source"),
        ("doctor", "walbus doctor reads the source"),
        ("capture", "the log is copied from another relay"),
    ],
)
def test_what_reads_the_source_says_that_it_is_not_named(tmp_path: Path, command: str, named: str) -> None:
    sections: dict[str, dict[str, object]] = {"relay": {"upstream": ["http://127.0.0.1:1"]}}
    config = write_config(tmp_path / "walbus.toml", sections, tmp_path / "data")
    ended = walbus(command, "-c", str(config))
    assert ended.code == 2, ended.stderr
    assert named in ended.one_line()
