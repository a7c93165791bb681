"""The sink's side of a Redis Cluster.

Beside the keys that `redis_store` names it has these, `TAG` in braces being what
has a key lie in a slot (the keys `v` have it before KEY):

walbus:NAME:at:TAG      an anchor: in one slot of each master, its checkpoint; with it copies of shape and layouts, and
                        the rows of that master that lack a value (`redis_slots` says what a checkpoint there tells)
walbus:NAME:fence:TAG   in each slot that was written: the writer that did so last
walbus:NAME:epoch:TAG   moves in all slots when all cached values of a table are forgotten

A script may touch keys of one slot only, and so may a MULTI. So rows go to all masters first, and once all of them have
answered the checkpoint goes to each one: whatever stops that half way, the least checkpoint is behind rows that are
everywhere. Readers may see a transaction's rows of one master before those of another.

A master takes the checkpoint only if it holds the one before it, and if its history is still what it was before the
first of these rows was sent: one that took over meanwhile, and never got them, does not pass them.

A writer's name is larger than all before it, and is put into each fence. A writer from before that comes late gets no
further where its successor has been; elsewhere it writes no more than its successor will read and write again, since
both go on from the same checkpoint. That does not hold of a snapshot, so before rows are swept the writer's name goes
into all fences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final
from uuid import uuid4

import redis
import structlog
from redis.cluster import ClusterPipeline
from redis.connection import parse_url

from walbus.consumers.checkpoint import Part
from walbus.consumers.sinks.redis_nodes import Answer, Argument, ClusterNodes, Command, text_of
from walbus.consumers.sinks.redis_scripts import (
    APPLY_IN_SLOT,
    CLAIM,
    COMMIT_IN_SLOT,
    DROP_IN_SLOT,
    EMPTY_IN_SLOT,
    FENCED,
    GUARDED_IN_SLOT,
    INVALIDATE_IN_SLOT,
    LOST,
    UNLINK_IN_SLOT,
)
from walbus.consumers.sinks.redis_server import RedisServer, settle
from walbus.consumers.sinks.redis_slots import (
    ANCHORS,
    SLOTS,
    Anchor,
    Master,
    anchor_slot,
    dump_slots,
    load_slots,
    slot_of,
    standing,
    tag,
)
from walbus.consumers.sinks.redis_store import Call, RedisStore, Written
from walbus.errors import SinkRefused, SinkUnavailable

_log = structlog.get_logger(__name__)

_CHECKPOINT: Final = ("number", "checkpoint", "vouches", "node", "history", "layouts")  # what goes of an anchor
_SCRIPTS: Final = (
    *(APPLY_IN_SLOT, CLAIM, COMMIT_IN_SLOT, DROP_IN_SLOT, EMPTY_IN_SLOT),
    *(GUARDED_IN_SLOT, INVALIDATE_IN_SLOT, UNLINK_IN_SLOT),
)
_LACKING: Final = "lacking:"


def open_store(url: str, consumer: str, pointer: str = "", stopping: Callable[[], bool] = lambda: False) -> RedisStore:
    """The Redis at an address: a server, or the cluster that it is a node of.

    Args:
        url: of the server, or of any node.
        consumer: whose keys these are.
        pointer: the key that names the live rows to readers; empty: there is none. A cluster takes none.
        stopping: see `SinkPlace`.

    Raises:
        SinkUnavailable, SinkRefused
    """
    server = RedisServer(url, consumer, pointer, stopping)
    where = server.where.replace("Redis at", "Redis Cluster at")
    with server.errors():
        try:
            if not server.is_in_cluster():
                return server
        except redis.ResponseError as error:
            if "SELECT is not allowed in cluster mode" not in str(error):
                raise
            raise SinkRefused(
                "a cluster has one database only", where=where, mend="leave the database out of url"
            ) from None
    server.close()
    if "path" in parse_url(url):  # type: ignore[no-untyped-call]  # redis-py has no types there
        what = "a cluster is not reached by a socket's path"
        raise SinkRefused(what, where=where, mend="name a node's host and port in url")
    if pointer:
        what = "a pointer does not work on a node of a cluster: it lies on one node, and rows on all of them"
        raise SinkRefused(what, where=where, mend="leave pointer out, or use a Redis without cluster mode")
    return RedisCluster(url, where, consumer, stopping)


class RedisCluster(RedisStore):
    """A cluster, and the keys of one consumer that are there for itself.

    Args:
        url: of a node; the others are asked of it, and are known from then on.
        where: it is, for errors.
        consumer: whose keys these are.
        stopping: see `SinkPlace`.
    """

    apply, invalidate, unlink = APPLY_IN_SLOT, INVALIDATE_IN_SLOT, UNLINK_IN_SLOT

    def __init__(self, url: str, where: str, consumer: str, stopping: Callable[[], bool] = lambda: False) -> None:
        super().__init__(where, consumer)
        self._nodes, self._stopping = ClusterNodes(url, where), stopping
        self._scripts: dict[str, str] = {}  # their hashes
        self._anchors: dict[int, dict[str, bytes]] = {}  # by slot: what is there
        self._own: dict[str, int] = {}  # by master's name: the slot of its anchor
        self._vouched: dict[int, frozenset[int]] = {}  # by slot of an anchor: what it vouches for
        self._useless: list[int] = []  # slots of checkpoints that no master needs
        self._number = 0  # of the last checkpoint
        self._writer = ""
        self._claimed = False
        self._all_claimed = False
        self._stored = False

    def close(self) -> None:
        """See `RedisStore.close`."""
        self._nodes.close()

    # The sink's own keys

    def begin(self, *, may_evict: bool = False) -> str:
        """See `RedisStore.begin`."""
        self._nodes.look()
        for client in self._nodes.clients():
            self._prepare(client, may_evict=may_evict)
        slots = list(ANCHORS)
        found = self._nodes.answers([(slot, ("HGETALL", self._anchor(slot))) for slot in slots])
        self._anchors = {slot: _fields(answer) for slot, answer in zip(slots, found, strict=True) if answer}
        anchors = []
        for slot, fields in self._anchors.items():
            with self.legible(f"at:{{{tag(slot)}}}"):
                anchors += [_anchor_of(slot, fields)] if "number" in fields else []
        self._own = {master.name: self._own_slot(master, anchors) for master in self._nodes.masters.values()}
        self._useless = [anchor.slot for anchor in anchors if anchor.slot not in self._own.values()]
        self._vouched = {anchor.slot: anchor.vouches for anchor in anchors}
        self._number = max((anchor.number for anchor in anchors), default=0)
        self._name_writer()
        stands = standing(list(self._nodes.masters.values()), anchors, self._nodes.seen_empty)
        if stands.why is not None:
            _log.warning("consumer.redis_cluster_in_doubt", where=self.where, reason=stands.why)
        self._stored = bool(anchors)
        return stands.checkpoint

    def take_over(self, part: Part) -> str:
        """See `RedisStore.take_over`: its fences know no tokens."""
        raise SinkRefused(
            "a group cannot fill a Redis Cluster, whose slots know writers by other names than the relay's tokens",
            where=self.where,
            mend=f"leave parts out (this is part {part.partition}) and let one process write it, or use a Redis "
            "without cluster mode",
        )

    def _prepare(self, client: redis.Redis, *, may_evict: bool) -> None:
        if not may_evict:
            self.refuse_eviction(client.info("memory"))
        for script in _SCRIPTS:
            self._scripts[script] = text_of(client.script_load(script))

    def _own_slot(self, master: Master, anchors: Sequence[Anchor]) -> int:
        slot = anchor_slot(master, anchors)
        if slot is None:
            what = f"{master.name} has none of the slots where a checkpoint may lie; it is waited for"
            mend = "move a slot there whose number is a multiple of 16, or move all of its slots away"
            raise SinkUnavailable(what, where=self.where, mend=mend)
        return slot

    def _name_writer(self) -> None:
        """A name behind all that are there: of a number, and of a sign by which two who begin at once differ."""
        writers = [fields["writer"] for fields in self._anchors.values() if "writer" in fields]
        if not all("writer" in self._anchors.get(slot, {}) for slot in self._own.values()):
            # Somebody may have written to a master that came back empty, and not have got to a checkpoint there.
            fences = self._nodes.answers([(slot, ("GET", self._fence(slot))) for slot in range(SLOTS)])
            writers += [fence for fence in fences if fence]
        numbers = [int(writer.partition(b"-")[0]) for writer in writers]
        self._writer = f"{max(numbers, default=0) + 1:012d}-{uuid4().hex}"
        self._claimed = self._all_claimed = False

    @property
    def has_checkpoint(self) -> bool:
        """See `RedisStore.has_checkpoint`."""
        return self._stored

    def documents(self, what: str) -> list[bytes]:
        """See `RedisStore.documents`: there is one a master."""
        return [self._anchors.get(slot, {}).get(what, b"{}") for slot in {*self._own.values(), *self._useless}]

    def set_document(self, what: str, document: bytes) -> None:
        """See `RedisStore.set_document`."""
        self._guarded([(slot, ("HSET", self._anchor(slot), what, document)) for slot in self._own.values()])

    def lacking(self) -> set[str]:
        """See `RedisStore.lacking`."""
        return {name.removeprefix(_LACKING) for _, name in self._lacking_fields()}

    def add_lacking(self, member: str) -> None:
        """See `RedisStore.add_lacking`: it lies on the row's master, so that both are lost or neither."""
        slot = self._own[self._nodes.master_of(slot_of(member.partition("\0")[2]))]
        self._guarded([(slot, ("HSET", self._anchor(slot), _LACKING + member, 1))])
        self._anchors.setdefault(slot, {})[_LACKING + member] = b"1"

    def remove_lacking(self, members: Sequence[str]) -> None:
        """See `RedisStore.remove_lacking`."""
        gone = {_LACKING + member for member in members}
        there = [(slot, name) for slot, name in self._lacking_fields() if name in gone]
        self._guarded([(slot, ("HDEL", self._anchor(slot), name)) for slot, name in there])
        for slot, name in there:
            del self._anchors[slot][name]

    def _lacking_fields(self) -> list[tuple[int, str]]:
        return [(slot, name) for slot, fields in self._anchors.items() for name in fields if name.startswith(_LACKING)]

    def slot(self, key: str) -> int:
        """See `RedisStore.slot`."""
        return slot_of(key)

    def beside(self, key: str) -> str:
        """See `RedisStore.beside`."""
        return self.name(f"v:{{{tag(slot_of(key))}}}:{key}")

    def floor(self, table: str, log_generation: int) -> list[str]:
        """See `RedisStore.floor`: there is none."""
        return []

    def _anchor(self, slot: int) -> str:
        return self.name(f"at:{{{tag(slot)}}}")

    def _fence(self, slot: int) -> str:
        return self.name(f"fence:{{{tag(slot)}}}")

    def _epoch(self, slot: int) -> str:
        return self.name(f"epoch:{{{tag(slot)}}}")

    # Writing

    def send(self, calls: Iterable[Call], checkpoint: str | None, written: Iterable[Written]) -> None:
        """See `RedisStore.send`: rows first, then each master's checkpoint."""
        self._claim()
        commands = [self._script(slot_of(keys[0]), script, keys, arguments) for script, keys, arguments in calls]
        try:
            self._see(self._nodes.answers(commands))
        except redis.ResponseError as error:
            if (refusal := self.in_the_way(error, written)) is not None:
                raise refusal from None
            raise
        if checkpoint is not None:
            self._commit(checkpoint)

    def raise_floor(self, table: str, log_generation: int, seq: int) -> None:
        """See `RedisStore.raise_floor`: fences keep late writers out, and the log has what comes again in its order."""

    def show_ahead(self, seq: int) -> None:
        """See `RedisStore.show_ahead`: that is for copies, and there are none of a cluster."""

    def move_epoch(self, channel: str, message: str) -> None:
        """See `RedisStore.move_epoch`: that of each slot. Nothing is published."""
        self._claim()
        epoch = uuid4().hex
        self._see(
            self._nodes.answers(
                [self._script(slot, EMPTY_IN_SLOT, (self._epoch(slot),), (epoch,)) for slot in range(SLOTS)]
            )
        )

    def shut_out(self) -> None:
        """See `RedisStore.shut_out`."""
        self._claim()
        if not self._all_claimed:
            self._see(self._nodes.answers([self._script(slot, CLAIM) for slot in range(SLOTS)]))
            self._all_claimed = True

    def settle(self) -> None:
        """See `RedisStore.settle`."""
        for client in self._nodes.clients():
            settle(client, self.where, self._stopping)
        self._see([self._nodes.replicated(self._script(slot, CLAIM)) for slot in self._own.values()])

    def remove(self, *keys: str) -> None:
        """See `RedisStore.remove`."""
        self._guarded([(slot_of(key), ("UNLINK", key)) for key in keys])

    def _guarded(self, commands: Iterable[Command]) -> None:
        """Commands of one key each, while no later writer has been in its slot; the slot is this writer's then.

        Raises as `send`.
        """
        self._claim()
        sent: list[Command] = []
        for slot, (command, key, *arguments) in commands:
            sent.append(self._script(slot, CLAIM))  # where it is another's, what comes next is nothing either
            sent.append(self._script(slot, GUARDED_IN_SLOT, (str(key),), (command, *arguments)))
        self._see(self._nodes.answers(sent))

    def _claim(self) -> None:
        if self._claimed:
            return
        self._see(
            self._nodes.answers([self._script(slot, CLAIM, (self._anchor(slot),)) for slot in self._own.values()])
        )
        self._claimed = True

    def _commit(self, checkpoint: str) -> None:
        number = self._number + 1
        commands = []
        vouches = self._to_vouch()
        for name, slot in self._own.items():
            master, before = self._nodes.masters[name], self._anchors.get(slot, {}).get("number", b"")
            fields = ("number", number, "checkpoint", checkpoint, "vouches", dump_slots(vouches[slot]))
            arguments = (before, master.history, *fields, "node", master.node, "history", master.history)
            commands.append(self._script(slot, COMMIT_IN_SLOT, (self._anchor(slot),), arguments))
        self._number = number
        known = self._nodes.answers(commands)
        self._see(known)
        self._nodes.look_for_new(known)
        for slot in self._own.values():
            self._anchors.setdefault(slot, {})["number"] = b"%d" % number
        self._vouched, self._stored = vouches, True
        if self._useless:
            self._see(self._nodes.answers([self._drop(slot) for slot in self._useless]))
            self._useless = []

    def _to_vouch(self) -> dict[int, frozenset[int]]:
        """By the slots of anchors: for which slots their masters' next checkpoints vouch.

        Those that moved have two that do until all checkpoints are stored, for a commit may end half way.
        """
        now = {slot: self._nodes.masters[name].slots for name, slot in self._own.items()}
        before = self._vouched
        if all(has <= before.get(slot, frozenset()) for slot, has in now.items()):
            return now
        return {slot: has | before.get(slot, frozenset()) for slot, has in now.items()}

    def _drop(self, slot: int) -> Command:
        return self._script(slot, DROP_IN_SLOT, (self._anchor(slot),), _CHECKPOINT)

    def _script(self, slot: int, script: str, keys: Sequence[str] = (), arguments: Sequence[Argument] = ()) -> Command:
        names = (self._fence(slot), *keys)
        return slot, ("EVALSHA", self._scripts[script], len(names), *names, self._writer, *arguments)

    def _see(self, answers: Iterable[Answer]) -> None:
        """Raises SinkRefused, SinkUnavailable: a script did not do its work."""
        for answer in answers:
            if answer == FENCED:
                raise self.another_writer()
            if isinstance(answer, int) and answer in LOST:
                what = f"a master of this cluster has lost what was written last ({LOST[answer]}); it is written again"
                raise SinkUnavailable(what, where=self.where)

    # Reading

    def pipeline(self) -> ClusterPipeline:
        """See `RedisStore.pipeline`."""
        return self._nodes.pipeline()

    def scan(self, pattern: str) -> Iterator[str]:
        """See `RedisStore.scan`."""
        return self.rows_among(self._nodes.names(pattern))


def _fields(answer: dict[bytes, bytes]) -> dict[str, bytes]:
    return {name.decode(): value for name, value in answer.items()}


def _anchor_of(slot: int, fields: dict[str, bytes]) -> Anchor:
    number, *texts = (fields[name].decode() for name in ("number", "checkpoint", "vouches", "node", "history"))
    checkpoint, vouches, node, history = texts
    return Anchor(slot, int(number), checkpoint, load_slots(vouches), node, history)
