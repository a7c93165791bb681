"""Members of a group: whatever they, the relay and time do, one at a time can commit, and nothing is passed over."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from walbus.consumers.checkpoint import Checkpoint, Following, Marks, Part, Point, dump_checkpoint, last_done_of
from walbus.consumers.checkpoint_fence import FencedCheckpointStore, Replaced
from walbus.consumers.group_member import check_group
from walbus.consumers.group_membership import MARGIN, Membership
from walbus.consumers.part_lease import PartLease, taken_over
from walbus.errors import CheckpointTaken, PartLost, ProtocolError, UsageError
from walbus.position import Position
from walbus.relay.group_leases import Asked, Group, Hold
from walbus.relay.group_requests import HeldPart, Told, pack_asked, parse_asked, parse_told, told
from walbus.relay.groups_file import pack_groups, parse_groups

LEASE = 10.0


def at(lsn: int, part: Part) -> Following:
    return Following("log", Marks(1, 1), Point(Position(1, lsn, 1), lsn), part=part)


class Place(FencedCheckpointStore):
    """A place that stores of several members share, by part."""

    def __init__(self, texts: dict[str, str], partition: str) -> None:
        super().__init__(f"part {partition}")
        self._texts, self._partition = texts, partition

    def close(self) -> None:
        return

    def _read(self) -> str | None:
        return self._texts.get(self._partition)

    def _replace(self, before: str | None, text: str) -> Replaced:
        if self._read() != before:
            return Replaced(done=False, there=self._read())
        self._texts[self._partition] = text
        return Replaced(done=True)


@dataclass
class Work:
    """A part that a member works on: what it has stored last, and how far it has handed on."""

    lease: PartLease
    store: Place
    stored: int
    handed: int


@dataclass
class Member:
    name: str
    speed: float  # of its clock
    membership: Membership
    works: dict[Hold, Work] = field(default_factory=dict)


@dataclass
class Late:
    """A save behind its look at the clock; the member stands still meanwhile, for as long as may be."""

    work: Work
    checkpoint: Checkpoint


class Groups(RuleBasedStateMachine):
    """Members, their relay, the place of their checkpoints, and time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.names, self.highest, self.restarts = 1000.0, 0, 0, 0
        self.members: list[Member] = []
        self.texts: dict[str, str] = {}
        self.saves: dict[str, list[tuple[int, int]]] = {}  # tokens and places, by part
        self.late: list[Late] = []
        self.taken: dict[str, int] = {}  # the highest token that each part was taken over under

    @initialize(parts=st.integers(1, 5))
    def begins(self, parts: int) -> None:
        self.parts, self.group = parts, Group(())
        for partition in (f"{number}/{parts}" for number in range(parts)):
            self.texts[partition] = dump_checkpoint(at(0, Part(partition)))  # read without a group until now
        for speed in (0.95, 1.05):
            self.joins(speed)

    @rule(speed=st.sampled_from([0.95, 1.0, 1.05]))
    def joins(self, speed: float) -> None:
        if len(self.members) < 4:
            self.names += 1
            self.members.append(Member(f"m{self.names}", speed, Membership(self.parts, LEASE)))

    @rule(data=st.data())
    def asks(self, data: st.DataObject) -> None:
        """A member asks, and takes up what it is told."""
        if (member := self._one_of(data)) is not None:
            self._ask(member, delay=0.0, lost=False)

    @rule(data=st.data(), lost=st.booleans(), delay=st.sampled_from([0.0, 4.0, 15.0]))
    def asks_by_a_bad_line(self, data: st.DataObject, lost: bool, delay: float) -> None:
        """The way to the relay is long, or the answer gets lost."""
        if (member := self._one_of(data)) is not None:
            self._ask(member, delay, lost=lost)

    def _ask(self, member: Member, delay: float, *, lost: bool) -> None:
        asked_at, asked = self.now * member.speed, parse_asked(pack_asked(member.membership.asked()))
        self.now += delay
        answer = self._answered(member.name, asked)
        if not lost:
            self._take_up(member, answer, asked_at)

    @rule(data=st.data())
    def hands_on(self, data: st.DataObject) -> None:
        works = self._works(lambda work: work.lease.may_hand_on())
        if works:
            data.draw(st.sampled_from(works)).handed += 1

    @rule(data=st.data(), late=st.booleans())
    def commits(self, data: st.DataObject, late: bool) -> None:
        works = self._works(lambda work: work.handed > work.stored and not self._saves_now(work))
        if not works:
            return
        work = data.draw(st.sampled_from(works))
        try:
            work.lease.require()
        except PartLost:
            return
        save = Late(work, at(work.handed, work.lease.part))
        if late:
            self.late.append(save)
        else:
            self._save(save)

    @rule(data=st.data())
    def goes_on_in_the_middle_of_a_save(self, data: st.DataObject) -> None:
        if self.late:
            save = data.draw(st.sampled_from(self.late))
            self.late.remove(save)
            self._save(save)

    @rule(data=st.data())
    def stands_still_in_the_middle_of_a_save(self, data: st.DataObject) -> None:
        """For longer than its lease; all others ask meanwhile, and take its parts over."""
        works = self._works(lambda work: _can_commit(work) and not self._saves_now(work))
        if not works:
            return
        work = data.draw(st.sampled_from(works))
        work.handed += 1
        self.now += 40.0
        for member in self.members:
            if work not in member.works.values():
                self._ask(member, delay=0.0, lost=False)
        self._save(Late(work, at(work.handed, work.lease.part)))

    @rule(data=st.data())
    def finishes(self, data: st.DataObject) -> None:
        """A member ends what it is to give up, has lost, or anything else."""
        member = self._one_of(data)
        if member is not None and member.works:
            hold = data.draw(st.sampled_from(sorted(member.works)))
            if not self._saves_now(member.works[hold]):
                del member.works[hold]
                member.membership.finished(hold)

    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        member = self._one_of(data)
        if member is not None and not member.works:
            self.members.remove(member)
            self._answered(member.name, member.membership.asked(leaves=True))

    @rule(data=st.data())
    def is_killed(self, data: st.DataObject) -> None:
        if (member := self._one_of(data)) is not None:
            self.members.remove(member)
            self.late = [save for save in self.late if save.work not in member.works.values()]

    @rule(seconds=st.sampled_from([0.5, 3.0, 12.5, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def relay_restarts(self) -> None:
        self.restarts += 1
        kept = parse_groups(pack_groups({"g": self.group}, self.highest))
        self.group, self.highest = kept.groups["g"].taken_up(self._relays_clock()), kept.token

    @invariant()
    def one_member_at_a_time_can_commit(self) -> None:
        able = [work.lease.part.partition for work in self._works(_can_commit)]
        assert len(able) == len(set(able))

    @invariant()
    def nothing_is_passed_over(self) -> None:
        for saves in self.saves.values():
            assert saves == sorted(saves), "tokens and places only grow"

    def teardown(self) -> None:
        """In the end every part is had by somebody, who goes on behind what was stored last."""
        if not hasattr(self, "group") or not self.members:
            return
        for _ in range(4 * self.parts + 8):
            self.now += 5.0
            for member in self.members:
                asked_at = self.now * member.speed
                self._take_up(member, self._answered(member.name, member.membership.asked()), asked_at)
                for hold, work in list(member.works.items()):
                    if work.lease.lost or hold in member.membership.to_give_up:
                        del member.works[hold]
                        member.membership.finished(hold)
                self.one_member_at_a_time_can_commit()
        works = self._works(_can_commit)
        assert sorted(work.lease.part.partition for work in works) == [f"{n}/{self.parts}" for n in range(self.parts)]
        for save in self.late:
            if any(save.work is work for work in works):
                self._save(save)
        self.late = [save for save in self.late if all(save.work is not work for work in works)]
        for work in works:
            work.handed += 1
            self._save(Late(work, at(work.handed, work.lease.part)))
            assert self.saves[work.lease.part.partition][-1] == (work.lease.part.token, work.handed)
        for save in self.late:
            self._save(save)
        self.nothing_is_passed_over()

    def _take_up(self, member: Member, answer: Told, asked_at: float) -> None:
        """What `GroupMember` does with an answer."""
        member.membership.told(answer, asked_at)
        held = member.membership.until
        for hold, work in member.works.items():
            if hold in held:
                work.lease.renewed(held[hold])
            else:
                work.lease.lose()
        for hold, until in held.items():
            if hold.part not in {one.part for one in member.works}:
                part = Part(f"{hold.part}/{self.parts}", hold.token)
                lease = PartLease(part, part.partition, LEASE * MARGIN, until, lambda: self.now * member.speed)
                store = Place(self.texts, part.partition)
                try:
                    stored = taken_over(store, lease)
                except PartLost:
                    member.membership.finished(hold)
                    break
                self.taken[part.partition] = hold.token
                place = last_done_of(stored).commit_lsn
                member.works[hold] = Work(lease, store, place, place)

    def _save(self, save: Late) -> None:
        work, part = save.work, save.work.lease.part
        place = last_done_of(save.checkpoint).commit_lsn
        saves = self.saves.setdefault(part.partition, [])
        try:
            work.store.save(save.checkpoint)
        except CheckpointTaken:
            work.lease.lose()
            return
        assert part.token >= self.taken[part.partition], "who had it before stores nothing any more"
        before = saves[-1][1] if saves else 0
        assert before == work.stored, "it goes on behind the last place that anybody stored"
        saves.append((part.token, place))
        work.stored = place

    def _saves_now(self, work: Work) -> bool:
        """Whether its thread is in the middle of a save: it does nothing else then."""
        return any(save.work is work for save in self.late)

    def _works(self, which) -> list[Work]:
        return [work for member in self.members for work in member.works.values() if which(work)]

    def _one_of(self, data: st.DataObject) -> Member | None:
        return data.draw(st.sampled_from(self.members)) if self.members else None

    def _relays_clock(self) -> float:
        return self.now - 700 * self.restarts

    def _answered(self, name: str, asked: Asked) -> Told:
        self.group = self.group.asked(name, asked, self._relays_clock(), self.highest + 1)
        self.highest = max(self.highest, self.group.highest)
        return told(self.group, name, asked)


def _can_commit(work: Work) -> bool:
    try:
        work.lease.require()
    except PartLost:
        return False
    return True


TestGroups = Groups.TestCase
TestGroups.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def answer(*holds: tuple[int, int, bool], members: int = 2) -> Told:
    return Told(4, LEASE, members, [HeldPart(*hold) for hold in holds])


def test_what_is_sent_and_told_is_read_as_it_was_meant():
    asked = Asked(8, 12.5, [Hold(3, 17)], leaves=True)
    assert parse_asked(pack_asked(asked)) == asked
    body = b'{"parts":4,"lease_seconds":10,"members":2,"holds":[{"part":1,"token":7,"give_up":true}],"more":0}'
    assert parse_told(body) == answer((1, 7, True))
    for none in (b"", b"[]", b"{}", b'{"parts":4}', b"[" * 100_000):
        with pytest.raises(ProtocolError):
            parse_told(none)


def test_what_was_finished_is_said_until_an_answer_is_without_it():
    member = Membership(4, LEASE)
    member.told(answer((0, 5, False), (1, 5, True)), asked_at=100.0)
    assert (member.until, member.to_give_up) == ({Hold(0, 5): 110.0, Hold(1, 5): 110.0}, {Hold(1, 5)})
    member.finished(Hold(1, 5))
    assert member.asked().done == [Hold(1, 5)]
    member.told(answer((0, 5, False), (1, 5, True)), asked_at=101.0)  # the answer to a request that was under way
    assert (member.until.keys(), member.asked().done) == ({Hold(0, 5)}, [Hold(1, 5)])
    member.told(answer((0, 5, False), (1, 9, False)), asked_at=102.0)
    assert (member.until.keys(), member.asked().done) == ({Hold(0, 5), Hold(1, 9)}, []), "it got the part anew"


def test_a_part_that_is_not_named_any_more_is_lost_and_a_late_answer_makes_no_lease_shorter():
    member = Membership(4, LEASE)
    member.told(answer((0, 5, False), (1, 5, False)), asked_at=100.0)
    member.told(answer((0, 5, False), (1, 8, False)), asked_at=90.0)
    assert member.until == {Hold(0, 5): 110.0, Hold(1, 8): 100.0}


def test_a_member_that_has_less_than_its_share_asks_sooner():
    member = Membership(4, LEASE)
    member.told(answer((0, 5, False)), asked_at=0.0)
    assert member.pause == LEASE * MARGIN
    member.told(answer((0, 5, False), (1, 5, False)), asked_at=0.0)
    assert member.pause == pytest.approx(LEASE / 3)


def test_a_member_hands_nothing_on_before_its_lease_is_over_and_stores_nothing_behind_it():
    now = 0.0
    lease = PartLease(Part("0/4", 5), "orders.0-of-4", 1.0, 10.0, lambda: now)
    lease.require()
    now = 9.5
    assert not lease.may_hand_on()
    lease.require()
    now = 10.0
    with pytest.raises(PartLost, match="0/4"):
        lease.require()
    lease.renewed(20.0)
    assert lease.may_hand_on(), "the relay gave it to nobody else"
    lease.lose()
    with pytest.raises(PartLost):
        lease.require()


def new_lease(token: int) -> PartLease:
    return PartLease(Part("0/4", token), "orders.0-of-4", 1.0, 10.0, lambda: 0.0)


def test_who_takes_a_part_over_has_every_later_save_of_the_one_before_refused():
    texts: dict[str, str] = {}
    first, second = Place(texts, "0/4"), Place(texts, "0/4")
    assert taken_over(first, new_lease(5)) is None
    first.save(at(16, Part("0/4", 5)))
    assert taken_over(second, new_lease(6)) == at(16, Part("0/4", 6))
    for lsn in (16, 8, 32):
        with pytest.raises(CheckpointTaken):
            first.save(at(lsn, Part("0/4", 5)))
    second.save(at(24, Part("0/4", 6)))
    with pytest.raises(PartLost):
        taken_over(Place(texts, "0/4"), new_lease(5))
    assert Place(texts, "0/4").load() == at(24, Part("0/4", 6))


def test_a_higher_token_stands_even_at_an_earlier_place():
    """Else a place that lost its last writes would be thought to be meant, and be given to the one before again."""
    texts: dict[str, str] = {}
    first = Place(texts, "0/4")
    taken_over(first, new_lease(5))
    first.save(at(32, Part("0/4", 5)))
    texts.clear()
    second = Place(texts, "0/4")
    taken_over(second, new_lease(6))
    second.save(at(8, Part("0/4", 6)))
    with pytest.raises(CheckpointTaken):
        first.save(at(40, Part("0/4", 5)))
    assert Place(texts, "0/4").load() == at(8, Part("0/4", 6))


def test_a_save_that_slips_in_before_a_take_over_is_taken_over_as_well(monkeypatch):
    texts: dict[str, str] = {}
    first, second = Place(texts, "0/4"), Place(texts, "0/4")
    taken_over(first, new_lease(5))
    first.save(at(16, Part("0/4", 5)))
    read = second._read

    def slips_in() -> str | None:
        text = read()
        if text is not None and first._last == text and last_done_of(first.load()).commit_lsn == 16:
            first.save(at(24, Part("0/4", 5)))
        return text

    monkeypatch.setattr(second, "_read", slips_in)
    assert taken_over(second, new_lease(6)) == at(24, Part("0/4", 6))


def test_a_place_that_loses_a_take_over_is_given_it_again():
    """A failover to a standby that lacks it: who had the part before is at the same place, under a lower token."""
    texts: dict[str, str] = {}
    first, second = Place(texts, "0/4"), Place(texts, "0/4")
    taken_over(first, new_lease(5))
    first.save(at(16, Part("0/4", 5)))
    before = dict(texts)
    taken_over(second, new_lease(6))
    texts.update(before)
    second.save(at(24, Part("0/4", 6)))
    texts.update(before)
    second.save(at(32, Part("0/4", 6)))
    with pytest.raises(CheckpointTaken):
        first.save(at(40, Part("0/4", 5)))
    assert Place(texts, "0/4").load() == at(32, Part("0/4", 6))


@pytest.mark.parametrize(
    ("parts", "lease"), [(0, 5.0), (1025, 5.0), (True, 5.0), (4, 2.9), (4, 61.0), (4, float("nan"))]
)
def test_what_no_group_may_be_is_refused(parts, lease):
    with pytest.raises(UsageError):
        check_group(parts, lease)
    check_group(4, 15.0)
