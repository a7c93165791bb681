"""Benchmarks: ratios measured in one run, each against its reference.

    python bench/run.py capture [--rows N] [--transactions N] [--backlog N] [--rounds N]
    python bench/run.py latency [--fast N] [--rate N] [--seconds N]
    python bench/run.py memory  [--small N] [--large N] [--tables N]
    python bench/run.py relay   [--rows N] [--transactions N] [--rounds N] [--gigabytes N]
                                [--megabytes N] [--followers N] [--fast N] [--seconds N]
    python bench/run.py bootstrap [--seeded N] [--rows N] [--applied N] [--served N] [--seconds N] [--rounds N]
    python bench/run.py consumers [--rows N] [--transactions N] [--upserted N] [--documents N] [--fast N]
                                [--seconds N] [--rounds N]      (OpenSearch where a JDK and its jars can be had)
    python bench/run.py growth  [--keys N]
    python bench/run.py debezium [--changes N] [--rounds N]
    python bench/run.py kafka   [--changes N] [--rounds N]
    python bench/run.py opensearch [--documents N] [--rounds N]
    python bench/run.py peers   [--rows N] [--transactions N] [--documents N] [--rounds N]
    python bench/run.py all     [--quick] [--write]           all but debezium, kafka, opensearch and peers (which
                                                              fetch jars and programs), and growth (3 GB)

Each option can be given by environment too: WALBUS_BENCH_ROWS=100000 make bench-capture. `--quick` takes a tenth of
every size that was not given, to try the benchmarks themselves. `--write` puts the results into docs/benchmarks.md,
with the machine and the commit.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

import bootstrap_apply
import bootstrap_delta
import bootstrap_growth
import bootstrap_seed
import bootstrap_serve
import capture_backlog
import capture_memory
import catch_up_backlog
import commit_latency
import consumers_callbacks
import consumers_peers
import consumers_postgres
import consumers_sinks
import crowd_latency
import debezium
import durable_latency
import peak_memory
import redis_latency
import relay_append
import relay_decoding
import relay_sizes
import relay_streams
import report
from walbus.errors import UsageError

_NUMBERS = {
    "rows": (1_000_000, "rows in the one large transaction"),
    "transactions": (100_000, "transactions of one row"),
    "backlog": (2_200_000, "rows of the backlog that is caught up with"),
    "seeded": (5_000_000, "rows of the table that is seeded"),
    "rounds": (3, "rounds over each backlog; medians are reported"),
    "fast": (1_000, "transactions a second while capture's latency is measured"),
    "rate": (500, "transactions a second while the latency of all rooms is measured"),
    "seconds": (30, "for which latency is measured"),
    "megabytes": (1_000, "of the log that one reader of the relay takes"),
    "followers": (1_000, "followers of the relay"),
    "applied": (2_000_000, "changes of each backlog that the bootstrap applies"),
    "served": (1_000_000, "rows of the snapshot that is served"),
    "keys": (50_000_000, "distinct keys of the store that grows"),
    "upserted": (300_000, "rows that each sink inserts, and then updates"),
    "documents": (200_000, "documents of the search index"),
    "changes": (2_000_000, "rows of each backlog that Debezium reads, and that goes into Kafka"),
    "small": (100_000, "rows of the small backlog of all rooms; the large one has ten times as many"),
    "large": (10_000_000, "rows of the transaction during which capture's memory is measured"),
    "tables": (2_000, "tables, for capture's memory"),
    "gigabytes": (100, "of the largest sparse log; beside it one of a tenth and one of a hundredth"),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "what",
        choices=(
            "all",
            "bootstrap",
            "capture",
            "consumers",
            "debezium",
            "growth",
            "kafka",
            "latency",
            "memory",
            "opensearch",
            "peers",
            "relay",
        ),
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of each size that is not given")
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    for name, (default, meaning) in _NUMBERS.items():
        from_environment = os.environ.get(f"WALBUS_BENCH_{name.upper()}")
        given = int(from_environment) if from_environment else None
        parser.add_argument(f"--{name}", type=int, default=given, metavar="N", help=f"{meaning} (default {default:,})")
    arguments = parser.parse_args()
    for name, (default, _) in _NUMBERS.items():
        if getattr(arguments, name) is None:
            setattr(
                arguments, name, max(1, default // 10) if arguments.quick and name not in ("fast", "rate") else default
            )
    return arguments


def main() -> None:
    """Runs what was asked for, prints the ratios, and writes them if told to."""
    given = _arguments()
    runs = {
        "bootstrap": lambda: [
            bootstrap_seed.run(given.seeded, given.rounds, given.seconds),
            bootstrap_delta.run(given.rows, given.rounds),
            bootstrap_apply.run(given.applied, given.rounds),
            bootstrap_serve.run(given.served, given.rounds),
        ],
        "consumers": lambda: [
            consumers_callbacks.run(given.rows, given.transactions, given.rounds),
            consumers_postgres.run(given.upserted, given.rounds),
            consumers_sinks.run(given.upserted, given.rounds),
            *_where_it_can_be_had("opensearch/parallel_bulk", lambda: _opensearch(given.documents, given.rounds)),
            redis_latency.run(given.fast, given.seconds),
        ],
        "growth": lambda: [bootstrap_growth.run(given.keys)],
        "capture": lambda: [
            capture_backlog.run(given.rows, given.transactions, given.rounds),
            catch_up_backlog.run(given.backlog, given.rounds),
        ],
        "latency": lambda: [
            durable_latency.run(given.fast, given.seconds),
            commit_latency.run(given.rate, given.seconds),
        ],
        "memory": lambda: [capture_memory.run(given.large, given.tables), peak_memory.run(given.small)],
        "relay": lambda: [
            relay_append.run(given.rows, given.transactions, given.rounds),
            relay_sizes.run(given.gigabytes),
            relay_decoding.run(given.transactions, given.rounds),
            *relay_streams.run(given.megabytes, given.followers, given.fast, given.seconds, given.rounds),
            crowd_latency.run(given.followers, given.fast, given.seconds),
        ],
        "debezium": lambda: [debezium.run(given.changes, given.rounds)],
        "kafka": lambda: _kafka(given.changes, given.rounds),
        "opensearch": lambda: [_opensearch(given.documents, given.rounds)],
        "peers": lambda: [
            consumers_peers.run(given.rows, given.transactions, given.rounds),
            *_where_it_can_be_had("opensearch/pgsync", lambda: _pgsync(given.documents)),
        ],
    }
    chosen = (
        [name for name in runs if name not in ("debezium", "growth", "kafka", "opensearch", "peers")]
        if given.what == "all"
        else [given.what]
    )
    reports = [done for name in chosen for done in runs[name]()]
    for done in reports:
        print(f"\n{done.table()}")
    if given.write:
        report.write(
            reports, " ".join(["make", "bench" if given.what == "all" else f"bench-{given.what}", *_told(sys.argv)])
        )


def _opensearch(documents: int, rounds: int) -> report.Report:
    import consumers_opensearch  # noqa: PLC0415  (its client and its server's code are for it alone)

    return consumers_opensearch.run(documents, rounds)


def _where_it_can_be_had(ratio: str, run: Callable[[], report.Report]) -> list[report.Report]:
    """What takes a JDK and jars; without them the others are measured, and that is said."""
    try:
        return [run()]
    except UsageError as error:
        print(f"{ratio} is left out: {error}", file=sys.stderr)
        return []


def _pgsync(rows: int) -> report.Report:
    import consumers_pgsync  # noqa: PLC0415  (as for OpenSearch)

    return consumers_pgsync.run(rows)


def _kafka(changes: int, rounds: int) -> list[report.Report]:
    import kafka_capture  # noqa: PLC0415  (as for OpenSearch)

    return kafka_capture.run(changes, rounds)


def _told(argv: list[str]) -> list[str]:
    options = " ".join(option for option in argv[2:] if option != "--write")
    return [f'ARGS="{options}"'] if options else []


if __name__ == "__main__":
    main()
