"""A writer in a process of its own, to be killed, stopped or traced.

    python log_writer_process.py FOLDER [--pause] [--transactions N] [--lease SECONDS] [--segment BYTES]
                                 [--keep BYTES] [--compress]

Appends transactions of growing commit LSN behind what the log holds, syncs after every third, and prints each end that
`sync` returned, one a line: what is printed was confirmed, and has to be there ever after (with `--keep` but for what
retention has dropped since). An error that ends it is
printed as `error KIND`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.relay_log import SOURCE, piece, transaction
from walbus.errors import WalbusError
from walbus.records import Flag
from walbus.relay.engine import open_writer
from walbus.relay.writer import FileLogWriter


def append_one(writer: FileLogWriter, number: int) -> None:
    """A transaction whose shape follows from its number; one in four comes in pieces."""
    lsn = number * 16
    if number % 4:
        writer.append(transaction(lsn, 1 + number % 3, size=100 + number % 700))
        return
    writer.append(piece(lsn, 1, 2, Flag.BEGIN, size=500))
    writer.append(piece(lsn, 3, 2, 0, size=500))
    writer.append(piece(lsn, 5, 1, Flag.END, size=500))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pause", action="store_true", help="wait for a line on stdin before each sync")
    parser.add_argument("--transactions", type=int, default=1 << 40)
    parser.add_argument("--lease", type=float, default=10.0)
    parser.add_argument("--segment", type=int, default=64 << 10)
    parser.add_argument("--keep", type=int, help="bytes of the log that retention leaves")
    parser.add_argument("--compress", action="store_true")
    options = parser.parse_args()
    try:
        run(options)
    except (WalbusError, OSError) as error:
        print("error", type(error).__name__, flush=True)
        sys.exit(1)


def run(options: argparse.Namespace) -> None:
    writer = open_writer(
        options.folder, SOURCE, segment_bytes=options.segment, retention_hours=1e6,
        retention_bytes=options.keep, lease_seconds=options.lease, compression_level=3 if options.compress else None,
    )  # fmt: skip
    print("open", flush=True)
    first = writer.bounds().end.commit_lsn // 16 + 1
    for number in range(first, first + options.transactions):
        append_one(writer, number)
        if number % 3 == 0:
            if options.pause:
                sys.stdin.readline()
            print("end", writer.sync().end.commit_lsn, flush=True)
            if options.keep is not None:
                writer.trim(0)
    writer.close()
    print("closed", flush=True)


if __name__ == "__main__":
    main()
