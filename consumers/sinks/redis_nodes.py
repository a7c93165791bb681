"""The masters of a Redis Cluster: who they are, what they have, and how commands get to them.

redis-py's client knows the nodes and follows slots that move. Its pipelines take no scripts though, so commands are put
together here by master, and those that come back as moved are sent once more. A slot that is on its way takes no script
before it has arrived (TRYAGAIN): that is waited for a little here, and then by the consumer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterPipeline, RedisCluster
from redis.retry import Retry

from walbus.consumers.sinks.redis_errors import redis_errors
from walbus.consumers.sinks.redis_slots import SLOTS, Master
from walbus.consumers.sinks.redis_store import TIMEOUT_SECONDS
from walbus.errors import SinkUnavailable

_REPLICA_MS: Final = 4_000  # that a replica is waited for; less than a request may take
_REDIRECTIONS: Final = 3  # that commands follow together
_ON_ITS_WAY: Final = (redis.exceptions.AskError, redis.exceptions.TryAgainError)  # what is told of a slot that is

Answer: TypeAlias = Any  # redis-py types answers so, whatever the command
_Node: TypeAlias = dict[str, Any]  # as redis-py reads a line of CLUSTER NODES
_Client: TypeAlias = Any  # a redis.Redis, where commands are called that have no types there
Argument: TypeAlias = bytes | str | int
Command: TypeAlias = tuple[int, tuple[Argument, ...]]  # the slot that it is for, and it


class ClusterNodes:
    """The masters of a cluster, as they were when last looked at.

    Args:
        url: of a node; the others are asked of it, and are known from then on.
        where: it is, for errors.

    Attributes:
        masters: by name.
        seen_empty: the histories (replication IDs) of masters that had no slots when they were seen.
    """

    def __init__(self, url: str, where: str) -> None:
        self._where = where
        self._cluster: _Client
        with redis_errors(where):
            self._cluster = RedisCluster.from_url(
                url,
                socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        self.masters: dict[str, Master] = {}
        self.seen_empty: set[str] = set()
        self._known_nodes: list[int] | None = None  # how many each master knew when new ones were last looked for

    def close(self) -> None:
        """Closes the connections."""
        self._cluster.close()

    def look(self) -> None:
        """Looks anew who the masters are, and what they have.

        Raises:
            SinkUnavailable: nodes do not agree on it yet.
        """
        self._cluster.nodes_manager.initialize()
        self.masters = {name: self._master(name, slots) for name, slots in self._slots().items()}
        self._known_nodes = None
        self._look_at_empty()

    def look_for_new(self, known_nodes: list[int]) -> None:
        """Looks at masters that have no slots yet, if nodes have come: what moves there from now on is there.

        Args:
            known_nodes: how many nodes each master knows.
        """
        if known_nodes != self._known_nodes:
            self._known_nodes = known_nodes if self._look_at_empty() else None

    def clients(self) -> list[redis.Redis]:
        """One for each master."""
        return [self._client(name) for name in self.masters]

    def master_of(self, slot: int) -> str:
        """The name of the master of a slot, as far as is known."""
        return self._known(str(self._cluster.nodes_manager.get_node_from_slot(slot).name))

    def pipeline(self) -> ClusterPipeline:
        """Commands of one key each that only read."""
        pipeline: ClusterPipeline = self._cluster.pipeline()
        return pipeline

    def answers(self, commands: Sequence[Command]) -> list[Answer]:
        """Those of commands, each sent to the master of its slot, with those for one slot in their order.

        Raises:
            redis.RedisError: the first one that is no redirection.
            SinkUnavailable: slots move to a master that is not known; some commands may have been done.
        """
        answers: list[Answer] = [None] * len(commands)
        left: Sequence[int] = range(len(commands))
        for _ in range(_REDIRECTIONS):
            self._send(commands, left, answers)
            left = [index for index in left if isinstance(answers[index], redis.exceptions.MovedError)]
            if not left:
                break
            self._cluster.nodes_manager.initialize()
            self._learn()
        on_their_way = [index for index, answer in enumerate(answers) if type(answer) in _ON_ITS_WAY]
        for index in on_their_way:
            if isinstance(answers[index], redis.exceptions.AskError):
                self._known(f"{answers[index].host}:{answers[index].port}")
            answers[index] = self._cluster.execute_command(*commands[index][1])
        if on_their_way:
            self._learn()
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def replicated(self, command: Command) -> Answer:
        """The answer of one that writes, once all replicas that are connected have it and what was written before it.

        Raises:
            SinkUnavailable: one does not get to it.
        """
        client = self._client(self.master_of(command[0]))
        replicas = client.info("replication")["connected_slaves"]
        with client.pipeline(transaction=False) as pipeline:  # WAIT is about the last write of its connection
            pipeline.execute_command(*command[1])
            pipeline.execute_command("WAIT", replicas, _REPLICA_MS)
            answer, there = pipeline.execute()
        if there < replicas:
            raise SinkUnavailable("a replica of this cluster does not get what is written", where=self._where)
        return answer

    def names(self, pattern: str) -> Iterator[bytes]:
        """The keys that match a pattern; some may come twice.

        Raises:
            SinkUnavailable: slots moved meanwhile, so that keys may have been on no master when it was asked.
        """
        before = self._places()
        for client in self.clients():
            yield from client.scan_iter(match=pattern, count=1000)
        if self._places() != before:
            raise SinkUnavailable("slots moved while keys were looked for", where=self._where)

    def _places(self) -> dict[str, tuple[str, ...]]:
        """By master: the slots that it says it has.

        Raises:
            SinkUnavailable: slots are on their way, or with a master that is not known.
        """
        places, known = {}, 0
        for name in self.masters:
            own = _own(self._client(name).execute_command("CLUSTER NODES"))
            if own["migrations"]:
                raise SinkUnavailable("slots move, and keys cannot be looked for until then", where=self._where)
            places[name] = tuple(str(run) for run in own["slots"])
            known += sum(int(run[-1]) - int(run[0]) + 1 for run in own["slots"])
        if known != SLOTS:
            raise SinkUnavailable("a master of this cluster is not known yet, and may have keys", where=self._where)
        return places

    def _look_at_empty(self) -> bool:
        """False if nodes are about to come. One that does not answer is not seen: what moves there is in doubt."""
        nodes: dict[str, _Node] = {}
        for name in self.masters:
            nodes |= self._client(name).execute_command("CLUSTER NODES")
        kinds = {name: node["flags"].split(",") for name, node in nodes.items()}
        for name, node in nodes.items():
            if kinds[name] == ["master"] and not node["slots"] and name not in self.masters:
                self._see_empty(name)
        return not any("handshake" in kind for kind in kinds.values())

    def _see_empty(self, name: str) -> None:
        manager = self._cluster.nodes_manager
        host, _, port = name.rpartition(":")
        with (
            suppress(redis.RedisError),
            manager.create_redis_node(host, int(port), **manager.connection_kwargs) as client,
        ):
            replication = client.info("replication")  # first: what comes once it is known is not lost without a trace
            own = _own(client.execute_command("CLUSTER NODES"))
            if replication["role"] == "master" and not own["slots"] and not own["migrations"]:
                self.seen_empty.add(str(replication["master_replid"]))

    def _slots(self) -> dict[str, set[int]]:
        slots: dict[str, set[int]] = {}
        for slot, nodes in self._cluster.nodes_manager.slots_cache.items():
            slots.setdefault(nodes[0].name, set()).add(slot)
        return slots

    def _master(self, name: str, slots: Iterable[int]) -> Master:
        client = self._client(name)
        replication = client.info("replication")
        if replication["role"] != "master":
            raise SinkUnavailable("the nodes of this cluster do not agree on its masters", where=self._where)
        node = text_of(client.execute_command("CLUSTER MYID"))
        before = "" if replication["second_repl_offset"] == -1 else str(replication["master_replid2"])
        return Master(name, node, str(replication["master_replid"]), before, frozenset(slots))

    def _client(self, name: str) -> _Client:
        node = self._cluster.get_node(node_name=name)
        if node is None:
            raise SinkUnavailable("a master of this cluster is gone", where=self._where)
        return self._cluster.get_redis_connection(node)

    def _known(self, name: str) -> str:
        """Raises SinkUnavailable: a node takes slots that had none; once it has them, it has a checkpoint too."""
        if name not in self.masters:
            raise SinkUnavailable(f"slots move to {name}, which had none before", where=self._where)
        return name

    def _send(self, commands: Sequence[Command], indexes: Iterable[int], answers: list[Answer]) -> None:
        by_master: dict[str, list[int]] = {}
        for index in indexes:
            by_master.setdefault(self.master_of(commands[index][0]), []).append(index)
        for name, some in by_master.items():
            with self._client(name).pipeline(transaction=False) as pipeline:
                for index in some:
                    pipeline.execute_command(*commands[index][1])
                for index, answer in zip(some, pipeline.execute(raise_on_error=False), strict=True):
                    answers[index] = answer

    def _learn(self) -> None:
        """Slots may have moved: what a master has taken of them, its next checkpoint vouches for."""
        slots = self._slots()
        for name in slots:
            self._known(name)
        for name, master in self.masters.items():
            self.masters[name] = master._replace(slots=frozenset(slots.get(name, ())))


def _own(nodes: dict[str, _Node]) -> _Node:
    """Of the nodes that one knows: itself."""
    [own] = [node for node in nodes.values() if "myself" in node["flags"]]
    return own


def text_of(answer: bytes | str) -> str:
    """An answer that is a text, which redis-py decodes of some commands."""
    return answer.decode() if isinstance(answer, bytes) else answer
