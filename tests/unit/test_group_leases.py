"""Groups: whatever members and relay do, no part has two holders, tokens grow, and in the end every part is held."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from walbus.errors import DamagedRecord, UsageError
from walbus.relay.fs import Files
from walbus.relay.group_leases import MAX_MEMBERS, Asked, Group, Hold, OtherOwner, OtherParts, TooManyMembers
from walbus.relay.group_requests import parse_asked, told
from walbus.relay.groups_file import Kept, begin_groups, pack_groups, parse_groups, read_groups, write_groups

LEASE = 10.0


@dataclass
class Member:
    """A member that keeps the rules: it handles a part until its lease is over by its own clock."""

    name: str
    speed: float  # of its clock
    handles: dict[int, int] = field(default_factory=dict)  # tokens by part
    until: float = float("-inf")
    done: set[Hold] = field(default_factory=set)
    acts: bool = True

    def holds_at(self, now: float) -> dict[int, int]:
        return self.handles if now * self.speed < self.until else {}

    def take(self, holds: list[Hold], asked_at: float, lease: float) -> None:
        self.handles = {part: token for part, token in holds if Hold(part, token) not in self.done}
        self.until = max(self.until, asked_at * self.speed + lease)


class Groups(RuleBasedStateMachine):
    """Members, the relay's group, and time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.restarts = 1000.0, 0
        self.members: list[Member] = []
        self.tokens: dict[int, int] = {}
        self.names = 0
        self.late: list[tuple[str, Asked]] = []

    @initialize(parts=st.integers(1, 7))
    def begins(self, parts: int) -> None:
        self.parts = parts
        self.group = Group(())

    @rule(speed=st.sampled_from([0.95, 1.0, 1.05]))
    def joins(self, speed: float) -> None:
        if len(self.members) < 5:
            self.names += 1
            self.members.append(Member(f"m{self.names}", speed))

    @rule(data=st.data(), lost=st.booleans(), delay=st.floats(0, 15), lease=st.sampled_from([2.0, LEASE]))
    def asks(self, data: st.DataObject, lost: bool, delay: float, lease: float) -> None:
        """A member asks; the request takes a while, and its answer may get lost."""
        if (member := self._one_of(data)) is None:
            return
        asked_at, asked = self.now, Asked(self.parts, lease, sorted(member.done))
        self.late.append((member.name, asked))
        self.now += delay
        holds = self._answered(member.name, asked)
        if not lost:
            member.take(holds, asked_at, lease)

    @rule(data=st.data())
    def arrives_late(self, data: st.DataObject) -> None:
        """A request of before comes again; nobody hears the answer."""
        if self.late:
            self._answered(*data.draw(st.sampled_from(self.late)))

    @rule(data=st.data())
    def gives_up(self, data: st.DataObject) -> None:
        """A member finishes what it has beyond its share, or anything else."""
        member = self._one_of(data)
        if member is not None and member.handles:
            part = data.draw(st.sampled_from(sorted(member.handles)))
            member.done.add(Hold(part, member.handles.pop(part)))

    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        if (member := self._one_of(data)) is not None:
            self.members.remove(member)
            assert self._answered(member.name, Asked(self.parts, LEASE, leaves=True)) == []

    @rule(data=st.data())
    def stops_or_dies(self, data: st.DataObject) -> None:
        """SIGSTOP, or SIGKILL: what it handled last it handles until its lease is over."""
        if (member := self._one_of(data)) is not None:
            member.acts = False

    @rule(data=st.data())
    def continues(self, data: st.DataObject) -> None:
        stopped = [member for member in self.members if not member.acts]
        if stopped:
            data.draw(st.sampled_from(stopped)).acts = True

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def relay_restarts(self) -> None:
        """With what the file has; its clock begins anywhere."""
        self.group = stored(self.group)
        self.restarts += 1
        self.group = self.group.taken_up(self._relays_clock())

    @invariant()
    def no_part_has_two_holders(self) -> None:
        handled = [part for member in self.members for part in member.holds_at(self.now)]
        assert len(handled) == len(set(handled))

    def teardown(self) -> None:
        if not hasattr(self, "group"):
            return
        self.now += 100
        alive = [member for member in self.members if member.acts]
        for _ in range(3 * self.parts + 3):
            for member in alive:
                asked_at, asked = self.now, Asked(self.parts, LEASE, sorted(member.done))
                member.take(self._answered(member.name, asked), asked_at, LEASE)
                for hold in self.group.to_give_up(member.name):
                    if member.handles.pop(hold.part, None) is not None:
                        member.done.add(hold)
                self.no_part_has_two_holders()
                self.now += 0.1
        if alive:
            counts = [len(member.holds_at(self.now)) for member in alive]
            assert sum(counts) == self.parts, "every part is held"
            assert max(counts) - min(counts) <= 1

    def _one_of(self, data: st.DataObject) -> Member | None:
        acting = [member for member in self.members if member.acts]
        return data.draw(st.sampled_from(acting)) if acting else None

    def _relays_clock(self) -> float:
        return self.now - 700 * self.restarts

    def _answered(self, name: str, asked: Asked) -> list[Hold]:
        before = dict(enumerate(self.group.parts))
        self.group = self.group.asked(name, asked, self._relays_clock(), 1)
        for number, part in enumerate(self.group.parts):
            if part.holder is not None and (number not in before or before[number] != part):
                assert part.token > self.tokens.get(number, 0), "tokens grow"
                self.tokens[number] = part.token
        return self.group.holds(name)


def stored(group: Group) -> Group:
    return parse_groups(pack_groups({"g": group}, group.highest)).groups["g"]


TestGroups = Groups.TestCase
TestGroups.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def ask(group: Group, member: str, now: float = 0.0, done: list[Hold] | None = None, parts: int = 8) -> Group:
    return group.asked(member, Asked(parts, LEASE, done or []), now, stamp=1)


def held(group: Group) -> dict[str, list[int]]:
    return {member: sorted(hold.part for hold in group.holds(member)) for member in group.members}


def test_a_member_that_joins_gets_what_the_others_gave_up_and_no_more_is_moved():
    group = ask(ask(Group(()), "a"), "b")
    assert held(group) == {"a": [0, 1, 2, 3, 4, 5, 6, 7], "b": []}
    beyond = group.to_give_up("a")
    assert len(beyond) == 4
    group = ask(group, "b")
    assert held(group)["b"] == [], "none is free before it is given up"
    group = ask(ask(group, "a", done=beyond), "b")
    assert held(group) == {"a": [0, 1, 2, 3], "b": [4, 5, 6, 7]}
    group = ask(group, "c")
    moved = {name: len(group.to_give_up(name)) for name in group.members}
    assert moved == {"a": 1, "b": 1, "c": 0}


def test_a_part_of_a_member_that_is_silent_goes_on_only_when_its_lease_is_over_by_any_clock():
    group = ask(ask(Group(()), "a", 0.0, parts=1), "b", 1.0, parts=1)
    assert held(ask(group, "b", 11.9, parts=1))["b"] == []
    after = ask(group, "b", 12.0, parts=1)
    assert held(after) == {"b": [0]}
    assert after.parts[0].token > group.parts[0].token
    assert held(ask(after, "a", 12.1, parts=1)) == {"b": [0], "a": []}, "who comes back has nothing"


def test_a_shorter_lease_does_not_end_a_longer_one_whose_answer_may_be_the_last_that_came():
    group = Group(()).asked("a", Asked(1, 60.0), 0.0, stamp=1).asked("a", Asked(1, 2.0), 1.0, stamp=1)
    group = stored(group).taken_up(5.0)
    assert held(ask(group, "b", 71.9, parts=1))["b"] == []
    assert held(ask(group, "b", 72.1, parts=1)) == {"b": [0]}


def test_what_was_given_up_is_given_up_once():
    group = ask(Group(()), "a", parts=1)
    (old,) = group.holds("a")
    group = ask(group, "a", done=[old], parts=1)
    (new,) = group.holds("a")
    assert new.token > old.token
    assert ask(group, "a", done=[old], parts=1).holds("a") == [new], "a request that comes again gives up nothing else"
    assert ask(group, "b", done=[new], parts=1).holds("a") == [new], "nor does another member"


def test_tokens_do_not_begin_again_where_a_group_was_forgotten():
    forgotten = Group(()).asked("a", Asked(1, LEASE), 0.0, stamp=5_000).holds("a")[0].token
    assert Group(()).asked("b", Asked(1, LEASE), 0.0, stamp=5_001).holds("b")[0].token > forgotten


def test_another_number_of_parts_waits_until_nobody_reads_the_first():
    group = ask(Group(()), "a", parts=8)
    with pytest.raises(OtherParts) as refused:
        ask(group, "b", parts=4)
    assert refused.value.args == (8,)
    assert held(ask(group.left("a"), "b", parts=4)) == {"b": [0, 1, 2, 3]}
    assert held(ask(group, "b", now=100.0, parts=4)) == {"b": [0, 1, 2, 3]}


def test_a_member_is_spoken_for_by_the_access_token_alone_that_it_joined_with():
    group = stored(Group(()).asked("a", Asked(1, LEASE, owner="cache"), 0.0, stamp=1)).taken_up(0.0)
    for asked in (Asked(1, LEASE, owner="reports", leaves=True), Asked(1, LEASE, group.holds("a"), owner="reports")):
        with pytest.raises(OtherOwner):
            group.asked("a", asked, 1.0, stamp=1)
    assert group.asked("a", Asked(1, LEASE, owner="cache", leaves=True), 1.0, stamp=1).members == {}
    assert group.asked("a", Asked(1, LEASE, owner="reports"), 100.0, stamp=1).members["a"].owner == "reports"


def test_members_are_bounded():
    group = Group(())
    for number in range(MAX_MEMBERS):
        group = ask(group, f"m{number}")
    with pytest.raises(TooManyMembers):
        ask(group, "one more")
    ask(group, "m7")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"parts": 0, "lease_seconds": 5}', b'{"parts": 8, "lease_seconds": 2.9}',
     b'{"parts": 8, "lease_seconds": 61}',
     b'{"parts": 1025, "lease_seconds": 5}', b'{"parts": true, "lease_seconds": 5}',
     b'{"parts": 8, "lease_seconds": 5, "done": [{"part": -1, "token": 1}]}', b"[" * 100_000],
)  # fmt: skip
def test_what_no_member_asks_is_refused(body):
    with pytest.raises(UsageError):
        parse_asked(body)


def test_a_member_is_told_what_to_give_up():
    group = ask(ask(Group(()), "a", parts=3), "b", parts=3)
    answer = told(group, "a", Asked(3, LEASE))
    assert [(hold.part, hold.give_up) for hold in answer.holds] == [(0, False), (1, False), (2, True)]
    assert (answer.members, answer.parts) == (2, 3)
    assert parse_asked(b'{"parts": 8, "lease_seconds": 5, "more": 1, "done": [{"part": 2, "token": 9}]}') == Asked(
        8, 5, [Hold(2, 9)]
    )


def test_a_damaged_file_is_put_aside_and_told(tmp_path: Path):
    path, group = tmp_path / "groups.json", ask(Group(()), "a")
    begin_groups(tmp_path, Files())
    assert read_groups(path) == Kept({})
    whole = pack_groups({"g": group}, 7)
    write_groups(path, Files(), whole)
    begin_groups(tmp_path, Files())
    again = read_groups(path).groups["g"]
    assert read_groups(path).token == 7, "a file that is there stays"
    assert (again.parts, again.taken_up(0.0)) == (
        group.parts,
        Group(group.parts, {"a": again.taken_up(0.0).members["a"]}),
    )
    assert again.taken_up(7.0).members["a"].gone_at == 7.0 + LEASE * 1.1 + 1
    data = path.read_bytes()
    for damaged in (data[:-9], data.replace(b'"a"', b'"b"'), data.replace(b'"version":2', b'"version":9'), b"\xff"):
        with pytest.raises(DamagedRecord):
            parse_groups(damaged)
        path.write_bytes(damaged)
        assert read_groups(path) == Kept({}, blind=True, damaged=True)
        assert read_groups(path) == Kept({}, blind=True, damaged=True), "whoever reads it next waits as well"
        write_groups(path, Files(), whole, damaged=True)
        assert (tmp_path / "groups.json.damaged").read_bytes() == damaged
        assert read_groups(path).groups.keys() == {"g"}


def test_a_file_that_is_gone_is_told_from_one_that_nothing_was_in(tmp_path: Path):
    assert read_groups(tmp_path / "groups.json") == Kept({}, blind=True)
