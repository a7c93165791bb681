"""`walbus consume NAME`: windows into a sink, as many at a time as arrive together.

    session ──► pending windows ──► sink.write ──► sink.commit(checkpoint)

A commit happens only between windows. A transaction that is larger than the sink's batch is written in pieces, which
the sink keeps uncommitted (or shows early, if it has no transactions) until the last one. When the sink is away, what
was accepted is rolled back, and after a back-off reading goes on behind the checkpoint that the sink itself tells:
one that came back empty tells none, and is filled from a snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from walbus.config import ConsumerConfig
from walbus.consumers.addresses import Relays, listed
from walbus.consumers.backoff import Backoff
from walbus.consumers.checkpoint import Checkpoint, Marks
from walbus.consumers.clock import Clock
from walbus.consumers.dead_letters import DeadLetters
from walbus.consumers.letter_file import FILE_NAME
from walbus.consumers.mapped_sink import MappedSink, RememberedMapping, load_mapper
from walbus.consumers.narrowing import Narrowing
from walbus.consumers.partitions import own_place, part_name, require_same_parts
from walbus.consumers.pausing import PAUSED, Pause
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.progress import STATUS_SECONDS, ConsumerProgress, Tally
from walbus.consumers.refused_rows import RefusedRow
from walbus.consumers.reporting import Reported, Reporter
from walbus.consumers.session import Session
from walbus.consumers.sifted_sink import Rewound, SiftedSink
from walbus.consumers.sinks import Sink, SinkPlace, open_sink
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.steps import (
    Advance,
    Asked,
    Deliver,
    Discard,
    Output,
    Sweep,
)
from walbus.consumers.subscribed import Subscribed
from walbus.consumers.tables import check_patterns
from walbus.consumers.transport import HttpPeer, RelayPeer
from walbus.credentials import ANONYMOUS, Credentials
from walbus.errors import Directive, UsageError, WalbusError, directive_of
from walbus.events import Change, Window

_log = structlog.get_logger(__name__)

#: Seconds between two checkpoints that are stored only because the log moved on without anything for the consumer.
IDLE_COMMIT_SECONDS = 1.0
_POLL_SECONDS = 0.2


@dataclass
class SinkFeed:
    """Batches outputs of a session into a sink. Pure but for the sink: time is passed in.

    Attributes:
        sink: where windows go.
        committed: called with what each commit made durable, and its checkpoint.
    """

    sink: Sink
    committed: Callable[[Tally, Checkpoint], None]
    _pending: list[Window] = field(default_factory=list, init=False)
    _written: Tally = field(default_factory=Tally, init=False)  # of windows that are written and not committed
    _changes: int = field(default=0, init=False)  # in `_pending`
    _bytes: int = field(default=0, init=False)  # of rows in `_pending`
    _marks: Marks = field(default=Marks(0, 0), init=False)
    _checkpoint: Checkpoint | None = field(default=None, init=False)  # holds once all that was taken is committed
    _whole: bool = field(default=True, init=False)  # whether what was taken ends with a transaction
    _since: float | None = field(default=None, init=False)  # when the oldest uncommitted window came
    _idle_at: float = field(default=0.0, init=False)  # when a checkpoint without windows is next due

    @property
    def is_whole(self) -> bool:
        """Whether what was taken ends with a transaction."""
        return self._whole

    @property
    def is_clean(self) -> bool:
        """Whether everything that was taken is committed, but for a checkpoint without windows."""
        return self._whole and self._since is None

    def take(self, output: Output, now: float) -> None:
        """Accepts one output; writes and commits what is due.

        Raises:
            SinkUnavailable, SinkRefused
        """
        match output:
            case Deliver(window, marks, checkpoint):
                self._take_window(window, marks, checkpoint, now)
            case Sweep(checkpoint=checkpoint):
                self._write()
                self.sink.sweep(output)
                self._checkpoint = checkpoint
                self._commit(now)
            case Advance(checkpoint):
                self._checkpoint = checkpoint
            case Discard():
                self._drop()
                self.sink.rollback()
            case Asked():
                self.finish(now)

    def flush_due(self, now: float) -> None:
        """Commits if the oldest window has waited long enough, or if the log moved on without windows."""
        if not self._whole or self._checkpoint is None:
            return
        if self._since is None:
            if now >= self._idle_at:
                self._commit(now)
        elif now - self._since >= self.sink.batching.linger:
            self._commit(now)

    def wait(self, now: float, longest: float) -> float:
        """Seconds until `flush_due` has something to do, at most `longest`."""
        if self._since is None or not self._whole:
            return longest
        return min(longest, max(0.0, self._since + self.sink.batching.linger - now))

    def finish(self, now: float) -> None:
        """Commits whatever whole windows are there."""
        if self._whole and self._checkpoint is not None:
            self._commit(now)

    def _take_window(self, window: Window, marks: Marks, checkpoint: Checkpoint | None, now: float) -> None:
        if checkpoint is None and self._whole and self._since is not None:
            self._commit(now)  # a large transaction begins: what is whole does not wait for its end
        if marks != self._marks:
            self._write()
        self._pending.append(window)
        self._changes += len(window.changes)
        self._bytes += sum(len(change.raw.after or b"") for change in window.changes)
        self._whole = checkpoint is not None
        self._since = now if self._since is None else self._since
        self._marks = marks
        self._checkpoint = checkpoint or self._checkpoint
        batching = self.sink.batching
        if self._changes >= batching.max_changes or self._bytes >= batching.max_bytes:
            self._write()

    def _write(self) -> None:
        if self._pending:
            self.sink.write(self._pending, self._marks)
            self._written.add(self._pending)
            self._pending, self._changes, self._bytes = [], 0, 0

    def _commit(self, now: float) -> None:
        checkpoint = self._checkpoint
        if checkpoint is None:
            return
        self._write()
        self.sink.commit(checkpoint)
        written = self._written
        self._drop()
        self._idle_at = now + IDLE_COMMIT_SECONDS
        self.committed(written, checkpoint)

    def _drop(self) -> None:
        self._pending, self._written, self._changes, self._bytes = [], Tally(), 0, 0
        self._checkpoint, self._since, self._whole = None, None, True


@dataclass
class ConsumerRun:
    """One consumer's process.

    Attributes:
        subscribed: what it reads.
        relay: where from.
        reporter: tells the relay where it is.
        sink: where to.
        progress: what it tells of itself.
        stop: set from outside to end it.
        clock: time.
        pause: whether an operator has it rest.
        backoff, refusals: jitter, the second one's of rows that are tried again.
    """

    subscribed: Subscribed
    relay: Relays
    reporter: Reporter
    sink: Sink | SiftedSink
    progress: ConsumerProgress
    stop: threading.Event
    clock: Clock
    pause: Pause
    backoff: Backoff = field(default_factory=lambda: Backoff(longest=10.0))
    refusals: Backoff = field(default_factory=lambda: Backoff(longest=2.0))

    def __post_init__(self) -> None:
        """Raises UsageError: a sink would take a column that is left out for one whose value did not change."""
        if self.subscribed.narrowing.columns or self.subscribed.narrowing.ops:
            what = "a sink holds whole rows, and needs every column and operation"
            raise UsageError(what, where=f"consumer {self.subscribed.name}", mend="leave columns and ops out")

    def run(self) -> None:
        """Works until stopped.

        Raises:
            WalbusError: nothing but an operator's act helps.
        """
        while not self.stop.is_set():
            try:
                self._follow()
            except Rewound as refused:
                if refused.pause:
                    self.stop.wait(self.refusals.next_delay())
                else:
                    self.refusals.reset()
            except SinkSwapped:
                _log.info("consumer.sink_swapped", consumer=self.subscribed.name)
            except (WalbusError, OSError) as error:
                if directive_of(error) is not Directive.RETRY:
                    raise
                self._wait_for_sink(error)

    def _follow(self) -> None:
        checkpoint = self.sink.checkpoint()
        self.reporter.begin(checkpoint)
        session = Session(self.relay, self.subscribed, checkpoint, self.clock)
        feed = SinkFeed(self.sink, self._committed)
        if isinstance(self.sink, SiftedSink):
            self.sink.log_id = lambda: session.log_id
        try:
            self._pump(session, feed)
            feed.finish(self.clock.monotonic())
            self.progress.publish_now(session.phase, "stopped")
        finally:
            session.close()
            self.sink.rollback()

    def _pump(self, session: Session, feed: SinkFeed) -> None:
        while not self.stop.is_set():
            if feed.is_whole and self.pause.is_asked:
                self._rest(session, feed)
                continue
            if isinstance(self.sink, SiftedSink) and feed.is_clean:
                self.sink.try_letters()
                self._count_aside(self.sink)
            output = session.poll(feed.wait(self.clock.monotonic(), _POLL_SECONDS))
            now = self.clock.monotonic()
            if isinstance(output, Asked):
                self.reporter.asked(output.position)
            if output is not None and not isinstance(output, PhaseEvent):
                feed.take(output, now)
            feed.flush_due(now)
            if session.phase == "online":
                if self.sink.incomplete():
                    feed.finish(now)
                session.lack(self.sink.incomplete())
            self.progress.publish(session.phase, session.waiting_for)

    def _rest(self, session: Session, feed: SinkFeed) -> None:
        """Stores what is there, reads nothing, and goes on telling that it is there, until the pause ends."""
        feed.finish(self.clock.monotonic())
        session.rest()
        _log.info("consumer.paused", consumer=self.subscribed.name)
        why = f"paused by an operator; `walbus consumers resume {self.subscribed.name}` ends it"
        self.progress.publish_now(PAUSED, why)
        while self.pause.is_asked and not self.stop.wait(_POLL_SECONDS):
            self.progress.publish(PAUSED, why)
        _log.info("consumer.reading", consumer=self.subscribed.name, phase=session.phase)

    def _committed(self, tally: Tally, checkpoint: Checkpoint) -> None:
        self.backoff.reset()
        self.progress.committed(tally, checkpoint)

    def _count_aside(self, sink: SiftedSink) -> None:
        self.progress.skipped, self.progress.parked = sink.skipped, sink.parked

    def _wait_for_sink(self, error: BaseException) -> None:
        if self.backoff.attempts == 0:
            _log.warning("consumer.sink_away", consumer=self.subscribed.name, reason=str(error))
        delay = self.backoff.next_delay()
        _wait(delay, error, self.progress, self.stop)


def run_consumer(  # noqa: PLR0913  (the fixed entry point of the room)
    name: str,
    config: ConsumerConfig,
    *,
    relay_url: str | Sequence[str],
    folder: Path,
    status_path: Path | None,
    stop: threading.Event,
    credentials: Credentials = ANONYMOUS,
) -> None:
    """Keeps one sink in step until `stop` is set.

    Args:
        name: of the consumer.
        config: its section of `walbus.toml`.
        relay_url: address of the relay, or of several of one log.
        folder: for the consumer's own files, made when missing; a part's is the one beside it with the part's name.
        status_path: of the status file, rewritten each second; None for none.
        stop: set to end it; it then commits what is whole, and returns within about a second.
        credentials: what is shown to relay and bootstrap.

    Raises:
        UsageError: the sink's checkpoint, or a consumer of this name here, is of another number of parts; or there are
            dead letters, and `on_error` is not `dead-letter`.
        ConfigError: a key of the sink is unknown or wrong, its extra is not installed, or a mapping fits no table.
        SinkRefused: the sink will never take a row or this configuration; names table and position.
        DeadLettersFull: more rows are refused than may be parked.
        PositionUnknown: the log does not continue the one that the checkpoint was made on.
    """
    narrowing = Narrowing(config.partition)
    options = own_place(config.sink, config.options, narrowing.partition, name)
    require_same_parts(folder.parent, folder.name, narrowing.partition)
    name, folder = part_name(name, narrowing.partition), folder.with_name(part_name(folder.name, narrowing.partition))
    tables = check_patterns(config.tables)
    clock = Clock(pause=stop.wait)
    progress = ConsumerProgress(name, config.sink, status_path, clock)
    place = SinkPlace(name, folder, tables)
    mapper = load_mapper(config.table, place)
    opened = _open_patiently(config.sink, options, place, progress, stop)
    if opened is None:
        return
    sink: Sink = MappedSink(opened, mapper, RememberedMapping(folder, config.table, name))
    try:
        sink = _sifted(sink, mapper.row_of, config, place, clock)
    except BaseException:
        sink.close()
        raise
    peers = [RelayPeer(HttpPeer(url, credentials)) for url in listed(relay_url)]
    relays = Relays(peers)
    reporter = progress.reporter = Reporter(Reported(name, tables, config.sink), relays, clock)
    try:
        subscribed = Subscribed(name, tables, config.start, None, config.delta_above or None, narrowing)
        ConsumerRun(subscribed, relays, reporter, sink, progress, stop, clock, Pause(folder, clock)).run()
    finally:
        sink.close()
        reporter.close()
        for peer in peers:
            peer.close()


def _sifted(
    sink: Sink, row_of: Callable[[Change], RefusedRow], config: ConsumerConfig, place: SinkPlace, clock: Clock
) -> Sink:
    """The sink under the consumer's `on_error`.

    Raises:
        UsageError: there are dead letters, and nothing would keep later changes behind them.
        StoreError, StoreDamaged: of the dead letters.
    """
    path = place.folder / FILE_NAME
    if config.on_error == "dead-letter":
        letters = DeadLetters(path, tries_wait=True, wall=clock.wall)
        return SiftedSink(sink, row_of, letters, config.on_error_attempts, place.consumer, clock.monotonic)
    if path.exists():
        with closing(DeadLetters(path)) as left:
            if count := len(left):
                what = f"there are {count} dead letters, and their keys would lose their order"
                mend = f'give it on_error = "dead-letter", or `walbus dead-letters drop {place.consumer} --all`'
                raise UsageError(what, where=f"consumer {place.consumer}", mend=mend)
    if config.on_error == "stop":
        return sink
    return SiftedSink(sink, row_of, None, config.on_error_attempts, place.consumer, clock.monotonic)


def _open_patiently(
    kind: str, options: Mapping[str, Any], place: SinkPlace, progress: ConsumerProgress, stop: threading.Event
) -> Sink | None:
    """The sink, however long its server is away; None if stopped before."""
    backoff = Backoff(longest=10.0)
    while not stop.is_set():
        try:
            return open_sink(kind, options, place)
        except WalbusError as error:
            if directive_of(error) is not Directive.RETRY:
                raise
            if backoff.attempts == 0:
                _log.warning("consumer.sink_away", consumer=place.consumer, reason=str(error))
            _wait(backoff.next_delay(), error, progress, stop)
    return None


def _wait(seconds: float, error: BaseException, progress: ConsumerProgress, stop: threading.Event) -> None:
    """Waits; the status file goes on telling why, for a stale one is taken for that of a process that is not there."""
    end = progress.clock.monotonic() + seconds
    progress.publish_now("waiting", str(error))
    while (left := end - progress.clock.monotonic()) > 0 and not stop.wait(min(left, STATUS_SECONDS)):
        progress.publish("waiting", str(error))
