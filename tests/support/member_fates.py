"""What befalls the members of a group that fills a sink while writers write, drawn by dice.

meet_fates(group, source, seed, relay=lambda: system.kill("relay"))
assert_equal(group, target, source, *TABLES, "items", "marker")
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable

from support.database import Database
from support.sink_group import Member, SinkGroup
from support.waiting import wait_for
from support.writers import Writers

_MOST = 4
_TURNS = 10


def meet_fates(group: SinkGroup, source: Database, seed: int, **others: Callable[[], object]) -> None:
    """Has members join, leave, die, stand still and go on; at the end those that live share all parts.

    Args:
        group: without members yet.
        source: is written to meanwhile.
        seed: of the dice and of the writers.
        others: what may happen besides.
    """
    dice = random.Random(seed)
    group.member("member-0")
    group.member("member-1")
    group.wait_until_shared_by(2)
    stopped: list[Member] = []
    with Writers(source, seed, sessions=3, transactions=120) as writers:
        for turn in range(2, 2 + _TURNS):
            running = [member for member in group.members if not member.ends() and member not in stopped]
            fate = dice.choice(["join", "leave", "kill", "stop", "go on", *others]) if len(running) > 1 else "join"
            if fate == "join" and len(running) < _MOST:
                group.member(f"member-{turn}")
            elif fate == "leave":
                leaving = dice.choice(running)
                wait_for(leaving.status, what="it has come so far that it leaves in order")
                assert leaving.end() == 0
            elif fate == "kill":
                dice.choice(running).end(signal.SIGKILL)
            elif fate == "stop":
                stopped.append(dice.choice(running))
                stopped[-1].send(signal.SIGSTOP)
            elif fate == "go on" and stopped:
                stopped.pop().send(signal.SIGCONT)
            elif fate in others:
                others[fate]()
            _wait_for_rows(source, writers, f"more rows behind turn {turn} ({fate})")
    for member in stopped:
        member.send(signal.SIGCONT)
    running = [member for member in group.members if not member.ends()]
    group.wait_until_shared_by(min(_MOST, len(running)))


def _wait_for_rows(source: Database, writers: Writers, what: str) -> None:
    some = source.value("SELECT count(*) FROM alpha")
    wait_for(lambda: not writers.running or source.value("SELECT count(*) FROM alpha") != some, what=what)
