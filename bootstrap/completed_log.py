"""The log with complete changes, as far as it is applied, for a server of streams.

A `CompletedLog` is a reader of the log's files like the relay's, with three differences. It ends where the store has
applied the log, between two transactions, since completions are known up to there (`walbus.relay.served` holds it back,
as it does for required standbys). It begins where completions begin. And what it reads is completed, a record at a time
(`walbus.bootstrap.completing`); a cursor that has given the first pieces of a record knows how far it is in it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from walbus.bootstrap.completing import Joined, completed
from walbus.bootstrap.completions import Completions, Kept
from walbus.bootstrap.ledger import Ledger
from walbus.errors import PositionTrimmed
from walbus.log import Bounds
from walbus.position import ORIGIN, Position
from walbus.records import Kind, RecordHeader, read_header
from walbus.relay.cursor import FileCursor, Span
from walbus.relay.fs import Files
from walbus.relay.index_loader import IndexLoader
from walbus.relay.manifest import load_manifest
from walbus.relay.reader import FileLogReader
from walbus.relay.table_filter import known_layout
from walbus.relay.tip import Tip
from walbus.relay.view import missing

_TRANSACTION = int(Kind.TRANSACTION)
_MEND = "read a snapshot from this server, or read from `earliest`"


class CompletedLog(FileLogReader):
    """See the module, and `walbus.log.LogReader`.

    Args:
        folder: of the log.
        ledger: which applies it.

    Raises:
        LogMissing: there is no log in the folder.
    """

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        manifest = load_manifest(folder)
        if manifest is None:
            raise missing(folder)
        self.log_id = manifest.log_id  #: of the log; it is no longer read once another one has taken its place
        self._ledger = ledger
        super().__init__(folder, standbys=self)

    def bounds(self) -> Bounds:
        """What can be had complete now."""
        bounds = super().bounds()
        kept = self.kept
        return replace(bounds, trimmed=bounds.end if kept is None else max(bounds.trimmed, kept.position))

    @property
    def kept(self) -> Kept | None:
        """The completions of this log; None if there are none."""
        kept = self._ledger.completions.kept
        return kept if kept is not None and kept.log_id == self.log_id else None

    def cursor(self, after: Position) -> FileCursor:
        """A cursor behind a "last done" position."""
        kept = self.kept
        if kept is None or after < kept.position:
            raise _not_kept(kept, after)
        cursor = super().cursor(after)
        if isinstance(cursor, CompletedCursor):
            cursor.given = after
        return cursor

    # What holds the log back (`walbus.relay.served.Holders`): what the store has applied.

    def hold(self, tip: Tip) -> bool:
        """Whether everything up to a place is applied."""
        return tip.position <= self._applied().position

    def lowest(self) -> Tip:
        """What is applied."""
        return self._applied()

    def look_again(self, end: Tip) -> None:
        """What is applied was durable, and stays so."""

    def _applied(self) -> Tip:
        applied = self._ledger.applied_whole
        if applied is None or applied.log_id != self.log_id:
            return Tip(ORIGIN, 0, 0, 0, 0)
        return Tip(applied.position, 0, applied.last_seq, applied.commit_time, 0)

    def _cursor(self) -> FileCursor:
        return CompletedCursor(self, self._ledger.completions, self._folder, self._files, self._indexes)


class CompletedCursor(FileCursor):
    """A cursor over complete changes.

    Args:
        log: which it is of.
        completions: of that log.
        folder: of the log.
        files: the file operations.
        indexes: of its segments.

    Attributes:
        given: the position behind which the next record goes on, where that begins before it.
    """

    def __init__(
        self, log: CompletedLog, completions: Completions, folder: Path, files: Files, indexes: IndexLoader
    ) -> None:
        super().__init__(folder, files, log.view, indexes)
        self._log = log
        self._completions = completions
        self.given = ORIGIN

    def read(self, max_bytes: int) -> list[bytes]:
        """The next whole records, or pieces of them; what is left of those that were read is read again."""
        records = super().read(max_bytes)
        if not records:
            return []
        headers = [read_header(record) for record in records]
        joined = Joined(self._completions.of(headers[0].first_seq, headers[-1].last_seq))
        layouts = partial(known_layout, self._log.schemas)
        given: list[bytes] = []
        size = 0
        for index, (record, header) in enumerate(zip(records, headers, strict=True)):
            for piece, last in completed(record, header, self.given, joined, layouts):
                given.append(piece)
                size += len(piece)
                if header.kind == _TRANSACTION:
                    self.given = last
                if size >= max_bytes:
                    self._skipped = records[index:] if last < header.last else records[index + 1 :]
                    self._require_known(headers[0], header)
                    return given
        self._require_known(headers[0], headers[-1])
        return given

    def read_bytes(self, max_bytes: int) -> tuple[bytes, RecordHeader] | None:
        """As `read`, but in one piece, and with the header of the last record; None at the end."""
        records = self.read(max_bytes)
        return (b"".join(records), read_header(records[-1])) if records else None

    def span(self, least: int) -> Span | None:
        """None: what lies in the files is not complete."""
        del least
        return None

    def _require_known(self, first: RecordHeader, last: RecordHeader) -> None:
        """Behind the reading: what was dropped meanwhile may have been looked for in vain.

        So may what is behind the applied position, where the store has begun anew at an earlier one.
        """
        kept = self._log.kept
        if kept is None or (first.kind == _TRANSACTION and first.last <= kept.position):
            raise _not_kept(kept, first.last)
        if last.kind == _TRANSACTION and last.last > self._log.lowest().position:
            raise _not_kept(None, last.last)


def _not_kept(kept: Kept | None, after: Position) -> PositionTrimmed:
    if kept is None:
        return PositionTrimmed(f"there are no complete changes behind {after}", mend=_MEND)
    return PositionTrimmed(
        f"changes behind {after} cannot be had complete", where=f"they begin behind {kept.position}", mend=_MEND
    )
