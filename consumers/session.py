"""Drives the state machine: opens the connection that it wants, feeds it what arrives, hands its outputs on.

A session belongs to one thread. Whatever may come right by itself (a server that is away, restarts, or is not ready)
is waited out with back-off, and logged once when it begins and once when it ends. Everything else is raised.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import structlog

from walbus.consumers.addresses import Relays
from walbus.consumers.backoff import Backoff
from walbus.consumers.checkpoint import Checkpoint, Following, last_done_of
from walbus.consumers.clock import Clock
from walbus.consumers.decoding import Layouts, decode_record
from walbus.consumers.listing import delta_costs, named_in, no_table, no_way_back, tables_listed, unknown_in
from walbus.consumers.machine import ConsumerMachine
from walbus.consumers.partitions import require_same_part
from walbus.consumers.peers import RowsPeer
from walbus.consumers.phase_events import PhaseEvent, PhaseEvents
from walbus.consumers.phases import Listing, Target, behind_window, name_of, target_of
from walbus.consumers.record_stream import RecordStream
from walbus.consumers.steps import (
    AskLog,
    Deliver,
    DeliverRun,
    DeltaGone,
    Disconnected,
    Event,
    ListTables,
    LogReplaced,
    Output,
    PositionGone,
    ReadDelta,
    ReadLog,
    ReadSnapshot,
    RecordRead,
    RowsIncomplete,
    RowsRead,
    RowsSettled,
    RowsStale,
    TableGone,
    TableOpened,
    TablesListed,
    TransactionsRead,
    Want,
)
from walbus.consumers.subscribed import Subscribed
from walbus.consumers.transport import LogMismatch, NotReady, TableList
from walbus.consumers.unread import Unread
from walbus.consumers.whole_rows import complete_log
from walbus.consumers.windows import whole_transactions
from walbus.errors import (
    ConfigError,
    Directive,
    PositionTrimmed,
    RelayUnavailable,
    RequestRefused,
    WalbusError,
    directive_of,
)
from walbus.events import Window
from walbus.record_parser import RecordParser
from walbus.records import Kind, RecordHeader, origin_of

_log = structlog.get_logger(__name__)

_LOG_ID_HEADER, _OID_HEADER, _STALE_HEADER = "Walbus-Log-Id", "Walbus-Oid", "Walbus-Stale"

#: Seconds between two looks whether the bootstrap has a table that is to be read; they grow up to the second number.
_REREAD_SECONDS = 0.25, 30.0
_OF_LOG = RecordRead, TransactionsRead


@dataclass
class Session:
    """One consumer's reading, from its checkpoint on.

    Args:
        relay: the relay, or several; not closed here.
        subscribed: what to read.
        checkpoint: where to go on; None for a first start.
        clock, backoff: time and jitter.

    Raises:
        UsageError: the checkpoint is of another part of all keys.
    """

    relay: Relays
    subscribed: Subscribed
    checkpoint: Checkpoint | None
    clock: Clock = field(default_factory=Clock)
    backoff: Backoff = field(default_factory=Backoff)

    def __post_init__(self) -> None:
        asked = self.subscribed
        require_same_part(self.checkpoint, asked.narrowing.partition, asked.name, asked.token)
        self._machine = ConsumerMachine(self.checkpoint, asked.start, asked.delta_above, asked.tables, asked.part)
        self._layouts = Layouts(self.relay.schema)
        self._stream: RecordStream | None = None
        self._target: Target = ()  # what `_stream` reads
        self._bootstrap: RowsPeer | None = None
        self._outputs: deque[tuple[str, Output | PhaseEvent]] = deque()  # each with the phase that it was read in
        #: The run whose windows `poll` and `further` give.
        self.run: DeliverRun | None = None
        self._further: deque[Window] = deque()  # those that were not given yet
        self._read_in = self.phase
        self._phases = PhaseEvents()
        self._retry_at = 0.0
        self._reread_at = 0.0
        self._lacking: tuple[str, ...] = ()  # tables with rows that lack a value, as the sink said last
        since = last_done_of(self.checkpoint)
        self._unread = Unread(asked.name, asked.tables, asked.start, layouts=self.relay.schemas, since=since)
        self._rereads = Backoff(*_REREAD_SECONDS)
        self._waiting_for: str | None = None
        self._log_id = self.checkpoint.log_id if self.checkpoint else ""

    @property
    def phase(self) -> str:
        """`starting`, `listing`, `snapshot`, `delta`, `catchup` or `online`."""
        return name_of(self._machine.state)

    @property
    def waiting_for(self) -> str | None:
        """Why nothing is read at present; None while something is."""
        return self._waiting_for

    @property
    def log_id(self) -> str:
        """Of the log that is read; empty before the relay has answered."""
        return self._log_id

    @property
    def read_in(self) -> str:
        """The phase in which what `poll` gave last was read; the session itself may have left it."""
        return self._read_in

    def poll(self, timeout: float) -> Output | PhaseEvent | None:
        """The next output, windows one by one; None if there was none within about `timeout` seconds.

        Raises:
            WalbusError: nothing but an operator's act helps.
        """
        if not self._further:
            output = self.poll_run(timeout)
            if not isinstance(output, DeliverRun):
                return output
            self.run, self._further = output, deque(output.windows)
        run, window = self.run, self._further.popleft()
        return None if run is None else Deliver(window, run.marks, behind_window(run.checkpoint, window))

    def further(self) -> Window | None:
        """The next window of `run`, which `poll` would give next; None if that gives something else."""
        return self._further.popleft() if self._further else None

    def poll_run(self, timeout: float) -> Output | PhaseEvent | None:
        """As `poll`, transactions that came together as the run that they are (at least one attempt is made).

        Raises:
            WalbusError: nothing but an operator's act helps.
        """
        if self.run is not None and self._further:
            windows, self._further = tuple(self._further), deque()
            return replace(self.run, windows=windows)
        deadline = self.clock.monotonic() + timeout
        match self._machine.state:
            case Following(unread=unread) as state:
                unread_or_new = self._bootstrap is not None and (unread or self._unread.asks_for_more(state))
                if unread_or_new or self._lacking:
                    self._reread()
        while not self._outputs:
            try:
                self._step(max(0.0, deadline - self.clock.monotonic()))
            except (WalbusError, OSError) as error:
                self._failed(error)
            if not self._outputs and self.clock.monotonic() >= deadline:
                return None
        self._read_in, output = self._outputs.popleft()
        return output

    def lack(self, tables: tuple[str, ...]) -> None:
        """Says which tables have rows that lack a value now, until the next call.

        `poll` has them read from the bootstrap, as it does with those that the checkpoint names as unread, as soon as
        that has what they lack; until then the log is followed on. It raises ConfigError if there is no bootstrap.
        """
        self._lacking = tables

    def _reread(self) -> None:
        now = self.clock.monotonic()
        if self.phase != "online" or self._outputs or now < self._reread_at:
            return
        ready = self._served_now()
        if ready:
            self._rereads.reset()
            _log.warning("consumer.rows_incomplete", consumer=self.subscribed.name, tables=list(ready))
            self._receive(RowsIncomplete(ready))
            self._lacking = ()
        self._reread_at = now + self._rereads.next_delay()

    def _served_now(self) -> tuple[str, ...]:
        try:
            listed = self._bootstrap_peer().tables()
        except RelayUnavailable:
            return ()
        if listed.log_id != self._log_id or not isinstance(self._machine.state, Following):
            return ()
        found = self._unread.found(self._machine.state, listed)
        if found is not None:
            self._receive(found)
        unread = (one.table for one in self._machine.state.unread)
        named = (*unread, *self._unread.lacking(self._lacking, self._machine.received, listed))
        good = self._unread.served(tuple(dict.fromkeys(named)), listed)
        done, to_come = self._unread.by_log(good, listed, self._machine.state)
        if done:
            self._receive(RowsSettled(done))
        return tuple(table for table in good if table not in (*done, *to_come))

    def rest(self) -> None:
        """Closes the stream that is read; the next `poll` goes on behind what was handed on."""
        if self._stream is not None:
            self._close_stream()
            self._receive(Disconnected())

    def rewound(self, checkpoint: Checkpoint | None) -> Session:
        """Closes this session, and gives one that goes on at a checkpoint."""
        self.close()
        return replace(self, checkpoint=checkpoint)

    def close(self) -> None:
        """Ends all connections of this session."""
        self._close_stream()
        bootstrap, self._bootstrap = self._bootstrap, None
        if bootstrap is not None:
            bootstrap.close()

    # One step: wait out a back-off, or read on, or open what is wanted

    def _step(self, timeout: float) -> None:
        delay = self._retry_at - self.clock.monotonic()
        if delay > 0:
            self.clock.pause(min(delay, timeout))
        elif self._stream is None:
            self._open(self._machine.wanted)
        elif not self._take_records(self._stream.parser):
            self._stream.receive(timeout)

    def _take_records(self, came: RecordParser) -> bool:
        """Takes what has come next: whole transactions together, anything else by itself; False if nothing has."""
        between = self._machine.between
        windows = [] if between is None else whole_transactions(came, self._layouts, between)
        if windows:
            self._receive(TransactionsRead(windows))
        elif (record := came.next()) is not None:
            self._process(*record)
        else:
            return False
        self._recovered()
        return True

    def _process(self, header: RecordHeader, record: bytes) -> None:
        changes = decode_record(header, record, self._layouts)
        if header.kind in (Kind.SNAPSHOT, Kind.DELTA):
            self._receive(RowsRead(header, [self.subscribed.narrowing.narrowed(change) for change in changes]))
        else:
            told = self._unread.told(header, changes, self._machine.state, self._machine.layouts)
            self._receive(RecordRead(header, changes, origin_of(record, header).decode(), *told))

    def _receive(self, event: Event) -> None:
        before, was = self.phase, self._machine.state
        outputs = self._machine.receive(event)
        if type(was) is Following and type(event) in _OF_LOG:  # the usual case: neither phase nor stream can change
            self._outputs += [(before, output) for output in outputs]
            return
        state = self._machine.state
        begun = self._phases.before(was, event, state)
        self._outputs += ((before, output) for output in (*begun, *outputs, *self._phases.behind(event, state)))
        if self._stream is not None and target_of(self._machine.wanted) != self._target:
            self._close_stream()
        if self.phase != before:
            _log.info("consumer.phase", consumer=self.subscribed.name, phase=self.phase, before=before)
        for step in begun:
            if step.what == "table_begins":
                _log.info("consumer.table", consumer=self.subscribed.name, table=step.table, reading=step.reading)

    # Connections

    def _open(self, want: Want) -> None:
        match want:
            case AskLog():
                self._ask_log()
            case ListTables(waits=True):
                self._list_tables(want)
            case ListTables():
                self._weigh(want)
            case ReadSnapshot() | ReadDelta():
                self._open_table(want)
            case ReadLog():
                self._open_log(want)

    def _ask_log(self) -> None:
        asked = self.subscribed
        info = self.relay.info(self._log_id, self._machine.received, self._machine.received_seq)
        if info.log.log_id != self._log_id:
            self._layouts.forget()
            self._unread.forget()
            self._log_id = info.log.log_id
        self._choose_bootstrap(info.bootstrap)
        self._receive(complete_log(self._bootstrap_peer(), asked, info.log) if asked.complete else info.log)

    def _choose_bootstrap(self, named: str | None) -> None:
        url = self.subscribed.bootstrap or named
        if self._bootstrap is not None and self._bootstrap.url != url:
            self._bootstrap.close()
            self._bootstrap = None
        if self._bootstrap is None and url is not None:
            self._bootstrap = self.relay.bootstrap(url)

    def _bootstrap_peer(self) -> RowsPeer:
        if self._bootstrap is None:
            raise ConfigError(
                "a snapshot, or whole rows, are needed and the relay names no bootstrap server",
                where=f"consumer {self.subscribed.name}",
                mend="run the bootstrap beside the relay, or start the consumer with start = earliest or latest",
            )
        return self._bootstrap

    def _list_tables(self, want: ListTables) -> None:
        if self.subscribed.narrowing.of_log_alone:
            raise no_way_back(self.subscribed.name)
        bootstrap = self._bootstrap_peer()
        listed = bootstrap.tables()
        patterns = self.subscribed.tables if want.only is None else want.only
        wanted, without = named_in(listed, patterns)
        gone = set(want.only or ()).difference(wanted)
        if gone and listed.log_id == self._log_id:
            raise self._table_gone(bootstrap, sorted(gone), "they are listed no more")
        if listed.log_id == self._log_id:
            self._unread.reading(wanted, listed)
        self._receive(self._told_of(listed, patterns, want))
        if not isinstance(self._machine.state, Listing):
            if unknown := unknown_in(listed, patterns):
                _log.warning("consumer.unknown_tables", consumer=self.subscribed.name, tables=unknown)
            if without:
                _log.warning("consumer.no_snapshot", consumer=self.subscribed.name, tables=list(without))
            self._recovered()
            return
        if not wanted:
            raise no_table(self.subscribed.name, patterns, without, bootstrap.url)
        self._receive(LogReplaced())
        raise NotReady("the bootstrap does not follow the relay's log yet", where=bootstrap.url)

    def _weigh(self, want: ListTables) -> None:
        """Asks what deltas cost. The log is there all the same: a bootstrap that does not answer is not waited for."""
        listed = TablesListed(self._log_id, (), 0)
        try:
            if self._bootstrap is not None:
                found, patterns = self._bootstrap.tables(), self.subscribed.tables
                listed = self._told_of(found, patterns, want)
                self._unread.reading(listed.deltas, found)
        except WalbusError as error:
            _log.info("consumer.delta_not_weighed", consumer=self.subscribed.name, reason=str(error))
        self._receive(listed)

    def _told_of(self, found: TableList, patterns: tuple[str, ...], want: ListTables) -> TablesListed:
        """Deltas are weighed if the consumer is at a place of the log that the relay and the bootstrap serve."""
        before, peer, deltas = want.before, self._bootstrap_peer(), None
        if before is not None and before.log_id == self._log_id == found.log_id:
            deltas = delta_costs(peer, found, patterns, before, self.relay.schemas())
        return tables_listed(found, patterns, int(self.clock.wall() * 1000), deltas)

    def _open_table(self, want: ReadSnapshot | ReadDelta) -> None:
        bootstrap, log_id, table = self._bootstrap_peer(), want.log_id, want.table
        narrowing = self.subscribed.narrowing.of_bootstrap()
        listed = bootstrap.tables()
        layout = self._layouts.get(listed.tables.get(table, 0))
        try:
            stream = (
                bootstrap.delta(table, want.since, narrowing)
                if isinstance(want, ReadDelta)
                else bootstrap.snapshot(table, want.after_key, narrowing)
            )
        except PositionTrimmed as error:
            _log.warning("consumer.delta_gone", consumer=self.subscribed.name, table=table, why=error.what)
            self._receive(DeltaGone())
            return
        except RequestRefused as error:
            if error.status not in (404, 409):
                raise
            raise self._table_gone(bootstrap, [table], error.what) from None
        if stream.headers.get(_LOG_ID_HEADER, log_id) != log_id:
            stream.close()
            self._receive(LogReplaced())
            raise NotReady("the bootstrap follows another log than before", where=bootstrap.url)
        if want.oid and stream.headers.get(_OID_HEADER, str(want.oid)) != str(want.oid):
            stream.close()
            raise self._table_gone(bootstrap, [table], "another table has the name since the list was asked for")
        self._stream, self._target = stream, target_of(want)
        if _STALE_HEADER in stream.headers:
            self._receive(RowsStale(listed.oids.get(table, 0)))
        if layout is not None:
            self._receive(TableOpened(layout))

    def _table_gone(self, bootstrap: RowsPeer, tables: list[str], why: str) -> NotReady:
        _log.warning("consumer.no_snapshot", consumer=self.subscribed.name, tables=tables, why=why)
        self._receive(TableGone())
        return NotReady("the bootstrap has other tables than before", where=bootstrap.url)

    def _open_log(self, want: ReadLog) -> None:
        try:
            asked = self.subscribed
            server = self._bootstrap_peer() if asked.complete else self.relay
            self._stream = server.stream(want.after, want.log_id, asked.tables, asked.name, asked.narrowing.of_stream())
            self._target = ("log", want.log_id)
        except PositionTrimmed:
            self._receive(PositionGone())
        except LogMismatch as error:
            self._receive(LogReplaced())
            raise NotReady(error.what, where=error.where) from None

    def _close_stream(self) -> None:
        stream, self._stream, self._target = self._stream, None, ()
        if stream is not None:
            stream.close()

    # Trouble

    def _failed(self, error: WalbusError | OSError) -> None:
        if directive_of(error) is not Directive.RETRY:
            raise error
        self._close_stream()
        self.relay.failed(error)
        self._receive(Disconnected())
        delay = max(self.backoff.next_delay(), error.retry_after if isinstance(error, NotReady) else 0.0)
        self._retry_at = self.clock.monotonic() + delay
        reason = str(error)
        if self._waiting_for != reason:
            _log.warning("consumer.waiting", consumer=self.subscribed.name, phase=self.phase, reason=reason)
        self._waiting_for = reason

    def _recovered(self) -> None:
        if self.backoff.attempts:
            self.backoff.reset()
        if self._waiting_for is not None:
            _log.info("consumer.reading", consumer=self.subscribed.name, phase=self.phase)
            self._waiting_for = None
