"""A consumer with callbacks that is killed again and again loses nothing, keeps the order, and parks nothing twice."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from support.calling_process import POISON
from support.model_source import ITEMS, ModelSource, delete, insert, update
from support.scripted_relay import ScriptedRelay
from support.waiting import wait_for
from walbus.consumers import DeadLetters
from walbus.events import window_of

pytestmark = pytest.mark.one_version

SCRIPT = Path(__file__).parent.parent / "support" / "calling_process.py"
KILLS = 6
IDS = 30


def work(source: ModelSource, random_: random.Random) -> None:
    """One transaction of some changes, of keys that are there or are not."""
    alive = {int(id) for id in source.rows()}
    edits = []
    for id in random_.sample(range(IDS), random_.randint(1, 6)):
        of_alive = random_.choice([update(ITEMS, id, name="x"), delete(ITEMS, id)])
        edits.append(of_alive if id in alive else insert(ITEMS, id))
    source.commit(edits, pieces=random_.choice([1, 1, 2]))


@pytest.mark.parametrize("kind", ["file", "sqlite"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_consumer_that_is_killed_loses_nothing_and_keeps_the_order(tmp_path: Path, kind: str, seed: int) -> None:
    random_, source, taken = random.Random(seed), ModelSource(), tmp_path / "taken"
    with ScriptedRelay(source) as relay:
        command = [sys.executable, str(SCRIPT), relay.url, str(tmp_path), kind]
        for round_ in range(KILLS + 1):
            before = taken.stat().st_size if taken.exists() else 0
            process = subprocess.Popen(command)
            try:
                for _ in range(random_.randint(10, 60)):
                    work(source, random_)
                if round_ < KILLS:
                    wait_for(lambda before=before: taken.exists() and taken.stat().st_size > before, 60)
                else:
                    wait_for(lambda: dealt_with(source, taken, tmp_path), 60)
            finally:
                process.kill()
                process.wait(60)
    expected = changes(source)
    assert parked(tmp_path) == [(seq, id) for seq, id in expected if id % POISON == 0], "each once, in order"
    lines = [tuple(map(int, line.split())) for line in taken.read_text().splitlines()]
    assert list(dict.fromkeys(lines)) == [(seq, id) for seq, id in expected if id % POISON], "each, in order"


def changes(source: ModelSource) -> list[tuple[int, int]]:
    windows = (window_of(header, record, source.layouts.__getitem__) for header, record in source.records)
    return [(change.seq, change.key["id"]) for window in windows for change in window if change.key]


def parked(folder: Path) -> list[tuple[int, int]]:
    with closing(DeadLetters(folder / "killed" / "dead-letters.sqlite")) as store:
        return [(letter.change.seq, letter.change.key["id"]) for letter in store.letters(most=100_000)]


def dealt_with(source: ModelSource, taken: Path, folder: Path) -> bool:
    expected = changes(source)
    seq, id = [(seq, id) for seq, id in expected if id % POISON][-1]
    return f"{seq} {id}\n" in taken.read_text() and len(parked(folder)) == sum(id % POISON == 0 for _, id in expected)
