"""`walbus rebuild NAME`: a sink's rows anew, in a copy beside the live ones, which then takes their place.

    read all rows ──► catch up ──► furnish ──► the live sink stands still ──► up to its position ──► swap
                                                        ▲──── given up after a moment, again later ────┘

The copy is a sink with a checkpoint of its own, which is filled by the ordinary way of a consumer: whoever kills this
process finds the copy as it was committed last, and the next rebuild goes on there. The live sink is written by its
consumer all the while, and read by whoever reads it.

A swap happens at a position that the live sink has not passed: readers never see an older state than before. For the
last step its writer is kept waiting, some seconds at the longest, and the copy takes what it lacks in that very
transaction. Where readers may see more of the live sink than its checkpoint tells, that is all that the log has.
The consumer finds that it was swapped when it writes next, and goes on behind the checkpoint that came with the copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType

import structlog

from walbus.config import ConsumerConfig
from walbus.consumers.addresses import LogAddress, Relays, listed, peer_at
from walbus.consumers.backoff import Backoff
from walbus.consumers.checkpoint import CatchingUp, Checkpoint, Following, Snapshotting, last_done_of
from walbus.consumers.clock import Clock
from walbus.consumers.mapped_sink import MappedSink, RememberedMapping, load_mapper
from walbus.consumers.narrowing import Narrowing
from walbus.consumers.partitions import own_place, part_name
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.progress import Tally
from walbus.consumers.reporting import Reported, Reporter
from walbus.consumers.session import Session
from walbus.consumers.sink_feed import SinkFeed
from walbus.consumers.sinks import SinkPlace, open_copies
from walbus.consumers.sinks.copies import SinkCopies, SinkCopy
from walbus.consumers.steps import Advance, Deliver, Discard, Sweep
from walbus.consumers.subscribed import Subscribed
from walbus.consumers.tables import check_patterns, matching
from walbus.credentials import ANONYMOUS, Credentials
from walbus.errors import Directive, SinkUnavailable, UsageError, WalbusError, directive_of
from walbus.position import Position

_log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 0.05  # between two looks where the live sink is
_HELD_SECONDS = 3.0  # that the live sink's writer is kept waiting: less than a sink waits for a lock
_BEHIND_SECONDS = _HELD_SECONDS / 2  # that the copy may be behind when the writer is asked to wait
_TOLD_SECONDS = 10.0  # between two lines that tell how far it is
_LEFT_TO_OTHERS = 0.25  # of the time that the copy is written in
_LONGEST_NAME = 63 - len(".rebuild")


def rebuild(  # noqa: PLR0913  (those of `run_consumer`)
    name: str,
    config: ConsumerConfig,
    *,
    relay_url: LogAddress | Sequence[LogAddress],
    folder: Path,
    stop: threading.Event,
    credentials: Credentials = ANONYMOUS,
) -> Position | None:
    """Fills a copy of a consumer's sink, and swaps the two.

    Args:
        name: of the consumer, which may run or not.
        config: its section of `walbus.toml`.
        relay_url: address of the relay, or of several of one log, or of a log on Kafka.
        folder: for the consumer's own files, as `run_consumer` has it.
        stop: set to end it; the copy is kept as it is.
        credentials: what is shown to relay and bootstrap.

    Returns:
        The position that the sink had behind the swap; None if it was stopped before.

    Raises:
        UsageError: the sink cannot be rebuilt, has no rows yet, need not have all rows or cannot have them from the
            bootstrap; or what the last rebuild replaced is there yet.
        ConfigError: as `run_consumer`.
        SinkRefused: the sink is of another mapping, has what a copy would not have, or takes a row or a table not.
        PositionUnknown: the log does not continue the one that the copy was made on.
    """
    place, options, narrowing = _place_of(name, config, folder, stop.is_set)
    mapper = load_mapper(config.table, place)
    where = f"consumer {place.consumer}"
    if config.start != "snapshot":
        what = f"the consumer begins at {config.start}, so its sink need not have all rows"
        raise UsageError(what, where=f"key consumer.{name}.start", mend="rebuild one that starts with a snapshot")
    with _UnlessStopped(stop), ExitStack() as stack:
        copies = stack.enter_context(closing(open_copies(config.sink, options, place)))
        remembered = RememberedMapping(place.folder, config.table, place.consumer)
        before = copies.live()  # the sink itself is its consumer's to open: that puts right what it finds half done
        if before is None:
            raise UsageError("the sink has no rows yet", where=where, mend=f"start `walbus consume {name}`")
        remembered.check(begun=True)
        if copies.kept():
            what = "what the last rebuild replaced is there yet"
            raise UsageError(what, where=where, mend=f"`walbus rebuild {name} --drop-old` drops it")
        clock = Clock(pause=stop.wait)
        peers = [stack.enter_context(closing(peer_at(url, credentials))) for url in listed(relay_url)]
        relays = Relays(peers)
        _require_served(relays, before, place)
        copy = stack.enter_context(closing(copies.beside()))
        called = f"{place.consumer[:_LONGEST_NAME]}.rebuild"
        reporter = stack.enter_context(Reporter(Reported(called, place.tables, config.sink), relays, clock))
        subscribed = Subscribed(called, place.tables, "snapshot", None, config.delta_above or None, narrowing)
        mapped = MappedSink(copy, mapper, remembered)
        return Rebuilding(name, subscribed, relays, reporter, copies, copy, mapped, clock, stop).run()
    return None


def discard(name: str, config: ConsumerConfig, folder: Path, stop: threading.Event | None = None) -> bool | None:
    """Drops the copy of a rebuild that has not come to its end.

    Args:
        name: of the consumer.
        config: its section of `walbus.toml`.
        folder: the consumer's.
        stop: set to end it, within about a second: it goes on when it is called again.

    Returns: False: there is none; None: it was stopped before.

    Raises:
        UsageError, ConfigError, SinkUnavailable, SinkRefused
    """
    stop = stop or threading.Event()
    with _UnlessStopped(stop), closing(_copies_of(name, config, folder, stop)) as copies:
        return copies.discard()
    return None


def drop_kept(name: str, config: ConsumerConfig, folder: Path, stop: threading.Event | None = None) -> bool | None:
    """Drops what the last rebuild replaced; as `discard`."""
    stop = stop or threading.Event()
    with _UnlessStopped(stop), closing(_copies_of(name, config, folder, stop)) as copies:
        return copies.drop_kept()
    return None


class _UnlessStopped:
    """Within it whoever waits for others gives up (SinkUnavailable) when this process is to end: that is its end."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        return isinstance(error, SinkUnavailable) and self._stop.is_set()


def _place_of(
    name: str, config: ConsumerConfig, folder: Path, stopping: Callable[[], bool]
) -> tuple[SinkPlace, dict[str, object], Narrowing]:
    if config.parts is not None:
        what = "a group's parts are in their holders' hands, and would have to be swapped all at once"
        mend = (
            f"`walbus consumers reset {name} --to snapshot` has its rows read again in place; or let a consumer with "
        )
        mend += "another name and place fill a second one, and have its readers turn to that"
        raise UsageError(what, where=f"key consumer.{name}.parts", mend=mend)
    narrowing = Narrowing(config.partition)
    called = part_name(name, narrowing.partition)
    own_folder = folder.with_name(part_name(folder.name, narrowing.partition))
    place = SinkPlace(called, own_folder, check_patterns(config.tables), stopping=stopping)
    return place, own_place(config.sink, config.options, narrowing.partition, name), narrowing


def _copies_of(name: str, config: ConsumerConfig, folder: Path, stop: threading.Event) -> SinkCopies:
    place, options, _ = _place_of(name, config, folder, stop.is_set)
    return open_copies(config.sink, options, place)


class Rebuilding:
    """One rebuild, from the copy as it was left to the swap.

    Args:
        name: of the consumer.
        subscribed: what the copy reads.
        relays: where from.
        reporter: tells the relay how far the copy is.
        copies: the live sink, and what is beside it.
        copy: what is filled, and `mapped` the same behind the consumer's mapping.
        clock, stop: time, and when to end.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # what it brings together
        self,
        name: str,
        subscribed: Subscribed,
        relays: Relays,
        reporter: Reporter,
        copies: SinkCopies,
        copy: SinkCopy,
        mapped: MappedSink,
        clock: Clock,
        stop: threading.Event,
    ) -> None:
        self._name, self._subscribed, self._relays, self._reporter = name, subscribed, relays, reporter
        self._copies, self._copy, self._mapped = copies, copy, mapped
        self._clock, self._stop = clock, stop
        self._backoff, self._attempts = Backoff(longest=10.0), Backoff(first=0.5, longest=10.0)
        self._committed: Checkpoint | None = None
        self._furnished = False
        self._unsure = False  # whether a swap may have come through without an answer
        self._rows = 0
        self._told_at = clock.monotonic()
        self._rested_at = clock.monotonic()
        self._attempt_at = 0.0
        self._sought: tuple[Position, float] | None = None  # where the live sink was at a look, and when that was

    def run(self) -> Position | None:
        """Works until the copy is swapped, or it is stopped; see `rebuild`."""
        while not self._stop.is_set():
            try:
                swapped = self._swapped_unheard() if self._unsure else None
                self._unsure = False
                swapped = swapped or self._follow()
            except (WalbusError, OSError) as error:
                if directive_of(error) is not Directive.RETRY:
                    raise
                self._unsure, swapped = True, None
                _log.warning("rebuild.waits", consumer=self._name, reason=str(error))
                self._clock.pause(self._backoff.next_delay())
            if swapped is not None:
                _log.info("rebuild.swapped", consumer=self._name, position=str(swapped))
                self._forgotten()
                return swapped
        return None

    def _swapped_unheard(self) -> Position | None:
        """The position of a swap whose answer was lost: nothing of the last rebuild was there when this one began."""
        return last_done_of(self._copies.live()) if self._copies.kept() else None

    def _forgotten(self) -> None:
        """The relay need not show the copy as a consumer any more; it does for some time if it cannot be told."""
        self._reporter.close()
        with suppress(WalbusError, OSError):
            self._relays.forget(self._subscribed.name)

    def _follow(self) -> Position | None:
        """Reads on from the copy's checkpoint; the swap's position, None if it is to be gone on with, or stopped."""
        self._committed = self._mapped.checkpoint()
        if self._committed is None:  # somebody dropped the copy, with what it was furnished with
            self._furnished = False
        self._reporter.begin(self._committed)
        session = Session(self._relays, self._subscribed, self._committed, self._clock)
        feed = SinkFeed(self._mapped, self._noted)
        try:
            while not self._stop.is_set():
                self._take_next(session, feed)
                if self._is_due(session, feed):
                    return self._swap(session)
            feed.finish(self._clock.monotonic())
        finally:
            session.close()
            self._mapped.rollback()
        return None

    def _take_next(self, session: Session, feed: SinkFeed) -> None:
        output, now = session.poll(feed.wait(self._clock.monotonic(), _POLL_SECONDS)), self._clock.monotonic()
        if isinstance(output, PhaseEvent):
            _log.info(
                f"rebuild.{output.what}", consumer=self._name, **({"table": output.table} if output.table else {})
            )
        elif output is not None:
            feed.take(output, now)
        feed.flush_due(now)
        if session.phase == "online":
            if self._mapped.incomplete():
                feed.finish(now)
            session.lack(self._mapped.incomplete())
        self._reporter.doing(session.phase, session.waiting_for)
        if now - self._told_at >= _TOLD_SECONDS:
            self._told_at = now
            told = {"waiting_for": session.waiting_for} if session.waiting_for else {}
            _log.info("rebuild.reading", consumer=self._name, phase=session.phase, rows=self._rows, **told)

    def _noted(self, tally: Tally, checkpoint: Checkpoint) -> None:
        """After each commit others have the sink, and the machine, for a while: the live sink's writer goes first."""
        self._committed = checkpoint
        self._backoff.reset()
        self._rows += tally.changes + tally.snapshot_rows + tally.delta_changes
        self._reporter.durable(checkpoint)
        now = self._clock.monotonic()
        if tally.windows:
            self._clock.pause(min(1.0, _LEFT_TO_OTHERS * (now - self._rested_at)))
        self._rested_at = self._clock.monotonic()

    # The swap

    def _is_due(self, session: Session, feed: SinkFeed) -> bool:
        """Whether the copy has all that it was given, and what the live sink had a moment ago.

        Not what it has now: under load that may always be one transaction more, which the copy takes in the swap.
        """
        committed, now = self._committed, self._clock.monotonic()
        if session.phase != "online" or not feed.is_clean or now < self._attempt_at or not _is_whole(committed):
            return False
        if self._mapped.incomplete():
            return False
        self._attempt_at = now + _LOOK_SECONDS
        if not self._furnished:
            self._copy.furnish()
            self._furnished = True
            return False  # the log went on meanwhile
        live = self._copies.live()
        _require_one_log(committed, live, self._name)
        return self._is_close(last_done_of(committed), newest_of(live))

    def _is_close(self, done: Position, live: Position) -> bool:
        """Whether the copy has what the live sink has, or had at a look not long ago."""
        now = self._clock.monotonic()
        sought, looked_at = self._sought or (live, now)
        if done < sought:
            self._sought = sought, looked_at
            return False
        self._sought = live, now
        return done >= live or now - looked_at <= _BEHIND_SECONDS

    def _swap(self, session: Session) -> Position | None:
        """Swaps at a position that the live sink has not passed; None if that is not to be had in a moment."""
        live = self._copy.hold()
        end = self._clock.monotonic() + _HELD_SECONDS
        _require_one_log(self._committed, live, self._name)
        goal = newest_of(live)
        if self._copy.shows_uncommitted:
            goal = max(goal, self._end_of_log())
        checkpoint = self._committed
        while checkpoint is None or last_done_of(checkpoint) < goal:
            if self._clock.monotonic() > end or self._stop.is_set():
                _log.info("rebuild.swap_waits", consumer=self._name, reason="the copy is not where the sink was held")
                self._put_off()
                return None
            match session.poll(_POLL_SECONDS / 4):
                case Deliver(window, marks, behind):
                    self._mapped.write([window], marks)
                    checkpoint = behind
                case Advance(behind):
                    checkpoint = behind
                case Discard() | Sweep():
                    self._put_off()
                    return None
        if not _is_whole(checkpoint) or self._mapped.incomplete():
            self._put_off()
            return None
        try:
            self._copy.swap(checkpoint)
        except SinkUnavailable as error:
            _log.info("rebuild.swap_waits", consumer=self._name, reason=str(error))
            self._unsure = True
            self._put_off()
            return None
        return last_done_of(checkpoint)

    def _end_of_log(self) -> Position:
        """Behind it the live sink can have nothing, whatever it has that its checkpoint does not tell."""
        log_id = "" if self._committed is None else self._committed.log_id
        return self._relays.info(log_id, last_done_of(self._committed)).log.end

    def _put_off(self) -> None:
        self._mapped.rollback()
        self._attempt_at = self._clock.monotonic() + self._attempts.next_delay()


def newest_of(live: Checkpoint | None) -> Position:
    """The newest state that a sink shows anything of."""
    match live:
        case CatchingUp(until=until):
            return until
        case Snapshotting(high=high) if high is not None:
            return high.last_done
        case _:
            return last_done_of(live)


def _is_whole(checkpoint: Checkpoint | None) -> bool:
    return isinstance(checkpoint, Following) and not checkpoint.unread


def _require_one_log(copy: Checkpoint | None, live: Checkpoint | None, name: str) -> None:
    if copy is None or live is None or copy.log_id == live.log_id:
        return
    what = "the sink is of another log than the relay has now, so their positions cannot be compared"
    mend = f"let `walbus consume {name}` bring it to this log first, and rebuild again"
    raise UsageError(what, where=f"consumer {name}", mend=mend)


def _require_served(relays: Relays, live: Checkpoint, place: SinkPlace) -> None:
    """Raises UsageError: a table's rows are not to be had from the bootstrap, and a copy would lack them."""
    url = relays.info(live.log_id, last_done_of(live)).bootstrap
    if url is None:
        mend = "run the bootstrap beside the relay"
        raise UsageError("the relay names no bootstrap server", where=relays.url, mend=mend)
    with closing(relays.bootstrap(url)) as bootstrap:
        if refused := sorted(matching(bootstrap.tables().refused, place.tables)):
            what = f"the bootstrap does not serve {refused[0]}, so a copy would lack its rows"
            mend = "give it a primary key, or a consumer of its own, and leave it out of this one's tables"
            raise UsageError(what, where=f"key consumer.{place.consumer}.tables", mend=mend)


__all__ = ["Rebuilding", "discard", "drop_kept", "newest_of", "rebuild"]
