"""Callbacks keep the grammar of their order, and lose nothing, whatever raises, stops or goes elsewhere meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from support.calling import Recorder
from walbus.consumers import Callbacks, ChangesRefused, Failures, Sweep
from walbus.consumers.callback_effects import Handed, drive, hand_over
from walbus.consumers.callback_loop import CallbackLoop
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.deliveries import Delivered, Delivery
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.steps import Discard
from walbus.errors import WalbusError
from walbus.events import Change, Window
from walbus.position import Position
from walbus.records import Kind, Op, RawChange, time_of

Item = Delivery | PhaseEvent | Discard | None
Plan = list[tuple[str, list[int]]]

MARKS = Marks(1, 1)
BEHIND = Following("log-a", MARKS, Point(Position(1, 1, 1), 1))


class Played:
    """A subscription that gives what it was told to, from where it was rewound or sent to; None is a pause.

    Whole windows that come behind each other are one run, unless each comes alone.
    """

    name, log_id, wanted, checkpoint = "played", "log-a", False, None

    def __init__(self, plan: Plan, *, alone: bool = False) -> None:
        self._alone = alone
        self.items: list[Item] = []
        self.begins: list[int] = []  # places that it can be sent to
        self.seqs: list[int] = []  # of what is whole
        self.stopped = False
        self._seq = count(1)
        self._at = self._stored_at = 0
        self._given: list[PhaseEvent | Discard] = []
        self._uncommitted: set[int] = set()
        for what, sizes in plan:
            self.begins.append(len(self.items))
            self._add(what, sizes)
        self.begins.append(len(self.items))

    def _add(self, what: str, sizes: list[int]) -> None:
        match what:
            case "pause":
                self.items.append(None)
            case "cut":
                self._add_pieces(sizes, ends=False)
                self.items.append(Discard())
            case "bootstrap":
                self.items.append(PhaseEvent("bootstrap_begins"))
                for size in sizes:
                    self._add_pieces([size], ends=True)
                self.items.append(self._delivery([], begins=True, ends=True, sweep=True))
                self.items.append(PhaseEvent("bootstrap_ends"))
            case _:
                self._add_pieces(sizes, ends=True)

    def _add_pieces(self, sizes: list[int], *, ends: bool) -> None:
        for number, size in enumerate(sizes):
            last = number == len(sizes) - 1
            seqs = [next(self._seq) for _ in range(size)]
            self.items.append(self._delivery(seqs, begins=number == 0, ends=last and ends))
            self.seqs += seqs if ends else []

    def _delivery(self, seqs: list[int], *, begins: bool, ends: bool, sweep: bool = False) -> Delivery:
        changes = [_change(seq) for seq in seqs]
        last = Position(1, len(self.items) + 1, 1)
        window = Window(
            kind=Kind.TRANSACTION, changes=changes, xid=1, commit_lsn=1, commit_time=time_of(0), last=last, last_seq=1,
            begins=begins, ends=ends,
        )  # fmt: skip
        swept = Sweep("public.items", 1, MARKS, BEHIND) if sweep else None
        number = len(self.items)
        return Delivery(window, "online", swept, 1, number, BEHIND, self._commit)

    def _commit(self, delivery: Delivery) -> None:
        number = delivery._number
        if number in self._uncommitted:
            self._uncommitted.clear()
            self._stored_at = number + 1

    @property
    def stored(self) -> Position:
        return Position(1, self._stored_at, 1)

    @property
    def ended(self) -> bool:
        return self.stopped or self._at >= len(self.items)

    @property
    def has_uncommitted(self) -> bool:
        return bool(self._uncommitted)

    def told(self) -> PhaseEvent | Discard | None:
        return self._given.pop(0) if self._given else None

    def again(self, window: Window) -> Delivered:
        return Delivered(window, "dead-letter", None)

    def wait_stopped(self, seconds: float) -> None:
        """Time passes."""

    def next(self, timeout: float) -> Delivery | None:
        while not self.ended:
            at, self._at = self._at, self._at + 1
            match self.items[at]:
                case Delivery() as delivery:
                    self._uncommitted.add(at)
                    return delivery
                case None:
                    return None
                case told:
                    self._given.append(told)
        return None

    def windows(self, calls: Callbacks, delivery: Delivery, may_go_on: Callable[[], bool]) -> Handed:
        return hand_over(calls, delivery, lambda: self._further() if may_go_on() else None)

    def _further(self) -> Delivery | None:
        if self._alone or self.ended:
            return None
        item = self.items[self._at]
        if not isinstance(item, Delivery) or item.sweep is not None or not (item.begins and item.ends):
            return None
        self._uncommitted.add(self._at)
        self._at += 1
        return item

    def rewind(self) -> None:
        self._at = self._stored_at
        self._uncommitted.clear()

    def seek(self, place: int) -> None:
        self._stored_at = self.begins[place % len(self.begins)]
        self.rewind()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def each(self, on_change: Callable[..., Any], changes: Sequence[Change], window: Delivered) -> Any:
        for taken, change in enumerate(changes):
            try:
                on_change(change, window)
            except Exception as error:
                return taken, error
        return len(changes), None


def _change(seq: int) -> Change:
    raw = RawChange(Op.INSERT, 0, 16_400, 1, 0, 0, 0, b"%d" % seq, None, b"", None, None)
    return Change(raw, None, Position(1, seq, 1), seq)


class Acting(Recorder):
    """Does what is planned at its nth call; notes which calls raised."""

    def __init__(self, feed: Played, acts: dict[int, str]) -> None:
        super().__init__()
        self._feed, self._acts = feed, acts
        self.raised: set[int] = set()

    def _called(self, name: str) -> None:
        number = len(self.calls)
        super()._called(name)
        match self._acts.get(number, "").split():
            case ["stop"]:
                self._feed.stopped = True
            case ["seek", place]:
                self._feed.seek(int(place))
            case ["raise"]:
                self.raised.add(number)
                raise ValueError("planned")
            case ["refuse"] if self.taken:
                self.raised.add(number)
                raise ChangesRefused(self.taken[0])
            case ["interrupt"]:
                self.raised.add(number)
                raise KeyboardInterrupt


def check_order(calls: list[str], raised: set[int]) -> None:
    """What may follow what: see `walbus.consumers.callbacks`."""
    opened, whole, taken = False, 0, False
    assert (calls[0], calls[-1]) == ("start", "stop")
    for number, name in enumerate(calls[1:-1], 1):
        match name:
            case "window_start":
                assert not opened, "the last one has ended, or was rolled back"
                opened = taken = True
            case "change" | "sweep":
                assert opened
            case "window_end":
                assert opened
                opened, whole = number in raised, whole + 1
            case "checkpoint":
                assert whole, "something is to be made durable"
                assert not opened
                if number not in raised:
                    whole, taken = 0, False
            case "rollback":
                assert taken, "something is to be forgotten"
                opened, whole, taken = False, 0, False
            case "bootstrap_start" | "bootstrap_end":
                assert not opened
            case "error":
                pass
            case _:
                raise AssertionError(name)
    assert not opened, "a window that has begun has ended, or was rolled back"


_sizes = st.lists(st.integers(0, 3), min_size=1, max_size=3)
_plans = st.lists(st.tuples(st.sampled_from(["whole", "whole", "cut", "bootstrap", "pause"]), _sizes), max_size=6)
_act = st.one_of(
    st.sampled_from(["stop", "raise", "raise", "refuse", "interrupt"]), st.integers(0, 6).map("seek {}".format)
)
_acts = st.dictionaries(st.integers(0, 40), _act, max_size=4)


def _run(feed: Played, calls: Acting, policy: Any, attempts: int) -> BaseException | None:
    """Runs to the end; what it raised. Each call takes a second."""
    failures = Failures(policy, attempts=attempts, first_pause=0, longest_pause=0)
    loop = CallbackLoop(calls, feed, feed, failures, None, 3.0, lambda: len(calls.calls))
    try:
        drive(loop.steps())
    except (ValueError, KeyboardInterrupt, WalbusError, ChangesRefused) as error:
        return error
    return None


@given(_plans, _acts, st.sampled_from(["stop", "skip"]), st.integers(1, 3))
@example([("whole", [2, 2]), ("whole", [1])], {3: "seek 1"}, "stop", 3)
@example([("whole", [2, 2]), ("bootstrap", [1])], {3: "seek 1"}, "stop", 3)
@example([("whole", [3])], {3: "raise"}, "stop", 2)
@example([("whole", [2])], {2: "raise", 3: "raise"}, "skip", 2)
def test_callbacks_keep_their_order_and_lose_nothing(
    plan: Plan, acts: dict[int, str], policy: Any, attempts: int
) -> None:
    feed = Played(plan)
    calls = Acting(feed, acts)
    ended = _run(feed, calls, policy, attempts)
    check_order(calls.calls, calls.raised)
    durable = [change.seq for change in calls.durable]
    if any(act.startswith("seek") for act in acts.values()):
        return
    assert durable == sorted(set(durable)), "each once, in order"
    if ended is None and not feed.stopped and policy == "stop":
        assert durable == feed.seqs, "nothing is lost"


_small = st.lists(st.integers(0, 3), min_size=1, max_size=1)
_kinds = st.sampled_from(["whole", "whole", "whole", "cut", "bootstrap", "pause"])
_runs = st.lists(st.tuples(_kinds, _small), max_size=9)


@given(_runs, _acts, st.sampled_from(["stop", "skip"]), st.integers(1, 3))
@example([("whole", [1])] * 6, {4: "stop"}, "stop", 1)
@example([("whole", [1])] * 6, {5: "raise"}, "skip", 1)
@example([("whole", [2])] * 6, {6: "refuse"}, "skip", 1)
@example([("whole", [1])] * 6, {6: "seek 0"}, "stop", 1)
def test_a_run_of_windows_is_called_as_if_each_came_alone(
    plan: Plan, acts: dict[int, str], policy: Any, attempts: int
) -> None:
    seen = []
    for alone in (False, True):
        feed = Played(plan, alone=alone)
        calls = Acting(feed, acts)
        ended = _run(feed, calls, policy, attempts)
        errors = [(repr(error), change and change.seq) for error, change in calls.errors]
        rows = [change.seq for change in (*calls.durable, *calls.taken)]
        seen.append((calls.calls, rows, calls.rolled_back, errors, repr(ended), feed.stored, feed.has_uncommitted))
    assert seen[0] == seen[1]
