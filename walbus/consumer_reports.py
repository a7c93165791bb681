"""What a consumer tells the relay of itself: one small JSON object, and what may stand in it. No I/O.

    {"session": "6f1c…", "begins": false, "log_id": "…", "phase": "online",
     "last_done": "1:16/B374D848:4", "seq": 1732723200000017, "generation": 1732723100000, "whole": true,
     "tables": ["public.orders"], "sink": "sqlite", "waiting_for": null, "unread": []}

`last_done` is what the consumer has stored durably, and never what it has merely received: the consumer's checkpoint is
the truth, and this is a copy of it. A session is one reading from one stored checkpoint; its first report says
`begins`, and then the relay takes its place whatever it was told before, for a consumer may have been reset. Every text
is bounded, so that a client can neither fill the relay's memory nor its disk: the sender cuts, the receiver refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from walbus.errors import InvalidText, UsageError
from walbus.position import ORIGIN, Position, parse_position

#: What a consumer may be called.
CONSUMER_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}\Z")

_MAX_NAMES = 16  # of tables told, in either list
_MAX_TABLE = 129
_MAX_REASON = 300

_Table = Annotated[str, msgspec.Meta(max_length=_MAX_TABLE)]
_Tables = Annotated[tuple[_Table, ...], msgspec.Meta(max_length=_MAX_NAMES)]
_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


@dataclass(frozen=True, slots=True)
class ConsumerReport:
    """Where a consumer is.

    Attributes:
        session: random name of the reading that this is of.
        begins: whether it is the session's first: whatever was told before counts no longer.
        log_id: of the log that `last_done` and `seq` belong to; empty before the consumer has seen one.
        phase: what the consumer is doing: `starting`, `listing`, `snapshot`, `catchup`, `online`, `paused`,
            or `waiting` for its sink.
        last_done: up to here everything is stored durably; None while there is no such place yet.
        seq: the last one given by then.
        generation: of the consumer's snapshot; a later snapshot may begin at an earlier position.
        whole: whether the consumer has everything up to `last_done`. During a snapshot that is the lowest state of
            what was read so far, of which rows are missing yet.
        tables: patterns that the consumer reads; the first few.
        sink: what the consumer writes to; None for one of the client library.
        waiting_for: why nothing is read at present; None while something is.
        unread: tables whose rows are to be read again, and are not right yet; the first few.
    """

    session: str
    begins: bool
    log_id: str
    phase: str
    last_done: Position | None
    seq: int
    generation: int
    whole: bool
    tables: tuple[str, ...] = ()
    sink: str | None = None
    waiting_for: str | None = None
    unread: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[int, Position]:
        """What never decreases within a session on one log."""
        return self.generation, self.last_done or ORIGIN


class _Wire(msgspec.Struct, frozen=True):
    session: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{1,32}$")]
    begins: bool
    log_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{0,32}$")]
    phase: Annotated[str, msgspec.Meta(pattern=r"^[a-z]{1,16}$")]
    last_done: Annotated[str, msgspec.Meta(max_length=64)] | None
    seq: _Count
    generation: _Count
    whole: bool
    tables: _Tables = ()
    sink: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    waiting_for: Annotated[str, msgspec.Meta(max_length=_MAX_REASON)] | None = None
    unread: _Tables = ()


def checked_name(name: str) -> str:
    """The name, if a consumer may have it.

    Raises:
        UsageError: it may not.
    """
    if CONSUMER_NAME.match(name) is None:
        mend = "use up to 63 letters, digits, dots, dashes and underscores, no dot or dash first"
        raise UsageError(f"{name[:80]!r} is no consumer's name", where="name", mend=mend)
    return name


def bounded_tables(tables: Iterable[str]) -> tuple[str, ...]:
    """As many of the tables as may be told, none longer than it may be."""
    return tuple(table[:_MAX_TABLE] for table, _ in zip(tables, range(_MAX_NAMES), strict=False))


def dump_report(report: ConsumerReport) -> bytes:
    """The report as JSON; what is too long is cut."""
    reason = report.waiting_for
    return msgspec.json.encode(
        _Wire(
            report.session,
            report.begins,
            report.log_id,
            report.phase,
            None if report.last_done is None else str(report.last_done),
            report.seq,
            report.generation,
            report.whole,
            bounded_tables(report.tables),
            report.sink,
            None if reason is None else reason[:_MAX_REASON],
            bounded_tables(report.unread),
        )
    )


def parse_report(data: bytes) -> ConsumerReport:
    """The inverse of `dump_report`. Members that are not known are passed over: a later Walbus may tell more.

    Raises:
        UsageError: this is no report; `where` names the member.
    """
    mend = "send what docs/consumers.md describes"
    try:
        wire = msgspec.json.decode(data, type=_Wire)
        last_done = None if wire.last_done is None else parse_position(wire.last_done)
    except msgspec.ValidationError as error:
        raise UsageError("the report is not one", where=_member_of(error), mend=mend) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UsageError("the report is not JSON", mend=mend) from None
    except InvalidText as error:
        raise UsageError(error.what, where="last_done", mend=error.mend) from None
    return ConsumerReport(
        wire.session, wire.begins, wire.log_id, wire.phase, last_done, wire.seq, wire.generation, wire.whole,
        wire.tables, wire.sink, wire.waiting_for, wire.unread,
    )  # fmt: skip


def _member_of(error: msgspec.ValidationError) -> str:
    """Which member is wrong: msgspec says it at the end, as in "… - at `$.phase`"."""
    found = re.search(r"`\$\.?([a-z_]*)", str(error)) or re.search(r"field `([a-z_]+)`", str(error))
    return found[1] if found and found[1] else "body"
