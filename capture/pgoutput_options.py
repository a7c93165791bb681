"""What pgoutput is asked for, by the server's version and the configuration. Pure.

protocol 1    every version, when nothing is streamed or prepared
2    PostgreSQL 14: transactions are streamed while they run
3    15: prepared transactions too
4    16: `origin`; and parallel streaming, which differs only in what it tells of aborts, and is not used
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from walbus.errors import SourceMisconfigured

if TYPE_CHECKING:
    from walbus.config import SourceConfig

_WITH_STREAMING, _WITH_TWO_PHASE, _WITH_ORIGIN = 140_000, 150_000, 160_000
_WHERE = "source.two_phase"


@dataclass(frozen=True, slots=True)
class PgoutputOptions:
    """The options of START_REPLICATION.

    Attributes:
        protocol: 1 to 4.
        streaming: whether transactions are streamed while they run.
        two_phase: whether prepared ones come at their PREPARE.
        origin: whether the server knows that option; changes of every origin are wanted.
    """

    protocol: int = 1
    streaming: bool = False
    two_phase: bool = False
    origin: bool = False

    def sql(self, publication: str) -> str:
        """As START_REPLICATION takes them; the publication's name must have been checked."""
        options = {"proto_version": str(self.protocol), "publication_names": f'"{publication}"', "messages": "true"}
        if self.streaming:
            options["streaming"] = "on"
        if self.two_phase:
            options["two_phase"] = "true"
        if self.origin:
            options["origin"] = "any"
        return "(" + ", ".join(f"{name} '{value}'" for name, value in options.items()) + ")"


def options_for(server_version: int, *, streaming: bool, two_phase: bool) -> PgoutputOptions:
    """What to ask a server for.

    Args:
        server_version: as libpq numbers it, 180004.
        streaming: whether to stream; heeded where the server can.
        two_phase: whether prepared transactions are wanted at their PREPARE.
    """
    streaming = streaming and server_version >= _WITH_STREAMING
    origin = server_version >= _WITH_ORIGIN
    newest = 4 if origin else 3 if server_version >= _WITH_TWO_PHASE else 2
    return PgoutputOptions(newest if streaming or two_phase else 1, streaming, two_phase, origin)


def check_two_phase(source: SourceConfig, server_version: int, *, slot_two_phase: bool | None) -> None:
    """Whether the server and the slot can do as `source.two_phase` says.

    A slot without it takes it on when it is streamed from with it; PostgreSQL cannot take it back.

    Args:
        source: the configuration.
        server_version: as libpq numbers it.
        slot_two_phase: of the slot; None if there is none yet.

    Raises:
        SourceMisconfigured: they cannot.
    """
    if source.two_phase and server_version < _WITH_TWO_PHASE:
        what = f"PostgreSQL {server_version // 10_000} does not send prepared transactions at their PREPARE"
        raise SourceMisconfigured(what, where=_WHERE, mend="set source.two_phase = false (15 and newer can)")
    if slot_two_phase and not source.two_phase:
        what = f"slot {source.slot} was made for, or has turned to, prepared transactions at their PREPARE for good"
        raise SourceMisconfigured(what, where=_WHERE, mend="set source.two_phase = true")
