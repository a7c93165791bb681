"""A Redis Cluster whose masters are killed, replaced without their last writes, stopped, and given others' slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, truncate, update
from support.redis_cluster import LocalCluster, local_cluster, rows_on
from support.running_consumer import RunningConsumer, consumer, equal, followed, stored
from support.scripted_relay import ScriptedRelay
from support.sink_writing import MARKS, fill, following, windows
from support.sinks_under_test import SinkUnderTest, redis_cluster_under_test
from support.waiting import wait_for
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.refused_rows import RowRefused
from walbus.consumers.sinks import Sink
from walbus.consumers.sinks.base import SettlingSink
from walbus.consumers.sinks.redis_slots import ANCHORS, slot_of
from walbus.consumers.steps import Sweep
from walbus.errors import SinkRefused, SinkUnavailable
from walbus.events import window_of

pytestmark = pytest.mark.one_version

_ROWS = 60  # that all masters have some of them is asserted


@pytest.fixture
def under_test(cluster: LocalCluster, tmp_path: Path) -> SinkUnderTest:
    return redis_cluster_under_test(tmp_path, cluster, "hash")


@contextmanager
def filled(relay: ScriptedRelay, under_test: SinkUnderTest) -> Iterator[RunningConsumer]:
    """A consumer that has the rows, and a checkpoint behind them."""
    relay.source.commit([insert(ITEMS, n) for n in range(_ROWS)])
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 1, name="there"))
        yield running


def snapshots(relay: ScriptedRelay) -> int:
    return len(relay.asked("/v1/snapshot"))


# A master is replaced


def test_a_replica_that_takes_over_without_the_last_writes_gets_them_again_from_the_log(
    cluster: LocalCluster, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    with filled(relay, under_test) as running:
        lost = rows_on(cluster, 1, _ROWS)
        cluster.cut_off(1)
        edits = [update(ITEMS, n, name="lost", body="b") for n in lost[2:]]
        followed(running, under_test, relay, delete(ITEMS, lost[0]), update(ITEMS, lost[1], new_id=900), *edits)
        cluster.fail_over(1)
        source.progress()  # without a change: that the log goes on is enough to notice it
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 1, name="goes on"))
    assert snapshots(relay) == 1


def test_a_loss_while_no_consumer_runs_is_noticed_by_the_next_one(
    cluster: LocalCluster, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    with filled(relay, under_test) as running:
        cluster.cut_off(1)
        followed(running, under_test, relay, *(update(ITEMS, n, name="lost") for n in rows_on(cluster, 1, _ROWS)))
    cluster.fail_over(1)
    assert under_test.rows() != source.rows(), "nothing was lost"
    with consumer(relay, under_test):
        equal(under_test, relay)
    assert snapshots(relay) == 1


def test_a_master_that_is_replaced_between_rows_and_checkpoint_does_not_pass_what_it_never_got(
    cluster: LocalCluster, under_test: SinkUnderTest, source: ModelSource
) -> None:
    """Its checkpoint is the one before, as is expected of it; only its history tells that it is another one."""
    source.commit([insert(ITEMS, n) for n in range(_ROWS)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        before, done = following(source), source.end
        cluster.cut_off(0)
        source.commit([update(ITEMS, n, name="lost") for n in rows_on(cluster, 0, _ROWS)])
        sink.write(windows(source, done), MARKS)
        sink.write([], Marks(2, 1))  # rows of one mark are sent before those of another
        cluster.fail_over(0)
        with pytest.raises(SinkUnavailable):
            sink.commit(following(source))
        sink.rollback()
        wait_for(lambda: _is_at(sink, before), what="the checkpoint is the one before")
        fill(sink, source, done)
    assert under_test.rows() == source.rows()


def _is_at(sink: Sink, checkpoint: Following) -> bool:
    try:
        return sink.checkpoint() == checkpoint
    except SinkUnavailable:
        return False  # the nodes do not agree yet


def test_rows_that_moved_to_a_master_which_lost_them_are_read_again(
    cluster: LocalCluster, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    """No checkpoint is behind: the one of the master that lost them never told of these slots."""
    with filled(relay, under_test):
        pass
    cluster.cut_off(1)
    slots = [slot_of(f"{ITEMS}:{n}") for n in rows_on(cluster, 0, _ROWS)]
    for slot in slots:
        cluster.move(slot, cluster.masters[1])
    cluster.fail_over(1, came=slots)
    assert under_test.rows() != source.rows(), "nothing was lost"
    with consumer(relay, under_test):
        equal(under_test, relay)
    assert snapshots(relay) == 2


@pytest.mark.parametrize("loses", ["comes back empty", "is replaced"])
def test_rows_that_moved_to_a_new_master_which_lost_them_are_read_again(
    loses: str, tmp_path: Path, relay: ScriptedRelay, source: ModelSource
) -> None:
    """It never had a checkpoint, and never was a replica: nothing there tells that rows were."""
    with local_cluster(replicas=loses == "is replaced", spare=1) as cluster:
        under_test = redis_cluster_under_test(tmp_path, cluster, "hash", url=cluster.masters[0].server.url)
        with filled(relay, under_test):
            pass
        slots = [slot_of(f"{ITEMS}:{n}") for n in rows_on(cluster, 0, _ROWS)]
        slots.append(16)  # that of a checkpoint, where none lies
        if loses == "is replaced":
            cluster.cut_off(3)
        for slot in slots:
            cluster.move(slot, cluster.masters[3])
        if loses == "is replaced":
            cluster.fail_over(3, came=slots)
        else:
            cluster.come_back_empty(3)
        assert under_test.rows() != source.rows(), "nothing was lost"
        with consumer(relay, under_test) as running:
            followed(running, under_test, relay, update(ITEMS, 1, name="goes on"))
    assert snapshots(relay) == 2


def test_rows_that_moved_to_a_new_master_while_no_consumer_ran_are_read_again(
    growing: tuple[LocalCluster, SinkUnderTest], relay: ScriptedRelay, source: ModelSource
) -> None:
    """They are there. But nobody saw it before, so it may have been restarted since they came."""
    cluster, under_test = growing
    with filled(relay, under_test):
        pass
    for slot in (slot_of(f"{ITEMS}:1"), 16):
        cluster.move(slot, cluster.masters[3])
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 1, name="goes on", body="b"))
    assert snapshots(relay) == 2


def test_a_node_that_joins_while_a_consumer_runs_costs_no_snapshot(
    growing: tuple[LocalCluster, SinkUnderTest], relay: ScriptedRelay, source: ModelSource
) -> None:
    cluster, under_test = growing
    with filled(relay, under_test) as running:
        new = cluster.join()
        followed(running, under_test, relay, update(ITEMS, 1, name="behind it", body="b"))
        for n in range(_ROWS):
            cluster.move(slot_of(f"{ITEMS}:{n}"), new)
        cluster.move(16, new)
        edits = [update(ITEMS, n, name="moved", body="b") for n in range(_ROWS)]
        followed(running, under_test, relay, *edits)
    assert snapshots(relay) == 1


def test_rows_of_an_older_layout_that_a_replica_brings_back_are_brought_to_the_new_one(
    cluster: LocalCluster, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n, f"n{n}") for n in range(_ROWS)])
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 1, name="there"))
        cluster.cut_off(1)
        source.add_layout(items_layout("items", column("id", 23, "int4", in_key=True), column("title"), column("body")))
        source.commit([update(ITEMS, 2, title="x", body="b")])
        wait_for(lambda: {row.get("title") for row in under_test.rows().values()} >= {"x", "n3", f"n{_ROWS - 1}"})
        stored(running, source)
        cluster.fail_over(1)
        source.progress()
        titles = {str(n): f"n{n}" for n in range(_ROWS)} | {"1": "there", "2": "x"}
        wait_for(
            lambda: {n: row.get("title") for n, row in under_test.rows().items()} == titles,
            what="all rows have the new layout",
        )
    assert snapshots(relay) == 1


def test_what_must_not_be_lost_is_not_settled_before_the_replicas_have_it(
    cluster: LocalCluster, under_test: SinkUnderTest, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n) for n in range(_ROWS)])
    with closing(under_test.open()) as sink:
        assert isinstance(sink, SettlingSink)
        fill(sink, source)
        sink.settle()
        cluster.replicas[1].stop()
        with pytest.raises(SinkUnavailable, match="a replica of this cluster does not get"):
            sink.settle()
        cluster.replicas[1].go_on()
        sink.settle()


# A master is away


def test_a_master_that_stands_still_is_waited_for(
    cluster: LocalCluster, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource
) -> None:
    with filled(relay, under_test) as running:
        cluster.masters[2].stop()
        source.commit([update(ITEMS, n, name="meanwhile") for n in range(_ROWS)])
        wait_for(lambda: running.status().get("waiting_for"), what="the consumer says that it waits")
        cluster.masters[2].go_on()
        equal(under_test, relay)
    assert snapshots(relay) == 1


def test_a_master_that_comes_back_empty_has_all_rows_read_again(
    redis_cluster: LocalCluster, tmp_path: Path, relay: ScriptedRelay, source: ModelSource
) -> None:
    under_test = redis_cluster_under_test(tmp_path, redis_cluster, "json")
    with filled(relay, under_test):
        redis_cluster.masters[1].call("FLUSHALL")
        source.progress()
        equal(under_test, relay)
    assert snapshots(relay) == 2


# Slots move


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[tuple[LocalCluster, SinkUnderTest]]:
    """Three masters, and one that has no slots yet."""
    with local_cluster(spare=1) as cluster:
        yield cluster, redis_cluster_under_test(tmp_path, cluster, "string")


def test_slots_that_move_under_load_cost_no_row_and_no_snapshot(
    growing: tuple[LocalCluster, SinkUnderTest], relay: ScriptedRelay, source: ModelSource
) -> None:
    cluster, under_test = growing
    slots = [slot_of(f"{ITEMS}:{n}") for n in range(_ROWS)]
    anchors = [slot for slot in ANCHORS if slot in (0, 5472, 10928)]  # where the first masters' checkpoints lie
    with filled(relay, under_test) as running:
        for round_, to in enumerate([cluster.masters[3], cluster.masters[0], cluster.masters[1], cluster.masters[3]]):
            for n, slot in enumerate([*anchors, *slots[round_::2]]):
                if cluster.owner(slot) is not to:
                    cluster.move(slot, to)
                edit = update(ITEMS, n % _ROWS, name=f"{round_}", body="b")
                source.commit([edit, insert(ITEMS, 1000 * (round_ + 1) + n), delete(ITEMS, 1000 * round_ + n + _ROWS)])
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 1, name="goes on"))
    assert snapshots(relay) == 1
    with consumer(relay, under_test) as again:
        followed(again, under_test, relay, update(ITEMS, 2, name="goes on", body="b"))
    assert snapshots(relay) == 1


def test_a_truncate_finds_rows_that_moved_to_a_master_which_nobody_has_written_to_yet(
    growing: tuple[LocalCluster, SinkUnderTest], relay: ScriptedRelay, source: ModelSource
) -> None:
    """Keys were looked for on the masters of the last look alone, and such rows stayed as ghosts."""
    cluster, under_test = growing
    moved = {slot for n in range(0, _ROWS, 2) if (slot := slot_of(f"{ITEMS}:{n}")) not in ANCHORS}
    with filled(relay, under_test):
        for slot in (*moved, ANCHORS[1]):  # one for a checkpoint, where none lies yet
            cluster.move(slot, cluster.masters[3])
        source.commit([truncate(ITEMS), insert(ITEMS, 1, "behind the truncate")])
        equal(under_test, relay)
    assert set(under_test.rows()) == set(source.rows())


def test_an_insert_that_a_late_writer_sends_behind_a_truncate_is_kept_out(
    redis_cluster: LocalCluster, tmp_path: Path, source: ModelSource
) -> None:
    """The one that took over had the TRUNCATE by a delta, which says nothing of the rows that came before it."""
    under_test = redis_cluster_under_test(tmp_path, redis_cluster, "hash")
    source.commit([insert(ITEMS, 0, "known")])  # so that the late one has noted the layout already
    with closing(under_test.open()) as late, closing(under_test.open()) as sink:
        fill(late, source)
        since = source.last_seq
        source.commit([insert(ITEMS, n, "late") for n in range(1, _ROWS)])
        inserts = [window_of(h, r, source.layouts.__getitem__) for h, r in source.records]
        sink.checkpoint()
        source.commit([truncate(ITEMS), insert(ITEMS, 1, "behind it")])
        sink.write([window_of(h, r, source.layouts.__getitem__) for h, r in source.delta(ITEMS, since)], MARKS)
        sink.commit(following(source))
        late.write(inserts, MARKS)
        with pytest.raises(SinkRefused, match="another consumer writes"):
            late.write([], Marks(2, 1))  # rows of one mark are sent before those of another
    assert under_test.rows() == source.rows()


def test_a_slot_on_its_way_is_waited_for_by_rows_and_by_whoever_looks_for_keys(
    growing: tuple[LocalCluster, SinkUnderTest], source: ModelSource, tmp_path: Path
) -> None:
    cluster, _ = growing
    under_test = redis_cluster_under_test(tmp_path, cluster, "hash")  # whose rows have no key beside them
    slot = slot_of(f"{ITEMS}:7")
    to = next(node for node in cluster.masters[:3] if node is not cluster.owner(slot))
    source.commit([insert(ITEMS, n) for n in range(_ROWS)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        cluster.move(slot, to, leave_open=True)
        source.commit([update(ITEMS, 7, name="moved", body="b")])
        with pytest.raises(SinkUnavailable):
            fill(sink, source, done)
        sink.rollback()
        assert sink.checkpoint() == Following(source.log_id, MARKS, Point(done, _ROWS))
        with pytest.raises(SinkUnavailable, match="keys cannot be looked for"):
            sink.sweep(Sweep(ITEMS, source.last_seq, Marks(2, 1), following(source)))
        sink.rollback()
        cluster.close(slot, to)
        sink.checkpoint()
        fill(sink, source, done)
    assert under_test.rows() == source.rows()


def test_a_master_without_a_slot_for_a_checkpoint_is_told(
    growing: tuple[LocalCluster, SinkUnderTest], source: ModelSource
) -> None:
    cluster, under_test = growing
    cluster.move(17, cluster.masters[3])
    with pytest.raises(SinkUnavailable, match=r"has none of the slots where a checkpoint may lie.*multiple of 16"):
        under_test.open()
    cluster.move(16, cluster.masters[3])
    under_test.open().close()


# Masters that refuse


def test_a_cluster_with_a_master_that_may_evict_is_refused(redis_cluster: LocalCluster, tmp_path: Path) -> None:
    node = redis_cluster.masters[1]
    node.call("CONFIG SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(SinkRefused, match="may evict keys"):
            redis_cluster_under_test(tmp_path, redis_cluster, "hash").open()
    finally:
        node.call("CONFIG SET", "maxmemory-policy", "noeviction")


@pytest.mark.parametrize(
    "url",
    [lambda url: url.replace("/0", "/1"), lambda url: f"{url}?db=1"],
    ids=["in the path", "behind it"],
)
def test_a_database_of_a_cluster_is_refused_with_a_mend(
    url: Callable[[str], str], redis_cluster: LocalCluster, tmp_path: Path
) -> None:
    with pytest.raises(SinkRefused, match="leave the database out of url"):
        redis_cluster_under_test(tmp_path, redis_cluster, "hash").open(url=url(redis_cluster.url))


def test_a_master_without_memory_takes_neither_its_rows_nor_the_checkpoint(
    redis_cluster: LocalCluster, tmp_path: Path, source: ModelSource
) -> None:
    under_test = redis_cluster_under_test(tmp_path, redis_cluster, "hash")
    node = redis_cluster.masters[1]
    source.commit([insert(ITEMS, n, "x" * 1000) for n in range(_ROWS)])
    with closing(under_test.open()) as sink:
        node.call("CONFIG SET", "maxmemory", 1)
        try:
            with pytest.raises(SinkUnavailable, match="cannot write now"):
                fill(sink, source)
        finally:
            node.call("CONFIG SET", "maxmemory", 0)
        assert not any(str(n) in under_test.rows() for n in rows_on(redis_cluster, 1, _ROWS))
        sink.rollback()
        assert sink.checkpoint() is None
        fill(sink, source)
    assert under_test.rows() == source.rows()


def test_a_row_whose_version_cannot_be_kept_is_named(
    redis_cluster: LocalCluster, tmp_path: Path, source: ModelSource
) -> None:
    under_test = redis_cluster_under_test(tmp_path, redis_cluster, "string")
    source.commit([insert(ITEMS, n) for n in range(3)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        done = source.end
        with redis_cluster.client() as client:
            [beside] = set(client.scan_iter(match=f"walbus:test:v:*{ITEMS}:2"))
            client.delete(beside)
            client.rpush(beside, "not a version")
        source.commit([update(ITEMS, n, name="x", body="b") for n in range(3)])
        with pytest.raises(RowRefused, match="WRONGTYPE") as caught:
            fill(sink, source, done)
        assert caught.value.row is not None and caught.value.row.seq == source.last_seq
        with redis_cluster.client() as client:
            client.delete(beside)
        sink.rollback()
        sink.checkpoint()
        fill(sink, source, done)
    assert under_test.rows() == source.rows()


# Two writers


def test_one_that_died_on_a_cluster_which_had_come_back_empty_is_followed_by_the_next(
    redis_cluster: LocalCluster, tmp_path: Path, source: ModelSource
) -> None:
    """Its name lies in slots that it wrote, and on no checkpoint: the next one took a lesser name, and was kept out."""
    under_test = redis_cluster_under_test(tmp_path, redis_cluster, "hash")
    with closing(under_test.open()) as sink:
        fill(sink, source)
        sink.checkpoint()
        redis_cluster.empty()
        source.commit([insert(ITEMS, n) for n in range(_ROWS)])
        sink.write([window_of(h, r, source.layouts.__getitem__) for h, r in source.records], MARKS)
        sink.write([], Marks(2, 1))  # rows of one mark are sent before those of another
    with closing(under_test.open()) as again:
        assert again.checkpoint() is None
        fill(again, source)
    assert under_test.rows() == source.rows()


def test_a_zombie_of_another_log_brings_back_no_row_behind_the_sweep(
    redis_cluster: LocalCluster, tmp_path: Path, source: ModelSource
) -> None:
    under_test = redis_cluster_under_test(tmp_path, redis_cluster, "hash")
    old = ModelSource(first_seq=1_000_000)
    old.commit([insert(ITEMS, n, "old") for n in range(4)])
    with closing(under_test.open()) as zombie, closing(under_test.open()) as sink:
        fill(zombie, old)
        done = old.end
        old.commit([insert(ITEMS, n, "old") for n in range(4, _ROWS)])
        sink.checkpoint()
        source.commit([insert(ITEMS, 1, "new")])
        marks = Marks(5, 5)
        sink.write([window_of(h, r, source.layouts.__getitem__) for h, r in source.snapshot(ITEMS, None)], marks)
        sink.sweep(Sweep(ITEMS, source.last_seq, marks, following(source, marks)))
        sink.commit(following(source, marks))
        with pytest.raises(SinkRefused, match="another consumer writes"):
            fill(zombie, old, done)
    assert under_test.rows() == source.rows()
