"""By which names a server without tokens is asked."""

from __future__ import annotations

import pytest

from walbus.relay.host_names import HostNames

NAMES = HostNames(("cdc.Example.com", "fd00::7"))


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "localhost.", "localhost:7070", "localhost:", "127.0.0.1", "127.0.0.1:7070",
        "127.255.3.4", "[::1]", "[::1]:7070", "[::ffff:127.0.0.1]:7070", "[0:0:0:0:0:0:0:1]", " localhost ",
        "cdc.example.com", "CDC.example.COM:443", "cdc.example.com.", "[fd00::7]:7070",
    ],
)  # fmt: skip
def test_names_of_the_loopback_and_those_that_are_configured_are_known(host: str) -> None:
    assert NAMES.know([host])


@pytest.mark.parametrize(
    "host",
    [
        "", ":7070", "evil.example", "evil.example:7070", "localhost.evil.example", "127.0.0.1.evil.example",
        "evil.localhost", "localhost:7070.evil.example", "localhost@evil.example", "user@localhost",
        "localhost evil.example", "evil.example, localhost", "127.0.0.1:7070:x", "10.0.0.1", "0.0.0.0", "[::2]", "[::1",
        "[::1]x", "[localhost]", "::1", "127.1", "2130706433", "0x7f000001", "local\u0131ost", "localhost\x00",
        "localhost:\u0661", "localhost..", "example.com", "x.cdc.example.com", "[::1%lo]evil",
    ],
)  # fmt: skip
def test_nothing_else_is(host: str) -> None:
    assert not NAMES.know([host])


def test_a_request_without_a_host_is_no_browsers_and_two_hosts_are_none() -> None:
    assert NAMES.know([])
    assert not NAMES.know(["localhost", "evil.example"])
    assert not NAMES.know(["localhost", "localhost"])
