"""How much of a server one client, and all of them, may take.

Descriptors: a connection with a stream needs two (the socket, and the segment that it reads), and the server needs some
for itself, and for the few streams that are sent from files at a time. So the number of connections is also bounded by
the process's limit of open files.
"""

from __future__ import annotations

import ipaddress
import resource
from dataclasses import dataclass, replace

BODY_BYTES = 64 << 10  #: of one request, at most

_OWN_DESCRIPTORS = 64
_DESCRIPTORS_A_CONNECTION = 2
_FEWEST = 8


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of a server.

    Attributes:
        connections: at a time.
        connections_per_address: at a time; of IPv6 a /64 counts as one address, since one client has as many.
        header_seconds: for a request's header, from the connection's or the last answer's end on.
        header_line_bytes: of one line of a header, the request's included.
        header_lines: of one header.
        request_bytes: header, body (`BODY_BYTES`) and what is sent ahead of an answer, together.
        handshake_seconds: for the TLS handshake.
        stall_seconds: that a client may take nothing of what is sent to it.
    """

    connections: int = 4096
    connections_per_address: int = 2048
    header_seconds: float = 10.0
    header_line_bytes: int = 8190
    header_lines: int = 64
    request_bytes: int = 96 << 10
    handshake_seconds: float = 10.0
    stall_seconds: float = 900.0

    def within(self, open_files: int) -> Bounds:
        """The bounds of a process that may have so many files open."""
        room = (open_files - min(_OWN_DESCRIPTORS, open_files // 2)) // _DESCRIPTORS_A_CONNECTION
        return replace(self, connections=min(self.connections, max(room, _FEWEST)))


def open_files() -> int:
    """How many files this process may have open, after its limit was raised as far as it may raise it itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 30


def counted_as(address: str) -> str:
    """What connections from an address are counted under."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
