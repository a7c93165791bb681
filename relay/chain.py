"""A relay whose source is another relay: the same records, with the same positions and seqs, in a log of its own.

One connection at a time: what the upstream's log is and where it ends, its layouts, then its records from where the
copy ends. They are appended as they are, made durable in groups, and only then served: the copy is a log like any other
to its readers. After a broken connection it goes on behind the last piece that it has, in the middle of a transaction
too; after a crash behind its last whole transaction.

The last record that is here is asked for again, and must come as the same bytes (`walbus.relay.overlap`). So a copy
never goes on with the log of a machine that was restored, or that went its own way after another one took over
(`walbus.relay.lineage`). Where the two part within a transaction that has not ended, what is here of it is dropped, and
they are compared at the last whole one.

What passes (the upstream is away, restarts, is behind) is tried again with back-off, at the next address if there are
several. What cannot pass ends the process once every address has refused for such a reason (another log, records that
are not ours, a position that the upstream no longer holds), or once the log's latest term has, and all other addresses
are known to serve earlier ones.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from walbus.config import RelayConfig
from walbus.errors import (
    ConfigError,
    Directive,
    LogDiverged,
    LogFull,
    PositionTrimmed,
    RelayUnavailable,
    RequestRefused,
    WalbusError,
    directive_of,
)
from walbus.position import Position
from walbus.records import Flag, Kind, RecordHeader
from walbus.relay.chain_report import ChainReport
from walbus.relay.chain_watch import ChainWatch, TermWatch
from walbus.relay.engine import open_writer
from walbus.relay.fs import Files, replace_whole
from walbus.relay.lineage import BEGIN_ANEW, Lineage, read_lineage, write_lineage
from walbus.relay.manifest import load_manifest
from walbus.relay.overlap import LastRecords, durable_place, just_before
from walbus.relay.upstream import Origin, Upstream, UpstreamStream
from walbus.relay.writer import FileLogWriter

_log = structlog.get_logger(__name__)

#: Seconds of the first and of the longest pause before connecting again.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
_SYNC_BYTES = 4 << 20  # a group of records is made durable at this size, or when nothing more has arrived
_SYNC_SECONDS = 0.05
_FULL_SECONDS = 0.5  # between two attempts to write to a full disk
_CHORE_SECONDS, _TRIM_SECONDS = 1.0, 5.0
_CATALOG_SECONDS = 10.0
_FILTERED, _ASKED, _SCHEMA = int(Flag.FILTERED), int(Flag.ASKED), int(Kind.SCHEMA)
_CATALOG_FILE = "catalog.json"


@dataclass(frozen=True)
class Pauses:
    """What a chain waits by, for tests.

    Attributes:
        monotonic: seconds that never step back.
        now: Unix seconds.
        random: numbers from 0 to 1.
    """

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    random: Callable[[], float] = random.random


@dataclass(frozen=True)
class _Connection:
    """One connection to an upstream, and what looks after it."""

    upstream: Upstream
    origin: Origin
    stream: UpstreamStream
    watch: ChainWatch
    terms: TermWatch


class Chain:
    """One process's copying; `run` belongs to one thread.

    Args:
        folder: of the copy.
        config: of the relay.
        upstreams: where the log comes from, in the order in which they are tried.
        stop: ends it.
        status_path: of the status file.
        pauses: time.
    """

    def __init__(  # noqa: PLR0913  (what it needs, and what tests replace)
        self,
        folder: Path,
        config: RelayConfig,
        upstreams: Sequence[Upstream],
        *,
        stop: threading.Event,
        status_path: Path | None,
        pauses: Pauses | None = None,
    ) -> None:
        self._folder, self._config, self._upstreams, self._stop = folder, config, tuple(upstreams), stop
        self._pauses = pauses or Pauses()
        self._report = ChainReport(status_path, self._pauses.now)
        self._files = Files()
        self._writer: FileLogWriter | None = None
        self._at = 0  # of the upstream that is tried
        self._ceiling = FIRST_PAUSE
        self._refused: dict[str, WalbusError] = {}  # by address: why it will never do
        self._last_reason: str | None = None
        self._terms = self._known_terms()
        self._last = LastRecords()
        now = self._pauses.monotonic()
        self._chored = self._trimmed = self._fetched = now

    def run(self) -> None:
        """Copies until `stop` is set; what is whole is durable then.

        Raises:
            LogDiverged, PositionTrimmed, RequestRefused: no upstream can be copied from any more.
            ConfigError: the log here is not for a copy.
            LogError, OSError: the log failed.
        """
        try:
            while not self._stop.is_set():
                upstream = self._upstreams[self._at]
                try:
                    self._copy_from(upstream)
                except (WalbusError, OSError) as error:
                    if not self._stop.is_set():
                        self._failed(upstream, error)
            self._report.tell("stopped", None)
        finally:
            if self._writer is not None:
                self._writer.close()

    def _known_terms(self) -> dict[str, int]:
        """The term of the log that each upstream told last; from before this process, that of the one copied last."""
        lineage = read_lineage(self._folder)
        return {lineage.copy_of: lineage.term} if lineage.copy_of is not None else {}

    # --- one connection -----------------------------------------------------------------------------------------

    def _copy_from(self, upstream: Upstream) -> None:
        origin = upstream.origin()
        self._terms[upstream.url] = origin.term
        writer = self._writer_for(origin, upstream)
        writer.sync()
        self._check_lineage(origin, upstream, writer)
        self._adopt_layouts(upstream, writer)
        self._fetch_catalog(upstream)
        after, overlap = self._place(origin, writer)
        others = [other for other in self._upstreams if other is not upstream]
        with ExitStack() as closing_them:
            terms = closing_them.enter_context(closing(TermWatch(others, origin)))
            terms.check()
            stream = closing_them.enter_context(closing(upstream.stream(after, origin.log_id)))
            watch = closing_them.enter_context(closing(ChainWatch(upstream, origin)))
            _log.info("chain_copies", upstream=upstream.url, after=str(after), required=origin.required)
            self._report.connected(upstream.url, origin)
            self._copy(_Connection(upstream, origin, stream, watch, terms), writer, deque(overlap))

    def _writer_for(self, origin: Origin, upstream: Upstream) -> FileLogWriter:
        """The log's writer, opened at the first connection: a new log is what the upstream says."""
        if self._writer is not None:
            if self._writer.bounds().log_id != origin.log_id:
                raise _another_log(origin.log_id, self._writer.bounds().log_id, upstream)
            return self._writer
        manifest = load_manifest(self._folder)
        if manifest is not None and manifest.log_id != origin.log_id:
            raise _another_log(origin.log_id, manifest.log_id, upstream)
        if manifest is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_lineage(self._files, self._folder, Lineage(origin.term, origin.began, upstream.url))
        config = self._config
        self._writer = open_writer(
            self._folder,
            origin.source,
            segment_bytes=config.segment_bytes,
            retention_hours=config.retention_hours,
            retention_bytes=config.retention_bytes,
            new_log_id=lambda: origin.log_id,
            base=origin.base,
        )
        return self._writer

    def _check_lineage(self, origin: Origin, upstream: Upstream, writer: FileLogWriter) -> None:
        """Whether the upstream's log is the one that this is a copy of, and goes on from what is here."""
        ours, end = read_lineage(self._folder), writer.bounds().end
        if ours.copy_of is None and origin.term <= ours.term:
            raise ConfigError(
                "the log here is no copy: capture wrote it",
                where="key relay.upstream",
                mend="take relay.upstream out, or move the folder of the log away so that a copy begins",
            )
        if origin.term < ours.term:
            what = f"it serves term {origin.term} of the log, and a relay has taken over for term {ours.term}"
            raise RelayUnavailable(what, where=upstream.url)
        if origin.term > ours.term:
            writer.drop_unfinished()
            if end > origin.began:
                raise LogDiverged(
                    f"what is here goes up to {end}, and term {origin.term} of the log began at {origin.began}",
                    where=upstream.url,
                    mend=BEGIN_ANEW,
                )
        now = Lineage(origin.term, origin.began, upstream.url)
        if now != ours:
            write_lineage(self._files, self._folder, now)
        if origin.tip.position < writer.received:
            raise RelayUnavailable(f"it ends at {origin.tip.position}, before {writer.received}", where=upstream.url)

    def _place(self, origin: Origin, writer: FileLogWriter) -> tuple[Position, list[bytes]]:
        """Where to go on ("last done"), and the records from there that are here already, and must come again."""
        if writer.unfinished:
            after = max(just_before(writer.received), origin.base.position)
            if again := self._last.behind(after):
                return after, again
            writer.drop_unfinished()
        after, again = durable_place(writer, origin.base.position)
        self._last = LastRecords(again)
        return after, again

    def _adopt_layouts(self, upstream: Upstream, writer: FileLogWriter) -> None:
        for schema in upstream.schemas():
            self._patiently(partial(writer.adopt, schema))

    def _fetch_catalog(self, upstream: Upstream) -> None:
        """Keeps what capture remembers of the source's catalog, so that a capture that takes over knows it too."""
        self._fetched = self._pauses.monotonic()
        content, path = upstream.catalog(), self._folder / _CATALOG_FILE
        if content is not None and (not path.exists() or path.read_bytes() != content):
            self._patiently(lambda: replace_whole(self._files, path, content))

    # --- records ------------------------------------------------------------------------------------------------

    def _copy(self, connection: _Connection, writer: FileLogWriter, overlap: deque[bytes]) -> None:
        stream, upstream, watch = connection.stream, connection.upstream, connection.watch
        origin, gathered, since = connection.origin, 0, 0.0
        if not overlap:
            watch.durable(writer.durable)
        while not self._stop.is_set():
            for header, record in stream.records():
                if header.flags & _FILTERED:
                    if not overlap and self._has_passed(origin, writer, header):
                        gathered = max(gathered, 1)
                    continue
                if overlap:
                    self._compare(record, overlap.popleft(), header, upstream, writer)
                    if not overlap:
                        watch.durable(writer.durable)
                    continue
                if header.kind == _SCHEMA:
                    self._adopt_layouts(upstream, writer)
                self._append(writer, header, record, origin)
                since = since if gathered else self._pauses.monotonic()
                gathered += len(record)
            full = gathered >= _SYNC_BYTES or self._pauses.monotonic() - since >= _SYNC_SECONDS
            if gathered and (full or not stream.more_has_arrived()):
                self._patiently(writer.sync)
                watch.durable(writer.durable)
                self._works()
                gathered = 0
            watch.check()
            connection.terms.check()
            self._do_chores(writer, watch, upstream)

    def _append(self, writer: FileLogWriter, header: RecordHeader, record: bytes, origin: Origin) -> None:
        self._patiently(lambda: writer.append_copy(header, record))
        self._last.note(header, record)
        if header.last > origin.tip.position:
            writer.note_announced(origin.tip.announced_schema)

    @staticmethod
    def _compare(theirs: bytes, ours: bytes, header: RecordHeader, upstream: Upstream, writer: FileLogWriter) -> None:
        if theirs == ours:
            return
        if writer.unfinished:
            writer.drop_unfinished()
            what = f"the transaction at {header.last} is not the one of which a part had come, which is dropped"
            raise RelayUnavailable(what, where=upstream.url)
        what = f"the record at {header.last} is not the one that is here"
        raise LogDiverged(what, where=upstream.url, mend=BEGIN_ANEW)

    @staticmethod
    def _has_passed(origin: Origin, writer: FileLogWriter, sign_of_life: RecordHeader) -> bool:
        """Whether a sign of life told for the first time that everything up to the end that `origin` named is here.

        A record at that end does not tell: a layout may be announced behind it, at the same position. Upstream gives a
        sign of life when it has nothing more to send; one by which it asks for reports comes at any time.
        """
        if sign_of_life.flags & _ASKED or writer.received < origin.tip.position:
            return False
        if writer.durable.announced_schema >= origin.tip.announced_schema:
            return False
        writer.note_announced(origin.tip.announced_schema)
        return True

    def _works(self) -> None:
        """Something came: whatever was wrong is over."""
        self._ceiling, self._refused, self._last_reason = FIRST_PAUSE, {}, None

    def _patiently(self, action: Callable[[], object]) -> None:
        """Does it as soon as there is room on the disk; the upstream waits meanwhile."""
        said = False
        while True:
            try:
                action()
            except LogFull as full:
                if not said:
                    _log.error("chain_log_full", error=str(full), note="nothing is copied until there is room")
                said = True
                self._report.tell("disk full", str(full))
                if self._writer is not None:
                    with suppress(LogFull):
                        self._writer.trim(self._pauses.now())
                if self._stop.wait(_FULL_SECONDS):
                    raise
            else:
                if said:
                    _log.info("chain_log_has_room")
                    self._report.tell("copying", None)
                return

    def _do_chores(self, writer: FileLogWriter, watch: ChainWatch, upstream: Upstream) -> None:
        now = self._pauses.monotonic()
        if now - self._chored < _CHORE_SECONDS:
            return
        self._chored = now
        if now - self._trimmed >= _TRIM_SECONDS:
            self._trimmed = now
            writer.trim(self._pauses.now())
        if now - self._fetched >= _CATALOG_SECONDS:
            self._fetch_catalog(upstream)
            self._adopt_layouts(upstream, writer)  # of a table without changes no record tells
        self._report.progress(writer.durable, watch.upstream_tip)

    # --- trouble ------------------------------------------------------------------------------------------------

    def _failed(self, upstream: Upstream, error: WalbusError | OSError) -> None:
        """Waits, and goes to the next upstream; raises what cannot pass."""
        if directive_of(error) is not Directive.RETRY:
            if not isinstance(error, (LogDiverged, PositionTrimmed, RequestRefused)):
                self._report.tell("stopped", str(error))
                raise error
            self._refused[upstream.url] = error
            if self._nobody_is_left():
                self._report.tell("stopped", str(error))
                raise error
        else:
            self._refused.pop(upstream.url, None)
        reason = str(error)
        if reason != self._last_reason:
            _log.warning("chain_waits", upstream=upstream.url, reason=reason)
        self._last_reason = reason if len(self._upstreams) == 1 else self._last_reason
        self._report.tell("waiting", reason)
        self._at = (self._at + 1) % len(self._upstreams)
        pause = self._ceiling * (0.5 + self._pauses.random() / 2)
        self._ceiling = min(LONGEST_PAUSE, self._ceiling * 2)
        self._stop.wait(pause)

    def _nobody_is_left(self) -> bool:
        """Whether every upstream has refused, or is one of a term that ended before that of one that has.

        One that never told its term may have the log.
        """
        latest = max(self._terms.get(url, 0) for url in self._refused)
        return all(
            upstream.url in self._refused or self._terms.get(upstream.url, latest) < latest
            for upstream in self._upstreams
        )


def _another_log(theirs: str, ours: str, upstream: Upstream) -> LogDiverged:
    return LogDiverged(f"it serves log {theirs}, and this is a copy of log {ours}", where=upstream.url, mend=BEGIN_ANEW)
