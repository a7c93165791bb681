"""Whatever is refused, and whatever is done about it: the changes of each key come in their order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import get_args

import pytest

from support.calling import Recorder, calling
from support.model_source import ITEMS, ModelSource, insert, update
from support.waiting import wait_for
from walbus.consumers import ChangesRefused, DeadLetters, Failures
from walbus.consumers.callbacks import Policy
from walbus.errors import CallbackFailed
from walbus.events import Change

pytestmark = pytest.mark.one_version

IDS = (1, 2, 3)
POISON = ("1-2", "2-3", "2-5")  # changes of two keys; later ones of them are in order


@pytest.fixture(params=["threads", "asyncio"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def work(source: ModelSource) -> dict[int, list[str]]:
    """Changes of a few keys, in transactions whole and in pieces; the names that each key has one after the other."""
    source.commit([insert(ITEMS, id, f"{id}-0") for id in IDS])
    for round_ in range(1, 8):
        source.commit([update(ITEMS, id, name=f"{id}-{round_}") for id in IDS], pieces=1 + round_ % 2)
    return {id: [f"{id}-{round_}" for round_ in range(8)] for id in IDS}


def by_key(changes: Iterable[Change]) -> dict[int, list[str]]:
    found = defaultdict(list)
    for change in changes:
        found[change.key["id"]].append(change.after["name"])
    return dict(found)


class Refusing(Recorder):
    """Refuses the poison until it is mended: each change as it comes, or all at a window's end."""

    def __init__(self, at: str) -> None:
        super().__init__(lambda change: at == "change" and self.is_poison(change))
        self.mended = False
        if at == "window":
            self.raising["window_end"] = self._write

    def is_poison(self, change: Change) -> bool:
        return not self.mended and change.after["name"] in POISON

    def _write(self) -> None:
        if at_fault := [change for change in self.taken if self.is_poison(change)]:
            raise ChangesRefused(*at_fault)


@pytest.mark.parametrize("at", ["change", "window"])
@pytest.mark.parametrize("policy", get_args(Policy))
def test_each_key_keeps_its_order_under_every_policy(
    source, relay, tmp_path: Path, way: str, policy: Policy, at: str
) -> None:
    expected, calls = work(source), Refusing(at)
    failures = Failures(policy, attempts=2, first_pause=0.01, longest_pause=0.02)
    taken = {
        "stop": {id: names[:2] for id, names in expected.items()},
        "skip": {id: [name for name in names if name not in POISON] for id, names in expected.items()},
        "dead-letter": {1: expected[1][:2], 2: expected[2][:3], 3: expected[3]},
    }[policy]
    with calling(way, relay.url, tmp_path, calls, failures) as run:
        if policy == "stop":
            assert isinstance(run.ended(), CallbackFailed)
        else:
            wait_for(lambda: len(calls.durable) == sum(map(len, taken.values())), 60)
            with closing(DeadLetters(tmp_path / "caller" / "dead-letters.sqlite")) as letters:
                if policy == "dead-letter":
                    parked = [letter.change for letter in letters.letters()]
                    assert by_key(parked) == {1: expected[1][2:], 2: expected[2][3:]}
                    calls.mended = True
                    letters.retry()
                    wait_for(lambda: not letters.letters(), 60)
                    taken = expected
                else:
                    assert not letters.letters()
    if policy == "stop":
        assert len(calls.durable) <= sum(map(len, taken.values()))
        mended = Refusing(at)
        mended.mended = True
        with calling(way, relay.url, tmp_path, mended, failures):
            wait_for(lambda: len(calls.durable) + len(mended.durable) == sum(map(len, expected.values())), 60)
        assert by_key([*calls.durable, *mended.durable]) == expected
        return
    assert run.error is None
    assert by_key(calls.durable) == taken
    log = [change for change in calls.durable if policy == "skip" or change.key["id"] == 3]
    assert [change.seq for change in log] == sorted(change.seq for change in log), "what is not parked keeps the log's"
