"""From a commit in PostgreSQL to the row in the Redis sink, under a steady load; see `commit_latency`.

The watcher asks Redis for the number every millisecond. What is printed are milliseconds, not ratios: at 1,000
transactions a second half of the changes shall be there within 10, and 99 of 100 within 40.
"""

from __future__ import annotations

import redis

from commit_latency import PROBE, StreamWatcher, load, load_note, probe, quantile, summarise
from report import Report
from rooms import open_rooms
from source import Source, open_server
from walbus.demo.cache_server import RedisServer

_DEADLINE = 60.0


def run(rate: int, seconds: int) -> Report:
    """Measures for `seconds` at `rate` transactions a second."""
    report = Report("redis-latency", "Latency to Redis", ("from the commit to", "p50 ms", "p99 ms", "probes"))
    with open_server() as (server, folder), RedisServer(folder / "redis") as cache:
        source = Source(server, "bench")
        source.execute(PROBE)
        source.execute("INSERT INTO probe VALUES (1, 0, ''); CREATE SEQUENCE events_id")
        with (
            open_rooms(source, folder / "rooms", start="snapshot", sink={"sink": "redis", "url": cache.url}) as rooms,
            redis.Redis.from_url(cache.url) as client,
        ):
            rooms.wait(lambda: _number(client) is not None, _DEADLINE)
            watcher = StreamWatcher(source)
            with load(source, rate, seconds, folder):
                pairs = probe(source, lambda: _number(client), watcher, seconds)
            watcher.stop()
    report.notes.append(load_note(rate))
    summarise(report, "the row in Redis", pairs)
    for share in (0.5, 0.99):
        report.ratio(f"redis/visible p{share * 100:.0f} ms", quantile(sorted(to for to, _ in pairs), share) * 1000)
    return report


def _number(client: redis.Redis) -> int | None:
    found = client.hget("public.probe:1", "n")
    return None if found is None else int(found)
