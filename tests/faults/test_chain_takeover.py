"""A chained relay takes over from one whose relay and capture were killed, under load, and no follower notices.

Every follower has both addresses: a few that use the library, with checkpoints, and a crowd that keeps nothing but the
position that it has done. At rest each of them has seen every change of the log once, in order, under the seq that the
log of the standby gives it, and that log equals what a second slot saw.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import walbus as library
from support import plain_http
from support.crowd import Crowd, digest_of
from support.database import Database
from support.log_view import log_transactions
from support.oracle import Oracle
from support.relay_log import read_records
from support.seed import announced_seed
from support.waiting import wait_for
from support.walbus_command import Running, walbus, write_config
from support.whole_system import make_marker
from walbus.demo.load import ShopLoad
from walbus.demo.postgres import free_port
from walbus.position import Position, parse_position
from walbus.records import Kind, body_of, iter_changes, read_header
from walbus.relay import open_reader
from walbus.status import read_status


class Site:
    """One machine's walbus: its folder, configuration, and rooms as processes."""

    def __init__(self, folder: Path, dsn: str, slot: str, **relay: object) -> None:
        folder.mkdir()
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.rooms: dict[str, Running] = {}
        self._source = {"dsn": dsn, "slot": slot}
        self.configure(**relay)

    def configure(self, **relay: object) -> None:
        sections = {
            "source": self._source,
            "relay": {"listen": self.url.removeprefix("http://"), "segment_bytes": 65536, **relay},
            "bootstrap": {"enabled": False},
        }
        self.config = write_config(self.folder / "walbus.toml", sections, self.folder / "data")

    def start(self, *rooms: str) -> None:
        for room in rooms:
            self.rooms[room] = Running(room, "-c", str(self.config), log=self.folder / f"{room}.log")

    def kill(self, room: str) -> None:
        os.killpg(self.rooms[room].process.pid, signal.SIGKILL)
        self.rooms[room].process.wait()
        self.rooms[room].stop()

    def close(self) -> None:
        for room, running in self.rooms.items():
            running.process.kill()
            running.stop()
            print(f"last lines of {room} in {self.folder.name}:\n{running.log()[-2500:]}")

    def info(self) -> dict:
        document: dict = plain_http.get(f"{self.url}/v1/info", timeout=20).json()
        return document

    def end(self) -> Position:
        return parse_position(self.info()["end"])

    def streaming(self) -> bool:
        status = read_status(self.folder / "data" / "status" / "capture.json") or {}
        return status.get("state") == "streaming" and bool(self.info()["end"])

    @property
    def log(self) -> Path:
        return self.folder / "data" / "relay"


class Follower(threading.Thread):
    """Reads everything from whichever relay answers, and commits each window."""

    def __init__(self, number: int, urls: list[str], folder: Path) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[Position, int]] = []
        self.last: Position | None = None
        self.error: BaseException | None = None
        self._stopped = threading.Event()
        self._name, self._urls, self._folder = f"f{number}", urls, folder
        self.start()

    def run(self) -> None:
        try:
            with library.connect(self._urls, folder=self._folder) as bus:
                subscription = bus.subscribe(name=self._name, start="earliest")
                while not self._stopped.is_set():
                    delivery = subscription.next(0.2)
                    if delivery is None:
                        continue
                    if delivery.kind == Kind.TRANSACTION:
                        self.seen += [(change.position, change.seq) for change in delivery]
                    self.last = delivery.last
                    delivery.commit()
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._stopped.set()
        self.join(60)
        if self.error is not None:
            raise self.error


def changes_of(log: Path) -> list[tuple[Position, int]]:
    """Position and seq of each row change in a log."""
    found = []
    with closing(open_reader(log)) as reader:
        for record in read_records(reader, reader.bounds().trimmed):
            header = read_header(record)
            if header.kind == Kind.TRANSACTION:
                found += [
                    (
                        header.first._replace(ordinal=header.first_ordinal + change.ordinal_delta),
                        header.first_seq + change.seq_delta,
                    )
                    for change in iter_changes(body_of(record, header))
                ]
    return found


@pytest.fixture
def shop(database: Database) -> Iterator[ShopLoad]:
    load = ShopLoad(database.dsn, rate=100, seed=announced_seed("the shop"))
    load.prepare(200)
    make_marker(database)
    yield load
    load.stop()


@pytest.fixture
def sites(database: Database, open_folder: Path) -> Iterator[tuple[Site, Site]]:
    slot = f"s_{database.name}"
    first = Site(open_folder / "a", database.dsn, slot, required_standbys=["standby"])
    second = Site(open_folder / "b", database.dsn, slot, upstream=[first.url], name="standby")
    yield first, second
    first.close()
    second.close()


def a_random_moment(rng: random.Random, longest: float = 1.0) -> None:
    """The moment of a kill is the test's input, not something that it waits for."""
    time.sleep(rng.uniform(0.05, longest))


@pytest.mark.parametrize(
    ("kills", "many"), [(1, 100), pytest.param(12, 1000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_a_standby_takes_over_from_a_killed_relay_and_no_follower_misses_or_repeats_a_change(
    database: Database,
    oracle: Callable[..., Oracle],
    shop: ShopLoad,
    sites: tuple[Site, Site],
    open_folder: Path,
    kills: int,
    many: int,
) -> None:
    rng = random.Random(announced_seed("the kills"))
    first, second = sites
    first.start("capture", "relay")
    second.start("relay")
    wait_for(first.streaming, 90, what="the first site streams")
    wait_for(lambda: second.end() >= first.end(), 60, what="the standby follows")
    truth = oracle("walbus")
    urls = [first.url, second.url]
    followers = [Follower(number, urls, open_folder / "checkpoints") for number in range(4)]
    with Crowd([first.port, second.port], many) as crowd:
        wait_for(lambda: crowd.error or crowd.connected == many, 90, what="the crowd is connected")
        shop.start()
        for _ in range(kills):  # before it comes to the worst
            a_random_moment(rng)
            site, room = rng.choice([(first, "capture"), (first, "relay"), (second, "relay")])
            site.kill(room)
            a_random_moment(rng, 0.3)
            site.start(room)
        wait_for(lambda: len(followers[0].seen) > 200, 90, what="followers read")
        a_random_moment(rng)
        for room in rng.sample(["capture", "relay"], 2):
            first.kill(room)
        take_over(second, rng)
        wait_for(second.streaming, 90, what="the second site streams")
        a_random_moment(rng, 2.0)
        shop.stop()
        database.execute("UPDATE marker SET n = n + 1")
        lsn = database.insert_lsn()  # behind the commit: up to a place before it the log may be complete without it
        wait_for(lambda: second.end().commit_lsn >= lsn, 90, what="the log is complete")
        crowd.at(second.end())
        found = crowd.digests()
        assert crowd.moved == many
    last = changes_of(second.log)[-1]
    for follower in followers:
        wait_for(lambda f=follower: f.error or (f.seen and f.seen[-1] >= last), 90, what="a follower is at the end")
        follower.stop()
        assert follower.seen == changes_of(second.log)
    with closing(open_reader(second.log)) as reader:
        assert found == {digest_of(read_records(reader))}
        assert log_transactions(reader) == truth.transactions()
    assert second.info()["term"] == 2


def take_over(site: Site, rng: random.Random) -> None:
    """As docs/chaining.md has it."""
    site.kill("relay") if rng.random() < 0.5 else site.rooms["relay"].stop()
    promoted = walbus("promote", "-c", str(site.config))
    assert promoted.code == 0, promoted.stderr
    site.configure()
    site.start("capture", "relay")


def test_while_a_required_standby_is_away_nothing_is_confirmed_or_served_and_capture_says_so(
    database: Database, shop: ShopLoad, sites: tuple[Site, Site]
) -> None:
    first, second = sites
    slot = f"s_{database.name}"
    first.start("capture", "relay")
    second.start("relay")
    wait_for(first.streaming, 90, what="the first site streams")
    wait_for(lambda: second.end().commit_lsn > 0 and second.end() >= first.end(), 60, what="the standby follows")
    capture_status = first.folder / "data" / "status" / "capture.json"

    def away() -> object:
        return (read_status(capture_status) or {}).get("standbys_away")

    wait_for(lambda: away() == [], 60, what="capture knows the standby")
    said = first.rooms["capture"].log().count("standbys.away")  # where it was there before its standby
    second.kill("relay")
    shop.start()
    held = {"shown": first.end(), "confirmed": database.confirmed_lsn(slot)}
    wait_for(lambda: away() == ["standby"], 60, what="capture says so")
    with closing(open_reader(second.log)) as reader:
        copied = reader.bounds()
    with closing(open_reader(first.log)) as reader:
        wait_for(lambda: reader.bounds().end > copied.end, 60, what="the log goes on")
    assert first.end() <= copied.end
    assert held["confirmed"] <= database.confirmed_lsn(slot) <= copied.end_lsn
    assert first.rooms["capture"].log().count("standbys.away") == said + 1
    second.start("relay")
    shop.stop()
    database.execute("UPDATE marker SET n = n + 1")
    lsn = database.insert_lsn()
    wait_for(lambda: first.end().commit_lsn >= lsn, 60, what="serving goes on")
    wait_for(lambda: database.confirmed_lsn(slot) >= lsn, 60, what="confirming goes on")


def test_a_capture_that_comes_back_after_its_standby_took_over_ends_and_harms_nothing(
    database: Database, oracle: Callable[..., Oracle], shop: ShopLoad, sites: tuple[Site, Site]
) -> None:
    first, second = sites
    first.start("capture", "relay")
    second.start("relay")
    wait_for(first.streaming, 90, what="the first site streams")
    wait_for(lambda: second.end().commit_lsn > 0 and second.end() >= first.end(), 60, what="the standby follows")
    truth = oracle("walbus")
    shop.start()
    for room in ("capture", "relay"):
        first.kill(room)
    take_over(second, random.Random(1))
    wait_for(second.streaming, 90, what="the second site streams")
    first.start("capture")
    code = first.rooms["capture"].process.wait(60)
    assert code == 1
    assert "a copy of this log has taken over" in first.rooms["capture"].log()
    shop.stop()
    database.execute("UPDATE marker SET n = n + 1")
    lsn = database.insert_lsn()  # behind the commit
    wait_for(lambda: second.end().commit_lsn >= lsn, 90, what="the log is complete")
    with closing(open_reader(second.log)) as reader:
        assert log_transactions(reader) == truth.transactions()
