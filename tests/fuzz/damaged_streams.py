"""Damages messages one by one, feeds them to both cores, and prints how much the memory of this process grew, in KiB.

    python tests/fuzz/damaged_streams.py STREAM [SHARE SEED]

Every message is cut at every byte, has every byte changed, and has every four bytes taken for a length of gigabytes.
The address space is limited to little more than what is in use before: an allocation by a length that a message merely
claims fails here. `SHARE` of all damages are tried, drawn by the seed.
"""

from __future__ import annotations

import random
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from support.pgoutput_streams import outcome_of, unpack_stream  # noqa: E402
from walbus.native import native_implementation, pure_implementation  # noqa: E402

ROOM = 96 << 20  # bytes that the address space may grow


def damages(message: bytes) -> Iterator[bytes]:
    """The message damaged in every way."""
    for at in range(len(message)):
        yield message[:at]
        for bits in (0x01, 0x80, 0xFF):
            yield message[:at] + bytes([message[at] ^ bits]) + message[at + 1 :]
        for length in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x0f\xff\xff\xff"):
            yield message[:at] + length + message[at + 4 :]
    yield message + b"\0"


def main() -> None:
    """Tries them all; an AssertionError names the first one on which the cores differ."""
    path, share, seed = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    messages, dice = unpack_stream(path.read_bytes()), random.Random(seed)
    native, pure = native_implementation(), pure_implementation("compared")
    assert outcome_of(native, messages) == outcome_of(pure, messages)
    before, tried = peak_kib(), 0
    limit = address_space() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for at in dict.fromkeys(messages.index(message) for message in messages):  # each message once
        for damaged in damages(messages[at]):
            if dice.random() < share:
                stream = [*messages[:at], damaged, *messages[at + 1 :]]
                assert outcome_of(native, stream) == outcome_of(pure, stream), f"message {at} as {damaged.hex()}"
                tried += 1
    print(tried, peak_kib() - before)


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
