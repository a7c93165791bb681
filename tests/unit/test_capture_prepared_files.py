"""Files of prepared transactions: one for each xid and gid, whatever the gid is, and whoever wrote it."""

from __future__ import annotations

import json
import struct

import google_crc32c
import pytest

from support import pgoutput_bytes as made
from support.intake_rig import LAYOUT, Rig, keys, row, whole
from walbus.capture import prepared_ends
from walbus.capture.prepared import PREPARED_SUFFIX
from walbus.capture.prepared_ends import PreparedEnds
from walbus.capture.xact_status import Ended
from walbus.errors import DamagedRecord

GIDS = ["../../escaped", "/etc/passwd", "a/b", ".", "x" * 200, "\u00e9\u4e16" * 40, "nl\n", " "]


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


def prepared_as(gid, *keys, xid=700, lsn=500):
    """The messages of a prepared transaction."""
    return [made.begin_prepare(xid, gid, lsn), LAYOUT, *map(row, keys), made.prepare(xid, gid, lsn)]


def test_two_prepared_transactions_may_share_xid_and_place_where_a_failover_lost_one_of_them(rig, tmp_path):
    rig.feed(*prepared_as("lost", 1))
    rig.reconnect()
    rig.feed(*prepared_as("new", 2))
    rig.intake._prepared.expect_end((700, b"lost"), 600)
    rig.records(*whole(700, LAYOUT, row(3), xid=701))  # the lost one's file goes
    assert len(rig.names(PREPARED_SUFFIX)) == 1
    again = Rig(tmp_path, rig.log)
    again.records(made.commit_prepared(700, "new", 1000))
    assert keys(again) == ["3", "2"]
    assert again.names(PREPARED_SUFFIX) == []


def test_what_had_ended_before_the_log_s_end_goes_though_an_idle_source_lets_the_log_go_no_further(rig, monkeypatch):
    rig.feed(*prepared_as("g", 1))
    store = rig.intake._prepared
    monkeypatch.setattr(prepared_ends, "ended_transactions", lambda *asked: Ended(store.unfinished, 600, "a server"))
    ends = PreparedEnds(store, None, near_xid=800)
    ends.settle(599)
    assert len(rig.names(PREPARED_SUFFIX)) == 1
    ends.settle(600)
    assert rig.names(PREPARED_SUFFIX) == []


class Book:
    """A source's book, as the next question finds it, and a clock."""

    def __init__(self, store, monkeypatch):
        self.store, self.now, self.asked = store, 0.0, 0
        self.answer = Ended((), 0, "a server")
        monkeypatch.setattr(prepared_ends, "ended_transactions", self._ask)
        self.ends = PreparedEnds(store, None, near_xid=800, monotonic=lambda: self.now)
        self.ends.settle(0)

    def _ask(self, *_):
        self.asked += 1
        return self.answer

    def look(self, server):
        self.answer = Ended(self.store.unfinished, 600, server)
        self.now += prepared_ends.LOOK_SECONDS
        self.ends.look(None, near_xid=800)


def test_what_another_server_says_of_an_end_does_not_count(rig, monkeypatch):
    rig.feed(*prepared_as("g", 1))
    book = Book(rig.intake._prepared, monkeypatch)
    book.look("another server")
    book.ends.settle(700)
    assert len(rig.names(PREPARED_SUFFIX)) == 1
    book.look("a server")
    book.ends.settle(700)
    assert rig.names(PREPARED_SUFFIX) == []


def test_what_was_prepared_again_since_its_end_was_seen_stays(rig, monkeypatch):
    rig.feed(*prepared_as("g", 1))
    book = Book(rig.intake._prepared, monkeypatch)
    book.look("a server")
    rig.feed(*prepared_as("g", 2))
    book.ends.settle(700)
    assert len(rig.names(PREPARED_SUFFIX)) == 1
    rig.records(made.commit_prepared(700, "g", 1000))
    assert keys(rig) == ["2"]


def test_the_book_is_asked_at_times_and_only_while_something_waits(rig, monkeypatch):
    book = Book(rig.intake._prepared, monkeypatch)
    book.look("a server")
    assert book.asked == 1  # when the connection began
    rig.feed(*prepared_as("g", 1))
    book.ends.settle(0)
    book.ends.look(None, near_xid=800)
    assert book.asked == 2
    book.ends.look(None, near_xid=800)
    assert book.asked == 2


@pytest.mark.parametrize("gid", GIDS)
def test_no_gid_leads_out_of_the_folder_or_is_too_long_for_a_name(tmp_path, gid):
    (tmp_path / "spool").mkdir()
    rig = Rig(tmp_path / "spool")
    rig.feed(*prepared_as(gid, 1))
    (name,) = rig.names(PREPARED_SUFFIX)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [name]
    assert len(name) < 80
    again = Rig(tmp_path / "spool", rig.log)
    again.records(made.commit_prepared(700, gid, 1000))
    assert keys(again) == ["1"]


def test_files_that_an_older_version_named_by_xid_and_place_are_read_and_named_anew(rig, tmp_path):
    rig.feed(*prepared_as("g", 1))
    (path,) = tmp_path.glob(f"*{PREPARED_SUFFIX}")
    path.rename(tmp_path / f"700-{500:016X}{PREPARED_SUFFIX}")
    again = Rig(tmp_path, rig.log)
    assert again.names(PREPARED_SUFFIX) == [path.name]
    again.records(made.commit_prepared(700, "g", 1000))
    assert (keys(again), again.names(PREPARED_SUFFIX)) == (["1"], [])


@pytest.mark.parametrize("old", [500, 600])
def test_of_two_files_of_one_transaction_the_later_one_counts_and_the_other_goes(rig, tmp_path, old):
    """An older version left the first when it was killed between naming the second and removing the first."""
    rig.feed(*prepared_as("g", 1, lsn=500))
    (path,) = tmp_path.glob(f"*{PREPARED_SUFFIX}")
    first = path.read_bytes()
    rig.feed(*prepared_as("g", 2, lsn=600))
    second = path.read_bytes()
    path.write_bytes(second if old == 500 else first)
    (tmp_path / f"700-{old:016X}{PREPARED_SUFFIX}").write_bytes(first if old == 500 else second)
    again = Rig(tmp_path, rig.log)
    assert again.names(PREPARED_SUFFIX) == [path.name]
    again.records(made.commit_prepared(700, "g", 1000))
    assert keys(again) == ["2"]


def test_a_prepared_file_of_a_version_to_come_is_refused_by_name_and_says_who_can_read_it(rig, tmp_path):
    rig.feed(*prepared_as("g", 1))
    (path,) = tmp_path.glob(f"*{PREPARED_SUFFIX}")
    whole_file = path.read_bytes()
    length = int.from_bytes(whole_file[-16:-12], "little")
    footer = json.dumps({**json.loads(whole_file[-16 - length : -16]), "timeline": 1}).encode()
    trailer = struct.pack("<II8s", len(footer), google_crc32c.value(footer), b"WALBUS2P")
    path.write_bytes(whole_file[: -16 - length] + footer + trailer)
    with pytest.raises(DamagedRecord, match=path.name) as refused:
        Rig(tmp_path)
    assert "the Walbus that wrote it" in refused.value.mend
