"""A Redis Cluster of this machine's redis-server, whose nodes are killed, stopped and given slots by tests."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from support.services import RedisServer, local_redis, missing, redis_in
from support.waiting import wait_for

SLOTS = 16_384
_MASTERS = 3
_PATIENCE_SECONDS = 60  # with a node that a busy machine keeps from answering
_OPTIONS = (
    *("--cluster-enabled", "yes", "--cluster-replica-validity-factor", "0"),
    *("--repl-diskless-sync-delay", "0", "--cluster-allow-replica-migration", "no"),
)


@dataclass(frozen=True)
class Node:
    """One redis-server of the cluster."""

    server: RedisServer

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2].partition("/")[0])

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True)

    def call(self, *command: str | int) -> Any:
        with self.client() as client:
            return client.execute_command(*command)

    @property
    def id(self) -> str:
        return str(self.call("CLUSTER MYID"))

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        wait_for(lambda: not _answers(self), 60, what="the node is gone")

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self.server.pid is not None
        os.kill(self.server.pid, number)


@dataclass(frozen=True)
class LocalCluster:
    """Masters, each with a third of the slots, and a replica of each one, if it was asked for; in the same order.

    Attributes:
        servers: end with it.
    """

    masters: list[Node]
    replicas: list[Node]
    servers: ExitStack

    @property
    def url(self) -> str:
        return self.masters[-1].server.url

    def client(self) -> redis.cluster.RedisCluster:
        """A client of the nodes that answer."""
        node = next(node for node in (*self.masters, *self.replicas) if _answers(node))
        return redis.cluster.RedisCluster(host="127.0.0.1", port=node.port, decode_responses=True)

    def empty(self) -> None:
        for node in self.masters:
            node.call("FLUSHALL")

    def owner(self, slot: int) -> Node:
        """The master that a slot's keys are on."""
        with self.client() as client:
            port = client.nodes_manager.get_node_from_slot(slot).port
        return next(node for node in (*self.masters, *self.replicas) if node.port == port)

    def move(self, slot: int, to: Node, *, leave_open: bool = False) -> None:
        """Moves a slot with its keys, as `redis-cli --cluster reshard` does; or all but the end of it."""
        source = self.owner(slot)
        to.call("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
        source.call("CLUSTER SETSLOT", slot, "MIGRATING", to.id)
        while keys := source.call("CLUSTER GETKEYSINSLOT", slot, 100):
            source.call("MIGRATE", "127.0.0.1", to.port, "", 0, 1000 * _PATIENCE_SECONDS, "KEYS", *keys)
        if not leave_open:
            self.close(slot, to)

    def close(self, slot: int, to: Node) -> None:
        """The end of a move: the slot is another node's."""
        for node in (to, *(node for node in self.masters if node is not to and _answers(node))):
            node.call("CLUSTER SETSLOT", slot, "NODE", to.id)

    def join(self) -> Node:
        """One more master, without slots."""
        self.masters.append(new := Node(self.servers.enter_context(local_redis(*_OPTIONS))))
        new.call("CLUSTER MEET", "127.0.0.1", self.masters[0].port)
        count = len(self.masters) + len(self.replicas)
        wait_for(lambda: all(_knows(node, count) for node in self.masters), 60, what="the nodes know the new one")
        wait_for(lambda: all(_is_ok(node) for node in self.masters), 60, what="the new one has seen the cluster whole")
        return new

    def come_back_empty(self, index: int) -> None:
        """A master is killed, and started again: it has its slots, and no key."""
        master = self.masters[index]
        folder = Path(master.call("CONFIG GET", "dir")["dir"])
        master.kill()
        server = self.servers.enter_context(redis_in(folder, master.port, *_OPTIONS))
        self.masters[index] = Node(server)
        wait_for(lambda: all(_is_ok(node) for node in self.masters), 60, what="the cluster is whole again")

    def settle(self, index: int) -> None:
        """Waits until the replica of a master has what that has."""

        def offset(node: Node, of: str) -> int:
            return int(node.client().info("replication")[of])

        master, replica = self.masters[index], self.replicas[index]
        wait_for(lambda: offset(replica, "slave_repl_offset") >= offset(master, "master_repl_offset"), 60)

    def cut_off(self, index: int) -> None:
        """From now on the replica of a master gets nothing."""
        self.replicas[index].stop()
        self.masters[index].call("CLIENT", "KILL", "TYPE", "replica")

    def fail_over(self, index: int, came: Iterable[int] = ()) -> Node:
        """Kills a master; its replica, which goes on, takes over with what it has.

        Args:
            index: of the master.
            came: slots that it got when its replica was cut off, which was not told that they are its own now.
        """
        self.masters[index].kill()
        replica = self.replicas[index]
        replica.go_on()
        wait_for(lambda: replica.client().info("replication")["master_link_status"] == "down", 60)
        replica.call("CLUSTER FAILOVER", "TAKEOVER")
        left = [node for node in (*self.masters, *self.replicas) if _answers(node)]
        wait_for(lambda: all(_sees(node, replica) for node in left), 60, what="all nodes see the new master")
        for slot in came:
            self.close(slot, replica)
        wait_for(lambda: all(_is_ok(node) for node in left), 60, what="the cluster is whole again")
        return replica


def rows_on(cluster: LocalCluster, index: int, rows: int) -> list[int]:
    """Of so many rows of `items`, from 0, those whose keys a master has."""
    master = cluster.masters[index]
    return [n for n in range(rows) if cluster.owner(key_slot(b"public.items:%d" % n)) is master]


@contextmanager
def local_cluster(*, replicas: bool = False, spare: int = 0) -> Iterator[LocalCluster]:
    """A cluster of three masters, and so many more that have no slots, with a replica each if asked for."""
    if not shutil.which("redis-server"):
        missing("redis-server", "a cluster takes a program of this machine")
    with ExitStack() as stack:
        count = (_MASTERS + spare) * (2 if replicas else 1)
        nodes = [Node(stack.enter_context(local_redis(*_OPTIONS))) for _ in range(count)]
        masters, others = nodes[: _MASTERS + spare], nodes[_MASTERS + spare :]
        for epoch, node in enumerate(masters, 1):
            node.call("CLUSTER SET-CONFIG-EPOCH", epoch)
        for index, node in enumerate(masters[:_MASTERS]):
            first, end = SLOTS * index // _MASTERS, SLOTS * (index + 1) // _MASTERS
            node.call("CLUSTER ADDSLOTS", *range(first, end))
        for node in nodes[1:]:
            node.call("CLUSTER MEET", "127.0.0.1", nodes[0].port)
        wait_for(lambda: all(_knows(node, count) for node in nodes), 60, what="the nodes know each other")
        for replica, master in zip(others, masters, strict=False):
            replica.call("CLUSTER REPLICATE", master.id)
        for replica in others:
            wait_for(lambda one=replica: one.client().info("replication")["master_link_status"] == "up", 60)
        wait_for(lambda: all(_is_ok(node) for node in nodes), 60, what="the cluster is whole")
        yield LocalCluster(masters, others, stack)


def _answers(node: Node) -> bool:
    try:
        return bool(redis.Redis(port=node.port, socket_timeout=_PATIENCE_SECONDS).ping())
    except redis.ConnectionError:
        return False


def _knows(node: Node, count: int) -> bool:
    nodes = node.call("CLUSTER NODES").values()
    return len(nodes) == count and all(other["connected"] and "handshake" not in other["flags"] for other in nodes)


def _is_ok(node: Node) -> bool:
    return bool(node.call("CLUSTER INFO")["cluster_state"] == "ok")


def _sees(node: Node, master: Node) -> bool:
    return any(run[2][1] == master.port for run in node.call("CLUSTER SLOTS"))
