"""The client library: `walbus.connect(url)`, `bus.subscribe(...)`, `window.commit()`.

    with walbus.connect("http://127.0.0.1:7070") as bus:
        for window in bus.subscribe("public.orders", name="orders-cache"):
            for change in window:
                ...
            window.commit()

What a subscription yields are `Delivery` objects: a window of the vocabulary together with the checkpoint that holds
once it has been dealt with. `commit` stores that checkpoint, durably, under the consumer's name; after a crash the
subscription goes on behind the last one stored. So a window is seen at least once, and `change.seq` tells a repeat:
of two changes of one key, the later one has the larger seq.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, get_args

from pydantic import SecretStr

from walbus.consumer_reports import checked_name
from walbus.consumers.addresses import LogAddress, Relays, listed, peer_at
from walbus.consumers.checkpoint import Checkpoint
from walbus.consumers.checkpoint_fence import FencedCheckpointStore
from walbus.consumers.checkpoint_shared import SharedFileCheckpointStore
from walbus.consumers.checkpoint_store import CheckpointStore, FileCheckpointStore, OneReader
from walbus.consumers.clock import Clock
from walbus.consumers.group_member import GroupMember, check_group
from walbus.consumers.lessors import lessor_of
from walbus.consumers.narrowing import Narrowing
from walbus.consumers.part_lease import LeasedSubscription, PartLease, taken_over
from walbus.consumers.partitions import part_name, require_same_part, require_same_parts
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.places import Place, Until, parse_place
from walbus.consumers.read_your_writes import ConsumerPlace, goal_of, wait_for
from walbus.consumers.reporting import Reported, Reporter
from walbus.consumers.session import Session
from walbus.consumers.steps import Start
from walbus.consumers.subscribed import Subscribed
from walbus.consumers.subscription import Handing, Subscription
from walbus.consumers.tables import check_patterns
from walbus.consumers.typed_rows import Into, TypedRows
from walbus.credentials import Credentials, credentials_from_environment
from walbus.errors import UsageError
from walbus.kafka_address import SCHEME, parse_kafka_address
from walbus.position import Position

Store = TypeVar("Store", bound=CheckpointStore)

#: Where checkpoints of named consumers lie unless `connect` is told otherwise: one folder a consumer.
CHECKPOINT_FOLDER = Path("walbus-data") / "consumers"


class Bus:
    """A connection to one relay, several of one log, or a log on Kafka (and the bootstrap servers beside them)."""

    def __init__(
        self, urls: Sequence[LogAddress], *, bootstrap: str | None, folder: Path, clock: Clock, credentials: Credentials
    ) -> None:
        self._peers = [peer_at(url, credentials) for url in urls]
        self._bootstrap = bootstrap
        self._folder = folder
        self._clock = clock
        self._subscriptions: list[Subscription] = []
        self._members: list[GroupMember[LeasedSubscription]] = []
        self._closed = False

    def subscribe(  # noqa: PLR0913  # all but the name have a default
        self,
        *tables: str,
        name: str,
        start: Start = "snapshot",
        checkpoints: CheckpointStore | None = None,
        partition: str | None = None,
        ops: Sequence[str] = (),
        columns: Mapping[str, Sequence[str]] | None = None,
        delta_above: int | None = None,
        on_phase: Callable[[PhaseEvent], object] | None = None,
        complete: bool = False,
        into: Into | None = None,
        from_: Place | None = None,
        until: Place | None = None,
    ) -> Subscription:
        """The changes of tables, from the consumer's checkpoint on.

        Args:
            tables: `schema.table`, `schema.*` or `*.*`; none means all.
            name: the consumer's name; its checkpoint is stored under it.
            start: where a consumer without a checkpoint begins: with a `snapshot` of all rows, at the `earliest`
                position that the relay holds, or with what commits from now on (`latest`).
            checkpoints: another place for the checkpoint.
            partition: `i/n`: of n parts of all keys (by their hash) the part i, from 0. Each part is a consumer of its
                own, called `NAME.i-of-n`, with a checkpoint of its own; another n is another consumer, which begins
                anew. See docs/consumers.md for what comes to every part.
            ops: of `insert`, `update`, `delete`, `truncate` and `message`, those that come; default: all. Without one
                of the first four there is nothing to be had from the bootstrap: `start` is then `earliest` or
                `latest`.
            columns: the columns that come of a table, by pattern, as in `{"public.orders": ["id", "total"]}`; the key's
                always do. Default: all.
            delta_above: so many changes behind, the last change of each key is read from the bootstrap instead of each
                change from the log, where that is less; default: never while the log holds the position.
            on_phase: called between two deliveries when a bootstrap, or a table of it, begins or ends; see
                `walbus.consumers.phase_events`.
            complete: whether changes of the log come with whole rows: every update and delete with the old row as
                `before`, and new rows without gaps, whatever the table's replica identity. The bootstrap server gives
                them, for the tables that its configuration names (`[bootstrap] complete`). `change.complete` tells
                whether one is; see docs/consumers.md for what cannot be known.
            into: a dataclass or msgspec struct, or one for each pattern of tables: `change.row` and `change.old_row`
                are then objects of it; see `walbus.consumers.typed_rows`.
            from_: where a consumer without a checkpoint begins, instead of `start`: with the change at a position, the
                first transaction committed at a time or later, or the change `seq:N`.
            until: where it ends: behind the transaction that holds a position or `seq:N`, before the first one that
                committed later than a time, or (`latest`) where the log ends now.

        Raises:
            UsageError: the name or a table is none, a choice makes no sense, the bus is closed, another
                subscription, in whatever process, has this checkpoint, or it is of another part, or number of parts.
        """
        self._require_open()
        _check_choices(start, ops, delta_above)
        narrowing = Narrowing(partition, tuple(ops), columns or {})
        if narrowing.of_log_alone and start == "snapshot" and from_ is None:
            mend = "start at earliest or latest, or take insert, update, delete and truncate"
            raise UsageError("a snapshot says nothing of single operations", where="ops", mend=mend)
        called = part_name(name, narrowing.partition)
        if checkpoints is None:
            require_same_parts(self._folder, name, narrowing.partition)
        handing = Handing(
            self._folder / called,
            on_phase,
            None if into is None else TypedRows(into),
            None if from_ is None else parse_place(from_, "from_", self._clock),
            None if until is None else Until(parse_place(until, "until")),
        )
        store = checkpoints or FileCheckpointStore(handing.folder / "checkpoint.json")
        patterns = check_patterns(tables)
        subscribed = Subscribed(called, patterns, start, self._bootstrap, delta_above, narrowing, complete)
        if isinstance(store, OneReader):
            store.take()
        try:
            checkpoint = store.load()
            require_same_part(checkpoint, narrowing.partition, called)
        except BaseException:
            if isinstance(store, OneReader):
                store.release()
            raise
        subscription = Subscription(*self._reading(subscribed, checkpoint, store), handing)
        self._subscriptions.append(subscription)
        return subscription

    def join(  # noqa: PLR0913  # all but the name and the number of parts have a default
        self,
        *tables: str,
        name: str,
        parts: int,
        lease_seconds: float = 15.0,
        start: Start = "snapshot",
        checkpoints: Callable[[str], FencedCheckpointStore] | None = None,
        columns: Mapping[str, Sequence[str]] | None = None,
        delta_above: int | None = None,
        complete: bool = False,
        into: Into | None = None,
    ) -> GroupMember[LeasedSubscription]:
        """This process as a member of a group, whose members share all keys without being told which are whose.

        Args:
            tables: as those of `subscribe`.
            name: of the group; its parts are the consumers `NAME.i-of-n`.
            parts: how many there are, the same for all members: as many members as that have something to do at most.
            lease_seconds: 1 to 60; a member that is not heard of for so long, and a little longer, loses its parts.
            start: where a part without a checkpoint begins.
            checkpoints: makes the store of a part by its consumer's name, which the members share; it is closed with
                the part. Default: files below the bus's folder, for members on one machine.
            columns: as those of `subscribe`.
            delta_above: as that of `subscribe`.
            complete: as that of `subscribe`.
            into: as that of `subscribe`.

        Raises:
            UsageError: a choice makes no sense, or this machine has consumers of the name with another number of parts.
        """
        self._require_open()
        _check_choices(start, (), delta_above)
        check_group(parts, lease_seconds)
        part_name(name, f"{parts - 1}/{parts}")
        require_same_parts(self._folder, name, f"0/{parts}")
        narrowing, patterns = Narrowing(None, (), columns or {}), check_patterns(tables)
        rows = None if into is None else TypedRows(into)

        @contextmanager
        def opened(lease: PartLease) -> Iterator[LeasedSubscription]:
            folder = self._folder / lease.name
            path = folder / "checkpoint.json"
            store = SharedFileCheckpointStore(path) if checkpoints is None else checkpoints(lease.name)
            part = replace(narrowing, partition=lease.part.partition)
            subscribed = Subscribed(
                lease.name, patterns, start, self._bootstrap, delta_above, part, complete, lease.part.token
            )
            with closing(store):
                read = self._reading(subscribed, taken_over(store, lease), store)
                with LeasedSubscription(*read, Handing(folder, rows=rows), lease) as subscription:
                    yield subscription

        lessor = lessor_of(name, self._peers, self._clock)
        member = GroupMember(name, parts, lease_seconds, lessor=lessor, open_part=opened, clock=self._clock)
        self._members.append(member)
        return member

    def _reading(
        self, subscribed: Subscribed, checkpoint: Checkpoint | None, store: Store
    ) -> tuple[Session, Store, Reporter]:
        """What a subscription is made of."""
        relays = Relays(self._peers)
        reporter = Reporter(Reported(subscribed.name, subscribed.tables), relays, self._clock)
        reporter.begin(checkpoint)
        return Session(relays, subscribed, checkpoint, self._clock), store, reporter

    def wait_for(
        self, name: str, lsn: str | int | None = None, timeout: float = 30.0, *, position: str | Position | None = None
    ) -> ConsumerPlace:
        """Blocks until a consumer, in whatever process, has durably done what was committed before: read your writes.

        Args:
            name: of the consumer.
            lsn: what `pg_current_wal_insert_lsn()` gave at the source behind the commit.
            timeout: seconds.
            position: instead of `lsn`: the position of a change that the consumer is to have done.

        Raises:
            ConsumerBehind: it has not in time; says where it is.
            RequestRefused: the relay knows no consumer of this name (`status` 404).
            RelayUnavailable: the relay did not answer in time.
            UsageError: `lsn` or `position` is none, or the bus is closed.
        """
        self._require_open()
        return wait_for(Relays(self._peers), checked_name(name), goal_of(lsn, position), timeout, self._clock)

    def close(self) -> None:
        """Ends all subscriptions, and has members of groups leave them.

        Raises:
            UsageError: such a member has called this, and would wait for itself: nothing is closed.
        """
        for member in self._members:
            member.require_outside()
        self._closed = True
        for member in self._members:
            member.close()
        for subscription in self._subscriptions:
            subscription.close()
        for peer in self._peers:
            peer.close()

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError("the bus is closed", mend="connect again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def connect(  # noqa: PLR0913  # all but the address have a default
    url: str | Sequence[str],
    *,
    bootstrap: str | None = None,
    folder: Path | str = CHECKPOINT_FOLDER,
    token: str | SecretStr | None = None,
    ca_file: Path | str | None = None,
    kafka_options: Mapping[str, str] | None = None,
    clock: Clock | None = None,
) -> Bus:
    """A bus on the relay at `url`. Connects when something is read, and again whenever the connection breaks.

    Args:
        url: the relay's address, for example `http://127.0.0.1:7070`; or those of several relays of one log, as a list
            or with commas between them: when the one that is read fails, the next one is tried. Or that of a log on
            Kafka, which is read from the cluster without a relay: `kafka://HOST:PORT,…/TOPIC`.
        bootstrap: the bootstrap server's address; by default the one that the relay names. A cluster names none;
            with it, table topics will do: `kafka://HOST:PORT,…/PREFIX`.
        folder: where consumers' checkpoints are stored.
        token: what is shown to both servers; default: `WALBUS_CLIENT__TOKEN` of the environment, or none.
        ca_file: PEM file of the authorities that are believed about a server with `https://`; default:
            `WALBUS_CLIENT__CA_FILE`, or the system's.
        kafka_options: of librdkafka, for a log on Kafka.
        clock: time, for tests.

    Raises:
        ConfigError: the token is none, or `ca_file` cannot be used.
        UsageError: there is no address, or it is none.
    """
    urls = addresses_of(url, kafka_options or {}, bootstrap)
    if not urls:
        raise UsageError("there is no address of a relay", mend="give one, as in http://127.0.0.1:7070")
    credentials = credentials_from_environment()
    if token is not None:
        credentials = replace(credentials, token=token if isinstance(token, SecretStr) else SecretStr(token))
    if ca_file is not None:
        credentials = replace(credentials, ca_file=Path(ca_file))
    return Bus(urls, bootstrap=bootstrap, folder=Path(folder), clock=clock or Clock(), credentials=credentials)


def addresses_of(
    url: str | Sequence[str], kafka_options: Mapping[str, str], bootstrap: str | None
) -> Sequence[LogAddress]:
    """The addresses that `connect` is given; UsageError as there."""
    if isinstance(url, str) and url.startswith(SCHEME):
        return [parse_kafka_address(url, kafka_options, bootstrap)]
    if bootstrap is not None and bootstrap.startswith(SCHEME):
        mend = f"read the log from Kafka too ({SCHEME}broker:9092/walbus.walbus), or name a bootstrap server"
        raise UsageError("table topics give rows to who reads the log from Kafka", where="bootstrap", mend=mend)
    if kafka_options:
        mend = f"give the log's address as in {SCHEME}broker:9092/walbus.walbus, or leave them out"
        raise UsageError("there is no log on Kafka that the options could be for", where="kafka_options", mend=mend)
    return listed(url)


def _check_choices(start: str, ops: Sequence[str], delta_above: int | None) -> None:
    """What type checkers would find: a start that is none would be taken for another one."""
    if start not in get_args(Start):
        raise UsageError(f"{start!r} is no start", where="start", mend=f"use {', '.join(get_args(Start))}")
    if isinstance(ops, str):
        raise UsageError("the operations are a text", where="ops", mend='give a list: ["insert", "update"]')
    if delta_above is not None and (type(delta_above) is not int or delta_above < 1):
        mend = "give a number of changes from 1 on; without it the log is followed as long as it holds the position"
        raise UsageError(f"{delta_above!r} is no number of changes", where="delta_above", mend=mend)
