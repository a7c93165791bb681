"""The errors of Walbus, and the one function that decides what to do about each.

    WalbusError
    ├── UsageError            the caller asked for something that cannot be (exit code 2)
    │   ├── ConfigError           a key of walbus.toml or of the environment
    │   └── InvalidText           a position, LSN, time or key that does not parse
    ├── SourceError           PostgreSQL
    │   ├── SourceUnavailable     not reachable now, or the connection broke: try again
    │   ├── SlotInUse             another session streams from the slot: try again
    │   ├── SourceMisconfigured   a setting, privilege or object that only an operator can mend
    │   ├── SourceGap             changes can no longer be had from the slot: reconcile
    │   └── SourceReplaced        another database answers, or its history diverged
    ├── ProtocolError         bytes of the replication stream or of HTTP that make no sense
    ├── LogError              the relay log
    │   ├── DamagedRecord         a checksum or a length is wrong; names file and offset
    │   │   └── UnknownFormat         another version of the format than this Walbus reads
    │   ├── LogMissing            no log in this folder yet: try again
    │   ├── LogFull               the disk has no room: try again, readers go on
    │   │   └── LogUnreachable        the cluster that holds the log does not answer, or takes no records now
    │   ├── LogBusy               another process writes this log: try again
    │   ├── Fenced                another writer took over
    │   ├── LogDiverged           a copy and the log that it is to follow are not one log
    │   ├── PositionTrimmed       the log no longer holds the position: bootstrap
    │   └── PositionUnknown       past the end, or of another log
    ├── StoreError            the bootstrap store
    │   ├── StoreFull             the disk has no room: try again
    │   └── StoreDamaged          its files or documents make no sense: seed again
    ├── RelayUnavailable      the relay or bootstrap server does not answer: try again
    ├── RequestRefused        the relay or bootstrap server answered with a 4xx
    ├── CheckpointUnavailable  where checkpoints are kept does not answer: try again
    ├── CheckpointTaken       another process goes on under the consumer's name
    │   └── PartLost          a member of a group no longer has the part
    ├── RowMismatch           a row does not fit the class that it was asked for as
    ├── CallbackFailed        a consumer's own code goes on failing
    ├── DeadLettersFull       no more changes may be parked
    └── SinkError
        ├── SinkUnavailable       away for now: try again
        └── SinkRefused           this row, or this configuration, will never be taken

An error says what is wrong, where, and how to mend it, each in its own attribute, so that the command line can
print one line and `/metrics` can count kinds. Row values and secrets never enter an error.
"""

from __future__ import annotations

import enum


class Directive(enum.Enum):
    """What the caller of a failed operation does next."""

    RETRY = "retry"  #: the same call may succeed later; back off and try again
    STOP = "stop"  #: nothing but an operator's act helps; end the process with the error's exit code
    BOOTSTRAP = "bootstrap"  #: the position is gone from the log; read a snapshot, then follow again


class WalbusError(Exception):
    """Base of every error that Walbus raises on purpose.

    Args:
        what: what is wrong, one sentence without a full stop.
        where: the place (LSN, table, file and offset, key of the configuration), if there is one.
        mend: what the operator can do about it, as a phrase that starts with a verb.
    """

    directive = Directive.STOP
    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.mend = mend

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.what} (at {self.where})"
        return text if self.mend is None else f"{text}; {self.mend}"


class UsageError(WalbusError):
    """The caller asked for something that cannot be."""

    exit_code = 2


class ConfigError(UsageError):
    """A key of the configuration is unknown, missing or wrong; `where` names it."""


class InvalidText(UsageError):
    """A position, LSN, time or key does not parse."""


class SourceError(WalbusError):
    """PostgreSQL refused, or cannot give what is asked of it."""


class SourceUnavailable(SourceError):
    """PostgreSQL is not reachable now, or the connection broke."""

    directive = Directive.RETRY


class SlotInUse(SourceError):
    """Another session streams from the replication slot (SQLSTATE 55006)."""

    directive = Directive.RETRY


class SourceMisconfigured(SourceError):
    """A setting, privilege or object of the source that only an operator can mend."""


class SourceGap(SourceError):
    """Changes that the log does not hold can no longer be had from the slot."""


class SourceReplaced(SourceError):
    """Another database answers at this address, or its history diverged from the log's."""


class ProtocolError(WalbusError):
    """Bytes that make no sense at their place in a protocol; never skipped."""


class LogError(WalbusError):
    """The relay log."""


class DamagedRecord(LogError):
    """A checksum or a length of a record is wrong; `where` gives file and offset."""


class UnknownFormat(DamagedRecord):
    """The bytes say that they are of another version of the format than this Walbus reads."""


class LogMissing(LogError):
    """There is no log in the folder yet; its writer makes it."""

    directive = Directive.RETRY


class LogFull(LogError):
    """The disk under the log has no room; nothing is confirmed until it has."""

    directive = Directive.RETRY


class LogUnreachable(LogFull):
    """The cluster that holds the log does not answer, or takes no records now; nothing is confirmed until it does."""


class LogBusy(LogError):
    """Another live process writes this log."""

    directive = Directive.RETRY


class Fenced(LogError):
    """Another writer took the log over; this one must end."""


class LogDiverged(LogError):
    """A copy of a log and the log that it is to follow do not hold the same records."""


class PositionTrimmed(LogError):
    """The log no longer holds what comes after the position."""

    directive = Directive.BOOTSTRAP


class PositionUnknown(LogError):
    """The position is past the log's end, or belongs to another log."""


class StoreError(WalbusError):
    """The bootstrap store."""


class StoreFull(StoreError):
    """The disk under the store has no room; nothing is applied until it has."""

    directive = Directive.RETRY


class StoreDamaged(StoreError):
    """What the store holds makes no sense; another one is seeded."""


class RelayUnavailable(WalbusError):
    """The relay or the bootstrap server does not answer."""

    directive = Directive.RETRY


class RequestRefused(WalbusError):
    """The relay or the bootstrap server answered with a 4xx; `status` is its code."""

    def __init__(self, what: str, *, status: int, where: str | None = None, mend: str | None = None) -> None:
        super().__init__(what, where=where, mend=mend)
        self.status = status


class CheckpointUnavailable(WalbusError):
    """Where a consumer's checkpoint is kept does not answer."""

    directive = Directive.RETRY


class CheckpointTaken(WalbusError):
    """Another process stored a later checkpoint under the consumer's name."""


class PartLost(CheckpointTaken):
    """A member of a group no longer has the part, or may have it no longer: what it did last comes again elsewhere."""


class RowMismatch(WalbusError):
    """A row does not fit the class that it was asked for as; `where` names table and column."""


class CallbackFailed(WalbusError):
    """A consumer's own code goes on failing at one place; `__cause__` is what it raised last."""


class DeadLettersFull(WalbusError):
    """A consumer parks no more changes: what refuses them is to be mended first."""


class SinkError(WalbusError):
    """A sink."""


class SinkUnavailable(SinkError):
    """The sink's server is away for now."""

    directive = Directive.RETRY


class SinkRefused(SinkError):
    """The sink will never take this row or this configuration."""


def directive_of(error: BaseException) -> Directive:
    """What to do about any error: total, and the only place where that is decided."""
    if isinstance(error, WalbusError):
        return error.directive
    if isinstance(error, (ConnectionError, TimeoutError)):
        return Directive.RETRY
    return Directive.STOP
