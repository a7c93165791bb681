"""By which names a server without tokens is asked: against pages that a browser has open on this machine. No I/O.

Whoever reaches the loopback may read, and a browser there reaches it too. A page of a stranger may not read the answers
of another site; but a stranger's name can be made to stand for 127.0.0.1 (DNS rebinding), and then the server is the
page's own site. The name that the page was loaded by still stands in the request's Host, where no script can alter it.
So a server on the loopback that asks for no token answers to names that stand for nothing else: addresses of the
loopback, `localhost`, what is configured. A request without a Host is no browser's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence


class HostNames:
    """The names that a server answers to.

    Args:
        configured: names or addresses without ports, beside those of the loopback.
    """

    def __init__(self, configured: Iterable[str]) -> None:
        self._names = frozenset(("localhost", *(_plain(name) for name in configured)))

    def know(self, hosts: Sequence[str]) -> bool:
        """Whether a request is meant for this server.

        Args:
            hosts: its Host headers as they were sent; the port does not matter.
        """
        return not hosts or (len(hosts) == 1 and self._knows(host_of(hosts[0])))

    def _knows(self, host: str | None) -> bool:
        return host is not None and (host in self._names or is_loopback_address(host))


def host_of(header: str) -> str | None:
    """Name or address in a Host header, in small letters and without brackets; None if it has another form."""
    text = header.strip()
    if text.startswith("["):
        host, closed, port = text[1:].partition("]")
        well_formed = bool(closed) and ":" in host and (not port or port.startswith(":"))
        port = port[1:]
    else:
        host, _, port = text.partition(":")
        well_formed = True
    if not well_formed or not host or (port and not (port.isascii() and port.isdigit())):
        return None
    return _plain(host)


def is_loopback_address(host: str) -> bool:
    """Whether a text is an address of the loopback, and no name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _plain(host: str) -> str:
    """As names are compared; one with a dot behind it is the same."""
    return host.lower().removesuffix(".")
