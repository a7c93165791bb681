"""A transaction that is larger than memory, on its way into the log.

Its records go to TOPIC.large while it comes, in Kafka transactions that are committed as they become large: neither
memory nor the length of a Kafka transaction grows with it, and readers of the log are not held up by it. At its end
one message in the log, a reference, names the offsets between which it lies, which makes it part of the log all at
once. What a try left behind that came to nothing (the source begins anew, the writer dies) lies there until it is
trimmed, and is named by nobody; tries that lie in each other's way have different numbers.
"""

from __future__ import annotations

from walbus.relay.kafka.cluster import ClusterClients
from walbus.relay.kafka.messages import Blocks, Message, Records, reference
from walbus.relay.kafka.partition import ends_of
from walbus.relay.kafka.transactions import Transactions
from walbus.relay.sequence import Place


class LargeTransaction:
    """One try at one transaction.

    Args:
        clients: of the cluster.
        sender: of its messages.
        blocks: gathers them, under the number of this try.
        before: where it begins in the log.

    Raises:
        LogUnreachable: the cluster does not answer.
    """

    def __init__(self, clients: ClusterClients, sender: Transactions, blocks: Blocks, before: Place) -> None:
        self._clients, self._sender, self._blocks, self._before = clients, sender, blocks, before
        self._topic = clients.settings.large
        self.first = ends_of(clients, self._topic)[0].stable  #: offset from which on it lies

    def take(self, pieces: list[Records]) -> None:
        """Takes the next records; they are committed with whatever else is."""
        for piece in pieces:
            for message in self._blocks.add_piece(piece, whole=piece.before == self._before):
                self._sender.add(self._topic, message)
        self._sender.send()

    def end(self) -> None:
        """Its last record was taken; it is to be committed next."""
        for message in self._blocks.flush():
            self._sender.add(self._topic, message)

    def reference(self, behind: Place) -> Message:
        """What makes it part of the log, once all of it is committed.

        Raises:
            LogUnreachable: the cluster does not answer.
        """
        end = ends_of(self._clients, self._topic)[0].stable
        return reference(self._before, behind, self.first, end, self._blocks.attempt)
