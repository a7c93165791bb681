"""A writer that the group's coordinator does not take in time: another's log, or a cluster that does not answer."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from walbus.errors import LogBusy, LogUnreachable, WalbusError
from walbus.relay.kafka.cluster import ClusterClients, ClusterSettings
from walbus.relay.kafka.lock import WriterLock, own_name

OTHER = SimpleNamespace(client_id="walbus-elsewhere-1234abcd.1-7", member_id="other", host="/10.0.0.7")
OWN = SimpleNamespace(client_id=own_name(), member_id="own", host="/10.0.0.1")


class Clients(ClusterClients):
    """Clients of a cluster that assigns nothing to its group's member.

    Args:
        told: members of the group, as each question is answered.
    """

    def __init__(self, told: Iterable[list[SimpleNamespace]]) -> None:
        super().__init__(ClusterSettings("127.0.0.1:1", "log", answer_seconds=0.05))
        self._told, self.left = iter(told), False

    @property
    def admin(self):
        return self

    def describe_consumer_groups(self, asked, **_):
        answer = Future()
        answer.set_result(SimpleNamespace(members=next(self._told)))
        return {asked[0]: answer}

    def member(self, *_):
        return self

    def subscribe(self, _topics):
        pass

    def poll(self, _seconds):
        pass

    def assignment(self):
        return []

    def memberid(self):
        return OWN.member_id

    def close(self):
        self.left = True


@pytest.mark.parametrize(
    ("told", "error", "says"),
    [
        ([[], []], LogUnreachable, "takes no member"),
        ([[], [OWN]], LogUnreachable, "takes no member"),
        ([[], [OWN, OTHER]], LogBusy, "walbus-elsewhere-1234abcd.1-7 at 10.0.0.7"),
    ],
    ids=["nobody", "itself alone", "another"],
)
def test_a_writer_that_is_not_taken_is_told_of_another_only_where_there_is_one(
    told: list[list[SimpleNamespace]], error: type[WalbusError], says: str
):
    clients = Clients(told)
    with pytest.raises(error, match=says):
        WriterLock(clients, 10.0)
    assert clients.left
