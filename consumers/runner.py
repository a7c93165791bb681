"""`walbus consume NAME`: windows into a sink, as many at a time as arrive together.

    session ──► pending windows ──► sink.write ──► sink.commit(checkpoint)

When the sink is away, what was accepted is rolled back, and after a back-off reading goes on behind the checkpoint that
the sink itself tells: one that came back empty tells none, and is filled from a snapshot. With `parts` the process is a
member of a group, and does this for each part that it is given (`group_sinks`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from walbus.config import ConsumerConfig
from walbus.consumers.addresses import LogAddress, Relays, listed, peer_at
from walbus.consumers.backoff import Backoff
from walbus.consumers.checkpoint import Checkpoint
from walbus.consumers.clock import Clock
from walbus.consumers.dead_letters import DeadLetters
from walbus.consumers.group_sinks import SinkPart, check_group_of_sinks, run_group
from walbus.consumers.group_status import GroupStatus
from walbus.consumers.leased_sink import LeasedSink
from walbus.consumers.lessors import lessor_of
from walbus.consumers.letter_file import FILE_NAME
from walbus.consumers.mapped_sink import MappedSink, RememberedMapping, load_mapper
from walbus.consumers.narrowing import Narrowing
from walbus.consumers.part_lease import PartLease
from walbus.consumers.partitions import options_of, part_name, part_of, require_same_parts
from walbus.consumers.pausing import PAUSED, Pause
from walbus.consumers.peers import LogPeer
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.progress import STATUS_SECONDS, ConsumerProgress, Tally
from walbus.consumers.refused_rows import RefusedRow
from walbus.consumers.reporting import Reported, Reporter
from walbus.consumers.session import Session
from walbus.consumers.sifted_sink import Rewound, SiftedSink
from walbus.consumers.sink_feed import SinkFeed
from walbus.consumers.sinks import Sink, SinkPlace, open_fenced_sink, open_sink
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.steps import (
    Asked,
)
from walbus.consumers.subscribed import Subscribed
from walbus.consumers.tables import check_patterns
from walbus.credentials import ANONYMOUS, Credentials
from walbus.errors import Directive, PartLost, UsageError, WalbusError, directive_of
from walbus.events import Change

_log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2


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
        lease: of the part, where a member of a group has it.
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
    lease: PartLease | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(longest=10.0))
    refusals: Backoff = field(default_factory=lambda: Backoff(longest=2.0))
    _told: str = field(default="", init=False)  # why the sink is waited for

    def __post_init__(self) -> None:
        """Raises UsageError: a sink would take a column that is left out for one whose value did not change."""
        if self.subscribed.narrowing.columns or self.subscribed.narrowing.ops:
            what = "a sink holds whole rows, and needs every column and operation"
            raise UsageError(what, where=f"consumer {self.subscribed.name}", mend="leave columns and ops out")

    def run(self) -> None:
        """Works until stopped.

        Raises:
            PartLost: another member of the group has the part.
            WalbusError: nothing but an operator's act helps.
        """
        while not self.stop.is_set():
            try:
                self._wait_for_lease()
                self._follow()
            except PartLost:
                if self.lease is None or self.lease.lost:
                    raise
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
        self.progress.begins(checkpoint)
        session = Session(self.relay, self.subscribed, checkpoint, self.clock)
        feed = SinkFeed(self.sink, self._committed)
        if isinstance(self.sink, SiftedSink):
            self.sink.log_id = lambda: session.log_id
        try:
            self._pump(session, feed)
            feed.finish(self.clock.monotonic())
            if self.stop.is_set():
                self.progress.publish_now(session.phase, "stopped")
        finally:
            session.close()
            self.sink.rollback()

    def _pump(self, session: Session, feed: SinkFeed) -> None:
        while not self.stop.is_set() and self._may_hand_on():
            if feed.is_whole and self.pause.is_asked:
                self._rest(session, feed)
                continue
            if isinstance(self.sink, SiftedSink) and feed.is_clean:
                self.sink.try_letters()
                self._count_aside(self.sink)
            output = session.poll_run(feed.wait(self.clock.monotonic(), _POLL_SECONDS))
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
        why = f"paused by an operator; `walbus consumers resume {self.pause.name}` ends it"
        self.progress.publish_now(PAUSED, why)
        while self.pause.is_asked and self._may_hand_on() and not self.stop.wait(_POLL_SECONDS):
            self.progress.publish(PAUSED, why)
        _log.info("consumer.reading", consumer=self.subscribed.name, phase=session.phase)

    def _may_hand_on(self) -> bool:
        return self.lease is None or self.lease.may_hand_on()

    def _wait_for_lease(self) -> None:
        """Blocks while the lease is over, and may still be renewed; without a sound where there is none."""
        if self._may_hand_on() or self.lease is None:
            return
        _log.warning("consumer.lease_over", consumer=self.subscribed.name)
        why = "the lease of its part has not been renewed"
        while not self._may_hand_on() and not self.lease.lost and not self.stop.wait(_POLL_SECONDS):
            self.progress.publish("waiting", why)
        if not self.stop.is_set():
            self.lease.require()

    def _committed(self, tally: Tally, checkpoint: Checkpoint) -> None:
        self.backoff.reset()
        self.progress.committed(tally, checkpoint)

    def _count_aside(self, sink: SiftedSink) -> None:
        self.progress.skipped, self.progress.parked = sink.skipped, sink.parked

    def _wait_for_sink(self, error: BaseException) -> None:
        reason = str(error)
        if self.backoff.attempts == 0 or reason != self._told:  # one line for each reason, however long it lasts
            _log.warning("consumer.sink_away", consumer=self.subscribed.name, reason=reason)
        self._told = reason
        delay = self.backoff.next_delay()
        _wait(delay, error, self.progress, self.stop)


def run_consumer(  # noqa: PLR0913  (the fixed entry point of the room)
    name: str,
    config: ConsumerConfig,
    *,
    relay_url: LogAddress | Sequence[LogAddress],
    folder: Path,
    status_path: Path | None,
    stop: threading.Event,
    credentials: Credentials = ANONYMOUS,
) -> None:
    """Keeps one sink in step until `stop` is set.

    Args:
        name: of the consumer.
        config: its section of `walbus.toml`.
        relay_url: address of the relay, or of several of one log, or of a log on Kafka.
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
    consumer = _Configured(name, config, listed(relay_url), folder, credentials)
    clock = Clock(pause=stop.wait)
    if config.parts is None:
        called = part_name(name, Narrowing(config.partition).partition)
        consumer.run(ConsumerProgress(called, config.sink, status_path, clock), stop)
        return
    check_group_of_sinks(config, SinkPlace(name, folder, check_patterns(config.tables)))
    consumer.check(f"0/{config.parts}")
    status = GroupStatus(name, config.sink, config.parts, status_path, clock)
    with consumer.relays() as relays:
        run_group(
            name,
            config,
            lessor=lessor_of(name, relays, clock),
            status=status,
            run_part=consumer.run_part,
            stop=stop,
            clock=clock,
        )


@dataclass(frozen=True)
class _Configured:
    """A consumer, whichever part of it runs.

    Attributes:
        name: that its parts share.
        config: its section.
        urls: of the relays.
        folder: for its own files; a part's is the one beside it with the part's name.
        credentials: what is shown to the servers.
    """

    name: str
    config: ConsumerConfig
    urls: Sequence[LogAddress]
    folder: Path
    credentials: Credentials

    def run_part(self, part: SinkPart) -> None:
        """Keeps one part in step for as long as this process has it; as `run`."""
        self.run(part.progress, part.stopping, part)

    def run(self, progress: ConsumerProgress, stop: threading.Event, part: SinkPart | None = None) -> None:
        """Keeps the sink of a part, or of all keys, in step; raises as `run_consumer`."""
        config = self.config
        narrowing = Narrowing(config.partition if part is None else part.lease.part.partition)
        options = self.check(narrowing.partition)
        name, clock = progress.name, progress.clock
        folder = self.folder.with_name(part_name(self.folder.name, narrowing.partition))
        place = SinkPlace(
            name,
            folder,
            check_patterns(config.tables),
            part_of(config, narrowing.partition),
            stop.is_set,
            mapped=bool(config.table),
        )
        mapper = load_mapper(config.table, place)
        opened = _open_patiently(config.sink, options, place, progress, stop, part)
        if opened is None:
            return
        sink: Sink = MappedSink(opened, mapper, RememberedMapping(folder, config.table, name))
        try:
            sink = _sifted(sink, mapper.row_of, config, place, clock)
        except BaseException:
            sink.close()
            raise
        token, lease = (0, None) if part is None else (part.lease.part.token, part.lease)
        subscribed = Subscribed(
            name, place.tables, config.start, None, config.delta_above or None, narrowing, token=token
        )
        pause = Pause(folder if part is None else self.folder, clock)
        with ExitStack() as stack:
            stack.callback(sink.close)
            relays = Relays(stack.enter_context(self.relays()))
            progress.reporter = Reporter(Reported(name, place.tables, config.sink), relays, clock)
            stack.callback(progress.reporter.close)
            ConsumerRun(subscribed, relays, progress.reporter, sink, progress, stop, clock, pause, lease).run()

    def check(self, partition: str | None) -> dict[str, Any]:
        """The sink's options for a part; raises UsageError, ConfigError: it cannot be had here."""
        require_same_parts(self.folder.parent, self.folder.name, partition)
        return options_of(self.config, partition, self.name)

    @contextmanager
    def relays(self) -> Iterator[list[LogPeer]]:
        """Connections to them."""
        peers = [peer_at(url, self.credentials) for url in self.urls]
        try:
            yield peers
        finally:
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


def _open_patiently(  # noqa: PLR0913, PLR0917  # what it opens, and for whom
    kind: str,
    options: Mapping[str, Any],
    place: SinkPlace,
    progress: ConsumerProgress,
    stop: threading.Event,
    part: SinkPart | None,
) -> Sink | None:
    """The sink, under the lease of a part if there is one, however long its server is away; None if stopped before."""
    backoff, last = Backoff(longest=10.0), ""
    while not stop.is_set():
        try:
            if part is None:
                return open_sink(kind, options, place)
            return LeasedSink(open_fenced_sink(kind, options, place), part.lease, part.lease_seconds)
        except WalbusError as error:
            if directive_of(error) is not Directive.RETRY:
                raise
            if (reason := str(error)) != last:
                _log.warning("consumer.sink_away", consumer=place.consumer, reason=reason)
                last = reason
            _wait(backoff.next_delay(), error, progress, stop)
    return None


def _wait(seconds: float, error: BaseException, progress: ConsumerProgress, stop: threading.Event) -> None:
    """Waits; the status file goes on telling why, for a stale one is taken for that of a process that is not there."""
    end = progress.clock.monotonic() + seconds
    progress.publish_now("waiting", str(error))
    while (left := end - progress.clock.monotonic()) > 0 and not stop.wait(min(left, STATUS_SECONDS)):
        progress.publish("waiting", str(error))
