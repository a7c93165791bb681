"""Tokens of parts that Kafka's coordinator hands out, against a coordinator that keeps Kafka's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from walbus.consumers.part_tokens import CommitRefused, Holdings, TokensInDoubt, take_tokens
from walbus.errors import LogUnreachable
from walbus.relay.group_leases import Hold
from walbus.relay.group_requests import HeldPart

PARTS = 3


@dataclass
class Coordinator:
    """Who is a member in which generation, and what was committed; partitions move as cooperative-sticky has them."""

    generation: int = 0
    members: dict[str, int] = field(default_factory=dict)  #: the generation that each is in
    owners: dict[int, str] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)

    def commit(self, member: str, generation: int, offsets: Mapping[int, int]) -> None:
        if member not in self.members or generation != self.generation:
            raise CommitRefused("no member of this generation", is_gone=True)
        self.offsets.update(offsets)

    def next_generation(self) -> None:
        self.generation += 1
        self.members = dict.fromkeys(self.members, self.generation)


@dataclass
class Line:
    """The offsets as one member asks for them. `late` holds commits back, whose sender does not know what became."""

    coordinator: Coordinator
    member: str
    late: list[tuple[str, int, dict[int, int]]] | None = None

    def committed(self, parts: Sequence[int]) -> Mapping[int, int]:
        return {part: self.coordinator.offsets[part] for part in parts if part in self.coordinator.offsets}

    def commit(self, offsets: Mapping[int, int]) -> None:
        if self.late is not None:
            self.late.append((self.member, self.coordinator.members.get(self.member, -1), dict(offsets)))
            raise LogUnreachable("no answer")
        self.coordinator.commit(self.member, self.coordinator.members.get(self.member, -1), offsets)


@dataclass
class Member:
    name: str
    holdings: Holdings = field(default_factory=lambda: Holdings(PARTS))


class Groups(RuleBasedStateMachine):
    """Members come, go, are thrown out and have commits under way; clocks stand still, and offsets are forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.coordinator = Coordinator()
        self.members: list[Member] = []
        self.late: list[tuple[str, int, dict[int, int]]] = []
        self.given: dict[int, list[int]] = {part: [] for part in range(PARTS)}
        self.now, self.names = 1000, 0

    @rule()
    def joins(self) -> None:
        if len(self.members) < 3:
            self.names += 1
            self.members.append(Member(f"m{self.names}"))
            self.coordinator.members[self.members[-1].name] = 0
            self.coordinator.next_generation()

    @rule(data=st.data())
    def is_handed_a_part(self, data: st.DataObject) -> None:
        free = [part for part in range(PARTS) if part not in self.coordinator.owners]
        known = [member for member in self.members if member.name in self.coordinator.members]
        if free and known:
            part, member = data.draw(st.sampled_from(free)), data.draw(st.sampled_from(known))
            self.coordinator.owners[part] = member.name
            self.coordinator.next_generation()
            member.holdings.handed_out([part])

    @rule(data=st.data(), late=st.booleans())
    def takes_tokens(self, data: st.DataObject, late: bool) -> None:
        member = self._one_of(data)
        if member is None or not member.holdings.bare:
            return
        line = Line(self.coordinator, member.name, self.late if late else None)
        try:
            tokens = take_tokens(line, member.holdings.bare, self.now)
        except CommitRefused:
            return
        except TokensInDoubt:  # it cannot tell what became of it, and becomes another member
            self._gone(member)
            return
        member.holdings.given(tokens)
        for part, token in tokens.items():
            self.given[part].append(token)

    @rule(data=st.data())
    def renews(self, data: st.DataObject) -> None:
        if (member := self._one_of(data)) is None:
            return
        try:
            Line(self.coordinator, member.name).commit(member.holdings.tokens)
        except CommitRefused:
            return

    @rule(data=st.data())
    def renews_by_a_bad_line(self, data: st.DataObject) -> None:
        if (member := self._one_of(data)) is not None and member.holdings.tokens:
            generation = self.coordinator.members.get(member.name, -1)
            self.late.append((member.name, generation, member.holdings.tokens))

    @rule(data=st.data())
    def a_late_commit_comes(self, data: st.DataObject) -> None:
        if self.late:
            save = data.draw(st.sampled_from(self.late))
            self.late.remove(save)
            try:
                self.coordinator.commit(*save)
            except CommitRefused:
                return

    @rule(data=st.data())
    def gives_back(self, data: st.DataObject) -> None:
        """A part is taken away; when its work has ended it goes to others, in the next generation."""
        member = self._one_of(data)
        mine = [part for part, owner in self.coordinator.owners.items() if member is not None and owner == member.name]
        if member is None or not mine:
            return
        part = data.draw(st.sampled_from(mine))
        member.holdings.taken_away([part])
        if (token := member.holdings.tokens.get(part)) is not None:
            assert member.holdings.under_way([part])
            member.holdings.done([Hold(part, token)])
        assert not member.holdings.under_way([part])
        del self.coordinator.owners[part]
        self.coordinator.next_generation()

    @rule(data=st.data())
    def loses_a_part_to_a_later_token(self, data: st.DataObject) -> None:
        """Its sink knew a higher one: it is done with this one, and asks for another."""
        member = self._one_of(data)
        if member is not None and (tokens := member.holdings.tokens):
            part = data.draw(st.sampled_from(sorted(tokens)))
            member.holdings.done([Hold(part, tokens[part])])
            assert part in member.holdings.bare

    @rule(data=st.data())
    def is_thrown_out(self, data: st.DataObject) -> None:
        """Its session was over. It does not know yet."""
        if (member := self._one_of(data)) is not None:
            self._forgotten(member)

    @rule(data=st.data())
    def hears_that_it_was(self, data: st.DataObject) -> None:
        out = [member for member in self.members if member.name not in self.coordinator.members]
        if out:
            self._gone(data.draw(st.sampled_from(out)))

    @rule(milliseconds=st.sampled_from([0, 1, 5000]))
    def time_passes(self, milliseconds: int) -> None:
        self.now += milliseconds

    @rule()
    def offsets_are_forgotten(self) -> None:
        """After a week without members, in which the time of day goes on."""
        if not self.coordinator.members:
            self.coordinator.offsets.clear()
            self.now += 7 * 86_400_000

    @invariant()
    def tokens_only_grow(self) -> None:
        for tokens in self.given.values():
            assert tokens == sorted(set(tokens))

    @invariant()
    def who_is_a_member_holds_the_highest_token_that_was_given(self) -> None:
        for member in self.members:
            if member.name in self.coordinator.members:
                for part, token in member.holdings.tokens.items():
                    assert (self.coordinator.owners[part], token) == (member.name, self.given[part][-1])

    def _gone(self, member: Member) -> None:
        self._forgotten(member)
        member.holdings.lost(range(PARTS))
        self.members.remove(member)

    def _forgotten(self, member: Member) -> None:
        self.coordinator.members.pop(member.name, None)
        kept = {part: owner for part, owner in self.coordinator.owners.items() if owner != member.name}
        self.coordinator.owners = kept
        self.coordinator.next_generation()

    def _one_of(self, data: st.DataObject) -> Member | None:
        return data.draw(st.sampled_from(self.members)) if self.members else None


TestGroups = Groups.TestCase
TestGroups.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def member_of(*names: str) -> Coordinator:
    made = Coordinator(members=dict.fromkeys(names, 0))
    made.next_generation()
    return made


def test_a_token_is_one_more_than_the_last_and_not_below_the_time_of_day() -> None:
    line = Line(member_of("m"), "m")
    assert take_tokens(line, [0, 1], 1000) == {0: 1000, 1: 1000}
    assert take_tokens(line, [1], 1000) == {1: 1001}
    assert take_tokens(line, [0, 1], 900) == {0: 1001, 1: 1002}, "a clock that goes back changes nothing"
    assert take_tokens(line, [0], 5000) == {0: 5000}


def test_who_is_no_member_any_more_gets_no_token() -> None:
    coordinator = member_of("m", "other")
    take_tokens(Line(coordinator, "m"), [0], 10)
    with pytest.raises(CommitRefused) as refused:
        take_tokens(Line(coordinator, "zombie"), [0], 99)
    assert refused.value.is_gone
    assert coordinator.offsets == {0: 10}


def test_a_token_that_is_not_found_where_it_was_committed_is_none() -> None:
    class Forgets(Line):
        def commit(self, offsets: Mapping[int, int]) -> None:
            super().commit(dict.fromkeys(offsets, 5))

    with pytest.raises(CommitRefused, match="in between"):
        take_tokens(Forgets(member_of("m"), "m"), [0], 10)


def test_a_part_is_held_from_its_token_on_and_named_as_one_to_give_up_until_it_is_done_with() -> None:
    holdings = Holdings(PARTS)
    holdings.handed_out([2, 0])
    assert (holdings.bare, holdings.told(9.0).holds) == ([0, 2], [])
    holdings.given({0: 8, 2: 7})
    assert holdings.told(9.0).holds == [HeldPart(2, 7, False), HeldPart(0, 8, False)]
    holdings.taken_away([0])
    assert holdings.told(9.0).holds == [HeldPart(2, 7, False), HeldPart(0, 8, True)]
    holdings.done([Hold(0, 7)])
    assert holdings.under_way([0]), "the word of an earlier holder says nothing"
    holdings.done([Hold(0, 8)])
    assert (holdings.under_way([0]), holdings.tokens, holdings.bare) == (False, {2: 7}, [])


def test_a_part_that_is_taken_away_or_lost_before_it_has_a_token_never_gets_one() -> None:
    holdings = Holdings(PARTS)
    holdings.handed_out([0, 1, 2])
    holdings.taken_away([0])
    holdings.lost([1])
    holdings.given({0: 5, 1: 5, 2: 5})
    assert holdings.tokens == {2: 5}


def test_a_part_whose_holder_is_done_with_it_by_itself_is_to_have_another_token() -> None:
    holdings = Holdings(PARTS)
    holdings.handed_out([1])
    holdings.given({1: 5})
    holdings.done([Hold(1, 5)])
    assert (holdings.bare, holdings.tokens) == ([1], {})
