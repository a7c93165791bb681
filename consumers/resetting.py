"""A consumer is set to another place while it does not run.

A sink that holds rows can only read all of them again. At an earlier place of the log it would pass over what it has,
by seq; at a later one it would lack for good what lies between. So its checkpoint is kept but for what it was asked
for: the consumer then finds that it has the rows of no table, reads each one from the bootstrap under a new mark,
sweeps what the snapshot did not bring, and goes on behind where it was. Rows are there for readers all the while, and
what somebody else did to them is mended.

Whoever keeps no rows, a consumer of the client library, is set to any place of the log. The checkpoint's lock, or the
sink's look at its stored checkpoint, keeps this from a consumer that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Final

from walbus.config import ConsumerConfig
from walbus.consumers.addresses import Relays, listed, peer_at
from walbus.consumers.checkpoint import Checkpoint, Following, Snapshotting, last_done_of, token_of
from walbus.consumers.checkpoint_store import FileCheckpointStore, sync_folder
from walbus.consumers.partitions import options_of, part_name, part_of, partitions_of, require_same_part
from walbus.consumers.places import found_place, parse_place
from walbus.consumers.sinks import Sink, SinkPlace, open_sink
from walbus.consumers.tables import EVERYTHING, check_patterns
from walbus.consumers.transport import NOTHING_MORE
from walbus.credentials import Credentials
from walbus.errors import UsageError
from walbus.position import ORIGIN, Position

#: Without a checkpoint, as at the consumer's first start.
START: Final = "start"


def read_again(name: str, config: ConsumerConfig, folder: Path) -> Position:
    """Has a sink's consumer read all rows again when it runs; where it goes on behind that, with all of its parts.

    Args:
        name: of the consumer.
        config: its section of `walbus.toml`.
        folder: for the consumer's own files, as `run_consumer` has it.

    Raises:
        UsageError: it, or a part of it, has no rows yet, is reading them, or begins with the log and never reads any.
        ConfigError, SinkUnavailable, SinkRefused: the sink cannot be opened, or another process writes it.
    """
    if config.start != "snapshot":
        what = f"the consumer begins at {config.start}, and reads no rows but the log's"
        raise UsageError(what, where=f"key consumer.{name}.start", mend="let it start with a snapshot")
    with ExitStack() as opened:
        parts = [_opened(name, config, folder, partition, opened) for partition in partitions_of(config)]
        for sink, before in parts:
            sink.commit(replace(before, asked=(), rows=ORIGIN))
    return min(last_done_of(before) for _, before in parts)


def _opened(
    name: str, config: ConsumerConfig, folder: Path, partition: str | None, stack: ExitStack
) -> tuple[Sink, Checkpoint]:
    """The sink of a part, whose rows can be read again, and its checkpoint; the sink is closed with the stack."""
    called = part_name(name, partition)
    own_folder = folder.with_name(part_name(folder.name, partition))
    place = SinkPlace(
        called, own_folder, check_patterns(config.tables), part_of(config, partition), mapped=bool(config.table)
    )
    where = f"consumer {called}"
    sink = stack.enter_context(closing(open_sink(config.sink, options_of(config, partition, name), place)))
    before = sink.checkpoint()
    require_same_part(before, partition, called, token_of(before) if config.parts else 0)
    if before is None:
        raise UsageError("the sink has no rows yet", where=where, mend="start it: it begins with a snapshot")
    if isinstance(before, Snapshotting):
        raise UsageError("it is reading rows already", where=where, mend="start it, and let it come to the end")
    return sink, before


def set_to(name: str, place: str, folder: Path, relays: Sequence[str], credentials: Credentials) -> Position | None:
    """Sets the checkpoint file of a consumer of the client library; where it goes on, None for its first start.

    Args:
        name: of the consumer.
        place: a position, a time, `seq:N`, `earliest`, `latest` or `start`.
        folder: the consumer's.
        relays: addresses of relays of the log.
        credentials: what is shown to them.

    Raises:
        UsageError: the place is none, there is no checkpoint, a subscription has it, or its snapshot has not ended.
        PositionTrimmed, PositionUnknown: the log does not have the place.
        RelayUnavailable: the relay does not answer.
        InvalidText: the file is no checkpoint.
    """
    parsed = None if place == START else parse_place(place, "--to")
    path = folder / "checkpoint.json"
    if not path.exists():
        mend = "name one that has run on this machine, or the folder of its connect(folder=) with --folder"
        raise UsageError(f"there is no checkpoint of a consumer {name!r} here", where=str(path), mend=mend)
    store = FileCheckpointStore(path)
    store.take()
    try:
        if parsed is None:
            _remove(path)
            return None
        before = store.load()
        if not isinstance(before, Following):
            mend = f"let it come to the end, or write --to {START} to begin anew"
            raise UsageError("the consumer still reads its snapshot", where=str(path), mend=mend)
        peers = [peer_at(url, credentials) for url in listed(relays)]
        try:
            found = found_place(Relays(peers), parsed, EVERYTHING, NOTHING_MORE, before)
        finally:
            for peer in peers:
                peer.close()
        store.save(found)
        return found.point.last_done
    finally:
        store.release()


def _remove(path: Path) -> None:
    path.unlink()
    sync_folder(path.parent)
