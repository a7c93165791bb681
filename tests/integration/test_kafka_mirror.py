"""A relay's cache in front of Kafka holds the log's own records, whatever they are and however often it begins anew."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.kafka_log import KafkaEngine
from support.relay_log import (
    epoch_piece,
    piece,
    progress,
    read_records,
    run_of,
    schema_piece,
    table_schema,
    transaction,
)
from support.seed import announced_seed
from support.waiting import wait_for
from walbus.config import RelayConfig
from walbus.errors import LogMissing
from walbus.position import ORIGIN, Position
from walbus.records import Flag, read_header
from walbus.relay import open_reader
from walbus.relay.delivery import Bound, Delivery, RecordDelivery, StreamForm
from walbus.relay.kafka.mirror import KafkaMirror
from walbus.relay.kafka.writer import KafkaLogWriter
from walbus.relay.scan import split_records
from walbus.relay.selection import parse_selection


@pytest.fixture
def engine(kafka: str, tmp_path: Path) -> Iterator[KafkaEngine]:
    made = KafkaEngine(kafka, tmp_path / "log", block_bytes=8 << 10)
    made.large_bytes, made.kept_bytes = 50_000, 150_000
    yield made
    made.close()


@contextmanager
def mirroring(engine: KafkaEngine, folder: Path) -> Iterator[None]:
    """A thread that copies meanwhile."""
    stop = threading.Event()
    mirror = KafkaMirror(folder, RelayConfig(segment_bytes=100_000), engine.cluster, stop=stop)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            mirror.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert failures == []


def wait_until_copied(folder: Path, writer: KafkaLogWriter) -> None:
    def copied() -> bool:
        try:
            with closing(open_reader(folder)) as reader:
                return reader.bounds().end == writer.bounds().end
        except LogMissing:
            return False

    wait_for(copied, what="the relay has all of it")


def write(writer: KafkaLogWriter, rng: random.Random, lsn: int) -> int:
    """Appends something, and may sync; the place behind it."""
    kind = rng.randrange(7)
    if kind < 3:
        for _ in range(rng.randrange(1, 200)):
            writer.append(transaction(lsn, rng.randrange(1, 4)))
            lsn += 16
    elif kind == 3:
        writer.append_run(run_of([transaction(lsn + 16 * i, rng.randrange(1, 4)) for i in range(60)]))
        lsn += 16 * 60
    elif kind == 4:
        pieces = rng.randrange(2, 100)
        for i in range(pieces):
            flags = (Flag.BEGIN if i == 0 else 0) | (Flag.END if i == pieces - 1 else 0)
            writer.append(piece(lsn, 10 * i + 1, 10, flags, size=100))
    elif kind == 5:
        writer.append(progress(lsn))
    else:
        schema, _ = writer.schemas.register(table_schema(f"t{lsn}", columns=("id", f"c{lsn}")))
        writer.append(piece(lsn, 1, 2, Flag.BEGIN))
        writer.append(schema_piece(lsn, 2, schema))
        writer.append(piece(lsn, 3, 2, Flag.END))
    if rng.random() < 0.4:
        writer.sync()
    return lsn + 16


def test_every_record_is_copied_as_it_is(engine: KafkaEngine, tmp_path: Path) -> None:
    rng, folder = random.Random(announced_seed("what is written")), tmp_path / "cache"
    writer, lsn = engine.open_writer(), 16
    for _ in range(3):
        with mirroring(engine, folder):
            for _ in range(25):
                lsn = write(writer, rng, lsn)
            writer.sync()
            wait_until_copied(folder, writer)
        for _ in range(10):  # while no relay is there
            lsn = write(writer, rng, lsn)
        writer.sync()
    writer.append(epoch_piece(lsn, 2))
    writer.append(transaction(lsn + 16, 3, epoch=2))
    writer.sync()
    with mirroring(engine, folder):
        wait_until_copied(folder, writer)
    theirs = engine.open_reader()
    with closing(open_reader(folder)) as ours:
        assert read_records(ours) == read_records(theirs)
        assert dataclasses.replace(ours.bounds(), bytes=0) == dataclasses.replace(theirs.bounds(), bytes=0)
        assert ours.schemas.all() == theirs.schemas.all()


def test_a_layout_that_no_record_tells_comes_to_the_relay(engine: KafkaEngine, tmp_path: Path) -> None:
    """As that of a table which has not changed since it was published, and is to be seeded."""
    writer, folder = engine.open_writer(), tmp_path / "cache"
    writer.append(transaction(16))
    writer.sync()
    with mirroring(engine, folder):
        wait_until_copied(folder, writer)
        quiet, _ = writer.schemas.register(table_schema("quiet"))
        with closing(open_reader(folder)) as ours:
            wait_for(lambda: quiet in ours.schemas.all(), what="the relay has the layout")


def streamed(delivery: RecordDelivery[Any]) -> tuple[list[bytes], Position]:
    """What a stream gives up to its end, but for signs of life; and how far it has looked by its own word."""
    with closing(delivery):
        data = b""
        while True:
            step = delivery.step()
            data += step.data
            if step.finished:
                break
            assert not step.at_end
    records, used = split_records(data)
    assert used == len(data)
    told = read_header(records[-1]).last
    return [record for record in records if not read_header(record).flags & Flag.FILTERED], told


def test_a_stream_from_the_cluster_is_that_of_a_relay_wherever_it_begins_and_whatever_is_asked_for(
    engine: KafkaEngine, tmp_path: Path
) -> None:
    rng, folder = random.Random(announced_seed("what is written")), tmp_path / "cache"
    writer, lsn = engine.open_writer(), 16
    writer.schemas.register(table_schema())
    for _ in range(60):
        lsn = write(writer, rng, lsn)
    writer.append(transaction(lsn))
    writer.sync()
    with mirroring(engine, folder):
        wait_until_copied(folder, writer)
    theirs = engine.open_reader()
    end = theirs.bounds().end
    headers = [read_header(record) for record in read_records(theirs)]
    starts = [ORIGIN, *(header.last for header in rng.sample(headers, 6))]
    starts += [
        h.last._replace(ordinal=rng.randrange(h.first_ordinal, h.last_ordinal + 1)) for h in rng.sample(headers, 6)
    ]
    selections = [
        parse_selection(None, None, None),
        parse_selection("public.orders", None, None),
        parse_selection("public.nothing", None, None),
        parse_selection(None, "delete", None),
        parse_selection("public.*", None, None, "1/3"),
    ]
    with closing(open_reader(folder)) as ours:
        for after in (start for start in starts if start < end):
            for selection in selections:
                how: dict[str, Any] = {"bound": Bound(end), "form": StreamForm("binary", selection)}
                from_files = streamed(Delivery(ours, after, **how))
                from_cluster = streamed(RecordDelivery(theirs, after, **how))
                assert from_cluster == from_files, (after, selection)
