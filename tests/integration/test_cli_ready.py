"""`walbus ready`, which is the image's healthcheck: plain, under TLS, and where clients must show a certificate."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.certificates import Authority
from support.guarded_relay import GuardedRelay
from support.walbus_command import Ended, walbus, write_config
from walbus.demo.postgres import free_port

pytestmark = pytest.mark.one_version

#: A healthcheck gives up after three seconds, in which a busy machine may not have come to answer.
PATIENT = {"walbus.cli.ready._TIMEOUT": 60.0}


def asked(folder: Path, port: int, client: dict[str, Path] | None = None, **relay: Path) -> Ended:
    sections: dict[str, dict[str, object]] = {
        "source": {"dsn": "host=nowhere"},
        "relay": {"listen": f"0.0.0.0:{port}", "insecure": True, **{key: str(path) for key, path in relay.items()}},
        "client": {key: str(path) for key, path in (client or {}).items()},
    }
    config = write_config(folder / "walbus.toml", sections, folder / "data")
    return walbus("ready", "-c", str(config), constants=PATIENT)


def test_a_relay_that_is_ready_is_told_and_one_that_is_not_there(tmp_path: Path) -> None:
    with GuardedRelay(tmp_path, {"admin": []}) as relay:
        assert asked(tmp_path, relay.port).stdout == "ready\n"
    ended = asked(tmp_path, free_port())
    assert ended.code == 1
    assert "no answer" in ended.one_line()


def test_a_certificate_for_the_outer_name_does_not_matter(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    keys = authority.server("cdc.example.com", "localhost")
    with GuardedRelay(tmp_path, {"admin": []}, tls=authority.believed(), **keys) as relay:
        assert asked(tmp_path, relay.port, **keys).stdout == "ready\n"
        assert asked(tmp_path, relay.port).code == 1  # a relay that should be plain, and is not


def test_where_clients_must_show_a_certificate_that_of_the_client_is_shown(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    keys, mine = authority.server("cdc.example.com", "localhost"), authority.server("client")
    context = authority.believed()
    context.load_cert_chain(mine["tls_cert"], mine["tls_key"])
    asks = {**keys, "tls_client_ca": authority.pem}
    with GuardedRelay(tmp_path, {"admin": []}, tls=context, **asks) as relay:
        assert asked(tmp_path, relay.port, mine, **asks).stdout == "ready\n"
        assert asked(tmp_path, relay.port, **asks).code == 1
