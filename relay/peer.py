"""Who is at the other end of a connection, as far as it is shown."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_ADDRESS, _MAX_AGENT = 64, 120  # characters


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection; both texts are bounded, for they are kept.

    Attributes:
        address: without the port.
        agent: what it calls itself.
    """

    address: str
    agent: str

    @classmethod
    def told(cls, address: str | None, agent: str | None) -> Peer:
        """The peer of a request, from its address and its User-Agent header."""
        return cls((address or "")[:_MAX_ADDRESS], (agent or "")[:_MAX_AGENT])
