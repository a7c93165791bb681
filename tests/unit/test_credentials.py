"""How a client comes to speak with a server: what TLS takes is read for TLS alone."""

from __future__ import annotations

import ssl

import httpx
import pytest

from walbus.credentials import ANONYMOUS, new_client


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """How often the machine's authorities were read."""
    calls: list[object] = []
    made = ssl.create_default_context

    def noted(*args: object, **more: object) -> ssl.SSLContext:
        calls.append(args)
        return made(*args, **more)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(ssl, "create_default_context", noted)
    return calls


def test_a_client_of_a_server_without_tls_reads_no_authorities(asked: list[object]) -> None:
    with new_client("http://127.0.0.1:1", ANONYMOUS, httpx.Timeout(1)):
        assert asked == []


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "HTTPS://127.0.0.1:1"])
def test_a_client_of_a_server_with_tls_believes_the_machines_authorities(asked: list[object], url: str) -> None:
    with new_client(url, ANONYMOUS, httpx.Timeout(1)):
        assert len(asked) == 1
