"""Compares a sink with the bootstrap, and has tables that differ read again.

The consumer must not run meanwhile: this is its process. A table's rows are taken from the bootstrap, as of the
position P that they are served at. Then the sink is brought to P itself, by the ordinary way of a consumer, which is
ended before the first window behind P. So both sides are of one state, however much is written to the source:

    run until online ──► snapshot as of P ──► run up to P ──► compare ──► (repair: read again, and compare once more)

Should the sink be past P, because it had to read rows itself or the bootstrap is behind the log, P is taken anew.

Rows come from the bootstrap through the consumer's mapping and as the sink would hold them, so what is compared is
what is stored. A table that differs is mended as one whose rows lack values: it is named as unread in the checkpoint,
its rows come under a new mark, and what they did not bring is swept. Both are fenced by seq as always. What the sink
did not write is told, and left: it has no version, and may be anybody's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from walbus.config import ConsumerConfig
from walbus.consumers.addresses import LogAddress, Relays, listed, peer_at
from walbus.consumers.checkpoint import Checkpoint, Following, Lacking, last_done_of, token_of
from walbus.consumers.clock import Clock
from walbus.consumers.decoding import Layouts, decode_record
from walbus.consumers.mapped_sink import MappedSink, RememberedMapping, load_mapper
from walbus.consumers.mapping import Mapper
from walbus.consumers.narrowing import Narrowing
from walbus.consumers.partitions import options_of, part_name, part_of, partitions_of
from walbus.consumers.peers import RowsPeer
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.row_spool import RowSpool
from walbus.consumers.session import Session
from walbus.consumers.sink_feed import SinkFeed
from walbus.consumers.sinks import SinkPlace, open_sink
from walbus.consumers.sinks.base import ExpiringSink, OutrankingSink, ReadableSink, RowlessSink
from walbus.consumers.steps import Advance, Deliver, Output, RowsRead, Sweep
from walbus.consumers.subscribed import Subscribed
from walbus.consumers.tables import check_patterns, matching
from walbus.consumers.transport import TableList
from walbus.consumers.windows import served_window
from walbus.credentials import ANONYMOUS, Credentials
from walbus.errors import ConfigError, RelayUnavailable, RequestRefused, UsageError
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind

_log = structlog.get_logger(__name__)

#: Keys that are named of each table.
NAMED_KEYS = 100

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 30.0  # without anything from relay or bootstrap
_ATTEMPTS = 10


@dataclass
class TableVerdict:
    """How one table compares.

    Attributes:
        table: its name.
        reason: why it was not compared; None if it was.
        position: the state that both sides were of.
        rows: that the sink should hold.
        differing: how many keys differ; `keys` has the first of them, by what differs.
        foreign: how many of those the sink did not write, and does not delete.
        mended: how many of those that differ no longer do.
    """

    table: str
    reason: str | None = None
    position: Position | None = None
    rows: int = 0
    differing: int = 0
    foreign: int = 0
    mended: int = 0
    keys: list[tuple[str, list[str]]] = field(default_factory=list)


def verify_sink(  # noqa: PLR0913  (those of `run_consumer`, and what to compare)
    name: str,
    config: ConsumerConfig,
    *,
    relay_url: LogAddress | Sequence[LogAddress],
    folder: Path,
    tables: Sequence[str] = (),
    repair: bool = False,
    credentials: Credentials = ANONYMOUS,
) -> list[TableVerdict]:
    """Compares the sink of a consumer that does not run; of one with parts, each part by itself, and adds them up.

    Args:
        name: of the consumer.
        config: its section of `walbus.toml`.
        relay_url: address of the relay, or of several of one log, or of a log on Kafka.
        folder: for the consumer's own files, as `run_consumer` has it.
        tables: only these; all that the bootstrap serves of the consumer's if empty.
        repair: whether tables that differ are read again.
        credentials: what is shown to relay and bootstrap.

    Raises:
        UsageError: the sink cannot be read back, or need not have all rows, or has none yet; or a table is not its own.
        ConfigError: as `run_consumer`, or there is no bootstrap.
        SinkUnavailable, SinkRefused: of the sink; also if another process writes it.
        RelayUnavailable: relay or bootstrap do not answer, or rows could not be had at one state with the sink's.
    """
    if config.start != "snapshot":
        what = f"the consumer begins at {config.start}, so its sink need not have all rows"
        raise UsageError(what, where=f"key consumer.{name}.start", mend="verify one that starts with a snapshot")
    found = [
        _verified(name, config, partition, listed(relay_url), folder, credentials, tables, repair=repair)
        for partition in partitions_of(config)
    ]
    return [_together(verdicts) for verdicts in zip(*found, strict=True)]


def _verified(  # noqa: PLR0913, PLR0917  (those of `verify_sink`, and the part)
    name: str,
    config: ConsumerConfig,
    partition: str | None,
    urls: Sequence[LogAddress],
    folder: Path,
    credentials: Credentials,
    tables: Sequence[str],
    *,
    repair: bool,
) -> list[TableVerdict]:
    """Compares one part."""
    where = f"consumer {name}"
    patterns, narrowing = check_patterns(config.tables), Narrowing(partition)
    options = options_of(config, narrowing.partition, name)
    called = part_name(name, narrowing.partition)
    own_folder = folder.with_name(part_name(folder.name, narrowing.partition))
    place = SinkPlace(called, own_folder, patterns, part_of(config, narrowing.partition))
    mapper = load_mapper(config.table, place)
    with ExitStack() as stack:
        opened = stack.enter_context(closing(open_sink(config.sink, options, place)))
        if isinstance(opened, RowlessSink):
            what = f"the sink {config.sink} with {opened.has_no_rows_by} writes no rows that could be compared"
            mend = f"`walbus consumers reset {name}` has all that is cached forgotten"
            raise UsageError(what, where=where, mend=mend)
        if not isinstance(opened, ReadableSink):
            what = f"the sink {config.sink} cannot be read back, and so not be compared"
            mend = f"`walbus consumers reset {name}` has all of its rows read again"
            raise UsageError(what, where=where, mend=mend)
        sink = MappedSink(opened, mapper, RememberedMapping(place.folder, config.table, called))
        before = sink.checkpoint()
        if before is None:
            raise UsageError("the sink has no rows yet", where=where, mend=f"start `walbus consume {name}` first")
        peers = [stack.enter_context(closing(peer_at(url, credentials))) for url in urls]
        token = token_of(before) if config.parts else 0
        subscribed = Subscribed(
            called, patterns, config.start, None, config.delta_above or None, narrowing, token=token
        )
        verifying = _Verifying(subscribed, Relays(peers), opened, sink, mapper)
        stack.callback(verifying.close)
        return verifying.verdicts(tables, repair=repair)


def _together(verdicts: Sequence[TableVerdict]) -> TableVerdict:
    """The verdict on a table whose parts were compared one by one."""
    return TableVerdict(
        verdicts[0].table,
        next((one.reason for one in verdicts if one.reason is not None), None),
        max((one.position for one in verdicts if one.position is not None), default=None),
        rows=sum(one.rows for one in verdicts),
        differing=sum(one.differing for one in verdicts),
        foreign=sum(one.foreign for one in verdicts),
        mended=sum(one.mended for one in verdicts),
        keys=[key for one in verdicts for key in one.keys][:NAMED_KEYS],
    )


class _Verifying:
    """One comparison of one sink."""

    def __init__(
        self, subscribed: Subscribed, relays: Relays, readable: ReadableSink, sink: MappedSink, mapper: Mapper
    ) -> None:
        self._subscribed, self._relays = subscribed, relays
        self._readable, self._sink, self._mapper = readable, sink, mapper
        self._clock = Clock(pause=time.sleep)
        self._layouts = Layouts(relays.schema)
        self._bootstrap: RowsPeer | None = None

    def close(self) -> None:
        if self._bootstrap is not None:
            self._bootstrap.close()

    def verdicts(self, named: Sequence[str], *, repair: bool) -> list[TableVerdict]:
        self._run(None)
        bootstrap = self._bootstrap_peer()
        verdicts = [self._verdict(bootstrap, table) for table in self._chosen(bootstrap.tables(), named)]
        if repair and (differing := [one for one in verdicts if one.differing > one.foreign]):
            self._read_again([one.table for one in differing], bootstrap.tables())
            for one in differing:
                after = self._verdict(bootstrap, one.table)
                one.mended = one.differing - after.differing if after.reason is None else 0
        return verdicts

    def _chosen(self, listed: TableList, named: Sequence[str]) -> list[str]:
        own = matching([*listed.tables, *listed.refused], self._subscribed.tables)
        unknown = [table for table in named if table not in own]
        if unknown:
            what = f"{unknown[0]} is no table that the consumer reads and the bootstrap has"
            raise UsageError(what, where="--table", mend=f"name one of {', '.join(sorted(own)) or 'none'}")
        return [table for table in sorted(own) if not named or table in named]

    def _verdict(self, bootstrap: RowsPeer, table: str) -> TableVerdict:
        for _ in range(_ATTEMPTS):
            listed = bootstrap.tables()
            if reason := self._why_not(listed, table):
                return TableVerdict(table, reason)
            self._run(self._await_applied(bootstrap))  # rows are expected by the layouts that the sink has then
            with closing(RowSpool()) as spool:
                try:
                    position, rows = self._expect(bootstrap, table, spool)
                except RequestRefused as error:
                    return TableVerdict(table, error.what)
                except RelayUnavailable as error:
                    _log.warning("verify.again", table=table, why=str(error))
                    self._clock.pause(_POLL_SECONDS)
                    continue
                if not self._run(position):
                    continue
                if table in self._sink.incomplete():
                    self._run(None)
                    continue
                spool.hold(self._readable.held(table))
                return _compared(TableVerdict(table, position=position, rows=rows), self._differences(table, spool))
        what = f"{table} could not be had at one state with the sink in {_ATTEMPTS} attempts"
        raise RelayUnavailable(what, where=bootstrap.url)

    def _differences(self, table: str, spool: RowSpool) -> Iterator[tuple[str, list[str]]]:
        expires = isinstance(self._readable, ExpiringSink) and self._readable.expires(table)
        return (one for one in spool.differences() if not (expires and one[0] == "missing"))

    def _why_not(self, listed: TableList, table: str) -> str | None:
        checkpoint = self._sink.checkpoint()
        if table in listed.refused:
            return "the bootstrap does not serve it"
        if table not in listed.consistent:
            return "the bootstrap is reading its rows"
        if table in listed.stale:
            return "the bootstrap reads its rows again, since they changed without events"
        unread = isinstance(checkpoint, Following) and any(one.table == table for one in checkpoint.unread)
        return "the consumer has still to read its rows" if unread or table in self._sink.incomplete() else None

    def _await_applied(self, bootstrap: RowsPeer) -> Position:
        """Until the bootstrap has applied what the sink has taken; how far it has come."""
        place, end = last_done_of(self._sink.checkpoint()), self._clock.monotonic() + _PATIENCE_SECONDS
        while (applied := bootstrap.tables().applied) < place:
            if self._clock.monotonic() > end:
                raise RelayUnavailable(f"the bootstrap has not come to {place}, where the sink is", where=bootstrap.url)
            self._clock.pause(_POLL_SECONDS)
        return applied

    def _expect(self, bootstrap: RowsPeer, table: str, spool: RowSpool) -> tuple[Position, int]:
        """Spools what the sink should hold; as of which position, and how many rows that is."""
        rows, heard = 0, self._clock.monotonic()
        with closing(bootstrap.snapshot(table, None, self._subscribed.narrowing.of_bootstrap())) as stream:
            while self._clock.monotonic() - heard < _PATIENCE_SECONDS:
                for header, record in stream.records(_POLL_SECONDS):
                    heard = self._clock.monotonic()
                    changes = decode_record(header, record, self._layouts)
                    window = self._mapper.window(served_window(RowsRead(header, changes)))
                    rows += spool.expect(self._readable.as_held(change) for change in window)
                    if header.flags & Flag.END:
                        return header.last, rows
        raise RelayUnavailable(f"the snapshot of {table} stands still", where=bootstrap.url)

    def _read_again(self, tables: Sequence[str], listed: TableList) -> None:
        checkpoint = self._sink.checkpoint()
        if isinstance(checkpoint, Following):
            if isinstance(self._readable, OutrankingSink):
                for table in tables:
                    self._readable.outrank(table)
            lacking = tuple(Lacking(table, listed.oids.get(table, 0)) for table in tables)
            self._sink.commit(replace(checkpoint, unread=(*checkpoint.unread, *lacking), rows=ORIGIN))
            self._run(None)

    # The ordinary way of the consumer

    def _run(self, goal: Position | None) -> bool:
        """Runs the consumer up to a position, or until it follows the log and has no rows to read (None).

        Returns:
            Whether the sink has not gone past the goal.
        """
        way = _Way(self._sink.checkpoint(), goal)
        session = Session(self._relays, self._subscribed, way.checkpoint, self._clock)
        feed = SinkFeed(self._sink, lambda _tally, _checkpoint: None)
        heard = online_since = self._clock.monotonic()
        try:
            while True:
                output, now = session.poll(_POLL_SECONDS), self._clock.monotonic()
                online = session.phase == "online"
                online_since = online_since if online else now
                if online and way.is_behind_goal(output):
                    break
                if output is not None and not isinstance(output, PhaseEvent):
                    feed.take(output, now)
                    way.taken(output)
                    heard = now
                feed.flush_due(now)
                incomplete = self._sink.incomplete() if online and goal is None else ()
                if online and way.ended and not incomplete:
                    break
                if incomplete:
                    feed.finish(now)
                    incomplete = self._sink.incomplete()
                session.lack(incomplete)
                if goal is None and now - online_since > _PATIENCE_SECONDS:
                    break  # the bootstrap does not have what is to be read
                if now - heard > _PATIENCE_SECONDS:
                    raise RelayUnavailable(session.waiting_for or "nothing comes", where=self._relays.url)
            feed.finish(self._clock.monotonic())
        finally:
            session.close()
            self._sink.rollback()
        return goal is None or way.reached <= goal

    def _bootstrap_peer(self) -> RowsPeer:
        checkpoint = self._sink.checkpoint()
        log_id = "" if checkpoint is None else checkpoint.log_id
        url = self._relays.info(log_id, last_done_of(checkpoint)).bootstrap
        if url is None:
            raise ConfigError(
                "the relay names no bootstrap server", where=self._relays.url, mend="run the bootstrap beside the relay"
            )
        self._bootstrap = self._relays.bootstrap(url)
        return self._bootstrap


class _Way:
    """How far a sink has come on its way to a goal."""

    def __init__(self, checkpoint: Checkpoint | None, goal: Position | None) -> None:
        self.checkpoint, self._goal = checkpoint, goal
        self.reached = last_done_of(checkpoint)  # the last window that the sink has

    def is_behind_goal(self, output: Output | PhaseEvent | None) -> bool:
        """Whether this is of the log, and not to be taken any more."""
        if self._goal is None or not isinstance(output, Deliver):
            return False
        return output.window.kind not in (Kind.SNAPSHOT, Kind.DELTA) and output.window.last > self._goal

    def taken(self, output: Output) -> None:
        """The sink has this."""
        if isinstance(output, Deliver):
            self.reached = max(self.reached, output.window.last)
        if isinstance(output, (Deliver, Advance, Sweep)):
            self.checkpoint = output.checkpoint or self.checkpoint

    @property
    def ended(self) -> bool:
        """Whether the goal is reached; without one, whether there is no table to read."""
        if not isinstance(self.checkpoint, Following):
            return False
        return not self.checkpoint.unread if self._goal is None else last_done_of(self.checkpoint) >= self._goal


def _compared(verdict: TableVerdict, differences: Iterator[tuple[str, list[str]]]) -> TableVerdict:
    for one in differences:
        verdict.differing += 1
        verdict.foreign += one[0] == "foreign"
        if len(verdict.keys) < NAMED_KEYS:
            verdict.keys.append(one)
    return verdict


__all__ = ["TableVerdict", "verify_sink"]
