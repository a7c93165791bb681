"""What lies past the figures that were measured: relays in a tree, and what a million changes cost; docs/scaling.md.

    python bench/scaling.py [--consumers N] [--rate N] [--bytes N]

Measured figures are read out of docs/benchmarks.md, each line says of which section. A relay is never given more
followers than one was measured with, so what is simulated is how many of such relays stand side by side and behind
each other: times add up along the way, processor time over all of them. The network between them is not in it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_FOLLOWED = 1_000  # transactions of one row a second, in the benchmark of followers
_Row = dict[str, str]


def table(name: str) -> list[_Row]:
    """The rows of a section's table, by the names of its columns."""
    text = DOCUMENT.read_text()
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end {name} -->", text, re.DOTALL)
    lines = [line for line in (found[1] if found else "").splitlines() if line.startswith("|")]
    if not lines:
        raise SystemExit(f"{DOCUMENT} has no figures under {name}: run the benchmark with --write")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def number(text: str) -> float:
    """A figure of the document."""
    return float(text.replace(",", ""))


def levels_of(consumers: int, most: int) -> list[tuple[int, int]]:
    """Relays by level from the consumers upward: how many, and how many followers the fullest of them has."""
    levels, followers = [], consumers
    while followers > 1 or not levels:
        relays = -(-followers // most)
        levels.append((relays, -(-followers // relays)))
        followers = relays
    return levels


def main() -> None:
    """Prints the figures, one a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--consumers", type=int, default=20_000)
    parser.add_argument(
        "--rate", type=int, default=1_000, help="changes a second (the benchmark of followers had 1,000)"
    )
    parser.add_argument("--bytes", type=int, default=300, help="of a change in the log")
    given = parser.parse_args()
    crowds = {
        int(number(row["followers"])): row for row in table("relay-followers") if row["append to follower p50 ms"]
    }
    stream = next(row for row in table("relay-reader") if row["what"] == "stream")
    capture = next(row for row in table("capture") if row["reader"] == "walbus")
    seconds_a_megabyte = number(stream["the server's processor seconds"]) / number(stream["MB"])
    rows = number(capture["backlog"].split()[0])

    measured, simulated = "measured, docs/benchmarks.md", "simulated from those"
    say("most followers of one relay", f"{max(crowds):,}", f"{measured}, relay-followers")
    say("a relay's stream, processor seconds a GB", f"{1000 * seconds_a_megabyte:.2f}", f"{measured}, relay-reader")
    cost = number(capture["processor seconds"]) / rows * 1e6
    say("capture, processor seconds a million changes", f"{cost:.2f}", f"{measured}, capture")
    levels = levels_of(given.consumers, max(crowds))
    latency, relays, cores = 0.0, 0, 0.0
    for depth, (count, followers) in enumerate(levels):
        row = crowds[min(size for size in crowds if size >= followers)]
        latency += number(row["append to follower p50 ms"])
        relays += count
        cores += count * number(row["relay's cores"])
        say(f"relays on level {len(levels) - depth}, each with {followers:,} followers", f"{count:,}", simulated)
    say("relays in all", f"{relays:,}", simulated)
    say("milliseconds from the log to a consumer, p50", f"{latency:.1f}", simulated)
    megabytes = given.rate * given.bytes / 1e6
    busiest = max(followers for _, followers in levels)
    say(
        "MB/s out of the busiest relay",
        f"{megabytes * busiest:,.0f}",
        "computed from the rate and the size that were given",
    )
    total = cost + cores / _FOLLOWED * 1e6
    say("processor seconds a million changes to all consumers", f"{total:,.0f}", simulated)
    say("the same for each consumer", f"{total / given.consumers:.3f}", simulated)


def say(what: str, value: str, source: str) -> None:
    """One line."""
    print(f"{what}: {value}  ({source})")


if __name__ == "__main__":
    main()
