"""A bootstrap that reads its log from the cluster: the same store as beside a relay, with its hold on the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.bootstrap_rig import ITEMS, BootstrapRig, Writers
from support.database import Database
from support.kafka_rig import KafkaRig
from support.seed import announced_seed
from support.waiting import wait_for
from support.walbus_command import Running, walbus, write_config
from walbus.position import ORIGIN
from walbus.status import read_status

pytestmark = pytest.mark.one_version


def fill_items(database: Database, rows: int) -> None:
    database.execute(ITEMS)
    database.execute(f"INSERT INTO public.items SELECT i, i, i::text FROM generate_series(1, {rows}) i")


def test_a_table_is_seeded_and_followed_from_the_cluster_without_a_relay_and_without_capture_beside_it(
    database: Database, kafka: str, tmp_path: Path
) -> None:
    fill_items(database, 3000)
    with KafkaRig(tmp_path, database, kafka, chunk_rows=500) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        with Writers(database, announced_seed("the writers"), count=2, truncates=5) as writers:
            wait_for(lambda: writers.transactions > 200, 60, what="the writers have done something")
        rig.assert_equals_source("public.items")
        before = rig.rows("public.items")
        assert rig.bootstrap is not None
        assert rig.bootstrap.stop() == 0
        database.execute("DELETE FROM public.items WHERE id % 3 = 0")
        database.execute("INSERT INTO public.items VALUES (-1, 0, 'while it was down')")
        rig.start_bootstrap()
        rig.assert_equals_source("public.items")
        assert rig.rows("public.items") != before
        assert rig.tables()["public.items"]["generation"] == 1
        assert not (rig.data_dir / "relay").exists()
        wait_for(lambda: "state" not in rig.status(), what="the bootstrap tells that all is well")


def test_the_store_is_that_of_a_bootstrap_beside_a_relay(database: Database, kafka: str, tmp_path: Path) -> None:
    """Two of them on one log, one by each way: rows, seqs and the position at which they are."""
    fill_items(database, 500)
    (tmp_path / "beside").mkdir()
    with KafkaRig(tmp_path, database, kafka, chunk_rows=100) as rig, Beside(tmp_path / "beside", rig) as beside:
        rig.start()
        beside.start()
        for each in (rig, beside):
            each.wait_consistent("public.items")
        with Writers(database, announced_seed("the writers"), count=2) as writers:
            wait_for(lambda: writers.transactions > 200, 60, what="the writers have done something")
        for each in (rig, beside):
            each.assert_equals_source("public.items")
        wait_for(lambda: rig.document()["applied"] == beside.document()["applied"], what="both have applied all")
        assert rig.rows("public.items") == beside.rows("public.items")
        assert rig.document()["log_id"] == beside.document()["log_id"]
        assert rig.held_behind() > ORIGIN


class Beside(BootstrapRig):
    """A bootstrap of the rig's log that reads the cache of a relay."""

    def __init__(self, folder: Path, rig: KafkaRig) -> None:
        super().__init__(folder, rig.database)
        text = rig.config.read_text().replace('read_from = "kafka"\n', "")
        listen, own = rig.url.removeprefix("http://"), self.url.removeprefix("http://")
        mine = self.config.read_text()
        relay = next(line for line in mine.splitlines() if line.startswith("listen"))
        theirs = next(line for line in text.splitlines() if line.startswith("listen"))
        text = text.replace(listen, own).replace(theirs, relay).replace(str(rig.data_dir), str(self.data_dir))
        self.config.write_text(text)
        self._relay: Running | None = None

    def start(self) -> None:
        self._relay = Running("relay", "-c", str(self.config), log=self._folder / "relay.log")
        self.start_bootstrap()

    def __exit__(self, *ended: object) -> None:
        super().__exit__(*ended)  # type: ignore[arg-type]
        if self._relay is not None:
            self._relay.process.kill()
            self._relay.stop()


class Commits:
    """Single inserts, one commit after the other."""

    def __init__(self, database: Database) -> None:
        self._database, self._next = database, 0

    def make(self, count: int) -> None:
        for number in range(self._next, self._next + count):
            self._database.execute("INSERT INTO public.items VALUES (%s, 0, '')", [number])
        self._next += count

    def make_until(self, condition: Callable[[], bool], what: str) -> None:
        """Goes on, for the last message of a log is kept whatever its age."""

        def met() -> bool:
            self.make(1)
            return condition()

        wait_for(met, 120, what=what, every=0.2)


def test_the_cluster_keeps_what_the_bootstrap_has_not_read_until_it_is_let_go(
    database: Database, kafka: str, tmp_path: Path
) -> None:
    database.execute(ITEMS)
    commits = Commits(database)
    with KafkaRig(tmp_path, database, kafka, {"retention_hours": 0.0005}) as rig:  # 1.8 s
        rig.start()
        rig.wait_consistent("public.items")
        commits.make(30)
        rig.wait_applied()
        end = rig.bounds().end
        wait_for(lambda: rig.held_behind() >= end, 60, what="the hold follows", every=0.2)
        rig.kill_bootstrap()
        held = rig.held_behind()
        commits.make(30)
        rig.trimmed_to(held)
        looks = time.monotonic() + 15.0  # capture looks each five seconds, and all that is there now is too old by then
        commits.make_until(lambda: time.monotonic() > looks, what="capture has looked several times")
        assert rig.bounds().trimmed == held, rig.seen(rig.bounds())
        rig.start_bootstrap()
        rig.assert_equals_source("public.items")
        assert "log_left_behind" not in rig.log()
        rig.kill_bootstrap()
        applied = rig.bounds().end  # at most: the hold trails
        rig.let_go()
        commits.make_until(lambda: rig.bounds().trimmed > applied, what="the log is trimmed past what was applied")
        rig.start_bootstrap()
        wait_for(lambda: "log_left_behind" in rig.log(), 60, what="the bootstrap sees that it comes too late")
        rig.assert_equals_source("public.items")
        assert "every table is seeded again" in rig.log()


def test_a_second_bootstrap_on_the_same_topic_is_refused_by_name_and_harms_nothing(
    database: Database, kafka: str, tmp_path: Path
) -> None:
    fill_items(database, 200)
    (tmp_path / "second").mkdir()
    with KafkaRig(tmp_path, database, kafka) as rig, KafkaRig(tmp_path / "second", database, kafka) as second:
        second.join(rig)
        rig.start()
        rig.assert_equals_source("public.items")
        second.start_bootstrap()
        why = "another process holds this log for a bootstrap: walbus-"
        wait_for(lambda: why in second.status().get("error", ""), 60, what="the second one says for whom it waits")
        assert second.status()["state"] == "waits_for_log"
        assert second.status()["applied"] is None
        database.execute("UPDATE public.items SET plain = -1")
        rig.assert_equals_source("public.items")
        said = [line for line in second.log().splitlines() if "log_not_readable" in line and why in line]
        assert len(said) == 1, second.log()
        rig.kill_bootstrap()
        second.assert_equals_source("public.items")
        wait_for(lambda: "state" not in second.status(), what="the second one tells that all is well")


def test_net_differences_come_by_the_log_where_capture_is_beside_it(
    database: Database, kafka: str, tmp_path: Path
) -> None:
    fill_items(database, 200)
    with KafkaRig(tmp_path, database, kafka, together=True) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        database.execute("ALTER TABLE public.items ADD COLUMN more int DEFAULT 7")
        wait_for(lambda: rig.tables()["public.items"]["generation"] == 2, 60, what="another generation")
        rig.assert_equals_source("public.items")
        wait_for(lambda: rig.tables()["public.items"]["net_told"], 60, what="the difference is told by the log")
        wait_for(lambda: "difference_handed_over" in rig.log(), what="the bootstrap says so")


def test_without_capture_beside_it_a_difference_waits_for_nobody_and_consumers_are_told_to_read_again(
    database: Database, kafka: str, tmp_path: Path
) -> None:
    fill_items(database, 200)
    with KafkaRig(tmp_path, database, kafka) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        since = rig.tables()["public.items"]["net_since"]
        database.execute("ALTER TABLE public.items ADD COLUMN more int DEFAULT 7")
        wait_for(lambda: rig.tables()["public.items"]["generation"] == 2, 60, what="another generation")
        rig.assert_equals_source("public.items")
        told = rig.tables()["public.items"]
        assert told["net_since"] != since
        assert told["net_told"] == told["net_since"]
        assert "difference_handed_over" not in rig.log()
        assert not list((rig.data_dir / "relay").glob("differences/*"))


def test_what_does_not_go_together_is_refused_by_the_keys(tmp_path: Path) -> None:
    sections = {"source": {"dsn": "postgresql://nowhere"}, "bootstrap": {"read_from": "kafka"}}
    config = write_config(tmp_path / "walbus.toml", sections, tmp_path / "data")
    ended = walbus("bootstrap", "-c", str(config))
    assert ended.code == 2
    assert 'bootstrap.read_from = "kafka" needs engine = "kafka"' in ended.one_line()
    assert read_status(tmp_path / "data" / "status" / "bootstrap.json") is None
