"""The intake against a model: any interleaving of streams, aborts, prepares and commits gives one and the same log."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import pgoutput_bytes as made
from support.intake_rig import LAYOUT, Rig, T, block, row, whole
from walbus.capture.spool import OPEN_SUFFIX


@dataclass
class Run:
    """One transaction of a random workload: what is still to be sent, and what should come out."""

    xid: int
    steps: list
    end: str
    streamed: bool
    first: bool = True
    told: bool = False
    kept: list = field(default_factory=list)
    stack: list = field(default_factory=list)
    changes: list = field(default_factory=list)


def subtransactions():
    """Steps: a row by the path of savepoints that surround it, or the rollback of the innermost."""
    step = st.sampled_from(["row", "row", "row", "truncate", "savepoint", "release", "rollback"])
    return st.lists(step, max_size=12)


def workload():
    transaction = st.tuples(
        subtransactions(), st.sampled_from(["commit", "commit", "abort", "prepare", "forget"]), st.booleans()
    )
    return st.tuples(st.lists(transaction, min_size=1, max_size=6), st.randoms(use_true_random=False))


class Simulation:
    """A server: sends transactions in blocks of random length in a random order; and the model of what commits."""

    def __init__(self, transactions, dice):
        self.dice = dice
        self.sent, self.plain = [], []
        self.lsn, self.next_xid, self.counter = 1000, 700, 0
        self.told = False
        self.plain_told = False
        self.waiting = [Run(self._xid(), list(steps), end, streamed) for steps, end, streamed in transactions]
        self.prepared = []
        while self.waiting or self.prepared:
            self._turn()

    def _xid(self):
        self.next_xid += 1
        return self.next_xid

    def _place(self):
        self.lsn += 100
        return self.lsn

    def _turn(self):
        if self.prepared and (not self.waiting or self.dice.random() < 0.4):
            self._end_prepared(self.prepared.pop(self.dice.randrange(len(self.prepared))))
            return
        run = self.dice.choice(self.waiting)
        if run.streamed:
            self._stream(run)
        else:
            self._send_whole(run)

    def _change(self, step):
        self.counter += 1
        return row(self.counter) if step == "row" else made.truncate(T)

    # Streamed.

    def _stream(self, run):
        """One block, and the aborts behind it; or the end."""
        if not run.steps:
            self._end(run)
            return
        inside, behind = [], []
        for _ in range(self.dice.randrange(1, 5)):
            if not run.steps:
                break
            step = run.steps.pop(0)
            if step in ("row", "truncate"):
                xid = run.stack[-1][0] if run.stack else run.xid
                if not run.told:
                    inside.append((xid, LAYOUT))
                    run.told = True
                change = self._change(step)
                inside.append((xid, change))
                run.changes.append((xid, change))
            elif step == "savepoint":
                run.stack.append((self._xid(), []))
            elif step == "release" and run.stack:
                xid, children = run.stack.pop()
                if run.stack:
                    run.stack[-1][1].extend([xid, *children])
            elif step == "rollback" and run.stack:
                xid, children = run.stack.pop()
                behind = [*children, xid]
                gone = set(behind)
                run.changes = [(x, c) for x, c in run.changes if x not in gone]
                break
        self.sent += block(run.xid, *inside, first=run.first)
        run.first = False
        self.sent += [made.stream_abort(run.xid, xid) for xid in behind]
        run.told = run.told and not behind  # the server tells layouts again behind an abort

    def _end(self, run):
        self.waiting.remove(run)
        if run.first:
            return
        run.kept = [change for _, change in run.changes]
        if run.end == "abort":
            self.sent.append(made.stream_abort(run.xid, run.xid))
        elif run.end == "commit":
            lsn = self._place()
            self.sent.append(made.stream_commit(run.xid, lsn))
            self._committed(run, lsn)
        else:
            self.sent.append(made.stream_prepare(run.xid, f"g{run.xid}", self._place()))
            self.prepared.append(run)

    # Whole.

    def _send_whole(self, run):
        self.waiting.remove(run)
        run.kept = [self._change(step) for step in run.steps if step in ("row", "truncate")]
        layout = [] if self.told or not run.kept else [LAYOUT]
        if run.end in ("prepare", "forget"):
            lsn = self._place()
            gid = f"g{run.xid}"
            self.sent += [made.begin_prepare(run.xid, gid, lsn), *layout, *run.kept, made.prepare(run.xid, gid, lsn)]
            self.prepared.append(run)
        elif run.end == "commit":
            lsn = self._place()
            self.sent += whole(lsn, *layout, *run.kept, xid=run.xid)
            self._committed(run, lsn)
        else:
            return
        self.told = self.told or bool(layout)

    def _end_prepared(self, run):
        lsn, gid = self._place(), f"g{run.xid}"
        if run.end == "prepare":
            self.sent.append(made.commit_prepared(run.xid, gid, lsn))
            self._committed(run, lsn)
        else:
            self.sent.append(made.rollback_prepared(run.xid, gid, lsn))

    def _committed(self, run, lsn):
        layout = [] if self.plain_told or not run.kept else [LAYOUT]
        self.plain_told = self.plain_told or bool(layout)
        self.plain += whole(lsn, *layout, *run.kept, xid=run.xid)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(workload(), st.sampled_from([40, 200, 1 << 20]), st.sampled_from([1, 60, 1 << 20]))
def test_any_interleaving_gives_the_log_of_whole_transactions(drawn, memory_bytes, budget):
    simulation = Simulation(*drawn)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        streamed = Rig(one, memory_bytes=memory_bytes)
        plain = Rig(two)
        assert streamed.records(*simulation.sent, budget=budget) == plain.records(*simulation.plain)
        assert streamed.names(OPEN_SUFFIX) == []
