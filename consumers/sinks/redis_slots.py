"""What a cluster's masters hold of a consumer, judged by the checkpoints that lie on them. No connection.

Each master has a checkpoint of its own, stored behind what it tells of: a copy of a master that has the checkpoint has
those rows, for a replica's data is always the beginning of its master's. So a replica that takes over without the last
writes tells an older checkpoint, and the least of all masters' is where the consumer is.

A checkpoint vouches for the slots that its master had, and says by whom it was stored: the node, and its history (the
replication ID, which is another one after each failover and restart). Slots move, and their keys with them. What a
master has of a slot that its own checkpoint does not vouch for came from another master, and may have been lost in a
failover or a restart since, with nothing that would tell. It is there if the master's history is still the one that
some checkpoint was stored in, or that it had when it was seen to have no slots yet; else it is in doubt, and all rows
are read again.

Checkpoints lie in some of the slots only (`ANCHORS`), so that they are found without looking at every key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import count, groupby
from typing import Final, NamedTuple

from redis.crc import key_slot

SLOTS: Final = 16_384

#: The slots that a master's checkpoint may lie in.
ANCHORS: Final = range(0, SLOTS, 16)


class Master(NamedTuple):
    """A master as it is now.

    Attributes:
        name: its address.
        node: its ID in the cluster.
        history: its replication ID.
        before: that of the master that it was a replica of; empty if it never was one.
        slots: that it has.
    """

    name: str
    node: str
    history: str
    before: str
    slots: frozenset[int]


class Anchor(NamedTuple):
    """A master's checkpoint.

    Attributes:
        slot: where it lies.
        number: it rises with every commit.
        checkpoint: its text.
        vouches: for these slots.
        node, history: of the master that stored it.
    """

    slot: int
    number: int
    checkpoint: str
    vouches: frozenset[int]
    node: str
    history: str


class Standing(NamedTuple):
    """Where a consumer is.

    Attributes:
        checkpoint: its text; empty: all rows are to be read.
        why: a checkpoint is there, and is of no use; None: it holds, or there never was one.
    """

    checkpoint: str
    why: str | None = None


def standing(masters: Sequence[Master], anchors: Sequence[Anchor], empty: Collection[str] = ()) -> Standing:
    """Where a consumer is by the checkpoints that were found, on whatever master they lie now.

    Args:
        masters: all that have slots.
        anchors: the checkpoints.
        empty: histories of masters that were seen while they had no slots.
    """
    if not anchors:
        return Standing("")
    vouched = frozenset[int]().union(*(anchor.vouches for anchor in anchors))
    for master in masters:
        if not master.slots <= vouched:
            return Standing("", f"no checkpoint tells of what {master.name} holds")
        if not (master.history in empty or _holds(master, anchors)):
            return Standing("", f"slots came to {master.name}, which may have lost them since")
    return Standing(min(anchors, key=lambda anchor: anchor.number).checkpoint)


def _holds(master: Master, anchors: Sequence[Anchor]) -> bool:
    """Whether a master still has what moved to it."""
    if any(anchor.history == master.history for anchor in anchors):
        return True
    own = [
        anchor
        for anchor in anchors
        if anchor.slot in master.slots and (anchor.node == master.node or anchor.history == master.before)
    ]
    return master.slots <= frozenset[int]().union(*(anchor.vouches for anchor in own))


def anchor_slot(master: Master, anchors: Iterable[Anchor]) -> int | None:
    """The slot where a master's checkpoint lies, or is to lie; None: it has none of those that are for that."""
    there = [anchor for anchor in anchors if anchor.slot in master.slots]
    if there:
        return max(there, key=lambda anchor: anchor.number).slot
    return min(master.slots.intersection(ANCHORS), default=None)


def slot_of(key: str) -> int:
    """The slot of a key."""
    slot: int = key_slot(key.encode())
    return slot


def tag(slot: int) -> str:
    """A text that lies in a slot; in braces inside of a key it has the key lie there."""
    return _tags()[slot]


@cache
def _tags() -> tuple[str, ...]:
    found: dict[int, str] = {}
    for number in count():
        text = f"{number:x}"
        found.setdefault(slot_of(text), text)
        if len(found) == SLOTS:
            break
    return tuple(found[slot] for slot in range(SLOTS))


@lru_cache(maxsize=256)
def dump_slots(slots: frozenset[int]) -> str:
    """Slots as text, `0-5460,9000`."""
    runs = [[slot for _, slot in run] for _, run in groupby(enumerate(sorted(slots)), lambda at: at[1] - at[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def load_slots(text: str) -> frozenset[int]:
    """The inverse of `dump_slots`.

    Raises:
        ValueError: it is no such text.
    """
    return frozenset(slot for part in text.split(",") if part for slot in _run(part))


def _run(text: str) -> Iterator[int]:
    first, _, last = text.partition("-")
    yield from range(int(first), int(last or first) + 1)
